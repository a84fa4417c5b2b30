//! Events in the terms of the protocol.

use serde::{Deserialize, Serialize};

/// Something that has happened. docs/event.schema.json is its JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Identifies the process that numbered the event: another process starts again.
    pub run: String,
    /// The number of the event: one more than that of the event before.
    pub sequence: u64,
    /// Events missing before it, because the reader was away for too long.
    pub missed: u64,
    /// When, in seconds since 1970.
    pub at: f64,
    /// The kind of event: a name that never changes its meaning.
    pub id: String,
    /// Whether a condition begins or ends; `null` if the event has no duration.
    pub state: Option<EventState>,
    /// How urgent it is. The end of a condition is never urgent.
    pub severity: EventSeverity,
    /// The name of the unit that noticed it.
    pub node: String,
    /// The group that it concerns; `null` if none.
    pub group: Option<String>,
    /// The peer that it concerns; `null` if none.
    pub peer: Option<String>,
    /// The port that it concerns; `null` if none.
    pub port: Option<String>,
    /// The event, in a sentence.
    pub what: String,
    /// Why; `null` if that is not known.
    pub why: Option<String>,
}

/// Whether a condition begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventState {
    /// It lasts from now on.
    Begin,
    /// The condition that began with the event of the same `id` is over.
    End,
}

/// How urgent an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventSeverity {
    /// All is as it should be.
    Info,
    /// Redundancy or sessions are at risk.
    Warning,
    /// Packets are not forwarded.
    Critical,
}
