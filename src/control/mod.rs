//! What an administrator asks a running gateway, and the answers: JSON lines, no socket.
//!
//! A request is one line, `{"command": "status"}`. The answer is one line or several, each a JSON
//! object; the last line of each answer is `{"done": true}` or `{"error": "..."}`.

mod failover;
mod filter;
mod listing;
mod status;

use std::fmt::Write;
use std::path::PathBuf;

use serde::Deserialize;

use crate::gateway::Gateway;
use crate::metrics::Histogram;
use crate::time::Time;

use failover::Failover;
use listing::Listing;

pub use filter::Filter;

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
    /// A planned handover.
    Failover {
        /// The group; all of which this unit is primary if left out.
        #[serde(default)]
        group: Option<String>,
        /// The node that is to take over; the best one if left out.
        #[serde(default)]
        to: Option<String>,
    },
}

/// What the shell knows and the core does not.
#[derive(Clone, Debug)]
pub struct ShellView {
    /// The config file, absolute.
    pub config_file: PathBuf,
    /// By port.
    pub ports: Vec<PortIo>,
    /// How long the turns of the event loop took.
    pub turns: Histogram,
}

/// What the shell knows of a port.
#[derive(Clone, Debug)]
pub struct PortIo {
    /// Offloads in use: `tso+uso`, `tso` or `none`.
    pub offload: &'static str,
    /// Packets read from its TUN; a super-packet counts as one.
    pub received_packets: u64,
    /// Bytes of IP read from its TUN.
    pub received_bytes: u64,
}

/// An answer that is being given: it is produced in pieces, as fast as the client reads.
#[derive(Debug)]
pub enum Answer {
    /// The rest of a listing.
    Listing(Listing),
    /// Planned handovers that are under way.
    Failover(Failover),
    /// Nothing is left.
    Done,
}

/// How an answer stands after a piece of it.
pub enum Progress {
    /// There is more to say.
    More,
    /// All is said.
    Done,
}

impl Answer {
    /// Begins to answer a request line; writes the first piece to `out`.
    pub fn begin(
        line: &str,
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
        out: &mut String,
    ) -> Answer {
        let answer = serde_json::from_str::<Request>(line)
            .map_err(|error| format!("unknown request: {error}"))
            .and_then(|request| Answer::to(request, gateway, shell, now, out));
        match answer {
            Ok(Answer::Done) => done(out),
            Ok(answer) => answer,
            Err(error) => fail(out, &error),
        }
    }

    fn to(
        request: Request,
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
        out: &mut String,
    ) -> Result<Answer, String> {
        Ok(match request {
            Request::Status => {
                let _ = writeln!(out, "{}", status::status(gateway, shell, now));
                Answer::Done
            }
            Request::Sessions { limit, filter } => Answer::Listing(Listing::begin(limit, &filter)?),
            Request::Failover { group, to } => {
                let (group, to) = (group.as_deref(), to.as_deref());
                Answer::Failover(Failover::begin(gateway, group, to, now)?)
            }
        })
    }

    /// Writes the next piece to `out`, if there is one yet; does nothing once all is said.
    pub fn go_on(&mut self, gateway: &mut Gateway, now: Time, out: &mut String) {
        let progress = match self {
            Answer::Listing(listing) => Ok(listing.go_on(gateway, now, out)),
            Answer::Failover(failover) => failover.go_on(gateway, now, out),
            Answer::Done => return,
        };
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => *self = done(out),
            Err(error) => *self = fail(out, &error),
        }
    }

    /// Whether the answer waits for something to happen, rather than for the client.
    pub fn is_waiting(&self) -> bool {
        matches!(self, Answer::Failover(_))
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
