//! What the kernel and the driver say about an interface (`netdevice(7)`, `ethtool(8)`).

use std::os::fd::AsRawFd;

use super::check;
use super::tun::interface_request;

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
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    let mut value = EthtoolValue {
        command: GET_GRO,
        data: 0,
    };
    let mut request = interface_request(interface).ok()?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request has a name that ends with a zero and points to a value of the size that
    // the command has; both live until the call is over.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) }).ok()?;
    Some(value.data != 0)
}

/// The MTU of `interface`, in bytes; none if there is no such interface.
pub(super) fn mtu(interface: &str) -> Option<u32> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    let mut request = interface_request(interface).ok()?;
    // SAFETY: the request has a name that ends with a zero, and lives until the call is over.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) }).ok()?;
    // SAFETY: the kernel has written the MTU, an int, at the place of `ifru_mtu`.
    u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}
