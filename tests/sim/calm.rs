//! Stretches without faults, or with one only: what costs nothing must cost nothing, and what is
//! large or slow must come to the same end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tandemgw_core::flow::{Family, GroupId};
use testkit::packets::udp;

use crate::checks::views;
use crate::faults::Faults;
use crate::hosts::Stage;
use crate::reload::Rules;
use crate::setup::{NAMES, Shape, host_address, peer_id};
use crate::world::{Arrival, Death, World};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const SHAPE: Shape = Shape {
    units: 2,
    groups: 1,
    links: 1,
    guarantee: "off",
    override_: false,
    max_sessions: 256,
    ..Shape::PAIR
};

/// More than any call of the replication handles: changes, slots of a table, operations.
const MANY: u16 = 2600;

/// Units that run for a while, have a primary, and are in sync.
fn calm(seed: u64, shape: Shape) -> World {
    let mut world = World::new(seed, shape, Faults::NONE);
    world.run(ms(3500));
    world.check_agreement();
    world
}

impl World {
    /// Sessions removed by a comparison, over all units.
    fn swept(&self) -> u64 {
        let gateways = self.units.iter().filter_map(|unit| unit.gateway.as_ref());
        let clusters = gateways.filter_map(|gateway| gateway.cluster());
        clusters
            .map(|cluster| cluster.sync().counters().swept)
            .sum()
    }

    /// Every primary knows that all peers are in sync, and have what it has.
    fn check_equal(&self) {
        for (unit, group) in self.reigning() {
            let gateway = self.units[unit].gateway.as_ref().unwrap();
            let sync = gateway.cluster().unwrap().sync();
            for peer in (0..self.shape.units).filter(|peer| *peer != unit) {
                let (id, name) = (peer_id(unit, peer), NAMES[peer]);
                assert!(sync.in_sync(id), "{name} fell out of sync");
                let equal = sync.digest_equal(id, GroupId(group as u8));
                assert!(equal, "the digest of {name} differs in group {group}");
            }
        }
    }

    /// All primaries, and their groups.
    fn reigning(&self) -> Vec<(usize, usize)> {
        let pairs = (0..self.shape.units)
            .flat_map(|unit| (0..self.shape.groups).map(move |group| (unit, group)));
        pairs
            .filter(|(unit, group)| self.is_primary(*unit, *group))
            .collect()
    }

    /// Opens a session for each of these ports through the primary of group 0: nobody answers.
    pub fn open_many(&mut self, unit: usize, ports: std::ops::Range<u16>) {
        let (lan, wan) = (0, 1);
        for (count, port) in ports.enumerate() {
            let from = (host_address(lan, 1, Family::V4), port);
            let to = (host_address(wan, 0, Family::V4), 53);
            let bytes = udp(from, to).payload(b"many").bytes();
            // Some 100 a turn.
            let when = self.now + Duration::from_micros(count as u64);
            self.arrive(unit, when, Arrival::Packet { port: lan, bytes });
        }
    }

    /// The flows of the sessions that a unit holds, and what they are translated to.
    fn translations(&self, unit: usize) -> BTreeSet<String> {
        let gateway = self.units[unit].gateway.as_ref().unwrap();
        let views = views(gateway, self.local_time(unit)).into_iter();
        views
            .map(|view| format!("{} as {}", view.original, view.translated))
            .collect()
    }

    fn count(&self, unit: usize) -> u32 {
        let gateway = self.units[unit].gateway.as_ref().unwrap();
        crate::turn::sessions(gateway)
    }
}

/// Sessions that end, in good order, by a reset or by time, never make the tables differ.
#[test]
fn sessions_that_end_leave_nothing_to_repair() {
    for (seed, units, groups) in [(1, 2, 1), (2, 3, 2)] {
        let mut world = calm(
            seed,
            Shape {
                units,
                groups,
                ..SHAPE
            },
        );
        for unit in 0..units {
            world.units[unit].rules = Rules {
                brief: true,
                ..Rules::default()
            };
            assert!(world.reload(unit));
        }
        world.run(ms(2500));
        let mut most = 0;
        for _ in 0..60 {
            (0..3).for_each(|_| world.open_flow());
            world.close_some_flow();
            world.reset_some_flow();
            world.run(ms(100));
            world.check_equal();
            most = most.max(world.count(0));
        }
        world.silent = true;
        world.run(ms(8000));
        world.check_equal();
        world.check_agreement();
        assert!(most > 20, "{most} sessions");
        assert!(world.count(0) < most / 2, "sessions do not end");
        assert_eq!(world.swept(), 0);
    }
}

/// Flows that go on for many times the timeout of their sessions, while their group moves from unit
/// to unit: no session of theirs ends on any unit.
#[test]
fn nothing_expires_while_a_unit_forwards_it() {
    let mut world = calm(12, Shape { units: 3, ..SHAPE });
    for unit in 0..3 {
        world.units[unit].rules.brief = true;
        assert!(world.reload(unit));
    }
    world.run(ms(2500));
    (0..24).for_each(|_| world.open_flow());
    world.run(ms(1000));
    for round in 0..6 {
        let before = world.progress();
        assert!(before.len() > 10, "{} flows", before.len());
        let primary = world.primaries(0)[0];
        match round % 2 {
            0 => world.hand_over(primary, 0).unwrap(),
            _ => world.die(primary, Death::PowerLoss),
        }
        // The timeouts are 3 s.
        world.run(ms(7000));
        let still: BTreeMap<usize, u32> = before.iter().map(|(id, _)| (*id, 0)).collect();
        world.check_flows(&before, &still);
        if !world.is_alive(primary) {
            world.start(primary);
            world.run(ms(4000));
        }
        let owner = world.primaries(0)[0];
        let all = world.translations(owner);
        assert!(all.len() >= before.len());
        for (unit, name) in NAMES.iter().enumerate().take(3) {
            let held = world.translations(unit);
            assert_eq!(all.difference(&held).next(), None, "{name}");
        }
    }
}

/// Sessions open all the while, and the stream takes a few of them at a time.
#[test]
fn a_handover_on_a_narrow_window_loses_nothing() {
    let shape = Shape {
        guarantee: "strict",
        ..SHAPE
    };
    let mut world = calm(3, shape);
    world.faults.stream_window = 400;
    for round in 0..4 {
        world.client_ports += 100;
        let from = world.primaries(0)[0];
        for step in 0..60 {
            world.open_flow();
            world.run(ms(2));
            if step == 20 {
                world.hand_over(from, 0).unwrap();
            }
        }
        world.run(ms(1500));
        for end in world.handover_ends() {
            assert_eq!(end.result, Ok(()), "round {round}");
        }
        assert_eq!(world.primaries(0), [1 - from], "round {round}");
        let broken = |stage| matches!(stage, Stage::Broken | Stage::Opening);
        let lost = world.flows.iter().find(|flow| broken(flow.stage));
        assert_eq!(lost.map(|flow| flow.to_string()), None, "round {round}");
        world.silent = true;
        world.run(ms(2500));
        world.check_agreement();
        world.silent = false;
    }
    assert_eq!(world.swept(), 0);
}

/// Tables that take many calls to send, to apply, and to compare, on streams of different speeds.
#[test]
fn large_tables_come_to_the_same_end() {
    let shape = Shape {
        units: 3,
        max_sessions: 8192,
        ..SHAPE
    };
    let mut world = calm(4, shape);
    let first = world.primaries(0)[0];
    let [fast, slow] = [(first + 1) % 3, (first + 2) % 3];
    world.slow_down(first, slow, 300);
    world.open_many(first, 10_000..10_000 + MANY);
    world.run(ms(150));
    assert_eq!(world.count(first), u32::from(MANY));
    assert_eq!(world.count(fast), u32::from(MANY), "the fast peer has all");
    assert!(world.count(slow) < u32::from(MANY), "the slow one does not");
    world.run(ms(3000));
    world.check_agreement();
    // A unit that has nothing gets all of it, while more sessions open and a stream breaks.
    world.die(fast, Death::PowerLoss);
    world.run(ms(400));
    world.start(fast);
    world.run(ms(150));
    world.open_many(first, 20_000..20_500);
    world.run(ms(10));
    world.break_stream(first, fast);
    world.run(ms(6000));
    world.check_agreement();
    assert_eq!(world.count(fast), u32::from(MANY) + 500);
    assert_eq!(world.swept(), 0);
}

/// Both units were primary, and each has many sessions that the other one lacks.
#[test]
fn large_tables_of_two_primaries_become_one() {
    let shape = Shape {
        max_sessions: 8192,
        ..SHAPE
    };
    let mut world = calm(5, shape);
    let first = world.primaries(0)[0];
    world.open_many(first, 10_000..10_000 + MANY);
    world.run(ms(1500));
    world.cut_off_fully(first, 1 - first, true);
    world.run(ms(1000));
    assert_eq!(world.primaries(0), [0, 1], "two primaries");
    world.open_many(first, 20_000..20_000 + MANY / 2);
    world.open_many(1 - first, 30_000..30_000 + MANY / 2);
    world.run(ms(200));
    world.cut_off_fully(first, 1 - first, false);
    world.run(ms(9000));
    world.check_agreement();
    assert!(world.count(0) >= u32::from(MANY + MANY / 2));
}

/// With links between the units, and without.
#[test]
fn a_host_that_sends_to_a_standby_is_told_where_the_primary_is() {
    let mut world = calm(11, SHAPE);
    let primary = world.primaries(0)[0];
    let (old, new) = (world.macs(1 - primary, 0), world.macs(primary, 0));
    for linked in [true, false] {
        if !linked {
            (world.cut_off[0][1], world.cut_off[1][0]) = (true, true);
            world.run(ms(2000));
        }
        for host in &mut world.hosts[0] {
            host.gateway = [Some(old); 2];
        }
        (0..40).for_each(|_| world.open_flow());
        world.run(ms(1000));
        // The first host is a server, and opens nothing.
        for host in &world.hosts[0][1..] {
            assert_eq!(host.gateway, [Some(new); 2], "linked {linked}");
        }
    }
}
