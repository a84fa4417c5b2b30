//! The primary dies, stops or loses its power: sessions live on at the other unit.

use std::path::Path;

use crate::capture::Capture;
use crate::conversation::{Conversations, Streams};
use crate::forward::expect_one_hop;
use crate::lab::{LAN_GATEWAY, SERVER, bracketed};
use crate::pair::Pair;
use crate::services::Http;
use crate::unit::Unit;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// Frames of a unit on an interface, except those of its kernel and those by which units recognise
/// each other.
fn traffic_of(unit: &Namespace, interface: &str) -> String {
    let mac = mac_of(unit, interface);
    format!(
        "ether src {mac} and not arp and not icmp6 and not ip6 proto 0 and not ether proto 0x88b5"
    )
}

fn mac_of(unit: &Namespace, interface: &str) -> String {
    let bytes = unit.mac(interface).map(|byte| format!("{byte:02x}"));
    bytes.join(":")
}

#[test]
fn killed_primary_costs_no_session() {
    let mut pair = Pair::started();
    let http = Http::start(&pair.lab, &pair.lab.server, 8);
    let streams = Streams::start(&pair.lab);
    let mut sessions = Conversations::start(&pair.lab);
    let downloads =
        SERVER.map(|server| http.start_slow_download(&pair.lab.lan1, &bracketed(server)));
    pair.a().wait_for_ready_peer();
    let term = pair.a().term();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(term);
    pair.b().wait_for_event("primary of default");
    assert!(
        pair.b()
            .events()
            .iter()
            .any(|e| e.contains("gw-a may be dead")),
        "{:#?}",
        pair.b().events()
    );
    streams.wait_for_more();
    sessions.go_on();
    for download in downloads {
        download.finish();
    }
    sessions.finish();
    assert_eq!(pair.b().peer()["connected"], false);
}

/// Peers learn by the end of these connections that the process was killed. The kernel closes files
/// from the highest number down, and takes milliseconds for programs of the fast path.
#[test]
fn the_kernel_of_a_killed_unit_closes_the_connections_to_peers_first() {
    let pair = Pair::started();
    pair.a().wait_for_ready_peer();
    for unit in [pair.a(), pair.b()] {
        wait_until("the connections to the peer are up", || {
            let ours = connections(unit);
            let [others, ours]: [Vec<i32>; 2] = [false, true].map(|wanted| {
                let files = open_files(unit).into_iter();
                files
                    .filter(|(_, target)| ours.contains(target) == wanted)
                    .map(|(number, _)| number)
                    .collect()
            });
            let lowest = ours.iter().min();
            assert!(lowest.is_none_or(|lowest| others.iter().all(|n| n < lowest)));
            !ours.is_empty()
        });
    }
}

/// The kernel frees the memory of a process before it closes its files, unless another one
/// shares it.
#[test]
fn a_killed_unit_closes_its_connections_before_its_memory_is_freed() {
    let mut pair = Pair::started();
    let (process, other) = (pair.a().pid(), shares_memory_with(pair.a()));
    // SAFETY: kcmp takes numbers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, process, other, KCMP_VM, 0, 0) };
    assert_eq!(order, 0, "they have the same memory");
    let files = std::fs::read_dir(format!("/proc/{other}/fd")).expect("it runs");
    assert_eq!(files.count(), 0, "it keeps nothing open");
    pair.a_mut().kill();
    let is_gone = |process| !Path::new(&format!("/proc/{process}")).exists();
    wait_until("the memory is free", || is_gone(other));

    // Nor is it left by an orderly end, or ends by what else a service manager sends to all.
    let other = shares_memory_with(pair.b());
    // SAFETY: kill takes numbers only.
    unsafe { libc::kill(other, libc::SIGTERM) };
    assert_eq!(shares_memory_with(pair.b()), other);
    pair.b.stop();
    wait_until("the memory is free", || is_gone(other));
}

/// `KCMP_VM` (linux/kcmp.h).
const KCMP_VM: libc::c_int = 1;

/// The process that a unit has started to share its memory.
fn shares_memory_with(unit: &Unit) -> libc::pid_t {
    let all = std::fs::read_dir("/proc").expect("processes are shown");
    let mut found = all.filter_map(|entry| {
        let number = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.split_once(") ")?;
        let parent = rest.split(' ').nth(1)?;
        (name == "tandemgw-memory" && parent == unit.pid().to_string()).then_some(number)
    });
    found.next().expect("it is there from the start")
}

/// To enlarge that table, the kernel makes a process with threads wait for some 10 ms: longer than
/// a short hold time.
#[test]
fn a_peer_that_comes_does_not_have_the_kernel_enlarge_the_table_of_open_files() {
    let mut pair = Pair::new();
    pair.a_mut().start();
    wait_until("gw-a is primary", || pair.a().is_primary());
    let before = places_for_files(pair.a());
    pair.b.start();
    wait_until("the peer is connected", || {
        !connections(pair.a()).is_empty()
    });
    let highest = open_files(pair.a()).into_iter().map(|(number, _)| number);
    assert!(
        highest.max() > Some(64),
        "more than each process has room for"
    );
    assert_eq!(places_for_files(pair.a()), before);
}

/// How many open files the kernel has room for without more memory (proc_pid_status(5)).
fn places_for_files(unit: &Unit) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", unit.pid()));
    let status = status.expect("it runs");
    let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
    size.and_then(|size| size.trim().parse().ok())
        .expect("a size")
}

/// The numbers of a unit's open files, and what they are.
fn open_files(unit: &Unit) -> Vec<(i32, String)> {
    let folder = std::fs::read_dir(format!("/proc/{}/fd", unit.pid())).expect("it runs");
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let target = std::fs::read_link(entry.path()).ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, target.to_str()?.to_owned()))
    };
    folder.filter_map(file).collect()
}

/// The TCP connections of a unit's namespace, as its open files name them (proc_pid_net(5)).
fn connections(unit: &Unit) -> Vec<String> {
    let table = |name| std::fs::read_to_string(format!("/proc/{}/net/{name}", unit.pid()));
    let both = ["tcp", "tcp6"].map(|name| table(name).expect("it runs"));
    let rows = both.iter().flat_map(|text| text.lines().skip(1));
    rows.filter_map(|row| {
        let columns: Vec<&str> = row.split_ascii_whitespace().collect();
        (columns[3] == "01").then(|| format!("socket:[{}]", columns[9]))
    })
    .collect()
}

#[test]
fn traceroute_shows_the_same_hop_before_and_after() {
    let mut pair = Pair::started();
    expect_one_hop(&pair.lab);
    pair.a().wait_for_ready_peer();
    let term = pair.a().term();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(term);
    expect_one_hop(&pair.lab);
}

#[test]
fn stopped_primary_gives_up_before_it_forwards_again() {
    let pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    // Its packets are what waits in the stopped unit's queues.
    let streams = Streams::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    let term = pair.a().term();
    pair.a().signal(libc::SIGSTOP);
    pair.wait_for_takeover_by_b(term);
    sessions.go_on();
    streams.wait_for_more();
    // They must not come out when it goes on.
    let [lan, wan] =
        [(&pair.lab.lan2, "eth0"), (&pair.lab.server, "eth1")].map(|(host, interface)| {
            Capture::start(host, "eth0", &traffic_of(&pair.a().ns, interface))
        });
    pair.a().signal(libc::SIGCONT);
    pair.a().wait_for_event("paused for");
    pair.a().wait_until_ready();
    assert!(pair.b().is_primary(), "{:#?}", pair.b().events());
    sessions.go_on();
    streams.wait_for_more();
    lan.assert_empty();
    wan.assert_empty();
    pair.wait_for_same_sessions();
    sessions.finish();
}

#[test]
fn stopped_standby_catches_up() {
    let pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    pair.b().signal(libc::SIGSTOP);
    wait_until("the standby is missed", || {
        pair.a().peer()["connected"] == false
    });
    sessions.go_on();
    let mut more = Conversations::start_more(&pair.lab);
    pair.b().signal(libc::SIGCONT);
    pair.b().wait_until_ready();
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
    assert!(pair.a().is_primary());
    more.go_on();
    sessions.finish();
    more.finish();
}

#[test]
fn unit_that_lost_all_of_its_links_yields_when_they_are_back() {
    let pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    let term = pair.a().term();
    pair.set_links(pair.a(), "down");
    pair.wait_for_takeover_by_b(term);
    sessions.go_on();
    pair.set_links(pair.a(), "up");
    pair.a().wait_until_ready();
    pair.b().wait_for_ready_peer();
    assert!(pair.b().is_primary(), "{:#?}", pair.b().events());
    assert_eq!(pair.a().term(), pair.b().term());
    let winner = mac_of(&pair.b().ns, "eth0");
    for gateway in LAN_GATEWAY {
        wait_until("the host knows the winner", || {
            let entry = pair.lab.lan1.run(&format!("ip neigh show {gateway}"));
            entry.contains(&winner)
        });
    }
    let silent = Capture::start(&pair.lab.server, "eth0", &traffic_of(&pair.a().ns, "eth1"));
    sessions.go_on();
    silent.assert_empty();
    pair.wait_for_same_sessions();
    sessions.finish();
}

#[test]
fn new_primary_answers_for_the_virtual_addresses() {
    let mut pair = Pair::new();
    pair.edit(
        "interface = \"eth0\"",
        "interface = \"eth0\"\nunsolicited-syn = \"reject\"",
    );
    pair.start();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    for gateway in LAN_GATEWAY {
        pair.lab.lan1.run(&format!("ping -c 1 -W 5 {gateway}"));
        // Nothing listens there, and the client learns it at once. 7: connection refused.
        let refused = format!("curl -s -m 10 http://{}:9/", bracketed(gateway));
        pair.lab.lan1.try_run(&refused).code(7);
    }
}

/// All namespaces of a machine share one lock for what concerns links, routes and rules. Who starts
/// or ends many containers holds it for long.
#[test]
fn a_machine_that_makes_and_removes_many_links_costs_no_heartbeat() {
    let pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    let term = pair.a().term();
    let neighbor = pair.lab.lan1.sibling("busy");
    let links: String = (0..300)
        .map(|n| format!("link add v{n} group 7 type veth peer name w{n}\nlink set v{n} up\n"))
        .collect();
    let batch = pair.lab.dir().join("links");
    std::fs::write(&batch, links).expect("writing the batch");
    for _ in 0..2 {
        neighbor.run(&format!("ip -batch {}", batch.display()));
        sessions.go_on();
        neighbor.run("ip link del group 7");
    }
    sessions.go_on();
    for unit in [pair.a(), pair.b()] {
        let paused = |event: &String| event.contains("paused for");
        assert!(!unit.events().iter().any(paused), "{:#?}", unit.events());
    }
    assert!(pair.a().is_primary() && pair.a().term() == term);
    sessions.finish();
}

/// Hosts that have the link-local address of their router from a DHCPv6 server or by hand.
#[test]
fn a_link_local_router_is_carried_over() {
    let mut pair = Pair::new();
    pair.edit("\"fd77:1::1/64\"]", "\"fd77:1::1/64\", \"fe80::1/64\"]");
    pair.start();
    let host = &pair.lab.lan1;
    host.run("ip -6 route replace default via fe80::1 dev eth0");
    let ping = |count: u32| {
        let said = pair
            .lab
            .lan1
            .run(&format!("ping -c {count} -i 0.05 -W 2 {}", SERVER[1]));
        assert!(said.contains(" 0% packet loss"), "{said}");
    };
    ping(10);
    let neighbor = || pair.lab.lan1.run("ip neigh show fe80::1");
    assert!(
        neighbor().contains(&mac_of(&pair.a().ns, "eth0")),
        "{}",
        neighbor()
    );
    let answers = Capture::start(&pair.lab.lan1, "eth0", "icmp6 and src host fe80::1");
    // From a link-local address and from a global one.
    for options in ["", "-I fd77:1::100"] {
        let ping = format!("ping -c 3 -i 0.1 -W 2 {options} fe80::1%eth0");
        let said = pair.lab.lan1.run(&ping);
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    answers.expect(&["echo reply"]);
    let announced = Capture::start(&pair.lab.lan2, "eth0", "icmp6");
    let term = pair.a().term();
    pair.lab.unit.kill();
    pair.wait_for_takeover_by_b(term);
    announced.expect(&["neighbor advertisement", "tgt is fe80::1"]);
    let said = pair
        .lab
        .lan1
        .run(&format!("ping -c 10 -i 0.05 -W 2 {}", SERVER[1]));
    assert!(said.contains(" 0% packet loss"), "{said}");
    let pong = pair.lab.lan1.run("ping -c 2 -i 0.1 -W 2 fe80::1%eth0");
    assert!(pong.contains(" 0% packet loss"), "{pong}");
    let neighbor = pair.lab.lan1.run("ip neigh show fe80::1");
    assert!(
        neighbor.contains(&mac_of(&pair.b().ns, "eth0")),
        "{neighbor}"
    );
}
