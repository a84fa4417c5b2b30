//! Reproducible numbers from one seed: for choices that must repeat when a run is replayed.
//!
//! They are not secret. Values that an attacker must not guess come from the gateway's keyed
//! generator.

use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Clone, Debug, Default)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next 64 bits.
    #[allow(
        clippy::should_implement_trait,
        reason = "it never ends: there is no Option to unwrap"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `end - 1`; 0 if `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        // Multiply and shift: the product's upper half is below `end`.
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    /// True with a probability of `per_mille` in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.next() % 1000 < per_mille
    }

    /// One of `choices`.
    ///
    /// # Panics
    /// If there are none.
    pub fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// Less than `most`, in whole microseconds.
    pub fn up_to(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.next() % (most.as_micros() as u64).max(1))
    }

    /// As many random bytes as the caller wants.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_reference_implementation() {
        let mut random = SplitMix64(1_234_567);
        let first: [u64; 3] = std::array::from_fn(|_| random.next());
        let reference = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(first, reference);
    }

    #[test]
    fn numbers_stay_below_their_end() {
        let mut random = SplitMix64(3);
        assert_eq!(random.below(0), 0);
        let seen: std::collections::BTreeSet<usize> = (0..200).map(|_| random.below(7)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6]);
        let most = Duration::from_micros(7);
        let seen: std::collections::BTreeSet<Duration> =
            (0..200).map(|_| random.up_to(most)).collect();
        assert!(seen.into_iter().eq((0..7).map(Duration::from_micros)));
        assert_eq!(random.up_to(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn chances_and_bytes_are_spread_evenly() {
        let mut random = SplitMix64(4);
        for (per_mille, off) in [(0, 0), (250, 120), (1000, 0)] {
            let hits = (0..4000).filter(|_| random.chance(per_mille)).count() as u64;
            assert!(hits.abs_diff(per_mille * 4) <= off, "{hits} at {per_mille}");
        }
        let bytes: [u8; 4000] = random.bytes();
        let seen: std::collections::BTreeSet<u8> = bytes.into_iter().collect();
        assert_eq!(seen.len(), 256);
    }
}
