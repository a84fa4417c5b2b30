//! Which units hold the sessions of a group, where not all do (`copies`).
//!
//! The first ones, in an order that follows from their heartbeats, so that all units can work it
//! out: those that could serve hosts; for a slot, the primary of the whole group; then those not in
//! maintenance, with more ports up, of a higher priority (for a slot that is its order of the
//! units), and of equal ones by rendezvous hashing. So the unit that would take over is among them,
//! and few groups get other holders when a unit comes or goes.

use std::cmp::Reverse;
use std::time::Duration;

use super::election::State;
use super::order::Candidate;
use super::{Ha, HandoverError, Output};
use crate::config;
use crate::evidence::Holders;
use crate::flow::{GroupId, PeerId};
use crate::time::Time;

/// A unit that is silent for longer is no holder: another one takes its place. Shorter silence
/// does not move sessions about.
const GONE_AFTER: Duration = Duration::from_secs(1);
/// How long a group waits for a unit that is to get its sessions, and then the group.
const INVITED_FOR: Duration = Duration::from_secs(60);
/// How long a unit that holds nothing leaves a group without a primary to those that hold it.
const HOLDERS_FIRST: Duration = Duration::from_secs(5);

impl Ha {
    /// Sets how many peers hold each group beside its primary; 0 means all.
    pub(crate) fn set_copies(&mut self, now: Time, copies: u8) {
        if std::mem::replace(&mut self.copies, copies) != copies {
            self.evaluate_all(now);
            self.flush(now);
        }
    }

    /// As primary, tells replication who is to hold the group, whenever that changes.
    pub(super) fn choose_holders(&mut self, now: Time, group: usize) {
        let chosen = match self.copies {
            0 => Holders::All,
            copies => Holders::Of {
                peers: (self.chosen(now, group, None).into_iter().flatten())
                    .chain(self.groups[group].heir())
                    .collect(),
                copies: u32::from(copies),
            },
        };
        if std::mem::replace(&mut self.groups[group].holders, chosen) != chosen {
            self.push_output(Output::Holders {
                group: GroupId(group as u8),
                holders: chosen,
            });
        }
    }

    /// Whether a peer, or this unit, holds the sessions of a group, or is to hold them, or is its
    /// primary. Without a primary, all are to hold them.
    pub(crate) fn is_holder(&self, now: Time, group: GroupId, unit: Option<PeerId>) -> bool {
        let index = usize::from(group.0);
        let Some(state) = self.groups.get(index) else {
            return false;
        };
        let says = match unit {
            None => state.ready,
            // A peer that a reload adds comes into the election a moment later.
            Some(peer) => self
                .peers
                .get(peer.index())
                .is_some_and(|peer| peer.alive && peer.groups[index].ready),
        };
        self.copies == 0 || says || self.is_chosen(now, index, unit)
    }

    /// Whether a unit is one of the first by rank, or is the primary.
    fn is_chosen(&self, now: Time, group: usize, unit: Option<PeerId>) -> bool {
        let primary = match self.groups[group].state {
            State::Primary if unit.is_some() && self.groups[group].heir() == unit => return true,
            State::Primary => None,
            _ => match self.alive_primary(group) {
                Some(peer) => Some(peer),
                None => return true,
            },
        };
        unit == primary || self.chosen(now, group, primary).contains(&unit)
    }

    /// The units that are to hold a group beside this primary; this unit is `None`.
    fn chosen(&self, now: Time, group: usize, primary: Option<PeerId>) -> Vec<Option<PeerId>> {
        let all = self.known_places().map(Some).chain([None]);
        let others = all.filter(|unit| *unit != primary);
        let ranked = others.filter_map(|unit| Some((self.standing(now, group, unit)?, unit)));
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_unstable_by(|one, other| other.0.cmp(&one.0));
        ranked.truncate(usize::from(self.copies));
        ranked.into_iter().map(|(_, unit)| unit).collect()
    }

    /// What ranks a unit among those that could hold a group; the highest come first. None if it
    /// is not there.
    fn standing(&self, now: Time, group: usize, unit: Option<PeerId>) -> Option<impl Ord> {
        let candidate: Candidate<'_> = match unit {
            None => self.own_candidate(now, group),
            Some(id) => {
                let peer = self.peers.get(id.index())?;
                let heard = peer.link_heard.is_some_and(|at| now.since(at) < GONE_AFTER);
                let is_there = peer.linked || heard && !peer.goodbye && !peer.ended;
                if !is_there || !peer.groups[group].known {
                    return None;
                }
                self.candidate(now, group, id)
            }
        };
        let can_serve = self.can_serve(candidate.ports_up);
        let score = config::score(candidate.name, &self.groups[group].name);
        Some((
            (can_serve, self.gathers(group, unit), !candidate.maintenance),
            (candidate.ports_up, candidate.priority),
            (score, Reverse(candidate.name)),
        ))
    }

    /// Whether a unit is primary of the whole group that a slot is a part of: it gets the slot if
    /// no link leads to it (see `handover.rs`), and must have the sessions by then.
    fn gathers(&self, group: usize, unit: Option<PeerId>) -> bool {
        let Some(whole) = self.groups[group].part_of.map(|whole| usize::from(whole.0)) else {
            return false;
        };
        match self.groups[whole].state {
            State::Primary => unit.is_none(),
            _ => unit.is_some() && unit == self.alive_primary(whole),
        }
    }

    /// Makes a peer that holds nothing of a group one of its holders, and hands the group over to
    /// it when it has all, if that is within [`INVITED_FOR`].
    pub(super) fn invite(&mut self, now: Time, group: usize, peer: PeerId) {
        self.groups[group].invited = Some((peer, now + INVITED_FOR));
        let name = &self.groups[group].name;
        let what = format!(
            "{} gets the sessions of {name}",
            self.peers[peer.index()].name
        );
        let why = "it was asked for, and held none: it is primary when it has them";
        self.events.info(now, what, why);
        self.evaluate_all(now);
    }

    /// Hands a group over to the peer that was invited, when it has all; gives it up if that does
    /// not come about.
    pub(super) fn follow_invitation(&mut self, now: Time, group: usize) {
        let Some((to, until)) = self.groups[group].invited else {
            return;
        };
        let peer = &self.peers[to.index()];
        match self.could_keep(group, to) {
            Ok(()) => self.start_handover(now, group, to, "requested", true),
            Err(_) if !peer.linked => {
                let why = format!("{} is lost", peer.name);
                self.end_invitation(now, group, &why);
            }
            Err(why) if now >= until => {
                let within = INVITED_FOR.as_secs();
                let why = format!(
                    "{} did not get the sessions in {within} s: {why}",
                    peer.name
                );
                self.end_invitation(now, group, &why);
            }
            Err(_) => {}
        }
    }

    /// No peer is waited for any more, if one was.
    pub(super) fn end_invitation(&mut self, now: Time, group: usize, why: &str) {
        let Some((to, until)) = self.groups[group].invited.take() else {
            return;
        };
        let left = until.since(now);
        self.push_output(Output::HandoverDone {
            group: GroupId(group as u8),
            to,
            took: INVITED_FOR.saturating_sub(left),
            result: Err(HandoverError::Failed(why.to_owned())),
        });
    }

    /// Whether a peer gets the sessions of a group, to be handed the group then.
    pub(crate) fn is_inviting(&self, group: GroupId) -> bool {
        let state = self.groups.get(usize::from(group.0));
        state.is_some_and(|state| state.invited.is_some())
    }

    /// Until when this unit, which does not hold a group, leaves it to a living unit that does.
    pub(super) fn holders_first(&self, group: usize, since: Time) -> Option<Time> {
        if self.copies == 0 || self.groups[group].ready {
            return None;
        }
        let could = |peer: &super::ElectionPeer| {
            peer.alive && peer.groups[group].ready && self.can_serve(peer.ports_up)
        };
        let held = self.peers.iter().any(could);
        held.then_some(since + HOLDERS_FIRST)
    }
}
