//! IGMP and MLD on the ports: what hosts and routers say, and what the gateway tells them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::config::{Config, MulticastPolicy};
use crate::event::{DropReason, Output, RouteTarget};
use crate::flow::{Addr, Family, GroupId, PortId};
use crate::multicast::membership::Wanted;
use crate::multicast::message::{self, Message, Query, Sender};
use crate::time::Time;

use super::Gateway;
use super::multicast::{Multicast, Side};
use super::multicast_pickup::Untold;

/// Sources that a question about them has room for, in a packet of 1280 bytes.
const SOURCES_IN_QUERY: usize = 64;

impl Multicast {
    /// What is wanted of the senders behind `from`: all that any port wants, to which a policy lets
    /// it (RFC 4605, section 4.1). What only some ports do not want is wanted.
    fn wanted_from(&self, config: &Config, from: PortId, group: &Addr) -> Option<Wanted> {
        let leads = |to: PortId| {
            let mut policies = config.multicast_policies.iter();
            let of =
                |policy: &&MulticastPolicy| policy.from.contains(&from) && policy.to.contains(&to);
            to != from
                && policies.any(|policy| of(&policy) && policy.accepts && policy.is_about(group))
        };
        let by_hosts = self
            .ports()
            .filter(|port| leads(*port))
            .filter_map(|port| self.side(port)?.downstream[group.family() as usize].wanted(group));
        let by_config = config.multicast_joins.iter();
        let by_config = by_config.filter(|join| join.group == *group && leads(join.port));
        let by_config = by_config.map(|join| Wanted {
            excludes: join.source.is_none(),
            sources: join.source.into_iter().collect(),
        });
        by_hosts
            .chain(by_config)
            .reduce(|a, b| match (a.excludes, b.excludes) {
                (false, false) => {
                    let both: BTreeSet<Addr> = a.sources.into_iter().chain(b.sources).collect();
                    Wanted {
                        excludes: false,
                        sources: both.into_iter().collect(),
                    }
                }
                _ => Wanted {
                    excludes: true,
                    sources: Vec::new(),
                },
            })
    }
}

impl Gateway {
    /// The group whose primary speaks for the gateway on `port`, and sends on what comes in there.
    pub(super) fn multicast_group(&self, port: PortId, family: Family) -> GroupId {
        let port = self.rules.port(port);
        let mut own = port.virtual_addresses.iter().chain(&port.link_local);
        own.find(|own| own.addr.family() == family)
            .map_or(GroupId(0), |own| own.group)
    }

    /// The address that the gateway asks and answers from on `port`: the virtual one, so that hosts
    /// and switches see the same router after a takeover. MLD needs a link-local address: without a
    /// virtual one, that of the interface.
    fn multicast_sender(&self, port: PortId, family: Family) -> Option<Sender> {
        let settings = self.rules.port(port);
        let addr = match family {
            Family::V4 => {
                let own = settings.virtual_addresses.iter().map(|own| own.addr);
                own.into_iter().find(Addr::is_v4)
            }
            Family::V6 => {
                let own = settings.link_local.first().map(|own| own.addr);
                let of_kernel = || {
                    let mut all = self.links.kernel_on(port);
                    all.find(|addr| !addr.is_v4() && addr.is_link_local())
                };
                own.or_else(of_kernel)
            }
        }?;
        let mac = self.links.link(port).mac;
        Some(Sender { mac, addr })
    }

    pub(super) fn handle_membership(
        &mut self,
        now: Time,
        port: PortId,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let side = self.multicast.side_mut(port);
        if side.is_none_or(|side| !side.limiter.allow(now)) {
            return Err(DropReason::MembershipRate);
        }
        let received = message::parse(bytes)?;
        let family = received.from.family();
        // RFC 9776, section 9.2: only hosts of the link.
        let route = |addr: &Addr| self.routes.by_port(port, addr);
        let is_near = |addr: &Addr| {
            let ip = IpAddr::from(*addr);
            let own = &self.rules.port(port).virtual_addresses;
            own.iter().any(|own| own.network.contains(&ip))
                || matches!(route(addr), Some(RouteTarget::Port { gateway: None, .. }))
        };
        let unspecified = received.from == Addr::unspecified(Family::V4);
        if family == Family::V4 && !unspecified && !is_near(&received.from) {
            return Err(DropReason::MembershipMalformed);
        }
        let own = self.multicast_sender(port, family);
        let is_primary = self.is_primary(self.multicast_group(port, family));
        let Some(side) = self.multicast.side_mut(port) else {
            return Ok(());
        };
        if let Message::Query(query) = &received.message {
            side.upstream[family as usize].handle_query(now, received.version, query);
        }
        let handled = match own.filter(|_| is_primary && side.is_to) {
            Some(own) => side.downstream[family as usize].handle(now, own.addr, &received),
            None => Ok(()),
        };
        self.settle_multicast(now, Some(port));
        handled
    }

    /// Follows what the hosts of a port want, of all ports if it is none, and sends what there is
    /// to say.
    pub(super) fn settle_multicast(&mut self, now: Time, port: Option<PortId>) {
        let changed: Vec<PortId> = match port {
            Some(port) => vec![port],
            None => self.multicast.ports().collect(),
        };
        for port in changed {
            for family in Family::ALL {
                self.follow_members(now, port, family);
            }
        }
        let sides = self.multicast.sides.iter().enumerate();
        let has_news = |side: &Side| side.has_news(now);
        let speaking = sides.filter(|(_, side)| side.as_deref().is_some_and(has_news));
        let speaking: Vec<usize> = speaking.map(|(index, _)| index).collect();
        for index in speaking {
            for family in Family::ALL {
                self.speak(now, PortId::from_index(index), family);
            }
        }
        let sides = self.multicast.sides.iter().flatten();
        self.multicast.next = sides.filter_map(|side| side.poll_timeout(now)).min();
    }

    fn speak(&mut self, now: Time, port: PortId, family: Family) {
        let sender = self.multicast_sender(port, family);
        let is_heard = sender.is_some() && self.links.is_up(port);
        // What nobody would hear is forgotten: it is said again when the link comes up.
        let sender = sender.unwrap_or(Sender {
            mac: [0; 6],
            addr: Addr::unspecified(family),
        });
        let mut frames = Vec::new();
        if let Some(side) = self.multicast.side_mut(port) {
            while let Some(query) = side.downstream[family as usize].poll_query() {
                frames.extend(query_frames(&query, sender));
            }
            frames.extend(side.upstream[family as usize].poll_frames(now, sender));
        }
        for bytes in frames.into_iter().filter(|_| is_heard) {
            self.push_output(Output::Frame { port, bytes });
        }
    }

    /// The members of some groups have changed: sessions leave elsewhere, and other groups are
    /// wanted of the senders.
    fn follow_members(&mut self, now: Time, port: PortId, family: Family) {
        let mut changed = Vec::new();
        if let Some(side) = self.multicast.side_mut(port) {
            let members = &mut side.downstream[family as usize];
            changed.extend(std::iter::from_fn(|| members.poll_changed()));
        }
        for group in changed {
            self.multicast.doubt_sessions();
            self.multicast.untold.note(Untold::Members(port, group));
            self.want_upstream(now, &group);
        }
    }

    pub(super) fn want_upstream(&mut self, now: Time, group: &Addr) {
        for from in self.multicast.ports() {
            let wanted = self.multicast.wanted_from(self.rules.config(), from, group);
            if let Some(side) = self.multicast.side_mut(from) {
                side.upstream[group.family() as usize].set(now, *group, wanted);
            }
        }
    }

    /// The roles of this unit may have changed: a new primary asks and wants at once.
    pub(super) fn follow_multicast_roles(&mut self, now: Time) {
        for port in self.multicast.ports() {
            for family in Family::ALL {
                let is_primary = self.is_primary(self.multicast_group(port, family));
                self.follow_multicast_role(now, port, family, is_primary);
            }
        }
        self.handle_members_timeout(now);
    }

    fn follow_multicast_role(&mut self, now: Time, port: PortId, family: Family, is_primary: bool) {
        let joins = self.rules.config().multicast_joins.iter();
        let joined = joins
            .filter(|join| join.group.family() == family)
            .map(|join| join.group);
        let joined: Vec<Addr> = joined.collect();
        let Some(side) = self.multicast.side_mut(port) else {
            return;
        };
        let members = &mut side.downstream[family as usize];
        match (is_primary && side.is_to, members.is_running()) {
            (true, false) => members.start(now),
            (false, true) => members.stop(),
            _ => {}
        }
        let host = &mut side.upstream[family as usize];
        // Of a port that streams no longer come in by, it says that nothing is wanted.
        let speaks = is_primary && (side.is_from || host.is_leaving());
        if host.is_speaking() != speaks {
            host.set_speaking(now, speaks);
            for group in joined {
                self.want_upstream(now, &group);
            }
            self.multicast.doubt_sessions();
        }
    }

    /// A link has changed. Hosts and routers behind one that comes up may be others than before.
    pub(super) fn follow_multicast_link(&mut self, now: Time, port: PortId, came_up: bool) {
        let Some(side) = self.multicast.side_mut(port).filter(|_| came_up) else {
            return;
        };
        for members in side
            .downstream
            .iter_mut()
            .filter(|members| members.is_running())
        {
            members.start(now);
        }
        for host in side.upstream.iter_mut().filter(|host| host.is_speaking()) {
            host.set_speaking(now, false);
            host.set_speaking(now, true);
        }
        self.handle_members_timeout(now);
    }

    /// Does what is due of the members of all ports.
    pub(super) fn handle_members_timeout(&mut self, now: Time) {
        if !self.multicast.is_used() {
            return;
        }
        for side in self.multicast.sides.iter_mut().flatten() {
            for members in &mut side.downstream {
                members.handle_timeout(now);
            }
        }
        self.settle_multicast(now, None);
    }
}

/// A question, in as many packets as its sources need.
fn query_frames(query: &Query, sender: Sender) -> Vec<Vec<u8>> {
    if query.sources.is_empty() {
        return vec![message::query_frame(query, sender)];
    }
    let parts = query.sources.chunks(SOURCES_IN_QUERY).map(|sources| {
        let sources = sources.to_vec();
        let part = Query {
            sources,
            ..query.clone()
        };
        message::query_frame(&part, sender)
    });
    parts.collect()
}
