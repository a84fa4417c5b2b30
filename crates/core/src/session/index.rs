//! A hash index of fixed size: no rehash, no tombstones, hence no operation that stalls.

use std::hint::black_box;

use crate::memory::Reserved;

/// Maps 32-bit hashes to 32-bit payloads; the caller says which payload is the right one.
///
/// Open addressing with linear probing, entries of a run kept in the order of their home positions
/// (Robin Hood hashing), and removal by shifting back. An entry is eight bytes, hash and payload;
/// the home position follows from the hash, so keys are read only to compare them. A failed lookup
/// ends as soon as it meets an entry nearer to its home, so a load of 7/8 is fine.
///
/// The hash must be keyed ([`super::KeyedHash`]): it is what keeps runs short. Memory is zeroed by
/// the system: at once where there are huge pages, lazily otherwise.
#[derive(Debug)]
pub struct Index {
    /// `hash << 32 | payload`; zero is empty, for no stored hash is zero.
    slots: Vec<u64>,
    len: usize,
    max: usize,
}

impl Index {
    /// An index that holds up to `max` entries, at a load of at most 7/8.
    pub fn new(max: usize) -> Index {
        Index {
            slots: vec![0; max + max.div_ceil(7) + 1],
            len: 0,
            max,
        }
    }

    /// The memory that it took at the start, for huge pages.
    pub fn reserved(&self) -> Reserved {
        Reserved::of_index(&self.slots)
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Touches the memory that a [`find`](Index::find) of `hash` reads first, so that it is in the
    /// cache.
    ///
    /// Nothing depends on the value: the processor continues meanwhile, and adjacent reads wait for
    /// memory together.
    #[inline]
    pub fn touch(&self, hash: u32) {
        black_box(self.slots.get(self.home(stored(hash))).copied());
    }

    /// The payload with `hash` that satisfies `is_it`.
    #[inline(always)]
    pub fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let hash = stored(hash);
        let mut position = self.home(hash);
        for distance in 0..self.slots.len() {
            let slot = self.slots[position];
            if hash_of(slot) == hash && is_it(slot as u32) {
                return Some(slot as u32);
            }
            if slot == 0 || self.distance(position, slot) < distance {
                return None;
            }
            position = self.after(position);
        }
        None
    }

    /// Adds an entry, whether or not one like it exists. Returns false if the index is full.
    #[must_use]
    pub fn insert(&mut self, hash: u32, payload: u32) -> bool {
        if self.len == self.max {
            return false;
        }
        let mut entry = u64::from(stored(hash)) << 32 | u64::from(payload);
        let mut position = self.home(hash_of(entry));
        let mut distance = 0;
        // Ends: there are more slots than entries.
        while self.slots[position] != 0 {
            let other = self.distance(position, self.slots[position]);
            if other < distance {
                std::mem::swap(&mut self.slots[position], &mut entry);
                distance = other;
            }
            position = self.after(position);
            distance += 1;
        }
        self.slots[position] = entry;
        self.len += 1;
        true
    }

    /// Removes the entry with this hash and payload. Returns whether there was one.
    pub fn remove(&mut self, hash: u32, payload: u32) -> bool {
        let Some(mut position) = self.position(hash, payload) else {
            return false;
        };
        // Ends: an empty slot always exists.
        loop {
            let next = self.after(position);
            let slot = self.slots[next];
            if slot == 0 || self.distance(next, slot) == 0 {
                break;
            }
            self.slots[position] = slot;
            position = next;
        }
        self.slots[position] = 0;
        self.len -= 1;
        true
    }

    /// Changes the payload of an entry. Returns whether there was one.
    pub fn replace(&mut self, hash: u32, old: u32, new: u32) -> bool {
        let Some(position) = self.position(hash, old) else {
            return false;
        };
        self.slots[position] = self.slots[position] >> 32 << 32 | u64::from(new);
        true
    }

    /// Panics if the index is not well-formed. Reads all of it.
    pub fn check_invariants(&self) {
        let mut used = 0;
        for (position, &slot) in self.slots.iter().enumerate() {
            let next = self.after(position);
            if self.slots[next] != 0 && self.distance(next, self.slots[next]) > 0 {
                assert_ne!(slot, 0, "a gap before an entry away from its home");
                let most = self.distance(position, slot) + 1;
                assert!(
                    self.distance(next, self.slots[next]) <= most,
                    "out of order"
                );
            }
            used += usize::from(slot != 0);
        }
        assert_eq!(used, self.len);
        assert!(self.len <= self.max && self.max < self.slots.len());
    }

    /// Where the slot with exactly this entry is.
    fn position(&self, hash: u32, payload: u32) -> Option<usize> {
        let entry = u64::from(stored(hash)) << 32 | u64::from(payload);
        let mut position = self.home(hash_of(entry));
        for distance in 0..self.slots.len() {
            let slot = self.slots[position];
            if slot == entry {
                return Some(position);
            }
            if slot == 0 || self.distance(position, slot) < distance {
                return None;
            }
            position = self.after(position);
        }
        None
    }

    /// Where an entry would be if it were alone: the hash scaled to the number of slots.
    #[inline]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> 32) as usize
    }

    /// How far from its home the entry `slot` at `position` is.
    #[inline]
    fn distance(&self, position: usize, slot: u64) -> usize {
        let home = self.home(hash_of(slot));
        if position >= home {
            position - home
        } else {
            position + self.slots.len() - home
        }
    }

    #[inline]
    fn after(&self, position: usize) -> usize {
        if position + 1 == self.slots.len() {
            0
        } else {
            position + 1
        }
    }
}

#[inline]
fn stored(hash: u32) -> u32 {
    hash.max(1)
}

#[inline]
fn hash_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Hashes that crowd at both ends of the range, so that runs are long and wrap around.
    fn crowded() -> impl Strategy<Value = u32> {
        prop_oneof![0..6u32, u32::MAX - 3..=u32::MAX, any::<u32>()]
    }

    proptest! {
        #[test]
        fn behaves_like_a_list(
            ops in proptest::collection::vec((0..3u8, crowded(), 0..20u32), 1..300),
        ) {
            let mut index = Index::new(24);
            let mut model: Vec<(u32, u32)> = Vec::new();
            for (op, hash, payload) in ops {
                let found = model.iter().position(|&e| e == (hash.max(1), payload));
                match op {
                    0 if found.is_none() => {
                        let fits = model.len() < 24;
                        prop_assert_eq!(index.insert(hash, payload), fits);
                        if fits {
                            model.push((hash.max(1), payload));
                        }
                    }
                    1 => {
                        prop_assert_eq!(index.remove(hash, payload), found.is_some());
                        found.map(|at| model.swap_remove(at));
                    }
                    _ => {
                        prop_assert_eq!(index.replace(hash, payload, payload + 100), found.is_some());
                        if let Some(at) = found {
                            model[at].1 += 100;
                            prop_assert!(index.replace(hash, payload + 100, payload));
                            model[at].1 -= 100;
                        }
                    }
                }
                index.check_invariants();
                prop_assert_eq!(index.len(), model.len());
                for &(hash, payload) in &model {
                    prop_assert_eq!(index.find(hash, |p| p == payload), Some(payload));
                }
                prop_assert_eq!(index.find(hash, |p| p == 999), None);
            }
        }
    }

    #[test]
    fn fills_to_its_capacity_with_one_hash() {
        let mut index = Index::new(100);
        for payload in 0..100 {
            assert!(index.insert(u32::MAX, payload));
        }
        assert!(!index.insert(5, 100));
        assert_eq!(index.find(u32::MAX, |p| p == 99), Some(99));
        assert_eq!(index.find(5, |_| true), None);
        for payload in 0..100 {
            assert!(index.remove(u32::MAX, payload));
            index.check_invariants();
        }
        assert!(index.is_empty());
    }
}
