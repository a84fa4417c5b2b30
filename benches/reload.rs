//! A reload beside a million sessions: how long the loop stands still, in CPU time.
//!
//! `cargo bench --bench reload`

use std::path::Path;
use std::time::Duration;

use tandemgw_core::config::{self, Config};
use tandemgw_core::event::{LinkState, Offload, RouteChange, Verdict};
use tandemgw_core::flow::PortId;
use tandemgw_core::gateway::{Gateway, Prepared, Seed};
use tandemgw_core::packet::checksum;
use tandemgw_core::time::Time;
use testkit::lab::{route, to_port};
use testkit::system::cpu_clock::thread_time;

const SESSIONS: u32 = 1_000_000;

fn main() {
    println!("{:<52} {:>10}", "what", "result");
    for policies in [10, 100, 1000] {
        let text = text(policies, 16, "");
        let start = thread_time();
        let parsed = parse(&text);
        show(&format!("parse {policies} policies"), thread_time() - start);
        drop(parsed);
    }
    for policies in [10, 1000, 4000] {
        run(policies);
    }
}

fn run(policies: usize) {
    let now = Time::from_nanos(1_000_000_000_000);
    let mut gateway = gateway(&parse(&text(policies, 16, "")), now);
    fill(&mut gateway, now);
    println!("1M UDP sessions, translated; {policies} policies");
    let cases = [
        ("a policy more", text(policies, 16, MORE)),
        ("another pool, 4096 addresses", text(policies, 4096, MORE)),
        ("back, and a forward less", text(policies, 16, "")),
        ("all forbidden", text(policies, 16, NOTHING)),
    ];
    for (what, text) in cases {
        let config = parse(&text);
        let start = thread_time();
        let mut prepared =
            Prepared::new(gateway.basis(), &config).unwrap_or_else(|why| panic!("{why}"));
        show(
            &format!("{what}: prepared beside the loop in"),
            thread_time() - start,
        );
        let (mut longest, mut done) = (Duration::ZERO, false);
        while !done {
            let piece = thread_time();
            done = gateway
                .number_some(&mut prepared)
                .unwrap_or_else(|why| panic!("{why}"));
            longest = longest.max(thread_time() - piece);
        }
        show("  longest piece before", longest);
        let start = thread_time();
        let (reloaded, retired) = gateway
            .install(now, prepared)
            .unwrap_or_else(|why| panic!("{why}"));
        let pause = thread_time() - start;
        drop(retired);
        assert!(!reloaded.applied.is_empty());
        let (mut longest, mut pieces) = (Duration::ZERO, 0u32);
        let start = thread_time();
        while gateway.is_reloading() {
            let piece = thread_time();
            gateway.handle_timeout(now);
            longest = longest.max(thread_time() - piece);
            pieces += 1;
            while gateway.poll_output().is_some() {}
        }
        let all = thread_time() - start;
        show(&format!("{what}: applied in"), pause);
        show("  longest piece of the pass", longest);
        show(&format!("  whole pass, {pieces} pieces"), all);
        println!("  sessions left: {}", gateway.session_counts().udp);
    }
}

const MORE: &str = r#"
[[forward]]
name = "dns"
port = "wan"
protocol = "udp"
external = "10.2.0.1:53"
internal = "10.1.0.2:53"
"#;

const NOTHING: &str = r#"
[[policy]]
name = "none"
action = "drop"
"#;

fn text(policies: usize, pool: u32, more: &str) -> String {
    let mut text = String::from(
        r#"
[node]
name = "gw"
max-sessions = 1100000
[limits]
half-open-per-source = 0
[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.1.0.1/16"]
[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["10.2.0.1/16"]
"#,
    );
    if more == NOTHING {
        text.push_str(more);
    }
    for number in 1..policies {
        text.push_str(&format!(
            "[[policy]]\nname = \"p{number}\"\nsource = [\"192.168.{}.0/24\"]\n\
             service = [\"tcp/{number}\", \"udp/{number}\"]\naction = \"reject\"\n",
            number % 256
        ));
    }
    text.push_str("[[policy]]\nname = \"out\"\naction = \"accept\"\nnat-pool = \"pool\"\n");
    let last = pool - 1;
    text.push_str(&format!(
        "[[nat-pool]]\nname = \"pool\"\naddresses = [\"10.2.16.0-10.2.{}.{}\"]\n",
        16 + last / 256,
        last % 256
    ));
    if more == MORE {
        text.push_str(more);
    }
    text
}

fn parse(text: &str) -> Config {
    match config::parse(Path::new("bench.toml"), text) {
        Ok((config, _)) => config,
        Err(problems) => panic!("{problems:?}"),
    }
}

fn gateway(config: &Config, now: Time) -> Gateway {
    let mut gateway = Gateway::new(config.clone(), Seed([7; 32]), now);
    tandemgw::os::memory::prefer_huge_pages(gateway.reserved_memory());
    for (port, destination) in [(PortId(0), "10.1.0.0/16"), (PortId(1), "0.0.0.0/0")] {
        let link = LinkState {
            up: true,
            mtu: 1500,
            mac: [2, 0, 0, 0, 0, port.0 as u8],
        };
        gateway.handle_link(now, port, link);
        gateway.handle_route(RouteChange::Add(route(destination, to_port(port))));
    }
    gateway.start(now);
    while gateway.poll_timeout(now) == Some(now) {
        gateway.handle_timeout(now);
    }
    gateway
}

fn fill(gateway: &mut Gateway, now: Time) {
    for number in 0..SESSIONS {
        let mut packet = udp(number);
        let verdict = gateway.handle_packet(now, PortId(0), &mut packet, Offload::default());
        assert_eq!(verdict, Verdict::Forward, "{number}");
    }
}

/// A datagram of one of 62 500 hosts to one of 16 servers.
fn udp(number: u32) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    let host = number / 16 + 256;
    packet.extend_from_slice(&(0x0a01_0000 + host).to_be_bytes());
    packet.extend_from_slice(&[198, 51, 100, (number % 16) as u8]);
    packet.extend_from_slice(&[0x10, 0, 0x20, 0, 0, 8, 0, 0]);
    let mut sum = checksum::Sum::default();
    sum.add(&packet[..20]);
    let sum = sum.checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn show(what: &str, time: Duration) {
    println!("{what:<52} {:>10.1} us", time.as_secs_f64() * 1e6);
}
