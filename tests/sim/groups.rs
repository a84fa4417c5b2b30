//! Groups that share a port, and units that do not have the same groups.

use tandemgw_core::flow::{Addr, Family, GroupId, Protocol};
use testkit::packets::{ACK, Pkt, tcp, udp};

use crate::compound::{ms, open_flows, shape};
use crate::faults::Faults;
use crate::setup::{Shape, host_address, peer_id, vip};
use crate::world::{Arrival, World};

impl World {
    /// A packet of a host on a segment comes to a unit.
    fn come(&mut self, unit: usize, segment: usize, packet: &Pkt) {
        let (port, bytes) = (self.shape.port_of(segment), packet.bytes());
        self.arrive(unit, self.now, Arrival::Packet { port, bytes });
        self.run(ms(20));
    }

    /// From where the hosts on a segment got errors and resets, since the last call.
    fn refused_by(&mut self, segment: usize) -> Vec<Addr> {
        let all = std::mem::take(&mut self.refusals).into_iter();
        all.filter(|(at, _)| *at == segment)
            .map(|(_, from)| from)
            .collect()
    }
}

/// A port has addresses of several groups, which have other primaries. Errors and resets are sent
/// for each of them, from its own address, whichever address of the port comes first.
#[test]
fn errors_and_resets_are_sent_for_every_group_of_a_port() {
    for groups in [2, 3] {
        let shape = Shape {
            groups,
            shared_wan: true,
            spread: true,
            ..shape(groups)
        };
        crate::install_logger();
        let mut world = World::new(groups as u64, shape, Faults::NONE);
        world.run(ms(3000));
        for group in 0..groups {
            (0..24).for_each(|_| world.open_flow_in(group));
        }
        world.run(ms(1200));
        world.silent = true;
        world.run(ms(200));
        for group in 0..groups {
            let primaries = world.primaries(group);
            assert_eq!(primaries.len(), 1);
            world.check_translations(primaries[0], group);
            world.check_refusals_of(primaries[0], group);
        }
        let first = world.primaries(0);
        assert!((1..groups).all(|group| world.primaries(group) != first));
    }
}

impl World {
    /// `nat = true` translates to the address of the group, of several that the port has.
    fn check_translations(&self, unit: usize, group: usize) {
        let wan = 2 * group + 1;
        let mut count = 0;
        for (from, to) in self.held_in(unit, group as u8) {
            if from.src != to.src {
                assert_eq!(to.src, vip(wan, to.src.family()), "group {group}: {from}");
                count += 1;
            }
        }
        assert!(count > 0, "no session of group {group} is translated");
    }

    fn check_refusals_of(&mut self, unit: usize, group: usize) {
        let wan = 2 * group + 1;
        for family in [Family::V4, Family::V6] {
            let (host, own) = (host_address(wan, 1, family), vip(wan, family));
            self.refused_by(wan);
            self.come(unit, wan, &tcp((host, 45_000), (own, 81), ACK, 1, 1));
            assert_eq!(self.refused_by(wan), [own], "a reset, group {group}");
        }
        // An answer that does not fit the LAN.
        let sessions = self.held_in(unit, group as u8).into_iter();
        let answered =
            sessions.filter(|(_, out)| out.protocol == Protocol::UDP && out.dst_port == 53);
        let mut count = 0;
        for (_, out) in answered {
            let answer = udp((out.dst, 53), (out.src, out.src_port));
            let answer = answer.payload(&[0; 1500]).dont_fragment();
            self.come(unit, wan, &answer);
            let own = vip(wan, out.dst.family());
            assert_eq!(self.refused_by(wan), [own], "an error, group {group}");
            count += 1;
        }
        assert!(count > 0, "no session of group {group}");
    }
}

/// A peer that lacks one of two groups holds the other one: that counts for the guarantee, and can
/// be handed over.
#[test]
fn a_peer_that_lacks_a_group_is_a_copy_of_the_other() {
    for seed in 0..4 {
        let shape = Shape {
            groups: 2,
            lacks: Some(1),
            shared_wan: seed % 2 == 0,
            ..shape(2)
        };
        crate::install_logger();
        let mut world = World::new(seed, shape, Faults::NONE);
        world.run(ms(3000));
        assert_eq!(world.primaries(1), [0], "nobody else has it");
        if world.primaries(0) == [1] {
            world.hand_over(1, 0).unwrap();
            world.run(ms(2500));
        }
        assert_eq!(world.primaries(0), [0]);
        open_flows(&mut world, 1);
        let degraded = |world: &World| {
            let gateway = world.units[0].gateway.as_ref().unwrap();
            gateway.counters().guarantee_degraded
        };
        let before = degraded(&world);
        (0..30).for_each(|_| world.open_flow_in(0));
        world.run(ms(2500));
        assert_eq!(degraded(&world), before, "seed {seed}: there is a copy");
        let gateway = world.units[0].gateway.as_ref().unwrap();
        let sync = gateway.cluster().unwrap().sync();
        assert!(sync.in_sync_for(peer_id(0, 1), GroupId(0)), "seed {seed}");
        assert!(!sync.in_sync_for(peer_id(0, 1), GroupId(1)), "seed {seed}");
        world.silent = true;
        world.run(ms(1500));
        let held = world.held_in(0, 0);
        assert!(held.len() > 10, "{} sessions", held.len());
        world.hand_over(0, 0).unwrap();
        world.run(ms(2500));
        assert_eq!((world.primaries(0), world.primaries(1)), (vec![1], vec![0]));
        world.check_kept(&held);
    }
}
