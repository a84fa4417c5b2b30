//! Units, hosts and what connects them, in virtual time. A turn of a unit makes the same calls in the
//! same order as `os::event_loop` and `os::peers`.

use std::collections::BTreeMap;
use std::time::Duration;

use tandemgw_core::event::{LinkState, Offload, Output, RouteChange, Verdict};
use tandemgw_core::flow::{Family, GroupId, LinkId, PeerId, PortId};
use tandemgw_core::gateway::{Gateway, Role, Seed};
use tandemgw_core::ha::Hint;
use tandemgw_core::random::SplitMix64;
use tandemgw_core::time::Time;

use crate::faults::Faults;
use crate::hosts::{Flow, Host};
use crate::reload::Rules;
use crate::setup::{HOSTS, NAMES, Shape, peer_id, route, unit_mac, unit_of};
use crate::transport::{Conn, Kind, connections};

/// What a unit finds in its sockets.
#[derive(Clone, Debug)]
pub enum Arrival {
    Up(usize, u64),
    Down(usize),
    Writable(usize, u64),
    Bytes {
        conn: usize,
        serial: u64,
        bytes: Vec<u8>,
    },
    Datagram {
        peer: PeerId,
        link: LinkId,
        bytes: Vec<u8>,
    },
    Refused(PeerId),
    Frame {
        port: usize,
        bytes: Vec<u8>,
    },
    Packet {
        port: usize,
        bytes: Vec<u8>,
    },
    Link {
        port: usize,
        up: bool,
    },
}

impl Arrival {
    /// The order within a turn: links, heartbeats, replication, frames, packets.
    fn order(&self, conns: &[Conn]) -> u8 {
        match self {
            Arrival::Link { .. } => 0,
            Arrival::Datagram { .. } | Arrival::Refused(_) => 1,
            Arrival::Up(conn, _) | Arrival::Down(conn) | Arrival::Writable(conn, _) => {
                1 + u8::from(conns[*conn].kind == Kind::Sync)
            }
            Arrival::Bytes { .. } => 2,
            Arrival::Frame { .. } => 3,
            Arrival::Packet { .. } => 4,
        }
    }
}

/// What happens to a host.
#[derive(Debug)]
pub enum Event {
    Packet {
        place: (usize, usize),
        bytes: Vec<u8>,
    },
    Frame {
        place: (usize, usize),
        frame: Vec<u8>,
    },
}

/// A machine with its process, if that runs.
pub struct Unit {
    /// None while it is dead, or at work.
    pub gateway: Option<Gateway>,
    pub alive: bool,
    /// What its clock says at the start of the world: each boot has another one.
    clock: u64,
    pub runs_from: Time,
    /// What its config file says.
    pub rules: Rules,
    /// Switches may not be what the file says.
    pub switched: bool,
    wakes_at: Time,
    last_turn: Time,
    pub inbox: BTreeMap<(Time, u64), Arrival>,
    pub ports: Vec<Port>,
    outgoing: Vec<Outgoing>,
    unfinished: Vec<bool>,
    busy: bool,
}

/// The connection of a port to its segment.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    pub up: bool,
    pub part: usize,
}

/// What a peer's stream has not taken yet.
#[derive(Clone, Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
    link: Option<LinkId>,
    blocked: bool,
}

/// Everything.
pub struct World {
    pub now: Time,
    pub shape: Shape,
    pub random: SplitMix64,
    pub faults: Faults,
    pub units: Vec<Unit>,
    pub hosts: Vec<Vec<Host>>,
    pub flows: Vec<Flow>,
    pub conns: Vec<Conn>,
    /// By link, sender, receiver.
    pub cuts: Vec<Vec<Vec<bool>>>,
    /// By sender and receiver: on all links.
    pub cut_off: Vec<Vec<bool>>,
    /// Answers that reached another flow.
    pub crossed: u64,
    /// Hosts are silent.
    pub silent: bool,
    /// The first port of clients: a connection that was given up may live on in the tables.
    pub client_ports: u16,
    /// A hash of all that has happened.
    pub trace: u64,
    pub verbose: bool,
    pub turns: u64,
    pub dual: BTreeMap<(usize, usize, usize), Time>,
    /// By group: when there were two primaries last, whether they heard each other or not.
    pub last_dual: Vec<Option<Time>>,
    events: BTreeMap<(Time, u64), Event>,
    serial: u64,
    next_tick: Time,
}

/// Between two looks at connections and flows.
const TICK: Duration = Duration::from_millis(5);
/// The shortest time between two turns of a unit.
const TURN: Duration = Duration::from_micros(100);
/// Turns between two looks at the invariants.
const TURNS_PER_CHECK: u64 = 16;

impl World {
    pub fn new(seed: u64, shape: Shape, faults: Faults) -> World {
        let unit = || Unit {
            gateway: None,
            alive: false,
            clock: 0,
            runs_from: Time::ZERO,
            rules: Rules::default(),
            switched: false,
            wakes_at: Time::ZERO,
            last_turn: Time::ZERO,
            inbox: BTreeMap::new(),
            ports: vec![Port { up: true, part: 0 }; shape.ports()],
            outgoing: Vec::new(),
            unfinished: Vec::new(),
            busy: false,
        };
        let hosts = || (0..HOSTS).map(|_| Host::default()).collect();
        let nothing = vec![vec![false; shape.units]; shape.units];
        let mut world = World {
            now: Time::from_nanos(1_000_000_000),
            shape,
            random: SplitMix64(seed),
            faults,
            units: (0..shape.units).map(|_| unit()).collect(),
            hosts: (0..shape.ports()).map(|_| hosts()).collect(),
            flows: Vec::new(),
            conns: connections(shape.units, shape.links),
            cuts: vec![nothing.clone(); shape.links],
            cut_off: nothing,
            crossed: 0,
            silent: false,
            client_ports: 40_000,
            trace: 0,
            verbose: std::env::var("TANDEMGW_SEED").is_ok(),
            turns: 0,
            dual: BTreeMap::new(),
            last_dual: vec![None; shape.groups],
            events: BTreeMap::new(),
            serial: 0,
            next_tick: Time::ZERO,
        };
        (0..shape.units).for_each(|unit| world.start(unit));
        world
    }

    /// Notes what happened: shown for a seed that is replayed, and part of the trace's hash.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let text = what();
        if self.verbose {
            eprintln!("{:12.6} {text}", self.now.as_nanos() as f64 / 1e9);
        }
        for byte in text.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.trace = (self.trace ^ self.now.as_nanos()).wrapping_mul(0x0100_0000_01b3);
    }

    /// A process starts.
    pub fn start(&mut self, unit: usize) {
        let config = self.shape.config(unit, &self.units[unit].rules);
        let clock = self.random.next() % 1_000_000_000_000_000;
        let seed = Seed(self.random.bytes());
        self.note(|| format!("{} starts", NAMES[unit]));
        let machine = &mut self.units[unit];
        machine.clock = clock;
        let now = Time::from_nanos(clock + self.now.as_nanos());
        let mut gateway = Gateway::new(config, seed, now);
        for (port, state) in machine.ports.iter().enumerate() {
            gateway.handle_link(now, PortId(port as u8), link_state(unit, port, state.up));
            for family in [Family::V4, Family::V6] {
                gateway.handle_route(RouteChange::Add(route(port, family)));
            }
        }
        gateway.start(now);
        machine.gateway = Some(gateway);
        machine.alive = true;
        machine.inbox.clear();
        let peers = self.shape.units - 1;
        machine.outgoing = vec![Outgoing::default(); peers];
        machine.unfinished = vec![false; peers];
        machine.busy = true;
        (machine.runs_from, machine.wakes_at) = (self.now, self.now);
    }

    /// A process dies. `tells`: its kernel lives on, and says so.
    pub fn crash(&mut self, unit: usize, tells: bool) {
        self.note(|| format!("{} dies, tells={tells}", NAMES[unit]));
        self.units[unit].gateway = None;
        self.units[unit].alive = false;
        self.units[unit].inbox.clear();
        self.break_connections_of(unit, tells);
    }

    pub fn is_alive(&self, unit: usize) -> bool {
        self.units[unit].alive
    }

    pub fn runs(&self, unit: usize) -> bool {
        self.is_alive(unit) && self.units[unit].runs_from <= self.now
    }

    pub fn local_time(&self, unit: usize) -> Time {
        Time::from_nanos(self.units[unit].clock + self.now.as_nanos())
    }

    pub fn is_primary(&self, unit: usize, group: usize) -> bool {
        let gateway = self.units[unit].gateway.as_ref();
        gateway.is_some_and(|g| g.role_of(GroupId(group as u8)) == Role::Primary)
    }

    pub fn primaries(&self, group: usize) -> Vec<usize> {
        (0..self.shape.units)
            .filter(|unit| self.is_primary(*unit, group))
            .collect()
    }

    pub fn macs(&self, unit: usize, port: usize) -> [u8; 6] {
        unit_mac(unit, port)
    }

    /// Whether the port of `unit` is on that part of the segment.
    pub fn is_on(&self, unit: usize, segment: usize, part: usize) -> bool {
        let port = self.units[unit].ports[segment];
        port.up && port.part == part
    }

    pub fn set_port(&mut self, unit: usize, port: usize, up: bool) {
        if self.units[unit].ports[port].up != up {
            self.note(|| format!("{} port {port} up={up}", NAMES[unit]));
            self.units[unit].ports[port].up = up;
            self.arrive_soon(unit, Arrival::Link { port, up });
        }
    }

    /// Lets a unit have a turn at once, if it runs.
    pub fn wake(&mut self, unit: usize) {
        self.units[unit].wakes_at = self.now;
    }

    pub fn arrive(&mut self, unit: usize, when: Time, arrival: Arrival) {
        if !self.is_alive(unit) {
            return;
        }
        self.serial += 1;
        let machine = &mut self.units[unit];
        machine.inbox.insert((when, self.serial), arrival);
        machine.wakes_at = machine.wakes_at.min(when);
    }

    pub fn arrive_soon(&mut self, unit: usize, arrival: Arrival) {
        let delay = self.random.up_to(self.faults.most_delay);
        self.arrive(unit, self.now + delay, arrival);
    }

    pub fn post(&mut self, delay: Duration, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + delay, self.serial), event);
    }

    /// Lets time pass, from one thing that happens to the next.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let turns = self.units.iter().filter(|unit| unit.alive);
            let turn =
                turns.map(|unit| unit.wakes_at.max(unit.runs_from).max(unit.last_turn + TURN));
            let next = turn
                .chain(event)
                .chain([self.next_tick, end])
                .min()
                .unwrap_or(end);
            self.now = next.max(self.now).min(end);
            self.do_what_is_due();
        }
    }

    fn do_what_is_due(&mut self) {
        if self.now >= self.next_tick {
            self.next_tick = self.now + TICK;
            self.tend_connections();
            if !self.silent {
                self.tend_flows();
            }
            self.check_rivals();
        }
        while let Some(entry) = self.events.first_entry().filter(|e| e.key().0 <= self.now) {
            match entry.remove() {
                Event::Packet { place, bytes } => self.host_receives(place, &bytes),
                Event::Frame { place, frame } => self.host_hears(place, &frame),
            }
        }
        for unit in 0..self.shape.units {
            let machine = &self.units[unit];
            let rested = machine.last_turn + TURN <= self.now;
            if self.runs(unit) && rested && machine.wakes_at <= self.now {
                self.turn(unit);
            }
        }
    }

    /// One turn of a unit's loop.
    fn turn(&mut self, unit: usize) {
        self.turns += 1;
        let now = self.local_time(unit);
        let Some(mut gateway) = self.units[unit].gateway.take() else {
            return;
        };
        let before = self.roles(&gateway);
        self.units[unit].last_turn = self.now;
        self.units[unit].busy = false;
        gateway.handle_wake(now);
        let mut due: Vec<Arrival> = Vec::new();
        while let Some(entry) = self.units[unit]
            .inbox
            .first_entry()
            .filter(|e| e.key().0 <= self.now)
        {
            due.push(entry.remove());
        }
        due.sort_by_key(|arrival| arrival.order(&self.conns));
        let packets = due.iter().position(|a| matches!(a, Arrival::Packet { .. }));
        let packets = due.split_off(packets.unwrap_or(due.len()));
        let mut turn = Turn { unit, now, gateway };
        self.go_on(&mut turn);
        let mut due = due.into_iter();
        while let Some(arrival) = due.next() {
            self.heed(&mut turn, arrival);
            if self.units[unit].unfinished.contains(&true) {
                let (later, frames) = due.partition(|arrival| arrival.order(&self.conns) <= 2);
                self.put_back(unit, later);
                due = frames.into_iter();
            }
        }
        self.drain(&mut turn);
        for arrival in packets {
            self.heed(&mut turn, arrival);
        }
        if turn.gateway.poll_timeout(now).is_some_and(|at| at <= now) {
            turn.gateway.handle_timeout(now);
        }
        self.drain(&mut turn);
        for peer in turn.gateway.peers() {
            self.fill(&mut turn, peer);
        }
        self.drain(&mut turn);
        self.finish_turn(turn, &before);
    }

    fn finish_turn(&mut self, turn: Turn, before: &[Role]) {
        let Turn { unit, now, gateway } = turn;
        if self.turns.is_multiple_of(TURNS_PER_CHECK) {
            gateway.check_invariants();
        }
        for (group, (old, new)) in before.iter().zip(self.roles(&gateway)).enumerate() {
            if *old != new {
                self.note(|| format!("{} is {new:?} of group {group}", NAMES[unit]));
            }
        }
        let timeout = gateway.poll_timeout(now).map(|at| self.now + at.since(now));
        let gone = gateway.is_gone();
        let machine = &mut self.units[unit];
        let inbox = machine.inbox.first_key_value().map(|((at, _), _)| *at);
        let busy = machine.busy || machine.unfinished.contains(&true);
        let soon = busy.then_some(self.now + TURN);
        let next = inbox.into_iter().chain(timeout).chain(soon).min();
        machine.wakes_at = next.unwrap_or(self.now + Duration::from_secs(1));
        machine.gateway = Some(gateway);
        if gone {
            self.note(|| format!("{} has ended", NAMES[unit]));
            self.crash(unit, true);
        }
    }

    fn roles(&self, gateway: &Gateway) -> Vec<Role> {
        (0..self.shape.groups)
            .map(|group| gateway.role_of(GroupId(group as u8)))
            .collect()
    }

    fn heed(&mut self, turn: &mut Turn, arrival: Arrival) {
        let (unit, now) = (turn.unit, turn.now);
        match arrival {
            Arrival::Up(conn, serial) => {
                self.note_known(conn, unit, Some(serial));
                self.heed_conn(turn, conn, true);
            }
            Arrival::Down(conn) => {
                self.note_known(conn, unit, None);
                self.heed_conn(turn, conn, false);
            }
            Arrival::Writable(conn, serial) => {
                let (peer, _) = self.peer_of(conn, unit);
                if self.conns[conn].serial == serial {
                    self.units[unit].outgoing[peer.index()].blocked = false;
                }
            }
            Arrival::Bytes {
                conn,
                serial,
                bytes,
            } => {
                let (peer, link) = self.peer_of(conn, unit);
                let taken = self.deliver(turn, peer, link, &bytes);
                self.note_read(conn, unit, taken, serial);
                if taken < bytes.len() {
                    let bytes = bytes[taken..].to_vec();
                    self.put_back(
                        unit,
                        vec![Arrival::Bytes {
                            conn,
                            serial,
                            bytes,
                        }],
                    );
                }
            }
            Arrival::Datagram { peer, link, bytes } => {
                turn.gateway.handle_heartbeat(now, peer, link, &bytes);
            }
            Arrival::Refused(peer) => turn.gateway.handle_hint(now, Hint::Refused { peer }),
            Arrival::Frame { port, bytes } => {
                turn.gateway.handle_frame(now, PortId(port as u8), &bytes);
            }
            Arrival::Link { port, up } => {
                let state = link_state(unit, port, up);
                turn.gateway.handle_link(now, PortId(port as u8), state);
            }
            Arrival::Packet { port, mut bytes } => {
                let known = sessions(&turn.gateway);
                let port = PortId(port as u8);
                let verdict = turn
                    .gateway
                    .handle_packet(now, port, &mut bytes, Offload::default());
                if let Verdict::Drop(reason) = verdict {
                    self.note(|| format!("{} drops: {}", NAMES[unit], reason.name()));
                }
                if verdict == Verdict::Forward {
                    if sessions(&turn.gateway) > known {
                        self.check_guarantee(turn, &bytes);
                    }
                    self.deliver_packet(unit, bytes);
                }
            }
        }
    }

    fn peer_of(&self, conn: usize, unit: usize) -> (PeerId, LinkId) {
        let conn = &self.conns[conn];
        let other = conn.units[usize::from(conn.units[0] == unit)];
        (peer_id(unit, other), LinkId(conn.link as u8))
    }

    fn heed_conn(&mut self, turn: &mut Turn, conn: usize, up: bool) {
        let (peer, link) = self.peer_of(conn, turn.unit);
        if self.conns[conn].kind == Kind::Heartbeat {
            return turn.gateway.handle_heartbeat_link(turn.now, peer, link, up);
        }
        if !up {
            let outgoing = &mut self.units[turn.unit].outgoing[peer.index()];
            if outgoing.link == Some(link) {
                *outgoing = Outgoing::default();
            }
        }
        turn.gateway.handle_sync_link(turn.now, peer, link, up);
    }

    /// Hands over a piece of a stream; gives how much of it was taken, the rest is for a later turn.
    fn deliver(&mut self, turn: &mut Turn, peer: PeerId, link: LinkId, bytes: &[u8]) -> usize {
        match turn.gateway.handle_sync_data(turn.now, peer, link, bytes) {
            Ok(received) => {
                self.units[turn.unit].unfinished[peer.index()] = received.more;
                received.taken
            }
            Err(error) => panic!(
                "{} finds fault with the stream of {}: {error}",
                NAMES[turn.unit],
                NAMES[unit_of(turn.unit, peer)]
            ),
        }
    }

    /// Leaves what came for the next turn, before all that comes later.
    fn put_back(&mut self, unit: usize, arrivals: Vec<Arrival>) {
        let machine = &mut self.units[unit];
        for arrival in arrivals {
            self.serial += 1;
            machine.inbox.insert((Time::ZERO, self.serial), arrival);
        }
        machine.busy = true;
    }

    fn go_on(&mut self, turn: &mut Turn) {
        for peer in turn.gateway.peers() {
            if !self.units[turn.unit].unfinished[peer.index()] {
                continue;
            }
            match turn.gateway.sync_link(peer) {
                Some(link) => {
                    self.deliver(turn, peer, link, &[]);
                }
                None => self.units[turn.unit].unfinished[peer.index()] = false,
            }
        }
    }

    /// Gives the stream to `peer` what it takes.
    fn fill(&mut self, turn: &mut Turn, peer: PeerId) {
        let link = turn.gateway.sync_link(peer);
        let mut outgoing = std::mem::take(&mut self.units[turn.unit].outgoing[peer.index()]);
        if outgoing.link != link {
            outgoing = Outgoing {
                link,
                ..Outgoing::default()
            };
        }
        if let Some(link) = link.filter(|_| !outgoing.blocked) {
            if outgoing.written == outgoing.bytes.len() {
                outgoing.bytes.clear();
                outgoing.written = 0;
                let more = turn.gateway.poll_sync(turn.now, peer, &mut outgoing.bytes);
                self.units[turn.unit].busy |= more;
            }
            if outgoing.written < outgoing.bytes.len() {
                let rest = &outgoing.bytes[outgoing.written..];
                let taken = self.write_sync(turn.unit, peer, link, rest);
                outgoing.blocked = taken < rest.len();
                outgoing.written += taken;
            }
        }
        self.units[turn.unit].outgoing[peer.index()] = outgoing;
    }

    fn drain(&mut self, turn: &mut Turn) {
        while let Some(output) = turn.gateway.poll_output() {
            match output {
                Output::Packet { bytes, .. } => {
                    self.check_guarantee(turn, &bytes);
                    self.deliver_packet(turn.unit, bytes);
                }
                Output::Frame { port, bytes } => {
                    let segment = port.index();
                    self.carry_frame(segment, unit_mac(turn.unit, segment), bytes);
                }
                Output::Heartbeat { peer, link, bytes } => {
                    self.send_datagram(turn.unit, peer, link, &bytes);
                }
                // The kernels of this world know their neighbours.
                Output::Resolve { .. } => {}
                Output::CloseStream { peer, link } => {
                    self.note(|| {
                        format!(
                            "{} closes the stream to {peer:?} on {link:?}",
                            NAMES[turn.unit]
                        )
                    });
                    self.close_sync(turn.unit, peer, link);
                    self.units[turn.unit].busy = true;
                }
            }
        }
    }
}

/// A unit at work.
pub struct Turn {
    pub unit: usize,
    pub now: Time,
    pub gateway: Gateway,
}

pub fn sessions(gateway: &Gateway) -> u32 {
    let counts = gateway.session_counts();
    counts.tcp + counts.udp + counts.icmp + counts.other
}

fn link_state(unit: usize, port: usize, up: bool) -> LinkState {
    LinkState {
        up,
        mtu: 1500,
        mac: unit_mac(unit, port),
    }
}
