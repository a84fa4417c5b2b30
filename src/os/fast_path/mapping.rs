//! The memory that the program and the process share.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use tandemgw_core::fast_path::{GroupCell, Memory, SessionCell};

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
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; REASONS.len()]);

impl Counts {
    pub(super) fn read(&self) -> [(&'static str, u64); REASONS.len()] {
        std::array::from_fn(|at| (REASONS[at], self.0[at].load(Ordering::Relaxed)))
    }
}

/// Maps the arrays, for as long as the process lives.
///
/// # Errors
/// If the kernel has no room.
pub(super) fn shared(
    groups: &OwnedFd,
    group_count: u32,
    sessions: &OwnedFd,
    session_count: u32,
    counts: &OwnedFd,
) -> io::Result<(Memory, &'static Counts)> {
    // SAFETY: all three types are made of atomic integers, for which all bytes are valid, and have
    // the size that their map's values were made with (a multiple of 8, as the kernel lays them
    // out).
    let (groups, sessions, counts) = unsafe {
        (
            map::<GroupCell>(groups, group_count as usize)?,
            map::<SessionCell>(sessions, session_count as usize)?,
            map::<Counts>(counts, 1)?,
        )
    };
    Ok((Memory { groups, sessions }, &counts[0]))
}

/// Maps an array of `count` values.
///
/// # Safety
/// `T` has the size of the map's values and is made of atomic integers only.
unsafe fn map<T>(fd: &OwnedFd, count: usize) -> io::Result<&'static [T]> {
    let length = size_of::<T>() * count;
    // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd.as_raw_fd(),
            0,
        )
    };
    let at = NonNull::new(at).filter(|_| at != libc::MAP_FAILED);
    let at = at.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: it is mapped for `length` bytes, page-aligned, and never unmapped. Others change it,
    // as atomic integers allow.
    Ok(unsafe { slice::from_raw_parts(at.cast().as_ptr(), count) })
}
