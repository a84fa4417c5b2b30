//! `tandemgw status` for people: the JSON of the gateway as lines of text.

use std::io::{self, Write};

use serde_json::Value;

/// Events that are shown; the JSON has more.
const EVENTS: usize = 10;

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

/// Writes the status to `out`.
pub fn print(status: &Value, out: &mut impl Write) -> io::Result<()> {
    let (node, version) = (text(&status["node"]), text(&status["version"]));
    writeln!(
        out,
        "node {node}  version {version}  up {} s",
        status["uptime_s"]
    )?;
    for group in list(&status["groups"]) {
        print_group(group, out)?;
    }
    for peer in list(&status["peers"]) {
        print_peer(peer, out)?;
    }
    for port in list(&status["ports"]) {
        let (name, interface) = (text(&port["name"]), text(&port["interface"]));
        let up = choose(&port["up"], "up", "down");
        let offload = text(&port["offload"]);
        writeln!(
            out,
            "port {name:<13} {interface:<15} {up:<5} mtu {:<6} offload {offload}",
            port["mtu"]
        )?;
    }
    let sessions = &status["sessions"];
    write!(out, "sessions {} of {}", sessions["total"], sessions["max"])?;
    for protocol in ["tcp", "udp", "icmp", "other"] {
        write!(out, "  {protocol} {}", sessions[protocol])?;
    }
    writeln!(out)?;
    print_counters(&status["counters"], out)?;
    for event in list(&status["events"]).take(EVENTS) {
        let (what, why) = (text(&event["what"]), text(&event["why"]));
        writeln!(out, "{:>10} s ago  {what}  {why}", event["ago_s"])?;
    }
    Ok(())
}

fn print_group(group: &Value, out: &mut impl Write) -> io::Result<()> {
    let (name, role) = (text(&group["name"]), text(&group["role"]));
    let ready = choose(&group["ready"], "ready", "not ready");
    let degraded = choose(
        &group["degraded"],
        "  DEGRADED: links to the primary are down",
        "",
    );
    let (term, since) = (&group["term"], &group["since"]);
    writeln!(
        out,
        "group {name:<12} {role:<8} {ready}  term {term}  for {since} s{degraded}"
    )
}

fn print_peer(peer: &Value, out: &mut impl Write) -> io::Result<()> {
    let lag = &peer["lag"];
    writeln!(
        out,
        "peer {:<13} {}, {}, {}  lag {} changes, {} ms, {} sessions would be lost",
        text(&peer["name"]),
        choose(&peer["connected"], "connected", "NOT CONNECTED"),
        choose(&peer["in_sync"], "in sync", "NOT IN SYNC"),
        choose(&peer["digest_equal"], "digest equal", "digest differs"),
        lag["sequence_gap"],
        lag["oldest_unacked_ms"],
        lag["would_be_lost"],
    )?;
    for link in list(&peer["links"]) {
        let (local, remote) = (text(&link["local"]), text(&link["remote"]));
        let up = choose(&link["up"], "up", "DOWN");
        let sync = choose(&link["carries_sync"], "  sync", "");
        writeln!(
            out,
            "  link {local} - {remote}  {up}  rtt {} us{sync}",
            link["rtt_us"]
        )?;
    }
    Ok(())
}

fn print_counters(counters: &Value, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "forwarded {}", counters["forwarded"])?;
    for (reason, count) in counters["dropped"].as_object().into_iter().flatten() {
        writeln!(out, "dropped {reason:<20} {count}")?;
    }
    for (name, words) in COUNTERS {
        if counters[name].as_u64() > Some(0) {
            writeln!(out, "{words}: {}", counters[name])?;
        }
    }
    Ok(())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn choose(value: &Value, yes: &'static str, no: &'static str) -> &'static str {
    if value == true { yes } else { no }
}
