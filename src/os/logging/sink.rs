//! Where the lines go: writes that never block, and a bounded buffer for the rest.

use std::collections::VecDeque;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use super::super::check;

/// Bytes that may wait for the reader: some thousand lines.
const MAX_WAITING: usize = 256 * 1024;
/// How much a writable pipe accepts without blocking (`PIPE_BUF`).
const PIECE: usize = 4096;

/// Takes lines, and never waits.
pub(super) struct Sink {
    out: Option<Out>,
    waiting: Waiting,
}

/// stderr, in a way that does not block.
enum Out {
    /// A pipe or a terminal, reopened so that making it non-blocking does not affect other
    /// processes.
    Nonblocking(File),
    /// A socket, such as the journal's, where each call can request not to block.
    Socket(File),
    /// Anything else: a file, or a pipe that can't be reopened. It is polled before each write.
    Asked(File),
}

#[derive(Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    lost: u64,
}

impl Sink {
    /// Writes to stderr; to nowhere if there is none.
    pub(super) fn stderr() -> Sink {
        let out = io::stderr()
            .as_fd()
            .try_clone_to_owned()
            .map(|fd| Out::choose(File::from(fd)));
        Sink {
            out: out.ok(),
            waiting: Waiting::default(),
        }
    }

    /// Writes a line, buffers it, or loses it.
    pub(super) fn push(&mut self, line: &[u8]) {
        if let Some(out) = &self.out {
            self.waiting.push(line, |bytes| out.write(bytes));
        }
    }

    /// Writes as many waiting lines as possible.
    pub(super) fn flush(&mut self) {
        if let Some(out) = &self.out {
            self.waiting.flush(|bytes| out.write(bytes));
        }
    }

    /// Whether lines wait.
    pub(super) fn is_waiting(&mut self) -> bool {
        !self.waiting.bytes.is_empty()
    }

    /// How many lines were lost, once that can be reported.
    pub(super) fn take_lost(&mut self) -> Option<u64> {
        if self.is_waiting() || self.waiting.lost == 0 {
            return None;
        }
        Some(std::mem::take(&mut self.waiting.lost))
    }

    /// The kernel's error for stderr.
    pub(super) fn metadata(&self) -> Option<Metadata> {
        self.out.as_ref()?.file().metadata().ok()
    }
}

impl Out {
    fn choose(file: File) -> Out {
        let Ok(kind) = file.metadata().map(|metadata| metadata.file_type()) else {
            return Out::Asked(file);
        };
        if kind.is_socket() {
            return Out::Socket(file);
        }
        // A reopened regular file would be written from its beginning.
        if !kind.is_fifo() && !kind.is_char_device() {
            return Out::Asked(file);
        }
        let reopened = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        reopened.map_or(Out::Asked(file), Out::Nonblocking)
    }

    fn file(&self) -> &File {
        match self {
            Out::Nonblocking(file) | Out::Socket(file) | Out::Asked(file) => file,
        }
    }

    /// `WouldBlock` if nothing is taken now.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Out::Nonblocking(file) => (&*file).write(bytes),
            Out::Socket(file) => socket2::SockRef::from(file)
                .send_with_flags(bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL),
            Out::Asked(file) => {
                if !is_writable(file.as_raw_fd())? {
                    return Err(ErrorKind::WouldBlock.into());
                }
                (&*file).write(&bytes[..bytes.len().min(PIECE)])
            }
        }
    }
}

fn is_writable(fd: RawFd) -> io::Result<bool> {
    let mut state = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: `state` is one valid pollfd, which outlives the call; the call does not wait.
    check(unsafe { libc::poll(&raw mut state, 1, 0) })?;
    Ok(state.revents != 0)
}

impl Waiting {
    fn push(&mut self, line: &[u8], mut write: impl FnMut(&[u8]) -> io::Result<usize>) {
        self.flush(&mut write);
        // Lines stay in order, and a gap is reported before the lines after it.
        let is_held_up = !self.bytes.is_empty() || self.lost > 0;
        let taken = match is_held_up {
            true => 0,
            false => write_all(line, &mut write),
        };
        let rest = &line[taken..];
        if taken > 0 || self.lost == 0 && self.bytes.len() + rest.len() <= MAX_WAITING {
            self.bytes.extend(rest);
        } else {
            self.lost += 1;
        }
    }

    fn flush(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) {
        while !self.bytes.is_empty() {
            let piece = self.bytes.as_slices().0;
            let (length, taken) = (piece.len(), write_all(piece, &mut write));
            self.bytes.drain(..taken);
            if taken < length {
                return;
            }
        }
    }
}

/// How many bytes were written; all if the reader is gone for good.
fn write_all(bytes: &[u8], mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> usize {
    let mut taken = 0;
    while taken < bytes.len() {
        match write(&bytes[taken..]) {
            Ok(count) => taken += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return taken,
            Err(_) => return bytes.len(),
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_stuck_reader_costs_bounded_memory_and_gets_whole_lines_later() {
        let mut waiting = Waiting::default();
        let mut read = Vec::new();
        let mut room = 25;
        for number in 0..100_000 {
            let line = format!("line {number:06}\n");
            waiting.push(line.as_bytes(), |bytes| match bytes.len().min(room) {
                0 => Err(ErrorKind::WouldBlock.into()),
                count => {
                    room -= count;
                    read.extend_from_slice(&bytes[..count]);
                    Ok(count)
                }
            });
        }
        assert_eq!(read.len(), 25);
        assert!(waiting.bytes.len() <= MAX_WAITING);
        let lost = waiting.lost as usize;
        waiting.flush(|bytes| {
            read.extend_from_slice(bytes);
            Ok(bytes.len())
        });
        let text = String::from_utf8(read).unwrap();
        assert_eq!(text.lines().count() + lost, 100_000);
        for (number, line) in text.lines().enumerate() {
            assert_eq!(line, format!("line {number:06}"));
        }
    }

    /// The kinds of descriptors that stderr may be, with an end that nobody reads: a pipe, a pipe
    /// that can't be reopened, and a socket like the journal's.
    fn unread() -> Vec<(Out, OwnedFd)> {
        let pipe = || {
            let (reader, writer) = io::pipe().unwrap();
            (OwnedFd::from(reader), File::from(OwnedFd::from(writer)))
        };
        let (reader, writer) = pipe();
        let (asked_reader, asked) = pipe();
        let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        vec![
            (Out::choose(writer), reader),
            (Out::Asked(asked), asked_reader),
            (Out::choose(File::from(OwnedFd::from(socket))), peer.into()),
        ]
    }

    #[test]
    fn nothing_waits_for_a_reader_of_any_kind() {
        let kinds = unread();
        assert!(matches!(kinds[0].0, Out::Nonblocking(_)));
        assert!(matches!(kinds[2].0, Out::Socket(_)));
        for (out, reader) in kinds {
            let mut sink = Sink {
                out: Some(out),
                waiting: Waiting::default(),
            };
            // Blocks forever if it blocks at all.
            for _ in 0..10_000 {
                sink.push(&[b'x'; 200]);
            }
            assert!(sink.is_waiting());
            assert!(sink.waiting.lost > 0);
            drop(reader);
            // A program that another test starts has the reader too, until it executes.
            for _ in 0..1000 {
                sink.flush();
                if !sink.is_waiting() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            assert!(!sink.is_waiting());
            assert!(sink.take_lost().is_some());
        }
    }

    #[test]
    fn a_reader_that_is_gone_leaves_nothing_behind() {
        let mut waiting = Waiting::default();
        waiting.push(b"line\n", |_| Err(ErrorKind::BrokenPipe.into()));
        assert!(waiting.bytes.is_empty() && waiting.lost == 0);
    }
}
