//! Sessions in the terms of the protocol.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::flow::{Addr, FlowKey, Protocol};

use super::PolicyAction;

/// A host with sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// One of its addresses. Hosts of a /64 that is on no link of the gateway count as one, and now
    /// and then two hosts share an entry.
    pub source: String,
    /// Sessions that it has opened.
    pub sessions: u32,
    /// Those without an answer yet.
    pub half_open: u32,
    /// Its external ports for UDP and ICMP.
    pub ports: u32,
}

/// A session. The gateway writes it without allocating.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session<'a> {
    /// Its slot in the table. A slot is reused after its session has ended. 4294967295 for a
    /// multicast session, which has one row for each port that it leaves by.
    pub id: u32,
    /// `tcp`, `udp`, `icmp` or the number of the IP protocol.
    #[serde(with = "text")]
    pub proto: Protocol,
    /// The port that its first packet came in by.
    pub r#in: Cow<'a, str>,
    /// The port that its first packet left by.
    pub out: Cow<'a, str>,
    /// Source of its first packet, as it came in.
    pub src: Endpoint,
    /// Destination of its first packet, as it came in.
    pub dst: Endpoint,
    /// Source of its first packet, as it left.
    pub nat_src: Endpoint,
    /// Destination of its first packet, as it left.
    pub nat_dst: Endpoint,
    /// The TCP state, or `replied` or `unreplied`; `multicast` for a multicast session.
    pub state: Cow<'a, str>,
    /// The policy that accepted it; `-` if it is not known here.
    pub policy: Cow<'a, str>,
    /// The group that it belongs to.
    pub group: Cow<'a, str>,
    /// The node that handles its packets; `null` if none is known.
    pub owner: Option<Cow<'a, str>>,
    /// On the primary, whether the peers have acknowledged its current state; on a standby, whether
    /// it has all sessions of the group.
    pub synced: bool,
    /// Whether the fast path forwards its packets; `null` from gateways without one.
    pub offloaded: Option<bool>,
    /// Seconds since it was opened.
    pub age_s: u64,
    /// Seconds until it expires if no more packets arrive.
    pub expires_s: u64,
    /// Packets in both directions.
    pub packets: u64,
    /// Bytes of IP in both directions.
    pub bytes: u64,
}

impl Session<'_> {
    /// The same without borrowed names.
    pub fn into_owned(self) -> Session<'static> {
        let owned = |name: Cow<'_, str>| Cow::Owned(name.into_owned());
        Session {
            r#in: owned(self.r#in),
            out: owned(self.out),
            state: owned(self.state),
            policy: owned(self.policy),
            group: owned(self.group),
            owner: self.owner.map(owned),
            ..self
        }
    }
}

/// A session that has begun or ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionEvent<'a> {
    /// Events missing before it, because the reader was too slow: the gateway keeps 16 384.
    pub missed: u64,
    /// When, in seconds since 1970.
    pub at: f64,
    /// Why it has ended, such as `expired`, `cleared` or `early-drop`; `null` if it has begun.
    pub end: Option<Cow<'a, str>>,
    /// Packets in the direction of the answers; `packets` of the session includes them.
    pub packets_back: u64,
    /// Bytes of IP in that direction; `bytes` of the session includes them.
    pub bytes_back: u64,
    /// The session, in its last state if it has ended. Of one that has begun, packets and bytes are
    /// those until the moment that this is told.
    pub session: Session<'a>,
}

/// How many sessions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCount {
    /// Sessions that match, at the moment of the answer.
    pub sessions: u64,
    /// Their packets in both directions.
    pub packets: u64,
    /// Their bytes of IP in both directions.
    pub bytes: u64,
}

/// How often a policy decided, since the start or since it was added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// Its name; `null` for the drop of packets that no policy matches.
    pub name: Option<String>,
    /// Its action on a packet that would open a session.
    pub action: PolicyAction,
    /// Packets that would open a session and matched this policy.
    pub hits: u64,
    /// How many seconds ago the last hit was; `null` if there was none or if it is unknown.
    pub last_hit_s: Option<f64>,
    /// Its current sessions.
    pub sessions: u64,
    /// Packets of its sessions, including those that have ended on this unit.
    pub packets: u64,
    /// Their bytes of IP.
    pub bytes: u64,
}

/// Sessions were ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// How many.
    pub cleared: u64,
    /// Those that match but belong to groups of another unit.
    pub skipped: Vec<Skipped>,
}

/// Sessions of a group that another unit has to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// `name` of the `[[group]]`.
    pub group: String,
    /// Its primary; `null` if none is known.
    pub owner: Option<String>,
    /// How many sessions.
    pub sessions: u64,
}

/// An end of a flow: `10.0.0.1:80`, `[fd00::1]:80`, or an address alone if the protocol has no
/// ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Without a zone, as in an IP header.
    pub addr: Addr,
    /// The port, or the identifier of an ICMP echo at the end that asks.
    pub port: Option<u16>,
}

impl Endpoint {
    /// The source of a flow; its port only if the protocol has ports. Of the ends of an ICMP echo
    /// that is the one that asks.
    pub fn source(key: &FlowKey) -> Endpoint {
        match key.is_echo_reply() {
            true => Endpoint::without_port(key.src),
            false => Endpoint::new(key.src, key.src_port, key.protocol),
        }
    }

    /// The destination of a flow, likewise.
    pub fn destination(key: &FlowKey) -> Endpoint {
        match key.protocol == Protocol::ICMP && !key.is_echo_reply() {
            true => Endpoint::without_port(key.dst),
            false => Endpoint::new(key.dst, key.dst_port, key.protocol),
        }
    }

    fn without_port(addr: Addr) -> Endpoint {
        Endpoint { addr, port: None }
    }

    /// An end of a flow of `protocol`.
    pub fn new(addr: Addr, port: u16, protocol: Protocol) -> Endpoint {
        let port = protocol.has_ports().then_some(port);
        Endpoint { addr, port }
    }
}

impl Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.addr.is_v4()) {
            (None, _) => self.addr.fmt(f),
            (Some(port), true) => write!(f, "{}:{port}", self.addr),
            (Some(port), false) => write!(f, "[{}]:{port}", self.addr),
        }
    }
}

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Endpoint, &'static str> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            let addr = Addr::from(ip);
            return Ok(Endpoint { addr, port: None });
        }
        let socket: SocketAddr = text
            .parse()
            .map_err(|_| "expected ADDRESS or ADDRESS:PORT")?;
        Ok(Endpoint {
            addr: Addr::from(socket.ip()),
            port: Some(socket.port()),
        })
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Endpoint, D::Error> {
        text::deserialize(deserializer)
    }
}

/// A value that is sent as text.
mod text {
    use super::*;

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = Cow::<str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_flows_are_read_as_they_are_written() {
        for text in ["10.0.0.1", "10.0.0.1:80", "fd00::1", "[fd00::1]:65535"] {
            let end: Endpoint = text.parse().expect(text);
            assert_eq!(end.to_string(), text);
        }
        for text in ["", "10.0.0.1:", "[fd00::1]", "lan", "10.0.0.1:65536"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_echo_has_its_identifier_where_it_is_asked() {
        let [here, there] =
            ["10.0.0.1", "10.0.0.2"].map(|ip| Addr::from(ip.parse::<IpAddr>().unwrap()));
        for identifier in [0, 1, 2, 700] {
            let request = FlowKey {
                src: here,
                dst: there,
                src_port: identifier,
                dst_port: crate::flow::echo_port(identifier),
                protocol: Protocol::ICMP,
            };
            let reply = FlowKey {
                src: there,
                dst: here,
                src_port: request.dst_port,
                dst_port: identifier,
                ..request
            };
            let ends = |key: &FlowKey| {
                [Endpoint::source(key), Endpoint::destination(key)].map(|end| end.to_string())
            };
            let asks = format!("10.0.0.1:{identifier}");
            assert_eq!(ends(&request), [asks.clone(), "10.0.0.2".to_owned()]);
            assert_eq!(ends(&reply), ["10.0.0.2".to_owned(), asks]);
        }
    }
}
