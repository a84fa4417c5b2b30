//! Gratuitous ARP and unsolicited neighbor advertisements: when, and how often.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::Config;
use crate::event::Output;
use crate::flow::{Addr, GroupId, PortId};
use crate::packet::neighbor;
use crate::time::Time;

use super::{Gateway, Role};

/// One defence of an address in this time (RFC 5227, section 2.4(c): DEFEND_INTERVAL).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// The repeats that are still to be sent, a schedule for each group.
pub struct Announcer {
    repeats: u32,
    interval: Duration,
    pending: Vec<Option<Pending>>,
    defended: BTreeMap<Addr, Time>,
}

#[derive(Clone, Copy)]
struct Pending {
    left: u32,
    at: Time,
}

impl Announcer {
    pub fn new(config: &Config) -> Announcer {
        let mut announcer = Announcer {
            repeats: 5,
            interval: Duration::from_secs(1),
            pending: vec![None; config.groups.len()],
            defended: BTreeMap::new(),
        };
        announcer.reconfigure(config);
        announcer
    }

    /// Takes over how often is announced; what is under way goes on with the new interval.
    pub fn reconfigure(&mut self, config: &Config) {
        if let Some(ha) = &config.ha {
            (self.repeats, self.interval) = (ha.gratuitous_arps, ha.gratuitous_arp_interval);
        }
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        self.pending
            .iter()
            .flatten()
            .map(|pending| pending.at)
            .min()
    }

    /// Plans the repeats of an announcement that is made now.
    fn start(&mut self, now: Time, group: GroupId) {
        let left = self.repeats.saturating_sub(1);
        self.pending[usize::from(group.0)] = (left > 0).then_some(Pending {
            left,
            at: now + self.interval,
        });
    }

    /// Whether a repeat for `group` is due.
    fn take_due(&mut self, now: Time, group: GroupId) -> bool {
        let slot = &mut self.pending[usize::from(group.0)];
        let Some(pending) = slot.filter(|pending| pending.at <= now) else {
            return false;
        };
        let left = pending.left - 1;
        *slot = (left > 0).then_some(Pending {
            left,
            at: now + self.interval,
        });
        true
    }

    /// Forgets the repeats of a group that this unit no longer answers for.
    pub fn cancel(&mut self, group: GroupId) {
        self.pending[usize::from(group.0)] = None;
    }

    /// Whether one of our addresses may be defended now; at most once in [`DEFEND_INTERVAL`].
    pub fn may_defend(&mut self, now: Time, addr: Addr) -> bool {
        let last = self.defended.get(&addr);
        let allowed = last.is_none_or(|last| now.since(*last) >= DEFEND_INTERVAL);
        if allowed {
            self.defended.insert(addr, now);
        }
        allowed
    }
}

impl Gateway {
    /// Begins to work: a standalone gateway is primary of every group at once.
    pub fn start(&mut self, now: Time) {
        if self.cluster.is_some() {
            self.handle_wake(now);
            self.tell_ports(now);
            return;
        }
        for group in self.groups() {
            self.set_role(now, group, Role::Primary);
        }
    }

    /// Announces all addresses of a group that this unit has just become primary for.
    pub(super) fn announce_group(&mut self, now: Time, group: GroupId) {
        self.send_announcements(group);
        self.announcer.start(now, group);
    }

    /// Announces what is on a port whose link came up or whose hardware address changed.
    pub(super) fn announce_port(&mut self, now: Time, port: PortId) {
        let groups: Vec<GroupId> = self.addresses_on(port).map(|(_, group)| group).collect();
        for group in self.groups().filter(|group| groups.contains(group)) {
            if self.is_primary(group) {
                self.announce_group(now, group);
            }
        }
    }

    pub(super) fn send_due_announcements(&mut self, now: Time) {
        for group in self.groups() {
            if self.announcer.take_due(now, group) {
                self.send_announcements(group);
            }
        }
    }

    fn send_announcements(&mut self, group: GroupId) {
        for index in 0..self.config.ports.len() {
            let port = PortId::from_index(index);
            let addresses: Vec<Addr> = self
                .addresses_on(port)
                .filter(|(_, g)| *g == group)
                .map(|(addr, _)| addr)
                .collect();
            for addr in addresses {
                self.announce_address(port, addr);
            }
        }
    }

    pub(super) fn announce_address(&mut self, port: PortId, addr: Addr) {
        let link = self.ports[port.index()].link;
        if !link.up {
            return;
        }
        for bytes in neighbor::announce(addr, link.mac) {
            self.push_output(Output::Frame { port, bytes });
        }
    }
}
