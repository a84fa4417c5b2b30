//! The fast path: a program in the kernel forwards packets of the sessions that the gateway has
//! entered there (`src/os/fast_path`). Here is what both share: the memory, and the entries.
//!
//! An entry is in force only while three numbers agree with it: the [epoch](GroupCell::epoch) and
//! the [lease](GroupCell::lease) of its group, and the [serial](SessionCell::serial) of its
//! session. The gateway writes them with single stores, so what it takes back is not forwarded from
//! that instant on, whatever else has to be cleaned up later.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::flow::{Addr, Direction, Family, FlowKey, GroupId};
use crate::packet::checksum::Change as SumChange;
use crate::session::Numbers;
use crate::session::tcp::is_before;
use crate::time::Time;

/// What the program and the gateway share. The shell maps it; it lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// By [`GroupId`].
    pub groups: &'static [GroupCell],
    /// By the number in an [`Entry`].
    pub sessions: &'static [SessionCell],
}

impl Memory {
    /// Memory of its own, that no program reads: for tests and simulations.
    pub fn unshared(groups: usize, sessions: usize) -> Memory {
        Memory {
            groups: (0..groups)
                .map(|_| GroupCell::default())
                .collect::<Vec<_>>()
                .leak(),
            sessions: (0..sessions)
                .map(|_| SessionCell::default())
                .collect::<Vec<_>>()
                .leak(),
        }
    }
}

/// Whether a group's entries are in force. Only the gateway writes it.
#[repr(C)]
#[derive(Debug, Default)]
pub struct GroupCell {
    /// The [`Time`], in nanoseconds, after which nothing is forwarded.
    pub lease: AtomicU64,
    /// Entries with another epoch are not in force.
    pub epoch: AtomicU32,
    padding: u32,
}

/// What the program has seen of a session.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SessionCell {
    /// The [`Time`] of the last packet, in nanoseconds.
    pub last: AtomicU64,
    /// Entries with another serial are not in force. Only the gateway writes it.
    pub serial: AtomicU32,
    padding: u32,
    /// By [`Direction`].
    pub sides: [SideCell; 2],
}

/// What the program has seen of one end of a session.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SideCell {
    /// Packets that it has sent. The gateway takes them out by a swap, so none is counted twice.
    pub packets: AtomicU64,
    /// Their bytes of IP.
    pub bytes: AtomicU64,
    /// Of TCP: the number after its last byte.
    pub end: AtomicU32,
    /// Of TCP: what the other end has acknowledged.
    pub acked: AtomicU32,
    /// Of TCP: the largest window that it has advertised, in bytes.
    pub window: AtomicU32,
    /// Of TCP: not 0 if something may be missing between what is acknowledged and the end.
    pub hole: AtomicU32,
}

impl GroupCell {
    /// From this instant none of the entries made so far is in force. Returns the epoch of those to
    /// come.
    pub fn next_epoch(&self) -> u32 {
        self.epoch.fetch_add(1, Ordering::SeqCst).wrapping_add(1)
    }

    /// The epoch of entries made now.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Entries may be in force until `until`.
    pub fn lease(&self, until: Time) {
        self.lease.store(until.as_nanos(), Ordering::SeqCst);
    }
}

impl SessionCell {
    /// No entry has this serial.
    pub const NO_SERIAL: u32 = 0;

    /// Begins to follow a session, of which these numbers are known at `now`. The entries come
    /// afterwards.
    pub fn begin(&self, now: Time, serial: u32, numbers: &Numbers) {
        self.last.store(now.as_nanos(), Ordering::Relaxed);
        for (s, side) in self.sides.iter().enumerate() {
            side.packets.store(0, Ordering::Relaxed);
            side.bytes.store(0, Ordering::Relaxed);
            side.end.store(numbers.end[s], Ordering::Relaxed);
            side.acked.store(numbers.acked[s], Ordering::Relaxed);
            side.window.store(numbers.window[s], Ordering::Relaxed);
            side.hole
                .store(u32::from(numbers.hole[s]), Ordering::Relaxed);
        }
        self.serial.store(serial, Ordering::SeqCst);
    }

    /// From this instant the session's entries are not in force.
    pub fn stop(&self) {
        self.serial.store(Self::NO_SERIAL, Ordering::SeqCst);
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
            hole: all(|side| &side.hole).map(|hole| hole != 0),
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
                side.hole
                    .store(u32::from(numbers.hole[s]), Ordering::Relaxed);
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
        (packets, side.bytes.swap(0, Ordering::Relaxed))
    }

    /// The same, without taking them.
    pub fn peek(&self, direction: Direction) -> (u64, u64) {
        let side = &self.sides[direction as usize];
        let [packets, bytes] = [&side.packets, &side.bytes];
        (
            packets.load(Ordering::Relaxed),
            bytes.load(Ordering::Relaxed),
        )
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

const _: () = assert!(size_of::<GroupCell>() == 16);
const _: () = assert!(size_of::<SessionCell>() == 80);

/// Bytes of an encoded [`Flow`].
pub const FLOW_LEN: usize = 44;
/// Bytes of an encoded [`Entry`].
pub const ENTRY_LEN: usize = 80;

/// Which packets an entry is for: those that come in by an interface with this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The addresses and ports of the packet as it comes in.
    pub key: FlowKey,
    /// The interface that it comes in by.
    pub interface: u32,
}

impl Flow {
    /// As the program reads it: `struct flow` of `program.h`.
    pub fn encode(&self) -> [u8; FLOW_LEN] {
        let mut out = Writer::<FLOW_LEN>::new();
        out.put(self.key.src.octets());
        out.put(self.key.dst.octets());
        out.put(&self.key.src_port.to_be_bytes());
        out.put(&self.key.dst_port.to_be_bytes());
        out.put(&self.interface.to_ne_bytes());
        let family = match self.key.src.family() {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        out.put(&[self.key.protocol.0, family, 0, 0]);
        out.bytes
    }
}

/// What becomes of the packets of a [`Flow`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The addresses and ports with which the packet leaves.
    pub to: FlowKey,
    /// The neighbour that it goes to, of the same family.
    pub next_hop: Addr,
    /// The interface that it leaves by.
    pub interface: u32,
    /// The longest packet that may leave by it, in bytes of IP; longer ones are the gateway's.
    pub mtu: u32,
    /// The group that the session moves with.
    pub group: GroupId,
    /// The epoch in which it is in force.
    pub epoch: u32,
    /// The place of its session in [`Memory::sessions`].
    pub session: u32,
    /// The serial with which it is in force.
    pub serial: u32,
    /// The direction of the packets in the session.
    pub direction: Direction,
    /// Of TCP: the shift of the windows that the sender advertises (RFC 7323, section 2.3).
    pub shift: u8,
    /// Of TCP: part of the connection's history is missing, so windows are wider.
    pub is_incomplete: bool,
}

impl Entry {
    const REPLY: u8 = 1;
    const PORTS: u8 = 2;
    const INCOMPLETE: u8 = 4;

    /// As the program reads it, for packets with the key `from`: `struct action` of `program.h`.
    pub fn encode(&self, from: &FlowKey) -> [u8; ENTRY_LEN] {
        let mut addresses = SumChange::default();
        addresses.replace(*from.src.octets(), *self.to.src.octets());
        addresses.replace(*from.dst.octets(), *self.to.dst.octets());
        let mut ports = SumChange::default();
        let old_ports = [from.src_port, from.dst_port];
        let new_ports = [self.to.src_port, self.to.dst_port];
        for (old, new) in old_ports.into_iter().zip(new_ports) {
            ports.replace(old.to_be_bytes(), new.to_be_bytes());
        }
        let mut flags = 0;
        for (flag, is_set) in [
            (Self::REPLY, self.direction == Direction::Reply),
            // A change may be without effect on sums: 0xffff and 0 are the same there.
            (Self::PORTS, new_ports != old_ports),
            (Self::INCOMPLETE, self.is_incomplete),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let mut out = Writer::<ENTRY_LEN>::new();
        out.put(self.to.src.octets());
        out.put(self.to.dst.octets());
        out.put(self.next_hop.octets());
        out.put(&self.to.src_port.to_be_bytes());
        out.put(&self.to.dst_port.to_be_bytes());
        out.put(&addresses.sum().to_be_bytes());
        out.put(&ports.sum().to_be_bytes());
        for number in [
            self.interface,
            self.mtu,
            self.epoch,
            self.session,
            self.serial,
        ] {
            out.put(&number.to_ne_bytes());
        }
        out.put(&[self.group.0, flags, self.shift, 0]);
        out.bytes
    }
}

/// A change of the entries, for the shell to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Adds an entry, or replaces one of the same flow.
    Insert {
        /// An encoded [`Flow`].
        flow: [u8; FLOW_LEN],
        /// An encoded [`Entry`].
        entry: [u8; ENTRY_LEN],
    },
    /// Removes an entry, if there is one; it is out of force already.
    Remove {
        /// An encoded [`Flow`].
        flow: [u8; FLOW_LEN],
    },
}

/// Fills an array from its start.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Writer<N> {
        Writer {
            bytes: [0; N],
            at: 0,
        }
    }

    fn put(&mut self, part: &[u8]) {
        let end = self.at + part.len();
        if let Some(place) = self.bytes.get_mut(self.at..end) {
            place.copy_from_slice(part);
        }
        self.at = end;
    }
}
