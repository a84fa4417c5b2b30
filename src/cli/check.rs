//! `tandemgw check`: is the config valid, and with `--system`, is the machine fit for it?

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use tandemgw::config::{self, Config, Diagnostic};
use tandemgw::os::preflight;

use super::{EXIT_CONFIG, fail, query};

pub fn check(path: &Path, system: bool) -> ExitCode {
    let config = match load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if system && !is_fit(&config, query::status_of(&config).is_some()) {
        return ExitCode::from(EXIT_CONFIG);
    }
    eprintln!("{}: no errors", path.display());
    ExitCode::SUCCESS
}

/// Reads and validates a config; prints all its problems.
pub fn load(path: &Path) -> Result<Config, ExitCode> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| fail(EXIT_CONFIG, format!("{}: {error}", path.display())))?;
    let show = |diagnostics: &[Diagnostic]| {
        let color = std::io::stderr().is_terminal();
        eprint!("{}", config::render(diagnostics, path, &text, color));
    };
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

/// Prints what is wrong with the machine; gives whether the gateway can run nevertheless, or can go on.
pub fn is_fit(config: &Config, is_running: bool) -> bool {
    let problems = preflight::check(config, is_running);
    for problem in &problems {
        let kind = if problem.fatal { "error" } else { "warning" };
        eprintln!("{kind}: {}; {}", problem.what, problem.remedy);
    }
    !problems.iter().any(|problem| problem.fatal)
}
