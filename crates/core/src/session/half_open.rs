//! The limit of sessions that one source may have open without an answer.

use super::KeyedHash;
use crate::flow::Addr;

/// Counts the half-open sessions of each source (IPv6: of each /64) in a fixed array.
///
/// Sources whose hashes collide share a counter. The hash is keyed, so that nobody can aim at the
/// counter of another.
#[derive(Debug)]
pub struct HalfOpen {
    counters: Vec<u16>,
    limit: Option<u16>,
    hash: KeyedHash,
}

impl HalfOpen {
    const COUNTERS: usize = 65_536;

    /// A limit of `limit` a source; zero means none, more than 65 535 means that.
    pub fn new(limit: u32, hash: KeyedHash) -> HalfOpen {
        HalfOpen {
            counters: vec![0; Self::COUNTERS],
            limit: limit_of(limit),
            hash,
        }
    }

    /// Changes the limit.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit_of(limit);
    }

    /// Counts one more of `source`, if it is below its limit. Returns whether it was.
    #[must_use]
    pub fn try_add(&mut self, source: &Addr) -> bool {
        let limit = self.limit;
        let counter = self.counter(source);
        let allowed = limit.is_none_or(|limit| *counter < limit);
        if allowed {
            *counter = counter.saturating_add(1);
        }
        allowed
    }

    /// Whether [`HalfOpen::try_add`] would count one more of `source`.
    pub fn allows(&self, source: &Addr) -> bool {
        let counter = self.counters[self.place(source)];
        self.limit.is_none_or(|limit| counter < limit)
    }

    /// Counts one less of `source`; to be called once for each that was added.
    pub fn remove(&mut self, source: &Addr) {
        let counter = self.counter(source);
        *counter = counter.saturating_sub(1);
    }

    /// The sum of all counters.
    pub fn total(&self) -> u64 {
        self.counters.iter().map(|&c| u64::from(c)).sum()
    }

    fn counter(&mut self, source: &Addr) -> &mut u16 {
        let place = self.place(source);
        &mut self.counters[place]
    }

    fn place(&self, source: &Addr) -> usize {
        self.hash.source(source) as usize % Self::COUNTERS
    }
}

fn limit_of(limit: u32) -> Option<u16> {
    (limit > 0).then(|| u16::try_from(limit).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_each_source_by_itself() {
        let mut half_open = HalfOpen::new(2, KeyedHash::new(&[1; 16]));
        let (a, b) = (Addr::v4([10, 0, 0, 1]), Addr::v4([10, 0, 0, 2]));
        assert!(half_open.try_add(&a));
        assert!(half_open.try_add(&a));
        assert!(!half_open.allows(&a));
        assert!(!half_open.try_add(&a));
        assert!(half_open.allows(&b));
        assert!(half_open.try_add(&b));
        half_open.remove(&a);
        assert!(half_open.try_add(&a));
        assert_eq!(half_open.total(), 3);
    }

    #[test]
    fn without_a_limit_a_counter_does_not_overflow() {
        let mut half_open = HalfOpen::new(0, KeyedHash::new(&[1; 16]));
        let a = Addr::v4([10, 0, 0, 1]);
        let added = (0..70_000).filter(|_| half_open.try_add(&a)).count();
        assert_eq!(added, 70_000);
        assert_eq!(half_open.total(), 65_535);
    }
}
