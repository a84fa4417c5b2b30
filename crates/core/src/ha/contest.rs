//! Two primaries that hear each other: who stays.
//!
//! Both were primary while they did not hear each other, and the one whose reign was worth more
//! stays: sessions went through it, or others followed it, in that time. The higher term decides
//! only if both were worth the same. So a unit that was cut off from everything and promoted itself
//! steps down when it comes back, whatever its term.
//!
//! Each unit judges its own reign, once, when it first hears the other, and reports the result in
//! its heartbeats. Both compare the same two reports, so they agree, whenever each of them judges.

use std::cmp::Ordering;

use super::election::State;
use super::heartbeat::{self, MAX_TERM, Worth};
use super::order;
use super::peer::ElectionPeer;
use super::{Ha, Output};
use crate::flow::{GroupId, PeerId};
use crate::time::{Tick, Time};

/// Another primary that is heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rivalry {
    since: Time,
    /// The worth of this unit's reign until then.
    pub worth: Worth,
    /// This unit stays primary, according to both reports.
    won: bool,
}

impl Ha {
    /// Two primaries that hear each other: one steps down.
    pub(super) fn contest(&mut self, now: Time, group: usize, peer: PeerId) {
        let rivalry = self.rivalry_with(now, group, peer);
        let Some(verdict) = self.verdict(now, group, peer, &rivalry) else {
            return;
        };
        if verdict == Ordering::Less {
            return self.yield_to(now, group, peer);
        }
        if rivalry.won {
            return;
        }
        self.groups[group].rivalry = Some(Rivalry {
            won: true,
            ..rivalry
        });
        // Otherwise the term decides.
        let rival = &self.peers[peer.index()].groups[group];
        let theirs = rival.term;
        let by_worth = rival.worth.is_some_and(|worth| rivalry.worth > worth);
        if by_worth && theirs >= self.groups[group].term && theirs < MAX_TERM {
            self.rise_above(group, theirs);
        }
        self.urgent = true;
        self.push_output(Output::Announce {
            group: GroupId(group as u8),
        });
    }

    /// Whether this unit has the higher claim; `None` while the other one has not reported the
    /// worth of its reign.
    fn verdict(
        &self,
        now: Time,
        group: usize,
        peer: PeerId,
        rivalry: &Rivalry,
    ) -> Option<Ordering> {
        let rival = &self.peers[peer.index()];
        let theirs = &rival.groups[group];
        let by_worth = theirs.worth.map(|worth| rivalry.worth.cmp(&worth));
        let by_term = self.groups[group].term.cmp(&theirs.term);
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
        // A rival that does not hear this unit never reports anything; then terms decide. If both
        // think that they are the better one, their names do.
        match now >= rivalry.since + self.hold() * 2 {
            false => by_worth.map(|worth| worth.then(by_term).then_with(by_rank)),
            true => {
                let by_worth = by_worth.unwrap_or(Ordering::Equal);
                Some(by_worth.then(by_term).then(rival.name.cmp(&self.name)))
            }
        }
    }

    /// Primary without a rival: a unit that was primary with a higher term stepped down before this
    /// one heard of it. Others compare terms, so this unit takes a higher one.
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

    /// The rivalry with `peer`; begins now if there is none.
    fn rivalry_with(&mut self, now: Time, group: usize, peer: PeerId) -> Rivalry {
        if let Some(rivalry) = self.groups[group].rivalry {
            return rivalry;
        }
        let rival = &self.peers[peer.index()];
        let worth = self.worth_beside(now, group, rival);
        let state = &self.groups[group];
        let what = format!("{} is primary of {} too", rival.name, state.name);
        let terms = format!(
            "its term is {}; ours is {}",
            rival.groups[group].term, state.term
        );
        let why = match worth.carried || worth.followed {
            true => format!("{terms}, and carried sessions or was followed meanwhile"),
            false => format!("{terms}, and carried nothing and was not followed meanwhile"),
        };
        self.events.warn(now, what, why);
        // The other one judges when it learns this.
        self.urgent = true;
        let rivalry = Rivalry {
            since: now,
            worth,
            won: false,
        };
        self.groups[group].rivalry = Some(rivalry);
        rivalry
    }

    /// The worth of this unit's reign since the rival can have been primary beside it.
    fn worth_beside(&self, now: Time, group: usize, rival: &ElectionPeer) -> Worth {
        let state = &self.groups[group];
        // The traffic before they lost each other does not count. If that was just now, or the
        // rival was heard all the time, the last moments count.
        let alone = rival.not_primary[group] + self.hold_of(rival);
        let recent = Time::ZERO + now.since(Time::ZERO).saturating_sub(self.hold());
        let since = alone.min(recent).max(state.since);
        // It is known to the tick.
        let carried_until = |at: Time| at + Tick::DURATION;
        Worth {
            carried: state.carried.is_some_and(|at| carried_until(at) > since),
            followed: state.followed.is_some_and(|at| at > since),
        }
    }

    /// Notes whether a peer follows this unit. One that has only just begun to, because it hears
    /// two primaries, proves nothing about the worth of the reign.
    pub(super) fn note_followers(&mut self, now: Time, group: usize) {
        let own = heartbeat::hash(&self.name);
        let mut peers = self.peers.iter();
        let is_followed = peers.any(|peer| peer.alive && peer.groups[group].sees == own);
        let hold = self.hold();
        let state = &mut self.groups[group];
        let since = state.followed_since.unwrap_or(now);
        state.followed_since = is_followed.then_some(since);
        if is_followed && now.since(since) >= hold {
            state.followed = Some(now);
        }
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
