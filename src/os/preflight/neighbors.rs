//! Whether the kernel has room for the hosts on the links.

use std::fmt::Write;
use std::fs;

use super::{Check, MachineProblem};
use tandemgw_core::config::Config;
use tandemgw_core::flow::Family;

/// Hosts that may be looked for at once, beside those that are there (`gateway/unresolved.rs`).
const LOOKED_FOR: u64 = 384;

/// `gc_thresh1` to `gc_thresh3` (arp(7)).
type Thresholds = [u64; 3];

/// The room in the neighbour tables, against the networks of the ports.
pub(super) fn neighbors(config: &Config) -> Check {
    let check = |family| (family, hosts(config, family), thresholds(family));
    room(Family::ALL.map(check))
}

fn room(families: [(Family, Option<u64>, Option<Thresholds>); 2]) -> Check {
    let mut found = String::new();
    let mut problems = Vec::new();
    for (family, hosts, thresholds) in families {
        let Some(hosts) = hosts else { continue };
        let (name, folder) = names(family);
        let separator = if found.is_empty() { "" } else { ", " };
        // Writing to a string can't fail.
        let _ = match thresholds {
            Some([first, second, third]) => {
                write!(found, "{separator}{name} {first}, {second}, {third}")
            }
            None => write!(
                found,
                "{separator}{name} not told in this network namespace"
            ),
        };
        problems.extend(thresholds.and_then(|it| too_small(name, folder, hosts, it)));
    }
    if found.is_empty() {
        found.push_str("not needed: no port has an address");
    }
    Check::new("neighbour tables", found, problems)
}

fn too_small(
    name: &str,
    folder: &str,
    hosts: u64,
    [first, second, third]: Thresholds,
) -> Option<MachineProblem> {
    let needed = hosts.saturating_add(LOOKED_FOR);
    let wanted = needed.next_power_of_two();
    if third < needed {
        return Some(MachineProblem::warning(
            format!(
                "the networks of the ports have room for {hosts} {name} hosts, the kernel's neighbour table for {third}: when \
                 it is full, some hosts are not reached"
            ),
            format!(
                "sysctl -w net.{folder}.neigh.default.gc_thresh3={wanted} net.{folder}.neigh.default.gc_thresh2={} \
                 net.{folder}.neigh.default.gc_thresh1={}, and put it into /etc/sysctl.d",
                wanted / 2,
                wanted / 4
            ),
        ));
    }
    (first > second || second > third).then(|| {
        MachineProblem::warning(
            format!(
                "the thresholds of the {name} neighbour table are out of order: {first}, {second}, {third}"
            ),
            format!("set net.{folder}.neigh.default.gc_thresh1 to 3 in ascending order"),
        )
    })
}

/// How many hosts the networks of the ports have room for; none if no port has such an address. An
/// IPv6 network has room for any number, which says nothing: as many as the kernel expects by
/// default count.
fn hosts(config: &Config, family: Family) -> Option<u64> {
    let addresses = config.ports.iter().flat_map(|port| &port.virtual_addresses);
    let networks = addresses.filter(|address| address.addr.family() == family);
    let mut networks: Vec<_> = networks.map(|address| address.network).collect();
    networks.sort();
    networks.dedup();
    let room = |network: &ipnet::IpNet| match network {
        ipnet::IpNet::V4(network) => (1u64 << (32 - network.prefix_len()))
            .saturating_sub(2)
            .max(1),
        ipnet::IpNet::V6(_) => 0,
    };
    (!networks.is_empty()).then(|| networks.iter().map(room).sum())
}

fn thresholds(family: Family) -> Option<Thresholds> {
    let (_, folder) = names(family);
    let read = |key: &str| {
        let path = format!("/proc/sys/net/{folder}/neigh/default/{key}");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    Some([
        read("gc_thresh1")?,
        read("gc_thresh2")?,
        read("gc_thresh3")?,
    ])
}

fn names(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => (family.name(), "ipv4"),
        Family::V6 => (family.name(), "ipv6"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_smaller_than_the_networks_is_told_with_the_remedy() {
        let usual = Some([128, 512, 1024]);
        let v6 = (Family::V6, Some(0), usual);
        for (hosts, thresholds, said) in [
            (Some(254), usual, None),
            (Some(1022), usual, Some("gc_thresh3=2048")),
            (Some(254), Some([128, 256, 512]), Some("gc_thresh3=1024")),
            (Some(254), Some([2048, 512, 1024]), Some("ascending")),
            (Some(65534), None, None),
            (None, usual, None),
        ] {
            let check = room([(Family::V4, hosts, thresholds), v6]);
            let remedies: Vec<&str> = check.problems.iter().map(|it| &*it.remedy).collect();
            match said {
                None => assert!(remedies.is_empty(), "{remedies:?}"),
                Some(said) => assert!(remedies[0].contains(said), "{remedies:?}"),
            }
            let is_told = check.found.contains("not told in this network namespace");
            assert_eq!(is_told, hosts.is_some() && thresholds.is_none());
        }
    }
}
