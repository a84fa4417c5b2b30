//! Floods and malformed packets: the gateway lives, and those who behave are served.

use std::thread;
use std::time::{Duration, Instant};

use crate::capture::Capture;
use crate::frame::{Ends, FrameSocket, IP, fix_ipv4_checksum, fragment};
use crate::lab::{Lab, SERVER, bracketed};
use crate::services::{Http, whoami};

/// All malformed packets that have a readable port are sent to this one; none may come out.
const TARGET: u16 = 6666;

fn from_lan(lab: &Lab) -> Ends {
    Ends {
        mac: (lab.lan2.mac("eth0"), lab.unit.ns.mac("eth0")),
        ip: ([10, 77, 1, 101], [10, 77, 2, 100]),
        port: (4000, TARGET),
    }
}

fn from_wan(lab: &Lab) -> Ends {
    Ends {
        mac: (lab.server.mac("eth0"), lab.unit.ns.mac("eth1")),
        ip: ([10, 77, 2, 100], [10, 77, 2, 1]),
        port: (4000, TARGET),
    }
}

/// Floods with SYNs for a moment, `source` giving the source of each, while a download goes on.
fn survives_flood(mut lab: Lab, source: impl Fn(u32) -> ([u8; 4], u16)) {
    let http = Http::start(&lab, &lab.server, 6);
    let download = http.start_slow_download(&lab.lan1, SERVER[0]);
    let socket = FrameSocket::open(&lab.lan2, "eth0");
    let mut ends = from_lan(&lab);
    let end = Instant::now() + Duration::from_secs(2);
    let mut sent = 0;
    while Instant::now() < end {
        (ends.ip.0, ends.port.0) = source(sent);
        socket.send(&ends.syn());
        sent += 1;
        if sent % 64 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    socket.finish();
    assert!(sent > 5000, "only {sent} SYNs are not a flood");
    // New sessions are served while half-open ones fill the table.
    for server in SERVER {
        whoami(&lab.lan1, &bracketed(server));
    }
    let sessions = lab.unit.status()["sessions"].clone();
    assert!(
        sessions["total"].as_u64() <= sessions["max"].as_u64(),
        "{sessions}"
    );
    download.finish();
    lab.unit.assert_running();
}

fn small_table() -> Lab {
    let mut lab = Lab::new();
    lab.unit.edit("[node]", "[node]\nmax-sessions = 1024");
    lab.unit.start();
    lab
}

#[test]
fn syn_flood_from_spoofed_sources() {
    survives_flood(small_table(), |n| {
        let [_, _, high, low] = n.to_be_bytes();
        // Sources of the LAN, or the source check would stop them.
        (
            [10, 77, 1, 110 + low % 100],
            u16::from_be_bytes([high, low]) | 0x400,
        )
    });
}

#[test]
fn syn_flood_from_one_source() {
    survives_flood(small_table(), |n| {
        let [_, _, high, low] = n.to_be_bytes();
        ([10, 77, 1, 101], u16::from_be_bytes([high, low]) | 0x400)
    });
}

#[test]
fn half_open_sessions_of_one_source_are_limited() {
    const LIMIT: u64 = 512;
    let mut lab = Lab::new();
    lab.unit.config += &format!("[limits]\nhalf-open-per-source = {LIMIT}\n");
    lab.unit.start();
    let socket = FrameSocket::open(&lab.lan2, "eth0");
    let mut ends = from_lan(&lab);
    // An address where nobody is: no answer.
    ends.ip.1 = [10, 77, 2, 200];
    let mut ports = 1024..=u16::MAX;
    // A busy machine loses some.
    testkit::system::process::wait_until("the limit is reached", || {
        for port in ports.by_ref().take(700) {
            ends.port.0 = port;
            socket.send(&ends.syn());
            if port % 32 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        // The oldest of the source goes.
        lab.unit.status()["counters"]["dropped_early"].as_u64() > Some(0)
    });
    socket.finish();
    let tcp = lab.unit.status()["sessions"]["tcp"].as_u64();
    assert!(tcp <= Some(LIMIT), "{tcp:?}");
    assert!(tcp > Some(LIMIT / 2), "{tcp:?}");
}

/// Edits a copy of a good frame; `fix` makes the header's checksum right again.
fn edit(good: &[u8], fix: bool, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = good.to_vec();
    change(&mut frame);
    if fix {
        fix_ipv4_checksum_if_possible(&mut frame);
    }
    frame
}

/// Frames that are wrong in one way each, from either side.
fn malformed(ends: &Ends) -> Vec<(&'static str, Vec<u8>)> {
    let good = ends.udp(b"payload of a packet");
    let edit = |fix, change: &dyn Fn(&mut Vec<u8>)| edit(&good, fix, change);
    let mut frames = vec![
        ("no IP header", edit(false, &|f| f.truncate(IP))),
        ("one byte of IP", edit(false, &|f| f.truncate(IP + 1))),
        ("half an IP header", edit(false, &|f| f.truncate(IP + 10))),
        ("no transport header", edit(false, &|f| f.truncate(IP + 20))),
        (
            "half a transport header",
            edit(false, &|f| f.truncate(IP + 24)),
        ),
        ("version 0", edit(true, &|f| f[IP] = 0x05)),
        ("version 6 in an IPv4 frame", edit(false, &|f| f[IP] = 0x65)),
        ("header length 0", edit(false, &|f| f[IP] = 0x40)),
        ("header length 16", edit(false, &|f| f[IP] = 0x44)),
        (
            "header longer than the packet",
            edit(false, &|f| f[IP] = 0x4f),
        ),
        ("total length 0", edit(true, &|f| f[IP + 2..IP + 4].fill(0))),
        (
            "total length 19",
            edit(true, &|f| f[IP + 2..IP + 4].copy_from_slice(&[0, 19])),
        ),
        (
            "total length 65535",
            edit(true, &|f| f[IP + 2..IP + 4].fill(0xff)),
        ),
        ("bad header checksum", edit(false, &|f| f[IP + 10] ^= 0xff)),
        ("hop limit 0", edit(true, &|f| f[IP + 8] = 0)),
        (
            "UDP length 0",
            edit(false, &|f| f[IP + 24..IP + 26].fill(0)),
        ),
        (
            "UDP length 7",
            edit(false, &|f| f[IP + 24..IP + 26].copy_from_slice(&[0, 7])),
        ),
        (
            "UDP length 65535",
            edit(false, &|f| f[IP + 24..IP + 26].fill(0xff)),
        ),
    ];
    frames.extend(addresses(&good));
    frames.extend(options(&good));
    frames.extend(tcp_oddities(ends));
    frames.extend(fragments(ends));
    frames.extend(ipv6(ends));
    frames
}

/// Sources and destinations that no packet may have here.
fn addresses(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let edit = |fix, change: &dyn Fn(&mut Vec<u8>)| edit(good, fix, change);
    vec![
        (
            "source is 127.0.0.1",
            edit(true, &|f| {
                f[IP + 12..IP + 16].copy_from_slice(&[127, 0, 0, 1])
            }),
        ),
        (
            "source is multicast",
            edit(true, &|f| {
                f[IP + 12..IP + 16].copy_from_slice(&[224, 0, 0, 1])
            }),
        ),
        (
            "source is broadcast",
            edit(true, &|f| f[IP + 12..IP + 16].fill(255)),
        ),
        (
            "source is 0.0.0.0",
            edit(true, &|f| f[IP + 12..IP + 16].fill(0)),
        ),
        (
            "source is a virtual address",
            edit(true, &|f| {
                f[IP + 12..IP + 16].copy_from_slice(&[10, 77, 2, 1])
            }),
        ),
        (
            "land: source is destination",
            edit(true, &|f| f.copy_within(IP + 16..IP + 20, IP + 12)),
        ),
        (
            "destination is 0.0.0.0",
            edit(true, &|f| f[IP + 16..IP + 20].fill(0)),
        ),
        (
            "destination is class E",
            edit(true, &|f| {
                f[IP + 16..IP + 20].copy_from_slice(&[240, 0, 0, 1])
            }),
        ),
    ]
}

/// Source routes, and options with a wrong length.
fn options(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let with = |option: [u8; 8]| {
        let mut frame = good.to_vec();
        frame.splice(IP + 20..IP + 20, option);
        frame[IP] = 0x47;
        let length = u16::try_from(frame.len() - IP).expect("a small frame");
        frame[IP + 2..IP + 4].copy_from_slice(&length.to_be_bytes());
        fix_ipv4_checksum(&mut frame);
        frame
    };
    vec![
        ("loose source route", with([131, 7, 4, 10, 77, 2, 100, 0])),
        ("strict source route", with([137, 7, 4, 10, 77, 2, 100, 0])),
        ("option of length 0", with([131, 0, 4, 10, 77, 2, 100, 0])),
        (
            "option beyond the header",
            with([131, 200, 4, 10, 77, 2, 100, 0]),
        ),
    ]
}

/// Flags and header lengths that nothing sends.
fn tcp_oddities(ends: &Ends) -> Vec<(&'static str, Vec<u8>)> {
    let with = |offset: usize, value: u8| {
        let mut frame = ends.syn();
        frame[IP + 20 + offset] = value;
        frame
    };
    vec![
        ("no flags", with(13, 0)),
        ("SYN and FIN", with(13, 0x03)),
        ("SYN and RST", with(13, 0x06)),
        ("all flags", with(13, 0xff)),
        ("TCP header of 0 bytes", with(12, 0x00)),
        ("TCP header longer than the packet", with(12, 0xf0)),
        ("bad TCP checksum", with(16, 0xaa)),
    ]
}

/// Fragments that overlap, end beyond 64 KB, or are too small to hold the ports.
fn fragments(ends: &Ends) -> Vec<(&'static str, Vec<u8>)> {
    // A first fragment is right in itself and may pass, so it has another port.
    let elsewhere = Ends {
        port: (ends.port.0, 9),
        ..*ends
    };
    let mut first = elsewhere.udp(&[7; 24])[IP + 20..].to_vec();
    first[4..6].copy_from_slice(&48_u16.to_be_bytes());
    vec![
        (
            "tiny first fragment",
            fragment(ends, 1, 0, true, &first[..4]),
        ),
        ("overlap: first", fragment(ends, 2, 0, true, &first)),
        ("overlap: second", fragment(ends, 2, 24, false, &[9; 24])),
        ("beyond the end", fragment(ends, 3, 65528, false, &[9; 24])),
        (
            "length no multiple of 8",
            fragment(ends, 4, 0, true, &first[..31]),
        ),
        ("empty fragment", fragment(ends, 5, 8, true, &[])),
        ("teardrop: first", fragment(ends, 6, 0, true, &first)),
        ("teardrop: inside", fragment(ends, 6, 8, false, &[9; 8])),
    ]
}

fn ipv6(ends: &Ends) -> Vec<(&'static str, Vec<u8>)> {
    let outside = ends.ip.0 == [10, 77, 2, 100];
    let net = if outside { 2 } else { 1 };
    let address = |net: u8, host: u8| {
        let mut a = [0; 16];
        (a[0], a[1], a[3], a[15]) = (0xfd, 0x77, net, host);
        a
    };
    let (src, dst) = (
        address(net, 101),
        if outside {
            address(2, 1)
        } else {
            address(2, 0)
        },
    );
    let good = ends.udp6(src, dst, &[5; 32]);
    let edit = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        frame
    };
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 10, 77, 1, 101]);
    vec![
        ("IPv6: half a header", edit(&|f| f.truncate(IP + 20))),
        ("IPv6: no payload", edit(&|f| f.truncate(IP + 40))),
        ("IPv6: version 4", edit(&|f| f[IP] = 0x40)),
        (
            "IPv6: length 65535",
            edit(&|f| f[IP + 4..IP + 6].fill(0xff)),
        ),
        ("IPv6: length 0", edit(&|f| f[IP + 4..IP + 6].fill(0))),
        ("IPv6: source is multicast", edit(&|f| f[IP + 8] = 0xff)),
        (
            "IPv6: source is ::1",
            ends.udp6(address(0, 1).map(|b| b & 1), dst, &[5; 32]),
        ),
        ("IPv6: mapped source", ends.udp6(mapped, dst, &[5; 32])),
        ("IPv6: extension header cut off", edit(&|f| f[IP + 6] = 0)),
        (
            "IPv6: endless extension headers",
            edit(&|f| {
                f[IP + 6] = 60;
                let length = f.len();
                f[IP + 40..length].fill(0);
                (IP + 40..length).step_by(8).for_each(|at| f[at] = 60);
            }),
        ),
        (
            "IPv6: routing header type 0",
            edit(&|f| {
                f[IP + 6] = 43;
                f[IP + 40..IP + 48].copy_from_slice(&[17, 2, 0, 1, 0, 0, 0, 0]);
            }),
        ),
        (
            "IPv6: fragment header cut off",
            edit(&|f| {
                f[IP + 6] = 44;
                f[IP + 4..IP + 6].copy_from_slice(&[0, 4]);
                f.truncate(IP + 44);
            }),
        ),
    ]
}

#[test]
fn malformed_packets_go_nowhere_on_any_port() {
    let mut lab = Lab::started();
    let ports = format!("(dst port {TARGET} or ip[6:2] & 0x1fff != 0) and not ether src");
    let outside = [
        Capture::start(
            &lab.server,
            "eth0",
            &format!("{ports} {}", text(lab.server.mac("eth0"))),
        ),
        Capture::start(
            &lab.lan1,
            "eth0",
            &format!("{ports} {}", text(lab.lan2.mac("eth0"))),
        ),
    ];
    for (host, ends) in [(&lab.lan2, from_lan(&lab)), (&lab.server, from_wan(&lab))] {
        let socket = FrameSocket::open(host, "eth0");
        for (what, frame) in malformed(&ends) {
            for length in [frame.len(), frame.len().saturating_sub(3).max(IP)] {
                socket.send(&frame[..length]);
            }
            assert!(frame.len() >= IP, "{what}");
        }
        socket.finish();
    }
    for server in SERVER {
        lab.lan1.run(&format!("ping -c 2 -i 0.1 -W 2 {server}"));
    }
    lab.unit.assert_running();
    assert!(!lab.unit.log().contains("panicked"));
    outside.into_iter().for_each(Capture::assert_empty);
    // The kernel drops many of them before we see them; what we drop is counted.
    let status = lab.unit.status();
    let dropped = status["counters"]["dropped"].as_object().expect("counters");
    let total: u64 = dropped.values().filter_map(serde_json::Value::as_u64).sum();
    assert!(total > 10 && lab.unit.dropped("tcp-flags") > 0, "{status}");
}

/// Those of the malformed packets from the LAN that the kernel lets through to the gateway.
const COUNTED: [(&str, &str); 22] = [
    ("UDP length 0", "malformed"),
    ("UDP length 7", "malformed"),
    ("UDP length 65535", "truncated"),
    ("source is a virtual address", "spoofed-source"),
    ("land: source is destination", "martian"),
    ("destination is class E", "martian"),
    ("no flags", "tcp-flags"),
    ("SYN and FIN", "tcp-flags"),
    ("SYN and RST", "tcp-flags"),
    ("all flags", "tcp-flags"),
    ("TCP header of 0 bytes", "malformed"),
    ("TCP header longer than the packet", "truncated"),
    ("bad TCP checksum", "bad-checksum"),
    ("tiny first fragment", "malformed"),
    ("overlap: second", "fragment-overlap"),
    ("beyond the end", "malformed"),
    ("length no multiple of 8", "malformed"),
    ("empty fragment", "malformed"),
    ("teardrop: inside", "fragment-overlap"),
    ("IPv6: length 0", "truncated"),
    ("IPv6: mapped source", "martian"),
    ("IPv6: routing header type 0", "routing-header"),
];

#[test]
fn malformed_packets_are_counted_by_reason() {
    let lab = Lab::started();
    let socket = FrameSocket::open(&lab.lan2, "eth0");
    let mut counted = 0;
    for (what, frame) in malformed(&from_lan(&lab)) {
        let expected = COUNTED.iter().find(|(name, _)| *name == what);
        let before = expected.map(|(_, reason)| (reason, lab.unit.dropped(reason)));
        socket.send(&frame);
        if let Some((reason, before)) = before {
            testkit::system::process::wait_until(&format!("{what}: {reason}"), || {
                lab.unit.dropped(reason) > before
            });
            counted += 1;
        }
    }
    assert_eq!(counted, COUNTED.len(), "one of the names is not a packet");
    socket.finish();
}

#[test]
fn every_prefix_of_a_packet_is_survived() {
    let mut lab = Lab::started();
    let ends = from_lan(&lab);
    let socket = FrameSocket::open(&lab.lan2, "eth0");
    for frame in [ends.syn(), ends.udp(b"payload")] {
        for length in IP..frame.len() {
            socket.send(&frame[..length]);
        }
    }
    // Other values of each byte of the headers.
    for byte in IP..IP + 40 {
        for value in [0, 0x7f, 0xff] {
            let mut frame = ends.syn();
            frame[byte] = value;
            fix_ipv4_checksum_if_possible(&mut frame);
            socket.send(&frame);
        }
    }
    socket.finish();
    lab.lan1.run("ping -c 2 -i 0.1 -W 2 10.77.2.100");
    lab.unit.assert_running();
}

#[test]
fn spoofed_source_of_the_other_port_is_dropped() {
    let lab = Lab::started();
    let leaks = Capture::start(&lab.server, "eth0", &format!("udp dst port {TARGET}"));
    let mut ends = from_lan(&lab);
    ends.ip.0 = [10, 77, 2, 55];
    let socket = FrameSocket::open(&lab.lan2, "eth0");
    socket.send(&ends.udp(b"x"));
    socket.finish();
    testkit::system::process::wait_until("it is counted", || {
        lab.unit.dropped("spoofed-source") > 0
    });
    leaks.assert_empty();
}

fn fix_ipv4_checksum_if_possible(frame: &mut [u8]) {
    let length = usize::from(frame[IP] & 0xf) * 4;
    if (20..=frame.len() - IP).contains(&length) {
        fix_ipv4_checksum(frame);
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}
