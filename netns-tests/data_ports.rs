//! Units recognise each other on the data ports: every split heals, and every takeover is worth it.

use std::thread;
use std::time::{Duration, Instant};

use crate::conversation::Conversations;
use crate::lab::{LAN_GATEWAY, Lab, SERVER, switch_port};
use crate::multicast::POLICY;
use crate::pair::{Pair, set_port};
use crate::unit::Unit;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// Two primaries that can hear each other are one after this time; the machine may be busy.
const SETTLED: Duration = Duration::from_secs(4);
/// Some hold times.
const MOMENT: Duration = Duration::from_secs(3);

/// Takes a unit off a switch, or puts it back, without a loss of carrier.
fn set_joined(switch: &Namespace, unit: &Unit, interface: &str, joined: bool) {
    let port = switch_port(&unit.ns, interface);
    let master = if joined { "master br0" } else { "nomaster" };
    switch.run(&format!("ip link set {port} {master}"));
}

fn primaries(pair: &Pair) -> usize {
    [pair.a(), pair.b()]
        .iter()
        .filter(|it| it.is_primary())
        .count()
}

fn wait_until_heard(unit: &Unit, ports: usize) {
    wait_until("the peer is heard on the ports", || {
        let heard = unit.peer()["heard_on"].as_array().map(Vec::len);
        heard == Some(ports)
    });
}

fn wait_until_degraded(unit: &Unit) {
    wait_until("the primary is heard on the ports only", || {
        unit.group()["degraded"] == true
    });
}

/// A host that answers for the virtual address of the LAN.
fn impersonate(lab: &Lab) {
    lab.lan2
        .run(&format!("ip addr add {}/24 dev eth0", LAN_GATEWAY[0]));
}

fn has_trouble(unit: &Unit, part: &str) -> bool {
    let health = unit.status()["health"].to_string();
    health.contains(part)
}

#[test]
fn two_primaries_without_links_become_one() {
    for (interface, heals) in [("eth0", "lan"), ("eth1", "wan")] {
        let pair = Pair::started();
        wait_until_heard(pair.a(), 2);
        wait_until_heard(pair.b(), 2);
        pair.cut(0);
        set_joined(&pair.lab.sw_lan, pair.b(), "eth0", false);
        set_joined(&pair.lab.sw_wan, pair.b(), "eth1", false);
        wait_until("both are primary", || primaries(&pair) == 2);
        let switch = match heals {
            "lan" => &pair.lab.sw_lan,
            _ => &pair.lab.sw_wan,
        };
        set_joined(switch, pair.b(), interface, true);
        let began = Instant::now();
        wait_until("one is primary", || primaries(&pair) == 1);
        assert!(began.elapsed() < SETTLED, "{:?}", began.elapsed());
        thread::sleep(MOMENT);
        assert_eq!(primaries(&pair), 1);
        assert!(
            !pair.a().log().contains("address conflict"),
            "{}",
            pair.a().log()
        );
    }
}

#[test]
fn units_that_start_without_links_have_one_primary() {
    let mut pair = Pair::new();
    pair.cut(0);
    pair.lab.unit.start();
    pair.b.start();
    wait_until("there is a primary", || primaries(&pair) > 0);
    thread::sleep(MOMENT);
    assert_eq!(primaries(&pair), 1);
}

#[test]
fn standby_takes_over_when_the_primary_loses_a_port_and_no_link_works() {
    let pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
    wait_until_heard(pair.a(), 2);
    pair.cut(0);
    wait_until_degraded(pair.b());
    set_port(&pair.lab.sw_lan, &pair.a().ns, "eth0", "down");
    wait_until("gw-b is primary", || pair.b().is_primary());
    wait_until("gw-a lets go", || !pair.a().is_primary());
    sessions.go_on();
    sessions.finish();
    thread::sleep(MOMENT);
    assert!(pair.b().is_primary() && !pair.a().is_primary());
}

#[test]
fn a_stranger_that_answers_arp_holds_no_takeover_up() {
    let mut pair = Pair::started();
    let b_log = |pair: &Pair| pair.b().log();
    wait_until_heard(pair.b(), 2);
    impersonate(&pair.lab);
    pair.cut(0);
    wait_until_degraded(pair.b());
    thread::sleep(MOMENT);
    assert!(
        pair.a().is_primary() && !pair.b().is_primary(),
        "the primary lives"
    );
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    wait_until("the conflict is said", || {
        b_log(&pair).contains("address conflict")
            && has_trouble(pair.b(), "uses the virtual address")
    });
}

#[test]
fn a_stranger_that_answers_arp_keeps_no_unit_from_serving() {
    let mut pair = Pair::new();
    impersonate(&pair.lab);
    pair.start();
    assert_eq!(primaries(&pair), 1);

    let mut lab = Lab::new();
    impersonate(&lab);
    lab.unit.start();
    assert!(
        lab.unit.log().contains("address conflict"),
        "{}",
        lab.unit.log()
    );
    wait_until("the conflict is shown", || {
        has_trouble(&lab.unit, "uses the virtual address")
    });
    lab.lan2
        .run(&format!("ip addr del {}/24 dev eth0", LAN_GATEWAY[0]));
    wait_until("the conflict is over", || {
        !has_trouble(&lab.unit, "uses the virtual address")
    });
}

#[test]
fn override_waits_until_the_ports_carry() {
    let mut pair = Pair::new();
    pair.edit("monitor = [", "override = true\nmonitor = [");
    pair.start();
    assert!(pair.a().is_primary(), "by its priority");
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    // As spanning tree does with a port that has come up. (The bridge of the kernel blocks none by
    // hand.)
    let port = switch_port(&pair.a().ns, "eth0");
    for line in [
        "add table bridge stp".to_owned(),
        "add chain bridge stp c { type filter hook forward priority 0; }".to_owned(),
        format!("add rule bridge stp c iifname {port} drop"),
        format!("add rule bridge stp c oifname {port} drop"),
    ] {
        pair.lab.sw_lan.sh(&format!("nft '{line}'"));
    }
    pair.a_mut().start();
    pair.a().wait_until_ready();
    thread::sleep(MOMENT);
    assert!(
        pair.b().is_primary() && !pair.a().is_primary(),
        "hosts do not reach gw-a"
    );
    pair.lab.sw_lan.run("nft delete table bridge stp");
    wait_until("gw-a takes back", || {
        pair.a().is_primary() && !pair.b().is_primary()
    });
}

#[test]
fn a_unit_with_another_config_is_not_ready_and_both_say_what_differs() {
    let mut pair = Pair::new();
    pair.b.edit("10.77.2.1/24", "10.77.2.9/24");
    pair.b.edit("nat = true", "nat = false");
    pair.lab.unit.config += POLICY;
    pair.b.config += &POLICY.replace("239.1.0.0/16", "239.2.0.0/16");
    pair.lab.unit.start();
    wait_until("gw-a is primary", || pair.a().is_primary());
    pair.b.start();
    for unit in [pair.a(), pair.b()] {
        wait_until("the differences are told", || {
            let differs = unit.peer()["config"]["differs"].to_string();
            let names = ["port wan", "policy lan-out", "multicast-policy tv"];
            names.iter().all(|name| differs.contains(name))
        });
        assert!(
            has_trouble(unit, "another config"),
            "{}",
            unit.status()["health"]
        );
    }
    thread::sleep(MOMENT);
    assert_eq!(pair.b().group()["ready"], false);
    let refused = pair.a().tandemgw("failover");
    assert!(refused.stderr.contains("not ready"), "{}", refused.stderr);
    // There is no better one.
    pair.a_mut().kill();
    wait_until("gw-b is primary", || pair.b().is_primary());
}

#[test]
fn a_host_that_missed_all_announcements_is_told() {
    let pair = Pair::started();
    wait_until_heard(pair.b(), 2);
    let mac = pair.b().ns.mac_text("eth0");
    for address in LAN_GATEWAY {
        let entry = format!("ip neigh replace {address} lladdr {mac} nud stale dev eth0");
        pair.lab.lan1.run(&entry);
    }
    // The kernel believes nothing of an address within a second of a change.
    thread::sleep(Duration::from_millis(1200));
    let wanted = pair.a().ns.mac_text("eth0");
    for (address, server) in LAN_GATEWAY.into_iter().zip(SERVER) {
        let began = Instant::now();
        wait_until("the host sends to the primary", || {
            let _ = pair.lab.lan1.try_run(&format!("ping -c 1 -W 1 {server}"));
            let entry = pair
                .lab
                .lan1
                .run(&format!("ip neigh show {address} dev eth0"));
            entry.contains(&wanted)
        });
        assert!(began.elapsed() < SETTLED, "{:?}", began.elapsed());
    }
}
