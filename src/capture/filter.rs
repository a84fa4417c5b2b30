//! Filters of a capture: `proto=tcp host=10.0.0.5 port=443 verdict=drop`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Config, did_you_mean};
use crate::control::filter::{network, protocol};
use crate::event::DropReason;
use crate::flow::{Addr, FlowKey, Protocol};

use super::{Facts, Fate};

/// A conjunction of conditions.
///
/// Addresses, protocol and ports are compared with the packet as it came in and as it left: one that
/// fits is enough. Ports of the gateway and policies are held by name, since a reload may give them
/// other numbers.
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

const KEYS: [&str; 11] = [
    "proto", "src", "dst", "host", "port", "in", "out", "policy", "session", "verdict", "reason",
];

impl Filter {
    /// Parses `key=value` words; matches everything if there are none.
    ///
    /// # Errors
    /// A sentence that names the word and what would be valid.
    pub fn parse(words: &[String], config: &Config) -> Result<Filter, String> {
        let conditions = words
            .iter()
            .map(|word| condition(word, config))
            .collect::<Result<_, _>>()?;
        Ok(Filter { conditions })
    }

    /// Whether a packet fulfils all conditions.
    pub fn matches(&self, facts: &Facts, config: &Config) -> bool {
        self.conditions
            .iter()
            .all(|condition| condition.matches(facts, config))
    }
}

impl Condition {
    fn matches(&self, facts: &Facts, config: &Config) -> bool {
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
                .and_then(|policy| config.policies.get(usize::from(policy.0)))
                .is_some_and(|policy| policy.name == *name),
            Condition::Session(id) => facts.session.is_some_and(|session| session.0 == *id),
            Condition::Verdict(name) => facts.fate.name() == *name,
            Condition::Reason(reason) => facts.fate.reason() == Some(*reason),
        }
    }
}

fn condition(word: &str, config: &Config) -> Result<Condition, String> {
    let Some((key, value)) = word.split_once('=') else {
        let keys = KEYS.join(", ");
        return Err(format!(
            "filter `{word}` is not of the form key=value (keys: {keys})"
        ));
    };
    let bad = |what: &str| format!("filter `{word}`: `{value}` is no {what}");
    let net = || network(value).ok_or_else(|| bad("address or network, such as 10.0.0.0/8"));
    let port = || one_of("port of the gateway", value, port_names(config));
    Ok(match key {
        "proto" => Condition::Protocol(
            protocol(value)
                .ok_or_else(|| bad("protocol (tcp, udp, icmp or a number from 0 to 255)"))?,
        ),
        "src" => Condition::Source(net()?),
        "dst" => Condition::Destination(net()?),
        "host" => Condition::Host(net()?),
        "port" => Condition::Port(value.parse().map_err(|_| bad("port (0 to 65535)"))?),
        "in" => Condition::In(port()?.to_owned()),
        "out" => Condition::Out(port()?.to_owned()),
        "policy" => {
            let names = config.policies.iter().map(|policy| policy.name.as_str());
            Condition::Policy(one_of("policy", value, names)?.to_owned())
        }
        "session" => Condition::Session(value.parse().map_err(|_| bad("id of a session"))?),
        "verdict" => Condition::Verdict(one_of("verdict", value, Fate::NAMES.into_iter())?),
        "reason" => {
            let reasons = || DropReason::ALL.iter();
            let name = one_of("drop reason", value, reasons().map(|reason| reason.name()))?;
            let found = reasons().find(|reason| reason.name() == name);
            Condition::Reason(*found.ok_or_else(|| bad("drop reason"))?)
        }
        _ => {
            let hint = did_you_mean(key, KEYS.into_iter()).unwrap_or_default();
            let keys = KEYS.join(", ");
            return Err(format!("unknown filter key `{key}`; {hint} (keys: {keys})"));
        }
    })
}

fn port_names(config: &Config) -> impl Iterator<Item = &str> + Clone {
    config.ports.iter().map(|port| port.name.as_str())
}

/// The word among the valid ones, or a sentence that names the nearest of those.
fn one_of<'a>(
    what: &str,
    word: &str,
    valid: impl Iterator<Item = &'a str> + Clone,
) -> Result<&'a str, String> {
    if let Some(found) = valid.clone().find(|valid| *valid == word) {
        return Ok(found);
    }
    let hint = did_you_mean(word, valid.clone())
        .unwrap_or_else(|| format!("known: {}", valid.collect::<Vec<_>>().join(", ")));
    Err(format!("unknown {what} `{word}`; {hint}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::flow::{PolicyId, PortId};
    use crate::session::SessionId;
    use crate::time::Time;

    fn parse(words: &str) -> Result<Filter, String> {
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
            fate: Fate::Forward,
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
            ("prot", "not of the form key=value (keys: proto, src,"),
            (
                "prot=tcp",
                "unknown filter key `prot`; did you mean `port`? (keys: proto, src,",
            ),
            ("proto=tpc", "`tpc` is no protocol (tcp, udp"),
            ("src=10.0.0.300", "`10.0.0.300` is no address"),
            (
                "in=lna",
                "unknown port of the gateway `lna`; did you mean `lan`?",
            ),
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
            ("session=x", "`x` is no id of a session"),
            ("port=65536", "`65536` is no port"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(
                error.contains(said) && !error.contains('\n'),
                "{words}: {error}"
            );
        }
    }

    #[test]
    fn both_sides_of_a_translation_are_found() {
        let (facts, config) = (translated(), config());
        for words in [
            "",
            "src=10.77.1.0/24",
            "src=10.77.2.1",
            "host=198.51.100.7 proto=tcp port=443",
            "in=lan out=wan policy=lan-out session=17 verdict=forward",
        ] {
            assert!(parse(words).unwrap().matches(&facts, &config), "{words}");
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
            assert!(!parse(words).unwrap().matches(&facts, &config), "{words}");
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
            fate: Fate::Drop(DropReason::Malformed),
            ..translated()
        };
        let config = config();
        for words in ["", "in=lan", "verdict=drop", "reason=malformed"] {
            assert!(parse(words).unwrap().matches(&facts, &config), "{words}");
        }
        for words in [
            "src=0.0.0.0/0",
            "proto=tcp",
            "port=0",
            "out=wan",
            "policy=lan-out",
        ] {
            assert!(!parse(words).unwrap().matches(&facts, &config), "{words}");
        }
    }
}
