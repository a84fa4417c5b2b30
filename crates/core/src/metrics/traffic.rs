//! Packets, ports, sessions and translation.

use crate::config::Nat;
use crate::event::DropReason;
use crate::flow::{PortId, Protocol};
use crate::gateway::{Gateway, MulticastPort, PortCounters, Severity};
use crate::link_monitor::{TargetState, TargetView};
use crate::session::SessionState;
use crate::shell_view::{FastPathState, PortIo};

use super::page::Page;
use super::{Metric, View, catalog};

/// The protocols whose external ports belong to mappings.
const MAPPED: [(Protocol, &str); 2] = [(Protocol::UDP, "udp"), (Protocol::ICMP, "icmp")];

pub(super) fn build(view: &View<'_>, page: &mut Page<'_>) {
    let node = view.gateway.config().node.name.as_str();
    let labels = [env!("CARGO_PKG_VERSION"), node];
    page.begin(&catalog::BUILD).add(&labels, 1);
    let uptime = view.gateway.uptime(view.now).as_secs_f64();
    page.one(&catalog::UPTIME, uptime);
    let worst = view.gateway.last_health().standing().first();
    let health = worst.map_or(0, |standing| match standing.severity {
        Severity::Warning => 1,
        Severity::Critical => 2,
    });
    page.one(&catalog::HEALTH, health);
}

pub(super) fn packets(view: &View<'_>, page: &mut Page<'_>) {
    let counters = view.gateway.counters();
    page.one(&catalog::FORWARDED, counters.forwarded);
    let mut dropped = page.begin(&catalog::DROPPED);
    for reason in DropReason::ALL {
        dropped.add(&[reason.name()], counters.dropped(*reason));
    }
    page.one(&catalog::OUTPUTS_LOST, counters.outputs_lost);
    page.one(&catalog::CONFLICTS, counters.address_conflicts);
}

pub(super) fn ports(view: &View<'_>, page: &mut Page<'_>) {
    let ports = &view.gateway.config().ports;
    let mut up = page.begin(&catalog::PORT_UP);
    for (index, port) in ports.iter().enumerate() {
        let link = view.gateway.link(PortId::from_index(index));
        up.add(&[&port.name, &port.interface], u8::from(link.up));
    }
    let mut each = |metric, value: fn(&PortCounters) -> u64| {
        let mut samples = page.begin(metric);
        for (index, port) in ports.iter().enumerate() {
            let counters = view.gateway.port_counters(PortId::from_index(index));
            samples.add(&[&port.name], value(&counters));
        }
    };
    each(&catalog::PORT_PACKETS_IN, |port| port.in_packets);
    each(&catalog::PORT_BYTES_IN, |port| port.in_bytes);
    each(&catalog::PORT_PACKETS_OUT, |port| port.out_packets);
    each(&catalog::PORT_BYTES_OUT, |port| port.out_bytes);
}

pub(super) fn targets(view: &View<'_>, page: &mut Page<'_>) {
    let mut each = |metric, value: fn(&TargetView<'_>) -> Option<f64>| {
        let mut samples = page.begin(metric);
        for target in view.gateway.targets() {
            let monitor = target.config;
            let port = view.gateway.port_name(monitor.port);
            let labels = [port, &monitor.server_text(), monitor.protocol.word()];
            if let Some(value) = value(&target) {
                samples.add(&labels, value);
            }
        }
    };
    each(&catalog::TARGET_UP, |target| match target.state {
        TargetState::Unknown => None,
        TargetState::Alive => Some(1.0),
        TargetState::Dead => Some(0.0),
    });
    each(&catalog::TARGET_RTT, |target| {
        target.rtt.map(|rtt| rtt.as_secs_f64())
    });
    each(&catalog::TARGET_SENT, |target| Some(target.sent as f64));
    each(&catalog::TARGET_ANSWERED, |target| {
        Some(target.answered as f64)
    });
}

pub(super) fn sessions(view: &View<'_>, page: &mut Page<'_>) {
    let (gateway, counters) = (view.gateway, view.gateway.counters());
    let states = gateway.session_states();
    let mut sessions = page.begin(&catalog::SESSIONS);
    for state in SessionState::all() {
        sessions.add(&[state.protocol(), state.name()], states.get(state));
    }
    page.one(&catalog::SESSIONS_MAX, gateway.config().node.max_sessions);
    page.one(
        &catalog::MULTICAST_SESSIONS,
        gateway.multicast_count() as u64,
    );
    let mut each = |metric, value: fn(&MulticastPort) -> u64| {
        let mut samples = page.begin(metric);
        for side in gateway.multicast_ports() {
            let labels = [gateway.port_name(side.port), side.family.name()];
            samples.add(&labels, value(&side));
        }
    };
    each(&catalog::MULTICAST_GROUPS, |side| side.groups as u64);
    each(&catalog::MULTICAST_SOURCES, |side| side.sources as u64);
    each(&catalog::MULTICAST_QUERIER, |side| side.is_querier.into());
    page.one(&catalog::SESSIONS_OPENED, counters.opened);
    page.one(&catalog::SESSIONS_DROPPED_EARLY, counters.dropped_early);
    page.one(&catalog::SESSIONS_CLEARED, counters.cleared);
}

/// Nothing where no port asks for it.
pub(super) fn fast_path(view: &View<'_>, page: &mut Page<'_>) {
    let ports = || (0..).map(PortId::from_index).zip(&view.shell.ports);
    let is_off = |io: &PortIo| io.fast_path == FastPathState::Off;
    if ports().all(|(_, io)| is_off(io)) {
        return;
    }
    let mut attached = page.begin(&catalog::FAST_ATTACHED);
    for (port, io) in ports().filter(|(_, io)| !is_off(io)) {
        let is_on = io.fast_path == FastPathState::On;
        attached.add(&[view.gateway.port_name(port)], u8::from(is_on));
    }
    let counters = view.gateway.fast_counters();
    page.one(&catalog::FAST_SESSIONS, view.gateway.fast_sessions() as u64);
    page.one(&catalog::FAST_ENTERED, counters.entered);
    page.one(&catalog::FAST_NO_ROOM, counters.no_room);
    page.one(&catalog::FAST_PACKETS, counters.packets);
    page.one(&catalog::FAST_BYTES, counters.bytes);
    let mut left = page.begin(&catalog::FAST_LEFT);
    for (reason, count) in &view.shell.fast_path {
        left.add(&[reason], *count);
    }
}

pub(super) fn pools(view: &View<'_>, page: &mut Page<'_>) {
    pool_metric(view.gateway, page, &catalog::NAT_USED, |(used, _)| used);
    pool_metric(view.gateway, page, &catalog::NAT_SIZE, |(_, size)| size);
}

fn pool_metric(
    gateway: &Gateway,
    page: &mut Page<'_>,
    metric: &'static Metric,
    value: fn((u64, u64)) -> u64,
) {
    let mut samples = page.begin(metric);
    let mut add = |name: &str, nat, egress| {
        for (protocol, label) in MAPPED {
            let usage = gateway.pool_usage(nat, egress, protocol);
            samples.add(&[name, label], value(usage));
        }
    };
    let config = gateway.config();
    for (index, port) in config.ports.iter().enumerate() {
        let name = format!("port:{}", port.name);
        add(&name, Nat::Egress, PortId::from_index(index));
    }
    for (index, pool) in config.nat_pools.iter().enumerate() {
        add(&pool.name, Nat::Pool(index), PortId(0));
    }
}

pub(super) fn turns(view: &View<'_>, page: &mut Page<'_>) {
    page.begin(&catalog::TURN).histogram(&view.shell.turns);
}
