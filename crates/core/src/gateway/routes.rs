//! The exits of packets, and the choice among the next hops of a route that has several on
//! different ports.
//!
//! The kernel would choose one of them for each flow by itself, after policies and translation were
//! decided for another. So the gateway chooses, and makes the kernel follow: a packet is written to
//! the TUN of the port that it must leave by, whose routes with several next hops lead only there
//! (see the steering's `spread`). The choice depends on source and destination, so that all
//! connections of a host to a server leave by the same port; sessions keep their port while it is
//! up.

use siphasher::sip::SipHasher13;

use crate::event::{PortHop, RouteChange, RouteTarget};
use crate::flow::{Addr, Direction, Family, FlowKey, PortId};
use crate::route::{Fib, Hop, Spread};

use super::Gateway;
use super::links::Links;
use super::revalidate::Scope;

/// The exits of packets: the kernel's routes, and the choice among several next hops.
pub(super) struct Routes {
    fib: Fib,
    /// The exit of the last forwarded packet.
    exit: PortId,
}

impl Routes {
    pub(super) fn new() -> Routes {
        Routes {
            fib: Fib::new(),
            exit: PortId(0),
        }
    }

    /// Applies a change of the kernel's routes; returns whether it makes a difference.
    pub(super) fn apply(&mut self, change: RouteChange) -> bool {
        let before = self.fib.generation();
        self.fib.apply(change);
        self.fib.generation() != before
    }

    /// See [`Fib::shortest_mtu`].
    pub(super) fn shortest_mtu(&self) -> Option<u32> {
        self.fib.shortest_mtu()
    }

    /// Whether routes wait to be removed.
    pub(super) fn is_sweeping(&self) -> bool {
        self.fib.is_sweeping()
    }

    /// Removes some of the routes that the kernel has not dumped again; returns whether it makes a
    /// difference.
    fn sweep(&mut self) -> bool {
        let before = self.fib.generation();
        self.fib.sweep();
        self.fib.generation() != before
    }

    /// The route in the kernel's table, before one of several next hops is chosen.
    pub(super) fn lookup(&self, addr: &Addr) -> Option<Hop> {
        self.fib.lookup(addr)
    }

    /// Notes the exit of a forwarded packet.
    #[inline(always)]
    pub(super) fn note_exit(&mut self, egress: PortId) {
        self.exit = egress;
    }

    /// The exit for a new flow.
    pub(super) fn of_flow(&self, key: &FlowKey, links: &Links) -> Option<Hop> {
        let (hop, all) = self.fib.lookup_all(&key.dst)?;
        let target = choose(all, &key.src, &key.dst, links);
        Some(Hop {
            target: target.unwrap_or(hop.target),
            ..hop
        })
    }

    /// The next hop of `port` towards `addr`; none if the port does not lead there.
    pub(super) fn by_port(&self, port: PortId, addr: &Addr) -> Option<RouteTarget> {
        let (hop, all) = self.fib.lookup_all(addr)?;
        match (all.iter().find(|hop| hop.port == port), hop.target) {
            (Some(hop), _) => Some(hop.target()),
            (None, RouteTarget::Port { port: out, .. }) if out == port => Some(hop.target),
            _ => None,
        }
    }

    /// The exit for a session between these that left by `before`: the same port while that is up.
    fn of_session(
        &self,
        from: &Addr,
        to: &Addr,
        before: PortId,
        links: &Links,
    ) -> Option<RouteTarget> {
        let (hop, all) = self.fib.lookup_all(to)?;
        let is_kept = |hop: &&PortHop| hop.port == before && links.is_up(before);
        let kept = all.iter().find(is_kept).map(PortHop::target);
        let chosen = || choose(all, from, to, links);
        kept.or_else(chosen).or(Some(hop.target))
    }

    /// Whether a change of a link can change the choice.
    pub(super) fn has_choice(&self) -> bool {
        self.fib.is_spread(Family::V4) || self.fib.is_spread(Family::V6)
    }
}

/// One of those that are up, chosen in proportion to its weight; none if all are down.
fn choose(all: &[PortHop], src: &Addr, dst: &Addr, links: &Links) -> Option<RouteTarget> {
    if all.is_empty() {
        return None;
    }
    let usable = || all.iter().filter(|hop| links.is_up(hop.port));
    let total: u64 = usable().map(|hop| u64::from(hop.weight)).sum();
    if total == 0 {
        return None;
    }
    let bytes = [*src.octets(), *dst.octets()].concat();
    // The same on all units; a key could not hide who sends to whom anyway.
    let mut rest = SipHasher13::new().hash(&bytes) % total;
    let mut chosen = usable().skip_while(|hop| {
        let is_beyond = rest >= u64::from(hop.weight);
        rest = rest.saturating_sub(u64::from(hop.weight));
        is_beyond
    });
    chosen.next().map(PortHop::target)
}

impl Gateway {
    /// Counts changes of the routes, and so of [`Gateway::spread`].
    pub fn routes_generation(&self) -> u32 {
        self.routes.fib.generation()
    }

    /// The rules and tables that the kernel needs to follow the gateway's choice among the next
    /// hops of routes of `family`; empty if no route has several.
    pub fn spread(&self, family: Family) -> Spread {
        self.routes.fib.spread(family)
    }

    /// The exit of the packet that [`Gateway::handle_packet`] has just forwarded. Write it to the
    /// TUN of that port: the kernel sends it out there or nowhere (see the shell's `barrier`).
    #[inline]
    pub fn exit(&self) -> PortId {
        self.routes.exit
    }

    /// The exit for a new flow.
    pub(super) fn route_for(&self, key: &FlowKey) -> Option<Hop> {
        self.routes.of_flow(key, &self.links)
    }

    /// The exit for a session between these that left by `before`: the same uplink while that is
    /// up.
    pub(super) fn way_on(&self, from: &Addr, to: &Addr, before: PortId) -> Option<RouteTarget> {
        self.routes.of_session(from, to, before, &self.links)
    }

    /// Removes some of the routes that the kernel has not dumped again.
    pub(super) fn sweep_routes(&mut self) {
        if self.routes.is_sweeping() && self.routes.sweep() {
            self.multicast.doubt_sessions();
            self.revalidate_routes();
        }
    }

    /// The exit for a packet of a session whose port in that direction is `port`.
    #[inline(always)]
    pub(super) fn way_out(&self, port: PortId, direction: Direction, to: &FlowKey) -> PortId {
        match direction {
            Direction::Original => port,
            Direction::Reply => self.way_back(port, &to.src, &to.dst),
        }
    }

    /// The exit for a packet from `from` to a host that sends by `port`. Where sources are not
    /// checked, the way back to a host may differ from the port that it sends by: it is the
    /// kernel's.
    #[inline(always)]
    pub(super) fn way_back(&self, port: PortId, from: &Addr, host: &Addr) -> PortId {
        match self.rules.port(port).source_check {
            true => port,
            false => self.port_towards(from, host, port).unwrap_or(port),
        }
    }

    /// Schedules another comparison of the sessions with the routes.
    pub(super) fn revalidate_routes(&mut self) {
        self.revalidation.restart(Scope {
            routes: true,
            ..Default::default()
        });
    }
}
