//! `tandemgw check`: is the config valid, and with `--system`, is the machine fit for it?

use std::path::Path;
use std::process::ExitCode;

use tandemgw::os::preflight::{self, MachineProblem};
use tandemgw_core::config::Config;

use super::{EXIT_CONFIG, config_file, doctor, say};

pub fn check(path: &Path, node: Option<String>, system: bool) -> ExitCode {
    let config = match config_file::load(path, node) {
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

/// Prints the problems of the machine; returns whether the gateway can start nevertheless.
pub fn can_start(config: &Config) -> bool {
    let problems = preflight::check(config, false);
    problems.iter().for_each(print_problem);
    !problems.iter().any(|problem| problem.fatal)
}

fn print_problem(problem: &MachineProblem) {
    let kind = if problem.fatal { "error" } else { "warning" };
    say(format_args!(
        "{kind}: {}; {}\n",
        problem.what, problem.remedy
    ));
}
