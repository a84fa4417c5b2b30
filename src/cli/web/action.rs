//! What the page asks for beside the stream: requests of the admin protocol, of which only some are
//! passed on, and a switch for all units.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tandemgw_core::config;
use tandemgw_core::control::protocol::{
    Explanation, PushReport, PushUnitState, Request, Right, Status,
};

use super::lines;
use crate::cli::client::{Client, ClientError, PATIENCE, parse};
use crate::cli::{explain, ha, push};

/// The most sessions that the page asks for.
const MOST_SESSIONS: u64 = 200;

/// What the page asks for.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A request of the admin protocol.
    Ask(Request),
    /// What another value of a switch would change on each unit.
    CheckSwitch {
        /// The switch.
        key: String,
        /// Its value, as in the config, without quotes.
        value: String,
    },
}

impl Action {
    /// The right that it requires; nothing if the page has no use for it.
    pub fn needs(&self) -> Option<Right> {
        let request = match self {
            Action::CheckSwitch { .. } => return Some(Right::Change),
            Action::Ask(request) => request,
        };
        let is_known = match request {
            Request::Status
            | Request::Count { .. }
            | Request::Explain(_)
            | Request::HaGet { .. }
            | Request::PushStatus
            | Request::Clear { .. }
            | Request::Failover { .. }
            | Request::Maintenance { .. }
            | Request::HaSet { .. }
            | Request::PushApply { .. }
            | Request::PushAccept
            | Request::PushAbort => true,
            Request::Sessions { limit, .. } => limit.is_some_and(|it| it <= MOST_SESSIONS),
            _ => false,
        };
        is_known.then(|| request.needs())
    }

    /// Does it, on the gateway at `socket`.
    ///
    /// # Errors
    /// Why it is not done.
    pub fn run(self, socket: &Path) -> Result<Value, ClientError> {
        let mut client = Client::connect(Some(socket), PATIENCE)?;
        match self {
            Action::CheckSwitch { key, value } => check_switch(&mut client, &key, &value),
            Action::Ask(request) => ask(&mut client, &by_the_page(request)),
        }
    }
}

/// The history of configs says who: the page does not choose.
fn by_the_page(request: Request) -> Request {
    match request {
        Request::PushApply {
            push, confirm_s, ..
        } => Request::PushApply {
            push,
            confirm_s,
            by: Some("tandemgw web".to_owned()),
        },
        other => other,
    }
}

fn ask(client: &mut Client, request: &Request) -> Result<Value, ClientError> {
    let lines = lines(client, request)?;
    let text = match (request, lines.first()) {
        (Request::Explain(_), Some(line)) => Some(explained(line)?),
        _ => None,
    };
    let parsed: Result<Vec<Value>, _> = lines.iter().map(|line| parse(line)).collect();
    Ok(json!({ "lines": parsed?, "text": text }))
}

/// An explanation in the words of `tandemgw explain`.
fn explained(line: &str) -> Result<String, ClientError> {
    let explanation: Explanation = parse(line)?;
    let mut text = Vec::new();
    explain::print(&explanation, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Sends the config with another value of the switch to all units, which say what they think of it.
fn check_switch(client: &mut Client, key: &str, value: &str) -> Result<Value, ClientError> {
    let why_not = |why: String| ClientError::Failed(why);
    // Any other key of the config is not for this page to change.
    if !config::switch_names().any(|known| known == key) {
        return Err(why_not(format!("there is no switch `{key}`")));
    }
    let status: Status = client.status()?;
    let file = status.config.map(|it| it.file).unwrap_or_default();
    let read = fs::read_to_string(&file).map_err(|error| why_not(format!("{file}: {error}")))?;
    let toml = ha::as_toml(value);
    let text = ha::with_switch(&read, &status.node, key, &toml)
        .map_err(|error| why_not(format!("{file}: {error}")))?;
    push::send(client, &text)?;
    let mut report = None;
    client.ask(&Request::PushCheck, |line| {
        report = Some(parse::<PushReport>(line)?);
        Ok(())
    })?;
    let report = report.ok_or_else(|| why_not("there was no answer".to_owned()))?;
    let is_refused = |it: &PushReport| {
        let mut units = it.units.iter();
        units.any(|unit| unit.state == Some(PushUnitState::Failed))
    };
    let refused = is_refused(&report);
    if refused {
        client.ask(&Request::PushAbort, |_| Ok(()))?;
    }
    Ok(json!({
        "push": report.push,
        "refused": refused,
        "text": push::differences(&report),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(text: &str) -> Option<Right> {
        serde_json::from_str::<Action>(text).ok()?.needs()
    }

    #[test]
    fn only_what_the_page_has_a_use_for_is_passed_on() {
        for (text, right) in [
            (r#"{"ask":{"command":"ha-get"}}"#, Some(Right::Read)),
            (r#"{"ask":{"command":"failover"}}"#, Some(Right::Change)),
            (
                r#"{"ask":{"command":"clear","all":true}}"#,
                Some(Right::Change),
            ),
            (
                r#"{"check-switch":{"key":"a","value":"b"}}"#,
                Some(Right::Change),
            ),
            // They would not end, show the content of packets, or make a config of their own.
            (r#"{"ask":{"command":"events","follow":true}}"#, None),
            (r#"{"ask":{"command":"capture","filter":[]}}"#, None),
            (r#"{"ask":{"command":"push-part","at":0,"text":""}}"#, None),
            (r#"{"ask":{"command":"sessions"}}"#, None),
            (r#"{"ask":{"command":"config-show"}}"#, None),
            ("", None),
        ] {
            assert_eq!(needs(text), right, "{text}");
        }
    }
}
