//! Requests from an administrator to a running gateway, and the answers: JSON lines, no socket.
//!
//! [`protocol`] has the types of both, which the commands use too. [`Answer`] produces an answer in
//! pieces, as fast as its client reads them.

mod capture;
mod clear;
mod config;
mod count;
mod events;
mod explain;
mod failover;
mod filter;
mod ha_set;
mod health;
mod listing;
mod maintenance;
pub mod protocol;
mod push;
mod reload;
mod session_events;
mod status;
mod witness;

use std::time::Duration;

use crate::gateway::Gateway;
use crate::time::Time;

use clear::Clear;
use config::ConfigShow;
use count::{Count, Policies};
use events::Events;
use failover::Failover;
use ha_set::HaSet;
use listing::Listing;
use maintenance::MaintenanceWait;
use protocol::{DONE, ErrorCode, Failure, HostRow, Request, Right, SIGN_OF_LIFE, write_line};
use push::PushWait;
use reload::ReloadWait;
use session_events::SessionEvents;
use status::StatusAnswer;
use witness::Questions;

pub use crate::shell_view::{BarrierView, FastPathState, KeptConfig, PortIo, ShellView};
pub use filter::{Filter, KEYS as FILTER_KEYS};
pub use reload::{ReloadOutcome, ReloadRefused};

/// Hosts listed in one piece: some 100 µs.
const MOST_HOSTS: usize = 200;

/// An answer in progress: it is produced in pieces, as fast as the client reads.
#[derive(Debug)]
pub enum Answer {
    /// The rest of the ports of a status.
    Status(StatusAnswer),
    /// The rest of a listing.
    Listing(Listing),
    /// The rest of the events, and those to come.
    Events(Events),
    /// Sessions that begin and end.
    SessionEvents(SessionEvents),
    /// Questions to the witness.
    Witness(Questions),
    /// The rest of the config.
    Config(ConfigShow),
    /// Sessions are still being counted.
    Count(Count),
    /// The same, by policy.
    Policies(Policies),
    /// Sessions are still being ended.
    Clear(Clear),
    /// Planned handovers in progress.
    Failover(Failover),
    /// The handovers of a unit in maintenance.
    Maintenance(MaintenanceWait),
    /// A reload that is requested or in progress.
    Reload(ReloadWait),
    /// A config that is pushed to all units.
    Push(PushWait),
    /// A switch that waits for a reload to be prepared.
    HaSet(HaSet),
    /// A capture that runs.
    Capture(capture::Stream),
    /// Nothing is left.
    Done,
}

/// The state of an answer after a piece.
pub enum Progress {
    /// There is more to send.
    More,
    /// All is said.
    Done,
}

impl Answer {
    /// Starts the answer to a request line of a client with that right; writes the first piece to
    /// `out`.
    pub fn begin(
        (line, right): (&str, Right),
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
        out: &mut String,
    ) -> Answer {
        let answer = serde_json::from_str::<Request>(line)
            .map_err(|error| {
                Failure::new(
                    ErrorCode::UnknownRequest,
                    format!("unknown request: {error}"),
                )
            })
            .and_then(|request| match request.needs() <= right {
                true => Answer::to(request, gateway, shell, now, out),
                false => Err(not_allowed()),
            });
        match answer {
            Ok(Answer::Done) => done(out),
            Ok(answer) => answer,
            Err(failure) => fail(out, &failure),
        }
    }

    fn to(
        request: Request,
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
        out: &mut String,
    ) -> Result<Answer, Failure> {
        Ok(match request {
            Request::Status => {
                let mut status = StatusAnswer::begin(gateway, shell, now);
                match status.go_on(gateway, shell, now, out) {
                    Progress::Done => Answer::Done,
                    Progress::More => Answer::Status(status),
                }
            }
            Request::Sessions { limit, filter } => {
                Answer::Listing(Listing::begin(limit, &filter, gateway).map_err(bad_request)?)
            }
            Request::Count { filter } => {
                Answer::Count(Count::begin(&filter, gateway).map_err(bad_request)?)
            }
            Request::ConfigShow { full } => Answer::Config(ConfigShow::begin(gateway, full)),
            Request::Events { after, run, follow } => {
                let since = (after, run.as_deref());
                Answer::Events(Events::begin(gateway, since, follow))
            }
            Request::SessionEvents => Answer::SessionEvents(SessionEvents::begin(gateway)),
            request @ (Request::Witness | Request::WitnessAnswer { .. }) => {
                witness::answer(request, gateway, now)?
            }
            Request::Hosts { limit } => {
                write_hosts(limit, gateway, out);
                Answer::Done
            }
            Request::Policies => Answer::Policies(Policies::default()),
            Request::Clear { filter, all } => {
                Answer::Clear(Clear::begin(&filter, all, gateway, now)?)
            }
            Request::Explain(question) => {
                let explanation = explain::explain(&question, gateway, now).map_err(bad_request)?;
                write_line(out, &explanation);
                Answer::Done
            }
            Request::Failover { group, to, force } => {
                let (group, to) = (group.as_deref(), to.as_deref());
                Answer::Failover(Failover::begin(gateway, group, to, force, now)?)
            }
            Request::Maintenance { on, for_s, unit } => {
                Answer::Maintenance(MaintenanceWait::of(gateway, shell, unit, (on, for_s), now)?)
            }
            Request::ConfigHistory => config::write_history(shell, out),
            push @ (Request::PushPart { .. }
            | Request::PushCheck
            | Request::PushApply { .. }
            | Request::PushAccept
            | Request::PushAbort
            | Request::PushStatus) => push::answer(push, gateway, shell, now, out)?,
            Request::Reload { note } => Answer::Reload(ReloadWait::Next(note)),
            Request::HaGet { key } => write_switches(key.as_deref(), gateway, out)?,
            Request::HaSet { key, value } => {
                let mut set = HaSet::begin(gateway, shell, key, value).map_err(bad_request)?;
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

    /// Writes the next piece to `out`, if there is one yet; does nothing after the end.
    pub fn go_on(&mut self, gateway: &mut Gateway, shell: &ShellView, now: Time, out: &mut String) {
        let progress = match self {
            Answer::Status(status) => Ok(status.go_on(gateway, shell, now, out)),
            Answer::Listing(listing) => Ok(listing.go_on(gateway, now, out)),
            Answer::Config(config) => Ok(config.go_on(out)),
            Answer::Events(events) => Ok(events.go_on(gateway, shell, out)),
            Answer::SessionEvents(events) => Ok(events.go_on(gateway, shell, now, out)),
            Answer::Witness(questions) => Ok(questions.go_on(gateway, out)),
            Answer::Count(count) => Ok(count.go_on(gateway, now, out)),
            Answer::Policies(policies) => Ok(policies.go_on(gateway, now, out)),
            Answer::Clear(clear) => Ok(clear.go_on(gateway, now, out)),
            Answer::Failover(failover) => failover.go_on(gateway, now, out),
            Answer::Maintenance(wait) => Ok(wait.go_on(gateway, now, out)),
            Answer::Reload(reload) => reload.go_on(out),
            Answer::HaSet(set) => set.go_on(gateway, now, out),
            Answer::Push(push) => push.go_on(gateway, shell, out),
            Answer::Capture(stream) => Ok(stream.go_on(gateway, now, out)),
            Answer::Done => return,
        };
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => *self = done(out),
            Err(failure) => *self = fail(out, &failure),
        }
    }

    /// Whether the answer waits for an event, not for the client.
    pub fn is_waiting(&self) -> bool {
        match self {
            Answer::Reload(wait) => !matches!(wait, ReloadWait::Ended(_)),
            Answer::Failover(_)
            | Answer::HaSet(_)
            | Answer::Maintenance(_)
            | Answer::Push(_)
            | Answer::Witness(_) => true,
            Answer::Capture(stream) => stream.is_idle(),
            Answer::Events(events) => events.is_idle(),
            Answer::SessionEvents(events) => events.is_idle(),
            Answer::Status(_)
            | Answer::Listing(_)
            | Answer::Config(_)
            | Answer::Count(_)
            | Answer::Policies(_)
            | Answer::Clear(_)
            | Answer::Done => false,
        }
    }

    /// Whether a waiting answer may have something to send. Cheap: called each turn.
    pub fn has_news(&self, gateway: &Gateway) -> bool {
        match self {
            Answer::Events(events) => events.has_news(gateway),
            Answer::SessionEvents(events) => events.has_news(gateway),
            Answer::Witness(questions) => questions.has_news(gateway),
            _ => true,
        }
    }

    /// Whether it has no end of its own, and its client can come back and continue.
    pub fn is_follower(&self) -> bool {
        matches!(self, Answer::Events(_) | Answer::SessionEvents(_)) && self.is_waiting()
    }

    /// Whether the shell should start a reload as soon as none is in progress. It then calls
    /// [`Answer::begin_reload`], and [`Answer::end_reload`] at the end.
    pub fn wants_reload(&self) -> bool {
        matches!(self, Answer::Reload(ReloadWait::Next(_)))
    }

    /// A reload begins; returns how the client calls it. No effect on an answer that does not wait
    /// for one.
    pub fn begin_reload(&mut self) -> Option<String> {
        match self {
            Answer::Reload(wait) => wait.note_begin(),
            _ => None,
        }
    }

    /// The current reload has ended. No effect on an answer that waits for another one.
    pub fn end_reload(&mut self, outcome: &ReloadOutcome) {
        if let Answer::Reload(wait) = self {
            wait.note_end(outcome);
        }
    }

    /// Reports that the gateway is still working, unless the client expects to wait.
    pub fn give_sign_of_life(&self, out: &mut String) {
        match self {
            Answer::Capture(_) | Answer::Done => {}
            Answer::Status(_)
            | Answer::Listing(_)
            | Answer::Config(_)
            | Answer::Count(_)
            | Answer::Events(_)
            | Answer::SessionEvents(_)
            | Answer::Witness(_)
            | Answer::Policies(_)
            | Answer::Clear(_)
            | Answer::Failover(_)
            | Answer::Maintenance(_)
            | Answer::Reload(_)
            | Answer::Push(_)
            | Answer::HaSet(_) => {
                out.push_str(SIGN_OF_LIFE);
                out.push('\n');
            }
        }
    }

    /// The client has ended its side: an answer without an end of its own ends now.
    pub fn finish(&mut self, gateway: &mut Gateway) {
        if let Answer::Events(events) = self {
            events.finish();
        }
        if let Answer::SessionEvents(events) = self {
            events.finish();
        }
        if let Answer::Witness(questions) = self {
            questions.finish();
        }
        if let Answer::Capture(_) = self
            && let Some(capture) = gateway.capture_mut()
        {
            capture.finish();
        }
    }

    /// The client is gone: releases what the answer holds.
    pub fn abandon(self, gateway: &mut Gateway) {
        if let Answer::Capture(_) = &self {
            capture::end(gateway);
        }
        if let Answer::SessionEvents(_) = self {
            SessionEvents::end(gateway);
        }
        if let Answer::Witness(_) = &self {
            Questions::end(gateway);
        }
    }

    /// Whether the answer is complete.
    pub fn is_done(&self) -> bool {
        matches!(self, Answer::Done)
    }
}

fn write_switches(
    key: Option<&str>,
    gateway: &Gateway,
    out: &mut String,
) -> Result<Answer, Failure> {
    for row in ha_set::get(gateway, key)? {
        write_line(out, &row);
    }
    Ok(Answer::Done)
}

fn write_hosts(limit: Option<u64>, gateway: &Gateway, out: &mut String) {
    let most = limit.map_or(MOST_HOSTS, |limit| MOST_HOSTS.min(limit as usize));
    for (source, held) in gateway.holders().take(most) {
        let row = HostRow {
            source: source.to_string(),
            sessions: held.sessions,
            half_open: held.half_open,
            ports: held.ports,
        };
        write_line(out, &row);
    }
}

fn done(out: &mut String) -> Answer {
    out.push_str(DONE);
    out.push('\n');
    Answer::Done
}

fn fail(out: &mut String, failure: &Failure) -> Answer {
    write_line(out, failure);
    Answer::Done
}

/// The answer to a request that is longer than [`protocol::MAX_REQUEST`].
pub fn too_long() -> String {
    let mut out = String::new();
    let sentence = format!("the request is longer than {} bytes", protocol::MAX_REQUEST);
    fail(&mut out, &Failure::new(ErrorCode::TooLong, sentence));
    out
}

fn not_allowed() -> Failure {
    let why = "this user may only read: run this as root, or as the user of the gateway";
    Failure::new(ErrorCode::NotAllowed, why.to_owned())
}

/// The request is wrong in itself.
fn bad_request(why: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::BadRequest, why.to_string())
}

/// In seconds, to the millisecond: as the protocol has durations.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gateway::Seed;

    /// A status of many ports is one line all the same, of which each piece makes a part.
    fn port_io() -> PortIo {
        PortIo {
            offload: "none",
            fast_path: FastPathState::Off,
        }
    }

    #[test]
    fn a_status_of_many_ports_comes_in_pieces() {
        const PORTS: usize = 512;
        let mut config = "[node]\nname = \"a\"\n".to_owned();
        for port in 0..PORTS {
            config += &format!("[[port]]\nname = \"p{port}\"\ninterface = \"eth{port}\"\n");
        }
        let (config, _) = crate::config::parse(Path::new("a.toml"), &config).unwrap();
        let mut gateway = Gateway::new(config, Seed([7; 32]), Time::ZERO);
        let shell = ShellView {
            ports: vec![port_io(); PORTS],
            ..ShellView::default()
        };
        let mut out = String::new();
        let request = (r#"{"command":"status"}"#, Right::Read);
        let mut answer = Answer::begin(request, &mut gateway, &shell, Time::ZERO, &mut out);
        let mut pieces = 1;
        while !answer.is_done() {
            assert_eq!(out, "", "no part of a line");
            answer.go_on(&mut gateway, &shell, Time::ZERO, &mut out);
            pieces += 1;
        }
        assert_eq!(pieces, PORTS / 64);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), 2, "the status, and the end");
        let status: protocol::Status = serde_json::from_str(lines[0]).unwrap();
        let names: Vec<String> = status.ports.into_iter().map(|port| port.name).collect();
        let wanted: Vec<String> = (0..PORTS).map(|port| format!("p{port}")).collect();
        assert_eq!(names, wanted);
    }

    #[test]
    fn who_may_only_read_changes_nothing() {
        let config = "[node]\nname = \"a\"\n[[port]]\nname = \"lan\"\ninterface = \"eth0\"\n";
        let (config, _) = crate::config::parse(Path::new("a.toml"), config).unwrap();
        let mut gateway = Gateway::new(config, Seed([7; 32]), Time::ZERO);
        let shell = ShellView {
            ports: vec![port_io()],
            ..ShellView::default()
        };
        let mut ask = |line: &str, right| {
            let mut out = String::new();
            let mut answer =
                Answer::begin((line, right), &mut gateway, &shell, Time::ZERO, &mut out);
            for _ in 0..9 {
                answer.go_on(&mut gateway, &shell, Time::ZERO, &mut out);
            }
            answer.abandon(&mut gateway);
            out
        };
        for line in [
            r#"{"command":"status"}"#,
            r#"{"command":"sessions"}"#,
            r#"{"command":"policies"}"#,
            r#"{"command":"events"}"#,
            r#"{"command":"config-show"}"#,
        ] {
            assert_eq!(ask(line, Right::Read), ask(line, Right::Change), "{line}");
            assert!(
                ask(line, Right::Read).ends_with("{\"done\":true}\n"),
                "{line}"
            );
        }
        for line in [
            r#"{"command":"clear","all":true}"#,
            r#"{"command":"failover"}"#,
            r#"{"command":"maintenance","on":true}"#,
            r#"{"command":"reload"}"#,
            r#"{"command":"ha-set","key":"priority","value":"1"}"#,
            r#"{"command":"capture"}"#,
        ] {
            let refused = ask(line, Right::Read);
            let failure = Failure::parse(refused.trim()).unwrap();
            assert_eq!(failure.code, Some(ErrorCode::NotAllowed), "{line}");
            let allowed = ask(line, Right::Change);
            assert!(!allowed.contains("not-allowed"), "{line}: {allowed}");
        }
    }
}
