//! The memory that the program and the process share.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tandemgw_core::fast_path::{Bucket, GroupCell, Secret, SessionCell};

use super::{Unavailable, bpf, unavailable};

/// Why the program leaves a packet to the process, in the order of `enum why`.
pub(super) const REASONS: [&str; 7] = [
    "no-entry",
    "not-in-force",
    "flags",
    "window",
    "too-big",
    "unusual",
    "lost",
];

/// How often, by reason.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts(pub(super) &'static [AtomicU64]);

impl Counts {
    pub(super) fn read(self) -> [(&'static str, u64); REASONS.len()] {
        std::array::from_fn(|at| (REASONS[at], self.0[at].load(Ordering::Relaxed)))
    }
}

/// What the program has forwarded, by the interface that it came in by (`TAKEN_PLACE`), and by that
/// which it left by (`GIVEN_PLACE`); and what has left by exits (`LEFT_PLACE`).
#[derive(Clone, Copy, Debug)]
pub struct Taken(pub(super) &'static [AtomicU64]);

/// The TUN devices whose packets may leave by the port at once, past the stack of the kernel: by
/// their numbers (`EXITS` in `program.h`).
#[derive(Clone, Copy, Debug)]
pub struct Exits(pub(super) &'static [ExitCell]);

/// One of them (`struct exit`).
#[derive(Debug)]
#[repr(C)]
pub(super) struct ExitCell {
    pair: AtomicU64,
    longest: AtomicU32,
    zero: AtomicU32,
}

/// Whether datagrams of a TUN device come to the process by the ring (`struct entrance`).
#[derive(Debug)]
#[repr(C)]
pub(super) struct EntranceCell {
    pub(super) tun: AtomicU32,
    pub(super) gate: AtomicU32,
}

/// How much the program has forwarded since some time. Only differences of it mean something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TakenCount(u64);

/// How many places for TUN devices there are.
pub(super) const TUN_PLACES: usize = 1024;

const CPUS: usize = 16;
const INTERFACES: usize = 1024;

/// How many places for counts there are.
pub(super) const TAKEN_PLACES: usize = 4 * REGION;

/// Places of the same kind: those of what came in are the first.
const REGION: usize = CPUS * INTERFACES * 2;
/// Where those begin of what left.
const GIVEN: usize = REGION;
/// Where those begin of what left by the exit of a TUN device.
const LEFT: usize = 2 * REGION;
/// Where those begin of what came to the process by the ring.
const ENTERED: usize = 3 * REGION;

impl Exits {
    /// From now on packets of at most so many bytes that are written to a TUN device leave by an
    /// interface at once, if the kernel would send them there. Of devices whose numbers differ by a
    /// multiple of 1024, only for the one that was opened last.
    pub fn open(self, tun: u32, interface: u32, longest: u32) {
        let pair = u64::from(tun) << 32 | u64::from(interface);
        let cell = &self.0[tun as usize % TUN_PLACES];
        cell.longest.store(longest, Ordering::Release);
        cell.pair.store(pair, Ordering::Release);
    }

    /// They go through the stack again.
    pub fn close(self, tun: u32) {
        let cell = &self.0[tun as usize % TUN_PLACES];
        if cell.pair.load(Ordering::Relaxed) >> 32 == u64::from(tun) {
            cell.pair.store(0, Ordering::Release);
        }
    }
}

impl Taken {
    /// By family, IPv4 first. Interfaces whose numbers differ by a multiple of 1024 share a count.
    pub fn of(self, interface: u32) -> [TakenCount; 2] {
        [0, 1].map(|family| TakenCount(self.sum(interface, family)))
    }

    /// What has left by an interface, of both families.
    pub fn given(self, interface: u32) -> TakenCount {
        let [v4, v6] = [0, 1].map(|family| self.sum(interface, GIVEN + family));
        TakenCount(v4.wrapping_add(v6))
    }

    /// By family: what has left by the exit of a TUN device.
    pub fn left(self, tun: u32) -> [TakenCount; 2] {
        [0, 1].map(|family| TakenCount(self.sum(tun, LEFT + family)))
    }

    /// By family: what has come to the process past the queue of a TUN device.
    pub fn entered(self, tun: u32) -> [TakenCount; 2] {
        [0, 1].map(|family| TakenCount(self.sum(tun, ENTERED + family)))
    }

    fn sum(self, interface: u32, from: usize) -> u64 {
        let interface = interface as usize % INTERFACES;
        let places = (0..CPUS).map(|cpu| from + (cpu * INTERFACES + interface) * 2);
        let counts = places.map(|place| self.0[place].load(Ordering::Relaxed));
        counts.fold(0, u64::wrapping_add)
    }
}

impl TakenCount {
    /// Packets since then as the kernel hands them on: several of the wire may be one. Right up to
    /// 4 G of either.
    pub fn packets_since(self, before: TakenCount) -> u64 {
        self.0.wrapping_sub(before.0) >> 32
    }

    /// Packets of the wire since then.
    pub fn segments_since(self, before: TakenCount) -> u64 {
        self.0.wrapping_sub(before.0) & 0xffff_ffff
    }
}

/// An array of the kernel that is mapped for as long as the process lives.
///
/// # Errors
/// What could not be done, for an operator to read.
pub(super) fn array<T: Cell>(
    name: &'static str,
    count: usize,
) -> Result<(OwnedFd, &'static [T]), Unavailable> {
    let fd = bpf::create_array(name, size_of::<T>(), count).map_err(unavailable("making a map"))?;
    // SAFETY: the array was made with values of that size (a multiple of 8, as the kernel lays them
    // out) and in that number; a `Cell` is made of atomic integers, for which all bytes are valid.
    let cells = unsafe { map(&fd, count) }.map_err(unavailable("mapping memory"))?;
    Ok((fd, cells))
}

/// What the program and the process share.
///
/// # Safety
/// It is made of atomic integers, and of padding that nobody writes; its size is a multiple of 8.
pub(super) unsafe trait Cell {}

// SAFETY: they are made of atomic integers (and 32 bytes of padding at the end of a cell). Their
// sizes are 16, 256, 64, 104, 16, 8 and 8.
unsafe impl Cell for GroupCell {}
// SAFETY: as above.
unsafe impl Cell for SessionCell {}
// SAFETY: as above.
unsafe impl Cell for Bucket {}
// SAFETY: as above.
unsafe impl Cell for Secret {}
// SAFETY: as above.
unsafe impl Cell for ExitCell {}
// SAFETY: as above.
unsafe impl Cell for EntranceCell {}
// SAFETY: as above.
unsafe impl Cell for AtomicU64 {}

/// Maps an array of `count` values.
///
/// # Safety
/// `T` has the size of the map's values.
unsafe fn map<T: Cell>(fd: &OwnedFd, count: usize) -> io::Result<&'static [T]> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let at = map_bytes(fd, access, size_of::<T>() * count, 0)?;
    // SAFETY: so many bytes are mapped, page-aligned, and never unmapped. Others change them, as
    // atomic integers allow.
    Ok(unsafe { slice::from_raw_parts(at.cast().as_ptr(), count) })
}

/// Maps bytes of a map from a place on, which is a multiple of the size of a page, for as long as
/// the process lives.
pub(super) fn map_bytes(
    fd: &OwnedFd,
    access: libc::c_int,
    length: usize,
    from: usize,
) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            access,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            from as libc::off_t,
        )
    };
    let at = NonNull::new(at).filter(|_| at != libc::MAP_FAILED);
    at.map(NonNull::cast).ok_or_else(io::Error::last_os_error)
}
