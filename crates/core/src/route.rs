//! A mirror of the kernel's main routing table: destination → port, next hop, MTU.
//!
//! The kernel routes the packets; the mirror only tells the core beforehand where they will leave,
//! so that it can decide policies and translation. It is consulted once per session, not per
//! packet: a session keeps its port, and all sessions are checked again when [`Fib::generation`]
//! changes.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use prefix_trie::PrefixMap;

use crate::event::{PortHop, Route, RouteChange, RouteTarget};
use crate::flow::{Addr, Family};

/// Routes kept per prefix. More than a handful of metrics for one prefix is a misconfiguration;
/// then the worst are dropped.
const MAX_ROUTES_PER_PREFIX: usize = 8;

/// Single routes that are listed as exceptions from those with several next hops, for a family.
/// Each is a route in a table of the kernel, for each port.
const MOST_EXCEPTIONS: usize = 16_384;

/// The rules and tables that the kernel needs to send each packet out of the port that the gateway
/// has chosen among the next hops of a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// The routes with several next hops.
    pub routes: Vec<(IpNet, Vec<PortHop>)>,
    /// Longer prefixes of other routes within those, except within a default route.
    pub exceptions: Vec<IpNet>,
    /// Routes left out, because they have too many exceptions.
    pub left_out: Vec<IpNet>,
}

/// The result of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Where the packet goes.
    pub target: RouteTarget,
    /// The MTU that the route itself sets; without one, the link's MTU applies.
    pub mtu: Option<u32>,
    /// See [`Route::is_special`].
    pub is_special: bool,
    /// Length of the prefix that matched: 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub prefix_len: u8,
}

/// Prefixes that one call of [`Fib::sweep`] checks: some 100 µs.
const SWEPT_AT_A_TIME: usize = 1024;

/// The mirror of the kernel's main table, both families. A table with 10⁶ routes fits.
#[derive(Default)]
pub struct Fib {
    v4: PrefixMap<(u32, u8), Entry>,
    v6: PrefixMap<Prefix, Entry>,
    /// All prefixes, each at [`Entry::place`].
    prefixes: Vec<(Family, Prefix)>,
    /// The shortest MTU that a route of IPv4 has set. It stays when the route goes.
    shortest_mtu: Option<u32>,
    /// By family: prefixes that have a route with several next hops.
    spread: [BTreeSet<Prefix>; 2],
    generation: u32,
    /// Counts the dumps that have begun. Unless one is in progress, all routes are from the last
    /// one, except those that the sweep has not reached.
    dump: u16,
    /// How many of the first `prefixes` are still to be swept.
    unswept: usize,
    /// The sweep has removed a route.
    has_swept: bool,
    recent: Recent,
}

/// Destinations that were recently looked up, and their routes: hosts and servers return. Walking
/// the trie takes 300 to 800 instructions, this 40.
struct Recent {
    /// Changes with every route. Results from before are not used again.
    epoch: u64,
    places: Box<[Cell<Option<Found>>]>,
}

#[derive(Clone, Copy)]
struct Found {
    epoch: u64,
    destination: Addr,
    hop: Hop,
}

impl Recent {
    /// Of two destinations with the same place, the later one stays. Some 20 KiB in total.
    #[inline]
    fn place(&self, destination: &Addr) -> Option<&Cell<Option<Found>>> {
        let bits = u128::from_ne_bytes(*destination.octets());
        let mixed = ((bits >> 64) as u64 ^ bits as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.places.get((mixed >> 56) as usize)
    }

    #[inline]
    fn get(&self, destination: &Addr) -> Option<Hop> {
        let found = self.place(destination)?.get()?;
        let holds = found.epoch == self.epoch && found.destination == *destination;
        holds.then_some(found.hop)
    }

    fn put(&self, destination: &Addr, hop: Hop) {
        let found = Found {
            epoch: self.epoch,
            destination: *destination,
            hop,
        };
        if let Some(place) = self.place(destination) {
            place.set(Some(found));
        }
    }
}

impl Default for Recent {
    fn default() -> Recent {
        Recent {
            epoch: 0,
            places: vec![Cell::new(None); 256].into(),
        }
    }
}

impl Fib {
    /// An empty mirror: nothing has a route.
    pub fn new() -> Fib {
        Fib::default()
    }

    /// Follows a change of the kernel's table.
    ///
    /// An added route replaces one with the same destination and metric. A route is removed only if
    /// destination, metric and target all match, so that a late notification about a replaced route
    /// does no harm. During a dump the old routes stay valid, so that there is always a route.
    /// Those that it has not confirmed are removed at its end, by [`Fib::sweep`] if there are many
    /// prefixes.
    pub fn apply(&mut self, change: RouteChange) {
        let changed = match change {
            RouteChange::BeginDump => {
                self.dump = self.dump.wrapping_add(1);
                self.unswept = 0;
                std::mem::take(&mut self.has_swept)
            }
            RouteChange::EndDump => {
                self.unswept = self.prefixes.len();
                return self.sweep();
            }
            RouteChange::Add(route) => self.add(&route),
            RouteChange::Remove(route) => self.remove(&route),
        };
        if changed {
            self.has_changed();
        }
    }

    fn has_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.recent.epoch += 1;
    }

    /// The route to `destination`: the longest prefix, then the lowest metric.
    pub fn lookup(&self, destination: &Addr) -> Option<Hop> {
        Some(self.lookup_all(destination)?.0)
    }

    /// The same, and its next hops if it has several.
    pub fn lookup_all(&self, destination: &Addr) -> Option<(Hop, &[PortHop])> {
        if let Some(hop) = self.recent.get(destination) {
            return Some((hop, &[]));
        }
        let (hop, hops) = self.walk(destination)?;
        if hops.is_empty() {
            self.recent.put(destination, hop);
        }
        Some((hop, hops))
    }

    fn walk(&self, destination: &Addr) -> Option<(Hop, &[PortHop])> {
        let (bits, len) = host_prefix(destination);
        let (prefix_len, entry) = match destination.family() {
            Family::V4 => {
                let ((_, len), entry) = self.v4.get_lpm(&v4((bits, len)))?;
                (len, entry)
            }
            Family::V6 => {
                let ((_, len), entry) = self.v6.get_lpm(&(bits, len))?;
                (len, entry)
            }
        };
        let best = entry.candidates.first()?;
        let hop = Hop {
            is_special: best.is_special,
            target: best.target,
            mtu: best.mtu,
            prefix_len,
        };
        Some((hop, best.hops()))
    }

    /// Whether a route of `family` has next hops on several links.
    pub fn is_spread(&self, family: Family) -> bool {
        !self.spread[family as usize].is_empty()
    }

    /// The routes of `family` with several next hops, and the exceptions from them.
    pub fn spread(&self, family: Family) -> Spread {
        let hops_of = |prefix: &Prefix| self.at(family, *prefix)?.first().map(Candidate::hops);
        let is_spread = |prefix: &Prefix| hops_of(prefix).is_some_and(|hops| !hops.is_empty());
        let mut spread = Spread::default();
        let mut outer: Option<Prefix> = None;
        // In the order of networks: a prefix comes before those within it.
        for prefix in self.spread[family as usize].iter() {
            let hops = hops_of(prefix).unwrap_or_default();
            if hops.is_empty() {
                continue;
            }
            let is_within = prefix.1 == 0 || outer.is_some_and(|outer| contains(&outer, prefix));
            if !is_within {
                let others = self.within(family, *prefix).filter(|it| !is_spread(it));
                let room = MOST_EXCEPTIONS - spread.exceptions.len();
                let others: Vec<IpNet> = others
                    .take(room + 1)
                    .map(|inner| network(family, &inner))
                    .collect();
                if others.len() > room {
                    spread.left_out.push(network(family, prefix));
                    continue;
                }
                spread.exceptions.extend(others);
                outer = Some(*prefix);
            }
            spread.routes.push((network(family, prefix), hops.to_vec()));
        }
        spread
    }

    /// Differs from an earlier value if any route has changed in between. It wraps around.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The number of prefixes that have a route.
    pub fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// Whether there is no route at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`Fib::sweep`] has work to do.
    pub fn is_sweeping(&self) -> bool {
        self.unswept > 0
    }

    /// Removes some of the routes that the last dump has not confirmed.
    pub fn sweep(&mut self) {
        for _ in 0..SWEPT_AT_A_TIME {
            self.unswept = self.unswept.min(self.prefixes.len());
            let Some(place) = self.unswept.checked_sub(1) else {
                break;
            };
            // From the end: the place of a removed one is filled with one that was swept.
            self.unswept = place;
            let (family, prefix) = self.prefixes[place];
            let dump = self.dump;
            self.has_swept |= self.retain(family, prefix, |candidate| candidate.dump == dump);
        }
        self.recent.epoch += 1;
        if self.unswept == 0 && std::mem::take(&mut self.has_swept) {
            self.has_changed();
        }
    }

    fn note_spread(&mut self, family: Family, prefix: Prefix) {
        let candidates = self.at(family, prefix);
        let has_several = candidates.is_some_and(|all| all.iter().any(|it| it.hops.is_some()));
        match has_several {
            true => self.spread[family as usize].insert(prefix),
            false => self.spread[family as usize].remove(&prefix),
        };
    }

    /// The shortest MTU that a route of IPv4 has set so far; none if none has.
    pub fn shortest_mtu(&self) -> Option<u32> {
        self.shortest_mtu
    }

    fn add(&mut self, route: &Route) -> bool {
        let (family, prefix) = net_prefix(&route.destination);
        if let Some(mtu) = route.mtu.filter(|_| family == Family::V4) {
            self.shortest_mtu = Some(self.shortest_mtu.map_or(mtu, |known| known.min(mtu)));
        }
        let changed = self.add_candidate(route, family, prefix);
        if changed && (!route.hops.is_empty() || self.is_spread(family)) {
            self.note_spread(family, prefix);
        }
        changed
    }

    fn add_candidate(&mut self, route: &Route, family: Family, prefix: Prefix) -> bool {
        let hops = (!route.hops.is_empty()).then(|| Arc::new(route.hops.clone()));
        let new = Candidate {
            metric: route.metric,
            mtu: route.mtu,
            target: route.target,
            is_special: route.is_special,
            hops,
            dump: self.dump,
        };
        let place = self.prefixes.len();
        let Some(Entry { candidates, .. }) = self.entry(family, prefix) else {
            // `vec!` allocates for exactly one, which is what nearly every prefix has.
            let candidates = vec![new];
            let entry = Entry { candidates, place };
            match family {
                Family::V4 => self.v4.insert(v4(prefix), entry),
                Family::V6 => self.v6.insert(prefix, entry),
            };
            self.prefixes.push((family, prefix));
            return true;
        };
        if let Some(old) = candidates.iter_mut().find(|c| c.metric == new.metric) {
            let changed = (old.target, old.mtu, &old.hops) != (new.target, new.mtu, &new.hops);
            *old = new;
            return changed;
        }
        if candidates.len() >= MAX_ROUTES_PER_PREFIX {
            candidates.retain(|candidate| candidate.dump == new.dump);
        }
        let at = candidates.partition_point(|candidate| candidate.metric < new.metric);
        if at >= MAX_ROUTES_PER_PREFIX {
            return false;
        }
        candidates.truncate(MAX_ROUTES_PER_PREFIX - 1);
        candidates.insert(at, new);
        true
    }

    fn remove(&mut self, route: &Route) -> bool {
        let (family, prefix) = net_prefix(&route.destination);
        self.retain(family, prefix, |c| {
            c.metric != route.metric || c.target != route.target
        })
    }

    /// Removes routes of a prefix; returns whether there were any.
    fn retain(
        &mut self,
        family: Family,
        prefix: Prefix,
        keep: impl Fn(&Candidate) -> bool,
    ) -> bool {
        let Some(Entry { candidates, place }) = self.entry(family, prefix) else {
            return false;
        };
        let (before, place) = (candidates.len(), *place);
        candidates.retain(keep);
        let after = candidates.len();
        if after == 0 {
            match family {
                Family::V4 => self.v4.remove(&v4(prefix)),
                Family::V6 => self.v6.remove(&prefix),
            };
            self.prefixes.swap_remove(place);
            if let Some((family, moved)) = self.prefixes.get(place).copied()
                && let Some(entry) = self.entry(family, moved)
            {
                entry.place = place;
            }
        }
        if self.is_spread(family) {
            self.note_spread(family, prefix);
        }
        after != before
    }

    /// The routes of a prefix.
    fn at(&self, family: Family, prefix: Prefix) -> Option<&[Candidate]> {
        let entry = match family {
            Family::V4 => self.v4.get(&v4(prefix)),
            Family::V6 => self.v6.get(&prefix),
        };
        Some(&entry?.candidates)
    }

    /// A prefix, if it has a route, and those within it.
    fn within(&self, family: Family, prefix: Prefix) -> Box<dyn Iterator<Item = Prefix> + '_> {
        match family {
            Family::V4 => {
                let inner = self.v4.children(&v4(prefix));
                Box::new(inner.map(|((bits, len), _)| (u128::from(bits) << 96, len)))
            }
            Family::V6 => Box::new(self.v6.children(&prefix).map(|(inner, _)| inner)),
        }
    }

    fn entry(&mut self, family: Family, prefix: Prefix) -> Option<&mut Entry> {
        match family {
            Family::V4 => self.v4.get_mut(&v4(prefix)),
            Family::V6 => self.v6.get_mut(&prefix),
        }
    }
}

/// The bits of a prefix, from the top of the integer, and their number.
type Prefix = (u128, u8);

/// The same of an IPv4 prefix in as many bits as it needs, which makes a lookup faster.
fn v4((bits, len): Prefix) -> (u32, u8) {
    ((bits >> 96) as u32, len)
}

/// The routes of a prefix.
struct Entry {
    /// Sorted by metric, never empty.
    candidates: Vec<Candidate>,
    /// Where the prefix is listed.
    place: usize,
}

/// A route of some prefix.
#[derive(Clone)]
struct Candidate {
    metric: u32,
    mtu: Option<u32>,
    target: RouteTarget,
    is_special: bool,
    /// Its next hops, if there are several. A pointer: nearly no route has any.
    hops: Option<Arc<Vec<PortHop>>>,
    /// The last dump in or since which it was added.
    dump: u16,
}

impl Candidate {
    fn hops(&self) -> &[PortHop] {
        self.hops.as_deref().map_or(&[], Vec::as_slice)
    }
}

fn contains(outer: &Prefix, inner: &Prefix) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(outer.1)).unwrap_or(0);
    outer.1 <= inner.1 && inner.0 & mask == outer.0
}

fn network(family: Family, (bits, length): &Prefix) -> IpNet {
    let ip = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from((bits >> 96) as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(*bits)),
    };
    // The length is that of a network of this family.
    IpNet::new(ip, *length).unwrap_or_else(|_| IpNet::from(ip))
}

fn host_prefix(addr: &Addr) -> Prefix {
    match addr.family() {
        Family::V4 => (u128::from(u32::from_be_bytes(addr.last4())) << 96, 32),
        Family::V6 => (u128::from_be_bytes(*addr.octets()), 128),
    }
}

fn net_prefix(net: &IpNet) -> (Family, Prefix) {
    let network = Addr::from(net.network());
    // The family comes from the network itself: an IPv6 network may lie in the mapped range.
    match net {
        IpNet::V4(_) => (Family::V4, (host_prefix(&network).0, net.prefix_len())),
        IpNet::V6(_) => (
            Family::V6,
            (u128::from_be_bytes(*network.octets()), net.prefix_len()),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::PortId;
    use proptest::prelude::*;

    fn route(net: &str, metric: u32, port: u16) -> Route {
        Route {
            is_special: false,
            hops: Vec::new(),
            destination: net.parse().unwrap(),
            metric,
            target: RouteTarget::Port {
                port: PortId(port),
                gateway: None,
            },
            mtu: None,
        }
    }

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn port_of(fib: &Fib, text: &str) -> Option<u16> {
        match fib.lookup(&addr(text))?.target {
            RouteTarget::Port { port, .. } => Some(port.0),
            _ => None,
        }
    }

    #[test]
    fn the_longest_prefix_wins_in_both_families() {
        let mut fib = Fib::new();
        for (net, port) in [
            ("0.0.0.0/0", 0),
            ("10.0.0.0/8", 1),
            ("10.1.0.0/16", 2),
            ("::/0", 3),
            ("fd00::/8", 4),
        ] {
            fib.apply(RouteChange::Add(route(net, 0, port)));
        }
        assert_eq!(port_of(&fib, "192.0.2.1"), Some(0));
        assert_eq!(port_of(&fib, "10.2.0.1"), Some(1));
        assert_eq!(port_of(&fib, "10.1.0.1"), Some(2));
        assert_eq!(port_of(&fib, "2001:db8::1"), Some(3));
        assert_eq!(port_of(&fib, "fd00::1"), Some(4));
        assert_eq!(fib.lookup(&addr("10.1.0.1")).unwrap().prefix_len, 16);
        assert_eq!(fib.lookup(&addr("fd00::1")).unwrap().prefix_len, 8);
    }

    #[test]
    fn a_default_of_one_family_is_none_for_the_other() {
        let mut fib = Fib::new();
        fib.apply(RouteChange::Add(route("::/0", 0, 1)));
        assert_eq!(fib.lookup(&addr("10.0.0.1")), None);
        fib.apply(RouteChange::Remove(route("::/0", 0, 1)));
        fib.apply(RouteChange::Add(route("0.0.0.0/0", 0, 1)));
        assert_eq!(fib.lookup(&addr("2001:db8::1")), None);
    }

    #[test]
    fn the_lowest_metric_wins_and_the_next_one_takes_over() {
        let mut fib = Fib::new();
        fib.apply(RouteChange::Add(route("0.0.0.0/0", 100, 1)));
        fib.apply(RouteChange::Add(route("0.0.0.0/0", 50, 2)));
        fib.apply(RouteChange::Add(route("0.0.0.0/0", 200, 3)));
        assert_eq!(port_of(&fib, "192.0.2.1"), Some(2));
        fib.apply(RouteChange::Remove(route("0.0.0.0/0", 50, 2)));
        assert_eq!(port_of(&fib, "192.0.2.1"), Some(1));
        fib.apply(RouteChange::Remove(route("0.0.0.0/0", 100, 1)));
        fib.apply(RouteChange::Remove(route("0.0.0.0/0", 200, 3)));
        assert_eq!(port_of(&fib, "192.0.2.1"), None);
        assert!(fib.is_empty());
    }

    #[test]
    fn only_effective_changes_raise_the_generation() {
        let mut fib = Fib::new();
        let mut step = |change, expected| {
            let before = fib.generation();
            fib.apply(change);
            assert_eq!(fib.generation() != before, expected);
        };
        step(RouteChange::BeginDump, false);
        step(RouteChange::EndDump, false);
        step(RouteChange::Add(route("10.0.0.0/8", 1, 1)), true);
        step(RouteChange::Add(route("10.0.0.0/8", 1, 1)), false);
        step(RouteChange::Add(route("10.0.0.0/8", 1, 2)), true);
        step(RouteChange::Remove(route("10.0.0.0/8", 1, 1)), false);
        step(RouteChange::Remove(route("10.0.0.0/8", 2, 2)), false);
        step(RouteChange::Remove(route("10.0.0.0/8", 1, 2)), true);
        step(RouteChange::Add(route("10.0.0.0/8", 1, 1)), true);
        step(RouteChange::BeginDump, false);
        step(RouteChange::Add(route("10.0.0.0/8", 1, 1)), false);
        step(RouteChange::EndDump, false);
        step(RouteChange::BeginDump, false);
        step(RouteChange::EndDump, true);
    }

    #[test]
    fn a_dump_leaves_no_gap() {
        let mut fib = Fib::new();
        fib.apply(RouteChange::Add(route("10.1.0.0/16", 1, 1)));
        fib.apply(RouteChange::Add(route("10.2.0.0/16", 1, 2)));
        fib.apply(RouteChange::Add(route("10.2.0.0/16", 9, 9)));
        fib.apply(RouteChange::Add(route("fd00::/8", 1, 3)));
        // An interrupted dump, and another one.
        for change in [
            RouteChange::BeginDump,
            RouteChange::Add(route("10.1.0.0/16", 1, 1)),
            RouteChange::BeginDump,
        ] {
            fib.apply(change);
            assert_eq!(port_of(&fib, "10.1.0.1"), Some(1));
            assert_eq!(port_of(&fib, "10.2.0.1"), Some(2));
            assert_eq!(port_of(&fib, "fd00::1"), Some(3));
        }
        // A change meanwhile counts at once, and stays.
        fib.apply(RouteChange::Add(route("10.3.0.0/16", 1, 4)));
        fib.apply(RouteChange::Remove(route("fd00::/8", 1, 3)));
        assert_eq!(port_of(&fib, "10.3.0.1"), Some(4));
        assert_eq!(port_of(&fib, "fd00::1"), None);
        fib.apply(RouteChange::Add(route("10.2.0.0/16", 9, 9)));
        let before = fib.generation();
        fib.apply(RouteChange::EndDump);
        assert_eq!(fib.generation(), before.wrapping_add(1));
        assert_eq!(port_of(&fib, "10.1.0.1"), None, "it was not dumped again");
        assert_eq!(port_of(&fib, "10.2.0.1"), Some(9), "nor was the better one");
        assert_eq!(port_of(&fib, "10.3.0.1"), Some(4));
        assert_eq!(fib.len(), 2);
    }

    #[test]
    fn routes_of_old_leave_room_for_those_of_the_dump() {
        let mut fib = Fib::new();
        for metric in 0..8 {
            fib.apply(RouteChange::Add(route("0.0.0.0/0", metric, 1)));
        }
        fib.apply(RouteChange::BeginDump);
        fib.apply(RouteChange::Add(route("0.0.0.0/0", 50, 2)));
        fib.apply(RouteChange::EndDump);
        assert_eq!(port_of(&fib, "192.0.2.1"), Some(2));
    }

    #[test]
    fn the_routes_of_a_prefix_are_bounded_and_the_best_stay() {
        let mut fib = Fib::new();
        for metric in (0..100).rev() {
            fib.apply(RouteChange::Add(route("0.0.0.0/0", metric, metric as u16)));
        }
        assert_eq!(
            fib.v4.get(&(0, 0)).unwrap().candidates.len(),
            MAX_ROUTES_PER_PREFIX
        );
        assert_eq!(port_of(&fib, "192.0.2.1"), Some(0));
        let before = fib.generation();
        fib.apply(RouteChange::Add(route("0.0.0.0/0", 99, 1)));
        assert_eq!(fib.generation(), before);
    }

    #[test]
    fn many_routes_that_were_not_dumped_go_in_pieces() {
        let mut fib = Fib::new();
        let many = 4 * SWEPT_AT_A_TIME as u32;
        let net = |number: u32| format!("{}/32", Ipv4Addr::from(number));
        for number in 0..many {
            fib.apply(RouteChange::Add(route(&net(number), 0, 1)));
        }
        fib.apply(RouteChange::BeginDump);
        for number in (0..many).step_by(4) {
            fib.apply(RouteChange::Add(route(&net(number), 0, 1)));
        }
        fib.apply(RouteChange::EndDump);
        let (mut pieces, mut generation) = (1, fib.generation());
        while fib.is_sweeping() {
            // Meanwhile one is added, and a confirmed one is removed.
            fib.apply(RouteChange::Add(route(&net(many + pieces), 0, 2)));
            fib.apply(RouteChange::Remove(route(&net(4 * pieces), 0, 1)));
            generation = generation.wrapping_add(2);
            assert_eq!(fib.generation(), generation, "told once, at the end");
            fib.sweep();
            pieces += 1;
        }
        assert_eq!(fib.generation(), generation.wrapping_add(1));
        assert!(pieces >= 4, "{pieces} pieces");
        for number in 0..many {
            let is_kept = number % 4 == 0 && !(4..4 * pieces).contains(&number);
            let found = port_of(&fib, &Ipv4Addr::from(number).to_string());
            assert_eq!(found, is_kept.then_some(1), "{number}");
        }
        assert_eq!(
            port_of(&fib, &Ipv4Addr::from(many + 1).to_string()),
            Some(2)
        );
        check_places(&fib);
    }

    #[test]
    fn a_route_that_a_piece_of_a_sweep_removes_is_not_remembered() {
        let mut fib = Fib::new();
        let many = 4 * SWEPT_AT_A_TIME as u32;
        let addr = |number: u32| Ipv4Addr::from(number).to_string();
        for number in 0..many {
            fib.apply(RouteChange::Add(route(
                &format!("{}/32", addr(number)),
                0,
                1,
            )));
        }
        fib.apply(RouteChange::BeginDump);
        fib.apply(RouteChange::EndDump);
        loop {
            let left = fib.len() as u32;
            // Only the last destinations are remembered: those that the next piece removes, which
            // are the first to be looked up after it.
            for number in (0..many).rev().chain(0..many) {
                let found = port_of(&fib, &addr(number));
                assert_eq!(found, (number < left).then_some(1), "{number}");
            }
            if !fib.is_sweeping() {
                return;
            }
            fib.sweep();
        }
    }

    #[test]
    fn a_sweep_that_another_dump_cuts_short_is_told_all_the_same() {
        let mut fib = Fib::new();
        let many = 2 * SWEPT_AT_A_TIME as u32;
        let net = |number: u32| format!("{}/32", Ipv4Addr::from(number));
        for number in 0..many {
            fib.apply(RouteChange::Add(route(&net(number), 0, 1)));
        }
        fib.apply(RouteChange::BeginDump);
        let before = fib.generation();
        fib.apply(RouteChange::EndDump);
        assert_eq!(fib.generation(), before);
        fib.apply(RouteChange::BeginDump);
        assert_eq!(fib.generation(), before.wrapping_add(1));
        assert!(!fib.is_sweeping());
    }

    /// Panics if a prefix is not where it is listed.
    fn check_places(fib: &Fib) {
        for (place, (family, prefix)) in fib.prefixes.iter().enumerate() {
            let entry = match family {
                Family::V4 => fib.v4.get(&v4(*prefix)),
                Family::V6 => fib.v6.get(prefix),
            };
            let entry = entry.unwrap();
            assert_eq!((entry.place, entry.candidates.is_empty()), (place, false));
        }
        assert_eq!(fib.prefixes.len(), fib.v4.len() + fib.v6.len());
    }

    proptest! {
        #[test]
        fn a_lookup_agrees_with_a_scan_of_all_routes(
            changes in prop::collection::vec((0u32..16, 0_u8..=6, 0u32..3, 0_u16..3, any::<bool>()), 1..80),
            targets in prop::collection::vec(0u32..64, 16),
        ) {
            // Six bits of prefix, so that prefixes nest and collide.
            let mut fib = Fib::new();
            let mut model: Vec<Route> = Vec::new();
            for (bits, length, metric, port, add) in changes {
                let ip = Ipv4Addr::from(bits << 28);
                let net = ipnet::Ipv4Net::new(ip, length).unwrap().trunc();
                let route = route(&net.to_string(), metric, port);
                if add {
                    model.retain(|r| (r.destination, r.metric) != (route.destination, metric));
                    model.push(route.clone());
                    fib.apply(RouteChange::Add(route));
                } else {
                    model.retain(|r| *r != route);
                    fib.apply(RouteChange::Remove(route));
                }
                // Lookups between the changes are remembered.
                for bits in &targets {
                    let ip = IpAddr::from(Ipv4Addr::from(bits << 26));
                    let expected = model
                        .iter()
                        .filter(|r| r.destination.contains(&ip))
                        .min_by_key(|r| (255 - r.destination.prefix_len(), r.metric))
                        .map(|r| (r.target, r.destination.prefix_len()));
                    let found = fib.lookup(&ip.into()).map(|hop| (hop.target, hop.prefix_len));
                    prop_assert_eq!(found, expected);
                }
            }
            check_places(&fib);
        }
    }
}
