//! Tracking of IP fragments (RFC 791, section 3.2; RFC 8200, section 4.5).
//!
//! Only the first fragment of a datagram has ports, which the decision depends on. The gateway
//! decides once and stores the decision here for the fragments that follow; those that arrive
//! before the first are held for a short time. Nothing is reassembled: each fragment is translated
//! and forwarded by itself. A datagram with overlapping fragments is dropped as a whole (RFC 5722;
//! RFC 1858 and RFC 3128 for the attacks that this prevents).
//!
//! A first fragment must contain the whole transport header; the caller drops others before it asks
//! here.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::event::DropReason;
use crate::flow::{Addr, PortId, Protocol};
use crate::time::Time;

/// Fragments held per datagram: 24 KB at an Ethernet MTU. Reordering displaces the first fragment
/// by a few packets; more suggests a sender that never sends it.
pub const MAX_HELD_FRAGMENTS: usize = 16;

/// Datagrams that wait for their first fragment: far more than reordering causes on a busy link.
pub const MAX_WAITING: usize = 1024;

/// Bytes held in total: the counts above alone would allow 1 GB of large fragments.
pub const MAX_HELD_BYTES: usize = 4 << 20;

/// How long a fragment is held: reordering on a path is a matter of milliseconds, and the sender of
/// a lost datagram repeats it after about a second.
pub const HOLD_TIME: Duration = Duration::from_secs(2);

/// Datagrams whose first fragment is known. A complete datagram is forgotten at once, so these are
/// the ones in flight and the ones that lost a fragment.
pub const MAX_KNOWN: usize = 4096;

/// How long a decision is kept for the missing fragments: the minimum that RFC 791 requires of a
/// receiver. The 60 s of RFC 8200 would only keep dead state: a fast sender reuses an
/// identification within seconds (RFC 4963), and would meet the remains of the earlier datagram.
pub const KNOWN_TIME: Duration = Duration::from_secs(15);

/// Fragments per datagram: 65 535 bytes, cut to the 576 bytes that every IPv4 host accepts, make
/// 119.
pub const MAX_FRAGMENTS: usize = 128;

/// Identifies the fragments of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address, as it came in.
    pub src: Addr,
    /// Destination address, as it came in.
    pub dst: Addr,
    /// The identification; 16 bits for IPv4.
    pub id: u32,
    /// The protocol of the datagram.
    pub protocol: Protocol,
    /// The port that it came in by.
    pub in_port: PortId,
}

/// The place of a fragment within its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset of its payload, in bytes, a multiple of 8.
    pub offset: u16,
    /// Bytes of its payload, which follows the IPv4 header, or the fragment header of IPv6.
    pub len: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// The decision about a fragment other than the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<D> {
    /// The datagram is decided: the fragment goes the same way.
    Known(D),
    /// It waits for the first fragment; a copy was taken.
    Held,
    /// It is dropped.
    Drop(DropReason),
}

/// The fragmented datagrams in flight. `D` is the decision about a datagram; if it names a session,
/// the caller checks that the session still has the addresses of the fragment, because ids are
/// reused.
///
/// For a fragment of offset zero, the caller asks [`Fragments::check_first`], decides, and then
/// calls [`Fragments::first`]; for the others it calls [`Fragments::later`]. It calls
/// [`Fragments::expire`] at the time that [`Fragments::poll_timeout`] returns.
pub struct Fragments<D> {
    datagrams: HashMap<FragmentKey, Datagram<D>, SipKey>,
    /// Datagrams without a decision, and those with one, each sorted by age.
    waiting: BTreeMap<u64, Entry>,
    known: BTreeMap<u64, Entry>,
    next_serial: u64,
    held_bytes: usize,
    discarded: u32,
}

impl<D: Copy> Fragments<D> {
    /// No datagrams. `key` is random, so that no sender can make keys collide.
    pub fn new(key: &[u8; 16]) -> Fragments<D> {
        Fragments {
            datagrams: HashMap::with_hasher(SipKey(SipHasher13::new_with_key(key))),
            waiting: BTreeMap::new(),
            known: BTreeMap::new(),
            next_serial: 0,
            held_bytes: 0,
            discarded: 0,
        }
    }

    /// Checks that a first fragment is consistent with the earlier fragments of its datagram, so
    /// that it may be decided. An overlap poisons the datagram.
    ///
    /// # Errors
    ///
    /// The reason to drop the fragment: `FragmentOverlap` if it overlaps or repeats another
    /// fragment, or another pair did; `Malformed`; `FragmentOrphan` if there are too many.
    pub fn check_first(
        &mut self,
        key: &FragmentKey,
        piece: Piece,
        now: Time,
    ) -> Result<(), DropReason> {
        if piece.is_whole() {
            // An atomic fragment has nothing to do with any other (RFC 6946, section 4).
            return Ok(());
        }
        if piece.offset != 0 || !piece.is_valid() {
            return Err(DropReason::Malformed);
        }
        self.check_piece(key, piece, now)
    }

    /// Stores the decision about a datagram, made from a first fragment that
    /// [`Fragments::check_first`] has accepted. Returns the copies of the fragments that waited for
    /// it, to be treated the same way, in the order of their arrival.
    pub fn first(
        &mut self,
        key: FragmentKey,
        piece: Piece,
        now: Time,
        decision: D,
    ) -> Vec<Vec<u8>> {
        if piece.is_whole() || self.add_piece(&key, piece, now).is_err() {
            return Vec::new();
        }
        self.decide(&key, now, decision)
    }

    /// Looks up a fragment other than the first; `bytes` is its whole packet, which is copied if it
    /// has to wait.
    pub fn later(&mut self, key: FragmentKey, piece: Piece, bytes: &[u8], now: Time) -> Lookup<D> {
        if piece.offset == 0 || !piece.is_valid() {
            return Lookup::Drop(DropReason::Malformed);
        }
        if !self.is_known(&key) && !self.make_room(&key, bytes.len()) {
            return Lookup::Drop(DropReason::FragmentOrphan);
        }
        if let Err(reason) = self.add_piece(&key, piece, now) {
            return Lookup::Drop(reason);
        }
        let Some(datagram) = self.datagrams.get_mut(&key) else {
            return Lookup::Drop(DropReason::FragmentOrphan);
        };
        match &mut datagram.state {
            State::Waiting(held) => {
                held.push(bytes.to_vec());
                self.held_bytes += bytes.len();
                Lookup::Held
            }
            State::Known(decision) => {
                let decision = *decision;
                if datagram.pieces.complete() {
                    self.remove(&key);
                }
                Lookup::Known(decision)
            }
            State::Poisoned => Lookup::Drop(DropReason::FragmentOverlap),
        }
    }

    /// The decision about a datagram, if it has been made and fragments are still to come.
    pub fn decision(&self, key: &FragmentKey) -> Option<D> {
        match self.datagrams.get(key)?.state {
            State::Known(decision) => Some(decision),
            _ => None,
        }
    }

    /// The time of the next [`Fragments::expire`].
    pub fn poll_timeout(&self) -> Option<Time> {
        let deadline = |queue: &BTreeMap<u64, Entry>| Some(queue.first_key_value()?.1.deadline);
        [deadline(&self.waiting), deadline(&self.known)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Removes expired entries. Returns the number of held fragments that were discarded since the
    /// last call, because of expiry, lack of room, or an overlap: the caller counts them as
    /// [`DropReason::FragmentOrphan`].
    pub fn expire(&mut self, now: Time) -> u32 {
        // Each turn removes a datagram, so the sizes of the tables bound these loops.
        while let Some(key) = overdue(&self.waiting, now) {
            self.remove(&key);
        }
        while let Some(key) = overdue(&self.known, now) {
            self.remove(&key);
        }
        std::mem::take(&mut self.discarded)
    }

    /// Forgets all decisions, when sessions end or policies change; later fragments of those
    /// datagrams become orphans. Held fragments stay.
    pub fn forget_decisions(&mut self) {
        while let Some((_, entry)) = self.known.first_key_value() {
            let key = entry.key;
            self.remove(&key);
        }
    }

    /// The number of datagrams that wait for their first fragment, and of those that have it.
    pub fn len(&self) -> (usize, usize) {
        (self.waiting.len(), self.known.len())
    }

    /// Whether no fragmented datagram is in flight.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Panics if the parts disagree: for tests and simulations.
    pub fn check_invariants(&self) {
        assert_eq!(self.datagrams.len(), self.waiting.len() + self.known.len());
        assert!(self.waiting.len() <= MAX_WAITING && self.known.len() <= MAX_KNOWN);
        assert!(self.held_bytes <= MAX_HELD_BYTES);
        let mut held_bytes = 0;
        for (queue, is_waiting) in [(&self.waiting, true), (&self.known, false)] {
            for (serial, entry) in queue {
                let datagram = &self.datagrams[&entry.key];
                assert_eq!(datagram.serial, *serial);
                assert!(datagram.pieces.list.len() <= MAX_FRAGMENTS);
                assert_eq!(matches!(datagram.state, State::Waiting(_)), is_waiting);
                if let State::Waiting(held) = &datagram.state {
                    assert!(held.len() <= MAX_HELD_FRAGMENTS);
                    held_bytes += held.iter().map(Vec::len).sum::<usize>();
                }
            }
        }
        assert_eq!(held_bytes, self.held_bytes);
    }

    fn is_known(&self, key: &FragmentKey) -> bool {
        let datagram = self.datagrams.get(key);
        datagram.is_some_and(|datagram| !matches!(datagram.state, State::Waiting(_)))
    }

    /// Adds a piece to its datagram, which is created if necessary.
    fn add_piece(&mut self, key: &FragmentKey, piece: Piece, now: Time) -> Result<(), DropReason> {
        if !self.datagrams.contains_key(key) {
            self.create(key, now);
        }
        self.check_piece(key, piece, now)?;
        if let Some(datagram) = self.datagrams.get_mut(key) {
            datagram.pieces.add(piece);
        }
        Ok(())
    }

    /// Checks that a piece is consistent with those of its datagram that have passed. After an
    /// overlap no more may pass.
    fn check_piece(
        &mut self,
        key: &FragmentKey,
        piece: Piece,
        now: Time,
    ) -> Result<(), DropReason> {
        let Some(datagram) = self.datagrams.get(key) else {
            return Ok(());
        };
        if matches!(datagram.state, State::Poisoned) {
            return Err(DropReason::FragmentOverlap);
        }
        // A TCP fragment at offset 8 can only overlap with the header (RFC 3128, section 3).
        let hides_flags = key.protocol == Protocol::TCP && piece.offset == 8;
        match datagram.pieces.fit(&piece) {
            Fit::Good if !hides_flags => Ok(()),
            Fit::Full => Err(DropReason::FragmentOrphan),
            // The network repeated it. That is harmless; only the repetition is dropped (RFC 8200,
            // errata 5505).
            Fit::Duplicate => Err(DropReason::FragmentOverlap),
            Fit::Good | Fit::Overlap => {
                self.set_state(key, now, State::Poisoned);
                Err(DropReason::FragmentOverlap)
            }
        }
    }

    /// Makes room for `len` more bytes of a waiting datagram; the oldest ones go first.
    fn make_room(&mut self, key: &FragmentKey, len: usize) -> bool {
        if let Some(Datagram {
            state: State::Waiting(held),
            ..
        }) = self.datagrams.get(key)
            && held.len() >= MAX_HELD_FRAGMENTS
        {
            return false;
        }
        if len > MAX_HELD_BYTES {
            return false;
        }
        while self.held_bytes + len > MAX_HELD_BYTES {
            self.remove_oldest(|fragments| &fragments.waiting);
        }
        true
    }

    fn create(&mut self, key: &FragmentKey, now: Time) {
        if self.waiting.len() >= MAX_WAITING {
            self.remove_oldest(|fragments| &fragments.waiting);
        }
        let serial = self.serial();
        self.waiting.insert(
            serial,
            Entry {
                key: *key,
                deadline: now + HOLD_TIME,
            },
        );
        let state = State::Waiting(Vec::new());
        self.datagrams.insert(
            *key,
            Datagram {
                state,
                pieces: Pieces::default(),
                serial,
            },
        );
    }

    /// Gives a datagram its decision; returns the fragments that it held.
    fn decide(&mut self, key: &FragmentKey, now: Time, decision: D) -> Vec<Vec<u8>> {
        let held = self.set_state(key, now, State::Known(decision));
        if self
            .datagrams
            .get(key)
            .is_some_and(|datagram| datagram.pieces.complete())
        {
            self.remove(key);
        }
        held
    }

    /// Moves a datagram to the known ones; returns the fragments that it held. Those of a poisoned
    /// datagram are discarded instead.
    fn set_state(&mut self, key: &FragmentKey, now: Time, state: State<D>) -> Vec<Vec<u8>> {
        if self.known.len() >= MAX_KNOWN && !self.is_known(key) {
            self.remove_oldest(|fragments| &fragments.known);
        }
        let serial = self.serial();
        let Some(datagram) = self.datagrams.get_mut(key) else {
            return Vec::new();
        };
        let old_serial = std::mem::replace(&mut datagram.serial, serial);
        let poisoned = matches!(state, State::Poisoned);
        let old_state = std::mem::replace(&mut datagram.state, state);
        self.waiting.remove(&old_serial);
        self.known.remove(&old_serial);
        self.known.insert(
            serial,
            Entry {
                key: *key,
                deadline: now + KNOWN_TIME,
            },
        );
        let State::Waiting(held) = old_state else {
            return Vec::new();
        };
        self.held_bytes -= held.iter().map(Vec::len).sum::<usize>();
        if poisoned {
            self.discarded += held.len() as u32;
            return Vec::new();
        }
        held
    }

    fn remove_oldest(&mut self, queue: impl Fn(&Self) -> &BTreeMap<u64, Entry>) {
        if let Some(key) = queue(self).first_key_value().map(|(_, entry)| entry.key) {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &FragmentKey) {
        let Some(datagram) = self.datagrams.remove(key) else {
            return;
        };
        self.waiting.remove(&datagram.serial);
        self.known.remove(&datagram.serial);
        if let State::Waiting(held) = datagram.state {
            self.held_bytes -= held.iter().map(Vec::len).sum::<usize>();
            self.discarded += held.len() as u32;
        }
    }

    fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }
}

impl Piece {
    /// Whether it is the whole datagram: an atomic fragment (RFC 6946).
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && !self.more
    }

    /// RFC 8200, section 4.5: a length that is not a multiple of 8, except in the last fragment, or
    /// a datagram of more than 65 535 bytes, is an error.
    fn is_valid(&self) -> bool {
        self.len > 0
            && self.offset.is_multiple_of(8)
            && (!self.more || self.len.is_multiple_of(8))
            && self.end() <= u32::from(u16::MAX)
    }

    fn end(&self) -> u32 {
        u32::from(self.offset) + u32::from(self.len)
    }
}

struct Datagram<D> {
    state: State<D>,
    pieces: Pieces,
    /// Its key in the queue of its state.
    serial: u64,
}

enum State<D> {
    /// Its first fragment is missing; holds copies of others.
    Waiting(Vec<Vec<u8>>),
    Known(D),
    /// Two of its fragments overlap.
    Poisoned,
}

/// An entry of a queue.
struct Entry {
    key: FragmentKey,
    deadline: Time,
}

fn overdue(queue: &BTreeMap<u64, Entry>, now: Time) -> Option<FragmentKey> {
    let (_, entry) = queue.first_key_value()?;
    (entry.deadline <= now).then_some(entry.key)
}

/// The pieces of a datagram that have passed, none of which overlap.
#[derive(Default)]
struct Pieces {
    list: Vec<Piece>,
    covered: u32,
}

/// How a piece relates to those that have passed.
enum Fit {
    Good,
    Duplicate,
    Overlap,
    Full,
}

impl Pieces {
    fn fit(&self, piece: &Piece) -> Fit {
        if self.list.contains(piece) {
            return Fit::Duplicate;
        }
        if self.list.iter().any(|other| conflict(other, piece)) {
            return Fit::Overlap;
        }
        match self.list.len() < MAX_FRAGMENTS {
            true => Fit::Good,
            false => Fit::Full,
        }
    }

    fn add(&mut self, piece: Piece) {
        self.list.push(piece);
        self.covered += u32::from(piece.len);
    }

    /// Whether all bytes have passed.
    fn complete(&self) -> bool {
        self.list
            .iter()
            .any(|piece| !piece.more && piece.end() == self.covered)
    }
}

/// Whether two pieces overlap, or disagree about the end of the datagram.
fn conflict(a: &Piece, b: &Piece) -> bool {
    let overlap = u32::from(a.offset) < b.end() && u32::from(b.offset) < a.end();
    let beyond = |last: &Piece, other: &Piece| !last.more && other.end() > last.end();
    overlap || beyond(a, b) || beyond(b, a)
}

/// SipHash-1-3 under a random key.
struct SipKey(SipHasher13);

impl BuildHasher for SipKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: Piece = Piece {
        offset: 0,
        len: 1480,
        more: true,
    };
    const MIDDLE: Piece = Piece {
        offset: 1480,
        len: 1480,
        more: true,
    };
    const LAST: Piece = Piece {
        offset: 2960,
        len: 100,
        more: false,
    };
    const OVERLAP: Lookup<u32> = Lookup::Drop(DropReason::FragmentOverlap);

    fn key(id: u32) -> FragmentKey {
        FragmentKey {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([192, 0, 2, 1]),
            id,
            protocol: Protocol::UDP,
            in_port: PortId(0),
        }
    }

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn fragments() -> Fragments<u32> {
        Fragments::new(&[1; 16])
    }

    /// Sends the waiting fragments after a first fragment, as a caller does.
    fn let_go(
        f: &mut Fragments<u32>,
        key: FragmentKey,
        piece: Piece,
        now: Time,
        decision: u32,
    ) -> Result<Vec<Vec<u8>>, DropReason> {
        f.check_first(&key, piece, now)?;
        Ok(f.first(key, piece, now, decision))
    }

    #[test]
    fn later_fragments_follow_the_first_and_the_last_one_frees_the_state() {
        let mut f = fragments();
        assert_eq!(let_go(&mut f, key(1), FIRST, at(0), 7), Ok(vec![]));
        assert_eq!(f.later(key(1), MIDDLE, b"m", at(1)), Lookup::Known(7));
        assert_eq!(f.later(key(1), LAST, b"l", at(2)), Lookup::Known(7));
        assert!(f.is_empty());
        assert_eq!(f.poll_timeout(), None);
        f.check_invariants();
    }

    #[test]
    fn fragments_before_the_first_wait_for_it() {
        let mut f = fragments();
        assert_eq!(f.later(key(1), LAST, b"l", at(0)), Lookup::Held);
        assert_eq!(f.later(key(1), MIDDLE, b"m", at(1)), Lookup::Held);
        assert_eq!(f.later(key(2), MIDDLE, b"x", at(1)), Lookup::Held);
        f.check_invariants();
        assert_eq!(
            let_go(&mut f, key(1), FIRST, at(2), 7),
            Ok(vec![b"l".to_vec(), b"m".to_vec()])
        );
        assert_eq!(f.len(), (1, 0));
        f.check_invariants();
    }

    #[test]
    fn what_waits_in_vain_is_dropped_and_counted() {
        let mut f = fragments();
        assert_eq!(f.later(key(1), LAST, b"l", at(0)), Lookup::Held);
        assert_eq!(f.later(key(1), MIDDLE, b"m", at(1000)), Lookup::Held);
        assert_eq!(f.poll_timeout(), Some(at(2000)));
        assert_eq!(f.expire(at(1999)), 0);
        assert_eq!(f.expire(at(2000)), 2);
        assert!(f.is_empty());
        assert_eq!(let_go(&mut f, key(1), FIRST, at(2001), 7), Ok(vec![]));
    }

    #[test]
    fn a_decision_is_forgotten_after_its_time() {
        let mut f = fragments();
        assert_eq!(let_go(&mut f, key(1), FIRST, at(0), 7), Ok(vec![]));
        assert_eq!(f.poll_timeout(), Some(Time::ZERO + KNOWN_TIME));
        assert_eq!(f.expire(Time::ZERO + KNOWN_TIME), 0);
        assert_eq!(f.later(key(1), LAST, b"l", at(15_001)), Lookup::Held);
        f.forget_decisions();
        assert_eq!(f.len(), (1, 0));
    }

    #[test]
    fn an_overlap_poisons_the_whole_datagram() {
        let inside = Piece {
            offset: 1472,
            len: 16,
            more: true,
        };
        let mut f = fragments();
        assert_eq!(let_go(&mut f, key(1), FIRST, at(0), 7), Ok(vec![]));
        assert_eq!(f.later(key(1), inside, b"o", at(1)), OVERLAP);
        assert_eq!(f.later(key(1), MIDDLE, b"m", at(2)), OVERLAP);
        assert_eq!(f.later(key(1), LAST, b"l", at(3)), OVERLAP);
        assert_eq!(
            let_go(&mut f, key(1), FIRST, at(4), 7),
            Err(DropReason::FragmentOverlap)
        );

        // Before the first one, the held ones leave too.
        assert_eq!(f.later(key(2), MIDDLE, b"m", at(1)), Lookup::Held);
        assert_eq!(f.later(key(2), inside, b"o", at(1)), OVERLAP);
        assert_eq!(
            let_go(&mut f, key(2), FIRST, at(4), 7),
            Err(DropReason::FragmentOverlap)
        );
        assert_eq!(f.expire(at(5)), 1);
        f.check_invariants();
    }

    #[test]
    fn disagreement_about_the_end_is_an_overlap() {
        let mut f = fragments();
        assert_eq!(let_go(&mut f, key(1), FIRST, at(0), 7), Ok(vec![]));
        assert_eq!(f.later(key(1), LAST, b"l", at(1)), Lookup::Known(7));
        let beyond = Piece {
            offset: 8000,
            len: 8,
            more: true,
        };
        assert_eq!(f.later(key(1), beyond, b"b", at(1)), OVERLAP);
        assert_eq!(f.later(key(1), MIDDLE, b"m", at(1)), OVERLAP);
    }

    #[test]
    fn an_exact_duplicate_is_dropped_alone() {
        let mut f = fragments();
        assert_eq!(let_go(&mut f, key(1), FIRST, at(0), 7), Ok(vec![]));
        assert_eq!(
            let_go(&mut f, key(1), FIRST, at(0), 7),
            Err(DropReason::FragmentOverlap)
        );
        assert_eq!(f.later(key(1), MIDDLE, b"m", at(1)), Lookup::Known(7));
        assert_eq!(f.later(key(1), MIDDLE, b"m", at(1)), OVERLAP);
        assert_eq!(f.later(key(1), LAST, b"l", at(1)), Lookup::Known(7));
        assert!(f.is_empty());
    }

    #[test]
    fn a_tcp_fragment_must_not_reach_into_the_header() {
        let mut f = fragments();
        let key = FragmentKey {
            protocol: Protocol::TCP,
            ..key(1)
        };
        let flags = Piece {
            offset: 8,
            len: 1472,
            more: false,
        };
        assert_eq!(f.later(key, flags, b"f", at(0)), OVERLAP);
        assert_eq!(
            let_go(&mut f, key, FIRST, at(0), 7),
            Err(DropReason::FragmentOverlap)
        );
    }

    #[test]
    fn malformed_pieces_leave_no_state() {
        let mut f = fragments();
        let later = [
            Piece {
                offset: 1480,
                len: 0,
                more: true,
            },
            Piece {
                offset: 1480,
                len: 1,
                more: true,
            },
            Piece {
                offset: 65528,
                len: 8,
                more: false,
            },
            Piece {
                offset: 7,
                len: 8,
                more: false,
            },
        ];
        for piece in later {
            let result = f.later(key(1), piece, b"x", at(0));
            assert_eq!(result, Lookup::Drop(DropReason::Malformed), "{piece:?}");
        }
        let odd = Piece {
            offset: 0,
            len: 9,
            more: true,
        };
        assert_eq!(
            let_go(&mut f, key(1), odd, at(0), 7),
            Err(DropReason::Malformed)
        );
        let atomic = Piece {
            offset: 0,
            len: 9,
            more: false,
        };
        assert_eq!(let_go(&mut f, key(1), atomic, at(0), 7), Ok(vec![]));
        assert!(f.is_empty());
    }

    #[test]
    fn a_flood_evicts_the_oldest_and_stays_within_bounds() {
        let mut f = fragments();
        let big = vec![0; 9000];
        for id in 0..2000 {
            assert_eq!(f.later(key(id), MIDDLE, &big, at(0)), Lookup::Held);
        }
        f.check_invariants();
        let fit = MAX_HELD_BYTES / 9000;
        assert_eq!(f.expire(at(0)), 2000 - fit as u32);
        assert_eq!(let_go(&mut f, key(0), FIRST, at(0), 7), Ok(vec![]));
        assert_eq!(
            let_go(&mut f, key(1999), FIRST, at(0), 7).map(|held| held.len()),
            Ok(1)
        );

        for id in 0..2 * MAX_KNOWN as u32 {
            assert!(let_go(&mut f, key(10_000 + id), FIRST, at(1), 7).is_ok());
        }
        f.check_invariants();
        assert_eq!(f.len().1, MAX_KNOWN);
    }

    #[test]
    fn one_datagram_has_a_limit_of_its_own() {
        let mut f = fragments();
        let piece = |n: usize| Piece {
            offset: 8 * n as u16,
            len: 8,
            more: true,
        };
        for n in 1..=MAX_HELD_FRAGMENTS {
            assert_eq!(f.later(key(1), piece(n), b"x", at(0)), Lookup::Held);
        }
        let full = Lookup::Drop(DropReason::FragmentOrphan);
        assert_eq!(f.later(key(1), piece(17), b"x", at(0)), full);
        let first = Piece {
            offset: 0,
            len: 8,
            more: true,
        };
        assert_eq!(
            let_go(&mut f, key(1), first, at(0), 7).map(|held| held.len()),
            Ok(16)
        );
        for n in 17..MAX_FRAGMENTS {
            assert_eq!(f.later(key(1), piece(n), b"x", at(0)), Lookup::Known(7));
        }
        assert_eq!(f.later(key(1), piece(MAX_FRAGMENTS), b"x", at(0)), full);
    }

    proptest! {
        #[test]
        fn a_datagram_passes_once_and_whole_in_any_order(
            order in Just((0u16..12).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut f = fragments();
            let mut passed = Vec::new();
            for n in order {
                let piece = Piece { offset: n * 80, len: 80, more: n != 11 };
                if n == 0 {
                    passed.push(0);
                    let held = let_go(&mut f, key(1), piece, at(0), 7).unwrap();
                    passed.extend(held.iter().map(|bytes| bytes[0]));
                } else if f.later(key(1), piece, &[n as u8], at(0)) == Lookup::Known(7) {
                    passed.push(n as u8);
                }
                f.check_invariants();
            }
            passed.sort_unstable();
            prop_assert_eq!(passed, (0..12).collect::<Vec<_>>());
            prop_assert!(f.is_empty());
        }

        #[test]
        fn no_two_bytes_of_a_datagram_pass_twice(
            pieces in prop::collection::vec((0u16..8, 1u16..4, any::<bool>()), 1..30),
        ) {
            let mut f = fragments();
            let mut seen = [false; 16];
            for (n, (offset, len, more)) in pieces.into_iter().enumerate() {
                let piece = Piece { offset: offset * 8, len: len * 8, more };
                if piece.is_whole() {
                    continue;
                }
                let now = at(n as u64);
                let passed: Vec<(u16, u16)> = if offset == 0 {
                    let Ok(held) = let_go(&mut f, key(1), piece, now, 7) else { continue };
                    let held = held.iter().map(|bytes| (u16::from(bytes[0]), u16::from(bytes[1])));
                    std::iter::once((0, len)).chain(held).collect()
                } else if f.later(key(1), piece, &[offset as u8, len as u8], now) == Lookup::Known(7) {
                    vec![(offset, len)]
                } else {
                    vec![]
                };
                f.check_invariants();
                for (offset, len) in passed {
                    for unit in offset..offset + len {
                        prop_assert!(!seen[usize::from(unit)], "{unit} passed twice");
                        seen[usize::from(unit)] = true;
                    }
                }
                if f.is_empty() {
                    seen = [false; 16]; // complete: the identification may be used again
                }
            }
        }
    }
}
