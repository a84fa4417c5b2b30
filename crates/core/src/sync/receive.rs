//! Handles received messages. The peer is authenticated, and yet nothing that it sends may crash
//! this unit, fill its memory, keep it busy, or change a group that is not the peer's.

use std::collections::BTreeMap;

use super::codec::{self, FrameBuffer, Malformed};
use super::message::{Hello, MAX_FRAME, Message, Operation, VERSION};
use super::peer::{Authority, Remote, Sweep};
use super::settings::{Lacking, cuts_by_names, only_one_has, units_of_one};
use super::{Context, ProtocolError, Received, Replicator, SyncEvent};
use crate::flow::{Direction, GroupId, PeerId, PolicyId, PortId};
use crate::store::digest::Buckets;
use crate::store::{Journal, Seq, SessionStore};

/// Operations and frames handled in one call: some 200 µs.
const WORK_PER_CALL: u32 = 256;

/// Slots that a sweep passes for one unit of work.
const SLOTS_PER_WORK: u32 = 8;

/// Slots that a sweep passes in one step.
const SLOTS_PER_STEP: u32 = 128;

/// Events that may wait; the stream waits for them to be fetched.
const MOST_EVENTS: usize = 64;

impl From<Malformed> for ProtocolError {
    fn from(_: Malformed) -> ProtocolError {
        ProtocolError::Malformed
    }
}

impl Replicator {
    /// Handles bytes of a peer's stream: a bounded piece of work, so that forwarding is not held
    /// up.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`]: close the connection.
    pub fn receive(
        &mut self,
        peer: PeerId,
        bytes: &[u8],
        context: &mut Context<'_>,
    ) -> Result<Received, ProtocolError> {
        let at = peer.index();
        let Some(state) = self.peers.get_mut(at).filter(|peer| peer.connected) else {
            return Err(ProtocolError::Unexpected);
        };
        let taken = state.incoming.push(bytes);
        state.traffic.bytes_received += taken as u64;
        let mut buffer = std::mem::take(&mut state.incoming);
        let result = self.work(at, &mut buffer, context);
        self.peers[at].incoming = buffer;
        result.map(|more| Received { taken, more })
    }

    /// Handles frames until there is none, or enough is done; returns whether there is more.
    fn work(
        &mut self,
        at: usize,
        buffer: &mut FrameBuffer,
        context: &mut Context<'_>,
    ) -> Result<bool, ProtocolError> {
        let mut budget = WORK_PER_CALL;
        loop {
            if self.peers[at].receiver.sweep.is_some() {
                if budget == 0 {
                    return Ok(true);
                }
                budget = budget.saturating_sub(SLOTS_PER_STEP / SLOTS_PER_WORK);
                self.sweep(at, context);
                continue;
            }
            let Some((kind, body)) = buffer.frame()? else {
                return Ok(false);
            };
            if budget == 0 || self.events.len() >= MOST_EVENTS {
                return Ok(true);
            }
            budget -= 1;
            let message = codec::decode(kind, body)?;
            if self.handle(at, message, &mut budget, context)? {
                buffer.next();
            }
        }
    }

    /// Handles a frame; returns whether it is done with.
    fn handle(
        &mut self,
        at: usize,
        message: Message<'_>,
        budget: &mut u32,
        context: &mut Context<'_>,
    ) -> Result<bool, ProtocolError> {
        let greeted = self.peers[at].remote.is_some();
        match message {
            Message::Hello(hello) if !greeted => self.handle_hello(at, &hello, context)?,
            Message::Unknown if greeted => {}
            Message::Hello(_) => return Err(ProtocolError::Unexpected),
            _ if !greeted => return Err(ProtocolError::Unexpected),
            Message::Batch { seq, operations } => {
                return self.handle_batch(at, seq, operations, budget, context);
            }
            Message::Ack { epoch, seq } => self.handle_ack(at, epoch, seq, context)?,
            Message::Begin => {
                let last = context.store.journal().log().last();
                self.peers[at].receiver.begun_at = Some(last);
            }
            Message::End(parts) => self.handle_end(at, &parts)?,
            Message::Mark { seq, group, sums } => {
                self.handle_mark(at, (seq, group, sums), context.store.journal());
            }
            Message::Verdict {
                seq,
                group,
                differing,
            } => {
                self.handle_verdict(at, (seq, group), &differing, context.store);
            }
            Message::Claim { group, term, .. } => {
                if !self.finish_dropping(at, group, budget, context.store) {
                    return Ok(false);
                }
                self.handle_claim(at, group, Some(term), context.store.journal());
            }
            Message::Release { group } => {
                self.handle_claim(at, group, None, context.store.journal());
            }
            Message::Relieve { group } => self.handle_relieve(at, group, context),
            Message::Offer { group, operations } => {
                return Ok(self.handle_offer(at, group, operations, budget, context)?);
            }
            Message::OfferEnd { group } => self.handle_offer_end(at, group, context),
            Message::OfferTaken { group } => self.handle_offer_taken(at, group),
            Message::Refuse { group, reason, key } => {
                self.handle_refuse(at, (group, reason, key), context);
            }
            Message::Handover { group, term } => self.handle_handover(at, group, term),
            Message::Drain => (self.events).push_back(SyncEvent::DrainAsked(PeerId(at as u8))),
            Message::Multicast {
                group,
                port,
                record,
            } => self.handle_multicast(at, group, port, record),
            Message::Push(message) => {
                let event = SyncEvent::Push(PeerId(at as u8), message);
                self.events.push_back(event);
            }
            Message::Unknown => {}
        }
        Ok(true)
    }

    /// The primary of a group tells something of multicast. Others are not believed.
    fn handle_multicast(&mut self, at: usize, group: u8, port: u16, record: &[u8]) {
        let Some(remote) = &self.peers[at].remote else {
            return;
        };
        let group = remote.groups.get(usize::from(group)).copied().flatten();
        let port = remote.ports.get(usize::from(port)).copied().flatten();
        let Some((group, port)) = group.zip(port) else {
            return;
        };
        if self.peers[at].receiver.authority[usize::from(group.0)] == Authority::Owner {
            self.events.push_back(SyncEvent::Multicast {
                group,
                port,
                record: record.to_vec(),
            });
        }
    }

    /// A Hello, in the terms of this unit.
    fn remote(&self, hello: &Hello) -> Remote {
        let lacking = Lacking::new(&self.identity.groups, &hello.groups);
        let named = || cuts_by_names(&hello.groups);
        let cuts = hello.cuts.clone().unwrap_or_else(named);
        let own = self.identity.cuts.as_deref().unwrap_or_default();
        let other_slots = lacking.other_slots(own, &cuts);
        Remote {
            ports: translate(&hello.ports, &self.identity.ports, |i| {
                Some(PortId::from_index(i))
            }),
            groups: translate(&hello.groups, &self.identity.groups, |i| {
                Some(GroupId(i as u8))
            }),
            policies: translate(&hello.policies, &self.identity.policies, |i| {
                Some(PolicyId(i as u16))
            })
            .into_iter()
            .map(|policy| policy.unwrap_or(PolicyId::NONE))
            .collect(),
            ruleset: hello.ruleset,
            conflicts: self.conflicts(hello, &lacking),
            differing: {
                let mut names = lacking.told(&other_slots);
                names.extend(units_of_one(&self.identity.units, &hello.units));
                names.extend(only_one_has(&self.identity.weights, &hello.weights));
                if hello
                    .copies
                    .is_some_and(|it| Some(it) != self.identity.copies)
                {
                    names.push("copies".to_owned());
                }
                if hello.ruleset != self.identity.ruleset {
                    let items = self.identity.settings.differing(&hello.settings);
                    names.extend(items.into_iter().filter(|item| !lacking.covers(item)));
                }
                names
            },
            program: hello.program.clone(),
            takes_configs: hello.takes_configs,
            knows_copies: hello.copies.is_some(),
            other_cuts: !other_slots.is_empty(),
            has: (self.identity.groups.iter())
                .map(|group| !group.is_empty() && hello.groups.contains(group))
                .collect(),
        }
    }

    /// By own group: a peer that has it too says something else about it, or about all.
    fn conflicts(&self, hello: &Hello, lacking: &Lacking<'_>) -> Vec<bool> {
        let identity = &self.identity;
        let (ours, theirs) = (&identity.settings, &hello.settings);
        let any = hello.ruleset != identity.ruleset;
        let all = any && ours.contradicts(theirs, !lacking.is_empty());
        let conflicts = |group: &String| {
            let both = !group.is_empty() && hello.groups.contains(group);
            any && both && (all || ours.contradicts_in(theirs, group))
        };
        identity.groups.iter().map(conflicts).collect()
    }

    fn handle_hello(
        &mut self,
        at: usize,
        hello: &Hello,
        context: &mut Context<'_>,
    ) -> Result<(), ProtocolError> {
        if hello.version != VERSION {
            return Err(ProtocolError::Version(hello.version));
        }
        if hello.group_id != self.identity.group_id {
            return Err(ProtocolError::GroupId(hello.group_id));
        }
        if hello.node != self.peers[at].name {
            return Err(ProtocolError::WrongNode(hello.node.clone()));
        }
        let remote = self.remote(hello);
        let peer = &mut self.peers[at];
        // Of a group that it lacks it keeps nothing.
        for (kept, has) in peer.kept.iter_mut().zip(&remote.has) {
            *kept = kept.filter(|_| *has);
        }
        peer.remote = Some(remote);
        self.untold.note_peer(at);
        peer.other_rules = hello.ruleset != self.identity.ruleset;
        let receiver = &mut peer.receiver;
        if receiver.epoch != hello.epoch {
            (receiver.epoch, receiver.applied) = (hello.epoch, 0);
            peer.kept.fill(None);
        }
        let log = context.store.journal_mut().log_mut();
        receiver.acknowledged = receiver.applied;
        let resumable = peer.resumable_until.take().is_some();
        let resume = hello
            .resume
            .filter(|(epoch, _)| *epoch == self.epoch && resumable);
        let resumed = resume.filter(|(_, seq)| log.rewind(at, *seq));
        match resumed {
            Some((_, seq)) => peer.sender.start_at(seq, context.now),
            None => {
                log.skip_to_end(at);
                peer.sender.start_at(log.last(), context.now);
            }
        }
        let id = PeerId(at as u8);
        self.events.push_back(SyncEvent::PeerKnown {
            peer: id,
            resumed: resumed.is_some(),
        });
        let differs = (self.peers[at].remote.as_ref()).is_some_and(|it| !it.differing.is_empty());
        if self.peers[at].other_rules || differs {
            self.events.push_back(SyncEvent::PeerConfigDiffers(id));
        }
        if hello.max_sessions < self.identity.max_sessions {
            self.events.push_back(SyncEvent::PeerTableSmaller {
                peer: id,
                max_sessions: hello.max_sessions,
            });
        }
        Ok(())
    }

    fn handle_batch(
        &mut self,
        at: usize,
        seq: Seq,
        operations: &[u8],
        budget: &mut u32,
        context: &mut Context<'_>,
    ) -> Result<bool, ProtocolError> {
        let is_done =
            self.each_operation(at, operations, budget, |this, operation| match operation {
                Some(Operation::Put(record)) => this.install(at, &record, context),
                Some(Operation::Remove { key, group }) => this.uninstall(at, &key, group, context),
                None => {}
            })?;
        if is_done {
            let receiver = &mut self.peers[at].receiver;
            receiver.applied = receiver.applied.max(seq);
            self.untold.note_peer(at);
            self.hold_more(at);
        }
        Ok(is_done)
    }

    /// Has the operations of a frame applied, from where the last call ended, while there is
    /// budget; returns whether all are. One of an unknown kind is `None`.
    pub(super) fn each_operation(
        &mut self,
        at: usize,
        operations: &[u8],
        budget: &mut u32,
        mut apply: impl FnMut(&mut Self, Option<Operation>),
    ) -> Result<bool, Malformed> {
        let mut offset = self.peers[at].receiver.offset;
        while let Some(rest) = operations.get(offset..).filter(|rest| !rest.is_empty()) {
            if *budget == 0 {
                self.peers[at].receiver.offset = offset;
                return Ok(false);
            }
            *budget -= 1;
            let (operation, length) = codec::next_operation(rest)?;
            apply(self, operation);
            self.peers[at].traffic.changes_received += 1;
            offset += length;
        }
        self.peers[at].receiver.offset = 0;
        Ok(true)
    }

    fn handle_ack(
        &mut self,
        at: usize,
        epoch: u64,
        seq: Seq,
        context: &mut Context<'_>,
    ) -> Result<(), ProtocolError> {
        let sender = &mut self.peers[at].sender;
        if epoch != self.epoch || seq > sender.sent {
            return Err(ProtocolError::FutureAck);
        }
        sender.confirmed = sender.confirmed.max(seq);
        let log = context.store.journal().log();
        sender.settle(log.read_up_to(at), log.last(), context.now);
        self.purge(context.store.journal_mut());
        Ok(())
    }

    fn handle_end(&mut self, at: usize, parts: &[(u8, Buckets)]) -> Result<(), ProtocolError> {
        let until = self.peers[at]
            .receiver
            .begun_at
            .take()
            .ok_or(ProtocolError::Unexpected)?;
        let mut buckets = vec![Buckets::default(); self.ready.len()];
        for (group, part) in parts {
            if let Some(group) = self.group_of(at, *group) {
                buckets[usize::from(group.0)].extend(part);
            }
        }
        self.peers[at].receiver.sweep = Some(Sweep {
            slot: 0,
            until,
            buckets,
            found: Vec::new(),
        });
        Ok(())
    }

    /// Removes sessions that a peer did not name while it resent their buckets: one step.
    fn sweep(&mut self, at: usize, context: &mut Context<'_>) {
        let Some(mut sweep) = self.peers[at].receiver.sweep.take() else {
            return;
        };
        let store = &mut *context.store;
        let (book, journal) = (store.book(), store.journal());
        let (sessions, next) = store.table().page(sweep.slot, SLOTS_PER_STEP);
        for (id, session) in sessions {
            let group = usize::from(session.group.0);
            let Some(buckets) = sweep
                .buckets
                .get(group)
                .filter(|b| !b.is_empty() && self.may_sweep(at, group))
            else {
                continue;
            };
            // Named sessions were changed here since.
            let key = session.key(Direction::Original, book);
            if journal.seq_of(id).unwrap_or(0) <= sweep.until
                && buckets.contains(journal.digest().bucket(&key))
            {
                sweep.found.push(id);
            }
        }
        for id in sweep.found.drain(..) {
            self.counters.swept += 1;
            store.end(id);
        }
        if let Some(next) = next {
            sweep.slot = next;
            self.peers[at].receiver.sweep = Some(sweep);
        }
    }

    fn handle_mark(&mut self, at: usize, (seq, group, sums): (Seq, u8, &[u8]), journal: &Journal) {
        let Some(group) = self.group_of(at, group) else {
            return;
        };
        let index = usize::from(group.0);
        let receiver = &mut self.peers[at].receiver;
        if receiver.authority[index] != Authority::Owner {
            self.counters.refused_not_primary += 1;
            return;
        }
        let differing = journal.digest().compare(group, sums);
        if self.waits_for_union(at, index, &differing) {
            return;
        }
        let receiver = &mut self.peers[at].receiver;
        receiver.verdicts.retain(|(_, other, _)| *other != group);
        receiver.verdicts.push((seq, group, differing));
        if differing.is_empty() && !self.ready[index] {
            self.events
                .push_back(SyncEvent::Ready(PeerId(at as u8), group));
        }
        self.set_ready(index, differing.is_empty());
        if differing.is_empty() {
            self.hold_all(at, index, seq);
        }
    }

    fn handle_verdict(
        &mut self,
        at: usize,
        (seq, group): (Seq, u8),
        differing: &Buckets,
        store: &mut SessionStore,
    ) {
        let Some(group) = self.group_of(at, group) else {
            return;
        };
        let (index, peer) = (usize::from(group.0), PeerId(at as u8));
        let is_left_out = self.is_left_out(at, group);
        let sender = &mut self.peers[at].sender;
        let mark = &mut sender.marks[index];
        if sender.told[index].is_none() || mark.unanswered == 0 || seq > mark.seq {
            return;
        }
        mark.unanswered = if seq == mark.seq {
            0
        } else {
            mark.unanswered - 1
        };
        let last = store.journal().log().last();
        mark.merged.get_or_insert(last);
        let was_equal = std::mem::replace(&mut mark.equal, differing.is_empty());
        if was_equal != mark.equal {
            self.untold.note_peer(at);
        }
        if differing.is_empty() {
            mark.strikes = 0;
            if !std::mem::replace(&mut mark.joined, true) {
                self.events.push_back(SyncEvent::PeerReady(peer, group));
            }
            self.forgive(at, group, seq, store);
            return;
        }
        if is_left_out {
            return;
        }
        mark.strikes = mark.strikes.saturating_add(1);
        sender.pending[index].extend(differing);
        if was_equal || mark.strikes == 2 {
            let buckets = differing.len();
            self.events.push_back(SyncEvent::DigestDiffers {
                peer,
                group,
                buckets,
            });
        }
    }

    fn handle_claim(&mut self, at: usize, group: u8, term: Option<u64>, journal: &Journal) {
        let Some(group) = self.group_of(at, group) else {
            return;
        };
        let index = usize::from(group.0);
        if let Some(term) = term {
            self.plan_union(at, index, term);
            self.doubt_copy_of(at, group);
        }
        let receiver = &mut self.peers[at].receiver;
        receiver.claims[index] = term;
        receiver.handed[index] &= term.is_some();
        self.compare_claims(journal);
        if term.is_some() && self.peers[at].receiver.authority[index] == Authority::Owner {
            self.set_ready(index, false);
        }
    }

    fn handle_handover(&mut self, at: usize, group: u8, term: u64) {
        let Some(group) = self.group_of(at, group) else {
            return;
        };
        let receiver = &mut self.peers[at].receiver;
        let index = usize::from(group.0);
        if receiver.authority[index] != Authority::Owner || receiver.claims[index] >= Some(term) {
            self.counters.refused_not_primary += 1;
            return;
        }
        receiver.handed[index] = true;
        self.events.push_back(SyncEvent::HandoverReceived {
            peer: PeerId(at as u8),
            group,
            term,
        });
    }

    /// The group that a peer means by a number.
    pub(super) fn group_of(&self, at: usize, group: u8) -> Option<GroupId> {
        let remote = self.peers[at].remote.as_ref()?;
        remote.groups.get(usize::from(group)).copied().flatten()
    }
}

/// For each name of a peer, the local counterpart.
fn translate<Id>(
    theirs: &[String],
    ours: &[String],
    id: impl Fn(usize) -> Option<Id>,
) -> Vec<Option<Id>> {
    // A removed policy has an empty name.
    let named = ours.iter().enumerate().filter(|(_, name)| !name.is_empty());
    let known: BTreeMap<&str, usize> = named.map(|(index, name)| (name.as_str(), index)).collect();
    theirs
        .iter()
        .map(|name| known.get(name.as_str()).and_then(|&index| id(index)))
        .collect()
}

const _: () = assert!(MAX_FRAME >= 16 * 1024, "a batch fits into a frame");
