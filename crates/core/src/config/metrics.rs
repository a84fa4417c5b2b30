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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::parse;

    fn with(metrics: &str) -> (Option<String>, Vec<String>) {
        let text = format!(
            "{metrics}\n[node]\nname = \"a\"\n[[port]]\nname = \"lan\"\ninterface = \"eth0\"\n"
        );
        let (config, warnings) = parse(Path::new("a.toml"), &text).unwrap();
        let listen = config.metrics.map(|metrics| metrics.listen.to_string());
        let said = warnings.into_iter().map(|warning| warning.message);
        (
            listen,
            said.filter(|said| said.contains("metrics")).collect(),
        )
    }

    #[test]
    fn off_by_default_and_loopback_when_on() {
        assert_eq!(with(""), (None, vec![]));
        let loopback = Some("127.0.0.1:10747".to_owned());
        assert_eq!(with("[metrics]"), (loopback, vec![]));
        let six = Some("[::1]:9999".to_owned());
        assert_eq!(with("[metrics]\nlisten = \"[::1]:9999\""), (six, vec![]));
    }

    #[test]
    fn an_address_that_everybody_reaches_is_warned_of() {
        for address in ["0.0.0.0:9100", "[::]:9100"] {
            let (listen, said) = with(&format!("[metrics]\nlisten = \"{address}\""));
            assert_eq!(listen.as_deref(), Some(address));
            assert!(said[0].contains("every network"), "{said:?}");
        }
    }
}
