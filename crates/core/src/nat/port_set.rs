//! A set of ports, one bit each.

const WORDS: usize = 65_536 / 64;

/// A set of ports or ICMP identifiers, in 8 KB.
pub(super) struct PortSet {
    words: Box<[u64; WORDS]>,
    len: u32,
}

impl PortSet {
    pub(super) fn new() -> PortSet {
        PortSet {
            words: Box::new([0; WORDS]),
            len: 0,
        }
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        let (word, bit) = place(port);
        self.words[word] & bit != 0
    }

    /// Adds `port`; returns whether it was missing.
    pub(super) fn insert(&mut self, port: u16) -> bool {
        let (word, bit) = place(port);
        let missing = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += u32::from(missing);
        missing
    }

    pub(super) fn remove(&mut self, port: u16) {
        let (word, bit) = place(port);
        self.len -= u32::from(self.words[word] & bit != 0);
        self.words[word] &= !bit;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }
}

/// The first port of `first..=last` that is in none of the sets. Reads a word of each at a time:
/// 1024 at most.
pub(super) fn next_missing(sets: &[&PortSet], first: u16, last: u16) -> Option<u16> {
    if first > last {
        return None;
    }
    let (first_word, last_word) = (usize::from(first) / 64, usize::from(last) / 64);
    (first_word..=last_word).find_map(|word| {
        let before = match word == first_word {
            true => (1 << (first % 64)) - 1,
            false => 0,
        };
        let missing = !sets.iter().fold(before, |all, set| all | set.words[word]);
        // Less than 65 536, because the word and the bit are in range.
        let port = || (word * 64 + missing.trailing_zeros() as usize) as u16;
        (missing != 0).then(port).filter(|port| *port <= last)
    })
}

fn place(port: u16) -> (usize, u64) {
    (usize::from(port) / 64, 1 << (port % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_next_missing_port_agrees_with_a_scan(
            runs in prop::collection::vec((any::<bool>(), any::<u16>(), 0u16..300), 0..20),
            first in any::<u16>(),
            last in any::<u16>(),
        ) {
            let (mut one, mut other) = (PortSet::new(), PortSet::new());
            for (is_one, start, len) in runs {
                let set = if is_one { &mut one } else { &mut other };
                for port in start..=start.saturating_add(len) {
                    set.insert(port);
                }
            }
            for (first, last) in [(first, last), (last, first), (first, first), (0, 65_535)] {
                let mut all = first..=last;
                let expected = all.find(|port| !one.contains(*port) && !other.contains(*port));
                prop_assert_eq!(next_missing(&[&one, &other], first, last), expected);
            }
        }
    }

    #[test]
    fn ports_come_and_go() {
        let mut set = PortSet::new();
        assert!(set.is_empty());
        for port in [0, 63, 64, 65_535] {
            assert!(set.insert(port));
            assert!(!set.insert(port));
            assert!(set.contains(port));
        }
        assert_eq!(set.len(), 4);
        assert!(!set.is_empty());
        for _ in 0..2 {
            set.remove(64);
            assert!(!set.contains(64) && set.contains(63));
            assert_eq!(set.len(), 3);
        }
        for port in 0..=65_535 {
            set.insert(port);
        }
        assert_eq!(next_missing(&[&set], 0, 65_535), None);
        assert_eq!(next_missing(&[], 7, 9), Some(7));
    }
}
