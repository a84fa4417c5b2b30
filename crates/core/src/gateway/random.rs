//! Unpredictable numbers from a seed: SipHash-2-4 in counter mode.
//!
//! Ports chosen with it must be unpredictable (RFC 6056, section 3.3), yet a replay with the same
//! seed must choose the same ones.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

use super::Seed;

/// A stream of unpredictable numbers.
#[derive(Clone)]
pub struct Random {
    key: [u8; 16],
    salt: [u8; 16],
    counter: u64,
}

impl Random {
    pub fn new(seed: Seed) -> Random {
        let (key, salt) = seed.0.split_at(16);
        let half = |bytes: &[u8]| std::array::from_fn(|i| bytes[i]);
        Random {
            key: half(key),
            salt: half(salt),
            counter: 0,
        }
    }

    pub fn next(&mut self) -> u64 {
        self.counter += 1;
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&self.salt);
        hasher.write_u64(self.counter);
        hasher.finish()
    }

    /// A key for a keyed hash.
    pub fn key(&mut self) -> [u8; 16] {
        let (low, high) = (self.next().to_le_bytes(), self.next().to_le_bytes());
        std::array::from_fn(|i| if i < 8 { low[i] } else { high[i - 8] })
    }
}
