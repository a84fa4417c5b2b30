//! Which peers hold the sessions of a group, where not all do (`copies`).
//!
//! The primary decides, and each peer learns it from what comes: a [`Message::Claim`] makes it one
//! of the holders, [`Message::Relieve`] ends that. No copy is given up before there are enough
//! others:
//!
//! - Each term begins with all peers, since any of them may hold what this unit lacks (see
//!   `union.rs`). Those that are no holders are not sent what they lack.
//! - A peer is relieved only when the holders have all, and everything that came from it.
//! - What a unit that was relieved still has is removed at once: it would grow old, and come back
//!   with the next union. Nothing of it is counted or offered from then on.

use std::time::Duration;

use super::message::Message;
use super::peer::{Authority, SyncPeer, Union};
use super::{Context, Replicator, SyncEvent, codec};
use crate::evidence::{Holders, Holding};
use crate::flow::{GroupId, GroupSet, PeerId};
use crate::session::SessionId;
use crate::store::{Journal, SessionStore};
use crate::time::Time;

/// How long a peer that is no holder keeps its copies at least: longer than a former primary
/// forwards stragglers, and than most failures of a link or a port.
const SURPLUS_FOR: Duration = Duration::from_secs(5);
/// Slots of the table passed in one step.
const SLOTS_PER_STEP: u32 = 128;
/// Steps in one call: 200 µs.
const STEPS_PER_CALL: u32 = 4;
/// The same in the middle of a stream, and the work that a step counts as there.
const WORK_PER_STEP: u32 = 16;

/// A pass over the table that removes sessions of groups that this unit no longer holds.
#[derive(Debug)]
pub(super) struct Dropping {
    groups: GroupSet,
    slot: u32,
    since: Time,
}

impl Replicator {
    /// Says which peers are to hold `group`, of which this unit is primary. When it becomes primary
    /// of a group, that is all of them.
    pub fn set_holders(&mut self, group: GroupId, holders: Holders, now: Time) {
        let index = usize::from(group.0);
        let Some(before) = self.holders.get(index).copied() else {
            return;
        };
        for at in 0..self.peers.len() {
            if is_in(before, at) && !is_in(holders, at) {
                self.peers[at].sender.surplus_since[index] = now;
            }
        }
        self.holders[index] = holders;
    }

    /// The peers that are to hold `group`, as far as this unit is primary of it.
    pub(crate) fn holders(&self, group: GroupId) -> Holders {
        let holders = self.holders.get(usize::from(group.0));
        holders.copied().unwrap_or_default()
    }

    /// Whether a peer is to hold a group that this unit sends.
    pub(super) fn wants(&self, at: usize, group: GroupId) -> bool {
        // A program that can't be relieved would go on with what it has.
        let remote = self.peers[at].remote.as_ref();
        is_in(self.holders(group), at) || remote.is_some_and(|it| !it.knows_copies)
    }

    /// The groups that a peer is told of, if this unit sends them: those that it is to hold, and
    /// those of which it may hold something.
    pub(super) fn claimed(&self, at: usize) -> GroupSet {
        let relieved = self.peers[at].sender.relieved;
        self.groups()
            .filter(|group| self.is_needed(at, *group) || !relieved.contains(*group))
            .collect()
    }

    /// Whether a peer holds a group that this unit sends, or is to hold it.
    pub(crate) fn is_holder(&self, peer: PeerId, group: GroupId) -> bool {
        let at = peer.index();
        let joined = |peer: &SyncPeer| peer.is_in_sync_for(group);
        self.peers
            .get(at)
            .is_some_and(|peer| self.wants(at, group) || joined(peer))
    }

    /// Whether a peer has all groups that it is to hold, and no more than the newest changes is
    /// under way.
    pub fn in_sync(&self, peer: PeerId) -> bool {
        let at = peer.index();
        let Some(peer) = self.peers.get(at) else {
            return false;
        };
        let told = |group: &GroupId| peer.sender.told[usize::from(group.0)].is_some();
        let counts = |group: &GroupId| self.wants(at, *group) || peer.is_in_sync_for(*group);
        let mut groups = self.groups().filter(told).filter(counts).peekable();
        groups.peek().is_some() && groups.all(|group| peer.is_in_sync_for(group))
    }

    /// Relieves a peer of groups of which it is no holder, and that enough others hold.
    pub(super) fn write_reliefs(
        &mut self,
        at: usize,
        out: &mut Vec<u8>,
        journal: &mut Journal,
        now: Time,
    ) {
        for group in self.groups() {
            if !self.is_surplus(at, group, journal, now) {
                continue;
            }
            codec::encode(out, &Message::Relieve { group: group.0 });
            let (index, sender) = (usize::from(group.0), &mut self.peers[at].sender);
            sender.told[index] = None;
            sender.forget_repairs(index);
            sender.relieved.insert(group);
            journal.forgive(at, group, |_, _| true);
            self.forget_copy(at, group);
        }
    }

    fn is_surplus(&self, at: usize, group: GroupId, journal: &Journal, now: Time) -> bool {
        let (index, sender) = (usize::from(group.0), &self.peers[at].sender);
        let Holders::Of { peers, copies } = self.holders(group) else {
            return false;
        };
        let is_told = sender.told[index].is_some() && sender.told[index] == journal.term(group);
        let is_over = now >= sender.surplus_since[index] + SURPLUS_FOR;
        if !is_told || !is_over || self.is_needed(at, group) {
            return false;
        }
        // All that it had is here; the holders must have that too.
        let Some(merged) = sender.marks[index].merged else {
            return false;
        };
        let holds = |(at, peer): (usize, &SyncPeer)| {
            let refused = journal.refused(at);
            peer.is_in_sync_for(group)
                && peer.sender.marks[index].equal
                && peer.sender.acked >= merged
                && refused.is_some_and(|refused| refused.is_empty(group))
        };
        let all = self.peers.iter().enumerate();
        let mut holders = all.filter(|(at, _)| peers.contains(PeerId(*at as u8)));
        peers.count() >= copies && holders.all(holds)
    }

    /// The primary of a group does not count on this unit: what it has of the group is removed.
    pub(super) fn handle_relieve(&mut self, at: usize, group: u8, context: &Context<'_>) {
        let Some(group) = self.group_of(at, group) else {
            return;
        };
        let index = usize::from(group.0);
        let receiver = &mut self.peers[at].receiver;
        let is_owner = receiver.authority[index] == Authority::Owner;
        let is_done = receiver.unions[index] == Union::Done;
        receiver.claims[index] = None;
        receiver.handed[index] = false;
        self.compare_claims(context.store.journal());
        if !is_owner || !is_done {
            self.counters.refused_not_primary += 1;
            return;
        }
        self.set_ready(index, false);
        self.held[index] = Holding::default();
        self.untold.note_group(index);
        let former = self.dropping.take();
        let mut groups = former.map(|it| it.groups).unwrap_or_default();
        groups.insert(group);
        self.dropping = Some(Dropping {
            groups,
            slot: 0,
            since: context.now,
        });
        self.events
            .push_back(SyncEvent::Relieved(PeerId(at as u8), group));
    }

    /// Goes on with removing what this unit no longer holds.
    pub(super) fn drop_some(&mut self, store: &mut SessionStore) {
        for _ in 0..STEPS_PER_CALL {
            if self.dropping.is_none() {
                return;
            }
            self.drop_step(store);
        }
    }

    fn drop_step(&mut self, store: &mut SessionStore) {
        let Some(mut dropping) = self.dropping.take() else {
            return;
        };
        let (sessions, next) = store.table().page(dropping.slot, SLOTS_PER_STEP);
        let found: Vec<SessionId> = sessions
            .filter(|(_, session)| dropping.groups.contains(session.group))
            .map(|(id, _)| id)
            .collect();
        for id in found {
            self.counters.dropped += 1;
            store.end(id);
        }
        if let Some(next) = next {
            dropping.slot = next;
            self.dropping = Some(dropping);
        }
    }

    /// Finishes removing a group before it is claimed again, while there is budget; returns whether
    /// that is done.
    pub(super) fn finish_dropping(
        &mut self,
        at: usize,
        group: u8,
        budget: &mut u32,
        store: &mut SessionStore,
    ) -> bool {
        let Some(group) = self.group_of(at, group) else {
            return true;
        };
        while self.is_dropping(group) {
            if *budget == 0 {
                return false;
            }
            *budget = budget.saturating_sub(WORK_PER_STEP);
            self.drop_step(store);
        }
        true
    }

    fn is_dropping(&self, group: GroupId) -> bool {
        let dropping = self.dropping.as_ref();
        dropping.is_some_and(|dropping| dropping.groups.contains(group))
    }

    /// This unit becomes primary of a group: what it still has of it stays.
    pub(super) fn stop_dropping(&mut self, group: GroupId) {
        if let Some(dropping) = &mut self.dropping {
            dropping.groups.remove(group);
        }
    }

    /// Since when sessions wait for being removed.
    pub(super) fn dropping_since(&self) -> Option<Time> {
        self.dropping.as_ref().map(|dropping| dropping.since)
    }

    /// The buckets that a peer lacks are not sent to it: it is no holder, and has never had all.
    pub(super) fn is_left_out(&self, at: usize, group: GroupId) -> bool {
        let joined = self.peers[at].sender.marks[usize::from(group.0)].joined;
        !joined && !self.is_needed(at, group)
    }

    /// Whether a peer is to hold a group, or is to become its primary.
    fn is_needed(&self, at: usize, group: GroupId) -> bool {
        let is_handed = self.peers[at].sender.handovers[usize::from(group.0)].is_some();
        self.wants(at, group) || is_handed
    }
}

fn is_in(holders: Holders, at: usize) -> bool {
    match holders {
        Holders::All => true,
        Holders::Of { peers, .. } => peers.contains(PeerId(at as u8)),
    }
}
