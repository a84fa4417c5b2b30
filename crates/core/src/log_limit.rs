//! Limits the log lines of each kind of event: a flood of packets must not fill a disk or a
//! journal, or push important lines out of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Time;

/// Kinds that are counted separately; the rest share one entry. A kind is a place in the source, so
/// this is more than there are.
const MAX_KINDS: usize = 256;
/// How often suppressed lines of a kind are reported.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(1);
const NANOS: u64 = 1_000_000_000;

/// The log target of the lines that policies with `log = true` write.
pub(crate) const SESSION_TARGET: &str = "tandemgw::session";

/// The rate of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Lines a second in the long run.
    pub per_second: u64,
    /// Burst of lines after a pause.
    pub burst: u64,
}

impl Rate {
    /// For the start and for the end of sessions, each. Together they stay below the rate at which
    /// journald drops lines of a service (10 000 in 30 s), bursts included.
    const SESSIONS: Rate = Rate {
        per_second: 150,
        burst: 500,
    };
    /// Of everything else.
    const EVENTS: Rate = Rate {
        per_second: 10,
        burst: 100,
    };

    /// The rate of a log target.
    pub fn of(target: &str) -> Rate {
        match target {
            SESSION_TARGET => Rate::SESSIONS,
            _ => Rate::EVENTS,
        }
    }
}

/// A place in the source that writes lines: file and line.
pub type LineKind = (&'static str, u32);

/// Lines that were suppressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// The first words of such a line.
    pub event: String,
    /// How many.
    pub count: u64,
}

/// A token bucket for each kind of line.
#[derive(Debug, Default)]
pub struct LogLimits {
    kinds: BTreeMap<LineKind, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// Lines that may be written, each worth `NANOS`, so that a refill needs no division.
    credit: u64,
    refilled: Time,
    /// The suppressed lines, and since when.
    suppressed: Option<(Time, Suppressed)>,
}

impl LogLimits {
    /// Unused limits.
    pub const fn new() -> LogLimits {
        LogLimits {
            kinds: BTreeMap::new(),
        }
    }

    /// Whether a line of `kind` may be written at `now`. If not, it is counted under `event`, its
    /// first words.
    pub fn allow(
        &mut self,
        now: Time,
        kind: LineKind,
        rate: Rate,
        event: impl FnOnce() -> String,
    ) -> bool {
        let is_new = !self.kinds.contains_key(&kind);
        let kind = match is_new && self.kinds.len() >= MAX_KINDS {
            true => ("", 0),
            false => kind,
        };
        let bucket = self.kinds.entry(kind).or_insert(Bucket {
            credit: rate.burst * NANOS,
            refilled: now,
            suppressed: None,
        });
        let passed = now.since(bucket.refilled).as_nanos();
        let earned = passed.saturating_mul(u128::from(rate.per_second));
        let most = rate.burst * NANOS;
        bucket.credit = (u128::from(bucket.credit) + earned).min(u128::from(most)) as u64;
        bucket.refilled = now;
        if bucket.credit >= NANOS {
            bucket.credit -= NANOS;
            return true;
        }
        let first = || {
            let event = event();
            (now, Suppressed { event, count: 0 })
        };
        bucket.suppressed.get_or_insert_with(first).1.count += 1;
        false
    }

    /// Reports due at `now` about suppressed lines; call it until it returns `None`.
    pub fn poll_summary(&mut self, now: Time) -> Option<Suppressed> {
        let is_due = |(since, _): &mut (Time, Suppressed)| *since + SUMMARY_INTERVAL <= now;
        let mut buckets = self.kinds.values_mut();
        let (_, suppressed) = buckets.find_map(|bucket| bucket.suppressed.take_if(is_due))?;
        Some(suppressed)
    }

    /// When [`LogLimits::poll_summary`] has something to report; `None` if nothing was suppressed.
    pub fn poll_timeout(&self) -> Option<Time> {
        let since = self.kinds.values().filter_map(|b| b.suppressed.as_ref());
        since.map(|(since, _)| *since + SUMMARY_INTERVAL).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: LineKind = ("a.rs", 1);
    const RATE: Rate = Rate {
        per_second: 10,
        burst: 20,
    };

    fn at(ms: u64) -> Time {
        Time::from_nanos(1) + Duration::from_millis(ms)
    }

    fn flood(limits: &mut LogLimits, kind: LineKind, ms: std::ops::Range<u64>) -> usize {
        ms.filter(|ms| limits.allow(at(*ms), kind, RATE, || "flood".to_owned()))
            .count()
    }

    #[test]
    fn a_flood_writes_its_burst_and_its_rate_and_the_rest_is_counted() {
        let mut limits = LogLimits::new();
        let mut written = 0;
        let mut suppressed = 0;
        for second in 0..10 {
            written += flood(&mut limits, KIND, second * 1000..(second + 1) * 1000);
            while let Some(summary) = limits.poll_summary(at(second * 1000 + 999)) {
                assert_eq!(summary.event, "flood");
                suppressed += summary.count;
            }
        }
        assert!((119..=120).contains(&written), "{written}");
        written += flood(&mut limits, KIND, 10_000..10_010);
        let due = limits.poll_timeout().unwrap();
        assert!(due > at(10_010) && due <= at(11_010), "{due:?}");
        suppressed += limits.poll_summary(due).unwrap().count;
        assert_eq!(written + suppressed as usize, 10_010);
        assert_eq!(limits.poll_timeout(), None);
    }

    #[test]
    fn one_kind_does_not_silence_another() {
        let mut limits = LogLimits::new();
        flood(&mut limits, KIND, 0..1000);
        assert_eq!(flood(&mut limits, ("a.rs", 2), 1000..1001), 1);
        assert!(flood(&mut limits, KIND, 1000..1050) <= 1);
    }

    #[test]
    fn kinds_are_bounded() {
        let mut limits = LogLimits::new();
        for line in 0..10_000 {
            limits.allow(at(0), ("b.rs", line), RATE, String::new);
        }
        assert_eq!(limits.kinds.len(), MAX_KINDS + 1);
    }
}
