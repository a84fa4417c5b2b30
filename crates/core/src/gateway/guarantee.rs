//! Guaranteed pickup: the first packet of a session waits until the peers have the session.
//!
//! Nothing but that packet waits. If no peer is in sync nothing can be guaranteed: the packet goes at
//! once, and is counted.

use std::collections::VecDeque;

use crate::config::PickupGuarantee;
use crate::event::{DropReason, Output, Verdict};
use crate::flow::{Direction, FlowKey, GroupId, PolicyId, PortId};
use crate::packet;
use crate::session::{SessionFlags, SessionId};
use crate::sync::Seq;
use crate::time::Time;

use super::{Gateway, Packet};

/// Packets that may wait at a time: 40 ms of 100 000 new sessions a second.
const MAX_PACKETS: usize = 4096;
/// Their bytes in total.
const MAX_BYTES: usize = 4 << 20;

/// The packets that wait, in the order of their sequence numbers and of their deadlines.
#[derive(Default)]
pub struct Waiting {
    queue: VecDeque<Held>,
    bytes: usize,
}

struct Held {
    id: SessionId,
    /// The original key of the session: its slot may have another one by now.
    key: FlowKey,
    /// The change that the peers must have.
    seq: Seq,
    deadline: Time,
    strict: bool,
    port: PortId,
    bytes: Vec<u8>,
}

impl Waiting {
    /// When the wait of the first packet is over.
    pub fn deadline(&self) -> Option<Time> {
        self.queue.front().map(|held| held.deadline)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.queue.len() < MAX_PACKETS && self.bytes + bytes <= MAX_BYTES
    }

    fn push(&mut self, held: Held) {
        self.bytes += held.bytes.len();
        self.queue.push_back(held);
    }

    fn pop_if(&mut self, condition: impl FnOnce(&Held) -> bool) -> Option<Held> {
        self.queue.front().filter(|held| condition(held))?;
        let held = self.queue.pop_front()?;
        self.bytes -= held.bytes.len();
        Some(held)
    }
}

impl Gateway {
    /// Sends the first packet of a session on, or lets it wait.
    pub(super) fn send_first(&mut self, mut packet: Packet<'_>, id: SessionId) -> Verdict {
        let policy = self.table.get(id).map(|session| session.policy);
        let mode = self.guarantee_of(policy.unwrap_or(PolicyId::NONE));
        if mode == PickupGuarantee::Off {
            return self.send_in_session(&mut packet, id, Direction::Original);
        }
        let Some(seq) = self.unacknowledged(id) else {
            return self.send_in_session(&mut packet, id, Direction::Original);
        };
        let strict = mode == PickupGuarantee::Strict;
        let room = self
            .cluster
            .as_ref()
            .is_some_and(|c| c.waiting.has_room(packet.bytes.len()));
        if !room {
            return self.give_up(packet, id, strict);
        }
        let verdict = self.send_in_session(&mut packet, id, Direction::Original);
        if verdict != Verdict::Forward {
            return verdict;
        }
        packet::complete_checksum(packet.bytes, &packet.parsed, packet.offload);
        if let Some(session) = self.table.get_mut(id) {
            session.flags.set(SessionFlags::WAITING);
        }
        let wait = self
            .config
            .ha
            .as_ref()
            .map_or_else(Default::default, |ha| ha.pickup_guarantee_wait);
        let port = self.exit().unwrap_or(packet.port);
        let (deadline, bytes) = (packet.now + wait, packet.bytes.to_vec());
        let key = packet.parsed.key;
        if let Some(cluster) = &mut self.cluster {
            cluster.waiting.push(Held {
                id,
                key,
                seq,
                deadline,
                strict,
                port,
                bytes,
            });
        }
        self.counters.guarantee_held += 1;
        Verdict::Consumed
    }

    /// Sends what the peers have acknowledged.
    pub(super) fn release_acknowledged(&mut self, now: Time) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        if cluster.waiting.queue.is_empty() {
            return;
        }
        // Without a peer in sync there is nobody to wait for.
        let acked = cluster.sync.acked_by_all_in_sync().unwrap_or(Seq::MAX);
        while let Some(cluster) = &mut self.cluster
            && let Some(held) = cluster.waiting.pop_if(|held| held.seq <= acked)
        {
            self.release(now, held);
        }
    }

    /// Ends the wait of those whose time is over.
    pub(super) fn release_overdue(&mut self, now: Time) {
        while let Some(cluster) = &mut self.cluster
            && let Some(held) = cluster.waiting.pop_if(|held| held.deadline <= now)
        {
            self.counters.guarantee_expired += 1;
            if !held.strict {
                self.release(now, held);
            } else if self.stop_waiting(&held) {
                self.count_drop(DropReason::NotReplicated);
                self.end_session(now, held.id, "not-replicated");
            }
        }
    }

    /// Drops what waits in sessions of a group that this unit is no longer primary of: the sender
    /// repeats it, to the unit that is.
    pub(super) fn drop_waiting(&mut self, group: GroupId) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        let waiting = std::mem::take(&mut cluster.waiting);
        for held in waiting.queue {
            let session = self.table.get(held.id);
            if session.is_none_or(|session| session.group != group) {
                if let Some(cluster) = &mut self.cluster {
                    cluster.waiting.push(held);
                }
            } else if self.stop_waiting(&held) {
                self.count_drop(DropReason::NotPrimary);
            }
        }
    }

    /// Ends the wait of a session; gives whether it is still there. Its packet must not go without it.
    fn stop_waiting(&mut self, held: &Held) -> bool {
        let Some(session) = self.table.get_mut(held.id) else {
            return false;
        };
        if session.key(Direction::Original, &self.book) != held.key {
            return false;
        }
        session.flags.clear(SessionFlags::WAITING);
        true
    }

    fn release(&mut self, now: Time, held: Held) {
        if !self.stop_waiting(&held) {
            return;
        }
        self.counters.forwarded += 1;
        self.capture_released(now, &held.key, &held.bytes);
        self.push_output(Output::Packet {
            port: held.port,
            bytes: held.bytes,
        });
    }

    fn give_up(&mut self, mut packet: Packet<'_>, id: SessionId, strict: bool) -> Verdict {
        self.counters.guarantee_expired += 1;
        if strict {
            self.end_session(packet.now, id, "not-replicated");
            return Verdict::Drop(DropReason::NotReplicated);
        }
        self.send_in_session(&mut packet, id, Direction::Original)
    }

    /// The change with which a session was opened, if a peer in sync has yet to acknowledge it.
    fn unacknowledged(&mut self, id: SessionId) -> Option<Seq> {
        let sync = &self.cluster.as_ref()?.sync;
        match (sync.seq_of(id), sync.acked_by_all_in_sync()) {
            (Some(seq), Some(acked)) => (seq > acked).then_some(seq),
            _ => {
                self.counters.guarantee_degraded += 1;
                None
            }
        }
    }

    /// What sessions of a policy are guaranteed.
    pub(super) fn guarantee_of(&self, policy: PolicyId) -> PickupGuarantee {
        let Some(ha) = self.config.ha.as_ref() else {
            return PickupGuarantee::Off;
        };
        self.policy(policy)
            .and_then(|policy| policy.pickup_guarantee)
            .unwrap_or(ha.pickup_guarantee)
    }
}
