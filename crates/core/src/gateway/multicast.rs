//! Multicast: streams go on to the ports whose hosts want them.
//!
//! A session is a source and a group, with the ports that it leaves by. It is no session of the
//! table: that has two flows, each of which finds it by all of its key, with one port to leave by,
//! a translation of its own, and an answer that it waits for. This one has one direction, several
//! ways out that change as hosts come and go, and no ports in its key.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::{Config, MulticastJoin, MulticastPolicy};
use crate::event::{DropReason, Offload};
use crate::flow::{Addr, Family, FlowKey, PortId, Protocol};
use crate::log_limit::SESSION_TARGET;
use crate::multicast::host::Host;
use crate::multicast::membership::{Membership, Wanted};
use crate::multicast::message;
use crate::packet::{self, Parsed};
use crate::time::Time;

use super::Gateway;
use super::limiter::Limiter;
use super::multicast_pickup::{Untold, Untolds};
use super::multicast_reload::Comparison;

const ETHERNET: usize = 14;
/// Packets of IGMP and MLD a second that a port accepts.
const REPORTS_PER_SECOND: u32 = 2000;
/// Sessions that may come in by a port.
const MOST_SESSIONS: usize = 4096;
/// A session without packets ends after this time (RFC 7761, section 4.11: Keepalive_Period).
pub(super) const IDLE: Duration = Duration::from_secs(210);
/// How often sessions are looked at for that.
const SWEEP: Duration = Duration::from_secs(10);

/// Everything about multicast. Without policies it is empty, and does nothing.
#[derive(Default)]
pub(super) struct Multicast {
    /// By port: none if no policy names it, nor has named it.
    pub(super) sides: Vec<Option<Box<Side>>>,
    /// By group and source.
    pub(super) sessions: BTreeMap<(Addr, Addr), Session>,
    /// Changes with everything that may change where a session leaves.
    epoch: u64,
    /// Of the packet at hand.
    exits: Vec<Exit>,
    parsed: Option<Parsed>,
    now: Time,
    next_sweep: Option<Time>,
    pub(super) next: Option<Time>,
    /// What peers are not told yet.
    pub(super) untold: Untolds,
    pub(super) comparison: Option<Comparison>,
}

/// A port that a policy names, or has named before the config changed.
pub(super) struct Side {
    /// By family: what its hosts want.
    pub(super) downstream: [Membership; 2],
    /// By family: what is wanted of the senders behind it.
    pub(super) upstream: [Host; 2],
    pub(super) limiter: Limiter,
    pub(super) sessions: usize,
    pub(super) is_to: bool,
    pub(super) is_from: bool,
}

impl Side {
    pub(super) fn new() -> Side {
        Side {
            downstream: Family::ALL.map(Membership::new),
            upstream: Default::default(),
            limiter: Limiter::new(REPORTS_PER_SECOND),
            sessions: 0,
            is_to: false,
            is_from: false,
        }
    }

    /// Whether there is something to say.
    pub(super) fn has_news(&self, now: Time) -> bool {
        self.downstream.iter().any(Membership::has_query)
            || self
                .upstream
                .iter()
                .any(|host| host.poll_timeout(now).is_some_and(|at| at <= now))
    }

    /// When there is something to do.
    pub(super) fn poll_timeout(&self, now: Time) -> Option<Time> {
        let downstream = self.downstream.iter().filter_map(Membership::poll_timeout);
        let upstream = self
            .upstream
            .iter()
            .filter_map(|host| host.poll_timeout(now));
        downstream.chain(upstream).min()
    }
}

/// A source and a group.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) port: PortId,
    pub(super) exits: Vec<Exit>,
    /// When the exits were found.
    pub(super) epoch: u64,
    pub(super) started: Time,
    pub(super) last_seen: Time,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// That of the last packet.
    pub(super) protocol: Protocol,
    pub(super) logs: bool,
}

/// A port that a stream leaves by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) port: PortId,
    /// The address that it has there, if it is translated.
    pub(super) source: Option<Addr>,
    /// The policy that accepts it there, by its place in the config.
    pub(super) policy: u16,
}

impl Multicast {
    pub(super) fn new(config: &Config) -> Multicast {
        let mut multicast = Multicast {
            // Sessions of a peer have the epoch 0.
            epoch: 1,
            ..Multicast::default()
        };
        multicast.follow(config);
        multicast
    }

    /// Where sessions leave may have changed: it is looked up again with their next packets.
    pub(super) fn doubt_sessions(&mut self) {
        self.epoch += 1;
    }

    /// Whether nothing has changed since the exits of a session were found.
    pub(super) fn is_current(&self, session: &Session) -> bool {
        session.epoch == self.epoch
    }

    /// When there is something to do.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let all = [self.next, self.next_sweep, self.untold.poll_timeout()];
        all.into_iter().flatten().min()
    }

    pub(super) fn side(&self, port: PortId) -> Option<&Side> {
        self.sides.get(port.index())?.as_deref()
    }

    pub(super) fn side_mut(&mut self, port: PortId) -> Option<&mut Side> {
        self.sides.get_mut(port.index())?.as_deref_mut()
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = PortId> + use<> {
        let some = self
            .sides
            .iter()
            .enumerate()
            .filter(|(_, side)| side.is_some());
        let ports: Vec<PortId> = some.map(|(index, _)| PortId::from_index(index)).collect();
        ports.into_iter()
    }

    /// Whether there is a policy.
    pub(super) fn is_used(&self) -> bool {
        !self.sides.is_empty()
    }

    /// What hosts want, by port and group.
    pub(super) fn members(&self) -> impl Iterator<Item = (PortId, Addr, Wanted)> {
        self.ports().flat_map(|port| {
            let sides = self
                .side(port)
                .into_iter()
                .flat_map(|side| &side.downstream);
            let all = sides.flat_map(Membership::groups);
            all.map(move |(group, wanted)| (port, group, wanted))
        })
    }

    /// What the hosts of a port want of a group.
    pub(super) fn wanted_on(&self, port: PortId, group: &Addr) -> Option<Wanted> {
        self.side(port)?.downstream[group.family() as usize].wanted(group)
    }

    /// Sessions as port, group and source.
    pub(super) fn sessions_by_port(&self) -> impl Iterator<Item = (PortId, Addr, Addr)> {
        let sessions = self.sessions.iter();
        sessions.map(|((group, source), session)| (session.port, *group, *source))
    }

    /// Age, packets and bytes of a session that comes in by `port`.
    pub(super) fn state_of(
        &self,
        now: Time,
        port: PortId,
        at: (Addr, Addr),
    ) -> Option<(Duration, u64, u64)> {
        let session = self
            .sessions
            .get(&at)
            .filter(|session| session.port == port)?;
        Some((now.since(session.started), session.packets, session.bytes))
    }

    /// Takes over what the primary knows of a group.
    pub(super) fn install(
        &mut self,
        now: Time,
        port: PortId,
        group: Addr,
        wanted: Option<&Wanted>,
        ttl: Duration,
    ) {
        if let Some(side) = self.side_mut(port).filter(|side| side.is_to) {
            side.downstream[group.family() as usize].install(now, group, wanted, ttl);
        }
    }

    /// Whether hosts of `port`, or its static members, want what `source` sends to `group`.
    fn wants(&self, joins: &[MulticastJoin], port: PortId, source: &Addr, group: &Addr) -> bool {
        let by_host = self
            .side(port)
            .is_some_and(|side| side.downstream[group.family() as usize].wants(source, group));
        by_host
            || joins.iter().any(|join| {
                (join.port, join.group) == (port, *group)
                    && join.source.is_none_or(|wanted| wanted == *source)
            })
    }
}

impl Gateway {
    /// Handles a frame to many that the interface of `port` received, from its destination address
    /// on; `offload` is counted from its IP header. Returns how many copies go out: call
    /// [`Gateway::multicast_copy`] for each.
    pub fn handle_multicast(
        &mut self,
        now: Time,
        port: PortId,
        frame: &mut [u8],
        offload: Offload,
    ) -> usize {
        let Some(bytes) = frame.get_mut(ETHERNET..) else {
            return 0;
        };
        if self.multicast.side(port).is_none() {
            return 0;
        }
        if message::is_membership(bytes) {
            if let Err(reason) = self.handle_membership(now, port, bytes) {
                self.count_drop(reason);
            }
            return 0;
        }
        self.links.count_in(port, 1, bytes.len());
        let before = self.is_capturing().then(|| bytes.to_vec());
        let judged = self.judge_multicast(now, port, bytes, offload);
        if let Some(before) = before {
            let exit = self.multicast.exits.first().map(|exit| exit.port);
            self.capture_stream(now, port, (&before, offload), judged.map(|_| exit));
        }
        judged.unwrap_or_else(|reason| {
            self.count_drop(reason);
            0
        })
    }

    /// Makes the next copy of the frame that [`Gateway::handle_multicast`] has accepted; returns
    /// the port to send it by, none if it can't leave there.
    pub fn multicast_copy(
        &mut self,
        number: usize,
        frame: &mut [u8],
        offload: Offload,
    ) -> Option<PortId> {
        let (exit, parsed) = (*self.multicast.exits.get(number)?, self.multicast.parsed?);
        let link = *self.links.link(exit.port);
        let segment = match offload.segment_size {
            0 => parsed.total_len,
            size => u32::from(parsed.header_len) + super::UDP_HEADER + u32::from(size),
        };
        if !link.up || segment > link.mtu {
            self.count_drop(match link.up {
                true => DropReason::TooBig,
                false => DropReason::PortDown,
            });
            return None;
        }
        frame.get_mut(6..12)?.copy_from_slice(&link.mac);
        let bytes = frame.get_mut(ETHERNET..)?;
        // As it came, for a port that does not translate after one that does.
        let src = exit.source.unwrap_or(parsed.key.src);
        let to = FlowKey { src, ..parsed.key };
        packet::translate(bytes, &parsed, offload, &to);
        self.counters.forwarded += 1;
        self.links.port_mut(exit.port).count_out(bytes.len());
        if self.is_capturing() {
            let now = self.multicast.now;
            self.capture_copy(now, exit.port, (parsed.key, exit.source.is_some()), bytes);
        }
        Some(exit.port)
    }

    /// Whether a stream from and to these addresses may leave its link at all.
    pub(super) fn check_stream(&self, key: &FlowKey) -> Result<(), DropReason> {
        if !key.dst.is_group() || !key.dst.leaves_link() || key.src.is_link_local() {
            return Err(DropReason::NotForwardable);
        }
        if packet::martian_source(key.src) {
            return Err(DropReason::Martian);
        }
        // What the primary has translated comes by here if this unit takes itself for one too.
        match self.is_own_address(&key.src) {
            true => Err(DropReason::SpoofedSource),
            false => Ok(()),
        }
    }

    fn judge_multicast(
        &mut self,
        now: Time,
        port: PortId,
        bytes: &mut [u8],
        offload: Offload,
    ) -> Result<usize, DropReason> {
        let parsed = packet::parse(bytes, offload)?;
        let (src, dst) = (parsed.key.src, parsed.key.dst);
        self.check_stream(&parsed.key)?;
        if !self.is_primary(self.multicast_group(port, dst.family())) {
            return Err(DropReason::NotPrimary);
        }
        if parsed.hop_limit <= 1 {
            return Err(DropReason::HopLimit);
        }
        let (at, epoch) = ((dst, src), self.multicast.epoch);
        let known = self.multicast.sessions.get(&at);
        if known.is_none_or(|session| (session.port, session.epoch) != (port, epoch)) {
            self.find_exits(now, port, at)?;
        }
        let multicast = &mut self.multicast;
        let session = multicast
            .sessions
            .get_mut(&at)
            .ok_or(DropReason::SessionGone)?;
        session.last_seen = now;
        // A peer may have told any number.
        session.packets = session.packets.saturating_add(1);
        session.bytes = session.bytes.saturating_add(bytes.len() as u64);
        session.protocol = parsed.key.protocol;
        multicast.exits.clear();
        multicast.exits.extend_from_slice(&session.exits);
        multicast.parsed = Some(parsed);
        multicast.now = now;
        packet::take_hop_limit(bytes, parsed.family);
        Ok(multicast.exits.len())
    }

    /// Finds where a stream leaves, and keeps that as its session.
    pub(super) fn find_exits(
        &mut self,
        now: Time,
        port: PortId,
        at: (Addr, Addr),
    ) -> Result<(), DropReason> {
        let found = self.exits_of(port, at);
        let is_known = self.multicast.sessions.contains_key(&at);
        let (exits, logs) = match found {
            Ok(found) => found,
            Err(reason) => {
                // Not by a copy on another port than the one that the stream comes in by.
                if self
                    .multicast
                    .sessions
                    .get(&at)
                    .is_some_and(|it| it.port == port)
                {
                    self.count_forbidden(reason);
                    self.end_multicast(now, at, reason.name());
                }
                return Err(reason);
            }
        };
        let epoch = self.multicast.epoch;
        if let Some(session) = self.multicast.sessions.get_mut(&at) {
            let before = std::mem::replace(&mut session.port, port);
            (session.exits, session.epoch, session.logs) = (exits, epoch, logs);
            self.count_sessions(before, -1);
        } else {
            let side = self.multicast.side(port);
            if side.is_none_or(|side| side.sessions >= MOST_SESSIONS) {
                return Err(DropReason::MulticastLimit);
            }
            self.multicast.sessions.insert(
                at,
                Session {
                    port,
                    exits,
                    epoch,
                    started: now,
                    last_seen: now,
                    packets: 0,
                    bytes: 0,
                    protocol: Protocol(0),
                    logs,
                },
            );
            self.multicast.next_sweep.get_or_insert(now + SWEEP);
            self.multicast
                .untold
                .note(Untold::Session(port, at.0, at.1));
        }
        self.count_sessions(port, 1);
        if logs && !is_known {
            let (group, source) = at;
            log::info!(
                target: SESSION_TARGET,
                "multicast session start source={source} group={group} from={}",
                self.port_name(port)
            );
        }
        Ok(())
    }

    fn count_sessions(&mut self, port: PortId, change: isize) {
        if let Some(side) = self.multicast.side_mut(port) {
            side.sessions = side.sessions.saturating_add_signed(change);
        }
    }

    /// The ports that a stream leaves by, and whether its session is logged.
    pub(super) fn exits_of(
        &self,
        from: PortId,
        (group, source): (Addr, Addr),
    ) -> Result<(Vec<Exit>, bool), DropReason> {
        if self.routes.by_port(from, &source).is_none() {
            return Err(DropReason::ReversePath);
        }
        let config = self.rules.config();
        let (mut exits, mut logs, mut why) = (Vec::new(), false, DropReason::NoPolicy);
        for to in self.multicast.ports().filter(|to| *to != from) {
            let mut policies = config.multicast_policies.iter();
            let place = policies.position(|policy| policy.matches(from, to, &source, &group));
            let policy = place.and_then(|place| config.multicast_policies.get(place));
            why = match policy {
                None => why,
                Some(policy) if !policy.accepts && why == DropReason::NoPolicy => {
                    DropReason::PolicyDrop
                }
                Some(policy) if !policy.accepts => why,
                Some(policy) => {
                    let joins = &config.multicast_joins;
                    if self.multicast.wants(joins, to, &source, &group) {
                        logs |= policy.log;
                        exits.push(Exit {
                            port: to,
                            source: self.multicast_source(policy, to, source.family())?,
                            policy: place.unwrap_or(0) as u16,
                        });
                    }
                    DropReason::NoMember
                }
            };
        }
        match exits.is_empty() {
            true => Err(why),
            false => Ok((exits, logs)),
        }
    }

    /// The address that a stream has on a port, if the policy translates.
    fn multicast_source(
        &self,
        policy: &MulticastPolicy,
        to: PortId,
        family: Family,
    ) -> Result<Option<Addr>, DropReason> {
        if !policy.snat {
            return Ok(None);
        }
        let own = self.rules.port(to).virtual_addresses.iter();
        let own = own.map(|own| own.addr).find(|addr| addr.family() == family);
        own.map(Some).ok_or(DropReason::NatExhausted)
    }

    pub(super) fn end_multicast(&mut self, now: Time, at: (Addr, Addr), why: &str) {
        let Some(session) = self.multicast.sessions.remove(&at) else {
            return;
        };
        self.count_sessions(session.port, -1);
        self.multicast
            .untold
            .note(Untold::Session(session.port, at.0, at.1));
        if session.logs {
            let (group, source) = at;
            log::info!(
                target: SESSION_TARGET,
                "multicast session end source={source} group={group} from={} packets={} bytes={} age_s={} why={why}",
                self.port_name(session.port),
                session.packets,
                session.bytes,
                now.since(session.started).as_secs()
            );
        }
    }

    /// Does what is due.
    pub(super) fn multicast_timeout(&mut self, now: Time) {
        if !self.multicast.is_used() {
            return;
        }
        self.refresh_multicast(now);
        self.compare_multicast(now);
        if self.multicast.next.is_none_or(|next| next <= now) {
            self.handle_members_timeout(now);
        }
        if self.multicast.next_sweep.is_some_and(|at| at <= now) {
            let sessions = self.multicast.sessions.iter();
            let idle = sessions.filter(|(_, session)| now.since(session.last_seen) >= IDLE);
            let idle: Vec<(Addr, Addr)> = idle.map(|(at, _)| *at).collect();
            for at in idle {
                self.end_multicast(now, at, "expired");
            }
            let is_empty = self.multicast.sessions.is_empty();
            self.multicast.next_sweep = (!is_empty).then_some(now + SWEEP);
        }
    }

    /// Keeps a session of the primary.
    pub(super) fn install_multicast(
        &mut self,
        now: Time,
        port: PortId,
        at: (Addr, Addr),
        (age, packets, bytes): (Duration, u64, u64),
    ) {
        let is_new = !self.multicast.sessions.contains_key(&at);
        let Some(side) = self.multicast.side(port) else {
            return;
        };
        if is_new && side.sessions >= MOST_SESSIONS {
            return;
        }
        if !is_new {
            self.end_silently(&at);
        }
        let nanos = now.as_nanos().saturating_sub(age.as_nanos() as u64);
        let session = Session {
            port,
            // Its first packet here looks for them.
            exits: Vec::new(),
            epoch: 0,
            started: Time::from_nanos(nanos),
            last_seen: now,
            packets,
            bytes,
            protocol: Protocol::UDP,
            logs: false,
        };
        self.multicast.sessions.insert(at, session);
        self.count_sessions(port, 1);
        self.multicast.next_sweep.get_or_insert(now + SWEEP);
    }

    fn end_silently(&mut self, at: &(Addr, Addr)) {
        if let Some(session) = self.multicast.sessions.remove(at) {
            self.count_sessions(session.port, -1);
        }
    }
}
