//! Guaranteed pickup: the first packet of a session waits until the peer has the session.

use crate::lab::{SERVER, bracketed};
use crate::pair::Pair;
use crate::services::{Http, udp_echo, udp_echoes, whoami};
use crate::unit::Unit;
use testkit::system::process::wait_until;

fn counter(unit: &Unit, name: &str) -> u64 {
    let status = unit.status();
    let counter = &status["counters"]["pickup_guarantee"][name];
    counter.as_u64().expect("a number")
}

fn connect(pair: &Pair) {
    for server in SERVER {
        whoami(&pair.lab.lan1, &bracketed(server));
    }
}

/// New sessions wait for the peer, and go without a guarantee when there is none.
fn waits_for_the_peer(mode: &str) {
    let mut pair = Pair::new();
    // The wait is long, so that a busy machine does not fail it.
    pair.edit(
        "group-id = 7",
        &format!("group-id = 7\npickup-guarantee = \"{mode}\"\npickup-guarantee-wait = \"1s\""),
    );
    pair.start();
    let _http = Http::start(&pair.lab, &pair.lab.server, 1);
    connect(&pair);
    assert!(counter(pair.a(), "held") >= 2, "no session has waited");
    assert_eq!(counter(pair.a(), "degraded"), 0);
    pair.b.kill();
    wait_until("the peer is missed", || {
        pair.a().peer()["connected"] == false
    });
    connect(&pair);
    assert!(counter(pair.a(), "degraded") >= 2, "nobody was told");
    // With the peer back, so is the guarantee.
    pair.b.start();
    pair.b().wait_until_ready();
    pair.a().wait_for_ready_peer();
    let held = counter(pair.a(), "held");
    wait_until("sessions wait for the peer again", || {
        connect(&pair);
        counter(pair.a(), "held") >= held + 2
    });
}

/// A session may begin with a datagram in fragments: they wait together.
#[test]
fn the_fragments_of_a_first_datagram_wait_with_it() {
    let mut pair = Pair::new();
    pair.edit(
        "group-id = 7",
        "group-id = 7\npickup-guarantee = \"strict\"\npickup-guarantee-wait = \"1s\"",
    );
    pair.start();
    for server in SERVER {
        let _server = udp_echo(&pair.lab.server, server);
        assert!(
            udp_echoes(&pair.lab, &pair.lab.lan1, server, 8000),
            "{server}"
        );
    }
    assert!(counter(pair.a(), "held") >= 2, "no session has waited");
}

#[test]
fn strict_waits_for_the_peer() {
    waits_for_the_peer("strict");
}

#[test]
fn bounded_waits_for_the_peer() {
    waits_for_the_peer("bounded");
}

#[test]
fn policy_may_ask_for_it() {
    let mut pair = Pair::new();
    let policy = "name = \"sure\"\nservice = [\"tcp/80\"]\naction = \"accept\"\nnat = true\n\
                  pickup-guarantee = \"bounded\"";
    pair.a_mut().prepend_policy(policy);
    pair.b.prepend_policy(policy);
    pair.start();
    let _http = Http::start(&pair.lab, &pair.lab.server, 1);
    pair.lab.lan1.run(&format!("ping -c 1 -W 5 {}", SERVER[0]));
    assert_eq!(counter(pair.a(), "held"), 0);
    connect(&pair);
    assert!(counter(pair.a(), "held") >= 2);
}
