//! The questions to the witness, for the process that speaks to it, and its answers.

use std::time::Duration;

use crate::flow::GroupId;
use crate::gateway::Gateway;
use crate::ha::{LeaseWish, WitnessAsk, WitnessState};
use crate::time::Time;

use super::protocol::{
    ErrorCode, Failure, LeaseHolder, LeaseQuestion, Request, WitnessQuestion, WitnessStatus,
    write_line,
};
use super::{Answer, Progress, seconds};

/// The longest time of a lease that is believed.
const LONGEST: f64 = 3600.0;

/// Questions as they come, until the client ends its side.
#[derive(Debug)]
pub struct Questions {
    /// The number of the last one that was sent.
    after: u64,
    is_ended: bool,
}

impl Questions {
    /// Starts with the next one; [`Questions::end`] must follow.
    ///
    /// # Errors
    /// Without `[ha]` there will never be one.
    pub fn begin(gateway: &mut Gateway) -> Result<Questions, Failure> {
        if gateway.cluster().is_none() {
            let why = "a gateway without `[ha]` needs no witness";
            return Err(Failure::new(ErrorCode::Refused, why));
        }
        gateway.open_witness();
        Ok(Questions {
            after: 0,
            is_ended: false,
        })
    }

    pub fn go_on(&mut self, gateway: &mut Gateway, out: &mut String) -> Progress {
        if self.is_ended {
            Questions::end(gateway);
            return Progress::Done;
        }
        if let Some(ask) = gateway.witness_ask(self.after) {
            self.after = ask.number;
            if let Some(question) = question(gateway, ask) {
                write_line(out, &question);
            }
        }
        Progress::More
    }

    /// Whether there is something to send.
    pub fn has_news(&self, gateway: &Gateway) -> bool {
        self.is_ended || gateway.has_witness_ask(self.after)
    }

    /// The client wants no more.
    pub fn finish(&mut self) {
        self.is_ended = true;
    }

    /// The client asks the witness no longer.
    pub(super) fn end(gateway: &mut Gateway) {
        gateway.close_witness();
    }
}

fn run(gateway: &Gateway) -> String {
    format!("{:x}", gateway.events().run())
}

fn question(gateway: &Gateway, ask: WitnessAsk) -> Option<WitnessQuestion> {
    let config = gateway.config();
    let ha = config.ha.as_ref()?;
    let witness = ha.witness.clone()?;
    let wish = |(group, wish): (GroupId, LeaseWish)| {
        let (hold, take_from) = match wish {
            LeaseWish::Hold(from) => (true, from),
            LeaseWish::Release => (false, Vec::new()),
        };
        LeaseQuestion {
            group: gateway.group_name(group).to_owned(),
            hold,
            take_from,
        }
    };
    Some(WitnessQuestion {
        run: run(gateway),
        number: ask.number,
        node: config.node.name.clone(),
        endpoints: witness.endpoints,
        ca: witness.ca,
        cert: witness.cert,
        key: witness.key,
        user: witness.user,
        password_file: witness.password_file,
        prefix: format!("{}/{}/", witness.prefix, ha.group_id),
        lease_s: seconds(witness.lease),
        timeout_s: seconds(witness.timeout),
        leases: ask.wishes.into_iter().map(wish).collect(),
    })
}

/// The answer to a request of the process that speaks to the witness.
///
/// # Errors
/// Why there is none.
pub(super) fn answer(
    request: Request,
    gateway: &mut Gateway,
    now: Time,
) -> Result<Answer, Failure> {
    let Request::WitnessAnswer {
        run,
        number,
        error,
        lasts_s,
        leases,
    } = request
    else {
        return Ok(Answer::Witness(Questions::begin(gateway)?));
    };
    let said = error.map_or(Ok(leases), Err);
    take(gateway, (&run, number), said, lasts_s, now);
    Ok(Answer::Done)
}

/// Takes the answer to a question. One to a question that was asked long ago has no effect.
fn take(
    gateway: &mut Gateway,
    (asked_by, number): (&str, u64),
    answer: Result<Vec<LeaseHolder>, String>,
    lasts_s: f64,
    now: Time,
) {
    if asked_by != run(gateway) {
        return;
    }
    let lasts = Duration::from_secs_f64(lasts_s.clamp(0.0, LONGEST));
    match answer {
        Err(why) => gateway.handle_witness(now, number, Err(&why), lasts),
        Ok(leases) => {
            let named = |lease: LeaseHolder| {
                let mut groups = gateway.groups();
                let group = groups.find(|group| gateway.group_name(*group) == lease.group)?;
                Some((group, lease.holder))
            };
            let leases: Vec<_> = leases.into_iter().filter_map(named).collect();
            gateway.handle_witness(now, number, Ok(&leases), lasts);
        }
    }
}

/// The witness as this unit sees it.
pub(super) fn status(gateway: &Gateway, now: Time) -> Option<WitnessStatus> {
    let view = gateway.witness()?;
    Some(WitnessStatus {
        answers: match view.state {
            WitnessState::Unknown => None,
            WitnessState::Answers => Some(true),
            WitnessState::Silent => Some(false),
        },
        since: seconds(now.since(view.since)),
        why: Some(view.why.to_owned()).filter(|why| !why.is_empty()),
        granted: view.results.granted,
        refused: view.results.refused,
        without: view.results.without,
    })
}
