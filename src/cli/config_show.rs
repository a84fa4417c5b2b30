//! `tandemgw config show`: the config in force, and what differs from the file.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use tandemgw::os::config_files::parse_with_included;
use tandemgw::os::config_terms::with_absolute_paths;
use tandemgw_core::config::{Change, Config, Difference, Sources};
use tandemgw_core::control::protocol::{ConfigPart, Request};

use super::client::{Client, ClientError, PATIENCE, parse};
use super::policies::finish;
use super::{fail, query};

/// The config in force, and how the file differs from it.
#[derive(Serialize)]
struct Shown {
    /// As a config file.
    config: String,
    /// The file that it was read from.
    file: String,
    /// The changes that a reload or a restart would make; `null` if the file can't be read.
    differs: Option<Vec<Row>>,
    /// Why the file can't be compared; `null` if it can.
    error: Option<String>,
}

/// A key whose value in the file is not the one in force.
#[derive(Serialize)]
struct Row {
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
    let printed = match json {
        true => serde_json::to_string(&shown)
            .map_err(io::Error::from)
            .and_then(|line| query::print_line(&line)),
        false => write!(io::stdout(), "{}", shown.as_text()),
    };
    finish(printed, ExitCode::SUCCESS)
}

fn ask(socket: Option<&Path>, full: bool) -> Result<Shown, ClientError> {
    let mut client = Client::connect(socket, PATIENCE)?;
    let status = client.status()?;
    let mut parts: Vec<String> = Vec::new();
    client.ask(&Request::ConfigShow { full }, |line| {
        parts.push(parse::<ConfigPart>(line)?.text);
        Ok(())
    })?;
    let file = PathBuf::from(status.config.map_or_else(String::new, |it| it.file));
    let config = parts.join("\n");
    let compared = compare(&config, &file);
    Ok(Shown {
        config,
        file: file.display().to_string(),
        differs: compared.as_ref().ok().map(rows),
        error: compared.err(),
    })
}

/// The changes that the file would make to the config in force.
fn compare(running: &str, file: &Path) -> Result<Change, String> {
    let mistakes = |_| "it has mistakes, which `tandemgw check` shows".to_owned();
    let read = |name: &Path, text: &str| -> Result<Config, String> {
        let mut sources = Sources::new(name, text);
        let parsed = parse_with_included(&mut sources, |file| std::fs::read(file));
        let (config, _) = parsed.map_err(mistakes)?;
        with_absolute_paths(config).map_err(|error| error.to_string())
    };
    let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
    let wanted = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    // What is in force is whole: `config show` writes no `include`.
    let running = read(file, running)
        .map_err(|_| "the running gateway is of another version: use its own program".to_owned())?;
    Ok(Change::new(&running, &read(file, &wanted)?))
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
    /// A config file that begins with the differences as comments.
    fn as_text(&self) -> String {
        let mut out = String::new();
        let file = &self.file;
        let _ = match (&self.differs, &self.error) {
            (Some(rows), _) if rows.is_empty() => writeln!(out, "# in force; {file} says the same"),
            (Some(_), _) => writeln!(out, "# in force; {file} differs:"),
            (None, Some(why)) => writeln!(out, "# in force; {file} can't be compared: {why}"),
            (None, None) => writeln!(out, "# in force"),
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
