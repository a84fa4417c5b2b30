//! Guaranteed pickup: the first packet of a session waits until as many peers have the session as
//! `pickup-guarantee-copies` says, or as are in sync.
//!
//! Only that packet waits. If no peer is in sync, nothing can be guaranteed: the packet leaves at
//! once, and is counted. A peer that refuses the session does not count as a copy.

use std::collections::{BTreeMap, VecDeque};

use crate::config::PickupGuarantee;
use crate::event::{DropReason, Offload, Output, Verdict};
use crate::flow::{Direction, FlowKey, GroupId, PolicyId, PortId};
use crate::packet;
use crate::session::{SessionFlags, SessionId};
use crate::store::{Journal, Seq};
use crate::sync::{Copies, Replicator};
use crate::time::Time;

use super::fragment::FirstFragment;
use super::{Cluster, Gateway, Packet};

/// Packets that may wait at a time: 40 ms of 100 000 new sessions a second.
const MAX_PACKETS: usize = 4096;
/// Their bytes in total.
const MAX_BYTES: usize = 4 << 20;

/// The waiting packets.
#[derive(Default)]
pub(super) struct Waiting {
    /// By group, in the order of their sequence numbers and of their deadlines.
    queues: BTreeMap<GroupId, VecDeque<Held>>,
    count: usize,
    bytes: usize,
}

struct Held {
    id: SessionId,
    /// The original key of the session: its slot may hold another session by now.
    key: FlowKey,
    /// The change that the peers must have.
    seq: Seq,
    deadline: Time,
    strict: bool,
    port: PortId,
    bytes: Vec<u8>,
    /// If it is the first fragment of a datagram: the others wait with it.
    fragment: Option<FirstFragment>,
}

impl Waiting {
    /// When the wait of the first packet is over.
    pub(super) fn deadline(&self) -> Option<Time> {
        let first = self.queues.values().filter_map(VecDeque::front);
        first.map(|held| held.deadline).min()
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.count < MAX_PACKETS && self.bytes + bytes <= MAX_BYTES
    }

    fn push(&mut self, group: GroupId, held: Held) {
        self.count += 1;
        self.bytes += held.bytes.len();
        self.queues.entry(group).or_default().push_back(held);
    }

    /// The last packet that began to wait in `group` is the first fragment of a datagram.
    fn note_fragment(&mut self, group: GroupId, first: FirstFragment) {
        let queue = self.queues.get_mut(&group);
        if let Some(held) = queue.and_then(VecDeque::back_mut) {
            held.fragment = Some(first);
        }
    }

    /// The first packet of any group that fulfils a condition.
    fn pop_if(&mut self, mut condition: impl FnMut(GroupId, &Held) -> bool) -> Option<Held> {
        let mut first = self.queues.iter_mut();
        let (_, queue) = first
            .find(|(group, queue)| queue.front().is_some_and(|held| condition(**group, held)))?;
        let held = queue.pop_front()?;
        self.count -= 1;
        self.bytes -= held.bytes.len();
        Some(held)
    }

    /// The first packet of any group that no longer has to wait for copies: `wanted` peers hold its
    /// session, or refuse it, or are gone.
    fn pop_settled(
        &mut self,
        sync: &Replicator,
        journal: &Journal,
        wanted: u32,
    ) -> Option<(Held, Copies)> {
        let mut copies = Copies::Awaited;
        let held = self.pop_if(|group, held| {
            copies = sync.copies(journal, (held.id, group), held.seq, wanted);
            copies != Copies::Awaited
        })?;
        Some((held, copies))
    }
}

impl Gateway {
    /// Forwards the first packet of a session, or lets it wait.
    pub(super) fn send_first(&mut self, packet: &mut Packet<'_>, id: SessionId) -> Verdict {
        let policy = self.sessions.get(id).map(|session| session.policy);
        let mode = self.guarantee_of(policy.unwrap_or(PolicyId::NONE));
        if mode == PickupGuarantee::Off {
            return self.send_in_session(packet, id, Direction::Original);
        }
        let (seq, group) = match self.copies_of(id) {
            Some((seq, group, Copies::Awaited)) => (seq, group),
            Some((_, _, Copies::Refused)) => {
                self.counters.guarantee_refused += 1;
                return self.give_up(packet, id, mode == PickupGuarantee::Strict);
            }
            Some((_, _, Copies::Held)) => {
                return self.send_in_session(packet, id, Direction::Original);
            }
            Some((_, _, Copies::NoPeer)) | None => {
                self.counters.guarantee_degraded += 1;
                return self.send_in_session(packet, id, Direction::Original);
            }
        };
        let strict = mode == PickupGuarantee::Strict;
        let len = packet.bytes.len();
        let room = self.cluster().is_some_and(|it| it.waiting.has_room(len));
        if !room {
            return self.give_up(packet, id, strict);
        }
        let verdict = self.send_in_session(packet, id, Direction::Original);
        if verdict != Verdict::Forward {
            return verdict;
        }
        packet::complete_checksum(packet.bytes, &packet.parsed, packet.offload);
        self.sessions.edit(id, |session, _| {
            session.flags.set(SessionFlags::WAITING);
        });
        let wait = self.guarantee_wait();
        let port = self.exit();
        let (deadline, bytes) = (packet.now + wait, packet.bytes.to_vec());
        let key = packet.parsed.key;
        let held = Held {
            id,
            key,
            seq,
            deadline,
            strict,
            port,
            bytes,
            fragment: None,
        };
        self.with_cluster(|cluster| cluster.waiting.push(group, held));
        self.counters.guarantee_held += 1;
        Verdict::Consumed
    }

    /// Sends packets of acknowledged sessions, and ends the wait for refused ones.
    pub(super) fn release_acknowledged(&mut self, now: Time) {
        let wanted = self.wanted_copies();
        while let Some((held, copies)) = self.pop_waiting(|cluster, journal| {
            cluster.waiting.pop_settled(&cluster.sync, journal, wanted)
        }) {
            match copies {
                Copies::Refused => {
                    self.counters.guarantee_refused += 1;
                    self.end_wait(now, held);
                }
                // The peers that it waited for are gone.
                Copies::NoPeer => {
                    self.counters.guarantee_degraded += 1;
                    self.release(now, held);
                }
                Copies::Awaited | Copies::Held => self.release(now, held),
            }
        }
    }

    /// Ends the wait of those whose time is over.
    pub(super) fn release_overdue(&mut self, now: Time) {
        while let Some(held) =
            self.pop_waiting(|cluster, _| cluster.waiting.pop_if(|_, held| held.deadline <= now))
        {
            self.counters.guarantee_expired += 1;
            self.end_wait(now, held);
        }
    }

    /// The session of a packet gets no copy: the packet leaves without one, or the session ends.
    fn end_wait(&mut self, now: Time, held: Held) {
        if !held.strict {
            self.release(now, held);
        } else if self.stop_waiting(&held) {
            self.count_drop(DropReason::NotReplicated);
            self.end_session(now, held.id, "not-replicated");
        }
    }

    /// Drops the waiting packets of a group that this unit is no longer primary of: their senders
    /// repeat them, to the unit that is.
    pub(super) fn drop_waiting(&mut self, group: GroupId) {
        while let Some(held) =
            self.pop_waiting(|cluster, _| cluster.waiting.pop_if(|its, _| its == group))
        {
            if self.stop_waiting(&held) {
                self.count_drop(DropReason::NotPrimary);
            }
        }
    }

    /// The packet that has just begun to wait is the first fragment of a datagram.
    pub(super) fn wait_with_fragments(&mut self, key: &FlowKey, first: FirstFragment) {
        let session = self.sessions.lookup(key);
        let group = session.and_then(|(id, _)| Some(self.sessions.get(id)?.group));
        if let Some(group) = group {
            self.with_cluster(|cluster| cluster.waiting.note_fragment(group, first));
        }
    }

    fn pop_waiting<H>(
        &mut self,
        pop: impl FnOnce(&mut Cluster, &Journal) -> Option<H>,
    ) -> Option<H> {
        pop(self.cluster.as_deref_mut()?, self.sessions.journal())
    }

    /// Ends the wait of a session; returns whether it still exists. Its packet must not leave
    /// without it.
    fn stop_waiting(&mut self, held: &Held) -> bool {
        let stopped = self.sessions.edit(held.id, |session, around| {
            let is_it = session.key(Direction::Original, around.book) == held.key;
            if is_it {
                session.flags.clear(SessionFlags::WAITING);
            }
            is_it
        });
        stopped == Some(true)
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
            offload: Offload::default(),
        });
        if let Some(first) = held.fragment {
            self.release_fragments(now, first);
        }
    }

    fn give_up(&mut self, packet: &mut Packet<'_>, id: SessionId, strict: bool) -> Verdict {
        self.counters.guarantee_expired += 1;
        if strict {
            self.end_session(packet.now, id, "not-replicated");
            return Verdict::Drop(DropReason::NotReplicated);
        }
        self.send_in_session(packet, id, Direction::Original)
    }

    /// The last change of a session, its group, and the state of its copies; none if it is not
    /// replicated.
    pub(super) fn copies_of(&self, id: SessionId) -> Option<(Seq, GroupId, Copies)> {
        let sync = self.cluster()?.sync();
        let group = self.sessions.get(id)?.group;
        let journal = self.sessions.journal();
        let seq = journal.seq_of(id)?;
        let copies = sync.copies(journal, (id, group), seq, self.wanted_copies());
        Some((seq, group, copies))
    }

    fn wanted_copies(&self) -> u32 {
        let ha = self.rules.ha();
        ha.map_or(1, |ha| ha.pickup_guarantee_copies)
    }

    /// The pickup guarantee for sessions of a policy.
    pub(super) fn guarantee_of(&self, policy: PolicyId) -> PickupGuarantee {
        let Some(ha) = self.rules.ha() else {
            return PickupGuarantee::Off;
        };
        self.policy(policy)
            .and_then(|policy| policy.pickup_guarantee)
            .unwrap_or(ha.pickup_guarantee)
    }
}
