//! Two things that go wrong one after the other. No session is lost that any unit still holds.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use tandemgw_core::flow::Addr;
use tandemgw_core::packet::neighbor;

use crate::capture::Capture;
use crate::cluster::{Clients, Cluster};
use crate::frame::FrameSocket;
use testkit::system::process::wait_until;

/// Datagram sessions, and source ports of TCP connections, at a time.
const DATAGRAMS: u16 = 400;
const CLIENTS: u16 = 3;

/// A standby that was alone promotes itself, and comes back with the higher term: its comparison
/// ends nothing, whichever unit stays primary.
fn isolated_standby_ends_nothing(priorities: &[u8]) {
    let cluster = Cluster::started(priorities);
    let mut clients = Clients::start(&cluster.lab, CLIENTS);
    cluster.open_datagrams(0, DATAGRAMS, 0);
    cluster.wait_until_equal(0, &[]);
    cluster.isolate(1);
    cluster.wait_for_primaries(&[0, 1], &[]);
    assert!(cluster.unit(1).term() > cluster.unit(0).term());
    clients.start_more(&cluster.lab, CLIENTS);
    cluster.open_datagrams(0, DATAGRAMS, DATAGRAMS);
    cluster.wait_until_equal(0, &[1]);
    let held = cluster.held_by(0);
    let (count, all) = (held.len(), usize::from(2 * DATAGRAMS));
    assert!(count >= all, "{count} sessions");
    cluster.rejoin(1);
    let primary = cluster.wait_for_one_primary();
    cluster.wait_until_equal(primary, &[]);
    for unit in 0..cluster.len() {
        cluster.assert_holds(unit, &held);
    }
    clients.go_on();
    clients.finish();
}

#[test]
fn an_isolated_standby_of_a_pair_ends_nothing() {
    isolated_standby_ends_nothing(&[200, 100]);
}

#[test]
fn an_isolated_standby_of_three_ends_nothing() {
    isolated_standby_ends_nothing(&[200, 150, 100]);
}

/// A standby that has missed all since its link to the primary was cut, and has the highest
/// priority.
#[test]
fn a_stale_standby_does_not_take_over() {
    let mut cluster = Cluster::started(&[100, 110, 200]);
    let mut clients = Clients::start(&cluster.lab, CLIENTS);
    cluster.open_datagrams(0, DATAGRAMS, 0);
    cluster.wait_until_equal(0, &[]);
    cluster.cut(0, 2);
    wait_until("gw-c is missed", || {
        cluster.peer_of(0, 2)["connected"] == false
    });
    clients.start_more(&cluster.lab, CLIENTS);
    cluster.open_datagrams(0, DATAGRAMS, DATAGRAMS);
    cluster.wait_until_equal(0, &[2]);
    let held = cluster.held_by(0);
    let missed = held.difference(&cluster.held_by(2)).count();
    assert!(missed >= usize::from(DATAGRAMS), "{missed} are missed");
    cluster.unit_mut(0).kill();
    cluster.wait_for_primaries(&[1], &[0]);
    cluster.assert_holds(1, &held);
    clients.go_on();
    cluster.wait_until_equal(1, &[0]);
    cluster.assert_holds(2, &held);
    clients.finish();
}

/// Sessions that do not fit in a peer's smaller table are refused and reported, and are not copies.
#[test]
fn a_smaller_table_is_no_copy() {
    let mut cluster = Cluster::new(&[200, 100]);
    cluster
        .unit_mut(1)
        .edit("[node]", "[node]\nmax-sessions = 1024");
    cluster.start();
    let log = cluster.unit(0).log();
    assert!(log.contains("1024"), "the smaller table is told: {log}");
    for part in 0..4 {
        cluster.open_datagrams(0, 400, part * 400);
    }
    let refused = || {
        let status = cluster.unit(0).status();
        status["counters"]["pickup_guarantee"]["refused"].as_u64()
    };
    wait_until("sessions are refused", || refused() > Some(300));
    // Those that could not be guaranteed have ended.
    wait_until("the peer holds the rest", || {
        let synced = cluster.unit(0).sessions("proto=udp synced=yes").len();
        let all = cluster.unit(0).sessions("proto=udp").len();
        synced == all && all > 900
    });
    assert_eq!(cluster.peer_of(0, 1)["lag"]["would_be_lost"], 0);
    let held = cluster.held_by(0);
    cluster.unit_mut(0).kill();
    cluster.wait_for_primaries(&[1], &[0]);
    cluster.assert_holds(1, &held);
}

/// One standby that does not run holds nobody up while another one does.
#[test]
fn a_frozen_standby_of_two_holds_nothing_up() {
    let cluster = Cluster::started(&[200, 150, 100]);
    let mut clients = Clients::start(&cluster.lab, CLIENTS);
    let counters = || cluster.unit(0).status()["counters"]["pickup_guarantee"].clone();
    let before = counters();
    cluster.unit(2).signal(libc::SIGSTOP);
    // Until it is missed, and after that.
    for _ in 0..4 {
        clients.start_more(&cluster.lab, 1);
    }
    cluster.open_datagrams(0, DATAGRAMS, 0);
    wait_until("gw-c is missed", || {
        cluster.peer_of(0, 2)["connected"] == false
    });
    cluster.open_datagrams(0, DATAGRAMS, DATAGRAMS);
    let all = usize::from(2 * DATAGRAMS);
    wait_until("all sessions are there", || {
        cluster.unit(0).sessions("proto=udp").len() >= all
    });
    let after = counters();
    for kind in ["expired", "refused", "degraded"] {
        assert_eq!(before[kind], after[kind], "{kind}: {after:#}");
    }
    cluster.unit(2).signal(libc::SIGCONT);
    cluster.wait_until_equal(0, &[]);
    cluster.wait_for_primaries(&[0], &[]);
    clients.go_on();
    clients.finish();
}

/// Groups, each with an address of each family on either port.
const GROUPS: usize = 64;
/// Hosts on the LAN that the units have heard.
const HEARD: u16 = 1000;

/// The last part of the addresses of a group.
fn last(group: usize) -> usize {
    match group {
        0 => 1,
        _ => 10 + group,
    }
}

fn config_of_groups(cluster: &mut Cluster) {
    for (net, name) in [(1, "lan"), (2, "wan")] {
        let addresses = (0..GROUPS).map(|group| {
            let last = last(group);
            format!("\"10.77.{net}.{last}/24\", \"fd77:{net}::{last}/64\"")
        });
        let addresses: Vec<String> = addresses.collect();
        let all = format!("[{}]", addresses.join(", "));
        let one = format!("[\"10.77.{net}.1/24\", \"fd77:{net}::1/64\"]");
        assert!(cluster.lab.unit.config.contains(&one), "the port {name}");
        cluster.edit(&one, &all);
    }
    let groups: String = (0..GROUPS)
        .map(|group| {
            let last = last(group);
            let of = [1, 2].map(|net| format!("\"10.77.{net}.{last}\", \"fd77:{net}::{last}\""));
            format!(
                "[[group]]\nname = \"g{group}\"\nvirtual-addresses = [{}]\n",
                of.join(", ")
            )
        })
        .collect();
    cluster.edit("[ha]", &format!("{groups}\n[ha]"));
}

/// Seconds of the day, as tcpdump prints them.
fn seconds(line: &str) -> f64 {
    let time = line.split(' ').next().expect("a time");
    let parts = time
        .split(':')
        .map(|part| part.parse::<f64>().expect("a number"));
    parts.fold(0.0, |sum, part| sum * 60.0 + part)
}

/// By group: when it was first announced.
fn announced(seen: &str) -> BTreeMap<usize, f64> {
    let mut first = BTreeMap::new();
    for line in seen.lines() {
        let of = |group: &usize| line.contains(&format!("10.77.1.{} ", last(*group)));
        if let Some(group) = (0..GROUPS).find(of) {
            first.entry(group).or_insert_with(|| seconds(line));
        }
    }
    first
}

/// All groups move at once, and each host that was heard is told of each: announcements and
/// heartbeats leave each other room.
#[test]
fn many_groups_and_hosts_move_at_once() {
    let mut cluster = Cluster::new(&[200, 150, 100]);
    config_of_groups(&mut cluster);
    cluster.start();
    let host = FrameSocket::open(&cluster.lab.lan2, "eth0");
    for n in 0..HEARD {
        let [high, low] = n.to_be_bytes();
        let own = Addr::v6([0xfd, 0x77, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, high, low]);
        let gateway = Addr::v6([0xfd, 0x77, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        host.send(&neighbor::solicit(gateway, own, [2, 0, 0, 9, high, low]));
        if n % 16 == 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    host.finish();
    let mac = cluster.unit(1).ns.mac("eth0");
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    let filter = format!("arp and ether src {mac}");
    let capture = Capture::start(&cluster.lab.lan1, "eth0", &filter);
    cluster.unit_mut(0).kill();
    wait_until("gw-b is primary of all groups", || {
        let status = cluster.unit(1).status();
        let mut groups = status["groups"].as_array().expect("a list").iter();
        groups.all(|group| group["role"] == "primary")
    });
    wait_until("all groups are announced", || {
        announced(&capture.seen()).len() == GROUPS
    });
    let times = announced(&capture.stop());
    let first = times.values().copied().fold(f64::MAX, f64::min);
    let dark = times.values().copied().fold(0.0, f64::max) - first;
    assert!(dark < 0.5, "the last group came {dark} s after the first");
    let lost = cluster.unit(1).status()["counters"]["outputs_lost"].clone();
    assert_eq!(lost, 0);
    cluster.wait_until_equal(1, &[0]);
    for (unit, other) in [(1, "gw-c"), (2, "gw-b")] {
        let events = cluster.unit(unit).events();
        let missed = format!("{other} is lost");
        assert!(!events.iter().any(|it| it.contains(&missed)), "{events:#?}");
    }
}

/// How long units may be primary beside each other, though a path leads from one to the other.
const MOST_DUAL: Duration = Duration::from_secs(1);

/// Watches the units that run, and gives the longest time in which more than one was primary.
fn longest_dual(cluster: &Cluster, running: &[usize], span: Duration) -> Duration {
    let began = Instant::now();
    let (mut since, mut longest) = (None, Duration::ZERO);
    while began.elapsed() < span {
        let primaries = running.iter().filter(|n| cluster.unit(**n).is_primary());
        since = (primaries.count() > 1).then(|| since.unwrap_or_else(Instant::now));
        longest = longest.max(since.map_or(Duration::ZERO, |since| since.elapsed()));
    }
    longest
}

/// The two standbys of three do not hear each other over the links when their primary dies. They
/// find each other on the data ports, and one takes over with all sessions.
#[test]
fn two_standbys_without_a_link_become_one_primary() {
    let mut cluster = Cluster::started(&[200, 150, 100]);
    let mut clients = Clients::start(&cluster.lab, CLIENTS);
    cluster.cut(1, 2);
    wait_until("gw-c is missed by gw-b", || {
        cluster.peer_of(1, 2)["connected"] == false
    });
    cluster.open_datagrams(0, DATAGRAMS, 0);
    cluster.wait_until_equal(0, &[]);
    let held = cluster.held_by(0);
    cluster.unit_mut(0).kill();
    wait_until("there is a primary", || {
        [1, 2].iter().any(|n| cluster.unit(*n).is_primary())
    });
    let dual = longest_dual(&cluster, &[1, 2], Duration::from_secs(4));
    assert!(dual < MOST_DUAL, "two primaries for {dual:?}");
    let primaries = [1, 2].into_iter().filter(|n| cluster.unit(*n).is_primary());
    let primaries: Vec<usize> = primaries.collect();
    assert_eq!(primaries.len(), 1, "primaries: {primaries:?}");
    cluster.assert_holds(primaries[0], &held);
    clients.go_on();
    clients.finish();
}

/// Cuts the links of the last of three units.
fn isolate_last(cluster: &Cluster) {
    for other in [0, 1] {
        cluster.cut(2, other);
    }
    wait_until("gw-c hears the primary on data ports only", || {
        cluster.unit(2).group()["degraded"] == true
    });
}

/// The links of one unit are cut, and it does not run for some time, as on a machine that is busy:
/// it takes nothing from a primary that lives.
#[test]
fn a_stall_of_a_unit_without_links_moves_no_role() {
    let cluster = Cluster::started(&[100, 110, 200]);
    let mut clients = Clients::start(&cluster.lab, CLIENTS);
    isolate_last(&cluster);
    let (term, held) = (cluster.unit(0).term(), cluster.held_by(0));
    for stall in [40, 80, 100, 120, 140, 155, 165, 175, 190, 220, 300, 500] {
        cluster.unit(2).signal(libc::SIGSTOP);
        thread::sleep(Duration::from_millis(stall));
        cluster.unit(2).signal(libc::SIGCONT);
        let dual = longest_dual(&cluster, &[0, 1, 2], Duration::from_millis(400));
        assert_eq!(dual, Duration::ZERO, "stall of {stall} ms");
        let events = cluster.unit(2).events();
        assert!(cluster.unit(0).is_primary(), "{stall} ms: {events:#?}");
    }
    assert_eq!(cluster.unit(0).term(), term);
    cluster.assert_holds(0, &held);
    clients.go_on();
    clients.finish();
}

/// The whole machine stalls while one unit has no links: all units stop at once. One that holds
/// everything is primary afterwards.
#[test]
fn a_stall_of_all_units_loses_nothing() {
    let cluster = Cluster::started(&[100, 110, 200]);
    let mut clients = Clients::start(&cluster.lab, CLIENTS);
    isolate_last(&cluster);
    clients.start_more(&cluster.lab, CLIENTS);
    cluster.wait_until_equal(0, &[2]);
    let held = cluster.held_by(0);
    for stall in [60, 120, 165, 200, 400] {
        (0..3).for_each(|n| cluster.unit(n).signal(libc::SIGSTOP));
        thread::sleep(Duration::from_millis(stall));
        (0..3).for_each(|n| cluster.unit(n).signal(libc::SIGCONT));
        let dual = longest_dual(&cluster, &[0, 1, 2], Duration::from_secs(2));
        assert!(dual < MOST_DUAL, "two primaries for {dual:?}");
        let holder = [0, 1].into_iter().find(|n| cluster.unit(*n).is_primary());
        let holder = holder.expect("one of those that hold all is primary");
        assert!(!cluster.unit(2).is_primary());
        cluster.assert_holds(holder, &held);
    }
    clients.go_on();
    clients.finish();
}
