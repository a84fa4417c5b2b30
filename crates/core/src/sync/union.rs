//! How units that were apart merge their sessions before anything is removed.
//!
//! A unit that becomes primary may lack sessions that a standby has: the last changes of the one
//! before it came to the standby alone, or both were primary for a while without knowing. So the
//! first comparison under a new term never removes: the standby offers what differs, the primary
//! takes what it lacks, and only a later comparison counts. Nor does it matter what the primary
//! says that it holds: one that is wrong about that has lost its own copies, and must not end those
//! of others. The price is small: a session whose end only the primary has seen comes back, and
//! ends when it times out.

use super::codec::{self, Malformed};
use super::message::{Message, Operation};
use super::peer::{Authority, Mark, Offering, Receiver, SyncPeer, Union};
use super::{Context, Replicator, SyncEvent};
use crate::evidence::Holding;
use crate::flow::{Direction, GroupId, PeerId};
use crate::store::digest::{Buckets, SUMS};
use crate::store::{Journal, Seq, SessionStore};
use crate::time::Tick;

/// Slots of the table passed in one call: 200 µs.
const SLOTS_PER_CALL: u32 = 2048;
/// Slots passed between looks at the budget.
const SLOTS_PER_STEP: u32 = 64;

impl Replicator {
    /// This unit's evidence for a group; as primary, that from when its term began.
    pub fn held(&self, group: GroupId) -> Holding {
        let held = self.held.get(usize::from(group.0));
        held.copied().unwrap_or_default()
    }

    /// A term of this unit as primary, in which sessions of `group` were opened or changed here,
    /// has ended: what it holds by then. A term in which nothing happened adds nothing to what was
    /// held before it.
    pub(super) fn end_term(&mut self, group: GroupId, term: u64, journal: &Journal) {
        if let Some(held) = self.held.get_mut(usize::from(group.0)) {
            *held = Holding {
                term,
                epoch: self.epoch,
                position: journal.log().last(),
            };
            self.untold.note_group(usize::from(group.0));
        }
    }

    /// This unit becomes primary of a group, and may end sessions of it: what it has found about
    /// the copy of another primary holds no longer.
    pub(super) fn begin_reign(&mut self, group: GroupId) {
        self.stop_dropping(group);
        for receiver in self.peers.iter_mut().map(|peer| &mut peer.receiver) {
            receiver.verdicts.retain(|(_, other, _)| *other != group);
        }
    }

    /// This unit is no longer primary of a group. A peer that has claimed it meanwhile does not
    /// know what was opened and ended here: that is merged before anything is removed, and until
    /// then this is no copy. The peer learns of a reign that ended before it could be told, too.
    pub(super) fn end_reign(&mut self, group: GroupId, term: u64) {
        let index = usize::from(group.0);
        let claims = |peer: &&mut SyncPeer| peer.receiver.claims[index].is_some();
        let mut is_claimed = false;
        for peer in self.peers.iter_mut().filter(claims) {
            is_claimed = true;
            peer.receiver.settle_union(index, Union::Due);
            if peer.sender.told[index] != Some(term) {
                peer.sender.lost_reigns[index] = Some(term);
            }
        }
        if is_claimed {
            self.set_ready(index, false);
        }
    }

    /// The changes of peer `owner` to a group count. If those of another one did before, that one
    /// may have opened and ended sessions here that the owner knows nothing of, whether the owner
    /// has claimed the group before it or after it.
    pub(super) fn follow_owner(&mut self, group: usize, owner: usize) {
        let before = self.followed[group].replace(owner);
        if before.is_some_and(|before| before != owner) {
            let receiver = &mut self.peers[owner].receiver;
            receiver.settle_union(group, Union::Due);
            self.set_ready(group, false);
        }
    }

    /// A peer claims a group: it may hold something that is not known here, and it may end what it
    /// has acknowledged. It is a copy of this unit's again after a comparison, which it makes when
    /// its reign is over.
    pub(super) fn doubt_copy_of(&mut self, at: usize, group: GroupId) {
        self.peers[at].sender.relieved.remove(group);
        self.forget_copy(at, group);
    }

    /// What was found of a peer's copy of a group holds no longer.
    pub(super) fn forget_copy(&mut self, at: usize, group: GroupId) {
        let (index, peer) = (usize::from(group.0), &mut self.peers[at]);
        peer.sender.marks[index] = Mark::default();
        peer.kept[index] = None;
        self.untold.note_peer(at);
    }

    /// A batch of a peer is applied: so much more is held of the groups that it sends, but for
    /// those of which something was refused.
    pub(super) fn hold_more(&mut self, at: usize) {
        let receiver = &self.peers[at].receiver;
        for (group, held) in self.held.iter_mut().enumerate() {
            let follows = receiver.authority[group] == Authority::Owner
                && receiver.claims[group] == Some(held.term)
                && receiver.epoch == held.epoch;
            if follows && !receiver.lacks.contains(GroupId(group as u8)) {
                held.position = held.position.max(receiver.applied);
                self.untold.note_group(group);
            }
        }
    }

    /// A comparison with the primary at its change `seq` found no difference. The last changes
    /// before that may have been none of this unit's business: they count too, so that all units
    /// that hold the same say the same.
    pub(super) fn hold_all(&mut self, at: usize, group: usize, seq: Seq) {
        let receiver = &mut self.peers[at].receiver;
        receiver.lacks.remove(GroupId(group as u8));
        if let Some(term) = receiver.claims[group] {
            self.held[group] = Holding {
                term,
                epoch: receiver.epoch,
                position: receiver.applied.max(seq),
            };
            self.untold.note_group(group);
        }
    }

    /// A peer says that it is primary. If this unit does not follow it under that term already, it
    /// offers what differs.
    pub(super) fn plan_union(&mut self, at: usize, group: usize, term: u64) {
        let held = &self.held[group];
        let receiver = &mut self.peers[at].receiver;
        let follows = (held.term, held.epoch) == (term, receiver.epoch);
        let union = match follows {
            true => Union::Done,
            false => Union::Due,
        };
        receiver.settle_union(group, union);
    }

    /// Whether the comparison with a peer, which found `differing`, is to wait for a union.
    pub(super) fn waits_for_union(&mut self, at: usize, group: usize, differing: &Buckets) -> bool {
        let union = &mut self.peers[at].receiver.unions[group];
        match union {
            Union::Done => return false,
            Union::Due if differing.is_empty() => *union = Union::Done,
            Union::Due => *union = Union::Offering(*differing),
            Union::Offering(_) | Union::Offered => {}
        }
        *union != Union::Done
    }

    /// Offers sessions to the primary; returns whether that is to be continued.
    pub(super) fn write_offers(
        &mut self,
        at: usize,
        out: &mut Vec<u8>,
        limit: usize,
        store: &SessionStore,
        now: Tick,
    ) -> bool {
        let (table, book, journal) = (store.table(), store.book(), store.journal());
        let SyncPeer {
            receiver, traffic, ..
        } = &mut self.peers[at];
        if receiver.offering.is_none() {
            receiver.offering = next_offering(&receiver.unions);
        }
        let Some(offering) = &mut receiver.offering else {
            return false;
        };
        for _ in 0..SLOTS_PER_CALL / SLOTS_PER_STEP {
            if out.len() >= limit {
                break;
            }
            let (sessions, next) = table.page(offering.slot, SLOTS_PER_STEP);
            let mut frame = None;
            for (id, session) in sessions {
                let key = session.key(Direction::Original, book);
                let wanted = session.group == offering.group
                    && journal.seq_of(id).is_some()
                    && (offering.buckets.len() == SUMS as u32
                        || offering.buckets.contains(journal.digest().bucket(&key)));
                if !wanted {
                    continue;
                }
                if frame.is_none() {
                    frame = Some(out.len());
                    codec::begin_offer(out, offering.group.0);
                }
                codec::write_session(out, session, book, now);
                traffic.changes_sent += 1;
                self.counters.offered += 1;
            }
            if let Some(start) = frame {
                codec::end_offer(out, start);
            }
            let Some(next) = next else {
                let group = offering.group;
                codec::encode(out, &Message::OfferEnd { group: group.0 });
                receiver.unions[usize::from(group.0)] = Union::Offered;
                receiver.offering = None;
                return next_offering(&receiver.unions).is_some();
            };
            offering.slot = next;
        }
        true
    }

    /// Takes sessions that a standby offers, as far as this unit is primary and lacks them; returns
    /// whether the frame is done with.
    pub(super) fn handle_offer(
        &mut self,
        at: usize,
        group: u8,
        operations: &[u8],
        budget: &mut u32,
        context: &mut Context<'_>,
    ) -> Result<bool, Malformed> {
        let ours = self.group_of(at, group);
        let journal = context.store.journal();
        let wanted = ours.is_some_and(|group| journal.term(group).is_some());
        self.each_operation(at, operations, budget, |this, operation| match operation {
            Some(Operation::Put(record)) if wanted && record.group == group => {
                this.counters.taken += 1;
                this.merge(at, &record, context);
            }
            _ => this.counters.refused_not_primary += 1,
        })
    }

    /// A standby has offered all.
    pub(super) fn handle_offer_end(&mut self, at: usize, group: u8, context: &Context<'_>) {
        let Some(group) = self.group_of(at, group) else {
            return;
        };
        let peer = &mut self.peers[at];
        if !peer.receiver.taken.contains(&group) {
            peer.receiver.taken.push(group);
            self.events
                .push_back(SyncEvent::Merged(PeerId(at as u8), group));
        }
        let last = context.store.journal().log().last();
        if let Some(mark) = peer.sender.marks.get_mut(usize::from(group.0)) {
            mark.merged.get_or_insert(last);
        }
        // So that the comparison that counts comes at once.
        peer.sender.next_mark = context.now;
    }

    /// The primary has taken what this unit has offered.
    pub(super) fn handle_offer_taken(&mut self, at: usize, group: u8) {
        if let Some(group) = self.group_of(at, group) {
            let union = &mut self.peers[at].receiver.unions[usize::from(group.0)];
            if *union == Union::Offered {
                *union = Union::Done;
            }
        }
    }

    /// Whether what a peer does not name of a group may be removed here.
    pub(super) fn may_sweep(&self, at: usize, group: usize) -> bool {
        let receiver = &self.peers[at].receiver;
        receiver.authority.get(group) == Some(&Authority::Owner)
            && receiver.unions.get(group) == Some(&Union::Done)
    }
}

impl Receiver {
    /// A union begins again from there.
    fn settle_union(&mut self, group: usize, union: Union) {
        self.unions[group] = union;
        self.offering = (self.offering).filter(|it| usize::from(it.group.0) != group);
    }
}

fn next_offering(unions: &[Union]) -> Option<Offering> {
    let mut all = unions.iter().enumerate();
    all.find_map(|(group, union)| match union {
        Union::Offering(buckets) => Some(Offering {
            group: GroupId(group as u8),
            slot: 0,
            buckets: *buckets,
        }),
        _ => None,
    })
}
