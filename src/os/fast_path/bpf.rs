//! The calls of bpf(2) that the fast path needs.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const OBJ_GET_INFO: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;

/// Room for what the verifier says.
const LOG_SIZE: usize = 1 << 20;
const SCHED_CLS: u32 = 3;
const MMAPABLE: u32 = 1 << 10;
const ARRAY: u32 = 2;
const RING: u32 = 27;

/// Where a program is at an interface (tcx).
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Side {
    /// It sees what comes in.
    Ingress = 46,
    /// It sees what goes out.
    Egress = 47,
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

/// Makes a call of bpf(2).
///
/// # Safety
/// `T` is the part of `union bpf_attr` that `command` reads, and each address in it is that of
/// memory which the kernel may read or write as far as the lengths beside it say.
unsafe fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attributes` is valid for its size; the rest is the caller's promise.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result as libc::c_int),
    }
}

fn owned(descriptor: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just made it for the caller (close-on-exec), and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// 0 if there are none: the kernel takes any other address for something to read.
fn address(bytes: &[u8]) -> u64 {
    match bytes.is_empty() {
        true => 0,
        false => bytes.as_ptr() as u64,
    }
}

fn number(fd: &OwnedFd) -> u32 {
    // A descriptor is never negative.
    fd.as_raw_fd() as u32
}

/// Makes an array of so many entries, with values of this size, which can be mapped into memory.
///
/// # Errors
/// Without `CAP_BPF`; without memory; on a kernel without such maps.
pub(super) fn create_array(name: &str, value: usize, entries: usize) -> io::Result<OwnedFd> {
    create(MapCreate {
        kind: ARRAY,
        key: size_of::<u32>() as u32,
        value: value as u32,
        entries: entries as u32,
        flags: MMAPABLE,
        name: name_of(name),
        ..MapCreate::default()
    })
}

/// Makes a ring of so many bytes, a power of two and of pages.
///
/// # Errors
/// As for [`create_array`].
pub(super) fn create_ring(name: &str, bytes: usize) -> io::Result<OwnedFd> {
    create(MapCreate {
        kind: RING,
        entries: bytes as u32,
        name: name_of(name),
        ..MapCreate::default()
    })
}

fn create(mut attributes: MapCreate) -> io::Result<OwnedFd> {
    // SAFETY: that is what MAP_CREATE reads, and it holds no address.
    unsafe { call(MAP_CREATE, &mut attributes) }.map(owned)
}

/// Loads a program for tc.
///
/// # Errors
/// As the verifier says; without `CAP_BPF` and `CAP_NET_ADMIN`.
pub(super) fn load_program(name: &str, code: &[u8], license: &CStr) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        kind: SCHED_CLS,
        instructions: (code.len() / 8) as u32,
        code: address(code),
        license: address(license.to_bytes_with_nul()),
        name: name_of(name),
        ..ProgLoad::default()
    };
    // SAFETY: that is what PROG_LOAD reads; the addresses are those of slices that live until the
    // call returns, of the length given and with a nul at the end.
    let loaded = unsafe { call(PROG_LOAD, &mut attributes) };
    let Err(error) = loaded else {
        return loaded.map(owned);
    };
    let mut log = vec![0; LOG_SIZE];
    attributes.log = log.as_mut_ptr() as u64;
    (attributes.log_level, attributes.log_size) = (1, LOG_SIZE as u32);
    // SAFETY: as before; the log may be written.
    match unsafe { call(PROG_LOAD, &mut attributes) } {
        Ok(program) => Ok(owned(program)),
        Err(_) => Err(with_reason(error, &log)),
    }
}

/// Adds what the verifier says last, before its statistics.
fn with_reason(error: io::Error, log: &[u8]) -> io::Error {
    // What the verifier had said of earlier paths may stand behind the nul.
    let log = CStr::from_bytes_until_nul(log).unwrap_or_default();
    let log = log.to_string_lossy();
    let mut lines = log.lines().rev();
    let reason = lines.find(|line| !line.is_empty() && !line.starts_with("processed "));
    match reason {
        Some(reason) => io::Error::new(error.kind(), format!("{error}: {reason}")),
        None => error,
    }
}

/// Attaches a program to an interface (tcx, Linux 6.6), as long as the result lives.
///
/// # Errors
/// If there is no such interface; on an older kernel.
pub(super) fn attach(program: &OwnedFd, interface: u32, side: Side) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: number(program),
        interface,
        attach: side as u32,
        ..LinkCreate::default()
    };
    // SAFETY: that is what LINK_CREATE reads, and it holds no address.
    unsafe { call(LINK_CREATE, &mut attributes) }.map(owned)
}

#[repr(C)]
#[derive(Default)]
struct Query {
    interface: u32,
    attach: u32,
    flags: u32,
    attach_flags: u32,
    numbers: u64,
    count: u32,
    padding: u32,
    attach_flags_of_each: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// The numbers of the programs at an interface (tcx), the first ones of very many.
///
/// # Errors
/// If there is no such interface; on an older kernel; without `CAP_NET_ADMIN`.
pub(super) fn programs_at(interface: u32, side: Side) -> io::Result<Vec<u32>> {
    const MOST: usize = 64;
    let mut numbers = vec![0; MOST];
    let mut attributes = Query {
        interface,
        attach: side as u32,
        numbers: numbers.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    // SAFETY: that is what PROG_QUERY reads and writes; `numbers` has the length given and lives
    // until the call returns.
    match unsafe { call(PROG_QUERY, &mut attributes) } {
        // There are more.
        Err(error) if error.raw_os_error() != Some(libc::ENOSPC) => return Err(error),
        _ => {}
    }
    numbers.truncate(attributes.count as usize);
    Ok(numbers)
}

#[repr(C)]
#[derive(Default)]
struct GetInfo {
    program: u32,
    length: u32,
    info: u64,
}

/// The number of a program.
///
/// # Errors
/// What the kernel says.
pub(super) fn number_of(program: &OwnedFd) -> io::Result<u32> {
    // The first two words of `struct bpf_prog_info`: the type and the number.
    let mut info = [0_u32; 2];
    let mut attributes = GetInfo {
        program: number(program),
        length: size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: that is what OBJ_GET_INFO_BY_FD reads; `info` has the length given and lives until
    // the call returns.
    unsafe { call(OBJ_GET_INFO, &mut attributes) }?;
    Ok(info[1])
}

/// What a run of the program with one frame gave.
#[derive(Debug)]
pub struct Run {
    /// What the program returned.
    pub verdict: i32,
    /// The frame after it.
    pub frame: Vec<u8>,
    /// Its priority for the queue of the interface that it leaves by.
    pub priority: u32,
}

/// Runs the program once with a frame that comes in as `context` says (`struct __sk_buff`). What it
/// returns is not carried out.
///
/// # Errors
/// If the kernel does not accept the frame or the flags.
pub(super) fn test_run(
    program: &OwnedFd,
    frame: &[u8],
    context: &[u8],
    flags: u32,
) -> io::Result<Run> {
    /// Room for `struct __sk_buff`, and where it has the priority.
    const CONTEXT: usize = 256;
    const PRIORITY: usize = 32;
    let mut out = vec![0; frame.len() + 256];
    let mut context_out = [0; CONTEXT];
    let mut attributes = TestRun {
        program: number(program),
        size_in: frame.len() as u32,
        size_out: out.len() as u32,
        data_in: address(frame),
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        context_size_in: context.len() as u32,
        context_in: address(context),
        context_size_out: CONTEXT as u32,
        context_out: context_out.as_mut_ptr() as u64,
        flags,
        ..TestRun::default()
    };
    // SAFETY: that is what PROG_TEST_RUN reads; the addresses are those of slices that live until
    // the call returns, of the lengths given, and those for results may be written.
    unsafe { call(PROG_TEST_RUN, &mut attributes) }?;
    out.truncate(attributes.size_out as usize);
    let priority = context_out[PRIORITY..].first_chunk().copied();
    Ok(Run {
        verdict: attributes.result as i32,
        frame: out,
        priority: u32::from_ne_bytes(priority.unwrap_or_default()),
    })
}

fn name_of(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}
