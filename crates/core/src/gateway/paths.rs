//! Which link carries the replication stream to each peer.
//!
//! The unit with the smaller node name dials, and decides: it takes the first link on which the
//! peer answers, stays there as long as it works, and moves on at the first heartbeat that is
//! missing there. The other unit follows to the link on which the stream comes in.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::{Config, Ha, HaPeer};
use crate::flow::{LinkId, MAX_PEERS, PeerId};
use crate::in_quotes::InQuotes;
use crate::policy::Ruleset;
use crate::store::{Journal, SessionStore};
use crate::sync::{Context, ProtocolError, Received};
use crate::time::Time;

use super::cluster::Cluster;

/// Bytes of the stream that are encoded for a peer in one turn: some 300 µs.
const SYNC_BUDGET: usize = 256 * 1024;

/// The streams to all peers.
pub(super) struct Paths {
    peers: Vec<PeerPath>,
    /// Unused streams for the shell to close. Each was open, and is down now.
    closed: VecDeque<(PeerId, LinkId)>,
}

/// The replication streams to one peer.
struct PeerPath {
    /// The name of its node; empty if nobody has this place.
    name: String,
    /// This unit chooses the link.
    decides: bool,
    /// Indexed by [`LinkId`].
    streams: Vec<Stream>,
    /// The link in use.
    link: Option<LinkId>,
    /// The reason why a stream was last closed, and the time when that was logged.
    complaint: Option<(Time, ProtocolError)>,
    /// The reasons why its heartbeats, and its stream, were last refused; none once they are
    /// accepted.
    refused: [Option<String>; 2],
}

/// The kinds of stream from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Heartbeats.
    Heartbeats,
    /// The stream of sessions.
    Stream,
}

/// A stream that is closed for the same reason again and again is logged once in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// The stream to a peer over one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    /// There is none, or it is about to be closed: bytes that still come by it are void.
    Down,
    /// Open, and no bytes have come by it yet.
    Fresh,
    /// Open, and in use.
    Used,
}

impl Paths {
    pub(super) fn new(config: &Config, ha: &Ha) -> Paths {
        let path = |peer: &HaPeer| PeerPath::new(config, ha, peer);
        Paths {
            peers: ha.peers.iter().map(path).collect(),
            closed: VecDeque::new(),
        }
    }

    /// The peers, by their places.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> + use<> {
        let mut known = 0u32;
        for (place, peer) in self.peers.iter().enumerate() {
            known |= u32::from(!peer.name.is_empty()) << place;
        }
        (0..MAX_PEERS as u8)
            .filter(move |place| known & 1 << place != 0)
            .map(PeerId)
    }

    /// The name of a peer; none if nobody has the place.
    pub(super) fn name(&self, peer: PeerId) -> Option<&str> {
        let path = self.peers.get(peer.index())?;
        Some(&*path.name).filter(|name| !name.is_empty())
    }

    /// The places that are empty, or do not exist yet.
    fn free(&self) -> impl Iterator<Item = PeerId> + use<> {
        let taken: Vec<PeerId> = self.peers().collect();
        let places = (0..MAX_PEERS as u8).map(PeerId);
        places.filter(move |place| !taken.contains(place))
    }

    /// The link that carries the stream to `peer`; none if there is no stream.
    pub(super) fn link(&self, peer: PeerId) -> Option<LinkId> {
        self.peers.get(peer.index())?.link
    }

    /// Notes why a peer was refused, or that it was accepted.
    pub(super) fn note_refused(&mut self, peer: PeerId, channel: Channel, why: Option<String>) {
        if let Some(path) = self.peers.get_mut(peer.index()) {
            path.refused[channel as usize] = why;
        }
    }

    /// Why a peer was last refused.
    pub(super) fn refused(&self, peer: PeerId) -> Option<&str> {
        let path = self.peers.get(peer.index())?;
        path.refused.iter().flatten().next().map(String::as_str)
    }

    /// A stream for the shell to close.
    pub(super) fn poll_closed(&mut self) -> Option<(PeerId, LinkId)> {
        self.closed.pop_front()
    }

    /// Schedules an unused stream to be closed.
    fn leave(&mut self, peer: PeerId, link: LinkId) {
        let stream = &mut self.peers[peer.index()].streams[link.index()];
        // One that is down needs no closing, and another may soon replace it.
        if std::mem::replace(stream, Stream::Down) != Stream::Down {
            self.closed.push_back((peer, link));
        }
    }
}

impl PeerPath {
    fn new(config: &Config, ha: &Ha, peer: &HaPeer) -> PeerPath {
        PeerPath {
            name: peer.name.clone(),
            decides: config.node.name < peer.name,
            streams: vec![Stream::Down; ha.links.len()],
            link: None,
            complaint: None,
            refused: [None, None],
        }
    }

    /// The stream was closed for `error`: logged unless that was just logged.
    fn complain(&mut self, now: Time, error: &ProtocolError) {
        self.refused[Channel::Stream as usize] = Some(error.to_string());
        let known = self.complaint.as_ref();
        let news =
            known.is_none_or(|(at, known)| known != error || now.since(*at) >= COMPLAINT_INTERVAL);
        if news {
            self.complaint = Some((now, error.clone()));
            log::warn!(
                "replication stream closed peer={} why={error}",
                self.name,
                error = InQuotes(&error)
            );
        }
    }
}

impl Cluster {
    /// The stream to a peer over a link came up or went down.
    pub(super) fn handle_stream(
        &mut self,
        now: Time,
        (peer, link): (PeerId, LinkId),
        up: bool,
        journal: &mut Journal,
    ) {
        let Some(path) = self.paths.peers.get_mut(peer.index()) else {
            return;
        };
        let Some(stream) = path.streams.get_mut(link.index()) else {
            return;
        };
        *stream = if up { Stream::Fresh } else { Stream::Down };
        if path.link == Some(link) {
            // A stream that has come up again is a new one.
            path.link = None;
            self.sync.peer_disconnected(peer, journal, now);
        }
        self.choose_link(now, peer, journal);
    }

    /// Handles bytes that came by the stream of a peer over a link.
    pub(super) fn receive(
        &mut self,
        now: Time,
        (peer, link): (PeerId, LinkId),
        bytes: &[u8],
        store: &mut SessionStore,
    ) -> Result<Received, ProtocolError> {
        if !self.follow_stream(now, (peer, link), bytes, store.journal_mut()) {
            return Ok(ignored(bytes));
        }
        self.paths.peers[peer.index()].streams[link.index()] = Stream::Used;
        let received = self.sync.receive(peer, bytes, &mut Context { store, now });
        if let Err(error) = &received {
            let path = &mut self.paths.peers[peer.index()];
            path.link = None;
            path.streams[link.index()] = Stream::Down;
            path.complain(now, error);
            self.sync.peer_disconnected(peer, store.journal_mut(), now);
        }
        received
    }

    /// Whether bytes of a stream count. With them, the peer may have moved to another link.
    fn follow_stream(
        &mut self,
        now: Time,
        (peer, link): (PeerId, LinkId),
        bytes: &[u8],
        journal: &mut Journal,
    ) -> bool {
        let Some(path) = self.paths.peers.get_mut(peer.index()) else {
            return false;
        };
        let Some(stream) = path.streams.get(link.index()) else {
            return false;
        };
        if path.link == Some(link) {
            return true;
        }
        // Only the beginning of a stream can be followed.
        if path.decides || bytes.is_empty() || *stream != Stream::Fresh {
            return false;
        }
        let left = path.link.replace(link);
        self.sync.peer_disconnected(peer, journal, now);
        self.sync.peer_connected(peer, journal);
        if let Some(left) = left {
            self.paths.leave(peer, left);
        }
        true
    }

    /// Appends the bytes due to `peer` to `out`. Returns whether to call again as soon as the
    /// stream takes more.
    pub(super) fn poll_stream(
        &mut self,
        now: Time,
        peer: PeerId,
        out: &mut Vec<u8>,
        store: &mut SessionStore,
    ) -> bool {
        let is_open = self.paths.link(peer).is_some();
        is_open && self.sync.poll_transmit(peer, out, SYNC_BUDGET, store, now)
    }

    /// Chooses the best link for the stream to `peer`, if this unit decides that.
    pub(super) fn choose_link(&mut self, now: Time, peer: PeerId, journal: &mut Journal) {
        let path = &mut self.paths.peers[peer.index()];
        if !path.decides {
            return;
        }
        let view = self.ha.peer(now, peer);
        let alive = |link: LinkId| {
            view.as_ref()
                .and_then(|v| v.links.get(link.index()))
                .is_some_and(|link| link.alive)
        };
        let usable = |link: LinkId| path.streams[link.index()] != Stream::Down;
        let links = || (0..path.streams.len()).map(|link| LinkId(link as u8));
        let best = links()
            .find(|link| usable(*link) && alive(*link))
            .or_else(|| path.link.filter(|link| usable(*link)))
            .or_else(|| links().find(|link| usable(*link)));
        let stays = path.link.is_some_and(|link| usable(link) && alive(link)) || path.link == best;
        if stays {
            return;
        }
        let left = std::mem::replace(&mut path.link, best);
        if left.is_some() {
            self.sync.peer_disconnected(peer, journal, now);
        }
        if let Some(link) = best {
            log::debug!("replication stream chosen peer={} link={}", peer.0, link.0);
            self.sync.peer_connected(peer, journal);
        }
        if let Some(left) = left {
            self.paths.leave(peer, left);
        }
    }

    /// Tells the peers about the policies in force. If that changes the Hello, all streams are
    /// opened again, and resume where they were.
    pub(super) fn set_policies(&mut self, now: Time, ruleset: &Ruleset, journal: &mut Journal) {
        if self.sync.set_policies(ruleset) {
            self.greet_again(now, journal);
        }
    }

    /// Follows the peers of a config: those that are no longer in it lose their places, and new
    /// ones get some.
    pub(super) fn set_peers(&mut self, now: Time, config: &Config, journal: &mut Journal) {
        let Some(ha) = &config.ha else { return };
        let is_listed = |name: &str| ha.peers.iter().any(|peer| peer.name == name);
        for peer in self.paths.peers() {
            if !self.paths.name(peer).is_some_and(is_listed) {
                self.remove_peer(now, peer, journal);
            }
        }
        let names: Vec<PeerId> = self.paths.peers().collect();
        let is_new = |peer: &&HaPeer| {
            let mut known = names.iter().map(|place| self.paths.name(*place));
            !known.any(|name| name == Some(&*peer.name))
        };
        let new: Vec<&HaPeer> = ha.peers.iter().filter(is_new).collect();
        for (peer, place) in new.into_iter().zip(self.paths.free()) {
            let path = PeerPath::new(config, ha, peer);
            match self.paths.peers.get_mut(place.index()) {
                Some(empty) => *empty = path,
                None => self.paths.peers.push(path),
            }
            self.sync.reset_peer(place, Some(&peer.name), journal);
            self.ha.reset_peer(now, place, Some(&peer.name));
        }
        if self.sync.set_units(config, ha) {
            self.greet_again(now, journal);
        }
    }

    fn remove_peer(&mut self, now: Time, peer: PeerId, journal: &mut Journal) {
        let path = &mut self.paths.peers[peer.index()];
        path.name.clear();
        path.decides = false;
        if path.link.take().is_some() {
            self.sync.peer_disconnected(peer, journal, now);
        }
        for link in 0..self.paths.peers[peer.index()].streams.len() {
            self.paths.leave(peer, LinkId(link as u8));
        }
        self.sync.reset_peer(peer, None, journal);
        self.ha.reset_peer(now, peer, None);
    }

    /// Opens all streams again, since their Hello has what was before.
    fn greet_again(&mut self, now: Time, journal: &mut Journal) {
        let left = self.close_streams(now, journal);
        self.open_streams(now, left, journal);
    }

    /// Closes all streams, for [`Cluster::open_streams`].
    pub(super) fn close_streams(
        &mut self,
        now: Time,
        journal: &mut Journal,
    ) -> Vec<(PeerId, LinkId)> {
        let peers: Vec<PeerId> = self.paths.peers().collect();
        let mut left = Vec::new();
        for peer in peers {
            if let Some(link) = self.paths.peers[peer.index()].link.take() {
                self.sync.peer_disconnected(peer, journal, now);
                left.push((peer, link));
            }
        }
        left
    }

    /// Opens streams again that were closed.
    pub(super) fn open_streams(
        &mut self,
        now: Time,
        left: Vec<(PeerId, LinkId)>,
        journal: &mut Journal,
    ) {
        for (peer, link) in left {
            self.paths.leave(peer, link);
            self.choose_link(now, peer, journal);
        }
    }
}

/// Bytes of a stream that is not in use are dropped.
pub(super) fn ignored(bytes: &[u8]) -> Received {
    Received {
        taken: bytes.len(),
        more: false,
    }
}
