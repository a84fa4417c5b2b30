//! Sessions that begin and end on this unit, for outside readers. Nothing is kept while nobody
//! reads: then a new session pays one comparison for it.

use std::collections::VecDeque;

use crate::session::SessionId;
use crate::time::Time;

use super::{Gateway, SessionView};

/// Changes that are kept: some 4 MB. A reader that falls further behind misses the oldest.
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
    /// The session, in its last state if it has ended.
    pub session: SessionView,
}

/// The last changes.
#[derive(Debug, Default)]
pub struct SessionLog {
    ring: VecDeque<SessionChange>,
    last: u64,
    readers: u32,
}

impl SessionLog {
    /// The number of the last change; 0 if there was none since somebody reads.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The first change after that number that is still kept.
    pub fn after(&self, sequence: u64) -> Option<&SessionChange> {
        let oldest = self.ring.front()?.sequence;
        let skipped = (sequence + 1).saturating_sub(oldest);
        self.ring.get(usize::try_from(skipped).ok()?)
    }

    fn push(&mut self, at: Time, end: Option<&'static str>, session: SessionView) {
        self.last += 1;
        if self.ring.len() == MOST {
            self.ring.pop_front();
        }
        self.ring.push_back(SessionChange {
            sequence: self.last,
            at,
            end,
            session,
        });
    }
}

impl Gateway {
    /// Keeps changes for one more reader, until it calls [`Gateway::close_session_log`]. Returns
    /// the number of the last one before it.
    pub fn open_session_log(&mut self) -> u64 {
        let log = self.session_log.get_or_insert_default();
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

    /// A session begins, or is about to end.
    #[cold]
    pub(super) fn log_session(&mut self, now: Time, id: SessionId, end: Option<&'static str>) {
        let session = self.sessions.get(id);
        let view = session.map(|session| self.view(id, session, now));
        if let (Some(log), Some(view)) = (&mut self.session_log, view) {
            log.push(now, end, view);
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

    fn view() -> SessionView {
        let key = FlowKey {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([10, 0, 0, 2]),
            src_port: 1,
            dst_port: 2,
            protocol: Protocol::UDP,
        };
        SessionView::example(key)
    }

    #[test]
    fn a_reader_that_is_slow_misses_the_oldest_changes_only() {
        let mut log = SessionLog::default();
        for _ in 0..MOST + 10 {
            log.push(Time::ZERO, None, view());
        }
        assert_eq!(log.ring.len(), MOST);
        assert_eq!(log.after(0).unwrap().sequence, 11);
        assert_eq!(log.after(100).unwrap().sequence, 101);
        assert!(log.after(log.last()).is_none());
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
