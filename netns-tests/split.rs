//! The links between the units fail, and the units live: never two primaries.

use std::thread;
use std::time::Duration;

use crate::conversation::Conversations;
use crate::pair::{Pair, set_port};
use testkit::system::process::wait_until;

/// Some hold times.
const MOMENT: Duration = Duration::from_secs(2);

/// Whether the peer's stream uses this link, by the unit's status.
fn carries_sync(pair: &Pair, link: usize) -> bool {
    pair.a().peer()["links"][link]["carries_sync"] == true
}

fn wait_until_degraded(pair: &Pair) {
    wait_until("the standby says that it hears the primary no more", || {
        pair.b().group()["degraded"] == true
    });
}

fn assert_roles_stay(pair: &Pair) {
    thread::sleep(MOMENT);
    assert!(pair.a().is_primary(), "{:#?}", pair.a().events());
    assert!(!pair.b().is_primary(), "{:#?}", pair.b().events());
    assert_eq!(pair.a().term(), 1);
}

/// Cuts the only link, and repairs it.
fn no_split_brain(cut: impl Fn(&Pair), mend: impl Fn(&Pair)) {
    let pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    cut(&pair);
    wait_until_degraded(&pair);
    pair.b().wait_for_event("answers on the data ports only");
    assert_roles_stay(&pair);
    assert_eq!(pair.a().peer()["connected"], false);
    // Sessions opened now reach the standby later.
    let mut more = Conversations::start_more(&pair.lab);
    sessions.go_on();
    mend(&pair);
    pair.a().wait_for_ready_peer();
    pair.b().wait_until_ready();
    assert_eq!(pair.b().group()["degraded"], false);
    pair.wait_for_same_sessions();
    assert_roles_stay(&pair);
    more.go_on();
    more.finish();
    sessions.finish();
}

#[test]
fn silent_link_is_no_reason_for_a_takeover() {
    no_split_brain(|pair| pair.cut(0), |pair| pair.mend(0));
}

#[test]
fn link_without_carrier_is_no_reason_for_a_takeover() {
    no_split_brain(
        |pair| set_port(pair.link(0), &pair.b().ns, "sync0", "down"),
        |pair| set_port(pair.link(0), &pair.b().ns, "sync0", "up"),
    );
}

#[test]
fn primary_that_dies_while_the_link_is_cut_is_replaced() {
    let mut pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    pair.cut(0);
    wait_until_degraded(&pair);
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    sessions.go_on();
    sessions.finish();
}

#[test]
fn two_links_may_fail_one_after_the_other() {
    let mut pair = Pair::with_links(2);
    pair.start();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    assert!(carries_sync(&pair, 0), "{:#}", pair.a().peer());
    pair.cut(0);
    wait_until("the stream uses the other link", || carries_sync(&pair, 1));
    let mut more = Conversations::start_more(&pair.lab);
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
    for unit in [pair.a(), pair.b()] {
        let events = unit.events();
        assert!(
            !events
                .iter()
                .any(|e| e.contains("dead") || e.contains("lost")),
            "one link is enough: {events:#?}"
        );
    }
    assert_eq!(pair.b().group()["degraded"], false);
    sessions.go_on();
    pair.cut(1);
    wait_until_degraded(&pair);
    assert_roles_stay(&pair);
    sessions.go_on();
    // The other one of the two comes back.
    pair.mend(0);
    pair.a().wait_for_ready_peer();
    pair.b().wait_until_ready();
    wait_until("the stream uses the first link", || carries_sync(&pair, 0));
    more.go_on();
    more.finish();
    sessions.finish();
    pair.wait_for_same_sessions();
}
