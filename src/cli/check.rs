//! `tandemgw check`: is the config valid, and with `--system`, is the machine fit for it?

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use tandemgw::os::preflight::{self, Problem};
use tandemgw_core::config::{self, Config, Diagnostic};

use super::{EXIT_CONFIG, doctor, fail, say};

pub fn check(path: &Path, system: bool) -> ExitCode {
    let config = match load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if system {
        let checks = doctor::examine(&config);
        let problems = checks.iter().flat_map(|check| &check.problems);
        problems.for_each(print_problem);
        if !doctor::is_fit(&checks) {
            return ExitCode::from(EXIT_CONFIG);
        }
    }
    say(format_args!("{}: no errors\n", path.display()));
    ExitCode::SUCCESS
}

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

/// Prints what is wrong with the machine; gives whether the gateway can start nevertheless.
pub fn can_start(config: &Config) -> bool {
    let problems = preflight::check(config, false);
    problems.iter().for_each(print_problem);
    !problems.iter().any(|problem| problem.fatal)
}

fn print_problem(problem: &Problem) {
    let kind = if problem.fatal { "error" } else { "warning" };
    say(format_args!(
        "{kind}: {}; {}\n",
        problem.what, problem.remedy
    ));
}
