//! The hosts on the links, as far as a takeover needs them.
//!
//! A standby keeps its kernel's neighbour entries warm for the hosts of its sessions, so that the
//! first packets after a takeover do not wait for ARP or Neighbor Discovery. It also remembers the
//! hardware addresses of hosts that it hears, to tell them by unicast too when it takes over: some
//! switches and hosts are slow to believe a broadcast.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use crate::event::{Output, RouteTarget};
use crate::flow::{Addr, Direction, PortId};
use crate::packet::neighbor::Mac;
use crate::time::Time;

use super::Gateway;

/// Hosts remembered, of each kind; the first ones stay.
const MAX_HOSTS: usize = 1024;
/// An entry of the kernel is used again after this time; the kernel forgets unused ones after a
/// minute.
const WARM_FOR: Duration = Duration::from_secs(30);
/// Slots of the table checked in one go, some 200 µs, and how often: a million takes a minute.
const SLOTS: u32 = 2048;
const INTERVAL: Duration = Duration::from_millis(100);

/// The known hosts on the links.
#[derive(Default)]
pub(super) struct Neighbors {
    /// Next hops of sessions, and when the kernel was last told to resolve them.
    warm: BTreeMap<(PortId, Addr), Time>,
    /// Hosts that were heard.
    heard: BTreeMap<(PortId, Addr), Mac>,
    cursor: u32,
    next: Time,
}

impl Neighbors {
    /// Remembers that `addr` was heard from `mac`.
    pub(super) fn hear(&mut self, port: PortId, addr: Addr, mac: Mac) {
        let known = self.heard.len();
        match self.heard.get_mut(&(port, addr)) {
            Some(known) => *known = mac,
            None if known < MAX_HOSTS => {
                self.heard.insert((port, addr), mac);
            }
            None => {}
        }
    }

    /// Whether `host` was heard, and is remembered.
    pub(super) fn has_heard(&self, host: &(PortId, Addr)) -> bool {
        self.heard.contains_key(host)
    }

    /// The hardware address of a host, if it was heard.
    pub(super) fn mac_of(&self, host: (PortId, Addr)) -> Option<Mac> {
        self.heard.get(&host).copied()
    }

    /// The next host that was heard, in a stable order.
    pub(super) fn heard_after(
        &self,
        last: Option<(PortId, Addr)>,
    ) -> Option<((PortId, Addr), Mac)> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.heard.range((from, Bound::Unbounded));
        rest.next().map(|(host, mac)| (*host, *mac))
    }

    /// Whether the kernel should resolve a next hop, at `now`.
    fn is_cold(&mut self, now: Time, hop: (PortId, Addr)) -> bool {
        let known = self.warm.len();
        match self.warm.get_mut(&hop) {
            Some(at) if now.since(*at) < WARM_FOR => false,
            Some(at) => {
                *at = now;
                true
            }
            None if known < MAX_HOSTS => {
                self.warm.insert(hop, now);
                true
            }
            None => false,
        }
    }
}

impl Gateway {
    /// Makes the kernel resolve the hosts that sessions of other units' groups lead to, some at a
    /// time.
    pub(super) fn keep_warm(&mut self, now: Time) {
        let standby = self.groups().any(|group| !self.is_primary(group));
        if !standby || now < self.hosts.neighbors.next {
            return;
        }
        self.hosts.neighbors.next = now + INTERVAL;
        let (sessions, next) = self
            .sessions
            .table()
            .page(self.hosts.neighbors.cursor, SLOTS);
        let mut hops = Vec::new();
        for (_, session) in sessions {
            let leaving = session.translated(Direction::Original, self.sessions.book());
            hops.push((session.in_port, session.src));
            hops.push((session.out_port, leaving.dst));
        }
        self.hosts.neighbors.cursor = next.unwrap_or(0);
        hops.sort_unstable();
        hops.dedup();
        for (port, addr) in hops {
            let Some(hop) = self.next_hop(port, addr) else {
                continue;
            };
            if self.hosts.neighbors.is_cold(now, (port, hop)) {
                self.push_output(Output::Resolve { port, addr: hop });
            }
        }
        self.hosts
            .neighbors
            .warm
            .retain(|_, at| now.since(*at) < 4 * WARM_FOR);
    }

    /// The neighbour on `port` by which `addr` is reached.
    fn next_hop(&self, port: PortId, addr: Addr) -> Option<Addr> {
        match self.routes.by_port(port, &addr)? {
            RouteTarget::Port { gateway, .. } => Some(gateway.unwrap_or(addr)),
            _ => None,
        }
    }
}
