//! `tandemgw explain` says beforehand what then happens.

use serde_json::Value;

use crate::lab::{LAN_GATEWAY, LAN1, Lab, SERVER, bracketed};
use crate::pair::Pair;
use crate::services::Http;
use crate::unit::Unit;
use testkit::system::process::wait_until;

/// `tandemgw explain --json`
#[track_caller]
fn explain(unit: &Unit, question: &str) -> Value {
    let output = unit.tandemgw(&format!("explain --json {question}")).ok();
    serde_json::from_str(&output.stdout).expect("one JSON object")
}

/// The verdict, with the reason of a drop.
fn verdict(explanation: &Value) -> String {
    let verdict = &explanation["verdict"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{} {}", text(&verdict["verdict"]), text(&verdict["reason"]))
        .trim()
        .to_owned()
}

#[test]
fn a_connection_goes_the_way_that_was_foretold() {
    let mut lab = Lab::new();
    lab.unit
        .prepend_policy("name = \"no\"\nservice = [\"tcp/81\"]\naction = \"reject\"");
    lab.unit.start();
    let _http = Http::start(&lab, &lab.server, 1);
    for (port, (host, server)) in (40001..).zip(LAN1.iter().zip(SERVER)) {
        let (host, server) = (bracketed(host), bracketed(server));
        let question = format!("tcp {host}:{port} {server}:80 --in lan");
        let before = lab.unit.status();
        let foretold = explain(&lab.unit, &question);
        assert_eq!(lab.unit.status()["sessions"], before["sessions"]);
        assert_eq!(
            lab.unit.status()["counters"]["dropped"],
            before["counters"]["dropped"]
        );
        assert_eq!(verdict(&foretold), "forward", "{foretold:#}");
        assert_eq!(foretold["matches"], "nothing", "{foretold:#}");
        assert_eq!(foretold["explained_as"], "a SYN", "{foretold:#}");
        assert_eq!(
            foretold["policies"][0]["differs"], "service",
            "{foretold:#}"
        );
        assert_eq!(foretold["policies"][1]["action"], "accept", "{foretold:#}");
        assert_eq!(foretold["nat"]["port_kept"], true, "{foretold:#}");
        assert_eq!(foretold["survives"], "no", "{foretold:#}");
        lab.lan1.run(&format!(
            "curl -sSf -m 5 --local-port {port} http://{server}/whoami"
        ));
        let sessions = lab.unit.sessions(&format!("port={port}"));
        let session = sessions
            .iter()
            .find(|session| session["dst"] == foretold["flow"]["dst"])
            .expect("the session of the connection");
        assert_eq!(session["nat_src"], foretold["nat"]["src"]);
        assert_eq!(session["nat_dst"], foretold["leaves_as"]["dst"]);
        assert_eq!(session["out"], foretold["out"]["port"]);
        assert_eq!(session["policy"], foretold["policies"][1]["name"]);
        let known = explain(&lab.unit, &question);
        assert_eq!(known["matches"], "session", "{known:#}");
        assert_eq!(known["session"]["id"], session["id"], "{known:#}");
        assert_eq!(known["direction"], "original", "{known:#}");
    }
}

#[test]
fn a_drop_is_foretold_with_its_reason() {
    let mut lab = Lab::new();
    lab.unit
        .prepend_policy("name = \"no\"\nservice = [\"tcp/81\"]\naction = \"reject\"");
    lab.unit.start();
    let [host, server, gateway] = [LAN1[0], SERVER[0], LAN_GATEWAY[0]];
    for (question, expected) in [
        (
            format!("tcp {host}:4000 {server}:81 --in lan"),
            "drop policy-reject",
        ),
        (
            format!("udp {server}:53 {host}:4000 --in wan"),
            "drop no-policy",
        ),
        (format!("icmp {server} {host} --in wan"), "drop no-policy"),
        (format!("icmp {server} {host}:7 --in wan"), "drop no-policy"),
        (
            format!("tcp {host}:4000 192.0.2.1:80 --in lan"),
            "drop no-route",
        ),
        (
            format!("tcp {host}:4000 {server}:80 --in wan"),
            "drop spoofed-source",
        ),
        (format!("47 {host} 127.0.0.1 --in lan"), "drop martian"),
        (format!("icmp {host} {gateway} --in lan"), "answer"),
        (
            format!("tcp {host}:4000 {gateway}:22 --in lan"),
            "drop no-listener",
        ),
    ] {
        let explanation = explain(&lab.unit, &question);
        assert_eq!(
            verdict(&explanation),
            expected,
            "{question}: {explanation:#}"
        );
    }
    // The first explanation came true.
    let before = lab.unit.dropped("policy-reject");
    lab.lan1
        .try_run(&format!("curl -s -m 5 http://{server}:81/"))
        .code(7);
    assert!(lab.unit.dropped("policy-reject") > before);
}

#[test]
fn a_unit_of_a_pair_says_who_handles_it_and_whether_it_would_survive() {
    let pair = Pair::started();
    let [host, server] = [LAN1[0], SERVER[0]];
    let question = format!("udp {host}:4000 {server}:53 --in lan");
    for unit in [pair.a(), pair.b()] {
        let explanation = explain(unit, &question);
        assert_eq!(verdict(&explanation), "forward", "{explanation:#}");
        assert_eq!(explanation["owner"], "gw-a", "{explanation:#}");
        assert_eq!(explanation["survives"], "yes", "{explanation:#}");
    }
    let on_b = explain(pair.b(), &question);
    assert_eq!(on_b["primary_here"], false, "{on_b:#}");
    assert_eq!(on_b["verdict_here"]["reason"], "not-primary", "{on_b:#}");
    let text = pair
        .b()
        .tandemgw(&format!("explain {question}"))
        .ok()
        .stdout;
    assert!(text.contains("gw-a is primary, and handles it"), "{text}");
    // A session that is there.
    let ping = pair.lab.lan1.run(&format!("ping -e 77 -c 1 -W 5 {server}"));
    assert!(ping.contains("1 received"), "{ping}");
    let question = format!("icmp {host}:77 {server} --in lan");
    for unit in [pair.a(), pair.b()] {
        wait_until("the session is replicated", || {
            let explanation = explain(unit, &question);
            explanation["matches"] == "session" && explanation["survives"] == "yes"
        });
    }
}

#[test]
fn what_is_not_replicated_would_not_survive() {
    let mut pair = Pair::new();
    pair.edit(
        "group-id = 7",
        "group-id = 7\nsession-pickup-connectionless = false",
    );
    pair.edit(
        "group-id = 7",
        "group-id = 7\npickup-guarantee = \"strict\"",
    );
    pair.start();
    let [host, server] = [LAN1[0], SERVER[0]];
    let udp = explain(pair.a(), &format!("udp {host}:4000 {server}:53 --in lan"));
    assert_eq!(udp["survives"], "no", "{udp:#}");
    assert_eq!(
        udp["why"], "session-pickup-connectionless is off",
        "{udp:#}"
    );
    let tcp = explain(pair.a(), &format!("tcp {host}:4000 {server}:80 --in lan"));
    assert_eq!(tcp["verdict"]["verdict"], "wait", "{tcp:#}");
    assert_eq!(tcp["survives"], "yes", "{tcp:#}");
    pair.b.stop();
    wait_until("gw-a notices that gw-b is gone", || {
        pair.a().peer()["in_sync"] == false
    });
    let tcp = explain(pair.a(), &format!("tcp {host}:4000 {server}:80 --in lan"));
    assert_eq!(verdict(&tcp), "forward", "{tcp:#}");
    assert_eq!(tcp["survives"], "not yet", "{tcp:#}");
}

#[test]
fn a_wrong_question_is_answered_with_one_line() {
    let lab = Lab::started();
    for (question, said) in [
        ("tpc 10.0.0.1:1 10.0.0.2:2 --in lan", "did you mean `tcp`?"),
        (
            "tcp 10.0.0.1 10.0.0.2:2 --in lan",
            "`10.0.0.1` needs a port: 10.0.0.1:40000",
        ),
        (
            "udp fd00::1 fd00::2 --in lan",
            "`fd00::1` needs a port: [fd00::1]:40000",
        ),
        (
            "tcp 10.0.0.1:1 10.0.0:2 --in lan",
            "the destination `10.0.0:2` is not an address",
        ),
        (
            "tcp 10.0.0.1:1 [fd00::1]:2 --in lan",
            "IPv4 and IPv6 do not mix",
        ),
        ("tcp 10.0.0.1:1 10.0.0.2:2 --in lna", "did you mean `lan`?"),
        (
            "47 10.0.0.1:1 10.0.0.2 --in lan",
            "protocol 47 has no ports",
        ),
        ("icmp 10.0.0.1:1 10.0.0.2:1 --in lan", "not with both"),
    ] {
        let finished = lab.unit.tandemgw(&format!("explain {question}")).code(2);
        assert!(
            finished.stderr.contains(said),
            "{question}: {}",
            finished.stderr
        );
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        assert_eq!(finished.stdout, "");
    }
}

#[test]
fn people_get_the_way_step_by_step() {
    let lab = Lab::started();
    let question = format!("tcp {}:4000 {}:443 --in lan", LAN1[0], SERVER[0]);
    let text = lab
        .unit
        .tandemgw(&format!("explain {question}"))
        .ok()
        .stdout;
    let wanted = "\
tcp 10.77.1.100:4000 -> 10.77.2.100:443, in by lan
  packet    taken for a SYN
  session   none; it would open one
  forward   none applies
  route     10.77.2.100 by 10.77.2.0/24, on the link, out of wan
  policy    lan-out matches: accept
  nat       source becomes 10.77.2.1:4000, the address of the port that it leaves by; port kept
  exit      by wan (eth1, up, mtu 1500)
  group     default: this unit is primary
  verdict   FORWARD as 10.77.2.1:4000 -> 10.77.2.100:443
  takeover  its session would survive: no, since this gateway is standalone: it has no [ha]
";
    assert_eq!(text, wanted);
}
