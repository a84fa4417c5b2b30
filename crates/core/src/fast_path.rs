//! The fast path: a program in the kernel forwards packets of the sessions that the gateway has
//! entered there (`src/os/fast_path`). Here is what both share: memory, which the gateway writes
//! by itself.
//!
//! A session has a [cell](SessionCell), with what becomes of its packets and what the program has
//! seen of them. The [index](Index) says which cell a packet is for. A cell is in force only while
//! three numbers agree: the [epoch](GroupCell::epoch) and the [lease](GroupCell::lease) of its
//! group, and a [serial](SessionCell::serial) that is not 0. The gateway writes them with single
//! stores, so what it takes back is not forwarded from that instant on.

mod cell;
mod index;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::flow::Direction;
use crate::random::SplitMix64;
use crate::session::Numbers;
use crate::time::Time;

pub use cell::{Entry, FLOW_WORDS, Flow, SessionCell, SideCell, Way};
pub use index::{Bucket, Index, KEYS, Secret, buckets_for};

/// The most sessions that there can be places for: a place in the index has 16 bits for their
/// number.
pub const MOST_SESSIONS: u32 = 1 << 16;

/// What the program and the gateway share. The shell maps it; it lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// By [`GroupId`](crate::flow::GroupId).
    pub groups: &'static [GroupCell],
    /// By the number of a session's place.
    pub sessions: &'static [SessionCell],
    /// Which of them a packet is for.
    pub index: Index,
}

impl Memory {
    /// Memory of its own, that no program reads: for tests and simulations.
    pub fn unshared(groups: usize, sessions: usize) -> Memory {
        fn all<T: Default>(count: usize) -> &'static [T] {
            (0..count).map(|_| T::default()).collect::<Vec<_>>().leak()
        }
        let buckets = all::<Bucket>(buckets_for(sessions));
        let secret: &Secret = Box::leak(Box::default());
        secret.set(keys(1), buckets.len());
        Memory {
            groups: all(groups),
            sessions: all(sessions),
            index: Index { buckets, secret },
        }
    }

    /// Puts a session, of which these numbers are known at `now`, into a place that is not in use.
    /// Another session with one of its flows leaves its place. Returns whether there was room for
    /// it in the index; otherwise it has not come.
    pub fn enter(
        &self,
        place: u32,
        (now, serial): (Time, u32),
        numbers: &Numbers,
        entry: &Entry,
    ) -> bool {
        let Some(cell) = self.sessions.get(place as usize) else {
            return false;
        };
        let [out, back] = [0, 1].map(|at: usize| entry.ways[at].flow.words());
        for flow in [&out, &back] {
            if let Some((other, _)) = self.find(flow) {
                self.leave(other);
            }
        }
        if !self.index.has_room([&out, &back]) {
            return false;
        }
        cell.begin(now, serial, numbers, entry);
        for direction in Direction::ALL {
            self.index.insert(self, place, direction);
        }
        true
    }

    /// From this instant the program forwards nothing of the session in this place.
    pub fn leave(&self, place: u32) {
        if let Some(cell) = self.sessions.get(place as usize) {
            cell.stop();
            for direction in Direction::ALL {
                self.index.remove(self, place, direction);
            }
        }
    }

    /// The place of the session that packets of this flow are of ([`Flow::words`]), and their
    /// direction there.
    pub fn find(&self, flow: &[u32; FLOW_WORDS]) -> Option<(u32, Direction)> {
        self.index.find(self, flow)
    }
}

/// Keys that are no secret.
fn keys(seed: u64) -> [u64; KEYS] {
    let mut random = SplitMix64(seed);
    std::array::from_fn(|_| random.next())
}

/// Whether a group's entries are in force. Only the gateway writes it.
#[repr(C)]
#[derive(Debug, Default)]
pub struct GroupCell {
    /// The [`Time`], in nanoseconds, after which nothing is forwarded.
    pub lease: AtomicU64,
    /// Entries with another epoch are not in force.
    pub epoch: AtomicU32,
    padding: AtomicU32,
}

impl GroupCell {
    /// From this instant none of the entries made so far is in force. Returns the epoch of those to
    /// come.
    pub fn next_epoch(&self) -> u32 {
        self.epoch.fetch_add(1, Ordering::SeqCst).wrapping_add(1)
    }

    /// The epoch of entries made now.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Entries may be in force until `until`.
    pub fn lease(&self, until: Time) {
        self.lease.store(until.as_nanos(), Ordering::SeqCst);
    }
}

const _: () = assert!(size_of::<GroupCell>() == 16);

#[cfg(test)]
mod tests;
