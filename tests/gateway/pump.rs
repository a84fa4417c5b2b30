//! The pump between the streams to the peers and the gateway, over streams in memory.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tandemgw_core::event::{Output, Verdict};
use tandemgw_core::flow::{Addr, GroupId, LinkId, PeerId};
use tandemgw_core::gateway::Role;
use tandemgw_core::pump::{DownReason, PeerEvent, Pump, Streams};

use testkit::lab::LAN;
use testkit::packets::udp;
use testkit::pair::{LINK, PEER, Pair};

const A: usize = 0;
const B: usize = 1;
const G: GroupId = GroupId(0);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The connections of a unit.
#[derive(Default)]
struct Wire {
    events: VecDeque<PeerEvent>,
    /// What was written and is not on its way yet.
    written: Vec<u8>,
    /// The stream takes nothing that goes beyond this.
    room: Option<usize>,
    ended: Vec<PeerId>,
    /// How often the pump has closed a stream.
    closed: u32,
}

impl Streams for Wire {
    fn ended(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.ended)
    }

    fn receive(&mut self) {}

    fn poll_event(&mut self) -> Option<PeerEvent> {
        self.events.pop_front()
    }

    fn put_back(&mut self, peer: PeerId, link: LinkId, bytes: Bytes) {
        let rest = PeerEvent::SyncData { peer, link, bytes };
        self.events.push_front(rest);
    }

    fn write_sync(&mut self, _: PeerId, _: LinkId, bytes: &[u8]) -> usize {
        let room = self
            .room
            .map_or(usize::MAX, |most| most - self.written.len());
        let taken = bytes.len().min(room);
        self.written.extend(&bytes[..taken]);
        taken
    }

    fn close_sync(&mut self, _: PeerId, _: LinkId) {
        self.closed += 1;
    }

    fn flush(&mut self) {}
}

/// Two units with their pumps. gw-a is primary.
struct World {
    pair: Pair,
    pumps: [Pump; 2],
    wires: [Wire; 2],
}

impl World {
    fn new() -> World {
        let mut pair = Pair::new();
        pair.connect(false);
        let mut world = World {
            pair,
            pumps: [Pump::new(1), Pump::new(1)],
            wires: Default::default(),
        };
        for wire in &mut world.wires {
            let (peer, link) = (PEER, LINK);
            wire.events.push_back(PeerEvent::HeartbeatUp { peer, link });
        }
        world.open_streams();
        world.run(ms(3000));
        assert_eq!(world.pair.units[A].role_of(G), Role::Primary);
        assert_eq!(world.pair.units[B].role_of(G), Role::Standby);
        world
    }

    fn open_streams(&mut self) {
        for wire in &mut self.wires {
            let (peer, link) = (PEER, LINK);
            wire.events.push_back(PeerEvent::SyncUp { peer, link });
        }
    }

    /// One turn of a unit's loop.
    fn turn(&mut self, unit: usize) {
        let World { pair, pumps, wires } = self;
        let (now, gateway) = (pair.now, &mut pair.units[unit]);
        gateway.handle_wake(now);
        pumps[unit].receive(now, gateway, &mut wires[unit]);
        if gateway.poll_timeout(now).is_some_and(|due| due <= now) {
            gateway.handle_timeout(now);
        }
        pumps[unit].send(now, gateway, &mut wires[unit]);
        while let Some(output) = gateway.poll_output() {
            if let Output::Heartbeat { bytes, .. } = output {
                let (peer, link, bytes) = (PEER, LINK, bytes.into());
                let datagram = PeerEvent::Datagram { peer, link, bytes };
                wires[1 - unit].events.push_back(datagram);
            }
        }
    }

    /// What a unit has written arrives in one piece.
    fn carry(&mut self, from: usize) {
        let bytes = std::mem::take(&mut self.wires[from].written);
        if !bytes.is_empty() {
            let (peer, link, bytes) = (PEER, LINK, bytes.into());
            let piece = PeerEvent::SyncData { peer, link, bytes };
            self.wires[1 - from].events.push_back(piece);
        }
    }

    /// Goes on at one instant for as long as something arrives or a pump says that it is busy.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            for unit in [A, B] {
                self.turn(unit);
                self.carry(unit);
            }
            let is_idle =
                |unit: usize| self.wires[unit].events.is_empty() && !self.pumps[unit].is_busy();
            if is_idle(A) && is_idle(B) {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn run(&mut self, span: Duration) {
        let end = self.pair.now + span;
        while self.pair.now < end {
            self.pair.now = self.pair.now + ms(20);
            self.settle();
        }
    }

    /// Hosts open so many sessions at gw-a.
    fn open(&mut self, count: u16) {
        for n in 0..count {
            let host = Addr::v4([10, 77, 1, 20 + (n % 200) as u8]);
            let first = udp((host, 20_000 + n), (Addr::v4([198, 51, 100, 7]), 53));
            assert_eq!(self.pair.send(A, LAN, &first), Verdict::Forward);
        }
    }

    fn sessions(&self, unit: usize) -> usize {
        let (views, _) = self.pair.units[unit].page(0, u32::MAX, self.pair.now);
        views.count()
    }
}

/// More arrives in one piece than the core handles in a call, and than it stores.
#[test]
fn a_piece_of_any_size_is_handled_to_its_end() {
    let mut world = World::new();
    world.open(6000);
    while world.pumps[A].is_busy() || world.wires[A].written.is_empty() {
        world.turn(A);
    }
    world.turn(A);
    let piece = world.wires[A].written.len();
    assert!(piece > 128 * 1024, "a piece of {piece} bytes");
    world.carry(A);
    world.settle();
    assert_eq!(world.sessions(B), 6000);
    assert_eq!([world.wires[A].closed, world.wires[B].closed], [0, 0]);
}

/// A stream ends with bytes that it did not take, and the next one opens before the pump writes
/// again.
#[test]
fn what_was_for_one_stream_does_not_go_to_the_next() {
    let mut world = World::new();
    world.open(500);
    world.wires[A].room = Some(5000);
    world.turn(A);
    assert_eq!(world.wires[A].written.len(), 5000, "it took what it could");
    for wire in &mut world.wires {
        wire.written.clear();
        let (peer, link, reason) = (PEER, LINK, DownReason::TimedOut);
        let down = PeerEvent::SyncDown { peer, link, reason };
        wire.events.push_back(down);
    }
    world.wires[A].room = None;
    world.open_streams();
    world.settle();
    assert_eq!([world.wires[A].closed, world.wires[B].closed], [0, 0]);
    world.run(ms(2000));
    assert_eq!(world.sessions(B), 500);
}

/// A process that is known to have ended is looked for at once, not when it is missed.
#[test]
fn the_end_of_a_process_is_told_at_once() {
    let mut world = World::new();
    world.wires[B].ended.push(PEER);
    let silent_since = world.pair.now;
    while world.pair.units[B].role_of(G) != Role::Primary {
        world.pair.now = world.pair.now + ms(5);
        world.turn(B);
        let silent = world.pair.now.since(silent_since);
        assert!(
            silent < ms(200),
            "within the interval of heartbeats: {silent:?}"
        );
    }
}
