//! The pump between the streams to the peers and the gateway: buffers, back-pressure, and the order
//! of a turn.
//!
//! The shell implements [`Streams`] with QUIC connections, the simulator with simulated ones. All
//! decisions between them and the [`Gateway`] are made here, once.

use std::fmt;

use bytes::Bytes;

use crate::flow::{LinkId, MAX_PEERS, PeerId};
use crate::gateway::{Channel, Gateway};
use crate::ha::Hint;
use crate::in_quotes::InQuotes;
use crate::time::Time;

/// Events that one half of a turn handles: 64 pieces of streams take some 300 µs.
const EVENTS_PER_CALL: usize = 64;

/// An event on a connection to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// Heartbeats can be sent; the peer has proved its key, and has accepted ours.
    HeartbeatUp {
        /// The peer at the other end.
        peer: PeerId,
        /// The link that the connection goes over.
        link: LinkId,
    },
    /// Heartbeats can no longer be sent. A new connection is tried automatically.
    HeartbeatDown {
        /// The peer at the other end.
        peer: PeerId,
        /// The link that the connection went over.
        link: LinkId,
        /// Why it ended.
        reason: DownReason,
    },
    /// A heartbeat arrived. Datagrams may be lost, repeated and reordered.
    Datagram {
        /// Who sent it.
        peer: PeerId,
        /// The link that it came by.
        link: LinkId,
        /// The payload, as the peer sent it.
        bytes: Bytes,
    },
    /// A packet, or a piece of one, that the peer has passed on over the replication connection.
    /// Such datagrams may be lost, and are the last events.
    PassedOn {
        /// Who sent it.
        peer: PeerId,
        /// The payload, as the peer sent it.
        bytes: Bytes,
    },
    /// The streams for replication are open, and empty.
    SyncUp {
        /// The peer at the other end.
        peer: PeerId,
        /// The link that the streams go over.
        link: LinkId,
    },
    /// The streams are gone, with everything written and not yet received. A new connection is
    /// tried automatically.
    SyncDown {
        /// The peer at the other end.
        peer: PeerId,
        /// The link that the streams went over.
        link: LinkId,
        /// Why they ended.
        reason: DownReason,
    },
    /// The next bytes of the peer's stream, cut anywhere.
    SyncData {
        /// Who sent them.
        peer: PeerId,
        /// The link that they came by.
        link: LinkId,
        /// The bytes; never empty.
        bytes: Bytes,
    },
    /// There is room again after [`Streams::write_sync`] took less than it was given.
    SyncWritable {
        /// The peer whose stream has room.
        peer: PeerId,
        /// The link that the stream goes over.
        link: LinkId,
    },
    /// A handshake with the peer's address ended because the two have no version of the protocol in
    /// common.
    Incompatible {
        /// The peer that seems to be at that address.
        peer: PeerId,
        /// The purpose of the connection.
        channel: Channel,
        /// Why, for people.
        why: String,
    },
    /// A kernel at the peer's address reports that no process listens there. Anyone on the link can
    /// forge that: it is a reason to check, never a verdict.
    Refused {
        /// The peer that seems to be gone.
        peer: PeerId,
        /// The link that the refusal came by.
        link: LinkId,
    },
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// Nothing arrived for the idle timeout.
    TimedOut,
    /// The peer has restarted and does not know the connection (RFC 9000, section 10.3).
    Reset,
    /// The peer announced that it shuts down.
    Goodbye,
    /// The peer has announced that no more bytes come; earlier ones count.
    ClosedByPeer,
    /// We closed it.
    Closed,
    /// The peer dialled again.
    Replaced,
    /// A protocol violation; the text is for the log.
    Error(String),
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DownReason::TimedOut => "nothing received",
            DownReason::Reset => "the peer has restarted",
            DownReason::Goodbye => "the peer shuts down",
            DownReason::ClosedByPeer => "closed by the peer",
            DownReason::Closed => "closed",
            DownReason::Replaced => "the peer connected again",
            DownReason::Error(text) => text,
        })
    }
}

/// The connections to the peers, as the pump needs them.
///
/// A stream is reliable and ordered while its connection lasts. Data written but not received when
/// the connection ends is lost.
pub trait Streams {
    /// The peers whose process is known to have ended since the last call.
    fn ended(&mut self) -> Vec<PeerId>;

    /// Reads incoming data, and lets the connections do their due work.
    fn receive(&mut self);

    /// The next event. Heartbeat events overtake replication events, and these overtake packets
    /// that were passed on; each kind is in chronological order.
    fn poll_event(&mut self) -> Option<PeerEvent>;

    /// Takes back the rest of a [`PeerEvent::SyncData`] that could not be handled whole: it becomes
    /// the next event again, after those of heartbeats.
    fn put_back(&mut self, peer: PeerId, link: LinkId, rest: Bytes);

    /// Appends to the stream to `peer`, and returns how many bytes were taken. If not all were
    /// taken, [`PeerEvent::SyncWritable`] follows when there is room, or [`PeerEvent::SyncDown`].
    ///
    /// A stream whose [`PeerEvent::SyncUp`] has not been polled yet takes nothing: the caller's
    /// data is for the stream before it.
    fn write_sync(&mut self, peer: PeerId, link: LinkId, bytes: &[u8]) -> usize;

    /// Closes the streams to `peer` over `link`. They are reopened automatically.
    fn close_sync(&mut self, peer: PeerId, link: LinkId);

    /// Sends what was written.
    fn flush(&mut self);
}

/// Moves replication between the streams and the gateway, and tells the gateway what happens to its
/// peers.
///
/// In each turn of the loop, [`receive`](Self::receive) comes before packets are handled (a
/// takeover must precede the packets that it concerns), and [`send`](Self::send) after them. While
/// [`is_busy`](Self::is_busy) the next turn follows without waiting.
#[derive(Debug)]
pub struct Pump {
    /// Indexed by [`PeerId`].
    outgoing: Vec<Outgoing>,
    /// By peer: the gateway has taken bytes from its stream and has not handled them all.
    unfinished: u64,
    /// By link: its interface has carrier.
    carrier: Vec<bool>,
    busy: bool,
    /// Datagrams were written that [`Streams::flush`] sends.
    unflushed: bool,
}

/// Bytes that a peer's stream has not taken yet.
#[derive(Clone, Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
    /// The link whose stream the bytes are for.
    link: Option<LinkId>,
    /// The stream is full until it reports room.
    blocked: bool,
}

impl Pump {
    /// A pump for any number of peers and `links` links, all assumed to have carrier.
    pub fn new(links: usize) -> Pump {
        Pump {
            outgoing: vec![Outgoing::default(); MAX_PEERS],
            unfinished: 0,
            carrier: vec![true; links],
            busy: true,
            unflushed: false,
        }
    }

    /// A datagram was written: the next [`send`](Self::send) flushes.
    pub fn expect_flush(&mut self) {
        self.unflushed = true;
    }

    /// Whether there is work that no event will announce.
    pub fn is_busy(&self) -> bool {
        self.busy || self.unfinished != 0
    }

    /// The interface of `link` has gained or lost carrier. If no link has carrier, that is a hint.
    pub fn handle_carrier(&mut self, now: Time, link: LinkId, up: bool, gateway: &mut Gateway) {
        let Some(carrier) = self.carrier.get_mut(link.index()) else {
            return;
        };
        let before = std::mem::replace(carrier, up);
        if before && !self.carrier.contains(&true) {
            gateway.handle_hint(now, Hint::CarrierLost);
        }
    }

    /// First half of a turn: input.
    pub fn receive(&mut self, now: Time, gateway: &mut Gateway, streams: &mut impl Streams) {
        // First, because data that dead peers had sent may still wait.
        for peer in streams.ended() {
            gateway.handle_hint(now, Hint::Ended { peer });
        }
        streams.receive();
        self.go_on(now, gateway, streams);
        self.handle_events(now, gateway, streams);
    }

    /// Second half of a turn: output.
    pub fn send(&mut self, now: Time, gateway: &mut Gateway, streams: &mut impl Streams) {
        let mut wrote = std::mem::take(&mut self.unflushed);
        for peer in gateway.peers() {
            wrote |= self.fill(now, peer, gateway, streams);
        }
        let more = self.busy;
        if wrote {
            streams.flush();
            self.handle_events(now, gateway, streams);
        }
        self.busy |= more;
    }

    /// Closes a stream that the gateway has left.
    pub fn close_stream(&mut self, peer: PeerId, link: LinkId, streams: &mut impl Streams) {
        streams.close_sync(peer, link);
        // The peer should learn of the close soon.
        self.busy = true;
    }

    fn handle_events(&mut self, now: Time, gateway: &mut Gateway, streams: &mut impl Streams) {
        self.busy = true;
        for _ in 0..EVENTS_PER_CALL {
            match streams.poll_event() {
                Some(PeerEvent::SyncData { peer, link, bytes }) => {
                    let rest = self.deliver(now, peer, link, bytes, gateway, streams);
                    if let Some(rest) = rest {
                        streams.put_back(peer, link, rest);
                    }
                    if self.unfinished != 0 {
                        return;
                    }
                }
                Some(event) => self.handle_event(now, event, gateway),
                None => {
                    self.busy = false;
                    return;
                }
            }
        }
    }

    fn handle_event(&mut self, now: Time, event: PeerEvent, gateway: &mut Gateway) {
        match event {
            PeerEvent::HeartbeatUp { peer, link } => {
                gateway.handle_heartbeat_link(now, peer, link, true);
            }
            PeerEvent::HeartbeatDown { peer, link, reason } => {
                log_down("heartbeat connection down", peer, link, &reason);
                gateway.handle_heartbeat_link(now, peer, link, false);
            }
            PeerEvent::Datagram { peer, link, bytes } => {
                gateway.handle_heartbeat(now, peer, link, &bytes);
            }
            PeerEvent::PassedOn { peer, bytes } => gateway.handle_passed_on(now, peer, &bytes),
            PeerEvent::SyncUp { peer, link } => gateway.handle_sync_link(now, peer, link, true),
            PeerEvent::SyncDown { peer, link, reason } => {
                log_down("stream down", peer, link, &reason);
                let outgoing = &mut self.outgoing[peer.index()];
                if outgoing.link == Some(link) {
                    *outgoing = Outgoing::default();
                }
                gateway.handle_sync_link(now, peer, link, false);
            }
            // Bytes are handled by the piece, see `deliver`.
            PeerEvent::SyncData { .. } => {}
            PeerEvent::SyncWritable { peer, link } => {
                let outgoing = &mut self.outgoing[peer.index()];
                outgoing.blocked &= outgoing.link != Some(link);
            }
            PeerEvent::Incompatible { peer, channel, why } => {
                gateway.handle_incompatible(now, peer, channel, &why);
            }
            PeerEvent::Refused { peer, .. } => gateway.handle_hint(now, Hint::Refused { peer }),
        }
    }

    /// Passes on a piece of a stream; returns what was not taken, for a later turn: an earlier
    /// piece may be more than one turn's work.
    fn deliver(
        &mut self,
        now: Time,
        peer: PeerId,
        link: LinkId,
        mut bytes: Bytes,
        gateway: &mut Gateway,
        streams: &mut impl Streams,
    ) -> Option<Bytes> {
        match gateway.handle_sync_data(now, peer, link, &bytes) {
            Ok(received) => {
                // Bytes of a stream that is not in use are ignored.
                if gateway.sync_link(peer) == Some(link) {
                    let flag = 1 << peer.0;
                    self.unfinished =
                        self.unfinished & !flag | if received.more { flag } else { 0 };
                }
                let rest = bytes.split_off(received.taken);
                (!rest.is_empty()).then_some(rest)
            }
            Err(_) => {
                streams.close_sync(peer, link);
                self.unfinished &= !(1 << peer.0);
                self.outgoing[peer.index()] = Outgoing::default();
                None
            }
        }
    }

    /// Continues with earlier input that was more than one turn's work.
    fn go_on(&mut self, now: Time, gateway: &mut Gateway, streams: &mut impl Streams) {
        for peer in (0..MAX_PEERS as u8).map(PeerId) {
            if self.unfinished & (1 << peer.0) == 0 {
                continue;
            }
            match gateway.sync_link(peer) {
                Some(link) => {
                    self.deliver(now, peer, link, Bytes::new(), gateway, streams);
                }
                None => self.unfinished &= !(1 << peer.0),
            }
        }
    }

    /// Writes as much as the stream to `peer` takes; returns whether anything was written.
    fn fill(
        &mut self,
        now: Time,
        peer: PeerId,
        gateway: &mut Gateway,
        streams: &mut impl Streams,
    ) -> bool {
        let outgoing = &mut self.outgoing[peer.index()];
        let link = gateway.sync_link(peer);
        if outgoing.link != link {
            *outgoing = Outgoing {
                link,
                ..Outgoing::default()
            };
        }
        let Some(link) = link.filter(|_| !outgoing.blocked) else {
            return false;
        };
        if outgoing.written == outgoing.bytes.len() {
            outgoing.bytes.clear();
            outgoing.written = 0;
            self.busy |= gateway.poll_sync(now, peer, &mut outgoing.bytes);
        }
        let rest = &outgoing.bytes[outgoing.written..];
        if rest.is_empty() {
            return false;
        }
        let taken = streams.write_sync(peer, link, rest);
        outgoing.written += taken;
        outgoing.blocked = taken < rest.len();
        if outgoing.blocked {
            gateway.handle_sync_blocked(peer);
        }
        taken > 0
    }
}

fn log_down(what: &str, peer: PeerId, link: LinkId, reason: &DownReason) {
    let (peer, link) = (peer.0, link.0);
    log::debug!("{what} peer={peer} link={link} why={}", InQuotes(&reason));
}
