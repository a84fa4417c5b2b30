//! Describes problems, and logs when they begin and end.

use crate::flow::{GroupId, LinkId, PeerId, PortId};
use crate::ha::Role;
use crate::time::Time;

use super::event_log::{LoggedEvent, Stage, Subject};
use super::health::{Severity, Trouble};
use super::{EventLog, Gateway};

impl Trouble {
    /// The id of its events, which never changes.
    pub fn id(self) -> &'static str {
        match self {
            Trouble::NoPrimary(_) => "no-primary",
            Trouble::Degraded(_) => "degraded",
            Trouble::PortDown(_) => "port-down",
            Trouble::TargetDead(_) => "target-dead",
            Trouble::PortFault(_) => "port-fault",
            Trouble::AddressConflict(_) => "address-conflict",
            Trouble::TableFull => "table-full",
            Trouble::TableNearlyFull => "table-nearly-full",
            Trouble::PeerGone(_) => "peer-gone",
            Trouble::Maintenance => "maintenance",
            Trouble::PeerMaintenance(_) => "peer-maintenance",
            Trouble::NotInSync(_) => "not-in-sync",
            Trouble::PeerPortsDown(_) => "peer-ports-down",
            Trouble::ConfigDiffers(_) => "config-differs",
            Trouble::WitnessSilent => "witness-silent",
            Trouble::LinkDown(..) => "link-down",
        }
    }

    fn group(self) -> Option<GroupId> {
        match self {
            Trouble::NoPrimary(group) | Trouble::Degraded(group) => Some(group),
            _ => None,
        }
    }

    fn peer(self) -> Option<PeerId> {
        match self {
            Trouble::PeerGone(peer)
            | Trouble::PeerMaintenance(peer)
            | Trouble::NotInSync(peer)
            | Trouble::PeerPortsDown(peer)
            | Trouble::ConfigDiffers(peer)
            | Trouble::LinkDown(peer, _) => Some(peer),
            _ => None,
        }
    }
}

impl Gateway {
    /// The recent events.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// The problem, in a sentence.
    pub fn describe_trouble(&self, trouble: Trouble, now: Time) -> String {
        words(trouble, self, now)
    }

    /// A problem begins or ends; `what` describes it.
    pub(super) fn log_trouble(
        &mut self,
        now: Time,
        trouble: Trouble,
        severity: Option<Severity>,
        what: String,
    ) {
        let port = match trouble {
            Trouble::PortDown(port) | Trouble::PortFault(port) | Trouble::AddressConflict(port) => {
                Some(port)
            }
            Trouble::TargetDead(index) => {
                let monitor = self.rules.config().link_monitors.get(index);
                monitor.map(|monitor| monitor.port)
            }
            _ => None,
        };
        let subject = Subject {
            group: trouble
                .group()
                .map(|group| self.group_name(group).to_owned()),
            peer: trouble.peer().map(|peer| self.peer_name(peer).to_owned()),
            port: port.map(|port: PortId| self.port_name(port).to_owned()),
        };
        let (stage, what) = match severity {
            Some(_) => (Stage::Begin, what),
            None => (Stage::End, format!("over: {what}")),
        };
        self.events.push(LoggedEvent {
            sequence: 0,
            at: now,
            id: trouble.id(),
            stage,
            severity,
            what,
            why: String::new(),
            subject,
        });
    }

    /// Logs an event that is not a problem.
    pub(super) fn log_event(
        &mut self,
        now: Time,
        id: &'static str,
        what: String,
        why: &str,
        group: Option<GroupId>,
    ) {
        let subject = Subject {
            group: group.map(|group| self.group_name(group).to_owned()),
            ..Subject::default()
        };
        self.events.push(LoggedEvent {
            sequence: 0,
            at: now,
            id,
            stage: Stage::Once,
            severity: None,
            what,
            why: why.to_owned(),
            subject,
        });
    }

    /// This unit has become primary or standby of a group.
    pub(super) fn log_role(
        &mut self,
        now: Time,
        group: GroupId,
        (role, term): (Role, u64),
        why: &str,
    ) {
        let what = format!("{} of {}, term {term}", role.name(), self.group_name(group));
        self.log_event(now, "role", what, why, Some(group));
    }

    /// Checks whether many packets are dropped.
    pub(super) fn check_drops(&mut self, now: Time) {
        let total = self.counters.dropped.iter().sum();
        let Some(stage) = self.drop_alarm.look(now, total) else {
            return;
        };
        let (severity, what) = match stage {
            Stage::Begin => (Some(Severity::Warning), "many packets are dropped"),
            _ => (None, "over: many packets are dropped"),
        };
        self.events.push(LoggedEvent {
            sequence: 0,
            at: now,
            id: "drops",
            stage,
            severity,
            what: what.to_owned(),
            why: "`tandemgw status` counts them by reason".to_owned(),
            subject: Subject::default(),
        });
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
            "port {} does not work: {}",
            gateway.port_name(port),
            gateway
                .fault(port)
                .map_or("?".to_owned(), |fault| fault.to_string())
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
        Trouble::WitnessSilent => format!(
            "the witness does not answer: {}; in doubt this unit decides without it",
            gateway.witness().map_or("", |view| view.why)
        ),
        Trouble::PeerGone(_)
        | Trouble::PeerMaintenance(_)
        | Trouble::NotInSync(_)
        | Trouble::PeerPortsDown(_)
        | Trouble::ConfigDiffers(_)
        | Trouble::LinkDown(..) => words_of_peer(trouble, gateway, now),
    }
}

/// The words for problems with peers; empty for others.
fn words_of_peer(trouble: Trouble, gateway: &Gateway, now: Time) -> String {
    let peer_name = |peer| gateway.peer_name(peer);
    match trouble {
        Trouble::PeerGone(peer) => {
            let view = gateway.cluster().and_then(|it| it.ha().peer(now, peer));
            let why = view.and_then(|view| view.gone_why);
            match gateway.refused(peer).or(why) {
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
            let why = gateway.refused(peer).map(|why| format!(": {why}"));
            format!(
                "{} and this unit do not hold the same sessions{}",
                peer_name(peer),
                why.unwrap_or_default()
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
            "{} has another config than this unit: {}; {}",
            peer_name(peer),
            gateway.differing_settings(peer),
            gateway.effect_of_other_config(peer)
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
    let settings = gateway.peer_settings(peer);
    let remote = settings.and_then(|peer| peer.addresses.get(link.index()));
    let name = gateway.peer_name(peer);
    match (local, remote) {
        (Some(local), Some(remote)) => format!("{} - {remote} to {name}", local.listen),
        _ => format!("{} to {name}", link.0),
    }
}
