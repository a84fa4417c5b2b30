//! Begins and ends the maintenance of this unit.

use std::time::Duration;

use crate::flow::{GroupId, PeerId};
use crate::gateway::{Cluster, Gateway, Role};
use crate::ha::Maintenance;
use crate::time::Time;

use super::protocol::{ErrorCode, Failure, MaintenanceDone, write_line};
use super::status::since_1970;
use super::{Progress, ShellView};

/// The longest maintenance that can be requested, in seconds: a year. For a longer one, name no
/// time.
const LONGEST: u64 = 366 * 86_400;

/// How long the answer waits for the handovers: one takes a second at most, and a peer that has
/// just come back must fetch the sessions first.
const HANDOVER: Duration = Duration::from_secs(5);

/// A maintenance that has begun, until its groups are handed over, or it is clear that they can't
/// be.
#[derive(Debug)]
pub struct MaintenanceWait {
    on: bool,
    until: Option<f64>,
    deadline: Time,
    /// A peer in place of this unit.
    peer: Option<PeerId>,
}

impl MaintenanceWait {
    /// Begins or ends maintenance of this unit, or begins it on a peer.
    ///
    /// # Errors
    /// Why it can't.
    pub fn of(
        gateway: &mut Gateway,
        shell: &ShellView,
        unit: Option<String>,
        wanted: (bool, Option<u64>),
        now: Time,
    ) -> Result<MaintenanceWait, Failure> {
        match unit.filter(|unit| *unit != gateway.config().node.name) {
            Some(unit) => MaintenanceWait::ask(gateway, &unit, wanted, now),
            None => MaintenanceWait::begin(gateway, shell, wanted, now),
        }
    }

    /// If one of this unit is in progress, its end changes.
    fn begin(
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
            peer: None,
        })
    }

    /// Asks the peer of that name to begin one.
    fn ask(
        gateway: &mut Gateway,
        unit: &str,
        (on, for_s): (bool, Option<u64>),
        now: Time,
    ) -> Result<MaintenanceWait, Failure> {
        let peer = gateway.peers().find(|it| gateway.peer_name(*it) == unit);
        let peer = peer.ok_or_else(|| super::bad_request(format!("there is no unit `{unit}`")))?;
        if !on || for_s.is_some() {
            let why = "of another unit a maintenance can only begin, without an end";
            return Err(super::bad_request(why.to_owned()));
        }
        gateway
            .ask_to_drain(now, peer)
            .map_err(|error| Failure::new(ErrorCode::Refused, error.to_string()))?;
        Ok(MaintenanceWait {
            on,
            until: None,
            deadline: now + HANDOVER,
            peer: Some(peer),
        })
    }

    fn go_on_with_peer(
        &self,
        gateway: &Gateway,
        peer: PeerId,
        now: Time,
        out: &mut String,
    ) -> Progress {
        let node = gateway.peer_name(peer);
        let ha = gateway.cluster().map(Cluster::ha);
        let own = |group: &GroupId| {
            let view = ha.and_then(|ha| ha.group(now, *group));
            view.is_some_and(|view| view.primary == Some(node))
        };
        let own: Vec<_> = gateway.groups().filter(own).collect();
        let on = ha.and_then(|ha| ha.peer(now, peer));
        let on = on.is_some_and(|view| view.maintenance);
        if now < self.deadline && (!on || !own.is_empty()) {
            return Progress::More;
        }
        let names = own.iter().map(|group| gateway.group_name(*group));
        let done = MaintenanceDone {
            node: node.to_owned(),
            on,
            until: None,
            primary_of: names.map(str::to_owned).collect(),
        };
        write_line(out, &done);
        Progress::Done
    }

    pub fn go_on(&mut self, gateway: &Gateway, now: Time, out: &mut String) -> Progress {
        if let Some(peer) = self.peer {
            return self.go_on_with_peer(gateway, peer, now, out);
        }
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
