//! Packets of known sessions: the hot path.

use crate::event::{DropReason, LinkState, Offload, Output, Verdict};
use crate::flow::{Addr, Direction, FlowKey, GroupId, PolicyId, PortId, Protocol};
use crate::packet::build::{self, IcmpProblem};
use crate::packet::{self, PacketKind, TcpFlags};
use crate::session::{Session, SessionFlags, SessionId, Tracker, tcp};
use crate::time::{Tick, Time};

use super::fast_path::{EARNS_EACH, FastPath};
use super::hairpin::turns_back;
use super::limiter::Budget;
use super::open::Plan;
use super::unresolved::{asks_for, is_unanswered};
use super::{Gateway, Packet, Role};

impl Gateway {
    /// Tracks, translates and forwards a packet of a session.
    pub(super) fn forward_in_session(
        &mut self,
        packet: &mut Packet<'_>,
        id: SessionId,
        direction: Direction,
    ) -> Verdict {
        let (roles, rules) = (&self.groups.roles, &self.rules);
        let cluster = self.cluster.as_deref();
        let stragglers = |group| {
            let cluster = cluster?;
            Some(cluster.carries_stragglers(packet.now, group, rules.passes_on()))
        };
        let carries = |group: GroupId| {
            roles[usize::from(group.0)] == Role::Primary || stragglers(group) == Some(true)
        };
        let checks_source = || self.rules.port(packet.port).source_check;
        let fast_path = &mut self.fast_path;
        // Filled in place: otherwise it would be copied out of the closure.
        let mut way = Way::unknown(packet);
        let followed = self.sessions.follow(id, |session, around| {
            way.egress = admit(session, direction, packet.port, checks_source, carries)?;
            if is_behind(session, around.is_stale) {
                let now = packet.now.tick();
                way.is_to_note = fast_path.take_up(now, id, session, around.is_stale);
            }
            way.to = session.translated(direction, around.book);
            (way.policy, way.group) = (session.policy, session.group);
            way.turns_back = turns_back(session, direction);
            way.is_unanswered = is_unanswered(session, direction) && !way.turns_back;
            let was_settled = session.is_settled();
            let is_first_reply = follow(session, packet, direction)?;
            way.has_answered = is_first_reply || session.is_settled() != was_settled;
            way.is_to_note |= session.packets[direction as usize].is_multiple_of(EARNS_EACH);
            Ok(())
        });
        match followed {
            Some(Ok(())) => {
                way.egress = self.way_out(way.egress, direction, &way.to);
                self.go_on(packet, id, direction, &way)
            }
            Some(Err(DropReason::TcpUnexpectedSyn)) => self.give_way(packet, id, direction),
            Some(Err(DropReason::NotPrimary)) => self.stand_in(packet, id, direction),
            // Once doubted, numbers are not judged, so this ends.
            Some(Err(DropReason::TcpWindow)) if self.doubt_numbers(id) => {
                self.forward_in_session(packet, id, direction)
            }
            Some(Err(reason)) => Verdict::Drop(reason),
            None => Verdict::Drop(DropReason::SessionGone),
        }
    }

    /// The path of a packet that its session has accepted.
    #[inline(always)]
    fn go_on(
        &mut self,
        packet: &mut Packet<'_>,
        id: SessionId,
        direction: Direction,
        way: &Way,
    ) -> Verdict {
        if way.has_answered {
            self.note_neighbors_of(id);
        }
        if way.is_to_note {
            self.note_fast(id);
        }
        if way.turns_back {
            return self.turn_back(packet, way.to, way.egress);
        }
        if way.is_unanswered {
            let source = asks_for(&packet.parsed.key.src, &way.to.dst, direction);
            if !self.looks_for(packet.now, &source, way.egress, way.to.dst) {
                return Verdict::Drop(DropReason::NeighborLimit);
            }
        }
        self.clamp_mss(packet, &way.to, way.policy, way.egress);
        let verdict = self.send(packet, &way.to, way.egress);
        self.groups
            .note_traffic(way.group, direction, packet.now, &verdict);
        verdict
    }

    /// A SYN that the session does not accept. If the connection is over, the side that was its
    /// server may open the next one between the same ports (RFC 1122, section 4.2.2.13), where the
    /// policies accept that as they would accept it without the old session.
    #[cold]
    fn give_way(
        &mut self,
        packet: &mut Packet<'_>,
        id: SessionId,
        direction: Direction,
    ) -> Verdict {
        let refused = Verdict::Drop(DropReason::TcpUnexpectedSyn);
        let is_over = self
            .sessions
            .get(id)
            .is_some_and(|session| opens_after(session, direction, packet));
        if !is_over || self.is_for_gateway(packet) {
            return refused;
        }
        let is_primary = |group| self.is_primary(group);
        if self
            .decide(packet, &mut Plan::new(packet), is_primary)
            .is_err()
        {
            return refused;
        }
        self.end_session(packet.now, id, "replaced");
        self.open_session(packet)
    }

    pub(super) fn send_in_session(
        &mut self,
        packet: &mut Packet<'_>,
        id: SessionId,
        direction: Direction,
    ) -> Verdict {
        let Some(session) = self.sessions.get(id) else {
            return Verdict::Drop(DropReason::SessionGone);
        };
        let to = session.translated(direction, self.sessions.book());
        let (_, egress) = session.ports(direction);
        let (policy, group) = (session.policy, session.group);
        let egress = self.way_out(egress, direction, &to);
        if turns_back(session, direction) {
            return self.turn_back(packet, to, egress);
        }
        self.clamp_mss(packet, &to, policy, egress);
        let verdict = self.send(packet, &to, egress);
        self.groups
            .note_traffic(group, direction, packet.now, &verdict);
        verdict
    }

    /// The decision of [`Gateway::forward_in_session`] about a packet that comes in by `port`, and
    /// its destination.
    ///
    /// With `any_segment`, TCP is taken for a segment that its tracker accepts.
    pub(super) fn try_in_session(
        &self,
        packet: &Packet<'_>,
        port: PortId,
        session: &Session,
        direction: Direction,
        carries: impl Fn(GroupId) -> bool,
        any_segment: bool,
    ) -> Result<PortId, DropReason> {
        let checks_source = || self.rules.port(port).source_check;
        let to = session.translated(direction, self.sessions.book());
        let egress = admit(session, direction, port, checks_source, carries)?;
        let egress = self.way_out(egress, direction, &to);
        let mut copy = session.clone();
        if session.flags.contains(SessionFlags::OFFLOADED)
            && let Some((id, _)) = self.sessions.lookup(&packet.parsed.key)
        {
            self.fast_path.peek(id, &mut copy);
        }
        if is_taken_up(session, self.sessions.table().is_stale(session)) {
            take_up(packet.now.tick(), &mut copy);
        }
        if !(any_segment && matches!(copy.tracker, Tracker::Tcp(_))) {
            follow(&mut copy, packet, direction)?;
        }
        if is_unanswered(session, direction) && !turns_back(session, direction) {
            let source = asks_for(&packet.parsed.key.src, &to.dst, direction);
            if !self.may_look_for(packet.now, &source, egress, to.dst) {
                return Err(DropReason::NeighborLimit);
            }
        }
        self.check_exit(packet, egress)?;
        Ok(egress)
    }

    /// Whether the packet can leave by `egress`.
    pub(super) fn check_exit(&self, packet: &Packet<'_>, egress: PortId) -> Result<(), DropReason> {
        check_link(self.links.link(egress), packet)
    }

    /// The last steps of each forwarded packet: size, translation, hop count.
    #[inline(always)]
    pub(super) fn send(
        &mut self,
        packet: &mut Packet<'_>,
        to: &FlowKey,
        egress: PortId,
    ) -> Verdict {
        let port = self.links.port_mut(egress);
        let mtu = port.link().mtu;
        if let Err(reason) = check_link(port.link(), packet) {
            if reason == DropReason::TooBig {
                self.answer_error(packet, IcmpProblem::TooBig { mtu });
            }
            return Verdict::Drop(reason);
        }
        port.count_out(packet.bytes.len());
        if is_reassembled(packet, mtu) {
            self.identify(packet, to);
        }
        packet::translate_with_hop(packet.bytes, &packet.parsed, packet.offload, to);
        packet::give_back_options(packet.bytes, &packet.parsed);
        self.routes.note_exit(egress);
        Verdict::Forward
    }

    /// Tells the sender of `packet` why it was not forwarded, within the limits for such answers.
    pub(super) fn answer_error(&mut self, packet: &Packet<'_>, problem: IcmpProblem) {
        let Some(from) = self.speaker(packet) else {
            return;
        };
        let budget = match problem {
            IcmpProblem::TooBig { .. } => Budget::KeepsAlive,
            _ => Budget::Refusals,
        };
        if let Some(error) = build::icmp_error(problem, from, packet.bytes, &packet.parsed) {
            self.send_answer(packet, error, budget);
        }
    }

    /// Refuses a packet the way its protocol expects: a TCP reset, or an ICMP error. A reset would
    /// mean that the server has refused, which nobody knows where there was no room.
    pub(super) fn answer_refusal(&mut self, packet: &Packet<'_>, problem: IcmpProblem) {
        let is_shortage = problem == IcmpProblem::HostUnreachable;
        if packet.parsed.key.protocol != Protocol::TCP || is_shortage {
            return self.answer_error(packet, problem);
        }
        if let Some(reset) = build::tcp_reset(&packet.parsed) {
            self.send_answer(packet, reset, Budget::Refusals);
        }
    }

    fn send_answer(&mut self, packet: &Packet<'_>, answer: Vec<u8>, budget: Budget) {
        let to = packet.parsed.key.src;
        if self.speaker(packet).is_some()
            && self.looks_for(packet.now, &to, packet.port, to)
            && self.budgets.allow(budget, packet.now)
        {
            let port = self.way_back(packet.port, &packet.parsed.key.dst, &to);
            self.send_packet(packet.now, port, answer);
        }
    }

    /// The virtual address with which this unit answers the sender of `packet`; none if the sender
    /// sees another router: a standby tells it nothing, unless packets may come to any unit.
    ///
    /// A port may have addresses of several groups. Then it is, in this order: the one that the
    /// packet is for; one of the group of its session; one of any group that this unit is primary
    /// of; any.
    fn speaker(&self, packet: &Packet<'_>) -> Option<Addr> {
        let key = &packet.parsed.key;
        if let Some(group) = self.sessions.nat().group(&key.dst)
            && self
                .sessions
                .nat()
                .destination(Some(packet.port), key)
                .is_none()
        {
            let family = packet.parsed.family;
            return self
                .own_address(packet.port, family, |it| it == group)
                .or_else(|| self.own_address(packet.port, family, |it| self.serves(it)))
                .filter(|_| self.serves(group));
        }
        let session = self.sessions.lookup(key);
        let session = session.and_then(|(id, _)| self.sessions.get(id));
        let is_router = |group| self.serves(group) || self.rules.passes_on();
        let address = |wanted: &dyn Fn(GroupId) -> bool| {
            self.own_address(packet.port, packet.parsed.family, wanted)
        };
        let of_session = session.and_then(|session| {
            let whole = self.rules.whole(session.group);
            address(&|group| group == whole && is_router(group))
        });
        of_session
            .or_else(|| address(&|group| self.serves(group)))
            .or_else(|| address(&is_router))
    }

    pub(super) fn send_packet(&mut self, now: Time, port: PortId, bytes: Vec<u8>) {
        self.capture_answer(now, port, &bytes);
        self.push_output(Output::Packet {
            port,
            bytes,
            offload: Offload::default(),
        });
    }
}

/// The exit of a packet of a session, and its meaning for others.
struct Way {
    to: FlowKey,
    egress: PortId,
    policy: PolicyId,
    group: GroupId,
    /// See [`turns_back`].
    turns_back: bool,
    /// It goes to a host that has not answered in the session.
    is_unanswered: bool,
    /// It shows that a host has answered.
    has_answered: bool,
    /// It may give the session entries in the fast path, or take them.
    is_to_note: bool,
}

impl Way {
    /// The way of a packet that its session has not seen.
    #[inline(always)]
    fn unknown(packet: &Packet<'_>) -> Way {
        Way {
            to: packet.parsed.key,
            egress: packet.port,
            policy: PolicyId::NONE,
            group: GroupId(0),
            turns_back: false,
            is_unanswered: false,
            has_answered: false,
            is_to_note: false,
        }
    }
}

/// Whether the packet is the SYN of a new connection, in the direction opposite to that of the
/// session, which is over.
pub(super) fn opens_after(session: &Session, direction: Direction, packet: &Packet<'_>) -> bool {
    let Tracker::Tcp(tracker) = &session.tracker else {
        return false;
    };
    let is_syn = matches!(packet.parsed.kind, PacketKind::Tcp(segment)
        if segment.flags.syn() && !segment.flags.ack());
    is_syn && direction == Direction::Reply && tracker.state() >= tcp::TcpState::TimeWait
}

/// Whether the receiver must reassemble the packet from fragments: it is fragmented already, or the
/// kernel will fragment it.
#[inline]
pub(super) fn is_reassembled(packet: &Packet<'_>, mtu: u32) -> bool {
    packet.parsed.fragment.is_some() || !packet.parsed.dont_fragment && packet.wire_len() > mtu
}

/// Whether a packet can leave by a port with this link: it is up, and the packet fits.
#[inline(always)]
fn check_link(link: &LinkState, packet: &Packet<'_>) -> Result<(), DropReason> {
    if !link.up {
        return Err(DropReason::PortDown);
    }
    if packet.parsed.dont_fragment && packet.wire_len() > link.mtu {
        return Err(DropReason::TooBig);
    }
    Ok(())
}

/// Whether a packet that came in by `port` may continue in its session, and by which port it
/// leaves.
#[inline(always)]
fn admit(
    session: &Session,
    direction: Direction,
    port: PortId,
    checks_source: impl Fn() -> bool,
    carries: impl Fn(GroupId) -> bool,
) -> Result<PortId, DropReason> {
    let (ingress, egress) = session.ports(direction);
    if port != ingress && checks_source() {
        return Err(DropReason::SpoofedSource);
    }
    if session.flags.contains(SessionFlags::WAITING) {
        return Err(DropReason::WaitsForPeer);
    }
    if !carries(session.group) {
        return Err(DropReason::NotPrimary);
    }
    Ok(egress)
}

/// Whether another unit followed the session since its last packet here.
#[inline]
pub(super) fn is_taken_up(session: &Session, stale: bool) -> bool {
    stale || session.flags.contains(SessionFlags::REMOTE)
}

/// The same, or whether the fast path may have seen packets that the session does not know of.
#[inline]
fn is_behind(session: &Session, stale: bool) -> bool {
    let behind = SessionFlags(SessionFlags::REMOTE.0 | SessionFlags::OFFLOADED.0);
    stale || session.flags.intersects(behind)
}

impl FastPath {
    /// Prepares a session that [is behind](is_behind) for a packet. Returns whether it has entries
    /// in the fast path.
    #[cold]
    fn take_up(&mut self, now: Tick, id: SessionId, session: &mut Session, stale: bool) -> bool {
        if is_taken_up(session, stale) {
            take_up(now, session);
        }
        let is_offloaded = session.flags.contains(SessionFlags::OFFLOADED);
        if is_offloaded {
            self.absorb(id, session);
        }
        is_offloaded
    }
}

/// Prepares a session that another unit has tracked for tracking here: its unseen segments must not
/// count against it. It is done once: see [`Table::renew`](crate::session::Table::renew).
#[cold]
fn take_up(now: Tick, session: &mut Session) {
    session.last_seen = now.after(1);
    session.flags.clear(SessionFlags::REMOTE);
    session.flags.set(SessionFlags::QUIET);
    if let Tracker::Tcp(tracker) = &mut session.tracker {
        tracker.resume();
    }
}

/// Lets the session's tracker judge the packet, and accounts for it; returns whether it is the
/// first reply.
// Always inlined: a packet must not pay for a call that only the explanation shares.
#[inline(always)]
fn follow(
    session: &mut Session,
    packet: &Packet<'_>,
    direction: Direction,
) -> Result<bool, DropReason> {
    fits(packet.parsed.kind, direction)?;
    let mut has_data = false;
    if let (PacketKind::Tcp(segment), Tracker::Tcp(tracker)) =
        (packet.parsed.kind, &mut session.tracker)
    {
        if changes_state(segment.flags)
            && !packet::checksum_ok(packet.bytes, &packet.parsed, packet.offload)
        {
            return Err(DropReason::BadChecksum);
        }
        match tracker.handle(direction, &segment)? {
            tcp::Change::Ignored => return Ok(false),
            tcp::Change::Doubted => {
                session.flags.set(SessionFlags::NOTABLE);
                return Ok(false);
            }
            // A keep-alive may have a byte of old data.
            _ => has_data = segment.payload_len > 1,
        }
    }
    let is_first_reply = account(session, packet, direction);
    if has_data {
        session.note_data(direction, packet.parsed.total_len);
    }
    Ok(is_first_reply)
}

/// Accounts for a packet that belongs to the session; returns whether it is the first reply.
#[inline]
pub(super) fn account(session: &mut Session, packet: &Packet<'_>, direction: Direction) -> bool {
    session.record(direction, packet.parsed.total_len, packet.now.tick());
    let is_first_reply =
        direction == Direction::Reply && !session.flags.contains(SessionFlags::REPLIED);
    if is_first_reply {
        session.flags.set(SessionFlags::REPLIED);
    }
    is_first_reply
}

/// Whether a session has packets of this kind in this direction. Their keys imply it too; nothing
/// should depend on that alone.
#[inline]
fn fits(kind: PacketKind, direction: Direction) -> Result<(), DropReason> {
    match (kind, direction) {
        (PacketKind::IcmpRequest, Direction::Reply)
        | (PacketKind::IcmpReply, Direction::Original) => Err(DropReason::IcmpUnrelated),
        (PacketKind::IcmpOther, _) => Err(DropReason::IcmpUnsupported),
        _ => Ok(()),
    }
}

/// Whether a segment can move a connection to another state, so that its checksum must be verified.
pub(super) fn changes_state(flags: TcpFlags) -> bool {
    flags.syn() || flags.fin() || flags.rst()
}
