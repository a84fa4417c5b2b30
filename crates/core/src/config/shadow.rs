//! Finds policies that are never reached, because an earlier one matches all their packets.

use std::cell::Cell;
use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::diagnostic::Report;
use super::reader::At;
use super::{Policy, Service};
use crate::flow::{PortId, Protocol};

/// Policies that one is compared with at most: there are configs with tens of thousands, and not
/// every such pair must be found.
const MOST_COMPARED: usize = 1000;

/// Networks and services of two policies that are compared, in the whole file: half a second.
const MOST_WORK: usize = 50_000_000;

/// The policies before the current one, by a condition that another one must meet to be covered.
pub(super) struct Earlier {
    by_destination: BTreeMap<IpNet, Vec<usize>>,
    /// Those for any destination.
    by_source: BTreeMap<IpNet, Vec<usize>>,
    /// Those for any source as well.
    by_protocol: BTreeMap<Protocol, Vec<usize>>,
    for_all: Vec<usize>,
    /// What is left of [`MOST_WORK`].
    left: Cell<usize>,
}

impl Default for Earlier {
    fn default() -> Earlier {
        Earlier {
            by_destination: BTreeMap::new(),
            by_source: BTreeMap::new(),
            by_protocol: BTreeMap::new(),
            for_all: Vec::new(),
            left: Cell::new(MOST_WORK),
        }
    }
}

impl Earlier {
    /// Adds the policy at that place, after those before it.
    pub(super) fn add(&mut self, place: usize, policy: &Policy) {
        if !policy.destination.is_empty() {
            by_network(&mut self.by_destination, &policy.destination, place);
        } else if !policy.source.is_empty() {
            by_network(&mut self.by_source, &policy.source, place);
        } else if policy.service.is_empty() {
            self.for_all.push(place);
        } else {
            for service in &policy.service {
                let list = self.by_protocol.entry(service.protocol).or_default();
                list.push(place);
            }
        }
    }

    /// Warns if an earlier one matches everything that `policy` matches.
    pub(super) fn warn_if_shadowed(
        &self,
        report: &Report,
        policies: &[At<Policy>],
        policy: &At<Policy>,
    ) {
        let covering = |place: &&usize| {
            let other = &policies[**place].value;
            let left = self.left.get().checked_sub(work(other, &policy.value));
            self.left.set(left.unwrap_or(0));
            left.is_some() && covers(other, &policy.value)
        };
        let candidates = self.candidates(&policy.value).take(MOST_COMPARED);
        let Some(by) = candidates.filter(covering).min() else {
            return;
        };
        let message = format!(
            "policy `{}` is never reached: `{}` before it matches all that it matches",
            policy.value.name, policies[*by].value.name
        );
        report.warn(&policy.span, message, "move it up, or remove it");
    }

    fn candidates(&self, policy: &Policy) -> impl Iterator<Item = &usize> {
        let destinations = above(&self.by_destination, &policy.destination);
        let sources = above(&self.by_source, &policy.source);
        let services = policy.service.iter();
        let services = services.filter_map(|service| self.by_protocol.get(&service.protocol));
        let lists = destinations.chain(sources).chain(services).flatten();
        self.for_all.iter().chain(lists)
    }
}

fn by_network(lists: &mut BTreeMap<IpNet, Vec<usize>>, networks: &[IpNet], place: usize) {
    for network in networks {
        lists.entry(network.trunc()).or_default().push(place);
    }
}

/// The lists of the networks that contain the first one; any IPv4 address if there is none.
fn above<'a>(
    lists: &'a BTreeMap<IpNet, Vec<usize>>,
    networks: &[IpNet],
) -> impl Iterator<Item = &'a Vec<usize>> {
    let any = IpNet::V4(Ipv4Net::default());
    let first = networks.first().copied().unwrap_or(any).trunc();
    let above = std::iter::successors(Some(first), IpNet::supernet);
    above.filter_map(|network| lists.get(&network))
}

/// How many comparisons [`covers`] may take.
fn work(a: &Policy, b: &Policy) -> usize {
    let pairs = |a: usize, b: usize| a.saturating_mul(b.max(1));
    1 + pairs(a.source.len(), b.source.len())
        + pairs(a.destination.len(), b.destination.len())
        + pairs(a.service.len(), b.service.len())
}

/// Whether `a` matches everything that `b` matches.
fn covers(a: &Policy, b: &Policy) -> bool {
    let ports = |a: &[PortId], b: &[PortId]| {
        a.is_empty() || !b.is_empty() && b.iter().all(|port| a.contains(port))
    };
    let any = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    let nets = |a: &[IpNet], b: &[IpNet]| {
        let b = if b.is_empty() { &any } else { b };
        a.is_empty() || b.iter().all(|b| a.iter().any(|a| a.contains(b)))
    };
    let services = |a: &[Service], b: &[Service]| {
        a.is_empty() || !b.is_empty() && b.iter().all(|b| a.iter().any(|a| service_covers(a, b)))
    };
    // Without the key, a policy does not match packets that bypass a forward.
    let forwarded = match a.forwarded {
        None => b.forwarded != Some(false),
        some => b.forwarded == some,
    };
    forwarded
        && ports(&a.from, &b.from)
        && ports(&a.to, &b.to)
        && nets(&a.source, &b.source)
        && nets(&a.destination, &b.destination)
        && services(&a.service, &b.service)
}

fn service_covers(a: &Service, b: &Service) -> bool {
    let ports = match (a.ports, b.ports) {
        (None, _) => true,
        (Some((a1, a2)), Some((b1, b2))) => a1 <= b1 && b2 <= a2,
        (Some(_), None) => false,
    };
    a.protocol == b.protocol && ports
}
