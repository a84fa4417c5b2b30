//! The knowledge of a unit about connections that it takes over, and attacks on them by somebody
//! who sees none of their segments.

use std::time::Duration;

use tandemgw_core::event::{DropReason, Output, Verdict};
use tandemgw_core::flow::PortId;
use tandemgw_core::packet::neighbor::{self, Mac};
use tandemgw_core::random::SplitMix64;

use testkit::lab::{LAN, Net, WAN, link};
use testkit::packets::ErrorCode::TooBig;
use testkit::packets::{ACK, FIN_ACK, Pkt, RST, SYN, SYN_ACK, echo_request, icmp_error, tcp};
use testkit::pair::Pair;

const RST_ACK: tandemgw_core::packet::TcpFlags = tandemgw_core::packet::TcpFlags(RST.0 | ACK.0);

const A: usize = 0;
const B: usize = 1;

/// A connection through the pair: how far each side is.
struct Connection {
    out: Pkt,
    back: Pkt,
    client: u32,
    server: u32,
}

impl Connection {
    fn open(pair: &mut Pair, net: &Net, port: u16) -> Connection {
        let out = tcp((net.host, port), (net.server, 443), SYN, 100, 0);
        let back = out.clone().src(net.wan_vip).answer();
        let mut connection = Connection {
            out,
            back,
            client: 101,
            server: 900_001,
        };
        let syn = connection.out.clone();
        let syn_ack = connection.back.clone().segment(SYN_ACK, 900_000, 101);
        assert_eq!(pair.send(A, LAN, &syn), Verdict::Forward);
        assert_eq!(pair.send(A, WAN, &syn_ack), Verdict::Forward);
        connection.client_sends(pair, A, 0);
        connection
    }

    /// The client's next segment.
    fn request(&self) -> Pkt {
        self.out.clone().segment(ACK, self.client, self.server)
    }

    /// The server's next segment.
    fn answer(&self) -> Pkt {
        self.back.clone().segment(ACK, self.server, self.client)
    }

    #[track_caller]
    fn client_sends(&mut self, pair: &mut Pair, unit: usize, len: usize) {
        let segment = self.request().payload(&vec![7; len]);
        assert_eq!(pair.send(unit, LAN, &segment), Verdict::Forward);
        self.client += len as u32;
    }

    #[track_caller]
    fn server_sends(&mut self, pair: &mut Pair, unit: usize, len: usize) {
        let segment = self.answer().payload(&vec![7; len]);
        assert_eq!(pair.send(unit, WAN, &segment), Verdict::Forward);
        self.server += len as u32;
    }

    /// A download of `len` bytes, of which each segment is acknowledged.
    fn download(&mut self, pair: &mut Pair, unit: usize, len: usize) {
        let end = self.server + len as u32;
        while self.server < end {
            self.server_sends(pair, unit, 1400);
            self.client_sends(pair, unit, 0);
        }
    }
}

fn states(pair: &Pair, unit: usize) -> Vec<(&'static str, u64)> {
    let views = pair.units[unit].page(0, u32::MAX, pair.now).0;
    views.map(|view| (view.state, view.expires_s)).collect()
}

/// So a reset that is exact ends it at once, as before the takeover.
#[test]
fn the_numbers_of_a_quiet_connection_are_known_after_a_takeover() {
    for net in Net::both() {
        for from_client in [true, false] {
            let mut pair = Pair::new();
            let mut connection = Connection::open(&mut pair, &net, 40000);
            // gw-b hears of what comes first, and then no longer of each segment.
            connection.download(&mut pair, A, 1400);
            pair.exchange();
            connection.download(&mut pair, A, 700_000);
            connection.client_sends(&mut pair, A, 300);
            connection.server_sends(&mut pair, A, 0);
            // It counts as quiet after 2 s, and is found to be so within another.
            pair.pass(Duration::from_millis(3500));
            pair.take_over();
            assert_eq!(states(&pair, B)[0].0, "established");
            let (port, reset) = match from_client {
                true => (LAN, connection.request()),
                false => (WAN, connection.answer()),
            };
            let (seq, ack) = match from_client {
                true => (connection.client, connection.server),
                false => (connection.server, connection.client),
            };
            for wrong in [(seq + 1, ack), (seq, ack + 1)] {
                let blind = reset.clone().segment(RST_ACK, wrong.0, wrong.1);
                assert_eq!(pair.send(B, port, &blind), Verdict::Forward);
                assert_eq!(states(&pair, B)[0].0, "established");
            }
            let exact = reset.segment(RST_ACK, seq, ack);
            assert_eq!(pair.send(B, port, &exact), Verdict::Forward);
            assert_eq!(states(&pair, B)[0].0, "closed");
        }
    }
}

/// By broadcast, several times, and by unicast to each host that was heard.
#[test]
fn a_takeover_is_announced_to_the_links_and_to_each_host() {
    for net in Net::both() {
        let host: Mac = [2, 0, 0, 0, 7, 7];
        let mut pair = Pair::new();
        for frame in neighbor::announce(net.host, host) {
            pair.units[B].handle_frame(pair.now, LAN, &frame);
        }
        pair.connect(false);
        let mut frames = Vec::new();
        let end = pair.now + Duration::from_secs(4);
        let unit = &mut pair.units[B];
        let mut now = pair.now;
        while now < end {
            unit.handle_wake(now);
            unit.handle_timeout(now);
            frames.extend(std::iter::from_fn(|| unit.poll_output()));
            now = unit.poll_timeout(now).unwrap_or(end).max(now);
        }
        let sent = |wanted: Vec<u8>| {
            let is_it = |output: &&Output| matches!(output, Output::Frame { port: LAN, bytes } if *bytes == wanted);
            frames.iter().filter(is_it).count()
        };
        let mac = link(LAN).mac;
        for frame in neighbor::announce(net.lan_vip, mac) {
            assert!(sent(frame) >= 2, "repeated");
        }
        let told = neighbor::announce_to(net.lan_vip, mac, net.host, host);
        assert!(sent(told) >= 1);
    }
}

/// It sees no packets of them; the primary does.
#[test]
fn a_standby_lets_no_session_expire() {
    for net in Net::both() {
        let mut pair = Pair::new();
        let ping = echo_request((net.host, 7), net.server);
        // The timeout is 60 s.
        for _ in 0..5 {
            assert_eq!(pair.send(A, LAN, &ping), Verdict::Forward);
            pair.pass(Duration::from_secs(25));
        }
        assert_eq!(states(&pair, B).len(), 1);
        let cluster = pair.units[B].cluster().unwrap();
        assert_eq!(cluster.sync().counters().installed, 1, "not sent again");
    }
}

/// The numbers that an error may quote are bounded, although a transfer is under way.
#[test]
fn the_numbers_of_a_busy_connection_are_known_within_a_few_mebibytes() {
    for net in Net::both() {
        let mut pair = Pair::new();
        let mut connection = Connection::open(&mut pair, &net, 40000);
        pair.exchange();
        for _ in 0..160 {
            connection.download(&mut pair, A, 500_000);
            pair.exchange();
        }
        pair.take_over();
        let quoted = |seq| {
            let quoted = connection.answer().segment(ACK, seq, connection.client);
            let inside = quoted.dst(net.host).payload(&[7; 1400]).forwarded();
            icmp_error(TooBig(1300), net.neighbor, net.server, &inside.bytes())
        };
        for (off, verdict) in [
            (0, Verdict::Forward),
            (1400, Verdict::Forward),
            (64 << 20, Verdict::Drop(DropReason::IcmpUnrelated)),
            (1 << 31, Verdict::Drop(DropReason::IcmpUnrelated)),
            (-(64 << 20), Verdict::Drop(DropReason::IcmpUnrelated)),
        ] {
            let seq = (i64::from(connection.server) + off) as u32;
            assert_eq!(pair.send(B, LAN, &quoted(seq)), verdict, "{off}");
        }
        connection.download(&mut pair, B, 500_000);
    }
}

/// In whose name a burst is forged.
#[derive(Clone, Copy, Debug)]
enum As {
    Client,
    Server,
    /// Of both in turn.
    Both,
    /// Of both in turn, so that each segment agrees with the one before it.
    Dialogue,
}

/// A burst of segments right after a takeover; then the hosts go on.
#[test]
fn blind_segments_after_a_takeover_end_no_connection() {
    let bursts = [As::Client, As::Server, As::Both, As::Dialogue];
    for (net, burst) in Net::both()
        .into_iter()
        .flat_map(|net| bursts.map(|burst| (net, burst)))
    {
        let mut pair = Pair::new();
        let mut connections: Vec<Connection> = (0..20)
            .map(|number| Connection::open(&mut pair, &net, 40_000 + number))
            .collect();
        for connection in &mut connections {
            connection.download(&mut pair, A, 20_000);
        }
        pair.exchange();
        // Some are known to be quiet, others have sent more since.
        pair.pass(Duration::from_millis(3500));
        for connection in connections.iter_mut().take(10) {
            connection.download(&mut pair, A, 200_000);
        }
        pair.take_over();
        let mut random = SplitMix64(5);
        for _ in 0..200 {
            for connection in &connections {
                forge(&mut pair, connection, burst, &mut random);
            }
        }
        let is_whole = |(state, expires): &(&str, u64)| *state == "established" && *expires > 7000;
        let all_are_whole = |pair: &Pair| {
            let states = states(pair, B);
            assert_eq!(states.len(), 20);
            assert!(states.iter().all(is_whole), "{burst:?}: {states:?}");
        };
        all_are_whole(&pair);
        for connection in &mut connections {
            connection.client_sends(&mut pair, B, 300);
            connection.download(&mut pair, B, 5000);
        }
        all_are_whole(&pair);
        // And they end as all do.
        for connection in &connections {
            let Connection { client, server, .. } = *connection;
            let closes = connection.out.clone().segment(FIN_ACK, client, server);
            let closes_too = connection.back.clone().segment(FIN_ACK, server, client + 1);
            let last = connection.out.clone().segment(ACK, client + 1, server + 1);
            for (port, packet) in [(LAN, closes), (WAN, closes_too), (LAN, last)] {
                assert_eq!(pair.send(B, port, &packet), Verdict::Forward);
            }
        }
        let is_over = |(state, _): &(&str, u64)| *state == "time-wait";
        assert!(states(&pair, B).iter().all(is_over), "{burst:?}");
    }
}

/// A forged segment about a connection, or several that agree with each other.
fn forge(pair: &mut Pair, connection: &Connection, burst: As, random: &mut SplitMix64) {
    let [seq, ack] = [0; 2].map(|_| random.next() as u32);
    let as_client = match burst {
        As::Client => true,
        As::Server => false,
        As::Both | As::Dialogue => random.below(2) == 0,
    };
    let mut sides = [(LAN, &connection.out), (WAN, &connection.back)];
    if !as_client {
        sides.reverse();
    }
    let mut send = |(port, base): (PortId, &Pkt), flags, seq, ack, payload: &[u8]| {
        let segment = base.clone().segment(flags, seq, ack).payload(payload);
        pair.send(B, port, &segment);
    };
    let [one, other] = sides;
    let As::Dialogue = burst else {
        let flags = [RST, RST_ACK, FIN_ACK, ACK, SYN, SYN_ACK][random.below(6)];
        return send(one, flags, seq, ack, b"x");
    };
    send(one, ACK, seq, ack, b"x");
    send(other, ACK, ack, seq.wrapping_add(1), b"");
    if random.below(2) == 0 {
        return send(one, RST_ACK, seq.wrapping_add(1), ack, b"");
    }
    send(one, FIN_ACK, seq.wrapping_add(1), ack, b"");
    send(other, FIN_ACK, ack, seq.wrapping_add(2), b"");
    send(one, ACK, seq.wrapping_add(2), ack.wrapping_add(1), b"");
}
