//! The workers that run inside the namespaces: each is another process of this same binary.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use clap::Parser;
use mio::{Events, Interest, Poll, Token};
use tandemgw::os::packet_socket::PacketSocket;
use tandemgw::os::tun::{Buffer, Offloads, Tun};

/// First of the sources of UDP flows; nobody has these addresses, so nobody rejects the answers.
pub const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 128);
/// Number of the sources of UDP flows.
pub const SOURCES: u32 = 64;
/// First of the destination ports of UDP flows.
pub const FIRST_PORT: u16 = 6000;
/// Number of destination ports of UDP flows.
pub const PORTS: u16 = 64;

/// First byte of the payload of a packet that asks for an answer.
pub const HELLO: u8 = b'H';

/// A worker; prints one line of JSON at its end.
#[derive(Parser)]
#[command(no_binary_name = true)]
pub enum Worker {
    /// The upper limit: reads packets from TUNs and writes them back unchanged.
    BareLoop {
        /// Names of the devices.
        devices: Vec<String>,
    },
    /// Sends one TCP stream, as fast as it goes.
    TcpBlast { to: SocketAddr, seconds: f64 },
    /// Receives one TCP stream.
    TcpSink { at: SocketAddr },
    /// Sends a byte, waits for it to come back, and so on; prints the time that half and 99 % of
    /// the rounds took at most, in µs.
    TcpPing { to: SocketAddr, seconds: f64 },
    /// Sends back what it receives, by one connection after the other.
    TcpEcho { at: SocketAddr },
    /// Opens a connection, has as many bytes sent back one by one, closes it, and so on; prints how
    /// many connections a second that were.
    TcpShort {
        to: SocketAddr,
        seconds: f64,
        bytes: u64,
    },
    /// Answers UDP packets. The lab lets only packets that ask for an answer through to it.
    UdpEcho { at: Ipv4Addr },
    /// Sends small UDP packets as raw frames, so that sending is cheaper than forwarding.
    UdpBlast(UdpBlast),
}

/// See [`Worker::UdpBlast`].
#[derive(clap::Args)]
pub struct UdpBlast {
    interface: String,
    /// Ethernet address of the gateway.
    gateway: String,
    to: Ipv4Addr,
    /// Number of flows to use in turn; with as many flows as packets, each packet opens a new
    /// session.
    #[arg(long)]
    flows: u64,
    /// Ends after this many packets.
    #[arg(long, default_value_t = u64::MAX)]
    packets: u64,
    /// Ends after this many seconds.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Packets a second; flat out if 0.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Packets to send together, at most 64.
    #[arg(long, default_value_t = 64)]
    batch: u64,
    /// Asks for an answer to each packet.
    #[arg(long)]
    hello: bool,
}

impl Worker {
    /// Runs it to its end.
    pub fn run(self) -> Result<(), Box<dyn Error>> {
        match self {
            Worker::BareLoop { devices } => bare_loop(&devices),
            Worker::TcpBlast { to, seconds } => tcp_blast(to, Duration::from_secs_f64(seconds)),
            Worker::TcpSink { at } => tcp_sink(at),
            Worker::TcpPing { to, seconds } => tcp_ping(to, Duration::from_secs_f64(seconds)),
            Worker::TcpEcho { at } => tcp_echo(at),
            Worker::TcpShort { to, seconds, bytes } => {
                tcp_short(to, Duration::from_secs_f64(seconds), bytes)
            }
            Worker::UdpEcho { at } => udp_echo(at),
            Worker::UdpBlast(blast) => udp_blast(&blast),
        }
    }
}

/// Like the gateway's loop, but without a gateway: the devices take turns, 64 packets each.
fn bare_loop(devices: &[String]) -> Result<(), Box<dyn Error>> {
    const BUDGET: usize = 64;
    let mut poll = Poll::new()?;
    let mut tuns = vec![];
    for (index, name) in devices.iter().enumerate() {
        let mut tun = Tun::open(name, Offloads::Auto)?;
        if let Err(error) = tun.set_queue_length(1000) {
            log::warn!("queue length of {name}: {error}");
        }
        poll.registry()
            .register(&mut tun, Token(index), Interest::READABLE)?;
        tuns.push((tun, false));
    }
    let mut events = Events::with_capacity(8);
    let mut buffer = Buffer::new();
    loop {
        let busy = tuns.iter().any(|(_, ready)| *ready);
        match poll.poll(&mut events, busy.then_some(Duration::ZERO)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            tuns[event.token().0].1 = true;
        }
        for (tun, ready) in tuns.iter_mut().filter(|(_, ready)| *ready) {
            for _ in 0..BUDGET {
                if tun.read(&mut buffer)?.is_none() {
                    *ready = false;
                    break;
                }
                // A lost packet shows in the result.
                let _ = tun.write(&buffer);
            }
        }
    }
}

fn tcp_blast(to: SocketAddr, duration: Duration) -> Result<(), Box<dyn Error>> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    let bytes = vec![7u8; 1 << 17];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < duration {
        stream.write_all(&bytes)?;
        sent += bytes.len();
    }
    print(&[("sent_bytes", sent as f64)], start);
    Ok(())
}

fn tcp_sink(at: SocketAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(at)?;
    println!("ready");
    let (mut stream, _) = listener.accept()?;
    let mut buffer = vec![0; 1 << 18];
    let start = Instant::now();
    let mut received = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            length => received += length,
        }
    }
    let gbit = received as f64 * 8e-9 / start.elapsed().as_secs_f64();
    print(&[("bytes", received as f64), ("gbit_s", gbit)], start);
    Ok(())
}

fn tcp_ping(to: SocketAddr, duration: Duration) -> Result<(), Box<dyn Error>> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    let start = Instant::now();
    let mut rounds = Vec::new();
    while start.elapsed() < duration {
        let sent = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        rounds.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    rounds.sort_by(f64::total_cmp);
    let at = |share: f64| rounds[(rounds.len() as f64 * share) as usize];
    print(&[("p50", at(0.5)), ("p99", at(0.99))], start);
    Ok(())
}

fn tcp_echo(at: SocketAddr) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(at)?;
    println!("ready");
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = [0; 64];
        loop {
            match stream.read(&mut bytes)? {
                0 => break,
                length => stream.write_all(&bytes[..length])?,
            }
        }
    }
}

fn tcp_short(to: SocketAddr, duration: Duration, bytes: u64) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let mut connections = 0;
    while start.elapsed() < duration {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        for _ in 0..bytes {
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
        }
        connections += 1;
    }
    let rate = f64::from(connections) / start.elapsed().as_secs_f64();
    print(&[("connections_s", rate)], start);
    Ok(())
}

fn udp_echo(at: Ipv4Addr) -> Result<(), Box<dyn Error>> {
    let sockets = (FIRST_PORT..FIRST_PORT + PORTS)
        .map(|port| UdpSocket::bind((at, port)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut poll = Poll::new()?;
    for (index, socket) in sockets.iter().enumerate() {
        socket.set_nonblocking(true)?;
        let fd = socket.as_raw_fd();
        let mut source = mio::unix::SourceFd(&fd);
        poll.registry()
            .register(&mut source, Token(index), Interest::READABLE)?;
    }
    println!("ready");
    let mut events = Events::with_capacity(PORTS.into());
    let mut buffer = [0; 2048];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            let socket = &sockets[event.token().0];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
    }
}

fn udp_blast(options: &UdpBlast) -> Result<(), Box<dyn Error>> {
    const BATCH: u64 = 64;
    let socket = PacketSocket::open(&options.interface)?;
    let kind = if options.hello { HELLO } else { 0 };
    let template = frame(&options.gateway, options.to, kind)?;
    let mut frames = vec![template; BATCH as usize];
    let start = Instant::now();
    let (mut offered, mut sent) = (0, 0);
    while offered < options.packets && start.elapsed().as_secs_f64() < options.seconds {
        if options.rate > 0 {
            let due = Duration::from_secs_f64(offered as f64 / options.rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        let batch = options.batch.clamp(1, BATCH);
        let count = batch.min(options.packets - offered);
        for (frame, number) in frames.iter_mut().zip(offered..offered + count) {
            address(frame, number % options.flows);
        }
        offered += count;
        sent += send_all(&socket, &frames[..count as usize])?;
    }
    print(&[("sent", sent as f64)], start);
    Ok(())
}

const FRAME: usize = 60;

/// A frame of an empty flow, its UDP checksum that of a source 0.0.0.0:0 and destination port 0.
fn frame(gateway: &str, to: Ipv4Addr, kind: u8) -> Result<[u8; FRAME], Box<dyn Error>> {
    let mut frame = [0; FRAME];
    for (byte, hex) in frame.iter_mut().zip(gateway.split(':')) {
        *byte = u8::from_str_radix(hex, 16)?;
    }
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, (FRAME - 14) as u8, 0, 0, 0x40, 0, 64, 17]);
    frame[30..34].copy_from_slice(&to.octets());
    frame[39] = (FRAME - 34) as u8;
    frame[42] = kind;
    Ok(frame)
}

/// Gives `frame` the addresses and ports of flow `number`. Until all of them have been used, no two
/// flows have the same source port and destination, so that a translation to one address can keep
/// the port.
fn address(frame: &mut [u8; FRAME], number: u64) {
    const SOURCE_PORTS: u64 = 60_000;
    let source = u32::from(FIRST_SOURCE) + (number % u64::from(SOURCES)) as u32;
    let source_port = 1024 + (number % SOURCE_PORTS) as u16;
    let turn = number + number / SOURCE_PORTS;
    let port = FIRST_PORT + (turn % u64::from(PORTS)) as u16;
    frame[26..30].copy_from_slice(&source.to_be_bytes());
    frame[34..36].copy_from_slice(&source_port.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[24..26].fill(0);
    let ip = checksum(&frame[14..34], 0);
    frame[24..26].copy_from_slice(&ip.to_be_bytes());
    frame[40..42].fill(0);
    let udp = checksum(&frame[26..], 17 + (FRAME - 34) as u32);
    frame[40..42].copy_from_slice(&udp.to_be_bytes());
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks_exact(2);
    let sum = words.fold(start, |sum, word| {
        sum + u32::from(u16::from_be_bytes([word[0], word[1]]))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Sends all frames with as few calls as possible; returns the number that the kernel accepted.
fn send_all(socket: &PacketSocket, frames: &[[u8; FRAME]]) -> io::Result<u64> {
    // SAFETY: mmsghdr and iovec are plain old data, for which all zeroes are valid.
    let mut parts: [libc::iovec; 64] = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut messages: [libc::mmsghdr; 64] = unsafe { std::mem::zeroed() };
    for ((frame, part), message) in frames.iter().zip(&mut parts).zip(&mut messages) {
        part.iov_base = frame.as_ptr().cast_mut().cast();
        part.iov_len = FRAME;
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    let (mut next, mut sent) = (0, 0);
    while next < frames.len() {
        let rest = &mut messages[next..frames.len()];
        let (start, count) = (rest.as_mut_ptr(), rest.len() as libc::c_uint);
        // SAFETY: `rest` has `count` headers, whose parts and frames outlive the call.
        let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), start, count, 0) };
        match usize::try_from(result) {
            Ok(count) => {
                sent += count as u64;
                next += count;
            }
            Err(_) => match io::Error::last_os_error() {
                // A queue is full: this one is lost.
                error if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                    next += 1
                }
                error => return Err(error),
            },
        }
    }
    Ok(sent)
}

fn print(values: &[(&str, f64)], start: Instant) {
    let mut line = serde_json::Map::new();
    line.insert("seconds".into(), start.elapsed().as_secs_f64().into());
    for (name, value) in values {
        line.insert((*name).into(), (*value).into());
    }
    println!("{}", serde_json::Value::from(line));
}
