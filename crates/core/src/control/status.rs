//! The state of the unit, in the terms of the protocol.

use crate::config::Ha;
use crate::event::DropReason;
use crate::flow::{GroupId, LinkId, PeerId, PortId};
use crate::gateway::{self, Cluster, Gateway};
use crate::ha::PeerView;
use crate::time::Time;

use super::protocol::{
    AsymmetricCounters, BarrierStatus, CaptureStatus, ConfigStatus, CounterStatus, EventStatus,
    FastPathStatus, GroupStatus, GuaranteeCounters, LagStatus, LinkStatus, MaintenanceStatus,
    MonitoredStatus, PeerConfig, PeerGroup, PeerStatus, PortStatus, Role, SessionStatus, Status,
    TargetStatus, Traffic, VERSION, write_line,
};
use super::{FastPathState, PortIo, Progress, ShellView, health, protocol, seconds};

/// Ports per piece, of some 3 µs each.
const PORTS_AT_A_TIME: usize = 64;

/// A status in progress: the ports, of which there may be many, come piece by piece.
#[derive(Debug)]
pub struct StatusAnswer {
    /// What is before the next port.
    text: String,
    /// What is after the last one.
    rest: String,
    next: usize,
}

impl StatusAnswer {
    pub(super) fn begin(gateway: &mut Gateway, shell: &ShellView, now: Time) -> StatusAnswer {
        /// The list of the ports, which is empty. In a string the quotes would be escaped.
        const PORTS: &str = "\"ports\":[";
        let mut line = String::new();
        write_line(&mut line, &status_without_ports(gateway, shell, now));
        let end = line.find(PORTS).map_or(line.len(), |at| at + PORTS.len());
        let rest = line.split_off(end);
        StatusAnswer {
            text: line,
            rest,
            next: 0,
        }
    }

    /// Adds some ports; writes all of it to `out` when none is left: it is one line.
    pub(super) fn go_on(
        &mut self,
        gateway: &Gateway,
        shell: &ShellView,
        now: Time,
        out: &mut String,
    ) -> Progress {
        let count = gateway.config().ports.len();
        let until = count.min(self.next + PORTS_AT_A_TIME);
        for index in self.next..until {
            if index > 0 {
                self.text.push(',');
            }
            write_line(
                &mut self.text,
                &port(gateway, shell, PortId::from_index(index), now),
            );
            // It is a part of a line.
            self.text.pop();
        }
        self.next = until;
        if until < count {
            return Progress::More;
        }
        out.push_str(&self.text);
        out.push_str(&self.rest);
        Progress::Done
    }
}

fn status_without_ports(gateway: &mut Gateway, shell: &ShellView, now: Time) -> Status {
    gateway.health(now);
    let gateway = &*gateway;
    let config = gateway.config();
    let cluster = gateway.cluster().zip(config.ha.as_ref());
    let peers = gateway
        .peers()
        .filter_map(|id| Some(peer(gateway, cluster?, id, now)));
    Status {
        protocol: Some(VERSION),
        node: config.node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: gateway.uptime(now).as_secs(),
        health: Some(health::health(gateway, now)),
        maintenance: maintenance(gateway, shell, now),
        config: Some(ConfigStatus {
            file: shell.config_file.display().to_string(),
            checksum: checksum(gateway.rules_digest()),
        }),
        monitored: cluster.map(|(cluster, _)| {
            let (up, all) = cluster.ha().monitored();
            MonitoredStatus {
                up,
                all: all as u32,
            }
        }),
        witness: super::witness::status(gateway, now),
        groups: gateway.groups().map(|id| group(gateway, id, now)).collect(),
        peers: peers.collect(),
        ports: Vec::new(),
        sessions: sessions(gateway),
        counters: counters(gateway, shell),
        barrier: Some(BarrierStatus {
            set: shell.barrier.why_not.is_none(),
            why_not: shell.barrier.why_not.clone(),
            stopped: shell.barrier.stopped,
        }),
        fast_path: fast_path(gateway, shell),
        capture: capture(gateway, now),
        events: events(gateway, shell, now),
    }
}

fn fast_path(gateway: &Gateway, shell: &ShellView) -> Option<FastPathStatus> {
    let is_on = |port: &PortIo| port.fast_path == FastPathState::On;
    let counters = gateway.fast_counters();
    // What was counted stays to be seen while something bars the ports.
    if counters.entered == 0 && !shell.ports.iter().any(is_on) {
        return None;
    }
    let left = shell.fast_path.iter();
    Some(FastPathStatus {
        sessions: gateway.fast_sessions() as u64,
        entered: counters.entered,
        no_room: counters.no_room,
        packets: counters.packets,
        bytes: counters.bytes,
        left: left
            .map(|(why, count)| ((*why).to_owned(), *count))
            .collect(),
    })
}

fn maintenance(gateway: &Gateway, shell: &ShellView, now: Time) -> Option<MaintenanceStatus> {
    let maintenance = gateway.maintenance()?;
    Some(MaintenanceStatus {
        since: seconds(now.since(maintenance.since)),
        until: maintenance.until.map(|at| since_1970(shell, at)),
        not_saved: shell.state_not_saved.clone(),
    })
}

/// A moment in the terms of the protocol.
pub(super) fn since_1970(shell: &ShellView, at: Time) -> f64 {
    seconds(shell.boot + at.since(Time::ZERO))
}

fn sessions(gateway: &Gateway) -> SessionStatus {
    let count = gateway.session_counts();
    SessionStatus {
        total: u64::from(count.tcp + count.udp + count.icmp + count.other),
        tcp: u64::from(count.tcp),
        udp: u64::from(count.udp),
        icmp: u64::from(count.icmp),
        other: u64::from(count.other),
        max: u64::from(gateway.config().node.max_sessions),
        opened: gateway.counters().opened,
    }
}

fn capture(gateway: &Gateway, now: Time) -> Option<CaptureStatus> {
    let capture = gateway.capture()?;
    let total = capture.total();
    Some(CaptureStatus {
        since: seconds(now.since(capture.started())),
        packets: total.matched,
        lost: total.lost,
    })
}

fn group(gateway: &Gateway, id: GroupId, now: Time) -> GroupStatus {
    let standalone = GroupStatus {
        name: gateway.group_name(id).to_owned(),
        role: role(gateway.role_of(id)),
        ready: true,
        term: 0,
        since: seconds(gateway.uptime(now)),
        primary: None,
        priority: None,
        degraded: None,
        draining: None,
        weight: weight(gateway, id, &gateway.config().node.name),
        holder: true,
        lease: None,
    };
    let ha = gateway.cluster().map(Cluster::ha);
    match ha.and_then(|ha| ha.group(now, id)) {
        None => GroupStatus {
            primary: Some(gateway.config().node.name.clone()),
            ..standalone
        },
        Some(view) => GroupStatus {
            lease: ha
                .and_then(|ha| ha.lease_holder(now, id))
                .map(str::to_owned),
            ready: view.ready,
            holder: view.holder,
            term: view.term,
            since: seconds(now.since(view.since)),
            primary: view.primary.map(str::to_owned),
            priority: Some(view.priority),
            degraded: Some(view.degraded),
            draining: Some(view.draining),
            ..standalone
        },
    }
}

/// The weight of a unit in a group that is cut into slots.
fn weight(gateway: &Gateway, group: GroupId, unit: &str) -> Option<u8> {
    let group = gateway.config().groups.get(usize::from(group.0))?;
    group.is_cut().then(|| group.weight_of(unit))
}

pub(super) fn role(role: gateway::Role) -> Role {
    match role {
        gateway::Role::Primary => Role::Primary,
        gateway::Role::Standby => Role::Standby,
    }
}

fn port(gateway: &Gateway, shell: &ShellView, id: PortId, now: Time) -> PortStatus {
    let port = &gateway.config().ports[id.index()];
    let link = gateway.link(id);
    let counters = gateway.port_counters(id);
    let io = &shell.ports[id.index()];
    PortStatus {
        name: port.name.clone(),
        interface: port.interface.clone(),
        up: link.up,
        fault: gateway.fault(id).map(|fault| fault.to_string()),
        targets: Some(targets(gateway, id, now)),
        mtu: link.mtu,
        offload: match io.fast_path {
            FastPathState::On => "ebpf",
            _ => io.offload,
        }
        .to_owned(),
        why_no_ebpf: match &io.fast_path {
            FastPathState::Unavailable(why) => Some(why.clone()),
            _ => None,
        },
        r#in: Traffic {
            packets: counters.in_packets,
            bytes: counters.in_bytes,
        },
        out: Traffic {
            packets: counters.out_packets,
            bytes: counters.out_bytes,
        },
    }
}

fn targets(gateway: &Gateway, port: PortId, now: Time) -> Vec<TargetStatus> {
    use crate::link_monitor::TargetState as State;
    let own = gateway
        .targets()
        .filter(|target| target.config.port == port);
    own.map(|target| TargetStatus {
        server: target.config.server_text(),
        protocol: target.config.protocol.word().to_owned(),
        state: match target.state {
            State::Unknown => None,
            State::Alive => Some(protocol::TargetState::Alive),
            State::Dead => Some(protocol::TargetState::Dead),
        },
        since: seconds(now.since(target.since)),
        rtt_us: target.rtt.map(|rtt| rtt.as_micros() as u64),
        sent: target.sent,
        answered: target.answered,
        why_not: target.why_not.map(|why| why.text().to_owned()),
    })
    .collect()
}

fn peer(
    gateway: &Gateway,
    (cluster, config): (&Cluster, &Ha),
    id: PeerId,
    now: Time,
) -> PeerStatus {
    let state = gateway.peer_state(now, id);
    let view = cluster.ha().peer(now, id);
    let alive = view.as_ref().filter(|view| view.alive);
    let about = cluster.sync().about(id).filter(|_| state.connected);
    let groups = peer_groups(gateway, id, view.as_ref(), now);
    let same = |of: fn(&PeerGroup) -> Option<u64>| {
        let first = of(groups.first()?)?;
        let equal = groups.iter().all(|group| of(group) == Some(first));
        equal.then_some(first)
    };
    let is_primary = same(|group| Some(u64::from(group.role? == Role::Primary)));
    PeerStatus {
        name: gateway.peer_name(id).to_owned(),
        connected: state.connected,
        gone: view
            .as_ref()
            .and_then(|view| {
                gateway
                    .refused(id)
                    .filter(|_| !view.alive)
                    .or(view.gone_why)
            })
            .map(str::to_owned),
        refused: gateway.refused(id).map(str::to_owned),
        heard_on: view.as_ref().map(|view| heard_on(gateway, view)),
        role: is_primary.map(|is_primary| match is_primary {
            0 => Role::Standby,
            _ => Role::Primary,
        }),
        priority: same(|group| group.priority.map(u64::from)).map(|priority| priority as u8),
        version: about.and_then(|about| about.program).map(str::to_owned),
        uptime_s: alive.and_then(|view| Some(view.uptime?.as_secs())),
        ports_up: alive.map(|view| view.ports_up),
        maintenance: alive.map(|view| view.maintenance),
        config: Some(PeerConfig {
            checksum: about.map(|about| checksum(about.ruleset)),
            equal: about.map(|about| about.is_equal()),
            differs: about.map(|about| about.differing.to_vec()),
        }),
        groups: Some(groups),
        in_sync: state.in_sync,
        digest_equal: state.digest_equal,
        lag: lag(gateway, id, now),
        links: links(gateway, cluster, config, id, now),
    }
}

/// The names of the ports on which a peer is heard.
fn heard_on(gateway: &Gateway, view: &PeerView<'_>) -> Vec<String> {
    let ports = gateway.config().ports.iter().zip(&view.heard_on);
    let heard = ports.filter(|(_, is_heard)| **is_heard);
    heard.map(|(port, _)| port.name.clone()).collect()
}

/// A peer's report about the groups of this unit.
fn peer_groups(
    gateway: &Gateway,
    peer: PeerId,
    view: Option<&PeerView<'_>>,
    now: Time,
) -> Vec<PeerGroup> {
    let groups = gateway.groups().map(|id| {
        let alive = view.filter(|view| view.alive);
        let said = |view: Option<&PeerView<'_>>| {
            let group = view?.groups.get(usize::from(id.0))?;
            group.known.then_some(*group)
        };
        let state = gateway.peer_group_state(now, peer, id);
        PeerGroup {
            group: gateway.group_name(id).to_owned(),
            role: said(alive).map(|group| role(group.role)),
            priority: said(view).map(|group| group.priority),
            in_sync: state.in_sync,
            digest_equal: state.digest_equal,
            applied: state.applied,
            would_be_lost: state.would_be_lost,
            holder: state.holder,
            weight: weight(gateway, id, gateway.peer_name(peer)),
        }
    });
    groups.collect()
}

/// How far a peer is behind.
fn lag(gateway: &Gateway, id: PeerId, now: Time) -> LagStatus {
    let connected = gateway.peer_state(now, id).connected;
    let lag = gateway.lag(id, now);
    let oldest_ms = lag.oldest_unacked.as_millis() as u64;
    // A peer that is to hold none of this unit's groups loses nothing.
    let mut sent = gateway
        .groups()
        .filter(|group| gateway.role_of(*group) == gateway::Role::Primary)
        .peekable();
    let counts = sent.peek().is_none()
        || sent.any(|group| gateway.peer_group_state(now, id, group).holder != Some(false));
    LagStatus {
        sequence_gap: connected.then_some(lag.sequence_gap),
        oldest_unacked_ms: connected.then_some(oldest_ms),
        would_be_lost: counts.then(|| u64::from(lag.would_be_lost)),
    }
}

/// A digest in readable form.
fn checksum(digest: [u8; 16]) -> String {
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn links(
    gateway: &Gateway,
    cluster: &Cluster,
    config: &Ha,
    id: PeerId,
    now: Time,
) -> Vec<LinkStatus> {
    let view = cluster.ha().peer(now, id);
    let addresses = gateway.peer_settings(id).map(|peer| &peer.addresses);
    let links = view.iter().flat_map(|view| &view.links).enumerate();
    links
        .map(|(index, link)| {
            let up = link.connected && link.alive;
            let remote = addresses.and_then(|all| all.get(index));
            LinkStatus {
                local: config.links.get(index).map(|link| link.listen.to_string()),
                remote: remote.map(ToString::to_string),
                up,
                rtt_us: link.rtt.filter(|_| up).map(|rtt| rtt.as_micros() as u64),
                carries_sync: up
                    && gateway.peer_state(now, id).connected
                    && gateway.sync_link(id).map(LinkId::index) == Some(index),
            }
        })
        .collect()
}

fn events(gateway: &Gateway, shell: &ShellView, now: Time) -> Vec<EventStatus> {
    let events = gateway
        .cluster()
        .into_iter()
        .flat_map(|cluster| cluster.ha().events().rev());
    events
        .map(|event| EventStatus {
            at: since_1970(shell, event.at),
            ago_s: seconds(now.since(event.at)),
            what: event.what.clone(),
            why: event.why.clone(),
            warn: Some(event.warn),
        })
        .collect()
}

fn counters(gateway: &Gateway, shell: &ShellView) -> CounterStatus {
    let counters = gateway.counters();
    let dropped = DropReason::ALL
        .iter()
        .filter(|reason| counters.dropped(**reason) > 0)
        .map(|reason| (reason.name().to_owned(), counters.dropped(*reason)))
        .collect();
    CounterStatus {
        forwarded: counters.forwarded,
        bytes: gateway.forwarded_bytes(),
        dropped,
        dropped_early: counters.dropped_early,
        cleared: counters.cleared,
        forbidden: counters.forbidden,
        outputs_lost: counters.outputs_lost,
        address_conflicts: counters.address_conflicts,
        handshakes_limited: shell.refused.map(|refused| refused.handshakes_limited),
        pickup_guarantee: GuaranteeCounters {
            held: counters.guarantee_held,
            expired: counters.guarantee_expired,
            degraded: counters.guarantee_degraded,
            refused: counters.guarantee_refused,
        },
        asymmetric_flows: AsymmetricCounters {
            stood_in: counters.stood_in,
            passed_on: counters.passed_on,
            received: counters.received_from_peers,
        },
    }
}
