//! `tandemgw reload`.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use tandemgw_core::control::protocol::{Change, ReloadDone, Request};

use super::client::parse;
use super::{EXIT_CONFIG, query, say};

pub fn reload(socket: Option<&Path>, json: bool) -> ExitCode {
    let mut has_mistakes = false;
    let code = query::ask_lines(socket, &Request::Reload { note: None }, |line| {
        let done: ReloadDone = parse(line)?;
        has_mistakes |= done.problems.is_some();
        match json {
            true => query::print_line(line)?,
            false => print(&done, &mut io::stdout().lock())?,
        }
        Ok(())
    });
    match has_mistakes {
        true => ExitCode::from(EXIT_CONFIG),
        false => code,
    }
}

pub fn print(done: &ReloadDone, out: &mut impl Write) -> io::Result<()> {
    if done.problems.is_some() {
        // Before the reason, which is an error too.
        say(done.text.as_deref().unwrap_or_default());
        return Ok(());
    }
    let changed = done.changed.as_deref().unwrap_or_default();
    let restart = done.restart.as_deref().unwrap_or_default();
    if changed.is_empty() && restart.is_empty() {
        writeln!(out, "nothing has changed")?;
    }
    print_changes("changed:", changed, out)?;
    print_changes("waits for a restart:", restart, out)?;
    if let Some(more) = done.more.filter(|more| *more > 0) {
        writeln!(out, "and {more} more")?;
    }
    match done.sessions_ended {
        None | Some(0) => {}
        Some(1) => writeln!(out, "1 session ended, since it is no longer allowed")?,
        Some(ended) => writeln!(
            out,
            "{ended} sessions ended, since they are no longer allowed"
        )?,
    }
    for warning in done.warnings.iter().flatten() {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

fn print_changes(title: &str, changes: &[Change], out: &mut impl Write) -> io::Result<()> {
    let width = changes.iter().map(|change| change.key.len()).max();
    let Some(width) = width else {
        return Ok(());
    };
    writeln!(out, "{title}")?;
    let width = width.min(40);
    for Change { key, what } in changes {
        writeln!(out, "  {key:width$}  {what}")?;
    }
    Ok(())
}
