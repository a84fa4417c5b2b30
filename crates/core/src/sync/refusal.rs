//! Acknowledged means held: a unit reports what it does not take to the sender before the change is
//! acknowledged, and never counts as a copy.

use super::message::{Message, Record, Refusal};
use super::{Context, Replicator, SyncEvent, codec};
use crate::flow::{Direction, FlowKey, GroupId, PeerId};
use crate::session::SessionId;
use crate::store::{Journal, Seq, SessionStore};

/// Refusals that wait to be told; beyond it the group as a whole counts as not held.
const MOST_REFUSALS: usize = 1024;

/// A report to a peer.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    named: Vec<(u8, Refusal, FlowKey)>,
    /// By the peer's number of a group: there were more than are named.
    more: [u64; 4],
}

impl Refusals {
    /// To be told to the peer: a record of its group `group` was not taken.
    pub(super) fn push(&mut self, group: u8, reason: Refusal, key: FlowKey) {
        match self.named.len() < MOST_REFUSALS {
            true => self.named.push((group, reason, key)),
            false => self.more[usize::from(group >> 6)] |= 1 << (group & 63),
        }
    }

    pub(super) fn write(&mut self, out: &mut Vec<u8>) {
        for (group, reason, key) in self.named.drain(..) {
            let key = Some(key);
            codec::encode(out, &Message::Refuse { group, reason, key });
        }
        let more = std::mem::take(&mut self.more);
        if more == [0; 4] {
            return;
        }
        for group in 0..=u8::MAX {
            if more[usize::from(group >> 6)] >> (group & 63) & 1 != 0 {
                let (reason, key) = (Refusal::Full, None);
                codec::encode(out, &Message::Refuse { group, reason, key });
            }
        }
    }
}

/// How the copies of a session stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// No peer is in sync: there is nobody to wait for.
    NoPeer,
    /// More peers may acknowledge it.
    Awaited,
    /// As many as are wanted, or as there are in sync, hold it.
    Held,
    /// Too many peers have refused it.
    Refused,
}

impl Replicator {
    /// Whether `wanted` peers hold a session of `group` whose last change is `seq`.
    pub fn copies(
        &self,
        journal: &Journal,
        (id, group): (SessionId, GroupId),
        seq: Seq,
        wanted: u32,
    ) -> Copies {
        let (mut in_sync, mut possible, mut held) = (0, 0, 0);
        for (at, peer) in self.peers.iter().enumerate() {
            if !peer.is_in_sync_for(group) {
                continue;
            }
            in_sync += 1;
            let refused = journal.refused(at);
            if !refused.is_some_and(|refused| refused.contains(id, group)) {
                possible += 1;
                held += u32::from(peer.sender.acked >= seq);
            }
        }
        let wanted = wanted.min(in_sync);
        if in_sync == 0 {
            Copies::NoPeer
        } else if held >= wanted {
            Copies::Held
        } else if possible < wanted {
            Copies::Refused
        } else {
            Copies::Awaited
        }
    }

    /// Whether all peers that are in sync have the session of `group` as it is; not if none is.
    pub(crate) fn is_synced(&self, journal: &Journal, id: SessionId, group: GroupId) -> bool {
        let seq = journal.seq_of(id);
        let copies = |seq| self.copies(journal, (id, group), seq, u32::MAX);
        seq.is_some_and(|seq| copies(seq) == Copies::Held)
    }

    /// Counts a record that is not taken, and has its sender told.
    pub(super) fn refuse(&mut self, at: usize, record: &Record, reason: Refusal) {
        *match reason {
            Refusal::Full => &mut self.counters.refused_full,
            Refusal::Unknown => &mut self.counters.refused_unknown,
            Refusal::Conflict => &mut self.counters.conflicts_won,
            Refusal::NotPrimary => &mut self.counters.refused_not_primary,
        } += 1;
        // What others may hold and this unit does not: it can't claim to hold all up to here.
        if matches!(reason, Refusal::Full | Refusal::Unknown)
            && let Some(group) = self.group_of(at, record.group)
        {
            self.peers[at].receiver.lacks.insert(group);
        }
        let receiver = &mut self.peers[at].receiver;
        receiver.refusals.push(record.group, reason, record.key);
    }

    /// A peer does not hold a session.
    pub(super) fn handle_refuse(
        &mut self,
        at: usize,
        (group, reason, key): (u8, Refusal, Option<FlowKey>),
        context: &mut Context<'_>,
    ) {
        // The number is one of this unit's list.
        let group = GroupId(group);
        let (table, book, journal) = context.store.to_read();
        if usize::from(group.0) >= journal.sending().len() {
            return;
        }
        let Some(refused) = journal.refused_mut(at) else {
            return;
        };
        self.counters.refused_by_peers += 1;
        let is_news = refused.is_empty(group);
        match key {
            None => refused.add_unnamed(group),
            Some(key) => {
                let Some((id, Direction::Original)) = table.lookup(&key, book) else {
                    return;
                };
                if table.get(id).is_none_or(|it| it.group != group) {
                    return;
                }
                refused.add(id, group);
            }
        }
        if is_news {
            let peer = PeerId(at as u8);
            self.events.push_back(SyncEvent::PeerRefuses {
                peer,
                group,
                reason,
            });
        }
    }

    /// A peer held all sessions of a group as of `seq`.
    pub(super) fn forgive(
        &mut self,
        at: usize,
        group: GroupId,
        seq: Seq,
        store: &mut SessionStore,
    ) {
        let (table, _, journal) = store.to_read();
        journal.forgive(at, group, |id, last| {
            last <= seq && table.get(id).is_some_and(|session| session.group == group)
        });
    }

    /// Makes room for a replica of `group`, whose share of the table is not used up, with a session
    /// that this unit itself may lose and that nobody would miss.
    pub(super) fn make_room(&mut self, group: GroupId, context: &mut Context<'_>) -> bool {
        let (table, journal) = (context.store.table(), context.store.journal());
        let share = table.capacity() / (journal.sending().len() as u32).max(1);
        if journal.digest().count(group) >= share {
            return false;
        }
        let candidate = context.store.early_drop_candidate(|session, journal| {
            journal.term(session.group).is_some() && journal.digest().count(session.group) > share
        });
        let Some(id) = candidate else {
            return false;
        };
        self.counters.made_room += 1;
        context.store.end(id);
        true
    }
}
