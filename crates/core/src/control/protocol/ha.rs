//! Answers about the pair and its config: handovers, switches, reloads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The end of the planned handover of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HandoverDone {
    /// `name` of the `[[group]]`.
    pub group: String,
    /// The node that was asked to take over.
    pub to: String,
    /// How long it took, in milliseconds, until that node said that it is primary.
    pub took_ms: f64,
    /// Why the group was not handed over; `null` if it was.
    pub refused: Option<String>,
}

/// A switch of `[ha]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchRow {
    /// The key of `[ha]`, such as `priority`.
    pub key: String,
    /// The value in force, as in the config but without quotes.
    pub value: String,
}

/// A maintenance has begun or ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceDone {
    /// The name of the unit that answers.
    pub node: String,
    /// Whether it is in maintenance now.
    pub on: bool,
    /// When that ends by itself, in seconds since 1970; `null` if it does not.
    pub until: Option<f64>,
    /// Groups that it is still primary of. It hands them over as soon as another unit can take
    /// them.
    pub primary_of: Vec<String>,
}

/// A part of the config in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigPart {
    /// One table, as it stands in a config file.
    pub text: String,
}

/// A config that was in force: the texts of its file and of the files that it includes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigVersion {
    /// Its number, which no other one gets.
    pub version: u64,
    /// When it came in force.
    pub at: f64,
    /// The user who asked for it, or `file` if nobody known did.
    pub who: String,
    /// How: `start`, `reload`, `SIGHUP`, `rollback to 3`.
    pub how: String,
    /// The length of its texts, in bytes.
    pub bytes: u64,
    /// How many files it has.
    pub files: u64,
    /// Where it is kept, on the unit.
    pub kept_in: PathBuf,
}

/// A switch of `[ha]` was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchDone {
    /// The key of `[ha]`, such as `priority`.
    pub key: String,
    /// The old value, in readable form.
    pub old: String,
    /// The value now.
    pub new: String,
    /// The new value, as in a TOML file.
    pub toml: String,
    /// The config file, absolute.
    pub config: PathBuf,
    /// Groups with their own priority, which a change of `priority` does not affect.
    pub groups_with_their_own: Vec<String>,
    /// Whether the client wrote the value to the config file. Only `tandemgw ha set --save --json`
    /// says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved: Option<bool>,
}

/// The result of rereading the config file. A failed reload has `problems` and `text`, and then the
/// reason, as a failure; a successful one has all other fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadDone {
    /// The config file, absolute.
    pub config: PathBuf,
    /// Changes that are in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<Vec<Change>>,
    /// Changes in the file that need a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<Vec<Change>>,
    /// How many more changes there are than these lists have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more: Option<u64>,
    /// Sessions that ended because the new policies forbid them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_ended: Option<u64>,
    /// Warnings although the reload succeeded, one sentence each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnings: Option<Vec<String>>,
    /// Each mistake in the file, as `FILE:LINE:COL: …`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problems: Option<Vec<String>>,
    /// The mistakes as `tandemgw check` shows them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// A difference between two configs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key, or the table with its name.
    pub key: String,
    /// The difference, such as `20 → 30` or `added`.
    pub what: String,
}
