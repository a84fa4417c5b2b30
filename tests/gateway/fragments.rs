//! Fragments: they follow only the first one, in whatever order they arrive.

use std::time::Duration;

use tandemgw_core::event::{DropReason, Offload, Output, Verdict};

use testkit::lab::{LAN, Lab, Net, Seen, WAN, hex};
use testkit::packets::{ACK, Pkt, SYN, SYN_ACK, fragment, fragments, tcp, udp};

const PLAIN: Offload = Offload {
    partial_checksum: None,
    checksum_verified: false,
    segment_size: 0,
};

/// A datagram with four fragments, as it comes in and as it is to leave.
fn datagram(net: &Net) -> (Pkt, Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let payload: Vec<u8> = (0..300u16).map(|i| i as u8).collect();
    let inside = udp((net.host, 40000), (net.server, 53)).payload(&payload);
    let outside = inside.clone().src(net.wan_vip).forwarded();
    let cut = |packet: &Pkt| fragments(&packet.bytes(), 77, &[80, 160, 240]);
    let (arriving, leaving) = (cut(&inside), cut(&outside));
    (inside, arriving, leaving)
}

#[track_caller]
fn forwarded(seen: &Seen, expected: &[u8], moved: &str) {
    assert_eq!(
        (seen.verdict, seen.moved.as_str()),
        (Verdict::Forward, moved)
    );
    assert_eq!(hex(&seen.bytes), hex(expected));
}

#[track_caller]
fn dropped(seen: &Seen, reason: DropReason) {
    assert_eq!(seen.verdict, Verdict::Drop(reason));
    assert!(
        seen.moved.contains(&format!("drop.{}+1", reason.name())),
        "{}",
        seen.moved
    );
    assert_eq!(seen.outputs, []);
}

#[test]
fn in_order() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let (_, arriving, leaving) = datagram(&net);
        for (index, (bytes, expected)) in arriving.into_iter().zip(leaving).enumerate() {
            let moved = if index == 0 {
                "forwarded+1 udp+1"
            } else {
                "forwarded+1"
            };
            let seen = lab.send_bytes(LAN, bytes, PLAIN);
            forwarded(&seen, &expected, moved);
            assert_eq!(seen.outputs, []);
        }
    }
}

#[test]
fn out_of_order() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let (_, arriving, leaving) = datagram(&net);
        for index in [2, 1] {
            let seen = lab.send_bytes(LAN, arriving[index].clone(), PLAIN);
            assert_eq!((seen.verdict, seen.moved.as_str()), (Verdict::Consumed, ""));
        }
        let seen = lab.send_bytes(LAN, arriving[0].clone(), PLAIN);
        forwarded(&seen, &leaving[0], "forwarded+3 udp+1");
        let held = [2, 1].map(|i| testkit::lab::plain_packet(WAN, leaving[i].clone()));
        assert_eq!(seen.outputs, held);
        let seen = lab.send_bytes(LAN, arriving[3].clone(), PLAIN);
        forwarded(&seen, &leaving[3], "forwarded+1");
    }
}

#[test]
fn answers_in_fragments_are_translated_back() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let query = udp((net.host, 40000), (net.server, 53));
        lab.send(LAN, &query);
        let answer = query.src(net.wan_vip).answer().payload(&[7; 200]);
        let inside = answer.clone().dst(net.host).forwarded();
        let leaving = fragments(&inside.bytes(), 5, &[104]);
        for (bytes, expected) in fragments(&answer.bytes(), 5, &[104])
            .into_iter()
            .zip(leaving)
        {
            forwarded(&lab.send_bytes(WAN, bytes, PLAIN), &expected, "forwarded+1");
        }
    }
}

/// The first fragment shows only a part of the data, all of which is acknowledged.
#[test]
fn a_tcp_segment_in_fragments_can_be_acknowledged() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        let back = out.clone().src(net.wan_vip).answer();
        let ack = out.clone().segment(ACK, 101, 501);
        lab.send(LAN, &out);
        lab.send(WAN, &back.clone().segment(SYN_ACK, 500, 101));
        lab.send(LAN, &ack);
        let data = back.segment(ACK, 501, 101).payload(&[7; 1000]);
        let mut pieces = fragments(&data.bytes(), 5, &[504, 800]);
        pieces.swap(0, 1);
        for piece in pieces {
            let seen = lab.send_bytes(WAN, piece, PLAIN);
            assert!(matches!(seen.verdict, Verdict::Forward | Verdict::Consumed));
        }
        let too_much = ack.clone().segment(ACK, 101, 1502);
        lab.drops(LAN, &too_much, DropReason::TcpWindow);
        let ack = ack.segment(ACK, 101, 1501);
        lab.forwards(LAN, &ack, &ack.clone().src(net.wan_vip), "");
    }
}

#[test]
fn overlaps_drop_the_whole_datagram() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let (inside, arriving, leaving) = datagram(&net);
        forwarded(
            &lab.send_bytes(LAN, arriving[0].clone(), PLAIN),
            &leaving[0],
            "forwarded+1 udp+1",
        );
        let header_len = if net.host.is_v4() { 20 } else { 40 };
        let overlap = fragment(&inside.bytes()[..header_len], 77, 72, &[9; 80], true);
        dropped(
            &lab.send_bytes(LAN, overlap, PLAIN),
            DropReason::FragmentOverlap,
        );
        dropped(
            &lab.send_bytes(LAN, arriving[1].clone(), PLAIN),
            DropReason::FragmentOverlap,
        );
    }
}

#[test]
fn orphans_end_and_are_counted() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let (_, arriving, _) = datagram(&net);
        for bytes in &arriving[1..3] {
            assert_eq!(
                lab.send_bytes(LAN, bytes.clone(), PLAIN).verdict,
                Verdict::Consumed
            );
        }
        let before = lab.gateway.counters().dropped(DropReason::FragmentOrphan);
        lab.pass(Duration::from_secs(3));
        let after = lab.gateway.counters().dropped(DropReason::FragmentOrphan);
        let is_packet = |output: &Output| matches!(output, Output::Packet { .. });
        let sent = lab.outputs().iter().filter(|o| is_packet(o)).count();
        assert_eq!((after - before, sent), (2, 0));
        // The first comes too late for them, but goes itself.
        assert_eq!(lab.send_bytes(LAN, arriving[0].clone(), PLAIN).outputs, []);
    }
}

#[test]
fn without_policy_nothing_follows() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let refused = udp((net.server, 53), (net.host, 40000)).payload(&[1; 200]);
        let pieces = fragments(&refused.bytes(), 9, &[104]);
        assert_eq!(
            lab.send_bytes(WAN, pieces[1].clone(), PLAIN).verdict,
            Verdict::Consumed
        );
        dropped(
            &lab.send_bytes(WAN, pieces[0].clone(), PLAIN),
            DropReason::NoPolicy,
        );
    }
}

#[test]
fn a_decision_ends_with_its_session_and_with_the_role() {
    use tandemgw_core::event::RouteTarget;
    use tandemgw_core::flow::GroupId;
    use tandemgw_core::gateway::Role;
    for net in Net::both() {
        let mut lab = Lab::new();
        let (_, arriving, leaving) = datagram(&net);
        forwarded(
            &lab.send_bytes(LAN, arriving[0].clone(), PLAIN),
            &leaving[0],
            "forwarded+1 udp+1",
        );
        lab.gateway.set_role(lab.now, GroupId(0), Role::Standby);
        dropped(
            &lab.send_bytes(LAN, arriving[1].clone(), PLAIN),
            DropReason::NotPrimary,
        );
        lab.gateway.set_role(lab.now, GroupId(0), Role::Primary);
        lab.moved();
        for network in ["198.51.100.0/24", "2001:db8:7::/48"] {
            lab.route(network, RouteTarget::Elsewhere);
        }
        assert_eq!(lab.sessions(), 0);
        lab.moved();
        dropped(
            &lab.send_bytes(LAN, arriving[2].clone(), PLAIN),
            DropReason::FragmentOrphan,
        );
    }
}

#[test]
fn the_same_identification_from_another_port_is_another_datagram() {
    for net in Net::both() {
        let mut lab = Lab::new();
        let (_, arriving, leaving) = datagram(&net);
        forwarded(
            &lab.send_bytes(LAN, arriving[0].clone(), PLAIN),
            &leaving[0],
            "forwarded+1 udp+1",
        );
        assert_eq!(
            lab.send_bytes(WAN, arriving[1].clone(), PLAIN).verdict,
            Verdict::Consumed
        );
        forwarded(
            &lab.send_bytes(LAN, arriving[1].clone(), PLAIN),
            &leaving[1],
            "forwarded+1",
        );
    }
}
