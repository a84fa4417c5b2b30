//! Where sessions are kept: a slab, an index of both directions, and a deadline for each.

use std::hint::black_box;

use super::holders::Holders;
use super::sweep::Sweep;
use super::{
    AddressBook, Index, KeyedHash, Session, SessionFlags, SessionState, StateCounts, Timeouts,
};
use crate::flow::{Direction, FlowKey, MAX_GROUPS, Protocol};
use crate::memory::Reserved;
use crate::time::Tick;

/// The number of a slot of the [`Table`].
///
/// Slots are reused, so an old id may lead to nothing or to another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u32);

/// Why a session could not be inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// Packets of one of its directions already belong to this session.
    Conflict(SessionId),
    /// The table is full: see [`Table::make_room`].
    Full,
}

/// Why there is no room for a session of a source, and no other session has to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// The table is full, and no source has so many more sessions than this one that it must give
    /// way.
    Full,
    /// The source has reached its limit of sessions, and all are in use.
    SourceLimit,
    /// The hosts of its /64 have too many half-open sessions.
    HalfOpenLimit,
}

/// The number of sessions, by protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// TCP.
    pub tcp: u32,
    /// UDP.
    pub udp: u32,
    /// ICMP of both families.
    pub icmp: u32,
    /// All others.
    pub other: u32,
}

/// All sessions of a gateway, at most as many as it was made for.
///
/// No operation allocates, rehashes or copies anything else; memory is reserved at the start and
/// touched as the table grows.
#[derive(Debug)]
pub struct Table {
    pub(super) slots: Vec<Slot>,
    /// Parallel to `slots`: when the sweep must look at a session, at the latest at its deadline;
    /// [`Tick::NEVER`] for a free slot. Apart, because the sweep reads nothing else.
    pub(super) check_at: Vec<Tick>,
    pub(super) timeouts: Timeouts,
    pub(super) sweep: Sweep,
    /// Quiet connections that were found and not fetched yet; none if nobody asks for them.
    pub(super) quiet: Option<Vec<SessionId>>,
    /// No session of a group counts as last seen before this.
    pub(super) renewed: [Tick; MAX_GROUPS],
    index: Index,
    hash: KeyedHash,
    first_free: u32,
    capacity: u32,
    counts: SessionCounts,
    states: StateCounts,
    pub(super) recent: Recent,
    pub(super) holders: Holders,
}

#[derive(Debug)]
pub(super) enum Slot {
    Used(Session),
    /// The next free slot, or [`NO_SLOT`].
    Free(u32),
}

/// The hash and key of each direction.
type Entries = [Option<(u32, FlowKey, Direction)>; 2];

const NO_SLOT: u32 = u32::MAX;
const _: () = assert!(size_of::<Slot>() == size_of::<Session>());

impl Table {
    /// An empty table for up to `max_sessions` sessions (at most 2^31 - 1), with a random key.
    pub fn new(
        max_sessions: u32,
        hash_key: &[u8; 16],
        timeouts: Timeouts,
        half_open_per_source: u32,
    ) -> Table {
        let capacity = max_sessions.min(i32::MAX as u32);
        let hash = KeyedHash::new(hash_key);
        Table {
            slots: Vec::with_capacity(capacity as usize),
            check_at: Vec::with_capacity(capacity as usize),
            timeouts,
            sweep: Sweep::default(),
            quiet: None,
            renewed: [Tick(0); MAX_GROUPS],
            index: Index::new(2 * capacity as usize),
            hash,
            first_free: NO_SLOT,
            capacity,
            counts: SessionCounts::default(),
            states: StateCounts::default(),
            recent: Recent::default(),
            holders: Holders::new(capacity, hash, half_open_per_source),
        }
    }

    /// The memory that it has reserved: bytes by the dozen for each session that it may hold.
    pub fn reserved(&self) -> [Reserved; 4] {
        [
            Reserved::of_list(&self.slots),
            Reserved::of_list(&self.check_at),
            self.index.reserved(),
            self.holders.reserved(),
        ]
    }

    /// How many sessions there ever were at once.
    pub fn most_sessions(&self) -> usize {
        self.slots.len()
    }

    /// The session that a packet with `key` belongs to, and the packet's direction in it.
    #[inline]
    pub fn lookup(&self, key: &FlowKey, book: &AddressBook) -> Option<(SessionId, Direction)> {
        self.find(self.hash.flow(key), key, book)
    }

    /// The hash of `key`, for [`Table::touch_index`] and [`Table::touch_session`].
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u32 {
        self.hash.flow(key)
    }

    /// Prefetches the part of the index that a lookup of `hash` reads: see [`Index::touch`].
    #[inline]
    pub fn touch_index(&self, hash: u32) {
        self.index.touch(hash);
    }

    /// Prefetches the session that a lookup of `hash` finds; returns whether there may be one.
    #[inline]
    pub fn touch_session(&self, hash: u32) -> bool {
        let session = self
            .index
            .find(hash, |_| true)
            .and_then(|payload| self.get(parts(payload).0));
        // One field of each of its cache lines.
        black_box(session.map(|session| (session.packets[0], session.protocol)));
        session.is_some()
    }

    /// Whether packets with `key` belong to a session.
    pub fn contains_key(&self, key: &FlowKey, book: &AddressBook) -> bool {
        self.lookup(key, book).is_some()
    }

    /// Adds a session, if neither of its keys is taken.
    ///
    /// One marked [`SessionFlags::HALF_OPEN`] counts against the limit of its source until it is
    /// settled or removed.
    ///
    /// # Errors
    ///
    /// [`InsertError`], with the table unchanged.
    pub fn insert(
        &mut self,
        session: Session,
        book: &AddressBook,
    ) -> Result<SessionId, InsertError> {
        let keys = self.entries(&session, book);
        if let Some(other) = self.conflict(&keys, book) {
            return Err(InsertError::Conflict(other));
        }
        if self.is_full() {
            return Err(InsertError::Full);
        }
        *self.count(session.protocol) += 1;
        self.states.add(SessionState::of(&session));
        let id = self.occupy(session);
        if let Some(Slot::Used(session)) = self.slots.get(id.0 as usize) {
            self.holders.add(id, session);
        }
        for (hash, _, direction) in keys.iter().flatten() {
            let inserted = self.index.insert(*hash, payload(id, *direction));
            debug_assert!(inserted, "the index has room for two entries a slot");
        }
        self.recent.push(id);
        Ok(id)
    }

    /// Whether [`Table::insert`] would take the session, given a free place.
    ///
    /// # Errors
    ///
    /// [`InsertError`], but for [`InsertError::Full`].
    pub fn check_insert(&self, session: &Session, book: &AddressBook) -> Result<(), InsertError> {
        if let Some(other) = self.conflict(&self.entries(session, book), book) {
            return Err(InsertError::Conflict(other));
        }
        Ok(())
    }

    /// Ends a session.
    pub fn remove(&mut self, id: SessionId, book: &AddressBook) -> Option<Session> {
        let keys = self.entries(self.get(id)?, book);
        for (hash, _, direction) in keys.iter().flatten() {
            let removed = self.index.remove(*hash, payload(id, *direction));
            debug_assert!(removed, "the keys of a session must not change");
        }
        let slot = self.slots.get_mut(id.0 as usize)?;
        let Slot::Used(session) = std::mem::replace(slot, Slot::Free(self.first_free)) else {
            return None;
        };
        self.first_free = id.0;
        self.check_at[id.0 as usize] = Tick::NEVER;
        *self.count(session.protocol) -= 1;
        self.states.subtract(SessionState::of(&session));
        self.holders.remove(id, &session);
        Some(session)
    }

    /// The session with this id.
    #[inline]
    pub fn get(&self, id: SessionId) -> Option<&Session> {
        match self.slots.get(id.0 as usize) {
            Some(Slot::Used(session)) => Some(session),
            _ => None,
        }
    }

    /// The session with this id, to be changed.
    ///
    /// For the [store](crate::store) and the translator, which keep everything else in step: call
    /// [`Table::moved`] after a change of its [`SessionState`].
    #[inline]
    pub(crate) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        match self.slots.get_mut(id.0 as usize) {
            Some(Slot::Used(session)) => Some(session),
            _ => None,
        }
    }

    /// Call it when the state of a session may have changed from `before`.
    #[inline]
    pub(crate) fn moved(&mut self, id: SessionId, before: SessionState) {
        if let Some(session) = self.get(id) {
            let after = SessionState::of(session);
            self.states.subtract(before);
            self.states.add(after);
        }
        self.reschedule(id);
    }

    /// Stops counting a session among the half-open ones of its source, if it is one of them: call
    /// it when it is replied to (TCP: established).
    pub(crate) fn settle(&mut self, id: SessionId) {
        if let Some(Slot::Used(session)) = self.slots.get_mut(id.0 as usize)
            && session.flags.contains(SessionFlags::HALF_OPEN)
        {
            self.holders.settle(id, session);
            session.flags.clear(SessionFlags::HALF_OPEN);
        }
    }

    /// Whether it holds as many sessions as it can.
    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// The number of sessions.
    pub fn len(&self) -> u32 {
        let SessionCounts {
            tcp,
            udp,
            icmp,
            other,
        } = self.counts;
        tcp + udp + icmp + other
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many sessions the table can hold.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The number of sessions, by protocol.
    pub fn counts(&self) -> SessionCounts {
        self.counts
    }

    /// The number of sessions, by state.
    pub fn states(&self) -> &StateCounts {
        &self.states
    }

    /// The sessions in the `slots` slots from `cursor` on, and the cursor for the next call; none
    /// after the last. A session is seen once if it stays from the first call to the last.
    pub fn page(
        &self,
        cursor: u32,
        slots: u32,
    ) -> (impl Iterator<Item = (SessionId, &Session)>, Option<u32>) {
        let size = self.slots.len() as u32;
        let start = cursor.min(size);
        let end = start.saturating_add(slots.max(1)).min(size);
        // The deadlines show the free slots without a cache miss each.
        let used = (start..end).filter(|&i| self.check_at[i as usize] != Tick::NEVER);
        let sessions = used.filter_map(|i| Some((SessionId(i), self.get(SessionId(i))?)));
        (sessions, (end < size).then_some(end))
    }

    /// All sessions, in the order of their ids. Not for the forwarding path: see [`Table::page`].
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.page(0, u32::MAX).0
    }

    /// Panics if the parts of the table contradict each other. Reads all of it.
    pub fn check_invariants(&self, book: &AddressBook) {
        self.index.check_invariants();
        assert_eq!(self.slots.len(), self.check_at.len());
        assert!(self.slots.len() <= self.capacity as usize);
        let mut counts = SessionCounts::default();
        let mut states = StateCounts::default();
        let mut entries = 0;
        for (id, session) in self.iter() {
            for (_, key, direction) in self.entries(session, book).iter().flatten() {
                assert_eq!(self.lookup(key, book), Some((id, *direction)), "{key}");
                entries += 1;
            }
            *count_of(&mut counts, session.protocol) += 1;
            states.add(SessionState::of(session));
            let deadline = self.deadline_of(session);
            let due = self.check_at[id.0 as usize] <= deadline || self.sweep.is_rechecking();
            assert!(due, "{id:?} would outlive its deadline");
        }
        assert_eq!(entries, self.index.len());
        assert_eq!(counts, self.counts);
        assert_eq!(states, self.states, "a change of state that was not told");
        self.holders.check_invariants(self.iter());
        let mut free = 0;
        let mut next = self.first_free;
        while next != NO_SLOT {
            let Slot::Free(after) = self.slots[next as usize] else {
                panic!("slot {next} is used and on the free list");
            };
            assert_eq!(self.check_at[next as usize], Tick::NEVER);
            free += 1;
            next = after;
        }
        assert_eq!(free + self.len() as usize, self.slots.len());
    }

    /// The hash and key of each direction; only one if both keys are equal, as for a flow between
    /// two equal endpoints.
    fn entries(&self, session: &Session, book: &AddressBook) -> Entries {
        let original = session.key(Direction::Original, book);
        let reply = session.key(Direction::Reply, book);
        let entry = |key: FlowKey, direction| (self.hash.flow(&key), key, direction);
        [
            Some(entry(original, Direction::Original)),
            (reply != original).then(|| entry(reply, Direction::Reply)),
        ]
    }

    /// The session that packets of one of these directions already belong to.
    #[inline]
    fn conflict(&self, keys: &Entries, book: &AddressBook) -> Option<SessionId> {
        let mut keys = keys.iter().flatten();
        let found = keys.find_map(|(hash, key, _)| self.find(*hash, key, book));
        found.map(|(id, _)| id)
    }

    #[inline]
    fn find(&self, hash: u32, key: &FlowKey, book: &AddressBook) -> Option<(SessionId, Direction)> {
        let found = self.index.find(hash, |payload| {
            let (id, direction) = parts(payload);
            self.get(id)
                .is_some_and(|session| session.key(direction, book) == *key)
        })?;
        Some(parts(found))
    }

    /// Puts a session into a free slot; the caller has checked that there is one.
    fn occupy(&mut self, session: Session) -> SessionId {
        let check_at = self.deadline_of(&session);
        let reused = match self.slots.get(self.first_free as usize) {
            Some(Slot::Free(next)) => Some((self.first_free, *next)),
            _ => None,
        };
        if let Some((id, next)) = reused {
            self.first_free = next;
            self.slots[id as usize] = Slot::Used(session);
            self.check_at[id as usize] = check_at;
            return SessionId(id);
        }
        let id = self.slots.len() as u32;
        self.slots.push(Slot::Used(session));
        self.check_at.push(check_at);
        self.sweep.grown();
        SessionId(id)
    }

    fn count(&mut self, protocol: Protocol) -> &mut u32 {
        count_of(&mut self.counts, protocol)
    }
}

fn count_of(counts: &mut SessionCounts, protocol: Protocol) -> &mut u32 {
    match protocol {
        Protocol::TCP => &mut counts.tcp,
        Protocol::UDP => &mut counts.udp,
        Protocol::ICMP => &mut counts.icmp,
        _ => &mut counts.other,
    }
}

/// An entry of the index: 31 bits of id, one of direction.
#[inline]
fn payload(id: SessionId, direction: Direction) -> u32 {
    id.0 << 1 | direction as u32
}

#[inline]
fn parts(payload: u32) -> (SessionId, Direction) {
    let direction = match payload & 1 {
        0 => Direction::Original,
        _ => Direction::Reply,
    };
    (SessionId(payload >> 1), direction)
}

/// The sessions opened last, oldest first: a flood of unanswered ones is found here.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// A ring, grown to its full size by the first sessions.
    ids: Vec<u32>,
    oldest: usize,
    len: usize,
}

impl Recent {
    const SIZE: usize = 65_536;
    pub(super) const POPS: usize = 64;

    pub(super) fn push(&mut self, id: SessionId) {
        if self.ids.is_empty() {
            self.ids = vec![0; Self::SIZE];
        }
        self.ids[(self.oldest + self.len) % Self::SIZE] = id.0;
        if self.len < Self::SIZE {
            self.len += 1;
        } else {
            self.oldest = (self.oldest + 1) % Self::SIZE;
        }
    }

    pub(super) fn oldest_first(&self) -> impl Iterator<Item = SessionId> {
        let places = (0..self.len).map(|at| (self.oldest + at) % Self::SIZE);
        places.map(|place| SessionId(self.ids[place]))
    }

    pub(super) fn pop(&mut self) -> Option<SessionId> {
        self.len = self.len.checked_sub(1)?;
        let id = self.ids[self.oldest];
        self.oldest = (self.oldest + 1) % Self::SIZE;
        Some(SessionId(id))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config;
    use crate::flow::Addr;
    use crate::session::TranslatedAddr;

    fn timeouts() -> Timeouts {
        Timeouts::from(&config::Timeouts {
            tcp_established: Duration::from_secs(7440),
            tcp_transitory: Duration::from_secs(240),
            tcp_syn: Duration::from_secs(30),
            tcp_time_wait: Duration::from_secs(120),
            tcp_reset: Duration::from_secs(10),
            udp: Duration::from_secs(300),
            udp_unreplied: Duration::from_secs(120),
            icmp: Duration::from_secs(60),
            other: Duration::from_secs(600),
        })
    }

    fn table(capacity: u32, half_open: u32) -> Table {
        Table::new(capacity, &[3; 16], timeouts(), half_open)
    }

    fn key(src: u8, dst: u8, src_port: u16, dst_port: u16) -> FlowKey {
        FlowKey {
            src: Addr::v4([10, 0, 0, src]),
            dst: Addr::v4([10, 0, 0, dst]),
            src_port,
            dst_port,
            protocol: Protocol::UDP,
        }
    }

    fn session(key: FlowKey) -> Session {
        Session::new(&key, Tick(0))
    }

    #[test]
    fn both_directions_of_a_translated_session_are_found() {
        let mut book = AddressBook::new();
        let vip = Addr::v4([192, 0, 2, 1]);
        let mut table = table(8, 0);
        let mut nat = session(key(1, 2, 1000, 53));
        nat.nat_src = book.intern(vip).unwrap();
        nat.nat_src_port = 40_000;
        let id = table.insert(nat.clone(), &book).unwrap();
        let reply = FlowKey {
            src: nat.dst,
            dst: vip,
            src_port: 53,
            dst_port: 40_000,
            ..key(0, 0, 0, 0)
        };
        assert_eq!(
            table.lookup(&key(1, 2, 1000, 53), &book),
            Some((id, Direction::Original))
        );
        assert_eq!(table.lookup(&reply, &book), Some((id, Direction::Reply)));
        assert_eq!(nat.translated(Direction::Original, &book), reply.reply());
        assert_eq!(nat.translated(Direction::Reply, &book), key(2, 1, 53, 1000));
        assert!(!table.contains_key(&key(2, 1, 53, 1000), &book));
        // Another host, the same translated tuple.
        let mut other = Session {
            src: Addr::v4([10, 0, 0, 9]),
            ..nat.clone()
        };
        assert_eq!(
            table.insert(other.clone(), &book),
            Err(InsertError::Conflict(id))
        );
        other.nat_src_port = 40_001;
        assert!(table.insert(other, &book).is_ok());
        table.check_invariants(&book);
        assert_eq!(table.remove(id, &book), Some(nat));
        assert_eq!(table.remove(id, &book), None);
        assert_eq!(
            (table.get(id), table.get(SessionId(u32::MAX))),
            (None, None)
        );
        assert_eq!(
            table.counts(),
            SessionCounts {
                udp: 1,
                ..SessionCounts::default()
            }
        );
        table.check_invariants(&book);
    }

    #[test]
    fn early_drop_takes_the_oldest_without_an_answer() {
        let book = AddressBook::new();
        let mut table = table(100, 0);
        let ids: Vec<_> = (0..100)
            .map(|port| table.insert(session(key(1, 2, port, 53)), &book).unwrap())
            .collect();
        assert_eq!(
            table.insert(session(key(1, 2, 999, 53)), &book),
            Err(InsertError::Full)
        );
        for id in &ids[..70] {
            let before = SessionState::of(table.get(*id).unwrap());
            table.get_mut(*id).unwrap().flags.set(SessionFlags::REPLIED);
            table.moved(*id, before);
        }
        table.check_invariants(&book);
        let source = key(1, 2, 999, 53).src;
        // 64 with an answer are passed, then six more.
        assert!(
            table
                .make_room(&source, table.source_limits(), |_| true)
                .is_err()
        );
        assert_eq!(
            table.make_room(&source, table.source_limits(), |_| true),
            Ok(Some(ids[70]))
        );
        table.remove(ids[70], &book);
        assert!(table.insert(session(key(1, 2, 999, 53)), &book).is_ok());
        assert_eq!(
            table.make_room(&source, table.source_limits(), |_| true),
            Ok(Some(ids[71]))
        );
    }

    #[test]
    fn pages_show_each_session_once() {
        let book = AddressBook::new();
        let mut table = table(100, 0);
        for port in 0..100 {
            table.insert(session(key(1, 2, port, 53)), &book).unwrap();
        }
        for id in (0..100).filter(|id| id % 3 > 0) {
            table.remove(SessionId(id), &book);
        }
        let (mut seen, mut next) = (Vec::new(), Some(0));
        while let Some(cursor) = next {
            let (page, after) = table.page(cursor, 7);
            let page: Vec<_> = page.map(|(id, _)| id.0).collect();
            assert!(page.len() <= 7);
            seen.extend(page);
            next = after;
        }
        assert_eq!(seen, (0..100).step_by(3).collect::<Vec<_>>());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u8, u8, u16, u16, Option<u16>),
        Remove(u8),
        Lookup(u8, u8, u16, u16),
    }

    /// From so few endpoints that keys collide, also those of a session with itself.
    fn op() -> impl Strategy<Value = Op> {
        let end = || (0..3u8, 0..3u8, 0..3u16, 0..3u16);
        prop_oneof![
            3 => (end(), proptest::option::of(0..3u16))
                .prop_map(|((a, b, p, q), nat)| Op::Insert(a, b, p, q, nat)),
            1 => any::<u8>().prop_map(Op::Remove),
            2 => end().prop_map(|(a, b, p, q)| Op::Lookup(a, b, p, q)),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_of_keys(ops in proptest::collection::vec(op(), 1..150)) {
            let mut book = AddressBook::new();
            let vip = book.intern(Addr::v4([10, 0, 0, 1])).unwrap();
            let mut table = table(12, 0);
            let mut model: HashMap<FlowKey, SessionId> = HashMap::new();
            let mut live: Vec<SessionId> = Vec::new();
            for op in ops {
                match op {
                    Op::Insert(a, b, p, q, nat) => {
                        let mut session = session(key(a, b, p, q));
                        if let Some(port) = nat {
                            (session.nat_src, session.nat_src_port) = (vip, port);
                        }
                        let keys = [Direction::Original, Direction::Reply].map(|d| session.key(d, &book));
                        let taken = keys.iter().find_map(|key| model.get(key));
                        let result = table.insert(session, &book);
                        match taken {
                            Some(&other) => prop_assert_eq!(result, Err(InsertError::Conflict(other))),
                            None if live.len() == 12 => prop_assert_eq!(result, Err(InsertError::Full)),
                            None => {
                                let id = result.unwrap();
                                prop_assert!(!live.contains(&id));
                                live.push(id);
                                model.extend(keys.map(|key| (key, id)));
                            }
                        }
                    }
                    Op::Remove(n) if !live.is_empty() => {
                        let id = live.swap_remove(usize::from(n) % live.len());
                        prop_assert!(table.remove(id, &book).is_some());
                        model.retain(|_, other| *other != id);
                    }
                    Op::Remove(_) => {}
                    Op::Lookup(a, b, p, q) => {
                        let key = key(a, b, p, q);
                        let found = table.lookup(&key, &book);
                        prop_assert_eq!(found.map(|f| f.0), model.get(&key).copied());
                        if let Some((id, direction)) = found {
                            prop_assert_eq!(table.get(id).unwrap().key(direction, &book), key);
                        }
                    }
                }
                prop_assert_eq!(table.len() as usize, live.len());
                table.check_invariants(&book);
            }
        }
    }

    #[test]
    fn an_unused_translated_address_means_the_original() {
        assert_eq!(session(key(1, 2, 3, 4)).nat_src, TranslatedAddr::SAME);
    }
}
