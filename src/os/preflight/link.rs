//! The links to the peers on this side: interface, address, MTU, UDP port.

use std::io::ErrorKind;
use std::net::UdpSocket;

use super::port::IPV6_MIN_MTU;
use super::{Check, MachineProblem, Network, interface};
use tandemgw_core::config::{Config, HaLink};

/// The MTU of Ethernet, which a link should have as well.
const ETHERNET_MTU: u32 = 1500;

/// A QUIC datagram of 1200 bytes (RFC 9000, section 14) with the headers of UDP and IPv4.
const IPV4_MIN_MTU: u32 = 1200 + 8 + 20;

/// One `[[ha.link]]`.
pub(super) fn check(
    config: &Config,
    settings: &HaLink,
    network: &Network,
    is_running: bool,
) -> Check {
    let (name, listen) = (&settings.interface, settings.listen);
    let check = format!("link {name}");
    let whose = format!("the link {listen}");
    let Some(link) = network.link(name) else {
        let missing = interface::missing(&whose, name, network);
        return Check::new(check, "", [without_link(missing)]);
    };
    let at = format!("{whose}: interface {name}");
    let mut problems: Vec<MachineProblem> = interface::down(&at, link).into_iter().collect();
    if link.mtu < ETHERNET_MTU {
        let remedy = format!("ip link set {name} mtu {ETHERNET_MTU}");
        let what = format!("{at} has an MTU of {}", link.mtu);
        let least = match listen.is_ipv4() {
            true => IPV4_MIN_MTU,
            false => IPV6_MIN_MTU,
        };
        problems.push(match link.mtu < least {
            true => MachineProblem::fatal(format!("{what}: it needs {least}"), remedy),
            false => MachineProblem::warning(
                format!("{what}: sessions are replicated in smaller packets"),
                remedy,
            ),
        });
    }
    if config.ports.iter().any(|port| port.interface == *name) {
        problems.push(MachineProblem::warning(
            format!("{at} is also a port: when it is busy or dead, so is the link"),
            "connect the units by a separate interface, or add a second link",
        ));
    }
    let addresses = network.addresses.iter();
    let holders: Vec<u32> = addresses
        .filter(|own| own.addr == listen.ip())
        .map(|own| own.link)
        .collect();
    if holders.contains(&link.index) {
        problems.extend(port_in_use(settings, is_running));
    } else {
        let elsewhere = holders.first().map(|index| network.name_of(*index));
        let place = elsewhere.map_or("nowhere".to_owned(), |other| format!("on {other}"));
        problems.push(without_link(MachineProblem::warning(
            format!(
                "{at} does not have the address {}, which is {place}",
                listen.ip()
            ),
            format!(
                "ip addr add {}/PREFIX dev {name}, or correct `listen`",
                listen.ip()
            ),
        )));
    }
    let found = format!(
        "{}, UDP {}",
        interface::describe(link, network),
        listen.port()
    );
    Check::new(check, found, problems)
}

/// The gateway starts without a link, and uses it as soon as it is there.
fn without_link(problem: MachineProblem) -> MachineProblem {
    let effect = "until it is there, no peer is heard over this link";
    MachineProblem::warning(format!("{} ({effect})", problem.what), problem.remedy)
}

/// The problem that something else has the UDP port.
fn port_in_use(settings: &HaLink, is_running: bool) -> Option<MachineProblem> {
    if is_running {
        return None;
    }
    let error = UdpSocket::bind(settings.listen).err()?;
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => format!(
            "stop what has it (ss -lunp 'sport = {}'), or choose another port in `listen`",
            settings.listen.port()
        ),
        _ => "correct `listen`".to_owned(),
    };
    Some(MachineProblem::fatal(
        format!("UDP {} can't be used: {error}", settings.listen),
        remedy,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_names_the_mtus_that_are_judged() {
        for page in ["doctor.md", "pair.md", "troubleshooting.md"] {
            let path = format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).unwrap();
            let mut lines = text.lines();
            let names = |line: &str| {
                let least = [IPV4_MIN_MTU, IPV6_MIN_MTU];
                least.iter().all(|mtu| line.contains(&mtu.to_string()))
            };
            assert!(lines.any(names), "{page}");
        }
    }
}
