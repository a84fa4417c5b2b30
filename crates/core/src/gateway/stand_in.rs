//! Forwards packets of another unit's sessions in its place, where `asymmetric-flows` says that
//! they may come to any unit.
//!
//! This unit does not judge windows, since it sees only some of the packets, and it moves no state:
//! what could goes on to the owner (`pass_on.rs`). So does a packet now and then, by time and by
//! bytes: from these the owner knows that the session is in use, and where its numbers are.

use crate::event::{DropReason, Verdict};
use crate::flow::Direction;
use crate::packet::PacketKind;
use crate::session::{Session, SessionFlags, SessionId, Tracker};
use crate::time::Tick;

use super::forward::changes_state;
use super::hairpin::turns_back;
use super::{Gateway, Packet};

impl Gateway {
    /// A packet of a session whose group this unit is not primary of. Forwards it if it may,
    /// otherwise the packet is for the owner: [`DropReason::NotPrimary`].
    #[inline(never)]
    pub(super) fn stand_in(
        &mut self,
        packet: &mut Packet<'_>,
        id: SessionId,
        direction: Direction,
    ) -> Verdict {
        let refused = Verdict::Drop(DropReason::NotPrimary);
        if !self.rules.passes_on() {
            return refused;
        }
        let Some(session) = self.sessions.get(id) else {
            return Verdict::Drop(DropReason::SessionGone);
        };
        let (group, now) = (session.group, packet.now.tick());
        let follows = self.cluster().is_some_and(|cluster| {
            cluster.sync.is_ready(group) && cluster.ha.owner(group).is_some()
        });
        if !follows || !is_plain(session, direction, packet) {
            return refused;
        }
        let to = session.translated(direction, self.sessions.book());
        let (_, egress) = session.ports(direction);
        let report_after = self.sessions.table().timeouts().report_after(session);
        let bytes = packet.parsed.total_len;
        let is_due = self.sessions.follow(id, |session, _| {
            note(session, direction, bytes, now, report_after)
        });
        if is_due != Some(false) {
            return refused;
        }
        let egress = self.way_out(egress, direction, &to);
        let verdict = self.send(packet, &to, egress);
        self.counters.stood_in += u64::from(verdict == Verdict::Forward);
        verdict
    }
}

/// Whether a packet moves no state of its session, and other units may forward it.
fn is_plain(session: &Session, direction: Direction, packet: &Packet<'_>) -> bool {
    let is_known = session.flags.contains(SessionFlags::SPREAD) && session.is_settled();
    if !is_known || turns_back(session, direction) || packet.parsed.fragment.is_some() {
        return false;
    }
    match (packet.parsed.kind, &session.tracker) {
        (PacketKind::Tcp(segment), Tracker::Tcp(tracker)) => {
            tracker.is_alive() && !tracker.is_one_sided() && !changes_state(segment.flags)
        }
        (PacketKind::IcmpRequest, _) => direction == Direction::Original,
        (PacketKind::IcmpReply, _) => direction == Direction::Reply,
        (PacketKind::Udp | PacketKind::Other, _) => true,
        _ => false,
    }
}

/// Counts a packet in the copy of a session; returns whether the owner must see it.
fn note(
    session: &mut Session,
    direction: Direction,
    bytes: u32,
    now: Tick,
    report_after: u32,
) -> bool {
    let at = direction as usize;
    session.packets[at] += 1;
    session.bytes[at] += u64::from(bytes);
    let is_due =
        session.is_report_due(direction, bytes) || now >= session.last_seen.after(report_after);
    if is_due {
        session.last_seen = now;
    }
    is_due
}
