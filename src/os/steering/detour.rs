//! Where the kernel leads the packets of a port, in its own words.
//!
//! Somebody else's rule before ours, a route in the table `local`, a reverse path filter for all
//! interfaces: each keeps packets from the gateway, or drops what it has forwarded, though all that
//! the gateway has added is in place. Nobody can list all that others may do. So the kernel is
//! asked (`RTM_GETROUTE`) what it would do with packets like those that matter.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::RouteType;

use super::plan::PortPlan;
use super::{Family, Netlink, NetlinkError, Steering, net_family};
use crate::os::netlink::{Passage, interface_name};
use tandemgw_core::flow::PortId;

/// An address of hosts that are behind a router (RFC 5737, RFC 3849).
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// The least MTU of a link with IPv6 (RFC 8200, section 5).
pub(super) const IPV6_MTU: u32 = 1280;

/// Hosts of a network that are tried as a source: one may be the network's own address, or one of
/// this machine, from which the kernel lets nothing come in.
const HOSTS_TRIED: u128 = 4;

/// Packets that the kernel does not lead where it should.
struct Detour {
    what: Passage,
    /// The kernel's treatment of them.
    how: String,
    /// It takes them for its own.
    is_kept: bool,
    wanted: &'static str,
}

impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Passage { from, to, by } = self.what;
        let by = interface_name(by).unwrap_or_else(|| format!("#{by}"));
        let Detour { how, wanted, .. } = self;
        write!(
            f,
            "the kernel {how} packets to {to} that come in by {by}, {wanted}: look for the rule, the route or the sysctl \
             with ip route get {to} from {from} iif {by}"
        )
    }
}

impl Steering {
    /// A wrong treatment of the packets of `port` by the kernel, or by somebody else in it, in
    /// words; none if all is well, if the port is down, or if it can't be found out.
    pub fn find_detour(&mut self, port: PortId) -> Option<String> {
        let detour = self.ask_for_detour(port);
        detour.or_else(|| self.obstacle(port))
    }

    fn ask_for_detour(&mut self, port: PortId) -> Option<String> {
        let Steering { netlink, plan, .. } = self;
        let families = &plan.families;
        let port = plan.ports.iter().find(|plan| plan.id == port)?;
        let link = netlink.link(&port.interface).ok()??;
        if !link.state().up || link.master.is_some() {
            return None;
        }
        let mut networks = families.iter().filter_map(|family| {
            let mut networks = port.networks.iter();
            networks.find(|network| net_family(network) == *family)
        });
        let has_ipv6 = |network: &IpNet| net_family(network) == Family::V6;
        if link.mtu < IPV6_MTU && port.networks.iter().any(has_ipv6) {
            return Some(format!(
                "the MTU of {0} is {1}, and the kernel has no IPv6 there with less than {IPV6_MTU}: ip link set {0} mtu \
                 {IPV6_MTU}, or more",
                port.interface, link.mtu
            ));
        }
        let others = plan.ports.iter().filter(|other| other.id != port.id);
        let others = others.flat_map(|other| &other.networks);
        networks.find_map(|network| {
            let other = others
                .clone()
                .find(|other| net_family(other) == net_family(network));
            find(netlink, port, network, other, link.index)
        })
    }
}

fn find(
    netlink: &mut Netlink,
    port: &PortPlan,
    network: &IpNet,
    other: Option<&IpNet>,
    link: u32,
) -> Option<String> {
    let family = net_family(network);
    let far = FAR[family as usize];
    let mut own = port.addresses.iter().map(IpNet::addr);
    let own = own.find(|addr| network.contains(addr));
    let beyond = other.into_iter().flat_map(hosts);
    let inward = own.into_iter().chain([far]).chain(beyond);
    let inward = inward.filter_map(|to| {
        let detour = misled(netlink, port, network, to, link)?;
        // One of those may be this machine.
        (!detour.is_kept || Some(to) == own).then_some(detour)
    });
    let first = inward.map(|detour| detour.to_string()).next();
    let first = first.or_else(|| misrouted(netlink, port, network, far, link));
    first.or_else(|| filtered(netlink, port, own?, other?).map(|detour| detour.to_string()))
}

/// Where the kernel sends what the gateway forwards to the network of the port, if not there.
fn misrouted(
    netlink: &mut Netlink,
    port: &PortPlan,
    network: &IpNet,
    from: IpAddr,
    link: u32,
) -> Option<String> {
    let is_own = |host: &IpAddr| port.addresses.iter().any(|own| own.addr() == *host);
    let mut elsewhere = None;
    for to in hosts(network).filter(|host| !is_own(host)) {
        let by = port.tun;
        let route = netlink.passage(&Passage { from, to, by }).ok();
        // A refusal is another matter, and a host may be this machine, or have a route of its own.
        let route = route.filter(|route| route.kind == RouteType::Unicast);
        let Some(hop) = route.and_then(|route| route.hops.first().map(|hop| hop.link)) else {
            continue;
        };
        if hop == link {
            return None;
        }
        elsewhere = Some((to, hop));
    }
    let (to, hop) = elsewhere?;
    let hop = interface_name(hop).unwrap_or_else(|| format!("#{hop}"));
    let (network, interface) = (network.trunc(), &port.interface);
    Some(format!(
        "the kernel sends packets to hosts of {network} by {hop} and not by {interface}: look for the route with ip route \
         get {to}"
    ))
}

/// Whether a reverse path filter drops what the gateway has forwarded to the port. IPv6 has none.
fn filtered(netlink: &mut Netlink, port: &PortPlan, to: IpAddr, other: &IpNet) -> Option<Detour> {
    let mut passages = hosts(other).map(|from| Passage {
        from,
        to,
        by: port.tun,
    });
    let what = passages.clone().next().filter(|_| to.is_ipv4())?;
    // Older kernels say EXDEV.
    let is_filtered = passages.all(|what| {
        let error = netlink.passage(&what).err();
        error.is_some_and(|error| error.is(libc::EXDEV) || error.is(libc::EINVAL))
    });
    is_filtered.then(|| Detour {
        what,
        how: "drops (net.ipv4.conf.all.rp_filter)".to_owned(),
        is_kept: false,
        wanted: "which the gateway has let pass",
    })
}

/// The kernel's treatment of packets to `to` that come in by the port, if it does not give them to
/// the gateway.
fn misled(
    netlink: &mut Netlink,
    port: &PortPlan,
    network: &IpNet,
    to: IpAddr,
    link: u32,
) -> Option<Detour> {
    let passages = hosts(network).map(|from| Passage { from, to, by: link });
    let mut refused: Option<(Passage, NetlinkError)> = None;
    for what in passages {
        let wanted = "which belong to the gateway";
        match netlink.passage(&what) {
            Ok(route) => {
                let hop = route.hops.first().map(|hop| hop.link);
                if route.kind == RouteType::Unicast && hop == Some(port.tun) {
                    return None;
                }
                let how = match hop.and_then(interface_name) {
                    _ if route.kind == RouteType::Local => "keeps".to_owned(),
                    Some(name) => format!("sends to {name} the"),
                    None => "drops".to_owned(),
                };
                return Some(Detour {
                    what,
                    how,
                    is_kept: matches!(route.kind, RouteType::Local | RouteType::Broadcast),
                    wanted,
                });
            }
            // It takes this source for none that can be, or there is a blackhole.
            Err(error) => refused = Some((what, error)),
        }
    }
    let (what, error) = refused.filter(|_| hosts(network).count() > 2)?;
    let is_said = [
        libc::EINVAL,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::EACCES,
        libc::EXDEV,
    ]
    .into_iter()
    .any(|errno| error.is(errno));
    is_said.then(|| Detour {
        what,
        how: format!("drops ({})", error.source),
        is_kept: false,
        wanted: "which belong to the gateway",
    })
}

/// Some hosts of a network.
pub(super) fn hosts(network: &IpNet) -> impl Iterator<Item = IpAddr> + Clone + use<> {
    let network = *network;
    (1..=HOSTS_TRIED).filter_map(move |number| {
        let host = match network.trunc().addr() {
            IpAddr::V4(ip) => IpAddr::V4((u32::from(ip).checked_add(number as u32)?).into()),
            IpAddr::V6(ip) => IpAddr::V6((u128::from(ip).checked_add(number)?).into()),
        };
        let is_last =
            matches!((network, host), (IpNet::V4(net), IpAddr::V4(ip)) if net.broadcast() == ip);
        (network.contains(&host) && !is_last).then_some(host)
    })
}
