//! The vocabulary that all modules share: addresses, flow keys, directions, and the small ids.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IP address of either family, in 16 bytes.
///
/// IPv4 is stored IPv4-mapped (RFC 4291, section 2.5.5.2), so that one code path serves both
/// families. An IPv6 packet with a mapped address is dropped as martian, so the two can't be
/// confused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr([u8; 16]);

impl Addr {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

    /// The address of four bytes in network order.
    pub const fn v4(b: [u8; 4]) -> Addr {
        Addr([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3],
        ])
    }

    /// The address of sixteen bytes in network order.
    pub const fn v6(octets: [u8; 16]) -> Addr {
        Addr(octets)
    }

    /// Whether this is an IPv4 address.
    pub fn is_v4(&self) -> bool {
        self.0[..12] == Self::MAPPED
    }

    /// The family of this address.
    pub fn family(&self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }

    /// All sixteen bytes, mapped if IPv4.
    pub const fn octets(&self) -> &[u8; 16] {
        &self.0
    }

    /// The bytes as in a packet: four or sixteen.
    pub fn wire(&self) -> &[u8] {
        if self.is_v4() { &self.0[12..] } else { &self.0 }
    }

    /// The last four bytes: the whole address if IPv4.
    pub fn last4(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// Whether it is valid on its link only (RFC 3927; RFC 4291, section 2.5.6).
    #[inline]
    pub fn is_link_local(&self) -> bool {
        match self.family() {
            Family::V4 => self.last4()[..2] == [169, 254],
            Family::V6 => self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80,
        }
    }

    /// Whether it is a multicast address (RFC 5771; RFC 4291, section 2.7).
    #[inline]
    pub fn is_group(&self) -> bool {
        match self.family() {
            Family::V4 => self.last4()[0] & 0xf0 == 0xe0,
            Family::V6 => self.0[0] == 0xff,
        }
    }

    /// Whether packets to this group may leave the link that they were sent on.
    ///
    /// Not those of the local network block (RFC 5771, section 4), nor of the scopes up to
    /// realm-local and the reserved one (RFC 7346, section 2). The boundaries of the larger scopes
    /// are where an administrator draws them (RFC 2365; RFC 6308, section 2.4): policies decide.
    pub fn leaves_link(&self) -> bool {
        match self.family() {
            Family::V4 => self.last4()[..3] != [224, 0, 0],
            Family::V6 => (4..0xf).contains(&(self.0[1] & 0xf)),
        }
    }

    /// Whether it is of the range in which a host must name the sources that it wants (RFC 4607,
    /// section 1): 232.0.0.0/8, ff3x::/32.
    pub fn is_source_specific(&self) -> bool {
        match self.family() {
            Family::V4 => self.last4()[0] == 232,
            Family::V6 => self.0[0] == 0xff && self.0[1] >> 4 == 3 && self.0[2..4] == [0, 0],
        }
    }

    /// The unspecified address of `family` (0.0.0.0 or ::).
    pub const fn unspecified(family: Family) -> Addr {
        match family {
            Family::V4 => Addr::v4([0; 4]),
            Family::V6 => Addr([0; 16]),
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Addr {
        match ip {
            IpAddr::V4(ip) => Addr::v4(ip.octets()),
            IpAddr::V6(ip) => Addr(ip.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> IpAddr {
        if addr.is_v4() {
            IpAddr::V4(Ipv4Addr::from(addr.last4()))
        } else {
            IpAddr::V6(Ipv6Addr::from(addr.0))
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 (RFC 791).
    V4,
    /// IPv6 (RFC 8200).
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// `IPv4` or `IPv6`.
    pub const fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// Bytes of an IP header without options or extension headers.
    pub const fn header_len(self) -> u32 {
        match self {
            Family::V4 => 20,
            Family::V6 => 40,
        }
    }
}

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers").
///
/// ICMPv6 is stored as [`Protocol::ICMP`] in a [`FlowKey`]: the family tells them apart, and
/// policies, timeouts and rendering need only one case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP of either family: in IPv6 packets the header says 58.
    pub const ICMP: Protocol = Protocol(1);
    /// TCP (RFC 9293).
    pub const TCP: Protocol = Protocol(6);
    /// UDP (RFC 768).
    pub const UDP: Protocol = Protocol(17);
    /// ICMPv6; used on the wire only.
    pub const ICMPV6: Protocol = Protocol(58);

    /// Whether flows of this protocol have ports, or an ICMP identifier in their place.
    pub(crate) fn has_ports(self) -> bool {
        matches!(self, Protocol::ICMP | Protocol::TCP | Protocol::UDP)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Protocol::ICMP => f.write_str("icmp"),
            Protocol::TCP => f.write_str("tcp"),
            Protocol::UDP => f.write_str("udp"),
            Protocol(number) => write!(f, "{number}"),
        }
    }
}

impl FromStr for Protocol {
    type Err = &'static str;

    /// Parses the form that `Display` writes: a name or a number.
    fn from_str(text: &str) -> Result<Protocol, &'static str> {
        match text {
            "icmp" => Ok(Protocol::ICMP),
            "tcp" => Ok(Protocol::TCP),
            "udp" => Ok(Protocol::UDP),
            number => number
                .parse()
                .map(Protocol)
                .map_err(|_| "expected tcp, udp, icmp or a number"),
        }
    }
}

/// Identifies a flow: addresses, ports and protocol, as seen in one direction.
///
/// An ICMP echo request has its identifier as source port and [`echo_port`] as destination port;
/// the reply has them the other way round, so that [`FlowKey::reply`] holds for ICMP too. Protocols
/// without ports have both ports 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, or see above.
    pub src_port: u16,
    /// Destination port, or see above.
    pub dst_port: u16,
    /// IP protocol.
    pub protocol: Protocol,
}

/// The value that stands for the port of the other end of an ICMP echo with this identifier: 0,
/// except for two identifiers. This way no request has the key of a reply, whatever their
/// identifiers: otherwise two hosts that ping each other with identifier 0 would be one flow.
#[inline]
pub const fn echo_port(identifier: u16) -> u16 {
    match identifier {
        0 => 1,
        1 => 2,
        _ => 0,
    }
}

impl FlowKey {
    /// Whether it is the key of an ICMP echo reply.
    pub(crate) fn is_echo_reply(&self) -> bool {
        self.protocol == Protocol::ICMP && self.dst_port != echo_port(self.src_port)
    }

    /// The same with another source port; for ICMP, another identifier.
    #[inline]
    pub(crate) fn with_source_port(self, port: u16) -> FlowKey {
        let dst_port = match self.protocol {
            Protocol::ICMP => echo_port(port),
            _ => self.dst_port,
        };
        FlowKey {
            src_port: port,
            dst_port,
            ..self
        }
    }

    /// The key of packets in the other direction.
    pub fn reply(&self) -> FlowKey {
        FlowKey {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
        }
    }
}

impl fmt::Display for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = |f: &mut fmt::Formatter<'_>, addr: Addr, port| match addr.family() {
            _ if !self.protocol.has_ports() => write!(f, "{addr}"),
            Family::V4 => write!(f, "{addr}:{port}"),
            Family::V6 => write!(f, "[{addr}]:{port}"),
        };
        write!(f, "{} ", self.protocol)?;
        endpoint(f, self.src, self.src_port)?;
        f.write_str(" -> ")?;
        endpoint(f, self.dst, self.dst_port)
    }
}

/// The direction of a packet within its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The direction of the packet that opened the session.
    Original = 0,
    /// The other one.
    Reply = 1,
}

impl Direction {
    /// Both, in the order of their numbers.
    pub const ALL: [Direction; 2] = [Direction::Original, Direction::Reply];

    /// The other direction.
    pub fn flip(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }
}

/// A port of the gateway: the index of its `[[port]]` table in the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

impl PortId {
    /// The port at `index` in a list that is parallel to the configured ports.
    pub fn from_index(index: usize) -> PortId {
        // A config has fewer ports than that.
        PortId(index as u16)
    }

    /// As an index into a list that is parallel to the configured ports.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A policy. The id belongs to its name: first it is the place in the config that the gateway was
/// started with; after a change of the config `Ruleset` assigns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId(pub u16);

impl PolicyId {
    /// For a session from a peer, under a policy that is unknown here.
    pub const NONE: PolicyId = PolicyId(u16::MAX);
}

/// A group of virtual addresses that moves as one: its place, below [`MAX_GROUPS`], which it keeps
/// until a reload removes it. At the start that is the index of its table in the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u8);

/// A set of groups, as one bit each: a config has at most 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupSet(u64);

impl GroupSet {
    /// All 64, whether or not the config has them.
    pub const ALL: GroupSet = GroupSet(u64::MAX);

    /// Adds `group`.
    pub fn insert(&mut self, group: GroupId) {
        self.0 |= 1 << (group.0 & 63);
    }

    /// Takes a group out.
    pub fn remove(&mut self, group: GroupId) {
        self.0 &= !(1 << (group.0 & 63));
    }

    /// Its groups, by place.
    pub fn iter(self) -> impl Iterator<Item = GroupId> + Clone {
        let all = (0..MAX_GROUPS).map(|place| GroupId(place as u8));
        all.filter(move |group| self.contains(*group))
    }

    /// Whether it has no group.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `group` is in it.
    pub fn contains(self, group: GroupId) -> bool {
        self.0 & (1 << (group.0 & 63)) != 0
    }

    /// Whether `other` has all of its groups.
    pub fn is_subset(self, other: GroupSet) -> bool {
        self.0 & !other.0 == 0
    }
}

impl FromIterator<GroupId> for GroupSet {
    fn from_iter<I: IntoIterator<Item = GroupId>>(groups: I) -> GroupSet {
        let mut set = GroupSet::default();
        groups.into_iter().for_each(|group| set.insert(group));
        set
    }
}

/// The most `[[ha.peer]]` tables.
pub const MAX_PEERS: usize = 15;

/// Groups of a cluster, slots included, at most.
pub const MAX_GROUPS: usize = 64;

/// A peer: its place, below [`MAX_PEERS`], which it keeps until a reload removes it. At the start
/// that is the index of its `[[ha.peer]]` table in the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u8);

impl PeerId {
    /// As an index into a list by place.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of peers, by place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerSet(u16);

impl PeerSet {
    /// Adds `peer`.
    pub fn insert(&mut self, peer: PeerId) {
        self.0 |= 1 << (peer.0 & 15);
    }

    /// Whether `peer` is in it.
    pub fn contains(self, peer: PeerId) -> bool {
        self.0 & (1 << (peer.0 & 15)) != 0
    }

    /// How many are in it.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }
}

impl FromIterator<PeerId> for PeerSet {
    fn from_iter<I: IntoIterator<Item = PeerId>>(peers: I) -> PeerSet {
        let mut set = PeerSet::default();
        peers.into_iter().for_each(|peer| set.insert(peer));
        set
    }
}

/// A link for heartbeats and replication: the index of its `[[ha.link]]` table in the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u8);

impl LinkId {
    /// As an index into a list that is parallel to the configured links.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn scopes_as_in_the_rfcs() {
        for link in [
            "224.0.0.1",
            "224.0.0.251",
            "ff02::1",
            "ff12::5",
            "ff01::1",
            "ff03::1",
            "ff0f::1",
        ] {
            assert!(addr(link).is_group() && !addr(link).leaves_link(), "{link}");
        }
        for far in [
            "224.0.1.1",
            "239.1.2.3",
            "232.0.0.1",
            "ff05::2",
            "ff08::1",
            "ff3e::1",
        ] {
            assert!(addr(far).is_group() && addr(far).leaves_link(), "{far}");
        }
        for none in ["10.0.0.1", "255.255.255.255", "fe80::1", "2001:db8::1"] {
            assert!(!addr(none).is_group(), "{none}");
        }
        assert!(
            addr("232.1.2.3").is_source_specific() && addr("ff3e::8000:1").is_source_specific()
        );
        assert!(!addr("239.232.0.1").is_source_specific());
        assert!(!addr("ff3e:40::1").is_source_specific(), "RFC 3306");
    }
}
