//! The network around the gateway.
//!
//! ```text
//! lan1 .100 ──┐                                                     ┌── server .100 .101
//! lan2 .101 ──┴─ sw-lan ── eth0 [ gateway .2, virtual .1 ] eth1 ── sw-wan
//!        10.77.1.0/24 fd77:1::/64                  10.77.2.0/24 fd77:2::/64
//! ```
//!
//! The hosts' default route is the virtual address. The server has no route to the LAN: it can only
//! answer to what was translated, and anything else it sees has leaked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::unit::Unit;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// Addresses of the first LAN host, of either family.
pub const LAN1: [&str; 2] = ["10.77.1.100", "fd77:1::100"];
/// Addresses of the second LAN host.
pub const LAN2: [&str; 2] = ["10.77.1.101", "fd77:1::101"];
/// The gateway's virtual addresses on the LAN.
pub const LAN_GATEWAY: [&str; 2] = ["10.77.1.1", "fd77:1::1"];
/// The gateway's virtual addresses on the WAN.
pub const WAN_GATEWAY: [&str; 2] = ["10.77.2.1", "fd77:2::1"];
/// Addresses of the server.
pub const SERVER: [&str; 2] = ["10.77.2.100", "fd77:2::100"];
/// Its second addresses.
pub const SERVER2: [&str; 2] = ["10.77.2.101", "fd77:2::101"];
/// The host behind the routers that [`Lab::add_far_network`] adds.
pub const FAR: [&str; 2] = ["10.77.3.100", "fd77:3::100"];

/// Hosts, switches, a server, and one gateway.
pub struct Lab {
    pub unit: Unit,
    pub lan1: Namespace,
    pub lan2: Namespace,
    pub server: Namespace,
    pub sw_lan: Namespace,
    pub sw_wan: Namespace,
    dir: PathBuf,
}

/// Networks beyond the WAN: `sw-wan ── r1 ──narrow link── r2 ── far`.
pub struct FarNetwork {
    pub far: Namespace,
    /// From the WAN on.
    pub routers: [Namespace; 2],
}

impl Lab {
    /// The network without a running gateway.
    pub fn new() -> Lab {
        let dir = make_dir();
        let sw_lan = Namespace::first("sw-lan");
        let sw_wan = sw_lan.sibling("sw-wan");
        make_bridge(&sw_lan);
        make_bridge(&sw_wan);
        let [lan1, lan2, server, unit] =
            ["lan1", "lan2", "server", "gw-a"].map(|name| sw_lan.sibling(name));
        plug(&sw_lan, &lan1, "eth0");
        plug(&sw_lan, &lan2, "eth0");
        plug(&sw_wan, &server, "eth0");
        for (host, addresses) in [(&lan1, LAN1), (&lan2, LAN2)] {
            assign(host, "eth0", addresses);
            default_route(host, LAN_GATEWAY);
        }
        assign(&server, "eth0", SERVER);
        assign(&server, "eth0", SERVER2);
        // Deprecated: servers that answer without a thought do not answer from it.
        server.run(&format!(
            "ip addr change {}/64 dev eth0 preferred_lft 0",
            SERVER2[1]
        ));
        let unit = Unit::new(unit, &dir);
        let lab = Lab {
            unit,
            lan1,
            lan2,
            server,
            sw_lan,
            sw_wan,
            dir,
        };
        lab.attach_lan();
        lab.attach_wan();
        wait_for_local_routes(&lab.unit.ns);
        lab
    }

    /// The network with a gateway that runs with the default config.
    pub fn started() -> Lab {
        let mut lab = Lab::new();
        lab.unit.start();
        lab
    }

    /// A directory for files of this lab.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the gateway's LAN interface.
    pub fn attach_lan(&self) {
        plug(&self.sw_lan, &self.unit.ns, "eth0");
        assign(&self.unit.ns, "eth0", ["10.77.1.2", "fd77:1::2"]);
    }

    /// Makes the gateway's WAN interface.
    pub fn attach_wan(&self) {
        plug(&self.sw_wan, &self.unit.ns, "eth1");
        assign(&self.unit.ns, "eth1", ["10.77.2.2", "fd77:2::2"]);
    }

    /// Adds routers and a host beyond the WAN, and tells the gateway the way there. Only the link
    /// between the routers has the small MTU, so that no end knows of it.
    pub fn add_far_network(&self, narrow_mtu: u32) -> FarNetwork {
        let [r1, r2, far] = ["r1", "r2", "far"].map(|name| self.sw_wan.sibling(name));
        plug(&self.sw_wan, &r1, "eth0");
        assign(&r1, "eth0", ["10.77.2.254", "fd77:2::254"]);
        connect((&r1, "eth1"), (&r2, "eth0"));
        assign(&r1, "eth1", ["10.77.4.1", "fd77:4::1"]);
        assign(&r2, "eth0", ["10.77.4.2", "fd77:4::2"]);
        connect((&r2, "eth1"), (&far, "eth0"));
        assign(&r2, "eth1", ["10.77.3.1", "fd77:3::1"]);
        assign(&far, "eth0", FAR);
        r1.run(&format!("ip link set eth1 mtu {narrow_mtu}"));
        r2.run(&format!("ip link set eth0 mtu {narrow_mtu}"));
        for router in [&r1, &r2] {
            router.sysctl("ipv4/ip_forward", "1");
            router.sysctl("ipv6/conf/all/forwarding", "1");
        }
        default_route(&r1, ["10.77.4.2", "fd77:4::2"]);
        default_route(&r2, ["10.77.4.1", "fd77:4::1"]);
        default_route(&far, ["10.77.3.1", "fd77:3::1"]);
        self.unit
            .ns
            .run("ip route add 10.77.3.0/24 via 10.77.2.254");
        self.unit.ns.run("ip route add fd77:3::/64 via fd77:2::254");
        FarNetwork {
            far,
            routers: [r1, r2],
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A file that can't be removed lies in the build directory, where it does no harm.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// An address as it stands in a URL or before a port.
pub fn bracketed(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

/// Makes `switch` a switch.
pub fn make_bridge(switch: &Namespace) {
    switch.run("ip link add br0 type bridge stp_state 0 mcast_snooping 0");
    switch.run("ip link set br0 up");
}

/// Connects a new interface of `host` to a new port of the switch.
pub fn plug(switch: &Namespace, host: &Namespace, interface: &str) {
    let port = switch_port(host, interface);
    switch.run(&format!(
        "ip link add {port} type veth peer name {interface} netns {}",
        host.id()
    ));
    switch.run(&format!("ip link set {port} master br0 up"));
    host.run(&format!("ip link set {interface} up"));
}

/// The name of the switch's port to which an interface of `host` is plugged.
pub fn switch_port(host: &Namespace, interface: &str) -> String {
    format!("{}-{interface}", host.name())
}

/// Waits until the kernel has made the local routes of a unit's IPv6 addresses on both ports.
pub fn wait_for_local_routes(unit: &Namespace) {
    wait_until(
        "the kernel has made the local routes of all IPv6 addresses",
        || {
            let routes = unit.run("ip -6 route show table local");
            routes
                .lines()
                .filter(|line| line.starts_with("local f"))
                .count()
                == 4
        },
    );
}

fn connect(a: (&Namespace, &str), b: (&Namespace, &str)) {
    a.0.run(&format!(
        "ip link add {} type veth peer name {} netns {}",
        a.1,
        b.1,
        b.0.id()
    ));
    a.0.run(&format!("ip link set {} up", a.1));
    b.0.run(&format!("ip link set {} up", b.1));
}

/// Gives an interface an address of each family.
pub fn assign(host: &Namespace, interface: &str, [v4, v6]: [&str; 2]) {
    host.run(&format!("ip addr add {v4}/24 dev {interface}"));
    host.run(&format!("ip addr add {v6}/64 dev {interface} nodad"));
}

fn default_route(host: &Namespace, gateways: [&str; 2]) {
    for gateway in gateways {
        host.run(&format!("ip route add default via {gateway}"));
    }
}

fn make_dir() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lab-{}-{number}", process::id()));
    fs::create_dir_all(&dir).expect("making a directory for the lab");
    dir
}
