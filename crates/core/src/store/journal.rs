//! The changes to sessions that peers must learn: which are shared, in which order they changed,
//! and their sums.

use std::collections::VecDeque;
use std::time::Duration;

use super::digest::{Digest, SessionPhase};
use super::log::{ChangeLog, Seq};
use super::refused::Refused;
use crate::config::{Config, Ha};
use crate::flow::{Direction, GroupId, Protocol};
use crate::session::{AddressBook, Session, SessionId, Table};
use crate::time::{Tick, Time};

/// Delayed sessions that enter the log in one go.
const ENTRIES_PER_CALL: usize = 1024;

/// The change log, the digest, and the settings that decide which sessions enter them.
///
/// Only the [`SessionStore`](super::SessionStore) records changes of sessions in it. Replication
/// reads it, moves the positions of its readers, and sets who they are and which groups this unit
/// sends.
///
/// A unit without `[ha]` has one that stays empty.
#[derive(Debug)]
pub struct Journal {
    pickup: Pickup,
    log: ChangeLog,
    digest: Digest,
    /// Indexed by peer.
    refused: Vec<Refused>,
    /// By group: the term in which this unit sends it.
    sending: Vec<Option<u64>>,
    /// Groups in which this unit has opened or changed a session since its term began.
    touched: Vec<bool>,
    /// Whether removals must be remembered for any peer.
    has_readers: bool,
    /// Sessions that are still too young, sorted by the time when they were opened.
    delayed: VecDeque<(Tick, SessionId)>,
    max_delayed: usize,
}

/// Which sessions are replicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

impl Journal {
    /// An empty journal, with a reader for each peer of `config`. No group is sent yet.
    pub(super) fn new(config: &Config) -> Journal {
        let (sessions, groups, peers) = match &config.ha {
            Some(ha) => (
                config.node.max_sessions,
                config.groups.len(),
                ha.peers.len(),
            ),
            None => (0, 0, 0),
        };
        Journal {
            pickup: config.ha.as_ref().map(Pickup::new).unwrap_or_default(),
            log: ChangeLog::new(sessions, peers),
            digest: Digest::new(groups),
            refused: (0..peers).map(|_| Refused::new(groups)).collect(),
            sending: vec![None; groups],
            touched: vec![false; groups],
            has_readers: false,
            delayed: VecDeque::new(),
            max_delayed: sessions as usize,
        }
    }

    /// Another peer has the place `peer` from now on, and knows nothing. Places are given in order.
    pub fn reset_peer(&mut self, peer: usize) {
        let fresh = Refused::new(self.sending.len());
        match self.refused.get_mut(peer) {
            Some(refused) => {
                *refused = fresh;
                self.log.skip_to_end(peer);
            }
            None => {
                self.refused.push(fresh);
                self.log.add_reader();
            }
        }
    }

    /// Another group has the place `group` from now on, or none. There are no sessions of it, or
    /// they end soon. Places are given in order.
    pub fn reset_group(&mut self, group: GroupId) {
        let groups = self.sending.len().max(usize::from(group.0) + 1);
        self.sending.resize(groups, None);
        self.touched.resize(groups, false);
        self.digest.grow(groups);
        self.touched[usize::from(group.0)] = false;
        for refused in &mut self.refused {
            refused.reset_group(groups, group);
        }
    }

    /// Whether there is a peer to tell, now or later.
    pub(super) fn has_peers(&self) -> bool {
        !self.refused.is_empty()
    }

    /// The order of changes.
    pub fn log(&self) -> &ChangeLog {
        &self.log
    }

    /// The same, to move the positions of its readers.
    pub fn log_mut(&mut self) -> &mut ChangeLog {
        &mut self.log
    }

    /// The sums of the sessions that are in the log.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The last change of a session; none if it is not replicated (yet).
    #[inline]
    pub fn seq_of(&self, id: SessionId) -> Option<Seq> {
        self.log.seq_of(id)
    }

    /// The sessions that the peer with index `peer` has refused.
    pub fn refused(&self, peer: usize) -> Option<&Refused> {
        self.refused.get(peer)
    }

    /// The same, to be changed.
    pub fn refused_mut(&mut self, peer: usize) -> Option<&mut Refused> {
        self.refused.get_mut(peer)
    }

    /// The peer with index `peer` holds the sessions of `group` for which `held`, given their last
    /// change, returns true, and all that it refused without naming them.
    pub fn forgive(&mut self, peer: usize, group: GroupId, held: impl Fn(SessionId, Seq) -> bool) {
        let log = &self.log;
        if let Some(refused) = self.refused.get_mut(peer) {
            refused.forgive(group, |id| {
                log.seq_of(id).is_some_and(|last| held(id, last))
            });
        }
    }

    /// A session goes to the peer with index `peer`, which knows it from now on and has not refused
    /// it.
    pub fn sent(&mut self, peer: usize, id: SessionId, group: GroupId) {
        self.log.mark_shared(id);
        if let Some(refused) = self.refused.get_mut(peer) {
            refused.remove(id, group);
        }
    }

    /// By group: the term in which this unit sends it.
    pub fn sending(&self) -> &[Option<u64>] {
        &self.sending
    }

    /// The term in which this unit sends a group.
    pub fn term(&self, group: GroupId) -> Option<u64> {
        self.sending.get(usize::from(group.0)).copied().flatten()
    }

    /// Sets whether this unit sends the sessions of `group`, and as primary of which term. Returns
    /// the term that ends with this, if a session of the group was opened or changed here in it.
    pub fn set_sending(&mut self, group: GroupId, term: Option<u64>) -> Option<u64> {
        let index = usize::from(group.0);
        let before = std::mem::replace(self.sending.get_mut(index)?, term);
        let touched = std::mem::take(&mut self.touched[index]);
        before.filter(|_| touched)
    }

    /// Sets the last change known to all peers for which removals are remembered; none if there is
    /// no such peer.
    pub fn set_known(&mut self, known: Option<Seq>) {
        self.has_readers = known.is_some();
        self.log.purge(known.unwrap_or(self.log.last()));
    }

    /// From now on removals are remembered.
    pub fn begin_remembering(&mut self) {
        self.has_readers = true;
    }

    /// How long a new session of `protocol` lives before it is replicated; none if it never is.
    pub fn pickup_delay(&self, protocol: Protocol) -> Option<Duration> {
        let covered = self.pickup.covers(protocol);
        covered.then(|| Tick(self.pickup.delay).time().since(Time::ZERO))
    }

    /// Whether the switches of session pickup are those of `ha`.
    pub(super) fn follows(&self, ha: &Ha) -> bool {
        self.pickup == Pickup::new(ha)
    }

    /// When the next delayed session is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        let first = self.delayed.front();
        first.map(|(since, _)| since.after(self.pickup.delay).time())
    }

    /// Panics if log, digest and table disagree: for tests and simulations. Reads all of them.
    pub(super) fn check_invariants(&self, table: &Table, book: &AddressBook) {
        self.log.check_invariants();
        let mut digest = Digest::new(self.sending.len());
        let mut replicated = 0;
        for (id, session) in table.iter() {
            if self.log.seq_of(id).is_some() {
                replicated += 1;
                digest.add(session, book);
            }
        }
        assert_eq!(
            replicated,
            self.log.len(),
            "sessions in the log that are not in the table"
        );
        for group in (0..self.sending.len()).map(|group| GroupId(group as u8)) {
            assert_eq!(
                digest.sums(group),
                self.digest.sums(group),
                "a digest that drifted"
            );
        }
    }

    /// Changes the switches of session pickup; sessions that are replicated already stay so.
    /// Returns whether others may have to be now.
    pub(super) fn set_pickup(&mut self, ha: &Ha) -> bool {
        let before = std::mem::replace(&mut self.pickup, Pickup::new(ha));
        let after = &self.pickup;
        after.connections && !before.connections || after.connectionless && !before.connectionless
    }

    /// A session was opened here, or must be replicated from now on.
    #[inline]
    pub(super) fn opened(
        &mut self,
        id: SessionId,
        session: &Session,
        book: &AddressBook,
        now: Time,
    ) {
        if !self.pickup.covers(session.protocol) {
            return;
        }
        let is_old = session.created.after(self.pickup.delay) <= now.tick();
        // Too many are waiting: replicating one early does no harm.
        if is_old || self.delayed.len() >= self.max_delayed {
            self.enter(id, session, book);
        } else {
            // The queue stays ordered when sessions come to it late, because a switch was off
            // before.
            let last = self.delayed.back().map_or(Tick(0), |(since, _)| *since);
            self.delayed.push_back((session.created.max(last), id));
        }
    }

    /// Lets delayed sessions enter whose time has come, some at a time.
    pub(super) fn enter_delayed(&mut self, table: &Table, book: &AddressBook, now: Time) {
        for _ in 0..ENTRIES_PER_CALL {
            let Some(&(since, id)) = self.delayed.front() else {
                break;
            };
            if since.after(self.pickup.delay) > now.tick() {
                break;
            }
            self.delayed.pop_front();
            // The slot may hold another session by now, which waits on its own.
            if let Some(session) = table.get(id)
                && session.created.after(self.pickup.delay) <= now.tick()
                && self.pickup.covers(session.protocol)
            {
                self.enter(id, session, book);
            }
        }
    }

    /// A session has changed here, whose [`SessionPhase`] was `before`.
    #[inline]
    pub(super) fn changed(
        &mut self,
        id: SessionId,
        session: &Session,
        book: &AddressBook,
        before: SessionPhase,
    ) {
        if self.log.seq_of(id).is_none() {
            return;
        }
        if SessionPhase::of(session).is_restart_of(before) && self.has_readers {
            let key = session.key(Direction::Original, book);
            self.log.restart(id, key, session.group);
        }
        self.digest.change(session, book, before);
        self.log.touch(id, false);
        self.note_touched(session.group);
    }

    /// A session moves to another group: the first half, while it is in the old one. Returns
    /// whether it is replicated.
    pub(super) fn leaves_group(
        &mut self,
        id: SessionId,
        session: &Session,
        book: &AddressBook,
    ) -> bool {
        let is_known = self.log.seq_of(id).is_some();
        if is_known {
            self.digest.subtract(session, book);
            for refused in &mut self.refused {
                refused.remove(id, session.group);
            }
        }
        is_known
    }

    /// The second half, when the session is in the new one.
    pub(super) fn joins_group(&mut self, id: SessionId, session: &Session, book: &AddressBook) {
        self.digest.add(session, book);
        self.log.touch(id, false);
        self.note_touched(session.group);
    }

    /// A session is being removed.
    #[inline]
    pub(super) fn removed(&mut self, id: SessionId, session: &Session, book: &AddressBook) {
        if self.log.seq_of(id).is_none() {
            return;
        }
        self.digest.subtract(session, book);
        for refused in &mut self.refused {
            refused.remove(id, session.group);
        }
        let is_told = self.has_readers && self.term(session.group).is_some();
        let key = || (session.key(Direction::Original, book), session.group);
        self.log.remove(id, is_told.then(key));
    }

    /// A session of a peer was inserted. Peers know of it, and this unit's term has not changed it.
    pub(super) fn entered_by_peer(&mut self, id: SessionId, session: &Session, book: &AddressBook) {
        self.digest.add(session, book);
        self.log.touch(id, true);
    }

    /// A peer has changed a session, whose [`SessionPhase`] was `before`.
    pub(super) fn changed_by_peer(
        &mut self,
        id: SessionId,
        session: &Session,
        book: &AddressBook,
        before: SessionPhase,
    ) {
        if self.log.seq_of(id).is_some() {
            self.digest.change(session, book, before);
        } else {
            self.digest.add(session, book);
        }
        self.log.touch(id, true);
    }

    /// A peer has an older state of a session: the session is sent again.
    pub(super) fn send_again(&mut self, id: SessionId) {
        if self.log.seq_of(id).is_some() {
            self.log.touch(id, true);
        }
    }

    /// Adds a session to the replicated ones.
    fn enter(&mut self, id: SessionId, session: &Session, book: &AddressBook) {
        if self.log.seq_of(id).is_none() {
            self.digest.add(session, book);
            self.log.touch(id, false);
            self.note_touched(session.group);
        }
    }

    #[inline]
    fn note_touched(&mut self, group: GroupId) {
        if let Some(touched) = self.touched.get_mut(usize::from(group.0)) {
            *touched = true;
        }
    }
}
