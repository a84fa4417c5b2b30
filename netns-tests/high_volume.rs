//! Active-active, high-volume: three units with a group each. Every unit forwards what comes to the
//! addresses of its group; a unit that dies or is drained leaves its group to another one, and
//! nothing is lost.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::conversation::{Conversation, line_server};
use crate::lab::{LAN1, SERVER};
use testkit::system::process::wait_until;

/// Groups, as many as units.
const GROUPS: usize = 3;
const NAMES: [&str; GROUPS] = ["gw-a", "gw-b", "gw-c"];

/// The last part of the addresses of a group.
fn last(group: usize) -> usize {
    match group {
        0 => 1,
        _ => 10 + group,
    }
}

/// Both ports have an address of each group, through which clients reach a server in the LAN.
fn high_volume() -> Cluster {
    let mut cluster = Cluster::new(&[100, 100, 100]);
    for net in [1, 2] {
        let all = (0..GROUPS).map(|group| {
            let last = last(group);
            format!("\"10.77.{net}.{last}/24\", \"fd77:{net}::{last}/64\"")
        });
        let all: Vec<String> = all.collect();
        let one = format!("[\"10.77.{net}.1/24\", \"fd77:{net}::1/64\"]");
        cluster.edit(&one, &format!("[{}]", all.join(", ")));
    }
    cluster.edit("[ha]", "[ha]\noverride = true");
    for unit in 0..GROUPS {
        let config = &mut cluster.unit_mut(unit).config;
        config.push_str(
            "\n[[policy]]\nname = \"in\"\nfrom = [\"wan\"]\nto = [\"lan\"]\naction = \"accept\"\nnat = true\n",
        );
        for group in 0..GROUPS {
            let last = last(group);
            let priority = 100 + (GROUPS + unit - group) % GROUPS * 10;
            let priority = if unit == group { 200 } else { priority };
            config.push_str(&format!(
                "\n[[group]]\nname = \"g{group}\"\npriority = {priority}\n\
                 virtual-addresses = [\"10.77.1.{last}\", \"fd77:1::{last}\", \"10.77.2.{last}\", \"fd77:2::{last}\"]\n"
            ));
            for (family, external, internal) in [
                (
                    4,
                    format!("10.77.2.{last}:7100"),
                    format!("{}:7100", LAN1[0]),
                ),
                (
                    6,
                    format!("[fd77:2::{last}]:7100"),
                    format!("[{}]:7100", LAN1[1]),
                ),
            ] {
                config.push_str(&format!(
                    "\n[[forward]]\nname = \"lines{group}-{family}\"\nport = \"wan\"\nprotocol = \"tcp\"\n\
                     external = \"{external}\"\ninternal = \"{internal}\"\n"
                ));
            }
        }
    }
    cluster
}

/// The groups that a unit is primary of.
fn groups_of(cluster: &Cluster, unit: usize) -> Vec<String> {
    let status = cluster.unit(unit).status();
    let groups = status["groups"].as_array().expect("a list").iter();
    let own = groups.filter(|group| group["role"] == "primary");
    own.map(|group| group["name"].as_str().expect("a name").to_owned())
        .collect()
}

fn wait_until_each_has_its_group(cluster: &Cluster) {
    wait_until("each unit has its group", || {
        (0..GROUPS).all(|unit| groups_of(cluster, unit) == [format!("g{unit}")])
    });
    for unit in 0..GROUPS {
        cluster.wait_until_equal(unit, &[]);
    }
}

/// Waits until this unit has no group, and each group has one primary among the others.
fn wait_until_others_have_all(cluster: &Cluster, gone: usize) {
    wait_until("the others have all groups", || {
        let others = (0..GROUPS).filter(|unit| *unit != gone);
        let mut all: Vec<String> = others.flat_map(|unit| groups_of(cluster, unit)).collect();
        all.sort();
        all == ["g0", "g1", "g2"]
    });
}

/// The sessions of each unit are translated to the LAN address of its own group, so that answers
/// come back to it.
fn assert_own_addresses(cluster: &Cluster) {
    for (unit, name) in NAMES.iter().enumerate() {
        let sessions = cluster.unit(unit).sessions("port=7100");
        let own = sessions.iter().filter(|it| it["owner"] == *name);
        let own: Vec<&Value> = own.collect();
        assert!(!own.is_empty(), "{sessions:#?}");
        for session in own {
            let source = session["nat_src"].as_str().expect("an address");
            let last = last(unit);
            let wanted = [format!("10.77.1.{last}:"), format!("[fd77:1::{last}]:")];
            assert!(
                wanted.iter().any(|it| source.starts_with(it)),
                "{session:#}"
            );
        }
    }
}

#[test]
fn three_units_share_the_work_and_none_is_missed() {
    let mut cluster = high_volume();
    // A unit that is drained writes that down.
    cluster.edit("[node]", "[node]\nstate-directory = \"state\"");
    cluster.start();
    wait_until_each_has_its_group(&cluster);
    let _servers = LAN1.map(|address| line_server(&cluster.lab.lan1, address));
    let mut clients = Vec::new();
    for group in 0..GROUPS {
        let last = last(group);
        for address in [format!("10.77.2.{last}"), format!("fd77:2::{last}")] {
            clients.push(Conversation::start(&cluster.lab.server, &address));
        }
    }
    assert_own_addresses(&cluster);
    cluster.unit_mut(1).kill();
    wait_until_others_have_all(&cluster, 1);
    clients.iter_mut().for_each(Conversation::go_on);
    cluster.unit_mut(1).start();
    wait_until_each_has_its_group(&cluster);
    clients.iter_mut().for_each(Conversation::go_on);
    cluster.unit(0).tandemgw("drain gw-c").ok();
    wait_until_others_have_all(&cluster, 2);
    clients.iter_mut().for_each(Conversation::go_on);
    cluster.unit(2).tandemgw("maintenance off").ok();
    wait_until_each_has_its_group(&cluster);
    clients.iter_mut().for_each(Conversation::go_on);
    clients.into_iter().for_each(Conversation::finish);
}

/// Hosts of one LAN use the addresses of several groups as default gateway. A unit that has taken
/// over the group of such a host can't tell that it uses this one: it opens the host's sessions in
/// the group that it has had before. When the other group goes back, the host's packets come to the
/// other unit, which forwards them for the owner.
#[test]
fn a_session_of_a_shared_lan_lives_on_when_its_hosts_gateway_goes_back() {
    let mut cluster = high_volume();
    cluster.edit(
        "override = true",
        "override = true\nasymmetric-flows = true",
    );
    cluster.start();
    wait_until_each_has_its_group(&cluster);
    let lab = &cluster.lab;
    let _servers = SERVER.map(|address| line_server(&lab.server, address));
    for gateway in [
        format!("10.77.1.{}", last(1)),
        format!("fd77:1::{}", last(1)),
    ] {
        lab.lan1
            .run(&format!("ip route replace default via {gateway}"));
    }
    cluster.unit_mut(1).kill();
    wait_until_others_have_all(&cluster, 1);
    let lan = &cluster.lab.lan1;
    let mut clients = SERVER.map(|address| Conversation::start(lan, address));
    let sessions = cluster.unit(0).sessions("port=7100");
    assert!(
        sessions.iter().any(|it| it["group"] != "g1"),
        "{sessions:#?}"
    );
    cluster.unit_mut(1).start();
    wait_until_each_has_its_group(&cluster);
    for _ in 0..3 {
        clients.iter_mut().for_each(Conversation::go_on);
    }
    let counters = &cluster.unit(1).status()["counters"]["asymmetric_flows"];
    assert!(counters["passed_on"].as_u64() > Some(0), "{counters:#}");
    clients.into_iter().for_each(Conversation::finish);
}
