//! Explanations of packets, in the terms of the protocol.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::config::{self, Forward, PickupGuarantee};
use crate::event::{self, DropReason};
use crate::filter_words::{WordError, known_port, protocol};
use crate::flow::{Addr, Direction, FlowKey, GroupId, PortId, Protocol, echo_port};
use crate::gateway::{
    self, Gateway, Matched, PacketFate, Pickup, Role, Scope, SourceTranslation, Survives,
};
use crate::packet::build;
use crate::policy;
use crate::session::SessionId;
use crate::time::Time;

use super::count::action;
use super::listing::{owner, row};
use super::protocol::{
    Endpoint, ExitPort, ExplainRequest, Explanation, Flow, FlowDirection, ForwardStep, Guarantee,
    Matches, Mismatch, NatStep, PolicyStep, RouteStep, RouteTarget, Survival, Translated, Verdict,
};

/// The identifier of an echo request if none is given.
const USUAL_ID: u16 = 1;

/// Why there is no explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExplainError {
    /// The protocol or the port is wrong.
    Word(WordError),
    /// The addresses can't be those of a packet.
    NoSuchPacket,
    /// Source and destination are of different address families.
    TwoFamilies {
        /// As it was typed.
        source: String,
        /// As it was typed.
        destination: String,
    },
    /// For ICMP, both ends have an identifier.
    TwoIdentifiers,
    /// Not an address, or not one with a port.
    NotEndpoint {
        /// `source` or `destination`.
        what: &'static str,
        /// As it was typed.
        word: String,
    },
    /// TCP and UDP have ports.
    NeedsPort {
        /// `source` or `destination`.
        what: &'static str,
        /// As it was typed.
        word: String,
        /// The same with a port.
        example: String,
    },
    /// The protocol has no ports.
    NoPorts {
        /// As it was asked for.
        protocol: Protocol,
        /// `source` or `destination`.
        what: &'static str,
        /// As it was typed.
        ip: IpAddr,
    },
}

impl From<WordError> for ExplainError {
    fn from(error: WordError) -> ExplainError {
        ExplainError::Word(error)
    }
}

impl fmt::Display for ExplainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExplainError::Word(error) => error.fmt(f),
            ExplainError::NoSuchPacket => f.write_str("there is no such packet"),
            ExplainError::TwoFamilies {
                source,
                destination,
            } => write!(
                f,
                "`{source}` and `{destination}` are of two families: IPv4 and IPv6 do not mix"
            ),
            ExplainError::TwoIdentifiers => f.write_str(
                "an identifier stands with the source (of an echo request) \
                 or with the destination (of a reply), not with both",
            ),
            ExplainError::NotEndpoint { what, word } => write!(
                f,
                "the {what} `{word}` is not an address with a port, such as 10.0.0.1:80 or [fd00::1]:80"
            ),
            ExplainError::NeedsPort {
                what,
                word,
                example,
            } => write!(f, "the {what} `{word}` needs a port: {example}"),
            ExplainError::NoPorts { protocol, what, ip } => write!(
                f,
                "protocol {protocol} has no ports: the {what} is just {ip}"
            ),
        }
    }
}

impl std::error::Error for ExplainError {}

/// The explanation of the packet that `request` is about.
///
/// # Errors
/// A sentence that names the wrong word and the remedy.
pub(super) fn explain(
    request: &ExplainRequest,
    gateway: &Gateway,
    now: Time,
) -> Result<Explanation, ExplainError> {
    let (key, port) = parse(request, gateway)?;
    let bytes = build::opening_packet(&key).ok_or(ExplainError::NoSuchPacket)?;
    Ok(match gateway.explain(now, port, &bytes, Scope::Flow) {
        Ok(explanation) => show(&explanation, port, gateway, now),
        // As for a header that no sender may use.
        Err(reason) => {
            let reason = reason.unwrap_or(DropReason::Malformed);
            unparsed(&key, port, reason, gateway)
        }
    })
}

fn parse(request: &ExplainRequest, gateway: &Gateway) -> Result<(FlowKey, PortId), ExplainError> {
    let protocol = match protocol(&request.protocol)? {
        Protocol::ICMPV6 => Protocol::ICMP,
        protocol => protocol,
    };
    let (src, mut src_port) = endpoint("source", &request.source, protocol)?;
    let (dst, dst_port) = endpoint("destination", &request.destination, protocol)?;
    if src.family() != dst.family() {
        return Err(ExplainError::TwoFamilies {
            source: request.source.clone(),
            destination: request.destination.clone(),
        });
    }
    if protocol == Protocol::ICMP && dst_port.is_none() {
        src_port = src_port.or(Some(USUAL_ID));
    }
    if protocol == Protocol::ICMP && src_port.is_some() && dst_port.is_some() {
        return Err(ExplainError::TwoIdentifiers);
    }
    let name = known_port(&request.in_port, gateway.config())?;
    let ports = &gateway.config().ports;
    let index = ports.iter().position(|port| port.name == name);
    let (src_port, dst_port) = match (protocol, src_port, dst_port) {
        (Protocol::ICMP, Some(id), _) => (id, echo_port(id)),
        (Protocol::ICMP, _, Some(id)) => (echo_port(id), id),
        _ => (src_port.unwrap_or(0), dst_port.unwrap_or(0)),
    };
    let key = FlowKey {
        src,
        dst,
        src_port,
        dst_port,
        protocol,
    };
    Ok((key, PortId::from_index(index.unwrap_or(0))))
}

/// `10.0.0.1`, `10.0.0.1:80`, `fd00::1`, `[fd00::1]` or `[fd00::1]:80`.
fn endpoint(
    what: &'static str,
    word: &str,
    protocol: Protocol,
) -> Result<(Addr, Option<u16>), ExplainError> {
    let bare = word
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(word);
    let (ip, port) = match (bare.parse::<IpAddr>(), word.parse::<SocketAddr>()) {
        (Ok(ip), _) => (ip, None),
        (_, Ok(socket)) => (socket.ip(), Some(socket.port())),
        _ => {
            let word = word.to_owned();
            return Err(ExplainError::NotEndpoint { what, word });
        }
    };
    let example = |port: u16| match ip {
        IpAddr::V4(_) => format!("{ip}:{port}"),
        IpAddr::V6(_) => format!("[{ip}]:{port}"),
    };
    match (protocol, port) {
        (Protocol::TCP | Protocol::UDP, None) => Err(ExplainError::NeedsPort {
            what,
            word: word.to_owned(),
            example: example(if what == "source" { 40000 } else { 443 }),
        }),
        (protocol, Some(_)) if !protocol.has_ports() => {
            Err(ExplainError::NoPorts { protocol, what, ip })
        }
        _ => Ok((Addr::from(ip), port)),
    }
}

/// A packet whose header alone is refused.
fn unparsed(key: &FlowKey, port: PortId, reason: DropReason, gateway: &Gateway) -> Explanation {
    Explanation {
        node: Some(gateway.config().node.name.clone()),
        flow: flow(key, port, gateway),
        explained_as: None,
        matches: None,
        session: None,
        direction: None,
        forward: None,
        route: None,
        policies_before: 0,
        policies: Vec::new(),
        nat: None,
        makes_room: false,
        why_not_offloaded: None,
        out: None,
        leaves_as: None,
        group: None,
        owner: None,
        primary_here: None,
        verdict: verdict(PacketFate::Drop {
            reason,
            told: false,
        }),
        verdict_here: None,
        survives: None,
        why: None,
    }
}

fn show(
    explanation: &gateway::Explanation,
    port: PortId,
    gateway: &Gateway,
    now: Time,
) -> Explanation {
    let config = gateway.config();
    let (session, direction) = match &explanation.matched {
        Matched::Session(view, direction) => {
            let session = row(view, gateway, owner(gateway, view.group, now));
            (
                Some(session.into_owned()),
                Some(self::direction(*direction)),
            )
        }
        Matched::Gateway | Matched::Machine | Matched::Nothing => (None, None),
    };
    let forward = explanation.forward;
    let forward = forward.and_then(|index| config.forwards.get(usize::from(index)));
    let group = explanation.group;
    let own_group = group.map(|group| gateway.role_of(group) == Role::Primary);
    let here = (explanation.fate_here != explanation.fate).then(|| verdict(explanation.fate_here));
    Explanation {
        node: Some(config.node.name.clone()),
        flow: flow(&explanation.key, port, gateway),
        explained_as: Some(explained_as(explanation)),
        matches: Some(match &explanation.matched {
            Matched::Session(..) => Matches::Session,
            Matched::Gateway => Matches::Gateway,
            Matched::Machine => Matches::Machine,
            Matched::Nothing => Matches::Nothing,
        }),
        why_not_offloaded: why_not_offloaded(explanation, gateway),
        session,
        direction,
        forward: forward.map(|forward| ForwardStep {
            name: forward.name.clone(),
            to: endpoint_of(led_to(forward, &explanation.key), forward.protocol),
        }),
        route: explanation.route.map(|route| self::route(route, gateway)),
        policies_before: explanation.passed_over.first as u32,
        policies: policies(explanation, gateway),
        nat: explanation
            .source
            .map(|source| nat(source, &explanation.key, gateway)),
        makes_room: explanation.makes_room,
        out: explanation.egress.map(|egress| out(egress, gateway)),
        leaves_as: explanation.leaves_as.map(|key| Translated {
            src: Endpoint::source(&key),
            dst: Endpoint::destination(&key),
        }),
        group: group.map(|group| gateway.group_name(group).to_owned()),
        owner: group
            .and_then(|group| owner(gateway, group, now))
            .map(str::to_owned),
        primary_here: own_group,
        verdict: verdict(explanation.fate),
        verdict_here: here,
        survives: explanation.pickup.map(|pickup| survives(pickup.survives())),
        why: explanation
            .pickup
            .map(|pickup| why(pickup, group.unwrap_or(GroupId(0)), gateway, now)),
    }
}

fn why_not_offloaded(explanation: &gateway::Explanation, gateway: &Gateway) -> Option<String> {
    match &explanation.matched {
        Matched::Session(view, _) if !view.offloaded => {
            let why = gateway.why_not_offloaded(SessionId(view.id))?;
            Some(why.to_owned())
        }
        _ => None,
    }
}

fn flow(key: &FlowKey, port: PortId, gateway: &Gateway) -> Flow {
    Flow {
        proto: key.protocol.to_string(),
        src: Endpoint::source(key),
        dst: Endpoint::destination(key),
        r#in: gateway.port_name(port).to_owned(),
    }
}

fn direction(direction: Direction) -> FlowDirection {
    match direction {
        Direction::Original => FlowDirection::Original,
        Direction::Reply => FlowDirection::Reply,
    }
}

/// The server to which a forward redirects a packet with `key`.
fn led_to(forward: &Forward, key: &FlowKey) -> (Addr, u16) {
    let (addr, first) = forward.internal;
    let offset = key.dst_port.wrapping_sub(forward.external.1);
    (addr, first.wrapping_add(offset))
}

fn explained_as(explanation: &gateway::Explanation) -> String {
    let key = &explanation.key;
    match (key.protocol, &explanation.matched) {
        (Protocol::TCP, Matched::Session(..)) => "a segment that the session expects".to_owned(),
        (Protocol::TCP, _) => "a SYN".to_owned(),
        (Protocol::UDP, _) => "a datagram".to_owned(),
        (Protocol::ICMP, _) if key.is_echo_reply() => {
            format!("an echo reply with identifier {}", key.dst_port)
        }
        (Protocol::ICMP, _) => format!("an echo request with identifier {}", key.src_port),
        _ => "a packet".to_owned(),
    }
}

fn route((addr, hop): (Addr, Option<crate::route::Hop>), gateway: &Gateway) -> RouteStep {
    let Some(hop) = hop else {
        return RouteStep {
            destination: addr.to_string(),
            prefix: None,
            target: RouteTarget::None,
            port: None,
            next_hop: None,
        };
    };
    let prefix = ipnet::IpNet::new(IpAddr::from(addr), hop.prefix_len).map(|net| net.trunc());
    let (target, port, next_hop) = match hop.target {
        event::RouteTarget::Port { port, gateway } => (RouteTarget::Port, Some(port), gateway),
        event::RouteTarget::Elsewhere => (RouteTarget::Elsewhere, None, None),
        event::RouteTarget::Unreachable => (RouteTarget::Unreachable, None, None),
    };
    RouteStep {
        destination: addr.to_string(),
        prefix: prefix.map(|net| net.to_string()).ok(),
        target,
        port: port.map(|port| gateway.port_name(port).to_owned()),
        next_hop: next_hop.map(|addr| addr.to_string()),
    }
}

fn out(port: PortId, gateway: &Gateway) -> ExitPort {
    let link = gateway.link(port);
    ExitPort {
        port: gateway.port_name(port).to_owned(),
        interface: gateway.config().ports[port.index()].interface.clone(),
        up: link.up,
        mtu: link.mtu,
    }
}

/// The policies that were checked, in order: those that do not match, then the one that decides.
fn policies(explanation: &gateway::Explanation, gateway: &Gateway) -> Vec<PolicyStep> {
    let policies = gateway.config().policies.iter();
    let policy::Trace { first, mismatches } = &explanation.passed_over;
    let passed_over = mismatches.iter().zip(policies.skip(*first));
    let passed_over = passed_over.map(|(mismatch, policy)| PolicyStep {
        name: policy.name.clone(),
        differs: Some(differs(*mismatch)),
        action: None,
    });
    let decides = explanation.decision.map(|decision| PolicyStep {
        name: gateway.policy_name(decision.policy).to_owned(),
        differs: None,
        action: Some(action(decision.action)),
    });
    passed_over.chain(decides).collect()
}

/// The key of the policy that the packet does not match.
fn differs(mismatch: policy::Mismatch) -> Mismatch {
    match mismatch {
        policy::Mismatch::From => Mismatch::From,
        policy::Mismatch::To => Mismatch::To,
        policy::Mismatch::Source => Mismatch::Source,
        policy::Mismatch::Destination => Mismatch::Destination,
        policy::Mismatch::Service => Mismatch::Service,
        policy::Mismatch::Forwarded => Mismatch::Forwarded,
    }
}

fn nat(source: SourceTranslation, key: &FlowKey, gateway: &Gateway) -> NatStep {
    let pool = match source.nat {
        config::Nat::Pool(index) => gateway.config().nat_pools.get(index),
        config::Nat::Egress | config::Nat::Off => None,
    };
    NatStep {
        pool: pool.map(|pool| pool.name.clone()),
        hairpin: source.hairpin,
        src: source.to.map(|end| endpoint_of(end, key.protocol)),
        port_kept: source.to.map(|(_, port)| port == key.src_port),
    }
}

fn endpoint_of((addr, port): (Addr, u16), protocol: Protocol) -> Endpoint {
    Endpoint::new(addr, port, protocol)
}

fn verdict(fate: PacketFate) -> Verdict {
    match fate {
        PacketFate::Forward => Verdict::Forward,
        PacketFate::Wait(guarantee) => Verdict::Wait {
            guarantee: self::guarantee(guarantee),
        },
        PacketFate::Answer => Verdict::Answer,
        PacketFate::Kernel => Verdict::Kernel,
        PacketFate::Drop { reason, told } => Verdict::Drop {
            reason: reason.name().to_owned(),
            meaning: reason.meaning().to_owned(),
            sender_is_told: told,
        },
    }
}

fn survives(survives: Survives) -> Survival {
    match survives {
        Survives::Yes => Survival::Yes,
        Survives::No => Survival::No,
        Survives::NotYet => Survival::NotYet,
    }
}

fn guarantee(guarantee: PickupGuarantee) -> Guarantee {
    match guarantee {
        PickupGuarantee::Off => Guarantee::Off,
        PickupGuarantee::Bounded => Guarantee::Bounded,
        PickupGuarantee::Strict => Guarantee::Strict,
    }
}

/// Whether this unit is one of those that hold a group.
fn holds(gateway: &Gateway, group: GroupId, now: Time) -> bool {
    let ha = gateway.cluster().map(|cluster| cluster.ha());
    let view = ha.and_then(|ha| ha.group(now, group));
    view.is_none_or(|view| view.holder)
}

fn why(pickup: Pickup, group: GroupId, gateway: &Gateway, now: Time) -> String {
    let peers = || {
        let sync = gateway.cluster().map(|cluster| cluster.sync());
        let in_sync = gateway
            .peers()
            .filter(|peer| sync.is_some_and(|sync| sync.in_sync_for(*peer, group)));
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
        Pickup::NotReady if !holds(gateway, group, now) => {
            "other units hold the group, and this one need not (`copies`)".to_owned()
        }
        Pickup::NotReady => {
            "this unit has not all sessions of the group yet; see tandemgw status".to_owned()
        }
        Pickup::AtOnce => match peers() {
            // Only the primary knows which peers are in sync with it.
            peers if peers.is_empty() => "it is replicated as soon as it is opened".to_owned(),
            peers => format!("{peers} gets it as soon as it is opened"),
        },
        Pickup::Guaranteed(guarantee, wait) => {
            let then = match guarantee {
                PickupGuarantee::Strict => "is dropped then",
                PickupGuarantee::Bounded | PickupGuarantee::Off => "goes on then",
            };
            let word = self::guarantee(guarantee).name();
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
