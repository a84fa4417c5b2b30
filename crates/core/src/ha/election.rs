//! How a group gets its primary: wait at the start, follow, check, take over, step down.
//!
//! ```text
//! Init ──► Standby ──► Checking ──► Primary
//!   ▲         ▲  ▲────────┘            │
//!   │         └──── better primary ────┤
//!   └────────────── paused ────────────┘
//! ```

use std::time::Duration;

use super::Role;
use super::contest::Rivalry;
use super::handover::Handover;
use super::heartbeat::{self, GroupState, MAX_TERM};
use super::peer::ElectionPeer;
use super::witness::Lease;
use super::{Ha, Output, Takeover, Takeovers};
use crate::evidence::{Holders, Holding};
use crate::flow::{GroupId, PeerId};
use crate::time::Time;

/// One group, as this unit takes part in its election.
#[derive(Debug)]
pub(super) struct Group {
    pub name: String,
    pub hash: u32,
    pub state: State,
    /// As primary its own term, otherwise the highest that it knows.
    pub term: u64,
    pub since: Time,
    pub ready: bool,
    pub priority: u8,
    /// Of a slot, the group that was cut. It goes back to the unit of the highest priority whatever
    /// `override` says.
    pub part_of: Option<GroupId>,
    pub degraded: bool,
    pub handover: Option<Handover>,
    /// No planned handover starts on its own before this.
    pub handover_after: Time,
    pub draining_until: Option<Time>,
    /// The operator moved the group away: do not ask for it back.
    pub given_away: bool,
    /// How often this unit has recently lost the group to its own ports, and the last time.
    pub losses: (u32, Option<Time>),
    /// The unit that handed the group to this one may still claim to be primary until it has heard.
    pub expected: Option<(PeerId, Time)>,
    /// The primary that was last seen.
    pub primary: Option<PeerId>,
    pub takeovers: Takeovers,
    /// The evidence of this unit; as primary, that from when its term began.
    pub held: Holding,
    /// As primary: the last time that sessions went through it in both directions.
    pub carried: Option<Time>,
    /// As primary: when a peer last reported that it follows, and since when one does.
    pub followed: Option<Time>,
    pub followed_since: Option<Time>,
    pub vacancy: Option<Vacancy>,
    /// Since when this unit has been fit to take over by `override`.
    pub fit_since: Option<Time>,
    /// Another primary is heard.
    pub rivalry: Option<Rivalry>,
    /// The group is left to that unit until then, and not taken back.
    pub given: Option<(PeerId, Time)>,
    /// Since when a machine answers for the group's addresses, which may be the primary or a
    /// stranger.
    pub claimed_since: Option<Time>,
    /// What the witness says of it.
    pub lease: Lease,
    /// As primary: who is to hold it, as replication was told.
    pub holders: Holders,
    /// As primary: a peer that gets its sessions, and the group then, if it has them by that time.
    pub invited: Option<(PeerId, Time)>,
}

/// The state of this unit in the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Listens for a primary, until it has heard all peers.
    Init {
        from: Time,
        until: Time,
        /// It was primary before it was paused.
        resumes: bool,
    },
    /// Follows a primary, or waits for one.
    Standby,
    /// Asks on the data ports whether there is a primary; after the last probe, the witness.
    Checking { probes: u32, next: Time },
    /// Is the primary.
    Primary,
}

/// No primary is alive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vacancy {
    pub since: Time,
    /// No check before this; later than `since` if one was answered.
    pub check_after: Time,
    /// The primary said goodbye: no check is needed.
    certain: bool,
}

/// The longest time for which an unsigned answer can delay a takeover.
const CLAIM_BOUND: Duration = Duration::from_secs(3);

impl Group {
    pub(super) fn new(name: &str, priority: u8, now: Time, until: Time) -> Group {
        Group {
            name: name.to_owned(),
            hash: heartbeat::hash(name),
            state: State::Init {
                from: now,
                until,
                resumes: false,
            },
            term: 0,
            since: now,
            ready: false,
            priority,
            part_of: None,
            degraded: false,
            handover: None,
            handover_after: now,
            draining_until: None,
            given_away: false,
            losses: (0, None),
            expected: None,
            primary: None,
            takeovers: Takeovers::default(),
            held: Holding::default(),
            carried: None,
            followed: None,
            followed_since: None,
            vacancy: None,
            fit_since: None,
            rivalry: None,
            given: None,
            claimed_since: None,
            lease: Lease::default(),
            holders: Holders::All,
            invited: None,
        }
    }

    /// A place that no group has.
    pub(super) fn vacant(now: Time) -> Group {
        Group {
            hash: 0,
            state: State::Standby,
            ..Group::new("", 0, now, now)
        }
    }

    /// The peer that is about to get it by a planned handover.
    pub(super) fn heir(&self) -> Option<PeerId> {
        let to = self.handover.as_ref().map(|handover| handover.to);
        to.or(self.invited.map(|(peer, _)| peer))
    }

    /// Whether a group has this place.
    pub(super) fn exists(&self) -> bool {
        !self.name.is_empty()
    }

    pub(super) fn role(&self) -> Role {
        match self.state {
            State::Primary => Role::Primary,
            _ => Role::Standby,
        }
    }
}

impl Ha {
    /// Applies the rules to all groups. Does nothing if nothing has changed.
    pub(super) fn evaluate_all(&mut self, now: Time) {
        self.note_agreed(now);
        for group in 0..self.groups.len() {
            if !self.groups[group].exists() {
                continue;
            }
            self.learn_term(group);
            self.note_fitness(now, group);
            if self.groups[group].state == State::Primary {
                self.defend(now, group);
            } else {
                self.seek(now, group);
            }
        }
    }

    /// The time at which [`Ha::evaluate_all`] has work for `group` if nothing happens before.
    pub(super) fn group_timeout(&self, now: Time, group: usize) -> Option<Time> {
        let state = &self.groups[group];
        match state.state {
            _ if !state.exists() => None,
            State::Init { until, .. } => Some(until),
            State::Standby => self.given_until(now, group).or(self.check_due(now, group)),
            State::Checking { next, .. } => Some(next),
            State::Primary => {
                let handover = state.handover.as_ref().map(|handover| handover.deadline);
                let invited = state.invited.map(|(_, until)| until);
                let due = handover.into_iter().chain(invited);
                due.chain(self.lease_due(group)).min()
            }
        }
    }

    /// The state of `group` in this unit's heartbeats.
    pub(super) fn group_state(&self, now: Time, group: usize) -> GroupState {
        let state = &self.groups[group];
        let primary = state.state == State::Primary;
        let given = state
            .given
            .filter(|_| self.given_until(now, group).is_some());
        let sees = match (primary, self.alive_primary(group), given) {
            (true, _, _) => heartbeat::hash(&self.name),
            (false, Some(peer), _) | (false, None, Some((peer, _))) => {
                self.peers[peer.index()].hash
            }
            (false, None, None) => 0,
        };
        GroupState {
            known: true,
            primary,
            ready: state.ready,
            override_: self.overrides(group),
            asks: !primary && self.asks_for(now, group),
            gives: !primary && given.is_some(),
            priority: state.priority,
            term: state.term,
            sees,
            held: state.held,
            worth: state.rivalry.filter(|_| primary).map(|it| it.worth),
        }
    }

    /// The peer that is primary of `group` and alive; the one with the highest term if there are
    /// several.
    pub(super) fn alive_primary(&self, group: usize) -> Option<PeerId> {
        let peers = self.peers.iter().enumerate();
        let primaries = peers.filter(|(_, peer)| peer.alive && peer.groups[group].primary);
        let (index, _) = primaries.max_by_key(|(_, peer)| peer.groups[group].term)?;
        Some(PeerId(index as u8))
    }

    /// A peer says goodbye: the groups whose primary it was need no check.
    pub(super) fn trust_goodbye(&mut self, now: Time, peer: PeerId) {
        for group in &mut self.groups {
            if group.primary == Some(peer) && group.state != State::Primary {
                let vacancy = Vacancy {
                    since: now,
                    check_after: now,
                    certain: true,
                };
                group.vacancy.get_or_insert(vacancy).certain = true;
            }
        }
    }

    /// A machine answers for the group's addresses. A peer that speaks on the data ports would have
    /// answered there; it can only be one that never did, and that delays the takeover for a while,
    /// not forever.
    pub(super) fn note_probe_answer(&mut self, now: Time, group: usize) {
        let (hold, span) = (self.hold(), CLAIM_BOUND.max(self.hold()));
        let silent = |peer: &ElectionPeer| !peer.alive && !peer.spoke;
        let may_be_peer = self.known_peers().any(silent);
        let state = &mut self.groups[group];
        if !matches!(state.state, State::Checking { .. }) || !may_be_peer {
            return;
        }
        let since = *state.claimed_since.get_or_insert(now);
        if now.since(since) >= span {
            return;
        }
        state.state = State::Standby;
        if let Some(vacancy) = &mut state.vacancy {
            vacancy.check_after = now + hold;
        }
        if !std::mem::replace(&mut state.degraded, true) {
            let what = format!("{}: somebody answers for the addresses", state.name);
            let why = "it may be a peer that no link leads to";
            self.events.warn(now, what, why);
        }
    }

    /// This unit was stopped: another one may have taken over, and all its knowledge is old.
    pub(super) fn resume_after_pause(&mut self, now: Time, pause: Duration) {
        let why = format!("paused for {} ms", pause.as_millis());
        self.events.warn(now, why.clone(), "this unit did not run");
        let (hold, interval, threshold) = (self.hold(), self.interval, self.threshold);
        for peer in &mut self.peers {
            // Heartbeats that it sent meanwhile are still in the socket.
            peer.alive_until = now + interval.max(peer.interval) * threshold;
            peer.linked_until = peer.alive_until;
        }
        for group in 0..self.groups.len() {
            if self.groups[group].state == State::Primary {
                self.step_down(now, group, why.clone());
                self.groups[group].state = State::Init {
                    from: now,
                    until: now + hold,
                    resumes: true,
                };
                continue;
            }
            let state = &mut self.groups[group];
            // The new primary may have ended sessions, and reused their ports.
            state.draining_until = None;
            match &mut state.state {
                State::Init { until, .. } => *until = (*until).max(now + hold),
                other => *other = State::Standby,
            }
            if let Some(vacancy) = &mut state.vacancy {
                *vacancy = Vacancy {
                    since: now,
                    check_after: now + hold,
                    certain: false,
                };
            }
        }
    }

    /// Makes this unit primary.
    pub(super) fn promote(&mut self, now: Time, group: usize, term: u64, by: (Takeover, String)) {
        let state = &mut self.groups[group];
        let (reason, why) = by;
        state.takeovers[reason as usize] += 1;
        let term = term.min(MAX_TERM);
        state.state = State::Primary;
        state.term = term;
        state.since = now;
        state.ready = true;
        state.degraded = false;
        state.vacancy = None;
        state.rivalry = None;
        state.followed_since = None;
        state.given_away = false;
        state.draining_until = None;
        (state.given, state.claimed_since) = (None, None);
        (state.holders, state.invited) = (Holders::All, None);
        state.handover_after = state.handover_after.max(now + super::handover::SETTLE);
        self.urgent = true;
        self.events.role(
            now,
            format!("primary of {}, term {term}", state.name),
            why.clone(),
        );
        let group = GroupId(group as u8);
        self.push_output(Output::SetRole {
            group,
            role: Role::Primary,
            term,
            why,
        });
    }

    /// Turns this unit from primary to standby; its copies count as complete for now.
    pub(super) fn step_down(&mut self, now: Time, group: usize, why: String) {
        self.fail_handover(now, group, &why);
        self.end_invitation(now, group, &why);
        let state = &mut self.groups[group];
        state.state = State::Standby;
        state.since = now;
        state.rivalry = None;
        state.vacancy = None;
        state.primary = None;
        state.expected = None;
        self.urgent = true;
        self.events
            .role(now, format!("standby of {}", state.name), why.clone());
        let term = state.term;
        let group = GroupId(group as u8);
        self.push_output(Output::SetRole {
            group,
            role: Role::Standby,
            term,
            why,
        });
    }

    /// Whether this unit could work as primary at all.
    pub(super) fn may_promote(&self) -> bool {
        self.leaving.is_none() && self.can_serve(self.ports_up)
    }

    /// Whether a unit with so many monitored ports up reaches anybody.
    pub(super) fn can_serve(&self, ports_up: u8) -> bool {
        self.monitor.is_empty() || ports_up > 0
    }

    fn learn_term(&mut self, group: usize) {
        let alive = self.peers.iter().filter(|peer| peer.alive);
        let highest = alive.map(|peer| peer.groups[group].term).max().unwrap_or(0);
        let state = &mut self.groups[group];
        // A primary keeps its own term until another primary comes with a higher one.
        if state.state != State::Primary {
            state.term = state.term.max(highest);
        }
    }

    /// Standby: follow the primary, or take over if there is none.
    fn seek(&mut self, now: Time, group: usize) {
        if let Some(peer) = self.alive_primary(group) {
            return self.follow(now, group, peer);
        }
        if let Some(giver) = self.giver(group) {
            let term = self.next_term(group);
            let why = format!("{} leaves it to this unit", self.peers[giver.index()].name);
            return self.promote(now, group, term, (Takeover::Handover, why));
        }
        if self.given_until(now, group).is_some() {
            return;
        }
        self.groups[group].given = None;
        if let Some(hearsay) = self.hearsay(group) {
            return self.trust_hearsay(now, group, hearsay);
        }
        let all_heard = |from| {
            self.known_peers()
                .all(|p| p.heard.is_some_and(|at| at > from))
        };
        let state = &self.groups[group];
        if let State::Init { from, until, .. } = state.state {
            if now < until && !all_heard(from) {
                return;
            }
            self.groups[group].state = State::Standby;
        }
        let state = &mut self.groups[group];
        let vacant = Vacancy {
            since: now,
            check_after: now,
            certain: false,
        };
        // The peers learn exactly what this unit holds before any of them takes over.
        self.urgent |= state.vacancy.is_none();
        let vacancy = *state.vacancy.get_or_insert(vacant);
        if let State::Checking { probes, next } = state.state {
            if now >= next {
                self.continue_check(now, group, probes);
            }
            return;
        }
        if vacancy.certain && self.may_promote() && self.is_best(now, group) {
            let term = self.next_term(group);
            let why = "the primary said goodbye".to_owned();
            return self.promote(now, group, term, (Takeover::Goodbye, why));
        }
        if self.check_due(now, group).is_some_and(|due| now >= due) {
            self.continue_check(now, group, 0);
        }
    }

    fn follow(&mut self, now: Time, group: usize, peer: PeerId) {
        let all_heard = self.known_peers().all(|peer| peer.alive);
        self.drop_lease(group, all_heard);
        let primary = &self.peers[peer.index()];
        let state = &mut self.groups[group];
        let resumes = matches!(state.state, State::Init { resumes: true, .. });
        state.state = State::Standby;
        (state.given, state.claimed_since) = (None, None);
        let vacant = state.vacancy.take().is_some();
        let news = state.primary.replace(peer) != Some(peer);
        let was_degraded = std::mem::replace(&mut state.degraded, !primary.linked);
        if state.degraded && !was_degraded {
            let what = format!("{}: the primary answers on the data ports only", state.name);
            self.events.warn(now, what, "the links to it are dead");
        }
        if was_degraded && !state.degraded || news || resumes {
            let what = format!("{} is primary of {}", primary.name, state.name);
            let why = format!("term {}", primary.groups[group].term);
            self.events.info(now, what, why);
        }
        if resumes {
            state.ready = false;
            self.urgent = true;
            self.push_output(Output::Resync {
                group: GroupId(group as u8),
                from: peer,
            });
        } else if news || vacant {
            let ready = primary.sync.ready.contains(GroupId(group as u8));
            self.urgent |= std::mem::replace(&mut state.ready, ready) != ready;
        }
    }

    pub(super) fn next_term(&self, group: usize) -> u64 {
        self.term_above(self.groups[group].term, &self.name)
    }

    /// The first term above `known` that belongs to the unit of this name.
    ///
    /// The units take turns in using the terms, in the order of their names. So two units that do
    /// not hear each other never take the same one, and a contest always has a winner.
    pub(super) fn term_above(&self, known: u64, name: &str) -> u64 {
        let names = || {
            self.known_peers()
                .map(|peer| &*peer.name)
                .chain([&*self.name])
        };
        let (units, before) = (
            names().count(),
            names().filter(|other| *other < name).count(),
        );
        let (units, before) = (units as u64, before as u64);
        let next = known.saturating_add(1).min(MAX_TERM);
        let wait = (before + units - (next - 1) % units) % units;
        (next + wait).min(MAX_TERM)
    }

    /// Primary: contest with other primaries, and hand over to the unit that should have the group.
    fn defend(&mut self, now: Time, group: usize) {
        self.note_followers(now, group);
        let state = &self.groups[group];
        let rival = self.alive_primary(group).filter(|peer| {
            let older = self.peers[peer.index()].groups[group].term <= state.term;
            !(older
                && state
                    .expected
                    .is_some_and(|(from, until)| from == *peer && now < until))
        });
        match rival {
            Some(peer) if self.completes_handover(group, peer) => {
                self.complete_handover(now, group, peer);
            }
            Some(peer) => self.contest(now, group, peer),
            None => {
                self.rise_above_yielded(group);
                if self.groups[group].rivalry.take().is_some() {
                    self.push_output(Output::Announce {
                        group: GroupId(group as u8),
                    });
                }
            }
        }
        if self.groups[group].state == State::Primary {
            self.plan_handover(now, group);
        }
        if self.groups[group].state == State::Primary
            && let Some(holder) = self.keep_lease(now, group)
        {
            let why = format!("the witness says that {holder} has it");
            self.step_down(now, group, why);
        }
        if self.groups[group].state == State::Primary {
            self.choose_holders(now, group);
        }
    }
}
