//! Finds the rules that may match a flow, without checking all of them.
//!
//! A rule is indexed under one of its conditions: its source networks, its destination networks or
//! its services, whichever it shares with the fewest other rules. Rules without a condition are
//! checked always. A lookup merges, in order, the lists that the flow's values select: one for each
//! prefix length in use, one or two for the service. So the cost of a decision grows with the
//! number of similar rules, not with all rules.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::config::{Policy, Service};
use crate::flow::{Addr, FlowKey, Protocol};

use super::bits;

/// Places of rules, in order.
type Places = Vec<u32>;

/// Below this number of rules a scan is as fast.
const WORTHWHILE: usize = 32;

/// The rules by the condition that they are indexed under.
#[derive(Default)]
pub(super) struct Index {
    sources: Networks,
    destinations: Networks,
    services: BTreeMap<(Protocol, Option<u16>), Places>,
    /// Those without a condition.
    always: Places,
}

impl Index {
    /// The index of `policies`; none if there are so few that an index does not pay.
    pub(super) fn new(policies: &[Policy]) -> Option<Index> {
        if policies.len() < WORTHWHILE {
            return None;
        }
        let census = Census::of(policies);
        let mut index = Index::default();
        for (place, policy) in (0..).zip(policies) {
            index.add(place, policy, census.best_for(policy));
        }
        index.sources.compact();
        index.destinations.compact();
        Some(index)
    }

    fn add(&mut self, place: u32, policy: &Policy, condition: Condition) {
        match condition {
            Condition::Source => self.sources.add(place, &policy.source),
            Condition::Destination => self.destinations.add(place, &policy.destination),
            Condition::Service => {
                for service in &policy.service {
                    push(
                        self.services.entry(service_key(service)).or_default(),
                        place,
                    );
                }
            }
            Condition::None => self.always.push(place),
        }
    }

    /// The first place that `matches`, of those that a flow with `key` may match.
    pub(super) fn find(
        &self,
        key: &FlowKey,
        mut matches: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let mut best = u32::MAX;
        let mut look_at = |places: &[u32]| {
            // Rules after the best so far need not be checked.
            let mut before = places.iter().copied().take_while(|place| *place < best);
            if let Some(place) = before.find(|place| matches(*place as usize)) {
                best = place;
            }
        };
        look_at(&self.always);
        for service in [Some(key.dst_port), None] {
            if let Some(places) = self.services.get(&(key.protocol, service)) {
                look_at(places);
            }
        }
        self.destinations.visit(&key.dst, &mut look_at);
        self.sources.visit(&key.src, &mut look_at);
        (best != u32::MAX).then_some(best as usize)
    }
}

/// Rules by a network.
#[derive(Default)]
struct Networks {
    /// The rules by network, for each family and prefix length (of the mapped address) in use.
    lengths: Vec<(Length, BTreeMap<u128, Places>)>,
    growing: BTreeMap<Length, BTreeMap<u128, Places>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Length {
    v4: bool,
    mask: u128,
}

impl Networks {
    fn add(&mut self, place: u32, networks: &[IpNet]) {
        for network in networks {
            let (length, base) = network_key(network);
            let networks = self.growing.entry(length).or_default();
            push(networks.entry(base).or_default(), place);
        }
    }

    fn compact(&mut self) {
        self.lengths = std::mem::take(&mut self.growing).into_iter().collect();
    }

    fn visit(&self, addr: &Addr, look_at: &mut impl FnMut(&[u32])) {
        let (bits, v4) = (bits(addr), addr.is_v4());
        for (length, networks) in self.lengths.iter().filter(|(length, _)| length.v4 == v4) {
            if let Some(places) = networks.get(&(bits & length.mask)) {
                look_at(places);
            }
        }
    }
}

/// The condition that a rule is indexed under.
#[derive(Clone, Copy)]
enum Condition {
    Source,
    Destination,
    Service,
    None,
}

/// How many rules have each network and service.
#[derive(Default)]
struct Census {
    sources: BTreeMap<(Length, u128), u32>,
    destinations: BTreeMap<(Length, u128), u32>,
    services: BTreeMap<(Protocol, Option<u16>), u32>,
}

impl Census {
    fn of(policies: &[Policy]) -> Census {
        let mut census = Census::default();
        for policy in policies {
            for network in &policy.source {
                *census.sources.entry(network_key(network)).or_default() += 1;
            }
            for network in &policy.destination {
                *census.destinations.entry(network_key(network)).or_default() += 1;
            }
            for service in &policy.service {
                *census.services.entry(service_key(service)).or_default() += 1;
            }
        }
        census
    }

    /// The condition of `policy` whose most frequent value is the rarest. An empty list means any
    /// value.
    fn best_for(&self, policy: &Policy) -> Condition {
        let of = |counts: &BTreeMap<(Length, u128), u32>, networks: &[IpNet]| {
            let counts = networks.iter().map(|net| counts.get(&network_key(net)));
            counts.flatten().copied().max()
        };
        let services = policy.service.iter();
        let services = services.filter_map(|service| self.services.get(&service_key(service)));
        let candidates = [
            (
                of(&self.destinations, &policy.destination),
                Condition::Destination,
            ),
            (of(&self.sources, &policy.source), Condition::Source),
            (services.copied().max(), Condition::Service),
        ];
        let counted = candidates
            .into_iter()
            .filter_map(|(count, condition)| Some((count?, condition)));
        let best = counted.min_by_key(|(count, _)| *count);
        best.map_or(Condition::None, |(_, condition)| condition)
    }
}

fn network_key(network: &IpNet) -> (Length, u128) {
    let network = super::Network::new(network);
    let length = Length {
        v4: network.v4,
        mask: network.mask,
    };
    (length, network.base)
}

/// The protocol, and the port if it is a single one.
fn service_key(service: &Service) -> (Protocol, Option<u16>) {
    let single = service.ports.filter(|(first, last)| first == last);
    (service.protocol, single.map(|(port, _)| port))
}

/// Adds a place to a list that does not have it yet.
fn push(places: &mut Places, place: u32) {
    if places.last() != Some(&place) {
        places.push(place);
    }
}
