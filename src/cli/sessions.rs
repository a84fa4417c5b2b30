//! `tandemgw sessions`: the session table, and the end of some of them.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::fail;
use super::query::{ask, print_line};

pub fn list(
    socket: Option<&Path>,
    json: bool,
    limit: Option<u64>,
    filter: Vec<String>,
) -> ExitCode {
    let request = json!({ "command": "sessions", "limit": limit, "filter": filter });
    if !json {
        println!(
            "{}",
            session_row(&[
                "PROTO",
                "SOURCE",
                "DESTINATION",
                "TRANSLATED",
                "STATE",
                "POLICY"
            ])
        );
    }
    ask(socket, &request, |line| {
        if json {
            print_line(line)
        } else {
            print_session(line)
        }
    })
}

pub fn clear(_socket: Option<&Path>, _json: bool, _all: bool, _filter: Vec<String>) -> ExitCode {
    fail(1, "not there yet")
}

fn print_session(line: &str) -> io::Result<()> {
    let value: Value = serde_json::from_str(line)?;
    let text = |key: &str| value[key].as_str().unwrap_or("-").to_owned();
    let translated = match (
        value["nat_src"] == value["src"],
        value["nat_dst"] == value["dst"],
    ) {
        (true, true) => "-".to_owned(),
        (false, true) => format!("from {}", text("nat_src")),
        (true, false) => format!("to {}", text("nat_dst")),
        (false, false) => format!("from {} to {}", text("nat_src"), text("nat_dst")),
    };
    let row = [
        &text("proto"),
        &text("src"),
        &text("dst"),
        &translated,
        &text("state"),
        &text("policy"),
    ];
    writeln!(io::stdout(), "{}", session_row(&row.map(String::as_str)))
}

fn session_row(cells: &[&str; 6]) -> String {
    let [proto, src, dst, translated, state, policy] = cells;
    let wide = if io::stdout().is_terminal() { 22 } else { 0 };
    format!("{proto:<5} {src:<wide$} {dst:<wide$} {translated:<wide$} {state:<12} {policy}")
}
