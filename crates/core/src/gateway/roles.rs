//! The steps when a unit becomes primary or standby of a group.

use crate::event::{Output, Verdict};
use crate::flow::{Direction, GroupId, MAX_GROUPS};
use crate::packet::neighbor;
use crate::time::{Tick, Time};

use super::revalidate::Scope;
use super::{Gateway, Role};

/// After so many hold times as primary, another unit that became primary at the same moment has
/// yielded, or this one: it is heard after one, and the two decide within two more and a heartbeat.
const UNDISPUTED_HOLDS: u32 = 4;

/// This unit's role in each group, and the traffic that it sees of it.
pub(super) struct Groups {
    pub(super) roles: [Role; MAX_GROUPS],
    pub(super) traffic: [Traffic; MAX_GROUPS],
    /// Until then another unit may be primary too, and stay it, and this one may be the only one
    /// that holds some of the sessions: none of them ends for the sake of its own rules and routes.
    undisputed: [Time; MAX_GROUPS],
}

/// When packets of a group's sessions were last forwarded here. Packets that were dropped don't
/// count: a unit whose other port is down hears much, and serves nobody.
#[derive(Clone, Copy, Default)]
pub(super) struct Traffic {
    /// By [`crate::flow::Direction`].
    pub(super) seen: [Option<Tick>; 2],
}

impl Traffic {
    /// The last time that they went both ways: the older of the two.
    pub(super) fn carried(&self) -> Option<Time> {
        let [original, reply] = self.seen;
        Some(original?.min(reply?).time())
    }
}

impl Groups {
    /// Standby for all groups.
    pub(super) fn new() -> Groups {
        Groups {
            roles: [Role::Standby; MAX_GROUPS],
            traffic: [Traffic::default(); MAX_GROUPS],
            undisputed: [Time::ZERO; MAX_GROUPS],
        }
    }

    /// Another group has this place from now on, or none.
    pub(super) fn reset(&mut self, group: GroupId) {
        self.traffic[usize::from(group.0)] = Traffic::default();
    }

    /// Notes the fate of a packet of a session.
    #[inline]
    pub(super) fn note_traffic(
        &mut self,
        group: GroupId,
        direction: Direction,
        now: Time,
        verdict: &Verdict,
    ) {
        if *verdict == Verdict::Forward {
            self.traffic[usize::from(group.0)].seen[direction as usize] = Some(now.tick());
        }
    }

    /// From when on no other unit can have become primary of a group together with this one.
    pub(super) fn undisputed(&self, group: GroupId) -> Time {
        self.undisputed[usize::from(group.0)]
    }

    #[inline]
    pub(super) fn role(&self, group: GroupId) -> Role {
        self.roles[usize::from(group.0)]
    }
}

impl Gateway {
    /// Begins to work: a standalone gateway becomes primary of every group at once.
    pub fn start(&mut self, now: Time) {
        if self.cluster().is_some() {
            self.handle_wake(now);
            self.tell_ports(now);
            return;
        }
        for group in self.groups() {
            self.set_role(now, group, Role::Primary);
        }
    }

    /// Makes this unit primary or standby for `group`.
    pub fn set_role(&mut self, now: Time, group: GroupId, role: Role) {
        if role == Role::Standby {
            // Before anything else: the program may be forwarding.
            self.fast_path.stop_group(group);
        }
        let before = std::mem::replace(&mut self.groups.roles[usize::from(group.0)], role);
        match (before, role) {
            (Role::Standby, Role::Primary) => self.announce_group(now, group),
            (Role::Primary, Role::Standby) => self.hosts.announcer.cancel(group),
            _ => {}
        }
        self.follow_multicast_roles(now);
    }

    /// Carries out a decision of the election; replication knows it already.
    pub(super) fn change_role(&mut self, now: Time, group: GroupId, role: Role) {
        if role == Role::Primary {
            self.sessions.renew(group, now.tick());
        } else {
            self.drop_waiting(group);
            self.revalidation.restart(Scope {
                stepped_down: true,
                ..Scope::default()
            });
        }
        self.set_role(now, group, role);
        if role == Role::Primary {
            self.announce_to_neighbors(now, group);
            if self.cluster().is_some_and(|it| it.sync.rules_differ()) {
                self.revalidation.schedule_rules();
            }
            let hold = self.cluster().map(|it| it.ha().hold());
            let undisputed = now + hold.unwrap_or_default() * UNDISPUTED_HOLDS;
            self.groups.undisputed[usize::from(group.0)] = undisputed;
            self.revalidation.catch_up();
        }
    }

    /// Sessions of other units' groups do not expire here, since their packets are not seen here.
    pub(super) fn renew_leases(&mut self, now: Time) {
        for group in self.groups() {
            if !self.is_primary(group) {
                self.sessions.renew(group, now.tick());
            }
        }
    }

    /// Asks on all ports for the owner of the addresses of `group`.
    pub(super) fn probe_group(&mut self, group: GroupId) {
        for port in self.links.ports() {
            let link = *self.links.link(port);
            let addresses: Vec<_> = self
                .addresses_on(port)
                .filter(|(_, g)| *g == group)
                .map(|(a, _)| a)
                .collect();
            for addr in addresses.into_iter().filter(|_| link.up) {
                self.push_output(Output::Frame {
                    port,
                    bytes: neighbor::probe(addr, link.mac),
                });
            }
        }
    }
}
