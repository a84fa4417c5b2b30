//! The session table at size: memory a session, the cost of its operations, its longest stall.
//!
//! `cargo bench --bench table`

use std::hint::black_box;
use std::time::{Duration, Instant};

use tandemgw_core::config;
use tandemgw_core::flow::{Addr, Direction, FlowKey, Protocol};
use tandemgw_core::session::tcp::{Segment, TcpFlags, Tracker as Tcp};
use tandemgw_core::session::{
    AddressBook, Index, KeyedHash, Links, Session, SessionId, Table, Timeouts, Tracker,
    TranslatedAddr,
};
use tandemgw_core::time::Tick;

/// A full table of the default size.
const MILLION: u32 = 1 << 20;

fn main() {
    let mut book = AddressBook::new();
    // 64 addresses to translate to: a million sessions have tuples of their own.
    for i in 0..64 {
        book.intern(Addr::v4([192, 0, 2, i]));
    }
    println!("{:<44} {:>10}", "what", "result");
    let small = table(1000);
    let mut small = small;
    fill(&mut small, 1000, Protocol::TCP, &book);
    let fast = lookup(&small, 1000, &book);
    show("lookup, 1000 sessions", fast, "ns");
    memory(Protocol::TCP, &book);
    memory(Protocol::UDP, &book);

    let mut table = table(MILLION);
    let growth = fill(&mut table, MILLION, Protocol::TCP, &book);
    let slow = lookup(&table, MILLION, &book);
    show("lookup, 1M sessions, random order", slow, "ns");
    show("  ratio to 1000 sessions", slow / fast, "x");
    show("longest insert of 1M", micros(growth), "us");
    churn(&mut table, &book);
    expire(&mut table, &book);
}

fn show(what: &str, value: f64, unit: &str) {
    println!("{what:<44} {value:>10.1} {unit}");
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn table(capacity: u32) -> Table {
    let seconds = Duration::from_secs;
    let timeouts = config::Timeouts {
        tcp_established: seconds(7440),
        tcp_transitory: seconds(240),
        tcp_syn: seconds(30),
        tcp_time_wait: seconds(120),
        tcp_reset: seconds(10),
        udp: seconds(300),
        udp_unreplied: seconds(120),
        icmp: seconds(60),
        other: seconds(600),
    };
    let table = Table::new(capacity, &[7; 16], Timeouts::from(&timeouts), 0);
    tandemgw::os::memory::prefer_huge_pages(table.reserved());
    table
}

/// The session number `i`: one of many hosts, translated.
fn session(i: u32, protocol: Protocol, book: &AddressBook) -> Session {
    let key = FlowKey {
        src: Addr::v4((0x0a00_0000 + i / 16).to_be_bytes()),
        dst: Addr::v4([198, 51, 100, (i % 200) as u8]),
        src_port: 1024 + (i % 16) as u16,
        dst_port: 443,
        protocol,
    };
    let mut session = Session::new(&key, Tick(0));
    let vip = Addr::v4([192, 0, 2, (i / 32_768) as u8]);
    session.nat_src = book.find(vip).unwrap_or(TranslatedAddr::SAME);
    session.nat_src_port = 1024 + (i % 32_768) as u16;
    session.tracker = match protocol {
        Protocol::TCP => {
            let syn = Segment {
                flags: TcpFlags::SYN,
                window: 64_000,
                ..Segment::default()
            };
            Tracker::Tcp(Tcp::open(&syn).unwrap_or_else(|reason| panic!("{reason:?}")))
        }
        _ => Tracker::Mapped(Links::ALONE),
    };
    session
}

/// Adds sessions, and returns the longest time that one took.
fn fill(table: &mut Table, sessions: u32, protocol: Protocol, book: &AddressBook) -> Duration {
    let mut longest = Duration::ZERO;
    for i in 0..sessions {
        let session = session(i, protocol, book);
        let start = Instant::now();
        table
            .insert(session, book)
            .unwrap_or_else(|error| panic!("{i}: {error:?}"));
        longest = longest.max(start.elapsed());
    }
    longest
}

/// Nanoseconds a lookup, both directions by turns, in random order.
fn lookup(table: &Table, sessions: u32, book: &AddressBook) -> f64 {
    let mut random = 1u32;
    let keys: Vec<FlowKey> = (0..MILLION)
        .map(|i| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let id = SessionId(((u64::from(random) * u64::from(sessions)) >> 32) as u32);
            let direction = if i % 2 == 0 {
                Direction::Original
            } else {
                Direction::Reply
            };
            table
                .get(id)
                .map(|session| session.key(direction, book))
                .unwrap_or_else(|| panic!())
        })
        .collect();
    let start = Instant::now();
    for key in &keys {
        assert!(black_box(table.lookup(key, book)).is_some());
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(MILLION)
}

fn memory(protocol: Protocol, book: &AddressBook) {
    let before = resident();
    let mut table = table(MILLION);
    fill(&mut table, MILLION, protocol, book);
    let hash = KeyedHash::new(&[9; 16]);
    let mut mappings = Index::new(MILLION as usize);
    if protocol == Protocol::UDP {
        for i in 0..MILLION {
            assert!(mappings.insert(hash.bytes(&i.to_be_bytes()), i));
        }
    }
    let bytes = (resident() - before) as f64 / f64::from(MILLION);
    show(
        &format!("resident memory a session, 1M {protocol}"),
        bytes,
        "bytes",
    );
    show("  ratio to the budget of 160 bytes", bytes / 160.0, "x");
    black_box((table, mappings));
}

/// Bytes of resident memory, by /proc/self/statm.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_else(|| panic!("no /proc/self/statm")) * 4096
}

/// A full table: one leaves, one comes.
fn churn(table: &mut Table, book: &AddressBook) {
    let mut longest = Duration::ZERO;
    let start = Instant::now();
    let mut random = 1u32;
    for _ in 0..MILLION {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let id = SessionId(((u64::from(random) * u64::from(MILLION)) >> 32) as u32);
        let one = Instant::now();
        let session = table
            .remove(id, book)
            .unwrap_or_else(|| panic!("{id:?} is gone"));
        let again = table.insert(session, book);
        longest = longest.max(one.elapsed());
        assert_eq!(again, Ok(id));
    }
    let each = start.elapsed().as_secs_f64() * 1e9 / f64::from(MILLION);
    show("remove + insert at 1M", each, "ns");
    show("longest remove + insert", micros(longest), "us");
}

/// An idle pass, and then all sessions expire together.
fn expire(table: &mut Table, book: &AddressBook) {
    let mut expired = Vec::with_capacity(1024);
    let mut idle = Duration::ZERO;
    for tick in 1..=20 {
        let start = Instant::now();
        while table.sweep(Tick(tick), &mut expired) {}
        idle = idle.max(start.elapsed());
    }
    show(
        "a tick's share of an idle pass, longest",
        micros(idle),
        "us",
    );
    let (mut longest, mut longest_with_removal, mut calls) = (Duration::ZERO, Duration::ZERO, 0);
    let start = Instant::now();
    let mut now = Tick(10_000);
    while !table.is_empty() {
        expired.clear();
        let one = Instant::now();
        let more = table.sweep(now, &mut expired);
        longest = longest.max(one.elapsed());
        for id in &expired {
            black_box(table.remove(*id, book));
        }
        longest_with_removal = longest_with_removal.max(one.elapsed());
        calls += 1;
        if !more {
            now = now.after(1);
        }
    }
    show(
        "longest sweep call, 1M expire together",
        micros(longest),
        "us",
    );
    show(
        "  with the removals of that call",
        micros(longest_with_removal),
        "us",
    );
    show("  calls", f64::from(calls), "");
    show(
        "  a session",
        start.elapsed().as_secs_f64() * 1e9 / f64::from(MILLION),
        "ns",
    );
}
