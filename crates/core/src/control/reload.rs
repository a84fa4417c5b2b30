//! A reload of the config that an administrator asks for.

use std::path::PathBuf;

use crate::config::Difference;
use crate::gateway::{Gateway, Reloaded};

use super::Progress;
use super::protocol::{Change, ErrorCode, Failure, ReloadDone, write_line};

/// What came of reading the config file anew, as the shell tells.
#[derive(Clone, Debug)]
pub struct ReloadOutcome {
    /// The config file, absolute.
    pub config_file: PathBuf,
    /// What has changed, or why nothing has.
    pub result: Result<Reloaded, ReloadRefused>,
    /// What should be looked at nevertheless, a sentence each.
    pub warnings: Vec<String>,
}

/// Why a reload has changed nothing.
#[derive(Clone, Debug)]
pub struct ReloadRefused {
    /// In one sentence.
    pub why: String,
    /// Each mistake in the file, as `FILE:LINE:COL: …`, a line each.
    pub problems: Vec<String>,
    /// The same as `tandemgw check` shows it.
    pub text: String,
}

/// A client that waits for a reload.
#[derive(Debug)]
pub enum Reload {
    /// The shell has yet to begin.
    Wanted,
    /// The shell has read the file.
    Begun,
    /// It was made; sessions may have yet to be compared with it.
    Made {
        outcome: Box<ReloadOutcome>,
        /// Sessions that reloads had ended before this one.
        ended_before: u64,
    },
}

impl Reload {
    pub fn note_begin(&mut self) {
        if matches!(self, Reload::Wanted) {
            *self = Reload::Begun;
        }
    }

    pub fn tell(&mut self, outcome: &ReloadOutcome, ended_before: u64) {
        if matches!(self, Reload::Begun) {
            *self = Reload::Made {
                outcome: Box::new(outcome.clone()),
                ended_before,
            };
        }
    }

    pub fn go_on(&mut self, gateway: &Gateway, out: &mut String) -> Result<Progress, Failure> {
        let Reload::Made {
            outcome,
            ended_before,
        } = self
        else {
            return Ok(Progress::More);
        };
        let config = outcome.config_file.clone();
        match &outcome.result {
            Ok(_) if gateway.is_reloading() => Ok(Progress::More),
            Ok(reloaded) => {
                let ended = gateway.counters().forbidden.saturating_sub(*ended_before);
                let done = ReloadDone {
                    config,
                    changed: Some(changes(&reloaded.applied)),
                    restart: Some(changes(&reloaded.waiting)),
                    more: Some(reloaded.more as u64),
                    sessions_ended: Some(ended),
                    warnings: Some(outcome.warnings.clone()),
                    ..ReloadDone::default()
                };
                write_line(out, &done);
                Ok(Progress::Done)
            }
            Err(refused) => {
                let done = ReloadDone {
                    config,
                    problems: Some(refused.problems.clone()),
                    text: Some(refused.text.clone()),
                    ..ReloadDone::default()
                };
                write_line(out, &done);
                let why = format!("{}; nothing has changed", refused.why);
                Err(Failure::new(ErrorCode::Refused, why))
            }
        }
    }
}

fn changes(list: &[Difference]) -> Vec<Change> {
    list.iter()
        .map(|Difference { key, what }| Change {
            key: key.clone(),
            what: what.clone(),
        })
        .collect()
}
