//! The connections between units, over the loopback interface.
#![allow(clippy::unwrap_used)]

use testkit::system::transport as net;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use tandemgw::node_key::NodeKey;
use tandemgw::os::quic::{SendError, Transport};
use tandemgw_core::flow::PeerId;
use tandemgw_core::pump::{DownReason, PeerEvent};
use testkit::system::transport::{LINK, Net, PEER, Pair};

const SOON: Duration = Duration::from_secs(3);

fn is_datagram(event: &PeerEvent) -> bool {
    matches!(event, PeerEvent::Datagram { .. })
}

fn down_reasons(events: &[PeerEvent]) -> Vec<DownReason> {
    let reason = |event: &PeerEvent| match event {
        PeerEvent::HeartbeatDown { reason, .. } | PeerEvent::SyncDown { reason, .. } => {
            Some(reason.clone())
        }
        _ => None,
    };
    events.iter().filter_map(reason).collect()
}

/// Byte `offset` of a stream whose pieces can't be confused.
fn pattern(offset: usize) -> u8 {
    (offset.wrapping_mul(0x9e37_79b1) >> 13) as u8
}

#[test]
fn comes_up_whoever_dials() {
    for names in [["gw-a", "gw-b"], ["gw-b", "gw-a"]] {
        let mut net = Net::pair(names[0], names[1]);
        net.run_until_up(SOON);
        for index in [0, 1] {
            let ups = net.take(index, |event| {
                matches!(
                    event,
                    PeerEvent::HeartbeatUp { .. } | PeerEvent::SyncUp { .. }
                )
            });
            assert_eq!(ups.len(), 2, "{ups:?}");
            assert!(net.unit(index).rtt(PEER, LINK).unwrap() < Duration::from_millis(50));
            assert_eq!(net.unit(index).counters(), Default::default());
        }
        // No second pair of connections shows up.
        net.pass(Duration::from_millis(300));
        for index in [0, 1] {
            assert_eq!(net.take(index, |_| true), []);
        }
    }
}

#[test]
fn datagrams_go_both_ways_before_the_call_returns() {
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    for number in 0..50u8 {
        for index in [0, 1] {
            let now = Instant::now();
            let sent = net
                .unit(index)
                .send_datagram(PEER, LINK, &[number; 100], now);
            assert_eq!(sent, Ok(()));
        }
        // The sender does nothing more: what arrives was sent by the call.
        let [first, second] = &mut net.units[..] else {
            unreachable!()
        };
        for unit in [second, first] {
            let unit = unit.as_mut().unwrap();
            let start = Instant::now();
            let mut got = None;
            while got.is_none() && start.elapsed() < SOON {
                unit.transport.readable(LINK, Instant::now());
                unit.transport.poll(Instant::now());
                while let Some(event) = unit.transport.poll_event() {
                    got = Some(event);
                }
            }
            let bytes = vec![number; 100].into();
            let (peer, link) = (PEER, LINK);
            assert_eq!(got, Some(PeerEvent::Datagram { peer, link, bytes }));
        }
    }
    let now = Instant::now();
    let too_large = net.unit(0).send_datagram(PEER, LINK, &[0; 4000], now);
    assert_eq!(too_large, Err(SendError::TooLarge));
}

#[test]
fn much_sync_data_arrives_intact_and_in_order() {
    const TOTAL: usize = 64 << 20;
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    let data: Vec<u8> = (0..TOTAL).map(pattern).collect();
    let (mut written, mut read, mut blocked) = (0, 0, 0);
    let done = net.run(Duration::from_secs(60), |net| {
        let end = TOTAL.min(written + (4 << 20));
        let count = net.unit(0).write_sync(PEER, LINK, &data[written..end]);
        blocked += usize::from(count < end - written);
        assert_eq!(
            count == end - written,
            net.unit(0).is_sync_writable(PEER, LINK)
        );
        written += count;
        let before = read;
        for event in net.take(1, |event| matches!(event, PeerEvent::SyncData { .. })) {
            let PeerEvent::SyncData { bytes, .. } = event else {
                unreachable!()
            };
            assert_eq!(bytes[..], data[read..read + bytes.len()]);
            read += bytes.len();
        }
        assert!(read - before <= 2 << 20, "{} bytes at once", read - before);
        read == TOTAL
    });
    assert!(done, "{read} of {TOTAL} bytes");
    assert!(blocked > 0);
    let writable = |event: &PeerEvent| matches!(event, PeerEvent::SyncWritable { .. });
    assert!(!net.take(0, writable).is_empty());
}

#[test]
fn events_that_are_not_taken_hold_the_sender_back() {
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    let mut receiver = net.units[1].take().unwrap();
    let block = vec![7; 1 << 20];
    let mut written = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        written += net.unit(0).write_sync(PEER, LINK, &block);
        net.turn();
        receiver.transport.readable(LINK, Instant::now());
        receiver.transport.poll(Instant::now());
    }
    assert!(written > 8 << 20, "{written}");
    assert!(written < 14 << 20, "{written}");
    // Nothing is lost: the rest comes when the events are taken.
    net.units[1] = Some(receiver);
    let mut read = 0;
    let done = net.run(SOON, |net| {
        for event in net.take(1, |event| matches!(event, PeerEvent::SyncData { .. })) {
            if let PeerEvent::SyncData { bytes, .. } = event {
                read += bytes.len();
            }
        }
        read == written
    });
    assert!(done, "{read} of {written} bytes");
}

#[test]
fn in_a_cluster_each_peer_is_known_by_its_key() {
    let names = ["gw-b", "gw-c", "gw-a"];
    let keys = [1, 2, 3].map(|seed| NodeKey::from_seed([seed; 32]));
    let addresses = [(); 3].map(|()| net::free_address());
    let mut net = Net::default();
    for index in 0..3 {
        let others = (0..3).filter(|&other| other != index);
        let others =
            others.map(|other| net::peer(names[other], addresses[other], keys[other].public()));
        let ha = net::ha(addresses[index], others.collect());
        net.units.push(None);
        net.start(index, &ha, names[index], &keys[index]);
    }
    let peers = [PeerId(0), PeerId(1)];
    let up = |net: &mut Net| {
        (0..3).all(|index| {
            let unit = net.unit(index);
            peers
                .iter()
                .all(|&peer| unit.is_heartbeat_up(peer, LINK) && unit.is_sync_up(peer, LINK))
        })
    };
    assert!(net.run(SOON, up));
    let mut heard = Vec::new();
    for index in 0..3 {
        for peer in peers {
            net.unit(index).write_sync(peer, LINK, &[index as u8]);
        }
    }
    assert!(net.run(SOON, |net| {
        for index in 0..3 {
            for event in net.take(index, |event| matches!(event, PeerEvent::SyncData { .. })) {
                if let PeerEvent::SyncData { peer, bytes, .. } = event {
                    heard.push((index, peer, bytes.to_vec()));
                }
            }
        }
        heard.len() == 6
    }));
    heard.sort();
    let (first, second) = (PeerId(0), PeerId(1));
    let expected = [
        (0, first, vec![1]),
        (0, second, vec![2]),
        (1, first, vec![0]),
        (1, second, vec![2]),
        (2, first, vec![0]),
        (2, second, vec![1]),
    ];
    assert_eq!(heard, expected);
}

#[test]
fn a_wrong_key_is_refused_on_either_side() {
    for (unit, name) in [(0, "the acceptor pins another"), (1, "the dialler does")] {
        let mut pair = Pair::new("gw-b", "gw-a");
        pair.pinned[unit] = NodeKey::from_seed([9; 32]).public();
        let mut net = pair.start();
        net.pass(Duration::from_millis(500));
        for index in [0, 1] {
            assert_eq!(net.take(index, |_| true), [], "{name}");
            assert!(
                net.unit(index).counters().handshakes_refused > 0,
                "{name}, unit {index}"
            );
            let now = Instant::now();
            let sent = net.unit(index).send_datagram(PEER, LINK, b"hello", now);
            assert_eq!(sent, Err(SendError::NotConnected));
        }
        // Refusals are not answered with a flood: 50 ms, 100 ms, 200 ms for each of two roles.
        assert!(
            net.unit(0).counters().handshakes_refused <= 14,
            "{:?}",
            net.unit(0).counters()
        );
    }
}

#[test]
fn a_crowd_of_strangers_does_not_keep_a_peer_out() {
    const STRANGERS: usize = 60;
    let pair = Pair::new("gw-a", "gw-b");
    let mut net = Net::default();
    net.units.extend([None, None]);
    pair.start_one(&mut net, 1);
    // They have the peer's address, but not its key.
    for index in 2..2 + STRANGERS {
        let target = net::peer("gw-b", pair.listen[1], pair.keys[1].public());
        let ha = net::ha(net::free_address(), vec![target]);
        net.units.push(None);
        net.start(
            index,
            &ha,
            "gw-a",
            &NodeKey::from_seed([index as u8 + 1; 32]),
        );
    }
    net.pass(Duration::from_millis(20));
    pair.start_one(&mut net, 0);
    let up = net.run(SOON, |net| {
        (0..2).all(|index| {
            let unit = net.unit(index);
            unit.is_heartbeat_up(PEER, LINK) && unit.is_sync_up(PEER, LINK)
        })
    });
    assert!(up, "{:?}", net.unit(1).counters());
    assert!(net.unit(1).counters().handshakes_refused > 0);
    for index in 2..2 + STRANGERS {
        assert_eq!(net.take(index, |_| true), []);
    }
}

#[test]
fn units_must_differ() {
    let pair = Pair::new("gw-a", "gw-b");
    let error = |name: &str, key: &NodeKey| {
        let other = net::peer(name, pair.remote[0], key.public());
        let ha = net::ha(pair.listen[0], vec![other]);
        let error = Transport::new(&ha, "gw-a", &pair.keys[0], 0).err().unwrap();
        error.to_string()
    };
    let text = error("gw-a", &pair.keys[1]);
    assert_eq!(text, "peer gw-a has the name of another unit");
    let text = error("gw-b", &pair.keys[0]);
    assert_eq!(text, "peer gw-b has the public key of another unit");
}

#[test]
fn a_link_that_is_not_there_is_named_and_bound_later() {
    let mut ha = net::ha(net::free_address(), Vec::new());
    ha.links[0].interface = "no-such-link".into();
    let key = NodeKey::from_seed([1; 32]);
    let mut transport = Transport::new(&ha, "gw-a", &key, 0).unwrap();
    assert!(!transport.is_bound(LINK));
    let text = transport.bind(LINK).unwrap_err().to_string();
    assert!(text.contains("no-such-link"), "{text}");
}

#[test]
fn connections_go_on_when_a_socket_is_bound_again() {
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    for index in [0, 1] {
        net.unit(index).bind(LINK).unwrap();
        assert!(net.unit(index).is_bound(LINK));
        for sender in [0, 1] {
            net.unit(sender).write_sync(PEER, LINK, b"again");
        }
        let heard = |net: &mut Net| {
            [0, 1].into_iter().all(|index| {
                let events = &mut net.units[index].as_mut().unwrap().events;
                events
                    .iter()
                    .any(|e| matches!(e, PeerEvent::SyncData { .. }))
            })
        };
        assert!(net.run(SOON, heard), "not over unit {index}'s new socket");
        for unit in net.units.iter_mut().flatten() {
            assert_eq!(down_reasons(&unit.events), []);
            unit.events.clear();
        }
    }
}

#[test]
fn a_restarted_peer_is_noticed_at_once() {
    for restarted in [0, 1] {
        let pair = Pair::new("gw-a", "gw-b");
        let mut net = pair.start();
        net.run_until_up(SOON);
        net.take(1 - restarted, |_| true);
        // Killed: no goodbye.
        net.units[restarted] = None;
        net.pass(Duration::from_millis(100));
        pair.start_one(&mut net, restarted);
        let start = Instant::now();
        let up = net.run(SOON, |net| {
            let now = Instant::now();
            let _ = net
                .unit(1 - restarted)
                .send_datagram(PEER, LINK, b"beat", now);
            let fresh = net.units[1 - restarted].as_ref().unwrap();
            let ups = fresh.events.iter().filter(|event| {
                matches!(
                    event,
                    PeerEvent::HeartbeatUp { .. } | PeerEvent::SyncUp { .. }
                )
            });
            ups.count() == 2 && net.all_up()
        });
        assert!(up, "unit {restarted} did not come back");
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
        let reasons = down_reasons(&net.take(1 - restarted, |_| true));
        // The acceptor may hear of it first by a reset, or by the new connection.
        let expected = |reason: &DownReason| match reason {
            DownReason::Reset => true,
            DownReason::Replaced => restarted == 0,
            _ => false,
        };
        assert!(
            reasons.len() == 2 && reasons.iter().all(expected),
            "{reasons:?}"
        );
    }
}

#[test]
fn a_killed_peer_is_hinted_at() {
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    net.units[1] = None;
    let now = Instant::now();
    assert_eq!(net.unit(0).send_datagram(PEER, LINK, b"beat", now), Ok(()));
    let hinted = net.run(Duration::from_millis(800), |net| {
        let (peer, link) = (PEER, LINK);
        !net.take(0, |event| *event == PeerEvent::Refused { peer, link })
            .is_empty()
    });
    assert!(hinted);
    assert!(net.unit(0).is_heartbeat_up(PEER, LINK), "a hint only");
}

#[test]
fn a_goodbye_is_heard_at_once_and_nobody_redials() {
    for leaving in [0, 1] {
        let mut net = Net::pair("gw-a", "gw-b");
        net.run_until_up(SOON);
        net.unit(leaving).close_all(Instant::now());
        let heard = net.run(Duration::from_millis(800), |net| {
            let unit = net.units[1 - leaving].as_ref().unwrap();
            down_reasons(&unit.events) == [DownReason::Goodbye, DownReason::Goodbye]
        });
        assert!(heard);
        net.take(leaving, |_| true);
        net.pass(Duration::from_millis(300));
        assert_eq!(net.take(leaving, |_| true), []);
    }
}

#[test]
fn a_closed_link_is_dialled_again() {
    for closing in [0, 1] {
        let mut net = Net::pair("gw-a", "gw-b");
        net.run_until_up(SOON);
        net.unit(closing).close(PEER, LINK, Instant::now());
        assert!(!net.unit(closing).is_heartbeat_up(PEER, LINK));
        net.turn();
        let reasons = down_reasons(&net.take(closing, |_| true));
        assert_eq!(reasons, [DownReason::Closed, DownReason::Closed]);
        assert!(net.run(SOON, |net| {
            let unit = net.units[1 - closing].as_ref().unwrap();
            down_reasons(&unit.events).len() == 2
        }));
        assert!(net.run_until_up(SOON) < Duration::from_secs(1));
    }
}

#[test]
fn datagrams_from_elsewhere_are_dropped_unread() {
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    let foreign = UdpSocket::bind("127.0.0.2:0").unwrap();
    let target = net.unit(0).local_addr(LINK).unwrap();
    for size in [1, 100, 1200, 1400] {
        foreign.send_to(&vec![0xc3; size], target).unwrap();
    }
    assert!(net.run(SOON, |net| net.unit(0).counters().foreign_datagrams == 4));
    assert!(net.all_up());
}

#[test]
fn garbage_from_a_peers_address_does_no_harm() {
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    let forger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for index in [0, 1] {
        let target = net.unit(index).local_addr(LINK).unwrap();
        for seed in 0..400usize {
            let size = 1 + seed * 7 % 1400;
            let mut bytes: Vec<u8> = (seed..seed + size).map(pattern).collect();
            // Long and short headers, with and without a version that exists.
            bytes[0] = [0x40, 0xc0, 0xc3, 0xe0][seed % 4] | bytes[0] & 0x0f;
            if let Some(version) = bytes.get_mut(1..5).filter(|_| seed % 8 < 4) {
                version.copy_from_slice(&[0, 0, 0, 1]);
            }
            forger.send_to(&bytes, target).unwrap();
            if seed % 50 == 0 {
                net.turn();
            }
        }
    }
    net.pass(Duration::from_millis(200));
    assert!(net.all_up());
    for index in [0, 1] {
        assert_eq!(net.take(index, |event| !is_datagram(event)).len(), 2, "ups");
    }
}

#[test]
fn a_datagram_does_not_wait_behind_bulk() {
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    let block = vec![3; 4 << 20];
    let mut delays = Vec::new();
    let mut sent: Option<Instant> = None;
    let done = net.run(Duration::from_secs(20), |net| {
        net.unit(0).write_sync(PEER, LINK, &block);
        net.take(1, |event| matches!(event, PeerEvent::SyncData { .. }));
        let start = *sent.get_or_insert_with(|| {
            let now = Instant::now();
            net.unit(0).send_datagram(PEER, LINK, b"beat", now).unwrap();
            now
        });
        if !net.take(1, is_datagram).is_empty() {
            delays.push(start.elapsed());
            sent = None;
        }
        delays.len() == 200
    });
    assert!(done, "{} datagrams arrived", delays.len());
    delays.sort();
    assert!(delays[100] < Duration::from_millis(50), "{:?}", delays[100]);
    assert!(
        delays[198] < Duration::from_millis(500),
        "{:?}",
        delays[198]
    );
}

/// Stands between two units, and can drop everything.
struct Relay {
    sides: [UdpSocket; 2],
    units: [std::net::SocketAddr; 2],
}

impl Relay {
    fn between(pair: &mut Pair) -> Relay {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let sides = [socket(), socket()];
        // Each unit sees its side of the relay as the other unit.
        pair.remote = [
            sides[0].local_addr().unwrap(),
            sides[1].local_addr().unwrap(),
        ];
        Relay {
            sides,
            units: pair.listen,
        }
    }

    fn pump(&self, dropping: bool) {
        let mut buffer = [0; 65536];
        for from in [0, 1] {
            while let Ok(size) = self.sides[from].recv(&mut buffer) {
                if !dropping {
                    let target = self.units[1 - from];
                    let _ = self.sides[1 - from].send_to(&buffer[..size], target);
                }
            }
        }
    }
}

#[test]
fn a_healed_link_is_up_again_soon() {
    let mut pair = Pair::new("gw-a", "gw-b");
    let relay = Relay::between(&mut pair);
    let mut net = pair.start();
    let beat = |net: &mut Net| {
        for index in [0, 1] {
            let _ = net
                .unit(index)
                .send_datagram(PEER, LINK, b"beat", Instant::now());
        }
    };
    assert!(net.run(SOON, |net| {
        relay.pump(false);
        net.all_up()
    }));
    net.run(Duration::from_secs(3), |net| {
        beat(net);
        relay.pump(true);
        false
    });
    for index in [0, 1] {
        let reasons = down_reasons(&net.take(index, |_| true));
        assert_eq!(reasons, [DownReason::TimedOut, DownReason::TimedOut]);
    }
    let healed = Instant::now();
    assert!(net.run(SOON, |net| {
        beat(net);
        relay.pump(false);
        net.all_up() && (0..2).all(|index| !net.take(index, is_datagram).is_empty())
    }));
    assert!(
        healed.elapsed() < Duration::from_millis(1500),
        "{:?}",
        healed.elapsed()
    );
}

/// Jumbo frames carry six times as many sessions a packet; the loopback interface takes them.
#[test]
fn the_stream_finds_out_how_much_a_packet_may_hold() {
    let mut net = Net::pair("gw-a", "gw-b");
    net.run_until_up(SOON);
    let end = Instant::now() + SOON;
    while (0..2).any(|unit| net.unit(unit).payload(PEER, LINK) < Some(8900)) {
        assert!(Instant::now() < end, "it stays at what Ethernet carries");
        net.pass(Duration::from_millis(20));
    }
}
