//! Kernel statistics about this process, for the metrics.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::check;
use super::memory::page_size;
use tandemgw_core::metrics::Process;

/// More files than this process opens: five for each of 512 ports, and some for peers and clients.
const FILES: u64 = 8192;
/// Room for the files of `closed_first`: 15 peers on 8 links, twice.
const CLOSED_FIRST: u64 = 256;

/// The time since the epoch.
pub fn since_epoch() -> Option<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok()
}

/// Current usage of a process that was started at `started`. Takes some 30 µs.
pub fn usage(started: Option<Duration>) -> Process {
    // In pages: size, resident, … (proc_pid_statm(5)).
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut sizes = statm.split_ascii_whitespace().map(|pages| {
        Some(
            pages
                .parse::<u64>()
                .ok()?
                .saturating_mul(page_size() as u64),
        )
    });
    Process {
        started,
        cpu: cpu_time(),
        mapped: sizes.next().flatten(),
        resident: sizes.next().flatten(),
        // One of them is that of the directory.
        open_fds: fs::read_dir("/proc/self/fd")
            .ok()
            .map(|entries| (entries.count() as u64).saturating_sub(1)),
        max_fds: fd_limit(),
    }
}

/// Protects the memory of this process, with its key and all sessions, from debuggers of the same
/// user and from core dumps (prctl(2), `PR_SET_DUMPABLE`; getrlimit(2), `RLIMIT_CORE`).
///
/// # Errors
/// If the kernel refuses.
pub fn keep_private() -> io::Result<()> {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: no pointers are passed.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    // SAFETY: `none` is a valid rlimit for the kernel to read, borrowed only for the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) }).map(drop)
}

fn cpu_time() -> Option<Duration> {
    let mut spec = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `spec` is a valid timespec for the kernel to write to, borrowed only for the call.
    check(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut spec) }).ok()?;
    // Neither is negative, by definition of the clock.
    Some(Duration::new(spec.tv_sec as u64, spec.tv_nsec as u32))
}

fn fd_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the kernel to write to, borrowed only for the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }).ok()?;
    Some(limit.rlim_cur)
}

/// Raises the limit of open files to the maximum: each port takes five descriptors, and the usual
/// limit of 1024 is not enough for 512 ports. And has the kernel make its table of them as long as
/// it can become.
///
/// Call it before there are threads. When a process with threads opens a file with a number beyond
/// that table, the kernel waits until all CPUs have let go of the old table (`expand_fdtable`):
/// some 10 ms, in which the loop would stand still. The table never shrinks.
///
/// # Errors
/// The kernel's error; the process then keeps its limit.
pub fn make_room_for_files() -> io::Result<()> {
    let raised = raise_file_limit();
    let limit = fd_limit().unwrap_or_default().min(FILES);
    let highest = libc::c_int::try_from(limit.saturating_sub(1)).unwrap_or_default();
    drop(again_from(libc::STDERR_FILENO, highest));
    raised
}

fn raise_file_limit() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is an rlimit that outlives the call, which fills it.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    if limit.rlim_cur == limit.rlim_max {
        return Ok(());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is an rlimit that outlives the call, which only reads it.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}

/// The same file by a number above those of all other files of this process; by its own number if
/// the limit of open files has no room.
///
/// The kernel closes the files of a process that was killed from the highest number down (since
/// 4.3, `task_work_run`), and some of them take it milliseconds: it waits for all CPUs to let go of
/// a program that it takes off an interface.
pub fn closed_first(file: OwnedFd) -> OwnedFd {
    let limit = fd_limit().unwrap_or_default().min(FILES);
    let Ok(lowest) = libc::c_int::try_from(limit.saturating_sub(CLOSED_FIRST)) else {
        return file;
    };
    again_from(file.as_raw_fd(), lowest).unwrap_or(file)
}

/// The same file once more, by the first free number from `lowest` on.
fn again_from(file: RawFd, lowest: libc::c_int) -> Option<OwnedFd> {
    // SAFETY: the call takes numbers and gives a new one, or an error if `file` is not open.
    let fd = unsafe { libc::fcntl(file, libc::F_DUPFD_CLOEXEC, lowest) };
    // SAFETY: the kernel has just made `fd`, and nobody else has it.
    (fd != -1).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The user that this process runs as.
pub fn user() -> u32 {
    // SAFETY: getuid takes nothing, and can't fail.
    unsafe { libc::getuid() }
}

/// The name of this machine; empty if the kernel does not tell it.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something_of_everything() {
        let now = since_epoch().unwrap();
        let usage = usage(Some(now));
        assert!(now > Duration::from_secs(1_700_000_000), "{now:?}");
        assert!(usage.cpu.unwrap() > Duration::ZERO, "{usage:?}");
        assert!(usage.resident.unwrap() > 100_000, "{usage:?}");
        assert!(usage.mapped >= usage.resident, "{usage:?}");
        assert!(usage.open_fds.unwrap() >= 3, "{usage:?}");
        assert!(usage.max_fds >= usage.open_fds, "{usage:?}");
    }
}
