//! The standby holds what the primary holds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::conversation::Conversations;
use crate::frame::{Ends, FrameSocket};
use crate::lab::{SERVER, bracketed};
use crate::pair::Pair;
use crate::services::{Http, family_number, udp_echo, udp_echoes, whoami};
use crate::unit::Unit;
use testkit::system::process::wait_until;

/// Opens a session of each protocol and family.
fn open_all_kinds(pair: &Pair) {
    let lan1 = &pair.lab.lan1;
    for server in SERVER {
        let address = bracketed(server);
        let family = family_number(server);
        whoami(lan1, &address);
        lan1.run(&format!("ping -c 1 -W 5 {server}"));
        let echo = udp_echo(&pair.lab.server, server);
        assert!(udp_echoes(&pair.lab, lan1, server, 100), "UDP to {server}");
        drop(echo);
        // A protocol without ports (RFC 3692 leaves it for experiments).
        lan1.sh(&format!(
            "echo x | socat -u - IP{family}-SENDTO:{address}:253"
        ));
    }
}

#[test]
fn standby_holds_sessions_of_all_kinds() {
    let pair = Pair::started();
    let _http = Http::start(&pair.lab, &pair.lab.server, 1);
    let sessions = Conversations::start(&pair.lab);
    open_all_kinds(&pair);
    pair.a().wait_for_ready_peer();
    let same = pair.wait_for_same_sessions();
    for kind in ["tcp", "udp", "icmp"] {
        for net in ["10.77.2.1", "fd77:2::1"] {
            let found = same.iter().any(|s| s.starts_with(kind) && s.contains(net));
            assert!(found, "no {kind} translated to {net}: {same:#?}");
        }
    }
    assert!(
        pair.b().status()["sessions"]["other"].as_u64() >= Some(2),
        "{same:#?}"
    );
    let counts = |unit: &Unit| {
        let mut counts = unit.status()["sessions"].clone();
        // How many a unit has opened itself.
        counts["opened"].take();
        counts
    };
    assert_eq!(counts(pair.a()), counts(pair.b()));
    let lag = &pair.a().peer()["lag"];
    assert_eq!(lag["would_be_lost"], 0, "{lag}");
    assert!(pair.b().group()["ready"] == true && pair.b().peer()["in_sync"] == true);
    sessions.finish();
    // The ends of sessions are replicated too.
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
}

#[test]
fn sessions_are_shown_with_owner_and_whether_they_would_survive() {
    let pair = Pair::started();
    let sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
    for unit in [pair.a(), pair.b()] {
        wait_until("all sessions are shown as synced", || {
            let all = unit.sessions("proto=tcp synced=yes");
            all.len() == 2 && unit.sessions("proto=tcp synced=no").is_empty()
        });
        for session in unit.sessions("proto=tcp") {
            assert_eq!(session["owner"], "gw-a", "{session:#}");
            for key in [
                "id",
                "proto",
                "in",
                "out",
                "src",
                "dst",
                "nat_src",
                "nat_dst",
                "state",
                "policy",
                "group",
                "owner",
                "synced",
                "age_s",
                "expires_s",
                "packets",
                "bytes",
            ] {
                assert!(!session[key].is_null(), "no `{key}` in {session:#}");
            }
        }
    }
    sessions.finish();
}

#[test]
fn status_has_all_that_checks_rely_on() {
    let pair = Pair::started();
    for unit in [pair.a(), pair.b()] {
        let status = unit.status();
        let has = |value: &Value, keys: &[&str]| {
            for key in keys {
                assert!(!value[*key].is_null(), "no `{key}` in {value:#}");
            }
        };
        has(
            &status,
            &[
                "node", "version", "groups", "peers", "ports", "sessions", "counters", "events",
            ],
        );
        has(
            &status["groups"][0],
            &["name", "role", "ready", "term", "since"],
        );
        let peer = &status["peers"][0];
        has(
            peer,
            &[
                "name",
                "connected",
                "in_sync",
                "digest_equal",
                "lag",
                "links",
            ],
        );
        has(
            &peer["lag"],
            &["sequence_gap", "oldest_unacked_ms", "would_be_lost"],
        );
        has(&peer["links"][0], &["local", "remote", "up", "rtt_us"]);
        has(&status["ports"][0], &["name", "interface", "up", "offload"]);
        has(&status["sessions"], &["total", "tcp", "udp", "icmp", "max"]);
        has(&status["counters"], &["forwarded", "dropped"]);
        has(&status["events"][0], &["at", "what", "why"]);
    }
}

/// Sends first packets of `count` UDP sessions to gw-a, from several hosts.
fn open_many(pair: &Pair, count: u32, from: u32) {
    let socket = FrameSocket::open(&pair.lab.lan2, "eth0");
    let mut ends = Ends {
        mac: (pair.lab.lan2.mac("eth0"), pair.a().ns.mac("eth0")),
        ip: ([10, 77, 1, 101], [10, 77, 2, 100]),
        port: (0, 9999),
    };
    for n in from..from + count {
        // A thousand from each host.
        ends.ip.0[3] = 110 + u8::try_from(n / 1000 % 100).expect("below 100");
        ends.port.0 = 10_000 + u16::try_from(n % 1000).expect("below 1000");
        socket.send(&ends.udp(b"x"));
        if n % 32 == 0 {
            thread::sleep(Duration::from_millis(2));
        }
    }
    socket.finish();
}

const LONG_LIVED: &str = "\n[timeouts]\nudp = \"600s\"\nudp-unreplied = \"600s\"\n";

#[test]
fn standby_joins_with_20_000_sessions() {
    let mut pair = Pair::new();
    pair.lab.unit.config.push_str(LONG_LIVED);
    pair.b.config.push_str(LONG_LIVED);
    pair.start();
    pair.b.kill();
    open_many(&pair, 20_000, 0);
    let count = || pair.a().status()["sessions"]["udp"].as_u64();
    wait_until("most of the sessions are there", || count() > Some(19_000));
    let mut sessions = Conversations::start(&pair.lab);
    pair.b.start();
    pair.b().wait_until_ready();
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    sessions.go_on();
    sessions.finish();
}

#[test]
fn standby_restarts_under_load() {
    let mut pair = Pair::new();
    pair.lab.unit.config.push_str(LONG_LIVED);
    pair.b.config.push_str(LONG_LIVED);
    pair.start();
    let mut sessions = Conversations::start(&pair.lab);
    for round in 0..2 {
        let end = AtomicBool::new(false);
        let Pair { lab, b, .. } = &mut pair;
        let socket = FrameSocket::open(&lab.lan2, "eth0");
        let mut ends = Ends {
            mac: (lab.lan2.mac("eth0"), lab.unit.ns.mac("eth0")),
            ip: ([10, 77, 1, 110 + round], [10, 77, 2, 100]),
            port: (1024, 9999),
        };
        let ended = &end;
        thread::scope(|scope| {
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    ends.port.0 = ends.port.0.checked_add(1).unwrap_or(1024);
                    ends.ip.0[3] ^= 64;
                    socket.send(&ends.udp(b"x"));
                    thread::sleep(Duration::from_millis(1));
                }
                socket.finish();
            });
            thread::sleep(Duration::from_millis(300));
            b.kill();
            thread::sleep(Duration::from_millis(300));
            b.start();
            b.wait_until_ready();
            thread::sleep(Duration::from_millis(300));
            end.store(true, Ordering::Relaxed);
        });
        sessions.go_on();
        pair.a().wait_for_ready_peer();
        let same = pair.wait_for_same_sessions();
        assert!(same.len() > 100, "no load");
    }
    assert!(pair.a().is_primary());
    sessions.finish();
}

#[test]
fn both_may_be_killed_and_start_again() {
    let mut pair = Pair::started();
    let _http = Http::start(&pair.lab, &pair.lab.server, 1);
    for server in SERVER {
        whoami(&pair.lab.lan1, &bracketed(server));
    }
    pair.a_mut().kill();
    pair.b.kill();
    pair.start();
    for server in SERVER {
        whoami(&pair.lab.lan1, &bracketed(server));
    }
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
}

#[test]
fn without_pickup_of_udp_only_the_others_are_replicated() {
    let mut pair = Pair::new();
    pair.edit(
        "group-id = 7",
        "group-id = 7\nsession-pickup-connectionless = false",
    );
    pair.start();
    let sessions = Conversations::start(&pair.lab);
    pair.lab.lan1.run(&format!("ping -c 1 -W 5 {}", SERVER[0]));
    pair.a().wait_for_ready_peer();
    wait_until("the TCP sessions are replicated", || {
        pair.b().status()["sessions"]["tcp"] == 2
    });
    assert_eq!(pair.a().status()["sessions"]["icmp"], 1);
    assert_eq!(pair.b().status()["sessions"]["icmp"], 0);
    assert!(pair.a().sessions("proto=icmp synced=yes").is_empty());
    sessions.finish();
}
