//! The program of the fast path (`src/os/fast_path/program.bpf.c`) in Rust, for tests and the
//! simulator, which send no urgent data. `tests/fast_path.rs` compares both in the kernel's test
//! runs.

use std::sync::atomic::Ordering::Relaxed;

use tandemgw_core::event::Offload;
use tandemgw_core::fast_path::{Flow, Memory, SessionCell};
use tandemgw_core::flow::{Addr, Direction, FlowKey, Protocol};
use tandemgw_core::packet::{self, PacketKind, TcpFlags};
use tandemgw_core::session::tcp::Segment;
use tandemgw_core::time::Time;

const MIN_ACK_RANGE: u32 = 66_000;
const MAX_WINDOW: u32 = 1 << 29;

/// A program.
pub struct Program {
    /// What it shares with the gateway.
    pub memory: Memory,
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
    /// Forwards an IP packet that comes in by an interface; none if it goes on to the process.
    pub fn run(&self, interface: u32, bytes: &[u8], now: Time) -> Option<Forwarded> {
        let offload = Offload::default();
        if !is_ordinary(bytes) {
            return None;
        }
        let parsed = packet::parse(bytes, offload).ok()?;
        let key = parsed.key;
        let (place, direction) = self.memory.find(&Flow { key, interface }.words())?;
        let session = &self.memory.sessions[place as usize];
        let group = &self.memory.groups[usize::from(session.group().0)];
        let in_force = session.is_in_force()
            && group.epoch() == session.epoch()
            && group.lease.load(Relaxed) >= now.as_nanos();
        if !in_force || bytes.len() > session.mtu(direction) as usize {
            return None;
        }
        if let PacketKind::Tcp(segment) = &parsed.kind {
            let is_plain = [TcpFlags::SYN, TcpFlags::FIN, TcpFlags::RST]
                .iter()
                .all(|flag| !segment.flags.contains(*flag));
            if !is_plain || !segment.flags.contains(TcpFlags::ACK) {
                return None;
            }
            if !follow(session, direction, segment) {
                return None;
            }
        }
        let mut out = bytes.to_vec();
        packet::take_hop_limit(&mut out, parsed.family);
        let to = leaving(session, direction, key.protocol);
        packet::translate_with_hop(&mut out, &parsed, offload, &to);
        packet::take_hop_limit(&mut out, parsed.family);
        session.last.store(now.as_nanos(), Relaxed);
        let side = &session.sides[direction as usize];
        side.packets.fetch_add(1, Relaxed);
        side.bytes.fetch_add(bytes.len() as u64, Relaxed);
        Some(Forwarded {
            bytes: out,
            interface: session.leaves_by(direction),
            group: session.group().0,
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

/// The key with which packets of `direction` leave, in a session of this protocol.
fn leaving(session: &SessionCell, direction: Direction, protocol: Protocol) -> FlowKey {
    let flow = session.flow(direction.flip());
    let address = |words: &[u32]| {
        let octets: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut all = [0; 16];
        all.copy_from_slice(&octets);
        match flow[10].to_ne_bytes()[1] {
            4 => Addr::v4([all[12], all[13], all[14], all[15]]),
            _ => Addr::v6(all),
        }
    };
    let [a, b, c, d] = flow[8].to_ne_bytes();
    let flow = FlowKey {
        src: address(&flow[..4]),
        dst: address(&flow[4..8]),
        src_port: u16::from_be_bytes([a, b]),
        dst_port: u16::from_be_bytes([c, d]),
        protocol,
    };
    flow.reply()
}

fn follow(session: &SessionCell, direction: Direction, segment: &Segment) -> bool {
    let [own, other] = [direction, direction.flip()].map(|it| &session.sides[it as usize]);
    let hole = &session.holes[direction as usize];
    let [acked, own_window, own_end] =
        [&own.acked, &own.window, &own.end].map(|it| it.load(Relaxed));
    let [other_acked, window, other_end] =
        [&other.acked, &other.window, &other.end].map(|it| it.load(Relaxed));
    let is_incomplete = session.is_incomplete();
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
            hole.store(0, Relaxed);
        }
        if is_before(own_end, segment.seq) {
            hole.store(1, Relaxed);
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
    let advertised = u32::from(segment.window) << (session.shift(direction) & 15);
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
