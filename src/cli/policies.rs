//! `tandemgw policies`: what each policy has decided.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use tandemgw_core::control::protocol::{PolicyRow, Request};

use super::query::ask;
use super::status::known;
use super::table::{Table, bytes, count, duration};

const HEADERS: [&str; 7] = [
    "POLICY", "ACTION", "HITS", "LAST HIT", "SESSIONS", "PACKETS", "BYTES",
];

pub fn show(socket: Option<&Path>, json: bool) -> ExitCode {
    let mut table = Table::new(&HEADERS).dropping(&["PACKETS", "ACTION"]);
    let code = ask(socket, &Request::Policies, json, |policy: PolicyRow| {
        table.stream(row(&policy))
    });
    match json || code != ExitCode::SUCCESS {
        true => code,
        false => finish(table.print(), code),
    }
}

/// A policy as a row.
fn row(policy: &PolicyRow) -> [String; HEADERS.len()] {
    let ago = |seconds: f64| format!("{} ago", duration(seconds as u64));
    [
        policy.name.clone().unwrap_or("(no policy matches)".into()),
        policy.action.name().to_owned(),
        count(policy.hits),
        known(policy.last_hit_s, ago),
        count(policy.sessions),
        count(policy.packets),
        bytes(policy.bytes),
    ]
}

/// The exit code after the end of the output, which the reader may no longer want.
pub fn finish(result: io::Result<()>, code: ExitCode) -> ExitCode {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => super::fail(1, error),
        _ => code,
    }
}
