//! A pair is upgraded one unit after the other, in the order of docs/upgrade.md, while traffic
//! passes.

use std::fs;
use std::path::Path;

use crate::cluster::{Clients, Cluster};
use crate::conversation::{Conversations, Streams};
use crate::lab::{SERVER, bracketed};
use crate::pair::Pair;
use crate::services::Http;
use crate::unit::Unit;
use testkit::system::process::{PATIENCE, Process, wait_until};

/// The test in docs/upgrade.md for a unit that could take over without loss.
const READY: &str = ".[0] | any(.peers[]?; .connected and .digest_equal) and all(.groups[]; .ready and (.degraded | not))";

/// Waits as the page says: for the answer of jq to `status --json`.
#[track_caller]
fn wait_until_ready(pair: &Pair, unit: &Unit) {
    let status = pair.lab.dir().join("status.json");
    wait_until("jq says that it is ready", || {
        fs::write(&status, unit.status().to_string()).expect("writing the status");
        let mut command = unit.ns.command("jq");
        command.args(["-es", READY]).arg(&status);
        let answer = Process::spawn(command, "jq").finish(PATIENCE);
        answer.status.success()
    });
}

/// The primary may hear a moment later than its peer that the peer is ready, and refuses until
/// then.
#[track_caller]
fn hand_over(primary: &Unit) {
    wait_until("the role is handed over", || {
        primary.tandemgw("failover").status.success()
    });
}

#[test]
fn page_has_the_condition_that_is_tested() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/upgrade.md");
    let text = fs::read_to_string(page).expect("the page is there");
    assert!(text.contains(READY));
}

#[test]
fn rolling_upgrade_loses_nothing() {
    let mut pair = Pair::started();
    let http = Http::start(&pair.lab, &pair.lab.server, 16);
    let downloads =
        SERVER.map(|server| http.start_slow_download(&pair.lab.lan1, &bracketed(server)));
    let mut sessions = Conversations::start(&pair.lab);
    let streams = Streams::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    // The standby first.
    pair.b.stop();
    pair.b.start();
    wait_until_ready(&pair, pair.b());
    sessions.go_on();
    // Then the roles change, and it is the other one's turn.
    hand_over(pair.a());
    pair.a_mut().stop();
    sessions.go_on();
    pair.a_mut().start();
    wait_until_ready(&pair, pair.a());
    hand_over(pair.b());
    assert!(pair.a().is_primary() && !pair.b().is_primary());
    streams.wait_for_more();
    streams.assert_whole();
    sessions.finish();
    for download in downloads {
        download.finish();
    }
}

/// A unit gets another key while it is off: its peer reads the new one, and goes on meanwhile.
#[test]
fn key_is_changed_without_loss() {
    let mut pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    pair.b.stop();
    let key = pair.change_key_of_b();
    let old = public_key_in(&pair.a().config);
    pair.a_mut().edit(&old, &key);
    let answer = pair.a().reload();
    assert!(
        answer["restart"].as_array().is_some_and(Vec::is_empty),
        "{answer}"
    );
    assert!(pair.a().is_primary());
    pair.b.start();
    wait_until_ready(&pair, pair.b());
    sessions.go_on();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    sessions.go_on();
    sessions.finish();
}

/// The key of the first peer in a config.
fn public_key_in(config: &str) -> String {
    let (_, rest) = config.split_once("public-key = \"").expect("a key");
    let (key, _) = rest.split_once('"').expect("its end");
    key.to_owned()
}

/// A third unit joins a pair that serves, takes over, dies, and is forgotten: nobody restarts, and
/// no session ends.
#[test]
fn a_unit_joins_and_leaves_without_a_restart() {
    let mut cluster = Cluster::new(&[200, 150, 100]);
    let whole: Vec<String> = (0..2)
        .map(|unit| cluster.unit(unit).config.clone())
        .collect();
    for unit in 0..2 {
        let unit = cluster.unit_mut(unit);
        unit.config = without_peer(&unit.config, "gw-c");
        unit.start();
    }
    cluster.wait_for_primaries(&[0], &[2]);
    cluster.wait_until_equal(0, &[]);
    let mut clients = Clients::start(&cluster.lab, 3);
    cluster.open_datagrams(0, 400, 0);
    let streams = Streams::start(&cluster.lab);
    cluster.wait_until_equal(0, &[]);
    let held = cluster.held_by(0);
    // The others first: a unit that nobody knows would be alone.
    for (unit, config) in whole.iter().enumerate() {
        cluster.unit_mut(unit).config = config.clone();
        let answer = cluster.unit(unit).reload();
        assert_eq!(answer["changed"][0]["key"], "ha.peer.gw-c", "{answer}");
        assert_eq!(
            answer["restart"].as_array().map(Vec::len),
            Some(0),
            "{answer}"
        );
    }
    cluster.unit_mut(2).start();
    cluster.wait_until_equal(0, &[]);
    assert_eq!(cluster.wait_for_one_primary(), 0);
    assert_eq!(cluster.held_by(2), held);
    let to = "failover --to gw-c";
    wait_until("it is handed over", || {
        cluster.unit(0).tandemgw(to).status.success()
    });
    cluster.wait_for_primaries(&[2], &[]);
    streams.wait_for_more();
    streams.assert_whole();
    cluster.wait_until_equal(2, &[]);
    cluster.unit_mut(2).kill();
    wait_until("another one is primary", || {
        (0..2).any(|unit| cluster.unit(unit).is_primary())
    });
    clients.go_on();
    for unit in 0..2 {
        let config = without_peer(&cluster.unit(unit).config, "gw-c");
        cluster.unit_mut(unit).config = config;
        cluster.unit(unit).reload();
        let status = cluster.unit(unit).status();
        assert_eq!(
            status["peers"].as_array().map(Vec::len),
            Some(1),
            "{status}"
        );
    }
    let primary = usize::from(cluster.unit(1).is_primary());
    cluster.wait_until_equal(primary, &[]);
    cluster.assert_holds(primary, &held);
    cluster.unit_mut(primary).kill();
    cluster.wait_for_primaries(&[1 - primary], &[primary, 2]);
    cluster.assert_holds(1 - primary, &held);
    clients.go_on();
    clients.finish();
}

/// A config without one of its `[[ha.peer]]` tables.
fn without_peer(config: &str, name: &str) -> String {
    let table = format!("[[ha.peer]]\nname = \"{name}\"\n");
    let (before, after) = config.split_once(&table).expect("the peer is there");
    let end = after.find("\n[").map_or(after.len(), |at| at + 1);
    format!("{before}{}", &after[end..])
}

/// Four units are restarted one after the other, the primary last, while datagrams pass in both
/// directions each millisecond: none is lost.
#[test]
fn rolling_restart_of_four_units_loses_no_packet() {
    let mut cluster = Cluster::started(&[200, 150, 120, 100]);
    let mut clients = Clients::start(&cluster.lab, 3);
    let streams = Streams::start(&cluster.lab);
    for unit in [1, 2, 3, 0] {
        if cluster.unit(unit).is_primary() {
            hand_over(cluster.unit(unit));
        }
        cluster.unit_mut(unit).stop();
        cluster.unit_mut(unit).start();
        let primary = cluster.wait_for_one_primary();
        cluster.wait_until_equal(primary, &[]);
        clients.go_on();
        streams.wait_for_more();
    }
    assert!(!cluster.unit(0).is_primary());
    streams.assert_whole();
    clients.go_on();
    clients.finish();
}
