//! The cost of a packet and a session, in nanoseconds of CPU and bytes, with few sessions and with
//! a million: `cargo bench --bench packet_cost`. `cargo bench --bench packet_cost`. All of the
//! gateway is in it: NAT, policies, timeouts.

use std::fs;
use std::hint::black_box;
use std::path::Path;

use tandemgw_core::config;
use tandemgw_core::event::{LinkState, Offload, RouteChange, Verdict};
use tandemgw_core::flow::PortId;
use tandemgw_core::gateway::{Gateway, Seed};
use tandemgw_core::time::Time;
use testkit::lab::{route, to_port};

const LAN: PortId = PortId(0);
const WAN: PortId = PortId(1);
const FEW: u32 = 1000;
const MANY: u32 = 1_000_000;
const PACKETS: u32 = 2_000_000;

const CONFIG: &str = r#"
[node]
name = "gw"
max-sessions = 1048576
[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.0.0.1/8"]
[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["192.0.2.1/24"]
[[nat-pool]]
name = "pool"
addresses = ["192.0.2.10-192.0.2.41"]
[[policy]]
name = "out"
from = ["lan"]
to = ["wan"]
action = "accept"
nat-pool = "pool"
[limits]
half-open-per-source = 0
"#;

/// The checksums of the packets are not right; the kernel is said to have seen to that.
const OFFLOAD: Offload = Offload {
    partial_checksum: None,
    checksum_verified: true,
    segment_size: 0,
};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    Tcp,
}

fn main() {
    println!("     sessions   ns/new   ns/packet   bytes/session");
    for kind in [Kind::Udp, Kind::Tcp] {
        let few = measure(kind, FEW);
        let many = measure(kind, MANY);
        println!("{kind:?}  ratio of the time a packet: {:.2}", many / few);
    }
}

/// Prints the costs with `sessions` sessions; returns nanoseconds a packet.
fn measure(kind: Kind, sessions: u32) -> f64 {
    let mut gateway = gateway();
    let now = Time::from_nanos(1_000_000_000);
    let before = resident_bytes();
    let start = cpu_nanos();
    for index in 0..sessions {
        let mut packet = packet(kind, index);
        let verdict = gateway.handle_packet(now, LAN, &mut packet, OFFLOAD);
        assert_eq!(verdict, Verdict::Forward, "session {index}");
    }
    let new = (cpu_nanos() - start) as f64 / f64::from(sessions);
    let memory = resident_bytes().saturating_sub(before) / u64::from(sessions);

    let start = cpu_nanos();
    let mut index = 1u32;
    for _ in 0..PACKETS {
        // A walk over all sessions that no cache foresees.
        index = index.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut packet = packet(kind, (index >> 8) % sessions);
        black_box(gateway.handle_packet(now, LAN, &mut packet, OFFLOAD));
    }
    let each = (cpu_nanos() - start) as f64 / f64::from(PACKETS);
    println!("{kind:?}  {sessions:>8} {new:>8.0} {each:>11.0} {memory:>15}");
    assert_eq!(
        gateway.counters().forwarded,
        u64::from(sessions) + u64::from(PACKETS)
    );
    each
}

fn gateway() -> Gateway {
    let (config, _) = config::parse(Path::new("bench.toml"), CONFIG).expect("a valid config");
    let now = Time::from_nanos(1_000_000_000);
    let mut gateway = Gateway::new(config, Seed([7; 32]), now);
    for (port, destination) in [(LAN, "10.0.0.0/8"), (WAN, "0.0.0.0/0")] {
        gateway.handle_link(
            now,
            port,
            LinkState {
                up: true,
                mtu: 1500,
                mac: [2, 0, 0, 0, 0, 1],
            },
        );
        gateway.handle_route(RouteChange::Add(route(destination, to_port(port))));
    }
    gateway.start(now);
    gateway
}

/// A packet of session `index`: each of 65 536 hosts has a few, to one server.
fn packet(kind: Kind, index: u32) -> [u8; 40] {
    let [_, _, a, b] = (index & 0xffff).to_be_bytes();
    let port = (20_000 + (index >> 16) as u16).to_be_bytes();
    let (protocol, len) = match kind {
        Kind::Udp => (17, [0, 20]),
        Kind::Tcp => (6, [0, 0]),
    };
    let mut packet = [0; 40];
    packet[..20].copy_from_slice(&[
        0x45, 0, 0, 40, 0, 0, 0, 0, 60, protocol, 0, 0, 10, 1, a, b, 198, 51, 100, 7,
    ]);
    packet[20..22].copy_from_slice(&port);
    packet[22..24].copy_from_slice(&[0, 53]);
    packet[24..26].copy_from_slice(&len);
    if let Kind::Tcp = kind {
        packet[32] = 0x50;
        packet[33] = 0x02;
        packet[34] = 0x40;
    }
    // For TCP it is the SYN, again and again: all that a connection without a server sees.
    packet
}

/// Nanoseconds that this process has had a CPU: other processes that run do not count.
fn cpu_nanos() -> u64 {
    let schedstat = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let first = schedstat.split_whitespace().next();
    first.and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
}

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
