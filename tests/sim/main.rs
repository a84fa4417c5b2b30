//! The deterministic simulation of the whole core: real gateways with election and replication,
//! hosts with flows, and everything that can go wrong between them, in virtual time.
//!
//! `TANDEMGW_SEEDS=n` tries more seeds; `TANDEMGW_SEED=x` replays one, and shows what happens in
//! it; `scripts/simulate` does the first with an optimized build.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod asymmetric;
mod attack;
mod calm;
mod checks;
mod compound;
mod copies;
mod cuts;
mod fast;
mod faults;
mod figures;
mod group_places;
mod groups;
mod guarantee;
mod hosts;
mod liar;
mod links;
mod members;
mod reigns;
mod reload;
mod scenario;
mod setup;
mod slots;
mod spanning_tree;
mod streams;
mod transport;
mod turn;
mod unhealed;
mod wires;
mod witness;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Seeds of an ordinary test run.
const SEEDS: u64 = 8;

/// An error in the log is a failure; with a replayed seed, all is shown.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if std::env::var_os("TANDEMGW_SEED").is_some() {
            eprintln!("             {} {}", record.level(), record.args());
        }
        assert!(record.level() > log::Level::Error, "{}", record.args());
    }

    fn flush(&self) {}
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

fn install_logger() {
    static LOGGER: Logger = Logger;
    if log::set_logger(&LOGGER).is_ok() {
        let verbose = std::env::var_os("TANDEMGW_SEED").is_some();
        log::set_max_level(if verbose {
            log::LevelFilter::Debug
        } else {
            log::LevelFilter::Error
        });
    }
}

/// Runs a scenario with each seed, and names those that fail: `most` seeds, or those that the
/// environment asks for.
fn try_seeds(most: u64, run: impl Fn(u64)) {
    install_logger();
    let first = number("TANDEMGW_FIRST").unwrap_or(0);
    let seeds = match number("TANDEMGW_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + number("TANDEMGW_SEEDS").unwrap_or(most),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        if catch_unwind(AssertUnwindSafe(|| run(seed))).is_err() {
            eprintln!("failing seed {seed}: replay it with TANDEMGW_SEED={seed}");
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "failing seeds: {failed:?}");
}

#[test]
fn sessions_survive_whatever_happens() {
    try_seeds(SEEDS, |seed| {
        scenario::run(seed);
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    install_logger();
    assert_eq!(scenario::run(3), scenario::run(3));
}
