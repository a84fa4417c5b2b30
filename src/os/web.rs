//! The HTTP server of `tandemgw web`: a process of its own, with a thread for each connection. It
//! serves files from the binary, one stream of server-sent events to all clients, and passes on
//! what is to be changed from those who have logged in.

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use super::clock;

mod door;
mod listen;
mod login;
mod request;

use door::Connection;
pub use door::{Door, TlsFiles};
use listen::Client;
pub use listen::Listen;
use login::Refused;
pub use login::{Login, Password, SHORTEST};
use request::{Ask, Names};

/// Connections at a time; and those that read the stream, so that they leave room for others.
const MOST_CONNECTIONS: usize = 64;
const MOST_STREAMS: usize = 32;

/// Between two questions to the gateway, if there is no news.
const INTERVAL: Duration = Duration::from_secs(1);

/// Between two questions at least, however much news there is.
const CALM: Duration = Duration::from_millis(100);

/// Headers of every answer: the page loads nothing from elsewhere, runs no script but its own, and
/// can't be framed.
const HEADERS: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
    X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
    Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n\
    Cache-Control: no-store\r\nConnection: close\r\n";

/// A file of the page.
pub struct File {
    /// Its path, such as `/`.
    pub path: &'static str,
    /// Its type.
    pub kind: &'static str,
    /// The text of the page.
    pub text: &'static str,
}

/// What is served, where, and to whom.
pub struct Site {
    /// Where it is.
    pub listen: Listen,
    /// How connections are made.
    pub door: Door,
    /// Its host names.
    pub hosts: Vec<String>,
    /// Who may change something.
    pub login: Login,
    /// The page.
    pub files: &'static [File],
}

/// What an action comes to.
pub enum Acted {
    /// The answer, as JSON.
    Done(String),
    /// It changes something: only who has logged in may do it.
    NeedsLogin,
}

/// Where the content comes from.
pub trait Source: Send + Sync + 'static {
    /// The content of the page, as one line of JSON. It is called once a second, and when there is
    /// news, however many clients there are.
    fn look(&self) -> String;

    /// Follows the gateway, and says when there is news. It is called again after it has returned.
    fn watch(&self, news: &dyn Fn());

    /// Does what the page asks for, with the rights of the client.
    fn act(&self, body: &str, may_change: bool) -> Acted;
}

/// The last answer of the gateway, and its number.
#[derive(Default)]
struct Latest {
    state: Mutex<(u64, Arc<str>)>,
    changed: Condvar,
}

impl Latest {
    fn set(&self, text: String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0 + 1, text.into());
        self.changed.notify_all();
    }

    /// The first one after `number`.
    fn after(&self, number: u64) -> (u64, Arc<str>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 <= number {
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        (state.0, Arc::clone(&state.1))
    }
}

/// What all connections share.
struct Server<S> {
    site: Site,
    source: Arc<S>,
    latest: Arc<Latest>,
    connections: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
}

/// Serves until the process ends.
///
/// # Errors
/// If it can't listen there.
pub fn serve(site: Site, source: impl Source) -> io::Result<Infallible> {
    let listener = site.listen.open()?;
    let (source, latest) = (Arc::new(source), Arc::new(Latest::default()));
    follow(&source, &latest)?;
    let server = Arc::new(Server {
        site,
        source,
        latest,
        connections: Arc::default(),
        streams: Arc::default(),
    });
    loop {
        // One that is gone already.
        let Ok(client) = listener.accept() else {
            continue;
        };
        let Some(place) = Place::take(&server.connections, MOST_CONNECTIONS) else {
            continue;
        };
        let server = Arc::clone(&server);
        let begun = thread::Builder::new().spawn(move || {
            let _place = place;
            // The client is gone, or too slow.
            let _ = server.handle(client);
        });
        // The machine has no more threads: the connection is closed.
        drop(begun);
    }
}

/// Keeps the answer of the gateway up to date.
fn follow<S: Source>(source: &Arc<S>, latest: &Arc<Latest>) -> io::Result<()> {
    let (tell, news) = mpsc::sync_channel(1);
    let (looking, watching) = (Arc::clone(source), Arc::clone(source));
    let latest = Arc::clone(latest);
    thread::Builder::new().spawn(move || {
        loop {
            latest.set(looking.look());
            thread::sleep(CALM);
            // The sender lives as long as the process.
            let _ = news.recv_timeout(INTERVAL - CALM);
        }
    })?;
    thread::Builder::new().spawn(move || {
        loop {
            // If it is full, there is news already.
            watching.watch(&|| {
                let _ = tell.try_send(());
            });
            thread::sleep(INTERVAL);
        }
    })?;
    Ok(())
}

/// One of the connections at a time.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Place> {
        let place = Place(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer: its status, its type, and its text.
type Answer<'a> = (&'a str, &'a str, &'a str);

const OK: &str = "200 OK";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
const NOT_LOGGED_IN: Answer<'_> = (
    "401 Unauthorized",
    JSON,
    "{\"error\":\"log in first: the session has ended, or there was none\"}",
);

/// The body of a log-in.
#[derive(Deserialize)]
struct Credentials {
    /// None: the certificate of the client.
    password: Option<String>,
}

impl<S: Source> Server<S> {
    fn handle(&self, client: Client) -> io::Result<()> {
        let Client {
            socket,
            own,
            source,
        } = client;
        let mut stream = self.site.door.let_in(socket)?;
        let names = Names {
            scheme: self.site.door.scheme(),
            own,
            hosts: &self.site.hosts,
        };
        match request::read(&mut stream, &names)? {
            Err((status, why)) => answer(&mut stream, (status, TEXT, why)),
            Ok(ask) => self.reply(&mut stream, &ask, source),
        }
    }

    fn reply(&self, stream: &mut Connection, ask: &Ask, client: IpAddr) -> io::Result<()> {
        match (ask.is_post, ask.path.as_str()) {
            (false, "/stream") => self.tell(stream, ask),
            (false, "/session") => {
                let text = serde_json::json!({
                    "login": self.site.login.is_possible(),
                    "certificate": stream.has_certificate(),
                    "look": self.may_look(ask),
                    "change": self.may_change(ask, false),
                });
                answer(stream, (OK, JSON, &text.to_string()))
            }
            (true, "/login") => self.log_in(stream, ask, client),
            (true, "/logout") => {
                self.site.login.leave(ask.secret.as_deref());
                answer(stream, (OK, JSON, "{}"))
            }
            (true, "/act") if !self.may_look(ask) => answer(stream, NOT_LOGGED_IN),
            (true, "/act") => match self.source.act(&ask.body, self.may_change(ask, true)) {
                Acted::Done(text) => answer(stream, (OK, JSON, &text)),
                Acted::NeedsLogin => answer(stream, NOT_LOGGED_IN),
            },
            (is_post, path) => {
                let mut files = self.site.files.iter();
                let status = match files.find(|file| file.path == path) {
                    Some(file) if !is_post => return answer(stream, (OK, file.kind, file.text)),
                    Some(_) => "405 Method Not Allowed",
                    None => "404 Not Found",
                };
                answer(stream, (status, TEXT, "there is no such page\n"))
            }
        }
    }

    fn may_change(&self, ask: &Ask, uses: bool) -> bool {
        let secret = ask.secret.as_deref();
        self.site.login.knows(secret, clock::now(), uses)
    }

    /// On loopback all users of this machine may look, and at a file those who may write it.
    fn may_look(&self, ask: &Ask) -> bool {
        self.site.listen.is_local() || self.may_change(ask, false)
    }

    fn log_in(&self, stream: &mut Connection, ask: &Ask, client: IpAddr) -> io::Result<()> {
        let Ok(Credentials { password }) = serde_json::from_str(&ask.body) else {
            return answer(
                stream,
                ("400 Bad Request", TEXT, "a password is expected\n"),
            );
        };
        let now = clock::now();
        let say = |why: &str| serde_json::json!({ "error": why }).to_string();
        let entered = match password {
            Some(password) => self.site.login.enter(client, &password, now),
            None if stream.has_certificate() => self.site.login.begin(now),
            None => Err(Refused::Wrong),
        };
        let (status, text) = match entered {
            Ok(secret) => (OK, serde_json::json!({ "secret": secret }).to_string()),
            Err(Refused::Wrong) => ("401 Unauthorized", say("this is not the password")),
            Err(Refused::TooOften(wait)) => {
                let seconds = wait.as_secs() + 1;
                let why = format!("too many attempts: try again in {seconds} s");
                ("429 Too Many Requests", say(&why))
            }
            Err(Refused::NoPassword) => {
                let why = "nobody can log in: it was started without --password-file";
                ("403 Forbidden", say(why))
            }
            Err(Refused::NoRandom) => ("500 Internal Server Error", say("no random numbers")),
        };
        answer(stream, (status, JSON, &text))
    }

    /// Server-sent events (HTML, section 9.2), until the client is gone or may look no longer.
    fn tell(&self, stream: &mut Connection, ask: &Ask) -> io::Result<()> {
        if !self.may_look(ask) {
            return answer(stream, NOT_LOGGED_IN);
        }
        let Some(_place) = Place::take(&self.streams, MOST_STREAMS) else {
            let busy = "too many pages are open\n";
            return answer(stream, ("503 Service Unavailable", TEXT, busy));
        };
        let head = format!("HTTP/1.1 200 OK\r\n{HEADERS}Content-Type: text/event-stream\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut number = 0;
        while self.may_look(ask) {
            let (next, text) = self.latest.after(number);
            number = next;
            stream.write_all(format!("id: {number}\ndata: {text}\n\n").as_bytes())?;
            stream.flush()?;
        }
        stream.finish()
    }
}

fn answer(stream: &mut Connection, (status, kind, text): Answer<'_>) -> io::Result<()> {
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {status}\r\n{HEADERS}Content-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())?;
    stream.finish()
}
