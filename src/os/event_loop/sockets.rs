//! The packet sockets of ports whose interface was recreated: one per turn.

use mio::Interest;

use tandemgw_core::flow::PortId;
use tandemgw_core::in_quotes::InQuotes;

use super::super::upkeep::Order;
use super::super::worker;
use super::ready::Bits;
use super::{Shell, socket_token};

/// Pending work for the packet sockets.
#[derive(Default)]
pub(super) struct Chores {
    /// Ports whose interface has another number than their socket.
    stale: Bits,
}

impl Chores {
    pub(super) fn new(ports: usize) -> Chores {
        Chores {
            stale: Bits::new(ports),
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.stale.is_empty()
    }
}

impl Shell {
    /// The interface of `port` is up, and has this number.
    pub(super) fn note_number(&mut self, port: PortId, number: u32) {
        if !self.ports[port.index()].socket.is_on(number) {
            self.chores.stale.insert(port.index());
        }
    }

    /// Does one piece of the pending work.
    pub(super) fn do_chores(&mut self) {
        if let Some(index) = self.chores.stale.next(0) {
            self.chores.stale.remove(index);
            self.reopen(index);
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
        self.reopen_stream(index);
        self.order(Order::Rejoin(PortId::from_index(index)));
        // There is no event for frames that arrived before it was registered.
        self.ready.sockets.insert(index);
    }
}
