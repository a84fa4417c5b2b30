//! How often each policy decided, for administrators who look for the ones that are of no use.

use crate::flow::PolicyId;
use crate::policy::Ruleset;
use crate::session::Session;
use crate::time::Time;

use super::Gateway;

/// What a policy has decided since the start, or since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyUsage {
    /// Packets that would open a session, and that it decided.
    pub hits: u64,
    /// When it did so last.
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
    pub fn new(ruleset: &Ruleset) -> PolicyUsages {
        let count = ruleset.names().count();
        PolicyUsages {
            usages: vec![PolicyUsage::default(); count],
        }
    }

    /// The policies have changed. An id that belongs to another policy now begins again.
    pub fn adopt(&mut self, before: &Ruleset, ruleset: &Ruleset) {
        let count = ruleset.names().count();
        self.usages.resize(count, PolicyUsage::default());
        let names = before.names().zip(ruleset.names());
        for (usage, (before, name)) in self.usages.iter_mut().zip(names) {
            if before != name {
                *usage = PolicyUsage::default();
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (PolicyId, PolicyUsage)> {
        let numbered = (0..).map(PolicyId).zip(&self.usages);
        numbered.map(|(id, usage)| (id, *usage))
    }

    #[inline]
    pub fn hit(&mut self, policy: PolicyId, now: Time) {
        if let Some(usage) = self.usages.get_mut(usize::from(policy.0)) {
            usage.hits += 1;
            usage.last_hit = Some(now);
        }
    }

    #[inline]
    pub fn note_end(&mut self, session: &Session) {
        if let Some(usage) = self.usages.get_mut(usize::from(session.policy.0)) {
            usage.ended_packets += session.packets.iter().sum::<u64>();
            usage.ended_bytes += session.bytes.iter().sum::<u64>();
        }
    }
}

impl Gateway {
    /// The policies in force with what they have decided, in the order of the config.
    pub fn policy_usages(&self) -> Vec<(PolicyId, PolicyUsage)> {
        self.rules.usages()
    }
}
