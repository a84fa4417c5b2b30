//! `tandemgw run`: the gateway in the foreground.

use std::path::Path;
use std::process::ExitCode;

use tandemgw::os::signal::Signals;
use tandemgw::os::{logging, startup};
use tandemgw_core::in_quotes::InQuotes;

use super::{EXIT_CONFIG, check, config_file, fail};

pub fn run(path: &Path, node: Option<String>) -> ExitCode {
    logging::init();
    // Before everything else: an early SIGHUP must not end the process.
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(1, format!("catching signals: {error}")),
    };
    let (config, sources) = match config_file::load_with_sources(path, node) {
        Ok(loaded) => loaded,
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
    let result = startup::run(config, sources, signals);
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
