//! Two primaries that hear each other: who stays.
//!
//! Both were primary while they did not hear each other, and the one whose term mattered stays: sessions
//! went through it, or others followed it, in that time. Only then does the higher term decide. So a unit
//! that was cut off from everything and promoted itself yields when it comes back, whatever its term.

use std::cmp::Ordering;
use std::time::Duration;

use super::election::State;
use super::heartbeat::{Ago, GroupState, MAX_TERM};
use super::order;
use super::{Ha, Output};
use crate::flow::{GroupId, PeerId};
use crate::time::Time;

/// Another primary that is heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rivalry {
    since: Time,
    /// How this unit's standing compares, as of when the other one was first heard.
    standing: Ordering,
}

/// What a term was worth while two units did not hear each other. The greater one stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    /// Sessions went through the unit in both directions.
    carried: bool,
    /// Another unit followed it.
    followed: bool,
}

impl Standing {
    fn new(state: &GroupState, apart: Duration) -> Standing {
        let since = |ago: Ago| ago.is_within(apart);
        Standing {
            carried: since(state.carried),
            followed: since(state.followed),
        }
    }
}

impl Ha {
    /// Two primaries that hear each other: one steps down.
    pub(super) fn contest(&mut self, now: Time, group: usize, peer: PeerId) {
        let rivalry = self.rivalry_with(now, group, peer);
        let is_new = rivalry.since == now;
        let rival = &self.peers[peer.index()];
        let state = &self.groups[group];
        let (mine, theirs) = (state.term, rival.groups[group].term);
        let by_rank = || {
            let pair = [
                self.own_candidate(now, group),
                self.candidate(now, group, peer),
            ];
            match order::best(&pair) {
                Some(1) => Ordering::Less,
                _ => Ordering::Greater,
            }
        };
        // If both think that they are the better one, terms and names decide.
        let verdict = match now >= rivalry.since + self.hold() * 2 {
            true => mine.cmp(&theirs).then(rival.name.cmp(&self.name)),
            false => (rivalry.standing)
                .then(mine.cmp(&theirs))
                .then_with(by_rank),
        };
        if verdict == Ordering::Less {
            // A claim of a lower term may be an old heartbeat that was held up on its way: a unit that has
            // yielded meanwhile does not repeat it.
            if mine > theirs && now < rivalry.since + self.interval * 2 {
                return;
            }
            return self.yield_to(now, group, peer);
        }
        // Others go by the term.
        if is_new && theirs >= mine && theirs < MAX_TERM && rivalry.standing == Ordering::Greater {
            self.rise_above(group, theirs);
        }
        if is_new {
            self.urgent = true;
            self.push_output(Output::Announce {
                group: GroupId(group as u8),
            });
        }
    }

    /// Primary without a rival: a unit that was primary with a higher term has yielded before this one
    /// heard of it. Others go by the term, so this one takes a higher one.
    pub(super) fn rise_above_yielded(&mut self, group: usize) {
        if self.groups[group].handover.is_some() {
            return;
        }
        let mine = self.groups[group].term;
        let alive = self.peers.iter().filter(|peer| peer.alive);
        let known = alive.map(|peer| peer.groups[group].term).max();
        if let Some(theirs) = known.filter(|theirs| *theirs > mine && *theirs < MAX_TERM) {
            self.rise_above(group, theirs);
        }
    }

    fn rise_above(&mut self, group: usize, theirs: u64) {
        let term = self.term_above(theirs, &self.name);
        self.groups[group].term = term;
        self.urgent = true;
        self.push_output(Output::Reassert {
            group: GroupId(group as u8),
            term,
        });
    }

    /// The rivalry with `peer`, which begins now if it is not under way.
    fn rivalry_with(&mut self, now: Time, group: usize, peer: PeerId) -> Rivalry {
        if let Some(rivalry) = self.groups[group].rivalry {
            return rivalry;
        }
        let rival = &self.peers[peer.index()];
        // What happened before they lost each other says nothing of the time after.
        let apart = rival.away.saturating_sub(self.hold_of(rival));
        let (mine, theirs) = (self.group_state(now, group), &rival.groups[group]);
        let standing = Standing::new(&mine, apart).cmp(&Standing::new(theirs, apart));
        let what = format!(
            "{} is primary of {} too",
            rival.name, self.groups[group].name
        );
        let worth = match standing {
            Ordering::Less => ", which carried sessions or was followed meanwhile",
            Ordering::Equal => "",
            Ordering::Greater => ", which carried nothing and was not followed meanwhile",
        };
        let why = format!("its term is {}{worth}; ours is {}", theirs.term, mine.term);
        self.events.warn(now, what, why);
        let rivalry = Rivalry {
            since: now,
            standing,
        };
        self.groups[group].rivalry = Some(rivalry);
        rivalry
    }

    fn yield_to(&mut self, now: Time, group: usize, peer: PeerId) {
        let rival = &self.peers[peer.index()];
        let theirs = rival.groups[group].term;
        let why = format!("{} is primary, term {theirs}", rival.name);
        self.step_down(now, group, why);
        let state = &mut self.groups[group];
        debug_assert_ne!(state.state, State::Primary);
        state.term = state.term.max(theirs);
        state.ready = false;
        state.primary = Some(peer);
        self.push_output(Output::Resync {
            group: GroupId(group as u8),
            from: peer,
        });
    }
}
