//! Properties of all packets: every edit gives the same bytes as building the packet from scratch.

use proptest::prelude::*;

use super::*;
use crate::packet::build::{IcmpProblem, echo_reply, icmp_error, may_answer, tcp_reset};
use crate::packet::icmp_error::{ErrorKind, Quoted, quoted, translate_error};

fn sorts() -> impl Strategy<Value = Sort> {
    prop_oneof![
        Just(Sort::Tcp),
        Just(Sort::Udp),
        Just(Sort::UdpWithoutChecksum),
        Just(Sort::EchoRequest),
        Just(Sort::EchoReply),
    ]
}

fn addr(family: Family) -> BoxedStrategy<Addr> {
    match family {
        Family::V4 => any::<[u8; 4]>().prop_map(Addr::v4).boxed(),
        Family::V6 => any::<[u8; 16]>()
            .prop_map(Addr::v6)
            .prop_filter("mapped", |addr| !addr.is_v4())
            .boxed(),
    }
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..80)
}

fn keys_of(family: Family, sort: Sort) -> impl Strategy<Value = FlowKey> {
    (addr(family), addr(family), any::<u16>(), any::<u16>())
        .prop_map(move |(src, dst, src_port, dst_port)| key(sort, src, dst, src_port, dst_port))
}

/// A kind of packet, and two flows of one family that it may belong to.
fn pairs() -> impl Strategy<Value = (Sort, FlowKey, FlowKey)> {
    pairs_of(sorts())
}

fn pairs_of(sorts: impl Strategy<Value = Sort>) -> impl Strategy<Value = (Sort, FlowKey, FlowKey)> {
    (sorts, families())
        .prop_flat_map(|(sort, family)| (Just(sort), keys_of(family, sort), keys_of(family, sort)))
}

/// Bytes that are a packet, or nearly so.
fn near_packets() -> impl Strategy<Value = Vec<u8>> {
    let edits = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let cut = prop_oneof![3 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    (pairs(), payloads(), any::<bool>(), edits, cut).prop_map(
        |((sort, from, to), payload, as_error, edits, cut)| {
            let mut bytes = sample(sort, &from, &payload);
            if as_error {
                bytes = error_sample(to.src, from.src, &bytes);
            }
            for (index, byte) in edits {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

fn offloads() -> impl Strategy<Value = Offload> {
    (
        proptest::option::of(
            prop_oneof![any::<(u16, u16)>(), (0..90u16, 0..90u16)]
                .prop_map(|(start, field)| PartialChecksum { start, field }),
        ),
        any::<bool>(),
        prop_oneof![Just(0u16), Just(1448)],
    )
        .prop_map(
            |(partial_checksum, checksum_verified, segment_size)| Offload {
                partial_checksum,
                checksum_verified,
                segment_size,
            },
        )
}

// ---- properties -------------------------------------------------------------------------------

proptest! {
    #[test]
    fn parse_reads_what_was_built((sort, key, _) in pairs(), payload in payloads()) {
        let mut bytes = sample(sort, &key, &payload);
        let len = bytes.len();
        bytes.extend_from_slice(&[0xaa; 7]);
        let parsed = parse(&bytes, PLAIN).unwrap();
        prop_assert_eq!(parsed.key, key);
        prop_assert_eq!(parsed.family, key.src.family());
        prop_assert_eq!(parsed.total_len as usize, len);
        prop_assert_eq!(usize::from(parsed.header_len), header_len(&bytes));
        prop_assert_eq!(parsed.hop_limit, 60);
        prop_assert_eq!(parsed.fragment, None);
        prop_assert!(checksum_ok(&bytes, &parsed, PLAIN));
        match (sort, parsed.kind) {
            (Sort::Tcp, PacketKind::Tcp(segment)) => {
                prop_assert_eq!(segment, TcpSegment {
                    seq: 1000,
                    ack: 77,
                    payload_len: payload.len() as u32,
                    window: 5000,
                    flags: TcpFlags::ACK | TcpFlags::PSH,
                    window_scale: None,
                });
            }
            (Sort::Udp | Sort::UdpWithoutChecksum, PacketKind::Udp)
            | (Sort::EchoRequest, PacketKind::IcmpRequest)
            | (Sort::EchoReply, PacketKind::IcmpReply) => {}
            (_, kind) => prop_assert!(false, "{:?}", kind),
        }
    }

    #[test]
    fn translation_equals_building_again((sort, from, to) in pairs(), payload in payloads()) {
        let mut bytes = sample(sort, &from, &payload);
        let original = bytes.clone();
        translate(&mut bytes, &parse(&original, PLAIN).unwrap(), PLAIN, &to);
        prop_assert_eq!(&bytes, &sample(sort, &to, &payload));
        let parsed = parse(&bytes, PLAIN).unwrap();
        translate(&mut bytes, &parsed, PLAIN, &from);
        prop_assert_eq!(&bytes, &original);
    }

    #[test]
    fn translation_keeps_a_partial_checksum_partial(
        (sort, from, to) in pairs_of(prop_oneof![Just(Sort::Tcp), Just(Sort::Udp)]),
        payload in payloads(),
    ) {
        let mut bytes = sample(sort, &from, &payload);
        make_partial(&mut bytes, sort);
        let offload = partial(&bytes, sort);
        let parsed = parse(&bytes, offload).unwrap();
        prop_assert!(checksum_ok(&bytes, &parsed, offload));
        translate(&mut bytes, &parsed, offload, &to);
        let mut expected = sample(sort, &to, &payload);
        make_partial(&mut expected, sort);
        prop_assert_eq!(bytes, expected);
    }

    /// VXLAN and the like from a sender that leaves the inner checksum to the hardware: once it is
    /// finished, the packet is the one that a translation of the finished packet gives.
    #[test]
    fn the_checksum_of_a_packet_inside_may_be_the_unfinished_one(
        (outer, from, to) in pairs_of(prop_oneof![
            Just(Sort::Tcp), Just(Sort::Udp), Just(Sort::UdpWithoutChecksum),
        ]),
        (inner, carried, _) in pairs_of(prop_oneof![Just(Sort::Tcp), Just(Sort::Udp)]),
        tunnel_header in prop_oneof![Just(0usize), Just(4), Just(8), Just(22), Just(30)],
        payload in payloads(),
    ) {
        let whole = sample(inner, &carried, &payload);
        // Finished without knowing the protocol, 0 becomes 0xffff, which is equal in one's
        // complement.
        prop_assume!(u16_at(&whole, checksum_at(&whole, inner)) != Some(0));
        let mut unfinished = whole.clone();
        make_partial(&mut unfinished, inner);
        let wrap = |key, inner: &[u8]| sample(outer, key, &[&vec![9; tunnel_header], inner].concat());

        let complete = wrap(&from, &whole);
        let start = complete.len() - whole.len();
        let mut bytes = complete.clone();
        bytes[start..].copy_from_slice(&unfinished);
        let offload = partial_at(start + header_len(&whole), start + checksum_at(&whole, inner));
        let parsed = parse(&bytes, offload).unwrap();
        prop_assert!(checksum_ok(&bytes, &parsed, offload));
        translate(&mut bytes, &parsed, offload, &to);
        prop_assert_eq!(&bytes[start..], &unfinished[..], "what is inside stays");
        let parsed = parse(&bytes, offload).unwrap();
        complete_checksum(&mut bytes, &parsed, offload);
        prop_assert_eq!(&bytes, &wrap(&to, &whole));

        // A wrong one is detected.
        if outer != Sort::UdpWithoutChecksum {
            bytes[start..].copy_from_slice(&unfinished);
            bytes[start - 1] ^= 1;
            let parsed = parse(&bytes, offload);
            if tunnel_header > 0 && let Ok(parsed) = parsed {
                prop_assert!(!checksum_ok(&bytes, &parsed, offload));
            }
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong(
        (sort, from, to) in pairs_of(sorts().prop_map(|sort| match sort {
            Sort::UdpWithoutChecksum => Sort::Udp,
            sort => sort,
        })),
        payload in payloads(),
        error in 1u16..0xffff,
    ) {
        let mut bytes = sample(sort, &from, &payload);
        let at = checksum_at(&bytes, sort);
        let wrong = u16_at(&bytes, at).unwrap() ^ error;
        // 0 and 0xffff are equal in one's complement, and 0 means none in UDP.
        prop_assume!(wrong != 0 && error != 0xffff);
        bytes[at..at + 2].copy_from_slice(&wrong.to_be_bytes());
        let parsed = parse(&bytes, PLAIN).unwrap();
        prop_assert!(!checksum_ok(&bytes, &parsed, PLAIN));
        translate(&mut bytes, &parsed, PLAIN, &to);
        let parsed = parse(&bytes, PLAIN).unwrap();
        prop_assert!(!checksum_ok(&bytes, &parsed, PLAIN));
    }

    #[test]
    fn a_translation_with_a_hop_is_both_in_one(
        (sort, from, to) in pairs(),
        payload in payloads(),
        hops: u8,
    ) {
        let mut apart = sample(sort, &from, &payload);
        for _ in 0..hops {
            take_hop_limit(&mut apart, from.src.family());
        }
        let mut together = apart.clone();
        let parsed = parse(&apart, PLAIN).unwrap();
        translate(&mut apart, &parsed, PLAIN, &to);
        add_hop_limit(&mut apart, parsed.family);
        translate_with_hop(&mut together, &parsed, PLAIN, &to);
        prop_assert_eq!(apart, together);
    }

    #[test]
    fn hop_limit_round_trip((sort, key, _) in pairs(), hops: u8) {
        let mut bytes = sample(sort, &key, b"");
        let at = if key.src.is_v4() { 8 } else { 7 };
        for _ in hops..60 {
            take_hop_limit(&mut bytes, key.src.family());
        }
        for _ in 60..hops {
            add_hop_limit(&mut bytes, key.src.family());
        }
        prop_assert_eq!(bytes[at], hops);
        if sort != Sort::UdpWithoutChecksum {
            prop_assert!(checksums_right(&bytes));
        }
    }

    #[test]
    fn error_translation_equals_building_again(
        (sort, from, to) in pairs(),
        payload in payloads(),
        cut in 0usize..60,
    ) {
        let quote = |key| {
            let mut quote = sample(sort, key, &payload);
            let least = header_len(&quote) + 8;
            quote.truncate((least + cut * 2).min(quote.len()));
            quote
        };
        let mut bytes = error_sample(to.dst, from.src, &quote(&from));
        let original = bytes.clone();
        let parsed = parse(&bytes, PLAIN).unwrap();
        prop_assert_eq!(parsed.kind, PacketKind::IcmpError);
        let expected = Quoted {
            key: from,
            error: ErrorKind::TooBig { mtu: 1300 },
            tcp_seq: (sort == Sort::Tcp).then_some(1000),
        };
        prop_assert_eq!(quoted(&bytes, &parsed), Ok(expected));
        translate_error(&mut bytes, &parsed, PLAIN, from.dst, to.src, &to);
        prop_assert_eq!(&bytes, &error_sample(from.dst, to.src, &quote(&to)));
        let parsed = parse(&bytes, PLAIN).unwrap();
        translate_error(&mut bytes, &parsed, PLAIN, to.dst, from.src, &from);
        prop_assert_eq!(&bytes, &original);
    }

    #[test]
    fn nothing_panics_and_offsets_hold(
        bytes in prop_oneof![
            near_packets(),
            proptest::collection::vec(any::<u8>(), 0..120),
        ],
        offload in offloads(),
        (_, v4, _) in pairs(),
        (_, v6, _) in pairs(),
    ) {
        exercise(&bytes, offload, &[v4, v6])?;
    }

    #[test]
    fn our_packets_are_right((sort, key, _) in pairs(), payload in payloads(), mtu: u32) {
        let bytes = sample(sort, &key, &payload);
        let parsed = parse(&bytes, PLAIN).unwrap();
        let problem = IcmpProblem::TooBig { mtu };
        let built = [
            echo_reply(&bytes, &parsed, PLAIN).ok(),
            tcp_reset(&parsed),
            icmp_error(problem, key.dst, &bytes, &parsed),
        ];
        prop_assert_eq!(built[2].is_some(), may_answer(&parsed));
        for packet in built.into_iter().flatten() {
            prop_assert!(checksums_right(&packet));
            let parsed = parse(&packet, PLAIN).unwrap();
            prop_assert_eq!(parsed.total_len as usize, packet.len());
            prop_assert_eq!((parsed.key.src, parsed.key.dst), (key.dst, key.src));
            prop_assert!(checksum_ok(&packet, &parsed, PLAIN));
        }
    }
}

/// Calls everything that takes bytes from the network.
fn exercise(bytes: &[u8], offload: Offload, keys: &[FlowKey]) -> Result<(), TestCaseError> {
    let _ = neighbor::parse_frame(bytes);
    let nd = [
        &[0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd][..],
        bytes,
    ]
    .concat();
    let _ = neighbor::parse_frame(&nd);
    let Ok(parsed) = parse(bytes, offload) else {
        return Ok(());
    };
    prop_assert!(u32::from(parsed.header_len) <= parsed.total_len);
    prop_assert!(parsed.total_len as usize <= bytes.len());
    let _ = checksum_ok(bytes, &parsed, offload);
    let _ = (echo_reply(bytes, &parsed, offload), tcp_reset(&parsed));
    if let Some(error) = icmp_error(IcmpProblem::NoRoute, parsed.key.dst, bytes, &parsed) {
        let limit = if parsed.family == Family::V4 {
            576
        } else {
            1280
        };
        prop_assert!(error.len() <= limit);
        let outer = parse(&error, PLAIN).unwrap();
        prop_assert_eq!(outer.kind, PacketKind::IcmpError);
    }
    for to in keys.iter().filter(|to| to.src.family() == parsed.family) {
        let mut edited = bytes.to_vec();
        translate_error(&mut edited, &parsed, offload, to.src, to.dst, to);
        if quoted(bytes, &parsed).is_ok() {
            let again = parse(&edited, offload).unwrap();
            let inner = quoted(&edited, &again).unwrap().key;
            prop_assert_eq!((inner.src, inner.dst), (to.src, to.dst));
        } else {
            prop_assert_eq!(&edited[..], bytes);
        }
        translate(&mut edited, &parsed, offload, to);
        add_hop_limit(&mut edited, parsed.family);
        take_hop_limit(&mut edited, parsed.family);
        let again = parse(&edited, offload).unwrap();
        prop_assert_eq!((again.key.src, again.key.dst), (to.src, to.dst));
        prop_assert_eq!(again.kind, parsed.kind);
        match parsed.kind {
            PacketKind::Tcp(_) | PacketKind::Udp => {
                prop_assert_eq!(again.key.src_port, to.src_port);
                prop_assert_eq!(again.key.dst_port, to.dst_port);
            }
            PacketKind::IcmpRequest => prop_assert_eq!(again.key.src_port, to.src_port),
            PacketKind::IcmpReply => prop_assert_eq!(again.key.dst_port, to.dst_port),
            _ => prop_assert_eq!((again.key.src_port, again.key.dst_port), (0, 0)),
        }
    }
    Ok(())
}
