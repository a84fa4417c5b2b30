//! TUN devices: IP packets to and from the kernel, super-packets whole.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use tun_tap::{Iface, Mode};

use super::check;
use tandemgw_core::event::{Offload, PartialChecksum};
use tandemgw_core::in_quotes::InQuotes;

/// Packets that a TUN holds at least while the process is busy. The kernel's default of 500
/// overflows in a burst; an Ethernet device has 1000.
pub const QUEUE: u32 = 1000;

/// Whether to ask the kernel for super-packets and unfinished checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// As much as the kernel offers: several times the throughput.
    Auto,
    /// None: every packet is ready for the wire.
    Off,
}

/// A TUN device, which exists as long as this value. Non-blocking, closed on exec.
#[derive(Debug)]
pub struct Tun {
    iface: Iface,
    level: Level,
}

/// A packet of a TUN with its offload header; reused for every packet, never zeroed.
///
/// The packet may be edited but keeps its length: the header describes its segments.
pub struct Buffer {
    /// `vnet header | packet`, with the packet at [`Buffer::PACKET`].
    bytes: Box<[u8]>,
    /// Length of the packet.
    length: usize,
    offload: Offload,
}

/// The level that the kernel granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// No vnet header at all: the kernel has refused it.
    Plain,
    /// A header and no offloads: nothing is read that needs some, and what other devices gave is
    /// written.
    Header,
    /// Checksums and TCP segmentation.
    Tso,
    /// And UDP segmentation (Linux 6.2).
    TsoUso,
}

impl Tun {
    /// Creates the device `name`, or takes over one that a killed gateway left.
    ///
    /// If the offloads can't be had, it works without them, and logs one warning.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` if another process holds the device; `InvalidInput` for a name that is not an
    /// interface name; what the kernel says otherwise (no `/dev/net/tun`, no `CAP_NET_ADMIN`).
    pub fn open(name: &str, offloads: Offloads) -> io::Result<Tun> {
        let tun = Tun::open_with_header(name, offloads)?;
        set_nonblocking(tun.as_raw_fd())?;
        // A gateway killed in the middle of `rearm` has left it persistent: it must vanish with us.
        set_persistent(tun.as_raw_fd(), false)?;
        Ok(tun)
    }

    /// The name of the device.
    pub fn name(&self) -> &str {
        self.iface.name()
    }

    /// The offloads in use, as the status shows them: `tso+uso`, `tso` or `none`.
    pub fn offload(&self) -> &'static str {
        match self.level {
            Level::Plain | Level::Header => "none",
            Level::Tso => "tso",
            Level::TsoUso => "tso+uso",
        }
    }

    /// Whether packets with an unfinished checksum can be written.
    pub fn takes_unfinished(&self) -> bool {
        self.level != Level::Plain
    }

    /// Sets the number of packets that the kernel queues for the gateway; 500 at first.
    ///
    /// # Errors
    ///
    /// What the kernel says: `PermissionDenied` in a user namespace, where this right is never
    /// given, or no memory. The gateway works with the queue as it is.
    pub fn set_queue_length(&self, packets: u16) -> io::Result<()> {
        let mut request = interface_request(self.name())?;
        request.ifr_ifru.ifru_metric = i32::from(packets);
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        // SAFETY: SIOCSIFTXQLEN reads an ifreq with name and `ifr_qlen`, an int at the place of
        // `ifru_metric`; `request` is one and outlives the call.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN as _, &mut request) })
    }

    /// Reads the next packet into `buffer`; gives its length, or `None` if none waits.
    ///
    /// # Errors
    ///
    /// What the kernel says: `EBADFD` if somebody deleted the device.
    #[inline]
    pub fn read(&mut self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        let start = self.level.start();
        loop {
            match read_bytes(self.as_raw_fd(), &mut buffer.bytes[start..]) {
                Ok(length) => {
                    buffer.length = length.saturating_sub(Buffer::PACKET - start);
                    buffer.take_header(self.level);
                    return Ok(Some(buffer.length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Hands the packet in `buffer`, whatever device it was read from, to the kernel as what it
    /// was: a super-packet stays one. Tried once.
    ///
    /// # Errors
    ///
    /// The packet is lost and to be counted: `EINVAL` if its headers contradict the offload header,
    /// or if it needs an offload and this device can't have any; `EIO` if the device is down,
    /// `WouldBlock` or `ENOMEM` if there is no room.
    #[inline]
    pub fn write(&self, buffer: &Buffer) -> io::Result<()> {
        let needs_offload =
            buffer.offload.partial_checksum.is_some() || buffer.offload.segment_size > 0;
        if self.level == Level::Plain && needs_offload {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let end = Buffer::PACKET + buffer.length;
        write_bytes(self.as_raw_fd(), &buffer.bytes[self.level.start()..end])
    }

    /// Hands a packet that was not read from a TUN to the kernel. Tried once.
    ///
    /// # Errors
    ///
    /// As for [`Tun::write`].
    pub fn write_packet(&self, packet: &[u8], offload: Offload) -> io::Result<()> {
        if self.level == Level::Plain {
            if offload.partial_checksum.is_some() || offload.segment_size > 0 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            return write_bytes(self.as_raw_fd(), packet);
        }
        let header = header(packet, offload);
        let part = |bytes: &[u8]| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let parts = [part(&header), part(packet)];
        // SAFETY: both parts point to live slices of the given lengths, and writev only reads them.
        match unsafe { libc::writev(self.as_raw_fd(), parts.as_ptr(), 2) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    fn open_plain(name: &str) -> io::Result<Tun> {
        interface_request(name)?;
        let iface = Iface::without_packet_info(name, Mode::Tun).map_err(|e| explain(e, name))?;
        let level = Level::Plain;
        Ok(Tun { iface, level })
    }

    fn open_with_header(name: &str, offloads: Offloads) -> io::Result<Tun> {
        let mut tun = Tun::open_plain(name)?;
        match rearm(&tun.iface, offloads) {
            Ok(level) => {
                tun.level = level;
                Ok(tun)
            }
            Err(error) => {
                log::warn!(
                    "offloads off device={name} error={} effect=\"forwarding is several times slower\"",
                    InQuotes(&error)
                );
                // Its descriptor is in an unknown state, perhaps detached from the device.
                drop(tun);
                Tun::open_plain(name)
            }
        }
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.iface.as_raw_fd()
    }
}

super::source_by_descriptor!(Tun);

impl Buffer {
    /// Bytes of `struct virtio_net_hdr` (VIRTIO 1.2, section 5.1.6): flags, gso_type, and then in
    /// native byte order hdr_len, gso_size, csum_start, csum_offset.
    const HEADER: usize = 10;
    /// Where the packet begins: aligned, with room for the header before it.
    const PACKET: usize = 16;
    /// The longest packet: an IPv6 header and the longest payload without jumbograms.
    const MAX_PACKET: usize = 40 + 65_535;

    const FLAGS: usize = Self::PACKET - Self::HEADER;
    const GSO_TYPE: usize = Self::FLAGS + 1;
    const GSO_SIZE: usize = Self::FLAGS + 4;
    const CSUM_START: usize = Self::FLAGS + 6;
    const CSUM_OFFSET: usize = Self::FLAGS + 8;

    const NEEDS_CSUM: u8 = 1;
    const DATA_VALID: u8 = 2;
    const GSO_NONE: u8 = 0;

    /// A buffer for the longest packet there is; holds an empty one at first.
    pub fn new() -> Buffer {
        Buffer {
            bytes: vec![0; Self::PACKET + Self::MAX_PACKET].into_boxed_slice(),
            length: 0,
            offload: Offload::default(),
        }
    }

    /// Holds this packet, which was not read from a TUN, from now on.
    ///
    /// # Panics
    /// If it is longer than any packet.
    pub fn fill(&mut self, packet: &[u8], offload: Offload) {
        let start = Self::PACKET - Self::HEADER;
        self.bytes[start..Self::PACKET].copy_from_slice(&header(packet, offload));
        self.bytes[Self::PACKET..Self::PACKET + packet.len()].copy_from_slice(packet);
        (self.length, self.offload) = (packet.len(), offload);
    }

    /// The kernel's description of the packet.
    #[inline]
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// The packet from its IP header on.
    #[inline]
    pub fn packet(&self) -> &[u8] {
        &self.bytes[Self::PACKET..Self::PACKET + self.length]
    }

    /// The packet from its IP header on, to be edited in place.
    #[inline]
    pub fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[Self::PACKET..Self::PACKET + self.length]
    }

    /// A field of two bytes of the offload header.
    #[inline]
    fn field(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// Decodes the header that was read, and makes of it one that may be written.
    #[inline]
    fn take_header(&mut self, level: Level) {
        if level == Level::Plain {
            self.offload = Offload::default();
            self.bytes[..Self::PACKET].fill(0);
            return;
        }
        let flags = self.bytes[Self::FLAGS];
        let segmented = self.bytes[Self::GSO_TYPE] != Self::GSO_NONE;
        self.offload = Offload {
            partial_checksum: (flags & Self::NEEDS_CSUM != 0).then(|| {
                let start = self.field(Self::CSUM_START);
                PartialChecksum {
                    start,
                    field: start.saturating_add(self.field(Self::CSUM_OFFSET)),
                }
            }),
            checksum_verified: flags & Self::DATA_VALID != 0,
            segment_size: if segmented {
                self.field(Self::GSO_SIZE)
            } else {
                0
            },
        };
        // Only a receiver is told DATA_VALID; a sender must not set it (section 5.1.6.2.1). The
        // rest goes back as it came: the positions and sizes that it gives don't change.
        self.bytes[Self::FLAGS] = flags & Self::NEEDS_CSUM;
    }
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer::new()
    }
}

impl Level {
    /// Where in a [`Buffer`] that begins which the kernel reads and writes.
    #[inline]
    fn start(self) -> usize {
        match self {
            Level::Plain => Buffer::PACKET,
            Level::Header | Level::Tso | Level::TsoUso => Buffer::PACKET - Buffer::HEADER,
        }
    }
}

/// The virtio-net header of a packet (VIRTIO 1.2, section 5.1.6).
fn header(packet: &[u8], offload: Offload) -> [u8; Buffer::HEADER] {
    let mut header = [0; Buffer::HEADER];
    let Some(PartialChecksum { start, field }) = offload.partial_checksum else {
        return header;
    };
    let place = |at: usize| at - Buffer::FLAGS;
    let mut set = |at: usize, value: u16| {
        header[place(at)..place(at) + 2].copy_from_slice(&value.to_ne_bytes());
    };
    let offset = field.saturating_sub(start);
    set(Buffer::CSUM_START, start);
    set(Buffer::CSUM_OFFSET, offset);
    set(Buffer::GSO_SIZE, offload.segment_size);
    let is_tcp = offset == TCP_CHECKSUM;
    let transport = match packet.get(usize::from(start) + 12) {
        Some(data_offset) if is_tcp => u16::from(data_offset >> 4) * 4,
        _ => 8,
    };
    set(Buffer::GSO_TYPE + 1, start + transport);
    header[place(Buffer::FLAGS)] = Buffer::NEEDS_CSUM;
    let is_v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    header[place(Buffer::GSO_TYPE)] = match (offload.segment_size, is_tcp, is_v6) {
        (0, ..) => Buffer::GSO_NONE,
        (_, true, false) => GSO_TCPV4,
        (_, true, true) => GSO_TCPV6,
        (_, false, _) => GSO_UDP_L4,
    };
    if header[place(Buffer::GSO_TYPE)] == Buffer::GSO_NONE {
        header[2..6].fill(0);
    }
    header
}

/// Where the checksum is in a TCP header (RFC 9293, section 3.1).
const TCP_CHECKSUM: u16 = 16;
/// Kinds of super-packets (`VIRTIO_NET_HDR_GSO_*`).
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// Reattaches the descriptor with a vnet header, which tun-tap can't request, and turns on what
/// offloads are wanted and the kernel has. The device must be persistent meanwhile, or it would
/// vanish.
fn rearm(iface: &Iface, offloads: Offloads) -> io::Result<Level> {
    let fd = iface.as_raw_fd();
    set_persistent(fd, true)?;
    let fresh = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: both descriptors are open and owned by us. `iface` goes on owning its number, which
    // now leads to the fresh description; the old one is closed, and so detached.
    match unsafe { libc::dup3(fresh.as_raw_fd(), fd, libc::O_CLOEXEC) } {
        -1 => return Err(io::Error::last_os_error()),
        _ => drop(fresh),
    }
    let mut request = interface_request(iface.name())?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: TUNSETIFF takes an ifreq with name and flags; `request` is one and outlives the call.
    check(unsafe { libc::ioctl(fd, libc::TUNSETIFF as _, &mut request) })?;

    if offloads == Offloads::Off {
        set_offloads(fd, 0)?;
        return Ok(Level::Header);
    }
    // ECN: a super-packet with CWR set is passed on whole as any other.
    let tso = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let uso = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    set_offloads(fd, tso)?;
    match set_offloads(fd, tso | uso) {
        Ok(()) => Ok(Level::TsoUso),
        Err(_) => Ok(Level::Tso),
    }
}

/// Like read(2). That of the C library is a place where a thread may be cancelled, which costs each
/// packet 2 % of the gateway's time.
#[inline]
fn read_bytes(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most as many bytes as the slice has.
    let count = unsafe { libc::syscall(libc::SYS_read, fd, into.as_mut_ptr(), into.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Like write(2), for the same reason. A TUN takes a packet whole or not at all.
#[inline]
fn write_bytes(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the slice has.
    match unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn set_offloads(fd: RawFd, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offloads)) })
}

fn set_persistent(fd: RawFd, on: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(fd, libc::TUNSETPERSIST as _, libc::c_ulong::from(on)) })
}

fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: `fd` is open, and F_GETFL has no argument.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    check(flags)?;
    // SAFETY: as before; F_SETFL takes its argument by value.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

/// An `ifreq` for the interface `name`, all else zero.
pub(super) fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain old data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte must remain for the final zero, and `%` would make the kernel choose a name.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains(['%', '/', '\0']) {
        let message = format!("{name:?} is not a valid name for an interface");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn explain(error: io::Error, name: &str) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EBUSY) => "another process holds it; does a gateway run already?",
        Some(libc::EPERM | libc::EACCES) => "CAP_NET_ADMIN is needed",
        Some(libc::ENOENT | libc::ENODEV) => "/dev/net/tun is missing: modprobe tun",
        Some(libc::EINVAL) => "an interface with this name exists that is not a TUN device",
        _ => "can't create the device",
    };
    io::Error::new(error.kind(), format!("{name}: {hint} ({error})"))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::os::test_namespace::{in_namespace, ip};

    /// A device through which the kernel reaches 10.0.0.2.
    fn device(offloads: Offloads) -> Tun {
        let tun = Tun::open("tgw-test", offloads).unwrap();
        ip("link set lo up");
        ip("addr add 10.0.0.1/24 dev tgw-test");
        ip("link set tgw-test up");
        tun
    }

    /// The next IPv4 packet of UDP.
    fn next_udp(tun: &mut Tun, buffer: &mut Buffer) {
        for _ in 0..1000 {
            match tun.read(buffer).unwrap() {
                Some(length) => {
                    assert_eq!(length, buffer.packet().len());
                    if buffer.packet()[0] == 0x45 && buffer.packet()[9] == 17 {
                        return;
                    }
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        panic!("no packet");
    }

    /// Makes of a packet its answer; neither checksum changes by it.
    fn turn(packet: &mut [u8]) {
        let (a, b) = packet[12..20].split_at_mut(4);
        a.swap_with_slice(b);
        let (a, b) = packet[20..24].split_at_mut(2);
        a.swap_with_slice(b);
    }

    fn round_trip(offloads: Offloads) {
        let mut tun = device(offloads);
        let mut buffer = Buffer::new();
        let socket = UdpSocket::bind("10.0.0.1:5000").unwrap();
        socket.connect("10.0.0.2:6000").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket.send(b"to be turned round").unwrap();
        next_udp(&mut tun, &mut buffer);
        let offloaded = offloads == Offloads::Auto;
        assert_eq!(buffer.offload().partial_checksum.is_some(), offloaded);
        assert_eq!(buffer.offload().segment_size, 0);
        turn(buffer.packet_mut());
        tun.write(&buffer).unwrap();
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(&answer[..length], b"to be turned round");

        // The same as a packet of our own; zero means that UDP has no checksum.
        let mut packet = buffer.packet().to_vec();
        packet[26..28].fill(0);
        tun.write_packet(&packet, Offload::default()).unwrap();
        assert_eq!(socket.recv(&mut answer).unwrap(), length);
    }

    #[test]
    fn packets_go_round_without_offloads() {
        in_namespace(|| round_trip(Offloads::Off));
    }

    #[test]
    fn packets_go_round_with_offloads() {
        in_namespace(|| round_trip(Offloads::Auto));
    }

    #[test]
    fn super_packets_go_round_whole() {
        in_namespace(|| {
            let mut tun = device(Offloads::Auto);
            let mut buffer = Buffer::new();
            if tun.offload() != "tso+uso" {
                eprintln!("SKIPPED: this kernel has no UDP segmentation for TUN");
                return;
            }
            let socket = UdpSocket::bind("10.0.0.1:5000").unwrap();
            socket.connect("10.0.0.2:6000").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            let (segment, value) = (1000i32, [7u8; 30_000]);
            let length = size_of_val(&segment) as libc::socklen_t;
            // SAFETY: the option's value is an int that outlives the call.
            check(unsafe {
                let value = (&raw const segment).cast();
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_UDP,
                    libc::UDP_SEGMENT,
                    value,
                    length,
                )
            })
            .unwrap();
            socket.send(&value).unwrap();
            next_udp(&mut tun, &mut buffer);
            assert_eq!(buffer.packet().len(), 28 + value.len());
            assert_eq!(buffer.offload().segment_size, 1000);
            turn(buffer.packet_mut());
            tun.write(&buffer).unwrap();
            let mut datagram = [0; 2000];
            for _ in 0..30 {
                assert_eq!(socket.recv(&mut datagram).unwrap(), 1000);
            }
        });
    }

    #[test]
    fn device_is_exclusive_and_goes_with_its_owner() {
        in_namespace(|| {
            let tun = Tun::open("tgw-test", Offloads::Auto).unwrap();
            let error = Tun::open("tgw-test", Offloads::Auto).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
            assert!(error.to_string().contains("another process"), "{error}");
            drop(tun);
            let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            assert!(!devices.contains("tgw-test"));

            // As a gateway leaves it that is killed while it opens the device.
            ip("tuntap add tgw-test mode tun");
            drop(Tun::open("tgw-test", Offloads::Auto).unwrap());
            let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            assert!(!devices.contains("tgw-test"));
        });
    }

    #[test]
    fn errors_are_returned_and_not_retried() {
        in_namespace(|| {
            let mut tun = Tun::open("tgw-test", Offloads::Auto).unwrap();
            let mut buffer = Buffer::new();
            assert_eq!(tun.read(&mut buffer).unwrap(), None);
            let error = tun
                .write_packet(&[0x45; 20], Offload::default())
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "the device is down");
            ip("link set tgw-test up");
            assert!(tun.write_packet(&[], Offload::default()).is_err());
            ip("link del tgw-test");
            assert!(tun.read(&mut buffer).is_err());
        });
        for name in ["", "tgw-0123456789ab", "tgw-%d", "a/b"] {
            let error = Tun::open(name, Offloads::Auto).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }

    #[test]
    fn queue_length_is_set() {
        in_namespace(|| {
            let tun = Tun::open("tgw-test", Offloads::Auto).unwrap();
            match tun.set_queue_length(4000) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    eprintln!("SKIPPED: in a user namespace");
                    return;
                }
                result => result.unwrap(),
            }
            let link = std::process::Command::new("ip")
                .args(["link", "show", "tgw-test"])
                .output()
                .unwrap();
            let link = String::from_utf8_lossy(&link.stdout).into_owned();
            assert!(link.contains("qlen 4000"), "{link}");
        });
    }

    #[test]
    fn header_is_decoded_and_cleaned() {
        let mut buffer = Buffer::new();
        // DATA_VALID and NEEDS_CSUM, TCPv4 with ECN.
        let [low, high] = 1448u16.to_ne_bytes();
        let header = [3, 0x81, 54, 0, low, high, 34, 0, 16, 0];
        buffer.bytes[Buffer::FLAGS..Buffer::PACKET].copy_from_slice(&header);
        buffer.take_header(Level::Tso);
        let expected = Offload {
            partial_checksum: Some(PartialChecksum {
                start: u16::from_ne_bytes([34, 0]),
                field: u16::from_ne_bytes([34, 0]) + u16::from_ne_bytes([16, 0]),
            }),
            checksum_verified: true,
            segment_size: 1448,
        };
        assert_eq!(buffer.offload(), expected);
        assert_eq!(buffer.bytes[Buffer::FLAGS], 1);
        assert_eq!(buffer.bytes[Buffer::GSO_TYPE..Buffer::PACKET], header[1..]);
        buffer.take_header(Level::Plain);
        assert_eq!(buffer.offload(), Offload::default());
    }
}
