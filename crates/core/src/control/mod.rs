//! What an administrator asks a running gateway, and the answers: JSON lines, no socket.
//!
//! A request is one line, `{"command": "status"}`. The answer is one line or several, each a JSON
//! object; the last line of each answer is `{"done": true}` or `{"error": "..."}`. With the error stands
//! `"usage": true` if the request is wrong in itself. While an answer takes long, lines `{"working": true}` say
//! that it is still worked on; not in a capture, which is as silent as the network.

pub mod capture;
mod clear;
mod explain;
mod failover;
pub(crate) mod filter;
mod ha_set;
mod listing;
mod reload;
mod status;

use std::fmt::Write;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use crate::gateway::Gateway;
use crate::metrics::Histogram;
use crate::time::Time;

use clear::Clear;
use failover::Failover;
use ha_set::HaSet;
use listing::Listing;
use reload::Reload;

pub use explain::Question;
pub use filter::Filter;
pub use reload::{ReloadOutcome, ReloadRefused};

/// The line that says that an answer is still worked on.
pub const SIGN_OF_LIFE: &str = r#"{"working":true}"#;

/// Words that a filter can have: each is compared with each session, or packet.
pub const MAX_FILTER: usize = 32;

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
    /// The end of sessions.
    Clear {
        /// Only those that match all of these, `key=value` each.
        #[serde(default)]
        filter: Vec<String>,
        /// All of them; without a filter.
        #[serde(default)]
        all: bool,
    },
    /// What would happen to a packet.
    Explain(Question),
    /// A planned handover.
    Failover {
        /// The group; all of which this unit is primary if left out.
        #[serde(default)]
        group: Option<String>,
        /// The node that is to take over; the best one if left out.
        #[serde(default)]
        to: Option<String>,
    },
    /// Read the config file anew.
    Reload,
    /// Set a switch of `[ha]`.
    HaSet {
        /// One of [`crate::config::SWITCHES`].
        key: String,
        /// The value as in the config, without quotes.
        value: String,
    },
    /// Packets as they pass; goes on until the client ends its side of the connection.
    Capture {
        /// Only those that match all of these, `key=value` each.
        #[serde(default)]
        filter: Vec<String>,
        /// Bytes of each packet; all if left out.
        #[serde(default)]
        snapshot: Option<u32>,
        /// End after so many packets.
        #[serde(default)]
        count: Option<u64>,
    },
}

/// What the shell knows and the core does not.
#[derive(Clone, Debug, Default)]
pub struct ShellView {
    /// The config file, absolute.
    pub config_file: PathBuf,
    /// By port.
    pub ports: Vec<PortIo>,
    /// How long the turns of the event loop took.
    pub turns: Histogram,
    /// The rules of the kernel's packet filter that let nothing past the gateway.
    pub barrier: BarrierView,
}

/// What the shell knows of the barrier.
#[derive(Clone, Debug, Default)]
pub struct BarrierView {
    /// Why there is none; none if there is one.
    pub why_not: Option<String>,
    /// Packets that it has stopped.
    pub stopped: u64,
}

/// What the shell knows of a port.
#[derive(Clone, Debug)]
pub struct PortIo {
    /// Offloads in use: `tso+uso`, `tso` or `none`.
    pub offload: &'static str,
}

/// An answer that is being given: it is produced in pieces, as fast as the client reads.
#[derive(Debug)]
pub enum Answer {
    /// The rest of a listing.
    Listing(Listing),
    /// The rest of the sessions are still to be ended.
    Clear(Clear),
    /// Planned handovers that are under way.
    Failover(Failover),
    /// A reload that is asked for or under way.
    Reload(Reload),
    /// A switch that waits for a reload to be prepared.
    HaSet(HaSet),
    /// A capture that runs.
    Capture(capture::Stream),
    /// Nothing is left.
    Done,
}

/// Why a request is not carried out, as a sentence for the operator.
#[derive(Debug, PartialEq)]
enum Refusal {
    /// It is wrong in itself: a word of it is none that is known.
    Usage(String),
    /// It can't be done here, or now.
    State(String),
}

impl From<String> for Refusal {
    fn from(sentence: String) -> Refusal {
        Refusal::State(sentence)
    }
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
            .map_err(|error| Refusal::State(format!("unknown request: {error}")))
            .and_then(|request| Answer::to(request, gateway, shell, now, out));
        match answer {
            Ok(Answer::Done) => done(out),
            Ok(answer) => answer,
            Err(refusal) => fail(out, &refusal),
        }
    }

    fn to(
        request: Request,
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
        out: &mut String,
    ) -> Result<Answer, Refusal> {
        Ok(match request {
            Request::Status => {
                let _ = writeln!(out, "{}", status::status(gateway, shell, now));
                Answer::Done
            }
            Request::Sessions { limit, filter } => {
                Answer::Listing(Listing::begin(limit, &filter, gateway).map_err(Refusal::Usage)?)
            }
            Request::Clear { filter, all } => {
                Answer::Clear(Clear::begin(&filter, all, gateway, now)?)
            }
            Request::Explain(question) => {
                let _ = writeln!(
                    out,
                    "{}",
                    question.answer(gateway, now).map_err(Refusal::Usage)?
                );
                Answer::Done
            }
            Request::Failover { group, to } => {
                let (group, to) = (group.as_deref(), to.as_deref());
                Answer::Failover(Failover::begin(gateway, group, to, now)?)
            }
            Request::Reload => Answer::Reload(Reload::Wanted),
            Request::HaSet { key, value } => {
                let mut set = HaSet::begin(gateway, shell, key, value).map_err(Refusal::Usage)?;
                match set.go_on(gateway, now, out)? {
                    Progress::Done => Answer::Done,
                    Progress::More => Answer::HaSet(set),
                }
            }
            Request::Capture {
                filter,
                snapshot,
                count,
            } => Answer::Capture(capture::Stream::begin(
                gateway, &filter, snapshot, count, now, out,
            )?),
        })
    }

    /// Writes the next piece to `out`, if there is one yet; does nothing once all is said.
    pub fn go_on(&mut self, gateway: &mut Gateway, now: Time, out: &mut String) {
        let progress = match self {
            Answer::Listing(listing) => Ok(listing.go_on(gateway, now, out)),
            Answer::Clear(clear) => Ok(clear.go_on(gateway, now, out)),
            Answer::Failover(failover) => failover.go_on(gateway, now, out),
            Answer::Reload(reload) => reload.go_on(gateway, out),
            Answer::HaSet(set) => set.go_on(gateway, now, out),
            Answer::Capture(stream) => Ok(stream.go_on(gateway, now, out)),
            Answer::Done => return,
        };
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => *self = done(out),
            Err(sentence) => *self = fail(out, &Refusal::State(sentence)),
        }
    }

    /// Whether the answer waits for something to happen, rather than for the client.
    pub fn is_waiting(&self) -> bool {
        match self {
            Answer::Failover(_) | Answer::Reload(_) | Answer::HaSet(_) => true,
            Answer::Capture(stream) => stream.is_idle(),
            Answer::Listing(_) | Answer::Clear(_) | Answer::Done => false,
        }
    }

    /// Whether the shell is to read the config file anew, and to call [`Answer::begin_reload`] then and
    /// [`Answer::tell_reload`] when it is done.
    pub fn wants_reload(&self) -> bool {
        matches!(self, Answer::Reload(Reload::Wanted))
    }

    /// The config file is being read anew. No effect on an answer that does not wait for that.
    pub fn begin_reload(&mut self) {
        if let Answer::Reload(reload) = self {
            reload.note_begin();
        }
    }

    /// The config file was read anew; `ended_before` is [`crate::gateway::Counters::forbidden`] of before.
    /// No effect on an answer that did not wait for it when it began.
    pub fn tell_reload(&mut self, outcome: &ReloadOutcome, ended_before: u64) {
        if let Answer::Reload(reload) = self {
            reload.tell(outcome, ended_before);
        }
    }

    /// Says that it is still worked on, if that is not to be expected.
    pub fn give_sign_of_life(&self, out: &mut String) {
        match self {
            Answer::Capture(_) | Answer::Done => {}
            Answer::Listing(_)
            | Answer::Clear(_)
            | Answer::Failover(_)
            | Answer::Reload(_)
            | Answer::HaSet(_) => {
                let _ = writeln!(out, "{SIGN_OF_LIFE}");
            }
        }
    }

    /// The client will ask for nothing more: an answer without an end of its own comes to its end.
    pub fn finish(&mut self, gateway: &mut Gateway) {
        if let Answer::Capture(_) = self
            && let Some(capture) = gateway.capture_mut()
        {
            capture.finish();
        }
    }

    /// The client is gone: what the answer holds is given back.
    pub fn abandon(self, gateway: &mut Gateway) {
        if let Answer::Capture(_) = self {
            capture::end(gateway);
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

fn fail(out: &mut String, refusal: &Refusal) -> Answer {
    let line = match refusal {
        Refusal::Usage(sentence) => json!({ "error": sentence, "usage": true }),
        Refusal::State(sentence) => json!({ "error": sentence }),
    };
    let _ = writeln!(out, "{line}");
    Answer::Done
}
