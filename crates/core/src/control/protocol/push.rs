//! Answers about a config that is pushed to all units.

use serde::{Deserialize, Serialize};

use super::Change;

/// How far a push is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PushReport {
    /// Names the push in further requests; `null` if this unit has led none.
    pub push: Option<String>,
    /// The generation that it makes: one more than that of the config before; `null` likewise.
    pub generation: Option<u64>,
    /// How far it is; `null` likewise.
    pub state: Option<PushState>,
    /// When all units go back unless it is confirmed; `null` if they do not.
    pub until: Option<f64>,
    /// Each unit, this one first.
    pub units: Vec<PushUnit>,
}

/// How far a push is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushState {
    /// Units are still to answer.
    Checking,
    /// All units have said what they think of it.
    Checked,
    /// It is being put in force.
    Applying,
    /// It is in force, and in no file.
    Trial,
    /// The files are being written.
    Committing,
    /// It is in the files of all units that were there.
    Committed,
    /// All units have the config before.
    Failed,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

/// A unit and a config that is pushed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PushUnit {
    /// The name of its node.
    pub node: String,
    /// How far it is; `null` if no push is known.
    pub state: Option<PushUnitState>,
    /// Why it can't have it, or does not have it.
    pub why: Option<String>,
    /// How its config compares with that of this unit: `same`, `behind`, `ahead`, `conflict`;
    /// `null` for this unit, and if it is not known.
    pub compared: Option<String>,
    /// What would change at once.
    pub changed: Vec<Change>,
    /// What would wait for a restart.
    pub restart: Vec<Change>,
    /// How many more changes there are than these lists have.
    pub more: u64,
}

/// How far a unit is with a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushUnitState {
    /// It was not there: it gets the config when it returns.
    Away,
    /// It has not answered yet.
    Asked,
    /// It can have it.
    Fits,
    /// It was told to put it in force.
    Told,
    /// It is in force.
    InForce,
    /// It is in its file.
    Committed,
    /// It can't have it, or does not have it: see `why`.
    Failed,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}
