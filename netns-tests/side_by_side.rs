//! Two clusters beside each other, and a router that spreads flows over their virtual addresses:
//! BGP and BFD of BIRD, as the book has it.

use std::fs;

use crate::conversation::{Conversation, line_server};
use crate::lab::{LAN1, SERVER, assign, plug, wait_for_local_routes};
use crate::pair::Pair;
use crate::unit::Unit;
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

/// BIRD on the router, with the machines of all units.
const ROUTER: &str = r#"router id 10.77.1.100;
protocol device { }
protocol kernel { ipv4 { export all; import none; }; merge paths on; }
protocol bfd { interface "eth0" { interval 100 ms; multiplier 5; }; }
template bgp unit { local 10.77.1.100 as 65000; ipv4 { import all; export none; }; bfd on; hold time 9; }
protocol bgp gw_a from unit { neighbor 10.77.1.2 as 65001; }
protocol bgp gw_b from unit { neighbor 10.77.1.3 as 65001; }
protocol bgp gw_c from unit { neighbor 10.77.1.4 as 65001; }
"#;

/// BIRD on each unit: it announces what is behind the gateway, by the virtual address.
const MEMBER: &str = r#"router id OWN;
protocol device { }
protocol static { ipv4; route 10.77.2.0/24 unreachable; }
protocol bfd { interface "eth0" { interval 100 ms; multiplier 5; }; }
filter by_virtual_address { bgp_next_hop = VIRTUAL; accept; }
protocol bgp upstream {
    local OWN as 65001;
    neighbor 10.77.1.100 as 65000;
    ipv4 { import none; export filter by_virtual_address; };
    bfd on;
    hold time 9;
}
"#;

/// The first cluster is a pair, the other one is gw-c.
struct SideBySide {
    pair: Pair,
    c: Unit,
    _routing: Vec<Process>,
}

impl SideBySide {
    fn started() -> SideBySide {
        let mut pair = Pair::new();
        let lab = &pair.lab;
        let ns = lab.sw_lan.sibling("gw-c");
        plug(&lab.sw_lan, &ns, "eth0");
        assign(&ns, "eth0", ["10.77.1.4", "fd77:1::4"]);
        plug(&lab.sw_wan, &ns, "eth1");
        assign(&ns, "eth1", ["10.77.2.4", "fd77:2::4"]);
        wait_for_local_routes(&ns);
        let mut c = Unit::new(ns, lab.dir());
        c.edit(
            "10.77.1.1/24\", \"fd77:1::1/64",
            "10.77.1.11/24\", \"fd77:1::11/64",
        );
        c.edit(
            "10.77.2.1/24\", \"fd77:2::1/64",
            "10.77.2.11/24\", \"fd77:2::11/64",
        );
        c.start();
        pair.start();
        let lab = &pair.lab;
        let router = &lab.lan1;
        // By addresses and ports.
        router.sysctl("ipv4/fib_multipath_hash_policy", "1");
        router.run("ip route del default via 10.77.1.1");
        let mut routing = vec![bird(lab.dir(), router, ROUTER)];
        for (unit, own, virtual_) in [
            (pair.a(), "10.77.1.2", "10.77.1.1"),
            (pair.b(), "10.77.1.3", "10.77.1.1"),
            (&c, "10.77.1.4", "10.77.1.11"),
        ] {
            let config = MEMBER.replace("OWN", own).replace("VIRTUAL", virtual_);
            routing.push(bird(lab.dir(), &unit.ns, &config));
        }
        let all = SideBySide {
            pair,
            c,
            _routing: routing,
        };
        all.wait_for_next_hops(&["10.77.1.1", "10.77.1.11"]);
        all
    }

    /// Waits until the router sends to these addresses and no others.
    #[track_caller]
    fn wait_for_next_hops(&self, wanted: &[&str]) {
        wait_until(&format!("the next hops are {wanted:?}"), || {
            let routes = self.pair.lab.lan1.run("ip route show 10.77.2.0/24");
            let mut words = routes.split_whitespace().peekable();
            let mut hops = Vec::new();
            while let Some(word) = words.next() {
                hops.extend((word == "via").then(|| words.peek().copied()).flatten());
            }
            hops.sort_unstable();
            hops == wanted
        });
    }

    /// Connections from these source ports.
    #[track_caller]
    fn connect(&self, ports: std::ops::Range<u16>) -> Vec<(u16, Conversation)> {
        let start = |port| Conversation::start_from(&self.pair.lab.lan1, SERVER[0], port);
        ports.map(|port| (port, start(port))).collect()
    }

    /// Whether a connection goes through gw-c.
    fn is_by_c(&self, port: u16) -> bool {
        let source = format!("{}:{port}", LAN1[0]);
        let sessions = self.c.sessions("proto=tcp");
        sessions
            .iter()
            .any(|session| session["src"] == source.as_str())
    }
}

fn bird(dir: &std::path::Path, ns: &Namespace, config: &str) -> Process {
    let file = |end: &str| {
        dir.join(format!("{}.{end}", ns.name()))
            .display()
            .to_string()
    };
    fs::write(file("bird"), config).expect("writing a file");
    ns.spawn(&format!(
        "bird -f -c {} -s {}",
        file("bird"),
        file("birdctl")
    ))
}

#[test]
fn clusters_beside_each_other_share_flows_and_one_may_die() {
    let mut all = SideBySide::started();
    let _server = line_server(&all.pair.lab.server, SERVER[0]);
    let (by_c, mut by_pair): (Vec<_>, Vec<_>) = all
        .connect(20_000..20_032)
        .into_iter()
        .partition(|(port, _)| all.is_by_c(*port));
    assert!(
        !by_c.is_empty() && !by_pair.is_empty(),
        "{} by gw-c, {} by the pair",
        by_c.len(),
        by_pair.len()
    );
    // A unit of a cluster dies: its sessions go on, and the router has nothing to do with it.
    all.pair.a().wait_for_ready_peer();
    all.pair.a_mut().kill();
    all.pair.wait_for_takeover_by_b(1);
    by_pair.iter_mut().for_each(|(_, it)| it.go_on());
    all.wait_for_next_hops(&["10.77.1.1", "10.77.1.11"]);
    // A whole cluster is gone, without a loss of carrier.
    let port = crate::lab::switch_port(&all.c.ns, "eth0");
    all.pair
        .lab
        .sw_lan
        .run(&format!("ip link set {port} nomaster"));
    all.wait_for_next_hops(&["10.77.1.1"]);
    let more = all.connect(21_000..21_016);
    by_pair.iter_mut().for_each(|(_, it)| it.go_on());
    for (_, conversation) in by_pair.into_iter().chain(more) {
        conversation.finish();
    }
}
