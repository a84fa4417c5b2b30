//! The configs that were in force, and the way back to one of them.

use std::fs;

use serde_json::Value;

use crate::lab::Lab;
use crate::unit::Unit;
use testkit::system::process::wait_until;

fn history(unit: &Unit) -> Vec<Value> {
    let output = unit.tandemgw("config history --json").ok().stdout;
    let parse = |line| serde_json::from_str(line).expect("one JSON object a line");
    output.lines().map(parse).collect()
}

/// Version, who and how of each, the last one first.
fn told(unit: &Unit) -> Vec<(u64, String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let row = |row: &Value| {
        let version = row["version"].as_u64().expect("a number");
        (version, text(&row["who"]), text(&row["how"]))
    };
    history(unit).iter().map(row).collect()
}

fn row(version: u64, who: &str, how: &str) -> (u64, String, String) {
    (version, who.to_owned(), how.to_owned())
}

#[test]
fn a_config_comes_back_by_its_number_also_after_a_restart() {
    let mut lab = Lab::started();
    let first = lab.unit.config.clone();
    let ping = "ping -c 1 -W 2 10.77.2.100";
    lab.lan1.run(ping);
    lab.unit
        .edit("action = \"accept\"\nnat = true", "action = \"drop\"");
    lab.unit.reload();
    lab.lan1.try_run("ping -c 1 -W 1 10.77.2.100").code(1);
    // The same once more is no version.
    lab.unit.reload();
    let two = [row(2, "root", "reload"), row(1, "file", "start")];
    assert_eq!(told(&lab.unit), two);

    lab.unit.stop();
    lab.unit.start();
    assert_eq!(told(&lab.unit), two, "a restart with the same file");
    let shown = lab.unit.tandemgw("config show --version 1").ok().stdout;
    let path = lab.unit.config_path().display().to_string();
    assert!(
        shown.contains(&format!("# version 1 of {path}; it differs:")),
        "{shown}"
    );
    assert!(
        shown.contains("policy.lan-out") && shown.ends_with(&first),
        "{shown}"
    );

    let said = lab.unit.tandemgw("config rollback 1").ok().stdout;
    assert!(said.ends_with("version 1 is in force again\n"), "{said}");
    lab.lan1.run(ping);
    assert_eq!(fs::read_to_string(&path).expect("the config"), first);
    assert_eq!(told(&lab.unit)[0], row(3, "root", "rollback to 1"));

    // Somebody edits the file and sends a signal.
    fs::write(&path, format!("{first}# x\n")).expect("writing the config");
    lab.unit.signal(libc::SIGHUP);
    wait_until("the reload is in the history", || {
        told(&lab.unit)[0] == row(4, "file", "SIGHUP")
    });
    let said = lab.unit.tandemgw("config rollback 9").code(1).stderr;
    assert!(
        said.contains("there is no version 9: `config history` has 1 to 4"),
        "{said}"
    );
}

#[test]
fn the_last_twenty_are_kept() {
    let mut lab = Lab::started();
    let first = lab.unit.config.clone();
    for n in 0..22 {
        lab.unit.config = format!("{first}# {n}\n");
        lab.unit.reload();
    }
    let numbers: Vec<u64> = told(&lab.unit).iter().map(|row| row.0).collect();
    assert_eq!(numbers, (4..=23).rev().collect::<Vec<_>>());
    let shown = lab.unit.tandemgw("config history").ok().stdout;
    assert_eq!(shown.lines().count(), 21, "{shown}");
    assert!(shown.contains("23 (in force)"), "{shown}");
}

#[test]
fn files_that_are_included_come_back_too_or_nothing_does() {
    let mut lab = Lab::new();
    let folder = lab.dir().join("more.d");
    fs::create_dir(&folder).expect("a folder");
    let path = folder.join("a.toml");
    let text = "[[policy]]\nname = \"more\"\naction = \"drop\"\n";
    fs::write(&path, text).expect("a file");
    lab.unit
        .edit("[node]", "include = [\"more.d/*.toml\"]\n[node]");
    lab.unit.start();
    fs::write(&path, "").expect("a file");
    lab.unit.reload();
    // A file that version 1 did not have would be read with it.
    let other = folder.join("b.toml");
    fs::write(&other, "").expect("a file");
    let said = lab.unit.tandemgw("config rollback 1").code(2).stderr;
    assert!(
        said.contains("b.toml: version 1 does not have this file: move it away"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&path).expect("a file"), "");
    fs::remove_file(&other).expect("a file");
    lab.unit.tandemgw("config rollback 1").ok();
    assert_eq!(fs::read_to_string(&path).expect("a file"), text);
}
