//! The links between the units fail, and the units live: who is primary while they are cut, and
//! after it.

use std::time::Duration;

use tandemgw_core::time::Time;

use crate::compound::{calm, ms, open_flows, shape};
use crate::setup::NAMES;
use crate::world::{Death, World};

/// Two primaries that a path joins are one after this time.
const MOST_DUAL: Duration = ms(1000);

impl World {
    /// Lets time pass, and gives the longest time in which more than one unit that runs was
    /// primary, and that in which none was.
    fn watch(&mut self, duration: Duration) -> (Duration, Duration) {
        let end = self.now + duration;
        let mut since: [Option<Time>; 2] = [None; 2];
        let mut longest = [Duration::ZERO; 2];
        while self.now < end {
            self.run(ms(1));
            let primaries = self.primaries(0);
            let running = primaries.iter().filter(|unit| self.runs(**unit));
            for (is_so, (since, longest)) in [running.count() > 1, primaries.is_empty()]
                .into_iter()
                .zip(since.iter_mut().zip(&mut longest))
            {
                *since = is_so.then(|| since.unwrap_or(self.now));
                let so_far = since.map_or(Duration::ZERO, |since| self.now.since(since));
                *longest = so_far.max(*longest);
            }
        }
        (longest[0], longest[1])
    }
}

/// The standbys do not hear each other, and their primary dies at any time after that: they find
/// each other on the data ports.
#[test]
fn two_standbys_without_a_link_become_one_primary() {
    for seed in 0..40 {
        let units = 3 + seed as usize % 2;
        let (mut world, primary) = calm(seed, shape(units));
        let standbys: Vec<usize> = (0..units).filter(|unit| *unit != primary).collect();
        for one in &standbys {
            for other in &standbys {
                world.cut_off[*one][*other] = one != other;
            }
        }
        world.run(ms(seed * 37 % 1000));
        let held = world.held_by(primary);
        world.die(primary, Death::PowerLoss);
        let (dual, _) = world.watch(ms(4000));
        assert!(dual < MOST_DUAL, "two primaries for {dual:?}, seed {seed}");
        assert_eq!(world.primaries(0).len(), 1, "seed {seed}");
        world.check_kept(&held);
    }
}

/// The links of one unit are cut, and the machine stalls: the standby for any time, the primary for
/// less than the hold time, or all units at once, as on a host that is busy.
#[test]
fn a_stall_without_links_moves_no_role() {
    for stall in (5..330).step_by(20) {
        for (units, who) in [(2, 0), (2, 1), (3, 1)] {
            let (mut world, primary) = calm(stall, shape(units));
            let cut = (primary + 1) % units;
            for other in (0..units).filter(|other| *other != cut) {
                world.cut_off[cut][other] = true;
                world.cut_off[other][cut] = true;
            }
            world.run(ms(500));
            open_flows(&mut world, 6);
            let held = world.held_by(primary);
            match who {
                0 => world.pause(primary, ms(stall % 35)),
                _ => world.pause(cut, ms(stall)),
            }
            let (dual, none) = world.watch(ms(1500));
            assert_eq!(dual, Duration::ZERO, "stall {stall}, {units} units");
            assert_eq!(none, Duration::ZERO, "stall {stall}, {units} units");
            assert_eq!(
                world.primaries(0),
                [primary],
                "stall {stall}, {units} units, {who}"
            );
            world.check_kept(&held);
        }
    }
}

/// All units stall at once for longer than the hold time: one of those that hold everything is
/// primary afterwards.
#[test]
fn a_stall_of_all_units_loses_nothing() {
    for stall in (40..400).step_by(25) {
        let (mut world, primary) = calm(stall, shape(3));
        let cut = (primary + 1) % 3;
        for other in (0..3).filter(|other| *other != cut) {
            world.cut_off[cut][other] = true;
            world.cut_off[other][cut] = true;
        }
        world.run(ms(500));
        open_flows(&mut world, 6);
        let held = world.held_by(primary);
        (0..3).for_each(|unit| world.pause(unit, ms(stall)));
        let (dual, _) = world.watch(ms(2500));
        assert!(dual < ms(100), "two primaries for {dual:?}, stall {stall}");
        let primaries = world.primaries(0);
        assert!(
            primaries.len() == 1 && primaries != [cut],
            "{primaries:?}, stall {stall}"
        );
        world.check_kept(&held);
    }
}

/// Splits of every length around the timers. Hosts stay with the primary: so does the role, and the
/// group is never without a primary after the units meet again.
#[test]
fn a_split_of_any_length_leaves_the_role_where_the_hosts_are() {
    for length in (0..=400).step_by(5) {
        for units in [2, 3] {
            let (mut world, primary) = calm(length, shape(units));
            let isolated = (primary + 1 + length as usize / 5 % (units - 1)) % units;
            for round in 0..2 {
                world.isolate(isolated, true);
                world.run(ms(length));
                world.isolate(isolated, false);
                let (_, none) = world.watch(ms(2500));
                let what = format!("length {length}, units {units}, round {round}");
                assert_eq!(none, Duration::ZERO, "no primary: {what}");
                assert_eq!(world.primaries(0), [primary], "{what}");
            }
            let held = world.held_by(primary);
            world.check_kept(&held);
        }
    }
}

/// The same where the primary is cut off, and the hosts stay with the others.
#[test]
fn a_primary_that_was_cut_off_leaves_the_role_to_who_carried_on() {
    for length in (0..=400).step_by(5) {
        let (mut world, primary) = calm(length, shape(3));
        world.isolate(primary, true);
        world.run(ms(length));
        let next = world.primaries(0).into_iter().find(|it| *it != primary);
        world.isolate(primary, false);
        let (dual, none) = world.watch(ms(2500));
        assert_eq!(none, Duration::ZERO, "no primary: length {length}");
        assert!(dual < ms(200), "two for {dual:?}, length {length}");
        let primaries = world.primaries(0);
        assert_eq!(primaries.len(), 1, "length {length}");
        // Long enough for hosts to find it, and for packets both ways.
        if length > 350 {
            let next = next.map(|unit| NAMES[unit]);
            assert_eq!(Some(NAMES[primaries[0]]), next, "length {length}");
        }
    }
}
