//! The settings of the election that a reload or a switch changes.

use std::time::Duration;

use super::Ha;
use crate::config::{self, Config};
use crate::flow::{GroupId, PortId};
use crate::time::Time;

impl Ha {
    /// Lets units of higher priority take over from this one, and lets this unit, when it has been
    /// fit for that long, take over from others; for all groups.
    pub(crate) fn set_override(&mut self, now: Time, override_: bool, wait: Duration) {
        (self.override_, self.override_wait) = (override_, wait);
        self.settings_changed(now);
    }

    /// Sets this unit's priority for `group`, or for all.
    pub(crate) fn set_priority(&mut self, now: Time, group: Option<GroupId>, priority: u8) {
        for (index, state) in self.groups.iter_mut().enumerate() {
            if group.is_none_or(|group| usize::from(group.0) == index) {
                state.priority = priority;
            }
        }
        self.settings_changed(now);
    }

    /// Sets the ports that must be up, of those whose states are `up`, parallel to `config.ports`.
    pub(crate) fn set_monitor(&mut self, now: Time, monitor: &[PortId], up: &[bool]) {
        self.monitor = monitor.to_vec();
        self.handle_ports(now, up);
        self.settings_changed(now);
    }

    /// Whether the settings that a reload can change are those of `config`.
    pub fn follows(&self, config: &Config) -> bool {
        let Some(ha) = &config.ha else { return false };
        let priority = |group: &config::Group| group.priority.unwrap_or(ha.priority);
        let priorities = config.known_groups().map(|(_, group)| priority(group));
        let groups = self.groups.iter().filter(|group| group.exists());
        let is_listed = |name: &str| ha.peers.iter().any(|peer| peer.name == name);
        self.override_ == ha.override_
            && self.copies == config.copies()
            && self.former_slots == config.former_slots()
            && self.known_peers().count() == ha.peers.len()
            && self.known_peers().all(|peer| is_listed(&peer.name))
            && self.monitor == ha.monitor
            && self.follows_witness(ha)
            && priorities.eq(groups.map(|group| group.priority))
    }

    pub(super) fn settings_changed(&mut self, now: Time) {
        for group in &mut self.groups {
            group.given_away = false;
        }
        self.urgent = true;
        self.evaluate_all(now);
        self.flush(now);
    }
}
