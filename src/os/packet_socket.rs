//! Address resolution on a link: ARP and Neighbor Discovery frames, received and sent raw.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::check;
use tandemgw_core::ha;
use tandemgw_core::in_quotes::InQuotes;

/// A raw socket on one interface that sees incoming ARP, Neighbor Solicitations and Neighbor
/// Advertisements, frames of peers, packets whose hop limit ends here, and nothing else. Non-blocking, closed on exec.
#[derive(Debug)]
pub struct PacketSocket {
    interface: String,
    /// The number of the interface that it is attached to.
    index: libc::c_int,
    groups: Vec<Ipv6Addr>,
    socket: OwnedFd,
    /// Holds the memberships for which the kernel sends MLD reports.
    listener: Option<OwnedFd>,
    /// Whether the kernel has refused to report a group: it is not asked again.
    is_refused: bool,
    /// Groups yet to be joined (true) or left.
    pending: VecDeque<(Ipv6Addr, bool)>,
}

/// The multicast group that a Neighbor Solicitation for `address` is sent to (RFC 4291, section
/// 2.7.1): `ff02::1:ffXX:XXXX`.
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let (high, low) = (u16::from_be_bytes([0xff, a]), u16::from_be_bytes([b, c]));
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

impl PacketSocket {
    /// Opens a socket on `interface`, and joins the multicast `groups` there: see
    /// [`solicited_node`].
    ///
    /// The groups are joined twice: for the interface's hardware filter, and in the kernel's IPv6,
    /// so that it reports them (MLD, RFC 3810) and snooping switches deliver. If the kernel refuses
    /// the second, for instance since it was built without IPv6, a warning says so.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such interface; what the kernel says otherwise (no `CAP_NET_RAW`).
    pub fn open(interface: &str, groups: &[Ipv6Addr]) -> io::Result<PacketSocket> {
        let mut socket = PacketSocket::attach(interface, groups)?;
        while socket.listen_to_some(usize::MAX)? {}
        Ok(socket)
    }

    /// Attached, with its groups yet to be joined.
    fn attach(interface: &str, groups: &[Ipv6Addr]) -> io::Result<PacketSocket> {
        let index = interface_index(interface)?;
        let mut socket = PacketSocket {
            interface: interface.to_owned(),
            index,
            socket: open_socket(index)?,
            groups: Vec::new(),
            listener: None,
            is_refused: false,
            pending: VecDeque::new(),
        };
        socket.listen_to(groups.to_vec());
        Ok(socket)
    }

    /// Attaches to the interface of the same name again after it was recreated;
    /// [`listen_to_some`](Self::listen_to_some) then joins the groups. Returns the former socket,
    /// which takes the kernel milliseconds to close.
    ///
    /// Register the socket again afterwards: it is a new one. On an error it stays as it was.
    ///
    /// # Errors
    ///
    /// As for [`PacketSocket::open`].
    pub fn reopen(&mut self) -> io::Result<PacketSocket> {
        let socket = PacketSocket::attach(&self.interface, &self.groups)?;
        Ok(std::mem::replace(self, socket))
    }

    /// Whether it is attached to the interface with that number.
    pub fn is_on(&self, number: u32) -> bool {
        u32::try_from(self.index) == Ok(number)
    }

    /// Whether there are groups to be joined or left.
    pub fn has_groups_to_join(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Replaces the multicast groups; they are joined by
    /// [`listen_to_some`](Self::listen_to_some).
    pub fn listen_to(&mut self, mut groups: Vec<Ipv6Addr>) {
        groups.sort_unstable();
        groups.dedup();
        let missing = |groups: &[Ipv6Addr], of: &[Ipv6Addr]| -> Vec<Ipv6Addr> {
            let is_missing = |group: &&Ipv6Addr| groups.binary_search(group).is_err();
            of.iter().filter(is_missing).copied().collect()
        };
        let new = missing(&self.groups, &groups);
        let gone = missing(&groups, &self.groups);
        self.pending
            .extend(new.into_iter().map(|group| (group, true)));
        self.pending
            .extend(gone.into_iter().map(|group| (group, false)));
        self.groups = groups;
    }

    /// Joins or leaves up to `most` groups, some 10 µs each, more if there are thousands; returns
    /// whether others remain.
    ///
    /// # Errors
    ///
    /// The kernel's error; then the remaining groups are given up.
    pub fn listen_to_some(&mut self, most: usize) -> io::Result<bool> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        let pending = std::mem::take(&mut self.pending);
        let index = interface_index(&self.interface)?;
        let mut left = pending;
        for (group, joins) in left.drain(..most.min(left.len())) {
            let operation = match joins {
                true => libc::PACKET_ADD_MEMBERSHIP,
                false => libc::PACKET_DROP_MEMBERSHIP,
            };
            join_hardware(&self.socket, index, group, operation)?;
            self.report(index, group, joins);
        }
        self.pending = left;
        Ok(!self.pending.is_empty())
    }

    /// Makes the kernel start or stop listening to `group`.
    fn report(&mut self, index: libc::c_int, group: Ipv6Addr, joins: bool) {
        if self.is_refused && joins {
            return;
        }
        // A refused group can't be left.
        if let Err(error) = self.try_to_report(index, group, joins)
            && !self.is_refused
        {
            self.is_refused = true;
            log::warn!(
                "mld reports off interface={} error={} \
                 effect=\"switches that snoop may not deliver neighbour solicitations\"",
                self.interface,
                InQuotes(&error)
            );
        }
    }

    fn try_to_report(
        &mut self,
        index: libc::c_int,
        group: Ipv6Addr,
        joins: bool,
    ) -> io::Result<()> {
        let listener = match &mut self.listener {
            Some(listener) => listener,
            none => none.insert(new_socket(libc::AF_INET6, libc::SOCK_DGRAM)?),
        };
        let request = libc::ipv6_mreq {
            ipv6mr_multiaddr: libc::in6_addr {
                s6_addr: group.octets(),
            },
            ipv6mr_interface: index as libc::c_uint,
        };
        let name = match joins {
            true => libc::IPV6_ADD_MEMBERSHIP,
            false => libc::IPV6_DROP_MEMBERSHIP,
        };
        set_option(listener, libc::IPPROTO_IPV6, name, &request)
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
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: `frame` is readable for `frame.len()` bytes, and borrowed only for the call.
        match unsafe { libc::send(self.as_raw_fd(), frame.as_ptr().cast(), frame.len(), flags) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
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
    if let Err(error) = set_option(
        &socket,
        libc::SOL_PACKET,
        libc::PACKET_IGNORE_OUTGOING,
        &1i32,
    ) {
        log::debug!(
            "socket option not set option=PACKET_IGNORE_OUTGOING error={}",
            InQuotes(&error)
        );
    }
    // SAFETY: sockaddr_ll is plain old data, for which all zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of the given length, and only read.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// The classic BPF program (Linux, `Documentation/networking/filter.rst`) that keeps incoming ARP,
/// Neighbor Solicitations (type 135) and Neighbor Advertisements (136), frames of peers, and IP packets for this machine
/// whose hop limit ends here; of no VLAN: a frame of a VLAN reaches this interface too, on its way to that
/// of the VLAN, its tag already taken off.
fn filter() -> [libc::sock_filter; 25] {
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
    const ICMPV6_TYPE: u32 = 14 + 40;
    const fn about(what: libc::c_int) -> u32 {
        (libc::SKF_AD_OFF + what) as u32
    }
    let op = |code: u32, k: u32| jump(code, k, 0, 0);
    [
        // To another host, or from us.
        op(LOAD_BYTE, about(libc::SKF_AD_PKTTYPE)),
        jump(IF_AT_LEAST, u32::from(libc::PACKET_OTHERHOST), 22, 0),
        // VLAN 0 is not a VLAN but a priority tag (IEEE 802.1Q, section 9.6).
        op(LOAD_BYTE, about(libc::SKF_AD_VLAN_TAG_PRESENT)),
        jump(IF_EQUAL, 0, 3, 0),
        op(LOAD_HALF, about(libc::SKF_AD_VLAN_TAG)),
        op(AND, 0x0fff),
        jump(IF_EQUAL, 0, 0, 17),
        op(LOAD_HALF, ETHERTYPE),
        jump(IF_EQUAL, u32::from(ha::ETHERTYPE), 14, 0),
        jump(IF_EQUAL, libc::ETH_P_ARP as u32, 13, 0),
        jump(IF_EQUAL, libc::ETH_P_IPV6 as u32, 3, 0),
        jump(IF_EQUAL, libc::ETH_P_IP as u32, 0, 12),
        op(LOAD_BYTE, IPV4_TTL),
        op(GO, 6),
        // IPv6.
        op(LOAD_BYTE, IPV6_NEXT_HEADER),
        jump(IF_EQUAL, libc::IPPROTO_ICMPV6 as u32, 0, 3),
        op(LOAD_BYTE, ICMPV6_TYPE),
        jump(IF_EQUAL, 135, 5, 0),
        jump(IF_EQUAL, 136, 4, 0),
        op(LOAD_BYTE, IPV6_HOP_LIMIT),
        // The hop limit, of either family.
        jump(IF_AT_LEAST, 2, 3, 0),
        op(LOAD_BYTE, about(libc::SKF_AD_PKTTYPE)),
        jump(IF_EQUAL, u32::from(libc::PACKET_HOST), 0, 1),
        op(RETURN, ACCEPT),
        op(RETURN, DROP),
    ]
}

fn jump(code: u32, k: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k,
    }
}

/// Has the interface receive frames to the Ethernet address of `group` (RFC 2464, section 7), or no
/// longer: `operation` is `PACKET_ADD_MEMBERSHIP` or `PACKET_DROP_MEMBERSHIP`.
fn join_hardware(
    socket: &OwnedFd,
    index: libc::c_int,
    group: Ipv6Addr,
    operation: libc::c_int,
) -> io::Result<()> {
    let [.., a, b, c, d] = group.octets();
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_MULTICAST as libc::c_ushort,
        mr_alen: 6,
        mr_address: [0x33, 0x33, a, b, c, d, 0, 0],
    };
    set_option(socket, libc::SOL_PACKET, operation, &request)
}

fn new_socket(family: libc::c_int, kind: libc::c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system call without pointers.
    let fd = unsafe { libc::socket(family, kind, 0) };
    check(fd)?;
    // SAFETY: `fd` was just opened, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value: *const T = value;
    // SAFETY: `value` is readable for `length` bytes, and borrowed for the call. What it points to in
    // turn (a filter) is alive in the caller, and copied by the kernel.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), length) })
}

fn interface_index(name: &str) -> io::Result<libc::c_int> {
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

    /// Two ends of a wire, `here` and `there`.
    fn wire() {
        ip("link add here type veth peer name there");
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

    /// What `socket` receives within a while after the last frame.
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
    fn solicited_node_group_as_in_the_rfc() {
        let address = "4037::01:800:200e:8c6c".parse().unwrap();
        assert_eq!(solicited_node(address).to_string(), "ff02::1:ff0e:8c6c");
    }

    #[test]
    fn receives_address_resolution_and_nothing_else() {
        in_namespace(|| {
            // The kernel's own Neighbor Discovery would mix with ours.
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            wire();
            let here = PacketSocket::open("here", &[]).unwrap();
            let there = PacketSocket::open("there", &[]).unwrap();

            let all = [0xff; 6];
            let group = [0x33, 0x33, 0xff, 0, 0, 1];
            let arp = frame(all, &[], 0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]);
            let solicitation = frame(group, &[], 0x86dd, &ipv6(58, 135));
            let advertisement = frame(group, &[], 0x86dd, &ipv6(58, 136));
            let peer = frame(all, &[], 0x88b5, &[1, 1, 0, 0]);
            let priority = frame(all, &[0x81, 0, 0xe0, 0], 0x0806, &[0, 1, 8, 0, 6, 4, 0, 2]);
            for unwanted in [
                frame(all, &[], 0x0800, &[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]),
                frame(all, &[], 0x86dd, &ipv6(6, 135)),
                frame(group, &[], 0x86dd, &ipv6(58, 128)),
                frame(all, &[0x81, 0, 0, 5], 0x0806, &[0, 1, 8, 0]),
                frame(all, &[], 0x88b6, &[1, 1, 0, 0]),
                frame([2, 0, 0, 0, 0, 9], &[], 0x0806, &[0, 1, 8, 0]),
            ] {
                there.send(&unwanted).unwrap();
            }
            for wanted in [&arp, &solicitation, &advertisement, &peer, &priority] {
                there.send(wanted).unwrap();
            }

            let mut frames = received(&here);
            let last = frames.pop().unwrap();
            assert_eq!(frames, [arp, solicitation, advertisement, peer]);
            assert_eq!(last[..12], priority[..12], "VLAN 0, its tag taken off");
            assert_eq!(
                received(&there),
                <[Vec<u8>; 0]>::default(),
                "its own frames"
            );
        });
    }

    #[test]
    fn joins_the_groups_in_hardware_and_kernel() {
        in_namespace(|| {
            wire();
            let group = solicited_node("fd77::12:3456".parse().unwrap());
            let count = |text: &str, needle: &str| text.matches(needle).count();
            let memberships = || {
                let hardware = std::fs::read_to_string("/proc/thread-self/net/dev_mcast").unwrap();
                let kernel = std::fs::read_to_string("/proc/thread-self/net/igmp6").unwrap();
                (
                    count(&hardware, "3333ff123456"),
                    count(&kernel, "ff0200000000000000000001ff123456"),
                )
            };
            assert_eq!(memberships(), (0, 0));
            let socket = PacketSocket::open("here", &[group, group]).unwrap();
            assert_eq!(memberships(), (1, 1));
            let mut socket = socket;
            socket.listen_to(Vec::new());
            while socket.listen_to_some(1).unwrap() {}
            assert_eq!(memberships(), (0, 0));
            socket.listen_to(vec![group, group]);
            while socket.listen_to_some(1).unwrap() {}
            assert_eq!(memberships(), (1, 1));
            drop(socket);
            assert_eq!(memberships(), (0, 0));

            std::fs::write("/proc/sys/net/ipv6/conf/here/disable_ipv6", "1").unwrap();
            let _socket = PacketSocket::open("here", &[group]).unwrap();
            assert_eq!(
                memberships().0,
                1,
                "without IPv6 the frames come nevertheless"
            );
        });
    }

    #[test]
    fn survives_its_interface() {
        in_namespace(|| {
            wire();
            let mut here = PacketSocket::open("here", &[]).unwrap();
            ip("link set here down");
            assert_eq!(here.recv(&mut [0; 64]).unwrap(), None);
            assert!(here.send(&[0xff; 60]).is_err());
            ip("link del here");
            assert_eq!(here.recv(&mut [0; 64]).unwrap(), None);
            assert!(here.send(&[0xff; 60]).is_err());
            let error = here.reopen().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);

            wire();
            drop(here.reopen().unwrap());
            let there = PacketSocket::open("there", &[]).unwrap();
            let arp = frame([0xff; 6], &[], 0x0806, &[0, 1, 8, 0, 6, 4, 0, 1]);
            there.send(&arp).unwrap();
            assert!(received(&here).contains(&arp));
        });
    }
}
