//! What administrators, network managers and containers do to a machine, beside what
//! `interference` and `soak` do: nothing passes untranslated, and the gateway serves meanwhile, or
//! at the latest when it is undone.

use std::time::Duration;

use testkit::system::process::wait_until;

use crate::interference::Siege;
use crate::lab::{Lab, SERVER, switch_port};

/// The change, and its reversal. The gateway serves in between too.
const HARMLESS: &[(&str, &str)] = &[
    (
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.ip_forward=1",
    ),
    (
        "sysctl -qw net.ipv4.conf.all.forwarding=0",
        "sysctl -qw net.ipv4.conf.all.forwarding=1",
    ),
    (
        "sysctl -qw net.ipv6.conf.all.forwarding=0",
        "sysctl -qw net.ipv6.conf.all.forwarding=1",
    ),
    (
        "sysctl -qw net.ipv4.conf.default.forwarding=0 net.ipv4.conf.default.rp_filter=1",
        "",
    ),
    (
        "sysctl -qw net.ipv4.conf.eth0.rp_filter=1 net.ipv4.conf.eth1.rp_filter=1",
        "sysctl -qw net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.eth1.rp_filter=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.all.accept_local=0 net.ipv4.conf.all.log_martians=1",
        "",
    ),
    (
        "sysctl -qw net.ipv4.conf.all.arp_ignore=8 net.ipv4.conf.all.arp_announce=2",
        "sysctl -qw net.ipv4.conf.all.arp_ignore=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.all.proxy_arp=1",
        "sysctl -qw net.ipv4.conf.all.proxy_arp=0",
    ),
    (
        "ip rule add priority 1000 l3mdev; ip -6 rule add priority 1000 l3mdev",
        "ip rule del priority 1000; ip -6 rule del priority 1000",
    ),
    (
        "ip link add link eth0 name mv0 type macvlan mode bridge; ip link set mv0 up",
        "ip link del mv0",
    ),
    (
        "ethtool -K eth0 gro off tso off gso off tx off rx off",
        "ethtool -K eth0 gro on tso on gso on tx on rx on",
    ),
    (
        "ethtool -K eth1 rxvlan off txvlan off",
        "ethtool -K eth1 rxvlan on txvlan on",
    ),
    (
        "tc qdisc add dev eth0 clsact; tc qdisc add dev eth1 clsact",
        "tc qdisc del dev eth0 clsact; tc qdisc del dev eth1 clsact",
    ),
    (
        "tc qdisc replace dev eth1 root pfifo limit 500",
        "tc qdisc del dev eth1 root",
    ),
    (
        "ip link set eth0 promisc on; ip link set eth0 allmulticast on",
        "ip link set eth0 promisc off; ip link set eth0 allmulticast off",
    ),
    (
        "ip link set eth1 mtu 1400; ip link set eth1 mtu 1280",
        "ip link set eth1 mtu 1500",
    ),
    (
        "ip link set tgw-lan mtu 1300; ip link set tgw-wan txqueuelen 1",
        "",
    ),
    (
        "ip link set tgw-wan promisc on; ip link set tgw-wan alias mine",
        "",
    ),
    (
        "ip addr add 10.77.2.50/24 dev eth0; ip -6 addr add fd77:2::50/64 dev eth0 nodad",
        "ip addr del 10.77.2.50/24 dev eth0; ip -6 addr del fd77:2::50/64 dev eth0",
    ),
    (
        "ip addr add 192.0.2.9/32 dev tgw-wan; ip -6 addr add 2001:db8::9/128 dev tgw-lan nodad",
        "",
    ),
    (
        "ip route add default dev eth1; ip -6 route add default dev eth1",
        "ip route del default dev eth1; ip -6 route del default dev eth1",
    ),
    (
        "ip nexthop add id 9 dev eth1; ip route add 10.99.0.0/16 nhid 9; ip nexthop flush",
        "",
    ),
    ("ip neigh flush all; ip -6 neigh flush all", ""),
    ("ip route flush cache; ip -6 route flush cache", ""),
    (
        "nft 'add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; add rule ip nat post oifname docker0 masquerade'",
        "nft delete table ip nat",
    ),
    (
        "nft 'add table inet raw; add chain inet raw pre { type filter hook prerouting priority -300; }; add rule inet raw pre notrack'",
        "nft delete table inet raw",
    ),
    (
        "nft 'add table inet m; add chain inet m pre { type filter hook prerouting priority -150; }; add rule inet m pre meta mark set 0xffffffff'",
        "nft delete table inet m",
    ),
    (
        "for n in $(seq 200); do ip link add d$n type veth peer name p$n; done",
        "for n in $(seq 200); do ip link del d$n; done",
    ),
];

/// These stop the gateway until they are undone, or change what hosts must know.
const HARMFUL: &[(&str, &str)] = &[
    (
        "ip rule add priority 32000 lookup 99; ip route add 10.77.2.0/24 dev eth0 table 99",
        "ip rule del priority 32000; ip route flush table 99",
    ),
    (
        "ip route replace 10.77.2.0/24 dev eth0",
        "ip route replace 10.77.2.0/24 dev eth1 src 10.77.2.2",
    ),
    (
        "ip route replace blackhole 10.77.2.0/24",
        "ip route replace 10.77.2.0/24 dev eth1 src 10.77.2.2",
    ),
    (
        "ip -6 route add fd77:2::/64 dev eth0 metric 1",
        "ip -6 route del fd77:2::/64 dev eth0 metric 1",
    ),
    (
        "ip route add throw 10.77.0.0/16 table 7700; ip rule add priority 50 to 10.77.2.0/24 lookup main",
        "ip rule del priority 50",
    ),
    (
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=0; ip -6 addr replace fd77:1::2/64 dev eth0 nodad; ip -6 addr replace fd77:2::2/64 dev eth1 nodad",
    ),
    (
        "ip route flush table all; ip -6 route flush table all",
        "ip addr flush dev eth0 scope global; ip addr flush dev eth1 scope global; ip addr add 10.77.1.2/24 dev eth0; ip addr add 10.77.2.2/24 dev eth1; ip -6 addr replace fd77:1::2/64 dev eth0 nodad; ip -6 addr replace fd77:2::2/64 dev eth1 nodad",
    ),
    (
        "for names in tgw-lan:x tgw-wan:tgw-lan x:tgw-wan; do ip link set ${names%:*} name ${names#*:} || true; done",
        "",
    ),
    (
        "ip link set eth1 down; ip link set eth1 up",
        "ip -6 addr replace fd77:2::2/64 dev eth1 nodad",
    ),
    (
        "nft 'add table inet t; add chain inet t p { type filter hook prerouting priority -150; }; add rule inet t p iifname eth0 meta mark set 1'; ip rule add priority 60 fwmark 1 lookup main",
        "nft delete table inet t; ip rule del priority 60",
    ),
];

#[test]
fn what_does_not_concern_the_gateway_stops_nothing_and_lets_nothing_by() {
    let siege = Siege::begin();
    for (script, undo) in HARMLESS {
        siege.lab.unit.ns.sh(script);
        siege.expect_service(script);
        std::thread::sleep(Duration::from_millis(700));
        siege.expect_service(script);
        siege.lab.unit.ns.sh(undo);
        siege.expect_service(undo);
    }
    siege.end();
}

#[test]
fn what_stops_the_gateway_lets_nothing_by_and_ends_when_it_is_undone() {
    let siege = Siege::begin();
    for (script, undo) in HARMFUL {
        siege.lab.unit.ns.sh(script);
        std::thread::sleep(Duration::from_millis(1500));
        siege.lab.unit.ns.sh(undo);
        siege.expect_service_within(Duration::from_secs(4), undo);
    }
    siege.end();
}

/// Hosts learn a new hardware address of a port, and the carrier may flap.
#[test]
fn hosts_follow_a_port_with_another_hardware_address_and_a_flapping_carrier() {
    let lab = Lab::started();
    let serves = || {
        SERVER.iter().all(|server| {
            let ping = lab.lan1.try_run(&format!("ping -c 1 -W 0.3 {server}"));
            ping.status.success()
        })
    };
    wait_until("hosts are served", serves);
    for (number, interface) in ["eth0", "eth1", "eth0"].iter().enumerate() {
        let address = format!("02:00:00:00:09:0{number}");
        lab.unit
            .ns
            .run(&format!("ip link set {interface} address {address}"));
        wait_until(&format!("hosts follow to {address}"), serves);
    }
    let port = switch_port(&lab.unit.ns, "eth0");
    for _ in 0..5 {
        lab.sw_lan.run(&format!("ip link set {port} down"));
        std::thread::sleep(Duration::from_millis(50));
        lab.sw_lan.run(&format!("ip link set {port} up"));
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_until("hosts are served after flaps", serves);
}

/// It changes nothing of what the first one has set up.
#[test]
fn a_second_instance_with_the_same_config_is_refused() {
    let siege = Siege::begin();
    let config = siege.lab.unit.config_path().display().to_string();
    for _ in 0..3 {
        let said = siege.lab.unit.tandemgw(&format!("run --config {config}"));
        assert!(!said.status.success(), "{said:?}");
        siege.expect_service("beside a second instance");
    }
    siege.end();
}
