//! The state of `top`: the last status, rates from the one before, and their history. It uses
//! neither a terminal nor a clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tandemgw_core::control::protocol::{HostRow, PolicyRow, PortStatus, Status};
use tandemgw_core::time::Time;

/// How many rates are kept; terminals are rarely wider.
const HISTORY: usize = 512;

/// The available intervals between two requests.
const INTERVALS: [Duration; 6] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// The values that the graphs show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graph {
    /// Packets forwarded.
    Packets,
    /// Bits forwarded.
    Bits,
    /// Sessions opened.
    Opened,
    /// Packets dropped, for any reason.
    Drops,
}

impl Graph {
    pub const ALL: [Graph; 4] = [Graph::Packets, Graph::Bits, Graph::Opened, Graph::Drops];
}

/// The command behind a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Pause,
    Slower,
    Faster,
}

/// The rates of a port, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PortRates {
    pub in_packets: f64,
    pub in_bits: f64,
    pub out_packets: f64,
    pub out_bits: f64,
}

/// Everything that is shown.
pub struct Top {
    status: Option<Status>,
    /// Why there is no answer now.
    trouble: Option<String>,
    sample: Option<Sample>,
    ports: BTreeMap<String, PortRates>,
    drops: Vec<Drop>,
    history: [VecDeque<Option<f64>>; Graph::ALL.len()],
    interval: usize,
    is_paused: bool,
    /// Hosts with the most sessions; empty if there is no room for them.
    pub hosts: Vec<HostRow>,
    /// The policies, in their order; empty if there is no room for them.
    pub policies: Vec<PolicyRow>,
}

/// A drop reason with its counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Drop {
    pub reason: String,
    pub rate: f64,
    pub total: u64,
}

/// The counters of one status.
struct Sample {
    at: Time,
    uptime_s: u64,
    totals: [u64; Graph::ALL.len()],
    ports: BTreeMap<String, [u64; 4]>,
    drops: BTreeMap<String, u64>,
}

impl Top {
    pub fn new() -> Top {
        Top {
            status: None,
            trouble: None,
            sample: None,
            ports: BTreeMap::new(),
            drops: Vec::new(),
            history: Default::default(),
            interval: 2,
            is_paused: false,
            hosts: Vec::new(),
            policies: Vec::new(),
        }
    }

    /// Records an answer that arrived at `now`.
    pub fn update(&mut self, now: Time, status: Status) {
        let sample = Sample::of(now, &status);
        // Counters of another process can't be compared.
        let before = self
            .sample
            .take()
            .filter(|before| before.uptime_s <= sample.uptime_s && before.at < now);
        let rates = before.as_ref().map(|before| sample.totals_since(before));
        for (index, history) in self.history.iter_mut().enumerate() {
            remember(history, rates.map(|rates| rates[index]));
        }
        self.ports = before
            .as_ref()
            .map(|before| sample.ports_since(before))
            .unwrap_or_default();
        self.drops = sample.drops_since(before.as_ref());
        self.sample = Some(sample);
        self.status = Some(status);
        self.trouble = None;
    }

    /// Records that there was no answer.
    pub fn lose(&mut self, why: String) {
        self.trouble = Some(why);
        self.history
            .iter_mut()
            .for_each(|history| remember(history, None));
        self.ports.clear();
        self.sample = None;
    }

    /// Does what a key asks for.
    pub fn obey(&mut self, command: Command) {
        match command {
            Command::Pause => self.is_paused = !self.is_paused,
            Command::Slower => self.interval = (self.interval + 1).min(INTERVALS.len() - 1),
            Command::Faster => self.interval = self.interval.saturating_sub(1),
        }
    }

    /// The last known status.
    pub fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }

    /// Why the display is out of date.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The interval between two requests.
    pub fn interval(&self) -> Duration {
        INTERVALS[self.interval]
    }

    /// The newest rate; none if it is not known yet.
    pub fn rate(&self, graph: Graph) -> Option<f64> {
        self.history[graph as usize].back().copied().flatten()
    }

    /// The last `count` rates, the newest last.
    pub fn history(&self, graph: Graph, count: usize) -> Vec<Option<f64>> {
        let history = &self.history[graph as usize];
        let missing = count.saturating_sub(history.len());
        let known = history.iter().skip(history.len().saturating_sub(count));
        std::iter::repeat_n(None, missing)
            .chain(known.copied())
            .collect()
    }

    /// The rates of a port, if they are known yet.
    pub fn port(&self, name: &str) -> Option<PortRates> {
        self.ports.get(name).copied()
    }

    /// Drop reasons, those with the highest current rate first.
    pub fn drops(&self) -> &[Drop] {
        &self.drops
    }
}

impl Sample {
    fn of(at: Time, status: &Status) -> Sample {
        let counters = &status.counters;
        let port = |port: &PortStatus| {
            let counts = [
                port.r#in.packets,
                port.r#in.bytes.saturating_mul(8),
                port.out.packets,
                port.out.bytes.saturating_mul(8),
            ];
            (port.name.clone(), counts)
        };
        Sample {
            at,
            uptime_s: status.uptime_s,
            totals: [
                counters.forwarded,
                counters.bytes.saturating_mul(8),
                status.sessions.opened,
                counters.dropped.values().sum(),
            ],
            ports: status.ports.iter().map(port).collect(),
            drops: counters.dropped.clone(),
        }
    }

    fn totals_since(&self, before: &Sample) -> [f64; Graph::ALL.len()] {
        std::array::from_fn(|i| self.rate(before, self.totals[i], before.totals[i]))
    }

    fn ports_since(&self, before: &Sample) -> BTreeMap<String, PortRates> {
        let known = self
            .ports
            .iter()
            .filter_map(|(name, now)| Some((name, now, before.ports.get(name)?)));
        known
            .map(|(name, now, then)| {
                let rate = |i: usize| self.rate(before, now[i], then[i]);
                let rates = PortRates {
                    in_packets: rate(0),
                    in_bits: rate(1),
                    out_packets: rate(2),
                    out_bits: rate(3),
                };
                (name.clone(), rates)
            })
            .collect()
    }

    fn drops_since(&self, before: Option<&Sample>) -> Vec<Drop> {
        let drop = |(reason, total): (&String, &u64)| Drop {
            reason: reason.clone(),
            rate: before.map_or(0.0, |before| {
                // A missing reason was at zero.
                let then = before.drops.get(reason).copied().unwrap_or(0);
                self.rate(before, *total, then)
            }),
            total: *total,
        };
        let mut drops: Vec<Drop> = self.drops.iter().map(drop).collect();
        drops.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(b.total.cmp(&a.total)));
        drops
    }

    fn rate(&self, before: &Sample, now: u64, then: u64) -> f64 {
        now.saturating_sub(then) as f64 / self.at.since(before.at).as_secs_f64()
    }
}

fn remember(history: &mut VecDeque<Option<f64>>, rate: Option<f64>) {
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(rate);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn status(uptime_s: u64, forwarded: u64, drops: &[(&str, u64)]) -> Status {
        let mut status = sample::status();
        status.uptime_s = uptime_s;
        status.sessions.opened = forwarded / 10;
        status.ports[0].r#in.packets = forwarded;
        status.ports[0].r#in.bytes = forwarded * 100;
        status.counters.forwarded = forwarded;
        status.counters.bytes = forwarded * 100;
        let drops = drops.iter();
        status.counters.dropped = drops
            .map(|(name, count)| ((*name).into(), *count))
            .collect();
        status
    }

    #[test]
    fn rates_are_differences_by_the_time_between() {
        let mut top = Top::new();
        top.update(at(10), status(5, 1000, &[("no-policy", 7)]));
        assert_eq!(top.rate(Graph::Packets), None, "nothing to compare with");
        assert_eq!(top.port("lan"), None);
        assert_eq!(top.drops()[0].rate, 0.0, "what came before does not count");
        let drops = [("no-policy", 7), ("no-route", 4)];
        top.update(at(12), status(7, 3000, &drops));
        let rates = Graph::ALL.map(|graph| top.rate(graph).unwrap());
        assert_eq!(rates, [1000.0, 800_000.0, 100.0, 2.0]);
        let lan = top.port("lan").unwrap();
        assert_eq!((lan.in_packets, lan.in_bits), (1000.0, 800_000.0));
        let drops: Vec<(&str, f64, u64)> = top
            .drops()
            .iter()
            .map(|drop| (drop.reason.as_str(), drop.rate, drop.total))
            .collect();
        assert_eq!(drops, [("no-route", 2.0, 4), ("no-policy", 0.0, 7)]);
    }

    #[test]
    fn a_restart_is_no_rate() {
        let mut top = Top::new();
        top.update(at(10), status(100, 5000, &[]));
        top.lose("gone".to_owned());
        assert_eq!(top.trouble(), Some("gone"));
        assert!(top.status().is_some(), "the last status stays");
        top.update(at(20), status(1, 10, &[]));
        assert_eq!((top.trouble(), top.rate(Graph::Packets)), (None, None));
        top.update(at(21), status(2, 30, &[]));
        assert_eq!(top.rate(Graph::Packets), Some(20.0));
        // A restart between two answers.
        top.update(at(22), status(0, 9000, &[]));
        assert_eq!(top.rate(Graph::Packets), None);
        assert_eq!(
            top.history(Graph::Packets, 6),
            [None, None, None, None, Some(20.0), None]
        );
        assert_eq!(top.history(Graph::Packets, 2), [Some(20.0), None]);
    }

    #[test]
    fn counters_that_go_back_and_times_that_stand_still_are_survived() {
        let mut top = Top::new();
        top.update(at(10), status(5, 1000, &[("x", 9)]));
        top.update(at(11), status(6, 500, &[("x", 3)]));
        assert_eq!(top.rate(Graph::Packets), Some(0.0));
        top.update(at(11), status(6, 700, &[]));
        assert_eq!(top.rate(Graph::Packets), None);
    }

    #[test]
    fn the_history_is_bounded_and_the_interval_within_its_choices() {
        let mut top = Top::new();
        for second in 1..1000 {
            top.update(at(second), status(second, second, &[]));
        }
        assert_eq!(top.history[0].len(), HISTORY);
        assert_eq!(top.interval(), Duration::from_secs(1));
        (0..9).for_each(|_| top.obey(Command::Slower));
        assert_eq!(top.interval(), Duration::from_secs(10));
        (0..9).for_each(|_| top.obey(Command::Faster));
        assert_eq!(top.interval(), Duration::from_millis(250));
        top.obey(Command::Pause);
        assert!(top.is_paused());
    }
}
