//! The control socket: a Unix stream socket with mode 0660, JSON lines both ways. Root and the user
//! of the gateway may change things; others in its group may read.
//!
//! A client can't slow the gateway: input and output of each are bounded, an answer is produced
//! only as fast as the client reads it, and there are at most
//! [`MAX_CLIENTS`](super::client_slots::MAX_CLIENTS). Nor can it keep others out: one that asks
//! nothing, or reads nothing, makes room for the next.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use tandemgw_core::control::protocol::{MAX_REQUEST, Right};
use tandemgw_core::control::{Answer, ReloadOutcome, ShellView, too_long};
use tandemgw_core::gateway::Gateway;
use tandemgw_core::time::Time;

use super::client_slots::{Accepted, ClientSlots, Rank, Turn};
use super::clock;
use super::socket_file;

/// The time after which a client that does not read its answer may have to make room for another
/// one. Until then it stays: a person may be viewing the answer in a pager.
const STUCK: Duration = Duration::from_secs(5);

/// How often a client is told that the gateway is still working, if there is nothing else to send.
/// Well below the timeout of the commands.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Output of a client that waits, in bytes, before the answer is continued.
const MAX_PENDING: usize = 256 * 1024;

/// The time that all clients together take in one turn of the loop: a packet waits no longer.
const BUDGET: Duration = Duration::from_micros(200);

/// The pause for packets and other processes before the clients continue. A scheduler takes the CPU
/// away from a loop that never waits, and for far longer than this, even from a real-time process
/// (the deadline server for ordinary ones, Linux 6.8).
const REST: Duration = Duration::from_micros(100);

/// The listening socket and its clients. Uses the tokens of [`ClientSlots`].
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    slots: ClientSlots<Client>,
    /// When the remaining work continues.
    rests_until: Time,
    /// Somebody may wait for a slot.
    is_full: bool,
}

struct Client {
    stream: UnixStream,
    right: Right,
    /// The user, if the kernel knows.
    user: Option<u32>,
    /// When it last sent or read something.
    heard: Time,
    /// When something was last sent to it.
    told: Time,
    input: Vec<u8>,
    output: String,
    written: usize,
    answer: Answer,
    closing: bool,
}

impl ControlSocket {
    /// Listens at `path`, after removing the leftover of a dead gateway.
    ///
    /// # Errors
    /// `AddrInUse` if somebody answers there, `AlreadyExists` if there is a file that is not a
    /// socket; otherwise the kernel's error.
    pub fn open(path: &Path, registry: &Registry, first: Token) -> io::Result<ControlSocket> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut listener = UnixListener::from_std(socket_file::listen(path)?);
        registry.register(&mut listener, first, Interest::READABLE)?;
        Ok(ControlSocket {
            listener,
            path: path.to_owned(),
            slots: ClientSlots::new(first),
            rests_until: Time::ZERO,
            is_full: false,
        })
    }

    /// Whether an event with `token` is for this socket.
    pub fn owns(&self, token: Token) -> bool {
        self.slots.owns(token)
    }

    /// Records an event.
    pub fn mark(&mut self, token: Token) {
        self.slots.mark(token);
    }

    /// When to call [`ControlSocket::serve`] at the latest: to continue the remaining work, or when
    /// a client that does not read has to make room.
    pub fn timeout(&self) -> Option<Time> {
        if self.slots.is_busy() {
            return Some(self.rests_until);
        }
        let due = self.slots.iter().filter_map(|(_, client)| {
            let stuck = self.is_full && client.has_unread_answer();
            let waits = !client.has_unread_answer() && client.answer.is_waiting();
            match (stuck, waits) {
                (true, _) => Some(client.heard + STUCK),
                (false, true) => Some(client.told + SIGN_OF_LIFE),
                (false, false) => None,
            }
        });
        due.min()
    }

    /// Serves the clients, in turn, until the budget is used up; at least one piece of work.
    pub fn serve(
        &mut self,
        registry: &Registry,
        gateway: &mut Gateway,
        shell: &mut ShellView,
        now: Time,
    ) {
        self.mark_waiting(gateway, now);
        if self.is_full && self.slots.place(|client| client.rank(now)).is_some() {
            self.slots.mark_listener();
        }
        let mut left = self.slots.all_ready();
        if left == 0 || now < self.rests_until {
            return;
        }
        shell.boot = Duration::from_nanos(clock::offset_since_1970());
        let end = clock::now() + BUDGET;
        while let Some(turn) = self.slots.take_turn(&mut left) {
            let more = match turn {
                Turn::Listener => self.accept(registry, gateway, now),
                Turn::Client(slot) => self.advance(slot, gateway, shell, now, end),
            };
            if !more {
                self.slots.rest(turn);
            }
            if clock::now() >= end {
                break;
            }
        }
        if self.slots.is_busy() {
            self.rests_until = clock::now() + REST;
        }
    }

    fn advance(
        &mut self,
        slot: usize,
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
        end: Time,
    ) -> bool {
        let Some(client) = self.slots.get_mut(slot) else {
            return false;
        };
        match client.advance(gateway, shell, now, end) {
            Ok(more) => more,
            Err(_) => {
                self.close(slot, gateway);
                false
            }
        }
    }

    /// Clients whose answer waits for something to happen, and who have taken what there was until
    /// now: one that does not read is left alone until it does.
    fn mark_waiting(&mut self, gateway: &Gateway, now: Time) {
        self.slots.mark_where(|client| {
            let waits = client.answer.is_waiting() && client.output.is_empty();
            waits && (client.answer.has_news(gateway) || client.told + SIGN_OF_LIFE <= now)
        });
    }

    /// Whether a client asks for a reload of the config file.
    pub fn wants_reload(&self) -> bool {
        let mut clients = self.slots.iter();
        clients.any(|(_, client)| client.answer.wants_reload())
    }

    /// Tells the clients that want a reload that it has begun: those that come later want another
    /// one. Returns the user of one of them, if the kernel knows, and what it calls the reload.
    pub fn begin_reload(&mut self) -> Option<(Option<u32>, String)> {
        let mut asked = None;
        for client in self.slots.iter_mut() {
            let how = client.answer.begin_reload();
            asked = asked.or(how.map(|how| (client.user, how)));
        }
        asked
    }

    /// Reports the result of a reload to the clients that wait for it: see [`Answer::end_reload`].
    pub fn end_reload(&mut self, outcome: &ReloadOutcome) {
        for client in self.slots.iter_mut() {
            client.answer.end_reload(outcome);
        }
        self.slots.mark_where(|client| !client.answer.is_waiting());
    }

    /// Accepts clients; returns whether there may be more that fit.
    fn accept(&mut self, registry: &Registry, gateway: &mut Gateway, now: Time) -> bool {
        let listener = &self.listener;
        let accepted = self.slots.accept(
            registry,
            |client| client.rank(now),
            || listener.accept().map(|(stream, _)| stream),
            |stream| Client::new(stream, now),
            |client| client.answer.abandon(gateway),
        );
        self.is_full = accepted == Accepted::Full;
        accepted == Accepted::Some
    }

    fn close(&mut self, slot: usize, gateway: &mut Gateway) {
        if let Some(client) = self.slots.remove(slot) {
            client.answer.abandon(gateway);
        }
    }
}

/// The rights of a user, or of nobody that the kernel knows.
fn right_of(user: Option<u32>) -> Right {
    // SAFETY: geteuid can't fail.
    let own = unsafe { libc::geteuid() };
    match user {
        Some(user) if user == 0 || user == own => Right::Change,
        _ => Right::Read,
    }
}

/// The user at the other end, according to the kernel (unix(7), `SO_PEERCRED`).
fn user_of(stream: &UnixStream) -> Option<u32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and `peer` is a valid ucred of that length, borrowed only for
    // the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(peer.uid)
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    fn new(stream: UnixStream, now: Time) -> Client {
        let user = user_of(&stream);
        Client {
            right: right_of(user),
            user,
            stream,
            heard: now,
            told: now,
            input: Vec::new(),
            output: String::new(),
            written: 0,
            answer: Answer::Done,
            closing: false,
        }
    }

    /// One that has asked nothing for the longest time makes room first, then one that has not read
    /// its answer for long; others do not.
    fn rank(&self, now: Time) -> Rank {
        if self.is_idle() {
            Some((1, self.heard))
        } else if self.has_unread_answer() && self.heard + STUCK <= now {
            Some((2, self.heard))
        } else if self.answer.is_follower() {
            // It comes back, and goes on where it was.
            Some((3, self.heard))
        } else {
            None
        }
    }

    /// Whether all of its requests are answered.
    fn is_idle(&self) -> bool {
        self.has_its_answer() && !self.input.contains(&b'\n')
    }

    /// Whether it has the whole answer to its last request.
    fn has_its_answer(&self) -> bool {
        self.answer.is_done() && self.output.is_empty()
    }

    /// Whether there is something that it has yet to read.
    fn has_unread_answer(&self) -> bool {
        !self.output.is_empty()
    }

    /// Works until `end`, at least one piece of the answer; returns whether more can be done at
    /// once. After an error, drop the client.
    fn advance(
        &mut self,
        gateway: &mut Gateway,
        shell: &ShellView,
        now: Time,
        end: Time,
    ) -> io::Result<bool> {
        self.read(now)?;
        if self.closing {
            self.answer.finish(gateway);
        }
        if self.has_its_answer() {
            match self.next_line() {
                Some(line) => {
                    self.told = now;
                    let asked = (line.as_str(), self.right);
                    self.answer = Answer::begin(asked, gateway, shell, now, &mut self.output);
                }
                None if self.closing => return Err(ErrorKind::UnexpectedEof.into()),
                None => return Ok(false),
            }
        }
        while self.output.len() - self.written < MAX_PENDING && !self.answer.is_done() {
            self.answer.go_on(gateway, shell, now, &mut self.output);
            if self.answer.is_waiting() || clock::now() >= end {
                break;
            }
        }
        if self.has_unread_answer() {
            self.told = now;
        } else if self.told + SIGN_OF_LIFE <= now {
            self.told = now;
            self.answer.give_sign_of_life(&mut self.output);
        }
        self.write(now)
    }

    fn read(&mut self, now: Time) -> io::Result<()> {
        let mut piece = [0; 4096];
        while !self.closing && self.input.len() < MAX_REQUEST {
            match self.stream.read(&mut piece) {
                Ok(0) => self.closing = true,
                Ok(length) => {
                    self.heard = now;
                    self.input.extend_from_slice(&piece[..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.input.len() >= MAX_REQUEST && !self.input.contains(&b'\n') {
            // It may not read that; then it is closed nevertheless.
            let _ = self.stream.write(too_long().as_bytes());
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    fn next_line(&mut self) -> Option<String> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.input.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    /// Writes as much as the client accepts; returns whether there is more to do at once.
    fn write(&mut self, now: Time) -> io::Result<bool> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output.as_bytes()[self.written..]) {
                Ok(length) => {
                    self.heard = now;
                    self.written += length;
                }
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
    fn this_user_may_change_things() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(right_of(user_of(&ours)), Right::Change);
    }

    #[test]
    fn output_for_a_slow_but_steady_client_does_not_grow() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours, Time::ZERO);
        let (mut given, mut taken) = (0, 0);
        let mut buffer = vec![0; 64 * 1024];
        for _ in 0..200 {
            while client.output.len() - client.written < MAX_PENDING {
                client.output.push_str("0123456789abcde\n");
                given += 16;
            }
            client.write(Time::ZERO).unwrap();
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
