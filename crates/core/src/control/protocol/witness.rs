//! What `tandemgw witness` is asked, and answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A question to the witness, with all that is needed to reach it. It is asked about each second,
/// also without a group, to see whether the witness answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WitnessQuestion {
    /// Identifies the process of the gateway, in hexadecimal digits.
    pub run: String,
    /// The number of the question.
    pub number: u64,
    /// The name of this unit.
    pub node: String,
    /// `endpoints` of `[ha.witness]`.
    pub endpoints: Vec<String>,
    /// `ca`
    pub ca: Option<PathBuf>,
    /// `cert`
    pub cert: Option<PathBuf>,
    /// `key`
    pub key: Option<PathBuf>,
    /// `user`
    pub user: Option<String>,
    /// `password-file`
    pub password_file: Option<PathBuf>,
    /// What all keys begin with.
    pub prefix: String,
    /// `lease`, in seconds.
    pub lease_s: f64,
    /// `timeout`, in seconds: a later answer is not heard.
    pub timeout_s: f64,
    /// The leases that it is about.
    pub leases: Vec<LeaseQuestion>,
}

/// What a unit wants of the lease of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseQuestion {
    /// The name of the group; its key is that after `prefix`.
    pub group: String,
    /// Hold it, taking it if nobody has it; or else give it back.
    pub hold: bool,
    /// Units from which it is taken as if they had it not.
    pub take_from: Vec<String>,
}

/// Who has the lease of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseHolder {
    /// The name of the group.
    pub group: String,
    /// The name of the unit; `null` if nobody has it.
    pub holder: Option<String>,
}

/// The witness as this unit sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WitnessStatus {
    /// Whether it answers; `null` if it was not asked yet.
    pub answers: Option<bool>,
    /// For how many seconds that has been so.
    pub since: f64,
    /// Why it does not answer; `null` if it does.
    pub why: Option<String>,
    /// How often this unit was in doubt, and the witness gave it a group.
    pub granted: u64,
    /// How often the witness gave a group to another unit, which this one did not hear.
    pub refused: u64,
    /// How often this unit was in doubt, and decided without the witness.
    pub without: u64,
}
