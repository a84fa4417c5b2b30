//! Requests about addresses.

use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Address, Netlink, NetlinkError, TABLE_LOCAL};

/// Seconds that a route to an address lasts which the kernel is about to make itself.
const ROUTE_LIFETIME: u32 = 60;

/// A worse metric than that of the kernel's own.
const ROUTE_METRIC: u32 = 1024;

impl Netlink {
    /// The addresses of one interface.
    pub fn addresses_of(&mut self, link: u32) -> Result<Vec<Address>, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = link;
        let request = RouteNetlinkMessage::GetAddress(message);
        self.dump("addresses", &request, |message| match message {
            // Kernels before 4.20 don't filter.
            RouteNetlinkMessage::NewAddress(address) => {
                Address::from_message(&address).filter(|address| address.link == link)
            }
            _ => None,
        })
    }

    /// All addresses of this machine.
    pub fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.dump("addresses", &request, |message| match message {
            RouteNetlinkMessage::NewAddress(address) => Address::from_message(&address),
            _ => None,
        })
    }

    /// Gives an interface an address that is valid only within this machine (scope `host`). It is
    /// not an error if it has the address already.
    pub fn add_host_address(&mut self, link: u32, addr: IpAddr) -> Result<(), NetlinkError> {
        let mut message = message(link, addr, if addr.is_ipv4() { 32 } else { 128 });
        message.header.scope = AddressScope::Host;
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.add_address(link, addr, message, flags)
    }

    /// Gives an interface a link-local address, which is valid at once (RFC 4862, section 5.4: no
    /// duplicates are looked for), and notes who has added it.
    ///
    /// The kernel makes the route to it in a thread of its own, and on a busy machine later than
    /// the first answer of a neighbour arrives, which is then lost. So a route of ours fills in,
    /// and ends by itself.
    pub fn add_link_local(
        &mut self,
        link: u32,
        addr: Ipv6Addr,
        protocol: u8,
    ) -> Result<(), NetlinkError> {
        let mut message = message(link, addr.into(), 64);
        message.header.scope = AddressScope::Link;
        message.attributes.extend([
            AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent),
            AddressAttribute::Protocol(AddressProtocol::from(protocol)),
        ]);
        self.add_address(link, addr.into(), message, NLM_F_CREATE | NLM_F_EXCL)?;
        let mut route = route_to_own(link, addr, protocol);
        let lifetime = RouteAttribute::Expires(ROUTE_LIFETIME);
        route.attributes.push(lifetime);
        let object = format!("local {addr} dev #{link}");
        let request = RouteNetlinkMessage::NewRoute(route);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change("add the route", &object, request, flags)
    }

    /// Takes an address that [`add_link_local`](Self::add_link_local) has added from its interface.
    /// It is not an error if it is gone already.
    pub fn remove_link_local(&mut self, address: &Address) -> Result<(), NetlinkError> {
        if let IpAddr::V6(addr) = address.addr {
            let route = route_to_own(address.link, addr, address.protocol);
            let object = format!("local {addr} dev #{}", address.link);
            let request = RouteNetlinkMessage::DelRoute(route);
            let gone = [libc::ESRCH, libc::ENODEV];
            self.remove("remove the route", &object, request, &gone)?;
        }
        self.remove_address(address)
    }

    /// Takes an address from its interface. It is not an error if it is gone already.
    pub fn remove_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        let message = message(address.link, address.addr, address.prefix_len);
        let request = RouteNetlinkMessage::DelAddress(message);
        let object = format!("{} from interface #{}", address.addr, address.link);
        let gone = [libc::EADDRNOTAVAIL, libc::ENODEV];
        self.remove("remove the address", &object, request, &gone)
    }

    fn add_address(
        &mut self,
        link: u32,
        addr: IpAddr,
        message: AddressMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::NewAddress(message);
        let object = format!("{addr} to interface #{link}");
        self.change("add the address", &object, request, flags)
    }
}

/// A route to an address of this machine itself, with a worse metric than the kernel's.
fn route_to_own(link: u32, addr: Ipv6Addr, protocol: u8) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet6;
    route.header.destination_prefix_length = 128;
    route.header.protocol = protocol.into();
    route.header.kind = RouteType::Local;
    route.attributes.extend([
        RouteAttribute::Table(TABLE_LOCAL),
        RouteAttribute::Priority(ROUTE_METRIC),
        RouteAttribute::Destination(addr.into()),
        RouteAttribute::Oif(link),
    ]);
    route
}

fn message(link: u32, addr: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match addr {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = prefix_len;
    message.header.index = link;
    let address = [
        AddressAttribute::Local(addr),
        AddressAttribute::Address(addr),
    ];
    message.attributes.extend(address);
    message
}
