//! Slots: what `distribute` cuts a group into, so that all units share its hosts.
//!
//! A slot is a group without addresses, elected, replicated and handed over like any other. Which
//! sessions it has follows from the addresses of their hosts; the group itself keeps the virtual
//! addresses. Each unit works out the same priorities for all slots from the names and weights of
//! the units, so nothing has to be agreed on: see [`rank`].

use std::cmp::Reverse;
use std::fmt;

use toml::de::DeValue;

use super::diagnostic::Report;
use super::names::did_you_mean;
use super::network::group_of;
use super::reader::{At, Span};
use super::value::{FromToml, ValueProblem};
use super::{Config, Group, Ha, NatPool, Port, Weight};
use crate::flow::{GroupId, GroupSet, MAX_GROUPS};
use crate::random::SplitMix64;

/// The priority of a unit for the slots that are its own.
const OWN: u8 = 255;
/// The largest weight.
const MOST_WEIGHT: u8 = 100;
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
        let places = groups.len()..groups.len() + usize::from(count);
        let name = groups[at].name.clone();
        groups[at].slots = places.map(|place| GroupId(place as u8)).collect();
        let part_of = Some(GroupId(u8::try_from(at).unwrap_or(u8::MAX)));
        groups.extend((0..count).map(|slot| Group {
            name: format!("{name}/{slot}"),
            part_of,
            ..Group::default()
        }));
    }
    rank(groups, (node, Some(ha)));
}

/// Sets the priority of this unit for each slot.
///
/// Former slots have that of the whole group, so that they come together at its primary, which can
/// move their sessions.
///
/// The slots of a group are shared out among all units, by weight; what a unit has is shared out
/// in the same way among the others, for when it is gone; and so on. So each slot has an order of
/// the units.
///
/// Each unit has a score for each slot, a hash of both names (rendezvous hashing: Thaler,
/// Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998), and the highest ones come
/// first. So few slots change hands when a unit comes or goes. But a unit takes no more than its
/// share.
pub(super) fn rank(groups: &mut [Group], (node, ha): (&str, Option<&Ha>)) {
    let Some(ha) = ha else {
        return;
    };
    let peers = ha.peers.iter().map(|peer| peer.name.as_str());
    let mut names: Vec<&str> = peers.chain([node]).collect();
    names.sort_unstable();
    names.dedup();
    for slot in former_slots(groups).iter() {
        let at = usize::from(slot.0);
        let whole = groups[at].part_of.map(|whole| usize::from(whole.0));
        groups[at].priority = whole.and_then(|whole| groups[whole].priority);
    }
    for at in 0..groups.len() {
        let slots: Vec<usize> = groups[at]
            .slots
            .iter()
            .map(|it| usize::from(it.0))
            .collect();
        let labels: Vec<String> = slots
            .iter()
            .map(|slot| groups[*slot].name.clone())
            .collect();
        let group = &groups[at];
        let unit = |name: &&'_ str| Unit {
            name: (*name).to_owned(),
            weight: group.weight_of(name),
        };
        let units: Vec<Unit> = names.iter().map(unit).collect();
        let mut orders = vec![Vec::new(); labels.len()];
        let (all, everybody) = ((0..labels.len()).collect(), (0..units.len()).collect());
        share_out(&labels, &units, all, everybody, &mut orders);
        for (slot, order) in slots.into_iter().zip(&orders) {
            let place = order.iter().position(|unit| units[*unit].name == node);
            let place = place.and_then(|place| u8::try_from(place).ok());
            groups[slot].priority = Some(OWN.saturating_sub(place.unwrap_or(OWN)));
        }
    }
}

/// The slots that their groups are no longer cut into.
fn former_slots(groups: &[Group]) -> GroupSet {
    let all = (0..).map(GroupId).zip(groups);
    let listed: GroupSet = groups
        .iter()
        .flat_map(|group| group.slots.iter().copied())
        .collect();
    let former = all.filter(|(place, group)| group.part_of.is_some() && !listed.contains(*place));
    former.map(|(place, _)| place).collect()
}

impl Config {
    /// The slots that their groups are no longer cut into since a reload. They take no new
    /// sessions, and are groups until their sessions have moved to others.
    pub(crate) fn former_slots(&self) -> GroupSet {
        former_slots(&self.groups)
    }
}

impl Group {
    /// Whether it is cut into slots.
    pub fn is_cut(&self) -> bool {
        !self.slots.is_empty()
    }

    /// The weight of the unit of that name among those that share the slots.
    pub fn weight_of(&self, unit: &str) -> u8 {
        let given = self.weights.iter().find(|weight| weight.unit == unit);
        given.map_or(1, |given| given.weight)
    }
}

struct Unit {
    name: String,
    weight: u8,
}

/// Gives each of the slots `which` to one of the units `who`, appends that to its order, and then
/// what each of them got to the others.
fn share_out(
    labels: &[String],
    units: &[Unit],
    which: Vec<usize>,
    who: Vec<usize>,
    orders: &mut [Vec<usize>],
) {
    if which.is_empty() || who.is_empty() {
        return;
    }
    let score = |unit: usize, slot: usize| score(&units[unit].name, &labels[slot]);
    let mut left = shares(units, &who, which.len(), |unit| score(unit, which[0]));
    let mut pairs: Vec<(usize, usize)> = (0..who.len())
        .flat_map(|at| which.iter().map(move |slot| (at, *slot)))
        .collect();
    pairs.sort_by_key(|(at, slot)| Reverse(score(who[*at], *slot)));
    let mut got = vec![Vec::new(); who.len()];
    let mut taken = vec![false; labels.len()];
    for (at, slot) in pairs {
        if left[at] > 0 && !taken[slot] {
            (left[at], taken[slot]) = (left[at] - 1, true);
            got[at].push(slot);
            orders[slot].push(who[at]);
        }
    }
    for (at, slots) in got.into_iter().enumerate() {
        let others = who.iter().copied().filter(|unit| *unit != who[at]);
        share_out(labels, units, slots, others.collect(), orders);
    }
}

/// How many of `count` slots each of the units gets: one after the other goes to the unit that has
/// the fewest for its weight (Webster, or Sainte-Laguë), of equal ones to that with the best score.
fn shares(units: &[Unit], who: &[usize], count: usize, score: impl Fn(usize) -> u64) -> Vec<usize> {
    let mut shares = vec![0; who.len()];
    let weight = |at: usize| u64::from(units[who[at]].weight);
    // Units without weight get something only if there are no others.
    let nobody_weighs = (0..who.len()).all(|at| weight(at) == 0);
    let weight = |at: usize| if nobody_weighs { 1 } else { weight(at) };
    for _ in 0..count {
        let next = (0..who.len()).filter(|at| weight(*at) > 0).max_by(|a, b| {
            // weight / (2 * slots + 1), without a division.
            let claim = |at: usize, other: usize| weight(at) * (2 * shares[other] as u64 + 1);
            let claims = claim(*a, *b).cmp(&claim(*b, *a));
            claims.then_with(|| score(who[*a]).cmp(&score(who[*b])))
        });
        if let Some(next) = next {
            shares[next] += 1;
        }
    }
    shares
}

/// The score of a unit for a group or slot, by rendezvous hashing: the same on all units.
pub(crate) fn score(unit: &str, slot: &str) -> u64 {
    // FNV-1a of both names, and a round that mixes it.
    let bytes = unit.bytes().chain([0]).chain(slot.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    SplitMix64(hash).next()
}

/// Checks that weights are those of units that share a group.
pub(super) fn check_weights(
    report: &Report,
    groups: &[Group],
    weights: &[Vec<At<Weight>>],
    (node, ha): (&str, Option<&Ha>),
) {
    let peers = ha.map_or(&[][..], |ha| &ha.peers);
    let known = || peers.iter().map(|peer| peer.name.as_str()).chain([node]);
    for (group, weights) in groups.iter().zip(weights) {
        for (at, weight) in weights.iter().enumerate() {
            let unit = &weight.value.unit;
            if group.distribute.is_none() {
                let message = "`weights` has no effect without `distribute`";
                report.error(
                    &weight.span,
                    message,
                    "say into how many slots to cut the group",
                );
            } else if ha.is_some() && !known().any(|name| name == unit) {
                let hint = did_you_mean(unit, known());
                let hint = hint.unwrap_or_else(|| "name units of `[[ha.peer]]`".to_owned());
                report.warn(&weight.span, format!("there is no unit `{unit}`"), hint);
            } else if weights[..at].iter().any(|it| it.value.unit == *unit) {
                report.error(&weight.span, format!("a second weight of `{unit}`"), "");
            }
        }
    }
}

impl Weight {
    /// Reads all of them, as they are shown; none if one can't be read.
    pub(super) fn all(texts: &[String]) -> Option<Vec<Weight>> {
        texts.iter().map(|text| Weight::read(text)).collect()
    }

    fn read(text: &str) -> Option<Weight> {
        let (unit, weight) = text.rsplit_once(':')?;
        let weight = weight.parse().ok().filter(|it| *it <= MOST_WEIGHT)?;
        (!unit.is_empty()).then(|| Weight {
            unit: unit.to_owned(),
            weight,
        })
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.unit, self.weight)
    }
}

impl FromToml for Weight {
    fn from_toml(value: &DeValue<'_>) -> Result<Weight, ValueProblem> {
        let text = String::from_toml(value)?;
        Weight::read(&text).ok_or_else(|| {
            let message = format!("`{text}` is not a unit with its weight");
            let hint = format!("write \"gw-a:2\"; a weight is 0 to {MOST_WEIGHT}");
            ValueProblem::new(message, hint)
        })
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
        let slots = groups.get(at).map_or(0, |group| group.slots.len());
        let Some(header) = headers.get(at).filter(|_| slots > 0) else {
            continue;
        };
        let name = &pool.name;
        let size = usize::from(pool.ports.1 - pool.ports.0) + 1;
        if size < slots {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    fn config(node: &str, others: &[&str], settings: &str) -> Config {
        read(node, others, settings).unwrap_or_else(|found| panic!("{found}"))
    }

    fn read(node: &str, others: &[&str], settings: &str) -> Result<Config, String> {
        match parse(Path::new("a.toml"), &text(node, others, settings)) {
            Ok((config, _)) => Ok(config),
            Err(found) => Err(format!("{found:?}")),
        }
    }

    fn text(node: &str, others: &[&str], settings: &str) -> String {
        let peers: String = (others.iter().enumerate())
            .map(|(at, name)| {
                let octet = at + 2;
                format!(
                    "[[ha.peer]]\nname = \"{name}\"\naddresses = [\"10.0.9.{octet}:7030\"]\n\
                     public-key = \"A{at}ECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n"
                )
            })
            .collect();
        format!(
            "[node]\nname = \"{node}\"\nkey = \"k\"\n\
             [[port]]\nname = \"lan\"\ninterface = \"e0\"\nvirtual-addresses = [\"10.1.0.1/24\"]\n\
             [[group]]\nname = \"all\"\nports = [\"lan\"]\n{settings}\n\
             [ha]\ngroup-id = 1\n\
             [[ha.link]]\ninterface = \"e1\"\nlisten = \"10.0.9.1:7030\"\n{peers}"
        )
    }

    #[test]
    fn a_group_that_is_cut_has_slots_after_all_groups() {
        let config = config("a", &["b"], "distribute = 4");
        let names: Vec<_> = config.groups.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["all", "all/0", "all/1", "all/2", "all/3"]);
        let slots = [1, 2, 3, 4].map(GroupId);
        assert_eq!(config.groups[0].slots, slots);
        assert!(
            config.groups[1..]
                .iter()
                .all(|it| it.part_of == Some(GroupId(0)))
        );
    }

    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

    /// By slot: the units that are alive, in the order in which they are to have it. Each unit
    /// works out its own priorities.
    fn table(units: &[&str], settings: &str) -> Vec<Vec<String>> {
        let configs: Vec<Config> = (units.iter())
            .map(|own| {
                let others: Vec<&str> = units.iter().copied().filter(|it| it != own).collect();
                config(own, &others, settings)
            })
            .collect();
        let slots = configs[0].groups.len() - 1;
        (1..=slots)
            .map(|slot| {
                let of = |unit: &usize| Reverse(configs[*unit].groups[slot].priority);
                let mut order: Vec<usize> = (0..units.len()).collect();
                order.sort_by_key(of);
                let two = order.windows(2);
                two.for_each(|two| assert_ne!(of(&two[0]), of(&two[1]), "one owner"));
                assert_eq!(of(&order[0]), Reverse(Some(OWN)));
                order.into_iter().map(|it| units[it].to_owned()).collect()
            })
            .collect()
    }

    /// How many slots each of the units has while these are gone.
    fn shares_of(table: &[Vec<String>], units: &[&str], gone: &[&str]) -> Vec<usize> {
        let owner = |order: &Vec<String>| {
            let mut alive = order.iter().filter(|it| !gone.contains(&it.as_str()));
            alive.next().cloned()
        };
        let owners: Vec<_> = table.iter().filter_map(owner).collect();
        let of = |unit: &&str| owners.iter().filter(|it| it == unit).count();
        units.iter().map(of).collect()
    }

    /// All units agree on an order for each slot, and each has its share; so have those that are
    /// left when one dies.
    #[test]
    fn the_units_share_the_slots() {
        for units in 2..=NAMES.len() {
            let units = &NAMES[..units];
            let table = table(units, "distribute = 24");
            let shares = shares_of(&table, units, &[]);
            let (least, most) = (24 / units.len(), 24_usize.div_ceil(units.len()));
            assert!(
                shares.iter().all(|it| (least..=most).contains(it)),
                "{shares:?}"
            );
            for gone in units {
                let left: Vec<&str> = units.iter().copied().filter(|it| it != gone).collect();
                let shares = shares_of(&table, &left, &[gone]);
                let fair = 24 / left.len();
                let spread = shares.iter().all(|it| (fair - 1..=fair + 2).contains(it));
                assert!(spread, "{shares:?} without {gone}");
            }
        }
    }

    #[test]
    fn a_unit_with_twice_the_weight_has_twice_the_slots() {
        let units = ["a", "b", "c", "d"];
        let text = "distribute = 16\nweights = [\"a:2\", \"d:0\"]";
        let table = table(&units, text);
        assert_eq!(shares_of(&table, &units, &[]), [8, 4, 4, 0]);
        assert_eq!(shares_of(&table, &units, &["a"]), [0, 8, 8, 0]);
        let shares = shares_of(&table, &units, &["b"]);
        assert!((10..=11).contains(&shares[0]), "{shares:?}");
        assert_eq!(shares[3], 0, "it is not needed");
        assert_eq!(shares_of(&table, &units, &["a", "b"]), [0, 0, 16, 0]);
        assert_eq!(shares_of(&table, &units, &["a", "b", "c"]), [0, 0, 0, 16]);
        // Where nobody has weight, all are alike.
        let text = "distribute = 16\nweights = [\"a:0\", \"b:0\"]";
        assert_eq!(
            shares_of(&self::table(&["a", "b"], text), &["a", "b"], &[]),
            [8, 8]
        );
    }

    /// When a unit comes or goes, or another weight is given, not much more than the difference
    /// changes hands.
    #[test]
    fn few_slots_move_when_a_unit_comes() {
        const SLOTS: usize = 24;
        for units in 2..NAMES.len() {
            let (few, more) = (&NAMES[..units], &NAMES[..=units]);
            let [before, after] = [few, more].map(|units| table(units, "distribute = 24"));
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(a, b)| a[0] != b[0])
                .count();
            let least = SLOTS / (units + 1);
            assert!(
                moved <= 2 * least + 2,
                "{moved} of {SLOTS} for {least}, {units} units"
            );
        }
        let text = |weight| format!("distribute = 24\nweights = [\"a:{weight}\"]");
        let [before, after] = [1, 2].map(|weight| table(&NAMES[..3], &text(weight)));
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(a, b)| a[0] != b[0])
            .count();
        assert!((4..=8).contains(&moved), "{moved} for 4");
    }

    /// The table in docs/active-active.md.
    #[test]
    fn the_table_of_the_docs() {
        let units = ["gw-a", "gw-b", "gw-c"];
        let row = |text: &str| {
            let table = table(&units, text);
            let of = |unit: &&str| {
                let slots = (0..table.len()).filter(|slot| table[*slot][0] == **unit);
                slots
                    .map(|slot| slot.to_string())
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            units.iter().map(of).collect::<Vec<_>>()
        };
        for (settings, wanted) in [
            ("", ["0 4 8 10 15", "1 6 11 12 13 14", "2 3 5 7 9"]),
            (
                "weights = [\"gw-a:2\"]",
                ["0 4 5 8 10 13 14 15", "1 6 11 12", "2 3 7 9"],
            ),
            (
                "weights = [\"gw-c:0\"]",
                ["3 4 5 7 8 9 10 15", "0 1 2 6 11 12 13 14", ""],
            ),
        ] {
            assert_eq!(row(&format!("distribute = 16\n{settings}")), wanted);
        }
    }

    #[test]
    fn mistakes_in_weights_are_told() {
        for (settings, wanted) in [
            ("weights = [\"a:2\"]", "no effect without `distribute`"),
            (
                "distribute = 4\nweights = [\"a:2\", \"a:3\"]",
                "a second weight of `a`",
            ),
            (
                "distribute = 4\nweights = [\"a:101\"]",
                "`a:101` is not a unit with its weight",
            ),
            (
                "distribute = 4\nweights = [\"a\"]",
                "`a` is not a unit with its weight",
            ),
        ] {
            let found = read("a", &["b"], settings).unwrap_err();
            assert!(found.contains(wanted), "{wanted}: {found}");
        }
        let text = text("a", &["b"], "distribute = 4\nweights = [\"x:2\"]");
        let (_, warnings) = parse(Path::new("a.toml"), &text).unwrap();
        assert_eq!(warnings[0].message, "there is no unit `x`");
    }
}
