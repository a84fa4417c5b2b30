//! Restores, piece by piece, what somebody else removes while the gateway runs.
//!
//! Nothing is listed for this: each item is added on the condition that it does not exist, so the
//! kernel itself says whether it was missing. One step takes some 100 µs, regardless of the number
//! of ports and routes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use netlink_packet_route::route::RouteProtocol;

use super::detour::hosts;
use super::forwarding::forward;
use super::plan::{PortPlan, can_carry};
use super::{
    Family, KernelLink, KernelRoute, Netlink, NetlinkError, PROTOCOL, Rule, SetupError, Steering,
    TABLE_MAIN, link_local, net_family, number_in, parameters,
};
use crate::os::barrier::{Condition, Post};
use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;

/// Routes to addresses that are checked in one step: each is a system call of some 10 µs.
const ROUTES_PER_STEP: usize = 8;

/// `RT_TABLE_DEFAULT` (empty as a rule), `RT_TABLE_MAIN` and `RT_TABLE_LOCAL`.
pub(in crate::os) const KERNEL_TABLES: RangeInclusive<u32> = 253..=255;

/// Something of the steering that may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// A rule, a route of its table, the TUN device, or a parameter of this port.
    Port(PortId),
    /// The same, but nobody removed it: the kernel drops some of it when an interface goes down,
    /// and with an address.
    Expected(PortId),
    /// A route in the main table to an address at this port.
    Addresses(PortId),
    /// Any of these, at any port.
    All,
    /// The addresses of this machine.
    OwnAddresses,
    /// A rule that leads to the kernel's own tables. Without it the kernel forwards nothing.
    KernelRules,
}

/// Things that were restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The port that it was missing at; none if it concerns all.
    pub port: Option<PortId>,
    /// What somebody had removed or changed.
    pub what: Vec<String>,
    /// What the kernel had dropped by itself.
    pub by_kernel: Vec<String>,
}

impl Restored {
    /// Whether nothing was missing.
    pub fn is_empty(&self) -> bool {
        self.what.is_empty() && self.by_kernel.is_empty()
    }
}

/// Packets that the barrier has stopped, as far as known: its counters start at 0 each time it is
/// set.
#[derive(Default)]
pub(super) struct Stopped {
    by_former_ones: u64,
    by_this_one: u64,
}

impl Stopped {
    fn reset(&mut self) {
        self.by_former_ones += std::mem::take(&mut self.by_this_one);
    }
}

/// Checks still to be made.
#[derive(Default)]
pub(super) struct Repairs {
    /// Also whether the kernel removed it by itself.
    ports: VecDeque<(PortId, bool)>,
    /// Also the address to continue from.
    addresses: VecDeque<(PortId, usize)>,
    kernel_rules: bool,
    own_addresses: bool,
}

impl Steering {
    /// Records that something may be gone. [`repair_some`](Self::repair_some) checks it.
    pub fn disturb(&mut self, disturbance: Disturbance) {
        let repairs = &mut self.repairs;
        let ports = match disturbance {
            Disturbance::Port(port) => vec![port],
            Disturbance::Expected(port) => {
                repairs.ports.retain(|(other, _)| *other != port);
                return repairs.ports.push_back((port, true));
            }
            Disturbance::All => self.plan.ports.iter().map(|port| port.id).collect(),
            Disturbance::Addresses(port) => {
                repairs.addresses.retain(|(other, _)| *other != port);
                return repairs.addresses.push_back((port, 0));
            }
            Disturbance::KernelRules => {
                repairs.kernel_rules = true;
                return;
            }
            Disturbance::OwnAddresses => {
                repairs.own_addresses = true;
                return;
            }
        };
        for port in ports {
            if !repairs.ports.iter().any(|(other, _)| *other == port) {
                repairs.ports.push_back((port, false));
            }
        }
    }

    /// Checks the parameters of a port, because the kernel does not report all changes. Of several
    /// next hops it reports what is removed from the tables, but not that a link that came up lacks
    /// its routes.
    pub fn audit(&mut self, port: PortId) {
        let plan = self.plan.ports.iter().find(|plan| plan.id == port);
        if self.is_spread()
            || plan.is_some_and(|plan| parameters::differ(plan, &self.plan.families))
        {
            self.disturb(Disturbance::Port(port));
        }
    }

    /// Whether there is something to check.
    pub fn is_disturbed(&self) -> bool {
        let Repairs {
            ports,
            addresses,
            kernel_rules,
            own_addresses,
        } = &self.repairs;
        *kernel_rules || *own_addresses || !ports.is_empty() || !addresses.is_empty()
    }

    /// Checks one of the items that may be gone, restores it if it is, and reports it: also what
    /// was restored before the kernel refused something.
    ///
    /// # Errors
    /// [`SetupError::NoTun`] if the TUN device of that port is gone: make it again and call
    /// [`replace_tun`](Self::replace_tun). Otherwise the kernel's refusal.
    pub fn repair_some(&mut self) -> (Restored, Result<(), SetupError>) {
        let mut restored = Restored::default();
        let result = self.repair_into(&mut restored);
        (restored, result)
    }

    fn repair_into(&mut self, restored: &mut Restored) -> Result<(), SetupError> {
        if std::mem::take(&mut self.repairs.kernel_rules) {
            return Ok(self.restore_kernel_rules(&mut restored.what)?);
        }
        if std::mem::take(&mut self.repairs.own_addresses) {
            let addresses = self.netlink.addresses()?;
            self.own = addresses.iter().map(|address| address.addr).collect();
            self.raise_barrier_again();
            return Ok(());
        }
        if let Some((port, is_expected)) = self.repairs.ports.pop_front() {
            restored.port = Some(port);
            self.restore_spread(port);
            let result = self.restore(port, is_expected, restored);
            if !restored.is_empty() || is_expected {
                self.disturb(Disturbance::Addresses(port));
            }
            return result;
        }
        if let Some((port, from)) = self.repairs.addresses.pop_front() {
            restored.port = Some(port);
            self.restore_addresses(port, from, &mut restored.what)?;
        }
        Ok(())
    }

    /// Removes a route that somebody has added to one of our tables, where it may take precedence
    /// over ours.
    pub fn remove_foreign(&mut self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let mut ports = self.plan.ports.iter();
        let table = number_in(route.table).unwrap_or(route.table);
        let port = ports.find(|port| port.table == table);
        let Some(port) = port.map(|port| port.id) else {
            return Ok(());
        };
        self.disturb(Disturbance::Port(port));
        self.netlink.remove_route(route)
    }

    /// Continues with a TUN device that replaces one that is gone.
    pub fn replace_tun(&mut self, port: PortId, index: u32) {
        if let Some(plan) = self.plan.ports.get_mut(port.index()) {
            plan.tun = index;
            self.disturb(Disturbance::Port(port));
            self.disturb(Disturbance::Addresses(port));
        }
    }

    /// Checks whether the barrier is complete, and sets it again if not; returns what was wrong.
    pub fn repair_barrier(&mut self) -> Option<String> {
        let condition = match self.barrier_fault.take() {
            None => self.barrier.examine(),
            Some(fault) => Ok(Condition::Broken(fault)),
        };
        let wrong = match condition {
            Ok(Condition::Whole {
                stopped,
                let_pass,
                led,
                ..
            }) => {
                self.stopped.by_this_one = stopped;
                self.let_pass = let_pass;
                self.led = led;
                return None;
            }
            Ok(Condition::Broken(wrong)) => wrong,
            Err(error) => error.to_string(),
        };
        self.stopped.reset();
        match self.barrier.restore() {
            Ok(()) => Some(wrong),
            Err(error) => {
                self.barrier_fault = Some(error.to_string());
                None
            }
        }
    }

    /// Why there is no barrier, if there is none.
    pub fn barrier_fault(&self) -> Option<&str> {
        self.barrier_fault.as_deref()
    }

    /// How many packets the barrier had stopped at the last check.
    pub fn stopped(&self) -> u64 {
        self.stopped.by_former_ones + self.stopped.by_this_one
    }

    /// Sets the barrier for the current interfaces, if they have changed. It must be in place
    /// before the kernel forwards.
    pub(super) fn raise_barrier(&mut self, index_of: impl Fn(&str) -> Option<u32>) {
        let post = |port: &PortPlan| Post {
            index: index_of(&port.interface),
            interface: port.interface.clone(),
            tun_name: port.tun_name.clone(),
            tun: port.tun,
            addresses: port.addresses.iter().map(IpNet::addr).collect(),
        };
        let posts: Vec<Post> = self.plan.ports.iter().map(post).collect();
        let is_same = self.barrier.posts() == posts && *self.barrier.own() == self.own;
        if is_same && self.barrier_fault.is_none() {
            return;
        }
        let had_fault = self.barrier_fault.take();
        self.stopped.reset();
        if let Err(error) = self.barrier.set(posts, self.own.clone()) {
            let fault = error.to_string();
            if had_fault.as_ref() != Some(&fault) {
                log::warn!(
                    "barrier not set error={} effect=\"only routes and rules keep packets from bypassing the gateway\"",
                    InQuotes(&fault)
                );
            }
            self.barrier_fault = Some(fault);
        }
    }

    fn restore(
        &mut self,
        port: PortId,
        is_expected: bool,
        restored: &mut Restored,
    ) -> Result<(), SetupError> {
        let Some(index) = self.plan.ports.iter().position(|plan| plan.id == port) else {
            return Ok(());
        };
        let link = self.attach(index)?;
        let Restored {
            what, by_kernel, ..
        } = restored;
        self.restore_way(index, what)?;
        // Of these the kernel drops some by itself: nobody removed them.
        let what = if is_expected { by_kernel } else { what };
        link.map_or(Ok(()), |link| self.restore_interface(index, &link, what))
    }

    /// Rule, table and TUN device of a port, in the order in which a start adds them.
    fn restore_way(&mut self, index: usize, restored: &mut Vec<String>) -> Result<(), SetupError> {
        let Steering { netlink, plan, .. } = self;
        let (port, families) = (&plan.ports[index], &plan.families);
        for family in families {
            put_back_route(netlink, port, &port.blackhole(*family), restored)?;
            put_back_rule(netlink, &port.rule(*family), restored)?;
        }
        let Some(device) = netlink.link_at(port.tun)? else {
            return Err(SetupError::NoTun(port.tun_name.clone()));
        };
        parameters::prepare(netlink, port, &device, families, restored)?;
        for family in families {
            put_back_route(netlink, port, &port.default_route(*family), restored)?;
            if index == 0 {
                for rule in plan.rules_for_errors(*family) {
                    put_back_rule(netlink, &rule, restored)?;
                }
            }
        }
        Ok(())
    }

    /// What the interface of a port needs.
    fn restore_interface(
        &mut self,
        index: usize,
        link: &KernelLink,
        restored: &mut Vec<String>,
    ) -> Result<(), SetupError> {
        let Steering { netlink, plan, .. } = self;
        let (port, families) = (&plan.ports[index], &plan.families);
        parameters::prepare_port(netlink, port, link, restored)?;
        let addresses = netlink.addresses_of(link.index)?;
        let made = link_local::ensure(netlink, port, link, &addresses);
        restored.extend(made.map(|addr| format!("address {addr} of {}", port.interface)));
        let is_routed = |network: &IpNet| is_on_link(netlink, network, link.index);
        let routes = port.network_routes(families, link, &addresses, is_routed);
        for route in routes {
            put_back_route(netlink, port, &route, restored)?;
        }
        for family in families.iter().filter(|family| can_carry(link, **family)) {
            if forward(*family, &port.interface)? {
                restored.push(format!("forwarding of {}", port.interface));
            }
        }
        Ok(())
    }

    /// Finds the interface of a port, and gives its number to the barrier. None if there is no
    /// interface with that name, or if it belongs to another port: somebody exchanged their names.
    fn attach(&mut self, port: usize) -> Result<Option<KernelLink>, NetlinkError> {
        let posts = self.barrier.posts();
        let known = posts.get(port).and_then(|post| post.index);
        let of_others: Vec<u32> = posts
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != port)
            .filter_map(|(_, post)| post.index)
            .collect();
        let link = self.netlink.link(&self.plan.ports[port].interface)?;
        let link = link.filter(|link| !of_others.contains(&link.index));
        // While it has another name it stays barred.
        let is_there = match known {
            Some(index) if link.is_none() => self.netlink.link_at(index)?.is_some(),
            _ => false,
        };
        if !is_there {
            self.renumber(port, link.as_ref().map(|link| link.index));
        }
        Ok(link)
    }

    /// Tells the barrier that a port's interface now has another number, or none.
    fn renumber(&mut self, changed: usize, index: Option<u32>) {
        let interface = self.plan.ports[changed].interface.clone();
        let known = self.known_numbers();
        self.raise_barrier(|name| match name == interface {
            true => index,
            false => *known.get(name)?,
        });
    }

    /// Sets the barrier for what else has changed than the numbers of the interfaces.
    fn raise_barrier_again(&mut self) {
        let known = self.known_numbers();
        self.raise_barrier(|name| *known.get(name)?);
    }

    /// The numbers of the interfaces as the barrier knows them.
    fn known_numbers(&self) -> BTreeMap<String, Option<u32>> {
        let posts = self.barrier.posts().iter();
        posts
            .map(|post| (post.interface.clone(), post.index))
            .collect()
    }

    fn restore_addresses(
        &mut self,
        id: PortId,
        from: usize,
        restored: &mut Vec<String>,
    ) -> Result<(), NetlinkError> {
        let Steering { netlink, plan, .. } = self;
        let Some(port) = plan.ports.iter().find(|port| port.id == id) else {
            return Ok(());
        };
        let until = (from + ROUTES_PER_STEP).min(port.addresses.len());
        let addresses = port.addresses.get(from..until).unwrap_or_default();
        let wanted = |address: &&IpNet| plan.families.contains(&net_family(address));
        for address in addresses.iter().filter(wanted) {
            put_back_route(netlink, port, &port.address_route(*address), restored)?;
        }
        if until < port.addresses.len() {
            self.repairs.addresses.push_back((id, until));
        }
        Ok(())
    }

    /// `ip rule flush` removes the kernel's own rules too, and with them all routing. Those that
    /// were there at the start come back, unless another rule leads to the same table.
    fn restore_kernel_rules(&mut self, restored: &mut Vec<String>) -> Result<(), NetlinkError> {
        for family in self.plan.families.clone() {
            let rules = self.netlink.rules(family)?;
            for wanted in self
                .kernel_rules
                .iter()
                .filter(|rule| rule.family == family)
            {
                if !rules
                    .iter()
                    .any(|rule| rule.table == wanted.table && is_for_all(rule))
                {
                    put_back_rule(&mut self.netlink, wanted, restored)?;
                }
            }
        }
        Ok(())
    }
}

/// The rules that lead all packets to the kernel's own tables. The one to the main table is
/// included even if it is already missing: without it the kernel forwards nothing.
pub(super) fn kernel_rules(
    netlink: &mut Netlink,
    families: &[Family],
) -> Result<Vec<Rule>, NetlinkError> {
    let mut rules = Vec::new();
    for family in families {
        let mut found = netlink.rules(*family)?;
        found.retain(|rule| KERNEL_TABLES.contains(&rule.table) && is_for_all(rule));
        if !found.iter().any(|rule| rule.table == TABLE_MAIN) {
            let protocol = RouteProtocol::Kernel.into();
            found.push(Rule::leading(*family, 32766, None, TABLE_MAIN, protocol));
        }
        rules.extend(found);
    }
    Ok(rules)
}

fn is_for_all(rule: &Rule) -> bool {
    !rule.special && !rule.is_choosy() && rule.interface.is_none()
}

/// Whether the kernel takes a network to be on a link. Some of its hosts may have routes of their
/// own.
fn is_on_link(netlink: &mut Netlink, network: &IpNet, link: u32) -> bool {
    let mut hosts = hosts(network).peekable();
    // Anything that can't be checked is taken to be well.
    hosts.peek().is_none()
        || hosts.any(|host| match netlink.route_to(host) {
            Ok(Some(hop)) => hop.link == link && hop.gateway.is_none(),
            _ => false,
        })
}

fn put_back_route(
    netlink: &mut Netlink,
    port: &PortPlan,
    route: &KernelRoute,
    restored: &mut Vec<String>,
) -> Result<(), NetlinkError> {
    debug_assert_eq!(route.protocol, PROTOCOL);
    match netlink.add_route(route) {
        Ok(()) => {
            // A route of ours leads to the TUN device, to the interface, or nowhere.
            let mut text = route.to_string();
            if let Some(hop) = route.hops.first() {
                let is_tun = hop.link == port.tun;
                let device = if is_tun {
                    &port.tun_name
                } else {
                    &port.interface
                };
                text = text.replace(&format!("#{}", hop.link), device);
            }
            restored.push(format!("route {text}"));
            Ok(())
        }
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

fn put_back_rule(
    netlink: &mut Netlink,
    rule: &Rule,
    restored: &mut Vec<String>,
) -> Result<(), NetlinkError> {
    match netlink.add_rule(rule) {
        Ok(()) => {
            restored.push(format!("rule {rule}"));
            Ok(())
        }
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}
