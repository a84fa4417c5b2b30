//! `tandemgw run`: the gateway in the foreground.

use std::path::Path;
use std::process::ExitCode;

use tandemgw::os::startup;

use super::{EXIT_CONFIG, check, fail};

pub fn run(path: &Path) -> ExitCode {
    let environment = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(environment)
        .format_timestamp_micros()
        .init();
    let config = match check::load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if !check::can_start(&config) {
        return ExitCode::from(EXIT_CONFIG);
    }
    match startup::run(config, path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.unfit => fail(EXIT_CONFIG, error),
        Err(error) => fail(1, error),
    }
}
