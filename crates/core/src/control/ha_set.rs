//! Shows and sets the switches of `[ha]` while the gateway runs.

use std::path::PathBuf;

use crate::config::{self, SwitchError};
use crate::filter_words::known;
use crate::gateway::Gateway;
use crate::time::Time;

use super::protocol::{Failure, SwitchDone, SwitchRow, write_line};
use super::{Progress, ShellView, bad_request};

/// The current switches, or the requested one.
///
/// # Errors
/// Why it can't be answered.
pub(super) fn get(gateway: &Gateway, key: Option<&str>) -> Result<Vec<SwitchRow>, Failure> {
    let switches = config::switches(gateway.config());
    let switches = switches.ok_or_else(|| bad_request(SwitchError::Standalone))?;
    if let Some(key) = key {
        known("switch", key, config::switch_names()).map_err(bad_request)?;
    }
    let wanted = switches
        .into_iter()
        .filter(|(name, _)| key.is_none_or(|key| key == *name));
    Ok(wanted
        .map(|(name, value)| SwitchRow {
            key: name.to_owned(),
            value,
        })
        .collect())
}

/// A switch to set at once, or as soon as no reload is being prepared.
#[derive(Debug)]
pub struct HaSet {
    key: String,
    value: String,
    config_file: PathBuf,
}

impl HaSet {
    /// Checks whether the switch can be set.
    ///
    /// # Errors
    /// Why it can't.
    pub fn begin(
        gateway: &Gateway,
        shell: &ShellView,
        key: String,
        value: String,
    ) -> Result<HaSet, SwitchError> {
        config::set_switch(gateway.config(), &key, &value)?;
        Ok(HaSet {
            key,
            value,
            config_file: shell.config_file.clone(),
        })
    }

    pub fn go_on(
        &mut self,
        gateway: &mut Gateway,
        now: Time,
        out: &mut String,
    ) -> Result<Progress, Failure> {
        if gateway.is_lent() {
            return Ok(Progress::More);
        }
        let HaSet { key, value, .. } = self;
        let switched = gateway.set_switch(now, key, value).map_err(bad_request)?;
        let groups = gateway.config().known_groups();
        let kept = groups
            .map(|(_, group)| group)
            .filter(|group| key == "priority" && group.priority.is_some())
            .map(|group| group.name.clone())
            .collect();
        let done = SwitchDone {
            key: key.clone(),
            old: switched.old,
            new: switched.new,
            toml: switched.toml,
            config: self.config_file.clone(),
            groups_with_their_own: kept,
            saved: None,
        };
        write_line(out, &done);
        Ok(Progress::Done)
    }
}
