//! Planned handover: a group moves to a peer that holds all of its sessions, and none is lost.
//!
//! The peer becomes primary when it has applied everything that was sent before the message. Until
//! this unit learns of that it stays primary; then it forwards stragglers for a while.

use std::fmt;
use std::iter::repeat;
use std::time::Duration;

use super::election::State;
use super::heartbeat;
use super::order;
use super::peer::ElectionPeer;
use super::{Ha, Leaving, Output, Takeover};
use crate::evidence::{Holding, SyncState};
use crate::flow::{GroupId, PeerId};
use crate::time::Time;

/// A handover that waits for the peer.
#[derive(Clone, Debug)]
pub(super) struct Handover {
    pub deadline: Time,
    pub to: PeerId,
    term: u64,
    started: Time,
    by_operator: bool,
}

/// Why a planned handover does not begin, or has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandoverError {
    /// There is no `[ha]`.
    Standalone,
    /// The group does not exist.
    NoSuchGroup,
    /// Only the primary can hand a group over.
    NotPrimary {
        /// The name of this unit.
        unit: String,
        /// The name of the group.
        group: String,
    },
    /// Another handover of this group has not ended.
    UnderWay(String),
    /// No peer can take over, each for a reason of its own.
    NoPeer(Vec<HandoverError>),
    /// The peer does not exist.
    NoSuchPeer,
    /// The peer of this name is not alive.
    NotAlive(String),
    /// The peer of this name is heard only on the data ports.
    NoLink(String),
    /// The peer of this name is not ready to be primary.
    NotReady(String),
    /// The peer of this name has not confirmed that it holds the same sessions.
    NotEqual(String),
    /// The peer of this name is in maintenance, and so should stay standby.
    InMaintenance(String),
    /// The peer would give the group back at once.
    FewerPorts {
        /// The node name of that peer.
        peer: String,
        /// Monitored ports that it has up.
        up: u8,
        /// Those of this unit.
        own: u8,
    },
    /// It began, and was not completed.
    Failed(String),
}

impl fmt::Display for HandoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandoverError::Standalone => f.write_str("this gateway is standalone: it has no [ha]"),
            HandoverError::NoSuchGroup => f.write_str("there is no such group"),
            HandoverError::NotPrimary { unit, group } => {
                write!(f, "{unit} is not primary of {group}")
            }
            HandoverError::UnderWay(group) => write!(f, "a handover of {group} is under way"),
            HandoverError::NoPeer(reasons) => {
                f.write_str("no peer can take over")?;
                let lead = [": "].into_iter().chain(repeat("; "));
                lead.zip(reasons)
                    .try_for_each(|(lead, reason)| write!(f, "{lead}{reason}"))
            }
            HandoverError::NoSuchPeer => f.write_str("there is no such peer"),
            HandoverError::NotAlive(peer) => write!(f, "{peer} is not alive"),
            HandoverError::NoLink(peer) => write!(f, "no link to {peer} works"),
            HandoverError::NotReady(peer) => write!(f, "{peer} is not ready"),
            HandoverError::NotEqual(peer) => write!(
                f,
                "{peer} has not confirmed that it holds the same sessions"
            ),
            HandoverError::InMaintenance(peer) => write!(f, "{peer} is in maintenance"),
            HandoverError::FewerPorts { peer, up, own } => write!(
                f,
                "{peer} has fewer monitored ports up ({up}) than this unit ({own}), and would \
                 give it back"
            ),
            HandoverError::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for HandoverError {}

/// The time limit for the peer.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long stragglers are forwarded after it.
const DRAIN: Duration = Duration::from_secs(2);
/// The same for a unit that is shutting down.
const DRAIN_AT_EXIT: Duration = Duration::from_millis(500);
/// The time between a takeover and the next unrequested handover.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// The time between a failed handover and the next unrequested one.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How long a unit waits, beyond two hold times, for the unit that it leaves a group to.
const GIVEN: Duration = Duration::from_millis(500);
/// By then the old primary must have heard of the new one.
const EXPECTED: Duration = Duration::from_secs(1);

impl Ha {
    /// Starts a planned handover of `group`, to the best peer if `to` does not name one. A peer
    /// that is not to hold the group gets its sessions first. [`Output::HandoverDone`] reports the
    /// end.
    ///
    /// # Errors
    /// Why it can't start.
    pub fn request_failover(
        &mut self,
        now: Time,
        group: GroupId,
        to: Option<PeerId>,
    ) -> Result<(), HandoverError> {
        self.request(now, group, to, Ha::could_keep)
    }

    /// As [`Ha::request_failover`], even to a peer that lacks sessions or has ports down. It only
    /// has to be alive; sessions that it does not hold end.
    ///
    /// # Errors
    /// As for [`Ha::request_failover`].
    pub fn force_failover(
        &mut self,
        now: Time,
        group: GroupId,
        to: Option<PeerId>,
    ) -> Result<(), HandoverError> {
        self.request(now, group, to, Ha::is_reachable)
    }

    fn request(
        &mut self,
        now: Time,
        group: GroupId,
        to: Option<PeerId>,
        suits: fn(&Ha, usize, PeerId) -> Result<(), HandoverError>,
    ) -> Result<(), HandoverError> {
        let index = usize::from(group.0);
        let state = self.groups.get(index).ok_or(HandoverError::NoSuchGroup)?;
        if state.state != State::Primary {
            return Err(HandoverError::NotPrimary {
                unit: self.name.clone(),
                group: state.name.clone(),
            });
        }
        if state.handover.is_some() {
            return Err(HandoverError::UnderWay(state.name.clone()));
        }
        let to = match to {
            Some(peer) => match suits(self, index, peer) {
                Ok(()) => peer,
                Err(HandoverError::NotReady(_)) if !self.is_holder(now, group, to) => {
                    self.would_keep(peer)?;
                    self.invite(now, index, peer);
                    self.flush(now);
                    return Ok(());
                }
                Err(why) => return Err(why),
            },
            None => {
                let suits = |peer| suits(self, index, peer);
                let best = self.best_of(now, index, |peer| suits(peer).is_ok());
                best.ok_or_else(|| {
                    let peers = self.known_places();
                    HandoverError::NoPeer(peers.filter_map(|peer| suits(peer).err()).collect())
                })?
            }
        };
        self.start_handover(now, index, to, "requested", true);
        self.flush(now);
        Ok(())
    }

    /// A peer hands `group` over to this unit, which has applied everything that the peer sent
    /// before.
    ///
    /// Ignored, with an event, if it is out of date or this unit can't be primary.
    pub(crate) fn handle_handover(&mut self, now: Time, group: GroupId, from: PeerId, term: u64) {
        let index = usize::from(group.0);
        let (Some(state), Some(peer)) = (self.groups.get(index), self.peers.get(from.index()))
        else {
            return;
        };
        // It was asked twice, since a stream had ended.
        if state.state == State::Primary && term == state.term {
            return;
        }
        let newer = term > state.term || state.term == super::MAX_TERM;
        if state.state == State::Primary || !newer || !self.may_promote() {
            let what = format!("handover of {} refused", state.name);
            self.events
                .warn(now, what, format!("by {} with term {term}", peer.name));
            return;
        }
        let why = format!("handed over by {}", peer.name);
        self.promote(now, index, term, (Takeover::Handover, why));
        self.groups[index].expected = Some((from, now + EXPECTED));
        self.flush(now);
    }

    /// Hands over all groups, then says goodbye, then gives [`Output::Gone`].
    ///
    /// That takes a second at most for the handover, and half a second for stragglers.
    pub fn shut_down(&mut self, now: Time) {
        if self.leaving.is_some() {
            return;
        }
        self.leaving = Some(Leaving::HandingOver);
        self.events.info(now, "shutting down", "");
        for group in 0..self.groups.len() {
            let state = &self.groups[group];
            if state.state == State::Primary
                && state.handover.is_none()
                && let Some(to) = self.best_successor(now, group, |_| true)
            {
                self.start_handover(now, group, to, "shutting down", false);
            }
        }
        self.continue_leaving(now);
        self.flush(now);
    }

    pub(super) fn continue_leaving(&mut self, now: Time) {
        match self.leaving {
            Some(Leaving::HandingOver) if self.groups.iter().all(|g| g.handover.is_none()) => {
                let drains =
                    (0..self.groups.len()).any(|g| self.is_draining(now, GroupId(g as u8)));
                for group in 0..self.groups.len() {
                    if self.groups[group].state == State::Primary {
                        self.step_down(now, group, "shutting down".to_owned());
                    }
                }
                // Long enough for a second goodbye, in case the first is lost.
                let linger = match drains {
                    true => DRAIN_AT_EXIT,
                    false => (self.interval * 2).min(DRAIN_AT_EXIT / 10),
                };
                self.leaving = Some(Leaving::Goodbye(now + linger));
                self.urgent = true;
            }
            Some(Leaving::Goodbye(until)) if now >= until => {
                self.leaving = Some(Leaving::Gone);
                self.push_output(Output::Gone);
            }
            _ => {}
        }
    }

    /// Starts an unrequested handover, if another unit should have the group; fails one that takes
    /// too long.
    pub(super) fn plan_handover(&mut self, now: Time, group: usize) {
        if let Some(handover) = &self.groups[group].handover {
            let peer = &self.peers[handover.to.index()];
            if !peer.linked {
                let why = format!("{} is lost", peer.name);
                self.fail_handover(now, group, &why);
            } else if now >= handover.deadline {
                let why = format!("{} did not take over in time", peer.name);
                self.fail_handover(now, group, &why);
            }
            return;
        }
        self.follow_invitation(now, group);
        let state = &self.groups[group];
        let is_under_way = state.handover.is_some();
        if is_under_way || self.leaving.is_some() || now < state.handover_after {
            return;
        }
        let (ports_up, priority) = (self.ports_up, state.priority);
        let better_connected = |peer: PeerId| {
            let peer = &self.peers[peer.index()];
            // A unit in maintenance is still better than one that reaches nobody.
            peer.ports_up > ports_up && (!peer.maintenance || ports_up == 0)
        };
        let replaces = |peer: PeerId| {
            let peer = &self.peers[peer.index()];
            self.maintenance.is_some() && !peer.maintenance && self.can_serve(peer.ports_up)
        };
        let is_former = self.former_slots.contains(GroupId(group as u8));
        let gathers = |peer: PeerId| {
            let unit = &self.peers[peer.index()];
            // Otherwise this unit would get it back.
            if unit.maintenance || unit.ports_up < ports_up {
                return false;
            }
            let whole = self.groups[group].part_of.map(|it| usize::from(it.0));
            let whole = whole.filter(|whole| is_former && !self.has_other_part(*whole));
            whole.and_then(|whole| self.alive_primary(whole)) == Some(peer)
        };
        let overrides = |peer: PeerId| {
            let peer = &self.peers[peer.index()];
            let theirs = &peer.groups[group];
            let is_wanted = theirs.asks && !peer.maintenance;
            let is_higher = theirs.priority > priority && peer.ports_up >= ports_up;
            is_wanted && is_higher && !is_former
        };
        if let Some(to) = self.best_successor(now, group, replaces) {
            self.start_handover(now, group, to, "this unit is in maintenance", true);
        } else if let Some(to) = self.best_successor(now, group, better_connected) {
            self.start_handover(now, group, to, "it has more ports up", false);
        } else if let Some(to) = self.best_successor(now, group, gathers) {
            self.start_handover(now, group, to, "it can end the former slot", false);
        } else if let Some(to) = self.best_successor(now, group, overrides) {
            self.start_handover(now, group, to, "its priority is higher", false);
        } else if let Some(to) = self.better_off(now, group) {
            self.leave_to(now, group, to, "has more ports up");
        } else if let Some(to) = self.gatherer(group) {
            self.leave_to(now, group, to, "answers for the addresses");
            // If that fails, hosts can reach nothing behind another unit until it is repeated.
            let given = self.groups[group].given;
            self.groups[group].handover_after = given.map_or(now, |(_, until)| until);
        }
    }

    /// Whether this unit is primary of a group or one of its slots, but for former ones. Then it
    /// moves sessions out of those itself.
    fn has_other_part(&self, whole: usize) -> bool {
        let id = |group: usize| GroupId(group as u8);
        let is_part =
            |group: usize| group == whole || self.groups[group].part_of == Some(id(whole));
        let mut groups = 0..self.groups.len();
        groups.any(|group| {
            let is_own = self.groups[group].state == State::Primary;
            is_own && is_part(group) && !self.former_slots.contains(id(group))
        })
    }

    /// For a slot, the primary of the whole group if no link leads there: packets can't be passed
    /// on, so all that hosts send to one unit has to be served there.
    fn gatherer(&self, group: usize) -> Option<PeerId> {
        let whole = usize::from(self.groups[group].part_of?.0);
        let id = self.alive_primary(whole)?;
        let peer = &self.peers[id.index()];
        (!peer.linked && peer.groups[group].known).then_some(id)
    }

    /// The best of the peers that no link reaches and that have more ports up: nothing can be
    /// handed over to it, but hosts that this unit does not reach are better served there.
    fn better_off(&self, now: Time, group: usize) -> Option<PeerId> {
        self.best_of(now, group, |id| {
            let peer = &self.peers[id.index()];
            let state = &peer.groups[group];
            // With one port, nothing is forwarded here. With more, sessions count too.
            let is_worth_it = state.ready || self.ports_up <= 1;
            let is_heard = peer.alive && !peer.linked && state.known;
            let may = !peer.maintenance || self.ports_up == 0;
            is_heard && may && peer.ports_up > self.ports_up && is_worth_it
        })
    }

    /// Gives a group up in favour of a peer that is heard on data ports only.
    fn leave_to(&mut self, now: Time, group: usize, to: PeerId, why: &str) {
        let name = &self.peers[to.index()].name;
        let why = format!("{name} {why}, and no link leads there");
        self.step_down(now, group, why);
        let until = now + self.hold() * 2 + GIVEN;
        let state = &mut self.groups[group];
        state.given = Some((to, until));
        state.primary = Some(to);
        state.handover_after = until + PAUSE_AFTER_FAILURE;
    }

    /// The time until which this unit leaves `group` to another one, if it does.
    pub(super) fn given_until(&self, now: Time, group: usize) -> Option<Time> {
        let (to, until) = self.groups[group].given?;
        (now < until && self.peers[to.index()].alive).then_some(until)
    }

    /// A peer that leaves `group` to this unit.
    pub(super) fn giver(&self, group: usize) -> Option<PeerId> {
        let own = heartbeat::hash(&self.name);
        let gives = |peer: &ElectionPeer| {
            let state = &peer.groups[group];
            peer.alive && state.gives && state.sees == own
        };
        let index = self.peers.iter().position(gives)?;
        self.may_promote().then_some(PeerId(index as u8))
    }

    /// Whether a peer leaves `group` to another unit than this one, which may not be heard as
    /// primary yet. It says so for a while only, and not if the other one does not come.
    pub(super) fn is_left_to_another(&self, group: usize) -> bool {
        let own = heartbeat::hash(&self.name);
        self.peers.iter().any(|peer| {
            let state = &peer.groups[group];
            peer.alive && state.gives && state.sees != own
        })
    }

    /// Asks a peer again to take groups over whose handover may have been lost with a stream: both
    /// units hold the same again, as they did not `before`.
    pub(super) fn repeat_handovers(&mut self, peer: PeerId, before: SyncState) {
        let now_equal = self.peers[peer.index()].sync.equal;
        for index in 0..self.groups.len() {
            let group = GroupId(index as u8);
            let handover = self.groups[index].handover.as_ref();
            let is_again = now_equal.contains(group) && !before.equal.contains(group);
            if let Some(handover) = handover.filter(|it| is_again && it.to == peer) {
                let (to, term) = (handover.to, handover.term);
                self.push_output(Output::Handover { group, to, term });
            }
        }
    }

    /// Whether a handover in progress waits for `peer` to be primary.
    pub(super) fn completes_handover(&self, group: usize, peer: PeerId) -> bool {
        let theirs = self.peers[peer.index()].groups[group].term;
        let handover = self.groups[group].handover.as_ref();
        handover.is_some_and(|handover| handover.to == peer && theirs >= handover.term)
    }

    /// The peer has taken over.
    pub(super) fn complete_handover(&mut self, now: Time, group: usize, peer: PeerId) {
        let Some(handover) = self.groups[group].handover.take() else {
            return;
        };
        let ElectionPeer { name, ports_up, .. } = &self.peers[peer.index()];
        let was_worse = self.ports_up < *ports_up;
        let why = format!("handed over to {name}");
        let took = now.since(handover.started);
        self.groups[group].term = self.peers[peer.index()].groups[group].term;
        self.step_down(now, group, why);
        let state = &mut self.groups[group];
        state.given_away = handover.by_operator;
        if !handover.by_operator && was_worse {
            state.note_loss(now);
        }
        state.draining_until = Some(now + DRAIN);
        state.ready = true;
        state.primary = Some(peer);
        let group = GroupId(group as u8);
        self.push_output(Output::HandoverDone {
            group,
            to: peer,
            took,
            result: Ok(()),
        });
    }

    /// Ends a handover in progress, if there is one, without success.
    pub(super) fn fail_handover(&mut self, now: Time, group: usize, why: &str) {
        let state = &mut self.groups[group];
        let Some(handover) = state.handover.take() else {
            return;
        };
        state.handover_after = now + PAUSE_AFTER_FAILURE;
        self.events
            .warn(now, format!("handover of {} failed", state.name), why);
        let took = now.since(handover.started);
        let (group, to) = (GroupId(group as u8), handover.to);
        self.push_output(Output::HandoverDone {
            group,
            to,
            took,
            result: Err(HandoverError::Failed(why.to_owned())),
        });
    }

    pub(super) fn start_handover(
        &mut self,
        now: Time,
        group: usize,
        to: PeerId,
        why: &str,
        by_operator: bool,
    ) {
        // Others may know of a higher term than this primary's own, from a unit that is gone: they
        // would refuse any term that is not beyond it.
        let alive = self.peers.iter().filter(|peer| peer.alive);
        let known = alive.map(|peer| peer.groups[group].term).max().unwrap_or(0);
        let known = known.max(self.groups[group].term);
        let term = self.term_above(known, &self.peers[to.index()].name);
        let state = &mut self.groups[group];
        let deadline = now + TIMEOUT;
        (state.expected, state.invited) = (None, None);
        state.handover = Some(Handover {
            deadline,
            to,
            term,
            started: now,
            by_operator,
        });
        let what = format!(
            "handing {} over to {}",
            state.name,
            self.peers[to.index()].name
        );
        self.events.info(now, what, why);
        self.push_output(Output::Handover {
            group: GroupId(group as u8),
            to,
            term,
        });
    }

    /// The best of the peers that can take over and satisfy `wanted`.
    fn best_successor(
        &self,
        now: Time,
        group: usize,
        wanted: impl Fn(PeerId) -> bool,
    ) -> Option<PeerId> {
        self.best_of(now, group, |peer| {
            self.can_take_over(group, peer).is_ok() && wanted(peer)
        })
    }

    /// The best of the peers that `suits` admits.
    fn best_of(&self, now: Time, group: usize, suits: impl Fn(PeerId) -> bool) -> Option<PeerId> {
        let peers: Vec<PeerId> = self.known_places().filter(|peer| suits(*peer)).collect();
        // Each of them gets all that this unit holds before it takes over.
        let candidates: Vec<_> = peers
            .iter()
            .map(|peer| order::Candidate {
                held: Holding::default(),
                ..self.candidate(now, group, *peer)
            })
            .collect();
        peers.get(order::best(&candidates)?).copied()
    }

    /// Whether a peer can take the group over and would not give it back at once.
    pub(super) fn could_keep(&self, group: usize, peer: PeerId) -> Result<(), HandoverError> {
        self.can_take_over(group, peer)?;
        self.would_keep(peer)
    }

    /// Whether a peer that takes a group over would not give it back at once.
    fn would_keep(&self, peer: PeerId) -> Result<(), HandoverError> {
        let ElectionPeer {
            name,
            ports_up,
            maintenance,
            ..
        } = &self.peers[peer.index()];
        if *maintenance {
            return Err(HandoverError::InMaintenance(name.clone()));
        }
        match *ports_up < self.ports_up {
            true => Err(HandoverError::FewerPorts {
                peer: name.clone(),
                up: *ports_up,
                own: self.ports_up,
            }),
            false => Ok(()),
        }
    }

    fn is_reachable(&self, _group: usize, peer: PeerId) -> Result<(), HandoverError> {
        let known = self.peers.get(peer.index());
        match known.filter(|peer| peer.is_somebody()) {
            None => Err(HandoverError::NoSuchPeer),
            Some(peer) if peer.linked => Ok(()),
            Some(peer) if peer.alive => Err(HandoverError::NoLink(peer.name.clone())),
            Some(peer) => Err(HandoverError::NotAlive(peer.name.clone())),
        }
    }

    fn can_take_over(&self, group: usize, peer: PeerId) -> Result<(), HandoverError> {
        self.is_reachable(group, peer)?;
        let peer = &self.peers[peer.index()];
        let name = &peer.name;
        if !peer.groups[group].ready {
            Err(HandoverError::NotReady(name.clone()))
        } else if !peer.sync.equal.contains(GroupId(group as u8)) {
            Err(HandoverError::NotEqual(name.clone()))
        } else {
            Ok(())
        }
    }
}
