//! The commands of the book, as written: each code block marked `sh lab` of a page, one after the other.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::namespace::Namespace;
use crate::process::{Finished, Process};

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
