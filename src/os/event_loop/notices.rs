//! Handles what the kernel reports about interfaces, routes and rules.

use std::time::Duration;

use tandemgw_core::event::{LinkState, RouteChange};
use tandemgw_core::flow::{Addr, PortId};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::super::clock;
use super::super::monitor::Detached;
use super::super::steering::Disturbance;
use super::super::upkeep::Order;
use super::{Notice, Shell};

/// The time after which what the kernel reports waits for the next turn.
const MONITOR_TIME: Duration = Duration::from_micros(200);

impl Shell {
    /// Handles what the kernel reports, until the time for this turn is over.
    pub(super) fn read_monitor(&mut self, now: Time) {
        let began = clock::now();
        let is_over = || clock::now().since(began) >= MONITOR_TIME;
        let mut more = true;
        loop {
            while let Some(notice) = self.notices.next() {
                self.handle_notice(now, notice);
                if is_over() {
                    self.ready.monitor = true;
                    return;
                }
            }
            if !more || is_over() {
                self.ready.monitor |= more;
                return;
            }
            let mut read = Vec::new();
            more = match self.monitor.read(&mut read) {
                Ok(more) => more,
                Err(error) => {
                    log::error!("netlink not read error={}", InQuotes(&error));
                    false
                }
            };
            self.notices = read.into_iter();
        }
    }

    fn handle_notice(&mut self, now: Time, notice: Notice) {
        match notice {
            Notice::Route(change) => {
                let is_told = change == RouteChange::EndDump;
                self.gateway.handle_route(change);
                if is_told {
                    self.gateway.check_kernel_addresses(now);
                    self.ask_for_neighbors();
                }
            }
            Notice::Link {
                index,
                name,
                port,
                state,
                detached,
            } => {
                if let Some(port) = port {
                    self.handle_link(now, port, state, detached.as_ref());
                    self.note_number(port, index);
                    self.note_fast_number(port, index);
                }
                self.note_interface(now, &name, Some(index), state.up);
            }
            Notice::LinkGone {
                name,
                port,
                renamed,
                ..
            } => {
                if let Some(port) = port {
                    self.handle_loss(now, port, &name, renamed.as_deref());
                }
                self.note_interface(now, &name, None, false);
            }
            Notice::Disturbed(disturbance) => self.disturb(disturbance),
            Notice::ForeignRoute(route) => self.order(Order::RemoveForeign(route)),
            Notice::RuleBefore(rule) => self.tell_rule(&rule),
            Notice::Overrun => {
                log::warn!("netlink overrun effect=\"all routes and links are read again\"");
                self.disturb(Disturbance::All);
                self.disturb(Disturbance::KernelRules);
            }
            Notice::ReversePathFilter { value } => note_filter(value),
            Notice::Address(own) => self.handle_address(now, own),
            Notice::AddressGone(gone) => self.handle_address_gone(now, gone),
            Notice::AddressesReset => self.gateway.forget_kernel_addresses(),
        }
    }

    fn handle_link(
        &mut self,
        now: Time,
        port: PortId,
        link: LinkState,
        detached: Option<&Detached>,
    ) {
        let before = self.gateway.link(port);
        if before == link {
            return;
        }
        let name = self.gateway.port_name(port);
        let level = match before.up && !link.up {
            true => log::Level::Warn,
            false => log::Level::Info,
        };
        log::log!(level, "link port={name} up={} mtu={}", link.up, link.mtu);
        let interface = &self.gateway.config().ports[port.index()].interface;
        match detached {
            Some(Detached::Master(master)) => log::warn!(
                "port detached port={name} interface={interface} why=\"it belongs to {master} now, by \
                 which its packets come in\" remedy=\"ip link set {interface} nomaster\""
            ),
            Some(Detached::Taken(taker)) => log::warn!(
                "port detached port={name} interface={interface} why=\"{taker}, above it, takes its packets\" \
                 remedy=\"ip link del {taker}\""
            ),
            Some(Detached::OtherPort(other)) => log::warn!(
                "port detached port={name} interface={interface} why=\"that is the interface of port {} \
                 until now\" remedy=\"give both their names back, or restart the gateway\"",
                self.gateway.port_name(*other)
            ),
            Some(Detached::WithoutArp) => log::warn!(
                "port detached port={name} interface={interface} why=\"its ARP is off, so that it reaches no \
                 host\" remedy=\"ip link set {interface} arp on\""
            ),
            None => {}
        }
        if link.up && !before.up {
            // A recreated interface has a number that the barrier does not know.
            self.disturb(Disturbance::Expected(port));
            self.ask_for(port);
        }
        self.gateway.handle_link(now, port, link);
    }

    /// The interface of a port was removed or renamed.
    fn handle_loss(&mut self, now: Time, port: PortId, interface: &str, renamed: Option<&str>) {
        let name = self.gateway.port_name(port);
        match renamed {
            Some(other) => log::warn!(
                "port detached port={name} interface={interface} why=\"it is called {other} now\" \
                 remedy=\"ip link set {other} name {interface}\""
            ),
            None => log::warn!("interface removed port={name} interface={interface}"),
        }
        let gone = LinkState {
            up: false,
            ..self.gateway.link(port)
        };
        self.gateway.handle_link(now, port, gone);
        // It may come back with the same number, and the kernel has taken the socket off it.
        self.ports[port.index()].socket.lose();
        self.lose_fast_number(port);
        self.disturb(Disturbance::Port(port));
    }

    /// Keeps a neighbour of the standby warm; if that fails, the first packet after a takeover
    /// waits.
    pub(super) fn resolve(&mut self, port: PortId, addr: Addr) {
        let interface = &self.gateway.config().ports[port.index()].interface;
        let Some(link) = self.monitor.index_of(interface) else {
            return;
        };
        self.order(Order::Resolve(link, addr.into()));
    }

    /// Asks a target. If that fails, it counts as silent.
    pub(super) fn probe(&mut self, index: usize, sequence: u16, source: Addr) {
        let config = self.gateway.config();
        let Some(monitor) = config.link_monitors.get(index) else {
            return;
        };
        let interface = &config.ports[monitor.port.index()].interface;
        let registry = self.poll.registry();
        let (probe, source) = ((index, sequence), source.into());
        let sent = self
            .probes
            .send(registry, probe, monitor, interface, source);
        if let Err(error) = sent {
            log::debug!("probe not sent monitor={index} error={}", InQuotes(&error));
        }
    }

    fn note_interface(&mut self, now: Time, interface: &str, index: Option<u32>, up: bool) {
        if let Some(peers) = &mut self.peers {
            peers.note_interface(interface, index, up, &mut self.gateway, now);
        }
    }
}

/// For all interfaces: the greater of this value and the interface's own applies.
fn note_filter(value: u32) {
    if value == 1 {
        log::error!(
            "rp_filter set for=all value=1 effect=\"the kernel drops what the gateway forwards (IPv4)\" \
             remedy=\"sysctl -w net.ipv4.conf.all.rp_filter=2\""
        );
    }
}
