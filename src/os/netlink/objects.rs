//! Links, addresses, routes and rules in messages from and to the kernel.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::IpProtocol;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoMacVlan, InfoMacVtap, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    MacVlanMode,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteScope,
    RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};

use tandemgw_core::event::LinkState;
use tandemgw_core::flow::{Family, Protocol};

/// A network interface, as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLink {
    /// The number that the kernel knows it by.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Administratively up (`IFF_UP`).
    pub admin_up: bool,
    /// With carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// Without ARP and neighbour discovery (`IFF_NOARP`).
    pub no_arp: bool,
    /// A loopback device.
    pub loopback: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Hardware address; zero if it has none, or one of another length.
    pub mac: [u8; 6],
    /// Index of the bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// Index of the interface whose packets it takes, all of them: it is a macvlan or macvtap in
    /// mode passthru.
    pub takes: Option<u32>,
    /// Packets that it queues to send (`txqueuelen`).
    pub queue_length: u32,
    /// The group that it belongs to, by which rules know it; 0 if nobody has set one.
    pub group: u32,
}

impl KernelLink {
    /// The part that the core needs.
    pub fn state(&self) -> LinkState {
        LinkState {
            up: self.admin_up && self.carrier,
            mtu: self.mtu,
            mac: self.mac,
        }
    }

    pub(in crate::os) fn from_message(message: &LinkMessage) -> Option<KernelLink> {
        let flags = message.header.flags;
        let mut link = KernelLink {
            index: message.header.index,
            name: String::new(),
            admin_up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            no_arp: flags.contains(LinkFlags::Noarp),
            loopback: flags.contains(LinkFlags::Loopback),
            mtu: 0,
            mac: [0; 6],
            master: None,
            takes: None,
            queue_length: 0,
            group: 0,
        };
        let (mut lower, mut is_passthru) = (None, false);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(master) => link.master = Some(*master),
                LinkAttribute::Address(mac) => {
                    link.mac = mac.as_slice().try_into().unwrap_or([0; 6]);
                }
                LinkAttribute::TxQueueLen(packets) => link.queue_length = *packets,
                LinkAttribute::Group(group) => link.group = *group,
                LinkAttribute::Link(index) => lower = Some(*index),
                LinkAttribute::LinkInfo(info) => is_passthru = info.iter().any(is_passthru_of),
                _ => {}
            }
        }
        link.takes = lower.filter(|_| is_passthru);
        (!link.name.is_empty()).then_some(link)
    }
}

fn is_passthru_of(info: &LinkInfo) -> bool {
    use InfoData::{MacVlan, MacVtap};
    const MODE: MacVlanMode = MacVlanMode::Passthrough;
    match info {
        LinkInfo::Data(MacVlan(data)) => data.contains(&InfoMacVlan::Mode(MODE)),
        LinkInfo::Data(MacVtap(data)) => data.contains(&InfoMacVtap::Mode(MODE)),
        _ => false,
    }
}

/// An address that the kernel has on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub link: u32,
    /// The address.
    pub addr: IpAddr,
    /// The length of its network's prefix.
    pub prefix_len: u8,
    /// Who has added it, as far as the kernel knows (`IFA_PROTO`, Linux 5.18); 0 if it does not.
    pub protocol: u8,
}

impl Address {
    pub(in crate::os) fn from_message(message: &AddressMessage) -> Option<Address> {
        let mut local = None;
        let mut address = None;
        let mut protocol = 0;
        for attribute in &message.attributes {
            match attribute {
                // On a point-to-point link, IFA_ADDRESS is the address of the other end.
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Protocol(by) => protocol = u8::from(*by),
                _ => {}
            }
        }
        Some(Address {
            link: message.header.index,
            addr: local.or(address)?,
            prefix_len: message.header.prefix_len,
            protocol,
        })
    }
}

/// One hop of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface.
    pub link: u32,
    /// The router; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Its share of a multipath route, relative to the others; at least 1.
    pub weight: u32,
}

impl NextHop {
    fn gateway_attribute(self) -> Option<RouteAttribute> {
        Some(RouteAttribute::Gateway(self.gateway?.into()))
    }

    /// As a part of a multipath route.
    fn part(self) -> RouteNextHop {
        let mut part = RouteNextHop::default();
        part.interface_index = self.link;
        // One less than the weight (rtnetlink(7)), which the kernel bounds as well.
        part.hops = u8::try_from(self.weight.saturating_sub(1)).unwrap_or(u8::MAX);
        part.attributes.extend(self.gateway_attribute());
        part
    }
}

/// A route of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    /// Destination network.
    pub destination: IpNet,
    /// Routing table.
    pub table: u32,
    /// Metric (IPv4) or priority (IPv6): the lowest wins.
    pub metric: u32,
    /// Who made it (`rtm_protocol`).
    pub protocol: u8,
    /// Unicast, blackhole and so on.
    pub kind: RouteType,
    /// Type of service that it is for; 0 means any.
    pub tos: u8,
    /// A cached copy of another route (`RTM_F_CLONED`).
    pub cloned: bool,
    /// The MTU that the route sets.
    pub mtu: Option<u32>,
    /// The hop limit of what this machine itself sends by it.
    pub hop_limit: Option<u32>,
    /// It encapsulates packets (`RTA_ENCAP`), or is for packets from some sources only
    /// (`RTA_SRC`).
    pub is_special: bool,
    /// Where it leads; several if it is a multipath route, none if it leads nowhere.
    pub hops: Vec<NextHop>,
}

impl KernelRoute {
    /// A route to all that is on the link of an interface.
    pub fn on_link(destination: IpNet, table: u32, metric: u32, protocol: u8, link: u32) -> Self {
        let hop = NextHop {
            link,
            gateway: None,
            weight: 1,
        };
        KernelRoute {
            destination,
            table,
            metric,
            protocol,
            kind: RouteType::Unicast,
            tos: 0,
            cloned: false,
            mtu: None,
            hop_limit: None,
            is_special: false,
            hops: vec![hop],
        }
    }

    /// A route that discards.
    pub fn blackhole(destination: IpNet, table: u32, metric: u32, protocol: u8) -> Self {
        KernelRoute {
            kind: RouteType::BlackHole,
            hops: Vec::new(),
            ..Self::on_link(destination, table, metric, protocol, 0)
        }
    }

    /// Whether it leads only out of `link`.
    pub fn leads_only_to(&self, link: u32) -> bool {
        matches!(self.hops.as_slice(), [hop] if hop.link == link)
    }

    pub(in crate::os) fn from_message(message: &RouteMessage) -> Option<KernelRoute> {
        let header = &message.header;
        let mut destination = default_network(family_of(header.address_family)?).addr();
        let mut single = NextHop {
            link: 0,
            gateway: None,
            weight: 1,
        };
        let mut hops = Vec::new();
        let mut table = u32::from(header.table);
        let mut metric = 0;
        let (mut mtu, mut hop_limit) = (None, None);
        let mut is_special = header.source_prefix_length > 0;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip_of(address)?,
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(link) => single.link = *link,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => {
                    single.gateway = gateway_of(attribute);
                }
                RouteAttribute::Encap(_) => is_special = true,
                RouteAttribute::MultiPath(paths) => {
                    let is_encap = |it: &RouteAttribute| matches!(it, RouteAttribute::Encap(_));
                    let mut all = paths.iter().flat_map(|path| &path.attributes);
                    is_special |= all.any(is_encap);
                    hops.extend(paths.iter().map(|path| NextHop {
                        link: path.interface_index,
                        gateway: path.attributes.iter().find_map(gateway_of),
                        weight: u32::from(path.hops) + 1,
                    }));
                }
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(bytes) => mtu = Some(*bytes),
                            RouteMetric::Hoplimit(hops) => hop_limit = Some(*hops),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if hops.is_empty() && single.link != 0 {
            hops.push(single);
        }
        Some(KernelRoute {
            destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
            table,
            metric,
            protocol: header.protocol.into(),
            kind: header.kind,
            tos: header.tos,
            cloned: header.flags.contains(RouteFlags::Cloned),
            mtu,
            hop_limit,
            is_special,
            hops,
        })
    }

    /// The request for a route.
    pub(super) fn to_message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(net_family(&self.destination));
        message.header.destination_prefix_length = self.destination.prefix_len();
        message.header.protocol = self.protocol.into();
        message.header.kind = self.kind;
        // `RT_TABLE_UNSPEC` in the header: the attribute holds numbers above 255 as well.
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.table));
        attributes.push(RouteAttribute::Priority(self.metric));
        if self.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.addr().into()));
        }
        let metric = self.hop_limit.map(RouteMetric::Hoplimit);
        attributes.extend(metric.map(|metric| RouteAttribute::Metrics(vec![metric])));
        // A blackhole of IPv6 is reported with the loopback device, which must not be sent back.
        if self.kind == RouteType::Unicast {
            let is_direct = self.hops.iter().all(|hop| hop.gateway.is_none());
            message.header.scope = match is_direct {
                true => RouteScope::Link,
                false => RouteScope::Universe,
            };
            match self.hops.as_slice() {
                [] => {}
                [hop] => {
                    attributes.push(RouteAttribute::Oif(hop.link));
                    attributes.extend(hop.gateway_attribute());
                }
                several => {
                    let hops = several.iter().map(|hop| hop.part()).collect();
                    attributes.push(RouteAttribute::MultiPath(hops));
                }
            }
        }
        message
    }
}

impl fmt::Display for KernelRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == RouteType::BlackHole {
            f.write_str("blackhole ")?;
        }
        write!(f, "{}", self.destination)?;
        for hop in &self.hops {
            match hop.gateway {
                Some(gateway) => write!(f, " via {gateway} dev #{}", hop.link)?,
                None => write!(f, " dev #{}", hop.link)?,
            }
        }
        write!(f, " table {} metric {}", self.table, self.metric)
    }
}

/// A policy routing rule: packets from an interface are looked up in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The family whose packets it is for.
    pub family: Family,
    /// Rules apply in the order of this number.
    pub priority: u32,
    /// The interface that the packet came in by.
    pub interface: Option<String>,
    /// The table to look up; 0 if the rule does something else.
    pub table: u32,
    /// Who made it (`FRA_PROTOCOL`).
    pub protocol: u8,
    /// The mark that the packet has, if that matters.
    pub mark: Option<u32>,
    /// The messages of ICMP that it is for, if only for some.
    pub icmp: Option<IcmpKinds>,
    /// It does not count where it leads to an interface of that group (`suppress_ifgroup`).
    pub but_for_group: Option<u32>,
    /// It has conditions other than these, or an action other than a table.
    pub special: bool,
}

/// Messages of ICMP, or of ICMPv6: the first and the last of a range of numbers, each type * 256 +
/// code. To a rule these are ports of the destination, for the kernel keeps them in that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpKinds(pub u16, pub u16);

impl Rule {
    /// Leads what comes in by the interface to the table, whatever it is.
    pub(in crate::os) fn leading(
        family: Family,
        priority: u32,
        interface: Option<String>,
        table: u32,
        protocol: u8,
    ) -> Rule {
        Rule {
            family,
            priority,
            interface,
            table,
            protocol,
            mark: None,
            icmp: None,
            but_for_group: None,
            special: false,
        }
    }

    pub(in crate::os) fn from_message(message: &RuleMessage) -> Option<Rule> {
        let header = &message.header;
        let family = family_of(header.family)?;
        let mut rule = Rule::leading(family, 0, None, u32::from(header.table), 0);
        rule.special = header.action != RuleAction::ToTable || header.tos != 0;
        let (mut protocol, mut ports) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Iifname(name) => rule.interface = Some(name.clone()),
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
                RuleAttribute::FwMark(mark) => rule.mark = Some(*mark),
                RuleAttribute::FwMask(u32::MAX) => {}
                RuleAttribute::IpProtocol(number) => protocol = Some(*number),
                RuleAttribute::DestinationPortRange(range) => ports = Some(*range),
                // From Linux 6.15 on, where the range is a single number.
                RuleAttribute::Other(other)
                    if other.kind() == FRA_DPORT_MASK && is_all_ones(other) => {}
                RuleAttribute::SuppressIfGroup(group) => rule.but_for_group = Some(*group),
                // "-1": reported for each rule, without effect.
                RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
                _ => rule.special = true,
            }
        }
        match (protocol, ports) {
            (None, None) => {}
            (Some(protocol), Some(ports)) if protocol == icmp_of(rule.family) => {
                rule.icmp = Some(IcmpKinds(ports.start, ports.end));
            }
            _ => rule.special = true,
        }
        Some(rule)
    }

    pub(super) fn to_message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = address_family(self.family);
        message.header.action = RuleAction::ToTable;
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Table(self.table));
        attributes.push(RuleAttribute::Priority(self.priority));
        attributes.push(RuleAttribute::Protocol(self.protocol.into()));
        if let Some(name) = &self.interface {
            attributes.push(RuleAttribute::Iifname(name.clone()));
        }
        if let Some(mark) = self.mark {
            attributes.push(RuleAttribute::FwMark(mark));
            attributes.push(RuleAttribute::FwMask(u32::MAX));
        }
        let suppress = self.but_for_group.map(RuleAttribute::SuppressIfGroup);
        attributes.extend(suppress);
        if let Some(IcmpKinds(start, end)) = self.icmp {
            attributes.push(RuleAttribute::IpProtocol(icmp_of(self.family)));
            let range = RulePortRange { start, end };
            attributes.push(RuleAttribute::DestinationPortRange(range));
        }
        message
    }

    /// Whether more decides than the interface that a packet has come in by.
    pub fn is_choosy(&self) -> bool {
        self.mark.is_some() || self.icmp.is_some() || self.but_for_group.is_some()
    }
}

/// `FRA_DPORT_MASK` (linux/fib_rules.h).
const FRA_DPORT_MASK: u16 = 29;

/// Whether a mask takes nothing away.
fn is_all_ones(mask: &DefaultNla) -> bool {
    let mut bits = vec![0; mask.value_len()];
    mask.emit_value(&mut bits);
    bits.iter().all(|byte| *byte == u8::MAX)
}

/// The protocol of control messages of a family.
fn icmp_of(family: Family) -> IpProtocol {
    IpProtocol::from(match family {
        Family::V4 => Protocol::ICMP.0,
        Family::V6 => Protocol::ICMPV6.0,
    })
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        write!(f, "{}: iif ", self.priority)?;
        f.write_str(self.interface.as_deref().unwrap_or("any"))?;
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark:#x}")?;
        }
        if let Some(IcmpKinds(start, end)) = self.icmp {
            let name = if self.family == Family::V4 { "" } else { "v6" };
            write!(f, " icmp{name} {}/{}", start >> 8, start & 0xff)?;
            if start != end {
                write!(f, " to {}/{}", end >> 8, end & 0xff)?;
            }
        }
        write!(f, " lookup {}", self.table)?;
        if let Some(group) = self.but_for_group {
            write!(f, " suppress_ifgroup {group}")?;
        }
        write!(f, " (IPv{family})")
    }
}

/// The request for a dump of the routes of a family in a table. Kernels before 4.20 dump all
/// tables.
pub(in crate::os) fn route_dump(family: Family, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.attributes.push(RouteAttribute::Table(table));
    message
}

fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip_of(address),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// The network that contains all addresses of a family.
pub(in crate::os) fn default_network(family: Family) -> IpNet {
    match family {
        Family::V4 => ipnet::Ipv4Net::default().into(),
        Family::V6 => ipnet::Ipv6Net::default().into(),
    }
}

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn family_of(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}

/// The family of a network.
pub(in crate::os) fn net_family(network: &IpNet) -> Family {
    match network {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}
