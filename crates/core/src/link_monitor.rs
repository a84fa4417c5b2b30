//! Whether the targets of `[[link-monitor]]` answer: a port can have carrier and lead nowhere.
//!
//! It sends nothing itself. Each turn: [`LinkMonitors::handle_timeout`], then
//! [`LinkMonitors::poll_probe`] until there is none, and [`LinkMonitors::handle_answer`] for
//! answers, in any order.
//!
//! A probe without an answer within a few round trips counts as missed; after `failtime` of them in
//! a row the target is dead. So a death is noticed within `failtime` intervals and that time. A
//! target that has come back counts once it has answered `recoverytime` probes in a row; if it soon
//! dies again, it needs more of them.

use std::time::Duration;

use crate::config::{Config, LinkMonitor};
use crate::flow::PortId;
use crate::time::Time;

/// A probe counts as missed after this many round trips, but not before [`LEAST_WAIT`].
const ROUND_TRIPS: u32 = 4;
/// A busy host, or a busy gateway, may take this long.
const LEAST_WAIT: Duration = Duration::from_millis(6);
/// A target that dies this soon after it has come back is flapping.
const CALM: Duration = Duration::from_secs(300);
/// How long a dead target counts as dead if it can't be probed any more.
const FORGET: Duration = Duration::from_secs(60);
/// How often the number of answers that a flapping target needs is doubled, at most.
const MOST_DOUBLINGS: u32 = 6;

/// Whether a target answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// Not decided yet, or this unit has no address to probe from. Counts as good.
    Unknown,
    /// It counts as reachable: enough probes in a row were answered, and no `failtime` in a row
    /// missed since.
    Alive,
    /// It does not.
    Dead,
}

/// Why a target can't be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unaskable {
    /// The port that it is behind is down.
    PortDown,
    /// The address to probe from and that of the target are of different families.
    OtherFamily,
    /// The kernel has no address on the port, and this unit is not primary of a virtual one there.
    NoAddress,
}

impl Unaskable {
    /// For the operator.
    pub fn text(self) -> &'static str {
        match self {
            Unaskable::PortDown => "its port is down",
            Unaskable::OtherFamily => "its address is of another family",
            Unaskable::NoAddress => "this unit has no address on the port to ask from",
        }
    }
}

/// A probe to send to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The monitor, by its place in the config.
    pub monitor: usize,
    /// The number that the answer must name, where it can.
    pub sequence: u16,
}

/// A target as the operator sees it.
#[derive(Clone, Debug)]
pub struct TargetView<'a> {
    /// Its table of the config.
    pub config: &'a LinkMonitor,
    /// Whether it answers.
    pub state: TargetState,
    /// Since when.
    pub since: Time,
    /// Round trip of the last answer.
    pub rtt: Option<Duration>,
    /// Probes sent.
    pub sent: u64,
    /// Probes answered.
    pub answered: u64,
    /// Why no probe can be sent; none if probes are sent.
    pub why_not: Option<Unaskable>,
}

/// All targets.
#[derive(Debug, Default)]
pub struct LinkMonitors {
    targets: Vec<Target>,
    threshold: u32,
}

#[derive(Debug)]
struct Target {
    config: LinkMonitor,
    state: TargetState,
    /// The state last reported by [`LinkMonitors::poll_change`].
    told: TargetState,
    since: Time,
    next: Time,
    sequence: u16,
    /// When the last probe was sent, until it is answered or missed.
    awaited: Option<Time>,
    /// The last probe was not fetched yet.
    due: bool,
    /// The last probe has no answer yet, missed or not.
    open: bool,
    sent_at: Time,
    missed: u32,
    in_a_row: u32,
    doublings: u32,
    /// It was dead before its current state.
    came_back: bool,
    rtt: Option<Duration>,
    /// A mean that follows longer times at once.
    smooth: Option<Duration>,
    sent: u64,
    answered: u64,
    why_not: Option<Unaskable>,
}

impl LinkMonitors {
    /// The targets of `config`; nothing is known of them.
    pub fn new(config: &Config, now: Time) -> LinkMonitors {
        let mut monitors = LinkMonitors::default();
        monitors.follow(config, now);
        monitors
    }

    /// Follows a changed config; targets that stay keep their state.
    pub fn follow(&mut self, config: &Config, now: Time) {
        let mut before = std::mem::take(&mut self.targets);
        let targets = config.link_monitors.iter().map(|wanted| {
            let known = before.iter().position(|it| it.config == *wanted);
            known.map_or_else(|| Target::new(wanted, now), |at| before.swap_remove(at))
        });
        self.targets = targets.collect();
        self.threshold = config.ha.as_ref().map_or(0, |ha| ha.failover_threshold);
    }

    /// Whether these are the targets of `config`.
    pub fn follows(&self, config: &Config) -> bool {
        let own = self.targets.iter().map(|target| &target.config);
        own.eq(&config.link_monitors)
    }

    /// Sends due probes, and judges missed ones.
    pub fn handle_timeout(&mut self, now: Time) {
        for target in &mut self.targets {
            target.handle_timeout(now);
        }
    }

    /// The next probe to send.
    pub(crate) fn poll_probe(&mut self) -> Option<Probe> {
        let monitor = self.targets.iter().position(|target| target.due)?;
        let target = &mut self.targets[monitor];
        target.due = false;
        let sequence = target.sequence;
        Some(Probe { monitor, sequence })
    }

    /// The last fetched probe could not be sent: its silence proves nothing. A dead target stays
    /// dead for a while, or else two units would pass a group to and fro.
    pub(crate) fn cannot_send(&mut self, now: Time, monitor: usize, why: Unaskable) {
        if let Some(target) = self.targets.get_mut(monitor) {
            target.cannot_send(now, why);
        }
    }

    /// A target has answered; `sequence` if the answer names it.
    pub(crate) fn handle_answer(&mut self, now: Time, monitor: usize, sequence: Option<u16>) {
        if let Some(target) = self.targets.get_mut(monitor) {
            target.handle_answer(now, sequence);
        }
    }

    /// A target whose state has changed since the last call, and its state now.
    pub(crate) fn poll_change(&mut self) -> Option<(usize, TargetState)> {
        let mut targets = self.targets.iter_mut().enumerate();
        let (index, target) = targets.find(|(_, target)| target.told != target.state)?;
        target.told = target.state;
        Some((index, target.state))
    }

    /// The time of the next [`LinkMonitors::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        self.targets.iter().map(Target::timeout).min()
    }

    /// Whether enough of the targets behind `port` answer: the `ha-priority` of the dead ones adds
    /// up to no more than `pingserver-failover-threshold`.
    ///
    /// Units find out one after the other, within an interval. For that time a change speaks for
    /// the primary: one that no longer reaches what nobody reaches must not hand over, nor one that
    /// reaches it again a moment later than its peer.
    pub fn is_good(&self, now: Time, port: PortId, is_primary: bool) -> bool {
        let own = self.targets.iter().filter(|it| it.config.port == port);
        let dead = own.filter(|it| match it.state {
            TargetState::Dead => !is_primary || !it.is_fresh(now),
            TargetState::Alive => !is_primary && it.came_back && it.is_fresh(now),
            TargetState::Unknown => false,
        });
        let penalty: u32 = dead.map(|it| it.config.ha_priority).sum();
        penalty <= self.threshold
    }

    /// Whether [`LinkMonitors::is_good`] may change with the time.
    pub fn is_settling(&self, now: Time) -> bool {
        self.targets.iter().any(|target| target.is_fresh(now))
    }

    /// All of them, in the order of the config.
    pub fn targets(&self) -> impl Iterator<Item = TargetView<'_>> {
        self.targets.iter().map(|target| TargetView {
            config: &target.config,
            state: target.state,
            since: target.since,
            rtt: target.rtt,
            sent: target.sent,
            answered: target.answered,
            why_not: target.why_not,
        })
    }
}

impl Target {
    fn new(config: &LinkMonitor, now: Time) -> Target {
        Target {
            config: config.clone(),
            state: TargetState::Unknown,
            told: TargetState::Unknown,
            since: now,
            next: now,
            sequence: 0,
            awaited: None,
            due: false,
            open: false,
            sent_at: now,
            missed: 0,
            in_a_row: 0,
            doublings: 0,
            came_back: false,
            rtt: None,
            smooth: None,
            sent: 0,
            answered: 0,
            why_not: None,
        }
    }

    /// Whether its state is so new that a peer may not know of it yet.
    fn is_fresh(&self, now: Time) -> bool {
        now.since(self.since) < self.config.interval
    }

    fn timeout(&self) -> Time {
        let missed = self.awaited.map(|at| at + self.wait());
        missed.map_or(self.next, |at| at.min(self.next))
    }

    /// The time allowed for an answer.
    fn wait(&self) -> Duration {
        let most = self.config.interval;
        let round_trips = self.smooth.map(|rtt| rtt * ROUND_TRIPS);
        round_trips.map_or(most, |time| time.clamp(LEAST_WAIT.min(most), most))
    }

    fn handle_timeout(&mut self, now: Time) {
        let is_late = |at: Time| now >= at + self.wait() || now >= self.next;
        if self.awaited.is_some_and(is_late) {
            self.awaited = None;
            self.miss(now);
        }
        if now >= self.next {
            self.sequence = self.sequence.wrapping_add(1);
            self.next = (self.next + self.config.interval).max(now + self.config.interval / 2);
            (self.sent_at, self.awaited) = (now, Some(now));
            (self.due, self.open) = (true, true);
            self.sent += 1;
            self.why_not = None;
        }
    }

    fn miss(&mut self, now: Time) {
        self.in_a_row = 0;
        self.missed = self.missed.saturating_add(1);
        if self.state == TargetState::Dead || self.missed < self.config.failtime {
            return;
        }
        self.doublings = match self.came_back && now.since(self.since) < CALM {
            true => (self.doublings + 1).min(MOST_DOUBLINGS),
            false => 0,
        };
        self.change(now, TargetState::Dead);
    }

    fn cannot_send(&mut self, now: Time, why: Unaskable) {
        (self.awaited, self.open) = (None, false);
        (self.missed, self.in_a_row) = (0, 0);
        self.why_not = Some(why);
        let is_old = now.since(self.since) >= FORGET * (1 << self.doublings);
        if self.state == TargetState::Dead && is_old {
            self.change(now, TargetState::Unknown);
        }
    }

    fn handle_answer(&mut self, now: Time, sequence: Option<u16>) {
        let is_last = sequence.is_none_or(|it| it == self.sequence);
        let age = self
            .sequence
            .wrapping_sub(sequence.unwrap_or(self.sequence));
        if u32::from(age) > self.config.failtime {
            return;
        }
        // A late answer still shows that the target is alive.
        self.missed = 0;
        if !is_last || !std::mem::take(&mut self.open) {
            return;
        }
        self.awaited = None;
        self.answered += 1;
        self.in_a_row = self.in_a_row.saturating_add(1);
        let rtt = now.since(self.sent_at);
        self.rtt = Some(rtt);
        let mean = |smooth: Duration| (smooth * 7 + rtt) / 8;
        self.smooth = Some(self.smooth.map_or(rtt, mean).max(rtt));
        match self.state {
            TargetState::Alive => {}
            TargetState::Dead if self.in_a_row < self.needed() => {}
            TargetState::Unknown | TargetState::Dead => self.change(now, TargetState::Alive),
        }
    }

    /// Answers in a row after which a dead target counts as alive.
    fn needed(&self) -> u32 {
        let doubled = self.config.recoverytime.saturating_mul(1 << self.doublings);
        doubled.max(1)
    }

    fn change(&mut self, now: Time, state: TargetState) {
        self.came_back = self.state == TargetState::Dead;
        (self.state, self.since) = (state, now);
        self.in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MonitorProtocol;

    const INTERVAL: Duration = ms(100);

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn monitor(port: usize, ha_priority: u32) -> LinkMonitor {
        LinkMonitor {
            port: PortId::from_index(port),
            server: "10.0.0.1".parse().unwrap(),
            server_port: None,
            protocol: MonitorProtocol::Ping,
            interval: INTERVAL,
            failtime: 3,
            recoverytime: 2,
            ha_priority,
        }
    }

    /// One target, whose answers take `rtt`.
    struct Bench {
        monitors: LinkMonitors,
        now: Time,
        rtt: Duration,
        /// The target answers.
        lives: bool,
        under_way: Vec<(Time, Probe)>,
    }

    impl Bench {
        fn new(rtt: Duration) -> Bench {
            let now = Time::ZERO + Duration::from_secs(9);
            let monitors = LinkMonitors {
                targets: vec![Target::new(&monitor(0, 1), now)],
                threshold: 0,
            };
            Bench {
                monitors,
                now,
                rtt,
                lives: true,
                under_way: Vec::new(),
            }
        }

        fn state(&self) -> TargetState {
            self.monitors.targets[0].state
        }

        /// Lets time pass as the loop does; at each step either a timeout or an answer comes.
        fn run(&mut self, span: Duration) {
            let end = self.now + span;
            while self.now < end {
                let answer = self.under_way.first().map(|(at, _)| *at);
                let next = self.monitors.poll_timeout().unwrap();
                let next = answer.map_or(next, |at| at.min(next)).min(end);
                self.now = next.max(self.now);
                while self
                    .under_way
                    .first()
                    .is_some_and(|(at, _)| *at <= self.now)
                {
                    let (_, probe) = self.under_way.remove(0);
                    let sequence = Some(probe.sequence);
                    self.monitors.handle_answer(self.now, 0, sequence);
                }
                self.monitors.handle_timeout(self.now);
                while let Some(probe) = self.monitors.poll_probe() {
                    if self.lives {
                        self.under_way.push((self.now + self.rtt, probe));
                    }
                }
                let next = self.monitors.poll_timeout().unwrap();
                assert!(next > self.now, "no busy loop");
            }
        }

        fn time_to(&mut self, state: TargetState) -> Duration {
            let begun = self.now;
            while self.state() != state {
                self.run(ms(1));
                assert!(self.now.since(begun) < ms(60_000), "never {state:?}");
            }
            self.now.since(begun)
        }
    }

    #[test]
    fn a_dead_target_is_seen_within_its_failtime_and_10_ms() {
        // Whenever it dies between two probes.
        for at in [1, 30, 50, 70, 99] {
            let mut bench = Bench::new(ms(1));
            bench.run(ms(1000 + at));
            assert_eq!(bench.state(), TargetState::Alive);
            bench.lives = false;
            let took = bench.time_to(TargetState::Dead);
            assert!(took <= INTERVAL * 3 + ms(10), "{took:?} after {at} ms");
            assert!(
                took > INTERVAL * 2,
                "{took:?}: not for one or two lost probes"
            );
        }
    }

    #[test]
    fn answers_that_take_long_are_waited_for() {
        for rtt in [ms(5), ms(40), ms(90), ms(150)] {
            let mut bench = Bench::new(rtt);
            bench.run(ms(20_000));
            let alive = rtt < INTERVAL;
            assert_eq!(bench.state() == TargetState::Alive, alive, "{rtt:?}");
            assert_ne!(bench.state(), TargetState::Dead, "{rtt:?}: it answers");
        }
    }

    #[test]
    fn lost_probes_and_one_answer_decide_nothing() {
        let mut bench = Bench::new(ms(1));
        bench.run(ms(1000));
        for _ in 0..20 {
            bench.lives = false;
            bench.run(INTERVAL * 2);
            bench.lives = true;
            bench.run(INTERVAL);
        }
        assert_eq!(bench.state(), TargetState::Alive);
        bench.lives = false;
        bench.time_to(TargetState::Dead);
        bench.lives = true;
        bench.run(INTERVAL);
        assert_eq!(bench.state(), TargetState::Dead);
        bench.run(INTERVAL * 2);
        assert_eq!(bench.state(), TargetState::Alive);
    }

    #[test]
    fn a_target_that_flaps_has_to_answer_longer_each_time() {
        let mut bench = Bench::new(ms(1));
        bench.run(ms(1000));
        let mut times = Vec::new();
        for _ in 0..10 {
            bench.lives = false;
            bench.time_to(TargetState::Dead);
            bench.lives = true;
            times.push(bench.time_to(TargetState::Alive));
        }
        assert!(times[0] < times[2] && times[2] < times[4], "{times:?}");
        assert!(times[9] < INTERVAL * 150, "it ends: {times:?}");
        bench.run(CALM * 2);
        bench.lives = false;
        bench.time_to(TargetState::Dead);
        bench.lives = true;
        assert!(bench.time_to(TargetState::Alive) < times[2]);
    }

    #[test]
    fn a_port_is_good_while_its_dead_targets_weigh_no_more_than_the_threshold() {
        let now = Time::ZERO;
        let mut monitors = LinkMonitors {
            targets: [(0, 1), (0, 2), (1, 5)]
                .map(|(port, weight)| Target::new(&monitor(port, weight), now))
                .into(),
            threshold: 2,
        };
        let good = |monitors: &LinkMonitors| {
            [0, 1].map(|it| monitors.is_good(now, PortId::from_index(it), false))
        };
        assert_eq!(good(&monitors), [true, true], "unknown is good");
        monitors.targets[1].state = TargetState::Dead;
        assert_eq!(good(&monitors), [true, true]);
        monitors.targets[0].state = TargetState::Dead;
        assert_eq!(good(&monitors), [false, true]);
        monitors.targets[2].state = TargetState::Dead;
        assert_eq!(good(&monitors), [false, false]);
    }

    /// Units find out one after the other: a group would move, for no better unit, each time.
    #[test]
    fn for_an_interval_a_change_speaks_for_the_primary() {
        let port = PortId::from_index(0);
        let mut bench = Bench::new(ms(1));
        let good = |bench: &Bench, after: Duration| {
            let at = bench.now + after;
            [true, false].map(|is_primary| bench.monitors.is_good(at, port, is_primary))
        };
        bench.run(INTERVAL * 5);
        assert_eq!(good(&bench, ms(0)), [true, true]);
        for (lives, state) in [(false, TargetState::Dead), (true, TargetState::Alive)] {
            bench.lives = lives;
            bench.time_to(state);
            assert_eq!(good(&bench, ms(0)), [true, false], "{state:?}");
            assert!(bench.monitors.is_settling(bench.now));
            assert_eq!(good(&bench, INTERVAL), [lives, lives], "{state:?}");
            assert!(!bench.monitors.is_settling(bench.now + INTERVAL));
        }
    }

    #[test]
    fn what_could_not_be_asked_is_not_dead() {
        let mut bench = Bench::new(ms(1));
        // The first probe that is missed would decide.
        bench.monitors.targets[0].config.failtime = 1;
        for _ in 0..200 {
            bench.now = bench.now + INTERVAL / 4;
            bench.monitors.handle_timeout(bench.now);
            while bench.monitors.poll_probe().is_some() {
                bench
                    .monitors
                    .cannot_send(bench.now, 0, Unaskable::NoAddress);
            }
            assert_eq!(bench.state(), TargetState::Unknown);
        }
        let port = PortId::from_index(0);
        assert!(bench.monitors.is_good(bench.now, port, false));
        bench.monitors.targets[0].change(bench.now, TargetState::Dead);
        let later = |seconds| bench.now + Duration::from_secs(seconds);
        let (soon, late) = (later(59), later(61));
        bench.monitors.cannot_send(soon, 0, Unaskable::NoAddress);
        assert_eq!(bench.state(), TargetState::Dead);
        bench.monitors.cannot_send(late, 0, Unaskable::NoAddress);
        assert_eq!(bench.state(), TargetState::Unknown);
    }
}
