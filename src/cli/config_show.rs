//! `tandemgw config show`: the config in force, and what differs from the file.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use tandemgw::os::config_files::parse_with_included;
use tandemgw::os::config_terms::with_absolute_paths;
use tandemgw_core::config::{self, Change, Config, Difference, Sources, ThisUnit};
use tandemgw_core::control::protocol::{ConfigPart, ConfigVersion, Request};

use super::client::{Client, ClientError, PATIENCE, parse};
use super::policies::finish;
use super::{fail, query};

/// The config in force, and how the file differs from it; or a version, and how that differs.
#[derive(Serialize)]
pub struct Shown {
    /// As a config file.
    config: String,
    /// The file that it was read from.
    file: String,
    /// The version, of `config history`; none for what is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    /// The changes that a reload or a restart would make; `null` if the file can't be read.
    differs: Option<Vec<Row>>,
    /// Why the file can't be compared; `null` if it can.
    error: Option<String>,
}

/// A key whose value in the file is not the one in force.
#[derive(Serialize)]
pub struct Row {
    key: String,
    what: String,
    /// `reload` or `restart`.
    needs: &'static str,
}

pub fn show(socket: Option<&Path>, full: bool, json: bool) -> ExitCode {
    let shown = match ask(socket, full) {
        Ok(shown) => shown,
        Err(error) => return fail(error.code(), error),
    };
    shown.print(json)
}

fn ask(socket: Option<&Path>, full: bool) -> Result<Shown, ClientError> {
    let mut client = Client::connect(socket, PATIENCE)?;
    let status = client.status()?;
    let config = in_force(&mut client, full)?;
    let file = PathBuf::from(status.config.map_or_else(String::new, |it| it.file));
    let compared = compare(&config, &file, status.node);
    Ok(Shown {
        config,
        version: None,
        file: file.display().to_string(),
        differs: compared.as_ref().ok().map(rows),
        error: compared.err(),
    })
}

/// The config in force, as text.
fn in_force(client: &mut Client, full: bool) -> Result<String, ClientError> {
    let mut parts: Vec<String> = Vec::new();
    client.ask(&Request::ConfigShow { full }, |line| {
        parts.push(parse::<ConfigPart>(line)?.text);
        Ok(())
    })?;
    Ok(parts.join("\n"))
}

/// The changes that `wanted` would make to the config in force.
pub fn differences(client: &mut Client, wanted: &Config) -> Result<Vec<Row>, String> {
    let running = in_force(client, false).map_err(|error| error.to_string())?;
    let wanted = with_absolute_paths(wanted.clone()).map_err(|error| error.to_string())?;
    Ok(rows(&Change::new(&parse_running(&running)?, &wanted)))
}

/// The changes that the file would make to the config in force.
fn compare(running: &str, file: &Path, node: String) -> Result<Change, String> {
    let mistakes = |_| "it has mistakes, which `tandemgw check` shows".to_owned();
    let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
    let wanted = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let mut sources = Sources::new(file, &wanted).of_unit(Some(ThisUnit::Named(node)));
    let parsed = parse_with_included(&mut sources, |file| std::fs::read(file));
    let (wanted, _) = parsed.map_err(mistakes)?;
    let wanted = with_absolute_paths(wanted).map_err(|error| error.to_string())?;
    Ok(Change::new(&parse_running(running)?, &wanted))
}

/// The config in force, from its text. It is whole: it has no `include`, and no relative path.
fn parse_running(text: &str) -> Result<Config, String> {
    let parsed = config::parse(Path::new("running.toml"), text);
    let (config, _) = parsed
        .map_err(|_| "the running gateway is of another version: use its own program".to_owned())?;
    Ok(config)
}

fn rows(change: &Change) -> Vec<Row> {
    let row = |needs| {
        move |it: &Difference| Row {
            key: it.key.clone(),
            what: it.what.clone(),
            needs,
        }
    };
    let live = change.applied.iter().map(row("reload"));
    live.chain(change.waiting.iter().map(row("restart")))
        .collect()
}

impl Shown {
    /// A version of the history.
    pub fn of_version(
        kept: &ConfigVersion,
        texts: Vec<(PathBuf, String)>,
        differs: Result<Vec<Row>, String>,
    ) -> Shown {
        let file = texts.first().map(|(path, _)| path.display().to_string());
        let mut config = String::new();
        for (path, text) in &texts {
            if texts.len() > 1 {
                let _ = writeln!(config, "# {}", path.display());
            }
            config.push_str(text);
            if !text.ends_with('\n') {
                config.push('\n');
            }
        }
        Shown {
            config,
            file: file.unwrap_or_default(),
            version: Some(kept.version),
            error: differs.as_ref().err().cloned(),
            differs: differs.ok(),
        }
    }

    pub fn print(&self, json: bool) -> ExitCode {
        let printed = match json {
            true => serde_json::to_string(self)
                .map_err(io::Error::from)
                .and_then(|line| query::print_line(&line)),
            false => write!(io::stdout(), "{}", self.as_text()),
        };
        finish(printed, ExitCode::SUCCESS)
    }

    /// A config file that begins with the differences as comments.
    fn as_text(&self) -> String {
        let mut out = String::new();
        let (what, other) = match self.version {
            Some(version) => {
                let file = &self.file;
                (format!("version {version} of {file};"), "it ".to_owned())
            }
            None => ("in force;".to_owned(), format!("{} ", self.file)),
        };
        let _ = match (&self.differs, &self.error) {
            (Some(rows), _) if rows.is_empty() => writeln!(out, "# {what} {other}says the same"),
            (Some(_), _) => writeln!(out, "# {what} {other}differs:"),
            (None, Some(why)) => writeln!(out, "# {what} {other}can't be compared: {why}"),
            (None, None) => writeln!(out, "# {what}"),
        };
        let rows = self.differs.iter().flatten();
        let width = rows.clone().map(|row| row.key.len()).max().unwrap_or(0);
        for Row { key, what, needs } in rows {
            let _ = writeln!(out, "#   {key:width$}  {what} (by a {needs})");
        }
        out.push('\n');
        out.push_str(&self.config);
        out
    }
}
