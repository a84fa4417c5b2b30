//! A model of an etcd that is the witness, with the process that speaks to it beside each unit: it
//! is slow, dies, or can't be reached. And what must hold while units can't see each other.

use std::collections::BTreeMap;
use std::time::Duration;

use tandemgw_core::flow::GroupId;
use tandemgw_core::ha::{LeaseWish, WitnessAsk, WitnessState};
use tandemgw_core::random::SplitMix64;
use tandemgw_core::time::Time;

use crate::compound::{calm, ms, shape};
use crate::faults::Faults;
use crate::setup::{NAMES, Shape};
use crate::turn::Turn;
use crate::world::{Death, World};

/// `lease` in the config of the units.
const LEASE: Duration = Duration::from_secs(2);
/// How long two units of a pair may be primary while the witness answers both: the one that had the
/// role notices that it is alone within a hold time, asks, and is answered.
const OVERLAP: Duration = Duration::from_millis(150);
/// The same for more units, of which the smaller part waits for the larger one.
const LONG_OVERLAP: Duration = Duration::from_millis(600);
const SEEDS: u64 = 24;

/// The etcd, and where the process of each unit is.
pub struct Etcd {
    pub alive: bool,
    /// By unit.
    pub reached: Vec<bool>,
    /// The longest time from a process to the etcd, or back.
    pub most_delay: Duration,
    /// By group.
    leases: BTreeMap<u8, Held>,
    processes: Vec<Process>,
    /// By group: since when two units whose witness answers were primary.
    overlaps: BTreeMap<usize, Time>,
    /// Questions for a lease.
    pub asked: u64,
}

/// By group: who has the lease.
type Said = Vec<(GroupId, Option<String>)>;

#[derive(Clone, Copy)]
struct Held {
    unit: usize,
    until: Time,
}

#[derive(Clone, Default)]
struct Process {
    run: Option<u64>,
    number: u64,
    /// The question, and when it is at the etcd.
    under_way: Option<(Time, WitnessAsk)>,
    /// What was said, and when it is there.
    answer: Option<(Time, u64, Said)>,
}

impl Etcd {
    pub fn new(units: usize) -> Etcd {
        Etcd {
            alive: true,
            reached: vec![true; units],
            most_delay: ms(5),
            leases: BTreeMap::new(),
            processes: vec![Process::default(); units],
            overlaps: BTreeMap::new(),
            asked: 0,
        }
    }

    /// What the etcd does with a question.
    fn decide(&mut self, now: Time, unit: usize, ask: &WitnessAsk) -> Said {
        let mut said = Vec::new();
        for (group, wish) in &ask.wishes {
            let held = self.leases.get(&group.0).filter(|held| held.until > now);
            let holder = held.map(|held| held.unit);
            match wish {
                LeaseWish::Hold(from) => {
                    self.asked += 1;
                    let leaves = |other: usize| from.iter().any(|name| *name == NAMES[other]);
                    if holder.is_none_or(|other| other == unit || leaves(other)) {
                        let until = now + LEASE;
                        self.leases.insert(group.0, Held { unit, until });
                    }
                }
                LeaseWish::Release if holder == Some(unit) => {
                    self.leases.remove(&group.0);
                }
                LeaseWish::Release => {}
            }
            let holder = self.leases.get(&group.0).filter(|held| held.until > now);
            said.push((*group, holder.map(|held| NAMES[held.unit].to_owned())));
        }
        said
    }
}

impl World {
    /// What the process beside the unit does: hands in an answer, and fetches a question.
    pub fn serve_witness(&mut self, turn: &mut Turn) {
        if !self.shape.witness {
            return;
        }
        let (now, unit) = (self.now, turn.unit);
        let delay = |random: &mut SplitMix64, most: Duration| random.up_to(most);
        let (to, back) = (
            delay(&mut self.random, self.etcd.most_delay),
            delay(&mut self.random, self.etcd.most_delay),
        );
        let run = turn.gateway.events().run();
        let process = &mut self.etcd.processes[unit];
        if process.run.replace(run) != Some(run) {
            *process = Process {
                run: Some(run),
                ..Process::default()
            };
            turn.gateway.open_witness();
        }
        if let Some((_, number, said)) = process.answer.take_if(|(at, ..)| *at <= now) {
            turn.gateway
                .handle_witness(turn.now, number, Ok(&said), LEASE);
        }
        if let Some(ask) = turn.gateway.witness_ask(process.number) {
            // It may have been waiting for the last answer until now.
            process.number = ask.number;
            process.under_way = Some((now + to, ask));
        }
        let can = self.etcd.alive && self.etcd.reached[unit];
        let process = &mut self.etcd.processes[unit];
        if let Some((_, ask)) = process.under_way.take_if(|(at, _)| *at <= now)
            && can
        {
            let said = self.etcd.decide(now, unit, &ask);
            self.etcd.processes[unit].answer = Some((now + back, ask.number, said));
        }
        let process = &self.etcd.processes[unit];
        let due = process.under_way.iter().map(|it| it.0);
        let due = due.chain(process.answer.iter().map(|it| it.0)).min();
        let machine = &mut self.units[unit];
        machine.asks_at = due;
    }

    /// No two units count a lease as theirs, ever; and while the witness answers both, no two are
    /// primary for longer than it takes to ask.
    pub fn check_leases(&mut self) {
        if !self.shape.witness {
            return;
        }
        for group in 0..self.shape.all_groups() {
            let holders = (0..self.shape.units).filter(|unit| self.counts_as_own(*unit, group));
            let holders: Vec<usize> = holders.collect();
            assert!(holders.len() < 2, "group {group} is leased to {holders:?}");
            let answered = |unit: &usize| self.runs(*unit) && self.is_answered(*unit);
            let primaries = self.primaries(group).into_iter().filter(answered);
            let primaries: Vec<usize> = primaries.collect();
            if primaries.len() < 2 {
                self.etcd.overlaps.remove(&group);
                continue;
            }
            let since = *self.etcd.overlaps.entry(group).or_insert(self.now);
            let most = match self.shape.units {
                2 => OVERLAP,
                _ => LONG_OVERLAP,
            };
            let long = self.now.since(since);
            assert!(long < most, "group {group}: {primaries:?} for {long:?}");
        }
    }

    fn counts_as_own(&self, unit: usize, group: usize) -> bool {
        let gateway = self.units[unit].gateway.as_ref();
        let ha = gateway.and_then(|it| it.cluster()).map(|it| it.ha());
        let now = self.local_time(unit);
        ha.and_then(|ha| ha.lease_holder(now, GroupId(group as u8))) == Some(NAMES[unit])
    }

    fn is_answered(&self, unit: usize) -> bool {
        let gateway = self.units[unit].gateway.as_ref();
        let view = gateway.and_then(|gateway| gateway.witness());
        let answers = view.is_some_and(|view| view.state == WitnessState::Answers);
        answers && self.etcd.alive && self.etcd.reached[unit]
    }

    fn results(&self, unit: usize) -> tandemgw_core::ha::WitnessResults {
        let gateway = self.units[unit].gateway.as_ref().unwrap();
        gateway.witness().unwrap().results
    }

    /// How long it takes until a unit is primary, at most 10 s.
    fn until_primary(&mut self, unit: usize) -> Duration {
        let begun = self.now;
        while !self.is_primary(unit, 0) && self.now.since(begun) < ms(10_000) {
            self.run(ms(1));
        }
        self.now.since(begun)
    }
}

const WITNESSED: Shape = Shape {
    units: 2,
    groups: 1,
    guarantee: "strict",
    witness: true,
    ..Shape::PAIR
};

fn witnessed(units: usize) -> Shape {
    Shape {
        witness: true,
        ..shape(units)
    }
}

#[test]
fn of_a_pair_with_everything_between_cut_the_primary_stays_and_no_other_is() {
    for seed in 0..SEEDS {
        let (mut world, primary) = calm(seed, WITNESSED);
        assert_eq!(world.etcd.asked, 0, "nobody was in doubt");
        let sessions = world.acknowledged();
        world.isolate(1, true);
        world.run(ms(6000));
        assert_eq!(world.primaries(0), [primary], "seed {seed}");
        assert!(world.results(1 - primary).refused > 0);
        world.check_kept(&sessions);
        world.isolate(1, false);
        world.run(ms(3000));
        assert_eq!(world.primaries(0), [primary]);
        world.check_agreement_soon();
        world.check_kept(&sessions);
    }
}

/// The standby may notice the cut a hold time before the primary, by carrier loss, and the process
/// beside the primary may be slow on a busy machine: the group stays where it is all the same.
#[test]
fn a_primary_that_lives_asks_before_the_standby() {
    for seed in 0..SEEDS {
        let (mut world, primary) = calm(seed, WITNESSED);
        let standby = 1 - primary;
        world.etcd.most_delay = ms(20);
        let sessions = world.acknowledged();
        world.isolate(standby, true);
        if seed.is_multiple_of(2) {
            world.set_carrier(standby, false);
        }
        world.run(ms(6000));
        assert_eq!(world.primaries(0), [primary], "seed {seed}");
        assert_eq!(world.results(standby).granted, 0, "seed {seed}");
        assert_eq!(world.results(primary).refused, 0, "seed {seed}");
        world.check_kept(&sessions);
    }
}

/// Today's behaviour: the units decide as if there was no witness, and say so.
#[test]
fn a_pair_without_an_answer_does_as_without_a_witness() {
    for reached in [[false, false], [true, false], [false, true]] {
        let (mut world, primary) = calm(3, WITNESSED);
        let standby = 1 - primary;
        (world.etcd.reached[primary], world.etcd.reached[standby]) = (reached[0], reached[1]);
        world.run(ms(3000));
        world.isolate(1, true);
        let took = world.until_primary(standby);
        match reached[1] {
            // It finds the lease free, or taken by the one that can reach it.
            true => assert_eq!(world.results(standby).granted, 1),
            false => assert_eq!(world.results(standby).without, 1),
        }
        assert!(took < ms(300), "it knew that before: {took:?}");
        assert_eq!(world.primaries(0).len(), 2, "as without a witness");
        world.isolate(1, false);
        world.run(ms(3000));
        world.check_one_primary();
    }
}

#[test]
fn an_etcd_that_dies_with_the_cut_delays_by_the_timeout_only() {
    let (mut world, primary) = calm(5, WITNESSED);
    world.etcd.alive = false;
    world.isolate(1, true);
    let took = world.until_primary(1 - primary);
    assert!(ms(900) < took && took < ms(1300), "{took:?}");
    assert!(world.is_primary(primary, 0), "as without a witness");
}

#[test]
fn a_dead_primary_is_followed_although_nobody_can_tell() {
    let (mut world, primary) = calm(7, WITNESSED);
    world.die(primary, Death::PowerLoss);
    let took = world.until_primary(1 - primary);
    // Its hold time and its check, two hold times for a primary that lives, and the question.
    assert!(took < ms(240), "{took:?}");
    assert_eq!(world.results(1 - primary).granted, 1);
}

/// A unit that starts while it is cut off finds the lease taken.
#[test]
fn a_unit_that_starts_alone_asks_too() {
    let (mut world, primary) = calm(8, WITNESSED);
    let other = 1 - primary;
    world.isolate(1, true);
    world.die(other, Death::PowerLoss);
    world.run(ms(5000));
    world.start(other);
    world.run(ms(10_000));
    assert_eq!(world.primaries(0), [primary]);
    world.die(primary, Death::PowerLoss);
    let took = world.until_primary(other);
    assert!(took < LEASE + ms(2300), "the lease ends: {took:?}");
}

#[test]
fn ordinary_takeovers_wait_for_no_witness() {
    let time = |shape: Shape, death: Death, delay: Duration| {
        let units = shape.units;
        let (mut world, primary) = calm(9, shape);
        world.etcd.most_delay = delay;
        world.run(ms(2000));
        let begun = world.now;
        match death {
            Death::Goodbye => world.stop(primary),
            death => world.die(primary, death),
        }
        while (0..units).all(|it| it == primary || !world.is_primary(it, 0)) {
            world.run(ms(1));
        }
        world.now.since(begun)
    };
    for units in [2, 3] {
        for death in [Death::Killed, Death::Goodbye, Death::PowerLoss] {
            if units == 2 && death == Death::PowerLoss {
                continue;
            }
            let without = time(shape(units), death, ms(0));
            let slow = time(witnessed(units), death, ms(400));
            assert!(
                slow <= without + ms(25),
                "{units} {death:?}: {slow:?}, {without:?}"
            );
        }
    }
}

#[test]
fn a_part_without_the_majority_stands_by_unless_it_is_the_last() {
    for seed in 0..SEEDS {
        let (mut world, primary) = calm(seed, witnessed(3));
        let cut = (seed % 3) as usize;
        world.isolate(cut, true);
        world.run(ms(4000));
        let primaries = world.primaries(0);
        assert_eq!(primaries.len(), 1, "seed {seed}: {primaries:?}");
        assert_ne!(
            primaries,
            [cut],
            "the larger part goes on; {primary} was primary"
        );
        world.isolate(cut, false);
        world.run(ms(3000));
        world.check_agreement_soon();
        // Two of three die at once; nothing shows it.
        let last = (cut + 1) % 3;
        for unit in (0..3).filter(|unit| *unit != last) {
            world.die(unit, Death::PowerLoss);
        }
        let took = world.until_primary(last);
        assert!(took < LEASE + ms(2000), "seed {seed}: {took:?}");
    }
}

#[test]
fn two_halves_of_four_have_one_primary() {
    for seed in 0..SEEDS / 2 {
        let (mut world, _) = calm(seed, witnessed(4));
        for (one, other) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
            world.cut_off[one][other] = true;
            world.cut_off[other][one] = true;
        }
        for unit in [2, 3] {
            world.units[unit]
                .ports
                .iter_mut()
                .for_each(|it| it.part = 1);
        }
        world.run(ms(5000));
        assert_eq!(world.primaries(0).len(), 1, "seed {seed}");
    }
}

/// Cuts, deaths, a slow witness and one that dies, at random: the checkers of each tick decide.
#[test]
fn leases_hold_under_random_faults() {
    let seeds = crate::number("TANDEMGW_SEEDS").unwrap_or(SEEDS);
    for seed in 0..seeds {
        let mut random = SplitMix64(seed ^ 0x817);
        let units = [2, 2, 3, 4][random.below(4)];
        let shape = Shape {
            groups: 1 + random.below(2),
            ..witnessed(units)
        };
        crate::install_logger();
        let mut world = World::new(seed, shape, Faults::NONE);
        world.etcd.most_delay = [ms(1), ms(10), ms(20)][random.below(3)];
        world.run(ms(3000));
        for _ in 0..12 {
            let unit = random.below(units);
            match random.below(6) {
                0 | 1 => world.isolate(unit, true),
                2 => world.isolate(unit, false),
                3 => world.etcd.alive = random.chance(600),
                4 => world.etcd.reached[unit] = random.chance(600),
                _ if world.is_alive(unit) => world.die(unit, Death::PowerLoss),
                _ => world.start(unit),
            }
            world.run(ms(random.below(4000) as u64));
        }
        world.etcd.alive = true;
        for unit in 0..units {
            world.etcd.reached[unit] = true;
            world.isolate(unit, false);
            if !world.is_alive(unit) {
                world.start(unit);
            }
        }
        world.run(ms(8000));
        world.check_one_primary();
    }
}
