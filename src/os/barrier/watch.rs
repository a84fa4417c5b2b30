//! Detects changes of the barrier.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::{PREFIX, table_name};
use crate::os::netlink::{Messages, receive};
use crate::os::nftables::{Attributes, BRIDGE, INET, NETDEV, attribute};

/// Datagrams to read at a time. A firewall that loads thousands of rules causes thousands of
/// messages.
const READ_BUDGET: usize = 16;

/// Receives all changes of the packet filter, and filters those of the barrier.
pub struct BarrierWatch {
    socket: Socket,
    table: String,
    buffer: Vec<u8>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Somebody, perhaps this process, has changed the barrier, or may have: more happened than the
    /// kernel's queue holds.
    pub changed: bool,
    /// Somebody has changed another part of the packet filter, or may have.
    pub others_changed: bool,
    /// There may be more to read.
    pub more: bool,
}

impl BarrierWatch {
    /// Listens, in the network namespace of the calling thread, for changes to the barrier of the
    /// node with that name.
    ///
    /// # Errors
    /// If the kernel has no netfilter or no nf_tables, or the right is missing (`CAP_NET_ADMIN`).
    pub fn open(node: &str) -> io::Result<BarrierWatch> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.add_membership(libc::NFNLGRP_NFTABLES as u32)?;
        socket.set_non_blocking(true)?;
        Ok(BarrierWatch {
            socket,
            table: table_name(node),
            buffer: Vec::new(),
        })
    }

    /// Reads what has happened, up to a budget.
    pub fn look(&mut self) -> Look {
        let mut seen = Look {
            changed: false,
            others_changed: false,
            more: true,
        };
        for _ in 0..READ_BUDGET {
            match receive(&self.socket, &mut self.buffer) {
                Ok(()) => self.note(&mut seen),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    seen.more = false;
                    return seen;
                }
                // Mostly an overrun.
                Err(_) => (seen.changed, seen.others_changed) = (true, true),
            }
        }
        seen
    }

    /// Notes what the messages in the buffer are about: the table's name is attribute 1 of all
    /// objects.
    fn note(&self, seen: &mut Look) {
        /// Tells the number of a change, and no table.
        const GENERATION: u16 = libc::NFT_MSG_NEWGEN as u16;
        for raw in Messages::new(&self.buffer) {
            let family = raw.body().first();
            let is_ours = family.is_some_and(|it| [INET, BRIDGE, NETDEV].contains(it));
            let object = Attributes::after_header(raw.body());
            match object.text(attribute::TABLE_NAME) {
                _ if raw.kind() & 0xff == GENERATION => {}
                Some(table) if is_ours && table == self.table => seen.changed = true,
                Some(table) if is_ours && table.starts_with(PREFIX) => {}
                _ => seen.others_changed = true,
            }
        }
    }
}

impl AsRawFd for BarrierWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
