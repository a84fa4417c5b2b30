//! The status is true: problems are shown to people, programs and monitoring.

use serde_json::Value;

use crate::lab::SERVER;
use crate::pair::{Pair, set_port};
use testkit::system::process::wait_until;

#[test]
fn what_is_wrong_with_the_pair_is_told() {
    let mut pair = Pair::started();
    pair.a().wait_for_ready_peer();
    wait_until("all is well", || {
        pair.a().status()["health"]["state"] == "good"
    });
    let check = pair.a().tandemgw("status --check").ok();
    let said = check.stdout.as_str();
    assert!(
        said.starts_with("OK - gw-a is primary of default, good"),
        "{said}"
    );
    let peer = pair.a().peer();
    assert_eq!(peer["role"], "standby", "{peer:#}");
    assert_eq!(peer["config"]["equal"], true, "{peer:#}");
    assert_eq!(peer["version"], env!("CARGO_PKG_VERSION"), "{peer:#}");
    pair.lab.lan1.run(&format!("ping -c 1 -W 5 {}", SERVER[0]));

    pair.b.kill();
    wait_until("the peer is missed", || {
        pair.a().peer()["connected"] == false
    });
    let (status, peer) = (pair.a().status(), pair.a().peer());
    // A peer that is gone holds nothing, and a dead link carries nothing.
    let total = status["sessions"]["total"].as_u64().expect("a number");
    assert!(total >= 1, "{status:#}");
    assert_eq!(peer["lag"]["would_be_lost"], total, "{peer:#}");
    for unknown in [
        &peer["digest_equal"],
        &peer["role"],
        &peer["config"]["equal"],
        &peer["lag"]["sequence_gap"],
    ] {
        assert_eq!(*unknown, Value::Null, "{peer:#}");
    }
    assert_eq!(peer["links"][0]["carries_sync"], false, "{peer:#}");
    let check = pair.a().tandemgw("status --check").code(1);
    let said = check.stdout.as_str();
    assert!(
        said.starts_with("WARNING - gw-a is primary of default: gw-b is gone"),
        "{said}"
    );
    let shown = pair.a().tandemgw("status").ok().stdout;
    assert!(
        shown
            .lines()
            .nth(1)
            .is_some_and(|line| line.starts_with("health  WARNING")),
        "{shown}"
    );

    set_port(&pair.lab.sw_wan, &pair.a().ns, "eth1", "down");
    wait_until("the port is missed", || {
        pair.a().status()["health"]["state"] == "critical"
    });
    let check = pair.a().tandemgw("status --check").code(2);
    assert!(
        check.stdout.contains("port wan is down"),
        "{}",
        check.stdout
    );
    let log = pair.a().log();
    let line = log
        .lines()
        .find(|line| line.contains("link port=wan up=false"));
    assert!(line.is_some_and(|line| line.contains("WARN")), "{line:?}");

    pair.a_mut().kill();
    let check = pair.a().tandemgw("status --check").code(2);
    assert!(
        check.stdout.starts_with("CRITICAL - no running gateway"),
        "{}",
        check.stdout
    );
}

#[test]
fn events_have_the_time_of_day() {
    let pair = Pair::started();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs_f64();
    let status = pair.a().status();
    let events = status["events"].as_array().expect("a list");
    assert!(!events.is_empty());
    for event in events {
        let at = event["at"].as_f64().expect("a number");
        assert!((now - 600.0..now + 60.0).contains(&at), "{event}");
    }
}

#[test]
fn a_group_goes_to_a_unit_with_ports_down_by_force_only() {
    let pair = Pair::started();
    pair.a().wait_for_ready_peer();
    set_port(&pair.lab.sw_wan, &pair.b().ns, "eth1", "down");
    wait_until("gw-b says so", || pair.a().peer()["ports_up"] == 1);
    let refused = pair.a().tandemgw("failover").code(1);
    assert!(
        refused.stderr.contains("fewer monitored ports"),
        "{}",
        refused.stderr
    );
    assert!(pair.a().is_primary());
    pair.a().tandemgw("failover --force").ok();
}

#[test]
fn sessions_are_counted_sorted_and_added_up() {
    let pair = Pair::started();
    for _ in 0..3 {
        pair.lab.lan1.run(&format!("ping -c 1 -W 5 {}", SERVER[0]));
    }
    pair.lab
        .lan2
        .run(&format!("ping -c 5 -i 0.2 -W 5 {}", SERVER[0]));
    let a = pair.a();
    let counted = a.tandemgw("sessions --count --json proto=icmp").ok().stdout;
    assert!(counted.starts_with("{\"sessions\":4,"), "{counted}");
    let sorted = a
        .tandemgw("sessions --sort bytes --limit 1 --json proto=icmp")
        .ok();
    assert_eq!(sorted.stdout.lines().count(), 1, "{}", sorted.stdout);
    assert!(
        sorted.stdout.contains("\"src\":\"10.77.1.101:"),
        "{}",
        sorted.stdout
    );
    let limited = a.tandemgw("sessions --limit 1 proto=icmp").ok();
    assert!(
        limited.stderr.contains("3 more not shown"),
        "{}",
        limited.stderr
    );
    let talkers = a
        .tandemgw("sessions --top 1 --by source --json proto=icmp")
        .ok();
    assert!(
        talkers
            .stdout
            .starts_with("{\"name\":\"10.77.1.101\",\"sessions\":1,\"packets\":10,"),
        "{}",
        talkers.stdout
    );
    let none = a.tandemgw("sessions proto=47").ok();
    assert!(
        none.stderr.contains("no session matches"),
        "{}",
        none.stderr
    );
    let policies = a.tandemgw("policies --json").ok().stdout;
    let first: Value =
        serde_json::from_str(policies.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["hits"], 4, "{policies}");
    assert_eq!(first["sessions"], 4, "{policies}");
    assert_eq!(
        a.tandemgw("ha get priority").ok().stdout,
        format!("{}\n", a.group()["priority"])
    );
    let unknown = a.tandemgw("ha get priorty").code(2);
    assert!(
        unknown.stderr.contains("did you mean `priority`"),
        "{}",
        unknown.stderr
    );
}
