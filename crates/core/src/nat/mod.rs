//! Source and destination translation of new sessions.
//!
//! What is done once a session: a forward names the internal destination, and an external address
//! and port are allocated for the source. The packets of a session are then rewritten from what the
//! session says. IPv4 and IPv6 take the same path; addresses are never translated between families,
//! and prefixes never one to one.
//!
//! UDP and ICMP queries have endpoint-independent *mappings* (RFC 4787, REQ-1; RFC 5508, REQ-1): as
//! long as any session of an internal endpoint lives, its other sessions get the same external
//! port, which belongs to that endpoint alone. The connections of a TCP endpoint have one external
//! port too, as long as there is one that no other endpoint has (RFC 5382, REQ-1). Beyond that, a
//! TCP port is used for as many endpoints as destinations tell apart: one address serves more than
//! 64 512 connections.
//!
//! *Filtering* is address-and-port-dependent for all: only packets of a session come in. A mapping
//! opens nothing to third parties. RFC 4787, REQ-8 permits this where security matters most, as in
//! a firewall, and each packet let in then has a session that a policy accepted and peers know.

mod connected;
mod crowded;
mod forwards;
mod layout;
mod mappings;
mod pool;
mod port_set;
mod range;
mod search;
mod slots;

use std::collections::BTreeMap;

pub use forwards::Destination;
pub use layout::{BookFull, Layout};
pub use pool::{PoolId, groups};
pub use slots::Slice;

use crate::config::{self, Config};
use crate::flow::{Addr, Family, FlowKey, GroupId, PortId, Protocol};
use crate::memory::Reserved;
use crate::session::{AddressBook, KeyedHash, Session, SessionId, Table, Tracker, TranslatedAddr};
use connected::Connected;
use crowded::{Crowded, Progress, Scope};
use forwards::{ExternalEnd, Forwards};
use mappings::{Endpoint, Mappings};
use pool::{External, Pool, Pools, Taken};
use search::{Request, Search};

/// Addresses of a pool tried for one session.
const MAX_ADDRESSES: usize = 64;

/// Sessions in [`Nat::sample`].
const SAMPLES: usize = 8;

/// Addresses among these in which a port is searched, because they are not known to be full.
const SEARCHED_ADDRESSES: usize = 4;

/// The translation of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The external address.
    pub addr: TranslatedAddr,
    /// The external port or identifier; 0 for a protocol without ports.
    pub port: u16,
}

/// There is no external port left that would tell the session from others, or none was found in
/// bounded time, or the pool has no address of the family.
///
/// Holds the progress of the search: see [`Nat::note_exhausted`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatExhausted {
    progress: [Option<(Scope, Progress)>; SEARCHED_ADDRESSES],
    is_certain: bool,
    lookups: u32,
}

/// Chooses and keeps the external addresses and ports of translated sessions (RFC 4787, RFC 5382).
///
/// For a new session: [`Nat::destination`], policies, [`Nat::pool`], [`Nat::allocate_source`],
/// insert it into the table, `attach`. Nothing is taken before `attach`. Before a session is
/// removed from the table: `release`. A session that a peer sent is only attached: this reserves
/// its port.
///
/// On a new configuration: [`Nat::reconfigure`]. Mappings stay as they are, since they belong to
/// sessions and not to pools.
pub struct Nat {
    forwards: Forwards,
    pools: Pools,
    groups: BTreeMap<Addr, GroupId>,
    mappings: Mappings,
    /// Ports of mappings on addresses that are in no pool: from an earlier configuration, or from
    /// that of a peer. At most [`MAX_STRANGERS`], and those of an earlier configuration.
    strangers: BTreeMap<TranslatedAddr, Taken>,
    /// How many excess owners a port has; it is free after the last one. Two units that were
    /// primary at once may have given a port to different endpoints.
    shared: BTreeMap<Place, u32>,
    crowded: Crowded,
    connected: Connected,
}

/// Addresses of peers' pools whose ports are tracked, each 8 KiB a protocol. A mapping on a further
/// one does not keep its port from others if a later configuration has that address in a pool.
const MAX_STRANGERS: usize = 4096;

impl NatExhausted {
    /// Whether it is known that all ports are taken.
    pub fn is_certain(&self) -> bool {
        self.is_certain
    }

    /// How many ports were looked up.
    pub fn lookups(&self) -> u32 {
        self.lookups
    }
}

impl Nat {
    /// The translator of `config`, with no mappings. `key` is random and secret.
    pub fn new(config: &Config, book: &mut AddressBook, key: &[u8; 16]) -> Nat {
        let mut layout = Layout::new(config);
        // An empty book has room for everything in a layout.
        while layout.number_some(book, AddressBook::CAPACITY) == Ok(false) {}
        layout.renumber();
        let Layout {
            forwards,
            pools,
            groups,
            ..
        } = layout;
        Nat {
            forwards,
            pools,
            groups,
            mappings: Mappings::new(config.node.max_sessions, KeyedHash::new(key)),
            strangers: BTreeMap::new(),
            shared: BTreeMap::new(),
            crowded: Crowded::new(key),
            connected: Connected::default(),
        }
    }

    /// Applies the pools and forwards of another configuration with the same ports and groups. All
    /// of its addresses must have numbers: see [`Layout::number_some`].
    ///
    /// Sessions keep their translation, and mappings their ports, even on addresses that are in no
    /// pool any more: the caller ends those. Takes time for addresses, not for sessions. Returns
    /// the parts that are no longer needed, which take long to drop.
    pub fn reconfigure(&mut self, mut layout: Layout) -> Layout {
        layout.renumber();
        std::mem::swap(&mut self.forwards, &mut layout.forwards);
        std::mem::swap(&mut self.pools, &mut layout.pools);
        std::mem::swap(&mut self.groups, &mut layout.groups);
        self.pools.inherit(&mut layout.pools, &mut self.strangers);
        self.crowded.clear();
        layout
    }

    /// The destination to which a forward redirects a packet with `key` that came in by `in_port`;
    /// none if no forward matches. A forward is meant for packets of its own port, but applies to
    /// others too, so that hosts inside reach a server by its external address (RFC 4787, REQ-9;
    /// RFC 5382, REQ-8).
    pub fn destination(&self, in_port: Option<PortId>, key: &FlowKey) -> Option<Destination> {
        self.forwards.find(in_port, key)
    }

    /// Whether a forwarded session must have its source translated to the address of its egress
    /// port, whatever its policy says: client and server are behind the same port, and the server
    /// would answer directly, past the gateway.
    pub fn needs_hairpin_source(in_port: PortId, out_port: PortId) -> bool {
        in_port == out_port
    }

    /// The pool selected by `nat` for a session that leaves by `out_port`; none for
    /// [`config::Nat::Off`].
    pub fn pool(&self, nat: config::Nat, out_port: PortId) -> Option<PoolId> {
        self.pools.id(nat, out_port)
    }

    /// The groups that have an address of `family` on a port which has addresses of several groups,
    /// in the order of these, and the pool of each. None if the port has one group: then
    /// [`Nat::pool`] is enough.
    pub fn groups_on(
        &self,
        port: PortId,
        family: Family,
    ) -> impl Iterator<Item = (GroupId, PoolId)> + Clone {
        let shared = self.pools.shared(port).iter().copied();
        shared.filter(move |(_, pool)| self.first_address(*pool, family).is_some())
    }

    /// The first address of `family` in a pool. All addresses of a pool move with one group, except
    /// in the pool of a port for which [`Nat::groups_on`] has groups.
    pub fn first_address(&self, pool: PoolId, family: Family) -> Option<Addr> {
        self.pools.first_address(pool, family)
    }

    /// The memory of the index of mappings.
    pub fn reserved(&self) -> Reserved {
        self.mappings.reserved()
    }

    /// The group that an external address (virtual, or of a pool) moves with.
    pub fn group(&self, addr: &Addr) -> Option<GroupId> {
        self.groups.get(addr).copied()
    }

    /// Whether the source of any session is translated to this port. For TCP, others with the same
    /// hash count too.
    pub fn is_used_port(
        &self,
        book: &AddressBook,
        addr: Addr,
        protocol: Protocol,
        port: u16,
    ) -> bool {
        let Some(addr) = book.find(addr) else {
            return false;
        };
        match protocol {
            Protocol::TCP => self.connected.has(addr, port),
            _ => self
                .taken(addr)
                .is_some_and(|taken| taken.contains(protocol, port)),
        }
    }

    /// Prefetches the memory that [`Nat::allocate_source`] reads for a packet with `key`.
    #[inline]
    pub fn touch_source(&self, key: &FlowKey) {
        if is_mapped(key.protocol) {
            self.mappings.touch(key);
        }
    }

    /// Chooses the translation for the source of a new session.
    ///
    /// `key` is that of its first packet after destination translation. All sessions of a host get
    /// the same address of the pool as long as it has free ports (RFC 4787, REQ-2). The port is
    /// kept if it is free and in the pool; otherwise it is as random as `random` is (RFC 6056).
    ///
    /// # Errors
    ///
    /// [`NatExhausted`]
    pub fn allocate_source(
        &self,
        table: &Table,
        book: &AddressBook,
        slice: impl Into<Slice>,
        key: &FlowKey,
        random: u64,
    ) -> Result<Source, NatExhausted> {
        let mut exhausted = NatExhausted::default();
        let Slice { pool: id, slot } = slice.into();
        let pool = self.pools.get(id).ok_or(exhausted)?;
        let all = pool.range_of(slot);
        if is_mapped(key.protocol)
            && let Some((external, port)) = self.mapped_source(table, pool, key)
        {
            // The mapping is binding: if answers can't be told apart, another port would break it.
            let request = Request {
                nat: self,
                table,
                book,
                key,
                external,
            };
            let source = Source {
                addr: external.translated,
                port,
            };
            return request.tells_apart(port).then_some(source).ok_or(exhausted);
        }
        if let Some(source) = self.forwarded_source(table, book, id, key) {
            return Ok(source);
        }
        let mut search = Search::new(random);
        let range = all.last_candidate(key.src_port);
        let mut notes = exhausted.progress.iter_mut();
        let (mut any_full, mut all_full) = (false, true);
        for external in self.pools.addresses_for(pool, &key.src).take(MAX_ADDRESSES) {
            let scope = Scope::new(external.translated, key, range);
            let before = self.crowded.progress(&scope);
            let is_full = before.is_some_and(|progress| progress.seen >= range.size());
            if is_full && all.first_candidate(key.src_port).is_none() {
                any_full = true;
                continue;
            }
            let Some(note) = notes.next() else {
                all_full = false;
                break;
            };
            let request = Request {
                nat: self,
                table,
                book,
                key,
                external,
            };
            match search.port(&request, all, before) {
                Ok(port) => {
                    return Ok(Source {
                        addr: external.translated,
                        port,
                    });
                }
                Err(progress) => {
                    any_full |= progress.seen >= range.size();
                    all_full &= progress.seen >= range.size();
                    *note = Some((scope, progress));
                }
            }
        }
        exhausted.is_certain = any_full && all_full;
        exhausted.lookups = search.lookups();
        Err(exhausted)
    }

    /// Whether sessions of `protocol` take an external port regardless of their destination.
    pub fn has_mappings(protocol: Protocol) -> bool {
        is_mapped(protocol)
    }

    /// Whether the source of `key` has an external port in a pool already.
    pub fn has_mapping(&self, table: &Table, pool: PoolId, key: &FlowKey) -> bool {
        let pool = self.pools.get(pool);
        pool.is_some_and(|pool| self.mapped_source(table, pool, key).is_some())
    }

    /// Whether an external address is in a pool.
    pub fn is_in_pool(&self, pool: PoolId, addr: TranslatedAddr) -> bool {
        self.pools.contains(pool, addr)
    }

    /// How many external ports of a pool a session may get, for one protocol, of the family that
    /// has more.
    pub fn pool_ports(&self, pool: PoolId) -> u32 {
        self.pools.get(pool).map_or(0, Pool::ports)
    }

    /// Some random ones among the sessions that hold the ports that one with `key` could have.
    pub fn sample(
        &self,
        table: &Table,
        book: &AddressBook,
        slice: Slice,
        key: &FlowKey,
        random: u64,
    ) -> [Option<SessionId>; SAMPLES] {
        let pool = self.pools.get(slice.pool);
        let preferred = pool.and_then(|pool| {
            let external = self.pools.addresses_for(pool, &key.src).next()?;
            Some((pool.range_of(slice.slot), external))
        });
        let mut search = Search::new(random);
        std::array::from_fn(|_| {
            let (all, external) = preferred?;
            let request = Request {
                nat: self,
                table,
                book,
                key,
                external,
            };
            search.holder(&request, all)
        })
    }

    /// Remembers the progress of a failed search, so that the next one does not start from the
    /// beginning. Valid until a port becomes free.
    pub fn note_exhausted(&mut self, exhausted: &NatExhausted) {
        for (scope, progress) in exhausted.progress.iter().flatten() {
            self.crowded.note(scope, *progress);
        }
    }

    /// The external end of the forward to the endpoint that `key` comes from: it has the same one
    /// in both directions (RFC 4787, REQ-1). Only if the pool may use that address, so that the
    /// session moves with the same group.
    fn forwarded_source(
        &self,
        table: &Table,
        book: &AddressBook,
        id: PoolId,
        key: &FlowKey,
    ) -> Option<Source> {
        let group = self.group(&self.pools.first_address(id, key.src.family())?);
        let of_port = self.pools.port_of(id);
        let suits = |end: &&ExternalEnd| {
            let is_in_pool = || self.pools.contains(id, end.translated);
            (of_port == Some(end.port) || is_in_pool()) && self.group(&end.addr) == group
        };
        self.forwards
            .ends_of(key)
            .iter()
            .filter(suits)
            .find_map(|end| {
                let port = end.external_port(key.src_port)?;
                let outgoing = FlowKey {
                    src: end.addr,
                    ..key.with_source_port(port)
                };
                let source = Source {
                    addr: end.translated,
                    port,
                };
                (!table.contains_key(&outgoing.reply(), book)).then_some(source)
            })
    }

    /// Adds an inserted session to its mapping, which begins to exist with its first session. No
    /// effect on sessions without a mapping.
    pub(crate) fn attach(&mut self, table: &mut Table, id: SessionId) {
        let Some(session) = table.get(id) else {
            return;
        };
        let endpoint = &mappings::mapping_of(session).endpoint;
        let endpoint = self.mappings.endpoint_hash(endpoint);
        self.connected.add(session, endpoint);
        if !is_mapped(session.protocol) || session.nat_src == TranslatedAddr::SAME {
            return;
        }
        let mapping = mappings::mapping_of(session);
        if self.mappings.add(table, id, &mapping) {
            table.note_port(id);
            self.pools.note_mapping(&mapping.endpoint);
            self.take_port(mapping.place());
        }
    }

    /// Removes a session that is about to be removed from its mapping, which ends with its last
    /// session. No effect on sessions without a mapping.
    pub(crate) fn release(&mut self, table: &mut Table, id: SessionId) {
        let Some(session) = table.get(id) else {
            return;
        };
        self.connected.remove(session);
        let Tracker::Mapped(links) = session.tracker else {
            if session.nat_src != TranslatedAddr::SAME {
                self.note_freed(&session.clone());
            }
            return;
        };
        let mapping = mappings::mapping_of(session);
        if self.mappings.remove(table, id, &mapping.endpoint, links) {
            table.forget_port(id);
            self.free_port(mapping.place());
        }
    }

    /// How many external ports of a pool are taken for `protocol`, by mappings and forwards, and
    /// how many there are. TCP has no mappings: it uses a port again for each destination.
    pub fn pool_usage(&self, pool: PoolId, protocol: Protocol) -> (u64, u64) {
        self.pools.usage(pool, protocol)
    }

    /// The number of mappings.
    pub fn mappings(&self) -> usize {
        self.mappings.len()
    }

    /// Panics if sessions, mappings and ports disagree: for tests and simulations.
    pub fn check_invariants(&self, table: &Table) {
        self.connected.check_invariants(table);
        let owners = self.port_owners(table);
        let pooled = self
            .pools
            .externals
            .iter()
            .map(|e| (e.translated, &e.taken));
        let all = pooled.chain(self.strangers.iter().map(|(addr, taken)| (*addr, taken)));
        let mut taken_ports = 0;
        for (addr, taken) in all {
            let owned = owners.keys().filter(|(owner, ..)| *owner == addr).count();
            assert_eq!(taken.len(), owned, "ports of {addr:?} that leak");
            taken_ports += owned;
        }
        assert_eq!(taken_ports, owners.len(), "ports that are not taken");
        for (place @ (addr, protocol, port), owners) in &owners {
            let taken = self.taken(*addr);
            let is_taken = taken.is_some_and(|taken| taken.contains(Protocol(*protocol), *port));
            assert!(is_taken, "a port that is not taken");
            assert_eq!(self.shared.get(place).copied().unwrap_or(0) + 1, *owners);
        }
        assert!(self.shared.keys().all(|place| owners.contains_key(place)));
    }

    /// How many mappings each external port has, if any.
    fn port_owners(&self, table: &Table) -> BTreeMap<Place, u32> {
        let mut owners = BTreeMap::new();
        for mapping in self.mappings.check_invariants(table) {
            *owners.entry(mapping.place()).or_default() += 1;
        }
        owners
    }

    /// The external end of the mapping that the source of `key` has in `pool`.
    fn mapped_source<'a>(
        &'a self,
        table: &Table,
        pool: &'a Pool,
        key: &FlowKey,
    ) -> Option<(&'a External, u16)> {
        self.pools
            .mapped_addresses_for(pool, &key.src)
            .find_map(|external| {
                let endpoint = Endpoint {
                    src: key.src,
                    src_port: key.src_port,
                    protocol: key.protocol,
                    external: external.translated,
                };
                Some((external, self.mappings.port_of(table, &endpoint)?))
            })
    }

    /// A session has gone whose external port nothing else keeps.
    fn note_freed(&mut self, session: &Session) {
        if session.nat_dst != TranslatedAddr::SAME {
            // A hairpin: rare, and its destination is not at hand.
            self.crowded.clear();
            return;
        }
        let key = FlowKey {
            src: session.src,
            dst: session.dst,
            src_port: session.src_port,
            dst_port: session.dst_port,
            protocol: session.protocol,
        };
        let port = session.nat_src_port;
        for range in self.pools.ranges_with(session.nat_src, port) {
            for range in range.last_candidates().filter(|range| range.contains(port)) {
                let scope = Scope::new(session.nat_src, &key, range);
                self.crowded.freed(&scope, port);
            }
        }
    }

    fn take_port(&mut self, place @ (addr, protocol, port): Place) {
        let taken = match self.pools.index_of(addr) {
            Some(index) => &mut self.pools.externals[index].taken,
            None if self.strangers.len() < MAX_STRANGERS => self.strangers.entry(addr).or_default(),
            None => match self.strangers.get_mut(&addr) {
                Some(taken) => taken,
                None => return,
            },
        };
        if !taken.insert(Protocol(protocol), port) {
            *self.shared.entry(place).or_default() += 1;
        }
    }

    fn free_port(&mut self, place @ (addr, protocol, port): Place) {
        match self.shared.get_mut(&place) {
            Some(1) => {
                self.shared.remove(&place);
                return;
            }
            Some(more) => {
                *more -= 1;
                return;
            }
            None => {}
        }
        if let Some(index) = self.pools.index_of(addr) {
            let external = &mut self.pools.externals[index];
            external.taken.remove(Protocol(protocol), port);
            if external.is_forwarded(Protocol(protocol), port) {
                return;
            }
            for range in self.pools.ranges_with(addr, port) {
                for range in range.last_candidates().filter(|range| range.contains(port)) {
                    let scope = Scope::of_mappings(addr, Protocol(protocol), range);
                    self.crowded.freed(&scope, port);
                }
            }
        } else if let Some(taken) = self.strangers.get_mut(&addr) {
            taken.remove(Protocol(protocol), port);
            if taken.is_empty() {
                self.strangers.remove(&addr);
            }
        }
    }

    fn taken(&self, addr: TranslatedAddr) -> Option<&Taken> {
        match self.pools.index_of(addr) {
            Some(index) => Some(&self.pools.externals[index].taken),
            None => self.strangers.get(&addr),
        }
    }
}

/// An external port: address, protocol, port.
type Place = (TranslatedAddr, u8, u16);

/// Whether sessions of `protocol` share endpoint-independent mappings.
fn is_mapped(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::UDP | Protocol::ICMP)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Forward, NatPool, VirtualAddress};
    use crate::flow::Direction;
    use crate::random::SplitMix64;
    use crate::session::{Session, Timeouts};
    use crate::time::Tick;

    const LAN: PortId = PortId(0);
    const WAN: PortId = PortId(1);
    const DMZ: PortId = PortId(2);
    const GRE: Protocol = Protocol(47);
    const LAN_VIP: Addr = Addr::v4([10, 0, 0, 254]);
    const WAN_VIP: Addr = Addr::v4([192, 0, 2, 1]);
    const WAN_VIP6: Addr = Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    const SERVER: Addr = Addr::v4([10, 0, 0, 80]);
    const REMOTE: Addr = Addr::v4([198, 51, 100, 1]);
    /// Owned by a forward, TCP and UDP.
    const FORWARDED: u16 = 8080;

    fn virtual_address(addr: Addr, network: &str, group: u8) -> VirtualAddress {
        VirtualAddress {
            addr,
            network: network.parse().unwrap(),
            group: GroupId(group),
        }
    }

    /// Three ports, a forward, and a pool of `addresses` addresses with the ports `range`.
    fn config(addresses: u8, range: (u16, u16)) -> Config {
        let mut config = crate::policy::tests::config(Vec::new());
        config.ports[0].virtual_addresses = vec![virtual_address(LAN_VIP, "10.0.0.0/24", 1)];
        config.ports[1].virtual_addresses = vec![
            virtual_address(WAN_VIP, "192.0.2.0/24", 2),
            virtual_address(WAN_VIP6, "2001:db8::/64", 3),
        ];
        let addresses = (0..addresses)
            .map(|host| Addr::v4([192, 0, 2, 100 + host]))
            .collect();
        config.nat_pools = vec![NatPool {
            name: "pool".into(),
            addresses,
            ports: range,
        }];
        config.forwards = [Protocol::TCP, Protocol::UDP]
            .into_iter()
            .map(|protocol| Forward {
                name: format!("web-{protocol}"),
                port: WAN,
                protocol,
                external: (WAN_VIP, FORWARDED),
                last_external_port: FORWARDED,
                internal: (SERVER, 80),
            })
            .collect();
        config
    }

    fn host(n: u8) -> Addr {
        Addr::v4([10, 0, 0, n])
    }

    fn key(protocol: Protocol, src: Addr, src_port: u16, dst_port: u16) -> FlowKey {
        FlowKey {
            src,
            dst: REMOTE,
            src_port,
            dst_port,
            protocol,
        }
    }

    struct Gateway {
        config: Config,
        nat: Nat,
        table: Table,
        book: AddressBook,
        random: SplitMix64,
    }

    impl Gateway {
        fn new(config: Config) -> Gateway {
            let mut book = AddressBook::new();
            let timeouts = Timeouts::from(&config.timeouts);
            Gateway {
                nat: Nat::new(&config, &mut book, &[1; 16]),
                table: Table::new(1024, &[2; 16], timeouts, 0),
                book,
                config,
                random: SplitMix64(3),
            }
        }

        /// Opens a session to the wide area, translated as a policy would with `nat`.
        fn open(&mut self, nat: config::Nat, key: &FlowKey) -> Result<SessionId, NatExhausted> {
            let pool = self.nat.pool(nat, WAN).unwrap();
            let random = self.random.next();
            let (table, book) = (&self.table, &self.book);
            match self.nat.allocate_source(table, book, pool, key, random) {
                Ok(source) => Ok(self.install(key, source)),
                Err(exhausted) => {
                    self.nat.note_exhausted(&exhausted);
                    Err(exhausted)
                }
            }
        }

        fn install(&mut self, key: &FlowKey, source: Source) -> SessionId {
            let mut session = Session::new(key, Tick(0));
            (session.nat_src, session.nat_src_port) = (source.addr, source.port);
            let id = self.table.insert(session, &self.book).unwrap();
            self.nat.attach(&mut self.table, id);
            id
        }

        fn reconfigure(&mut self, config: Config) {
            let mut layout = Layout::new(&config);
            while !layout.number_some(&mut self.book, 2).unwrap() {}
            self.nat.reconfigure(layout);
            self.config = config;
        }

        fn close(&mut self, id: SessionId) {
            self.nat.release(&mut self.table, id);
            assert!(self.table.remove(id, &self.book).is_some());
        }

        /// The source that the session has outside.
        fn external(&self, id: SessionId) -> (Addr, u16) {
            let session = self.table.get(id).unwrap();
            let key = session.translated(Direction::Original, &self.book);
            (key.src, key.src_port)
        }

        fn check(&self) {
            self.nat.check_invariants(&self.table);
            self.table.check_invariants(&self.book);
        }
    }

    const EGRESS: config::Nat = config::Nat::Egress;
    const POOL: config::Nat = config::Nat::Pool(0);

    #[test]
    fn keeps_the_port_where_it_is_free_and_allowed() {
        let mut gateway = Gateway::new(config(1, (2000, 2999)));
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::ICMP] {
            let kept = gateway
                .open(EGRESS, &key(protocol, host(1), 40_000, 53))
                .unwrap();
            assert_eq!(gateway.external(kept), (WAN_VIP, 40_000));
            let in_use = gateway
                .open(EGRESS, &key(protocol, host(2), 40_000, 53))
                .unwrap();
            assert_ne!(gateway.external(in_use).1, 40_000);
            let low = gateway
                .open(EGRESS, &key(protocol, host(1), 123, 53))
                .unwrap();
            assert_eq!(gateway.external(low), (WAN_VIP, 123));
            let low_in_use = gateway
                .open(EGRESS, &key(protocol, host(2), 123, 53))
                .unwrap();
            assert!((1..=511).contains(&gateway.external(low_in_use).1));
            let outside = gateway
                .open(POOL, &key(protocol, host(3), 40_000, 53))
                .unwrap();
            assert!((2000..=2999).contains(&gateway.external(outside).1));
        }
        gateway.check();
    }

    #[test]
    fn both_families_are_translated_alike() {
        let mut gateway = Gateway::new(config(1, (2000, 2999)));
        let inside = Addr::v6([0xfd; 16]);
        let key = FlowKey {
            dst: Addr::v6([0x20; 16]),
            ..key(Protocol::UDP, inside, 5000, 53)
        };
        let id = gateway.open(EGRESS, &key).unwrap();
        assert_eq!(gateway.external(id), (WAN_VIP6, 5000));
        assert_eq!(
            gateway.open(POOL, &key),
            Err(NatExhausted::default()),
            "the pool has no such address"
        );
    }

    #[test]
    fn ports_of_forwards_are_never_allocated() {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let mut gateway = Gateway::new(config(1, (2000, 2999)));
            let id = gateway
                .open(EGRESS, &key(protocol, host(1), FORWARDED, 53))
                .unwrap();
            assert_ne!(gateway.external(id).1, FORWARDED);
            gateway.close(id);
            gateway.check();
        }
    }

    #[test]
    fn a_mapping_serves_all_destinations_while_one_session_lives() {
        for protocol in [Protocol::UDP, Protocol::ICMP] {
            let mut gateway = Gateway::new(config(1, (2000, 2999)));
            let ids: Vec<_> = (1..=5)
                .map(|port| {
                    gateway
                        .open(POOL, &key(protocol, host(1), 77, port))
                        .unwrap()
                })
                .collect();
            let external = gateway.external(ids[0]);
            assert!(ids.iter().all(|id| gateway.external(*id) == external));
            assert_eq!(gateway.nat.mappings(), 1);
            // The first, the last and the middle of the list go; the mapping stays.
            for at in [0, 4, 2, 1] {
                gateway.close(ids[at]);
                gateway.check();
                let id = gateway.open(POOL, &key(protocol, host(1), 77, 99)).unwrap();
                assert_eq!(gateway.external(id), external);
                gateway.close(id);
                gateway.check();
            }
            gateway.close(ids[3]);
            assert_eq!(gateway.nat.mappings(), 0);
            gateway.check();
        }
    }

    #[test]
    fn every_port_is_used_before_a_pool_is_exhausted_and_what_is_freed_is_used_again() {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::ICMP] {
            let mut gateway = Gateway::new(config(3, (1024, 1223)));
            let mut used = BTreeSet::new();
            let mut ids = Vec::new();
            for n in 0..600 {
                // TCP repeats a SYN, and the search continues where it was.
                let key = key(protocol, host(n as u8), 3000 + n, 53);
                let id = (0..20).find_map(|_| gateway.open(POOL, &key).ok()).unwrap();
                assert!(used.insert(gateway.external(id)));
                ids.push(id);
            }
            let one_more = key(protocol, host(1), 9999, 53);
            assert!((0..20).all(|_| gateway.open(POOL, &one_more).is_err()));
            // A pool known to be exhausted is not searched.
            let known = gateway.open(POOL, &one_more).unwrap_err();
            assert!(known.is_certain() && known.progress == [None; SEARCHED_ADDRESSES]);
            gateway.check();
            let freed = gateway.external(ids[300]);
            gateway.close(ids[300]);
            let id = gateway.open(POOL, &one_more).unwrap();
            assert_eq!(gateway.external(id), freed);
            gateway.check();
        }
    }

    /// A search costs no more than an ordinary packet or two, and is not made again in vain.
    #[test]
    fn a_search_looks_up_few_ports_however_many_are_taken() {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::ICMP] {
            let mut gateway = Gateway::new(config(3, (1024, 1223)));
            for n in 0..600 {
                let key = key(protocol, host(n as u8), 3000 + n, 53);
                while let Err(exhausted) = gateway.open(POOL, &key) {
                    assert!(exhausted.lookups() <= 64, "{}", exhausted.lookups());
                }
            }
            for other in 0..100 {
                let mut lookups = 0;
                loop {
                    let key = key(protocol, host(other), 40_000 + u16::from(other), 53);
                    let exhausted = gateway.open(POOL, &key).unwrap_err();
                    assert!(exhausted.lookups() <= 64, "{}", exhausted.lookups());
                    lookups += exhausted.lookups();
                    if exhausted.is_certain() {
                        break;
                    }
                }
                // The first one looks at all of them once, or at none if a list says so.
                let most = if other == 0 { 1000 } else { 0 };
                assert!(lookups <= most, "{lookups} for {protocol} by host {other}");
            }
        }
    }

    #[test]
    fn tcp_shares_a_port_between_destinations() {
        let mut gateway = Gateway::new(config(1, (1024, 1024)));
        for port in 1..=50 {
            let id = gateway
                .open(POOL, &key(Protocol::TCP, host(1), 5000, port))
                .unwrap();
            assert_eq!(gateway.external(id).1, 1024);
        }
        assert!(
            gateway
                .open(POOL, &key(Protocol::TCP, host(2), 5000, 50))
                .is_err()
        );
        gateway.check();
    }

    /// RFC 5382, REQ-1: whatever the destination, and whoever else has chosen the same port.
    #[test]
    fn a_tcp_endpoint_has_one_port_as_long_as_there_are_enough() {
        for (nat, wanted) in [(EGRESS, 5000), (EGRESS, 700), (POOL, 80), (POOL, 5000)] {
            let mut gateway = Gateway::new(config(1, (1024, 65_535)));
            let mut used = BTreeSet::new();
            let mut firsts = Vec::new();
            for n in 1..=30 {
                let mut external = |dst_port| {
                    let key = key(Protocol::TCP, host(n), wanted, dst_port);
                    let id = gateway.open(nat, &key).unwrap();
                    (id, gateway.external(id))
                };
                // Nobody else has the first destination, and then somebody does.
                let (first, one) = external(1000 + u16::from(n));
                assert!((1..5).all(|dst_port| external(dst_port).1 == one));
                assert!(used.insert(one));
                firsts.push((first, one));
            }
            // The first of them, whose port was free at first, goes; the others stay what they are.
            for (first, _) in &firsts {
                gateway.close(*first);
            }
            for (n, (_, external)) in (1..=30).zip(&firsts) {
                let key = key(Protocol::TCP, host(n), wanted, 9);
                let id = gateway.open(nat, &key).unwrap();
                assert_eq!(gateway.external(id), *external);
            }
            gateway.check();
        }
    }

    /// After a takeover too: the other unit has other secrets, and the sessions.
    #[test]
    fn the_port_of_a_tcp_endpoint_stays_on_another_unit() {
        let mut gateway = Gateway::new(config(1, (1024, 65_535)));
        let mut other = Gateway::new(config(1, (1024, 65_535)));
        other.nat = Nat::new(&other.config, &mut other.book, &[9; 16]);
        for n in 1..=30 {
            let first = key(Protocol::TCP, host(n), 5000, 1);
            let id = gateway.open(POOL, &first).unwrap();
            let session = gateway.table.get(id).unwrap();
            let source = Source {
                addr: session.nat_src,
                port: session.nat_src_port,
            };
            let copy = other.install(&first, source);
            assert_eq!(other.external(copy), gateway.external(id));
            let second = key(Protocol::TCP, host(n), 5000, 2);
            let there = other.open(POOL, &second).unwrap();
            assert_eq!(other.external(there), gateway.external(id));
        }
    }

    #[test]
    fn without_ports_only_the_address_tells_sessions_apart() {
        let mut gateway = Gateway::new(config(2, (1024, 65_535)));
        let a = gateway.open(POOL, &key(GRE, host(1), 0, 0)).unwrap();
        let b = gateway.open(POOL, &key(GRE, host(2), 0, 0)).unwrap();
        assert_ne!(gateway.external(a), gateway.external(b));
        assert!(gateway.open(POOL, &key(GRE, host(3), 0, 0)).is_err());
        gateway.close(a);
        assert!(gateway.open(POOL, &key(GRE, host(3), 0, 0)).is_ok());
    }

    #[test]
    fn a_host_keeps_its_address_and_hosts_are_spread() {
        let mut gateway = Gateway::new(config(8, (1024, 65_535)));
        let mut addrs = BTreeSet::new();
        for n in 0..100 {
            let mut addr = |protocol, port| {
                let id = gateway
                    .open(POOL, &key(protocol, host(n), port, 53))
                    .unwrap();
                gateway.external(id).0
            };
            let own = addr(Protocol::TCP, 5000);
            assert_eq!(own, addr(Protocol::TCP, 5001));
            assert_eq!(own, addr(Protocol::UDP, 5000));
            addrs.insert(own);
        }
        assert_eq!(addrs.len(), 8);
        // Another unit, with other secrets, makes the same choice.
        let mut book = AddressBook::new();
        let other = Nat::new(&gateway.config, &mut book, &[9; 16]);
        let pool = other.pool(POOL, WAN).unwrap();
        let table = Table::new(1024, &[8; 16], *gateway.table.timeouts(), 0);
        let new = key(Protocol::TCP, host(7), 6000, 53);
        let source = other.allocate_source(&table, &book, pool, &new, 0).unwrap();
        let id = gateway.open(POOL, &new).unwrap();
        assert_eq!(book.get(source.addr), Some(gateway.external(id).0));
    }

    #[test]
    fn a_mapping_on_another_address_holds_after_the_preferred_one_is_free_again() {
        let mut gateway = Gateway::new(config(4, (1024, 1024)));
        let mut ids = Vec::new();
        // One port an address: hosts whose preferred address is in use go elsewhere.
        for n in 0..4 {
            ids.push(
                gateway
                    .open(POOL, &key(Protocol::UDP, host(1), 5000 + n, 53))
                    .unwrap(),
            );
        }
        let displaced = gateway.external(ids[3]);
        for id in &ids[..3] {
            gateway.close(*id);
        }
        let again = gateway
            .open(POOL, &key(Protocol::UDP, host(1), 5003, 54))
            .unwrap();
        assert_eq!(gateway.external(again), displaced);
        gateway.check();
    }

    #[test]
    fn ports_are_random() {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let mut gateway = Gateway::new(config(1, (1024, 65_535)));
            let mut port = |n: u8| {
                // A well-known source port can't be kept.
                let id = gateway
                    .open(POOL, &key(protocol, host(n), 500, 500))
                    .unwrap();
                i32::from(gateway.external(id).1)
            };
            let ports: Vec<i32> = (0..200).map(&mut port).collect();
            let near = ports
                .windows(2)
                .filter(|pair| (pair[0] - pair[1]).abs() < 16)
                .count();
            assert!(near < 10, "{near} of 199 are near the one before");
            let quarters: BTreeSet<i32> = ports.iter().map(|port| port / 16_384).collect();
            assert_eq!(quarters.len(), 4);
        }
    }

    #[test]
    fn forwards_apply_from_every_port() {
        let mut config = config(1, (1024, 65_535));
        let other = Addr::v4([10, 0, 0, 81]);
        config.forwards.push(Forward {
            port: DMZ,
            internal: (other, 81),
            ..config.forwards[0].clone()
        });
        let gateway = Gateway::new(config);
        gateway.check();
        let to = |protocol, dst, dst_port| FlowKey {
            dst,
            ..key(protocol, REMOTE, 5000, dst_port)
        };
        let find = |port, key: &FlowKey| {
            let found = gateway.nat.destination(port, key)?;
            assert_eq!(gateway.book.get(found.translated), Some(found.addr));
            Some((found.addr, found.port, found.forward))
        };
        let tcp = to(Protocol::TCP, WAN_VIP, FORWARDED);
        assert_eq!(find(Some(WAN), &tcp), Some((SERVER, 80, 0)));
        assert_eq!(find(Some(DMZ), &tcp), Some((other, 81, 2)));
        assert_eq!(find(Some(LAN), &tcp), Some((SERVER, 80, 0)));
        assert_eq!(find(None, &tcp), Some((SERVER, 80, 0)));
        assert_eq!(
            find(Some(WAN), &to(Protocol::UDP, WAN_VIP, FORWARDED)),
            Some((SERVER, 80, 1))
        );
        assert_eq!(
            find(Some(WAN), &to(Protocol::ICMP, WAN_VIP, FORWARDED)),
            None
        );
        assert_eq!(find(Some(WAN), &to(Protocol::TCP, WAN_VIP, 8081)), None);
        assert_eq!(
            find(Some(WAN), &to(Protocol::TCP, LAN_VIP, FORWARDED)),
            None
        );
    }

    #[test]
    fn a_hairpin_gets_the_address_of_the_port_that_faces_the_server() {
        let gateway = Gateway::new(config(1, (1024, 65_535)));
        assert!(Nat::needs_hairpin_source(LAN, LAN));
        assert!(!Nat::needs_hairpin_source(WAN, LAN));
        let pool = gateway.nat.pool(EGRESS, LAN).unwrap();
        let key = FlowKey {
            dst: SERVER,
            ..key(Protocol::TCP, host(1), 5000, 80)
        };
        let (table, book) = (&gateway.table, &gateway.book);
        let source = gateway
            .nat
            .allocate_source(table, book, pool, &key, 0)
            .unwrap();
        assert_eq!((book.get(source.addr), source.port), (Some(LAN_VIP), 5000));
    }

    #[test]
    fn addresses_move_with_their_group() {
        let gateway = Gateway::new(config(1, (1024, 65_535)));
        assert_eq!(gateway.nat.group(&LAN_VIP), Some(GroupId(1)));
        assert_eq!(gateway.nat.group(&WAN_VIP6), Some(GroupId(3)));
        assert_eq!(
            gateway.nat.group(&Addr::v4([192, 0, 2, 100])),
            Some(GroupId(2))
        );
        assert_eq!(gateway.nat.group(&REMOTE), None);
    }

    #[test]
    fn a_session_of_a_peer_reserves_its_port() {
        let mut gateway = Gateway::new(config(1, (1024, 65_535)));
        let addr = gateway.book.intern(WAN_VIP).unwrap();
        let installed = Source { addr, port: 40_000 };
        let theirs = gateway.install(&key(Protocol::UDP, host(1), 5000, 53), installed);
        let ours = gateway
            .open(EGRESS, &key(Protocol::UDP, host(2), 40_000, 54))
            .unwrap();
        assert_ne!(gateway.external(ours).1, 40_000);
        // Their mapping is ours now.
        let next = gateway
            .open(EGRESS, &key(Protocol::UDP, host(1), 5000, 54))
            .unwrap();
        assert_eq!(gateway.external(next), (WAN_VIP, 40_000));

        // Both were primary and gave the port to different hosts: it is free after the last one.
        let double = gateway.install(&key(Protocol::UDP, host(3), 5000, 55), installed);
        gateway.check();
        gateway.close(theirs);
        gateway.close(next);
        gateway.check();
        let avoided = gateway
            .open(EGRESS, &key(Protocol::UDP, host(4), 40_000, 53))
            .unwrap();
        assert_ne!(gateway.external(avoided).1, 40_000);
        gateway.close(double);
        gateway.check();
        let free = gateway
            .open(EGRESS, &key(Protocol::UDP, host(5), 40_000, 53))
            .unwrap();
        assert_eq!(gateway.external(free).1, 40_000);

        // An address that only the peer has, and a port that is a forward's here.
        let unknown = gateway.book.intern(Addr::v4([203, 0, 113, 9])).unwrap();
        let source = Source {
            addr: unknown,
            port: 7,
        };
        let foreign = gateway.install(&key(Protocol::UDP, host(6), 1, 53), source);
        let source = Source {
            addr,
            port: FORWARDED,
        };
        let forwarded = gateway.install(&key(Protocol::UDP, host(6), 2, 53), source);
        gateway.check();
        gateway.close(foreign);
        gateway.close(forwarded);
        gateway.check();
        let id = gateway
            .open(EGRESS, &key(Protocol::UDP, host(7), FORWARDED, 53))
            .unwrap();
        assert_ne!(gateway.external(id).1, FORWARDED);
    }

    #[test]
    fn a_new_configuration_takes_over_the_mappings() {
        let mut gateway = Gateway::new(config(2, (1024, 1033)));
        for n in 0..30 {
            let _ = gateway.open(
                POOL,
                &key(
                    Protocol::UDP,
                    host(n % 5),
                    u16::from(n % 7),
                    53 + u16::from(n),
                ),
            );
        }
        let before = gateway.nat.mappings();
        gateway.reconfigure(config(3, (1024, 1030)));
        let ids: Vec<_> = gateway.table.iter().map(|(id, _)| id).collect();
        gateway.check();
        assert_eq!(gateway.nat.mappings(), before);
        for id in ids {
            gateway.close(id);
        }
        gateway.check();
    }

    #[derive(Clone, Debug)]
    enum Op {
        Open {
            protocol: Protocol,
            host: u8,
            src_port: u16,
            dst_port: u16,
            pool: bool,
        },
        Close(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let protocol = prop_oneof![
            Just(Protocol::TCP),
            Just(Protocol::UDP),
            Just(Protocol::ICMP),
            Just(GRE),
        ];
        let open = (protocol, 0u8..6, 1030u16..1036, 1u16..4, any::<bool>());
        prop_oneof![
            3 => open.prop_map(|(protocol, host, src_port, dst_port, pool)| Op::Open {
                protocol, host, src_port, dst_port, pool
            }),
            2 => any::<usize>().prop_map(Op::Close),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn no_two_sessions_share_a_tuple_and_mappings_hold(ops in prop::collection::vec(op(), 1..200)) {
            let mut config = config(2, (1030, 1034));
            config.forwards[1].external = (Addr::v4([192, 0, 2, 100]), 1031);
            let mut gateway = Gateway::new(config);
            let mut live: Vec<SessionId> = Vec::new();
            for (step, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Open { protocol, host: n, src_port, dst_port, pool } => {
                        let (src_port, dst_port) =
                            if protocol.has_ports() { (src_port, dst_port) } else { (0, 0) };
                        let key = key(protocol, host(n), src_port, dst_port);
                        if gateway.table.contains_key(&key, &gateway.book) {
                            continue;
                        }
                        // `install` panics if the table sees a conflict.
                        let nat = if pool { POOL } else { EGRESS };
                        live.extend(gateway.open(nat, &key));
                    }
                    Op::Close(_) if live.is_empty() => {}
                    Op::Close(at) => gateway.close(live.swap_remove(at % live.len())),
                }
                // It checks each port of each pool.
                if step.is_multiple_of(10) {
                    gateway.nat.check_invariants(&gateway.table);
                }
            }
            gateway.check();
            // One external port for each internal endpoint and pool, and the other way round.
            let mut inside = BTreeMap::new();
            let mut outside = BTreeMap::new();
            for id in &live {
                let session = gateway.table.get(*id).unwrap();
                if !is_mapped(session.protocol) {
                    continue;
                }
                let protocol = session.protocol;
                let internal = (session.src, session.src_port);
                let external = gateway.external(*id);
                let pool = external.0 == WAN_VIP;
                let known = *inside.entry((protocol, internal, pool)).or_insert(external);
                prop_assert_eq!(known, external);
                let known = *outside.entry((protocol, external)).or_insert(internal);
                prop_assert_eq!(known, internal);
                prop_assert!((protocol, external) != (Protocol::UDP, (Addr::v4([192, 0, 2, 100]), 1031)));
            }
            for id in live {
                gateway.close(id);
            }
            gateway.check();
            prop_assert_eq!(gateway.nat.mappings(), 0);
        }

        #[test]
        fn ports_in_use_stay_in_use_over_new_configurations(
            ops in prop::collection::vec((op(), prop::option::weighted(0.1, 0usize..4)), 1..200),
        ) {
            let mut gateway = Gateway::new(config(2, (1030, 1034)));
            let mut live: Vec<SessionId> = Vec::new();
            for (op, change) in ops {
                match op {
                    Op::Open { protocol, host: n, src_port, dst_port, pool } => {
                        let key = key(protocol, host(n), src_port, dst_port);
                        let has_pool = !gateway.config.nat_pools.is_empty();
                        if protocol.has_ports() && !gateway.table.contains_key(&key, &gateway.book) {
                            live.extend(gateway.open(if pool && has_pool { POOL } else { EGRESS }, &key));
                        }
                    }
                    Op::Close(_) if live.is_empty() => {}
                    Op::Close(at) => gateway.close(live.swap_remove(at % live.len())),
                }
                if let Some(number) = change {
                    gateway.reconfigure(match number {
                        0 => config(2, (1030, 1034)),
                        1 => config(1, (1032, 1040)),
                        2 => Config { forwards: Vec::new(), ..config(3, (1030, 1031)) },
                        _ => Config { nat_pools: Vec::new(), ..config(0, (1, 1)) },
                    });
                }
                gateway.nat.check_invariants(&gateway.table);
            }
            gateway.check();
            for id in live {
                gateway.close(id);
            }
            gateway.check();
            prop_assert_eq!(gateway.nat.mappings(), 0);
            prop_assert!(gateway.nat.strangers.is_empty());
        }
    }

    #[test]
    fn mapping_on_an_address_that_comes_back_is_found_again() {
        let mut gateway = Gateway::new(config(4, (2000, 2999)));
        let flow = |dst_port| key(Protocol::UDP, host(1), 700, dst_port);
        let first = gateway.open(POOL, &flow(53)).unwrap();
        let before = gateway.external(first);
        gateway.reconfigure(Config {
            nat_pools: Vec::new(),
            ..config(0, (1, 1))
        });
        assert!(gateway.nat.group(&before.0).is_none(), "it is ours no more");
        gateway.reconfigure(config(4, (2000, 2999)));
        let second = gateway.open(POOL, &flow(54)).unwrap();
        assert_eq!(gateway.external(second), before, "another mapping");
        gateway.check();
    }
}
