//! The config in force, in pieces.

use std::sync::Arc;

use crate::config::{Config, ConfigText};
use crate::gateway::Gateway;

use super::Progress;
use super::protocol::{ConfigPart, write_line};

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
