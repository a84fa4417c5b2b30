//! The README followed by copying: its files as they are printed, its commands in their order.

use std::fs;
use std::path::Path;

use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

use crate::lab::{Lab, make_bridge, plug};
use crate::unit::Unit;

const HOST: &str = "192.168.1.77";
const SERVER: &str = "203.0.113.77";

/// The code blocks of a language under a heading of the README.
fn blocks(heading: &str, language: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("the README");
    let (_, rest) = text
        .split_once(&format!("\n## {heading}\n"))
        .expect("the heading");
    let part = rest.split("\n## ").next().unwrap_or(rest);
    let opening = format!("```{language}\n");
    let blocks = part.split(&opening).skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    blocks.map(str::to_owned).collect()
}

/// A host behind `eth0`, a server behind `eth1`, and what is between the machines.
struct Network {
    lan: Namespace,
    wan: Namespace,
    host: Namespace,
    server: Namespace,
}

impl Network {
    fn new(lab: &Lab) -> Network {
        let sibling = |name: &str| lab.sw_lan.sibling(name);
        let [lan, wan] = ["sw-eth0", "sw-eth1"].map(|name| {
            let switch = sibling(name);
            make_bridge(&switch);
            switch
        });
        let (host, server) = (sibling("host"), sibling("server"));
        plug(&lan, &host, "eth0");
        host.run(&format!("ip addr add {HOST}/24 dev eth0"));
        host.run("ip route add default via 192.168.1.1");
        plug(&wan, &server, "eth0");
        server.run(&format!("ip addr add {SERVER}/24 dev eth0"));
        Network {
            lan,
            wan,
            host,
            server,
        }
    }

    /// A machine with two interfaces, each with an address of its own, and a folder for its files.
    fn add(&self, lab: &Lab, name: &str, last: u8) -> Unit {
        let machine = lab.sw_lan.sibling(name);
        plug(&self.lan, &machine, "eth0");
        plug(&self.wan, &machine, "eth1");
        machine.run(&format!("ip addr add 192.168.1.{last}/24 dev eth0"));
        machine.run(&format!("ip addr add 203.0.113.{last}/24 dev eth1"));
        let folder = lab.dir().join(name);
        fs::create_dir(&folder).expect("a folder for its files");
        Unit::new(machine, &folder)
    }

    fn passes(&self) -> bool {
        let ping = format!("ping -c 1 -W 1 {SERVER}");
        self.host.try_run(&ping).status.success()
    }
}

/// Makes the key as the README says, with the folder of the unit for that of the README; returns
/// what it prints.
fn make_key(unit: &Unit) -> String {
    let folder = unit.config_path().parent().expect("a folder");
    let commands = blocks("A pair", "sh").concat();
    let keygen = commands.lines().find(|line| line.contains("keygen"));
    let keygen = keygen
        .expect("it makes a key")
        .replace("sudo tandemgw ", "");
    let keygen = keygen.replace("/etc/tandemgw", &folder.display().to_string());
    let printed = unit.tandemgw(&keygen).ok().stdout;
    printed.trim().to_owned()
}

/// The printed file with another key in the place of the printed one.
fn with_key(file: &str, key: &str) -> String {
    let (before, rest) = file.split_once("public-key = \"").expect("a key");
    let (_, after) = rest.split_once('"').expect("a whole string");
    format!("{before}public-key = \"{key}\"{after}")
}

#[test]
fn the_first_gateway_of_the_readme_forwards() {
    let lab = Lab::new();
    let network = Network::new(&lab);
    let mut unit = network.add(&lab, "gw", 11);
    let files = blocks("A first gateway", "toml");
    unit.config = files.first().expect("a file").clone();
    unit.write_config();
    let path = unit.config_path().display().to_string();
    unit.tandemgw(&format!("check --config {path}")).ok();
    unit.tandemgw(&format!("check --config {path} --system"))
        .ok();
    unit.start();
    wait_until("a ping passes", || network.passes());
    let seen = network.server.run("ip neigh show 203.0.113.2");
    assert!(seen.contains("lladdr"), "it is translated: {seen}");
}

#[test]
fn the_pair_of_the_readme_is_in_sync_and_hands_over() {
    let lab = Lab::new();
    let network = Network::new(&lab);
    let [mut a, mut b] =
        [("gw-1", 11), ("gw-2", 12)].map(|(name, last)| network.add(&lab, name, last));
    let to_a = format!("eth2 netns {}", a.ns.id());
    b.ns.run(&format!("ip link add eth2 type veth peer name {to_a}"));
    for (unit, address) in [(&a, "10.0.0.1/24"), (&b, "10.0.0.2/24")] {
        unit.ns.run(&format!("ip addr add {address} dev eth2"));
        unit.ns.run("ip link set eth2 up");
    }
    let [key_a, key_b] = [make_key(&a), make_key(&b)];
    let files = blocks("A pair", "toml");
    assert_eq!(files.len(), 2);
    a.config = with_key(&files[0], &key_b);
    b.config = with_key(&files[1], &key_a);
    a.start();
    b.start();
    for unit in [&a, &b] {
        wait_until("both are in sync", || {
            let status = unit.tandemgw("status");
            status.status.success() && status.stdout.contains("in sync")
        });
    }
    wait_until("a ping passes", || network.passes());
    let is_primary = |unit: &Unit| unit.status()["groups"][0]["role"] == "primary";
    let (primary, standby) = match is_primary(&a) {
        true => (&a, &b),
        false => (&b, &a),
    };
    wait_until("the standby is ready", || {
        standby.status()["groups"][0]["ready"] == true
    });
    primary.tandemgw("failover").ok();
    wait_until("the other unit is primary", || {
        is_primary(standby) && !is_primary(primary)
    });
    wait_until("a ping passes again", || network.passes());
}
