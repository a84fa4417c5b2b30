//! A reload of the config, requested by an administrator.

use std::path::PathBuf;

use crate::config::Difference;
use crate::gateway::Reloaded;

use super::Progress;
use super::protocol::{Change, ErrorCode, Failure, ReloadDone, write_line};

/// The result of a reload, from the shell.
#[derive(Clone, Debug)]
pub struct ReloadOutcome {
    /// The config file, absolute.
    pub config_file: PathBuf,
    /// The changes, or the reason why nothing changed.
    pub result: Result<Reloaded, ReloadRefused>,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
    /// Sessions that the new rules have ended.
    pub sessions_ended: u64,
}

/// Why a reload failed.
#[derive(Clone, Debug)]
pub struct ReloadRefused {
    /// In one sentence.
    pub why: String,
    /// The mistakes in the file, one line each: `FILE:LINE:COL: …`.
    pub problems: Vec<String>,
    /// The same as `tandemgw check` shows it.
    pub text: String,
}

/// The reload that a client waits for.
#[derive(Debug)]
pub enum ReloadWait {
    /// The next one: the current one may have read the file before the client asked. With what the
    /// client calls it.
    Next(Option<String>),
    /// The current one.
    Current,
    /// It has ended, and the client must be informed.
    Ended(Box<ReloadOutcome>),
}

impl ReloadWait {
    /// The next one begins; returns what the client calls it.
    pub(crate) fn note_begin(&mut self) -> Option<String> {
        if !matches!(self, ReloadWait::Next(_)) {
            return None;
        }
        match std::mem::replace(self, ReloadWait::Current) {
            ReloadWait::Next(note) => Some(note.unwrap_or_else(|| "reload".to_owned())),
            _ => None,
        }
    }

    pub(crate) fn note_end(&mut self, outcome: &ReloadOutcome) {
        if matches!(self, ReloadWait::Current) {
            *self = ReloadWait::Ended(Box::new(outcome.clone()));
        }
    }

    pub fn go_on(&mut self, out: &mut String) -> Result<Progress, Failure> {
        let ReloadWait::Ended(outcome) = self else {
            return Ok(Progress::More);
        };
        let config = outcome.config_file.clone();
        match &outcome.result {
            Ok(reloaded) => {
                let done = ReloadDone {
                    config,
                    changed: Some(changes(&reloaded.applied)),
                    restart: Some(changes(&reloaded.waiting)),
                    more: Some(reloaded.more as u64),
                    sessions_ended: Some(outcome.sessions_ended),
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
