//! `tandemgw config history`, `config show --version` and `config rollback`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tandemgw::os::config_files::parse_with_included;
use tandemgw::os::file_lock::lock_folder;
use tandemgw::os::history;
use tandemgw::os::replace_file::{folder, replace_all};
use tandemgw_core::config::{self, Config, Diagnostic, Sources, ThisUnit};
use tandemgw_core::control::protocol::{ConfigVersion, ReloadDone, Request};

use super::client::{Client, ClientError, PATIENCE, parse};
use super::policies::finish;
use super::table::{Table, bytes};
use super::{EXIT_CONFIG, config_show, events, fail, query, reload, say};

const HEADERS: [&str; 6] = ["VERSION", "SINCE", "WHO", "HOW", "FILES", "SIZE"];

/// A config: the paths of its files with their texts, its own file first.
type Texts = Vec<(PathBuf, String)>;

pub fn list(socket: Option<&Path>, json: bool) -> ExitCode {
    let mut table = Table::new(&HEADERS).dropping(&["FILES", "SIZE"]);
    let mut none = true;
    let code = query::ask(
        socket,
        &Request::ConfigHistory,
        json,
        |it: ConfigVersion| {
            let version = match none {
                true => format!("{} (in force)", it.version),
                false => it.version.to_string(),
            };
            none = false;
            let files = it.files.to_string();
            table.stream([
                version,
                events::utc(it.at),
                it.who,
                it.how,
                files,
                bytes(it.bytes),
            ])
        },
    );
    if json || code != ExitCode::SUCCESS {
        return code;
    }
    if none {
        say("tandemgw: no config is kept: the log says why\n");
    }
    finish(table.print(), code)
}

pub fn show(socket: Option<&Path>, version: u64, json: bool) -> ExitCode {
    let shown = Client::connect(socket, PATIENCE).and_then(|mut client| {
        let (kept, texts) = find(&mut client, version)?;
        let sources = sources_of(&texts)?;
        let node = client.status()?.node;
        let sources = sources.of_unit(Some(ThisUnit::Named(node)));
        let differs = match config::parse_all(&sources) {
            Ok((wanted, _)) => config_show::differences(&mut client, &wanted),
            Err(_) => Err("this version of the program finds mistakes in it".to_owned()),
        };
        Ok(config_show::Shown::of_version(&kept, texts, differs))
    });
    match shown {
        Ok(shown) => shown.print(json),
        Err(error) => fail(error.code(), error),
    }
}

pub fn rollback(socket: Option<&Path>, version: u64, json: bool) -> ExitCode {
    match try_rollback(socket, version, json) {
        Ok(code) => code,
        Err(error) => fail(error.code(), error),
    }
}

fn try_rollback(socket: Option<&Path>, version: u64, json: bool) -> Result<ExitCode, ClientError> {
    let mut client = Client::connect(socket, PATIENCE)?;
    let status = client.status()?;
    let file = status.config.map(|it| PathBuf::from(it.file));
    let (_, texts) = find(&mut client, version)?;
    let own = &texts[0].0;
    if file.as_ref() != Some(own) {
        let own = own.display();
        return Err(failed(format!(
            "version {version} is of {own}, which is not the config file now: copy it by `config \
             show --version {version}`"
        )));
    }
    if let Err((problems, sources)) = check(&texts, version, status.node) {
        say(config::render(&problems, &sources, false));
        return Ok(ExitCode::from(EXIT_CONFIG));
    }
    let _lock = lock_folder(folder(own)).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => failed("another command writes the config now: try again".into()),
        _ => failed(format!("{}: {error}", folder(own).display())),
    })?;
    let (new, old) = changed(&texts)?;
    replace_all(&new).map_err(|error| failed(format!("nothing has changed: {error}")))?;
    let note = Some(format!("rollback to {version}"));
    let mut done = None;
    let asked = client.ask(&Request::Reload { note }, |line| {
        done = Some((line.to_owned(), parse::<ReloadDone>(line)?));
        Ok(())
    });
    if let Some((line, done)) = &done {
        match json {
            true => query::print_line(line)?,
            false => reload::print(done, &mut io::stdout().lock())?,
        }
    }
    if let Err(error) = asked {
        let back = replace_all(&old).map_or_else(
            |error| format!("and its files are left in place: {error}"),
            |()| "and the files are as before".to_owned(),
        );
        return Err(failed(format!(
            "version {version} is not in force: {error}, {back}"
        )));
    }
    if !json {
        writeln!(io::stdout(), "version {version} is in force again")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The version, and its texts.
fn find(client: &mut Client, version: u64) -> Result<(ConfigVersion, Texts), ClientError> {
    let mut all: Vec<ConfigVersion> = Vec::new();
    client.ask(&Request::ConfigHistory, |line| {
        all.push(parse(line)?);
        Ok(())
    })?;
    let (newest, oldest) = match (all.first(), all.last()) {
        (Some(newest), Some(oldest)) => (newest.version, oldest.version),
        _ => return Err(failed("no config is kept: the log says why".to_owned())),
    };
    let found = all.into_iter().find(|kept| kept.version == version);
    let Some(kept) = found else {
        return Err(failed(format!(
            "there is no version {version}: `config history` has {oldest} to {newest}"
        )));
    };
    let file = &kept.kept_in;
    let texts = history::read(file).map_err(|error| {
        let remedy = match error.kind() {
            ErrorKind::PermissionDenied => ": run this as root, or as the user of the gateway",
            _ => "",
        };
        failed(format!("{}: {error}{remedy}", file.display()))
    })?;
    Ok((kept, texts))
}

/// The texts as they were read.
fn sources_of(texts: &Texts) -> Result<Sources, ClientError> {
    let mut sources = Sources::new(&texts[0].0, &texts[0].1);
    for (path, text) in &texts[1..] {
        let added = sources.include(path, text);
        added.map_err(|_| failed(format!("{} can't be read any more", path.display())))?;
    }
    Ok(sources)
}

/// Whether the version would be read as it was: a pattern may match files that it did not have.
fn check(texts: &Texts, version: u64, node: String) -> Result<Config, (Vec<Diagnostic>, Sources)> {
    let known: BTreeMap<PathBuf, &String> = texts
        .iter()
        .map(|(path, text)| (identity(path), text))
        .collect();
    let unit = Some(ThisUnit::Named(node));
    let mut sources = Sources::new(&texts[0].0, &texts[0].1).of_unit(unit);
    let read = |file: &Path| match known.get(&identity(file)) {
        Some(text) => Ok(text.as_bytes().to_vec()),
        None => Err(io::Error::other(format!(
            "version {version} does not have this file: move it away"
        ))),
    };
    match parse_with_included(&mut sources, read) {
        Ok((config, _)) => Ok(config),
        Err(problems) => Err((problems, sources)),
    }
}

fn identity(file: &Path) -> PathBuf {
    fs::canonicalize(file).unwrap_or_else(|_| file.to_owned())
}

/// The files that differ on the disk: with their new text, and as they are.
fn changed(texts: &Texts) -> Result<(Texts, Texts), ClientError> {
    let (mut new, mut old) = (Vec::new(), Vec::new());
    for (path, text) in texts {
        match fs::read_to_string(path) {
            Ok(before) if before == *text => continue,
            Ok(before) => old.push((path.clone(), before)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(format!("{}: {error}", path.display()))),
        }
        new.push((path.clone(), text.clone()));
    }
    Ok((new, old))
}

fn failed(why: String) -> ClientError {
    ClientError::Failed(why)
}
