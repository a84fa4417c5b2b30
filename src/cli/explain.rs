//! `tandemgw explain`: the way of a packet through the gateway, step by step.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::query::{ask, print_line};

/// What the keys of a policy say about a packet that does not match.
const DIFFERENCES: [(&str, &str); 5] = [
    ("from", "it comes in by another port"),
    ("to", "it leaves by another port"),
    ("source", "another source"),
    ("destination", "another destination"),
    ("service", "another service"),
];

pub fn explain(
    socket: Option<&Path>,
    json: bool,
    protocol: String,
    source: String,
    destination: String,
    in_port: String,
) -> ExitCode {
    let request = json!({
        "command": "explain",
        "protocol": protocol,
        "source": source,
        "destination": destination,
        "in_port": in_port,
    });
    ask(socket, &request, |line| match json {
        true => print_line(line),
        false => print(&serde_json::from_str(line)?, &mut io::stdout().lock()),
    })
}

/// Writes the explanation to `out`, a step a line.
fn print(value: &Value, out: &mut impl Write) -> io::Result<()> {
    let flow = &value["flow"];
    let (proto, src, dst) = (text(&flow["proto"]), text(&flow["src"]), text(&flow["dst"]));
    writeln!(out, "{proto} {src} -> {dst}, in by {}", text(&flow["in"]))?;
    if let Some(kind) = value["explained_as"].as_str() {
        step(out, "packet", &format!("taken for {kind}"))?;
    }
    match text(&value["matches"]) {
        "session" => print_session(value, out)?,
        "gateway" => step(out, "session", "none; it is for the gateway's own address")?,
        "nothing" => print_opening(value, out)?,
        _ => {}
    }
    if let Some(group) = value["group"].as_str() {
        let primary = match (value["primary_here"] == true, value["owner"].as_str()) {
            (true, _) => "this unit is primary".to_owned(),
            (false, Some(owner)) => {
                format!("{owner} is primary, and handles it; this unit is standby")
            }
            (false, None) => "this unit is standby, and no primary is known".to_owned(),
        };
        step(out, "group", &format!("{group}: {primary}"))?;
    }
    step(out, "verdict", &verdict(&value["verdict"], value))?;
    if !value["verdict_here"].is_null() {
        step(out, "here", &verdict(&value["verdict_here"], value))?;
    }
    if let Some(survives) = value["survives"].as_str() {
        let why = text(&value["why"]);
        step(
            out,
            "takeover",
            &format!("its session would survive: {survives}, since {why}"),
        )?;
    }
    Ok(())
}

fn print_session(value: &Value, out: &mut impl Write) -> io::Result<()> {
    let session = &value["session"];
    let what = format!(
        "{} of {}, {}, opened by {} -> {}",
        text(&value["direction"]),
        session["id"],
        text(&session["state"]),
        text(&session["src"]),
        text(&session["dst"]),
    );
    step(out, "session", &what)?;
    let counters = format!(
        "{} packets, {} in {} s; expires in {} s if nothing more comes",
        session["packets"],
        super::table::bytes(session["bytes"].as_u64().unwrap_or_default()),
        session["age_s"],
        session["expires_s"],
    );
    step(out, "", &counters)?;
    step(
        out,
        "policy",
        &format!("{} accepted it", text(&session["policy"])),
    )?;
    print_exit(value, out)
}

fn print_opening(value: &Value, out: &mut impl Write) -> io::Result<()> {
    step(out, "session", "none; it would open one")?;
    match value["forward"].as_object() {
        Some(forward) => {
            let (name, to) = (text(&forward["name"]), text(&forward["to"]));
            step(out, "forward", &format!("{name} leads it to {to}"))?;
        }
        None => step(out, "forward", "none applies")?,
    }
    print_route(&value["route"], out)?;
    let mut label = "policy";
    for policy in value["policies"].as_array().into_iter().flatten() {
        let name = text(&policy["name"]);
        let what = match policy["action"].as_str() {
            Some(action) => format!("{name} matches: {action}"),
            None => format!("{name} is passed over: {}", difference(&policy["differs"])),
        };
        step(out, std::mem::take(&mut label), &what)?;
    }
    if text(&value["verdict"]["reason"]) == "no-policy" {
        step(out, label, "no policy matches")?;
    }
    print_nat(&value["nat"], out)?;
    if value["makes_room"] == true {
        step(
            out,
            "table",
            "full: an unanswered session would have to go for it",
        )?;
    }
    print_exit(value, out)
}

fn print_route(route: &Value, out: &mut impl Write) -> io::Result<()> {
    if route.is_null() {
        return Ok(());
    }
    let (destination, prefix) = (text(&route["destination"]), text(&route["prefix"]));
    let what = match text(&route["target"]) {
        "port" => {
            let way = match route["next_hop"].as_str() {
                Some(next_hop) => format!("via {next_hop}"),
                None => "on the link".to_owned(),
            };
            format!(
                "{destination} by {prefix}, {way}, out of {}",
                text(&route["port"])
            )
        }
        "elsewhere" => format!("{destination} by {prefix}, out of an interface that is no port"),
        "unreachable" => format!("{destination} by {prefix}, which is unreachable"),
        _ => format!("none to {destination}"),
    };
    step(out, "route", &what)
}

fn print_nat(nat: &Value, out: &mut impl Write) -> io::Result<()> {
    if nat.is_null() {
        return Ok(());
    }
    let whose = match nat["pool"].as_str() {
        Some(pool) => format!("of pool {pool}"),
        None => "of the port that it leaves by".to_owned(),
    };
    let why = match nat["hairpin"] == true {
        true => "; client and server are behind the same port, and answers must come back here",
        false => "",
    };
    let what = match (nat["src"].as_str(), nat["port_kept"] == true) {
        (None, _) => format!("no port is left at the address {whose}{why}"),
        (Some(src), true) => format!("source becomes {src}, the address {whose}; port kept{why}"),
        (Some(src), false) => {
            format!(
                "source becomes {src}, the address {whose}; its own port is taken, or not among those of the address{why}"
            )
        }
    };
    step(out, "nat", &what)
}

fn print_exit(value: &Value, out: &mut impl Write) -> io::Result<()> {
    let exit = &value["out"];
    if exit.is_null() {
        return Ok(());
    }
    let up = if exit["up"] == true { "up" } else { "DOWN" };
    let what = format!(
        "by {} ({}, {up}, mtu {})",
        text(&exit["port"]),
        text(&exit["interface"]),
        exit["mtu"],
    );
    step(out, "exit", &what)
}

fn verdict(verdict: &Value, value: &Value) -> String {
    let leaves_as = || {
        let leaves_as = &value["leaves_as"];
        format!("{} -> {}", text(&leaves_as["src"]), text(&leaves_as["dst"]))
    };
    match text(&verdict["verdict"]) {
        "forward" => format!("FORWARD as {}", leaves_as()),
        "wait" => format!(
            "FORWARD as {}, once the peers have the session ({})",
            leaves_as(),
            text(&verdict["guarantee"])
        ),
        "answer" => "ANSWER by the gateway itself".to_owned(),
        _ => {
            let told = match verdict["sender_is_told"] == true {
                true => " The sender is told.",
                false => "",
            };
            let (reason, meaning) = (text(&verdict["reason"]), text(&verdict["meaning"]));
            format!("DROP {reason}: {meaning}{told}")
        }
    }
}

fn difference(key: &Value) -> String {
    let known = DIFFERENCES.iter().find(|(name, _)| key == name);
    match known {
        Some((name, words)) => format!("{words} (`{name}`)"),
        None => text(key).to_owned(),
    }
}

fn step(out: &mut impl Write, label: &str, what: &str) -> io::Result<()> {
    writeln!(out, "  {label:<10}{what}")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
