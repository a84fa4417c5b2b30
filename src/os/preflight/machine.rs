//! The kernel and the rights of this process.

use std::fs;
use std::io;

use super::{Check, MachineProblem, Network, Rule};
use crate::os::{clock, steering, sysctl};
use tandemgw_core::config::{Config, Port};
use tandemgw_core::flow::Family;

/// The first kernel on which IPv6 forwarding can be turned on for single interfaces.
const FORCE_FORWARDING: (u32, u32) = (6, 17);
/// The first kernel whose TUN devices take UDP super-packets.
const UDP_SEGMENTATION: (u32, u32) = (6, 2);

/// The version of the kernel.
pub(super) fn kernel(config: &Config) -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let addresses = config.ports.iter().flat_map(|port| &port.virtual_addresses);
    let has_ipv6 = addresses.clone().any(|a| !a.addr.is_v4());
    kernel_check(release, has_ipv6)
}

fn kernel_check(release: &str, has_ipv6: bool) -> Check {
    let version = parse_release(release).unwrap_or((0, 0));
    let mut found = format!("Linux {release}");
    if version < UDP_SEGMENTATION {
        found.push_str(" (6.2 would take UDP in super-packets)");
    }
    let problem = (has_ipv6 && version < FORCE_FORWARDING).then(|| {
        MachineProblem::warning(
            format!("Linux {release} can forward IPv6 only on all interfaces or on none: the gateway turns it on for all"),
            "use Linux 6.17 or newer, or make sure that no other interface must be kept from forwarding",
        )
    });
    Check::new("kernel", found, problem)
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The rights that the gateway needs.
pub(super) fn privileges() -> Check {
    const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = effective_capabilities(&status).unwrap_or(0);
    let missing = NEEDED
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| {
            MachineProblem::fatal(
                format!("this process has no {name}"),
                "run it as root, or with `AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW` in its \
                 systemd unit",
            )
        });
    let found = NEEDED.map(|(_, name)| name).join(", ");
    Check::new("capabilities", found, missing)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The driver of the devices that packets come through.
pub(super) fn tun_driver() -> Check {
    let opened = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let problem = opened.err().map(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => {
                "load the driver: modprobe tun (in a container: pass the device)"
            }
            _ => "let this process read and write it: it usually has mode 0666",
        };
        MachineProblem::fatal(format!("/dev/net/tun can't be opened: {error}"), remedy)
    });
    Check::new("tun", "/dev/net/tun can be opened", problem)
}

/// The effect of the kernel's reverse path filter on packets that the gateway writes: their sources
/// are routed out of the ports' interfaces, not of the TUN devices. The kernel uses the greater of
/// the values for `all` and for the device, and the gateway sets that of its devices to 0. Strict
/// (1) would drop all of them. Loose (2) requires any route, and an address on the device, which
/// the gateway sets.
pub(super) fn rp_filter(config: &Config, network: Option<&Network>) -> Check {
    let value = |name: &str| sysctl::get(Family::V4, name, "rp_filter").unwrap_or(None);
    let all = value("all").unwrap_or(0);
    let tuns = config.ports.iter().map(|port| format!("tgw-{}", port.name));
    let mut problems = Vec::new();
    if all == 1 {
        problems.push(MachineProblem::fatal(
            "net.ipv4.conf.all.rp_filter is 1: the kernel would drop what the gateway forwards",
            "sysctl -w net.ipv4.conf.all.rp_filter=2 (or 0, and 1 for single interfaces), and the \
             same in /etc/sysctl.d; the gateway checks sources itself (`source-check`)",
        ));
    } else if let Some(network) = network {
        problems.extend(tuns.filter_map(|tun| {
            let link = network.link(&tun).filter(|link| link.carrier)?;
            let own = value(&tun)?;
            let mut addresses = network.addresses_of(link);
            tun_filter_problem(&tun, all.max(own), addresses.any(|own| own.addr.is_ipv4()))
        }));
    }
    let effect = match all {
        0 => "",
        _ => " (loose): what the gateway forwards passes",
    };
    let found = format!("net.ipv4.conf.all.rp_filter is {all}{effect}");
    Check::new("rp-filter", found, problems)
}

/// Of a TUN device that is in use.
fn tun_filter_problem(tun: &str, filter: u32, has_address: bool) -> Option<MachineProblem> {
    let (what, remedy) = match (filter, has_address) {
        (1, _) => (
            format!(
                "net.ipv4.conf.{tun}.rp_filter is 1: the kernel drops what the gateway forwards"
            ),
            format!("sysctl -w net.ipv4.conf.{tun}.rp_filter=0, and find out what has set it"),
        ),
        (2.., false) => (
            format!(
                "rp_filter is {filter} for {tun}, which has no IPv4 address: the kernel drops what the \
                 gateway forwards"
            ),
            format!(
                "ip addr add {}/32 dev {tun}, and find out what has removed it",
                steering::TUN_ADDRESS
            ),
        ),
        _ => return None,
    };
    Some(MachineProblem::fatal(what, remedy))
}

/// The tables and rules that steer packets to the gateway.
pub(super) fn routing(config: &Config, network: &Network) -> Check {
    let taken = network.taken.iter().map(|taken| {
        let remedy = "set `routing-table` in `[node]` to the first of as many free numbers as there are ports";
        MachineProblem::fatal(taken, remedy)
    });
    let mut problems: Vec<MachineProblem> = taken.collect();
    problems.extend(earlier_rules(config, &network.rules));
    let first = config.node.routing_table;
    let last = first + config.ports.len() as u32 - 1;
    let found = format!("tables and rules {first} to {last} are free or ours");
    Check::new("routing-table", found, problems)
}

/// Rules that precede the gateway's and may route packets past it.
fn earlier_rules(config: &Config, rules: &[Rule]) -> Vec<MachineProblem> {
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
            MachineProblem::warning(
                format!("the kernel asks the rule \"{rule}\" before the gateway's: packets that it matches bypass the gateway"),
                format!("set `routing-table` in `[node]` to less than {}, or give that rule a greater priority number", rule.priority),
            )
        })
        .collect()
}

/// Whether the kernel forwards packets from the ports: the gateway turns that on when it starts. If
/// it is on before, without the gateway's rules, the kernel forwards past all policies.
pub(super) fn forwarding(config: &Config, network: &Network, is_running: bool) -> Check {
    let families = |port: &Port| {
        let has = |family: &Family| {
            let mut addresses = port.virtual_addresses.iter();
            addresses.any(|a| a.addr.family() == *family)
        };
        Family::ALL.into_iter().filter(has).collect()
    };
    let mut problems = Vec::new();
    for port in &config.ports {
        let families: Vec<Family> = families(port);
        for family in families {
            let steered = network.rules.iter().any(|rule| {
                steering::is_ours(rule)
                    && rule.family == family
                    && rule.interface.as_ref() == Some(&port.interface)
            });
            problems.extend(forwarding_problem(
                family,
                &port.interface,
                is_running,
                steered,
            ));
        }
    }
    let found = if is_running {
        "on for the ports, whose packets are led to the gateway"
    } else {
        "off, or leads nowhere, until the gateway starts"
    };
    Check::new("forwarding", found, problems)
}

fn forwarding_problem(
    family: Family,
    interface: &str,
    is_running: bool,
    steered: bool,
) -> Option<MachineProblem> {
    let (scope, key) = steering::forwarding_key(family, interface).ok()?;
    let is_on = sysctl::get(family, scope, key).ok()?? == 1;
    let path = sysctl::path(family, scope, key);
    let path = path.display();
    match (is_running, is_on) {
        (true, false) => Some(MachineProblem::fatal(
            format!(
                "the kernel does not forward what comes in by {interface}: somebody has written 0 to {path}"
            ),
            format!(
                "echo 1 > {path}, and find out what turned it off (a file in /etc/sysctl.d, perhaps)"
            ),
        )),
        (false, true) if !steered => Some(MachineProblem::warning(
            format!(
                "while no gateway runs, the kernel itself forwards what comes in by {interface}, past all policies"
            ),
            format!(
                "echo 0 > {path} (and take it from /etc/sysctl.d): the gateway turns it on when it starts, and off when it ends"
            ),
        )),
        (false, false) if !sysctl::is_writable(family, scope, key) => Some(MachineProblem::fatal(
            format!("forwarding can't be turned on for {interface}: {path} is not writable"),
            "run it as root; in a container: mount /proc/sys writable, or set it to 1 from outside",
        )),
        _ => None,
    }
}

/// Whether the clock is synchronised, so that log lines of several machines can be compared.
/// Nothing else depends on it: units exchange durations.
pub(super) fn clock() -> Check {
    let synchronised = clock::is_synchronised();
    let problem = (synchronised == Some(false)).then(|| {
        MachineProblem::warning(
            "the clock is not synchronised: times in the logs of two units can't be compared",
            "run chrony or systemd-timesyncd (nothing but the log depends on it)",
        )
    });
    let found = match synchronised {
        Some(_) => "synchronised",
        None => "the kernel does not say whether it is synchronised",
    };
    Check::new("clock", found, problem)
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
    fn an_old_kernel_is_told_where_it_matters() {
        assert_eq!(parse_release("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_release("6.1-rc3"), Some((6, 1)));
        for (release, has_ipv6, is_told) in [
            ("6.17.0", true, false),
            ("6.12.3", true, true),
            ("6.12.3", false, false),
            ("strange", true, true),
        ] {
            let check = kernel_check(release, has_ipv6);
            assert_eq!(!check.problems.is_empty(), is_told, "{release} {has_ipv6}");
            assert!(check.found.contains(release));
        }
    }
}
