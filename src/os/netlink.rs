//! Requests to the kernel's routing (rtnetlink(7)): links, addresses, routes and rules.
//!
//! [`Netlink`] is a blocking socket: each call sends one request and waits for its answer, which the
//! kernel gives at once. It serves the start, the end and the repair of the steering; nothing in the
//! path of a packet or of a takeover uses it. [`super::monitor`] listens to changes.

use std::fmt;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL,
    NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope,
    RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::event::LinkState;
use crate::flow::Family;

/// The number of the main routing table (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// Bytes of one read. The kernel fills dumps up to 32 KiB (`NLMSG_GOODSIZE` aside), and one
/// notification is smaller than that.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// How often a dump is begun again because the kernel's state changed meanwhile.
const DUMP_ATTEMPTS: u32 = 5;

/// A network interface, as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The number that the kernel knows it by.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Administratively up (`IFF_UP`).
    pub admin_up: bool,
    /// With carrier (`IFF_LOWER_UP`).
    pub carrier: bool,
    /// A loopback device.
    pub loopback: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Hardware address; zero if it has none, or one of another length.
    pub mac: [u8; 6],
    /// Index of the bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
}

impl Link {
    /// What the core wants to know of it.
    pub fn state(&self) -> LinkState {
        LinkState {
            up: self.admin_up && self.carrier,
            mtu: self.mtu,
            mac: self.mac,
        }
    }

    pub(super) fn from_message(message: &LinkMessage) -> Option<Link> {
        let flags = message.header.flags;
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            admin_up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            loopback: flags.contains(LinkFlags::Loopback),
            mtu: 0,
            mac: [0; 6],
            master: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(master) => link.master = Some(*master),
                LinkAttribute::Address(mac) => {
                    link.mac = mac.as_slice().try_into().unwrap_or([0; 6]);
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
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
}

impl Address {
    pub(super) fn from_message(message: &AddressMessage) -> Option<Address> {
        let mut local = None;
        let mut address = None;
        for attribute in &message.attributes {
            match attribute {
                // On a point-to-point link, IFA_ADDRESS is the address of the other end.
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                _ => {}
            }
        }
        Some(Address {
            link: message.header.index,
            addr: local.or(address)?,
            prefix_len: message.header.prefix_len,
        })
    }
}

/// One of the ways that a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface.
    pub link: u32,
    /// The router; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
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
    /// Where it leads; several if it is a multipath route, none if it leads nowhere.
    pub hops: Vec<NextHop>,
}

impl KernelRoute {
    /// A route to all that is on the link of an interface.
    pub fn on_link(destination: IpNet, table: u32, metric: u32, protocol: u8, link: u32) -> Self {
        let hop = NextHop {
            link,
            gateway: None,
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

    /// Whether it leads out of `link` and to nothing else.
    pub fn leads_only_to(&self, link: u32) -> bool {
        matches!(self.hops.as_slice(), [hop] if hop.link == link)
    }

    pub(super) fn from_message(message: &RouteMessage) -> Option<KernelRoute> {
        let header = &message.header;
        let mut destination = default_network(family_of(header.address_family)?).addr();
        let mut single = NextHop {
            link: 0,
            gateway: None,
        };
        let mut hops = Vec::new();
        let mut table = u32::from(header.table);
        let mut metric = 0;
        let mut mtu = None;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => destination = ip_of(address)?,
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Oif(link) => single.link = *link,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => {
                    single.gateway = gateway_of(attribute);
                }
                RouteAttribute::MultiPath(paths) => hops.extend(paths.iter().map(|path| NextHop {
                    link: path.interface_index,
                    gateway: path.attributes.iter().find_map(gateway_of),
                })),
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
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
            hops,
        })
    }

    /// The request for a route with at most one hop, which is all that this program makes.
    fn to_message(&self) -> RouteMessage {
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
        // A blackhole of IPv6 is reported with the loopback device, which must not be sent back.
        if self.kind == RouteType::Unicast
            && let Some(hop) = self.hops.first()
        {
            message.header.scope = RouteScope::Link;
            attributes.push(RouteAttribute::Oif(hop.link));
            if let Some(gateway) = hop.gateway {
                message.header.scope = RouteScope::Universe;
                attributes.push(RouteAttribute::Gateway(gateway.into()));
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

/// A policy routing rule: what comes in by an interface is looked up in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The family whose packets it is for.
    pub family: Family,
    /// Rules are asked in the order of this number.
    pub priority: u32,
    /// The interface that the packet came in by.
    pub interface: Option<String>,
    /// The table that is asked; 0 if the rule does something else.
    pub table: u32,
    /// Who made it (`FRA_PROTOCOL`).
    pub protocol: u8,
    /// It has conditions beside the interface, or an action other than a table.
    pub special: bool,
}

impl Rule {
    pub(super) fn from_message(message: &RuleMessage) -> Option<Rule> {
        let header = &message.header;
        let mut rule = Rule {
            family: family_of(header.family)?,
            priority: 0,
            interface: None,
            table: u32::from(header.table),
            protocol: 0,
            special: header.action != RuleAction::ToTable || header.tos != 0,
        };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Iifname(name) => rule.interface = Some(name.clone()),
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Protocol(protocol) => rule.protocol = (*protocol).into(),
                // "-1": reported on each rule, and without effect.
                RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
                _ => rule.special = true,
            }
        }
        Some(rule)
    }

    fn to_message(&self) -> RuleMessage {
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
        message
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        write!(f, "{}: iif ", self.priority)?;
        f.write_str(self.interface.as_deref().unwrap_or("any"))?;
        write!(f, " lookup {} (IPv{family})", self.table)
    }
}

/// A request that the kernel refused, or that could not be made.
#[derive(Debug)]
pub struct NetlinkError {
    /// What was asked for, as in "can't add the route".
    pub operation: &'static str,
    /// What it was about.
    pub object: String,
    /// The error number.
    pub source: io::Error,
    /// The kernel's own words, where it has any (`NLMSGERR_ATTR_MSG`).
    pub detail: Option<String>,
}

impl NetlinkError {
    pub(super) fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "can't {} {}: {}",
            self.operation, self.object, self.source
        )?;
        match &self.detail {
            Some(detail) => write!(f, " (the kernel says: {detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for NetlinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// A socket for requests to the kernel's routing.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens the socket, in the network namespace of the calling thread.
    pub fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Comforts of newer kernels (4.12 and 4.20): better messages, and dumps filtered over there.
        for result in [
            socket.set_ext_ack(true),
            socket.set_cap_ack(true),
            socket.set_netlink_get_strict_chk(true),
        ] {
            if let Err(error) = result {
                log::debug!("netlink socket option: {error}");
            }
        }
        Ok(Netlink {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump("links", &request, |message| match message {
            RouteNetlinkMessage::NewLink(link) => Link::from_message(&link),
            _ => None,
        })
    }

    /// The interface called `name`, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let request = RouteNetlinkMessage::GetLink(message);
        let mut found = None;
        let answer = self.exchange("find the interface", &name, request, NLM_F_ACK, |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                found = Link::from_message(&link);
            }
        });
        match answer {
            Ok(_) => Ok(found),
            Err(error) if error.is(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets an interface administratively up.
    pub fn set_link_up(&mut self, link: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        let request = RouteNetlinkMessage::SetLink(message);
        self.change("set up the interface", &format!("#{link}"), request, 0)
    }

    /// Sets the length of an interface's transmit queue, in packets.
    pub fn set_queue_length(&mut self, link: u32, packets: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes.push(LinkAttribute::TxQueueLen(packets));
        let request = RouteNetlinkMessage::SetLink(message);
        let object = format!("of interface #{link} to {packets}");
        self.change("set the queue length", &object, request, 0)
    }

    /// All addresses of this machine.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump("addresses", &request, |message| match message {
            RouteNetlinkMessage::NewAddress(address) => Address::from_message(&address),
            _ => None,
        })
    }

    /// The routes of one family in `table`, of those only that `protocol` made if it is not 0.
    pub fn routes(
        &mut self,
        family: Family,
        table: u32,
        protocol: u8,
    ) -> Result<Vec<KernelRoute>, NetlinkError> {
        let mut message = route_dump(family);
        message.header.protocol = protocol.into();
        message.attributes.push(RouteAttribute::Table(table));
        let request = RouteNetlinkMessage::GetRoute(message);
        // Kernels before 4.20 don't filter.
        let wanted = |route: &KernelRoute| {
            route.table == table && (protocol == 0 || route.protocol == protocol)
        };
        let routes = self.dump("routes", &request, |message| match message {
            RouteNetlinkMessage::NewRoute(route) => {
                KernelRoute::from_message(&route).filter(wanted)
            }
            _ => None,
        });
        match routes {
            // The kernel makes a table with its first route.
            Err(error) if error.is(libc::ENOENT) => Ok(Vec::new()),
            routes => routes,
        }
    }

    /// Adds a route. It is an error if there is one of the same destination, table and metric.
    pub fn add_route(&mut self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewRoute(route.to_message());
        self.change("add the route", route, request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Replaces the route of the same destination, table and metric in one step, or adds it.
    pub fn replace_route(&mut self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewRoute(route.to_message());
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change("replace the route", route, request, flags)
    }

    /// Removes a route; that it is gone already is no error.
    pub fn remove_route(&mut self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelRoute(route.to_message());
        let gone = [libc::ESRCH, libc::ENOENT, libc::ENODEV];
        self.remove("remove the route", route, request, &gone)
    }

    /// The rules of one family.
    pub fn rules(&mut self, family: Family) -> Result<Vec<Rule>, NetlinkError> {
        let mut message = RuleMessage::default();
        message.header.family = address_family(family);
        let request = RouteNetlinkMessage::GetRule(message);
        self.dump("rules", &request, |message| match message {
            RouteNetlinkMessage::NewRule(rule) => Rule::from_message(&rule),
            _ => None,
        })
    }

    /// Adds a rule.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewRule(rule.to_message());
        self.change("add the rule", rule, request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a rule; that it is gone already is no error.
    pub fn remove_rule(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelRule(rule.to_message());
        self.remove("remove the rule", rule, request, &[libc::ENOENT])
    }

    fn remove(
        &mut self,
        operation: &'static str,
        object: &dyn fmt::Display,
        request: RouteNetlinkMessage,
        gone: &[i32],
    ) -> Result<(), NetlinkError> {
        match self.change(operation, object, request, 0) {
            Err(error) if gone.iter().any(|errno| error.is(*errno)) => Ok(()),
            result => result,
        }
    }

    fn change(
        &mut self,
        operation: &'static str,
        object: &dyn fmt::Display,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.exchange(operation, object, request, flags | NLM_F_ACK, |_| {})?;
        Ok(())
    }

    fn dump<T>(
        &mut self,
        object: &'static str,
        request: &RouteNetlinkMessage,
        parse: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut items = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            items.clear();
            let take = |message| items.extend(parse(message));
            if self.exchange("list the", &object, request.clone(), NLM_F_DUMP, take)? {
                break;
            }
        }
        Ok(items)
    }

    /// Sends a request and gives the messages of its answer to `take`. The result is false if the
    /// kernel's state changed during a dump, so that the answer may have gaps.
    fn exchange(
        &mut self,
        operation: &'static str,
        object: &dyn fmt::Display,
        request: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> Result<bool, NetlinkError> {
        let error = |source, detail| NetlinkError {
            operation,
            object: object.to_string(),
            source,
            detail,
        };
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = encode(request, flags, self.sequence);
        self.socket.send(&bytes, 0).map_err(|e| error(e, None))?;
        let mut consistent = true;
        loop {
            receive(&self.socket, &mut self.buffer).map_err(|e| error(e, None))?;
            for raw in Messages::new(&self.buffer) {
                if raw.sequence() != self.sequence {
                    continue;
                }
                consistent &= raw.flags() & NLM_F_DUMP_INTR == 0;
                let Ok(message) = raw.decode() else {
                    log::debug!("{operation} {object}: skipped a message that can't be decoded");
                    continue;
                };
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => take(message),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(consistent),
                    NetlinkPayload::Done(done) => {
                        let source = io::Error::from_raw_os_error(done.code.saturating_abs());
                        return Err(error(source, extended_ack(&done.extended_ack)));
                    }
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(consistent),
                    NetlinkPayload::Error(e) => {
                        return Err(error(e.to_io(), error_detail(raw.flags(), &e.header)));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The request for a dump of all routes of a family.
pub(super) fn route_dump(family: Family) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message
}

/// The bytes of a request.
pub(super) fn encode(request: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Reads one datagram of the kernel into `buffer`.
pub(super) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        buffer.reserve(RECEIVE_BUFFER);
        let (length, sender) = socket.recv_from(buffer, libc::MSG_TRUNC)?;
        if sender.port_number() != 0 {
            continue; // Not from the kernel.
        }
        if length > buffer.len() {
            return Err(io::Error::other("a netlink message longer than the buffer"));
        }
        return Ok(());
    }
}

/// The messages of one datagram.
pub(super) struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    pub(super) fn new(datagram: &'a [u8]) -> Self {
        Messages(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = RawMessage<'a>;

    fn next(&mut self) -> Option<RawMessage<'a>> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        if length < RawMessage::HEADER {
            return None;
        }
        let message = self.0.get(..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(RawMessage(message))
    }
}

/// A message with a complete header (`struct nlmsghdr`), not yet decoded.
#[derive(Clone, Copy)]
pub(super) struct RawMessage<'a>(&'a [u8]);

impl RawMessage<'_> {
    const HEADER: usize = 16;

    pub(super) fn flags(self) -> u16 {
        u16::from_ne_bytes([self.0[6], self.0[7]])
    }

    pub(super) fn sequence(self) -> u32 {
        u32::from_ne_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    pub(super) fn port(self) -> u32 {
        u32::from_ne_bytes([self.0[12], self.0[13], self.0[14], self.0[15]])
    }

    pub(super) fn decode(self) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
        NetlinkMessage::deserialize(self.0).map_err(io::Error::other)
    }
}

/// The kernel's words in an `NLMSG_ERROR`: they follow the header of the request (`NETLINK_CAP_ACK`).
fn error_detail(flags: u16, quoted: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    extended_ack(quoted.get(RawMessage::HEADER..)?)
}

fn extended_ack(attributes: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let message = NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(message.value());
    Some(text.trim_end_matches('\0').to_owned())
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

/// The network that holds all addresses of a family.
pub(super) fn default_network(family: Family) -> IpNet {
    match family {
        Family::V4 => ipnet::Ipv4Net::default().into(),
        Family::V6 => ipnet::Ipv6Net::default().into(),
    }
}

fn address_family(family: Family) -> AddressFamily {
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
pub(super) fn net_family(network: &IpNet) -> Family {
    match network {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}
