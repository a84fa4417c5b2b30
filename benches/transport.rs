//! The cost of the connections to a peer: `cargo bench --bench transport`.
//!
//! Two transports in one thread over the loopback interface, so that the figures hold both ends.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tandemgw_core::pump::PeerEvent;
use testkit::system::transport::{LINK, Net, PEER, Pair};

const SOON: Duration = Duration::from_secs(5);

fn main() {
    handshake();
    heartbeat();
    sync();
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// How long the loop was held up. The longest one is the machine's as often as ours.
fn stalls(mut calls: Vec<Duration>) {
    calls.sort();
    let at = |share: f64| calls[(calls.len() as f64 * share) as usize];
    println!(
        "  readable + poll: median {:?}, 99 % {:?}, 99.9 % {:?}, longest {:?}",
        at(0.5),
        at(0.99),
        at(0.999),
        calls[calls.len() - 1]
    );
}

fn handshake() {
    const ROUNDS: u32 = 100;
    let (mut used, mut wall, mut calls) = (Duration::ZERO, Duration::ZERO, Vec::new());
    for _ in 0..ROUNDS {
        let mut net = Pair::new("gw-a", "gw-b").start();
        let before = cpu();
        wall += net.run_until_up(SOON);
        used += cpu() - before;
        calls.append(&mut net.calls);
    }
    println!(
        "two connections, both ends: {:?} CPU, {:?} until up",
        used / ROUNDS,
        wall / ROUNDS
    );
    stalls(calls);
}

fn heartbeat() {
    const ROUNDS: u32 = 20_000;
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    net.pass(Duration::from_millis(200));
    let (mut sending, mut receiving) = (Duration::ZERO, Duration::ZERO);
    let mut received = 0;
    for round in 0..ROUNDS {
        let (from, to) = (round as usize % 2, 1 - round as usize % 2);
        let start = Instant::now();
        let sent = net.unit(from).send_datagram(PEER, LINK, &[1; 64], start);
        assert_eq!(sent, Ok(()));
        let between = Instant::now();
        let unit = net.unit(to);
        unit.readable(LINK, between);
        unit.poll(between);
        while let Some(event) = unit.poll_event() {
            received += u32::from(matches!(event, PeerEvent::Datagram { .. }));
        }
        unit.next_timeout();
        sending += between - start;
        receiving += between.elapsed();
    }
    println!(
        "heartbeat: {:?} to send, {:?} to receive and acknowledge, {received} of {ROUNDS} arrived",
        sending / ROUNDS,
        receiving / ROUNDS
    );
}

fn sync() {
    const TOTAL: usize = 1 << 30;
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    net.calls.clear();
    let block = vec![5; 1 << 20];
    let (mut written, mut read) = (0, 0);
    let (start, before) = (Instant::now(), cpu());
    let done = net.run(Duration::from_secs(60), |net| {
        let end = block.len().min(TOTAL - written);
        written += net.unit(0).write_sync(PEER, LINK, &block[..end]);
        for event in net.take(1, |event| matches!(event, PeerEvent::SyncData { .. })) {
            if let PeerEvent::SyncData { bytes, .. } = event {
                read += bytes.len();
            }
        }
        read == TOTAL
    });
    let (wall, used) = (start.elapsed(), cpu() - before);
    assert!(done, "{read} of {TOTAL} bytes");
    println!(
        "sync: {:.2} Gbit/s, {:.0} ns CPU a KiB for both ends",
        TOTAL as f64 * 8.0 / wall.as_secs_f64() / 1e9,
        used.as_nanos() as f64 / (TOTAL >> 10) as f64
    );
    stalls(net.calls);
}
