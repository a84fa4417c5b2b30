//! External addresses and the pools that they form.

use std::collections::BTreeMap;

use super::mappings::Endpoint;
use super::port_set::PortSet;
use super::range::Range;
use crate::config::{Config, Nat};
use crate::flow::{Addr, Family, GroupId, PortId, Protocol};
use crate::session::{AddressBook, KeyedHash, TranslatedAddr};

/// The ports of the pool that every port has.
const IMPLICIT_RANGE: (u16, u16) = (1, 65_535);

/// Hosts are spread over the addresses of a pool under this key, which is not secret: after a
/// takeover, the other unit has to choose the same address for a host (RFC 4787, REQ-2). All that
/// one gains by knowing it is to pick internal addresses that share an external one.
const PAIRING_KEY: [u8; 16] = *b"tandemgw pairing";

/// A set of addresses that sources are translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolId(u16);

/// All pools: one for each port, with its virtual addresses, then the configured ones.
pub(super) struct Pools {
    pools: Vec<Pool>,
    ports: usize,
    pub(super) externals: Vec<External>,
    by_translated: BTreeMap<TranslatedAddr, usize>,
    pairing: KeyedHash,
}

/// The external addresses of a `[[nat-pool]]`, or the own addresses of a port.
pub(super) struct Pool {
    /// Indices of externals, by family.
    addresses: [Vec<usize>; 2],
    /// The ports that may be allocated, first and last. A unit that shares the pool with others
    /// would have a slice of it here.
    pub(super) range: Range,
    /// How far from the address that its hash names a mapping of any host is at most.
    reach: usize,
}

/// An address that sources are translated to.
pub(super) struct External {
    pub(super) addr: Addr,
    pub(super) translated: TranslatedAddr,
    pub(super) taken: Taken,
    /// The pools that it is in, and where in their lists.
    memberships: Vec<(usize, usize)>,
}

/// Ports of an external address that can't be allocated: those of forwards and, for protocols with
/// mappings, those of mappings.
#[derive(Default)]
pub(super) struct Taken([Option<PortSet>; 3]);

impl Pools {
    pub(super) fn new(config: &Config, book: &mut AddressBook) -> Pools {
        let mut pools = Pools {
            pools: Vec::new(),
            ports: config.ports.len(),
            externals: Vec::new(),
            by_translated: BTreeMap::new(),
            pairing: KeyedHash::new(&PAIRING_KEY),
        };
        for port in &config.ports {
            let first = |family| {
                let mut addrs = port.virtual_addresses.iter().map(|address| address.addr);
                addrs.find(|addr| addr.family() == family)
            };
            let addrs = [Family::V4, Family::V6].into_iter().filter_map(first);
            pools.add(addrs, IMPLICIT_RANGE, book);
        }
        for pool in &config.nat_pools {
            pools.add(pool.addresses.iter().copied(), pool.ports, book);
        }
        pools
    }

    /// Takes over what is in use: from `before`, and of addresses that were strangers so far. What is in
    /// use of addresses that are in no pool any more is put among the `strangers`.
    pub(super) fn inherit(
        &mut self,
        before: Pools,
        strangers: &mut BTreeMap<TranslatedAddr, Taken>,
    ) {
        let Pools {
            pools, externals, ..
        } = before;
        // A pool of the same addresses has its hosts where they were.
        let addresses = |pool: &Pool| {
            let lists = pool.addresses.iter().flatten();
            lists.map(|index| externals[*index].addr).collect()
        };
        let reaches: BTreeMap<Vec<Addr>, usize> = pools
            .iter()
            .map(|pool| (addresses(pool), pool.reach))
            .collect();
        for external in externals {
            if !external.taken.is_empty() {
                strangers.insert(external.translated, external.taken);
            }
        }
        for external in &mut self.externals {
            external.taken = strangers.remove(&external.translated).unwrap_or_default();
        }
        for pool in &mut self.pools {
            let mut members = pool.addresses.iter().flatten();
            let known = members.clone().map(|index| self.externals[*index].addr);
            pool.reach = match reaches.get(&known.collect::<Vec<_>>()) {
                Some(reach) => *reach,
                None if members.all(|index| self.externals[*index].taken.is_empty()) => 0,
                None => super::MAX_ADDRESSES - 1,
            };
        }
    }

    pub(super) fn get(&self, id: PoolId) -> Option<&Pool> {
        self.pools.get(usize::from(id.0))
    }

    pub(super) fn id(&self, nat: Nat, egress: PortId) -> Option<PoolId> {
        let index = match nat {
            Nat::Off => return None,
            Nat::Egress => egress.index(),
            Nat::Pool(index) => self.ports + index,
        };
        u16::try_from(index).ok().map(PoolId)
    }

    /// The port whose pool this is; none for a configured one.
    pub(super) fn port_of(&self, id: PoolId) -> Option<PortId> {
        let index = usize::from(id.0);
        (index < self.ports).then(|| PortId::from_index(index))
    }

    pub(super) fn first_address(&self, id: PoolId, family: Family) -> Option<Addr> {
        let first = self.get(id)?.list(family).first()?;
        Some(self.externals.get(*first)?.addr)
    }

    /// The addresses of `pool` for the internal address `src`, the preferred one first.
    pub(super) fn addresses_for<'a>(
        &'a self,
        pool: &'a Pool,
        src: &Addr,
    ) -> impl Iterator<Item = &'a External> {
        let list = pool.list(src.family());
        let start = self.start(src, list.len());
        let (before, after) = list.split_at(start);
        after
            .iter()
            .chain(before)
            .filter_map(|index| self.externals.get(*index))
    }

    /// Those of [`Pools::addresses_for`] on which a mapping of `src` may exist.
    pub(super) fn mapped_addresses_for<'a>(
        &'a self,
        pool: &'a Pool,
        src: &Addr,
    ) -> impl Iterator<Item = &'a External> {
        self.addresses_for(pool, src).take(pool.reach + 1)
    }

    /// Notes that a mapping of an endpoint exists, which may be chosen by another unit.
    pub(super) fn note_mapping(&mut self, Endpoint { src, external, .. }: &Endpoint) {
        let Some(external) = self.index_of(*external) else {
            return;
        };
        let count = self.externals[external].memberships.len();
        for at in 0..count {
            let (pool, position) = self.externals[external].memberships[at];
            let Some(len) = self
                .pools
                .get(pool)
                .map(|pool| pool.list(src.family()).len())
            else {
                continue;
            };
            let start = self.start(src, len);
            if let Some(pool) = self.pools.get_mut(pool)
                && position < len
            {
                let distance = (position + len - start) % len;
                pool.reach = pool.reach.max(distance.min(super::MAX_ADDRESSES - 1));
            }
        }
    }

    /// How many ports for `protocol` are taken on the addresses of a pool, and how many it has.
    pub(super) fn usage(&self, id: PoolId, protocol: Protocol) -> (u64, u64) {
        let Some(pool) = self.get(id) else {
            return (0, 0);
        };
        let each = u64::from(pool.range.size());
        let addresses = || pool.addresses.iter().flatten();
        let taken = addresses().filter_map(|index| self.externals[*index].taken.ports(protocol));
        let used = taken.map(|ports| ports.len() as u64).sum();
        (used, addresses().count() as u64 * each)
    }

    /// Whether an address is in a pool.
    pub(super) fn contains(&self, id: PoolId, addr: TranslatedAddr) -> bool {
        let external = self.index_of(addr).map(|index| &self.externals[index]);
        let mut memberships = external.into_iter().flat_map(|it| &it.memberships);
        memberships.any(|(pool, _)| *pool == usize::from(id.0))
    }

    /// The ports of the pools that an address is in.
    pub(super) fn ranges_of(
        &self,
        translated: TranslatedAddr,
    ) -> impl Iterator<Item = Range> + use<'_> {
        let external = self
            .index_of(translated)
            .map(|index| &self.externals[index]);
        let memberships = external.into_iter().flat_map(|it| &it.memberships);
        memberships.filter_map(|(pool, _)| Some(self.pools.get(*pool)?.range))
    }

    pub(super) fn index_of(&self, translated: TranslatedAddr) -> Option<usize> {
        self.by_translated.get(&translated).copied()
    }

    fn add(
        &mut self,
        addrs: impl Iterator<Item = Addr>,
        range: (u16, u16),
        book: &mut AddressBook,
    ) {
        let mut pool = Pool {
            addresses: [Vec::new(), Vec::new()],
            range: Range::new(range.0, range.1),
            reach: 0,
        };
        for addr in addrs {
            // Fails only beyond 65 534 addresses.
            let Some(translated) = book.intern(addr) else {
                continue;
            };
            let next = self.externals.len();
            let index = *self.by_translated.entry(translated).or_insert(next);
            if index == next {
                self.externals.push(External {
                    addr,
                    translated,
                    taken: Taken::default(),
                    memberships: Vec::new(),
                });
            }
            let list = &mut pool.addresses[addr.family() as usize];
            self.externals[index]
                .memberships
                .push((self.pools.len(), list.len()));
            list.push(index);
        }
        self.pools.push(pool);
    }

    /// Where in a list of `len` addresses the search for `src` starts.
    fn start(&self, src: &Addr, len: usize) -> usize {
        self.pairing.bytes(src.octets()) as usize % len.max(1)
    }
}

impl Pool {
    /// How many ports all addresses have, of the family that has more.
    pub(super) fn ports(&self) -> u32 {
        let most = self.addresses.iter().map(Vec::len).max().unwrap_or(0);
        (most as u32).saturating_mul(self.range.size())
    }

    fn list(&self, family: Family) -> &[usize] {
        &self.addresses[family as usize]
    }
}

impl Taken {
    pub(super) fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.ports(protocol)
            .is_some_and(|ports| ports.contains(port))
    }

    /// The first port of `first..=last` that is not taken.
    pub(super) fn next_free(&self, protocol: Protocol, first: u16, last: u16) -> Option<u16> {
        match self.ports(protocol) {
            Some(ports) => ports.next_missing(first, last),
            None => (first <= last).then_some(first),
        }
    }

    /// Takes a port; returns whether it was free.
    pub(super) fn insert(&mut self, protocol: Protocol, port: u16) -> bool {
        let Some(slot) = slot(protocol) else {
            return true;
        };
        self.0[slot].get_or_insert_with(PortSet::new).insert(port)
    }

    pub(super) fn remove(&mut self, protocol: Protocol, port: u16) {
        if let Some(Some(ports)) = slot(protocol).map(|slot| &mut self.0[slot]) {
            ports.remove(port);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().flatten().all(PortSet::is_empty)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().flatten().map(PortSet::len).sum()
    }

    fn ports(&self, protocol: Protocol) -> Option<&PortSet> {
        self.0.get(slot(protocol)?)?.as_ref()
    }
}

/// The group that each external address moves with.
pub(super) fn groups(config: &Config) -> BTreeMap<Addr, GroupId> {
    let mut groups = BTreeMap::new();
    for addr in config.nat_pools.iter().flat_map(|pool| &pool.addresses) {
        // A pool belongs to the port on whose link its addresses are.
        let ip = std::net::IpAddr::from(*addr);
        let on_link = |port: &&crate::config::Port| {
            port.virtual_addresses
                .iter()
                .any(|address| address.network.contains(&ip))
        };
        let port = config.ports.iter().find(on_link);
        let first = port.and_then(|port| port.virtual_addresses.first());
        groups.insert(*addr, first.map_or(GroupId(0), |address| address.group));
    }
    for address in config.ports.iter().flat_map(|port| &port.virtual_addresses) {
        groups.insert(address.addr, address.group);
    }
    groups
}

/// The place of a protocol in [`Taken`].
fn slot(protocol: Protocol) -> Option<usize> {
    match protocol {
        Protocol::TCP => Some(0),
        Protocol::UDP => Some(1),
        Protocol::ICMP => Some(2),
        _ => None,
    }
}
