//! The router side of IGMP and MLD on one port: asks who wants what, and remembers the answers.
//!
//! A state machine for both families: RFC 9776, section 6 and RFC 3810, section 7 differ in names
//! only. It sends nothing itself: [`Membership::poll_query`] gives the questions to send.

mod group;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::message::{Message, Query, Received, Record, RecordKind, Version};
use crate::event::DropReason;
use crate::flow::{Addr, Family};
use crate::time::Time;
use group::Group;

/// How many packets in a row may get lost, plus one (RFC 9776, section 8.1).
pub const ROBUSTNESS: u8 = 2;
/// How often a querier asks for everything (section 8.2).
pub const QUERY_INTERVAL: Duration = Duration::from_secs(125);
/// The time that hosts have to answer it (section 8.3).
pub const QUERY_RESPONSE: Duration = Duration::from_secs(10);
/// How long a host that does not answer counts as a member (section 8.4).
pub const MEMBERSHIP: Duration = Duration::from_secs(260);
/// How long another querier counts as present (section 8.5).
const OTHER_QUERIER: Duration = Duration::from_secs(255);
/// The first questions come faster (section 8.6): after a takeover, answers confirm soon what the
/// other unit knew.
const STARTUP_INTERVAL: Duration = Duration::from_secs(10);
const STARTUP_QUERIES: u8 = 3;
/// The time that hosts have to answer those.
const STARTUP_RESPONSE: Duration = Duration::from_secs(5);
/// How long that counts without an answer: as long as the first questions last.
pub const LEASE: Duration = Duration::from_secs(30);
/// After a host leaves, others have this long to say that they stay, twice (section 8.8): a stream
/// that nobody wants ends within a second.
pub const LAST_MEMBER: Duration = Duration::from_millis(400);

/// Groups that the hosts of a port may want, of a family.
pub const MOST_GROUPS: usize = 4096;
/// Sources that they may name, in all groups together.
pub const MOST_SOURCES: usize = 8192;
/// Sources that they may name in a group.
pub const MOST_SOURCES_OF_GROUP: usize = 128;
/// Groups that a host may be the first to want.
pub const MOST_GROUPS_OF_HOST: u32 = 512;
/// Questions that may wait to be sent.
const MOST_QUERIES: usize = 256;
/// How often timers are looked at, at most.
const RESOLUTION: Duration = Duration::from_millis(10);

/// What the hosts of a port want, in one family.
#[derive(Debug)]
pub struct Membership {
    family: Family,
    groups: BTreeMap<Addr, Group>,
    /// By host: of how many groups it was the first to want them.
    hosts: BTreeMap<Addr, u32>,
    /// Sources of all groups.
    sources: usize,
    querier: Option<Querier>,
    queries: VecDeque<Query>,
    /// Groups whose members have changed since somebody asked.
    changed: BTreeSet<Addr>,
    /// No timer runs out before.
    next: Time,
}

/// The part of a unit that asks.
#[derive(Debug)]
struct Querier {
    /// Until then, another router asks.
    other_until: Option<Time>,
    /// When to ask for everything.
    next: Time,
    /// How many fast questions are left.
    startup: u8,
}

/// What is wanted of a group: what peers are told, and routers upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// All sources except `sources`; otherwise `sources` only.
    pub excludes: bool,
    /// Sources in order.
    pub sources: Vec<Addr>,
}

fn query(group: Option<Addr>, sources: Vec<Addr>, max_response: Duration) -> Query {
    Query {
        group,
        sources,
        max_response,
        suppress: false,
        robustness: ROBUSTNESS,
        interval: QUERY_INTERVAL,
    }
}

impl Membership {
    /// Of a port with no known members, which does not ask.
    pub fn new(family: Family) -> Membership {
        Membership {
            family,
            groups: BTreeMap::new(),
            hosts: BTreeMap::new(),
            sources: 0,
            querier: None,
            queries: VecDeque::new(),
            changed: BTreeSet::new(),
            next: Time::ZERO,
        }
    }

    /// This unit is now the router of the port: it asks at once, and what is known counts until the
    /// answers are in.
    pub fn start(&mut self, now: Time) {
        self.querier = Some(Querier {
            other_until: None,
            next: now,
            startup: STARTUP_QUERIES,
        });
        let lease = Some(now + LEASE);
        for group in self.groups.values_mut() {
            group.all_until = group.all_until.and(lease);
            group
                .sources
                .values_mut()
                .for_each(|until| *until = until.and(lease));
        }
        self.next = now;
    }

    /// Another unit is the router of the port: this one keeps what it knows, and asks nothing.
    pub fn stop(&mut self) {
        self.querier = None;
        self.queries.clear();
        for group in self.groups.values_mut() {
            (group.asking, group.asking_sources) = (None, None);
            group.asked.clear();
        }
    }

    /// Whether this unit is the router of the port.
    pub fn is_running(&self) -> bool {
        self.querier.is_some()
    }

    /// Whether it is the one that asks: no other router with a lower address does.
    pub fn is_querier(&self) -> bool {
        self.querier
            .as_ref()
            .is_some_and(|querier| querier.other_until.is_none())
    }

    /// Whether a host of the port wants what `source` sends to `group`.
    pub fn wants(&self, source: &Addr, group: &Addr) -> bool {
        self.groups
            .get(group)
            .is_some_and(|group| group.wants(source))
    }

    /// What is wanted of a group; none if nothing is.
    pub fn wanted(&self, group: &Addr) -> Option<Wanted> {
        self.groups.get(group).map(Group::wanted)
    }

    /// The groups that are wanted, in order.
    pub fn groups(&self) -> impl Iterator<Item = (Addr, Wanted)> {
        self.groups
            .iter()
            .map(|(addr, group)| (*addr, group.wanted()))
    }

    /// How many groups are wanted, and how many sources are named.
    pub fn count(&self) -> (usize, usize) {
        (self.groups.len(), self.sources)
    }

    /// A group whose members have changed, once.
    pub fn poll_changed(&mut self) -> Option<Addr> {
        self.changed.pop_first()
    }

    /// Whether there is a question to send.
    pub fn has_query(&self) -> bool {
        !self.queries.is_empty()
    }

    /// The next question to send.
    pub fn poll_query(&mut self) -> Option<Query> {
        self.queries.pop_front()
    }

    /// Takes a message that came in by the port; `own` is the address that this unit asks from.
    ///
    /// # Errors
    ///
    /// Why it was ignored, at least in part.
    pub fn handle(&mut self, now: Time, own: Addr, received: &Received) -> Result<(), DropReason> {
        if self.querier.is_none() {
            return Ok(());
        }
        match &received.message {
            Message::Query(query) => self.handle_query(now, own, received.from, query),
            Message::Report(records) => {
                let mut result = Ok(());
                for record in records {
                    result = result.and(self.handle_record(now, received, record));
                }
                return result;
            }
        }
        Ok(())
    }

    /// Another router has asked (RFC 9776, section 6.6).
    fn handle_query(&mut self, now: Time, own: Addr, from: Addr, query: &Query) {
        let Some(querier) = &mut self.querier else {
            return;
        };
        // A snooping switch without an address asks from nowhere.
        if from < own && from != Addr::unspecified(self.family) {
            querier.other_until = Some(now + OTHER_QUERIER);
            querier.next = now + OTHER_QUERIER;
        }
        let lowered = query.max_response * u32::from(query.robustness.max(ROBUSTNESS));
        let group = query.group.and_then(|group| self.groups.get_mut(&group));
        if let Some(group) = group.filter(|_| !query.suppress) {
            match query.sources.is_empty() {
                true => group.lower(now, lowered),
                false => group.lower_sources(now, &query.sources, lowered),
            }
            self.next = now;
        }
    }

    fn handle_record(
        &mut self,
        now: Time,
        received: &Received,
        record: &Record,
    ) -> Result<(), DropReason> {
        let addr = record.group;
        let excludes = matches!(record.kind, RecordKind::IsExclude | RecordKind::ToExclude);
        // Groups of the link need no router; without a source nothing can come (RFC 4604, section
        // 2.2.1).
        if !addr.leaves_link() || (excludes && addr.is_source_specific()) {
            return Ok(());
        }
        let mut group = match self.groups.get(&addr) {
            Some(group) => group.clone(),
            None if matches!(record.kind, RecordKind::Block)
                || (!excludes && record.sources.is_empty()) =>
            {
                return Ok(());
            }
            None => self.new_group(received.from)?,
        };
        match received.version {
            Version::JoinOnly => group.join_only_until = now + MEMBERSHIP,
            Version::Groups if excludes => group.groups_only_until = now + MEMBERSHIP,
            _ => {}
        }
        let before = (group.wanted(), group.sources.len());
        let asks = self.is_querier();
        // Hosts of older versions do not answer questions about sources (section 7.3.2).
        match record.kind {
            RecordKind::ToInclude if group.join_only_until > now => return Ok(()),
            RecordKind::Block if group.groups_only_until.max(group.join_only_until) > now => {
                return Ok(());
            }
            RecordKind::ToExclude if group.groups_only_until > now => {
                group.apply(now, asks, record.kind, &[]);
            }
            kind => group.apply(now, asks, kind, &record.sources),
        }
        let sources = self.sources + group.sources.len() - before.1;
        if group.sources.len() > MOST_SOURCES_OF_GROUP || sources > MOST_SOURCES {
            return Err(DropReason::MembershipSources);
        }
        self.sources = sources;
        if before.0 != group.wanted() || !self.groups.contains_key(&addr) {
            self.changed.insert(addr);
        }
        self.next = self.next.min(group.next().unwrap_or(self.next));
        if self.groups.insert(addr, group).is_none() {
            *self.hosts.entry(received.from).or_default() += 1;
        }
        Ok(())
    }

    fn new_group(&self, host: Addr) -> Result<Group, DropReason> {
        if self.groups.len() >= MOST_GROUPS {
            return Err(DropReason::MembershipGroups);
        }
        if self
            .hosts
            .get(&host)
            .is_some_and(|groups| *groups >= MOST_GROUPS_OF_HOST)
        {
            return Err(DropReason::MembershipHost);
        }
        Ok(Group {
            host: Some(host),
            ..Group::default()
        })
    }

    /// Does what is due: ends memberships, asks.
    pub fn handle_timeout(&mut self, now: Time) {
        if now < self.next {
            return;
        }
        let asks = self.is_querier();
        let mut next = self.ask_everything(now);
        let addrs: Vec<Addr> = self.groups.keys().copied().collect();
        for addr in addrs {
            let Some(group) = self.groups.get_mut(&addr) else {
                continue;
            };
            let Some(at) = group.next() else { continue };
            if at > now {
                next = next.min(at);
                continue;
            }
            let (before, sources) = (group.wanted(), group.sources.len());
            group.expire(now);
            let queries = &mut self.queries;
            group.poll_queries(now, addr, |query| {
                if asks && queries.len() < MOST_QUERIES {
                    queries.push_back(query);
                }
            });
            self.sources -= sources - group.sources.len();
            if before != group.wanted() {
                self.changed.insert(addr);
            }
            next = next.min(group.next().unwrap_or(next));
            if group.is_empty() {
                self.remove(&addr);
            }
        }
        self.next = next.max(now + RESOLUTION);
    }

    fn remove(&mut self, addr: &Addr) {
        let Some(group) = self.groups.remove(addr) else {
            return;
        };
        self.sources -= group.sources.len();
        self.changed.insert(*addr);
        if let Some(host) = group.host
            && let Some(groups) = self.hosts.get_mut(&host)
        {
            *groups -= 1;
            if *groups == 0 {
                self.hosts.remove(&host);
            }
        }
    }

    /// Asks for everything if that is due; returns when it is next.
    fn ask_everything(&mut self, now: Time) -> Time {
        let Some(querier) = &mut self.querier else {
            return now + QUERY_INTERVAL;
        };
        querier.other_until = querier.other_until.filter(|until| *until > now);
        if now >= querier.next && querier.other_until.is_none() {
            let (interval, response) = match querier.startup {
                0 => (QUERY_INTERVAL, QUERY_RESPONSE),
                1 => (QUERY_INTERVAL, STARTUP_RESPONSE),
                _ => (STARTUP_INTERVAL, STARTUP_RESPONSE),
            };
            querier.startup = querier.startup.saturating_sub(1);
            querier.next = now + interval;
            self.queries.push_back(query(None, vec![], response));
        }
        querier.next
    }

    /// The time of the next [`Membership::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        (self.querier.is_some() || !self.groups.is_empty()).then_some(self.next)
    }

    /// Takes over what the unit that is the router knows of a group; none if nobody wants it.
    /// It is kept for `ttl`, unless it comes again.
    pub fn install(&mut self, now: Time, addr: Addr, wanted: Option<&Wanted>, ttl: Duration) {
        let until = Some(now + ttl);
        let Some(wanted) = wanted else {
            return self.remove(&addr);
        };
        let is_new = !self.groups.contains_key(&addr);
        let known = self
            .groups
            .get(&addr)
            .map_or(0, |group| group.sources.len());
        let listed = (!wanted.excludes).then_some(until).flatten();
        // A peer may name one twice.
        let named: BTreeMap<Addr, Option<Time>> = wanted
            .sources
            .iter()
            .map(|source| (*source, listed))
            .collect();
        let sources = self.sources - known + named.len();
        let fits = sources <= MOST_SOURCES && named.len() <= MOST_SOURCES_OF_GROUP;
        if !fits || !addr.leaves_link() || (is_new && self.groups.len() >= MOST_GROUPS) {
            return;
        }
        let group = Group {
            host: self.groups.get(&addr).and_then(|group| group.host),
            all_until: wanted.excludes.then_some(until).flatten(),
            sources: named,
            ..Group::default()
        };
        self.sources = sources;
        if self
            .groups
            .insert(addr, group)
            .is_none_or(|before| before.wanted() != *wanted)
        {
            self.changed.insert(addr);
        }
        self.next = Time::ZERO;
    }

    /// Checks the bookkeeping; for tests.
    ///
    /// # Panics
    /// If it is wrong.
    pub fn check_invariants(&self) {
        let sources: usize = self.groups.values().map(|group| group.sources.len()).sum();
        assert_eq!(self.sources, sources, "sources are counted");
        let mut hosts = BTreeMap::new();
        for host in self.groups.values().filter_map(|group| group.host) {
            *hosts.entry(host).or_insert(0) += 1;
        }
        assert_eq!(self.hosts, hosts, "groups are counted by host");
        assert!(self.groups.len() <= MOST_GROUPS && sources <= MOST_SOURCES);
        assert!(self.groups.values().all(|group| !group.is_empty()));
    }
}

#[cfg(test)]
mod tests;
