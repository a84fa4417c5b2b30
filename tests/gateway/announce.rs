//! Announcements: all of them, the gateway's own addresses first, however many there are.

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
addresses = ["10.78.16.0-10.78.31.255"]
[[policy]]
name = "out"
from = ["lan"]
to = ["wan"]
action = "accept"
nat-pool = "pool"
"#;

#[test]
fn a_pool_of_4096_is_announced_and_the_own_addresses_first() {
    let (config, _) = config::parse(Path::new("gw.toml"), TEXT).unwrap();
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
        while let Some(output) = gateway.poll_output() {
            if let Output::Frame { bytes, .. } = output {
                frames += 1;
                order.push(address(&bytes));
            }
        }
        assert!(frames <= 66, "{frames} frames at once");
        now = gateway.poll_timeout(now).unwrap_or(end).max(now).min(end);
        gateway.handle_timeout(now);
    }
    let own: BTreeSet<Addr> = order[..6].iter().copied().collect();
    let wanted = ["10.77.1.1", "fd77:1::1", "10.78.0.1", "fd77:2::1"];
    let wanted: BTreeSet<Addr> = wanted
        .iter()
        .map(|a| Addr::from(a.parse::<std::net::IpAddr>().unwrap()))
        .collect();
    assert_eq!(own, wanted);
    let all: BTreeSet<Addr> = order.iter().copied().collect();
    assert_eq!(all.len(), 4096 + 4);
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
