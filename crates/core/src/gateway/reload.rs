//! A changed configuration while the gateway runs: what can be applied is applied at once, and the
//! sessions are compared with it afterwards, a piece at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{self, Config, Difference, Group, Ha, Switched};
use crate::flow::{Addr, GroupId, PortId};
use crate::in_quotes::InQuotes;
use crate::policy::Ruleset;
use crate::session::Timeouts;
use crate::time::Time;

use super::limiter::Budgets;
use super::prepare::{Prepared, Reloaded, Retired};
use super::revalidate::Scope;
use super::{Gateway, local};

/// Differences that are named in one line of the log.
const MOST_LOGGED: usize = 20;

impl Gateway {
    /// Prepares and installs a reload in one go, for those who have the time.
    ///
    /// # Errors
    /// Why nothing was changed, as a sentence for the operator.
    pub fn reload(&mut self, now: Time, wanted: &Config) -> Result<Reloaded, String> {
        let prepared = Prepared::new(self.basis(), wanted)?;
        Ok(self.install(now, prepared)?.0)
    }

    /// Puts a reload in force, as far as that can be without a restart. Sessions that
    /// it forbids end in the next turns, until [`Gateway::is_reloading`] is false; only then may there be
    /// another reload.
    ///
    /// # Errors
    /// Why nothing was changed, as a sentence for the operator.
    pub fn install(
        &mut self,
        now: Time,
        prepared: Prepared,
    ) -> Result<(Reloaded, Retired), String> {
        if self.is_reloading() {
            return Err("a reload is under way".to_owned());
        }
        if !self.is_current(&prepared) {
            return Err("the configuration in force has changed meanwhile: try again".to_owned());
        }
        let config = &prepared.config;
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
        let Prepared {
            basis,
            config,
            ruleset,
            told,
        } = prepared;
        self.adopt(now, config, ruleset);
        log_differences(&told);
        Ok((told, Retired::new(basis)))
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
        let Some(config) = Arc::get_mut(&mut self.config) else {
            return Err("a reload is being prepared: try again in a moment".to_owned());
        };
        let before = config.ha.replace(switched.ha.clone());
        let (old, new) = (&switched.old, &switched.new);
        log::info!("switch set key={key} old={old} new={new}");
        let groups = self.config.groups.clone();
        let pickup = before.is_some_and(|before| self.adopt_ha(now, &before, &groups));
        self.announcer.reconfigure(&self.config);
        if pickup {
            self.revalidation.restart(Scope {
                pickup,
                ..Scope::default()
            });
        }
        self.settle_cluster(now);
        Ok(switched)
    }

    /// Puts a configuration in force that has the same ports, groups, links and peers; with a ruleset if
    /// policies, pools or forwards are others.
    fn adopt(&mut self, now: Time, config: Arc<Config>, ruleset: Option<Arc<Ruleset>>) {
        let old = std::mem::replace(&mut self.config, config);
        let new = &self.config;
        let rules = ruleset.is_some();
        // A port that has come to check sources may have sessions that fail.
        let ports = old.ports != new.ports;
        if old.timeouts != new.timeouts {
            self.table.set_timeouts(Timeouts::from(&new.timeouts));
        }
        if old.limits != new.limits {
            self.table
                .set_source_limits(super::open::source_limits(new));
        }
        if old.limits.icmp_errors_per_second != new.limits.icmp_errors_per_second {
            self.budgets = Budgets::new(new.limits.icmp_errors_per_second);
        }
        self.announcer.reconfigure(&self.config);
        if let Some(ruleset) = ruleset {
            self.adopt_rules(now, ruleset);
        }
        let before = old.ha.as_ref();
        let pickup = before.is_some_and(|before| self.adopt_ha(now, before, &old.groups));
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

    fn adopt_rules(&mut self, now: Time, ruleset: Arc<Ruleset>) {
        self.policy_usages.adopt(&self.ruleset, &ruleset);
        self.ruleset = ruleset;
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
            let before: BTreeSet<&(Addr, GroupId)> = before.iter().collect();
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
    fn adopt_ha(&mut self, now: Time, before: &Ha, groups: &[Group]) -> bool {
        let (Some(cluster), Some(ha)) = (&mut self.cluster, &self.config.ha) else {
            return false;
        };
        let groups = groups.iter().zip(&self.config.groups);
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

fn log_differences(told: &Reloaded) {
    let shown: Vec<String> = told
        .applied
        .iter()
        .take(MOST_LOGGED)
        .map(|Difference { key, what }| format!("{key}: {what}"))
        .collect();
    let (count, shown) = (told.applied.len() + told.more, shown.join(", "));
    log::info!("reload done changes={count} changed={}", InQuotes(&shown));
    for Difference { key, what } in told.waiting.iter().take(MOST_LOGGED) {
        log::warn!(
            "reload waits for a restart key={key} change={what}",
            key = InQuotes(&key),
            what = InQuotes(&what)
        );
    }
}
