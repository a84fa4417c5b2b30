//! Status and sessions as JSON.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::event::DropReason;
use crate::flow::{GroupId, LinkId, PeerId, PortId};
use crate::gateway::{Gateway, HandoverEnd};
use crate::time::Time;

use super::ShellView;

pub fn status(gateway: &Gateway, shell: &ShellView, now: Time) -> Value {
    let config = gateway.config();
    let groups: Vec<Value> = gateway.groups().map(|id| group(gateway, id, now)).collect();
    let peers: Vec<Value> = gateway.peers().map(|id| peer(gateway, id, now)).collect();
    let ports: Vec<Value> = (0..config.ports.len())
        .map(|id| port(gateway, shell, PortId::from_index(id)))
        .collect();
    let count = gateway.session_counts();
    json!({
        "node": config.node.name,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": gateway.uptime(now).as_secs(),
        "groups": groups,
        "peers": peers,
        "ports": ports,
        "sessions": {
            "total": count.tcp + count.udp + count.icmp + count.other,
            "tcp": count.tcp,
            "udp": count.udp,
            "icmp": count.icmp,
            "other": count.other,
            "max": config.node.max_sessions,
            "opened": gateway.counters().opened,
        },
        "counters": counters(gateway),
        "barrier": {
            "set": shell.barrier.why_not.is_none(),
            "why_not": shell.barrier.why_not,
            "stopped": shell.barrier.stopped,
        },
        "capture": gateway.capture().map(|capture| {
            let total = capture.total();
            json!({ "since": seconds(now.since(capture.started())),
                    "packets": total.matched, "lost": total.lost })
        }),
        "events": events(gateway, now),
    })
}

fn group(gateway: &Gateway, id: GroupId, now: Time) -> Value {
    let role = gateway.role_of(id).name();
    let name = gateway.group_name(id);
    match gateway
        .cluster()
        .and_then(|cluster| cluster.ha().group(now, id))
    {
        None => json!({ "name": name, "role": role, "ready": true, "term": 0,
                        "since": seconds(gateway.uptime(now)) }),
        Some(view) => json!({
            "name": name,
            "role": role,
            "ready": view.ready,
            "term": view.term,
            "since": seconds(now.since(view.since)),
            "primary": view.primary,
            "priority": view.priority,
            "degraded": view.degraded,
            "draining": view.draining,
        }),
    }
}

fn port(gateway: &Gateway, shell: &ShellView, id: PortId) -> Value {
    let port = &gateway.config().ports[id.index()];
    let link = gateway.link(id);
    let counters = gateway.port_counters(id);
    json!({
        "name": port.name,
        "interface": port.interface,
        "up": link.up,
        "fault": gateway.fault(id).map(|addr| {
            format!("the virtual address {addr} is an address of this machine")
        }),
        "mtu": link.mtu,
        "offload": shell.ports[id.index()].offload,
        "in": { "packets": counters.in_packets, "bytes": counters.in_bytes },
        "out": { "packets": counters.out_packets, "bytes": counters.out_bytes },
    })
}

fn peer(gateway: &Gateway, id: PeerId, now: Time) -> Value {
    let (Some(cluster), Some(ha)) = (gateway.cluster(), &gateway.config().ha) else {
        return Value::Null;
    };
    let view = cluster.ha().peer(now, id);
    let state = gateway.peer_state(id);
    let lag = cluster.sync().lag(id, now);
    let addresses = ha.peers.get(id.index()).map(|peer| &peer.addresses);
    let links: Vec<Value> = view
        .iter()
        .flat_map(|view| &view.links)
        .enumerate()
        .map(|(index, link)| {
            let up = link.connected && link.alive;
            json!({
                "local": ha.links.get(index).map(|link| link.listen.to_string()),
                "remote": addresses.and_then(|all| all.get(index)).map(ToString::to_string),
                "up": up,
                "rtt_us": link.rtt.filter(|_| up).map(|rtt| rtt.as_micros() as u64),
                "carries_sync": gateway.sync_link(id).map(LinkId::index) == Some(index),
            })
        })
        .collect();
    json!({
        "name": gateway.peer_name(id),
        "connected": state.connected,
        "in_sync": state.in_sync,
        "digest_equal": state.digest_equal,
        "lag": {
            "sequence_gap": lag.sequence_gap,
            "oldest_unacked_ms": lag.oldest_unacked.as_millis() as u64,
            "would_be_lost": lag.would_be_lost,
        },
        "links": links,
    })
}

/// What happened lately; the newest first, with the age in seconds.
fn events(gateway: &Gateway, now: Time) -> Vec<Value> {
    let events = gateway
        .cluster()
        .into_iter()
        .flat_map(|cluster| cluster.ha().events().rev());
    events
        .map(|event| {
            json!({
                "at": seconds(event.at.since(Time::ZERO)),
                "ago_s": seconds(now.since(event.at)),
                "what": event.what,
                "why": event.why,
            })
        })
        .collect()
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

fn counters(gateway: &Gateway) -> Value {
    let counters = gateway.counters();
    let dropped: Map<String, Value> = DropReason::ALL
        .iter()
        .filter(|reason| counters.dropped(**reason) > 0)
        .map(|reason| (reason.name().to_owned(), counters.dropped(*reason).into()))
        .collect();
    json!({
        "forwarded": counters.forwarded,
        "bytes": gateway.forwarded_bytes(),
        "dropped": dropped,
        "dropped_early": counters.dropped_early,
        "cleared": counters.cleared,
        "forbidden": counters.forbidden,
        "outputs_lost": counters.outputs_lost,
        "address_conflicts": counters.address_conflicts,
        "pickup_guarantee": {
            "held": counters.guarantee_held,
            "expired": counters.guarantee_expired,
            "degraded": counters.guarantee_degraded,
        },
    })
}

/// The end of a planned handover.
pub fn handover(end: &HandoverEnd, gateway: &Gateway) -> Value {
    json!({
        "group": gateway.group_name(end.group),
        "to": gateway.peer_name(end.to),
        "took_ms": end.took.as_secs_f64() * 1e3,
        "refused": end.result.as_ref().err(),
    })
}
