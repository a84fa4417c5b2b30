//! The cost of replication, in memory: `cargo bench --bench sync -- [SESSIONS]`, default 1 000 000.
//!
//! Two replicators in one process, with a copy in between and no transport. Best of a few rounds
//! where the thing can be repeated.

use std::path::Path;
use std::time::{Duration, Instant};

use tandemgw_core::config::{Config, parse};
use tandemgw_core::evidence::{Heard, Holders};
use tandemgw_core::flow::{Addr, Direction, FlowKey, GroupId, PeerId, PortId, Protocol};
use tandemgw_core::packet::{TcpFlags, TcpSegment};
use tandemgw_core::policy::Ruleset;
use tandemgw_core::session::{Session, SessionFlags, SessionId, Tracker, tcp};
use tandemgw_core::store::{Keys, SessionStore};
use tandemgw_core::sync::{Context, Replicator};
use tandemgw_core::time::Time;
use testkit::system::cpu_clock::thread_time;

const PEER: PeerId = PeerId(0);
const GROUP: GroupId = GroupId(0);
const NOW: Time = Time::from_nanos(1 << 42);
/// New sessions between two rounds of the event loop.
const BURST: u32 = 64;

fn main() {
    let argument = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let sessions: u32 = argument.unwrap_or(1_000_000);
    let mut a = Unit::new("gw-a", "gw-b", sessions + 200_000);
    let mut b = Unit::new("gw-b", "gw-a", sessions + 200_000);
    a.sync.set_sending(GROUP, Some(1), a.store.journal_mut());

    println!("{sessions} sessions of TCP over IPv4 with source translation");
    hooks(&mut a, sessions);
    snapshot(&mut a, &mut b);
    new_sessions(&mut a, &mut b, sessions);
    repair(&mut a, &mut b);
    for (peers, copies) in [(1, 0), (2, 0), (3, 0), (3, 2)] {
        fan_out(peers, copies);
    }
    for unit in [&a, &b] {
        unit.store.check_invariants();
        unit.sync.check_invariants(unit.store.journal());
    }
}

/// The gateway's cost on each change.
fn hooks(a: &mut Unit, sessions: u32) {
    let before = resident();
    let mut ids = Vec::with_capacity(sessions as usize);
    let opened = time(|| ids.extend((0..sessions).map(|n| a.insert(n))));
    println!(
        "memory a session: {} B",
        (resident() - before) / sessions as usize
    );
    // As the hot path does it: the session was just looked at.
    let (mut changed, mut work) = (Duration::ZERO, Duration::ZERO);
    for chunk in ids.chunks(1000) {
        let mut run = |mark: SessionFlags| {
            time(|| {
                for id in chunk {
                    let edited = a.store.edit(*id, |session, _| session.flags.0 ^= mark.0);
                    edited.expect("it exists");
                }
            })
        };
        // The first touch brings the sessions into the cache; what is left is what the news costs.
        run(SessionFlags::REPLIED);
        changed += run(SessionFlags::REPLIED);
        work += run(SessionFlags::WAITING);
        run(SessionFlags::WAITING);
    }
    let per = |time: Duration| time.as_nanos() as f64 / f64::from(sessions);
    println!("session opened: {:.0} ns (memory cold)", per(opened));
    println!(
        "session changed: {:.0} ns more than edited without news (in cache)",
        per(changed.saturating_sub(work))
    );
}

/// A unit joins one that has all.
fn snapshot(a: &mut Unit, b: &mut Unit) {
    for unit in [&mut *a, &mut *b] {
        unit.sync.peer_connected(PEER, unit.store.journal_mut());
    }
    let start = thread_time();
    let cost = exchange(a, b);
    let total = thread_time().saturating_sub(start);
    assert_eq!(a.store.table().len(), b.store.table().len());
    assert!(a.sync.digest_equal(PEER, GROUP) && b.sync.is_ready(GROUP));
    let n = f64::from(a.store.table().len());
    println!(
        "snapshot: {:.0} ms of CPU in all; sender {:.0} ms = {:.2} µs a session, receiver {:.0} ms = {:.2} µs; \
         {:.1} B a session; longest call {:.0} µs to send, {:.0} µs to receive",
        ms(total),
        ms(cost.sender),
        ms(cost.sender) * 1e3 / n,
        ms(cost.receiver),
        ms(cost.receiver) * 1e3 / n,
        cost.bytes as f64 / n,
        ms(cost.longest_send) * 1e3,
        ms(cost.longest_receive) * 1e3,
    );
}

/// New sessions, beside those that there are.
fn new_sessions(a: &mut Unit, b: &mut Unit, first: u32) {
    let mut total = Cost::default();
    let mut hooks = Duration::ZERO;
    for burst in 0..1000 {
        hooks += time(|| {
            for n in 0..BURST {
                a.insert(first + burst * BURST + n);
            }
        });
        let cost = exchange(a, b);
        total.sender += cost.sender;
        total.receiver += cost.receiver;
        total.bytes += cost.bytes;
    }
    let n = f64::from(1000 * BURST);
    println!(
        "new session, {BURST} a round: insert {:.2} µs, encode and handle acks {:.2} µs; receive, install and \
         ack {:.2} µs; {:.1} B",
        ms(hooks) * 1e3 / n,
        ms(total.sender) * 1e3 / n,
        ms(total.receiver) * 1e3 / n,
        total.bytes as f64 / n,
    );
}

/// The standby has lost a session.
fn repair(a: &mut Unit, b: &mut Unit) {
    let (id, _) = b.store.table().iter().next().expect("there are some");
    b.store.end(id).expect("it exists");
    let sent = a.sync.counters().sent;
    (a.now, b.now) = (
        a.now + Duration::from_secs(2),
        b.now + Duration::from_secs(2),
    );
    let cost = exchange(a, b);
    assert!(a.sync.digest_equal(PEER, GROUP) && a.store.table().len() == b.store.table().len());
    println!(
        "repair of one bucket: {} sessions, {} B, sender {:.1} ms, receiver {:.1} ms",
        a.sync.counters().sent - sent,
        cost.bytes,
        ms(cost.sender),
        ms(cost.receiver),
    );
}

/// New sessions of a unit with several peers, of which `copies` are to hold them, or all.
fn fan_out(peers: usize, copies: u32) {
    const NAMES: [&str; 3] = ["gw-b", "gw-c", "gw-d"];
    let mut a = Unit::with_peers("gw-a", &NAMES[..peers], 200_000);
    a.sync.set_sending(GROUP, Some(1), a.store.journal_mut());
    let mut others: Vec<Unit> = (0..peers)
        .map(|at| Unit::new(NAMES[at], "gw-a", 200_000))
        .collect();
    for (at, other) in others.iter_mut().enumerate() {
        let peer = PeerId(at as u8);
        a.sync.peer_connected(peer, a.store.journal_mut());
        other.sync.peer_connected(PEER, other.store.journal_mut());
    }
    tell_all(&mut a, &mut others);
    if copies > 0 {
        let peers = (0..copies as u8).map(PeerId).collect();
        a.sync
            .set_holders(GROUP, Holders::Of { peers, copies }, a.now);
        for (at, other) in (0..).zip(&others) {
            let (by_link, at_all) = (Some(other.process), Some(other.process));
            a.sync.set_heard(PeerId(at), Heard { by_link, at_all });
        }
        for _ in 0..8 {
            a.now = a.now + Duration::from_secs(1);
            tell_all(&mut a, &mut others);
        }
    }
    let mut sender = Duration::ZERO;
    for burst in 0..1000 {
        for n in 0..BURST {
            a.insert(burst * BURST + n);
        }
        sender += tell_all(&mut a, &mut others);
    }
    let told = others.iter().filter(|it| !it.store.table().is_empty());
    println!(
        "new session, {peers} peers, {} hold it: {:.3} µs of the sender",
        told.count(),
        ms(sender) * 1e3 / f64::from(1000 * BURST),
    );
}

/// Lets all talk until nobody has anything to say; returns what that costs the first one.
fn tell_all(a: &mut Unit, others: &mut [Unit]) -> Duration {
    let mut sender = Duration::ZERO;
    let mut outs = vec![Vec::with_capacity(1 << 16); others.len()];
    loop {
        let mut busy = false;
        // In one turn, as the event loop does it.
        let start = thread_time();
        for (at, out) in outs.iter_mut().enumerate() {
            out.clear();
            busy |= a.transmit_to(PeerId(at as u8), out) || !out.is_empty();
        }
        sender += thread_time().saturating_sub(start);
        for (at, (other, out)) in others.iter_mut().zip(&mut outs).enumerate() {
            busy |= other.receive(out).0;
            out.clear();
            busy |= other.transmit(out) || !out.is_empty();
            let start = thread_time();
            a.receive_from(PeerId(at as u8), out);
            sender += thread_time().saturating_sub(start);
        }
        if !busy {
            return sender;
        }
    }
}

#[derive(Default)]
struct Cost {
    sender: Duration,
    receiver: Duration,
    bytes: usize,
    longest_send: Duration,
    longest_receive: Duration,
}

/// Lets both talk until neither has anything to say.
fn exchange(a: &mut Unit, b: &mut Unit) -> Cost {
    let mut cost = Cost::default();
    let mut out = Vec::with_capacity(1 << 20);
    loop {
        out.clear();
        let start = Instant::now();
        let mut busy = a.transmit(&mut out);
        let sent = start.elapsed();
        cost.bytes += out.len();
        let start = Instant::now();
        let (more, longest) = b.receive(&out);
        busy |= more || !out.is_empty();
        out.clear();
        busy |= b.transmit(&mut out);
        let received = start.elapsed();
        let start = Instant::now();
        busy |= !out.is_empty();
        a.receive(&out);
        cost.sender += sent + start.elapsed();
        cost.receiver += received;
        cost.longest_send = cost.longest_send.max(sent);
        cost.longest_receive = cost.longest_receive.max(longest);
        if !busy {
            break;
        }
    }
    cost
}

struct Unit {
    store: SessionStore,
    sync: Replicator,
    now: Time,
    process: u64,
}

impl Unit {
    fn new(name: &str, peer: &str, max_sessions: u32) -> Unit {
        Unit::with_peers(name, &[peer], max_sessions)
    }

    fn with_peers(name: &str, peers: &[&str], max_sessions: u32) -> Unit {
        let config = config(name, peers, max_sessions);
        let process = u64::from(max_sessions);
        let keys = Keys {
            nat: [1; 16],
            table: [2; 16],
        };
        Unit {
            store: SessionStore::new(&config, &keys),
            sync: Replicator::new(&config, process, &Ruleset::new(&config)).expect("it has [ha]"),
            now: NOW,
            process,
        }
    }

    fn insert(&mut self, n: u32) -> SessionId {
        let key = FlowKey {
            src: Addr::v4([10, (n >> 20) as u8, (n >> 12) as u8, (n >> 4) as u8]),
            dst: Addr::v4([198, 51, (n >> 16) as u8, n as u8]),
            src_port: 10_000 + (n & 15) as u16,
            dst_port: 443,
            protocol: Protocol::TCP,
        };
        let syn = TcpSegment {
            flags: TcpFlags::SYN,
            seq: n,
            ack: 0,
            window: 64_240,
            window_scale: Some(7),
            payload_len: 0,
        };
        let mut session = Session::new(&key, self.now.tick());
        session.tracker = Tracker::Tcp(tcp::Tracker::open(&syn).expect("a SYN"));
        session.nat_src = self
            .store
            .intern(Addr::v4([192, 0, 2, (n >> 16) as u8]))
            .expect("room");
        session.nat_src_port = n as u16;
        session.out_port = PortId(1);
        session.record(Direction::Original, 60, self.now.tick());
        self.store
            .insert(session, self.now)
            .expect("a key of its own")
    }

    fn transmit(&mut self, out: &mut Vec<u8>) -> bool {
        self.transmit_to(PEER, out)
    }

    fn transmit_to(&mut self, peer: PeerId, out: &mut Vec<u8>) -> bool {
        self.sync
            .poll_transmit(peer, out, 64 * 1024, &mut self.store, self.now)
    }

    /// Takes all; returns whether anything was there, and the longest call.
    fn receive(&mut self, bytes: &[u8]) -> (bool, Duration) {
        self.receive_from(PEER, bytes)
    }

    fn receive_from(&mut self, peer: PeerId, mut bytes: &[u8]) -> (bool, Duration) {
        let mut longest = Duration::ZERO;
        loop {
            let Unit {
                store, sync, now, ..
            } = self;
            let mut context = Context { store, now: *now };
            let start = Instant::now();
            let done = sync
                .receive(peer, bytes, &mut context)
                .expect("an honest peer");
            longest = longest.max(start.elapsed());
            while sync.poll_event().is_some() {}
            bytes = &bytes[done.taken..];
            if !done.more && bytes.is_empty() {
                return (done.taken > 0, longest);
            }
        }
    }
}

fn config(name: &str, peers: &[&str], max_sessions: u32) -> Config {
    let peers: Vec<String> = (peers.iter().enumerate())
        .map(|(at, name)| {
            let (octet, key) = (at + 2, b'A' + at as u8);
            format!(
                r#"{{ name = "{name}", addresses = ["172.16.0.{octet}:7700"], public-key = "{}AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" }}"#,
                char::from(key)
            )
        })
        .collect();
    let peers = peers.join(", ");
    let text = format!(
        r#"
        node = {{ name = "{name}", key = "k", max-sessions = {max_sessions} }}
        port = [
            {{ name = "lan", interface = "e0", virtual-addresses = ["10.0.0.1/8"] }},
            {{ name = "wan", interface = "e1", virtual-addresses = ["192.0.2.1/24"] }},
        ]
        policy = [{{ name = "out", action = "accept", nat = true }}]
        [ha]
        group-id = 7
        link = [{{ interface = "e2", listen = "172.16.0.1:7700" }}]
        peer = [{peers}]
        "#
    );
    match parse(Path::new("bench.toml"), &text) {
        Ok((config, _)) => config,
        Err(found) => panic!("{found:?}"),
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Bytes of memory that the process has touched.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc is mounted");
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number") * 4096
}
