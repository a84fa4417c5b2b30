//! The peers in the event loop: the connections behind the core's [`Pump`].

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use tandemgw_core::config::{Config, HaPeer};
use tandemgw_core::flow::{LinkId, MAX_PEERS, PeerId};
use tandemgw_core::gateway::Gateway;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::pump::{PeerEvent, Pump, Streams};
use tandemgw_core::shell_view::LinkRefusals;
use tandemgw_core::time::Time;

use super::clock;
use super::key_file;
use super::netlink::interface_number;
use super::quic::Transport;
use super::watch::Watch;

/// Pause before the next attempt to bind the sockets of a link whose interface or address is
/// missing, in case the kernel has not reported that it is there.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// The connections to all peers.
pub struct Peers {
    pump: Pump,
    wires: Wires,
    places: Vec<Place>,
    /// The offset of the clock of [`Wires::now`] in the core's time.
    now: Time,
}

/// Where a link is on this machine.
struct Place {
    interface: String,
    listen: IpAddr,
    /// The number of the interface that the sockets are bound to; none if they are not bound.
    index: Option<u32>,
    /// When to try to bind them again.
    retry: Option<Time>,
}

/// The streams of the pump.
struct Wires {
    transport: Transport,
    watch: Watch,
    /// Something has happened to a connection of `watch`.
    watch_ready: bool,
    /// By link: datagrams may wait in the socket.
    readable: u64,
    /// The beginning of the turn.
    now: Instant,
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
        let places = ha.links.iter().zip(0..).map(|(link, id)| {
            let is_bound = transport.is_bound(LinkId(id));
            Place {
                interface: link.interface.clone(),
                listen: link.listen.ip(),
                index: interface_number(&link.interface).filter(|_| is_bound),
                retry: (!is_bound).then(clock::now),
            }
        });
        let places: Vec<Place> = places.collect();
        Ok(Some(Peers {
            pump: Pump::new(ha.links.len()),
            wires: Wires {
                transport,
                watch,
                watch_ready: true,
                readable: 0,
                now: Instant::now(),
            },
            places,
            now: clock::now(),
        }))
    }

    /// Connection attempts refused on the links.
    pub fn refused(&self) -> LinkRefusals {
        let counters = self.wires.transport.counters();
        LinkRefusals {
            handshakes_limited: counters.initials_limited + counters.handshakes_ignored,
            handshakes_failed: counters.handshakes_refused,
            foreign_datagrams: counters.foreign_datagrams,
        }
    }

    /// Records an event of any kind on the socket of `link`.
    pub fn mark(&mut self, link: LinkId) {
        self.wires.readable |= 1 << link.0;
    }

    /// Records an event on the connections that watch the peers' processes.
    pub fn mark_watch(&mut self) {
        self.wires.watch_ready = true;
    }

    /// Whether there is work that no event will announce.
    pub fn is_busy(&self) -> bool {
        self.pump.is_busy() || self.wires.readable != 0
    }

    /// When to call [`Peers::receive`] at the latest.
    pub fn timeout(&mut self) -> Option<Time> {
        let transport = self.wires.transport.next_timeout();
        let transport = transport.map(|at| self.now + at.saturating_duration_since(self.wires.now));
        let binding = self.places.iter().filter_map(|place| place.retry).min();
        transport.into_iter().chain(binding).min()
    }

    /// Records the state of an interface: its carrier, for each link over it, and whether it is a
    /// new interface with that name, to which the sockets must be bound.
    pub fn note_interface(
        &mut self,
        interface: &str,
        index: Option<u32>,
        up: bool,
        gateway: &mut Gateway,
        now: Time,
    ) {
        for at in 0..self.places.len() {
            let place = &self.places[at];
            if place.interface != interface {
                continue;
            }
            if index.is_none() || place.index != index {
                self.bind(at, now);
            }
            self.pump.handle_carrier(now, LinkId(at as u8), up, gateway);
        }
    }

    /// Records that an interface has gained or lost an address. The kernel lets a socket keep a
    /// removed address, but refused sends meanwhile leave the socket slower.
    pub fn note_address(&mut self, addr: IpAddr, is_there: bool, now: Time) {
        for at in 0..self.places.len() {
            let is_bound = self.wires.transport.is_bound(LinkId(at as u8));
            if self.places[at].listen == addr && is_bound != is_there {
                self.bind(at, now);
            }
        }
    }

    /// Binds the sockets of a link to the current interface and address, or plans the next attempt.
    fn bind(&mut self, at: usize, now: Time) {
        let (place, wires) = (&mut self.places[at], &mut self.wires);
        let link = LinkId(at as u8);
        let was_bound = wires.transport.is_bound(link);
        match wires.transport.bind(link) {
            Ok(()) => {
                log::info!("link open interface={}", place.interface);
                place.index = interface_number(&place.interface);
                place.retry = None;
                // There is no event for datagrams that arrived before the socket was registered.
                wires.readable |= 1 << at;
            }
            Err(error) => {
                if was_bound {
                    log::warn!(
                        "link not open error={} effect=\"no peer is heard over it before it is there\"",
                        InQuotes(&error)
                    );
                }
                place.index = None;
                place.retry = Some(now + BIND_RETRY);
            }
        }
        if was_bound || place.index.is_some() {
            wires.watch.listen(at);
            wires.watch_ready = true;
        }
    }

    fn bind_due(&mut self, now: Time) {
        for at in 0..self.places.len() {
            if self.places[at].retry.is_some_and(|due| due <= now) {
                self.bind(at, now);
            }
        }
    }

    /// First half of a turn: input.
    pub fn receive(&mut self, now: Time, gateway: &mut Gateway) {
        (self.now, self.wires.now) = (now, Instant::now());
        self.bind_due(now);
        self.pump.receive(now, gateway, &mut self.wires);
    }

    /// Second half of a turn: output.
    pub fn send(&mut self, now: Time, gateway: &mut Gateway) {
        self.pump.send(now, gateway, &mut self.wires);
    }

    /// Sends a heartbeat at once; it is lost if there is no connection.
    pub fn send_heartbeat(&mut self, peer: PeerId, link: LinkId, bytes: &[u8]) {
        let transport = &mut self.wires.transport;
        let _ = transport.send_datagram(peer, link, bytes, Instant::now());
    }

    /// Sends a packet that is for another unit, or a piece of it, with the next [`Peers::send`].
    /// Returns false if that was not possible.
    pub fn pass_on(&mut self, peer: PeerId, link: LinkId, bytes: Vec<u8>) -> bool {
        self.pump.expect_flush();
        let sent = self.wires.transport.pass_on(peer, link, bytes);
        sent.is_ok()
    }

    /// Ends a stream that is no longer used; a fresh one replaces it.
    pub fn close_stream(&mut self, peer: PeerId, link: LinkId) {
        self.pump.close_stream(peer, link, &mut self.wires);
    }

    /// Whether a config names or identifies two units alike.
    ///
    /// # Errors
    /// Which.
    pub fn check(&self, wanted: &Config) -> io::Result<()> {
        let ha = wanted.ha.as_ref();
        ha.map_or(Ok(()), |ha| self.wires.transport.check(ha))
    }

    /// After a reload, follows the peers that are in force: those that are gone, or have another
    /// key, lose their connections at once; new ones are dialled.
    ///
    /// # Errors
    /// If a key can't be used: then the connections are as before.
    pub fn follow(&mut self, gateway: &mut Gateway) -> io::Result<()> {
        let places = (0..MAX_PEERS as u8).map(|place| gateway.peer_settings(PeerId(place)));
        let places: Vec<Option<&HaPeer>> = places.collect();
        let transport = &mut self.wires.transport;
        transport.set_peers(&places, Instant::now())?;
        self.wires.watch.set_peers(&places);
        let keys = transport.port_keys(&places);
        gateway.set_port_keys(keys);
        Ok(())
    }

    /// The transport, for the status.
    pub fn transport(&mut self) -> &mut Transport {
        &mut self.wires.transport
    }

    /// Says goodbye to all peers.
    pub fn close(&mut self) {
        self.wires.transport.close_all(Instant::now());
        self.wires.watch.close();
    }
}

impl Streams for Wires {
    fn ended(&mut self) -> Vec<PeerId> {
        match std::mem::take(&mut self.watch_ready) {
            true => self.watch.ended(),
            false => Vec::new(),
        }
    }

    fn receive(&mut self) {
        let mut waiting = self.readable;
        while waiting != 0 {
            let link = waiting.trailing_zeros();
            waiting &= waiting - 1;
            if !self.transport.readable(LinkId(link as u8), self.now) {
                self.readable &= !(1 << link);
            }
        }
        self.transport.poll(self.now);
    }

    fn poll_event(&mut self) -> Option<PeerEvent> {
        let event = self.transport.poll_event();
        if let Some(PeerEvent::HeartbeatUp { peer, link }) = event {
            self.watch.dial(peer, link);
        }
        event
    }

    fn put_back(&mut self, peer: PeerId, link: LinkId, rest: Bytes) {
        self.transport.put_back(peer, link, rest);
    }

    fn write_sync(&mut self, peer: PeerId, link: LinkId, bytes: &[u8]) -> usize {
        self.transport.write_sync(peer, link, bytes)
    }

    fn close_sync(&mut self, peer: PeerId, link: LinkId) {
        self.transport.close_sync(peer, link, self.now);
    }

    fn flush(&mut self) {
        self.transport.poll(self.now);
    }
}
