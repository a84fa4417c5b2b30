//! The config file that a command is given.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use tandemgw_core::config::{self, Config, Diagnostic};

use super::{EXIT_CONFIG, fail, say};

/// Reads and validates a config; prints all its problems.
pub fn load(path: &Path) -> Result<Config, ExitCode> {
    let bytes = std::fs::read(path)
        .map_err(|error| fail(EXIT_CONFIG, format!("{}: {error}", path.display())))?;
    let render = |diagnostics: &[Diagnostic], text: &str| {
        let color = std::io::stderr().is_terminal();
        say(config::render(diagnostics, path, text, color));
    };
    let text = config::decode(bytes).map_err(|(problem, shown)| {
        render(&[problem], &shown);
        ExitCode::from(EXIT_CONFIG)
    })?;
    let show = |diagnostics: &[Diagnostic]| render(diagnostics, &text);
    match config::parse(path, &text) {
        Ok((config, warnings)) => {
            show(&warnings);
            Ok(config)
        }
        Err(problems) => {
            show(&problems);
            Err(ExitCode::from(EXIT_CONFIG))
        }
    }
}
