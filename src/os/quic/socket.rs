//! The UDP socket of a link: batches in and out (GRO, GSO), and the errors that the kernel reports.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::{Interest, Registry, Token};
use quinn_proto::{Connection, Transmit};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::super::ethtool;
use super::tuning;
use tandemgw_core::config::HaLink;
use tandemgw_core::in_quotes::InQuotes;

/// Buffers a receive call fills at most; with GRO each holds up to 64 KiB.
pub(super) const RECEIVE_BATCH: usize = 4;
/// Bytes of one of them.
pub(super) const RECEIVE_BUFFER: usize = 64 << 10;
/// The MTU of Ethernet.
const ETHERNET_MTU: u32 = 1500;
/// Bytes in one send call, below the 64 KiB that the kernel takes.
const MOST_SENT: usize = 32 * 1452;
/// Received bytes that the kernel may keep: a burst of stream data must not push out heartbeats
/// while the loop forwards packets. The send buffer stays as it is, since a heartbeat waits behind
/// it.
const KERNEL_RECEIVE_BUFFER: libc::c_int = 4 << 20;

/// A non-blocking UDP socket, which may have to wait for its interface or address to be there.
pub(super) struct Socket {
    link: HaLink,
    /// None while it can't be bound: then nothing arrives, and data sent is lost.
    bound: Option<Bound>,
    /// The data being sent; its memory is reused.
    buffer: Vec<u8>,
    /// Set while `buffer` holds data that the kernel has not accepted yet.
    blocked: Option<Transmit>,
    registration: Option<(Registry, Token)>,
    /// Sends that failed for another reason than a full buffer.
    pub(super) send_errors: u64,
}

struct Bound {
    io: mio::net::UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    /// A socket for `link` that is not bound yet.
    pub(super) fn new(link: &HaLink) -> Socket {
        Socket {
            link: link.clone(),
            bound: None,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
            blocked: None,
            registration: None,
            send_errors: 0,
        }
    }

    /// Binds it to the address of its link, and to the interface if the kernel lets us: for the
    /// first time, or once more when either was removed and made again. On an error it is unbound.
    pub(super) fn bind(&mut self) -> io::Result<()> {
        self.unbind();
        let mut bound = Bound::new(&self.link)?;
        if let Some((registry, token)) = &self.registration {
            registry.register(&mut bound.io, *token, Interest::READABLE)?;
        }
        self.bound = Some(bound);
        Ok(())
    }

    /// Unbinds from an interface that is gone.
    pub(super) fn unbind(&mut self) {
        (self.bound, self.blocked) = (None, None);
    }

    /// Whether it is bound.
    pub(super) fn is_bound(&self) -> bool {
        self.bound.is_some()
    }

    /// The address that the socket is bound to.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        let bound = self.bound.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        bound.io.local_addr()
    }

    /// The largest UDP payload that fits the interface now, as far as that is known.
    pub(super) fn payload(&self) -> u16 {
        let mtu = ethtool::mtu(&self.link.interface).unwrap_or(ETHERNET_MTU);
        tuning::payload(mtu, self.link.listen.is_ipv6())
    }

    /// Whether a datagram may be fragmented on its way, so that MTU discovery makes no sense.
    pub(super) fn may_fragment(&self) -> bool {
        let bound = self.bound.as_ref();
        bound.is_some_and(|bound| bound.state.may_fragment())
    }

    /// Has the poll of `registry` report this socket under `token`, now and whenever it is bound.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        if let Some(bound) = &mut self.bound {
            registry.register(&mut bound.io, token, Interest::READABLE)?;
        }
        self.registration = Some((registry.try_clone()?, token));
        Ok(())
    }

    /// Receives into the buffers; `WouldBlock` if there is nothing.
    pub(super) fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let Some(Bound { io, state }) = &self.bound else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        io.try_io(|| state.recv(UdpSockRef::from(io), buffers, metas))
    }

    /// Takes one report from the error queue: the address whose kernel said that no process has the
    /// port, or `Some(None)` for another error. `None` if the queue is empty.
    pub(super) fn take_error(&self) -> Option<Option<IpAddr>> {
        let Bound { io, state } = self.bound.as_ref()?;
        let error = state.recv_transport_error(UdpSockRef::from(io)).ok()??;
        let refused = error.raw_errno == libc::ECONNREFUSED;
        Some(error.addr.filter(|_| refused).map(|addr| addr.ip()))
    }

    /// Whether something waits for room in the kernel.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Sends data that waited for room.
    pub(super) fn flush(&mut self) {
        if let Some(transmit) = self.blocked.take() {
            self.send_buffer(transmit);
            if self.blocked.is_none() {
                self.watch(Interest::READABLE);
            }
        }
    }

    /// Sends what `connection` has, in at most `budget` calls. Returns whether there may be more.
    pub(super) fn transmit(
        &mut self,
        connection: &mut Connection,
        now: Instant,
        budget: usize,
    ) -> bool {
        for _ in 0..budget {
            if self.is_blocked() {
                return false;
            }
            self.buffer.clear();
            let bound = self.bound.as_ref();
            let segments = bound.map_or(1, |bound| bound.state.max_gso_segments());
            let most = MOST_SENT / usize::from(connection.current_mtu());
            let segments = segments.clamp(1, most.max(1));
            match connection.poll_transmit(now, segments, &mut self.buffer) {
                Some(transmit) => self.send_buffer(transmit),
                None => return false,
            }
        }
        !self.is_blocked()
    }

    /// Sends a datagram that belongs to no connection; it is lost if the kernel has no room.
    pub(super) fn send(&mut self, transmit: Transmit, contents: &[u8]) {
        if self.is_blocked() {
            return;
        }
        self.buffer.clear();
        self.buffer.extend_from_slice(contents);
        self.send_buffer(transmit);
    }

    fn send_buffer(&mut self, transmit: Transmit) {
        // An error that came for an earlier datagram is reported here, and this one not sent: once
        // reported it is gone, so a second attempt is made.
        for last in [false, true] {
            match self.try_send(&transmit) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = Some(transmit);
                    self.watch(Interest::READABLE | Interest::WRITABLE);
                    return;
                }
                // A probe for a bigger MTU than the link has.
                Err(error) if quinn_udp::is_msg_size_err(&error) => return,
                Err(error) if last => {
                    self.send_errors += 1;
                    log::trace!(
                        "datagram not sent to={} error={error}",
                        transmit.destination,
                        error = InQuotes(&error)
                    );
                }
                Err(_) => {}
            }
        }
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit
                .ecn
                .and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: self.buffer.get(..transmit.size).unwrap_or(&self.buffer),
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        let Some(Bound { io, state }) = &self.bound else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        io.try_io(|| state.try_send(UdpSockRef::from(io), &transmit))
    }

    fn watch(&mut self, interest: Interest) {
        if let (Some((registry, token)), Some(bound)) = (&self.registration, &mut self.bound)
            && let Err(error) = registry.reregister(&mut bound.io, *token, interest)
        {
            log::warn!("link socket not watched error={}", InQuotes(&error));
        }
    }
}

impl Bound {
    fn new(link: &HaLink) -> io::Result<Bound> {
        let context = |what: &str, error: io::Error| {
            let text = format!(
                "link {} on {}: {what}: {error}",
                link.listen, link.interface
            );
            io::Error::new(error.kind(), text)
        };
        let domain = Domain::for_address(link.listen);
        let raw = RawSocket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))
            .map_err(|error| context("no socket", error))?;
        match raw.bind_device(Some(link.interface.as_bytes())) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                log::debug!(
                    "link not bound interface={} error={error}",
                    link.interface,
                    error = InQuotes(&error)
                );
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                // The standard library has no kind for it.
                let text = context("no such interface", error).to_string();
                return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, text));
            }
            result => result.map_err(|error| context("no such interface", error))?,
        }
        if link.listen.is_ipv6() {
            raw.set_only_v6(true)
                .map_err(|error| context("IPv6 only", error))?;
        }
        raw.bind(&link.listen.into())
            .map_err(|error| context("can't listen", error))?;
        let io = mio::net::UdpSocket::from_std(raw.into());
        let state = UdpSocketState::new(UdpSockRef::from(&io))
            .map_err(|error| context("socket options", error))?;
        state
            .enable_transport_errors(UdpSockRef::from(&io))
            .map_err(|error| context("IP_RECVERR", error))?;
        grow_receive_buffer(&io);
        Ok(Bound { io, state })
    }
}

/// Beyond `net.core.rmem_max` if we have CAP_NET_ADMIN (socket(7), `SO_RCVBUFFORCE`), else up to
/// it.
fn grow_receive_buffer(socket: &mio::net::UdpSocket) {
    let size = KERNEL_RECEIVE_BUFFER;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
        // SAFETY: the descriptor is open as long as `socket` is borrowed, and the kernel reads
        // `size_of::<c_int>()` bytes from a pointer to a `c_int` that outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 {
            return;
        }
    }
    log::debug!("link socket receive buffer not enlarged");
}
