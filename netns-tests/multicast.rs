//! Multicast: real hosts that join and leave, switches that snoop, and a takeover in the middle.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::lab::{Lab, SERVER, WAN_GATEWAY};
use crate::pair::Pair;
use testkit::system::namespace::Namespace;
use testkit::system::process::wait_until;

const PORT: u16 = 5004;
pub const GROUPS: [&str; 2] = ["239.1.2.3", "ff05::1:2:3"];

/// From the servers to the hosts. MLD needs a link-local address, which the units share.
pub const POLICY: &str = r#"
[[multicast-policy]]
name = "tv"
from = ["wan"]
to = ["lan"]
group = ["239.1.0.0/16", "ff05::1:0:0/96"]
action = "accept"
"#;

fn index(ns: &Namespace) -> u32 {
    let text = ns.run("ip -o link show dev eth0");
    text.split(':').next().unwrap().parse().unwrap()
}

/// A socket on `host` that has joined `group`, and receives nothing else; of one source only, if it
/// is given.
pub fn member(host: &Namespace, group: &str, source: Option<&str>) -> UdpSocket {
    let (group, index) = (group.parse::<IpAddr>().unwrap(), index(host));
    let socket = host.inside(|| UdpSocket::bind((group, PORT)).unwrap());
    host.inside(|| match (group, source) {
        (IpAddr::V4(group), None) => {
            let own = socket2::InterfaceIndexOrAddress::Index(index);
            SockRef::from(&socket)
                .join_multicast_v4_n(&group, &own)
                .unwrap();
        }
        (IpAddr::V4(group), Some(source)) => {
            let own = address_of(host);
            let source: Ipv4Addr = source.parse().unwrap();
            SockRef::from(&socket)
                .join_ssm_v4(&source, &group, &own)
                .unwrap();
        }
        (IpAddr::V6(group), _) => socket.join_multicast_v6(&group, index).unwrap(),
    });
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    socket
}

fn address_of(host: &Namespace) -> Ipv4Addr {
    let text = host.run("ip -4 -o addr show dev eth0");
    let word = text.split_whitespace().nth(3).unwrap();
    word.split('/').next().unwrap().parse().unwrap()
}

/// A server that sends numbered datagrams to a group until this is dropped.
pub struct Stream {
    ends: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    pub fn start(server: &Namespace, from: &str, group: &str, each: Duration) -> Stream {
        let group: IpAddr = group.parse().unwrap();
        let from: IpAddr = from.parse().unwrap();
        let index = index(server);
        let socket = server.inside(|| UdpSocket::bind((from, 0)).unwrap());
        match (group, from) {
            (IpAddr::V4(_), IpAddr::V4(from)) => {
                SockRef::from(&socket).set_multicast_if_v4(&from).unwrap();
                socket.set_multicast_ttl_v4(8).unwrap();
            }
            _ => {
                SockRef::from(&socket).set_multicast_if_v6(index).unwrap();
                SockRef::from(&socket).set_multicast_hops_v6(8).unwrap();
            }
        }
        let ends = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stop, count) = (Arc::clone(&ends), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let begin = Instant::now();
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let _ = socket.send_to(&number.to_be_bytes(), (group, PORT));
                number += 1;
                count.store(number, Ordering::Relaxed);
                let next = begin + each * u32::try_from(number).unwrap();
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        Stream {
            ends,
            sent,
            thread: Some(thread),
        }
    }

    /// How many it has sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The next number that a member gets, and from whom.
pub fn next(member: &UdpSocket) -> Option<(u64, IpAddr)> {
    let mut bytes = [0; 64];
    let (length, from) = member.recv_from(&mut bytes).ok()?;
    let number = bytes[..length].try_into().ok()?;
    Some((u64::from_be_bytes(number), from.ip()))
}

fn snoop(switch: &Namespace) {
    switch.run(
        "ip link set br0 type bridge mcast_snooping 1 mcast_igmp_version 3 mcast_mld_version 2",
    );
}

#[test]
fn hosts_get_what_they_join_behind_switches_that_snoop() {
    let mut lab = Lab::new();
    snoop(&lab.sw_lan);
    snoop(&lab.sw_wan);
    // This switch delivers only to who asks: the gateway must, as a host does.
    lab.sw_wan
        .run("ip link set br0 type bridge mcast_querier 1");
    lab.unit.config += POLICY;
    lab.unit.start();
    for (group, server) in GROUPS.into_iter().zip(SERVER) {
        let _stream = Stream::start(&lab.server, server, group, Duration::from_millis(5));
        let first = member(&lab.lan1, group, None);
        wait_until("the first host gets the stream", || next(&first).is_some());
        let (_, from) = next(&first).expect("it goes on");
        assert_eq!(from, server.parse::<IpAddr>().unwrap(), "not translated");
        wait_until("the switch knows that the gateway wants it", || {
            let known = lab.sw_wan.run("bridge mdb show");
            known
                .lines()
                .any(|line| line.contains("gw-a-eth1") && line.contains(group))
        });
        let rows = lab.unit.sessions("state=multicast");
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["dst"], *group);
        assert_eq!(
            (&rows[0]["in"], &rows[0]["out"], &rows[0]["policy"]),
            (&"wan".into(), &"lan".into(), &"tv".into())
        );
        let second = member(&lab.lan2, group, None);
        wait_until("the second host gets it too", || next(&second).is_some());
        drop(first);
        for _ in 0..50 {
            assert!(next(&second).is_some(), "it stays for the second");
        }
        drop(second);
        wait_until("the session ends when all have left", || {
            lab.unit.sessions("state=multicast").is_empty()
        });
    }
    lab.unit.assert_running();
    let group = "239.1.2.4";
    let _stream = Stream::start(&lab.server, SERVER[0], group, Duration::from_millis(5));
    let other = member(&lab.lan1, group, Some("10.77.2.77"));
    let this = member(&lab.lan2, group, Some(SERVER[0]));
    wait_until("who wants this source gets it", || next(&this).is_some());
    assert!(next(&other).is_none(), "who wants another does not");
}

#[test]
fn a_stream_ends_within_a_second_after_the_last_host_has_left() {
    let mut lab = Lab::new();
    lab.unit.config += POLICY;
    lab.unit.start();
    for (group, server) in GROUPS.into_iter().zip(SERVER) {
        let _stream = Stream::start(&lab.server, server, group, Duration::from_millis(2));
        let host = member(&lab.lan1, group, None);
        wait_until("the stream arrives", || next(&host).is_some());
        // Without snooping the switch floods: another host's interface counts what comes.
        let arrived = || lab.lan2.received("eth0").unwrap();
        drop(host);
        let left = Instant::now();
        let (mut last, mut count) = (left, arrived());
        while last.elapsed() < Duration::from_millis(500) {
            thread::sleep(Duration::from_millis(10));
            let now = arrived();
            // Single frames are questions of the gateway.
            if now > count + 2 {
                last = Instant::now();
            }
            count = now;
            assert!(left.elapsed() < Duration::from_secs(20), "it goes on");
        }
        let took = last - left;
        println!("{group}: leave latency {took:?}");
        assert!(took < Duration::from_millis(1500), "{took:?}");
    }
}

#[test]
fn a_translated_stream_and_fragments() {
    let mut lab = Lab::new();
    lab.unit.config += POLICY;
    lab.unit.edit(
        "to = [\"lan\"]\ngroup",
        "to = [\"lan\"]\nsnat = true\ngroup",
    );
    lab.unit.start();
    for (at, group) in GROUPS.into_iter().enumerate() {
        let host = member(&lab.lan1, group, None);
        let stream = Stream::start(&lab.server, SERVER[at], group, Duration::from_millis(5));
        let own: IpAddr = crate::lab::LAN_GATEWAY[at].parse().unwrap();
        wait_until("the stream comes from the virtual address", || {
            next(&host).is_some_and(|(_, from)| from == own)
        });
        drop(stream);
        // 8 KiB in fragments, their checksum as translated: the host's kernel checks it.
        let target = match at {
            0 => format!(
                "UDP4-DATAGRAM:{group}:{PORT},ip-multicast-ttl=8,ip-multicast-if={}",
                SERVER[0]
            ),
            // IPV6_MULTICAST_HOPS, for which this program has no name.
            _ => format!(
                "UDP6-DATAGRAM:[{group}]:{PORT},setsockopt-int=41:18:8,bind=[{}]",
                SERVER[1]
            ),
        };
        let mut bytes = vec![0; 9000];
        // Where the host still has the stream in its queue there may be no room for it.
        wait_until("the big datagram arrives", || {
            lab.server.sh(&format!(
                "head -c 8000 /dev/zero | socat -b 8000 -u STDIN {target}"
            ));
            host.recv_from(&mut bytes)
                .is_ok_and(|(length, from)| length == 8000 && from.ip() == own)
        });
    }
    assert!(WAN_GATEWAY.len() == 2 && lab.unit.dropped("membership-malformed") == 0);
}

/// What a member gets: by number how often, and the longest pause between two.
pub fn listen(
    member: UdpSocket,
    ends: Arc<AtomicBool>,
) -> JoinHandle<(BTreeMap<u64, u32>, Duration)> {
    thread::spawn(move || {
        let (mut got, mut last, mut gap) = (BTreeMap::new(), None::<Instant>, Duration::ZERO);
        while !ends.load(Ordering::Relaxed) {
            if let Some((number, _)) = next(&member) {
                let now = Instant::now();
                gap = last.map_or(gap, |last| gap.max(now - last));
                last = Some(now);
                *got.entry(number).or_default() += 1;
            }
        }
        (got, gap)
    })
}

#[test]
fn a_takeover_in_the_middle_of_a_stream() {
    for (group, server) in GROUPS.into_iter().zip(SERVER) {
        let mut pair = Pair::new();
        snoop(&pair.lab.sw_lan);
        for unit in [&mut pair.lab.unit, &mut pair.b] {
            unit.config += POLICY;
            unit.edit("\"fd77:1::1/64\"]", "\"fd77:1::1/64\", \"fe80::77:1/64\"]");
            unit.edit("\"fd77:2::1/64\"]", "\"fd77:2::1/64\", \"fe80::77:2/64\"]");
        }
        pair.start();
        let stream = Stream::start(&pair.lab.server, server, group, Duration::from_millis(1));
        let hosts = [&pair.lab.lan1, &pair.lab.lan2];
        let ends = Arc::new(AtomicBool::new(false));
        let members = hosts.map(|host| {
            let member = member(host, group, None);
            wait_until("the stream arrives", || next(&member).is_some());
            listen(member, Arc::clone(&ends))
        });
        wait_until("the other unit knows of the session", || {
            !pair.b().sessions("state=multicast").is_empty()
        });
        pair.a_mut().kill();
        pair.wait_for_takeover_by_b(1);
        let last = stream.sent() + 2000;
        wait_until("two more seconds are sent", || stream.sent() > last);
        ends.store(true, Ordering::Relaxed);
        for member in members {
            let (got, gap) = member.join().unwrap();
            let end = *got.keys().last().unwrap();
            println!("{group}: {} datagrams, longest gap {gap:?}", got.len());
            assert!(end > last - 500, "it goes on: {end} of {last}");
            let twice = got.values().filter(|count| **count > 1).count();
            assert_eq!(twice, 0, "nothing comes twice");
        }
        drop(stream);
    }
}
