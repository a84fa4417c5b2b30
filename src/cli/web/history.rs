//! The last hour of a gateway: what the graphs of the page are drawn from.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use tandemgw_core::control::protocol::Status;
use tandemgw_core::time::Time;

/// The time of a point, in seconds.
const STEP: u64 = 10;

/// Points of an hour.
const POINTS: usize = 360;

/// By how much an uptime may grow less than the time: it comes in whole seconds, and an answer
/// takes a while. One that grows still less is that of another process.
const INEXACT: Duration = Duration::from_millis(1500);

/// What was forwarded in the last hour, and the sessions.
#[derive(Default)]
pub struct History {
    /// The oldest first; the last one is not complete.
    points: VecDeque<Point>,
    last: Option<Seen>,
}

/// A step of the time.
#[derive(Clone, Copy, Default)]
struct Point {
    /// Its number since the clock's beginning.
    step: u64,
    /// How long the rates were observed; nothing without an answer.
    observed: Duration,
    packets: u64,
    bytes: u64,
    /// The most that were seen.
    sessions: u64,
}

/// The counters at the last look.
#[derive(Clone, Copy)]
struct Seen {
    at: Time,
    uptime: Duration,
    packets: u64,
    bytes: u64,
}

impl History {
    /// Notes what the gateway says now.
    pub fn learn(&mut self, now: Time, status: &Status) {
        let counters = &status.counters;
        let seen = Seen {
            at: now,
            uptime: Duration::from_secs(status.uptime_s),
            packets: counters.forwarded,
            bytes: counters.bytes,
        };
        let before = self.last.replace(seen);
        let point = self.at(now);
        point.sessions = point.sessions.max(status.sessions.total);
        // Counters of another process say nothing about the time between.
        let Some(before) = before.filter(|before| before.is_same_process(&seen)) else {
            return;
        };
        point.observed += now.since(before.at);
        point.packets += seen.packets - before.packets;
        point.bytes += seen.bytes - before.bytes;
    }

    fn at(&mut self, now: Time) -> &mut Point {
        let step = step(now);
        if self.points.back().is_none_or(|last| last.step != step) {
            if self.points.len() == POINTS {
                self.points.pop_front();
            }
            self.points.push_back(Point {
                step,
                ..Point::default()
            });
        }
        let last = self.points.len() - 1;
        &mut self.points[last]
    }

    /// The last hour: rates per second and sessions, the oldest first; `null` where nothing is
    /// known.
    pub fn shown(&self, now: Time) -> Value {
        let newest = step(now);
        let mut points = vec![None; POINTS];
        for point in &self.points {
            let back = newest.saturating_sub(point.step) as usize;
            if let Some(at) = (POINTS - 1).checked_sub(back) {
                points[at] = Some(*point);
            }
        }
        let rate = |of: fn(&Point) -> u64| -> Vec<Option<u64>> {
            let rates = points.iter().map(|point| {
                let point = point.as_ref()?;
                let seconds = point.observed.as_secs_f64();
                (seconds > 0.0).then(|| (of(point) as f64 / seconds).round() as u64)
            });
            rates.collect()
        };
        let sessions = points.iter().map(|point| Some(point.as_ref()?.sessions));
        json!({
            "step_s": STEP,
            "bits": rate(|point| point.bytes * 8),
            "packets": rate(|point| point.packets),
            "sessions": sessions.collect::<Vec<_>>(),
        })
    }
}

impl Seen {
    fn is_same_process(&self, after: &Seen) -> bool {
        after.uptime + INEXACT >= self.uptime + after.at.since(self.at)
            && after.packets >= self.packets
            && after.bytes >= self.bytes
    }
}

fn step(now: Time) -> u64 {
    now.since(Time::ZERO).as_secs() / STEP
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::parse;

    fn status(uptime_s: u64, packets: u64, sessions: u64) -> Status {
        let line = json!({
            "protocol": null, "node": "a", "version": "1", "uptime_s": uptime_s, "health": null,
            "maintenance": null, "config": null, "groups": [], "peers": [], "ports": [],
            "sessions": {"total": sessions, "tcp": 0, "udp": 0, "icmp": 0, "other": 0, "max": 9, "opened": 0},
            "counters": {"forwarded": packets, "bytes": packets * 100, "dropped": {}, "dropped_early": 0,
                "cleared": 0, "forbidden": 0, "outputs_lost": 0, "address_conflicts": 0,
                "pickup_guarantee": {"held": 0, "expired": 0, "degraded": 0, "refused": 0},
                "asymmetric_flows": {"stood_in": 0, "passed_on": 0, "received": 0}},
            "events": [],
        });
        parse(&line.to_string()).unwrap()
    }

    fn at(second: u64) -> Time {
        Time::ZERO + Duration::from_secs(second)
    }

    /// The last `count` values of a graph.
    fn last(history: &History, now: u64, graph: &str, count: usize) -> Vec<Option<u64>> {
        let shown = history.shown(at(now));
        let values = shown[graph].as_array().unwrap().clone();
        assert_eq!(values.len(), POINTS);
        values[POINTS - count..].iter().map(Value::as_u64).collect()
    }

    #[test]
    fn rates_are_those_of_the_time_that_was_observed() {
        let mut history = History::default();
        history.learn(at(1000), &status(5, 1000, 3));
        assert_eq!(last(&history, 1000, "bits", 2), [None, None], "one look");
        history.learn(at(1004), &status(9, 1400, 7));
        history.learn(at(1009), &status(14, 1400, 2));
        // 400 packets of 100 bytes in 9 s; the next step has seen 1 s only.
        history.learn(at(1010), &status(15, 1450, 2));
        assert_eq!(
            last(&history, 1010, "packets", 3),
            [None, Some(44), Some(50)]
        );
        assert_eq!(
            last(&history, 1010, "bits", 2),
            [Some(35_556), Some(40_000)]
        );
        assert_eq!(last(&history, 1010, "sessions", 2), [Some(7), Some(2)]);
        // Nobody answered for 20 s: a gap, and then the average of that time.
        history.learn(at(1031), &status(36, 1660, 2));
        let expected = [Some(50), None, Some(10)];
        assert_eq!(last(&history, 1031, "packets", 3), expected);
    }

    #[test]
    fn another_process_begins_at_zero() {
        for (uptime, packets) in [(1, 9), (1, 5000), (16, 9)] {
            let mut history = History::default();
            history.learn(at(100), &status(5, 1000, 1));
            history.learn(at(111), &status(uptime, packets, 1));
            assert_eq!(last(&history, 111, "bits", 2), [None, None]);
            history.learn(at(112), &status(uptime + 1, packets + 8, 1));
            assert_eq!(last(&history, 112, "packets", 2), [None, Some(8)]);
        }
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut history = History::default();
        for second in 0..8000 {
            history.learn(at(second), &status(second, second * 3, second));
        }
        assert_eq!(history.points.len(), POINTS);
        let rates = last(&history, 7999, "packets", POINTS);
        assert!(rates.iter().all(|rate| *rate == Some(3)), "{rates:?}");
        assert_eq!(last(&history, 12_000, "packets", POINTS), [None; POINTS]);
    }
}
