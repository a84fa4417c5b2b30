//! A histogram of durations.

use std::time::Duration;

/// Counts durations by size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// By [`BOUNDS`], plus one for longer durations.
    counts: [u64; BOUNDS.len() + 1],
    nanos: u64,
}

/// The upper bounds, in nanoseconds: from a turn with a packet or two to one that delays packets
/// noticeably.
const BOUNDS: [u64; 13] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];

impl Histogram {
    /// Counts one.
    #[inline]
    pub fn observe(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().take_while(|bound| nanos > **bound).count();
        self.counts[bucket] += 1;
        self.nanos = self.nanos.saturating_add(nanos);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos)
    }

    /// Each upper bound, `None` for infinity, with the number of durations up to it.
    pub(crate) fn cumulated(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        let bounds = BOUNDS.iter().copied().map(Duration::from_nanos);
        let bounds = bounds.map(Some).chain([None]);
        bounds.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let mut histogram = Histogram::default();
        for nanos in [0, 10_000, 10_001, 100_000_000, 100_000_001, u64::MAX] {
            histogram.observe(Duration::from_nanos(nanos));
        }
        let cumulated: Vec<u64> = histogram.cumulated().map(|(_, count)| count).collect();
        assert_eq!(cumulated, [2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 6]);
        assert_eq!(histogram.count(), 6);
        assert_eq!(histogram.sum(), Duration::from_nanos(u64::MAX));
        assert!(BOUNDS.is_sorted());
    }
}
