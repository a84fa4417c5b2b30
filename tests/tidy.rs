//! The rules of the architecture that a compiler does not know, checked over the text of the
//! source.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tandemgw_core::event::DropReason;

/// Lines of a source file that are not tests.
const MAX_LINES: usize = 600;

/// Only the shell may use these: the core gets time, randomness and the system's results as
/// arguments.
const SYSTEM: &[&str] = &[
    "libc",
    "std::fs",
    "std::thread",
    "std::process",
    "std::os::",
    "std::env",
    "std::io::stdin",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "Instant::now",
    "SystemTime::now",
    "RandomState",
    "mio::",
    "unsafe ",
];

/// The commands may also use these: they read files and talk to the control socket.
const CLI: &[&str] = &["std::fs", "std::os::", "UnixStream"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder`, except build output and generated files.
fn files(folder: &Path) -> Vec<PathBuf> {
    let skipped = [
        "target",
        ".git",
        "corpus",
        "artifacts",
        "proptest-regressions",
    ];
    let mut all = Vec::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if skipped.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all
}

/// The source files as paths from the root, with their text outside of tests.
fn sources() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for path in ["src", "crates"]
        .iter()
        .flat_map(|folder| files(&root().join(folder)))
    {
        let name = path.strip_prefix(root()).unwrap();
        let name = name.to_string_lossy().into_owned();
        let is_test = ["tests/", "tests.rs", "simulation.rs", "test_namespace.rs"];
        if name.ends_with(".rs") && !is_test.iter().any(|part| name.contains(part)) {
            let text = fs::read_to_string(&path).unwrap();
            all.push((name, without_tests(&text)));
        }
    }
    assert!(all.len() > 30, "the sources were found");
    all
}

/// The text up to the module of tests, which comes last.
fn without_tests(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = |at: usize| {
        let next = lines.get(at + 1).copied().unwrap_or("");
        lines[at] == "#[cfg(test)]" && next.contains("mod ") && next.ends_with('{')
    };
    let end = (0..lines.len())
        .find(|at| is_tests(*at))
        .unwrap_or(lines.len());
    lines[..end].join("\n")
}

/// Lines that are not comments, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn assert_none(problems: &[String], rule: &str) {
    assert!(problems.is_empty(), "{rule}:\n{}", problems.join("\n"));
}

/// Text of the book and of the files beside it: tables, code and links may be longer.
#[test]
fn the_book_is_within_its_width() {
    const WIDTH: usize = 120;
    let mut problems = Vec::new();
    for path in files(&root()) {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if !name.ends_with(".md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        if text.starts_with("<!-- Generated") {
            continue;
        }
        let mut is_code = false;
        for (number, line) in (1..).zip(text.lines()) {
            is_code ^= line.trim_start().starts_with("```");
            let is_prose = !is_code && !line.starts_with(['|', '#', '<']);
            if is_prose && line.chars().count() > WIDTH && line.trim().contains(' ') {
                problems.push(format!("{name}:{number}"));
            }
        }
    }
    assert_none(&problems, "break the line");
}

#[test]
fn only_the_shell_uses_the_system() {
    let mut problems = Vec::new();
    for (name, text) in sources() {
        if name.starts_with("src/os/") || name.starts_with("crates/testkit/") {
            continue;
        }
        let allowed = if name.starts_with("src/cli/") {
            CLI
        } else {
            &[]
        };
        for (number, line) in code(&text) {
            // The exit code is a value.
            let line = line.replace("std::process::ExitCode", "");
            let found = SYSTEM.iter().filter(|word| !allowed.contains(word));
            for word in found.filter(|word| line.contains(**word)) {
                problems.push(format!("{name}:{number}: {word}"));
            }
        }
    }
    assert_none(&problems, "belongs into src/os");
}

#[test]
fn no_file_is_too_long() {
    let lengths = sources()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()));
    let problems: Vec<String> = lengths
        .filter(|(_, length)| *length > MAX_LINES)
        .map(|(name, length)| format!("{name}: {length} lines"))
        .collect();
    assert_none(&problems, "split by subject");
}

/// Words that readers stumble over, with what to write instead.
const MANNERED: &[(&str, &str)] = &[
    ("anew", "again"),
    ("heed", "handle, follow"),
    ("heeds", "handles, follows"),
    ("owe", "schedule"),
    ("owes", "schedules"),
    ("owed", "scheduled, due"),
    ("bury", "remove"),
    ("buries", "removes"),
];

/// Also within names and messages: `begin_anew` counts.
#[test]
fn the_words_are_the_usual_ones() {
    let here = Path::new("tests/tidy.rs");
    let mut found = Vec::new();
    for path in files(&root()) {
        let name = path.strip_prefix(root()).unwrap();
        let kinds = ["rs", "md", "toml", "patch", "sh"];
        let is_text = name
            .extension()
            .is_some_and(|ext| kinds.contains(&ext.to_string_lossy().as_ref()));
        if !is_text || name == here {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap().to_lowercase();
        for (number, line) in (1..).zip(text.lines()) {
            let words = line.split(|c: char| !c.is_alphabetic());
            let mut mannered = words.filter_map(|word| MANNERED.iter().find(|it| it.0 == word));
            if let Some((word, instead)) = mannered.next() {
                found.push(format!("{}:{number}: {word}: {instead}", name.display()));
            }
            if line.contains("such a one") {
                found.push(format!("{}:{number}: such a one: name it", name.display()));
            }
        }
    }
    assert_none(&found, "write the usual word");
}

/// Columns of a line, as `rustfmt.toml` has it. That formats the code, but leaves comments as they
/// are.
const WIDTH: usize = 100;

#[test]
fn comments_fit_the_width() {
    let folders = ["src", "crates", "tests", "netns-tests", "benches", "fuzz"];
    let mut problems = Vec::new();
    for path in folders
        .iter()
        .flat_map(|folder| files(&root().join(folder)))
    {
        if path.extension().is_none_or(|ext| ext != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in (1..).zip(text.lines().map(str::trim_end)) {
            // A row of a table is one line.
            let words = line.trim_start().trim_start_matches(['/', '!', ' ']);
            let is_comment = line.trim_start().starts_with("//") && !words.starts_with('|');
            if is_comment && line.chars().count() > WIDTH {
                problems.push(format!("{}:{number}", path.display()));
            }
        }
    }
    assert_none(&problems, "break the line");
}

#[test]
fn every_module_says_what_it_is() {
    let problems: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(name, _)| name.to_string())
        .collect();
    assert_none(&problems, "begins without a line of `//!`");
}

#[test]
fn nothing_refers_to_places_outside_of_the_repository() {
    // In two parts, or this file would find itself.
    let places = [concat!("../", "shared"), concat!("/wor", "k/")];
    let mut problems = Vec::new();
    for path in files(&root()) {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for (index, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place)) {
                problems.push(format!("{}:{}", path.display(), index + 1));
            }
        }
    }
    assert_none(&problems, "a path that others don't have");
}

#[test]
fn every_drop_reason_is_documented() {
    let docs = root().join("docs");
    if !docs.exists() {
        return;
    }
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();
    let text: String = files(&docs).iter().map(read).collect();
    let problems: Vec<String> = DropReason::ALL
        .iter()
        .map(|reason| reason.name().to_owned())
        .filter(|name| !text.contains(&format!("`{name}`")))
        .collect();
    assert_none(&problems, "drop reasons that docs/ do not explain");
}

/// Names so broad that a reader would ask: of what? One type of the product may have each; all
/// others say it.
const BROAD: &[&str] = &["Event", "Fate", "Kind", "Link", "Peer", "Phase", "Problem"];

#[test]
fn a_broad_name_means_one_thing() {
    let mut found: Vec<(&str, String)> = Vec::new();
    for (name, text) in sources() {
        for (number, line) in code(&text) {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric()).collect();
            let defined = words
                .windows(2)
                .filter(|pair| ["struct", "enum", "trait", "type"].contains(&pair[0]))
                .filter_map(|pair| BROAD.iter().find(|broad| **broad == pair[1]));
            found.extend(defined.map(|broad| (*broad, format!("{name}:{number}: {broad}"))));
        }
    }
    let is_repeated = |broad: &str| found.iter().filter(|it| it.0 == broad).count() > 1;
    let repeated = found.iter().filter(|(broad, _)| is_repeated(broad));
    let problems: Vec<String> = repeated.map(|(_, place)| place.clone()).collect();
    assert_none(&problems, "say of what it is");
}

/// The words of `text`, with those of `CamelCase` and `snake_case` names taken apart.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for c in text.chars() {
        if !c.is_alphabetic() || c.is_uppercase() {
            parts.push(String::new());
        }
        if c.is_alphabetic() {
            let last = parts.last_mut().unwrap();
            last.extend(c.to_lowercase());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[test]
fn docs_of_the_core_say_more_than_the_name() {
    let filler = ["a", "an", "its", "of", "the", "this", "what", "which"];
    let mut problems = Vec::new();
    for (name, text) in sources() {
        if !name.starts_with("crates/core/") {
            continue;
        }
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (index, three) in lines.windows(3).enumerate() {
            let (Some(doc), false) = (three[1].strip_prefix("/// "), three[0].starts_with("///"))
            else {
                continue;
            };
            // A name in backticks is where it comes from: a key of the config, or a protocol.
            if doc.contains('`') || !three[2].starts_with("pub ") {
                continue;
            }
            let names = parts(three[2]);
            let says = |word: &String| {
                let is_name = names
                    .iter()
                    .any(|name| name.trim_end_matches('s') == word.trim_end_matches('s'));
                !is_name && !filler.contains(&word.as_str())
            };
            if !parts(doc).iter().any(says) {
                problems.push(format!("{name}:{}: {doc}", index + 2));
            }
        }
    }
    assert_none(
        &problems,
        "say what a reader does not know: unit, range, meaning",
    );
}

/// `Type::name` in a comment or in ARCHITECTURE.md is a name of the code.
#[test]
fn what_comments_name_exists() {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut known = BTreeSet::new();
    let mut told = Vec::new();
    for folder in ["src", "crates", "tests", "benches", "netns-tests"] {
        for path in files(&root().join(folder)) {
            if path.extension().is_none_or(|ext| ext != "rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for (number, line) in (1..).zip(text.lines()) {
                match line.trim_start().starts_with("//") {
                    true => told.push((format!("{}:{number}", path.display()), line.to_owned())),
                    false => known.extend(line.split(|c| !is_word(c)).map(str::to_owned)),
                }
            }
        }
    }
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let page = (1..).zip(page.lines());
    told.extend(page.map(|(number, line)| (format!("ARCHITECTURE.md:{number}"), line.to_owned())));
    let mut problems = Vec::new();
    for (place, line) in &told {
        for quoted in line.split('`').skip(1).step_by(2) {
            let path = quoted.trim_end_matches("()");
            let mut parts = path.split("::");
            if path.contains("::")
                && parts.all(|part| !part.is_empty() && part.chars().all(is_word))
            {
                let unknown = path.split("::").find(|part| !known.contains(*part));
                problems.extend(unknown.map(|part| format!("{place}: {quoted}: {part}")));
            }
        }
    }
    assert_none(&problems, "it has another name now");
}
