//! Steering: the rules, routes and kernel parameters that lead the packets of the ports to the TUN
//! devices, and let none bypass them.
//!
//! For port number *i* with interface `eth0`, in routing table *T* = `routing-table` + *i*:
//!
//! ```text
//! T: iif eth0 lookup T                         rule, priority T
//! iif lo fwmark 0x74671e14 lookup 7700         rule, priority 7697: errors that this kernel makes
//! iif lo ipproto icmp dport 769 lookup 7700    7699: the same, by type and code (also ICMPv6)
//! the same, lookup main suppress_ifgroup …     7698: unless they do not go to a port
//! default dev tgw-lan metric 1024 hoplimit 255 in table T
//! blackhole default metric 4294967295          in table T
//! VIRTUAL-ADDRESS dev tgw-lan metric 1024      in main: errors that this kernel makes
//! NETWORK dev eth0 metric 1024                 in main: if the kernel has no address there
//! net.ipv4.conf.eth0.forwarding=1, net.ipv6.conf.eth0.force_forwarding=1
//! tgw-lan, eth0: group 1952915988              by which the rules know them; eth0 if it had none
//! ```
//!
//! **It fails closed.** A TUN and its routes vanish with the process; the rule and the blackhole
//! stay and discard what comes in by the port. So the blackhole is added before the rule, the rule
//! before forwarding is turned on, and they are removed in the opposite order. Leftovers of a crash
//! are adopted, never removed first.
//!
//! **It undoes itself.** Everything that is added has its own protocol number, so that the next
//! start recognises it, and the number of a rule also says whether forwarding was off before:
//! [`PROTOCOL_FORWARDING_WAS_OFF`]. So even a start after a crash knows what to restore.
//!
//! Neither the global `net.ipv4.ip_forward` nor, where the kernel has `force_forwarding` (6.17),
//! the global IPv6 switch is touched. `send_redirects` is left alone as well: a packet never leaves
//! by the interface that it came in by, since a TUN is always between.

mod detour;
mod error;
mod forwarding;
mod gap;
mod link_local;
mod obstacle;
mod parameters;
mod plan;
mod readdress;
mod restore;
mod spread;
mod survey;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::barrier::Barrier;
use super::fast_path::Taken;
use super::netlink::{
    IcmpKinds, KernelLink, KernelRoute, Netlink, NetlinkError, Rule, TABLE_LOCAL, TABLE_MAIN,
    default_network, net_family,
};
use super::sysctl::{self, SysctlError};
use forwarding::{forward, restore_forwarding};
use plan::{Plan, PortPlan};
use survey::{Survey, ensure_route, ensure_rule};
use tandemgw_core::config::Config;
use tandemgw_core::flow::Family;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::route::Spread;

pub use error::SetupError;
pub(super) use forwarding::forwarding_key;
pub use parameters::TUN_ADDRESS;
pub use readdress::RouteEdit;
pub(super) use restore::KERNEL_TABLES;
pub use restore::{Disturbance, Restored};
pub(super) use spread::number_in;

/// `rtm_protocol` of the routes and `FRA_PROTOCOL` of the rules that the gateway adds.
pub const PROTOCOL: u8 = 77;

/// `FRA_PROTOCOL` of a rule for whose interface and family forwarding is to be turned off when the
/// rule goes, because it was off when the rule came.
pub const PROTOCOL_FORWARDING_WAS_OFF: u8 = 78;

/// The numbers of tables and rule priorities, from `routing-table` on, that belong to one gateway,
/// if it does not have more ports.
const TABLES: u32 = 64;

/// A worse metric than that of the kernel's routes for its addresses, so that those win.
pub(super) const METRIC: u32 = 1024;

pub(super) const METRIC_BLACKHOLE: u32 = u32::MAX;

/// The routes, rules and devices in place while the gateway runs.
///
/// Legal calls: [`set_up`](Self::set_up), then [`disturb`](Self::disturb) and
/// [`repair_some`](Self::repair_some) any number of times, then [`remove`](Self::remove). Dropping
/// it without `remove` leaves everything in place, as a crash does.
pub struct Steering {
    netlink: Netlink,
    plan: Plan,
    barrier: Barrier,
    /// The addresses of this machine.
    own: BTreeSet<IpAddr>,
    /// Why there is no barrier.
    barrier_fault: Option<String>,
    stopped: restore::Stopped,
    /// Packets that the barrier had let pass to the gateway at its last check.
    let_pass: u64,
    /// Errors of the kernel that it had led there.
    led: u64,
    /// What the fast path takes of the packets of the ports; none without it.
    taken: Option<Taken>,
    obstacles: obstacle::Obstacles,
    measurements: gap::Measurements,
    /// Rules of the kernel's own that were there at the start.
    kernel_rules: Vec<Rule>,
    repairs: restore::Repairs,
    /// By family: the routes among whose next hops the kernel follows; none before the first are
    /// known.
    spread: [Option<Spread>; 2],
}

impl Steering {
    /// Steers the packets of all ports of `config` to `tuns`, the interface numbers of their TUN
    /// devices in the order of the ports. The devices must exist; they are set up here.
    ///
    /// Adopts what a crashed process has left. On an error everything is removed again.
    ///
    /// # Errors
    ///
    /// If a table or a rule priority is used by something else, an interface doesn't exist, or the
    /// kernel refuses.
    pub fn set_up(netlink: Netlink, config: &Config, tuns: &[u32]) -> Result<Steering, SetupError> {
        let mut barrier = Barrier::new(&config.node.name);
        barrier.follow(config);
        let mut steering = Steering {
            netlink,
            plan: Plan::new(config, tuns),
            barrier,
            own: BTreeSet::new(),
            barrier_fault: None,
            stopped: restore::Stopped::default(),
            let_pass: 0,
            led: 0,
            taken: None,
            obstacles: obstacle::Obstacles::default(),
            measurements: gap::Measurements::default(),
            kernel_rules: Vec::new(),
            repairs: restore::Repairs::default(),
            spread: [None, None],
        };
        steering.kernel_rules =
            restore::kernel_rules(&mut steering.netlink, &steering.plan.families)?;
        let survey = Survey::take(&mut steering.netlink, &steering.plan)?;
        steering.plan.remember_forwarding(&survey)?;
        if let Some(taken) = survey.taken(&steering.plan).into_iter().next() {
            return Err(SetupError::Taken(taken));
        }
        for route in survey.intruders() {
            log::warn!(
                "route removed route={} why=\"the table belongs to the gateway\"",
                InQuotes(route)
            );
            steering.netlink.remove_route(route)?;
        }
        let done = steering
            .apply(&survey)
            .and_then(|()| steering.remove_stale(&survey));
        if let Err(error) = done {
            if let Err(error) = steering.remove() {
                log::warn!(
                    "steering not undone after=\"a failed start\" error={}",
                    InQuotes(&error)
                );
            }
            return Err(error);
        }
        steering.disturb(Disturbance::KernelRules);
        // Some may have come before anybody listened.
        steering.disturb(Disturbance::OwnAddresses);
        Ok(steering)
    }

    /// Removes everything that was added, and turns forwarding off where it was off before. Call it
    /// while the TUN devices still exist.
    pub fn remove(mut self) -> Result<(), SetupError> {
        let survey = Survey::take(&mut self.netlink, &self.plan)?;
        // Tries each one even if an earlier one failed: an error must not leave the rest behind.
        let mut result = Ok(());
        for rule in &survey.rules {
            keep_first(&mut result, restore_forwarding(rule));
            // Somebody has renamed the interface.
            let posts = self.barrier.posts().iter();
            let index = posts
                .filter(|post| Some(&post.interface) == rule.interface.as_ref())
                .find_map(|post| post.index);
            let renamed = survey.links.values().find(|link| {
                Some(link.index) == index && Some(&link.name) != rule.interface.as_ref()
            });
            if let Some(link) = renamed {
                let interface = Some(link.name.clone());
                let rule = Rule {
                    interface,
                    ..rule.clone()
                };
                keep_first(&mut result, restore_forwarding(&rule));
            }
        }
        // While it forwards, the rules must stay: without them it would forward past the gateway.
        result?;
        let mut result = Ok(());
        keep_first(&mut result, self.follow_nothing());
        for route in survey.routes.iter().filter(|r| r.table == TABLE_MAIN) {
            keep_first(&mut result, self.netlink.remove_route(route));
        }
        for rule in survey.rules.iter().filter(|rule| is_ours(rule)) {
            keep_first(&mut result, self.netlink.remove_rule(rule));
        }
        for route in survey.routes.iter().filter(|r| r.table != TABLE_MAIN) {
            keep_first(&mut result, self.netlink.remove_route(route));
        }
        let group = self.plan.ports.first().map(|port| port.group);
        let of_group = |link: &&KernelLink| Some(link.group) == group;
        for link in survey.links.values().filter(of_group) {
            keep_first(&mut result, self.netlink.set_group(link.index, 0));
        }
        for port in &self.plan.ports {
            if let Some(link) = survey.links.get(&port.interface) {
                let removed = link_local::remove(&mut self.netlink, link.index);
                keep_first(&mut result, removed);
            }
        }
        if self.barrier_fault.is_none() {
            keep_first(&mut result, self.barrier.remove());
        }
        result
    }

    /// Adds what is missing, in an order that never lets a packet bypass the gateway.
    fn apply(&mut self, survey: &Survey) -> Result<(), SetupError> {
        self.own = survey.addresses.iter().map(|own| own.addr).collect();
        self.raise_barrier(|name| Some(survey.links.get(name)?.index));
        let Steering { netlink, plan, .. } = self;
        for port in &plan.ports {
            for family in &plan.families {
                ensure_route(netlink, survey, &port.blackhole(*family))?;
                ensure_rule(netlink, survey, &port.rule(*family))?;
            }
        }
        for port in &plan.ports {
            let Some(device) = survey.links.values().find(|link| link.index == port.tun) else {
                return Err(SetupError::NoTun(port.tun_name.clone()));
            };
            parameters::prepare(netlink, port, device, &plan.families, &mut Vec::new())?;
            for route in port.tun_routes(&plan.families) {
                ensure_route(netlink, survey, &route)?;
            }
            let Some(link) = survey.links.get(&port.interface) else {
                return Err(SetupError::NoInterface(port.interface.clone()));
            };
            parameters::prepare_port(netlink, port, link, &mut Vec::new())?;
            link_local::ensure(netlink, port, link, &survey.addresses);
            for route in port.network_routes(&plan.families, link, &survey.addresses, |_| true) {
                ensure_route(netlink, survey, &route)?;
            }
        }
        for family in &plan.families {
            for rule in plan.rules_for_errors(*family) {
                ensure_rule(netlink, survey, &rule)?;
            }
        }
        for port in &plan.ports {
            for family in &plan.families {
                forward(*family, &port.interface)?;
            }
        }
        Ok(())
    }

    /// Removes leftovers of an earlier process that this one does not need.
    fn remove_stale(&mut self, survey: &Survey) -> Result<(), SetupError> {
        let Steering { netlink, plan, .. } = self;
        for rule in survey.rules.iter().filter(|rule| is_ours(rule)) {
            if !plan.is_rule(rule) {
                log::info!(
                    "rule removed rule={} why=\"an earlier process left it\"",
                    InQuotes(&rule)
                );
                let served = |port: &PortPlan| Some(&port.interface) == rule.interface.as_ref();
                if !plan.ports.iter().any(served) {
                    restore_forwarding(rule)?;
                }
                netlink.remove_rule(rule)?;
            }
        }
        let wanted: BTreeSet<(IpNet, u32)> = plan.destinations().collect();
        for route in &survey.routes {
            if !wanted.contains(&(route.destination, route.table)) {
                netlink.remove_route(route)?;
            }
        }
        Ok(())
    }

    /// Whether rules of others come before the main table for packets of the gateway.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn has_foreign_rules(&mut self) -> Result<bool, NetlinkError> {
        are_any_foreign(&mut self.netlink, &self.plan)
    }
}

/// Whether rules of others come before the main table for packets of a gateway of `config`.
///
/// # Errors
/// What the kernel says.
pub fn has_foreign_rules(netlink: &mut Netlink, config: &Config) -> Result<bool, NetlinkError> {
    are_any_foreign(netlink, &Plan::new(config, &vec![0; config.ports.len()]))
}

fn are_any_foreign(netlink: &mut Netlink, plan: &Plan) -> Result<bool, NetlinkError> {
    // Before ours, a rule also decides what comes to the gateway.
    let concerns = |rule: &Rule, name: &String| {
        let mut ports = plan.ports.iter();
        ports.any(|port| {
            port.tun_name == *name || port.interface == *name && rule.priority <= port.table
        })
    };
    let is_foreign = |rule: &Rule| {
        let interface = rule.interface.as_ref();
        rule.priority < PRIORITY_MAIN
            && rule.table != TABLE_LOCAL
            && !is_ours(rule)
            && interface.is_none_or(|name| concerns(rule, name))
    };
    for family in &plan.families {
        if netlink.rules(*family)?.iter().any(is_foreign) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Which tables and rule priorities of `config` are used by something else; each as a sentence.
pub fn taken(netlink: &mut Netlink, config: &Config) -> Result<Vec<String>, NetlinkError> {
    let plan = Plan::new(config, &vec![0; config.ports.len()]);
    Ok(Survey::take(netlink, &plan)?.taken(&plan))
}

/// The priority of the rule that leads to the main table.
const PRIORITY_MAIN: u32 = 32766;

/// Whether a gateway has made the rule.
pub(super) fn is_ours(rule: &Rule) -> bool {
    matches!(rule.protocol, PROTOCOL | PROTOCOL_FORWARDING_WAS_OFF)
}

fn keep_first<E: Into<SetupError>>(result: &mut Result<(), SetupError>, next: Result<(), E>) {
    if let (Ok(()), Err(error)) = (&result, next) {
        *result = Err(error.into());
    }
}
