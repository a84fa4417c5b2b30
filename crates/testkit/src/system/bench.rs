//! What benchmarks of the datapath begin and end with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use super::traffic;
use super::worker::{Result, prefer_this_process};

/// The binary under test: the one that was built, unless `TANDEMGW` names another.
pub fn binary(built: &str) -> PathBuf {
    match std::env::var_os("TANDEMGW") {
        Some(path) => path.into(),
        None => built.into(),
    }
}

/// Runs the benchmark of that name, with a folder that goes with it; or one of its workers, each of
/// which is another process of the same binary.
pub fn run<Options: Parser>(
    name: &str,
    measure: impl FnOnce(&Options, &Path) -> Result<()>,
) -> ExitCode {
    prefer_this_process();
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next().as_deref() {
        Some("worker") => traffic::Worker::parse_from(arguments).run(),
        _ => in_a_folder(name, &Options::parse(), measure),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn in_a_folder<Options>(
    name: &str,
    options: &Options,
    measure: impl FnOnce(&Options, &Path) -> Result<()>,
) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let result = measure(options, &folder);
    std::fs::remove_dir_all(&folder)?;
    result
}
