//! Units that join a running cluster, and leave it, by reloads of the others.

use tandemgw_core::flow::GroupId;

use crate::compound::{calm, ms, open_flows, shape};
use crate::setup::{NAMES, peer_id};
use crate::world::{Death, World};

const SEEDS: u64 = 3;

/// The last unit of three.
const NEWCOMER: usize = 2;

/// A pair with open flows; the third unit is not known to it, and off. Also returns the primary.
fn pair_without_the_third(seed: u64) -> (World, usize) {
    let (mut world, _) = calm(seed, shape(3));
    for unit in 0..3 {
        world.die(unit, Death::PowerLoss);
    }
    for unit in 0..NEWCOMER {
        world.units[unit].rules.without_last = true;
        world.start(unit);
    }
    world.run(ms(3000));
    open_flows(&mut world, 10);
    let primary = world.primaries(0)[0];
    (world, primary)
}

impl World {
    /// Both files of the pair name the third unit, or no longer do; the units read them some time
    /// apart.
    fn name_the_third(&mut self, named: bool) {
        for unit in 0..NEWCOMER {
            self.units[unit].rules.without_last = !named;
            assert!(self.reload(unit));
            self.run(ms(150));
        }
    }

    /// How many units there are, without one that the files do not name.
    pub fn members(&self) -> usize {
        let unnamed = self.units[0].rules.without_last;
        self.shape.units - usize::from(unnamed)
    }

    fn peers_of(&self, unit: usize) -> Vec<String> {
        let gateway = self.units[unit].gateway.as_ref().unwrap();
        let peers = gateway.peers();
        peers
            .map(|peer| gateway.peer_name(peer).to_owned())
            .collect()
    }

    fn hand_over_to(&mut self, from: usize, to: usize) {
        let now = self.local_time(from);
        let gateway = self.units[from].gateway.as_mut().unwrap();
        gateway.handle_wake(now);
        let asked = gateway.request_failover(now, GroupId(0), Some(peer_id(from, to)));
        assert_eq!(asked, Ok(()));
        self.wake(from);
        self.run(ms(2500));
    }
}

/// It gets all sessions, takes over with them, and the pair goes on without it.
#[test]
fn a_unit_joins_and_leaves_a_running_pair() {
    for seed in 0..SEEDS {
        let (mut world, primary) = pair_without_the_third(seed);
        let held = world.held_by(primary);
        assert!(held.len() > 5, "{held:?}");
        for round in 0..2 {
            world.name_the_third(true);
            assert_eq!(world.primaries(0), [primary], "reloads move no role");
            world.start(NEWCOMER);
            world.run(ms(2500));
            assert_eq!(world.primaries(0), [primary], "nor does one that joins");
            world.check_agreement_soon();
            world.hand_over_to(primary, NEWCOMER);
            assert_eq!(world.primaries(0), [NEWCOMER]);
            world.check_kept(&held);
            // It ends for good while it is primary, and is forgotten afterwards.
            world.die(NEWCOMER, Death::PowerLoss);
            world.run(ms(1500));
            world.check_kept(&held);
            let primaries = world.primaries(0);
            assert_eq!(primaries.len(), 1, "seed {seed}, round {round}");
            world.name_the_third(false);
            for unit in 0..NEWCOMER {
                assert_eq!(world.peers_of(unit), [NAMES[1 - unit]]);
            }
            world.check_agreement_soon();
            if primaries != [primary] {
                world.hand_over_to(primaries[0], primary);
            }
        }
        world.die(primary, Death::PowerLoss);
        world.run(ms(1500));
        assert_eq!(world.primaries(0), [1 - primary]);
        world.check_kept(&held);
    }
}

/// One unit knows of the new one and hands the group to it; the other one has yet to be told, and
/// does not take over beside it.
#[test]
fn a_primary_that_is_not_in_the_file_yet_is_believed_from_its_follower() {
    for seed in 0..SEEDS {
        let (mut world, primary) = pair_without_the_third(seed);
        let other = 1 - primary;
        let held = world.held_by(primary);
        world.units[primary].rules.without_last = false;
        assert!(world.reload(primary));
        world.start(NEWCOMER);
        world.run(ms(2500));
        world.hand_over_to(primary, NEWCOMER);
        assert_eq!(world.primaries(0), [NEWCOMER], "seed {seed}");
        world.run(ms(3000));
        assert_eq!(world.primaries(0), [NEWCOMER], "seed {seed}");
        world.units[other].rules.without_last = false;
        assert!(world.reload(other));
        world.run(ms(2500));
        world.check_kept(&held);
        world.check_agreement_soon();
    }
}

/// The primary that one unit no longer has in its file lives on for the other: there is no second
/// one beside it.
#[test]
fn a_live_primary_that_one_file_no_longer_names_stays() {
    for seed in 0..SEEDS {
        let (mut world, primary) = calm(seed, shape(3));
        assert_eq!(primary, NEWCOMER, "the highest priority");
        let held = world.held_by(primary);
        world.units[0].rules.without_last = true;
        assert!(world.reload(0));
        world.run(ms(3000));
        assert_eq!(world.primaries(0), [NEWCOMER], "seed {seed}");
        world.units[0].rules.without_last = false;
        assert!(world.reload(0));
        world.run(ms(2500));
        world.check_kept(&held);
        world.check_agreement_soon();
    }
}
