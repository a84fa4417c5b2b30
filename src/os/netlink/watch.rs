//! Listens for changes of which only that they have happened matters.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};
use netlink_sys::{Socket, SocketAddr};

use tandemgw_core::in_quotes::InQuotes;

use super::receive;

/// `XFRMNLGRP_POLICY` (linux/xfrm.h).
const POLICIES: u32 = 4;

/// `RTNLGRP_TC` (linux/rtnetlink.h).
const QUEUES_AND_FILTERS: u32 = 4;

/// Notices taken in at a time; the next one wakes the thread for the rest.
const MOST_AT_A_TIME: usize = 1000;

/// Tells when something changes.
pub(in crate::os) struct Watch {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Watch {
    /// Of policies of IPsec.
    ///
    /// # Errors
    /// What the kernel says; it may have no IPsec.
    pub(in crate::os) fn policies() -> io::Result<Watch> {
        Watch::open(NETLINK_XFRM, POLICIES)
    }

    /// Of queues and filters of tc(8).
    ///
    /// # Errors
    /// What the kernel says.
    pub(in crate::os) fn filters() -> io::Result<Watch> {
        Watch::open(NETLINK_ROUTE, QUEUES_AND_FILTERS)
    }

    fn open(protocol: isize, group: u32) -> io::Result<Watch> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.add_membership(group)?;
        socket.set_non_blocking(true)?;
        Ok(Watch {
            socket,
            buffer: Vec::new(),
        })
    }

    /// Takes in what the kernel has told.
    pub(in crate::os) fn clear(&mut self) {
        for _ in 0..MOST_AT_A_TIME {
            match receive(&self.socket, &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Another error says that notices were lost.
                _ => {}
            }
        }
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Has a poll wake its thread for a watch of `what`; none if the kernel has nothing of it.
pub(in crate::os) fn watched<W: AsRawFd>(
    registry: &Registry,
    (token, what): (Token, &str),
    opened: io::Result<W>,
) -> Option<W> {
    let registered = opened.and_then(|watch| {
        let mut source = SourceFd(&watch.as_raw_fd());
        registry.register(&mut source, token, Interest::READABLE)?;
        Ok(watch)
    });
    let log = |error: &io::Error| log::debug!("{what} not watched error={}", InQuotes(error));
    registered.inspect_err(log).ok()
}
