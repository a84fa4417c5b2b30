//! Detects changes of the barrier.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::table_name;
use crate::os::netlink::{Messages, receive};
use crate::os::nftables::{Attributes, attribute};

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
        let mut changed = false;
        for _ in 0..READ_BUDGET {
            match receive(&self.socket, &mut self.buffer) {
                Ok(()) => changed |= self.concerns_us(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Look {
                        changed,
                        more: false,
                    };
                }
                // Mostly an overrun.
                Err(_) => changed = true,
            }
        }
        Look {
            changed,
            more: true,
        }
    }

    /// Whether one of the messages in the buffer is about our table: attribute 1 of all objects.
    fn concerns_us(&self) -> bool {
        Messages::new(&self.buffer).any(|raw| {
            let object = Attributes::after_header(raw.body());
            object.text(attribute::TABLE_NAME) == Some(&self.table)
        })
    }
}

impl AsRawFd for BarrierWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
