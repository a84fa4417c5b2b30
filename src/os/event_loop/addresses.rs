//! The kernel's own addresses: the effect of changes on links and ports, and the neighbours that
//! the gateway resolves for the kernel.

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use std::io;
use std::os::fd::AsRawFd;

use tandemgw_core::flow::{Addr, Family, PortId};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::super::clock;
use super::super::monitor::OwnAddress;
use super::super::neighbor_requests::NeighborRequests;
use super::super::steering::Disturbance;
use super::super::upkeep::Order;
use super::ready::Bits;
use super::{NEIGHBORS, Shell};

/// Ports that [`Shell::ask_some`] looks at in a turn, some 10 µs each.
const ASKED_AT_A_TIME: usize = 8;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Opens the socket for neighbours; without it the kernel resolves all of them.
pub(super) fn open_requests(registry: &Registry) -> Option<NeighborRequests> {
    let opened = NeighborRequests::open().and_then(|requests| {
        let mut source = SourceFd(&requests.as_raw_fd());
        registry.register(&mut source, NEIGHBORS, Interest::READABLE)?;
        Ok(requests)
    });
    let log = |error: &io::Error| {
        log::warn!(
            "neighbour requests not heard error={} effect=\"on ports without an address of their own, hosts are \
             asked for from another one\"",
            InQuotes(error)
        );
    };
    opened.inspect_err(log).ok()
}

impl Shell {
    pub(super) fn handle_address(&mut self, now: Time, own: OwnAddress) {
        self.disturb(Disturbance::OwnAddresses);
        if let Some(peers) = &mut self.peers {
            peers.note_address(own.addr, true, now);
        }
        self.gateway
            .handle_kernel_address(now, own.addr.into(), own.port, true);
        own.port.into_iter().for_each(|port| self.ask_for(port));
    }

    /// With an address of an interface its network's route goes, and with the last IPv4 address all
    /// its IPv4 routes, ours too; the kernel does not say so.
    pub(super) fn handle_address_gone(&mut self, now: Time, gone: OwnAddress) {
        self.disturb(Disturbance::OwnAddresses);
        self.gateway
            .handle_kernel_address(now, gone.addr.into(), gone.port, false);
        if let Some(port) = gone.port {
            log::info!(
                "address removed port={} addr={} effect=\"routes that went with it are put back; hosts are asked \
                 for from the virtual address\"",
                self.gateway.port_name(port),
                gone.addr
            );
            self.disturb(Disturbance::Expected(port));
            self.ask_for(port);
        }
        if let Some(peers) = &mut self.peers {
            peers.note_address(gone.addr, false, now);
        }
    }

    /// Resolves the neighbours on all ports where the kernel has no address.
    pub(super) fn ask_for_neighbors(&mut self) {
        for index in 0..self.ports.len() {
            self.ask_for(PortId::from_index(index));
        }
    }

    /// Has the kernel leave ARP requests on a port to us, or send them itself, in one of the next
    /// turns.
    pub(super) fn ask_for(&mut self, port: PortId) {
        self.ready.asking.insert(port.index());
    }

    /// Does what [`Shell::ask_for`] says for some ports: each costs a file in `/proc`.
    pub(super) fn ask_some(&mut self, now: Time) {
        let Some(requests) = &mut self.neighbors else {
            self.ready.asking = Bits::default();
            return;
        };
        for _ in 0..ASKED_AT_A_TIME {
            let Some(index) = self.ready.asking.next(0) else {
                return;
            };
            self.ready.asking.remove(index);
            let interface = &self.gateway.config().ports[index].interface;
            for family in FAMILIES {
                let port = PortId::from_index(index);
                let asks_us = self.gateway.asks_for_neighbors(now, port, family);
                if let Err(error) = requests.set(interface, family, asks_us) {
                    log::debug!(
                        "neighbour requests not set interface={interface} error={}",
                        InQuotes(&error)
                    );
                }
            }
        }
    }

    /// Tells the kernel where a neighbour is that it does not hear.
    pub(super) fn tell_neighbor(&mut self, port: PortId, addr: Addr, mac: [u8; 6]) {
        let interface = &self.gateway.config().ports[port.index()].interface;
        let family = addr.family();
        let asks_us = self.gateway.asks_for_neighbors(clock::now(), port, family);
        let was_told = self
            .neighbors
            .as_ref()
            .is_none_or(|requests| requests.is_set(interface, family) == asks_us);
        if let Some(link) = self.monitor.index_of(interface) {
            self.order(Order::Neighbor(link, addr.into(), mac));
        }
        if !was_told {
            self.ask_for(port);
        }
    }

    pub(super) fn read_neighbor_requests(&mut self, now: Time) {
        let Some(requests) = &mut self.neighbors else {
            return;
        };
        let mut wanted = Vec::new();
        self.ready.neighbors = requests.read(&mut wanted);
        for request in wanted {
            if let Some(port) = self.monitor.port_at(request.link) {
                let addr = request.addr.into();
                self.gateway
                    .handle_kernel_lookup(now, port, addr, request.lookup);
            }
        }
    }

    /// Leaves the kernel as it was.
    pub(super) fn stop_asking(&mut self) {
        if let Some(requests) = &mut self.neighbors {
            requests.restore();
        }
    }
}
