//! The sessions that a peer was sent and does not hold.

use crate::flow::GroupId;
use crate::session::SessionId;

/// The sessions of this unit that a peer has refused: one bit a slot of the table.
#[derive(Debug, Default)]
pub struct Refused {
    slots: Vec<u64>,
    /// By own group.
    counts: Vec<u32>,
    /// By own group: some sessions are refused that the peer did not name.
    unnamed: Vec<bool>,
}

impl Refused {
    /// Empty, for `groups` groups.
    pub(super) fn new(groups: usize) -> Refused {
        Refused {
            slots: Vec::new(),
            counts: vec![0; groups],
            unnamed: vec![false; groups],
        }
    }

    /// Another group has the place `group`, of `groups`, from now on.
    pub(super) fn reset_group(&mut self, groups: usize, group: GroupId) {
        self.counts.resize(groups, 0);
        self.unnamed.resize(groups, false);
        self.unnamed[usize::from(group.0)] = false;
    }

    /// Whether the peer has said that it does not hold a session of `group`: by name, or as one of
    /// others.
    #[inline]
    pub fn contains(&self, id: SessionId, group: GroupId) -> bool {
        self.is_named(id) || self.has_unnamed(group)
    }

    /// Whether the peer has refused sessions of a group without naming them.
    pub fn has_unnamed(&self, group: GroupId) -> bool {
        self.unnamed.get(usize::from(group.0)) == Some(&true)
    }

    /// How many sessions of a group the peer has refused, of those that it named.
    pub fn count(&self, group: GroupId) -> u32 {
        let count = self.counts.get(usize::from(group.0));
        count.copied().unwrap_or(0)
    }

    /// Whether the peer may hold all sessions of a group.
    pub fn is_empty(&self, group: GroupId) -> bool {
        self.count(group) == 0 && !self.has_unnamed(group)
    }

    /// Whether the peer may hold everything.
    pub fn is_clear(&self) -> bool {
        self.counts.iter().all(|count| *count == 0) && !self.unnamed.contains(&true)
    }

    /// The peer has named a session of `group`. No effect for a group that does not exist.
    pub fn add(&mut self, id: SessionId, group: GroupId) {
        let Some(count) = self.counts.get_mut(usize::from(group.0)) else {
            return;
        };
        let word = id.0 as usize / 64;
        if self.slots.len() <= word {
            self.slots.resize(word + 1, 0);
        }
        let bit = 1 << (id.0 % 64);
        if self.slots[word] & bit == 0 {
            self.slots[word] |= bit;
            *count += 1;
        }
    }

    /// The peer has refused sessions of a group that it did not name. No effect for a group that
    /// does not exist.
    pub fn add_unnamed(&mut self, group: GroupId) {
        if let Some(unnamed) = self.unnamed.get_mut(usize::from(group.0)) {
            *unnamed = true;
        }
    }

    /// The session has ended, or is sent again.
    #[inline]
    pub fn remove(&mut self, id: SessionId, group: GroupId) {
        if self.is_named(id) {
            self.slots[id.0 as usize / 64] &= !(1 << (id.0 % 64));
            if let Some(count) = self.counts.get_mut(usize::from(group.0)) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// The peer holds the sessions of `group` for which `held` returns true, and all that it did
    /// not name.
    pub fn forgive(&mut self, group: GroupId, held: impl Fn(SessionId) -> bool) {
        if self.is_empty(group) {
            return;
        }
        let held: Vec<SessionId> = self.named().filter(|id| held(*id)).collect();
        held.into_iter().for_each(|id| self.remove(id, group));
        if let Some(unnamed) = self.unnamed.get_mut(usize::from(group.0)) {
            *unnamed = false;
        }
    }

    #[inline]
    fn is_named(&self, id: SessionId) -> bool {
        let word = self.slots.get(id.0 as usize / 64);
        word.is_some_and(|word| word >> (id.0 % 64) & 1 != 0)
    }

    fn named(&self) -> impl Iterator<Item = SessionId> {
        let words = self.slots.iter().enumerate();
        words
            .filter(|(_, word)| **word != 0)
            .flat_map(|(at, word)| {
                let bits = (0..64).filter(move |bit| word >> bit & 1 != 0);
                bits.map(move |bit| SessionId(at as u32 * 64 + bit))
            })
    }
}
