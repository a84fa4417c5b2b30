//! Packets without a session: may they open one, and how is it translated?

use crate::config::{self, Action};
use crate::event::{DropReason, RouteTarget, Verdict};
use crate::flow::{Addr, Direction, FlowKey, GroupId, PolicyId, PortId};
use crate::log_limit::SESSION_TARGET;
use crate::nat::{Destination, Nat, NatExhausted, PoolId, Slice};
use crate::packet::build::IcmpProblem;
use crate::packet::{self, PacketKind};
use crate::policy::Decision;
use crate::route::Hop;
use crate::session::{
    InsertError, NoRoom, Session, SessionFlags, SessionId, SourceLimits, Tracker, tcp,
};

use super::unresolved::Host;
use super::{Gateway, Packet, Role};

/// A refusal, and the answer to the sender.
pub(super) struct Refused {
    pub reason: DropReason,
    pub answer: Option<IcmpProblem>,
}

impl Refused {
    /// There is no room for one more session. The sender is told that the destination can't be
    /// reached, so that it need not wait (RFC 5508, REQ-8; RFC 6888, REQ-11).
    pub(super) fn shortage(reason: DropReason) -> Refused {
        Refused {
            reason,
            answer: Some(IcmpProblem::HostUnreachable),
        }
    }

    /// No external port was found. Where there may be one, the sender's next try goes on with the
    /// search.
    pub(super) fn exhausted(exhausted: &NatExhausted) -> Refused {
        match exhausted.is_certain() {
            true => Refused::shortage(DropReason::NatExhausted),
            false => DropReason::NatExhausted.into(),
        }
    }
}

impl From<DropReason> for Refused {
    fn from(reason: DropReason) -> Refused {
        Refused {
            reason,
            answer: None,
        }
    }
}

/// The way of a new session, before source translation: filled step by step. If a step refuses the
/// packet, the later ones are unknown.
pub(super) struct Plan {
    pub ingress: PortId,
    /// The flow, after destination translation once that is decided.
    pub key: FlowKey,
    pub destination: Option<Destination>,
    /// The route to the destination.
    pub hop: Option<Hop>,
    /// The port that the route leads out of, or whose address is the destination.
    pub egress: Option<PortId>,
    /// Whether the destination is an external address, so that the packet comes back.
    pub turns_back: bool,
    pub decision: Option<Decision>,
    /// The source translation: that of the policy, unless a forward needs another.
    pub nat: config::Nat,
    pub source: Option<PoolId>,
    pub group: GroupId,
    /// The host on the link of `egress` that the kernel would have to look for.
    pub unresolved: Option<Host>,
}

impl Plan {
    pub(super) fn new(packet: &Packet<'_>) -> Plan {
        Plan {
            ingress: packet.port,
            key: packet.parsed.key,
            destination: None,
            hop: None,
            egress: None,
            turns_back: false,
            decision: None,
            nat: config::Nat::Off,
            source: None,
            group: GroupId(0),
            unresolved: None,
        }
    }

    /// Whether client and server are behind the same port, so that answers must come back here.
    pub(super) fn is_hairpin(&self) -> bool {
        let (Some(egress), Some(_)) = (self.egress, &self.destination) else {
            return false;
        };
        Nat::needs_hairpin_source(self.ingress, egress)
    }
}

impl Gateway {
    pub(super) fn open_session(&mut self, packet: &mut Packet<'_>) -> Verdict {
        if self.is_for_another(packet) {
            return Verdict::Drop(DropReason::NotPrimary);
        }
        if self.is_for_gateway(packet) {
            return self.handle_local(packet);
        }
        match self.try_open(packet) {
            Ok(id) => self.send_first(packet, id),
            Err(_) if self.is_answer_for_another(packet) => Verdict::Drop(DropReason::NotPrimary),
            Err(Refused { reason, answer }) => {
                if let Some(kind) = answer {
                    self.answer_refusal(packet, kind);
                }
                Verdict::Drop(reason)
            }
        }
    }

    fn try_open(&mut self, packet: &Packet<'_>) -> Result<SessionId, Refused> {
        let mut plan = Plan::new(packet);
        // Not while draining either: nobody would tell the new primary about the session.
        let decided = self.decide(packet, &mut plan, |group| self.is_primary(group));
        if let Some(decision) = plan.decision {
            self.rules.note_hit(decision.policy, packet.now);
        }
        let tracker = decided?;
        self.make_room(packet, &plan).map_err(Refused::shortage)?;
        let random = match plan.source {
            Some(_) => self.random.next(),
            None => 0,
        };
        let session = match self.draft(packet, &plan, tracker.clone(), random) {
            Ok(session) => session,
            Err(exhausted) => {
                self.sessions.note_exhausted(&exhausted);
                let chance = self.random.next();
                let giver = self.port_giver(&plan, &packet.parsed.key.src, chance);
                let giver = giver.filter(|_| exhausted.is_certain());
                let giver = giver.ok_or_else(|| Refused::exhausted(&exhausted))?;
                self.end_early(packet, giver);
                self.draft(packet, &plan, tracker, random)
                    .map_err(|_| DropReason::NatExhausted)?
            }
        };
        let id = self.insert(packet, session)?;
        if let Some(host) = plan.unresolved {
            let source = packet.parsed.key.src;
            self.hosts.unresolved.begin(packet.now, host, source);
        }
        Ok(id)
    }

    /// Whether the packet may open a session, and how it is tracked: every decision that needs no
    /// look at the session table.
    pub(super) fn decide(
        &self,
        packet: &Packet<'_>,
        plan: &mut Plan,
        is_primary: impl Fn(GroupId) -> bool,
    ) -> Result<Tracker, Refused> {
        self.check_addresses(packet)?;
        self.plan(packet, plan)?;
        if !is_primary(plan.group) {
            return Err(DropReason::NotPrimary.into());
        }
        let tracker = self.start_tracking(packet)?;
        if !packet::checksum_ok(packet.bytes, &packet.parsed, packet.offload) {
            return Err(DropReason::BadChecksum.into());
        }
        if let (Some(egress), Some(hop), false) = (plan.egress, &plan.hop, plan.turns_back) {
            plan.unresolved = self.unresolved_by(packet.now, egress, plan.key.dst, hop);
        }
        let source = &packet.parsed.key.src;
        if plan.unresolved.is_some() && !self.hosts.unresolved.allows(packet.now, source) {
            return Err(DropReason::NeighborLimit.into());
        }
        Ok(tracker)
    }

    /// Martian, unforwardable and spoofed addresses (RFC 6890, RFC 3704).
    pub(super) fn check_addresses(&self, packet: &Packet<'_>) -> Result<(), DropReason> {
        let key = &packet.parsed.key;
        // First, since hosts that have no address yet send from the unspecified one: DHCP,
        // duplicate address detection.
        if !packet::forwardable(key.dst) {
            return Err(DropReason::NotForwardable);
        }
        let is_reserved = packet::reserved(key.src) || packet::reserved(key.dst);
        let port = &self.rules.port(packet.port);
        if packet::martian(key) || is_reserved && !port.reserved_addresses {
            return Err(DropReason::Martian);
        }
        if packet.parsed.has_segments_left && !port.routing_headers {
            return Err(DropReason::RoutingHeader);
        }
        if !packet::forwardable(key.src) || self.rules.is_directed_broadcast(&key.dst) {
            return Err(DropReason::NotForwardable);
        }
        self.check_source(packet)
    }

    /// The source must be one that the routing expects on this port, if the port checks that.
    pub(super) fn check_source(&self, packet: &Packet<'_>) -> Result<(), DropReason> {
        let port = &self.rules.port(packet.port);
        if port.source_check && !self.is_expected_source(packet.port, &packet.parsed.key) {
            return Err(DropReason::SpoofedSource);
        }
        Ok(())
    }

    /// Whether the best route back to the source leads out of the port that the packet came in by.
    fn is_expected_source(&self, port: PortId, key: &FlowKey) -> bool {
        if self.is_own_address(&key.src) {
            return false;
        }
        self.routes.by_port(port, &key.src).is_some()
    }

    /// The policy that decides about a packet without a session and with this key, if any.
    pub(super) fn policy_for(&self, port: PortId, original: &FlowKey) -> Option<PolicyId> {
        let mut key = *original;
        let destination = self.sessions.nat().destination(Some(port), original);
        if let Some(destination) = &destination {
            (key.dst, key.dst_port) = (destination.addr, destination.port);
        }
        let egress = egress(self.route_for(&key)).ok()?;
        let decision = self
            .rules
            .ruleset()
            .decide(port, egress, &key, destination.is_some());
        Some(decision?.policy)
    }

    fn plan(&self, packet: &Packet<'_>, plan: &mut Plan) -> Result<(), Refused> {
        plan.destination = self
            .sessions
            .nat()
            .destination(Some(packet.port), &plan.key);
        if let Some(destination) = &plan.destination {
            (plan.key.dst, plan.key.dst_port) = (destination.addr, destination.port);
        }
        plan.hop = self.route_for(&plan.key);
        let turning = match plan.destination {
            None if self.is_own_address(&plan.key.dst) => self.turning_port(packet),
            _ => None,
        };
        plan.turns_back = turning.is_some();
        let egress = turning.map_or_else(|| egress(plan.hop), Ok)?;
        plan.egress = Some(egress);
        plan.decision =
            self.rules
                .ruleset()
                .decide(packet.port, egress, &plan.key, plan.destination.is_some());
        let nat = judge(plan.decision)?;
        plan.nat = match plan.is_hairpin() {
            true => config::Nat::Egress,
            false => nat,
        };
        plan.source = self.source_pool(packet, plan, egress);
        plan.group = self.slot_for(self.group_of(packet, plan), packet, plan);
        Ok(())
    }

    /// Whether the packet may open a session, and how that session is tracked.
    fn start_tracking(&self, packet: &Packet<'_>) -> Result<Tracker, DropReason> {
        match packet.parsed.kind {
            PacketKind::Tcp(segment)
                if segment.flags.syn() || !self.rules.config().picks_up_tcp() =>
            {
                tcp::Tracker::open(&segment).map(Tracker::Tcp)
            }
            PacketKind::Tcp(segment) => tcp::Tracker::pick_up(&segment).map(Tracker::Tcp),
            PacketKind::Udp | PacketKind::IcmpRequest | PacketKind::Other => Ok(Tracker::None),
            PacketKind::IcmpReply | PacketKind::IcmpError => Err(DropReason::IcmpUnrelated),
            PacketKind::IcmpOther => Err(DropReason::IcmpUnsupported),
            PacketKind::LaterFragment => Err(DropReason::FragmentOrphan),
        }
    }

    /// The session that the packet would open.
    pub(super) fn draft(
        &self,
        packet: &Packet<'_>,
        plan: &Plan,
        tracker: Tracker,
        random: u64,
    ) -> Result<Session, NatExhausted> {
        let mut session = Session::new(&packet.parsed.key, packet.now.tick());
        session.tracker = tracker;
        session.in_port = packet.port;
        session.out_port = plan.egress.unwrap_or(packet.port);
        session.policy = plan.decision.map_or(PolicyId::NONE, |it| it.policy);
        session.group = plan.group;
        session.flags.set(SessionFlags::HALF_OPEN);
        if self.is_logged(session.policy) {
            session.flags.set(SessionFlags::LOG);
        }
        session.record(
            Direction::Original,
            packet.parsed.total_len,
            packet.now.tick(),
        );
        if plan.turns_back {
            session.flags.set(SessionFlags::TURNS_BACK);
        }
        if let Some(destination) = &plan.destination {
            session.nat_dst = destination.translated;
            session.nat_dst_port = destination.port;
        }
        if let Some(pool) = plan.source {
            let slice = self.rules.slice(pool, plan.group);
            let source = self.sessions.allocate_source(slice, &plan.key, random)?;
            let outgoing = plan.key.with_source_port(source.port);
            (session.nat_src, session.nat_src_port) = (source.addr, source.port);
            session.nat_dst_port = outgoing.dst_port;
        }
        Ok(session)
    }

    fn insert(&mut self, packet: &Packet<'_>, session: Session) -> Result<SessionId, DropReason> {
        let id = self.sessions.insert(session, packet.now).map_err(refusal)?;
        self.counters.opened += 1;
        self.log_begin(packet.now, id);
        let is_logged = |session: &&Session| session.flags.contains(SessionFlags::LOG);
        if let Some(session) = self.sessions.get(id).filter(is_logged) {
            let line = self.describe(id, session, packet.now);
            log::info!(target: SESSION_TARGET, "session start {line}");
        }
        Ok(id)
    }

    pub(super) fn is_logged(&self, policy: PolicyId) -> bool {
        self.policy(policy).is_some_and(|policy| policy.log)
    }

    /// Ends the session that has to give way to a new one of this source, if any. Comes before any
    /// search: a source above its limits costs only this check.
    fn make_room(&mut self, packet: &Packet<'_>, plan: &Plan) -> Result<(), DropReason> {
        let source = packet.parsed.key.src;
        // A session of another primary is a copy, and that unit counts on it.
        let roles = &self.groups.roles;
        let is_own = |it: &Session| roles[usize::from(it.group.0)] == Role::Primary;
        let limits = self.limits_by(packet.port);
        let room = self.sessions.make_room(&source, limits, is_own);
        if let Some(id) = room.map_err(no_room)? {
            self.end_early(packet, id);
        }
        if let Some(id) = self.ports_yield(plan, &source)? {
            self.end_early(packet, id)
        }
        Ok(())
    }

    /// The limits of a source that sends by `port`.
    pub(super) fn limits_by(&self, port: PortId) -> SourceLimits {
        let quotas = &self.rules.port(port).quotas;
        let all = self.sessions.table().source_limits();
        SourceLimits {
            sessions: quotas.sessions.unwrap_or(all.sessions),
            half_open: quotas.half_open.unwrap_or(all.half_open),
        }
    }

    /// The session that gives way to a new one of a source that has reached its limit of external
    /// ports.
    pub(super) fn ports_yield(
        &self,
        plan: &Plan,
        source: &Addr,
    ) -> Result<Option<SessionId>, DropReason> {
        let Some(pool) = plan.source.filter(|_| Nat::has_mappings(plan.key.protocol)) else {
            return Ok(None);
        };
        let quota = self.rules.port(plan.ingress).quotas.ports;
        let limit = match quota.or(self.rules.config().limits.ports_per_source) {
            Some(limit) => limit,
            None => (self.sessions.nat().pool_ports(pool) / 2).max(LEAST_PORTS),
        };
        if limit == 0
            || self.sessions.table().holdings(source).ports < limit
            || self.sessions.has_mapping(pool, &plan.key)
        {
            return Ok(None);
        }
        let mut own = self
            .sessions
            .table()
            .of_source(source)
            .take(SESSIONS_LOOKED_AT);
        own.find(|id| self.frees_a_port(*id, pool, plan.group))
            .ok_or(DropReason::SourceLimit)
            .map(Some)
    }

    /// Whether the end of a session may free a port of `pool` for one of `group`.
    fn frees_a_port(&self, id: SessionId, pool: PoolId, group: GroupId) -> bool {
        let slot = self.rules.slice(pool, group).slot;
        let (nat, book) = (self.sessions.nat(), self.sessions.book());
        // A session may have kept a port of another slice when the number of slots changed.
        let is_in_slice = |session: &Session| {
            let leaving = session.translated(Direction::Original, book);
            slot.is_none() || nat.slot_of(book, leaving.src, leaving.src_port) == slot
        };
        self.sessions.get(id).is_some_and(|session| {
            matches!(session.tracker, Tracker::Mapped(_))
                && self.is_primary(session.group)
                && (session.group == group || !self.rules.is_cut(self.rules.whole(group)))
                && nat.is_in_pool(pool, session.nat_src)
                && is_in_slice(session)
        })
    }

    /// If all ports are taken: the session that loses its port, one of the largest holder's, unless
    /// that is the same source.
    pub(super) fn port_giver(&self, plan: &Plan, source: &Addr, random: u64) -> Option<SessionId> {
        let pool = plan.source?;
        if !Nat::has_mappings(plan.key.protocol) {
            let slice = self.rules.slice(pool, plan.group);
            return self.tuple_holder(slice, &plan.key, random);
        }
        let theirs = self.sessions.table().of_largest_port_holder(source);
        let mut theirs = theirs.take(SESSIONS_LOOKED_AT);
        theirs.find(|id| self.frees_a_port(*id, pool, plan.group))
    }

    /// If all ports towards a destination are taken: among some at random, the session of the
    /// source that holds the most sessions, if it holds more than this one.
    fn tuple_holder(&self, slice: Slice, key: &FlowKey, random: u64) -> Option<SessionId> {
        let own = self.sessions.table().holdings(&key.src).sessions;
        let holders = self.sessions.sample(slice, key, random);
        let excess = |id: SessionId| {
            let session = self
                .sessions
                .get(id)
                .filter(|it| self.is_primary(it.group))?;
            let sessions = self.sessions.table().holdings(&session.src).sessions;
            let is_more = sessions > own + own / 7 + 1;
            is_more.then_some(((sessions, session.is_dispensable()), id))
        };
        let most = holders.filter_map(excess);
        most.max_by_key(|(weight, _)| *weight).map(|(_, id)| id)
    }

    fn end_early(&mut self, packet: &Packet<'_>, id: SessionId) {
        self.counters.dropped_early += 1;
        self.end_session(packet.now, id, "early-drop");
    }

    /// The pool for the source of a session. On a port with addresses of several groups, it is that
    /// of the group by which the packet came, so that answers come to the unit that has the
    /// session: the group of the forward, or of the port that it came in by. If that port has
    /// several too, a group that this unit is primary of.
    fn source_pool(&self, packet: &Packet<'_>, plan: &Plan, egress: PortId) -> Option<PoolId> {
        let nat = self.sessions.nat();
        let pool = nat.pool(plan.nat, egress)?;
        let family = packet.parsed.family;
        let shared = nat.groups_on(egress, family);
        if plan.nat != config::Nat::Egress || shared.clone().next().is_none() {
            return Some(pool);
        }
        let of = |wanted: &dyn Fn(GroupId) -> bool| {
            let mut shared = shared.clone();
            shared
                .find(|(group, _)| wanted(*group))
                .map(|(_, pool)| pool)
        };
        let forwarded = plan.destination.is_some();
        let forwarded = forwarded
            .then(|| nat.group(&packet.parsed.key.dst))
            .flatten();
        let came_by = |group| {
            self.own_address(packet.port, family, |it| it == group)
                .is_some()
        };
        forwarded
            .and_then(|group| of(&|it| it == group))
            .or_else(|| of(&|it| came_by(it) && self.is_primary(it)))
            .or_else(|| of(&came_by))
            .or_else(|| of(&|it| self.is_primary(it)))
            .or(Some(pool))
    }

    /// The group that a session moves with: that of the address it is translated to, or of the port
    /// whose virtual address its sender uses as next hop.
    fn group_of(&self, packet: &Packet<'_>, plan: &Plan) -> GroupId {
        let family = packet.parsed.family;
        let external = plan.destination.is_some().then_some(packet.parsed.key.dst);
        external
            .or_else(|| self.sessions.nat().first_address(plan.source?, family))
            .or_else(|| self.own_address(packet.port, family, |group| self.is_primary(group)))
            .or_else(|| self.own_address(packet.port, family, |_| true))
            .and_then(|addr| self.sessions.nat().group(&addr))
            .unwrap_or(GroupId(0))
    }

    /// Whether the gateway answers for `addr`, on any port.
    pub(super) fn is_own_address(&self, addr: &Addr) -> bool {
        self.sessions.nat().group(addr).is_some()
    }

    pub(super) fn is_primary(&self, group: GroupId) -> bool {
        self.role(group) == Role::Primary
    }

    /// Whether a packet is for an address of the gateway, and no forward redirects it.
    pub(super) fn is_for_gateway(&self, packet: &Packet<'_>) -> bool {
        let key = &packet.parsed.key;
        self.is_own_address(&key.dst)
            && self
                .sessions
                .nat()
                .destination(Some(packet.port), key)
                .is_none()
            && self.turning_port(packet).is_none()
    }
}

pub(super) fn egress(hop: Option<Hop>) -> Result<PortId, Refused> {
    match hop.map(|hop| hop.target) {
        Some(RouteTarget::Port { port, .. }) => Ok(port),
        Some(RouteTarget::Elsewhere) => Err(DropReason::NotAPort.into()),
        Some(RouteTarget::Unreachable) | None => Err(Refused {
            reason: DropReason::NoRoute,
            answer: Some(IcmpProblem::NoRoute),
        }),
    }
}

fn judge(decision: Option<Decision>) -> Result<config::Nat, Refused> {
    let Some(Decision { action, nat, .. }) = decision else {
        return Err(DropReason::NoPolicy.into());
    };
    match action {
        Action::Accept => Ok(nat),
        Action::Drop => Err(DropReason::PolicyDrop.into()),
        Action::Reject => Err(Refused {
            reason: DropReason::PolicyReject,
            answer: Some(IcmpProblem::AdminProhibited),
        }),
    }
}

/// The drop reason for a packet whose session can't be inserted.
pub(super) fn refusal(error: InsertError) -> DropReason {
    match error {
        InsertError::Conflict(_) => DropReason::NatExhausted,
        InsertError::Full => DropReason::TableFull,
    }
}

/// The result for a packet if there is no room for its session.
pub(super) fn no_room(why: NoRoom) -> DropReason {
    match why {
        NoRoom::Full => DropReason::TableFull,
        NoRoom::SourceLimit => DropReason::SourceLimit,
        NoRoom::HalfOpenLimit => DropReason::HalfOpenLimit,
    }
}

/// External ports that one source may have at least, if nothing is configured.
const LEAST_PORTS: u32 = 1024;

/// Sessions of one source that are considered for giving way.
const SESSIONS_LOOKED_AT: usize = 16;
