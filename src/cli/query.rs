//! Commands that ask a running gateway through its control socket.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tandemgw::config::Config;

use super::status;
use super::{EXIT_NOT_RUNNING, fail};

/// Where gateways put their sockets unless told otherwise.
const SOCKET_FOLDER: &str = "/run/tandemgw";

/// How long a gateway may take to answer whether it runs.
const PATIENCE: Duration = Duration::from_secs(2);

pub fn show_status(socket: Option<&Path>, json: bool) -> ExitCode {
    ask(socket, &json!({ "command": "status" }), |line| {
        if json {
            print_line(line)
        } else {
            print_status(line)
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
    let mut refused = None;
    let code = ask(socket, &request, |line| {
        let value: Value = serde_json::from_str(line)?;
        let text = |key: &str| value[key].as_str().unwrap_or("-").to_owned();
        match value["refused"].as_str() {
            _ if json => print_line(line)?,
            None => println!(
                "{} is now primary of group {}, after {:.1} ms",
                text("to"),
                text("group"),
                value["took_ms"].as_f64().unwrap_or_default()
            ),
            Some(reason) => {
                refused = Some(format!(
                    "group {} was not handed over: {reason}",
                    text("group")
                ));
            }
        }
        Ok(())
    });
    match refused {
        Some(sentence) => fail(1, sentence),
        None => code,
    }
}

/// Whether the gateway of this config runs: its control socket answers with its name.
pub fn is_running(config: &Config) -> bool {
    let name = || -> Option<String> {
        let mut stream = UnixStream::connect(&config.node.control_socket).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        writeln!(stream, "{}", json!({ "command": "status" })).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        let status: Value = serde_json::from_str(&line).ok()?;
        Some(status["node"].as_str()?.to_owned())
    };
    name().is_some_and(|name| name == config.node.name)
}

/// Sends a request and hands each line of the answer to `each`.
pub fn ask(
    socket: Option<&Path>,
    request: &Value,
    mut each: impl FnMut(&str) -> io::Result<()>,
) -> ExitCode {
    let (path, mut stream) = match connect(socket) {
        Ok(connected) => connected,
        Err(sentence) => return fail(EXIT_NOT_RUNNING, sentence),
    };
    let answer = writeln!(stream, "{request}").and_then(|()| {
        for line in BufReader::new(stream).lines() {
            let line = line?;
            if is_end(&line) {
                return Ok(None);
            }
            if let Some(error) = refusal(&line) {
                return Ok(Some(error));
            }
            each(&line)?;
        }
        Err(io::Error::new(
            ErrorKind::UnexpectedEof,
            "the gateway closed the connection",
        ))
    });
    match answer {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(error)) => fail(1, error),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(1, format!("{}: {error}", path.display())),
    }
}

/// Connects to the control socket at `socket`, or to the only one that there is.
///
/// # Errors
/// A sentence that says why no gateway can be asked.
pub fn connect(socket: Option<&Path>) -> Result<(PathBuf, UnixStream), String> {
    let path = socket.map_or_else(only_socket, |path| Ok(path.to_owned()))?;
    match UnixStream::connect(&path) {
        Ok(stream) => Ok((path, stream)),
        Err(error) => Err(connect_error(&path, &error)),
    }
}

/// Whether this line ends an answer.
pub fn is_end(line: &str) -> bool {
    line == r#"{"done":true}"#
}

/// Why the gateway refuses, if this line says so.
pub fn refusal(line: &str) -> Option<String> {
    if !line.starts_with(r#"{"error":"#) {
        return None;
    }
    let value: Value = serde_json::from_str(line).ok()?;
    Some(value["error"].as_str()?.to_owned())
}

/// The socket of the only gateway that there is.
fn only_socket() -> Result<PathBuf, String> {
    let none = format!(
        "no running gateway: there is no socket in {SOCKET_FOLDER}; name one with --socket"
    );
    let Ok(entries) = std::fs::read_dir(SOCKET_FOLDER) else {
        return Err(none);
    };
    let mut sockets: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "sock")
        })
        .collect();
    match sockets.len() {
        0 => Err(none),
        1 => Ok(sockets.remove(0)),
        _ => {
            let names: Vec<String> = sockets
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Err(format!(
                "several gateways run here; choose with --socket: {}",
                names.join(", ")
            ))
        }
    }
}

fn connect_error(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => format!("no running gateway: {path} does not exist"),
        ErrorKind::ConnectionRefused => format!("no running gateway: nobody listens at {path}"),
        ErrorKind::PermissionDenied => {
            format!("no permission to use {path}: run this as the user of the gateway (root)")
        }
        _ => format!("{path}: {error}"),
    }
}

/// Passes a line of the answer on, for programs.
pub fn print_line(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

fn print_status(line: &str) -> io::Result<()> {
    status::print(&serde_json::from_str(line)?, &mut io::stdout().lock())
}
