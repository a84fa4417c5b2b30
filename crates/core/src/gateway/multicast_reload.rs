//! Multicast follows a changed config while streams run: what stays allowed goes on, what is not
//! ends at once.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::config::Config;
use crate::event::DropReason;
use crate::flow::{Addr, Family, PortId};
use crate::multicast::membership::Membership;
use crate::time::Time;

use super::Gateway;
use super::multicast::{Multicast, Side};
use super::multicast_pickup::Untold;

/// Groups, or sessions, that are compared with the policies in one call.
const AT_A_TIME: usize = 64;

/// What is not compared yet with policies and static members that have changed.
#[derive(Debug)]
pub(super) struct Comparison {
    groups: BTreeSet<Addr>,
    /// The last session that was compared.
    sessions: Bound<(Addr, Addr)>,
}

impl Multicast {
    /// The sides of ports follow the policies. A port that none names any more keeps its own, which
    /// tells routers that nothing is wanted there.
    pub(super) fn follow(&mut self, config: &Config) {
        let policies = &config.multicast_policies;
        if policies.is_empty() && !self.is_used() {
            return;
        }
        self.sides.resize_with(config.ports.len(), || None);
        for (index, side) in self.sides.iter_mut().enumerate() {
            let port = PortId::from_index(index);
            let is_to = policies.iter().any(|policy| policy.to.contains(&port));
            let is_from = policies.iter().any(|policy| policy.from.contains(&port));
            if side.is_some() || is_to || is_from {
                let side = side.get_or_insert_with(|| Box::new(Side::new()));
                (side.is_to, side.is_from) = (is_to, is_from);
            }
        }
    }

    /// Whether sessions are compared with policies that have changed.
    pub(super) fn is_comparing(&self) -> bool {
        self.comparison.is_some()
    }

    /// Forgets what hosts of ports want that no policy leads to any more.
    fn forget_members(&mut self) -> Vec<(PortId, Addr)> {
        let mut gone = Vec::new();
        for (index, side) in self.sides.iter_mut().enumerate() {
            let Some(side) = side.as_mut().filter(|side| !side.is_to) else {
                continue;
            };
            let port = PortId::from_index(index);
            for (members, family) in side.downstream.iter_mut().zip(Family::ALL) {
                gone.extend(members.groups().map(|(group, _)| (port, group)));
                *members = Membership::new(family);
            }
        }
        gone
    }

    /// All groups that are wanted of anybody.
    fn groups(&self, config: &Config) -> BTreeSet<Addr> {
        let members = self.members().map(|(_, group, _)| group);
        let joins = config.multicast_joins.iter().map(|join| join.group);
        let sides = self.sides.iter().flatten();
        let hosts = sides.flat_map(|side| &side.upstream);
        let upstream = hosts.flat_map(|host| host.groups().copied());
        members.chain(joins).chain(upstream).collect()
    }

    /// Checks the bookkeeping.
    pub(super) fn check_invariants(&self) {
        for port in self.ports() {
            let Some(side) = self.side(port) else {
                continue;
            };
            side.downstream
                .iter()
                .for_each(Membership::check_invariants);
            let sessions = self.sessions.values();
            let count = sessions.filter(|session| session.port == port).count();
            assert_eq!(side.sessions, count, "sessions are counted");
            let has_members = side.downstream.iter().any(|it| it.count().0 > 0);
            assert!(side.is_to || !has_members, "no policy leads to its members");
        }
        let of_ports: usize = self.sides.iter().flatten().map(|side| side.sessions).sum();
        assert_eq!(of_ports, self.sessions.len(), "each session has a port");
    }
}

impl Gateway {
    /// Puts policies and static members in force that have changed. Groups and sessions are
    /// compared with them in the next turns; packets, before they are sent on.
    pub(super) fn adopt_multicast(&mut self, now: Time) {
        let config = self.rules.basis().config;
        self.multicast.follow(&config);
        if !self.multicast.is_used() {
            return;
        }
        for (port, group) in self.multicast.forget_members() {
            self.multicast.untold.note(Untold::Members(port, group));
        }
        self.multicast.comparison = Some(Comparison {
            groups: self.multicast.groups(&config),
            sessions: Bound::Unbounded,
        });
        self.multicast.doubt_sessions();
        self.follow_multicast_roles(now);
    }

    /// A session ends for this reason: maybe since the policies that have changed forbid it.
    pub(super) fn count_forbidden(&mut self, reason: DropReason) {
        let is_forbidden = matches!(reason, DropReason::NoPolicy | DropReason::PolicyDrop);
        let ended = u64::from(is_forbidden && self.multicast.is_comparing());
        self.counters.cleared += ended;
        self.counters.forbidden += ended;
    }

    /// Compares some groups, and then some sessions, with policies that have changed.
    pub(super) fn compare_multicast(&mut self, now: Time) {
        let Some(comparison) = &mut self.multicast.comparison else {
            return;
        };
        let some = std::iter::from_fn(|| comparison.groups.pop_first());
        let groups: Vec<Addr> = some.take(AT_A_TIME).collect();
        if !groups.is_empty() {
            for group in groups {
                self.want_upstream(now, &group);
            }
            return self.settle_multicast(now, None);
        }
        let range = (comparison.sessions, Bound::Unbounded);
        let sessions = self.multicast.sessions.range(range);
        let sessions = sessions.map(|(at, session)| (*at, session.port));
        let sessions: Vec<_> = sessions.take(AT_A_TIME).collect();
        match sessions.last() {
            Some((at, _)) => comparison.sessions = Bound::Excluded(*at),
            None => self.multicast.comparison = None,
        }
        for (at, port) in sessions {
            // The primary decides about those of others.
            if self.is_primary(self.multicast_group(port, at.0.family())) {
                // It ends what may not go on.
                let _ = self.find_exits(now, port, at);
            }
        }
    }
}
