//! The ring by which packets come to a busy process past the queues of TUN devices, which it reads
//! without a call of the kernel (`BPF_MAP_TYPE_RINGBUF`, `enter` in `tun.bpf.c`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use tandemgw_core::event::{Offload, PartialChecksum};

use super::mapping::{EntranceCell, TUN_PLACES, map_bytes};
use super::{Unavailable, unavailable};
use crate::os::memory::page_size;

/// Bytes of the ring: 2048 short packets, or 169 long ones.
pub(super) const RING: usize = 1 << 18;

/// Of the length of a record: it is not complete yet, or is none.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// Bytes of a word, by which the ring is read.
const WORD: usize = size_of::<AtomicU32>();
/// Bytes before a record, and of a record before the packet (`struct arrival`).
const HEADER: usize = 8;
const ARRIVAL: usize = 12;
/// Of its flags.
const VERIFIED: u8 = 1;
const UNFINISHED: u8 = 2;

/// Whether datagrams of a TUN device come by the ring (`enum gate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Gate {
    /// They do not.
    Closed = 0,
    /// They do.
    Open = 1,
    /// They no longer do, since there is no room.
    Full = 2,
    /// They do, and those that find no room are lost.
    Opening = 3,
}

/// The process's end of the ring.
pub struct Arrivals {
    fd: OwnedFd,
    entrances: &'static [EntranceCell],
    /// What the process has read, in bytes since the ring was made.
    consumer: &'static AtomicUsize,
    /// What there is, in bytes since then.
    producer: &'static AtomicUsize,
    /// The ring, twice, so that no record is broken in two.
    data: &'static [AtomicU32],
    /// Where to read on.
    at: usize,
}

/// A place in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub(in crate::os) usize);

/// A packet in the ring.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// The number of the TUN device that it was on its way to.
    pub tun: u32,
    /// From the IP header on.
    pub packet: &'a [u8],
    /// What the kernel knows of it.
    pub offload: Offload,
}

impl Arrivals {
    /// Maps the ring for as long as the process lives.
    pub(super) fn new(
        fd: OwnedFd,
        entrances: &'static [EntranceCell],
    ) -> Result<Arrivals, Unavailable> {
        let page = page_size();
        let mapping = unavailable("mapping the ring");
        let map = || {
            let positions = map_bytes(&fd, libc::PROT_READ | libc::PROT_WRITE, page, 0)?;
            let rest = map_bytes(&fd, libc::PROT_READ, page + 2 * RING, page)?;
            io::Result::Ok((positions, rest))
        };
        let (consumer, producer) = map().map_err(mapping)?;
        // SAFETY: each begins with a position, which is an `unsigned long` that is read and written
        // atomically; they are page-aligned and never unmapped. The ring follows after a page.
        let (consumer, data, producer) = unsafe {
            let data = producer.add(page).cast().as_ptr();
            let data = slice::from_raw_parts(data, 2 * RING / WORD);
            (consumer.cast().as_ref(), data, producer.cast().as_ref())
        };
        Ok(Arrivals {
            fd,
            entrances,
            consumer,
            producer,
            data,
            at: 0,
        })
    }

    /// Datagrams that are on their way to a TUN device come by the ring from now on. Of devices
    /// whose numbers differ by a multiple of 1024, only those of the one that was opened last.
    /// Until [`fully_open`](Self::fully_open), none takes the queue for want of room.
    pub fn open(&self, tun: u32) {
        let entrance = self.entrance(tun);
        entrance.tun.store(tun, Ordering::Release);
        let opening = Gate::Opening as u32;
        entrance.gate.store(opening, Ordering::Release);
    }

    /// What was in the queue of the device before has been read.
    pub fn fully_open(&self, tun: u32) {
        if self.gate(tun) == Gate::Opening {
            let open = Gate::Open as u32;
            self.entrance(tun).gate.store(open, Ordering::Release);
        }
    }

    /// Whether they still do.
    pub fn gate(&self, tun: u32) -> Gate {
        let entrance = self.entrance(tun);
        match entrance.gate.load(Ordering::Acquire) {
            _ if entrance.tun.load(Ordering::Relaxed) != tun => Gate::Closed,
            1 => Gate::Open,
            2 => Gate::Full,
            3 => Gate::Opening,
            _ => Gate::Closed,
        }
    }

    /// They no longer do. If [`is_empty`](Self::is_empty) holds afterwards, whatever still comes
    /// makes the descriptor readable.
    pub fn close(&self, tun: u32) {
        let entrance = self.entrance(tun);
        if entrance.tun.load(Ordering::Relaxed) == tun {
            entrance.gate.store(Gate::Closed as u32, Ordering::SeqCst);
        }
        // Before the ring is looked at: the program looks at the gate after it has put something
        // in.
        fence(Ordering::SeqCst);
    }

    fn entrance(&self, tun: u32) -> &EntranceCell {
        &self.entrances[tun as usize % TUN_PLACES]
    }

    /// What is in the ring now ends here; compare with [`has_passed`](Self::has_passed).
    pub fn end(&self) -> Mark {
        Mark(self.producer.load(Ordering::Acquire))
    }

    /// Whether all has been taken that was in the ring at some time.
    pub fn has_passed(&self, end: Mark) -> bool {
        self.at.wrapping_sub(end.0).cast_signed() >= 0
    }

    /// Whether nothing is in the ring, be it complete or not.
    pub fn is_empty(&self) -> bool {
        self.producer.load(Ordering::Acquire) == self.at
    }

    /// Whether the next packet has been copied whole; only if the ring is not empty.
    pub fn is_complete(&self) -> bool {
        self.header() & BUSY == 0
    }

    fn header(&self) -> u32 {
        self.data[self.at % RING / WORD].load(Ordering::Acquire)
    }

    /// Hands the next packet to `take`; returns false if there is none. Its place is free after
    /// [`release`](Self::release).
    pub fn next(&mut self, take: impl FnOnce(Arrival<'_>)) -> bool {
        while !self.is_empty() {
            let place = &self.data[self.at % RING / WORD..];
            let length = self.header();
            if length & BUSY != 0 {
                return false;
            }
            let bytes = (length & !DISCARDED) as usize;
            let whole = (HEADER + bytes).next_multiple_of(8);
            self.at = self.at.wrapping_add(whole);
            if length & DISCARDED != 0 {
                continue;
            }
            let record = &place[HEADER / WORD..][..bytes.div_ceil(WORD)];
            // SAFETY: the words hold so many bytes. Nobody changes a complete record until it is
            // released, which needs `self`.
            let record = unsafe { slice::from_raw_parts(record.as_ptr().cast(), bytes) };
            if let Some(arrival) = Arrival::of(record) {
                take(arrival);
                return true;
            }
        }
        false
    }

    /// The places of all packets that were taken are free.
    pub fn release(&self) {
        self.consumer.store(self.at, Ordering::Release);
    }
}

impl AsRawFd for Arrivals {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Arrival<'_> {
    /// None if it is not as the program makes it.
    fn of(record: &[u8]) -> Option<Arrival<'_>> {
        let (head, bytes) = record.split_first_chunk::<ARRIVAL>()?;
        let [t0, t1, t2, t3, l0, l1, flags, _, s0, s1, f0, f1] = *head;
        let length = u16::from_ne_bytes([l0, l1]);
        let partial_checksum = (flags & UNFINISHED != 0).then(|| PartialChecksum {
            start: u16::from_ne_bytes([s0, s1]),
            field: u16::from_ne_bytes([f0, f1]),
        });
        Some(Arrival {
            tun: u32::from_ne_bytes([t0, t1, t2, t3]),
            packet: bytes.get(..usize::from(length))?,
            offload: Offload {
                partial_checksum,
                checksum_verified: flags & VERIFIED != 0,
                segment_size: 0,
            },
        })
    }
}
