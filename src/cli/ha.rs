//! `tandemgw ha`.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use tandemgw::os::config_files::parse_with_included;
use tandemgw::os::file_lock::lock_folder;
use tandemgw::os::replace_file::{folder, replace};
use tandemgw_core::config::{Sources, ThisUnit};
use tandemgw_core::control::protocol::{Request, SwitchDone, SwitchRow};
use toml_edit::{DocumentMut, TomlError};

use super::client::{Client, PATIENCE, parse};
use super::{fail, query};

pub fn get(socket: Option<&Path>, json: bool, key: Option<String>) -> ExitCode {
    let only_value = key.is_some();
    let request = Request::HaGet { key };
    query::ask(socket, &request, json, |row: SwitchRow| {
        let SwitchRow { key, value } = row;
        match only_value {
            true => writeln!(io::stdout(), "{value}"),
            false => writeln!(io::stdout(), "{key} = {value}"),
        }
    })
}

pub fn set(socket: Option<&Path>, json: bool, key: String, value: String, save: bool) -> ExitCode {
    let mut failed = None;
    // Whose table the value belongs to, in a config for several units.
    let status = || Client::connect(socket, PATIENCE).and_then(|mut it| it.status());
    let node = save.then(status).and_then(Result::ok).map(|it| it.node);
    let code = query::ask_lines(socket, &Request::HaSet { key, value }, |line| {
        let mut done: SwitchDone = parse(line)?;
        let saved = save.then(|| {
            let file = &done.config;
            let saved = write_switch(file, node.as_deref(), &done.key, &done.toml);
            saved.map_err(|why| format!("{}: {why}", file.display()))
        });
        done.saved = saved.as_ref().map(Result::is_ok);
        match json {
            true => query::print_line(&serde_json::to_string(&done).map_err(io::Error::from)?)?,
            false => print(&done, saved.as_ref().and_then(|saved| saved.as_ref().ok()))?,
        }
        failed = saved.and_then(Result::err);
        Ok(())
    });
    match failed {
        Some(why) => fail(
            1,
            format!("set until the next restart, but not saved: {why}"),
        ),
        None => code,
    }
}

fn print(done: &SwitchDone, saved: Option<&Saved>) -> io::Result<()> {
    let SwitchDone {
        key,
        old,
        new,
        toml,
        ..
    } = done;
    let file = done.config.display();
    let mut out = io::stdout().lock();
    match old == new {
        true => writeln!(out, "{key} is {new} already")?,
        false => writeln!(out, "{key} is now {new}, was {old}")?,
    }
    for group in &done.groups_with_their_own {
        writeln!(out, "group {group} has its own priority, which stays")?;
    }
    match saved {
        None => writeln!(
            out,
            "it lasts until the next restart or reload; --save writes it to {file}"
        ),
        Some(Saved::Already) => writeln!(out, "{file} has this value already"),
        Some(Saved::Changed(before)) => writeln!(out, "{file}: {key} = {toml}, was {before}"),
        Some(Saved::Added) => writeln!(out, "{file}: added {key} = {toml}"),
    }
}

/// A value of a switch as TOML.
pub fn as_toml(value: &str) -> String {
    let is_plain = value.parse::<bool>().is_ok() || value.parse::<i64>().is_ok();
    match is_plain {
        true => value.to_owned(),
        false => toml_edit::Value::from(value).to_string(),
    }
}

/// The text of a config with another value of a switch, as TOML: of the unit `node`, if that has a
/// value of its own, or else of all.
pub fn with_switch(
    text: &str,
    node: &str,
    key: &str,
    toml: &str,
) -> Result<String, impl fmt::Display> {
    edit(text, Some(node), key, toml).map(|(text, _)| text)
}

/// The change that saving made to the file.
#[derive(Debug, PartialEq)]
enum Saved {
    Already,
    Added,
    /// The value before, as TOML.
    Changed(String),
}

/// Why a value is not in the file.
#[derive(Debug)]
enum SaveError {
    Io(io::Error),
    /// The file is not TOML.
    Toml(TomlError),
    /// The file would not be a valid config then.
    Mistakes,
    /// The file has no `[ha]`.
    NoHa,
    /// Another process saves.
    UnderWay,
}

impl From<io::Error> for SaveError {
    fn from(error: io::Error) -> SaveError {
        SaveError::Io(error)
    }
}

impl From<TomlError> for SaveError {
    fn from(error: TomlError) -> SaveError {
        SaveError::Toml(error)
    }
}

impl fmt::Display for SaveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SaveError::Io(error) => error.fmt(f),
            SaveError::Toml(error) => f.write_str(error.message()),
            SaveError::Mistakes => {
                f.write_str("the file has mistakes; `tandemgw check` shows them")
            }
            SaveError::NoHa => f.write_str("there is no [ha] in the file"),
            SaveError::UnderWay => f.write_str("another save is under way; try again"),
        }
    }
}

/// Sets `key` of `[ha]` in a config file, whose comments and order stay.
fn write_switch(
    file: &Path,
    node: Option<&str>,
    key: &str,
    toml: &str,
) -> Result<Saved, SaveError> {
    // A link is to stay one.
    let file = fs::canonicalize(file)?;
    let _lock = lock(&file)?;
    let text = fs::read_to_string(&file)?;
    let (new, saved) = edit(&text, node, key, toml)?;
    if saved == Saved::Already {
        return Ok(saved);
    }
    let unit = node.map(|node| ThisUnit::Named(node.to_owned()));
    let mut sources = Sources::new(&file, &new).of_unit(unit);
    if parse_with_included(&mut sources, |file| fs::read(file)).is_err() {
        return Err(SaveError::Mistakes);
    }
    replace(&file, &new)?;
    Ok(saved)
}

/// The text with another value of a key of `[ha]`, or of the table that `node` has in its place.
fn edit(
    text: &str,
    node: Option<&str>,
    key: &str,
    toml: &str,
) -> Result<(String, Saved), SaveError> {
    let mut document: DocumentMut = text.parse()?;
    let value: toml_edit::Value = toml.parse()?;
    let own = node.filter(|node| has_own(&document, node, key));
    let place = match own {
        Some(node) => document
            .get_mut("node")
            .and_then(|it| it.get_mut(node)?.get_mut("ha")),
        None => document.get_mut("ha"),
    };
    let table = place
        .and_then(|item| item.as_table_like_mut())
        .ok_or(SaveError::NoHa)?;
    let saved = match table.get_mut(key).and_then(|item| item.as_value_mut()) {
        Some(place) => {
            let before = place.clone().decorated("", "").to_string();
            if before == toml {
                return Ok((text.to_owned(), Saved::Already));
            }
            // The comment after the value is part of it.
            let decor = place.decor().clone();
            *place = value;
            *place.decor_mut() = decor;
            Saved::Changed(before)
        }
        None => {
            table.insert(key, toml_edit::value(value));
            Saved::Added
        }
    };
    Ok((document.to_string(), saved))
}

/// Whether a unit has a value of its own for a key of `[ha]`.
fn has_own(document: &DocumentMut, node: &str, key: &str) -> bool {
    let unit = document.get("node").and_then(|it| it.get(node));
    unit.and_then(|it| it.get("ha")?.get(key)).is_some()
}

/// Keeps other saves away from a file, until the lock is dropped or the process ends: that of its
/// folder, since the file is replaced.
fn lock(file: &Path) -> Result<File, SaveError> {
    lock_folder(folder(file)).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => SaveError::UnderWay,
        _ => SaveError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# The pair in rack 7.\n\
        [node]\nname = \"a\" # gw-a\n\n\
        [ha]   # see the runbook\n\
        group-id = 7\n\
        # Who is primary.\n\
        priority = 100   # the other has 50\n\
        pickup-guarantee = 'off'\n\n\
        # The cross cable.\n\
        [[ha.link]]\ninterface = \"sync0\"\n";

    #[test]
    fn a_value_is_replaced_and_all_else_stays() {
        let (text, saved) = edit(FILE, None, "priority", "200").unwrap();
        assert_eq!(saved, Saved::Changed("100".into()));
        assert_eq!(text, FILE.replace("priority = 100 ", "priority = 200 "));
        let (text, saved) = edit(FILE, None, "pickup-guarantee", "\"strict\"").unwrap();
        assert_eq!(saved, Saved::Changed("'off'".into()));
        assert_eq!(text, FILE.replace("'off'", "\"strict\""));
    }

    #[test]
    fn a_unit_of_several_has_its_own_value() {
        let file = "[node.a.ha]\npriority = 200\n[node.b]\n[ha]\npriority = 100\n";
        let (text, _) = edit(file, Some("a"), "priority", "150").unwrap();
        assert_eq!(text, file.replace("200", "150"));
        let (text, _) = edit(file, Some("b"), "priority", "150").unwrap();
        assert_eq!(text, file.replace("100", "150"));
    }

    #[test]
    fn a_key_that_is_missing_is_added_to_its_table() {
        let (text, saved) = edit(FILE, None, "override", "true").unwrap();
        assert_eq!(saved, Saved::Added);
        assert_eq!(text, FILE.replace("'off'\n", "'off'\noverride = true\n"));
        let inline = "ha = { priority = 1 }\n";
        let (text, _) = edit(inline, None, "override", "true").unwrap();
        assert_eq!(text, "ha = { priority = 1 , override = true }\n");
    }

    #[test]
    fn a_value_that_is_there_already_changes_nothing() {
        let (text, saved) = edit(FILE, None, "priority", "100").unwrap();
        assert_eq!((text.as_str(), saved), (FILE, Saved::Already));
        let error = edit("[node]\n", None, "priority", "1").unwrap_err();
        assert!(matches!(error, SaveError::NoHa), "{error:?}");
    }
}
