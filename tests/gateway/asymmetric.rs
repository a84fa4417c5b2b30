//! Packets of a session that come to a unit which is not its owner.

use std::time::Duration;

use tandemgw_core::event::{DropReason, LinkState, Offload, Output, Verdict};
use tandemgw_core::flow::{Addr, PortId};
use tandemgw_core::packet::{self, PacketKind};

use testkit::lab::{LAN, Net, WAN, ip, link};
use testkit::packets::ErrorCode::TooBig;
use testkit::packets::{ACK, Pkt, SYN, SYN_ACK, icmp_error, tcp};
use testkit::pair::Pair;

const A: usize = 0;
const B: usize = 1;
const CUT: &str = "[[group]]\nname = \"all\"\nports = [\"lan\", \"wan\", \"dmz\"]\ndistribute = 2\n\
     weights = [\"gw-b:0\"]\n";

/// A connection whose owner is gw-a, and of which gw-b forwards packets, too, which is primary of
/// nothing.
struct Spread {
    host: Addr,
    out: Pkt,
    back: Pkt,
}

impl Spread {
    fn new(pair: &mut Pair, net: &Net) -> Spread {
        pair.pass(Duration::from_secs(3));
        let hosts = (10..30).map(|n| match net.host.is_v4() {
            true => ip(&format!("10.77.1.{n}")),
            false => ip(&format!("fd77:1::{n}")),
        });
        let out = |host| tcp((host, 40_000), (net.server, 443), SYN, 100, 0);
        let mut own = hosts.filter(|host| pair.send(A, LAN, &out(*host)) == Verdict::Forward);
        let host = own.next().expect("gw-a has a slot");
        let view = pair.units[A].page(0, u32::MAX, pair.now).0.next();
        let port = view.expect("it is open").translated.src_port;
        let back = tcp(
            (net.server, 443),
            (net.wan_vip, port),
            SYN_ACK,
            900_000,
            101,
        );
        let spread = Spread {
            host,
            out: out(host).segment(ACK, 101, 900_001),
            back: back.clone().segment(ACK, 900_001, 101),
        };
        assert_eq!(pair.send(A, WAN, &back), Verdict::Forward);
        assert_eq!(pair.send(A, LAN, &spread.out), Verdict::Forward);
        pair.exchange();
        assert_eq!(pair.send(B, LAN, &spread.out), Verdict::Consumed);
        pair.exchange();
        pair.exchange();
        assert_eq!(pair.send(B, LAN, &spread.out), Verdict::Forward);
        spread
    }
}

/// The packets that a unit sends itself.
fn sent(pair: &mut Pair, unit: usize) -> Vec<(PortId, Vec<u8>)> {
    let outputs = std::iter::from_fn(|| pair.units[unit].poll_output());
    let packets = outputs.filter_map(|output| match output {
        Output::Packet { port, bytes, .. } => Some((port, bytes)),
        _ => None,
    });
    packets.collect()
}

/// Otherwise hosts behind it would send what is too big for ever.
#[test]
fn who_stands_in_tells_what_is_too_big() {
    for net in Net::both() {
        let mut pair = Pair::with(CUT);
        let spread = Spread::new(&mut pair, &net);
        let narrow = LinkState {
            up: true,
            mtu: 1300,
            ..link(WAN)
        };
        pair.units[B].handle_link(pair.now, WAN, narrow);
        sent(&mut pair, B);
        let big = spread.out.clone().dont_fragment().payload(&[7; 1350]);
        let verdict = pair.send(B, LAN, &big);
        assert_eq!(verdict, Verdict::Drop(DropReason::TooBig));
        let told = sent(&mut pair, B);
        let [(LAN, bytes)] = &told[..] else {
            panic!("{told:?}");
        };
        let told = packet::parse(bytes, Offload::default()).unwrap();
        assert_eq!(told.kind, PacketKind::IcmpError);
        assert_eq!((told.key.src, told.key.dst), (net.lan_vip, spread.host));
    }
}

/// The owner has not seen what the error is about.
#[test]
fn an_error_about_data_that_went_by_another_unit_arrives() {
    for net in Net::both() {
        let mut pair = Pair::with(CUT);
        let spread = Spread::new(&mut pair, &net);
        let mut server = 900_001;
        for _ in 0..300 {
            let data = spread.back.clone().segment(ACK, server, 101);
            let data = data.payload(&[7; 1400]);
            assert_eq!(pair.send(B, WAN, &data), Verdict::Forward);
            server += 1400;
            let confirmed = spread.out.clone().segment(ACK, 101, server);
            assert_eq!(pair.send(B, LAN, &confirmed), Verdict::Forward);
        }
        let quoted = spread.back.clone().segment(ACK, server, 101);
        let inside = quoted
            .dst(spread.host)
            .ports((443, 40_000))
            .payload(&[7; 1400]);
        let inside = inside.forwarded();
        let error = icmp_error(TooBig(1300), net.neighbor, net.server, &inside.bytes());
        assert_eq!(pair.send(A, LAN, &error), Verdict::Forward);
    }
}
