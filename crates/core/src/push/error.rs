//! Why a push can't begin or go on.

use std::fmt;

use super::MAX_TEXT;

/// Why a push can't begin or go on. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushError {
    /// Two clients send a text at the same time, and this is not the next piece of it.
    OtherUpload,
    /// The text is longer than [`MAX_TEXT`].
    TooLong,
    /// No text was sent.
    NoText,
    /// This unit leads another push.
    UnderWay,
    /// The unit named leads a push, and its config is on trial here.
    OnTrial(String),
    /// No generation is left: the highest one was used.
    NoGeneration,
    /// The push was not checked by all units, or another one took its place since.
    NotChecked,
    /// A unit can't have the config.
    Unfit {
        /// The unit's name.
        unit: String,
        /// What it says.
        why: String,
    },
    /// The unit named leads the push, and only it can confirm or end it.
    LedBy(String),
    /// No push waits for a confirmation.
    NothingWaits,
}

impl PushError {
    /// Whether the same request may succeed a little later.
    pub fn is_busy(&self) -> bool {
        matches!(
            self,
            PushError::OtherUpload | PushError::UnderWay | PushError::OnTrial(_)
        )
    }
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PushError::OtherUpload => f.write_str("another client sends a config: try again"),
            PushError::TooLong => write!(f, "a config that is pushed has {MAX_TEXT} bytes at most"),
            PushError::NoText => f.write_str("there is no config to push"),
            PushError::UnderWay => f.write_str("another push is under way"),
            PushError::OnTrial(leader) => {
                write!(f, "a config of {leader} waits for its confirmation there")
            }
            PushError::NoGeneration => f.write_str("the numbers of configs are used up"),
            PushError::NotChecked => f.write_str("it is not checked any more: push it again"),
            PushError::Unfit { unit, why } => write!(f, "{unit}: {why}"),
            PushError::LedBy(leader) => {
                write!(f, "{leader} leads the push: confirm or end it there")
            }
            PushError::NothingWaits => f.write_str("no push waits for a confirmation"),
        }
    }
}

impl std::error::Error for PushError {}
