//! Tests of the shell against a kernel: each test runs alone in a process and a network namespace
//! of its own.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use tandemgw_core::config::{
    Action, Config, Forward, Group, Limits, Nat, NatPool, Node, Policy, Port, PortOffload,
    Timeouts, VirtualAddress,
};
use tandemgw_core::flow::{GroupId, PortId, Protocol};

/// Runs `ip`; returns what it prints.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    // A table that nobody has used yet is an error to `ip`, and empty to us.
    assert!(
        output.status.success() || error.contains("does not exist"),
        "{arguments}: {error}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Sets a parameter below `/proc/sys/net`.
pub fn write_sysctl(path: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
}

/// Runs `test`, which is the test called `name`, in a network namespace of its own.
pub fn in_namespace(name: &str, test: impl FnOnce()) {
    const INSIDE: &str = "TANDEMGW_TEST_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    // SAFETY: geteuid(2) takes no arguments and always succeeds.
    let is_root = unsafe { libc::geteuid() } == 0;
    let namespaces = if is_root { "-n" } else { "-rn" };
    let output = Command::new("unshare")
        .arg(namespaces)
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "in the namespace: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A gateway between `lan` and `wan`, with pools and a forward.
pub fn config() -> Config {
    let port = |name: &str, addresses: [&str; 2]| Port {
        name: name.into(),
        interface: name.into(),
        virtual_addresses: addresses
            .iter()
            .map(|address| {
                let network: IpNet = address.parse().unwrap();
                VirtualAddress {
                    addr: network.addr().into(),
                    network: network.trunc(),
                    group: GroupId(0),
                }
            })
            .collect(),
        source_check: true,
        offload: PortOffload::Tun,
        routing_headers: true,
        ..Port::default()
    };
    let pool = |name: &str, addresses: &[&str]| NatPool {
        name: name.into(),
        addresses: addresses
            .iter()
            .map(|address| address.parse::<IpAddr>().unwrap().into())
            .collect(),
        ports: (1024, 65535),
    };
    let address = |text: &str| text.parse::<IpAddr>().unwrap().into();
    Config {
        node: Node {
            name: "test".into(),
            control_socket: "/nowhere".into(),
            max_sessions: 1024,
            routing_table: 7700,
            ..Node::default()
        },
        ports: vec![
            port("lan", ["10.77.1.1/24", "fd77:1::1/64"]),
            port("wan", ["10.77.2.1/24", "fd77:2::1/64"]),
        ],
        groups: vec![Group {
            name: "default".into(),
            priority: None,
            ..Group::default()
        }],
        policies: vec![policy()],
        nat_pools: vec![pool("near", &["10.77.2.10"]), pool("far", &["192.0.2.7"])],
        link_monitors: Vec::new(),
        local_in: Vec::new(),
        multicast_policies: Vec::new(),
        multicast_joins: Vec::new(),
        forwards: vec![Forward {
            name: "web".into(),
            port: PortId(0),
            protocol: Protocol::TCP,
            external: (address("192.0.2.8"), 80),
            last_external_port: 80,
            internal: (address("10.77.2.9"), 80),
        }],
        timeouts: timeouts(),
        metrics: None,
        limits: Limits {
            sessions_per_source: Some(0),
            half_open_per_source: Some(4096),
            ports_per_source: None,
            icmp_errors_per_second: 1000,
            tcp_pickup: Some(false),
        },
        ha: None,
    }
}

fn policy() -> Policy {
    Policy {
        name: "out".into(),
        from: vec![PortId(0)],
        to: vec![PortId(1)],
        source: vec![],
        destination: vec![],
        service: vec![],
        action: Action::Accept,
        nat: Nat::Pool(1),
        log: false,
        forwarded: None,
        pickup_guarantee: None,
        mss_clamp: None,
    }
}

fn timeouts() -> Timeouts {
    Timeouts {
        tcp_established: Duration::from_secs(7440),
        tcp_transitory: Duration::from_secs(240),
        tcp_syn: Duration::from_secs(30),
        tcp_time_wait: Duration::from_secs(120),
        tcp_reset: Duration::from_secs(10),
        udp: Duration::from_secs(300),
        udp_unreplied: Duration::from_secs(120),
        icmp: Duration::from_secs(60),
        other: Duration::from_secs(600),
    }
}
