//! A timer finer than the millisecond resolution of the event loop's wait.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::check;
use tandemgw_core::time::Time;

/// Becomes readable at a given time of [`super::clock`].
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
    armed: Option<Time>,
}

impl Timer {
    /// A timer that is not armed.
    ///
    /// # Errors
    /// If the kernel has no free descriptor.
    pub fn new() -> io::Result<Timer> {
        // SAFETY: a new descriptor is made; nothing is passed by pointer.
        let fd = unsafe {
            libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC)
        };
        check(fd.min(0))?;
        // SAFETY: the descriptor was made above and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Timer { fd, armed: None })
    }

    /// Fires at `at`, or never; at once if that has passed. Costs nothing if it is already set to
    /// that time.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set(&mut self, at: Option<Time>) -> io::Result<()> {
        if self.armed == at {
            return Ok(());
        }
        self.armed = at;
        // An absolute time of zero would disarm it.
        let nanos = at.map_or(0, |at| at.as_nanos().max(1));
        let value = libc::timespec {
            tv_sec: (nanos / 1_000_000_000) as libc::time_t,
            tv_nsec: (nanos % 1_000_000_000) as libc::c_long,
        };
        let none = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let setting = libc::itimerspec {
            it_interval: none,
            it_value: value,
        };
        let (fd, flags) = (self.fd.as_raw_fd(), libc::TFD_TIMER_ABSTIME);
        // SAFETY: `setting` is a valid itimerspec that outlives the call; no old value is asked
        // for.
        check(unsafe { libc::timerfd_settime(fd, flags, &setting, std::ptr::null_mut()) })
    }

    /// Call it when the timer has fired, so that it can be set to the same time again.
    pub fn fired(&mut self) {
        self.armed = None;
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

super::source_by_descriptor!(Timer);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::clock;
    use mio::{Interest, Token};

    use super::*;

    #[test]
    fn fires_at_its_time_and_again_when_set_again() {
        let mut timer = Timer::new().unwrap();
        let mut poll = mio::Poll::new().unwrap();
        poll.registry()
            .register(&mut timer, Token(1), Interest::READABLE)
            .unwrap();
        for _ in 0..3 {
            let at = clock::now() + Duration::from_micros(300);
            timer.set(Some(at)).unwrap();
            let mut events = mio::Events::with_capacity(4);
            poll.poll(&mut events, Some(Duration::from_secs(5)))
                .unwrap();
            assert_eq!(events.iter().count(), 1);
            assert!(clock::now() >= at);
            timer.fired();
        }
    }
}
