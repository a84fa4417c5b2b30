//! The metrics over HTTP, on an address of the administrator's choice.
//!
//! No client can slow the gateway or keep others out: each turn of the event loop does one bounded
//! piece of work for one of them, there are at most [`MAX_CLIENTS`], each has a deadline, and one that
//! has not asked for anything yet makes room for the next.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use tandemgw_core::control::ShellView;
use tandemgw_core::gateway::Gateway;
use tandemgw_core::metrics::http::{self, Request, Status, Target};
use tandemgw_core::metrics::{Exposition, Process, View};
use tandemgw_core::time::Time;

use super::{next_bit, process};

/// Clients at a time.
pub const MAX_CLIENTS: usize = 16;

/// Clients that are accepted in one go: some 50 µs.
const ACCEPTS: usize = 8;
/// How long a client may take to ask.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long it may take to read the answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Bytes read from a client in one go.
const PIECE: usize = 4096;

/// The listening socket and its clients. Uses the tokens `first..=first + MAX_CLIENTS`.
pub struct HttpServer {
    listener: TcpListener,
    first: usize,
    clients: [Option<Client>; MAX_CLIENTS],
    /// Who may have something to do: the listener in bit 0, then the clients.
    ready: u32,
    /// The bit whose turn it was last.
    last: u32,
    /// When the first of the clients is closed, however far it is.
    soonest: Option<Time>,
    /// Start of the process, since the epoch.
    started: Option<Duration>,
}

struct Client {
    stream: TcpStream,
    /// When it is closed, however far it is.
    until: Time,
    phase: Phase,
}

/// How far a client is.
enum Phase {
    /// It asks; what it has said so far.
    Asking(Vec<u8>),
    /// It waits for the page.
    Waiting(Box<Writing>),
    /// It reads; the answer, and how much of it is sent.
    Reading(String, usize),
    /// Its answer is sent; it is to end the connection, lest ours cut the answer off.
    Leaving,
}

/// A page that is being written for a client.
struct Writing {
    request: Request,
    process: Process,
    page: Exposition,
    body: String,
}

impl HttpServer {
    /// Listens at `address`.
    ///
    /// # Errors
    /// What the kernel says, such as `AddrInUse`.
    pub fn open(address: SocketAddr, registry: &Registry, first: Token) -> io::Result<HttpServer> {
        let mut listener = TcpListener::bind(address)?;
        registry.register(&mut listener, first, Interest::READABLE)?;
        Ok(HttpServer {
            listener,
            first: first.0,
            clients: [const { None }; MAX_CLIENTS],
            ready: 0,
            last: 0,
            soonest: None,
            started: process::since_epoch(),
        })
    }

    /// Takes note of an event.
    pub fn mark(&mut self, token: Token) {
        self.ready |= 1 << (token.0 - self.first);
    }

    /// Whether there is work that no event will announce.
    pub fn is_busy(&self) -> bool {
        self.ready != 0
    }

    /// When [`HttpServer::serve`] is to be called at the latest.
    #[inline]
    pub fn timeout(&self) -> Option<Time> {
        self.soonest
    }

    /// Does a piece of work for the client whose turn it is. Each turn of the loop calls this.
    #[inline]
    pub fn serve(&mut self, now: Time, registry: &Registry, gateway: &Gateway, shell: &ShellView) {
        if self.ready != 0 || self.soonest.is_some_and(|until| until <= now) {
            self.serve_next(now, registry, gateway, shell);
            let clients = self.clients.iter().flatten();
            self.soonest = clients.map(|client| client.until).min();
        }
    }

    #[cold]
    fn serve_next(&mut self, now: Time, registry: &Registry, gateway: &Gateway, shell: &ShellView) {
        self.close_overdue(now);
        let Some(bit) = next_bit(self.ready, self.last) else {
            return;
        };
        self.last = bit;
        let more = match bit.checked_sub(1) {
            None => self.accept(now, registry),
            Some(slot) => self.advance(slot as usize, now, gateway, shell),
        };
        if !more {
            self.ready &= !(1 << bit);
        }
    }

    fn advance(&mut self, slot: usize, now: Time, gateway: &Gateway, shell: &ShellView) -> bool {
        let Some(client) = &mut self.clients[slot] else {
            return false;
        };
        match client.advance(now, gateway, shell, self.started) {
            Ok(more) => more,
            Err(_) => {
                self.close(slot);
                false
            }
        }
    }

    /// Accepts clients; gives whether there may be more.
    fn accept(&mut self, now: Time, registry: &Registry) -> bool {
        for _ in 0..ACCEPTS {
            let Some(slot) = self.place() else {
                return false;
            };
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    let token = Token(self.first + 1 + slot);
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    // What was there is closed, and with that gone from the registry.
                    self.clients[slot] = registry
                        .register(&mut stream, token, interest)
                        .is_ok()
                        .then(|| Client::new(stream, now));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Where the next client can be: a place that is free, or that of a client that has its answer, or
    /// that of the one that has taken longest to ask. None if all are being answered.
    fn place(&self) -> Option<usize> {
        let rank = |slot: &usize| match &self.clients[*slot] {
            None => Some((0, Time::ZERO)),
            Some(client) => match client.phase {
                Phase::Leaving => Some((1, client.until)),
                Phase::Asking(_) => Some((2, client.until)),
                Phase::Waiting(_) | Phase::Reading(..) => None,
            },
        };
        let ranked = (0..MAX_CLIENTS).filter_map(|slot| Some((rank(&slot)?, slot)));
        ranked.min().map(|(_, slot)| slot)
    }

    fn close_overdue(&mut self, now: Time) {
        for slot in 0..MAX_CLIENTS {
            if self.clients[slot]
                .as_ref()
                .is_some_and(|client| client.until <= now)
            {
                self.close(slot);
            }
        }
    }

    fn close(&mut self, slot: usize) {
        self.clients[slot] = None;
        // The backlog may hold a client whose event has passed.
        self.ready |= 1;
    }
}

impl Client {
    fn new(stream: TcpStream, now: Time) -> Client {
        Client {
            stream,
            until: now + REQUEST_TIME,
            phase: Phase::Asking(Vec::new()),
        }
    }

    /// Does one bounded piece of work and gives whether more can be done at once; an error means that
    /// the client is to be forgotten.
    fn advance(
        &mut self,
        now: Time,
        gateway: &Gateway,
        shell: &ShellView,
        started: Option<Duration>,
    ) -> io::Result<bool> {
        match &mut self.phase {
            Phase::Asking(input) => {
                let more = read(&mut self.stream, |bytes| input.extend_from_slice(bytes))?;
                let Some(request) = http::parse(input) else {
                    return Ok(more);
                };
                self.until = now + ANSWER_TIME;
                self.phase = begin(request, started);
                Ok(true)
            }
            Phase::Waiting(writing) => {
                let view = View {
                    gateway,
                    shell,
                    process: &writing.process,
                    now,
                };
                if !writing.page.go_on(&view, &mut writing.body) {
                    let head_only = writing.request.head_only;
                    self.phase = answer(Status::Ok, head_only, &writing.body);
                }
                Ok(true)
            }
            Phase::Reading(answer, sent) => {
                match self.stream.write(&answer.as_bytes()[*sent..]) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(count) => *sent += count,
                    Err(error) => return wait_for_event(error),
                }
                if *sent == answer.len() {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.phase = Phase::Leaving;
                }
                Ok(true)
            }
            Phase::Leaving => read(&mut self.stream, |_| {}),
        }
    }
}

fn begin(request: Request, started: Option<Duration>) -> Phase {
    let status = match request.target {
        Target::Error(status) => status,
        Target::Index => Status::Ok,
        Target::Metrics => {
            return Phase::Waiting(Box::new(Writing {
                request,
                process: process::usage(started),
                page: Exposition::default(),
                body: String::new(),
            }));
        }
    };
    answer(status, request.head_only, &http::body(request.target))
}

fn answer(status: Status, head_only: bool, body: &str) -> Phase {
    let mut text = http::head(status, body.len());
    if !head_only {
        text.push_str(body);
    }
    Phase::Reading(text, 0)
}

/// Reads once; gives whether there may be more. The end of the stream is an error.
fn read(stream: &mut TcpStream, mut take: impl FnMut(&[u8])) -> io::Result<bool> {
    let mut piece = [0; PIECE];
    match stream.read(&mut piece) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            take(&piece[..count]);
            Ok(true)
        }
        Err(error) => wait_for_event(error),
    }
}

/// What an error means for a client that is served by events.
fn wait_for_event(error: io::Error) -> io::Result<bool> {
    match error.kind() {
        ErrorKind::WouldBlock => Ok(false),
        ErrorKind::Interrupted => Ok(true),
        _ => Err(error),
    }
}
