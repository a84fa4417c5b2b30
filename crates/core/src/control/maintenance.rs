//! Begins and ends the maintenance of this unit.

use std::time::Duration;

use crate::gateway::{Gateway, Role};
use crate::ha::Maintenance;
use crate::time::Time;

use super::protocol::{ErrorCode, Failure, MaintenanceDone, write_line};
use super::status::since_1970;
use super::{Progress, ShellView};

/// The longest time that can be named, in seconds: a year. For longer, name none.
const LONGEST: u64 = 366 * 86_400;

/// How long the answer waits for the handovers: one takes a second at most, and a peer that has just come back
/// has to fetch the sessions before.
const HANDOVER: Duration = Duration::from_secs(5);

/// A maintenance that was set, until its groups are handed over, or it is clear that they are not.
#[derive(Debug)]
pub struct MaintenanceWait {
    on: bool,
    until: Option<f64>,
    deadline: Time,
}

impl MaintenanceWait {
    /// Begins or ends it; one that is under way gets another end.
    ///
    /// # Errors
    /// Why it can't.
    pub fn begin(
        gateway: &mut Gateway,
        shell: &ShellView,
        (on, for_s): (bool, Option<u64>),
        now: Time,
    ) -> Result<MaintenanceWait, Failure> {
        if for_s.is_some_and(|seconds| seconds == 0 || seconds > LONGEST || !on) {
            let why =
                format!("the time of a maintenance is 1 to {LONGEST} seconds, and only with `on`");
            return Err(super::bad_request(why));
        }
        let before = gateway.maintenance();
        let wanted = on.then(|| Maintenance {
            since: before.map_or(now, |it| it.since),
            until: for_s.map(|seconds| now + Duration::from_secs(seconds)),
        });
        gateway
            .set_maintenance(now, wanted)
            .map_err(|error| Failure::new(ErrorCode::Refused, error.to_string()))?;
        Ok(MaintenanceWait {
            on,
            until: wanted
                .and_then(|it| it.until)
                .map(|at| since_1970(shell, at)),
            deadline: now + HANDOVER,
        })
    }

    pub fn go_on(&mut self, gateway: &Gateway, now: Time, out: &mut String) -> Progress {
        let own = gateway
            .groups()
            .filter(|group| gateway.role_of(*group) == Role::Primary);
        let own: Vec<_> = own.collect();
        let has_peers = gateway
            .peers()
            .any(|peer| gateway.peer_state(now, peer).connected);
        if self.on && !own.is_empty() && has_peers && now < self.deadline {
            return Progress::More;
        }
        let done = MaintenanceDone {
            node: gateway.config().node.name.clone(),
            on: self.on,
            until: self.until,
            primary_of: own
                .iter()
                .map(|group| gateway.group_name(*group).to_owned())
                .collect(),
        };
        write_line(out, &done);
        Progress::Done
    }
}
