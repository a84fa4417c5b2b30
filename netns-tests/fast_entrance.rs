//! What comes to a busy process past the queues of its TUN devices.

use std::net::UdpSocket;
use std::time::Duration;

use testkit::system::process::wait_until;

use crate::fast_exit::assert_leave_at_once;
use crate::fast_path::started_with;
use crate::lab::{Lab, SERVER};

/// Datagrams of a flood: more than the process takes at that pace.
const FLOOD: u32 = 50_000;

/// Packets that the process has had from a port, and those that came by the queue of its TUN.
fn came(lab: &Lab) -> (u64, u64) {
    let links = lab.unit.ns.run("ip -s -j link show tgw-lan");
    let links: serde_json::Value = serde_json::from_str(&links).expect("JSON");
    let by_queue = links[0]["stats64"]["tx"]["packets"].as_u64();
    let status = lab.unit.status();
    let ports = status["ports"].as_array().expect("ports");
    let lan = ports.iter().find(|port| port["name"] == "lan");
    let all = lan.expect("the port")["in"]["packets"].as_u64();
    (all.expect("a count"), by_queue.expect("a count"))
}

/// Sends a flood of numbered datagrams, each from the socket that `socket` gives for its number.
fn flood(lab: &Lab, to: &str, sockets: usize) {
    let bytes = |number: u32| [&number.to_be_bytes()[..], &[7; 40]].concat();
    lab.lan1.inside(|| {
        let any = if to.contains(':') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let open = |_| {
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.connect((to, 7900)).expect("a route");
            socket
        };
        let sockets: Vec<UdpSocket> = (0..sockets).map(open).collect();
        for number in 0..FLOOD {
            let socket = &sockets[number as usize % sockets.len()];
            // An error: the queue of the client is full.
            let _ = socket.send(&bytes(number));
        }
    });
}

/// The same, once nothing is on its way any more.
fn came_at_last(lab: &Lab) -> (u64, u64) {
    let mut last = came(lab);
    wait_until("nothing comes any more", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = came(lab);
        std::mem::replace(&mut last, now) == now
    });
    last
}

/// Counted by the process and not by the queue: it has come past it.
fn past_the_queue(lab: &Lab, flood: impl FnOnce()) -> u64 {
    let before = came_at_last(lab);
    flood();
    let after = came_at_last(lab);
    let (all, by_queue) = (after.0 - before.0, after.1 - before.1);
    all.checked_sub(by_queue).expect("all come to the process")
}

#[test]
fn a_flood_opens_sessions_past_the_queue_and_nothing_seems_to_vanish() {
    let Some(lab) = started_with("offload = \"auto\"") else {
        return;
    };
    assert_leave_at_once(&lab);
    let mut sum = 0;
    for server in SERVER.iter().cycle().take(6) {
        sum += past_the_queue(&lab, || flood(&lab, server, 500));
    }
    assert!(sum > u64::from(FLOOD) / 10, "{sum} of all packets");
    // Single ones take the queue, which wakes the process.
    let quiet = || {
        let to = (SERVER[0], 7900);
        for _ in 0..20 {
            lab.lan1.inside(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.send_to(b"hello", to).expect("a route");
            });
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    assert_eq!(past_the_queue(&lab, quiet), 0);
    let opened = lab.unit.status()["sessions"]["opened"].as_u64();
    assert!(opened >= Some(1000), "{opened:?} sessions");
    // Longer than it takes to find an obstacle.
    std::thread::sleep(Duration::from_secs(2));
    let log = lab.unit.log();
    for bad in ["dropped by others", "obstacle", "vanish"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
    assert_eq!(lab.unit.status()["health"]["state"], "good");
    wait_until("packets leave at once", || {
        lab.unit.status()["ports"][0]["offload"] == "ebpf"
    });
}

/// Whatever the config says.
#[test]
fn who_has_a_say_at_the_queue_sees_all_that_comes_by_it() {
    let Some(lab) = started_with("offload = \"ebpf\"") else {
        return;
    };
    assert_leave_at_once(&lab);
    let past = || past_the_queue(&lab, || flood(&lab, SERVER[0], 500));
    let of_tc = "tc qdisc add dev tgw-lan clsact; tc filter add dev tgw-lan egress bpf da bytecode \
                 '1,6 0 0 0'";
    let of_nft = "nft 'add table netdev f; add chain netdev f gate { type filter hook egress device \
                  tgw-lan priority 0; }; add rule netdev f gate udp dport 1 drop'";
    let cases = [
        (of_tc, "tc qdisc del dev tgw-lan clsact"),
        (of_nft, "nft delete table netdev f"),
    ];
    wait_until("a flood passes the queue", || past() > 0);
    for (add, remove) in cases {
        lab.unit.ns.sh(add);
        wait_until("nothing passes the queue", || past() == 0);
        lab.unit.ns.sh(remove);
        wait_until("a flood passes the queue again", || past() > 0);
    }
}

#[test]
fn datagrams_of_a_flow_stay_in_order_whichever_way_they_come() {
    let Some(lab) = started_with("offload = \"ebpf\"") else {
        return;
    };
    assert_leave_at_once(&lab);
    lab.server.sh("nft flush table inet silent");
    for server in SERVER {
        let receiver = lab.server.inside(|| {
            let any = if server.contains(':') {
                "[::]:7900"
            } else {
                "0.0.0.0:7900"
            };
            UdpSocket::bind(any).expect("a socket")
        });
        receiver
            .set_read_timeout(Some(Duration::from_secs(2)))
            .expect("a timeout");
        let count = std::thread::spawn(move || {
            let (mut count, mut last, mut bytes) = (0_u32, None, [0; 100]);
            while let Ok(length) = receiver.recv(&mut bytes) {
                assert_eq!(length, 44);
                let number = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                // The flood begins again at 0.
                let next = last.is_none_or(|last| number > last) || number < 1000;
                assert!(next, "{number} after {last:?}");
                (count, last) = (count + 1, Some(number));
            }
            count
        });
        let mut past = 0;
        for _ in 0..4 {
            past += past_the_queue(&lab, || flood(&lab, server, 1));
            std::thread::sleep(Duration::from_millis(200));
        }
        let count = count.join().expect("they came in order");
        assert!(
            past > 1000 && count > 1000,
            "{past} past the queue, {count} came"
        );
    }
}
