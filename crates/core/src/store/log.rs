//! The order in which sessions changed: one list for all peers.

use std::collections::VecDeque;

use crate::flow::{FlowKey, GroupId, MAX_PEERS};
use crate::memory::Reserved;
use crate::session::SessionId;

/// The number of a change; every change has a higher one than those before. 0 is before the first.
pub type Seq = u64;

/// Every replicated session once, in the order of its last change, and the removed ones.
///
/// A reader's position is an element of the list like the sessions, so that nothing must be
/// adjusted when a session moves or ends: each operation is O(1) whatever the number of readers.
/// The log holds no state of sessions; a reader takes the state that a session has when its turn
/// comes. So the backlog of the slowest reader is the number of sessions at most.
#[derive(Debug)]
pub struct ChangeLog {
    /// The end of the ring, the readers, then by [`SessionId`].
    nodes: Vec<Node>,
    readers: Vec<Reader>,
    last: Seq,
    live: u32,
    tombstones: VecDeque<Tombstone>,
    /// The number of tombstones that were ever dropped from the front.
    dropped: u64,
    /// The newest change whose tombstone was dropped.
    purged: Seq,
    max_tombstones: usize,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    prev: u32,
    next: u32,
    /// The number of the change, twice, plus one if a peer may know of the session; zero if the
    /// node is in no list. Readers have none.
    stamp: u64,
}

const _: () = assert!(size_of::<Node>() == 16);

#[derive(Clone, Copy, Debug, Default)]
struct Reader {
    /// The change read last.
    read: Seq,
    /// The next tombstone, counted from the first one ever.
    tombstone: u64,
}

/// A session that was removed after a peer may have got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The change of its removal: a reader that has read this far knows of it.
    pub seq: Seq,
    /// The key of its original direction.
    pub key: FlowKey,
    /// The group that it belonged to, whose primary sends the tombstone.
    pub group: GroupId,
}

/// An entry that a reader comes upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A session that was added or changed.
    Session(SessionId),
    /// One that was removed.
    Removed(Tombstone),
}

/// The node that is both ends of the ring.
const END: u32 = 0;
const FIRST_SESSION: u32 = 1 + MAX_PEERS as u32;
const NOWHERE: Node = Node {
    prev: END,
    next: END,
    stamp: 0,
};

impl ChangeLog {
    /// An empty log for a table of `max_sessions`, with `readers` (at most [`MAX_PEERS`]) readers
    /// at its end.
    pub fn new(max_sessions: u32, readers: usize) -> ChangeLog {
        let readers = readers.min(MAX_PEERS);
        let mut nodes = Vec::with_capacity(FIRST_SESSION as usize + max_sessions as usize);
        nodes.resize(FIRST_SESSION as usize, NOWHERE);
        let mut log = ChangeLog {
            nodes,
            readers: vec![Reader::default(); readers],
            last: 0,
            live: 0,
            tombstones: VecDeque::new(),
            dropped: 0,
            purged: 0,
            max_tombstones: (max_sessions as usize / 4).max(1024),
        };
        (0..readers).for_each(|reader| log.link_last(node_of_reader(reader)));
        log
    }

    /// The memory of the log.
    pub fn reserved(&self) -> Reserved {
        Reserved::of_list(&self.nodes)
    }

    /// Notes that a session was added or has changed. `shared`: a peer may know of it.
    #[inline]
    pub(super) fn touch(&mut self, id: SessionId, shared: bool) -> Seq {
        let node = FIRST_SESSION as usize + id.0 as usize;
        if node >= self.nodes.len() {
            self.nodes.resize(node + 1, NOWHERE);
        }
        let before = self.nodes[node].stamp;
        if before == 0 {
            self.live += 1;
        } else {
            self.unlink(node as u32);
        }
        self.link_last(node as u32);
        self.last += 1;
        self.nodes[node].stamp = self.last << 1 | before & 1 | u64::from(shared);
        self.last
    }

    /// Notes that a session has gone. With `tombstone`, if a peer may know of it, readers learn of
    /// its end. Does nothing if the log does not have it.
    #[inline]
    pub(super) fn remove(&mut self, id: SessionId, tombstone: Option<(FlowKey, GroupId)>) {
        let node = FIRST_SESSION.saturating_add(id.0);
        let Some(&Node { stamp, .. }) = self.nodes.get(node as usize) else {
            return;
        };
        if stamp == 0 {
            return;
        }
        self.unlink(node);
        self.nodes[node as usize] = NOWHERE;
        self.live -= 1;
        if let (Some((key, group)), 1) = (tombstone, stamp & 1) {
            self.leave_tombstone(key, group);
        }
    }

    /// Notes that the peers' knowledge of an existing session is void, so that they forget it
    /// before they get its next state.
    pub(super) fn restart(&mut self, id: SessionId, key: FlowKey, group: GroupId) {
        if self.is_shared(id) {
            self.leave_tombstone(key, group);
        }
    }

    fn leave_tombstone(&mut self, key: FlowKey, group: GroupId) {
        self.last += 1;
        if self.tombstones.len() == self.max_tombstones {
            self.drop_oldest_tombstone();
        }
        self.tombstones.push_back(Tombstone {
            seq: self.last,
            key,
            group,
        });
    }

    /// The next entry after those that the reader has read, if there is one up to its end.
    #[inline]
    pub fn read(&mut self, reader: usize) -> Option<Entry> {
        let place = node_of_reader(reader);
        let next = self.next_session(place);
        let tombstone = self.next_tombstone(reader);
        let stamp = self.nodes[next as usize].stamp;
        match tombstone {
            Some(tombstone) if next == END || tombstone.seq < stamp >> 1 => {
                let index = self.readers[reader].tombstone.max(self.dropped) + 1;
                self.readers[reader] = Reader {
                    read: tombstone.seq,
                    tombstone: index,
                };
                Some(Entry::Removed(tombstone))
            }
            _ if next == END => {
                self.readers[reader].read = self.last;
                None
            }
            _ => {
                self.unlink(place);
                self.link_after(place, next);
                self.readers[reader].read = stamp >> 1;
                Some(Entry::Session(SessionId(next - FIRST_SESSION)))
            }
        }
    }

    /// Notes that a peer may know of a session from now on.
    #[inline]
    pub fn mark_shared(&mut self, id: SessionId) {
        if let Some(node) = self.node_mut(id) {
            node.stamp |= u64::from(node.stamp != 0);
        }
    }

    /// Adds a reader at the end; none beyond [`MAX_PEERS`].
    pub(super) fn add_reader(&mut self) {
        if self.readers.len() < MAX_PEERS {
            let reader = self.readers.len();
            self.readers.push(Reader::default());
            self.link_last(node_of_reader(reader));
            self.skip_to_end(reader);
        }
    }

    /// Moves a reader to the end.
    pub fn skip_to_end(&mut self, reader: usize) {
        let place = node_of_reader(reader);
        self.unlink(place);
        self.link_last(place);
        let tombstone = self.dropped + self.tombstones.len() as u64;
        self.readers[reader] = Reader {
            read: self.last,
            tombstone,
        };
    }

    /// Moves a reader back to `seq`, the last change that it has read. Returns false, with the
    /// reader where it was, if that is too long ago, or never was.
    pub fn rewind(&mut self, reader: usize, seq: Seq) -> bool {
        if seq < self.purged || seq > self.readers[reader].read {
            return false;
        }
        let place = node_of_reader(reader);
        let mut before = self.nodes[place as usize].prev;
        for _ in 0..Self::MOST_REWOUND {
            if before == END || self.is_session_up_to(before, seq) {
                self.unlink(place);
                self.link_after(place, before);
                let older = self.tombstones.partition_point(|t| t.seq <= seq) as u64;
                self.readers[reader] = Reader {
                    read: seq,
                    tombstone: self.dropped + older,
                };
                return true;
            }
            before = self.nodes[before as usize].prev;
        }
        false
    }

    /// Sessions passed by [`ChangeLog::rewind`] at most: as many as can be in flight, with some
    /// reserve.
    const MOST_REWOUND: usize = 100_000;

    fn is_session_up_to(&self, node: u32, seq: Seq) -> bool {
        node >= FIRST_SESSION && self.nodes[node as usize].stamp >> 1 <= seq
    }

    /// Forgets the removals up to `seq`.
    pub(super) fn purge(&mut self, seq: Seq) {
        while self.tombstones.front().is_some_and(|t| t.seq <= seq) {
            self.drop_oldest_tombstone();
        }
        if self.tombstones.is_empty() {
            // So that the ring starts at the beginning of its memory again, and touches no further
            // part of it.
            self.tombstones.clear();
        }
    }

    /// The last change that there was.
    #[inline]
    pub fn last(&self) -> Seq {
        self.last
    }

    /// The last change that a reader has read.
    #[inline]
    pub fn read_up_to(&self, reader: usize) -> Seq {
        self.readers[reader].read
    }

    /// The last change of a session; none if it is not in the log.
    #[inline]
    pub fn seq_of(&self, id: SessionId) -> Option<Seq> {
        self.node(id)
            .map(|node| node.stamp >> 1)
            .filter(|&seq| seq != 0)
    }

    /// Whether a peer may know of a session.
    #[inline]
    pub fn is_shared(&self, id: SessionId) -> bool {
        self.node(id).is_some_and(|node| node.stamp & 1 != 0)
    }

    /// The number of sessions in the log.
    pub fn len(&self) -> u32 {
        self.live
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The number of removals that are remembered.
    pub fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    /// The sessions from the one changed last backwards, with their changes.
    pub fn newest_first(&self) -> impl Iterator<Item = (SessionId, Seq)> {
        let mut at = END;
        std::iter::from_fn(move || {
            loop {
                at = self.nodes[at as usize].prev;
                if at == END {
                    return None;
                }
                if at >= FIRST_SESSION {
                    let seq = self.nodes[at as usize].stamp >> 1;
                    return Some((SessionId(at - FIRST_SESSION), seq));
                }
            }
        })
    }

    /// Panics if the list contradicts itself. Reads all of it.
    pub fn check_invariants(&self) {
        let (mut at, mut seq, mut sessions, mut readers) = (END, 0, 0, 0);
        loop {
            let next = self.nodes[at as usize].next;
            assert_eq!(
                self.nodes[next as usize].prev, at,
                "links contradict each other"
            );
            at = next;
            if at == END {
                break;
            }
            let stamp = self.nodes[at as usize].stamp;
            if at < FIRST_SESSION {
                readers += 1;
                assert_eq!(stamp, 0);
                assert!(
                    self.readers[at as usize - 1].read >= seq,
                    "a reader is behind its place"
                );
                continue;
            }
            sessions += 1;
            assert!(stamp >> 1 > seq, "out of order");
            seq = stamp >> 1;
        }
        assert!(seq <= self.last);
        assert_eq!(sessions, self.live);
        assert_eq!(readers, self.readers.len());
        let listed = self.nodes[FIRST_SESSION as usize..]
            .iter()
            .filter(|n| n.stamp != 0);
        assert_eq!(listed.count(), sessions as usize);
        assert!(self.tombstones.iter().is_sorted_by(|a, b| a.seq < b.seq));
        assert!(self.tombstones.front().is_none_or(|t| t.seq > self.purged));
        assert!(self.tombstones.len() <= self.max_tombstones);
    }

    /// The first session after `place`, past other readers; [`END`] if there is none.
    #[inline]
    fn next_session(&self, place: u32) -> u32 {
        let mut next = self.nodes[place as usize].next;
        while next != END && next < FIRST_SESSION {
            next = self.nodes[next as usize].next;
        }
        next
    }

    #[inline]
    fn next_tombstone(&self, reader: usize) -> Option<Tombstone> {
        let index = self.readers[reader].tombstone.saturating_sub(self.dropped);
        self.tombstones.get(usize::try_from(index).ok()?).copied()
    }

    fn drop_oldest_tombstone(&mut self) {
        if let Some(oldest) = self.tombstones.pop_front() {
            self.dropped += 1;
            self.purged = oldest.seq;
        }
    }

    #[inline]
    fn node(&self, id: SessionId) -> Option<&Node> {
        self.nodes.get(FIRST_SESSION as usize + id.0 as usize)
    }

    #[inline]
    fn node_mut(&mut self, id: SessionId) -> Option<&mut Node> {
        self.nodes.get_mut(FIRST_SESSION as usize + id.0 as usize)
    }

    #[inline]
    fn unlink(&mut self, node: u32) {
        let Node { prev, next, .. } = self.nodes[node as usize];
        self.nodes[prev as usize].next = next;
        self.nodes[next as usize].prev = prev;
    }

    #[inline]
    fn link_last(&mut self, node: u32) {
        self.link_after(node, self.nodes[END as usize].prev);
    }

    #[inline]
    fn link_after(&mut self, node: u32, prev: u32) {
        let next = self.nodes[prev as usize].next;
        self.nodes[node as usize].prev = prev;
        self.nodes[node as usize].next = next;
        self.nodes[prev as usize].next = node;
        self.nodes[next as usize].prev = node;
    }
}

#[inline]
fn node_of_reader(reader: usize) -> u32 {
    1 + reader as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::flow::{Addr, Protocol};

    #[derive(Clone, Debug)]
    enum Op {
        Touch(u32),
        Remove(u32),
        Restart(u32),
        Read(usize, u8),
        Skip(usize),
        Rewind(usize, u64),
        Purge(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let id = 0..12_u32;
        let reader = 0..3_usize;
        prop_oneof![
            4 => id.clone().prop_map(Op::Touch),
            2 => id.clone().prop_map(Op::Remove),
            1 => id.prop_map(Op::Restart),
            4 => (reader.clone(), any::<u8>()).prop_map(|(r, n)| Op::Read(r, n % 8)),
            1 => reader.clone().prop_map(Op::Skip),
            1 => (reader, 0..30_u64).prop_map(|(r, back)| Op::Rewind(r, back)),
            1 => (0..30_u64).prop_map(Op::Purge),
        ]
    }

    fn key(id: u32) -> FlowKey {
        let addr = Addr::v4(id.to_be_bytes());
        FlowKey {
            src: addr,
            dst: addr,
            src_port: 0,
            dst_port: 0,
            protocol: Protocol::TCP,
        }
    }

    /// A reader's belief: session → version of its state. A model of a peer.
    type Belief = BTreeMap<u32, u64>;

    fn read(log: &mut ChangeLog, reader: usize, live: &Belief, belief: &mut Belief) -> bool {
        match log.read(reader) {
            None => return false,
            Some(Entry::Session(id)) => {
                log.mark_shared(id);
                belief.insert(id.0, live[&id.0]);
            }
            Some(Entry::Removed(tombstone)) => {
                belief.remove(&u32::from_be_bytes(tombstone.key.src.last4()));
            }
        }
        true
    }

    proptest! {
        /// A reader that has read to the end and missed nothing knows the exact state.
        #[test]
        fn readers_know_what_is(ops in prop::collection::vec(op(), 1..200)) {
            let mut log = ChangeLog::new(12, 3);
            let (mut live, mut version) = (Belief::new(), 0);
            // By reader: its belief, and whether it may have missed something.
            let mut readers = vec![(Belief::new(), false); 3];
            // The reader's belief after each change that it read.
            let mut history = vec![BTreeMap::from([(0, Belief::new())]); 3];
            for op in ops {
                version += 1;
                match op {
                    Op::Touch(id) => {
                        live.insert(id, version);
                        let before = log.last();
                        prop_assert_eq!(log.touch(SessionId(id), false), before + 1);
                        prop_assert_eq!(log.seq_of(SessionId(id)), Some(before + 1));
                    }
                    Op::Remove(id) => {
                        live.remove(&id);
                        log.remove(SessionId(id), Some((key(id), GroupId(0))));
                        prop_assert_eq!(log.seq_of(SessionId(id)), None);
                    }
                    Op::Restart(id) if live.contains_key(&id) => {
                        log.restart(SessionId(id), key(id), GroupId(0));
                        live.insert(id, version);
                        log.touch(SessionId(id), false);
                    }
                    Op::Read(reader, count) => {
                        for _ in 0..count {
                            let (belief, _) = &mut readers[reader];
                            read(&mut log, reader, &live, belief);
                            history[reader].insert(log.read_up_to(reader), belief.clone());
                        }
                    }
                    Op::Skip(reader) => {
                        log.skip_to_end(reader);
                        // In the form of the digest.
                        live.keys().for_each(|id| log.mark_shared(SessionId(*id)));
                        readers[reader] = (live.clone(), false);
                        history[reader] = BTreeMap::from([(log.last(), live.clone())]);
                    }
                    Op::Rewind(reader, back) => {
                        let seq = log.read_up_to(reader).saturating_sub(back);
                        let Some(belief) = history[reader].get(&seq).cloned() else { continue };
                        if log.rewind(reader, seq) {
                            prop_assert_eq!(log.read_up_to(reader), seq);
                            readers[reader].0 = belief;
                        } else {
                            prop_assert!(seq < log.purged);
                        }
                        history[reader].retain(|at, _| *at <= seq);
                    }
                    Op::Purge(back) => {
                        let seq = log.last().saturating_sub(back);
                        log.purge(seq);
                        for (reader, (_, missed)) in readers.iter_mut().enumerate() {
                            *missed |= log.read_up_to(reader) < log.purged;
                        }
                    }
                    Op::Restart(_) => {}
                }
                log.check_invariants();
            }
            for (reader, (belief, missed)) in readers.iter_mut().enumerate() {
                while read(&mut log, reader, &live, belief) {}
                prop_assert_eq!(log.read_up_to(reader), log.last());
                if *missed {
                    belief.retain(|id, _| live.contains_key(id));
                }
                prop_assert_eq!(&*belief, &live);
            }
            log.purge(log.last());
            prop_assert_eq!(log.tombstones(), 0);
            prop_assert_eq!(log.len() as usize, live.len());
            log.check_invariants();
        }
    }

    #[test]
    fn what_was_never_sent_leaves_nothing() {
        let mut log = ChangeLog::new(8, 1);
        log.touch(SessionId(1), false);
        log.remove(SessionId(1), Some((key(1), GroupId(0))));
        assert_eq!(log.tombstones(), 0);
        assert_eq!(log.read(0), None);
    }

    #[test]
    fn tombstones_are_bounded() {
        let mut log = ChangeLog::new(8, 1);
        for _ in 0..3000 {
            log.touch(SessionId(1), true);
            log.remove(SessionId(1), Some((key(1), GroupId(0))));
        }
        assert_eq!(log.tombstones(), 1024);
        assert!(!log.rewind(0, 0));
        log.check_invariants();
    }
}
