//! `tandemgw keygen` and `tandemgw pubkey`.

use std::path::Path;
use std::process::ExitCode;

use tandemgw::os::key_file;

use super::fail;

pub fn generate(path: &Path) -> ExitCode {
    match key_file::generate(path) {
        Ok(public) => {
            println!("{public}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(1, format!("{}: {error}", path.display())),
    }
}

pub fn show(path: &Path) -> ExitCode {
    match key_file::load(path) {
        Ok(key) => {
            println!("{}", key.public());
            ExitCode::SUCCESS
        }
        Err(error) => fail(1, format!("{}: {error}", path.display())),
    }
}
