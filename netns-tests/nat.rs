//! Translation: mappings, port forwards, hairpins, pools.

use crate::capture::Capture;
use crate::lab::{LAN1, Lab, SERVER, SERVER2, WAN_GATEWAY, bracketed};
use crate::services::{Http, family_number, whoami};

/// The source `ADDRESS.PORT` in a line of tcpdump.
fn source(line: &str) -> &str {
    let ends = line.split(" > ").nth(1).map(|_| line).expect("a packet");
    let before = ends.rsplit_once(" > ").expect("a packet").0;
    before.rsplit(' ').next().expect("a source")
}

#[test]
fn udp_mapping_is_independent_of_the_endpoint() {
    let lab = Lab::started();
    for family in 0..2 {
        let (first, second) = (SERVER[family], SERVER2[family]);
        let capture = Capture::start(&lab.server, "eth0", "udp and dst port 9000");
        for server in [first, second] {
            lab.lan1.sh(&format!(
                "echo x | socat -u - UDP{}:{}:9000,sourceport=5555",
                family_number(server),
                bracketed(server)
            ));
        }
        let a = capture.expect(&[&format!("> {first}.9000")]);
        let b = capture.expect(&[&format!("> {second}.9000")]);
        assert_eq!(source(&a), source(&b), "RFC 4787, REQ-1:\n{a}\n{b}");
        assert!(
            source(&a).starts_with(WAN_GATEWAY[family]),
            "translated: {a}"
        );
    }
}

#[test]
fn hosts_with_the_same_source_port_do_not_collide() {
    let lab = Lab::started();
    let capture = Capture::start(&lab.server, "eth0", "udp and dst port 9000");
    for (host, text) in [(&lab.lan1, "from1"), (&lab.lan2, "from-2")] {
        host.sh(&format!(
            "printf {text} | socat -u - UDP4:{}:9000,sourceport=5555",
            SERVER[0]
        ));
    }
    let a = capture.expect(&["length 5"]);
    let b = capture.expect(&["length 6"]);
    assert_ne!(source(&a), source(&b), "two hosts share a mapping");
}

const WEB: &str = r#"
[[policy]]
name = "web-in"
from = ["wan"]
to = ["lan"]
service = ["tcp/80"]
action = "accept"

[[policy]]
name = "hairpin"
from = ["lan"]
to = ["lan"]
service = ["tcp/80"]
action = "accept"
nat = true

[[forward]]
name = "web"
port = "wan"
protocol = "tcp"
external = "10.77.2.1:8080"
internal = "10.77.1.100:80"

[[forward]]
name = "web6"
port = "wan"
protocol = "tcp"
external = "[fd77:2::1]:8080"
internal = "[fd77:1::100]:80"
"#;

fn forwarding_lab() -> Lab {
    let mut lab = Lab::new();
    lab.unit.config.push_str(WEB);
    lab.unit.start();
    lab
}

#[test]
fn port_forward_reaches_the_internal_server() {
    let lab = forwarding_lab();
    let http = Http::start(&lab, &lab.lan1, 8);
    for family in 0..2 {
        let external = format!("{}:8080", bracketed(WAN_GATEWAY[family]));
        assert_eq!(
            whoami(&lab.server, &external),
            SERVER[family],
            "the source stays"
        );
        http.assert_download(&lab.server, &external);
    }
}

#[test]
fn hairpin_reaches_the_internal_server_from_inside() {
    let lab = forwarding_lab();
    let http = Http::start(&lab, &lab.lan1, 1);
    for gateway in WAN_GATEWAY {
        let external = format!("{}:8080", bracketed(gateway));
        let seen = whoami(&lab.lan2, &external);
        assert!(
            seen.ends_with(":1") || seen.ends_with(".1"),
            "RFC 5382, REQ-8: {seen}"
        );
        http.assert_download(&lab.lan2, &external);
    }
}

#[test]
fn nothing_comes_in_without_a_forward() {
    let lab = forwarding_lab();
    let _http = Http::start(&lab, &lab.lan1, 1);
    let capture = Capture::start(&lab.lan1, "eth0", "tcp");
    lab.server.run("ip route add 10.77.1.0/24 via 10.77.2.1");
    for address in ["10.77.2.1:80", "10.77.2.1:8081", "10.77.1.100:8080"] {
        let refused = lab
            .server
            .try_run(&format!("curl -s -m 1 http://{address}/whoami"));
        assert!(
            !refused.status.success(),
            "{address} answered: {}",
            refused.stdout
        );
    }
    capture.assert_empty();
}

#[test]
fn pool_gives_the_source() {
    let mut lab = Lab::new();
    lab.unit
        .edit("nat = true", "nat = true\nnat-pool = \"pool\"");
    lab.unit.config.push_str(
        "\n[[nat-pool]]\nname = \"pool\"\naddresses = [\"10.77.2.10-10.77.2.12\"]\nports = \"2000-2999\"\n",
    );
    lab.unit.start();
    let _http = Http::start(&lab, &lab.server, 1);
    let capture = Capture::start(&lab.server, "eth0", "tcp and dst port 80");
    let seen = whoami(&lab.lan1, SERVER[0]);
    assert!(
        ["10.77.2.10", "10.77.2.11", "10.77.2.12"].contains(&seen.as_str()),
        "{seen}"
    );
    let line = capture.expect(&["Flags [S]"]);
    let port = source(&line)
        .rsplit('.')
        .next()
        .expect("a port")
        .parse::<u16>();
    assert!(
        port.is_ok_and(|p| (2000..3000).contains(&p)),
        "outside of the pool: {line}"
    );
    // The address is ours, so we answer for it.
    lab.server.run("ping -c 1 -W 2 10.77.2.10");
}

#[test]
fn sessions_are_listed() {
    let lab = Lab::started();
    let http = Http::start(&lab, &lab.server, 8);
    let download = http.start_slow_download(&lab.lan1, SERVER[0]);
    let output = lab.unit.tandemgw("sessions --json proto=tcp").ok().stdout;
    let session: serde_json::Value =
        serde_json::from_str(output.lines().next().unwrap_or_default()).expect("one JSON a line");
    assert!(
        session["src"]
            .as_str()
            .is_some_and(|s| s.starts_with(LAN1[0])),
        "{output}"
    );
    assert!(
        session["nat_src"]
            .as_str()
            .is_some_and(|s| s.starts_with(WAN_GATEWAY[0])),
        "{output}"
    );
    assert_eq!(
        (&session["in"], &session["out"]),
        (&"lan".into(), &"wan".into()),
        "{output}"
    );
    assert_eq!(session["policy"], "lan-out", "{output}");
    download.finish();
}
