//! Packets of no session: may they open one, and how is it translated?

use std::net::IpAddr;

use crate::config::{self, Action};
use crate::event::{DropReason, RouteTarget, Verdict};
use crate::flow::{Addr, Direction, FlowKey, GroupId, PolicyId, PortId};
use crate::nat::{Destination, Nat, PoolId};
use crate::packet::build::Problem;
use crate::packet::{self, Kind};
use crate::policy::Decision;
use crate::session::{InsertError, Session, SessionFlags, SessionId, Tracker, tcp};

use super::{Gateway, Packet, Role};

/// A refusal, and what the sender is told about it.
struct Refused {
    reason: DropReason,
    answer: Option<Problem>,
}

impl From<DropReason> for Refused {
    fn from(reason: DropReason) -> Refused {
        Refused {
            reason,
            answer: None,
        }
    }
}

/// Where a new session leads, before source translation.
struct Plan {
    /// The flow after destination translation.
    key: FlowKey,
    destination: Option<Destination>,
    egress: PortId,
    policy: PolicyId,
    source: Option<PoolId>,
    log: bool,
}

impl Gateway {
    pub(super) fn open_session(&mut self, packet: Packet<'_>) -> Verdict {
        if self.is_for_gateway(&packet) {
            return self.handle_local(packet);
        }
        match self.try_open(&packet) {
            Ok(id) => self.send_first(packet, id),
            Err(Refused { reason, answer }) => {
                if let Some(kind) = answer {
                    self.answer_refusal(&packet, kind);
                }
                Verdict::Drop(reason)
            }
        }
    }

    fn try_open(&mut self, packet: &Packet<'_>) -> Result<SessionId, Refused> {
        self.check_addresses(packet)?;
        let plan = self.plan(packet)?;
        // Not while draining either: nobody would tell the new primary of the session.
        if !self.is_primary(self.group_of(packet, &plan)) {
            return Err(DropReason::NotPrimary.into());
        }
        let tracker = self.start_tracking(packet)?;
        if !packet::checksum_ok(packet.bytes, &packet.parsed, packet.offload) {
            return Err(DropReason::BadChecksum.into());
        }
        Ok(self.insert(packet, &plan, tracker)?)
    }

    /// Martian, unforwardable and spoofed addresses (RFC 6890, RFC 3704).
    fn check_addresses(&self, packet: &Packet<'_>) -> Result<(), DropReason> {
        let key = &packet.parsed.key;
        if packet::martian(key) {
            return Err(DropReason::Martian);
        }
        if !packet::forwardable(key.src)
            || !packet::forwardable(key.dst)
            || self.is_directed_broadcast(&key.dst)
        {
            return Err(DropReason::NotForwardable);
        }
        self.check_source(packet)
    }

    /// The source must be one that the routing expects on this port, if the port is to check that.
    pub(super) fn check_source(&self, packet: &Packet<'_>) -> Result<(), DropReason> {
        let port = &self.config.ports[packet.port.index()];
        if port.source_check && !self.is_expected_source(packet.port, &packet.parsed.key) {
            return Err(DropReason::SpoofedSource);
        }
        Ok(())
    }

    /// Whether `addr` is the broadcast address of the network of a port (RFC 2644: not forwarded).
    fn is_directed_broadcast(&self, addr: &Addr) -> bool {
        let ip = IpAddr::from(*addr);
        let mut networks = self
            .config
            .ports
            .iter()
            .flat_map(|port| &port.virtual_addresses)
            .map(|v| v.network);
        ip.is_ipv4() && networks.any(|net| net.prefix_len() < 31 && net.broadcast() == ip)
    }

    /// Whether the best route back to the source leads out of the port that the packet came in by.
    fn is_expected_source(&self, port: PortId, key: &FlowKey) -> bool {
        if self.is_own_address(&key.src) {
            return false;
        }
        let target = self.fib.lookup(&key.src).map(|hop| hop.target);
        matches!(target, Some(RouteTarget::Port { port: back, .. }) if back == port)
    }

    fn plan(&self, packet: &Packet<'_>) -> Result<Plan, Refused> {
        let original = packet.parsed.key;
        let destination = self.nat.destination(Some(packet.port), &original);
        let mut key = original;
        if let Some(destination) = &destination {
            (key.dst, key.dst_port) = (destination.addr, destination.port);
        }
        let egress = self.egress(&key)?;
        let decision = self.ruleset.decide(packet.port, egress, &key);
        let (policy, nat) = self.judge(decision)?;
        let hairpin = destination.is_some() && Nat::needs_hairpin_source(packet.port, egress);
        let nat = if hairpin { config::Nat::Egress } else { nat };
        let source = self.nat.pool(nat, egress);
        let log = self.policy(policy).is_some_and(|policy| policy.log);
        Ok(Plan {
            key,
            destination,
            egress,
            policy,
            source,
            log,
        })
    }

    fn egress(&self, key: &FlowKey) -> Result<PortId, Refused> {
        let no_route = |reason| Refused {
            reason,
            answer: Some(Problem::NoRoute),
        };
        match self.fib.lookup(&key.dst).map(|hop| hop.target) {
            Some(RouteTarget::Port { port, .. }) => Ok(port),
            Some(RouteTarget::Elsewhere) => Err(DropReason::NotAPort.into()),
            Some(RouteTarget::Unreachable) | None => Err(no_route(DropReason::NoRoute)),
        }
    }

    fn judge(&self, decision: Option<Decision>) -> Result<(PolicyId, config::Nat), Refused> {
        let Some(Decision {
            policy,
            action,
            nat,
        }) = decision
        else {
            return Err(DropReason::NoPolicy.into());
        };
        match action {
            Action::Accept => Ok((policy, nat)),
            Action::Drop => Err(DropReason::PolicyDrop.into()),
            Action::Reject => Err(Refused {
                reason: DropReason::PolicyReject,
                answer: Some(Problem::AdminProhibited),
            }),
        }
    }

    /// Whether the packet is one that may open a session, and how that session is tracked.
    fn start_tracking(&self, packet: &Packet<'_>) -> Result<Tracker, DropReason> {
        match packet.parsed.kind {
            Kind::Tcp(segment) if segment.flags.syn() || !self.config.limits.tcp_pickup => {
                tcp::Tracker::open(&segment).map(Tracker::Tcp)
            }
            Kind::Tcp(segment) => tcp::Tracker::pick_up(&segment).map(Tracker::Tcp),
            Kind::Udp | Kind::IcmpRequest | Kind::Other => Ok(Tracker::None),
            Kind::IcmpReply | Kind::IcmpError => Err(DropReason::IcmpUnrelated),
            Kind::IcmpOther => Err(DropReason::IcmpUnsupported),
            Kind::LaterFragment => Err(DropReason::FragmentOrphan),
        }
    }

    fn insert(
        &mut self,
        packet: &Packet<'_>,
        plan: &Plan,
        tracker: Tracker,
    ) -> Result<SessionId, DropReason> {
        if self.table.len() >= self.table.capacity() && !self.drop_early(packet) {
            return Err(DropReason::TableFull);
        }
        let mut session = Session::new(&packet.parsed.key, packet.now.tick());
        session.tracker = tracker;
        session.in_port = packet.port;
        session.out_port = plan.egress;
        session.policy = plan.policy;
        session.group = self.group_of(packet, plan);
        session.flags.set(SessionFlags::HALF_OPEN);
        if plan.log {
            session.flags.set(SessionFlags::LOG);
        }
        session.record(
            Direction::Original,
            packet.parsed.total_len,
            packet.now.tick(),
        );
        if let Some(destination) = &plan.destination {
            session.nat_dst = destination.translated;
            session.nat_dst_port = destination.port;
        }
        if let Some(pool) = plan.source {
            let random = self.random.next();
            let source = self
                .nat
                .allocate_source(&self.table, &self.book, pool, &plan.key, random)
                .map_err(|_| DropReason::NatExhausted)?;
            (session.nat_src, session.nat_src_port) = (source.addr, source.port);
        }
        let id = self
            .table
            .insert(session, &self.book)
            .map_err(|error| match error {
                InsertError::Conflict(_) => DropReason::NatExhausted,
                InsertError::Full => DropReason::TableFull,
                InsertError::HalfOpenLimit => DropReason::HalfOpenLimit,
            })?;
        self.nat.attach(&mut self.table, id);
        self.note_opened(packet.now, id);
        if let Some(session) = self.table.get(id).filter(|_| plan.log) {
            log::info!("session start {}", self.describe(id, session, packet.now));
        }
        Ok(id)
    }

    fn drop_early(&mut self, packet: &Packet<'_>) -> bool {
        let candidate = self.table.early_drop_candidate();
        if let Some(id) = candidate {
            self.counters.dropped_early += 1;
            self.end_session(packet.now, id, "early-drop");
        }
        candidate.is_some()
    }

    /// The group that a session moves with: that of the address it is translated to, or of the port
    /// whose virtual address its sender uses as next hop.
    fn group_of(&self, packet: &Packet<'_>, plan: &Plan) -> GroupId {
        let family = packet.parsed.family;
        let port = if plan.source.is_some() {
            plan.egress
        } else {
            packet.port
        };
        let external = plan.destination.is_some().then_some(packet.parsed.key.dst);
        external
            .or_else(|| self.own_address(port, family))
            .and_then(|addr| self.nat.group(&addr))
            .unwrap_or(GroupId(0))
    }

    /// Whether the gateway answers for `addr`, on whatever port.
    fn is_own_address(&self, addr: &Addr) -> bool {
        self.nat.group(addr).is_some()
    }

    pub(super) fn is_primary(&self, group: GroupId) -> bool {
        self.role(group) == Role::Primary
    }

    /// Whether a packet is for an address of the gateway, and no forward leads it elsewhere.
    fn is_for_gateway(&self, packet: &Packet<'_>) -> bool {
        let key = &packet.parsed.key;
        self.is_own_address(&key.dst) && self.nat.destination(Some(packet.port), key).is_none()
    }
}
