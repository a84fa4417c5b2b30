//! The program of the fast path in the kernel's test runs, beside the core: it forwards what the
//! core would forward, byte by byte, and leaves everything else alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use tandemgw::os::clock;
use tandemgw::os::fast_path::{FORWARDED, FastPath, GO_ON, programs_at};
use tandemgw_core::event::Offload;
use tandemgw_core::fast_path::{Entry, Flow, Memory, SessionCell, Way};
use tandemgw_core::flow::{Addr, Direction, FlowKey, GroupId, Protocol};
use tandemgw_core::packet::{self, PacketKind, TcpFlags};
use tandemgw_core::session::{Numbers, tcp};
use tandemgw_core::time::Time;
use testkit::fast_path::Program;
use testkit::packets::{self, Pkt};
use testkit::system::namespace::Namespace;

/// The loopback interface, by which test runs come in.
const LOOPBACK: u32 = 1;
const PLACE: u32 = 3;
const SERIAL: u32 = 7;
const MTU: u32 = 1500;
const ETHERNET: usize = 14;

/// None in a user namespace, where nobody may load programs.
fn load() -> Option<FastPath> {
    load_for(4)
}

/// The same, with room for so many sessions.
fn load_for(sessions: u32) -> Option<FastPath> {
    match FastPath::load(sessions, 2) {
        Ok(fast_path) => {
            fast_path.memory().groups[1].lease(Time::from_nanos(u64::MAX));
            Some(fast_path)
        }
        Err(error) if is_in_user_namespace() => {
            eprintln!("not tested in a user namespace: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn is_in_user_namespace() -> bool {
    let ids = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    ids.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

/// Of a session whose packets come in as `from` and leave as `to`, and back.
fn entry(from: FlowKey, to: FlowKey) -> Entry {
    let way = |key: FlowKey, next_hop| Way {
        flow: Flow {
            key,
            interface: LOOPBACK,
        },
        next_hop,
        mtu: MTU,
    };
    Entry {
        ways: [way(from, to.dst), way(to.reply(), from.src)],
        group: GroupId(1),
        epoch: 0,
        shifts: [0; 2],
        is_incomplete: false,
    }
}

fn enter(fast_path: &FastPath, entry: &Entry) {
    fast_path.memory().leave(PLACE);
    let begin = (clock::now(), SERIAL);
    assert!(fast_path.memory().enter(PLACE, begin, &numbers(), entry));
}

fn leave(fast_path: &FastPath) {
    fast_path.memory().leave(PLACE);
}

fn cell(fast_path: &FastPath) -> &'static SessionCell {
    &fast_path.memory().sessions[PLACE as usize]
}

/// The frame that brings an IP packet to the loopback interface.
fn frame(ip: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if ip[0] >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [&[0; 12][..], &kind, ip].concat()
}

/// What a run makes of an IP packet; none if it goes on to the process, which must not change it.
fn run(fast_path: &FastPath, ip: &[u8], complete: bool) -> Option<Vec<u8>> {
    let before = frame(ip);
    let run = match fast_path.test_run(&before, &[], complete) {
        // The kernel runs nothing with less than an IP header.
        Err(error) if error.raw_os_error() == Some(22) && ip.len() < 40 => return None,
        run => run.unwrap(),
    };
    match run.verdict {
        FORWARDED => Some(run.frame[ETHERNET..].to_vec()),
        GO_ON => {
            assert_eq!(run.frame, before, "a packet for the process was changed");
            None
        }
        other => panic!("verdict {other}"),
    }
}

/// What kernel and gateway make of it without a fast path.
fn expected(ip: &[u8], to: &FlowKey) -> Vec<u8> {
    let mut bytes = ip.to_vec();
    let offload = Offload::default();
    let parsed = packet::parse(&bytes, offload).unwrap();
    packet::take_hop_limit(&mut bytes, parsed.family);
    packet::translate_with_hop(&mut bytes, &parsed, offload, to);
    packet::take_hop_limit(&mut bytes, parsed.family);
    bytes
}

fn address(v6: bool) -> BoxedStrategy<Addr> {
    match v6 {
        true => any::<[u8; 13]>()
            .prop_map(|rest| {
                let mut octets = [0x20, 1, 0xd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                octets[3..].copy_from_slice(&rest);
                Addr::v6(octets)
            })
            .boxed(),
        false => any::<[u8; 3]>()
            .prop_map(|[a, b, c]| Addr::v4([10, a, b, c]))
            .boxed(),
    }
}

fn key(v6: bool, protocol: Protocol) -> impl Strategy<Value = FlowKey> {
    let port = prop_oneof![any::<u16>(), Just(0), Just(0xffff)];
    let ports = (port.clone(), port);
    (address(v6), address(v6), ports).prop_map(move |(src, dst, ports)| FlowKey {
        src,
        dst,
        src_port: ports.0,
        dst_port: ports.1,
        protocol,
    })
}

/// A flow, and its translation: often only of one side.
fn translation() -> impl Strategy<Value = (FlowKey, FlowKey)> {
    (any::<bool>(), any::<bool>()).prop_flat_map(|(v6, is_tcp)| {
        let protocol = if is_tcp { Protocol::TCP } else { Protocol::UDP };
        let keys = (key(v6, protocol), key(v6, protocol));
        (keys, any::<[bool; 4]>()).prop_map(|((from, other), changes)| {
            let mut to = from;
            if changes[0] {
                to.src = other.src;
            }
            if changes[1] {
                to.dst = other.dst;
            }
            if changes[2] {
                to.src_port = other.src_port;
            }
            if changes[3] {
                to.dst_port = other.dst_port;
            }
            (from, to)
        })
    })
}

fn packet(key: &FlowKey, payload: &[u8]) -> Pkt {
    let ends = ((key.src, key.src_port), (key.dst, key.dst_port));
    match key.protocol {
        Protocol::UDP => packets::udp(ends.0, ends.1).payload(payload),
        _ => packets::tcp(ends.0, ends.1, TcpFlags::ACK, 100, 200).payload(payload),
    }
}

/// Numbers with which the segments of [`packet`] fit.
fn numbers() -> Numbers {
    Numbers {
        end: [100, 200],
        acked: [100, 200],
        window: [60_000; 2],
        hole: [false; 2],
    }
}

fn checksum_at(ip: &[u8]) -> usize {
    let (start, protocol) = if ip[0] >> 4 == 4 {
        (20, ip[9])
    } else {
        (40, ip[6])
    };
    start + if protocol == Protocol::TCP.0 { 16 } else { 6 }
}

/// A sum of zero has two forms, 0 and 0xffff, which mean the same to TCP (RFC 1071, section 2). The
/// kernel and the core may choose differently. To UDP they are not the same: 0 is none.
fn with_one_zero(mut ip: Vec<u8>) -> Vec<u8> {
    let at = checksum_at(&ip);
    let is_tcp = ip[if ip[0] >> 4 == 4 { 9 } else { 6 }] == Protocol::TCP.0;
    if is_tcp && ip[at..at + 2] == [0xff; 2] {
        ip[at..at + 2].fill(0);
    }
    ip
}

/// Whether the kernel can run a program with a frame that the hardware has summed up.
fn knows_complete(fast_path: &FastPath) -> bool {
    let key = FlowKey {
        src: Addr::v4([10, 0, 0, 1]),
        dst: Addr::v4([10, 0, 0, 2]),
        src_port: 1,
        dst_port: 2,
        protocol: Protocol::UDP,
    };
    let frame = frame(&packet(&key, b"x").bytes());
    fast_path.test_run(&frame, &[], true).is_ok()
}

#[test]
fn what_it_forwards_is_what_the_gateway_would_send() {
    let Some(fast_path) = load() else { return };
    let complete = knows_complete(&fast_path);
    let checksum = prop_oneof![
        Just(None),
        Just(Some(0_u16)),
        Just(Some(0xffff)),
        any::<u16>().prop_map(Some)
    ];
    let payload = proptest::collection::vec(any::<u8>(), 0..300);
    let strategy = (translation(), payload, checksum, any::<bool>());
    let mut runner = TestRunner::new(Config::with_cases(2000));
    let result = runner.run(&strategy, |((from, to), payload, checksum, summed)| {
        let mut ip = packet(&from, &payload).bytes();
        if let Some(checksum) = checksum {
            let at = checksum_at(&ip);
            ip[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        enter(&fast_path, &entry(from, to));
        let out = run(&fast_path, &ip, complete && summed);
        leave(&fast_path);
        let expected = expected(&ip, &to);
        prop_assert_eq!(out.map(with_one_zero), Some(with_one_zero(expected)));
        let taken = cell(&fast_path).take(Direction::Original);
        prop_assert_eq!(taken, (1, ip.len() as u64));
        prop_assert_eq!(run(&fast_path, &ip, false), None, "it has left");
        Ok(())
    });
    result.unwrap();
}

/// A connection between two random beginnings, with these windows.
fn connection(start: [u32; 2], window: [u16; 2]) -> tcp::Tracker {
    let segment = |flags, seq, ack, window| tcp::Segment {
        seq,
        ack,
        payload_len: 0,
        window,
        flags,
        window_scale: Some(2),
    };
    let syn = segment(TcpFlags::SYN, start[0], 0, window[0]);
    let mut tracker = tcp::Tracker::open(&syn).unwrap();
    let next = start.map(|seq| seq.wrapping_add(1));
    let answer = segment(TcpFlags::SYN | TcpFlags::ACK, start[1], next[0], window[1]);
    tracker.handle(Direction::Reply, &answer).unwrap();
    let ack = segment(TcpFlags::ACK, next[0], next[1], window[0]);
    tracker.handle(Direction::Original, &ack).unwrap();
    tracker
}

/// As after a takeover, when a segment of each side has been seen again.
fn take_over(tracker: &mut tcp::Tracker, start: [u32; 2], window: [u16; 2]) {
    tracker.resume();
    for direction in [Direction::Original, Direction::Reply] {
        let at = direction as usize;
        let next = [start[at], start[1 - at]].map(|seq| seq.wrapping_add(1));
        let ack = tcp::Segment {
            seq: next[0],
            ack: next[1],
            payload_len: 0,
            window: window[at],
            flags: TcpFlags::ACK,
            window_scale: None,
        };
        tracker.handle(direction, &ack).unwrap();
    }
}

/// Whether it is of the reply direction; sequence number and acknowledgment, relative to what was
/// sent; payload; window.
type Step = (bool, i64, i64, usize, u16);

fn compare_judgement(
    (fast_path, model): (&FastPath, &Program),
    tracker: &mut tcp::Tracker,
    key: &FlowKey,
    (is_reply, seq, ack, length, window): Step,
) -> Result<(), TestCaseError> {
    let (direction, from) = match is_reply {
        true => (Direction::Reply, key.reply()),
        false => (Direction::Original, *key),
    };
    let known = tracker.numbers().unwrap();
    let (own, other) = (direction as usize, 1 - direction as usize);
    let seq = known.end[own].wrapping_add(seq as u32);
    let ack = known.end[other].wrapping_add(ack as u32);
    let ends = ((from.src, from.src_port), (from.dst, from.dst_port));
    let pkt = packets::tcp(ends.0, ends.1, TcpFlags::ACK, seq, ack);
    let mut ip = pkt.payload(&vec![0; length]).bytes();
    ip[34..36].copy_from_slice(&window.to_be_bytes());
    let parsed = packet::parse(&ip, Offload::default()).unwrap();
    let PacketKind::Tcp(segment) = parsed.kind else {
        panic!("no segment");
    };
    let accepted = tracker.handle(direction, &segment).is_ok();
    let forwarded = run(fast_path, &ip, false).is_some();
    let modelled = model.run(LOOPBACK, &ip, clock::now()).map(|it| it.bytes);
    prop_assert_eq!(modelled.is_some(), forwarded, "the model of testkit");
    let followed = model.memory.sessions[PLACE as usize].numbers();
    prop_assert_eq!(followed, cell(fast_path).numbers());
    prop_assert_eq!(
        forwarded,
        accepted,
        "{:?} of {:?} after {:?}",
        segment,
        direction,
        known
    );
    prop_assert_eq!(cell(fast_path).numbers(), tracker.numbers().unwrap());
    // What was taken over again changes nothing.
    let mut again = tracker.clone();
    again.catch_up(&cell(fast_path).numbers());
    prop_assert_eq!(&again, &*tracker);
    Ok(())
}

/// Segments in and around the windows: each is judged, and moves the numbers, as by the tracker.
#[test]
fn it_follows_connections_like_the_tracker() {
    let Some(fast_path) = load() else { return };
    let key = FlowKey {
        src: Addr::v4([10, 1, 2, 3]),
        dst: Addr::v4([10, 9, 8, 7]),
        src_port: 4000,
        dst_port: 80,
        protocol: Protocol::TCP,
    };
    let offset = prop_oneof![
        -3000_i64..3000,
        prop_oneof![Just(0_i64), Just(66_000), Just(-66_000)],
        -300_000_i64..300_000,
        any::<i32>().prop_map(i64::from)
    ];
    let offset = || (prop_oneof![Just(0_i64), offset.clone()], -2_i64..3).prop_map(|(a, b)| a + b);
    let segment = (
        any::<bool>(),
        offset(),
        offset(),
        0..1400_usize,
        any::<u16>(),
    );
    let segments = proptest::collection::vec(segment, 1..40);
    let strategy = (
        any::<[u32; 2]>(),
        any::<[u16; 2]>(),
        any::<bool>(),
        segments,
    );
    let mut runner = TestRunner::new(Config::with_cases(500));
    let result = runner.run(&strategy, |(start, window, taken_over, segments)| {
        let mut tracker = connection(start, window);
        if taken_over {
            take_over(&mut tracker, start, window);
        }
        let Some(numbers) = tracker.numbers() else {
            return Ok(());
        };
        let memory = Memory::unshared(2, 4);
        let model = Program { memory };
        memory.groups[1].lease(Time::from_nanos(u64::MAX));
        let entry = Entry {
            shifts: [Direction::Original, Direction::Reply].map(|it| tracker.shift_of(it)),
            is_incomplete: tracker.is_incomplete(),
            ..entry(key, key)
        };
        for memory in [fast_path.memory(), memory] {
            memory.leave(PLACE);
            assert!(memory.enter(PLACE, (clock::now(), SERIAL), &numbers, &entry));
        }
        for segment in segments {
            compare_judgement((&fast_path, &model), &mut tracker, &key, segment)?;
        }
        Ok(())
    });
    result.unwrap();
}

fn example(v6: bool, protocol: Protocol) -> (FlowKey, FlowKey) {
    let addr = |last| match v6 {
        true => Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
        false => Addr::v4([10, 0, 0, last]),
    };
    let from = FlowKey {
        src: addr(1),
        dst: addr(2),
        src_port: 1000,
        dst_port: 2000,
        protocol,
    };
    let to = FlowKey {
        src: addr(9),
        src_port: 5555,
        ..from
    };
    (from, to)
}

#[test]
fn one_store_ends_what_an_entry_allows() {
    let Some(fast_path) = load() else { return };
    let (from, to) = example(false, Protocol::UDP);
    let ip = packet(&from, b"hello").bytes();
    let forwards = || run(&fast_path, &ip, false).is_some();
    let (group, session) = (&fast_path.memory().groups[1], cell(&fast_path));
    assert!(!forwards(), "it is not known yet");
    enter(&fast_path, &entry(from, to));
    assert!(forwards());
    session.stop();
    assert!(!forwards(), "the session was stopped");
    enter(&fast_path, &entry(from, to));
    group.lease(clock::now());
    assert!(!forwards(), "the lease is over");
    group.lease(clock::now() + std::time::Duration::from_secs(60));
    assert!(forwards());
    assert_eq!(group.next_epoch(), 1);
    assert!(!forwards(), "the group has another epoch");
    let later = Entry {
        epoch: 1,
        ..entry(from, to)
    };
    enter(&fast_path, &later);
    assert!(forwards());
    let counts = fast_path.counts();
    assert!(counts.contains(&("not-in-force", 3)), "{counts:?}");
    assert!(session.last() <= clock::now() && session.last().as_nanos() > 0);
}

/// By interface and family; what goes on to the process does not count.
/// As the kernel does where it forwards IPv4 (RFC 1349, section 11: the four values of delay and
/// throughput): queues and tags of VLANs go by that.
#[test]
fn packets_have_the_priority_that_the_kernel_gives() {
    const PRIORITIES: [u32; 4] = [0, 2, 6, 4];
    let Some(fast_path) = load() else { return };
    for v6 in [false, true] {
        let (from, to) = example(v6, Protocol::UDP);
        enter(&fast_path, &entry(from, to));
        for traffic_class in 0..=255u8 {
            let mut packet = packet(&from, &[1; 9]);
            packet.traffic_class = traffic_class;
            let run = fast_path.test_run(&frame(&packet.bytes()), &[], false);
            let run = run.unwrap();
            assert_eq!(run.verdict, FORWARDED);
            let of_ipv4 = PRIORITIES[usize::from(traffic_class >> 3 & 3)];
            assert_eq!(
                run.priority,
                if v6 { 0 } else { of_ipv4 },
                "{traffic_class}"
            );
        }
    }
}

#[test]
fn what_it_takes_is_counted() {
    let Some(fast_path) = load() else { return };
    let memory = fast_path.memory();
    let packets = [(false, 0), (true, 1)].map(|(v6, place)| {
        let (from, to) = example(v6, Protocol::UDP);
        assert!(memory.enter(place, (clock::now(), SERIAL), &numbers(), &entry(from, to)));
        packet(&from, b"hello").bytes()
    });
    let (stranger, _) = example(false, Protocol::TCP);
    let counts = || [LOOPBACK, 99].map(|interface| fast_path.taken().of(interface));
    let given = || [LOOPBACK, 99].map(|interface| fast_path.taken().given(interface));
    let (before, given_before) = (counts(), given());
    for (ip, times) in packets.iter().zip([3, 2]) {
        for _ in 0..times {
            assert!(run(&fast_path, ip, false).is_some());
        }
    }
    assert_eq!(
        run(&fast_path, &packet(&stranger, b"").bytes(), false),
        None
    );
    let ([here, elsewhere], [before, _]) = (counts(), before);
    let taken = [0, 1].map(|at: usize| {
        let packets = here[at].packets_since(before[at]);
        (packets, here[at].segments_since(before[at]))
    });
    assert_eq!(taken, [(3, 3), (2, 2)]);
    let given = given().map(|now| now.packets_since(given_before[0]));
    assert_eq!(given, [5, 0]);
    assert_eq!(elsewhere, [Default::default(); 2]);
}

/// Before Linux 6.6 it is a filter of tc. One that a killed process has left is replaced, and what
/// others have there stays.
#[test]
fn as_a_filter_of_tc_it_sees_packets_and_leaves_nothing_behind() {
    if load().is_none() {
        return;
    }
    let namespace = Namespace::first("gateway");
    let host = namespace.sibling("host");
    namespace.sh(&format!(
        "ip link add v0 type veth peer name v0 netns {}; ip addr add 10.9.0.1/24 dev v0; \
         ip link set v0 up",
        host.path()
    ));
    host.sh("ip addr add 10.9.0.2/24 dev v0; ip link set v0 up");
    let shown = namespace.run("ip -o link show dev v0");
    let (interface, _) = shown.split_once(':').unwrap();
    let interface: u32 = interface.parse().unwrap();
    let filters = || namespace.run("tc filter show dev v0 ingress");
    namespace.inside(|| {
        let left = load().unwrap().program().attach_as_filter(interface);
        std::mem::forget(left.unwrap());
    });
    assert!(
        filters().contains("tandemgw direct-action"),
        "{}",
        filters()
    );
    namespace.inside(|| {
        let fast_path = load().unwrap();
        let attached = fast_path.program().attach_as_filter(interface).unwrap();
        assert_eq!(filters().matches("tandemgw").count(), 1, "{}", filters());
        host.run("ping -c 1 -W 2 10.9.0.1");
        let counts = fast_path.counts();
        assert!(counts.contains(&("unusual", 1)), "{counts:?}");
        drop(attached);
    });
    assert_eq!(filters(), "");
    // The second process did not make the place for filters, so others may rely on it.
    assert!(namespace.run("tc qdisc show dev v0").contains("clsact"));
    namespace.sh("tc qdisc del dev v0 clsact");
    namespace.inside(|| drop(load().unwrap().program().attach_as_filter(interface)));
    assert!(!namespace.run("tc qdisc show dev v0").contains("clsact"));
}

#[test]
fn programs_of_others_are_told_from_ours() {
    let (Some(own), Some(other)) = (load(), load()) else {
        return;
    };
    let number = own.program().number().unwrap();
    Namespace::first("gateway").inside(|| {
        let is_foreign = || programs_at(LOOPBACK) != [number];
        let _attached = own.program().attach(LOOPBACK).unwrap();
        assert!(!is_foreign());
        let foreign = other.program().attach(LOOPBACK).unwrap();
        assert!(is_foreign());
        drop(foreign);
        assert!(!is_foreign());
    });
}

/// Since Linux 6.16; what comes before has no translated IPv6 in the fast path.
#[test]
fn whether_the_kernel_translates_ipv6_is_found_by_trying() {
    let Some(fast_path) = load() else { return };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|it| it.parse::<u32>().ok());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    assert_eq!(fast_path.knows_ipv6(), version >= (6, 16), "{release}");
    // Nothing of it stays.
    assert!(cell(&fast_path).take(Direction::Original) == (0, 0));
    let (from, _) = example(true, Protocol::UDP);
    assert_eq!(run(&fast_path, &packet(&from, b"x").bytes(), false), None);
}

#[test]
fn the_unusual_is_the_gateways() {
    let Some(fast_path) = load() else { return };
    for v6 in [false, true] {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let (from, to) = example(v6, protocol);
            enter(&fast_path, &entry(from, to));
            let header = if v6 { 40 } else { 20 };
            let usual = packet(&from, b"some data");
            let forwards = |ip: &[u8]| run(&fast_path, ip, false).is_some();
            assert!(forwards(&usual.clone().bytes()));
            assert!(forwards(&usual.clone().hops(2).bytes()));
            assert!(
                !forwards(&usual.clone().hops(1).bytes()),
                "its hops end here"
            );
            let long = vec![0; MTU as usize];
            assert!(!forwards(&packet(&from, &long).bytes()), "it is too long");
            let whole = usual.bytes();
            for cut in 0..whole.len() {
                assert!(!forwards(&whole[..cut.max(1)]), "{cut} bytes of it");
            }
            let padded = [&whole[..], &[0; 20]].concat();
            assert!(forwards(&padded), "short frames are padded");
            for flags in (0..=0xff).filter(|_| protocol == Protocol::TCP) {
                let mut ip = whole.clone();
                ip[header + 13] = flags;
                let is_usual = flags & 0b11_0111 == 0b01_0000;
                assert_eq!(forwards(&ip), is_usual, "flags {flags:#x}");
            }
            if !v6 {
                let mut wrong = whole.clone();
                wrong[10] ^= 1;
                assert!(!forwards(&wrong), "its header's checksum is wrong");
                for bits in [0x20, 0x01] {
                    let cut = packets::fragment(&whole[..20], 1, 0, &whole[20..36], true);
                    assert!(!forwards(&cut), "a fragment: {bits}");
                }
            }
            let other = FlowKey {
                src_port: 1001,
                ..from
            };
            assert!(
                !forwards(&packet(&other, b"x").bytes()),
                "it is of another flow"
            );
            leave(&fast_path);
        }
    }
}

/// Many sessions share the buckets of the index; those that leave make room for others.
#[test]
fn it_finds_each_of_many_sessions() {
    const SESSIONS: u32 = 4096;
    let Some(fast_path) = load_for(SESSIONS) else {
        return;
    };
    let memory = fast_path.memory();
    let keys = |number: u32| {
        let (from, to) = example(false, Protocol::UDP);
        let [a, b] = (number as u16).to_be_bytes();
        let src = Addr::v4([10, 1, a, b]);
        let dst_port = 53 + (number >> 16) as u16;
        let (from, to) = (FlowKey { src, ..from }, FlowKey { src, ..to });
        (FlowKey { dst_port, ..from }, FlowKey { dst_port, ..to })
    };
    let enter = |place: u32, number: u32| {
        let (from, to) = keys(number);
        let begin = (clock::now(), number + 1);
        memory.enter(place, begin, &Numbers::default(), &entry(from, to))
    };
    let forwards = |key: &FlowKey| run(&fast_path, &packet(key, b"x").bytes(), false);
    let mut refused = 0;
    for round in 0..2 {
        for place in 0..SESSIONS {
            memory.leave(place);
            refused += u32::from(!enter(place, place + round * SESSIONS));
        }
        for number in 0..2 * SESSIONS {
            let (from, to) = keys(number);
            let is_there = memory.sessions[(number % SESSIONS) as usize].is_of(&from);
            let (out, back) = (forwards(&from), forwards(&to.reply()));
            match (is_there && number / SESSIONS == round, out, back) {
                (true, Some(out), Some(back)) => {
                    assert_eq!(out, expected(&packet(&from, b"x").bytes(), &to));
                    let answer = packet(&to.reply(), b"x").bytes();
                    assert_eq!(back, expected(&answer, &from.reply()));
                }
                (true, out, back) => assert!(refused > 0 && out.is_none() && back.is_none()),
                (false, out, back) => assert_eq!((out, back), (None, None)),
            }
        }
    }
    assert!(refused <= 4, "{refused}");
}

/// The packets of a connection may come by several CPUs at a time. What one has seen must not be
/// forgotten since another one was slower: nobody could acknowledge it.
#[test]
fn two_cpus_never_bring_the_numbers_of_a_connection_back() {
    const ROUNDS: u32 = 20_000;
    const LENGTH: u32 = 10;
    let Some(fast_path) = load() else { return };
    let (from, to) = example(false, Protocol::TCP);
    enter(&fast_path, &entry(from, to));
    // Of each round: two segments of one end at a time.
    let first = |number: u32| 100 + 2 * LENGTH * number;
    let send = |number: u32, half: u32| {
        let seq = first(number) + half * LENGTH;
        let (src, dst) = ((from.src, from.src_port), (from.dst, from.dst_port));
        let segment = packets::tcp(src, dst, packets::ACK, seq, 200);
        let ip = segment.payload(&[1; LENGTH as usize]).bytes();
        run(&fast_path, &ip, false).is_some()
    };
    // How many rounds each of the two has begun, and ended.
    let (begun, ended) = (AtomicU32::new(0), AtomicU32::new(0));
    let wait_for = |count: &AtomicU32, number: u32| {
        while count.load(Ordering::SeqCst) < number {
            std::hint::spin_loop();
        }
    };
    let sides = &cell(&fast_path).sides;
    let (mut forwarded, mut behind) = (0, 0);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut forwarded = 0;
            for number in 0..ROUNDS {
                wait_for(&begun, number + 1);
                forwarded += u32::from(send(number, 1));
                ended.store(number + 1, Ordering::SeqCst);
            }
            forwarded
        });
        for number in 0..ROUNDS {
            begun.store(number + 1, Ordering::SeqCst);
            forwarded += u32::from(send(number, 0));
            wait_for(&ended, number + 1);
            let end = first(number + 1);
            behind += u32::from(sides[0].end.swap(end, Ordering::SeqCst) != end);
            sides[0].acked.store(end, Ordering::SeqCst);
        }
        forwarded += other.join().unwrap();
    });
    assert_eq!(forwarded, 2 * ROUNDS);
    assert_eq!(behind, 0, "of {ROUNDS} rounds");
}

/// An IPv4-mapped address on the wire is not that of an IPv4 session.
#[test]
fn families_are_kept_apart() {
    let Some(fast_path) = load() else { return };
    let (from, to) = example(false, Protocol::UDP);
    enter(&fast_path, &entry(from, to));
    let (six, _) = example(true, Protocol::UDP);
    let mut ip = packet(&six, b"x").bytes();
    ip[8..24].copy_from_slice(from.src.octets());
    ip[24..40].copy_from_slice(from.dst.octets());
    assert_eq!(run(&fast_path, &ip, false), None);
}

/// Damaged packets of known flows: what is forwarded is what the gateway would have sent.
#[test]
fn damaged_packets_are_forwarded_as_by_the_gateway_or_not_at_all() {
    let Some(fast_path) = load() else { return };
    let damage = proptest::collection::vec((0..80_usize, any::<u8>()), 1..4);
    let strategy = (
        any::<bool>(),
        any::<bool>(),
        damage,
        0..60_usize,
        any::<bool>(),
    );
    let mut runner = TestRunner::new(Config::with_cases(4000));
    let result = runner.run(&strategy, |(v6, is_tcp, damage, length, repair)| {
        let protocol = if is_tcp { Protocol::TCP } else { Protocol::UDP };
        let (from, to) = example(v6, protocol);
        enter(&fast_path, &entry(from, to));
        let mut ip = packet(&from, &vec![1; length]).bytes();
        for (at, byte) in damage {
            if let Some(place) = ip.get_mut(at) {
                *place ^= byte;
            }
        }
        if repair && ip[0] == 0x45 {
            ip[10..12].fill(0);
            let mut sum = packet::checksum::Sum::default();
            sum.add(&ip[..20]);
            ip[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
        }
        let Some(out) = run(&fast_path, &ip, false) else {
            return Ok(());
        };
        let parsed = packet::parse(&ip, Offload::default());
        prop_assert_eq!(parsed.map(|parsed| parsed.key), Ok(from));
        prop_assert_eq!(out, expected(&ip, &to));
        Ok(())
    });
    result.unwrap();
    let lost = fast_path
        .counts()
        .into_iter()
        .find(|(why, _)| *why == "lost");
    assert_eq!(lost, Some(("lost", 0)));
    assert!(cell(&fast_path).serial.load(Ordering::Relaxed) == SERIAL);
}
