//! Answers of gateways of each release so far, and the requests of their clients, can still be
//! understood: tests/admin/RELEASE holds it as it was recorded.

// Clippy lets test functions unwrap, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tandemgw_core::control::protocol::{
    Cleared, DONE, ErrorCode, Explanation, Failure, HandoverDone, ReloadDone, Request, Session,
    Status, SwitchDone, capture,
};

#[test]
fn the_answers_of_each_release_are_understood() {
    let mut kinds = Vec::new();
    for file in recorded() {
        let kind = kind(&file);
        if kind == "requests" {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let last = text.lines().last().unwrap();
        assert!(
            last == DONE || Failure::parse(last).is_some(),
            "{}",
            file.display()
        );
        for line in text.lines().filter(|line| *line != DONE) {
            let place = format!("{}: {line}", file.display());
            match kind.as_str() {
                _ if Failure::parse(line).is_some() => understand::<Failure>(line, &place),
                "status" => understand::<Status>(line, &place),
                "sessions" => understand::<Session>(line, &place),
                "explain" => understand::<Explanation>(line, &place),
                "clear" => understand::<Cleared>(line, &place),
                "failover" => understand::<HandoverDone>(line, &place),
                "ha" => understand::<SwitchDone>(line, &place),
                "reload" => understand::<ReloadDone>(line, &place),
                "capture" => {
                    let read: capture::Line = serde_json::from_str(line).expect(&place);
                    keeps(line, &read, &place);
                }
                other => panic!("{place}: no type for {other}"),
            }
        }
        kinds.push(kind);
    }
    for kind in [
        "status", "sessions", "explain", "clear", "failover", "ha", "reload", "capture", "error",
    ] {
        assert!(kinds.iter().any(|known| known == kind), "none of {kind}");
    }
}

#[test]
fn the_errors_of_each_release_have_a_code() {
    let codes = [
        ("error-filter.json", ErrorCode::BadRequest),
        ("error-unknown.json", ErrorCode::UnknownRequest),
    ];
    for (name, code) in codes {
        let files = recorded().into_iter().filter(|file| file.ends_with(name));
        let mut count = 0;
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let failure = text.lines().last().and_then(Failure::parse).unwrap();
            assert_eq!(failure.code(), code, "{}", file.display());
            count += 1;
        }
        assert!(count > 0, "{name}");
    }
}

#[test]
fn the_requests_of_each_release_are_understood() {
    let files = recorded()
        .into_iter()
        .filter(|file| kind(file) == "requests");
    let mut count = 0;
    for file in files {
        for line in fs::read_to_string(&file).unwrap().lines() {
            understand::<Request>(line, &format!("{}: {line}", file.display()));
            count += 1;
        }
    }
    assert!(count >= 8, "{count} requests");
}

/// A line can be read as a `T`, which then says the same.
fn understand<T: Serialize + DeserializeOwned>(line: &str, place: &str) {
    let read: T = serde_json::from_str(line).unwrap_or_else(|error| panic!("{place}: {error}"));
    keeps(line, &read, place);
}

/// Everything that a line says is in what was read of it, under the same name.
fn keeps(line: &str, read: &impl Serialize, place: &str) {
    let written: Value = serde_json::from_str(line).unwrap();
    missing(&written, &serde_json::to_value(read).unwrap(), place);
}

fn missing(written: &Value, read: &Value, place: &str) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                let place = format!("{place}: {key}");
                missing(value, read.get(key).unwrap_or(&Value::Null), &place);
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            assert_eq!(written.len(), read.len(), "{place}");
            for (written, read) in written.iter().zip(read) {
                missing(written, read, place);
            }
        }
        (written, read) => assert_eq!(written, read, "{place}"),
    }
}

/// All recorded files, of all releases.
fn recorded() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/admin");
    let entries = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    entries(&root)
        .iter()
        .flat_map(|release| entries(release))
        .collect()
}

/// The first word of a file's name: what was asked.
fn kind(file: &Path) -> String {
    let name = file.file_stem().unwrap().to_str().unwrap();
    name.split('-').next().unwrap().to_owned()
}
