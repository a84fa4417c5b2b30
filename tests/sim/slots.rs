//! Groups that are cut into slots: all units forward, and a host uses the unit that has its slot.

use std::collections::BTreeSet;

use tandemgw_core::flow::GroupId;
use tandemgw_core::random::SplitMix64;

use crate::checks::views;
use crate::compound::{ms, open_flows, shape};
use crate::faults::Faults;
use crate::hosts::Stage;
use crate::scenario;
use crate::setup::{Shape, peer_id};
use crate::world::{Death, Spread, World};

const SEEDS: u64 = 2;
const SLOTS: usize = 6;

pub fn cut(units: usize, groups: usize) -> Shape {
    Shape {
        asymmetric: true,
        slots: SLOTS,
        groups,
        shared_wan: groups > 1,
        guarantee: "off",
        ..shape(units)
    }
}

/// A cluster in which each unit has its slots.
pub fn started(seed: u64, shape: Shape) -> World {
    crate::install_logger();
    let mut world = World::new(seed, shape, Faults::NONE);
    world.run(ms(5000));
    world.check_one_primary();
    world
}

impl World {
    /// How many slots each unit is primary of.
    fn shares(&self) -> Vec<usize> {
        let slots = self.shape.groups..self.shape.all_groups();
        let of = |unit: usize| {
            slots
                .clone()
                .filter(|it| self.is_primary(unit, *it))
                .count()
        };
        (0..self.shape.units).map(of).collect()
    }

    fn opened(&self) -> Vec<u64> {
        let gateways = self.units.iter().filter_map(|unit| unit.gateway.as_ref());
        gateways.map(|it| it.counters().opened).collect()
    }

    pub fn check_whole(&self, seed: u64) {
        let broken = self.flows.iter().find(|flow| flow.stage == Stage::Broken);
        assert!(broken.is_none(), "seed {seed}: {}", broken.unwrap());
        assert_eq!(self.crossed, 0, "answers reached other flows");
    }
}

/// Each unit has its share of the slots and opens sessions; each session is in a slot, on a port of
/// its slice. A unit that dies takes none with it, and gets its slots back when it returns.
#[test]
fn units_share_the_hosts_of_a_group() {
    for units in [2, 3, 4] {
        for spread in [Spread::Gateway, Spread::EachPacket] {
            for seed in 0..SEEDS {
                let mut world = started(seed, cut(units, 1));
                let shares = world.shares();
                assert!(shares.iter().all(|it| *it >= SLOTS / units), "{shares:?}");
                // A host that does not know the gateway's hardware address yet sends twice.
                open_flows(&mut world, 12);
                (world.spread, world.repeated) = (spread, 0);
                open_flows(&mut world, 20);
                world.run(ms(2000));
                world.check_whole(seed);
                assert_eq!(world.repeated, 0, "seed {seed}, {units} units, {spread:?}");
                let busy = world.opened().iter().filter(|it| **it > 0).count();
                assert!(busy > 1, "all hosts are at one unit");
                world.check_slots();
                let places = world.places_of_gateway();
                assert!(places.len() > 1, "all hosts use one unit");
                let (open, moves) = (world.progress(), world.moves());
                world.silent = true;
                world.run(ms(500));
                let held = world.acknowledged();
                world.silent = false;
                let victim = (seed as usize + 1) % units;
                world.die(victim, Death::PowerLoss);
                world.run(ms(3000));
                world.check_one_primary();
                world.check_kept(&held);
                world.check_flows(&open, &moves);
                world.start(victim);
                world.run(ms(6000));
                assert_eq!(world.shares(), shares, "they come back");
                world.check_flows(&open, &moves);
                world.check_agreement_soon();
            }
        }
    }
}

impl World {
    /// The hardware addresses at which hosts believe the gateway to be.
    fn places_of_gateway(&self) -> BTreeSet<[u8; 6]> {
        let hosts = self.hosts.iter().flatten();
        hosts.flat_map(|host| host.gateway).flatten().collect()
    }

    /// All sessions are in slots, and no two slots have sessions on the same external port.
    fn check_slots(&self) {
        let gateway = self.units[0].gateway.as_ref().unwrap();
        let mut ports = std::collections::BTreeMap::new();
        for view in views(gateway, self.local_time(0)) {
            assert!(usize::from(view.group.0) >= self.shape.groups, "in a slot");
            if view.translated.src == view.original.src || view.translated.src_port == 0 {
                continue;
            }
            let place = (view.translated.src.to_string(), view.translated.src_port);
            let owner: GroupId = *ports.entry(place.clone()).or_insert(view.group);
            assert_eq!(owner, view.group, "{place:?} is of two slots");
        }
        assert!(!ports.is_empty());
    }
}

/// Units get other weights while sessions go on: the slots move by planned handover. While the
/// units have different ones, both say so, and no slot has two primaries or none.
#[test]
fn slots_follow_the_weights_and_no_session_ends() {
    for seed in 0..SEEDS {
        let mut world = started(seed, cut(3, 1));
        open_flows(&mut world, 30);
        world.run(ms(1000));
        let (open, moves) = (world.progress(), world.moves());
        for (weight, shares) in [(2, [3, 2, 1]), (0, [0, 3, 3]), (1, [2, 2, 2])] {
            for unit in 0..3 {
                world.units[unit].rules.weight = Some((0, weight));
                assert!(world.reload(unit));
                world.run(ms(2000));
                world.check_one_primary();
                let told = (unit < 2).then(|| format!("weight a:{weight} of group g0"));
                world.check_differing(unit, told.as_deref().filter(|_| weight != 1));
            }
            world.run(ms(3000));
            let mut found = world.shares();
            found[1..].sort_by(|a, b| b.cmp(a));
            assert_eq!(found, shares, "seed {seed}, weight {weight}");
            world.check_whole(seed);
            world.check_flows(&open, &moves);
        }
        world.check_agreement_soon();
    }
}

/// A unit of weight 0 has the slots when it is the only one left, and gives them back.
#[test]
fn a_unit_without_weight_is_the_last_resort() {
    let mut world = started(1, cut(2, 1));
    for unit in 0..2 {
        world.units[unit].rules.weight = Some((0, 0));
        assert!(world.reload(unit));
        world.run(ms(500));
    }
    world.run(ms(4000));
    assert_eq!(world.shares(), [0, SLOTS]);
    open_flows(&mut world, 20);
    world.run(ms(1000));
    let (open, moves) = (world.progress(), world.moves());
    world.die(1, Death::PowerLoss);
    world.run(ms(3000));
    assert_eq!(world.shares(), [SLOTS, 0]);
    world.check_flows(&open, &moves);
    world.start(1);
    world.run(ms(6000));
    assert_eq!(world.shares(), [0, SLOTS]);
    world.check_flows(&open, &moves);
}

impl World {
    /// Whether a unit and the last one tell each other apart, with these words.
    fn check_differing(&self, unit: usize, told: Option<&str>) {
        let last = self.shape.units - 1;
        for (one, other) in [(unit, last), (last, unit)] {
            if one == other {
                continue;
            }
            let gateway = self.units[one].gateway.as_ref().unwrap();
            let differing = gateway.differing_settings(peer_id(one, other));
            if let Some(told) = told {
                assert!(differing.contains(told), "{told}: {differing}");
            }
        }
    }
}

/// Everything that can go wrong, with hosts that use the unit of their slot, and behind routers
/// that spread each packet.
#[test]
fn sessions_survive_whatever_happens_to_slots() {
    crate::try_seeds(4, |seed| {
        let mut random = SplitMix64(seed ^ 0x510);
        let shape = Shape {
            links: 1 + random.below(2),
            guarantee: ["off", "bounded", "strict"][random.below(3)],
            ..cut([2, 2, 3, 4][random.below(4)], 1 + random.below(2))
        };
        scenario::run_with(seed, shape, random);
    });
}
