//! The way to the peers in the event loop: between the transport and the core.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use bytes::Bytes;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use tandemgw_core::config::Config;
use tandemgw_core::flow::{LinkId, PeerId};
use tandemgw_core::gateway::Gateway;
use tandemgw_core::ha::Hint;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use super::clock;
use super::key_file;
use super::quic::{Event, Transport};
use super::watch::Watch;

/// Pieces of replication streams that are handled in one turn: some 300 µs.
const SYNC_BUDGET: usize = 64;

/// The connections to all peers, and what waits on this side of them.
pub struct Peers {
    transport: Transport,
    watch: Watch,
    /// Something has happened to a connection of `watch`.
    watch_ready: bool,
    /// By link: datagrams may wait in the socket.
    readable: u64,
    outgoing: Vec<Outgoing>,
    /// By peer: what came of its stream is not all done.
    unfinished: u64,
    /// By link: its interface has carrier.
    carrier: Vec<bool>,
    interfaces: Vec<String>,
    /// One reading of both clocks.
    now: (Time, Instant),
    busy: bool,
}

/// What a peer's stream has not taken yet.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
    link: Option<LinkId>,
    blocked: bool,
}

impl Peers {
    /// Opens the links of a config with `[ha]`; `None` without.
    ///
    /// # Errors
    /// If the key can't be loaded, or a link can't be listened on.
    pub fn open(
        config: &Config,
        registry: &Registry,
        token: impl Fn(LinkId) -> Token,
        watch_token: Token,
    ) -> io::Result<Option<Peers>> {
        let Some(ha) = &config.ha else {
            return Ok(None);
        };
        let path = config.node.key.as_deref().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "[ha] needs `key` in [node]")
        })?;
        let key = key_file::load(path)?;
        let seed = u64::from_le_bytes(clock::random_bytes()?);
        let mut transport = Transport::new(ha, &config.node.name, &key, seed)?;
        transport.register(registry, token)?;
        let watch = Watch::open(ha, &config.node.name)?;
        let fd = watch.as_raw_fd();
        registry.register(&mut SourceFd(&fd), watch_token, Interest::READABLE)?;
        Ok(Some(Peers {
            transport,
            watch,
            watch_ready: true,
            readable: 0,
            outgoing: ha.peers.iter().map(|_| Outgoing::default()).collect(),
            unfinished: 0,
            carrier: vec![true; ha.links.len()],
            interfaces: ha.links.iter().map(|link| link.interface.clone()).collect(),
            now: (clock::now(), Instant::now()),
            busy: true,
        }))
    }

    /// Takes note of an event on the socket of `link`, of whatever kind.
    pub fn mark(&mut self, link: LinkId) {
        self.readable |= 1 << link.0;
    }

    /// Takes note of an event on the connections that watch the peers' processes.
    pub fn mark_watch(&mut self) {
        self.watch_ready = true;
    }

    /// Whether there is work that no event will announce.
    pub fn is_busy(&self) -> bool {
        self.busy || self.readable != 0 || self.unfinished != 0
    }

    /// When [`Peers::receive`] is to be called at the latest.
    pub fn timeout(&mut self) -> Option<Time> {
        let (time, instant) = self.now;
        let at = self.transport.next_timeout()?;
        Some(time + at.saturating_duration_since(instant))
    }

    /// Takes note of the carrier of an interface; loss on all links is a hint.
    pub fn note_carrier(&mut self, interface: &str, up: bool, gateway: &mut Gateway, now: Time) {
        let Some(at) = self.interfaces.iter().position(|name| name == interface) else {
            return;
        };
        let before = std::mem::replace(&mut self.carrier[at], up);
        if before && !self.carrier.iter().any(|up| *up) {
            gateway.handle_hint(now, Hint::CarrierLost);
        }
    }

    /// First half of a turn: what has come in.
    pub fn receive(&mut self, now: Time, gateway: &mut Gateway) {
        self.now = (now, Instant::now());
        // First of all: what the dead sent before may still wait.
        if std::mem::take(&mut self.watch_ready) {
            for peer in self.watch.ended() {
                gateway.handle_hint(now, Hint::Ended { peer });
            }
        }
        for link in 0..self.interfaces.len() {
            if self.readable & (1 << link) != 0
                && !self.transport.readable(LinkId(link as u8), self.now.1)
            {
                self.readable &= !(1 << link);
            }
        }
        self.transport.poll(self.now.1);
        self.go_on(now, gateway);
        self.heed_events(now, gateway);
    }

    /// Second half of a turn: what goes out.
    pub fn send(&mut self, now: Time, gateway: &mut Gateway) {
        let mut wrote = false;
        for peer in gateway.peers() {
            wrote |= self.fill(now, peer, gateway);
        }
        let more = self.busy;
        if wrote {
            self.transport.poll(self.now.1);
            self.heed_events(now, gateway);
        }
        self.busy |= more;
    }

    /// Sends a heartbeat at once; it is lost if there is no connection.
    pub fn send_heartbeat(&mut self, peer: PeerId, link: LinkId, bytes: &[u8]) {
        let _ = self
            .transport
            .send_datagram(peer, link, bytes, Instant::now());
    }

    /// Ends a stream that is not used any more; a fresh one is opened in its place.
    pub fn close_stream(&mut self, peer: PeerId, link: LinkId) {
        self.transport.close_sync(peer, link, Instant::now());
        self.busy = true;
    }

    /// The transport, for the status.
    pub fn transport(&mut self) -> &mut Transport {
        &mut self.transport
    }

    /// Says goodbye to all peers.
    pub fn close(&mut self) {
        self.transport.close_all(Instant::now());
        self.watch.close();
    }

    fn heed_events(&mut self, now: Time, gateway: &mut Gateway) {
        self.busy = true;
        for _ in 0..SYNC_BUDGET {
            match self.transport.poll_event() {
                Some(Event::SyncData { peer, link, bytes }) => {
                    let left = self.deliver(now, peer, link, bytes, gateway);
                    if let Some(left) = left {
                        self.transport.put_back(peer, link, left);
                    }
                    if self.unfinished != 0 {
                        return;
                    }
                }
                Some(event) => self.heed(now, event, gateway),
                None => {
                    self.busy = false;
                    return;
                }
            }
        }
    }

    fn heed(&mut self, now: Time, event: Event, gateway: &mut Gateway) {
        match event {
            Event::HeartbeatUp { peer, link } => {
                self.watch.dial(peer, link);
                gateway.handle_heartbeat_link(now, peer, link, true);
            }
            Event::HeartbeatDown { peer, link, reason } => {
                log::debug!(
                    "heartbeat connection down peer={} link={} why={reason}",
                    peer.0,
                    link.0,
                    reason = InQuotes(&reason)
                );
                gateway.handle_heartbeat_link(now, peer, link, false);
            }
            Event::Datagram { peer, link, bytes } => {
                gateway.handle_heartbeat(now, peer, link, &bytes);
            }
            Event::SyncUp { peer, link } => gateway.handle_sync_link(now, peer, link, true),
            Event::SyncDown { peer, link, reason } => {
                log::debug!(
                    "stream down peer={} link={} why={reason}",
                    peer.0,
                    link.0,
                    reason = InQuotes(&reason)
                );
                let outgoing = &mut self.outgoing[peer.index()];
                if outgoing.link == Some(link) {
                    *outgoing = Outgoing::default();
                }
                gateway.handle_sync_link(now, peer, link, false);
            }
            // Those are taken by the piece, see `deliver`.
            Event::SyncData { .. } => {}
            Event::SyncWritable { peer, .. } => self.outgoing[peer.index()].blocked = false,
            Event::Refused { peer, .. } => gateway.handle_hint(now, Hint::Refused { peer }),
        }
    }

    /// Hands over a piece of a stream; gives back what was not taken, for a later turn: an earlier
    /// piece may be more than one turn's work.
    fn deliver(
        &mut self,
        now: Time,
        peer: PeerId,
        link: LinkId,
        mut bytes: Bytes,
        gateway: &mut Gateway,
    ) -> Option<Bytes> {
        match gateway.handle_sync_data(now, peer, link, &bytes) {
            Ok(received) => {
                let flag = 1 << peer.0;
                self.unfinished = self.unfinished & !flag | if received.more { flag } else { 0 };
                let left = bytes.split_off(received.taken);
                (!left.is_empty()).then_some(left)
            }
            Err(_) => {
                self.transport.close_sync(peer, link, self.now.1);
                self.outgoing[peer.index()] = Outgoing::default();
                None
            }
        }
    }

    /// Goes on with what came before and was more than one turn's work.
    fn go_on(&mut self, now: Time, gateway: &mut Gateway) {
        for peer in gateway.peers() {
            if self.unfinished & (1 << peer.0) == 0 {
                continue;
            }
            match gateway.sync_link(peer) {
                Some(link) => {
                    self.deliver(now, peer, link, Bytes::new(), gateway);
                }
                None => self.unfinished &= !(1 << peer.0),
            }
        }
    }

    /// Gives the stream to `peer` what it takes; gives whether anything was written.
    fn fill(&mut self, now: Time, peer: PeerId, gateway: &mut Gateway) -> bool {
        let outgoing = &mut self.outgoing[peer.index()];
        let link = gateway.sync_link(peer);
        if outgoing.link != link {
            *outgoing = Outgoing {
                link,
                ..Outgoing::default()
            };
        }
        let Some(link) = link else { return false };
        if outgoing.blocked {
            return false;
        }
        let mut wrote = false;
        if outgoing.written == outgoing.bytes.len() {
            outgoing.bytes.clear();
            outgoing.written = 0;
            let more = gateway.poll_sync(now, peer, &mut outgoing.bytes);
            self.busy |= more;
        }
        if outgoing.written < outgoing.bytes.len() {
            let rest = &outgoing.bytes[outgoing.written..];
            let taken = self.transport.write_sync(peer, link, rest);
            outgoing.written += taken;
            outgoing.blocked = taken < rest.len();
            wrote = taken > 0;
            if outgoing.blocked {
                gateway.handle_sync_blocked(peer);
            }
        }
        wrote
    }
}
