//! Describes what is wrong.

use crate::flow::{LinkId, PeerId};
use crate::gateway::{Gateway, Severity, Trouble};
use crate::time::Time;

use super::protocol::{HealthState, HealthStatus, TroubleStatus};
use super::status::seconds;

/// What was wrong when the gateway last looked.
pub fn health(gateway: &Gateway, now: Time) -> HealthStatus {
    let health = gateway.last_health();
    let standing = health.standing().iter();
    let troubles: Vec<TroubleStatus> = standing
        .map(|standing| TroubleStatus {
            state: match standing.severity {
                Severity::Warning => HealthState::Warning,
                Severity::Critical => HealthState::Critical,
            },
            reason: words(standing.trouble, gateway, now),
            since: seconds(now.since(standing.since)),
        })
        .collect();
    match troubles.first() {
        None => HealthStatus {
            state: HealthState::Good,
            reason: None,
            since: seconds(now.since(health.well_since())),
            troubles,
        },
        Some(worst) => HealthStatus {
            state: worst.state,
            reason: Some(worst.reason.clone()),
            since: worst.since,
            troubles,
        },
    }
}

fn words(trouble: Trouble, gateway: &Gateway, now: Time) -> String {
    match trouble {
        Trouble::NoPrimary(group) => format!("group {} has no primary", gateway.group_name(group)),
        Trouble::Degraded(group) => format!(
            "no link to the primary of group {}, which still answers on its ports",
            gateway.group_name(group)
        ),
        Trouble::PortDown(port) => format!(
            "port {} is down: {} has no carrier, or is set down",
            gateway.port_name(port),
            gateway.config().ports[port.index()].interface
        ),
        Trouble::TargetDead(index) => {
            let monitor = &gateway.config().link_monitors[index];
            format!(
                "{} behind port {} does not answer ({})",
                monitor.server_text(),
                gateway.port_name(monitor.port),
                monitor.protocol.word()
            )
        }
        Trouble::PortFault(port) => format!(
            "port {} does not work: its virtual address {} was added to this machine",
            gateway.port_name(port),
            gateway
                .fault(port)
                .map_or("?".to_owned(), |addr| addr.to_string())
        ),
        Trouble::AddressConflict(port) => {
            let conflict = gateway.conflicts().find(|it| it.port == port);
            match conflict {
                Some(it) => format!(
                    "another machine ({}) uses the virtual address {} of port {}",
                    it.mac_text(),
                    it.addr,
                    gateway.port_name(port)
                ),
                None => format!(
                    "another machine used a virtual address of port {}",
                    gateway.port_name(port)
                ),
            }
        }
        Trouble::TableFull => "the session table is full: new sessions are refused".to_owned(),
        Trouble::TableNearlyFull => "the session table is nearly full".to_owned(),
        Trouble::Maintenance => maintenance(gateway, now),
        Trouble::PeerGone(_)
        | Trouble::PeerMaintenance(_)
        | Trouble::NotInSync(_)
        | Trouble::PeerPortsDown(_)
        | Trouble::ConfigDiffers(_)
        | Trouble::LinkDown(..) => words_of_peer(trouble, gateway, now),
    }
}

/// The same of troubles with peers; empty of others.
fn words_of_peer(trouble: Trouble, gateway: &Gateway, now: Time) -> String {
    let peer_name = |peer| gateway.peer_name(peer);
    match trouble {
        Trouble::PeerGone(peer) => {
            let view = gateway.cluster().and_then(|it| it.ha().peer(now, peer));
            let why = view.and_then(|view| view.gone_why);
            match why {
                Some(why) => format!("{} is gone: {why}", peer_name(peer)),
                None => format!("{} was never heard", peer_name(peer)),
            }
        }
        Trouble::PeerMaintenance(peer) => {
            format!(
                "{} is in maintenance, and takes over only if no other unit is left",
                peer_name(peer)
            )
        }
        Trouble::NotInSync(peer) => {
            format!(
                "{} and this unit do not hold the same sessions",
                peer_name(peer)
            )
        }
        Trouble::PeerPortsDown(peer) => {
            let cluster = gateway.cluster();
            let up = cluster.and_then(|it| it.ha().peer(now, peer));
            let of = cluster.map_or(0, |it| it.ha().monitored_ports());
            format!(
                "{} has {} of {of} monitored ports up",
                peer_name(peer),
                up.map_or(0, |view| view.ports_up)
            )
        }
        Trouble::ConfigDiffers(peer) => format!(
            "{} has another config than this unit: {}",
            peer_name(peer),
            gateway.differing_settings(peer)
        ),
        Trouble::LinkDown(peer, link) => {
            format!("the link {} is down", link_name(peer, link, gateway))
        }
        _ => String::new(),
    }
}

fn maintenance(gateway: &Gateway, now: Time) -> String {
    let name = &gateway.config().node.name;
    let serves = match gateway
        .cluster()
        .is_some_and(|it| it.ha().serves_in_maintenance())
    {
        true => ", but no other unit can take over",
        false => "",
    };
    let end = match gateway.maintenance().and_then(|it| it.until) {
        Some(until) => format!("it ends by itself in {} s", until.since(now).as_secs()),
        None => "`tandemgw maintenance off` ends it".to_owned(),
    };
    format!("{name} is in maintenance{serves}; {end}")
}

/// A link as its two ends: `10.77.9.1:7030 - 10.77.9.2:7030 to gw-b`.
fn link_name(peer: PeerId, link: LinkId, gateway: &Gateway) -> String {
    let ha = gateway.config().ha.as_ref();
    let local = ha.and_then(|ha| ha.links.get(link.index()));
    let peer_config = ha.and_then(|ha| ha.peers.get(peer.index()));
    let remote = peer_config.and_then(|peer| peer.addresses.get(link.index()));
    let name = gateway.peer_name(peer);
    match (local, remote) {
        (Some(local), Some(remote)) => format!("{} - {remote} to {name}", local.listen),
        _ => format!("{} to {name}", link.0),
    }
}
