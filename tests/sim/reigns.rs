//! Who was primary of which group under which term, over a whole run.

use std::collections::BTreeMap;
use std::time::Duration;

use tandemgw_core::flow::GroupId;
use tandemgw_core::gateway::{Gateway, Role};
use tandemgw_core::time::Time;

use crate::setup::NAMES;
use crate::turn::{HOLD, Turn};
use crate::world::World;

/// A unit that wins against a higher term has a higher one after this time.
const RISES_WITHIN: Duration = Duration::from_millis(1600);
/// Times of packets are known to a tick, and told with another one.
const SLACK: Duration = Duration::from_millis(400);

/// Records of all reigns since the start of the world.
#[derive(Debug, Default)]
pub struct Reigns {
    /// By group and term: the unit that was primary.
    owners: BTreeMap<(usize, u64), usize>,
    /// By group and unit: the term of its last reign in this process.
    last: BTreeMap<(usize, usize), u64>,
    /// Contests that were decided: how many.
    pub contests: u64,
    /// Group, unit, the term that it must rise above, and until when.
    risings: Vec<(usize, usize, u64, Time)>,
    /// By unit and group: when it forwarded an answer last, and a request.
    carried: BTreeMap<(usize, usize), [Time; 2]>,
    /// By two units: the last time in which they did not hear each other.
    apart: BTreeMap<(usize, usize), Apart>,
}

/// A time in which two units did not hear each other.
#[derive(Debug)]
struct Apart {
    since: Time,
    /// When it ended, and by group what the first and the second unit carried in it.
    ended: Option<(Time, Vec<[Work; 2]>)>,
}

/// The traffic of a unit in a group during some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Nothing,
    /// Something, or it is not certain.
    Some,
    /// Packets in both directions, for certain.
    BothWays,
}

/// The role of a unit in a group, and the highest term that it knows.
fn reign(gateway: &Gateway, now: Time, group: usize) -> (Role, u64) {
    let id = GroupId(group as u8);
    let cluster = gateway.cluster().expect("a cluster");
    let view = cluster.ha().group(now, id).expect("a group");
    (view.role, view.term)
}

impl World {
    /// A process that starts remembers no reign of its own.
    pub fn forget_reigns(&mut self, unit: usize) {
        self.reigns.last.retain(|(_, owner), _| *owner != unit);
        // What another process of it has won binds this one to nothing.
        let risings = &mut self.reigns.risings;
        risings.retain(|(_, winner, ..)| *winner != unit);
    }

    /// After a turn: a term has one owner, terms rise from reign to reign, and who yields in a
    /// contest has the lower claim. `before` is what the unit knew of each group before the turn.
    pub fn check_reigns(&mut self, turn: &Turn, before: &[(Role, u64)]) {
        for (group, (old_role, old_term)) in before.iter().enumerate() {
            let (role, term) = reign(&turn.gateway, turn.now, group);
            let unit = turn.unit;
            if role == Role::Primary {
                let owner = *self.reigns.owners.entry((group, term)).or_insert(unit);
                assert_eq!(
                    owner, unit,
                    "term {term} of group {group} belongs to {} and {}",
                    NAMES[owner], NAMES[unit]
                );
            }
            if role == Role::Primary && *old_role == Role::Standby {
                assert!(
                    term > *old_term,
                    "{} takes over with term {term}, and knew {old_term}",
                    NAMES[unit]
                );
                // Its traffic in an earlier reign does not count in this one.
                self.reigns.carried.remove(&(unit, group));
                let last = self.reigns.last.insert((group, unit), term);
                assert!(last < Some(term), "the terms of {} fall", NAMES[unit]);
            }
            if *old_role == Role::Primary && role == Role::Standby && !turn.resumed {
                self.check_contest(turn, group, *old_term);
            }
        }
    }

    /// A unit that ends its reign because it hears of another one: that has the higher claim.
    fn check_contest(&mut self, turn: &Turn, group: usize, lost: u64) {
        let id = GroupId(group as u8);
        let view = turn
            .gateway
            .cluster()
            .and_then(|c| c.ha().group(turn.now, id));
        let winner = view.and_then(|view| view.primary).map(str::to_owned);
        let winner = NAMES
            .iter()
            .position(|name| Some(*name) == winner.as_deref());
        let Some(winner) = winner.filter(|winner| self.is_primary(*winner, group)) else {
            return;
        };
        if why_standby(turn).is_some_and(|why| why.starts_with("the witness says")) {
            // They do not hear each other.
            return;
        }
        let Some(gateway) = &self.units[winner].gateway else {
            return;
        };
        let (_, won) = reign(gateway, self.local_time(winner), group);
        self.reigns.contests += 1;
        self.check_claims(turn, group, winner);
        // One whose term carried nothing yields to a lower one, which then rises above it.
        if won <= lost {
            let until = self.now + RISES_WITHIN;
            self.reigns.risings.push((group, winner, lost, until));
        }
    }

    /// Who carried sessions while two units were apart has a higher claim than who carried none,
    /// whatever the terms.
    fn check_claims(&self, turn: &Turn, group: usize, winner: usize) {
        let loser = turn.unit;
        let by_contest = format!("{} is primary, term", NAMES[winner]);
        if why_standby(turn).is_none_or(|why| !why.starts_with(&by_contest)) {
            return;
        }
        let apart = self
            .reigns
            .apart
            .get(&(loser.min(winner), loser.max(winner)));
        let Some((ended, work)) = apart.and_then(|apart| apart.ended.as_ref()) else {
            return;
        };
        // Two that both think that they are the better one go by the terms after this time.
        if self.now.since(*ended) > HOLD * 2 || self.primaries(group) != [winner] {
            return;
        }
        let [first, second] = work[group];
        let (lost, won) = match loser < winner {
            true => (first, second),
            false => (second, first),
        };
        assert!(
            (lost, won) != (Work::BothWays, Work::Nothing),
            "{} carried sessions of group {group} and yields to {}, which carried none",
            NAMES[loser],
            NAMES[winner]
        );
    }

    /// `unit` has forwarded a packet of `group`: a request, or an answer.
    pub fn note_carried(&mut self, unit: usize, group: usize, asks: bool) {
        let now = self.now;
        let carried = self.reigns.carried.entry((unit, group));
        carried.or_insert([Time::ZERO; 2])[usize::from(asks)] = now;
    }

    /// Records which units hear each other.
    pub fn note_apart(&mut self) {
        for one in 0..self.shape.units {
            for other in one + 1..self.shape.units {
                let key = (one, other);
                let known = self.reigns.apart.get(&key);
                let is_apart = known.is_some_and(|it| it.ended.is_none());
                match (self.hear_each_other(one, other), is_apart) {
                    (false, false) => {
                        let since = self.now;
                        let ended = None;
                        self.reigns.apart.insert(key, Apart { since, ended });
                    }
                    (true, true) => {
                        let since = known.map_or(self.now, |it| it.since);
                        let work = (0..self.shape.all_groups())
                            .map(|group| [one, other].map(|unit| self.work(unit, group, since)));
                        let ended = Some((self.now, work.collect()));
                        self.reigns.apart.insert(key, Apart { since, ended });
                    }
                    _ => {}
                }
            }
        }
    }

    fn work(&self, unit: usize, group: usize, since: Time) -> Work {
        let Some(sides) = self.reigns.carried.get(&(unit, group)) else {
            return Work::Nothing;
        };
        if sides.iter().all(|at| *at > since + HOLD + SLACK) {
            Work::BothWays
        } else if sides.iter().any(|at| *at + SLACK > since) {
            Work::Some
        } else {
            Work::Nothing
        }
    }

    /// Who has won against a higher term has a higher one by now.
    pub fn check_risings(&mut self) {
        let now = self.now;
        let due = self
            .reigns
            .risings
            .extract_if(.., |(.., until)| *until <= now);
        for (group, winner, lost, _) in due.collect::<Vec<_>>() {
            let Some(gateway) = &self.units[winner].gateway else {
                continue;
            };
            let (role, term) = reign(gateway, self.local_time(winner), group);
            assert!(
                role == Role::Standby || term > lost,
                "{} has won against term {lost} and stays at {term}",
                NAMES[winner]
            );
        }
    }

    /// The role of the unit in each group, and the highest term that it knows.
    pub fn reigns_of(&self, turn: &Turn) -> Vec<(Role, u64)> {
        (0..self.shape.all_groups())
            .map(|group| reign(&turn.gateway, turn.now, group))
            .collect()
    }
}

/// Why a unit became standby last.
fn why_standby(turn: &Turn) -> Option<&str> {
    let mut events = turn.gateway.cluster()?.ha().events();
    let last = events.rfind(|it| it.what.starts_with("standby of"));
    last.map(|it| it.why.as_str())
}
