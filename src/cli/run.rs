//! `tandemgw run`: the gateway in the foreground.

use std::path::Path;
use std::process::ExitCode;

use tandemgw::in_quotes::InQuotes;
use tandemgw::os::{logging, startup};

use super::{EXIT_CONFIG, check, fail};

pub fn run(path: &Path) -> ExitCode {
    logging::init();
    let config = match check::load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    log::info!(
        "start version={} node={} config={:?}",
        env!("CARGO_PKG_VERSION"),
        config.node.name,
        path
    );
    if !check::can_start(&config) {
        return ExitCode::from(EXIT_CONFIG);
    }
    let result = startup::run(config, path);
    match &result {
        Ok(()) => log::info!("end"),
        Err(error) => log::error!("end error={}", InQuotes(&error)),
    }
    logging::close();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.unfit => fail(EXIT_CONFIG, error),
        Err(error) => fail(1, error),
    }
}
