//! Multicast beside the gateway's own unicast, and beside the kernel with smcroute: `cargo bench
//! --bench multicast`. Needs root.
//!
//! Small datagrams of one stream go to one port that has a member. In each round all forwarders are
//! measured once, in new namespaces; what counts is the median of the ratios of each round.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;

use testkit::system::bench;
use testkit::system::datapath::{Forwarder, Lab, Launch, SENDER_CPU, SERVER};
use testkit::system::worker::{Result, Worker};

#[derive(Parser)]
struct Options {
    /// Rounds, of which the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

const GROUP: &str = "239.1.1.1";
/// That of the group on an Ethernet (RFC 1112, section 6.4).
const GROUP_MAC: &str = "01:00:5e:01:01:01";
/// The member is one by config, so that no answer of a host can be late.
const POLICY: &str = r#"
[[multicast-policy]]
name = "stream"
from = ["lan"]
to = ["wan"]
group = ["239.1.1.0/24"]
action = "accept"

[[multicast-join]]
port = "wan"
group = "239.1.1.1"
"#;

/// Who forwards what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Multicast,
    Unicast,
    Smcroute,
}

const KINDS: [Kind; 3] = [Kind::Multicast, Kind::Unicast, Kind::Smcroute];
/// Packets a second that are offered; as many as go if 0.
const RATES: [u64; 2] = [200_000, 0];

fn tandemgw() -> PathBuf {
    bench::binary(env!("CARGO_BIN_EXE_tandemgw"))
}

fn main() -> ExitCode {
    bench::run("multicast", measure_all)
}

/// What one forwarder does.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Thousands of packets a second that arrive.
    kpps: f64,
    /// CPU of the gateway's process for each, in µs.
    cpu: Option<f64>,
}

fn measure_all(options: &Options, folder: &Path) -> Result<()> {
    println!(
        "| offered | multicast, kpps | unicast | smcroute | multicast / unicast | µs a packet |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    for rate in RATES {
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            let mut round = Vec::new();
            for kind in KINDS {
                let seen = measure(kind, rate, options, folder)
                    .map_err(|error| format!("{kind:?}: {error}"))?;
                round.push(seen);
            }
            eprintln!("{rate}: {round:.1?}");
            rounds.push(round);
        }
        report(rate, &rounds);
    }
    Ok(())
}

fn report(rate: u64, rounds: &[Vec<Seen>]) {
    let median = |value: &dyn Fn(&[Seen]) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(|round| value(round)).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let offered = match rate {
        0 => "flat out".to_owned(),
        rate => format!("{} kpps", rate / 1000),
    };
    print!("| {offered} |");
    (0..KINDS.len()).for_each(|kind| print!(" {:.0} |", median(&|round| round[kind].kpps)));
    let ratio = median(&|round| round[0].kpps / round[1].kpps);
    let cpu = |kind: usize| median(&|round| round[kind].cpu.unwrap_or_default());
    println!(
        " **{ratio:.2}** (≥ 0.9: {}) | {:.2}, unicast {:.2} |",
        if ratio >= 0.9 { "met" } else { "missed" },
        cpu(0),
        cpu(1)
    );
}

fn measure(kind: Kind, rate: u64, options: &Options, folder: &Path) -> Result<Seen> {
    let launch = Launch {
        config: POLICY,
        ..Launch::of(&tandemgw())
    };
    let forwarder = match kind {
        Kind::Smcroute => Forwarder::Kernel,
        _ => Forwarder::Tandemgw,
    };
    let lab = Lab::launched(forwarder, false, folder, &launch)?;
    let _smcroute = match kind {
        Kind::Smcroute => Some(smcroute(&lab, folder)?),
        _ => None,
    };
    let unicast = (lab.gateway.mac_text("lan"), SERVER.to_string());
    let (mac, to) = match kind {
        Kind::Unicast => unicast,
        _ => (GROUP_MAC.to_owned(), GROUP.to_owned()),
    };
    const WARM_UP: Duration = Duration::from_millis(500);
    let seconds = (options.seconds + 2.0 * WARM_UP.as_secs_f64()).to_string();
    let rate = rate.to_string();
    let blast = ["udp-blast", "eth0", &mac, &to, "--flows", "1"];
    let arguments = [&blast[..], &["--seconds", &seconds, "--rate", &rate]].concat();
    let mut sender = lab.client.worker(&arguments, Some(SENDER_CPU))?;
    std::thread::sleep(WARM_UP);
    let received = || lab.server.received("eth0").ok_or("no such interface");
    let (before, cpu, start) = (received()?, lab.cpu_time()?, Instant::now());
    std::thread::sleep(Duration::from_secs_f64(options.seconds));
    let (after, used, elapsed) = (received()?, lab.cpu_time()?, start.elapsed());
    sender.line()?;
    let packets = (after - before) as f64;
    if packets == 0.0 {
        return Err("nothing arrives".into());
    }
    let used = cpu.zip(used).map(|(before, after)| after - before);
    Ok(Seen {
        kpps: packets / elapsed.as_secs_f64() / 1e3,
        cpu: used.map(|used| used.as_secs_f64() * 1e6 / packets),
    })
}

/// The kernel's multicast routing, with a static route.
fn smcroute(lab: &Lab, folder: &Path) -> Result<Worker> {
    let config = folder.join("smcroute.conf");
    let text = format!("mgroup from lan group {GROUP}\nmroute from lan group {GROUP} to wan\n");
    std::fs::write(&config, text)?;
    let mut command = Command::new("smcrouted");
    command.args(["-n", "-s", "-f"]).arg(&config);
    command.arg("-P").arg(folder.join("smcroute.pid"));
    command.arg("-u").arg(folder.join("smcroute.sock"));
    command.stdout(Stdio::null());
    let worker = lab.gateway.start(&mut command, None).map_err(|error| {
        format!("{error}; install Debian's smcroute: the bench compares with it")
    })?;
    std::thread::sleep(Duration::from_millis(500));
    Ok(worker)
}
