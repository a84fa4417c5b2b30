//! Sends to a peer, in this order: control messages, changes, buckets that are sent again, marks.

use std::time::Duration;

use super::message::{Hello, Message};
use super::peer::{Scan, SyncPeer};
use super::{Replicator, codec};
use crate::flow::{Direction, GroupId, PeerId};
use crate::store::digest::{Buckets, SUMS};
use crate::store::log::Entry;
use crate::store::{Journal, SessionStore};
use crate::time::Time;

/// A batch is ended when it is longer.
const LONGEST_BATCH: usize = 16 * 1024;

/// Changes that are looked at in one call, whether they are the peer's business or not: 200 µs.
const CHANGES_PER_CALL: usize = 1024;

/// Slots of the table passed in one call: 200 µs.
const SLOTS_PER_CALL: u32 = 2048;

/// Slots passed between looks at the budget.
const SLOTS_PER_STEP: u32 = 64;

/// How often sums are compared.
const MARK_INTERVAL: Duration = Duration::from_secs(1);

/// The source of records: from when, and how much.
struct Source<'a> {
    store: &'a mut SessionStore,
    now: Time,
    /// The length of the output at which to stop.
    limit: usize,
}

impl Replicator {
    /// Writes to `out` what a peer should get now: about `budget` bytes, by a Hello or a mark's
    /// 2 KiB more. Returns whether to call again as soon as the stream takes more.
    pub fn poll_transmit(
        &mut self,
        peer: PeerId,
        out: &mut Vec<u8>,
        budget: usize,
        store: &mut SessionStore,
        now: Time,
    ) -> bool {
        let at = peer.index();
        let (start, limit) = (out.len(), out.len().saturating_add(budget));
        if !self.greet(at, out) {
            return false;
        }
        let mut source = Source { store, now, limit };
        self.write_claims(at, out, &source);
        self.write_answers(at, out);
        let at_end = self.write_changes(at, out, &mut source);
        if at_end {
            self.write_releases(at, out, source.store.journal());
            self.write_reliefs(at, out, source.store.journal_mut(), now);
        }
        let offering = self.write_offers(at, out, limit, source.store, now.tick());
        let repairing = self.write_repairs(at, out, &mut source, at_end);
        if at_end && !repairing {
            self.write_marks(at, out, source.store.journal(), now);
        }
        let more = !at_end || repairing || offering;
        let peer = &mut self.peers[at];
        peer.sender.blocked = more;
        peer.traffic.bytes_sent += (out.len() - start) as u64;
        more
    }

    /// Sends Hello, once. Returns whether that of the peer has come too.
    fn greet(&mut self, at: usize, out: &mut Vec<u8>) -> bool {
        let Some(peer) = self.peers.get_mut(at).filter(|peer| peer.connected) else {
            return false;
        };
        if !peer.hello_sent {
            peer.hello_sent = true;
            let (epoch, seq) = (peer.receiver.epoch, peer.receiver.applied);
            let resume = (seq > 0).then_some((epoch, seq));
            let hello = Hello {
                resume,
                ..self.identity.clone()
            };
            codec::encode(out, &Message::Hello(Box::new(hello)));
        }
        peer.remote.is_some()
    }

    /// Tells which groups this unit sends that the peer does not know of.
    fn write_claims(&mut self, at: usize, out: &mut Vec<u8>, source: &Source<'_>) {
        let claimed = self.claimed(at);
        let SyncPeer { sender, remote, .. } = &mut self.peers[at];
        let has = |group: usize| {
            let has = remote.as_ref().and_then(|remote| remote.has.get(group));
            has.is_some_and(|has| *has)
        };
        let held = &self.held;
        let claim = |group: usize, term| Message::Claim {
            group: group as u8,
            term,
            basis: held[group],
        };
        for (group, lost) in sender.lost_reigns.iter_mut().enumerate() {
            if let Some(term) = lost.take().filter(|_| has(group)) {
                codec::encode(out, &claim(group, term));
                match &mut sender.told[group] {
                    // It is released of that after all changes.
                    Some(told) => *told = term,
                    None => codec::encode(out, &Message::Release { group: group as u8 }),
                }
            }
        }
        for (group, sending) in source.store.journal().sending().iter().enumerate() {
            if let Some(term) = *sending
                && sender.told[group] != Some(term)
                && has(group)
                && claimed.contains(GroupId(group as u8))
            {
                codec::encode(out, &claim(group, term));
                sender.told[group] = Some(term);
                sender.relieved.remove(GroupId(group as u8));
                sender.surplus_since[group] = source.now;
                sender.marks[group] = Default::default();
                self.untold.note_peer(at);
                sender.forget_repairs(group);
                sender.next_mark = source.now;
            }
        }
    }

    fn write_answers(&mut self, at: usize, out: &mut Vec<u8>) {
        let receiver = &mut self.peers[at].receiver;
        // Before the acknowledgement of the changes that they are about.
        receiver.refusals.write(out);
        if receiver.acknowledged != receiver.applied {
            receiver.acknowledged = receiver.applied;
            codec::encode(
                out,
                &Message::Ack {
                    epoch: receiver.epoch,
                    seq: receiver.applied,
                },
            );
        }
        for (seq, group, differing) in receiver.verdicts.drain(..) {
            codec::encode(
                out,
                &Message::Verdict {
                    seq,
                    group: group.0,
                    differing,
                },
            );
        }
        for group in receiver.taken.drain(..) {
            codec::encode(out, &Message::OfferTaken { group: group.0 });
        }
        if std::mem::take(&mut self.peers[at].sender.drain) {
            codec::encode(out, &Message::Drain);
        }
    }

    /// Writes changes up to the limit; returns whether there are no more.
    fn write_changes(&mut self, at: usize, out: &mut Vec<u8>, source: &mut Source<'_>) -> bool {
        let (now, limit) = (source.now, source.limit);
        let (peer, journal) = (&mut self.peers[at], source.store.journal_mut());
        if peer.sender.told.iter().all(Option::is_none) {
            journal.log_mut().skip_to_end(at);
        }
        let (from, start) = (journal.log().read_up_to(at), out.len());
        let place = (journal, now.tick());
        let at_end = match self.fanned.repeat(at, peer, out, limit, place) {
            Some(sessions) => {
                self.counters.sent += sessions;
                true
            }
            None => {
                let before = (self.counters.sent, peer.traffic.changes_sent);
                let at_end = self.encode_changes(at, out, source);
                if at_end && out.len() > start && self.peers.len() > 1 {
                    let peer = &self.peers[at];
                    let (sessions, changes) = (self.counters.sent, peer.traffic.changes_sent);
                    let counts = (sessions - before.0, changes - before.1);
                    let written = (&out[start..], counts);
                    let last = source.store.journal().log().last();
                    self.fanned.keep((from, last, now.tick()), peer, written);
                }
                at_end
            }
        };
        let (log, sender) = (source.store.journal().log(), &mut self.peers[at].sender);
        sender.settle(log.read_up_to(at), log.last(), now);
        at_end
    }

    /// Encodes changes up to the limit; returns whether there are no more.
    fn encode_changes(&mut self, at: usize, out: &mut Vec<u8>, source: &mut Source<'_>) -> bool {
        let SyncPeer {
            sender, traffic, ..
        } = &mut self.peers[at];
        let (now, limit) = (source.now, source.limit);
        let (table, book, journal) = source.store.to_read();
        let mut batch = None;
        let mut at_end = false;
        for _ in 0..CHANGES_PER_CALL {
            if out.len() >= limit {
                break;
            }
            let Some(entry) = journal.log_mut().read(at) else {
                at_end = true;
                break;
            };
            let told = |group: GroupId| sender.told[usize::from(group.0)].is_some();
            match entry {
                Entry::Session(id) => {
                    let Some(session) = table.get(id).filter(|s| told(s.group)) else {
                        continue;
                    };
                    open_batch(out, &mut batch);
                    codec::write_session(out, session, book, now.tick());
                    journal.sent(at, id, session.group);
                    self.counters.sent += 1;
                    traffic.changes_sent += 1;
                }
                Entry::Removed(tombstone) if told(tombstone.group) => {
                    open_batch(out, &mut batch);
                    codec::write_removal(out, &tombstone.key, tombstone.group.0);
                    traffic.changes_sent += 1;
                }
                Entry::Removed(_) => continue,
            }
            if let Some(start) = batch.take_if(|start| out.len() - *start > LONGEST_BATCH) {
                sender.sent = journal.log().read_up_to(at);
                codec::end_batch(out, start, sender.sent);
            }
        }
        if let Some(start) = batch {
            sender.sent = journal.log().read_up_to(at);
            codec::end_batch(out, start, sender.sent);
        }
        at_end
    }

    /// After all changes: what ends a time as primary.
    fn write_releases(&mut self, at: usize, out: &mut Vec<u8>, journal: &Journal) {
        let sender = &mut self.peers[at].sender;
        for (group, handover) in sender.handovers.iter_mut().enumerate() {
            if let Some(term) = handover.take() {
                let group = group as u8;
                codec::encode(out, &Message::Handover { group, term });
            }
        }
        for (group, sending) in journal.sending().iter().enumerate() {
            if sending.is_none() && sender.told[group].is_some() {
                codec::encode(out, &Message::Release { group: group as u8 });
                sender.told[group] = None;
                sender.pending[group] = Buckets::default();
                sender.marks[group] = Default::default();
                self.untold.note_peer(at);
            }
        }
    }

    /// Continues to send buckets again; returns whether there is more of them.
    fn write_repairs(
        &mut self,
        at: usize,
        out: &mut Vec<u8>,
        source: &mut Source<'_>,
        at_end: bool,
    ) -> bool {
        let sender = &mut self.peers[at].sender;
        if !sender.is_repairing() {
            return false;
        }
        if out.len() >= source.limit {
            return true;
        }
        if sender.scan.is_none() {
            codec::encode(out, &Message::Begin);
            let none = vec![Buckets::default(); sender.pending.len()];
            let buckets = std::mem::replace(&mut sender.pending, none);
            sender.scan = Some(Scan {
                slot: 0,
                buckets,
                through_at: None,
            });
        }
        self.scan(at, out, source);
        let sender = &mut self.peers[at].sender;
        let read = source.store.journal().log().read_up_to(at);
        let complete = |scan: &mut Scan| scan.through_at.is_some_and(|seq| at_end || read >= seq);
        if let Some(scan) = sender.scan.take_if(complete) {
            let parts = (0..)
                .zip(scan.buckets)
                .filter(|(_, buckets)| !buckets.is_empty());
            codec::encode(out, &Message::End(parts.collect()));
            sender.next_mark = source.now + sender.patience();
        }
        sender.is_repairing()
    }

    fn scan(&mut self, at: usize, out: &mut Vec<u8>, source: &mut Source<'_>) {
        let (now, limit) = (source.now, source.limit);
        let (table, book, journal) = source.store.to_read();
        let SyncPeer {
            sender, traffic, ..
        } = &mut self.peers[at];
        let Some(scan) = sender
            .scan
            .as_mut()
            .filter(|scan| scan.through_at.is_none())
        else {
            return;
        };
        let mut batch = None;
        for _ in 0..SLOTS_PER_CALL / SLOTS_PER_STEP {
            if out.len() >= limit {
                break;
            }
            let (sessions, next) = table.page(scan.slot, SLOTS_PER_STEP);
            for (id, session) in sessions {
                let group = usize::from(session.group.0);
                let wanted = &scan.buckets[group];
                if wanted.is_empty() || sender.told[group].is_none() || journal.seq_of(id).is_none()
                {
                    continue;
                }
                let key = session.key(Direction::Original, book);
                if wanted.len() < SUMS as u32 && !wanted.contains(journal.digest().bucket(&key)) {
                    continue;
                }
                open_batch(out, &mut batch);
                codec::write_session(out, session, book, now.tick());
                journal.log_mut().mark_shared(id);
                self.counters.sent += 1;
                traffic.changes_sent += 1;
            }
            if let Some(start) = batch.take_if(|start| out.len() - *start > LONGEST_BATCH) {
                codec::end_batch(out, start, sender.sent);
            }
            match next {
                Some(next) => scan.slot = next,
                None => {
                    scan.through_at = Some(journal.log().last());
                    break;
                }
            }
        }
        if let Some(start) = batch {
            codec::end_batch(out, start, sender.sent);
        }
    }

    /// Everything was sent: the peer's sums should be these.
    fn write_marks(&mut self, at: usize, out: &mut Vec<u8>, journal: &Journal, now: Time) {
        let sender = &mut self.peers[at].sender;
        if now < sender.next_mark {
            return;
        }
        sender.next_mark = now + MARK_INTERVAL;
        for group in 0..sender.told.len() {
            let mark = &mut sender.marks[group];
            if sender.told[group].is_none() {
                continue;
            }
            if let Some(sums) = journal.digest().bytes(GroupId(group as u8)) {
                let seq = journal.log().last();
                mark.seq = seq;
                mark.unanswered = mark.unanswered.saturating_add(1);
                codec::encode(
                    out,
                    &Message::Mark {
                        seq,
                        group: group as u8,
                        sums: &sums,
                    },
                );
            }
        }
    }
}

fn open_batch(out: &mut Vec<u8>, batch: &mut Option<usize>) {
    if batch.is_none() {
        *batch = Some(out.len());
        codec::begin_batch(out, 0);
    }
}
