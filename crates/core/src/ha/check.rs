//! The check before a takeover: is the silent primary dead, or only out of hearing?

use std::time::Duration;

use super::election::State;
use super::peer::ElectionPeer;
use super::witness::Permit;
use super::{Ha, Output, Takeover};
use crate::flow::GroupId;
use crate::time::Time;

/// Probes in one check.
const PROBES: u32 = 3;
/// The number of probes while the witness is about to be asked, and after it was asked.
const BEFORE_WITNESS: u32 = PROBES + 1;
const WITNESS_ASKED: u32 = PROBES + 2;
/// Between two checks by a unit to which the witness has refused the group.
const REFUSED_FOR: Duration = Duration::from_secs(1);
const LEAST_PROBE_WAIT: Duration = Duration::from_millis(1);
const MOST_PROBE_WAIT: Duration = Duration::from_millis(20);
/// The same if the connection of the primary's process has ended: its kernel closes it when the
/// process ends. A running process answers a probe within a turn of its loop, some 100 µs.
const LEAST_LAST_WAIT: Duration = Duration::from_micros(500);
const MOST_LAST_WAIT: Duration = Duration::from_millis(5);

impl Ha {
    /// The length of a check.
    pub(super) fn probe_wait(&self) -> Duration {
        self.interval.clamp(LEAST_PROBE_WAIT, MOST_PROBE_WAIT)
    }

    /// The length of a check of `group`.
    fn probe_wait_for(&self, group: usize) -> Duration {
        match self.last_primary(group).is_some_and(|peer| peer.ended) {
            true => Self::last_check_of(self.interval),
            false => self.probe_wait(),
        }
    }

    /// The length of a check of a unit whose process has ended, by one that sends heartbeats at
    /// this interval: the shortest of all.
    pub(super) fn last_check_of(interval: Duration) -> Duration {
        (interval / 4).clamp(LEAST_LAST_WAIT, MOST_LAST_WAIT)
    }

    /// The primary of `group` that was last seen.
    fn last_primary(&self, group: usize) -> Option<&ElectionPeer> {
        self.peers.get(self.groups[group].primary?.index())
    }

    /// When this unit may check whether to take over; `None` while it may not.
    pub(super) fn check_due(&self, now: Time, group: usize) -> Option<Time> {
        let vacancy = self.groups[group].vacancy?;
        if !self.may_promote() || self.is_left_to_another(group) {
            return None;
        }
        // Others wait for the best one, for different times in case that it does not come. If this
        // one had a hint, that one may notice the death a hold time later, and then has to check.
        let was_hinted = |peer: &ElectionPeer| peer.deaf_since.is_some();
        let later = u32::from(self.last_primary(group).is_some_and(was_hinted));
        let wait = match self.is_best(now, group) {
            true => Duration::ZERO,
            false => self.hold() * (1 + later + self.rank_by_name()),
        };
        let due = (vacancy.since + wait).max(vacancy.check_after);
        let theirs = self.holders_first(group, vacancy.since);
        Some(theirs.map_or(due, |until| due.max(until)))
    }

    /// Sends the next probe, or takes over if the last one was not answered.
    pub(super) fn continue_check(&mut self, now: Time, group: usize, probes: u32) {
        if self.check_due(now, group).is_none_or(|due| now < due) {
            self.groups[group].state = State::Standby;
        } else if probes >= PROBES
            && let Some(hearsay) = self.hearsay(group)
        {
            self.trust_hearsay(now, group, hearsay);
        } else if probes >= PROBES && self.was_heard_lately(now, group) {
            self.continue_check(now, group, 0);
        } else if probes >= PROBES {
            self.end_check(now, group, probes);
        } else {
            self.forget_question(group);
            let next = now + self.probe_wait_for(group) / PROBES;
            self.groups[group].state = State::Checking {
                probes: probes + 1,
                next,
            };
            self.ask_the_silent(now);
            self.push_output(Output::Probe {
                group: GroupId(group as u8),
            });
        }
    }

    /// Nobody has answered: takes over, unless the witness has to be asked, or has another opinion.
    fn end_check(&mut self, now: Time, group: usize, probes: u32) {
        let (probes, next) = match self.permit(now, group) {
            Permit::Yes => return self.take_over(now, group),
            Permit::No => {
                let state = &mut self.groups[group];
                state.state = State::Standby;
                if let Some(vacancy) = &mut state.vacancy {
                    vacancy.check_after = now + REFUSED_FOR;
                }
                return;
            }
            Permit::Ask(after) if probes < BEFORE_WITNESS => (BEFORE_WITNESS, now + after),
            Permit::Ask(_) => {
                self.ask_for_lease(now, group);
                (WITNESS_ASKED, now + self.interval)
            }
            Permit::Wait(until) => (WITNESS_ASKED, until),
        };
        self.groups[group].state = State::Checking { probes, next };
    }

    fn take_over(&mut self, now: Time, group: usize) {
        let term = self.next_term(group);
        let by = match self.last_primary(group) {
            None => (Takeover::Start, "there is no primary".to_owned()),
            Some(peer) => {
                let reason = match peer.ended {
                    true => Takeover::Ended,
                    false => Takeover::Silent,
                };
                let why = peer.gone_why.unwrap_or("it gave the group up");
                (reason, format!("{} is gone: {why}", peer.name))
            }
        };
        self.promote(now, group, term, by);
    }

    /// Whether heartbeats of the last primary, which are authenticated, are recent, and only a sign
    /// that anybody can forge says that it died: an answer may just be late on a busy machine.
    fn was_heard_lately(&self, now: Time, group: usize) -> bool {
        self.last_primary(group).is_some_and(|peer| {
            let heard = peer.heard.is_some_and(|at| now < at + self.hold_of(peer));
            peer.refused && heard
        })
    }

    /// How many living units come before this one by name.
    fn rank_by_name(&self) -> u32 {
        let before = self
            .peers
            .iter()
            .filter(|peer| peer.alive && peer.name < self.name);
        u32::try_from(before.count()).unwrap_or(u32::MAX)
    }
}
