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

/// A unit gets another key by coming back as another node, which its peer already knows.
#[test]
fn key_is_changed_without_loss() {
    let mut pair = Pair::started();
    let mut sessions = Conversations::start(&pair.lab);
    let file = pair.lab.dir().join("gw-b2.key");
    let made = pair
        .b()
        .tandemgw(&format!("keygen --out {}", file.display()));
    let key = made.ok().stdout.trim().to_owned();
    pair.a().wait_for_ready_peer();
    // gw-a learns of the node to come.
    hand_over(pair.a());
    pair.a_mut().stop();
    pair.lab.unit.config.push_str(&format!(
        "\n[[ha.peer]]\nname = \"gw-b2\"\naddresses = [\"10.77.9.2:7031\"]\npublic-key = \"{key}\"\n"
    ));
    pair.a_mut().start();
    wait_until_ready(&pair, pair.a());
    sessions.go_on();
    hand_over(pair.b());
    // gw-b comes back as that node.
    pair.b.stop();
    pair.b.edit("name = \"gw-b\"", "name = \"gw-b2\"");
    pair.b.edit("key = \"gw-b.key\"", "key = \"gw-b2.key\"");
    pair.b.edit("10.77.9.2:7030", "10.77.9.2:7031");
    pair.b.start();
    wait_until_ready(&pair, pair.b());
    sessions.go_on();
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    sessions.go_on();
    sessions.finish();
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
