//! Synchronisation links that are missing at the start, or that go and come back.

use crate::conversation::Conversations;
use crate::lab::{SERVER, plug};
use crate::pair::Pair;
use crate::unit::Unit;
use testkit::system::process::wait_until;

fn address(unit: &Unit, link: usize) -> String {
    let own = if unit.ns.name() == "gw-a" { 1 } else { 2 };
    format!("10.77.{}.{own}/24", 9 + link)
}

/// Makes the interface of a link, removed or never there.
fn make(pair: &Pair, unit: &Unit, link: usize) {
    let interface = format!("sync{link}");
    plug(pair.link(link), &unit.ns, &interface);
    give_address(unit, link);
}

fn give_address(unit: &Unit, link: usize) {
    let address = address(unit, link);
    unit.ns
        .run(&format!("ip addr add {address} dev sync{link}"));
}

fn take_address(unit: &Unit, link: usize) {
    let address = address(unit, link);
    unit.ns
        .run(&format!("ip addr del {address} dev sync{link}"));
}

#[track_caller]
fn wait_for_link(unit: &Unit, link: usize, up: bool) {
    wait_until(&format!("link {link} is up: {up}"), || {
        unit.peer()["links"][link]["up"] == up
    });
}

fn reaches(pair: &Pair) -> bool {
    let host = &pair.lab.lan1;
    let ping = host.try_run(&format!("ping -c 1 -W 1 {}", SERVER[0]));
    ping.status.success()
}

#[test]
fn unit_starts_without_its_link_and_binds_when_it_comes() {
    for first in [
        "ip link del sync0",
        "ip addr flush dev sync0",
        "ip link set sync0 down",
    ] {
        let mut pair = Pair::new();
        pair.a().ns.run(first);
        pair.a_mut().start();
        wait_until("gw-a is primary", || pair.a().is_primary());
        wait_until("it forwards", || reaches(&pair));
        match first {
            "ip link del sync0" => make(&pair, pair.a(), 0),
            "ip addr flush dev sync0" => give_address(pair.a(), 0),
            _ => drop(pair.a().ns.run("ip link set sync0 up")),
        }
        pair.b.start();
        pair.a().wait_for_ready_peer();
        pair.b().wait_until_ready();
        assert!(pair.a().is_primary());
        // A peer that is killed is noticed by the end of a TCP connection, on the new interface as
        // well.
        pair.a_mut().kill();
        wait_until("gw-b is primary", || pair.b().is_primary());
    }
}

#[test]
fn pair_works_with_one_link_of_two() {
    let mut pair = Pair::with_links(2);
    pair.a().ns.run("ip link del sync0");
    pair.start();
    wait_for_link(pair.a(), 1, true);
    wait_for_link(pair.a(), 0, false);
    make(&pair, pair.a(), 0);
    wait_for_link(pair.a(), 0, true);
    wait_for_link(pair.b(), 0, true);
}

#[test]
fn link_comes_back_by_itself() {
    let mut pair = Pair::started();
    for removes_the_interface in [true, false, true] {
        for side in [false, true] {
            let unit = if side { pair.b() } else { pair.a() };
            if removes_the_interface {
                unit.ns.run("ip link del sync0");
                wait_for_link(unit, 0, false);
                make(&pair, unit, 0);
            } else {
                take_address(unit, 0);
                wait_for_link(unit, 0, false);
                give_address(unit, 0);
            }
            pair.a().wait_for_ready_peer();
            wait_until("gw-b is ready", || {
                pair.b().group()["ready"] == true || pair.b().is_primary()
            });
        }
    }
    assert!(pair.a().is_primary(), "no link that is gone is a dead peer");
    pair.a_mut().kill();
    wait_until("gw-b is primary", || pair.b().is_primary());
}

/// The least MTU of a link, according to doctor and the book.
/// A pair whose units have this MTU on the link; what is between them has that of Ethernet.
#[track_caller]
fn pair_with_mtu(mtu: u32) -> Pair {
    let mut pair = Pair::new();
    for unit in [pair.a(), pair.b()] {
        unit.ns.run(&format!("ip link set sync0 mtu {mtu}"));
    }
    pair.start();
    pair
}

/// The units believe in jumbo frames, and the switch between them drops those without a word.
#[test]
fn pair_works_where_jumbo_frames_get_lost() {
    let mut pair = pair_with_mtu(9000);
    pair.a().wait_for_ready_peer();
    let mut sessions = Conversations::start(&pair.lab);
    pair.wait_for_same_sessions();
    let term = pair.a().term();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(term);
    sessions.go_on();
    sessions.finish();
}

#[test]
fn pair_works_over_a_link_with_the_least_mtu() {
    pair_with_mtu(1228);
}
