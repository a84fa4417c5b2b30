//! The host side of IGMP and MLD on one port: wants from the routers and switches there what the
//! hosts of other ports want, as a proxy does (RFC 4605, section 4.1).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::membership::{ROBUSTNESS, Wanted};
use super::message::{self, Query, RECORD_BYTES, Record, RecordKind, Sender, Version};
use crate::flow::Addr;
use crate::time::Time;

/// Time between a report and its repetition (RFC 9776, section 8.11).
const REPETITION: Duration = Duration::from_secs(1);
/// How long a router of an older version counts as present (section 8.12).
const OLDER_QUERIER: Duration = Duration::from_secs(260);
/// The time in which a question is answered, however long it allows: routers lose no packets, and
/// one host answers for all.
const LONGEST_ANSWER: Duration = Duration::from_millis(500);

/// Time between two answers for all groups: whoever asks more often hears the next one. A question
/// may ask for an answer at once, and each costs as many records as there are groups.
const BETWEEN_ANSWERS: Duration = Duration::from_millis(250);

/// What is wanted upstream of one port, in one family.
#[derive(Debug, Default)]
pub struct Host {
    wanted: BTreeMap<Addr, Wanted>,
    /// Until then, the routers understand older versions only.
    older_until: Option<Time>,
    /// Reports of changes, each with the times that it is still to be sent.
    changes: BTreeMap<Addr, (u8, Time)>,
    /// When to say what is wanted, of all groups or of these.
    answer: Option<Time>,
    /// No answer for all groups is given before.
    next_answer: Time,
    asked: VecDeque<Addr>,
    speaks: bool,
}

/// Groups that a router may ask about before they are answered for; beyond them, all are.
const MOST_ASKED: usize = 256;

impl Host {
    /// This unit now speaks for the hosts, or no longer does: then it says nothing.
    pub fn set_speaking(&mut self, now: Time, speaks: bool) {
        let begins = speaks && !self.speaks;
        self.speaks = speaks;
        self.changes.clear();
        self.answer = None;
        if begins {
            self.changes = self
                .wanted
                .keys()
                .map(|group| (*group, (ROBUSTNESS, now)))
                .collect();
        }
    }

    /// Whether this unit speaks for the hosts.
    pub fn is_speaking(&self) -> bool {
        self.speaks
    }

    /// Whether it speaks of groups: that it wants them, or no longer does.
    pub fn is_leaving(&self) -> bool {
        self.speaks && !(self.wanted.is_empty() && self.changes.is_empty())
    }

    /// What is wanted of `group` from now on; none if nothing is.
    pub fn set(&mut self, now: Time, group: Addr, wanted: Option<Wanted>) {
        if self.wanted.get(&group) == wanted.as_ref() {
            return;
        }
        match wanted {
            Some(wanted) => self.wanted.insert(group, wanted),
            None => self.wanted.remove(&group),
        };
        if self.speaks {
            self.changes.insert(group, (ROBUSTNESS, now));
        }
    }

    /// The groups that are wanted.
    pub fn groups(&self) -> impl Iterator<Item = &Addr> {
        self.wanted.keys()
    }

    /// A router of the link asks.
    pub fn handle_query(&mut self, now: Time, version: Version, query: &Query) {
        if version < Version::Sources {
            self.older_until = Some(now + OLDER_QUERIER);
        }
        let within = query.max_response.min(LONGEST_ANSWER) / 2;
        match query.group {
            Some(group) if self.asked.len() < MOST_ASKED => {
                if self.wanted.contains_key(&group) && !self.asked.contains(&group) {
                    self.asked.push_back(group);
                }
            }
            _ => {
                let at = (now + within).max(self.next_answer);
                self.answer = Some(self.answer.map_or(at, |before| before.min(at)));
            }
        }
    }

    /// The next frame to send from `sender`, if one is due.
    pub fn poll_frames(&mut self, now: Time, sender: Sender) -> Vec<Vec<u8>> {
        self.older_until = self.older_until.filter(|until| *until > now);
        if !self.speaks {
            return Vec::new();
        }
        let mut records = Vec::new();
        while let Some(group) = self.asked.pop_front() {
            records.extend(self.record(&group, false));
        }
        if self.answer.is_some_and(|at| at <= now) {
            self.answer = None;
            self.next_answer = now + BETWEEN_ANSWERS;
            records.extend(
                self.wanted
                    .keys()
                    .filter_map(|group| self.record(group, false)),
            );
        }
        let due = self.changes.iter().filter(|(_, (_, at))| *at <= now);
        let due: Vec<Addr> = due.map(|(group, _)| *group).collect();
        for group in due {
            records.extend(self.record(&group, true));
            if let Some((left, at)) = self.changes.get_mut(&group) {
                (*left, *at) = (*left - 1, now + REPETITION);
                if *left == 0 {
                    self.changes.remove(&group);
                }
            }
        }
        match self.older_until {
            Some(_) => records
                .iter()
                .map(|record| old_frame(record, sender))
                .collect(),
            None => frames(&records, sender),
        }
    }

    /// What is said of a group: as it is, or as a change of everything, which routers take as it is
    /// too and so repairs whatever was lost.
    fn record(&self, group: &Addr, changed: bool) -> Option<Record> {
        let wanted = self.wanted.get(group);
        let excludes = wanted.is_some_and(|wanted| wanted.excludes);
        let kind = match (excludes, changed) {
            (true, true) => RecordKind::ToExclude,
            (true, false) => RecordKind::IsExclude,
            (false, true) => RecordKind::ToInclude,
            (false, false) => RecordKind::IsInclude,
        };
        (changed || wanted.is_some()).then(|| Record {
            kind,
            group: *group,
            sources: wanted.map_or(Vec::new(), |wanted| wanted.sources.clone()),
        })
    }

    /// When [`Host::poll_frames`] has something to send.
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        let changes = self.changes.values().map(|(_, at)| *at);
        let asked = (!self.asked.is_empty()).then_some(now);
        let all = changes.chain(self.answer).chain(asked);
        all.min().filter(|_| self.speaks)
    }
}

fn old_frame(record: &Record, sender: Sender) -> Vec<u8> {
    let excludes = matches!(record.kind, RecordKind::IsExclude | RecordKind::ToExclude);
    let joins = excludes || !record.sources.is_empty();
    message::old_frame(record.group, joins, sender)
}

/// As few reports as they fit into.
fn frames(records: &[Record], sender: Sender) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let (mut start, mut length) = (0, 0);
    for (at, record) in records.iter().enumerate() {
        if length + record.len() > RECORD_BYTES && at > start {
            frames.push(message::report_frame(&records[start..at], sender));
            (start, length) = (at, 0);
        }
        length += record.len();
    }
    if start < records.len() {
        frames.push(message::report_frame(&records[start..], sender));
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::multicast::message::{Message, parse};

    const ALL: Wanted = Wanted {
        excludes: true,
        sources: Vec::new(),
    };
    const SENDER: Sender = Sender {
        mac: [2, 0, 0, 0, 0, 1],
        addr: Addr::v4([192, 0, 2, 1]),
    };

    fn group(number: u16) -> Addr {
        let [high, low] = number.to_be_bytes();
        Addr::v4([239, 1, high, low])
    }

    /// What routers hear until `end`.
    fn heard(host: &mut Host, now: &mut Time, end: Time) -> Vec<(Version, Record)> {
        let mut all = Vec::new();
        while let Some(at) = host.poll_timeout(*now).filter(|at| *at <= end) {
            *now = (*now).max(at);
            for frame in host.poll_frames(*now, SENDER) {
                assert!(frame.len() <= 1514);
                let received = parse(&frame[14..]).unwrap();
                let Message::Report(records) = received.message else {
                    panic!("a host asks nothing");
                };
                all.extend(records.into_iter().map(|record| (received.version, record)));
            }
        }
        *now = end;
        all
    }

    fn general() -> Query {
        Query {
            group: None,
            sources: vec![],
            max_response: Duration::from_secs(10),
            suppress: false,
            robustness: 2,
            interval: Duration::from_secs(125),
        }
    }

    #[test]
    fn joins_and_farewells_are_said_twice_and_questions_answered() {
        let (mut host, mut now) = (Host::default(), Time::from_nanos(1));
        host.set(now, group(1), Some(ALL));
        let second = Duration::from_secs(5);
        let end = now + second;
        assert!(
            heard(&mut host, &mut now, end).is_empty(),
            "another unit speaks"
        );
        host.set_speaking(now, true);
        let end = now + second;
        let joins = heard(&mut host, &mut now, end);
        let join = Record {
            kind: RecordKind::ToExclude,
            group: group(1),
            sources: vec![],
        };
        assert_eq!(joins, vec![(Version::Sources, join); 2]);
        host.handle_query(now, Version::Sources, &general());
        let end = now + Duration::from_millis(300);
        let answers = heard(&mut host, &mut now, end);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].1.kind, RecordKind::IsExclude);
        host.set(now, group(1), None);
        let end = now + second;
        let leaves = heard(&mut host, &mut now, end);
        assert_eq!(leaves.len(), 2);
        assert!(
            leaves
                .iter()
                .all(|(_, it)| it.kind == RecordKind::ToInclude && it.is_empty())
        );
    }

    #[test]
    fn a_router_of_an_older_version_is_answered_in_its_own() {
        let (mut host, mut now) = (Host::default(), Time::from_nanos(1));
        host.set_speaking(now, true);
        host.handle_query(now, Version::Groups, &general());
        host.set(now, group(1), Some(ALL));
        let end = now + Duration::from_secs(5);
        let joins = heard(&mut host, &mut now, end);
        assert!(joins.iter().all(|(version, _)| *version == Version::Groups));
        host.set(now, group(1), None);
        let end = now + Duration::from_secs(5);
        let leaves = heard(&mut host, &mut now, end);
        assert_eq!(leaves[0].1.kind, RecordKind::ToInclude);
        assert_eq!(leaves[0].0, Version::Groups);
    }

    #[test]
    fn many_groups_go_into_several_packets() {
        let (mut host, mut now) = (Host::default(), Time::from_nanos(1));
        for number in 0..1000 {
            host.set(now, group(number), Some(ALL));
        }
        host.set_speaking(now, true);
        let end = now + Duration::from_secs(5);
        assert_eq!(heard(&mut host, &mut now, end).len(), 2000);
    }

    /// Each answer has as many frames as there are groups, if the router is of an old version.
    #[test]
    fn a_flood_of_questions_is_answered_now_and_then() {
        let (mut host, mut now) = (Host::default(), Time::from_nanos(1));
        host.set_speaking(now, true);
        (0..100).for_each(|number| host.set(now, group(number), Some(ALL)));
        let end = now + Duration::from_secs(5);
        heard(&mut host, &mut now, end);
        let urgent = Query {
            max_response: Duration::ZERO,
            ..general()
        };
        let mut answers = 0;
        for _ in 0..2000 {
            host.handle_query(now, Version::Groups, &urgent);
            let end = now + Duration::from_micros(500);
            answers += heard(&mut host, &mut now, end).len();
        }
        let end = now + BETWEEN_ANSWERS;
        answers += heard(&mut host, &mut now, end).len();
        assert_eq!(answers, 500, "at once, and each quarter of a second");
    }
}
