//! Planned handovers requested by an administrator.

use std::time::Duration;

use crate::flow::GroupId;
use crate::gateway::{Gateway, HandoverEnd, Role};
use crate::time::Time;

use super::Progress;
use super::protocol::{ErrorCode, Failure, HandoverDone, write_line};

/// A handover ends by itself long before, when the peer has the sessions.
const FAILOVER_WAIT: Duration = Duration::from_secs(5);

/// Planned handovers in progress.
#[derive(Debug)]
pub struct Failover {
    groups: Vec<GroupId>,
    /// The time to give up waiting.
    deadline: Time,
}

impl Failover {
    pub fn begin(
        gateway: &mut Gateway,
        group: Option<&str>,
        to: Option<&str>,
        force: bool,
        now: Time,
    ) -> Result<Failover, Failure> {
        Ok(Failover {
            groups: begin_failover(gateway, group, to, force, now)?,
            deadline: now + FAILOVER_WAIT,
        })
    }

    pub fn go_on(
        &mut self,
        gateway: &mut Gateway,
        now: Time,
        out: &mut String,
    ) -> Result<Progress, Failure> {
        self.groups
            .retain(|group| match gateway.poll_handover(*group) {
                Some(end) => {
                    write_line(out, &done(&end, gateway));
                    false
                }
                None => true,
            });
        if self.groups.iter().any(|group| gateway.is_inviting(*group)) {
            self.deadline = now + FAILOVER_WAIT;
        }
        if self.groups.is_empty() {
            Ok(Progress::Done)
        } else if now >= self.deadline {
            Err(Failure::new(
                ErrorCode::Timeout,
                "the handover has not ended in time; see `tandemgw status`",
            ))
        } else {
            Ok(Progress::More)
        }
    }
}

/// Starts the requested handovers; returns their groups.
fn begin_failover(
    gateway: &mut Gateway,
    group: Option<&str>,
    to: Option<&str>,
    force: bool,
    now: Time,
) -> Result<Vec<GroupId>, Failure> {
    let to = match to {
        None => None,
        Some(name) => Some(
            gateway
                .peers()
                .find(|peer| gateway.peer_name(*peer) == name)
                .ok_or_else(|| not_found("peer", name))?,
        ),
    };
    let all = gateway.groups();
    let groups: Vec<GroupId> = match group {
        None => all
            .filter(|group| gateway.role_of(*group) == Role::Primary)
            .collect(),
        Some(name) => all
            .filter(|group| gateway.group_name(*group) == name)
            .collect(),
    };
    if groups.is_empty() {
        return Err(match group {
            Some(name) => not_found("group", name),
            None => Failure::new(
                ErrorCode::NotPrimary,
                "this unit is not primary of any group: ask the primary",
            ),
        });
    }
    for group in &groups {
        gateway.poll_handover(*group);
        let started = match force {
            true => gateway.force_failover(now, *group, to),
            false => gateway.request_failover(now, *group, to),
        };
        started.map_err(|why| {
            let is_any_alive = gateway
                .peers()
                .any(|peer| gateway.peer_state(now, peer).connected);
            let hint = match is_any_alive && !force {
                true => "; --force hands over all the same",
                false => "",
            };
            Failure::new(ErrorCode::Refused, format!("{why}{hint}"))
        })?;
    }
    Ok(groups)
}

fn not_found(what: &str, name: &str) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("there is no {what} `{name}`"))
}

/// The end of a planned handover.
fn done(end: &HandoverEnd, gateway: &Gateway) -> HandoverDone {
    HandoverDone {
        group: gateway.group_name(end.group).to_owned(),
        to: gateway.peer_name(end.to).to_owned(),
        took_ms: end.took.as_secs_f64() * 1e3,
        refused: end.result.as_ref().err().map(ToString::to_string),
    }
}
