//! The places of groups: a group keeps its own while the gateway runs, whatever a reload adds,
//! removes, or puts into another order.
//!
//! A place that becomes empty by a reload is given away by a later one at the earliest: until the
//! end of the first, there may be sessions of the group that had it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::network::group_of;
use super::{Config, Group, Port, VirtualAddress};
use crate::flow::{Addr, GroupId, MAX_GROUPS};

impl Group {
    /// Whether a group has this place; one that is removed leaves it empty.
    pub fn exists(&self) -> bool {
        !self.name.is_empty()
    }
}

impl Config {
    /// The groups with their places, slots included.
    pub fn known_groups(&self) -> impl Iterator<Item = (GroupId, &Group)> + Clone {
        let places = (0..).map(GroupId).zip(&self.groups);
        places.filter(|(_, group)| group.exists())
    }

    /// The groups that have tables in the file: all but slots.
    pub(crate) fn declared_groups(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        let known = self.known_groups();
        known.filter(|(_, group)| group.part_of.is_none())
    }

    /// The name of the group with a place; empty if nobody has it.
    fn group_name(&self, group: GroupId) -> &str {
        let group = self.groups.get(usize::from(group.0));
        group.map_or("", |group| &group.name)
    }
}

/// The groups and the virtual addresses that a changed config puts in force.
pub(super) struct Network {
    /// Those that run, with other addresses.
    pub ports: Vec<Port>,
    pub groups: Vec<Group>,
}

/// Why groups and virtual addresses wait for a restart.
pub(super) enum Waits {
    /// An address, the group that it is in, and the one of the file.
    Moves(Addr, String, String),
    /// An address that a port has still, which is removed from the file or has another name there.
    Kept(Addr, String),
    /// A group for which no place is left, or not for all of its slots.
    NoPlace(String),
    /// A group that is cut into another number of slots, while not all units hold all sessions.
    Copies(String),
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waits::Moves(addr, from, to) => {
                write!(f, "{addr} moves from group `{from}` to group `{to}`")
            }
            Waits::Kept(addr, port) => {
                write!(f, "port `{port}`, which runs until then, has {addr}")
            }
            Waits::NoPlace(group) => write!(
                f,
                "no place is left for group `{group}`, of {MAX_GROUPS} for groups and slots; those \
                 of removed ones are free at the next reload"
            ),
            Waits::Copies(group) => write!(
                f,
                "with `copies`, not all units hold the sessions of group `{group}`: they would not \
                 know which ports are taken"
            ),
        }
    }
}

impl Network {
    /// That of a config.
    pub(super) fn of(config: &Config) -> Network {
        Network {
            ports: config.ports.clone(),
            groups: config.groups.clone(),
        }
    }

    /// The groups and addresses of `wanted`, in the places of `running`.
    ///
    /// # Errors
    /// Why they wait for a restart, all of them.
    pub(super) fn adopt(running: &Config, wanted: &Config) -> Result<Network, Waits> {
        let (groups, places) = place(running, wanted)?;
        let translate = |own: &VirtualAddress| VirtualAddress {
            group: places[usize::from(own.group.0)],
            ..*own
        };
        let mut ports = running.ports.clone();
        for port in &mut ports {
            if let Some(new) = wanted.ports.iter().find(|it| it.name == port.name) {
                port.virtual_addresses = new.virtual_addresses.iter().map(translate).collect();
                port.link_local = new.link_local.iter().map(translate).collect();
            }
        }
        let config = Config {
            ports,
            groups,
            ..wanted.clone()
        };
        check_kept(&config, wanted)?;
        check_moves(running, &config, wanted)?;
        Ok(Network {
            ports: config.ports,
            groups: config.groups,
        })
    }
}

/// The groups of `wanted` in the places of those that run, and the place of each by its index in
/// the file.
fn place(running: &Config, wanted: &Config) -> Result<(Vec<Group>, Vec<GroupId>), Waits> {
    let stays = |group: &Group| {
        let whole = group.part_of.map(|whole| running.group_name(whole));
        let name = whole.unwrap_or(&group.name);
        wanted.declared_groups().any(|(_, it)| it.name == name)
    };
    let mut groups = running.groups.clone();
    for group in groups.iter_mut().filter(|group| !stays(group)) {
        *group = Group::default();
    }
    let mut places = vec![GroupId(0); wanted.groups.len()];
    for (at, group) in wanted.declared_groups() {
        let full = || Waits::NoPlace(group.name.clone());
        let mut known = running.declared_groups();
        let known = known.find(|(_, it)| it.name == group.name);
        let place = match known {
            Some((place, _)) => place,
            None => {
                let place = take(running, &mut groups).ok_or_else(full)?;
                let slots = Vec::new();
                groups[usize::from(place.0)] = Group {
                    slots,
                    ..group.clone()
                };
                place
            }
        };
        places[usize::from(at.0)] = place;
        // A cluster that comes or goes waits for a restart, and slots with it.
        if running.ha.is_some() && wanted.ha.is_some() {
            let slots = cut(running, &mut groups, place, wanted, group).ok_or_else(full)?;
            if known.is_some_and(|(_, it)| it.slots != slots) && are_copies_limited(running, wanted)
            {
                return Err(Waits::Copies(group.name.clone()));
            }
            groups[usize::from(place.0)].slots = slots;
        }
    }
    Ok((groups, places))
}

fn are_copies_limited(running: &Config, wanted: &Config) -> bool {
    running.copies() > 0 || wanted.copies() > 0
}

/// The places of the slots that `wanted` has for a group at `whole`; those that run keep theirs.
/// None if there are too few. What is no longer one of them stays a group, since it may have
/// sessions: see [`Config::former_slots`].
fn cut(
    running: &Config,
    groups: &mut Vec<Group>,
    whole: GroupId,
    wanted: &Config,
    group: &Group,
) -> Option<Vec<GroupId>> {
    let place = |slot: &GroupId| {
        let slot = &wanted.groups[usize::from(slot.0)];
        let known = groups
            .iter()
            .position(|it| it.part_of == Some(whole) && it.name == slot.name);
        let place = match known {
            Some(at) => GroupId(at as u8),
            None => take(running, groups)?,
        };
        let part_of = Some(whole);
        groups[usize::from(place.0)] = Group {
            part_of,
            ..slot.clone()
        };
        Some(place)
    };
    group.slots.iter().map(place).collect()
}

/// A place that nobody has, nor had until now; it exists afterwards.
fn take(running: &Config, groups: &mut Vec<Group>) -> Option<GroupId> {
    let nobody = |groups: &[Group], at: usize| groups.get(at).is_none_or(|group| !group.exists());
    let is_free = |at: &usize| nobody(groups, *at) && nobody(&running.groups, *at);
    let place = (0..MAX_GROUPS).find(is_free)?;
    if groups.len() <= place {
        groups.resize(place + 1, Group::default());
    }
    u8::try_from(place).ok().map(GroupId)
}

/// Ports that the file no longer has run until a restart, with their addresses: no other port can
/// have these, and their groups must be there.
fn check_kept(config: &Config, wanted: &Config) -> Result<(), Waits> {
    let mut known = BTreeSet::new();
    let is_kept = |port: &Port| !wanted.ports.iter().any(|it| it.name == port.name);
    let (kept, others): (Vec<&Port>, Vec<&Port>) = config.ports.iter().partition(|it| is_kept(it));
    for port in others {
        known.extend(port.virtual_addresses.iter().map(|own| own.addr));
    }
    for port in kept {
        for own in port.virtual_addresses.iter().chain(&port.link_local) {
            if known.contains(&own.addr) || config.group_name(own.group).is_empty() {
                return Err(Waits::Kept(own.addr, port.name.clone()));
            }
        }
    }
    Ok(())
}

/// No address may move from one group to another: units that have read the file and units that have
/// not would both answer for it, or neither.
fn check_moves(running: &Config, config: &Config, wanted: &Config) -> Result<(), Waits> {
    let before = groups_by_address(running);
    let said = groups_by_address(wanted);
    for (key, now) in groups_by_address(config) {
        let others = [before.get(&key), said.get(&key)];
        if let Some(other) = others.into_iter().flatten().find(|other| **other != now) {
            let to = said.get(&key).unwrap_or(&now).clone();
            let from = if *other == to { now } else { other.clone() };
            return Err(Waits::Moves(key.1, from, to));
        }
    }
    Ok(())
}

/// The name of the group of each address. Each port has link-local ones of its own.
fn groups_by_address(config: &Config) -> BTreeMap<(Option<&str>, Addr), String> {
    let name = |group: GroupId| config.group_name(group).to_owned();
    let mut all = BTreeMap::new();
    for addr in config.nat_pools.iter().flat_map(|pool| &pool.addresses) {
        all.insert((None, *addr), name(group_of(&config.ports, *addr)));
    }
    for port in &config.ports {
        let own = port.virtual_addresses.iter();
        all.extend(own.map(|own| ((None, own.addr), name(own.group))));
        let own = port.link_local.iter();
        all.extend(own.map(|own| ((Some(&*port.name), own.addr), name(own.group))));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Change, parse};

    /// A config with these groups, each with an address of its own and these settings.
    fn config(groups: &[(&str, u8, &str)]) -> Config {
        let addresses: Vec<String> = (groups.iter())
            .map(|(_, last, _)| format!("\"10.1.0.{last}/24\""))
            .collect();
        let tables = groups.iter().map(|(name, last, settings)| {
            format!("[[group]]\nname = \"{name}\"\nvirtual-addresses = [\"10.1.0.{last}\"]\n{settings}\n")
        });
        let text = format!(
            "[node]\nname = \"a\"\nkey = \"k\"\n[[port]]\nname = \"lan\"\ninterface = \"e0\"\n\
             virtual-addresses = [{}]\n{}[ha]\ngroup-id = 1\n[[ha.link]]\ninterface = \"e1\"\n\
             listen = \"10.0.9.1:7030\"\n[[ha.peer]]\nname = \"b\"\naddresses = [\"10.0.9.2:7030\"]\n\
             public-key = \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n",
            addresses.join(", "),
            tables.collect::<String>(),
        );
        let read = parse(Path::new("a.toml"), &text);
        read.unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
            .0
    }

    fn names(config: &Config) -> Vec<&str> {
        config.groups.iter().map(|it| it.name.as_str()).collect()
    }

    /// The config in force after another one was read, all of which can be.
    fn follow(running: &Config, wanted: &Config) -> Config {
        let change = Change::new(running, wanted);
        assert_eq!(change.waiting, []);
        for (addr, group) in crate::nat::groups(&change.config) {
            let name = crate::nat::groups(wanted).get(&addr).copied();
            let name = name.map(|group| wanted.group_name(group));
            assert_eq!(Some(change.config.group_name(group)), name, "{addr}");
        }
        change.config
    }

    #[test]
    fn groups_keep_their_places_whatever_comes_and_goes() {
        let (one, two, three) = (
            ("one", 1, ""),
            ("two", 2, "distribute = 2"),
            ("three", 3, ""),
        );
        let first = config(&[one, two]);
        assert_eq!(names(&first), ["one", "two", "two/0", "two/1"]);
        let more = follow(&first, &config(&[three, two, one]));
        assert_eq!(names(&more), ["one", "two", "two/0", "two/1", "three"]);
        let less = follow(&more, &config(&[two, three]));
        assert_eq!(names(&less), ["", "two", "two/0", "two/1", "three"]);
        // The place of one that goes is not free yet: there may be sessions.
        let other = ("four", 4, "");
        let swapped = follow(&less, &config(&[other, three]));
        assert_eq!(names(&swapped), ["four", "", "", "", "three"]);
        let cut = ("five", 5, "distribute = 3");
        let again = follow(&swapped, &config(&[three, other, cut]));
        assert_eq!(
            names(&again),
            ["four", "five", "five/0", "five/1", "three", "five/2"]
        );
        assert_eq!(again.groups[1].slots, [2, 3, 5].map(GroupId));
        assert_eq!(again.groups[5].part_of, Some(GroupId(1)));
        let slots = again.groups.iter().filter(|it| it.part_of.is_some());
        assert!(slots.clone().count() == 3 && slots.clone().all(|it| it.priority.is_some()));
        let none = follow(&again, &config(&[other]));
        assert_eq!(none.known_groups().count(), 1);
    }

    #[test]
    fn a_slot_that_goes_stays_a_group_until_its_sessions_have_moved() {
        let cut = |settings| config(&[("one", 1, settings), ("two", 2, "")]);
        let first = cut("distribute = 2\npriority = 7");
        let more = follow(&first, &cut("distribute = 3\npriority = 7"));
        let all = ["one", "two", "one/0", "one/1", "one/2"];
        assert_eq!(names(&more), all);
        assert_eq!(more.groups[0].slots, [2, 3, 4].map(GroupId));
        assert!(more.former_slots().is_empty());
        let mut priorities: Vec<_> = more.groups[2..].iter().map(|it| it.priority).collect();
        priorities.sort();
        assert_eq!(priorities, [Some(254), Some(254), Some(255)]);
        let none = follow(&more, &cut("priority = 7"));
        assert_eq!(names(&none), all);
        assert!(!none.groups[0].is_cut() && none.groups[0].distribute.is_none());
        let former: Vec<GroupId> = none.former_slots().iter().collect();
        assert_eq!(former, [2, 3, 4].map(GroupId));
        // They come together at the primary of the group.
        assert!(none.groups[2..].iter().all(|it| it.priority == Some(7)));
        assert_eq!(none.declared_groups().count(), 2);
        let again = follow(&none, &cut("distribute = 2"));
        assert_eq!(again.groups[0].slots, [2, 3].map(GroupId));
        assert_eq!(
            again.former_slots().iter().collect::<Vec<_>>(),
            [GroupId(4)]
        );
        let gone = follow(&again, &config(&[("two", 2, "")]));
        assert_eq!(names(&gone), ["", "two", "", "", ""]);
    }

    #[test]
    fn slots_wait_while_not_all_units_hold_all_sessions() {
        let with = |distribute: u8| {
            let mut wanted = config(&[("one", 1, &format!("distribute = {distribute}"))]);
            let ha = wanted.ha.as_mut().unwrap();
            let peer = ha.peers[0].clone();
            ha.peers
                .extend(["c", "d"].map(|name| crate::config::HaPeer {
                    name: name.to_owned(),
                    ..peer.clone()
                }));
            ha.copies = 2;
            wanted
        };
        let running = with(2);
        assert_eq!(running.copies(), 2);
        let change = Change::new(&running, &with(3));
        assert_eq!((change.config, change.waiting.len()), (running, 1));
        let waiting = &change.waiting[0];
        assert_eq!(waiting.key, "group.one.distribute");
        assert!(waiting.what.contains("`copies`"), "{}", waiting.what);
    }

    #[test]
    fn what_finds_no_place_waits() {
        let one = config(&[("one", 1, "")]);
        let big = [
            ("one", 1, ""),
            ("two", 2, "distribute = 32"),
            ("three", 3, "distribute = 25"),
        ];
        let full = follow(&one, &config(&big));
        assert_eq!(full.known_groups().count(), 60);
        let other = [
            ("one", 1, ""),
            ("two", 2, "distribute = 32"),
            ("four", 4, "distribute = 25"),
        ];
        let change = Change::new(&full, &config(&other));
        let keys: Vec<_> = change.waiting.iter().map(|it| it.key.as_str()).collect();
        assert_eq!(
            keys,
            ["group.four", "group.three", "port.lan.virtual-addresses"]
        );
        assert!(change.waiting[0].what.contains("no place is left"));
        assert_eq!(change.config, full);
    }

    #[test]
    fn an_address_that_changes_hands_waits_with_all_groups() {
        let first = config(&[("one", 1, ""), ("two", 2, "")]);
        for wanted in [
            config(&[("one", 2, ""), ("two", 1, "")]),
            config(&[("one", 1, ""), ("new", 2, "")]),
            config(&[("new", 1, ""), ("two", 2, ""), ("other", 3, "")]),
        ] {
            let change = Change::new(&first, &wanted);
            assert_eq!(change.config, first);
            let moves = |it: &crate::config::Difference| it.what.contains("moves from group");
            assert!(change.waiting.iter().all(moves), "{:?}", change.waiting);
        }
    }
}
