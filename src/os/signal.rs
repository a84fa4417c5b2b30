//! The signals that the gateway handles, as a source for the event loop.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mio::{Interest, Registry, Token, event};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Requests from the operator or the service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: hand over, clean up, end.
    Stop,
    /// SIGHUP: reread the config.
    Reload,
}

/// Catches SIGTERM, SIGINT and SIGHUP for the whole process from its creation on.
pub struct Signals(signal_hook_mio::v1_0::Signals);

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    ///
    /// If the kernel has no free descriptor for the pipe.
    pub fn new() -> io::Result<Signals> {
        signal_hook_mio::v1_0::Signals::new([SIGTERM, SIGINT, SIGHUP]).map(Signals)
    }

    /// The signals since the last call; one that was sent twice in between may appear once.
    pub fn pending(&mut self) -> impl Iterator<Item = Signal> + '_ {
        self.0.pending().map(|number| match number {
            SIGHUP => Signal::Reload,
            _ => Signal::Stop,
        })
    }
}

/// Lets the first SIGINT or SIGTERM end our side of `stream`, so that the peer learns of it and can
/// end in order; the next one ends the process as usual.
///
/// # Errors
///
/// If the kernel refuses a handler or has no free descriptor.
pub fn end_stream_on_signal(stream: &UnixStream) -> io::Result<()> {
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&again))?;
        let stream = OwnedFd::from(stream.try_clone()?);
        let end = move || {
            // SAFETY: shutdown takes no pointers, may be called in a signal handler, and the
            // descriptor belongs to this closure.
            unsafe { libc::shutdown(stream.as_raw_fd(), libc::SHUT_WR) };
        };
        // SAFETY: the handler makes that one call: it takes no lock and allocates nothing.
        unsafe { signal_hook::low_level::register(signal, end) }?;
        signal_hook::flag::register(signal, Arc::clone(&again))?;
    }
    Ok(())
}

impl event::Source for Signals {
    fn register(&mut self, poll: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.0.register(poll, token, interest)
    }

    fn reregister(&mut self, poll: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.0.reregister(poll, token, interest)
    }

    fn deregister(&mut self, poll: &Registry) -> io::Result<()> {
        self.0.deregister(poll)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn wakes_the_loop_and_says_which() {
        let mut signals = Signals::new().unwrap();
        let mut poll = mio::Poll::new().unwrap();
        let registry = poll.registry();
        registry
            .register(&mut signals, Token(3), Interest::READABLE)
            .unwrap();
        for (number, signal) in [(SIGHUP, Signal::Reload), (SIGTERM, Signal::Stop)] {
            signal_hook::low_level::raise(number).unwrap();
            let mut events = mio::Events::with_capacity(4);
            poll.poll(&mut events, Some(Duration::from_secs(5)))
                .unwrap();
            assert_eq!(events.iter().next().unwrap().token(), Token(3));
            assert_eq!(signals.pending().collect::<Vec<_>>(), [signal]);
        }
    }
}
