//! Routers that send the packets of a session to any unit, and packets that go from unit to unit.

use std::collections::BTreeMap;

use tandemgw_core::event::{DropReason, Output};
use tandemgw_core::flow::{Family, PeerId};
use tandemgw_core::gateway::{Counters, SessionView};
use tandemgw_core::random::SplitMix64;
use testkit::packets::{SYN, tcp};

use crate::checks::views;
use crate::compound::{ms, open_flows, shape};
use crate::faults::Faults;
use crate::hosts::Stage;
use crate::scenario;
use crate::setup::{Shape, host_address};
use crate::world::{Death, Spread, World};

const SEEDS: u64 = 2;

fn asymmetric(units: usize, groups: usize) -> Shape {
    Shape {
        asymmetric: true,
        groups,
        spread: groups > 1,
        shared_wan: groups > 1,
        guarantee: "off",
        ..shape(units)
    }
}

/// A cluster whose units agree. Each packet goes to any of them.
fn started(seed: u64, shape: Shape) -> World {
    crate::install_logger();
    let mut world = World::new(seed, shape, Faults::NONE);
    world.run(ms(3000));
    world.spread = Spread::EachPacket;
    world
}

impl World {
    fn total(&self, of: impl Fn(&Counters) -> u64) -> u64 {
        let gateways = self.units.iter().filter_map(|unit| unit.gateway.as_ref());
        gateways.map(|gateway| of(gateway.counters())).sum()
    }

    pub fn moves(&self) -> BTreeMap<usize, u32> {
        let flows = self.flows.iter().enumerate();
        flows.map(|(id, flow)| (id, flow.moves)).collect()
    }

    fn check_none_broken(&self) {
        let broken = self.flows.iter().find(|flow| flow.stage == Stage::Broken);
        assert!(broken.is_none(), "{}", broken.unwrap());
        assert_eq!(self.crossed, 0, "answers reached other flows");
    }
}

/// Nobody has to send anything twice, and a unit that dies takes no session with it.
#[test]
fn each_packet_may_come_to_another_unit() {
    for units in [2, 3, 5, 8] {
        for groups in [1, 2] {
            for seed in 0..SEEDS {
                let mut world = started(seed, asymmetric(units, groups));
                open_flows(&mut world, 20);
                world.run(ms(2000));
                world.check_none_broken();
                assert_eq!(world.repeated, 0, "seed {seed}, {units} units");
                assert!(world.total(|it| it.passed_on) > 0);
                assert!(world.total(|it| it.stood_in) > 20);
                let (open, moves) = (world.progress(), world.moves());
                assert!(open.len() > 5, "{}", open.len());
                world.silent = true;
                world.run(ms(500));
                let held = world.acknowledged();
                world.silent = false;
                let primary = world.primaries(0)[0];
                world.die(primary, Death::PowerLoss);
                world.run(ms(1500));
                world.check_kept(&held);
                world.check_flows(&open, &moves);
                world.start(primary);
                world.run(ms(3000));
                (0..5).for_each(|_| world.close_some_flow());
                (0..5).for_each(|_| world.reset_some_flow());
                world.run(ms(1000));
                world.check_none_broken();
                world.check_agreement_soon();
            }
        }
    }
}

/// The peers read none of the stream meanwhile, so they know no session: all of it goes by way of
/// the owner, at once.
#[test]
fn an_answer_that_overtakes_its_session_is_not_lost() {
    for seed in 0..SEEDS {
        let mut world = started(seed, asymmetric(3, 1));
        let primary = world.primaries(0)[0];
        for unit in (0..3).filter(|unit| *unit != primary) {
            world.units[unit].reads_from = world.now + ms(1500);
        }
        open_flows(&mut world, 20);
        assert_eq!(world.repeated, 0, "seed {seed}");
        assert_eq!(world.total(|it| it.stood_in), 0, "nobody knows a session");
        assert!(world.progress().len() > 5);
        world.run(ms(2000));
        assert_eq!(world.repeated, 0, "seed {seed}");
        world.check_none_broken();
        world.check_agreement_soon();
    }
}

/// The owner sees next to none of the packets. It hears often enough that the sessions are in use,
/// and ends them some time after they are not.
#[test]
fn a_session_lives_while_another_unit_forwards_it() {
    for seed in 0..SEEDS {
        crate::install_logger();
        let mut world = World::new(seed, asymmetric(2, 1), Faults::NONE);
        for unit in 0..2 {
            world.die(unit, Death::PowerLoss);
            world.units[unit].rules.brief = true;
            world.start(unit);
        }
        world.run(ms(3000));
        let primary = world.primaries(0)[0];
        world.spread = Spread::To(1 - primary);
        open_flows(&mut world, 20);
        let (open, moves) = (world.progress(), world.moves());
        let before = world.total(|it| it.passed_on);
        let stood_in = world.total(|it| it.stood_in);
        // Several times the timeout.
        world.run(ms(12_000));
        world.check_flows(&open, &moves);
        let passed_on = world.total(|it| it.passed_on) - before;
        let stood_in = world.total(|it| it.stood_in) - stood_in;
        assert!(passed_on * 3 < stood_in, "{passed_on} of {stood_in}");
        assert_eq!(world.repeated, 0, "seed {seed}");
        let is_short = |view: &&SessionView| view.expires_s < 60;
        let short = |world: &World| {
            let gateway = world.units[primary].gateway.as_ref().unwrap();
            let views = views(gateway, world.local_time(primary));
            views.iter().filter(is_short).count()
        };
        assert!(short(&world) > 0);
        world.silent = true;
        world.run(ms(8000));
        assert_eq!(short(&world), 0, "they end when nobody uses them");
    }
}

/// Right after a handover, hosts still send to the former primary. It does not follow connections
/// in the place of the new one, which would miss how they go on.
#[test]
fn what_a_new_primary_opens_is_followed_there() {
    for seed in 0..SEEDS {
        let mut world = started(seed, asymmetric(2, 1));
        world.spread = Spread::Gateway;
        let old = world.primaries(0)[0];
        assert_eq!(world.hand_over(old, 0), Ok(()));
        world.run(ms(100));
        assert_eq!(world.primaries(0), [1 - old]);
        world.spread = Spread::To(old);
        open_flows(&mut world, 20);
        // Until it drains no longer.
        world.run(ms(4000));
        world.check_none_broken();
        let (open, moves) = (world.progress(), world.moves());
        assert!(open.len() > 10, "{}", open.len());
        world.run(ms(2000));
        world.check_flows(&open, &moves);
        assert_eq!(world.repeated, 0, "seed {seed}");
    }
}

/// What a peer has passed on ends at a unit that is not primary either.
#[test]
fn nothing_is_passed_on_twice() {
    let mut world = started(0, asymmetric(3, 1));
    let primary = world.primaries(0)[0];
    let standby = (primary + 1) % 3;
    let [from, to] = [0, 1].map(|segment| host_address(segment, 1, Family::V4));
    let packet = tcp((from, 4000), (to, 443), SYN, 1, 0).bytes();
    // See gateway/passed.rs: one piece, with port 0 and no offload.
    let length = packet.len() as u32 + 9;
    let mut piece = vec![1, 0, 0, 0, 1];
    piece.extend_from_slice(&length.to_be_bytes());
    piece.extend_from_slice(&[0; 4 + 9]);
    piece.extend_from_slice(&packet);
    for (unit, opened, dropped) in [(standby, 0, 1), (primary, 1, 0)] {
        let now = world.local_time(unit);
        let gateway = world.units[unit].gateway.as_mut().unwrap();
        gateway.handle_wake(now);
        let before = gateway.counters().clone();
        gateway.handle_passed_on(now, PeerId(0), &piece);
        let after = gateway.counters();
        let moved =
            after.dropped(DropReason::PassedOnTwice) - before.dropped(DropReason::PassedOnTwice);
        assert_eq!((after.opened - before.opened, moved), (opened, dropped));
        let outputs: Vec<Output> = std::iter::from_fn(|| gateway.poll_output()).collect();
        let is_on = |output: &Output| matches!(output, Output::PassOn { .. });
        assert!(!outputs.iter().any(is_on), "{outputs:?}");
    }
}

/// Everything that can go wrong, behind routers that spread each packet over the units.
#[test]
fn sessions_survive_whatever_happens_behind_routers() {
    crate::try_seeds(4, |seed| {
        let mut random = SplitMix64(seed ^ 0xa5e);
        let shape = Shape {
            links: 1 + random.below(2),
            guarantee: ["off", "bounded", "strict"][random.below(3)],
            ..asymmetric([2, 2, 3, 4, 6][random.below(5)], 1 + random.below(3))
        };
        scenario::run_with(seed, shape, random);
    });
}
