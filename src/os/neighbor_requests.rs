//! Neighbours that we resolve in place of the kernel.
//!
//! On a port without its own IPv4 address, the kernel would send ARP requests from an address of
//! another interface, or from none, which strict hosts do not answer. So it is told to ask this
//! process first (`app_solicit`, arp(7)): it reports the address (`RTM_GETNEIGH`), the gateway
//! sends the request, and the kernel learns from the answer as if it had asked itself.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::check;
use super::netlink::{Messages, receive};
use tandemgw_core::in_quotes::InQuotes;

/// Requests read in one turn, some 5 µs each.
const READ_BUDGET: usize = 32;

/// How often the kernel asks us, a second apart, before it sends requests itself.
const ATTEMPTS: &str = "3";

/// A host that the kernel wants to resolve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// The number of the interface to its link.
    pub link: u32,
    /// Its address.
    pub addr: IpAddr,
}

/// The socket that receives the kernel's requests, and the interfaces that they are enabled on.
///
/// Dropping it leaves the setting of those interfaces in place: [`restore`](Self::restore) undoes
/// it.
pub(super) struct NeighborRequests {
    socket: Socket,
    buffer: Vec<u8>,
    interfaces: BTreeSet<String>,
}

impl NeighborRequests {
    /// Opens the socket, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn open() -> io::Result<NeighborRequests> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        keep_requests_only(&socket)?;
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

    /// Makes the kernel leave ARP requests on `interface` to us, or send them itself.
    ///
    /// # Errors
    /// If the parameter can't be written.
    pub(super) fn set(&mut self, interface: &str, asks_us: bool) -> io::Result<()> {
        let changed = match asks_us {
            true => self.interfaces.insert(interface.to_owned()),
            false => self.interfaces.remove(interface),
        };
        if changed || asks_us {
            fs::write(path(interface), if asks_us { ATTEMPTS } else { "0" })?;
        }
        Ok(())
    }

    /// Makes the kernel send requests itself everywhere, as before.
    pub(super) fn restore(&mut self) {
        for interface in std::mem::take(&mut self.interfaces) {
            // The setting of a removed interface is gone as well.
            let _ = fs::write(path(&interface), "0");
        }
    }

    /// Appends the hosts that the kernel wants to resolve to `out`; the result is true if there may
    /// be more. The kernel repeats requests that are lost because too many wait or that can't be
    /// read.
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
                    && let RouteNetlinkMessage::GetNeighbour(message) = message
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

fn request(message: &NeighbourMessage) -> Option<Request> {
    let addr = message.attributes.iter().find_map(|it| match it {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        _ => None,
    })?;
    Some(Request {
        link: message.header.ifindex,
        addr,
    })
}

fn path(interface: &str) -> PathBuf {
    let parts = ["/proc/sys/net/ipv4/neigh", interface, "app_solicit"];
    parts.iter().collect()
}

/// The kernel sends each change of a neighbour to the same group: the filter drops these before
/// they wake us.
fn keep_requests_only(socket: &Socket) -> io::Result<()> {
    const RTM_GETNEIGH: u16 = 30;
    const TYPE: u32 = 4;
    let statement = |code: u32, k, jt, jf| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // The filter loads in network byte order a field that is in host byte order.
    let wanted = u32::from(RTM_GETNEIGH.to_be());
    let filter = [
        statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, TYPE, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, wanted, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
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
