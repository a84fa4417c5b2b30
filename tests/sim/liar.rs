//! A peer that lies about what it holds: it costs its own copies, and nobody else's.

use crate::compound::{ms, open_flows, shape};
use crate::faults::Faults;
use crate::setup::peer_id;
use crate::world::{Death, World};

/// Frames of the replication stream, see `sync::message`.
const LENGTH: usize = 4;
const BATCH: u8 = 2;
const MARK: u8 = 6;
/// The sequence at the start of a batch.
const SEQ: usize = 8;
/// The sequence and group at the start of a mark.
const MARKED: usize = SEQ + 1;

/// Frames on their way to a unit, without the sessions in them, and with the sums of a unit that
/// has none. So it acknowledges what it does not hold, and by its own account it holds everything.
pub fn emptied(mut frames: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((length, rest)) = frames.split_first_chunk::<LENGTH>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        frames = rest;
        let kept = match frame[0] {
            BATCH => 1 + SEQ,
            _ => frame.len(),
        };
        out.extend((kept as u32).to_be_bytes());
        let start = out.len();
        out.extend(&frame[..kept]);
        if frame[0] == MARK {
            out[start + 1 + MARKED..].fill(0);
        }
    }
    out
}

/// A cluster with flows that `liar` says it holds. The unit of the highest number is primary.
fn with_liar(seed: u64, units: usize, liar: usize) -> World {
    crate::install_logger();
    let mut world = World::new(seed, shape(units), Faults::NONE);
    world.liar = Some(liar);
    world.run(ms(3000));
    for _ in 0..3 {
        open_flows(&mut world, 12);
    }
    world.silent = true;
    world.run(ms(2500));
    let primary = units - 1;
    assert_eq!(world.primaries(0), [primary], "the highest priority");
    let gateway = world.units[primary].gateway.as_ref().unwrap();
    let sync = gateway.cluster().unwrap().sync();
    assert!(sync.in_sync(peer_id(primary, liar)), "it is believed");
    assert_eq!(world.held_by(liar), [], "and holds nothing");
    world
}

/// The liar has the higher priority, and takes over. The other standby keeps the sessions that it
/// holds, and the liar gets them.
#[test]
fn a_liar_that_takes_over_ends_nothing() {
    for seed in 0..4 {
        let units = 3 + seed as usize % 2;
        let (primary, liar) = (units - 1, units - 2);
        let mut world = with_liar(seed, units, liar);
        let held = world.held_by(primary);
        assert!(held.len() > 15, "{} sessions", held.len());
        world.die(primary, Death::PowerLoss);
        world.run(ms(3000));
        assert_eq!(world.primaries(0), [liar], "seed {seed}");
        world.check_kept(&held);
        assert_eq!(world.held_by(0).len(), held.len(), "seed {seed}");
    }
}

/// The same by a planned handover: the unit that hands over keeps what it has, and the next primary
/// gets it.
#[test]
fn a_liar_that_a_group_is_handed_to_ends_nothing() {
    for seed in 0..4 {
        let units = 2 + seed as usize % 2;
        let (primary, liar) = (units - 1, units - 2);
        let mut world = with_liar(seed, units, liar);
        let held = world.held_by(primary);
        assert!(held.len() > 15, "{} sessions", held.len());
        world.hand_over(primary, 0).unwrap();
        world.run(ms(3000));
        assert_eq!(world.primaries(0), [liar], "seed {seed}");
        world.check_kept(&held);
    }
}

/// The liar dies, or another standby does: nobody misses anything.
#[test]
fn a_liar_that_dies_costs_nothing() {
    let (primary, liar) = (2, 1);
    let mut world = with_liar(9, 3, liar);
    let held = world.held_by(primary);
    world.die(liar, Death::PowerLoss);
    world.run(ms(1000));
    world.die(primary, Death::PowerLoss);
    world.run(ms(3000));
    assert_eq!(world.primaries(0), [0]);
    world.check_kept(&held);
}
