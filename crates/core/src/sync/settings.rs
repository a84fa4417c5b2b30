//! The settings that must be the same on all units, sent in the Hello item by item, so that each
//! unit can name the differences: virtual addresses of ports, groups, pools, forwards, policies.

use std::collections::{BTreeMap, BTreeSet};

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

    /// Whether something that both have is not the same, or policies that both have are in another
    /// order.
    pub(super) fn contradicts(&self, other: &Settings) -> bool {
        let common = |these: &Settings, those: &Settings| -> Vec<(String, u32)> {
            let names: BTreeSet<&str> = those.items.iter().map(|(name, _)| name.as_str()).collect();
            let items = these.items.iter();
            let common = items.filter(|(name, _)| names.contains(name.as_str()));
            common.cloned().collect()
        };
        common(self, other) != common(other, self)
    }

    /// The names of what differs from `other`, at most eight, and then how many more there are.
    /// Empty if it is none that was told: then it is the order of policies, or one of those without
    /// room.
    pub(super) fn differing(&self, other: &Settings) -> Vec<String> {
        let [ours, theirs] = [self, other].map(|it| {
            let items = it.items.iter();
            items
                .map(|(name, hash)| (name.as_str(), *hash))
                .collect::<BTreeMap<_, _>>()
        });
        let changed = ours.iter().filter(|(name, hash)| match theirs.get(*name) {
            Some(their) => their != *hash,
            None => other.is_complete,
        });
        let changed = changed.map(|(name, _)| *name);
        let missing = theirs.keys().copied();
        let missing = missing.filter(|name| self.is_complete && !ours.contains_key(name));
        let all: Vec<&str> = changed.chain(missing).collect();
        let mut names: Vec<String> = all
            .iter()
            .take(MOST_NAMES)
            .map(ToString::to_string)
            .collect();
        if all.len() > MOST_NAMES {
            names.push(format!("and {} more", all.len() - MOST_NAMES));
        }
        names
    }
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

    /// As they are named among what differs.
    pub(super) fn told(&self) -> Vec<String> {
        let whole = |name: &&&str| !name.contains('/');
        let said = |names: &BTreeSet<&str>, who: &str| -> Vec<String> {
            let whole = names.iter().filter(whole).take(MOST_NAMES);
            whole
                .map(|name| format!("group {name} ({who} lacks it)"))
                .collect()
        };
        let mut told = said(&self.ours, "the peer");
        told.extend(said(&self.theirs, "this unit"));
        let slots = self.ours.union(&self.theirs);
        let of = slots.filter_map(|name| Some(name.split_once('/')?.0));
        let cut: BTreeSet<&str> = of.filter(|of| !self.has(of)).collect();
        told.extend(cut.iter().map(|name| format!("slots of group {name}")));
        told
    }

    /// Whether an item of the settings is about a group that only one has.
    pub(super) fn covers(&self, item: &str) -> bool {
        let item = item.strip_suffix(')').unwrap_or(item);
        let group = item.rsplit_once("(group ").map(|(_, name)| name);
        let group = group.or_else(|| item.strip_prefix("group "));
        group.is_some_and(|name| self.has(name) || name.contains('/'))
    }

    fn has(&self, name: &str) -> bool {
        self.ours.contains(name) || self.theirs.contains(name)
    }
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
        let theirs = settings(&[("port lan", 9), ("policy a", 2), ("pool p", 4)]);
        let names = ["policy b", "port lan", "pool p"];
        assert_eq!(ours.differing(&theirs), names);
        let mut same: Vec<_> = theirs.differing(&ours);
        same.sort();
        assert_eq!(same, ["policy b", "pool p", "port lan"]);
        assert!(ours.differing(&ours).is_empty());
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
        assert_eq!(lacking.told(), told);
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
    fn what_only_one_has_contradicts_nothing() {
        let ours = settings(&[("policy a", 2), ("policy b", 3), ("policy c", 4)]);
        assert!(!ours.contradicts(&settings(&[
            ("policy a", 2),
            ("policy c", 4),
            ("pool p", 5)
        ])));
        assert!(ours.contradicts(&settings(&[("policy a", 9)])));
        assert!(ours.contradicts(&settings(&[("policy c", 4), ("policy a", 2)])));
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
