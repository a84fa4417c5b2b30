//! Captures: the records for each packet, their order, and the cost of a slow client.

use proptest::prelude::*;
use tandemgw_core::capture::{CapturedFate, Filter, MAX_SNAPSHOT, Options, Record};
use tandemgw_core::event::{DropReason, Offload, PartialChecksum, Verdict};
use tandemgw_core::flow::PortId;

use testkit::lab::{CONFIG, LAN, Lab, Net, WAN, hex};
use testkit::packets::{Pkt, SYN, echo_request, fragments, tcp, udp};

const PLAIN: Offload = Offload {
    partial_checksum: None,
    checksum_verified: false,
    segment_size: 0,
};

fn start(lab: &mut Lab, words: &str, count: u64) {
    let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    let options = Options {
        filter: Filter::parse(&words, lab.gateway.config()).unwrap(),
        snapshot: MAX_SNAPSHOT,
        count,
    };
    lab.gateway.start_capture(lab.now, options);
}

/// Passes a packet in as the shell does; returns the verdict and the packet as it left.
fn send(lab: &mut Lab, port: PortId, bytes: &[u8], offload: Offload) -> (Verdict, Vec<u8>) {
    let mut bytes = bytes.to_vec();
    let handle = if lab.gateway.is_capturing() {
        tandemgw_core::gateway::Gateway::handle_captured_packet
    } else {
        tandemgw_core::gateway::Gateway::handle_packet
    };
    let verdict = handle(&mut lab.gateway, lab.now, port, &mut bytes, offload);
    (verdict, bytes)
}

fn fetch(lab: &mut Lab) -> Vec<Record> {
    let capture = lab.gateway.capture_mut().unwrap();
    std::iter::from_fn(|| capture.fetch()).collect()
}

/// Port, direction, fate and bytes: what a record is about.
fn sights(records: &[Record]) -> Vec<(PortId, bool, CapturedFate, String)> {
    let sight = |r: &Record| (r.port, r.outbound, r.facts.fate, hex(&r.bytes));
    records.iter().map(sight).collect()
}

#[test]
fn a_captured_packet_fares_as_any_other() {
    for net in Net::both() {
        let query = udp((net.host, 40000), (net.server, 53));
        let (mut plain, mut lab) = (Lab::new(), Lab::new());
        let expected = plain.send(LAN, &query);
        start(&mut lab, "", u64::MAX);
        let (verdict, bytes) = send(&mut lab, LAN, &query.bytes(), PLAIN);
        assert_eq!(
            (verdict, hex(&bytes)),
            (expected.verdict, hex(&expected.bytes))
        );
        assert_eq!(lab.gateway.counters().forwarded, 1);
        let records = fetch(&mut lab);
        assert_eq!(
            sights(&records),
            [
                (LAN, false, CapturedFate::Forward, hex(&query.bytes())),
                (WAN, true, CapturedFate::Forward, hex(&bytes)),
            ]
        );
        assert_eq!(records[0].packet, records[1].packet);
        let facts = records[0].facts;
        let policy = facts.policy.map(|policy| lab.gateway.policy_name(policy));
        assert_eq!(policy, Some("lan-out"));
        assert!(facts.translated && facts.session.is_some());
    }
}

#[test]
fn answers_follow_what_they_answer() {
    for net in Net::both() {
        let mut lab = Lab::new();
        start(&mut lab, "", u64::MAX);
        let ping = echo_request((net.host, 7), net.lan_vip);
        send(&mut lab, LAN, &ping.bytes(), PLAIN);
        let telnet = tcp((net.host, 40000), (net.server, 23), SYN, 1, 0);
        send(&mut lab, LAN, &telnet.bytes(), PLAIN);
        let tftp = udp((net.host, 40000), (net.server, 69));
        send(&mut lab, LAN, &tftp.bytes(), PLAIN);
        let records = fetch(&mut lab);
        let seen: Vec<_> = records.iter().map(|r| (r.outbound, r.facts.fate)).collect();
        assert_eq!(
            seen,
            [
                (false, CapturedFate::Consumed),
                (true, CapturedFate::Answer),
                (false, CapturedFate::Drop(DropReason::PolicyReject)),
                (true, CapturedFate::Answer),
                (false, CapturedFate::Drop(DropReason::PolicyDrop)),
            ]
        );
        let name = |record: &Record| {
            let policy = record.facts.policy?;
            Some(lab.gateway.policy_name(policy).to_owned())
        };
        assert_eq!(name(&records[2]).as_deref(), Some("no-telnet"));
        assert_eq!(name(&records[4]).as_deref(), Some("no-tftp"));
    }
}

#[test]
fn fragments_that_waited_leave_after_the_first() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let inside = udp((net.host, 40000), (net.server, 53)).payload(&[7; 300]);
        let outside = inside.clone().src(net.wan_vip).forwarded();
        let cut = |packet: &Pkt| fragments(&packet.bytes(), 77, &[80, 160]);
        let (arriving, leaving) = (cut(&inside), cut(&outside));
        start(&mut lab, "", u64::MAX);
        for index in [1, 0, 2] {
            send(&mut lab, LAN, &arriving[index], PLAIN);
        }
        let records = fetch(&mut lab);
        let into = |index: usize, fate| (LAN, false, fate, hex(&arriving[index]));
        let out = |index: usize| (WAN, true, CapturedFate::Forward, hex(&leaving[index]));
        assert_eq!(
            sights(&records),
            [
                into(1, CapturedFate::Consumed),
                into(0, CapturedFate::Forward),
                out(0),
                out(1),
                into(2, CapturedFate::Forward),
                out(2),
            ]
        );
        assert!(records[3].facts.released && !records[2].facts.released);
        assert!(
            records[1..]
                .iter()
                .all(|record| record.facts.session.is_some())
        );
    }
}

#[test]
fn checksums_left_to_the_hardware_are_completed_in_the_copy_only() {
    let net = Net::both()[0];
    let mut lab = Lab::new();
    let whole = tcp((net.host, 40000), (net.server, 443), SYN, 1, 0).bytes();
    let mut partial = whole.clone();
    // The sum of the pseudo-header: what the kernel leaves there.
    let sum = [&whole[12..20], &[0, 6, 0, (whole.len() - 20) as u8]].concat();
    let sum: u32 = sum
        .chunks(2)
        .map(|b| u32::from(b[0]) << 8 | u32::from(b[1]))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    partial[36..38].copy_from_slice(&(sum as u16).to_be_bytes());
    let offload = Offload {
        partial_checksum: Some(PartialChecksum {
            start: 20,
            field: 36,
        }),
        ..PLAIN
    };
    start(&mut lab, "", u64::MAX);
    let (verdict, left) = send(&mut lab, LAN, &partial, offload);
    assert_eq!(verdict, Verdict::Forward);
    let records = fetch(&mut lab);
    assert_eq!(hex(&records[0].bytes), hex(&whole));
    assert_ne!(
        hex(&records[1].bytes),
        hex(&left),
        "what left is still partial"
    );
    let parsed = tandemgw_core::packet::parse(&records[1].bytes, PLAIN).unwrap();
    assert!(tandemgw_core::packet::checksum_ok(
        &records[1].bytes,
        &parsed,
        PLAIN
    ));
}

#[test]
fn filter_and_count_bound_what_is_recorded() {
    let net = Net::both()[0];
    let mut lab = Lab::new();
    let query = |port| udp((net.host, port), (net.server, 53)).bytes();
    start(&mut lab, "port=40001", 3);
    for port in [40000, 40001, 40001, 40001] {
        send(&mut lab, LAN, &query(port), PLAIN);
    }
    // The second packet is recorded as it came in, and there it ends.
    assert!(!lab.gateway.is_capturing());
    let seen: Vec<_> = fetch(&mut lab)
        .iter()
        .map(|r| (r.packet, r.outbound))
        .collect();
    assert_eq!(seen, [(0, false), (0, true), (1, false)]);
    assert_eq!(lab.gateway.capture().unwrap().total().matched, 3);
    lab.gateway.end_capture();
    assert!(lab.gateway.capture().is_none());
}

#[test]
fn a_policy_is_found_by_its_name_after_a_reload() {
    let net = Net::both()[0];
    let mut lab = Lab::new();
    // The policy has another place, and then another one has the place that it had.
    let moved = CONFIG.replace("[[policy]]\nname = \"no-telnet\"", "[[policy]]\nname = \"new\"\nservice = [\"tcp/9\"]\naction = \"drop\"\n\n[[policy]]\nname = \"no-telnet\"");
    let (config, _) = tandemgw_core::config::parse(std::path::Path::new("a.toml"), &moved).unwrap();
    lab.gateway.reload(lab.now, &config).unwrap();
    lab.settle();
    let query = udp((net.host, 40000), (net.server, 53)).bytes();
    for (words, copies) in [("policy=lan-out", 2), ("policy=no-tftp", 0)] {
        start(&mut lab, words, u64::MAX);
        send(&mut lab, LAN, &query, PLAIN);
        assert_eq!(fetch(&mut lab).len(), copies, "{words}");
    }
}

#[test]
fn a_client_that_does_not_fetch_loses_packets_and_stops_none() {
    let net = Net::both()[0];
    let mut lab = Lab::new();
    start(&mut lab, "", u64::MAX);
    let query = udp((net.host, 40000), (net.server, 53))
        .payload(&[0; 1400])
        .bytes();
    for _ in 0..5000 {
        assert_eq!(send(&mut lab, LAN, &query, PLAIN).0, Verdict::Forward);
    }
    let total = lab.gateway.capture().unwrap().total();
    assert_eq!(total.matched, 10_000);
    let records = fetch(&mut lab);
    assert_eq!(records.len() as u64, total.matched - total.lost);
    let bytes: usize = records.iter().map(|record| record.bytes.len()).sum();
    assert!(
        total.lost > 0 && bytes <= 8 << 20,
        "{total:?}, {bytes} bytes"
    );
    // Either both sides of a packet are there, or none.
    let pairs = records
        .chunks(2)
        .all(|pair| pair[0].packet == pair[1].packet);
    assert!(pairs, "a packet was cut in two");
}

proptest! {
    #[test]
    fn whatever_comes_a_capture_changes_nothing(
        packets in proptest::collection::vec(
            (0..3u8, 0..4u8, proptest::collection::vec(any::<u8>(), 0..90), any::<(Option<(u16, u16)>, u16)>()), 1..20)
    ) {
        let net = Net::both()[0];
        let (mut plain, mut lab) = (Lab::new(), Lab::new());
        start(&mut lab, "", u64::MAX);
        for (port, kind, noise, (partial_checksum, segment_size)) in packets {
            // Noise, noise behind an IP version, and a packet of which noise overwrites the end.
            let mut bytes = noise;
            match (kind, bytes.first_mut()) {
                (1, Some(first)) => *first = 0x45,
                (2, Some(first)) => *first = 0x60,
                (3, _) => {
                    let whole = udp((net.host, 40000), (net.server, 53)).bytes();
                    bytes = [&whole[..22], &bytes].concat();
                }
                _ => {}
            }
            let partial_checksum =
                partial_checksum.map(|(start, field)| PartialChecksum { start, field });
            let offload = Offload { partial_checksum, segment_size, ..PLAIN };
            let seen = plain.send_bytes(PortId(port.into()), bytes.clone(), offload);
            let (verdict, left) = send(&mut lab, PortId(port.into()), &bytes, offload);
            prop_assert_eq!((verdict, hex(&left)), (seen.verdict, hex(&seen.bytes)));
            prop_assert_eq!(lab.outputs(), seen.outputs);
            let records = fetch(&mut lab);
            prop_assert_eq!(records[0].length as usize, bytes.len());
            prop_assert_eq!(records[0].facts.fate, CapturedFate::from(verdict));
        }
    }
}
