//! Whatever comes in by TUN or wire, the gateway keeps its invariants.
//!
//! The input is a list of steps: what to do, a length, and that many bytes.
#![no_main]


use std::time::Duration;

use testkit::lab::{LAN, Lab, Net, PORTS, WAN};
use libfuzzer_sys::fuzz_target;
use testkit::packets::{ACK, SYN, SYN_ACK, echo_request, fragments, icmp_error, tcp, udp};
use tandemgw::event::Offload;
use tandemgw::flow::PortId;

fuzz_target!(|input: &[u8]| {
    let mut lab = Lab::new();
    let samples = warm_up(&mut lab);
    let mut rest = input;
    while let [what, len, more @ ..] = rest {
        let (bytes, after) = more.split_at(usize::from(*len).min(more.len()));
        rest = after;
        step(&mut lab, &samples, *what, bytes);
    }
    lab.gateway.check_invariants();
    lab.pass(Duration::from_secs(8_000));
    assert_eq!(lab.sessions(), 0, "all sessions end");
});

/// Opens a few sessions; returns packets of theirs and about them, for the input to edit.
fn warm_up(lab: &mut Lab) -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for net in Net::both() {
        let query = udp((net.host, 40000), (net.server, 53));
        let ping = echo_request((net.host, 4000), net.server);
        let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        let back = out.clone().src(net.wan_vip).answer();
        let syn_ack = back.clone().segment(SYN_ACK, 500, 101);
        let outside = query.clone().src(net.wan_vip).bytes();
        let error = icmp_error(
            packets::ErrorCode::TimeExceeded,
            net.router,
            net.wan_vip,
            &outside,
        );
        let big = query.clone().payload(&[7; 300]).bytes();
        for (port, packet) in [(LAN, &query), (LAN, &ping), (LAN, &out), (WAN, &syn_ack)] {
            lab.send(port, packet);
        }
        let packets = [
            query,
            ping,
            out,
            syn_ack,
            back.segment(ACK, 501, 101),
            error,
        ];
        samples.extend(packets.map(|packet| packet.bytes()));
        samples.extend(fragments(&big, 7, &[104, 208]));
    }
    samples
}

fn step(lab: &mut Lab, samples: &[Vec<u8>], what: u8, bytes: &[u8]) {
    let port: PortId = PORTS[usize::from(what & 3).min(PORTS.len() - 1)];
    let offload = Offload {
        partial_checksum: what & 0x40 != 0,
        checksum_verified: what & 0x20 != 0,
        segment_size: if what & 0x80 != 0 { 500 } else { 0 },
    };
    let now = lab.now;
    match what >> 2 & 7 {
        0 => lab.gateway.handle_frame(now, port, bytes),
        1 => lab.pass(Duration::from_secs(bytes.len() as u64 * 4)),
        2 | 3 => {
            lab.gateway
                .handle_packet(now, port, &mut bytes.to_vec(), offload);
        }
        _ => {
            // A sample with some of its bytes replaced: pairs of place and value.
            let [which, edits @ ..] = bytes else { return };
            let mut packet = samples[usize::from(*which) % samples.len()].clone();
            for edit in edits.chunks_exact(2) {
                let at = usize::from(edit[0]) % packet.len();
                packet[at] = edit[1];
            }
            lab.gateway.handle_packet(now, port, &mut packet, offload);
        }
    }
    lab.outputs();
}
