//! The core depends on nothing that makes system calls: the lock file lists its dependencies.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// What the core may be built from: crates that only compute. A new one is added here by somebody
/// who has looked for system calls, threads, clocks and randomness in it.
const ALLOWED: &[&str] = &[
    "allocator-api2",
    "annotate-snippets",
    "anstyle",
    "array-const-fn-init",
    "arrayvec",
    "autocfg",
    "base64",
    "bytes",
    "either",
    "equivalent",
    "etherparse",
    "foldhash",
    "hashbrown",
    "httparse",
    "indexmap",
    "ipnet",
    "itoa",
    "log",
    "memchr",
    "num-traits",
    "prefix-trie",
    "proc-macro2",
    "quote",
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "serde_spanned",
    "siphasher",
    "smallvec",
    "strsim",
    "syn",
    "toml",
    "toml_datetime",
    "toml_parser",
    "toml_writer",
    "unicode-ident",
    "unicode-width",
    "winnow",
    "zmij",
];

/// A package of a lock file: its name and version, and what it depends on, as `name` or `name
/// version`.
struct Package {
    name: String,
    version: String,
    dependencies: Vec<String>,
}

/// The packages of a lock file, and those that the manifest of the core names for its tests only.
fn packages(lock: &str) -> Vec<Package> {
    let value = |block: &str, key: &str| -> String {
        let line = block
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{key} = ")));
        line.unwrap_or("").trim_matches('"').to_owned()
    };
    let list = |block: &str| -> Vec<String> {
        let start = block.find("dependencies = [");
        let list = start.and_then(|start| block[start..].split_once(']'));
        let names = list.map_or("", |(names, _)| names).lines().skip(1);
        let names = names.map(|line| line.trim().trim_matches([',', '"']).to_owned());
        names.filter(|name| !name.is_empty()).collect()
    };
    let blocks = lock.split("[[package]]").skip(1);
    blocks
        .map(|block| Package {
            name: value(block, "name"),
            version: value(block, "version"),
            dependencies: list(block),
        })
        .collect()
}

/// The keys of the `[dependencies]` of a manifest: what is built into the crate, not its tests.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.split("[dependencies]\n").nth(1).unwrap();
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', '=', ' ']).next());
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// All that a crate with `direct` dependencies is built from, each with who asks for it.
fn closure(direct: &BTreeSet<String>, packages: &[Package]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting: Vec<(String, String)> = direct
        .iter()
        .map(|name| (name.clone(), "tandemgw-core".to_owned()))
        .collect();
    while let Some((wanted, by)) = waiting.pop() {
        if found.insert(wanted.clone(), by).is_some() {
            continue;
        }
        let (name, version) = wanted.split_once(' ').unwrap_or((&wanted, ""));
        let is_it = |package: &&Package| {
            package.name == name && (version.is_empty() || package.version == version)
        };
        let all = packages.iter().filter(is_it);
        waiting.extend(all.flat_map(|package| {
            let next = package.dependencies.iter().cloned();
            next.map(|dependency| (dependency, name.to_owned()))
        }));
    }
    found
}

/// The crates of a closure that nobody has allowed, each with who asks for it.
fn not_allowed(closure: &BTreeMap<String, String>) -> Vec<String> {
    let named = closure
        .iter()
        .map(|(name, by)| (name.split(' ').next().unwrap(), by));
    let found = named.filter(|(name, _)| !ALLOWED.contains(name));
    found
        .map(|(name, by)| format!("{name}, for {by}"))
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_core_is_built_from_crates_that_only_compute() {
    let packages = packages(&read("Cargo.lock"));
    let all = closure(&dependencies(&read("crates/core/Cargo.toml")), &packages);
    assert!(all.len() > 15, "the lock file was read: {all:?}");
    let found = not_allowed(&all);
    assert!(
        found.is_empty(),
        "the core may depend on these only once ALLOWED names them:\n{}",
        found.join("\n")
    );
}

#[test]
fn one_such_dependency_would_be_found() {
    let lock = read("Cargo.lock");
    let packages = packages(&lock);
    let manifest = read("crates/core/Cargo.toml");
    for added in [
        "libc",
        "mio",
        "quinn-proto",
        "socket2",
        "netlink-sys",
        "proptest",
    ] {
        let manifest = manifest.replacen(
            "[dependencies]\n",
            &format!("[dependencies]\n{added}.workspace = true\n"),
            1,
        );
        let found = not_allowed(&closure(&dependencies(&manifest), &packages));
        assert!(!found.is_empty(), "{added} passes");
    }
}

#[test]
fn the_core_forbids_unsafe_code() {
    let lib = read("crates/core/src/lib.rs");
    assert!(lib.lines().any(|line| line == "#![forbid(unsafe_code)]"));
}
