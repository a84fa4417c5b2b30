//! What the kernel tells of the neighbours that it looks for, and those that we resolve in its
//! place.
//!
//! On a port without its own IPv4 address, the kernel would send ARP requests from an address of
//! another interface, or from none, which strict hosts do not answer; elsewhere a packet filter may
//! drop its requests, or the answers. So it is told to ask this process first (`app_solicit`,
//! arp(7)): it reports the address (`RTM_GETNEIGH`), the gateway sends the request, and the kernel
//! learns from the answer as if it had asked itself, or from the gateway.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::check;
use super::netlink::{Messages, receive};
use tandemgw_core::event::KernelLookup;
use tandemgw_core::flow::Family;
use tandemgw_core::in_quotes::InQuotes;

/// Requests read in one turn, some 5 µs each.
const READ_BUDGET: usize = 32;

/// How often the kernel asks us, a second apart, before it sends requests itself.
const ATTEMPTS: &str = "3";

/// A host that the kernel looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// The number of the interface to its link.
    pub link: u32,
    /// Its address.
    pub addr: IpAddr,
    /// How far the kernel is.
    pub lookup: KernelLookup,
}

/// The socket that receives the kernel's requests, and the interfaces that they are enabled on.
///
/// Dropping it leaves the setting of those interfaces in place: [`restore`](Self::restore) undoes
/// it.
pub(super) struct NeighborRequests {
    socket: Socket,
    buffer: Vec<u8>,
    interfaces: BTreeSet<(String, Family)>,
}

impl NeighborRequests {
    /// Opens the socket, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn open() -> io::Result<NeighborRequests> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        keep_lookups_only(&socket)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.add_membership(libc::RTNLGRP_NEIGH)?;
        socket.set_non_blocking(true)?;
        Ok(NeighborRequests {
            socket,
            buffer: Vec::new(),
            interfaces: BTreeSet::new(),
        })
    }

    /// Makes the kernel leave requests of a family on `interface` to us, or send them itself.
    ///
    /// # Errors
    /// If the parameter can't be written.
    pub(super) fn set(&mut self, interface: &str, family: Family, asks_us: bool) -> io::Result<()> {
        let place = (interface.to_owned(), family);
        let changed = match asks_us {
            true => self.interfaces.insert(place),
            false => self.interfaces.remove(&place),
        };
        if changed || asks_us {
            let attempts = if asks_us { ATTEMPTS } else { "0" };
            fs::write(path(interface, family), attempts)?;
        }
        Ok(())
    }

    /// Whether the kernel was told to leave requests of a family on `interface` to us.
    pub(super) fn is_set(&self, interface: &str, family: Family) -> bool {
        self.interfaces.contains(&(interface.to_owned(), family))
    }

    /// Makes the kernel send requests itself everywhere, as before.
    pub(super) fn restore(&mut self) {
        for (interface, family) in std::mem::take(&mut self.interfaces) {
            // The setting of a removed interface is gone as well.
            let _ = fs::write(path(&interface, family), "0");
        }
    }

    /// Appends what the kernel tells of hosts to `out`; the result is true if there may be more.
    /// The kernel repeats requests that are lost because too many wait or that can't be read.
    pub(super) fn read(&mut self, out: &mut Vec<Request>) -> bool {
        for _ in 0..READ_BUDGET {
            match receive(&self.socket, &mut self.buffer) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    log::debug!("neighbour requests not read error={}", InQuotes(&error));
                    continue;
                }
            }
            for raw in Messages::new(&self.buffer) {
                if let Ok(message) = raw.decode()
                    && let NetlinkPayload::InnerMessage(message) = message.payload
                {
                    out.extend(request(&message));
                }
            }
        }
        true
    }
}

impl AsRawFd for NeighborRequests {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn request(message: &RouteNetlinkMessage) -> Option<Request> {
    let (message, lookup) = match message {
        RouteNetlinkMessage::GetNeighbour(message) => (message, KernelLookup::Wanted),
        RouteNetlinkMessage::NewNeighbour(message) => (message, lookup(message)?),
        _ => return None,
    };
    let addr = message.attributes.iter().find_map(|it| match it {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    Some(Request {
        link: message.header.ifindex,
        addr,
        lookup,
    })
}

fn lookup(message: &NeighbourMessage) -> Option<KernelLookup> {
    match message.header.state {
        NeighbourState::Probe => Some(KernelLookup::Doubted),
        NeighbourState::Failed => Some(KernelLookup::Missed),
        NeighbourState::Reachable => Some(KernelLookup::Found),
        _ => None,
    }
}

fn path(interface: &str, family: Family) -> PathBuf {
    let folder = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let parts = ["/proc/sys/net", folder, "neigh", interface, "app_solicit"];
    parts.iter().collect()
}

/// The kernel sends each change of a neighbour to the same group, and those of bridges: the filter
/// drops what does not matter before it wakes us.
fn keep_lookups_only(socket: &Socket) -> io::Result<()> {
    const RTM_NEWNEIGH: u16 = 28;
    const RTM_GETNEIGH: u16 = 30;
    const TYPE: u32 = 4;
    // `struct ndmsg` after the header of 16 bytes.
    const FAMILY: u32 = 16;
    const STATE: u32 = 16 + 8;
    let state = |state: NeighbourState| u32::from(u16::from(state).to_be());
    let statement = |code: u32, k, jt, jf| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |size, at| statement(libc::BPF_LD | size | libc::BPF_ABS, at, 0, 0);
    let if_equal = |k, jt, jf| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    let ret = |k| statement(libc::BPF_RET | libc::BPF_K, k, 0, 0);
    // The filter loads in network byte order a field that is in host byte order.
    let filter = [
        load(libc::BPF_H, TYPE),
        if_equal(u32::from(RTM_GETNEIGH.to_be()), 7, 0),
        if_equal(u32::from(RTM_NEWNEIGH.to_be()), 0, 7),
        load(libc::BPF_B, FAMILY),
        if_equal(libc::AF_BRIDGE as u32, 5, 0),
        load(libc::BPF_H, STATE),
        if_equal(state(NeighbourState::Probe), 2, 0),
        if_equal(state(NeighbourState::Failed), 1, 0),
        if_equal(state(NeighbourState::Reachable), 0, 1),
        ret(u32::MAX),
        ret(0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: `program` and the filter that it points to outlive the call, which only reads them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    check(result).map(|_| ())
}
