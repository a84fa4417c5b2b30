//! `tandemgw doctor`: problems are named with a remedy, and what is right is listed.

use serde_json::Value;

use crate::fast_path::want_ebpf;
use crate::lab::Lab;
use crate::pair::Pair;
use crate::unit::Unit;
use testkit::system::namespace::is_root_of_the_machine;
use testkit::system::process::wait_until;

/// A breakage, its repair, and the report: check, result, parts of the finding and of the remedy.
type Breakage = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

const MACHINE: &[Breakage] = &[
    (
        "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter",
        "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter",
        "rp-filter",
        "error",
        "all.rp_filter is 1",
        "sysctl -w",
    ),
    (
        "echo 1 > /proc/sys/net/ipv4/conf/eth0/forwarding",
        "echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding",
        "forwarding",
        "warning",
        "past all policies",
        "ipv4/conf/eth0/forwarding",
    ),
    (
        "tc qdisc add dev eth1 clsact; tc filter add dev eth1 egress bpf da bytecode '1,6 0 0 0'",
        "tc qdisc del dev eth1 clsact",
        "filters",
        "warning",
        "filters of tc see the packets of eth1",
        "tc qdisc del dev eth1 clsact",
    ),
    (
        "tc qdisc add dev eth1 root pfifo limit 0; ping -c 1 -W 0.1 10.77.2.100 || true",
        "tc qdisc del dev eth1 root",
        "filters",
        "warning",
        "the queue of eth1 (pfifo) has dropped all that was sent",
        "tc qdisc del dev eth1 root",
    ),
    (
        "ip xfrm policy add dir fwd src 10.77.0.0/16 dst 10.77.0.0/16 action block",
        "ip xfrm policy flush",
        "filters",
        "warning",
        "a policy of IPsec blocks",
        "ip xfrm policy",
    ),
    (
        "nft add table netdev n; \
         nft 'add chain netdev n in { type filter hook ingress device eth0 priority 0; policy drop; }'",
        "nft delete table netdev n",
        "firewall",
        "warning",
        "chain in of table netdev n drops what a port brings",
        "nft list chain netdev n in",
    ),
    (
        "nft add table inet f; \
         nft 'add chain inet f pre { type filter hook prerouting priority -300; policy drop; }'",
        "nft delete table inet f",
        "firewall",
        "warning",
        "chain pre of table inet f drops what the gateway forwards",
        "insert rule inet f pre iifname",
    ),
    (
        "nft add table inet f; \
         nft 'add chain inet f input { type filter hook input priority 0; policy drop; }'; \
         nft add rule inet f input ct state established,related accept",
        "nft delete table inet f",
        "firewall",
        "warning",
        "chain input of table inet f drops neighbour discovery",
        "nd-neighbor-advert",
    ),
    (
        "nft add table arp a; \
         nft 'add chain arp a o { type filter hook output priority 0; policy drop; }'",
        "nft delete table arp a",
        "firewall",
        "warning",
        "chain o of table arp a drops ARP",
        "insert rule arp a o accept",
    ),
    (
        "ip link set eth0 mtu 1400",
        "ip link set eth0 mtu 1500",
        "mtu",
        "warning",
        "lan 1400, wan 1500",
        "ip link set",
    ),
    (
        "ip addr add 10.77.1.1/24 dev eth0",
        "ip addr del 10.77.1.1/24 dev eth0",
        "virtual-addresses",
        "error",
        "10.77.1.1 is an address",
        "ip addr del",
    ),
    (
        "ip link set eth1 down",
        "ip link set eth1 up; ip -6 addr add fd77:2::2/64 dev eth1 nodad 2> /dev/null || true",
        "port wan",
        "warning",
        "eth1 is down",
        "ip link set eth1 up",
    ),
    (
        "ip rule add priority 7700 lookup 99",
        "ip rule del priority 7700",
        "routing-table",
        "error",
        "7700",
        "routing-table",
    ),
    (
        "nft add table ip f; nft 'add chain ip f forward { type filter hook forward priority 0; policy drop; }'",
        "nft delete table ip f",
        "firewall",
        "warning",
        "drops what the gateway forwards",
        "tgw-*",
    ),
    (
        "nft add table ip n; nft 'add chain ip n out { type nat hook postrouting priority 100; }'; nft add rule ip n out masquerade",
        "nft delete table ip n",
        "conntrack",
        "warning",
        "chain out of table ip n",
        "notrack",
    ),
    (
        "ethtool -K eth1 gro on; ethtool -K eth0 gro off",
        "ethtool -K eth0 gro on",
        "offload",
        "warning",
        "eth0 without generic receive offload",
        "ethtool -K eth0 gro on",
    ),
    (
        "mkdir /run/tandemgw; mount -t tmpfs -o ro none /run/tandemgw",
        "umount /run/tandemgw",
        "control-socket",
        "error",
        "no socket can be created in /run/tandemgw",
        "control-socket",
    ),
    (
        "mount -t tmpfs none /dev/net 2> /dev/null || mount -t tmpfs none /dev",
        "umount /dev/net 2> /dev/null || umount /dev",
        "tun",
        "error",
        "/dev/net/tun can't be opened",
        "modprobe tun",
    ),
];

/// The same of a pair; `KEY` is the key's path.
const LINKS: &[Breakage] = &[
    (
        "chmod 644 KEY",
        "chmod 600 KEY",
        "key",
        "error",
        "can be read by others",
        "keygen",
    ),
    (
        "mv KEY KEY.away",
        "mv KEY.away KEY",
        "key",
        "error",
        "can't be opened",
        "keygen",
    ),
    (
        "ip link set sync0 mtu 1200",
        "ip link set sync0 mtu 1500",
        "link sync0",
        "error",
        "MTU of 1200",
        "ip link set sync0 mtu 1500",
    ),
    (
        "ip link set sync0 mtu 1227",
        "ip link set sync0 mtu 1500",
        "link sync0",
        "error",
        "MTU of 1227: it needs 1228",
        "ip link set sync0 mtu 1500",
    ),
    (
        "ip link set sync0 mtu 1228",
        "ip link set sync0 mtu 1500",
        "link sync0",
        "warning",
        "MTU of 1228",
        "ip link set sync0 mtu 1500",
    ),
    (
        "ip addr del 10.77.9.1/24 dev sync0; ip addr add 10.77.9.1/24 dev eth0",
        "ip addr del 10.77.9.1/24 dev eth0; ip addr add 10.77.9.1/24 dev sync0",
        "link sync0",
        "warning",
        "10.77.9.1, which is on eth0",
        "ip addr add 10.77.9.1",
    ),
    (
        "ip route add 10.77.9.2 dev eth0",
        "ip route del 10.77.9.2 dev eth0",
        "peer gw-b",
        "warning",
        "leads out of eth0, not of sync0",
        "in the order of the links",
    ),
    (
        "ip link set sync0 down",
        "ip link set sync0 up",
        "link sync0",
        "warning",
        "sync0 is down",
        "ip link set sync0 up",
    ),
];

/// The results as `(check, result, found, remedy)`, and whether the machine is fit, which the exit
/// code must say too.
pub struct Findings {
    all: Vec<[String; 4]>,
    is_fit: bool,
}

#[track_caller]
pub fn doctor(unit: &Unit) -> Findings {
    unit.write_config();
    let config = unit.config_path().display();
    let finished = unit.tandemgw(&format!("doctor --json --config {config}"));
    let json: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|error| {
        panic!("not JSON: {error}\n{}{}", finished.stdout, finished.stderr)
    });
    let is_fit = json["fit"] == true;
    finished.code(if is_fit { 0 } else { 2 });
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let checks = json["checks"].as_array().expect("a list").iter();
    let all = checks.map(|c| [&c["check"], &c["result"], &c["found"], &c["remedy"]].map(text));
    Findings {
        all: all.collect(),
        is_fit,
    }
}

impl Findings {
    /// Fails unless `check` gave `result`, with texts that contain these parts.
    #[track_caller]
    fn expect(&self, check: &str, result: &str, found: &str, remedy: &str) {
        let is_it = |[a, b, c, d]: &&[String; 4]| {
            a == check && b == result && c.contains(found) && d.contains(remedy)
        };
        assert!(
            self.all.iter().any(|finding| is_it(&finding)),
            "no {result} of {check} with `{found}` and `{remedy}`: {:#?}",
            self.all
        );
        assert_eq!(
            self.is_fit,
            self.all.iter().all(|[_, result, ..]| result != "error")
        );
    }

    #[track_caller]
    pub fn expect_ok(&self, check: &str, found: &str) {
        self.expect(check, "ok", found, "");
    }
}

/// A chain that knows neighbour discovery, and a place for filters without any, are no problem.
#[test]
fn what_drops_nothing_that_matters_is_no_problem() {
    let lab = Lab::started();
    lab.unit.ns.sh("tc qdisc add dev eth1 clsact; nft add table inet f; \
        nft 'add chain inet f input { type filter hook input priority 0; policy drop; }'; \
        nft add rule inet f input icmpv6 type '{ nd-neighbor-solicit, nd-neighbor-advert }' accept");
    let found = doctor(&lab.unit);
    found.expect_ok("filters", "no program");
    found.expect_ok("firewall", "no chain drops");
    let program = testkit::system::xdp::drop_all(&lab.unit.ns, "eth1");
    doctor(&lab.unit).expect("filters", "warning", "XDP program is at eth1", "xdp off");
    drop(program);
}

#[test]
fn a_good_machine_is_fit_before_the_start_and_beside_the_gateway() {
    let mut lab = Lab::new();
    for is_running in [false, true] {
        let found = doctor(&lab.unit);
        assert!(found.is_fit);
        for (check, text) in [
            ("kernel", "Linux "),
            ("capabilities", "CAP_NET_ADMIN, CAP_NET_RAW"),
            ("tun", "can be opened"),
            ("rp-filter", "rp_filter is 0"),
            ("firewall", "no chain drops"),
            ("conntrack", ""),
            ("routing-table", "7700 to 7701"),
            ("virtual-addresses", "none of the 4"),
            ("port lan", "eth0 up, MTU 1500, 10.77.1.2/24"),
            ("port wan", "eth1 up"),
            (
                "forwarding",
                if is_running {
                    "on for the ports"
                } else {
                    "off"
                },
            ),
            ("mtu", "lan 1500, wan 1500"),
            (
                "control-socket",
                if is_running {
                    "answers"
                } else {
                    "can be created"
                },
            ),
        ] {
            found.expect_ok(check, text);
        }
        if !is_running {
            lab.unit.start();
        } else {
            found.expect_ok("gateway", "gw-a runs");
        }
    }
    let config = lab.unit.config_path().display().to_string();
    let said = lab.unit.tandemgw(&format!("doctor --config {config}")).ok();
    assert!(said.stdout.contains("ok       port lan"), "{}", said.stdout);
    assert!(said.stdout.contains("\nfit"), "{}", said.stdout);
    assert!(!said.stdout.contains('\x1b'));
}

#[test]
fn what_is_wrong_with_the_machine_is_named_with_its_remedy() {
    let lab = Lab::new();
    for (breakage, repair, check, result, found, remedy) in MACHINE {
        lab.unit.ns.sh(breakage);
        doctor(&lab.unit).expect(check, result, found, remedy);
        lab.unit.ns.sh(repair);
    }
    let left = doctor(&lab.unit);
    let bad = left
        .all
        .iter()
        .filter(|[check, result, ..]| result != "ok" && check != "clock");
    assert_eq!(bad.count(), 0, "after all repairs: {:#?}", left.all);
    // check --system says the same.
    lab.unit.ns.sh("ip link set eth0 mtu 1400");
    let config = lab.unit.config_path().display();
    let said = lab
        .unit
        .tandemgw(&format!("check --system --config {config}"))
        .ok();
    assert!(
        said.stderr
            .contains("warning: the ports have different MTUs"),
        "{}",
        said.stderr
    );
}

#[test]
fn without_rights_and_with_a_wrong_interface_it_is_not_fit() {
    let mut lab = Lab::new();
    lab.unit.write_config();
    let line = format!(
        "setpriv --bounding-set=-all --inh-caps=-all {} doctor --config {}",
        env!("CARGO_BIN_EXE_tandemgw"),
        lab.unit.config_path().display()
    );
    let said = lab.unit.ns.try_run(&line).code(2).stdout;
    assert!(said.contains("error    capabilities"), "{said}");
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    assert!(said.contains("not fit"), "{said}");
    lab.unit.edit("\"eth0\"", "\"eht0\"");
    doctor(&lab.unit).expect(
        "port lan",
        "error",
        "no interface eht0",
        "did you mean eth0?",
    );
}

#[test]
fn the_pair_is_looked_at_before_the_start() {
    let mut pair = Pair::new();
    let found = doctor(pair.a());
    assert!(found.is_fit);
    found.expect_ok("key", "public key");
    found.expect_ok("link sync0", "sync0 up, MTU 1500, 10.77.9.1/24, UDP 7030");
    found.expect_ok(
        "peer gw-b",
        "10.77.9.2 answers on sync0; its gateway does not run yet",
    );

    let key = pair.lab.dir().join("gw-a.key").display().to_string();
    let ns = &pair.a().ns;
    for (breakage, repair, check, result, found, remedy) in LINKS {
        ns.sh(&breakage.replace("KEY", &key));
        doctor(pair.a()).expect(check, result, found, remedy);
        ns.sh(&repair.replace("KEY", &key));
    }
    pair.cut(0);
    pair.a().ns.run("ip neigh flush dev sync0");
    doctor(pair.a()).expect(
        "peer gw-b",
        "warning",
        "nobody on sync0 answers for 10.77.9.2",
        "start the peer",
    );
    pair.mend(0);

    let listener = pair
        .a()
        .ns
        .spawn("socat -u UDP4-RECV:7030,bind=10.77.9.1 -");
    wait_until("the port is in use", || {
        pair.a().ns.run("ss -lun").contains("10.77.9.1:7030")
    });
    doctor(pair.a()).expect(
        "link sync0",
        "error",
        "UDP 10.77.9.1:7030 can't be used",
        "ss -lunp",
    );
    drop(listener);

    let own = pair
        .a()
        .tandemgw(&format!("pubkey --key {key}"))
        .ok()
        .stdout;
    let config = pair.a().config.clone();
    let theirs = config.split("public-key = \"").nth(1).expect("a key");
    let theirs = theirs.split('"').next().expect("its end").to_owned();
    pair.a_mut().edit(&theirs, own.trim());
    doctor(pair.a()).expect(
        "key",
        "error",
        "`public-key` of peer gw-b is that of this node",
        "pubkey",
    );
}

#[test]
fn a_running_gateway_tells_of_its_peers() {
    let mut pair = Pair::started();
    doctor(pair.a()).expect_ok("peer gw-b", "connected and in sync");
    pair.b.kill();
    wait_until("gw-b is missed", || pair.a().peer()["connected"] == false);
    doctor(pair.a()).expect(
        "peer gw-b",
        "warning",
        "no connection to gw-b",
        "start the gateway on gw-b",
    );
}

#[test]
fn gateway_of_another_namespace_is_no_concern() {
    let mut pair = Pair::new();
    pair.a_mut().start();
    let b = pair.b();
    b.write_config();
    let config = b.config_path().display();
    let said = b.tandemgw(&format!("doctor --config {config}"));
    assert!(!said.stdout.contains("in use"), "{}", said.stdout);
    assert!(!said.stderr.contains("in use"), "{}", said.stderr);
    // Of this one it is.
    let a = pair.a();
    let config = a.config_path().display();
    let other = a.tandemgw(&format!("run --config {config}")).code(2).stderr;
    assert!(
        other.contains(&format!("in use by process {}", a.pid())),
        "{other}"
    );
}

/// What the fast path needs, and what it skips.
#[test]
fn chains_that_the_fast_path_skips_are_named() {
    let mut lab = Lab::new();
    want_ebpf(&mut lab.unit);
    if !is_root_of_the_machine() {
        doctor(&lab.unit).expect("fast-path", "warning", "can't be loaded", "CAP_BPF");
        return;
    }
    doctor(&lab.unit).expect_ok("fast-path", "the kernel can forward");
    lab.unit.ns.sh("nft add table inet f; \
        nft 'add chain inet f gate { type filter hook forward priority 0; policy accept; }'; \
        nft add rule inet f gate tcp dport 25 drop");
    doctor(&lab.unit).expect(
        "fast-path",
        "warning",
        "skip the nftables chain gate of table inet f",
        "policies",
    );
    for (cause, text) in [
        (
            "nft 'add chain inet f early { type filter hook prerouting priority 0; }'; \
             nft add rule inet f early ct state invalid drop",
            "skip the nftables chain early of table inet f",
        ),
        (
            "nft add table netdev f; \
             nft 'add chain netdev f wire { type filter hook ingress device eth1 priority 0; }'; \
             nft add rule netdev f wire udp dport 99 drop",
            "skip the nftables chain wire of table netdev f",
        ),
        (
            "nft 'add chain inet f out { type nat hook postrouting priority 100; }'; \
             nft add rule inet f out oifname eth1 masquerade",
            "skip the nftables chain out of table inet f",
        ),
        ("ip rule add from 10.77.1.0/24 lookup 100", "(ip rule)"),
        (
            "ip xfrm policy add dst 10.99.0.0/16 dir out",
            "(ip xfrm policy)",
        ),
    ] {
        lab.unit.ns.sh(cause);
        doctor(&lab.unit).expect("fast-path", "warning", text, "offload = \"tun\"");
    }
}
