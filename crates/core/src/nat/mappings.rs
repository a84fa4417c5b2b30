//! Endpoint-independent mappings, kept only in the sessions that share them.

use crate::flow::{Addr, FlowKey, Protocol};
use crate::memory::Reserved;
use crate::session::{
    Index, KeyedHash, Last, Links, Session, SessionId, Table, Tracker, TranslatedAddr,
};

/// The internal endpoint of each mapping → the first session of the list of those that share it.
pub(super) struct Mappings {
    index: Index,
    hash: KeyedHash,
    last: Last<(Addr, u16, Protocol), u32>,
}

/// An internal endpoint and the external address that it is translated to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) src: Addr,
    pub(super) src_port: u16,
    pub(super) protocol: Protocol,
    pub(super) external: TranslatedAddr,
}

/// A mapping: endpoint → external port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) endpoint: Endpoint,
    pub(super) port: u16,
}

impl Mapping {
    /// The external port that it takes.
    pub(super) fn place(&self) -> super::Place {
        let Endpoint {
            external, protocol, ..
        } = self.endpoint;
        (external, protocol.0, self.port)
    }
}

impl Mappings {
    pub(super) fn new(max_sessions: u32, hash: KeyedHash) -> Mappings {
        Mappings {
            index: Index::new(max_sessions as usize),
            hash,
            last: Last::new(),
        }
    }

    pub(super) fn reserved(&self) -> Reserved {
        self.index.reserved()
    }

    /// Prefetches the memory that [`Mappings::port_of`] reads for the source of `key`.
    #[inline]
    pub(super) fn touch(&self, key: &FlowKey) {
        let hash = self.hash.endpoint(&key.src, key.src_port, key.protocol);
        self.index.touch(hash);
    }

    /// The external port of `endpoint`, if it has a mapping.
    pub(super) fn port_of(&self, table: &Table, endpoint: &Endpoint) -> Option<u16> {
        let matches = |mapping: &Mapping| mapping.endpoint == *endpoint;
        let (_, mapping) = self.find(table, self.endpoint_hash(endpoint), matches)?;
        Some(mapping.port)
    }

    /// Adds a session to the list of its mapping; returns whether the mapping is new. If the index
    /// has no room, which would need a table with more sessions than configured, there is none.
    pub(super) fn add(&mut self, table: &mut Table, id: SessionId, mapping: &Mapping) -> bool {
        let hash = self.endpoint_hash(&mapping.endpoint);
        let Some((head, _)) = self.find(table, hash, |other| other == mapping) else {
            let inserted = self.index.insert(hash, id.0);
            let tracker = if inserted {
                Tracker::Mapped(Links::ALONE)
            } else {
                Tracker::None
            };
            set_tracker(table, id, tracker);
            return inserted;
        };
        // Behind the head, so that the index stays as it is.
        let next = links(table, head).map_or(Links::END, |links| links.next);
        set_tracker(table, id, Tracker::Mapped(Links { prev: head.0, next }));
        set_next(table, head.0, id.0);
        set_prev(table, next, id.0);
        false
    }

    /// Removes a session from the list of its mapping; returns whether it was the last one.
    pub(super) fn remove(
        &mut self,
        table: &mut Table,
        id: SessionId,
        endpoint: &Endpoint,
        links: Links,
    ) -> bool {
        set_tracker(table, id, Tracker::None);
        set_prev(table, links.next, links.prev);
        if links.prev != Links::END {
            set_next(table, links.prev, links.next);
            return false;
        }
        let hash = self.endpoint_hash(endpoint);
        if links.next != Links::END {
            self.index.replace(hash, id.0, links.next);
            return false;
        }
        self.index.remove(hash, id.0);
        true
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Panics unless the list of each mapping is sound and holds all of its sessions. Returns the
    /// mappings.
    pub(super) fn check_invariants(&self, table: &Table) -> Vec<Mapping> {
        self.index.check_invariants();
        let (mut mappings, mut mapped, mut listed) = (Vec::new(), 0, 0);
        for (id, session) in table.iter() {
            let Tracker::Mapped(links) = session.tracker else {
                continue;
            };
            mapped += 1;
            if links.prev != Links::END {
                continue;
            }
            let mapping = mapping_of(session);
            let hash = self.endpoint_hash(&mapping.endpoint);
            let head = self.find(table, hash, |other| *other == mapping);
            assert_eq!(
                head.map(|(head, _)| head),
                Some(id),
                "a list that is not in the index"
            );
            listed += check_list(table, id, &mapping);
            mappings.push(mapping);
        }
        assert_eq!(mapped, listed, "a session that is in no list");
        assert_eq!(mappings.len(), self.index.len());
        mappings
    }

    fn find(
        &self,
        table: &Table,
        hash: u32,
        is_it: impl Fn(&Mapping) -> bool,
    ) -> Option<(SessionId, Mapping)> {
        let mapping = |id| table.get(SessionId(id)).map(mapping_of);
        let is_it = |id| mapping(id).is_some_and(|m| is_it(&m));
        let id = self.index.find(hash, is_it)?;
        Some((SessionId(id), mapping(id)?))
    }

    /// Covers only the internal endpoint, so that it is known before the external address is: an
    /// endpoint has few of these.
    pub(super) fn endpoint_hash(&self, endpoint: &Endpoint) -> u32 {
        let Endpoint {
            src,
            src_port,
            protocol,
            ..
        } = *endpoint;
        let hash = || self.hash.endpoint(&src, src_port, protocol);
        self.last.get((src, src_port, protocol), hash)
    }
}

/// The mapping that a session would belong to.
pub(super) fn mapping_of(session: &Session) -> Mapping {
    let endpoint = Endpoint {
        src: session.src,
        src_port: session.src_port,
        protocol: session.protocol,
        external: session.nat_src,
    };
    Mapping {
        endpoint,
        port: session.nat_src_port,
    }
}

/// Panics unless the list that starts with `head` is sound; returns its length.
fn check_list(table: &Table, head: SessionId, mapping: &Mapping) -> usize {
    let (mut len, mut prev, mut next) = (0, Links::END, head.0);
    while next != Links::END {
        let session = table.get(SessionId(next));
        let links = links(table, SessionId(next));
        assert!(session.is_some_and(|session| mapping_of(session) == *mapping));
        assert_eq!(
            links.map(|links| links.prev),
            Some(prev),
            "links that disagree"
        );
        (prev, next) = (next, links.map_or(Links::END, |links| links.next));
        len += 1;
        assert!(len <= table.len() as usize, "a list without an end");
    }
    len
}

fn links(table: &Table, id: SessionId) -> Option<Links> {
    match table.get(id)?.tracker {
        Tracker::Mapped(links) => Some(links),
        _ => None,
    }
}

fn set_tracker(table: &mut Table, id: SessionId, tracker: Tracker) {
    if let Some(session) = table.get_mut(id) {
        session.tracker = tracker;
    }
}

/// No effect on [`Links::END`].
fn set_next(table: &mut Table, id: u32, next: u32) {
    if let Some(Tracker::Mapped(links)) = table.get_mut(SessionId(id)).map(|s| &mut s.tracker) {
        links.next = next;
    }
}

/// No effect on [`Links::END`].
fn set_prev(table: &mut Table, id: u32, prev: u32) {
    if let Some(Tracker::Mapped(links)) = table.get_mut(SessionId(id)).map(|s| &mut s.tracker) {
        links.prev = prev;
    }
}
