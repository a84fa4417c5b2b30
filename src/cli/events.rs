//! `tandemgw events`: what has happened to a unit, and what happens. A program that is run for each
//! event can hold nothing but this process.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tandemgw::os::hook;
use tandemgw_core::control::protocol::{Event, EventSeverity, EventState, Request};

use super::client::{Client, ClientError, PATIENCE, parse};
use super::paint::{self, Tone, paint};
use super::{fail, say};

/// Between two attempts to reach a gateway that has ended.
const RETRY: Duration = Duration::from_secs(1);

/// How long the program for an event may take.
const LONGEST: Duration = Duration::from_secs(60);

/// Where a reader of the events is.
#[derive(Default)]
struct Place {
    run: Option<String>,
    after: Option<u64>,
}

/// The use of each event.
#[derive(Clone, Copy)]
enum Use<'a> {
    Show,
    Json,
    Run(&'a Path),
}

pub fn events(
    socket: Option<&Path>,
    (follow, exec): (bool, Option<&Path>),
    after: Option<u64>,
    json: bool,
) -> ExitCode {
    let follow = follow || exec.is_some();
    let how = match exec {
        Some(program) => Use::Run(program),
        None if json => Use::Json,
        None => Use::Show,
    };
    let mut place = Place { run: None, after };
    let mut path = socket.map(Path::to_owned);
    let mut has_been_there = false;
    loop {
        let asked = Client::connect(path.as_deref(), PATIENCE).and_then(|mut client| {
            // The same one again, whatever else is started meanwhile.
            path = Some(client.path().to_owned());
            if exec.is_some() && place.run.is_none() && place.after.is_none() {
                place.after = Some(last(&mut client)?);
            }
            has_been_there = true;
            tell(&mut client, &mut place, follow, how)
        });
        match asked {
            Ok(()) if !follow => return ExitCode::SUCCESS,
            Ok(()) => {}
            Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Err(ClientError::NotRunning(_) | ClientError::Failed(_))
                if follow && has_been_there => {}
            Err(error) => return fail(error.code(), error),
        }
        hook::pause(RETRY);
    }
}

/// The number of the last event so far.
fn last(client: &mut Client) -> Result<u64, ClientError> {
    let request = Request::Events {
        after: None,
        run: None,
        follow: false,
    };
    let mut last = 0;
    client.ask(&request, |line| {
        last = parse::<Event>(line)?.sequence;
        Ok(())
    })?;
    Ok(last)
}

fn tell(
    client: &mut Client,
    place: &mut Place,
    follow: bool,
    how: Use<'_>,
) -> Result<(), ClientError> {
    let request = Request::Events {
        after: place.after,
        run: place.run.clone(),
        follow,
    };
    client.ask(&request, |line| {
        let event: Event = parse(line)?;
        match how {
            Use::Json => writeln!(io::stdout(), "{line}")?,
            Use::Show => show(&event)?,
            Use::Run(program) => run(program, &event, line),
        }
        (place.run, place.after) = (Some(event.run), Some(event.sequence));
        Ok(())
    })
}

fn show(event: &Event) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if event.missed > 0 {
        writeln!(out, "… {} events are missing", event.missed)?;
    }
    let word = format!("{:<8}", severity(event));
    let word = match (paint::is_wanted(), event.severity) {
        (true, EventSeverity::Warning) => paint(&word, Tone::Warning),
        (true, EventSeverity::Critical) => paint(&word, Tone::Bad),
        _ => word,
    };
    let why = event.why.as_ref().map(|why| format!(" ({why})"));
    writeln!(
        out,
        "{}  {word}  {:<16}  {}{}",
        utc(event.at),
        event.id,
        event.what,
        why.unwrap_or_default()
    )
}

fn severity(event: &Event) -> &'static str {
    match event.severity {
        EventSeverity::Info => "info",
        EventSeverity::Warning => "WARNING",
        EventSeverity::Critical => "CRITICAL",
    }
}

/// Runs the program; if it fails, says so and goes on with the next event.
fn run(program: &Path, event: &Event, line: &str) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let state = match event.state {
        None => "",
        Some(EventState::Begin) => "begin",
        Some(EventState::End) => "end",
    };
    let variables = [
        ("TANDEMGW_EVENT", event.id.clone()),
        ("TANDEMGW_STATE", state.to_owned()),
        ("TANDEMGW_SEVERITY", severity(event).to_lowercase()),
        ("TANDEMGW_NODE", event.node.clone()),
        ("TANDEMGW_GROUP", text(&event.group)),
        ("TANDEMGW_PEER", text(&event.peer)),
        ("TANDEMGW_PORT", text(&event.port)),
        ("TANDEMGW_WHAT", event.what.clone()),
        ("TANDEMGW_WHY", text(&event.why)),
    ];
    if let Err(why) = hook::run(program, &variables, &format!("{line}\n"), LONGEST) {
        let (shown, number) = (program.display(), event.sequence);
        say(format_args!(
            "tandemgw: {shown} for event {number}: {why}\n"
        ));
    }
}

/// Seconds since 1970 as `2026-11-26T21:13:21Z`.
pub fn utc(at: f64) -> String {
    let seconds = at.max(0.0) as u64;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days from 1 March of year 0, in eras of 400 years: leap days come at their ends.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + next;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_as_a_date() {
        for (at, shown) in [
            (0.0, "1970-01-01T00:00:00Z"),
            (951_782_400.0, "2000-02-29T00:00:00Z"),
            (951_868_799.9, "2000-02-29T23:59:59Z"),
            (1_795_727_601.5, "2026-11-26T21:13:21Z"),
            (4_107_542_400.0, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(at), shown);
        }
    }
}
