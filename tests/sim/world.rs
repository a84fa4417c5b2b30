//! Units, hosts and what connects them, in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use tandemgw_core::event::RouteChange;
use tandemgw_core::flow::{Addr, Family, GroupId, LinkId, MAX_GROUPS, PeerId, PortId};
use tandemgw_core::gateway::{Gateway, Role, Seed};
use tandemgw_core::pump::Pump;
use tandemgw_core::random::SplitMix64;
use tandemgw_core::time::Time;
use testkit::fast_path::Program;

use crate::fast::program_for;
use crate::faults::Faults;
use crate::hosts::{Flow, Host};
use crate::reigns::Reigns;
use crate::reload::Rules;
use crate::setup::{HOSTS, NAMES, Shape, port_keys, route, unit_mac};
use crate::streams::{Stream, link_local, streams_of};
use crate::transport::{Conn, connections};
use crate::turn::link_state;
use crate::wires::Heard;
use crate::witness::Etcd;

/// A packet or frame on the ports of a unit.
#[derive(Clone, Debug)]
pub enum Arrival {
    Frame {
        port: usize,
        bytes: Vec<u8>,
    },
    Packet {
        port: usize,
        bytes: Vec<u8>,
    },
    /// A frame to many, other than those of ARP and neighbor discovery.
    Stream {
        port: usize,
        bytes: Vec<u8>,
    },
    Link {
        port: usize,
        up: bool,
    },
    Carrier {
        link: usize,
        up: bool,
    },
}

/// News of a peer, or of the connections to it.
#[derive(Clone, Debug)]
pub enum News {
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
    PassedOn {
        peer: PeerId,
        bytes: Vec<u8>,
    },
    Refused(PeerId),
    Ended(PeerId),
}

/// How a process goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// It hands over and says goodbye.
    Goodbye,
    /// Its kernel lives on, and closes what it had open.
    Killed,
    /// Nobody says anything.
    PowerLoss,
}

/// An event at a host.
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

/// The unit that a packet of a host goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// The one that announces the gateway's address.
    Gateway,
    /// Each packet to any one that is there.
    EachPacket,
    /// This one, while it is there.
    To(usize),
}

/// A machine with its process, if that runs.
pub struct Unit {
    /// None while it is dead, or at work.
    pub gateway: Option<Gateway>,
    /// The program in its kernel, if there is one.
    pub program: Option<Program>,
    pub alive: bool,
    /// The reading of its clock at the start of the world: each boot has another one.
    clock: u64,
    pub runs_from: Time,
    /// The rules in its config file.
    pub rules: Rules,
    /// Switches may not be what the file says.
    pub switched: bool,
    pub pump: Pump,
    pub wakes_at: Time,
    /// When the process that speaks to the witness has something to do.
    pub asks_at: Option<Time>,
    pub last_turn: Time,
    /// An administrator came, and the gateway noticed a pause.
    pub last_wake: Time,
    pub inbox: BTreeMap<(Time, u64), Arrival>,
    pub news: BTreeMap<(Time, u64), News>,
    pub heard: Heard,
    /// It handles heartbeats, but reads no stream until then.
    pub reads_from: Time,
    pub ports: Vec<Port>,
    /// By link.
    pub carrier: Vec<bool>,
}

/// The connection of a port to its segment.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    pub up: bool,
    pub part: usize,
    /// Nothing comes in by it, and nobody says so.
    pub deaf: bool,
    /// Nothing goes out by it.
    pub mute: bool,
}

impl Port {
    const FINE: Port = Port {
        up: true,
        part: 0,
        deaf: false,
        mute: false,
    };
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
    /// Packets of `open_many` that reached their host.
    pub forwarded_many: u64,
    /// Packets that an attacker has sent.
    pub forged: u64,
    /// A unit that acknowledges all that is sent to it, says that it has it, and takes none of it.
    pub liar: Option<usize>,
    /// How often it was looked at who owns what.
    pub looks: u64,
    /// ICMP errors and resets that a host on this segment got, and from where.
    pub refusals: Vec<(usize, Addr)>,
    /// By unit and session: when its first packet came.
    pub asked: BTreeMap<(usize, String), Time>,
    /// Hosts are silent.
    pub silent: bool,
    /// Who gets the packets of hosts, which are routers then.
    pub spread: Spread,
    /// By unit: pieces of packets that it got from peers, and when.
    pub passed: Vec<BTreeMap<Vec<u8>, Time>>,
    /// How often hosts have sent something again.
    pub repeated: u64,
    /// The first port of clients: a connection that was given up may live on in the tables.
    pub client_ports: u16,
    /// A hash of all that has happened.
    pub trace: u64,
    pub verbose: bool,
    pub turns: u64,
    pub dual: BTreeMap<(usize, usize, usize), Time>,
    pub reigns: Reigns,
    /// What works and what fails.
    pub condition: Vec<bool>,
    /// When that changed last, or a role.
    pub calm_since: Time,
    /// How often a peer's figures were compared with what it holds.
    pub figures: u64,
    /// Packets that programs in kernels have forwarded.
    pub fast_packets: u64,
    /// By group: when there were two primaries last, whether they heard each other or not.
    pub last_dual: Vec<Option<Time>>,
    /// By group: when a unit has changed its role last.
    pub last_move: Vec<Option<Time>>,
    pub streams: Vec<Stream>,
    pub etcd: Etcd,
    /// Packets that sessions of two slots have, and since when.
    pub clashes: BTreeMap<String, Time>,
    events: BTreeMap<(Time, u64), Event>,
    serial: u64,
    next_tick: Time,
}

/// Between two looks at connections and flows.
const TICK: Duration = Duration::from_millis(5);
/// The shortest time between two turns of a unit.
pub const TURN: Duration = Duration::from_micros(100);

impl World {
    pub fn new(seed: u64, shape: Shape, faults: Faults) -> World {
        let unit = || Unit {
            gateway: None,
            program: None,
            alive: false,
            clock: 0,
            runs_from: Time::ZERO,
            rules: Rules::default(),
            switched: false,
            pump: Pump::new(0),
            wakes_at: Time::ZERO,
            asks_at: None,
            last_turn: Time::ZERO,
            last_wake: Time::ZERO,
            inbox: BTreeMap::new(),
            news: BTreeMap::new(),
            heard: Heard::default(),
            reads_from: Time::ZERO,
            ports: vec![Port::FINE; shape.ports()],
            carrier: vec![true; shape.links],
        };
        let hosts = || (0..HOSTS).map(|_| Host::default()).collect();
        let nothing = vec![vec![false; shape.units]; shape.units];
        let mut world = World {
            now: Time::from_nanos(1_000_000_000),
            shape,
            random: SplitMix64(seed),
            faults,
            units: (0..shape.units).map(|_| unit()).collect(),
            hosts: (0..shape.segments()).map(|_| hosts()).collect(),
            flows: Vec::new(),
            conns: connections(shape.units, shape.links),
            cuts: vec![nothing.clone(); shape.links],
            cut_off: nothing,
            crossed: 0,
            forwarded_many: 0,
            forged: 0,
            liar: None,
            looks: 0,
            refusals: Vec::new(),
            asked: BTreeMap::new(),
            silent: false,
            spread: Spread::Gateway,
            passed: vec![BTreeMap::new(); shape.units],
            repeated: 0,
            client_ports: 40_000,
            trace: 0,
            verbose: std::env::var("TANDEMGW_SEED").is_ok(),
            turns: 0,
            dual: BTreeMap::new(),
            reigns: Reigns::default(),
            condition: Vec::new(),
            calm_since: Time::ZERO,
            figures: 0,
            fast_packets: 0,
            last_dual: vec![None; MAX_GROUPS],
            last_move: vec![None; MAX_GROUPS],
            streams: streams_of(&shape),
            etcd: Etcd::new(shape.units),
            clashes: BTreeMap::new(),
            events: BTreeMap::new(),
            serial: 0,
            next_tick: Time::ZERO,
        };
        (0..shape.units).for_each(|unit| world.start(unit));
        world
    }

    /// Records an event: shown when a seed is replayed, and part of the trace's hash.
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
        let peers = self.shape.peers_of(unit, &machine.rules);
        gateway.set_port_keys(port_keys(unit, peers));
        for (port, state) in machine.ports.iter().enumerate() {
            gateway.handle_link(now, PortId(port as u16), link_state(unit, port, state.up));
        }
        for port in (0..self.shape.ports()).filter(|_| self.shape.multicast) {
            let own = link_local(2, port, unit);
            gateway.handle_kernel_address(now, own, Some(PortId(port as u16)), true);
        }
        for segment in 0..self.shape.segments() {
            let port = self.shape.port_of(segment);
            for family in [Family::V4, Family::V6] {
                gateway.handle_route(RouteChange::Add(route(segment, port, family)));
            }
        }
        gateway.start(now);
        machine.alive = true;
        machine.forget_arrivals();
        machine.pump = Pump::new(self.shape.links);
        for (link, up) in machine.carrier.iter().enumerate() {
            let link = LinkId(link as u8);
            machine.pump.handle_carrier(now, link, *up, &mut gateway);
        }
        machine.program = self.shape.fast.then(|| program_for(&mut gateway));
        machine.gateway = Some(gateway);
        (machine.runs_from, machine.wakes_at) = (self.now, self.now);
        machine.reads_from = self.now;
        machine.last_turn = self.now;
        self.forget_reigns(unit);
    }

    /// A process ends.
    pub fn die(&mut self, unit: usize, death: Death) {
        self.note(|| format!("{} dies: {death:?}", NAMES[unit]));
        self.units[unit].gateway = None;
        self.units[unit].program = None;
        self.units[unit].alive = false;
        self.units[unit].forget_arrivals();
        self.break_connections_of(unit, death);
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
        let has_it = |g: &&Gateway| group < g.config().groups.len();
        let gateway = gateway.filter(has_it);
        gateway.is_some_and(|g| g.role_of(GroupId(group as u8)) == Role::Primary)
    }

    pub fn primaries(&self, group: usize) -> Vec<usize> {
        (0..self.shape.units)
            .filter(|unit| self.is_primary(*unit, group))
            .collect()
    }

    /// The hardware address of `unit` on a segment.
    pub fn macs(&self, unit: usize, segment: usize) -> [u8; 6] {
        unit_mac(unit, self.shape.port_of(segment))
    }

    /// Whether the port of `unit` is on that part of the segment.
    pub fn is_on(&self, unit: usize, segment: usize, part: usize) -> bool {
        let port = self.units[unit].ports[self.shape.port_of(segment)];
        port.up && port.part == part
    }

    /// Whether what is sent on that part of the segment comes to `unit`.
    pub fn hears(&self, unit: usize, segment: usize, part: usize) -> bool {
        self.is_on(unit, segment, part) && !self.units[unit].ports[self.shape.port_of(segment)].deaf
    }

    /// Whether what `unit` sends comes to that part of the segment.
    pub fn speaks(&self, unit: usize, segment: usize, part: usize) -> bool {
        self.is_on(unit, segment, part) && !self.units[unit].ports[self.shape.port_of(segment)].mute
    }

    /// Whether frames go both ways between two units on some port.
    pub fn meet_on_a_port(&self, one: usize, other: usize) -> bool {
        let pairs = self.units[one].ports.iter().zip(&self.units[other].ports);
        let carries = |port: &Port| port.up && !port.deaf && !port.mute;
        let mut pairs = pairs.filter(|(one, other)| carries(one) && carries(other));
        pairs.any(|(one, other)| one.part == other.part)
    }

    pub fn set_port(&mut self, unit: usize, port: usize, up: bool) {
        if self.units[unit].ports[port].up != up {
            self.note(|| format!("{} port {port} up={up}", NAMES[unit]));
            self.units[unit].ports[port].up = up;
            self.arrive_soon(unit, Arrival::Link { port, up });
        }
    }

    /// All links of `unit` lose carrier, or have it again.
    pub fn set_carrier(&mut self, unit: usize, up: bool) {
        self.note(|| format!("{} links have carrier={up}", NAMES[unit]));
        for link in 0..self.shape.links {
            if std::mem::replace(&mut self.units[unit].carrier[link], up) != up {
                self.arrive_soon(unit, Arrival::Carrier { link, up });
            }
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
        if let Arrival::Packet { port, bytes } = &arrival
            && self.kernel_forwards(unit, *port, bytes)
        {
            return;
        }
        self.serial += 1;
        let machine = &mut self.units[unit];
        machine.inbox.insert((when, self.serial), arrival);
        machine.wakes_at = machine.wakes_at.min(when);
    }

    /// Lets a unit hear something of its peers.
    pub fn tell(&mut self, unit: usize, when: Time, news: News) {
        if !self.is_alive(unit) {
            return;
        }
        self.serial += 1;
        let machine = &mut self.units[unit];
        machine.news.insert((when, self.serial), news);
        machine.wakes_at = machine.wakes_at.min(when);
    }

    pub fn tell_soon(&mut self, unit: usize, news: News) {
        let delay = self.random.up_to(self.faults.most_delay);
        self.tell(unit, self.now + delay, news);
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
            self.tend_streams();
            if !self.silent {
                self.tend_flows();
                if self.random.chance(self.faults.attacks) {
                    self.attack();
                }
            }
            self.note_condition();
            self.check_rivals();
            self.check_leases();
            self.check_owners();
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
}

impl Unit {
    fn forget_arrivals(&mut self) {
        self.inbox.clear();
        self.news.clear();
        self.heard = Heard::default();
    }
}
