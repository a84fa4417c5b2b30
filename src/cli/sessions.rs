//! `tandemgw sessions`: the session table, and the end of some of them.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use tandemgw_core::config::did_you_mean;

use super::query::{ask, print_line};
use super::table::{Table, bytes, count, duration};
use super::{fail, say};

const HEADERS: [&str; 9] = [
    "PROTO",
    "SOURCE",
    "DESTINATION",
    "TRANSLATED",
    "STATE",
    "POLICY",
    "EXPIRES",
    "PACKETS",
    "BYTES",
];

pub fn list(
    socket: Option<&Path>,
    json: bool,
    limit: Option<u64>,
    filter: Vec<String>,
) -> ExitCode {
    if let Some(hint) = misspelt_command(&filter) {
        return fail(2, hint);
    }
    let request = json!({ "command": "sessions", "limit": limit, "filter": filter });
    if json {
        let mut out = BufWriter::new(io::stdout().lock());
        let code = ask(socket, &request, |line| writeln!(out, "{line}"));
        return flushed(out.flush(), code);
    }
    let mut table = Table::new(&HEADERS);
    let code = ask(socket, &request, |line| table.stream(session_row(line)?));
    match code == ExitCode::SUCCESS {
        true => flushed(table.print(), code),
        false => code,
    }
}

pub fn clear(socket: Option<&Path>, json: bool, all: bool, filter: Vec<String>) -> ExitCode {
    let request = json!({ "command": "clear", "filter": filter, "all": all });
    ask(socket, &request, |line| match json {
        true => print_line(line),
        false => print_cleared(line),
    })
}

/// A word without `=` that was to be a command.
fn misspelt_command(filter: &[String]) -> Option<String> {
    let word = filter.iter().find(|word| !word.contains('='))?;
    did_you_mean(word, ["clear"].into_iter())?;
    Some(format!(
        "unknown command `sessions {word}`; did you mean `sessions clear`? See tandemgw sessions --help"
    ))
}

/// The exit code after the last of the output was written, which nobody may want any more.
fn flushed(result: io::Result<()>, code: ExitCode) -> ExitCode {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(1, error),
        _ => code,
    }
}

fn session_row(line: &str) -> io::Result<[String; HEADERS.len()]> {
    let value: Value = serde_json::from_str(line)?;
    let text = |key: &str| value[key].as_str().unwrap_or("-").to_owned();
    let number = |key: &str| value[key].as_u64().unwrap_or_default();
    let translated = match (
        value["nat_src"] == value["src"],
        value["nat_dst"] == value["dst"],
    ) {
        (true, true) => "-".to_owned(),
        (false, true) => format!("from {}", text("nat_src")),
        (true, false) => format!("to {}", text("nat_dst")),
        (false, false) => format!("from {} to {}", text("nat_src"), text("nat_dst")),
    };
    Ok([
        text("proto"),
        text("src"),
        text("dst"),
        translated,
        text("state"),
        text("policy"),
        duration(number("expires_s")),
        count(number("packets")),
        bytes(number("bytes")),
    ])
}

fn print_cleared(line: &str) -> io::Result<()> {
    let value: Value = serde_json::from_str(line)?;
    let plural = |count: u64| if count == 1 { "session" } else { "sessions" };
    let cleared = value["cleared"].as_u64().unwrap_or_default();
    writeln!(io::stdout(), "ended {cleared} {}", plural(cleared))?;
    for skipped in value["skipped"].as_array().into_iter().flatten() {
        let count = skipped["sessions"].as_u64().unwrap_or_default();
        let group = skipped["group"].as_str().unwrap_or("-");
        let left = format!("left {count} {} of group {group}", plural(count));
        match skipped["owner"].as_str() {
            Some(owner) => say(format_args!("tandemgw: {left}: ask {owner}, the primary\n")),
            None => say(format_args!(
                "tandemgw: {left}: no unit is known to be primary\n"
            )),
        }
    }
    Ok(())
}
