//! The rules of `[[local-in]]`: what may reach the machine itself by a port.
//!
//! No connection is tracked for them: a router should not do that for what it forwards. So they
//! judge what opens something: the first segment of a TCP connection, a datagram to a port below
//! those that the kernel gives to clients, an echo request. The rules of `[[local-in]]`: which
//! packets may reach the machine itself by a port.

use std::net::IpAddr;

use ipnet::IpNet;
use tandemgw_core::config::{Config, LocalIn, Service};
use tandemgw_core::flow::{PortId, Protocol};

use super::Post;
use crate::os::nftables::Expression;

/// The chain at the input hook.
pub(super) const LOCAL_IN: &str = "local-in";

/// The first port of clients (`ip_local_port_range`, its default).
const FIRST_CLIENT_PORT: u16 = 32_768;

/// A rule that owns its values.
pub(super) struct Rule {
    steps: Vec<Step>,
    pub comment: String,
}

#[derive(Clone)]
enum Step {
    Load(libc::c_int),
    /// Of the IP header: offset and length.
    Network(u32, u32),
    /// Of the header after it.
    Transport(u32, u32),
    Mask(Vec<u8>),
    Is(Vec<u8>),
    IsNot(Vec<u8>),
    IsAtLeast(Vec<u8>),
    IsAtMost(Vec<u8>),
    Accept,
    Drop,
}

impl Rule {
    /// As the kernel is told.
    pub(super) fn expressions(&self) -> Vec<Expression<'_>> {
        self.steps.iter().flat_map(Step::expressions).collect()
    }
}

impl Step {
    fn expressions(&self) -> Vec<Expression<'_>> {
        /// As long as an address.
        static NOTHING: [u8; 16] = [0; 16];
        let payload = |base, offset: u32, length: u32| Expression::LoadPayload {
            base,
            offset,
            length,
        };
        vec![match self {
            Step::Load(key) => Expression::Load {
                key: *key,
                register: Expression::FIRST,
            },
            Step::Network(offset, length) => {
                payload(libc::NFT_PAYLOAD_NETWORK_HEADER, *offset, *length)
            }
            Step::Transport(offset, length) => {
                payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, *offset, *length)
            }
            Step::Mask(keep) => Expression::Change {
                keep,
                flip: NOTHING.get(..keep.len()).unwrap_or(&NOTHING),
            },
            Step::Is(bytes) => Expression::Is(bytes),
            Step::IsNot(bytes) => Expression::IsNot(bytes),
            Step::IsAtLeast(bytes) => Expression::IsAtLeast(bytes),
            Step::IsAtMost(bytes) => Expression::IsAtMost(bytes),
            Step::Accept => Expression::Accept,
            Step::Drop => return vec![Expression::Count, Expression::Drop],
        }]
    }
}

/// A port as far as it concerns these rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalPort {
    name: String,
    /// Empty if no policy names it: all passes then.
    policies: Vec<LocalIn>,
    /// Ports of the links to the peers on its interface.
    links: Vec<u16>,
}

/// The ports of `config`.
pub(super) fn ports(config: &Config) -> Vec<LocalPort> {
    let port = |(index, settings): (usize, &tandemgw_core::config::Port)| {
        let links = config.ha.iter().flat_map(|ha| &ha.links);
        let links = links.filter(|link| link.interface == settings.interface);
        let policies = config.local_in_of(PortId::from_index(index));
        LocalPort {
            name: settings.name.clone(),
            policies: policies.cloned().collect(),
            links: links.map(|link| link.listen.port()).collect(),
        }
    };
    config.ports.iter().enumerate().map(port).collect()
}

/// The rules for all ports that a policy names; empty if none is named.
pub(super) fn rules(ports: &[LocalPort], posts: &[Post]) -> Vec<Rule> {
    let mut rules = Vec::new();
    let named = ports.iter().zip(posts);
    for (port, post) in named.filter(|(port, _)| !port.policies.is_empty()) {
        // By number, which a rename does not change, and by name, which a recreated interface
        // keeps.
        let number = post.index.map(|index| {
            let index = Step::Is(index.to_ne_bytes().to_vec());
            vec![Step::Load(libc::NFT_META_IIF), index]
        });
        let mut name = post.interface.clone().into_bytes();
        name.resize(libc::IFNAMSIZ, 0);
        let by_name = vec![Step::Load(libc::NFT_META_IIFNAME), Step::Is(name)];
        for from in number.into_iter().chain([by_name]) {
            add_port(&mut rules, &from, port);
        }
    }
    rules
}

fn add_port(rules: &mut Vec<Rule>, from: &[Step], port: &LocalPort) {
    let mut add = |steps: Vec<Step>, verdict: Step, comment: &str| {
        let steps = from.iter().cloned().chain(steps).chain([verdict]);
        rules.push(Rule {
            steps: steps.collect(),
            comment: format!("{}: {comment}", port.name),
        });
    };
    for (steps, comment) in answers() {
        add(steps, Step::Accept, comment);
    }
    for link in &port.links {
        for protocol in [Protocol::UDP, Protocol::TCP] {
            let service = Service {
                protocol,
                ports: Some((*link, *link)),
            };
            for steps in service_steps(&service) {
                add(steps, Step::Accept, "a link to the peers");
            }
        }
    }
    for policy in &port.policies {
        let sources: Vec<Vec<Step>> = match policy.source.as_slice() {
            [] => vec![Vec::new()],
            nets => nets.iter().map(source_steps).collect(),
        };
        let services: Vec<Vec<Step>> = match policy.service.as_slice() {
            [] => vec![Vec::new()],
            services => services.iter().flat_map(service_steps).collect(),
        };
        for source in &sources {
            for service in &services {
                let verdict = if policy.accepts {
                    Step::Accept
                } else {
                    Step::Drop
                };
                add([&source[..], service].concat(), verdict, &policy.name);
            }
        }
    }
    add(Vec::new(), Step::Drop, "the rest");
}

/// Packets that open nothing.
fn answers() -> [(Vec<Step>, &'static str); 4] {
    const SYN_AND_ACK: u8 = 0x12;
    const SYN: u8 = 0x02;
    let of = |protocol: Protocol| [protocol_step(), Step::Is(vec![protocol.0])];
    let icmp = |protocol, request: u8| {
        let kind = [Step::Transport(0, 1), Step::IsNot(vec![request])];
        of(protocol).into_iter().chain(kind).collect()
    };
    let segment = [
        Step::Transport(13, 1),
        Step::Mask(vec![SYN_AND_ACK]),
        Step::IsNot(vec![SYN]),
    ];
    let first = FIRST_CLIENT_PORT.to_be_bytes().to_vec();
    let datagram = [Step::Transport(2, 2), Step::IsAtLeast(first)];
    [
        (
            of(Protocol::TCP).into_iter().chain(segment).collect(),
            "not the first segment",
        ),
        (
            of(Protocol::UDP).into_iter().chain(datagram).collect(),
            "to a client",
        ),
        (icmp(Protocol::ICMP, 8), "ICMP, but for echo requests"),
        (icmp(Protocol::ICMPV6, 128), "ICMPv6, but for echo requests"),
    ]
}

fn protocol_step() -> Step {
    Step::Load(libc::NFT_META_L4PROTO)
}

/// A service as rules; ICMP is two protocols.
fn service_steps(service: &Service) -> Vec<Vec<Step>> {
    let protocols = match service.protocol {
        Protocol::ICMP => vec![Protocol::ICMP, Protocol::ICMPV6],
        protocol => vec![protocol],
    };
    let steps = |protocol: Protocol| {
        let mut steps = vec![protocol_step(), Step::Is(vec![protocol.0])];
        if let Some((first, last)) = service.ports {
            steps.push(Step::Transport(2, 2));
            let [first_bytes, last_bytes] = [first, last].map(|port| port.to_be_bytes().to_vec());
            if first == last {
                steps.push(Step::Is(first_bytes));
            } else {
                steps.extend([Step::IsAtLeast(first_bytes), Step::IsAtMost(last_bytes)]);
            }
        }
        steps
    };
    protocols.into_iter().map(steps).collect()
}

fn source_steps(net: &IpNet) -> Vec<Step> {
    let (family, at, addr, mask) = match (net.network(), net.netmask()) {
        (IpAddr::V4(addr), IpAddr::V4(mask)) => {
            let family = libc::NFPROTO_IPV4;
            (
                family,
                Step::Network(12, 4),
                addr.octets().to_vec(),
                mask.octets().to_vec(),
            )
        }
        (addr, mask) => {
            let octets = |addr: IpAddr| match addr {
                IpAddr::V6(v6) => v6.octets().to_vec(),
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets().to_vec(),
            };
            (
                libc::NFPROTO_IPV6,
                Step::Network(8, 16),
                octets(addr),
                octets(mask),
            )
        }
    };
    vec![
        Step::Load(libc::NFT_META_NFPROTO),
        Step::Is(vec![family as u8]),
        at,
        Step::Mask(mask),
        Step::Is(addr),
    ]
}
