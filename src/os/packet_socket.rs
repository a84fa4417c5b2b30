//! Address resolution on a link: ARP and Neighbor Discovery frames, received and sent raw.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::check;
use tandemgw_core::ha;
use tandemgw_core::in_quotes::InQuotes;

/// A raw socket on one interface that sees incoming ARP, Neighbor Solicitations and Neighbor
/// Advertisements, frames of peers, packets whose hop limit ends here, and nothing else.
/// Non-blocking, closed on exec.
#[derive(Debug)]
pub struct PacketSocket {
    interface: String,
    /// The number of the interface that it is attached to.
    index: libc::c_int,
    socket: OwnedFd,
}

impl PacketSocket {
    /// Opens a socket on `interface`.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such interface; what the kernel says otherwise (no `CAP_NET_RAW`).
    pub fn open(interface: &str) -> io::Result<PacketSocket> {
        let index = interface_index(interface)?;
        Ok(PacketSocket {
            interface: interface.to_owned(),
            index,
            socket: open_socket(index)?,
        })
    }

    /// Attaches to the interface of the same name again after it was recreated. Returns the former
    /// socket, which takes the kernel milliseconds to close.
    ///
    /// Register the socket again afterwards: it is a new one. On an error it stays as it was.
    ///
    /// # Errors
    ///
    /// As for [`PacketSocket::open`].
    pub fn reopen(&mut self) -> io::Result<PacketSocket> {
        let socket = PacketSocket::open(&self.interface)?;
        Ok(std::mem::replace(self, socket))
    }

    /// Takes note that its interface is gone, or has another name.
    pub fn lose(&mut self) {
        self.index = 0;
    }

    /// Whether it is attached to the interface with that number.
    pub fn is_on(&self, number: u32) -> bool {
        u32::try_from(self.index) == Ok(number)
    }

    /// The number of the interface that it was last attached to; 0 if that is gone.
    pub fn interface(&self) -> u32 {
        u32::try_from(self.index).unwrap_or(0)
    }

    /// Reads the next frame, from its destination address on, into `frame`; gives its length, cut
    /// to that of `frame`, or `None` if none waits.
    ///
    /// # Errors
    ///
    /// The kernel's error. An interface that went down is not an error: no frames arrive.
    pub fn recv(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        // ENETDOWN is reported once each time, and frames may wait behind it.
        const RETRIES: usize = 8;
        for _ in 0..RETRIES {
            // SAFETY: `frame` is writable for `frame.len()` bytes, and borrowed only for the call.
            let read =
                unsafe { libc::recv(self.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            if let Ok(length) = usize::try_from(read) {
                return Ok(Some(length));
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(None),
                Some(libc::EINTR | libc::ENETDOWN) => {}
                _ => return Err(error),
            }
        }
        Ok(None)
    }

    /// Sends a frame, from its destination address on, without FCS. Tried once.
    ///
    /// # Errors
    ///
    /// The frame is lost and to be counted: `ENOBUFS` or `WouldBlock` if the queue is full,
    /// `ENETDOWN` if the interface is down, `ENXIO` if it is gone.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self, frame)
    }
}

/// Sends bytes to a socket of packets, tried once.
pub(super) fn send(socket: &impl AsRawFd, bytes: &[u8]) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: `bytes` is readable for `bytes.len()` bytes, and borrowed only for the call.
    match unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

super::source_by_descriptor!(PacketSocket);

/// Bytes of frames that may wait, some 400 of full length: a flood is limited here, before it costs
/// the loop time. Short frames of two turns of the loop at a gigabit per second fit, so that a
/// flood of packets with an expired hop limit does not push out ARP.
const RECEIVE_BUFFER: libc::c_int = 1024 * 1024;

fn open_socket(index: libc::c_int) -> io::Result<OwnedFd> {
    // Protocol 0: it receives nothing before the filter is in place.
    let socket = new_socket(libc::AF_PACKET, libc::SOCK_RAW)?;
    let filter = filter();
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_ptr().cast_mut(),
    };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    // Beyond `net.core.rmem_max` (socket(7)), which needs a right that a process with this socket
    // may lack.
    let sized = set_option(
        &socket,
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        &RECEIVE_BUFFER,
    );
    sized.or_else(|_| set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER))?;
    // The filter drops them too; this spares the send path the call. Linux 4.20.
    if let Err(error) = ignore_outgoing(&socket) {
        log::debug!(
            "socket option not set option=PACKET_IGNORE_OUTGOING error={}",
            InQuotes(&error)
        );
    }
    bind(&socket, index)?;
    Ok(socket)
}

/// Has a packet socket see nothing that leaves. Linux 4.20.
pub(super) fn ignore_outgoing(socket: &OwnedFd) -> io::Result<()> {
    set_option(
        socket,
        libc::SOL_PACKET,
        libc::PACKET_IGNORE_OUTGOING,
        &1i32,
    )
}

/// Binds a packet socket to an interface, for all protocols.
pub(super) fn bind(socket: &OwnedFd, index: libc::c_int) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain old data, for which all zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of the given length, and only read.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })
}

/// The classic BPF program (Linux, `Documentation/networking/filter.rst`) that keeps incoming ARP,
/// Neighbor Solicitations (type 135) and Neighbor Advertisements (136), frames of peers, IP packets
/// for this machine whose hop limit ends here, and pings to link-local addresses (128), which the
/// kernel does not route; of no VLAN: a frame of a VLAN reaches this interface too, on its way to
/// that of the VLAN, its tag already taken off.
fn filter() -> [libc::sock_filter; 29] {
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const GO: u32 = libc::BPF_JMP | libc::BPF_JA;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    /// The frame as a whole.
    const ACCEPT: u32 = 0xffff;
    const DROP: u32 = 0;
    const ETHERTYPE: u32 = 12;
    const IPV4_TTL: u32 = 14 + 8;
    const IPV6_NEXT_HEADER: u32 = 14 + 6;
    const IPV6_HOP_LIMIT: u32 = 14 + 7;
    const IPV6_DESTINATION: u32 = 14 + 24;
    const ICMPV6_TYPE: u32 = 14 + 40;
    const fn about(what: libc::c_int) -> u32 {
        (libc::SKF_AD_OFF + what) as u32
    }
    let op = |code: u32, k: u32| jump(code, k, 0, 0);
    [
        // To another host, or from us.
        op(LOAD_BYTE, about(libc::SKF_AD_PKTTYPE)),
        jump(IF_AT_LEAST, u32::from(libc::PACKET_OTHERHOST), 26, 0),
        // VLAN 0 is not a VLAN but a priority tag (IEEE 802.1Q, section 9.6).
        op(LOAD_BYTE, about(libc::SKF_AD_VLAN_TAG_PRESENT)),
        jump(IF_EQUAL, 0, 3, 0),
        op(LOAD_HALF, about(libc::SKF_AD_VLAN_TAG)),
        op(AND, 0x0fff),
        jump(IF_EQUAL, 0, 0, 21),
        op(LOAD_HALF, ETHERTYPE),
        jump(IF_EQUAL, u32::from(ha::ETHERTYPE), 18, 0),
        jump(IF_EQUAL, libc::ETH_P_ARP as u32, 17, 0),
        jump(IF_EQUAL, libc::ETH_P_IPV6 as u32, 3, 0),
        jump(IF_EQUAL, libc::ETH_P_IP as u32, 0, 16),
        op(LOAD_BYTE, IPV4_TTL),
        op(GO, 10),
        // IPv6.
        op(LOAD_BYTE, IPV6_NEXT_HEADER),
        jump(IF_EQUAL, libc::IPPROTO_ICMPV6 as u32, 0, 7),
        op(LOAD_BYTE, ICMPV6_TYPE),
        jump(IF_EQUAL, 135, 9, 0),
        jump(IF_EQUAL, 136, 8, 0),
        // A ping to a link-local address.
        jump(IF_EQUAL, 128, 0, 3),
        op(LOAD_HALF, IPV6_DESTINATION),
        op(AND, 0xffc0),
        jump(IF_EQUAL, 0xfe80, 2, 0),
        op(LOAD_BYTE, IPV6_HOP_LIMIT),
        // The hop limit, of either family.
        jump(IF_AT_LEAST, 2, 3, 0),
        op(LOAD_BYTE, about(libc::SKF_AD_PKTTYPE)),
        jump(IF_EQUAL, u32::from(libc::PACKET_HOST), 0, 1),
        op(RETURN, ACCEPT),
        op(RETURN, DROP),
    ]
}

pub(super) fn jump(code: u32, k: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k,
    }
}

pub(super) fn new_socket(family: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system call without pointers.
    let fd = unsafe { libc::socket(family, kind, 0) };
    check(fd)?;
    // SAFETY: `fd` was just opened, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value: *const T = value;
    // SAFETY: `value` is readable for `length` bytes, and borrowed for the call. Anything it points
    // to (a filter) is alive in the caller, and copied by the kernel.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), length) })
}

pub(super) fn interface_index(name: &str) -> io::Result<libc::c_int> {
    let c_name = CString::new(name)?;
    // SAFETY: `c_name` is a string that ends in zero, and borrowed only for the call.
    let index = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
    match libc::c_int::try_from(index) {
        Ok(index) if index > 0 => Ok(index),
        _ => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no interface {name}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::os::test_namespace::{in_namespace, ip};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    const HERE: [u8; 6] = [2, 0, 0, 0, 0, 7];

    /// Two ends of a wire, `here` and `there`.
    fn wire() {
        ip("link add here address 02:00:00:00:00:07 type veth peer name there");
        ip("link set here up");
        ip("link set there up");
    }

    fn frame(destination: [u8; 6], tag: &[u8], ethertype: u16, body: &[u8]) -> Vec<u8> {
        let ethertype = ethertype.to_be_bytes();
        let mut frame = [&destination[..], &MAC, tag, &ethertype, body].concat();
        frame.resize(frame.len().max(60), 0);
        frame
    }

    fn ipv6(next_header: u8, first_byte: u8) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, next_header, 255];
        packet.resize(40, 0xfe);
        packet.push(first_byte);
        packet.resize(64, 0);
        packet
    }

    /// The frames that `socket` receives within a while after the last one.
    fn received(socket: &PacketSocket) -> Vec<Vec<u8>> {
        let mut frames = vec![];
        let mut buffer = [0; 2048];
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(50) {
            match socket.recv(&mut buffer).unwrap() {
                Some(length) => {
                    frames.push(buffer[..length].to_vec());
                    last = Instant::now();
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        frames
    }

    #[test]
    fn receives_address_resolution_and_nothing_else() {
        in_namespace(|| {
            // The kernel's own Neighbor Discovery would mix with ours.
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            wire();
            let here = PacketSocket::open("here").unwrap();
            let there = PacketSocket::open("there").unwrap();

            let all = [0xff; 6];
            let group = [0x33, 0x33, 0xff, 0, 0, 1];
            let arp = frame(all, &[], 0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]);
            let solicitation = frame(group, &[], 0x86dd, &ipv6(58, 135));
            let advertisement = frame(group, &[], 0x86dd, &ipv6(58, 136));
            let peer = frame(all, &[], 0x88b5, &[1, 1, 0, 0]);
            let priority = frame(all, &[0x81, 0, 0xe0, 0], 0x0806, &[0, 1, 8, 0, 6, 4, 0, 2]);
            let ping = |first: u8, to: [u8; 6]| {
                let mut packet = ipv6(58, 128);
                packet[24] = first;
                packet[25] = 0x80;
                frame(to, &[], 0x86dd, &packet)
            };
            let link_local = ping(0xfe, HERE);
            for unwanted in [
                ping(0xfd, HERE),
                ping(0xfe, all),
                frame(all, &[], 0x0800, &[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]),
                frame(all, &[], 0x86dd, &ipv6(6, 135)),
                frame(group, &[], 0x86dd, &ipv6(58, 128)),
                frame(all, &[0x81, 0, 0, 5], 0x0806, &[0, 1, 8, 0]),
                frame(all, &[], 0x88b6, &[1, 1, 0, 0]),
                frame([2, 0, 0, 0, 0, 9], &[], 0x0806, &[0, 1, 8, 0]),
            ] {
                there.send(&unwanted).unwrap();
            }
            for wanted in [
                &arp,
                &solicitation,
                &advertisement,
                &peer,
                &link_local,
                &priority,
            ] {
                there.send(wanted).unwrap();
            }

            let mut frames = received(&here);
            let last = frames.pop().unwrap();
            assert_eq!(frames, [arp, solicitation, advertisement, peer, link_local]);
            assert_eq!(last[..12], priority[..12], "VLAN 0, its tag taken off");
            assert_eq!(
                received(&there),
                <[Vec<u8>; 0]>::default(),
                "its own frames"
            );
        });
    }

    #[test]
    fn survives_its_interface() {
        in_namespace(|| {
            wire();
            let mut here = PacketSocket::open("here").unwrap();
            ip("link set here down");
            // The kernel may have looked for a duplicate of its own address by then.
            drop(received(&here));
            assert_eq!(here.recv(&mut [0; 64]).unwrap(), None);
            assert!(here.send(&[0xff; 60]).is_err());
            ip("link del here");
            assert_eq!(here.recv(&mut [0; 64]).unwrap(), None);
            assert!(here.send(&[0xff; 60]).is_err());
            let error = here.reopen().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);

            wire();
            drop(here.reopen().unwrap());
            let there = PacketSocket::open("there").unwrap();
            let arp = frame([0xff; 6], &[], 0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]);
            there.send(&arp).unwrap();
            assert!(received(&here).contains(&arp));
        });
    }
}
