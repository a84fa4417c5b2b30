//! Multicast: who wants which group, on which port.
//!
//! [`message`] reads and writes the packets of IGMP and MLD, which differ in their form only:
//! everything beyond it is the same for both families. [`membership`] is the router side of one
//! port and family: it asks, listens to the answers, and knows what hosts there want. [`host`] is
//! the host side towards the senders: it wants what the hosts want (RFC 4605). [`record`] is what
//! other units are told of all that.

pub mod host;
pub mod membership;
pub mod message;
pub mod record;

use crate::flow::{Addr, Family};
use crate::packet::neighbor::Mac;

/// The Ethernet address of the group `addr` (RFC 1112, section 6.4; RFC 2464, section 7).
pub fn ethernet(addr: &Addr) -> Mac {
    let [a, b, c, d] = addr.last4();
    match addr.family() {
        Family::V4 => [1, 0, 0x5e, b & 0x7f, c, d],
        Family::V6 => [0x33, 0x33, a, b, c, d],
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn ethernet_addresses_as_in_the_rfcs() {
        assert_eq!(ethernet(&addr("239.129.2.3")), [1, 0, 0x5e, 1, 2, 3]);
        assert_eq!(ethernet(&addr("ff05::1:3")), [0x33, 0x33, 0, 1, 0, 3]);
    }
}
