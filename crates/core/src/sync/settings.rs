//! The settings that must be the same on all units, sent in the Hello item by item, so that each
//! unit can name the differences: virtual addresses of ports, groups, pools, forwards, policies.

use std::collections::{BTreeMap, BTreeSet};

use crate::policy::POLICIES;

/// The items of a unit, each with a hash of what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// There are no others.
    pub is_complete: bool,
    /// Names such as `policy lan-out`, in an order of their own.
    pub items: Vec<(String, u32)>,
}

/// Bytes of a Hello that the items may take.
pub(super) const ROOM: usize = 16 * 1024;
/// Names that are told.
const MOST_NAMES: usize = 8;

impl Settings {
    /// As many of the items as have room in a Hello.
    pub fn new(items: &[(String, u32)]) -> Settings {
        let mut room = ROOM;
        let fits = |(name, _): &&(String, u32)| {
            let needed = size(name);
            let fits = needed <= room;
            room = room.saturating_sub(needed);
            fits
        };
        let items_told: Vec<_> = items.iter().take_while(fits).cloned().collect();
        Settings {
            is_complete: items_told.len() == items.len(),
            items: items_told,
        }
    }

    /// The bytes that the items take in a Hello.
    pub(super) fn size(&self) -> usize {
        self.items.iter().map(|(name, _)| size(name)).sum()
    }

    /// Whether policies or others that are about no group are not the same as those of `other`. If
    /// the units have `other_groups`, only what both have counts: who serves only some of the
    /// groups lacks what the others need.
    pub(super) fn contradicts(&self, other: &Settings, other_groups: bool) -> bool {
        let common = |these: &Settings, those: &Settings| -> Vec<(String, u32)> {
            let names: BTreeSet<&str> = those.items.iter().map(|(name, _)| name.as_str()).collect();
            let items = these.items.iter().filter(|(name, _)| is_general(name));
            let common = items.filter(|(name, _)| names.contains(name.as_str()));
            common.cloned().collect()
        };
        match other_groups {
            false => self.find(POLICIES) != other.find(POLICIES),
            true => common(self, other) != common(other, self),
        }
    }

    /// Whether a group has not the same addresses, pools and forwards as that of `other`.
    pub(super) fn contradicts_in(&self, other: &Settings, group: &str) -> bool {
        let group = group.split_once('/').map_or(group, |(whole, _)| whole);
        let name = format!("group {group}");
        self.find(&name) != other.find(&name)
    }

    fn find(&self, name: &str) -> Option<u32> {
        let item = self.items.iter().find(|(it, _)| it == name);
        item.map(|(_, hash)| *hash)
    }

    /// The names of what differs from `other`, at most eight, and then how many more there are.
    pub(super) fn differing(&self, other: &Settings) -> Vec<String> {
        let all = self.parts_unlike(other);
        let mut names: Vec<String> = all
            .iter()
            .take(MOST_NAMES)
            .map(ToString::to_string)
            .collect();
        if all.len() > MOST_NAMES {
            names.push(format!("and {} more", all.len() - MOST_NAMES));
        }
        // The order of policies, or one of those without room.
        let explained = |sum: &str| match sum.strip_prefix("group ") {
            Some(group) => {
                (all.iter()).any(|it| !is_general(it) && group_in(it).is_none_or(|it| it == group))
            }
            None => all.iter().any(|it| is_general(it)),
        };
        let sums = self.items.iter().filter(|(name, _)| is_sum(name));
        let sums = sums.filter(|(name, hash)| other.find(name).is_some_and(|it| it != *hash));
        names.extend(
            sums.map(|(name, _)| name.clone())
                .filter(|it| !explained(it)),
        );
        names
    }

    /// The names of what one has, and the other one not or not so.
    fn parts_unlike<'a>(&'a self, other: &'a Settings) -> BTreeSet<&'a str> {
        let unlike = |these: &'a Settings, those: &'a Settings| {
            let said: BTreeSet<(&str, u32)> = (those.items.iter())
                .map(|(name, hash)| (bare(name), *hash))
                .collect();
            let names: BTreeSet<&str> = those.items.iter().map(|(name, _)| bare(name)).collect();
            let items = these.items.iter();
            items.filter(move |(name, hash)| {
                // What had no room may be the same.
                let is_known = those.is_complete || names.contains(bare(name));
                let is_alone = is_sum(name) && !names.contains(name.as_str());
                let counts = !is_sum(name) || is_alone && name != POLICIES;
                counts && is_known && !said.contains(&(bare(name), *hash))
            })
        };
        let all = unlike(self, other).chain(unlike(other, self));
        all.map(|(name, _)| name.as_str()).collect()
    }
}

/// Whether an item stands for others.
fn is_sum(item: &str) -> bool {
    item == POLICIES || item.starts_with("group ")
}

/// Whether an item is about all groups.
fn is_general(item: &str) -> bool {
    let of_group = ["group ", "port ", "nat-pool ", "forward "];
    item != POLICIES && !of_group.iter().any(|kind| item.starts_with(kind))
}

/// The name of an item without its group, and the group, which a unit with one group leaves out.
fn split_group(item: &str) -> Option<(&str, &str)> {
    item.strip_suffix(')')?.rsplit_once(" (group ")
}

fn group_in(item: &str) -> Option<&str> {
    split_group(item).map(|(_, group)| group)
}

fn bare(item: &str) -> &str {
    split_group(item).map_or(item, |(name, _)| name)
}

/// The groups, slots included, that only one of two units has.
pub(super) struct Lacking<'a> {
    ours: BTreeSet<&'a str>,
    theirs: BTreeSet<&'a str>,
}

impl<'a> Lacking<'a> {
    /// Compares the names of groups; those of empty places are empty.
    pub(super) fn new(ours: &'a [String], theirs: &'a [String]) -> Lacking<'a> {
        let set = |names: &'a [String]| -> BTreeSet<&'a str> {
            let names = names.iter().map(String::as_str);
            names.filter(|name| !name.is_empty()).collect()
        };
        let (ours, theirs) = (set(ours), set(theirs));
        Lacking {
            ours: ours.difference(&theirs).copied().collect(),
            theirs: theirs.difference(&ours).copied().collect(),
        }
    }

    /// Both have the same.
    pub(super) fn is_empty(&self) -> bool {
        self.ours.is_empty() && self.theirs.is_empty()
    }

    /// As they are named among what differs; `other_slots` are those of [`Lacking::other_slots`].
    pub(super) fn told(&self, other_slots: &[String]) -> Vec<String> {
        let whole = |name: &&&str| !name.contains('/');
        let said = |names: &BTreeSet<&str>, who: &str| -> Vec<String> {
            let whole = names.iter().filter(whole).take(MOST_NAMES);
            whole
                .map(|name| format!("group {name} ({who} lacks it)"))
                .collect()
        };
        let mut told = said(&self.ours, "the peer");
        told.extend(said(&self.theirs, "this unit"));
        let slots = other_slots.iter().take(MOST_NAMES);
        told.extend(slots.map(|name| format!("slots of group {name}")));
        told
    }

    /// The groups that both have and cut into other numbers of slots. A slot that only one of them
    /// has does not count: it may be a former one.
    pub(super) fn other_slots(&self, ours: &[String], theirs: &[String]) -> Vec<String> {
        let [ours, theirs] = [ours, theirs].map(|cuts| cuts.iter().collect::<BTreeSet<_>>());
        let other = ours.symmetric_difference(&theirs);
        let of = other.filter_map(|name| Some(name.split_once('/')?.0));
        let cut: BTreeSet<&str> = of.filter(|of| !self.has(of)).collect();
        cut.into_iter().map(ToString::to_string).collect()
    }

    /// Whether an item of the settings is about a group that only one has.
    pub(super) fn covers(&self, item: &str) -> bool {
        let group = group_in(item).or_else(|| item.strip_prefix("group "));
        group.is_some_and(|name| self.has(name) || name.contains('/'))
    }

    fn has(&self, name: &str) -> bool {
        self.ours.contains(name) || self.theirs.contains(name)
    }
}

/// How a peer cuts groups that only names them and their slots, which it has no former ones of.
pub(super) fn cuts_by_names(names: &[String]) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let wholes = names.iter().filter_map(|name| name.split_once('/'));
    wholes.for_each(|(whole, _)| *counts.entry(whole).or_default() += 1);
    let cuts = counts.iter();
    cuts.map(|(whole, count)| format!("{whole}/{count}"))
        .collect()
}

/// The units that only one of two knows, as they are named among what differs.
pub(super) fn units_of_one(ours: &[String], theirs: &[String]) -> Vec<String> {
    if theirs.is_empty() {
        return Vec::new();
    }
    let one = only_one_has(ours, theirs);
    one.iter().map(|name| format!("unit {name}")).collect()
}

/// The names that only one of two lists has, at most eight.
pub(super) fn only_one_has(ours: &[String], theirs: &[String]) -> Vec<String> {
    let [ours, theirs] = [ours, theirs].map(|names| names.iter().collect::<BTreeSet<_>>());
    let one = ours.symmetric_difference(&theirs).take(MOST_NAMES);
    one.map(ToString::to_string).collect()
}

fn size(name: &str) -> usize {
    1 + name.len() + 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(items: &[(&str, u32)]) -> Settings {
        let items: Vec<_> = items
            .iter()
            .map(|(name, hash)| ((*name).to_owned(), *hash))
            .collect();
        Settings::new(&items)
    }

    #[test]
    fn what_differs_is_named_on_both_sides() {
        let ours = settings(&[("port lan", 1), ("policy a", 2), ("policy b", 3)]);
        let theirs = settings(&[("port lan", 9), ("policy a", 2), ("nat-pool p", 4)]);
        let names = ["nat-pool p", "policy b", "port lan"];
        assert_eq!(ours.differing(&theirs), names);
        assert_eq!(theirs.differing(&ours), names);
        assert!(ours.differing(&ours).is_empty());
    }

    #[test]
    fn what_stands_for_others_is_named_if_none_of_them_is() {
        let ours = [
            ("policies", 1),
            ("group a", 2),
            ("port lan (group a)", 3),
            ("policy p", 4),
        ];
        let with = |changes: &[(usize, u32)]| {
            let mut items = ours;
            changes.iter().for_each(|(at, hash)| items[*at].1 = *hash);
            settings(&items)
        };
        let ours = settings(&ours);
        for (changes, wanted) in [
            (&[(0, 9)][..], &["policies"][..]),
            (&[(1, 9)], &["group a"]),
            (&[(1, 9), (2, 9)], &["port lan (group a)"]),
            (&[(0, 9), (3, 9)], &["policy p"]),
            (
                &[(0, 9), (1, 9), (2, 9)],
                &["port lan (group a)", "policies"],
            ),
        ] {
            assert_eq!(ours.differing(&with(changes)), wanted);
            assert_eq!(with(changes).differing(&ours), wanted);
        }
        // A unit with one group does not name it.
        let alone = settings(&[
            ("policies", 1),
            ("group a", 2),
            ("port lan", 3),
            ("policy p", 4),
        ]);
        assert!(ours.differing(&alone).is_empty() && alone.differing(&ours).is_empty());
    }

    #[test]
    fn a_difference_in_a_group_contradicts_there_only() {
        let ours = settings(&[("policies", 1), ("group a", 2), ("group b", 3)]);
        let theirs = settings(&[("policies", 1), ("group a", 9), ("group b", 3)]);
        assert!(!ours.contradicts(&theirs, false));
        assert!(ours.contradicts_in(&theirs, "a") && ours.contradicts_in(&theirs, "a/7"));
        assert!(!ours.contradicts_in(&theirs, "b") && !ours.contradicts_in(&theirs, "b/7"));
        assert!(ours.contradicts(&settings(&[("policies", 2)]), false));
        let former = settings(&[("group a", 2), ("policy p", 1)]);
        assert!(
            ours.contradicts(&former, false),
            "it does not say what it has"
        );
    }

    #[test]
    fn units_that_only_one_knows_are_named() {
        let units = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (two, three) = (units(&["a", "b"]), units(&["a", "b", "c"]));
        assert_eq!(units_of_one(&two, &three), ["unit c"]);
        assert_eq!(units_of_one(&three, &two), ["unit c"]);
        assert!(units_of_one(&two, &two).is_empty());
        assert!(units_of_one(&two, &[]).is_empty(), "it does not say");
    }

    #[test]
    fn groups_that_only_one_has_are_named() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let ours = names(&["one", "", "two", "cut", "cut/0", "cut/1"]);
        let theirs = names(&["cut", "cut/0", "one", "three", "three/0"]);
        let lacking = Lacking::new(&ours, &theirs);
        let told = [
            "group two (the peer lacks it)",
            "group three (this unit lacks it)",
            "slots of group cut",
        ];
        let cuts = |count: u8| names(&[&format!("cut/{count}"), "one/9"]);
        let other = lacking.other_slots(&cuts(2), &cuts(1));
        assert_eq!(other, ["cut"]);
        assert_eq!(lacking.told(&other), told);
        assert!(lacking.other_slots(&cuts(2), &cuts(2)).is_empty());
        let many: Vec<String> = (0..20).map(|n| format!("a{n:02}")).collect();
        let many_cut: Vec<String> = many.iter().map(|name| format!("{name}/2")).collect();
        let many = [&many[..], &ours].concat();
        let with_many = Lacking::new(&many, &theirs);
        let many_cut = [&many_cut[..], &cuts(2)].concat();
        assert_eq!(with_many.other_slots(&many_cut, &cuts(1)), ["cut"]);
        let only_ours = names(&["two/3", "one/9"]);
        assert_eq!(lacking.other_slots(&only_ours, &cuts(0)), ["cut"]);
        assert_eq!(lacking.told(&[]), told[..2]);
        assert_eq!(cuts_by_names(&theirs), ["cut/1", "three/1"]);
        for item in ["group two", "port lan (group three)", "group cut/1"] {
            assert!(lacking.covers(item), "{item}");
        }
        for item in ["group one", "port lan (group cut)", "policy two"] {
            assert!(!lacking.covers(item), "{item}");
        }
        let (same, other) = (names(&["a", ""]), names(&["a"]));
        assert!(Lacking::new(&same, &other).is_empty());
    }

    #[test]
    fn policies_that_only_one_has_contradict_nothing_among_other_groups() {
        let ours = settings(&[("policy a", 2), ("policy b", 3), ("policy c", 4)]);
        let contradicts = |items: &[(&str, u32)]| ours.contradicts(&settings(items), true);
        assert!(!contradicts(&[
            ("policy a", 2),
            ("policy c", 4),
            ("nat-pool p", 5)
        ]));
        assert!(contradicts(&[("policy a", 9)]));
        assert!(contradicts(&[("policy c", 4), ("policy a", 2)]));
    }

    #[test]
    fn many_are_counted_and_what_was_not_told_does_not_differ() {
        let many: Vec<_> = (0..5000).map(|i| (format!("policy {i:04}"), i)).collect();
        let (many, none) = (Settings::new(&many), settings(&[]));
        assert!(!many.is_complete && many.size() <= ROOM);
        let names = many.differing(&none);
        assert_eq!(names.len(), MOST_NAMES + 1);
        assert!(names[MOST_NAMES].starts_with("and "));
        let cut = settings(&[("policy 9999", 1)]);
        assert!(!many.differing(&cut).contains(&"policy 9999".to_owned()));
    }
}
