//! How often each policy decided, for administrators who look for unused ones.

use crate::flow::PolicyId;
use crate::policy::Ruleset;
use crate::session::Session;
use crate::time::Time;

use super::Gateway;

/// How often a policy decided since the start, or since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyUsage {
    /// Packets that would have opened a session, and that it decided.
    pub hits: u64,
    /// The time of the last one.
    pub last_hit: Option<Time>,
    /// Packets of its sessions that have ended here.
    pub ended_packets: u64,
    /// Bytes of these.
    pub ended_bytes: u64,
}

/// The usage of all policies, by [`PolicyId`].
#[derive(Clone, Debug, Default)]
pub(super) struct PolicyUsages {
    usages: Vec<PolicyUsage>,
}

impl PolicyUsages {
    pub(super) fn new(ruleset: &Ruleset) -> PolicyUsages {
        PolicyUsages {
            usages: vec![PolicyUsage::default(); ruleset.ids()],
        }
    }

    /// The policies have changed: there are this many ids, and some belong to other policies now.
    pub(super) fn adopt(&mut self, ids: usize, newcomers: &[PolicyId]) {
        self.usages.resize(ids, PolicyUsage::default());
        for id in newcomers {
            if let Some(usage) = self.usages.get_mut(usize::from(id.0)) {
                *usage = PolicyUsage::default();
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.usages.len()
    }

    pub(super) fn get(&self, policy: PolicyId) -> Option<PolicyUsage> {
        self.usages.get(usize::from(policy.0)).copied()
    }

    #[inline]
    pub(super) fn hit(&mut self, policy: PolicyId, now: Time) {
        if let Some(usage) = self.usages.get_mut(usize::from(policy.0)) {
            usage.hits += 1;
            usage.last_hit = Some(now);
        }
    }

    #[inline]
    pub(super) fn note_end(&mut self, session: &Session) {
        if let Some(usage) = self.usages.get_mut(usize::from(session.policy.0)) {
            usage.ended_packets += session.packets.iter().sum::<u64>();
            usage.ended_bytes += session.bytes.iter().sum::<u64>();
        }
    }
}

impl Gateway {
    /// The policy at a place in the config, with its usage.
    pub fn policy_usage(&self, place: usize) -> Option<(PolicyId, PolicyUsage)> {
        self.rules.usage(place)
    }
}
