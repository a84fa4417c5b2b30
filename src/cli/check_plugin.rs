//! `tandemgw status --check`: one line and an exit code, as monitoring plugins answer (Nagios,
//! Icinga).

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use tandemgw_core::control::protocol::{HealthState, Status};

use super::client::{Client, ClientError, PATIENCE};
use super::table::duration;

/// The exit codes of monitoring plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    Unknown = 3,
}

pub fn check(socket: Option<&Path>) -> ExitCode {
    let asked = Client::connect(socket, PATIENCE).and_then(|mut client| client.status());
    let (code, line) = match asked {
        Ok(status) => judge(&status),
        Err(error @ ClientError::NotAllowed(_)) => (Code::Unknown, error.to_string()),
        // A gateway that does not answer forwards nothing either.
        Err(error) => (Code::Critical, error.to_string()),
    };
    // It does not matter if nobody reads it.
    let _ = writeln!(io::stdout(), "{} - {line}", word(code));
    ExitCode::from(code as u8)
}

/// The code, and the text after its word.
fn judge(status: &Status) -> (Code, String) {
    let Some(health) = &status.health else {
        let version = &status.version;
        let line = format!(
            "the running gateway is tandemgw {version}, which does not report its health: restart it"
        );
        return (Code::Unknown, line);
    };
    let code = match health.state {
        HealthState::Good => Code::Ok,
        HealthState::Warning => Code::Warning,
        HealthState::Critical => Code::Critical,
    };
    let roles = status.groups.iter().map(|group| {
        let (role, name) = (group.role.name(), &group.name);
        format!("{role} of {name}")
    });
    let roles = roles.collect::<Vec<_>>().join(", ");
    let what = match health.troubles.is_empty() {
        true => format!("{} is {roles}, good", status.node),
        false => {
            let troubles = health.troubles.iter();
            let reasons: Vec<&str> = troubles.map(|trouble| trouble.reason.as_str()).collect();
            format!("{} is {roles}: {}", status.node, reasons.join("; "))
        }
    };
    let since = duration(health.since as u64);
    let (sessions, max) = (status.sessions.total, status.sessions.max);
    let line = format!("{what}, for {since} | sessions={sessions};;;0;{max}");
    // A bar would start the performance data.
    (code, line.replacen(['\n', '\r'], " ", usize::MAX))
}

fn word(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Warning => "WARNING",
        Code::Critical => "CRITICAL",
        Code::Unknown => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use tandemgw_core::control::protocol::{HealthStatus, TroubleStatus};

    use super::*;
    use crate::cli::sample;

    #[test]
    fn the_code_is_that_of_the_worst_trouble() {
        let mut status = sample::status();
        status.health = None;
        assert_eq!(judge(&status).0, Code::Unknown);
        let health = |state, troubles: Vec<TroubleStatus>| HealthStatus {
            state,
            reason: troubles.first().map(|trouble| trouble.reason.clone()),
            since: 61.2,
            troubles,
        };
        status.health = Some(health(HealthState::Good, vec![]));
        let (code, line) = judge(&status);
        assert_eq!(code, Code::Ok);
        assert_eq!(
            line,
            "gw-a is primary of default, good, for 1m 1s | sessions=1234;;;0;1048576"
        );
        let trouble = |state, reason: &str| TroubleStatus {
            state,
            reason: reason.to_owned(),
            since: 61.2,
        };
        let troubles = vec![
            trouble(HealthState::Critical, "port wan is down"),
            trouble(HealthState::Warning, "gw-b is gone: its process ended"),
        ];
        status.health = Some(health(HealthState::Critical, troubles));
        let (code, line) = judge(&status);
        assert_eq!(code, Code::Critical);
        assert_eq!(
            line,
            "gw-a is primary of default: port wan is down; gw-b is gone: its process ended, \
             for 1m 1s | sessions=1234;;;0;1048576"
        );
    }
}
