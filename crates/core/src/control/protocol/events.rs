//! Events as the protocol tells them.

use serde::{Deserialize, Serialize};

/// Something that has happened. docs/event.schema.json is its JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Tells the numbers of this process of the gateway from those of another one.
    pub run: String,
    /// The number of the event: one more than that of the event before.
    pub sequence: u64,
    /// How many events before it are missing, because the reader was away for too long.
    pub missed: u64,
    /// When, in seconds since 1970.
    pub at: f64,
    /// Which kind of event: a name that never changes its meaning.
    pub id: String,
    /// Whether something begins or ends; `null` if it has no duration.
    pub state: Option<EventState>,
    /// How urgent it is. The end of something is never urgent.
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

/// Whether something begins or ends.
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
    /// It is as it should be.
    Info,
    /// Redundancy or sessions are at risk.
    Warning,
    /// Packets are not forwarded.
    Critical,
}
