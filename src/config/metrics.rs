//! `[metrics]`

use std::net::SocketAddr;

use super::Metrics;
use super::network::Network;
use super::reader::{At, Table};
use crate::flow::Addr;

/// Reads `[metrics]`; none after an error.
pub(super) fn read(mut table: Table<'_>, network: &Network) -> Option<Metrics> {
    let report = table.report;
    let listen = table.take::<SocketAddr>("listen");
    table.finish();
    let At { value, span } = listen?;
    let ip = value.ip();
    if network.port_of(Addr::from(ip)).is_some() {
        let hint = "give an address that the kernel of this unit has, such as 127.0.0.1";
        report.error(&span, format!("`{ip}` is a virtual address"), hint);
    } else if ip.is_multicast() {
        let hint = "give an address of this unit, such as 127.0.0.1";
        report.error(&span, format!("`{ip}` is a multicast address"), hint);
    } else if ip.is_unspecified() {
        let message = format!("`{ip}` serves the metrics to every network, without a password");
        let hint = "give the address of a management network, or 127.0.0.1";
        report.warn(&span, message, hint);
    }
    Some(Metrics { listen: value })
}
