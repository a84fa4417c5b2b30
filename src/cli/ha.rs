//! `tandemgw ha`.

use std::path::Path;
use std::process::ExitCode;

use super::fail;

pub fn set(
    _socket: Option<&Path>,
    _json: bool,
    _key: String,
    _value: String,
    _save: bool,
) -> ExitCode {
    fail(1, "not there yet")
}
