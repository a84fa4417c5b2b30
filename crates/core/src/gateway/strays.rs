//! Hosts that still send to a unit that is not primary, because they missed all announcements: the
//! unit names them to the primary, which tells each where the address is now.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::event::Output;
use crate::flow::{Addr, PortId};
use crate::packet::{self, neighbor};
use crate::time::Time;

use super::Gateway;
use super::limiter::Limiter;

/// A host is named, or told, again after this time.
const AGAIN: Duration = Duration::from_millis(500);
/// Hosts a second that are named, and that are told.
const PER_SECOND: u32 = 100;
/// Hosts remembered as named, or told, just now.
const MOST_HOSTS: usize = 256;
/// Addresses that a host is told of.
const MOST_ADDRESSES: usize = 4;

/// The hosts that were named to the primary, or told as primary.
pub(super) struct Strays {
    limiter: Limiter,
    lately: BTreeMap<(PortId, Addr), Time>,
}

impl Default for Strays {
    fn default() -> Strays {
        Strays {
            limiter: Limiter::new(PER_SECOND),
            lately: BTreeMap::new(),
        }
    }
}

impl Strays {
    /// Whether `host` is due.
    pub(super) fn is_due(&mut self, now: Time, host: (PortId, Addr)) -> bool {
        if self.lately.len() >= MOST_HOSTS {
            self.lately.retain(|_, at| now.since(*at) < AGAIN);
        }
        let lately = self.lately.get(&host);
        let is_full = self.lately.len() >= MOST_HOSTS;
        if lately.is_some_and(|at| now.since(*at) < AGAIN) || is_full || !self.limiter.allow(now) {
            return false;
        }
        self.lately.insert(host, now);
        true
    }
}

impl Gateway {
    /// `host` has sent a packet by `port` that was meant for the primary.
    #[cold]
    pub(super) fn note_stray(&mut self, now: Time, port: PortId, host: Addr) {
        if self.cluster().is_none() {
            return;
        }
        if !packet::forwardable(host) || !self.hosts.strays.is_due(now, (port, host)) {
            return;
        }
        let groups = self.addresses_on(port).map(|(_, group)| group);
        let mut groups: Vec<_> = groups.filter(|group| !self.is_primary(*group)).collect();
        groups.sort_unstable();
        groups.dedup();
        self.in_cluster(now, |cluster, _| {
            for group in groups {
                cluster.ha.name_stray(now, group, port, host);
            }
        });
    }

    /// A peer reports that `host`, on the link of `port`, sends this unit's packets to it.
    pub(super) fn tell_stray(&mut self, now: Time, port: PortId, host: Addr) {
        let Some(link) = self.links.find(port).copied() else {
            return;
        };
        let allowed = link.up && packet::forwardable(host);
        if !allowed || !self.hosts.strays.is_due(now, (port, host)) {
            return;
        }
        let own = self.rules.port(port).virtual_addresses.iter();
        let own =
            own.filter(|own| own.addr.family() == host.family() && self.is_primary(own.group));
        let (ip, family) = (IpAddr::from(host), host.family());
        let is_neighbor = self.rules.port(port).virtual_addresses.iter();
        let is_neighbor = is_neighbor
            .filter(|own| own.addr.family() == family)
            .any(|own| own.network.contains(&ip));
        let own: Vec<Addr> = own.map(|own| own.addr).take(MOST_ADDRESSES).collect();
        for addr in own {
            if !is_neighbor {
                // It is behind a router of the link, which has to be told instead.
                if self.hosts.announcer.may_defend(now, addr) {
                    self.announce_address(port, addr);
                }
                continue;
            }
            // By a question from the address, which updates the receiver's cache (RFC 826; RFC
            // 4861, section 7.2.3), and by unicast if it was heard.
            let bytes = neighbor::solicit(host, addr, link.mac);
            self.push_output(Output::Frame { port, bytes });
            if let Some(mac) = self.hosts.neighbors.mac_of((port, host)) {
                let bytes = neighbor::announce_to(addr, link.mac, host, mac);
                self.push_output(Output::Frame { port, bytes });
            }
        }
    }
}
