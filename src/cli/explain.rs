//! `tandemgw explain`.

use std::path::Path;
use std::process::ExitCode;

use super::fail;

pub fn explain(
    _socket: Option<&Path>,
    _json: bool,
    _protocol: String,
    _source: String,
    _destination: String,
    _in_port: String,
) -> ExitCode {
    fail(1, "not there yet")
}
