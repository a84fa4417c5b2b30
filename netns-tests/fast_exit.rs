//! Beside the fast path, what the process has forwarded leaves past the packet filter of the
//! kernel, if nobody else has a say there: and no host can tell.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use tandemgw_core::flow::{Addr, Family};
use testkit::lab::ip;
use testkit::packets::{Pkt, SYN, fragments, tcp, udp};
use testkit::system::namespace::{Namespace, is_root_of_the_machine};
use testkit::system::process::wait_until;

use crate::capture::Capture;
use crate::fast_path::started_with;
use crate::frame::FrameSocket;
use crate::lab::{LAN1, Lab, SERVER, bracketed};

const DATAGRAMS: u64 = 20;

/// Packets that the kernel of the gateway has forwarded through its stack.
fn through_the_stack(lab: &Lab) -> u64 {
    let text = lab
        .unit
        .ns
        .run("nstat -asz IpForwDatagrams Ip6OutForwDatagrams");
    let counts = text.lines().filter(|line| line.contains("ForwDatagrams"));
    let counts = counts.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    counts.sum()
}

/// Sends datagrams of as many new sessions, and returns how many were forwarded through the stack:
/// those on their way into the process, and those on their way out of it too, unless they left past
/// it.
#[track_caller]
fn forwarded_of_new_sessions(lab: &Lab, server: &str) -> u64 {
    let before = through_the_stack(lab);
    let to: SocketAddr = format!("{}:7900", bracketed(server)).parse().expect("one");
    let arrived = Capture::start(&lab.server, "eth0", "udp dst port 7900");
    lab.lan1.inside(|| {
        for _ in 0..DATAGRAMS {
            let from = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(from).expect("the client has a network");
            socket
                .send_to(b"hello", to)
                .expect("the client has a network");
        }
    });
    wait_until("all datagrams have arrived", || {
        arrived.seen().lines().count() as u64 >= DATAGRAMS
    });
    through_the_stack(lab) - before
}

fn leave_at_once(lab: &Lab, server: &str) -> bool {
    // Some other packets come and go.
    forwarded_of_new_sessions(lab, server) < DATAGRAMS * 3 / 2
}

/// From now on the server answers no datagrams and no connections.
fn silence(server: &Namespace) {
    server.sh(
        "nft 'add table inet silent; flush table inet silent; add chain inet silent in { type filter hook input priority 0; \
         }; add rule inet silent in meta l4proto { tcp, udp } drop'",
    );
}

/// A lab whose server answers nothing, so that only the clients' packets count.
fn started(offload: &str) -> Option<Lab> {
    let lab = started_with(offload)?;
    assert_leave_at_once(&lab);
    Some(lab)
}

/// Waits until packets of new sessions leave past the stack. The server is silent from then on.
#[track_caller]
pub fn assert_leave_at_once(lab: &Lab) {
    silence(&lab.server);
    for server in SERVER {
        wait_until("packets leave at once", || leave_at_once(lab, server));
    }
}

/// Whatever the config says: filters of others see each packet of the process that they are for.
#[test]
fn filters_of_others_see_all_that_the_process_forwards() {
    for offload in ["offload = \"auto\"", "offload = \"ebpf\""] {
        let Some(lab) = started(offload) else { return };
        let chain = |hook: &str, rule: &str| {
            format!(
                "nft 'add table inet f; add chain inet f gate {{ type filter hook {hook} priority \
                 0; }}; add rule inet f gate {rule}'"
            )
        };
        let of_tun = "tc qdisc add dev tgw-wan clsact; tc filter add dev tgw-wan ingress bpf da \
                      bytecode '1,6 0 0 0'";
        let cases = [
            (chain("forward", "counter"), "nft delete table inet f"),
            (
                chain("postrouting", "udp dport 1 drop"),
                "nft delete table inet f",
            ),
            (chain("prerouting", "counter"), "nft delete table inet f"),
            (
                chain("egress device eth1", "udp dport 1 drop").replace("inet f", "netdev f"),
                "nft delete table netdev f",
            ),
            (of_tun.to_owned(), "tc qdisc del dev tgw-wan clsact"),
        ];
        for (add, remove) in cases {
            lab.unit.ns.sh(&add);
            for server in SERVER {
                wait_until(&format!("packets pass the stack: {add}"), || {
                    forwarded_of_new_sessions(&lab, server) >= DATAGRAMS * 2
                });
            }
            lab.unit.ns.sh(remove);
            for server in SERVER {
                wait_until("packets leave at once again", || {
                    leave_at_once(&lab, server)
                });
            }
        }
    }
}

/// A chain that comes while sessions are opened stops them.
#[test]
fn a_new_filter_stops_new_sessions() {
    let Some(lab) = started("offload = \"auto\"") else {
        return;
    };
    lab.unit.ns.sh(
        "nft 'add table inet f; add chain inet f gate { type filter hook forward priority 0; }; \
         add rule inet f gate iifname \"tgw-wan\" udp dport 7900 drop'",
    );
    wait_until("the gateway has seen it", || {
        lab.unit.status()["ports"][0]["offload"] != "ebpf"
    });
    let capture = Capture::start(&lab.server, "eth0", "udp dst port 7900");
    lab.lan1.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("the client has a network");
        for _ in 0..5 {
            let sent = socket.send_to(b"hello", (SERVER[0], 7900));
            sent.expect("the client has a network");
        }
    });
    capture.assert_empty();
}

/// The stack judges sources where somebody has asked for that.
#[test]
fn a_strict_filter_of_sources_sees_all_that_the_process_forwards() {
    let Some(lab) = started("offload = \"ebpf\"") else {
        return;
    };
    lab.unit.ns.sysctl("ipv4/conf/all/rp_filter", "1");
    wait_until("packets pass the stack", || {
        forwarded_of_new_sessions(&lab, SERVER[0]) >= DATAGRAMS * 2
    });
    lab.unit.ns.sysctl("ipv4/conf/all/rp_filter", "0");
    assert_leave_at_once(&lab);
}

/// The device that packets leave by may be another one.
#[test]
fn a_device_made_again_lets_packets_leave_at_once() {
    let Some(lab) = started("offload = \"ebpf\"") else {
        return;
    };
    lab.unit.ns.run("ip link del tgw-wan");
    for server in SERVER {
        wait_until("packets leave at once again", || {
            // Before its routes are back, packets are lost.
            let log = lab.unit.log();
            let is_back = log.contains("tun made again") && log.contains("steering restored");
            is_back && leave_at_once(&lab, server)
        });
    }
    lab.unit.ns.run("ip link del eth1");
    lab.attach_wan();
    for server in SERVER {
        wait_until("packets leave at once again", || {
            lab.unit.ns.try_run(&format!("ping -c 1 -W 1 {server}"));
            lab.lan1.try_run(&format!("ping -c 1 -W 1 {server}"));
            leave_at_once(&lab, server)
        });
    }
}

/// A packet from the first LAN host to port 7101 of the server, of a session of its own.
fn packet(server: Addr, number: u16) -> Pkt {
    let client = ip(LAN1[usize::from(is_v6(server))]);
    udp((client, 4000 + number), (server, 7101)).payload(&[7; 100])
}

/// Packets that are forwarded in all ways there are, refused, or answered.
fn packets(server: Addr) -> Vec<Vec<u8>> {
    let mut numbers = 0..;
    let mut next = || packet(server, numbers.next().expect("a number"));
    let silent = if is_v6(server) {
        "fd77:2::99"
    } else {
        "10.77.2.99"
    };
    let own = if is_v6(server) {
        "fd77:2::2"
    } else {
        "10.77.2.2"
    };
    let mut all = vec![
        next(),
        next().hops(1),
        next().hops(2),
        next().hops(3),
        next().dont_fragment(),
        next().payload(&[]),
        next().payload(&[1; 1251]),
        next().payload(&[1; 1252]),
        next().payload(&[1; 1272]),
        next().payload(&[1; 1273]),
        next().payload(&[1; 1400]),
        next().payload(&[1; 1400]).dont_fragment(),
        next().dst(ip(silent)),
        next().dst(ip(own)),
    ];
    all.push(Pkt {
        traffic_class: 0xb8,
        ..next()
    });
    let key = next().key();
    all.push(tcp((key.src, 5000), (server, 7102), SYN, 1, 0));
    let mut all: Vec<Vec<u8>> = all.iter().map(Pkt::bytes).collect();
    let long = next().payload(&[3; 1000]).bytes();
    all.extend(fragments(&long, 77, &[504]));
    if !is_v6(server) {
        // The route there asks for 1200 bytes.
        for size in [1100, 1172, 1173, 1250] {
            let far = next().dst(ip("10.77.9.1")).payload(&vec![5; size]);
            all.push(far.bytes());
            let far = next().dst(ip("10.77.9.1")).payload(&vec![5; size]);
            all.push(far.dont_fragment().bytes());
        }
        for traffic_class in [0x08, 0x10, 0x18, 0xe0] {
            let packet = Pkt {
                traffic_class,
                ..next()
            };
            all.push(packet.bytes());
        }
        let mut unchecked = next().bytes();
        unchecked[26..28].fill(0);
        all.push(unchecked);
    }
    all
}

/// What arrives of the packets, byte by byte, and what the client is told about them.
fn seen(lab: &Lab) -> [Vec<String>; 2] {
    silence(&lab.server);
    lab.unit.ns.sh(
        "ip link set eth1 mtu 1300; ip route add 10.77.9.0/24 via 10.77.2.100 dev eth1 mtu 1200",
    );
    for server in SERVER {
        lab.lan1.run(&format!("ping -c 2 -i 0.2 -W 2 {server}"));
    }
    let arrived = "(dst 10.77.2.100 or dst fd77:2::100 or net 10.77.9.0/24) and not icmp and not arp and not icmp6";
    let arrived = Capture::start_with(&lab.server, "eth0", &["-x"], arrived);
    let errors = "icmp[0] = 3 or icmp[0] = 11 or icmp6[0] < 128";
    let told = Capture::start(
        &lab.lan1,
        "eth0",
        &format!("({errors}) and ether dst {}", lab.lan1.mac_text("eth0")),
    );
    wait_until("the gateway knows the route", || {
        let explained = lab
            .unit
            .tandemgw("explain udp 10.77.1.100:1 10.77.9.1:1 --in lan");
        explained.stdout.contains("10.77.2.100")
    });
    let socket = FrameSocket::open(&lab.lan1, "eth0");
    for server in SERVER {
        let server = ip(server);
        let kind = if is_v6(server) { [0x86, 0xdd] } else { [8, 0] };
        let head = [&lab.unit.ns.mac("eth0")[..], &lab.lan1.mac("eth0"), &kind].concat();
        for packet in packets(server) {
            socket.send(&[&head[..], &packet].concat());
        }
    }
    socket.finish();
    // The kernel looks for a silent neighbour three times, a second each.
    thread::sleep(Duration::from_secs(4));
    let mut packets: Vec<String> = Vec::new();
    for line in arrived.stop().lines() {
        match (line.strip_prefix("\t0x"), packets.last_mut()) {
            (Some(hex), Some(packet)) => packet.push_str(&hex[6..]),
            _ => packets.push(String::new()),
        }
    }
    packets.sort();
    let told = told.stop();
    let said = |line: &str| line.split_once("length ").map(|it| it.1.to_owned());
    let mut told: Vec<String> = told.lines().filter_map(said).collect();
    told.sort();
    [packets, told]
}

#[test]
fn hosts_see_the_same_whichever_way_packets_leave() {
    if !is_root_of_the_machine() {
        eprintln!("not tested: nobody may load programs in a user namespace");
        return;
    }
    let mut lab = Lab::new();
    lab.unit
        .edit("name = \"lan\"", "name = \"lan\"\noffload = \"tun\"");
    lab.unit
        .edit("name = \"wan\"", "name = \"wan\"\noffload = \"tun\"");
    lab.unit.start();
    let through_the_stack = seen(&lab);
    drop(lab);
    let Some(lab) = started("offload = \"ebpf\"") else {
        return;
    };
    let past_it = seen(&lab);
    let count = through_the_stack.each_ref().map(Vec::len);
    assert!(count[0] >= 25 && count[1] >= 10, "{through_the_stack:#?}");
    assert_eq!(past_it, through_the_stack);
}

fn is_v6(address: Addr) -> bool {
    address.family() == Family::V6
}
