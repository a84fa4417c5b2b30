//! Notifications that somebody has set a kernel parameter of an interface (`RTM_NEWNETCONF`,
//! linux/netconf.h). The netlink crate does not know them.

use netlink_packet_core::NlasIterator;

const RTM_NEWNETCONF: u16 = 80;
/// `struct netconfmsg`, one byte, and its padding.
const HEADER: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_RP_FILTER: u16 = 3;
const NETCONFA_IFINDEX_ALL: i32 = -1;
const NETCONFA_IFINDEX_DEFAULT: i32 = -2;

/// A parameter that was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ParameterSet {
    /// The number of the interface; none if it was set for all.
    pub(super) link: Option<u32>,
    /// The reverse path filter, if it was that; of IPv4.
    pub(super) rp_filter: Option<u32>,
}

/// Whether a message of that type reports a parameter.
pub(super) fn is_netconf(kind: u16) -> bool {
    (RTM_NEWNETCONF..=RTM_NEWNETCONF + 1).contains(&kind)
}

/// Reads what follows the header of a message; none if it is about interfaces to come, or about one
/// that is gone.
pub(super) fn parse(kind: u16, body: &[u8]) -> Option<ParameterSet> {
    if kind != RTM_NEWNETCONF {
        return None;
    }
    let (mut index, mut rp_filter) = (None, None);
    for attribute in NlasIterator::new(body.get(HEADER..)?).map_while(Result::ok) {
        let Some(value) = attribute
            .value()
            .first_chunk()
            .map(|b| i32::from_ne_bytes(*b))
        else {
            continue;
        };
        match attribute.kind() {
            NETCONFA_IFINDEX => index = Some(value),
            NETCONFA_RP_FILTER => rp_filter = u32::try_from(value).ok(),
            _ => {}
        }
    }
    let link = match index? {
        NETCONFA_IFINDEX_DEFAULT => return None,
        NETCONFA_IFINDEX_ALL => None,
        index => Some(u32::try_from(index).ok()?),
    };
    Some(ParameterSet { link, rp_filter })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As strace(1) shows it: family, interface, rp_filter.
    fn message(index: i32, kind: u16, value: u32) -> Vec<u8> {
        let mut bytes = vec![libc::AF_INET as u8, 0, 0, 0, 8, 0, 1, 0];
        bytes.extend(index.to_ne_bytes());
        bytes.extend([8, 0]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes
    }

    #[test]
    fn tells_which_interface_and_what() {
        let set = |link, rp_filter| Some(ParameterSet { link, rp_filter });
        assert_eq!(parse(80, &message(7, 3, 2)), set(Some(7), Some(2)));
        assert_eq!(parse(80, &message(-1, 3, 1)), set(None, Some(1)));
        assert_eq!(parse(80, &message(7, 2, 0)), set(Some(7), None));
        assert_eq!(parse(80, &message(-2, 3, 1)), None);
        assert_eq!(parse(81, &message(7, 3, 1)), None);
        for length in 0..20 {
            let _ = parse(80, &message(7, 3, 2)[..length]);
        }
        assert_eq!(parse(80, &[]), None);
    }
}
