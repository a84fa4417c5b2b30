//! What can be configured: every table and key with its type, range, default and meaning.
//!
//! The decoder takes the keys, ranges and defaults from here.

use std::time::Duration;

use super::value::show_duration;

/// A table of the config file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableDoc {
    /// Its path, such as `ha.link`.
    pub name: &'static str,
    /// Whether there can be several, as in `[[port]]`.
    pub repeated: bool,
    /// How many there can be.
    pub most: usize,
    /// What it is, in one line.
    pub meaning: &'static str,
}

/// A key of the config file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionDoc {
    /// The path of its table, such as `ha.link`.
    pub table: &'static str,
    /// The key itself.
    pub key: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What it is if left out.
    pub default: DefaultValue,
    /// What it does, in one line.
    pub meaning: &'static str,
}

/// The type of an option, with its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string of the form described.
    Text(&'static str),
    /// An array of strings of the form described.
    List(&'static str),
    /// `true` or `false`.
    Bool,
    /// An integer; both ends included.
    Integer { min: u64, max: u64 },
    /// A duration such as `"50ms"`; both ends included.
    Duration { min: Duration, max: Duration },
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// What an option is if left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    /// It can't be left out.
    Required,
    /// What its absence means.
    Absent(&'static str),
    /// A value.
    Bool(bool),
    /// A value.
    Integer(u64),
    /// A value.
    Duration(Duration),
    /// A value.
    Text(&'static str),
}

impl OptionDoc {
    /// The type and range for a person, such as `integer, 1 to 255`.
    pub fn kind_text(&self) -> String {
        match self.kind {
            Kind::Text(form) => form.to_owned(),
            Kind::List(form) => format!("array of {form}"),
            Kind::Bool => "true or false".to_owned(),
            Kind::Integer { min, max } => format!("integer, {min} to {max}"),
            Kind::Duration { min, max } => {
                format!("duration, {} to {}", show_duration(min), show_duration(max))
            }
            Kind::Choice(words) => words.join(" | "),
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

const MSS_CLAMP: &str = "\"auto\", or an integer, 216 to 65495";

/// Every option, in the order in which a reader meets them.
pub fn options() -> &'static [OptionDoc] {
    OPTIONS
}

/// Every table, in the order in which a reader meets them.
pub fn tables() -> &'static [TableDoc] {
    TABLES
}

/// How many tables of that name there can be.
pub(super) fn most(table: &str) -> usize {
    let found = TABLES.iter().find(|known| known.name == table);
    found.map_or(0, |known| known.most)
}

pub(super) fn find(table: &str, key: &str) -> Option<&'static OptionDoc> {
    OPTIONS
        .iter()
        .find(|option| option.table == table && option.key == key)
}

/// The keys that `table` (empty: the document) can have, tables included.
pub(super) fn keys_of(table: &str) -> impl Iterator<Item = &'static str> {
    let own = OPTIONS
        .iter()
        .filter(move |option| option.table == table)
        .map(|option| option.key);
    let below = TABLES.iter().filter_map(move |sub| {
        let (parent, key) = sub.name.rsplit_once('.').unwrap_or(("", sub.name));
        (parent == table).then_some(key)
    });
    own.chain(below)
}

const TABLES: &[TableDoc] = &[
    table("node", "this unit"),
    tables_of(
        "port",
        512,
        "an interface whose packets the gateway handles",
    ),
    tables_of(
        "group",
        64,
        "virtual addresses that move as one; without any, all of them do",
    ),
    tables_of(
        "policy",
        50_000,
        "what may pass; the first match wins, no match is a drop",
    ),
    tables_of("nat-pool", 64, "addresses for source translation"),
    tables_of(
        "forward",
        4096,
        "destination translation; the policies then see the internal address",
    ),
    table("timeouts", "how long a session lives without a packet"),
    table("limits", "protection against floods"),
    table(
        "metrics",
        "metrics for Prometheus over HTTP; without it nothing listens",
    ),
    table(
        "ha",
        "high availability; without it the gateway is standalone",
    ),
    tables_of(
        "ha.link",
        8,
        "a link for heartbeats and replication; several for redundancy",
    ),
    tables_of("ha.peer", 15, "another unit"),
];

// One row an option: read as a table.
#[rustfmt::skip]
const OPTIONS: &[OptionDoc] = &[
    text("node", "name", "name", DefaultValue::Required, "the name of this unit; the peers know it by that"),
    text("node", "key", "path, relative to this file", DefaultValue::Absent("none; needed with [ha]"), "the private key of this unit, made by `tandemgw keygen`"),
    text("node", "control-socket", "path, relative to this file", DefaultValue::Absent("/run/tandemgw/<name>.sock"), "where `tandemgw status` and other commands reach this unit"),
    int("node", "max-sessions", 1024, 16_777_216, 1_048_576, "size of the session table; memory is reserved at the start and taken as it fills"),
    int("node", "routing-table", 256, 32_000, 7700, "first number of the routing tables and rule priorities that steer packets: one a port, 64 at least"),

    text("port", "name", "name, at most 11 of a-z 0-9 -", DefaultValue::Required, "the name by which policies and peers know the port"),
    text("port", "interface", "interface", DefaultValue::Required, "the kernel's interface that the hosts are on"),
    list("port", "virtual-addresses", "address/prefix-length", DefaultValue::Absent("none"), "addresses that the gateway answers for, 4096 on all ports together; never those of the kernel. A link-local IPv6 address is one by which hosts find their router, and each port may have the same"),
    flag("port", "source-check", true, "drop a packet whose source the routing expects on another port (RFC 3704)"),
    choice("port", "unsolicited-syn", &["drop", "reject"], DefaultValue::Text("drop"), "what happens to a SYN for an address of the gateway that nobody has asked for: a reset would end attempts of two hosts to open a connection to each other at once (RFC 5382, REQ-4)"),
    flag("port", "routing-headers", true, "forward IPv6 packets with a routing header that has segments left, such as those of segment routing; type 0 is always dropped (RFC 5095)"),
    flag("port", "reserved-addresses", false, "let 240.0.0.0/4 be a source and destination here, as some networks use it inside (RFC 6890 reserves it)"),
    text("port", "mss-clamp", MSS_CLAMP, DefaultValue::Absent("not changed"), "lower the maximum segment size that TCP connections through the port agree on: to what fits the links and routes on their way, or to so many bytes; for a path with a smaller MTU on which ICMP errors are lost"),
    option("port", "sessions-per-source", Kind::Integer { min: 0, max: 10_000_000 }, DefaultValue::Absent("that of [limits]"), "sessions that a source which sends by this port may have"),
    option("port", "half-open-per-source", Kind::Integer { min: 0, max: 65_535 }, DefaultValue::Absent("that of [limits]"), "those of them without an answer yet"),
    option("port", "ports-per-source", Kind::Integer { min: 0, max: 10_000_000 }, DefaultValue::Absent("that of [limits]"), "external ports for UDP and ICMP that such a source may have"),
    flag("port", "offload", true, "take packets from the kernel before it segments them and completes their checksums; off costs most of the throughput"),

    text("group", "name", "name", DefaultValue::Required, "the name of the group; the same on all units"),
    list("group", "ports", "port name", DefaultValue::Absent("none"), "ports of which all virtual addresses belong to the group"),
    list("group", "virtual-addresses", "address", DefaultValue::Absent("none"), "single virtual addresses that belong to the group"),
    option("group", "priority", Kind::Integer { min: 0, max: 255 }, DefaultValue::Absent("that of [ha]"), "priority of this unit in the election of the group's primary"),

    text("policy", "name", "name", DefaultValue::Required, "the name of the policy; sessions carry it to the peers"),
    list("policy", "from", "port name", DefaultValue::Absent("any"), "ports that a session may come in by"),
    list("policy", "to", "port name", DefaultValue::Absent("any"), "ports that a session may leave by"),
    list("policy", "source", "prefix", DefaultValue::Absent("any"), "source addresses"),
    list("policy", "destination", "prefix", DefaultValue::Absent("any"), "destination addresses, after a forward has translated them"),
    list("policy", "service", "service: tcp/443, tcp/8000-8099, tcp, udp/53, icmp, gre, esp, proto/47, any", DefaultValue::Absent("any"), "protocols and destination ports"),
    option("policy", "forwarded", Kind::Bool, DefaultValue::Absent("either, but not past a forward"), "whether a forward has translated the destination; without it a policy matches either, but no packet that comes in by the port of a forward and is for the own address and port of its server: for that, write false"),
    choice("policy", "action", ACTIONS, DefaultValue::Required, "what happens to a session that matches"),
    flag("policy", "nat", false, "translate the source to the virtual address of the port that the session leaves by"),
    text("policy", "nat-pool", "pool name", DefaultValue::Absent("none"), "translate the source to an address of this pool"),
    flag("policy", "log", false, "log the start and the end of each session"),
    text("policy", "mss-clamp", MSS_CLAMP, DefaultValue::Absent("that of the ports"), "lower the maximum segment size of connections that the policy accepts; goes before that of the ports"),
    choice("policy", "pickup-guarantee", GUARANTEES, DefaultValue::Absent("that of [ha]"), "how long the first packet of a session waits for the peer"),

    text("nat-pool", "name", "name", DefaultValue::Required, "the name of the pool"),
    list("nat-pool", "addresses", "address or range: 10.0.0.10-10.0.0.12", DefaultValue::Required, "the addresses, 4096 at most; the gateway answers for them"),
    text("nat-pool", "ports", "first-last", DefaultValue::Text("1-65535"), "the ports that are allocated of each address; a source port below 1024 gets one below 1024 where it can (RFC 4787, REQ-3a), others never do"),

    text("forward", "name", "name", DefaultValue::Required, "the name of the forward"),
    text("forward", "port", "port name", DefaultValue::Required, "the port that the connections come in by"),
    choice("forward", "protocol", &["tcp", "udp"], DefaultValue::Required, "the protocol"),
    text("forward", "external", "address:port or address:first-last", DefaultValue::Required, "where clients connect to: a virtual address of the port, or one of a pool"),
    text("forward", "internal", "address:port or address:first-last", DefaultValue::Required, "the server that they reach; for a range of ports, its first port or a range of the same length"),

    time("timeouts", "tcp-established", S, d(7), s(7440), "an open TCP connection (RFC 5382, REQ-5)"),
    time("timeouts", "tcp-transitory", S, d(1), s(240), "a TCP connection that opens or closes (RFC 5382, REQ-5)"),
    time("timeouts", "tcp-syn", S, d(1), s(240), "a SYN without an answer"),
    time("timeouts", "tcp-time-wait", S, d(1), s(120), "a TCP connection closed from both sides"),
    time("timeouts", "tcp-reset", S, d(1), s(10), "a TCP connection after a reset"),
    time("timeouts", "udp", S, d(1), s(300), "UDP, answered (RFC 4787, REQ-5)"),
    time("timeouts", "udp-unreplied", S, d(1), s(120), "UDP without an answer (RFC 4787, REQ-5)"),
    time("timeouts", "icmp", S, d(1), s(60), "an ICMP query (RFC 5508, REQ-2)"),
    time("timeouts", "other", S, d(1), s(600), "other protocols"),

    option("limits", "sessions-per-source", Kind::Integer { min: 0, max: 10_000_000 }, DefaultValue::Absent("half of max-sessions, at least 4096"), "sessions that one source may have (IPv6: a host on the link of a port, elsewhere a /64); 0 means no limit"),
    option("limits", "half-open-per-source", Kind::Integer { min: 0, max: 65_535 }, DefaultValue::Absent("a sixteenth of max-sessions, at least 4096"), "those of them without an answer yet: above it, the oldest goes; 0 means no limit"),
    option("limits", "ports-per-source", Kind::Integer { min: 0, max: 10_000_000 }, DefaultValue::Absent("half of the ports of the pool, at least 1024"), "external ports for UDP and ICMP that one source may have; 0 means no limit"),
    int("limits", "icmp-errors-per-second", 0, 1_000_000, 1000, "ICMP errors that the gateway itself sends a second"),
    option("limits", "tcp-pickup", Kind::Bool, DefaultValue::Absent("true with [ha], else false"), "take up TCP connections in their middle"),

    text("metrics", "listen", "address:port", DefaultValue::Text("127.0.0.1:10747"), "where they are served, at /metrics, to everybody who can reach it: loopback or a management network"),

    option("ha", "group-id", Kind::Integer { min: 1, max: 255 }, DefaultValue::Required, "units with the same one belong together"),
    int("ha", "priority", 0, 255, 128, "the unit with the highest one is primary, as far as `override` says"),
    flag("ha", "override", false, "take over from a unit of lower priority although it runs well"),
    time("ha", "heartbeat-interval", ms(1), s(10), ms(20), "time between two heartbeats"),
    int("ha", "heartbeat-lost-threshold", 2, 60, 5, "how many heartbeats must be lost until a peer counts as dead"),
    list("ha", "monitor", "port name", DefaultValue::Absent("none"), "ports that must be up; a unit with fewer of them up loses the election"),
    flag("ha", "session-pickup", true, "replicate TCP sessions and others that have a connection"),
    flag("ha", "session-pickup-connectionless", true, "replicate UDP and ICMP sessions as well"),
    time("ha", "session-pickup-delay", Duration::ZERO, h(1), Duration::ZERO, "replicate only sessions that live longer than this"),
    choice("ha", "pickup-guarantee", GUARANTEES, DefaultValue::Text("off"), "how long the first packet of a session waits for the peer"),
    time("ha", "pickup-guarantee-wait", ms(1), s(1), ms(10), "how long at most; then it goes (bounded) or is dropped (strict)"),
    int("ha", "pickup-guarantee-copies", 1, 15, 1, "how many peers must hold the session; not more than are in sync"),
    int("ha", "gratuitous-arps", 1, 60, 5, "how often a takeover is announced to the hosts"),
    time("ha", "gratuitous-arp-interval", ms(10), s(60), s(1), "time between two such announcements"),

    text("ha.link", "interface", "interface", DefaultValue::Required, "the interface of the link"),
    text("ha.link", "listen", "address:port", DefaultValue::Required, "this unit's address on the link"),

    text("ha.peer", "name", "node name", DefaultValue::Required, "the name of the peer's node"),
    list("ha.peer", "addresses", "address:port", DefaultValue::Required, "the peer's addresses, one a link, in the order of the links"),
    text("ha.peer", "public-key", "32 bytes as base64", DefaultValue::Required, "what `tandemgw pubkey` prints on the peer"),
];

const ACTIONS: &[&str] = &["accept", "drop", "reject"];
const GUARANTEES: &[&str] = &["off", "bounded", "strict"];
const S: Duration = s(1);

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

const fn option(
    table: &'static str,
    key: &'static str,
    kind: Kind,
    default: DefaultValue,
    meaning: &'static str,
) -> OptionDoc {
    OptionDoc {
        table,
        key,
        kind,
        default,
        meaning,
    }
}

const fn text(
    table: &'static str,
    key: &'static str,
    form: &'static str,
    default: DefaultValue,
    meaning: &'static str,
) -> OptionDoc {
    option(table, key, Kind::Text(form), default, meaning)
}

const fn list(
    table: &'static str,
    key: &'static str,
    form: &'static str,
    default: DefaultValue,
    meaning: &'static str,
) -> OptionDoc {
    option(table, key, Kind::List(form), default, meaning)
}

const fn flag(
    table: &'static str,
    key: &'static str,
    default: bool,
    meaning: &'static str,
) -> OptionDoc {
    let default = DefaultValue::Bool(default);
    option(table, key, Kind::Bool, default, meaning)
}

const fn int(
    table: &'static str,
    key: &'static str,
    min: u64,
    max: u64,
    default: u64,
    meaning: &'static str,
) -> OptionDoc {
    let default = DefaultValue::Integer(default);
    option(table, key, Kind::Integer { min, max }, default, meaning)
}

const fn time(
    table: &'static str,
    key: &'static str,
    min: Duration,
    max: Duration,
    default: Duration,
    meaning: &'static str,
) -> OptionDoc {
    let default = DefaultValue::Duration(default);
    option(table, key, Kind::Duration { min, max }, default, meaning)
}

const fn choice(
    table: &'static str,
    key: &'static str,
    words: &'static [&'static str],
    default: DefaultValue,
    meaning: &'static str,
) -> OptionDoc {
    option(table, key, Kind::Choice(words), default, meaning)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use toml::de::{DeTable, DeValue};

    use super::*;

    /// Every option once.
    pub(crate) const EVERYTHING: &str = r#"
        [node]
        name = "a"
        key = "a.key"
        control-socket = "/tmp/a.sock"
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
        [[group]]
        name = "g"
        ports = ["lan"]
        priority = 3
        [[group]]
        name = "h"
        virtual-addresses = []
        [[policy]]
        name = "p"
        from = ["lan"]
        to = ["lan"]
        source = ["10.0.0.0/8"]
        destination = ["10.0.0.0/8"]
        service = ["tcp/80"]
        forwarded = false
        action = "accept"
        nat = true
        nat-pool = "n"
        log = true
        pickup-guarantee = "off"
        mss-clamp = 1300
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
        heartbeat-interval = "1ms"
        heartbeat-lost-threshold = 2
        monitor = ["lan"]
        session-pickup = true
        session-pickup-connectionless = false
        session-pickup-delay = "1s"
        pickup-guarantee = "off"
        pickup-guarantee-wait = "1ms"
        pickup-guarantee-copies = 1
        gratuitous-arps = 1
        gratuitous-arp-interval = "1s"
        [[ha.link]]
        interface = "eth1"
        listen = "10.0.9.1:7030"
        [[ha.peer]]
        name = "b"
        addresses = ["10.0.9.2:7030"]
        public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
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
                (Kind::Bool, DefaultValue::Bool(_)) => true,
                (Kind::Integer { min, max }, DefaultValue::Integer(n)) => (min..=max).contains(&n),
                (Kind::Duration { min, max }, DefaultValue::Duration(d)) => {
                    (min..=max).contains(&d)
                }
                (Kind::Choice(words), DefaultValue::Text(word)) => words.contains(&word),
                (Kind::Text(_), DefaultValue::Text(_)) => true,
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

    /// The tables and keys of all values below `table` that are no tables themselves.
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
