//! `tandemgw push`: one config for all units.

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use tandemgw::os::config_files::add_included;
use tandemgw::os::history::name_of;
use tandemgw::os::process;
use tandemgw_core::config::{self, Sources};
use tandemgw_core::control::protocol::{
    Change, PushReport, PushState, PushUnit, PushUnitState, Request,
};
use tandemgw_core::push::message::cut;

use super::args::Command;
use super::client::{Client, ClientError, PATIENCE, parse};
use super::{EXIT_USAGE, fail, maintenance, query};

/// Bytes of a text in one request, of which each may take six in JSON.
const PIECE: usize = 8 << 10;

/// What the command line says.
struct Wanted<'a> {
    file: &'a Path,
    confirm_s: Option<u64>,
    yes: bool,
    check: bool,
    json: bool,
}

pub fn run(socket: Option<&Path>, command: Command) -> ExitCode {
    let Command::Push {
        file,
        confirm,
        yes,
        check,
        accept,
        abort,
        status: _,
        json,
    } = command
    else {
        return fail(EXIT_USAGE, "`push` is expected");
    };
    let confirm_s = match confirm.map(|text| maintenance::seconds("--confirm", &text)) {
        Some(Err(why)) => return fail(EXIT_USAGE, why),
        Some(Ok(seconds)) => Some(seconds),
        None => None,
    };
    let done = match (&file, accept, abort) {
        (Some(file), ..) => push(
            socket,
            &Wanted {
                file,
                confirm_s,
                yes,
                check,
                json,
            },
        ),
        (None, true, _) => one(socket, &Request::PushAccept, json),
        (None, _, true) => one(socket, &Request::PushAbort, json),
        _ => one(socket, &Request::PushStatus, json),
    };
    match done {
        Ok(code) => code,
        Err(error) => fail(error.code(), error),
    }
}

/// A request with one report.
fn one(socket: Option<&Path>, request: &Request, json: bool) -> Result<ExitCode, ClientError> {
    let mut client = Client::connect(socket, PATIENCE)?;
    let report = ask(&mut client, request, json)?;
    if !json {
        write!(io::stdout(), "{}", told(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn push(socket: Option<&Path>, wanted: &Wanted<'_>) -> Result<ExitCode, ClientError> {
    let Wanted { file, json, .. } = *wanted;
    let read = std::fs::read(file).map_err(|error| error.to_string());
    let text =
        read.and_then(|bytes| config::decode(bytes).map_err(|_| "it is not UTF-8".to_owned()));
    let text = text.map_err(|why| ClientError::Failed(format!("{}: {why}", file.display())))?;
    let text = whole(file, &text)?;
    let mut client = Client::connect(socket, PATIENCE)?;
    send(&mut client, &text)?;
    let checked = ask(&mut client, &Request::PushCheck, json)?;
    if !json {
        write!(io::stdout(), "{}", differences(&checked))?;
    }
    let refused = checked
        .units
        .iter()
        .any(|it| it.state == Some(PushUnitState::Failed));
    if refused || wanted.check {
        client.ask(&Request::PushAbort, |_| Ok(()))?;
        return Ok(match refused {
            true => fail(
                1,
                "nothing has changed: not every unit can have this config",
            ),
            false => ExitCode::SUCCESS,
        });
    }
    if !wanted.yes && !is_agreed(wanted)? {
        client.ask(&Request::PushAbort, |_| Ok(()))?;
        return Ok(fail(1, "nothing has changed"));
    }
    let request = Request::PushApply {
        push: checked.push.unwrap_or_default(),
        confirm_s: wanted.confirm_s,
        by: Some(name_of(process::user())),
    };
    let report = ask(&mut client, &request, json)?;
    if !json {
        write!(io::stdout(), "{}", told(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The text of a config together with the files that it includes.
pub fn whole(file: &Path, text: &str) -> Result<String, ClientError> {
    let mut sources = Sources::new(file, text);
    let added = add_included(&mut sources, |file| std::fs::read(file));
    added.map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(|it| it.line(&sources)).collect();
        ClientError::Failed(lines.join("; "))
    })?;
    config::bundle(&sources).map_err(|why| ClientError::Failed(why.to_string()))
}

/// Sends the text in pieces.
pub fn send(client: &mut Client, text: &str) -> Result<(), ClientError> {
    let mut at = 0;
    loop {
        let piece = cut(&text[at..], PIECE);
        let request = Request::PushPart {
            at: at as u64,
            text: piece.to_owned(),
        };
        client.ask(&request, |_| Ok(()))?;
        at += piece.len();
        if at == text.len() {
            return Ok(());
        }
    }
}

fn ask(client: &mut Client, request: &Request, json: bool) -> Result<PushReport, ClientError> {
    let mut report = None;
    let asked = client.ask(request, |line| {
        if json {
            query::print_line(line)?;
        }
        report = Some(parse::<PushReport>(line)?);
        Ok(())
    });
    asked?;
    report.ok_or_else(|| ClientError::Failed("the gateway says nothing about the push".to_owned()))
}

/// Asks the operator, at a terminal.
fn is_agreed(wanted: &Wanted<'_>) -> Result<bool, ClientError> {
    if wanted.json || !io::stdin().is_terminal() {
        let why = "say --yes to put it in force without a question, or --check to only see it";
        return Err(ClientError::Failed(why.to_owned()));
    }
    write!(io::stdout(), "Put it in force on all units? [y/N] ")?;
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// What the config would change on each unit.
pub fn differences(report: &PushReport) -> String {
    let mut out = String::new();
    for unit in &report.units {
        let what = match unit.state {
            Some(PushUnitState::Failed) => unit.why.clone().unwrap_or_default(),
            Some(PushUnitState::Away) => "is away, and gets it when it returns".to_owned(),
            _ if unit.changed.is_empty() && unit.restart.is_empty() => "no change".to_owned(),
            _ => String::new(),
        };
        let _ = writeln!(out, "{}: {what}", unit.node);
        if unit.compared.as_deref() == Some("conflict") {
            let _ = writeln!(out, "  its config was changed on it: this replaces that");
        }
        write_changes(&mut out, unit);
    }
    out
}

fn write_changes(out: &mut String, unit: &PushUnit) {
    let all = || unit.changed.iter().chain(&unit.restart);
    let width = all().map(|it| it.key.len()).max().unwrap_or(0).min(40);
    for Change { key, what } in &unit.changed {
        let _ = writeln!(out, "  {key:width$}  {what}");
    }
    for Change { key, what } in &unit.restart {
        let _ = writeln!(out, "  {key:width$}  {what} (by a restart)");
    }
    if unit.more > 0 {
        let _ = writeln!(out, "  and {} more", unit.more);
    }
}

/// How far a push is.
fn told(report: &PushReport) -> String {
    let mut out = String::new();
    let generation = report.generation.unwrap_or(0);
    let what = match report.state {
        None => "no config was pushed from this unit since its start".to_owned(),
        Some(PushState::Trial) => {
            let until = report.until.map(super::events::utc).unwrap_or_default();
            format!(
                "config {generation} is in force on all units until {until}: `tandemgw push --accept` keeps it"
            )
        }
        Some(PushState::Committed) => format!("config {generation} is in force, and in the files"),
        Some(PushState::Failed) => "the config before is in force on all units".to_owned(),
        Some(_) => format!("config {generation} is being pushed"),
    };
    let _ = writeln!(out, "{what}");
    for unit in &report.units {
        let state = match (unit.state, &unit.why, unit.compared.as_deref()) {
            (Some(PushUnitState::Failed), Some(why), _) => why.clone(),
            (Some(PushUnitState::Away), ..) => "away: it gets it when it returns".to_owned(),
            (Some(PushUnitState::InForce), ..) if report.state == Some(PushState::Committed) => {
                "in force; it has not said yet that it is in its file".to_owned()
            }
            (_, _, Some("conflict")) => "another config, changed on both: push one".to_owned(),
            (_, _, Some("behind")) => "an older config".to_owned(),
            (_, _, Some("ahead")) => "a newer config".to_owned(),
            (_, _, Some("same")) => "the same config".to_owned(),
            _ => continue,
        };
        let _ = writeln!(out, "  {}: {state}", unit.node);
    }
    out
}
