//! The interfaces of the ports.

use std::fs;
use std::net::IpAddr;

use super::{Check, KernelLink, MachineProblem, Network, interface};
use crate::os::{ethtool, sysctl};
use tandemgw_core::config::{Config, Port, PortOffload};
use tandemgw_core::flow::Family;

/// The least MTU that IPv6 works with (RFC 8200, section 5).
pub(super) const IPV6_MIN_MTU: u32 = 1280;

/// One port: its TUN device and its interface.
pub(super) fn check(config: &Config, port: &Port, network: &Network, is_running: bool) -> Check {
    let name = format!("port {}", port.name);
    let mut problems = Vec::new();
    if !is_running {
        problems.extend(tun_in_use(port, network));
    }
    let Some(link) = network.link(&port.interface) else {
        let whose = format!("port \"{}\"", port.name);
        problems.push(interface::missing(&whose, &port.interface, network));
        return Check::new(name, "", problems);
    };
    problems.extend(check_interface(config, port, link, network));
    Check::new(name, interface::describe(link, network), problems)
}

/// Virtual addresses that the kernel also has.
pub(super) fn virtual_addresses(config: &Config, network: &Network) -> Check {
    let mut problems = Vec::new();
    let virtual_addresses = config.ports.iter().flat_map(|port| &port.virtual_addresses);
    for virtual_address in virtual_addresses.clone() {
        let ip = IpAddr::from(virtual_address.addr);
        let Some(own) = network.addresses.iter().find(|own| own.addr == ip) else {
            continue;
        };
        let name = network.name_of(own.link);
        problems.push(MachineProblem::fatal(
            format!("the virtual address {ip} is an address of this machine's interface {name}"),
            format!(
                "ip addr del {ip}/{} dev {name} (and from the configuration that adds it): the \
                 gateway answers for virtual addresses itself",
                own.prefix_len
            ),
        ));
    }
    let found = format!(
        "none of the {} is an address of this machine",
        virtual_addresses.count()
    );
    Check::new("virtual-addresses", found, problems)
}

/// Ports with different MTUs: a packet that fits one does not fit the other.
pub(super) fn mtus(config: &Config, network: &Network) -> Check {
    let mtus: Vec<(&str, u32)> = config
        .ports
        .iter()
        .filter_map(|port| Some((port.name.as_str(), network.link(&port.interface)?.mtu)))
        .collect();
    let list = mtus.iter().map(|(name, mtu)| format!("{name} {mtu}"));
    let list = list.collect::<Vec<_>>().join(", ");
    let differ = mtus.windows(2).any(|pair| pair[0].1 != pair[1].1);
    let problem = differ.then(|| {
        MachineProblem::warning(
            format!("the ports have different MTUs: {list}"),
            "where the links allow it, make them equal (ip link set … mtu …); else see to it that \
             ICMP \"too big\" reaches the hosts, and that they obey it",
        )
    });
    let found = match mtus.is_empty() {
        true => "no port has an interface yet".to_owned(),
        false => list,
    };
    Check::new("mtu", found, problem)
}

/// Whether the kernel merges the packets that come in, which decides the throughput.
pub(super) fn receive_offload(config: &Config) -> Check {
    let is_wanted = |port: &&Port| port.offload != PortOffload::Plain;
    let wanted = config.ports.iter().filter(is_wanted);
    let off: Vec<&str> = wanted
        .map(|port| port.interface.as_str())
        .filter(|name| ethtool::receives_merged(name) == Some(false))
        .collect();
    let problem = (!off.is_empty()).then(|| {
        let enable = off.iter().map(|name| format!("ethtool -K {name} gro on"));
        MachineProblem::warning(
            format!(
                "{} without generic receive offload: the gateway handles each packet of a stream alone",
                off.join(", ")
            ),
            enable.collect::<Vec<_>>().join(", "),
        )
    });
    Check::new("offload", "generic receive offload is on", problem)
}

fn tun_in_use(port: &Port, network: &Network) -> Option<MachineProblem> {
    let name = format!("tgw-{}", port.name);
    let link = network.link(&name)?;
    let holder = holder_of_tun(&name);
    // A persistent TUN without a process has no carrier, and can be reused.
    if !link.carrier && holder.is_none() {
        return None;
    }
    let who = holder.map_or("another process".into(), |pid| format!("process {pid}"));
    Some(MachineProblem::fatal(
        format!(
            "the device {name} of port \"{}\" is in use by {who}",
            port.name
        ),
        "stop the gateway that runs already, or give this port another name",
    ))
}

/// The other process that has the TUN device called `name`, if it is visible. A process in another
/// network namespace has a different device with that name.
fn holder_of_tun(name: &str) -> Option<u32> {
    let numbers = fs::read_dir("/proc").ok()?.flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has_it = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fdinfo"));
        files.into_iter().flatten().flatten().any(|file| {
            let info = fs::read_to_string(file.path()).unwrap_or_default();
            let mut devices = info.lines().filter_map(|line| line.strip_prefix("iff:"));
            devices.any(|device| device.trim() == name)
        })
    };
    let here = fs::read_link("/proc/thread-self/ns/net").ok()?;
    let is_here = |pid: &u32| {
        let namespace = fs::read_link(format!("/proc/{pid}/ns/net"));
        namespace.is_ok_and(|there| there == here)
    };
    pids.filter(|pid| *pid != std::process::id() && is_here(pid))
        .find(has_it)
}

fn check_interface(
    config: &Config,
    port: &Port,
    link: &KernelLink,
    network: &Network,
) -> Vec<MachineProblem> {
    let mut problems = Vec::new();
    let at = format!("port \"{}\": interface {}", port.name, link.name);
    let is_own_tun = config
        .ports
        .iter()
        .any(|p| link.name == format!("tgw-{}", p.name));
    if link.loopback || is_own_tun {
        let what = if is_own_tun {
            "one of the gateway's own TUN devices"
        } else {
            "the loopback"
        };
        problems.push(MachineProblem::fatal(
            format!("{at} is {what}"),
            "name the interface that the hosts are on",
        ));
    }
    if let Some(master) = link.master {
        let master = network.links.iter().find(|other| other.index == master);
        let name = master.map_or("another device", |master| &master.name);
        problems.push(MachineProblem::fatal(
            format!("{at} belongs to {name}, so its packets come in through that"),
            format!(
                "use `interface = \"{name}\"`, or take it out: ip link set {} nomaster",
                link.name
            ),
        ));
    }
    problems.extend(interface::down(&at, link));
    let has_ipv6 = port
        .virtual_addresses
        .iter()
        .any(|a| a.addr.family() == Family::V6);
    if has_ipv6 {
        problems.extend(check_ipv6(&at, link));
    }
    problems
}

fn check_ipv6(at: &str, link: &KernelLink) -> Vec<MachineProblem> {
    let mut problems = Vec::new();
    if !sysctl::has_family(Family::V6) {
        problems.push(MachineProblem::fatal(
            format!("{at} has IPv6 virtual addresses, but this kernel has no IPv6"),
            "start the kernel without ipv6.disable=1, or leave them out",
        ));
    } else if matches!(
        sysctl::get(Family::V6, &link.name, "disable_ipv6"),
        Ok(Some(1))
    ) {
        problems.push(MachineProblem::fatal(
            format!("{at} has IPv6 virtual addresses, but IPv6 is disabled there"),
            format!("sysctl -w net/ipv6/conf/{}/disable_ipv6=0", link.name),
        ));
    }
    if link.mtu < IPV6_MIN_MTU {
        problems.push(MachineProblem::warning(
            format!(
                "{at} has an MTU of {}, less than IPv6 needs (RFC 8200)",
                link.mtu
            ),
            format!("ip link set {} mtu {IPV6_MIN_MTU}, or more", link.name),
        ));
    }
    problems
}
