//! A group that hosts of a port want: the state of RFC 9776, section 6.2.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{LAST_MEMBER, MEMBERSHIP, ROBUSTNESS, Wanted, query};
use crate::flow::Addr;
use crate::multicast::message::{Query, RecordKind};
use crate::time::Time;

/// A group that somebody wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) host: Option<Addr>,
    /// Somebody wants all sources except the unwanted ones, until then (the group timer).
    pub(super) all_until: Option<Time>,
    /// By source: until when somebody wants it; none if nobody does (the "exclude" list).
    pub(super) sources: BTreeMap<Addr, Option<Time>>,
    /// Hosts of an older version are there until then.
    pub(super) groups_only_until: Time,
    pub(super) join_only_until: Time,
    /// Questions about the group that are left to ask, and when.
    pub(super) asking: Option<(u8, Time)>,
    /// Questions about sources that are left to ask, and when.
    pub(super) asking_sources: Option<(u8, Time)>,
    pub(super) asked: BTreeSet<Addr>,
}

impl Group {
    pub(super) fn wants(&self, source: &Addr) -> bool {
        match self.sources.get(source) {
            Some(until) => until.is_some(),
            None => self.all_until.is_some(),
        }
    }

    pub(super) fn wanted(&self) -> Wanted {
        let excludes = self.all_until.is_some();
        let listed = self.sources.iter();
        let listed = listed.filter(|(_, until)| until.is_none() == excludes);
        Wanted {
            excludes,
            sources: listed.map(|(source, _)| *source).collect(),
        }
    }

    /// The earliest timer.
    pub(super) fn next(&self) -> Option<Time> {
        let asking = [self.asking, self.asking_sources].into_iter().flatten();
        let asking = asking.map(|(_, at)| at);
        let sources = self.sources.values().copied().flatten();
        self.all_until
            .into_iter()
            .chain(asking)
            .chain(sources)
            .min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all_until.is_none() && self.sources.is_empty()
    }

    /// Applies a record (RFC 9776, sections 6.4.1 and 6.4.2).
    pub(super) fn apply(&mut self, now: Time, asks: bool, kind: RecordKind, named: &[Addr]) {
        let fresh = Some(now + MEMBERSHIP);
        let before = self.wanted();
        match kind {
            RecordKind::IsInclude | RecordKind::Allow | RecordKind::ToInclude => {
                named.iter().for_each(|source| {
                    self.sources.insert(*source, fresh);
                });
                if kind == RecordKind::ToInclude {
                    let others = self.requested().filter(|source| !named.contains(source));
                    let others: Vec<Addr> = others.collect();
                    self.ask_sources(now, asks, others);
                    if asks && self.all_until.is_some() {
                        self.ask_group(now);
                    }
                }
            }
            RecordKind::IsExclude | RecordKind::ToExclude => {
                let group_timer = self.all_until;
                // What only some exclude is still wanted; a new one for as long as the answers
                // take, or for good if nobody else excludes anything.
                let new = match (kind, before.excludes) {
                    (_, false) => None,
                    (RecordKind::ToExclude, true) => group_timer,
                    _ => fresh,
                };
                let kept = named.iter().map(|source| {
                    let known = self.sources.get(source).copied();
                    (*source, known.unwrap_or(new))
                });
                self.sources = kept.collect();
                self.all_until = fresh;
                if kind == RecordKind::ToExclude {
                    let requested = self.requested().collect();
                    self.ask_sources(now, asks, requested);
                }
            }
            RecordKind::Block => {
                if before.excludes {
                    for source in named {
                        self.sources.entry(*source).or_insert(self.all_until);
                    }
                }
                let wanted = named
                    .iter()
                    .copied()
                    .filter(|source| self.sources.get(source).is_some_and(Option::is_some));
                let wanted = wanted.collect();
                self.ask_sources(now, asks, wanted);
            }
        }
    }

    /// Sources that somebody wants by name.
    fn requested(&self) -> impl Iterator<Item = Addr> {
        let sources = self.sources.iter();
        sources
            .filter(|(_, until)| until.is_some())
            .map(|(source, _)| *source)
    }

    /// Lowers the timer of the group, and asks who still wants it.
    fn ask_group(&mut self, now: Time) {
        self.lower(now, u32::from(ROBUSTNESS) * LAST_MEMBER);
        self.asking.get_or_insert((ROBUSTNESS, now));
    }

    pub(super) fn lower(&mut self, now: Time, to: Duration) {
        self.all_until = self.all_until.map(|until| until.min(now + to));
    }

    /// The same for sources; only the querier does that.
    fn ask_sources(&mut self, now: Time, asks: bool, sources: Vec<Addr>) {
        if sources.is_empty() || !asks {
            return;
        }
        self.lower_sources(now, &sources, u32::from(ROBUSTNESS) * LAST_MEMBER);
        self.asked.extend(sources);
        self.asking_sources = Some((ROBUSTNESS, now));
    }

    pub(super) fn lower_sources(&mut self, now: Time, sources: &[Addr], to: Duration) {
        for source in sources {
            if let Some(Some(until)) = self.sources.get_mut(source) {
                *until = (*until).min(now + to);
            }
        }
    }

    /// Ends what has run out at `now`.
    pub(super) fn expire(&mut self, now: Time) {
        let ended = |until: &Option<Time>| until.is_some_and(|until| until <= now);
        if ended(&self.all_until) {
            self.all_until = None;
            self.sources.retain(|_, until| until.is_some());
        }
        match self.all_until {
            Some(_) => {
                for until in self.sources.values_mut().filter(|until| ended(until)) {
                    *until = None;
                }
            }
            None => self.sources.retain(|_, until| !ended(until)),
        }
    }

    /// The questions that are due, to `ask`.
    pub(super) fn poll_queries(&mut self, now: Time, group: Addr, mut ask: impl FnMut(Query)) {
        let due = |asking: &mut Option<(u8, Time)>| {
            let (left, at) = (*asking).filter(|(_, at)| *at <= now)?;
            *asking = (left > 1).then_some((left - 1, at.max(now) + LAST_MEMBER));
            Some(())
        };
        if due(&mut self.asking).is_some() {
            let lowered = now + u32::from(ROBUSTNESS) * LAST_MEMBER;
            let mut query = query(Some(group), vec![], LAST_MEMBER);
            query.suppress = self.all_until.is_some_and(|until| until > lowered);
            ask(query);
        }
        if due(&mut self.asking_sources).is_some() {
            let lowered = now + u32::from(ROBUSTNESS) * LAST_MEMBER;
            let open = |source: &Addr| {
                let until = self.sources.get(source).copied().flatten();
                until.is_some_and(|until| until <= lowered)
            };
            self.asked.retain(open);
            if !self.asked.is_empty() {
                let sources = self.asked.iter().copied().collect();
                ask(query(Some(group), sources, LAST_MEMBER));
            }
        }
        if self.asking_sources.is_none() {
            self.asked.clear();
        }
    }
}
