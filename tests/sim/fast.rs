//! The fast path: kernels forward what the units have entered, also while a unit is paused.

use std::time::Duration;

use tandemgw_core::fast_path::Memory;
use tandemgw_core::flow::{GroupId, MAX_GROUPS, PortId};
use tandemgw_core::gateway::{Gateway, Role};
use testkit::fast_path::{Forwarded, Program};

use crate::scenario;
use crate::setup::NAMES;
use crate::turn::Turn;
use crate::world::World;
use crate::{SEEDS, try_seeds};

/// Sessions that have room in a program: fewer than there are.
const ROOM: usize = 24;
/// The number of the interface of port 0.
const FIRST: u32 = 10;
/// Entries are in force so long after the last turn, at most: half of the shortest check, which
/// takes a quarter of an interval (20 ms, see `setup.rs`).
const LEASE: Duration = Duration::from_micros(2500);

/// The program in the kernel of a unit that starts.
pub fn program_for(gateway: &mut Gateway) -> Program {
    let memory = Memory::unshared(MAX_GROUPS, ROOM);
    gateway.use_fast_path(memory, true);
    for port in 0..gateway.config().ports.len() {
        let interface = Some(FIRST + port as u32);
        gateway.set_fast_interface(PortId(port as u16), interface);
    }
    Program { memory }
}

/// After each turn, like `os::event_loop`.
pub fn enter_sessions(turn: &mut Turn) {
    if turn.gateway.has_fast_candidates() {
        turn.gateway.poll_fast_path(turn.now, turn.unit != 0);
    }
}

impl World {
    /// Whether the kernel of a unit forwards a packet that comes to it.
    pub fn kernel_forwards(&mut self, unit: usize, port: usize, bytes: &[u8]) -> bool {
        let now = self.local_time(unit);
        let machine = &self.units[unit];
        let Some(program) = &machine.program else {
            return false;
        };
        let Some(forwarded) = program.run(FIRST + port as u32, bytes, now) else {
            return false;
        };
        self.check_forwarded(unit, &forwarded);
        self.fast_packets += 1;
        self.deliver_packet(unit, forwarded.bytes);
        true
    }

    /// A kernel forwards for a primary only, and only for one that has had a turn lately.
    fn check_forwarded(&self, unit: usize, forwarded: &Forwarded) {
        let machine = &self.units[unit];
        let idle = self.now.since(machine.last_turn);
        let name = NAMES[unit];
        assert!(
            idle <= LEASE,
            "the kernel of {name} forwards, {idle:?} after its last turn"
        );
        if let Some(gateway) = &machine.gateway {
            let role = gateway.role_of(GroupId(forwarded.group));
            assert_eq!(
                role,
                Role::Primary,
                "{name} forwards for group {}",
                forwarded.group
            );
        }
    }
}

/// All that holds without it: sessions survive whatever happens, and end when they end, although
/// the units see few of their packets.
#[test]
fn sessions_survive_in_the_fast_path() {
    try_seeds(SEEDS / 2, |seed| {
        let world = scenario::run_in(seed, true);
        assert!(world.fast_packets > 100, "{} packets", world.fast_packets);
    });
}
