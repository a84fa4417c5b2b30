//! Peers that do not fit: another key, another cluster, other policies. And what others can read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use crate::conversation::Conversations;
use crate::lab::switch_port;
use crate::pair::Pair;
use crate::unit::Unit;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

/// Starts two units that do not belong together, and checks that they stay apart.
fn stays_apart(pair: &mut Pair) {
    pair.lab.unit.start();
    wait_until("gw-a is primary", || pair.a().is_primary());
    pair.b.start();
    let mut sessions = Conversations::start(&pair.lab);
    // Long enough for some attempts.
    thread::sleep(Duration::from_secs(4));
    sessions.go_on();
    for unit in [pair.a(), pair.b()] {
        let peer = unit.peer();
        assert_eq!(peer["connected"], false, "{peer:#}");
        assert_eq!(peer["in_sync"], false, "{peer:#}");
    }
    assert!(pair.b().sessions("").is_empty(), "sessions were replicated");
    sessions.finish();
}

fn lines_with(unit: &Unit, part: &str) -> usize {
    unit.log()
        .lines()
        .filter(|line| line.contains(part))
        .count()
}

#[test]
fn peer_with_an_unknown_key_is_refused() {
    let mut pair = Pair::new();
    pair.change_key_of_b();
    stays_apart(&mut pair);
    let told: Vec<usize> = [pair.a(), pair.b()]
        .map(|unit| lines_with(unit, "peer refused"))
        .into();
    assert!(told.contains(&1), "nobody was told");
    assert!(
        told.iter().all(|n| *n <= 1),
        "told again and again: {told:?}"
    );
    // It sees that there is a primary, and so it is none.
    assert!(!pair.b().is_primary());
    assert!(pair.a().is_primary());
}

#[test]
fn unit_of_another_cluster_is_ignored() {
    let mut pair = Pair::new();
    pair.b.edit("group-id = 7", "group-id = 8");
    stays_apart(&mut pair);
    let warnings = lines_with(pair.a(), "WARN") + lines_with(pair.b(), "WARN");
    assert!((1..=6).contains(&warnings), "{warnings} warnings");
    let told = [pair.a(), pair.b()].map(|unit| lines_with(unit, "its `group-id` is"));
    assert_eq!(told.iter().sum::<usize>(), 1, "told {told:?} times");
}

#[test]
fn other_policies_are_told() {
    let mut pair = Pair::new();
    pair.b
        .prepend_policy("name = \"no\"\nservice = [\"tcp/81\"]\naction = \"drop\"");
    pair.a_mut().start();
    wait_until("gw-a is primary", || pair.a().is_primary());
    pair.b.start();
    for unit in [pair.a(), pair.b()] {
        wait_until("it warns of the other policies", || {
            lines_with(unit, "peer config differs") > 0
        });
        assert_eq!(lines_with(unit, "peer config differs"), 1);
    }
    // They are replicated all the same.
    let sessions = Conversations::start(&pair.lab);
    pair.wait_for_same_sessions();
    sessions.finish();
}

#[test]
fn same_policies_are_no_news() {
    let pair = Pair::started();
    for unit in [pair.a(), pair.b()] {
        assert_eq!(lines_with(unit, "peer config differs"), 0);
    }
}

/// All frames that pass an interface, until the end.
fn record(pair: &Pair, ns: &Namespace, interface: &str, traffic: impl FnOnce()) -> Vec<u8> {
    let file = pair.lab.dir().join(format!("{}-{interface}", ns.name()));
    let socat = ns.spawn(&format!(
        "socat -d -d -u -b 131072 INTERFACE:{interface} OPEN:{},creat,trunc",
        file.display()
    ));
    socat.expect_stderr("transfer", |line| line.contains("starting data transfer"));
    traffic();
    thread::sleep(Duration::from_millis(300));
    drop(socat);
    fs::read(file).expect("reading the record")
}

#[test]
fn nobody_can_read_the_synchronisation_link() {
    let pair = Pair::started();
    let contains = |record: &[u8], bytes: &[u8]| record.windows(bytes.len()).any(|w| w == bytes);
    let secrets: [&[u8]; 4] = [
        &[10, 77, 1, 100],
        &[10, 77, 2, 100],
        &[0xfd, 0x77, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        b"lan-out",
    ];
    let sync = switch_port(&pair.b().ns, "sync0");
    let mut on_lan = Vec::new();
    let on_link = record(&pair, pair.link(0), &sync, || {
        on_lan = record(&pair, &pair.lab.lan1, "eth0", || {
            Conversations::start(&pair.lab).finish();
        });
        pair.a().wait_for_ready_peer();
        pair.wait_for_same_sessions();
    });
    assert!(
        contains(&on_link, &[10, 77, 9, 1]) && on_link.len() > 2000,
        "{} bytes are not a record of the link",
        on_link.len()
    );
    for secret in secrets {
        assert!(!contains(&on_link, secret), "{secret:?} can be read");
    }
    // The search finds what is there.
    for visible in &secrets[..3] {
        assert!(contains(&on_lan, visible), "{visible:?} is not on the LAN");
    }
}

/// Has gw-b run a copy of the program with another name of a protocol, of the same length.
fn forge_version(pair: &mut Pair, from: &str, to: &str) {
    let mut program = fs::read(env!("CARGO_BIN_EXE_tandemgw")).expect("the program");
    let length = from.len();
    let places =
        (0..program.len() - length).filter(|at| program[*at..].starts_with(from.as_bytes()));
    let places: Vec<usize> = places.collect();
    assert!(!places.is_empty(), "the program does not name `{from}`");
    for at in places {
        program[at..at + length].copy_from_slice(to.as_bytes());
    }
    let dir = pair.lab.dir();
    let (forged, script) = (dir.join("forged"), dir.join("launch"));
    fs::write(&forged, program).expect("the copy is written");
    let launch = format!("#!/bin/sh\nshift\nexec {} \"$@\"\n", forged.display());
    fs::write(&script, launch).expect("the script is written");
    for file in [&forged, &script] {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(file, mode).expect("it is executable");
    }
    pair.b.launcher = vec![script.display().to_string()];
}

/// Both units say in status and log that the other one has another version of `what`, and which of
/// their own.
fn is_told_on_both(pair: &mut Pair, what: &str) {
    pair.lab.unit.start();
    wait_until("gw-a is primary", || pair.a().is_primary());
    pair.b.start();
    for unit in [pair.a(), pair.b()] {
        wait_until("the status says why", || {
            let peer = unit.peer();
            let refused = peer["refused"].as_str().unwrap_or_default().to_owned();
            refused.contains(what) && refused.contains("update the older one")
        });
        wait_until("the log says why", || {
            let log = unit.log();
            let mut lines = log.lines();
            lines.any(|line| line.contains("peer refused") && line.contains(what))
        });
        let peer = unit.peer();
        assert_eq!(peer["in_sync"], false, "{peer:#}");
        let said = unit.tandemgw("status").stdout;
        assert!(said.contains("update the older one"), "{said}");
    }
    assert!(pair.a().is_primary());
}

#[test]
fn another_version_of_heartbeats_is_told_on_both() {
    let mut pair = Pair::new();
    forge_version(&mut pair, "tandemgw-hb/3", "tandemgw-hb/9");
    is_told_on_both(&mut pair, "heartbeat protocol");
}

#[test]
fn another_version_of_replication_is_told_on_both() {
    let mut pair = Pair::new();
    forge_version(&mut pair, "tandemgw/3", "tandemgw/9");
    is_told_on_both(&mut pair, "replication protocol");
}
