//! Filters of a capture: `proto=tcp host=10.0.0.5 port=443 verdict=drop`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::Config;
use crate::event::DropReason;
use crate::filter_words::{
    WordError, known, known_port, limited, network, port, protocol, split, unknown,
};
use crate::flow::{Addr, FlowKey, Protocol};
use crate::policy::Ruleset;

use super::{CapturedFate, Facts};

/// Conditions that must all hold.
///
/// Addresses, protocol and ports are compared with the packet as it came in and as it left: one
/// match is enough. Ports of the gateway and policies are stored by name, because a reload may give
/// them other numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
enum Condition {
    Protocol(Protocol),
    Source(IpNet),
    Destination(IpNet),
    Host(IpNet),
    Port(u16),
    In(String),
    Out(String),
    Policy(String),
    Session(u32),
    Verdict(&'static str),
    Reason(DropReason),
}

/// The keys of a filter.
pub const KEYS: [&str; 11] = [
    "proto", "src", "dst", "host", "port", "in", "out", "policy", "session", "verdict", "reason",
];

impl Filter {
    /// Parses `key=value` words; matches everything if there are none.
    ///
    /// # Errors
    /// A sentence that names the word and what would be valid.
    pub fn parse(words: &[String], config: &Config) -> Result<Filter, WordError> {
        let conditions = limited(words)?
            .iter()
            .map(|word| condition(word, config))
            .collect::<Result<_, _>>()?;
        Ok(Filter { conditions })
    }

    /// Whether a packet meets all conditions.
    pub fn matches(&self, facts: &Facts, config: &Config, ruleset: &Ruleset) -> bool {
        self.conditions
            .iter()
            .all(|condition| condition.matches(facts, config, ruleset))
    }
}

impl Condition {
    fn matches(&self, facts: &Facts, config: &Config, ruleset: &Ruleset) -> bool {
        let shows = |test: &dyn Fn(&FlowKey) -> bool| {
            [&facts.before, &facts.after]
                .into_iter()
                .flatten()
                .any(test)
        };
        let within = |net: &IpNet, addr: Addr| net.contains(&IpAddr::from(addr));
        let port_name = |port: crate::flow::PortId| &config.ports[port.index()].name;
        match self {
            Condition::Protocol(protocol) => shows(&|key| key.protocol == *protocol),
            Condition::Source(net) => shows(&|key| within(net, key.src)),
            Condition::Destination(net) => shows(&|key| within(net, key.dst)),
            Condition::Host(net) => shows(&|key| within(net, key.src) || within(net, key.dst)),
            Condition::Port(port) => shows(&|key| [key.src_port, key.dst_port].contains(port)),
            Condition::In(name) => facts.in_port.is_some_and(|port| port_name(port) == name),
            Condition::Out(name) => facts.out_port.is_some_and(|port| port_name(port) == name),
            Condition::Policy(name) => facts
                .policy
                .and_then(|policy| config.policies.get(ruleset.place(policy)?))
                .is_some_and(|policy| policy.name == *name),
            Condition::Session(id) => facts.session.is_some_and(|session| session.0 == *id),
            Condition::Verdict(name) => facts.fate.name() == *name,
            Condition::Reason(reason) => facts.fate.reason() == Some(*reason),
        }
    }
}

fn condition(word: &str, config: &Config) -> Result<Condition, WordError> {
    let (key, value) = split(word)?;
    let owned = |name: Result<&str, WordError>| name.map(str::to_owned);
    let condition = match key {
        "proto" => protocol(value).map(Condition::Protocol),
        "src" => network(value).map(Condition::Source),
        "dst" => network(value).map(Condition::Destination),
        "host" => network(value).map(Condition::Host),
        "port" => port(value).map(Condition::Port),
        "in" => owned(known_port(value, config)).map(Condition::In),
        "out" => owned(known_port(value, config)).map(Condition::Out),
        "policy" => {
            let names = config.policies.iter().map(|policy| policy.name.as_str());
            owned(known("policy", value, names)).map(Condition::Policy)
        }
        "session" => match value.parse() {
            Ok(id) => Ok(Condition::Session(id)),
            Err(_) => Err(WordError::NotSessionId(value.to_owned())),
        },
        "verdict" => {
            known("verdict", value, CapturedFate::NAMES.into_iter()).map(Condition::Verdict)
        }
        "reason" => {
            let names = DropReason::ALL.iter().map(|reason| reason.name());
            let reason = DropReason::ALL.iter().find(|reason| reason.name() == value);
            match reason.ok_or_else(|| unknown("drop reason", value, names)) {
                Ok(DropReason::WriteFailed) => Err(WordError::UnseenReason),
                reason => reason.copied().map(Condition::Reason),
            }
        }
        _ => Err(unknown("key", key, KEYS.into_iter())),
    };
    condition.map_err(|error| WordError::In(word.to_owned(), Box::new(error)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::flow::{PolicyId, PortId};
    use crate::session::SessionId;
    use crate::time::Time;

    fn parse(words: &str) -> Result<Filter, WordError> {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        Filter::parse(&words, &config())
    }

    fn config() -> Config {
        let text = r#"
            [node]
            name = "gw"
            [[port]]
            name = "lan"
            interface = "eth0"
            virtual-addresses = ["10.77.1.1/24"]
            [[port]]
            name = "wan"
            interface = "eth1"
            virtual-addresses = ["10.77.2.1/24"]
            [[policy]]
            name = "lan-out"
            action = "accept"
            "#;
        config::parse(Path::new("test.toml"), text).unwrap().0
    }

    fn translated() -> Facts {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let before = FlowKey {
            src: addr("10.77.1.100"),
            dst: addr("198.51.100.7"),
            src_port: 4000,
            dst_port: 443,
            protocol: Protocol::TCP,
        };
        Facts {
            at: Time::ZERO,
            in_port: Some(PortId(0)),
            out_port: Some(PortId(1)),
            fate: CapturedFate::Forward,
            session: Some(SessionId(17)),
            policy: Some(PolicyId(0)),
            before: Some(before),
            after: Some(FlowKey {
                src: addr("10.77.2.1"),
                ..before
            }),
            translated: true,
            released: false,
            segment_size: 0,
        }
    }

    #[test]
    fn a_wrong_filter_is_answered_with_the_nearest_valid_one() {
        for (words, said) in [
            ("prot", "not of the form key=value, as in proto=tcp"),
            ("prot=tcp", "unknown key `prot`; did you mean `proto`?"),
            ("proto=tpc", "unknown protocol `tpc`; did you mean `tcp`?"),
            ("src=10.0.0.300", "`10.0.0.300` is not an address"),
            ("in=lna", "unknown port `lna`; did you mean `lan`?"),
            ("out=internet", "known: lan, wan"),
            (
                "policy=lan-uot",
                "unknown policy `lan-uot`; did you mean `lan-out`?",
            ),
            (
                "verdict=dorp",
                "unknown verdict `dorp`; did you mean `drop`?",
            ),
            (
                "reason=no-polcy",
                "unknown drop reason `no-polcy`; did you mean `no-policy`?",
            ),
            (
                "reason=write-failed",
                "a capture sees packets before they are written",
            ),
            ("session=x", "`x` is not a session id"),
            ("port=65536", "`65536` is not a port"),
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(
                error.contains(said) && !error.contains('\n'),
                "{words}: {error}"
            );
        }
    }

    #[test]
    fn both_sides_of_a_translation_are_found() {
        let (facts, config) = (translated(), config());
        let ruleset = Ruleset::new(&config);
        for words in [
            "",
            "src=10.77.1.0/24",
            "src=10.77.2.1",
            "host=198.51.100.7 proto=tcp port=443",
            "in=lan out=wan policy=lan-out session=17 verdict=forward",
        ] {
            assert!(
                parse(words).unwrap().matches(&facts, &config, &ruleset),
                "{words}"
            );
        }
        for words in [
            "dst=10.77.1.100",
            "proto=udp",
            "port=80",
            "in=wan",
            "session=18",
            "verdict=drop",
            "reason=no-policy",
            "port=443 verdict=consumed",
        ] {
            assert!(
                !parse(words).unwrap().matches(&facts, &config, &ruleset),
                "{words}"
            );
        }
    }

    #[test]
    fn what_could_not_be_read_is_found_by_its_reason_only() {
        let facts = Facts {
            before: None,
            after: None,
            session: None,
            policy: None,
            out_port: None,
            fate: CapturedFate::Drop(DropReason::Malformed),
            ..translated()
        };
        let config = config();
        let ruleset = Ruleset::new(&config);
        for words in ["", "in=lan", "verdict=drop", "reason=malformed"] {
            assert!(
                parse(words).unwrap().matches(&facts, &config, &ruleset),
                "{words}"
            );
        }
        for words in [
            "src=0.0.0.0/0",
            "proto=tcp",
            "port=0",
            "out=wan",
            "policy=lan-out",
        ] {
            assert!(
                !parse(words).unwrap().matches(&facts, &config, &ruleset),
                "{words}"
            );
        }
    }
}
