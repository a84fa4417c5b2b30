//! The config file that a command is given.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use tandemgw::os::config_files::parse_with_included;
use tandemgw_core::config::{self, Config, Diagnostic, Sources};

use super::{EXIT_CONFIG, fail, say};

/// Reads and validates a config; prints all its problems.
pub fn load(path: &Path) -> Result<Config, ExitCode> {
    load_with_sources(path).map(|(config, _)| config)
}

/// As [`load`], with the texts.
pub fn load_with_sources(path: &Path) -> Result<(Config, Sources), ExitCode> {
    let bytes = std::fs::read(path)
        .map_err(|error| fail(EXIT_CONFIG, format!("{}: {error}", path.display())))?;
    let show = |diagnostics: &[Diagnostic], sources: &Sources| {
        let color = std::io::stderr().is_terminal();
        say(config::render(diagnostics, sources, color));
    };
    let text = config::decode(bytes).map_err(|(problem, shown)| {
        show(&[problem], &Sources::new(path, &shown));
        ExitCode::from(EXIT_CONFIG)
    })?;
    let mut sources = Sources::new(path, &text);
    match parse_with_included(&mut sources, |file| std::fs::read(file)) {
        Ok((config, warnings)) => {
            show(&warnings, &sources);
            Ok((config, sources))
        }
        Err(problems) => {
            show(&problems, &sources);
            Err(ExitCode::from(EXIT_CONFIG))
        }
    }
}
