//! The state, the parameters and the address that a TUN device needs.

use std::net::{IpAddr, Ipv4Addr};

use super::forwarding::{forward, is_forwarding};
use super::plan::PortPlan;
use super::{Family, KernelLink, Netlink, SetupError, SysctlError, link_local, net_family, sysctl};
use crate::os::barrier::is_error_mark;
use crate::os::tun::QUEUE;
use sysctl::MCAST_SOLICIT;
use tandemgw_core::in_quotes::InQuotes;

/// The IPv4 address of each TUN device.
///
/// A reverse path filter, even the loose one (`rp_filter=2`), drops everything that comes in by an
/// interface without an address, unless the source is routed to that very interface. The address
/// has no other purpose: all of 127.0.0.0/8 leads to the loopback anyway, no neighbour can ask for
/// it, and its scope keeps the kernel from sending from it.
pub const TUN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 1));

/// The largest MTU of a TUN: the path MTU is that of the real interfaces, so a TUN must never be
/// the bottleneck.
const TUN_MTU: u32 = 65_535;

/// Requests for a neighbour: the kernel's default.
const REQUESTS: u32 = 3;

/// Sets the state of the TUN device of `port`, and notes what was wrong. Parameters come first: a
/// device that is set up before them gives itself an address.
pub(super) fn prepare(
    netlink: &mut Netlink,
    port: &PortPlan,
    tun: &KernelLink,
    families: &[Family],
    changed: &mut Vec<String>,
) -> Result<(), SetupError> {
    if tun.name != port.tun_name {
        netlink.rename_link(tun.index, &port.tun_name)?;
        changed.push(format!(
            "the name of {} (it was {})",
            port.tun_name, tun.name
        ));
    }
    if tun.group != port.group {
        netlink.set_group(tun.index, port.group)?;
        changed.push(format!("the group of {}", port.tun_name));
    }
    if tun.master.is_some() {
        netlink.set_master(tun.index, 0)?;
        changed.push(format!(
            "{} out of the device that it was put into",
            port.tun_name
        ));
    }
    // An MTU of less than 1280 has removed the parameters of IPv6 and everything it has there. With
    // a greater MTU, a device that is up would give itself an address.
    if tun.mtu != TUN_MTU {
        netlink.set_link_down(tun.index)?;
        netlink.set_mtu(tun.index, TUN_MTU)?;
        changed.push(format!("the MTU of {}", port.tun_name));
    }
    for (family, key, value) in parameters(families) {
        if sysctl::set(family, &port.tun_name, key, value)? {
            changed.push(format!("{} of {}", key, port.tun_name));
        }
    }
    for family in families {
        if forward(*family, &port.tun_name)? {
            changed.push(format!("forwarding of {}", port.tun_name));
        }
    }
    if families.contains(&Family::V6) {
        let_packets_leave(&port.tun_name);
    }
    let addresses = netlink.addresses_of(tun.index)?;
    if !addresses.iter().any(|own| own.addr == TUN_ADDRESS) {
        netlink.add_host_address(tun.index, TUN_ADDRESS)?;
        changed.push(format!("address {TUN_ADDRESS} of {}", port.tun_name));
    }
    // An address brings a route to its network, which would lead the hosts' packets back here.
    for other in addresses.iter().filter(|own| own.addr != TUN_ADDRESS) {
        netlink.remove_address(other)?;
        changed.push(format!(
            "no address on {} (it had {})",
            port.tun_name, other.addr
        ));
    }
    let is_first = !tun.admin_up || tun.mtu != TUN_MTU;
    if tun.queue_length < QUEUE {
        netlink.set_queue_length(tun.index, QUEUE)?;
        if !is_first {
            changed.push(format!("the queue of {}", port.tun_name));
        }
    }
    if is_first {
        netlink.set_link_up(tun.index)?;
    }
    if !tun.admin_up {
        changed.push(format!("up: {}", port.tun_name));
    }
    Ok(())
}

/// Sets what the interface of a port needs, and notes what was wrong.
pub(super) fn prepare_port(
    netlink: &mut Netlink,
    port: &PortPlan,
    link: &KernelLink,
    changed: &mut Vec<String>,
) -> Result<(), SetupError> {
    for (family, device, key) in switched_off(port) {
        let value = sysctl::get(family, device, key)?;
        if value.is_none_or(|value| value == 0) {
            continue;
        }
        match key {
            DISABLE_IPV6 => enable_ipv6(netlink, port, link)?,
            _ => drop(sysctl::set(family, device, key, 0)?),
        }
        changed.push(format!("{key} of {device}"));
    }
    // Somebody else may know the interface by another group; then only the barrier leads errors.
    let is_free = link.group == 0 || is_error_mark(link.group);
    if is_free && link.group != port.group {
        netlink.set_group(link.index, port.group)?;
        changed.push(format!("the group of {}", port.interface));
    }
    for family in families_that_ask_for_none(port) {
        if sysctl::set(family, &port.interface, MCAST_SOLICIT, REQUESTS)? {
            changed.push(format!("{MCAST_SOLICIT} of {}", port.interface));
        }
    }
    Ok(())
}

/// The families in which the kernel is told to ask for no neighbours on the port: it would reach no
/// host.
fn families_that_ask_for_none(port: &PortPlan) -> impl Iterator<Item = Family> {
    let has_hosts = move |family: &Family| {
        let mut networks = port.networks.iter();
        networks.any(|network| net_family(network) == *family)
    };
    let asks_none = move |family: &Family| {
        let found = sysctl::get(*family, &port.interface, MCAST_SOLICIT);
        matches!(found, Ok(Some(0)))
    };
    let families = Family::ALL.into_iter();
    families.filter(has_hosts).filter(asks_none)
}

/// The stack looks at `force_forwarding` of a TUN device, the exit of the fast path at this.
/// Without it packets of IPv6 leave through the stack.
fn let_packets_leave(tun: &str) {
    if let Err(error) = sysctl::set(Family::V6, tun, "forwarding", 1) {
        log::debug!("no exit of IPv6 tun={tun} error={}", InQuotes(&error));
    }
}

/// Enables IPv6 on the interface of a port. By itself the kernel would make an address that is of
/// no use until it knows that nobody else has it: a second or two in which no neighbour is found.
/// The one that is made here is valid at once; the interface had it before.
fn enable_ipv6(
    netlink: &mut Netlink,
    port: &PortPlan,
    link: &KernelLink,
) -> Result<(), SysctlError> {
    let interface = port.interface.as_str();
    let mode = sysctl::get(Family::V6, interface, ADDR_GEN_MODE)?;
    sysctl::set(Family::V6, interface, ADDR_GEN_MODE, ADDR_GEN_MODE_NONE)?;
    sysctl::set(Family::V6, interface, DISABLE_IPV6, 0)?;
    link_local::ensure(netlink, port, link, &[]);
    if let Some(mode) = mode {
        sysctl::set(Family::V6, interface, ADDR_GEN_MODE, mode)?;
    }
    Ok(())
}

/// Parameters that must be 0, with their devices.
fn switched_off(port: &PortPlan) -> Vec<(Family, &str, &'static str)> {
    // Everything that comes in by a port is routed to its TUN device. So with either of these on,
    // the kernel would answer ARP for every address: those of other hosts, and a standby's virtual
    // ones.
    const PROXY_ARP: &str = "proxy_arp";
    let mut parameters = vec![
        (Family::V4, port.interface.as_str(), PROXY_ARP),
        (Family::V4, "all", PROXY_ARP),
    ];
    let mut networks = port.networks.iter();
    if networks.any(|network| net_family(network) == Family::V6) {
        parameters.push((Family::V6, port.interface.as_str(), DISABLE_IPV6));
    }
    parameters
}

/// Whether a parameter of the port or of its TUN device is wrong. It only reads, and only what the
/// kernel reports without a lock: a reader of `addr_gen_mode` spins for as long as somebody holds
/// `rtnl`, and it matters only to a device that comes up, which [`prepare`] sees to.
pub(super) fn differ(port: &PortPlan, families: &[Family]) -> bool {
    let is_off = |family: Family, device: &str| matches!(is_forwarding(family, device), Ok(false));
    let devices = [&port.interface, &port.tun_name];
    let exists =
        |device: &str| matches!(sysctl::get(Family::V4, device, "forwarding"), Ok(Some(_)));
    let present = devices.into_iter().filter(|device| exists(device));
    let mut forwarding = present.flat_map(|device| families.iter().map(move |f| (*f, device)));
    let all = parameters(families).into_iter();
    let mut others = all.filter(|(_, key, _)| *key != ADDR_GEN_MODE);
    let mut switched_off = switched_off(port).into_iter();
    forwarding.any(|(family, device)| is_off(family, device))
        || families_that_ask_for_none(port).next().is_some()
        || switched_off.any(|(family, device, key)| {
            matches!(sysctl::get(family, device, key), Ok(Some(found)) if found != 0)
        })
        || others.any(|(family, key, value)| {
            matches!(sysctl::get(family, &port.tun_name, key), Ok(found) if found != Some(value))
        })
}

const ADDR_GEN_MODE: &str = "addr_gen_mode";
/// `IN6_ADDR_GEN_MODE_NONE`.
const ADDR_GEN_MODE_NONE: u32 = 1;

const DISABLE_IPV6: &str = "disable_ipv6";

fn parameters(families: &[Family]) -> Vec<(Family, &'static str, u32)> {
    let mut parameters = vec![
        // Packets from the gateway have sources that the kernel would expect on the port's
        // interface.
        (Family::V4, "rp_filter", 0),
        // With it off the kernel looks each source up once more where there are rules, to refuse
        // its own addresses. The interface that the packet came in by has refused them already.
        (Family::V4, "accept_local", 1),
        // Loopback addresses have no business on a link, in neither direction.
        (Family::V4, "route_localnet", 0),
    ];
    if families.contains(&Family::V6) {
        parameters.extend([
            (Family::V6, ADDR_GEN_MODE, ADDR_GEN_MODE_NONE),
            (Family::V6, "accept_ra", 0),
            // A value of its own, which only a change of the device's MTU sets too.
            (Family::V6, "mtu", TUN_MTU),
            (Family::V6, DISABLE_IPV6, 0),
        ]);
    }
    parameters
}
