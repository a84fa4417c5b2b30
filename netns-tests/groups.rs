//! Groups that are added to running units and removed again, by a reload of one after the other.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Clients, Cluster};
use crate::conversation::Streams;
use crate::lab::SERVER;
use crate::services::{Http, whoami};
use crate::unit::Unit;
use testkit::system::process::wait_until;

const ADDRESSES: &str = "\"10.77.2.1/24\", \"fd77:2::1/64\"";
const MORE: &str = "\"10.77.2.1/24\", \"fd77:2::1/64\", \"10.77.5.1/24\", \"fd77:5::1/64\"";

/// The group of all other addresses is called as it is without any `[[group]]`.
const GROUPS: &str = r#"
[[group]]
name = "two"
virtual-addresses = ["10.77.5.1", "fd77:5::1"]

[[group]]
name = "default"
ports = ["lan"]
virtual-addresses = ["10.77.2.1", "fd77:2::1"]

[[forward]]
name = "web"
port = "wan"
protocol = "tcp"
external = "10.77.5.1:8080"
internal = "10.77.1.100:80"

[[policy]]
name = "web"
from = ["wan"]
to = ["lan"]
action = "accept"
"#;

fn add_group(unit: &mut Unit) {
    unit.edit(ADDRESSES, MORE);
    unit.config.push_str(GROUPS);
}

fn remove_group(unit: &mut Unit) {
    unit.edit(MORE, ADDRESSES);
    unit.edit(GROUPS, "");
}

/// Reloads a unit, which needs no restart for it.
#[track_caller]
fn reload(unit: &Unit) {
    let answer = unit.reload();
    assert_eq!(answer["restart"], Value::Array(Vec::new()), "{answer:#}");
    let changed = answer["changed"].as_array().expect("a list").iter();
    let keys: Vec<&str> = changed.filter_map(|it| it["key"].as_str()).collect();
    for key in ["group.two", "port.wan.virtual-addresses", "forward.web"] {
        assert!(keys.contains(&key), "{answer:#}");
    }
}

fn has_role(unit: &Unit, role: &str) -> bool {
    let status = unit.status();
    let mut groups = status["groups"].as_array().expect("a list").iter();
    groups.any(|group| group["name"] == "two" && group["role"] == role)
}

/// Packets, datagrams and connections of the group that stays are not lost, and all units stay in
/// sync for it; the new group serves at once, fails over, and its addresses are gone when it is.
#[test]
fn a_group_comes_and_goes_under_traffic() {
    let mut cluster = Cluster::started(&[100, 100, 100]);
    let dev = "$(ls /sys/class/net | grep eth)";
    let own = "ip addr add 10.77.5.100/24 dev";
    cluster.lab.server.sh(&format!("{own} {dev}"));
    let http = Http::start(&cluster.lab, &cluster.lab.lan1, 1);
    let mut clients = Clients::start(&cluster.lab, 4);
    let streams = Streams::start(&cluster.lab);
    let ping = format!("ping -i 0.01 -c 100000 -W 2 {}", SERVER[0]);
    let ping = cluster.lab.lan1.spawn(&ping);
    for number in 0..3 {
        add_group(cluster.unit_mut(number));
        reload(cluster.unit(number));
        clients.start_more(&cluster.lab, 1);
        clients.go_on();
        cluster.wait_until_equal(0, &[]);
        assert!(cluster.unit(0).is_primary(), "of the group that stays");
        wait_until("gw-a serves the group", || {
            has_role(cluster.unit(0), "primary")
        });
        let seen = whoami(&cluster.lab.server, "10.77.5.1:8080");
        assert_eq!(seen, "10.77.5.100");
    }
    let lacking = "group two (the peer lacks it)";
    assert!(cluster.unit(0).log().contains(lacking));
    let lacking = "group two (this unit lacks it)";
    assert!(cluster.unit(1).log().contains(lacking));
    let route = cluster.unit(0).ns.run("ip route show 10.77.5.0/24");
    assert!(route.contains("eth1"), "{route}");

    cluster
        .unit(0)
        .tandemgw("failover --group two --to gw-b")
        .ok();
    wait_until("gw-b has it", || has_role(cluster.unit(1), "primary"));
    // Not the server behind it: its answers go to the primary of the other group.
    let said = cluster.lab.server.run("ping -c 3 -i 0.1 -W 2 10.77.5.1");
    assert!(said.contains(" 0% packet loss"), "{said}");

    for number in [1, 0, 2] {
        remove_group(cluster.unit_mut(number));
        reload(cluster.unit(number));
        clients.go_on();
        cluster.wait_until_equal(0, &[]);
    }
    let routes = cluster.unit(0).ns.run("ip route show table all");
    assert!(!routes.contains("10.77.5."), "{routes}");
    let lost = "curl -s -m 1 http://10.77.5.1:8080/whoami";
    assert!(!cluster.lab.server.try_run(lost).status.success());
    drop(http);
    ping.signal(libc::SIGINT);
    let said = ping.finish(Duration::from_secs(10)).stdout;
    assert!(said.contains(" 0% packet loss"), "{said}");
    streams.assert_whole();
    clients.go_on();
    clients.finish();
}

/// The forward of one group leads elsewhere on one unit: that group can't be handed over, the other
/// one can, with its sessions, and both units say which of them differs.
#[test]
fn a_group_that_differs_leaves_the_other_one_ready() {
    let mut cluster = Cluster::started(&[200, 100]);
    for number in 0..2 {
        add_group(cluster.unit_mut(number));
        reload(cluster.unit(number));
    }
    let mut clients = Clients::start(&cluster.lab, 4);
    cluster.wait_until_equal(0, &[]);
    let server = "internal = \"10.77.1.100:80\"";
    let other = "internal = \"10.77.1.101:80\"";
    cluster.unit_mut(1).edit(server, other);
    cluster.unit(1).reload();
    for number in 0..2 {
        let unit = cluster.unit(number);
        wait_until("the unit says what differs, and what it means", || {
            let health = unit.status()["health"].to_string();
            health.contains("forward web (group two)")
                && health.contains("take over two from the other; the other groups stay in sync")
        });
        assert!(unit.log().contains("what=\"forward web (group two)\""));
    }
    wait_until("gw-b is not ready for the group", || {
        let refused = cluster.unit(0).tandemgw("failover --group two --to gw-b");
        refused.stderr.contains("gw-b is not ready")
    });
    clients.start_more(&cluster.lab, 2);
    cluster.wait_until_equal(0, &[]);
    let held = cluster.held_by(0);
    cluster
        .unit(0)
        .tandemgw("failover --group default --to gw-b")
        .ok();
    cluster.wait_for_primaries(&[1], &[]);
    cluster.assert_holds(1, &held);
    clients.go_on();
    clients.finish();
}
