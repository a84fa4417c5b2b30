//! The ports at run time: the state of their interfaces, which of them work, and their traffic.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::event::LinkState;
use crate::flow::{Addr, GroupId, PortId};

use super::counters::PortCounters;

/// Why a port does not work although its link is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortFault {
    /// The kernel also has an address of ours.
    KernelHas(Addr),
    /// The kernel does not route packets to the right place; a description of what it does.
    Detour(String),
}

impl fmt::Display for PortFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortFault::KernelHas(addr) => {
                write!(f, "the virtual address {addr} was added to this machine")
            }
            PortFault::Detour(what) => f.write_str(what),
        }
    }
}

/// All ports, in the order of the config.
pub(super) struct Links {
    ports: Vec<Port>,
    /// The kernel's addresses, each with the port whose interface has it.
    kernel: BTreeSet<(Addr, Option<PortId>)>,
}

/// A port at run time.
#[derive(Clone)]
pub(super) struct Port {
    link: LinkState,
    /// An address of ours that the kernel has too, so that the port does not work.
    fault: Option<Addr>,
    /// Where the kernel sends packets instead, so that the port does not work.
    detour: Option<String>,
    /// The kernel's addresses on its interface.
    kernel: BTreeSet<Addr>,
    counters: PortCounters,
}

impl Port {
    #[inline]
    pub(super) fn link(&self) -> &LinkState {
        &self.link
    }

    /// A packet of that length leaves by it.
    #[inline]
    pub(super) fn count_out(&mut self, bytes: usize) {
        self.counters.count_out(bytes);
    }
}

impl Links {
    /// All ports down, and a kernel without addresses.
    pub(super) fn new(ports: usize) -> Links {
        let down = Port {
            link: LinkState {
                up: false,
                mtu: 1500,
                mac: [0; 6],
            },
            fault: None,
            detour: None,
            kernel: BTreeSet::new(),
            counters: PortCounters::default(),
        };
        Links {
            ports: vec![down; ports],
            kernel: BTreeSet::new(),
        }
    }

    /// The port, for sending.
    #[inline]
    pub(super) fn port_mut(&mut self, port: PortId) -> &mut Port {
        &mut self.ports[port.index()]
    }

    /// The state of the interface of a port of the config.
    #[inline]
    pub(super) fn link(&self, port: PortId) -> &LinkState {
        &self.ports[port.index()].link
    }

    /// As [`Links::link`]; none if there is no such port.
    pub(super) fn find(&self, port: PortId) -> Option<&LinkState> {
        self.ports.get(port.index()).map(|port| &port.link)
    }

    #[inline]
    pub(super) fn is_up(&self, port: PortId) -> bool {
        self.link(port).up
    }

    /// The interface of `port` is now in this state; returns the previous state.
    pub(super) fn set(&mut self, port: PortId, link: LinkState) -> LinkState {
        std::mem::replace(&mut self.ports[port.index()].link, link)
    }

    /// Whether packets can come in and leave by `port`, as far as its link tells: it is up, and has
    /// no fault.
    pub(super) fn works(&self, port: PortId) -> bool {
        let port = &self.ports[port.index()];
        port.link.up && port.fault.is_none() && port.detour.is_none()
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = PortId> + use<> {
        (0..self.ports.len()).map(PortId::from_index)
    }

    /// Packets have come in by `port`, with this many bytes in total.
    pub(super) fn count_in(&mut self, port: PortId, packets: usize, bytes: usize) {
        let counters = &mut self.ports[port.index()].counters;
        counters.in_packets += packets as u64;
        counters.in_bytes += bytes as u64;
    }

    /// Packets have left by `port`, with this many bytes in total.
    pub(super) fn count_out(&mut self, port: PortId, packets: u64, bytes: u64) {
        let counters = &mut self.ports[port.index()].counters;
        counters.out_packets += packets;
        counters.out_bytes += bytes;
    }

    pub(super) fn counters(&self, port: PortId) -> &PortCounters {
        &self.ports[port.index()].counters
    }

    /// Bytes that have left by all ports.
    pub(super) fn out_bytes(&self) -> u64 {
        self.ports.iter().map(|port| port.counters.out_bytes).sum()
    }

    /// Why `port` does not work although its link is up.
    pub(super) fn fault(&self, port: PortId) -> Option<PortFault> {
        let port = &self.ports[port.index()];
        let held = port.fault.map(PortFault::KernelHas);
        held.or_else(|| port.detour.clone().map(PortFault::Detour))
    }

    /// Where the kernel sends the packets of `port` instead; none if all is well.
    pub(super) fn set_detour(&mut self, port: PortId, detour: Option<String>) {
        self.ports[port.index()].detour = detour;
    }

    /// Compares the addresses that the gateway answers for on `port` with the kernel's; returns the
    /// fault if it has changed.
    pub(super) fn check_fault(
        &mut self,
        port: PortId,
        own: &[(Addr, GroupId)],
    ) -> Option<Option<Addr>> {
        // Each link has its own link-local addresses.
        let has = |addr: Addr| match addr.is_link_local() {
            true => self.kernel.contains(&(addr, Some(port))),
            false => self.kernel_has(addr),
        };
        let held = own.iter().find(|(addr, _)| has(*addr));
        let fault = held.map(|(addr, _)| *addr);
        let before = std::mem::replace(&mut self.ports[port.index()].fault, fault);
        (before != fault).then_some(fault)
    }

    /// The kernel has gained or lost `addr` on the interface of `port`, or on another one.
    pub(super) fn set_kernel_address(&mut self, addr: Addr, port: Option<PortId>, has_it: bool) {
        let here = port.and_then(|port| self.ports.get_mut(port.index()));
        let here = here.map(|port| &mut port.kernel);
        match has_it {
            true => {
                self.kernel.insert((addr, port));
                here.map(|here| here.insert(addr));
            }
            false => {
                self.kernel.remove(&(addr, port));
                here.map(|here| here.remove(&addr));
            }
        };
    }

    pub(super) fn forget_kernel_addresses(&mut self) {
        self.kernel.clear();
        self.ports.iter_mut().for_each(|port| port.kernel.clear());
    }

    /// Whether packets to `addr` are the kernel's.
    pub(super) fn kernel_has(&self, addr: Addr) -> bool {
        let mut from = self.kernel.range((addr, None)..);
        from.next().is_some_and(|(first, _)| *first == addr)
    }

    /// The kernel's addresses on the interface of `port`.
    pub(super) fn kernel_on(&self, port: PortId) -> impl Iterator<Item = Addr> {
        self.ports[port.index()].kernel.iter().copied()
    }

    /// Whether the kernel has an address in a network on the interface of `port`.
    pub(super) fn kernel_is_in(&self, port: PortId, network: &IpNet) -> bool {
        let here = &self.ports[port.index()].kernel;
        // The addresses of a network are adjacent.
        let mut from = here.range(Addr::from(network.network())..);
        let first = from.next();
        first.is_some_and(|addr| network.contains(&IpAddr::from(*addr)))
    }
}
