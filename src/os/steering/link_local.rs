//! The IPv6 link-local address of a port's interface.
//!
//! The kernel asks for neighbours from it (RFC 4861, section 7.2.2) and from nothing else, so
//! without one it reaches no host, however many virtual addresses there are. Somebody who removes
//! all addresses of an interface removes this one too, and the kernel makes no other.

use std::net::{IpAddr, Ipv6Addr};

use super::plan::PortPlan;
use super::{Family, KernelLink, Netlink, NetlinkError, PROTOCOL, net_family};
use crate::os::netlink::Address;
use tandemgw_core::in_quotes::InQuotes;

/// Gives the interface of a port a link-local address if it needs one and has none; returns it.
pub(super) fn ensure(
    netlink: &mut Netlink,
    port: &PortPlan,
    link: &KernelLink,
    addresses: &[Address],
) -> Option<Ipv6Addr> {
    let mut networks = port.networks.iter();
    let has_hosts = networks.any(|network| net_family(network) == Family::V6);
    let is_there = |own: &Address| {
        own.link == link.index
            && matches!(own.addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
    };
    if !has_hosts || !link.admin_up || addresses.iter().any(is_there) {
        return None;
    }
    let addr = of_mac(link.mac)?;
    match netlink.add_link_local(link.index, addr, PROTOCOL) {
        Ok(()) => Some(addr),
        Err(error) => {
            // Such as where the MTU is too small for IPv6.
            log::debug!(
                "link-local address not added interface={} error={}",
                port.interface,
                InQuotes(&error)
            );
            None
        }
    }
}

/// Removes what [`ensure`] has added to an interface.
pub(super) fn remove(netlink: &mut Netlink, link: u32) -> Result<(), NetlinkError> {
    let addresses = netlink.addresses_of(link)?;
    let mut ours = addresses.iter().filter(|own| own.protocol == PROTOCOL);
    ours.try_for_each(|own| netlink.remove_link_local(own))
}

/// As the kernel makes one of a hardware address (RFC 4291, appendix A); none for an interface
/// without.
fn of_mac(mac: [u8; 6]) -> Option<Ipv6Addr> {
    let [a, b, c, d, e, f] = mac;
    let addr = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    (mac != [0; 6]).then(|| addr.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_follows_from_the_hardware_address() {
        let made = of_mac([0x02, 0x42, 0xac, 0x11, 0, 2]);
        assert_eq!(made, Some("fe80::42:acff:fe11:2".parse().unwrap()));
        assert_eq!(of_mac([0; 6]), None);
    }
}
