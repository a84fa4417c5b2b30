//! Asks the targets of `[[link-monitor]]` from an address of this machine: pings and TCP
//! connections, through sockets that the loop waits for.
//!
//! A socket is bound to the port's interface, so that a question leaves where the target is
//! expected, whatever the routes say. That of a ping stays open, since answers may take longer than
//! an interval; a connection is closed with its answer, or at the next probe.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use tandemgw_core::config::{LinkMonitor, MonitorProtocol};

/// How many monitors a config can have.
pub const MOST_MONITORS: usize = 64;

/// Echo requests and replies (RFC 792; RFC 4443, section 4).
const V4: (u8, u8) = (8, 0);
const V6: (u8, u8) = (128, 129);

/// Messages that are read from one socket in a turn.
const BUDGET: usize = 16;

/// The sockets of the probes that are under way. Uses [`MOST_MONITORS`] tokens.
pub struct Probes {
    first: Token,
    open: Vec<Option<Open>>,
    /// By monitor: an event has come.
    ready: u64,
    /// Tells echo replies of this process from others.
    identifier: u16,
}

struct Open {
    socket: Socket,
    protocol: MonitorProtocol,
    /// The last probe.
    sequence: u16,
    source: IpAddr,
    /// The answer to the last connection was told.
    is_told: bool,
}

impl Probes {
    /// Nothing is open. `first` is the first of the tokens.
    pub fn new(first: Token) -> Probes {
        Probes {
            first,
            open: std::iter::repeat_with(|| None)
                .take(MOST_MONITORS)
                .collect(),
            ready: 0,
            identifier: std::process::id() as u16,
        }
    }

    /// Records an event, if it is for one of the sockets. Returns whether it is.
    pub fn mark(&mut self, token: Token) -> bool {
        let index = token.0.wrapping_sub(self.first.0);
        let is_ours = index < MOST_MONITORS;
        if is_ours {
            self.ready |= 1 << index;
        }
        is_ours
    }

    /// Sends a probe. The one before, of the same monitor, is no longer waited for.
    ///
    /// # Errors
    /// What the kernel refuses: no route, an address that is gone. The target counts as silent
    /// then.
    pub fn send(
        &mut self,
        registry: &Registry,
        (index, sequence): (usize, u16),
        monitor: &LinkMonitor,
        interface: &str,
        source: IpAddr,
    ) -> io::Result<()> {
        let Some(place) = self.open.get_mut(index) else {
            return Ok(());
        };
        let (protocol, identifier) = (monitor.protocol, self.identifier);
        if protocol == MonitorProtocol::Ping
            && let Some(open) = place.as_mut().filter(|open| open.source == source)
        {
            open.sequence = sequence;
            let sent = open.ping(identifier);
            if sent.is_err() {
                *place = None;
            }
            return sent;
        }
        *place = None;
        let open = Open {
            socket: match protocol {
                MonitorProtocol::Tcp => connect(monitor, interface, source)?,
                _ => connect_raw(monitor, interface, source)?,
            },
            protocol,
            sequence,
            source,
            is_told: false,
        };
        let interest = match protocol {
            MonitorProtocol::Tcp => Interest::WRITABLE,
            _ => Interest::READABLE,
        };
        let token = Token(self.first.0 + index);
        registry.register(&mut SourceFd(&open.socket.as_raw_fd()), token, interest)?;
        if protocol == MonitorProtocol::Ping {
            open.ping(identifier)?;
        }
        *place = Some(open);
        Ok(())
    }

    /// The next answer that has come: of which monitor, to which probe.
    pub fn poll_answer(&mut self) -> Option<(usize, u16)> {
        while self.ready != 0 {
            let index = self.ready.trailing_zeros() as usize;
            let place = self.open.get_mut(index).and_then(Option::as_mut);
            match place.and_then(|open| open.read_answer(self.identifier)) {
                Some(sequence) => return Some((index, sequence)),
                // The kernel tells of what comes later.
                None => self.ready &= !(1 << index),
            }
        }
        None
    }
}

impl Open {
    /// The number of the probe that is answered next, if an answer has come.
    fn read_answer(&mut self, identifier: u16) -> Option<u16> {
        if self.protocol == MonitorProtocol::Tcp {
            // A refusal is an answer: the target is there.
            let is_there = match self.socket.take_error() {
                Ok(Some(error)) => error.kind() == ErrorKind::ConnectionRefused,
                Ok(None) => self.socket.peer_addr().is_ok(),
                Err(_) => false,
            };
            let is_told = std::mem::replace(&mut self.is_told, is_there);
            return (is_there && !is_told).then_some(self.sequence);
        }
        for _ in 0..BUDGET {
            match self.read_reply(identifier) {
                Ok(None) => {}
                Ok(sequence) => return sequence,
                Err(_) => return None,
            }
        }
        None
    }

    /// The number in the next message, if that answers a ping of ours.
    fn read_reply(&mut self, identifier: u16) -> io::Result<Option<u16>> {
        let mut bytes = [0; 256];
        let length = (&self.socket).read(&mut bytes)?;
        let header = match self.source.is_ipv4() {
            // The kernel gives the IP header too.
            true => usize::from(bytes[0] & 15) * 4,
            false => 0,
        };
        let (_, reply) = if self.source.is_ipv4() { V4 } else { V6 };
        let message = bytes.get(header..length).unwrap_or_default();
        let [kind, _, _, _, i, j, s, t, ..] = *message else {
            return Ok(None);
        };
        let is_ours = kind == reply && u16::from_be_bytes([i, j]) == identifier;
        Ok(is_ours.then_some(u16::from_be_bytes([s, t])))
    }

    fn ping(&self, identifier: u16) -> io::Result<()> {
        let (request, _) = if self.source.is_ipv4() { V4 } else { V6 };
        let mut message = [0; 16];
        message[0] = request;
        message[4..6].copy_from_slice(&identifier.to_be_bytes());
        message[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        message[8..].copy_from_slice(b"tandemgw");
        if self.source.is_ipv4() {
            // For ICMPv6 the kernel does that.
            let checksum = checksum(&message);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        self.socket.send(&message).map(drop)
    }
}

/// A socket on that interface, with that source.
fn open(kind: Type, protocol: Protocol, interface: &str, source: IpAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(source, 0));
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    let scope = scope_of(source, interface)?;
    socket.bind(&endpoint(source, 0, scope))?;
    Ok(socket)
}

/// A link-local address is one of an interface.
fn scope_of(addr: IpAddr, interface: &str) -> io::Result<u32> {
    match addr {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            let name = std::ffi::CString::new(interface)?;
            // SAFETY: `name` is a valid string, borrowed only for the call.
            match unsafe { libc::if_nametoindex(name.as_ptr()) } {
                0 => Err(io::Error::last_os_error()),
                index => Ok(index),
            }
        }
        _ => Ok(0),
    }
}

fn endpoint(addr: IpAddr, port: u16, scope: u32) -> SockAddr {
    match addr {
        IpAddr::V4(v4) => SocketAddr::from((v4, port)).into(),
        IpAddr::V6(v6) => std::net::SocketAddrV6::new(v6, port, 0, scope).into(),
    }
}

/// A socket for pings to the target.
fn connect_raw(monitor: &LinkMonitor, interface: &str, source: IpAddr) -> io::Result<Socket> {
    let protocol = match source {
        IpAddr::V4(_) => Protocol::ICMPV4,
        IpAddr::V6(_) => Protocol::ICMPV6,
    };
    let socket = open(Type::RAW, protocol, interface, source)?;
    let scope = scope_of(monitor.server, interface)?;
    socket.connect(&endpoint(monitor.server, 0, scope))?;
    Ok(socket)
}

fn connect(monitor: &LinkMonitor, interface: &str, source: IpAddr) -> io::Result<Socket> {
    let socket = open(Type::STREAM, Protocol::TCP, interface, source)?;
    // It is closed by a reset, and leaves nothing behind.
    socket.set_linger(Some(Duration::ZERO))?;
    let scope = scope_of(monitor.server, interface)?;
    let to = endpoint(monitor.server, monitor.server_port.unwrap_or(0), scope);
    match socket.connect(&to) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        rest => u32::from(rest[0]) << 8,
    });
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_its_checksum_sums_up_to_nothing() {
        let mut message = [8, 0, 0, 0, 0x12, 0x34, 0, 1, b't', b'g'];
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&message), 0);
    }
}
