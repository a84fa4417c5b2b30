//! Replication: every unit has the sessions of all groups, and those of a group come from its primary.
//!
//! State, not events: the [change log](log) holds each session once, in the order of the last changes,
//! and each peer reads it at its own pace, taking the state that a session has by then. Whether two
//! units agree is known from [digests](digest) of each group that are compared once a second; where
//! they differ, the bucket concerned is sent anew. That is also how a unit that joins gets everything,
//! and how anything heals that went wrong: resuming a stream after a lost link is an optimization.
//!
//! Modules in reading order: [`message`], [`codec`], [`log`], [`digest`], then the two directions
//! (`transmit`, `receive`), what a record does to the table (`install`), and what units that were
//! apart do before anything is removed (`union`).

pub mod codec;
pub mod digest;
pub mod log;
pub mod message;

mod error;
mod hello;
mod install;
mod peer;
mod receive;
mod refusal;
mod settings;
mod transmit;
mod union;
mod view;

use std::collections::VecDeque;
use std::time::Duration;

pub use digest::Phase;
pub use error::ProtocolError;
pub use log::Seq;
pub use peer::{About, Traffic};
pub use refusal::Copies;
pub use settings::Settings;
pub use view::{Counters, Lag};

use crate::config::{Config, Ha};
use crate::evidence::Holding;
use crate::flow::{Direction, GroupId, PeerId, Protocol};
use crate::nat::Nat;
use crate::policy::Ruleset;
use crate::session::{AddressBook, Session, SessionId, Table};
use crate::time::{Tick, Time};
use digest::Digest;
use log::ChangeLog;
use peer::{Authority, Peer};

/// How long a peer whose connection was lost can take it up where it was.
const RESUME_WAIT: Duration = Duration::from_secs(60);

/// Delayed sessions that enter the log in one go.
const ENTRIES_PER_TIMEOUT: usize = 1024;

/// What the replicator may change besides itself.
pub struct Context<'a> {
    /// The sessions.
    pub table: &'a mut Table,
    /// The addresses they are translated to.
    pub book: &'a mut AddressBook,
    /// Where the external ports of received sessions are reserved.
    pub nat: &'a mut Nat,
    /// The time.
    pub now: Time,
}

/// What the owner should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The Hello of a peer has come.
    PeerKnown {
        /// The peer.
        peer: PeerId,
        /// It goes on where the last connection was lost.
        resumed: bool,
    },
    /// A peer has other settings, of those that must be the same on all units: it does not count as ready.
    PeerConfigDiffers(PeerId),
    /// A peer does not take sessions of a group.
    PeerRefuses {
        /// The peer.
        peer: PeerId,
        /// The group.
        group: GroupId,
        /// Why.
        reason: message::Refusal,
    },
    /// A peer's table is smaller than this unit's.
    PeerTableSmaller {
        /// The peer.
        peer: PeerId,
        /// How many sessions it can hold.
        max_sessions: u32,
    },
    /// A peer has all sessions of a group that this unit sends.
    PeerReady(PeerId, GroupId),
    /// This unit has all sessions of a group that the peer sends.
    Ready(PeerId, GroupId),
    /// A peer that had all sessions of a group has not, or sending them anew has not helped; they are
    /// being sent anew.
    DigestDiffers {
        /// The peer.
        peer: PeerId,
        /// The group.
        group: GroupId,
        /// How many of its 256 buckets differ.
        buckets: u32,
    },
    /// A peer hands a group over; all that it sent before is applied.
    HandoverReceived {
        /// The peer.
        peer: PeerId,
        /// The group.
        group: GroupId,
        /// The term to take over with.
        term: u64,
    },
}

/// What became of received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How many were taken; the others must come again.
    pub taken: usize,
    /// More is to be done: call [`Replicator::receive`] again soon, with or without bytes.
    pub more: bool,
}

/// Replicates sessions to all peers, and keeps those that they replicate here.
///
/// The owner calls [`Replicator::opened`], [`Replicator::changed`] and [`Replicator::removed`] for what
/// its own packets and timers do to sessions, and leaves it to the replicator to do the same for what
/// peers do. For each peer: [`Replicator::peer_connected`] when its stream is open, then
/// [`Replicator::receive`] with what it brings and [`Replicator::poll_transmit`] whenever it takes
/// something, until [`Replicator::peer_disconnected`]. After each round of calls
/// [`Replicator::poll_event`] until there is none.
pub struct Replicator {
    identity: message::Hello,
    pickup: Pickup,
    epoch: u64,
    log: ChangeLog,
    digest: Digest,
    peers: Vec<Peer>,
    /// The terms of the groups that this unit sends.
    sending: Vec<Option<u64>>,
    /// Groups of which this unit has all sessions.
    ready: Vec<bool>,
    /// What this unit holds of each group; as primary, what it held when its term began.
    held: Vec<Holding>,
    /// Groups in which this unit has opened or changed a session since its term began.
    touched: Vec<bool>,
    /// Whether removals must be remembered for anybody.
    has_readers: bool,
    /// Sessions that are too young yet, in the order of the times at which they were opened.
    delayed: VecDeque<(Tick, SessionId)>,
    max_sessions: usize,
    events: VecDeque<Event>,
    counters: Counters,
}

/// Which sessions are replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pickup {
    connections: bool,
    connectionless: bool,
    /// In ticks.
    delay: u32,
}

impl Pickup {
    fn new(ha: &Ha) -> Pickup {
        Pickup {
            connections: ha.session_pickup,
            connectionless: ha.session_pickup && ha.session_pickup_connectionless,
            delay: Tick::count(ha.session_pickup_delay),
        }
    }

    #[inline]
    fn covers(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::TCP => self.connections,
            _ => self.connectionless,
        }
    }
}

impl Replicator {
    /// The replicator of a unit with `[ha]`; none without. It sends no group yet.
    ///
    /// `epoch` is random, and another one in each process; `ruleset` is that of `config`.
    pub fn new(config: &Config, epoch: u64, ruleset: &Ruleset) -> Option<Replicator> {
        let ha = config.ha.as_ref()?;
        let groups = config.groups.len();
        let max_sessions = config.node.max_sessions;
        Some(Replicator {
            identity: identity(config, ha, epoch, ruleset),
            pickup: Pickup::new(ha),
            epoch,
            log: ChangeLog::new(max_sessions, ha.peers.len()),
            digest: Digest::new(groups),
            peers: ha
                .peers
                .iter()
                .map(|peer| Peer::new(&peer.name, groups))
                .collect(),
            sending: vec![None; groups],
            ready: vec![false; groups],
            held: vec![Holding::default(); groups],
            touched: vec![false; groups],
            has_readers: false,
            delayed: VecDeque::new(),
            max_sessions: max_sessions as usize,
            events: VecDeque::new(),
            counters: Counters::default(),
        })
    }

    /// Takes over the policies of a changed configuration. Returns whether streams that are open must be
    /// closed, since their Hello has what was before.
    pub fn set_policies(&mut self, ruleset: &Ruleset) -> bool {
        let told = told_names(ruleset.names());
        self.identity.settings = Settings::new(ruleset.items());
        let is_same = self.identity.ruleset == ruleset.digest() && self.identity.policies == told;
        (self.identity.ruleset, self.identity.policies) = (ruleset.digest(), told);
        !is_same
    }

    /// Changes the switches of session pickup; sessions that are replicated already stay so. Returns
    /// whether there may be others that are to be now: call [`Replicator::opened`] again for these.
    pub fn set_pickup(&mut self, ha: &Ha) -> bool {
        let before = std::mem::replace(&mut self.pickup, Pickup::new(ha));
        let after = &self.pickup;
        after.connections && !before.connections || after.connectionless && !before.connectionless
    }

    /// Whether the switches of session pickup are those of `ha`.
    pub fn follows(&self, ha: &Ha) -> bool {
        self.pickup == Pickup::new(ha)
    }

    /// A session was opened here. No effect if it is replicated already.
    #[inline]
    pub fn opened(&mut self, table: &Table, book: &AddressBook, id: SessionId, now: Time) {
        let Some(session) = table.get(id) else { return };
        if !self.pickup.covers(session.protocol) {
            return;
        }
        let is_old = session.created.after(self.pickup.delay) <= now.tick();
        // Too many that wait: replicating one early does no harm.
        if is_old || self.delayed.len() >= self.max_sessions {
            self.enter(session, book, id);
        } else {
            // The queue stays ordered when sessions come to it late, because a switch was off before.
            let last = self.delayed.back().map_or(Tick(0), |(since, _)| *since);
            self.delayed.push_back((session.created.max(last), id));
        }
    }

    /// A session has changed: its [`Phase`] was `before`, or it goes out by another port, or has other
    /// flags. Times and counters alone are no change.
    #[inline]
    pub fn changed(&mut self, table: &Table, book: &AddressBook, id: SessionId, before: Phase) {
        let Some(session) = table.get(id) else { return };
        if self.log.seq_of(id).is_none() {
            return;
        }
        if Phase::of(session).is_restart_of(before) && self.has_readers {
            self.log
                .restart(id, session.key(Direction::Original, book), session.group);
        }
        self.digest.change(session, book, before);
        self.log.touch(id, false);
        self.note_touched(session.group);
    }

    /// A session is being removed, or was; `session` is what it was last.
    #[inline]
    pub fn removed(&mut self, id: SessionId, session: &Session, book: &AddressBook) {
        if self.log.seq_of(id).is_none() {
            return;
        }
        self.digest.subtract(session, book);
        for peer in &mut self.peers {
            peer.refused.clear(id, session.group);
        }
        let bury = self.has_readers && self.term(session.group).is_some();
        let key = || (session.key(Direction::Original, book), session.group);
        self.log.remove(id, bury.then(key));
    }

    /// Says whether this unit sends the sessions of `group`, and as primary of which term. What has
    /// changed until then is still sent when it stops.
    pub fn set_sending(&mut self, group: GroupId, term: Option<u64>) {
        let index = usize::from(group.0);
        if let Some(sending) = self.sending.get_mut(index) {
            let before = std::mem::replace(sending, term);
            self.end_term(index, before);
            self.weigh_claims();
        }
    }

    /// What this unit holds of `group` may be stale: it counts as complete only after another
    /// comparison with the primary.
    pub fn doubt(&mut self, group: GroupId) {
        if let Some(ready) = self.ready.get_mut(usize::from(group.0)) {
            *ready = false;
        }
    }

    /// A stream to a peer is open, in both directions.
    pub fn peer_connected(&mut self, peer: PeerId) {
        if let Some(peer) = self.peers.get_mut(peer.index()) {
            peer.reset();
            peer.connected = true;
            self.has_readers = true;
            self.weigh_claims();
        }
    }

    /// The stream to a peer has ended.
    pub fn peer_disconnected(&mut self, peer: PeerId, now: Time) {
        if let Some(peer) = self
            .peers
            .get_mut(peer.index())
            .filter(|peer| peer.connected)
        {
            peer.resumable_until = peer.remote.is_some().then(|| now + RESUME_WAIT);
            peer.reset();
            self.weigh_claims();
            self.purge();
        }
    }

    /// Asks a peer to take over a group with `term`, after all that has changed until now.
    pub fn send_handover(&mut self, peer: PeerId, group: GroupId, term: u64) {
        self.plan_handover(peer, group, Some(term));
    }

    /// Does not ask any more, if that was not sent yet: the handover has failed.
    pub fn cancel_handover(&mut self, peer: PeerId, group: GroupId) {
        self.plan_handover(peer, group, None);
    }

    fn plan_handover(&mut self, peer: PeerId, group: GroupId, term: Option<u64>) {
        let peer = self.peers.get_mut(peer.index());
        let handovers = peer.map(|peer| &mut peer.sender.handovers);
        if let Some(planned) = handovers.and_then(|all| all.get_mut(usize::from(group.0))) {
            *planned = term;
        }
    }

    /// The stream to a peer takes nothing now: [`Replicator::poll_transmit`] is called again as soon as
    /// it does, and no timer is of use before.
    pub fn peer_blocked(&mut self, peer: PeerId) {
        if let Some(peer) = self.peers.get_mut(peer.index()) {
            peer.sender.blocked = true;
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Does what is due. To be followed by [`Replicator::poll_transmit`] for each peer.
    pub fn handle_timeout(&mut self, now: Time, table: &Table, book: &AddressBook) {
        for _ in 0..ENTRIES_PER_TIMEOUT {
            let Some(&(since, id)) = self.delayed.front() else {
                break;
            };
            if since.after(self.pickup.delay) > now.tick() {
                break;
            }
            self.delayed.pop_front();
            // The slot may have another session by now, which waits in its own right.
            if let Some(session) = table.get(id)
                && session.created.after(self.pickup.delay) <= now.tick()
                && self.pickup.covers(session.protocol)
            {
                self.enter(session, book, id);
            }
        }
        for peer in self.peers.iter_mut().filter(|peer| !peer.connected) {
            peer.resumable_until = peer.resumable_until.filter(|until| *until > now);
        }
        self.purge();
    }

    /// When [`Replicator::handle_timeout`] is to be called next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let delayed = self.delayed.front();
        let delayed = delayed.map(|(since, _)| since.after(self.pickup.delay).time());
        let peers = self.peers.iter().filter_map(|peer| {
            let sends = peer.connected && peer.sender.told.iter().any(Option::is_some);
            // With more to send, it is the stream that says when.
            let marks = (sends && !peer.sender.blocked).then_some(peer.sender.next_mark);
            let resume = peer.resumable_until.filter(|_| !peer.connected);
            marks.into_iter().chain(resume).min()
        });
        peers.chain(delayed).min()
    }

    /// Makes a session one of those that are replicated.
    fn enter(&mut self, session: &Session, book: &AddressBook, id: SessionId) {
        if self.log.seq_of(id).is_none() {
            self.digest.add(session, book);
            self.log.touch(id, false);
            self.note_touched(session.group);
        }
    }

    fn term(&self, group: GroupId) -> Option<u64> {
        self.sending.get(usize::from(group.0)).copied().flatten()
    }

    /// Forgets removals that all know of whom they concern.
    fn purge(&mut self) {
        let counting = || self.peers.iter().filter(|peer| peer.counts());
        self.has_readers = counting().next().is_some();
        let known = counting().map(|peer| peer.sender.acked).min();
        self.log.purge(known.unwrap_or(self.log.last()));
    }

    /// Decides anew who has a say in which group.
    fn weigh_claims(&mut self) {
        for group in 0..self.sending.len() {
            let claims = self
                .peers
                .iter()
                .filter_map(|peer| peer.receiver.claims[group]);
            let highest = claims.max();
            for receiver in self.peers.iter_mut().map(|peer| &mut peer.receiver) {
                let (theirs, mine) = (receiver.claims[group], self.sending[group]);
                receiver.authority[group] = match (theirs, mine) {
                    (None, _) => Authority::None,
                    (Some(theirs), Some(mine)) if mine > theirs && !receiver.handed[group] => {
                        Authority::None
                    }
                    (Some(theirs), Some(mine)) => Authority::Shared {
                        theirs_win: theirs > mine,
                    },
                    (_, None) if theirs < highest => Authority::None,
                    (_, None) => Authority::Owner,
                };
            }
        }
    }
}

/// The first names of policies, as many as a Hello may have room for.
fn told_names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut room = message::MAX_FRAME;
    let fits = |name: &&str| {
        let needed = 1 + name.len();
        let fits = needed <= room;
        room = room.saturating_sub(needed);
        fits
    };
    names.take_while(fits).map(str::to_owned).collect()
}

fn identity(config: &Config, ha: &Ha, epoch: u64, ruleset: &Ruleset) -> message::Hello {
    message::Hello {
        version: message::VERSION,
        epoch,
        group_id: ha.group_id,
        resume: None,
        ruleset: ruleset.digest(),
        settings: Settings::new(ruleset.items()),
        max_sessions: config.node.max_sessions,
        node: config.node.name.clone(),
        ports: config.ports.iter().map(|port| port.name.clone()).collect(),
        groups: config
            .groups
            .iter()
            .map(|group| group.name.clone())
            .collect(),
        policies: told_names(config.policies.iter().map(|policy| policy.name.as_str())),
        program: Some(env!("CARGO_PKG_VERSION").to_owned()),
    }
}

#[cfg(test)]
mod tests;
