//! Ranges of external ports, and which of them suit which source port.

/// Ports from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
}

/// The classes of source ports: privileged, reserved for `rresvport` (NFS, rsh), or neither.
/// Translation keeps that (RFC 4787, REQ-3a).
const CLASSES: [Range; 3] = [
    Range::new(1, 511),
    Range::new(512, 1023),
    Range::new(1024, u16::MAX),
];

impl Range {
    pub(super) const fn new(first: u16, last: u16) -> Range {
        Range { first, last }
    }

    pub(super) fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many ports there are.
    pub(super) fn size(self) -> u32 {
        u32::from(self.last.saturating_sub(self.first)) + 1
    }

    /// The ports to search in place of `wanted`: those of its class, and then those that any sender
    /// may have. All of the range if it has none of either.
    pub(super) fn candidates(self, wanted: u16) -> impl Iterator<Item = Range> {
        let class = CLASSES.iter().find(|class| class.contains(wanted));
        let same = class.and_then(|class| self.and(*class));
        let ordinary = self.and(CLASSES[2]).filter(|range| Some(*range) != same);
        let all = (same.is_none() && ordinary.is_none()).then_some(self);
        [same, ordinary, all].into_iter().flatten()
    }

    /// The range in which the search for a port in place of `wanted` ends: the last of the
    /// candidates.
    pub(super) fn last_candidate(self, wanted: u16) -> Range {
        self.candidates(wanted).last().unwrap_or(self)
    }

    /// The smaller range in which the search begins, if that differs from the last one.
    pub(super) fn first_candidate(self, wanted: u16) -> Option<Range> {
        let first = self.candidates(wanted).next();
        first.filter(|first| *first != self.last_candidate(wanted))
    }

    /// The values of [`Range::last_candidate`] for all source ports.
    pub(super) fn last_candidates(self) -> impl Iterator<Item = Range> {
        let ordinary = self.and(CLASSES[2]);
        let low = ordinary.is_none().then(|| {
            let classes = CLASSES[..2]
                .iter()
                .filter_map(move |class| self.and(*class));
            classes.chain([self])
        });
        ordinary.into_iter().chain(low.into_iter().flatten())
    }

    /// The part of a slot, of `count` parts as equal as possible. The range has at least as many
    /// ports.
    pub(super) fn slice(self, slot: u8, count: u8) -> Range {
        let start = |slot: u32| slot * self.size() / u32::from(count);
        let (from, to) = (start(u32::from(slot)), start(u32::from(slot) + 1));
        Range {
            first: self.first + from as u16,
            last: self.first + (to - 1) as u16,
        }
    }

    /// The slot whose slice has `port`, a port of the range.
    pub(super) fn slot_of(self, port: u16, count: u8) -> u8 {
        let place = u32::from(port - self.first);
        (((place + 1) * u32::from(count) - 1) / self.size()) as u8
    }

    fn and(self, other: Range) -> Option<Range> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (first <= last).then_some(Range { first, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_belong_to_a_range() {
        for (first, last, size) in [(7, 7, 1), (1024, 2047, 1024), (0, u16::MAX, 65_536)] {
            let range = Range::new(first, last);
            assert_eq!(range.size(), size);
            assert!(range.contains(first) && range.contains(last));
        }
    }

    #[test]
    fn slices_divide_a_range() {
        for (first, last) in [(1, u16::MAX), (0, u16::MAX), (1024, 1055), (40_000, 40_033)] {
            let all = Range::new(first, last);
            for count in 2..=32 {
                let mut next = u32::from(first);
                for slot in 0..count {
                    let slice = all.slice(slot, count);
                    assert_eq!(u32::from(slice.first), next);
                    next = u32::from(slice.last) + 1;
                    let (least, most) = (all.size() / u32::from(count), slice.size());
                    assert!((least..=least + 1).contains(&most));
                    for port in [slice.first, slice.last] {
                        assert_eq!(all.slot_of(port, count), slot, "{all:?} {count} {port}");
                    }
                }
                assert_eq!(next, u32::from(last) + 1);
            }
        }
    }

    #[test]
    fn a_port_gets_one_of_its_class() {
        let candidates = |range: Range, wanted| range.candidates(wanted).collect::<Vec<_>>();
        let [low, reserved, ordinary] = CLASSES;
        let all = Range::new(1, u16::MAX);
        assert_eq!(candidates(all, 40_000), [ordinary]);
        assert_eq!(candidates(all, 1023), [reserved, ordinary]);
        assert_eq!(candidates(all, 53), [low, ordinary]);
        assert_eq!(candidates(all, 0), [ordinary]);
        let narrow = Range::new(1000, 2000);
        assert_eq!(
            candidates(narrow, 600),
            [Range::new(1000, 1023), Range::new(1024, 2000)]
        );
        assert_eq!(candidates(narrow, 53), [Range::new(1024, 2000)]);
        let only_low = Range::new(600, 700);
        assert_eq!(candidates(only_low, 40_000), [only_low]);
        assert_eq!(candidates(only_low, 53), [only_low]);
        for range in [all, narrow, only_low, Range::new(500, 600)] {
            for wanted in [0, 53, 511, 512, 600, 1023, 1024, 40_000] {
                let last = range.last_candidate(wanted);
                assert!(
                    range.last_candidates().any(|it| it == last),
                    "{range:?} {wanted}"
                );
            }
        }
        assert_eq!(all.first_candidate(40_000), None);
        assert_eq!(all.first_candidate(53), Some(low));
    }
}
