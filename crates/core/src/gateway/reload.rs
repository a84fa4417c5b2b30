//! A changed configuration while the gateway runs: what can be applied is applied at once, and the
//! sessions are compared with it afterwards, a piece at a time.

use crate::config::{self, Change, Config, Difference, Switched};
use crate::flow::{Addr, GroupId, PortId};
use crate::in_quotes::InQuotes;
use crate::session::Timeouts;
use crate::time::Time;

use super::limiter::Limiter;
use super::revalidate::Scope;
use super::{Gateway, local};

/// Differences that are named in one line of the log.
const MOST_LOGGED: usize = 20;

/// What a reload has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// What has changed.
    pub applied: Vec<Difference>,
    /// What waits for a restart.
    pub waiting: Vec<Difference>,
    /// The addresses that the gateway answers for, or translates to, may be other ones.
    pub addresses_changed: bool,
}

impl Gateway {
    /// Makes `wanted` the configuration in force, as far as that can be without a restart. Sessions that
    /// it forbids end in the next turns, until [`Gateway::is_reloading`] is false; only then may there be
    /// another reload.
    ///
    /// # Errors
    /// Why nothing was changed, as a sentence for the operator.
    pub fn reload(&mut self, now: Time, wanted: &Config) -> Result<Reloaded, String> {
        if self.is_reloading() {
            return Err("a reload is under way".to_owned());
        }
        let change = Change::new(&self.config, wanted);
        let config = &change.config;
        let pools = config.nat_pools.iter().flat_map(|pool| &pool.addresses);
        let servers = config.forwards.iter().map(|forward| &forward.internal.0);
        let unknown = pools.chain(servers);
        let unknown = unknown.filter(|addr| self.book.find(**addr).is_none());
        if unknown.count() > self.book.room() {
            return Err(
                "there were too many addresses in pools and forwards since the start: restart"
                    .to_owned(),
            );
        }
        let addresses_changed = self.config.nat_pools != config.nat_pools
            || self.config.forwards != config.forwards
            || self.config.policies != config.policies;
        self.adopt(now, change.config);
        log_differences(&change.applied, &change.waiting);
        Ok(Reloaded {
            applied: change.applied,
            waiting: change.waiting,
            addresses_changed,
        })
    }

    /// Whether sessions have yet to be compared with the rules of the last reload.
    pub fn is_reloading(&self) -> bool {
        self.revalidation.concerns_rules()
    }

    /// Sets one of [`config::SWITCHES`], until the next reload or restart.
    ///
    /// # Errors
    /// Why it can't be, as a sentence for the operator.
    pub fn set_switch(&mut self, now: Time, key: &str, value: &str) -> Result<Switched, String> {
        let switched = config::set_switch(&self.config, key, value)?;
        let (old, new) = (&switched.old, &switched.new);
        log::info!("switch set key={key} old={old} new={new}");
        self.adopt(now, switched.config.clone());
        Ok(switched)
    }

    /// Puts a configuration in force that has the same ports, groups, links and peers.
    fn adopt(&mut self, now: Time, config: Config) {
        let old = std::mem::replace(&mut self.config, config);
        let new = &self.config;
        let rules = (&old.policies, &old.nat_pools, &old.forwards)
            != (&new.policies, &new.nat_pools, &new.forwards);
        // A port that has come to check sources may have sessions that fail.
        let ports = old.ports != new.ports;
        if old.timeouts != new.timeouts {
            self.table.set_timeouts(Timeouts::from(&new.timeouts));
        }
        if old.limits.half_open_per_source != new.limits.half_open_per_source {
            let limit = new.limits.half_open_per_source;
            self.table.set_half_open_limit(limit);
        }
        if old.limits.icmp_errors_per_second != new.limits.icmp_errors_per_second {
            self.icmp_limiter = Limiter::new(new.limits.icmp_errors_per_second);
        }
        self.announcer.reconfigure(&self.config);
        if rules {
            self.adopt_rules(now);
        }
        let pickup = self.adopt_ha(now, &old);
        if rules || ports || pickup {
            self.revalidation.restart(Scope {
                routes: ports,
                rules,
                pickup,
                stepped_down: false,
            });
        }
        self.settle_cluster(now);
    }

    fn adopt_rules(&mut self, now: Time) {
        self.ruleset = self.ruleset.succeeded_by(&self.config);
        self.nat.reconfigure(&self.config, &mut self.book);
        self.fragments.forget_decisions();
        let addresses = local::addresses(&self.config, &self.nat);
        let before = std::mem::replace(&mut self.addresses, addresses);
        self.announce_new(now, &before);
        self.find_faults(now);
        if let Some(cluster) = &mut self.cluster
            && cluster.sync.set_policies(&self.ruleset)
        {
            self.reopen_streams(now);
        }
    }

    /// Announces the groups that have addresses which they did not have `before`.
    fn announce_new(&mut self, now: Time, before: &[Vec<(Addr, GroupId)>]) {
        let mut groups = Vec::new();
        for (port, before) in (0..).map(PortId).zip(before) {
            let new = self.addresses_on(port).filter(|own| !before.contains(own));
            groups.extend(new.map(|(_, group)| group));
        }
        for group in self.groups().filter(|group| groups.contains(group)) {
            if self.is_primary(group) {
                self.announce_group(now, group);
            }
        }
    }

    /// Tells election and replication of their switches; gives whether more sessions are replicated.
    fn adopt_ha(&mut self, now: Time, old: &Config) -> bool {
        let (Some(cluster), Some(before), Some(ha)) = (&mut self.cluster, &old.ha, &self.config.ha)
        else {
            return false;
        };
        let groups = old.groups.iter().zip(&self.config.groups);
        for (group, (old, new)) in (0..).map(GroupId).zip(groups) {
            let priority = new.priority.unwrap_or(ha.priority);
            if priority != old.priority.unwrap_or(before.priority) {
                cluster.ha.set_priority(now, Some(group), priority);
            }
        }
        if ha.override_ != before.override_ {
            cluster.ha.set_override(now, ha.override_);
        }
        if ha.monitor != before.monitor {
            let up: Vec<bool> = self.ports.iter().map(super::PortState::works).collect();
            cluster.ha.set_monitor(now, &ha.monitor, &up);
        }
        cluster.sync.set_pickup(ha)
    }
}

fn log_differences(applied: &[Difference], waiting: &[Difference]) {
    let shown: Vec<String> = applied
        .iter()
        .take(MOST_LOGGED)
        .map(|Difference { key, what }| format!("{key}: {what}"))
        .collect();
    let (count, shown) = (applied.len(), shown.join(", "));
    log::info!("reload done changes={count} changed={}", InQuotes(&shown));
    for Difference { key, what } in waiting.iter().take(MOST_LOGGED) {
        log::warn!(
            "reload waits for a restart key={key} change={what}",
            key = InQuotes(&key),
            what = InQuotes(&what)
        );
    }
}
