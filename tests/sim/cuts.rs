//! Groups that are cut into another number of slots, by reloads of one unit after the other.

use std::collections::BTreeSet;

use tandemgw_core::event::DropReason;
use tandemgw_core::gateway::Role;

use crate::checks::views;
use crate::compound::{ms, open_flows};
use crate::setup::{NAMES, Shape};
use crate::slots::{cut, started};
use crate::world::{Death, Spread, World};

const SEEDS: u64 = 2;
const UNITS: usize = 3;

fn shape() -> Shape {
    Shape {
        regrouped: true,
        ..cut(UNITS, 1)
    }
}

impl World {
    /// A unit reads a file that cuts the groups into so many slots.
    fn cut_into(&mut self, unit: usize, slots: usize) {
        let rules = &mut self.units[unit].rules;
        rules.cut_into = Some(slots);
        rules.not_asymmetric = self.spread != Spread::EachPacket;
        let mut tries = 0;
        while !self.reload(unit) {
            assert!(tries < 20, "a reload does not end");
            tries += 1;
            self.run(ms(50));
        }
    }

    /// New flows are served, within so many milliseconds after they were opened.
    fn open_served(&mut self, count: usize, within: u64) {
        let before = self.flows.len();
        open_flows(self, count);
        self.run(ms(within));
        let unserved = self.flows[before..].iter().find(|flow| flow.exchanges == 0);
        assert!(unserved.is_none(), "not served: {}", unserved.unwrap());
    }

    /// All units read it, in an order of their own, some time apart; sessions begin meanwhile.
    fn roll_cut(&mut self, slots: usize) {
        let first = self.random.below(UNITS);
        for step in 0..UNITS {
            self.cut_into((first + step) % UNITS, slots);
            // Some use slots that the unit is about to leave.
            self.run(ms(50));
            self.open_served(6, 0);
            let wait = ms(300) + self.random.up_to(ms(1500));
            self.run(wait);
            self.open_served(8, 1000);
            self.check_all_held();
        }
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        let gateways = self.units.iter().filter_map(|unit| unit.gateway.as_ref());
        gateways
            .map(|it| it.counters().dropped[reason as usize])
            .sum()
    }

    /// Each unit has all sessions, whatever it and the others have read.
    fn check_all_held(&mut self) {
        self.silent = true;
        self.run(ms(300));
        let held = |unit: usize, beyond: u64| {
            let gateway = self.units[unit].gateway.as_ref().unwrap();
            let views = views(gateway, self.local_time(unit)).into_iter();
            let held = views.filter(|view| view.expires_s > beyond);
            held.map(|view| format!("{} as {}", view.original, view.translated))
                .collect::<BTreeSet<_>>()
        };
        for unit in 0..UNITS {
            let live = held(unit, 60);
            assert!(!live.is_empty());
            for (other, node) in NAMES.iter().enumerate().take(UNITS) {
                let all = held(other, 0);
                let lacked: Vec<_> = live.difference(&all).collect();
                assert!(lacked.is_empty(), "{node} lacks {lacked:?}");
            }
        }
        self.silent = false;
    }

    /// Each part of the group has one primary, and no other part is left at any unit.
    fn check_cut(&self, slots: usize) {
        let mut wanted: BTreeSet<String> = (0..slots).map(|slot| format!("g0/{slot}")).collect();
        wanted.insert("g0".to_owned());
        let mut owned = Vec::new();
        for (unit, node) in NAMES.iter().enumerate().take(UNITS) {
            let gateway = self.units[unit].gateway.as_ref().unwrap();
            let name = |group| gateway.group_name(group).to_owned();
            let own = gateway
                .groups()
                .filter(|it| gateway.role_of(*it) == Role::Primary);
            owned.extend(own.map(name));
            let all: BTreeSet<String> = gateway.groups().map(name).collect();
            assert_eq!(all, wanted, "the groups of {node}");
        }
        owned.sort();
        assert_eq!(
            owned,
            wanted.into_iter().collect::<Vec<_>>(),
            "one primary each"
        );
    }

    /// All units have the same sessions, in the same parts of the group.
    fn check_equal_tables(&mut self) {
        self.silent = true;
        self.run(ms(2500));
        let groups = self.shape.all_groups().max(16);
        let all = |unit| {
            (0..groups)
                .map(|group| self.table(unit, group))
                .collect::<Vec<_>>()
        };
        let tables: Vec<_> = (0..UNITS).map(all).collect();
        assert!(
            tables.iter().all(|table| *table == tables[0]),
            "{tables:#?}"
        );
        for unit in &self.units {
            unit.gateway.as_ref().unwrap().check_invariants();
        }
        self.silent = false;
    }
}

/// The config that cuts a group into more slots, fewer, or none reaches one unit after the other.
/// No session ends, new ones are served all the time, and each unit has the slots of the last
/// config in the end.
#[test]
fn a_group_is_cut_otherwise_and_no_session_ends() {
    crate::try_seeds(SEEDS, |seed| {
        let mut world = started(seed, shape());
        open_flows(&mut world, 20);
        world.spread = [Spread::Gateway, Spread::EachPacket][seed as usize % 2];
        world.run(ms(1000));
        for slots in [9, 4, 0, 5] {
            let (open, moves) = (world.progress(), world.moves());
            assert!(!open.is_empty());
            world.roll_cut(slots);
            world.check_whole(seed);
            world.check_flows(&open, &moves);
            world.run(ms(6000));
            world.check_cut(slots);
            let (open, moves) = (world.progress(), world.moves());
            open_flows(&mut world, 12);
            world.run(ms(2000));
            world.check_whole(seed);
            world.check_flows(&open, &moves);
            world.check_equal_tables();
        }
    });
}

/// The only unit that is left reads of more slots: until it is primary of these, hosts use the
/// others.
#[test]
fn new_slots_take_no_session_before_they_have_a_primary() {
    crate::try_seeds(SEEDS, |seed| {
        let mut world = started(seed, shape());
        open_flows(&mut world, 12);
        (1..UNITS).for_each(|unit| world.die(unit, Death::PowerLoss));
        world.run(ms(3000));
        let dropped = world.dropped(DropReason::NotPrimary);
        world.cut_into(0, 16);
        open_flows(&mut world, 30);
        world.run(ms(1000));
        let after = world.dropped(DropReason::NotPrimary);
        assert_eq!(after, dropped, "seed {seed}");
        world.check_whole(seed);
        (1..UNITS).for_each(|unit| {
            world.units[unit].rules.cut_into = Some(16);
            world.start(unit);
        });
        world.run(ms(6000));
        world.check_cut(16);
        world.check_equal_tables();
    });
}

/// A unit dies while the files differ, and comes back with that of before or of after: what its
/// peers hold lives on.
#[test]
fn a_unit_dies_while_a_group_is_cut_otherwise() {
    crate::try_seeds(SEEDS, |seed| {
        let mut world = started(seed, shape());
        for slots in [8, 3, 0, 4] {
            open_flows(&mut world, 16);
            world.silent = true;
            world.run(ms(500));
            let held = world.acknowledged();
            world.silent = false;
            let (open, moves) = (world.progress(), world.moves());
            assert!(!open.is_empty() && !held.is_empty());
            let (victim, first) = (world.random.below(UNITS), world.random.below(UNITS));
            world.cut_into(first, slots);
            let wait = world.random.up_to(ms(1200));
            world.run(wait);
            world.die(victim, Death::PowerLoss);
            world.run(ms(2500));
            world.check_flows(&open, &moves);
            world.start(victim);
            world.run(ms(2500));
            for unit in (0..UNITS).filter(|unit| *unit != first) {
                world.cut_into(unit, slots);
                world.run(ms(1500));
            }
            world.run(ms(6000));
            world.check_flows(&open, &moves);
            world.check_kept(&held);
            world.check_cut(slots);
            world.check_equal_tables();
        }
    });
}
