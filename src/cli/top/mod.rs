//! `tandemgw top`: a live view of a gateway in the terminal. This file does the input and output;
//! [`state`] holds what is shown, [`draw`] draws it.

mod draw;
mod state;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGTERM};
use tandemgw::os::clock;
use tandemgw_core::control::protocol::{HostRow, PolicyRow, Request, Status};
use tandemgw_core::time::Time;

use super::client::{Client, ClientError, parse};
use super::fail;

use state::{Command, Top};

/// How long the view may freeze for a gateway that does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest wait for a key: signals are checked in between.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

pub fn top(socket: Option<&Path>) -> ExitCode {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return fail(
            1,
            "top needs a terminal; for programs there is `tandemgw status --json`",
        );
    }
    let mut source = match Client::connect(socket, PATIENCE) {
        Ok(client) => Source::new(client),
        Err(error) => return fail(error.code(), error),
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        // Without it such a signal would end us without restoring the terminal.
        let _ = signal_hook::flag::register(signal, Arc::clone(&stop));
    }
    // It restores the terminal on a panic, too.
    let result =
        ratatui::try_init().and_then(|mut terminal| run(&mut terminal, &mut source, &stop));
    ratatui::restore();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, format!("the terminal is gone: {error}")),
    }
}

/// Between two looks at the policies, for which the gateway counts all sessions.
const POLICIES: Duration = Duration::from_secs(5);

/// The gateway that is watched. It may end and come back.
struct Source {
    path: PathBuf,
    client: Option<Client>,
    policies_due: Time,
}

impl Source {
    fn new(client: Client) -> Source {
        Source {
            path: client.path().to_owned(),
            client: Some(client),
            policies_due: Time::ZERO,
        }
    }

    /// Asks for what is shown; `is_tall`: for what a large terminal has room for, too.
    fn update(&mut self, top: &mut Top, is_tall: bool) {
        let asked = self.ask(top, is_tall);
        match asked {
            Ok(status) => top.update(clock::now(), status),
            Err(error) => {
                self.client = None;
                top.lose(error.to_string());
            }
        }
    }

    fn ask(&mut self, top: &mut Top, is_tall: bool) -> Result<Status, ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(Some(&self.path), PATIENCE)?,
        };
        let status = client.status()?;
        if is_tall {
            let hosts = Request::Hosts { limit: Some(64) };
            top.hosts = rows::<HostRow>(&mut client, &hosts)?;
            let now = clock::now();
            if now >= self.policies_due {
                top.policies = rows::<PolicyRow>(&mut client, &Request::Policies)?;
                self.policies_due = now + POLICIES;
            }
        }
        self.client = Some(client);
        Ok(status)
    }
}

/// The lines of an answer. A gateway that does not know the request has none.
fn rows<T: serde::de::DeserializeOwned>(
    client: &mut Client,
    request: &Request,
) -> Result<Vec<T>, ClientError> {
    let mut rows = Vec::new();
    let asked = client.ask(request, |line| {
        rows.push(parse(line)?);
        Ok(())
    });
    match asked {
        Err(ClientError::Refused(_)) => Ok(Vec::new()),
        asked => asked.map(|()| rows),
    }
}

fn run(terminal: &mut DefaultTerminal, source: &mut Source, stop: &AtomicBool) -> io::Result<()> {
    let mut top = Top::new();
    let mut due = clock::now();
    while !stop.load(Ordering::Relaxed) {
        let now = clock::now();
        if now >= due && !top.is_paused() {
            let is_tall = draw::is_tall(terminal.size()?.height);
            source.update(&mut top, is_tall);
            due = now + top.interval();
        }
        terminal.draw(|frame| draw::draw(frame, &top))?;
        let wait = match top.is_paused() {
            true => LONGEST_WAIT,
            false => due.since(clock::now()).min(LONGEST_WAIT),
        };
        if !event::poll(wait)? {
            continue;
        }
        if let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            if is_quit(&key) {
                return Ok(());
            }
            if let Some(command) = command(&key) {
                top.obey(command);
                due = due.min(clock::now() + top.interval());
            }
        }
    }
    Ok(())
}

fn is_quit(key: &KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => true,
        KeyCode::Char('c' | 'd') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

fn command(key: &KeyEvent) -> Option<Command> {
    match key.code {
        KeyCode::Char('p' | ' ') => Some(Command::Pause),
        KeyCode::Char('+' | '=') | KeyCode::Up | KeyCode::Right => Some(Command::Slower),
        KeyCode::Char('-') | KeyCode::Down | KeyCode::Left => Some(Command::Faster),
        _ => None,
    }
}
