//! The program at the egress of TUN devices: datagrams come by the ring as they would come by the
//! queue of the device, and all other packets still come by that.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use tandemgw::os::fast_path::{Arrivals, Attached, FastPath, Gate, TakenCount};
use tandemgw::os::tun::{Buffer, Offloads, Tun};
use tandemgw_core::event::{Offload, PartialChecksum};
use tandemgw_core::flow::Addr;
use tandemgw_core::packet::TcpFlags;
use testkit::packets::{self, ACK, Pkt, SYN, SYN_ACK, tcp, udp};
use testkit::system::namespace::{Namespace, is_root_of_the_machine};

/// Packets that may come by the ring: this long and no longer.
const SHORT: usize = 108;
const LONG: usize = 1524;
/// Bytes before the header above IP.
const V4: u16 = 20;
const V6: u16 = 40;

/// A kernel between two TUN devices, and the program at the second one.
struct Lab {
    fast_path: FastPath,
    from: Tun,
    to: Tun,
    /// The number of the second device.
    tun: u32,
    before: [TakenCount; 2],
    buffer: Buffer,
    _attached: Attached,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Came {
    packet: Vec<u8>,
    offload: Offload,
}

impl Lab {
    fn new(namespace: &Namespace) -> Lab {
        let fast_path = FastPath::load(4, 2).unwrap();
        let from = Tun::open("tun-in", Offloads::Auto).unwrap();
        let to = Tun::open("tun-out", Offloads::Auto).unwrap();
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            namespace.sysctl(key, "1");
        }
        for key in ["all", "tun-in"].map(|device| format!("ipv4/conf/{device}/rp_filter")) {
            namespace.sysctl(&key, "0");
        }
        namespace.sh(
            "ip link set tun-in addrgenmode none; ip link set tun-out addrgenmode none; \
             ip link set tun-in up mtu 9000; ip link set tun-out up mtu 9000; ip route add default dev tun-out; \
             ip -6 route add default dev tun-out",
        );
        let link = namespace.run("ip -o link show tun-out");
        let tun = link.split(':').next().unwrap().parse().unwrap();
        let entrance = fast_path.entrance().unwrap();
        Lab {
            _attached: entrance.attach_to_egress(tun).unwrap(),
            before: fast_path.taken().entered(tun),
            from,
            to,
            tun,
            buffer: Buffer::new(),
            fast_path,
        }
    }

    fn arrivals(&mut self) -> &mut Arrivals {
        self.fast_path.arrivals().unwrap()
    }

    fn open(&mut self) {
        let tun = self.tun;
        self.arrivals().open(tun);
        assert_eq!(self.gate(), Gate::Opening);
        self.arrivals().fully_open(tun);
        assert_eq!(self.gate(), Gate::Open);
    }

    /// Datagrams of both families that have come by the ring.
    fn entered(&self) -> [u64; 2] {
        let entered = self.fast_path.taken().entered(self.tun);
        [0, 1].map(|family| entered[family].packets_since(self.before[family]))
    }

    fn gate(&mut self) -> Gate {
        let tun = self.tun;
        self.arrivals().gate(tun)
    }

    fn send(&self, (packet, offload): &(Vec<u8>, Offload)) {
        self.from.write_packet(packet, *offload).unwrap();
    }

    fn by_queue(&mut self) -> Option<Came> {
        self.to.read(&mut self.buffer).unwrap()?;
        Some(Came {
            packet: self.buffer.packet().to_vec(),
            offload: self.buffer.offload(),
        })
    }

    fn by_ring(&mut self) -> Option<Came> {
        let mut came = None;
        let arrivals = self.arrivals();
        arrivals.next(|arrival| {
            let packet = arrival.packet.to_vec();
            let offload = arrival.offload;
            came = Some(Came { packet, offload });
        });
        arrivals.release();
        came
    }

    /// What the kernel itself sends to a new device is gone.
    fn drain(&mut self) {
        while self.by_queue().is_some() {}
    }
}

/// Runs a test in a network namespace; none where programs can't be loaded.
fn in_lab(test: impl FnOnce(Lab) + Send) {
    if !is_root_of_the_machine() {
        eprintln!("not tested in a user namespace, where nobody may load programs");
        return;
    }
    // One at a time: while one makes its devices, no process may be started, which would have them
    // open too for a moment.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let namespace = Namespace::first("entrance");
    namespace.inside(|| {
        let mut lab = Lab::new(&namespace);
        lab.drain();
        test(lab);
    });
}

fn ends(v6: bool) -> [(Addr, u16); 2] {
    match v6 {
        false => [
            (Addr::v4([10, 7, 0, 1]), 4000),
            (Addr::v4([10, 7, 0, 2]), 53),
        ],
        true => [1, 2].map(|last| {
            let mut octets = [0; 16];
            (octets[0], octets[1], octets[15]) = (0xfd, 7, last);
            (Addr::v6(octets), 4000)
        }),
    }
}

fn as_it_is(packet: &Pkt) -> (Vec<u8>, Offload) {
    (packet.bytes(), Offload::default())
}

/// A packet whose checksum only covers the pseudo header yet, as hosts on the same machine send it.
fn unfinished(packet: &Pkt, field: u16) -> (Vec<u8>, Offload) {
    let bytes = packet.bytes();
    let start = if bytes[0] >> 4 == 4 { V4 } else { V6 };
    let partial_checksum = Some(PartialChecksum {
        start,
        field: start + field,
    });
    let offload = Offload {
        partial_checksum,
        ..Offload::default()
    };
    (bytes, offload)
}

/// Of so many bytes from the IP header on.
fn datagram(v6: bool, length: usize) -> Pkt {
    let [from, to] = ends(v6);
    let headers = usize::from(if v6 { V6 } else { V4 }) + 8;
    udp(from, to).payload(&vec![7; length - headers])
}

fn segment(v6: bool, flags: TcpFlags) -> Pkt {
    let [from, to] = ends(v6);
    tcp(from, to, flags, 1, 2)
}

/// Datagrams that fit.
fn datagrams() -> Vec<(Vec<u8>, Offload)> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        for length in [60, 61, SHORT, SHORT + 1, 1500, LONG] {
            all.push(as_it_is(&datagram(v6, length)));
            all.push(unfinished(&datagram(v6, length), 6));
        }
        let mut without_checksum = as_it_is(&datagram(v6, 80));
        let at = usize::from(if v6 { V6 } else { V4 }) + 6;
        without_checksum.0[at..at + 2].fill(0);
        all.push(without_checksum);
        let mut wrong_checksum = as_it_is(&datagram(v6, 80));
        wrong_checksum.0[at] ^= 1;
        all.push(wrong_checksum);
    }
    all
}

#[test]
fn datagrams_come_by_the_ring_as_they_would_by_the_queue() {
    in_lab(|mut lab| {
        let datagrams = datagrams();
        let mut by_queue = Vec::new();
        for packet in &datagrams {
            lab.send(packet);
            by_queue.push(lab.by_queue().expect("the ring is closed"));
        }
        lab.open();
        // Several times round the ring, so that some lie across its end.
        const ROUNDS: u64 = 40;
        for _ in 0..ROUNDS {
            for (packet, expected) in datagrams.iter().zip(&by_queue) {
                lab.send(packet);
                assert_eq!(lab.by_ring().as_ref(), Some(expected));
                assert_eq!(lab.by_queue(), None);
                assert_eq!(lab.gate(), Gate::Open);
            }
        }
        let each = datagrams.len() as u64 / 2 * ROUNDS;
        assert_eq!(lab.entered(), [each, each]);
        let taken = lab.fast_path.taken();
        assert_eq!(taken.left(lab.tun), [TakenCount::default(); 2]);
        assert_eq!(taken.of(lab.tun), [TakenCount::default(); 2]);
        // Another device is not concerned.
        let tun = lab.tun;
        lab.arrivals().close(tun + 1);
        lab.arrivals().close(tun + 1024);
        assert_eq!(lab.gate(), Gate::Open);
        lab.arrivals().close(tun);
        lab.arrivals().open(tun + 1024);
        assert_eq!(lab.gate(), Gate::Closed);
        lab.send(&datagrams[0]);
        assert_eq!(lab.by_ring(), None);
        assert!(lab.by_queue().is_some());
    });
}

#[test]
fn all_other_packets_come_by_the_queue() {
    in_lab(|mut lab| {
        let mut others = Vec::new();
        for v6 in [false, true] {
            let [from, to] = ends(v6);
            others.extend([ACK, SYN, SYN_ACK].map(|flags| as_it_is(&segment(v6, flags))));
            others.push(as_it_is(&packets::echo_request(from, to.0)));
            others.push(as_it_is(&packets::other(47, from.0, to.0)));
            if !v6 {
                // With four bytes of options: no operation.
                let mut bytes = datagram(v6, 80).bytes();
                bytes.splice(20..20, [1; 4]);
                (bytes[0], bytes[3]) = (0x46, 84);
                bytes[10..12].fill(0);
                let sum: u32 = bytes[..24]
                    .chunks(2)
                    .map(|it| u32::from(it[0]) << 8 | u32::from(it[1]))
                    .sum();
                let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
                others.push((bytes, Offload::default()));
            }
            let whole = datagram(v6, 1000).bytes();
            let fragments = packets::fragments(&whole, 9, &[480]).into_iter();
            others.extend(fragments.map(|fragment| (fragment, Offload::default())));
        }
        let mut by_queue = Vec::new();
        for packet in &others {
            lab.send(packet);
            by_queue.push(lab.by_queue().expect("the ring is closed"));
        }
        lab.open();
        for (packet, expected) in others.iter().zip(by_queue) {
            lab.send(packet);
            assert_eq!(lab.by_queue(), Some(expected));
            assert_eq!(lab.by_ring(), None);
            assert_eq!(lab.gate(), Gate::Open);
        }
    });
}

/// Else short datagrams would overtake it.
#[test]
fn a_datagram_that_does_not_fit_closes_the_ring() {
    in_lab(|mut lab| {
        let mut several = unfinished(&datagram(false, 1000), 6);
        several.1.segment_size = 100;
        let long = [false, true].map(|v6| as_it_is(&datagram(v6, LONG + 1)));
        // An unfinished checksum of a header further inside, as in a tunnel.
        let tunnels = [false, true].map(|v6| {
            let (packet, mut offload) = unfinished(&datagram(v6, 200), 6);
            let inside = offload.partial_checksum.as_mut().unwrap();
            (inside.start, inside.field) = (inside.start + 40, inside.field + 40);
            (packet, offload)
        });
        let misfits = long.into_iter().chain(tunnels);
        for packet in misfits.chain([several]) {
            let short = as_it_is(&datagram(false, 60));
            lab.open();
            lab.send(&short);
            lab.send(&packet);
            lab.send(&short);
            assert_eq!(lab.gate(), Gate::Closed);
            assert!(lab.by_ring().is_some());
            assert_eq!(lab.by_ring(), None);
            assert_eq!(lab.by_queue().unwrap().packet.len(), packet.0.len());
            assert_eq!(lab.by_queue().unwrap().packet.len(), short.0.len());
        }
    });
}

#[test]
fn what_finds_no_room_takes_the_queue_and_so_does_what_follows() {
    const MOST: u32 = 10_000;
    in_lab(|mut lab| {
        for length in [SHORT, LONG] {
            lab.open();
            let [before, _] = lab.entered();
            let mut sent = 0;
            while lab.gate() == Gate::Open {
                let mut packet = as_it_is(&datagram(false, length));
                packet.0[28..32].copy_from_slice(&u32::to_be_bytes(sent));
                // Without a checksum.
                packet.0[26..28].fill(0);
                lab.send(&packet);
                sent += 1;
                assert!(sent < MOST, "the ring is never full");
            }
            assert_eq!(lab.gate(), Gate::Full);
            assert!(sent > 150, "room for {sent}");
            let [entered, _] = lab.entered();
            assert_eq!(entered - before, u64::from(sent) - 1);
            let end = lab.arrivals().end();
            for expected in 0..sent - 1 {
                assert!(!lab.arrivals().has_passed(end));
                let came = lab.by_ring().expect("it holds all but the last one");
                assert_eq!(came.packet[28..32], u32::to_be_bytes(expected));
            }
            assert!(lab.arrivals().has_passed(end));
            assert_eq!(lab.by_ring(), None);
            let last = lab.by_queue().expect("it came by the queue");
            assert_eq!(last.packet[28..32], u32::to_be_bytes(sent - 1));
            assert_eq!(lab.by_queue(), None);
            // There is room again, but the gate is closed.
            lab.send(&as_it_is(&datagram(false, length)));
            assert_eq!(lab.by_ring(), None);
            assert!(lab.by_queue().is_some());
        }
    });
}

/// As long as the process reads older packets from the queue, nothing newer may get there.
#[test]
fn what_finds_no_room_is_lost_while_a_gate_is_opening() {
    in_lab(|mut lab| {
        let tun = lab.tun;
        lab.arrivals().open(tun);
        let packet = as_it_is(&datagram(false, LONG));
        let lost = |lab: &Lab| {
            lab.fast_path
                .counts()
                .iter()
                .find(|it| it.0 == "lost")
                .unwrap()
                .1
        };
        let mut sent = 0;
        while lost(&lab) < 3 {
            lab.send(&packet);
            sent += 1;
            assert!(sent < 10_000, "the ring is never full");
        }
        assert_eq!((lab.gate(), lab.entered()), (Gate::Opening, [sent, 0]));
        assert_eq!(lab.by_queue(), None);
        for _ in 0..sent - 3 {
            assert!(lab.by_ring().is_some());
        }
        assert_eq!(lab.by_ring(), None);
        // One that does not fit changes nothing.
        lab.send(&as_it_is(&datagram(false, LONG + 1)));
        assert!(lab.by_queue().is_some());
        assert_eq!(lab.gate(), Gate::Opening);
    });
}

/// The loop closes the ring, looks at it once more, and waits: no packet may be in there then until
/// something else wakes the loop.
#[test]
fn a_packet_that_comes_while_the_ring_is_closed_wakes_who_waits() {
    const PACKETS: u32 = 30_000;
    const RING: Token = Token(0);
    const QUEUE: Token = Token(1);
    in_lab(|mut lab| {
        let mut poll = Poll::new().unwrap();
        let ring = lab.arrivals().as_raw_fd();
        let queue = lab.to.as_raw_fd();
        for (fd, token) in [(ring, RING), (queue, QUEUE)] {
            let registry = poll.registry();
            registry
                .register(&mut SourceFd(&fd), token, Interest::READABLE)
                .unwrap();
        }
        let from = lab.from;
        // The sender puts the next packet in when the one before has come.
        let (turn, turns) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (packet, offload) = as_it_is(&datagram(false, 60));
                while turns.recv().is_ok() {
                    from.write_packet(&packet, offload).unwrap();
                }
            });
            let tun = lab.tun;
            let arrivals = lab.fast_path.arrivals().unwrap();
            let mut events = Events::with_capacity(4);
            let mut by_ring = 0;
            for number in 0..PACKETS {
                arrivals.open(tun);
                turn.send(()).unwrap();
                // Meets the sender at all stages of its work.
                for _ in 0..number % 1500 {
                    std::hint::spin_loop();
                }
                arrivals.close(tun);
                loop {
                    if arrivals.next(|_| ()) {
                        arrivals.release();
                        by_ring += 1;
                        break;
                    }
                    if lab.to.read(&mut lab.buffer).unwrap().is_some() {
                        break;
                    }
                    if arrivals.is_empty() {
                        // Somebody else may end the wait: what is in the ring then must still tell.
                        loop {
                            let patience = Some(Duration::from_secs(20));
                            poll.poll(&mut events, patience).unwrap();
                            assert!(!events.is_empty(), "packet {number} waits for ever");
                            if arrivals.is_empty() || events.iter().any(|it| it.token() == RING) {
                                break;
                            }
                        }
                    }
                }
            }
            drop(turn);
            assert!(0 < by_ring && by_ring < PACKETS, "{by_ring} by the ring");
        });
    });
}
