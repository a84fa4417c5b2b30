//! A session's life as one object's business: the [`SessionStore`] keeps the table, the ports that
//! sessions take, and the [journal](Journal) from which peers learn of them, and keeps the three in
//! step.
//!
//! No other code can change a session: the store lends the table, the address book and the
//! translator for reading only. So callers need no particular order of calls when a session
//! changes; the store finds out the consequences for counts, deadlines, sums and peers.
//!
//! The [change log](log) holds each replicated session once, in the order of the last changes, and
//! the
//! [digest] describes the set of sessions in a few numbers.

pub mod digest;
pub mod log;

mod journal;
mod refused;

pub use digest::SessionPhase;
pub use journal::Journal;
pub use log::Seq;
pub use refused::Refused;

use crate::config::{Config, Ha};
use crate::flow::{Addr, Direction, FlowKey, GroupId, MAX_GROUPS, PolicyId, PortId};
use crate::memory::Reserved;
use crate::nat::{BookFull, Layout, Nat, NatExhausted, PoolId, Slice, Source};
use crate::session::{
    AddressBook, InsertError, NoRoom, Session, SessionFlags, SessionId, SourceLimits, Table,
    Timeouts, TranslatedAddr,
};
use crate::time::{Tick, Time};

/// All sessions of a unit, with their resources and the changes that peers must learn.
pub struct SessionStore {
    table: Table,
    book: AddressBook,
    nat: Nat,
    journal: Journal,
    /// By group: how many sessions there are.
    counts: [u32; MAX_GROUPS],
}

/// Random and secret keys of hashes.
pub struct Keys {
    /// Of the index of mappings.
    pub nat: [u8; 16],
    /// Of the index of sessions.
    pub table: [u8; 16],
}

/// The surroundings that an edit may need beside the session.
pub struct Around<'a> {
    /// The addresses that sessions are translated to.
    pub book: &'a AddressBook,
    /// No packet of the session was seen here since its group's leases were
    /// [renewed](SessionStore::renew).
    pub is_stale: bool,
}

/// The part of a session that others keep account of: if an edit changes it, they are told.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Noted {
    phase: SessionPhase,
    policy: PolicyId,
    ports: (PortId, PortId),
    flags: SessionFlags,
}

impl Noted {
    /// The marks that peers are told of, but for what is in the phase.
    const TOLD: SessionFlags =
        SessionFlags(SessionFlags::PICKED_UP.0 | SessionFlags::LOG.0 | SessionFlags::SPREAD.0);

    #[inline(always)]
    fn of(session: &Session) -> Noted {
        Noted {
            phase: SessionPhase::of(session),
            policy: session.policy,
            ports: (session.in_port, session.out_port),
            flags: SessionFlags(session.flags.0 & Noted::TOLD.0),
        }
    }
}

impl SessionStore {
    /// An empty store for the limits of `config`.
    pub fn new(config: &Config, keys: &Keys) -> SessionStore {
        let mut book = AddressBook::new();
        SessionStore {
            nat: Nat::new(config, &mut book, &keys.nat),
            table: new_table(config, &keys.table),
            book,
            journal: Journal::new(config),
            counts: [0; MAX_GROUPS],
        }
    }

    /// All sessions, to read.
    #[inline]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The addresses that they are translated to.
    #[inline]
    pub fn book(&self) -> &AddressBook {
        &self.book
    }

    /// The translator, and the ports that sessions take.
    #[inline]
    pub fn nat(&self) -> &Nat {
        &self.nat
    }

    /// The changes that peers must learn.
    #[inline]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The same, for replication.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// The parts that a reader of the journal needs: the state of sessions, and the journal to read
    /// on in.
    pub fn to_read(&mut self) -> (&Table, &AddressBook, &mut Journal) {
        (&self.table, &self.book, &mut self.journal)
    }

    /// The session that a packet with `key` belongs to, and the packet's direction in it.
    #[inline]
    pub fn lookup(&self, key: &FlowKey) -> Option<(SessionId, Direction)> {
        self.table.lookup(key, &self.book)
    }

    /// The session with this id.
    #[inline]
    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.table.get(id)
    }

    /// Adds a session that was opened here at `now`, takes its external port, and has peers told of
    /// it, if session pickup covers it.
    ///
    /// # Errors
    /// [`InsertError`], with nothing changed.
    pub fn insert(&mut self, mut session: Session, now: Time) -> Result<SessionId, InsertError> {
        if self.journal.has_peers() {
            session.flags.set(SessionFlags::QUIET);
        }
        let id = self.insert_counted(session)?;
        self.nat.attach(&mut self.table, id);
        if let Some(session) = self.table.get(id) {
            self.journal.opened(id, session, &self.book, now);
        }
        Ok(id)
    }

    fn insert_counted(&mut self, session: Session) -> Result<SessionId, InsertError> {
        let group = usize::from(session.group.0);
        let id = self.table.insert(session, &self.book)?;
        if let Some(count) = self.counts.get_mut(group) {
            *count += 1;
        }
        Ok(id)
    }

    /// How many sessions of a group there are, replicated or not.
    pub fn count(&self, group: GroupId) -> u32 {
        let count = self.counts.get(usize::from(group.0));
        count.copied().unwrap_or(0)
    }

    /// Changes a session that this unit follows; none if it does not exist. The parts of its key
    /// must stay as they are, and its times only go forward.
    ///
    /// For what a packet does, see [`SessionStore::follow`].
    pub fn edit<R>(
        &mut self,
        id: SessionId,
        edit: impl FnOnce(&mut Session, Around<'_>) -> R,
    ) -> Option<R> {
        let (session, is_stale) = self.table.get_mut_with_staleness(id)?;
        let before = Noted::of(session);
        let around = Around {
            book: &self.book,
            is_stale,
        };
        let result = edit(session, around);
        if Noted::of(session) != before || is_to_note(session) {
            self.note_edit(id, before);
        }
        Some(result)
    }

    /// Changes a session as a packet does: its counts and times, and, of the state that others
    /// track, only its phase, so that no more is compared.
    #[inline(always)]
    pub fn follow<R>(
        &mut self,
        id: SessionId,
        follow: impl FnOnce(&mut Session, Around<'_>) -> R,
    ) -> Option<R> {
        // The session is looked up once: in a big table, each time may be a cache miss.
        let (session, is_stale) = self.table.get_mut_with_staleness(id)?;
        let phase = SessionPhase::of(session);
        let noted = cfg!(debug_assertions).then(|| Noted::of(session));
        let around = Around {
            book: &self.book,
            is_stale,
        };
        let result = follow(session, around);
        let after = Noted::of(session);
        debug_assert!(noted.is_none_or(|before| Noted { phase, ..after } == before));
        if after.phase != phase || is_to_note(session) {
            self.note_edit(id, Noted { phase, ..after });
        }
        Some(result)
    }

    /// Tells the parts that track a session that it has changed. Kept apart from the path of
    /// packets that change nothing.
    #[inline(never)]
    fn note_edit(&mut self, id: SessionId, before: Noted) {
        let Some(session) = self.table.get(id) else {
            return;
        };
        let (after, protocol) = (Noted::of(session), session.protocol);
        if session.is_settled() {
            self.table.settle(id);
        }
        if after.phase != before.phase {
            self.table.moved(id, before.phase.state(protocol));
        }
        let is_news = self.take_notable(id);
        if (after != before || is_news)
            && let Some(session) = self.table.get(id)
        {
            self.journal.changed(id, session, &self.book, before.phase);
        }
    }

    /// Handles a session that is [notable](SessionFlags::NOTABLE). Returns whether peers must be
    /// told.
    fn take_notable(&mut self, id: SessionId) -> bool {
        let Some(session) = self.table.get_mut(id) else {
            return false;
        };
        if !session.flags.contains(SessionFlags::NOTABLE) {
            return false;
        }
        session.flags.clear(SessionFlags::NOTABLE);
        if session.flags.contains(SessionFlags::QUIET) {
            self.table.watch(id);
            return false;
        }
        self.table.reschedule(id);
        true
    }

    /// Gives a session another policy, with the same meaning, under which this unit knows it. Peers
    /// have their own names for it.
    pub fn rename_policy(&mut self, id: SessionId, policy: PolicyId) {
        if let Some(session) = self.table.get_mut(id) {
            session.policy = policy;
        }
    }

    /// Moves a session to another group that this unit sends as well; peers that have it learn that
    /// with its state. It keeps a lease of its former group.
    pub fn move_to_group(&mut self, id: SessionId, group: GroupId, now: Tick) {
        let Some(session) = self.table.get(id) else {
            return;
        };
        if session.group == group {
            return;
        }
        let (from, to) = (usize::from(session.group.0), usize::from(group.0));
        let is_known = self.journal.leaves_group(id, session, &self.book);
        // Another unit may have seen its last packet, and the lease ends with the group.
        let is_leased = self.table.is_stale(session);
        if let Some(session) = self.table.get_mut(id) {
            session.group = group;
            if is_leased {
                session.last_seen = now;
                session.flags.set(SessionFlags::REMOTE);
            }
        }
        self.counts[from] -= 1;
        self.counts[to] += 1;
        if let Some(session) = self.table.get(id).filter(|_| is_known) {
            self.journal.joins_group(id, session, &self.book);
        }
        self.table.reschedule(id);
    }

    /// Ends a session: its resources are released, and peers are told if this unit sends its group.
    /// Returns its last state.
    pub fn end(&mut self, id: SessionId) -> Option<Session> {
        self.nat.release(&mut self.table, id);
        let session = self.table.remove(id, &self.book)?;
        if let Some(count) = self.counts.get_mut(usize::from(session.group.0)) {
            *count = count.saturating_sub(1);
        }
        self.journal.removed(id, &session, &self.book);
        Some(session)
    }

    /// Starts to replicate a session, if session pickup covers it and peers don't know it already.
    pub fn replicate(&mut self, id: SessionId, now: Time) {
        if self.journal.seq_of(id).is_none()
            && let Some(session) = self.table.get(id)
        {
            self.journal.opened(id, session, &self.book, now);
        }
    }

    /// Adds a session that a peer has sent, and takes its external port.
    ///
    /// # Errors
    /// [`InsertError`], with nothing changed.
    pub fn insert_from_peer(&mut self, session: Session) -> Result<SessionId, InsertError> {
        let id = self.insert_counted(session)?;
        self.nat.attach(&mut self.table, id);
        if let Some(session) = self.table.get(id) {
            self.journal.entered_by_peer(id, session, &self.book);
        }
        Ok(id)
    }

    /// Brings a session to what a peer has sent of it; its times may go back. The parts of its key
    /// must stay as they are.
    pub fn edit_from_peer(&mut self, id: SessionId, edit: impl FnOnce(&mut Session)) {
        let Some(session) = self.table.get_mut(id) else {
            return;
        };
        let before = SessionPhase::of(session);
        edit(session);
        let protocol = session.protocol;
        self.table.settle(id);
        self.table.moved(id, before.state(protocol));
        if let Some(session) = self.table.get(id) {
            self.journal
                .changed_by_peer(id, session, &self.book, before);
        }
    }

    /// A peer has sent an older state of a session than this unit has: it gets the newer one again.
    pub fn send_again(&mut self, id: SessionId) {
        self.journal.send_again(id);
    }

    /// The index of an address that a session is to be translated to; none if the book is full.
    pub fn intern(&mut self, addr: Addr) -> Option<TranslatedAddr> {
        self.book.intern(addr)
    }

    /// See [`Table::make_room`].
    ///
    /// # Errors
    /// Why there is none.
    pub fn make_room(
        &mut self,
        source: &Addr,
        limits: SourceLimits,
        may: impl Fn(&Session) -> bool,
    ) -> Result<Option<SessionId>, NoRoom> {
        self.table.make_room(source, limits, may)
    }

    /// See [`Table::early_drop_candidate`]. `may` is also told how many replicated sessions a group
    /// has.
    pub fn early_drop_candidate(
        &mut self,
        may: impl Fn(&Session, &Journal) -> bool,
    ) -> Option<SessionId> {
        let journal = &self.journal;
        self.table
            .early_drop_candidate(|session| may(session, journal))
    }

    /// See [`Nat::allocate_source`].
    ///
    /// # Errors
    /// [`NatExhausted`]
    pub fn allocate_source(
        &self,
        slice: Slice,
        key: &FlowKey,
        random: u64,
    ) -> Result<Source, NatExhausted> {
        self.nat
            .allocate_source(&self.table, &self.book, slice, key, random)
    }

    /// See [`Nat::has_mapping`].
    pub fn has_mapping(&self, pool: PoolId, key: &FlowKey) -> bool {
        self.nat.has_mapping(&self.table, pool, key)
    }

    /// See [`Nat::sample`].
    pub fn sample(
        &self,
        slice: Slice,
        key: &FlowKey,
        random: u64,
    ) -> impl Iterator<Item = SessionId> {
        let sample = self.nat.sample(&self.table, &self.book, slice, key, random);
        sample.into_iter().flatten()
    }

    /// See [`Nat::note_exhausted`].
    pub fn note_exhausted(&mut self, exhausted: &NatExhausted) {
        self.nat.note_exhausted(exhausted);
    }

    /// See [`Table::sweep`]. Peers are told the numbers of the connections that have become quiet.
    pub fn sweep(&mut self, now: Tick, expired: &mut Vec<SessionId>) -> bool {
        let more = self.table.sweep(now, expired);
        while let Some(id) = self.table.pop_quiet() {
            if let Some(session) = self.table.get(id) {
                let phase = SessionPhase::of(session);
                self.journal.changed(id, session, &self.book, phase);
            }
        }
        more
    }

    /// Lets sessions enter the journal that were too young for it. When: [`Journal::poll_timeout`].
    pub fn enter_delayed(&mut self, now: Time) {
        self.journal.enter_delayed(&self.table, &self.book, now);
    }

    /// See [`Table::renew`].
    pub fn renew(&mut self, group: GroupId, now: Tick) {
        self.table.renew(group, now);
    }

    /// See [`Table::set_timeouts`].
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.table.set_timeouts(timeouts);
    }

    /// Applies the source limits of a changed configuration.
    pub fn set_limits(&mut self, config: &Config) {
        self.table.set_source_limits(source_limits(config));
    }

    /// See [`Layout::number_some`].
    ///
    /// # Errors
    /// If there is no room for all addresses.
    pub fn number_some(&mut self, layout: &mut Layout, most: usize) -> Result<bool, BookFull> {
        layout.number_some(&mut self.book, most)
    }

    /// Counts the IPv6 hosts on the links of ports by address, also on those that are new.
    pub fn follow_networks(&mut self, config: &Config) {
        for network in ipv6_networks(config) {
            self.table.count_by_address_if_unused(&network);
        }
    }

    /// See [`Nat::reconfigure`].
    pub fn reconfigure_nat(&mut self, layout: Layout) -> Layout {
        self.nat.reconfigure(layout)
    }

    /// Changes the switches of session pickup; sessions that are replicated already stay so.
    /// Returns whether there may be others that are to be now: call [`SessionStore::replicate`] for
    /// these.
    pub fn set_pickup(&mut self, ha: &Ha) -> bool {
        self.journal.set_pickup(ha)
    }

    /// A table of another size, in place of one that is empty or whose sessions no longer count.
    #[cfg(test)]
    pub(crate) fn set_table(&mut self, table: Table) {
        self.table = table;
    }

    /// Whether timeouts, limits and the switches of session pickup are those of `config`.
    pub fn follows(&self, config: &Config) -> bool {
        let ha = config.ha.as_ref();
        *self.table.timeouts() == Timeouts::from(&config.timeouts)
            && self.table.source_limits() == source_limits(config)
            && ha.is_none_or(|ha| self.journal.follows(ha))
    }

    /// The memory that the tables have reserved for `max-sessions`.
    pub fn reserved(&self) -> impl Iterator<Item = Reserved> {
        let table = self.table.reserved().into_iter();
        table.chain([self.nat.reserved(), self.journal.log().reserved()])
    }

    /// Panics if the parts contradict each other: for tests and simulations. Reads all of them.
    pub fn check_invariants(&self) {
        self.table.check_invariants(&self.book);
        self.nat.check_invariants(&self.table);
        self.journal.check_invariants(&self.table, &self.book);
        let mut counts = [0; MAX_GROUPS];
        for (_, session) in self.table.iter() {
            counts[usize::from(session.group.0)] += 1;
        }
        assert_eq!(counts, self.counts, "the sessions of each group");
    }
}

/// Whether a session is notable, or is past its opening and still counts as half open.
#[inline]
fn is_to_note(session: &Session) -> bool {
    let marks = SessionFlags(SessionFlags::NOTABLE.0 | SessionFlags::HALF_OPEN.0);
    session.flags.intersects(marks)
        && (session.flags.contains(SessionFlags::NOTABLE) || session.is_settled())
}

/// How much a source may have. Of external ports, the limit depends on the pool.
fn source_limits(config: &Config) -> SourceLimits {
    let (sessions, half_open) = config.source_limits();
    SourceLimits {
        sessions,
        half_open,
    }
}

/// The table of sessions that `config` asks for.
fn new_table(config: &Config, key: &[u8; 16]) -> Table {
    let timeouts = Timeouts::from(&config.timeouts);
    let limits = source_limits(config);
    let mut table = Table::new(config.node.max_sessions, key, timeouts, limits.half_open);
    table.set_source_limits(limits);
    if config.ha.is_some() {
        table.report_quiet();
    }
    for network in ipv6_networks(config) {
        table.count_by_address(&network);
    }
    table
}

/// The IPv6 networks of all ports.
fn ipv6_networks(config: &Config) -> impl Iterator<Item = ipnet::Ipv6Net> {
    let addresses = config.ports.iter().flat_map(|port| &port.virtual_addresses);
    addresses.filter_map(|address| match address.network {
        ipnet::IpNet::V6(network) => Some(network),
        ipnet::IpNet::V4(_) => None,
    })
}
