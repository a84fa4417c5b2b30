//! Finds the rules that may match a flow, without checking all of them.
//!
//! A rule is indexed by one of its conditions: the one whose values the fewest other rules accept.
//! A condition is a set of intervals of numbers (addresses, ports of a protocol, ports of the
//! gateway). Those of one kind form a segment tree, in which a value is on the way through a list
//! for each level: 14 with 5000 rules, most of them empty. A list that is long is indexed in turn,
//! by the other conditions. So the cost of a decision hardly grows with the number of rules. The
//! size of the index is bounded: where rules are so many and so wide that it would outgrow that,
//! long lists stay lists.

use std::cell::Cell;

use crate::config::Policy;
use crate::flow::{FlowKey, PortId, Protocol};

use super::{Network, bits};

/// Places of rules, in order.
type Places = Vec<u32>;

/// First and last value.
type Interval = (u128, u128);

/// Kinds of conditions: source, destination, service, `from`, `to`.
const KINDS: usize = 5;

/// The intervals that a rule accepts, by kind; none if it accepts any value.
type Conditions = [Vec<Interval>; KINDS];

/// Below this number of rules a scan is as fast.
const WORTHWHILE: usize = 32;

/// Entries a rule that the indexes of long lists may have in all, of 16 bytes at most.
const ENTRIES_A_RULE: usize = 128;

/// The rules by the condition that they are indexed under.
pub(super) struct Index {
    trees: Vec<(usize, Tree)>,
    /// Those without a condition.
    always: Places,
}

impl Index {
    /// The index of `policies`; none if there are so few that an index does not pay.
    pub(super) fn new(policies: &[Policy]) -> Option<Index> {
        if policies.len() < WORTHWHILE {
            return None;
        }
        let all: Vec<Conditions> = policies.iter().map(conditions).collect();
        let places = (0..).zip(&all).map(|(place, _)| place);
        let room = Cell::new(policies.len() * ENTRIES_A_RULE);
        let places: Places = places.collect();
        Some(Index::of(&places, &all, &[0, 1, 2, 3, 4], &room))
    }

    /// The index of the rules at `places` by conditions of some kinds. `room` is what is left for
    /// the indexes of long lists.
    fn of(places: &[u32], all: &[Conditions], kinds: &[usize], room: &Cell<usize>) -> Index {
        let of_kind = |places: &[u32], kind: usize| {
            let all = places
                .iter()
                .map(|place| (*place, &all[*place as usize][kind]));
            all.collect::<Vec<_>>()
        };
        let counts = kinds
            .iter()
            .map(|kind| (*kind, Counts::of(&of_kind(places, *kind))));
        let counts: Vec<(usize, Counts)> = counts.collect();
        let mut parts: [Places; KINDS] = Default::default();
        let mut always = Places::new();
        for place in places {
            let conditions = &all[*place as usize];
            let set = counts
                .iter()
                .filter(|(kind, _)| !conditions[*kind].is_empty());
            let rarest = set.min_by_key(|(kind, counts)| counts.most(&conditions[*kind]));
            rarest
                .map_or(&mut always, |(kind, _)| &mut parts[*kind])
                .push(*place);
        }
        let used = kinds.iter().filter(|kind| !parts[**kind].is_empty());
        let trees = used.map(|kind| {
            let others: Vec<usize> = kinds.iter().copied().filter(|it| it != kind).collect();
            let tree = Tree::of(&of_kind(&parts[*kind], *kind), room, |list| {
                Index::of(list, all, &others, room)
            });
            (*kind, tree)
        });
        Index {
            trees: trees.collect(),
            always,
        }
    }

    /// How many entries it has, in all of its trees.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        let of_list = |list: &List| match list {
            List::Places(places) => 1 + places.len(),
            List::Index(index) => 1 + index.size(),
        };
        let trees = self.trees.iter().flat_map(|(_, tree)| &tree.lists);
        self.always.len() + trees.map(of_list).sum::<usize>()
    }

    /// The first place that `matches`, of those that a flow with `key` may match which comes in by
    /// `from` and leaves by `to`.
    pub(super) fn find(
        &self,
        from: PortId,
        to: PortId,
        key: &FlowKey,
        mut matches: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let values = [
            bits(&key.src),
            bits(&key.dst),
            service(key.protocol, key.dst_port),
            port(from),
            port(to),
        ];
        let best = self.first_before(u32::MAX, &values, &mut matches);
        (best != u32::MAX).then_some(best as usize)
    }

    /// The first place that matches, or `best` if that comes before it.
    fn first_before(
        &self,
        mut best: u32,
        values: &[u128; KINDS],
        matches: &mut impl FnMut(usize) -> bool,
    ) -> u32 {
        best = first_in(&self.always, best, matches);
        for (kind, tree) in &self.trees {
            for list in tree.lists(values[*kind]) {
                best = match list {
                    List::Places(places) => first_in(places, best, matches),
                    List::Index(index) => index.first_before(best, values, matches),
                };
            }
        }
        best
    }
}

/// The first of some places that matches, or `best`: those after that need not be checked.
fn first_in(places: &[u32], best: u32, matches: &mut impl FnMut(usize) -> bool) -> u32 {
    let mut before = places.iter().copied().take_while(|place| *place < best);
    before
        .find(|place| matches(*place as usize))
        .unwrap_or(best)
}

/// The pieces that the ends of intervals divide all numbers into.
struct Pieces {
    /// The first number of each; before the first piece there is no interval.
    firsts: Vec<u128>,
}

impl Pieces {
    fn of<'a>(intervals: impl Iterator<Item = &'a Interval>) -> Pieces {
        let ends = intervals.flat_map(|(first, last)| [Some(*first), last.checked_add(1)]);
        let mut firsts: Vec<u128> = ends.flatten().collect();
        firsts.sort_unstable();
        firsts.dedup();
        Pieces { firsts }
    }

    fn count(&self) -> usize {
        self.firsts.len()
    }

    /// The pieces of an interval, as nodes of a binary tree: each piece is a leaf, its parent has
    /// half its number.
    fn leaves(&self, (first, last): &Interval) -> (usize, usize) {
        let before = |number: u128| self.firsts.partition_point(|it| *it < number);
        let end = last.checked_add(1).map_or(self.count(), before);
        (self.count() + before(*first), self.count() + end)
    }

    /// The leaf of the piece that a number is in.
    fn leaf(&self, number: u128) -> Option<usize> {
        let after = self.firsts.partition_point(|it| *it <= number);
        after.checked_sub(1).map(|piece| self.count() + piece)
    }
}

/// The fewest nodes whose leaves are those from `start` up to `end`.
fn cover((mut start, mut end): (usize, usize)) -> Vec<usize> {
    let mut nodes = Vec::new();
    while start < end {
        if start % 2 == 1 {
            nodes.push(start);
            start += 1;
        }
        if end % 2 == 1 {
            end -= 1;
            nodes.push(end);
        }
        (start, end) = (start / 2, end / 2);
    }
    nodes
}

/// How many rules accept each number.
struct Counts {
    pieces: Pieces,
    /// By node: the most of its leaves.
    most: Vec<u32>,
}

impl Counts {
    fn of(rules: &[(u32, &Vec<Interval>)]) -> Counts {
        let intervals = || rules.iter().flat_map(|(_, intervals)| *intervals);
        let pieces = Pieces::of(intervals());
        let count = pieces.count();
        let mut changes = vec![0i64; count + 1];
        for interval in intervals() {
            let (start, end) = pieces.leaves(interval);
            changes[start - count] += 1;
            changes[end - count] -= 1;
        }
        let mut most = vec![0; 2 * count];
        let mut sum = 0;
        for (leaf, change) in most[count..].iter_mut().zip(changes) {
            sum += change;
            *leaf = sum as u32;
        }
        for node in (1..count).rev() {
            most[node] = most[2 * node].max(most[2 * node + 1]);
        }
        Counts { pieces, most }
    }

    /// How many rules accept the number in `intervals` that most of them accept.
    fn most(&self, intervals: &[Interval]) -> u32 {
        let nodes = intervals
            .iter()
            .flat_map(|it| cover(self.pieces.leaves(it)));
        nodes.map(|node| self.most[node]).max().unwrap_or(0)
    }
}

/// Rules by intervals of one kind.
struct Tree {
    pieces: Pieces,
    /// By node: the rules that accept all numbers of its leaves, and not all of its parent's.
    lists: Vec<List>,
}

enum List {
    Places(Box<[u32]>),
    /// Where there are many.
    Index(Box<Index>),
}

impl Tree {
    /// `index` makes the index of a long list, as long as there is `room`.
    fn of(
        rules: &[(u32, &Vec<Interval>)],
        room: &Cell<usize>,
        index: impl Fn(&[u32]) -> Index,
    ) -> Tree {
        let pieces = Pieces::of(rules.iter().flat_map(|(_, intervals)| *intervals));
        let mut lists = vec![Places::new(); 2 * pieces.count()];
        for (place, intervals) in rules {
            for node in intervals.iter().flat_map(|it| cover(pieces.leaves(it))) {
                // Intervals of a rule may overlap.
                if lists[node].last() != Some(place) {
                    lists[node].push(*place);
                }
            }
        }
        let entries: usize = lists.iter().map(|list| 1 + list.len()).sum();
        room.set(room.get().saturating_sub(entries));
        let lists = lists.into_iter().map(|places| {
            match places.len() < WORTHWHILE || places.len() > room.get() {
                true => List::Places(places.into()),
                false => List::Index(Box::new(index(&places))),
            }
        });
        Tree {
            pieces,
            lists: lists.collect(),
        }
    }

    /// The lists of the rules that accept a number.
    fn lists(&self, number: u128) -> impl Iterator<Item = &List> {
        let leaf = self.pieces.leaf(number);
        let up = |node: &usize| Some(node / 2).filter(|node| *node > 0);
        std::iter::successors(leaf, up).filter_map(|node| self.lists.get(node))
    }
}

fn conditions(policy: &Policy) -> Conditions {
    let networks = |networks: &[ipnet::IpNet]| {
        let networks = networks.iter().map(Network::new);
        networks.map(|it| (it.base, it.base | !it.mask)).collect()
    };
    let ports = |ports: &[PortId]| ports.iter().map(|it| (port(*it), port(*it))).collect();
    let services = policy.service.iter().map(|it| {
        let (first, last) = it.ports.unwrap_or((0, u16::MAX));
        (service(it.protocol, first), service(it.protocol, last))
    });
    [
        networks(&policy.source),
        networks(&policy.destination),
        services.collect(),
        ports(&policy.from),
        ports(&policy.to),
    ]
}

fn service(protocol: Protocol, port: u16) -> u128 {
    u128::from(protocol.0) << 16 | u128::from(port)
}

fn port(port: PortId) -> u128 {
    u128::from(port.0)
}
