//! The admin protocol: requests, answers and errors, as both sides of the control socket know them.
//!
//! A client writes a [`Request`] as one line of JSON. The gateway answers with lines of JSON. Their
//! type depends on the request, and docs/admin-protocol.md lists it. The last line of an answer is
//! either [`DONE`] or a [`Failure`]. While an answer takes long, the gateway writes
//! [`SIGN_OF_LIFE`] lines in between, but not in a capture, which is as silent as the network.
//!
//! Rules that keep clients and gateways of different versions working together:
//!
//! - A field never changes its name or its meaning. [`VERSION`] rises when fields or requests are
//!   added.
//! - A reader ignores fields that it does not know.
//! - A field that came after version 0 is an `Option`: an older gateway does not send it.
//! - An unknown value is `null`, never 0 or `true`.
//! - A moment is in seconds since 1970 (UTC). A duration is in seconds, or in the unit that its
//!   name says.

pub mod capture;
mod events;
mod explain;
mod ha;
mod push;
mod session;
mod status;
mod witness;

use serde::{Deserialize, Serialize};

pub use events::{Event, EventSeverity, EventState};
pub use explain::{
    ExitPort, ExplainRequest, Explanation, Flow, FlowDirection, ForwardStep, Guarantee, Matches,
    Mismatch, NatStep, PolicyAction, PolicyStep, RouteStep, RouteTarget, Survival, Translated,
    Verdict,
};
pub use ha::{
    Change, ConfigPart, ConfigVersion, HandoverDone, MaintenanceDone, ReloadDone, SwitchDone,
    SwitchRow,
};
pub use push::{PushReport, PushState, PushUnit, PushUnitState};
pub use session::{
    Cleared, Endpoint, HostRow, PolicyRow, Session, SessionCount, SessionEvent, Skipped,
};
pub use status::{
    AsymmetricCounters, BarrierStatus, CaptureStatus, ConfigStatus, CounterStatus, EventStatus,
    FastPathStatus, GroupStatus, GuaranteeCounters, HealthState, HealthStatus, LagStatus,
    LinkStatus, MaintenanceStatus, MonitoredStatus, PeerConfig, PeerGroup, PeerStatus, PortStatus,
    Role, SessionStatus, Status, TargetState, TargetStatus, Traffic, TroubleStatus,
};
pub use witness::{LeaseHolder, LeaseQuestion, WitnessQuestion, WitnessStatus};

/// The version of the protocol. Gateways that do not send theirs have version 0.
pub const VERSION: u32 = 1;

/// The last line of a complete answer. Always these bytes, so that a client can compare.
pub const DONE: &str = r#"{"done":true}"#;

/// The line that says that the gateway is still working on the answer.
pub const SIGN_OF_LIFE: &str = r#"{"working":true}"#;

/// The longest request, in bytes with its newline.
pub const MAX_REQUEST: usize = 64 * 1024;

/// A client's request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The state of the unit. The answer is one [`Status`].
    Status,
    /// The session table. The answer is a [`Session`] per line.
    Sessions {
        /// At most this many.
        #[serde(default)]
        limit: Option<u64>,
        /// Only those that match all of these, `key=value` each.
        #[serde(default)]
        filter: Vec<String>,
    },
    /// How many sessions there are. The answer is one [`SessionCount`].
    Count {
        /// Only those that match all of these, `key=value` each.
        #[serde(default)]
        filter: Vec<String>,
    },
    /// The decisions of the policies. The answer is a [`PolicyRow`] per policy, in their order, and
    /// one for packets that no policy matches.
    Policies,
    /// The hosts with the most sessions, the largest first. The answer is a [`HostRow`] per host.
    Hosts {
        /// At most this many, and at most 200.
        #[serde(default)]
        limit: Option<u64>,
    },
    /// Past events of this unit, oldest first. The answer is an [`Event`] per line. With `follow`
    /// it goes on until the client ends its side of the connection.
    Events {
        /// Only those after this number.
        #[serde(default)]
        after: Option<u64>,
        /// The `run` of that number; with another one, all events are new.
        #[serde(default)]
        run: Option<String>,
        /// Future events, too.
        #[serde(default)]
        follow: bool,
    },
    /// Sessions that begin and end on this unit from now on, until the client ends its side of the
    /// connection. The answer is a [`SessionEvent`] per line. It is about the sessions that this
    /// unit is primary of; those of multicast are not in it.
    SessionEvents,
    /// The questions of this unit to the witness, until the client ends its side of the connection.
    /// The answer is a [`WitnessQuestion`] per line. Who asks this speaks to the witness.
    Witness,
    /// What the witness said to a question. The answer is empty.
    WitnessAnswer {
        /// The `run` of the question.
        run: String,
        /// Its number.
        number: u64,
        /// Why there is no answer.
        #[serde(default)]
        error: Option<String>,
        /// For how many seconds the leases of this unit last, from the question on.
        #[serde(default)]
        lasts_s: f64,
        /// Who has each lease that was asked for.
        #[serde(default)]
        leases: Vec<LeaseHolder>,
    },
    /// Ends sessions. The answer is one [`Cleared`].
    Clear {
        /// Only those that match all of these, `key=value` each.
        #[serde(default)]
        filter: Vec<String>,
        /// All of them; without a filter.
        #[serde(default)]
        all: bool,
    },
    /// The fate of a packet. The answer is one [`Explanation`].
    Explain(ExplainRequest),
    /// A planned handover. The answer is a [`HandoverDone`] per group.
    Failover {
        /// The group; without it, all groups that this unit is primary of.
        #[serde(default)]
        group: Option<String>,
        /// The node that takes over; without it, the best one.
        #[serde(default)]
        to: Option<String>,
        /// Hand over even to a node that does not hold all sessions, or that has ports down.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Begins or ends the maintenance of this unit: it hands its groups over and stays standby,
    /// unless it is the only one that can have them. The answer is one [`MaintenanceDone`].
    Maintenance {
        /// Whether maintenance begins, or else ends.
        on: bool,
        /// It ends by itself after this many seconds.
        #[serde(default)]
        for_s: Option<u64>,
        /// The unit that begins maintenance, without an end; without it, this unit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unit: Option<String>,
    },
    /// Reads the config file again. The answer is one [`ReloadDone`].
    Reload {
        /// What the history of configs says in place of `reload`, such as `rollback to 3`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// A piece of the text of a config that is to be pushed to all units. The answer is empty.
    PushPart {
        /// The length of the pieces before, in bytes; at 0 the text begins.
        at: u64,
        /// The piece.
        text: String,
    },
    /// Asks all units what they think of that config. The answer is one [`PushReport`].
    PushCheck,
    /// Puts it in force on all units. The answer is one [`PushReport`].
    PushApply {
        /// The `push` of the report.
        push: String,
        /// All go back unless it is accepted in so many seconds; without it, it stays.
        #[serde(default)]
        confirm_s: Option<u64>,
        /// The operator, for the history.
        #[serde(default)]
        by: Option<String>,
    },
    /// Confirms the config that is in force on trial. The answer is one [`PushReport`].
    PushAccept,
    /// Returns to the config before on all units. The answer is one [`PushReport`].
    PushAbort,
    /// The last push, and which config each unit has. The answer is one [`PushReport`].
    PushStatus,
    /// The config in force. The answer is a [`ConfigPart`] per table.
    ConfigShow {
        /// Includes options with their default value.
        #[serde(default)]
        full: bool,
    },
    /// The configs that were in force, the last one first. The answer is a [`ConfigVersion`] for
    /// each that is kept.
    ConfigHistory,
    /// The current switches of `[ha]`. The answer is a [`SwitchRow`] per switch.
    HaGet {
        /// Only this one.
        #[serde(default)]
        key: Option<String>,
    },
    /// Sets a switch of `[ha]`. The answer is one [`SwitchDone`].
    HaSet {
        /// One of [`crate::config::switch_names`].
        key: String,
        /// The value as in the config, without quotes.
        value: String,
    },
    /// Packets as they pass, until the client ends its side of the connection. The answer is a
    /// [`capture::Line`] per line.
    Capture {
        /// Only those that match all of these, `key=value` each.
        #[serde(default)]
        filter: Vec<String>,
        /// Bytes of each packet; without it, all.
        #[serde(default)]
        snapshot: Option<u32>,
        /// Ends after this many packets.
        #[serde(default)]
        count: Option<u64>,
    },
}

/// The rights of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Read the state.
    Read,
    /// Also change it, and see the content of packets.
    Change,
}

impl Request {
    /// The right that it requires.
    pub fn needs(&self) -> Right {
        match self {
            Request::Status
            | Request::Sessions { .. }
            | Request::Count { .. }
            | Request::Policies
            | Request::Hosts { .. }
            | Request::Events { .. }
            | Request::SessionEvents
            | Request::Explain(_)
            | Request::ConfigShow { .. }
            | Request::ConfigHistory
            | Request::PushStatus
            | Request::HaGet { .. } => Right::Read,
            Request::Clear { .. }
            | Request::Failover { .. }
            | Request::Maintenance { .. }
            | Request::Reload { .. }
            | Request::PushPart { .. }
            | Request::PushCheck
            | Request::PushApply { .. }
            | Request::PushAccept
            | Request::PushAbort
            | Request::HaSet { .. }
            | Request::Witness
            | Request::WitnessAnswer { .. }
            | Request::Capture { .. } => Right::Change,
        }
    }
}

/// The last line of an answer that the gateway could not complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Why, as a sentence for the operator.
    pub error: String,
    /// The same for a program. See [`Failure::code`] for gateways that do not send it.
    pub code: Option<ErrorCode>,
    /// Whether the request itself is wrong, so that retrying is useless.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub usage: bool,
    /// The version of the protocol that the gateway speaks.
    pub protocol: Option<u32>,
}

/// Why the gateway does not answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The gateway does not know the request: it is older, or the line is not a request.
    UnknownRequest,
    /// The request is longer than 64 KiB.
    TooLong,
    /// This client may only read: the request requires the user of the gateway, or root.
    NotAllowed,
    /// A word of the request is wrong: a filter, a name, a value.
    BadRequest,
    /// There is no group or peer with that name.
    NotFound,
    /// This unit is not the primary, and only the primary can do this.
    NotPrimary,
    /// Another request of this kind is in progress, and only one can run at a time.
    Busy,
    /// It is impossible in the current state; the sentence says why.
    Refused,
    /// It did not end in time. It may still end.
    Timeout,
    /// A code that this version does not know.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// Whether the request is wrong in itself.
    pub fn is_usage(self) -> bool {
        self == ErrorCode::BadRequest
    }
}

impl Failure {
    /// A failure of this gateway.
    pub fn new(code: ErrorCode, error: impl Into<String>) -> Failure {
        Failure {
            error: error.into(),
            code: Some(code),
            usage: code.is_usage(),
            protocol: Some(VERSION),
        }
    }

    /// The failure in a line of an answer, if it is one.
    pub fn parse(line: &str) -> Option<Failure> {
        // `error` is the first field, so that a client need not parse each line twice.
        if !line.starts_with(r#"{"error":"#) {
            return None;
        }
        serde_json::from_str(line).ok()
    }

    /// The code. Gateways of version 0 send none; their sentences tell the failures apart.
    pub fn code(&self) -> ErrorCode {
        match self.code {
            Some(code) => code,
            None if self.usage => ErrorCode::BadRequest,
            None if self.error.starts_with("unknown request") => ErrorCode::UnknownRequest,
            None => ErrorCode::Refused,
        }
    }
}

/// Writes one line of an answer to the end of `out`.
pub(super) fn write_line(out: &mut String, line: &impl Serialize) {
    // This fails only for a value without a JSON form, and all types of this module have one.
    let _ = serde_json::to_writer(EndOf(out), line);
    out.push('\n');
}

/// The end of a string that JSON is appended to: no allocation for each line.
struct EndOf<'a>(&'a mut String);

impl std::io::Write for EndOf<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = str::from_utf8(bytes).map_err(std::io::Error::other)?;
        self.0.push_str(text);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_by_its_code() {
        let mut line = String::new();
        write_line(&mut line, &Failure::new(ErrorCode::BadRequest, "no"));
        assert_eq!(
            line,
            "{\"error\":\"no\",\"code\":\"bad-request\",\"usage\":true,\"protocol\":1}\n"
        );
        assert_eq!(
            Failure::parse(line.trim_end()).map(|failure| failure.code()),
            Some(ErrorCode::BadRequest)
        );
        assert_eq!(Failure::parse(r#"{"node":"gw-a"}"#), None);
    }

    #[test]
    fn failures_of_gateways_without_codes_are_told_apart() {
        for (line, code) in [
            (
                r#"{"error":"unknown request: unknown variant `x`"}"#,
                ErrorCode::UnknownRequest,
            ),
            (
                r#"{"error":"filter `x`","usage":true}"#,
                ErrorCode::BadRequest,
            ),
            (r#"{"error":"not in sync"}"#, ErrorCode::Refused),
            (
                r#"{"error":"of the future","code":"too-late"}"#,
                ErrorCode::Unknown,
            ),
        ] {
            assert_eq!(Failure::parse(line).expect(line).code(), code, "{line}");
        }
    }

    #[test]
    fn a_request_says_its_command() {
        let request = Request::HaSet {
            key: "priority".into(),
            value: "7".into(),
        };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"command":"ha-set","key":"priority","value":"7"}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        let terse: Request = serde_json::from_str(r#"{"command":"sessions"}"#).unwrap();
        assert_eq!(
            terse,
            Request::Sessions {
                limit: None,
                filter: Vec::new()
            }
        );
    }
}
