//! Filters of the session listing: `proto=tcp src=10.0.0.0/8 port=443 state=established`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::flow::{Addr, Protocol};
use crate::gateway::{Gateway, SessionView};

/// A conjunction of conditions.
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
    Synced(bool),
}

const KEYS: &str = "proto, src, dst, port, state, policy, in, out, synced";

impl Filter {
    /// Parses `key=value` words; matches everything if there are none.
    ///
    /// # Errors
    /// A sentence that names the word and what would be valid.
    pub fn parse(words: &[String]) -> Result<Filter, String> {
        let conditions = words
            .iter()
            .map(|word| condition(word))
            .collect::<Result<_, _>>()?;
        Ok(Filter { conditions })
    }

    /// Whether a session fulfils all conditions.
    pub fn matches(&self, session: &SessionView, gateway: &Gateway) -> bool {
        self.conditions
            .iter()
            .all(|condition| condition.matches(session, gateway))
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
            Condition::Synced(synced) => session.synced == *synced,
        }
    }
}

fn condition(word: &str) -> Result<Condition, String> {
    let (key, value) = word
        .split_once('=')
        .ok_or_else(|| format!("filter `{word}` is not of the form key=value (keys: {KEYS})"))?;
    let bad = |what: &str| format!("filter `{word}`: `{value}` is no {what}");
    Ok(match key {
        "proto" => Condition::Protocol(protocol(value).ok_or_else(|| {
            format!(
                "{} (tcp, udp, icmp or a number from 0 to 255)",
                bad("protocol")
            )
        })?),
        "src" => Condition::Source(network(value).ok_or_else(|| bad("address or network"))?),
        "dst" => Condition::Destination(network(value).ok_or_else(|| bad("address or network"))?),
        "port" => Condition::Port(value.parse().map_err(|_| bad("port (0 to 65535)"))?),
        "state" => Condition::State(value.to_owned()),
        "policy" => Condition::Policy(value.to_owned()),
        "in" => Condition::In(value.to_owned()),
        "out" => Condition::Out(value.to_owned()),
        "synced" => Condition::Synced(match value {
            "yes" => true,
            "no" => false,
            _ => return Err(bad("answer (yes or no)")),
        }),
        _ => return Err(format!("unknown filter key `{key}` (keys: {KEYS})")),
    })
}

/// A protocol by name or number.
pub(crate) fn protocol(value: &str) -> Option<Protocol> {
    match value {
        "tcp" => Some(Protocol::TCP),
        "udp" => Some(Protocol::UDP),
        "icmp" => Some(Protocol::ICMP),
        number => number.parse().ok().map(Protocol),
    }
}

/// A network, or a host as one.
pub(crate) fn network(value: &str) -> Option<IpNet> {
    value
        .parse()
        .ok()
        .or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_answered_with_the_valid_ones() {
        let parse = |word: &str| Filter::parse(&[word.to_owned()]).expect_err(word);
        assert!(parse("proto").contains("key=value"));
        assert!(parse("prot=tcp").contains("keys: proto, src"));
        assert!(parse("proto=tpc").contains("`tpc` is no protocol"));
        assert!(parse("src=10.0.0.300").contains("`10.0.0.300` is no address or network"));
        assert!(parse("synced=maybe").contains("yes or no"));
    }

    #[test]
    fn hosts_and_networks_are_both_taken() {
        for word in [
            "src=10.0.0.0/8",
            "dst=10.1.2.3",
            "src=fd00::/8",
            "dst=fd00::1",
        ] {
            assert!(Filter::parse(&[word.to_owned()]).is_ok(), "{word}");
        }
    }
}
