//! Two things that go wrong one after the other: what survives the first must survive both.

use std::time::Duration;

use tandemgw_core::flow::{FlowKey, Protocol};
use testkit::packets::{ACK, Pkt, tcp, udp};

use crate::checks::views;
use crate::faults::Faults;
use crate::setup::Shape;
use crate::turn::sessions;
use crate::world::{Arrival, Death, World};

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const SEEDS: u64 = 2;

pub fn shape(units: usize) -> Shape {
    Shape {
        units,
        groups: 1,
        links: 1,
        guarantee: "strict",
        override_: false,
        max_sessions: 256,
        ..Shape::PAIR
    }
}

/// A cluster whose units agree, with open flows. Also returns the primary.
pub fn calm(seed: u64, shape: Shape) -> (World, usize) {
    crate::install_logger();
    let mut world = World::new(seed, shape, Faults::NONE);
    world.run(ms(3000));
    open_flows(&mut world, 10);
    world.check_agreement_soon();
    let primary = world.primaries(0)[0];
    (world, primary)
}

pub fn open_flows(world: &mut World, count: usize) {
    for _ in 0..count {
        world.open_flow();
    }
    world.client_ports += 100;
    world.run(ms(1200));
}

impl World {
    pub fn check_agreement_soon(&mut self) {
        self.silent = true;
        self.run(ms(2500));
        self.check_agreement();
        self.silent = false;
    }

    /// The sessions that a unit holds, of connections that live on for a while.
    pub fn held_by(&self, unit: usize) -> Vec<(FlowKey, FlowKey)> {
        let Some(gateway) = &self.units[unit].gateway else {
            return Vec::new();
        };
        let views = views(gateway, self.local_time(unit)).into_iter();
        let lives = views.filter(|view| view.expires_s > 60);
        lives.map(|view| (view.original, view.translated)).collect()
    }

    /// The same of one group.
    pub fn held_in(&self, unit: usize, group: u8) -> Vec<(FlowKey, FlowKey)> {
        let Some(gateway) = &self.units[unit].gateway else {
            return Vec::new();
        };
        let views = views(gateway, self.local_time(unit)).into_iter();
        let own = views.filter(|view| view.group.0 == group && view.expires_s > 60);
        own.map(|view| (view.original, view.translated)).collect()
    }

    /// Cuts a unit off from all others, on links and data ports, or joins it again.
    pub fn isolate(&mut self, unit: usize, cut: bool) {
        for other in (0..self.shape.units).filter(|other| *other != unit) {
            self.cut_off[unit][other] = cut;
            self.cut_off[other][unit] = cut;
        }
        for port in &mut self.units[unit].ports {
            port.part = usize::from(cut);
        }
    }

    /// Which of these sessions no primary holds, not even closed: hosts may end them.
    fn missing(&self, sessions: &[(FlowKey, FlowKey)]) -> Vec<(FlowKey, FlowKey)> {
        let of_unit = |unit: usize| {
            let gateway = self.units[unit].gateway.as_ref();
            gateway.map(|gateway| views(gateway, self.local_time(unit)))
        };
        let primaries = self.primaries(0).into_iter();
        let held: Vec<_> = primaries
            .filter_map(of_unit)
            .flatten()
            .map(|view| (view.original, view.translated))
            .collect();
        let missing = sessions.iter().filter(|session| !held.contains(session));
        missing.cloned().collect()
    }

    /// Whether packets of a session belong to another one at a primary.
    fn clashes(&self, (original, translated): &(FlowKey, FlowKey)) -> bool {
        let primaries = self.primaries(0).into_iter();
        let mut held = primaries.flat_map(|unit| self.held_by(unit));
        held.any(|(from, to)| {
            // Its answers may have come to the other unit first, which then took them up by
            // themselves.
            let is_reverse = from == translated.reply() && to == original.reply();
            from == *original || to.reply() == translated.reply() || is_reverse
        })
    }

    /// Answers the datagrams of [`World::open_many`] once.
    fn answer_many(&mut self, unit: usize) {
        for (_, outside) in self.held_by(unit) {
            if (10_000..11_000).contains(&outside.src_port) {
                let answer = udp(
                    (outside.dst, outside.dst_port),
                    (outside.src, outside.src_port),
                );
                self.arrive_on_wan(unit, &answer);
            }
        }
    }

    /// Sends packets of sessions in both directions to a unit whose LAN is down.
    fn send_both_ways(&mut self, unit: usize) {
        let (mut out, mut back) = (0, 0);
        for (inside, outside) in self.held_by(unit) {
            let is_udp = inside.protocol == Protocol::UDP;
            let packet = match inside.dst_port {
                53 if is_udp => udp((outside.dst, 53), (outside.src, outside.src_port)),
                8080 => tcp(
                    (inside.src, inside.src_port),
                    (inside.dst, 8080),
                    ACK,
                    1_000_001,
                    9_000_001,
                ),
                _ => continue,
            };
            *(if is_udp { &mut back } else { &mut out }) += 1;
            self.arrive_on_wan(unit, &packet);
        }
        assert!(out > 0 && back > 0, "{out} and {back} sessions");
    }

    fn arrive_on_wan(&mut self, unit: usize, packet: &Pkt) {
        let bytes = packet.bytes();
        self.arrive(unit, self.now, Arrival::Packet { port: 1, bytes });
    }

    fn cut_link(&mut self, one: usize, other: usize) {
        self.cut_off[one][other] = true;
        self.cut_off[other][one] = true;
    }
}

/// A standby that was cut off from everything promotes itself, comes back with the higher term, and
/// must not be the reason for which anything ends.
#[test]
fn an_isolated_standby_that_returns_ends_nothing() {
    for seed in 0..SEEDS {
        for units in [2, 3, 4] {
            let (mut world, primary) = calm(seed, shape(units));
            let isolated = (primary + 1) % units;
            world.isolate(isolated, true);
            world.run(ms(1000));
            assert!(world.is_primary(isolated, 0), "it promotes itself");
            open_flows(&mut world, 10);
            let held = world.held_by(primary);
            assert!(held.len() > 10, "flows open: {held:?}");
            world.isolate(isolated, false);
            world.run(ms(4000));
            assert_eq!(world.primaries(0), [primary], "seed {seed}, units {units}");
            world.check_kept(&held);
            world.check_agreement_soon();
        }
    }
}

/// A standby promotes itself while one of its ports is down. It hears hosts on the other port, and
/// forwards nothing. The primary opens sessions meanwhile, with one packet each way: it stays.
#[test]
fn a_unit_that_only_hears_hosts_has_carried_nothing() {
    for seed in 0..SEEDS {
        let (mut world, primary) = calm(seed, shape(2));
        let other = 1 - primary;
        open_flows(&mut world, 20);
        world.silent = true;
        world.set_port(other, 0, false);
        world.isolate(other, true);
        world.run(ms(1000));
        assert!(world.is_primary(other, 0), "it promotes itself");
        world.open_many(primary, 10_000..10_020);
        world.run(ms(50));
        world.send_both_ways(other);
        world.answer_many(primary);
        world.run(ms(300));
        let held = world.held_in(primary, 0);
        world.isolate(other, false);
        world.run(ms(2500));
        assert_eq!(world.primaries(0), [primary], "seed {seed}");
        world.check_kept(&held);
    }
}

/// A standby is stopped for longer than its copies would live without packets. It could not see
/// their packets, so it ends none of them, whether the primary is gone when it goes on, or leaves
/// the group to it.
#[test]
fn a_standby_that_was_stopped_for_long_ends_nothing() {
    const STOPPED: Duration = ms(400_000);
    for (seed, leaves) in [(0, false), (1, true)] {
        let (mut world, primary) = calm(seed, shape(2));
        let standby = 1 - primary;
        world.silent = true;
        let held = |world: &World| {
            let unit = &world.units[standby];
            let gateway = unit.gateway.as_ref().expect("it lives");
            views(gateway, world.local_time(standby))
        };
        let before = held(&world);
        let would_expire = |seconds: u64| seconds < STOPPED.as_secs();
        assert!(before.iter().any(|view| would_expire(view.expires_s)));
        world.pause(standby, STOPPED);
        match leaves {
            true => world.stop(primary),
            false => world.die(primary, Death::PowerLoss),
        }
        world.run(STOPPED + ms(1000));
        assert_eq!(world.primaries(0), [standby], "seed {seed}");
        let (before, after) = (before.len(), held(&world).len());
        assert_eq!(after, before, "seed {seed}");
    }
}

/// A standby restarts twice in a short time: its heartbeats and its streams come in any order, and
/// it is a copy again.
#[test]
fn a_unit_that_restarts_twice_is_a_copy_again() {
    for gap in (0..240).step_by(8) {
        let (mut world, primary) = calm(gap, shape(2));
        let standby = 1 - primary;
        for _ in 0..2 {
            world.die(standby, Death::Killed);
            world.start(standby);
            world.run(ms(gap));
        }
        world.check_agreement_soon();
    }
}

/// The primary's side loses, since the other one went on with hosts of its own: all is united.
#[test]
fn a_split_that_both_sides_carried_loses_no_session_of_either() {
    for seed in 0..SEEDS {
        let (mut world, primary) = calm(seed, shape(2));
        let other = 1 - primary;
        world.isolate(other, true);
        // The last host of each segment goes with it.
        for segment in 0..world.shape.segments() {
            world.hosts[segment][2].part = 1;
            world.hosts[segment][2].gateway = [None; 2];
        }
        world.run(ms(1000));
        open_flows(&mut world, 40);
        let mut held = world.held_by(primary);
        let theirs = world.held_by(other);
        assert!(theirs.iter().any(|session| !held.contains(session)));
        held.extend(theirs);
        world.isolate(other, false);
        for segment in &mut world.hosts {
            segment[2].part = 0;
        }
        world.run(ms(4000));
        let lost = world.missing(&held);
        // Both may have given one port to two flows: one of them stays.
        assert!(
            lost.iter().all(|one| world.clashes(one)),
            "seed {seed}: {lost:?}"
        );
        world.check_agreement_soon();
    }
}

/// A standby that missed everything since its link was cut must not win over one that missed
/// nothing.
#[test]
fn a_stale_standby_of_higher_priority_does_not_take_over() {
    for seed in 0..SEEDS {
        let (mut world, primary) = calm(seed, shape(3));
        assert_eq!(primary, 2, "the highest priority");
        world.cut_link(2, 1);
        world.run(ms(500));
        open_flows(&mut world, 12);
        let held = world.held_by(primary);
        assert!(held.len() > 12);
        world.die(primary, Death::PowerLoss);
        world.run(ms(3000));
        assert_eq!(world.primaries(0), [0], "seed {seed}");
        world.check_kept(&held);
    }
}

/// A flood in one group fills the table of its primary, which is the standby of the other group.
#[test]
fn a_flood_in_one_group_takes_no_replica_of_another() {
    let shape = Shape {
        groups: 2,
        max_sessions: 400,
        ..shape(2)
    };
    crate::install_logger();
    let mut world = World::new(7, shape, Faults::NONE);
    world.run(ms(3000));
    world.check_agreement();
    // Each unit is primary of one group.
    let flooded = world.primaries(0)[0];
    if world.primaries(1) == [flooded] {
        world.hand_over(flooded, 1).unwrap();
        world.run(ms(2500));
    }
    assert_eq!(world.primaries(1), [1 - flooded]);
    (0..40).for_each(|_| world.open_flow_in(1));
    world.run(ms(2500));
    let held: Vec<_> = world.held_in(1 - flooded, 1);
    assert!(held.len() > 10, "{} sessions", held.len());
    for round in 0..6 {
        let ports = 10_000 + round * 200;
        world.open_many(flooded, ports..ports + 200);
        world.run(ms(100));
    }
    let full = world.units[flooded].gateway.as_ref().map(sessions);
    assert!(full > Some(300), "the flood fills the table: {full:?}");
    // A session that opens during the flood has its copy too, or does not open.
    (0..20).for_each(|_| world.open_flow_in(1));
    world.run(ms(1500));
    let held: Vec<_> = world.held_in(1 - flooded, 1);
    world.die(1 - flooded, Death::PowerLoss);
    world.run(ms(1500));
    assert_eq!(world.primaries(1), [flooded]);
    let left = world.held_in(flooded, 1);
    let lost: Vec<_> = held.iter().filter(|it| !left.contains(it)).collect();
    assert!(
        lost.is_empty(),
        "{} of {}: {lost:?}",
        lost.len(),
        held.len()
    );
}

/// A peer with a smaller table refuses sessions that do not fit. Under `strict` that is not a copy:
/// what passed is held.
#[test]
fn a_smaller_table_refuses_and_is_no_copy() {
    for seed in 0..SEEDS {
        crate::install_logger();
        let mut world = World::new(seed, shape(2), Faults::NONE);
        world.run(ms(3000));
        let primary = world.primaries(0)[0];
        let small = 1 - primary;
        world.units[small].rules.small_table = true;
        world.die(small, Death::Killed);
        world.run(ms(300));
        world.start(small);
        world.run(ms(2500));
        for _ in 0..4 {
            open_flows(&mut world, 20);
        }
        let refused = |world: &World| {
            let gateway = world.units[primary].gateway.as_ref().unwrap();
            gateway.counters().guarantee_refused
        };
        assert!(refused(&world) > 0, "seed {seed}: the table is not full");
        world.silent = true;
        world.run(ms(1500));
        let held = world.held_by(primary);
        assert!(held.len() > 10, "seed {seed}: {} sessions", held.len());
        world.die(primary, Death::PowerLoss);
        world.run(ms(2000));
        assert_eq!(world.primaries(0), [small]);
        world.check_kept(&held);
    }
}

/// Groups, and the hosts of each.
const MANY_GROUPS: usize = 40;

/// All groups move at once: each is announced at once, and no heartbeat waits behind announcements.
#[test]
fn many_groups_move_at_once() {
    crate::install_logger();
    let shape = Shape {
        groups: MANY_GROUPS,
        guarantee: "off",
        ..shape(3)
    };
    let mut world = World::new(11, shape, Faults::NONE);
    world.run(ms(4000));
    let primary = world.primaries(0)[0];
    for group in 0..MANY_GROUPS {
        assert_eq!(world.primaries(group), [primary], "group {group}");
    }
    world.die(primary, Death::Killed);
    world.run(ms(80));
    let next = world.primaries(0)[0];
    for segment in 0..shape.segments() {
        assert_eq!(world.primaries(segment / 2), [next]);
        for host in &world.hosts[segment] {
            let found = host.gateway.map(|mac| mac.map(|mac| mac[4]));
            assert_eq!(found, [Some(next as u8); 2], "segment {segment}");
        }
    }
    // Others that live were heard all the time.
    world.run(ms(2000));
    for group in 0..MANY_GROUPS {
        assert_eq!(world.primaries(group), [next], "group {group}");
    }
    for unit in (0..3).filter(|unit| *unit != primary) {
        let gateway = world.units[unit].gateway.as_ref().unwrap();
        assert_eq!(gateway.counters().outputs_lost, 0);
        let events = gateway.cluster().unwrap().ha().events();
        let missed = format!("{} is lost", crate::setup::NAMES[3 - primary - unit]);
        assert!(!events.into_iter().any(|event| event.what == missed));
    }
}
