//! The whole boundary between core and shell on one page: inputs and outputs.

use crate::flow::{Addr, LinkId, PeerId, PortId};

/// Metadata that the kernel passes with a packet (`struct virtio_net_hdr`, VIRTIO 1.2, section
/// 5.1.6): the part that the core needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The unfinished checksum, if there is one (`VIRTIO_NET_HDR_F_NEEDS_CSUM`). It is completed
    /// when the packet is sent on the wire.
    pub partial_checksum: Option<PartialChecksum>,
    /// The kernel has verified the transport checksum (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub checksum_verified: bool,
    /// Transport payload bytes of each segment of a super-packet; 0 for an ordinary packet.
    pub segment_size: u16,
}

impl Offload {
    /// Whether the checksum field at `at`, counted from the IP header, is the unfinished one.
    #[inline]
    pub(crate) fn is_partial_at(&self, at: usize) -> bool {
        self.partial_checksum
            .is_some_and(|partial| usize::from(partial.field) == at)
    }
}

/// A checksum field that holds the uncomplemented sum of the pseudo-header only (VIRTIO 1.2,
/// section 5.1.6.2). In a tunnel it may belong to the inner packet; all other checksums are
/// finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Start of the bytes that it covers; they extend to the end of the packet.
    pub start: u16,
    /// Where the field is. Both are offsets from the IP header, in bytes.
    pub field: u16,
}

/// The shell's next step for the packet just handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write the same, edited buffer to the TUN of
    /// [`Gateway::exit`](crate::gateway::Gateway::exit): the kernel routes it from there.
    Forward,
    /// Discard it; the reason is already counted.
    Drop(DropReason),
    /// The gateway kept it: it was answered, or it waits. Write nothing.
    Consumed,
}

/// An effect that the shell carries out; drained by `Gateway::poll_output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// An IP packet to be written to the TUN of `port`.
    Packet {
        /// The port whose TUN takes it.
        port: PortId,
        /// The packet from its IP header on.
        bytes: Vec<u8>,
        /// Only a packet that a peer has passed on has any.
        offload: Offload,
    },
    /// An Ethernet frame to be sent out of the interface of `port`.
    Frame {
        /// The port whose interface sends it.
        port: PortId,
        /// The frame from its destination address on, without FCS.
        bytes: Vec<u8>,
    },
    /// A datagram for the heartbeat connection to a peer.
    Heartbeat {
        /// Its place among `[[ha.peer]]`.
        peer: PeerId,
        /// Its place among `[[ha.link]]`.
        link: LinkId,
        /// The payload, of at most 1100 bytes; if it is lost, it is not sent again.
        bytes: Vec<u8>,
    },
    /// A datagram for the replication connection to a peer: a packet that the peer is to handle, or
    /// a piece of one.
    PassOn {
        /// Its place among `[[ha.peer]]`.
        peer: PeerId,
        /// Its place among `[[ha.link]]`.
        link: LinkId,
        /// The payload, of at most 1100 bytes; if it is lost, it is not sent again.
        bytes: Vec<u8>,
    },
    /// Make the kernel resolve the hardware address of a neighbour, unless it knows it.
    Resolve {
        /// The port on whose link it is.
        port: PortId,
        /// On a network of that port.
        addr: Addr,
    },
    /// Tell the kernel where a neighbour is, as if it had heard its answer.
    Neighbor {
        /// The port on whose link it is.
        port: PortId,
        /// Its address.
        addr: Addr,
        /// Its hardware address.
        mac: [u8; 6],
    },
    /// Probe a target of `[[link-monitor]]` from an address that the kernel has on its port; the
    /// answer goes to
    /// [`Gateway::handle_target_answer`](crate::gateway::Gateway::handle_target_answer).
    Probe {
        /// The place of the monitor in the config.
        monitor: usize,
        /// The number of the probe.
        sequence: u16,
        /// The address to ask from.
        source: Addr,
    },
    /// The replication stream to a peer no longer uses this link: data still in it must not be
    /// mistaken for part of a later stream.
    CloseStream {
        /// Its place among `[[ha.peer]]`.
        peer: PeerId,
        /// Its place among `[[ha.link]]`.
        link: LinkId,
    },
}

/// The state of the interface of a port, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Administratively up and with carrier.
    pub up: bool,
    /// The MTU in bytes of IP.
    pub mtu: u32,
    /// The hardware address.
    pub mac: [u8; 6],
}

/// How far the kernel is in looking for a host on the link of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelLookup {
    /// It has a packet for it, and leaves the question to the gateway (`app_solicit`, arp(7)).
    Wanted,
    /// It knows where it was, and has asked whether it is still there (`NUD_PROBE`).
    Doubted,
    /// It has had no answer, and has given up (`NUD_FAILED`).
    Missed,
    /// It knows where it is (`NUD_REACHABLE`).
    Found,
}

/// A change of the kernel's routing that the core mirrors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteChange {
    /// A dump begins. The routes stay, but those that it has not added again by its end are
    /// removed.
    BeginDump,
    /// The dump is complete.
    EndDump,
    /// A route was added, or replaced one with the same destination and metric.
    Add(Route),
    /// A route was removed.
    Remove(Route),
}

/// A route of the kernel's main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination network.
    pub destination: ipnet::IpNet,
    /// Metric (IPv4) or priority (IPv6); the lowest wins.
    pub metric: u32,
    /// Where it leads.
    pub target: RouteTarget,
    /// The route's own MTU, if it sets one.
    pub mtu: Option<u32>,
    /// The kernel does more than to send a packet to one next hop: it chooses among several on the
    /// link, or encapsulates.
    pub is_special: bool,
    /// For a route with next hops on several links, those on ports; empty if it has a single one.
    /// The target is the first.
    pub hops: Vec<PortHop>,
}

/// One of several next hops of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortHop {
    /// The port that it is on.
    pub port: PortId,
    /// The next hop; none if the destination is on the link.
    pub gateway: Option<Addr>,
    /// Its share, relative to those of the others; at least 1.
    pub weight: u32,
}

impl PortHop {
    /// Where it leads.
    pub fn target(&self) -> RouteTarget {
        RouteTarget::Port {
            port: self.port,
            gateway: self.gateway,
        }
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    /// Out of the interface of a port.
    Port {
        /// The port whose interface the route names.
        port: PortId,
        /// The next hop; none if the destination is on the link.
        gateway: Option<Addr>,
    },
    /// Out of an interface that is not a port of the gateway: nothing is forwarded there.
    Elsewhere,
    /// Nowhere: blackhole, unreachable, prohibit.
    Unreachable,
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// Why a packet was dropped. Each has a counter, shown by `tandemgw status`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])* $variant,)* }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)*];

            /// The name that the operator sees.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)* }
            }

            /// Its meaning, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),*).trim_ascii(),)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers say, or too short to have any. An IPv6 packet whose extension
    /// headers lead beyond its end does not get here: the kernel drops it at the barrier's ingress
    /// hook, and counts it as `Ip6InHdrErrors` (`nstat`).
    Truncated = "truncated",
    /// A header field has a value that no sender may use.
    Malformed = "malformed",
    /// A wrong transport checksum, in a packet that would change a session's state.
    BadChecksum = "bad-checksum",
    /// An address that can't be a source or destination here (RFC 6890), or a source route.
    Martian = "martian",
    /// An IPv6 routing header that is of type 0 (RFC 5095), refused by the port, or addressed to
    /// the gateway.
    RoutingHeader = "routing-header",
    /// The source belongs to another port than the one it came from (RFC 3704).
    SpoofedSource = "spoofed-source",
    /// Multicast, broadcast or link-local: not forwarded.
    NotForwardable = "not-forwardable",
    /// No policy accepts it.
    NoPolicy = "no-policy",
    /// A policy with action `drop`.
    PolicyDrop = "policy-drop",
    /// A policy with action `reject`.
    PolicyReject = "policy-reject",
    /// The kernel has no route to the destination.
    NoRoute = "no-route",
    /// The route leads out of an interface that is not a port.
    NotAPort = "not-a-port",
    /// The interface that the packet would leave by is down.
    PortDown = "port-down",
    /// For a virtual address of ours on which nothing listens.
    NoListener = "no-listener",
    /// A TCP segment that does not belong to a session and can't open one.
    TcpNoSession = "tcp-no-session",
    /// A combination of TCP flags that no stack sends.
    TcpFlags = "tcp-flags",
    /// A TCP segment outside the window (RFC 9293, section 3.10.7.4; RFC 5961).
    TcpWindow = "tcp-window",
    /// A SYN, or an answer to one, in a session that is past its handshake (RFC 5961, section 4).
    TcpUnexpectedSyn = "tcp-unexpected-syn",
    /// An ICMP error about a packet that no session sent.
    IcmpUnrelated = "icmp-unrelated",
    /// An ICMP message other than queries and errors.
    IcmpUnsupported = "icmp-unsupported",
    /// An echo request to a virtual address, beyond the budget for replies.
    EchoLimit = "echo-limit",
    /// The session table is full, no source holds many more sessions than this one, and no
    /// unreplied session could be removed early.
    TableFull = "table-full",
    /// The hosts of an IPv6 network have too many half-open sessions together.
    HalfOpenLimit = "half-open-limit",
    /// The source has reached its limit of sessions or external ports.
    SourceLimit = "source-limit",
    /// For a host on a link that has never answered, while this sender, or all senders together,
    /// already wait for too many such hosts.
    NeighborLimit = "neighbor-limit",
    /// No free port or identifier to translate to.
    NatExhausted = "nat-exhausted",
    /// Bigger than the MTU towards the destination, and must not be fragmented; the sender was
    /// notified.
    TooBig = "too-big",
    /// A fragment that overlaps another (RFC 5722; RFC 1858).
    FragmentOverlap = "fragment-overlap",
    /// A fragment whose first fragment did not come in time, or for which there was no room.
    FragmentOrphan = "fragment-orphan",
    /// The hop limit expired here; the sender was notified.
    HopLimit = "hop-limit",
    /// This unit is not primary for the address.
    NotPrimary = "not-primary",
    /// A peer has passed it on to this unit, which is not primary for it either: it goes to no
    /// third one.
    PassedOnTwice = "passed-on-twice",
    /// For another unit, and there were too many such packets, or no connection to that unit.
    NotPassedOn = "not-passed-on",
    /// With `pickup-guarantee = "strict"`: the peers did not get the session in time.
    NotReplicated = "not-replicated",
    /// A repetition of the session's first packet, which still waits for the peers.
    WaitsForPeer = "waits-for-peer",
    /// A frame by which units recognise each other that no peer has signed, or that is old.
    BadHeartbeat = "bad-heartbeat",
    /// Such a frame, beyond the number that a port accepts per second.
    HeartbeatLimit = "heartbeat-limit",
    /// Its session ended while the packet was being handled.
    SessionGone = "session-gone",
    /// The kernel refused the packet.
    WriteFailed = "write-failed",
    /// Multicast from a source whose route leads by another port than the one it came in by.
    ReversePath = "reverse-path",
    /// Multicast that a policy would accept, and that no host on its ports wants.
    NoMember = "no-member",
    /// Multicast of a new source or to a new group, beyond the sessions that a port may have.
    MulticastLimit = "multicast-limit",
    /// A packet of IGMP or MLD that is malformed, or was not sent by a host or router of this link.
    MembershipMalformed = "membership-malformed",
    /// A packet of IGMP or MLD, beyond the number that a port accepts per second.
    MembershipRate = "membership-rate",
    /// The hosts of the port want too many groups.
    MembershipGroups = "membership-groups",
    /// The hosts of the port name too many sources, of the group or in total.
    MembershipSources = "membership-sources",
    /// The host wants too many groups that no other host wanted before.
    MembershipHost = "membership-host",
}
