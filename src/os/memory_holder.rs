//! A second process that shares the gateway's memory, and does nothing but wait for its death.
//!
//! The kernel frees the memory of a killed process before it closes its files: that takes 1 to 2 ms
//! as a rule, and 55 ms for 500 MB in small pages. Only then do the connections end by which peers
//! notice the death ([`super::watch`]). But memory that two processes share is freed when the last
//! one ends. This one has no files and no more rights than the gateway has, and ends after it.

use std::io::{self, PipeReader, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr;

use super::{check, priority};

/// Much more than a few system calls take.
const STACK: usize = 64 << 10;
/// What the process says if it could not do its work; nothing else is ever said.
const FAILED: u8 = 1;

/// What the process needs to know; it lies on the stack of [`start`], which waits for it.
struct Begin {
    parent: libc::pid_t,
    said: libc::c_int,
}

/// Starts the process. Call it on the main thread: the process ends with the thread that started
/// it.
///
/// # Errors
/// What the kernel says. Then a killed gateway is noticed a little later.
pub fn start() -> io::Result<()> {
    let (heard, said) = io::pipe()?;
    let mut begin = Begin {
        // SAFETY: takes no pointer, and cannot fail.
        parent: unsafe { libc::getpid() },
        said: said.as_raw_fd(),
    };
    let signals = block_signals()?;
    let started = clone_with_memory(&mut begin);
    drop(said);
    // The end of the pipe closes when the process has closed all its files, or is dead. Until then
    // the two take turns: they share the place where the C library keeps errno.
    let told = started.and_then(|()| told(heard));
    restore_signals(&signals);
    told
}

fn told(mut heard: PipeReader) -> io::Result<()> {
    match heard.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("the process could not close its files")),
    }
}

fn clone_with_memory(begin: &mut Begin) -> io::Result<()> {
    // Never freed: the process stands on it.
    let stack = Box::leak(vec![0_u128; STACK / 16].into_boxed_slice());
    let top = stack.as_mut_ptr_range().end;
    // SAFETY: `top` is the end of memory that is aligned to 16 bytes, lives as long as the process
    // and is used by nobody else. `hold` reads `begin` before the pipe closes, for which the caller
    // waits, and touches no other memory of this process but its stack and errno. Nothing is sent
    // at its end, so nobody who waits for other children hears of it.
    let process = unsafe {
        let begin: *mut Begin = begin;
        libc::clone(hold, top.cast(), libc::CLONE_VM, begin.cast())
    };
    check(process).map(drop)
}

/// The process: no allocation, no lock, no panic.
extern "C" fn hold(begin: *mut libc::c_void) -> libc::c_int {
    // SAFETY: that is what `clone_with_memory` gives, and it is valid until the pipe closes.
    let Begin { parent, said } = unsafe { ptr::read(begin.cast::<Begin>()) };
    // SAFETY: all of these take numbers, or memory that is on this stack for as long as they last.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"tandemgw-memory".as_ptr());
        let dies_with_parent = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0;
        // The parent may have died before.
        if !dies_with_parent || libc::getppid() != parent {
            return fail(said);
        }
        if priority::be_ordinary().is_err()
            || libc::syscall(libc::SYS_close_range, 0, !0_u32, 0) != 0
        {
            return fail(said);
        }
        loop {
            libc::pause();
        }
    }
}

fn fail(said: libc::c_int) -> libc::c_int {
    // SAFETY: one byte is there to be read. If nobody listens any more, the gateway is dead.
    unsafe { libc::write(said, ptr::from_ref(&FAILED).cast(), 1) };
    1
}

/// Blocks all signals for this thread, and for a process that it starts; returns those that were
/// blocked before.
fn block_signals() -> io::Result<libc::sigset_t> {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: sigfillset fills the one set, pthread_sigmask reads it and fills the other.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        match libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) {
            0 => Ok(before.assume_init()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: `before` is a set; nothing is returned in place of the null pointer.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}
