//! `offload = "ebpf"` and `"auto"`: the kernel forwards established sessions, and no longer than it
//! may.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::capture::Capture;
use crate::conversation::{Conversations, Streams};
use crate::doctor::doctor;
use crate::fast_exit;
use crate::lab::{Lab, SERVER, bracketed};
use crate::pair::Pair;
use crate::services::{self, Http};
use crate::unit::Unit;
use testkit::system::namespace::is_root_of_the_machine;
use testkit::system::process::wait_until;

const EBPF: &str = "offload = \"ebpf\"";
const AUTO: &str = "offload = \"auto\"";
/// Without peers: how long the kernel forwards for a process that says nothing.
const LEASE: Duration = Duration::from_secs(1);

pub fn want_ebpf(unit: &mut Unit) {
    want(unit, EBPF);
}

fn want(unit: &mut Unit, offload: &str) {
    for port in ["lan", "wan"] {
        let name = format!("name = \"{port}\"");
        unit.edit(&name, &format!("{name}\n{offload}"));
    }
}

/// A lab whose gateway has a fast path; none where this machine lets nobody load programs.
fn started() -> Option<Lab> {
    started_with(EBPF)
}

pub fn started_with(offload: &str) -> Option<Lab> {
    let mut lab = Lab::new();
    want(&mut lab.unit, offload);
    lab.unit.start();
    can_load(&lab.unit).then_some(lab)
}

fn can_load(unit: &Unit) -> bool {
    if !is_root_of_the_machine() {
        eprintln!("not tested: nobody may load programs in a user namespace");
        return false;
    }
    wait_until("the program is at all ports", || is_at_all_ports(unit));
    true
}

pub fn is_at_all_ports(unit: &Unit) -> bool {
    let status = unit.status();
    let ports = status["ports"].as_array().expect("ports");
    ports.iter().all(|port| port["offload"] == "ebpf")
}

/// Waits until the program is at the ports, or can't be there.
#[track_caller]
pub fn wait_until_attached(unit: &Unit) {
    wait_until("the program is at the ports, or can't be", || {
        let status = unit.status();
        let ports = status["ports"].as_array().expect("ports");
        let waits = |port: &Value| {
            let why = port["why_no_ebpf"].as_str();
            why.is_some_and(|why| why.contains(" yet"))
        };
        !ports.iter().any(waits)
    });
}

fn pair() -> Option<Pair> {
    let mut pair = Pair::new();
    want_ebpf(&mut pair.lab.unit);
    want_ebpf(&mut pair.b);
    pair.start();
    can_load(pair.a()).then_some(pair)
}

fn packets(unit: &Unit) -> u64 {
    let status = unit.status();
    status["fast_path"]["packets"].as_u64().expect("a number")
}

fn wait_for_offload(unit: &Unit) {
    wait_until("sessions are offloaded", || {
        let sessions = unit.sessions("proto=udp");
        !sessions.is_empty() && sessions.iter().all(|session| session["offloaded"] == true)
    });
    let before = packets(unit);
    wait_until("the kernel forwards", || packets(unit) > before + 100);
}

fn wait_for_no_offload(unit: &Unit) {
    wait_until("no session is offloaded", || {
        let sessions = unit.sessions("proto=udp");
        sessions.iter().all(|session| session["offloaded"] == false)
    });
}

/// Transfers are whole, most of their packets are the kernel's, and the connections end for the
/// gateway when they end.
#[test]
fn connections_are_forwarded_by_the_kernel_and_end_in_order() {
    let Some(lab) = started() else { return };
    let http = Http::start(&lab, &lab.server, 16);
    for server in SERVER {
        http.assert_download(&lab.lan1, &bracketed(server));
        services::assert_upload(&lab, &lab.lan1, &lab.server, server);
    }
    wait_until("all connections are over", || {
        let sessions = lab.unit.sessions("proto=tcp");
        let is_over = |session: &Value| session["state"] != "established";
        sessions.len() >= 4 && sessions.iter().all(is_over)
    });
    let status = lab.unit.status();
    let fast = status["fast_path"]["bytes"].as_u64().expect("a number");
    let sum = |of: &str| -> u64 {
        let ports = status["ports"].as_array().expect("ports");
        ports
            .iter()
            .filter_map(|port| port[of]["bytes"].as_u64())
            .sum()
    };
    assert!(
        fast * 10 > sum("out") * 9,
        "{fast} of {}: {status}",
        sum("out")
    );
    let sessions = lab.unit.sessions("proto=tcp");
    let bytes: u64 = sessions.iter().filter_map(|it| it["bytes"].as_u64()).sum();
    assert!(
        bytes >= fast && bytes <= sum("in"),
        "{bytes}, {fast}: {status}"
    );
}

#[test]
fn datagrams_are_forwarded_and_counted() {
    let Some(lab) = started() else { return };
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    streams.wait_for_more();
    streams.assert_whole();
    thread::sleep(Duration::from_millis(1200));
    let sessions = lab.unit.sessions("proto=udp");
    let status = lab.unit.status();
    let of_sessions: u64 = sessions
        .iter()
        .filter_map(|it| it["packets"].as_u64())
        .sum();
    assert_eq!(
        status["counters"]["forwarded"].as_u64(),
        Some(of_sessions),
        "{status}"
    );
}

/// They see, or end, everything from then on.
#[test]
fn captures_clearing_and_reloads_end_entries_first() {
    let Some(lab) = started() else { return };
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    let line = |what: &str| {
        let file = lab.dir().join(format!("{}.pcapng", what.len()));
        format!("capture --write {} {what}", file.display())
    };
    let capture = lab.unit.spawn_tandemgw(&line("--count 400 proto=udp"));
    capture.finish(Duration::from_secs(30)).ok();
    let capture = lab.unit.spawn_tandemgw(&line("proto=icmp"));
    wait_until("it captures", || lab.unit.status()["capture"].is_object());
    thread::sleep(Duration::from_millis(1200));
    let before = packets(&lab.unit);
    streams.wait_for_more();
    assert_eq!(packets(&lab.unit), before, "a capture sees all packets");
    drop(capture);
    wait_for_offload(&lab.unit);
    streams.assert_whole();
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    // An answer that is on its way then is refused. It would end the server's socat.
    let rules = [
        "add table inet refusals",
        "add chain inet refusals in { type filter hook input priority 0; }",
        "add rule inet refusals in icmp type destination-unreachable drop",
        "add rule inet refusals in icmpv6 type destination-unreachable drop",
    ];
    for rule in rules {
        lab.server.run(&format!("nft {rule}"));
    }
    lab.unit.tandemgw("sessions clear proto=udp").ok();
    streams.wait_for_more();
    wait_for_offload(&lab.unit);
    drop(streams);
}

#[test]
fn a_reload_that_forbids_a_session_ends_it() {
    let Some(mut lab) = started() else { return };
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    lab.unit
        .prepend_policy("name = \"no-udp\"\nservice = [\"udp\"]\naction = \"drop\"");
    lab.unit.reload();
    wait_until("they have ended", || {
        lab.unit.sessions("proto=udp").is_empty()
    });
    let capture = Capture::start(
        &lab.server,
        "eth0",
        "udp port 7101 and not src host 10.77.2.100 \
                                 and not src host fd77:2::100",
    );
    thread::sleep(Duration::from_millis(500));
    capture.assert_empty();
    drop(streams);
}

/// The program comes back where the interface does.
#[test]
fn an_interface_made_again_is_in_the_fast_path_again() {
    let Some(lab) = started() else { return };
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    lab.unit.ns.run("ip link del eth1");
    lab.attach_wan();
    wait_until("the program is at the new interface", || {
        is_at_all_ports(&lab.unit)
    });
    wait_for_offload(&lab.unit);
    drop(streams);
}

/// Packets to it go through the process again, as long as it does not answer.
#[test]
fn a_host_that_is_gone_has_no_fast_path() {
    let Some(lab) = started() else { return };
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    for family in ["arp", "inet"] {
        lab.server.sh(&format!(
            "nft add table {family} f; \
             nft 'add chain {family} f i {{ type filter hook input priority 0; policy drop; }}'"
        ));
    }
    // It knows for up to 45 s that they answered.
    lab.unit.ns.sh("ip neigh flush dev eth1");
    wait_for_no_offload(&lab.unit);
    let session = lab.unit.sessions("proto=udp").remove(0);
    let (src, dst) = (session["src"].as_str(), session["dst"].as_str());
    let packet = format!("udp {} {}", src.expect("a source"), dst.expect("a target"));
    let explained = lab
        .unit
        .tandemgw(&format!("explain {packet} --in lan --json"))
        .ok();
    let why = "\"why_not_offloaded\":\"its next hop does not answer\"";
    assert!(explained.stdout.contains(why), "{}", explained.stdout);
    lab.server.sh("nft flush ruleset");
    wait_for_offload(&lab.unit);
    drop(streams);
}

/// What comes to the process is little then, and that is no sign of a filter that drops the rest.
#[test]
fn a_harmless_filter_is_not_blamed_for_what_the_kernel_forwards() {
    let Some(lab) = started() else { return };
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    lab.lan1.run("ping -c 20 -i 0.1 -W 2 10.77.2.100");
    for port in ["eth0", "eth1"] {
        lab.unit.ns.run(&format!("tc qdisc add dev {port} clsact"));
    }
    thread::sleep(Duration::from_secs(6));
    let status = lab.unit.status();
    for port in status["ports"].as_array().expect("ports") {
        assert_eq!(port["fault"], Value::Null, "{port}");
    }
    let log = lab.unit.log();
    assert!(!log.contains("port does not work"), "{log}");
    drop(streams);
}

/// What the kernel forwards leaves, and that is no sign that what the process sends does.
#[test]
fn what_stops_the_process_is_seen_beside_the_fast_path() {
    let Some(lab) = started() else { return };
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    let ping = lab.lan1.spawn("ping -i 0.02 10.77.2.100");
    lab.unit.ns.run("tc qdisc add dev tgw-wan clsact");
    thread::sleep(Duration::from_secs(1));
    let drop_all = "bpf da bytecode '1,6 0 0 2'";
    let add = format!("tc filter add dev tgw-wan ingress {drop_all}");
    lab.unit.ns.sh(&add);
    wait_until("the port has a fault", || {
        let fault = &lab.unit.status()["ports"][1]["fault"];
        fault
            .as_str()
            .is_some_and(|why| why.contains("filters of tc"))
    });
    drop((ping, streams));
}

/// The kernel does more with packets than forward them: the fast path would skip that.
#[test]
fn what_the_kernel_would_treat_otherwise_takes_no_fast_path() {
    let policy = "10.77.2.100 dir out tmpl src 10.77.2.1 dst 10.77.2.254 proto esp mode tunnel";
    let policy = |what: &str| format!("ip xfrm policy {what} dst {policy}");
    let rule = |what: &str| format!("ip rule {what} pref 20000 from 10.77.1.0/24 lookup 100");
    let of_port = |what: &str| format!("ip rule {what} pref 100 iif eth0 to 10.9.9.9 prohibit");
    let cases = [
        (policy("add"), "ip xfrm policy flush".to_owned(), "IPsec"),
        (rule("add"), rule("del"), "rules"),
        (of_port("add"), of_port("del"), "rules"),
    ];
    let Some(lab) = started() else { return };
    let streams = Streams::start(&lab);
    for (add, remove, said) in cases {
        wait_for_offload(&lab.unit);
        lab.unit.ns.run(&add);
        // Sessions may be in the process for a moment for other reasons.
        wait_until("it is told why", || {
            why_no_ebpf(&lab.unit, 0).contains(said)
        });
        wait_for_no_offload(&lab.unit);
        assert_ne!(lab.unit.status()["ports"][0]["offload"], "ebpf");
        if said == "IPsec" {
            let capture = Capture::start(&lab.server, "eth0", "udp port 7101 and dst 10.77.2.100");
            thread::sleep(Duration::from_millis(300));
            capture.assert_empty();
        }
        lab.unit.ns.run(&remove);
    }
    wait_for_offload(&lab.unit);
    drop(streams);
}

fn why_no_ebpf(unit: &Unit, port: usize) -> String {
    let status = unit.status();
    let why = status["ports"][port]["why_no_ebpf"].as_str();
    why.unwrap_or_default().to_owned()
}

/// Adds a filter: nothing takes the fast path from then on, and everybody says why.
#[track_caller]
fn assert_bars(lab: &Lab, streams: &Streams, add: &str, said: &str) {
    wait_for_offload(&lab.unit);
    lab.unit.ns.sh(add);
    wait_for_no_offload(&lab.unit);
    assert!(why_no_ebpf(&lab.unit, 1).contains(said), "{said}");
    let session = lab.unit.sessions("proto=udp").remove(0);
    let (src, dst) = (session["src"].as_str(), session["dst"].as_str());
    let packet = format!("udp {} {}", src.expect("a source"), dst.expect("a target"));
    let explain = format!("explain {packet} --in lan");
    let explained = lab.unit.tandemgw(&explain).ok();
    assert!(explained.stdout.contains(said), "{}", explained.stdout);
    doctor(&lab.unit).expect_ok("fast-path", said);
    let before = packets(&lab.unit);
    streams.wait_for_more();
    assert_eq!(packets(&lab.unit), before, "{said}");
}

/// By default what others filter or translate goes through the process, where they see it.
#[test]
fn chains_of_others_bar_what_nobody_has_asked_for() {
    let chain = |family: &str, kind: &str, rule: &str| {
        let chain = format!("add chain {family} f gate {{ type {kind}; }}");
        format!("nft add table {family} f; nft '{chain}'; nft 'add rule {family} f gate {rule}'")
    };
    let jump = "nft add table inet f; nft 'add chain inet f deep'; nft add rule inet f deep tcp \
                dport 25 drop; nft 'add chain inet f gate { type filter hook forward priority 0; \
                }'; nft add rule inet f gate meta l4proto tcp jump deep";
    let policy = "nft add table ip6 f; nft 'add chain ip6 f gate { type filter hook forward priority \
                  0; policy drop; }; insert rule ip6 f gate accept'";
    let ingress = "filter hook ingress device eth1 priority 0";
    let egress = "filter hook egress device eth1 priority 0";
    let cases = [
        (
            "inet",
            "filter hook forward priority 0",
            "ct state invalid drop",
        ),
        (
            "inet",
            "filter hook prerouting priority 0",
            "meta mark set 1",
        ),
        (
            "ip",
            "filter hook postrouting priority 0",
            "ip daddr 10.9.9.9 counter",
        ),
        (
            "ip",
            "nat hook postrouting priority 100",
            "ip saddr 10.9.9.9 masquerade",
        ),
        ("netdev", ingress, "udp dport 99 drop"),
        ("netdev", egress, "udp dport 99 drop"),
    ];
    let mut cases: Vec<(&str, String)> = cases
        .map(|(family, kind, rule)| (family, chain(family, kind, rule)))
        .to_vec();
    cases.extend([("inet", jump.to_owned()), ("ip6", policy.to_owned())]);
    let Some(lab) = started_with(AUTO) else {
        return;
    };
    let streams = Streams::start(&lab);
    for (family, add) in &cases {
        let said = format!("chain gate of table {family} f");
        assert_bars(&lab, &streams, add, &said);
        lab.unit.ns.run(&format!("nft delete table {family} f"));
    }
    wait_for_offload(&lab.unit);
    streams.assert_whole();
    let log = lab.unit.log();
    let told = log.lines().filter(|line| line.contains("no fast path"));
    assert_eq!(told.count(), cases.len(), "{log}");
}

/// The same. A place for filters that comes or goes loses packets by itself: the kernel takes an
/// interface's queue off for that.
#[test]
fn filters_of_tc_bar_what_nobody_has_asked_for() {
    let Some(lab) = started_with(AUTO) else {
        return;
    };
    let streams = Streams::start(&lab);
    for device in ["eth1", "tgw-wan"] {
        let add = format!(
            "tc qdisc add dev {device} clsact; \
             tc filter add dev {device} ingress bpf da bytecode '1,6 0 0 4294967295'"
        );
        assert_bars(&lab, &streams, &add, &format!("filters of tc at {device}"));
        lab.unit
            .ns
            .run(&format!("tc filter del dev {device} ingress"));
    }
    wait_for_offload(&lab.unit);
    drop(streams);
}

/// The same, of which the kernel tells nobody.
#[test]
fn rules_of_iptables_legacy_bar_what_nobody_has_asked_for() {
    let Some(lab) = started_with(AUTO) else {
        return;
    };
    let streams = Streams::start(&lab);
    for tool in ["iptables-legacy", "ip6tables-legacy"] {
        for (table, chain) in [("filter", "FORWARD"), ("raw", "PREROUTING")] {
            let add = format!("{tool} -t {table} -A {chain} -p 47 -j DROP");
            let said = format!("the chain {chain} of table {table} of {tool}");
            assert_bars(&lab, &streams, &add, &said);
            lab.unit.ns.run(&format!("{tool} -t {table} -F"));
        }
        // A policy drops everything.
        wait_for_offload(&lab.unit);
        lab.unit.ns.run(&format!("{tool} -P FORWARD DROP"));
        let said = format!("the chain FORWARD of table filter of {tool}");
        wait_until("it is told", || why_no_ebpf(&lab.unit, 0).contains(&said));
        lab.unit.ns.run(&format!("{tool} -P FORWARD ACCEPT"));
    }
    wait_for_offload(&lab.unit);
    drop(streams);
}

/// What lets everything pass bars nothing, and neither does what sees the fast path's packets too.
#[test]
fn filters_that_miss_nothing_bar_nothing() {
    let Some(lab) = started_with(AUTO) else {
        return;
    };
    lab.unit.ns.sh("nft add table inet tandemgw; \
         nft 'add chain inet tandemgw raw { type filter hook prerouting priority raw; }'; \
         nft 'add rule inet tandemgw raw iifname { eth0, eth1 } notrack'; \
         nft 'add rule inet tandemgw raw iifname \"tgw-*\" counter notrack'; \
         nft 'add rule inet tandemgw raw fib daddr type != local notrack'; \
         nft 'add chain inet tandemgw f { type filter hook forward priority 0; }'; \
         nft 'add rule inet tandemgw f iifname \"tgw-*\" accept'; \
         nft 'add chain inet tandemgw i { type filter hook input priority 0; policy drop; }'; \
         nft 'add rule inet tandemgw i meta l4proto { icmp, icmpv6, tcp } accept'; \
         tc qdisc add dev eth0 clsact; \
         tc filter add dev eth0 egress bpf da bytecode '1,6 0 0 4294967295'");
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    thread::sleep(Duration::from_millis(1200));
    wait_for_offload(&lab.unit);
    assert_eq!(why_no_ebpf(&lab.unit, 0), "");
    streams.assert_whole();
}

/// Without the right to load programs everything goes through the process, and says so.
#[test]
fn a_gateway_that_may_not_load_programs_does_without() {
    let mut lab = Lab::new();
    want(&mut lab.unit, AUTO);
    let rights = "--bounding-set=-bpf,-sys_admin --inh-caps=-bpf,-sys_admin";
    lab.unit.launch_by(&format!("exec setpriv {rights} \"$@\""));
    lab.unit.start();
    let streams = Streams::start(&lab);
    streams.wait_for_more();
    let why = why_no_ebpf(&lab.unit, 0);
    assert!(why.contains("CAP_BPF"), "{why}");
    let log = lab.unit.log();
    let told = log.lines().filter(|line| line.contains("no fast path"));
    assert_eq!(told.count(), 1, "{log}");
    streams.assert_whole();
    assert!(
        lab.unit
            .sessions("proto=udp")
            .iter()
            .all(|it| it["offloaded"] != true)
    );
}

/// CAP_BPF and CAP_NET_ADMIN are enough, as the service has them: without CAP_PERFMON the kernel is
/// stricter with the program.
#[test]
fn a_gateway_that_may_not_measure_has_a_fast_path() {
    if started().is_none() {
        return;
    }
    let mut lab = Lab::new();
    want(&mut lab.unit, AUTO);
    let rights = "--bounding-set=-perfmon,-sys_admin --inh-caps=-perfmon,-sys_admin";
    lab.unit.launch_by(&format!("exec setpriv {rights} \"$@\""));
    lab.unit.start();
    wait_until_attached(&lab.unit);
    assert_eq!(why_no_ebpf(&lab.unit, 0), "");
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    streams.assert_whole();
    fast_exit::assert_leave_at_once(&lab);
}

/// Nothing is forwarded for a process that is gone, and not for long for one that hangs.
#[test]
fn the_kernel_does_not_forward_for_a_dead_process() {
    for signal in [libc::SIGKILL, libc::SIGSTOP] {
        let Some(mut lab) = started() else { return };
        let _streams = Streams::start(&lab);
        wait_for_offload(&lab.unit);
        if signal == libc::SIGKILL {
            lab.unit.kill();
        } else {
            lab.unit.signal(signal);
            thread::sleep(LEASE);
        }
        thread::sleep(Duration::from_millis(100));
        let capture = Capture::start(
            &lab.server,
            "eth0",
            "udp port 7101 and src host (10.77.2.1 or fd77:2::1)",
        );
        thread::sleep(Duration::from_secs(1));
        capture.assert_empty();
        if signal == libc::SIGSTOP {
            lab.unit.signal(libc::SIGCONT);
        }
    }
}

/// Before Linux 6.6 the program is a filter of tc, which a killed process leaves behind.
#[test]
fn an_older_kernel_has_a_fast_path_too() {
    let mut lab = Lab::new();
    want_ebpf(&mut lab.unit);
    lab.unit.without_tcx = true;
    lab.unit.start();
    if !can_load(&lab.unit) {
        return;
    }
    let filters = |lab: &Lab| lab.unit.ns.run("tc filter show dev eth1 ingress");
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    assert_eq!(filters(&lab).matches("tandemgw").count(), 1);
    // Somebody else may take it off, with its place.
    lab.unit.ns.run("tc qdisc del dev eth1 clsact");
    wait_until("the program is back", || filters(&lab).contains("tandemgw"));
    wait_for_offload(&lab.unit);
    assert!(lab.unit.log().contains("fast path attached again port=wan"));
    lab.unit.kill();
    assert_eq!(filters(&lab).matches("tandemgw").count(), 1);
    // The lease of a gateway without peers is over by then.
    thread::sleep(LEASE);
    let capture = Capture::start(&lab.server, "eth0", "udp port 7101");
    thread::sleep(Duration::from_millis(500));
    capture.assert_empty();
    drop(streams);
    lab.unit.start();
    let streams = Streams::start(&lab);
    wait_for_offload(&lab.unit);
    assert_eq!(filters(&lab).matches("tandemgw").count(), 1);
    drop(streams);
    lab.unit.stop();
    assert_eq!(filters(&lab), "");
}

#[test]
fn sessions_survive_a_takeover_from_the_fast_path() {
    for how in ["kill", "freeze", "handover"] {
        let Some(mut pair) = pair() else { return };
        let mut sessions = Conversations::start(&pair.lab);
        for _ in 0..20 {
            sessions.go_on();
        }
        let streams = Streams::start(&pair.lab);
        wait_for_offload(pair.a());
        pair.a().wait_for_ready_peer();
        match how {
            "kill" => pair.a_mut().kill(),
            "freeze" => pair.a().signal(libc::SIGSTOP),
            _ => {
                pair.a().tandemgw("failover").ok();
            }
        }
        wait_until("gw-b is primary", || pair.b().is_primary());
        let link = pair.a().ns.run("ip -br link show dev eth1");
        let mac = link.split_whitespace().nth(2).expect("an address");
        let filter = format!("udp port 7101 and ether src {}", mac);
        if how != "handover" {
            let capture = Capture::start(&pair.lab.server, "eth0", &filter);
            streams.wait_for_more();
            capture.assert_empty();
        } else {
            streams.wait_for_more();
        }
        for _ in 0..20 {
            sessions.go_on();
        }
        sessions.finish();
        wait_until("all connections are over", || {
            let sessions = pair.b().sessions("proto=tcp");
            sessions
                .iter()
                .all(|session| session["state"] != "established")
        });
        if how == "handover" {
            streams.assert_whole();
            wait_until("gw-a forwards nothing", || {
                pair.a().status()["fast_path"]["sessions"] == 0
            });
        }
        if how == "freeze" {
            pair.a().signal(libc::SIGCONT);
        }
    }
}
