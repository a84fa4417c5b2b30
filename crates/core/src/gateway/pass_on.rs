//! Packets that come to a unit which is not primary of their group, where routers spread them over
//! the units (`asymmetric-flows`).
//!
//! The primary is the *owner* of a group's sessions: it opens and ends them, and follows TCP. A
//! unit that has a copy of a session forwards its packets in the owner's place (`stand_in.rs`).
//! Everything else goes on to the owner, over the replication connection: packets of sessions that
//! are not here, segments that change the state of a connection, first answers, fragments. A packet
//! that a peer has passed on ends here, so none goes to a third unit.
//!
//! The owner marks a session of which a packet was passed on as [`SessionFlags::SPREAD`]: from then
//! on it does not drop what is outside of the windows that it knows, and the others may stand in.

use crate::event::{DropReason, Output, Verdict};
use crate::flow::{FlowKey, GroupId, LinkId, MAX_PEERS, PeerId, PortId};
use crate::packet;
use crate::session::{Session, SessionFlags, SessionId, Tracker};
use crate::time::Time;

use super::limiter::Limiter;
use super::open::Plan;
use super::passed::{self, Assembly, Passed};
use super::{Gateway, Packet};

/// Packets a second that are passed on. They share links with replication, which must not starve.
const PER_SECOND: u32 = 50_000;

/// The packets that go from unit to unit.
pub(super) struct PassingOn {
    limiter: Limiter,
    /// The number of the last packet that was passed on.
    number: u32,
    /// Parts of packets, by the peer that has passed them on.
    assemblies: Vec<Assembly>,
    /// A packet that a peer has passed on is being handled.
    is_receiving: bool,
}

impl Default for PassingOn {
    fn default() -> PassingOn {
        PassingOn {
            limiter: Limiter::new(PER_SECOND),
            number: 0,
            assemblies: vec![Assembly::default(); MAX_PEERS],
            is_receiving: false,
        }
    }
}

impl Gateway {
    /// A packet of a group that this unit is not primary of: passes it on, if that is wanted.
    /// Otherwise it is counted as dropped.
    #[cold]
    pub(super) fn handle_for_another(&mut self, packet: &Packet<'_>) -> Verdict {
        let passed_on = match self.rules.passes_on() {
            true => self.pass_on(packet),
            false => {
                self.note_stray(packet.now, packet.port, packet.parsed.key.src);
                Err(DropReason::NotPrimary)
            }
        };
        match passed_on {
            Ok(()) => Verdict::Consumed,
            Err(reason) => {
                self.count_drop(reason);
                Verdict::Drop(reason)
            }
        }
    }

    fn pass_on(&mut self, packet: &Packet<'_>) -> Result<(), DropReason> {
        if self.is_passed_on() {
            return Err(DropReason::PassedOnTwice);
        }
        let group = self.group_of_any(packet);
        let (peer, link) = self.owner(group).ok_or(DropReason::NotPrimary)?;
        if !self.passing_on.limiter.allow(packet.now) {
            return Err(DropReason::NotPassedOn);
        }
        self.passing_on.number = self.passing_on.number.wrapping_add(1);
        let number = self.passing_on.number;
        self.counters.passed_on += 1;
        for bytes in passed::pieces(packet.port, packet.offload, packet.bytes, number) {
            self.push_output(Output::PassOn { peer, link, bytes });
        }
        Ok(())
    }

    /// An [`Output::PassOn`] was not sent: the packet is lost.
    pub fn handle_not_passed_on(&mut self) {
        self.count_drop(DropReason::NotPassedOn);
    }

    /// Whether the packet that is being handled came from another unit.
    pub(super) fn is_passed_on(&self) -> bool {
        self.passing_on.is_receiving
    }

    /// The peer that is primary of a group, and the link to it.
    pub(super) fn owner(&self, group: GroupId) -> Option<(PeerId, LinkId)> {
        let peer = self.cluster()?.ha.owner(group)?;
        Some((peer, self.sync_link(peer)?))
    }

    /// The group of a packet that may belong to no session, and have no ports.
    pub(super) fn group_of_any(&self, packet: &Packet<'_>) -> GroupId {
        let known = packet.group.or_else(|| self.group_of_session(packet));
        if let Some(group) = known {
            return group;
        }
        if self.sessions.nat().group(&packet.parsed.key.dst).is_none()
            && packet.parsed.fragment.is_none()
        {
            let mut plan = Plan::new(packet);
            // Whether it may pass is up to the owner.
            let decided = self.decide(packet, &mut plan, |_| true);
            if plan.source.is_some() {
                return plan.group;
            }
            if decided.is_err()
                && let Some(slot) = self.slot_if_answer(packet)
            {
                return slot;
            }
        }
        self.group_by_addresses(packet)
    }

    fn group_of_session(&self, packet: &Packet<'_>) -> Option<GroupId> {
        let key = self.flow_of(packet.bytes, &packet.parsed, packet.port)?;
        let (id, _) = self.sessions.lookup(&key)?;
        Some(self.sessions.get(id)?.group)
    }

    /// The group of a packet as far as its addresses and its port tell: all fragments of a datagram
    /// have the same.
    fn group_by_addresses(&self, packet: &Packet<'_>) -> GroupId {
        let nat = self.sessions.nat();
        let family = packet.parsed.family;
        let group = nat.group(&packet.parsed.key.dst).or_else(|| {
            let own = self
                .own_address(packet.port, family, |group| self.is_primary(group))
                .or_else(|| self.own_address(packet.port, family, |_| true));
            nat.group(&own?)
        });
        self.slot_by_packet(group.unwrap_or(GroupId(0)), packet)
    }

    /// Whether a packet without a session is for another unit to judge.
    pub(super) fn is_for_another(&self, packet: &Packet<'_>) -> bool {
        self.rules.passes_on() && !self.carries(packet.now, self.group_by_addresses(packet))
    }

    /// Whether a fragment is, by its addresses, which all fragments of its datagram have. Not if
    /// these do not tell the slot: then the others follow the first one.
    pub(super) fn is_fragment_for_another(&self, packet: &Packet<'_>) -> bool {
        if !self.rules.passes_on() {
            return false;
        }
        let group = self.group_by_addresses(packet);
        !self.rules.is_cut(self.rules.whole(group)) && !self.carries(packet.now, group)
    }

    /// Handles a datagram in which `peer` passes on a packet, or a piece of one.
    pub fn handle_passed_on(&mut self, now: Time, peer: PeerId, bytes: &[u8]) {
        let Some(assembly) = self.passing_on.assemblies.get_mut(peer.index()) else {
            return;
        };
        // A unit without the option takes them too, as while a changed config reaches one after the
        // other.
        let Some(passed) = assembly.add(bytes) else {
            return;
        };
        let port = self
            .cluster()
            .and_then(|it| it.sync.port(peer, passed.port));
        if let Some(port) = port {
            self.counters.received_from_peers += 1;
            self.handle_passed(now, port, passed);
        }
    }

    fn handle_passed(&mut self, now: Time, port: PortId, passed: Passed) {
        let Passed {
            offload, mut bytes, ..
        } = passed;
        let key = match packet::parse(&bytes, offload) {
            Ok(parsed) => self.flow_of(&bytes, &parsed, port),
            Err(_) => None,
        };
        self.passing_on.is_receiving = true;
        let verdict = match self.is_capturing() {
            true => self.handle_captured_packet(now, port, &mut bytes, offload),
            false => self.handle_packet(now, port, &mut bytes, offload),
        };
        self.passing_on.is_receiving = false;
        if let Some(key) = key {
            self.mark_spread(&key);
            self.tell_host(now, port, key.src);
        }
        if verdict == Verdict::Forward {
            let port = self.exit();
            self.push_output(Output::Packet {
                port,
                bytes,
                offload,
            });
        }
    }

    /// Notes that other units see packets of a session. Peers are told.
    fn mark_spread(&mut self, key: &FlowKey) {
        let Some((id, _)) = self.sessions.lookup(key) else {
            return;
        };
        let is_news = |session: &Session| {
            self.is_primary(session.group) && !session.flags.contains(SessionFlags::SPREAD)
        };
        if self.sessions.get(id).is_some_and(is_news) {
            self.sessions.edit(id, |session, _| {
                session.flags.set(SessionFlags::SPREAD);
            });
        }
    }

    /// A segment outside of the window that is known, in a session of which other units forward
    /// packets: its numbers are unknown, as after a takeover. Returns whether that is so.
    #[cold]
    pub(super) fn doubt_numbers(&mut self, id: SessionId) -> bool {
        let may = |session: &Session| {
            session.flags.contains(SessionFlags::SPREAD) && session.is_settled()
        };
        if !self.sessions.get(id).is_some_and(may) {
            return false;
        }
        let doubted = self
            .sessions
            .edit(id, |session, _| match &mut session.tracker {
                Tracker::Tcp(tracker) if !tracker.is_unsure() => {
                    tracker.resume();
                    true
                }
                _ => false,
            });
        doubted == Some(true)
    }
}
