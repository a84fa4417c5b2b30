//! Planned handovers: on request, at the end of a unit, for a better unit. Nothing is lost.

use std::time::{Duration, Instant};

use crate::conversation::{Conversations, Streams};
use crate::lab::{SERVER, bracketed};
use crate::pair::{Pair, set_port};
use crate::services::Http;
use testkit::system::process::wait_until;

#[test]
fn failover_loses_nothing() {
    let pair = Pair::started();
    let http = Http::start(&pair.lab, &pair.lab.server, 8);
    let downloads =
        SERVER.map(|server| http.start_slow_download(&pair.lab.lan1, &bracketed(server)));
    let streams = Streams::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    let done = pair.a().tandemgw("failover").ok();
    assert!(
        done.stdout.contains("gw-b is now primary of group default"),
        "{}",
        done.stdout
    );
    assert!(pair.b().is_primary() && !pair.a().is_primary());
    assert_eq!(pair.b().term(), 2);
    pair.a().wait_until_ready();
    streams.wait_for_more();
    // And back again.
    pair.b().wait_for_ready_peer();
    pair.b().tandemgw("failover --to gw-a").ok();
    assert!(pair.a().is_primary() && !pair.b().is_primary());
    streams.wait_for_more();
    streams.assert_whole();
    for download in downloads {
        download.finish();
    }
}

#[test]
fn failover_is_refused_with_a_reason() {
    let mut pair = Pair::started();
    let refused = pair.b().tandemgw("failover").code(1);
    assert!(refused.stderr.contains("not primary"), "{}", refused.stderr);
    let refused = pair.a().tandemgw("failover --to gw-x").code(1);
    assert!(refused.stderr.contains("gw-x"), "{}", refused.stderr);
    pair.b.kill();
    wait_until("the peer is missed", || {
        pair.a().peer()["connected"] == false
    });
    let refused = pair.a().tandemgw("failover").code(1);
    assert!(refused.stderr.contains("gw-b"), "{}", refused.stderr);
    assert!(pair.a().is_primary());
}

#[test]
fn sigterm_hands_over_and_loses_nothing() {
    let mut pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    let streams = Streams::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    pair.a_mut().stop();
    assert!(pair.b().is_primary(), "{:#?}", pair.b().events());
    pair.b().wait_for_event("handed over by gw-a");
    streams.wait_for_more();
    streams.assert_whole();
    sessions.go_on();
    sessions.finish();
}

#[test]
fn unit_without_override_stays_standby_when_it_returns() {
    let mut pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    pair.a_mut().stop();
    pair.a_mut().start();
    pair.a().wait_until_ready();
    pair.b().wait_for_ready_peer();
    assert!(pair.b().is_primary());
    pair.wait_for_same_sessions();
    sessions.go_on();
    assert!(pair.b().is_primary());
    sessions.finish();
}

#[test]
fn unit_with_override_takes_back_and_loses_nothing() {
    let mut pair = Pair::new();
    pair.edit("group-id = 7", "group-id = 7\noverride = true");
    pair.start();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    sessions.go_on();
    let streams = Streams::start(&pair.lab);
    pair.a_mut().start();
    wait_until("gw-a has taken back", || pair.a().is_primary());
    wait_until("gw-b is standby", || !pair.b().is_primary());
    assert!(pair.a().term() >= 3);
    pair.b().wait_for_event("its priority is higher");
    streams.wait_for_more();
    streams.assert_whole();
    sessions.finish();
}

#[test]
fn unit_that_returns_waits_for_its_time_before_it_takes_back() {
    let mut pair = Pair::new();
    let wait = "group-id = 7\noverride = true\noverride-wait-time = \"3s\"";
    pair.edit("group-id = 7", wait);
    pair.start();
    pair.a().wait_for_ready_peer();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    let returned = Instant::now();
    pair.a_mut().start();
    pair.a().wait_until_ready();
    assert!(pair.b().is_primary(), "it is ready, and waits");
    wait_until("gw-a has taken back", || pair.a().is_primary());
    let waited = returned.elapsed();
    println!("taken back after {waited:?}");
    // Half a second for the handover, and the rest for a busy machine.
    let allowed = Duration::from_secs(3)..Duration::from_secs(6);
    assert!(allowed.contains(&waited), "{waited:?}");
}

#[test]
fn primary_that_loses_a_port_hands_over() {
    let pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    let http = Http::start(&pair.lab, &pair.lab.server, 4);
    let downloads =
        SERVER.map(|server| http.start_slow_download(&pair.lab.lan2, &bracketed(server)));
    pair.a().wait_for_ready_peer();
    set_port(&pair.lab.sw_wan, &pair.a().ns, "eth1", "down");
    pair.wait_for_takeover_by_b(1);
    pair.a().wait_for_event("it has more ports up");
    sessions.go_on();
    for download in downloads {
        download.finish();
    }
    // Both are as good again: it stays where it is.
    set_port(&pair.lab.sw_wan, &pair.a().ns, "eth1", "up");
    pair.a().wait_until_ready();
    assert!(pair.b().is_primary());
    sessions.finish();
}

/// What the other unit has seen meanwhile counts, however little time it had.
#[test]
fn roles_that_move_there_and_back_at_once_end_no_connection() {
    let pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    for _ in 0..10 {
        for (unit, to) in [(pair.a(), "gw-b"), (pair.b(), "gw-a")] {
            unit.wait_for_ready_peer();
            unit.tandemgw(&format!("failover --to {to}")).ok();
            sessions.go_on();
        }
    }
    sessions.finish();
}
