//! What the page asks for beside the stream: requests of the admin protocol, of which only some are
//! passed on, and a switch for all units.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, TryLockError};

use clap::ValueEnum;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tandemgw::os::clock;
use tandemgw_core::config;
use tandemgw_core::control::protocol::{
    Explanation, PushReport, PushUnitState, Request, Right, SessionCount, Status,
};

use super::{Gateway, lines};
use crate::cli::args::{SortKey, Talker};
use crate::cli::client::{Client, ClientError, PATIENCE, parse};
use crate::cli::sessions::First;
use crate::cli::talkers::Sums;
use crate::cli::{explain, ha, push};

/// The most sessions that the page shows.
const MOST_SESSIONS: u64 = 200;

/// The most sources, destinations or services among which it looks for the largest: some 20 MB.
const MOST_TALKERS: usize = 100_000;

/// One search at a time reads all sessions.
static SEARCH: Mutex<()> = Mutex::new(());

/// What the page asks for.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A request of the admin protocol.
    Ask(Request),
    /// The last hour, for the graphs.
    History,
    /// The first sessions that match, in an order.
    Sessions {
        /// As in `tandemgw sessions`.
        filter: Vec<String>,
        /// In the order of the table if there is none.
        #[serde(default, deserialize_with = "optional_word")]
        sort: Option<SortKey>,
    },
    /// Who has the most traffic of the sessions that match.
    Talkers {
        /// As in `tandemgw sessions`.
        filter: Vec<String>,
        /// What is summed up.
        #[serde(deserialize_with = "word")]
        by: Talker,
    },
    /// What another value of a switch would change on each unit.
    CheckSwitch {
        /// The switch.
        key: String,
        /// Its value, as in the config, without quotes.
        value: String,
    },
}

/// A value of the command line.
fn word<'de, D: Deserializer<'de>, T: ValueEnum>(from: D) -> Result<T, D::Error> {
    T::from_str(&String::deserialize(from)?, false).map_err(D::Error::custom)
}

fn optional_word<'de, D: Deserializer<'de>, T: ValueEnum>(from: D) -> Result<Option<T>, D::Error> {
    let word = Option::<String>::deserialize(from)?;
    let value = word.map(|word| T::from_str(&word, false));
    value.transpose().map_err(D::Error::custom)
}

impl Action {
    /// The right that it requires; nothing if the page has no use for it.
    pub fn needs(&self) -> Option<Right> {
        let request = match self {
            Action::CheckSwitch { .. } => return Some(Right::Change),
            Action::History | Action::Sessions { .. } | Action::Talkers { .. } => {
                return Some(Right::Read);
            }
            Action::Ask(request) => request,
        };
        let is_known = matches!(
            request,
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
                | Request::PushAbort
        );
        is_known.then(|| request.needs())
    }

    /// Does it.
    ///
    /// # Errors
    /// Why it is not done.
    pub fn run(self, gateway: &Gateway) -> Result<Value, ClientError> {
        let connect = || Client::connect(Some(&gateway.path), PATIENCE);
        match self {
            Action::History => Ok(gateway.shown().history.shown(clock::now())),
            Action::CheckSwitch { key, value } => check_switch(&mut connect()?, &key, &value),
            Action::Ask(request) => ask(&mut connect()?, &by_the_page(request)),
            Action::Sessions { filter, sort } => sessions(&mut connect()?, filter, sort),
            Action::Talkers { filter, by } => talkers(&mut connect()?, filter, by),
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

/// The first sessions, and how many match.
fn sessions(
    client: &mut Client,
    filter: Vec<String>,
    sort: Option<SortKey>,
) -> Result<Value, ClientError> {
    let request = |limit| Request::Sessions {
        limit,
        filter: filter.clone(),
    };
    let found = match sort {
        None => lines(client, &request(Some(MOST_SESSIONS)))?,
        Some(key) => {
            let _turn = take_turn()?;
            let mut first = First::new(key, Some(MOST_SESSIONS));
            client.ask(&request(None), |line| first.add(line))?;
            first.into_lines().collect()
        }
    };
    let count = lines(client, &Request::Count { filter })?;
    let count: Option<SessionCount> = count.first().map(|line| parse(line)).transpose()?;
    let rows: Result<Vec<Value>, _> = found.iter().map(|line| parse(line)).collect();
    Ok(json!({ "rows": rows?, "all": count.map(|count| count.sessions) }))
}

fn talkers(client: &mut Client, filter: Vec<String>, by: Talker) -> Result<Value, ClientError> {
    let _turn = take_turn()?;
    let mut sums = Sums::new(by);
    let request = Request::Sessions {
        limit: None,
        filter,
    };
    client.ask(&request, |line| {
        sums.add(&parse(line)?);
        match sums.len() <= MOST_TALKERS {
            true => Ok(()),
            false => Err(ClientError::Failed(format!(
                "there are more than {MOST_TALKERS}: filter them, or use `tandemgw sessions --top`"
            ))),
        }
    })?;
    let (rows, all) = sums.largest(MOST_SESSIONS as usize);
    Ok(json!({ "rows": rows, "all": all }))
}

fn take_turn() -> Result<MutexGuard<'static, ()>, ClientError> {
    match SEARCH.try_lock() {
        Ok(turn) => Ok(turn),
        Err(TryLockError::Poisoned(turn)) => Ok(turn.into_inner()),
        Err(TryLockError::WouldBlock) => {
            let why = "another search reads all sessions now: try again";
            Err(ClientError::Failed(why.to_owned()))
        }
    }
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
    push::send(client, &push::whole(Path::new(&file), &text)?)?;
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
            (r#""history""#, Some(Right::Read)),
            (
                r#"{"sessions":{"filter":["proto=tcp"],"sort":"bytes"}}"#,
                Some(Right::Read),
            ),
            (
                r#"{"talkers":{"filter":[],"by":"service"}}"#,
                Some(Right::Read),
            ),
            (r#"{"sessions":{"filter":[],"sort":"owner"}}"#, None),
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
