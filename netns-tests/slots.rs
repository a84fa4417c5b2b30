//! A group that is cut into slots (`distribute`): one virtual address on each port, and all units
//! share its hosts. A unit that dies or is drained is not missed.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::conversation::{Conversation, Conversations, line_server};
use crate::lab::{LAN_GATEWAY, SERVER, assign, plug};
use crate::services::{Http, udp_echo, udp_echoes};
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

const SLOTS: usize = 8;
/// Hosts of the LAN beside the two of the lab.
const MORE: usize = 6;

fn cut(units: usize) -> Cluster {
    let mut cluster = Cluster::new(&[100; 3][..units]);
    cluster.edit(
        "pickup-guarantee = \"strict\"",
        "pickup-guarantee = \"off\"",
    );
    cluster.edit("[node]", "[node]\nstate-directory = \"state\"");
    for unit in 0..units {
        cluster.unit_mut(unit).config.push_str(&format!(
            "\n[[group]]\nname = \"all\"\nports = [\"lan\", \"wan\"]\ndistribute = {SLOTS}\n"
        ));
    }
    cluster.start();
    wait_until_shared(&cluster);
    cluster
}

/// The slots that a unit is primary of.
fn slots_of(cluster: &Cluster, unit: usize) -> Vec<String> {
    let status = cluster.unit(unit).status();
    let groups = status["groups"].as_array().expect("a list").iter();
    let own = groups.filter(|group| group["role"] == "primary");
    let names = own.map(|group| group["name"].as_str().expect("a name").to_owned());
    names.filter(|name| name.contains('/')).collect()
}

/// Waits until each unit has its slots: those for which it has the highest priority.
fn wait_until_shared(cluster: &Cluster) {
    let units = cluster.len();
    wait_until("each unit has its slots", || {
        let all = (0..units).flat_map(|unit| slots_of(cluster, unit));
        all.count() == SLOTS && (0..units).all(|unit| has_its_slots(cluster, unit))
    });
    wait_until("all peers are in sync", || {
        (0..units).all(|unit| {
            let status = cluster.unit(unit).status();
            let peers = status["peers"].as_array().expect("a list");
            peers.iter().all(|peer| peer["in_sync"] == true)
        })
    });
}

fn has_its_slots(cluster: &Cluster, unit: usize) -> bool {
    let status = cluster.unit(unit).status();
    let groups = status["groups"].as_array().expect("a list").iter();
    let slots = groups.filter(|group| group["name"].as_str().is_some_and(|it| it.contains('/')));
    let mut has = slots.map(|slot| (slot["role"] == "primary", slot["priority"] == 255));
    has.all(|(has, is_its)| has == is_its)
}

fn wait_until_others_have_all(cluster: &Cluster, gone: usize) {
    wait_until("the others have all slots", || {
        let others = (0..cluster.len()).filter(|unit| *unit != gone);
        let all = others.flat_map(|unit| slots_of(cluster, unit));
        all.collect::<BTreeSet<_>>().len() == SLOTS
    });
}

/// More hosts in the LAN.
fn hosts(cluster: &Cluster) -> Vec<Namespace> {
    let lab = &cluster.lab;
    let host = |number: usize| {
        let host = lab.lan1.sibling(&format!("host{number}"));
        plug(&lab.sw_lan, &host, "eth0");
        let last = 120 + number;
        let addresses = [format!("10.77.1.{last}"), format!("fd77:1::{last}")];
        assign(&host, "eth0", [&addresses[0], &addresses[1]]);
        for gateway in LAN_GATEWAY {
            host.run(&format!("ip route add default via {gateway}"));
        }
        host
    };
    (0..MORE).map(host).collect()
}

/// The hardware address at which a host finds its gateway.
fn gateway_of(host: &Namespace) -> String {
    let entry = host.run(&format!("ip -j neigh show {}", LAN_GATEWAY[0]));
    let entry: Value = serde_json::from_str(&entry).expect("JSON");
    entry[0]["lladdr"].as_str().unwrap_or("none").to_owned()
}

/// Conversations of both families, from the same source ports on each host.
fn conversations(host: &Namespace) -> [Conversation; 2] {
    [0, 1].map(|at| Conversation::start_from(host, SERVER[at], 40_000 + at as u16))
}

/// Each unit opens sessions, on external ports that no other unit has, and its hosts send to it.
#[test]
fn all_units_serve_the_hosts_of_one_address() {
    let cluster = cut(3);
    let hosts = hosts(&cluster);
    let _servers = SERVER.map(|address| line_server(&cluster.lab.server, address));
    let mut clients: Vec<Conversation> = Vec::new();
    clients.extend(hosts.iter().flat_map(conversations));
    clients.iter_mut().for_each(Conversation::go_on);
    let sessions = cluster.unit(0).sessions("port=7100");
    let text = |session: &Value, key: &str| session[key].as_str().expect("a text").to_owned();
    let owners: BTreeSet<String> = sessions.iter().map(|it| text(it, "owner")).collect();
    assert!(owners.len() > 1, "one unit has all: {sessions:#?}");
    let ports: BTreeSet<String> = sessions.iter().map(|it| text(it, "nat_src")).collect();
    assert_eq!(ports.len(), sessions.len(), "external ports of two owners");
    let found: BTreeSet<String> = hosts.iter().map(gateway_of).collect();
    assert!(found.len() > 1, "all hosts send to one unit: {found:?}");
    for host in &hosts {
        host.run(&format!("ping -q -c 2 -W 2 {}", LAN_GATEWAY[0]));
        host.run(&format!("ping -q -c 2 -W 2 {}", LAN_GATEWAY[1]));
    }
    clients.into_iter().for_each(Conversation::finish);
}

/// Whichever unit goes, by a kill or drained, no session ends, and it takes its share again.
#[test]
fn a_unit_that_dies_or_is_drained_is_not_missed() {
    let mut cluster = cut(3);
    let hosts = hosts(&cluster);
    let _servers = SERVER.map(|address| line_server(&cluster.lab.server, address));
    let mut clients: Vec<Conversation> = hosts.iter().flat_map(conversations).collect();
    for unit in [1, 0] {
        cluster.unit_mut(unit).kill();
        wait_until_others_have_all(&cluster, unit);
        clients.iter_mut().for_each(Conversation::go_on);
        cluster.unit_mut(unit).start();
        wait_until_shared(&cluster);
        clients.iter_mut().for_each(Conversation::go_on);
    }
    cluster.unit(0).tandemgw("drain gw-c").ok();
    wait_until_others_have_all(&cluster, 2);
    clients.iter_mut().for_each(Conversation::go_on);
    cluster.unit(2).tandemgw("maintenance off").ok();
    wait_until_shared(&cluster);
    clients.iter_mut().for_each(Conversation::go_on);
    clients.into_iter().for_each(Conversation::finish);
}

/// A unit gets twice the hosts by a reload, and none by another one; no session ends. While the
/// units have different weights, both say so.
#[test]
fn slots_follow_the_weights() {
    let mut cluster = cut(3);
    let hosts = hosts(&cluster);
    let _servers = SERVER.map(|address| line_server(&cluster.lab.server, address));
    let mut clients: Vec<Conversation> = hosts.iter().flat_map(conversations).collect();
    let mut before = String::new();
    for (weight, shares) in [(2, [4, 2, 2]), (0, [0, 4, 4])] {
        let line = format!("weights = [\"gw-a:{weight}\"]\n");
        for unit in 0..3 {
            let config = &mut cluster.unit_mut(unit).config;
            *config = config.replace(&before, "");
            let at = config.find("distribute = ").expect("it is cut");
            config.insert_str(at, &line);
            let answer = cluster.unit(unit).reload();
            assert_eq!(answer["changed"][0]["key"], "group.all.weights", "{answer}");
            if unit == 0 {
                let differs = format!("weight gw-a:{weight} of group all");
                wait_until("both say what differs", || {
                    [0, 1].iter().all(|unit| {
                        let status = cluster.unit(*unit).status();
                        status["health"].to_string().contains(&differs)
                    })
                });
            }
        }
        before = line;
        wait_until_shared(&cluster);
        let found = [0, 1, 2].map(|unit| slots_of(&cluster, unit).len());
        assert_eq!(found, shares);
        let status = cluster.unit(1).tandemgw("status").ok().stdout;
        let mut rows = status
            .lines()
            .skip_while(|line| !line.starts_with("SHARED GROUP"));
        let row = rows.find(|line| line.contains("gw-a")).expect("a row");
        let row: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            row,
            ["all", "gw-a", &weight.to_string(), &shares[0].to_string()]
        );
        clients.iter_mut().for_each(Conversation::go_on);
    }
    clients.into_iter().for_each(Conversation::finish);
}

/// The slots that a unit has, whoever is primary of them.
fn known_slots(cluster: &Cluster, unit: usize) -> BTreeSet<String> {
    let status = cluster.unit(unit).status();
    let groups = status["groups"].as_array().expect("a list").iter();
    let names = groups.map(|group| group["name"].as_str().expect("a name").to_owned());
    names.filter(|name| name.contains('/')).collect()
}

/// A running group is cut into more slots, into fewer, not at all, and again, by reloads of one
/// unit after the other: connections go on, new ones are served, and units that differ say so.
#[test]
fn a_group_is_cut_otherwise_and_no_connection_ends() {
    let mut cluster = cut(3);
    let hosts = hosts(&cluster);
    let _servers = SERVER.map(|address| line_server(&cluster.lab.server, address));
    let mut clients: Vec<Conversation> = hosts.iter().flat_map(conversations).collect();
    let mut port = 41_000;
    for slots in [12, 3, 0, 8] {
        let wanted: BTreeSet<String> = (0..slots).map(|slot| format!("all/{slot}")).collect();
        for (unit, host) in hosts.iter().enumerate().take(3) {
            let config = &mut cluster.unit_mut(unit).config;
            let lines = config
                .lines()
                .filter(|line| !line.starts_with("distribute"));
            *config = lines.map(|line| format!("{line}\n")).collect();
            if slots > 0 {
                config.push_str(&format!("distribute = {slots}\n"));
            }
            let answer = cluster.unit(unit).reload();
            assert_eq!(
                answer["changed"][0]["key"], "group.all.distribute",
                "{answer}"
            );
            assert_eq!(answer["restart"], serde_json::json!([]), "{answer}");
            if unit == 0 {
                wait_until("both say what differs", || {
                    [0, 1].iter().all(|unit| {
                        let status = cluster.unit(*unit).status();
                        status["health"].to_string().contains("slots of group all")
                    })
                });
            }
            // Whatever the others have: new ones are served at once.
            let mut fresh = [0, 1].map(|at| {
                port += 1;
                Conversation::start_from(host, SERVER[at], port)
            });
            fresh.iter_mut().for_each(Conversation::go_on);
            clients.extend(fresh);
        }
        wait_until("all units have these slots", || {
            (0..3).all(|unit| known_slots(&cluster, unit) == wanted)
        });
        wait_until("each slot has its unit", || {
            let all = (0..3).flat_map(|unit| slots_of(&cluster, unit));
            all.count() == slots && (0..3).all(|unit| has_its_slots(&cluster, unit))
        });
        clients.iter_mut().for_each(Conversation::go_on);
        wait_until("hosts are told their new places", || {
            let places: BTreeSet<String> = hosts.iter().map(gateway_of).collect();
            (places.len() > 1) == (slots > 0)
        });
    }
    clients.into_iter().for_each(Conversation::finish);
}

/// Bulk data, fragments and clients of a forward, whichever units they come to.
#[test]
fn all_sorts_of_traffic_pass() {
    let cluster = cut(2);
    let hosts = hosts(&cluster);
    let lab = &cluster.lab;
    let clients = Conversations::start(lab);
    clients.finish();
    let http = Http::start(lab, &lab.server, 4);
    for host in &hosts[..3] {
        http.assert_download(host, SERVER[0]);
        http.assert_download(host, &format!("[{}]", SERVER[1]));
    }
    for address in SERVER {
        let _server = udp_echo(&lab.server, address);
        for (host, size) in hosts.iter().zip([100, 1400, 8000].into_iter().cycle()) {
            let is_whole = udp_echoes(lab, host, address, size);
            let dropped = [0, 1].map(|unit| cluster.unit(unit).status()["counters"].clone());
            assert!(is_whole, "{address} {size}: {dropped:#?}");
        }
    }
}
