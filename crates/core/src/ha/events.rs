//! Recent events, for the operator.

use std::collections::VecDeque;

use crate::in_quotes::InQuotes;
use crate::time::Time;

/// An event that may interest an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionEvent {
    /// When it was noticed, on the clock of this unit.
    pub at: Time,
    /// Whether somebody should look at it.
    pub warn: bool,
    /// The event, in a few words.
    pub what: String,
    /// Why; may be empty.
    pub why: String,
}

/// The last events, oldest first. Each is also logged, at INFO or WARN.
#[derive(Debug, Default)]
pub(super) struct Events {
    ring: VecDeque<ElectionEvent>,
}

/// Events that are kept.
pub(super) const MOST_EVENTS: usize = 64;

impl Events {
    /// Notes an event that is not a problem.
    pub(super) fn info(&mut self, at: Time, what: impl Into<String>, why: impl Into<String>) {
        self.push(ElectionEvent {
            at,
            warn: false,
            what: what.into(),
            why: why.into(),
        });
    }

    /// Notes an event that somebody should look at.
    pub(super) fn warn(&mut self, at: Time, what: impl Into<String>, why: impl Into<String>) {
        self.push(ElectionEvent {
            at,
            warn: true,
            what: what.into(),
            why: why.into(),
        });
    }

    /// Notes how many of the monitored ports are up; fewer are a warning.
    pub(super) fn ports(&mut self, at: Time, up: usize, all: usize, fewer: bool) {
        let what = format!("monitored ports up: {up} of {all}");
        match fewer {
            true => self.warn(at, what, ""),
            false => self.info(at, what, ""),
        }
    }

    /// Notes a change of role, which is logged where it is carried out.
    pub(super) fn role(&mut self, at: Time, what: impl Into<String>, why: impl Into<String>) {
        self.keep(ElectionEvent {
            at,
            warn: false,
            what: what.into(),
            why: why.into(),
        });
    }

    fn push(&mut self, event: ElectionEvent) {
        let level = if event.warn {
            log::Level::Warn
        } else {
            log::Level::Info
        };
        match event.why.as_str() {
            "" => log::log!(level, "cluster event={}", InQuotes(&event.what)),
            why => log::log!(
                level,
                "cluster event={} why={why}",
                InQuotes(&event.what),
                why = InQuotes(&why)
            ),
        }
        self.keep(event);
    }

    fn keep(&mut self, event: ElectionEvent) {
        if self.ring.len() == MOST_EVENTS {
            self.ring.pop_front();
        }
        self.ring.push_back(event);
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &ElectionEvent> {
        self.ring.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_kept() {
        let mut events = Events::default();
        for i in 0..100_u64 {
            events.info(Time::from_nanos(i), format!("event {i}"), "");
        }
        let kept: Vec<u64> = events.iter().map(|event| event.at.as_nanos()).collect();
        assert_eq!(kept, (36..100).collect::<Vec<u64>>());
    }
}
