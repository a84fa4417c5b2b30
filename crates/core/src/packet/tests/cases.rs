//! One packet per rule: each is just outside or just within the rule, with the reason for the drop.

use super::*;

const A4: Addr = Addr::v4([10, 0, 0, 1]);
const B4: Addr = Addr::v4([192, 0, 2, 9]);
const A6: Addr = Addr::v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const B6: Addr = Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);

fn v4(sort: Sort) -> Vec<u8> {
    sample(sort, &key(sort, A4, B4, 4000, 80), b"data")
}

fn v6(sort: Sort) -> Vec<u8> {
    sample(sort, &key(sort, A6, B6, 4000, 80), b"data")
}

/// An IPv4 packet with these fields; `options` is a multiple of 4 long.
fn v4_packet(protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut bytes = vec![0x40 | (header_len / 4) as u8, 0];
    bytes.extend_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    bytes.extend_from_slice(&[0x12, 0x34]);
    bytes.extend_from_slice(&fragment.to_be_bytes());
    bytes.extend_from_slice(&[60, protocol, 0, 0]);
    bytes.extend_from_slice(A4.wire());
    bytes.extend_from_slice(B4.wire());
    bytes.extend_from_slice(options);
    bytes.extend_from_slice(payload);
    bytes
}

/// An IPv6 packet whose payload begins with the header `next`.
fn v6_packet(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[next, 60]);
    bytes.extend_from_slice(A6.wire());
    bytes.extend_from_slice(B6.wire());
    bytes.extend_from_slice(payload);
    bytes
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const UDP: u8 = 17;
const TCP: u8 = 6;

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x0f, 0xa0, 0, 80, 0, 8 + payload.len() as u8, 0, 0];
    bytes.extend_from_slice(payload);
    bytes
}

fn edited(mut bytes: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
    for &(at, byte) in edits {
        bytes[at] = byte;
    }
    bytes
}

fn error_of(bytes: &[u8]) -> Option<DropReason> {
    parse(bytes, PLAIN).err()
}

#[track_caller]
fn assert_drops(cases: &[(&str, Vec<u8>, DropReason)]) {
    for (name, bytes, reason) in cases {
        assert_eq!(error_of(bytes), Some(*reason), "{name}");
    }
}

#[test]
fn malformed_ipv4() {
    use DropReason::*;
    assert_drops(&[
        ("empty", vec![], Truncated),
        ("version 5", edited(v4(Sort::Tcp), &[(0, 0x55)]), Malformed),
        ("half a header", v4(Sort::Tcp)[..19].to_vec(), Truncated),
        (
            "header length of 16",
            edited(v4(Sort::Tcp), &[(0, 0x44)]),
            Malformed,
        ),
        (
            "total length beyond the buffer",
            edited(v4(Sort::Tcp), &[(3, 200)]),
            Truncated,
        ),
        (
            "total length below the header's",
            edited(v4(Sort::Tcp), &[(3, 19)]),
            Malformed,
        ),
        (
            "ICMPv6",
            v4_packet(58, 0, &[], &[128, 0, 0, 0, 0, 0, 0, 0]),
            Malformed,
        ),
        (
            "loose source route",
            v4_packet(UDP, 0, &[131, 3, 4, 0], &udp(b"")),
            Martian,
        ),
        (
            "strict source route",
            v4_packet(UDP, 0, &[1, 137, 3, 4], &udp(b"")),
            Martian,
        ),
        (
            "option of length 1",
            v4_packet(UDP, 0, &[7, 1, 0, 0], &udp(b"")),
            Malformed,
        ),
        (
            "option beyond the header",
            v4_packet(UDP, 0, &[7, 5, 0, 0], &udp(b"")),
            Malformed,
        ),
        (
            "option without length",
            v4_packet(UDP, 0, &[1, 1, 1, 7], &udp(b"")),
            Malformed,
        ),
    ]);
    let record_route = v4_packet(UDP, 0, &[7, 3, 4, 0], &udp(b""));
    assert_eq!(parse(&record_route, PLAIN).unwrap().header_len, 24);
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of packets")]
fn malformed_ipv6() {
    use DropReason::*;
    let mut mapped = v6(Sort::Udp);
    mapped[8..24].copy_from_slice(A4.octets());
    let chain = |len: u8| {
        let mut payload = Vec::new();
        for index in 0..len {
            let next = if index + 1 == len {
                UDP
            } else {
                DESTINATION_OPTIONS
            };
            payload.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
        }
        payload.extend_from_slice(&udp(b""));
        v6_packet(DESTINATION_OPTIONS, &payload)
    };
    let with = |header: [u8; 8], next: u8| v6_packet(next, &[&header[..], &udp(b"")].concat());
    assert_drops(&[
        ("half a header", v6(Sort::Tcp)[..39].to_vec(), Truncated),
        (
            "payload length beyond the buffer",
            edited(v6(Sort::Tcp), &[(5, 200)]),
            Truncated,
        ),
        ("mapped address", mapped, Martian),
        (
            "ICMP for IPv4",
            v6_packet(1, &[8, 0, 0, 0, 0, 0, 0, 0]),
            Malformed,
        ),
        (
            "routing header 0",
            with([UDP, 0, 0, 0, 0, 0, 0, 0], ROUTING),
            RoutingHeader,
        ),
        (
            "routing header 0 with segments left",
            with([UDP, 0, 0, 1, 0, 0, 0, 0], ROUTING),
            RoutingHeader,
        ),
        (
            "jumbogram",
            with([UDP, 0, 0xc2, 4, 0, 1, 0, 0], HOP_BY_HOP),
            Malformed,
        ),
        (
            "option beyond its header",
            with([UDP, 0, 5, 9, 0, 0, 0, 0], HOP_BY_HOP),
            Malformed,
        ),
        (
            "header beyond the packet",
            with([UDP, 9, 1, 4, 0, 0, 0, 0], HOP_BY_HOP),
            Truncated,
        ),
        (
            "late hop-by-hop",
            with([HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0], 60),
            Malformed,
        ),
        ("chain of 9", chain(9), Malformed),
    ]);
    let parsed = parse(&chain(8), PLAIN).unwrap();
    assert_eq!((parsed.header_len, parsed.kind), (40 + 64, PacketKind::Udp));
    let finished_routing = with([UDP, 0, 4, 0, 0, 0, 0, 0], ROUTING);
    let finished = parse(&finished_routing, PLAIN).unwrap();
    assert_eq!(
        (finished.kind, finished.has_segments_left),
        (PacketKind::Udp, false)
    );
    for routing_type in [2, 3, 4, 253] {
        let routed = with([UDP, 0, routing_type, 1, 0, 0, 0, 0], ROUTING);
        let parsed = parse(&routed, PLAIN).unwrap();
        assert_eq!(
            (parsed.kind, parsed.has_segments_left),
            (PacketKind::Udp, true)
        );
        assert!(checksum_ok(&routed, &parsed, PLAIN), "nobody here can tell");
    }
    let router_alert = with([UDP, 0, 5, 2, 0, 0, 1, 0], HOP_BY_HOP);
    assert_eq!(parse(&router_alert, PLAIN).unwrap().key.dst_port, 80);
}

#[test]
fn malformed_transport() {
    use DropReason::*;
    for (bytes, at) in [(v4 as fn(Sort) -> Vec<u8>, 20), (v6, 40)] {
        let length_at = if at == 20 { 3 } else { 5 };
        let base = if at == 20 { 20 } else { 0 };
        let tcp_flags = |flags| edited(bytes(Sort::Tcp), &[(at + 13, flags)]);
        assert_drops(&[
            (
                "short TCP",
                edited(bytes(Sort::Tcp), &[(length_at, base + 19)]),
                Truncated,
            ),
            (
                "data offset 4",
                edited(bytes(Sort::Tcp), &[(at + 12, 0x40)]),
                Malformed,
            ),
            (
                "data offset beyond",
                edited(bytes(Sort::Tcp), &[(at + 12, 0x70)]),
                Truncated,
            ),
            ("null", tcp_flags(0), TcpFlags),
            ("PSH alone", tcp_flags(0x08), TcpFlags),
            ("SYN FIN", tcp_flags(0x03), TcpFlags),
            ("SYN RST", tcp_flags(0x06), TcpFlags),
            ("FIN RST ACK", tcp_flags(0x15), TcpFlags),
            ("FIN without ACK", tcp_flags(0x01), TcpFlags),
            ("xmas", tcp_flags(0x29), TcpFlags),
            (
                "short UDP",
                edited(bytes(Sort::Udp), &[(length_at, base + 7)]),
                Truncated,
            ),
            (
                "UDP length 7",
                edited(bytes(Sort::Udp), &[(at + 5, 7)]),
                Malformed,
            ),
            (
                "UDP length 0",
                edited(bytes(Sort::Udp), &[(at + 5, 0)]),
                Malformed,
            ),
            (
                "UDP length beyond",
                edited(bytes(Sort::Udp), &[(at + 5, 13)]),
                Truncated,
            ),
            (
                "short ICMP",
                edited(bytes(Sort::EchoReply), &[(length_at, base + 7)]),
                Truncated,
            ),
        ]);
        for flags in [0x02, 0x12, 0xc2, 0x10, 0x18, 0x11, 0x04, 0x14, 0x30] {
            assert_eq!(error_of(&tcp_flags(flags)), None, "flags {flags:#x}");
        }
    }
}

#[test]
fn window_scale_of_a_syn() {
    let syn = |options: &[u8]| {
        let mut bytes = Vec::new();
        let step = ip_step(A4, B4).tcp(1, 2, 3, 4).syn();
        step.options_raw(options)
            .unwrap()
            .write(&mut bytes, b"")
            .unwrap();
        match parse(&bytes, PLAIN).unwrap().kind {
            PacketKind::Tcp(segment) => segment.window_scale,
            kind => panic!("{kind:?}"),
        }
    };
    assert_eq!(syn(&[2, 4, 5, 0xb4, 1, 3, 3, 7]), Some(7));
    assert_eq!(syn(&[3, 3, 200, 0]), Some(14));
    assert_eq!(syn(&[2, 4, 5, 0xb4]), None);
    assert_eq!(syn(&[0, 3, 3, 7]), None, "after the end of the list");
    assert_eq!(
        syn(&[9, 0, 3, 3, 7, 0, 0, 0]),
        None,
        "a broken option ends the walk"
    );
}

// ---- fragments --------------------------------------------------------------------------------

fn v6_fragment(next: u8, offset_and_more: u16, payload: &[u8]) -> Vec<u8> {
    let field = offset_and_more.to_be_bytes();
    let header = [next, 0, field[0], field[1], 0xde, 0xad, 0xbe, 0xef];
    v6_packet(FRAGMENT, &[&header[..], payload].concat())
}

#[test]
fn fragments_of_both_families() {
    let first = udp(b"12345678");
    let (first4, first6) = (
        v4_packet(UDP, 0x2000, &[], &first),
        v6_fragment(UDP, 1, &first),
    );
    for (bytes, id) in [(first4, 0x1234), (first6, 0xdead_beef)] {
        let parsed = parse(&bytes, PLAIN).unwrap();
        assert_eq!((parsed.kind, parsed.key.src_port), (PacketKind::Udp, 4000));
        let expected = Fragment {
            id,
            offset: 0,
            more: true,
            len: 16,
        };
        assert_eq!(parsed.fragment, Some(expected));
        assert!(checksum_ok(&bytes, &parsed, PLAIN));
    }
    let (last4, last6) = (v4_packet(UDP, 2, &[], b"end"), v6_fragment(UDP, 16, b"end"));
    for (bytes, id) in [(last4, 0x1234), (last6, 0xdead_beef)] {
        let parsed = parse(&bytes, PLAIN).unwrap();
        assert_eq!(
            (parsed.kind, parsed.key.src_port),
            (PacketKind::LaterFragment, 0)
        );
        assert_eq!(parsed.key.protocol, Protocol::UDP);
        assert_eq!(
            parsed.fragment,
            Some(Fragment {
                id,
                offset: 16,
                more: false,
                len: 3
            })
        );
        assert_eq!(parsed.transport(&bytes), b"end");
    }
}

#[test]
fn an_atomic_fragment_is_a_packet() {
    let bytes = v6_fragment(UDP, 0, &udp(b"whole"));
    let parsed = parse(&bytes, PLAIN).unwrap();
    assert_eq!(
        (parsed.kind, parsed.fragment, parsed.header_len),
        (PacketKind::Udp, None, 48)
    );
}

#[test]
fn a_later_fragment_gets_addresses_only() {
    let to = key(Sort::Udp, B4, A4, 1, 2);
    let mut bytes = v4_packet(UDP, 2, &[], b"payload!");
    let parsed = parse(&bytes, PLAIN).unwrap();
    translate(&mut bytes, &parsed, PLAIN, &to);
    assert_eq!(bytes[20..], *b"payload!");
    let again = parse(&bytes, PLAIN).unwrap().key;
    assert_eq!((again.src, again.dst), (B4, A4));
}

#[test]
fn malformed_fragments() {
    use DropReason::*;
    let nested = v6_fragment(
        FRAGMENT,
        1,
        &[&[UDP, 0, 0, 1, 0, 0, 0, 1][..], &udp(b"")].concat(),
    );
    assert_drops(&[
        (
            "first without UDP header",
            v4_packet(UDP, 0x2000, &[], &udp(b"")[..0]),
            Malformed,
        ),
        (
            "first too short for TCP (v4)",
            v4_packet(TCP, 0x2000, &[], &[0; 8]),
            Truncated,
        ),
        (
            "first too short for TCP (v6)",
            v6_fragment(TCP, 1, &[0; 8]),
            Truncated,
        ),
        (
            "over the flags of TCP (v4)",
            v4_packet(TCP, 0x2001, &[], &[0; 8]),
            FragmentOverlap,
        ),
        (
            "over the flags of TCP (v6)",
            v6_fragment(TCP, 8, &[0; 8]),
            FragmentOverlap,
        ),
        (
            "part of a block (v4)",
            v4_packet(UDP, 0x2002, &[], b"123"),
            Malformed,
        ),
        (
            "part of a block (v6)",
            v6_fragment(UDP, 17, b"123"),
            Malformed,
        ),
        (
            "beyond 65535 (v4)",
            v4_packet(UDP, 0x1fff, &[], &[0; 8]),
            Malformed,
        ),
        (
            "beyond 65535 (v6)",
            v6_fragment(UDP, 0xfff8, &[0; 8]),
            Malformed,
        ),
        ("without data", v6_fragment(UDP, 16, b""), Malformed),
        (
            "header cut off",
            v6_packet(FRAGMENT, &[UDP, 0, 0, 1]),
            Truncated,
        ),
        ("nested", nested, Malformed),
        (
            "first without its header chain (RFC 7112)",
            v6_fragment(DESTINATION_OPTIONS, 1, &[UDP, 1, 1, 4, 0, 0, 0, 0]),
            Truncated,
        ),
    ]);
}

// ---- checksums and offloads -------------------------------------------------------------------

#[test]
fn checksums_are_verified() {
    let verified = Offload {
        checksum_verified: true,
        ..PLAIN
    };
    for sort in [Sort::Tcp, Sort::Udp, Sort::EchoRequest, Sort::EchoReply] {
        for bytes in [v4(sort), v6(sort)] {
            let mut bytes = bytes;
            let parsed = parse(&bytes, PLAIN).unwrap();
            assert!(checksum_ok(&bytes, &parsed, PLAIN));
            *bytes.last_mut().unwrap() ^= 1;
            assert!(!checksum_ok(&bytes, &parsed, PLAIN));
            assert!(checksum_ok(&bytes, &parsed, verified));
            assert!(checksum_ok(&bytes, &parsed, partial(&bytes, sort)));
        }
    }
}

#[test]
fn bytes_beyond_the_udp_length_are_not_summed() {
    let mut bytes = v4(Sort::Udp);
    bytes.extend_from_slice(b"surplus");
    bytes[3] += 7;
    let parsed = parse(&bytes, PLAIN).unwrap();
    assert!(checksum_ok(&bytes, &parsed, PLAIN));
}

#[test]
fn super_packets() {
    let offload = Offload {
        segment_size: 1448,
        ..PLAIN
    };
    let payload = vec![7; 60000];
    for (src, dst) in [(A4, B4), (A6, B6)] {
        let bytes = sample(Sort::Tcp, &key(Sort::Tcp, src, dst, 1, 2), &payload);
        let PacketKind::Tcp(segment) = parse(&bytes, offload).unwrap().kind else {
            panic!()
        };
        assert_eq!(segment.payload_len, 60000);

        let mut udp = sample(Sort::Udp, &key(Sort::Udp, src, dst, 1, 2), &payload);
        let at = header_len(&udp) + 4;
        udp[at..at + 2].fill(0);
        assert_eq!(parse(&udp, offload).unwrap().kind, PacketKind::Udp);

        // Too big for the length field of IP.
        let mut huge = bytes.clone();
        huge.resize(70000, 0);
        let at = if src.is_v4() { 2 } else { 4 };
        huge[at..at + 2].fill(0);
        assert_eq!(parse(&huge, offload).unwrap().total_len, 70000);
        assert!(error_of(&huge).is_some());
    }
}

// ---- addresses --------------------------------------------------------------------------------

#[test]
fn martians() {
    let martian_from = |src: &str, dst: &str| {
        let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().unwrap());
        martian(&key(Sort::Udp, addr(src), addr(dst), 1, 2))
    };
    for addr in ["0.1.2.3", "127.0.0.1", "10.0.0.1"] {
        assert!(martian_from(addr, "10.0.0.1"), "from {addr}");
        assert!(martian_from("10.0.0.1", addr), "to {addr}");
    }
    for addr in ["::", "::1", "fd00::1"] {
        assert!(martian_from(addr, "fd00::1"), "from {addr}");
        assert!(martian_from("fd00::1", addr), "to {addr}");
    }
    assert!(martian_from("224.0.0.1", "10.0.0.1"));
    assert!(martian_from("255.255.255.255", "10.0.0.1"));
    assert!(martian_from("ff02::1", "fd00::1"));
    for (src, dst) in [
        ("10.0.0.1", "8.8.8.8"),
        ("10.0.0.1", "224.0.0.251"),
        ("10.0.0.1", "255.255.255.255"),
        ("169.254.0.1", "10.0.0.1"),
        ("fd00::1", "2001:db8::1"),
        ("fe80::1", "ff02::1"),
    ] {
        assert!(!martian_from(src, dst), "{src} to {dst}");
    }
}

#[test]
fn what_is_forwarded() {
    let forwardable =
        |text: &str| forwardable(Addr::from(text.parse::<std::net::IpAddr>().unwrap()));
    for addr in [
        "224.0.0.1",
        "239.1.1.1",
        "255.255.255.255",
        "169.254.1.1",
        "fe80::1",
        "febf::1",
    ] {
        assert!(!forwardable(addr), "{addr}");
    }
    assert!(!forwardable("ff0e::1"));
    for addr in [
        "10.0.0.1",
        "169.253.1.1",
        "fec0::1",
        "fd00::1",
        "2001:db8::1",
    ] {
        assert!(forwardable(addr), "{addr}");
    }
}

#[test]
fn translation_past_extension_headers() {
    let key_of = |port| key(Sort::Udp, A6, B6, port, 80);
    let behind_options = |port| {
        let datagram = &sample(Sort::Udp, &key_of(port), b"data")[40..];
        v6_packet(
            DESTINATION_OPTIONS,
            &[&[UDP, 0, 1, 4, 0, 0, 0, 0], datagram].concat(),
        )
    };
    let mut bytes = behind_options(4000);
    let parsed = parse(&bytes, PLAIN).unwrap();
    assert!(checksum_ok(&bytes, &parsed, PLAIN));
    translate(&mut bytes, &parsed, PLAIN, &key_of(5000));
    assert_eq!(bytes, behind_options(5000));
}
