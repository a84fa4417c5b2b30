//! Policies: refused packets, and how the sender learns of it.

use std::time::{Duration, Instant};

use crate::capture::Capture;
use crate::lab::{Lab, SERVER, bracketed};
use crate::services::{Http, family_number, whoami};

fn refusing_lab() -> Lab {
    let mut lab = Lab::new();
    lab.unit
        .prepend_policy("name = \"no\"\nservice = [\"tcp/81\", \"udp/81\"]\naction = \"reject\"");
    lab.unit
        .prepend_policy("name = \"never\"\nservice = [\"tcp/82\"]\naction = \"drop\"");
    lab.unit.start();
    lab
}

#[test]
fn rejected_tcp_is_refused_at_once() {
    let lab = refusing_lab();
    for server in SERVER {
        let start = Instant::now();
        // 7: connection refused.
        lab.lan1
            .try_run(&format!("curl -s -m 5 http://{}:81/", bracketed(server)))
            .code(7);
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{server}: took {:?}",
            start.elapsed()
        );
    }
    assert!(lab.unit.dropped("policy-reject") >= 2);
}

#[test]
fn rejected_udp_is_told_prohibited() {
    let lab = refusing_lab();
    for server in SERVER {
        let capture = Capture::start(&lab.lan1, "eth0", "icmp or icmp6");
        let address = bracketed(server);
        let family = family_number(server);
        lab.lan1.sh(&format!(
            "echo x | socat -t 0 - UDP{family}:{address}:81 || true"
        ));
        // RFC 1812, section 5.3.9, and RFC 4443, section 3.1.
        capture.expect(&["prohibited"]);
    }
}

#[test]
fn dropped_is_dropped_silently() {
    let lab = refusing_lab();
    let answers = Capture::start(&lab.lan1, "eth0", "dst host 10.77.1.100 and (tcp or icmp)");
    let leaks = Capture::start(&lab.server, "eth0", "tcp");
    // 28: timeout.
    lab.lan1
        .try_run("curl -s -m 1 http://10.77.2.100:82/")
        .code(28);
    answers.assert_empty();
    leaks.assert_empty();
    assert!(lab.unit.dropped("policy-drop") >= 1);
}

#[test]
fn no_policy_means_drop() {
    let mut lab = Lab::new();
    lab.unit.edit(
        "action = \"accept\"",
        "service = [\"tcp/80\"]\naction = \"accept\"",
    );
    lab.unit.start();
    let _http = Http::start(&lab, &lab.server, 1);
    let leaks = Capture::start(&lab.server, "eth0", "icmp or icmp6 and ip6[40] == 128");
    for server in SERVER {
        whoami(&lab.lan1, &bracketed(server));
        lab.lan1
            .try_run(&format!("ping -c 2 -i 0.1 -W 1 {server}"))
            .code(1);
    }
    leaks.assert_empty();
    assert!(lab.unit.dropped("no-policy") >= 4);
}

#[test]
fn source_of_a_policy_counts() {
    let mut lab = Lab::new();
    lab.unit.edit(
        "action =",
        "source = [\"10.77.1.100/32\", \"fd77:1::100/128\"]\naction =",
    );
    lab.unit.start();
    for server in SERVER {
        lab.lan1.run(&format!("ping -c 1 -W 2 {server}"));
        lab.lan2
            .try_run(&format!("ping -c 1 -W 1 {server}"))
            .code(1);
    }
}

#[test]
fn packets_of_no_session_open_none() {
    let lab = Lab::started();
    let leaks = Capture::start(&lab.server, "eth0", "tcp");
    // An ACK out of nowhere: nmap's way to look behind a filter.
    let ends = crate::frame::Ends {
        mac: (lab.lan1.mac("eth0"), lab.unit.ns.mac("eth0")),
        ip: ([10, 77, 1, 100], [10, 77, 2, 100]),
        port: (40000, 80),
    };
    let mut frame = ends.syn();
    frame[crate::frame::IP + 20 + 13] = 0x10;
    let socket = crate::frame::FrameSocket::open(&lab.lan1, "eth0");
    socket.send(&frame);
    socket.finish();
    leaks.assert_empty();
}
