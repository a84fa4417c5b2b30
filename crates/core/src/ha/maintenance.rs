//! Maintenance: the operator works on a unit, so it hands its groups over and stays standby, unless
//! it is the only one that can have them. Others know of it from its heartbeats.

use super::{Ha, election::State};
use crate::time::Time;

/// A maintenance in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// Its beginning; after a restart, that of the process.
    pub since: Time,
    /// When it ends by itself.
    pub until: Option<Time>,
}

impl Ha {
    /// Begins or ends the maintenance of this unit. As primary it hands over as soon as another
    /// unit that is not in maintenance holds the same sessions.
    pub(crate) fn set_maintenance(&mut self, now: Time, wanted: Option<Maintenance>) {
        let before = std::mem::replace(&mut self.maintenance, wanted);
        match (before, wanted) {
            (None, Some(_)) => {
                let why = "asked for by the operator";
                self.events.warn(now, "maintenance begins", why);
            }
            (Some(_), None) => self.events.info(now, "maintenance ends", ""),
            _ => {}
        }
        for group in &mut self.groups {
            // It was requested, so at once.
            group.handover_after = now;
        }
        self.settings_changed(now);
    }

    /// Begins a maintenance without an end; one in progress continues.
    pub(crate) fn begin_maintenance(&mut self, now: Time) {
        let since = now;
        if self.maintenance.is_none() {
            self.set_maintenance(now, Some(Maintenance { since, until: None }));
        }
    }

    /// The maintenance in progress.
    pub fn maintenance(&self) -> Option<Maintenance> {
        self.maintenance
    }

    /// Whether this unit is in maintenance and still primary of a group.
    pub(crate) fn serves_in_maintenance(&self) -> bool {
        let mut groups = self.groups.iter();
        self.maintenance.is_some() && groups.any(|group| group.state == State::Primary)
    }

    /// Ends a maintenance whose time is over.
    pub(super) fn expire_maintenance(&mut self, now: Time) {
        if self.maintenance_until().is_some_and(|until| now >= until) {
            self.set_maintenance(now, None);
        }
    }

    pub(super) fn maintenance_until(&self) -> Option<Time> {
        self.maintenance?.until
    }
}
