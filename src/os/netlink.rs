//! Requests to the kernel's routing (rtnetlink(7)): links, addresses, routes and rules.
//!
//! [`Netlink`] is a blocking socket: each call sends one request and waits for its answer, which
//! the kernel gives at once. It serves the start, the end and the repair of the steering, and keeps
//! a standby's neighbours warm; nothing in the path of a packet or of a takeover uses it.
//! [`super::monitor`] listens to changes.

mod addresses;
mod filters;
mod ipsec;
mod objects;
mod traffic;
mod watch;
mod wire;

use std::ffi::CString;
use std::fmt;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NetlinkPayload,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use tandemgw_core::flow::Family;
use tandemgw_core::in_quotes::InQuotes;

pub use ipsec::{blocking_ipsec_policies, has_forwarding_ipsec_policies, has_ipsec_policies};
use objects::address_family;
pub use objects::{Address, IcmpKinds, KernelLink, KernelRoute, NextHop, Rule};
pub(super) use objects::{default_network, net_family, route_dump};
pub use traffic::{Queue, Traffic};
pub(super) use watch::{Watch, watched};
use wire::error_detail;
pub(super) use wire::{Answer, Messages, RawMessage, encode, extended_ack, receive};

/// The number of the main routing table (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// The number of the table of the machine's own addresses (`RT_TABLE_LOCAL`).
pub(super) const TABLE_LOCAL: u32 = 255;

/// How often a dump is begun again because the kernel's state changed meanwhile.
const DUMP_ATTEMPTS: u32 = 5;

/// A request that the kernel refused, or that could not be made.
#[derive(Debug)]
pub struct NetlinkError {
    /// The operation, as in "can't add the route".
    pub operation: &'static str,
    /// The object of the operation.
    pub object: String,
    /// The error number.
    pub source: io::Error,
    /// The kernel's own words, where it has any (`NLMSGERR_ATTR_MSG`).
    pub detail: Option<String>,
}

impl NetlinkError {
    /// For a socket that can't be opened.
    pub(super) fn on_open(source: io::Error) -> NetlinkError {
        NetlinkError {
            operation: "open",
            object: "a netlink socket".to_owned(),
            source,
            detail: None,
        }
    }

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
        // Features of newer kernels (4.12 and 4.20): better messages, and dumps filtered in the
        // kernel.
        for result in [
            socket.set_ext_ack(true),
            socket.set_cap_ack(true),
            socket.set_netlink_get_strict_chk(true),
        ] {
            if let Err(error) = result {
                log::debug!("netlink socket option not set error={}", InQuotes(&error));
            }
        }
        Ok(Netlink {
            socket,
            sequence: 0,
            buffer: Vec::new(),
        })
    }

    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<KernelLink>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump("links", &request, |message| match message {
            RouteNetlinkMessage::NewLink(link) => KernelLink::from_message(&link),
            _ => None,
        })
    }

    /// The interface called `name`, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<KernelLink>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.find_link(name, message)
    }

    fn find_link(
        &mut self,
        what: &str,
        message: LinkMessage,
    ) -> Result<Option<KernelLink>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(message);
        let mut found = None;
        let answer = self.exchange("find the interface", &what, request, NLM_F_ACK, |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                found = KernelLink::from_message(&link);
            }
        });
        match answer {
            Ok(_) => Ok(found),
            Err(error) if error.is(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface with that number, if there is one.
    pub fn link_at(&mut self, index: u32) -> Result<Option<KernelLink>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(&format!("#{index}"), message)
    }

    /// Gives an interface another name.
    pub fn rename_link(&mut self, link: u32, name: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes.push(LinkAttribute::IfName(name.into()));
        let request = RouteNetlinkMessage::SetLink(message);
        self.change("rename to", &name, request, 0)
    }

    /// Puts an interface into a bridge, a bond or a VRF; 0 takes it out.
    pub fn set_master(&mut self, link: u32, master: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes.push(LinkAttribute::Controller(master));
        let request = RouteNetlinkMessage::SetLink(message);
        self.change(
            "set the master of interface",
            &format!("#{link}"),
            request,
            0,
        )
    }

    /// Sets an interface administratively up.
    pub fn set_link_up(&mut self, link: u32) -> Result<(), NetlinkError> {
        self.set_link(link, LinkFlags::Up, "set up the interface")
    }

    /// Sets an interface administratively down.
    pub fn set_link_down(&mut self, link: u32) -> Result<(), NetlinkError> {
        self.set_link(link, LinkFlags::empty(), "set down the interface")
    }

    fn set_link(
        &mut self,
        link: u32,
        flags: LinkFlags,
        operation: &'static str,
    ) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.flags = flags;
        message.header.change_mask = LinkFlags::Up;
        let request = RouteNetlinkMessage::SetLink(message);
        self.change(operation, &format!("#{link}"), request, 0)
    }

    /// Sets the MTU of an interface, in bytes of IP.
    pub fn set_mtu(&mut self, link: u32, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        let request = RouteNetlinkMessage::SetLink(message);
        self.change(
            "set the MTU of the interface",
            &format!("#{link}"),
            request,
            0,
        )
    }

    /// Puts an interface into a group; 0 is that of all others.
    pub fn set_group(&mut self, link: u32, group: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes.push(LinkAttribute::Group(group));
        let request = RouteNetlinkMessage::SetLink(message);
        let object = format!("of interface #{link} to {group}");
        self.change("set the group", &object, request, 0)
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

    /// Has the kernel resolve the hardware address of a neighbour on a link, if it does not know
    /// it, as if there were a packet for it (`NTF_USE`). Does not wait for the result.
    pub fn resolve(&mut self, link: u32, addr: IpAddr) -> Result<(), NetlinkError> {
        let mut message = neighbour(link, addr);
        message.header.flags = NeighbourFlags::Use;
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.change("resolve the neighbour", &addr, request, NLM_F_CREATE)
    }

    /// Tells the kernel the hardware address of a neighbour on a link, as if it had answered
    /// (`NUD_REACHABLE`).
    pub fn set_neighbour(
        &mut self,
        link: u32,
        addr: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let mut message = neighbour(link, addr);
        message.header.state = NeighbourState::Reachable;
        let mac = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
        message.attributes.push(mac);
        let request = RouteNetlinkMessage::NewNeighbour(message);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change("set the neighbour", &addr, request, flags)
    }

    /// The route that a packet of this machine to `addr` would take; none if there is no route.
    pub fn route_to(&mut self, addr: IpAddr) -> Result<Option<NextHop>, NetlinkError> {
        match self.get_route(&addr, route_request(addr)) {
            Ok(found) => Ok(found.and_then(|route| route.hops.first().copied())),
            Err(error) if error.is(libc::ENETUNREACH) || error.is(libc::EHOSTUNREACH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The route that a packet would take which comes in from elsewhere.
    ///
    /// # Errors
    /// Also why the kernel would drop it: EXDEV for the reverse path filter, EINVAL for a
    /// blackhole, or for a source that can't be.
    pub(super) fn passage(&mut self, passage: &Passage) -> Result<KernelRoute, NetlinkError> {
        let mut message = route_request(passage.to);
        message.header.source_prefix_length = message.header.destination_prefix_length;
        let source = RouteAttribute::Source(route_address(passage.from));
        message
            .attributes
            .extend([source, RouteAttribute::Iif(passage.by)]);
        let found = self.get_route(&passage.to, message)?;
        found.ok_or_else(|| NetlinkError {
            operation: "find the route to",
            object: passage.to.to_string(),
            source: io::ErrorKind::NotFound.into(),
            detail: None,
        })
    }

    fn get_route(
        &mut self,
        object: &IpAddr,
        message: RouteMessage,
    ) -> Result<Option<KernelRoute>, NetlinkError> {
        let request = RouteNetlinkMessage::GetRoute(message);
        let mut found = None;
        let take = |message| {
            if let RouteNetlinkMessage::NewRoute(route) = message {
                found = KernelRoute::from_message(&route);
            }
        };
        self.exchange("find the route to", object, request, NLM_F_ACK, take)?;
        Ok(found)
    }

    /// Whether there is a neighbour with that address on a link; none if the kernel does not know
    /// yet.
    pub fn is_neighbour(&mut self, link: u32, addr: IpAddr) -> Result<Option<bool>, NetlinkError> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let all = self.dump("neighbours", &request, |message| match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) => neighbour_state(&neighbour, link, addr),
            _ => None,
        })?;
        Ok(all.first().and_then(|state| match state {
            NeighbourState::Incomplete | NeighbourState::None => None,
            state => Some(*state != NeighbourState::Failed),
        }))
    }

    /// The routes of one family in `table`; if `protocol` is not 0, only those that it made.
    pub fn routes(
        &mut self,
        family: Family,
        table: u32,
        protocol: u8,
    ) -> Result<Vec<KernelRoute>, NetlinkError> {
        let mut message = route_dump(family, table);
        message.header.protocol = protocol.into();
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
            // The kernel creates a table with its first route.
            Err(error) if error.is(libc::ENOENT) => Ok(Vec::new()),
            routes => routes,
        }
    }

    /// Adds a route. It is an error if there is one with the same destination, table and metric.
    pub fn add_route(&mut self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewRoute(route.to_message());
        self.change("add the route", route, request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Replaces the route with the same destination, table and metric atomically, or adds it.
    pub fn replace_route(&mut self, route: &KernelRoute) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewRoute(route.to_message());
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change("replace the route", route, request, flags)
    }

    /// Removes a route; it is not an error if it is gone already.
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

    /// Adds a rule that ignores default routes (`suppress_prefixlength 0`).
    pub fn add_rule_but_for_defaults(&mut self, rule: &Rule) -> Result<(), NetlinkError> {
        let mut message = rule.to_message();
        let attribute = RuleAttribute::SuppressPrefixLen(0);
        message.attributes.push(attribute);
        let request = RouteNetlinkMessage::NewRule(message);
        self.change("add the rule", rule, request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a rule; it is not an error if it is gone already.
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

    /// Sends a request and passes the messages of its answer to `take`. The result is false if the
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
                    log::debug!(
                        "netlink message skipped operation=\"{operation} {object}\" why=\"it can't be decoded\""
                    );
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

/// A packet that comes in from elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passage {
    /// Its source.
    pub(super) from: IpAddr,
    /// Its destination.
    pub(super) to: IpAddr,
    /// The interface that it comes in by.
    pub(super) by: u32,
}

fn route_request(to: IpAddr) -> RouteMessage {
    let (family, length) = match to {
        IpAddr::V4(_) => (Family::V4, 32),
        IpAddr::V6(_) => (Family::V6, 128),
    };
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.destination_prefix_length = length;
    let destination = RouteAttribute::Destination(route_address(to));
    message.attributes.push(destination);
    message
}

fn route_address(addr: IpAddr) -> RouteAddress {
    match addr {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

/// The number of the interface called `name`, if there is one.
pub fn interface_number(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the pointer is to a string that ends with a zero and outlives the call.
    let number = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (number != 0).then_some(number)
}

/// The name of the interface of that number, if there is one.
pub fn interface_name(number: u32) -> Option<String> {
    let mut name = [0; libc::IFNAMSIZ];
    // SAFETY: the kernel writes a name of at most IFNAMSIZ bytes, with its zero, into the array.
    let found = unsafe { libc::if_indextoname(number, name.as_mut_ptr()) };
    if found.is_null() {
        return None;
    }
    let bytes = name.iter().take_while(|c| **c != 0).map(|c| *c as u8);
    String::from_utf8(bytes.collect()).ok()
}

/// A message about the neighbour with that address on a link.
fn neighbour(link: u32, addr: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link;
    let (family, address) = match addr {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    let destination = NeighbourAttribute::Destination(address);
    message.attributes.push(destination);
    message
}

/// The state of the neighbour if it is the one on `link` with `addr`.
fn neighbour_state(message: &NeighbourMessage, link: u32, addr: IpAddr) -> Option<NeighbourState> {
    let is_address = |attribute: &NeighbourAttribute| match (attribute, addr) {
        (NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)), IpAddr::V4(own)) => {
            *ip == own
        }
        (NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)), IpAddr::V6(own)) => {
            *ip == own
        }
        _ => false,
    };
    let is_it = message.header.ifindex == link && message.attributes.iter().any(is_address);
    is_it.then_some(message.header.state)
}
