//! The witness (`[ha.witness]`): an etcd cluster that says who may have a group where the units
//! can't tell who lives.
//!
//! A unit is in *doubt* if it hears no more than half of the units that it last agreed with, itself
//! included, and nothing shows that the others have ended. Then it can't tell their death from a
//! cut. At the etcd there is a lease for each group: who holds it may be primary, and another unit
//! is not. Its holder renews it, and counts it as its own for less time than etcd does, from the
//! moment of its question on: so no two units ever count it as theirs.
//!
//! - A primary that does not hear all its peers takes the lease, so that a unit in doubt elsewhere
//!   finds it taken. If another unit has it, one that is not heard, it steps down.
//! - A unit in doubt that would take over asks first, and waits for the answer for `timeout` at
//!   most. It asks two hold times after its check, so that a primary that lives has asked before,
//!   and a group stays where it is.
//! - Everything else goes on as without a witness, and does not wait. So does a unit that gets no
//!   answer, and it says so.
//!
//! Here are only decisions. A process beside the gateway fetches each [`WitnessAsk`], speaks to the
//! etcd, and hands in what it said.

use std::time::Duration;

use super::Ha;
use super::election::State;
use super::peer::ElectionPeer;
use crate::config;
use crate::flow::GroupId;
use crate::time::Time;

/// A peer that is silent for this long is no longer one of those that a majority agrees with.
const AGREED: Duration = Duration::from_secs(3);
/// How long the process that speaks to the witness may take to come after a start.
const STARTING: Duration = Duration::from_secs(3);
/// The process that speaks to the etcd is not there.
const NO_PROCESS: &str = "`tandemgw witness` is not connected";

/// What is known of the witness.
#[derive(Debug, Default)]
pub(super) struct Witness {
    /// The time of a lease, and how long an answer is waited for.
    times: Option<(Duration, Duration)>,
    /// Processes that speak to it.
    readers: u32,
    /// The question that is not answered, and its time.
    asked: Option<(u64, Time)>,
    number: u64,
    /// The next question is due.
    next: Time,
    /// A question was asked in this turn.
    pub fresh: bool,
    state: WitnessState,
    since: Time,
    why: String,
    results: WitnessResults,
}

/// Whether the witness answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WitnessState {
    /// It was not asked yet.
    #[default]
    Unknown,
    /// It has answered the last question.
    Answers,
    /// It has not.
    Silent,
}

/// How often it decided about a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WitnessResults {
    /// For this unit, which was in doubt.
    pub granted: u64,
    /// Against this unit.
    pub refused: u64,
    /// Not at all: this unit was in doubt, and decided without it.
    pub without: u64,
}

/// The witness as this unit sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WitnessView<'a> {
    /// Whether it answers.
    pub state: WitnessState,
    /// Since when.
    pub since: Time,
    /// Why it does not answer; empty if it does.
    pub why: &'a str,
    /// Its decisions.
    pub results: WitnessResults,
}

/// What a unit does with the lease of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseWish {
    /// It holds it, or takes it if nobody has it, or if one of these has it, which leave it.
    Hold(Vec<String>),
    /// It gives it back.
    Release,
}

/// A question to the witness: also one about no group, to see whether it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessAsk {
    /// The number of the question, to be named in the answer.
    pub number: u64,
    /// The leases that it is about.
    pub wishes: Vec<(GroupId, LeaseWish)>,
}

/// The lease of a group, as this unit knows it.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// This unit wants to hold it.
    wants: bool,
    /// It may have it at the etcd, although it no longer wants it.
    left: bool,
    /// This unit holds it until then.
    held_until: Option<Time>,
    /// Another unit that holds it, and until when that is believed.
    holder: Option<(String, Time)>,
    /// As primary: since when not all peers are heard.
    alone_since: Option<Time>,
    /// A check ended in doubt: when the witness was asked.
    asked_since: Option<Time>,
    /// What was told of it last.
    told: Told,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Granted,
    Refused,
    Without,
}

/// Whether a unit whose check was not answered may become primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    Yes,
    /// Another unit has the lease.
    No,
    /// The witness is asked after so much time.
    Ask(Duration),
    /// It was asked, and has not answered until then.
    Wait(Time),
}

impl Witness {
    /// Between two questions.
    fn interval(&self) -> Duration {
        let lease = self.times.map_or(Duration::ZERO, |(lease, _)| lease);
        (lease / 5).min(Duration::from_secs(1))
    }

    /// Asks as soon as the last question is answered.
    fn ask_soon(&mut self) {
        self.next = Time::ZERO;
    }
}

impl Ha {
    /// Follows a changed `[ha.witness]`.
    pub(crate) fn set_witness(&mut self, now: Time, config: Option<&config::Witness>) {
        let was = self.witness.times.is_some();
        self.witness.times = config.map(|it| (it.lease, it.timeout));
        // The answer to the last question may be that of another etcd.
        (self.witness.asked, self.witness.why) = (None, String::new());
        self.set_witness_state(now, WitnessState::Unknown);
        self.forget_leases();
        self.witness.ask_soon();
        match (was, config.is_some()) {
            (false, true) if now > self.started => {
                self.events.info(now, "there is a witness from now on", "");
            }
            (true, false) => self.events.info(now, "there is no witness any more", ""),
            _ => {}
        }
        self.evaluate_all(now);
        self.flush(now);
    }

    /// Whether the times are those of the config.
    pub(super) fn follows_witness(&self, ha: &config::Ha) -> bool {
        let wanted = ha.witness.as_ref();
        self.witness.times == wanted.map(|it| (it.lease, it.timeout))
    }

    /// A process that speaks to the witness has come.
    pub(crate) fn open_witness(&mut self) {
        self.witness.readers += 1;
        // What another one was asked may never be answered.
        self.witness.asked = None;
        self.witness.ask_soon();
    }

    /// One is gone.
    pub(crate) fn close_witness(&mut self) {
        self.witness.readers = self.witness.readers.saturating_sub(1);
        self.witness.asked = None;
    }

    /// The question that is not answered, if its number is another one.
    pub(crate) fn witness_ask(&self, after: u64) -> Option<WitnessAsk> {
        let (number, _) = self.witness.asked.filter(|(number, _)| *number != after)?;
        let groups = (0..).map(GroupId).zip(&self.groups);
        let wishes = groups.filter_map(|(id, group)| {
            let wish = match group.lease.wants {
                true => LeaseWish::Hold(self.may_take_from(id)),
                false if group.lease.left => LeaseWish::Release,
                false => return None,
            };
            Some((id, wish))
        });
        let wishes = wishes.collect();
        Some(WitnessAsk { number, wishes })
    }

    /// Whether there is a question with another number.
    pub(crate) fn has_witness_ask(&self, after: u64) -> bool {
        self.witness
            .asked
            .is_some_and(|(number, _)| number != after)
    }

    /// The answer to the question with that number: who has the lease of each group now, and for
    /// how long from the question on if it is this unit. Or why there is none.
    pub(crate) fn handle_witness(
        &mut self,
        now: Time,
        number: u64,
        answer: Result<&[(GroupId, Option<String>)], &str>,
        lasts: Duration,
    ) {
        let Some((_, at)) = self.witness.asked.filter(|(asked, _)| *asked == number) else {
            return;
        };
        self.witness.asked = None;
        match answer {
            Err(why) => self.miss_witness(now, why),
            Ok(leases) => {
                self.set_witness_state(now, WitnessState::Answers);
                // Clocks go at different speeds, and etcd counts from later on.
                let lease = self
                    .witness
                    .times
                    .map_or(Duration::ZERO, |(lease, _)| lease);
                let until = at + lasts.min(lease) * 3 / 4;
                for (group, holder) in leases {
                    self.learn_holder(now, *group, holder.as_deref(), until);
                }
            }
        }
        self.evaluate_all(now);
        self.flush(now);
    }

    fn learn_holder(&mut self, now: Time, group: GroupId, holder: Option<&str>, until: Time) {
        let own = holder == Some(&*self.name);
        let believed_until = now + self.witness.interval() * 3;
        let Some(state) = self.groups.get_mut(usize::from(group.0)) else {
            return;
        };
        let lease = &mut state.lease;
        if !lease.wants {
            lease.left = own;
            return;
        }
        lease.held_until = own.then_some(until);
        let other = holder.filter(|_| !own);
        lease.holder = other.map(|name| (name.to_owned(), believed_until));
        match &mut state.state {
            // The check is over.
            State::Checking { next, .. } if lease.asked_since.is_some() => *next = now,
            State::Standby if own => {
                if let Some(vacancy) = &mut state.vacancy {
                    vacancy.check_after = now;
                }
            }
            _ => {}
        }
    }

    /// Notes that the witness does not answer.
    fn miss_witness(&mut self, now: Time, why: &str) {
        self.witness.why = why.to_owned();
        let is_starting = now < self.started + STARTING;
        if self.witness.state == WitnessState::Unknown && is_starting {
            return;
        }
        for group in &mut self.groups {
            group.lease.holder = None;
            if let (State::Checking { next, .. }, true) =
                (&mut group.state, group.lease.asked_since.is_some())
            {
                *next = now;
            }
        }
        self.set_witness_state(now, WitnessState::Silent);
    }

    fn set_witness_state(&mut self, now: Time, state: WitnessState) {
        if std::mem::replace(&mut self.witness.state, state) == state {
            return;
        }
        self.witness.since = now;
        match state {
            WitnessState::Unknown => {}
            WitnessState::Answers => {
                self.witness.why = String::new();
                self.events.info(now, "the witness answers", "");
            }
            WitnessState::Silent => {
                let what = "the witness does not answer: in doubt this unit decides without it";
                self.events.warn(now, what, self.witness.why.clone());
            }
        }
    }

    /// Asks the witness if that is due, and notices that it does not answer.
    pub(super) fn follow_witness(&mut self, now: Time) {
        let Some((_, timeout)) = self.witness.times else {
            return;
        };
        let late = self.witness.asked.filter(|(_, at)| now >= *at + timeout);
        if self.witness.readers == 0 {
            self.miss_witness(now, NO_PROCESS);
        } else if late.is_some() {
            self.witness.asked = None;
            self.miss_witness(now, &format!("no answer in {} ms", timeout.as_millis()));
        }
        let may_ask = self.witness.readers > 0 && self.witness.asked.is_none();
        if may_ask && now >= self.witness.next {
            self.witness.number += 1;
            self.witness.asked = Some((self.witness.number, now));
            self.witness.next = now + self.witness.interval();
            self.witness.fresh = true;
        }
    }

    /// When [`Ha::follow_witness`] has something to do.
    pub(super) fn witness_due(&self) -> Option<Time> {
        let (_, timeout) = self.witness.times?;
        match (self.witness.asked, self.witness.readers) {
            (Some((_, at)), _) => Some(at + timeout),
            (None, 0) => None,
            (None, _) => Some(self.witness.next),
        }
    }

    /// The witness as this unit sees it; none without `[ha.witness]`.
    pub fn witness_view(&self) -> Option<WitnessView<'_>> {
        self.witness.times.map(|_| WitnessView {
            state: self.witness.state,
            since: self.witness.since,
            why: &self.witness.why,
            results: self.witness.results,
        })
    }

    /// Who has the lease of `group`, if the witness says so: the name of a unit.
    pub fn lease_holder(&self, now: Time, group: GroupId) -> Option<&str> {
        let lease = &self.groups.get(usize::from(group.0))?.lease;
        match lease.held_until.is_some_and(|until| now < until) {
            true => Some(&self.name),
            false => lease.other(now),
        }
    }

    /// Notes which units this one agrees with.
    pub(super) fn note_agreed(&mut self, now: Time) {
        let most = !self.is_in_doubt();
        for peer in self.peers.iter_mut().filter(|peer| peer.is_somebody()) {
            if peer.alive {
                (peer.is_agreed, peer.silent_since) = (true, None);
                continue;
            }
            let since = *peer.silent_since.get_or_insert(now);
            if peer.has_ended() || most && now.since(since) >= AGREED {
                peer.is_agreed = false;
            }
        }
    }

    /// Whether this unit hears no more than half of those that it last agreed with, itself
    /// included: it can't tell their death from a cut.
    fn is_in_doubt(&self) -> bool {
        let agreed = || self.known_peers().filter(|peer| peer.is_agreed);
        let ended = |peer: &&ElectionPeer| !peer.alive && peer.has_ended();
        let all = 1 + agreed().count() - agreed().filter(ended).count();
        let alive = 1 + agreed().filter(|peer| peer.alive).count();
        2 * alive <= all
    }

    /// Whether the units that this one agrees with were more than two.
    fn are_many(&self) -> bool {
        self.known_peers().filter(|peer| peer.is_agreed).count() > 1
    }

    /// The units that leave the lease of a group to another one that hears them.
    fn may_take_from(&self, group: GroupId) -> Vec<String> {
        let index = usize::from(group.0);
        let leaves = |peer: &&ElectionPeer| {
            let claims = peer.groups.get(index).is_some_and(|it| it.primary);
            peer.alive && !claims || !peer.alive && peer.has_ended()
        };
        let peers = self.known_peers().filter(leaves);
        peers.map(|peer| peer.name.clone()).collect()
    }

    /// Another unit that has the lease, and is not heard.
    fn stronger(&self, now: Time, group: usize) -> Option<&str> {
        let holder = self.groups[group].lease.other(now)?;
        let peer = self.known_peers().find(|peer| peer.name == holder);
        let leaves = peer.is_some_and(|peer| peer.alive || peer.has_ended());
        (!leaves).then_some(holder)
    }

    /// Whether this unit, whose check was not answered, may become primary.
    pub(super) fn permit(&mut self, now: Time, group: usize) -> Permit {
        let Some((_, timeout)) = self.witness.times else {
            return Permit::Yes;
        };
        let lease = &self.groups[group].lease;
        if lease.held_until.is_some_and(|until| now < until) {
            self.tell_lease(now, group, Told::Granted);
            return Permit::Yes;
        }
        if self.stronger(now, group).is_some() {
            self.groups[group].lease.wants = true;
            self.tell_lease(now, group, Told::Refused);
            return Permit::No;
        }
        if !self.is_in_doubt() {
            return Permit::Yes;
        }
        let lease = &self.groups[group].lease;
        let patience = match self.witness.state {
            WitnessState::Answers => timeout,
            WitnessState::Unknown => (self.started + STARTING).since(now),
            WitnessState::Silent => Duration::ZERO,
        };
        match lease.asked_since {
            _ if lease.other(now).is_some() => Permit::Yes,
            // A primary may notice the cut a hold time and a heartbeat later, if this unit had a
            // hint. What is left is for the process beside it, which has no real-time priority.
            None if !patience.is_zero() => Permit::Ask(self.hold() * 2),
            Some(at) if now < at + patience => Permit::Wait(at + patience),
            _ => {
                self.tell_lease(now, group, Told::Without);
                Permit::Yes
            }
        }
    }

    /// A check of `group` begins: what was asked in the last one is over.
    pub(super) fn forget_question(&mut self, group: usize) {
        self.groups[group].lease.asked_since = None;
    }

    /// The check of `group` has ended in doubt: asks for its lease.
    pub(super) fn ask_for_lease(&mut self, now: Time, group: usize) {
        let lease = &mut self.groups[group].lease;
        (lease.wants, lease.asked_since) = (true, Some(now));
        self.witness.ask_soon();
    }

    /// Primary: takes and keeps the lease while not all peers are heard. Returns who has it
    /// instead, if this unit has to leave the group to that one.
    pub(super) fn keep_lease(&mut self, now: Time, group: usize) -> Option<String> {
        self.witness.times?;
        if self.known_peers().all(|peer| peer.alive) {
            self.drop_lease(group, true);
            return None;
        }
        if self.groups[group].lease.alone_since.is_none() {
            self.groups[group].lease.alone_since = Some(now);
            self.ask_the_silent(now);
        }
        if self.lease_due(group).is_some_and(|due| now >= due) {
            self.groups[group].lease.wants = true;
            self.witness.ask_soon();
        }
        let holder = self.stronger(now, group)?.to_owned();
        self.tell_lease(now, group, Told::Refused);
        Some(holder)
    }

    /// When a primary that does not hear all its peers takes the lease. One in doubt that may be
    /// the smaller part of more than two leaves it to the larger one first.
    pub(super) fn lease_due(&self, group: usize) -> Option<Time> {
        let since = self.groups[group].lease.alone_since?;
        let wait = match (self.is_in_doubt(), self.are_many()) {
            // The others that it no longer hears may be lost within this time.
            (false, _) => self.interval * 2,
            (true, false) => self.probe_wait(),
            (true, true) => self.hold() * 3,
        };
        let wants = self.groups[group].lease.wants;
        (self.witness.times.is_some() && !wants).then_some(since + wait)
    }

    /// This unit does not need the lease any more. It gives it back if all units hear each other,
    /// and else leaves it to one that takes it, or until it ends.
    pub(super) fn drop_lease(&mut self, group: usize, all_heard: bool) {
        let lease = &mut self.groups[group].lease;
        if std::mem::take(&mut lease.wants) && all_heard {
            lease.left = true;
            self.witness.ask_soon();
        }
        let lease = &mut self.groups[group].lease;
        // Who follows a unit that did not know better still knows it, and who was told.
        *lease = Lease {
            left: lease.left && all_heard,
            holder: lease.holder.take().filter(|_| !all_heard),
            told: if all_heard { Told::Nothing } else { lease.told },
            ..Lease::default()
        };
    }

    fn forget_leases(&mut self) {
        for group in &mut self.groups {
            group.lease = Lease::default();
        }
    }

    fn tell_lease(&mut self, now: Time, group: usize, what: Told) {
        let state = &mut self.groups[group];
        if std::mem::replace(&mut state.lease.told, what) == what {
            return;
        }
        let (name, results) = (&state.name, &mut self.witness.results);
        match what {
            Told::Nothing => {}
            Told::Granted => {
                results.granted += 1;
                let text = format!("the witness gives {name} to this unit");
                self.events.warn(now, text, "it could not tell who lives");
            }
            Told::Refused => {
                results.refused += 1;
                let holder = state.lease.other(now).unwrap_or("another unit");
                let text = format!("the witness gives {name} to {holder}");
                self.events.warn(now, text, "this unit does not hear it");
            }
            Told::Without => {
                results.without += 1;
                let text =
                    format!("{name}: this unit is in doubt, and decides without the witness");
                self.events.warn(now, text, self.witness.why.clone());
            }
        }
    }
}

impl Lease {
    /// The unit that has it, if it is another one.
    pub(super) fn other(&self, now: Time) -> Option<&str> {
        let holder = self.holder.as_ref().filter(|(_, until)| now < *until);
        holder.map(|(name, _)| name.as_str())
    }
}

impl ElectionPeer {
    /// Whether it is known that its process has ended, not only that it is silent.
    fn has_ended(&self) -> bool {
        self.goodbye || self.ended
    }
}
