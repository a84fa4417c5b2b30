//! Which session a packet is for: a hash table in memory that the program reads.
//!
//! A flow has its place in one bucket, a line of the cache, among 16. Where all of them are taken,
//! the session stays with the process: with all cells in use that meets one session in 100 000. The
//! gateway alone writes, a place at a time; the program compares the whole flow with that in the
//! cell.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{FLOW_WORDS, Memory, SessionCell};
use crate::flow::Direction;

/// Numbers of a [`Secret`].
pub const KEYS: usize = FLOW_WORDS;
const PLACES: usize = 16;

/// A place holds this bit, 14 bits of the hash above it, and below it the number of the session and
/// the direction.
const USED: u32 = 1 << 17;
const TAG: u32 = !(2 * USED - 1);
/// Places of a bucket with the same 14 bits that the program looks at.
const MOST_ALIKE: usize = 2;

/// Places for flows: `struct bucket` of `program.h`.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bucket {
    places: [AtomicU32; PLACES],
}

impl Bucket {
    /// Whether so many places are free, and the program would look at that many with this tag.
    fn has_room(&self, tag: u32, count: usize) -> bool {
        let held = || self.places.iter().map(|it| it.load(Ordering::Relaxed));
        let free = held().filter(|held| *held == 0).count();
        let alike = held().filter(|held| held & (TAG | USED) == tag).count();
        free >= count && alike + count <= MOST_ALIKE
    }

    /// Stores a value in the first place that has another one.
    fn replace(&self, old: u32, new: u32) {
        let is_old = |place: &&AtomicU32| place.load(Ordering::Relaxed) == old;
        if let Some(place) = self.places.iter().find(is_old) {
            place.store(new, Ordering::SeqCst);
        }
    }
}

/// How flows are hashed: `struct secret` of `program.h`.
///
/// The sum of the products of a flow's words with random numbers of 64 bits, of which the upper
/// half counts, is the same for two flows with a probability of 2^-32, whatever they are: nobody
/// who does not know the numbers can choose flows for one bucket (multilinear hashing; Lemire and
/// Kaser, *Strongly universal string hashing is fast*, 2014). But sums of flows that differ by
/// equal steps differ by equal steps too, so it is mixed afterwards.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Secret {
    /// One for each word of a flow but the last, which is 0, and one that is added.
    keys: [AtomicU64; KEYS],
    /// The number of buckets less 1.
    mask: AtomicU64,
}

impl Secret {
    /// To be called before the first session is entered. `buckets` is a power of 2.
    pub fn set(&self, keys: [u64; KEYS], buckets: usize) {
        for (place, key) in self.keys.iter().zip(keys) {
            place.store(key, Ordering::Relaxed);
        }
        self.mask.store(buckets as u64 - 1, Ordering::SeqCst);
    }

    fn hash(&self, flow: &[u32; FLOW_WORDS]) -> u32 {
        let [keys @ .., added] = &self.keys;
        let products = keys.iter().zip(flow).map(|(key, word)| {
            let key = key.load(Ordering::Relaxed);
            key.wrapping_mul(u64::from(*word))
        });
        let added = added.load(Ordering::Relaxed);
        mix((products.fold(added, u64::wrapping_add) >> 32) as u32)
    }
}

/// The finalizer of MurmurHash3, which has a different result for each hash.
fn mix(hash: u32) -> u32 {
    let hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

/// How many buckets the index has for this number of sessions: four flows for 16 places.
pub fn buckets_for(sessions: usize) -> usize {
    (sessions / 2).max(1).next_power_of_two()
}

/// The index.
#[derive(Clone, Copy, Debug)]
pub struct Index {
    /// As many as [`buckets_for`] says.
    pub buckets: &'static [Bucket],
    /// How flows are hashed.
    pub secret: &'static Secret,
}

impl Index {
    /// The bucket of a flow, and what its place holds beside number and direction.
    fn place_of(&self, flow: &[u32; FLOW_WORDS]) -> (&'static Bucket, u32) {
        let hash = self.secret.hash(flow);
        let mask = self.buckets.len() - 1;
        (&self.buckets[hash as usize & mask], hash & TAG | USED)
    }

    /// Whether there are places for two flows that are not there.
    pub(super) fn has_room(&self, flows: [&[u32; FLOW_WORDS]; 2]) -> bool {
        let [(first, tag), (second, other)] = flows.map(|flow| self.place_of(flow));
        let is_one = std::ptr::eq(first, second);
        first.has_room(tag, if is_one { 2 } else { 1 }) && second.has_room(other, 1)
    }

    /// Enters the flow of a cell, for which there is a place.
    pub(super) fn insert(&self, memory: &Memory, session: u32, direction: Direction) {
        let flow = memory.sessions[session as usize].flow(direction);
        let (bucket, tag) = self.place_of(&flow);
        bucket.replace(0, tag | session << 1 | direction as u32);
    }

    /// Removes the flow of a cell.
    pub(super) fn remove(&self, memory: &Memory, session: u32, direction: Direction) {
        let flow = memory.sessions[session as usize].flow(direction);
        let (bucket, tag) = self.place_of(&flow);
        bucket.replace(tag | session << 1 | direction as u32, 0);
    }

    /// As the program does it.
    pub(super) fn find(
        &self,
        memory: &Memory,
        flow: &[u32; FLOW_WORDS],
    ) -> Option<(u32, Direction)> {
        let (bucket, tag) = self.place_of(flow);
        let mut places = bucket.places.iter();
        places.find_map(|place| is_flow(memory, place, tag, flow))
    }
}

/// The session and direction that a place leads to, if that is of this flow.
fn is_flow(
    memory: &Memory,
    place: &AtomicU32,
    tag: u32,
    flow: &[u32; FLOW_WORDS],
) -> Option<(u32, Direction)> {
    let held = place.load(Ordering::Relaxed);
    if held & (TAG | USED) != tag {
        return None;
    }
    let (session, direction) = (held >> 1 & 0xffff, Direction::ALL[held as usize & 1]);
    let cell: &SessionCell = memory.sessions.get(session as usize)?;
    (cell.flow(direction) == *flow).then_some((session, direction))
}
