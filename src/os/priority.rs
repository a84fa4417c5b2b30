//! The process's scheduling priority: a late heartbeat causes a takeover.

use std::io;

use super::check;

/// The requested time slice in nanoseconds: the shortest that the scheduler grants. A short
/// slice makes a task that wakes up run sooner (EEVDF, Linux 6.12).
const SLICE_NANOS: u64 = 100_000;

/// `struct sched_attr` of the first version (`SCHED_ATTR_SIZE_VER0`), see sched_setattr(2).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const NICE: i32 = -20;

/// Gives this process priority over ordinary ones, so that it runs as soon as it wakes up.
///
/// A unit of a pair (`has_peers`) is scheduled in real time, at the lowest such priority: on a busy
/// machine even an ordinary process with the best niceness waits for milliseconds, and a late
/// heartbeat causes a takeover. Under full load, other processes on its CPU get the share that the
/// kernel reserves for them (`kernel.sched_rt_runtime_us`, 5 %). Processes that it starts are
/// ordinary again.
///
/// # Errors
/// Without `CAP_SYS_NICE`; the gateway works nevertheless.
pub fn raise(has_peers: bool) -> io::Result<()> {
    if has_peers && real_time().is_ok() {
        return Ok(());
    }
    ordinary()
}

/// Gives the calling thread ordinary priority.
///
/// # Errors
/// What the kernel says.
pub fn be_ordinary() -> io::Result<()> {
    set_ordinary(0, 0)
}

fn real_time() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the kernel reads `parameters`, which outlives the call; 0 is this task.
    check(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) })
}

fn ordinary() -> io::Result<()> {
    set_ordinary(NICE, SLICE_NANOS)?;
    // Where tasks are grouped by session (sched_autogroup), niceness counts within the group only.
    // A session that is not ours may hold anything: with a group so far above them, the kernel's
    // own threads would wait for seconds, and with them what the kernel does with addresses and
    // routes.
    if !leads_a_session() {
        return Ok(());
    }
    match std::fs::write("/proc/self/autogroup", NICE.to_string()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn leads_a_session() -> bool {
    // SAFETY: neither call takes a pointer, and neither can fail for the calling process.
    unsafe { libc::getsid(0) == libc::getpid() }
}

/// Of this task; a slice of 0 is the kernel's default.
fn set_ordinary(nice: i32, slice: u64) -> io::Result<()> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice,
        priority: 0,
        runtime: slice,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of `attributes`, which outlives the call; 0 is this
    // task.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check(result as libc::c_int)
}
