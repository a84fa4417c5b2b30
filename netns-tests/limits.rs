//! As much of everything as a config may have.

use std::fmt::Write;

use crate::lab::{Lab, SERVER};
use testkit::system::process::wait_until;

const PORTS: usize = 512;
const ADDRESSES: usize = 4096;
const POLICIES: usize = 50_000;

/// 510 ports beside those of the lab, with eight addresses each.
fn ports() -> String {
    let mut text = String::new();
    for n in 2..PORTS {
        let addresses =
            (0..8).map(|a| format!("\"10.{}.{}.{}/24\"", 100 + n / 256, n % 256, a + 1));
        let addresses: Vec<String> = addresses.collect();
        let _ = writeln!(
            text,
            "[[port]]\nname = \"v{n}\"\ninterface = \"v{n}\"\nvirtual-addresses = [{}]",
            addresses.join(", ")
        );
    }
    text
}

fn policies(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        let _ = writeln!(
            text,
            "[[policy]]\nname = \"p{n}\"\nfrom = [\"wan\"]\ndestination = [\"10.{}.{}.{}/32\"]\n\
             service = [\"tcp/443\"]\naction = \"accept\"",
            150 + (n >> 16),
            (n >> 8) & 255,
            n & 255
        );
    }
    text
}

#[test]
fn as_many_ports_and_addresses_as_there_may_be() {
    let mut lab = Lab::new();
    let links: String = (2..PORTS)
        .map(|n| {
            format!("link add v{n} type veth peer name w{n}\nlink set v{n} up\nlink set w{n} up\n")
        })
        .collect();
    let batch = lab.dir().join("links");
    std::fs::write(&batch, links).expect("writing the batch");
    lab.unit.ns.run(&format!("ip -batch {}", batch.display()));
    let own = 2 + 2;
    assert!(own + (PORTS - 2) * 8 <= ADDRESSES);
    lab.unit.config.push_str(&ports());
    lab.unit
        .config
        .push_str("[metrics]\nlisten = \"127.0.0.1:9469\"\n");
    lab.unit.launch_by("ulimit -Sn 1024; exec \"$@\"");
    lab.unit.start();
    wait_until("all ports are up", || {
        let status = lab.unit.status();
        let ports = status["ports"].as_array().expect("a list");
        assert_eq!(ports.len(), PORTS);
        ports.iter().all(|port| port["up"] == true)
    });
    // The last ones come up together, as those of a trunk do.
    let down: String = (2..66).map(|n| format!("link set v{n} down\n")).collect();
    std::fs::write(&batch, format!("{down}{}", down.replace("down", "up"))).expect("writing");
    lab.unit.ns.run(&format!("ip -batch {}", batch.display()));
    wait_until("all ports are up again", || {
        let status = lab.unit.status();
        let ports = status["ports"].as_array().expect("a list");
        ports.iter().all(|port| port["up"] == true)
    });
    for server in SERVER {
        lab.lan1.run(&format!("ping -c 1 -W 2 {server}"));
    }
    let rules = lab.unit.ns.run("ip rule");
    assert!(rules.contains("iif v511 lookup 8211"), "{rules}");
    lab.unit.stop();
    let left = lab.unit.ns.run("ip rule");
    assert!(!left.contains("iif"), "{left}");
}

#[test]
fn as_many_policies_as_there_may_be() {
    let mut lab = Lab::new();
    let few = lab.unit.config.clone();
    lab.unit.config.push_str(&policies(POLICIES - 1));
    lab.unit.start();
    for server in SERVER {
        lab.lan1.run(&format!("ping -c 1 -W 2 {server}"));
    }
    // They go and come at once.
    let many = std::mem::replace(&mut lab.unit.config, few);
    assert_eq!(lab.unit.reload()["more"], POLICIES as u64 - 1 - 1000);
    lab.unit.config = many;
    lab.unit.reload();
    lab.lan1.run(&format!("ping -c 1 -W 2 {}", SERVER[0]));
    lab.unit
        .config
        .push_str("[[policy]]\nname = \"one-more\"\naction = \"drop\"\n");
    lab.unit.write_config();
    let said = lab.unit.tandemgw("reload").code(2).stderr;
    assert!(said.contains("more than 50000"), "{said}");
}
