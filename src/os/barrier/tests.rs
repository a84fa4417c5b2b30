use super::*;
use crate::os::netlink::Netlink;
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
    };
    ["lan", "wan"].map(post).into()
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
        barrier.set(posts()).unwrap();
        let shown = nft("list table inet tandemgw-gw-a");
        for line in [
            "type filter hook forward priority -350; policy accept;",
            "iif . oif @port-and-its-tun accept",
            "iif @tuns oif @ports accept",
            "oif @ports counter packets 0 bytes 0 drop",
            "iifname @names counter packets 0 bytes 0 drop",
            "\"lan\" . \"tgw-lan\"",
        ] {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(nft("list table bridge tandemgw-gw-a").contains("oif @ports counter"));
        assert_eq!(barrier.examine().unwrap(), Condition::Whole { stopped: 0 });
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
        barrier.set(posts()).unwrap();
        let mut watch = BarrierWatch::open("a").unwrap();
        for damage in [
            "flush ruleset",
            "delete table inet tandemgw-a",
            "flush table inet tandemgw-a",
            "flush chain inet tandemgw-a forward",
            "insert rule inet tandemgw-a forward accept",
            "add rule inet tandemgw-a forward accept",
            "add table inet tandemgw-a { flags dormant; }",
        ] {
            assert!(!watch.look().changed, "before {damage}");
            nft(damage);
            assert!(watch.look().changed, "{damage}");
            let condition = barrier.examine().unwrap();
            assert!(matches!(condition, Condition::Broken(_)), "{damage}");
            barrier.restore().unwrap();
            assert_eq!(barrier.examine().unwrap(), Condition::Whole { stopped: 0 });
            assert!(watch.look().changed, "our own change is one");
        }
        // Of others' tables nothing is said.
        nft("add table inet other; add chain inet other forward");
        assert!(!watch.look().changed);
    });
}

#[test]
fn is_for_the_interfaces_that_are_there() {
    in_namespace(|| {
        lab();
        let mut barrier = Barrier::new("a");
        barrier.set(posts()).unwrap();
        ip("link del wan");
        ip("link add wan type veth peer name to-wan");
        let mut seen = Barrier::new("a");
        seen.posts = posts();
        let other = Condition::Broken("it is for other interfaces".to_owned());
        assert_eq!(seen.examine().unwrap(), other);
        barrier.set(posts()).unwrap();
        assert_eq!(seen.examine().unwrap(), Condition::Whole { stopped: 0 });
        // A name of the node that has changed: the old table goes, that of others stays.
        Barrier::new("b").set(posts()).unwrap();
        let others = [Post {
            interface: "dmz".to_owned(),
            index: None,
            tun_name: "tgw-dmz".to_owned(),
            tun: 99,
        }];
        Barrier::new("c").set(others.to_vec()).unwrap();
        let tables = nft("list tables");
        assert!(!tables.contains("tandemgw-a"), "{tables}");
        assert!(
            tables.contains("tandemgw-b") && tables.contains("tandemgw-c"),
            "{tables}"
        );
    });
}

#[test]
fn many_ports_are_no_problem() {
    in_namespace(|| {
        let post = |number: u32| Post {
            interface: format!("eth0.{number}"),
            index: Some(1000 + number),
            tun_name: format!("tgw-v{number}"),
            tun: 9000 + number,
        };
        let posts: Vec<Post> = (0..512).map(post).collect();
        let mut barrier = Barrier::new("a");
        barrier.set(posts).unwrap();
        assert_eq!(barrier.examine().unwrap(), Condition::Whole { stopped: 0 });
    });
}
