//! Checksums and segmentation are right, whatever the interfaces and the gateway leave to each
//! other.

use crate::lab::{Lab, SERVER, bracketed};
use crate::services::{self, Http};

/// ethtool -K options, from all on to all off.
const COMBINATIONS: [&str; 6] = [
    "tx on",
    "tso off",
    "gso off tso off",
    "gro off",
    "tx off",
    "tx off rx off gro off gso off",
];

fn assert_traffic(lab: &Lab, http: &Http) {
    for server in SERVER {
        http.assert_download(&lab.lan1, &bracketed(server));
        services::assert_upload(lab, &lab.lan1, &lab.server, server);
    }
}

fn set_offloads(lab: &Lab, options: &str) {
    let interfaces = [
        (&lab.lan1, "eth0"),
        (&lab.unit.ns, "eth0"),
        (&lab.unit.ns, "eth1"),
        (&lab.server, "eth0"),
    ];
    for (host, interface) in interfaces {
        host.run(&format!("ethtool -K {interface} {options}"));
    }
}

#[test]
fn every_combination_on_the_interfaces() {
    let lab = Lab::started();
    let http = Http::start(&lab, &lab.server, 8);
    for options in COMBINATIONS {
        set_offloads(&lab, options);
        assert_traffic(&lab, &http);
    }
}

#[test]
fn plain_mode_on_every_combination() {
    let mut lab = Lab::new();
    for port in ["lan", "wan"] {
        let name = format!("name = \"{port}\"");
        lab.unit.edit(&name, &format!("{name}\noffload = false"));
    }
    lab.unit.start();
    let status = lab.unit.status();
    let ports = status["ports"].as_array().expect("ports");
    assert!(
        ports.len() == 2 && ports.iter().all(|port| port["offload"] == "none"),
        "{status}"
    );
    let http = Http::start(&lab, &lab.server, 8);
    for options in COMBINATIONS {
        set_offloads(&lab, options);
        assert_traffic(&lab, &http);
    }
}

#[test]
fn offload_is_on_and_shown() {
    let lab = Lab::started();
    let status = lab.unit.status();
    let ports = status["ports"].as_array().expect("ports");
    assert_eq!(ports.len(), 2, "{status}");
    assert!(
        ports.iter().all(|port| port["offload"] != "none"),
        "{status}"
    );
}
