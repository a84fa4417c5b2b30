//! The core's clock: the shell passes in the time; the core never reads it.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point of monotonic time, in nanoseconds since an arbitrary start.
///
/// Only differences are meaningful. The shell reads the clock once per wake and passes the value
/// in; the simulator passes in virtual time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The start of time.
    pub const ZERO: Time = Time(0);

    /// A point `nanos` nanoseconds after [`Time::ZERO`].
    pub const fn from_nanos(nanos: u64) -> Time {
        Time(nanos)
    }

    /// Nanoseconds since [`Time::ZERO`].
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time that has passed since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The coarse stamp that sessions carry.
    pub fn tick(self) -> Tick {
        Tick((self.0 / Tick::NANOS) as u32)
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, duration: Duration) -> Time {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(nanos))
    }
}

impl Sub<Time> for Time {
    type Output = Duration;

    fn sub(self, earlier: Time) -> Duration {
        self.since(earlier)
    }
}

/// A point in time in units of 100 ms: four bytes per stamp, and 13 years until it wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u32);

impl Tick {
    const NANOS: u64 = 100_000_000;

    /// Later than any time that occurs.
    pub const NEVER: Tick = Tick(u32::MAX);

    /// From the beginning of one tick to that of the next.
    pub(crate) const DURATION: Duration = Duration::from_nanos(Self::NANOS);

    /// The number of ticks in `duration`, rounded up.
    pub fn count(duration: Duration) -> u32 {
        u32::try_from(duration.as_nanos().div_ceil(u128::from(Self::NANOS))).unwrap_or(u32::MAX)
    }

    /// The time at which this tick begins.
    pub fn time(self) -> Time {
        Time(u64::from(self.0) * Self::NANOS)
    }

    /// The tick `count` ticks later, short of [`Tick::NEVER`].
    pub fn after(self, count: u32) -> Tick {
        Tick(self.0.saturating_add(count).min(u32::MAX - 1))
    }

    /// The time from `earlier` until this tick; zero if `earlier` is later.
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(u64::from(self.0.saturating_sub(earlier.0)) * Self::NANOS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANO: Duration = Duration::from_nanos(1);

    #[test]
    fn nanoseconds_are_added_and_never_wrap() {
        let time = Time::from_nanos(1_234_567_890);
        assert_eq!(time.as_nanos(), 1_234_567_890);
        assert_eq!((time + NANO * 10).as_nanos(), 1_234_567_900);
        assert_eq!((time + NANO * 10).since(time), NANO * 10);
        assert_eq!((time + NANO * 10) - time, NANO * 10);
        assert_eq!(time.since(time + NANO), Duration::ZERO);
        assert_eq!(time + Duration::MAX, Time(u64::MAX));
    }

    #[test]
    fn a_tick_lasts_100_ms() {
        let at = |nanos| Time::from_nanos(nanos).tick();
        assert_eq!([at(0), at(99_999_999)], [Tick(0); 2]);
        assert_eq!([at(100_000_000), at(199_999_999)], [Tick(1); 2]);
        assert_eq!(Tick(7).time(), Time::from_nanos(700_000_000));
        assert_eq!(Tick(7).time().tick(), Tick(7));
    }

    #[test]
    fn ticks_are_counted_rounded_up_and_never_wrap() {
        let ms = Duration::from_millis;
        assert_eq!(Tick::count(Duration::ZERO), 0);
        assert_eq!([Tick::count(NANO), Tick::count(ms(100))], [1; 2]);
        assert_eq!(Tick::count(ms(100) + NANO), 2);
        assert_eq!(Tick::count(Duration::MAX), u32::MAX);
        assert_eq!(Tick(3).after(4), Tick(7));
        assert!(Tick(3).after(u32::MAX) < Tick::NEVER);
        assert_eq!(Tick(7).since(Tick(3)), ms(400));
        assert_eq!(Tick(3).since(Tick(7)), Duration::ZERO);
    }
}
