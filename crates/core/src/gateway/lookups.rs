//! Hosts that the kernel looks for in vain, because a packet filter of somebody else hides from it
//! who answers.
//!
//! ARP and neighbour discovery of the kernel pass the filters at its input and output hooks. What
//! the gateway sends and receives on its packet sockets does not. So where the kernel does not
//! learn where a host is, the gateway asks, and tells the kernel what it hears. Where that was of
//! use, it does so from the first question on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::event::{KernelLookup, Output};
use crate::flow::{Addr, Family, PortId};
use crate::packet::neighbor::{self, Mac};
use crate::time::Time;

use super::Gateway;
use super::unresolved::Host;

/// A host has this time to answer the kernel, before the gateway asks too.
const PATIENCE: Duration = Duration::from_millis(300);
/// The kernel has this time to say that it has heard an answer that the gateway heard.
const GRACE: Duration = Duration::from_millis(50);
/// The gateway asks again after this time, as the kernel does (RFC 4861, section 10,
/// RETRANS_TIMER).
const AGAIN: Duration = Duration::from_secs(1);
/// A host that has not answered in this time is forgotten; the kernel looks for it again if there
/// is a packet for it.
const LASTS: Duration = Duration::from_secs(3);
/// Hosts that are looked for at once: as many as the kernel's table has places.
const MOST: usize = 1024;
/// So many hosts in this time that the kernel did not find, though they answered, are no accident.
const ENOUGH: u32 = 2;
const REMEMBERED: Duration = Duration::from_secs(300);

/// The hosts that the kernel looks for, and where it was helped to find them.
#[derive(Default)]
pub(super) struct Lookups {
    hosts: BTreeMap<Host, Lookup>,
    /// When the first of them has something to do, or before.
    next: Option<Time>,
    /// How many hosts were found for the kernel, until when that is remembered.
    helped: BTreeMap<(PortId, Family), (u32, Time)>,
}

struct Lookup {
    until: Time,
    /// When there is something to do: to ask, to tell the kernel, or to forget it.
    next: Time,
    /// Who has answered.
    mac: Option<Mac>,
    /// How often the gateway still asks.
    asks: u32,
}

impl Lookups {
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.next
    }

    fn insert(&mut self, host: Host, lookup: Lookup) {
        if self.hosts.len() < MOST || self.hosts.contains_key(&host) {
            self.wake_at(lookup.next);
            self.hosts.insert(host, lookup);
        }
    }

    fn wake_at(&mut self, time: Time) {
        self.next = Some(self.next.map_or(time, |next| next.min(time)));
    }

    /// Whether the kernel does not hear what hosts of a family on a link answer.
    fn is_deaf(&self, now: Time, port: PortId, family: Family) -> bool {
        let helped = self.helped.get(&(port, family));
        helped.is_some_and(|(count, until)| *count >= ENOUGH && now < *until)
    }

    /// A host was found for the kernel. True if it is clear only now that its filters are to blame.
    fn note_help(&mut self, now: Time, (port, addr): Host) -> bool {
        let before = self.is_deaf(now, port, addr.family());
        let helped = self.helped.entry((port, addr.family()));
        let (count, until) = helped.or_insert((0, now));
        if *until <= now {
            *count = 0;
        }
        *count = count.saturating_add(1);
        *until = now + REMEMBERED;
        !before && *count >= ENOUGH
    }

    /// The host at `mac` has been heard.
    fn hear(&mut self, now: Time, host: Host, mac: Mac) {
        let grace = match self.is_deaf(now, host.0, host.1.family()) {
            true => Duration::ZERO,
            false => GRACE,
        };
        let Some(lookup) = self.hosts.get_mut(&host) else {
            return;
        };
        if lookup.mac.is_none() {
            lookup.next = now + grace;
        }
        lookup.mac = Some(mac);
        self.wake_at(now + grace);
    }

    /// Takes out the hosts for which there is something to do.
    fn take_due(&mut self, now: Time) -> BTreeMap<Host, Lookup> {
        if self.next.is_none_or(|next| now < next) {
            return BTreeMap::new();
        }
        let all = std::mem::take(&mut self.hosts);
        let (due, rest) = all.into_iter().partition(|(_, it)| it.next <= now);
        self.hosts = rest;
        self.next = self.hosts.values().map(|it| it.next).min();
        due
    }
}

impl Gateway {
    /// The kernel looks for a host on the link of `port`, or has ended that.
    pub fn handle_kernel_lookup(
        &mut self,
        now: Time,
        port: PortId,
        addr: Addr,
        lookup: KernelLookup,
    ) {
        let host = (port, addr);
        let is_up = self.links.find(port).is_some_and(|link| link.up);
        if !is_up || lookup == KernelLookup::Found {
            self.hosts.lookups.hosts.remove(&host);
            self.fast_path.find_next_hop(port, addr);
            return;
        }
        if lookup == KernelLookup::Missed {
            self.fast_path.lose_next_hop(now, port, addr);
        }
        let (wait, asks) = match lookup {
            // It asks again by itself.
            KernelLookup::Wanted => (LASTS, 0),
            KernelLookup::Doubted => (PATIENCE, 2),
            KernelLookup::Missed | KernelLookup::Found => (LASTS, 0),
        };
        if matches!(lookup, KernelLookup::Wanted | KernelLookup::Missed) {
            self.ask_for_host(host);
        }
        let lookup = Lookup {
            until: now + LASTS,
            next: now + wait,
            mac: None,
            asks,
        };
        self.hosts.lookups.insert(host, lookup);
    }

    /// Whether the kernel should leave it to the gateway to ask for hosts of a family on the link
    /// of `port`.
    ///
    /// For IPv4 also where it has no address in a network of the port: it would ask (ARP) from an
    /// address of another network, which strict hosts do not answer. IPv6 asks from the link-local
    /// address.
    pub fn asks_for_neighbors(&self, now: Time, port: PortId, family: Family) -> bool {
        let networks = self.rules.port(port).virtual_addresses.iter();
        let mut networks = networks
            .map(|own| own.network)
            .filter(|network| network.addr().is_ipv4() && network.prefix_len() < 32);
        let has_none = family == Family::V4
            && networks.any(|network| !self.links.kernel_is_in(port, &network));
        has_none || self.hosts.lookups.is_deaf(now, port, family)
    }

    /// A frame tells that `addr` is at `mac`.
    pub(super) fn note_for_kernel(&mut self, now: Time, port: PortId, addr: Addr, mac: Mac) {
        self.hosts.lookups.hear(now, (port, addr), mac);
        self.continue_lookups(now);
    }

    /// Asks for hosts that have not answered the kernel, and tells it of those that have.
    pub(super) fn continue_lookups(&mut self, now: Time) {
        for (host, mut lookup) in self.hosts.lookups.take_due(now) {
            if let Some(mac) = lookup.mac {
                self.tell_kernel(now, host, mac);
            } else if lookup.until > now && lookup.asks > 0 {
                self.ask_for_host(host);
                lookup.asks -= 1;
                lookup.next = match lookup.asks {
                    0 => lookup.until,
                    _ => now + AGAIN,
                };
                self.hosts.lookups.insert(host, lookup);
            }
        }
    }

    fn tell_kernel(&mut self, now: Time, host: Host, mac: Mac) {
        let (port, addr) = host;
        self.push_output(Output::Neighbor { port, addr, mac });
        if self.hosts.lookups.note_help(now, host) {
            let name = self.port_name(port);
            let (family, what) = match addr.family() {
                Family::V4 => ("IPv4", "ARP"),
                Family::V6 => ("IPv6", "neighbour discovery"),
            };
            log::warn!(
                "hosts found for the kernel port={name} family={family} why=\"their answers do not reach it: a \
                 packet filter drops {what} at its input or output hook\" effect=\"the gateway asks for hosts and \
                 tells the kernel; the machine itself may not be reached\" remedy=\"nft list ruleset: let it \
                 accept {what}\""
            );
        }
    }

    /// Asks the link for a host, from an address that this unit has: of the kernel, or the virtual
    /// one of its network if this unit has that; else from the unspecified address (RFC 5227,
    /// section 2.1.1), which claims nothing. The kernel learns from the answer too, if it hears it.
    fn ask_for_host(&mut self, (port, addr): Host) {
        let (mac, ip) = (self.links.link(port).mac, IpAddr::from(addr));
        let own = self.rules.port(port).virtual_addresses.iter();
        let mut own = own.filter(|own| own.network.contains(&ip));
        let kernels = self
            .links
            .kernel_on(port)
            .find(|kernel| match addr.family() {
                Family::V4 => own
                    .clone()
                    .any(|own| own.network.contains(&IpAddr::from(*kernel))),
                Family::V6 => kernel.is_link_local(),
            });
        let ours = own.find(|own| self.serves(own.group));
        let bytes = match ours.map(|own| own.addr).or(kernels) {
            Some(sender) => neighbor::solicit(addr, sender, mac),
            None => neighbor::probe(addr, mac),
        };
        self.push_output(Output::Frame { port, bytes });
    }
}
