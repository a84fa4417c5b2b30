//! The connections to the peers: QUIC (RFC 9000), driven by the one event loop.
//!
//! Over each link a unit has two connections to each peer: one for heartbeats (datagrams, RFC 9221;
//! application protocol `tandemgw-hb/3`) and one for replication (an ordered stream in each
//! direction; `tandemgw/3`), so that bulk never delays a heartbeat. The unit whose name sorts first
//! dials. Each side proves its key ([`tandemgw_core::identity`]), and one whose key is not in the
//! config does not get past the handshake.

mod connection;
mod gate;
mod link;
mod outbox;
mod refusal;
mod shared;
mod socket;
mod tls;
mod tuning;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::{Registry, Token};
use quinn_proto::{ConnectionError, ServerConfig};

use self::gate::{Gate, Mark};
use self::link::QuicLink;
use self::outbox::Outbox;
use self::shared::{Context, QuicPeer, Shared, code};
use self::socket::{RECEIVE_BATCH, RECEIVE_BUFFER};
use self::tls::Credentials;
use self::tuning::{Role, Timeouts};
use super::key_file;
use crate::node_key::NodeKey;
use tandemgw_core::config::{Ha, HaPeer};
use tandemgw_core::flow::{LinkId, PeerId};
use tandemgw_core::ha::PortKeys;
use tandemgw_core::identity::PublicKey;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::pump::{DownReason, PeerEvent};

fn down_reason(error: &ConnectionError) -> DownReason {
    match error {
        ConnectionError::TimedOut => DownReason::TimedOut,
        ConnectionError::Reset => DownReason::Reset,
        ConnectionError::LocallyClosed => DownReason::Closed,
        ConnectionError::ApplicationClosed(close) => {
            match u64::from(close.error_code) == u64::from(code::GOODBYE) {
                true => DownReason::Goodbye,
                false => DownReason::ClosedByPeer,
            }
        }
        error => DownReason::Error(error.to_string()),
    }
}

/// Why a heartbeat was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// There is no connection.
    NotConnected,
    /// More than fits a datagram; 1100 bytes always do.
    TooLarge,
}

/// Counters for the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams from addresses that no peer has.
    pub foreign_datagrams: u64,
    /// Handshakes that failed, mostly because of a key that is not in the config.
    pub handshakes_refused: u64,
    /// Handshakes not started because too many were open.
    pub handshakes_ignored: u64,
    /// Datagrams from the address of a peer that may begin a handshake, and were too many.
    pub initials_limited: u64,
    /// Datagrams that the kernel refused.
    pub send_errors: u64,
}

/// The connections of this unit to its peers, over all links.
///
/// It does nothing by itself. In each turn of the loop:
///
/// 1. [`readable`](Self::readable) for each link whose token was reported, whatever the kind of the
///    event (an error in the queue is neither readable nor writable to mio), and again in the next
///    turn if it returned true;
/// 2. [`poll`](Self::poll), also if no link was reported;
/// 3. [`poll_event`](Self::poll_event) until there is none; the commands may be called meanwhile;
/// 4. after the last `write_sync` or `close` of the turn [`poll`](Self::poll) again, then sleep
///    until [`next_timeout`](Self::next_timeout) at the latest.
///
/// Events that are not taken hold back the peer's stream: at most 1 MiB of it waits here, 8 MiB in
/// QUIC, and the rest at the peer.
pub struct Transport {
    links: Vec<QuicLink>,
    own: OwnIdentity,
    shared: Shared,
    out: Outbox,
    buffer: Vec<u8>,
    polled: Option<Instant>,
}

impl Transport {
    /// Binds the sockets of all links. Dialling begins with the first [`poll`](Self::poll). A link
    /// whose interface or address is missing is left unbound: see [`bind`](Self::bind).
    ///
    /// # Errors
    /// If a socket can't be bound for another reason, or if a peer is not to be told from this
    /// unit.
    ///
    /// `seed` varies the pauses between attempts; it need not be secret.
    pub fn new(ha: &Ha, node_name: &str, key: &NodeKey, seed: u64) -> io::Result<Transport> {
        check_peers(ha, node_name, key)?;
        let own = OwnIdentity::new(node_name, key).map_err(io::Error::other)?;
        let shared = shared(&own, ha).map_err(io::Error::other)?;
        let places: Vec<Option<&HaPeer>> = ha.peers.iter().map(Some).collect();
        let links = ha.links.iter().zip(0..);
        let links = links.map(|(config, id)| {
            let endpoint = tuning::endpoint(key);
            let gate = Gate::new(&key.derive(tuning::OWN_IDS), ha.peers.len());
            QuicLink::new(
                LinkId(id),
                config,
                endpoint,
                gate,
                &shared,
                remotes(&places, usize::from(id)),
            )
        });
        let mut links: Vec<QuicLink> = links.collect();
        for link in &mut links {
            match link.unbound.take() {
                Some(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    log::warn!(
                        "link not open error={} effect=\"no peer is heard over it before it is there\"",
                        InQuotes(&error)
                    );
                }
                Some(error) => return Err(error),
                None => {}
            }
        }
        Ok(Transport {
            links,
            own,
            shared,
            out: Outbox::new(seed),
            buffer: vec![0; RECEIVE_BATCH * RECEIVE_BUFFER],
            polled: None,
        })
    }

    /// Makes the poll of `registry` report the socket of each link under the token that `token`
    /// returns.
    pub fn register(
        &mut self,
        registry: &Registry,
        token: impl Fn(LinkId) -> Token,
    ) -> io::Result<()> {
        for (link, id) in self.links.iter_mut().zip(0..) {
            link.socket.register(registry, token(LinkId(id)))?;
        }
        Ok(())
    }

    /// Whether the socket of `link` is bound.
    pub fn is_bound(&self, link: LinkId) -> bool {
        let link = self.links.get(link.index());
        link.is_some_and(|link| link.socket.is_bound())
    }

    /// Binds the socket of `link`, once more if it is bound already: call it when the interface or
    /// the address is there again. Connections go on over it if the peer still has them.
    ///
    /// # Errors
    /// If it can't be bound; then it is unbound, data sent over it is lost, and nothing arrives.
    pub fn bind(&mut self, link: LinkId) -> io::Result<()> {
        match self.links.get_mut(link.index()) {
            Some(link) => link.socket.bind(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Reads what came over `link`, up to a budget. Returns true if there may be more: mio reports
    /// a socket only once, so that the caller has to come back by itself.
    pub fn readable(&mut self, link: LinkId, now: Instant) -> bool {
        let mut cx = Context {
            shared: &self.shared,
            out: &mut self.out,
            now,
        };
        match self.links.get_mut(link.index()) {
            Some(link) => link.receive(&mut self.buffer, &mut cx),
            None => false,
        }
    }

    /// Runs timers, connects, reads and sends, on all links.
    pub fn poll(&mut self, now: Instant) {
        self.polled = Some(now);
        let mut cx = Context {
            shared: &self.shared,
            out: &mut self.out,
            now,
        };
        for link in &mut self.links {
            link.poll(&mut cx);
        }
    }

    /// When [`poll`](Self::poll) is to be called at the latest; the time of the last poll if it
    /// left something undone.
    pub fn next_timeout(&mut self) -> Option<Instant> {
        let cx = Context {
            shared: &self.shared,
            out: &mut self.out,
            now: self.polled?,
        };
        let links = self.links.iter_mut();
        links.filter_map(|link| link.next_timeout(&cx)).min()
    }

    /// The next event. Heartbeat events overtake replication events; each kind is in chronological
    /// order.
    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        self.out.pop()
    }

    /// Takes back the rest of a [`PeerEvent::SyncData`] that could not be handled whole: it is the
    /// next event again, after heartbeats.
    pub fn put_back(&mut self, peer: PeerId, link: LinkId, bytes: Bytes) {
        self.out.put_back(PeerEvent::SyncData { peer, link, bytes });
    }

    /// Sends a heartbeat before it returns, if QUIC and the kernel let it; else with a later poll.
    ///
    /// It may be lost, or come out of order.
    pub fn send_datagram(
        &mut self,
        peer: PeerId,
        link: LinkId,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), SendError> {
        let link = self.links.get_mut(link.index());
        link.ok_or(SendError::NotConnected)?
            .send_datagram(peer, bytes, now)
    }

    /// Sends a datagram over the replication connection to a peer, with the next poll. It may be
    /// lost.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] also if too many of them wait, or if the peer takes none, as earlier
    /// releases.
    pub fn pass_on(&mut self, peer: PeerId, link: LinkId, bytes: Vec<u8>) -> Result<(), SendError> {
        let link = self.links.get_mut(link.index());
        link.ok_or(SendError::NotConnected)?.pass_on(peer, bytes)
    }

    /// Appends to the stream to the peer, to be sent with the next poll. Returns how many bytes
    /// were taken; if not all, [`PeerEvent::SyncWritable`] follows when there is room (or
    /// [`PeerEvent::SyncDown`]).
    ///
    /// None are taken while [`PeerEvent::SyncUp`] waits to be polled: the caller's data is for the
    /// stream before it.
    pub fn write_sync(&mut self, peer: PeerId, link: LinkId, bytes: &[u8]) -> usize {
        if self.out.is_unheard(peer, link) {
            return 0;
        }
        self.up(peer, link, Role::Sync)
            .map_or(0, |conn| conn.write(bytes))
    }

    /// Whether the stream to the peer is open, and accepted all of the last write.
    pub fn is_sync_writable(&mut self, peer: PeerId, link: LinkId) -> bool {
        self.up(peer, link, Role::Sync)
            .is_some_and(|conn| !conn.write_blocked)
    }

    /// Whether heartbeats can be sent.
    pub fn is_heartbeat_up(&mut self, peer: PeerId, link: LinkId) -> bool {
        self.up(peer, link, Role::Heartbeat).is_some()
    }

    /// Whether the streams are open.
    pub fn is_sync_up(&mut self, peer: PeerId, link: LinkId) -> bool {
        self.up(peer, link, Role::Sync).is_some()
    }

    /// The largest UDP payload that is known to get through to the peer, as the stream has found
    /// out (RFC 9000, section 14.3). `None` without a stream.
    pub fn payload(&mut self, peer: PeerId, link: LinkId) -> Option<u16> {
        self.up(peer, link, Role::Sync)
            .map(|conn| conn.quic.current_mtu())
    }

    /// The smoothed round-trip time of heartbeats (RFC 9002, section 5.3), with the time that the
    /// peer's loop takes to come round. `None` without a connection.
    pub fn rtt(&mut self, peer: PeerId, link: LinkId) -> Option<Duration> {
        self.up(peer, link, Role::Heartbeat)
            .map(|conn| conn.quic.rtt())
    }

    /// The address that the socket of `link` is bound to.
    pub fn local_addr(&self, link: LinkId) -> Option<SocketAddr> {
        self.links.get(link.index())?.socket.local_addr().ok()
    }

    /// The configured address of `peer` on `link`.
    pub fn remote_addr(&self, peer: PeerId, link: LinkId) -> Option<SocketAddr> {
        let link = self.links.get(link.index())?;
        link.remotes.get(peer.index()).copied().flatten()
    }

    /// The counters, over all links.
    pub fn counters(&self) -> Counters {
        let send_errors = self.links.iter().map(|link| link.socket.send_errors).sum();
        Counters {
            send_errors,
            ..self.out.counters
        }
    }

    /// Closes both connections to `peer` over `link`. The unit that dials then tries again.
    pub fn close(&mut self, peer: PeerId, link: LinkId, now: Instant) {
        self.close_roles(peer, link, &Role::ALL, now);
    }

    /// Closes the streams to the peer over `link`, but not the heartbeats; they are dialled again.
    pub fn close_sync(&mut self, peer: PeerId, link: LinkId, now: Instant) {
        self.close_roles(peer, link, &[Role::Sync], now);
    }

    fn close_roles(&mut self, peer: PeerId, link: LinkId, roles: &[Role], now: Instant) {
        let mut cx = Context {
            shared: &self.shared,
            out: &mut self.out,
            now,
        };
        if let Some(link) = self.links.get_mut(link.index()) {
            link.close(peer, roles, code::CLOSED, &mut cx);
        }
    }

    /// Follows the peers after a reload, by their places: connections to those that are gone, or
    /// that have another key or other addresses, end at once, and the new ones are dialled.
    ///
    /// # Errors
    /// If a key can't be used; then nothing has changed.
    pub fn set_peers(&mut self, places: &[Option<&HaPeer>], now: Instant) -> io::Result<()> {
        let mut changes = Vec::new();
        for (place, settings) in places.iter().enumerate() {
            if !self.is_unchanged(place, *settings) {
                let peer = settings.map(|it| self.own.peer(it).map_err(io::Error::other));
                changes.push((place, peer.transpose()?));
            }
        }
        for (place, peer) in changes {
            self.log_change(place, peer.as_ref());
            for link in 0..self.links.len() {
                self.close(PeerId(place as u8), LinkId(link as u8), now);
            }
            match (peer, self.shared.peers.get_mut(place)) {
                (Some(peer), Some(former)) => *former = peer,
                (Some(peer), None) => self.shared.peers.push(peer),
                (None, Some(former)) => former.removed = true,
                (None, None) => {}
            }
        }
        let valid = self.shared.peers.iter().filter(|peer| !peer.removed);
        let keys = valid.map(|peer| peer.key).collect();
        self.shared.servers = self.own.servers(keys).map_err(io::Error::other)?;
        for (link, at) in self.links.iter_mut().zip(0..) {
            link.set_peers(&self.shared, remotes(places, at));
        }
        Ok(())
    }

    fn log_change(&self, place: usize, to: Option<&QuicPeer>) {
        let from = self.shared.peers.get(place).filter(|peer| !peer.removed);
        match (from, to) {
            (Some(from), to) if to.is_none_or(|to| to.key != from.key || to.name != from.name) => {
                log::warn!(
                    "peer revoked peer={} why=\"its key is not in the config\" effect=\"its connections end at once\"",
                    from.name
                );
            }
            (None, Some(to)) => log::info!("peer added peer={}", to.name),
            (Some(_), Some(to)) => log::info!("peer has other addresses peer={}", to.name),
            (_, None) => {}
        }
    }

    /// Whether the peer in a place has the same name, key and addresses as before.
    fn is_unchanged(&self, place: usize, settings: Option<&HaPeer>) -> bool {
        let known = self.shared.peers.get(place).filter(|peer| !peer.removed);
        match (known, settings) {
            (None, None) => true,
            (Some(known), Some(settings)) => {
                let mut links = self.links.iter().enumerate();
                known.name == settings.name
                    && known.key.0 == settings.public_key
                    && links.all(|(at, link)| {
                        link.remotes.get(place).copied().flatten()
                            == settings.addresses.get(at).copied()
                    })
            }
            _ => false,
        }
    }

    /// The keys for the data ports, by place. Each that can't be made is logged.
    pub fn port_keys(&self, places: &[Option<&HaPeer>]) -> Vec<Option<PortKeys>> {
        let keys = |peer: &HaPeer| key_file::port_keys(&self.own.key, peer);
        places.iter().map(|peer| peer.and_then(keys)).collect()
    }

    /// Whether a config names or identifies two units alike.
    ///
    /// # Errors
    /// Which.
    pub fn check(&self, ha: &Ha) -> io::Result<()> {
        check_peers(ha, &self.own.name, &self.own.key)
    }

    /// Says goodbye to all peers before it returns, and closes everything permanently.
    pub fn close_all(&mut self, now: Instant) {
        self.out.leaving = true;
        let mut cx = Context {
            shared: &self.shared,
            out: &mut self.out,
            now,
        };
        for link in &mut self.links {
            link.socket.flush();
            for peer in 0..cx.shared.peers.len() {
                let peer = PeerId(u8::try_from(peer).unwrap_or(u8::MAX));
                link.close(peer, &Role::ALL, code::GOODBYE, &mut cx);
            }
        }
    }

    fn up(&mut self, peer: PeerId, link: LinkId, role: Role) -> Option<&mut connection::Conn> {
        self.links.get_mut(link.index())?.up(peer, role)
    }
}

/// Names decide who dials, and keys identify units: no two units may share either.
fn check_peers(ha: &Ha, node_name: &str, key: &NodeKey) -> io::Result<()> {
    let mut names = vec![node_name];
    let mut keys = vec![key.public().0];
    for peer in &ha.peers {
        let what = match (
            names.contains(&&*peer.name),
            keys.contains(&peer.public_key),
        ) {
            (true, _) => "name",
            (_, true) => "public key",
            _ => {
                names.push(&peer.name);
                keys.push(peer.public_key);
                continue;
            }
        };
        let text = format!("peer {} has the {what} of another unit", peer.name);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}

/// By place: the address on the link `at`.
fn remotes(places: &[Option<&HaPeer>], at: usize) -> Vec<Option<SocketAddr>> {
    let remote = |peer: &Option<&HaPeer>| peer.and_then(|peer| peer.addresses.get(at).copied());
    places.iter().map(remote).collect()
}

/// This unit, as it proves itself to its peers.
struct OwnIdentity {
    name: String,
    key: NodeKey,
    credentials: Credentials,
}

impl OwnIdentity {
    fn new(name: &str, key: &NodeKey) -> Result<OwnIdentity, rustls::Error> {
        Ok(OwnIdentity {
            name: name.to_owned(),
            key: key.clone(),
            credentials: Credentials::new(key)?,
        })
    }

    /// By role: what lets in those that hold one of `keys`.
    fn servers(&self, keys: Vec<PublicKey>) -> Result<[Arc<ServerConfig>; 2], rustls::Error> {
        let server = |role| {
            let (credentials, keys) = (&self.credentials, keys.clone());
            tuning::server(credentials, keys, &self.key, role)
        };
        let [heartbeat, sync] = Role::ALL;
        Ok([server(heartbeat)?.into(), server(sync)?.into()])
    }

    /// What dials and recognises a peer.
    fn peer(&self, peer: &HaPeer) -> Result<QuicPeer, rustls::Error> {
        let (own, theirs) = (self.key.public(), PublicKey(peer.public_key));
        let client = |role| {
            let mark = Mark::new(own, theirs);
            tuning::client(&self.credentials, theirs, mark, role)
        };
        let [heartbeat, sync] = Role::ALL;
        Ok(QuicPeer {
            name: peer.name.clone(),
            key: theirs,
            removed: false,
            dialled: self.name < peer.name,
            mark: Mark::new(theirs, own),
            clients: [client(heartbeat)?, client(sync)?],
        })
    }
}

fn shared(own: &OwnIdentity, ha: &Ha) -> Result<Shared, rustls::Error> {
    let keys = ha.peers.iter().map(|peer| PublicKey(peer.public_key));
    let peers = ha.peers.iter().map(|peer| own.peer(peer));
    Ok(Shared {
        timeouts: Timeouts::new(ha),
        servers: own.servers(keys.collect())?,
        peers: peers.collect::<Result<_, _>>()?,
    })
}
