//! Slots: what `distribute` cuts a group into, so that all units share its hosts.
//!
//! A slot is a group without addresses, elected, replicated and handed over like any other. Which
//! sessions it has follows from the addresses of their hosts; the group itself keeps the virtual
//! addresses. Each unit works out the same priorities for all slots from the names of the units, so
//! nothing has to be agreed on.

use super::diagnostic::Report;
use super::network::group_of;
use super::reader::Span;
use super::{Group, Ha, NatPool, Port, Slots};
use crate::flow::{GroupId, MAX_GROUPS};
use crate::random::SplitMix64;

/// The priority of a unit for the slots that are its own.
const OWN: u8 = 255;
/// The ports of the pool that each virtual address is by itself.
const ALL_PORTS: (u16, u16) = (1, u16::MAX);

/// Appends the slots of all groups that are cut. `headers` are those of the groups.
pub(super) fn expand(
    report: &Report,
    groups: &mut Vec<Group>,
    headers: &[Span],
    (node, ha): (&str, Option<&Ha>),
) {
    let Some(ha) = ha else {
        return;
    };
    for at in 0..groups.len() {
        let Some(count) = groups[at].distribute else {
            continue;
        };
        let header = headers.get(at);
        if groups.len() + usize::from(count) > MAX_GROUPS {
            if let Some(header) = header {
                let what = format!("there are more than {MAX_GROUPS} groups and slots");
                report.error(header, what, "use fewer slots");
            }
            return;
        }
        let first = GroupId(u8::try_from(groups.len()).unwrap_or(u8::MAX));
        let name = groups[at].name.clone();
        groups[at].slots = Some(Slots { first, count });
        let part_of = Some(GroupId(u8::try_from(at).unwrap_or(u8::MAX)));
        groups.extend((0..count).map(|slot| Group {
            name: format!("{name}/{slot}"),
            priority: Some(priority(node, ha, slot)),
            part_of,
            ..Group::default()
        }));
    }
}

/// Checks that each slot can have a slice of the ports of each pool, and that an address is cut in
/// one way only.
pub(super) fn check_pools(
    report: &Report,
    groups: &[Group],
    headers: &[Span],
    pools: &[NatPool],
    ports: &[Port],
) {
    for pool in pools {
        let Some(first) = pool.addresses.first() else {
            continue;
        };
        let at = usize::from(group_of(ports, *first).0);
        let Some((slots, header)) = groups
            .get(at)
            .and_then(|group| group.slots)
            .zip(headers.get(at))
        else {
            continue;
        };
        let name = &pool.name;
        let size = u32::from(pool.ports.1 - pool.ports.0) + 1;
        if size < u32::from(slots.count) {
            let what = format!("nat-pool `{name}` has fewer ports than the group has slots");
            report.error(header, what, "give the pool more ports");
        }
        let own = ports.iter().flat_map(|port| &port.virtual_addresses);
        let mut own = own.map(|own| own.addr);
        if pool.ports != ALL_PORTS
            && let Some(addr) = own.find(|own| pool.addresses.contains(own))
        {
            let what = format!("nat-pool `{name}` has some ports of the virtual address `{addr}`");
            let hint = "give the pool other addresses, or leave out its `ports`";
            report.error(header, what, hint);
        }
    }
}

/// The priority of this unit for a slot: the units, by name, take turns. The others follow in an
/// order that differs from slot to slot, so that what a dead unit had is spread over all of them.
fn priority(node: &str, ha: &Ha, slot: u8) -> u8 {
    let peers = ha.peers.iter().map(|peer| peer.name.as_str());
    let mut units: Vec<&str> = peers.chain([node]).collect();
    units.sort_unstable();
    units.dedup();
    let own = units.iter().position(|unit| *unit == node).unwrap_or(0);
    let slot = usize::from(slot);
    if slot % units.len() == own {
        return OWN;
    }
    // A round of turns has the same owner for each place; the rounds differ.
    let mut order: Vec<usize> = (0..units.len()).collect();
    let mut random = SplitMix64(slot as u64);
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last + 1));
    }
    let place = order.iter().position(|unit| *unit == own).unwrap_or(0);
    OWN - 1 - place as u8
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, parse};

    fn config(node: &str, others: &[&str], distribute: &str) -> Config {
        let peers: String = (others.iter().enumerate())
            .map(|(at, name)| {
                let octet = at + 2;
                format!(
                    "[[ha.peer]]\nname = \"{name}\"\naddresses = [\"10.0.9.{octet}:7030\"]\n\
                     public-key = \"A{at}ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n"
                )
            })
            .collect();
        let text = format!(
            "[node]\nname = \"{node}\"\nkey = \"k\"\n\
             [[port]]\nname = \"lan\"\ninterface = \"e0\"\nvirtual-addresses = [\"10.1.0.1/24\"]\n\
             [[group]]\nname = \"all\"\nports = [\"lan\"]\n{distribute}\n\
             [ha]\ngroup-id = 1\n\
             [[ha.link]]\ninterface = \"e1\"\nlisten = \"10.0.9.1:7030\"\n{peers}"
        );
        match parse(Path::new("a.toml"), &text) {
            Ok((config, _)) => config,
            Err(found) => panic!("{found:?}"),
        }
    }

    #[test]
    fn a_group_that_is_cut_has_slots_after_all_groups() {
        let config = config("a", &["b"], "distribute = 4");
        let names: Vec<_> = config.groups.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["all", "all/0", "all/1", "all/2", "all/3"]);
        let slots = Slots {
            first: GroupId(1),
            count: 4,
        };
        assert_eq!(config.groups[0].slots, Some(slots));
        assert!(
            config.groups[1..]
                .iter()
                .all(|it| it.part_of == Some(GroupId(0)))
        );
    }

    /// All units agree on an order for each slot, and each has its share; so have those that are
    /// left when one dies.
    #[test]
    fn the_units_share_the_slots() {
        let names = ["a", "b", "c", "d"];
        for units in 2..=names.len() {
            let configs: Vec<Config> = (0..units)
                .map(|own| {
                    let others = names[..units]
                        .iter()
                        .copied()
                        .filter(|it| *it != names[own]);
                    config(names[own], &others.collect::<Vec<_>>(), "distribute = 24")
                })
                .collect();
            for dead in [None, Some(0)] {
                let mut shares = vec![0; units];
                for slot in 1..=24 {
                    let of = |unit: &usize| configs[*unit].groups[slot].priority;
                    let mut all: Vec<_> = (0..units).filter(|unit| Some(*unit) != dead).collect();
                    all.sort_by_key(of);
                    all.windows(2)
                        .for_each(|two| assert_ne!(of(&two[0]), of(&two[1])));
                    shares[all[all.len() - 1]] += 1;
                }
                let alive = units - usize::from(dead.is_some());
                let fair = 24 / alive;
                let (least, most) = (fair / 2, fair * 2);
                let mut alive = (0..units).filter(|unit| Some(*unit) != dead);
                assert!(
                    alive.all(|it| (least..=most).contains(&shares[it])),
                    "{shares:?}"
                );
            }
        }
    }
}
