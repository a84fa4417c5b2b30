//! External addresses and the pools that they form.

use std::collections::BTreeMap;

use super::forwards::Forwards;
use super::mappings::Endpoint;
use super::port_set::{PortSet, next_missing};
use super::range::Range;
use crate::config::{self, Config, Nat};
use crate::flow::{Addr, Family, FlowKey, GroupId, PortId, Protocol};
use crate::session::{AddressBook, KeyedHash, TranslatedAddr};

/// The ports of the pool that every gateway port has.
const IMPLICIT_RANGE: (u16, u16) = (1, 65_535);

/// Hosts are spread over the addresses of a pool under this key, which is not secret: after a
/// takeover, the other unit has to choose the same address for a host (RFC 4787, REQ-2). Whoever
/// knows it can only pick internal addresses that share an external one.
const PAIRING_KEY: [u8; 16] = *b"tandemgw pairing";

const NONE: u32 = u32::MAX;

/// A set of addresses that sources are translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolId(u16);

/// All pools: one for each port, with the first virtual address of each of its groups and families,
/// then the configured ones, then one for each group of a port that has several.
pub(super) struct Pools {
    pools: Vec<Pool>,
    ports: usize,
    /// By port: its groups, in the order of its addresses, and the pool of each. Empty if it has
    /// only one.
    shared: Vec<Vec<(GroupId, PoolId)>>,
    pub(super) externals: Vec<External>,
    /// The external address for each number of an address, or [`NONE`]: read for each session, and
    /// quick to build.
    by_translated: Vec<u32>,
    pairing: KeyedHash,
}

/// The external addresses of a `[[nat-pool]]`, or the own addresses of a port.
pub(super) struct Pool {
    /// Indices of externals, by family.
    addresses: [Vec<usize>; 2],
    /// The ports that may be allocated, first and last.
    range: Range,
    /// How many slots share them; 1 if the group of its addresses is not cut.
    slots: u8,
    /// How far a mapping of any host is at most from the address that its hash selects.
    reach: usize,
}

/// An address that sources are translated to.
pub(super) struct External {
    pub(super) addr: Addr,
    pub(super) translated: TranslatedAddr,
    /// The ports of mappings.
    pub(super) taken: Taken,
    /// The ports of forwards, which no mapping gets.
    forwarded: Taken,
    /// The pools that it is in, and its places in their lists.
    memberships: Vec<(usize, usize)>,
}

/// Ports of an external address that can't be allocated, by protocol.
#[derive(Default)]
pub(super) struct Taken([Option<PortSet>; 3]);

impl Pools {
    pub(super) fn new(config: &Config, book: &mut AddressBook) -> Pools {
        let mut pools = Pools {
            pools: Vec::new(),
            ports: config.ports.len(),
            shared: vec![Vec::new(); config.ports.len()],
            externals: Vec::new(),
            by_translated: Vec::new(),
            pairing: KeyedHash::new(&PAIRING_KEY),
        };
        for port in &config.ports {
            let groups = groups_of(port);
            let addrs = groups.iter().flat_map(|group| first_of(port, *group));
            pools.add(addrs, IMPLICIT_RANGE, book);
        }
        for pool in &config.nat_pools {
            pools.add(pool.addresses.iter().copied(), pool.ports, book);
        }
        for (index, port) in config.ports.iter().enumerate() {
            let groups = groups_of(port);
            for group in groups.iter().filter(|_| groups.len() > 1) {
                let Ok(id) = u16::try_from(pools.pools.len()).map(PoolId) else {
                    continue;
                };
                pools.add(first_of(port, *group), IMPLICIT_RANGE, book);
                pools.shared[index].push((*group, id));
            }
        }
        for pool in &mut pools.pools {
            let first = pool.addresses.iter().flatten().next();
            let group = first.map(|it| config::group_of(&config.ports, pools.externals[*it].addr));
            let group = group.and_then(|it| config.groups.get(usize::from(it.0)));
            let slots = group.map_or(0, |it| it.slots.len());
            pool.slots = u8::try_from(slots.max(1)).unwrap_or(u8::MAX);
        }
        pools
    }

    /// The groups of a port that has several, in the order of its addresses, and the pool of each.
    #[inline]
    pub(super) fn shared(&self, port: PortId) -> &[(GroupId, PoolId)] {
        self.shared.get(port.index()).map_or(&[], Vec::as_slice)
    }

    /// Keeps the ports of forwards from mappings.
    pub(super) fn reserve(&mut self, forwards: &Forwards) {
        for (translated, protocol, range) in forwards.externals() {
            let Some(index) = self.index_of(translated) else {
                continue;
            };
            let forwarded = &mut self.externals[index].forwarded;
            for port in range.first..=range.last {
                forwarded.insert(protocol, port);
            }
        }
    }

    /// Sets the numbers of the addresses in a book, each in the place of its former number.
    pub(super) fn renumber(&mut self, numbers: &[TranslatedAddr]) {
        self.by_translated.clear();
        for (index, external) in (0..).zip(&mut self.externals) {
            external.translated = numbers[usize::from(external.translated.0)];
            let number = usize::from(external.translated.0);
            if self.by_translated.len() <= number {
                self.by_translated.resize(number + 1, NONE);
            }
            self.by_translated[number] = index;
        }
    }

    /// Takes over the ports in use: from `before`, and from addresses that were strangers so far.
    /// Ports in use of addresses that are in no pool any more are put among the `strangers`.
    pub(super) fn inherit(
        &mut self,
        before: &mut Pools,
        strangers: &mut BTreeMap<TranslatedAddr, Taken>,
    ) {
        let Pools {
            pools, externals, ..
        } = before;
        // A pool with the same addresses keeps its hosts where they were.
        let addresses = |pool: &Pool| {
            let lists = pool.addresses.iter().flatten();
            lists.map(|index| externals[*index].addr).collect()
        };
        let reaches: BTreeMap<Vec<Addr>, usize> = pools
            .iter()
            .map(|pool| (addresses(pool), pool.reach))
            .collect();
        let known = std::mem::take(strangers);
        let pooled = externals
            .iter_mut()
            .filter(|external| !external.taken.is_empty())
            .map(|external| (external.translated, std::mem::take(&mut external.taken)));
        for (translated, taken) in pooled.chain(known) {
            match self.index_of(translated) {
                Some(index) => self.externals[index].taken = taken,
                None => {
                    strangers.insert(translated, taken);
                }
            }
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
        let of_group = |all: &Vec<(GroupId, PoolId)>| all.iter().any(|(_, pool)| *pool == id);
        let port = match index < self.ports {
            true => Some(index),
            false => self.shared.iter().position(of_group),
        };
        port.map(PortId::from_index)
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
        let taken = addresses().flat_map(|index| self.externals[*index].ports(protocol));
        let used: usize = taken.map(PortSet::len).sum();
        let used = used as u64;
        (used, addresses().count() as u64 * each)
    }

    /// Whether an address is in a pool.
    pub(super) fn contains(&self, id: PoolId, addr: TranslatedAddr) -> bool {
        let external = self.index_of(addr).map(|index| &self.externals[index]);
        let mut memberships = external.into_iter().flat_map(|it| &it.memberships);
        memberships.any(|(pool, _)| *pool == usize::from(id.0))
    }

    /// The pools that an address is in.
    fn pools_of(&self, translated: TranslatedAddr) -> impl Iterator<Item = &Pool> {
        let external = self
            .index_of(translated)
            .map(|index| &self.externals[index]);
        let memberships = external.into_iter().flat_map(|it| &it.memberships);
        memberships.filter_map(|(pool, _)| self.pools.get(*pool))
    }

    /// The ranges out of which sessions may have got `port` of an address, by the pools that it is
    /// in.
    pub(super) fn ranges_with(
        &self,
        translated: TranslatedAddr,
        port: u16,
    ) -> impl Iterator<Item = Range> {
        let pools = self.pools_of(translated);
        let pools = pools.filter(move |pool| pool.range.contains(port));
        // Where peers lack slots, sessions are in the group itself.
        pools.flat_map(move |pool| {
            let whole = (pool.slots > 1).then(|| pool.range_of(None));
            [Some(pool.range_of(Some(pool.slot_of(port)))), whole]
                .into_iter()
                .flatten()
        })
    }

    /// The slot whose sessions may get `port` of an address.
    pub(super) fn slot_of(&self, translated: TranslatedAddr, port: u16) -> Option<u8> {
        let mut pools = self.pools_of(translated).filter(|pool| pool.slots > 1);
        let pool = pools.find(|pool| pool.range.contains(port))?;
        Some(pool.slot_of(port))
    }

    pub(super) fn index_of(&self, translated: TranslatedAddr) -> Option<usize> {
        let index = self.by_translated.get(usize::from(translated.0));
        index
            .filter(|index| **index != NONE)
            .map(|index| *index as usize)
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
            slots: 1,
            reach: 0,
        };
        for addr in addrs {
            // Fails only beyond 65 534 addresses.
            let Some(translated) = book.intern(addr) else {
                continue;
            };
            let next = self.externals.len();
            let index = self.index_of(translated).unwrap_or(next);
            if index == next {
                let number = usize::from(translated.0);
                if self.by_translated.len() <= number {
                    self.by_translated.resize(number + 1, NONE);
                }
                self.by_translated[number] = next as u32;
                self.externals.push(External {
                    addr,
                    translated,
                    taken: Taken::default(),
                    forwarded: Taken::default(),
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

    /// A number for the endpoint that `key` comes from, the same on all units.
    pub(super) fn preference(&self, key: &FlowKey) -> u64 {
        let hash = self.pairing.endpoint(&key.src, key.src_port, key.protocol);
        u64::from(hash)
    }

    /// Where in a list of `len` addresses the search for `src` starts.
    fn start(&self, src: &Addr, len: usize) -> usize {
        match len {
            0 | 1 => 0,
            _ => self.pairing.bytes(src.octets()) as usize % len,
        }
    }
}

/// The groups of a port's virtual addresses, in the order of these.
fn groups_of(port: &config::Port) -> Vec<GroupId> {
    let mut groups = Vec::new();
    for address in &port.virtual_addresses {
        if !groups.contains(&address.group) {
            groups.push(address.group);
        }
    }
    groups
}

/// The first virtual address of each family that a port has in a group.
fn first_of(port: &config::Port, group: GroupId) -> impl Iterator<Item = Addr> {
    let first = move |family| {
        let own = port.virtual_addresses.iter().filter(|it| it.group == group);
        own.map(|it| it.addr).find(|addr| addr.family() == family)
    };
    Family::ALL.into_iter().filter_map(first)
}

impl Pool {
    /// How many ports all addresses have together for one session, for the family that has more.
    pub(super) fn ports(&self) -> u32 {
        let most = self.addresses.iter().map(Vec::len).max().unwrap_or(0);
        (most as u32).saturating_mul(self.range_of(Some(0)).size())
    }

    /// The ports that sessions of a slot may get.
    pub(super) fn range_of(&self, slot: Option<u8>) -> Range {
        match slot {
            Some(slot) if slot < self.slots && self.slots > 1 => self.range.slice(slot, self.slots),
            _ => self.range,
        }
    }

    fn slot_of(&self, port: u16) -> u8 {
        self.range.slot_of(port, self.slots)
    }

    fn list(&self, family: Family) -> &[usize] {
        &self.addresses[family as usize]
    }
}

impl External {
    /// The ports that no mapping can get.
    fn ports(&self, protocol: Protocol) -> impl Iterator<Item = &PortSet> {
        let all = [&self.taken, &self.forwarded];
        all.into_iter()
            .filter_map(move |taken| taken.ports(protocol))
    }

    /// Whether a mapping or a forward holds a port.
    pub(super) fn is_taken(&self, protocol: Protocol, port: u16) -> bool {
        self.ports(protocol).any(|ports| ports.contains(port))
    }

    /// Whether a forward holds a port.
    pub(super) fn is_forwarded(&self, protocol: Protocol, port: u16) -> bool {
        self.forwarded.contains(protocol, port)
    }

    /// The first port of `first..=last` that is not taken.
    pub(super) fn next_free(&self, protocol: Protocol, first: u16, last: u16) -> Option<u16> {
        match (self.taken.ports(protocol), self.forwarded.ports(protocol)) {
            (Some(taken), Some(forwarded)) => next_missing(&[taken, forwarded], first, last),
            (Some(ports), None) | (None, Some(ports)) => next_missing(&[ports], first, last),
            (None, None) => next_missing(&[], first, last),
        }
    }
}

impl Taken {
    pub(super) fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.ports(protocol)
            .is_some_and(|ports| ports.contains(port))
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
pub fn groups(config: &Config) -> BTreeMap<Addr, GroupId> {
    let mut groups = BTreeMap::new();
    for addr in config.nat_pools.iter().flat_map(|pool| &pool.addresses) {
        groups.insert(*addr, config::group_of(&config.ports, *addr));
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
