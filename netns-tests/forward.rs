//! Ordinary traffic passes, of both families, and the gateway looks like one router.

use crate::lab::{LAN_GATEWAY, LAN1, Lab, SERVER, WAN_GATEWAY, bracketed};
use crate::services::{self, Http, whoami};

#[test]
fn ping_passes_and_virtual_addresses_answer() {
    let lab = Lab::started();
    for target in SERVER.iter().chain(&LAN_GATEWAY).chain(&WAN_GATEWAY) {
        lab.lan1.run(&format!("ping -c 3 -i 0.05 -W 2 {target}"));
    }
    for target in WAN_GATEWAY {
        lab.server.run(&format!("ping -c 3 -i 0.05 -W 2 {target}"));
    }
}

#[test]
fn server_sees_the_virtual_address() {
    let lab = Lab::started();
    let _http = Http::start(&lab, &lab.server, 1);
    for (server, gateway) in SERVER.iter().zip(WAN_GATEWAY) {
        assert_eq!(whoami(&lab.lan1, &bracketed(server)), gateway);
        assert_eq!(whoami(&lab.lan2, &bracketed(server)), gateway);
    }
}

#[test]
fn big_download_arrives_whole() {
    let lab = Lab::started();
    let http = Http::start(&lab, &lab.server, 64);
    for server in SERVER {
        http.assert_download(&lab.lan1, &bracketed(server));
    }
}

#[test]
fn big_upload_arrives_whole() {
    let lab = Lab::started();
    for server in SERVER {
        services::assert_upload(&lab, &lab.lan1, &lab.server, server);
    }
}

#[test]
fn iperf_tcp_parallel_and_reverse() {
    let lab = Lab::started();
    let _server = services::iperf_server(&lab.server);
    for server in SERVER {
        for options in ["", "-P 4", "-R", "-P 4 -R"] {
            let report = services::iperf(&lab.lan1, &format!("-c {server} {options}"));
            let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
            assert!(rate > Some(20e6), "{server} {options}: {rate:?} bit/s");
        }
    }
}

#[test]
fn iperf_udp_without_loss_to_speak_of() {
    let lab = Lab::started();
    let _server = services::iperf_server(&lab.server);
    for server in SERVER {
        // A receiver that has no CPU for a while loses some too, so the best of a few runs counts.
        let runs = (0..5).map(|_| {
            let report = services::iperf(&lab.lan1, &format!("-c {server} -u -b 20M -l 1200"));
            let lost = report["end"]["sum"]["lost_percent"].as_f64();
            lost.unwrap_or_else(|| panic!("{server}: no report of losses:\n{report:#}"))
        });
        let mut losses = Vec::new();
        let is_good = runs
            .inspect(|lost| losses.push(*lost))
            .any(|lost| lost < 5.0);
        assert!(is_good, "{server}: lost in percent: {losses:?}");
    }
}

#[test]
fn traceroute_shows_one_hop_the_virtual_address() {
    expect_one_hop(&Lab::started());
}

/// Traces the route from the LAN to the server: the gateway is one hop, by its virtual address.
#[track_caller]
pub fn expect_one_hop(lab: &Lab) {
    for (family, options) in [
        (0, "-4"),
        (0, "-4 -I"),
        (0, "-4 -T -p 80"),
        (1, "-6"),
        (1, "-6 -I"),
    ] {
        let (server, gateway) = (SERVER[family], LAN_GATEWAY[family]);
        // -N 1: one probe at a time, or rate limits of the hosts' kernels eat answers.
        let text = lab.lan1.run(&format!(
            "traceroute -n -q 1 -N 1 -w 2 -m 5 {options} {server}"
        ));
        let hops: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(hops.len(), 2, "{options}: the gateway is one hop:\n{text}");
        assert!(
            hops[0].split_whitespace().any(|word| word == gateway),
            "{options}:\n{text}"
        );
        assert!(hops[1].contains(server), "{options}:\n{text}");
    }
    for (server, gateway) in SERVER.into_iter().zip(LAN_GATEWAY) {
        for options in ["", "--udp"] {
            let text = lab
                .lan1
                .run(&format!("mtr -n -r -c 3 -i 0.3 -m 5 {options} {server}"));
            let hops: Vec<&str> = text.lines().filter(|line| line.contains("|--")).collect();
            let is_at = |at: usize, host: &str| {
                hops.get(at)
                    .is_some_and(|line| line.contains(&format!("-- {host} ")))
            };
            assert_eq!(hops.len(), 2, "{text}");
            assert!(is_at(0, gateway) && is_at(1, server), "{text}");
        }
    }
}

#[test]
fn dns_over_udp_and_tcp() {
    let lab = Lab::started();
    let _dns = services::dns_server(&lab.server);
    for server in SERVER {
        for transport in ["+notcp", "+tcp"] {
            let answer = lab.lan1.run(&format!(
                "dig +short +time=3 +tries=1 {transport} @{server} test.example A"
            ));
            assert_eq!(answer.trim(), "192.0.2.53", "{server} {transport}");
        }
    }
}

#[test]
fn without_nat_addresses_stay() {
    let mut lab = Lab::new();
    lab.unit.edit("nat = true", "nat = false");
    lab.unit.start();
    for (network, gateway) in [
        ("10.77.1.0/24", WAN_GATEWAY[0]),
        ("fd77:1::/64", WAN_GATEWAY[1]),
    ] {
        lab.server
            .run(&format!("ip route add {network} via {gateway}"));
    }
    let _http = Http::start(&lab, &lab.server, 1);
    for (server, client) in SERVER.iter().zip(LAN1) {
        assert_eq!(whoami(&lab.lan1, &bracketed(server)), client);
    }
}
