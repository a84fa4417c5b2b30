//! A blind attacker among the hosts: it knows who talks to whom, and guesses sequence numbers.

use std::time::Duration;

use tandemgw_core::flow::{Addr, Protocol};
use testkit::packets::{ACK, ErrorCode, FIN_ACK, Pkt, RST, SYN, SYN_ACK, icmp_error, tcp, udp};

use crate::faults::Faults;
use crate::hosts::{Flow, Stage, family_index};
use crate::scenario::Failure;
use crate::setup::{HOSTS, Shape};
use crate::world::World;

/// The payload of what the attacker sends: shorter than a host's own.
const MARK: &[u8] = b"evil";

/// Whether a packet that reached a host is one of the attacker's. The host ignores it, as its
/// numbers are wrong (RFC 5961): the gateway may let it through, but must not believe it.
pub fn is_forged(bytes: &[u8]) -> bool {
    bytes.ends_with(MARK)
}

impl World {
    /// Sends a few forged packets about flows that are open.
    pub fn attack(&mut self) {
        let is_target = |flow: &Flow| flow.stage == Stage::Open && flow.seen_as.is_some();
        let open: Vec<Flow> = self
            .flows
            .iter()
            .filter(|f| is_target(f))
            .cloned()
            .collect();
        if open.is_empty() {
            return;
        }
        for _ in 0..2 {
            let flow = &open[self.random.below(open.len())];
            self.forge(flow);
        }
    }

    /// One packet that pretends to be of the client or of the server of a flow.
    fn forge(&mut self, flow: &Flow) {
        let seen = flow.seen_as.unwrap_or(flow.from);
        // As the client towards the server, or as the server towards the client as it is seen.
        let from_client = self.random.chance(500);
        let client_side = flow.client.0;
        let (segment, src, dst) = match from_client {
            true => (client_side, flow.from, flow.to),
            // A forward is seen from inside as it came: its other side has the server's address.
            false if client_side % 2 == 1 => return,
            false => (client_side + 1, flow.to, seen),
        };
        let [seq, ack] = [self.random.next() as u32, self.random.next() as u32];
        let packet = match (flow.protocol, self.random.below(4)) {
            (Protocol::TCP, 0) => self.forge_error(src.0, tcp(dst, src, ACK, seq, ack)),
            (Protocol::TCP, _) => {
                let flags = [RST, SYN, SYN_ACK, FIN_ACK, ACK, RST][self.random.below(6)];
                tcp(src, dst, flags, seq, ack).payload(MARK)
            }
            (Protocol::UDP, 0) => self.forge_error(src.0, udp(dst, src).payload(MARK)),
            (Protocol::UDP, _) => udp(src, dst).payload(MARK),
            _ => return,
        };
        self.send_forged(segment, packet);
    }

    /// An ICMP error about a packet that the victim may have sent.
    fn forge_error(&mut self, from: Addr, quoted: Pkt) -> Pkt {
        let kinds = [
            ErrorCode::PortUnreachable,
            ErrorCode::NoRoute,
            ErrorCode::AdminProhibited,
            ErrorCode::TimeExceeded,
            ErrorCode::TooBig(1280),
        ];
        let kind = kinds[self.random.below(kinds.len())];
        icmp_error(kind, from, quoted.src, &quoted.bytes())
    }

    /// Any host of a segment can put a packet on it.
    fn send_forged(&mut self, segment: usize, packet: Pkt) {
        let host = self.random.below(HOSTS);
        let family = packet.src.family();
        // To a standby as well: nobody keeps the attacker from it.
        let to = match self.random.chance(200) {
            true => {
                let unit = self.random.below(self.shape.units);
                Some(self.macs(unit, segment))
            }
            false => self.hosts[segment][host].gateway[family_index(family)],
        };
        if let Some(mac) = to {
            self.forged += 1;
            self.carry_packet((segment, host), mac, packet.bytes());
        }
    }
}

/// Flows live through guesses of all sorts, and through failures meanwhile.
#[test]
fn a_blind_attacker_ends_no_flow() {
    crate::install_logger();
    for (seed, failure) in [
        (11, Failure::Kill),
        (12, Failure::Handover),
        (13, Failure::Pause),
    ] {
        let shape = Shape {
            units: 2,
            groups: 1,
            links: 1,
            guarantee: "off",
            override_: false,
            max_sessions: 256,
            ..Shape::PAIR
        };
        let faults = Faults {
            attacks: 1000,
            ..Faults::NONE
        };
        let mut world = World::new(seed, shape, faults);
        world.run(Duration::from_millis(3500));
        world.survive(failure);
        assert!(world.forged > 100, "{} forged packets", world.forged);
    }
}
