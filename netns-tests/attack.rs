//! Somebody without a key attacks: on a synchronisation link, on the LAN, beyond the WAN.

use std::net::{Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tandemgw::node_key::NodeKey;
use tandemgw::os::quic::Transport;
use tandemgw_core::random::SplitMix64;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;
use testkit::system::transport::{ha, peer};

use crate::frame::{Ends, FrameSocket, fix_ipv4_checksum};
use crate::lab::{LAN_GATEWAY, LAN2, Lab, SERVER};
use crate::pair::Pair;
use crate::unit::Unit;

/// Initials as sent by a unit with an unknown key.
fn forged_initials(count: usize) -> Vec<Vec<u8>> {
    let key = NodeKey::from_seed([99; 32]);
    let target = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    target
        .set_read_timeout(Some(Duration::from_secs(5)))
        .expect("a timeout");
    let there = target.local_addr().expect("its address");
    let other = NodeKey::from_seed([98; 32]).public();
    static FLOODS: AtomicU8 = AtomicU8::new(0);
    let number = FLOODS.fetch_add(1, Ordering::Relaxed);
    let mut initials = Vec::new();
    while initials.len() < count {
        let seed = initials.len() as u64;
        // An address for each: a process that another test starts has a copy of the socket before
        // it until it runs its program.
        let here = (
            [127, 77, std::process::id() as u8, number],
            2000 + seed as u16,
        )
            .into();
        let ha = ha(here, vec![peer("gw-b", there, other)]);
        let mut unit = Transport::new(&ha, "gw-a", &key, seed).expect("a unit");
        unit.poll(Instant::now());
        // One for each role.
        for _ in 0..2 {
            let mut bytes = [0; 2048];
            let length = target.recv(&mut bytes).expect("an Initial");
            initials.push(bytes[..length].to_vec());
        }
    }
    initials
}

/// Frames sent at a steady rate, over and over, until it is stopped.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Flood {
    /// Starts to send `frames` out of an interface, at this rate per second.
    pub fn start(ns: &Namespace, interface: &str, rate: u32, frames: Vec<Vec<u8>>) -> Flood {
        let socket = FrameSocket::open(ns, interface);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (start, mut sent) = (Instant::now(), 0);
            while !stopped.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u32;
                while sent < due {
                    socket.send(&frames[sent as usize % frames.len()]);
                    sent += 1;
                }
                thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        Flood { stop, thread }
    }

    /// Ends it; returns how many were sent.
    pub fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the flood ends")
    }
}

/// Initials for both units, from the address of the other one, as somebody at their switch sends
/// them.
fn frames_for_links(pair: &Pair, initials: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let macs = [pair.a(), pair.b()].map(|unit| unit.ns.mac("sync0"));
    let addresses = [[10, 77, 9, 1], [10, 77, 9, 2]];
    let both = initials.iter().zip([0, 1].into_iter().cycle());
    let frame = |(initial, to): (&Vec<u8>, usize)| {
        let ends = Ends {
            mac: ([2, 0, 0, 0, 0, 0x66], macs[to]),
            ip: (addresses[1 - to], addresses[to]),
            port: (7030, 7030),
        };
        ends.udp(initial)
    };
    both.map(frame).collect()
}

fn losses(unit: &Unit) -> usize {
    let lost = |event: &&String| event.contains("is lost") || event.contains("may be dead");
    unit.events().iter().filter(lost).count()
}

/// For 4 s gw-a stays primary in its `term`, and neither unit misses the other.
#[track_caller]
fn assert_roles_stay(pair: &Pair, term: u64) {
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert!(pair.a().is_primary() && !pair.b().is_primary());
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(pair.a().term(), term, "the role moved");
    for unit in [pair.a(), pair.b()] {
        assert_eq!(losses(unit), 0, "{:#?}", unit.events());
        assert_eq!(unit.peer()["connected"], true);
    }
}

#[test]
fn forged_handshakes_move_no_role_and_keep_no_peer_out() {
    let mut pair = Pair::new();
    pair.edit("\"50ms\"", "\"20ms\"");
    pair.edit("lost-threshold = 20", "lost-threshold = 10");
    pair.start();
    let frames = frames_for_links(&pair, &forged_initials(2000));
    let term = pair.a().term();
    let flood = Flood::start(pair.link(0), "br0", 5000, frames);
    assert_roles_stay(&pair, term);
    // While it goes on, a unit that was away finds its way back.
    pair.b.kill();
    wait_until("gw-b is missed", || losses(pair.a()) > 0);
    pair.b.start();
    pair.a().wait_for_ready_peer();
    pair.b().wait_until_ready();
    let sent = flood.stop();
    assert!(sent > 10_000, "only {sent} were sent");
    assert!(pair.a().is_primary());
    let refused = pair.a().status()["counters"]["handshakes_limited"].as_u64();
    assert!(refused > Some(1000), "{refused:?}");
}

/// Datagrams that a unit has no connection for, each in some way like one of a connection: what
/// could be a stateless reset (RFC 9000, section 10.3), a negotiation of versions, a version that
/// nobody has, later packets of a handshake, and no QUIC at all.
fn junk_datagrams(count: usize) -> Vec<Vec<u8>> {
    let mut random = SplitMix64(7);
    let long = |first: u8, version: u32| {
        let mut head = vec![first];
        head.extend(version.to_be_bytes());
        head.push(8);
        head
    };
    let datagram = |number| {
        let (mut head, len) = match number % 6 {
            0 => (vec![0x41], 21),
            1 => (vec![0x5c], 1200),
            2 => (long(0xc0, 0), 40),
            3 => (long(0xc3, 0x0a1a_2a3a), 1200),
            4 => (long(0xe0, 1), 1200),
            _ => (Vec::new(), number % 30),
        };
        while head.len() < len {
            head.push(random.next() as u8);
        }
        head
    };
    (0..count).map(datagram).collect()
}

#[test]
fn stateless_resets_and_other_junk_on_a_link_move_no_role() {
    let pair = Pair::started();
    let frames = frames_for_links(&pair, &junk_datagrams(3000));
    let term = pair.a().term();
    let flood = Flood::start(pair.link(0), "br0", 20_000, frames);
    assert_roles_stay(&pair, term);
    let sent = flood.stop();
    assert!(sent > 20_000, "only {sent} were sent");
    pair.wait_for_same_sessions();
}

#[test]
fn a_peer_whose_key_is_taken_out_loses_its_connections_at_once() {
    let mut pair = Pair::started();
    let whole = pair.a().config.clone();
    let key = whole.split("public-key = \"").nth(1).expect("a key");
    let other = NodeKey::from_seed([97; 32]).public().to_string();
    let changed = whole.replace(&key[..key.find('"').expect("its end")], &other);
    // Its only peer: `[ha]` goes with it, as after a unit that was taken out of service.
    let (removed, _) = whole.split_once("[ha]").expect("a pair");
    let removed = removed.to_owned();
    for (what, config) in [("changed", changed), ("removed", removed)] {
        pair.a_mut().config = config;
        let answer = pair.a().reload();
        assert!(is_cut_off(&pair), "{what}: {answer}");
        assert!(pair.a().log().contains("peer revoked peer=gw-b"), "{what}");
        // It tries again and again, and gets no further.
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            assert!(is_cut_off(&pair), "{what}");
            thread::sleep(Duration::from_millis(50));
        }
        let status = pair.a().status();
        let mut peers = status["peers"].as_array().expect("a list").iter();
        assert!(peers.all(|peer| peer["connected"] == false), "{what}");
        pair.a_mut().config = whole.clone();
        pair.a().reload();
        wait_until("it is let in again", || {
            pair.a().peer()["connected"] == true
        });
    }
    // A key that is new waits for a restart, and says so.
    pair.change_key_of_b();
    let answer = pair.b().reload();
    let waiting = answer["restart"].to_string();
    assert!(waiting.contains("node.key"), "{answer}");
}

/// Whether gw-a has no connection to gw-b, or does not even know it.
fn is_cut_off(pair: &Pair) -> bool {
    let status = pair.a().status();
    let mut peers = status["peers"].as_array().expect("a list").iter();
    peers.all(|peer| peer["links"][0]["up"] == false)
}

#[test]
fn datagrams_to_random_addresses_of_a_link_cost_nobody_else_a_packet() {
    let lab = Lab::started();
    // It has been there before, as a victim has.
    lab.lan1.run(&format!("ping -c 1 -W 2 {}", SERVER[1]));
    let ends = Ends {
        mac: (lab.lan2.mac("eth0"), lab.unit.ns.mac("eth0")),
        ip: ([0; 4], [0; 4]),
        port: (4000, 9),
    };
    let octets = |text: &str| text.parse::<Ipv6Addr>().expect("an address").octets();
    let nobody = |number: u16| {
        let mut to = octets("fd77:2:0:0:5::");
        to[14..].copy_from_slice(&number.to_be_bytes());
        ends.udp6(octets(LAN2[1]), to, b"x")
    };
    let flood = Flood::start(&lab.lan2, "eth0", 400, (0..u16::MAX).map(nobody).collect());
    wait_until("the limit is reached", || {
        lab.unit.dropped("neighbor-limit") > 400
    });
    for server in SERVER {
        let said = lab.lan1.run(&format!("ping -i 0.01 -c 200 -W 2 {server}"));
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    let waiting = lab.unit.ns.run("ip -6 neigh show dev eth1 nud incomplete");
    let waiting = waiting.lines().count();
    assert!((1..=40).contains(&waiting), "{waiting} are looked for");
    let refused = lab.unit.dropped("neighbor-limit");
    flood.stop();
    assert!(refused > 800, "{refused}");
}

/// Packets whose hop limit ends here come by the socket that ARP and Neighbor Discovery come by.
#[test]
fn a_flood_of_expired_packets_delays_no_address_resolution() {
    let lab = Lab::started();
    let ends = Ends {
        mac: (lab.lan2.mac("eth0"), lab.unit.ns.mac("eth0")),
        ip: ([10, 77, 1, 101], [10, 77, 2, 100]),
        port: (4000, 9),
    };
    const TTL: usize = 14 + 8;
    let mut expired = ends.udp(b"x");
    expired[TTL] = 1;
    fix_ipv4_checksum(&mut expired);
    let flood = Flood::start(&lab.lan2, "eth0", 20_000, vec![expired]);
    wait_until("the limit is reached", || {
        lab.unit.dropped("hop-limit") > 20_000
    });
    for gateway in LAN_GATEWAY.iter().cycle().take(20) {
        lab.lan1.run("ip neigh flush dev eth0");
        let said = lab.lan1.run(&format!("ping -c 1 -W 1 {gateway}"));
        let time = said.split("time=").nth(1).expect("a time");
        let millis: f64 = time[..time.find(' ').expect("its unit")]
            .parse()
            .expect("a number");
        // A request that is lost is repeated after a second.
        assert!(millis < 900.0, "{said}");
    }
    assert!(flood.stop() > 20_000);
}
