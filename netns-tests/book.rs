//! The commands of the book, as written: each code block marked `sh lab` of a page, one after the
//! other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use testkit::system::namespace::Namespace;
use testkit::system::process::{Finished, Process};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const TMPDIR: &str = env!("CARGO_TARGET_TMPDIR");
const BINARY: &str = env!("CARGO_BIN_EXE_tandemgw");

/// Runs a script with the gateway in its path, in processes of its own that end with it.
#[track_caller]
fn run(script: &str) -> Finished {
    let ns = Namespace::first("book");
    let mut command = ns.command("unshare");
    let path = Path::new(BINARY).parent().expect("a file is in a folder");
    let script = format!(
        "set -e; cd {ROOT}; export TMPDIR={TMPDIR} PATH={}:$PATH\n{script}",
        path.display()
    );
    command.args(["--pid", "--fork", "--kill-child", "bash", "-c", &script]);
    command.env("TANDEMGW", BINARY);
    Process::spawn(command, "commands of the book").finish(Duration::from_secs(120))
}

#[test]
fn get_started_works_as_written() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/get-started.md")).expect("the page");
    let blocks = page.split("```sh lab\n").skip(1);
    let script: String = blocks.filter_map(|rest| rest.split("```").next()).collect();
    assert!(script.matches("tandemgw run").count() == 4, "{script}");
    let done = run(&format!("set -x\n{script}")).ok();
    for word in ["0% packet loss", "gw-a is now primary of group default"] {
        assert!(done.stdout.contains(word), "no `{word}` in {}", done.stdout);
    }
}

/// `scripts/lab` builds the network of an example from its file, and runs a command in it.
#[test]
fn lab_runs_the_examples() {
    let ping = [
        ("port-forward", "lan", "198.51.100.100"),
        ("lab-pair", "lan", "fd77:2::100"),
        ("active-active", "guests", "10.77.2.100"),
    ];
    for (example, host, server) in ping {
        let lab = format!("scripts/lab {example} ip netns exec {host} ping -c 1 -W 5 {server}");
        let done = run(&lab).ok();
        assert!(done.stdout.contains("1 received"), "{}", done.stdout);
    }
}

/// The JSON that programs read: the chapter about the commands has every field.
#[test]
fn json_has_the_fields_that_the_book_tells_of() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/cli.md")).expect("the page");
    let asked = "
        unit a status --json
        unit a explain tcp 10.77.1.100:4000 10.77.2.100:443 --in lan --json
        unit a sessions clear --all --json || unit b sessions clear --all --json
        unit a failover --json || unit b failover --json";
    let script = format!("bash -ec '{asked}'");
    let done = run(&format!("scripts/lab lab-pair {script}")).ok();
    let mut fields = BTreeSet::new();
    let answers: Vec<&str> = done.stdout.lines().filter(|l| l.starts_with('{')).collect();
    assert_eq!(answers.len(), 4, "{}", done.stdout);
    for answer in answers {
        collect(
            &serde_json::from_str(answer).expect("it is JSON"),
            &mut fields,
        );
    }
    assert!(fields.len() > 60, "{fields:?}");
    let is_told = |field: &String| {
        page.contains(&format!("`{field}`")) || page.contains(&format!("`{field}[]`"))
    };
    let missing: Vec<_> = fields.iter().filter(|field| !is_told(field)).collect();
    assert!(missing.is_empty(), "not in docs/cli.md: {missing:?}");
}

/// The names of all fields; drop reasons are none.
fn collect(value: &Value, fields: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                fields.insert(name.clone());
                if name != "dropped" {
                    collect(value, fields);
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| collect(value, fields)),
        _ => {}
    }
}
