//! Packets of known sessions: the hot path.

use crate::event::{DropReason, Verdict};
use crate::flow::{Direction, FlowKey, PortId, Protocol};
use crate::packet::build::{self, Problem};
use crate::packet::{self, Kind, TcpFlags};
use crate::session::{SessionFlags, SessionId, Tracker, tcp};

use super::{Gateway, Packet};

impl Gateway {
    /// Tracks, translates and forwards a packet of a session.
    pub(super) fn forward_in_session(
        &mut self,
        mut packet: Packet<'_>,
        id: SessionId,
        direction: Direction,
    ) -> Verdict {
        let Some(session) = self.table.get(id) else {
            return Verdict::Drop(DropReason::TcpNoSession);
        };
        let (ingress, _) = session.ports(direction);
        if packet.port != ingress && self.config.ports[packet.port.index()].source_check {
            return Verdict::Drop(DropReason::SpoofedSource);
        }
        let (group, flags, stale) = (session.group, session.flags, self.table.is_stale(session));
        if !self.carries(packet.now, group) {
            return Verdict::Drop(DropReason::NotPrimary);
        }
        if flags.contains(SessionFlags::WAITING) {
            return Verdict::Drop(DropReason::WaitsForPeer);
        }
        if flags.contains(SessionFlags::REMOTE) || stale {
            self.take_up(id);
        }
        if let Err(reason) = self.track(&packet, id, direction) {
            return Verdict::Drop(reason);
        }
        self.send_in_session(&mut packet, id, direction)
    }

    /// Lets the session's tracker judge the packet, and accounts for it.
    fn track(
        &mut self,
        packet: &Packet<'_>,
        id: SessionId,
        direction: Direction,
    ) -> Result<(), DropReason> {
        let before = self.phase(id);
        let Some(session) = self.table.get_mut(id) else {
            return Err(DropReason::TcpNoSession);
        };
        let mut changed = false;
        if let (Kind::Tcp(segment), Tracker::Tcp(tracker)) =
            (packet.parsed.kind, &mut session.tracker)
        {
            if changes_state(segment.flags)
                && !packet::checksum_ok(packet.bytes, &packet.parsed, packet.offload)
            {
                return Err(DropReason::BadChecksum);
            }
            match tracker.handle(direction, &segment)? {
                tcp::Change::Ignored => return Ok(()),
                tcp::Change::Same => {}
                tcp::Change::State | tcp::Change::Reopened => {
                    self.table.reschedule(id);
                    changed = true;
                }
            }
        }
        changed |= self.record(packet, id, direction);
        if changed {
            self.note_changed(id, before);
        }
        Ok(())
    }

    /// Counts the packet; gives whether it is the first of its direction.
    fn record(&mut self, packet: &Packet<'_>, id: SessionId, direction: Direction) -> bool {
        let Some(session) = self.table.get_mut(id) else {
            return false;
        };
        session.record(direction, packet.parsed.total_len, packet.now.tick());
        let is_news =
            direction == Direction::Reply && !session.flags.contains(SessionFlags::REPLIED);
        if is_news {
            session.flags.set(SessionFlags::REPLIED);
        }
        if session.flags.contains(SessionFlags::HALF_OPEN) && session.is_settled() {
            self.table.settle(id);
        }
        if is_news {
            self.table.reschedule(id);
        }
        is_news
    }

    pub(super) fn send_in_session(
        &mut self,
        packet: &mut Packet<'_>,
        id: SessionId,
        direction: Direction,
    ) -> Verdict {
        let Some(session) = self.table.get(id) else {
            return Verdict::Drop(DropReason::TcpNoSession);
        };
        let to = session.translated(direction, &self.book);
        let (_, egress) = session.ports(direction);
        self.send(packet, &to, egress)
    }

    /// The last part of each forwarded packet's way: size, translation, hop count.
    pub(super) fn send(
        &mut self,
        packet: &mut Packet<'_>,
        to: &FlowKey,
        egress: PortId,
    ) -> Verdict {
        let link = self.links[egress.index()];
        if !link.up {
            return Verdict::Drop(DropReason::PortDown);
        }
        if packet.parsed.dont_fragment && packet.wire_len() > link.mtu {
            self.answer_error(packet, Problem::TooBig { mtu: link.mtu });
            return Verdict::Drop(DropReason::TooBig);
        }
        packet::translate(packet.bytes, &packet.parsed, packet.offload, to);
        packet::add_hop_limit(packet.bytes, packet.parsed.family);
        Verdict::Forward
    }

    /// Tells the sender of `packet` why it was not forwarded, within the limits for such answers.
    pub(super) fn answer_error(&mut self, packet: &Packet<'_>, problem: Problem) {
        let Some(from) = self.own_address(packet.port, packet.parsed.family) else {
            return;
        };
        if let Some(error) = build::icmp_error(problem, from, packet.bytes, &packet.parsed) {
            self.send_answer(packet, error);
        }
    }

    /// Refuses a packet the way its protocol expects: a TCP reset, or an ICMP error.
    pub(super) fn answer_refusal(&mut self, packet: &Packet<'_>, problem: Problem) {
        if packet.parsed.key.protocol != Protocol::TCP {
            return self.answer_error(packet, problem);
        }
        if let Some(reset) = build::tcp_reset(&packet.parsed) {
            self.send_answer(packet, reset);
        }
    }

    fn send_answer(&mut self, packet: &Packet<'_>, answer: Vec<u8>) {
        if self.icmp_limiter.allow(packet.now) {
            self.send_packet(packet.port, answer);
        }
    }

    pub(super) fn send_packet(&mut self, port: PortId, bytes: Vec<u8>) {
        self.push_output(crate::event::Output::Packet { port, bytes });
    }
}

/// Whether a segment can move a connection to another state, so that its checksum is worth a look.
fn changes_state(flags: TcpFlags) -> bool {
    flags.syn() || flags.fin() || flags.rst()
}
