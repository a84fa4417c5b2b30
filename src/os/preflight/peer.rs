//! Whether the peers' machines can be reached, for a gateway that does not run yet: the route, and
//! whether a machine answers. A peer's gateway answers only units that have proved their identity.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::{Check, MachineProblem, Network};
use crate::os::netlink::{Netlink, NetlinkError, NextHop};
use tandemgw_core::config::{Ha, HaLink};

/// How long neighbours and hosts may take to answer; the kernel solicits a neighbour once a second.
const NEIGHBOUR_WAIT: Duration = Duration::from_millis(2500);
const REFUSAL_WAIT: Duration = Duration::from_millis(200);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A check for each peer and link.
pub(super) fn check_all(ha: &Ha, network: &Network) -> Vec<Check> {
    let pairs = ha.peers.iter().flat_map(|peer| {
        let addresses = ha.links.iter().zip(&peer.addresses);
        addresses.map(|(link, address)| (peer.name.as_str(), link, *address))
    });
    pairs
        .map(|(name, link, address)| {
            let check = format!("peer {name}");
            match reach(link, address, network) {
                Ok(found) => Check::new(check, found, []),
                Err(problem) => Check::new(check, "", [problem]),
            }
        })
        .collect()
}

fn reach(link: &HaLink, address: SocketAddr, network: &Network) -> Result<String, MachineProblem> {
    let interface = &link.interface;
    let Some(index) = network.link(interface).map(|link| link.index) else {
        return Err(MachineProblem::warning(
            format!("{address} was not checked: there is no interface {interface}"),
            "see the check for the link",
        ));
    };
    let ip = address.ip();
    let hop = Netlink::open()
        .ok()
        .and_then(|mut netlink| netlink.route_to(ip).ok().flatten());
    let Some(hop) = hop else {
        return Err(MachineProblem::warning(
            format!("the kernel has no route to {ip}"),
            format!("give {interface} an address in its network, or add a route by {interface}"),
        ));
    };
    if hop.link != index {
        return Err(MachineProblem::warning(
            format!(
                "the route to {ip} leads out of {}, not of {interface}",
                network.name_of(hop.link)
            ),
            format!(
                "ip route add {ip} dev {interface}, or correct `addresses` of the peer: they are in the order of the links"
            ),
        ));
    }
    let next = hop.gateway.unwrap_or(ip);
    match wait_for_neighbour(hop, next) {
        Ok(true) => {}
        Ok(false) => {
            return Err(MachineProblem::warning(
                format!(
                    "nobody on {interface} answers for {next}: the peer is off, or the link leads elsewhere"
                ),
                format!(
                    "start the peer's machine; check the cable or switch, and its address: ip addr on the peer must show {ip}"
                ),
            ));
        }
        Err(error) => {
            return Err(MachineProblem::warning(
                format!("can't find out whether {next} is there: {error}"),
                "run it as root",
            ));
        }
    }
    let gateway = match is_refused(link, address) {
        true => "its gateway does not run yet",
        false => "whether its gateway runs is seen after the start",
    };
    Ok(format!("{ip} answers on {interface}; {gateway}"))
}

fn wait_for_neighbour(hop: NextHop, next: IpAddr) -> Result<bool, NetlinkError> {
    let mut netlink = Netlink::open().map_err(NetlinkError::on_open)?;
    netlink.resolve(hop.link, next)?;
    let deadline = Instant::now() + NEIGHBOUR_WAIT;
    loop {
        match netlink.is_neighbour(hop.link, next)? {
            Some(is_there) => return Ok(is_there),
            None if Instant::now() >= deadline => return Ok(false),
            None => thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Whether the peer's machine reports that nothing listens at the address.
fn is_refused(link: &HaLink, address: SocketAddr) -> bool {
    // From a port of its own: what a running peer gets from a stranger it drops.
    let probe = || -> std::io::Result<usize> {
        let socket = UdpSocket::bind((link.listen.ip(), 0))?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(REFUSAL_WAIT))?;
        socket.send(&[0])?;
        socket.recv(&mut [0; 1])
    };
    probe().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}
