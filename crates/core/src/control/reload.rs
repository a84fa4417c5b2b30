//! A reload of the config that an administrator asks for.

use std::fmt::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::config::Difference;
use crate::gateway::{Gateway, Reloaded};

use super::Progress;

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

    pub fn go_on(&mut self, gateway: &Gateway, out: &mut String) -> Result<Progress, String> {
        let Reload::Made {
            outcome,
            ended_before,
        } = self
        else {
            return Ok(Progress::More);
        };
        let config_file = &outcome.config_file;
        match &outcome.result {
            Ok(_) if gateway.is_reloading() => Ok(Progress::More),
            Ok(reloaded) => {
                let line = json!({
                    "config": config_file,
                    "changed": differences(&reloaded.applied),
                    "restart": differences(&reloaded.waiting),
                    "more": reloaded.more,
                    "sessions_ended": gateway.counters().forbidden.saturating_sub(*ended_before),
                    "warnings": outcome.warnings,
                });
                let _ = writeln!(out, "{line}");
                Ok(Progress::Done)
            }
            Err(refused) => {
                let ReloadRefused {
                    why,
                    problems,
                    text,
                } = refused;
                let line = json!({ "config": config_file, "problems": problems, "text": text });
                let _ = writeln!(out, "{line}");
                Err(format!("{why}; nothing has changed"))
            }
        }
    }
}

fn differences(list: &[Difference]) -> Value {
    list.iter()
        .map(|Difference { key, what }| json!({ "key": key, "what": what }))
        .collect()
}
