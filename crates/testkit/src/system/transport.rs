//! Units in one process, each with its own transport, in one mio loop over the loopback interface.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use tandemgw::node_key::NodeKey;
use tandemgw::os::quic::Transport;
use tandemgw_core::config::{Ha, HaLink, HaPeer, PickupGuarantee};
use tandemgw_core::flow::{LinkId, PeerId};
use tandemgw_core::identity::PublicKey;
use tandemgw_core::pump::PeerEvent;

pub const PEER: PeerId = PeerId(0);
pub const LINK: LinkId = LinkId(0);

/// A config with one link on the loopback interface.
pub fn ha(listen: SocketAddr, peers: Vec<HaPeer>) -> Ha {
    Ha {
        asymmetric_flows: false,
        accept_push: Vec::new(),
        group_id: 1,
        priority: 128,
        override_: false,
        override_wait: Duration::ZERO,
        heartbeat_interval: Duration::from_millis(20),
        heartbeat_lost_threshold: 5,
        failover_threshold: 0,
        monitor: Vec::new(),
        session_pickup: true,
        session_pickup_connectionless: true,
        session_pickup_delay: Duration::ZERO,
        multicast_ttl: Duration::from_secs(600),
        pickup_guarantee: PickupGuarantee::Off,
        pickup_guarantee_wait: Duration::from_millis(10),
        pickup_guarantee_copies: 1,
        copies: 0,
        gratuitous_arps: 5,
        gratuitous_arp_interval: Duration::from_secs(1),
        links: vec![HaLink {
            interface: "lo".into(),
            listen,
        }],
        witness: None,
        peers,
    }
}

pub fn peer(name: &str, address: SocketAddr, key: PublicKey) -> HaPeer {
    HaPeer {
        name: name.into(),
        addresses: vec![address],
        public_key: key.0,
    }
}

/// An address of the loopback interface whose port is free, for UDP and TCP. It is below those that
/// the kernel gives to anybody, who would otherwise get it before it is used.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Tests in other processes begin elsewhere.
        let port = 10_000 + (std::process::id() as u16 % 200 * 100 + number) % 20_000;
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        if UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok() {
            return at;
        }
    }
}

pub struct Unit {
    pub transport: Transport,
    /// All events that were not consumed yet.
    pub events: Vec<PeerEvent>,
}

#[derive(Default)]
pub struct Net {
    poll: Option<Poll>,
    /// `None` while a unit is dead.
    pub units: Vec<Option<Unit>>,
    ready: BTreeSet<usize>,
    /// How long each turn of a unit took.
    pub calls: Vec<Duration>,
}

impl Net {
    /// Two units, with these names, that know each other.
    pub fn pair(first: &str, second: &str) -> Net {
        Pair::new(first, second).start()
    }

    pub fn start(&mut self, index: usize, ha: &Ha, name: &str, key: &NodeKey) {
        let poll = self.poll.get_or_insert_with(|| Poll::new().unwrap());
        let mut transport = Transport::new(ha, name, key, index as u64).unwrap();
        transport
            .register(poll.registry(), |_| Token(index))
            .unwrap();
        self.units[index] = Some(Unit {
            transport,
            events: Vec::new(),
        });
    }

    pub fn unit(&mut self, index: usize) -> &mut Transport {
        &mut self.units[index].as_mut().unwrap().transport
    }

    /// One turn of the loop for all units.
    pub fn turn(&mut self) {
        let now = Instant::now();
        let units = self.units.iter_mut().flatten();
        let next = units
            .filter_map(|unit| unit.transport.next_timeout())
            .min()
            .unwrap_or(now);
        let wait = match self.ready.is_empty() {
            true => next.saturating_duration_since(now),
            false => Duration::ZERO,
        };
        let mut events = Events::with_capacity(64);
        let poll = self.poll.as_mut().unwrap();
        poll.poll(&mut events, Some(wait.min(Duration::from_millis(1))))
            .unwrap();
        self.ready
            .extend(events.iter().map(|event| event.token().0));
        for (index, unit) in self.units.iter_mut().enumerate() {
            let Some(unit) = unit else {
                self.ready.remove(&index);
                continue;
            };
            let start = Instant::now();
            if self.ready.contains(&index) && !unit.transport.readable(LINK, start) {
                self.ready.remove(&index);
            }
            unit.transport.poll(start);
            self.calls.push(start.elapsed());
            while let Some(event) = unit.transport.poll_event() {
                unit.events.push(event);
            }
        }
    }

    /// Runs until `done` returns true; false after `limit`.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Net) -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < limit {
            self.turn();
            if done(self) {
                return true;
            }
        }
        false
    }

    /// Runs for `time`.
    pub fn pass(&mut self, time: Duration) {
        self.run(time, |_| false);
    }

    /// Runs until both connections between the first two units are up at both ends.
    #[track_caller]
    pub fn run_until_up(&mut self, limit: Duration) -> Duration {
        let start = Instant::now();
        let up = self.run(limit, |net| net.all_up());
        assert!(up, "not up after {limit:?}");
        start.elapsed()
    }

    pub fn all_up(&mut self) -> bool {
        self.units.iter_mut().flatten().all(|unit| {
            unit.transport.is_heartbeat_up(PEER, LINK) && unit.transport.is_sync_up(PEER, LINK)
        })
    }

    /// Takes the events of a unit for which `wanted` holds.
    pub fn take(&mut self, index: usize, wanted: impl Fn(&PeerEvent) -> bool) -> Vec<PeerEvent> {
        let events = &mut self.units[index].as_mut().unwrap().events;
        events.extract_if(.., |event| wanted(event)).collect()
    }
}

/// The settings of two units, so that one can be restarted.
pub struct Pair {
    pub names: [String; 2],
    pub keys: [NodeKey; 2],
    pub listen: [SocketAddr; 2],
    /// Where each unit expects the other one.
    pub remote: [SocketAddr; 2],
    /// The key that each unit expects of the other one.
    pub pinned: [PublicKey; 2],
}

impl Pair {
    pub fn new(first: &str, second: &str) -> Pair {
        let keys = [NodeKey::from_seed([1; 32]), NodeKey::from_seed([2; 32])];
        let listen = [free_address(), free_address()];
        Pair {
            names: [first.into(), second.into()],
            pinned: [keys[1].public(), keys[0].public()],
            keys,
            remote: [listen[1], listen[0]],
            listen,
        }
    }

    pub fn start(&self) -> Net {
        let mut net = Net::default();
        for index in [0, 1] {
            net.units.push(None);
            self.start_one(&mut net, index);
        }
        net
    }

    pub fn start_one(&self, net: &mut Net, index: usize) {
        let other = peer(
            &self.names[1 - index],
            self.remote[index],
            self.pinned[index],
        );
        let ha = ha(self.listen[index], vec![other]);
        net.start(index, &ha, &self.names[index], &self.keys[index]);
    }
}
