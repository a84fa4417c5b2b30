//! `copies = 2` with four units: two hold the sessions beside the primary, and the fourth unit
//! takes the place of one that dies.

use crate::cluster::{Clients, Cluster};
use testkit::system::process::wait_until;

/// Four units, of which gw-a is primary, gw-b and gw-c hold what it has, and gw-d nothing.
fn started() -> Cluster {
    let mut cluster = Cluster::new(&[200, 150, 100, 50]);
    cluster.edit(
        "pickup-guarantee = \"strict\"",
        "pickup-guarantee = \"strict\"\npickup-guarantee-copies = 2\ncopies = 2",
    );
    cluster.start();
    wait_until("gw-d is relieved", || {
        cluster.unit(3).group()["holder"] == false
    });
    cluster
}

/// One command is enough: gw-d gets the sessions, then the group.
#[test]
fn a_unit_that_holds_nothing_takes_over_when_it_has_the_sessions() {
    let cluster = started();
    let mut clients = Clients::start(&cluster.lab, 10);
    cluster.open_datagrams(0, 400, 0);
    let held = cluster.held_by(0);
    assert!(held.len() >= 400, "{} sessions", held.len());
    assert!(cluster.held_by(3).is_empty(), "gw-d holds nothing");
    let said = cluster.unit(0).tandemgw("failover --to gw-d").ok().stdout;
    assert!(said.starts_with("gw-d is now primary"), "{said}");
    cluster.wait_for_primaries(&[3], &[]);
    cluster.assert_holds(3, &held);
    clients.go_on();
    clients.finish();
}

#[test]
fn two_units_of_four_lose_power_one_after_the_other() {
    let mut cluster = started();
    let mut clients = Clients::start(&cluster.lab, 30);
    cluster.open_datagrams(0, 400, 0);
    for peer in [1, 2] {
        wait_until("both holders have all", || {
            let peer = cluster.peer_of(0, peer);
            peer["groups"][0]["digest_equal"] == true && peer["lag"]["would_be_lost"] == 0
        });
        assert_eq!(cluster.peer_of(0, peer)["groups"][0]["holder"], true);
    }
    let held = cluster.held_by(0);
    assert!(held.len() >= 400, "{} sessions", held.len());
    assert!(cluster.held_by(3).is_empty(), "gw-d holds nothing");
    assert_nothing_is_wrong(&cluster);

    lose_power(&mut cluster, 0);
    cluster.wait_for_primaries(&[1], &[0]);
    cluster.assert_holds(1, &held);
    clients.go_on();
    wait_until("gw-d has taken the place", || {
        let peer = cluster.peer_of(1, 3);
        cluster.unit(3).group()["ready"] == true && peer["groups"][0]["digest_equal"] == true
    });
    cluster.assert_holds(3, &held);

    lose_power(&mut cluster, 1);
    cluster.wait_for_primaries(&[2], &[0, 1]);
    cluster.assert_holds(2, &held);
    clients.go_on();
    clients.finish();
}

/// A unit that is to hold nothing is told from one that should and does not.
fn assert_nothing_is_wrong(cluster: &Cluster) {
    let peer = cluster.peer_of(0, 3);
    assert_eq!(peer["groups"][0]["holder"], false, "{peer:#}");
    assert!(peer["lag"]["would_be_lost"].is_null(), "{peer:#}");
    assert!(peer["groups"][0]["in_sync"].is_null(), "{peer:#}");
    for unit in [0, 1, 3] {
        let status = cluster.unit(unit).status();
        assert_eq!(status["health"]["state"], "good", "{status:#}");
    }
}

/// Nothing comes from it any more, and no carrier is lost.
fn lose_power(cluster: &mut Cluster, unit: usize) {
    cluster.isolate(unit);
    cluster.unit_mut(unit).kill();
}
