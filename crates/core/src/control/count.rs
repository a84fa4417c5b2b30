//! Counts sessions in pieces, in total or by policy.

use crate::config::Action;
use crate::event::DropReason;
use crate::filter_words::WordError;
use crate::gateway::{Gateway, SessionView};
use crate::time::Time;

use super::listing::PIECE;
use super::protocol::{PolicyAction, PolicyRow, SessionCount, write_line};
use super::seconds;
use super::{Filter, Progress};

/// A count of the sessions that match a filter, in progress.
#[derive(Debug)]
pub struct Count {
    /// The next slot of the table to check.
    cursor: u32,
    filter: Filter,
    count: SessionCount,
}

impl Count {
    pub fn begin(filter: &[String], gateway: &Gateway) -> Result<Count, WordError> {
        Ok(Count {
            cursor: 0,
            filter: Filter::parse(filter, gateway.config())?,
            count: SessionCount::default(),
        })
    }

    pub fn go_on(&mut self, gateway: &Gateway, now: Time, out: &mut String) -> Progress {
        let (sessions, next) = gateway.page(self.cursor, PIECE, now);
        for session in sessions.filter(|session| self.filter.matches(session, gateway)) {
            add(&mut self.count, &session);
        }
        match next {
            Some(next) => {
                self.cursor = next;
                Progress::More
            }
            None => {
                write_line(out, &self.count);
                Progress::Done
            }
        }
    }
}

/// A count of the sessions of each policy, in progress.
#[derive(Debug, Default)]
pub struct Policies {
    cursor: u32,
    /// By policy id.
    counts: Vec<SessionCount>,
    /// Once all are counted: the policy to write next.
    next: Option<usize>,
}

/// Policies written in one piece, some 1 µs each.
const POLICIES: usize = 64;

impl Policies {
    pub fn go_on(&mut self, gateway: &Gateway, now: Time, out: &mut String) -> Progress {
        if let Some(next) = self.next {
            return self.write(next, gateway, now, out);
        }
        let (sessions, next) = gateway.page(self.cursor, PIECE, now);
        for session in sessions {
            let index = usize::from(session.policy.0);
            // A session from a peer may have a policy that this unit does not know.
            if gateway.policy(session.policy).is_some() {
                if index >= self.counts.len() {
                    self.counts.resize(index + 1, SessionCount::default());
                }
                add(&mut self.counts[index], &session);
            }
        }
        match next {
            Some(next) => self.cursor = next,
            None => self.next = Some(0),
        }
        Progress::More
    }

    fn write(&mut self, first: usize, gateway: &Gateway, now: Time, out: &mut String) -> Progress {
        let policies = gateway.config().policies.get(first..).unwrap_or_default();
        for (place, policy) in (first..).zip(policies.iter().take(POLICIES)) {
            let Some((id, usage)) = gateway.policy_usage(place) else {
                continue;
            };
            let count = self.counts.get(usize::from(id.0));
            let count = count.copied().unwrap_or_default();
            let row = PolicyRow {
                name: Some(policy.name.clone()),
                action: action(policy.action),
                hits: usage.hits,
                last_hit_s: usage.last_hit.map(|at| seconds(now.since(at))),
                sessions: count.sessions,
                packets: count.packets + usage.ended_packets,
                bytes: count.bytes + usage.ended_bytes,
            };
            write_line(out, &row);
        }
        if policies.len() > POLICIES {
            self.next = Some(first + POLICIES);
            return Progress::More;
        }
        let row = PolicyRow {
            name: None,
            action: PolicyAction::Drop,
            hits: gateway.counters().dropped(DropReason::NoPolicy),
            last_hit_s: None,
            sessions: 0,
            packets: 0,
            bytes: 0,
        };
        write_line(out, &row);
        Progress::Done
    }
}

pub(super) fn action(action: Action) -> PolicyAction {
    match action {
        Action::Accept => PolicyAction::Accept,
        Action::Drop => PolicyAction::Drop,
        Action::Reject => PolicyAction::Reject,
    }
}

fn add(count: &mut SessionCount, session: &SessionView) {
    count.sessions += 1;
    count.packets += session.packets.iter().sum::<u64>();
    count.bytes += session.bytes.iter().sum::<u64>();
}
