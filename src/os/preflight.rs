//! What of the machine would keep the gateway from working, each with its remedy: for the start, and
//! for `tandemgw doctor`.

mod firewall;

use std::fs;
use std::io;
use std::net::IpAddr;

use super::netlink::{Address, Link, Netlink, Rule};
use super::{steering, sysctl};
use crate::config::{Config, Port};
use crate::flow::Family;

/// The least MTU that IPv6 works with (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// Something about the machine that is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, as a sentence without its full stop.
    pub what: String,
    /// What to do about it, likewise.
    pub remedy: String,
    /// The gateway can't work with it. Otherwise it can, but perhaps not as expected.
    pub fatal: bool,
}

impl Problem {
    fn fatal(what: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem {
            what: what.into(),
            remedy: remedy.into(),
            fatal: true,
        }
    }

    fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem {
            fatal: false,
            ..Problem::fatal(what, remedy)
        }
    }
}

/// All problems that can be seen before the start, the machine's before those of the ports.
///
/// It changes nothing and needs no privileges, though it sees less without them. That the TUN devices
/// are in use is a problem unless this gateway `is_running`.
pub fn check(config: &Config, is_running: bool) -> Vec<Problem> {
    let mut problems = privileges();
    problems.extend(tun_driver());
    problems.extend(rp_filter());
    problems.extend(firewall::check());
    match check_network(config, is_running) {
        Ok(found) => problems.extend(found),
        Err(error) => problems.push(Problem::fatal(
            format!("the kernel's network configuration can't be read: {error}"),
            "check that the kernel has rtnetlink and that no seccomp filter forbids it",
        )),
    }
    problems
}

fn privileges() -> Vec<Problem> {
    const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = effective_capabilities(&status).unwrap_or(0);
    NEEDED
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| {
            Problem::fatal(
                format!("this process has no {name}"),
                "run it as root, or with `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW` in its \
                 systemd unit",
            )
        })
        .collect()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn tun_driver() -> Option<Problem> {
    let error = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .err()?;
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "load the driver: modprobe tun (in a container: pass the device)"
        }
        _ => "let this process read and write it: it usually has mode 0666",
    };
    Some(Problem::fatal(
        format!("/dev/net/tun can't be opened: {error}"),
        remedy,
    ))
}

/// The kernel uses the greater of the values for `all` and for the interface. The TUN devices get 0,
/// so 1 for `all` is what would make the kernel drop all that the gateway writes: it has sources
/// that are routed out of the port's interface, not of its TUN. 2 only wants a route of any kind.
fn rp_filter() -> Option<Problem> {
    let strict = matches!(sysctl::get(Family::V4, "all", "rp_filter"), Ok(Some(1)));
    strict.then(|| {
        Problem::fatal(
            "net.ipv4.conf.all.rp_filter is 1: the kernel would drop what the gateway forwards",
            "sysctl -w net.ipv4.conf.all.rp_filter=2 (or 0, and 1 for single interfaces), and the \
             same in /etc/sysctl.d; the gateway checks sources itself (`source-check`)",
        )
    })
}

fn check_network(
    config: &Config,
    is_running: bool,
) -> Result<Vec<Problem>, Box<dyn std::error::Error>> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let addresses = netlink.addresses()?;
    let mut rules = netlink.rules(Family::V4)?;
    if sysctl::has_family(Family::V6) {
        rules.extend(netlink.rules(Family::V6)?);
    }
    let mut problems = Vec::new();
    for taken in steering::taken(&mut netlink, config)? {
        let remedy = "set `routing-table` in `[node]` to the first of 64 numbers that are free";
        problems.push(Problem::fatal(taken, remedy));
    }
    problems.extend(earlier_rules(config, &rules));
    problems.extend(taken_addresses(config, &links, &addresses));
    for port in &config.ports {
        if !is_running {
            problems.extend(tun_in_use(port, &links));
        }
        match links.iter().find(|link| link.name == port.interface) {
            Some(link) => problems.extend(check_interface(config, port, link, &links, &addresses)),
            None => problems.push(no_interface(port, &links)),
        }
    }
    Ok(problems)
}

/// Rules that the kernel asks before the gateway's, and that may lead packets past it.
fn earlier_rules(config: &Config, rules: &[Rule]) -> Vec<Problem> {
    let may_match = |rule: &&Rule| {
        let of_port = |name: &String| config.ports.iter().any(|port| port.interface == *name);
        rule.priority > 0
            && rule.priority < config.node.routing_table
            && !steering::is_ours(rule)
            && rule.interface.as_ref().is_none_or(of_port)
    };
    rules
        .iter()
        .filter(may_match)
        .map(|rule| {
            Problem::warning(
                format!("the kernel asks the rule \"{rule}\" before the gateway's: packets that it matches go past the gateway"),
                format!("set `routing-table` in `[node]` to less than {}, or give that rule a greater priority number", rule.priority),
            )
        })
        .collect()
}

fn taken_addresses(config: &Config, links: &[Link], addresses: &[Address]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let virtual_addresses = config.ports.iter().flat_map(|port| &port.virtual_addresses);
    for virtual_address in virtual_addresses {
        let ip = IpAddr::from(virtual_address.addr);
        let Some(own) = addresses.iter().find(|own| own.addr == ip) else {
            continue;
        };
        let link = links.iter().find(|link| link.index == own.link);
        let name = link.map_or("?", |link| &link.name);
        problems.push(Problem::fatal(
            format!("the virtual address {ip} is an address of this machine's interface {name}"),
            format!(
                "ip addr del {ip}/{} dev {name} (and from the configuration that adds it): the \
                 gateway answers for virtual addresses itself",
                own.prefix_len
            ),
        ));
    }
    problems
}

fn tun_in_use(port: &Port, links: &[Link]) -> Option<Problem> {
    let name = format!("tgw-{}", port.name);
    let link = links.iter().find(|link| link.name == name)?;
    let holder = holder_of_tun(&name);
    // A persistent TUN without a process has no carrier, and can be taken over.
    if !link.carrier && holder.is_none() {
        return None;
    }
    let who = holder.map_or("another process".into(), |pid| format!("process {pid}"));
    Some(Problem::fatal(
        format!(
            "the device {name} of port \"{}\" is in use by {who}",
            port.name
        ),
        "stop the gateway that runs already, or give this port another name",
    ))
}

/// The process, other than this one, that has the TUN device called `name`, if it may be seen.
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
    pids.filter(|pid| *pid != std::process::id()).find(has_it)
}

fn no_interface(port: &Port, links: &[Link]) -> Problem {
    let mut names: Vec<&str> = links
        .iter()
        .filter(|link| !link.loopback && !link.name.starts_with("tgw-"))
        .map(|link| link.name.as_str())
        .collect();
    names.sort_by_key(|name| distance(name, &port.interface));
    let remedy = match names.first() {
        Some(near) if distance(near, &port.interface) <= 2 => format!("did you mean {near}?"),
        Some(_) => format!("this machine has: {}", names.join(", ")),
        None => "this machine has no interface but loopback".into(),
    };
    Problem::fatal(
        format!(
            "port \"{}\": there is no interface {}",
            port.name, port.interface
        ),
        remedy,
    )
}

fn check_interface(
    config: &Config,
    port: &Port,
    link: &Link,
    links: &[Link],
    addresses: &[Address],
) -> Vec<Problem> {
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
        problems.push(Problem::fatal(
            format!("{at} is {what}"),
            "name the interface that the hosts are on",
        ));
    }
    if let Some(master) = link.master {
        let master = links.iter().find(|other| other.index == master);
        let name = master.map_or("another device", |master| &master.name);
        problems.push(Problem::fatal(
            format!("{at} belongs to {name}, by which its packets come in"),
            format!(
                "use `interface = \"{name}\"`, or take it out: ip link set {} nomaster",
                link.name
            ),
        ));
    }
    if !link.state().up {
        let (what, remedy) = if link.admin_up {
            (
                "has no carrier",
                "plug in the cable, or bring up the other end".into(),
            )
        } else {
            ("is down", format!("ip link set {} up", link.name))
        };
        problems.push(Problem::warning(format!("{at} {what}"), remedy));
    }
    let has_ipv6 = port
        .virtual_addresses
        .iter()
        .any(|a| a.addr.family() == Family::V6);
    if has_ipv6 {
        problems.extend(check_ipv6(&at, link));
    }
    problems.extend(missing_own_address(&at, port, link, addresses));
    problems
}

fn check_ipv6(at: &str, link: &Link) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !sysctl::has_family(Family::V6) {
        problems.push(Problem::fatal(
            format!("{at} has IPv6 virtual addresses, but this kernel has no IPv6"),
            "start the kernel without ipv6.disable=1, or leave them out",
        ));
    } else if matches!(
        sysctl::get(Family::V6, &link.name, "disable_ipv6"),
        Ok(Some(1))
    ) {
        problems.push(Problem::fatal(
            format!("{at} has IPv6 virtual addresses, but IPv6 is disabled there"),
            format!("sysctl -w net/ipv6/conf/{}/disable_ipv6=0", link.name),
        ));
    }
    if link.mtu < IPV6_MIN_MTU {
        problems.push(Problem::warning(
            format!(
                "{at} has an MTU of {}, less than IPv6 needs (RFC 8200)",
                link.mtu
            ),
            format!("ip link set {} mtu {IPV6_MIN_MTU}, or more", link.name),
        ));
    }
    problems
}

/// Only of IPv4: in IPv6 the kernel asks for neighbours from its link-local address.
fn missing_own_address(
    at: &str,
    port: &Port,
    link: &Link,
    addresses: &[Address],
) -> Option<Problem> {
    let networks = port.virtual_addresses.iter().filter(|a| a.addr.is_v4());
    let has_own = |network: &ipnet::IpNet| {
        let mut own = addresses
            .iter()
            .filter(|address| address.link == link.index);
        own.any(|address| network.contains(&address.addr))
    };
    let network = networks
        .map(|a| a.network)
        .find(|network| !has_own(network))?;
    Some(Problem::warning(
        format!(
            "{at} has no address of its own in {}: the kernel asks for hosts (ARP) from an address \
             of another interface, which strict hosts don't answer",
            network.trunc()
        ),
        format!(
            "give this unit an address there: ip addr add ADDRESS/{} dev {}",
            network.prefix_len(),
            link.name
        ),
    ))
}

/// How many letters must be changed, added or left out to make `a` of `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        row[0] = left;
        for (y, above) in b.chars().zip(row.iter_mut().skip(1)) {
            let change = diagonal + usize::from(x != y);
            diagonal = *above;
            left = change.min(left + 1).min(diagonal + 1);
            *above = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_capabilities() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000003000\n";
        assert_eq!(effective_capabilities(status), Some(0x3000));
        assert_eq!(effective_capabilities("CapEff:\tx\n"), None);
    }

    #[test]
    fn counts_changed_letters() {
        for (a, b, expected) in [
            ("eth0", "eth0", 0),
            ("eth0", "eth1", 1),
            ("eth0", "et0", 1),
            ("eth0", "", 4),
            ("", "eth0", 4),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
