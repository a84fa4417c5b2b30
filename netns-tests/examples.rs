//! The example configs as shipped, except for the keys. Of pairs: traffic passes, and lives on when
//! the primary is killed.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use tandemgw_core::config::{Port, parse};

use crate::conversation::{Conversation, Conversations, line_server};
use crate::lab::{LAN1, Lab, SERVER, assign, bracketed, make_bridge, plug};
use crate::pair::Pair;
use crate::services::{self, Http, whoami};
use crate::unit::Unit;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// Gives both units the configs `configs/NAME-a.toml` and `-b.toml`, with each other's real keys.
#[track_caller]
fn take_example(pair: &mut Pair, name: &str) {
    let key = |unit: &Unit| {
        let file = unit.config_path().with_extension("key");
        let printed = unit.tandemgw(&format!("pubkey --key {}", file.display()));
        printed.ok().stdout.trim().to_owned()
    };
    let [a, b] = [key(pair.a()), key(pair.b())];
    pair.lab.unit.config = example(name, "a", &b);
    pair.b.config = example(name, "b", &a);
}

fn example(name: &str, unit: &str, key_of_peer: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let file = folder.join(format!("{name}-{unit}.toml"));
    let text = fs::read_to_string(file).expect("there is such an example");
    let (before, placeholder) = text.split_once("public-key = \"").expect("a key");
    let (_, after) = placeholder.split_once('"').expect("a whole string");
    format!("{before}public-key = \"{key_of_peer}\"{after}")
}

/// Starts both. Whichever is primary then: with short timers on a busy machine it may not be gw-a.
#[track_caller]
fn start(pair: &mut Pair) {
    pair.a_mut().start();
    pair.b.start();
    wait_until("one is primary, and the other could take over", || {
        let [a, b] = [pair.a().group(), pair.b().group()];
        let standby = if a["role"] == "primary" { b } else { a };
        standby["role"] == "standby" && standby["ready"] == true
    });
}

/// Kills the primary while clients talk to the server, and expects them to notice nothing.
#[track_caller]
fn survives_the_primary(pair: &mut Pair) {
    let mut sessions = Conversations::start(&pair.lab);
    pair.wait_for_same_sessions();
    if pair.a().is_primary() {
        pair.a_mut().kill();
        wait_until("gw-b is primary", || pair.b().is_primary());
    } else {
        pair.b.kill();
        wait_until("gw-a is primary", || pair.a().is_primary());
    }
    sessions.go_on();
    sessions.finish();
}

#[test]
fn lab_pair_survives_its_primary() {
    let mut pair = Pair::new();
    take_example(&mut pair, "lab-pair");
    start(&mut pair);
    // Its forward leads to a web server in the LAN.
    let http = Http::start(&pair.lab, &pair.lab.lan1, 1);
    http.assert_download(&pair.lab.server, "10.77.2.1:8080");
    survives_the_primary(&mut pair);
    http.assert_download(&pair.lab.server, "10.77.2.1:8080");
}

#[test]
fn dual_sync_link_survives_a_link_and_its_primary() {
    let mut pair = Pair::with_links(2);
    take_example(&mut pair, "dual-sync-link");
    start(&mut pair);
    pair.cut(0);
    wait_until("the other link carries the sessions", || {
        [pair.a(), pair.b()].iter().all(|unit| {
            let peer = unit.peer();
            peer["connected"] == true && peer["links"][1]["carries_sync"] == true
        })
    });
    survives_the_primary(&mut pair);
}

#[test]
fn aggressive_timers_survive_their_primary() {
    let mut pair = Pair::new();
    take_example(&mut pair, "aggressive-timers");
    // 6 ms would test the load of this machine, not the example: it steps down whenever it is
    // paused.
    pair.edit(
        "heartbeat-lost-threshold = 3",
        "heartbeat-lost-threshold = 60",
    );
    start(&mut pair);
    survives_the_primary(&mut pair);
}

/// The examples of one gateway, in a network made of what they say.
#[test]
fn single_gateways_start_and_answer() {
    for name in ["standalone", "port-forward", "ipv6-only", "container"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let file = folder.join(format!("{name}.toml"));
        let text = fs::read_to_string(&file).expect("there is such an example");
        let (config, _) = parse(&file, &text).expect("it is right");
        let lab = Lab::new();
        let machine = lab.sw_lan.sibling("gw");
        let hosts: Vec<_> = config
            .ports
            .iter()
            .map(|port| add_host(&lab, &machine, port))
            .collect();
        let mut unit = Unit::new(machine, lab.dir());
        unit.config = text;
        unit.start();
        for (port, (_, host)) in config.ports.iter().zip(&hosts) {
            for address in &port.virtual_addresses {
                let ping = format!("ping -c 1 -W 1 {}", address.addr);
                wait_until(&format!("{name}: {} answers", address.addr), || {
                    host.try_run(&ping).status.success()
                });
            }
        }
        unit.stop();
    }
}

/// A switch for a port, with a host, each with an address in every network of the port.
fn add_host(lab: &Lab, machine: &Namespace, port: &Port) -> (Namespace, Namespace) {
    let switch = lab.sw_lan.sibling(&format!("sw-{}", port.name));
    let host = lab.sw_lan.sibling(&format!("host-{}", port.name));
    make_bridge(&switch);
    for (ns, interface, number) in [
        (machine, port.interface.as_str(), 200),
        (&host, "eth0", 201),
    ] {
        plug(&switch, ns, interface);
        for address in &port.virtual_addresses {
            let prefix = address.network.prefix_len();
            let own = match address.network.network() {
                IpAddr::V4(net) => format!("{}/{prefix}", Ipv4Addr::from(u32::from(net) + number)),
                IpAddr::V6(net) => {
                    let own = Ipv6Addr::from(u128::from(net) + u128::from(number));
                    format!("{own}/{prefix} nodad")
                }
            };
            ns.run(&format!("ip addr add {own} dev {interface}"));
        }
    }
    (switch, host)
}

/// Where the second network of the active-active example is.
const GUEST: [&str; 2] = ["10.77.3.100", "fd77:3::100"];

/// The guests' switch with a guest.
fn add_guests(pair: &Pair) -> (Namespace, Namespace) {
    let [switch, guest] = ["sw-guests", "guest"].map(|name| pair.lab.sw_lan.sibling(name));
    make_bridge(&switch);
    for (unit, addresses) in [
        (pair.a(), ["10.77.3.2", "fd77:3::2"]),
        (pair.b(), ["10.77.3.3", "fd77:3::3"]),
    ] {
        plug(&switch, &unit.ns, "eth2");
        assign(&unit.ns, "eth2", addresses);
        wait_until("its IPv6 address can be used", || {
            let routes = unit.ns.run("ip -6 route show table local");
            routes.contains(addresses[1])
        });
    }
    plug(&switch, &guest, "eth0");
    assign(&guest, "eth0", GUEST);
    guest.sh("ip route add default via 10.77.3.1; ip route add default via fd77:3::1");
    (switch, guest)
}

/// The groups of which a unit is primary.
fn primary_of(unit: &Unit) -> Vec<String> {
    let status = unit.status();
    let groups = status["groups"].as_array().expect("a list").iter();
    groups
        .filter(|group| group["role"] == "primary")
        .map(|group| group["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[track_caller]
fn wait_until_each_has_its_group(pair: &Pair) {
    wait_until("each unit is primary of its group", || {
        primary_of(pair.a()) == ["office"] && primary_of(pair.b()) == ["guests"]
    });
    wait_until("each could take over the other's", || {
        [pair.a(), pair.b()]
            .iter()
            .all(|unit| unit.peer()["digest_equal"] == true)
    });
}

/// Which unit a session belongs to, by its source.
#[track_caller]
fn assert_owner(pair: &Pair, source: &str, owner: &str) {
    for unit in [pair.a(), pair.b()] {
        let sessions = unit.sessions(&format!("proto=tcp src={source}"));
        assert!(!sessions.is_empty(), "no session of {source}");
        assert!(
            sessions.iter().all(|s| s["owner"] == owner),
            "{sessions:#?}"
        );
    }
}

#[test]
fn active_active_shares_the_work_and_survives_either_unit() {
    let mut pair = Pair::new();
    take_example(&mut pair, "active-active");
    let (_switch, guest) = add_guests(&pair);
    pair.a_mut().start();
    pair.b.start();
    wait_until_each_has_its_group(&pair);
    let _http = Http::start(&pair.lab, &pair.lab.server, 1);
    for (server, [office, guests]) in SERVER
        .iter()
        .zip([["10.77.2.1", "10.77.2.4"], ["fd77:2::1", "fd77:2::4"]])
    {
        assert_eq!(whoami(&pair.lab.lan1, &bracketed(server)), office);
        assert_eq!(whoami(&guest, &bracketed(server)), guests);
    }
    let _servers = SERVER.map(|address| line_server(&pair.lab.server, address));
    let mut sessions: Vec<Conversation> = [&pair.lab.lan1, &guest]
        .iter()
        .flat_map(|host| SERVER.map(|address| Conversation::start(host, address)))
        .collect();
    pair.wait_for_same_sessions();
    for n in 0..2 {
        assert_owner(&pair, LAN1[n], "gw-a");
        assert_owner(&pair, GUEST[n], "gw-b");
    }
    pair.b.kill();
    wait_until("gw-a has both groups", || primary_of(pair.a()).len() == 2);
    sessions.iter_mut().for_each(Conversation::go_on);
    // With `override` its group returns to gw-b when it is back.
    pair.b.start();
    wait_until_each_has_its_group(&pair);
    sessions.iter_mut().for_each(Conversation::go_on);
    sessions.into_iter().for_each(Conversation::finish);
}

/// Each unit answers for every group that it is primary of, whichever address of a port comes
/// first.
#[test]
fn active_active_sends_errors_and_resets_for_every_group() {
    let mut pair = Pair::new();
    take_example(&mut pair, "active-active");
    let (_switch, guest) = add_guests(&pair);
    for interface in ["eth0", "eth1", "eth2"] {
        let port = format!("interface = \"{interface}\"");
        pair.edit(&port, &format!("{port}\nunsolicited-syn = \"reject\""));
    }
    for unit in [pair.a(), pair.b()] {
        unit.ns.run("ip link set eth1 mtu 1400");
    }
    pair.a_mut().start();
    pair.b.start();
    wait_until_each_has_its_group(&pair);
    for server in SERVER {
        for host in [&pair.lab.lan1, &guest] {
            services::assert_upload(&pair.lab, host, &pair.lab.server, server);
            let route = host.run(&format!("ip route get {server}"));
            assert!(route.contains("mtu 1400"), "not learned: {route}");
        }
    }
    // 7: could not connect; 28 would be a timeout.
    let refused = |host: &Namespace, address: &str| {
        let url = format!("http://{}:81/", bracketed(address));
        host.try_run(&format!("curl -sS -m 5 {url}")).code(7);
    };
    for (host, addresses) in [
        (&pair.lab.server, &["10.77.2.1", "fd77:2::1"]),
        (&pair.lab.server, &["10.77.2.4", "fd77:2::4"]),
        (&pair.lab.lan1, &["10.77.1.1", "fd77:1::1"]),
        (&guest, &["10.77.3.1", "fd77:3::1"]),
    ] {
        addresses.iter().for_each(|address| refused(host, address));
    }
}

/// A config without the part that begins so, up to the next empty line.
fn without(config: &str, beginning: &str) -> String {
    let (before, rest) = config.split_once(beginning).expect("there is such a part");
    let (_, after) = rest.split_once("\n\n").expect("it ends");
    format!("{before}{after}")
}

/// A peer that has one of two groups: what it holds of that one counts, and it can have it.
#[test]
fn peer_that_lacks_a_group_is_in_sync_for_the_other() {
    let mut pair = Pair::new();
    take_example(&mut pair, "active-active");
    pair.edit(
        "[ha]",
        "[ha]\npickup-guarantee = \"strict\"\npickup-guarantee-wait = \"1s\"",
    );
    let (_switch, guest) = add_guests(&pair);
    for kind in ["port", "group"] {
        pair.b.config = without(&pair.b.config, &format!("[[{kind}]]\nname = \"guests\""));
    }
    pair.b.config = without(&pair.b.config, "[[policy]]\nname = \"guests-out\"");
    pair.b
        .edit("\"office\", \"guests\", \"wan\"", "\"office\", \"wan\"");
    pair.b.edit(", \"10.77.2.4/24\"", "");
    pair.b.edit(", \"fd77:2::4/64\"", "");
    // Otherwise it would hand the office back: it has one port less.
    pair.lab
        .unit
        .edit("\"office\", \"guests\", \"wan\"", "\"office\", \"wan\"");
    pair.a_mut().start();
    pair.b.start();
    wait_until("gw-a has both groups", || primary_of(pair.a()).len() == 2);
    wait_until("gw-b could take over the office", || {
        pair.b().group()["ready"] == true && pair.a().peer()["in_sync"] == true
    });
    let _http = Http::start(&pair.lab, &pair.lab.server, 1);
    for server in SERVER {
        whoami(&pair.lab.lan1, &bracketed(server));
    }
    let guarantee = pair.a().status()["counters"]["pickup_guarantee"].clone();
    assert!(guarantee["held"].as_u64() >= Some(2), "{guarantee:#}");
    assert_eq!(guarantee["degraded"], 0, "{guarantee:#}");
    // Nobody else has the guests: their sessions go without a guarantee.
    assert_eq!(whoami(&guest, SERVER[0]), "10.77.2.4");
    let guarantee = pair.a().status()["counters"]["pickup_guarantee"].clone();
    assert!(guarantee["degraded"].as_u64() >= Some(1), "{guarantee:#}");
    let _servers = SERVER.map(|address| line_server(&pair.lab.server, address));
    let mut sessions = SERVER.map(|address| Conversation::start(&pair.lab.lan1, address));
    pair.a().tandemgw("failover --group office").ok();
    assert_eq!(primary_of(pair.b()), ["office"]);
    assert_eq!(primary_of(pair.a()), ["guests"]);
    sessions.iter_mut().for_each(Conversation::go_on);
    sessions.into_iter().for_each(Conversation::finish);
}
