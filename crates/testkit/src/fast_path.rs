//! The program of the fast path (`src/os/fast_path/program.bpf.c`) in Rust, for tests and the
//! simulator, which send no urgent data. `tests/fast_path.rs` compares both in the kernel's test
//! runs.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use tandemgw_core::event::Offload;
use tandemgw_core::fast_path::{Change, ENTRY_LEN, FLOW_LEN, Flow, Memory, SessionCell};
use tandemgw_core::flow::{Addr, FlowKey};
use tandemgw_core::packet::{self, PacketKind, TcpFlags};
use tandemgw_core::session::tcp::Segment;
use tandemgw_core::time::Time;

const MIN_ACK_RANGE: u32 = 66_000;
const MAX_WINDOW: u32 = 1 << 29;
const INCOMPLETE: u8 = 4;

/// A program with its entries.
pub struct Program {
    /// What it shares with the gateway.
    pub memory: Memory,
    entries: BTreeMap<[u8; FLOW_LEN], [u8; ENTRY_LEN]>,
}

/// What became of a packet.
pub struct Forwarded {
    /// As it leaves.
    pub bytes: Vec<u8>,
    /// The interface that it leaves by.
    pub interface: u32,
    /// The group that said so.
    pub group: u8,
}

impl Program {
    /// A program without entries.
    pub fn new(memory: Memory) -> Program {
        Program {
            memory,
            entries: BTreeMap::new(),
        }
    }

    /// Carries out what the gateway decided.
    pub fn change(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Insert { flow, entry } => {
                    self.entries.insert(*flow, *entry);
                }
                Change::Remove { flow } => {
                    self.entries.remove(flow);
                }
            }
        }
    }

    /// Forwards an IP packet that comes in by an interface; none if it goes on to the process.
    pub fn run(&self, interface: u32, bytes: &[u8], now: Time) -> Option<Forwarded> {
        let offload = Offload::default();
        if !is_ordinary(bytes) {
            return None;
        }
        let parsed = packet::parse(bytes, offload).ok()?;
        let key = parsed.key;
        let entry = Entry(*self.entries.get(&Flow { key, interface }.encode())?);
        let group = &self.memory.groups[usize::from(entry.0[76])];
        let session = &self.memory.sessions[entry.number(68) as usize];
        let in_force = group.epoch() == entry.number(64)
            && group.lease.load(Relaxed) >= now.as_nanos()
            && session.serial.load(Relaxed) == entry.number(72);
        if !in_force || bytes.len() > entry.number(60) as usize {
            return None;
        }
        if let PacketKind::Tcp(segment) = &parsed.kind {
            let is_plain = [TcpFlags::SYN, TcpFlags::FIN, TcpFlags::RST]
                .iter()
                .all(|flag| !segment.flags.contains(*flag));
            if !is_plain || !segment.flags.contains(TcpFlags::ACK) {
                return None;
            }
            if !follow(session, &entry, segment) {
                return None;
            }
        }
        let mut out = bytes.to_vec();
        packet::take_hop_limit(&mut out, parsed.family);
        packet::translate_with_hop(&mut out, &parsed, offload, &entry.to(&key));
        packet::take_hop_limit(&mut out, parsed.family);
        session.last.store(now.as_nanos(), Relaxed);
        let side = &session.sides[entry.side()];
        side.packets.fetch_add(1, Relaxed);
        side.bytes.fetch_add(bytes.len() as u64, Relaxed);
        Some(Forwarded {
            bytes: out,
            interface: entry.number(56),
            group: entry.0[76],
        })
    }
}

/// TCP or UDP of IPv4 without options and not a fragment, or of IPv6 without extension headers,
/// with hops left.
fn is_ordinary(bytes: &[u8]) -> bool {
    match bytes {
        [0x45, _, _, _, _, _, high, low, hops, protocol, ..] => {
            u16::from_be_bytes([*high, *low]) & 0x3fff == 0
                && *hops > 1
                && [6, 17].contains(protocol)
        }
        [first, _, _, _, _, _, next, hops, ..] => {
            first >> 4 == 6 && *hops > 1 && [6, 17].contains(next)
        }
        _ => false,
    }
}

/// `struct action` of `program.h`.
struct Entry([u8; ENTRY_LEN]);

impl Entry {
    fn number(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    fn side(&self) -> usize {
        usize::from(self.0[77] & 1)
    }

    fn to(&self, from: &FlowKey) -> FlowKey {
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&self.0[at..at + 16]);
            match from.src.is_v4() {
                true => Addr::v4([octets[12], octets[13], octets[14], octets[15]]),
                false => Addr::v6(octets),
            }
        };
        let port = |at: usize| u16::from_be_bytes([self.0[at], self.0[at + 1]]);
        FlowKey {
            src: address(0),
            dst: address(16),
            src_port: port(48),
            dst_port: port(50),
            protocol: from.protocol,
        }
    }
}

fn follow(session: &SessionCell, entry: &Entry, segment: &Segment) -> bool {
    let (own, other) = (
        &session.sides[entry.side()],
        &session.sides[1 - entry.side()],
    );
    let [acked, own_window, own_end] =
        [&own.acked, &own.window, &own.end].map(|it| it.load(Relaxed));
    let [other_acked, window, other_end] =
        [&other.acked, &other.window, &other.end].map(|it| it.load(Relaxed));
    let is_incomplete = entry.0[77] & INCOMPLETE != 0;
    let margin = |window: u32| {
        if is_incomplete {
            window.min(MAX_WINDOW) * 2
        } else {
            0
        }
    };
    let payload = segment.payload_len;
    let last = segment.seq.wrapping_add(payload);
    let ahead = window.max(1) + u32::from(payload == 0);
    let is_sent = is_within(
        last,
        acked,
        window + 2 + margin(window),
        ahead + margin(window),
    );
    let in_flight = match is_before(other_end, other_acked) {
        true => 0,
        false => other_end.wrapping_sub(other_acked),
    };
    let behind = own_window.max(MIN_ACK_RANGE) + margin(own_window);
    let is_acked = is_within(
        segment.ack,
        other_acked,
        behind,
        in_flight + margin(own_window),
    );
    if !is_sent || !is_acked {
        return false;
    }
    if is_before(own_end, last) {
        if acked == own_end {
            own.hole.store(0, Relaxed);
        }
        if is_before(own_end, segment.seq) {
            own.hole.store(1, Relaxed);
        }
        own.end.store(last, Relaxed);
    }
    let agreed = match is_before(other_end, segment.ack) {
        true => other_end,
        false => segment.ack,
    };
    if is_before(other_acked, agreed) {
        other.acked.store(agreed, Relaxed);
    }
    let advertised = u32::from(segment.window) << (entry.0[78] & 15);
    own.window.fetch_max(advertised, Relaxed);
    true
}

fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

fn is_within(number: u32, base: u32, behind: u32, ahead: u32) -> bool {
    let offset = i64::from(number.wrapping_sub(base) as i32);
    (-i64::from(behind)..=i64::from(ahead)).contains(&offset)
}
