//! Changes of the kernel's links, addresses, routes and rules, as they happen.
//!
//! One non-blocking socket delivers both the notifications and the dumps that start and restart the
//! mirror, so they arrive in the order in which they happened (rtnetlink(7)).
//!
//! The main table is mirrored: unicast routes and those that lead nowhere. Not mirrored are cached,
//! local, multicast and link-local routes, those for a type of service, and the gateway's own
//! routes to its TUN devices.
//!
//! The kernel does not report everything: IPv4 routes vanish silently with a link that is set down
//! or an address that is their preferred source, and a notification does not say which of several
//! routes with the same destination and metric comes first. In these cases the routes are dumped
//! again; meanwhile the mirror keeps its state. One case goes unnoticed: an IPv4 route put before
//! another with the same destination and metric (`ip route prepend`) looks like a replacement. When
//! it is removed, the other one is missing from the mirror until the next dump.

mod dump;
mod hops;
mod links;
mod ours;
mod parameters;
mod socket;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_DUMP_INTR, NLM_F_REPLACE, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteType;
use netlink_sys::Socket;

use super::netlink::{
    Address, KernelLink, KernelRoute, Messages, NextHop, RawMessage, Rule, TABLE_MAIN, receive,
};
use dump::{Dump, Stage};
pub use links::Detached;

use super::steering::Disturbance;
use tandemgw_core::config::Config;
use tandemgw_core::event::{LinkState, Route, RouteChange, RouteTarget};
use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;

/// Messages of one [`Monitor::read`], some 2 µs each.
const READ_BUDGET: usize = 32;

/// Stale entries that one [`Monitor::read`] frees.
const FREED_AT_A_TIME: usize = 256;

/// A change, or an item of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A link exists, or has changed.
    Link {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
        /// The port whose interface it is.
        port: Option<PortId>,
        /// Its state; a port's is down while it is detached.
        state: LinkState,
        /// Why the port can't use it.
        detached: Option<Detached>,
    },
    /// A link was removed or renamed.
    LinkGone {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
        /// The port whose interface it was.
        port: Option<PortId>,
        /// The name that it has now.
        renamed: Option<String>,
    },
    /// Forget all addresses: a fresh dump follows.
    AddressesReset,
    /// The kernel has this address.
    Address(OwnAddress),
    /// The kernel no longer has this address.
    AddressGone(OwnAddress),
    /// A change of the mirror of the main table. It may remove a route that does not exist.
    Route(RouteChange),
    /// Something that the steering has added may be gone or changed.
    Disturbed(Disturbance),
    /// Somebody else added a route to one of our tables.
    ForeignRoute(KernelRoute),
    /// Somebody else's rule now precedes ours.
    RuleBefore(Rule),
    /// The reverse path filter was set for all links.
    ReversePathFilter {
        /// 0 off, 1 strict, 2 loose.
        value: u32,
    },
    /// The queue for notifications overflowed. A fresh dump follows automatically.
    Overrun,
}

/// An address of the kernel's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    /// The number of its link.
    pub index: u32,
    /// The address.
    pub addr: IpAddr,
    /// The port whose interface or TUN device the link is.
    pub port: Option<PortId>,
}

/// By destination and metric, the links of the hops.
type Siblings = BTreeMap<(IpNet, u32), Vec<u32>>;

/// The listening socket.
///
/// Legal calls: [`start`](Self::start) once, then [`read`](Self::read) whenever the descriptor is
/// readable.
pub struct Monitor {
    socket: Socket,
    /// The address that the kernel gave the socket.
    port: u32,
    /// A datagram, of which so many bytes are handled.
    buffer: Vec<u8>,
    handled: usize,
    first_table: u32,
    ports: BTreeMap<String, PortId>,
    tuns: BTreeMap<String, PortId>,
    /// Which port each interface has been found to be.
    owners: BTreeMap<u32, PortId>,
    /// The numbers of the TUN devices, which they keep if somebody renames them.
    tun_links: BTreeMap<u32, PortId>,
    links: BTreeMap<u32, KernelLink>,
    /// Hops of the routes that one message may not describe completely: those on a link, which may
    /// share destination and metric with others, and multipath routes.
    siblings: Siblings,
    /// Those of before a dump, to be freed some at a time.
    outdated: Vec<Siblings>,
    dump: Dump,
}

impl Monitor {
    /// Opens the socket in the network namespace of the calling thread, and waits for the current
    /// state: all links, addresses and routes.
    pub fn start(config: &Config) -> io::Result<(Monitor, Vec<Notice>)> {
        let (socket, port) = socket::open()?;
        let names = |name: fn(&tandemgw_core::config::Port) -> String| {
            let ports = config.ports.iter().zip(0..);
            ports.map(|(port, id)| (name(port), PortId(id))).collect()
        };
        let mut monitor = Monitor {
            socket,
            port,
            buffer: Vec::new(),
            handled: 0,
            first_table: config.node.routing_table,
            ports: names(|port| port.interface.clone()),
            tuns: names(|port| format!("tgw-{}", port.name)),
            owners: BTreeMap::new(),
            tun_links: BTreeMap::new(),
            links: BTreeMap::new(),
            siblings: Siblings::new(),
            outdated: Vec::new(),
            dump: Dump::default(),
        };
        let mut notices = Vec::new();
        monitor.dump_from(Stage::Links)?;
        while monitor.dump.stage.is_some() {
            monitor.read_one(&mut notices)?;
        }
        monitor.socket.set_non_blocking(true)?;
        Ok((monitor, notices))
    }

    /// Appends some of what has happened to `out`. The result is true if the budget stopped it and
    /// there may be more.
    ///
    /// # Errors
    /// If the socket fails; then it is unusable.
    pub fn read(&mut self, out: &mut Vec<Notice>) -> io::Result<bool> {
        self.free_some();
        for _ in 0..READ_BUDGET {
            match self.read_one(out) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(!self.outdated.is_empty());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn free_some(&mut self) {
        for _ in 0..FREED_AT_A_TIME {
            let Some(last) = self.outdated.last_mut() else {
                return;
            };
            if last.pop_first().is_none() {
                self.outdated.pop();
            }
        }
    }

    /// The number of the link called `name`.
    pub fn index_of(&self, name: &str) -> Option<u32> {
        let mut links = self.links.values();
        Some(links.find(|link| link.name == name)?.index)
    }

    /// The port whose interface the link of that number is.
    pub fn port_at(&self, index: u32) -> Option<PortId> {
        self.ports.get(&self.links.get(&index)?.name).copied()
    }

    /// Handles one message.
    fn read_one(&mut self, out: &mut Vec<Notice>) -> io::Result<()> {
        if self.handled >= self.buffer.len() {
            self.handled = 0;
            match receive(&self.socket, &mut self.buffer) {
                Ok(()) => {}
                Err(error) => {
                    self.buffer.clear();
                    return self.note_failure(error, out);
                }
            }
        }
        let buffer = std::mem::take(&mut self.buffer);
        let mut messages = Messages::new(&buffer[self.handled..]);
        let message = messages.next();
        // A malformed message ends the datagram.
        let left = message.map_or(0, |_| messages.left());
        self.handled = buffer.len() - left;
        let result = message.map_or(Ok(()), |message| self.handle(message, out));
        self.buffer = buffer;
        result
    }

    fn note_failure(&mut self, error: io::Error, out: &mut Vec<Notice>) -> io::Result<()> {
        if error.raw_os_error() == Some(libc::ENOBUFS) {
            out.push(Notice::Overrun);
            return self.dump_from(Stage::Links);
        }
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        }
    }

    fn handle(&mut self, raw: RawMessage<'_>, out: &mut Vec<Notice>) -> io::Result<()> {
        // A notification has the number of the request that caused it, and that sender's port.
        let is_answer = raw.port() == self.port && raw.sequence() == self.dump.sequence;
        let in_dump = is_answer && self.dump.stage.is_some();
        if in_dump && !self.dump.begun {
            self.begin_stage(out);
        }
        if in_dump && raw.flags() & NLM_F_DUMP_INTR != 0 {
            self.dump.interrupted = true;
        }
        if parameters::is_netconf(raw.kind()) {
            self.note_parameter(parameters::parse(raw.kind(), raw.body()), out);
            return Ok(());
        }
        let message = match raw.decode() {
            Ok(message) => message,
            Err(error) => {
                log::warn!("netlink message skipped error={}", InQuotes(&error));
                return Ok(());
            }
        };
        let stale = match message.payload {
            NetlinkPayload::InnerMessage(inner) if in_dump => {
                self.take_dumped(&inner, out);
                None
            }
            NetlinkPayload::InnerMessage(inner) => {
                self.note_ours(&inner, out);
                self.take_change(&inner, raw.flags(), out)
            }
            NetlinkPayload::Done(_) if in_dump => return self.next_stage(out),
            NetlinkPayload::Error(error) if in_dump => {
                // A kernel without IPv6 has no routes of it either.
                log::debug!(
                    "netlink dump failed stage={:?} error={}",
                    self.dump.stage,
                    InQuotes(error.to_io())
                );
                return self.next_stage(out);
            }
            _ => None,
        };
        match stale {
            Some(stage) => self.dump_from(stage),
            None => Ok(()),
        }
    }

    fn take_dumped(&mut self, message: &RouteNetlinkMessage, out: &mut Vec<Notice>) {
        match message {
            RouteNetlinkMessage::NewLink(link) => {
                if let Some(link) = KernelLink::from_message(link) {
                    self.take_link(link, out);
                }
            }
            RouteNetlinkMessage::NewAddress(message) => {
                let address = Address::from_message(message);
                out.extend(address.map(|address| Notice::Address(self.own(&address))));
            }
            RouteNetlinkMessage::NewRoute(message) => {
                let Some(route) = KernelRoute::from_message(message) else {
                    return;
                };
                if let Some(mirrored) = self.mirrored(&route) {
                    // The kernel lists routes in the order in which it prefers them.
                    let is_first = !self.is_sibling_of_last(&route) && self.remember_hops(&route);
                    if is_first {
                        out.push(Notice::Route(RouteChange::Add(mirrored)));
                    }
                }
            }
            _ => {}
        }
    }

    /// The result says from which stage on the state must be dumped again.
    fn take_change(
        &mut self,
        message: &RouteNetlinkMessage,
        flags: u16,
        out: &mut Vec<Notice>,
    ) -> Option<Stage> {
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                let link = KernelLink::from_message(message)?;
                let routes_vanish = self.take_link(link, out);
                routes_vanish.then_some(Stage::RoutesV4)
            }
            RouteNetlinkMessage::DelLink(message) => {
                // A bridge reports a port that leaves it in the same way, but of another family.
                let is_port_of_bridge = u8::from(message.header.interface_family) != 0;
                if is_port_of_bridge {
                    return None;
                }
                let link = self.links.remove(&message.header.index)?;
                self.gone(link, None, out);
                Some(Stage::RoutesV4)
            }
            RouteNetlinkMessage::NewAddress(message) => {
                let address = Address::from_message(message)?;
                out.push(Notice::Address(self.own(&address)));
                let of_tun = self.tun_links.get(&address.link).copied();
                out.extend(of_tun.map(|port| Notice::Disturbed(Disturbance::Port(port))));
                None
            }
            RouteNetlinkMessage::DelAddress(message) => {
                let gone = self.own(&Address::from_message(message)?);
                out.push(Notice::AddressGone(gone));
                gone.addr.is_ipv4().then_some(Stage::RoutesV4)
            }
            RouteNetlinkMessage::NewRoute(message) => {
                self.route_added(&KernelRoute::from_message(message)?, flags, out)
            }
            RouteNetlinkMessage::DelRoute(message) => {
                self.route_removed(&KernelRoute::from_message(message)?, out)
            }
            _ => None,
        }
    }

    fn route_added(
        &mut self,
        route: &KernelRoute,
        flags: u16,
        out: &mut Vec<Notice>,
    ) -> Option<Stage> {
        let mirrored = self.mirrored(route)?;
        let key = (route.destination, route.metric);
        if flags & NLM_F_REPLACE != 0 {
            let replaced = self.siblings.remove(&key);
            if replaced.is_some_and(|hops| hops.len() > route.hops.len().max(1)) {
                return Some(Stage::RoutesV4);
            }
        } else if flags & NLM_F_APPEND != 0 && !is_on_link(route) {
            return Some(Stage::RoutesV4);
        }
        if self.remember_hops(route) {
            out.push(Notice::Route(RouteChange::Add(mirrored)));
            return None;
        }
        // Another one with the same destination and metric: which one comes first?
        Some(Stage::RoutesV4)
    }

    fn route_removed(&mut self, route: &KernelRoute, out: &mut Vec<Notice>) -> Option<Stage> {
        let mirrored = self.mirrored(route)?;
        let key = (route.destination, route.metric);
        if let Some(hops) = self.siblings.remove(&key) {
            let is_whole = hops.len() <= route.hops.len().max(1);
            if !is_whole {
                return Some(Stage::RoutesV4);
            }
        }
        out.push(Notice::Route(RouteChange::Remove(mirrored)));
        None
    }

    /// A route as the core sees it; none if it is not mirrored.
    fn mirrored(&self, route: &KernelRoute) -> Option<Route> {
        let destination = route.destination.addr();
        let is_link_local = match destination {
            IpAddr::V4(ip) => ip.is_multicast() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_multicast() || ip.is_unicast_link_local(),
        };
        let is_other = route.table != TABLE_MAIN || route.cloned || route.tos != 0;
        if is_other || is_link_local {
            return None;
        }
        let (target, hops) = match route.kind {
            RouteType::Unicast => {
                let hop = route.hops.first()?;
                if self.tun_links.contains_key(&hop.link) {
                    return None;
                }
                self.ways(route)
            }
            // `throw` continues with the next rule, but no further rule has a table in use.
            RouteType::BlackHole
            | RouteType::Unreachable
            | RouteType::Prohibit
            | RouteType::Throw => (RouteTarget::Unreachable, Vec::new()),
            _ => return None,
        };
        Some(Route {
            destination: route.destination,
            metric: route.metric,
            target,
            mtu: route.mtu,
            is_special: route.is_special || route.hops.len() > 1,
            hops,
        })
    }

    /// The result is false if there is already another route with this destination and metric.
    fn remember_hops(&mut self, route: &KernelRoute) -> bool {
        let key = (route.destination, route.metric);
        let links: Vec<u32> = route.hops.iter().map(|hop| hop.link).collect();
        match self.siblings.get_mut(&key) {
            Some(known) if *known == links => true,
            Some(known) => {
                known.extend(links);
                false
            }
            None => {
                if is_on_link(route) || links.len() > 1 {
                    self.siblings.insert(key, links);
                }
                true
            }
        }
    }

    /// Whether the route that was dumped before has the same destination and metric.
    fn is_sibling_of_last(&mut self, route: &KernelRoute) -> bool {
        let key = (route.destination, route.metric);
        if self.dump.last.replace(key) != Some(key) {
            return false;
        }
        // Link 0, which does not exist, stands for a first one that seemed to be alone.
        let known = self.siblings.entry(key).or_insert_with(|| vec![0]);
        known.extend(route.hops.iter().map(|hop| hop.link));
        true
    }
}

fn is_on_link(route: &KernelRoute) -> bool {
    let is_direct = |hops: &[NextHop]| matches!(hops, [hop] if hop.gateway.is_none());
    route.kind == RouteType::Unicast && is_direct(&route.hops)
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
