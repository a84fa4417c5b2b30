//! A numbered log of this unit's events, for outside readers.
//!
//! Lasting conditions, such as a port that is down, are logged when they begin and when they end;
//! other events once. The last [`MOST`] are kept, so that a reader who was away learns what it
//! missed.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;

use super::health::Severity;

/// Events that are kept.
pub(super) const MOST: usize = 1024;

/// Dropped packets a second from which on there is an event.
const MANY_DROPS: u64 = 1000;
/// It is over after this long with fewer than half as many.
const CALM: Duration = Duration::from_secs(10);

/// Whether an event marks the beginning or the end of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has no duration.
    Once,
    /// It lasts from now on.
    Begin,
    /// The condition that began with the event of the same [`LoggedEvent::id`] and subject is over.
    End,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedEvent {
    /// Its number: one more than that of the event before.
    pub sequence: u64,
    /// When it was noticed, on the clock of this unit.
    pub at: Time,
    /// Its kind, by a name that never changes.
    pub id: &'static str,
    /// Whether it marks the beginning or the end of a condition.
    pub stage: Stage,
    /// How urgent it is; none if all is as it should be.
    pub severity: Option<Severity>,
    /// The event, in a sentence.
    pub what: String,
    /// Why; may be empty.
    pub why: String,
    /// The group, peer or port concerned.
    pub subject: Subject,
}

/// The subject of an event, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The name of a `[[group]]`; none if it concerns no particular one.
    pub group: Option<String>,
    /// The node name of a peer; none if it concerns no particular one.
    pub peer: Option<String>,
    /// The name of a `[[port]]`; none if it concerns no particular one.
    pub port: Option<String>,
}

/// The last events, and the numbers of those to come.
#[derive(Debug)]
pub struct EventLog {
    ring: VecDeque<LoggedEvent>,
    last: u64,
    run: u64,
}

impl EventLog {
    /// Starts empty. `run` is random: another one each time that the process starts.
    pub(super) fn new(run: u64) -> EventLog {
        EventLog {
            ring: VecDeque::new(),
            last: 0,
            run,
        }
    }

    /// Identifies this process, since each one starts to number again.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// The number of the last event; 0 if there was none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The first event after that number that is still kept.
    pub fn after(&self, sequence: u64) -> Option<&LoggedEvent> {
        let oldest = self.ring.front()?.sequence;
        let skipped = (sequence + 1).saturating_sub(oldest);
        self.ring.get(usize::try_from(skipped).ok()?)
    }

    /// Adds an event, whose number is replaced.
    pub(super) fn push(&mut self, event: LoggedEvent) {
        self.last += 1;
        if self.ring.len() == MOST {
            self.ring.pop_front();
        }
        self.ring.push_back(LoggedEvent {
            sequence: self.last,
            ..event
        });
    }
}

/// Watches the number of dropped packets.
#[derive(Debug, Default)]
pub(super) struct DropAlarm {
    /// The time of the last look, and the number then.
    last: Option<(Time, u64)>,
    /// When there were last many, while the alarm is on.
    many: Option<Time>,
}

impl DropAlarm {
    /// Notes the number of all drops so far. `Some` if many begin or end.
    pub(super) fn look(&mut self, now: Time, total: u64) -> Option<Stage> {
        let (at, before) = self.last.unwrap_or((now, total));
        let passed = now.since(at).as_millis() as u64;
        if passed < 500 && self.last.is_some() {
            return None;
        }
        self.last = Some((now, total));
        let rate = (total - before.min(total)) * 1000 / passed.max(1);
        match self.many {
            None if passed > 0 && rate >= MANY_DROPS => {
                self.many = Some(now);
                Some(Stage::Begin)
            }
            Some(_) if rate >= MANY_DROPS / 2 => {
                self.many = Some(now);
                None
            }
            Some(many) if now.since(many) >= CALM => {
                self.many = None;
                Some(Stage::End)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64) -> LoggedEvent {
        LoggedEvent {
            sequence: 0,
            at: Time::from_nanos(at),
            id: "role",
            stage: Stage::Once,
            severity: None,
            what: format!("event {at}"),
            why: String::new(),
            subject: Subject::default(),
        }
    }

    #[test]
    fn a_reader_goes_on_where_it_was() {
        let mut log = EventLog::new(7);
        assert_eq!(log.after(0), None);
        for at in 0..3 {
            log.push(event(at));
        }
        let sequence = |after| log.after(after).map(|event| event.sequence);
        assert_eq!([0, 1, 2].map(sequence), [Some(1), Some(2), Some(3)]);
        assert_eq!([3, 9].map(sequence), [None, None]);
        for at in 3..5000 {
            log.push(event(at));
        }
        let first = log.after(2).map(|event| event.sequence);
        assert_eq!(first, Some(5000 - MOST as u64 + 1), "the others are gone");
        assert_eq!(log.last(), 5000);
        assert_eq!(log.after(u64::MAX - 1), None);
    }

    #[test]
    fn many_drops_begin_and_end_once() {
        let mut alarm = DropAlarm::default();
        let mut told = Vec::new();
        let mut total = 0;
        for step in 0..200_u64 {
            let rate = match step {
                20..60 => 3000,
                // Not calm yet.
                60..64 => 100,
                64..70 => 800,
                _ => 100,
            };
            total += rate / 2;
            let now = Time::ZERO + Duration::from_millis(step * 500);
            told.extend(alarm.look(now, total).map(|stage| (step, stage)));
        }
        assert_eq!(told, [(20, Stage::Begin), (89, Stage::End)]);
    }
}
