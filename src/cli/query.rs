//! Commands that ask a running gateway through its control socket.

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tandemgw_core::config::Config;
use tandemgw_core::control::protocol::{HandoverDone, Request, Status};

use super::client::{Client, ClientError, PATIENCE, parse};
use super::{fail, status};

/// How long to wait for a gateway when checking whether it runs.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);

pub fn show_status(socket: Option<&Path>, json: bool) -> ExitCode {
    ask(socket, &Request::Status, json, |status: Status| {
        status::print(&status)
    })
}

pub fn failover(socket: Option<&Path>, json: bool, request: Request) -> ExitCode {
    let mut refused = false;
    let code = ask_lines(socket, &request, |line| {
        let done: HandoverDone = parse(line)?;
        let HandoverDone {
            group, to, took_ms, ..
        } = &done;
        refused |= done.refused.is_some();
        match &done.refused {
            _ if json => print_line(line)?,
            None => print_line(&format!(
                "{to} is now primary of group {group}, after {took_ms:.1} ms"
            ))?,
            Some(reason) => {
                fail(1, format!("group {group} was not handed over: {reason}"));
            }
        }
        Ok(())
    });
    if refused { ExitCode::FAILURE } else { code }
}

/// The status of the gateway of this config, if it runs: its control socket answers with its name.
pub fn status_of(config: &Config) -> Option<Status> {
    let path = config.node.control_socket.as_path();
    let mut client = Client::connect(Some(path), SHORT_PATIENCE).ok()?;
    let status = client.status().ok()?;
    (status.node == config.node.name).then_some(status)
}

/// Sends a request whose answer is lines of `T`. Copies them to stdout (`json`), or passes each to
/// `print`.
pub fn ask<T: DeserializeOwned>(
    socket: Option<&Path>,
    request: &Request,
    json: bool,
    mut print: impl FnMut(T) -> io::Result<()>,
) -> ExitCode {
    ask_lines(socket, request, |line| {
        match json {
            true => print_line(line)?,
            false => print(parse(line)?)?,
        }
        Ok(())
    })
}

/// Sends a request and passes each line of the answer to `each`.
pub fn ask_lines(
    socket: Option<&Path>,
    request: &Request,
    each: impl FnMut(&str) -> Result<(), ClientError>,
) -> ExitCode {
    let client = Client::connect(socket, PATIENCE);
    match client.and_then(|mut client| client.ask(request, each)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough.
        Err(ClientError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => fail(error.code(), error),
    }
}

/// Copies a line of the answer to stdout.
pub fn print_line(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}
