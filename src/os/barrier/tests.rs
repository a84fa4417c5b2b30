use std::time::{Duration, Instant};

use super::*;
use crate::os::netlink::Netlink;
use crate::os::packet_socket::PacketSocket;
use crate::os::test_namespace::{in_namespace, ip};

fn index(name: &str) -> u32 {
    let link = Netlink::open().unwrap().link(name).unwrap();
    link.unwrap().index
}

fn posts() -> Vec<Post> {
    let post = |port: &str| Post {
        interface: port.to_owned(),
        index: Some(index(port)),
        tun_name: format!("tgw-{port}"),
        tun: index(&format!("tgw-{port}")),
        addresses: vec!["10.7.7.7".parse().unwrap(), "fd77::7".parse().unwrap()],
    };
    ["lan", "wan"].map(post).into()
}

fn own() -> BTreeSet<IpAddr> {
    ["10.7.7.2", "fd77::2"]
        .map(|own| own.parse().unwrap())
        .into()
}

/// Whether the barrier has changed, all that there is to read taken together.
fn changed(watch: &mut BarrierWatch) -> bool {
    let mut any = false;
    loop {
        let look = watch.look();
        any |= look.changed;
        if !look.more {
            return any;
        }
    }
}

fn lab() {
    for name in ["lan", "wan", "tgw-lan", "tgw-wan"] {
        ip(&format!("link add {name} type veth peer name to-{name}"));
    }
}

fn nft(arguments: &str) -> String {
    let output = std::process::Command::new("nft").args([arguments]).output();
    let output = output.expect("nft is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn is_what_nft_shows_and_goes_without_a_trace() {
    in_namespace(|| {
        lab();
        let mut barrier = Barrier::new("gw-a");
        barrier.set(posts(), own()).unwrap();
        let shown = nft("list table inet tandemgw-gw-a");
        for line in [
            "type filter hook forward priority -350; policy accept;",
            "iif . oif @port-and-its-tun counter packets 0 bytes 0 accept",
            "iif . oif @tun-and-its-port accept",
            "oif @ports counter packets 0 bytes 0 drop",
            "iifname @names counter packets 0 bytes 0 drop",
            "type route hook output priority 1000; policy accept;",
            "meta l4proto icmp @th,192,32 @own-ipv4 accept",
            "type filter hook postrouting priority -350; policy accept;",
            "meta mark 0x74670000 oif != @tuns counter packets 0 bytes 0 drop",
            "ip saddr != @own-ipv4 accept",
            "\"lan\" . \"tgw-lan\"",
            "10.7.7.7",
            "fd77::7",
            "type filter hook output priority -350; policy accept;",
            "icmpv6 type nd-redirect counter packets 0 bytes 0 drop",
            "ip saddr @virtual-ipv4 counter packets 0 bytes 0 drop",
            "meta mark set meta mark | 0x40000000",
            "iif != @ports accept",
            "ip ttl <= 1 fib daddr type != local fib daddr type != broadcast fib daddr type != anycast fib daddr type != multicast drop",
            "meta nfproto ipv4 meta l4proto != icmp accept",
            "meta mark & 0x40000000 != 0x40000000 accept",
            "iif != @ports fib daddr type != local fib daddr type != broadcast fib daddr type != anycast fib daddr type != multicast counter packets 0 bytes 0 drop",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(nft("list table bridge tandemgw-gw-a").contains("oif @ports counter"));
        assert_eq!(barrier.examine().unwrap(), whole());
        barrier.remove().unwrap();
        assert_eq!(nft("list ruleset"), "");
        barrier.remove().unwrap();
    });
}

#[test]
fn all_that_can_be_done_to_it_is_noticed_and_put_right() {
    in_namespace(|| {
        lab();
        let mut barrier = Barrier::new("a");
        barrier.set(posts(), own()).unwrap();
        let mut watch = BarrierWatch::open("a").unwrap();
        for damage in [
            "flush ruleset",
            "delete table inet tandemgw-a",
            "flush table inet tandemgw-a",
            "flush chain inet tandemgw-a forward",
            "insert rule inet tandemgw-a forward accept",
            "add rule inet tandemgw-a forward accept",
            "flush chain inet tandemgw-a replies",
            "insert rule inet tandemgw-a replies accept",
            "flush chain inet tandemgw-a errors",
            "insert rule inet tandemgw-a errors accept",
            "flush chain inet tandemgw-a errors-astray",
            "flush chain inet tandemgw-a arrivals",
            "insert rule inet tandemgw-a arrivals accept",
            "flush chain inet tandemgw-a detour",
            "add table inet tandemgw-a { flags dormant; }",
            "add chain inet tandemgw-a other { type filter hook forward priority -500; policy drop; }",
            "delete table bridge tandemgw-a",
            "flush table bridge tandemgw-a",
            "insert rule bridge tandemgw-a forward accept",
            "add chain bridge tandemgw-a other { type filter hook forward priority -500; }",
            "add table bridge tandemgw-a { flags dormant; }",
        ] {
            assert!(!changed(&mut watch), "before {damage}");
            nft(damage);
            assert!(changed(&mut watch), "{damage}");
            let condition = barrier.examine().unwrap();
            assert!(matches!(condition, Condition::Broken(_)), "{damage}");
            barrier.restore().unwrap();
            assert_eq!(barrier.examine().unwrap(), whole());
            assert!(changed(&mut watch), "our own change is one");
        }
        // Of others' tables nothing is said.
        nft("add table inet other; add chain inet other forward");
        assert!(!changed(&mut watch));
    });
}

#[test]
fn is_for_the_interfaces_that_are_there() {
    in_namespace(|| {
        lab();
        let mut barrier = Barrier::new("a");
        barrier.set(posts(), own()).unwrap();
        ip("link del wan");
        ip("link add wan type veth peer name to-wan");
        let mut seen = Barrier::new("a");
        seen.posts = posts();
        let other = Condition::Broken("it is for other interfaces or addresses".to_owned());
        assert_eq!(seen.examine().unwrap(), other);
        barrier.set(posts(), own()).unwrap();
        assert_eq!(seen.examine().unwrap(), whole());
        // A name of the node that has changed: the old table goes, that of others stays.
        Barrier::new("b").set(posts(), own()).unwrap();
        let others = [Post {
            interface: "dmz".to_owned(),
            index: None,
            tun_name: "tgw-dmz".to_owned(),
            tun: 99,
            addresses: Vec::new(),
        }];
        Barrier::new("c").set(others.to_vec(), own()).unwrap();
        let tables = nft("list tables");
        assert!(!tables.contains("tandemgw-a"), "{tables}");
        assert!(
            tables.contains("tandemgw-b") && tables.contains("tandemgw-c"),
            "{tables}"
        );
    });
}

/// A frame with a VLAN tag is of another network; VLAN 0 only says a priority.
#[test]
fn marks_all_but_what_is_of_a_vlan() {
    in_namespace(|| {
        lab();
        ip("link set lan up");
        ip("link set to-lan up");
        let mut barrier = Barrier::new("a");
        barrier.set(posts(), own()).unwrap();
        nft(
            "add table inet seen; add chain inet seen c { type filter hook ingress device lan priority 0; }",
        );
        nft("add rule inet seen c ip daddr 10.9.9.9 meta mark & 0x40000000 != 0 counter");
        nft("add rule inet seen c ip daddr 10.9.9.9 counter");
        let sender = PacketSocket::open("to-lan").unwrap();
        let (mut marked, mut all) = (0, 0);
        for (tag, is_marked) in [
            (&[][..], true),
            (&[0x81, 0, 0, 7], false),
            (&[0x88, 0xa8, 0, 7], false),
            (&[0x81, 0, 0xe0, 0], true),
        ] {
            let ethernet = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 2], tag, &[8, 0]].concat();
            let packet = [
                0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0, 10, 9, 9, 1, 10, 9, 9, 9,
            ];
            let mut frame = [&ethernet[..], &packet].concat();
            frame.resize(60, 0);
            sender.send(&frame).unwrap();
            (marked, all) = (marked + u32::from(is_marked), all + 1);
            let begin = Instant::now();
            let shown = loop {
                let shown = nft("list table inet seen");
                if shown.contains(&format!("10.9.9.9 counter packets {all} ")) {
                    break shown;
                }
                assert!(begin.elapsed() < Duration::from_secs(20), "{shown}");
            };
            let wanted = format!("0x00000000 counter packets {marked} ");
            assert!(shown.contains(&wanted), "{tag:?}, {wanted}: {shown}");
        }
    });
}

/// More devices than one chain may have.
#[test]
fn as_many_ports_as_there_may_be_are_marked() {
    in_namespace(|| {
        let names: Vec<String> = (0..258).map(|n| format!("p{n}")).collect();
        for pair in names.chunks(2) {
            ip(&format!(
                "link add {} type veth peer name {}",
                pair[0], pair[1]
            ));
        }
        let post = |name: &String| Post {
            addresses: Vec::new(),
            interface: name.clone(),
            index: Some(index(name)),
            tun_name: format!("tgw-{name}"),
            tun: 90_000,
        };
        let mut barrier = Barrier::new("a");
        barrier
            .set(names.iter().map(post).collect(), own())
            .unwrap();
        assert_eq!(barrier.examine().unwrap(), whole());
        nft("delete chain inet tandemgw-a arrivals-1");
        assert!(matches!(barrier.examine().unwrap(), Condition::Broken(_)));
    });
}

#[test]
fn many_ports_are_no_problem() {
    in_namespace(|| {
        let post = |number: u32| Post {
            addresses: Vec::new(),
            interface: format!("eth0.{number}"),
            index: Some(1000 + number),
            tun_name: format!("tgw-v{number}"),
            tun: 9000 + number,
        };
        let posts: Vec<Post> = (0..512).map(post).collect();
        let mut barrier = Barrier::new("a");
        barrier.set(posts, own()).unwrap();
        assert_eq!(barrier.examine().unwrap(), whole());
    });
}

/// A kernel may lack the optional parts of the barrier.
#[test]
fn doctor_names_what_it_lacks() {
    in_namespace(|| {
        lab();
        let text = r#"
            node = { name = "a" }
            port = [
                { name = "lan", interface = "lan", virtual-addresses = ["10.1.0.1/16"] },
                { name = "wan", interface = "wan", virtual-addresses = ["10.2.0.1/16"] },
            ]
        "#;
        let parsed = tandemgw_core::config::parse(std::path::Path::new("a.toml"), text);
        let (config, _) = parsed.expect("a config");
        let told = || {
            let checks = crate::os::preflight::examine(&config, true);
            let mut checks = checks.into_iter().filter(|check| check.name == "barrier");
            let problems = checks.next().expect("a check of the barrier").problems;
            problems
                .into_iter()
                .map(|problem| problem.what)
                .collect::<String>()
        };
        for (removed, what) in [
            (
                "hops",
                "the kernel answers packets whose hop limit ends here",
            ),
            ("detour", "packets are not marked as they come in"),
            ("forward", "the chain is missing"),
        ] {
            Barrier::new("a").set(posts(), own()).unwrap();
            assert_eq!(told(), "");
            let chain = format!("chain inet tandemgw-a {removed}");
            nft(&format!("flush {chain}; delete {chain}"));
            let told = told();
            assert!(told.contains(what), "{told}");
        }
    });
}

/// Lets this thread see a kernel without netfilter: it gets no socket of protocol
/// `NETLINK_NETFILTER`.
fn hide_netfilter() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // Offsets in `struct seccomp_data`: the number of the call, and the lower half of its
    // arguments.
    let argument = |n: u32| 16 + 8 * n + if cfg!(target_endian = "big") { 4 } else { 0 };
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let refusal = libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32;
    let mut program = [
        step(LOAD, 0, 0, 0),
        step(IF_EQUAL, libc::SYS_socket as u32, 0, 4),
        step(LOAD, argument(0), 0, 0),
        step(IF_EQUAL, libc::AF_NETLINK as u32, 0, 2),
        step(LOAD, argument(2), 0, 0),
        step(IF_EQUAL, libc::NETLINK_NETFILTER as u32, 1, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(RETURN, refusal, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `filter` points to a program of the length that it says; both live until the calls
    // have copied them. They affect this thread only.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_kernel_without_netfilter_is_told_and_steers_all_the_same() {
    in_namespace(|| {
        lab();
        ip("link set lan up");
        hide_netfilter();
        let text = r#"
            node = { name = "a" }
            port = [{ name = "lan", interface = "lan", virtual-addresses = ["10.0.0.1/8"] }]
        "#;
        let parsed = tandemgw_core::config::parse(std::path::Path::new("a.toml"), text);
        let (config, _) = parsed.expect("a config");
        let tuns = [index("tgw-lan")];
        let netlink = Netlink::open().unwrap();
        let steering = crate::os::steering::Steering::set_up(netlink, &config, &tuns);
        let mut steering = steering.expect("it works without the barrier");
        let fault = steering.barrier_fault().expect("it says why there is none");
        assert!(fault.contains("Protocol not supported"), "{fault}");
        assert_eq!(steering.repair_barrier(), None);
        assert!(steering.barrier_fault().is_some());
        assert!(BarrierWatch::open("a").is_err());
        steering.remove().expect("the end works too");

        let checks = crate::os::preflight::examine(&config, false);
        let mut checks = checks.iter().filter(|check| check.name == "barrier");
        let problems = &checks.next().expect("a check of the barrier").problems;
        assert!(!problems[0].fatal && problems[0].what.contains("no packet filter"));
        assert!(problems[0].remedy.contains("nf_tables"));
    });
}

/// All in place, and nothing stopped.
fn whole() -> Condition {
    Condition::Whole {
        stopped: 0,
        let_pass: 0,
        led: 0,
        hops: true,
        detour: true,
    }
}
