//! Filters of the session listing: `proto=tcp src=10.0.0.0/8 port=443 state=established`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Config;
use crate::filter_words::{
    WordError, known, known_port, limited, network, port, protocol, split, unknown,
};
use crate::flow::{Addr, GroupId, Protocol};
use crate::gateway::{Gateway, SessionView};
use crate::session::tcp::TcpState;

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
enum Condition {
    Protocol(Protocol),
    Source(IpNet),
    Destination(IpNet),
    Port(u16),
    State(String),
    Policy(String),
    In(String),
    Out(String),
    Group(String),
    Synced(bool),
}

/// The keys of a filter.
pub const KEYS: [&str; 10] = [
    "proto", "src", "dst", "port", "state", "policy", "in", "out", "group", "synced",
];

/// States of sessions that have no TCP state.
const OTHER_STATES: [&str; 3] = ["replied", "unreplied", "multicast"];

impl Filter {
    /// Parses `key=value` words; matches everything if there are none.
    ///
    /// # Errors
    /// A sentence that names the word and the nearest valid one.
    pub fn parse(words: &[String], config: &Config) -> Result<Filter, WordError> {
        let conditions = limited(words)?
            .iter()
            .map(|word| condition(word, config))
            .collect::<Result<_, _>>()?;
        Ok(Filter { conditions })
    }

    /// Whether a session meets all conditions.
    pub fn matches(&self, session: &SessionView, gateway: &Gateway) -> bool {
        self.conditions
            .iter()
            .all(|condition| condition.matches(session, gateway))
    }

    /// Whether sessions of `group` can match.
    pub(crate) fn admits_group(&self, group: GroupId, gateway: &Gateway) -> bool {
        let refuses = |condition: &Condition| matches!(condition, Condition::Group(name) if gateway.group_name(group) != name);
        !self.conditions.iter().any(refuses)
    }
}

impl Condition {
    fn matches(&self, session: &SessionView, gateway: &Gateway) -> bool {
        let (original, translated) = (&session.original, &session.translated);
        let within = |net: &IpNet, addr: Addr| net.contains(&IpAddr::from(addr));
        match self {
            Condition::Protocol(protocol) => original.protocol == *protocol,
            Condition::Source(net) => within(net, original.src) || within(net, translated.src),
            Condition::Destination(net) => within(net, original.dst) || within(net, translated.dst),
            Condition::Port(port) => [
                original.src_port,
                original.dst_port,
                translated.src_port,
                translated.dst_port,
            ]
            .contains(port),
            Condition::State(state) => session.state == state,
            Condition::Policy(name) => gateway.policy_name(session.policy) == name,
            Condition::In(name) => gateway.port_name(session.in_port) == name,
            Condition::Out(name) => gateway.port_name(session.out_port) == name,
            Condition::Group(name) => gateway.group_name(session.group) == name,
            Condition::Synced(synced) => session.synced == *synced,
        }
    }
}

fn condition(word: &str, config: &Config) -> Result<Condition, WordError> {
    let (key, value) = split(word)?;
    let within = |error| WordError::In(word.to_owned(), Box::new(error));
    let condition = match key {
        "proto" => protocol(value).map(Condition::Protocol),
        "src" => network(value).map(Condition::Source),
        "dst" => network(value).map(Condition::Destination),
        "port" => port(value).map(Condition::Port),
        "state" => {
            let tcp = TcpState::ALL.iter().map(|state| state.name());
            let state = known("state", value, tcp.chain(OTHER_STATES));
            state.map(|state| Condition::State(state.to_owned()))
        }
        // Sessions from a peer may have one that this unit does not know.
        "policy" if value == "-" => Ok(Condition::Policy(value.to_owned())),
        "policy" => {
            let names = config.policies.iter().map(|policy| policy.name.as_str());
            known("policy", value, names).map(|name| Condition::Policy(name.to_owned()))
        }
        "in" => known_port(value, config).map(|name| Condition::In(name.to_owned())),
        "out" => known_port(value, config).map(|name| Condition::Out(name.to_owned())),
        "group" => {
            let names = config.known_groups().map(|(_, group)| group.name.as_str());
            known("group", value, names).map(|name| Condition::Group(name.to_owned()))
        }
        "synced" => match value {
            "yes" => Ok(Condition::Synced(true)),
            "no" => Ok(Condition::Synced(false)),
            _ => Err(WordError::NotYesOrNo(value.to_owned())),
        },
        _ => Err(unknown("key", key, KEYS.into_iter())),
    };
    condition.map_err(within)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const CONFIG: &str = r#"
[node]
name = "gw"

[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.77.1.1/24"]

[[policy]]
name = "lan-out"
action = "accept"
"#;

    fn parse(word: &str) -> Result<Filter, WordError> {
        let (config, _) = crate::config::parse(Path::new("test.toml"), CONFIG).unwrap();
        Filter::parse(&[word.to_owned()], &config)
    }

    #[test]
    fn a_wrong_filter_is_answered_with_the_nearest_valid_one() {
        for (word, said) in [
            (
                "proto",
                "filter `proto` is not of the form key=value, as in proto=tcp",
            ),
            (
                "prot=tcp",
                "filter `prot=tcp`: unknown key `prot`; did you mean `proto`?",
            ),
            ("proto=tpc", "unknown protocol `tpc`; did you mean `tcp`?"),
            (
                "proto=256",
                "unknown protocol `256`; known: tcp, udp, icmp, a number from 0 to 255",
            ),
            (
                "src=10.0.0.300",
                "is not an address or network, such as 10.0.0.0/8",
            ),
            ("port=70000", "`70000` is not a port (0 to 65535)"),
            (
                "state=establishd",
                "unknown state `establishd`; did you mean `established`?",
            ),
            (
                "policy=lan-uot",
                "unknown policy `lan-uot`; did you mean `lan-out`?",
            ),
            ("in=wan", "unknown port `wan`; did you mean `lan`?"),
            ("out=elsewhere", "unknown port `elsewhere`; known: lan"),
            (
                "group=defualt",
                "unknown group `defualt`; did you mean `default`?",
            ),
            ("synced=maybe", "expected yes or no, not `maybe`"),
        ] {
            let error = parse(word).expect_err(word).to_string();
            assert!(error.ends_with(said), "{error}");
            assert!(error.contains(word) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_is_valid_is_taken() {
        for word in [
            "src=10.0.0.0/8",
            "dst=10.1.2.3",
            "src=fd00::/8",
            "dst=fd00::1",
            "proto=47",
            "state=unreplied",
            "state=time-wait",
            "policy=-",
            "policy=lan-out",
            "in=lan",
            "group=default",
        ] {
            assert!(parse(word).is_ok(), "{word}");
        }
    }
}
