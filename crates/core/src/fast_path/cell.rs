//! The place of a session: what the gateway says, and what the program has seen.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::flow::{Addr, Direction, Family, FlowKey, GroupId};
use crate::packet::checksum::Change;
use crate::session::Numbers;
use crate::session::tcp::is_before;
use crate::time::Time;

/// The length of a [`Flow`], as the program reads it.
pub const FLOW_WORDS: usize = 12;
/// The length of an [`Entry`], as the program reads it.
const ENTRY_WORDS: usize = 39;

/// Where parts of an [`Entry`] are.
const EPOCH: usize = 0;
const KIND: usize = 1;
const SUMS: usize = 2;
const MTUS: usize = 4;
const FLOWS: usize = 7;
const NEXT_HOPS: usize = FLOWS + 2 * FLOW_WORDS;

/// One session: `struct session` of `program.h`.
///
/// The first 64 bytes, a line of the cache, are what the program writes; the rest is the gateway's.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct SessionCell {
    /// By [`Direction`].
    pub sides: [SideCell; 2],
    /// Of TCP, by [`Direction`]: not 0 if something may be missing between what is acknowledged and
    /// the end.
    pub holes: [AtomicU32; 2],
    /// The [`Time`] of the last packet, in nanoseconds.
    pub last: AtomicU64,
    /// 0 if nothing is in force; otherwise it changes with each session that has this place.
    pub serial: AtomicU32,
    entry: [AtomicU32; ENTRY_WORDS],
}

/// What the program has seen of one end of a session.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SideCell {
    /// Bytes of IP that it has sent. The gateway takes them out by a swap, so none is counted
    /// twice.
    pub bytes: AtomicU64,
    /// Its packets. The gateway takes them out long before there are 2^32.
    pub packets: AtomicU32,
    /// Of TCP: the number after its last byte.
    pub end: AtomicU32,
    /// Of TCP: what the other end has acknowledged.
    pub acked: AtomicU32,
    /// Of TCP: the largest window that it has advertised, in bytes.
    pub window: AtomicU32,
}

const _: () = assert!(size_of::<SessionCell>() == 256);
const _: () = assert!(std::mem::offset_of!(SessionCell, serial) == 64);

impl Default for SessionCell {
    fn default() -> SessionCell {
        SessionCell {
            sides: Default::default(),
            holes: Default::default(),
            last: AtomicU64::default(),
            serial: AtomicU32::default(),
            entry: std::array::from_fn(|_| AtomicU32::default()),
        }
    }
}

/// Packets that come in by an interface with this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The addresses and ports of the packet as it comes in.
    pub key: FlowKey,
    /// The interface that it comes in by.
    pub interface: u32,
}

impl Flow {
    /// As the program reads it: `struct flow` of `program.h`.
    pub fn words(&self) -> [u32; FLOW_WORDS] {
        let key = &self.key;
        let [a, b, c, d] = words_of(&key.src);
        let [e, f, g, h] = words_of(&key.dst);
        let family = match key.src.family() {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        let ports = halves(key.src_port.to_be_bytes(), key.dst_port.to_be_bytes());
        let kind = u32::from_ne_bytes([key.protocol.0, family, 0, 0]);
        [a, b, c, d, e, f, g, h, ports, self.interface, kind, 0]
    }
}

/// Where packets of one direction go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What they look like when they come in. Those of the other direction leave with the reverse
    /// of its key, by its interface.
    pub flow: Flow,
    /// The neighbour that they go to, of the same family.
    pub next_hop: Addr,
    /// The longest packet that may leave, in bytes of IP; longer ones are the gateway's.
    pub mtu: u32,
}

/// What becomes of the packets of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// By [`Direction`].
    pub ways: [Way; 2],
    /// The group that the session moves with.
    pub group: GroupId,
    /// The epoch in which it is in force.
    pub epoch: u32,
    /// Of TCP, by [`Direction`]: the shift of the windows that the sender advertises (RFC 7323,
    /// section 2.3).
    pub shifts: [u8; 2],
    /// Of TCP: part of the connection's history is missing, so windows are wider.
    pub is_incomplete: bool,
}

impl Entry {
    const PORTS: u8 = 1;
    const INCOMPLETE: u8 = 2;

    /// As the program reads it.
    fn words(&self) -> [u32; ENTRY_WORDS] {
        let mut words = [0; ENTRY_WORDS];
        words[EPOCH] = self.epoch;
        for (direction, way) in self.ways.iter().enumerate() {
            words[SUMS + direction] = sums(&way.flow.key, &self.leaving(direction));
            words[MTUS + direction] = way.mtu;
            let flow = FLOWS + direction * FLOW_WORDS;
            words[flow..flow + FLOW_WORDS].copy_from_slice(&way.flow.words());
            let hop = NEXT_HOPS + direction * 4;
            words[hop..hop + 4].copy_from_slice(&words_of(&way.next_hop));
        }
        let (from, to) = (&self.ways[0].flow.key, self.leaving(0));
        let mut flags = 0;
        // A change may be without effect on sums: 0xffff and 0 are the same there.
        if (from.src_port, from.dst_port) != (to.src_port, to.dst_port) {
            flags |= Self::PORTS;
        }
        if self.is_incomplete {
            flags |= Self::INCOMPLETE;
        }
        let [shift, other] = self.shifts;
        words[KIND] = u32::from_ne_bytes([self.group.0, flags, shift, other]);
        words
    }

    /// The key with which packets of a direction leave.
    fn leaving(&self, direction: usize) -> FlowKey {
        self.ways[1 - direction].flow.key.reply()
    }
}

fn sums(from: &FlowKey, to: &FlowKey) -> u32 {
    let mut addresses = Change::default();
    addresses.replace(*from.src.octets(), *to.src.octets());
    addresses.replace(*from.dst.octets(), *to.dst.octets());
    let mut ports = Change::default();
    ports.replace(from.src_port.to_be_bytes(), to.src_port.to_be_bytes());
    ports.replace(from.dst_port.to_be_bytes(), to.dst_port.to_be_bytes());
    halves(addresses.sum().to_be_bytes(), ports.sum().to_be_bytes())
}

fn words_of(addr: &Addr) -> [u32; 4] {
    let octets = addr.octets();
    std::array::from_fn(|at| {
        let word = [0, 1, 2, 3].map(|byte| octets[at * 4 + byte]);
        u32::from_ne_bytes(word)
    })
}

fn halves([a, b]: [u8; 2], [c, d]: [u8; 2]) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

impl SessionCell {
    /// No session has this serial.
    const NO_SERIAL: u32 = 0;

    /// Begins to follow a session, of which these numbers are known at `now`.
    pub(super) fn begin(&self, now: Time, serial: u32, numbers: &Numbers, entry: &Entry) {
        self.last.store(now.as_nanos(), Ordering::Relaxed);
        for (s, side) in self.sides.iter().enumerate() {
            side.packets.store(0, Ordering::Relaxed);
            side.bytes.store(0, Ordering::Relaxed);
            side.end.store(numbers.end[s], Ordering::Relaxed);
            side.acked.store(numbers.acked[s], Ordering::Relaxed);
            side.window.store(numbers.window[s], Ordering::Relaxed);
            self.holes[s].store(u32::from(numbers.hole[s]), Ordering::Relaxed);
        }
        for (place, word) in self.entry.iter().zip(entry.words()) {
            place.store(word, Ordering::Relaxed);
        }
        self.serial.store(serial, Ordering::SeqCst);
    }

    /// From this instant nothing of the session is in force.
    pub fn stop(&self) {
        self.serial.store(Self::NO_SERIAL, Ordering::SeqCst);
    }

    /// Whether the session has not been stopped.
    pub fn is_in_force(&self) -> bool {
        self.serial.load(Ordering::Relaxed) != Self::NO_SERIAL
    }

    fn word(&self, at: usize) -> u32 {
        self.entry[at].load(Ordering::Relaxed)
    }

    /// The flow of a direction, as [`Flow::words`] has it.
    pub fn flow(&self, direction: Direction) -> [u32; FLOW_WORDS] {
        let from = FLOWS + direction as usize * FLOW_WORDS;
        std::array::from_fn(|at| self.word(from + at))
    }

    /// Whether packets of the original direction have this key.
    pub fn is_of(&self, key: &FlowKey) -> bool {
        let known = self.flow(Direction::Original);
        let flow = Flow {
            key: *key,
            interface: known[9],
        };
        flow.words() == known
    }

    /// Whether packets go where this entry says, for the same group and in the same epoch. How they
    /// are judged may differ.
    pub fn leads_like(&self, entry: &Entry) -> bool {
        let leads_like = |direction: Direction| {
            let way = &entry.ways[direction as usize];
            let hop = NEXT_HOPS + direction as usize * 4;
            self.mtu(direction) == way.mtu
                && self.flow(direction) == way.flow.words()
                && words_of(&way.next_hop) == [0, 1, 2, 3].map(|at| self.word(hop + at))
        };
        self.group() == entry.group
            && self.epoch() == entry.epoch
            && Direction::ALL.into_iter().all(leads_like)
    }

    /// The group that the session moves with.
    pub fn group(&self) -> GroupId {
        GroupId(self.word(KIND).to_ne_bytes()[0])
    }

    /// The epoch in which the session is in force.
    pub fn epoch(&self) -> u32 {
        self.word(EPOCH)
    }

    /// Whether windows are wider, since part of the connection's history is missing.
    pub fn is_incomplete(&self) -> bool {
        self.word(KIND).to_ne_bytes()[1] & Entry::INCOMPLETE != 0
    }

    /// The shift of the windows that the sender of `direction` advertises.
    pub fn shift(&self, direction: Direction) -> u8 {
        self.word(KIND).to_ne_bytes()[2 + direction as usize]
    }

    /// The longest packet of `direction` that may leave.
    pub fn mtu(&self, direction: Direction) -> u32 {
        self.word(MTUS + direction as usize)
    }

    /// The interface by which packets of `direction` leave.
    pub fn leaves_by(&self, direction: Direction) -> u32 {
        self.flow(direction.flip())[9]
    }

    /// The numbers of a connection, as far as the program has seen it.
    pub fn numbers(&self) -> Numbers {
        let all = |of: fn(&SideCell) -> &AtomicU32| {
            [&self.sides[0], &self.sides[1]].map(|side| of(side).load(Ordering::Relaxed))
        };
        Numbers {
            end: all(|side| &side.end),
            acked: all(|side| &side.acked),
            window: all(|side| &side.window),
            hole: [0, 1].map(|s: usize| self.holes[s].load(Ordering::Relaxed) != 0),
        }
    }

    /// The gateway has handled segments itself: brings the numbers forward to these. Otherwise the
    /// program would leave all that follow to the gateway too.
    pub fn advance(&self, numbers: &Numbers) {
        for (s, side) in self.sides.iter().enumerate() {
            let is_new = forward(&side.end, numbers.end[s], is_before);
            forward(&side.acked, numbers.acked[s], is_before);
            forward(&side.window, numbers.window[s], |old, new| old < new);
            if is_new {
                self.holes[s].store(u32::from(numbers.hole[s]), Ordering::Relaxed);
            }
        }
    }

    /// Packets and bytes of a direction that were not taken before.
    pub fn take(&self, direction: Direction) -> (u64, u64) {
        let side = &self.sides[direction as usize];
        // Nothing is written where nothing has happened: the program may use that cache line.
        if side.packets.load(Ordering::Relaxed) == 0 {
            return (0, 0);
        }
        let packets = side.packets.swap(0, Ordering::Relaxed);
        (u64::from(packets), side.bytes.swap(0, Ordering::Relaxed))
    }

    /// The same, without taking them.
    pub fn peek(&self, direction: Direction) -> (u64, u64) {
        let side = &self.sides[direction as usize];
        let packets = side.packets.load(Ordering::Relaxed);
        (u64::from(packets), side.bytes.load(Ordering::Relaxed))
    }

    /// When the program forwarded the last packet.
    pub fn last(&self) -> Time {
        Time::from_nanos(self.last.load(Ordering::Relaxed))
    }
}

/// Stores a number unless the one there is later, which the program may store meanwhile. Returns
/// whether it was stored.
fn forward(cell: &AtomicU32, new: u32, is_earlier: fn(u32, u32) -> bool) -> bool {
    let order = Ordering::Relaxed;
    let stored = cell.fetch_update(order, order, |old| is_earlier(old, new).then_some(new));
    stored.is_ok()
}
