//! The page of `tandemgw web` reads fields that answers of the admin protocol have: a field with
//! another name must not show as a dash.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What the scripts use of the language, the browser, and themselves; `status` and `hosts` are the
/// answers that the page gets together.
const SCRIPT: &[&str] = &[
    "append",
    "apply",
    "begin",
    "bits",
    "body",
    "cancel",
    "certificate",
    "catch",
    "change",
    "check",
    "class",
    "clear",
    "color",
    "command",
    "create",
    "credentials",
    "data",
    "dataset",
    "disabled",
    "done",
    "elements",
    "entries",
    "filter",
    "find",
    "flat",
    "floor",
    "forms",
    "get",
    "height",
    "hidden",
    "hosts",
    "insert",
    "is",
    "join",
    "json",
    "length",
    "line",
    "login",
    "look",
    "map",
    "max",
    "message",
    "move",
    "now",
    "onerror",
    "onmessage",
    "options",
    "parse",
    "pop",
    "push",
    "read",
    "replace",
    "round",
    "samples",
    "scope",
    "shift",
    "size",
    "slice",
    "some",
    "sort",
    "split",
    "status",
    "stringify",
    "stroke",
    "test",
    "text",
    "title",
    "trim",
    "uptime",
    "values",
    "width",
    "words",
];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Names after a dot, as in `peer.in_sync`; not those of functions in other letters.
fn members(script: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in script
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
    {
        for part in line.split('.').skip(1) {
            let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            let name: String = part.chars().take_while(is_name).collect();
            let is_field = name.starts_with(|c: char| c.is_ascii_lowercase())
                && !name.contains(|c: char| c.is_ascii_uppercase());
            if is_field {
                names.insert(name);
            }
        }
    }
    names
}

/// The fields in the tables of the chapter, which is made from the types.
fn fields(chapter: &str) -> BTreeSet<String> {
    let rows = chapter.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect()
}

#[test]
fn the_page_reads_fields_that_exist() {
    let known = fields(&read("docs/admin-protocol.md"));
    let scripts = ["src/cli/web/app.js", "src/cli/web/actions.js"];
    let used = members(&scripts.map(read).concat());
    assert!(used.contains("in_sync") && used.len() > 50, "{used:?}");
    let unknown: Vec<&String> = used
        .iter()
        .filter(|name| !known.contains(*name) && !SCRIPT.contains(&name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "no answer has these: {unknown:?}");
}
