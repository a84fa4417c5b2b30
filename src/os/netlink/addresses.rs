//! Requests about addresses.

use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Address, Netlink, NetlinkError};

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

    /// Gives an interface a link-local address, which is valid at once (RFC 4862, section 5.4: no duplicates are
    /// looked for), and notes who has added it.
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
        self.add_address(link, addr.into(), message, NLM_F_CREATE | NLM_F_EXCL)
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

    /// Takes an address from its interface. It is not an error if it is gone already.
    pub fn remove_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        let Address {
            link,
            addr,
            prefix_len,
            ..
        } = *address;
        let request = RouteNetlinkMessage::DelAddress(message(link, addr, prefix_len));
        let object = format!("{addr} from interface #{link}");
        let gone = [libc::EADDRNOTAVAIL, libc::ENODEV];
        self.remove("remove the address", &object, request, &gone)
    }
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
