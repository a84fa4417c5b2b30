//! What the kernel does with forwarded packets that the program of the fast path would skip, and
//! that matters to where they go: policies of IPsec, and rules of policy routing that are not ours.
//! While there is any, no packet takes the fast path.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};

use super::netlink::receive;

/// `XFRMNLGRP_POLICY` (linux/xfrm.h).
const POLICIES: u32 = 4;

/// Notices taken in at a time; the next one wakes the thread for the rest.
const MOST_AT_A_TIME: usize = 1000;

/// Why the fast path is not used.
pub(super) const IPSEC: &str = "policies of IPsec may concern forwarded packets (ip xfrm policy)";
/// The same.
pub(super) const RULES: &str = "rules of others may lead packets elsewhere (ip rule)";
/// The same, at the start or if the kernel does not tell.
pub(super) const UNKNOWN: &str = "it is not known yet what the kernel does with forwarded packets";

/// Tells when policies of IPsec change.
pub(super) struct PolicyWatch {
    socket: Socket,
    buffer: Vec<u8>,
}

impl PolicyWatch {
    /// # Errors
    /// What the kernel says; it may have no IPsec.
    pub(super) fn open() -> io::Result<PolicyWatch> {
        let mut socket = Socket::new(NETLINK_XFRM)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.add_membership(POLICIES)?;
        socket.set_non_blocking(true)?;
        Ok(PolicyWatch {
            socket,
            buffer: Vec::new(),
        })
    }

    /// Takes in what the kernel has told: only that something has changed matters.
    pub(super) fn clear(&mut self) {
        for _ in 0..MOST_AT_A_TIME {
            match receive(&self.socket, &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Another error says that notices were lost.
                _ => {}
            }
        }
    }
}

impl AsRawFd for PolicyWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
