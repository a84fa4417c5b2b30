//! Changes the configuration while the gateway runs: applies at once what can be applied, and then
//! compares the sessions with it, some at a time.

use std::sync::Arc;

use crate::config::{self, Config, Difference, SwitchError, Switched};
use crate::in_quotes::InQuotes;
use crate::session::Timeouts;
use crate::time::Time;

use super::effects::Effects;
use super::limiter::Budgets;
use super::prepare::{
    Addresses, FormerAddresses, NewRules, Prepared, ReloadError, Reloaded, Retired,
};
use super::revalidate::Scope;
use super::rules::Basis;
use super::{Cluster, Gateway, group_places};

/// Differences that are named in one line of the log.
const MOST_LOGGED: usize = 20;

/// Addresses that are looked up in one piece: some 100 µs.
const NUMBERED_AT_A_TIME: usize = 512;

impl Gateway {
    /// Prepares and installs a reload in one go, for callers that have the time.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub fn reload(&mut self, now: Time, wanted: &Config) -> Result<Reloaded, ReloadError> {
        let prepared = Prepared::new(self.basis(), wanted)?;
        Ok(self.install(now, prepared)?.0)
    }

    /// Puts a reload in force, except parts that need a restart. Sessions that it forbids end in
    /// the next turns, until [`Gateway::is_reloading`] is false; only then may there be another
    /// reload.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub fn install(
        &mut self,
        now: Time,
        mut prepared: Prepared,
    ) -> Result<(Reloaded, Retired), ReloadError> {
        if self.is_reloading() {
            return Err(ReloadError::UnderWay);
        }
        if !self.is_current(&prepared) {
            return Err(ReloadError::Superseded);
        }
        while !self.number_some(&mut prepared)? {}
        let Prepared {
            basis,
            config,
            effects,
            rules,
            told,
        } = prepared;
        self.fast_path.stop_all();
        let changed = group_places::changed(&basis.config, &config);
        self.leave_groups(now, &changed);
        self.rules.set_config(config);
        if let Some(rules) = rules.as_ref().filter(|_| effects.groups) {
            self.follow_groups(now, &changed, &rules.ruleset);
        }
        let former = self.adopt(now, effects, rules);
        self.begin_groups(now, &changed);
        if group_places::are_cut_otherwise(&basis.config, self.rules.config()) {
            self.spread_hosts(now);
        }
        log_differences(&told);
        let keys = told.applied.iter().map(|it| it.key.as_str());
        let keys: Vec<&str> = keys.take(MOST_LOGGED).collect();
        let what = match told.applied.len() + told.more {
            1 => "config: 1 change in force".to_owned(),
            changes => format!("config: {changes} changes in force"),
        };
        self.log_event(now, "config", what, &keys.join(", "), None);
        Ok((told, Retired::new(basis, former)))
    }

    /// Does part of the slow work of [`Gateway::install`]; returns whether none is left.
    ///
    /// # Errors
    /// If there are more addresses in pools and forwards than can be held.
    pub fn number_some(&mut self, prepared: &mut Prepared) -> Result<bool, ReloadError> {
        let rules = prepared.rules.as_mut();
        let Some(addresses) = rules.and_then(|rules| rules.addresses.as_mut()) else {
            return Ok(true);
        };
        let layout = &mut addresses.layout;
        let numbered = self.sessions.number_some(layout, NUMBERED_AT_A_TIME);
        numbered.map_err(|_| ReloadError::TooManyAddresses)
    }

    /// Whether sessions are still being compared with the rules of the last reload.
    pub fn is_reloading(&self) -> bool {
        self.revalidation.concerns_rules() || self.multicast.is_comparing()
    }

    /// Sets one of [`config::switch_names`], until the next reload or restart.
    ///
    /// # Errors
    /// Why it can't be set.
    pub fn set_switch(
        &mut self,
        now: Time,
        key: &str,
        value: &str,
    ) -> Result<Switched, SwitchError> {
        let switched = config::set_switch(self.rules.config(), key, value)?;
        if !self.rules.set_ha(switched.ha.clone()) {
            return Err(SwitchError::ReloadUnderWay);
        }
        let (old, new) = (&switched.old, &switched.new);
        log::info!("switch set key={key} old={old} new={new}");
        let what = format!("{key} = {new}, was {old}");
        self.adopt(now, Effects::of([switched.live]), None);
        self.log_event(now, "switch", what, "", None);
        Ok(switched)
    }

    /// Has the parts follow the options that have changed in the config; with a ruleset if
    /// policies, pools or forwards are among them. Ports, groups and links are the same as before.
    fn adopt(
        &mut self,
        now: Time,
        effects: Effects,
        new_rules: Option<NewRules>,
    ) -> Option<FormerAddresses> {
        let Effects {
            rules,
            addresses: _,
            // Followed before.
            groups: _,
            sources,
            timeouts,
            source_limits,
            icmp_errors,
            announcements,
            targets,
            // The cluster's.
            priorities: _,
            override_: _,
            monitor: _,
            peers,
            pickup,
            pushers,
            weights,
            copies,
            witness: _,
            multicast,
            multicast_ttl,
        } = effects;
        if targets {
            self.targets.follow(self.rules.config(), now);
        }
        if timeouts {
            self.sessions
                .set_timeouts(Timeouts::from(&self.rules.config().timeouts));
        }
        if source_limits {
            self.sessions.set_limits(self.rules.config());
        }
        if icmp_errors {
            self.budgets = Budgets::new(self.rules.config().limits.icmp_errors_per_second);
        }
        if announcements {
            self.hosts.announcer.reconfigure(self.rules.config());
        }
        if multicast {
            self.adopt_multicast(now);
        }
        if multicast_ttl {
            self.multicast.untold.refresh_at_once(now);
        }
        let former = new_rules.and_then(|rules| self.adopt_rules(now, rules));
        let Basis { config, .. } = self.rules.basis();
        // Policies decide whether the others can be found where not all units hold everything.
        if peers || weights || copies || rules {
            self.in_cluster(now, |cluster, store| {
                cluster.set_peers(now, &config, store.journal_mut());
            });
        }
        // Streams that were closed are known as such: a handover on one of them would be lost.
        let up = self.ports_up(now);
        self.with_cluster(|cluster| cluster.adopt(now, &config, &effects, &up));
        if pushers {
            self.set_pushers();
        }
        let replicated = config.ha.as_ref().filter(|_| pickup);
        let more_are_replicated = replicated.is_some_and(|ha| self.sessions.set_pickup(ha));
        if rules || sources || more_are_replicated {
            self.revalidation.restart(Scope {
                routes: sources,
                rules,
                pickup: more_are_replicated,
                stepped_down: false,
            });
        }
        self.settle_cluster(now);
        former
    }

    /// Checks that each part that keeps a copy of an option has the value in force.
    pub(super) fn check_options(&self) {
        let config = self.rules.config();
        assert!(self.sessions.follows(config), "the sessions follow");
        let errors = config.limits.icmp_errors_per_second;
        assert!(
            self.budgets.are_of(errors),
            "the rate of errors is in force"
        );
        assert!(self.hosts.announcer.follows(config), "announcements follow");
        let monitors = &self.targets.monitors;
        assert!(monitors.follows(config), "the targets follow");
        let election = self.cluster().map(Cluster::ha);
        let follows = election.is_none_or(|ha| ha.follows(config));
        assert!(follows, "the election follows");
    }

    fn adopt_rules(&mut self, now: Time, rules: NewRules) -> Option<FormerAddresses> {
        let NewRules {
            ruleset,
            newcomers,
            addresses,
        } = rules;
        self.fragments.forget_decisions();
        self.rules.set_ruleset(Arc::clone(&ruleset), &newcomers);
        let former = addresses.map(|Addresses { layout, own, grown }| {
            let former = self.sessions.reconfigure_nat(layout);
            self.sessions.follow_networks(self.rules.config());
            self.multicast.doubt_sessions();
            let before = self.rules.set_addresses(own);
            for group in grown {
                if self.is_primary(group) {
                    self.announce_group(now, group);
                }
            }
            self.find_faults(now);
            (before, former)
        });
        self.in_cluster(now, |cluster, store| {
            cluster.set_policies(now, &ruleset, store.journal_mut());
        });
        former
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::config::Live;
    use crate::config::samples::{EDITS, EVERYTHING};
    use crate::config::{OptionDoc, Reload, options, switch_names, switches};
    use crate::gateway::Seed;
    use crate::policy::Ruleset;

    fn read(text: &str) -> Config {
        let read = config::parse(Path::new("a.toml"), text);
        read.unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
            .0
    }

    fn row(name: &str) -> &'static OptionDoc {
        let mut rows = options().iter();
        let is_it = |row: &&OptionDoc| format!("{}.{}", row.table, row.key) == name;
        rows.find(is_it).expect("EDITS name options")
    }

    #[test]
    fn each_option_is_in_force_after_a_reload_or_named_as_waiting() {
        let first = read(EVERYTHING);
        for (name, from, to, key) in EDITS.iter().filter(|(.., key)| *key != "?") {
            let row = row(name);
            let mut gateway = Gateway::new(first.clone(), Seed([7; 32]), Time::ZERO);
            let wanted = read(&EVERYTHING.replace(from, to));
            let told = gateway.reload(Time::ZERO, &wanted).unwrap();
            while gateway.is_reloading() {
                gateway.handle_timeout(Time::ZERO);
            }
            gateway.check_invariants();
            let values = [&first, &wanted, gateway.config()].map(|config| row.value_in(config, 0));
            let [before, asked, now] = values;
            assert!(asked.is_none() || before != asked, "{name}: another value");
            let (list, expected) = match row.reload {
                Reload::Live(_) | Reload::AsUsed => (&told.applied, asked),
                Reload::Restart => (&told.waiting, before),
            };
            assert!(list.iter().any(|d| d.key == *key), "{name}: {told:?}");
            assert_eq!(now, expected, "{name}");
            if let (true, Reload::Live(live)) = (now.is_none(), row.reload) {
                assert_eq!(
                    rules(gateway.config(), live),
                    rules(&wanted, live),
                    "{name}"
                );
                assert_eq!(
                    gateway.rules.ruleset().digest(),
                    Ruleset::new(&wanted).digest()
                );
            }
            if row.table == "ha" && switch_names().any(|switch| switch == row.key) {
                let shown = switches(gateway.config()).unwrap();
                let value = now.map(|value| value.show());
                let shown = shown.into_iter().find(|(switch, _)| *switch == row.key);
                assert_eq!(shown.map(|(_, shown)| shown), value, "{name}");
            }
        }
    }

    /// The parts of a config that are replaced as a whole.
    fn rules(config: &Config, live: Live) -> String {
        match live {
            Live::Policies => format!("{:?}", config.policies),
            Live::NatPools => format!("{:?}", config.nat_pools),
            Live::Forwards => format!("{:?}", config.forwards),
            Live::LinkMonitors => format!("{:?}", config.link_monitors),
            Live::Multicast => {
                format!(
                    "{:?} {:?}",
                    config.multicast_policies, config.multicast_joins
                )
            }
            Live::Groups => {
                let groups = config.known_groups().map(|(_, group)| &group.name);
                format!("{:?}", groups.collect::<BTreeSet<_>>())
            }
            Live::Peers => format!("{:?}", config.ha.as_ref().map(|ha| &ha.peers)),
            other => panic!("{other:?} has a value of its own"),
        }
    }

    /// The size of the table waits for a restart; what is derived from it must wait too.
    #[test]
    fn a_default_follows_the_value_that_is_in_force() {
        let text = |sessions: u32, ha: bool| {
            let text = EVERYTHING
                .replace("max-sessions = 5000", &format!("max-sessions = {sessions}"))
                .replace("sessions-per-source = 0", "")
                .replace("half-open-per-source = 0", "")
                .replace("tcp-pickup = false", "");
            let end = if ha {
                text.len()
            } else {
                text.find("[ha]").unwrap()
            };
            read(&text[..end])
        };
        let first = text(100_000, true);
        let mut gateway = Gateway::new(first, Seed([7; 32]), Time::ZERO);
        let told = gateway.reload(Time::ZERO, &text(1_000_000, false)).unwrap();
        let keys: Vec<_> = told.waiting.iter().map(|d| d.key.as_str()).collect();
        assert_eq!(keys, ["node.max-sessions", "ha"]);
        // Who is no longer named is cut off at once.
        let applied: Vec<_> = told.applied.iter().map(|d| d.key.as_str()).collect();
        assert_eq!(applied, ["ha.peer.b"]);
        gateway.check_invariants();
        let limits = gateway.sessions.table().source_limits();
        assert_eq!((limits.sessions, limits.half_open), (50_000, 6250));
        assert!(gateway.config().picks_up_tcp(), "there is an [ha] still");
    }
}
