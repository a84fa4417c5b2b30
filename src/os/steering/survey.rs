//! The routes and rules found in place, as far as they matter.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Plan;
use super::{KernelLink, KernelRoute, Netlink, NetlinkError, PROTOCOL, Rule, TABLE_MAIN, is_ours};
use crate::os::barrier::first_table_of;
use crate::os::netlink::Address;

/// The routes and rules found in place, as far as they matter.
pub(super) struct Survey {
    pub(super) links: BTreeMap<String, KernelLink>,
    pub(super) addresses: Vec<Address>,
    /// Rules that are ours, or that use our numbers.
    pub(super) rules: Vec<Rule>,
    /// Routes in our tables, and in the main table those that are ours.
    pub(super) routes: Vec<KernelRoute>,
}

impl Survey {
    pub(super) fn take(netlink: &mut Netlink, plan: &Plan) -> Result<Survey, NetlinkError> {
        let links = netlink.links()?;
        let mut survey = Survey {
            links: links.into_iter().map(|l| (l.name.clone(), l)).collect(),
            addresses: netlink.addresses()?,
            rules: Vec::new(),
            routes: Vec::new(),
        };
        let names: BTreeSet<&str> = plan.ports.iter().map(|p| p.interface.as_str()).collect();
        let is_port = |rule: &Rule| {
            let name = rule.interface.as_deref();
            let is_tun = |name| plan.ports.iter().any(|port| port.tun_name == name);
            name.is_some_and(|name| names.contains(name) || is_tun(name))
        };
        // Ours are the main table's routes to our TUN devices and on the links of our ports.
        let of_ports = |survey: &Survey| -> BTreeSet<u32> {
            let interfaces = names.iter().filter_map(|name| survey.links.get(*name));
            let tuns = plan.ports.iter().map(|port| port.tun);
            tuns.chain(interfaces.map(|link| link.index)).collect()
        };
        let devices = of_ports(&survey);
        let leads_errors = |rule: &Rule| is_ours(rule) && rule.is_choosy();
        for family in &plan.families {
            let relevant = |rule: &Rule| {
                plan.is_table(rule.priority)
                    || plan.is_table(rule.table)
                    || (is_ours(rule) && is_port(rule))
                    || leads_errors(rule)
            };
            survey
                .rules
                .extend(netlink.rules(*family)?.into_iter().filter(relevant));
            for port in &plan.ports {
                survey
                    .routes
                    .extend(netlink.routes(*family, port.table, 0)?);
            }
            let main = netlink.routes(*family, TABLE_MAIN, PROTOCOL)?;
            let mine = |route: &KernelRoute| route.hops.iter().all(|h| devices.contains(&h.link));
            survey.routes.extend(main.into_iter().filter(mine));
        }
        survey.forget_errors_of_others(plan);
        Ok(survey)
    }

    /// Of the rules for errors of the kernel, those of another gateway on this machine lead to
    /// tables that nothing else here is about.
    fn forget_errors_of_others(&mut self, plan: &Plan) {
        let tables = self.rules.iter().filter(|rule| !rule.is_choosy());
        let tables: BTreeSet<u32> = tables.map(|rule| rule.table).collect();
        self.rules.retain(|rule| {
            let of_group = rule.but_for_group.map(first_table_of);
            let table = of_group.unwrap_or(rule.table);
            !rule.is_choosy() || plan.is_table(table) || tables.contains(&table)
        });
    }

    /// Tables and rule priorities of the ports that something else uses.
    pub(super) fn taken(&self, plan: &Plan) -> Vec<String> {
        let is_needed = |number: u32| plan.ports.iter().any(|port| port.table == number);
        let rules = self
            .rules
            .iter()
            .filter(|rule| !is_ours(rule) && (is_needed(rule.priority) || is_needed(rule.table)));
        let routes = self.foreign_routes();
        let routes = routes.filter(|r| is_needed(r.table) && !self.is_led_to_by_us(r.table));
        rules
            .map(|rule| format!("rule priority or table is taken by the rule \"{rule}\""))
            .chain(routes.map(|r| format!("routing table {} is taken by \"{r}\"", r.table)))
            .collect()
    }

    /// Routes of others in the tables that an earlier process of ours has left: they were added
    /// later, and may take precedence over ours.
    pub(super) fn intruders(&self) -> impl Iterator<Item = &KernelRoute> {
        let routes = self.foreign_routes();
        routes.filter(|route| self.is_led_to_by_us(route.table))
    }

    fn foreign_routes(&self) -> impl Iterator<Item = &KernelRoute> {
        self.routes
            .iter()
            .filter(|route| route.protocol != PROTOCOL)
    }

    fn is_led_to_by_us(&self, table: u32) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|rule| is_ours(rule) && rule.table == table)
    }
}

pub(super) fn ensure_rule(
    netlink: &mut Netlink,
    survey: &Survey,
    rule: &Rule,
) -> Result<(), NetlinkError> {
    let is_same = |other: &Rule| {
        is_ours(other)
            && !other.special
            && other.family == rule.family
            && (other.priority, other.table, &other.interface)
                == (rule.priority, rule.table, &rule.interface)
            && (other.mark, other.icmp, other.but_for_group)
                == (rule.mark, rule.icmp, rule.but_for_group)
    };
    if survey.rules.iter().any(is_same) {
        return Ok(());
    }
    netlink.add_rule(rule)
}

pub(super) fn ensure_route(
    netlink: &mut Netlink,
    survey: &Survey,
    route: &KernelRoute,
) -> Result<(), NetlinkError> {
    let key = |route: &KernelRoute| (route.destination, route.table, route.metric);
    let mut same_key = survey
        .routes
        .iter()
        .filter(|other| key(other) == key(route));
    match same_key.next() {
        None => netlink.add_route(route),
        // A blackhole of IPv6 is reported with the loopback device as its hop.
        Some(other) if other.kind == route.kind && route.hops.is_empty() => Ok(()),
        Some(other) if other.kind == route.kind && other.hops == route.hops => Ok(()),
        Some(_) => netlink.replace_route(route),
    }
}
