//! Who holds how much: sessions, half-open sessions and external ports, by source host.
//!
//! A *host* is an IPv4 address. For IPv6 it is an address on the link of a port, and elsewhere a
//! /64, from which a host can pick any address. Hosts share a fixed number of entries under a keyed
//! hash, so that nobody can aim at the entry of another host; now and then two hosts share one.

use super::ranking::Ranking;
use super::{KeyedHash, Last, Session, SessionFlags, SessionId};
use crate::flow::Addr;
use crate::memory::Reserved;

/// The limits for one host; 0 means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceLimits {
    /// All sessions that it has opened and that are still in the table.
    pub sessions: u32,
    /// Sessions without an answer yet.
    pub half_open: u32,
}

/// The sessions of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// All sessions that it has opened and that are still in the table.
    pub sessions: u32,
    /// Those without an answer yet.
    pub half_open: u32,
    /// External ports of mappings.
    pub ports: u32,
}

/// The sessions of each host, in the order in which they were opened, and settled.
#[derive(Debug)]
pub(super) struct Holders {
    places: Vec<Place>,
    sessions: Ranking,
    ports: Ranking,
    /// By [`SessionId`].
    links: Vec<ChainLink>,
    /// Half-open sessions of each /64 whose hosts are counted by address.
    wide: Vec<u32>,
    hash: KeyedHash,
    last: Last<Addr, Whose>,
    networks: Vec<(u128, u128)>,
    limits: SourceLimits,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    half_open: List,
    settled: List,
}

/// The entry in which a host is counted.
#[derive(Clone, Copy, Debug)]
struct Whose {
    place: u32,
    /// The entry of its /64, if the hosts of that are counted by address.
    wide: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct ChainLink {
    prev: u32,
    next: u32,
    place: u32,
}

const NONE: u32 = u32::MAX;
const EMPTY: List = List {
    first: NONE,
    last: NONE,
    len: 0,
};
const MOST_PLACES: usize = 65_536;
const WIDE_PLACES: usize = 4096;
/// How many times the half-open limit of a host applies to a /64 of hosts.
const WIDE_FACTOR: u32 = 4;

impl Holders {
    pub(super) fn new(capacity: u32, hash: KeyedHash, half_open: u32) -> Holders {
        let places = (capacity as usize)
            .next_power_of_two()
            .clamp(256, MOST_PLACES);
        Holders {
            places: vec![
                Place {
                    half_open: EMPTY,
                    settled: EMPTY,
                };
                places
            ],
            sessions: Ranking::new(places),
            ports: Ranking::new(places),
            links: Vec::with_capacity(capacity as usize),
            wide: vec![0; WIDE_PLACES],
            hash,
            last: Last::new(),
            networks: vec![(0xfe80 << 112, u128::MAX << 118)],
            limits: SourceLimits {
                half_open,
                sessions: 0,
            },
        }
    }

    pub(super) fn reserved(&self) -> Reserved {
        Reserved::of_list(&self.links)
    }

    pub(super) fn set_limits(&mut self, limits: SourceLimits) {
        self.limits = limits;
    }

    pub(super) fn limits(&self) -> SourceLimits {
        self.limits
    }

    /// Counts the hosts of a network by address: base and mask of an IPv6 prefix. Call it before
    /// there are sessions.
    pub(super) fn add_network(&mut self, base: u128, mask: u128) {
        self.networks.push((base, mask));
        self.last.clear();
    }

    /// The same while there may be sessions, from now on: not as long as any of them is counted
    /// where the network's would be, since it must leave the entry that it is in.
    pub(super) fn add_network_if_unused(&mut self, base: u128, mask: u128) {
        // A longer prefix is within one /64.
        let is_narrow = mask >= u128::MAX << 64;
        let place = self.place(&Addr::v6(base.to_be_bytes()));
        let is_used = match is_narrow {
            true => self.sessions.count(place) > 0,
            false => self.sessions.total() > 0,
        };
        if !is_used && !self.networks.contains(&(base, mask)) {
            self.add_network(base, mask);
        }
    }

    pub(super) fn add(&mut self, id: SessionId, session: &Session) {
        let Whose { place, wide } = self.whose(&session.src);
        let index = id.0 as usize;
        if index >= self.links.len() {
            let nowhere = ChainLink {
                prev: NONE,
                next: NONE,
                place: 0,
            };
            self.links.resize(index + 1, nowhere);
        }
        self.links[index].place = place;
        self.sessions.add(place);
        self.append(id.0, is_half_open(session));
        if is_half_open(session)
            && let Some(wide) = wide
        {
            self.wide[wide] += 1;
        }
    }

    pub(super) fn remove(&mut self, id: SessionId, session: &Session) {
        self.take_out(id.0, is_half_open(session));
        self.sessions.remove(self.links[id.0 as usize].place);
        self.narrow(session);
    }

    /// Call it before a session loses its mark of being half open.
    pub(super) fn settle(&mut self, id: SessionId, session: &Session) {
        self.take_out(id.0, true);
        self.append(id.0, false);
        self.narrow(session);
    }

    /// Counts an external port of the host that has this session.
    pub(super) fn add_port(&mut self, id: SessionId) {
        self.ports.add(self.links[id.0 as usize].place);
    }

    pub(super) fn remove_port(&mut self, id: SessionId) {
        self.ports.remove(self.links[id.0 as usize].place);
    }

    pub(super) fn holdings(&self, source: &Addr) -> Holdings {
        self.holdings_of(self.place(source))
    }

    /// The unanswered session that a host opened first, if it has reached `limit`; 0 means no
    /// limit.
    pub(super) fn half_open_too_many(&self, source: &Addr, limit: u32) -> Option<SessionId> {
        let list = self.places[self.place(source) as usize].half_open;
        (limit > 0 && list.len >= limit).then_some(SessionId(list.first))
    }

    /// Whether the /64 of a host that is counted by address has reached its limit of half-open
    /// sessions.
    pub(super) fn is_wide_full(&self, source: &Addr, limit: u32) -> bool {
        let limit = limit.saturating_mul(WIDE_FACTOR);
        let wide = self.whose(source).wide;
        wide.is_some_and(|wide| limit > 0 && self.wide[wide] >= limit)
    }

    /// The sessions of the host with the most that may give way: half-open ones first, the oldest
    /// first. Empty if that host is `source`, or has hardly more.
    pub(super) fn of_largest(&self, source: &Addr) -> impl Iterator<Item = SessionId> {
        self.of_ranking(&self.sessions, source)
    }

    /// The same for the host with the most external ports.
    pub(super) fn of_largest_port_holder(&self, source: &Addr) -> impl Iterator<Item = SessionId> {
        self.of_ranking(&self.ports, source)
    }

    /// The sessions of a host, half-open ones first, the oldest first.
    pub(super) fn of_source(&self, source: &Addr) -> impl Iterator<Item = SessionId> {
        self.of_place(Some(self.place(source)))
    }

    /// A session of each host, and its holdings, hosts with the most sessions first, accurate to an
    /// eighth.
    pub(super) fn largest_first(&self) -> impl Iterator<Item = (SessionId, Holdings)> {
        self.sessions.largest_first().filter_map(|place| {
            let id = self.of_place(Some(place)).next()?;
            Some((id, self.holdings_of(place)))
        })
    }

    fn of_ranking(&self, ranking: &Ranking, source: &Addr) -> impl Iterator<Item = SessionId> {
        let own = self.place(source);
        // An eighth more, since the ranking is no more accurate: otherwise two would take turns.
        let enough = ranking.count(own) + ranking.count(own) / 7 + 1;
        let largest = ranking.largest();
        self.of_place(largest.filter(|it| *it != own && ranking.count(*it) > enough))
    }

    fn of_place(&self, place: Option<u32>) -> impl Iterator<Item = SessionId> {
        let place = place.map(|place| &self.places[place as usize]);
        let lists = place.map(|place| [place.half_open.first, place.settled.first]);
        let some = |id: u32| (id != NONE).then_some(id);
        let next = move |id: &u32| some(self.links[*id as usize].next);
        let ids = lists
            .into_iter()
            .flatten()
            .flat_map(move |first| std::iter::successors(some(first), next));
        ids.map(SessionId)
    }

    fn holdings_of(&self, place: u32) -> Holdings {
        Holdings {
            sessions: self.sessions.count(place),
            half_open: self.places[place as usize].half_open.len,
            ports: self.ports.count(place),
        }
    }

    fn narrow(&mut self, session: &Session) {
        if is_half_open(session)
            && let Some(wide) = self.whose(&session.src).wide
        {
            self.wide[wide] -= 1;
        }
    }

    fn place(&self, source: &Addr) -> u32 {
        self.whose(source).place
    }

    fn whose(&self, source: &Addr) -> Whose {
        self.last.get(*source, || {
            let places = self.places.len() as u32;
            let network = self.hash.source(source);
            match self.is_on_link(source) {
                true => Whose {
                    place: self.hash.bytes(source.octets()) % places,
                    wide: Some(network as usize % WIDE_PLACES),
                },
                false => Whose {
                    place: network % places,
                    wide: None,
                },
            }
        })
    }

    fn is_on_link(&self, source: &Addr) -> bool {
        let bits = u128::from_be_bytes(*source.octets());
        let mut networks = self.networks.iter();
        !source.is_v4() && networks.any(|(base, mask)| bits & mask == *base)
    }

    fn append(&mut self, id: u32, half_open: bool) {
        let list = self.list(id, half_open);
        let last = std::mem::replace(&mut list.last, id);
        list.len += 1;
        if last == NONE {
            list.first = id;
        } else {
            self.links[last as usize].next = id;
        }
        let link = &mut self.links[id as usize];
        (link.prev, link.next) = (last, NONE);
    }

    fn take_out(&mut self, id: u32, half_open: bool) {
        let ChainLink { prev, next, .. } = self.links[id as usize];
        let list = self.list(id, half_open);
        list.len -= 1;
        if prev == NONE {
            list.first = next;
        }
        if next == NONE {
            list.last = prev;
        }
        if prev != NONE {
            self.links[prev as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
    }

    fn list(&mut self, id: u32, half_open: bool) -> &mut List {
        let place = &mut self.places[self.links[id as usize].place as usize];
        match half_open {
            true => &mut place.half_open,
            false => &mut place.settled,
        }
    }

    /// Panics if it contradicts the table's sessions.
    pub(super) fn check_invariants<'a>(
        &self,
        sessions: impl Iterator<Item = (SessionId, &'a Session)>,
    ) {
        let (mut total, mut half_open, mut wide) = (0, 0, 0);
        for (id, session) in sessions {
            assert_eq!(self.links[id.0 as usize].place, self.place(&session.src));
            total += 1;
            half_open += u32::from(is_half_open(session));
            wide += u32::from(is_half_open(session) && self.is_on_link(&session.src));
        }
        assert_eq!(self.sessions.total(), total);
        let lists = |list: fn(&Place) -> List| self.places.iter().map(move |it| list(it).len);
        assert_eq!(lists(|it| it.half_open).sum::<u32>(), half_open);
        assert_eq!(
            u64::from(lists(|it| it.settled).sum::<u32>() + half_open),
            total
        );
        assert_eq!(self.wide.iter().sum::<u32>(), wide);
        let used = (0..self.places.len() as u32).filter(|it| self.sessions.count(*it) > 0);
        for place in used {
            let listed = self.of_place(Some(place)).count();
            assert_eq!(listed, self.sessions.count(place) as usize);
        }
    }
}

fn is_half_open(session: &Session) -> bool {
    session.flags.contains(SessionFlags::HALF_OPEN)
}
