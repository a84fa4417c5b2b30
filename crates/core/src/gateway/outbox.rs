//! Packets of the gateway itself, until the shell fetches them: bounded, and in order of urgency.

use std::collections::VecDeque;

use crate::event::Output;

/// Outputs of a kind that may wait for the shell.
const MOST: usize = 4096;

/// Outputs that wait for the shell.
#[derive(Default)]
pub(super) struct Outbox {
    /// Heartbeats, and other outputs that must not wait behind answers to strangers.
    urgent: VecDeque<Output>,
    /// Answers to the network, and packets that were held.
    answers: VecDeque<Output>,
    /// Frames of announcements; the [`Announcer`](super::announce::Announcer) paces them.
    announcements: VecDeque<Output>,
}

impl Outbox {
    /// Queues an output that strangers must not be able to delay or displace; returns whether there
    /// was room. Only heartbeats, over links or on data ports, can find none: the next ones replace
    /// them.
    #[must_use]
    pub(super) fn push_urgent(&mut self, output: Output) -> bool {
        let is_repeated = matches!(output, Output::Heartbeat { .. } | Output::Frame { .. });
        push(&mut self.urgent, output, !is_repeated)
    }

    /// Queues a packet or frame made by the gateway; returns whether there was room.
    #[must_use]
    pub(super) fn push(&mut self, output: Output) -> bool {
        push(&mut self.answers, output, false)
    }

    /// Queues a frame of an announcement. The caller checks [`Outbox::announcements`] before.
    pub(super) fn push_announcement(&mut self, output: Output) {
        self.announcements.push_back(output);
    }

    /// How many frames of announcements wait.
    pub(super) fn announcements(&self) -> usize {
        self.announcements.len()
    }

    /// The next output, most urgent first.
    pub(super) fn pop(&mut self) -> Option<Output> {
        self.urgent
            .pop_front()
            .or_else(|| self.answers.pop_front())
            .or_else(|| self.announcements.pop_front())
    }

    /// Panics if an answer to strangers exceeds its limit.
    pub(super) fn check_invariants(&self) {
        assert!(self.answers.len() <= MOST, "answers are bounded");
    }
}

fn push(queue: &mut VecDeque<Output>, output: Output, always: bool) -> bool {
    let has_room = always || queue.len() < MOST;
    if has_room {
        queue.push_back(output);
    }
    has_room
}
