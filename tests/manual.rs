//! The man pages and the shell completion are valid, and tandemgw.toml(5) is what the decoder
//! takes: `UPDATE_DOCS=1 cargo test --test manual` regenerates that page.

// Clippy lets test functions unwrap, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tandemgw_core::config::{TableDoc, options, tables};

const CONFIG_PAGE: &str = "packaging/tandemgw.toml.5";

/// The output of the build.
fn made(folder: &str) -> PathBuf {
    Path::new(env!("OUT_DIR")).join(folder)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("can't run {command:?}: {error}; scripts/test installs what is needed")
    });
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

#[test]
fn config_page_is_as_the_decoder_takes_it() {
    let (path, wanted) = (root().join(CONFIG_PAGE), config_page());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == wanted,
        "{CONFIG_PAGE} is not what the code says: run UPDATE_DOCS=1 cargo test --test manual"
    );
}

#[test]
fn each_command_has_a_page_without_a_mistake() {
    let mut pages: Vec<PathBuf> = fs::read_dir(made("man"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for name in ["tandemgw.1", "tandemgw-run.1", "tandemgw-ha-set.1"] {
        assert!(pages.contains(&made("man").join(name)), "no {name}");
    }
    pages.push(root().join(CONFIG_PAGE));
    for page in pages {
        // -W: each warning is an error.
        let lint = output(
            Command::new("mandoc")
                .args(["-T", "lint", "-W", "error"])
                .arg(&page),
        );
        assert_eq!(lint, "", "{}", page.display());
        let text = fs::read_to_string(&page).unwrap();
        if page.extension().is_some_and(|section| section == "1") {
            for heading in [
                "NAME",
                "SYNOPSIS",
                "\"EXIT STATUS\"",
                "FILES",
                "\"SEE ALSO\"",
            ] {
                let heading = format!(".SH {heading}");
                assert!(text.contains(&heading), "{}: {heading}", page.display());
            }
        }
    }
}

/// Completions that bash offers when Tab is pressed after `line`.
fn completed(line: &str) -> Vec<String> {
    let file = made("completions").join("tandemgw.bash");
    let binary = env!("CARGO_BIN_EXE_tandemgw");
    let script = format!(
        ". {} && complete -p tandemgw >/dev/null && COMP_LINE=$1 COMP_POINT=${{#1}} COMP_WORDS=({binary}) && \
         _tandemgw 2>/dev/null; printf '%s\n' \"${{COMPREPLY[@]}}\"",
        file.display()
    );
    let words = output(Command::new("bash").args(["--norc", "-c", &script, "bash", line]));
    words.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    let commands = completed("tandemgw ");
    for command in ["run", "check", "status", "sessions", "failover"] {
        assert!(commands.iter().any(|word| word == command), "{commands:?}");
    }
    assert_eq!(completed("tandemgw ha s"), ["set"]);
    // bash replaces what comes after the last `=`.
    assert_eq!(completed("tandemgw sessions proto=t"), ["tcp"]);
    assert_eq!(completed("tandemgw sessions pol"), ["policy="]);
    for name in ["_tandemgw", "tandemgw.fish"] {
        let text = fs::read_to_string(made("completions").join(name)).unwrap();
        assert!(
            text.contains("tandemgw") && text.contains("complete --"),
            "{name}"
        );
    }
}

fn config_page() -> String {
    let mut page = String::from(INTRODUCTION);
    for table in tables() {
        describe(&mut page, table);
    }
    page.push_str(END);
    page
}

const INTRODUCTION: &str = r#".\" Generated: UPDATE_DOCS=1 cargo test --test manual
.TH TANDEMGW.TOML 5 "" "tandemgw" "tandemgw"
.SH NAME
tandemgw.toml \- configuration of the tandemgw gateway
.SH DESCRIPTION
The configuration is one TOML file.
An unknown key or table is an error; all errors of a file are shown at once, each with its line and a hint, by
.BR "tandemgw check" .
.PP
Paths are relative to the folder of the file.
Durations are strings of a number and a unit: "50ms", "2s", "5m", "2h", "1d".
Addresses of both families can stand side by side wherever addresses are listed.
[name] is a table that occurs once, [[name]] one that can occur several times; their order counts only for
[[policy]], where the first match wins.
"#;

const END: &str = r#".SH FILES
.TP
/etc/tandemgw/\fINAME\fR.toml
The config of the service tandemgw@\fINAME\fR.
.TP
/usr/share/doc/tandemgw/examples
Configs to start with.
.SH "SEE ALSO"
.BR tandemgw (1),
.BR tandemgw\-check (1)
"#;

fn describe(page: &mut String, table: &TableDoc) {
    let heading = match (table.name, table.repeated) {
        ("", _) => "ABOVE THE FIRST TABLE".to_owned(),
        (name, true) => format!("[[{name}]]"),
        (name, false) => format!("[{name}]"),
    };
    let _ = writeln!(
        page,
        ".SH \"{}\"\n{}.",
        escaped(&heading),
        escaped(table.meaning)
    );
    for option in options().iter().filter(|option| option.table == table.name) {
        let _ = writeln!(
            page,
            ".TP\n.B {}\n{}.\n.br\nValue: {}. Default: {}.",
            escaped(option.key),
            escaped(option.meaning.trim_end_matches('.')),
            escaped(&option.kind_text()),
            escaped(&option.default_text()),
        );
    }
}

/// Text as roff takes it: nothing in it is a command.
fn escaped(text: &str) -> String {
    let text = text
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('"', "\\(dq");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}
