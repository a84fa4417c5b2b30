//! Groups that come and go while the unit runs.

use std::time::Duration;

use super::Ha;
use super::election::{Group, State};
use crate::config;
use crate::flow::{GroupId, GroupSet};
use crate::time::Time;

/// How long a starting unit waits for its peers, at least.
const LEAST_INIT_WAIT: Duration = Duration::from_millis(500);

impl Ha {
    /// How long a unit that has just got a group waits for its peers.
    pub(super) fn init_until(&self, now: Time) -> Time {
        now + (self.hold() * 3).max(LEAST_INIT_WAIT)
    }

    /// Gives up a group that is about to lose its place: those peers that have it choose another
    /// primary.
    pub(crate) fn leave_group(&mut self, now: Time, id: GroupId) {
        let group = usize::from(id.0);
        if self.groups.get(group).map(|it| it.state) == Some(State::Primary) {
            self.step_down(
                now,
                group,
                "the group is no longer in the config".to_owned(),
            );
        }
    }

    /// Slots that their groups are no longer cut into go to the primaries of these, as far as they
    /// have sessions: see `gateway/cuts.rs`.
    pub(crate) fn set_former_slots(&mut self, slots: GroupSet) {
        self.former_slots = slots;
    }

    /// Gives the place `id` to a group that nothing is known of, or empties it. This unit is not
    /// its primary. Places are given in order.
    pub(crate) fn reset_group(
        &mut self,
        now: Time,
        id: GroupId,
        group: Option<(&config::Ha, &config::Group)>,
    ) {
        let at = usize::from(id.0);
        let fresh = match group {
            Some((ha, group)) => new_group(ha, group, now, self.init_until(now)),
            None => Group::vacant(now),
        };
        if self.groups.len() <= at {
            self.groups.resize_with(at + 1, || Group::vacant(now));
        }
        for peer in &mut self.peers {
            peer.reset_group(self.groups.len(), at);
        }
        let is_whole = fresh.part_of.is_none();
        let (name, former) = (fresh.name.clone(), &mut self.groups[at]);
        let former = std::mem::replace(former, fresh);
        let why = "it is not in the config";
        if former.exists() && former.part_of.is_none() {
            let what = format!("{} is no longer a group", former.name);
            self.events.info(now, what, why);
        }
        if !name.is_empty() && is_whole {
            let what = format!("{name} is a group from now on");
            self.events.info(now, what, "it is in the config");
        }
        self.urgent = true;
        self.evaluate_all(now);
        self.flush(now);
    }
}

pub(super) fn new_group(ha: &config::Ha, group: &config::Group, now: Time, until: Time) -> Group {
    let priority = group.priority.unwrap_or(ha.priority);
    Group {
        part_of: group.part_of,
        ..Group::new(&group.name, priority, now, until)
    }
}
