//! Who was primary of which group under which term, over a whole run.

use std::collections::BTreeMap;
use std::time::Duration;

use tandemgw_core::flow::GroupId;
use tandemgw_core::gateway::{Gateway, Role};
use tandemgw_core::time::Time;

use crate::setup::NAMES;
use crate::turn::Turn;
use crate::world::World;

/// A unit that wins against a higher term has a higher one after this time.
const RISES_WITHIN: Duration = Duration::from_millis(500);

/// What was seen of all reigns since the start of the world.
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
    }

    /// After a turn: a term has one owner, terms rise from reign to reign, and who yields in a contest
    /// has the lower claim. `before` is what the unit knew of each group before the turn.
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
        let Some(gateway) = &self.units[winner].gateway else {
            return;
        };
        let (_, won) = reign(gateway, self.local_time(winner), group);
        self.reigns.contests += 1;
        // One whose term carried nothing yields to a lower one, which then rises above it.
        if won <= lost {
            let until = self.now + RISES_WITHIN;
            self.reigns.risings.push((group, winner, lost, until));
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
        (0..self.shape.groups)
            .map(|group| reign(&turn.gateway, turn.now, group))
            .collect()
    }
}
