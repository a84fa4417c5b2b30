//! The cost of a takeover, beside keepalived + conntrackd in the same lab and the same run: `cargo
//! bench --bench failover -- [ROW…]`. Needs root, or `unshare -rn` for tandemgw alone.
//!
//! Each run builds a new network, in namespaces that vanish with this process; the kinds of gateway
//! take turns. Clients and servers run at real-time priority: on a busy machine the figures are
//! those of the gateways still, but not the best ones.

mod cluster;
mod compound;
mod keepalived;
mod load;
mod multicast;
mod pair;
mod takeover;
mod workers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use pair::{Event, Kind};
use testkit::system::worker::Result;

#[derive(Parser)]
struct Options {
    /// The rows to measure; all of them if none is named.
    #[arg(value_enum)]
    rows: Vec<Row>,
    /// Which gateways take part.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "tandemgw,keepalived"
    )]
    kinds: Vec<Kind>,
    /// Runs of each; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Seconds in which no takeover may happen.
    #[arg(long, default_value_t = 60)]
    calm: u64,
    /// Sessions that a unit that joins has to get.
    #[arg(long, default_value_t = 1_000_000)]
    snapshot_sessions: u64,
    /// Runs of the row `dual`; the worst counts.
    #[arg(long, default_value_t = 100)]
    dual_runs: usize,
    /// How the primary ends in the row `offloaded`; in all ways if none is named.
    #[arg(long, value_enum, value_delimiter = ',')]
    events: Vec<Event>,
    /// Leaves configs and logs of the last run in this folder.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Row {
    /// The primary loses power.
    GapPower,
    /// The primary is stopped, its links stay up.
    GapFreeze,
    /// The primary's process is killed.
    GapKill,
    /// The primary hands over.
    Handover,
    /// The primary ends while its kernel forwards 50 000 sessions, beside the same without.
    Offloaded,
    /// Sessions that do not survive the primary.
    Sessions,
    /// The rate at which new sessions reach the other unit, and its cost.
    Replication,
    /// A unit joins.
    Snapshot,
    /// One TCP stream, with a peer and without.
    Throughput,
    /// Sessions that were being opened when the primary died.
    Strict,
    /// Takeovers without a reason.
    False,
    /// Sessions lost where two things go wrong.
    Faults,
    /// Two primaries beside each other.
    Dual,
    /// Many groups move at once.
    Groups,
    /// Four units are restarted.
    Rolling,
    /// The cost of more peers for the owner of a session.
    Copies,
    /// A stream to many while the primary ends.
    Multicast,
}

/// A line of the table.
struct Figure {
    what: String,
    unit: &'static str,
    /// The target value for our gateway.
    target: Target,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

#[derive(Clone, Copy)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Only told.
    None,
}

/// The binary under test.
pub fn tandemgw() -> PathBuf {
    testkit::system::bench::binary(env!("CARGO_BIN_EXE_tandemgw"))
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next().as_deref() {
        Some("worker") => workers::Worker::parse_from(arguments).run(),
        _ => drive(&Options::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failover: {error}");
            ExitCode::FAILURE
        }
    }
}

fn drive(options: &Options) -> Result<()> {
    let temporary = std::env::temp_dir().join(format!("failover-{}", std::process::id()));
    let folder = options.keep.clone().unwrap_or_else(|| temporary.clone());
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGINT, libc::SIGTERM])?;
    let to_remove = temporary.clone();
    std::thread::spawn(move || {
        signals.forever().next();
        // Processes and namespaces go with this one.
        let _ = std::fs::remove_dir_all(to_remove);
        std::process::exit(130);
    });
    let rows = match &options.rows[..] {
        [] => Row::value_variants(),
        some => some,
    };
    let mut figures = vec![];
    let mut failed = None;
    for row in rows {
        match measure(*row, options, &folder) {
            Ok(more) => figures.extend(more),
            // Earlier measurements are still worth a table.
            Err(error) => {
                eprintln!("{row:?}: {error}");
                failed = Some(error);
            }
        }
    }
    let _ = std::fs::remove_dir_all(&temporary);
    report(&figures);
    failed.map_or(Ok(()), Err)
}

fn measure(row: Row, options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    match row {
        Row::GapPower => takeover::gap(options, folder, Event::Power, "primary loses power", 5.0),
        Row::GapFreeze => takeover::gap(options, folder, Event::Freeze, "primary is frozen", 10.0),
        Row::GapKill => takeover::gap(options, folder, Event::Kill, "primary is killed", 3.0),
        Row::Handover => takeover::handover(options, folder),
        Row::Offloaded => takeover::offloaded(options, folder),
        Row::Sessions => takeover::sessions(options, folder, false),
        Row::Strict => takeover::sessions(options, folder, true),
        Row::Replication => load::replication(options, folder),
        Row::Snapshot => load::snapshot(options, folder),
        Row::Throughput => load::throughput(options, folder),
        Row::False => load::calm(options, folder),
        Row::Faults => compound::faults(options, folder),
        Row::Dual => compound::dual(options, folder),
        Row::Groups => compound::groups(options, folder),
        Row::Rolling => compound::rolling(options, folder),
        Row::Copies => compound::copies(options, folder),
        Row::Multicast => multicast::gaps(options, folder),
    }
}

fn report(figures: &[Figure]) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    println!("\n### Takeover and replication, load average {load} at the end\n");
    println!("| event | target | tandemgw | verdict | keepalived + conntrackd | all values |");
    println!("|---|---|---:|---|---:|---|");
    for figure in figures {
        let (ours, theirs) = (median(&figure.ours), median(&figure.theirs));
        let with_unit = |value: Option<f64>| {
            value.map_or("-".into(), |value| {
                format!("{} {}", show(value), figure.unit)
            })
        };
        println!(
            "| {} | {} | {} | {} | {} | {} / {} |",
            figure.what,
            figure.target.show(figure.unit),
            with_unit(ours),
            figure.target.verdict(ours),
            with_unit(theirs),
            show_all(&figure.ours),
            show_all(&figure.theirs),
        );
    }
    println!(
        "\nThe median of all runs counts. `-` in place of a figure: not measured. When its processes are \
         killed or frozen, keepalived's kernel goes on forwarding; tandemgw forwards in the process."
    );
}

impl Figure {
    fn new(what: impl Into<String>, unit: &'static str, target: Target) -> Figure {
        Figure {
            what: what.into(),
            unit,
            target,
            ours: vec![],
            theirs: vec![],
        }
    }

    fn add(&mut self, kind: Kind, value: f64) {
        eprintln!("{} {kind:?}: {} {}", self.what, show(value), self.unit);
        match kind {
            Kind::Tandemgw => self.ours.push(value),
            Kind::Keepalived => self.theirs.push(value),
        }
    }
}

impl Target {
    fn show(self, unit: &str) -> String {
        match self {
            Target::AtMost(limit) => format!("≤ {} {unit}", show(limit)),
            Target::AtLeast(limit) => format!("≥ {} {unit}", show(limit)),
            Target::None => "-".into(),
        }
    }

    fn verdict(self, value: Option<f64>) -> &'static str {
        let met = match (self, value) {
            (Target::None, _) | (_, None) => return "-",
            (Target::AtMost(limit), Some(value)) => value <= limit,
            (Target::AtLeast(limit), Some(value)) => value >= limit,
        };
        if met { "met" } else { "MISSED" }
    }
}

/// The middle one; of an even number the worse of the two in the middle of an ascending measure.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn show(value: f64) -> String {
    match value {
        _ if value.fract() == 0.0 || value.abs() >= 1000.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

fn show_all(values: &[f64]) -> String {
    match values {
        [] => "-".into(),
        _ => values
            .iter()
            .map(|v| show(*v))
            .collect::<Vec<_>>()
            .join(" "),
    }
}
