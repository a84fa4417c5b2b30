//! Lets a process find a kernel that is older than this machine's.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `BPF_LINK_CREATE` of bpf(2), and the offsets in `struct seccomp_data`.
const LINK_CREATE: u32 = 28;
const NUMBER: u32 = 0;
const FIRST_ARGUMENT: u32 = 16;

/// The program that `command` starts can't put programs at interfaces by links (tcx, Linux 6.6).
pub fn without_tcx(command: &mut Command) {
    // SAFETY: between fork and exec it only makes a system call.
    unsafe {
        command.pre_exec(refuse_links);
    }
}

fn refuse_links() -> io::Result<()> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let refusal = libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32;
    let filter = [
        step(LOAD, NUMBER, 0),
        step(IF_EQUAL, libc::SYS_bpf as u32, 3),
        step(LOAD, FIRST_ARGUMENT, 0),
        step(IF_EQUAL, LINK_CREATE, 1),
        step(RETURN, refusal, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_ptr().cast_mut(),
    };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the kernel reads the program, which outlives the call.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
