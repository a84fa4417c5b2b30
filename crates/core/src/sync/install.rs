//! The effect of a peer's record on the table.

use super::message::{Record, Refusal};
use super::peer::{Authority, SyncPeer};
use super::{Context, Replicator};
use crate::flow::{Addr, Direction, FlowKey, GroupId, PolicyId, PortId, Protocol};
use crate::session::{InsertError, Session, SessionFlags, SessionId, Tracker, TranslatedAddr};
use crate::store::{SessionPhase, SessionStore};
use crate::time::Tick;

/// Sessions that one record can conflict with: one for each of its keys.
const MOST_CONFLICTS: usize = 2;

/// The marks of a session that come from the peer.
const REPLICATED: [SessionFlags; 4] = [
    SessionFlags::REPLIED,
    SessionFlags::PICKED_UP,
    SessionFlags::LOG,
    SessionFlags::SPREAD,
];

impl Replicator {
    /// Applies a record to a session, or refuses it, and counts that. A new session replaces those
    /// that its packets belonged to so far, if the peer's claim is stronger than theirs.
    pub(super) fn install(&mut self, at: usize, record: &Record, context: &mut Context<'_>) {
        let Some(group) = self.group_of(at, record.group) else {
            return self.refuse(at, record, Refusal::Unknown);
        };
        let authority = self.authority(at, group);
        if authority == Authority::None {
            return self.refuse(at, record, Refusal::NotPrimary);
        }
        self.place(at, record, authority, context);
    }

    /// Handles sessions that a standby offers to this unit, the primary: the offer may add sessions
    /// and move them forward.
    pub(super) fn merge(&mut self, at: usize, record: &Record, context: &mut Context<'_>) {
        self.place(at, record, Authority::Shared, context);
    }

    fn place(
        &mut self,
        at: usize,
        record: &Record,
        authority: Authority,
        context: &mut Context<'_>,
    ) {
        let Some((group, in_port, out_port, policy)) = self.names_of(at, record) else {
            return self.refuse(at, record, Refusal::Unknown);
        };
        let Some(session) = build(record, context) else {
            return self.refuse(at, record, Refusal::Full);
        };
        let session = Session {
            group,
            in_port,
            out_port,
            policy,
            ..session
        };
        // Once more for each conflict, and for room that is made.
        for _ in 0..=MOST_CONFLICTS + 1 {
            let store = &mut *context.store;
            match store.insert_from_peer(session.clone()) {
                Ok(_) => {
                    self.counters.installed += 1;
                    return;
                }
                Err(InsertError::Conflict(id))
                    if is_same_flow(id, &session, record, store)
                        && self.may_have_place(at, id, group, authority, store) =>
                {
                    store.move_to_group(id, group, context.now.tick());
                    self.update(id, session, authority, store);
                    return;
                }
                Err(InsertError::Conflict(other)) => {
                    if !self.may_displace(at, &session, other, authority, store) {
                        return self.refuse(at, record, Refusal::Conflict);
                    }
                    self.counters.conflicts_lost += 1;
                    store.end(other);
                }
                Err(InsertError::Full) if self.make_room(group, context) => {}
                Err(InsertError::Full) => break,
            }
        }
        self.refuse(at, record, Refusal::Full);
    }

    /// Removes a session that has ended according to a peer.
    pub(super) fn uninstall(
        &mut self,
        at: usize,
        key: &FlowKey,
        group: u8,
        context: &mut Context<'_>,
    ) {
        let Some(group) = self.group_of(at, group) else {
            return;
        };
        let authority = self.authority(at, group);
        let store = &mut *context.store;
        // A copy may still be where the session was before it moved down to the group and ended.
        let moved = |it: &Session| {
            self.is_lower_part(group, it.group) && self.authority(at, it.group).may_end(it)
        };
        let session = |id| store.get(id).filter(|it| it.group == group || moved(it));
        let found = match store.lookup(key) {
            Some((id, Direction::Original)) => session(id).map(|it| (id, authority.may_end(it))),
            _ => None,
        };
        match found {
            Some((id, true)) => {
                self.counters.removed += 1;
                store.end(id);
            }
            // It has ended here, too.
            None if authority != Authority::None => {}
            _ => self.counters.refused_not_primary += 1,
        }
    }

    /// Group, ports and policy of a record in this unit's terms; none if the first three are not
    /// known.
    fn names_of(&self, at: usize, record: &Record) -> Option<(GroupId, PortId, PortId, PolicyId)> {
        let remote = self.peers[at].remote.as_ref()?;
        let port = |index: u16| remote.ports.get(usize::from(index)).copied().flatten();
        let policy = remote.policies.get(usize::from(record.policy)).copied();
        Some((
            self.group_of(at, record.group)?,
            port(record.in_port)?,
            port(record.out_port)?,
            policy.unwrap_or(PolicyId::NONE),
        ))
    }

    fn authority(&self, at: usize, group: GroupId) -> Authority {
        let authority = &self.peers[at].receiver.authority;
        authority
            .get(usize::from(group.0))
            .copied()
            .unwrap_or(Authority::None)
    }

    /// Brings a session that is known here to the peer's state.
    fn update(
        &mut self,
        id: SessionId,
        theirs: Session,
        authority: Authority,
        store: &mut SessionStore,
    ) {
        let Some(ours) = store.get(id) else {
            return;
        };
        let (before, after) = (SessionPhase::of(ours), SessionPhase::of(&theirs));
        if authority != Authority::Owner && !after.is_beyond(before) {
            self.counters.stale += 1;
            if before.is_beyond(after) {
                store.send_again(id);
            }
            return;
        }
        self.counters.updated += 1;
        store.edit_from_peer(id, |session| copy_state(session, theirs));
    }

    /// Whether a session that this unit has, too, is in `group` from now on, as the peer says: it
    /// has moved from one part of a group to another. If the peer has no say over the part where
    /// the session is here, units that know it in several parts all take it to the lowest.
    fn may_have_place(
        &self,
        at: usize,
        id: SessionId,
        group: GroupId,
        authority: Authority,
        store: &SessionStore,
    ) -> bool {
        let Some(ours) = store.get(id) else {
            return false;
        };
        let is_mover = || {
            authority == Authority::Owner
                && (self.authority(at, ours.group) == Authority::Owner
                    || !self.is_owned(ours.group, store))
        };
        ours.group == group
            || self.is_lower_part(group, ours.group)
            || self.are_parts_of_one(group, ours.group) && is_mover()
    }

    /// Whether a peer's session may replace `other`: if the peer has authority over the groups of
    /// both, or over that of the new one while nobody else has it over that of the old.
    ///
    /// Two units may each have opened a session for the same packets, in parts of one group: an
    /// answer had overtaken the session that it is for. Then all units keep that of the lower slot;
    /// the group itself comes first.
    fn may_displace(
        &self,
        at: usize,
        session: &Session,
        other: SessionId,
        authority: Authority,
        store: &SessionStore,
    ) -> bool {
        let group = session.group;
        let Some(other) = store.get(other) else {
            return true;
        };
        let comes_first = || self.is_lower_part(group, other.group);
        let owned = self.is_owned(other.group, store);
        let of_other = self.authority(at, other.group);
        authority.may_end(other) && (of_other.may_end(other) || !owned || comes_first())
    }

    /// Whether a unit is known that is primary of a group.
    fn is_owned(&self, group: GroupId, store: &SessionStore) -> bool {
        let claims = |peer: &SyncPeer| peer.receiver.claims[usize::from(group.0)].is_some();
        store.journal().term(group).is_some() || self.peers.iter().any(claims)
    }

    /// Whether both are parts of one group, and the first is the lower one: by name, which is the
    /// same on all units. Places are not.
    fn is_lower_part(&self, one: GroupId, other: GroupId) -> bool {
        let parts = self.part(one).zip(self.part(other));
        parts.is_some_and(|(one, other)| one.0 == other.0 && one.1 < other.1)
    }

    fn are_parts_of_one(&self, one: GroupId, other: GroupId) -> bool {
        let parts = self.part(one).zip(self.part(other));
        parts.is_some_and(|(one, other)| one.0 == other.0)
    }

    /// The name of the group that a group is part of, and which part: none is the whole.
    fn part(&self, group: GroupId) -> Option<(&str, Option<u8>)> {
        let name = self.identity.groups.get(usize::from(group.0))?;
        let slot = name.split_once('/');
        let slot = slot.map(|(whole, slot)| (whole, slot.parse().ok()));
        Some(slot.unwrap_or((name, None)))
    }
}

impl Authority {
    /// Whether the peer may end a session here, of a group over which it has this authority.
    fn may_end(self, session: &Session) -> bool {
        match self {
            Authority::None => false,
            Authority::Shared => session.is_over(),
            Authority::Owner => true,
        }
    }
}

/// The session of a record, without what depends on names; none if the address book is full.
fn build(record: &Record, context: &mut Context<'_>) -> Option<Session> {
    let now = context.now.tick();
    let ago = |ticks: u32| Tick(now.0.saturating_sub(ticks));
    let mut translate = |before: Addr, after: Addr| match before == after {
        true => Some(TranslatedAddr::SAME),
        false => context.store.intern(after),
    };
    let mut session = Session::new(&record.key, ago(record.age));
    session.nat_src = translate(record.key.src, record.outgoing.src)?;
    session.nat_dst = translate(record.key.dst, record.outgoing.dst)?;
    session.nat_src_port = record.outgoing.src_port;
    session.nat_dst_port = record.outgoing.dst_port;
    session.last_seen = ago(record.idle);
    // With room to count on.
    session.packets = record.packets.map(|n| n.min(u64::MAX / 2));
    session.bytes = record.bytes.map(|n| n.min(u64::MAX / 2));
    session.flags = record.flags;
    session.flags.set(SessionFlags::REMOTE);
    if context.store.nat().group(&record.outgoing.dst).is_some() {
        session.flags.set(SessionFlags::TURNS_BACK);
    }
    if let (Some(tcp), Protocol::TCP) = (&record.tcp, record.key.protocol) {
        session.tracker = Tracker::Tcp(tcp.clone());
    }
    Some(session)
}

/// Whether a session here is the peer's in all that can't change but by a move to another group.
fn is_same_flow(id: SessionId, theirs: &Session, record: &Record, store: &SessionStore) -> bool {
    store.get(id).is_some_and(|ours| {
        let tracks_tcp = |session: &Session| matches!(session.tracker, Tracker::Tcp(_));
        ours.key(Direction::Original, store.book()) == record.key
            && ours.translated(Direction::Original, store.book()) == record.outgoing
            && tracks_tcp(ours) == tracks_tcp(theirs)
    })
}

/// Copies the parts that may change during a session's life.
fn copy_state(session: &mut Session, theirs: Session) {
    if let Tracker::Tcp(tcp) = theirs.tracker {
        session.tracker = Tracker::Tcp(tcp);
    }
    session.flags.set(SessionFlags::REMOTE);
    for flag in REPLICATED {
        session.flags.clear(flag);
        if theirs.flags.contains(flag) {
            session.flags.set(flag);
        }
    }
    (session.packets, session.bytes) = (theirs.packets, theirs.bytes);
    (session.last_seen, session.created) = (theirs.last_seen, theirs.created);
    (session.in_port, session.out_port) = (theirs.in_port, theirs.out_port);
    session.policy = theirs.policy;
}
