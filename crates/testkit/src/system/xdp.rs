//! An XDP program that drops all that comes in by an interface.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::namespace::Namespace;

/// Commands, types and instructions of bpf(2) and linux/bpf.h.
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// `r0 = XDP_DROP; exit`.
const DROP: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
#[derive(Default)]
struct Link {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
}

/// The program is at the interface until this is dropped.
pub struct XdpDrop {
    _program: OwnedFd,
    _link: OwnedFd,
}

/// Drops all that comes in by an interface of a namespace, before anything else sees it.
///
/// # Panics
/// If the kernel refuses.
#[track_caller]
pub fn drop_all(namespace: &Namespace, interface: &str) -> XdpDrop {
    namespace.inside(|| {
        let name = CString::new(interface).expect("no zero in a name");
        // SAFETY: the kernel reads a string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert_ne!(index, 0, "there is {interface}");
        let load = Load {
            kind: PROG_TYPE_XDP,
            count: DROP.len() as u32,
            instructions: DROP.as_ptr() as u64,
            license: c"MIT".as_ptr() as u64,
        };
        let (program, number) = bpf(PROG_LOAD, &load);
        let link = Link {
            program: number.cast_unsigned(),
            interface: index,
            attach: ATTACH_XDP,
            flags: 0,
        };
        let (link, _) = bpf(LINK_CREATE, &link);
        XdpDrop {
            _program: program,
            _link: link,
        }
    })
}

#[track_caller]
fn bpf<T>(command: libc::c_long, request: &T) -> (OwnedFd, RawFd) {
    // SAFETY: the kernel reads `request`, and what it points to, all of which outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *request, size_of::<T>()) };
    let fd = RawFd::try_from(fd).expect("a descriptor is an int");
    assert!(fd >= 0, "bpf: {}", io::Error::last_os_error());
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    (unsafe { OwnedFd::from_raw_fd(fd) }, fd)
}
