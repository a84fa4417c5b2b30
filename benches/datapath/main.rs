//! Throughput of the whole process beside what is physically possible and what the kernel does:
//! `cargo bench --bench datapath -- [tcp|udp|new-sessions|all]`. Needs root, or `unshare -rn`.
//!
//! Each run builds a new network, in namespaces that vanish with this process; the gateways take
//! turns, so that a change of the machine's pace hits all of them, and the best run counts.
//!
//! What is fair about it and what is not:
//!
//! - Gateways in a process have a CPU of their own; the kernel's forward on the CPU of the sender,
//!   and pay for sending, while the other one is idle: the ratio to masquerade is not one of CPU
//!   time.
//! - All of them pay for the server's reception, which ends in a drop at its ingress.
//! - `bare` reads and writes as tandemgw does and in the same kernel settings; it does not read
//!   ahead.
//! - A new session counts when its first packet arrives. Afterwards the table of the gateway must
//!   hold as many sessions as packets arrived, or the row says so: a kernel whose
//!   `nf_conntrack_max` is reached drops or replaces. For `--sessions` beyond it raise that, and
//!   `nf_conntrack_buckets` to the same number, in the first namespace: they are the same for all
//!   namespaces.
//! - Tables begin empty, so the cost of their growth is in it. Sessions end after the measurement.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use testkit::system::datapath::{Forwarder, Lab, SENDER_CPU, SERVER};
use testkit::system::worker::Result;

#[derive(Parser)]
struct Options {
    /// The measurement to make.
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// Which gateways take part.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "bare,kernel,masquerade,tandemgw"
    )]
    kinds: Vec<Forwarder>,
    /// Runs of each, of which the best counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Length of a run.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Established UDP sessions.
    #[arg(long, default_value_t = 10_000)]
    flows: u64,
    /// New sessions of a run.
    #[arg(long, default_value_t = 200_000)]
    sessions: u64,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// One TCP stream.
    Tcp,
    /// Small UDP packets of established sessions.
    Udp,
    /// UDP packets each of which opens a session.
    NewSessions,
    /// All of them.
    All,
}

/// One run.
#[derive(Clone, Copy)]
struct Sample {
    /// Gbit/s, or packets a second.
    rate: f64,
    /// Packets a second of both directions, super-packets counted once.
    packets: f64,
    /// CPU time of the gateway's process a packet, in µs.
    cpu: Option<f64>,
    /// CPU time of the gateway's process by the time that passed: 1 if it was what set the pace.
    load: Option<f64>,
}

/// The binary under test.
pub fn tandemgw() -> PathBuf {
    testkit::system::bench::binary(env!("CARGO_BIN_EXE_tandemgw"))
}

fn main() -> ExitCode {
    testkit::system::worker::prefer_this_process();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next().as_deref() {
        Some("worker") => testkit::system::traffic::Worker::parse_from(arguments).run(),
        _ => drive(&Options::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("datapath: {error}");
            ExitCode::FAILURE
        }
    }
}

fn drive(options: &Options) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("datapath-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let to_remove = folder.clone();
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGINT, libc::SIGTERM])?;
    std::thread::spawn(move || {
        signals.forever().next();
        // Processes and namespaces go with this one.
        let _ = std::fs::remove_dir_all(to_remove);
        std::process::exit(130);
    });
    let result = measure_all(options, &folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn measure_all(options: &Options, folder: &Path) -> Result<()> {
    for what in [What::Tcp, What::Udp, What::NewSessions] {
        if options.what != what && options.what != What::All {
            continue;
        }
        let mut best: Vec<Option<Sample>> = vec![None; options.kinds.len()];
        for run in 0..options.runs {
            for (kind, best) in options.kinds.iter().zip(&mut best) {
                let sample = measure(what, *kind, options, folder)
                    .map_err(|error| format!("{kind:?}: {error}"))?;
                eprintln!("run {run} {kind:?}: {:.2}", sample.rate);
                if best.is_none_or(|best| sample.rate > best.rate) {
                    *best = Some(sample);
                }
            }
        }
        report(what, &options.kinds, &best);
    }
    Ok(())
}

fn measure(what: What, kind: Forwarder, options: &Options, folder: &Path) -> Result<Sample> {
    let lab = Lab::new(kind, what != What::Tcp, folder, &tandemgw())?;
    match what {
        What::Tcp => tcp(&lab, options.seconds),
        What::Udp => udp(&lab, options),
        What::NewSessions | What::All => new_sessions(&lab, options),
    }
}

fn tcp(lab: &Lab, seconds: f64) -> Result<Sample> {
    let to = format!("{SERVER}:5001");
    let mut sink = lab.server.worker(&["tcp-sink", &to], None)?;
    sink.line()?;
    let meter = Meter::start(lab)?;
    let seconds = seconds.to_string();
    let mut blast = lab.client.worker(&["tcp-blast", &to, &seconds], None)?;
    blast.line()?;
    let rate = sink.result("gbit_s")?;
    let sample = meter.stop(lab)?;
    Ok(Sample { rate, ..sample })
}

fn udp(lab: &Lab, options: &Options) -> Result<Sample> {
    let to = SERVER.to_string();
    let mut echo = lab.server.worker(&["udp-echo", &to], None)?;
    echo.line()?;
    let mac = lab.gateway.mac_text("lan");
    let flows = options.flows.to_string();
    let blast = ["udp-blast", "eth0", &mac, &to, "--flows", &flows];

    establish(lab, &blast, options.flows)?;

    let seconds = options.seconds.to_string();
    let arguments = [&blast[..], &["--seconds", &seconds]].concat();
    let mut sender = lab.client.worker(&arguments, Some(SENDER_CPU))?;
    // Past the start of the processes.
    std::thread::sleep(Duration::from_millis(100));
    let meter = Meter::start(lab)?;
    sender.line()?;
    meter.stop(lab)
}

/// Has each flow answered once, so that its session is established.
fn establish(lab: &Lab, blast: &[&str], flows: u64) -> Result<()> {
    /// On a busy machine packets are lost.
    const ROUNDS: usize = 10;
    let packets = flows.to_string();
    let hello = ["--hello", "--packets", &packets, "--rate", "20000"];
    let mut answers = 0;
    for _ in 0..ROUNDS {
        let before = lab.client.received("eth0").ok_or("no such interface")?;
        let mut greeting = lab.client.worker(&[blast, &hello].concat(), None)?;
        greeting.line()?;
        std::thread::sleep(Duration::from_millis(200));
        answers = lab.client.received("eth0").ok_or("no such interface")? - before;
        if answers * 100 >= flows * 99 {
            return Ok(());
        }
    }
    Err(format!("{answers} of {flows} sessions were answered").into())
}

/// Ends after as many sessions as were asked for.
fn new_sessions(lab: &Lab, options: &Options) -> Result<Sample> {
    let to = SERVER.to_string();
    let mut echo = lab.server.worker(&["udp-echo", &to], None)?;
    echo.line()?;
    let mac = lab.gateway.mac_text("lan");
    let flows = u64::MAX.to_string();
    let arguments = ["udp-blast", "eth0", &mac, &to, "--flows", &flows];
    let before = lab.server.received("eth0").ok_or("no such interface")?;
    let mut sender = lab.client.worker(&arguments, Some(SENDER_CPU))?;
    while lab.server.received("eth0").ok_or("no such interface")? - before < 1000
        && sender.runs()?
    {}
    let meter = Meter::start(lab)?;
    while lab.server.received("eth0").ok_or("no such interface")? - before < options.sessions
        && sender.runs()?
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sample = meter.stop(lab)?;
    let arrived = lab.server.received("eth0").ok_or("no such interface")? - before;
    if let Some(held) = lab.sessions()?
        && held * 100 < arrived * 99
    {
        eprintln!("{arrived} packets arrived, but only {held} sessions are in the table");
    }
    Ok(sample)
}

/// Packets that have arrived and their cost, since a point in time.
struct Meter {
    start: Instant,
    cpu: Option<Duration>,
    server: u64,
    client: u64,
}

impl Meter {
    fn start(lab: &Lab) -> Result<Meter> {
        let client = lab.client.received("eth0").ok_or("no such interface")?;
        let cpu = lab.cpu_time()?;
        // These two make the rate, so nothing may come between them.
        let server = lab.server.received("eth0").ok_or("no such interface")?;
        let start = Instant::now();
        Ok(Meter {
            start,
            cpu,
            server,
            client,
        })
    }

    fn stop(&self, lab: &Lab) -> Result<Sample> {
        let now = Meter::start(lab)?;
        let seconds = (now.start - self.start).as_secs_f64();
        let arrived = (now.server - self.server) as f64;
        let packets = arrived + (now.client - self.client) as f64;
        let cpu = now.cpu.zip(self.cpu).map(|(now, then)| now - then);
        Ok(Sample {
            rate: arrived / seconds,
            packets: packets / seconds,
            cpu: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / packets),
            load: cpu.map(|cpu| cpu.as_secs_f64() / seconds),
        })
    }
}

fn report(what: What, kinds: &[Forwarder], best: &[Option<Sample>]) {
    let (title, unit) = match what {
        What::Tcp => ("One TCP stream", "Gbit/s"),
        What::Udp => ("Small UDP packets of established sessions", "packets/s"),
        What::NewSessions | What::All => ("New UDP sessions", "sessions/s"),
    };
    println!("\n### {title}\n");
    println!("| gateway | {unit} | packets/s | CPU µs a packet | CPU % |");
    println!("|---|---:|---:|---:|---:|");
    for (kind, sample) in kinds.iter().zip(best) {
        let Some(sample) = sample else { continue };
        let (rate, packets) = (sample.rate, sample.packets);
        let rate = if what == What::Tcp {
            format!("{rate:.2}")
        } else {
            format!("{rate:.0}")
        };
        let cpu = sample.cpu.map_or("-".into(), |cpu| format!("{cpu:.2}"));
        let load = sample
            .load
            .map_or("-".into(), |load| format!("{:.0}", load * 100.0));
        println!("| {kind:?} | {rate} | {packets:.0} | {cpu} | {load} |");
    }
    println!();
    let of = |kind| {
        kinds
            .iter()
            .position(|k| *k == kind)
            .and_then(|index| best[index])
    };
    let (tandemgw, bare, masquerade) = (
        of(Forwarder::Tandemgw),
        of(Forwarder::Bare),
        of(Forwarder::Masquerade),
    );
    let cpu = |sample: Option<Sample>| sample.and_then(|sample| sample.cpu);
    let rate = |sample: Option<Sample>| sample.map(|sample| sample.rate);
    match what {
        What::Tcp => ratio("rate / bare loop", rate(tandemgw), rate(bare), 0.95..),
        What::Udp => {
            ratio("rate / bare loop", rate(tandemgw), rate(bare), 0.9..);
            ratio(
                "CPU a packet / bare loop",
                cpu(tandemgw),
                cpu(bare),
                ..=1.15,
            );
        }
        What::NewSessions | What::All => {
            ratio("rate / masquerade", rate(tandemgw), rate(masquerade), 1.5..);
        }
    }
}

fn ratio(
    name: &str,
    ours: Option<f64>,
    reference: Option<f64>,
    target: impl std::ops::RangeBounds<f64> + std::fmt::Debug,
) {
    let (Some(ours), Some(reference)) = (ours, reference) else {
        return;
    };
    let ratio = ours / reference;
    let verdict = if target.contains(&ratio) {
        "met"
    } else {
        "MISSED"
    };
    println!("- {name}: **{ratio:.2}** (target {target:?}: {verdict})");
}
