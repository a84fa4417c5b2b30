//! Where packets go on, and the choice among the next hops of a route that has several on different
//! ports.
//!
//! The kernel would choose one of them for each flow by itself, after policies and translation were
//! decided for another. So the gateway chooses, and the kernel is made to follow: a packet is
//! written to the TUN of the port that it is to leave by, whose routes with several next hops lead
//! out there and nowhere else (see the steering's `spread`). The choice goes by source and
//! destination, so that all connections of a host to a server leave alike; sessions keep their port
//! while it is up.

use siphasher::sip::SipHasher13;

use crate::event::{PortHop, RouteChange, RouteTarget};
use crate::flow::{Addr, Direction, Family, FlowKey, PortId};
use crate::route::{Fib, Hop, Spread};

use super::Gateway;
use super::links::Links;
use super::revalidate::Scope;

/// Where packets go on: the kernel's routes, and the choice among several next hops.
pub(super) struct Routes {
    fib: Fib,
    /// The port by which the packet leaves that was let pass last.
    exit: PortId,
}

impl Routes {
    pub(super) fn new() -> Routes {
        Routes {
            fib: Fib::new(),
            exit: PortId(0),
        }
    }

    /// Takes over a change of the kernel's routes; returns whether it makes a difference.
    pub(super) fn apply(&mut self, change: RouteChange) -> bool {
        let before = self.fib.generation();
        self.fib.apply(change);
        self.fib.generation() != before
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

    /// Takes note of the way of a packet that passes.
    #[inline(always)]
    pub(super) fn note_exit(&mut self, egress: PortId) {
        self.exit = egress;
    }

    /// Where a new flow goes.
    pub(super) fn of_flow(&self, key: &FlowKey, links: &Links) -> Option<Hop> {
        let (hop, all) = self.fib.lookup_all(&key.dst)?;
        let target = choose(all, &key.src, &key.dst, links);
        Some(Hop {
            target: target.unwrap_or(hop.target),
            ..hop
        })
    }

    /// Where `port` leads to, on the way to `addr`; none if it is not the way.
    pub(super) fn by_port(&self, port: PortId, addr: &Addr) -> Option<RouteTarget> {
        let (hop, all) = self.fib.lookup_all(addr)?;
        match (all.iter().find(|hop| hop.port == port), hop.target) {
            (Some(hop), _) => Some(hop.target()),
            (None, RouteTarget::Port { port: out, .. }) if out == port => Some(hop.target),
            _ => None,
        }
    }

    /// Where a session between these goes that left by `before`: by the same port while that is up.
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

    /// Whether a link that goes or comes changes the choice.
    pub(super) fn has_choice(&self) -> bool {
        self.fib.is_spread(Family::V4) || self.fib.is_spread(Family::V6)
    }
}

/// One of those that are up, each in proportion to its weight; none if all are down.
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
    /// Counts changes of the routes: [`Gateway::spread`] may differ if it does.
    pub fn routes_generation(&self) -> u32 {
        self.routes.fib.generation()
    }

    /// The rules and tables that the kernel needs to follow the gateway's choice among the next
    /// hops of routes of `family`; empty if no route has several.
    pub fn spread(&self, family: Family) -> Spread {
        self.routes.fib.spread(family)
    }

    /// The port by which the packet leaves that [`Gateway::handle_packet`] has just let pass. It is
    /// to be written to the TUN of that port: the kernel sends it out there or nowhere (see the
    /// shell's `barrier`).
    #[inline]
    pub fn exit(&self) -> PortId {
        self.routes.exit
    }

    /// Where a new flow goes.
    pub(super) fn route_for(&self, key: &FlowKey) -> Option<Hop> {
        self.routes.of_flow(key, &self.links)
    }

    /// Where a session between these goes that left by `before`: by the same uplink while that is
    /// up.
    pub(super) fn way_on(&self, from: &Addr, to: &Addr, before: PortId) -> Option<RouteTarget> {
        self.routes.of_session(from, to, before, &self.links)
    }

    /// Removes some of the routes that the kernel has not dumped again.
    pub(super) fn sweep_routes(&mut self) {
        if self.routes.is_sweeping() && self.routes.sweep() {
            self.revalidate_routes();
        }
    }

    /// By which port a packet of a session leaves whose port that way is `port`.
    #[inline(always)]
    pub(super) fn way_out(&self, port: PortId, direction: Direction, to: &FlowKey) -> PortId {
        match direction {
            Direction::Original => port,
            Direction::Reply => self.way_back(port, &to.src, &to.dst),
        }
    }

    /// By which port a packet from `from` leaves for a host that sends by `port`. Where no source
    /// is checked, the way back to a host may be another one than it sends by: the one that the
    /// kernel has.
    #[inline(always)]
    pub(super) fn way_back(&self, port: PortId, from: &Addr, host: &Addr) -> PortId {
        match self.rules.port(port).source_check {
            true => port,
            false => self.port_towards(from, host, port).unwrap_or(port),
        }
    }

    /// Sessions are to be compared with the routes again.
    pub(super) fn revalidate_routes(&mut self) {
        self.revalidation.restart(Scope {
            routes: true,
            ..Default::default()
        });
    }
}
