//! Sessions as they begin and end.

use crate::gateway::Gateway;
use crate::time::Time;

use super::listing::{owner, row};
use super::protocol::{SessionEvent, write_line};
use super::status::since_1970;
use super::{Progress, ShellView};

/// Changes per piece: some 100 µs.
const PIECE: usize = 64;

/// The changes to come, until the client ends its side.
#[derive(Debug)]
pub struct SessionEvents {
    /// The number of the last change that was looked at.
    after: u64,
    /// Changes before the next one that the client is not told.
    missed: u64,
    is_ended: bool,
    idle: bool,
}

impl SessionEvents {
    /// Starts with the next change. The gateway keeps changes from now on, until
    /// [`SessionEvents::end`].
    pub fn begin(gateway: &mut Gateway) -> SessionEvents {
        SessionEvents {
            after: gateway.open_session_log(),
            missed: 0,
            is_ended: false,
            idle: false,
        }
    }

    pub fn go_on(
        &mut self,
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
        out: &mut String,
    ) -> Progress {
        for _ in 0..PIECE {
            let Some(change) = gateway.session_change_after(self.after) else {
                self.idle = true;
                return match self.is_ended {
                    false => Progress::More,
                    true => {
                        SessionEvents::end(gateway);
                        Progress::Done
                    }
                };
            };
            // Some are missing only if the reader was too slow.
            self.missed += change.sequence - self.after - 1;
            self.after = change.sequence;
            let Some(session) = &change.session else {
                self.missed += 1;
                continue;
            };
            let event = SessionEvent {
                missed: std::mem::take(&mut self.missed),
                at: since_1970(shell, change.at),
                end: change.end.map(Into::into),
                packets_back: session.packets[1],
                bytes_back: session.bytes[1],
                session: row(session, gateway, owner(gateway, session.group, now)),
            };
            write_line(out, &event);
        }
        self.idle = false;
        Progress::More
    }

    /// Whether it waits for a change.
    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// Whether there is something to send.
    pub fn has_news(&self, gateway: &Gateway) -> bool {
        let log = gateway.session_log();
        self.is_ended || log.is_none_or(|log| log.last() != self.after)
    }

    /// The client wants no more.
    pub fn finish(&mut self) {
        self.is_ended = true;
    }

    /// The gateway keeps nothing for this reader any longer.
    pub(super) fn end(gateway: &mut Gateway) {
        gateway.close_session_log();
    }
}
