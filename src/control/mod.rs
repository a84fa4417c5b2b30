//! What an administrator asks a running gateway, and the answers: JSON lines, no socket.
//!
//! A request is one line, `{"command": "status"}`. The answer is one line or several, each a JSON
//! object; the last line of each answer is `{"done": true}` or `{"error": "..."}`.

mod filter;
mod status;

use std::fmt::Write;

use serde::Deserialize;

use crate::gateway::Gateway;
use crate::time::Time;

pub use filter::Filter;
pub use status::PortIo;

/// A request line.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The state of the unit.
    Status,
    /// The session table.
    Sessions {
        /// At most so many.
        #[serde(default)]
        limit: Option<u64>,
        /// Only those that match all of these, `key=value` each.
        #[serde(default)]
        filter: Vec<String>,
    },
}

/// An answer that is being given: it is produced in pieces, as fast as the client reads.
#[derive(Debug)]
pub enum Answer {
    /// The rest of a listing.
    Sessions {
        /// The next slot of the table to look at.
        cursor: u32,
        /// Sessions still to be listed.
        left: u64,
        /// Which ones.
        filter: Filter,
    },
    /// Nothing is left.
    Done,
}

/// Slots of the table looked at in one piece: some 100 µs.
const PIECE: u32 = 256;

impl Answer {
    /// Begins to answer a request line; writes the first piece to `out`.
    pub fn begin(
        line: &str,
        gateway: &Gateway,
        io: &[PortIo],
        now: Time,
        out: &mut String,
    ) -> Answer {
        let request = match serde_json::from_str::<Request>(line) {
            Ok(request) => request,
            Err(error) => return fail(out, &format!("unknown request: {error}")),
        };
        match request {
            Request::Status => {
                let _ = writeln!(out, "{}", status::status(gateway, io, now));
                done(out)
            }
            Request::Sessions { limit, filter } => match Filter::parse(&filter) {
                Ok(filter) => Answer::Sessions {
                    cursor: 0,
                    left: limit.unwrap_or(u64::MAX),
                    filter,
                },
                Err(error) => fail(out, &error),
            },
        }
    }

    /// Writes the next piece to `out`; does nothing once all is said.
    pub fn go_on(&mut self, gateway: &Gateway, now: Time, out: &mut String) {
        let Answer::Sessions {
            cursor,
            left,
            filter,
        } = self
        else {
            return;
        };
        let (sessions, next) = gateway.page(*cursor, PIECE, now);
        for session in sessions.filter(|session| filter.matches(session, gateway)) {
            if *left == 0 {
                break;
            }
            *left -= 1;
            let _ = writeln!(out, "{}", status::session(&session, gateway));
        }
        match next {
            Some(next) if *left > 0 => *cursor = next,
            _ => *self = done(out),
        }
    }

    /// Whether all is said.
    pub fn is_done(&self) -> bool {
        matches!(self, Answer::Done)
    }
}

fn done(out: &mut String) -> Answer {
    out.push_str("{\"done\":true}\n");
    Answer::Done
}

fn fail(out: &mut String, error: &str) -> Answer {
    let _ = writeln!(out, "{}", serde_json::json!({ "error": error }));
    Answer::Done
}
