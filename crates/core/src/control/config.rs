//! The config in force, in pieces, and those before it.

use std::sync::Arc;

use crate::config::{Config, ConfigText};
use crate::gateway::Gateway;

use crate::shell_view::ShellView;

use super::protocol::{ConfigPart, ConfigVersion, write_line};
use super::{Answer, Progress};

/// Tables per piece: policies, of which there may be many, take some 2 µs each.
const PIECE: usize = 32;

/// The rest of the config that was in force when the request came.
#[derive(Debug)]
pub struct ConfigShow {
    config: Arc<Config>,
    text: ConfigText,
    full: bool,
}

impl ConfigShow {
    pub fn begin(gateway: &Gateway, full: bool) -> ConfigShow {
        ConfigShow {
            config: gateway.shared_config(),
            text: ConfigText::default(),
            full,
        }
    }

    pub fn go_on(&mut self, out: &mut String) -> Progress {
        for _ in 0..PIECE {
            match self.text.next(&self.config, self.full) {
                Some(text) => write_line(out, &ConfigPart { text }),
                None => return Progress::Done,
            }
        }
        Progress::More
    }
}

/// Writes a row for each config that is kept: the shell keeps no more than some dozens.
pub(super) fn write_history(shell: &ShellView, out: &mut String) -> Answer {
    for kept in &shell.history {
        let row = ConfigVersion {
            version: kept.version,
            at: kept.at,
            who: kept.who.clone(),
            how: kept.how.clone(),
            bytes: kept.bytes,
            files: kept.files,
            kept_in: kept.kept_in.clone(),
        };
        write_line(out, &row);
    }
    Answer::Done
}
