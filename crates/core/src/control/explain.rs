//! What would happen to a packet, as JSON.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{self, Action, PickupGuarantee};
use crate::event::{DropReason, RouteTarget};
use crate::flow::{Addr, Direction, FlowKey, PortId, Protocol};
use crate::gateway::{
    Explanation, Fate, Gateway, Matched, Pickup, Role, Scope, SourceTranslation, Survives,
};
use crate::packet::build;
use crate::policy::Mismatch;
use crate::time::Time;

use super::filter::{known_port, protocol};
use super::listing::{Endpoint, Row, owner};

/// The identifier of an echo request if none is given.
const USUAL_ID: u16 = 1;

/// The packet that is asked about, in the words of the operator.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// `tcp`, `udp`, `icmp` or a number.
    pub protocol: String,
    /// Address, with the port; the identifier of an echo request may follow like a port.
    pub source: String,
    /// Address, with the port; the identifier of an echo reply may follow like a port.
    pub destination: String,
    /// The name of the port that it comes in by.
    pub in_port: String,
}

impl Question {
    /// The explanation, one JSON object.
    ///
    /// # Errors
    /// A sentence that names the word that is wrong, and the remedy.
    pub fn answer(&self, gateway: &Gateway, now: Time) -> Result<Value, String> {
        let (key, port) = self.parse(gateway)?;
        let bytes = build::opening_packet(&key).ok_or("there is no such packet")?;
        Ok(match gateway.explain(now, port, &bytes, Scope::Flow) {
            Ok(explanation) => show(&explanation, port, gateway, now),
            // As of a header that nobody may send.
            Err(reason) => {
                let reason = reason.unwrap_or(DropReason::Malformed);
                json!({
                    "flow": flow(&key, port, gateway),
                    "verdict": verdict(Fate::Drop { reason, told: false }),
                })
            }
        })
    }

    fn parse(&self, gateway: &Gateway) -> Result<(FlowKey, PortId), String> {
        let protocol = match protocol(&self.protocol)? {
            Protocol::ICMPV6 => Protocol::ICMP,
            protocol => protocol,
        };
        let (src, mut src_port) = endpoint("source", &self.source, protocol)?;
        let (dst, dst_port) = endpoint("destination", &self.destination, protocol)?;
        if src.family() != dst.family() {
            let (source, destination) = (&self.source, &self.destination);
            return Err(format!(
                "`{source}` and `{destination}` are of two families: IPv4 and IPv6 do not mix"
            ));
        }
        if protocol == Protocol::ICMP && dst_port.is_none() {
            src_port = src_port.or(Some(USUAL_ID));
        }
        if protocol == Protocol::ICMP && src_port.is_some() && dst_port.is_some() {
            return Err("an identifier stands with the source (of an echo request) \
                        or with the destination (of a reply), not with both"
                .to_owned());
        }
        let name = known_port(&self.in_port, gateway.config())?;
        let ports = &gateway.config().ports;
        let index = ports.iter().position(|port| port.name == name);
        let key = FlowKey {
            src,
            dst,
            src_port: src_port.unwrap_or(0),
            dst_port: dst_port.unwrap_or(0),
            protocol,
        };
        Ok((key, PortId::from_index(index.unwrap_or(0))))
    }
}

/// `10.0.0.1`, `10.0.0.1:80`, `fd00::1`, `[fd00::1]` or `[fd00::1]:80`.
fn endpoint(what: &str, word: &str, protocol: Protocol) -> Result<(Addr, Option<u16>), String> {
    let bare = word
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(word);
    let (ip, port) = match (bare.parse::<IpAddr>(), word.parse::<SocketAddr>()) {
        (Ok(ip), _) => (ip, None),
        (_, Ok(socket)) => (socket.ip(), Some(socket.port())),
        _ => {
            return Err(format!(
                "the {what} `{word}` is no address with a port, such as 10.0.0.1:80 or [fd00::1]:80"
            ));
        }
    };
    let example = |port: u16| match ip {
        IpAddr::V4(_) => format!("{ip}:{port}"),
        IpAddr::V6(_) => format!("[{ip}]:{port}"),
    };
    match (protocol, port) {
        (Protocol::TCP | Protocol::UDP, None) => Err(format!(
            "the {what} `{word}` needs a port: {}",
            example(if what == "source" { 40000 } else { 443 })
        )),
        (protocol, Some(_)) if !protocol.has_ports() => Err(format!(
            "protocol {protocol} has no ports: the {what} is just {ip}"
        )),
        _ => Ok((Addr::from(ip), port)),
    }
}

fn show(explanation: &Explanation, port: PortId, gateway: &Gateway, now: Time) -> Value {
    let config = gateway.config();
    let (session, direction) = match &explanation.matched {
        Matched::Session(view, direction) => {
            let row = Row::new(view, gateway, owner(gateway, view.group, now));
            let direction = match direction {
                Direction::Original => "original",
                Direction::Reply => "reply",
            };
            (json!(row), Some(direction))
        }
        _ => (Value::Null, None),
    };
    let forward = explanation.forward;
    let forward = forward.and_then(|index| config.forwards.get(usize::from(index)));
    let group = explanation.group;
    let own_group = group.map(|group| gateway.role_of(group) == Role::Primary);
    let here = (explanation.fate_here != explanation.fate).then(|| verdict(explanation.fate_here));
    json!({
        "node": config.node.name,
        "flow": flow(&explanation.key, port, gateway),
        "explained_as": explained_as(explanation),
        "matches": match &explanation.matched {
            Matched::Session(..) => "session",
            Matched::Gateway => "gateway",
            Matched::Nothing => "nothing",
        },
        "session": session,
        "direction": direction,
        "forward": forward.map(|forward| json!({
            "name": forward.name,
            "to": text(forward.internal, forward.protocol),
        })),
        "route": explanation.route.map(|route| self::route(route, gateway)),
        "policies": policies(explanation, gateway),
        "nat": explanation.source.map(|source| nat(source, &explanation.key, gateway)),
        "makes_room": explanation.makes_room,
        "out": explanation.egress.map(|egress| out(egress, gateway)),
        "leaves_as": explanation.leaves_as.map(|key| json!({
            "src": Endpoint::source(&key).to_string(),
            "dst": Endpoint::destination(&key).to_string(),
        })),
        "group": group.map(|group| gateway.group_name(group)),
        "owner": group.and_then(|group| owner(gateway, group, now)),
        "primary_here": own_group,
        "verdict": verdict(explanation.fate),
        "verdict_here": here,
        "survives": explanation.pickup.map(|pickup| survives(pickup.survives())),
        "why": explanation.pickup.map(|pickup| why(pickup, gateway)),
    })
}

fn flow(key: &FlowKey, port: PortId, gateway: &Gateway) -> Value {
    json!({
        "proto": key.protocol.to_string(),
        "src": Endpoint::source(key).to_string(),
        "dst": Endpoint::destination(key).to_string(),
        "in": gateway.port_name(port),
    })
}

fn explained_as(explanation: &Explanation) -> String {
    let key = &explanation.key;
    match (key.protocol, &explanation.matched) {
        (Protocol::TCP, Matched::Session(..)) => "a segment that the session expects".to_owned(),
        (Protocol::TCP, _) => "a SYN".to_owned(),
        (Protocol::UDP, _) => "a datagram".to_owned(),
        (Protocol::ICMP, _) if key.dst_port != 0 => {
            format!("an echo reply with identifier {}", key.dst_port)
        }
        (Protocol::ICMP, _) => format!("an echo request with identifier {}", key.src_port),
        _ => "a packet".to_owned(),
    }
}

fn route((addr, hop): (Addr, Option<crate::route::Hop>), gateway: &Gateway) -> Value {
    let Some(hop) = hop else {
        return json!({ "destination": addr.to_string(), "prefix": null, "target": "none" });
    };
    let prefix = ipnet::IpNet::new(IpAddr::from(addr), hop.prefix_len).map(|net| net.trunc());
    let (target, port, next_hop) = match hop.target {
        RouteTarget::Port { port, gateway } => ("port", Some(port), gateway),
        RouteTarget::Elsewhere => ("elsewhere", None, None),
        RouteTarget::Unreachable => ("unreachable", None, None),
    };
    json!({
        "destination": addr.to_string(),
        "prefix": prefix.map(|net| net.to_string()).ok(),
        "target": target,
        "port": port.map(|port| gateway.port_name(port)),
        "next_hop": next_hop.map(|addr| addr.to_string()),
    })
}

fn out(port: PortId, gateway: &Gateway) -> Value {
    let link = gateway.link(port);
    json!({
        "port": gateway.port_name(port),
        "interface": gateway.config().ports[port.index()].interface,
        "up": link.up,
        "mtu": link.mtu,
    })
}

/// The policies that were asked, in their order: those passed over, then the one that decides.
fn policies(explanation: &Explanation, gateway: &Gateway) -> Vec<Value> {
    let policies = &gateway.config().policies;
    let passed_over = explanation.passed_over.iter().zip(policies);
    let mut asked: Vec<Value> = passed_over
        .map(|(mismatch, policy)| json!({ "name": policy.name, "differs": differs(*mismatch) }))
        .collect();
    if let Some(decision) = explanation.decision {
        let action = match decision.action {
            Action::Accept => "accept",
            Action::Drop => "drop",
            Action::Reject => "reject",
        };
        asked.push(json!({ "name": gateway.policy_name(decision.policy), "action": action }));
    }
    asked
}

/// The key of the policy that the packet does not meet.
fn differs(mismatch: Mismatch) -> &'static str {
    match mismatch {
        Mismatch::From => "from",
        Mismatch::To => "to",
        Mismatch::Source => "source",
        Mismatch::Destination => "destination",
        Mismatch::Service => "service",
    }
}

fn nat(source: SourceTranslation, key: &FlowKey, gateway: &Gateway) -> Value {
    let pool = match source.nat {
        config::Nat::Pool(index) => gateway.config().nat_pools.get(index),
        config::Nat::Egress | config::Nat::Off => None,
    };
    json!({
        "pool": pool.map(|pool| pool.name.as_str()),
        "hairpin": source.hairpin,
        "src": source.to.map(|end| text(end, key.protocol)),
        "port_kept": source.to.map(|(_, port)| port == key.src_port),
    })
}

fn text((addr, port): (Addr, u16), protocol: Protocol) -> String {
    Endpoint::new(addr, port, protocol).to_string()
}

fn verdict(fate: Fate) -> Value {
    match fate {
        Fate::Forward => json!({ "verdict": "forward" }),
        Fate::Wait(guarantee) => json!({ "verdict": "wait", "guarantee": word(guarantee) }),
        Fate::Answer => json!({ "verdict": "answer" }),
        Fate::Drop { reason, told } => json!({
            "verdict": "drop",
            "reason": reason.name(),
            "meaning": reason.meaning(),
            "sender_is_told": told,
        }),
    }
}

fn survives(survives: Survives) -> &'static str {
    match survives {
        Survives::Yes => "yes",
        Survives::No => "no",
        Survives::NotYet => "not yet",
    }
}

fn word(guarantee: PickupGuarantee) -> &'static str {
    match guarantee {
        PickupGuarantee::Off => "off",
        PickupGuarantee::Bounded => "bounded",
        PickupGuarantee::Strict => "strict",
    }
}

fn why(pickup: Pickup, gateway: &Gateway) -> String {
    let peers = || {
        let sync = gateway.cluster().map(|cluster| cluster.sync());
        let in_sync = gateway
            .peers()
            .filter(|peer| sync.is_some_and(|sync| sync.in_sync(*peer)));
        let names: Vec<&str> = in_sync.map(|peer| gateway.peer_name(peer)).collect();
        names.join(" and ")
    };
    match pickup {
        Pickup::Standalone => "this gateway is standalone: it has no [ha]".to_owned(),
        Pickup::Off => "session-pickup is off".to_owned(),
        Pickup::ConnectionlessOff => "session-pickup-connectionless is off".to_owned(),
        Pickup::NoPeer => "no peer is in sync; see tandemgw status".to_owned(),
        Pickup::TooYoung(delay) => {
            format!("session-pickup-delay: only sessions older than {delay:?} are replicated")
        }
        Pickup::OnItsWay => format!("its last change is on its way to {}", peers()),
        Pickup::Replicated => format!("{} has it as it is", peers()),
        Pickup::HeldHere => "this unit holds it".to_owned(),
        Pickup::NotReady => {
            "this unit has not all sessions of the group yet; see tandemgw status".to_owned()
        }
        Pickup::AtOnce => match peers() {
            // Only the primary knows who is in sync with it.
            peers if peers.is_empty() => "it is replicated as soon as it is opened".to_owned(),
            peers => format!("{peers} gets it as soon as it is opened"),
        },
        Pickup::Guaranteed(guarantee, wait) => {
            let then = match guarantee {
                PickupGuarantee::Strict => "is dropped then",
                PickupGuarantee::Bounded | PickupGuarantee::Off => "goes on then",
            };
            let word = word(guarantee);
            let peers = match peers() {
                // As above.
                peers if peers.is_empty() => "the peers".to_owned(),
                peers => peers,
            };
            format!(
                "pickup-guarantee {word}: its first packet waits {wait:?} at most for {peers}, and {then}"
            )
        }
    }
}
