//! `tandemgw explain`: the path of a packet through the gateway, step by step.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use tandemgw_core::control::protocol::{
    ExplainRequest, Explanation, FlowDirection, Matches, Mismatch, NatStep, Request, RouteStep,
    RouteTarget, Verdict,
};

use super::query::ask;
use super::table::bytes;

pub fn explain(socket: Option<&Path>, json: bool, request: ExplainRequest) -> ExitCode {
    ask(socket, &Request::Explain(request), json, |explanation| {
        print(&explanation, &mut io::stdout().lock())
    })
}

/// Writes the explanation to `out`, one step per line.
pub fn print(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    let flow = &explanation.flow;
    let (proto, src, dst) = (&flow.proto, &flow.src, &flow.dst);
    writeln!(out, "{proto} {src} -> {dst}, in by {}", flow.r#in)?;
    if let Some(kind) = &explanation.explained_as {
        step(out, "packet", &format!("taken for {kind}"))?;
    }
    match explanation.matches {
        Some(Matches::Session) => print_session(explanation, out)?,
        Some(Matches::Gateway) => {
            step(out, "session", "none; it is for the gateway's own address")?
        }
        Some(Matches::Machine) => {
            step(out, "session", "none; it is for an address of this machine")?
        }
        Some(Matches::Nothing) => print_opening(explanation, out)?,
        Some(Matches::Unknown) | None => {}
    }
    if let Some(group) = &explanation.group {
        let primary = match (explanation.primary_here, &explanation.owner) {
            (Some(true), _) => "this unit is primary".to_owned(),
            (_, Some(owner)) => {
                format!("{owner} is primary, and handles it; this unit is standby")
            }
            (_, None) => "this unit is standby, and no primary is known".to_owned(),
        };
        step(out, "group", &format!("{group}: {primary}"))?;
    }
    step(out, "verdict", &verdict(&explanation.verdict, explanation))?;
    if let Some(here) = &explanation.verdict_here {
        step(out, "here", &verdict(here, explanation))?;
    }
    if let (Some(survives), Some(why)) = (explanation.survives, &explanation.why) {
        let survives = survives.name();
        step(
            out,
            "takeover",
            &format!("its session would survive: {survives}, since {why}"),
        )?;
    }
    Ok(())
}

fn print_session(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    let Some(session) = &explanation.session else {
        return Ok(());
    };
    let direction = explanation.direction.map_or("-", FlowDirection::name);
    let what = format!(
        "{direction} of {}, {}, opened by {} -> {}",
        session.id, session.state, session.src, session.dst,
    );
    step(out, "session", &what)?;
    let counters = format!(
        "{} packets, {} in {} s; expires in {} s if nothing more comes",
        session.packets,
        bytes(session.bytes),
        session.age_s,
        session.expires_s,
    );
    step(out, "", &counters)?;
    if session.offloaded == Some(true) {
        step(out, "fast path", "the kernel forwards its packets")?;
    } else if let Some(why) = &explanation.why_not_offloaded {
        step(out, "fast path", &format!("no: {why}"))?;
    }
    step(out, "policy", &format!("{} accepted it", session.policy))?;
    print_exit(explanation, out)
}

fn print_opening(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    step(out, "session", "none; it would open one")?;
    match &explanation.forward {
        Some(forward) => {
            let (name, to) = (&forward.name, &forward.to);
            step(out, "forward", &format!("{name} leads it to {to}"))?;
        }
        None => step(out, "forward", "none applies")?,
    }
    if let Some(route) = &explanation.route {
        print_route(route, out)?;
    }
    let mut label = "policy";
    if explanation.policies_before > 0 {
        let what = format!("{} others are passed over", explanation.policies_before);
        step(out, std::mem::take(&mut label), &what)?;
    }
    for policy in &explanation.policies {
        let name = &policy.name;
        let what = match policy.action {
            Some(action) => format!("{name} matches: {}", action.name()),
            None => format!("{name} is passed over: {}", difference(policy.differs)),
        };
        step(out, std::mem::take(&mut label), &what)?;
    }
    if matches!(&explanation.verdict, Verdict::Drop { reason, .. } if reason == "no-policy") {
        step(out, label, "no policy matches")?;
    }
    if let Some(nat) = &explanation.nat {
        print_nat(nat, out)?;
    }
    if explanation.makes_room {
        step(
            out,
            "room",
            "none: another session would have to end to make room",
        )?;
    }
    print_exit(explanation, out)
}

fn print_route(route: &RouteStep, out: &mut impl Write) -> io::Result<()> {
    let destination = &route.destination;
    let prefix = route.prefix.as_deref().unwrap_or("-");
    let what = match route.target {
        RouteTarget::Port => {
            let way = match &route.next_hop {
                Some(next_hop) => format!("via {next_hop}"),
                None => "on the link".to_owned(),
            };
            let port = route.port.as_deref().unwrap_or("-");
            format!("{destination} by {prefix}, {way}, out of {port}")
        }
        RouteTarget::Elsewhere => {
            format!("{destination} by {prefix}, out of an interface that is not a port")
        }
        RouteTarget::Unreachable => format!("{destination} by {prefix}, which is unreachable"),
        RouteTarget::None => format!("none to {destination}"),
    };
    step(out, "route", &what)
}

fn print_nat(nat: &NatStep, out: &mut impl Write) -> io::Result<()> {
    let whose = match &nat.pool {
        Some(pool) => format!("of pool {pool}"),
        None => "of the port that it leaves by".to_owned(),
    };
    let why = match nat.hairpin {
        true => "; client and server are behind the same port, and answers must come back here",
        false => "",
    };
    let what = match (&nat.src, nat.port_kept) {
        (None, _) => format!("no port is left at the address {whose}{why}"),
        (Some(src), Some(true)) => {
            format!("source becomes {src}, the address {whose}; port kept{why}")
        }
        (Some(src), _) => {
            format!(
                "source becomes {src}, the address {whose}; its own port is taken, or not among those of the address{why}"
            )
        }
    };
    step(out, "nat", &what)
}

fn print_exit(explanation: &Explanation, out: &mut impl Write) -> io::Result<()> {
    let Some(exit) = &explanation.out else {
        return Ok(());
    };
    let up = if exit.up { "up" } else { "DOWN" };
    let what = format!(
        "by {} ({}, {up}, mtu {})",
        exit.port, exit.interface, exit.mtu
    );
    step(out, "exit", &what)
}

fn verdict(verdict: &Verdict, explanation: &Explanation) -> String {
    let leaves_as = || match &explanation.leaves_as {
        Some(leaves_as) => format!("{} -> {}", leaves_as.src, leaves_as.dst),
        None => "it is".to_owned(),
    };
    match verdict {
        Verdict::Forward => format!("FORWARD as {}", leaves_as()),
        Verdict::Wait { guarantee } => format!(
            "FORWARD as {}, once the peers have the session ({})",
            leaves_as(),
            guarantee.name()
        ),
        Verdict::Answer => "ANSWER by the gateway itself".to_owned(),
        Verdict::Kernel => {
            "KERNEL: this machine's own kernel takes it, and policies do not apply; \
                            a service that listens there is reached"
                .to_owned()
        }
        Verdict::Drop {
            reason,
            meaning,
            sender_is_told,
        } => {
            let told = match sender_is_told {
                true => " The sender is notified.",
                false => "",
            };
            format!("DROP {reason}: {meaning}{told}")
        }
    }
}

fn difference(key: Option<Mismatch>) -> &'static str {
    match key {
        Some(Mismatch::From) => "it comes in by another port (`from`)",
        Some(Mismatch::To) => "it leaves by another port (`to`)",
        Some(Mismatch::Source) => "another source (`source`)",
        Some(Mismatch::Destination) => "another destination (`destination`)",
        Some(Mismatch::Service) => "another service (`service`)",
        Some(Mismatch::Forwarded) => {
            "by a forward, or past one to its server's own address (`forwarded`)"
        }
        Some(Mismatch::Unknown) | None => "it does not match",
    }
}

fn step(out: &mut impl Write, label: &str, what: &str) -> io::Result<()> {
    writeln!(out, "  {label:<10}{what}")
}
