//! `tandemgw reload`.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{EXIT_CONFIG, query, say};

pub fn reload(socket: Option<&Path>, json: bool) -> ExitCode {
    let mut has_mistakes = false;
    let code = query::ask(socket, &json!({ "command": "reload" }), |line| {
        let value: Value = serde_json::from_str(line)?;
        has_mistakes |= value.get("problems").is_some();
        match json {
            true => query::print_line(line),
            false => print(&value, &mut io::stdout().lock()),
        }
    });
    match has_mistakes {
        true => ExitCode::from(EXIT_CONFIG),
        false => code,
    }
}

fn print(value: &Value, out: &mut impl Write) -> io::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if value.get("problems").is_some() {
        // Ahead of the reason, which is an error too.
        say(text(&value["text"]));
        return Ok(());
    }
    let list = |key: &str| value[key].as_array().cloned().unwrap_or_default();
    let (changed, restart) = (list("changed"), list("restart"));
    if changed.is_empty() && restart.is_empty() {
        writeln!(out, "nothing has changed")?;
    }
    for (title, list) in [("changed:", changed), ("waits for a restart:", restart)] {
        if list.is_empty() {
            continue;
        }
        writeln!(out, "{title}")?;
        let widths = list.iter().map(|entry| text(&entry["key"]).len());
        let width = widths.max().unwrap_or(0).min(40);
        for entry in &list {
            let (key, what) = (text(&entry["key"]), text(&entry["what"]));
            writeln!(out, "  {key:width$}  {what}")?;
        }
    }
    if let Some(more) = value["more"].as_u64().filter(|more| *more > 0) {
        writeln!(out, "and {more} more")?;
    }
    match value["sessions_ended"].as_u64() {
        None | Some(0) => {}
        Some(1) => writeln!(out, "1 session ended, since it is no longer allowed")?,
        Some(ended) => writeln!(
            out,
            "{ended} sessions ended, since they are no longer allowed"
        )?,
    }
    for warning in list("warnings") {
        writeln!(out, "warning: {}", text(&warning))?;
    }
    Ok(())
}
