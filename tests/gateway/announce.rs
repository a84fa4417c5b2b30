//! Announcements: all of them are sent, the gateway's own addresses first, however many there are.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tandemgw_core::config;
use tandemgw_core::event::{LinkState, Output};
use tandemgw_core::flow::{Addr, PortId};
use tandemgw_core::gateway::{Gateway, Seed};
use tandemgw_core::packet::neighbor::{self, Neighbor};
use tandemgw_core::time::Time;

const TEXT: &str = r#"
[node]
name = "gw"
max-sessions = 1024
[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.77.1.1/24", "fd77:1::1/64"]
[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["10.78.0.1/16", "fd77:2::1/64"]
[[nat-pool]]
name = "pool"
addresses = ["10.78.16.0-10.78.31.127", "fd77:2::1000-fd77:2::107f"]
[[policy]]
name = "out"
from = ["lan"]
to = ["wan"]
action = "accept"
nat-pool = "pool"
"#;

#[test]
fn a_pool_of_4096_and_200_addresses_are_announced_and_the_own_addresses_first() {
    // Half of the 200 are IPv6.
    let more = (0..98).map(|i| format!(", \"10.77.1.{}/24\", \"fd77:1::2:{i:x}/64\"", 2 + i));
    let more: String = more.collect();
    let text = TEXT.replacen("/64\"]", &format!("/64\"{more}]"), 1);
    let (config, _) = config::parse(Path::new("gw.toml"), &text).unwrap();
    let mut now = Time::from_nanos(1_000_000_000);
    let mut gateway = Gateway::new(config, Seed([1; 32]), now);
    for port in 0..2 {
        let mac = [2, 0, 0, 0, 0, port];
        let (up, mtu) = (true, 1500);
        gateway.handle_link(
            now,
            PortId::from_index(port.into()),
            LinkState { up, mtu, mac },
        );
    }
    gateway.start(now);
    let mut order: Vec<Addr> = Vec::new();
    let end = now + Duration::from_millis(500);
    while now < end {
        let mut frames = 0;
        // The second time the loop was woken by something else: that brings no more frames.
        for _ in 0..2 {
            while let Some(output) = gateway.poll_output() {
                if let Output::Frame { bytes, .. } = output {
                    frames += 1;
                    order.push(address(&bytes));
                }
            }
            gateway.handle_timeout(now);
        }
        assert!(frames <= 66, "{frames} frames at once");
        now = gateway.poll_timeout(now).unwrap_or(end).max(now).min(end);
        gateway.handle_timeout(now);
    }
    // An IPv4 address has two frames.
    let own: BTreeSet<Addr> = order[..300].iter().copied().collect();
    let pooled = |addr: &Addr| {
        let text = addr.to_string();
        text.starts_with("10.78.") && text != "10.78.0.1" || text.starts_with("fd77:2::10")
    };
    assert_eq!(own.len(), 200);
    assert!(!own.iter().any(pooled), "the own addresses come first");
    let all: BTreeSet<Addr> = order.iter().copied().collect();
    assert_eq!(all.len(), 4096 + 200);
    assert_eq!(gateway.counters().outputs_lost, 0);
}

/// The address that a frame announces.
fn address(frame: &[u8]) -> Addr {
    match neighbor::parse_frame(frame) {
        Ok(Neighbor::Advertise(claim)) => claim.addr,
        Ok(Neighbor::Solicit(solicit)) => solicit.sender,
        other => panic!("no announcement: {other:?}"),
    }
}
