//! Metrics over HTTP: judged by Prometheus' own tool, and by clients that behave badly.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tandemgw_core::event::DropReason;
use tandemgw_core::metrics::catalog;

use crate::fast_path::want_ebpf;
use crate::lab::{LAN1, Lab, SERVER};
use crate::pair::Pair;
use crate::unit::Unit;
use testkit::system::namespace::{Namespace, is_root_of_the_machine};
use testkit::system::process::{PATIENCE, Process, wait_until};

const ADDRESS: &str = "127.0.0.1:10747";
/// The same as bash opens it.
const DEVICE: &str = "/dev/tcp/127.0.0.1/10747";

/// A lab whose gateway serves metrics.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.unit.config.push_str("\n[metrics]\n");
    lab.unit.start();
    lab
}

/// The page as it comes.
#[track_caller]
fn page(unit: &Unit) -> String {
    unit.ns
        .run(&format!("curl -sS -m 10 -f http://{ADDRESS}/metrics"))
}

/// The samples of a page, by name and labels as they stand there.
#[track_caller]
fn samples(unit: &Unit) -> BTreeMap<String, f64> {
    let page = page(unit);
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    let mut all = BTreeMap::new();
    for line in samples {
        let (series, value) = line.rsplit_once(' ').expect("a name and a value");
        let value = value.parse().expect("a value is a number");
        let before = all.insert(series.to_owned(), value);
        assert_eq!(before, None, "{series} is there twice");
    }
    all
}

/// The value of one series.
#[track_caller]
fn value(unit: &Unit, series: &str) -> f64 {
    let all = samples(unit);
    *all.get(series)
        .unwrap_or_else(|| panic!("no {series} among {:#?}", all.keys()))
}

/// The names of the metrics of a page that have samples; those of a histogram without their
/// endings.
fn names(samples: &BTreeMap<String, f64>) -> BTreeSet<String> {
    let name = |series: &String| {
        let name = series.split('{').next().unwrap_or_default();
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        base.unwrap_or(name).to_owned()
    };
    samples.keys().map(name).collect()
}

/// Has promtool say that a page is right and follows the conventions.
#[track_caller]
fn assert_page_is_clean(unit: &Unit) {
    let checked = unit.ns.sh(&format!(
        "curl -sS -m 10 -f http://{ADDRESS}/metrics | promtool check metrics 2>&1"
    ));
    assert_eq!(checked.trim(), "", "promtool has something to say");
}

/// A bash in the unit's namespace that goes on until it is dropped.
fn bash(ns: &Namespace, script: &str) -> Process {
    let mut command = ns.command("bash");
    command.args(["-ec", script]).stdin(Stdio::piped());
    Process::spawn(command, &format!("{}# {script}", ns.name()))
}

/// Says these bytes to the gateway and returns the first line of the answer.
#[track_caller]
fn answer_to(ns: &Namespace, bytes: &str) -> String {
    let client = bash(
        ns,
        &format!("exec 3<>{DEVICE}; printf '{bytes}' >&3; head -n 1 <&3"),
    );
    let answer = client.finish(PATIENCE).ok().stdout;
    answer.trim().to_owned()
}

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

/// The metrics that a text with PromQL in it names.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_part(c));
    let words = words.filter(|word| word.starts_with("tandemgw_") || word.starts_with("process_"));
    words
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned())
        .collect()
}

#[test]
fn nothing_listens_unless_asked_for() {
    let lab = Lab::started();
    assert_eq!(lab.unit.ns.run("ss -Hltun"), "");
}

#[test]
fn a_page_is_right_and_says_what_the_status_says() {
    let lab = lab();
    for server in SERVER {
        lab.lan1.run(&format!("ping -c 2 -i 0.2 -W 5 {server}"));
    }
    // No policy lets that in.
    let _ = lab.server.try_run(&format!("ping -c 1 -W 1 {}", LAN1[0]));
    lab.server
        .run(&format!("ip route add {}/32 via 10.77.2.1", LAN1[0]));
    let _ = lab.server.try_run(&format!("ping -c 1 -W 1 {}", LAN1[0]));
    assert_page_is_clean(&lab.unit);
    let (status, samples) = (lab.unit.status(), samples(&lab.unit));
    let is = |series: &str, value: &serde_json::Value| {
        assert_eq!(samples.get(series).copied(), value.as_f64(), "{series}");
    };
    is(
        "tandemgw_packets_forwarded_total",
        &status["counters"]["forwarded"],
    );
    is("tandemgw_sessions_max", &status["sessions"]["max"]);
    is(
        "tandemgw_sessions_opened_total",
        &status["sessions"]["opened"],
    );
    is(
        "tandemgw_sessions{protocol=\"icmp\",state=\"replied\"}",
        &status["sessions"]["icmp"],
    );
    is(
        "tandemgw_port_received_bytes_total{port=\"lan\"}",
        &status["ports"][0]["in"]["bytes"],
    );
    is(
        "tandemgw_port_forwarded_packets_total{port=\"wan\"}",
        &status["ports"][1]["out"]["packets"],
    );
    let no_policy = "tandemgw_packets_dropped_total{reason=\"no-policy\"}";
    is(no_policy, &status["counters"]["dropped"]["no-policy"]);
    assert_eq!(samples[no_policy], 1.0);
    for reason in DropReason::ALL {
        let series = format!(
            "tandemgw_packets_dropped_total{{reason=\"{}\"}}",
            reason.name()
        );
        assert!(samples.contains_key(&series), "no {series}");
    }
    assert!(samples["tandemgw_loop_turn_seconds_count"] > 8.0);
    assert_eq!(
        samples["tandemgw_nat_pool_ports_used{pool=\"port:wan\",protocol=\"icmp\"}"],
        2.0
    );
    assert_eq!(
        samples["tandemgw_port_up{port=\"lan\",interface=\"eth0\"}"],
        1.0
    );
    lab.sw_lan.run("ip link set gw-a-eth0 down");
    wait_until("the port is down in the metrics", || {
        value(
            &lab.unit,
            "tandemgw_port_up{port=\"lan\",interface=\"eth0\"}",
        ) == 0.0
    });
}

#[test]
fn tcp_sessions_are_counted_by_state() {
    let lab = lab();
    let _server = crate::conversation::line_server(&lab.server, SERVER[0]);
    let state = |state: &str| {
        let series = format!("tandemgw_sessions{{protocol=\"tcp\",state=\"{state}\"}}");
        value(&lab.unit, &series)
    };
    assert_eq!(state("established"), 0.0);
    let conversation = crate::conversation::Conversation::start(&lab.lan1, SERVER[0]);
    assert_eq!(state("established"), 1.0);
    drop(conversation);
    wait_until("the connection is over", || {
        state("established") == 0.0
            && state("time-wait") + state("last-ack") + state("closed") == 1.0
    });
}

#[test]
fn an_ipv6_address_serves_too_and_one_that_is_taken_is_named() {
    let mut lab = Lab::new();
    lab.unit
        .config
        .push_str("\n[metrics]\nlisten = \"[::1]:9999\"\n");
    let taken = lab
        .unit
        .ns
        .spawn("socat -d -d TCP6-LISTEN:9999,bind=[::1],fork PIPE");
    taken.expect_stderr("listening socket", |line| line.contains("listening on"));
    let refused = lab.unit.start_in_vain().code(2);
    let last = refused.stderr.lines().last().unwrap_or_default();
    assert!(
        last.contains("[::1]:9999") && last.contains("choose another `listen`"),
        "{last}"
    );
    drop(taken);
    lab.unit.start();
    let page = lab.unit.ns.run("curl -sS -f http://[::1]:9999/metrics");
    assert!(page.contains("\ntandemgw_build_info{version=\""), "{page}");
}

#[test]
fn every_metric_is_there_and_dashboard_and_alerts_use_no_other() {
    let mut pair = Pair::new();
    // A standby without an address of its own can ask by ARP alone.
    let more = format!(
        "\n[metrics]\n\n[[link-monitor]]\nport = \"wan\"\nserver = \"{}\"\nprotocol = \"arp\"\ninterval = \"50ms\"\n\n\
         [[multicast-policy]]\nname = \"tv\"\nfrom = [\"wan\"]\nto = [\"lan\"]\ngroup = [\"239.1.0.0/16\"]\naction = \"accept\"\n
[ha.witness]
endpoints = [\"http://127.0.0.1:2379\"]
",
        SERVER[0]
    );
    pair.lab.unit.config.push_str(&more);
    pair.b.config.push_str(&more);
    // In a user namespace there is no fast path, whatever the config says.
    let has_fast_path = is_root_of_the_machine();
    if has_fast_path {
        want_ebpf(&mut pair.lab.unit);
        want_ebpf(&mut pair.b);
    }
    pair.start();
    let listed = catalog::ALL.iter().map(|metric| metric.name);
    let listed = listed.filter(|it| has_fast_path || !it.starts_with("tandemgw_fast_path"));
    let listed: Vec<&str> = listed.collect();
    let catalog: BTreeSet<String> = listed.iter().map(|it| (*it).to_owned()).collect();
    for unit in [pair.a(), pair.b()] {
        for rtt in [
            "tandemgw_heartbeat_rtt_seconds",
            "tandemgw_link_monitor_rtt_seconds",
        ] {
            wait_until("an answer has come back", || {
                names(&samples(unit)).contains(rtt)
            });
        }
        assert_page_is_clean(unit);
        assert_eq!(names(&samples(unit)), catalog, "{}", unit.ns.name());
        // The page has them in the order of the catalog, so that neither has a hole.
        let page = page(unit);
        let on_page = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let on_page: Vec<_> = on_page.filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(on_page, listed);
    }
    for file in [
        "grafana/tandemgw.json",
        "prometheus/alerts.yml",
        "prometheus/alerts_test.yml",
    ] {
        let text = fs::read_to_string(configs().join(file)).expect("the file is there");
        let used = metrics_in(&text);
        let unknown: Vec<_> = used.difference(&catalog).collect();
        assert!(
            unknown.is_empty() && used.len() > 10,
            "{file} names {unknown:?}"
        );
    }
}

#[test]
fn a_pair_tells_roles_lag_and_takeovers() {
    let mut pair = Pair::new();
    pair.lab.unit.config.push_str("\n[metrics]\n");
    pair.b.config.push_str("\n[metrics]\n");
    pair.start();
    let [primary, ready, started, ended] = [
        "tandemgw_group_primary{group=\"default\"}",
        "tandemgw_group_ready{group=\"default\"}",
        "tandemgw_takeovers_total{group=\"default\",reason=\"start\"}",
        "tandemgw_takeovers_total{group=\"default\",reason=\"process-ended\"}",
    ];
    let link = |name: &str, peer: &str, own: u8| {
        format!("tandemgw_{name}{{peer=\"{peer}\",link=\"10.77.9.{own}:7030\"}}")
    };
    let (a, b) = (samples(pair.a()), samples(pair.b()));
    assert_eq!((a[primary], b[primary]), (1.0, 0.0));
    assert_eq!((a[ready], b[ready]), (1.0, 1.0));
    assert_eq!((a[started], b[started], b[ended]), (1.0, 0.0, 0.0));
    assert_eq!(a["tandemgw_peer_in_sync{peer=\"gw-b\"}"], 1.0);
    assert_eq!(b["tandemgw_peer_digest_equal{peer=\"gw-a\"}"], 1.0);
    assert_eq!(a[&link("link_up", "gw-b", 1)], 1.0);
    assert!(b[&link("heartbeats_received_total", "gw-a", 2)] > 1.0);
    for server in SERVER {
        pair.lab.lan1.run(&format!("ping -c 1 -W 5 {server}"));
    }
    pair.a().wait_for_ready_peer();
    let (a, b) = (samples(pair.a()), samples(pair.b()));
    let sent = a["tandemgw_replication_changes_sent_total{peer=\"gw-b\"}"];
    assert!(sent >= 2.0, "{sent}");
    assert_eq!(
        sent,
        b["tandemgw_replication_changes_received_total{peer=\"gw-a\"}"]
    );
    assert_eq!(a["tandemgw_replication_lag_changes{peer=\"gw-b\"}"], 0.0);
    let icmp = "tandemgw_sessions{protocol=\"icmp\",state=\"replied\"}";
    assert_eq!((a[icmp], b[icmp]), (2.0, 2.0));
    let used = "tandemgw_nat_pool_ports_used{pool=\"port:wan\",protocol=\"icmp\"}";
    assert_eq!((a[used], b[used]), (2.0, 2.0));
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    let b = samples(pair.b());
    assert_eq!((b[primary], b[ended]), (1.0, 1.0), "{b:#?}");
    assert_eq!(b["tandemgw_peer_connected{peer=\"gw-a\"}"], 0.0);
}

#[test]
fn bad_requests_are_answered_with_what_is_wrong() {
    let lab = lab();
    let ns = &lab.unit.ns;
    for (bytes, status) in [
        (r"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "200 OK"),
        (r"HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
        (r"GET /favicon.ico HTTP/1.1\r\n\r\n", "404 Not Found"),
        (
            r"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "405 Method Not Allowed",
        ),
        (
            r"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
            "400 Bad Request",
        ),
        (r"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 Bad Request"),
    ] {
        assert_eq!(
            answer_to(ns, bytes),
            format!("HTTP/1.1 {status}"),
            "{bytes}"
        );
    }
    let long = format!(r"GET /{} HTTP/1.1\r\n", "a".repeat(20_000));
    assert_eq!(
        answer_to(ns, &long),
        "HTTP/1.1 431 Request Header Fields Too Large"
    );
    // More garbage than anybody reads.
    let _ = ns.sh(&format!(
        "head -c 3000000 /dev/urandom | timeout 20 socat -u - TCP:{ADDRESS} || true"
    ));
    let head = ns.run(&format!("curl -sS -I http://{ADDRESS}/metrics"));
    assert!(
        head.contains("text/plain; version=0.0.4; charset=utf-8"),
        "{head}"
    );
    assert_page_is_clean(&lab.unit);
}

#[test]
fn bad_clients_keep_nobody_out() {
    let lab = lab();
    let ns = &lab.unit.ns;
    // One a few bytes at a time, which is served all the same.
    let slow = bash(
        ns,
        &format!(
            r"exec 3<>{DEVICE}
              printf 'GET /metr' >&3; sleep 0.3; printf 'ics HTTP/1.1\r\n' >&3; sleep 0.3
              printf '\r\n' >&3; head -n 1 <&3"
        ),
    );
    slow.expect_stdout("answer to the slow one", |line| line.contains("200 OK"));
    // One that never ends its request is hung up on.
    let silent = bash(
        ns,
        &format!("exec 3<>{DEVICE}; printf 'GET /' >&3; cat <&3; echo over"),
    );
    // Many that ask and never read.
    let deaf = bash(
        ns,
        &format!(
            r"for n in $(seq 40); do
                exec {{fd}}<>{DEVICE}; printf 'GET /metrics HTTP/1.1\r\n\r\n' >&$fd
              done; echo held; read -r end"
        ),
    );
    deaf.expect_stdout("all requests", |line| line == "held");
    assert_page_is_clean(&lab.unit);
    // A thousand that say nothing.
    let idle = bash(
        ns,
        &format!(
            "ulimit -n 1100; for n in $(seq 1000); do exec {{fd}}<>{DEVICE}; done
             echo held; read -r end"
        ),
    );
    idle.expect_stdout("all connections", |line| line == "held");
    for _ in 0..3 {
        assert_page_is_clean(&lab.unit);
    }
    lab.lan1.run(&format!("ping -c 1 -W 5 {}", SERVER[0]));
    assert!(value(&lab.unit, "process_open_fds") < 100.0);
    silent.expect_stdout("end of the silent one", |line| line.ends_with("over"));
    drop((deaf, idle));
    assert_page_is_clean(&lab.unit);
}

#[test]
fn alerts_are_valid_and_go_off_when_they_should() {
    let host = Namespace::first("prometheus");
    let folder = configs().join("prometheus");
    let run = |what: &str, file: &str| {
        host.run(&format!("promtool {what} {}", folder.join(file).display()))
    };
    run("check rules", "alerts.yml");
    run("check config", "scrape.yml");
    run("test rules", "alerts_test.yml");
}

/// Grafana's variables are replaced, and promtool takes the queries for recording rules.
#[test]
fn the_dashboard_asks_valid_questions() {
    let lab = Lab::new();
    let text = fs::read_to_string(configs().join("grafana/tandemgw.json")).expect("it is there");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("a list of panels");
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let queries = targets
        .flatten()
        .map(|t| t["expr"].as_str().expect("a query"));
    let rules: Vec<_> = queries
        .enumerate()
        .map(|(number, query)| {
            let query = query.replace("$__rate_interval", "1m");
            serde_json::json!({ "record": format!("query:{number}"), "expr": query })
        })
        .collect();
    assert!(rules.len() > 20, "{} queries", rules.len());
    let file = lab.dir().join("queries.yml");
    // YAML takes JSON.
    let groups = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(&file, groups.to_string()).expect("writing the queries");
    lab.lan1
        .run(&format!("promtool check rules {}", file.display()));
}
