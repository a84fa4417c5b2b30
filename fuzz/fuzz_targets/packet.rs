//! Whatever comes in by TUN, wire, control socket or from an authenticated peer, two units that follow
//! each other keep their invariants.
//!
//! The input is a list of steps: what to do, a length of two bytes (the low one first), and that many bytes.
//! See [`World::step`]. `fuzz/seeds/packet` has steps made from captures of real programs.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tandemgw_core::config::{self, Config};
use tandemgw_core::control::protocol::Right;
use tandemgw_core::control::{Answer, BarrierView, PortIo, ShellView};
use tandemgw_core::event::{LinkState, Offload, Output, PartialChecksum, RouteChange};
use tandemgw_core::flow::{LinkId, PeerId, PortId};
use tandemgw_core::gateway::{Gateway, Seed};
use tandemgw_core::metrics::Histogram;
use tandemgw_core::time::Time;
use testkit::lab::{CONFIG, LAN, Net, PORTS, WAN, route, to_port};
use testkit::packets::{
    ACK, ErrorCode, SYN, SYN_ACK, echo_request, fragments, icmp_error, tcp, udp,
};

const PEER: PeerId = PeerId(0);
const LINK: LinkId = LinkId(0);
/// The longest time that a step lets pass.
const LONGEST: u64 = 3_000;
/// Steps of an input that are carried out, and timers of one step: they bound the time of an input.
const MOST_STEPS: usize = 32;
const MOST_TIMERS: usize = 48;
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
        world.units.iter().for_each(Gateway::check_invariants);
    }
    if input.len() % 1024 == 1023 {
        world.ends();
    }
});

struct World {
    /// gw-a, which is primary, and gw-b.
    units: [Gateway; 2],
    /// What each has been sent by the stream, and has not taken.
    streams: [Vec<u8>; 2],
    /// Whether heartbeats and streams pass.
    connected: bool,
    now: Time,
}

impl World {
    fn new() -> World {
        let now = Time::from_nanos(1 << 40);
        let [a, b] = configs();
        let units = [a, b].map(|config| {
            let mut gateway = Gateway::new(config.clone(), Seed([7; 32]), now);
            for port in PORTS {
                let mac = [2, 0, 0, 0, 0, port.0 as u8 + 1];
                let up = LinkState {
                    up: true,
                    mtu: 1500,
                    mac,
                };
                gateway.handle_link(now, port, up);
            }
            for (destination, port) in ROUTES {
                let change = RouteChange::Add(route(destination, to_port(*port)));
                gateway.handle_route(change);
            }
            gateway.start(now);
            gateway
        });
        let mut world = World {
            units,
            streams: [Vec::new(), Vec::new()],
            connected: false,
            now,
        };
        world.connect(true);
        // They hear each other, gw-a becomes primary, gw-b follows it.
        world.pass(Duration::from_millis(450));
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
                self.units[0].handle_packet(self.now, port, &mut bytes, Offload::default());
            }
        }
        assert_eq!(self.units[0].counters().forwarded, 6, "gw-a is primary");
        self.exchange();
    }

    /// Carries out a step. Its lowest bit says on which unit, the next two by which port, then come three bits for the
    /// kind, and two for what the kernel says of the packet.
    fn step(&mut self, what: u8, bytes: &[u8]) {
        let unit = usize::from(what & 1);
        let port = PORTS[usize::from(what >> 1 & 3) % PORTS.len()];
        let offload = Offload {
            partial_checksum: (what & 0x40 != 0).then(|| partial_checksum(bytes)),
            checksum_verified: what & 0xc0 == 0x40,
            segment_size: if what & 0x80 != 0 { 500 } else { 0 },
        };
        match what >> 3 & 7 {
            0 => self.units[unit].handle_frame(self.now, port, bytes),
            1 => {
                let pause = bytes
                    .iter()
                    .take(8)
                    .map(|byte| u64::from(*byte))
                    .sum::<u64>();
                let pause = Duration::from_millis((pause * 10).min(LONGEST));
                match what & 0x80 == 0 {
                    true => self.pass(pause),
                    false => self.pause(pause),
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
            5 => self.exchange(),
            6 => self.connect(what & 0x80 == 0),
            // A peer that has the key, and an intruder in it.
            _ => self.hear(unit, what & 0x80 == 0, bytes),
        }
        self.carry_out();
    }

    fn packet(&mut self, unit: usize, port: PortId, mut bytes: Vec<u8>, offload: Offload) {
        let gateway = &mut self.units[unit];
        let length = bytes.len();
        match gateway.is_capturing() {
            true => gateway.handle_captured_packet(self.now, port, &mut bytes, offload),
            false => gateway.handle_packet(self.now, port, &mut bytes, offload),
        };
        assert_eq!(bytes.len(), length);
    }

    /// Asks as an administrator does, and reads the beginning of the answer.
    fn ask(&mut self, unit: usize, bytes: &[u8]) {
        let Ok(line) = std::str::from_utf8(bytes) else {
            return;
        };
        let (mut out, gateway) = (String::new(), &mut self.units[unit]);
        let mut answer =
            Answer::begin((line, Right::Change), gateway, &shell(), self.now, &mut out);
        for _ in 0..16 {
            if answer.is_done() || out.len() > MOST_READ {
                break;
            }
            answer.go_on(gateway, &shell(), self.now, &mut out);
        }
        answer.abandon(gateway);
    }

    fn hear(&mut self, unit: usize, by_stream: bool, bytes: &[u8]) {
        if !by_stream {
            return self.units[unit].handle_heartbeat(self.now, PEER, LINK, bytes);
        }
        self.streams[unit].extend_from_slice(bytes);
        self.receive(unit);
    }

    fn connect(&mut self, up: bool) {
        if self.connected == up {
            return;
        }
        self.connected = up;
        for unit in 0..2 {
            self.streams[unit].clear();
            self.units[unit].handle_heartbeat_link(self.now, PEER, LINK, up);
            self.units[unit].handle_sync_link(self.now, PEER, LINK, up);
        }
        self.carry_out();
    }

    /// Moves heartbeats, streams and frames between the units, until nothing more comes or it is enough.
    fn exchange(&mut self) {
        for _ in 0..8 {
            self.carry_out();
            if !self.connected {
                return;
            }
            let mut moved = false;
            for unit in 0..2 {
                let mut bytes = Vec::new();
                self.units[unit].poll_sync(self.now, PEER, &mut bytes);
                moved |= !bytes.is_empty();
                self.streams[1 - unit].append(&mut bytes);
                self.receive(1 - unit);
            }
            if !moved {
                return;
            }
        }
    }

    fn receive(&mut self, unit: usize) {
        for _ in 0..16 {
            let stream = &self.streams[unit];
            match self.units[unit].handle_sync_data(self.now, PEER, LINK, stream) {
                Ok(received) => {
                    let nothing = received.taken == 0 && !received.more;
                    self.streams[unit].drain(..received.taken);
                    if nothing {
                        return;
                    }
                }
                Err(_) => {
                    // The shell closes the stream; a fresh one is opened.
                    self.streams.iter_mut().for_each(Vec::clear);
                    for unit in &mut self.units {
                        unit.handle_sync_link(self.now, PEER, LINK, false);
                        unit.handle_sync_link(self.now, PEER, LINK, true);
                    }
                    return;
                }
            }
        }
    }

    /// What the units want: heartbeats arrive, all else does not matter here.
    fn carry_out(&mut self) {
        for unit in 0..2 {
            while let Some(output) = self.units[unit].poll_output() {
                if let Output::Heartbeat { bytes, .. } = output
                    && self.connected
                {
                    self.units[1 - unit].handle_heartbeat(self.now, PEER, LINK, &bytes);
                }
            }
        }
    }

    /// Lets time pass, up to that and up to [`MOST_TIMERS`].
    fn pass(&mut self, pause: Duration) {
        let end = self.now + pause;
        for _ in 0..MOST_TIMERS {
            let due = self
                .units
                .iter()
                .filter_map(|unit| unit.poll_timeout(self.now));
            let Some(due) = due.min().filter(|due| *due <= end) else {
                self.now = end;
                break;
            };
            self.now = due.max(self.now);
            for unit in &mut self.units {
                unit.handle_wake(self.now);
                unit.handle_timeout(self.now);
            }
            self.exchange();
        }
    }

    /// The machine stops for a while: timers are late.
    fn pause(&mut self, pause: Duration) {
        self.now = self.now + pause;
        for unit in &mut self.units {
            unit.handle_wake(self.now);
        }
    }

    /// Alone, and with nothing more to come, a unit has no sessions in the end.
    fn ends(&mut self) {
        self.connect(false);
        for unit in &mut self.units {
            unit.handle_heartbeat_link(self.now, PEER, LINK, false);
        }
        let end = self.now + Duration::from_secs(8000);
        while self.now < end {
            self.pass(Duration::from_secs(8));
        }
        for unit in &self.units {
            unit.check_invariants();
            let counts = unit.session_counts();
            let all = counts.tcp + counts.udp + counts.icmp + counts.other;
            assert_eq!(all, 0, "all sessions end");
        }
    }
}

const ROUTES: &[(&str, PortId)] = &[
    ("10.77.1.0/24", LAN),
    ("10.77.2.0/24", WAN),
    ("10.77.3.0/24", testkit::lab::DMZ),
    ("198.51.100.0/24", WAN),
    ("fd77:1::/64", LAN),
    ("fd77:2::/64", WAN),
    ("fd77:3::/64", testkit::lab::DMZ),
    ("2001:db8:7::/48", WAN),
];

fn configs() -> &'static [Config; 2] {
    static CONFIGS: OnceLock<[Config; 2]> = OnceLock::new();
    CONFIGS.get_or_init(|| {
        [("gw-a", "gw-b", 1, 200), ("gw-b", "gw-a", 2, 100)].map(|(name, other, number, priority)| {
            let named = format!("name = \"{name}\"\nkey = \"{name}.key\"");
            let base = CONFIG.replacen("name = \"gw\"", &named, 1);
            let ha = format!(
                "[ha]\ngroup-id = 7\npriority = {priority}\nheartbeat-interval = \"200ms\"\nheartbeat-lost-threshold = 3\n\
                 [[ha.link]]\ninterface = \"sync0\"\nlisten = \"10.77.9.{number}:7030\"\n\
                 [[ha.peer]]\nname = \"{other}\"\naddresses = [\"10.77.9.{}:7030\"]\n\
                 public-key = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\n",
                3 - number
            );
            match config::parse(Path::new("fuzz.toml"), &format!("{base}{ha}")) {
                Ok((config, _)) => config,
                Err(found) => panic!("{found:?}"),
            }
        })
    })
}

fn shell() -> ShellView {
    ShellView {
        config_file: PathBuf::from("/fuzz.toml"),
        ports: vec![PortIo { offload: "none" }; PORTS.len()],
        boot: Duration::ZERO,
        turns: Histogram::default(),
        barrier: BarrierView::default(),
        state_not_saved: None,
        refused: None,
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
