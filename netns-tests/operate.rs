//! An operator's work on a unit: reading its config, completing command lines, maintenance.

use serde_json::Value;

use crate::conversation::Conversations;
use crate::lab::Lab;
use crate::pair::{Pair, set_port};
use testkit::system::process::wait_until;

#[test]
fn the_config_in_force_is_shown_with_what_differs_from_the_file() {
    let mut lab = Lab::started();
    let show = |lab: &Lab| lab.unit.tandemgw("config show").ok().stdout;
    let shown = show(&lab);
    assert!(shown.starts_with("# in force; "), "{shown}");
    assert!(shown.contains("says the same"), "{shown}");
    assert!(shown.contains("[[policy]]\nname = \"lan-out\""), "{shown}");
    lab.unit
        .edit("nat = true", "nat = false\n\n[timeouts]\nudp = \"60s\"");
    lab.unit.edit("[node]", "[node]\nmax-sessions = 2048");
    lab.unit.write_config();
    let shown = lab.unit.tandemgw("config show --json").ok().stdout;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let differs = shown["differs"].as_array().expect("a list");
    let needs = |key: &str| {
        let row = differs.iter().find(|row| row["key"] == key);
        row.map(|row| row["needs"].clone())
    };
    assert_eq!(needs("policy.lan-out"), Some("reload".into()), "{shown:#}");
    assert_eq!(needs("timeouts.udp"), Some("reload".into()), "{shown:#}");
    assert_eq!(
        needs("node.max-sessions"),
        Some("restart".into()),
        "{shown:#}"
    );
    lab.unit.tandemgw("reload").ok();
    let shown = show(&lab);
    assert!(shown.contains("node.max-sessions"), "{shown}");
    assert!(!shown.contains("#   timeouts.udp"), "{shown}");
    // The output is a config.
    let copy = lab.dir().join("copy.toml");
    std::fs::write(&copy, &shown).expect("writing a file");
    let check = lab
        .unit
        .tandemgw(&format!("check --config {}", copy.display()));
    check.ok();
    lab.unit.edit("[node]", "[nod]");
    lab.unit.write_config();
    assert!(show(&lab).contains("it has mistakes"));
}

#[test]
fn completion_knows_what_the_gateway_knows() {
    let pair = Pair::started();
    let complete = |line: &str| {
        let mut command = pair.a().ns.command(env!("CARGO_BIN_EXE_tandemgw"));
        let output = command.args(["complete", "--", line]).output();
        String::from_utf8(output.expect("the binary is there").stdout).expect("text")
    };
    assert_eq!(complete("tandemgw failover --to "), "gw-b\n");
    assert_eq!(complete("tandemgw failover --group "), "default\n");
    assert_eq!(complete("tandemgw sessions policy=l"), "policy=lan-out\n");
    assert_eq!(complete("tandemgw sessions in=w"), "in=wan\n");
    assert_eq!(complete("tandemgw --socket /nowhere failover --to "), "");
}

#[test]
fn a_unit_in_maintenance_stays_standby_unless_it_is_the_last_one() {
    let mut pair = Pair::new();
    // In the folder of the test, and not in that of the machine.
    pair.edit("[node]", "[node]\nstate-directory = \"state\"");
    pair.start();
    let said = pair.a().tandemgw("maintenance on").ok().stdout;
    assert_eq!(said, "gw-a is in maintenance, and standby of all groups\n");
    assert!(pair.b().is_primary());
    let status = pair.a().status();
    assert_eq!(status["maintenance"]["until"], Value::Null, "{status:#}");
    assert_eq!(
        status["maintenance"]["not_saved"],
        Value::Null,
        "{status:#}"
    );
    wait_until("gw-b says so", || pair.b().peer()["maintenance"] == true);
    let shown = pair.a().tandemgw("status").ok().stdout;
    assert!(shown.contains("state   MAINTENANCE"), "{shown}");
    let check = pair.b().tandemgw("status --check").code(1).stdout;
    assert!(check.contains("gw-a is in maintenance"), "{check}");

    // Whatever happens to the other: it may not even hand over.
    pair.b().wait_for_ready_peer();
    let refused = pair.b().tandemgw("failover").code(1);
    assert!(
        refused.stderr.contains("gw-a is in maintenance"),
        "{}",
        refused.stderr
    );
    set_port(&pair.lab.sw_wan, &pair.b().ns, "eth1", "down");
    wait_until("the port is missed", || pair.a().peer()["ports_up"] == 1);
    assert!(pair.b().is_primary());
    set_port(&pair.lab.sw_wan, &pair.b().ns, "eth1", "up");

    // A restart does not end it.
    pair.a_mut().stop();
    pair.a_mut().start();
    pair.a().wait_until_ready();
    assert_ne!(pair.a().status()["maintenance"], Value::Null);

    // It is the last one.
    pair.b.kill();
    wait_until("gw-a is primary", || pair.a().is_primary());
    let shown = pair.a().tandemgw("status --check").code(1).stdout;
    assert!(shown.contains("no other unit can take over"), "{shown}");
    pair.b.start();
    wait_until("gw-a has handed over", || {
        pair.b().is_primary() && !pair.a().is_primary()
    });

    let said = pair.a().tandemgw("maintenance off").ok().stdout;
    assert_eq!(said, "gw-a is not in maintenance\n");
    pair.a_mut().stop();
    pair.a_mut().start();
    assert_eq!(pair.a().status()["maintenance"], Value::Null);
}

#[test]
fn a_maintenance_ends_by_itself() {
    let mut pair = Pair::new();
    pair.edit("[node]", "[node]\nstate-directory = \"state\"");
    pair.start();
    let said = pair
        .a()
        .tandemgw("maintenance on --for 3s --json")
        .ok()
        .stdout;
    let said: Value = serde_json::from_str(&said).expect("JSON");
    let until = said["until"].as_f64().expect("a time");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let left = until - now.expect("after 1970").as_secs_f64();
    assert!((0.0..3.1).contains(&left), "{said:#}");
    wait_until("it is over", || {
        pair.a().status()["maintenance"] == Value::Null
    });
    let wrong = pair.a().tandemgw("maintenance on --for soon").code(2);
    assert!(wrong.stderr.contains("such as 30m, 2h"), "{}", wrong.stderr);
    let alone = Lab::started();
    let refused = alone.unit.tandemgw("maintenance on").code(1);
    assert!(refused.stderr.contains("standalone"), "{}", refused.stderr);
}

#[test]
fn a_drained_unit_has_no_group_and_forwards_nothing() {
    let mut pair = Pair::new();
    pair.edit("[node]", "[node]\nstate-directory = \"state\"");
    pair.start();
    let mut sessions = Conversations::start(&pair.lab);
    pair.a().wait_for_ready_peer();
    // The other unit, from here.
    let said = pair.a().tandemgw("drain gw-b").ok().stdout;
    assert!(said.starts_with("gw-b is drained"), "{said}");
    assert_eq!(pair.a().peer()["maintenance"], true);
    pair.b.tandemgw("maintenance off").ok();
    wait_until("gw-b is in service", || {
        pair.a().peer()["maintenance"] == false
    });
    pair.a().wait_for_ready_peer();
    let wrong = pair.a().tandemgw("drain gw-x").code(1);
    assert!(wrong.stderr.contains("no unit `gw-x`"), "{}", wrong.stderr);
    assert!(pair.a().is_primary());
    let said = pair.a().tandemgw("drain gw-a").ok().stdout;
    assert!(said.starts_with("gw-a is drained"), "{said}");
    let status = pair.a().status();
    assert_eq!(status["groups"][0]["role"], "standby", "{status:#}");
    assert_eq!(status["groups"][0]["draining"], false, "{status:#}");
    assert!(pair.b().is_primary());
    sessions.go_on();
    sessions.finish();
    // Nobody is left to hand over to.
    let refused = pair.b().tandemgw("drain gw-b").code(1);
    assert!(
        refused.stderr.contains("gw-b is not drained"),
        "{}",
        refused.stderr
    );
    assert!(pair.b().is_primary());
}
