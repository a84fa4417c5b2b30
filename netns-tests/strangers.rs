//! More that strangers do to a machine: afterwards, or once it is undone, the gateway serves within
//! 2 s, and nothing leaks.

use std::time::Duration;

use crate::interference::Siege;

/// The deed, and the undoing of anything that somebody decided on purpose.
const DEEDS: &[(&str, &str)] = &[
    (
        "ip route flush table main; ip -6 route flush table main",
        "",
    ),
    ("ip route del 10.77.2.0/24; ip -6 route del fd77:2::/64", ""),
    (
        "ip route add unreachable default; ip -6 route add unreachable default",
        "ip route del unreachable default; ip -6 route del unreachable default",
    ),
    (
        "ip route flush table local; ip -6 route flush table local",
        "for n in 1 2; do ip addr replace 10.77.$n.2/24 dev eth$((n - 1)); done",
    ),
    ("ip rule del lookup local; ip -6 rule del lookup local", ""),
    (
        "for f in ipv4 ipv6; do echo 0 > /proc/sys/net/$f/conf/all/forwarding; done",
        "",
    ),
    (
        "for f in ipv4 ipv6; do echo 0 > /proc/sys/net/$f/conf/all/forwarding; \
         echo 1 > /proc/sys/net/$f/conf/all/forwarding; echo 0 > /proc/sys/net/$f/conf/all/forwarding; done",
        "",
    ),
    (
        "for d in eth0 eth1 tgw-lan tgw-wan; do ip link set $d promisc on allmulticast on; done",
        "",
    ),
    (
        "for d in eth0 eth1; do ip link set $d multicast off; done",
        "",
    ),
    ("for d in eth0 eth1; do ip link set $d mtu 9000; done", ""),
    (
        "for d in eth0 eth1; do ip link set $d mtu 1280; done; sleep 0.2; for d in eth0 eth1; do ip link set $d mtu 1500; done",
        "",
    ),
    (
        "ip addr flush dev eth0; ip addr flush dev eth1; ip addr flush dev tgw-lan; ip addr flush dev tgw-wan",
        "",
    ),
    (
        "for d in eth0 eth1 tgw-lan tgw-wan; do echo 8 > /proc/sys/net/ipv4/conf/$d/arp_ignore; \
      echo 1 > /proc/sys/net/ipv4/conf/$d/arp_filter; done",
        "",
    ),
    (
        "for d in all eth0 eth1 tgw-lan tgw-wan; do echo 1 > /proc/sys/net/ipv6/conf/$d/drop_unsolicited_na; \
      echo 1 > /proc/sys/net/ipv4/conf/$d/drop_gratuitous_arp; done",
        "",
    ),
    (
        "ip link set eth0 down; ip link set eth0 up; ip link set eth1 down; ip link set eth1 up",
        "",
    ),
    (
        "ip link set tgw-lan down; ip link set tgw-wan down; ip rule flush; ip -6 rule flush",
        "",
    ),
    (
        "ip link set tgw-lan arp on; ip link set tgw-lan multicast off",
        "",
    ),
    (
        "for t in 7700 7701; do ip route replace unreachable default table $t metric 0; \
      ip -6 route replace prohibit default table $t metric 1; done",
        "",
    ),
    (
        "ip nexthop flush; ip tcp_metrics flush all; ip -6 addrlabel flush",
        "",
    ),
    (
        "ip token flush || true; ip addr add 10.77.1.50/24 dev tgw-lan; ip addr add 10.99.0.1/24 dev eth1",
        "",
    ),
    (
        "ip link set dev eth1 group 7; ip link set dev eth1 alias uplink; ip link set dev eth1 txqueuelen 10",
        "",
    ),
    ("ip link property add dev eth1 altname enp77s0", ""),
    (
        "nft add table inet f; nft 'add chain inet f pre { type filter hook prerouting priority -400; }'; \
      nft add rule inet f pre notrack",
        "nft delete table inet f",
    ),
    (
        "nft add table inet n; nft 'add chain inet n post { type nat hook postrouting priority 100; }'; \
      nft add rule inet n post oifname eth1 masquerade",
        "nft delete table inet n",
    ),
];

/// The kernel believes an entry for 5 s, asks its host three times in vain, and then everybody
/// (arp(7)).
const NEIGHBOUR_IS_FOUND_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn a_host_whose_hardware_address_is_wrong_is_found_again() {
    let siege = Siege::begin();
    let deed = "ip neigh flush all; ip neigh replace 10.77.2.100 lladdr 02:00:00:00:00:99 nud stale dev eth1";
    siege.lab.unit.ns.sh(deed);
    siege.expect_service_within(NEIGHBOUR_IS_FOUND_WITHIN, deed);
    siege.end();
}

#[test]
fn whatever_strangers_do_is_put_right() {
    let siege = Siege::begin();
    for (deed, undo) in DEEDS {
        siege.lab.unit.ns.sh(&format!("{{ {deed}\n}} 2>&1 || true"));
        std::thread::sleep(Duration::from_millis(300));
        siege
            .lab
            .unit
            .ns
            .sh(&format!("{{ true\n{undo}\n}} 2>&1 || true"));
        siege.expect_service(deed);
    }
    siege.end();
}
