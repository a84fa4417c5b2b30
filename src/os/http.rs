//! The metrics over HTTP, on an address of the administrator's choice.
//!
//! No client can slow the gateway or keep others out: each turn of the event loop does one bounded
//! piece of work for one of them, there are at most
//! [`MAX_CLIENTS`](super::client_slots::MAX_CLIENTS), each has a deadline, and one that has not
//! sent a request yet makes room for the next.

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

use super::client_slots::{Accepted, ClientSlots, Rank, Turn};
use super::process;

/// How long a client may take to ask.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long it may take to read the answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// Bytes read from a client at a time.
const PIECE: usize = 4096;

/// The listening socket and its clients. Uses the tokens of [`ClientSlots`].
pub struct HttpServer {
    listener: TcpListener,
    slots: ClientSlots<Client>,
    /// When the first of the clients is closed, whatever its progress.
    soonest: Option<Time>,
    /// Start of the process, since the epoch.
    started: Option<Duration>,
}

struct Client {
    stream: TcpStream,
    /// When it is closed, whatever its progress.
    until: Time,
    phase: ClientPhase,
}

/// The progress of a client.
enum ClientPhase {
    /// It sends its request; the part received so far.
    Asking(Vec<u8>),
    /// It waits for the page.
    Waiting(Box<Writing>),
    /// It reads the answer; the answer, and how much of it is sent.
    Reading(String, usize),
    /// Its answer is sent; the client closes the connection, so that our close does not cut the
    /// answer off.
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
    /// The kernel's error, such as `AddrInUse`.
    pub fn open(address: SocketAddr, registry: &Registry, first: Token) -> io::Result<HttpServer> {
        let mut listener = TcpListener::bind(address)?;
        registry.register(&mut listener, first, Interest::READABLE)?;
        Ok(HttpServer {
            listener,
            slots: ClientSlots::new(first),
            soonest: None,
            started: process::since_epoch(),
        })
    }

    /// Records an event.
    pub fn mark(&mut self, token: Token) {
        self.slots.mark(token);
    }

    /// Whether there is work that no event will announce.
    pub fn is_busy(&self) -> bool {
        self.slots.is_busy()
    }

    /// When to call [`HttpServer::serve`] at the latest.
    #[inline]
    pub fn timeout(&self) -> Option<Time> {
        self.soonest
    }

    /// Does a piece of work for the client whose turn it is. Each turn of the loop calls this.
    #[inline]
    pub fn serve(&mut self, now: Time, registry: &Registry, gateway: &Gateway, shell: &ShellView) {
        if self.slots.is_busy() || self.soonest.is_some_and(|until| until <= now) {
            self.serve_next(now, registry, gateway, shell);
            let clients = self.slots.iter();
            self.soonest = clients.map(|(_, client)| client.until).min();
        }
    }

    #[cold]
    fn serve_next(&mut self, now: Time, registry: &Registry, gateway: &Gateway, shell: &ShellView) {
        self.close_overdue(now);
        let mut left = self.slots.all_ready();
        let Some(turn) = self.slots.take_turn(&mut left) else {
            return;
        };
        let more = match turn {
            Turn::Listener => self.accept(now, registry),
            Turn::Client(slot) => self.advance(slot, now, gateway, shell),
        };
        if !more {
            self.slots.rest(turn);
        }
    }

    fn advance(&mut self, slot: usize, now: Time, gateway: &Gateway, shell: &ShellView) -> bool {
        let Some(client) = self.slots.get_mut(slot) else {
            return false;
        };
        match client.advance(now, gateway, shell, self.started) {
            Ok(more) => more,
            Err(_) => {
                self.slots.remove(slot);
                false
            }
        }
    }

    /// Accepts clients; returns whether there may be more that fit.
    fn accept(&mut self, now: Time, registry: &Registry) -> bool {
        let listener = &self.listener;
        let accepted = self.slots.accept(
            registry,
            Client::rank,
            || listener.accept().map(|(stream, _)| stream),
            |stream| Client::new(stream, now),
            // Dropping it closes it.
            drop,
        );
        accepted == Accepted::Some
    }

    fn close_overdue(&mut self, now: Time) {
        let overdue = self.slots.iter().filter(|(_, client)| client.until <= now);
        for slot in overdue.map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.slots.remove(slot);
        }
    }
}

impl Client {
    fn new(stream: TcpStream, now: Time) -> Client {
        Client {
            stream,
            until: now + REQUEST_TIME,
            phase: ClientPhase::Asking(Vec::new()),
        }
    }

    /// One that has its answer makes room first, then the one that has taken longest to ask; one
    /// that is being answered does not.
    fn rank(&self) -> Rank {
        match self.phase {
            ClientPhase::Leaving => Some((1, self.until)),
            ClientPhase::Asking(_) => Some((2, self.until)),
            ClientPhase::Waiting(_) | ClientPhase::Reading(..) => None,
        }
    }

    /// Does one bounded piece of work and returns whether more can be done at once; after an error,
    /// drop the client.
    fn advance(
        &mut self,
        now: Time,
        gateway: &Gateway,
        shell: &ShellView,
        started: Option<Duration>,
    ) -> io::Result<bool> {
        match &mut self.phase {
            ClientPhase::Asking(input) => {
                let more = read(&mut self.stream, |bytes| input.extend_from_slice(bytes))?;
                let Some(request) = http::parse(input) else {
                    return Ok(more);
                };
                self.until = now + ANSWER_TIME;
                self.phase = begin(request, started);
                Ok(true)
            }
            ClientPhase::Waiting(writing) => {
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
            ClientPhase::Reading(answer, sent) => {
                match self.stream.write(&answer.as_bytes()[*sent..]) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(count) => *sent += count,
                    Err(error) => return wait_for_event(error),
                }
                if *sent == answer.len() {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.phase = ClientPhase::Leaving;
                }
                Ok(true)
            }
            ClientPhase::Leaving => read(&mut self.stream, |_| {}),
        }
    }
}

fn begin(request: Request, started: Option<Duration>) -> ClientPhase {
    let status = match request.target {
        Target::Error(status) => status,
        Target::Index => Status::Ok,
        Target::Metrics => {
            return ClientPhase::Waiting(Box::new(Writing {
                request,
                process: process::usage(started),
                page: Exposition::default(),
                body: String::new(),
            }));
        }
    };
    answer(status, request.head_only, &http::body(request.target))
}

fn answer(status: Status, head_only: bool, body: &str) -> ClientPhase {
    let mut text = http::head(status, body.len());
    if !head_only {
        text.push_str(body);
    }
    ClientPhase::Reading(text, 0)
}

/// Reads once; returns whether there may be more. The end of the stream is an error.
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

/// Maps an error to its meaning for an event-driven client.
fn wait_for_event(error: io::Error) -> io::Result<bool> {
    match error.kind() {
        ErrorKind::WouldBlock => Ok(false),
        ErrorKind::Interrupted => Ok(true),
        _ => Err(error),
    }
}
