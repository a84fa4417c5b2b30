//! Commands that ask a running gateway through its control socket.

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tandemgw_core::config::Config;

use super::client::{Client, ClientError, PATIENCE};
use super::{fail, status};

/// How long a gateway may take to answer whether it runs.
const SHORT_PATIENCE: Duration = Duration::from_secs(2);

pub fn show_status(socket: Option<&Path>, json: bool) -> ExitCode {
    ask(socket, &json!({ "command": "status" }), |line| {
        if json {
            print_line(line)
        } else {
            status::print(&serde_json::from_str(line)?)
        }
    })
}

pub fn failover(
    socket: Option<&Path>,
    json: bool,
    group: Option<String>,
    to: Option<String>,
) -> ExitCode {
    let request = json!({ "command": "failover", "group": group, "to": to });
    let mut refused = false;
    let code = ask(socket, &request, |line| {
        let value: Value = serde_json::from_str(line)?;
        let (group, to) = (&value["group"], &value["to"]);
        let [group, to] = [group, to].map(|name| name.as_str().unwrap_or("-"));
        let reason = value["refused"].as_str();
        refused |= reason.is_some();
        match reason {
            _ if json => print_line(line),
            None => {
                let took = value["took_ms"].as_f64().unwrap_or_default();
                print_line(&format!(
                    "{to} is now primary of group {group}, after {took:.1} ms"
                ))
            }
            Some(reason) => {
                fail(1, format!("group {group} was not handed over: {reason}"));
                Ok(())
            }
        }
    });
    if refused { ExitCode::FAILURE } else { code }
}

/// The status of the gateway of this config, if it runs: its control socket answers with its name.
pub fn status_of(config: &Config) -> Option<Value> {
    let path = config.node.control_socket.as_path();
    let mut client = Client::connect(Some(path), SHORT_PATIENCE).ok()?;
    let status = client.ask_one(&json!({ "command": "status" })).ok()?;
    (status["node"] == config.node.name.as_str()).then_some(status)
}

/// Sends a request and hands each line of the answer to `each`.
pub fn ask(
    socket: Option<&Path>,
    request: &Value,
    each: impl FnMut(&str) -> io::Result<()>,
) -> ExitCode {
    let client = Client::connect(socket, PATIENCE);
    match client.and_then(|mut client| client.ask(request, each)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough.
        Err(ClientError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => fail(error.code(), error),
    }
}

/// Passes a line of the answer on, for programs.
pub fn print_line(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}
