//! Whatever comes in by TUN, wire, control socket or from an authenticated peer, two units that
//! follow each other keep their invariants.
//!
//! The input is a list of steps: what to do, a length of two bytes (the low one first), and that
//! many bytes. See [`World::step`]. `fuzz/seeds/packet` has steps made from captures of real
//! programs.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tandemgw_core::control::protocol::Right;
use tandemgw_core::control::{Answer, FastPathState, PortIo, ShellView};
use tandemgw_core::event::{Offload, PartialChecksum};
use tandemgw_core::flow::PortId;
use tandemgw_core::gateway::Gateway;
use testkit::lab::{LAN, Net, PORTS, WAN};
use testkit::packets::{
    ACK, ErrorCode, SYN, SYN_ACK, echo_request, fragments, icmp_error, tcp, udp,
};
use testkit::pair::{LINK, PEER, Pair};

/// The longest time that a step lets pass.
const LONGEST: u64 = 3_000;
/// Steps of an input that are carried out: they bound its time.
const MOST_STEPS: usize = 16;
/// Timers of a step that lets time pass.
const MOST_TIMERS: usize = 12;
/// Bytes that an administrator reads of an answer.
const MOST_READ: usize = 64 << 10;

fuzz_target!(|input: &[u8]| {
    let mut world = World::new();
    let mut rest = input;
    for _ in 0..MOST_STEPS {
        let [what, low, high, more @ ..] = rest else {
            break;
        };
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let (bytes, after) = more.split_at(length.min(more.len()));
        rest = after;
        world.step(*what, bytes);
    }
    // These take longer than all the rest, so not each time.
    if input.len() % 4 == 3 {
        world.0.units.iter().for_each(Gateway::check_invariants);
    }
    if input.len() % 4096 == 4095 {
        world.ends();
    }
});

struct World(Pair);

impl World {
    fn new() -> World {
        let mut world = World(Pair::new());
        world.open_sessions();
        world
    }

    /// Sessions that the samples are about.
    fn open_sessions(&mut self) {
        for net in Net::both() {
            let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
            let syn_ack = out.clone().src(net.wan_vip).answer();
            let syn_ack = syn_ack.segment(SYN_ACK, 500, 101);
            let query = udp((net.host, 40000), (net.server, 53));
            for (port, packet) in [(LAN, query), (LAN, out), (WAN, syn_ack)] {
                let mut bytes = packet.bytes();
                self.0.units[0].handle_packet(self.0.now, port, &mut bytes, Offload::default());
            }
        }
        assert_eq!(self.0.units[0].counters().forwarded, 6, "gw-a is primary");
        self.0.exchange();
    }

    /// Carries out a step. Its lowest bit says on which unit, the next two by which port, then come
    /// three bits for the kind, and two for what the kernel says of the packet.
    fn step(&mut self, what: u8, bytes: &[u8]) {
        let unit = usize::from(what & 1);
        let port = PORTS[usize::from(what >> 1 & 3) % PORTS.len()];
        let offload = Offload {
            partial_checksum: (what & 0x40 != 0).then(|| partial_checksum(bytes)),
            checksum_verified: what & 0xc0 == 0x40,
            segment_size: if what & 0x80 != 0 { 500 } else { 0 },
        };
        match what >> 3 & 7 {
            0 => self.0.units[unit].handle_frame(self.0.now, port, bytes),
            1 => {
                let pause = bytes
                    .iter()
                    .take(8)
                    .map(|byte| u64::from(*byte))
                    .sum::<u64>();
                let pause = Duration::from_millis((pause * 10).min(LONGEST));
                match what & 0x80 == 0 {
                    true => self.0.pass_quickly(pause, MOST_TIMERS),
                    false => self.0.pause(pause),
                }
            }
            2 => self.packet(unit, port, bytes.to_vec(), offload),
            3 => {
                // A sample with some of its bytes replaced: places of two bytes, and values.
                let [which, edits @ ..] = bytes else { return };
                let samples = samples();
                let mut packet = samples[usize::from(*which) % samples.len()].clone();
                for edit in edits.chunks_exact(3) {
                    let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % packet.len();
                    packet[at] = edit[2];
                }
                self.packet(unit, port, packet, offload);
            }
            4 => self.ask(unit, bytes),
            5 => self.0.exchange(),
            6 => self.0.connect(what & 0x80 == 0),
            // A peer that has the key, and an intruder in it.
            _ => self.hear(unit, what & 0x80 == 0, bytes),
        }
        self.0.carry_out();
    }

    fn packet(&mut self, unit: usize, port: PortId, mut bytes: Vec<u8>, offload: Offload) {
        let gateway = &mut self.0.units[unit];
        let length = bytes.len();
        match gateway.is_capturing() {
            true => gateway.handle_captured_packet(self.0.now, port, &mut bytes, offload),
            false => gateway.handle_packet(self.0.now, port, &mut bytes, offload),
        };
        assert_eq!(bytes.len(), length);
    }

    /// Asks as an administrator does, and reads the beginning of the answer.
    fn ask(&mut self, unit: usize, bytes: &[u8]) {
        let Ok(line) = std::str::from_utf8(bytes) else {
            return;
        };
        let (mut out, gateway) = (String::new(), &mut self.0.units[unit]);
        let mut answer = Answer::begin(
            (line, Right::Change),
            gateway,
            &shell(),
            self.0.now,
            &mut out,
        );
        for _ in 0..16 {
            if answer.is_done() || out.len() > MOST_READ {
                break;
            }
            answer.go_on(gateway, &shell(), self.0.now, &mut out);
        }
        answer.abandon(gateway);
    }

    fn hear(&mut self, unit: usize, by_stream: bool, bytes: &[u8]) {
        if !by_stream {
            return self.0.units[unit].handle_heartbeat(self.0.now, PEER, LINK, bytes);
        }
        self.0.streams[unit].extend_from_slice(bytes);
        self.0.receive(unit);
    }

    /// Alone, and with nothing more to come, a unit has no sessions in the end.
    fn ends(&mut self) {
        self.0.connect(false);
        for unit in &mut self.0.units {
            unit.handle_heartbeat_link(self.0.now, PEER, LINK, false);
        }
        self.0.pass(Duration::from_secs(8000));
        for unit in &self.0.units {
            unit.check_invariants();
            let counts = unit.session_counts();
            let all = counts.tcp + counts.udp + counts.icmp + counts.other;
            assert_eq!(all, 0, "all sessions end");
        }
    }
}

fn shell() -> ShellView {
    ShellView {
        config_file: PathBuf::from("/fuzz.toml"),
        ports: vec![
            PortIo {
                offload: "none",
                fast_path: FastPathState::Off
            };
            PORTS.len()
        ],
        ..ShellView::default()
    }
}

/// Where the last two bytes of a step say that an unfinished checksum is.
fn partial_checksum(bytes: &[u8]) -> PartialChecksum {
    let [.., start, field] = bytes else {
        return PartialChecksum {
            start: 20,
            field: 36,
        };
    };
    let (start, field) = (u16::from(*start), u16::from(*field));
    PartialChecksum {
        start,
        field: start + field,
    }
}

/// Packets of the sessions and about them, for the input to edit.
fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let mut samples = Vec::new();
        for net in Net::both() {
            let query = udp((net.host, 40000), (net.server, 53));
            let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
            let back = out.clone().src(net.wan_vip).answer();
            let outside = query.clone().src(net.wan_vip).bytes();
            let error = |code| icmp_error(code, net.router, net.wan_vip, &outside);
            let big = query.clone().payload(&[7; 1400]).bytes();
            let packets = [
                query.clone(),
                query.clone().src(net.wan_vip).answer(),
                echo_request((net.host, 4000), net.server),
                echo_request((net.server, 4000), net.wan_vip),
                tcp((net.server, 40000), (net.wan_vip, 8080), SYN, 1, 0),
                out.clone(),
                back.clone().segment(SYN_ACK, 500, 101),
                back.segment(ACK, 501, 101).payload(&[9; 100]),
                out.segment(ACK, 101, 501).payload(&[9; 100]),
                error(ErrorCode::TimeExceeded),
                error(ErrorCode::TooBig(1280)),
            ];
            samples.extend(packets.map(|packet| packet.bytes()));
            samples.extend(fragments(&big, 7, &[104, 208]));
        }
        samples
    })
}
