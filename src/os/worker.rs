//! Long-running work beside the loop.
//!
//! A job owns its input and returns its output: it shares nothing with the loop, so there are no
//! locks. The loop is woken when it is done.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use mio::Waker;
use tandemgw_core::in_quotes::InQuotes;

use super::priority;

/// A running job.
pub(super) struct Job<T> {
    result: Receiver<T>,
}

/// How far a job is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress<T> {
    /// Not done; the loop is woken when it is.
    UnderWay,
    /// Its result.
    Done(T),
    /// It ended without a result: it panicked.
    Failed,
}

impl<T: Send + 'static> Job<T> {
    /// Runs `work` in a separate thread at ordinary priority, then wakes the poll of `waker`.
    ///
    /// # Errors
    /// If the kernel can't create a thread.
    pub(super) fn begin(
        waker: &Arc<Waker>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Job<T>> {
        let (sender, result) = channel();
        let waker = Arc::clone(waker);
        thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || {
                // In a panic too, the result is lost before the loop is woken: dropped in this
                // order.
                let _wake = Wake(waker);
                let sender = sender;
                if let Err(error) = priority::be_ordinary() {
                    log::debug!("priority of a job not lowered error={}", InQuotes(&error));
                }
                let made = work();
                // Nobody waits for it if the process ends.
                let _ = sender.send(made);
            })?;
        Ok(Job { result })
    }

    /// The state of the job.
    pub(super) fn progress(&self) -> Progress<T> {
        match self.result.try_recv() {
            Ok(made) => Progress::Done(made),
            Err(TryRecvError::Empty) => Progress::UnderWay,
            Err(TryRecvError::Disconnected) => Progress::Failed,
        }
    }
}

/// Drops a value that takes long to drop in a separate thread; in place if no thread can be
/// created.
pub(super) fn discard<T: Send + 'static>(waker: &Arc<Waker>, garbage: T) {
    if let Err(error) = Job::begin(waker, move || drop(garbage)) {
        log::debug!("no thread error={}", InQuotes(&error));
    }
}

/// Wakes the loop when the job ends, also by a panic.
struct Wake(Arc<Waker>);

impl Drop for Wake {
    fn drop(&mut self) {
        if let Err(error) = self.0.wake() {
            log::error!("loop not woken error={}", InQuotes(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::time::Duration;

    fn wait(poll: &mut Poll) {
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::from_secs(20)))
            .unwrap();
        assert!(!events.is_empty(), "never woken");
    }

    #[test]
    fn loop_is_woken_when_a_job_is_done_or_has_panicked() {
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(7)).unwrap());
        let job = Job::begin(&waker, || 6 * 7).unwrap();
        wait(&mut poll);
        assert_eq!(job.progress(), Progress::Done(42));

        let job: Job<u32> = Job::begin(&waker, || panic!("on purpose")).unwrap();
        wait(&mut poll);
        assert_eq!(job.progress(), Progress::Failed);
    }
}
