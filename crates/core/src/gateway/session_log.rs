//! Sessions that begin and end on this unit, for outside readers. Nothing is kept while nobody
//! reads: then a new session pays one comparison for it, and otherwise a note of 32 bytes.

use std::collections::{BTreeMap, VecDeque};

use crate::session::SessionId;
use crate::time::{Tick, Time};

use super::{Gateway, SessionView};

/// Changes that are kept. A reader that falls further behind misses the oldest.
pub(super) const MOST: usize = 16_384;

/// A session that has begun or ended.
#[derive(Clone, Debug)]
pub struct SessionChange {
    /// Its number: one more than that of the change before.
    pub sequence: u64,
    /// When.
    pub at: Time,
    /// Why it has ended, in a word of the log; none if it has begun.
    pub end: Option<&'static str>,
    /// The session, in its last state if it has ended. None if nobody knows it any more: another
    /// unit became its primary before this was read, and the session ended there.
    pub session: Option<SessionView>,
}

/// The last changes. That a session begins is only noted: what a reader is told of it is found when
/// it reads, in the table or, if the session has ended meanwhile, with its end.
#[derive(Debug, Default)]
pub struct SessionLog {
    ring: VecDeque<Note>,
    /// The sessions that the ring says have ended, by their slot and the number of that change.
    ended: BTreeMap<(SessionId, u64), Box<Ended>>,
    last: u64,
    readers: u32,
}

/// A change, by the slot of its session.
#[derive(Clone, Copy, Debug)]
struct Note {
    at: Time,
    end: Option<&'static str>,
    id: SessionId,
}

/// A session that is no longer in its slot.
#[derive(Debug)]
struct Ended {
    created: Tick,
    view: SessionView,
}

impl SessionLog {
    /// The number of the last change; 0 if there was none since somebody reads.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The first change after that number that is still kept, with its own.
    fn after(&self, sequence: u64) -> Option<(u64, Note)> {
        let oldest = self.last + 1 - self.ring.len() as u64;
        let skipped = (sequence + 1).saturating_sub(oldest);
        let note = self.ring.get(usize::try_from(skipped).ok()?)?;
        Some((oldest + skipped, *note))
    }

    fn push(&mut self, note: Note) {
        if self.ring.len() == MOST {
            self.pop();
        }
        self.last += 1;
        self.ring.push_back(note);
    }

    fn pop(&mut self) {
        let oldest = self.last + 1 - self.ring.len() as u64;
        if let Some(Note {
            end: Some(_), id, ..
        }) = self.ring.pop_front()
        {
            self.ended.remove(&(id, oldest));
        }
    }

    /// The session of a change, if it has ended since, or by it.
    fn ended(&self, sequence: u64, note: &Note) -> Option<&Ended> {
        let (at, ended) = self.ended.range((note.id, sequence)..).next()?;
        (at.0 == note.id).then_some(ended)
    }
}

impl Gateway {
    /// Keeps changes for one more reader, until it calls [`Gateway::close_session_log`]. Returns
    /// the number of the last one before it.
    pub fn open_session_log(&mut self) -> u64 {
        let log = self.session_log.get_or_insert_with(|| {
            let mut log = Box::<SessionLog>::default();
            log.ring.reserve_exact(MOST);
            log
        });
        log.readers += 1;
        log.last()
    }

    /// A reader needs them no longer.
    pub fn close_session_log(&mut self) {
        if let Some(log) = &mut self.session_log {
            log.readers = log.readers.saturating_sub(1);
            if log.readers == 0 {
                self.session_log = None;
            }
        }
    }

    /// The changes, while somebody reads them.
    pub fn session_log(&self) -> Option<&SessionLog> {
        self.session_log.as_deref()
    }

    /// The first change after that number that is still kept.
    pub fn session_change_after(&self, sequence: u64) -> Option<SessionChange> {
        let log = self.session_log()?;
        let (sequence, note) = log.after(sequence)?;
        let session = match log.ended(sequence, &note) {
            // Slots are reused: it may be another one that nobody was told of.
            Some(ended) => {
                let is_it = note.end.is_some() || ended.created == note.at.tick();
                is_it.then(|| ended.view.clone())
            }
            None => {
                let session = self.sessions.get(note.id);
                let session = session.filter(|session| session.created == note.at.tick());
                // As old as it was then.
                session.map(|session| self.view(note.id, session, note.at))
            }
        };
        Some(SessionChange {
            sequence,
            at: note.at,
            end: note.end,
            session,
        })
    }

    /// A session begins.
    pub(super) fn log_begin(&mut self, at: Time, id: SessionId) {
        if let Some(log) = &mut self.session_log {
            log.push(Note { at, end: None, id });
        }
    }

    /// A session is about to end.
    #[cold]
    pub(super) fn log_end(&mut self, at: Time, id: SessionId, why: &'static str) {
        let session = self.sessions.get(id);
        let ended = session.map(|session| Ended {
            created: session.created,
            view: self.view(id, session, at),
        });
        if let (Some(log), Some(ended)) = (&mut self.session_log, ended) {
            let end = Some(why);
            log.push(Note { at, end, id });
            log.ended.insert((id, log.last), Box::new(ended));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::flow::{Addr, FlowKey, Protocol};
    use crate::gateway::Seed;

    fn gateway() -> Gateway {
        let config = "[node]\nname = \"a\"\n[[port]]\nname = \"lan\"\ninterface = \"eth0\"\n";
        let (config, _) = crate::config::parse(Path::new("a.toml"), config).unwrap();
        Gateway::new(config, Seed([7; 32]), Time::ZERO)
    }

    fn note(id: u32, end: Option<&'static str>) -> Note {
        let (at, id) = (Time::ZERO, SessionId(id));
        Note { at, end, id }
    }

    fn ended(port: u16) -> Box<Ended> {
        let key = FlowKey {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([10, 0, 0, 2]),
            src_port: port,
            dst_port: 2,
            protocol: Protocol::UDP,
        };
        Box::new(Ended {
            created: Time::ZERO.tick(),
            view: SessionView::example(key),
        })
    }

    #[test]
    fn a_reader_that_is_slow_misses_the_oldest_changes_only() {
        let mut log = SessionLog::default();
        for number in 0..MOST as u32 + 10 {
            log.push(note(number / 2, (number % 2 == 1).then_some("expired")));
            if number % 2 == 1 {
                log.ended
                    .insert((SessionId(number / 2), log.last), ended(1));
            }
        }
        assert_eq!((log.ring.len(), log.ended.len()), (MOST, MOST / 2));
        let sequence = |after| log.after(after).map(|(sequence, _)| sequence);
        assert_eq!((sequence(0), sequence(100)), (Some(11), Some(101)));
        assert_eq!(sequence(log.last()), None);
    }

    /// Two sessions of one slot, one after the other, and then a third one.
    #[test]
    fn a_session_is_the_one_that_was_in_the_slot_then() {
        let mut log = SessionLog::default();
        for port in [1, 2] {
            log.push(note(7, None));
            log.push(note(7, Some("expired")));
            log.ended.insert((SessionId(7), log.last), ended(port));
        }
        log.push(note(7, None));
        log.push(note(8, Some("cleared")));
        log.ended.insert((SessionId(8), log.last), ended(3));
        let port = |sequence| {
            let (at, note) = log.after(sequence - 1).unwrap();
            assert_eq!(at, sequence);
            log.ended(at, &note).map(|it| it.view.original.src_port)
        };
        let ports: Vec<_> = (1..=6).map(port).collect();
        assert_eq!(ports, [Some(1), Some(1), Some(2), Some(2), None, Some(3)]);
    }

    #[test]
    fn changes_are_kept_as_long_as_somebody_reads() {
        let mut gateway = gateway();
        assert!(gateway.session_log().is_none());
        gateway.open_session_log();
        gateway.open_session_log();
        gateway.close_session_log();
        assert!(gateway.session_log().is_some());
        gateway.close_session_log();
        assert!(gateway.session_log().is_none());
        gateway.close_session_log();
    }
}
