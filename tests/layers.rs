//! Who may use whom, read from the paths in the source: a compiler takes every order, and circles.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the core, from the ground up. A module may use those in the rows above its own.
const CORE: &[&[&str]] = &[
    &["flow", "identity", "in_quotes", "memory", "random", "time"],
    &["config", "event", "evidence", "histogram", "log_limit"],
    &[
        "filter_words",
        "link_monitor",
        "packet",
        "policy",
        "route",
        "shell_view",
    ],
    &["fragment", "ha", "multicast", "session"],
    &["capture", "fast_path", "nat"],
    &["store", "push"],
    &["sync"],
    &["gateway"],
    &["control", "metrics", "pump"],
];

/// Modules of the shell that must not know of each other's callers: the second may not use the
/// first.
const SHELL: &[(&str, &str)] = &[
    ("src/os/startup", "src/os/event_loop"),
    ("src/cli/doctor", "src/cli/config_file"),
    ("src/cli/check", "src/cli/doctor"),
    ("src/cli", "src/os"),
];

/// A use of the first by the second module, and the file.
type Use = (String, String, String);

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            all.push(path);
        }
    }
    all.sort();
    all
}

/// The text without comments, strings' contents and inline modules of tests, which come last.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines();
    let code = lines.map(|line| line.split("//").next().unwrap_or(""));
    code.collect::<Vec<_>>().join("\n")
}

/// The first segments of all paths that begin with `prefix`, also of those in braces:
/// `crate::{flow::Addr, time}` names `flow` and `time`.
fn heads(code: &str, prefix: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let word = |text: &str| -> String { text.chars().take_while(|c| is_word(*c)).collect() };
        match rest.strip_prefix('{') {
            None => found.extend([word(rest)]),
            Some(group) => found.extend(heads_of_group(group).map(word)),
        }
    }
    found.retain(|head| !head.is_empty());
    found
}

/// The beginning of each element of a group, up to its closing brace.
fn heads_of_group(group: &str) -> impl Iterator<Item = &str> {
    let (mut depth, mut starts, mut end) = (0, vec![0], group.len());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                end = at;
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => starts.push(at + 1),
            _ => {}
        }
    }
    let heads = starts.into_iter().filter(move |start| *start < end);
    heads.map(move |start| group[start..end].trim_start())
}

/// The module that a file of the core belongs to.
fn module_of(file: &Path, source: &Path) -> String {
    let path = file.strip_prefix(source).unwrap();
    let first = path.components().next().unwrap().as_os_str();
    first.to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Which module of the core uses which others.
fn uses(files: &BTreeMap<PathBuf, String>, source: &Path) -> Vec<Use> {
    let mut all = Vec::new();
    for (file, text) in files {
        let module = module_of(file, source);
        let is_test = ["tests", "tests.rs", "simulation.rs"];
        if module == "lib"
            || file
                .iter()
                .any(|part| is_test.contains(&&*part.to_string_lossy()))
        {
            continue;
        }
        let named = heads(&code(text), "crate::");
        let others = named.into_iter().filter(|used| *used != module);
        all.extend(others.map(|used| (used, module.clone(), file.display().to_string())));
    }
    all
}

/// The uses that the table of layers does not allow.
fn violations(uses: &[Use], layers: &[&[&str]]) -> Vec<String> {
    let layer = |module: &str| layers.iter().position(|row| row.contains(&module));
    let mut found = Vec::new();
    for (used, user, file) in uses {
        match (layer(used), layer(user)) {
            (Some(below), Some(above)) if below < above => {}
            (Some(_), Some(_)) => found.push(format!("{file}: `{user}` uses `{used}`")),
            _ => found.push(format!("{file}: `{user}` or `{used}` is in no layer")),
        }
    }
    found
}

fn core_files(source: &Path) -> BTreeMap<PathBuf, String> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    rust_files(source).into_iter().map(read).collect()
}

#[test]
fn each_module_of_the_core_uses_only_those_below() {
    let source = root().join("crates/core/src");
    let files = core_files(&source);
    let uses = uses(&files, &source);
    assert!(uses.len() > 100, "the paths were read");
    let found = violations(&uses, CORE);
    assert!(
        found.is_empty(),
        "against the layers:\n{}",
        found.join("\n")
    );
}

#[test]
fn each_module_of_the_core_has_a_layer() {
    let source = root().join("crates/core/src");
    let modules: BTreeSet<String> = rust_files(&source)
        .iter()
        .map(|file| module_of(file, &source))
        .filter(|module| module != "lib")
        .collect();
    let listed: BTreeSet<String> = CORE.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(modules, listed);
}

#[test]
fn a_use_against_the_layers_is_found() {
    let source = Path::new("src");
    let with = |text: &str| {
        let files = BTreeMap::from([(source.join("ha/view.rs"), text.to_owned())]);
        violations(&uses(&files, source), CORE).len()
    };
    assert_eq!(with("use crate::flow::GroupId;\nuse crate::time::Time;"), 0);
    assert_eq!(with("use crate::gateway::Role;"), 1);
    assert_eq!(
        with("use crate::{flow::{GroupId, PeerId}, gateway::Role, time::Time};"),
        1
    );
    assert_eq!(with("fn f() { crate::sync::work(); }"), 1);
    assert_eq!(with("use crate::elsewhere::Thing;"), 1);
    assert_eq!(with("/// See [`crate::gateway::Gateway`].\nstruct A;"), 0);
    assert_eq!(
        with("#[cfg(test)]\nmod tests {\n    use crate::gateway::Role;\n}"),
        0
    );
}

#[test]
fn the_shell_has_no_circles() {
    let files: Vec<(String, String)> = rust_files(&root().join("src"))
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(root()).unwrap();
            (name.to_string_lossy().into_owned(), code(&text))
        })
        .collect();
    let mut found = Vec::new();
    for (upper, lower) in SHELL {
        let module = upper.rsplit('/').next().unwrap();
        let of_lower = |name: &str| {
            name.strip_prefix(lower)
                .is_some_and(|rest| rest.starts_with(['.', '/']))
        };
        for (name, text) in files.iter().filter(|(name, _)| of_lower(name)) {
            let prefixes = [
                "super::",
                "super::super::",
                "super::super::super::",
                "crate::",
                "crate::os::",
            ];
            if prefixes
                .iter()
                .any(|prefix| heads(text, prefix).contains(module))
            {
                found.push(format!("{name} uses {upper}"));
            }
        }
    }
    assert!(
        found.is_empty(),
        "circles in the shell:\n{}",
        found.join("\n")
    );
}
