//! The rules in the tables of the barrier.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Post;
use crate::os::nftables::{Expression, Set};

/// The chain at the forward hook.
pub(super) const CHAIN: &str = "forward";

/// The chain for packets whose hop limit ends here.
pub(super) const HOPS: &str = "hops";

/// The chain for what this machine itself sends.
pub(super) const REPLIES: &str = "replies";

/// The chain for packets that a device above a port has taken.
pub(super) const DETOUR: &str = "detour";

/// Prefix of the names of the chains that mark packets from the ports.
pub(super) const ARRIVALS: &str = "arrivals";

/// The mark: a bit that nobody sees beyond the prerouting hook.
const MARK: u32 = 1 << 30;
const MARKED: [u8; 4] = MARK.to_ne_bytes();
const ALL_BUT_MARK: [u8; 4] = (!MARK).to_ne_bytes();

pub(super) const IPV4: &[u8] = &[libc::NFPROTO_IPV4 as u8];
pub(super) const IPV6: &[u8] = &[libc::NFPROTO_IPV6 as u8];
pub(super) const ICMP: &[u8] = &[libc::IPPROTO_ICMP as u8];
pub(super) const ICMPV6: &[u8] = &[libc::IPPROTO_ICMPV6 as u8];

/// An address of this machine.
const LOCAL: [u8; 4] = (libc::RTN_LOCAL as u32).to_ne_bytes();

/// `IFNAMSIZ`: how the kernel compares names.
const NAME_LENGTH: usize = libc::IFNAMSIZ;

/// Data types of nft(8), for those who list the table.
const TYPE_INTERFACE: u32 = 20;
const TYPE_NAME: u32 = 41;
const TYPE_PAIR: u32 = (TYPE_INTERFACE << 6) | TYPE_INTERFACE;
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;

pub(super) const PAIRS: &str = "port-and-its-tun";
pub(super) const EXITS: &str = "tun-and-its-port";
pub(super) const PORTS: &str = "ports";
pub(super) const TUNS: &str = "tuns";
pub(super) const NAMES: &str = "names";
pub(super) const VIRTUAL_IPV4: &str = "virtual-ipv4";
pub(super) const VIRTUAL_IPV6: &str = "virtual-ipv6";
pub(super) const OWN_IPV4: &str = "own-ipv4";
pub(super) const OWN_IPV6: &str = "own-ipv6";

/// How many sets there are.
pub(super) const COUNT: usize = 9;

/// All sets.
pub(super) const SETS: [&str; COUNT] = [
    PAIRS,
    EXITS,
    PORTS,
    TUNS,
    NAMES,
    VIRTUAL_IPV4,
    VIRTUAL_IPV6,
    OWN_IPV4,
    OWN_IPV6,
];

/// The keys of the sets.
pub(super) struct Sets {
    /// Number of a port's interface, number of its TUN device.
    pairs: Vec<Vec<u8>>,
    /// The same, the other way round.
    exits: Vec<Vec<u8>>,
    ports: Vec<Vec<u8>>,
    tuns: Vec<Vec<u8>>,
    names: Vec<Vec<u8>>,
    /// Addresses of the gateway, by family.
    addresses: [Vec<Vec<u8>>; 2],
    /// Addresses of this machine, by family.
    own: [Vec<Vec<u8>>; 2],
}

impl Sets {
    pub(super) fn of(posts: &[Post], own: &BTreeSet<IpAddr>) -> Sets {
        let number = |number: u32| number.to_ne_bytes().to_vec();
        let present = posts
            .iter()
            .filter_map(|post| Some((post.index?, post.tun)));
        let pair = |(port, tun): (u32, u32)| [number(port), number(tun)].concat();
        let sorted = |keys: BTreeSet<Vec<u8>>| keys.into_iter().collect();
        Sets {
            pairs: sorted(present.clone().map(pair).collect()),
            exits: sorted(
                present
                    .clone()
                    .map(|(port, tun)| pair((tun, port)))
                    .collect(),
            ),
            ports: sorted(present.map(|(port, _)| number(port)).collect()),
            tuns: sorted(posts.iter().map(|post| number(post.tun)).collect()),
            names: names(posts),
            addresses: by_family(posts.iter().flat_map(|post| &post.addresses)),
            own: by_family(own),
        }
    }

    /// Whether the keys of a set are known to those who only look at it: they may not know the
    /// addresses in force.
    pub(super) fn knows(&self, set: &str) -> bool {
        let is_known = |keys: &[Vec<Vec<u8>>; 2]| keys.iter().any(|keys| !keys.is_empty());
        match set {
            VIRTUAL_IPV4 | VIRTUAL_IPV6 => is_known(&self.addresses),
            OWN_IPV4 | OWN_IPV6 => is_known(&self.own),
            _ => true,
        }
    }

    pub(super) fn each(&self) -> [(Set<'_>, &[Vec<u8>]); COUNT] {
        let set = |name, data_type, key_length, keys| {
            let set = Set {
                name,
                data_type,
                key_length,
                is_address: matches!(data_type, TYPE_IPV4 | TYPE_IPV6),
                keys,
            };
            (set, keys)
        };
        [
            set(PAIRS, TYPE_PAIR, 8, &self.pairs[..]),
            set(EXITS, TYPE_PAIR, 8, &self.exits),
            set(PORTS, TYPE_INTERFACE, 4, &self.ports),
            set(TUNS, TYPE_INTERFACE, 4, &self.tuns),
            set(NAMES, TYPE_NAME, NAME_LENGTH, &self.names),
            set(VIRTUAL_IPV4, TYPE_IPV4, 4, &self.addresses[0]),
            set(VIRTUAL_IPV6, TYPE_IPV6, 16, &self.addresses[1]),
            set(OWN_IPV4, TYPE_IPV4, 4, &self.own[0]),
            set(OWN_IPV6, TYPE_IPV6, 16, &self.own[1]),
        ]
    }
}

/// Addresses as keys, by family.
fn by_family<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> [Vec<Vec<u8>>; 2] {
    let mut keys = [BTreeSet::new(), BTreeSet::new()];
    for address in addresses {
        match address {
            IpAddr::V4(address) => keys[0].insert(address.octets().to_vec()),
            IpAddr::V6(address) => keys[1].insert(address.octets().to_vec()),
        };
    }
    keys.map(|keys| keys.into_iter().collect())
}

/// The names of all interfaces and TUN devices, as the kernel compares them.
pub(super) fn names(posts: &[Post]) -> Vec<Vec<u8>> {
    let all = posts
        .iter()
        .flat_map(|post| [&post.interface, &post.tun_name]);
    let padded = |name: &String| {
        let mut bytes = name.clone().into_bytes();
        bytes.resize(NAME_LENGTH, 0);
        bytes
    };
    let keys: BTreeSet<Vec<u8>> = all.map(padded).collect();
    keys.into_iter().collect()
}

/// The comment of the rule that counts what it lets pass.
pub(super) const TO_THE_GATEWAY: &str = "to the gateway";

pub(super) type Rule<'a> = (Vec<Expression<'a>>, &'static str);

/// The first two are for what the gateway forwards, the rest for what must not pass.
pub(super) fn forward() -> Vec<Rule<'static>> {
    use Expression::{Accept, Count, Drop, IsIn};
    let drop_if = |key, set| vec![load(key), IsIn(set), Count, Drop];
    let second = || Expression::Load {
        key: libc::NFT_META_OIF,
        register: Expression::SECOND,
    };
    let (iif, oif) = (libc::NFT_META_IIF, libc::NFT_META_OIF);
    vec![
        (
            vec![load(iif), second(), IsIn(PAIRS), Count, Accept],
            TO_THE_GATEWAY,
        ),
        (
            vec![load(iif), second(), IsIn(EXITS), Accept],
            "from the gateway",
        ),
        (drop_if(iif, PORTS), "from a port past the gateway"),
        (
            drop_if(oif, PORTS),
            "to a port past the gateway, or by another port than it is for",
        ),
        (drop_if(iif, TUNS), "from the gateway to no port"),
        (drop_if(oif, TUNS), "to the gateway from no port of it"),
        (
            drop_if(libc::NFT_META_IIFNAME, NAMES),
            "from an interface that has just been made",
        ),
        (
            drop_if(libc::NFT_META_OIFNAME, NAMES),
            "to an interface that has just been made",
        ),
    ]
}

/// Packets that come in by a port, are not for this machine, and that the kernel would answer: they
/// have no hop left, or are for a link-local address. And ICMP of others from an address of this
/// machine, which IPv6 lets in.
///
/// Every packet comes here, and each step costs it some 10 ns or more: so most leave early.
pub(super) fn hops() -> Vec<Rule<'static>> {
    use Expression::{Accept, Change, Drop, Is, IsAtMost, IsNot, IsNotIn, LoadByte, LoadHalf};
    /// Of the destination.
    const IPV6_PREFIX: Expression<'_> = LoadHalf(24);
    const FIRST_TEN_BITS: Expression<'_> = Change {
        keep: &[0xff, 0xc0],
        flip: &[0, 0],
    };
    let rule = |family, condition: Vec<Expression<'static>>| {
        let mut steps = vec![load(libc::NFT_META_NFPROTO), Is(family)];
        steps.extend(condition);
        steps.extend(is_for_others());
        steps.push(Drop);
        steps
    };
    let ends = |hop_limit| vec![LoadByte(hop_limit), IsAtMost(&[1])];
    // The gateway believes what this machine says of packets.
    let from_here = |protocol| {
        let is_local = [Expression::LoadSourceType, Is(&LOCAL)];
        let protocol = [load(libc::NFT_META_L4PROTO), Is(protocol)];
        protocol.into_iter().chain(is_local).collect()
    };
    let link_local = vec![IPV6_PREFIX, FIRST_TEN_BITS, Is(&[0xfe, 0x80])];
    let not_from_a_port = vec![load(libc::NFT_META_IIF), IsNotIn(PORTS), Accept];
    let other_ipv4 = vec![
        load(libc::NFT_META_NFPROTO),
        Is(IPV4),
        load(libc::NFT_META_L4PROTO),
        IsNot(ICMP),
        Accept,
    ];
    vec![
        (not_from_a_port, "not from a port"),
        (rule(IPV4, ends(8)), "the gateway answers IPv4"),
        (other_ipv4, "IPv4 that has hops left, and is not ICMP"),
        (rule(IPV6, ends(7)), "the gateway answers IPv6"),
        (
            rule(IPV6, link_local),
            "the gateway answers link-local pings",
        ),
        (rule(IPV4, from_here(ICMP)), "as if from this machine"),
        (
            rule(IPV6, from_here(ICMPV6)),
            "as if from this machine, IPv6",
        ),
    ]
}

/// Continues if the packet is neither for this machine nor for a group. Where it would go does not
/// matter: the kernel answers too if it has no route.
fn is_for_others() -> Vec<Expression<'static>> {
    const BROADCAST: [u8; 4] = (libc::RTN_BROADCAST as u32).to_ne_bytes();
    const ANYCAST: [u8; 4] = (libc::RTN_ANYCAST as u32).to_ne_bytes();
    const MULTICAST: [u8; 4] = (libc::RTN_MULTICAST as u32).to_ne_bytes();
    let mut steps = vec![Expression::LoadDestinationType];
    steps.extend([&LOCAL, &BROADCAST, &ANYCAST, &MULTICAST].map(|kind| Expression::IsNot(kind)));
    steps
}

/// What this machine sends by itself to the hosts of the ports, and must not: that it has no route
/// or no hop left for a packet, that another way is better, and, if somebody gives the kernel an
/// address of the gateway, that it has no such connection. Hosts would learn an address of this
/// unit, and give up connections that the other unit serves.
///
/// Nor does it answer as another host, which is how others' filters reject connections: the answer
/// would have an address inside. All other errors about packets that are not for this machine are
/// led to the gateway ([`super::errors`]).
pub(super) fn replies() -> Vec<Rule<'static>> {
    use Expression::{Accept, Change, Is, IsAtMost, IsIn, IsNot, IsNotIn};
    const TCP: &[u8] = &[libc::IPPROTO_TCP as u8];
    const RESET: Expression<'_> = Change {
        keep: &[4],
        flip: &[0],
    };
    let resets = || vec![transport(13, 1), RESET, IsNot(&[0])];
    let not_to_a_port = vec![
        load(libc::NFT_META_OIF),
        IsNotIn(PORTS),
        load(libc::NFT_META_OIFNAME),
        IsNotIn(NAMES),
        Accept,
    ];
    let to_the_tun = vec![load(libc::NFT_META_OIF), IsIn(TUNS), Accept];
    let says = |family, protocol, what: &'static [u8]| {
        let starts = vec![transport(0, what.len() as u32), Is(what)];
        silenced(family, protocol, starts)
    };
    let as_gateway = |family, protocol, mut what: Vec<_>| {
        what.extend(is_from_the_gateway(family));
        silenced(family, protocol, what)
    };
    let as_another = |family, set| {
        let mut what = resets();
        what.extend([source(family), IsNotIn(set)]);
        silenced(family, TCP, what)
    };
    vec![
        (not_to_a_port, "not to a port"),
        (to_the_tun, "to the gateway"),
        (says(IPV4, ICMP, &[3, 0]), "no route"),
        (says(IPV4, ICMP, &[5]), "a redirect"),
        (says(IPV4, ICMP, &[11, 0]), "no hop left"),
        (says(IPV6, ICMPV6, &[1, 0]), "no route of IPv6"),
        (says(IPV6, ICMPV6, &[1, 2]), "beyond the scope"),
        (says(IPV6, ICMPV6, &[3, 0]), "no hop left of IPv6"),
        (says(IPV6, ICMPV6, &[137]), "a redirect of IPv6"),
        (as_gateway(IPV4, TCP, resets()), "a reset for the gateway"),
        (
            as_gateway(IPV6, TCP, resets()),
            "a reset of IPv6 for the gateway",
        ),
        (as_another(IPV4, OWN_IPV4), "a reset as another host"),
        (as_another(IPV6, OWN_IPV6), "a reset as another host, IPv6"),
        // All but echoes.
        (
            as_gateway(IPV4, ICMP, vec![transport(0, 1), IsNot(&[0]), IsNot(&[8])]),
            "an error for the gateway",
        ),
        (
            as_gateway(IPV6, ICMPV6, vec![transport(0, 1), IsAtMost(&[127])]),
            "an error of IPv6 for the gateway",
        ),
    ]
}

/// Drops the packets of a family and protocol that a condition is true of.
fn silenced(
    family: &'static [u8],
    protocol: &'static [u8],
    condition: Vec<Expression<'static>>,
) -> Vec<Expression<'static>> {
    let mut steps = vec![
        load(libc::NFT_META_NFPROTO),
        Expression::Is(family),
        load(libc::NFT_META_L4PROTO),
        Expression::Is(protocol),
    ];
    steps.extend(condition);
    steps.extend([Expression::Count, Expression::Drop]);
    steps
}

/// Continues if the source is an address of the gateway.
fn is_from_the_gateway(family: &[u8]) -> [Expression<'static>; 2] {
    let set = match family {
        IPV4 => VIRTUAL_IPV4,
        _ => VIRTUAL_IPV6,
    };
    [source(family), Expression::IsIn(set)]
}

/// Loads the source address.
pub(super) fn source<'a>(family: &[u8]) -> Expression<'a> {
    let (offset, length) = match family {
        IPV4 => (12, 4),
        _ => (8, 16),
    };
    Expression::LoadPayload {
        base: libc::NFT_PAYLOAD_NETWORK_HEADER,
        offset,
        length,
    }
}

/// Loads bytes of the transport header.
pub(super) fn transport<'a>(offset: u32, length: u32) -> Expression<'a> {
    Expression::LoadPayload {
        base: libc::NFT_PAYLOAD_TRANSPORT_HEADER,
        offset,
        length,
    }
}

/// The name of one of the chains that mark what comes in.
pub(super) fn arrivals(number: usize) -> String {
    match number {
        0 => ARRIVALS.to_owned(),
        more => format!("{ARRIVALS}-{more}"),
    }
}

/// At the ingress hook, before a bridge, a bond or a macvlan takes the packet: marks it. A packet
/// with a VLAN tag is of another network, which may be forwarded without us.
pub(super) fn arrivals_of_a_port() -> Vec<Rule<'static>> {
    use Expression::{Accept, Change, Is, IsNot, LoadLink, SetMark};
    const NOTHING: [u8; 4] = [0; 4];
    const ETHERTYPE: u32 = 12;
    // VLAN 0 is not a VLAN but a priority tag (IEEE 802.1Q, section 9.6).
    let tagged = |ethertype| {
        vec![
            LoadLink(ETHERTYPE),
            Is(ethertype),
            LoadLink(ETHERTYPE + 2),
            Change {
                keep: &[0x0f, 0xff],
                flip: &NOTHING[..2],
            },
            IsNot(&NOTHING[..2]),
            Accept,
        ]
    };
    let mark = Change {
        keep: &ALL_BUT_MARK,
        flip: &MARKED,
    };
    vec![
        (tagged(&[0x81, 0x00]), "of a VLAN"),
        (tagged(&[0x88, 0xa8]), "of a VLAN of a provider"),
        (vec![load(libc::NFT_META_MARK), mark, SetMark], "of a port"),
    ]
}

/// At the prerouting hook: what is marked must have come in by a port itself, or be for this
/// machine.
pub(super) fn detour() -> Vec<Rule<'static>> {
    use Expression::{Accept, Change, Count, Drop, IsNot, IsNotIn, SetMark};
    const NOTHING: [u8; 4] = [0; 4];
    let (only, without) = (
        Change {
            keep: &MARKED,
            flip: &NOTHING,
        },
        Change {
            keep: &ALL_BUT_MARK,
            flip: &NOTHING,
        },
    );
    let mark = || load(libc::NFT_META_MARK);
    let unmarked = vec![mark(), only, IsNot(&MARKED), Accept];
    let mut stop = vec![load(libc::NFT_META_IIF), IsNotIn(PORTS)];
    stop.extend(is_for_others());
    stop.extend([Count, Drop]);
    vec![
        (unmarked, "not of a port"),
        (stop, "from a port, taken by another device"),
        (vec![mark(), without, SetMark], "nobody else sees the mark"),
    ]
}

/// Packets from one port to another within a bridge.
pub(super) fn bridge() -> Vec<Rule<'static>> {
    use Expression::{Count, Drop, IsIn};
    let between = |iif, oif, set| vec![load(iif), IsIn(set), load(oif), IsIn(set), Count, Drop];
    vec![
        (
            between(libc::NFT_META_IIF, libc::NFT_META_OIF, PORTS),
            "from port to port past the gateway",
        ),
        (
            between(libc::NFT_META_IIFNAME, libc::NFT_META_OIFNAME, NAMES),
            "from port to port past the gateway, just made",
        ),
    ]
}

pub(super) fn load<'a>(key: libc::c_int) -> Expression<'a> {
    Expression::Load {
        key,
        register: Expression::FIRST,
    }
}
