//! `tandemgw web`: the pair in a browser, to look at, and to change for those who log in.
//!
//! The gateway decides what this process may do, by its user. The page may ask for a part of that.

use std::collections::VecDeque;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandemgw::os::clock;
use tandemgw::os::web::{
    self, Acted, Door, File, Listen, Login, Password, SHORTEST, Site, TlsFiles,
};
use tandemgw_core::control::protocol::{Event, Request, Right};
use tandemgw_core::time::Time;

mod action;
mod history;

use action::Action;
use history::History;

use super::args::Command;

use super::client::{self, Client, ClientError, parse};
use super::{EXIT_USAGE, fail, say};

/// How long the page may wait for the gateway.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two looks at the policies, for which the gateway counts all sessions.
const POLICIES: Duration = Duration::from_secs(5);

/// Events that are shown.
const EVENTS: usize = 50;

const FILES: &[File] = &[
    File {
        path: "/",
        kind: "text/html",
        text: include_str!("web/index.html"),
    },
    File {
        path: "/app.js",
        kind: "text/javascript",
        text: include_str!("web/app.js"),
    },
    File {
        path: "/actions.js",
        kind: "text/javascript",
        text: include_str!("web/actions.js"),
    },
    File {
        path: "/style.css",
        kind: "text/css",
        text: include_str!("web/style.css"),
    },
];

pub fn web(socket: Option<&Path>, command: Command) -> ExitCode {
    let site = match site(command) {
        Ok(site) => site,
        Err(why) => return fail(EXIT_USAGE, why),
    };
    let gateway = match Gateway::new(socket) {
        Ok(gateway) => gateway,
        Err(error) => return fail(error.code(), error),
    };
    let listen = site.listen.clone();
    match &listen {
        Listen::Address(address) => say(format_args!("{}://{address}/\n", site.door.scheme())),
        Listen::File(path) => say(format_args!("{}\n", path.display())),
    }
    let Err(error) = web::serve(site, gateway);
    fail(1, format!("--listen {listen}: {error}"))
}

/// What the command line asks for, if it is safe.
fn site(command: Command) -> Result<Site, String> {
    let Command::Web {
        listen,
        password_file,
        certificate,
        key,
        client_ca,
        hosts,
    } = command
    else {
        return Err("`web` is expected".to_owned());
    };
    let listen: Listen = listen
        .parse()
        .map_err(|why| format!("--listen {listen}: {why}"))?;
    let password = password_file.map(|file| {
        Password::load(&file)
            .map_err(|error| format!("--password-file {}: {error}", file.display()))
    });
    let password = password.transpose()?;
    let door = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            let files = TlsFiles {
                certificate: &certificate,
                key: &key,
                client_ca: client_ca.as_deref(),
                lets_others_in: password.is_some(),
            };
            Door::tls(&files).map_err(|error| error.to_string())?
        }
        _ => Door::Plain,
    };
    if !listen.is_local() {
        let why = match (&door, password.is_some() || client_ca.is_some()) {
            (Door::Plain, _) => {
                "plain HTTP is for loopback only: use ssh -L, or give it --certificate and --key"
            }
            (Door::Tls(_), false) => {
                "beyond loopback it needs --password-file, which `tandemgw web-password` makes, or --client-ca"
            }
            _ => "",
        };
        if !why.is_empty() {
            return Err(format!("--listen {listen}: {why}"));
        }
    }
    Ok(Site {
        listen,
        door,
        hosts,
        login: Login::new(password),
        files: FILES,
    })
}

/// `tandemgw web-password`: makes one, unless it comes from stdin.
pub fn make_password(out: &Path, stdin: bool) -> ExitCode {
    let password = match stdin {
        false => Password::random(),
        true => {
            let mut line = String::new();
            let read = io::stdin().lock().read_line(&mut line);
            read.map(|_| line.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    let made = password.and_then(|password| {
        if password.chars().count() < SHORTEST {
            let why = format!("a password has at least {SHORTEST} characters");
            return Err(io::Error::other(why));
        }
        Password::write(out, &password)?;
        if !stdin {
            writeln!(io::stdout(), "{password}")?;
        }
        Ok(())
    });
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, format!("{}: {error}", out.display())),
    }
}

/// The gateway that is shown. It may end and come back.
struct Gateway {
    path: PathBuf,
    shown: Mutex<Shown>,
}

/// What the page was told.
#[derive(Default)]
struct Shown {
    policies: Option<String>,
    policies_due: Time,
    /// The last events, the newest first.
    events: VecDeque<String>,
    /// The run and the number of the newest.
    place: (Option<String>, Option<u64>),
    history: History,
}

impl Gateway {
    fn new(socket: Option<&Path>) -> Result<Gateway, ClientError> {
        let client = Client::connect(socket, PATIENCE)?;
        Ok(Gateway {
            path: client.path().to_owned(),
            shown: Mutex::default(),
        })
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl web::Source for Gateway {
    fn look(&self) -> String {
        let answer = self.shown().ask(&self.path);
        match answer {
            Ok(text) => text,
            Err(error) => error_of(&error),
        }
    }

    fn watch(&self, news: &dyn Fn()) {
        let events = Request::Events {
            after: None,
            run: None,
            follow: true,
        };
        let connected = Client::connect(Some(&self.path), client::PATIENCE);
        let followed = connected.and_then(|mut client| {
            client.ask(&events, |_| {
                news();
                Ok(())
            })
        });
        // The page says why there is no answer.
        drop(followed);
        news();
    }

    fn act(&self, body: &str, may_change: bool) -> Acted {
        let action = serde_json::from_str::<Action>(body).ok();
        let Some((action, right)) = action.and_then(|it| it.needs().map(|right| (it, right)))
        else {
            let why = "the page does not ask for this";
            return Acted::Done(serde_json::json!({ "error": why }).to_string());
        };
        if right == Right::Change && !may_change {
            return Acted::NeedsLogin;
        }
        Acted::Done(match action.run(self) {
            Ok(value) => value.to_string(),
            Err(error) => error_of(&error),
        })
    }
}

fn error_of(error: &ClientError) -> String {
    serde_json::json!({ "error": error.to_string() }).to_string()
}

impl Shown {
    /// The content of the page, as one line of JSON.
    fn ask(&mut self, path: &Path) -> Result<String, ClientError> {
        let mut client = Client::connect(Some(path), PATIENCE)?;
        let now = clock::now();
        if now >= self.policies_due {
            self.policies = Some(list(lines(&mut client, &Request::Policies)?.iter()));
            self.policies_due = now + POLICIES;
        }
        let status = lines(&mut client, &Request::Status)?.concat();
        self.history.learn(clock::now(), &parse(&status)?);
        let hosts = lines(&mut client, &Request::Hosts { limit: Some(20) })?;
        self.learn_events(&mut client)?;
        let policies = self.policies.as_deref().unwrap_or("[]");
        let (hosts, events) = (list(hosts.iter()), list(self.events.iter()));
        Ok(format!(
            r#"{{"status":{status},"policies":{policies},"hosts":{hosts},"events":{events}}}"#
        ))
    }

    fn learn_events(&mut self, client: &mut Client) -> Result<(), ClientError> {
        let (run, after) = self.place.clone();
        let request = Request::Events {
            after,
            run,
            follow: false,
        };
        for line in lines(client, &request)? {
            let event: Event = parse(&line)?;
            self.place = (Some(event.run), Some(event.sequence));
            self.events.push_front(line);
            self.events.truncate(EVENTS);
        }
        Ok(())
    }
}

fn lines(client: &mut Client, request: &Request) -> Result<Vec<String>, ClientError> {
    let mut lines = Vec::new();
    client.ask(request, |line| {
        lines.push(line.to_owned());
        Ok(())
    })?;
    Ok(lines)
}

/// Lines of JSON as a list.
fn list<'a>(lines: impl Iterator<Item = &'a String>) -> String {
    let lines: Vec<&str> = lines.map(String::as_str).collect();
    format!("[{}]", lines.join(","))
}
