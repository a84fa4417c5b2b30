//! The guarantee of new sessions, with more than two units and while roles change. `checks.rs` has
//! the checks at each packet.

use std::time::Duration;

use tandemgw_core::event::DropReason;
use tandemgw_core::random::SplitMix64;

use crate::faults::Faults;
use crate::hosts::Stage;
use crate::reload::Rules;
use crate::scenario;
use crate::setup::Shape;
use crate::turn::sessions;
use crate::world::{Death, World};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const SHAPE: Shape = Shape {
    units: 3,
    groups: 1,
    links: 1,
    guarantee: "bounded",
    override_: false,
    max_sessions: 256,
    ..Shape::PAIR
};

#[test]
fn the_guarantee_holds_with_three_and_four_units() {
    crate::install_logger();
    for (seed, units, guarantee) in [(31, 3, "strict"), (32, 4, "bounded")] {
        let shape = Shape {
            units,
            guarantee,
            ..SHAPE
        };
        scenario::run_with(seed, shape, SplitMix64(seed));
    }
}

/// More sessions at once than a peer applies in a turn: each is there before its packet goes.
#[test]
fn many_sessions_at_once_are_held_before_they_go() {
    crate::install_logger();
    let shape = Shape {
        units: 2,
        guarantee: "strict",
        max_sessions: 4096,
        ..SHAPE
    };
    let mut world = World::new(34, shape, Faults::NONE);
    world.run(ms(3500));
    let first = world.primaries(0)[0];
    for round in 0..4 {
        let ports = 10_000 + round * 700;
        world.open_many(first, ports..ports + 700);
        world.run(ms(30));
        assert_eq!(world.forwarded_many, u64::from(round + 1) * 700);
    }
}

/// A guarantee of two copies among four units, one of which is slow.
#[test]
fn two_copies_are_two() {
    crate::install_logger();
    let shape = Shape {
        units: 4,
        guarantee: "strict",
        ..SHAPE
    };
    let mut world = World::new(36, shape, Faults::NONE);
    for unit in 0..4 {
        world.units[unit].rules = Rules {
            two_copies: true,
            patient: true,
            ..Rules::default()
        };
        assert!(world.reload(unit));
    }
    world.run(ms(3500));
    world.check_agreement();
    let first = world.primaries(0)[0];
    for slow in [(first + 1) % 4, (first + 2) % 4] {
        world.units[slow].reads_from = world.now + ms(120);
    }
    world.open_many(first, 10_000..10_050);
    world.run(ms(80));
    assert_eq!(world.forwarded_many, 0, "one copy is not enough");
    world.run(ms(100));
    assert_eq!(world.forwarded_many, 50);
}

/// The only standby reads nothing for longer than first packets wait. Under `strict` they never
/// leave, and their sessions end.
#[test]
fn what_waited_in_vain_is_not_sent() {
    let (mut world, first) = pair(37, false);
    world.units[1 - first].reads_from = world.now + ms(50);
    world.open_many(first, 10_000..10_050);
    world.run(ms(40));
    assert_eq!(world.held(first), 50);
    let count = |world: &World, unit: usize| sessions(world.units[unit].gateway.as_ref().unwrap());
    assert_eq!(count(&world, first), 0, "they have ended");
    world.run(ms(500));
    assert_eq!(world.forwarded_many, 0);
    assert_eq!(count(&world, 1 - first), 0);
}

/// Later packets of a session do not pass the first one, which waits.
#[test]
fn nothing_passes_the_first_packet_while_it_waits() {
    let (mut world, first) = pair(38, true);
    world.units[1 - first].reads_from = world.now + ms(120);
    for _ in 0..3 {
        world.open_many(first, 10_000..10_050);
        world.run(ms(30));
        assert_eq!(world.forwarded_many, 0);
    }
    world.run(ms(100));
    assert_eq!(world.forwarded_many, 50, "the first of each");
    let gateway = world.units[first].gateway.as_ref().unwrap();
    let dropped = gateway.counters().dropped[DropReason::WaitsForPeer as usize];
    assert_eq!(dropped, 100);
    world.open_many(first, 10_000..10_050);
    world.run(ms(5));
    assert_eq!(world.forwarded_many, 100);
}

/// The only copy dies while packets wait for it: they leave without one, and each is counted.
#[test]
fn what_waits_for_a_peer_that_dies_leaves_and_is_counted() {
    let (mut world, first) = pair(39, true);
    let degraded = |world: &World| {
        let gateway = world.units[first].gateway.as_ref().unwrap();
        gateway.counters().guarantee_degraded
    };
    world.units[1 - first].reads_from = world.now + ms(500);
    world.open_many(first, 10_000..10_050);
    world.run(ms(30));
    assert_eq!((world.held(first), degraded(&world)), (50, 0));
    world.die(1 - first, Death::Killed);
    world.run(ms(100));
    assert_eq!((world.forwarded_many, degraded(&world)), (50, 50));
}

/// One standby of two does not run, and is not missed yet: nothing waits for it.
#[test]
fn a_frozen_standby_of_two_holds_nothing_up() {
    crate::install_logger();
    let shape = Shape {
        guarantee: "strict",
        max_sessions: 4096,
        ..SHAPE
    };
    let mut world = World::new(35, shape, Faults::NONE);
    world.run(ms(3500));
    world.check_agreement();
    let first = world.primaries(0)[0];
    world.pause((first + 1) % 3, ms(300));
    for round in 0..6 {
        let ports = 10_000 + round * 50;
        world.open_many(first, ports..ports + 50);
        world.run(ms(40));
        assert_eq!(
            world.forwarded_many,
            u64::from(round + 1) * 50,
            "round {round}"
        );
    }
    world.run(ms(3000));
    world.check_agreement();
}

/// Packets wait for peers that do not read; their unit is paused, and is not primary when it goes
/// on.
#[test]
fn what_waits_is_not_sent_after_a_step_down() {
    crate::install_logger();
    let mut world = World::new(33, SHAPE, Faults::NONE);
    for unit in 0..3 {
        world.units[unit].rules = Rules {
            patient: true,
            ..Rules::default()
        };
        assert!(world.reload(unit));
    }
    world.run(ms(3500));
    world.check_agreement();
    let first = world.primaries(0)[0];
    for unit in (0..3).filter(|unit| *unit != first) {
        world.units[unit].reads_from = world.now + ms(400);
    }
    (0..8).for_each(|_| world.open_flow());
    // Hosts repeat what is not answered: that waits too.
    world.run(ms(150));
    let held = world.held(first);
    assert!(held > 3, "{held} packets wait");
    assert_eq!(world.exchanges(), 0, "nothing has passed");
    world.pause(first, ms(110));
    world.run(ms(130));
    assert!(!world.is_primary(first, 0), "it has stepped down");
    world.run(ms(2000));
    assert!(world.exchanges() > 0, "the others go on");
    let open = |stage| matches!(stage, Stage::Open | Stage::Done);
    assert!(world.flows.iter().all(|flow| open(flow.stage)));
    world.silent = true;
    world.run(ms(4000));
    world.check_agreement();
}

/// A pair in sync under `strict`, whose first packets wait 200 ms if it is patient, and which of
/// the two is primary.
fn pair(seed: u64, patient: bool) -> (World, usize) {
    crate::install_logger();
    let shape = Shape {
        units: 2,
        guarantee: "strict",
        ..SHAPE
    };
    let mut world = World::new(seed, shape, Faults::NONE);
    for unit in 0..2 {
        world.units[unit].rules = Rules {
            patient,
            ..Rules::default()
        };
        assert!(world.reload(unit));
    }
    world.run(ms(3500));
    world.check_agreement();
    let first = world.primaries(0)[0];
    (world, first)
}

impl World {
    /// Packets that had to wait for peers.
    fn held(&self, unit: usize) -> u64 {
        let gateway = self.units[unit].gateway.as_ref().unwrap();
        gateway.counters().guarantee_held
    }

    fn exchanges(&self) -> u32 {
        self.flows.iter().map(|flow| flow.exchanges).sum()
    }
}
