//! Acknowledged means held: what a unit does not take is told to the sender before the change is
//! acknowledged, and never counts as a copy.

use super::log::Seq;
use super::message::{Message, Record, Refusal};
use super::peer::Peer;
use super::{Context, Event, Replicator, codec};
use crate::flow::{Direction, FlowKey, GroupId, PeerId};
use crate::session::{SessionId, Table};

/// Refusals that wait to be told; beyond it the group as a whole counts as not held.
const MOST_REFUSALS: usize = 1024;

/// What is to be told to a peer.
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
        for group in 0..=u8::MAX {
            if self.more[usize::from(group >> 6)] >> (group & 63) & 1 != 0 {
                let (reason, key) = (Refusal::Full, None);
                codec::encode(out, &Message::Refuse { group, reason, key });
            }
        }
        self.more = [0; 4];
    }
}

/// What a peer has refused of this unit's sessions: one bit a slot of the table.
#[derive(Debug, Default)]
pub(super) struct Refused {
    slots: Vec<u64>,
    /// By own group.
    counts: Vec<u32>,
    /// By own group: some are refused that the peer did not name.
    more: Vec<bool>,
}

impl Refused {
    pub(super) fn new(groups: usize) -> Refused {
        Refused {
            slots: Vec::new(),
            counts: vec![0; groups],
            more: vec![false; groups],
        }
    }

    #[inline]
    fn contains(&self, id: SessionId) -> bool {
        let word = self.slots.get(id.0 as usize / 64);
        word.is_some_and(|word| word >> (id.0 % 64) & 1 != 0)
    }

    /// Whether the peer may hold all sessions of a group.
    pub(super) fn is_empty(&self, group: GroupId) -> bool {
        let index = usize::from(group.0);
        self.counts.get(index) == Some(&0) && self.more.get(index) == Some(&false)
    }

    fn set(&mut self, id: SessionId, group: GroupId) {
        let word = id.0 as usize / 64;
        if self.slots.len() <= word {
            self.slots.resize(word + 1, 0);
        }
        if !self.contains(id) {
            self.slots[word] |= 1 << (id.0 % 64);
            self.counts[usize::from(group.0)] += 1;
        }
    }

    /// The session is gone, or sent again.
    #[inline]
    pub(super) fn clear(&mut self, id: SessionId, group: GroupId) {
        if self.contains(id) {
            self.slots[id.0 as usize / 64] &= !(1 << (id.0 % 64));
            let count = &mut self.counts[usize::from(group.0)];
            *count = count.saturating_sub(1);
        }
    }

    fn ids(&self) -> impl Iterator<Item = SessionId> {
        let words = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, word)| **word != 0);
        words.flat_map(|(at, word)| {
            let bits = (0..64).filter(move |bit| word >> bit & 1 != 0);
            bits.map(move |bit| SessionId(at as u32 * 64 + bit))
        })
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
    pub fn copies(&self, id: SessionId, seq: Seq, group: GroupId, wanted: u32) -> Copies {
        let (mut in_sync, mut possible, mut held) = (0, 0, 0);
        for peer in self.peers.iter().filter(|peer| peer.is_in_sync_for(group)) {
            in_sync += 1;
            if !peer.refuses(id, group) {
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
    pub fn is_synced(&self, id: SessionId, group: GroupId) -> bool {
        let seq = self.log.seq_of(id);
        seq.is_some_and(|seq| self.copies(id, seq, group, u32::MAX) == Copies::Held)
    }

    /// Counts a record that is not taken, and has its sender told.
    pub(super) fn refuse(&mut self, at: usize, record: &Record, reason: Refusal) {
        *match reason {
            Refusal::Full => &mut self.counters.refused_full,
            Refusal::Unknown => &mut self.counters.refused_unknown,
            Refusal::Conflict => &mut self.counters.conflicts_won,
            Refusal::NotPrimary => &mut self.counters.refused_not_primary,
        } += 1;
        let receiver = &mut self.peers[at].receiver;
        receiver.refusals.push(record.group, reason, record.key);
    }

    /// A peer does not hold a session.
    pub(super) fn handle_refuse(
        &mut self,
        at: usize,
        (group, reason, key): (u8, Refusal, Option<FlowKey>),
        context: &Context<'_>,
    ) {
        // The number is one of this unit's list.
        let group = GroupId(group);
        let Some(refused) = self.peers.get_mut(at).map(|peer| &mut peer.refused) else {
            return;
        };
        let index = usize::from(group.0);
        if index >= refused.counts.len() {
            return;
        }
        self.counters.refused_by_peers += 1;
        let is_news = refused.is_empty(group);
        match key {
            None => refused.more[index] = true,
            Some(key) => {
                let found = context.table.lookup(&key, context.book);
                let Some((id, Direction::Original)) = found else {
                    return;
                };
                if context.table.get(id).is_none_or(|it| it.group != group) {
                    return;
                }
                refused.set(id, group);
            }
        }
        if is_news {
            let peer = PeerId(at as u8);
            self.events.push_back(Event::PeerRefuses {
                peer,
                group,
                reason,
            });
        }
    }

    /// A peer held all sessions of a group as of `seq`.
    pub(super) fn forgive(&mut self, at: usize, group: GroupId, seq: Seq, table: &Table) {
        let Peer { refused, .. } = &mut self.peers[at];
        if refused.is_empty(group) {
            return;
        }
        let held = |id: &SessionId| {
            table.get(*id).is_some_and(|session| session.group == group)
                && self.log.seq_of(*id).is_some_and(|last| last <= seq)
        };
        let held: Vec<SessionId> = refused.ids().filter(held).collect();
        held.into_iter().for_each(|id| refused.clear(id, group));
        refused.more[usize::from(group.0)] = false;
    }

    /// Makes room for a replica of `group`, whose share of the table is not used up, with a session
    /// that this unit itself may lose and that nobody would miss.
    pub(super) fn make_room(&mut self, group: GroupId, context: &mut Context<'_>) -> bool {
        let share = context.table.capacity() / (self.sending.len() as u32).max(1);
        if self.digest.count(group) >= share {
            return false;
        }
        let (sending, digest) = (&self.sending, &self.digest);
        let candidate = context.table.early_drop_candidate(|session| {
            let owner = sending.get(usize::from(session.group.0));
            owner.is_some_and(Option::is_some) && digest.count(session.group) > share
        });
        let Some(id) = candidate else {
            return false;
        };
        self.counters.made_room += 1;
        self.take_out(id, context);
        true
    }
}

impl Peer {
    /// Whether it has told that it does not hold a session.
    #[inline]
    pub(super) fn refuses(&self, id: SessionId, group: GroupId) -> bool {
        self.refused.contains(id) || self.refuses_unnamed(group)
    }

    /// Whether it has refused sessions of a group without naming them.
    pub(super) fn refuses_unnamed(&self, group: GroupId) -> bool {
        self.refused.more.get(usize::from(group.0)) == Some(&true)
    }

    /// How many sessions of a group it has refused, as far as it named them.
    pub(super) fn refused_count(&self, group: GroupId) -> u32 {
        let count = self.refused.counts.get(usize::from(group.0));
        count.copied().unwrap_or(0)
    }
}
