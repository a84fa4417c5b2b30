//! `[[link-monitor]]`: targets that must answer behind a port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::diagnostic::Report;
use super::network::{Network, port_id};
use super::reader::{At, Table};
use super::value::unusable;
use super::{Ha, LinkMonitor, MonitorProtocol};
use crate::flow::{Addr, PortId};

/// Reads the monitors.
pub(super) fn read(root: &mut Table<'_>, network: &Network) -> Vec<LinkMonitor> {
    let mut monitors: Vec<LinkMonitor> = Vec::new();
    for mut table in root.tables("link-monitor") {
        let report = table.report;
        let port = table.require::<String>("port");
        let port = port.and_then(|port| network.port_names.resolve(report, &port));
        let server = table.require::<String>("server");
        let protocol = table.choice("protocol").map(|word| word.value);
        let mut monitor = LinkMonitor {
            port: port.map_or(PortId(0), port_id),
            server: IpAddr::from([0; 4]),
            server_port: None,
            protocol: MonitorProtocol::of_word(protocol.unwrap_or("ping")),
            interval: Duration::ZERO,
            failtime: 0,
            recoverytime: 0,
            ha_priority: 0,
        };
        table.fill(&mut monitor);
        if let Some(server) = server {
            read_server(report, &server, &mut monitor, network);
            let same = |other: &&LinkMonitor| {
                (other.port, other.server_text()) == (monitor.port, monitor.server_text())
                    && other.protocol == monitor.protocol
            };
            if port.is_some() && monitors.iter().any(|it| same(&it)) {
                let message = format!("`{}` is monitored already", server.value);
                report.error(&server.span, message, "remove one of the two");
            }
        }
        table.finish();
        monitors.push(monitor);
    }
    monitors
}

/// Warns of monitors whose port does not count for the election.
pub(super) fn warn_of_ports(
    root: &Table<'_>,
    monitors: &[LinkMonitor],
    ha: Option<&Ha>,
    network: &Network,
) {
    let Some(ha) = ha else { return };
    for monitor in monitors {
        if !ha.monitor.contains(&monitor.port)
            && let Some(port) = network.ports.get(monitor.port.index())
        {
            let message = format!(
                "`[[link-monitor]]` of port `{}` moves no group: the port is not in `monitor`",
                port.name
            );
            let hint = format!("add \"{}\" to `monitor` in `[ha]`", port.name);
            root.report.warn(&root.header, message, hint);
        }
    }
}

/// An address; for TCP with a port.
fn read_server(report: &Report, server: &At<String>, monitor: &mut LinkMonitor, network: &Network) {
    let At { value, span } = server;
    let wants_port = monitor.protocol == MonitorProtocol::Tcp;
    let read = match wants_port {
        true => value
            .parse::<SocketAddr>()
            .ok()
            .map(|end| (end.ip(), Some(end.port()))),
        false => value.parse::<IpAddr>().ok().map(|addr| (addr, None)),
    };
    let Some((addr, port)) = read.filter(|(_, port)| *port != Some(0)) else {
        let (what, hint) = match wants_port {
            true => (
                "an address with a port",
                "write 192.0.2.1:443 or [2001:db8::1]:443",
            ),
            false => (
                "an address",
                "write 192.0.2.1 or 2001:db8::1; names are not looked up",
            ),
        };
        return report.error(span, format!("`{value}` is not {what}"), hint);
    };
    (monitor.server, monitor.server_port) = (addr, port);
    let is_router = matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if let Some(why) = unusable(addr).filter(|_| !is_router) {
        report.error(
            span,
            format!("`{addr}` is {why}"),
            "give a target's address",
        );
    } else if network.port_of(Addr::from(addr)).is_some() {
        let message = format!("`{addr}` is a virtual address of the gateway");
        report.error(
            span,
            message,
            "give the address of a target behind the port",
        );
    }
}
