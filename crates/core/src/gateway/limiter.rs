//! A token bucket for the errors that the gateway itself makes (RFC 1812, section 4.3.2.8;
//! RFC 4443, section 2.4(f)).

use crate::time::Time;

const NANOS: u64 = 1_000_000_000;

/// The purpose of an answer. Each has its own tokens, so that junk can't use up those of the
/// others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Budget {
    /// Errors that keep working connections alive: "packet too big".
    KeepsAlive,
    /// Refusals of all kinds.
    Refusals,
    /// Echo replies.
    Echo,
    /// Inspections of packets whose hop limit ends here: they share a socket with ARP, which must
    /// not wait.
    Expired,
}

/// Echo replies a second: more than a person or a monitor asks for.
const ECHO_REPLIES_PER_SECOND: u32 = 50_000;
/// Packets a second without a hop left that are inspected: several hundred traceroutes at once.
const EXPIRED_PER_SECOND: u32 = 10_000;

/// A limiter for each budget.
pub(super) struct Budgets([Limiter; 4]);

impl Budgets {
    /// With `errors` errors a second of each kind.
    pub(super) fn new(errors: u32) -> Budgets {
        let rates = [errors, errors, ECHO_REPLIES_PER_SECOND, EXPIRED_PER_SECOND];
        Budgets(rates.map(Limiter::new))
    }

    /// Whether these are the same as [`Budgets::new`] with `errors` makes.
    pub(super) fn are_of(&self, errors: u32) -> bool {
        let rates = self.0.iter().map(|limiter| limiter.per_second);
        let wanted = Budgets::new(errors);
        rates.eq(wanted.0.iter().map(|limiter| limiter.per_second))
    }

    /// Whether one more answer may be sent at `now`.
    pub(super) fn allow(&mut self, budget: Budget, now: Time) -> bool {
        self.0[budget as usize].allow(now)
    }
}

/// Lets through a number of events a second, in bursts of up to a tenth of a second's worth.
pub(super) struct Limiter {
    per_second: u64,
    /// Tokens, each worth `NANOS`, so that refilling needs no division.
    credit: u64,
    refilled: Time,
}

impl Limiter {
    pub(super) fn new(per_second: u32) -> Limiter {
        let per_second = u64::from(per_second);
        Limiter {
            per_second,
            credit: Self::burst(per_second),
            refilled: Time::ZERO,
        }
    }

    fn burst(per_second: u64) -> u64 {
        (per_second * NANOS / 10).max(NANOS.min(per_second * NANOS))
    }

    /// Whether one more event may happen at `now`.
    pub(super) fn allow(&mut self, now: Time) -> bool {
        let passed = now.since(self.refilled).as_nanos().min(u128::from(NANOS)) as u64;
        self.refilled = now;
        self.credit = (self.credit + passed * self.per_second).min(Self::burst(self.per_second));
        let allowed = self.credit >= NANOS;
        if allowed {
            self.credit -= NANOS;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lets_through_the_rate_and_a_short_burst() {
        let mut limiter = Limiter::new(100);
        let mut allowed = 0;
        for ms in 0..1000 {
            let now = Time::from_nanos(1) + Duration::from_millis(ms);
            allowed += (0..10).filter(|_| limiter.allow(now)).count();
        }
        assert!((100..=110).contains(&allowed), "{allowed}");
    }

    #[test]
    fn budgets_are_apart() {
        let mut budgets = Budgets::new(100);
        let now = Time::from_nanos(1);
        while budgets.allow(Budget::Refusals, now) {}
        assert!(budgets.allow(Budget::KeepsAlive, now));
        let replies = (0..10_000).filter(|_| budgets.allow(Budget::Echo, now));
        assert_eq!(replies.count(), 5000);
        assert!(budgets.allow(Budget::KeepsAlive, now));
    }

    #[test]
    fn a_low_rate_lets_one_through_at_once() {
        let mut limiter = Limiter::new(1);
        let now = Time::from_nanos(1);
        assert!(limiter.allow(now) && !limiter.allow(now));
        assert!(limiter.allow(now + Duration::from_secs(1)));
    }

    #[test]
    fn budgets_are_of_the_rate_that_they_were_made_with() {
        let budgets = Budgets::new(100);
        assert!(budgets.are_of(100) && !budgets.are_of(101));
    }

    #[test]
    fn a_limit_of_zero_lets_nothing_through() {
        let mut limiter = Limiter::new(0);
        assert!(!limiter.allow(Time::from_nanos(u64::MAX)));
    }
}
