//! Replication: every unit has the sessions of all groups, and those of a group come from its
//! primary.
//!
//! State, not events: the [change log](crate::store::log) holds each session once, in the order of
//! the last changes, and each peer reads it at its own pace, taking the state that a session has by
//! then. Whether two units agree is known from [digests](crate::store::digest) of each group that
//! are compared once a second; where they differ, the bucket concerned is sent again. That is also
//! how a joining unit gets everything, and how any error is repaired: resuming a stream after a
//! lost link is an optimization.
//!
//! Modules in reading order: [`message`], [`codec`], then the two directions (`transmit`,
//! `receive`), the effect of a record on the table (`install`), and how units that were apart merge
//! their sessions (`union`).

pub mod codec;
pub mod message;

mod error;
mod fanned;
mod hello;
mod holders;
mod install;
mod peer;
mod progress;
mod push_frame;
mod receive;
mod refusal;
mod settings;
mod transmit;
mod union;
mod view;

use std::collections::VecDeque;
use std::time::Duration;

pub use error::ProtocolError;
pub use peer::{About, Traffic};
pub use refusal::Copies;
pub use settings::Settings;
pub use view::{Counters, Lag};

use siphasher::sip128::SipHasher24;

use crate::config::{self, Config, Ha};
use crate::evidence::{Holders, Holding, SyncState};
use crate::flow::{GroupId, PeerId, PortId};
use crate::policy::Ruleset;
use crate::push::message as push;
use crate::store::{Journal, SessionStore};
use crate::time::Time;
use fanned::Fanned;
use holders::Dropping;
use peer::{Authority, SyncPeer};
use progress::Untold;

/// How long a peer whose connection was lost can resume its stream.
const RESUME_WAIT: Duration = Duration::from_secs(60);
/// Weights that a Hello names; a hash stands for the others.
const MOST_WEIGHTS: usize = 64;

/// The state that the replicator may change beside its own.
pub struct Context<'a> {
    /// Sessions from peers go here, and changes are read from here.
    pub store: &'a mut SessionStore,
    /// When the bytes have come.
    pub now: Time,
}

/// News for the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncEvent {
    /// The Hello of a peer has arrived.
    PeerKnown {
        /// The sender of the Hello.
        peer: PeerId,
        /// It resumes where the last connection was lost.
        resumed: bool,
    },
    /// A peer has different settings, of those that must be the same on all units: it does not
    /// count as ready.
    PeerConfigDiffers(PeerId),
    /// A peer does not take sessions of a group.
    PeerRefuses {
        /// The peer that does not hold the sessions.
        peer: PeerId,
        /// One of which this unit is primary.
        group: GroupId,
        /// The reason in its last refusal.
        reason: message::Refusal,
    },
    /// A peer's table is smaller than this unit's.
    PeerTableSmaller {
        /// The peer that can't hold all sessions that this unit may send.
        peer: PeerId,
        /// How many sessions it can hold.
        max_sessions: u32,
    },
    /// A peer has all sessions of a group that this unit sends.
    PeerReady(PeerId, GroupId),
    /// This unit has all sessions of a group that the peer sends.
    Ready(PeerId, GroupId),
    /// A standby has offered all that this unit, the primary of the group, lacked. Its rules may
    /// have differed from this unit's when it got them.
    Merged(PeerId, GroupId),
    /// A peer that had all sessions of a group no longer has, or sending them again has not helped.
    /// The buckets that differ are sent again.
    DigestDiffers {
        /// The standby whose sums differ.
        peer: PeerId,
        /// One of which this unit is primary.
        group: GroupId,
        /// How many of the group's 256 buckets differ.
        buckets: u32,
    },
    /// The sync state between this unit and a peer, each time that it changes.
    Reached(PeerId, SyncState),
    /// This unit's evidence for a group, each time that it changes.
    Holds(GroupId, Holding),
    /// An operator asks through a peer that this unit begins a maintenance.
    DrainAsked(PeerId),
    /// The primary of a group tells something of multicast on a port.
    Multicast {
        /// The group whose primary it is.
        group: GroupId,
        /// The port that it is about.
        port: PortId,
        /// A [`Record`](crate::multicast::record::Record).
        record: Vec<u8>,
    },
    /// A peer says something about the configs of the units.
    Push(PeerId, push::Message),
    /// A peer, the primary of a group, has enough other holders: this unit drops what it has.
    Relieved(PeerId, GroupId),
    /// A peer hands a group over; everything that it sent before is applied.
    HandoverReceived {
        /// The primary until now.
        peer: PeerId,
        /// The one to take over.
        group: GroupId,
        /// The term to take over with.
        term: u64,
    },
}

/// The outcome for received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How many were taken; the others must come again.
    pub taken: usize,
    /// There is more to do: call [`Replicator::receive`] again soon, with or without bytes.
    pub more: bool,
}

/// Replicates sessions to all peers, and keeps those that they replicate here.
///
/// It reads the changes of sessions in the [`Journal`] of the store that the owner passes to each
/// call. For each peer: [`Replicator::peer_connected`] when its stream is open, then
/// [`Replicator::receive`] with its bytes and [`Replicator::poll_transmit`] whenever it has room,
/// until [`Replicator::peer_disconnected`]. After each round of calls [`Replicator::poll_event`]
/// until there is none.
pub struct Replicator {
    identity: message::Hello,
    epoch: u64,
    peers: Vec<SyncPeer>,
    /// Groups of which this unit has all sessions.
    ready: Vec<bool>,
    /// This unit's evidence for each group; as primary, that from when its term began.
    held: Vec<Holding>,
    /// By group: the peer whose changes to it counted last.
    followed: Vec<Option<usize>>,
    /// By group of which this unit is primary: who is to hold it.
    holders: Vec<Holders>,
    dropping: Option<Dropping>,
    fanned: Fanned,
    events: VecDeque<SyncEvent>,
    untold: Untold,
    counters: Counters,
}

impl Replicator {
    /// The replicator of a unit with `[ha]`; none without. It sends no group yet.
    ///
    /// `epoch` is random, another one in each process, and the boot identifier of its heartbeats;
    /// `ruleset` is that of `config`.
    pub fn new(config: &Config, epoch: u64, ruleset: &Ruleset) -> Option<Replicator> {
        let ha = config.ha.as_ref()?;
        let groups = config.groups.len();
        Some(Replicator {
            identity: identity(config, ha, epoch, ruleset),
            epoch,
            peers: ha
                .peers
                .iter()
                .map(|peer| SyncPeer::new(&peer.name, groups))
                .collect(),
            ready: vec![false; groups],
            held: vec![Holding::default(); groups],
            followed: vec![None; groups],
            holders: vec![Holders::All; groups],
            dropping: None,
            fanned: Fanned::default(),
            events: VecDeque::new(),
            untold: Untold::new(ha.peers.len(), groups),
            counters: Counters::default(),
        })
    }

    /// Applies the policies of a changed configuration. Returns whether open streams must be
    /// closed, because their Hello has the previous ones.
    pub(crate) fn set_policies(&mut self, ruleset: &Ruleset) -> bool {
        let told = told_names(ruleset.names());
        self.identity.settings = Settings::new(ruleset.items());
        let is_same = self.identity.ruleset == ruleset.digest() && self.identity.policies == told;
        (self.identity.ruleset, self.identity.policies) = (ruleset.digest(), told);
        !is_same
    }

    /// Takes over which units there are, their weights, and how many hold a group, from a changed
    /// configuration. Returns whether streams that are open must be closed, since their Hello has
    /// what was before.
    pub(crate) fn set_units(&mut self, config: &Config, ha: &Ha) -> bool {
        let identity = &mut self.identity;
        let told = message::Hello {
            units: units(config, ha),
            weights: weights(config),
            copies: Some(config.copies()),
            cuts: Some(cuts(config)),
            ..identity.clone()
        };
        let is_same = *identity == told;
        *identity = told;
        !is_same
    }

    /// Gives the place `peer` to a peer called `name` that holds nothing, or empties it. No stream
    /// leads to it. Places are given in order.
    pub(crate) fn reset_peer(&mut self, peer: PeerId, name: Option<&str>, journal: &mut Journal) {
        let at = peer.index();
        let fresh = SyncPeer::new(name.unwrap_or_default(), self.ready.len());
        match self.peers.get_mut(at) {
            Some(place) => *place = fresh,
            None => self.peers.push(fresh),
        }
        journal.reset_peer(at);
        self.untold.note_peer(at);
        self.compare_claims(journal);
        self.purge(journal);
    }

    /// Gives the place `group` to a group of which nobody holds anything, or empties it. This unit
    /// does not send it, and no stream is open. Places are given in order.
    pub(crate) fn reset_group(&mut self, group: GroupId, journal: &mut Journal) {
        journal.reset_group(group);
        let at = usize::from(group.0);
        let groups = self.ready.len().max(at + 1);
        self.ready.resize(groups, false);
        self.held.resize(groups, Holding::default());
        (self.ready[at], self.held[at]) = (false, Holding::default());
        self.followed.resize(groups, None);
        self.followed[at] = None;
        self.holders.resize(groups, Holders::All);
        self.holders[at] = Holders::All;
        self.stop_dropping(group);
        self.untold.grow(groups);
        self.untold.note_group(at);
        for peer in &mut self.peers {
            peer.reset_group(groups, at);
        }
        self.compare_claims(journal);
        self.untold.note_all_peers();
    }

    /// Tells the peers of the groups of a changed configuration in the next Hello.
    pub(crate) fn set_groups(&mut self, config: &Config, ha: &Ha, ruleset: &Ruleset) {
        self.identity.groups = group_names(config);
        self.set_units(config, ha);
        self.set_policies(ruleset);
    }

    /// Says whether this unit sends the sessions of `group`, and as primary of which term. What has
    /// changed until then is still sent when it stops.
    pub fn set_sending(&mut self, group: GroupId, term: Option<u64>, journal: &mut Journal) {
        if journal.term(group) != term {
            // The result of a comparison counts for the term in which it was made.
            self.forget_comparisons(group);
        }
        if journal.term(group).is_some() != term.is_some()
            && let Some(holders) = self.holders.get_mut(usize::from(group.0))
        {
            *holders = Holders::All;
        }
        match (journal.term(group), term) {
            (None, Some(_)) => self.begin_reign(group),
            (Some(term), None) => self.end_reign(group, term),
            _ => {}
        }
        if let Some(ended) = journal.set_sending(group, term) {
            self.end_term(group, ended, journal);
        }
        self.compare_claims(journal);
    }

    fn forget_comparisons(&mut self, group: GroupId) {
        for sender in self.peers.iter_mut().map(|peer| &mut peer.sender) {
            if let Some(mark) = sender.marks.get_mut(usize::from(group.0)) {
                mark.equal = false;
            }
            // Any peer may hold something from the terms of others.
            sender.relieved.remove(group);
        }
        self.untold.note_all_peers();
    }

    /// This unit's copy of `group` may be stale: it counts as complete only after another
    /// comparison with the primary.
    pub(crate) fn doubt(&mut self, group: GroupId) {
        let group = usize::from(group.0);
        if group < self.ready.len() {
            self.set_ready(group, false);
        }
    }

    /// A stream to a peer is open, in both directions.
    pub fn peer_connected(&mut self, peer: PeerId, journal: &mut Journal) {
        let at = peer.index();
        if let Some(peer) = self.peers.get_mut(at) {
            peer.reset();
            peer.connected = true;
            self.untold.note_peer(at);
            journal.begin_remembering();
            self.compare_claims(journal);
        }
    }

    /// The stream to a peer has ended.
    pub(crate) fn peer_disconnected(&mut self, peer: PeerId, journal: &mut Journal, now: Time) {
        let at = peer.index();
        if let Some(peer) = self.peers.get_mut(at).filter(|peer| peer.connected) {
            peer.resumable_until = peer.remote.is_some().then(|| now + RESUME_WAIT);
            peer.reset();
            self.untold.note_peer(at);
            self.compare_claims(journal);
            self.purge(journal);
        }
    }

    /// Asks a peer to take over a group with `term`, after everything that has changed until now.
    pub(crate) fn send_handover(&mut self, peer: PeerId, group: GroupId, term: u64) {
        self.plan_handover(peer, group, Some(term));
    }

    /// Asks a peer to begin a maintenance; returns whether a stream leads there.
    pub(crate) fn send_drain(&mut self, peer: PeerId) -> bool {
        let peer = self.peers.get_mut(peer.index());
        let Some(peer) = peer.filter(|peer| peer.connected && peer.remote.is_some()) else {
            return false;
        };
        peer.sender.drain = true;
        true
    }

    /// Whether a stream leads to a peer that knows messages about configs.
    pub(crate) fn takes_configs(&self, peer: PeerId) -> bool {
        let peer = self.peers.get(peer.index()).filter(|peer| peer.connected);
        let remote = peer.and_then(|peer| peer.remote.as_ref());
        remote.is_some_and(|remote| remote.takes_configs)
    }

    /// Withdraws the request, if it was not sent yet: the handover has failed.
    pub(crate) fn cancel_handover(&mut self, peer: PeerId, group: GroupId) {
        self.plan_handover(peer, group, None);
    }

    fn plan_handover(&mut self, peer: PeerId, group: GroupId, term: Option<u64>) {
        let peer = self.peers.get_mut(peer.index());
        let handovers = peer.map(|peer| &mut peer.sender.handovers);
        if let Some(planned) = handovers.and_then(|all| all.get_mut(usize::from(group.0))) {
            *planned = term;
        }
    }

    /// The stream to a peer takes no bytes now. [`Replicator::poll_transmit`] is called when it
    /// does, so no timer runs until then.
    pub(crate) fn peer_blocked(&mut self, peer: PeerId) {
        if let Some(peer) = self.peers.get_mut(peer.index()) {
            peer.sender.blocked = true;
        }
    }

    /// Whether a peer is told of a group, of which this unit is primary.
    pub(crate) fn tells(&self, peer: PeerId, group: GroupId) -> bool {
        self.peers.get(peer.index()).is_some_and(|peer| {
            let told = peer.sender.told.get(usize::from(group.0));
            peer.connected && peer.remote.is_some() && told.is_some_and(Option::is_some)
        })
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<SyncEvent> {
        self.events.pop_front().or_else(|| self.poll_untold())
    }

    /// Does the due work. Call [`Replicator::poll_transmit`] for each peer afterwards.
    pub fn handle_timeout(&mut self, now: Time, store: &mut SessionStore) {
        store.enter_delayed(now);
        self.drop_some(store);
        for peer in self.peers.iter_mut().filter(|peer| !peer.connected) {
            peer.resumable_until = peer.resumable_until.filter(|until| *until > now);
        }
        self.purge(store.journal_mut());
    }

    /// The time of the next [`Replicator::handle_timeout`].
    pub fn poll_timeout(&self, journal: &Journal) -> Option<Time> {
        let peers = self.peers.iter().filter_map(|peer| {
            let sends = peer.connected && peer.sender.told.iter().any(Option::is_some);
            // With more to send, the stream sets the pace.
            let marks = (sends && !peer.sender.blocked).then_some(peer.sender.next_mark);
            let resume = peer.resumable_until.filter(|_| !peer.connected);
            marks.into_iter().chain(resume).min()
        });
        let dropping = self.dropping_since();
        peers.chain(journal.poll_timeout()).chain(dropping).min()
    }

    /// Forgets removals that are known to all peers concerned.
    fn purge(&self, journal: &mut Journal) {
        let counting = self.peers.iter().filter(|peer| peer.counts());
        journal.set_known(counting.map(|peer| peer.sender.acked).min());
    }

    /// Decides again whose changes of a group count.
    fn compare_claims(&mut self, journal: &Journal) {
        for (group, mine) in journal.sending().iter().enumerate() {
            let claims = self
                .peers
                .iter()
                .filter_map(|peer| peer.receiver.claims[group]);
            let highest = claims.max();
            for receiver in self.peers.iter_mut().map(|peer| &mut peer.receiver) {
                let theirs = receiver.claims[group];
                receiver.authority[group] = match (theirs, *mine) {
                    (None, _) => Authority::None,
                    (Some(theirs), Some(mine)) if mine > theirs && !receiver.handed[group] => {
                        Authority::None
                    }
                    (Some(_), Some(_)) => Authority::Shared,
                    (_, None) if theirs < highest => Authority::None,
                    (_, None) => Authority::Owner,
                };
            }
            let is_owner = |peer: &SyncPeer| peer.receiver.authority[group] == Authority::Owner;
            if let Some(owner) = self.peers.iter().rposition(is_owner) {
                self.follow_owner(group, owner);
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

/// The names of all units of the cluster, in order.
fn units(config: &Config, ha: &Ha) -> Vec<String> {
    let peers = ha.peers.iter().map(|peer| peer.name.clone());
    let mut units: Vec<String> = peers.chain([config.node.name.clone()]).collect();
    units.sort();
    units
}

/// The weights that are not 1, as they are told to peers and named among what differs. A name on
/// the wire has 255 bytes at most: those of a group and a unit fit.
fn weights(config: &Config) -> Vec<String> {
    let of = |group: &config::Group| {
        let all = group.weights.iter().filter(|it| it.weight != 1);
        let told = all.map(|it| format!("weight {it} of group {}", group.name));
        told.collect::<Vec<_>>()
    };
    let mut weights: Vec<String> = config.groups.iter().flat_map(of).collect();
    weights.sort();
    let rest = weights.split_off(weights.len().min(MOST_WEIGHTS));
    if !rest.is_empty() {
        let hash = SipHasher24::new().hash(rest.concat().as_bytes()).h1 as u32;
        weights.push(format!("{} more weights ({hash:08x})", rest.len()));
    }
    weights
}

/// The groups that are cut into slots, and into how many.
fn cuts(config: &Config) -> Vec<String> {
    let groups = config.declared_groups().map(|(_, group)| group);
    let cut = groups.filter(|group| group.is_cut());
    let told = cut.map(|group| format!("{}/{}", group.name, group.slots.len()));
    // Places, and the order in the file, may differ from unit to unit.
    let mut told: Vec<String> = told.collect();
    told.sort();
    told
}

/// The names of the groups, by place; empty where nobody has it.
fn group_names(config: &Config) -> Vec<String> {
    let groups = config.groups.iter();
    groups.map(|group| group.name.clone()).collect()
}

fn identity(config: &Config, ha: &Ha, epoch: u64, ruleset: &Ruleset) -> message::Hello {
    message::Hello {
        version: message::VERSION,
        epoch,
        group_id: ha.group_id,
        resume: None,
        ruleset: ruleset.digest(),
        settings: Settings::new(ruleset.items()),
        units: units(config, ha),
        max_sessions: config.node.max_sessions,
        node: config.node.name.clone(),
        ports: config.ports.iter().map(|port| port.name.clone()).collect(),
        groups: group_names(config),
        policies: told_names(config.policies.iter().map(|policy| policy.name.as_str())),
        program: Some(env!("CARGO_PKG_VERSION").to_owned()),
        takes_configs: true,
        weights: weights(config),
        copies: Some(config.copies()),
        cuts: Some(cuts(config)),
    }
}

#[cfg(test)]
mod tests;
