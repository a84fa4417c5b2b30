//! How far a push is, on the unit that leads it.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::PeerId;
use crate::time::Time;

use super::message::{Offer, Verdict};

/// A push that this unit leads, or has led.
#[derive(Debug)]
pub(super) struct Leading {
    pub(super) id: u64,
    pub(super) offer: Offer,
    pub(super) text: Arc<str>,
    pub(super) step: Step,
    /// This unit, which has no [`PeerId`], comes first.
    pub(super) members: Vec<Member>,
    /// The time for the operator to confirm it; none if nobody need.
    pub(super) confirm: Option<Duration>,
    /// The operator, if known.
    pub(super) by: Option<String>,
    pub(super) until: Time,
    /// How it ended, if it failed.
    pub(super) why: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Checking,
    /// The operator may put it in force.
    Checked,
    Applying,
    /// It is in force everywhere, and waits for the operator.
    Trial,
    /// The file of this unit is written.
    CommittingHere,
    Committing,
    Done,
    Failed,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) peer: Option<PeerId>,
    pub(super) state: UnitState,
    pub(super) verdict: Verdict,
}

/// How far a unit is with a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// It was not there. It gets the config when it returns.
    Away,
    /// It has not said yet whether it can have it.
    Asked,
    /// It can have it.
    Fits,
    /// It was told to put it in force.
    Told,
    /// It is in force.
    InForce,
    /// It is in its file.
    Committed,
    /// It does not have it, or not in its file.
    Failed(String),
}

/// How far a push is, for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Units are still to answer.
    Checking,
    /// All have answered.
    Checked,
    /// It is being put in force.
    Applying,
    /// It is in force, until then unless it is confirmed.
    Trial(Time),
    /// The files are being written.
    Committing,
    /// It is in the files of all units that were there.
    Committed,
    /// All units have the config before.
    Failed,
}

impl Leading {
    pub(super) fn is_on_trial(&self) -> bool {
        matches!(
            self.step,
            Step::Applying | Step::Trial | Step::CommittingHere
        )
    }

    pub(super) fn is_under_way(&self) -> bool {
        // An offer that nobody puts in force is no reason to refuse another unit's.
        !matches!(self.step, Step::Checked | Step::Done | Step::Failed)
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        match self.step {
            Step::Checking | Step::Applying | Step::Trial | Step::Committing => Some(self.until),
            Step::Checked | Step::CommittingHere | Step::Done | Step::Failed => None,
        }
    }

    pub(super) fn note_answer(&mut self, peer: Option<PeerId>, verdict: Verdict) {
        if let Some(member) = self.member(peer, &UnitState::Asked) {
            member.state = match &verdict.why_not {
                None => UnitState::Fits,
                Some(why) => UnitState::Failed(why.clone()),
            };
            member.verdict = verdict;
        }
    }

    pub(super) fn note_applied(&mut self, peer: Option<PeerId>, result: Result<(), String>) {
        if let Some(member) = self.member(peer, &UnitState::Told) {
            member.state = match result {
                Ok(()) => UnitState::InForce,
                Err(why) => UnitState::Failed(why),
            };
        }
    }

    pub(super) fn member(
        &mut self,
        peer: Option<PeerId>,
        state: &UnitState,
    ) -> Option<&mut Member> {
        let mut members = self.members.iter_mut();
        members.find(|member| member.peer == peer && member.state == *state)
    }

    pub(super) fn any(&self, state: &UnitState) -> bool {
        self.members.iter().any(|member| member.state == *state)
    }

    pub(super) fn first_failed(&self) -> Option<(Option<PeerId>, String)> {
        self.members.iter().find_map(|member| match &member.state {
            UnitState::Failed(why) => Some((member.peer, why.clone())),
            _ => None,
        })
    }
}
