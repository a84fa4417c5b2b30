//! `tandemgw capture`.

use std::path::Path;
use std::process::ExitCode;

use super::fail;

pub fn capture(
    _socket: Option<&Path>,
    _write: &Path,
    _count: Option<u64>,
    _filter: Vec<String>,
) -> ExitCode {
    fail(1, "not there yet")
}
