//! Where packets go on; among several uplinks too: a default route with next hops on more than one port.
//!
//! The kernel would choose one of them for each flow by itself, after policies and translation were decided
//! for another. So the gateway chooses, and the kernel is made to follow: what leaves by such a port is
//! written to the TUN of that port, whose default route leads out there and nowhere else (see the
//! steering's `uplinks`). The choice goes by source and destination, so that all connections of a host
//! to a server leave alike; sessions keep their port while it is up.

use siphasher::sip::SipHasher13;

use crate::event::{RouteChange, RouteTarget};
use crate::flow::{Addr, Family, FlowKey, PortId};
use crate::route::{Fib, Hop};

use super::Gateway;
use super::links::Links;
use super::revalidate::Scope;

/// One way of a default route that has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The port that it leaves by.
    pub port: PortId,
    /// The next hop; none if all is on the link.
    pub gateway: Option<Addr>,
    /// Its share, beside those of the others; 1 at least.
    pub weight: u32,
}

/// Where packets go on: the kernel's routes, and the choice among several uplinks.
pub(super) struct Routes {
    fib: Fib,
    /// By family.
    uplinks: [Vec<Uplink>; 2],
    /// The port to whose TUN the packet goes that was let pass last.
    exit: Option<PortId>,
}

impl Routes {
    pub(super) fn new() -> Routes {
        Routes {
            fib: Fib::new(),
            uplinks: [Vec::new(), Vec::new()],
            exit: None,
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

    /// Removes some of the routes that the kernel has not dumped again; returns whether it makes a difference.
    fn sweep(&mut self) -> bool {
        let before = self.fib.generation();
        self.fib.sweep();
        self.fib.generation() != before
    }

    /// Sets the ways of the default route; returns whether they are other ones.
    fn set_uplinks(&mut self, family: Family, uplinks: Vec<Uplink>) -> bool {
        let known = &mut self.uplinks[family as usize];
        let is_new = *known != uplinks;
        *known = uplinks;
        is_new
    }

    /// What the kernel's table says, whichever uplink is chosen.
    pub(super) fn lookup(&self, addr: &Addr) -> Option<Hop> {
        self.fib.lookup(addr)
    }

    /// Takes note of the way of a packet that passes.
    #[inline(always)]
    pub(super) fn note_exit(&mut self, family: Family, egress: PortId) {
        let uplinks = &self.uplinks[family as usize];
        self.exit = uplinks
            .iter()
            .any(|uplink| uplink.port == egress)
            .then_some(egress);
    }

    /// Where a new flow goes.
    pub(super) fn of_flow(&self, key: &FlowKey, links: &Links) -> Option<Hop> {
        let hop = self.fib.lookup(&key.dst)?;
        let target = match hop.prefix_len {
            0 => self.choose(&key.src, &key.dst, links),
            _ => None,
        };
        Some(Hop {
            target: target.unwrap_or(hop.target),
            ..hop
        })
    }

    /// Where `port` leads to, on the way to `addr`; none if it is not the way.
    pub(super) fn by_port(&self, port: PortId, addr: &Addr) -> Option<RouteTarget> {
        let hop = self.fib.lookup(addr)?;
        let mut uplinks = self.uplinks[addr.family() as usize].iter();
        let uplink = uplinks.find(|uplink| hop.prefix_len == 0 && uplink.port == port);
        match (uplink, hop.target) {
            (Some(uplink), _) => Some(target(uplink)),
            (None, RouteTarget::Port { port: out, .. }) if out == port => Some(hop.target),
            _ => None,
        }
    }

    /// Where a session between these goes that left by `before`: by the same uplink while that is up.
    fn of_session(
        &self,
        from: &Addr,
        to: &Addr,
        before: PortId,
        links: &Links,
    ) -> Option<RouteTarget> {
        let hop = self.fib.lookup(to)?;
        if hop.prefix_len > 0 {
            return Some(hop.target);
        }
        let kept = links.is_up(before).then(|| self.by_port(before, to));
        let chosen = || self.choose(from, to, links);
        kept.flatten().or_else(chosen).or(Some(hop.target))
    }

    /// Whether a link that goes or comes changes the choice.
    pub(super) fn has_uplink(&self, port: PortId) -> bool {
        let mut all = self.uplinks.iter().flatten();
        all.any(|uplink| uplink.port == port)
    }

    /// One of those that are up, each in proportion to its weight; none if all are down.
    fn choose(&self, src: &Addr, dst: &Addr, links: &Links) -> Option<RouteTarget> {
        let all = &self.uplinks[dst.family() as usize];
        let uplinks = || all.iter().filter(|uplink| links.is_up(uplink.port));
        let total: u64 = uplinks().map(|uplink| u64::from(uplink.weight)).sum();
        if total == 0 {
            return None;
        }
        let bytes = [*src.octets(), *dst.octets()].concat();
        // The same on all units; a key could not hide who sends to whom anyway.
        let mut rest = SipHasher13::new().hash(&bytes) % total;
        let mut chosen = uplinks().skip_while(|uplink| {
            let is_beyond = rest >= u64::from(uplink.weight);
            rest = rest.saturating_sub(u64::from(uplink.weight));
            is_beyond
        });
        chosen.next().map(target)
    }
}

impl Gateway {
    /// The ways of the best default route of `family`, when the kernel follows the gateway's choice among
    /// them; empty if it has only one.
    pub fn set_uplinks(&mut self, family: Family, uplinks: Vec<Uplink>) {
        if self.routes.set_uplinks(family, uplinks) {
            self.revalidate_routes();
        }
    }

    /// The port to whose TUN the packet is to be written that [`Gateway::handle_packet`] has just let
    /// pass; none if that is the one that it came from.
    #[inline]
    pub fn exit(&self) -> Option<PortId> {
        self.routes.exit
    }

    /// Where a new flow goes.
    pub(super) fn route_for(&self, key: &FlowKey) -> Option<Hop> {
        self.routes.of_flow(key, &self.links)
    }

    /// Where a session between these goes that left by `before`: by the same uplink while that is up.
    pub(super) fn way_on(&self, from: &Addr, to: &Addr, before: PortId) -> Option<RouteTarget> {
        self.routes.of_session(from, to, before, &self.links)
    }

    /// Removes some of the routes that the kernel has not dumped again.
    pub(super) fn sweep_routes(&mut self) {
        if self.routes.is_sweeping() && self.routes.sweep() {
            self.revalidate_routes();
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

fn target(uplink: &Uplink) -> RouteTarget {
    RouteTarget::Port {
        port: uplink.port,
        gateway: uplink.gateway,
    }
}
