//! Which services of the machine itself a port exposes.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Check;
use tandemgw_core::config::{Config, Port};
use tandemgw_core::flow::{PortId, Protocol};

/// States of sockets in /proc/net: TCP that listens, UDP that is not connected.
const TABLES: [(&str, Protocol, &str); 4] = [
    ("/proc/net/tcp", Protocol::TCP, "0A"),
    ("/proc/net/tcp6", Protocol::TCP, "0A"),
    ("/proc/net/udp", Protocol::UDP, "07"),
    ("/proc/net/udp6", Protocol::UDP, "07"),
];

/// UDP ports from here on are those of clients, which wait for answers.
const FIRST_CLIENT_PORT: u16 = 32_768;

/// A socket that waits for whoever comes.
type Service = (Protocol, u16, IpAddr);

/// Names the services, by port.
pub(super) fn check(config: &Config, addresses_of: impl Fn(&Port) -> Vec<IpAddr>) -> Check {
    let all = listening();
    let exposed = config.ports.iter().enumerate().map(|(index, port)| {
        let own = addresses_of(port);
        let reachable = |(_, _, addr): &&Service| addr.is_unspecified() || own.contains(addr);
        let shown: BTreeSet<String> = all
            .iter()
            .filter(reachable)
            .filter_map(|service| open(config, PortId::from_index(index), service))
            .collect();
        match shown.is_empty() {
            true => format!("{}: none", port.name),
            false => {
                let shown: Vec<String> = shown.into_iter().collect();
                format!("{}: {}", port.name, shown.join(", "))
            }
        }
    });
    let found = exposed.collect::<Vec<_>>().join("; ");
    Check::new("services", format!("open to hosts on {found}"), [])
}

/// The service, and for whom, if a packet from somebody reaches it by the port.
fn open(config: &Config, port: PortId, (protocol, number, _): &Service) -> Option<String> {
    let name = format!("{protocol}/{number}");
    let mut policies = config.local_in_of(port).peekable();
    if policies.peek().is_none() {
        return Some(name);
    }
    let mut some = Vec::new();
    for policy in policies {
        let is_meant = policy.service.is_empty()
            || policy.service.iter().any(|service| {
                let ports = service.ports.unwrap_or((0, u16::MAX));
                service.protocol == *protocol && (ports.0..=ports.1).contains(number)
            });
        match (is_meant, policy.accepts, policy.source.is_empty()) {
            (true, true, true) => return Some(name),
            (true, false, true) => break,
            (true, true, false) => some.extend(policy.source.iter().map(ToString::to_string)),
            _ => {}
        }
    }
    (!some.is_empty()).then(|| format!("{name} (from {})", some.join(", ")))
}

fn listening() -> BTreeSet<Service> {
    let mut all = BTreeSet::new();
    for (file, protocol, state) in TABLES {
        // Without IPv6 there is no such file.
        let text = fs::read_to_string(file).unwrap_or_default();
        all.extend(
            text.lines()
                .skip(1)
                .filter_map(|line| parse(line, protocol, state)),
        );
    }
    all
}

/// A line of such a table: number, local address, remote address, state (proc(5)).
fn parse(line: &str, protocol: Protocol, state: &str) -> Option<Service> {
    let mut words = line.split_whitespace().skip(1);
    let local = words.next()?;
    let is_client = |port: u16| protocol == Protocol::UDP && port >= FIRST_CLIENT_PORT;
    if words.nth(1)? != state {
        return None;
    }
    let (addr, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits in the byte order of the machine.
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes);
    let addr = match addr.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(addr)?)),
        32 => {
            let words = (0..4).map(|at| word(&addr[at * 8..at * 8 + 8]));
            let words: Option<Vec<[u8; 4]>> = words.collect();
            let octets: [u8; 16] = words?.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    (!is_client(port)).then_some((protocol, port, addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_the_kernel_are_read() {
        let line =
            "   0: 0100007F:0277 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0";
        let found = parse(line, Protocol::TCP, "0A");
        assert_eq!(
            found,
            Some((Protocol::TCP, 631, "127.0.0.1".parse().unwrap()))
        );
        assert_eq!(parse(line, Protocol::TCP, "01"), None);
        let line = "  23: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0";
        let found = parse(line, Protocol::TCP, "0A");
        assert_eq!(found, Some((Protocol::TCP, 22, "::1".parse().unwrap())));
        let client = "  9: 00000000:C350 00000000:0000 07 0";
        assert_eq!(parse(client, Protocol::UDP, "07"), None);
        assert_eq!(parse("what?", Protocol::UDP, "07"), None);
    }
}
