//! Whatever stands in a config file, it is accepted or its problems can be shown.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tandemgw_core::config::{Severity, Sources, parse, render};

fuzz_target!(|text: &str| {
    let file = Path::new("fuzz.toml");
    let found = match parse(file, text) {
        Ok((config, warnings)) => {
            assert!(!config.ports.is_empty() && config.ports.len() <= 64);
            assert!(warnings.iter().all(|d| d.severity == Severity::Warning));
            warnings
        }
        Err(found) => {
            assert!(found.iter().any(|d| d.severity == Severity::Error));
            found
        }
    };
    let shown = render(&found, &Sources::new(file, text), false);
    assert!(shown.matches("fuzz.toml:").count() >= found.len());
});
