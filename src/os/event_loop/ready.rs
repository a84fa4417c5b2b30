//! Sources that may hold more than was read.

/// A set of numbers below a fixed size.
#[derive(Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// An empty set of numbers below `size`.
    pub(super) fn new(size: usize) -> Bits {
        Bits(vec![0; size.div_ceil(64)])
    }

    /// Adds a number; ignores one that is too large.
    pub(super) fn insert(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }

    pub(super) fn remove(&mut self, number: usize) {
        if let Some(word) = self.0.get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    pub(super) fn contains(&self, number: usize) -> bool {
        let word = self.0.get(number / 64);
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The least number in the set that is not less than `from`.
    pub(super) fn next(&self, from: usize) -> Option<usize> {
        let mut mask = u64::MAX << (from % 64);
        for (at, word) in self.0.iter().enumerate().skip(from / 64) {
            let left = word & mask;
            if left != 0 {
                return Some(at * 64 + left.trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }
}

/// Sources that may hold more than was read.
pub(super) struct Ready {
    /// By port: its TUN.
    pub(super) tuns: Bits,
    /// By port: its packet socket.
    pub(super) sockets: Bits,
    pub(super) monitor: bool,
    pub(super) neighbors: bool,
    /// Reports of the thread beside the loop.
    pub(super) reports: bool,
    /// By port: who asks for its neighbours is to be settled.
    pub(super) asking: Bits,
}

impl Ready {
    /// The kernel's state is to be read first.
    pub(super) fn new(ports: usize) -> Ready {
        Ready {
            tuns: Bits::new(ports),
            sockets: Bits::new(ports),
            monitor: true,
            neighbors: false,
            reports: false,
            asking: Bits::new(ports),
        }
    }

    pub(super) fn any(&self) -> bool {
        let ports = !self.tuns.is_empty() || !self.sockets.is_empty();
        let others = self.monitor || self.neighbors || self.reports;
        ports || others || !self.asking.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0_usize..600), 0..200)) {
            let (mut bits, mut model) = (Bits::new(512), BTreeSet::new());
            for (adds, number) in steps {
                if adds {
                    bits.insert(number);
                    model.extend((number < 512).then_some(number));
                } else {
                    bits.remove(number);
                    model.remove(&number);
                }
                prop_assert_eq!(bits.is_empty(), model.is_empty());
                prop_assert_eq!(bits.contains(number), model.contains(&number));
            }
            let mut listed = Vec::new();
            let mut next = bits.next(0);
            while let Some(number) = next {
                listed.push(number);
                next = bits.next(number + 1);
            }
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        }
    }
}
