//! The multicast groups to which Neighbor Solicitations for the addresses of a port are sent.
//!
//! Joining one waits for a kernel lock (`rtnl`) that others may hold for seconds, so this is not
//! done in the loop but by the thread of `upkeep`, with sockets of its own: a membership is of an
//! interface, not of the socket that receives.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;

use super::packet_socket::{interface_index, new_socket, set_option};
use tandemgw_core::in_quotes::InQuotes;

/// The multicast group that a Neighbor Solicitation for `address` is sent to (RFC 4291, section
/// 2.7.1): `ff02::1:ffXX:XXXX`.
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let (high, low) = (u16::from_be_bytes([0xff, a]), u16::from_be_bytes([b, c]));
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

/// The groups of one interface.
///
/// They are joined twice: for the interface's hardware filter, and in the kernel's IPv6, so that it
/// reports them (MLD, RFC 3810) and snooping switches deliver. If the kernel refuses the second,
/// for instance since it was built without IPv6, a warning says so. Dropping this leaves them.
#[derive(Debug)]
pub struct Groups {
    interface: String,
    groups: Vec<Ipv6Addr>,
    /// Holds the memberships in hardware.
    member: Option<OwnedFd>,
    /// Holds the memberships for which the kernel sends MLD reports.
    listener: Option<OwnedFd>,
    /// Whether the kernel has refused to report a group: it is not asked again.
    is_refused: bool,
    /// Groups yet to be joined (true) or left.
    pending: VecDeque<(Ipv6Addr, bool)>,
    /// Whether the interface is to receive frames to all groups.
    wants_all: bool,
    /// Whether `member` has asked for them.
    has_all: bool,
}

impl Groups {
    /// No groups of `interface`.
    pub fn new(interface: &str) -> Groups {
        Groups {
            interface: interface.to_owned(),
            groups: Vec::new(),
            member: None,
            listener: None,
            is_refused: false,
            pending: VecDeque::new(),
            wants_all: false,
            has_all: false,
        }
    }

    /// The name of the interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Joins all groups once more: the interface was recreated, and the memberships went with it.
    pub fn rejoin(&mut self) {
        let groups = std::mem::take(&mut self.groups);
        *self = Groups {
            wants_all: self.wants_all,
            ..Groups::new(&self.interface)
        };
        self.set(groups);
    }

    /// Whether there are groups to be joined or left.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty() || self.wants_all != self.has_all
    }

    /// Has the interface receive frames to all groups, since hosts may want any, or no longer;
    /// [`change_some`](Self::change_some) does it.
    pub fn receive_all(&mut self, wanted: bool) {
        self.wants_all = wanted;
    }

    /// Replaces the groups; [`change_some`](Self::change_some) joins and leaves them.
    pub fn set(&mut self, mut groups: Vec<Ipv6Addr>) {
        groups.sort_unstable();
        groups.dedup();
        let missing = |groups: &[Ipv6Addr], of: &[Ipv6Addr]| -> Vec<Ipv6Addr> {
            let is_missing = |group: &&Ipv6Addr| groups.binary_search(group).is_err();
            of.iter().filter(is_missing).copied().collect()
        };
        let new = missing(&self.groups, &groups);
        let gone = missing(&groups, &self.groups);
        self.pending
            .extend(new.into_iter().map(|group| (group, true)));
        self.pending
            .extend(gone.into_iter().map(|group| (group, false)));
        self.groups = groups;
    }

    /// Joins or leaves up to `most` groups, some 10 µs each, more if there are thousands; returns
    /// whether others remain.
    ///
    /// # Errors
    ///
    /// The kernel's error; then the remaining groups are given up.
    pub fn change_some(&mut self, most: usize) -> io::Result<bool> {
        if !self.is_pending() {
            return Ok(false);
        }
        let pending = std::mem::take(&mut self.pending);
        let index = interface_index(&self.interface)?;
        let member = match self.member.take() {
            Some(member) => member,
            // Protocol 0: it receives nothing.
            None => new_socket(libc::AF_PACKET, libc::SOCK_RAW)?,
        };
        let member = self.member.insert(member);
        if self.wants_all != self.has_all {
            self.has_all = self.wants_all;
            change_all(member, index, self.wants_all)?;
        }
        let (mut left, mut reports) = (pending, Vec::new());
        for (group, joins) in left.drain(..most.min(left.len())) {
            let operation = match joins {
                true => libc::PACKET_ADD_MEMBERSHIP,
                false => libc::PACKET_DROP_MEMBERSHIP,
            };
            match join_hardware(member, index, group, operation) {
                // The interface was recreated: what was joined went with it.
                Err(error) if !joins && error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                result => result?,
            }
            reports.push((group, joins));
        }
        for (group, joins) in reports {
            self.report(index, group, joins);
        }
        self.pending = left;
        Ok(!self.pending.is_empty())
    }

    /// Makes the kernel start or stop listening to `group`.
    fn report(&mut self, index: libc::c_int, group: Ipv6Addr, joins: bool) {
        if self.is_refused && joins {
            return;
        }
        // A refused group can't be left.
        if let Err(error) = self.try_to_report(index, group, joins)
            && !self.is_refused
        {
            self.is_refused = true;
            log::warn!(
                "mld reports off interface={} error={} \
                 effect=\"switches that snoop may not deliver neighbour solicitations\"",
                self.interface,
                InQuotes(&error)
            );
        }
    }

    fn try_to_report(
        &mut self,
        index: libc::c_int,
        group: Ipv6Addr,
        joins: bool,
    ) -> io::Result<()> {
        let listener = match &mut self.listener {
            Some(listener) => listener,
            none => none.insert(new_socket(libc::AF_INET6, libc::SOCK_DGRAM)?),
        };
        let request = libc::ipv6_mreq {
            ipv6mr_multiaddr: libc::in6_addr {
                s6_addr: group.octets(),
            },
            ipv6mr_interface: index as libc::c_uint,
        };
        let name = match joins {
            true => libc::IPV6_ADD_MEMBERSHIP,
            false => libc::IPV6_DROP_MEMBERSHIP,
        };
        set_option(listener, libc::IPPROTO_IPV6, name, &request)
    }
}

/// Has the interface receive frames to the Ethernet address of `group` (RFC 2464, section 7), or no
/// longer: `operation` is `PACKET_ADD_MEMBERSHIP` or `PACKET_DROP_MEMBERSHIP`.
fn join_hardware(
    socket: &OwnedFd,
    index: libc::c_int,
    group: Ipv6Addr,
    operation: libc::c_int,
) -> io::Result<()> {
    let [.., a, b, c, d] = group.octets();
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_MULTICAST as libc::c_ushort,
        mr_alen: 6,
        mr_address: [0x33, 0x33, a, b, c, d, 0, 0],
    };
    set_option(socket, libc::SOL_PACKET, operation, &request)
}

/// Has the interface receive frames to all groups, or no longer.
fn change_all(socket: &OwnedFd, index: libc::c_int, wanted: bool) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_ALLMULTI as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let operation = match wanted {
        true => libc::PACKET_ADD_MEMBERSHIP,
        false => libc::PACKET_DROP_MEMBERSHIP,
    };
    match set_option(socket, libc::SOL_PACKET, operation, &request) {
        // The interface was recreated: what was asked for went with it.
        Err(error) if !wanted && error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::test_namespace::{in_namespace, ip};

    #[test]
    fn solicited_node_group_as_in_the_rfc() {
        let address = "4037::01:800:200e:8c6c".parse().unwrap();
        assert_eq!(solicited_node(address).to_string(), "ff02::1:ff0e:8c6c");
    }

    #[test]
    fn joins_the_groups_in_hardware_and_kernel() {
        in_namespace(|| {
            ip("link add here type veth peer name there");
            ip("link set here up");
            ip("link set there up");
            let group = solicited_node("fd77::12:3456".parse().unwrap());
            let count = |text: &str, needle: &str| text.matches(needle).count();
            let memberships = || {
                let hardware = std::fs::read_to_string("/proc/thread-self/net/dev_mcast").unwrap();
                let kernel = std::fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
                (
                    count(&hardware, "3333ff123456"),
                    count(&kernel, "ff0200000000000000000001ff123456"),
                )
            };
            assert_eq!(memberships(), (0, 0));
            let joined = |wanted: &[Ipv6Addr], groups: &mut Groups| {
                groups.set(wanted.to_vec());
                while groups.change_some(1).unwrap() {}
                memberships()
            };
            let mut groups = Groups::new("here");
            let receives_all = |wanted: bool, groups: &mut Groups| {
                groups.receive_all(wanted);
                while groups.change_some(1).unwrap() {}
                let mut shown = std::process::Command::new("ip");
                let shown = shown.args(["-d", "link", "show", "here"]).output();
                String::from_utf8_lossy(&shown.unwrap().stdout).contains("allmulti 1")
            };
            assert!(receives_all(true, &mut groups));
            assert!(!receives_all(false, &mut groups));
            assert_eq!(joined(&[group, group], &mut groups), (1, 1));
            assert_eq!(joined(&[], &mut groups), (0, 0));
            assert_eq!(joined(&[group, group], &mut groups), (1, 1));
            ip("link del here");
            ip("link add here type veth peer name there");
            ip("link set here up");
            assert_eq!(memberships(), (0, 0));
            groups.rejoin();
            while groups.change_some(1).unwrap() {}
            assert_eq!(memberships(), (1, 1));
            drop(groups);
            assert_eq!(memberships(), (0, 0));

            std::fs::write("/proc/sys/net/ipv6/conf/here/disable_ipv6", "1").unwrap();
            assert_eq!(
                joined(&[group], &mut Groups::new("here")).0,
                1,
                "without IPv6 the frames come nevertheless"
            );
        });
    }
}
