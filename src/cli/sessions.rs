//! `tandemgw sessions`: lists sessions and ends them.

use std::collections::BinaryHeap;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use tandemgw_core::config::did_you_mean;
use tandemgw_core::control::protocol::{Cleared, Request, Session, SessionCount};

use super::args::SortKey;
use super::client::{ClientError, parse};
use super::policies::finish;
use super::query::{ask, ask_lines};
use super::table::{self, Table, bytes, duration};
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

/// Columns to leave out on a narrow terminal, in this order.
const DROPPED_FIRST: [&str; 6] = [
    "PACKETS",
    "POLICY",
    "EXPIRES",
    "BYTES",
    "STATE",
    "TRANSLATED",
];

pub fn list(
    socket: Option<&Path>,
    json: bool,
    limit: Option<u64>,
    sort: Option<SortKey>,
    filter: Vec<String>,
) -> ExitCode {
    if let Some(hint) = misspelt_command(&filter) {
        return fail(2, hint);
    }
    let mut output = match json {
        true => Output::Lines(BufWriter::new(io::stdout().lock())),
        false => Output::Table(Table::new(&HEADERS).dropping(&DROPPED_FIRST).whole()),
    };
    let mut shown: u64 = 0;
    let code = match sort {
        None => {
            let request = Request::Sessions {
                limit,
                filter: filter.clone(),
            };
            ask_lines(socket, &request, |line| {
                shown += 1;
                output.add(line)
            })
        }
        Some(key) => sorted(socket, key, limit, filter.clone(), |line| {
            shown += 1;
            output.add(line)
        }),
    };
    if code != ExitCode::SUCCESS {
        return code;
    }
    let code = finish(output.end(), code);
    if !json {
        tell_the_rest(socket, shown, limit, filter);
    }
    code
}

/// Where the rows go.
enum Output {
    Lines(BufWriter<io::StdoutLock<'static>>),
    Table(Table),
}

impl Output {
    fn add(&mut self, line: &str) -> Result<(), ClientError> {
        match self {
            Output::Lines(out) => writeln!(out, "{line}")?,
            Output::Table(table) => table.stream(session_row(&parse(line)?))?,
        }
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        match &mut self {
            Output::Lines(out) => out.flush(),
            Output::Table(table) => table.print(),
        }
    }
}

/// Passes the lines of the first `limit` sessions to `each` in order, and keeps no more than that.
fn sorted(
    socket: Option<&Path>,
    key: SortKey,
    limit: Option<u64>,
    filter: Vec<String>,
    mut each: impl FnMut(&str) -> Result<(), ClientError>,
) -> ExitCode {
    let mut first = First::new(key, limit);
    let request = Request::Sessions {
        limit: None,
        filter,
    };
    let code = ask_lines(socket, &request, |line| first.add(line));
    for line in first.into_lines() {
        match each(&line) {
            Ok(()) => {}
            Err(ClientError::Output(error)) => return finish(Err(error), code),
            Err(error) => return fail(error.code(), error),
        }
    }
    code
}

/// The first sessions in an order.
pub struct First {
    key: SortKey,
    limit: usize,
    /// The last one in the order is on top.
    lines: BinaryHeap<(u64, u32, String)>,
}

impl First {
    /// Keeps `limit` of them.
    pub fn new(key: SortKey, limit: Option<u64>) -> First {
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        First {
            key,
            limit: limit.unwrap_or(usize::MAX),
            lines: BinaryHeap::new(),
        }
    }

    /// Looks at the line of a session.
    pub fn add(&mut self, line: &str) -> Result<(), ClientError> {
        let session: Session = parse(line)?;
        let rank = rank(self.key, &session);
        self.lines.push((rank, session.id, line.to_owned()));
        if self.lines.len() > self.limit {
            self.lines.pop();
        }
        Ok(())
    }

    /// Their lines, in order.
    pub fn into_lines(self) -> impl Iterator<Item = String> {
        let sorted = self.lines.into_sorted_vec();
        sorted.into_iter().map(|(.., line)| line)
    }
}

/// Smaller ones come first.
fn rank(key: SortKey, session: &Session<'_>) -> u64 {
    match key {
        SortKey::Bytes => u64::MAX - session.bytes,
        SortKey::Packets => u64::MAX - session.packets,
        SortKey::Age => u64::MAX - session.age_s,
        SortKey::Expires => session.expires_s,
    }
}

/// Prints that there was nothing to show, or how many the limit left out.
fn tell_the_rest(socket: Option<&Path>, shown: u64, limit: Option<u64>, filter: Vec<String>) {
    if shown == 0 && limit != Some(0) {
        let what = match filter.is_empty() {
            true => "there are no sessions",
            false => "no session matches",
        };
        say(format_args!("tandemgw: {what}\n"));
    } else if limit == Some(shown) {
        let mut all = 0;
        let counted = ask_lines(socket, &Request::Count { filter }, |line| {
            let count: SessionCount = parse(line)?;
            all = count.sessions;
            Ok(())
        });
        if counted == ExitCode::SUCCESS && all > shown {
            say(format_args!(
                "tandemgw: {} more not shown because of --limit {shown}\n",
                all - shown
            ));
        }
    }
}

pub fn count(socket: Option<&Path>, json: bool, filter: Vec<String>) -> ExitCode {
    let request = Request::Count { filter };
    ask(socket, &request, json, |count: SessionCount| {
        writeln!(
            io::stdout(),
            "{} {}, {} packets, {}",
            count.sessions,
            plural(count.sessions),
            table::count(count.packets),
            bytes(count.bytes)
        )
    })
}

pub fn clear(socket: Option<&Path>, json: bool, all: bool, filter: Vec<String>) -> ExitCode {
    ask(socket, &Request::Clear { filter, all }, json, print_cleared)
}

/// A word without `=` that was meant as a command.
fn misspelt_command(filter: &[String]) -> Option<String> {
    let word = filter.iter().find(|word| !word.contains('='))?;
    did_you_mean(word, ["clear"].into_iter())?;
    Some(format!(
        "unknown command `sessions {word}`; did you mean `sessions clear`? See tandemgw sessions --help"
    ))
}

fn session_row(session: &Session) -> [String; HEADERS.len()] {
    let (nat_src, nat_dst) = (session.nat_src, session.nat_dst);
    let translated = match (nat_src == session.src, nat_dst == session.dst) {
        (true, true) => "-".to_owned(),
        (false, true) => format!("from {nat_src}"),
        (true, false) => format!("to {nat_dst}"),
        (false, false) => format!("from {nat_src} to {nat_dst}"),
    };
    [
        session.proto.to_string(),
        session.src.to_string(),
        session.dst.to_string(),
        translated,
        session.state.to_string(),
        session.policy.to_string(),
        duration(session.expires_s),
        table::count(session.packets),
        bytes(session.bytes),
    ]
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "session" } else { "sessions" }
}

fn print_cleared(cleared: Cleared) -> io::Result<()> {
    let count = cleared.cleared;
    writeln!(io::stdout(), "ended {count} {}", plural(count))?;
    for skipped in &cleared.skipped {
        let (count, group) = (skipped.sessions, &skipped.group);
        let left = format!("left {count} {} of group {group}", plural(count));
        match &skipped.owner {
            Some(owner) => say(format_args!("tandemgw: {left}: ask {owner}, the primary\n")),
            None => say(format_args!(
                "tandemgw: {left}: no unit is known to be primary\n"
            )),
        }
    }
    Ok(())
}
