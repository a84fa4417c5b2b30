//! Checks for every interface that the config names.

use std::net::IpAddr;

use super::{KernelLink, MachineProblem, Network};

/// The problem that there is no interface with this name; `whose` says what needs it.
pub(super) fn missing(whose: &str, name: &str, network: &Network) -> MachineProblem {
    let mut names: Vec<&str> = network
        .links
        .iter()
        .filter(|link| !link.loopback && !link.name.starts_with("tgw-"))
        .map(|link| link.name.as_str())
        .collect();
    names.sort_by_key(|near| strsim::levenshtein(near, name));
    let remedy = match names.first() {
        Some(near) if strsim::levenshtein(near, name) <= 2 => format!("did you mean {near}?"),
        Some(_) => format!("this machine has: {}", names.join(", ")),
        None => "this machine has no interface but loopback".into(),
    };
    MachineProblem::fatal(format!("{whose}: there is no interface {name}"), remedy)
}

/// The problem that nothing gets through; `at` names the interface and what needs it.
pub(super) fn down(at: &str, link: &KernelLink) -> Option<MachineProblem> {
    if link.state().up {
        return None;
    }
    let (what, remedy) = if link.admin_up {
        (
            "has no carrier",
            "plug in the cable, or bring up the other end".into(),
        )
    } else {
        ("is down", format!("ip link set {} up", link.name))
    };
    Some(MachineProblem::warning(format!("{at} {what}"), remedy))
}

/// An interface in a few words: `eth0 up, MTU 1500, 10.77.1.2/24`.
pub(super) fn describe(link: &KernelLink, network: &Network) -> String {
    let up = if link.state().up { "up" } else { "down" };
    let mut text = format!("{} {up}, MTU {}", link.name, link.mtu);
    let is_link_local = |addr: IpAddr| match addr {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let addresses = network.addresses_of(link);
    for address in addresses.filter(|own| !is_link_local(own.addr)) {
        text.push_str(&format!(", {}/{}", address.addr, address.prefix_len));
    }
    text
}
