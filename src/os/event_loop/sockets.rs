//! The packet sockets of ports whose interface was recreated, and the multicast groups that they
//! join: one socket, or a few groups, per turn.

use mio::Interest;

use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;

use super::super::worker;
use super::ready::Bits;
use super::{Shell, socket_token};

/// Multicast groups that are joined or left in one turn: two system calls each.
const GROUPS_PER_TURN: usize = 4;

/// Pending work for the packet sockets.
#[derive(Default)]
pub(super) struct Chores {
    /// Ports whose interface has another number than their socket.
    stale: Bits,
    /// Groups wait to be joined or left.
    joining: bool,
}

impl Chores {
    pub(super) fn new(ports: usize) -> Chores {
        Chores {
            stale: Bits::new(ports),
            joining: false,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.joining || !self.stale.is_empty()
    }
}

impl Shell {
    /// The interface of `port` is up, and has this number.
    pub(super) fn note_number(&mut self, port: PortId, number: u32) {
        if !self.ports[port.index()].socket.is_on(number) {
            self.chores.stale.insert(port.index());
        }
    }

    /// Groups are to be joined or left.
    pub(super) fn note_groups(&mut self) {
        self.chores.joining = true;
    }

    /// Does one piece of the pending work.
    pub(super) fn do_chores(&mut self) {
        if let Some(index) = self.chores.stale.next(0) {
            self.chores.stale.remove(index);
            self.reopen(index);
        } else if self.chores.joining {
            self.join_some();
        }
    }

    fn reopen(&mut self, index: usize) {
        let name = self.gateway.port_name(PortId::from_index(index));
        let socket = &mut self.ports[index].socket;
        let reopened = socket.reopen().and_then(|former| {
            let registry = self.poll.registry();
            registry.register(socket, socket_token(index), Interest::READABLE)?;
            Ok(former)
        });
        match reopened {
            // The kernel takes milliseconds to close one.
            Ok(former) => worker::discard(&self.waker, former),
            Err(error) => log::error!(
                "packet socket not opened port={name} error={}",
                InQuotes(&error)
            ),
        }
        self.chores.joining = true;
        // There is no event for frames that arrived before it was registered.
        self.ready.sockets.insert(index);
    }

    fn join_some(&mut self) {
        let mut ports = self.ports.iter_mut().zip(&self.gateway.config().ports);
        let Some((port, settings)) = ports.find(|(port, _)| port.socket.has_groups_to_join())
        else {
            self.chores.joining = false;
            return;
        };
        if let Err(error) = port.socket.listen_to_some(GROUPS_PER_TURN) {
            let interface = &settings.interface;
            let warning = format!("multicast groups on {interface}: {error}");
            log::warn!("groups not joined why={}", InQuotes(&warning));
            self.warn_of_reload(warning);
        }
    }
}
