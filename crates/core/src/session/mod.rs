//! Sessions: what one is ([`Session`]), where they are kept ([`Table`]), how TCP is followed
//! ([`tcp`]), and when they end ([`Timeouts`]).
//!
//! Memory is the measure: a session, its two index entries and its deadline take about 150 bytes.

pub mod tcp;

mod address_book;
mod hash;
mod holders;
mod index;
mod ranking;
mod room;
mod state;
mod sweep;
mod table;
mod tcp_doubt;
mod tcp_fast;
mod tcp_fresh;
mod tcp_state;
mod tcp_unsure;
mod timeouts;

pub use address_book::{AddressBook, TranslatedAddr};
pub use hash::KeyedHash;
pub(crate) use hash::Last;
pub use holders::{Holdings, SourceLimits};
pub use index::Index;
pub use state::{SessionState, StateCounts};
pub use sweep::{EXPIRED_PER_SWEEP, SLOTS_PER_SWEEP};
pub use table::{InsertError, NoRoom, SessionCounts, SessionId, Table};
pub use tcp_fast::Numbers;
pub use timeouts::Timeouts;

use crate::flow::{Addr, Direction, FlowKey, GroupId, PolicyId, PortId, Protocol};
use crate::time::Tick;
use tcp_unsure::TOLD_EACH;

/// Two flows, one per direction, that belong together, and everything known about them.
///
/// The fields are public for code that fills and shows them, with one rule: once a session is in a
/// [`Table`], the parts of [`Session::key`] must not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Packets seen, by [`Direction`].
    pub packets: [u64; 2],
    /// Bytes of IP seen, by [`Direction`].
    pub bytes: [u64; 2],
    /// Source of the packet that opened the session, as it came in.
    pub src: Addr,
    /// Destination of that packet, as it came in.
    pub dst: Addr,
    /// The state that only some protocols need.
    pub tracker: Tracker,
    /// When a packet was last accepted.
    pub last_seen: Tick,
    /// When the session was opened.
    pub created: Tick,
    /// Source port as it came in; see [`FlowKey`] for ICMP.
    pub src_port: u16,
    /// Destination port as it came in.
    pub dst_port: u16,
    /// Source as it goes out.
    pub nat_src: TranslatedAddr,
    /// Destination as it goes out.
    pub nat_dst: TranslatedAddr,
    /// Source port as it goes out.
    pub nat_src_port: u16,
    /// Destination port as it goes out.
    pub nat_dst_port: u16,
    /// The policy that accepted it.
    pub policy: PolicyId,
    /// Facts about its past.
    pub flags: SessionFlags,
    /// The protocol of both flows.
    pub protocol: Protocol,
    /// The port that packets of [`Direction::Original`] come in by.
    pub in_port: PortId,
    /// The port that they go out by.
    pub out_port: PortId,
    /// The group of virtual addresses that it moves with.
    pub group: GroupId,
}

/// Two cache lines; 2 bytes of it are still free.
const _: () = assert!(size_of::<Session>() == 128);
const _: () = assert!(size_of::<Tracker>() == 32);

impl Session {
    /// An untranslated session, opened at `now` by a packet with `key`.
    pub fn new(key: &FlowKey, now: Tick) -> Session {
        Session {
            packets: [0; 2],
            bytes: [0; 2],
            src: key.src,
            dst: key.dst,
            tracker: Tracker::None,
            last_seen: now,
            created: now,
            src_port: key.src_port,
            dst_port: key.dst_port,
            nat_src: TranslatedAddr::SAME,
            nat_dst: TranslatedAddr::SAME,
            nat_src_port: key.src_port,
            nat_dst_port: key.dst_port,
            policy: PolicyId(0),
            flags: SessionFlags::default(),
            protocol: key.protocol,
            in_port: PortId(0),
            out_port: PortId(0),
            group: GroupId(0),
        }
    }

    /// The key that packets of `direction` have when they come in.
    #[inline]
    pub fn key(&self, direction: Direction, book: &AddressBook) -> FlowKey {
        match direction {
            Direction::Original => self.original(),
            Direction::Reply => self.outgoing(book).reply(),
        }
    }

    /// The key that packets of `direction` have when they go out.
    #[inline]
    pub fn translated(&self, direction: Direction, book: &AddressBook) -> FlowKey {
        match direction {
            Direction::Original => self.outgoing(book),
            Direction::Reply => self.original().reply(),
        }
    }

    /// The ports that packets of `direction` come in and go out by.
    #[inline]
    pub fn ports(&self, direction: Direction) -> (PortId, PortId) {
        match direction {
            Direction::Original => (self.in_port, self.out_port),
            Direction::Reply => (self.out_port, self.in_port),
        }
    }

    /// Whether its source is translated.
    pub fn has_source_nat(&self) -> bool {
        self.nat_src != TranslatedAddr::SAME || self.nat_src_port != self.src_port
    }

    /// Counts a packet of `bytes` bytes of IP that was accepted at `now`.
    #[inline]
    pub fn record(&mut self, direction: Direction, bytes: u32, now: Tick) {
        self.last_seen = self.last_seen.max(now);
        self.packets[direction as usize] += 1;
        self.bytes[direction as usize] += u64::from(bytes);
    }

    /// Notes that the last recorded packet, of `bytes` bytes, has moved TCP's numbers.
    ///
    /// The session becomes notable if it was quiet, and each [`TOLD_EACH`] bytes.
    #[inline]
    pub fn note_data(&mut self, direction: Direction, bytes: u32) {
        if self.is_report_due(direction, bytes) || self.flags.contains(SessionFlags::QUIET) {
            self.flags.set(SessionFlags::NOTABLE);
        }
    }

    /// Whether the last packet that was counted, of `bytes` bytes, has reached a multiple of
    /// [`TOLD_EACH`].
    #[inline]
    pub fn is_report_due(&self, direction: Direction, bytes: u32) -> bool {
        self.bytes[direction as usize] % TOLD_EACH < u64::from(bytes)
    }

    /// Whether it may be dropped first: no answer yet, an incomplete TCP handshake, or a connection
    /// that is over.
    pub fn is_dispensable(&self) -> bool {
        match &self.tracker {
            Tracker::Tcp(tcp) => !tcp.is_alive() || tcp.is_one_sided(),
            _ => !self.flags.contains(SessionFlags::REPLIED),
        }
    }

    /// Whether it is a TCP connection that is alive.
    pub fn is_connection(&self) -> bool {
        matches!(&self.tracker, Tracker::Tcp(tcp) if tcp.is_alive())
    }

    /// Whether it is a connection that this unit follows, and that is not known to be quiet.
    pub(super) fn carries_data(&self) -> bool {
        let silent = SessionFlags(SessionFlags::QUIET.0 | SessionFlags::REMOTE.0);
        !self.flags.intersects(silent) && self.is_connection()
    }

    /// Whether it is past its opening, and no longer counts as half open.
    pub fn is_settled(&self) -> bool {
        match &self.tracker {
            Tracker::Tcp(tcp) => tcp.state() >= tcp::TcpState::Established,
            _ => self.flags.contains(SessionFlags::REPLIED),
        }
    }

    /// Whether both ends have closed it and acknowledged that, so that its ports may be used again.
    pub fn is_over(&self) -> bool {
        match &self.tracker {
            Tracker::Tcp(tcp) => tcp.state() >= tcp::TcpState::TimeWait,
            _ => false,
        }
    }

    fn original(&self) -> FlowKey {
        FlowKey {
            src: self.src,
            dst: self.dst,
            src_port: self.src_port,
            dst_port: self.dst_port,
            protocol: self.protocol,
        }
    }

    fn outgoing(&self, book: &AddressBook) -> FlowKey {
        FlowKey {
            src: book.resolve(self.nat_src, self.src),
            dst: book.resolve(self.nat_dst, self.dst),
            src_port: self.nat_src_port,
            dst_port: self.nat_dst_port,
            protocol: self.protocol,
        }
    }
}

/// The part of a session that depends on its protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracker {
    /// The state of a TCP connection.
    Tcp(tcp::Tracker),
    /// One of the sessions that share an endpoint-independent mapping (RFC 4787, REQ-1).
    Mapped(Links),
    /// Nothing.
    None,
}

/// The neighbours in the list of sessions of one mapping; the list is the translator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// The previous session, or [`Links::END`].
    pub prev: u32,
    /// The next session, or [`Links::END`].
    pub next: u32,
}

impl Links {
    /// No session.
    pub const END: u32 = u32::MAX;
    /// A list of one.
    pub const ALONE: Links = Links {
        prev: Links::END,
        next: Links::END,
    };
}

/// A set of marks on a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionFlags(pub u16);

impl SessionFlags {
    /// A packet of the reply direction was accepted.
    pub const REPLIED: SessionFlags = SessionFlags(1 << 0);
    /// Counted against the half-open limit of its source. Only [`Table`] clears it.
    pub const HALF_OPEN: SessionFlags = SessionFlags(1 << 1);
    /// Picked up in the middle.
    pub const PICKED_UP: SessionFlags = SessionFlags(1 << 2);
    /// Its policy wants its end logged.
    pub const LOG: SessionFlags = SessionFlags(1 << 3);
    /// Another unit has followed it since this one last did.
    pub const REMOTE: SessionFlags = SessionFlags(1 << 4);
    /// Its first packet waits for the peers to have it.
    pub const WAITING: SessionFlags = SessionFlags(1 << 5);
    /// Its destination is an external address of the gateway: its packets come back, to another
    /// session (a hairpin, RFC 4787, REQ-9).
    pub const TURNS_BACK: SessionFlags = SessionFlags(1 << 6);
    /// Its last packet needs the store's attention: the store checks it, and clears the mark.
    pub const NOTABLE: SessionFlags = SessionFlags(1 << 7);
    /// It carries no data, and peers have its numbers or will soon: the next data is notable.
    pub const QUIET: SessionFlags = SessionFlags(1 << 8);
    /// Other units forward some of its packets, so that this one does not see all of them.
    pub const SPREAD: SessionFlags = SessionFlags(1 << 9);
    /// It has a place in the fast path, which may have seen packets that this record does not know.
    pub const OFFLOADED: SessionFlags = SessionFlags(1 << 10);

    /// Whether any mark of `other` is set.
    #[inline]
    pub fn intersects(self, other: SessionFlags) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether all marks of `other` are set.
    #[inline]
    pub fn contains(self, other: SessionFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets the marks of `other`.
    pub fn set(&mut self, other: SessionFlags) {
        self.0 |= other.0;
    }

    /// Clears the marks of `other`.
    pub fn clear(&mut self, other: SessionFlags) {
        self.0 &= !other.0;
    }
}
