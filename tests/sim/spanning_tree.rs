//! Ports of a switch that blocks for a while after their link has come up, as with spanning tree: a
//! unit takes a group back by `override` when its ports carry, not when their links are up.

use std::time::Duration;

use crate::compound::{calm, ms, open_flows, shape};
use crate::setup::Shape;
use crate::world::{Death, World};

/// The part of each segment that a port is on while it blocks: nobody else is there.
const NOBODY: usize = 9;

/// The longest time without any answer, in a failover or the way back.
const MOST_SILENT: Duration = ms(600);

/// A unit asks for its groups so soon after its ports have come to carry.
const TAKEN_BACK_WITHIN: Duration = ms(5000);

impl World {
    fn block(&mut self, unit: usize, blocks: bool) {
        for port in &mut self.units[unit].ports {
            port.part = if blocks { NOBODY } else { 0 };
        }
    }

    /// Lets time pass; gives the longest time in which no flow got an answer.
    fn silence(&mut self, duration: Duration) -> Duration {
        const STEP: Duration = ms(20);
        let (end, mut longest, mut silent) = (self.now + duration, Duration::ZERO, Duration::ZERO);
        let mut before: u32 = self.flows.iter().map(|flow| flow.exchanges).sum();
        while self.now < end {
            self.run(STEP);
            let answers = self.flows.iter().map(|flow| flow.exchanges).sum();
            silent = if answers == before {
                silent + STEP
            } else {
                Duration::ZERO
            };
            longest = longest.max(silent);
            before = answers;
        }
        longest
    }
}

/// A pair whose unit 1 takes its groups back whenever it can. It is primary.
fn pair(seed: u64) -> World {
    let shape = Shape {
        override_: true,
        guarantee: "off",
        ..shape(2)
    };
    let (mut world, _) = calm(seed, shape);
    world.run(ms(4000));
    assert_eq!(world.primaries(0), [1], "the unit with the higher priority");
    open_flows(&mut world, 12);
    world
}

/// It is the other unit's until the ports carry, and then that of unit 1; hosts are served all the
/// time.
fn expect_no_outage(mut world: World, blocked: Duration, what: &str) {
    let step = ms(250);
    let (mut passed, mut longest) = (Duration::ZERO, Duration::ZERO);
    while passed < blocked {
        longest = longest.max(world.silence(step));
        assert_eq!(world.primaries(0), [0], "{what}: while the ports block");
        passed += step;
    }
    world.block(1, false);
    longest = longest.max(world.silence(TAKEN_BACK_WITHIN));
    assert_eq!(world.primaries(0), [1], "{what}: when they carry");
    assert!(longest < MOST_SILENT, "{what}: silent for {longest:?}");
}

#[test]
fn a_unit_that_starts_on_ports_that_block_takes_nothing_back_before_they_carry() {
    for seconds in [0, 1, 2, 7, 15, 31] {
        let mut world = pair(seconds);
        world.die(1, Death::PowerLoss);
        world.run(ms(1000 + seconds * 37 % 500));
        assert_eq!(world.primaries(0), [0]);
        world.block(1, true);
        world.start(1);
        expect_no_outage(
            world,
            Duration::from_secs(seconds),
            &format!("a start, {seconds} s"),
        );
    }
}

#[test]
fn a_unit_whose_links_come_back_on_ports_that_block_takes_nothing_back_before_they_carry() {
    for seconds in [1, 2, 15, 31] {
        let mut world = pair(seconds);
        for port in 0..world.shape.ports() {
            world.set_port(1, port, false);
        }
        world.run(ms(1000));
        assert_eq!(world.primaries(0), [0]);
        world.block(1, true);
        for port in 0..world.shape.ports() {
            world.set_port(1, port, true);
        }
        expect_no_outage(
            world,
            Duration::from_secs(seconds),
            &format!("links, {seconds} s"),
        );
    }
}

/// One of two ports blocks: with it the unit would serve only half of the hosts.
#[test]
fn one_port_that_blocks_is_enough_to_wait() {
    for blocked in 0..2 {
        let mut world = pair(40 + blocked as u64);
        world.die(1, Death::PowerLoss);
        world.run(ms(1500));
        world.units[1].ports[blocked].part = NOBODY;
        world.start(1);
        expect_no_outage(world, Duration::from_secs(12), &format!("port {blocked}"));
    }
}
