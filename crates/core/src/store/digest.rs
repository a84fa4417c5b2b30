//! Do two units have the same sessions? Sums of hashes, kept up to date by each change.

use siphasher::sip::SipHasher13;

use crate::flow::{Direction, FlowKey, GroupId, Protocol};
use crate::session::{AddressBook, Session, SessionFlags, SessionState, Tracker};

/// Buckets of a group.
pub const SUMS: usize = 256;

/// Part of the protocol: units that compare must hash the same way. It need not be secret: whoever
/// makes sessions collide on purpose hides only differences between his own sessions, which he also
/// has to cause.
const KEY: [u8; 16] = *b"tandemgw/1digest";

/// The sums of all groups.
///
/// The hash of a session covers the facts that peers must agree on: its keys, its TCP state, and
/// whether it was replied to; not by times, counters, windows or policies. The hash is added to the
/// sum of its bucket, which its original key decides.
#[derive(Debug)]
pub struct Digest {
    hash: SipHasher13,
    groups: Vec<[u64; SUMS]>,
    /// The number of sessions of each group.
    counts: Vec<u32>,
}

/// The part of a session that changes during its life and counts for the digest.
///
/// Taken before and after each edit of a session; if they differ, counts, sums and peers have to
/// follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPhase {
    /// The TCP state; 255 if it has none.
    progress: u8,
    replied: bool,
}

impl SessionPhase {
    /// The phase of a session.
    #[inline]
    pub fn of(session: &Session) -> SessionPhase {
        SessionPhase {
            progress: match &session.tracker {
                Tracker::Tcp(tcp) => tcp.state().progress(),
                _ => u8::MAX,
            },
            replied: session.flags.contains(SessionFlags::REPLIED),
        }
    }

    /// The same as the table counts it, for a session of `protocol`.
    pub fn state(self, protocol: Protocol) -> SessionState {
        let tcp = (self.progress != u8::MAX).then_some(self.progress);
        SessionState::new(protocol, tcp, self.replied)
    }

    /// Whether a session in phase `self` is farther than one in phase `other`.
    pub fn is_beyond(self, other: SessionPhase) -> bool {
        (self.progress, self.replied) > (other.progress, other.replied)
    }

    /// Whether a session in this phase has begun again, if it was in phase `before`.
    #[inline]
    pub fn is_restart_of(self, before: SessionPhase) -> bool {
        self.progress < before.progress
    }
}

impl Digest {
    /// The digest of no sessions.
    pub fn new(groups: usize) -> Digest {
        Digest {
            hash: SipHasher13::new_with_key(&KEY),
            groups: vec![[0; SUMS]; groups],
            counts: vec![0; groups],
        }
    }

    /// Makes room for so many groups.
    pub(super) fn grow(&mut self, groups: usize) {
        self.groups.resize(groups, [0; SUMS]);
        self.counts.resize(groups, 0);
    }

    /// Adds a session.
    #[inline]
    pub(super) fn add(&mut self, session: &Session, book: &AddressBook) {
        self.exchange(session, book, (None, Some(SessionPhase::of(session))));
    }

    /// Takes a session out.
    #[inline]
    pub(super) fn subtract(&mut self, session: &Session, book: &AddressBook) {
        self.exchange(session, book, (Some(SessionPhase::of(session)), None));
    }

    /// Notes that a session that was in phase `before` has changed.
    #[inline]
    pub(super) fn change(&mut self, session: &Session, book: &AddressBook, before: SessionPhase) {
        let phase = SessionPhase::of(session);
        self.exchange(session, book, (Some(before), Some(phase)));
    }

    /// Replaces the session's old phase by its new one; `None` is no session.
    #[inline]
    fn exchange(
        &mut self,
        session: &Session,
        book: &AddressBook,
        (before, after): (Option<SessionPhase>, Option<SessionPhase>),
    ) {
        let (bucket, identity) = self.identify(session, book);
        if let Some(count) = self.counts.get_mut(usize::from(session.group.0)) {
            let more = *count + u32::from(after.is_some());
            *count = more.saturating_sub(u32::from(before.is_some()));
        }
        let element = |phase: Option<SessionPhase>| phase.map_or(0, |it| element(identity, it));
        self.update(session.group, bucket, element(before), element(after));
    }

    /// The bucket of a session with this original key.
    #[inline]
    pub fn bucket(&self, original: &FlowKey) -> u8 {
        (self.key(original) >> 56) as u8
    }

    /// The number of sessions of a group.
    pub fn count(&self, group: GroupId) -> u32 {
        let count = self.counts.get(usize::from(group.0));
        count.copied().unwrap_or(0)
    }

    /// One sum per bucket of a group, which are compared by a mark; none if there is no such group.
    pub fn sums(&self, group: GroupId) -> Option<&[u64; SUMS]> {
        self.groups.get(usize::from(group.0))
    }

    /// The sums of a group, in the form of a message.
    pub fn bytes(&self, group: GroupId) -> Option<[u8; SUMS * 8]> {
        let mut bytes = [0; SUMS * 8];
        for (place, sum) in bytes.chunks_exact_mut(8).zip(self.sums(group)?) {
            place.copy_from_slice(&sum.to_be_bytes());
        }
        Some(bytes)
    }

    /// The buckets of a group whose sums differ from those of a message.
    pub fn compare(&self, group: GroupId, sums: &[u8]) -> Buckets {
        let mut differing = Buckets::default();
        let Some(own) = self.sums(group) else {
            return differing;
        };
        for (bucket, (own, other)) in (0..=u8::MAX).zip(own.iter().zip(sums.chunks_exact(8))) {
            if own.to_be_bytes() != *other {
                differing.insert(bucket);
            }
        }
        differing
    }

    #[inline]
    fn update(&mut self, group: GroupId, bucket: u8, old: u64, new: u64) {
        if let Some(sums) = self.groups.get_mut(usize::from(group.0)) {
            let sum = &mut sums[usize::from(bucket)];
            *sum = sum.wrapping_sub(old).wrapping_add(new);
        }
    }

    #[inline]
    fn identify(&self, session: &Session, book: &AddressBook) -> (u8, u64) {
        let original = self.key(&session.key(Direction::Original, book));
        let outgoing = self.key(&session.translated(Direction::Original, book));
        (
            (original >> 56) as u8,
            original.rotate_left(32).wrapping_add(outgoing),
        )
    }

    #[inline]
    fn key(&self, key: &FlowKey) -> u64 {
        let mut buf = [0; 37];
        // The two lengths keep the families apart.
        let at = if key.src.is_v4() && key.dst.is_v4() {
            buf[..4].copy_from_slice(&key.src.last4());
            buf[4..8].copy_from_slice(&key.dst.last4());
            8
        } else {
            buf[..16].copy_from_slice(key.src.octets());
            buf[16..32].copy_from_slice(key.dst.octets());
            32
        };
        buf[at..at + 2].copy_from_slice(&key.src_port.to_be_bytes());
        buf[at + 2..at + 4].copy_from_slice(&key.dst_port.to_be_bytes());
        buf[at + 4] = key.protocol.0;
        self.hash.hash(&buf[..at + 5])
    }
}

/// The hash of a session; `identity` is one of its keys already, so mixing is enough (the finalizer
/// of MurmurHash3: a bijection).
#[inline]
fn element(identity: u64, phase: SessionPhase) -> u64 {
    let step = 1 + 2 * u64::from(phase.progress) + u64::from(phase.replied);
    let mut x = identity ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// A set of buckets of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets([u64; SUMS / 64]);

impl Buckets {
    /// Adds a bucket.
    pub fn insert(&mut self, bucket: u8) {
        self.0[usize::from(bucket >> 6)] |= 1 << (bucket & 63);
    }

    /// Whether a bucket is in the set.
    #[inline]
    pub fn contains(&self, bucket: u8) -> bool {
        self.0[usize::from(bucket >> 6)] >> (bucket & 63) & 1 != 0
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Buckets) {
        self.0
            .iter_mut()
            .zip(&other.0)
            .for_each(|(mine, others)| *mine |= others);
    }

    /// Whether it has none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; SUMS / 64]
    }

    /// The number of buckets.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The form in a message.
    pub fn to_bytes(self) -> [u8; SUMS / 8] {
        let mut bytes = [0; SUMS / 8];
        for (place, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// Reads what [`Buckets::to_bytes`] wrote: 64 buckets a word, in network byte order.
    pub fn from_bytes(bytes: [u8; SUMS / 8]) -> Buckets {
        let mut words = [0; SUMS / 64];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_be_bytes(*bytes);
        }
        Buckets(words)
    }
}
