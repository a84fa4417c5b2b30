//! Groups that are added to a running cluster and removed from it, by reloads of one unit after the
//! other.

use std::collections::BTreeMap;

use tandemgw_core::flow::GroupId;
use tandemgw_core::gateway::Role;

use crate::compound::{ms, open_flows, shape};
use crate::faults::Faults;
use crate::setup::{NAMES, Shape, peer_id};
use crate::world::{Death, World};

const SEEDS: u64 = 2;

/// The group that comes and goes, of three.
const LAST: usize = 2;

/// A cluster whose files do not have the last group.
fn without_the_last_group(seed: u64, units: usize) -> World {
    let shape = Shape {
        groups: LAST + 1,
        shared_wan: seed.is_multiple_of(2),
        spread: seed.is_multiple_of(3),
        ..shape(units)
    };
    let world = without_the_last(seed, shape);
    world.check_one_primary();
    world
}

fn without_the_last(seed: u64, shape: Shape) -> World {
    crate::install_logger();
    let shape = Shape {
        regrouped: true,
        ..shape
    };
    let units = shape.units;
    let mut world = World::new(seed, shape, Faults::NONE);
    for unit in 0..units {
        world.die(unit, Death::PowerLoss);
    }
    for unit in 0..units {
        world.units[unit].rules.without_last_group = true;
        world.start(unit);
    }
    world.run(ms(4000));
    world
}

impl World {
    /// The groups of all units, with slots, as far as all files have them.
    pub fn groups(&self) -> usize {
        let lacks = self.units[0].rules.without_last_group;
        self.shape.all_groups() - usize::from(lacks)
    }

    fn open_flows_in(&mut self, groups: &[usize]) {
        for round in 0..12 {
            self.open_flow_in(groups[round % groups.len()]);
        }
        self.client_ports += 100;
        self.run(ms(1200));
    }

    /// A unit reads a file with the last group, or without.
    fn set_last_group(&mut self, unit: usize, exists: bool) {
        self.units[unit].rules.without_last_group = !exists;
        let mut tries = 0;
        while !self.reload(unit) {
            assert!(tries < 20, "a reload does not end");
            tries += 1;
            self.run(ms(50));
        }
    }

    /// All units read it, in an order of their own, some time apart; `between` is called after each
    /// of them, with those that have read it.
    fn roll_last_group(&mut self, exists: bool, mut between: impl FnMut(&mut World, &[usize])) {
        let first = self.random.below(self.shape.units);
        let mut done = Vec::new();
        for step in 0..self.shape.units {
            let unit = (first + step) % self.shape.units;
            self.set_last_group(unit, exists);
            done.push(unit);
            let wait = ms(1200) + self.random.up_to(ms(1500));
            self.run(wait);
            between(self, &done);
        }
    }

    /// Each unit is in sync with each other one for the groups that they share, and names the group
    /// that only one of them has.
    fn check_shared(&self, done: &[usize], exists: bool) {
        for (unit, name) in NAMES.iter().enumerate().take(self.shape.units) {
            let gateway = self.units[unit].gateway.as_ref().unwrap();
            let (sync, now) = (gateway.cluster().unwrap().sync(), self.local_time(unit));
            for other in (0..self.shape.units).filter(|other| *other != unit) {
                let peer = peer_id(unit, other);
                for group in (0..LAST).filter(|group| self.is_primary(unit, *group)) {
                    let id = GroupId(group as u8);
                    assert!(sync.in_sync_for(peer, id), "{} of {group}", NAMES[other]);
                    assert!(sync.digest_equal(peer, id), "{} of {group}", NAMES[other]);
                }
                for id in (0..LAST).map(|group| GroupId(group as u8)) {
                    let view = gateway.cluster().unwrap().ha().group(now, id).unwrap();
                    assert!(view.ready, "{name} could not take over {id:?}");
                }
                let [has, other_has] = [unit, other].map(|it| done.contains(&it) == exists);
                let told = gateway.differing_settings(peer);
                let wanted = match (has, other_has) {
                    (true, false) => Some("group g2 (the peer lacks it)"),
                    (false, true) => Some("group g2 (this unit lacks it)"),
                    _ => None,
                };
                let names_it = told.contains("group g2");
                assert_eq!(names_it, wanted.is_some(), "{name}: {told}");
                assert!(told.contains(wanted.unwrap_or_default()), "{told}");
                assert!(gateway.peer_state(now, peer).in_sync, "{told}");
            }
        }
    }

    fn degraded(&self) -> Vec<u64> {
        let units = self.units.iter();
        let gateways = units.map(|unit| unit.gateway.as_ref().unwrap());
        gateways
            .map(|it| it.counters().guarantee_degraded)
            .collect()
    }

    /// The flows that are open between hosts of these groups, and how far they are.
    fn open_in(&self, groups: &[usize]) -> (Vec<(usize, u32)>, BTreeMap<usize, u32>) {
        let is_in = |id: &usize| groups.contains(&(self.flows[*id].client.0 / 2));
        let flows: Vec<(usize, u32)> = self
            .progress()
            .into_iter()
            .filter(|it| is_in(&it.0))
            .collect();
        let moves = flows.iter().map(|(id, _)| (*id, self.flows[*id].moves));
        let moves = moves.collect();
        (flows, moves)
    }

    fn check_last_group(&mut self, exists: bool) {
        let primaries = self.primaries(LAST).len();
        assert_eq!(primaries, usize::from(exists), "of the last group");
        self.check_agreement_soon();
        if !exists {
            for (unit, name) in NAMES.iter().enumerate().take(self.shape.units) {
                assert_eq!(self.held_in(unit, LAST as u8), [], "{name}");
            }
        }
    }
}

/// Sessions of other groups go on, in sync and guaranteed, while one unit has the new group and
/// another does not; the new group works, and its sessions move to another unit. When it is removed
/// they end, and the place of the group is free for it again.
#[test]
fn a_group_comes_and_goes_while_the_others_work() {
    for units in 2..=3 {
        for seed in 0..SEEDS {
            let mut world = without_the_last_group(seed, units);
            world.open_flows_in(&[0, 1]);
            // Twice: the place of the group is given away again.
            for _ in 0..4 - units {
                let (open, moves) = world.open_in(&[0, 1]);
                let mut degraded = world.degraded();
                world.roll_last_group(true, |world, done| {
                    world.check_shared(done, true);
                    // While the streams are opened again, a session may have to go without.
                    degraded = world.degraded();
                    world.open_flows_in(&[0, 1]);
                    assert_eq!(world.degraded(), degraded, "seed {seed}");
                });
                world.check_flows(&open, &moves);
                world.check_last_group(true);
                world.open_flows_in(&[LAST]);
                let (open, moves) = world.open_in(&[0, 1, LAST]);
                assert!(
                    open.iter()
                        .any(|(id, _)| world.flows[*id].client.0 / 2 == LAST)
                );
                let owner = world.primaries(LAST)[0];
                world.hand_over(owner, LAST).unwrap();
                world.run(ms(2500));
                assert_ne!(world.primaries(LAST), [owner], "seed {seed}");
                world.check_flows(&open, &moves);
                let (open, moves) = world.open_in(&[0, 1]);
                world.roll_last_group(false, |world, done| {
                    world.check_shared(done, false);
                    world.open_flows_in(&[0, 1]);
                });
                world.check_flows(&open, &moves);
                world.check_last_group(false);
            }
        }
    }
}

/// A unit dies while the files differ, and comes back with the file of before or of after.
#[test]
fn a_unit_dies_while_the_files_differ() {
    for units in 2..=4 {
        for seed in 0..SEEDS {
            let mut world = without_the_last_group(seed, units);
            for exists in [true, false, true] {
                world.open_flows_in(&[0, 1]);
                world.silent = true;
                world.run(ms(300));
                let held = world.acknowledged();
                world.silent = false;
                let (open, moves) = world.open_in(&[0, 1]);
                assert!(!open.is_empty() && !held.is_empty());
                let victim = world.random.below(units);
                let first = world.random.below(units);
                world.set_last_group(first, exists);
                let wait = world.random.up_to(ms(400));
                world.run(ms(800) + wait);
                world.die(victim, Death::PowerLoss);
                world.run(ms(2500));
                world.check_flows(&open, &moves);
                world.start(victim);
                world.run(ms(2500));
                for unit in (0..units).filter(|unit| *unit != first) {
                    world.set_last_group(unit, exists);
                    world.run(ms(1200));
                }
                world.check_flows(&open, &moves);
                world.check_kept(&held);
                world.check_last_group(exists);
            }
        }
    }
}

/// The unit whose sessions a removed group had is the first to read the file: until the others have
/// read it too, they carry on with all of them.
#[test]
fn a_group_that_one_file_has_no_longer_is_carried_on_by_the_others() {
    for seed in 0..SEEDS {
        let mut world = without_the_last_group(seed, 3);
        world.roll_last_group(true, |_, _| ());
        world.open_flows_in(&[LAST]);
        open_flows(&mut world, 4);
        world.silent = true;
        world.run(ms(300));
        let held = world.acknowledged();
        world.silent = false;
        let (open, moves) = world.open_in(&[0, 1, LAST]);
        let owner = world.primaries(LAST)[0];
        world.set_last_group(owner, false);
        world.run(ms(3000));
        let primaries = world.primaries(LAST);
        assert!(
            primaries.len() == 1 && primaries != [owner],
            "{primaries:?}"
        );
        world.check_flows(&open, &moves);
        world.check_kept(&held);
    }
}

/// The names of the groups of a unit that it is primary of.
fn reigns(world: &World, unit: usize) -> Vec<String> {
    let gateway = world.units[unit].gateway.as_ref().unwrap();
    let own = gateway
        .groups()
        .filter(|it| gateway.role_of(*it) == Role::Primary);
    own.map(|it| gateway.group_name(it).to_owned()).collect()
}

/// A group that is cut into slots comes with all of them, and each has one owner; it goes with
/// them. The slots of the group that is there already stay where they are.
#[test]
fn a_group_comes_with_its_slots() {
    const SLOTS: usize = 4;
    for seed in 0..SEEDS {
        let shape = Shape {
            asymmetric: true,
            slots: SLOTS,
            shared_wan: true,
            guarantee: "off",
            ..shape(3)
        };
        let mut world = without_the_last(seed, Shape { groups: 2, ..shape });
        world.run(ms(3000));
        world.open_flows_in(&[0]);
        let before: Vec<_> = (0..3).map(|unit| reigns(&world, unit)).collect();
        assert_eq!(before.concat().len(), 1 + SLOTS, "{before:?}");
        let (open, moves) = world.open_in(&[0]);
        world.roll_last_group(true, |_, _| ());
        world.run(ms(5000));
        let with: Vec<_> = (0..3).map(|unit| reigns(&world, unit)).collect();
        let mut all = with.concat();
        all.sort();
        all.dedup();
        assert_eq!(
            (all.len(), with.concat().len()),
            (2 + 2 * SLOTS, 2 + 2 * SLOTS),
            "{with:?}"
        );
        world.open_flows_in(&[0, 1]);
        let (more, their_moves) = world.open_in(&[0, 1]);
        world.run(ms(1500));
        world.check_flows(&more, &their_moves);
        world.check_flows(&open, &moves);
        world.roll_last_group(false, |_, _| ());
        world.run(ms(2000));
        let after: Vec<_> = (0..3).map(|unit| reigns(&world, unit)).collect();
        assert_eq!(after, before, "seed {seed}");
        world.check_flows(&open, &moves);
    }
}

/// A unit whose forward of one group leads elsewhere does not count as ready for that group; for
/// the others it does, they are guaranteed, and can be handed over. Both units say which it is.
#[test]
fn units_that_differ_in_one_group_are_ready_for_the_others() {
    const OTHER: usize = 1;
    for (seed, units) in (0..SEEDS).flat_map(|seed| [(seed, 2), (seed, 3)]) {
        crate::install_logger();
        let shape = Shape {
            groups: 3,
            shared_wan: seed.is_multiple_of(2),
            ..shape(units)
        };
        let mut world = World::new(seed, shape, Faults::NONE);
        world.run(ms(3000));
        world.open_flows_in(&[0, 2]);
        let (open, moves) = world.open_in(&[0, 2]);
        let owner = world.primaries(OTHER)[0];
        let odd = (owner + 1) % units;
        world.units[odd].rules.moved_in = Some(OTHER);
        assert!(world.reload(odd));
        world.run(ms(2000));
        let degraded = world.degraded();
        world.open_flows_in(&[0, 2]);
        assert_eq!(world.degraded(), degraded, "seed {seed}");
        for (unit, other) in [(owner, odd), (odd, owner)] {
            let gateway = world.units[unit].gateway.as_ref().unwrap();
            let told = gateway.differing_settings(peer_id(unit, other));
            assert_eq!(told, "forward web1 (group g1)");
            let now = world.local_time(unit);
            let ready = |group: usize| {
                let ha = gateway.cluster().unwrap().ha();
                ha.group(now, GroupId(group as u8)).unwrap().ready
            };
            assert!(ready(0) && ready(2), "seed {seed}: {}", NAMES[unit]);
            assert!(unit == owner || !ready(OTHER), "seed {seed}");
        }
        let refused = world.ask_for_handover(owner, OTHER, odd);
        assert!(refused.is_err_and(|why| why.contains("not ready")));
        let from = world.primaries(2)[0];
        let to = if from == odd { owner } else { odd };
        assert_eq!(world.ask_for_handover(from, 2, to), Ok(()));
        world.run(ms(2500));
        assert_eq!(world.primaries(2), [to], "seed {seed}");
        for unit in (0..units).filter(|unit| *unit != odd) {
            world.units[unit].rules.moved_in = Some(OTHER);
            assert!(world.reload(unit));
            world.run(ms(2000));
        }
        assert_eq!(world.ask_for_handover(owner, OTHER, odd), Ok(()));
        world.run(ms(2500));
        assert_eq!(world.primaries(OTHER), [odd], "seed {seed}");
        world.check_flows(&open, &moves);
    }
}
