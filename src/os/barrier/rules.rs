//! The rules in the tables of the barrier.

use std::collections::BTreeSet;

use super::Post;
use crate::os::nftables::{Expression, Set};

/// The chain at the forward hook.
pub(super) const CHAIN: &str = "forward";

/// The chain for packets whose hop limit ends here.
pub(super) const HOPS: &str = "hops";

/// The chain for packets that a device above a port has taken.
pub(super) const DETOUR: &str = "detour";

/// Prefix of the names of the chains that mark packets from the ports.
pub(super) const ARRIVALS: &str = "arrivals";

/// The mark: a bit that nobody sees beyond the prerouting hook.
const MARK: u32 = 1 << 30;
const MARKED: [u8; 4] = MARK.to_ne_bytes();
const ALL_BUT_MARK: [u8; 4] = (!MARK).to_ne_bytes();

/// The type of a destination that is not of this machine, nor of a group.
const UNICAST: [u8; 4] = (libc::RTN_UNICAST as u32).to_ne_bytes();

/// `IFNAMSIZ`: how the kernel compares names.
const NAME_LENGTH: usize = libc::IFNAMSIZ;

/// Data types of nft(8), for those who list the table.
const TYPE_INTERFACE: u32 = 20;
const TYPE_NAME: u32 = 41;
const TYPE_PAIR: u32 = (TYPE_INTERFACE << 6) | TYPE_INTERFACE;

pub(super) const PAIRS: &str = "port-and-its-tun";
pub(super) const EXITS: &str = "tun-and-its-port";
pub(super) const PORTS: &str = "ports";
pub(super) const TUNS: &str = "tuns";
pub(super) const NAMES: &str = "names";

/// The keys of the sets.
pub(super) struct Sets {
    /// Number of a port's interface, number of its TUN device.
    pairs: Vec<Vec<u8>>,
    /// The same, the other way round.
    exits: Vec<Vec<u8>>,
    ports: Vec<Vec<u8>>,
    tuns: Vec<Vec<u8>>,
    names: Vec<Vec<u8>>,
}

impl Sets {
    pub(super) fn of(posts: &[Post]) -> Sets {
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
        }
    }

    pub(super) fn each(&self) -> [(Set<'_>, &[Vec<u8>]); 5] {
        let set = |name, data_type, key_length, keys| {
            let set = Set {
                name,
                data_type,
                key_length,
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
        ]
    }
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

pub(super) type Rule = (Vec<Expression<'static>>, &'static str);

/// The first two are for what the gateway forwards, the rest for what must not pass.
pub(super) fn forward() -> Vec<Rule> {
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
/// have no hop left, or are for a link-local address.
pub(super) fn hops() -> Vec<Rule> {
    use Expression::{Change, Drop, Is, IsAtMost, IsIn, LoadByte, LoadDestinationType, LoadHalf};
    const IPV4: &[u8] = &[libc::NFPROTO_IPV4 as u8];
    const IPV6: &[u8] = &[libc::NFPROTO_IPV6 as u8];
    /// Of the destination.
    const IPV6_PREFIX: Expression<'_> = LoadHalf(24);
    const FIRST_TEN_BITS: Expression<'_> = Change {
        keep: &[0xff, 0xc0],
        flip: &[0, 0],
    };
    let rule = |family, condition: Vec<Expression<'static>>| {
        let mut steps = vec![load(libc::NFT_META_NFPROTO), Is(family)];
        steps.extend(condition);
        let for_others = [
            load(libc::NFT_META_IIF),
            IsIn(PORTS),
            LoadDestinationType,
            Is(&UNICAST),
            Drop,
        ];
        steps.extend(for_others);
        steps
    };
    let ends = |hop_limit| vec![LoadByte(hop_limit), IsAtMost(&[1])];
    let link_local = vec![IPV6_PREFIX, FIRST_TEN_BITS, Is(&[0xfe, 0x80])];
    vec![
        (rule(IPV4, ends(8)), "the gateway answers IPv4"),
        (rule(IPV6, ends(7)), "the gateway answers IPv6"),
        (
            rule(IPV6, link_local),
            "the gateway answers link-local pings",
        ),
    ]
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
pub(super) fn arrivals_of_a_port() -> Vec<Rule> {
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
pub(super) fn detour() -> Vec<Rule> {
    use Expression::{Change, Count, Drop, Is, IsNotIn, LoadDestinationType, SetMark};
    const NOTHING: [u8; 4] = [0; 4];
    let is_marked = || {
        let only = Change {
            keep: &MARKED,
            flip: &NOTHING,
        };
        vec![load(libc::NFT_META_MARK), only, Is(&MARKED)]
    };
    let (mut stop, mut unmark) = (is_marked(), is_marked());
    stop.extend([
        load(libc::NFT_META_IIF),
        IsNotIn(PORTS),
        LoadDestinationType,
        Is(&UNICAST),
        Count,
        Drop,
    ]);
    let without = Change {
        keep: &ALL_BUT_MARK,
        flip: &NOTHING,
    };
    unmark.extend([load(libc::NFT_META_MARK), without, SetMark]);
    vec![
        (stop, "from a port, taken by another device"),
        (unmark, "nobody else sees the mark"),
    ]
}

/// Packets from one port to another within a bridge.
pub(super) fn bridge() -> Vec<Rule> {
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

fn load(key: libc::c_int) -> Expression<'static> {
    Expression::Load {
        key,
        register: Expression::FIRST,
    }
}
