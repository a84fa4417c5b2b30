//! Frames to many, received and sent raw: the streams that multicast policies let through, and the
//! packets of IGMP and MLD.
//!
//! A socket of its own, beside that of ARP and ND: a flood of streams displaces none of those.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use ipnet::IpNet;

use super::packet_socket::{self, interface_index, jump, new_socket, set_option};
use tandemgw_core::config::Config;
use tandemgw_core::event::{Offload, PartialChecksum};
use tandemgw_core::flow::PortId;

/// A raw socket on one interface that sees frames to many only, of these only IGMP, MLD, and
/// what a policy may want. Non-blocking, closed on exec.
#[derive(Debug)]
pub struct MulticastSocket {
    interface: String,
    groups: Vec<IpNet>,
    socket: OwnedFd,
}

/// A frame with its offload header; reused for every frame, never zeroed.
pub struct FrameBuffer {
    /// `struct virtio_net_hdr`, then the frame.
    bytes: Box<[u8]>,
    length: usize,
    offload: Offload,
}

/// Bytes of frames that may wait: 10 ms of 200 000 short frames a second.
const RECEIVE_BUFFER: libc::c_int = 4 * 1024 * 1024;
/// Prefixes of groups of a filter; beyond them, all groups come in, and policies decide.
const MOST_PREFIXES: usize = 128;

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const GO: u32 = libc::BPF_JMP | libc::BPF_JA;
/// The frame as a whole.
const ACCEPT: u32 = 0x3ffff;

/// linux/if_packet.h; not in libc.
const PACKET_VNET_HDR: libc::c_int = 15;

impl MulticastSocket {
    /// Opens a socket on the interface of `port`; none if no multicast policy names it.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such interface; what the kernel says otherwise (no `CAP_NET_RAW`).
    pub fn open(config: &Config, port: PortId) -> io::Result<Option<MulticastSocket>> {
        if !config.has_multicast(port) {
            return Ok(None);
        }
        let interface = &config.ports[port.index()].interface;
        let groups: Vec<IpNet> = config.groups_from(port).copied().collect();
        let socket = open_socket(interface, &groups)?;
        Ok(Some(MulticastSocket {
            interface: interface.clone(),
            groups,
            socket,
        }))
    }

    /// Receives what the policies of `config` may want from now on. Frames that wait are not lost.
    ///
    /// # Errors
    ///
    /// The kernel's error; then it receives what it did before.
    pub fn follow(&mut self, config: &Config, port: PortId) -> io::Result<()> {
        let groups: Vec<IpNet> = config.groups_from(port).copied().collect();
        if groups != self.groups {
            attach_filter(&self.socket, &groups)?;
            self.groups = groups;
        }
        Ok(())
    }

    /// Attaches to the interface of the same name again after it was recreated; returns the former
    /// socket. Register the socket again afterwards.
    ///
    /// # Errors
    ///
    /// As for [`MulticastSocket::open`].
    pub fn reopen(&mut self) -> io::Result<OwnedFd> {
        let socket = open_socket(&self.interface, &self.groups)?;
        Ok(std::mem::replace(&mut self.socket, socket))
    }

    /// Reads the next frame; returns whether there was one.
    ///
    /// # Errors
    ///
    /// The kernel's error. An interface that went down is not an error: no frames arrive.
    pub fn recv(&self, buffer: &mut FrameBuffer) -> io::Result<bool> {
        // ENETDOWN is reported once each time, and frames may wait behind it.
        const RETRIES: usize = 8;
        for _ in 0..RETRIES {
            let (bytes, length) = (buffer.bytes.as_mut_ptr(), buffer.bytes.len());
            // SAFETY: `bytes` is writable for `length` bytes, and borrowed only for the call.
            let read = unsafe { libc::recv(self.as_raw_fd(), bytes.cast(), length, 0) };
            if let Ok(length) = usize::try_from(read) {
                buffer.take_header(length);
                return Ok(true);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(false),
                // EINVAL: a frame whose offloads the header can't describe; it is lost.
                Some(libc::EINTR | libc::ENETDOWN | libc::EINVAL) => {}
                _ => return Err(error),
            }
        }
        Ok(false)
    }

    /// Sends the frame in `buffer`, with what is left to be done for it. Tried once.
    ///
    /// # Errors
    ///
    /// The frame is lost and to be counted: `ENOBUFS` or `WouldBlock` if the queue is full,
    /// `ENETDOWN` if the interface is down, `ENXIO` if it is gone.
    pub fn send(&self, buffer: &FrameBuffer) -> io::Result<()> {
        packet_socket::send(self, &buffer.bytes[..FrameBuffer::HEADER + buffer.length])
    }
}

impl AsRawFd for MulticastSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

super::source_by_descriptor!(MulticastSocket);

impl FrameBuffer {
    /// Bytes of `struct virtio_net_hdr` (VIRTIO 1.2, section 5.1.6): flags, gso_type, and then in
    /// native byte order hdr_len, gso_size, csum_start, csum_offset, counted from the frame.
    const HEADER: usize = 10;
    const ETHERNET: usize = 14;
    const LONGEST: usize = 14 + 40 + 65_535;
    const NEEDS_CSUM: u8 = 1;
    const DATA_VALID: u8 = 2;

    /// The kernel's description of the packet, counted from its IP header.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// The frame from its destination address on, to be edited in place.
    pub fn frame_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[Self::HEADER..Self::HEADER + self.length]
    }

    /// Decodes the header that was read, and makes of it one that may be sent.
    fn take_header(&mut self, read: usize) {
        self.length = read.saturating_sub(Self::HEADER);
        let (flags, segmented) = (self.bytes[0], self.bytes[1] != 0);
        let field = |at: usize| u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        let start = field(6).saturating_sub(Self::ETHERNET as u16);
        self.offload = Offload {
            partial_checksum: (flags & Self::NEEDS_CSUM != 0).then(|| PartialChecksum {
                start,
                field: start.saturating_add(field(8)),
            }),
            checksum_verified: flags & Self::DATA_VALID != 0,
            segment_size: if segmented { field(4) } else { 0 },
        };
        // Only a receiver is told DATA_VALID (section 5.1.6.2.1).
        self.bytes[0] = flags & Self::NEEDS_CSUM;
    }
}

impl Default for FrameBuffer {
    /// A buffer for the longest frame there is, with an empty one.
    fn default() -> FrameBuffer {
        FrameBuffer {
            bytes: vec![0; Self::HEADER + Self::LONGEST].into_boxed_slice(),
            length: 0,
            offload: Offload::default(),
        }
    }
}

fn open_socket(interface: &str, groups: &[IpNet]) -> io::Result<OwnedFd> {
    let index = interface_index(interface)?;
    // Protocol 0: it receives nothing before the filter is in place.
    let socket = new_socket(libc::AF_PACKET, libc::SOCK_RAW)?;
    attach_filter(&socket, groups)?;
    // Beyond `net.core.rmem_max` (socket(7)), which needs a right that a process with this socket
    // may lack.
    let (level, wanted) = (libc::SOL_SOCKET, &RECEIVE_BUFFER);
    set_option(&socket, level, libc::SO_RCVBUFFORCE, wanted)
        .or_else(|_| set_option(&socket, level, libc::SO_RCVBUF, wanted))?;
    set_option(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, &1i32)?;
    packet_socket::ignore_outgoing(&socket)?;
    packet_socket::bind(&socket, index)?;
    Ok(socket)
}

/// Has the socket receive what [`filter`] keeps; replaces a filter that it has.
fn attach_filter(socket: &OwnedFd, groups: &[IpNet]) -> io::Result<()> {
    let filter = filter(groups);
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_ptr().cast_mut(),
    };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn op(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

/// Accepts packets whose bytes from `at` on begin with the first `length` bits of `address`: its
/// words one after the other. The first that differs leads to what follows.
fn prefix(at: u32, address: &[u8], length: u8) -> Vec<libc::sock_filter> {
    let mut code = Vec::new();
    let words = u32::from(length).div_ceil(32);
    for (word, bytes) in (0..words).zip(address.as_chunks::<4>().0) {
        let bits = (u32::from(length) - word * 32).min(32);
        let mask = u32::MAX << (32 - bits);
        let rest = ((words - word - 1) * 3 + 1) as u8;
        code.push(op(LOAD_WORD, at + word * 4));
        code.push(op(AND, mask));
        code.push(jump(IF_EQUAL, u32::from_be_bytes(*bytes) & mask, 0, rest));
    }
    code.push(op(RETURN, ACCEPT));
    code
}

/// The classic BPF program (Linux, `Documentation/networking/filter.rst`) that keeps frames to many
/// of no VLAN: IGMP, MLD, and packets to `groups`.
fn filter(groups: &[IpNet]) -> Vec<libc::sock_filter> {
    const ETHERTYPE: u32 = 12;
    const fn about(what: libc::c_int) -> u32 {
        (libc::SKF_AD_OFF + what) as u32
    }
    let (accept, refuse) = (op(RETURN, ACCEPT), op(RETURN, 0));
    let all = groups.len() > MOST_PREFIXES;
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for group in groups.iter().filter(|_| !all) {
        match group {
            IpNet::V4(net) => v4.extend(prefix(30, &net.network().octets(), net.prefix_len())),
            IpNet::V6(net) => v6.extend(prefix(38, &net.network().octets(), net.prefix_len())),
        }
    }
    if all {
        v4.push(accept);
        v6.push(accept);
    }
    let mut code = vec![
        op(LOAD_BYTE, about(libc::SKF_AD_PKTTYPE)),
        jump(IF_EQUAL, u32::from(libc::PACKET_MULTICAST), 1, 0),
        refuse,
        // VLAN 0 is not a VLAN but a priority tag (IEEE 802.1Q, section 9.6).
        op(LOAD_BYTE, about(libc::SKF_AD_VLAN_TAG_PRESENT)),
        jump(IF_EQUAL, 0, 4, 0),
        op(LOAD_HALF, about(libc::SKF_AD_VLAN_TAG)),
        op(AND, 0x0fff),
        jump(IF_EQUAL, 0, 1, 0),
        refuse,
        op(LOAD_HALF, ETHERTYPE),
        jump(IF_EQUAL, libc::ETH_P_IP as u32, 1, 0),
        op(GO, v4.len() as u32 + 4),
        // IGMP.
        op(LOAD_BYTE, 14 + 9),
        jump(IF_EQUAL, libc::IPPROTO_IGMP as u32, 0, 1),
        accept,
    ];
    code.extend(v4);
    code.push(refuse);
    code.extend([
        jump(IF_EQUAL, libc::ETH_P_IPV6 as u32, 1, 0),
        refuse,
        // MLD: ICMPv6 behind a hop-by-hop header. The core looks closer.
        op(LOAD_BYTE, 14 + 6),
        jump(IF_EQUAL, libc::IPPROTO_HOPOPTS as u32, 0, 3),
        op(LOAD_BYTE, 14 + 40),
        jump(IF_EQUAL, libc::IPPROTO_ICMPV6 as u32, 0, 1),
        accept,
    ]);
    code.extend(v6);
    code.push(refuse);
    code
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::os::packet_socket::PacketSocket;
    use crate::os::test_namespace::{in_namespace, ip};

    const CONFIG: &str = r#"
        [node]
        name = "a"
        [[port]]
        name = "here"
        interface = "here"
        [[port]]
        name = "lan"
        interface = "lo"
        [[port]]
        name = "other"
        interface = "lo2"
        [[multicast-policy]]
        name = "tv"
        from = ["here"]
        to = ["lan"]
        group = ["239.1.0.0/16", "232.0.0.1", "ff05:0:1::/48", "ff3e::8000:7"]
        action = "accept"
    "#;

    fn frame(last: u8, to: &str, protocol: u8) -> Vec<u8> {
        let to: std::net::IpAddr = to.parse().unwrap();
        let mut frame = vec![1, 0, 0x5e, 1, 1, last, 2, 0, 0, 0, 0, 2];
        match to {
            std::net::IpAddr::V4(to) => {
                frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 9, protocol, 0, 0]);
                frame.extend([10, 0, 0, 1]);
                frame.extend(to.octets());
            }
            std::net::IpAddr::V6(to) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, protocol, 9]);
                frame.extend([0xfd; 16]);
                frame.extend(to.octets());
                frame.extend([58, 0, 5, 2, 0, 0, 1, 0]);
            }
        }
        frame.resize(frame.len().max(64), last);
        frame
    }

    #[test]
    fn receives_what_a_policy_may_want_and_membership() {
        in_namespace(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            ip("link add here address 02:00:00:00:00:07 type veth peer name there");
            ip("link set here up");
            ip("link set there up");
            let path = std::path::Path::new("a.toml");
            let (config, _) = tandemgw_core::config::parse(path, CONFIG).unwrap();
            let here = MulticastSocket::open(&config, PortId(0)).unwrap().unwrap();
            assert!(MulticastSocket::open(&config, PortId(2)).unwrap().is_none());
            let there = PacketSocket::open("there").unwrap();
            let mut groups = crate::os::multicast::Groups::new("here");
            groups.receive_all(true);
            while groups.change_some(1).unwrap() {}

            let mut wanted = Vec::new();
            for (number, (to, protocol, is_wanted)) in [
                ("239.1.2.3", 17, true),
                ("239.2.2.3", 17, false),
                ("232.0.0.1", 17, true),
                ("232.0.0.2", 17, false),
                ("224.0.0.22", 2, true),
                ("224.0.0.251", 17, false),
                ("ff05:0:1::5", 17, true),
                ("ff05:0:2::5", 17, false),
                ("ff3e::8000:7", 17, true),
                ("ff3e::8000:8", 17, false),
                ("ff02::16", 0, true),
                ("ff02::fb", 17, false),
            ]
            .into_iter()
            .enumerate()
            {
                let frame = frame(number as u8, to, protocol);
                there.send(&frame).unwrap();
                if is_wanted {
                    wanted.push(frame.clone());
                }
                let mut to_one = frame;
                to_one[..6].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
                there.send(&to_one).unwrap();
            }
            let (mut buffer, mut got) = (FrameBuffer::default(), Vec::new());
            let end = Instant::now() + Duration::from_secs(5);
            while got.len() < wanted.len() && Instant::now() < end {
                match here.recv(&mut buffer).unwrap() {
                    true => got.push(buffer.frame_mut().to_vec()),
                    false => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            assert_eq!(got, wanted);
            assert!(!here.recv(&mut buffer).unwrap(), "nothing else");
            here.send(&buffer).unwrap();
        });
    }

    #[test]
    fn a_filter_takes_many_prefixes() {
        let groups: Vec<IpNet> = (0..200u32)
            .map(|n| format!("ff05::{n:x}/128").parse().unwrap())
            .collect();
        for count in [0, 1, 127, 128, 129, 200] {
            assert!(filter(&groups[..count]).len() < 4096, "BPF_MAXINSNS");
            in_namespace(move || {
                let groups: Vec<IpNet> = (0..count as u32)
                    .map(|n| format!("ff05::{n:x}/128").parse().unwrap())
                    .collect();
                ip("link set lo up");
                open_socket("lo", &groups).unwrap();
            });
        }
    }
}
