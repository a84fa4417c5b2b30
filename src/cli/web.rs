//! `tandemgw web`: the state of the pair in a browser, to look at.
//!
//! It only asks what a member of the gateway's group may ask, so a fault in it can change nothing.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tandemgw::os::clock;
use tandemgw::os::web::{self, File};
use tandemgw_core::control::protocol::{Event, Request};
use tandemgw_core::time::Time;

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
        path: "/style.css",
        kind: "text/css",
        text: include_str!("web/style.css"),
    },
];

pub fn web(socket: Option<&Path>, listen: SocketAddr) -> ExitCode {
    if !listen.ip().is_loopback() {
        let why = "the page is plain HTTP, and so on loopback only; from elsewhere: ssh -L";
        return fail(EXIT_USAGE, format!("--listen {listen}: {why}"));
    }
    let mut source = match Source::new(socket) {
        Ok(source) => source,
        Err(error) => return fail(error.code(), error),
    };
    say(format_args!("http://{listen}/\n"));
    let path = source.path.clone();
    let watch = move |news: &dyn Fn()| watch(&path, news);
    match web::serve(listen, FILES, move || source.ask(), watch) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, format!("--listen {listen}: {error}")),
    }
}

/// Follows the events of the gateway, until it ends: that is news, too.
fn watch(path: &Path, news: &dyn Fn()) {
    let events = Request::Events {
        after: None,
        run: None,
        follow: true,
    };
    let followed = Client::connect(Some(path), client::PATIENCE).and_then(|mut client| {
        client.ask(&events, |_| {
            news();
            Ok(())
        })
    });
    // The page says why there is no answer.
    drop(followed);
    news();
}

/// The gateway that is shown. It may end and come back.
struct Source {
    path: PathBuf,
    policies: String,
    policies_due: Time,
    /// The last events, the newest first.
    events: VecDeque<String>,
    /// The run and the number of the newest.
    place: (Option<String>, Option<u64>),
}

impl Source {
    fn new(socket: Option<&Path>) -> Result<Source, ClientError> {
        let client = Client::connect(socket, PATIENCE)?;
        Ok(Source {
            path: client.path().to_owned(),
            policies: "[]".to_owned(),
            policies_due: Time::ZERO,
            events: VecDeque::new(),
            place: (None, None),
        })
    }

    /// The content of the page, as one line of JSON.
    fn ask(&mut self) -> String {
        match self.ask_gateway() {
            Ok(text) => text,
            Err(error) => serde_json::json!({ "error": error.to_string() }).to_string(),
        }
    }

    fn ask_gateway(&mut self) -> Result<String, ClientError> {
        let mut client = Client::connect(Some(&self.path), PATIENCE)?;
        let now = clock::now();
        if now >= self.policies_due {
            self.policies = list(lines(&mut client, &Request::Policies)?.iter());
            self.policies_due = now + POLICIES;
        }
        let status = lines(&mut client, &Request::Status)?;
        let hosts = lines(&mut client, &Request::Hosts { limit: Some(20) })?;
        self.learn_events(&mut client)?;
        let (policies, hosts) = (&self.policies, list(hosts.iter()));
        let (status, events) = (status.concat(), list(self.events.iter()));
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
