//! Sends the probes of `[[link-monitor]]`, and recognises their answers.
//!
//! Probes are sent from an address that the kernel has on the port, through a socket of the shell.
//! A unit without one probes from its virtual address while it is primary: then its probes and
//! their answers take the path of all other packets.

use crate::config::MonitorProtocol;
use crate::event::Output;
use crate::flow::{Addr, Family, FlowKey, PortId, Protocol, echo_port};
use crate::link_monitor::{LinkMonitors, Probe, TargetState, TargetView, Unaskable};
use crate::packet::{build, neighbor};
use crate::time::Time;

use super::{Gateway, Packet};

/// Source ports and echo identifiers of probes from a virtual address begin here.
const FIRST_PORT: u16 = 0xc000;

/// The targets, and the last packets sent to them from a virtual address.
pub(super) struct Targets {
    pub(super) monitors: LinkMonitors,
    keys: Vec<Option<FlowKey>>,
    /// What the election is told of them may change with the time.
    is_settling: bool,
}

impl Targets {
    pub(super) fn new(config: &crate::config::Config, now: Time) -> Targets {
        Targets {
            monitors: LinkMonitors::new(config, now),
            keys: Vec::new(),
            is_settling: false,
        }
    }

    pub(super) fn follow(&mut self, config: &crate::config::Config, now: Time) {
        self.monitors.follow(config, now);
        self.keys.clear();
    }
}

impl Gateway {
    /// The targets of `[[link-monitor]]`.
    pub fn targets(&self) -> impl Iterator<Item = TargetView<'_>> {
        self.targets.monitors.targets()
    }

    /// The target of the monitor at this place of the config has answered the probe with that
    /// number.
    pub fn handle_target_answer(&mut self, now: Time, monitor: usize, sequence: u16) {
        self.targets
            .monitors
            .handle_answer(now, monitor, Some(sequence));
        self.follow_targets(now);
    }

    /// Sends the due probes.
    pub(super) fn probe_targets(&mut self, now: Time) {
        self.targets.monitors.handle_timeout(now);
        while let Some(probe) = self.targets.monitors.poll_probe() {
            if let Err(why) = self.send_probe(now, probe) {
                self.targets.monitors.cannot_send(now, probe.monitor, why);
            }
        }
        if std::mem::take(&mut self.targets.is_settling) {
            self.targets.is_settling = self.targets.monitors.is_settling(now);
            self.tell_ports(now);
        }
        self.follow_targets(now);
    }

    /// A host on the link of `port` claims `addr`: it may be a target.
    pub(super) fn note_target(&mut self, now: Time, port: PortId, addr: Addr) {
        if self.rules.config().link_monitors.is_empty() {
            return;
        }
        let config = self.shared_config();
        for (index, monitor) in config.link_monitors.iter().enumerate() {
            let is_it = monitor.port == port && Addr::from(monitor.server) == addr;
            if is_it && monitor.protocol == MonitorProtocol::Arp {
                self.targets.monitors.handle_answer(now, index, None);
            }
        }
        self.follow_targets(now);
    }

    /// Whether a packet for a virtual address answers a probe; notes the answer, and ends a
    /// connection that the target has accepted.
    pub(super) fn takes_probe_answer(&mut self, packet: &Packet<'_>) -> bool {
        let reply = packet.parsed.key.reply();
        let mut keys = self.targets.keys.iter();
        let Some(index) = keys.position(|key| *key == Some(reply)) else {
            return false;
        };
        if let Some(reset) = build::tcp_reset(&packet.parsed) {
            self.send_packet(packet.now, packet.port, reset);
        }
        self.targets.keys[index] = None;
        self.targets.monitors.handle_answer(packet.now, index, None);
        self.follow_targets(packet.now);
        true
    }

    /// Follows changes of targets that have died or come back.
    fn follow_targets(&mut self, now: Time) {
        let mut changed = false;
        while let Some((index, state)) = self.targets.monitors.poll_change() {
            changed = true;
            let monitor = &self.rules.config().link_monitors[index];
            let (port, server) = (self.port_name(monitor.port), monitor.server_text());
            let protocol = monitor.protocol.word();
            match state {
                TargetState::Alive => {
                    log::info!("target answers port={port} server={server} protocol={protocol}")
                }
                TargetState::Dead => log::warn!(
                    "target does not answer port={port} server={server} protocol={protocol} \
                     effect=\"the port counts as down if too many of its targets are dead\""
                ),
                TargetState::Unknown => log::info!(
                    "target can not be asked port={port} server={server} protocol={protocol}"
                ),
            }
        }
        if changed {
            self.targets.is_settling = true;
            self.tell_ports(now);
            self.check_health(now);
        }
    }

    /// # Errors
    /// Why it can't be sent.
    fn send_probe(&mut self, now: Time, probe: Probe) -> Result<(), Unaskable> {
        let monitor = &self.rules.config().link_monitors[probe.monitor];
        let (port, protocol) = (monitor.port, monitor.protocol);
        let (server, server_port) = (Addr::from(monitor.server), monitor.server_port);
        if !self.links.works(port) {
            return Err(Unaskable::PortDown);
        }
        if protocol == MonitorProtocol::Arp {
            self.ask_link(port, server);
        } else if let Some(source) = self.probe_source(port, server) {
            self.push_urgent(Output::Probe {
                monitor: probe.monitor,
                sequence: probe.sequence,
                source,
            });
        } else {
            let key = self.probe_key(port, (server, server_port), protocol, probe.sequence)?;
            let bytes = build::opening_packet(&key).ok_or(Unaskable::OtherFamily)?;
            self.targets
                .keys
                .resize(self.rules.config().link_monitors.len(), None);
            self.targets.keys[probe.monitor] = Some(key);
            self.send_packet(now, port, bytes);
        }
        Ok(())
    }

    /// An address that the kernel has on the port, preferably in a network of the port.
    fn probe_source(&self, port: PortId, server: Addr) -> Option<Addr> {
        let networks = &self.rules.port(port).virtual_addresses;
        let is_apart = |addr: &Addr| {
            let ip = std::net::IpAddr::from(*addr);
            !networks.iter().any(|own| own.network.contains(&ip))
        };
        let own = self.links.kernel_on(port);
        own.filter(|addr| suits(*addr, server)).min_by_key(is_apart)
    }

    /// A packet to a target from the virtual address, which only the primary has.
    fn probe_key(
        &self,
        port: PortId,
        (server, server_port): (Addr, Option<u16>),
        protocol: MonitorProtocol,
        sequence: u16,
    ) -> Result<FlowKey, Unaskable> {
        let source = self.own_address(port, server.family(), |group| self.is_primary(group));
        let source = source.ok_or(Unaskable::NoAddress)?;
        let number = FIRST_PORT | sequence & !FIRST_PORT;
        let (protocol, dst_port) = match protocol {
            MonitorProtocol::Tcp => (Protocol::TCP, server_port.unwrap_or(0)),
            _ => (Protocol::ICMP, echo_port(number)),
        };
        Ok(FlowKey {
            protocol,
            src: source,
            src_port: number,
            dst: server,
            dst_port,
        })
    }

    /// Asks on the link for a host, from the virtual address of its network if this unit has that,
    /// else from the unspecified address.
    fn ask_link(&mut self, port: PortId, server: Addr) {
        let mac = self.links.link(port).mac;
        let ip = std::net::IpAddr::from(server);
        let mut own = self.rules.port(port).virtual_addresses.iter();
        let sender = own.find(|own| own.network.contains(&ip) && self.is_primary(own.group));
        let bytes = match sender {
            Some(own) => neighbor::solicit(server, own.addr, mac),
            None => neighbor::probe(server, mac),
        };
        self.push_urgent(Output::Frame { port, bytes });
    }

    /// Whether the targets behind `port` answer, as far as they decide about it.
    pub(super) fn leads_on(&self, now: Time, port: PortId) -> bool {
        let is_primary = self.groups().any(|group| self.is_primary(group));
        self.targets.monitors.is_good(now, port, is_primary)
    }
}

/// Of the family of `server`, and link-local only if that is; not an address of the TUN device.
fn suits(source: Addr, server: Addr) -> bool {
    if std::net::IpAddr::from(source).is_loopback() {
        return false;
    }
    let link_local = |addr: Addr| addr.family() == Family::V6 && addr.is_link_local();
    source.family() == server.family() && link_local(source) == link_local(server)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::samples::EVERYTHING;
    use crate::event::LinkState;
    use crate::gateway::Seed;

    /// The only monitored port, whose only target weighs more than allowed when dead.
    #[test]
    fn the_election_hears_of_dead_targets() {
        let (config, _) = crate::config::parse(Path::new("a.toml"), EVERYTHING).unwrap();
        let mut now = Time::ZERO;
        let mut gateway = Gateway::new(config, Seed([7; 32]), now);
        for port in [0, 1].map(PortId) {
            let link = LinkState {
                up: true,
                mtu: 1500,
                mac: [2; 6],
            };
            gateway.handle_link(now, port, link);
        }
        let told = |gateway: &Gateway, what: &str| {
            let mut events = gateway.cluster().unwrap().ha().events();
            events
                .rfind(|it| it.what.starts_with("monitored ports"))
                .is_some_and(|it| it.what.ends_with(what))
        };
        assert!(told(&gateway, "1 of 1"));
        while gateway.leads_on(now, PortId(0)) {
            now = now + Duration::from_millis(20);
            gateway.handle_wake(now);
            gateway.handle_timeout(now);
            assert!(now < Time::ZERO + Duration::from_secs(5), "it never dies");
        }
        assert!(told(&gateway, "0 of 1"));
        let target = Addr::v4([10, 0, 1, 50]);
        for _ in 0..40 {
            now = now + Duration::from_millis(50);
            gateway.handle_timeout(now);
            gateway.note_target(now, PortId(0), target);
        }
        assert!(gateway.leads_on(now, PortId(0)), "it answers again");
        assert!(told(&gateway, "1 of 1"));
    }
}
