//! Ranks the units that could be primary of a group.

use std::cmp::Reverse;
use std::time::Duration;

use crate::evidence::Holding;

/// Units whose uptime is this close to the longest count as equally old.
const UPTIME_MARGIN: Duration = Duration::from_secs(300);

/// A unit that could be primary of a group, as it describes itself in its heartbeats.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    /// It holds all sessions of the group.
    pub ready: bool,
    /// It should stay standby, if another unit can be primary.
    pub maintenance: bool,
    /// The evidence it has of them.
    pub held: Holding,
    /// How many of its monitored ports are up.
    pub ports_up: u8,
    /// It has `override`.
    pub override_: bool,
    /// How long it has been running.
    pub uptime: Duration,
    /// Its priority for the group.
    pub priority: u8,
    /// The name of its node; unique.
    pub name: &'a str,
}

/// The index of the best of `candidates`.
///
/// First, units that can serve anybody at all; then ready ones; then those not in maintenance; then
/// those that hold more; then those with more monitored ports up; then, if any unit has `override`,
/// the higher priority, else the older (with a margin) and then the higher priority; then the
/// smaller name.
///
/// Ages are compared with that of the oldest, not with each other: with a margin, pairwise
/// comparison of three units could go round in a circle.
pub(super) fn best(candidates: &[Candidate<'_>]) -> Option<usize> {
    let longest = candidates.iter().map(|c| c.uptime).max()?;
    let by_priority = candidates.iter().any(|c| c.override_);
    let rank = |c: &Candidate<'_>| {
        let old = by_priority || longest.saturating_sub(c.uptime) <= UPTIME_MARGIN;
        let can_serve = (c.ports_up > 0, c.ready, !c.maintenance);
        (can_serve, c.held, c.ports_up, old, c.priority)
    };
    let (index, _) = candidates
        .iter()
        .enumerate()
        .max_by_key(|(_, c)| (rank(c), Reverse(c.name)))?;
    Some(index)
}

/// The rank of `up` monitored ports of `all`, for a heartbeat: their number, or if that does not
/// fit, how few are down, so that units with as many ports can still be compared.
pub(super) fn rank(up: usize, all: usize) -> u8 {
    const MOST: usize = u8::MAX as usize;
    let rank = match all {
        0..=MOST => up,
        _ => (MOST.saturating_sub(all - up)).max(usize::from(up > 0)),
    };
    u8::try_from(rank).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str) -> Candidate<'_> {
        Candidate {
            ready: true,
            maintenance: false,
            held: Holding::default(),
            ports_up: 2,
            override_: false,
            uptime: Duration::from_secs(1000),
            priority: 128,
            name,
        }
    }

    fn winner<'a>(candidates: &[Candidate<'a>]) -> &'a str {
        let mut reversed = candidates.to_vec();
        reversed.reverse();
        let name = candidates[best(candidates).unwrap()].name;
        assert_eq!(
            name,
            reversed[best(&reversed).unwrap()].name,
            "the list's order does not matter"
        );
        name
    }

    #[test]
    fn each_criterion_decides_when_those_before_it_are_equal() {
        let (a, b) = (unit("a"), unit("b"));
        assert_eq!(winner(&[a, b]), "a");
        let b = Candidate { priority: 129, ..b };
        assert_eq!(winner(&[a, b]), "b");
        let a = Candidate {
            uptime: Duration::from_secs(1301),
            ..a
        };
        assert_eq!(winner(&[a, b]), "a");
        let b = Candidate { ports_up: 3, ..b };
        assert_eq!(winner(&[a, b]), "b");
        let held = Holding {
            term: 1,
            ..Holding::default()
        };
        let a = Candidate { held, ..a };
        assert_eq!(winner(&[a, b]), "a", "who holds more");
        let held = Holding {
            position: 1,
            ..held
        };
        let b = Candidate { held, ..b };
        assert_eq!(winner(&[a, b]), "b");
        let a = Candidate { held, ..a };
        assert_eq!(winner(&[a, b]), "b", "for its ports");
        let [at_work, more] = [true, false].map(|maintenance| Candidate { maintenance, ..b });
        assert_eq!(
            winner(&[a, at_work]),
            "a",
            "the other one is to stay standby"
        );
        assert_eq!(winner(&[a, more]), "b");
        let b = Candidate { ready: false, ..b };
        assert_eq!(winner(&[a, b]), "a");
        let a = Candidate {
            maintenance: true,
            ..a
        };
        assert_eq!(winner(&[a, b]), "a", "the last one that has the sessions");
        let a = Candidate { ports_up: 0, ..a };
        assert_eq!(winner(&[a, b]), "b", "the other one reaches nobody");
    }

    #[test]
    fn uptime_within_the_margin_does_not_count() {
        let a = Candidate {
            uptime: Duration::from_secs(1300),
            ..unit("a")
        };
        let b = Candidate {
            priority: 129,
            ..unit("b")
        };
        assert_eq!(winner(&[a, b]), "b");
    }

    #[test]
    fn override_puts_priority_before_uptime() {
        let a = Candidate {
            uptime: Duration::from_secs(9000),
            ..unit("a")
        };
        let b = Candidate {
            priority: 129,
            override_: true,
            ..unit("b")
        };
        assert_eq!(winner(&[a, b]), "b");
    }

    #[test]
    fn three_units_whose_ages_differ_by_less_than_the_margin_pairwise_have_one_best() {
        let at = |name, secs| Candidate {
            uptime: Duration::from_secs(secs),
            ..unit(name)
        };
        assert_eq!(winner(&[at("a", 0), at("b", 200), at("c", 400)]), "b");
    }

    #[test]
    fn nobody_is_best_of_none() {
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn many_monitored_ports_are_compared_by_those_that_are_down() {
        for (up, all, is) in [
            (0, 0, 0),
            (2, 2, 2),
            (255, 255, 255),
            (300, 300, 255),
            (299, 300, 254),
            (512, 512, 255),
            (1, 512, 1),
            (0, 512, 0),
        ] {
            assert_eq!(rank(up, all), is, "{up} of {all}");
        }
    }
}
