//! The socket on which the kernel reports changes.

use std::io;
use std::os::fd::AsRawFd;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tandemgw_core::in_quotes::InQuotes;

/// Notifications that the kernel may queue while the process is busy: some 10 000.
const RECEIVE_QUEUE: libc::c_int = 8 * 1024 * 1024;

const GROUPS: [libc::c_uint; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_IPV6_NETCONF,
];

/// A socket that receives all mirrored changes, and the address that the kernel gave it.
pub(super) fn open() -> io::Result<(Socket, u32)> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    enlarge_queue(&socket);
    let port = socket.bind_auto()?.port_number();
    socket.connect(&SocketAddr::new(0, 0))?;
    // Dumps of one table (Linux 4.20). Without rules, the table of the machine's own addresses is a
    // part of the main one: to list it, the kernel looks at all routes at once, for milliseconds.
    if let Err(error) = socket.set_netlink_get_strict_chk(true) {
        log::debug!("netlink socket option not set error={}", InQuotes(&error));
    }
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    Ok((socket, port))
}

/// Beyond the limit for unprivileged processes if possible; otherwise [`super::Notice::Overrun`]
/// handles an overflow.
fn enlarge_queue(socket: &Socket) {
    let size = RECEIVE_QUEUE;
    // SAFETY: the descriptor is open, and the option's value is a `c_int` of the length given,
    // which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    if result != 0
        && let Err(error) = socket.set_rx_buf_sz(size)
    {
        log::debug!("netlink queue not enlarged error={}", InQuotes(&error));
    }
}
