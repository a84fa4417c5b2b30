//! Events, for readers and for programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::pair::{Pair, set_port};
use crate::unit::Unit;
use testkit::system::process::wait_until;

/// The events of a unit after a number.
fn events(unit: &Unit, after: u64) -> Vec<Value> {
    let output = unit.tandemgw(&format!("events --json --after {after}"));
    let parse = |line| serde_json::from_str(line).expect("one JSON object a line");
    output.ok().stdout.lines().map(parse).collect()
}

fn has(events: &[Value], id: &str, state: &str) -> bool {
    let mut events = events.iter();
    events.any(|event| event["id"] == id && event["state"].as_str().unwrap_or("") == state)
}

#[test]
fn a_start_that_goes_well_tells_of_no_trouble() {
    let mut pair = Pair::started();
    for unit in [pair.a(), pair.b()] {
        wait_until("all is well", || unit.status()["health"]["state"] == "good");
        let told = events(unit, 0);
        let is_trouble = |event: &&Value| event["severity"] != "info" || !event["state"].is_null();
        let troubles: Vec<_> = told.iter().filter(is_trouble).collect();
        assert!(troubles.is_empty(), "{troubles:#?}");
        // The handshakes of two units that find each other are no flood.
        let limited = &unit.status()["counters"]["handshakes_limited"];
        assert_eq!(*limited, 0, "{}", unit.tandemgw("status").ok().stdout);
    }
    // What lasts is told: the other unit does not come.
    pair.a_mut().kill();
    pair.b.kill();
    pair.b.start();
    assert_eq!(pair.b().status()["health"]["state"], "critical");
    wait_until("the other one is missed", || {
        has(&events(pair.b(), 0), "peer-gone", "begin")
    });
    assert!(!has(&events(pair.b(), 0), "no-primary", "begin"));
}

#[test]
fn events_are_told_once_in_order_and_a_reader_goes_on_where_it_was() {
    let mut pair = Pair::started();
    pair.b().wait_until_ready();
    wait_until("all is well", || {
        pair.b().status()["health"]["state"] == "good"
    });
    let first = events(pair.b(), 0);
    let last = first.len() as u64;
    for (index, event) in (1..).zip(&first) {
        assert_eq!(event["sequence"], index, "{event}");
        assert_eq!(event["missed"], 0, "{event}");
    }
    pair.a_mut().kill();
    wait_until("the takeover is told", || {
        let new = events(pair.b(), last);
        has(&new, "role", "") && has(&new, "peer-gone", "begin")
    });
    let new = events(pair.b(), last);
    let role = new
        .iter()
        .find(|event| event["id"] == "role")
        .expect("it is told");
    assert_eq!(role["group"], "default", "{role}");
    assert!(
        role["what"]
            .as_str()
            .expect("text")
            .starts_with("primary of default"),
        "{role}"
    );
    let gone = new
        .iter()
        .find(|event| event["id"] == "peer-gone")
        .expect("it is told");
    assert_eq!(
        (&gone["severity"], &gone["peer"]),
        (&"warning".into(), &"gw-a".into()),
        "{gone}"
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let at = gone["at"].as_f64().expect("a time");
    assert!(
        (at - now.expect("after 1970").as_secs_f64()).abs() < 30.0,
        "{gone}"
    );

    pair.a_mut().start();
    wait_until("that is over", || {
        has(&events(pair.b(), last), "peer-gone", "end")
    });
    set_port(&pair.lab.sw_wan, &pair.b().ns, "eth1", "down");
    wait_until("the port is told", || {
        has(&events(pair.b(), last), "port-down", "begin")
    });
    pair.b().tandemgw("ha set priority 77").ok();
    assert!(has(&events(pair.b(), last), "switch", ""));
}

#[test]
fn who_follows_hears_all_also_after_a_restart() {
    let mut pair = Pair::started();
    let follower = pair.b().spawn_tandemgw("events --follow --json");
    pair.a_mut().kill();
    wait_until("gw-b is primary", || pair.b().is_primary());
    let first = events(pair.b(), 0);
    let all = events(pair.b(), 0).len();
    // The one that follows has heard the same, one by one.
    wait_until("it has heard all", || {
        follower.stdout().lines().count() >= all
    });
    for (index, line) in (1..).zip(follower.stdout().lines()) {
        let event: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(event["sequence"], index, "{event}");
    }
    // Over a restart of the gateway.
    let before = follower.stdout().lines().count();
    pair.b.kill();
    pair.b.start();
    wait_until("it goes on", || follower.stdout().lines().count() > before);
    let line = follower
        .stdout()
        .lines()
        .nth(before)
        .expect("a line")
        .to_owned();
    let event: Value = serde_json::from_str(&line).expect("JSON");
    assert_ne!(event["run"], first[0]["run"]);
    assert_eq!(event["sequence"], 1);
    let shown = pair.b().tandemgw("events").ok().stdout;
    assert!(shown.lines().count() > 0 && !shown.contains('{'), "{shown}");
}

#[test]
fn a_program_for_each_event_holds_nobody() {
    let mut pair = Pair::started();
    let (program, log) = (pair.lab.dir().join("hook"), pair.lab.dir().join("heard"));
    // The first call hangs for a while; all are heard.
    let script = format!(
        "#!/bin/sh\n[ -e {log} ] || {{ touch {log}; sleep 2; }}\n\
         echo \"$TANDEMGW_EVENT $TANDEMGW_STATE $TANDEMGW_GROUP $(cat)\" >>{log}\n",
        log = log.display()
    );
    fs::write(&program, script).expect("writing a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("changing a mode");
    pair.b().tandemgw("ha set priority 50").ok();
    let _hooks = pair
        .b()
        .spawn_tandemgw(&format!("events --exec {}", program.display()));
    let heard = || fs::read_to_string(&log).unwrap_or_default();
    // Each is an event, which is heard once the program's reader is there.
    let mut priority = 50;
    wait_until("it runs", || {
        priority += 1;
        let set = format!("ha set priority {priority}");
        pair.b().tandemgw(&set).ok();
        log.exists()
    });
    pair.a_mut().kill();
    wait_until("gw-b is primary", || pair.b().is_primary());
    wait_until("the role is heard", || heard().contains("role  default {"));
    let heard = heard();
    assert!(heard.contains("switch   {"), "{heard}");
    assert!(heard.lines().all(|line| line.ends_with('}')), "{heard}");
    assert!(
        !heard.contains("\"sequence\":1,"),
        "only those to come: {heard}"
    );
}
