//! Status and sessions as JSON.

use serde_json::{Map, Value, json};

use crate::event::DropReason;
use crate::flow::{FlowKey, GroupId, PortId};
use crate::gateway::{Gateway, Role, SessionView};
use crate::time::Time;

/// What the shell knows of a port and the core does not.
#[derive(Clone, Debug)]
pub struct PortIo {
    /// Offloads in use: `tso+uso`, `tso` or `none`.
    pub offload: &'static str,
}

pub fn status(gateway: &Gateway, io: &[PortIo], now: Time) -> Value {
    let config = gateway.config();
    let groups: Vec<Value> = config
        .groups
        .iter()
        .enumerate()
        .map(|(index, group)| {
            let id = GroupId(index as u8);
            let role = match gateway.role_of(id) {
                Role::Primary => "primary",
                Role::Standby => "standby",
            };
            json!({ "name": group.name, "role": role, "ready": true, "term": 0 })
        })
        .collect();
    let ports: Vec<Value> = config
        .ports
        .iter()
        .zip(io)
        .enumerate()
        .map(|(index, (port, io))| {
            let link = gateway.link(PortId(index as u8));
            json!({
                "name": port.name,
                "interface": port.interface,
                "up": link.up,
                "mtu": link.mtu,
                "offload": io.offload,
            })
        })
        .collect();
    let count = gateway.session_counts();
    json!({
        "node": config.node.name,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": gateway.uptime(now).as_secs(),
        "groups": groups,
        "peers": [],
        "ports": ports,
        "sessions": {
            "total": count.tcp + count.udp + count.icmp + count.other,
            "tcp": count.tcp,
            "udp": count.udp,
            "icmp": count.icmp,
            "other": count.other,
            "max": config.node.max_sessions,
        },
        "counters": counters(gateway),
        "events": [],
    })
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
        "dropped": dropped,
        "dropped_early": counters.dropped_early,
        "cleared": counters.cleared,
        "address_conflicts": counters.address_conflicts,
    })
}

pub fn session(view: &SessionView, gateway: &Gateway) -> Value {
    let endpoint = |addr: crate::flow::Addr, port: u16, key: &FlowKey| match (
        key.protocol.has_ports(),
        addr.is_v4(),
    ) {
        (false, _) => addr.to_string(),
        (true, true) => format!("{addr}:{port}"),
        (true, false) => format!("[{addr}]:{port}"),
    };
    let (original, translated) = (&view.original, &view.translated);
    json!({
        "id": view.id,
        "proto": original.protocol.to_string(),
        "in": gateway.port_name(view.in_port),
        "out": gateway.port_name(view.out_port),
        "src": endpoint(original.src, original.src_port, original),
        "dst": endpoint(original.dst, original.dst_port, original),
        "nat_src": endpoint(translated.src, translated.src_port, original),
        "nat_dst": endpoint(translated.dst, translated.dst_port, original),
        "state": view.state,
        "policy": gateway.policy_name(view.policy),
        "group": gateway.group_name(view.group),
        "owner": gateway.config().node.name,
        "synced": view.synced,
        "age_s": view.age_s,
        "expires_s": view.expires_s,
        "packets": view.packets.iter().sum::<u64>(),
        "bytes": view.bytes.iter().sum::<u64>(),
    })
}
