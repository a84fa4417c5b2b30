//! Routers that spread packets over the units of a cluster: each host here is one, and sends every
//! TCP segment and UDP datagram to another unit than the one before.

use crate::cluster::Cluster;
use crate::conversation::Conversations;
use crate::lab::{SERVER, WAN_GATEWAY};
use crate::services::{Http, assert_upload, udp_echo, udp_echoes};
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

fn started(units: usize) -> Cluster {
    let mut cluster = Cluster::new(&[100; 3][..units]);
    cluster.edit("[ha]", "[ha]\nasymmetric-flows = true");
    cluster.edit(
        "pickup-guarantee = \"strict\"",
        "pickup-guarantee = \"off\"",
    );
    cluster.start();
    cluster
}

/// `host` sends each packet to the next of `units`, in turn, on network `net`.
fn spread(cluster: &Cluster, host: &Namespace, net: usize, units: &[usize]) {
    let interface = ["eth0", "eth1"][net - 1];
    for (family, prefix) in [
        ("ip", format!("10.77.{net}.")),
        ("ip6", format!("fd77:{net}::")),
    ] {
        let v = if family == "ip" { "-4" } else { "-6" };
        host.try_run(&format!("nft delete table {family} spread"));
        for (at, unit) in units.iter().enumerate() {
            let (table, mac) = (201 + at, cluster.unit(*unit).ns.mac_text(interface));
            host.run(&format!(
                "ip neigh replace {prefix}{table} lladdr {mac} nud permanent dev eth0"
            ));
            host.run(&format!(
                "ip {v} route replace default via {prefix}{table} dev eth0 onlink table {table}"
            ));
            let rule = format!("fwmark {} lookup {table}", at + 1);
            host.try_run(&format!("ip {v} rule del {rule}"));
            host.run(&format!("ip {v} rule add {rule}"));
        }
        host.run(&format!("nft add table {family} spread"));
        host.sh(&format!(
            "nft 'add chain {family} spread out {{ type route hook output priority 0; }}'"
        ));
        host.sh(&format!(
            "nft 'add rule {family} spread out meta l4proto {{ tcp, udp }} meta mark set numgen inc mod {} offset 1'",
            units.len()
        ));
    }
}

fn spread_all(cluster: &Cluster, units: &[usize]) {
    spread(cluster, &cluster.lab.lan1, 1, units);
    spread(cluster, &cluster.lab.lan2, 1, units);
    spread(cluster, &cluster.lab.server, 2, units);
}

fn counter(cluster: &Cluster, unit: usize, name: &str) -> u64 {
    let counters = &cluster.unit(unit).status()["counters"]["asymmetric_flows"];
    counters[name].as_u64().expect("a number")
}

#[test]
fn each_packet_may_come_to_another_unit_and_a_dead_one_is_not_missed() {
    for units in [2, 3] {
        let mut cluster = started(units);
        let all: Vec<usize> = (0..units).collect();
        spread_all(&cluster, &all);
        let mut clients = Conversations::start(&cluster.lab);
        for _ in 0..5 {
            clients.go_on();
        }
        assert!(counter(&cluster, 0, "received") > 0, "the owner");
        assert!(counter(&cluster, 1, "passed_on") > 0);
        wait_until("the others forward by themselves", || {
            clients.go_on();
            counter(&cluster, 1, "stood_in") > 0
        });
        assert_eq!(counter(&cluster, 0, "stood_in"), 0);
        // The routers notice that one is gone.
        cluster.unit_mut(0).kill();
        spread_all(&cluster, &all[1..]);
        clients.go_on();
        let more = Conversations::start_more(&cluster.lab);
        cluster.unit_mut(0).start();
        wait_until("it has the sessions again", || {
            cluster.unit(0).group()["ready"] == true
        });
        spread_all(&cluster, &all);
        clients.go_on();
        clients.finish();
        more.finish();
        for unit in all {
            assert_eq!(cluster.unit(unit).dropped("tcp-window"), 0);
        }
    }
}

/// Super-packets, unfinished checksums, datagrams in fragments: all of it goes from unit to unit.
#[test]
fn bulk_data_comes_through_whole() {
    let cluster = started(2);
    spread_all(&cluster, &[0, 1]);
    let lab = &cluster.lab;
    let http = Http::start(lab, &lab.server, 8);
    http.assert_download(&lab.lan1, SERVER[0]);
    http.assert_download(&lab.lan2, &format!("[{}]", SERVER[1]));
    for address in SERVER {
        assert_upload(lab, &lab.lan1, &lab.server, address);
        let _server = udp_echo(&lab.server, address);
        for size in [100, 1400, 8000] {
            assert!(
                udp_echoes(lab, &lab.lan1, address, size),
                "{address} {size}"
            );
        }
    }
    assert!(counter(&cluster, 1, "stood_in") > 100);
}

/// A host that has missed all announcements of a takeover goes on by way of the former primary.
#[test]
fn a_host_that_sends_to_the_wrong_unit_is_served() {
    let cluster = started(2);
    let mac = cluster.unit(1).ns.mac_text("eth1");
    let server = &cluster.lab.server;
    for gateway in WAN_GATEWAY {
        server.run(&format!(
            "ip neigh replace {gateway} lladdr {mac} nud permanent dev eth0"
        ));
    }
    let mut clients = Conversations::start(&cluster.lab);
    for _ in 0..5 {
        clients.go_on();
    }
    // Every answer comes to the standby: none is lost, nor repeated.
    let retransmitted = server.run("nstat -asz TcpRetransSegs");
    assert!(retransmitted.contains(" 0 "), "{retransmitted}");
    assert!(counter(&cluster, 1, "passed_on") > 0);
    clients.finish();
}
