//! A config for all units: requests of an administrator, and how far it is.

use std::time::Duration;

use crate::flow::PeerId;
use crate::gateway::Gateway;
use crate::push::message::{Changed, Verdict};
use crate::push::{Progress as Step, PushError, Relation, UnitState};
use crate::time::Time;

use super::protocol::{
    Change, ErrorCode, Failure, PushReport, PushState, PushUnit, PushUnitState, Request, write_line,
};
use super::status::since_1970;
use super::{Answer, Progress, ShellView};

/// The longest time for a confirmation, in seconds.
const LONGEST: u64 = 86_400;

/// A push that a client waits for.
#[derive(Debug)]
pub struct PushWait {
    id: u64,
    goal: Goal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Checked,
    /// In force on trial, or committed if there is none.
    InForce,
    Committed,
    Back,
}

impl PushWait {
    /// Begins what a request asks for.
    ///
    /// # Errors
    /// Why it can't be done.
    pub fn begin(request: Request, gateway: &mut Gateway, now: Time) -> Result<PushWait, Failure> {
        let (id, goal) = match request {
            Request::PushCheck => (gateway.begin_push(now), Goal::Checked),
            Request::PushApply {
                push,
                confirm_s,
                by,
            } => {
                let id = u64::from_str_radix(&push, 16).map_err(super::bad_request)?;
                if confirm_s.is_some_and(|seconds| seconds == 0 || seconds > LONGEST) {
                    let why = format!("the time for a confirmation is 1 to {LONGEST} seconds");
                    return Err(super::bad_request(why));
                }
                let confirm = confirm_s.map(Duration::from_secs);
                let applied = gateway.push_mut().apply(now, id, confirm, by);
                (applied.map(|()| id), Goal::InForce)
            }
            Request::PushAccept => (gateway.push_mut().accept(), Goal::Committed),
            _ => {
                let why = "an operator ended it";
                (gateway.push_mut().abort(why), Goal::Back)
            }
        };
        let id = id.map_err(failure)?;
        Ok(PushWait { id, goal })
    }

    /// Reports when the push has got as far as the client waits for.
    ///
    /// # Errors
    /// Why it did not.
    pub fn go_on(
        &mut self,
        gateway: &Gateway,
        shell: &ShellView,
        out: &mut String,
    ) -> Result<Progress, Failure> {
        let Some((_, step)) = gateway.push().progress(Some(self.id)) else {
            let why = "another push has taken its place";
            return Err(Failure::new(ErrorCode::Refused, why));
        };
        let is_there = match (step, self.goal) {
            (Step::Failed, Goal::Back) => true,
            (Step::Failed, _) => {
                write_report(gateway, shell, out);
                let why = gateway.push().why_failed().unwrap_or_default();
                let why = format!("{why}; all units have the config before");
                return Err(Failure::new(ErrorCode::Refused, why));
            }
            (Step::Checked, goal) => goal == Goal::Checked,
            (Step::Trial(_), goal) => goal == Goal::InForce,
            (Step::Committed, _) => true,
            (Step::Checking | Step::Applying | Step::Committing, _) => false,
        };
        if !is_there {
            return Ok(Progress::More);
        }
        write_report(gateway, shell, out);
        Ok(Progress::Done)
    }
}

/// The answer to a request about pushes.
///
/// # Errors
/// Why there is none.
pub(super) fn answer(
    request: Request,
    gateway: &mut Gateway,
    shell: &ShellView,
    now: Time,
    out: &mut String,
) -> Result<Answer, Failure> {
    match request {
        Request::PushPart { at, text } => {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let taken = gateway.push_mut().upload(at, &text);
            taken.map_err(failure)?;
            Ok(Answer::Done)
        }
        Request::PushStatus => {
            write_report(gateway, shell, out);
            Ok(Answer::Done)
        }
        request => Ok(Answer::Push(PushWait::begin(request, gateway, now)?)),
    }
}

fn failure(error: PushError) -> Failure {
    let code = match error.is_busy() {
        true => ErrorCode::Busy,
        false => ErrorCode::Refused,
    };
    Failure::new(code, error.to_string())
}

/// Writes how far the last push of this unit is, and how the units' configs compare.
pub(super) fn write_report(gateway: &Gateway, shell: &ShellView, out: &mut String) {
    let push = gateway.push();
    let progress = push.progress(None);
    let until = match progress {
        Some((_, Step::Trial(until))) => Some(since_1970(shell, until)),
        _ => None,
    };
    let peers = gateway.peers().map(Some);
    let units = [None].into_iter().chain(peers);
    let report = PushReport {
        push: progress.map(|(id, _)| format!("{id:x}")),
        generation: push.generation(),
        state: progress.map(|(_, step)| state(step)),
        until,
        units: units.map(|peer| unit(gateway, peer)).collect(),
    };
    write_line(out, &report);
}

fn unit(gateway: &Gateway, peer: Option<PeerId>) -> PushUnit {
    let push = gateway.push();
    let known = push.units().find(|(place, ..)| *place == peer);
    let (state, verdict) = known.map_or((None, None), |(_, state, verdict)| {
        (Some(state), Some(verdict))
    });
    let changes = |needs_restart| {
        let all = verdict.map_or(&[][..], |verdict: &Verdict| &verdict.changes);
        let these = all.iter().filter(|it| it.needs_restart == needs_restart);
        let change = |it: &Changed| Change {
            key: it.key.clone(),
            what: it.what.clone(),
        };
        these.map(change).collect()
    };
    PushUnit {
        node: match peer {
            None => gateway.config().node.name.clone(),
            Some(peer) => gateway.peer_name(peer).to_owned(),
        },
        state: state.map(unit_state),
        why: match state {
            Some(UnitState::Failed(why)) => Some(why.clone()),
            _ => None,
        },
        compared: peer.and_then(|peer| compared(push.relation(peer))),
        changed: changes(false),
        restart: changes(true),
        more: verdict.map_or(0, |verdict| u64::from(verdict.more)),
    }
}

fn compared(relation: Relation) -> Option<String> {
    let word = match relation {
        Relation::Unknown => return None,
        Relation::Same => "same",
        Relation::Behind => "behind",
        Relation::Ahead => "ahead",
        Relation::Conflict => "conflict",
    };
    Some(word.to_owned())
}

fn state(step: Step) -> PushState {
    match step {
        Step::Checking => PushState::Checking,
        Step::Checked => PushState::Checked,
        Step::Applying => PushState::Applying,
        Step::Trial(_) => PushState::Trial,
        Step::Committing => PushState::Committing,
        Step::Committed => PushState::Committed,
        Step::Failed => PushState::Failed,
    }
}

fn unit_state(state: &UnitState) -> PushUnitState {
    match state {
        UnitState::Away => PushUnitState::Away,
        UnitState::Asked => PushUnitState::Asked,
        UnitState::Fits => PushUnitState::Fits,
        UnitState::Told => PushUnitState::Told,
        UnitState::InForce => PushUnitState::InForce,
        UnitState::Committed => PushUnitState::Committed,
        UnitState::Failed(_) => PushUnitState::Failed,
    }
}
