//! Steering: the rules, routes and kernel parameters that bring the packets of the ports to the TUN
//! devices, and nothing past them.
//!
//! For port number *i* with interface `eth0`, in routing table *T* = `routing-table` + *i*:
//!
//! ```text
//! T: iif eth0 lookup T                         rule, priority T
//! default dev tgw-lan metric 1024              in table T
//! blackhole default metric 4294967295          in table T
//! VIRTUAL-ADDRESS dev tgw-lan metric 1024      in main: errors that this kernel makes
//! NETWORK dev eth0 metric 1024                 in main: if the kernel has no address there
//! net.ipv4.conf.eth0.forwarding=1, net.ipv6.conf.eth0.force_forwarding=1
//! ```
//!
//! **It fails closed.** A TUN and its routes vanish with the process; the rule and the blackhole stay
//! and discard what comes in by the port. So the blackhole comes before the rule, the rule before
//! forwarding is turned on, and they go in the opposite order. Leftovers of a crash are taken over as
//! they stand, never removed first.
//!
//! **It undoes itself.** All that is added has a protocol number of its own, so that it is recognised
//! by the next start, and the number of a rule also says whether forwarding was off before:
//! [`PROTOCOL_FORWARDING_WAS_OFF`]. So even a start after a crash knows what to restore.
//!
//! Neither the global `net.ipv4.ip_forward` nor, where the kernel has `force_forwarding` (6.17), the
//! global IPv6 switch is touched. `send_redirects` is left alone as well: a packet never leaves by the
//! interface that it came in by, since a TUN is always between.

mod error;
mod parameters;
mod readdress;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{
    KernelRoute, Link, Netlink, NetlinkError, Rule, TABLE_MAIN, default_network, net_family,
};
use super::sysctl::{self, SysctlError};
use tandemgw_core::config::{Config, Nat};
use tandemgw_core::flow::{Addr, Family, PortId};
use tandemgw_core::in_quotes::InQuotes;

use parameters::prepare_tun;

pub use error::SetupError;
pub use parameters::TUN_ADDRESS;

/// `rtm_protocol` of the routes and `FRA_PROTOCOL` of the rules that the gateway adds.
pub const PROTOCOL: u8 = 77;

/// `FRA_PROTOCOL` of a rule for whose interface and family forwarding is to be turned off when the
/// rule goes, because it was off when the rule came.
pub const PROTOCOL_FORWARDING_WAS_OFF: u8 = 78;

/// The numbers of tables and rule priorities, from `routing-table` on, that belong to one gateway.
const TABLES: u32 = 64;

/// Worse than what the kernel makes of an address, so that its routes win where it has one.
const METRIC: u32 = 1024;

const METRIC_BLACKHOLE: u32 = u32::MAX;

/// Packets that a TUN holds while the process is busy. The kernel's default of 500 overflows in a
/// burst; an Ethernet device has 1000.
const TUN_QUEUE: u32 = 1000;

pub use readdress::RouteEdit;

/// What a TUN takes: the MTU of the way is that of the real interfaces, so a TUN must not be the
/// narrowest part, whatever they have.
const TUN_MTU: u32 = 65_535;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// What is in place while the gateway runs.
///
/// Legal calls: [`set_up`](Self::set_up), then [`repair`](Self::repair) any number of times, then
/// [`remove`](Self::remove). Dropping it without `remove` leaves all in place, as a crash does.
pub struct Steering {
    netlink: Netlink,
    plan: Plan,
}

impl Steering {
    /// Steers the packets of all ports of `config` to `tuns`, the interface numbers of their TUN
    /// devices in the order of the ports. The devices must exist; they are set up here.
    ///
    /// What a process that crashed has left is taken over. On an error all is removed again.
    ///
    /// # Errors
    ///
    /// If a table or a rule priority is used by something else, an interface doesn't exist, or the
    /// kernel refuses.
    pub fn set_up(netlink: Netlink, config: &Config, tuns: &[u32]) -> Result<Steering, SetupError> {
        let mut steering = Steering {
            netlink,
            plan: Plan::new(config, tuns),
        };
        let survey = Survey::take(&mut steering.netlink, &steering.plan)?;
        steering.plan.remember_forwarding(&survey)?;
        if let Some(taken) = survey.taken(&steering.plan).into_iter().next() {
            return Err(SetupError::Taken(taken));
        }
        let done = steering
            .apply(&survey, None)
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
        Ok(steering)
    }

    /// Restores what the kernel drops when an interface is removed, made again or set down: call it
    /// when the interface or the TUN of `port` comes up. It changes nothing that is in place.
    pub fn repair(&mut self, port: PortId) -> Result<(), SetupError> {
        let survey = Survey::take(&mut self.netlink, &self.plan)?;
        self.apply(&survey, Some(port))
    }

    /// Removes all that was added, and turns forwarding off where it was off before. Call it while
    /// the TUN devices still exist.
    pub fn remove(mut self) -> Result<(), SetupError> {
        let survey = Survey::take(&mut self.netlink, &self.plan)?;
        // Each of a kind is tried even if one before failed: an error must not leave the rest behind.
        let mut result = Ok(());
        for rule in &survey.rules {
            keep_first(&mut result, restore_forwarding(rule));
        }
        // While it forwards, the rules must stay: without them it would forward past the gateway.
        result?;
        let mut result = Ok(());
        for route in survey.routes.iter().filter(|r| r.table == TABLE_MAIN) {
            keep_first(&mut result, self.netlink.remove_route(route));
        }
        for rule in survey.rules.iter().filter(|rule| is_ours(rule)) {
            keep_first(&mut result, self.netlink.remove_rule(rule));
        }
        for route in survey.routes.iter().filter(|r| r.table != TABLE_MAIN) {
            keep_first(&mut result, self.netlink.remove_route(route));
        }
        result
    }

    /// Adds what is missing, for one port or for all, in an order that never lets a packet past.
    fn apply(&mut self, survey: &Survey, only: Option<PortId>) -> Result<(), SetupError> {
        let Steering { netlink, plan } = self;
        let wanted = |port: &&PortPlan| only.is_none_or(|only| only == port.id);
        let ports: Vec<&PortPlan> = plan.ports.iter().filter(wanted).collect();
        for port in &ports {
            for family in &plan.families {
                ensure_route(netlink, survey, &port.blackhole(*family))?;
                ensure_rule(netlink, survey, &port.rule(*family))?;
            }
        }
        for port in &ports {
            prepare_tun(netlink, port, survey, &plan.families)?;
            for route in port.tun_routes(&plan.families) {
                ensure_route(netlink, survey, &route)?;
            }
            let Some(link) = survey.links.get(&port.interface) else {
                return Err(SetupError::NoInterface(port.interface.clone()));
            };
            for network in port.networks.iter().filter(|n| plan.has_family(n)) {
                if link.admin_up && !survey.has_address_in(link.index, network) {
                    let route =
                        KernelRoute::on_link(*network, TABLE_MAIN, METRIC, PROTOCOL, link.index);
                    ensure_route(netlink, survey, &route)?;
                }
            }
        }
        for port in &ports {
            for family in &plan.families {
                forward(*family, &port.interface)?;
            }
        }
        Ok(())
    }

    /// Removes what an earlier process has left that this one does not need.
    fn remove_stale(&mut self, survey: &Survey) -> Result<(), SetupError> {
        let Steering { netlink, plan } = self;
        for rule in survey.rules.iter().filter(|rule| is_ours(rule)) {
            if !plan.ports.iter().any(|port| port.is_my_rule(rule)) {
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
}

/// Which tables and rule priorities of `config` are used by something else; each as a sentence.
pub fn taken(netlink: &mut Netlink, config: &Config) -> Result<Vec<String>, NetlinkError> {
    let plan = Plan::new(config, &vec![0; config.ports.len()]);
    Ok(Survey::take(netlink, &plan)?.taken(&plan))
}

/// What is to be in place.
struct Plan {
    first_table: u32,
    families: Vec<Family>,
    ports: Vec<PortPlan>,
}

struct PortPlan {
    id: PortId,
    interface: String,
    tun: u32,
    table: u32,
    /// Protocol number of the rule of each family.
    marks: [u8; 2],
    /// Addresses that are translated to, or answered for, at this port.
    addresses: Vec<IpNet>,
    /// Networks that the hosts of this port are in.
    networks: Vec<IpNet>,
}

impl Plan {
    fn new(config: &Config, tuns: &[u32]) -> Plan {
        let homes = address_homes(config);
        let port = |(index, port): (usize, &tandemgw_core::config::Port)| {
            let id = u8::try_from(index).ok()?;
            let networks: BTreeSet<IpNet> = port
                .virtual_addresses
                .iter()
                .map(|address| address.network.trunc())
                .filter(|network| network.prefix_len() < network.max_prefix_len())
                .collect();
            let here = homes.iter().filter(|(_, home)| **home == index);
            Some(PortPlan {
                id: PortId(id),
                interface: port.interface.clone(),
                tun: *tuns.get(index)?,
                table: config.node.routing_table.saturating_add(id.into()),
                marks: [PROTOCOL; 2],
                addresses: here.map(|(addr, _)| IpAddr::from(*addr).into()).collect(),
                networks: networks.into_iter().collect(),
            })
        };
        Plan {
            first_table: config.node.routing_table,
            families: FAMILIES
                .into_iter()
                .filter(|f| sysctl::has_family(*f))
                .collect(),
            ports: config.ports.iter().enumerate().filter_map(port).collect(),
        }
    }

    /// Marks the rules with what is to be restored: as a process before this one has marked them,
    /// or as it is now.
    fn remember_forwarding(&mut self, survey: &Survey) -> Result<(), SysctlError> {
        for port in &mut self.ports {
            for family in &self.families {
                let is_left = |rule: &&Rule| {
                    is_ours(rule)
                        && rule.family == *family
                        && rule.interface.as_ref() == Some(&port.interface)
                };
                port.marks[*family as usize] = match survey.rules.iter().find(is_left) {
                    Some(rule) => rule.protocol,
                    None if is_forwarding(*family, &port.interface)? => PROTOCOL,
                    None => PROTOCOL_FORWARDING_WAS_OFF,
                };
            }
        }
        Ok(())
    }

    fn has_family(&self, network: &IpNet) -> bool {
        self.families.contains(&net_family(network))
    }

    fn is_table(&self, number: u32) -> bool {
        number
            .checked_sub(self.first_table)
            .is_some_and(|offset| offset < TABLES)
    }

    /// Destination and table of each route that may be in place.
    fn destinations(&self) -> impl Iterator<Item = (IpNet, u32)> {
        self.ports.iter().flat_map(|port| {
            let main = port.addresses.iter().chain(&port.networks);
            let table = FAMILIES.map(|family| (default_network(family), port.table));
            main.map(|network| (*network, TABLE_MAIN)).chain(table)
        })
    }
}

impl PortPlan {
    fn blackhole(&self, family: Family) -> KernelRoute {
        let all = default_network(family);
        KernelRoute::blackhole(all, self.table, METRIC_BLACKHOLE, PROTOCOL)
    }

    fn rule(&self, family: Family) -> Rule {
        Rule {
            family,
            priority: self.table,
            interface: Some(self.interface.clone()),
            table: self.table,
            protocol: self.marks[family as usize],
            special: false,
        }
    }

    fn is_my_rule(&self, rule: &Rule) -> bool {
        rule.interface.as_ref() == Some(&self.interface)
            && rule.table == self.table
            && rule.priority == self.table
            && !rule.special
    }

    fn tun_routes(&self, families: &[Family]) -> Vec<KernelRoute> {
        let to_tun = |destination: IpNet, table| {
            KernelRoute::on_link(destination, table, METRIC, PROTOCOL, self.tun)
        };
        let defaults = families
            .iter()
            .map(|f| to_tun(default_network(*f), self.table));
        let addresses = self.addresses.iter().map(|a| self.address_route(*a));
        defaults
            .chain(addresses)
            .filter(|route| families.contains(&net_family(&route.destination)))
            .collect()
    }
}

/// The port at which each address that the gateway translates to or answers for is at home.
fn address_homes(config: &Config) -> BTreeMap<Addr, usize> {
    let mut homes = BTreeMap::new();
    let holds = |addr: Addr| {
        let ip = IpAddr::from(addr);
        config.ports.iter().position(|port| {
            let mut networks = port.virtual_addresses.iter().map(|v| v.network);
            networks.any(|network| network.contains(&ip))
        })
    };
    for (index, pool) in config.nat_pools.iter().enumerate() {
        let mut users = config.policies.iter().filter(|p| p.nat == Nat::Pool(index));
        let first = users
            .find_map(|policy| policy.to.first())
            .map_or(0, |port| port.index());
        for addr in &pool.addresses {
            homes.insert(*addr, holds(*addr).unwrap_or(first));
        }
    }
    for forward in &config.forwards {
        let addr = forward.external.0;
        homes.insert(addr, holds(addr).unwrap_or(forward.port.index()));
    }
    for (index, port) in config.ports.iter().enumerate() {
        homes.extend(port.virtual_addresses.iter().map(|v| (v.addr, index)));
    }
    homes
}

/// What is in place, as far as it matters.
struct Survey {
    links: BTreeMap<String, Link>,
    addresses: Vec<super::netlink::Address>,
    /// Rules that are ours, or that use our numbers.
    rules: Vec<Rule>,
    /// Routes in our tables, and in the main table those that are ours.
    routes: Vec<KernelRoute>,
}

impl Survey {
    fn take(netlink: &mut Netlink, plan: &Plan) -> Result<Survey, NetlinkError> {
        let links = netlink.links()?;
        let mut survey = Survey {
            links: links.into_iter().map(|l| (l.name.clone(), l)).collect(),
            addresses: netlink.addresses()?,
            rules: Vec::new(),
            routes: Vec::new(),
        };
        let names: BTreeSet<&str> = plan.ports.iter().map(|p| p.interface.as_str()).collect();
        let is_port = |rule: &Rule| rule.interface.as_deref().is_some_and(|i| names.contains(i));
        // Ours are the main table's routes to our TUN devices and on the links of our ports.
        let of_ports = |survey: &Survey| -> BTreeSet<u32> {
            let interfaces = names.iter().filter_map(|name| survey.links.get(*name));
            let tuns = plan.ports.iter().map(|port| port.tun);
            tuns.chain(interfaces.map(|link| link.index)).collect()
        };
        let devices = of_ports(&survey);
        for family in &plan.families {
            let relevant = |rule: &Rule| {
                plan.is_table(rule.priority)
                    || plan.is_table(rule.table)
                    || (is_ours(rule) && is_port(rule))
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
        Ok(survey)
    }

    /// What of the numbers that the ports need is used by something else.
    fn taken(&self, plan: &Plan) -> Vec<String> {
        let is_needed = |number: u32| plan.ports.iter().any(|port| port.table == number);
        let rules = self
            .rules
            .iter()
            .filter(|rule| !is_ours(rule) && (is_needed(rule.priority) || is_needed(rule.table)));
        let routes = self.routes.iter();
        let routes = routes.filter(|route| route.protocol != PROTOCOL && is_needed(route.table));
        rules
            .map(|rule| format!("rule priority or table is taken by the rule \"{rule}\""))
            .chain(routes.map(|r| format!("routing table {} is taken by \"{r}\"", r.table)))
            .collect()
    }

    fn has_address(&self, link: u32, addr: IpAddr) -> bool {
        let mut own = self.addresses.iter();
        own.any(|own| (own.link, own.addr) == (link, addr))
    }

    /// Whether the kernel has an address on `link` that makes it reach all of `network` there.
    fn has_address_in(&self, link: u32, network: &IpNet) -> bool {
        self.addresses.iter().any(|address| {
            let own = IpNet::new(address.addr, address.prefix_len);
            address.link == link && own.is_ok_and(|own| own.trunc().contains(network))
        })
    }
}

/// Whether a gateway has made the rule.
pub(super) fn is_ours(rule: &Rule) -> bool {
    matches!(rule.protocol, PROTOCOL | PROTOCOL_FORWARDING_WAS_OFF)
}

fn ensure_rule(netlink: &mut Netlink, survey: &Survey, rule: &Rule) -> Result<(), NetlinkError> {
    let is_same = |other: &Rule| {
        is_ours(other)
            && !other.special
            && other.family == rule.family
            && (other.priority, other.table, &other.interface)
                == (rule.priority, rule.table, &rule.interface)
    };
    if survey.rules.iter().any(is_same) {
        return Ok(());
    }
    netlink.add_rule(rule)
}

fn ensure_route(
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

/// The parameter that lets the kernel forward what comes in by `interface`: its interface and key.
///
/// IPv6 looks at `all.forwarding` and at the interface's `force_forwarding` only, which came with
/// Linux 6.17; the interface's `forwarding` says whether it acts as a router there.
pub(super) fn forwarding_key(
    family: Family,
    interface: &str,
) -> Result<(&str, &'static str), SysctlError> {
    const FORCE: &str = "force_forwarding";
    Ok(match family {
        Family::V4 => (interface, "forwarding"),
        Family::V6 if sysctl::get(family, "all", FORCE)?.is_some() => (interface, FORCE),
        Family::V6 => ("all", "forwarding"),
    })
}

fn is_forwarding(family: Family, interface: &str) -> Result<bool, SysctlError> {
    let (interface, key) = forwarding_key(family, interface)?;
    Ok(sysctl::get(family, interface, key)? == Some(1))
}

/// Gives the name of the parameter if it was off.
fn forward(family: Family, interface: &str) -> Result<Option<&'static str>, SysctlError> {
    let (scope, key) = forwarding_key(family, interface)?;
    if scope == "all" && !is_forwarding(family, interface)? {
        log::warn!(
            "ipv6 forwarding interface=all why=\"this kernel (before 6.17) forwards IPv6 on all or on \
             none\" remedy=\"set accept_ra=2 where addresses come by router advertisements\""
        );
    }
    Ok(sysctl::set(family, scope, key, 1)?.then_some(key))
}

/// Turns forwarding off for the interface of `rule` if it was off before.
fn restore_forwarding(rule: &Rule) -> Result<(), SysctlError> {
    let Some(interface) = &rule.interface else {
        return Ok(());
    };
    if rule.protocol != PROTOCOL_FORWARDING_WAS_OFF {
        return Ok(());
    }
    let (scope, key) = forwarding_key(rule.family, interface)?;
    match sysctl::get(rule.family, scope, key)? {
        Some(_) => sysctl::set(rule.family, scope, key, 0).map(|_| ()),
        None => Ok(()), // The interface is gone.
    }
}

fn keep_first<E: Into<SetupError>>(result: &mut Result<(), SetupError>, next: Result<(), E>) {
    if let (Ok(()), Err(error)) = (&result, next) {
        *result = Err(error.into());
    }
}
