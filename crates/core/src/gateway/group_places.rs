//! Groups that a reload adds and removes: each part of the unit follows.

use crate::config::{Config, Group};
use crate::flow::{GroupId, LinkId, PeerId};
use crate::policy::Ruleset;
use crate::store::Journal;
use crate::time::Time;

use super::{Cluster, Gateway, Role};

/// The places that have another group in `new` than in `old`, or none.
pub(super) fn changed(old: &Config, new: &Config) -> Vec<GroupId> {
    let name = |config: &Config, at: usize| -> String {
        let group: Option<&Group> = config.groups.get(at);
        group.map_or_else(String::new, |group| group.name.clone())
    };
    let places = 0..old.groups.len().max(new.groups.len());
    places
        .filter(|at| name(old, *at) != name(new, *at))
        .map(|at| GroupId(at as u8))
        .collect()
}

/// Whether a group has other slots in `new` than in `old`.
pub(super) fn are_cut_otherwise(old: &Config, new: &Config) -> bool {
    let mut both = old.groups.iter().zip(&new.groups);
    both.any(|(old, new)| old.slots != new.slots)
}

impl Gateway {
    /// Before a config is in force: this unit gives up groups that are no longer in it. Their
    /// sessions stay for those peers that have the group still, and end here.
    pub(super) fn leave_groups(&mut self, now: Time, changed: &[GroupId]) {
        let known: Vec<GroupId> = self.groups().filter(|it| changed.contains(it)).collect();
        for group in known {
            self.in_cluster(now, |cluster, _| cluster.ha.leave_group(now, group));
            if self.is_primary(group) {
                self.set_role(now, group, Role::Standby);
            }
        }
    }

    /// After a config is in force: election and replication know its groups.
    pub(super) fn follow_groups(&mut self, now: Time, changed: &[GroupId], ruleset: &Ruleset) {
        changed.iter().for_each(|group| self.groups.reset(*group));
        self.add_slots(changed);
        let config = self.rules.basis().config;
        self.in_cluster(now, |cluster, store| {
            let journal = store.journal_mut();
            cluster.follow_groups(now, (changed, ruleset), &config, journal);
        });
    }

    /// A standalone gateway is primary of groups that are new.
    pub(super) fn begin_groups(&mut self, now: Time, changed: &[GroupId]) {
        if self.cluster().is_some() {
            return;
        }
        let known: Vec<GroupId> = self.groups().filter(|it| changed.contains(it)).collect();
        for group in known {
            self.set_role(now, group, Role::Primary);
        }
    }
}

impl Cluster {
    /// Closes all streams, since their Hello has the former groups, and opens them again.
    fn follow_groups(
        &mut self,
        now: Time,
        (changed, ruleset): (&[GroupId], &Ruleset),
        config: &Config,
        journal: &mut Journal,
    ) {
        let Some(ha) = &config.ha else { return };
        let left: Vec<(PeerId, LinkId)> = self.close_streams(now, journal);
        for group in changed {
            self.sync.reset_group(*group, journal);
        }
        self.sync.set_groups(config, ha, ruleset);
        self.ha.set_former_slots(config.former_slots());
        self.open_streams(now, left, journal);
        for group in changed {
            let settings = config.groups.get(usize::from(group.0));
            let settings = settings.filter(|group| group.exists());
            self.ha
                .reset_group(now, *group, settings.map(|group| (ha, group)));
        }
    }
}
