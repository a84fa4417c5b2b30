//! Draws `top`: 80 columns by 24 lines show everything; less shows the most important parts, and a
//! large terminal the hosts with the most sessions and the policies as well.

use ratatui::Frame;
use ratatui::layout::Constraint::{self, Fill, Length, Max, Min};
use ratatui::layout::{Alignment, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, SparklineBar, Table, Wrap};
use tandemgw_core::control::protocol::{
    EventStatus, GroupStatus, HostRow, LinkStatus, PeerStatus, PolicyRow, PortStatus, Status,
};

use crate::cli::status::{GroupState, group_state, known, or_dash, rtt, session_counts};
use crate::cli::table::{bytes, count, duration};

use super::state::{Graph, Top};

const HELP: &str = " q quit   p pause   + - interval";

/// Minimum and maximum lines of a graph with its heading.
const GRAPH: [u16; 2] = [3, 9];

/// Lines from which on hosts and policies have room, and those that stay for all else.
const TALL: u16 = 32;
const USUAL: u16 = 24;

/// Columns of the table of ports; drops are shown beside it.
const PORTS_WIDTH: u16 = 45;

/// Whether a terminal of so many lines has room for hosts and policies.
pub fn is_tall(lines: u16) -> bool {
    lines >= TALL
}

pub fn draw(frame: &mut Frame, top: &Top) {
    let area = frame.area();
    let extra = match is_tall(area.height) && !(top.hosts.is_empty() && top.policies.is_empty()) {
        true => area.height - USUAL.max(area.height / 2),
        false => 0,
    };
    let heights = [Length(1), Min(0), Length(extra), Length(1)];
    let [title, body, bottom, help] = Layout::vertical(heights).areas(area);
    if extra > 0 {
        let halves = Layout::horizontal([Length(46), Min(0)]).spacing(2);
        let [hosts, policies] = halves.areas(bottom);
        draw_hosts(frame, hosts, top);
        draw_policies(frame, policies, top);
    }
    draw_title(frame, title, top);
    match top.status() {
        Some(status) => draw_body(frame, body, top, status),
        None => draw_waiting(frame, body, top),
    }
    frame.render_widget(Paragraph::new(HELP).style(dim()), help);
}

fn draw_title(frame: &mut Frame, area: Rect, top: &Top) {
    let mut spans = vec![Span::styled(" tandemgw top ", heading())];
    if let Some(status) = top.status() {
        spans.push(Span::styled(
            format!(" {} ", status.node),
            Style::new().add_modifier(Modifier::BOLD),
        ));
        let (version, uptime) = (&status.version, status.uptime_s);
        spans.push(Span::raw(format!(" {version}  up {} ", duration(uptime))));
    }
    if top.trouble().is_some() {
        spans.push(Span::styled(" not running, waiting… ", bad()));
    } else if top.is_paused() {
        spans.push(Span::styled(" PAUSED ", warning()));
    }
    frame.render_widget(Line::from(spans), area);
    let interval = format!("every {:?} ", top.interval());
    if usize::from(area.width) > 60 + interval.len() {
        let line = Line::styled(interval, dim()).alignment(Alignment::Right);
        let [_, right] = Layout::horizontal([Min(0), Length(14)]).areas(area);
        frame.render_widget(line, right);
    }
}

fn draw_waiting(frame: &mut Frame, area: Rect, top: &Top) {
    let why = top.trouble().unwrap_or("waiting for the first answer");
    frame.render_widget(Paragraph::new(why).wrap(Wrap { trim: true }), area);
}

fn draw_body(frame: &mut Frame, area: Rect, top: &Top, status: &Status) {
    let groups = rows(&status.groups);
    let peers = peer_rows(status);
    let middle = rows(&status.ports)
        .max(top.drops().len().min(6) as u16)
        .max(3);
    let events = rows(&status.events);
    let wanted = [
        table_height(groups),
        table_height(peers.len() as u16),
        1,
        GRAPH[0],
        middle + 1,
        table_height(events),
    ];
    let heights = heights(area.height, wanted);
    let [groups, peers_area, sessions, graphs, middle, events] =
        Layout::vertical(heights.map(Length)).areas(area);
    draw_groups(frame, groups, status);
    draw_peers(frame, peers_area, peers);
    draw_sessions(frame, sessions, status);
    draw_graphs(frame, graphs, top);
    let [ports, drops] = Layout::horizontal([Length(PORTS_WIDTH), Min(0)]).areas(middle);
    draw_ports(frame, ports, top, status);
    draw_drops(frame, drops, top);
    draw_events(frame, events, status);
}

/// Gives each part its lines, in order; remaining lines make the graphs higher.
fn heights(available: u16, wanted: [u16; 6]) -> [u16; 6] {
    let mut left = available;
    let mut heights = wanted.map(|height| {
        let given = height.min(left);
        left -= given;
        given
    });
    if heights[3] == GRAPH[0] {
        heights[3] += left.min(GRAPH[1] - GRAPH[0]);
    }
    heights
}

fn table_height(rows: u16) -> u16 {
    if rows == 0 { 0 } else { rows + 1 }
}

fn rows<T>(list: &[T]) -> u16 {
    list.len().min(64) as u16
}

fn draw_groups(frame: &mut Frame, area: Rect, status: &Status) {
    let row = |group: &GroupStatus| {
        let (state, style) = match group_state(group) {
            GroupState::Degraded => ("DEGRADED", bad()),
            GroupState::Draining => ("draining", warning()),
            GroupState::Ready => ("ready", good()),
            GroupState::NotHolder => ("no holder", Style::new()),
            GroupState::NotReady => ("not ready", warning()),
        };
        Row::new([
            Cell::from(group.name.clone()),
            Cell::from(group.role.name()).style(Style::new().add_modifier(Modifier::BOLD)),
            Cell::from(state).style(style),
            Cell::from(or_dash(group.primary.as_ref())),
            right(group.term.to_string()),
            right(duration(group.since as u64)),
        ])
    };
    let widths = [
        Length(16),
        Length(8),
        Length(10),
        Length(16),
        Length(6),
        Length(9),
    ];
    table(
        frame,
        area,
        ["GROUP", "ROLE", "STATE", "PRIMARY", "  TERM", "    SINCE"],
        widths,
        status.groups.iter().map(row),
    );
}

/// A row for each peer, and for each of its links.
fn peer_rows(status: &Status) -> Vec<Row<'static>> {
    let peer = |peer: &PeerStatus| {
        let lag = &peer.lag;
        let (connected, style) = match peer.connected {
            true => ("connected", good()),
            false => ("DOWN", bad()),
        };
        let (sync, sync_style) = match (peer.in_sync, peer.digest_equal) {
            _ if peer.holds_nothing() => ("holds nothing", Style::new()),
            (true, Some(false)) => ("digest differs", warning()),
            (true, _) => ("in sync", good()),
            _ => ("NOT IN SYNC", bad()),
        };
        Row::new([
            Cell::from(peer.name.clone()),
            Cell::from(connected).style(style),
            Cell::from(sync).style(sync_style),
            Cell::from(format!(
                "lag {} changes, {} ms; {} would be lost",
                known(lag.sequence_gap, count),
                or_dash(lag.oldest_unacked_ms),
                known(lag.would_be_lost, count),
            )),
        ])
    };
    let link = |link: &LinkStatus| {
        let (up, style) = match link.up {
            true => ("up", good()),
            false => ("DOWN", bad()),
        };
        let sync = if link.carries_sync { "sync" } else { "" };
        Row::new([
            Cell::from("  link"),
            Cell::from(up).style(style),
            Cell::from(sync),
            Cell::from(format!(
                "rtt {} to {}",
                rtt(link.rtt_us),
                or_dash(link.remote.as_ref()),
            )),
        ])
    };
    let mut rows = Vec::new();
    for status in &status.peers {
        rows.push(peer(status));
        rows.extend(status.links.iter().map(link));
    }
    rows
}

fn draw_peers(frame: &mut Frame, area: Rect, rows: Vec<Row<'static>>) {
    let widths = [Length(16), Length(9), Length(14), Min(0)];
    table(
        frame,
        area,
        ["PEER", "STATE", "SYNC", "REPLICATION"],
        widths,
        rows,
    );
}

fn draw_sessions(frame: &mut Frame, area: Rect, status: &Status) {
    let sessions = &status.sessions;
    let is_full = sessions.total > sessions.max / 10 * 9;
    let style = if is_full { bad() } else { Style::new() };
    let line = Line::from(vec![
        Span::styled("SESSIONS  ", heading()),
        Span::styled(session_counts(status), style),
    ]);
    frame.render_widget(line, area);
}

fn draw_graphs(frame: &mut Frame, area: Rect, top: &Top) {
    let columns = Layout::horizontal([Fill(1); Graph::ALL.len()])
        .spacing(1)
        .split(area);
    for (graph, area) in Graph::ALL.into_iter().zip(columns.iter()) {
        let (name, color) = match graph {
            Graph::Packets => ("PACKETS/S", Color::Green),
            Graph::Bits => ("BIT/S", Color::Cyan),
            Graph::Opened => ("NEW SESSIONS/S", Color::Yellow),
            Graph::Drops => ("DROPS/S", Color::Red),
        };
        let [title, bars] = Layout::vertical([Length(1), Min(0)]).areas(*area);
        let value = top.rate(graph).map_or("-".to_owned(), rate);
        let line = Line::from(vec![
            Span::styled(name, heading()),
            Span::raw(format!(" {value}")),
        ]);
        frame.render_widget(line, title);
        // Without a rate there is no bar, and the highest one is as high as the graph.
        let history = top.history(graph, usize::from(bars.width));
        let bar = |rate: Option<f64>| SparklineBar::from(rate.map(|rate| rate.ceil() as u64));
        let sparkline = Sparkline::default()
            .data(history.into_iter().map(bar))
            .absent_value_symbol(" ")
            .style(Style::new().fg(color));
        frame.render_widget(sparkline, bars);
    }
}

fn draw_ports(frame: &mut Frame, area: Rect, top: &Top, status: &Status) {
    let row = |port: &PortStatus| {
        let name = port.name.clone();
        let (up, style) = match port.up {
            true => ("up", good()),
            false => ("DOWN", bad()),
        };
        let rates = top.port(&name);
        let cell = |of: fn(super::state::PortRates) -> f64| {
            right(rates.map_or("-".to_owned(), |rates| rate(of(rates))))
        };
        Row::new([
            Cell::from(name),
            Cell::from(up).style(style),
            cell(|rates| rates.in_packets),
            cell(|rates| rates.in_bits),
            cell(|rates| rates.out_packets),
            cell(|rates| rates.out_bits),
        ])
    };
    let widths = [
        Length(11),
        Length(4),
        Length(6),
        Length(6),
        Length(6),
        Length(6),
    ];
    let headers = ["PORT", "", "  IN/S", " BIT/S", " OUT/S", " BIT/S"];
    table(frame, area, headers, widths, status.ports.iter().map(row));
}

fn draw_drops(frame: &mut Frame, area: Rect, top: &Top) {
    let row = |drop: &super::state::Drop| {
        let style = if drop.rate > 0.0 { bad() } else { Style::new() };
        Row::new([
            right(rate(drop.rate)).style(style),
            right(count(drop.total)),
            Cell::from(drop.reason.clone()),
        ])
    };
    let rows: Vec<Row> = top.drops().iter().map(row).collect();
    let widths = [Length(7), Length(7), Min(0)];
    table(frame, area, ["DROPS/S", "  TOTAL", "REASON"], widths, rows);
}

fn draw_events(frame: &mut Frame, area: Rect, status: &Status) {
    let row = |event: &EventStatus| {
        Row::new([
            right(duration(event.ago_s as u64)),
            Cell::from(event.what.clone()),
            Cell::from(event.why.clone()),
        ])
    };
    let rows: Vec<Row> = status.events.iter().map(row).collect();
    if !rows.is_empty() {
        let widths = [Length(8), Max(40), Min(0)];
        table(frame, area, ["     AGO", "EVENT", "WHY"], widths, rows);
    }
}

fn draw_hosts(frame: &mut Frame, area: Rect, top: &Top) {
    let row = |host: &HostRow| {
        Row::new([
            Cell::from(host.source.clone()),
            right(count(host.sessions.into())),
            right(count(host.half_open.into())),
        ])
    };
    let widths = [Min(16), Length(8), Length(9)];
    let headers = ["HOST", "SESSIONS", "HALF-OPEN"];
    table(frame, area, headers, widths, top.hosts.iter().map(row));
}

fn draw_policies(frame: &mut Frame, area: Rect, top: &Top) {
    let row = |policy: &PolicyRow| {
        let name = policy.name.clone();
        Row::new([
            Cell::from(name.unwrap_or_else(|| "(no policy matches)".to_owned())),
            right(count(policy.hits)),
            right(count(policy.sessions)),
            right(bytes(policy.bytes)),
        ])
    };
    let widths = [Min(12), Length(7), Length(8), Length(9)];
    let headers = ["POLICY", "   HITS", "SESSIONS", "    BYTES"];
    table(frame, area, headers, widths, top.policies.iter().map(row));
}

fn table<'a, const N: usize>(
    frame: &mut Frame,
    area: Rect,
    headers: [&'static str; N],
    widths: [Constraint; N],
    rows: impl IntoIterator<Item = Row<'a>>,
) {
    let table = Table::new(rows, widths)
        .header(Row::new(headers).style(heading()))
        .column_spacing(1);
    frame.render_widget(table, area);
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).alignment(Alignment::Right))
}

/// A rate, short: `0.3`, `17`, `12.3k`.
fn rate(rate: f64) -> String {
    match rate {
        0.0 => "0".to_owned(),
        ..9.95 => format!("{rate:.1}"),
        _ => count(rate.round() as u64),
    }
}

fn heading() -> Style {
    Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn good() -> Style {
    Style::new().fg(Color::Green)
}

fn warning() -> Style {
    Style::new().fg(Color::Yellow)
}

fn bad() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use tandemgw_core::control::protocol::{LagStatus, Traffic};
    use tandemgw_core::time::Time;

    use super::*;
    use crate::cli::sample;

    fn status(second: u64) -> Status {
        let n = second * 1000;
        let mut status = sample::status();
        status.uptime_s = 7000 + second;
        for (port, n) in status.ports.iter_mut().zip([n, n / 3]) {
            port.r#in = Traffic {
                packets: n,
                bytes: n * 1000,
            };
            port.out = Traffic {
                packets: n / 2,
                bytes: n * 500,
            };
        }
        status.sessions.opened = second * second;
        status.counters.forwarded = n;
        status.counters.bytes = n * 1000;
        let drops = [("no-policy", 17 * second), ("tcp-unexpected-syn", 5)];
        status.counters.dropped = drops.map(|(name, n)| (name.to_owned(), n)).into();
        status
    }

    fn watched(seconds: u64) -> Top {
        let mut top = Top::new();
        for second in 1..=seconds {
            top.update(Time::ZERO + Duration::from_secs(second), status(second));
        }
        top
    }

    fn screen(top: &Top, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, top)).unwrap();
        let buffer = terminal.backend().buffer();
        let lines = buffer.content().chunks(usize::from(width.max(1)));
        let lines = lines.map(|line| line.iter().map(ratatui::buffer::Cell::symbol).collect());
        let lines: Vec<String> = lines.collect();
        let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
        lines.join("\n")
    }

    #[test]
    fn eighty_by_twenty_four_holds_everything() {
        let wanted =
            " tandemgw top  gw-a  0.1.0  up 1h 56m                                  every 1s
GROUP            ROLE     STATE      PRIMARY            TERM     SINCE
default          primary  ready      gw-a                  3    12m 5s
PEER             STATE     SYNC           REPLICATION
gw-b             connected in sync        lag 3 changes, 1 ms; 2 would be lost
  link           up        sync           rtt 312 µs to 10.77.9.2:7030
SESSIONS  1234 of 1048576 (0.1 %)  tcp 1000  udp 200  icmp 30  other 4
PACKETS/S 1.0k      BIT/S 8.0M           NEW SESSIONS/S 7.0  DROPS/S 17
                ███                  ███                   █                 ███
                ███                  ███                   █                 ███
                ███                  ███                  ▅█                 ███
                ███                  ███                  ██                 ███
                ███                  ███                 ▃██                 ███
                ███                  ███                 ███                 ███
                ███                  ███                 ███                 ███
                ███                  ███                 ███                 ███
PORT               IN/S  BIT/S  OUT/S  BIT/S DROPS/S   TOTAL REASON
lan         up     1.0k   8.0M    500   4.0M      17      68 no-policy
wan         DOWN    333   2.7M    166   1.3M       0       5 tcp-unexpected-syn

     AGO EVENT                                    WHY
  12m 5s group default: standby → primary         start
 12m 10s peer gw-b connected                      link 0
 q quit   p pause   + - interval";
        assert_eq!(screen(&watched(4), 80, 24), wanted);
    }

    #[test]
    fn a_large_terminal_has_hosts_and_policies() {
        let mut top = watched(4);
        top.hosts = vec![HostRow {
            source: "10.77.1.100".to_owned(),
            sessions: 1234,
            half_open: 5,
            ports: 6,
        }];
        top.policies = vec![PolicyRow {
            name: Some("lan-out".to_owned()),
            action: tandemgw_core::control::protocol::PolicyAction::Accept,
            hits: 77,
            last_hit_s: None,
            sessions: 3,
            packets: 9,
            bytes: 5000,
        }];
        let seen = screen(&top, 100, 40);
        for part in [
            "10.77.1.100",
            "1234",
            "lan-out",
            "77",
            "q quit",
            "PACKETS/S",
            "peer gw-b connected",
        ] {
            assert!(seen.contains(part), "{part}:\n{seen}");
        }
        assert!(!screen(&top, 80, 24).contains("lan-out"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_told() {
        let top = Top::new();
        assert!(screen(&top, 80, 24).contains("waiting for the first answer"));
        let mut top = watched(2);
        top.obey(super::super::state::Command::Pause);
        assert!(screen(&top, 80, 24).contains("PAUSED"));
        top.lose("no running gateway".to_owned());
        let seen = screen(&top, 80, 24);
        assert!(seen.contains("not running, waiting…"), "{seen}");
        assert!(seen.contains("default"), "the last that was known stays");
        let mut top = Top::new();
        top.lose("no running gateway: /run/x does not exist".to_owned());
        assert!(screen(&top, 80, 24).contains("/run/x does not exist"));
    }

    #[test]
    fn no_size_and_no_answer_is_too_strange() {
        let mut strange = Top::new();
        for second in 1..4 {
            let mut answer = status(second);
            answer.groups.clear();
            answer.peers[0].links.clear();
            answer.peers[0].lag = LagStatus {
                sequence_gap: None,
                oldest_unacked_ms: Some(u64::MAX),
                would_be_lost: Some(u64::MAX),
            };
            answer.ports[0].name = "a name that is longer than any table is wide".repeat(9);
            answer.sessions.max = 0;
            answer.counters.forwarded = u64::MAX - second;
            answer.events[0].ago_s = f64::NAN;
            strange.update(Time::ZERO + Duration::from_secs(second), answer);
        }
        for (width, height) in [
            (1, 1),
            (2, 30),
            (30, 2),
            (10, 5),
            (40, 10),
            (120, 40),
            (300, 100),
        ] {
            for top in [&watched(30), &watched(1), &Top::new(), &strange] {
                screen(top, width, height);
            }
        }
        let seen = screen(&watched(30), 40, 10);
        assert!(seen.contains("primar") && seen.contains("gw-b"), "{seen}");
        assert!(seen.contains("q quit"), "{seen}");
        let seen = screen(&watched(30), 120, 40);
        assert!(seen.lines().nth(39).unwrap().contains("q quit"), "{seen}");
    }

    #[test]
    fn the_first_parts_get_their_room_first() {
        assert_eq!(heights(22, [2, 3, 1, 3, 4, 3]), [2, 3, 1, 9, 4, 3]);
        assert_eq!(heights(10, [2, 3, 1, 3, 4, 3]), [2, 3, 1, 3, 1, 0]);
        assert_eq!(heights(0, [2, 3, 1, 3, 4, 3]), [0; 6]);
    }
}
