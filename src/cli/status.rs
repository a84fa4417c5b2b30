//! `tandemgw status` for people: the JSON of the gateway as tables, the most important first.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde_json::Value;
use tandemgw_core::event::DropReason;

use super::paint::{self, Tone, paint};
use super::table::{Table, bytes, count, duration, terminal_width};

/// Events that are shown; the JSON has more.
const EVENTS: usize = 10;

/// Words that are coloured where colour is wanted, longer ones before those that they contain.
const TONES: [(&str, Tone); 13] = [
    ("NOT SET", Tone::Bad),
    ("NOT CONNECTED", Tone::Bad),
    ("NOT IN SYNC", Tone::Bad),
    ("not ready", Tone::Warning),
    ("digest differs", Tone::Warning),
    ("DEGRADED", Tone::Bad),
    ("DOWN", Tone::Bad),
    ("draining", Tone::Warning),
    ("primary", Tone::Good),
    ("standby", Tone::Good),
    ("ready", Tone::Good),
    ("in sync", Tone::Good),
    ("up", Tone::Good),
];

/// Counters that are shown if something was counted, with the words for them.
const COUNTERS: [(&str, &str); 4] = [
    ("dropped_early", "unreplied sessions dropped for new ones"),
    (
        "cleared",
        "sessions ended by a change of routes or policies, or by hand",
    ),
    ("address_conflicts", "claims of our addresses by others"),
    ("outputs_lost", "answers and announcements not sent"),
];

/// Prints the status.
pub fn print(status: &Value) -> io::Result<()> {
    let text = render(status, terminal_width());
    let text = if paint::is_wanted() {
        color(&text)
    } else {
        text
    };
    io::stdout().lock().write_all(text.as_bytes())
}

/// The status as text, for a terminal of `limit` columns.
fn render(status: &Value, limit: Option<usize>) -> String {
    let mut out = format!(
        "{}  version {}  up {}\n",
        text(&status["node"]),
        text(&status["version"]),
        duration(number(&status["uptime_s"]))
    );
    for table in [
        groups(status, limit),
        peers(status, limit),
        links(status, limit),
        ports(status, limit),
    ] {
        section(&mut out, table);
    }
    out.push('\n');
    totals(&mut out, status);
    section(&mut out, drops(&status["counters"], limit));
    section(&mut out, events(status, limit));
    out
}

/// A table after an empty line; nothing if it has no rows.
fn section(out: &mut String, table: Option<Table>) {
    if let Some(mut table) = table {
        out.push('\n');
        out.push_str(&table.render());
    }
}

/// A table with a row for each of `items`; none if there are none.
fn table<'a>(
    limit: Option<usize>,
    headers: &[&str],
    items: impl Iterator<Item = &'a Value>,
    row: impl Fn(&'a Value) -> Vec<String>,
) -> Option<Table> {
    let mut items = items.peekable();
    items.peek()?;
    let mut table = Table::with_limit(headers, limit);
    for item in items {
        table.row(row(item));
    }
    Some(table)
}

fn groups(status: &Value, limit: Option<usize>) -> Option<Table> {
    let headers = [
        "GROUP", "ROLE", "STATE", "PRIMARY", "TERM", "PRIORITY", "SINCE",
    ];
    table(limit, &headers, list(&status["groups"]), |group| {
        let state = match group {
            _ if group["degraded"] == true => "DEGRADED: no link to the primary",
            _ if group["draining"] == true => "draining",
            _ if group["ready"] == true => "ready",
            _ => "not ready",
        };
        let primary = match group.get("primary") {
            None => text(&status["node"]),
            Some(primary) => text(primary),
        };
        vec![
            text(&group["name"]),
            text(&group["role"]),
            state.to_owned(),
            primary,
            text(&group["term"]),
            text(&group["priority"]),
            duration(group["since"].as_f64().unwrap_or_default() as u64),
        ]
    })
}

fn peers(status: &Value, limit: Option<usize>) -> Option<Table> {
    let headers = ["PEER", "STATE", "SYNC", "LAG", "OLDEST", "LOST IF WE DIED"];
    table(limit, &headers, list(&status["peers"]), |peer| {
        let lag = &peer["lag"];
        let sync = match (&peer["in_sync"], &peer["digest_equal"]) {
            (Value::Bool(true), Value::Bool(true)) => "in sync",
            (Value::Bool(true), _) => "in sync, digest differs",
            _ => "NOT IN SYNC",
        };
        vec![
            text(&peer["name"]),
            choose(&peer["connected"], "connected", "NOT CONNECTED"),
            sync.to_owned(),
            format!("{} changes", count(number(&lag["sequence_gap"]))),
            format!("{} ms", lag["oldest_unacked_ms"]),
            format!("{} sessions", count(number(&lag["would_be_lost"]))),
        ]
    })
}

fn links(status: &Value, limit: Option<usize>) -> Option<Table> {
    let headers = ["LINK TO", "LOCAL", "REMOTE", "STATE", "RTT", "CARRIES"];
    let of_peer = |peer: &Value| {
        let name = text(&peer["name"]);
        let rows = list(&peer["links"]).map(move |link| {
            vec![
                name.clone(),
                text(&link["local"]),
                text(&link["remote"]),
                choose(&link["up"], "up", "DOWN"),
                rtt(&link["rtt_us"]),
                choose(&link["carries_sync"], "sessions", "-"),
            ]
        });
        rows.collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = list(&status["peers"]).flat_map(of_peer).collect();
    if rows.is_empty() {
        return None;
    }
    let mut table = Table::with_limit(&headers, limit);
    for row in rows {
        table.row(row);
    }
    Some(table)
}

fn ports(status: &Value, limit: Option<usize>) -> Option<Table> {
    let headers = [
        "PORT",
        "INTERFACE",
        "STATE",
        "MTU",
        "OFFLOAD",
        "IN",
        "OUT",
        "BYTES IN",
        "BYTES OUT",
    ];
    table(limit, &headers, list(&status["ports"]), |port| {
        vec![
            text(&port["name"]),
            text(&port["interface"]),
            choose(&port["up"], "up", "DOWN"),
            text(&port["mtu"]),
            text(&port["offload"]),
            count(number(&port["in"]["packets"])),
            count(number(&port["out"]["packets"])),
            bytes(number(&port["in"]["bytes"])),
            bytes(number(&port["out"]["bytes"])),
        ]
    })
}

fn totals(out: &mut String, status: &Value) {
    let (sessions, counters) = (&status["sessions"], &status["counters"]);
    let (total, max) = (number(&sessions["total"]), number(&sessions["max"]));
    let share = total as f64 * 100.0 / max.max(1) as f64;
    let _ = write!(out, "sessions  {total} of {max} ({share:.1} %)");
    for protocol in ["tcp", "udp", "icmp", "other"] {
        let _ = write!(out, "  {protocol} {}", number(&sessions[protocol]));
    }
    let dropped: u64 = drop_counts(counters).map(|(_, count)| count).sum();
    let _ = writeln!(
        out,
        "\npackets   forwarded {} ({})  dropped {}  sessions opened {}",
        count(number(&counters["forwarded"])),
        bytes(number(&counters["bytes"])),
        count(dropped),
        count(number(&sessions["opened"])),
    );
    barrier(out, &status["barrier"]);
    for (name, words) in COUNTERS {
        if number(&counters[name]) > 0 {
            let _ = writeln!(out, "{words}: {}", counters[name]);
        }
    }
}

/// The barrier, where there is something to say of it.
fn barrier(out: &mut String, barrier: &Value) {
    if let Some(why) = barrier["why_not"].as_str() {
        let _ = writeln!(out, "barrier   NOT SET: {why}");
    }
    let stopped = number(&barrier["stopped"]);
    if stopped > 0 {
        let _ = writeln!(
            out,
            "barrier   {} packets stopped that would have gone past the gateway",
            count(stopped)
        );
    }
}

/// What was dropped, the most frequent reason first.
fn drops(counters: &Value, limit: Option<usize>) -> Option<Table> {
    let mut reasons: Vec<(&String, u64)> = drop_counts(counters).collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    if reasons.is_empty() {
        return None;
    }
    let mut table = Table::with_limit(&["DROPPED", "REASON", "MEANING"], limit);
    for (name, number) in reasons {
        let known = DropReason::ALL.iter().find(|reason| reason.name() == name);
        let meaning = known.map_or("", |reason| reason.meaning());
        table.row([count(number).as_str(), name, meaning]);
    }
    Some(table)
}

fn drop_counts(counters: &Value) -> impl Iterator<Item = (&String, u64)> {
    let all = counters["dropped"].as_object().into_iter().flatten();
    all.map(|(reason, count)| (reason, number(count)))
}

fn events(status: &Value, limit: Option<usize>) -> Option<Table> {
    let newest = list(&status["events"]).take(EVENTS);
    table(limit, &["AGO", "EVENT", "WHY"], newest, |event| {
        vec![
            duration(event["ago_s"].as_f64().unwrap_or_default() as u64),
            text(&event["what"]),
            text(&event["why"]),
        ]
    })
}

/// A round-trip time in the unit that suits it.
pub fn rtt(micros: &Value) -> String {
    match micros.as_u64() {
        None => "-".to_owned(),
        Some(micros @ ..1000) => format!("{micros} µs"),
        Some(micros) => format!("{:.1} ms", micros as f64 / 1e3),
    }
}

/// Colours the headers, and the words of [`TONES`] that stand in columns.
fn color(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let is_header = !line.is_empty() && !line.contains(|c: char| c.is_ascii_lowercase());
        if is_header {
            out.push_str(&paint(line, Tone::Heading));
        } else {
            out.push_str(&color_words(line));
        }
        out.push('\n');
    }
    out
}

/// Colours words that make up the start of a column: two blanks or more are before them.
fn color_words(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(gap) = rest.find("  ") {
        let blanks = rest[gap..].len() - rest[gap..].trim_start().len();
        let (before, cell) = rest.split_at(gap + blanks);
        out.push_str(before);
        let found = TONES.iter().find(|(word, _)| {
            cell.strip_prefix(word)
                .is_some_and(|after| !after.starts_with(|c: char| c.is_alphanumeric()))
        });
        rest = match found {
            Some((word, tone)) => {
                out.push_str(&paint(word, *tone));
                &cell[word.len()..]
            }
            None => cell,
        };
    }
    out.push_str(rest);
    out
}

pub fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A value as people write it; `-` for none.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn choose(value: &Value, yes: &str, no: &str) -> String {
    if value == true { yes } else { no }.to_owned()
}
