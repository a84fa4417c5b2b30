//! All options: each is one row of [`OPTIONS`], with its type, range, default, config field, reload
//! class, and meaning.
//!
//! The decoder, the comparison of two configs, `tandemgw ha set`, and the reference are made from
//! these rows.

use std::time::Duration;

use super::Config;
use super::field::{Access, Field, Value, field};
pub use super::kind::{DefaultValue, OptionKind};
use super::rows::{choice, flag, int, list, option, own, text, time};
use super::value::show_duration;
use crate::flow::MAX_PEERS;

/// A table of the config file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableDoc {
    /// Its path, such as `ha.link`.
    pub name: &'static str,
    /// Whether it can occur several times, as in `[[port]]`.
    pub repeated: bool,
    /// How often it can occur.
    pub most: usize,
    /// Its meaning, in one line.
    pub meaning: &'static str,
}

/// A key of the config file.
#[derive(Clone, Debug)]
pub struct OptionDoc {
    /// The path of its table, such as `ha.link`.
    pub table: &'static str,
    /// The key itself.
    pub key: &'static str,
    /// The values it accepts.
    pub kind: OptionKind,
    /// The value if it is left out.
    pub default: DefaultValue,
    /// Whether a change needs a restart.
    pub reload: Reload,
    /// Whether it is each unit's own: in a config for several units it can stand in `[node.NAME]`.
    /// All others are the same on all units.
    pub is_own: bool,
    pub(super) access: Access,
    /// Its meaning, in one line.
    pub meaning: &'static str,
}

/// How a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// By a reload: it puts this in force, and no session ends unless the new rules forbid it.
    Live(Live),
    /// By a restart: a reload leaves the value in force, and reports that.
    Restart,
    /// As the options that its contents end up in: it has no effect of its own.
    AsUsed,
}

/// An option, or a table as a whole, that a reload changes. The code that puts a reload in force
/// matches all of them, so a change without an effect can't exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Live {
    /// `virtual-addresses` of a `[[port]]`.
    VirtualAddresses,
    /// Groups and slots that are added or removed, and their addresses.
    Groups,
    /// `source-check` of a `[[port]]`.
    SourceCheck,
    /// `unsolicited-syn` of a `[[port]]`.
    UnsolicitedSyn,
    /// `routing-headers` of a `[[port]]`.
    RoutingHeaders,
    /// `reserved-addresses` of a `[[port]]`.
    ReservedAddresses,
    /// `mss-clamp` of a `[[port]]`.
    MssClamp,
    /// `sessions-per-source` and the other quotas of a `[[port]]`.
    PortQuotas,
    /// `weights` of a `[[group]]`.
    Weights,
    /// `priority` of a `[[group]]`.
    GroupPriority,
    /// `[[policy]]`
    Policies,
    /// `[[nat-pool]]`
    NatPools,
    /// `[[forward]]`
    Forwards,
    /// `[[link-monitor]]`
    LinkMonitors,
    /// Any of `[timeouts]`, which are put in force together.
    Timeouts,
    /// `sessions-per-source` of `[limits]`.
    SessionsPerSource,
    /// `half-open-per-source` of `[limits]`.
    HalfOpenPerSource,
    /// `ports-per-source` of `[limits]`.
    PortsPerSource,
    /// `icmp-errors-per-second` of `[limits]`.
    IcmpErrorsPerSecond,
    /// `tcp-pickup` of `[limits]`.
    TcpPickup,
    /// `priority` of `[ha]`.
    Priority,
    /// `override` of `[ha]`.
    Override,
    /// `override-wait-time` of `[ha]`.
    OverrideWaitTime,
    /// `monitor` of `[ha]`.
    Monitor,
    /// `pingserver-failover-threshold` of `[ha]`.
    FailoverThreshold,
    /// `session-pickup` of `[ha]`.
    SessionPickup,
    /// `session-pickup-connectionless` of `[ha]`.
    SessionPickupConnectionless,
    /// `session-pickup-delay` of `[ha]`.
    SessionPickupDelay,
    /// `pickup-guarantee` of `[ha]`.
    PickupGuarantee,
    /// `pickup-guarantee-wait` of `[ha]`.
    PickupGuaranteeWait,
    /// `pickup-guarantee-copies` of `[ha]`.
    PickupGuaranteeCopies,
    /// `copies` of `[ha]`.
    Copies,
    /// `asymmetric-flows` of `[ha]`.
    AsymmetricFlows,
    /// `accept-push` of `[ha]`.
    AcceptPush,
    /// `gratuitous-arps` of `[ha]`.
    GratuitousArps,
    /// `gratuitous-arp-interval` of `[ha]`.
    GratuitousArpInterval,
    /// `[[ha.peer]]`
    Peers,
    /// `[ha.witness]`
    Witness,
    /// `[[multicast-policy]]` and `[[multicast-join]]`, which are put in force together.
    Multicast,
    /// `multicast-ttl` of `[ha]`.
    MulticastTtl,
}

impl OptionDoc {
    /// The type and range for a person, such as `integer, 1 to 255`.
    pub fn kind_text(&self) -> String {
        match self.kind {
            OptionKind::Text(form) => form.to_owned(),
            OptionKind::List(form) => format!("array of {form}"),
            OptionKind::Bool => "true or false".to_owned(),
            OptionKind::Integer { min, max } => format!("integer, {min} to {max}"),
            OptionKind::Duration { min, max } => {
                format!("duration, {} to {}", show_duration(min), show_duration(max))
            }
            OptionKind::Choice(words) => words.join(" | "),
            OptionKind::MssClamp => "\"auto\", or an integer, 216 to 65495".to_owned(),
            OptionKind::Offload => "auto | ebpf | tun | plain".to_owned(),
        }
    }

    /// The value in `config`; for a `[[port]]` or `[[group]]`, that of the one at `index`. `None`
    /// if there is no such table, or if the option is a part of tables that are compared as a
    /// whole.
    pub(crate) fn value_in(&self, config: &Config, index: usize) -> Option<Value> {
        fn of<T>(field: &Field<T>, part: Option<&T>) -> Option<Value> {
            part.map(|part| (field.get)(part))
        }
        match &self.access {
            Access::Node(field) => of(field, Some(&config.node)),
            Access::Port(field) => of(field, config.ports.get(index)),
            Access::Group(field) => of(field, config.groups.get(index)),
            Access::LinkMonitor(field) => of(field, config.link_monitors.get(index)),
            Access::Timeouts(field) => of(field, Some(&config.timeouts)),
            Access::Limits(field) => of(field, Some(&config.limits)),
            Access::Metrics(field) => of(field, config.metrics.as_ref()),
            Access::Ha(field) => of(field, config.ha.as_ref()),
            Access::Witness(field) => {
                let ha = config.ha.as_ref();
                of(field, ha.and_then(|ha| ha.witness.as_ref()))
            }
            Access::Whole => None,
        }
    }

    /// The default for a person: as TOML, or in words.
    pub fn default_text(&self) -> String {
        match self.default {
            DefaultValue::Required => "required".to_owned(),
            DefaultValue::Absent(meaning) => meaning.to_owned(),
            DefaultValue::Bool(value) => value.to_string(),
            DefaultValue::Integer(value) => value.to_string(),
            DefaultValue::Duration(value) => format!("{:?}", show_duration(value)),
            DefaultValue::Text(value) => format!("{value:?}"),
        }
    }
}

/// Every option, in the order in which a reader meets them.
pub fn options() -> &'static [OptionDoc] {
    OPTIONS
}

/// Every table, in the order in which a reader meets them.
pub fn tables() -> &'static [TableDoc] {
    TABLES
}

/// How often a table of that name can occur.
pub(super) fn most(table: &str) -> usize {
    let found = TABLES.iter().find(|known| known.name == table);
    found.map_or(0, |known| known.most)
}

pub(super) fn find(table: &str, key: &str) -> Option<&'static OptionDoc> {
    OPTIONS
        .iter()
        .find(|option| option.table == table && option.key == key)
}

/// The keys of `table` that are each unit's own.
pub(super) fn own_keys(table: &str) -> impl Iterator<Item = &'static str> {
    let own = OPTIONS
        .iter()
        .filter(move |option| option.table == table && option.is_own);
    own.map(|option| option.key)
}

/// The keys that `table` (empty: the document) can have, tables included.
pub(super) fn keys_of(table: &str) -> impl Iterator<Item = &'static str> {
    let own = OPTIONS
        .iter()
        .filter(move |option| option.table == table)
        .map(|option| option.key);
    let below = TABLES.iter().filter_map(move |sub| {
        let (parent, key) = sub.name.rsplit_once('.').unwrap_or(("", sub.name));
        (parent == table && !key.is_empty()).then_some(key)
    });
    own.chain(below)
}

/// Every table. One row each, as of [`OPTIONS`].
#[rustfmt::skip]
const TABLES: &[TableDoc] = &[
    table("", "keys that stand above the first table"),
    table("node", "this unit"),
    tables_of("port", 512, "an interface whose packets the gateway handles"),
    tables_of("group", 64, "virtual addresses that move as one; without any, all of them do"),
    tables_of("policy", 50_000, "what may pass; the first match wins, no match is a drop"),
    tables_of("address", 4096, "a name for addresses, in place of which policies, pools and forwards can write it"),
    tables_of("service", 4096, "a name for services, in place of which policies can write it"),
    tables_of("nat-pool", 64, "addresses for source translation"),
    tables_of("forward", 4096, "destination translation; the policies then see the internal address"),
    tables_of("link-monitor", 64, "a target that must answer behind a port: one with carrier can lead nowhere"),
    tables_of("local-in", 256, "what may reach the machine itself; a port that none of them names stays open"),
    tables_of("multicast-policy", 256, "what is sent on to the hosts that want it; without any, multicast stays on its link"),
    tables_of("multicast-join", 1024, "a group that is wanted on a port even if no host asks for it"),
    table("timeouts", "how long a session lives without a packet"),
    table("limits", "protection against floods"),
    table("metrics", "metrics for Prometheus over HTTP; without it nothing listens"),
    table("ha", "high availability; without it the gateway is standalone"),
    tables_of("ha.link", 8, "a link for heartbeats and replication; several for redundancy"),
    tables_of("ha.peer", MAX_PEERS, "another unit"),
    table("ha.witness", "an etcd cluster that is asked where the units can't tell who lives; `tandemgw witness` speaks to it"),
];

/// Every option. One row each: read as a table.
#[rustfmt::skip]
pub(super) const OPTIONS: &[OptionDoc] = &[
    list("", "include", "path, relative to this file; `*` in the name of the file stands for any characters", DefaultValue::Absent("none"), WHOLE, AS_USED, "files with more tables, which are read after this one, those of a pattern by name; each begins with a table, and includes no others"),

    text("node", "name", "name", DefaultValue::Required, field!(Node.name), RESTART, "the name of this unit; the peers know it by that"),
    own(text("node", "key", "path, relative to this file", DefaultValue::Absent("none; needed with [ha]"), field!(Node.key), RESTART, "the private key of this unit, made by `tandemgw keygen`")),
    own(text("node", "control-socket", "path, relative to this file", DefaultValue::Absent("/run/tandemgw/<name>.sock"), field!(Node.control_socket), RESTART, "the socket through which `tandemgw status` and other commands reach this unit")),
    own(text("node", "state-directory", "path, relative to this file", DefaultValue::Text("/var/lib/tandemgw"), field!(Node.state_directory), RESTART, "where this unit keeps what it remembers over restarts, such as that it is in maintenance")),
    int("node", "max-sessions", 1024, 16_777_216, 1_048_576, field!(Node.max_sessions), RESTART, "size of the session table; memory is reserved at the start and used as the table fills"),
    int("node", "routing-table", 256, 32_000, 7700, field!(Node.routing_table), RESTART, "first number of the routing tables and rule priorities that steer packets: one per port, at least 64"),

    text("port", "name", "name, at most 11 of a-z 0-9 -", DefaultValue::Required, WHOLE, RESTART, "the name by which policies and peers know the port"),
    own(text("port", "interface", "interface", DefaultValue::Required, field!(Port.interface), RESTART, "the kernel's interface that the hosts are on")),
    list("port", "virtual-addresses", "address/prefix-length", DefaultValue::Absent("none"), VIRTUAL_ADDRESSES, Reload::Live(Live::VirtualAddresses), "addresses that the gateway answers for, at most 4096 on all ports together; never addresses of the kernel. A link-local IPv6 address is one by which hosts find their router, and each port may have the same"),
    flag("port", "source-check", true, field!(Port.source_check), Reload::Live(Live::SourceCheck), "drop a packet whose source the routing expects on another port (RFC 3704)"),
    choice("port", "unsolicited-syn", &["drop", "reject"], DefaultValue::Text("drop"), UNSOLICITED_SYN, Reload::Live(Live::UnsolicitedSyn), "what happens to a SYN for an address of the gateway that nobody has asked for: a reset would end attempts of two hosts to open a connection to each other at once (RFC 5382, REQ-4)"),
    flag("port", "routing-headers", true, field!(Port.routing_headers), Reload::Live(Live::RoutingHeaders), "forward IPv6 packets with a routing header that has segments left, such as those of segment routing; type 0 is always dropped (RFC 5095)"),
    flag("port", "reserved-addresses", false, field!(Port.reserved_addresses), Reload::Live(Live::ReservedAddresses), "let 240.0.0.0/4 be a source and destination here, as some networks use it inside (RFC 6890 reserves it)"),
    option("port", "mss-clamp", OptionKind::MssClamp, DefaultValue::Absent("not changed"), field!(Port.mss_clamp), Reload::Live(Live::MssClamp), "lower the maximum segment size that TCP connections through the port agree on: to what fits the links and routes on their way, or to so many bytes; for a path with a smaller MTU on which ICMP errors are lost"),
    option("port", "sessions-per-source", OptionKind::Integer { min: 0, max: 10_000_000 }, DefaultValue::Absent("that of [limits]"), field!(Port.quotas.sessions), Reload::Live(Live::PortQuotas), "sessions that a source which sends by this port may have"),
    option("port", "half-open-per-source", OptionKind::Integer { min: 0, max: 65_535 }, DefaultValue::Absent("that of [limits]"), field!(Port.quotas.half_open), Reload::Live(Live::PortQuotas), "those of them without an answer yet"),
    option("port", "ports-per-source", OptionKind::Integer { min: 0, max: 10_000_000 }, DefaultValue::Absent("that of [limits]"), field!(Port.quotas.ports), Reload::Live(Live::PortQuotas), "external ports for UDP and ICMP that such a source may have"),
    option("port", "offload", OptionKind::Offload, DefaultValue::Text("auto"), field!(Port.offload), RESTART, "how packets go on: \"tun\" takes them from the kernel before it segments them and completes their checksums, which \"plain\" does not, at the cost of most of the throughput; with \"ebpf\" a program in the kernel (Linux 5.19) forwards those of established sessions between ports that have it, past packet filters of others; \"auto\" is \"ebpf\" where that can be had and would skip nothing of others, else \"tun\"; true and false mean \"tun\" and \"plain\""),

    text("group", "name", "name", DefaultValue::Required, WHOLE, Reload::Live(Live::Groups), "the name of the group; the same on all units"),
    list("group", "ports", "port name", DefaultValue::Absent("none"), WHOLE, Reload::Live(Live::Groups), "ports whose virtual addresses all belong to the group"),
    list("group", "virtual-addresses", "address", DefaultValue::Absent("none"), WHOLE, Reload::Live(Live::Groups), "single virtual addresses that belong to the group"),
    own(option("group", "priority", OptionKind::Integer { min: 0, max: 255 }, DefaultValue::Absent("that of [ha]"), field!(Group.priority), Reload::Live(Live::GroupPriority), "priority of this unit in the election of the group's primary")),
    option("group", "distribute", OptionKind::Integer { min: 2, max: 32 }, DefaultValue::Absent("one unit serves all hosts"), field!(Group.distribute), Reload::Live(Live::Groups), "cut the group into so many slots, which the units share out among them: each slot has some of the hosts, and packets may come to any unit"),
    list("group", "weights", "node name:0 to 100", DefaultValue::Absent("1 for each unit"), field!(Group.weights), Reload::Live(Live::Weights), "with `distribute`: the shares of units in the slots, such as `[\"gw-a:2\"]`; the same on all units"),

    text("policy", "name", "name", DefaultValue::Required, WHOLE, Reload::Live(Live::Policies), "the name of the policy; sessions carry it to the peers"),
    list("policy", "from", "port name", DefaultValue::Absent("any"), WHOLE, Reload::Live(Live::Policies), "ports that a session may come in by"),
    list("policy", "to", "port name", DefaultValue::Absent("any"), WHOLE, Reload::Live(Live::Policies), "ports that a session may leave by"),
    list("policy", "source", "prefix", DefaultValue::Absent("any"), WHOLE, Reload::Live(Live::Policies), "source addresses"),
    list("policy", "destination", "prefix", DefaultValue::Absent("any"), WHOLE, Reload::Live(Live::Policies), "destination addresses, after a forward has translated them"),
    list("policy", "service", "service: tcp/443, tcp/8000-8099, tcp, udp/53, icmp, gre, esp, proto/47, any", DefaultValue::Absent("any"), WHOLE, Reload::Live(Live::Policies), "protocols and destination ports"),
    option("policy", "forwarded", OptionKind::Bool, DefaultValue::Absent("either, but not past a forward"), WHOLE, Reload::Live(Live::Policies), "whether a forward has translated the destination; without it a policy matches either, but no packet that comes in by the port of a forward and is for the own address and port of its server: for that, write false"),
    choice("policy", "action", ACTIONS, DefaultValue::Required, WHOLE, Reload::Live(Live::Policies), "what happens to a session that matches"),
    flag("policy", "nat", false, WHOLE, Reload::Live(Live::Policies), "translate the source to the virtual address of the port that the session leaves by; of several groups that it has, that of the group that the session came by"),
    text("policy", "nat-pool", "pool name", DefaultValue::Absent("none"), WHOLE, Reload::Live(Live::Policies), "translate the source to an address of this pool"),
    flag("policy", "log", false, WHOLE, Reload::Live(Live::Policies), "log the start and the end of each session"),
    option("policy", "mss-clamp", OptionKind::MssClamp, DefaultValue::Absent("that of the ports"), WHOLE, Reload::Live(Live::Policies), "lower the maximum segment size of connections that the policy accepts; takes precedence over that of the ports"),
    choice("policy", "pickup-guarantee", GUARANTEES, DefaultValue::Absent("that of [ha]"), WHOLE, Reload::Live(Live::Policies), "how long the first packet of a session waits for the peer"),

    text("address", "name", "name", DefaultValue::Required, WHOLE, AS_USED, "the name: it stands for all members; in a forward, as in `web:80`, for the only one"),
    list("address", "member", "prefix, range: 10.0.0.10-10.0.0.12, or the name of an address above", DefaultValue::Required, WHOLE, AS_USED, "the addresses"),

    text("service", "name", "name", DefaultValue::Required, WHOLE, AS_USED, "the name: it stands for all members"),
    list("service", "member", "service, as of a policy, or the name of a service above", DefaultValue::Required, WHOLE, AS_USED, "the services"),

    text("nat-pool", "name", "name", DefaultValue::Required, WHOLE, Reload::Live(Live::NatPools), "the name of the pool"),
    list("nat-pool", "addresses", "address or range: 10.0.0.10-10.0.0.12", DefaultValue::Required, WHOLE, Reload::Live(Live::NatPools), "the addresses, 4096 at most; the gateway answers for them"),
    text("nat-pool", "ports", "first-last", DefaultValue::Text("1-65535"), WHOLE, Reload::Live(Live::NatPools), "the ports that are allocated on each address; a source port below 1024 gets one below 1024 where it can (RFC 4787, REQ-3a), others never do"),

    text("forward", "name", "name", DefaultValue::Required, WHOLE, Reload::Live(Live::Forwards), "the name of the forward"),
    text("forward", "port", "port name", DefaultValue::Required, WHOLE, Reload::Live(Live::Forwards), "the port that the connections come in by"),
    choice("forward", "protocol", &["tcp", "udp"], DefaultValue::Required, WHOLE, Reload::Live(Live::Forwards), "the protocol"),
    text("forward", "external", "address:port or address:first-last", DefaultValue::Required, WHOLE, Reload::Live(Live::Forwards), "where clients connect to: a virtual address of the port, or one of a pool"),
    text("forward", "internal", "address:port or address:first-last", DefaultValue::Required, WHOLE, Reload::Live(Live::Forwards), "the server that they reach; for a range of ports, its first port or a range of the same length"),

    text("link-monitor", "port", "port name", DefaultValue::Required, WHOLE, Reload::Live(Live::LinkMonitors), "the port that the target is behind"),
    text("link-monitor", "server", "address; with `protocol = \"tcp\"` address:port", DefaultValue::Required, WHOLE, Reload::Live(Live::LinkMonitors), "the target; asked from this unit's own address on the port, or from the virtual one while it is primary"),
    choice("link-monitor", "protocol", MONITOR_PROTOCOLS, DefaultValue::Text("ping"), WHOLE, Reload::Live(Live::LinkMonitors), "how it is asked: an echo request, ARP or Neighbor Discovery for a target on the link, or a TCP connection, which it may refuse"),
    time("link-monitor", "interval", ms(20), h(1), ms(500), field!(LinkMonitor.interval), Reload::Live(Live::LinkMonitors), "time between two probes"),
    int("link-monitor", "failtime", 1, 3600, 5, field!(LinkMonitor.failtime), Reload::Live(Live::LinkMonitors), "how many probes in a row must be lost until the target counts as dead"),
    int("link-monitor", "recoverytime", 1, 3600, 5, field!(LinkMonitor.recoverytime), Reload::Live(Live::LinkMonitors), "how many probes in a row must be answered until it counts as alive again; doubled each time that it soon dies again"),
    int("link-monitor", "ha-priority", 1, 50, 1, field!(LinkMonitor.ha_priority), Reload::Live(Live::LinkMonitors), "what a dead target weighs: see `pingserver-failover-threshold` of `[ha]`"),

    text("local-in", "name", "name", DefaultValue::Required, WHOLE, RESTART, "the name of the policy"),
    list("local-in", "from", "port name", DefaultValue::Absent("any"), WHOLE, RESTART, "ports that the packet comes in by; what reaches the machine by them and matches no policy is dropped"),
    list("local-in", "source", "prefix", DefaultValue::Absent("any"), WHOLE, RESTART, "source addresses"),
    list("local-in", "service", "service, as of a policy", DefaultValue::Absent("any"), WHOLE, RESTART, "protocols and ports of the machine"),
    choice("local-in", "action", LOCAL_ACTIONS, DefaultValue::Required, WHOLE, RESTART, "what happens to the packet"),

    text("multicast-policy", "name", "name", DefaultValue::Required, WHOLE, MULTICAST, "the name of the policy"),
    list("multicast-policy", "from", "port name", DefaultValue::Required, WHOLE, MULTICAST, "ports that a stream may come in by: the routes to its source lead there"),
    list("multicast-policy", "to", "port name", DefaultValue::Required, WHOLE, MULTICAST, "ports that it may leave by, if hosts there want it"),
    list("multicast-policy", "source", "prefix", DefaultValue::Absent("any"), WHOLE, MULTICAST, "who sends it"),
    list("multicast-policy", "group", "prefix", DefaultValue::Required, WHOLE, MULTICAST, "where it is sent to; groups that are valid on their link only never pass"),
    choice("multicast-policy", "action", LOCAL_ACTIONS, DefaultValue::Required, WHOLE, MULTICAST, "what happens to it"),
    flag("multicast-policy", "log", false, WHOLE, MULTICAST, "log the start and the end of each session"),
    flag("multicast-policy", "snat", false, WHOLE, MULTICAST, "translate the source to the virtual address of the port that the stream leaves by; the ports stay"),

    text("multicast-join", "port", "port name", DefaultValue::Required, WHOLE, MULTICAST, "where the group is wanted"),
    text("multicast-join", "group", "address", DefaultValue::Required, WHOLE, MULTICAST, "the group"),
    text("multicast-join", "source", "address", DefaultValue::Absent("any"), WHOLE, MULTICAST, "only what this host sends to it"),

    time("timeouts", "tcp-established", S, d(7), s(7440), field!(Timeouts.tcp_established), Reload::Live(Live::Timeouts), "an open TCP connection (RFC 5382, REQ-5)"),
    time("timeouts", "tcp-transitory", S, d(1), s(240), field!(Timeouts.tcp_transitory), Reload::Live(Live::Timeouts), "a TCP connection that opens or closes (RFC 5382, REQ-5)"),
    time("timeouts", "tcp-syn", S, d(1), s(240), field!(Timeouts.tcp_syn), Reload::Live(Live::Timeouts), "a SYN without an answer"),
    time("timeouts", "tcp-time-wait", S, d(1), s(120), field!(Timeouts.tcp_time_wait), Reload::Live(Live::Timeouts), "a TCP connection closed from both sides"),
    time("timeouts", "tcp-reset", S, d(1), s(10), field!(Timeouts.tcp_reset), Reload::Live(Live::Timeouts), "a TCP connection after a reset"),
    time("timeouts", "udp", S, d(1), s(300), field!(Timeouts.udp), Reload::Live(Live::Timeouts), "UDP, answered (RFC 4787, REQ-5)"),
    time("timeouts", "udp-unreplied", S, d(1), s(120), field!(Timeouts.udp_unreplied), Reload::Live(Live::Timeouts), "UDP without an answer (RFC 4787, REQ-5)"),
    time("timeouts", "icmp", S, d(1), s(60), field!(Timeouts.icmp), Reload::Live(Live::Timeouts), "an ICMP query (RFC 5508, REQ-2)"),
    time("timeouts", "other", S, d(1), s(600), field!(Timeouts.other), Reload::Live(Live::Timeouts), "other protocols"),

    option("limits", "sessions-per-source", OptionKind::Integer { min: 0, max: 10_000_000 }, DefaultValue::Absent("half of max-sessions, at least 4096"), field!(Limits.sessions_per_source), Reload::Live(Live::SessionsPerSource), "sessions that one source may have (IPv6: a host on the link of a port, elsewhere a /64); 0 means no limit"),
    option("limits", "half-open-per-source", OptionKind::Integer { min: 0, max: 65_535 }, DefaultValue::Absent("a sixteenth of max-sessions, at least 4096"), field!(Limits.half_open_per_source), Reload::Live(Live::HalfOpenPerSource), "sessions of one source without an answer yet: above the limit, the oldest is removed; 0 means no limit"),
    option("limits", "ports-per-source", OptionKind::Integer { min: 0, max: 10_000_000 }, DefaultValue::Absent("half of the ports of the pool, at least 1024"), field!(Limits.ports_per_source), Reload::Live(Live::PortsPerSource), "external ports for UDP and ICMP that one source may have; 0 means no limit"),
    int("limits", "icmp-errors-per-second", 0, 1_000_000, 1000, field!(Limits.icmp_errors_per_second), Reload::Live(Live::IcmpErrorsPerSecond), "ICMP errors that the gateway itself sends per second"),
    option("limits", "tcp-pickup", OptionKind::Bool, DefaultValue::Absent("true with [ha], else false"), field!(Limits.tcp_pickup), Reload::Live(Live::TcpPickup), "pick up TCP connections in the middle"),

    own(text("metrics", "listen", "address:port", DefaultValue::Text("127.0.0.1:10747"), field!(Metrics.listen), RESTART, "where they are served, at /metrics, to anybody who can reach it: loopback or a management network")),

    option("ha", "group-id", OptionKind::Integer { min: 1, max: 255 }, DefaultValue::Required, field!(Ha.group_id), RESTART, "units with the same id belong together"),
    own(int("ha", "priority", 0, 255, 128, field!(Ha.priority), Reload::Live(Live::Priority), "the unit with the highest priority is primary, subject to `override`")),
    flag("ha", "override", false, field!(Ha.override_), Reload::Live(Live::Override), "take over from a healthy unit of lower priority"),
    time("ha", "override-wait-time", Duration::ZERO, h(1), Duration::ZERO, field!(Ha.override_wait), Reload::Live(Live::OverrideWaitTime), "how long a unit must be ready, with ports that carry traffic, before it takes over by `override`"),
    time("ha", "heartbeat-interval", ms(1), s(10), ms(20), field!(Ha.heartbeat_interval), RESTART, "time between two heartbeats"),
    int("ha", "heartbeat-lost-threshold", 2, 60, 5, field!(Ha.heartbeat_lost_threshold), RESTART, "how many heartbeats must be lost until a peer counts as dead"),
    list("ha", "monitor", "port name", DefaultValue::Absent("none"), field!(Ha.monitor), Reload::Live(Live::Monitor), "ports that must be up; a unit with fewer of them up loses the election"),
    int("ha", "pingserver-failover-threshold", 0, 3200, 0, field!(Ha.failover_threshold), Reload::Live(Live::FailoverThreshold), "a port counts as down when its dead targets weigh more than this, by the `ha-priority` of each `[[link-monitor]]`"),
    flag("ha", "session-pickup", true, field!(Ha.session_pickup), Reload::Live(Live::SessionPickup), "replicate TCP and other connection-oriented sessions"),
    flag("ha", "session-pickup-connectionless", true, field!(Ha.session_pickup_connectionless), Reload::Live(Live::SessionPickupConnectionless), "replicate UDP and ICMP sessions as well"),
    time("ha", "session-pickup-delay", Duration::ZERO, h(1), Duration::ZERO, field!(Ha.session_pickup_delay), Reload::Live(Live::SessionPickupDelay), "replicate only sessions that live longer than this"),
    time("ha", "multicast-ttl", s(5), h(1), s(600), field!(Ha.multicast_ttl), Reload::Live(Live::MulticastTtl), "how long a standby keeps what the primary has told it of multicast and not told again"),
    choice("ha", "pickup-guarantee", GUARANTEES, DefaultValue::Text("off"), field!(Ha.pickup_guarantee), Reload::Live(Live::PickupGuarantee), "how long the first packet of a session waits for the peer"),
    time("ha", "pickup-guarantee-wait", ms(1), s(1), ms(10), field!(Ha.pickup_guarantee_wait), Reload::Live(Live::PickupGuaranteeWait), "the longest wait; then the packet is sent (bounded) or dropped (strict)"),
    int("ha", "pickup-guarantee-copies", 1, 15, 1, field!(Ha.pickup_guarantee_copies), Reload::Live(Live::PickupGuaranteeCopies), "how many peers must hold the session; at most as many as are in sync"),
    int("ha", "copies", 0, 15, 0, field!(Ha.copies), Reload::Live(Live::Copies), "how many peers hold the sessions of each group, beside its primary; 0 means all, as do clusters of up to three units; the same on all units"),
    flag("ha", "asymmetric-flows", false, field!(Ha.asymmetric_flows), Reload::Live(Live::AsymmetricFlows), "packets may come to any unit: one that is not primary forwards those of the sessions that it has, and passes the others on to the primary; the same on all units"),
    list("ha", "accept-push", "node name", DefaultValue::Absent("none"), field!(Ha.accept_push), Reload::Live(Live::AcceptPush), "units that may give this one another config, by `tandemgw push`; who may do that on one of them decides what passes here"),
    int("ha", "gratuitous-arps", 1, 60, 5, field!(Ha.gratuitous_arps), Reload::Live(Live::GratuitousArps), "how often a takeover is announced to the hosts"),
    time("ha", "gratuitous-arp-interval", ms(10), s(60), s(1), field!(Ha.gratuitous_arp_interval), Reload::Live(Live::GratuitousArpInterval), "time between two such announcements"),

    own(text("ha.link", "interface", "interface", DefaultValue::Required, WHOLE, RESTART, "the interface of the link")),
    own(text("ha.link", "listen", "address:port", DefaultValue::Required, WHOLE, RESTART, "this unit's address on the link")),

    text("ha.peer", "name", "node name", DefaultValue::Required, WHOLE, Reload::Live(Live::Peers), "the name of the peer's node"),
    list("ha.peer", "addresses", "address:port", DefaultValue::Required, WHOLE, Reload::Live(Live::Peers), "the peer's addresses, one per link, in the order of the links"),
    text("ha.peer", "public-key", "32 bytes as base64", DefaultValue::Required, WHOLE, Reload::Live(Live::Peers), "what `tandemgw pubkey` prints on the peer"),

    list("ha.witness", "endpoints", "URL", DefaultValue::Required, field!(Witness.endpoints), WITNESS, "its members, as in `https://10.0.0.1:2379`; the first that answers is asked"),
    text("ha.witness", "ca", "absolute path", DefaultValue::Absent("none; needed with https"), field!(Witness.ca), WITNESS, "certificates (PEM) of who signed those of the members"),
    text("ha.witness", "cert", "absolute path", DefaultValue::Absent("none"), field!(Witness.cert), WITNESS, "this unit's certificate (PEM), if the members ask for one"),
    text("ha.witness", "key", "absolute path", DefaultValue::Absent("none"), field!(Witness.key), WITNESS, "the private key (PEM) of `cert`"),
    text("ha.witness", "user", "name", DefaultValue::Absent("none"), field!(Witness.user), WITNESS, "the user of etcd, who may read and write below `prefix`"),
    text("ha.witness", "password-file", "absolute path", DefaultValue::Absent("none; needed with user"), field!(Witness.password_file), WITNESS, "its first line is the password of `user`"),
    text("ha.witness", "prefix", "text", DefaultValue::Text("tandemgw"), field!(Witness.prefix), WITNESS, "the keys are `prefix`/`group-id`/group; the same on all units"),
    time("ha.witness", "lease", s(2), s(60), s(5), field!(Witness.lease), WITNESS, "how long a group stays with a unit that etcd no longer hears from; etcd itself may take longer, but not less than some 2 s"),
    time("ha.witness", "timeout", ms(100), s(10), s(1), field!(Witness.timeout), WITNESS, "how long an answer is waited for; then the unit decides without a witness"),
];

const ACTIONS: &[&str] = &["accept", "drop", "reject"];
const MONITOR_PROTOCOLS: &[&str] = &["ping", "arp", "tcp"];
const LOCAL_ACTIONS: &[&str] = &["accept", "drop"];
const GUARANTEES: &[&str] = &["off", "bounded", "strict"];
const RESTART: Reload = Reload::Restart;
const AS_USED: Reload = Reload::AsUsed;
const MULTICAST: Reload = Reload::Live(Live::Multicast);
const WITNESS: Reload = Reload::Live(Live::Witness);
const WHOLE: Access = Access::Whole;
const S: Duration = s(1);

/// Two fields: link-local addresses are kept apart.
const VIRTUAL_ADDRESSES: Access = Access::Port(Field {
    get: |port| {
        let all = port.virtual_addresses.iter().chain(&port.link_local);
        Value::Addresses(all.copied().collect())
    },
    // A reload compares them with their groups, and the decoder reads them itself.
    set: |_, _| {},
});

/// A flag of the config, two words in the file.
const UNSOLICITED_SYN: Access = Access::Port(Field {
    get: |port| {
        Value::Word(match port.rejects_syns {
            true => "reject",
            false => "drop",
        })
    },
    set: |port, value| port.rejects_syns = value == Value::Word("reject"),
});

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn h(n: u64) -> Duration {
    s(n * 3600)
}

const fn d(n: u64) -> Duration {
    h(n * 24)
}

const fn table(name: &'static str, meaning: &'static str) -> TableDoc {
    TableDoc {
        name,
        repeated: false,
        most: 1,
        meaning,
    }
}

const fn tables_of(name: &'static str, most: usize, meaning: &'static str) -> TableDoc {
    TableDoc {
        name,
        repeated: true,
        most,
        meaning,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use toml::de::{DeTable, DeValue};

    use super::*;

    /// The decoder refuses keys that it does not take, and looks up each key that it takes in the
    /// list.
    pub(crate) const EVERYTHING: &str = r#"
        include = ["policies.d/*.toml"]
        [node]
        name = "a"
        key = "a.key"
        control-socket = "/tmp/a.sock"
        state-directory = "/tmp/state"
        max-sessions = 5000
        routing-table = 8000
        [[port]]
        name = "lan"
        interface = "eth0"
        virtual-addresses = ["10.0.1.1/24"]
        source-check = false
        offload = false
        unsolicited-syn = "drop"
        mss-clamp = "auto"
        routing-headers = true
        reserved-addresses = false
        sessions-per-source = 7
        half-open-per-source = 8
        ports-per-source = 9
        [[port]]
        name = "wan"
        interface = "eth8"
        [[group]]
        name = "g"
        ports = ["lan"]
        priority = 3
        distribute = 4
        weights = ["a:2"]
        [[group]]
        name = "h"
        virtual-addresses = []
        [[policy]]
        name = "p"
        from = ["lan"]
        to = ["lan"]
        source = ["10.0.0.0/8"]
        destination = ["10.0.0.0/8", "servers"]
        service = ["tcp/80", "web"]
        forwarded = false
        action = "accept"
        nat = true
        nat-pool = "n"
        log = true
        pickup-guarantee = "off"
        mss-clamp = 1300
        [[address]]
        name = "servers"
        member = ["10.7.1.0/28"]
        [[service]]
        name = "web"
        member = ["tcp/443"]
        [[nat-pool]]
        name = "n"
        addresses = ["10.0.1.9"]
        ports = "2000-3000"
        [[forward]]
        name = "f"
        port = "lan"
        protocol = "udp"
        external = "10.0.1.1:53"
        internal = "10.0.1.5:53"
        [[link-monitor]]
        port = "lan"
        server = "10.0.1.50"
        protocol = "arp"
        interval = "100ms"
        failtime = 3
        recoverytime = 4
        ha-priority = 2
        [[local-in]]
        name = "ssh"
        from = ["wan"]
        source = ["10.9.0.0/16"]
        service = ["tcp/22"]
        action = "drop"
        [[multicast-policy]]
        name = "tv"
        from = [ "wan" ]
        to = [ "lan" ]
        source = ["10.8.0.0/16"]
        group = ["239.1.0.0/16"]
        action = "drop"
        log=true
        snat = true
        [[multicast-join]]
        port = "lan"
        group = "239.1.2.3"
        source = "10.8.1.1"
        [timeouts]
        tcp-established = "1h"
        tcp-transitory = "60s"
        tcp-syn = "5s"
        tcp-time-wait = "5s"
        tcp-reset = "5s"
        udp = "5s"
        udp-unreplied = "5s"
        icmp = "5s"
        other = "5s"
        [limits]
        sessions-per-source = 0
        half-open-per-source = 0
        ports-per-source = 0
        icmp-errors-per-second = 0
        tcp-pickup = false
        [metrics]
        listen = "127.0.0.1:9"
        [ha]
        group-id = 1
        priority = 0
        override = true
        override-wait-time = "1s"
        heartbeat-interval = "1ms"
        heartbeat-lost-threshold = 2
        monitor = ["lan"]
        pingserver-failover-threshold = 1
        session-pickup = true
        session-pickup-connectionless = false
        session-pickup-delay = "1s"
        multicast-ttl = "7s"
        pickup-guarantee = "off"
        pickup-guarantee-wait = "1ms"
        pickup-guarantee-copies = 1
        copies = 1
        asymmetric-flows = true
        accept-push = ["b"]
        gratuitous-arps = 1
        gratuitous-arp-interval = "1s"
        [[ha.link]]
        interface = "eth1"
        listen = "10.0.9.1:7030"
        [[ha.peer]]
        name = "b"
        addresses = ["10.0.9.2:7030"]
        public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
        [ha.witness]
        endpoints = ["https://10.0.0.1:2379", "https://[2001:db8::1]:2379"]
        ca = "/etc/tandemgw/etcd-ca.pem"
        cert = "/etc/tandemgw/etcd.pem"
        key = "/etc/tandemgw/etcd.key"
        user = "gw"
        password-file = "/etc/tandemgw/etcd.password"
        prefix = "tandemgw/berlin"
        lease = "3s"
        timeout = "500ms"
    "#;

    /// The decoder refuses a key that it does not take, and asks the list for each that it takes.
    #[test]
    fn the_decoder_accepts_exactly_the_listed_options() {
        let mut keys = BTreeSet::new();
        collect("", DeTable::parse(EVERYTHING).unwrap().get_ref(), &mut keys);
        let listed = OPTIONS
            .iter()
            .map(|option| (option.table.to_owned(), option.key.to_owned()));
        assert_eq!(keys, listed.collect());
        let found = crate::config::parse(Path::new("a.toml"), EVERYTHING);
        assert!(found.is_ok(), "{found:?}");
    }

    #[test]
    fn every_option_is_listed_once_and_in_a_table_with_a_meaning() {
        for (index, option) in OPTIONS.iter().enumerate() {
            assert!(
                TABLES.iter().any(|table| table.name == option.table),
                "{option:?}"
            );
            let same = |other: &OptionDoc| (other.table, other.key) == (option.table, option.key);
            assert!(!OPTIONS[..index].iter().any(same), "{option:?}");
            assert!(
                !option.meaning.is_empty() && !option.meaning.ends_with('.'),
                "{option:?}"
            );
        }
    }

    #[test]
    fn every_default_is_in_its_range() {
        for option in OPTIONS {
            let fits = match (option.kind, option.default) {
                (_, DefaultValue::Required | DefaultValue::Absent(_)) => true,
                (OptionKind::Bool, DefaultValue::Bool(_)) => true,
                (OptionKind::Integer { min, max }, DefaultValue::Integer(n)) => {
                    (min..=max).contains(&n)
                }
                (OptionKind::Duration { min, max }, DefaultValue::Duration(d)) => {
                    (min..=max).contains(&d)
                }
                (OptionKind::Choice(words), DefaultValue::Text(word)) => words.contains(&word),
                (OptionKind::Text(_) | OptionKind::Offload, DefaultValue::Text(_)) => true,
                _ => false,
            };
            assert!(fits, "{option:?}");
        }
    }

    #[test]
    fn a_range_and_a_default_are_shown_as_they_are_written() {
        let shown = |table, key| {
            let option = find(table, key).unwrap();
            (option.kind_text(), option.default_text())
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            shown("ha", "heartbeat-interval"),
            pair("duration, 1ms to 10s", "\"20ms\"")
        );
        assert_eq!(
            shown("ha", "group-id"),
            pair("integer, 1 to 255", "required")
        );
        assert_eq!(
            shown("policy", "action"),
            pair("accept | drop | reject", "required")
        );
        assert_eq!(
            shown("nat-pool", "ports"),
            pair("first-last", "\"1-65535\"")
        );
    }

    /// The tables and keys of all values below `table` that are not tables themselves.
    fn collect(path: &str, table: &DeTable<'_>, keys: &mut BTreeSet<(String, String)>) {
        for (key, value) in table {
            let below = match path {
                "" => key.get_ref().to_string(),
                _ => format!("{path}.{}", key.get_ref()),
            };
            match value.get_ref() {
                DeValue::Table(table) => collect(&below, table, keys),
                DeValue::Array(array) if array.iter().any(|v| v.get_ref().is_table()) => {
                    for table in array.iter().filter_map(|value| value.get_ref().as_table()) {
                        collect(&below, table, keys);
                    }
                }
                _ => {
                    keys.insert((path.to_owned(), key.get_ref().to_string()));
                }
            }
        }
    }
}
