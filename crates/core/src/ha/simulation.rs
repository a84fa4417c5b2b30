//! Two to four units with bad links, in virtual time: two primaries never hear each other for long,
//! and there is exactly one when all is quiet.
//!
//! The model: datagrams between two units are lost and delayed, links and the data network can be
//! cut, units crash, restart and are stopped. Frames on the data ports reach the units of the same
//! segment whose port is up. A unit that is running and primary answers ARP, and so may a stranger.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::random::SplitMix64;

use super::tests::{HOLD, INTERVAL, PROBE_WAIT, config, ms};
use super::*;
use crate::flow::GroupSet;

const GROUPS: usize = 2;
const L: LinkId = LinkId(0);
/// The time by which two primaries that hear each other must have become one.
const SETTLE: Duration = ms(400);
/// The same if they hear each other only on a data port.
const SETTLE_ON_PORTS: Duration = ms(2000);

/// The faults that a run may have; chances are per mille.
#[derive(Clone, Copy)]
struct Faults {
    loss: u64,
    most_delay_us: u64,
    links_cut: u64,
    data_cut: u64,
    crashes: u64,
    pauses: u64,
    commands: u64,
}

const ALL: Faults = Faults {
    loss: 100,
    most_delay_us: 3000,
    links_cut: 250,
    data_cut: 150,
    crashes: 150,
    pauses: 150,
    commands: 200,
};

struct Unit {
    ha: Option<Ha>,
    runs_from: Time,
    /// When its loop wakes next; earlier if a message arrives.
    wakes_at: Time,
    /// The part of the data network that it is on, by port.
    segment: [usize; 2],
    ports: [bool; 2],
    inbox: BTreeMap<(Time, u64), Message>,
}

enum Message {
    Heartbeat(PeerId, Vec<u8>),
    Frame(PortId, [u8; 6], Vec<u8>),
    ProbeAnswer(GroupId),
    Handover(GroupId, PeerId, u64),
}

struct Cluster {
    now: Time,
    seed: u64,
    random: SplitMix64,
    faults: Faults,
    units: Vec<Unit>,
    cut: Vec<Vec<bool>>,
    serial: u64,
    roles_changed: u64,
    /// Since when two units that hear each other are both primary, by pair and group.
    dual: BTreeMap<(usize, usize, usize), Time>,
    trace: u64,
    /// A host answers for all addresses.
    stranger: bool,
}

/// The name of unit `i`, and its index as a peer of unit `of`.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn peer_id(of: usize, unit: usize) -> PeerId {
    PeerId(if unit < of { unit } else { unit - 1 } as u8)
}

fn mac(unit: usize, port: PortId) -> [u8; 6] {
    [2, 0, 0, 0, unit as u8, port.0 as u8]
}

/// Keys that two units share, one for each direction.
fn port_keys(unit: usize, count: usize) -> Vec<Option<PortKeys>> {
    let key = |from: usize, to: usize| [(1 + from * 16 + to) as u8; 16];
    let others = (0..count).filter(|other| *other != unit);
    others
        .map(|other| {
            Some(PortKeys {
                send: key(unit, other),
                receive: key(other, unit),
            })
        })
        .collect()
}

fn unit_of(of: usize, peer: PeerId) -> usize {
    if peer.index() < of {
        peer.index()
    } else {
        peer.index() + 1
    }
}

impl Cluster {
    fn new(seed: u64, units: usize, faults: Faults) -> Cluster {
        let mut cluster = Cluster {
            now: Time::from_nanos(1_000_000_000),
            seed,
            random: SplitMix64(seed),
            faults,
            units: Vec::new(),
            cut: vec![vec![false; units]; units],
            serial: 0,
            roles_changed: 0,
            dual: BTreeMap::new(),
            trace: 0,
            stranger: false,
        };
        for _ in 0..units {
            let inbox = BTreeMap::new();
            let (runs_from, wakes_at) = (Time::ZERO, Time::ZERO);
            cluster.units.push(Unit {
                ha: None,
                runs_from,
                wakes_at,
                segment: [0; 2],
                ports: [true; 2],
                inbox,
            });
        }
        (0..units).for_each(|unit| cluster.start(unit));
        cluster
    }

    fn start(&mut self, unit: usize) {
        let count = self.units.len();
        let peers: Vec<&str> = (0..count)
            .filter(|i| *i != unit)
            .map(|i| NAMES[i])
            .collect();
        let mut config = config(NAMES[unit], &peers, GROUPS);
        config.groups[1].priority = Some(100 + unit as u8);
        if let Some(ha) = &mut config.ha {
            ha.override_ = self.seed.is_multiple_of(3);
        }
        let mut ha = Ha::new(&config, self.random.next(), self.now).unwrap();
        ha.set_port_keys(port_keys(unit, count));
        ha.handle_ports(self.now, &self.units[unit].ports);
        for peer in 0..count - 1 {
            ha.handle_link(self.now, PeerId(peer as u8), L, true);
        }
        self.units[unit].ha = Some(ha);
        self.units[unit].runs_from = self.now;
        self.units[unit].wakes_at = self.now;
        self.units[unit].inbox.clear();
    }

    fn hears(&self, from: usize, to: usize) -> bool {
        !self.cut[from][to]
    }

    /// Whether frames of the units reach each other by `port`.
    fn are_joined(&self, one: usize, other: usize, port: PortId) -> bool {
        let (one, other, port) = (&self.units[one], &self.units[other], port.index());
        one.segment[port] == other.segment[port] && one.ports[port] && other.ports[port]
    }

    /// Whether they do by any port.
    fn meet(&self, one: usize, other: usize) -> bool {
        (0..2).any(|port| self.are_joined(one, other, PortId(port)))
    }

    fn runs(&self, unit: usize) -> bool {
        self.units[unit].ha.is_some() && self.units[unit].runs_from <= self.now
    }

    fn is_primary(&self, unit: usize, group: usize) -> bool {
        let ha = self.units[unit].ha.as_ref();
        ha.is_some_and(|ha| ha.role(GroupId(group as u8)) == Role::Primary)
    }

    fn primaries(&self, group: usize) -> Vec<usize> {
        (0..self.units.len())
            .filter(|unit| self.is_primary(*unit, group))
            .collect()
    }

    /// Lets time pass, from one event to the next, by steps of 500 µs at least.
    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            let running = self.units.iter().filter(|unit| unit.ha.is_some());
            let next = running
                .map(|unit| unit.wakes_at.max(unit.runs_from))
                .min()
                .unwrap_or(end);
            self.now = next.max(self.now + Duration::from_micros(500)).min(end);
            for unit in 0..self.units.len() {
                if self.runs(unit) && self.units[unit].wakes_at <= self.now {
                    self.turn(unit);
                }
            }
            self.check();
        }
    }

    /// One turn of a unit's loop.
    fn turn(&mut self, unit: usize) {
        let now = self.now;
        let hears: Vec<usize> = (0..self.units.len())
            .filter(|i| *i != unit && self.hears(*i, unit))
            .collect();
        let Unit {
            ha: Some(ha),
            inbox,
            ..
        } = &mut self.units[unit]
        else {
            return;
        };
        ha.handle_wake(now);
        while let Some(((at, serial), message)) = inbox.pop_first() {
            if at > now {
                inbox.insert((at, serial), message);
                break;
            }
            match message {
                Message::Heartbeat(peer, bytes) => {
                    ha.handle_heartbeat(now, peer, L, &bytes).unwrap()
                }
                // A recorded frame is refused.
                Message::Frame(port, source, bytes) => {
                    let _ = ha.handle_port_frame(now, port, source, &bytes);
                }
                Message::ProbeAnswer(group) => ha.handle_probe_answer(now, group),
                Message::Handover(group, from, term) => ha.handle_handover(now, group, from, term),
            }
        }
        // Replication follows whoever is heard.
        for peer in hears {
            let ready = SyncState {
                ready: GroupSet::ALL,
                equal: GroupSet::ALL,
                applied: 0,
            };
            ha.handle_sync(now, peer_id(unit, peer), ready);
        }
        ha.handle_timeout(now);
        let mut outputs = Vec::new();
        while let Some(output) = ha.poll_output() {
            outputs.push(output);
        }
        let arrival = inbox.first_key_value().map(|((at, _), _)| *at);
        let timeout = ha.poll_timeout(now);
        self.units[unit].wakes_at = arrival
            .into_iter()
            .chain(timeout)
            .min()
            .unwrap_or(now + ms(1000));
        outputs
            .into_iter()
            .for_each(|output| self.carry_out(unit, output));
    }

    fn carry_out(&mut self, unit: usize, output: Output) {
        self.serial += 1;
        match output {
            Output::SendHeartbeat { peer, bytes, .. } => {
                let to = unit_of(unit, peer);
                if self.hears(unit, to) && !self.random.chance(self.faults.loss) {
                    self.send(to, Message::Heartbeat(peer_id(to, unit), bytes));
                }
            }
            Output::Handover { group, to, term } => {
                let to = unit_of(unit, to);
                if self.hears(unit, to) {
                    self.send(to, Message::Handover(group, peer_id(to, unit), term));
                }
            }
            Output::SendOnPort { port, to, bytes } => {
                for other in (0..self.units.len()).filter(|other| *other != unit) {
                    let meant = to.is_none_or(|to| to == mac(other, port));
                    if meant
                        && self.are_joined(unit, other, port)
                        && !self.random.chance(self.faults.loss)
                    {
                        self.send(other, Message::Frame(port, mac(unit, port), bytes.clone()));
                    }
                }
            }
            Output::Probe { group } => {
                let primaries = self.primaries(usize::from(group.0));
                let mut others = primaries.into_iter().filter(|other| *other != unit);
                let answers = others.any(|other| self.runs(other) && self.meet(unit, other));
                if answers || self.stranger {
                    self.send(unit, Message::ProbeAnswer(group));
                }
            }
            Output::SetRole {
                group, role, term, ..
            } => {
                self.roles_changed += 1;
                let what = [
                    self.now.as_nanos(),
                    unit as u64,
                    group.0.into(),
                    role as u64,
                    term,
                ];
                for word in what {
                    self.trace = SplitMix64(self.trace ^ word).next();
                }
            }
            _ => {}
        }
    }

    fn send(&mut self, to: usize, message: Message) {
        let delay = self.random.next() % self.faults.most_delay_us.max(1);
        let at = self.now + Duration::from_micros(delay);
        let unit = &mut self.units[to];
        unit.inbox.insert((at, self.serial), message);
        unit.wakes_at = unit.wakes_at.min(at);
    }

    /// No two primaries of a group may hear each other for longer than it takes to settle.
    fn check(&mut self) {
        let units = self.units.len();
        for (one, other) in (0..units).flat_map(|i| (i + 1..units).map(move |j| (i, j))) {
            let run = self.runs(one) && self.runs(other);
            let linked = self.hears(one, other) && self.hears(other, one);
            let hear = run && (linked || self.meet(one, other));
            let span = if linked { SETTLE } else { SETTLE_ON_PORTS };
            for group in 0..GROUPS {
                // Their time starts when they begin to hear each other.
                let key = (one, other, group + usize::from(linked) * GROUPS);
                self.dual
                    .remove(&(one, other, group + usize::from(!linked) * GROUPS));
                if hear && self.is_primary(one, group) && self.is_primary(other, group) {
                    let since = *self.dual.entry(key).or_insert(self.now);
                    let seed = self.seed;
                    assert!(
                        self.now.since(since) < span,
                        "two primaries {key:?}, seed {seed}"
                    );
                } else {
                    self.dual.remove(&key);
                }
            }
        }
    }

    fn change_something(&mut self) {
        let units = self.units.len();
        let (one, other) = (self.random.below(units), self.random.below(units));
        if one != other && self.random.chance(self.faults.links_cut) {
            // One direction only, now and then.
            self.cut[one][other] ^= true;
            if self.random.chance(700) {
                self.cut[other][one] = self.cut[one][other];
            }
        }
        if self.random.chance(self.faults.data_cut) {
            let port = self.random.below(2);
            self.units[one].segment[port] = self.random.below(2);
        }
        if self.random.chance(self.faults.crashes) {
            match self.units[one].ha {
                Some(_) => self.units[one].ha = None,
                None => self.start(one),
            }
        }
        if self.random.chance(self.faults.pauses) {
            self.units[other].runs_from = self.now + ms(self.random.next() % 400);
        }
        if self.random.chance(self.faults.commands) {
            let group = GroupId(self.random.below(GROUPS) as u8);
            let (now, up) = (self.now, [self.random.chance(700), self.random.chance(700)]);
            self.units[one].ports = up;
            self.units[one].wakes_at = now;
            if let (true, Some(ha)) = (self.runs(one), &mut self.units[one].ha) {
                let _ = ha.request_failover(now, group, None);
                ha.handle_ports(now, &up);
            }
        }
    }

    /// All units run, and all can reach all.
    fn heal(&mut self) {
        for unit in 0..self.units.len() {
            self.cut[unit].fill(false);
            self.units[unit].segment = [0; 2];
            self.units[unit].ports = [true; 2];
            self.units[unit].runs_from = self.now;
            self.units[unit].wakes_at = self.now;
            match &mut self.units[unit].ha {
                Some(ha) => ha.handle_ports(self.now, &[true, true]),
                None => self.start(unit),
            }
        }
    }

    /// All ports are up.
    fn heal_ports(&mut self) {
        for unit in 0..self.units.len() {
            self.units[unit].ports = [true; 2];
            self.units[unit].wakes_at = self.now;
            if let Some(ha) = &mut self.units[unit].ha {
                ha.handle_ports(self.now, &[true, true]);
            }
        }
    }

    /// After time to settle: one primary of each group in each of `parts`, and quiet.
    fn expect_one_primary_each(&mut self, parts: &[Vec<usize>]) {
        self.run(ms(8000));
        let changes = self.roles_changed;
        self.run(ms(3000));
        let seed = self.seed;
        assert_eq!(
            self.roles_changed, changes,
            "no flapping when quiet, seed {seed}"
        );
        for group in 0..GROUPS {
            let primaries = self.primaries(group);
            for part in parts {
                let count = primaries.iter().filter(|unit| part.contains(unit)).count();
                assert_eq!(
                    count, 1,
                    "primaries {primaries:?} of group {group}, seed {seed}"
                );
            }
        }
    }

    /// Cuts all links between the first unit and the others.
    fn isolate_first(&mut self) {
        for other in 1..self.units.len() {
            self.cut[0][other] = true;
            self.cut[other][0] = true;
        }
    }
}

fn scenario(seed: u64, faults: Faults) -> u64 {
    let units = 2 + (seed % 3) as usize;
    let everyone: Vec<usize> = (0..units).collect();
    let mut cluster = Cluster::new(seed, units, faults);
    cluster.run(ms(1000));
    for _ in 0..40 {
        cluster.change_something();
        let wait = ms(cluster.random.next() % 300);
        cluster.run(wait);
    }
    // A link that loses every tenth heartbeat forever is not quiet.
    cluster.faults.loss = 0;
    cluster.heal();
    cluster.expect_one_primary_each(std::slice::from_ref(&everyone));
    cluster.isolate_first();
    match seed % 2 {
        // The links are dead, the data network is not: the primary stays the only one.
        0 => cluster.expect_one_primary_each(&[everyone]),
        _ => {
            cluster.units[0].segment = [1; 2];
            cluster.expect_one_primary_each(&[vec![0], everyone[1..].to_vec()]);
            cluster.heal();
            cluster.expect_one_primary_each(&[everyone]);
        }
    }
    cluster.trace
}

/// `TANDEMGW_SEED` repeats one seed, `TANDEMGW_SEEDS` tries more of them.
#[test]
fn clusters_agree_on_one_primary() {
    let seeds = match std::env::var("TANDEMGW_SEED") {
        Ok(seed) => seed.parse().map(|seed: u64| seed..seed + 1).unwrap(),
        Err(_) => 0..std::env::var("TANDEMGW_SEEDS").map_or(12, |n| n.parse().unwrap()),
    };
    for seed in seeds {
        scenario(seed, ALL);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(scenario(5, ALL), scenario(5, ALL));
    assert_ne!(scenario(5, ALL), scenario(6, ALL));
}

/// Runs until `group` has a primary other than `than` that runs; how long it took.
fn time_to_primary(cluster: &mut Cluster, group: usize, than: usize) -> Duration {
    let start = cluster.now;
    while !cluster.primaries(group).iter().any(|unit| *unit != than) {
        cluster.run(ms(1));
        assert!(cluster.now.since(start) < ms(2000), "no takeover");
    }
    cluster.now.since(start)
}

const NONE: Faults = Faults {
    loss: 0,
    most_delay_us: 500,
    links_cut: 0,
    data_cut: 0,
    crashes: 0,
    pauses: 0,
    commands: 0,
};

#[test]
fn a_crash_costs_hold_check_and_an_interval() {
    for (seed, hint) in (1..40).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut cluster = Cluster::new(seed, 2 + seed as usize % 3, NONE);
        let phase = Duration::from_micros(cluster.random.next() % 20_000);
        cluster.run(ms(3000) + phase);
        let primary = cluster.primaries(0)[0];
        cluster.units[primary].ha = None;
        for unit in 0..cluster.units.len() {
            let now = cluster.now;
            if let (true, Some(ha)) = (hint, &mut cluster.units[unit].ha) {
                ha.handle_hint(
                    now,
                    Hint::Ended {
                        peer: peer_id(unit, primary),
                    },
                );
                cluster.units[unit].wakes_at = now;
            }
        }
        let took = time_to_primary(&mut cluster, 0, primary);
        let most = if hint {
            PROBE_WAIT + ms(2)
        } else {
            HOLD + PROBE_WAIT + INTERVAL
        };
        assert!(took <= most, "{took:?}, hint {hint}, seed {seed}");
    }
}

#[test]
fn a_planned_handover_leaves_no_moment_without_an_owner() {
    for seed in 1..40 {
        let mut cluster = Cluster::new(seed, 2 + seed as usize % 3, NONE);
        cluster.run(ms(3000));
        let primary = cluster.primaries(0)[0];
        let leaves = seed % 2 == 0;
        let now = cluster.now;
        cluster.units[primary].wakes_at = now;
        if let Some(ha) = &mut cluster.units[primary].ha {
            match leaves {
                true => ha.shut_down(now),
                false => ha.request_failover(now, GroupId(0), None).unwrap(),
            }
        }
        for _ in 0..100 {
            cluster.run(Duration::from_micros(500));
            let serves = |unit: &Unit| {
                unit.ha.as_ref().is_some_and(|ha| {
                    ha.role(GroupId(0)) == Role::Primary || ha.is_draining(cluster.now, GroupId(0))
                })
            };
            assert!(cluster.units.iter().any(serves), "seed {seed}");
        }
        let primaries = cluster.primaries(0);
        assert!(
            primaries.len() == 1 && primaries[0] != primary,
            "{primaries:?}, seed {seed}"
        );
    }
}

/// Cuts all links between all units.
fn cut_all(cluster: &mut Cluster) {
    for cut in &mut cluster.cut {
        cut.fill(true);
    }
}

#[test]
fn two_primaries_without_links_become_one_as_soon_as_a_data_port_joins_them() {
    for seed in 0..60 {
        let units = 2 + seed as usize % 3;
        let mut cluster = Cluster::new(seed, units, NONE);
        cut_all(&mut cluster);
        for unit in 0..units {
            cluster.units[unit].segment = [unit; 2];
        }
        cluster.run(ms(3000));
        assert_eq!(cluster.primaries(0).len(), units, "nobody hears anybody");
        // Spanning tree: one port after the other, and of some units only one.
        for unit in 0..units {
            let wait = cluster.random.next() % 700;
            cluster.run(ms(wait));
            let port = seed as usize % 2;
            cluster.units[unit].segment[port] = 9;
        }
        cluster.run(SETTLE_ON_PORTS);
        assert_eq!(cluster.primaries(0).len(), 1, "seed {seed}");
        let changes = cluster.roles_changed;
        cluster.run(ms(5000));
        assert_eq!(cluster.roles_changed, changes, "no flapping, seed {seed}");
    }
}

#[test]
fn units_that_start_together_without_links_have_one_primary() {
    for seed in 0..40 {
        let units = 2 + seed as usize % 3;
        let mut cluster = Cluster::new(seed, units, NONE);
        cut_all(&mut cluster);
        for unit in 0..units {
            cluster.units[unit].ports = [false; 2];
            cluster.start(unit);
        }
        for _ in 0..units * 2 {
            let unit = cluster.random.below(units);
            let (now, wait) = (cluster.now, cluster.random.next() % 100);
            cluster.units[unit].ports = [true; 2];
            cluster.units[unit].wakes_at = now;
            if let Some(ha) = &mut cluster.units[unit].ha {
                ha.handle_ports(now, &[true; 2]);
            }
            cluster.run(ms(wait));
        }
        cluster.heal_ports();
        cluster.run(SETTLE_ON_PORTS);
        assert_eq!(cluster.primaries(0).len(), 1, "seed {seed}");
    }
}

#[test]
fn the_standby_that_serves_more_takes_over_without_links() {
    for seed in 0..40 {
        let mut cluster = Cluster::new(seed, 2 + seed as usize % 3, NONE);
        cluster.run(ms(3000));
        cut_all(&mut cluster);
        let wait = cluster.random.next() % 3000;
        cluster.run(ms(wait));
        let primary = cluster.primaries(0)[0];
        let now = cluster.now;
        cluster.units[primary].ports = [false, true];
        cluster.units[primary].wakes_at = now;
        if let Some(ha) = &mut cluster.units[primary].ha {
            ha.handle_ports(now, &[false, true]);
        }
        time_to_primary(&mut cluster, 0, primary);
        cluster.run(ms(500));
        let primaries = cluster.primaries(0);
        assert!(
            primaries.len() == 1 && primaries[0] != primary,
            "{primaries:?}, seed {seed}"
        );
        let changes = cluster.roles_changed;
        cluster.run(ms(10_000));
        assert_eq!(cluster.roles_changed, changes, "no flapping, seed {seed}");
    }
}

#[test]
fn no_pause_below_the_hold_time_moves_the_role_of_a_primary_without_links() {
    for seed in 0..60 {
        let units = 2 + seed as usize % 3;
        let mut cluster = Cluster::new(seed, units, NONE);
        cluster.run(ms(3000));
        // One unit's links, or all.
        match seed % 2 {
            0 => cut_all(&mut cluster),
            _ => cluster.isolate_first(),
        }
        cluster.run(ms(1000));
        let before = cluster.primaries(0);
        for _ in 0..60 {
            let unit = cluster.random.below(units);
            let pause = cluster.random.next() % (HOLD - INTERVAL * 2).as_millis() as u64;
            cluster.units[unit].runs_from = cluster.now + ms(pause);
            let wait = pause + cluster.random.next() % 100;
            cluster.run(ms(wait));
        }
        assert_eq!(cluster.primaries(0), before, "seed {seed}");
    }
}

#[test]
fn a_pause_of_the_standby_of_any_length_moves_no_role() {
    for pause in (0..500).step_by(5) {
        let mut cluster = Cluster::new(pause, 2 + pause as usize % 2, NONE);
        cluster.run(ms(3000));
        cut_all(&mut cluster);
        cluster.run(ms(1000));
        let before = cluster.primaries(0);
        let standby = (0..2).find(|unit| !before.contains(unit)).unwrap();
        cluster.units[standby].runs_from = cluster.now + ms(pause);
        cluster.run(ms(2000));
        assert_eq!(cluster.primaries(0), before, "pause {pause}");
    }
}

#[test]
fn two_standbys_whose_link_is_cut_agree_on_one_primary() {
    for seed in 0..100 {
        let mut cluster = Cluster::new(seed, 3, NONE);
        cluster.run(ms(3000));
        let primary = cluster.primaries(0)[0];
        let [one, other] = [(primary + 1) % 3, (primary + 2) % 3];
        (cluster.cut[one][other], cluster.cut[other][one]) = (true, true);
        let wait = cluster.random.next() % 2000;
        cluster.run(ms(wait));
        cluster.units[primary].ha = None;
        time_to_primary(&mut cluster, 0, primary);
        let began = cluster.now;
        while cluster.primaries(0).len() != 1 {
            cluster.run(ms(1));
            assert!(cluster.now.since(began) < ms(1000), "seed {seed}");
        }
        cluster.run(ms(3000));
        assert_eq!(cluster.primaries(0).len(), 1, "seed {seed}");
    }
}

#[test]
fn a_stranger_that_answers_for_all_addresses_holds_nothing_up() {
    for seed in 0..30 {
        let units = 2 + seed as usize % 3;
        let mut cluster = Cluster::new(seed, units, NONE);
        cluster.stranger = true;
        cluster.run(ms(3000));
        assert_eq!(cluster.primaries(0).len(), 1, "they start, seed {seed}");
        let primary = cluster.primaries(0)[0];
        if seed % 2 == 0 {
            cut_all(&mut cluster);
            cluster.run(ms(1000));
            assert_eq!(cluster.primaries(0), [primary], "it lives, seed {seed}");
        }
        cluster.units[primary].ha = None;
        let took = time_to_primary(&mut cluster, 0, primary);
        assert!(
            took <= HOLD + PROBE_WAIT + INTERVAL,
            "{took:?}, seed {seed}"
        );
    }
}

#[test]
fn a_unit_that_never_heard_its_peer_waits_for_a_stranger_for_a_while_only() {
    let mut cluster = Cluster::new(1, 2, NONE);
    cluster.stranger = true;
    cluster.units[1].ha = None;
    cluster.start(0);
    cluster.run(ms(2000));
    assert!(cluster.primaries(0).is_empty(), "it may be the peer");
    cluster.run(ms(2500));
    assert_eq!(cluster.primaries(0), [0]);
}
