//! Packets of no session: may they open one, and how is it translated?

use crate::config::{Action, Nat as NatMode};
use crate::event::{DropReason, RouteTarget, Verdict};
use crate::flow::{Direction, FlowKey, GroupId, PolicyId, PortId, Protocol};
use crate::nat::Pool;
use crate::packet::build::ErrorKind;
use crate::packet::{self, Kind};
use crate::policy::Decision;
use crate::session::{InsertError, NewSession, SessionId, Tracker, TranslatedAddr, tcp};

use super::{Gateway, Packet, Role};

/// A refusal, and what the sender is told about it.
struct Refused {
    reason: DropReason,
    answer: Option<ErrorKind>,
}

impl From<DropReason> for Refused {
    fn from(reason: DropReason) -> Refused {
        Refused { reason, answer: None }
    }
}

/// Where a new session leads, before source translation.
struct Plan {
    /// The flow after destination translation.
    key: FlowKey,
    destination: Option<crate::nat::Destination>,
    egress: PortId,
    policy: PolicyId,
    source: Option<Pool>,
    log: bool,
}

impl Gateway {
    pub(super) fn open_session(&mut self, mut packet: Packet<'_>) -> Verdict {
        if self.is_for_gateway(&packet) {
            return self.handle_local(packet);
        }
        match self.try_open(&packet) {
            Ok(id) => self.send_in_session(&mut packet, id, Direction::Original),
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
        if !packet::forwardable(key.src) || !packet::forwardable(key.dst) {
            return Err(DropReason::NotForwardable);
        }
        let port = &self.config.ports[packet.port.index()];
        if port.source_check && !self.is_expected_source(packet.port, key) {
            return Err(DropReason::SpoofedSource);
        }
        Ok(())
    }

    /// Whether the best route back to the source leads out of the port that the packet came in by.
    fn is_expected_source(&self, port: PortId, key: &FlowKey) -> bool {
        if self.nat.is_own_address(&key.src) {
            return false;
        }
        let target = self.fib.lookup(&key.src).map(|hop| hop.target);
        matches!(target, Some(RouteTarget::Port { port: back, .. }) if back == port)
    }

    fn plan(&self, packet: &Packet<'_>) -> Result<Plan, Refused> {
        let original = packet.parsed.key;
        let destination = self.nat.destination(packet.port, &original);
        let mut key = original;
        if let Some(destination) = &destination {
            (key.dst, key.dst_port) = (destination.addr, destination.port);
        }
        let egress = self.egress(&key)?;
        let decision = self.ruleset.decide(packet.port, egress, &key);
        let (policy, nat) = self.judge(decision)?;
        let hairpin = destination.is_some() && egress == packet.port;
        let source = match nat {
            _ if hairpin => Some(Pool::Egress(egress)),
            NatMode::Off => None,
            NatMode::Egress => Some(Pool::Egress(egress)),
            NatMode::Pool(index) => Some(Pool::Configured(index)),
        };
        let log = self.config.policies[usize::from(policy.0)].log;
        Ok(Plan { key, destination, egress, policy, source, log })
    }

    pub(super) fn egress(&self, key: &FlowKey) -> Result<PortId, Refused> {
        let no_route = |reason| Refused { reason, answer: Some(ErrorKind::NoRoute) };
        match self.fib.lookup(&key.dst).map(|hop| hop.target) {
            Some(RouteTarget::Port { port, .. }) => Ok(port),
            Some(RouteTarget::Elsewhere) => Err(DropReason::NotAPort.into()),
            Some(RouteTarget::Unreachable) | None => Err(no_route(DropReason::NoRoute)),
        }
    }

    fn judge(&self, decision: Option<Decision>) -> Result<(PolicyId, NatMode), Refused> {
        let Some(Decision { policy, action, nat }) = decision else {
            return Err(DropReason::NoPolicy.into());
        };
        match action {
            Action::Accept => Ok((policy, nat)),
            Action::Drop => Err(DropReason::PolicyDrop.into()),
            Action::Reject => Err(Refused {
                reason: DropReason::PolicyReject,
                answer: Some(ErrorKind::AdminProhibited),
            }),
        }
    }

    /// Whether the packet is one that may open a session, and how that session is tracked.
    fn start_tracking(&self, packet: &Packet<'_>) -> Result<Tracker, DropReason> {
        match packet.parsed.kind {
            Kind::Tcp(segment) if segment.flags.is_initial_syn() => {
                Ok(Tracker::Tcp(tcp::Tracker::open(&segment)))
            }
            Kind::Tcp(segment) if self.config.limits.tcp_pickup && !segment.flags.rst() => {
                Ok(Tracker::Tcp(tcp::Tracker::pick_up(Direction::Original, &segment)))
            }
            Kind::Tcp(_) => Err(DropReason::TcpNoSession),
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
        let original = packet.parsed.key;
        if !self.half_open.try_add(&original.src) {
            return Err(DropReason::HalfOpenLimit);
        }
        let inserted = self.insert_translated(packet, plan, tracker);
        match inserted {
            Ok(id) if plan.log => {
                if let Some(session) = self.table.get(id) {
                    log::info!("session start {}", self.describe(id, session, packet.now));
                }
            }
            Ok(_) => {}
            Err(_) => self.half_open.remove(&original.src),
        }
        inserted
    }

    fn insert_translated(
        &mut self,
        packet: &Packet<'_>,
        plan: &Plan,
        tracker: Tracker,
    ) -> Result<SessionId, DropReason> {
        if self.table.len() >= self.table.capacity() && !self.drop_early(packet) {
            return Err(DropReason::TableFull);
        }
        let original = packet.parsed.key;
        let (nat_dst, nat_dst_port) = match &plan.destination {
            Some(destination) => (destination.translated, destination.port),
            None => (TranslatedAddr::SAME, original.dst_port),
        };
        let (nat_src, nat_src_port, mapped) = match plan.source {
            Some(pool) => {
                let random = self.random.next();
                self.nat.allocate_source(&self.table, &self.book, pool, &plan.key, random)?
            }
            None => (TranslatedAddr::SAME, original.src_port, false),
        };
        let session = NewSession {
            key: original,
            nat_src,
            nat_src_port,
            nat_dst,
            nat_dst_port,
            tracker: if mapped { Tracker::mapped() } else { tracker },
            in_port: packet.port,
            out_port: plan.egress,
            policy: plan.policy,
            group: self.group_of(plan),
            log: plan.log,
        };
        let now = packet.now.tick();
        let id = match self.table.insert(session, now, &self.timeouts, &self.book) {
            Ok(id) => id,
            Err(InsertError::Conflict) => return Err(DropReason::NatExhausted),
            Err(InsertError::Full) => return Err(DropReason::TableFull),
        };
        if mapped {
            self.nat.attach(&mut self.table, &self.book, id);
        }
        if let Some(session) = self.table.get_mut(id) {
            session.packets[0] = 1;
            session.bytes[0] = u64::from(packet.parsed.total_len);
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

    /// The group that a session moves with: that of the virtual address that it depends on.
    fn group_of(&self, plan: &Plan) -> GroupId {
        match plan.source {
            Some(_) => self.nat.group_of_port(plan.egress, plan.key.dst.family()),
            None => GroupId(0),
        }
    }

    pub(super) fn is_primary(&self, group: GroupId) -> bool {
        self.role(group) == Role::Primary
    }

    /// Whether a packet is for an address of the gateway, and no forward leads it elsewhere.
    fn is_for_gateway(&self, packet: &Packet<'_>) -> bool {
        let key = &packet.parsed.key;
        self.nat.is_own_address(&key.dst)
            && self.nat.destination(packet.port, key).is_none()
            && key.protocol != Protocol(0)
    }
}
