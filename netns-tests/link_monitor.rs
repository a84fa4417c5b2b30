//! Targets of `[[link-monitor]]`: a port is good when they answer, not when it has carrier.

use std::time::Instant;

use serde_json::Value;

use crate::lab::{LAN1, Lab, SERVER, bracketed, switch_port};
use crate::pair::Pair;
use crate::unit::Unit;
use testkit::system::process::wait_until;

/// The row of a target in the status.
fn target(unit: &Unit, server: &str) -> Value {
    let status = unit.status();
    let ports = status["ports"].as_array().expect("a list");
    let all = ports
        .iter()
        .flat_map(|port| port["targets"].as_array().expect("a list"));
    let mut all = all.filter(|target| target["server"] == server);
    all.next().expect("the target is shown").clone()
}

#[track_caller]
fn wait_for(unit: &Unit, server: &str, state: &str) {
    wait_until(&format!("{server} is {state}"), || {
        target(unit, server)["state"] == state
    });
}

/// A table with short times.
fn monitor(server: &str, protocol: &str) -> String {
    format!(
        "\n[[link-monitor]]\nport = \"wan\"\nserver = \"{server}\"\nprotocol = \"{protocol}\"\n\
         interval = \"50ms\"\nfailtime = 4\nrecoverytime = 2\n"
    )
}

#[test]
fn targets_are_asked_in_all_ways_and_both_families() {
    let mut lab = Lab::new();
    let tcp = format!("{}:9", SERVER[0]);
    let tcp6 = format!("{}:9", bracketed(SERVER[1]));
    let targets = [
        (SERVER[0], "ping"),
        (SERVER[1], "ping"),
        // Nobody listens there: the target refuses, and so is there.
        (&tcp, "tcp"),
        (&tcp6, "tcp"),
        ("10.77.2.101", "arp"),
        ("fd77:2::101", "arp"),
        ("10.77.2.77", "ping"),
        ("10.77.2.78", "arp"),
    ];
    for (server, protocol) in targets {
        lab.unit.config += &monitor(server, protocol);
    }
    lab.unit.config += "\n[metrics]\nlisten = \"127.0.0.1:10747\"\n";
    lab.unit.start();
    for (server, _) in &targets[..6] {
        wait_for(&lab.unit, server, "alive");
        let rtt = target(&lab.unit, server)["rtt_us"].as_u64();
        assert!(rtt.is_some_and(|rtt| rtt < 50_000), "{server}: {rtt:?}");
    }
    for (server, _) in &targets[6..] {
        wait_for(&lab.unit, server, "dead");
    }
    let shown = lab.unit.tandemgw("status").ok().stdout;
    assert!(
        shown.contains("10.77.2.77 behind port wan does not answer (ping)"),
        "{shown}"
    );
    let scraped = lab.unit.ns.run("curl -s http://127.0.0.1:10747/metrics");
    for (server, up) in [(SERVER[0], 1), ("10.77.2.77", 0)] {
        let line = format!(
            "tandemgw_link_monitor_up{{port=\"wan\",server=\"{server}\",protocol=\"ping\"}} {up}"
        );
        assert!(scraped.contains(&line), "{line}\n{scraped}");
    }
    // A reload takes one out, and the others go on.
    let before = target(&lab.unit, SERVER[0])["sent"].as_u64();
    let dead = monitor("10.77.2.77", "ping");
    lab.unit.edit(&dead, "");
    let told = lab.unit.reload();
    assert_eq!(told["changed"][0]["key"], "link-monitor", "{told}");
    assert!(target(&lab.unit, SERVER[0])["sent"].as_u64() >= before);
    wait_until("the reason is gone", || {
        !lab.unit
            .tandemgw("status")
            .ok()
            .stdout
            .contains("10.77.2.77")
    });
    // The link has carrier all the time.
    let begun = Instant::now();
    lab.server.run("ip link set eth0 down");
    for (server, _) in &targets[..4] {
        wait_for(&lab.unit, server, "dead");
    }
    let log = lab.unit.log();
    assert!(log.contains("target does not answer port=wan"), "{log}");
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[test]
fn a_unit_without_an_address_of_its_own_asks_from_the_virtual_one() {
    let mut lab = Lab::new();
    for address in ["10.77.2.2/24", "fd77:2::2/64"] {
        lab.unit.ns.run(&format!("ip addr del {address} dev eth1"));
    }
    let tcp = format!("{}:9", SERVER[0]);
    let targets = [(SERVER[0], "ping"), (SERVER[1], "ping"), (&tcp, "tcp")];
    for (server, protocol) in targets {
        lab.unit.config += &monitor(server, protocol);
    }
    lab.unit.start();
    for (server, _) in targets {
        wait_for(&lab.unit, server, "alive");
    }
    // Sessions are not in its way.
    lab.lan1.run(&format!("ping -c 2 -W 5 {}", SERVER[0]));
    lab.server.run("ip link set eth0 down");
    for (server, _) in targets {
        wait_for(&lab.unit, server, "dead");
    }
}

#[test]
fn a_port_that_leads_nowhere_moves_the_group_to_a_better_unit_only() {
    let mut pair = Pair::new();
    pair.edit(
        "monitor = [",
        "pingserver-failover-threshold = 0\nmonitor = [",
    );
    pair.edit("\n[ha]", &format!("{}\n[ha]", monitor(SERVER[0], "ping")));
    pair.start();
    for unit in [pair.a(), pair.b()] {
        wait_for(unit, SERVER[0], "alive");
    }
    // A port behind a switch that lives, and that no longer leads anywhere.
    let port = switch_port(&pair.a().ns, "eth1");
    pair.lab.sw_wan.run(&format!("ip link set {port} nomaster"));
    wait_until("gw-b has taken over", || {
        pair.b().is_primary() && !pair.a().is_primary()
    });
    let status = pair.a().status();
    assert_eq!(status["ports"][1]["up"], true, "{status:#}");
    assert_eq!(target(pair.a(), SERVER[0])["state"], "dead");
    pair.lab.lan1.run(&format!("ping -c 1 -W 5 {}", SERVER[0]));
    assert!(
        pair.lab
            .lan1
            .try_run(&format!("ping -c 1 {}", LAN1[0]))
            .status
            .success()
    );
    let refused = pair.b().tandemgw("failover").code(1);
    assert!(
        refused.stderr.contains("fewer monitored ports"),
        "{}",
        refused.stderr
    );
    pair.lab
        .sw_wan
        .run(&format!("ip link set {port} master br0"));
    wait_for(pair.a(), SERVER[0], "alive");
    wait_until("gw-a is as good again", || pair.b().peer()["ports_up"] == 2);

    // Nobody reaches it: no unit is better, so nothing moves. The standby finds out first, since
    // each asks when it likes: for a moment it would be the better one.
    let term = pair.b().term();
    pair.lab.sw_wan.run(&format!("ip link set {port} nomaster"));
    wait_until("gw-b knows that gw-a reaches nothing", || {
        pair.b().peer()["ports_up"] == 1
    });
    pair.lab.server.run("ip link set eth0 down");
    wait_for(pair.b(), SERVER[0], "dead");
    wait_until("both know", || pair.a().peer()["ports_up"] == 1);
    pair.lab
        .sw_wan
        .run(&format!("ip link set {port} master br0"));
    wait_for(pair.a(), SERVER[0], "dead");
    assert!(pair.b().is_primary());
    assert_eq!(pair.b().term(), term);
}
