//! `copies`: not all units hold each group.

use tandemgw_core::flow::GroupId;
use tandemgw_core::gateway::PeerGroupState;
use tandemgw_core::random::SplitMix64;

use crate::compound::{ms, open_flows, shape};
use crate::faults::Faults;
use crate::scenario;
use crate::setup::{NAMES, Shape, peer_id, unit_of};
use crate::world::{Death, World};

impl World {
    /// Whether a unit is primary of a group, or holds all of it.
    pub fn is_holder(&self, unit: usize, group: usize) -> bool {
        let gateway = self.units[unit].gateway.as_ref().expect("all units run");
        let sync = gateway.cluster().expect("a cluster").sync();
        let is_limited = gateway.config().copies() > 0;
        !is_limited || self.is_primary(unit, group) || sync.is_ready(GroupId(group as u8))
    }

    /// A unit that is no holder has nothing of a group, and says so.
    pub fn check_holds_nothing(&self, unit: usize, group: GroupId) {
        let (name, at) = (NAMES[unit], usize::from(group.0));
        let left = self.table(unit, at);
        assert!(left.is_empty(), "{name} has {left:?} of group {at}");
        let gateway = self.units[unit].gateway.as_ref().expect("all units run");
        let cluster = gateway.cluster().expect("a cluster");
        let view = cluster.ha().group(self.local_time(unit), group).unwrap();
        assert!(!view.ready && !view.holder, "{name} is to hold group {at}");
    }

    /// As many units hold a group as should.
    pub fn check_holders(&self) {
        for group in 0..self.shape.all_groups() {
            let members = self.members();
            let holders = (0..members).filter(|unit| self.is_holder(*unit, group));
            let wanted = match self.shape.copies {
                copies if copies > 0 && members > 3 => copies.min(members - 1),
                _ => members - 1,
            };
            let found = holders.count() - 1;
            assert_eq!(found, wanted, "copies of group {group}");
        }
    }

    /// Whether a peer is not to hold a group: then nothing else is said of it.
    pub fn is_left_out(&self, state: PeerGroupState, what: &str) -> bool {
        if state.holder != Some(false) {
            return false;
        }
        assert!(self.shape.copies > 0, "all units hold all: {what}");
        let said = PeerGroupState {
            holder: Some(false),
            ..PeerGroupState::default()
        };
        assert_eq!(state, said, "{what}");
        true
    }

    /// The units that hold a group beside its primary.
    fn holders(&self, group: usize) -> Vec<usize> {
        let units = (0..self.shape.units).filter(|unit| self.is_alive(*unit));
        let holds = |unit: &usize| self.is_holder(*unit, group) && !self.is_primary(*unit, group);
        units.filter(holds).collect()
    }

    /// Records that a unit has sent to each other one.
    fn sent_by(&self, unit: usize) -> Vec<(usize, u64)> {
        let gateway = self.units[unit].gateway.as_ref().unwrap();
        let sync = gateway.cluster().unwrap().sync();
        let sent = |peer| (unit_of(unit, peer), sync.traffic(peer).changes_sent);
        gateway.peers().map(sent).collect()
    }
}

fn limited(units: usize, copies: usize) -> Shape {
    Shape {
        copies,
        ..shape(units)
    }
}

/// A cluster in which only some units hold the sessions.
fn settled(seed: u64, shape: Shape) -> World {
    crate::install_logger();
    let mut world = World::new(seed, shape, Faults::NONE);
    world.run(ms(8000));
    open_flows(&mut world, 20);
    world.silent = true;
    world.run(ms(3000));
    world.check_agreement();
    world.silent = false;
    world
}

/// Only the holders are sent records, however many units there are.
#[test]
fn only_the_holders_get_records() {
    for units in [4, 8] {
        for copies in [1, 2] {
            let mut world = settled(units as u64, limited(units, copies));
            let (primary, holders) = (world.primaries(0)[0], world.holders(0));
            assert_eq!(holders.len(), copies);
            let before = world.sent_by(primary);
            open_flows(&mut world, 30);
            for ((peer, before), (_, after)) in before.iter().zip(world.sent_by(primary)) {
                let (is_sent, is_holder) = (after > *before, holders.contains(peer));
                assert_eq!(is_sent, is_holder, "to {}: {before} {after}", NAMES[*peer]);
            }
        }
    }
}

/// Up to three units hold everything, whatever `copies` says.
#[test]
fn three_units_hold_all() {
    let world = settled(3, limited(3, 1));
    assert_eq!(world.holders(0).len(), 2);
}

/// Units die one after the other, each time the primary: its successor holds all, and another unit
/// takes the place of the one that is missing. When they return, there are no more copies than
/// before.
#[test]
fn one_primary_after_the_other_dies_and_nothing_is_lost() {
    for (units, copies) in [(4, 1), (4, 2), (6, 2), (8, 3)] {
        let mut world = settled(units as u64, limited(units, copies));
        let mut dead = Vec::new();
        while dead.len() + 2 < units {
            let (primary, holders) = (world.primaries(0)[0], world.holders(0));
            let (open, moves) = (world.progress(), world.moves());
            let held = world.held_by(primary);
            assert!(held.len() > 10, "{} sessions", held.len());
            world.die(primary, Death::PowerLoss);
            dead.push(primary);
            world.run(ms(5000));
            let successor = world.primaries(0)[0];
            assert!(holders.contains(&successor), "who holds nothing waits");
            world.check_kept(&held);
            world.check_flows(&open, &moves);
            let wanted = copies.min(units - dead.len() - 1);
            assert_eq!(world.holders(0).len(), wanted, "{dead:?} are dead");
        }
        dead.iter().for_each(|unit| world.start(*unit));
        world.run(ms(9000));
        world.check_agreement_soon();
    }
}

/// All holders die, one after the other, and the primary last.
#[test]
fn holders_are_replaced() {
    let mut world = settled(1, limited(6, 2));
    let primary = world.primaries(0)[0];
    for _ in 0..3 {
        let victim = world.holders(0)[0];
        world.die(victim, Death::PowerLoss);
        world.run(ms(3000));
        let (holders, gateway) = (world.holders(0), world.units[primary].gateway.as_ref());
        assert_eq!(holders.len(), 2);
        let sync = gateway.unwrap().cluster().unwrap().sync();
        for holder in holders {
            assert!(sync.in_sync_for(peer_id(primary, holder), GroupId(0)));
        }
    }
    let held = world.held_by(primary);
    world.die(primary, Death::Killed);
    world.run(ms(2000));
    world.check_kept(&held);
}

/// A unit that comes back is to hold the group again, and reads nothing: until it has all, the one
/// that took its place goes on to hold it.
#[test]
fn no_copy_is_given_up_before_the_holders_have_all() {
    let mut world = settled(4, limited(5, 1));
    let (primary, holder) = (world.primaries(0)[0], world.holders(0)[0]);
    world.die(holder, Death::PowerLoss);
    world.run(ms(3000));
    let second = world.holders(0)[0];
    world.start(holder);
    world.units[holder].reads_from = world.now + ms(9000);
    open_flows(&mut world, 20);
    world.run(ms(7000));
    assert_eq!(world.holders(0), [second], "the other one has not all");
    let held = world.held_by(primary);
    assert!(held.len() > 10, "{} sessions", held.len());
    world.die(primary, Death::PowerLoss);
    world.run(ms(2000));
    assert_eq!(world.primaries(0), [second]);
    world.check_kept(&held);
}

/// A unit that holds nothing gets the sessions first, and then the group; one that dies before does
/// not.
#[test]
fn a_group_is_handed_over_to_a_unit_that_gets_it_first() {
    let mut world = settled(2, limited(5, 1));
    let (primary, holders) = (world.primaries(0)[0], world.holders(0));
    let target = (0..5).find(|it| *it != primary && !holders.contains(it));
    let target = target.unwrap();
    let held = world.held_by(primary);
    assert_eq!(world.ask_for_handover(primary, 0, target), Ok(()));
    assert_eq!(world.primaries(0), [primary], "it has nothing yet");
    world.die(target, Death::PowerLoss);
    world.run(ms(2000));
    assert_eq!(world.primaries(0), [primary]);
    let end = world.handover_end(primary, 0).unwrap();
    assert!(end.unwrap_err().contains("is lost"));
    world.start(target);
    world.run(ms(3000));
    assert_eq!(world.ask_for_handover(primary, 0, target), Ok(()));
    world.run(ms(2000));
    assert_eq!(world.primaries(0), [target]);
    assert_eq!(world.handover_end(primary, 0), Some(Ok(())));
    world.check_kept(&held);
    world.run(ms(9000));
    world.check_agreement_soon();
    world.check_kept(&held);
}

/// Units are restarted in turn, and each hands over before. Each waits until the one before is back
/// and its place is taken.
#[test]
fn a_rolling_restart_loses_nothing() {
    let shape = Shape {
        groups: 3,
        spread: true,
        ..limited(5, 2)
    };
    let mut world = settled(3, shape);
    for unit in 0..5 {
        let (open, moves) = (world.progress(), world.moves());
        world.stop(unit);
        world.run(ms(3000));
        assert!(!world.is_alive(unit), "it has ended");
        world.check_flows(&open, &moves);
        world.start(unit);
        world.run(ms(4000));
        world.check_flows(&open, &moves);
    }
    world.run(ms(6000));
    world.check_agreement_soon();
}

/// Everything that can go wrong.
#[test]
fn sessions_survive_whatever_happens_to_holders() {
    crate::try_seeds(3, |seed| {
        let mut random = SplitMix64(seed ^ 0xc0b1e5);
        let groups = 1 + random.below(3);
        let shape = Shape {
            groups,
            shared_wan: random.chance(300),
            spread: random.chance(500),
            links: 1 + random.below(2),
            guarantee: ["off", "bounded", "strict"][random.below(3)],
            override_: random.chance(300),
            ..limited(4 + random.below(5), 1 + random.below(3))
        };
        scenario::run_with(seed, shape, random);
    });
}

/// The same with a group that is cut into slots, whose packets come to any unit.
#[test]
fn sessions_survive_whatever_happens_to_holders_of_slots() {
    crate::try_seeds(2, |seed| {
        let mut random = SplitMix64(seed ^ 0x5107c0);
        let shape = Shape {
            asymmetric: true,
            slots: 6,
            links: 1 + random.below(2),
            guarantee: ["off", "bounded", "strict"][random.below(3)],
            ..limited(4 + random.below(3), 1 + random.below(2))
        };
        let world = scenario::run_with(seed, shape, random);
        let gateway = world.units[0].gateway.as_ref().unwrap();
        assert_eq!(gateway.config().copies(), shape.copies as u8);
    });
}
