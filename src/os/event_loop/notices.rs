//! What the kernel says of interfaces, routes and rules, and what of it concerns the gateway.

use mio::Interest;

use tandemgw_core::event::{LinkState, RouteChange};
use tandemgw_core::flow::{Addr, PortId};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::{Notice, Shell, Steering, socket_token};

impl Shell {
    pub(super) fn read_monitor(&mut self, now: Time, steering: &mut Steering) {
        match self.monitor.read(&mut self.notices) {
            Ok(more) => self.ready.monitor |= more,
            Err(error) => log::error!("netlink not read error={}", InQuotes(&error)),
        }
        let notices = std::mem::take(&mut self.notices);
        for notice in notices {
            self.heed(now, notice, steering);
        }
    }

    fn heed(&mut self, now: Time, notice: Notice, steering: &mut Steering) {
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
            } => {
                if let Some(port) = port {
                    self.heed_link(now, port, state, steering);
                }
                self.note_interface(now, &name, Some(index), state.up);
            }
            Notice::LinkGone { name, port, .. } => {
                if let Some(port) = port {
                    self.heed_link_gone(now, port, &name);
                }
                self.note_interface(now, &name, None, false);
            }
            Notice::RuleGone { priority } => {
                let first = self.gateway.config().node.routing_table;
                let ports = first..first + self.ports.len() as u32;
                if ports.contains(&priority) {
                    repair(steering, PortId((priority - first) as u8), "rule removed");
                }
            }
            Notice::Overrun => {
                log::warn!("netlink overrun effect=\"all routes and links are read again\"")
            }
            Notice::LinkParameter { name } => self.keep_parameters(&name, steering),
            Notice::ReversePathFilter { value } => note_filter(value),
            Notice::Address(own) => self.heed_address(now, own),
            Notice::AddressGone(gone) => self.heed_address_gone(now, gone, steering),
            Notice::AddressesReset => self.gateway.forget_kernel_addresses(),
        }
    }

    fn heed_link_gone(&mut self, now: Time, port: PortId, interface: &str) {
        log::warn!(
            "interface removed port={} interface={interface}",
            self.gateway.port_name(port)
        );
        let gone = LinkState {
            up: false,
            ..self.gateway.link(port)
        };
        self.gateway.handle_link(now, port, gone);
    }

    fn heed_link(&mut self, now: Time, port: PortId, link: LinkState, steering: &mut Steering) {
        let before = self.gateway.link(port);
        if before == link {
            return;
        }
        let name = self.gateway.port_name(port);
        log::info!("link port={name} up={} mtu={}", link.up, link.mtu);
        if link.up && !before.up {
            repair(steering, port, "link up");
            if let Err(error) = self.ports[port.index()].socket.reopen() {
                log::error!(
                    "packet socket not opened port={name} error={}",
                    InQuotes(&error)
                );
            }
            let socket = &mut self.ports[port.index()].socket;
            let token = socket_token(port.index());
            let _ = self
                .poll
                .registry()
                .register(socket, token, Interest::READABLE);
            self.ask_for(port);
        }
        self.gateway.handle_link(now, port, link);
    }

    /// Keeps a neighbour of the standby warm; if that fails, the first packet after a takeover waits.
    pub(super) fn resolve(&mut self, port: PortId, addr: Addr) {
        let interface = &self.gateway.config().ports[port.index()].interface;
        let Some(link) = self.monitor.index_of(interface) else {
            return;
        };
        if let Err(error) = self.netlink.resolve(link, addr.into()) {
            log::debug!("neighbour not resolved error={}", InQuotes(&error));
        }
    }

    /// Somebody has set a parameter of an interface or of a TUN.
    fn keep_parameters(&self, name: &str, steering: &mut Steering) {
        match steering.keep_parameters(name) {
            Ok(changed) if changed.is_empty() => {}
            Ok(changed) => log::warn!(
                "parameters put back device={name} which={} why=\"the gateway needs them; somebody has changed them\"",
                InQuotes(&changed.join(" "))
            ),
            Err(error) => log::error!(
                "parameters not put back device={name} error={}",
                InQuotes(&error)
            ),
        }
    }

    fn note_interface(&mut self, now: Time, interface: &str, index: Option<u32>, up: bool) {
        if let Some(peers) = &mut self.peers {
            peers.note_interface(interface, index, up, &mut self.gateway, now);
        }
    }
}

/// For all interfaces: of this value and that of an interface, the greater one counts.
fn note_filter(value: u32) {
    if value == 1 {
        log::error!(
            "rp_filter set for=all value=1 effect=\"the kernel drops what the gateway forwards (IPv4)\" \
             remedy=\"sysctl -w net.ipv4.conf.all.rp_filter=2\""
        );
    }
}

pub(super) fn repair(steering: &mut Steering, port: PortId, why: &str) {
    if let Err(error) = steering.repair(port) {
        log::error!(
            "steering not repaired port={} why={why} error={error}",
            port.index(),
            why = InQuotes(&why),
            error = InQuotes(&error)
        );
    }
}
