//! The config file that a command is given.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use tandemgw::os::config_files::parse_with_included;
use tandemgw::os::process::host_name;
use tandemgw_core::config::{self, Config, Diagnostic, Sources, ThisUnit};

use super::{EXIT_CONFIG, fail, say};

/// Reads and validates a config; prints all its problems.
pub fn load(path: &Path, node: Option<String>) -> Result<Config, ExitCode> {
    load_with_sources(path, node).map(|(config, _)| config)
}

/// As [`load`], with the texts.
pub fn load_with_sources(path: &Path, node: Option<String>) -> Result<(Config, Sources), ExitCode> {
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
    let host = || ThisUnit::Host(host_name());
    let unit = node.clone().map_or_else(host, ThisUnit::Named);
    let mut sources = Sources::new(path, &text).of_unit(Some(unit));
    match parse_with_included(&mut sources, |file| std::fs::read(file)) {
        Ok((config, _)) if node.as_ref().is_some_and(|node| *node != config.node.name) => {
            let (file, name) = (path.display(), config.node.name);
            let why = format!("{file} is for {name} alone: leave --node out");
            Err(fail(EXIT_CONFIG, why))
        }
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
