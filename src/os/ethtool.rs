//! A driver's report about an interface (`ethtool(8)`).

use std::ffi::c_char;
use std::os::fd::AsRawFd;

use super::check;

/// `ETHTOOL_GGRO`: whether generic receive offload is on (linux/ethtool.h).
const GET_GRO: u32 = 0x2b;

/// `struct ethtool_value`
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Whether the kernel merges packets that come in by `interface` (GRO); none if it does not report
/// it.
pub(super) fn receives_merged(interface: &str) -> Option<bool> {
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).ok()?;
    let mut value = EthtoolValue {
        command: GET_GRO,
        data: 0,
    };
    // SAFETY: all bytes of a ifreq may be zero: it is numbers, arrays of them and pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    // The name ends with a zero.
    let room = request.ifr_name.get_mut(..name.len() + 1)?;
    for (to, from) in room.iter_mut().zip(name) {
        *to = *from as c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request has a name that ends with a zero and points to a value of the size that
    // the command has; both live until the call is over.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) }).ok()?;
    Some(value.data != 0)
}
