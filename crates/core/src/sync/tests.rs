//! Units that replicate to each other over pipes in memory.

use std::collections::{BTreeMap, VecDeque, btree_map};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::evidence::Heard;
use crate::flow::{Addr, Direction, FlowKey, PolicyId, PortId, Protocol};
use crate::policy::Ruleset;
use crate::random::SplitMix64;
use crate::session::{Session, SessionFlags, SessionId, Table, Timeouts, Tracker, tcp};
use crate::store::{Keys, SessionPhase};
use tcp::TcpState;

const G: GroupId = GroupId(0);
const NAMES: [&str; 3] = ["gw-a", "gw-b", "gw-c"];

fn config(units: usize, me: usize, extra: &str) -> Config {
    let ports = if me == 1 {
        ["wan", "lan"]
    } else {
        ["lan", "wan"]
    };
    let mut text = format!(
        "[node]\nname = \"{}\"\nkey = \"k\"\nmax-sessions = 1024\n",
        NAMES[me]
    );
    for port in ports {
        let net = if port == "lan" { "10.0.0" } else { "192.0.2" };
        text += &format!(
            "[[port]]\nname = \"{port}\"\ninterface = \"{port}0\"\nvirtual-addresses = [\"{net}.1/24\"]\n"
        );
    }
    text += "[[policy]]\nname = \"out\"\naction = \"accept\"\nnat = true\n";
    text += &format!(
        "[ha]\ngroup-id = 7\n{extra}\n[[ha.link]]\ninterface = \"s0\"\nlisten = \"10.9.0.{me}:7\"\n"
    );
    for peer in (0..units).filter(|peer| *peer != me) {
        let key = ["AA", "BB", "CC"][peer].repeat(21) + "A=";
        text += &format!(
            "[[ha.peer]]\nname = \"{}\"\naddresses = [\"10.9.0.{peer}:7\"]\npublic-key = \"{key}\"\n",
            NAMES[peer]
        );
    }
    let text = text.replace("10.9.0.", "10.9.0.1");
    match crate::config::parse(Path::new("test.toml"), &text) {
        Ok((config, _)) => config,
        Err(found) => panic!(
            "{}",
            crate::config::render(
                &found,
                &crate::config::Sources::new(Path::new("test.toml"), &text),
                false
            )
        ),
    }
}

struct Unit {
    store: SessionStore,
    sync: Replicator,
    events: Vec<SyncEvent>,
}

impl Unit {
    fn new(units: usize, me: usize, epoch: u64, extra: &str) -> Unit {
        let config = config(units, me, extra);
        let keys = Keys {
            nat: [3; 16],
            table: [5; 16],
        };
        let ruleset = Ruleset::new(&config);
        Unit {
            store: SessionStore::new(&config, &keys),
            sync: Replicator::new(&config, epoch, &ruleset).expect("it has [ha]"),
            events: Vec::new(),
        }
    }

    fn open(&mut self, key: FlowKey, nat: (Addr, u16), now: Time) -> Option<SessionId> {
        self.open_in(G, key, nat, now)
    }

    fn open_in(
        &mut self,
        group: GroupId,
        key: FlowKey,
        nat: (Addr, u16),
        now: Time,
    ) -> Option<SessionId> {
        let mut session = Session::new(&key, now.tick());
        session.group = group;
        session.nat_src = self.store.intern(nat.0)?;
        session.nat_src_port = nat.1;
        // The ports of unit b are in another order, but tests open with those of unit a.
        (session.in_port, session.out_port) = (PortId(0), PortId(1));
        if key.protocol == Protocol::TCP {
            let state = TcpState::SynSent;
            session.tracker = Tracker::Tcp(tcp::Tracker::restore(
                state, 0xff, 0, [1; 2], [2; 2], [100; 2],
            ));
        }
        self.store.insert(session, now).ok()
    }

    /// Moves a session to `state`, or marks it replied.
    fn advance(&mut self, id: SessionId, state: TcpState) {
        let edited = self
            .store
            .edit(id, |session, _| match &mut session.tracker {
                Tracker::Tcp(tracker) => tracker.state = state,
                _ => session.flags.set(SessionFlags::REPLIED),
            });
        edited.expect("it exists");
    }

    fn close(&mut self, id: SessionId) {
        self.store.end(id).expect("it exists");
    }

    fn set_sending(&mut self, group: GroupId, term: Option<u64>) {
        self.sync.set_sending(group, term, self.store.journal_mut());
    }

    fn is_synced(&self, id: SessionId) -> bool {
        self.sync.is_synced(self.store.journal(), id, G)
    }

    fn connect(&mut self, peer: PeerId) {
        self.sync.peer_connected(peer, self.store.journal_mut());
    }

    fn disconnect(&mut self, peer: PeerId, now: Time) {
        self.sync
            .peer_disconnected(peer, self.store.journal_mut(), now);
    }

    fn ids(&self) -> Vec<SessionId> {
        self.store.table().iter().map(|(id, _)| id).collect()
    }

    /// All that peers must agree on, by key.
    fn view(&self) -> BTreeMap<String, String> {
        let describe = |session: &Session| {
            let original = session.key(Direction::Original, self.store.book());
            let outgoing = session.translated(Direction::Original, self.store.book());
            (
                original.to_string(),
                format!(
                    "{outgoing} {:?} {:?}",
                    session.group,
                    SessionPhase::of(session)
                ),
            )
        };
        self.store
            .table()
            .iter()
            .map(|(_, session)| describe(session))
            .collect()
    }

    fn check(&self) {
        self.store.check_invariants();
        self.sync.check_invariants(self.store.journal());
    }
}

/// Some units and the streams between them.
struct World {
    units: Vec<Unit>,
    /// By sender and receiver.
    pipes: BTreeMap<(usize, usize), VecDeque<u8>>,
    random: SplitMix64,
    now: Time,
    epoch: u64,
}

fn heard(process: u64) -> Heard {
    Heard {
        by_link: Some(process),
        at_all: Some(process),
    }
}

fn peer(of: usize, other: usize) -> PeerId {
    PeerId((other - usize::from(other > of)) as u8)
}

impl World {
    fn new(units: usize, seed: u64) -> World {
        World::with(units, seed, "")
    }

    /// Units whose configs also have the lines `extra`, from `[ha]` on.
    fn with(units: usize, seed: u64, extra: &str) -> World {
        let mut world = World {
            units: (0..units)
                .map(|me| Unit::new(units, me, me as u64 + 1, extra))
                .collect(),
            pipes: BTreeMap::new(),
            random: SplitMix64(seed | 1),
            now: Time::from_nanos(100_000_000_000),
            epoch: 100,
        };
        for a in 0..units {
            (0..a).for_each(|b| world.connect(a, b));
        }
        world
    }

    fn connect(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            if let btree_map::Entry::Vacant(pipe) = self.pipes.entry((from, to)) {
                pipe.insert(VecDeque::new());
                let process = self.units[to].sync.epoch;
                let unit = &mut self.units[from];
                unit.sync.set_heard(peer(from, to), heard(process));
                unit.connect(peer(from, to));
            }
        }
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            if self.pipes.remove(&(from, to)).is_some() {
                self.units[from].disconnect(peer(from, to), self.now);
            }
        }
    }

    fn restart(&mut self, unit: usize) {
        let count = self.units.len();
        (0..count)
            .filter(|other| *other != unit)
            .for_each(|other| self.disconnect(unit, other));
        self.epoch += 1;
        self.units[unit] = Unit::new(count, unit, self.epoch, "");
        (0..count)
            .filter(|other| *other != unit)
            .for_each(|other| self.connect(unit, other));
    }

    fn transmit(&mut self, from: usize, to: usize, budget: usize) -> bool {
        let Some(pipe) = self.pipes.get_mut(&(from, to)) else {
            return false;
        };
        let Unit { store, sync, .. } = &mut self.units[from];
        let mut out = Vec::new();
        let more = sync.poll_transmit(peer(from, to), &mut out, budget, store, self.now);
        pipe.extend(&out);
        more || !out.is_empty()
    }

    fn deliver(&mut self, from: usize, to: usize, most: usize) -> bool {
        let Some(pipe) = self.pipes.get_mut(&(from, to)) else {
            return false;
        };
        let bytes: Vec<u8> = pipe.iter().take(most).copied().collect();
        let Unit {
            store,
            sync,
            events,
        } = &mut self.units[to];
        let mut context = Context {
            store,
            now: self.now,
        };
        let done = sync
            .receive(peer(to, from), &bytes, &mut context)
            .expect("an honest peer");
        pipe.drain(..done.taken);
        events.extend(std::iter::from_fn(|| sync.poll_event()));
        done.taken > 0 || done.more
    }

    /// Lets a part of what is under way arrive.
    fn churn(&mut self) {
        let links: Vec<_> = self.pipes.keys().copied().collect();
        for (from, to) in links {
            let (budget, most) = (self.random.below(3000), self.random.below(3000));
            self.transmit(from, to, budget);
            self.deliver(from, to, most);
        }
    }

    /// Lets time pass until everything has arrived and was compared.
    fn calm(&mut self, seconds: u64) {
        for _ in 0..=seconds {
            loop {
                let mut busy = false;
                for (from, to) in self.pipes.keys().copied().collect::<Vec<_>>() {
                    busy |= self.transmit(from, to, 100_000);
                    busy |= self.deliver(from, to, 200_000);
                }
                if !busy {
                    break;
                }
            }
            self.now = self.now + Duration::from_secs(1);
            for Unit { store, sync, .. } in &mut self.units {
                sync.handle_timeout(self.now, store);
            }
        }
    }

    fn open(&mut self, unit: usize) {
        let (host, port, n) = (
            self.random.below(20) as u8,
            self.random.below(4),
            self.random.below(60),
        );
        let protocol = if self.random.below(3) == 0 {
            Protocol::UDP
        } else {
            Protocol::TCP
        };
        let nat = (Addr::v4([192, 0, 2, 1]), 2000 + n as u16);
        self.units[unit].open(key(protocol, host, 1000 + port as u16), nat, self.now);
    }

    /// Something happens at the primary.
    fn act(&mut self, unit: usize) {
        let ids = self.units[unit].ids();
        let pick = self.random.below(ids.len());
        match (self.random.below(6), ids.get(pick)) {
            (0..3, _) | (_, None) => self.open(unit),
            (3, Some(id)) => self.units[unit].close(*id),
            // Also backwards: a connection that begins again.
            (_, Some(id)) => {
                let state = TcpState::ALL[self.random.below(7)];
                self.units[unit].advance(*id, state);
            }
        }
    }

    /// The state of the connection that `host` opened from the port of its own number.
    fn state_of(&self, unit: usize, host: u8) -> Option<TcpState> {
        let store = &self.units[unit].store;
        let (id, _) = store.lookup(&key(Protocol::TCP, host, host.into()))?;
        match &store.get(id)?.tracker {
            Tracker::Tcp(tracker) => Some(tracker.state()),
            _ => None,
        }
    }

    fn assert_equal(&self) {
        for unit in &self.units {
            unit.check();
            assert_eq!(unit.view(), self.units[0].view());
        }
    }
}

fn key(protocol: Protocol, host: u8, port: u16) -> FlowKey {
    FlowKey {
        src: Addr::v4([10, 0, 0, host]),
        dst: Addr::v4([198, 51, 100, 1]),
        src_port: port,
        dst_port: 443,
        protocol,
    }
}

const NAT: (Addr, u16) = (Addr::v4([192, 0, 2, 1]), 5000);

fn pair() -> World {
    let mut world = World::new(2, 1);
    world.units[0].set_sending(G, Some(1));
    world
}

/// A pair in sync whose standby has room for one session.
fn pair_with_small_table() -> World {
    let mut world = pair();
    world.calm(3);
    let config = config(2, 1, "");
    let small = Table::new(1, &[5; 16], Timeouts::from(&config.timeouts), 0);
    world.units[1].store.set_table(small);
    world
}

/// Opens a session at the primary that no other number has.
fn open_numbered(world: &mut World, n: u16) -> SessionId {
    let now = world.now;
    let id = world.units[0].open(key(Protocol::TCP, n as u8, n), (NAT.0, 1000 + n), now);
    id.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to streams and units, in the end all units have the same sessions.
    #[test]
    fn units_converge(seed in any::<u64>(), units in 2..=3_usize) {
        let mut world = World::new(units, seed);
        let mut primary = 0;
        let mut term = 1;
        world.units[0].set_sending(G, Some(term));
        for _ in 0..300 {
            let (a, b) = (world.random.below(units), world.random.below(units));
            let (a, b) = (a, b);
            match world.random.below(40) {
                0 if a != b => world.disconnect(a, b),
                1 if a != b => world.connect(a, b),
                2 if a != primary => world.restart(a),
                // A takeover without goodbye.
                3 => {
                    term += 1;
                    world.units[primary].set_sending(G, None);
                    world.units[a].set_sending(G, Some(term));
                    primary = a;
                }
                4 => world.now = world.now + Duration::from_secs(world.random.below(90) as u64),
                5..25 => world.act(primary),
                _ => world.churn(),
            }
            for Unit { store, sync, .. } in &mut world.units {
                sync.handle_timeout(world.now, store);
            }
        }
        for a in 0..units {
            (0..a).for_each(|b| world.connect(a, b));
        }
        world.calm(20);
        world.assert_equal();
        for other in (0..units).filter(|other| *other != primary) {
            let sync = &world.units[primary].sync;
            let id = peer(primary, other);
            prop_assert!(sync.in_sync(id) && sync.digest_equal(id, G));
            prop_assert_eq!(sync.lag(id, &world.units[primary].store, world.now), Lag::default());
            prop_assert!(world.units[other].sync.is_ready(G));
        }
        prop_assert_eq!(world.units[primary].store.journal().log().tombstones(), 0);
        let synced = |id| world.units[primary].is_synced(id);
        prop_assert!(world.units[primary].ids().into_iter().all(synced));
    }

    /// An authenticated peer gone mad.
    #[test]
    fn nothing_that_a_peer_sends_does_harm(
        seed in any::<u64>(),
        rounds in 1..30_usize,
    ) {
        let mut world = pair();
        (0..30).for_each(|_| world.open(0));
        world.calm(2);
        let mut good = Vec::new();
        for _ in 0..rounds {
            // The stream of unit a, to be played back to it, with damage.
            world.transmit(0, 1, 5000);
            good.extend(world.pipes[&(0, 1)].iter());
            world.act(0);
            world.deliver(0, 1, 5000);
        }
        let before = world.units[0].view();
        let damages = world.random.below(4);
        for _ in 0..damages {
            let at = world.random.below(good.len());
            if let Some(byte) = good.get_mut(at) {
                *byte = seed as u8;
            }
        }
        if damages == 3 {
            // It says that it is primary, too: its sessions come in.
            let mut claim = Vec::new();
            codec::encode(&mut claim, &message::Message::Claim { group: 0, term: seed, basis: Default::default() });
            good.splice(0..0, claim);
        }
        let Unit { store, sync, .. } = &mut world.units[0];
        let mut context = Context { store, now: world.now };
        let mut rest = &good[..];
        loop {
            match sync.receive(PeerId(0), rest, &mut context) {
                Ok(Received { taken: 0, more: false }) | Err(_) => break,
                Ok(done) => rest = &rest[done.taken..],
            }
            while sync.poll_event().is_some() {}
        }
        world.units[0].check();
        // Unit a is the primary, and unit b has claimed nothing higher.
        if damages == 0 {
            prop_assert_eq!(world.units[0].view(), before);
        }
    }
}

#[test]
fn a_session_arrives_and_its_port_is_reserved() {
    let mut world = pair();
    let id = world.units[0]
        .open(key(Protocol::UDP, 1, 1), NAT, world.now)
        .unwrap();
    assert!(!world.units[0].is_synced(id));
    world.calm(1);
    assert!(world.units[0].is_synced(id));
    world.assert_equal();
    let b = &world.units[1];
    assert_eq!(b.store.nat().mappings(), 1);
    // Ports are translated by name: b has them in another order.
    let (_, session) = b.store.table().iter().next().unwrap();
    assert_eq!((session.in_port, session.out_port), (PortId(1), PortId(0)));
    assert_eq!(session.policy, PolicyId(0));
    assert!(b.events.contains(&SyncEvent::Ready(PeerId(0), G)));
    assert!(
        world.units[0]
            .events
            .contains(&SyncEvent::PeerReady(PeerId(0), G))
    );
}

/// What one peer was sent goes to the other one as it is, although the session has counted a packet
/// meanwhile; not if that one is told of something else, or has refused something.
#[test]
fn a_record_is_encoded_once() {
    let mut world = World::new(3, 1);
    world.units[0].set_sending(G, Some(1));
    world.calm(3);
    for (n, refuses) in [(1, false), (2, true)] {
        let id = open_numbered(&mut world, n);
        let (unit, now) = (&mut world.units[0], world.now);
        if refuses {
            let refused = unit.store.journal_mut().refused_mut(1).unwrap();
            refused.add(SessionId(900), G);
        }
        let written = [0, 1].map(|peer| {
            let (mut out, store) = (Vec::new(), &mut unit.store);
            unit.sync
                .poll_transmit(PeerId(peer), &mut out, 10_000, store, now);
            let counted = store.edit(id, |session, _| {
                session.record(Direction::Original, 60, now.tick());
            });
            counted.expect("it exists");
            out
        });
        assert!(written[0].len() > 40, "{} bytes", written[0].len());
        assert_eq!(written[0] == written[1], !refuses);
        assert_eq!(unit.sync.traffic(PeerId(0)), unit.sync.traffic(PeerId(1)));
        for (to, bytes) in (1..).zip(&written) {
            world.pipes.get_mut(&(0, to)).unwrap().extend(bytes);
        }
        world.units[0]
            .store
            .journal_mut()
            .refused_mut(1)
            .unwrap()
            .remove(SessionId(900), G);
        world.calm(2);
        assert!(world.units[0].is_synced(id));
        world.assert_equal();
    }
}

#[test]
fn a_corrupted_standby_is_found_and_only_its_bucket_resent() {
    let mut world = pair();
    for n in 0..600 {
        let nat = (NAT.0, 2000 + n);
        world.units[0].open(
            key(Protocol::TCP, (n % 200) as u8, 1000 + n / 200),
            nat,
            world.now,
        );
    }
    world.calm(3);
    world.assert_equal();
    let damage: [fn(&mut Unit); 3] = [
        // Altered, behind everybody's back.
        |unit| {
            let id = unit.ids()[7];
            unit.advance(id, TcpState::Closed);
        },
        |unit| unit.close(unit.ids()[8]),
        |unit| {
            let nat = (NAT.0, 1);
            unit.open(key(Protocol::TCP, 250, 1), nat, Time::ZERO)
                .unwrap();
        },
    ];
    for damage in damage {
        damage(&mut world.units[1]);
        assert_ne!(world.units[0].view(), world.units[1].view());
        let before = world.units[0].sync.counters().sent;
        world.units[0].events.clear();
        world.calm(3);
        world.assert_equal();
        let resent = world.units[0].sync.counters().sent - before;
        assert!(resent <= 12, "{resent} sessions for one bucket of 256");
        let found = SyncEvent::DigestDiffers {
            peer: PeerId(0),
            group: G,
            buckets: 1,
        };
        assert!(world.units[0].events.contains(&found));
        assert!(world.units[0].sync.digest_equal(PeerId(0), G));
    }
}

#[test]
fn a_lost_connection_is_resumed() {
    let mut world = pair();
    (0..50).for_each(|_| world.open(0));
    world.calm(2);
    let before = world.units[0].sync.counters().sent;
    for _ in 0..3 {
        let id = world.units[0].ids()[0];
        world.units[0].close(id);
    }
    world.units[0].open(key(Protocol::TCP, 99, 9), NAT, world.now);
    // This is lost on the way.
    world.transmit(0, 1, 100_000);
    world.disconnect(0, 1);
    world.units[0].open(key(Protocol::TCP, 99, 10), (NAT.0, 6000), world.now);
    world.connect(0, 1);
    world.calm(1);
    world.assert_equal();
    assert_eq!(world.units[0].sync.counters().sent - before, 3);
    assert_eq!(world.units[1].sync.counters().swept, 0);
    assert!(world.units[0].events.contains(&SyncEvent::PeerKnown {
        peer: PeerId(0),
        resumed: true
    }));
}

#[test]
fn a_handover_comes_after_everything_before_it() {
    let mut world = pair();
    (0..40).for_each(|_| world.open(0));
    world.calm(1);
    (0..40).for_each(|_| world.open(0));
    world.units[0].sync.send_handover(PeerId(0), G, 2);
    let handed = SyncEvent::HandoverReceived {
        peer: PeerId(0),
        group: G,
        term: 2,
    };
    while !world.units[1].events.contains(&handed) {
        world.transmit(0, 1, 300);
        world.deliver(0, 1, 100);
    }
    assert_eq!(world.units[0].view(), world.units[1].view());
    world.units[1].set_sending(G, Some(2));
    // Opened by the old primary before it has seen the new one: still arrives.
    world.units[0]
        .open(key(Protocol::TCP, 77, 7), (NAT.0, 777), world.now)
        .unwrap();
    world.transmit(0, 1, 10_000);
    world.units[0].set_sending(G, None);
    world.calm(2);
    assert!(
        world.units[1]
            .view()
            .contains_key(&key(Protocol::TCP, 77, 7).to_string())
    );
    world.assert_equal();
    assert!(world.units[0].sync.is_ready(G));
    assert!(world.units[1].sync.digest_equal(PeerId(0), G));
}

/// Two units have opened sessions with the same answers, in slots of one group: all keep that of
/// the lower slot. Groups that are not slots keep their own.
#[test]
fn of_two_slots_with_the_same_packets_the_lower_keeps_its_session() {
    let cut = "[[group]]\nname = \"all\"\nports = [\"lan\", \"wan\"]\ndistribute = 2\n";
    let apart = "[[group]]\nname = \"in\"\nports = [\"lan\"]\n\
                 [[group]]\nname = \"out\"\nports = [\"wan\"]\n";
    for (extra, first, left) in [(cut, 1, [1, 1]), (apart, 0, [0, 1])] {
        let mut world = World::with(2, 1, extra);
        let groups = [GroupId(first), GroupId(first + 1)];
        for (unit, group) in groups.into_iter().enumerate() {
            world.units[unit].set_sending(group, Some(1));
        }
        world.calm(3);
        let now = world.now;
        for (unit, group) in groups.into_iter().enumerate() {
            let n = unit as u8 + 1;
            let key = key(Protocol::TCP, n, n.into());
            let opened = world.units[unit].open_in(group, key, (NAT.0, 6000), now);
            opened.expect("there is room");
        }
        world.calm(3);
        for (unit, group) in left.into_iter().enumerate() {
            let unit = &world.units[unit];
            let kept: Vec<GroupId> = unit
                .ids()
                .into_iter()
                .map(|id| unit.store.get(id).unwrap().group)
                .collect();
            assert_eq!(kept, [GroupId(group)], "{extra}");
        }
    }
}

/// Two units that know a group of two slots, of which the first is primary.
fn two_slots() -> (World, [GroupId; 2]) {
    let cut = "[[group]]\nname = \"all\"\nports = [\"lan\", \"wan\"]\ndistribute = 2\n";
    let (mut world, slots) = (World::with(2, 1, cut), [GroupId(1), GroupId(2)]);
    for slot in slots {
        world.units[0].set_sending(slot, Some(1));
    }
    world.calm(3);
    (world, slots)
}

/// The same with a session of the upper slot, which both units have.
fn session_in_upper_slot() -> (World, [GroupId; 2], SessionId) {
    let (mut world, slots) = two_slots();
    let (session, now) = (key(Protocol::TCP, 1, 1), world.now);
    let id = world.units[0].open_in(slots[1], session, (NAT.0, 6000), now);
    world.calm(3);
    assert_eq!(world.units[1].ids().len(), 1);
    (world, slots, id.expect("there is room"))
}

/// The primary of two slots moves a session from one to the other, and its copy moves, too. If it
/// lived by the lease of its slot, it does not end earlier.
#[test]
fn a_session_moves_to_another_slot_with_its_copy() {
    let (mut world, slots) = two_slots();
    for (n, protocol) in [(1, Protocol::TCP), (2, Protocol::UDP)] {
        let nat = (NAT.0, 6000 + u16::from(n));
        let (key, now) = (key(protocol, n, n.into()), world.now);
        let id = world.units[0].open_in(slots[0], key, nat, now).unwrap();
        world.calm(3);
        let now = world.now.tick();
        let store = &mut world.units[0].store;
        if protocol == Protocol::UDP {
            store.renew(slots[0], now);
        }
        let before = store.get(id).unwrap().last_seen;
        store.move_to_group(id, slots[1], now);
        let moved = store.get(id).unwrap();
        let is_leased = protocol == Protocol::UDP;
        assert_eq!(moved.last_seen, if is_leased { now } else { before });
        assert_eq!(moved.flags.contains(SessionFlags::REMOTE), is_leased);
        world.calm(3);
        assert_eq!(world.units[0].view(), world.units[1].view());
        for unit in &world.units {
            unit.check();
            let counts = slots.map(|slot| unit.store.count(slot));
            assert_eq!(counts, [0, u32::from(n)]);
            assert_eq!(unit.sync.counters.conflicts_lost, 0);
        }
        let sync = &world.units[0].sync;
        assert!(
            slots
                .iter()
                .all(|slot| sync.digest_equal(peer(0, 1), *slot))
        );
    }
}

/// A session moves to another slot and ends there before a peer has read of the move: its copy
/// ends.
#[test]
fn a_session_that_ends_after_its_move_leaves_no_copy() {
    let (mut world, slots, id) = session_in_upper_slot();
    let now = world.now.tick();
    let store = &mut world.units[0].store;
    store.move_to_group(id, slots[0], now);
    store.end(id);
    world.transmit(0, 1, 100_000);
    world.deliver(0, 1, 200_000);
    assert_eq!(world.units[1].ids(), [], "before any comparison");
}

/// Two units were primary of the same slots, and one has moved a session meanwhile: both come to
/// have it in the lower slot, whichever of them stays primary of which.
#[test]
fn a_session_that_one_of_two_primaries_has_moved_stays() {
    for keeps in [[0, 0], [0, 1], [1, 0], [1, 1]] {
        let (mut world, slots, id) = session_in_upper_slot();
        for slot in slots {
            world.units[1].set_sending(slot, Some(2));
        }
        let tick = world.now.tick();
        world.units[0].store.move_to_group(id, slots[0], tick);
        world.calm(2);
        for (slot, winner) in slots.into_iter().zip(keeps) {
            let loser: usize = 1 - winner;
            world.units[loser].set_sending(slot, None);
            world.units[winner].set_sending(slot, Some(3));
        }
        world.calm(4);
        for unit in &world.units {
            unit.check();
            let counts = slots.map(|slot| unit.store.count(slot));
            assert_eq!(counts, [1, 0], "{keeps:?}");
        }
    }
}

/// Both are primary: states only go forward, and where sessions exclude each other, each unit keeps
/// its own until one of the units steps down, whatever their terms.
#[test]
fn two_primaries_merge_what_can_be_merged() {
    let mut world = pair();
    let first = world.units[0]
        .open(key(Protocol::TCP, 1, 1), NAT, world.now)
        .unwrap();
    world.calm(2);
    world.units[1].set_sending(G, Some(1));
    world.calm(1);
    // The same session is farther on b; a must not pull it back, but learn of it.
    let id = world.units[1].ids()[0];
    world.units[1].advance(id, TcpState::FinWait);
    world.units[0].advance(first, TcpState::Established);
    // Different sessions with the same answers.
    let nat = (NAT.0, 6000);
    world.units[0]
        .open(key(Protocol::TCP, 2, 2), nat, world.now)
        .unwrap();
    world.units[1]
        .open(key(Protocol::TCP, 3, 3), nat, world.now)
        .unwrap();
    world.calm(1);
    assert_eq!(world.state_of(0, 1), Some(TcpState::FinWait));
    assert_eq!(world.state_of(1, 1), Some(TcpState::FinWait));
    assert!(
        world.state_of(0, 2).is_some() && world.state_of(1, 3).is_some(),
        "equal terms: each keeps its own"
    );
    world.units[1].set_sending(G, Some(2));
    world.calm(1);
    let id = world.units[1].ids()[1];
    world.units[1].advance(id, TcpState::SynReceived);
    world.calm(1);
    assert!(world.state_of(0, 2).is_some() && world.state_of(0, 3).is_none());
    world.units[0].set_sending(G, None);
    world.calm(3);
    assert!(world.state_of(0, 2).is_none() && world.state_of(0, 3).is_some());
    assert_eq!(world.units[0].sync.counters().conflicts_lost, 1);
    world.assert_equal();
}

/// A client opens a connection again from the ports of one that has closed, while another unit is
/// primary too, for which the old one still closes: nobody takes the new one for the old.
#[test]
fn a_connection_that_opens_again_is_not_the_one_before() {
    let mut world = pair();
    let id = open_numbered(&mut world, 1);
    world.units[0].advance(id, TcpState::TimeWait);
    world.calm(2);
    world.units[0].set_sending(G, Some(3));
    world.units[1].set_sending(G, Some(2));
    world.calm(1);
    world.units[0].advance(id, TcpState::SynSent);
    world.calm(2);
    for unit in [0, 1] {
        assert_eq!(world.state_of(unit, 1), Some(TcpState::SynSent), "{unit}");
    }
}

/// A unit that was cut off has the higher term and has ended what it saw no packets of; it is about
/// to yield to the one that carried the sessions.
#[test]
fn a_rival_ends_nothing_that_lives_here() {
    let mut world = pair();
    let ids = [1, 2].map(|n| open_numbered(&mut world, n));
    world.units[0].advance(ids[0], TcpState::Established);
    world.calm(2);
    world.units[1].set_sending(G, Some(2));
    for id in world.units[1].ids() {
        world.units[1].close(id);
    }
    // With an answer that one of these has.
    let other = key(Protocol::TCP, 3, 3);
    world.units[1]
        .open(other, (NAT.0, 1001), world.now)
        .unwrap();
    world.calm(2);
    assert!(world.state_of(0, 1).is_some() && world.state_of(0, 2).is_some());
    world.units[1].set_sending(G, None);
    world.units[0].set_sending(G, Some(3));
    world.calm(3);
    assert_eq!(world.state_of(1, 1), Some(TcpState::Established));
    assert!(world.state_of(1, 2).is_some() && world.state_of(1, 3).is_none());
    world.assert_equal();
}

#[test]
fn a_lower_term_has_no_say() {
    let mut world = pair();
    world.units[0]
        .open(key(Protocol::TCP, 1, 1), NAT, world.now)
        .unwrap();
    world.calm(1);
    world.units[0].set_sending(G, Some(5));
    world.units[1].set_sending(G, Some(4));
    world.units[1]
        .open(key(Protocol::TCP, 2, 2), (NAT.0, 2), world.now)
        .unwrap();
    let id = world.units[1].ids()[0];
    world.units[1].close(id);
    world.calm(1);
    assert_eq!(world.units[0].view().len(), 1);
    let counters = world.units[0].sync.counters();
    assert_eq!((counters.installed, counters.removed), (0, 0));
    assert!(counters.refused_not_primary >= 2);
}

/// A standby that hears two primaries goes by the one with the higher term.
#[test]
fn the_higher_of_two_primaries_has_the_say() {
    let mut world = World::new(3, 1);
    world.disconnect(0, 1);
    world.units[0].set_sending(G, Some(4));
    world.units[1].set_sending(G, Some(5));
    for unit in [0, 1] {
        let (host, port) = (unit as u8 + 1, unit as u16 + 1);
        let key = key(Protocol::TCP, host, port);
        world.units[unit]
            .open(key, (NAT.0, port), world.now)
            .unwrap();
    }
    world.calm(1);
    let held = world.units[2].view();
    assert_eq!(held, world.units[1].view());
    assert!(world.units[2].sync.counters().refused_not_primary >= 1);
}

/// Who is primary of one group ends no session of another.
#[test]
fn a_removal_counts_for_its_group_only() {
    let groups = "[[group]]\nname = \"lan\"\nports = [\"lan\"]\n\
                  [[group]]\nname = \"wan\"\nports = [\"wan\"]\n";
    let mut world = World::new(2, 1);
    world.disconnect(0, 1);
    for (me, unit) in world.units.iter_mut().enumerate() {
        *unit = Unit::new(2, me, me as u64 + 1, groups);
    }
    world.connect(0, 1);
    world.units[0].set_sending(G, Some(1));
    world.units[1].set_sending(GroupId(1), Some(1));
    let session = key(Protocol::TCP, 1, 1);
    world.units[0].open(session, NAT, world.now).unwrap();
    world.calm(1);
    let mut bytes = Vec::new();
    for group in [1, 0] {
        let start = bytes.len();
        codec::begin_batch(&mut bytes, 9);
        codec::write_removal(&mut bytes, &session, group);
        codec::end_batch(&mut bytes, start, 9);
    }
    let Unit { store, sync, .. } = &mut world.units[0];
    let mut context = Context {
        store,
        now: world.now,
    };
    sync.receive(PeerId(0), &bytes, &mut context).unwrap();
    assert!(store.lookup(&session).is_some());
    assert_eq!(sync.counters().removed, 0);
}

#[test]
fn a_full_table_refuses() {
    let mut world = pair();
    for n in 0..1024 {
        let nat = (NAT.0, 1000 + n);
        world.units[0]
            .open(key(Protocol::TCP, (n % 200) as u8, n), nat, world.now)
            .unwrap();
    }
    let config = config(2, 1, "");
    let small = Table::new(1000, &[5; 16], Timeouts::from(&config.timeouts), 0);
    world.units[1].store.set_table(small);
    world.calm(30);
    assert_eq!(world.units[1].store.table().len(), 1000);
    assert!(!world.units[0].sync.in_sync(PeerId(0)));
    // It is tried again and again, at growing intervals.
    let refused = world.units[1].sync.counters().refused_full;
    assert!((24..24 * 8).contains(&refused), "{refused}");
    world.units[1].check();
}

#[test]
fn delayed_and_excluded_sessions() {
    let mut unit = Unit::new(
        2,
        0,
        1,
        "session-pickup-delay = \"5s\"\nsession-pickup-connectionless = false",
    );
    let now = Time::from_nanos(10_000_000_000);
    let tcp = unit.open(key(Protocol::TCP, 1, 1), NAT, now).unwrap();
    let short = unit
        .open(key(Protocol::TCP, 1, 2), (NAT.0, 2), now)
        .unwrap();
    let udp = unit.open(key(Protocol::UDP, 1, 1), NAT, now).unwrap();
    unit.close(short);
    unit.advance(tcp, TcpState::Established);
    assert_eq!(
        unit.sync.poll_timeout(unit.store.journal()),
        Some(now + Duration::from_secs(5))
    );
    // In the slot of the one that has gone; its own delay has just begun.
    let later = now + Duration::from_secs(4);
    let reused = unit
        .open(key(Protocol::TCP, 1, 3), (NAT.0, 3), later)
        .unwrap();
    assert_eq!(reused, short);
    let at = now + Duration::from_secs(5);
    unit.sync.handle_timeout(at, &mut unit.store);
    let seqs = [tcp, reused, udp].map(|id| unit.store.journal().seq_of(id));
    assert_eq!(seqs, [Some(1), None, None]);
    unit.check();
    unit.sync
        .handle_timeout(at + Duration::from_secs(4), &mut unit.store);
    assert_eq!(unit.store.journal().seq_of(reused), Some(2));
}

#[test]
fn a_changed_delay_holds_for_those_that_wait() {
    let mut unit = Unit::new(2, 0, 1, "session-pickup-delay = \"1h\"");
    let set = |unit: &mut Unit, extra: &str| {
        let config = config(2, 0, extra);
        unit.store
            .set_pickup(config.ha.as_ref().expect("it has [ha]"))
    };
    let now = Time::from_nanos(10_000_000_000);
    let old = unit.open(key(Protocol::TCP, 1, 1), NAT, now).unwrap();
    let at = |seconds| now + Duration::from_secs(seconds);
    assert!(!set(&mut unit, "session-pickup-delay = \"5s\""));
    let new = unit.open(key(Protocol::TCP, 1, 2), (NAT.0, 2), at(2));
    let ids = [old, new.unwrap()];
    let seqs = |unit: &Unit| ids.map(|id| unit.store.journal().seq_of(id));
    assert_eq!(unit.sync.poll_timeout(unit.store.journal()), Some(at(5)));
    unit.sync.handle_timeout(at(5), &mut unit.store);
    assert_eq!(seqs(&unit), [Some(1), None]);
    // A newly excluded session does not enter, until it is no longer excluded.
    assert!(!set(&mut unit, "session-pickup = false"));
    unit.sync.handle_timeout(at(9), &mut unit.store);
    assert_eq!(seqs(&unit), [Some(1), None]);
    assert!(set(&mut unit, "session-pickup-delay = \"5s\""));
    for id in ids {
        unit.store.replicate(id, at(9));
    }
    assert_eq!(seqs(&unit), [Some(1), Some(2)]);
    unit.check();
}

#[test]
fn wrong_peers_are_refused() {
    let mut a = Unit::new(2, 0, 1, "");
    let hello = |edit: fn(&mut message::Hello)| {
        let mut hello = Unit::new(2, 1, 9, "").sync.identity;
        edit(&mut hello);
        let mut bytes = Vec::new();
        codec::encode(&mut bytes, &message::Message::Hello(Box::new(hello)));
        bytes
    };
    let ack = |epoch, seq| {
        let mut bytes = hello(|_| {});
        codec::encode(&mut bytes, &message::Message::Ack { epoch, seq });
        bytes
    };
    let mut end = hello(|_| {});
    codec::encode(&mut end, &message::Message::End(Vec::new()));
    let twice = [hello(|_| {}), hello(|_| {})].concat();
    let cases = [
        (hello(|h| h.version = 9), ProtocolError::Version(9)),
        (hello(|h| h.group_id = 8), ProtocolError::GroupId(8)),
        (
            hello(|h| h.node = "x".into()),
            ProtocolError::WrongNode("x".into()),
        ),
        (ack(1, 1), ProtocolError::FutureAck),
        // Of changes that another process of this unit has sent.
        (ack(2, 0), ProtocolError::FutureAck),
        (end, ProtocolError::Unexpected),
        (twice, ProtocolError::Unexpected),
        (vec![0, 0, 0, 1, 4], ProtocolError::Unexpected),
        (vec![0xff; 8], ProtocolError::Malformed),
    ];
    for (bytes, expected) in cases {
        a.connect(PeerId(0));
        let Unit { store, sync, .. } = &mut a;
        let mut context = Context {
            store,
            now: Time::ZERO,
        };
        assert_eq!(sync.receive(PeerId(0), &bytes, &mut context), Err(expected));
        a.disconnect(PeerId(0), Time::ZERO);
    }
}

#[test]
fn work_a_call_is_bounded() {
    let mut world = pair();
    world.calm(1);
    for n in 0..1000 {
        world.units[0].open(
            key(Protocol::TCP, (n % 200) as u8, n),
            (NAT.0, 1000 + n),
            world.now,
        );
    }
    while world.transmit(0, 1, 1_000_000) {}
    let before = world.units[1].sync.counters().installed;
    world.deliver(0, 1, 120_000);
    let installed = world.units[1].sync.counters().installed - before;
    assert!((1..=256).contains(&installed), "{installed}");
    let lag = world.units[0].sync.lag(
        PeerId(0),
        &world.units[0].store,
        world.now + Duration::from_secs(2),
    );
    assert_eq!((lag.sequence_gap, lag.would_be_lost), (1000, 1000));
    assert!(lag.oldest_unacked >= Duration::from_secs(2));
    world.calm(1);
    world.assert_equal();
}

/// However the calls cut the work, what is acknowledged is in the table, and no sums are sent of
/// changes that are not.
#[test]
fn what_is_acknowledged_is_applied() {
    let mut world = pair();
    world.calm(3);
    for n in 0..1000 {
        open_numbered(&mut world, n);
    }
    // Sums are due.
    world.now = world.now + Duration::from_secs(2);
    let mut cut = 0;
    loop {
        // A batch is more sessions than one call handles.
        let mut busy = world.transmit(0, 1, 20_000);
        busy |= world.deliver(0, 1, 100_000);
        cut += usize::from(world.units[1].sync.peers[0].receiver.offset > 0);
        world.transmit(1, 0, 10_000);
        busy |= world.deliver(1, 0, 10_000);
        let Unit { store, sync, .. } = &world.units[0];
        let unacknowledged = sync.lag(PeerId(0), store, world.now).sequence_gap;
        let held = world.units[1].store.table().len() as u64;
        assert!(unacknowledged + held >= 1000, "{unacknowledged} and {held}");
        assert!(world.units[1].sync.is_ready(G), "sums of what is to come");
        if !busy {
            break;
        }
    }
    assert!(cut > 0, "a batch was handled in pieces");
    world.assert_equal();
    let is_repair = |event: &SyncEvent| matches!(event, SyncEvent::DigestDiffers { .. });
    assert!(!world.units[0].events.iter().any(is_repair));
}

/// A table full of one group's replicas: a replica of another group finds no room, and takes none.
#[test]
fn a_replica_takes_no_place_of_another() {
    const OTHER: GroupId = GroupId(1);
    let groups = "[[group]]\nname = \"a\"\nports = [\"lan\"]\n\
                  [[group]]\nname = \"b\"\nports = [\"wan\"]\n";
    let mut world = World::with(2, 1, groups);
    world.units[0].set_sending(G, Some(1));
    world.units[0].set_sending(OTHER, Some(1));
    world.calm(3);
    let config = config(2, 1, groups);
    let small = Table::new(4, &[5; 16], Timeouts::from(&config.timeouts), 0);
    world.units[1].store.set_table(small);
    for n in 0..4 {
        open_numbered(&mut world, n);
    }
    world.calm(1);
    let held = world.units[1].view();
    assert_eq!(held.len(), 4);
    let now = world.now;
    let late = key(Protocol::TCP, 9, 9);
    world.units[0].open_in(OTHER, late, NAT, now).unwrap();
    world.calm(1);
    assert_eq!(world.units[1].view(), held);
    let counters = world.units[1].sync.counters();
    assert!(counters.refused_full > 0);
    assert_eq!(counters.made_room, 0);

    // It may have the place of one that this unit itself may lose.
    world.units[0].set_sending(G, None);
    world.calm(1);
    world.units[1].set_sending(G, Some(2));
    world.calm(12);
    assert_eq!(world.units[1].sync.counters().made_room, 1);
    assert!(world.units[1].store.lookup(&late).is_some());
}

#[test]
fn what_a_peer_refuses_is_no_copy() {
    let mut world = pair_with_small_table();
    let (held, refused) = (open_numbered(&mut world, 1), open_numbered(&mut world, 2));
    world.calm(1);
    let copies = |world: &World, id| {
        let Unit { store, sync, .. } = &world.units[0];
        let journal = store.journal();
        sync.copies(journal, (id, G), journal.seq_of(id).unwrap(), 1)
    };
    assert_eq!(copies(&world, held), Copies::Held);
    assert_eq!(copies(&world, refused), Copies::Refused);
    let Unit { store, sync, .. } = &world.units[0];
    assert_eq!(sync.would_be_lost(PeerId(0), G, store), Some(1));
    assert!(!world.units[0].is_synced(refused));

    // With room there, the next comparison has it sent again.
    world.units[0].close(held);
    world.calm(12);
    assert_eq!(copies(&world, refused), Copies::Held);
    let Unit { store, sync, .. } = &world.units[0];
    assert_eq!(sync.would_be_lost(PeerId(0), G, store), Some(0));
}

/// Who has refused a session says that it holds all up to before it, and not what came since.
#[test]
fn what_a_unit_has_refused_is_not_among_what_it_holds() {
    let mut world = pair_with_small_table();
    let first = open_numbered(&mut world, 1);
    world.calm(4);
    let before = world.units[1].sync.held(G);
    world.units[0].advance(first, TcpState::Established);
    let apply = |world: &mut World| {
        world.transmit(0, 1, 100_000);
        while world.deliver(0, 1, 100_000) {}
        world.units[1].sync.held(G)
    };
    let farther = apply(&mut world);
    assert!(farther > before, "{farther:?} after {before:?}");
    open_numbered(&mut world, 2);
    assert_eq!(apply(&mut world), farther);
    assert_eq!(world.units[1].sync.counters().refused_full, 1);
}

/// Whichever comes first of a new process, its heartbeat or its Hello.
#[test]
fn a_process_that_has_restarted_is_no_copy() {
    let mut world = pair();
    world.calm(3);
    let hear = |world: &mut World, boot_id| {
        let sync = &mut world.units[0].sync;
        sync.set_heard(PeerId(0), heard(boot_id));
        sync.in_sync(PeerId(0))
    };
    let first = world.units[1].sync.epoch;
    assert!(hear(&mut world, first));
    // Its connection has not ended yet.
    assert!(!hear(&mut world, first + 1));
    assert!(hear(&mut world, first));
    world.restart(1);
    world.calm(3);
    let second = world.units[1].sync.epoch;
    assert_ne!(first, second);
    assert!(!hear(&mut world, first), "its heartbeats are late");
    assert!(hear(&mut world, second));
}

#[test]
fn a_peer_that_is_gone_loses_what_it_does_not_hold() {
    let mut world = pair();
    world.calm(3);
    let now = world.now;
    world.units[0]
        .open(key(Protocol::UDP, 1, 1), NAT, now)
        .unwrap();
    world.calm(1);
    let lost = |world: &World| {
        let Unit { store, sync, .. } = &world.units[0];
        sync.would_be_lost(PeerId(0), G, store)
    };
    assert_eq!(lost(&world), Some(0));
    world.disconnect(0, 1);
    let now = world.now;
    let nat = (NAT.0, 1001);
    world.units[0]
        .open(key(Protocol::UDP, 2, 2), nat, now)
        .unwrap();
    assert_eq!(lost(&world), Some(1), "what it has got it keeps");
    world.restart(1);
    world.calm(1);
    world.disconnect(0, 1);
    let unit = &world.units[1];
    let (Unit { store, sync, .. }, all) = (unit, unit.ids().len() as u32);
    assert_eq!(
        sync.would_be_lost(PeerId(0), G, store),
        None,
        "no primary: {all}"
    );
}

/// A comparison says nothing of what was refused after it began.
#[test]
fn a_comparison_forgives_no_later_refusal() {
    let mut world = pair_with_small_table();
    open_numbered(&mut world, 1);
    world.calm(1);
    world.now = world.now + Duration::from_secs(2);
    // The sums go first, and the answer to them comes after the refusal.
    world.transmit(0, 1, 10_000);
    let late = open_numbered(&mut world, 2);
    for _ in 0..4 {
        world.transmit(0, 1, 10_000);
        world.deliver(0, 1, 10_000);
        world.transmit(1, 0, 10_000);
        world.deliver(1, 0, 10_000);
    }
    let Unit { store, sync, .. } = &world.units[0];
    let journal = store.journal();
    let seq = journal.seq_of(late).unwrap();
    assert_eq!(sync.copies(journal, (late, G), seq, 1), Copies::Refused);
}

/// The numbers of one process say nothing of another's, also if these two never spoke.
#[test]
fn a_stream_of_another_process_is_not_resumed() {
    let mut world = pair();
    (0..50).for_each(|_| world.open(0));
    world.calm(2);
    world.restart(0);
    world.units[0].set_sending(G, Some(4));
    // More changes than the process before has made; they are lost on the way.
    (0..200).for_each(|_| world.act(0));
    world.transmit(1, 0, 10_000);
    world.deliver(1, 0, 10_000);
    while world.transmit(0, 1, 10_000) {}
    // The stream ends before unit 1 hears of the other process. Its Hello of the next stream tells
    // where it was with the former one.
    world.disconnect(0, 1);
    world.connect(0, 1);
    world.transmit(1, 0, 10_000);
    world.calm(4);
    assert!(!world.units[0].events.contains(&SyncEvent::PeerKnown {
        peer: PeerId(0),
        resumed: true
    }));
    world.assert_equal();
}

#[test]
fn a_removal_is_kept_for_the_slowest_peer() {
    let mut world = World::new(3, 1);
    world.units[0].set_sending(G, Some(1));
    (0..20).for_each(|_| world.open(0));
    world.calm(2);
    let id = world.units[0].ids()[0];
    world.units[0].close(id);
    // Unit 1 has more by then: a batch encoded once for both would bring the removal along.
    for other in [1, 1, 2] {
        for _ in 0..4 {
            world.transmit(0, other, 10_000);
            world.deliver(0, other, 10_000);
            world.transmit(other, 0, 10_000);
            world.deliver(other, 0, 10_000);
        }
        assert_eq!(world.units[other].view(), world.units[0].view());
        world.open(0);
    }
    assert_eq!(world.units[2].sync.counters().removed, 1);
}

/// A unit that takes over says that it holds everything, and has lost it: others keep theirs, and
/// it gets them back.
#[test]
fn a_primary_that_lacks_what_it_claims_ends_nothing() {
    let mut world = World::new(3, 1);
    world.units[0].set_sending(G, Some(1));
    (0..20).for_each(|_| world.open(0));
    world.calm(3);
    let all = world.units[0].view();
    assert_eq!(world.units[2].view(), all);
    for id in world.units[1].ids() {
        world.units[1].close(id);
    }
    let held = world.units[1].sync.held(G);
    assert_eq!(held, world.units[2].sync.held(G), "by its own account");
    world.disconnect(0, 1);
    world.disconnect(0, 2);
    world.units[1].set_sending(G, Some(2));
    world.calm(4);
    assert_eq!(world.units[2].view(), all);
    assert_eq!(world.units[1].view(), all);
}

/// Five sessions at the primary, which the others hold.
fn five_held(units: usize, term: u64) -> World {
    let mut world = World::new(units, 1);
    world.units[0].set_sending(G, Some(term));
    for n in 0..5 {
        open_numbered(&mut world, n);
    }
    world.calm(3);
    world.assert_equal();
    assert!(world.units[0].sync.in_sync(peer(0, 1)));
    world
}

/// A unit in sync takes over beside the primary, ends what it holds, and steps down. The primary
/// ends nothing, and does not count on that unit before it holds all again: whether it learns of
/// that reign in time or only afterwards, and whatever answers were under way.
#[test]
fn who_was_primary_too_is_no_copy_until_it_is_compared() {
    for (told_in_time, answers) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut world = five_held(2, 3);
        if answers {
            world.transmit(0, 1, 100_000);
            world.deliver(0, 1, 100_000);
        }
        world.units[1].set_sending(G, Some(2));
        for id in world.units[1].ids() {
            world.units[1].close(id);
        }
        if told_in_time {
            world.transmit(1, 0, 100_000);
        }
        world.units[1].set_sending(G, None);
        assert!(
            !world.units[1].sync.is_ready(G),
            "it knows what it has done"
        );
        world.transmit(1, 0, 100_000);
        while world.deliver(1, 0, 1) {
            world.now = world.now + Duration::from_secs(1);
            world.transmit(0, 1, 100_000);
        }
        let Unit { sync, store, .. } = &world.units[0];
        let standby = peer(0, 1);
        assert!(!sync.in_sync_for(standby, G) && !sync.digest_equal(standby, G));
        assert_eq!(sync.would_be_lost(standby, G, store), Some(5));
        assert_eq!(world.units[0].view().len(), 5, "it has lost nothing");
        world.calm(4);
        world.assert_equal();
        assert_eq!(world.units[1].view().len(), 5);
        assert!(world.units[0].sync.in_sync(standby) && world.units[1].sync.is_ready(G));
    }
}

/// What a unit opens in a reign that it loses is offered to the primary before that removes
/// anything.
#[test]
fn what_was_opened_in_a_lost_reign_stays() {
    for told_in_time in [true, false] {
        let mut world = five_held(2, 5);
        world.units[1].set_sending(G, Some(4));
        let now = world.now;
        let opened = world.units[1].open(key(Protocol::TCP, 9, 9), (NAT.0, 9), now);
        assert!(opened.is_some());
        if told_in_time {
            world.transmit(1, 0, 100_000);
        }
        world.units[1].set_sending(G, None);
        world.calm(4);
        world.assert_equal();
        assert_eq!(
            world.units[0].view().len(),
            6,
            "told in time: {told_in_time}"
        );
    }
}

/// A third unit follows the one that loses: it gets back what that one has ended, and the primary
/// gets what that one has opened.
#[test]
fn who_has_followed_the_loser_merges_again() {
    let mut world = five_held(3, 1);
    world.units[1].set_sending(G, Some(2));
    for id in world.units[1].ids() {
        world.units[1].close(id);
    }
    let now = world.now;
    let opened = world.units[1].open(key(Protocol::TCP, 9, 9), (NAT.0, 9), now);
    assert!(opened.is_some());
    world.transmit(1, 2, 100_000);
    world.deliver(1, 2, 100_000);
    assert_eq!(world.units[2].view().len(), 1, "it follows the higher term");
    // The one that opened it is gone, and only the third one has it.
    world.restart(1);
    world.calm(4);
    world.assert_equal();
    assert_eq!(world.units[0].view().len(), 6);
}
