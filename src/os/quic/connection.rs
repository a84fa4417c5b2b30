//! One QUIC connection, and the streams on it.

use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{
    Connection, Dir, ReadError, ReadableError, StreamEvent, StreamId, VarInt, WriteError,
};

use super::tuning::Role;
use tandemgw_core::flow::PeerId;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The other side has not proved its key yet.
    Handshaking,
    /// Dialled, and the other side has proved its key, but not yet accepted ours (RFC 9001, section
    /// 4.1.2). Nothing is read or written.
    Unconfirmed,
    /// Both keys are accepted.
    Up,
    /// Closed; it stays until no more late packets can arrive.
    Closed,
}

/// The meaning of a stream event for the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streams {
    /// Nothing to do.
    Fine,
    /// Data can be written again.
    Writable,
    /// The other side violated the protocol.
    Violation,
}

/// A connection with its role.
pub(super) struct Conn {
    pub(super) quic: Connection,
    pub(super) role: Role,
    pub(super) phase: Phase,
    /// Whose it is; known from the start if dialled, else from the key.
    pub(super) peer: Option<PeerId>,
    /// When it became [`Phase::Up`].
    pub(super) up_since: Option<Instant>,
    /// Whether the receive stream may have data.
    pub(super) readable: bool,
    /// Whether the last write was cut short, and no room was reported since.
    pub(super) write_blocked: bool,
    send: Option<StreamId>,
    receive: Option<StreamId>,
}

impl Conn {
    pub(super) fn new(quic: Connection, role: Role, peer: Option<PeerId>) -> Conn {
        Conn {
            quic,
            role,
            phase: Phase::Handshaking,
            peer,
            up_since: None,
            readable: false,
            write_blocked: false,
            send: None,
            receive: None,
        }
    }

    /// Whether the other side has accepted our key: it says so with HANDSHAKE_DONE (RFC 9000,
    /// section 19.20), which it sends only after it verified our proof.
    pub(super) fn is_confirmed(&self) -> bool {
        self.quic.stats().frame_rx.handshake_done > 0
    }

    /// Goes to [`Phase::Up`] and opens the stream that we write to.
    pub(super) fn start(&mut self, now: Instant) {
        self.phase = Phase::Up;
        self.up_since = Some(now);
        if self.role == Role::Sync {
            self.send = self.quic.streams().open(Dir::Uni);
            self.readable = true;
        }
    }

    pub(super) fn handle_stream(&mut self, event: StreamEvent) -> Streams {
        match event {
            StreamEvent::Opened { dir } => match self.quic.streams().accept(dir) {
                Some(id) if self.receive.is_none() => {
                    self.receive = Some(id);
                    self.readable = true;
                    Streams::Fine
                }
                Some(_) => Streams::Violation,
                None => Streams::Fine,
            },
            StreamEvent::Readable { .. } => {
                self.readable = true;
                Streams::Fine
            }
            StreamEvent::Writable { .. } => {
                self.write_blocked = false;
                Streams::Writable
            }
            StreamEvent::Available { .. } => Streams::Fine,
            StreamEvent::Finished { .. } | StreamEvent::Stopped { .. } => Streams::Violation,
        }
    }

    /// Passes up to `budget` bytes of the stream to `sink`; clears `readable` at the end of the
    /// data.
    pub(super) fn read(&mut self, mut budget: usize, mut sink: impl FnMut(Bytes)) -> Streams {
        let Some(id) = self.receive else {
            self.readable = false;
            return Streams::Fine;
        };
        let mut stream = self.quic.recv_stream(id);
        let mut chunks = match stream.read(true) {
            Ok(chunks) => chunks,
            Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => {
                return Streams::Violation;
            }
        };
        let mut result = Streams::Fine;
        while budget > 0 {
            match chunks.next(budget) {
                Ok(Some(chunk)) => {
                    budget = budget.saturating_sub(chunk.bytes.len());
                    sink(chunk.bytes);
                }
                Err(ReadError::Blocked) => {
                    self.readable = false;
                    break;
                }
                // The streams live as long as the connection.
                Ok(None) | Err(ReadError::Reset(_)) => {
                    result = Streams::Violation;
                    break;
                }
            }
        }
        // The credit that this frees goes out with the next transmit.
        let _ = chunks.finalize();
        result
    }

    /// Writes as much as the windows allow, and returns how much.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(id) = self.send.filter(|_| self.phase == Phase::Up) else {
            return 0;
        };
        let mut written = 0;
        // Until blocked, not just short: only then is `Writable` reported.
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.quic.send_stream(id).write(rest) {
                Ok(count) => written += count,
                Err(WriteError::Blocked) => {
                    self.write_blocked = true;
                    break;
                }
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => break,
            }
        }
        written
    }

    /// Closes with an application code (RFC 9000, section 10.2); the next transmit says so.
    pub(super) fn close(&mut self, now: Instant, code: u32) {
        self.phase = Phase::Closed;
        self.quic.close(now, VarInt::from_u32(code), Bytes::new());
    }
}
