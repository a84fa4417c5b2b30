//! The state of a unit in the terms of the protocol.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The state of a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of this protocol; `null` from gateways of version 0.
    pub protocol: Option<u32>,
    /// The name of the unit.
    pub node: String,
    /// The version of the program.
    pub version: String,
    /// Seconds since the gateway was started.
    pub uptime_s: u64,
    /// Whether this unit is well, and the others as far as it knows.
    pub health: Option<HealthStatus>,
    /// The maintenance of this unit; `null` if there is none.
    pub maintenance: Option<MaintenanceStatus>,
    /// The config in force.
    pub config: Option<ConfigStatus>,
    /// The ports of this unit that `monitor` names; `null` without `[ha]`.
    pub monitored: Option<MonitoredStatus>,
    /// The witness; `null` without `[ha.witness]`.
    pub witness: Option<super::WitnessStatus>,
    /// The groups of virtual addresses.
    pub groups: Vec<GroupStatus>,
    /// The other units.
    pub peers: Vec<PeerStatus>,
    /// The ports, in the order of the config.
    pub ports: Vec<PortStatus>,
    /// The session table.
    pub sessions: SessionStatus,
    /// Counters since the start.
    pub counters: CounterStatus,
    /// The rules in the kernel's packet filter that keep packets from bypassing the gateway.
    pub barrier: Option<BarrierStatus>,
    /// The fast path; `null` if no port is in it, or was.
    pub fast_path: Option<FastPathStatus>,
    /// The capture in progress; `null` if there is none.
    pub capture: Option<CaptureStatus>,
    /// Recent events, the newest first.
    pub events: Vec<EventStatus>,
}

/// Whether all is well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// The state of the worst problem.
    pub state: HealthState,
    /// The problem, in one sentence; `null` if there is none.
    pub reason: Option<String>,
    /// For how many seconds that has been so.
    pub since: f64,
    /// All problems, the worst first.
    pub troubles: Vec<TroubleStatus>,
}

/// A problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TroubleStatus {
    /// How bad it is.
    pub state: HealthState,
    /// The problem, in one sentence.
    pub reason: String,
    /// For how many seconds that has been so.
    pub since: f64,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthState {
    /// All is well.
    Good,
    /// Redundancy or sessions are at risk.
    Warning,
    /// Packets are not forwarded.
    Critical,
}

/// A maintenance in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceStatus {
    /// For how many seconds.
    pub since: f64,
    /// When it ends by itself, in seconds since 1970; `null` if it does not.
    pub until: Option<f64>,
    /// Why it would be forgotten by a restart; `null` if it would not.
    pub not_saved: Option<String>,
}

/// The config that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// The file that it was read from.
    pub file: String,
    /// A checksum of its policies, pools and forwards.
    pub checksum: String,
}

/// How the config of a peer compares with that of this unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConfig {
    /// The checksum of its virtual addresses, groups, policies, pools and forwards; `null` while
    /// there is no stream from it.
    pub checksum: Option<String>,
    /// Whether this unit has the same; `null` while that is not known.
    pub equal: Option<bool>,
    /// The names of the differing settings, at most eight and how many more; `null` while that is
    /// not known.
    pub differs: Option<Vec<String>>,
}

/// A peer's state for a group, from its last heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerGroup {
    /// `name` of the `[[group]]`.
    pub group: String,
    /// Its role; `null` if it is not connected.
    pub role: Option<Role>,
    /// Its priority; `null` if it was never heard.
    pub priority: Option<u8>,
    /// Whether it holds all sessions of the group; `null` if it is not connected.
    pub in_sync: Option<bool>,
    /// Whether both units had exactly the same sessions when they were compared last.
    #[serde(default)]
    pub digest_equal: Option<bool>,
    /// The last change of the primary that the other unit has applied.
    #[serde(default)]
    pub applied: Option<u64>,
    /// Sessions that it would lack if this unit, the primary, died now.
    #[serde(default)]
    pub would_be_lost: Option<u32>,
    /// Whether it is primary of the group, or one of the units that hold it; `null` if its config
    /// lacks the group. With `copies`, not all units hold each group.
    #[serde(default)]
    pub holder: Option<bool>,
    /// Its weight by the config of this unit; `null` if the group is not cut into slots.
    #[serde(default)]
    pub weight: Option<u8>,
}

/// The role of a unit for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It forwards the packets of the group.
    Primary,
    /// It holds copies of the sessions of the group.
    Standby,
}

impl Role {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Standby => "standby",
        }
    }
}

/// Gateways that do not say it hold all groups.
fn yes() -> bool {
    true
}

/// The ports that decide which unit is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitoredStatus {
    /// How many of them are up, as the peers hear it.
    pub up: u8,
    /// How many there are.
    pub all: u32,
}

/// A group of virtual addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// `name` of the `[[group]]`; `default` without one.
    pub name: String,
    /// The role of this unit.
    pub role: Role,
    /// Whether this unit has all sessions of the group.
    pub ready: bool,
    /// The term of the election; it rises with each takeover. 0 without `[ha]`.
    pub term: u64,
    /// For how many seconds this unit has had its role.
    pub since: f64,
    /// The primary; `null` if none is known.
    pub primary: Option<String>,
    /// The priority of this unit for the group; `null` without `[ha]`.
    pub priority: Option<u8>,
    /// Whether the primary answers on the ports but not on any link; `null` without `[ha]`.
    pub degraded: Option<bool>,
    /// Whether this unit still forwards stragglers after a handover; `null` without `[ha]`.
    pub draining: Option<bool>,
    /// The weight of this unit; `null` if the group is not cut into slots.
    #[serde(default)]
    pub weight: Option<u8>,
    /// Whether this unit is primary of the group, or one of the units that are to hold its
    /// sessions. With `copies`, not all units hold each group.
    #[serde(default = "yes")]
    pub holder: bool,
    /// The unit that has the lease of the group, as the witness said last; `null` if nobody has it,
    /// or while nobody needs it.
    pub lease: Option<String>,
}

/// Another unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// `name` of the peer in `[[ha.peer]]`.
    pub name: String,
    /// Whether it was heard over a link within the hold time.
    pub connected: bool,
    /// Why it is not connected, as far as that is known.
    pub gone: Option<String>,
    /// Why its heartbeats or its stream were refused last, such as another version of a protocol;
    /// `null` once they are accepted.
    #[serde(default)]
    pub refused: Option<String>,
    /// The ports of this unit on which it was heard in the last 3 s, whatever the links do.
    pub heard_on: Option<Vec<String>>,
    /// Its role, if it has the same one for all groups; `null` if it is not connected.
    pub role: Option<Role>,
    /// Its priority, if it has the same one for all groups; `null` if it was never heard.
    pub priority: Option<u8>,
    /// The version of its program; `null` while there is no stream from it, or if it does not send
    /// it.
    pub version: Option<String>,
    /// For how many seconds it has been running; `null` if it is not connected.
    pub uptime_s: Option<u64>,
    /// How many of its monitored ports are up; `null` if it is not connected.
    pub ports_up: Option<u8>,
    /// Whether it is in maintenance; `null` if it is not connected.
    pub maintenance: Option<bool>,
    /// How its config compares with this one.
    pub config: Option<PeerConfig>,
    /// Its state for each group.
    pub groups: Option<Vec<PeerGroup>>,
    /// Whether each has the sessions that the other sends. For groups that neither sends, the
    /// peer's own report counts.
    pub in_sync: bool,
    /// Whether both had exactly the same sessions at the last comparison; `null` if it is not
    /// connected, or neither of them is primary of any group.
    pub digest_equal: Option<bool>,
    /// How far it is behind.
    pub lag: LagStatus,
    /// The links to it, in the order of the config.
    pub links: Vec<LinkStatus>,
}

impl PeerStatus {
    /// Whether it is not to hold any group.
    pub fn holds_nothing(&self) -> bool {
        let mut groups = self.groups.iter().flatten().peekable();
        groups.peek().is_some() && groups.all(|group| group.holder == Some(false))
    }
}

/// How far a peer is behind this unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LagStatus {
    /// Changes that it has not acknowledged; `null` if it is not connected.
    pub sequence_gap: Option<u64>,
    /// The age of the oldest of them, in milliseconds; `null` if it is not connected.
    pub oldest_unacked_ms: Option<u64>,
    /// Sessions of this unit that would end if it died now: those that the peer does not hold, and
    /// those that are not replicated. All if it is not known whether the peer is alive. Groups that
    /// the peer is not to hold don't count; `null` if there are no others.
    pub would_be_lost: Option<u64>,
}

/// A link to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The address of this unit.
    pub local: Option<String>,
    /// The address of the peer.
    pub remote: Option<String>,
    /// Whether heartbeats come through.
    pub up: bool,
    /// The round-trip time in microseconds; `null` while the link is down.
    pub rtt_us: Option<u64>,
    /// Whether the sessions are replicated over it now.
    pub carries_sync: bool,
}

/// A port: an interface whose packets the gateway handles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortStatus {
    /// `name` of the `[[port]]`.
    pub name: String,
    /// The kernel interface.
    pub interface: String,
    /// Whether the interface is up and has carrier.
    pub up: bool,
    /// Why the gateway does not use it although it is up; `null` if it does.
    pub fault: Option<String>,
    /// The targets of `[[link-monitor]]` behind it; `null` from gateways without them.
    pub targets: Option<Vec<TargetStatus>>,
    /// The MTU of the interface.
    pub mtu: u32,
    /// Offloads in use: `ebpf` if a program in the kernel forwards packets that come in by it, else
    /// `tso+uso`, `tso` or `none`.
    pub offload: String,
    /// Why it has no `ebpf` although the config allows it; `null` if it has, or may not.
    pub why_no_ebpf: Option<String>,
    /// Traffic that came in by it.
    pub r#in: Traffic,
    /// Traffic forwarded out of it.
    pub out: Traffic,
}

/// A target of a `[[link-monitor]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// The target, as in the config.
    pub server: String,
    /// `ping`, `arp` or `tcp`.
    pub protocol: String,
    /// Whether it answers; `null` while that is not known.
    pub state: Option<TargetState>,
    /// For how many seconds that has been so.
    pub since: f64,
    /// The round-trip time of its last answer in microseconds; `null` if it never answered.
    pub rtt_us: Option<u64>,
    /// Probes sent.
    pub sent: u64,
    /// Probes answered.
    pub answered: u64,
    /// Why it can't be probed; `null` if it can.
    pub why_not: Option<String>,
}

/// Whether a target answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetState {
    /// Its last probes were answered.
    Alive,
    /// It does not.
    Dead,
}

/// Packets and bytes of IP; a super-packet counts as one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets since the start.
    pub packets: u64,
    /// Bytes of these packets, from the IP header on.
    pub bytes: u64,
}

/// The session table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// All sessions.
    pub total: u64,
    /// Those of TCP.
    pub tcp: u64,
    /// Those of UDP.
    pub udp: u64,
    /// Those of ICMP.
    pub icmp: u64,
    /// Those of other protocols.
    pub other: u64,
    /// How many the table has room for.
    pub max: u64,
    /// Sessions opened here since the start; not those that peers opened.
    pub opened: u64,
}

/// Counters since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterStatus {
    /// Packets forwarded; a super-packet counts as one.
    pub forwarded: u64,
    /// Bytes of IP forwarded.
    pub bytes: u64,
    /// Packets dropped, by reason; see docs/drop-reasons.md. Reasons that never occurred are left
    /// out.
    pub dropped: BTreeMap<String, u64>,
    /// Unreplied sessions that made room for new ones in a full table.
    pub dropped_early: u64,
    /// Sessions ended by a change of routes or of the config, or by hand.
    pub cleared: u64,
    /// Of these, the ones that a change of the config forbids.
    pub forbidden: u64,
    /// Answers, announcements and heartbeats that could not be sent.
    pub outputs_lost: u64,
    /// Frames in which another machine claimed a virtual address of ours.
    pub address_conflicts: u64,
    /// Datagrams from a peer's address that may begin a handshake on a link and exceeded the limit;
    /// none without `[ha]`.
    #[serde(default)]
    pub handshakes_limited: Option<u64>,
    /// First packets of sessions with `pickup-guarantee`.
    pub pickup_guarantee: GuaranteeCounters,
    /// Packets that came to a unit which is not primary, with `asymmetric-flows`.
    #[serde(default)]
    pub asymmetric_flows: AsymmetricCounters,
}

/// Packets that came to a unit which is not primary, with `asymmetric-flows`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsymmetricCounters {
    /// Packets of another unit's sessions that this one has forwarded.
    pub stood_in: u64,
    /// Packets that this unit has passed on to the primary.
    pub passed_on: u64,
    /// Packets that peers have passed on to this unit.
    pub received: u64,
}

/// First packets of sessions with `pickup-guarantee`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuaranteeCounters {
    /// Those that waited for the peers.
    pub held: u64,
    /// Those whose wait was over before the peers had the session.
    pub expired: u64,
    /// Those that left without a copy, since no peer was in sync.
    pub degraded: u64,
    /// Those whose session the peers in sync refused.
    #[serde(default)]
    pub refused: u64,
}

/// The rules in the kernel's packet filter that keep packets from bypassing the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarrierStatus {
    /// Whether they are set.
    pub set: bool,
    /// Why they are not set.
    pub why_not: Option<String>,
    /// Packets that they have stopped.
    pub stopped: u64,
}

/// What the program in the kernel forwards. Its packets and bytes are among those of the ports, as
/// far as they were counted within the last second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPathStatus {
    /// Sessions that it forwards now.
    pub sessions: u64,
    /// Sessions that have come to it since the start.
    pub entered: u64,
    /// How often a session found no room in it.
    pub no_room: u64,
    /// Packets that it has forwarded.
    pub packets: u64,
    /// Their bytes of IP.
    pub bytes: u64,
    /// Packets that it has left to the process, by reason.
    pub left: BTreeMap<String, u64>,
}

/// A capture in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptureStatus {
    /// For how many seconds.
    pub since: f64,
    /// Packets that matched its filter.
    pub packets: u64,
    /// Those of them that its client did not fetch in time.
    pub lost: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventStatus {
    /// When, in seconds since 1970. Gateways of version 0 send seconds since boot.
    pub at: f64,
    /// How many seconds ago.
    pub ago_s: f64,
    /// The event, in a sentence.
    pub what: String,
    /// Why; empty if that is not known.
    pub why: String,
    /// Whether somebody should look at it.
    pub warn: Option<bool>,
}
