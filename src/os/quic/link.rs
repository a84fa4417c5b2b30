//! One link: a socket, an endpoint, and for each peer a connection of each role.

mod admission;

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ConnectionError, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig, Event as QuicEvent,
};
use quinn_udp::RecvMeta;

use super::connection::{Conn, Phase, Streams};
use super::gate::{self, Gate, Sender};
use super::shared::{Context, Shared, code};
use super::socket::{RECEIVE_BATCH, RECEIVE_BUFFER, Socket};
use super::tuning::Role;
use super::{SendError, down_reason, refusal};
use tandemgw_core::config::HaLink;
use tandemgw_core::flow::{LinkId, PeerId};
use tandemgw_core::pump::{DownReason, PeerEvent};

/// Pause before the first new attempt, and after a silence.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// Longest pause, reached by peers that refuse.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// A connection that lasted this long counts as good.
const GOOD_LIFE: Duration = Duration::from_secs(1);
/// Datagrams handled in one call of [`QuicLink::receive`], before the rest of the loop has its
/// turn.
const RECEIVE_BUDGET: usize = 128;
/// The time after which it stops reading, whatever the datagrams cost.
const RECEIVE_TIME: Duration = Duration::from_micros(100);
/// Send calls of one connection in one poll.
const TRANSMIT_BUDGET: usize = 4;
/// Stream bytes read of one connection in one poll.
const READ_BUDGET: usize = 256 << 10;
/// Reports taken from the error queue in one call.
const ERROR_BUDGET: usize = 32;
/// Rounds of events between endpoint and connection; two or three are usual.
const EVENT_ROUNDS: usize = 64;

/// The connection of one peer and role.
#[derive(Clone, Copy, Default)]
struct Slot {
    current: Option<ConnectionHandle>,
    /// When to dial again; `None` means at once.
    retry: Option<Instant>,
    backoff: Duration,
}

/// See the module.
pub(super) struct QuicLink {
    id: LinkId,
    pub(super) socket: Socket,
    /// Why the socket could not be bound at first.
    pub(super) unbound: Option<io::Error>,
    endpoint: Endpoint,
    gate: Gate,
    /// By handle.
    conns: Vec<Option<Conn>>,
    /// By peer and role.
    slots: Vec<[Slot; 2]>,
    /// By peer.
    pub(super) remotes: Vec<Option<SocketAddr>>,
    /// Whether a budget ended the last poll.
    unfinished: bool,
    response: Vec<u8>,
}

impl QuicLink {
    pub(super) fn new(
        id: LinkId,
        config: &HaLink,
        endpoint: EndpointConfig,
        gate: Gate,
        shared: &Shared,
        remotes: Vec<Option<SocketAddr>>,
    ) -> QuicLink {
        let mut socket = Socket::new(config);
        let unbound = socket.bind().err();
        let [server, _] = &shared.servers;
        let endpoint = Endpoint::new(
            Arc::new(endpoint),
            Some(server.clone()),
            !socket.may_fragment(),
            None,
        );
        QuicLink {
            id,
            socket,
            unbound,
            endpoint,
            gate,
            conns: Vec::new(),
            slots: vec![Default::default(); shared.peers.len()],
            remotes,
            unfinished: false,
            response: Vec::new(),
        }
    }

    /// Follows the peers after a reload. Those that have lost their places have no connection any
    /// more.
    pub(super) fn set_peers(&mut self, shared: &Shared, remotes: Vec<Option<SocketAddr>>) {
        let [server, _] = &shared.servers;
        self.endpoint.set_server_config(Some(server.clone()));
        self.slots.resize(shared.peers.len(), Default::default());
        self.gate.set_peers(shared.peers.len());
        self.remotes = remotes;
    }

    /// Reads datagrams up to the budget; returns whether there may be more.
    pub(super) fn receive(&mut self, buffer: &mut [u8], cx: &mut Context<'_>) -> bool {
        self.take_errors(cx);
        let (mut handled, began) = (0, Instant::now());
        while handled < RECEIVE_BUDGET && began.elapsed() < RECEIVE_TIME {
            let mut metas = [RecvMeta::default(); RECEIVE_BATCH];
            let mut chunks = buffer.chunks_exact_mut(RECEIVE_BUFFER);
            let mut slices: [IoSliceMut<'_>; RECEIVE_BATCH] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            let count = match self.socket.receive(&mut slices, &mut metas) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => {
                    // An error that an earlier datagram met: it is in the error queue too.
                    self.take_errors(cx);
                    handled += RECEIVE_BATCH;
                    continue;
                }
            };
            for (meta, chunk) in metas.iter().take(count).zip(buffer.chunks(RECEIVE_BUFFER)) {
                let bytes = chunk.get(..meta.len).unwrap_or_default();
                let datagrams = bytes.chunks(meta.stride.max(1));
                handled += datagrams.len();
                let marks = gate::peers_at(meta.addr.ip(), &self.remotes, &cx.shared.peers);
                if marks.is_empty() {
                    cx.out.counters.foreign_datagrams += datagrams.len() as u64;
                    continue;
                }
                let sender = Sender {
                    peers: &marks,
                    connected: marks.iter().any(|&(peer, _)| self.is_connected(peer)),
                };
                for datagram in datagrams {
                    let strangers = &mut cx.out.strangers;
                    match self.gate.admits(datagram, &sender, strangers, cx.now) {
                        true => self.handle_datagram(meta, datagram, cx),
                        false => cx.out.counters.initials_limited += 1,
                    }
                }
            }
        }
        true
    }

    /// Timers, events and transmissions, until nothing is left to do or a budget is used up.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        self.unfinished = false;
        self.socket.flush();
        self.dial(cx);
        for index in 0..self.conns.len() {
            self.drive(ConnectionHandle(index), cx);
        }
    }

    /// When to call [`QuicLink::poll`] again at the latest.
    pub(super) fn next_timeout(&mut self, cx: &Context<'_>) -> Option<Instant> {
        let conns = self.conns.iter().flatten();
        let mut up = conns.filter(|conn| conn.phase == Phase::Up);
        if self.unfinished || up.any(|conn| conn.readable && cx.out.has_room(conn.role)) {
            return Some(cx.now);
        }
        let retries = self.slots.iter().enumerate();
        let retries = retries
            .filter(|&(index, _)| self.dialled(index, cx).is_some())
            .flat_map(|(_, slots)| slots)
            .filter(|slot| slot.current.is_none())
            .map(|slot| slot.retry.unwrap_or(cx.now));
        let first = retries.min();
        let timers = self.conns.iter_mut().flatten();
        timers
            .filter_map(|conn| conn.quic.poll_timeout())
            .chain(first)
            .min()
    }

    /// The connection of `peer` in `role`, if it is up.
    pub(super) fn up(&mut self, peer: PeerId, role: Role) -> Option<&mut Conn> {
        let handle = self.slots.get(peer.index())?[role as usize].current?;
        let conn = self.conns.get_mut(handle.0)?.as_mut()?;
        (conn.phase == Phase::Up).then_some(conn)
    }

    /// Sends one heartbeat, at once.
    pub(super) fn send_datagram(
        &mut self,
        peer: PeerId,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), SendError> {
        self.socket.flush();
        let conn = self
            .up(peer, Role::Heartbeat)
            .ok_or(SendError::NotConnected)?;
        let bytes = Bytes::copy_from_slice(bytes);
        conn.quic
            .datagrams()
            .send(bytes, true)
            .map_err(|_| SendError::TooLarge)?;
        // Not `up()` again: the borrows of connection and socket have to be apart.
        if let Some(handle) = self.slots[peer.index()][Role::Heartbeat as usize].current
            && let Some(Some(conn)) = self.conns.get_mut(handle.0)
        {
            self.unfinished |= self.socket.transmit(&mut conn.quic, now, TRANSMIT_BUDGET);
        }
        Ok(())
    }

    /// Sends a datagram over the replication connection with the next poll.
    pub(super) fn pass_on(&mut self, peer: PeerId, bytes: Vec<u8>) -> Result<(), SendError> {
        let conn = self.up(peer, Role::Sync).ok_or(SendError::NotConnected)?;
        // What waits is not dropped in its favour: a peer needs all pieces of a packet.
        let sent = conn.quic.datagrams().send(bytes.into(), false);
        sent.map_err(|_| SendError::TooLarge)
    }

    /// Closes both connections of `peer`, and tells it.
    pub(super) fn close(&mut self, peer: PeerId, roles: &[Role], code: u32, cx: &mut Context<'_>) {
        for &role in roles {
            let slot = self
                .slots
                .get(peer.index())
                .map(|slots| slots[role as usize]);
            if let Some(handle) = slot.and_then(|slot| slot.current)
                && let Some(mut conn) = self.conns.get_mut(handle.0).and_then(Option::take)
            {
                self.shut(handle, &mut conn, code, DownReason::Closed, cx);
                self.socket
                    .transmit(&mut conn.quic, cx.now, TRANSMIT_BUDGET);
                self.conns[handle.0] = Some(conn);
            }
        }
    }

    fn take_errors(&mut self, cx: &mut Context<'_>) {
        for _ in 0..ERROR_BUDGET {
            let Some(error) = self.socket.take_error() else {
                return;
            };
            if let Some(ip) = error
                && let Some(peer) = self.peer_at(ip)
                && cx.out.has_room(Role::Heartbeat)
            {
                let link = self.id;
                cx.out.push(PeerEvent::Refused { peer, link });
            }
        }
    }

    fn is_connected(&self, peer: usize) -> bool {
        let handle = self.slots[peer][Role::Heartbeat as usize].current;
        let conn = handle.and_then(|handle| self.conns.get(handle.0)?.as_ref());
        conn.is_some_and(|conn| conn.phase == Phase::Up)
    }

    fn peer_at(&self, ip: IpAddr) -> Option<PeerId> {
        let at = |remote: &Option<SocketAddr>| remote.is_some_and(|addr| addr.ip() == ip);
        let index = self.remotes.iter().position(at)?;
        u8::try_from(index).ok().map(PeerId)
    }

    fn handle_datagram(&mut self, meta: &RecvMeta, datagram: &[u8], cx: &mut Context<'_>) {
        let ecn = meta
            .ecn
            .and_then(|ecn| quinn_proto::EcnCodepoint::from_bits(ecn as u8));
        self.response.clear();
        let event = self.endpoint.handle(
            cx.now,
            meta.addr,
            meta.dst_ip,
            ecn,
            BytesMut::from(datagram),
            &mut self.response,
        );
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(Some(conn)) = self.conns.get_mut(handle.0) {
                    conn.quic.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.accept(incoming, cx),
            Some(DatagramEvent::Response(transmit)) => self.socket.send(transmit, &self.response),
            None => {}
        }
    }

    fn insert(&mut self, handle: ConnectionHandle, conn: Conn) {
        if self.conns.len() <= handle.0 {
            self.conns.resize_with(handle.0 + 1, || None);
        }
        self.conns[handle.0] = Some(conn);
    }

    fn drive(&mut self, handle: ConnectionHandle, cx: &mut Context<'_>) {
        let Some(mut conn) = self.conns[handle.0].take() else {
            return;
        };
        if conn.quic.poll_timeout().is_some_and(|at| at <= cx.now) {
            conn.quic.handle_timeout(cx.now);
        }
        self.exchange_events(handle, &mut conn, cx);
        if conn.phase == Phase::Unconfirmed && conn.is_confirmed() {
            self.bring_up(&mut conn, cx);
        }
        if conn.phase == Phase::Up {
            self.read(handle, &mut conn, cx);
        }
        self.unfinished |= self
            .socket
            .transmit(&mut conn.quic, cx.now, TRANSMIT_BUDGET);
        // Transmitting and reading may have caused events.
        let phase = conn.phase;
        self.exchange_events(handle, &mut conn, cx);
        self.unfinished |= conn.phase != phase;
        if !conn.quic.is_drained() {
            self.conns[handle.0] = Some(conn);
        }
    }

    /// Passes events between endpoint and connection until neither has one.
    fn exchange_events(&mut self, handle: ConnectionHandle, conn: &mut Conn, cx: &mut Context<'_>) {
        for _ in 0..EVENT_ROUNDS {
            let mut quiet = true;
            while let Some(event) = conn.quic.poll_endpoint_events() {
                quiet = false;
                if let Some(answer) = self.endpoint.handle_event(handle, event) {
                    conn.quic.handle_event(answer);
                }
            }
            while let Some(event) = conn.quic.poll() {
                quiet = false;
                self.handle_quic_event(handle, conn, event, cx);
            }
            if quiet {
                return;
            }
        }
        self.unfinished = true;
    }

    fn handle_quic_event(
        &mut self,
        handle: ConnectionHandle,
        conn: &mut Conn,
        event: QuicEvent,
        cx: &mut Context<'_>,
    ) {
        match event {
            QuicEvent::Connected if conn.peer.is_some() => conn.phase = Phase::Unconfirmed,
            QuicEvent::Connected => self.admit(handle, conn, cx),
            QuicEvent::ConnectionLost { reason } => self.lost(handle, conn, &reason, cx),
            QuicEvent::Stream(event) => match conn.handle_stream(event) {
                Streams::Violation => self.violation(handle, conn, cx),
                Streams::Writable if conn.phase == Phase::Up => {
                    if let (Some(peer), link) = (conn.peer, self.id) {
                        cx.out.push(PeerEvent::SyncWritable { peer, link });
                    }
                }
                Streams::Writable | Streams::Fine => {}
            },
            QuicEvent::DatagramReceived => conn.readable = true,
            QuicEvent::HandshakeDataReady | QuicEvent::DatagramsUnblocked => {}
        }
    }

    fn bring_up(&mut self, conn: &mut Conn, cx: &mut Context<'_>) {
        conn.start(cx.now);
        if let (Some(peer), link) = (conn.peer, self.id) {
            cx.out.push(match conn.role {
                Role::Heartbeat => PeerEvent::HeartbeatUp { peer, link },
                Role::Sync => PeerEvent::SyncUp { peer, link },
            });
        }
    }

    fn read(&mut self, handle: ConnectionHandle, conn: &mut Conn, cx: &mut Context<'_>) {
        let (Some(peer), link) = (conn.peer, self.id) else {
            return;
        };
        if !conn.readable || !cx.out.has_room(conn.role) {
            return;
        }
        if conn.role == Role::Heartbeat {
            while cx.out.has_room(conn.role) {
                let Some(bytes) = conn.quic.datagrams().recv() else {
                    conn.readable = false;
                    return;
                };
                cx.out.push(PeerEvent::Datagram { peer, link, bytes });
            }
            return;
        }
        while let Some(bytes) = conn.quic.datagrams().recv() {
            cx.out.push(PeerEvent::PassedOn { peer, bytes });
        }
        let budget = cx.out.room().min(READ_BUDGET);
        let streams = conn.read(budget, |bytes| {
            cx.out.push(PeerEvent::SyncData { peer, link, bytes });
        });
        if streams == Streams::Violation {
            self.violation(handle, conn, cx);
        }
    }

    fn violation(&mut self, handle: ConnectionHandle, conn: &mut Conn, cx: &mut Context<'_>) {
        let reason = DownReason::Error("the peer's streams are not as agreed".into());
        self.shut(handle, conn, code::VIOLATION, reason, cx);
    }

    /// Closes a connection from our side.
    fn shut(
        &mut self,
        handle: ConnectionHandle,
        conn: &mut Conn,
        code: u32,
        reason: DownReason,
        cx: &mut Context<'_>,
    ) {
        self.retire(handle, conn, reason, cx);
        conn.close(cx.now, code);
    }

    /// A connection that ended by itself, or that the other side closed.
    fn lost(
        &mut self,
        handle: ConnectionHandle,
        conn: &mut Conn,
        error: &ConnectionError,
        cx: &mut Context<'_>,
    ) {
        let remote = conn.quic.remote_address();
        let refused = matches!(
            error,
            ConnectionError::TransportError(_)
                | ConnectionError::ConnectionClosed(_)
                | ConnectionError::VersionMismatch
        );
        if refused && matches!(conn.phase, Phase::Handshaking | Phase::Unconfirmed) {
            let peers = (conn.peer, self.peer_at(remote.ip()));
            refusal::of_connection(error, peers, remote, conn.role, cx);
        }
        self.retire(handle, conn, down_reason(error), cx);
        conn.phase = Phase::Closed;
    }

    /// Frees the slot of a connection that has ended, and plans the next attempt.
    fn retire(
        &mut self,
        handle: ConnectionHandle,
        conn: &mut Conn,
        reason: DownReason,
        cx: &mut Context<'_>,
    ) {
        let (Some(peer), link) = (conn.peer, self.id) else {
            return;
        };
        let slot = &mut self.slots[peer.index()][conn.role as usize];
        if slot.current == Some(handle) {
            let good = conn
                .up_since
                .is_some_and(|since| cx.now >= since + GOOD_LIFE);
            slot.backoff = match reason {
                _ if good => MIN_BACKOFF,
                DownReason::TimedOut | DownReason::Reset | DownReason::Goodbye => MIN_BACKOFF,
                _ => (slot.backoff * 2).clamp(MIN_BACKOFF, MAX_BACKOFF),
            };
            slot.current = None;
            slot.retry = Some(cx.now + cx.out.jitter(slot.backoff));
        }
        if conn.phase == Phase::Up {
            cx.out.push(match conn.role {
                Role::Heartbeat => PeerEvent::HeartbeatDown { peer, link, reason },
                Role::Sync => PeerEvent::SyncDown { peer, link, reason },
            });
        }
    }
}
