//! What an administrator asks a running gateway, and the answers: JSON lines, no socket.
//!
//! A request is one line, `{"command": "status"}`. The answer is one line or several, each a JSON
//! object; the last line of each answer is `{"done": true}` or `{"error": "..."}`.

mod filter;
mod status;

use std::fmt::Write;
use std::time::Duration;

use serde::Deserialize;

use crate::flow::GroupId;
use crate::gateway::{Gateway, Role};
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
    /// Planned handovers that are under way.
    Failover {
        /// Their groups.
        groups: Vec<GroupId>,
        /// When to stop waiting for them.
        deadline: Time,
    },
    /// Nothing is left.
    Done,
}

/// A handover ends by itself long before.
const FAILOVER_WAIT: Duration = Duration::from_secs(5);

/// Slots of the table looked at in one piece: some 100 µs.
const PIECE: u32 = 256;

impl Answer {
    /// Begins to answer a request line; writes the first piece to `out`.
    pub fn begin(
        line: &str,
        gateway: &mut Gateway,
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
            Request::Failover { group, to } => {
                match begin_failover(gateway, group.as_deref(), to.as_deref(), now) {
                    Ok(groups) => Answer::Failover {
                        groups,
                        deadline: now + FAILOVER_WAIT,
                    },
                    Err(error) => fail(out, &error),
                }
            }
        }
    }

    /// Writes the next piece to `out`, if there is one yet; does nothing once all is said.
    pub fn go_on(&mut self, gateway: &mut Gateway, now: Time, out: &mut String) {
        match self {
            Answer::Sessions {
                cursor,
                left,
                filter,
            } => {
                let (sessions, next) = gateway.page(*cursor, PIECE, now);
                for session in sessions.filter(|session| filter.matches(session, gateway)) {
                    if *left == 0 {
                        break;
                    }
                    *left -= 1;
                    let _ = writeln!(out, "{}", status::session(&session, gateway, now));
                }
                match next {
                    Some(next) if *left > 0 => *cursor = next,
                    _ => *self = done(out),
                }
            }
            Answer::Failover { groups, deadline } => {
                groups.retain(|group| match gateway.poll_handover(*group) {
                    Some(end) => {
                        let _ = writeln!(out, "{}", status::handover(&end, gateway));
                        false
                    }
                    None => true,
                });
                if groups.is_empty() {
                    *self = done(out);
                } else if now >= *deadline {
                    *self = fail(
                        out,
                        "the handover has not ended in time; see `tandemgw status`",
                    );
                }
            }
            Answer::Done => {}
        }
    }

    /// Whether the answer waits for something to happen, rather than for the client.
    pub fn is_waiting(&self) -> bool {
        matches!(self, Answer::Failover { .. })
    }

    /// Whether all is said.
    pub fn is_done(&self) -> bool {
        matches!(self, Answer::Done)
    }
}

/// Starts the handovers that a request asks for; gives their groups.
fn begin_failover(
    gateway: &mut Gateway,
    group: Option<&str>,
    to: Option<&str>,
    now: Time,
) -> Result<Vec<GroupId>, String> {
    let to = match to {
        None => None,
        Some(name) => Some(
            gateway
                .peers()
                .find(|peer| gateway.peer_name(*peer) == name)
                .ok_or_else(|| format!("there is no peer `{name}`"))?,
        ),
    };
    let all = (0..gateway.config().groups.len()).map(|group| GroupId(group as u8));
    let groups: Vec<GroupId> = match group {
        None => all
            .filter(|group| gateway.role_of(*group) == Role::Primary)
            .collect(),
        Some(name) => all
            .filter(|group| gateway.group_name(*group) == name)
            .collect(),
    };
    if groups.is_empty() {
        return Err(match group {
            Some(name) => format!("there is no group `{name}`"),
            None => "this unit is not primary of any group: ask the primary".to_owned(),
        });
    }
    for group in &groups {
        gateway.poll_handover(*group);
        gateway.request_failover(now, *group, to)?;
    }
    Ok(groups)
}

fn done(out: &mut String) -> Answer {
    out.push_str("{\"done\":true}\n");
    Answer::Done
}

fn fail(out: &mut String, error: &str) -> Answer {
    let _ = writeln!(out, "{}", serde_json::json!({ "error": error }));
    Answer::Done
}
