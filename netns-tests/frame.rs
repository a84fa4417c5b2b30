//! Hand-made Ethernet frames: what no well-behaved stack would send.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use etherparse::PacketBuilder;

use testkit::system::namespace::Namespace;
use testkit::system::process::{PATIENCE, Process};

/// Where the IP header starts in a frame.
pub const IP: usize = 14;

/// Sends frames out of an interface, through socat: it works for ordinary users too, who can't open
/// a packet socket in another user namespace from within a thread.
pub struct FrameSocket {
    socket: UnixDatagram,
    process: Process,
}

impl FrameSocket {
    /// Opens one on an interface.
    pub fn open(ns: &Namespace, interface: &str) -> FrameSocket {
        let (socket, theirs) = UnixDatagram::pair().expect("a socket pair");
        let mut command = ns.command("socat");
        command.args([
            "-d",
            "-d",
            "-u",
            "-b",
            "65536",
            "STDIN",
            &format!("INTERFACE:{interface}"),
        ]);
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        let process = Process::spawn(command, &format!("{}# socat", ns.name()));
        process.expect_stderr("transfer", |line| line.contains("starting data transfer"));
        FrameSocket { socket, process }
    }

    /// Sends a frame, from its destination address on.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        self.socket.send(frame).expect("socat takes the frame");
    }

    /// Waits until all frames are on the wire; fails if one could not be sent.
    #[track_caller]
    pub fn finish(self) {
        // socat takes an empty datagram for the end of its input.
        self.socket.send(&[]).expect("socat runs");
        self.process.finish(PATIENCE).ok();
    }
}

/// The ends of a packet.
#[derive(Clone, Copy)]
pub struct Ends {
    pub mac: ([u8; 6], [u8; 6]),
    pub ip: ([u8; 4], [u8; 4]),
    pub port: (u16, u16),
}

impl Ends {
    /// A frame with a TCP SYN.
    pub fn syn(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.mac.0, self.mac.1)
            .ipv4(self.ip.0, self.ip.1, 64)
            .tcp(self.port.0, self.port.1, 1, 65535)
            .syn();
        let mut frame = Vec::new();
        builder.write(&mut frame, &[]).expect("writing to memory");
        frame
    }

    /// A frame with a UDP datagram.
    pub fn udp(&self, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.mac.0, self.mac.1)
            .ipv4(self.ip.0, self.ip.1, 64)
            .udp(self.port.0, self.port.1);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, payload)
            .expect("writing to memory");
        frame
    }

    /// The same over IPv6, between the given addresses.
    pub fn udp6(&self, src: [u8; 16], dst: [u8; 16], payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.mac.0, self.mac.1)
            .ipv6(src, dst, 64)
            .udp(self.port.0, self.port.1);
        let mut frame = Vec::new();
        builder
            .write(&mut frame, payload)
            .expect("writing to memory");
        frame
    }
}

/// Makes the checksum of an IPv4 header right again after an edit.
pub fn fix_ipv4_checksum(frame: &mut [u8]) {
    let length = usize::from(frame[IP] & 0xf) * 4;
    let header = &mut frame[IP..][..length];
    header[10..12].fill(0);
    let mut sum: u32 = header
        .chunks(2)
        .map(|b| u32::from(u16::from_be_bytes([b[0], b[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).expect("folded");
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// An IPv4 fragment: `offset` in bytes, a multiple of 8.
pub fn fragment(ends: &Ends, id: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = ends.udp(&[]);
    frame.truncate(IP + 20);
    frame.extend_from_slice(payload);
    let length = u16::try_from(frame.len() - IP).expect("a small fragment");
    frame[IP + 2..IP + 4].copy_from_slice(&length.to_be_bytes());
    frame[IP + 4..IP + 6].copy_from_slice(&id.to_be_bytes());
    let flags = if more { 0x2000 } else { 0 };
    frame[IP + 6..IP + 8].copy_from_slice(&(flags | (offset / 8)).to_be_bytes());
    fix_ipv4_checksum(&mut frame);
    frame
}
