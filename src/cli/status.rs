//! `tandemgw status` for people: the JSON of the gateway as tables, the most important first.

use std::fmt::Write as _;
use std::io::{self, Write};

use tandemgw_core::control::protocol::{
    BarrierStatus, GroupStatus, HealthState, LinkStatus, PeerStatus, PortStatus, Status,
    TargetState, TargetStatus,
};
use tandemgw_core::event::DropReason;

use super::paint::{self, Tone, paint};
use super::table::{Table, bytes, count, duration, terminal_width};

/// How many events are shown; the JSON has more.
const EVENTS: usize = 10;

/// Words that are coloured, longer ones before those that they contain.
const TONES: [(&str, Tone); 21] = [
    ("UNREACHABLE", Tone::Bad),
    ("DEAD", Tone::Bad),
    ("alive", Tone::Good),
    ("MAINTENANCE", Tone::Bad),
    ("CRITICAL", Tone::Bad),
    ("WARNING", Tone::Warning),
    ("DIFFERS", Tone::Bad),
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
    ("good", Tone::Good),
    ("up", Tone::Good),
];

/// Prints the status.
pub fn print(status: &Status) -> io::Result<()> {
    let text = render(status, terminal_width());
    let text = if paint::is_wanted() {
        color(&text)
    } else {
        text
    };
    io::stdout().lock().write_all(text.as_bytes())
}

/// The status as text, for a terminal of `limit` columns.
fn render(status: &Status, limit: Option<usize>) -> String {
    let mut out = format!(
        "{}  version {}  up {}\n",
        status.node,
        status.version,
        duration(status.uptime_s)
    );
    maintenance(&mut out, status);
    witness(&mut out, status);
    health(&mut out, status);
    for table in [
        groups(status, limit),
        shares(status, limit),
        peers(status, limit),
        units(status, limit),
        links(status, limit),
        ports(status, limit),
        targets(status, limit),
    ] {
        section(&mut out, table);
    }
    out.push('\n');
    totals(&mut out, status);
    section(&mut out, drops(status, limit));
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

/// A table of rows; none if there are none.
fn table<const N: usize>(
    limit: Option<usize>,
    headers: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Option<Table> {
    let mut rows = rows.peekable();
    rows.peek()?;
    let mut table = Table::with_limit(&headers, limit);
    for row in rows {
        table.row(row);
    }
    Some(table)
}

/// A line about the witness, if there is one.
fn witness(out: &mut String, status: &Status) {
    let Some(witness) = &status.witness else {
        return;
    };
    let since = duration(witness.since as u64);
    let why = witness.why.as_deref().unwrap_or("no reason known");
    let _ = match witness.answers {
        None => writeln!(out, "witness not asked yet"),
        Some(true) => writeln!(out, "witness answers  for {since}"),
        Some(false) => writeln!(out, "witness UNREACHABLE  for {since}: {why}"),
    };
}

/// A line that says that the unit is in maintenance.
fn maintenance(out: &mut String, status: &Status) {
    let Some(maintenance) = &status.maintenance else {
        return;
    };
    let since = duration(maintenance.since as u64);
    let _ = writeln!(out, "state   MAINTENANCE  for {since}");
    if let Some(why) = &maintenance.not_saved {
        let _ = writeln!(out, "        a restart would forget it: {why}");
    }
}

/// A line that says whether all is well, and one for each further problem.
fn health(out: &mut String, status: &Status) {
    let Some(health) = &status.health else {
        return;
    };
    if health.troubles.is_empty() {
        let _ = writeln!(out, "health  good for {}", duration(health.since as u64));
    }
    let labels = std::iter::once("health").chain(std::iter::repeat(""));
    for (label, trouble) in labels.zip(&health.troubles) {
        let (state, since) = (health_word(trouble.state), duration(trouble.since as u64));
        let _ = writeln!(out, "{label:<6}  {state}  for {since}: {}", trouble.reason);
    }
}

/// The severity in one word; in capitals if somebody should look.
pub fn health_word(state: HealthState) -> &'static str {
    match state {
        HealthState::Good => "good",
        HealthState::Warning => "WARNING",
        HealthState::Critical => "CRITICAL",
    }
}

fn groups(status: &Status, limit: Option<usize>) -> Option<Table> {
    let headers = [
        "GROUP", "ROLE", "STATE", "PRIMARY", "TERM", "PRIORITY", "SINCE",
    ];
    let row = |group: &GroupStatus| {
        let state = match group_state(group) {
            GroupState::Degraded => "DEGRADED: no link to the primary",
            GroupState::Draining => "draining",
            GroupState::Ready => "ready",
            GroupState::NotHolder => "not a holder",
            GroupState::NotReady => "not ready",
        };
        [
            group.name.clone(),
            group.role.name().to_owned(),
            state.to_owned(),
            or_dash(group.primary.as_ref()),
            group.term.to_string(),
            or_dash(group.priority),
            duration(group.since as u64),
        ]
    };
    table(limit, headers, status.groups.iter().map(row))
}

/// By group that is cut into slots and unit, how many of the slots the unit is primary of.
fn shares(status: &Status, limit: Option<usize>) -> Option<Table> {
    let rows = status.groups.iter().flat_map(|group| {
        let of_peer = |peer: &PeerStatus| {
            let mut groups = peer.groups.iter().flatten();
            let found = groups.find(|it| it.group == group.name)?;
            Some((peer.name.clone(), found.weight?))
        };
        let own = group.weight.map(|weight| (status.node.clone(), weight));
        let units = own
            .into_iter()
            .chain(status.peers.iter().filter_map(of_peer));
        units.map(move |(unit, weight)| {
            let slots = status.groups.iter().filter(|slot| {
                let is_slot = slot.name.strip_prefix(&group.name);
                is_slot.is_some_and(|number| number.starts_with('/'))
                    && slot.primary.as_ref() == Some(&unit)
            });
            let has = slots.count().to_string();
            [group.name.clone(), unit, weight.to_string(), has]
        })
    });
    table(limit, ["SHARED GROUP", "UNIT", "WEIGHT", "SLOTS"], rows)
}

/// The state of this unit for a group, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    Degraded,
    Draining,
    Ready,
    NotHolder,
    NotReady,
}

/// The word that matters most for a group.
pub fn group_state(group: &GroupStatus) -> GroupState {
    match group {
        _ if group.degraded == Some(true) => GroupState::Degraded,
        _ if group.draining == Some(true) => GroupState::Draining,
        _ if group.ready => GroupState::Ready,
        _ if !group.holder => GroupState::NotHolder,
        _ => GroupState::NotReady,
    }
}

fn peers(status: &Status, limit: Option<usize>) -> Option<Table> {
    let headers = ["PEER", "STATE", "SYNC", "LAG", "OLDEST", "LOST IF WE DIED"];
    let row = |peer: &PeerStatus| {
        let sync = match (peer.in_sync, peer.digest_equal) {
            _ if !peer.connected => "-",
            _ if peer.holds_nothing() => "holds nothing",
            (true, Some(false)) => "in sync, digest differs",
            (true, _) => "in sync",
            _ => "NOT IN SYNC",
        };
        let lag = &peer.lag;
        [
            peer.name.clone(),
            match (peer.connected, peer.maintenance) {
                (false, _) => "NOT CONNECTED".to_owned(),
                (true, Some(true)) => "MAINTENANCE".to_owned(),
                (true, _) => "connected".to_owned(),
            },
            sync.to_owned(),
            known(lag.sequence_gap, |gap| format!("{} changes", count(gap))),
            known(lag.oldest_unacked_ms, |ms| format!("{ms} ms")),
            known(lag.would_be_lost, |lost| {
                format!("{} sessions", count(lost))
            }),
        ]
    };
    table(limit, headers, status.peers.iter().map(row))
}

/// The units side by side, this one first; nothing if the gateway is too old to send it, or alone.
fn units(status: &Status, limit: Option<usize>) -> Option<Table> {
    status.protocol?;
    if status.peers.is_empty() {
        return None;
    }
    let headers = [
        "UNIT", "ROLE", "PRIORITY", "PORTS UP", "UPTIME", "VERSION", "CONFIG", "CHECKSUM",
    ];
    let peers = status.peers.iter().map(|peer| {
        let config = peer.config.as_ref();
        [
            peer.name.clone(),
            known(peer.role, |role| role.name().to_owned()),
            or_dash(peer.priority),
            or_dash(peer.ports_up),
            known(peer.uptime_s, duration),
            or_dash(peer.version.as_ref()),
            known(config.and_then(|config| config.equal), |equal| {
                choose(equal, "equal", "DIFFERS")
            }),
            or_dash(config.and_then(|config| config.checksum.as_ref())),
        ]
    });
    let own = [
        status.node.clone(),
        known(common(&status.groups, |group| Some(group.role)), |role| {
            role.name().to_owned()
        }),
        or_dash(common(&status.groups, |group| group.priority)),
        known(status.monitored, |ports| {
            format!("{} of {}", ports.up, ports.all)
        }),
        duration(status.uptime_s),
        status.version.clone(),
        "-".to_owned(),
        or_dash(status.config.as_ref().map(|config| &config.checksum)),
    ];
    table(limit, headers, [own].into_iter().chain(peers))
}

/// What all groups have alike.
fn common<T: PartialEq>(
    groups: &[GroupStatus],
    of: impl Fn(&GroupStatus) -> Option<T>,
) -> Option<T> {
    let first = of(groups.first()?);
    let is_common = groups.iter().all(|group| of(group) == first);
    first.filter(|_| is_common)
}

fn links(status: &Status, limit: Option<usize>) -> Option<Table> {
    let headers = ["LINK TO", "LOCAL", "REMOTE", "STATE", "RTT", "CARRIES"];
    let row = |(peer, link): (&PeerStatus, &LinkStatus)| {
        [
            peer.name.clone(),
            or_dash(link.local.as_ref()),
            or_dash(link.remote.as_ref()),
            choose(link.up, "up", "DOWN"),
            rtt(link.rtt_us),
            choose(link.carries_sync, "sessions", "-"),
        ]
    };
    let links = status.peers.iter().flat_map(|peer| {
        let links = peer.links.iter();
        links.map(move |link| (peer, link))
    });
    table(limit, headers, links.map(row))
}

fn ports(status: &Status, limit: Option<usize>) -> Option<Table> {
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
    let rows = status.ports.iter().map(|port| {
        [
            port.name.clone(),
            port.interface.clone(),
            choose(port.up, "up", "DOWN"),
            port.mtu.to_string(),
            port.offload.clone(),
            count(port.r#in.packets),
            count(port.out.packets),
            bytes(port.r#in.bytes),
            bytes(port.out.bytes),
        ]
    });
    table(limit, headers, rows)
}

fn targets(status: &Status, limit: Option<usize>) -> Option<Table> {
    let headers = ["TARGET", "BEHIND", "BY", "STATE", "SINCE", "RTT", "LOST"];
    let row = |(port, target): (&PortStatus, &TargetStatus)| {
        let state = match (&target.why_not, target.state) {
            (Some(why), _) => format!("unknown: {why}"),
            (None, None) => "unknown".to_owned(),
            (None, Some(TargetState::Alive)) => "alive".to_owned(),
            (None, Some(TargetState::Dead)) => "DEAD".to_owned(),
        };
        [
            target.server.clone(),
            port.name.clone(),
            target.protocol.clone(),
            state,
            duration(target.since as u64),
            rtt(target.rtt_us),
            format!(
                "{} of {}",
                target.sent.saturating_sub(target.answered),
                target.sent
            ),
        ]
    };
    let targets = status.ports.iter().flat_map(|port| {
        let targets = port.targets.iter().flatten();
        targets.map(move |target| (port, target))
    });
    table(limit, headers, targets.map(row))
}

/// `1234 of 1048576 (0.1 %)  tcp 1000 …`
pub fn session_counts(status: &Status) -> String {
    let sessions = &status.sessions;
    let (total, max) = (sessions.total, sessions.max);
    let share = total as f64 * 100.0 / max.max(1) as f64;
    format!(
        "{total} of {max} ({share:.1} %)  tcp {}  udp {}  icmp {}  other {}",
        sessions.tcp, sessions.udp, sessions.icmp, sessions.other
    )
}

fn totals(out: &mut String, status: &Status) {
    let counters = &status.counters;
    let dropped: u64 = counters.dropped.values().sum();
    let _ = writeln!(
        out,
        "sessions  {}\npackets   forwarded {} ({})  dropped {}  sessions opened {}",
        session_counts(status),
        count(counters.forwarded),
        bytes(counters.bytes),
        count(dropped),
        count(status.sessions.opened),
    );
    fast_path(out, status);
    if let Some(barrier) = &status.barrier {
        self::barrier(out, barrier);
    }
    for (number, words) in [
        (
            counters.dropped_early,
            "unreplied sessions dropped for new ones",
        ),
        (
            counters.cleared,
            "sessions ended by a change of routes or policies, or by hand",
        ),
        (
            counters.address_conflicts,
            "claims of our addresses by others",
        ),
        (
            counters.handshakes_limited.unwrap_or(0),
            "handshakes on the links refused: too many",
        ),
        (
            counters.asymmetric_flows.stood_in,
            "packets of other units' sessions forwarded",
        ),
        (
            counters.asymmetric_flows.passed_on,
            "packets passed on to the primary",
        ),
        (
            counters.asymmetric_flows.received,
            "packets received from other units",
        ),
        (counters.outputs_lost, "answers and announcements not sent"),
    ] {
        if number > 0 {
            let _ = writeln!(out, "{words}: {number}");
        }
    }
}

/// The fast path, if there is or should be one.
fn fast_path(out: &mut String, status: &Status) {
    if let Some(fast) = &status.fast_path {
        let _ = writeln!(
            out,
            "ebpf      {} sessions; {} packets, {} forwarded by the kernel",
            count(fast.sessions),
            count(fast.packets),
            bytes(fast.bytes)
        );
    }
    for port in &status.ports {
        if let Some(why) = &port.why_no_ebpf {
            let _ = writeln!(out, "ebpf      not at port {}: {why}", port.name);
        }
    }
}

/// The barrier, if there is something to report.
fn barrier(out: &mut String, barrier: &BarrierStatus) {
    if let Some(why) = &barrier.why_not {
        let _ = writeln!(out, "barrier   NOT SET: {why}");
    }
    if barrier.stopped > 0 {
        let _ = writeln!(
            out,
            "barrier   {} packets stopped that would have bypassed the gateway",
            count(barrier.stopped)
        );
    }
}

/// Drops by reason, the most frequent first.
fn drops(status: &Status, limit: Option<usize>) -> Option<Table> {
    let mut reasons: Vec<(&String, u64)> = status
        .counters
        .dropped
        .iter()
        .map(|(name, count)| (name, *count))
        .collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let rows = reasons.into_iter().map(|(name, number)| {
        let known = DropReason::ALL.iter().find(|reason| reason.name() == name);
        let meaning = known.map_or("", |reason| reason.meaning());
        [count(number), name.clone(), meaning.to_owned()]
    });
    table(limit, ["DROPPED", "REASON", "MEANING"], rows)
}

fn events(status: &Status, limit: Option<usize>) -> Option<Table> {
    // Gateways of version 0 count from boot.
    let has_clock = status.protocol.is_some();
    let rows = status.events.iter().take(EVENTS).map(|event| {
        let time = match has_clock {
            true => clock_time(event.at),
            false => format!("{} ago", duration(event.ago_s as u64)),
        };
        [time, event.what.clone(), event.why.clone()]
    });
    table(limit, ["TIME (UTC)", "EVENT", "WHY"], rows)
}

/// A point in time without the year: `11-26 14:52:43`, in UTC.
pub fn clock_time(seconds: f64) -> String {
    let whole = seconds as i64;
    let (days, second) = (whole.div_euclid(86_400), whole.rem_euclid(86_400));
    let (month, day) = month_and_day(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{month:02}-{day:02} {hour:02}:{minute:02}:{:02}",
        second % 60
    )
}

/// Month and day of a day counted from 1970, in the Gregorian calendar. It counts in eras of 400
/// years that begin in March, so that the leap day is the last day of a year.
fn month_and_day(days: i64) -> (i64, i64) {
    let days = days + 719_468;
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (month, day)
}

/// A round-trip time in the unit that suits it.
pub fn rtt(micros: Option<u64>) -> String {
    known(micros, |micros| match micros {
        ..1000 => format!("{micros} µs"),
        _ => format!("{:.1} ms", micros as f64 / 1e3),
    })
}

/// Colours the headers, and the words of [`TONES`] in columns.
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

/// Colours words at the start of a column: after two blanks or more.
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

/// A known value in readable form; `-` for an unknown one.
pub fn or_dash(value: Option<impl std::fmt::Display>) -> String {
    known(value, |value| value.to_string())
}

/// A known value as `show` writes it; `-` for an unknown one.
pub fn known<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

fn choose(value: bool, yes: &str, no: &str) -> String {
    if value { yes } else { no }.to_owned()
}

#[cfg(test)]
mod tests {
    use tandemgw_core::control::protocol::TroubleStatus;

    use super::*;
    use crate::cli::sample;

    #[test]
    fn moments_are_told_as_dates() {
        assert_eq!(clock_time(0.0), "01-01 00:00:00");
        assert_eq!(clock_time(951_782_399.9), "02-28 23:59:59");
        assert_eq!(clock_time(951_782_400.0), "02-29 00:00:00");
        assert_eq!(clock_time(1_795_704_763.0), "11-26 14:52:43");
        assert_eq!(clock_time(4_107_542_400.0), "03-01 00:00:00");
    }

    #[test]
    fn what_is_wrong_stands_above_all_tables() {
        let mut status = sample::status();
        let text = render(&status, None);
        assert!(
            text.contains("\nhealth  good for 12m 5s\n\nGROUP"),
            "{text}"
        );
        let trouble = |state, reason: &str| TroubleStatus {
            state,
            reason: reason.to_owned(),
            since: 61.0,
        };
        let health = status.health.as_mut().unwrap();
        health.troubles = vec![
            trouble(HealthState::Critical, "port wan is down"),
            trouble(HealthState::Warning, "gw-b is gone: its process ended"),
        ];
        let text = render(&status, None);
        let wanted = "\nhealth  CRITICAL  for 1m 1s: port wan is down\n        \
                      WARNING  for 1m 1s: gw-b is gone: its process ended\n\nGROUP";
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn what_is_not_known_of_a_peer_is_not_told_as_a_figure() {
        let mut status = sample::status();
        let peer = &mut status.peers[0];
        peer.connected = false;
        peer.in_sync = false;
        peer.digest_equal = None;
        peer.role = None;
        peer.lag.sequence_gap = None;
        peer.lag.oldest_unacked_ms = None;
        peer.lag.would_be_lost = Some(1234);
        let text = render(&status, None);
        let row = text.lines().find(|line| line.starts_with("gw-b ")).unwrap();
        let words: Vec<&str> = row
            .split("  ")
            .map(str::trim)
            .filter(|w| !w.is_empty())
            .collect();
        assert_eq!(
            words,
            ["gw-b", "NOT CONNECTED", "-", "-", "-", "1.2k sessions"]
        );
        let row = text.lines().filter(|line| line.starts_with("gw-b ")).nth(1);
        let words: Vec<&str> = row.unwrap().split_whitespace().collect();
        assert_eq!(words[..4], ["gw-b", "-", "128", "2"], "{text}");
    }

    #[test]
    fn eighty_columns_hold_every_row() {
        let text = render(&sample::status(), Some(80));
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
