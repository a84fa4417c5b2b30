//! The fast path beside what the kernel does: `cargo bench --bench fast_path`. Needs root.
//!
//! In each round all gateways are measured once, in new namespaces, so that a change of the
//! machine's pace hits all of them; what counts is the median of the ratios of each round. No
//! process is bound to a CPU, except the sender of small packets: a bound process holds back
//! gateways in the kernel, which work where the sender is.
//!
//! - `redirect` changes nothing in a packet: it is the limit of a program at that place.
//! - CPU is that of the whole machine, with sender and receiver.
//! - Small packets are measured after all sessions had their entries.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use testkit::system::bench;
use testkit::system::datapath::{Forwarder, Lab, SENDER_CPU, SERVER};
use testkit::system::worker::Result;

#[derive(Parser)]
struct Options {
    /// Rounds, of which the median counts.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Length of a measurement.
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Only figures whose name contains this.
    #[arg(default_value = "")]
    only: String,
    /// Established UDP sessions.
    #[arg(long, default_value_t = 10_000)]
    flows: u64,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

const KINDS: [Forwarder; 4] = [
    Forwarder::Masquerade,
    Forwarder::Redirect,
    Forwarder::Tandemgw,
    Forwarder::FastPath,
];

/// What is measured.
struct Figure {
    name: &'static str,
    measure: fn(&Lab, &Options) -> Result<f64>,
    /// The goal for the ratio of the fast path to `peer`, one of [`KINDS`].
    goal: f64,
    peer: usize,
    more_is_better: bool,
}

/// Places in [`KINDS`].
const MASQUERADE: usize = 0;
const TUN: usize = 2;

const FIGURES: [Figure; 10] = [
    Figure {
        name: "one TCP stream, Gbit/s",
        measure: |lab, options| Ok(streams(lab, 1, options.seconds)?.0),
        goal: 1.0,
        peer: MASQUERADE,
        more_is_better: true,
    },
    Figure {
        name: "four TCP streams, Gbit/s",
        measure: |lab, options| Ok(streams(lab, 4, options.seconds)?.0),
        goal: 1.0,
        peer: MASQUERADE,
        more_is_better: true,
    },
    Figure {
        name: "CPU of one stream, ms a Gbit",
        measure: |lab, options| Ok(streams(lab, 1, options.seconds)?.1),
        goal: 1.0,
        peer: MASQUERADE,
        more_is_better: false,
    },
    Figure {
        name: "small UDP packets, established, kpps",
        measure: small_packets,
        goal: 1.35,
        peer: MASQUERADE,
        more_is_better: true,
    },
    Figure {
        name: "round trip p50, µs",
        measure: |lab, options| round_trip(lab, options, "p50"),
        goal: 1.0,
        peer: MASQUERADE,
        more_is_better: false,
    },
    Figure {
        name: "round trip p99, µs",
        measure: |lab, options| round_trip(lab, options, "p99"),
        goal: 1.0,
        peer: MASQUERADE,
        more_is_better: false,
    },
    Figure {
        name: "new UDP sessions, k/s",
        measure: new_sessions,
        goal: 1.0,
        peer: MASQUERADE,
        more_is_better: true,
    },
    Figure {
        name: "connections of 1 byte each way, /s (peer: TUN)",
        measure: |lab, options| short(lab, options, 1),
        goal: 1.0,
        peer: TUN,
        more_is_better: true,
    },
    Figure {
        name: "connections of 10 bytes one by one, /s (peer: TUN)",
        measure: |lab, options| short(lab, options, 10),
        goal: 1.0,
        peer: TUN,
        more_is_better: true,
    },
    Figure {
        name: "connections of 100 bytes one by one, /s (peer: TUN)",
        measure: |lab, options| short(lab, options, 100),
        goal: 1.0,
        peer: TUN,
        more_is_better: true,
    },
];

fn tandemgw() -> PathBuf {
    bench::binary(env!("CARGO_BIN_EXE_tandemgw"))
}

fn main() -> ExitCode {
    bench::run("fast_path", measure_all)
}

fn measure_all(options: &Options, folder: &Path) -> Result<()> {
    print!("| |");
    KINDS.iter().for_each(|kind| print!(" {kind:?} |"));
    println!(" fast path / masquerade, or the peer named | goal | fast path / redirect |");
    println!("|---|{}---:|---:|---:|", "---:|".repeat(KINDS.len()));
    for figure in FIGURES.iter().filter(|it| it.name.contains(&options.only)) {
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            let mut round = [0.0; KINDS.len()];
            for (kind, value) in KINDS.iter().zip(&mut round) {
                let lab = Lab::new(*kind, false, folder, &tandemgw())?;
                *value = (figure.measure)(&lab, options)
                    .map_err(|error| format!("{}, {kind:?}: {error}", figure.name))?;
            }
            eprintln!("{}: {round:.1?}", figure.name);
            rounds.push(round);
        }
        report(figure, &rounds);
    }
    Ok(())
}

fn report(figure: &Figure, rounds: &[[f64; KINDS.len()]]) {
    let of = |value: &dyn Fn(&[f64; KINDS.len()]) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    print!("| {} |", figure.name);
    for kind in 0..KINDS.len() {
        print!(" {:.1} |", of(&|round| round[kind]));
    }
    let ratio = of(&|round| round[3] / round[figure.peer]);
    let is_met = match figure.more_is_better {
        true => ratio >= figure.goal,
        false => ratio <= figure.goal,
    };
    println!(
        " **{ratio:.2}** | {} {}: {} | {:.2} |",
        if figure.more_is_better { "≥" } else { "≤" },
        figure.goal,
        if is_met { "met" } else { "missed" },
        of(&|round| round[3] / round[1])
    );
}

/// Gbit/s of all streams together, and ms of the machine's CPUs a Gbit.
fn streams(lab: &Lab, count: u16, seconds: f64) -> Result<(f64, f64)> {
    let seconds = seconds.to_string();
    let addresses = (0..count).map(|stream| format!("{SERVER}:{}", 5001 + stream));
    let addresses: Vec<String> = addresses.collect();
    let mut sinks = Vec::new();
    for at in &addresses {
        let mut sink = lab.server.worker(&["tcp-sink", at], None)?;
        sink.line()?;
        sinks.push(sink);
    }
    let before = busy()?;
    let start = Instant::now();
    let mut senders = Vec::new();
    for to in &addresses {
        senders.push(lab.client.worker(&["tcp-blast", to, &seconds], None)?);
    }
    for sender in &mut senders {
        sender.line()?;
    }
    let mut bytes = 0.0;
    for sink in &mut sinks {
        bytes += sink.result("bytes")?;
    }
    let (elapsed, used) = (start.elapsed(), busy()? - before);
    let gbit = bytes * 8e-9;
    Ok((gbit / elapsed.as_secs_f64(), used * 1e3 / gbit))
}

/// Seconds that the machine's CPUs have worked.
fn busy() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().ok_or("an empty /proc/stat")?;
    let ticks = line.split_whitespace().skip(1).map(str::parse::<f64>);
    let ticks = ticks.collect::<std::result::Result<Vec<f64>, _>>()?;
    // Neither idle nor waiting for a disk; guests are in the time of users.
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    let all: f64 = ticks.iter().take(8).sum();
    Ok((all - idle) / 100.0)
}

/// Thousands of packets a second that arrive.
fn small_packets(lab: &Lab, options: &Options) -> Result<f64> {
    let to = SERVER.to_string();
    let mut echo = lab.server.worker(&["udp-echo", &to], None)?;
    echo.line()?;
    let mac = lab.gateway.mac_text("lan");
    let flows = options.flows.to_string();
    let blast = ["udp-blast", "eth0", &mac, &to, "--flows", &flows];
    // Each flow is answered, and earns its entry by some packets.
    const WARM_UP: Duration = Duration::from_secs(4);
    let packets = (options.flows * 20).to_string();
    let hello = ["--hello", "--packets", &packets, "--rate", "60000"];
    lab.client
        .worker(&[&blast[..], &hello].concat(), None)?
        .line()?;
    let seconds = (options.seconds + WARM_UP.as_secs_f64()).to_string();
    let arguments = [&blast[..], &["--seconds", &seconds]].concat();
    let mut sender = lab.client.worker(&arguments, Some(SENDER_CPU))?;
    std::thread::sleep(WARM_UP);
    let received = || lab.server.received("eth0").ok_or("no such interface");
    let (before, start) = (received()?, Instant::now());
    std::thread::sleep(Duration::from_secs_f64(options.seconds - 0.3));
    let (after, elapsed) = (received()?, start.elapsed());
    sender.line()?;
    Ok((after - before) as f64 / elapsed.as_secs_f64() / 1e3)
}

/// Thousands of sessions a second, each opened by one packet that arrives, over the first 200 000.
/// A redirect opens none: it is the limit.
fn new_sessions(lab: &Lab, options: &Options) -> Result<f64> {
    const FIRST: u64 = 1000;
    const SESSIONS: u64 = 200_000;
    let to = SERVER.to_string();
    let mac = lab.gateway.mac_text("lan");
    let flows = u64::MAX.to_string();
    let seconds = (options.seconds * 4.0).to_string();
    let blast = ["udp-blast", "eth0", &mac, &to, "--flows", &flows];
    let arguments = [&blast[..], &["--seconds", &seconds]].concat();
    let received = || lab.server.received("eth0").ok_or("no such interface");
    let before = received()?;
    let mut sender = lab.client.worker(&arguments, Some(SENDER_CPU))?;
    while received()? - before < FIRST && sender.runs()? {}
    let start = Instant::now();
    while received()? - before < FIRST + SESSIONS && sender.runs()? {
        std::thread::sleep(Duration::from_millis(5));
    }
    let opened = received()? - before - FIRST;
    Ok(opened as f64 / start.elapsed().as_secs_f64() / 1e3)
}

/// Connections a second, each of as many exchanges of a byte.
fn short(lab: &Lab, options: &Options, bytes: u64) -> Result<f64> {
    let at = format!("{SERVER}:5001");
    let mut echo = lab.server.worker(&["tcp-echo", &at], None)?;
    echo.line()?;
    let (seconds, bytes) = (options.seconds.to_string(), bytes.to_string());
    let arguments = ["tcp-short", &at, &seconds, &bytes];
    let mut client = lab.client.worker(&arguments, None)?;
    client.result("connections_s")
}

fn round_trip(lab: &Lab, options: &Options, of: &str) -> Result<f64> {
    let at = format!("{SERVER}:5001");
    let mut echo = lab.server.worker(&["tcp-echo", &at], None)?;
    echo.line()?;
    let seconds = options.seconds.to_string();
    let mut ping = lab.client.worker(&["tcp-ping", &at, &seconds], None)?;
    ping.result(of)
}
