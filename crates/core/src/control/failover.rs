//! Planned handovers that an administrator asks for.

use std::fmt::Write;
use std::time::Duration;

use crate::flow::GroupId;
use crate::gateway::{Gateway, Role};
use crate::time::Time;

use super::{Progress, status};

/// A handover ends by itself long before.
const FAILOVER_WAIT: Duration = Duration::from_secs(5);

/// Planned handovers that are under way.
#[derive(Debug)]
pub struct Failover {
    groups: Vec<GroupId>,
    /// When to stop waiting for them.
    deadline: Time,
}

impl Failover {
    pub fn begin(
        gateway: &mut Gateway,
        group: Option<&str>,
        to: Option<&str>,
        now: Time,
    ) -> Result<Failover, String> {
        Ok(Failover {
            groups: begin_failover(gateway, group, to, now)?,
            deadline: now + FAILOVER_WAIT,
        })
    }

    pub fn go_on(
        &mut self,
        gateway: &mut Gateway,
        now: Time,
        out: &mut String,
    ) -> Result<Progress, String> {
        self.groups
            .retain(|group| match gateway.poll_handover(*group) {
                Some(end) => {
                    let _ = writeln!(out, "{}", status::handover(&end, gateway));
                    false
                }
                None => true,
            });
        if self.groups.is_empty() {
            Ok(Progress::Done)
        } else if now >= self.deadline {
            Err("the handover has not ended in time; see `tandemgw status`".to_owned())
        } else {
            Ok(Progress::More)
        }
    }
}

/// Starts the handovers that a request asks for; gives their groups.
fn begin_failover(
    gateway: &mut Gateway,
    group: Option<&str>,
    to: Option<&str>,
    now: Time,
) -> Result<Vec<GroupId>, String> {
    let to = match to {
        None => None,
        Some(name) => Some(
            gateway
                .peers()
                .find(|peer| gateway.peer_name(*peer) == name)
                .ok_or_else(|| format!("there is no peer `{name}`"))?,
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
            Some(name) => format!("there is no group `{name}`"),
            None => "this unit is not primary of any group: ask the primary".to_owned(),
        });
    }
    for group in &groups {
        gateway.poll_handover(*group);
        gateway.request_failover(now, *group, to)?;
    }
    Ok(groups)
}
