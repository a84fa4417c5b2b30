//! The control socket: a Unix stream socket with mode 0600, JSON lines both ways.
//!
//! A client can't slow the gateway: input and output of each are bounded, an answer is produced only
//! as fast as the client reads it, and there are at most [`MAX_CLIENTS`].

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use crate::control::{Answer, ShellView};
use crate::gateway::Gateway;
use crate::time::Time;

use super::clock;

/// Clients at a time; further ones wait in the socket's backlog.
pub const MAX_CLIENTS: usize = 16;

/// The longest request line.
const MAX_REQUEST: usize = 64 * 1024;

/// Output of a client that waits, in bytes, before the answer is continued.
const MAX_PENDING: usize = 256 * 1024;

/// The time that all clients together take in one turn of the loop: a packet waits no longer.
const BUDGET: Duration = Duration::from_micros(200);

/// The listening socket and its clients. Uses the tokens `first..=first + MAX_CLIENTS`.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    first: usize,
    clients: Vec<Option<Client>>,
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: String,
    written: usize,
    answer: Answer,
    closing: bool,
}

impl ControlSocket {
    /// Listens at `path`, after removing what a dead gateway left there.
    ///
    /// # Errors
    /// `AddrInUse` if a running gateway answers there; what the kernel says otherwise.
    pub fn open(path: &Path, registry: &Registry, first: Token) -> io::Result<ControlSocket> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                ErrorKind::AddrInUse,
                "a running gateway answers there",
            ));
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The mode is set by the mask, so that there is no moment at which others could connect.
        // SAFETY: umask only swaps a number of this process, and no other thread creates files here.
        let mask = unsafe { libc::umask(0o177) };
        let listener = UnixListener::bind(path);
        // SAFETY: as above.
        unsafe { libc::umask(mask) };
        let mut listener = listener?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        registry.register(&mut listener, first, Interest::READABLE)?;
        let clients = (0..MAX_CLIENTS).map(|_| None).collect();
        Ok(ControlSocket {
            listener,
            path: path.to_owned(),
            first: first.0,
            clients,
        })
    }

    /// Whether an event with `token` is for this socket.
    pub fn owns(&self, token: Token) -> bool {
        (self.first..=self.first + MAX_CLIENTS).contains(&token.0)
    }

    /// Handles an event; gives whether there is more to do without waiting for another.
    pub fn handle(
        &mut self,
        token: Token,
        registry: &Registry,
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
    ) -> bool {
        if token.0 == self.first {
            self.accept(registry);
            return false;
        }
        let slot = token.0 - self.first - 1;
        let busy = self.clients.iter().flatten().filter(|it| it.is_busy());
        let budget = BUDGET / u32::try_from(busy.count().max(1)).unwrap_or(1);
        let Some(client) = &mut self.clients[slot] else {
            return false;
        };
        match client.advance(gateway, shell, now, budget) {
            Ok(more) => more,
            Err(_) => {
                let _ = registry.deregister(&mut client.stream);
                if let Some(client) = self.clients[slot].take() {
                    client.answer.abandon(gateway);
                }
                // A place is free: the backlog may hold a client whose event has passed.
                self.accept(registry);
                false
            }
        }
    }

    /// The tokens of clients whose answer waits for something to happen, and who have taken what there
    /// was until now: one that does not read is left alone until it does.
    pub fn waiting(&self) -> impl Iterator<Item = Token> {
        let slots = self.clients.iter().enumerate();
        slots.filter_map(|(slot, client)| {
            let waits = client
                .as_ref()
                .is_some_and(|client| client.answer.is_waiting() && client.output.is_empty());
            waits.then_some(Token(self.first + 1 + slot))
        })
    }

    fn accept(&mut self, registry: &Registry) {
        for slot in 0..MAX_CLIENTS {
            if self.clients[slot].is_some() {
                continue;
            }
            let Ok((mut stream, _)) = self.listener.accept() else {
                return;
            };
            let token = Token(self.first + 1 + slot);
            let interest = Interest::READABLE | Interest::WRITABLE;
            if registry.register(&mut stream, token, interest).is_ok() {
                self.clients[slot] = Some(Client::new(stream));
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    fn new(stream: UnixStream) -> Client {
        Client {
            stream,
            input: Vec::new(),
            output: String::new(),
            written: 0,
            answer: Answer::Done,
            closing: false,
        }
    }

    /// Whether it is being given an answer.
    fn is_busy(&self) -> bool {
        !self.answer.is_done()
    }

    /// Does work for about `budget`, one piece of the answer at least; an error means that the client
    /// is to be forgotten.
    fn advance(
        &mut self,
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
        budget: Duration,
    ) -> io::Result<bool> {
        self.read()?;
        if self.closing {
            self.answer.finish(gateway);
        }
        if self.answer.is_done() && self.output.is_empty() {
            match self.next_line() {
                Some(line) => {
                    self.answer = Answer::begin(&line, gateway, shell, now, &mut self.output);
                }
                None if self.closing => return Err(ErrorKind::UnexpectedEof.into()),
                None => return Ok(false),
            }
        }
        let end = clock::now() + budget;
        while self.output.len() - self.written < MAX_PENDING && !self.answer.is_done() {
            self.answer.go_on(gateway, now, &mut self.output);
            if self.answer.is_waiting() || clock::now() >= end {
                break;
            }
        }
        self.write()
    }

    fn read(&mut self) -> io::Result<()> {
        let mut piece = [0; 4096];
        while !self.closing && self.input.len() < MAX_REQUEST {
            match self.stream.read(&mut piece) {
                Ok(0) => self.closing = true,
                Ok(length) => self.input.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.input.len() >= MAX_REQUEST && !self.input.contains(&b'\n') {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    fn next_line(&mut self) -> Option<String> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.input.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    /// Writes what the client takes; gives whether there is more to do at once.
    fn write(&mut self) -> io::Result<bool> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output.as_bytes()[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.forget_written();
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.written = 0;
        let more = !self.answer.is_done() && !self.answer.is_waiting();
        Ok(more || self.answer.is_done() && (self.input.contains(&b'\n') || self.closing))
    }

    /// Keeps the output of a long answer to a steady but slow client from growing.
    fn forget_written(&mut self) {
        if self.written >= MAX_PENDING {
            // All output is ASCII; else the next time will do.
            if self.output.is_char_boundary(self.written) {
                self.output.drain(..self.written);
                self.written = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_for_a_slow_but_steady_client_does_not_grow() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours);
        let (mut given, mut taken) = (0, 0);
        let mut buffer = vec![0; 64 * 1024];
        for _ in 0..200 {
            while client.output.len() - client.written < MAX_PENDING {
                client.output.push_str("0123456789abcde\n");
                given += 16;
            }
            client.write().unwrap();
            assert!(client.output.len() < 3 * MAX_PENDING);
            let length = theirs.read(&mut buffer).unwrap();
            for (index, byte) in buffer[..length].iter().enumerate() {
                assert_eq!(*byte, b"0123456789abcde\n"[(taken + index) % 16]);
            }
            taken += length;
        }
        assert!(
            taken > 10 * MAX_PENDING && taken <= given,
            "{taken} of {given}"
        );
    }
}
