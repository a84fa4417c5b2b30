//! The configuration: raw TOML → validated [`Config`], in which every reference is resolved.
//!
//! A `Config` that exists is valid: no later stage checks it again.
//!
//! [`parse()`] reports all problems of a file at once, each with its place; [`render`] shows them
//! to a person. [`options()`] and [`tables`] describe every key, and the decoder takes its defaults
//! and ranges from there, so that generated documentation can't drift from what it does.

mod aliases;
mod bundle;
mod change;
mod copies;
mod diagnostic;
mod field;
mod ha;
mod kind;
mod link_monitor;
mod local_in;
mod metrics;
mod multicast;
mod names;
mod network;
mod nodes;
mod offload;
mod options;
mod parse;
mod places;
mod policy;
mod reader;
mod rows;
mod shadow;
mod show;
mod slots;
mod sources;
mod switch;
mod translation;
mod value;
mod ways;
mod witness;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::flow::{Addr, GroupId, PortId, Protocol};

pub use bundle::{BundleError, Unbundled, bundle, unbundle};
pub use change::{Change, Difference};
/// A config with every option, and another value for each.
#[cfg(test)]
pub(crate) mod samples {
    pub(crate) use super::change::tests::EDITS;
    pub(crate) use super::options::tests::EVERYTHING;
}

pub use diagnostic::{Diagnostic, Severity, decode, render};
pub use field::Value;
pub use ha::PickupGuarantee;
pub use names::did_you_mean;
pub(crate) use network::group_of;
pub use nodes::{ThisUnit, unit_names};
pub use offload::PortOffload;
pub use options::{DefaultValue, Live, OptionDoc, OptionKind, Reload, TableDoc, options, tables};
pub use parse::{parse, parse_all};
pub use show::ConfigText;
pub(crate) use slots::score;
pub use sources::{Include, Sources};
pub use switch::{SwitchError, Switched, set_switch, switch_names, switches};
pub use witness::Witness;

/// The whole configuration of one unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[node]`: the name and the sizes of this unit.
    pub node: Node,
    /// `[[port]]`, indexed by [`PortId`]; 1 to 512 of them.
    pub ports: Vec<Port>,
    /// `[[group]]`, indexed by [`GroupId`]; without any, the one group `default`. After a reload a
    /// place may be empty: see [`Group::exists`].
    pub groups: Vec<Group>,
    /// `[[policy]]`; the first match wins.
    pub policies: Vec<Policy>,
    /// `[[nat-pool]]`, indexed by [`Nat::Pool`].
    pub nat_pools: Vec<NatPool>,
    /// `[[forward]]`; no two take the same external port.
    pub forwards: Vec<Forward>,
    /// `[[link-monitor]]`, in the order in which probes name them.
    pub link_monitors: Vec<LinkMonitor>,
    /// `[[local-in]]`; the first match wins.
    pub local_in: Vec<LocalIn>,
    /// `[[multicast-policy]]`; the first match wins.
    pub multicast_policies: Vec<MulticastPolicy>,
    /// `[[multicast-join]]`, in the order of the file.
    pub multicast_joins: Vec<MulticastJoin>,
    /// `[timeouts]`: how long a session without packets stays.
    pub timeouts: Timeouts,
    /// `[limits]`: how much one source may use, and how much the gateway sends of its own.
    pub limits: Limits,
    /// `[metrics]`; without it nothing listens.
    pub metrics: Option<Metrics>,
    /// `[ha]`; without it the gateway is standalone.
    pub ha: Option<Ha>,
}

impl Config {
    /// Whether packets may come to any unit: by `asymmetric-flows`, or since a group is cut.
    pub fn passes_on(&self) -> bool {
        let is_cut = || self.groups.iter().any(Group::is_cut);
        let ha = self.ha.as_ref();
        ha.is_some_and(|ha| ha.asymmetric_flows || is_cut())
    }

    /// Most sessions of one source, and most of them without an answer; 0 means no limit. An
    /// omitted value follows `max-sessions`, and so the table in force.
    pub fn source_limits(&self) -> (u32, u32) {
        let (limits, most) = (&self.limits, self.node.max_sessions);
        (
            limits.sessions_per_source.unwrap_or((most / 2).max(4096)),
            limits
                .half_open_per_source
                .unwrap_or((most / 16).clamp(4096, 65_535)),
        )
    }

    /// Whether TCP connections are picked up in the middle: by default with `[ha]`.
    pub fn picks_up_tcp(&self) -> bool {
        self.limits.tcp_pickup.unwrap_or(self.ha.is_some())
    }

    /// The gateway's addresses for hosts on `port`: first the virtual ones, then those of pools in
    /// their networks. A pool address outside of all networks is routed to us by others, so no host
    /// asks for it.
    pub fn addresses_on(&self, port: &Port) -> Vec<Addr> {
        let within = |addr: &&Addr| {
            let ip = IpAddr::from(**addr);
            port.virtual_addresses
                .iter()
                .any(|own| own.network.contains(&ip))
        };
        let pools = self
            .nat_pools
            .iter()
            .flat_map(|pool| &pool.addresses)
            .filter(within)
            .copied();
        let own = port.virtual_addresses.iter().chain(&port.link_local);
        let own: Vec<Addr> = own.map(|own| own.addr).collect();
        let known: BTreeSet<Addr> = own.iter().copied().collect();
        let pools: BTreeSet<Addr> = pools.filter(|addr| !known.contains(addr)).collect();
        own.into_iter().chain(pools).collect()
    }
}

/// `[node]`: this unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// `name`, unique among those of its kind; other units, logs and events refer to it.
    pub name: String,
    /// `key`, absolute or relative to the working directory.
    pub key: Option<PathBuf>,
    /// `control-socket`, default `/run/tandemgw/<name>.sock`.
    pub control_socket: PathBuf,
    /// `state-directory`, default `/var/lib/tandemgw`.
    pub state_directory: PathBuf,
    /// `max-sessions`, default 1 048 576; 1024 to 16 777 216.
    pub max_sessions: u32,
    /// `routing-table`: number of the first of the routing tables and rule priorities that steer
    /// packets, one a port; default 7700.
    pub routing_table: u32,
}

/// `[[port]]`: an interface whose packets the gateway handles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Port {
    /// `name`, at most 11 bytes so that `tgw-<name>` is an interface name.
    pub name: String,
    /// `interface`: its name in the kernel, at most 15 bytes.
    pub interface: String,
    /// `virtual-addresses` with their prefix lengths, except link-local ones.
    pub virtual_addresses: Vec<VirtualAddress>,
    /// The link-local ones among `virtual-addresses`: hosts use them to find their router, and
    /// nothing is sent from or to them. Other ports may have the same ones.
    pub link_local: Vec<VirtualAddress>,
    /// `source-check`, default true: drop a packet whose source the routing expects on another
    /// port.
    pub source_check: bool,
    /// `offload`: how its packets go on, as far as the machine can.
    pub offload: PortOffload,
    /// `unsolicited-syn`: whether a SYN to an address of the gateway on which nothing listens is
    /// reset at once; default false (RFC 5382, REQ-4).
    pub rejects_syns: bool,
    /// `routing-headers`, default true: forward IPv6 packets whose routing header lists further
    /// routers. Type 0 is always dropped (RFC 5095).
    pub routing_headers: bool,
    /// `mss-clamp` for the connections that pass the port.
    pub mss_clamp: Option<MssClamp>,
    /// `reserved-addresses`, default false: 240.0.0.0/4 may be a source and destination on this
    /// port.
    pub reserved_addresses: bool,
    /// Limits of a source that sends by this port, where they differ from `[limits]`.
    pub quotas: Quotas,
}

/// `sessions-per-source`, `half-open-per-source` and `ports-per-source` of a `[[port]]`; none where
/// `[limits]` holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Sessions of one source; 0 means no limit.
    pub sessions: Option<u32>,
    /// Half-open ones; 0 means no limit.
    pub half_open: Option<u32>,
    /// External ports for UDP and ICMP; 0 means no limit.
    pub ports: Option<u32>,
}

/// An address that the gateway answers for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VirtualAddress {
    /// Its family is that of [`VirtualAddress::network`].
    pub addr: Addr,
    /// The network on the link.
    pub network: IpNet,
    /// The group that it moves with.
    pub group: GroupId,
}

/// `[[group]]`: virtual addresses that move as one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// `name`, unique among those of its kind; other units, logs and events refer to it.
    pub name: String,
    /// `priority`, overriding that of `[ha]`.
    pub priority: Option<u8>,
    /// `distribute`: into how many slots it is cut, so that the units share its hosts.
    pub distribute: Option<u8>,
    /// `weights`: the shares of units in the slots. A unit that is not named has weight 1.
    pub weights: Vec<Weight>,
    /// The places of its slots, which are groups of their own: 2 to 32, none without `distribute`.
    pub slots: Vec<GroupId>,
    /// Of a slot, the group that was cut. It may no longer be among the slots of that one: then it
    /// is a [former slot](Config::former_slots).
    pub part_of: Option<GroupId>,
}

/// The weight of a unit among those that share the slots of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The name of its node.
    pub unit: String,
    /// 0 to 100: with twice the weight it has twice the slots; with 0 none, unless all others are
    /// gone.
    pub weight: u8,
}

/// `[[policy]]`: which new sessions are allowed, and how they are translated. Packets of an
/// existing session are not checked again until a reload or a change of routes.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// `name`, unique.
    pub name: String,
    /// `from`: ports that a session may come in by; empty means any.
    pub from: Vec<PortId>,
    /// `to`: ports that it may leave by; empty means any.
    pub to: Vec<PortId>,
    /// `source`; empty means any.
    pub source: Vec<IpNet>,
    /// `destination`; empty means any.
    pub destination: Vec<IpNet>,
    /// `service`; empty means any.
    pub service: Vec<Service>,
    /// `forwarded`: whether a `[[forward]]` has translated the destination. `None` matches both,
    /// except a packet that comes in by the port of a forward and is for the address and port of
    /// its server.
    pub forwarded: Option<bool>,
    /// `action` on a packet that would open a session.
    pub action: Action,
    /// `nat` and `nat-pool`
    pub nat: Nat,
    /// `log`: log the start and the end of each session; default false.
    pub log: bool,
    /// `pickup-guarantee`, overriding that of `[ha]`.
    pub pickup_guarantee: Option<PickupGuarantee>,
    /// `mss-clamp`, overriding that of the ports.
    pub mss_clamp: Option<MssClamp>,
}

/// `mss-clamp`: the highest maximum segment size that a SYN may offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MssClamp {
    /// The largest segment that fits the links and routes of the connection.
    Auto,
    /// So many bytes.
    To(u16),
}

/// The services that a policy matches: `tcp/443`, `tcp/8000-8099`, `udp/53`, `icmp`, `gre`,
/// `proto/47`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// The number in the IP header (of the last one, for IPv6).
    pub protocol: Protocol,
    /// First and last destination port, for TCP and UDP; `None` means any.
    pub ports: Option<(u16, u16)>,
}

/// `action` of a `[[policy]]`. Packets that no policy matches are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forward, and keep a session.
    Accept,
    /// Discard silently.
    Drop,
    /// Discard and tell the sender: TCP reset, or ICMP administratively prohibited.
    Reject,
}

/// Source translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// The source stays as it is.
    Off,
    /// To the first virtual address of the packet's family on the port that it leaves by.
    Egress,
    /// To a pool: an index into [`Config::nat_pools`].
    Pool(usize),
}

/// `[metrics]`: for Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// `listen`, default `127.0.0.1:10747`; an address of the machine, not a virtual one.
    pub listen: SocketAddr,
}

/// `[[nat-pool]]`: external addresses for source translation. A host keeps the same one for all its
/// sessions (RFC 4787, REQ-2).
#[derive(Clone, Debug, PartialEq)]
pub struct NatPool {
    /// `name`, unique among those of its kind; other units, logs and events refer to it.
    pub name: String,
    /// `addresses`, ranges expanded; at most 4096.
    pub addresses: Vec<Addr>,
    /// `ports`, first and last; default 1024-65535.
    pub ports: (u16, u16),
}

/// `[[forward]]`: destination translation.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// `name`, unique among those of its kind; other units, logs and events refer to it.
    pub name: String,
    /// `port` that the connections come in by.
    pub port: PortId,
    /// `protocol`: TCP or UDP.
    pub protocol: Protocol,
    /// `external`: a virtual address, or one of a pool, and its first port.
    pub external: (Addr, u16),
    /// `external`: its last port, the same as the first unless there is a range.
    pub last_external_port: u16,
    /// `internal`: the server, and its port for the first external one. The others follow in order.
    pub internal: (Addr, u16),
}

/// `[[link-monitor]]`: a target that must answer behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkMonitor {
    /// `port` that it is behind.
    pub port: PortId,
    /// `server`: the address to probe. It has to be on the network of the port for ARP.
    pub server: IpAddr,
    /// The port of `server`, for TCP.
    pub server_port: Option<u16>,
    /// `protocol`, default ping.
    pub protocol: MonitorProtocol,
    /// `interval` between two probes, default 500 ms; 20 ms to 1 h.
    pub interval: Duration,
    /// `failtime`: missed probes in a row after which it is dead; default 5.
    pub failtime: u32,
    /// `recoverytime`: answers in a row after which it is alive again; default 5.
    pub recoverytime: u32,
    /// `ha-priority`: its weight while it is dead; default 1, 1 to 50.
    pub ha_priority: u32,
}

impl LinkMonitor {
    /// `server` as in the file.
    pub(crate) fn server_text(&self) -> String {
        match self.server_port {
            Some(port) => SocketAddr::new(self.server, port).to_string(),
            None => self.server.to_string(),
        }
    }
}

/// `[[local-in]]`: which packets may reach the machine itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalIn {
    /// `name`, unique.
    pub name: String,
    /// `from`: ports that the packets come in by; empty means any.
    pub from: Vec<PortId>,
    /// `source`; empty means any.
    pub source: Vec<IpNet>,
    /// `service`; empty means any.
    pub service: Vec<Service>,
    /// `action`: whether they are accepted, or else dropped.
    pub accepts: bool,
}

/// `[[multicast-policy]]`: what is sent on to the members of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MulticastPolicy {
    /// `name`, unique.
    pub name: String,
    /// `from`: ports that the stream comes in by.
    pub from: Vec<PortId>,
    /// `to`: ports that it leaves by, where hosts want it.
    pub to: Vec<PortId>,
    /// `source`: who sends it; empty means any.
    pub source: Vec<IpNet>,
    /// `group`: where it is sent to.
    pub group: Vec<IpNet>,
    /// `action`: whether it is accepted, or else dropped.
    pub accepts: bool,
    /// `log`: the start and the end of each session are logged.
    pub log: bool,
    /// `snat`: the source becomes the virtual address of the port that it leaves by.
    pub snat: bool,
}

/// `[[multicast-join]]`: a group that is wanted on a port without a host that asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MulticastJoin {
    /// `port`: where it is wanted.
    pub port: PortId,
    /// `group`.
    pub group: Addr,
    /// `source`: only what this host sends; none means any.
    pub source: Option<Addr>,
}

/// How a target is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MonitorProtocol {
    /// By an ICMP echo request.
    Ping,
    /// By ARP, or by Neighbor Discovery: it must be on the link.
    Arp,
    /// By opening a TCP connection, which it may refuse.
    Tcp,
}

impl MonitorProtocol {
    /// As in the file.
    pub fn word(self) -> &'static str {
        match self {
            MonitorProtocol::Ping => "ping",
            MonitorProtocol::Arp => "arp",
            MonitorProtocol::Tcp => "tcp",
        }
    }

    fn of_word(word: &str) -> MonitorProtocol {
        match word {
            "arp" => MonitorProtocol::Arp,
            "tcp" => MonitorProtocol::Tcp,
            _ => MonitorProtocol::Ping,
        }
    }
}

/// `[timeouts]`: idle times after which a session ends, from 1 s on. A packet of the session starts
/// them again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// `tcp-established`, default 7440 s (RFC 5382, REQ-5).
    pub tcp_established: Duration,
    /// `tcp-transitory`: handshake and closing, default 240 s (RFC 5382, REQ-5).
    pub tcp_transitory: Duration,
    /// `tcp-syn`: a SYN without an answer, default 4 min (RFC 5382, REQ-5).
    pub tcp_syn: Duration,
    /// `tcp-time-wait`: after both FINs, default 120 s.
    pub tcp_time_wait: Duration,
    /// `tcp-reset`: after a reset, default 10 s.
    pub tcp_reset: Duration,
    /// `udp`: both directions seen, default 300 s (RFC 4787, REQ-5).
    pub udp: Duration,
    /// `udp-unreplied`, default 120 s (RFC 4787, REQ-5: not less).
    pub udp_unreplied: Duration,
    /// `icmp`, default 60 s (RFC 5508, REQ-2).
    pub icmp: Duration,
    /// `other`: other protocols, default 600 s.
    pub other: Duration,
}

/// `[limits]`, as the file has it. Omitted values depend on other options:
/// [`Config::source_limits`], [`Config::picks_up_tcp`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `sessions-per-source`: sessions of one source; 0 means no limit.
    pub sessions_per_source: Option<u32>,
    /// `half-open-per-source`: those without an answer yet; 0 means no limit.
    pub half_open_per_source: Option<u32>,
    /// `ports-per-source`: external ports of mappings of one source; by default half of those of
    /// the pool, 0 means no limit.
    pub ports_per_source: Option<u32>,
    /// `icmp-errors-per-second`: errors that the gateway itself makes; default 1000.
    pub icmp_errors_per_second: u32,
    /// `tcp-pickup`: take up TCP sessions in their middle.
    pub tcp_pickup: Option<bool>,
}

/// `[ha]`: how this unit takes part in a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ha {
    /// `group-id`, 1 to 255: units with the same one belong together.
    pub group_id: u8,
    /// `priority`, 0 to 255, default 128; the highest wins.
    pub priority: u8,
    /// `override`, default false: a unit of higher priority takes over from one that runs well.
    pub override_: bool,
    /// `override-wait-time`, default 0: how long a unit must be fit before it takes over by
    /// `override`.
    pub override_wait: Duration,
    /// `heartbeat-interval`, default 20 ms; 1 ms to 10 s.
    pub heartbeat_interval: Duration,
    /// `heartbeat-lost-threshold`, default 5; 2 to 60.
    pub heartbeat_lost_threshold: u32,
    /// `pingserver-failover-threshold`, default 0: a port is good while the weights of its dead
    /// targets don't exceed this.
    pub failover_threshold: u32,
    /// `monitor`: ports that must be up.
    pub monitor: Vec<PortId>,
    /// `session-pickup`, default true: replicate TCP sessions (and those of other protocols that
    /// have a connection).
    pub session_pickup: bool,
    /// `session-pickup-connectionless`, default true: replicate UDP and ICMP sessions as well.
    pub session_pickup_connectionless: bool,
    /// `session-pickup-delay`, default 0: replicate only sessions that live longer.
    pub session_pickup_delay: Duration,
    /// `multicast-ttl`, default 600 s: how long a standby keeps what it was told of multicast.
    pub multicast_ttl: Duration,
    /// `pickup-guarantee`, default off.
    pub pickup_guarantee: PickupGuarantee,
    /// `pickup-guarantee-wait`, default 10 ms.
    pub pickup_guarantee_wait: Duration,
    /// `pickup-guarantee-copies`: how many peers must hold the session, default 1.
    pub pickup_guarantee_copies: u32,
    /// `copies`, default 0: with more than three units, how many peers hold the sessions of each
    /// group beside its primary; 0 means all. [`Config::copies`] is what has an effect.
    pub copies: u32,
    /// `asymmetric-flows`, default false: packets may come to any unit.
    pub asymmetric_flows: bool,
    /// `accept-push`: names of units that may give this one another config.
    pub accept_push: Vec<String>,
    /// `gratuitous-arps`: repeats of the announcement, default 5; 1 to 60.
    pub gratuitous_arps: u32,
    /// `gratuitous-arp-interval`, default 1 s.
    pub gratuitous_arp_interval: Duration,
    /// `[[ha.link]]`, at least one.
    pub links: Vec<HaLink>,
    /// `[[ha.peer]]`, at least one.
    pub peers: Vec<HaPeer>,
    /// `[ha.witness]`
    pub witness: Option<Witness>,
}

/// `[[ha.link]]`: an interface for heartbeats and replication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaLink {
    /// `interface`: its name in the kernel, at most 15 bytes.
    pub interface: String,
    /// `listen`: the address and UDP port of this unit on the link, for all peers.
    pub listen: SocketAddr,
}

/// `[[ha.peer]]`: another unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaPeer {
    /// `name` of its node.
    pub name: String,
    /// `addresses`, one a link, in the order of the links.
    pub addresses: Vec<SocketAddr>,
    /// `public-key`, 32 bytes, as `tandemgw pubkey` prints it (base64).
    pub public_key: [u8; 32],
}
