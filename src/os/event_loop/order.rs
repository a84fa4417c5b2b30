//! In which order the loop reads the queue of a TUN and the ring past it, so that datagrams stay in
//! the order in which they came.
//!
//! What is in the queue when the gate is opened is older than all that comes by the ring; what
//! comes to the queue after the gate was closed is newer than all that came by the ring until then.
//! In between the queue gets nothing that must stay in order with datagrams, but for those that do
//! not fit while the gate is opening.

use std::time::Duration;

use tandemgw_core::time::Time;

use super::super::fast_path::{Gate, Mark};
use super::super::tun::QUEUE;

/// How long a gate stays closed after a datagram came that did not fit: each time costs some work.
const REST: Duration = Duration::from_secs(1);

/// What is known of one TUN.
#[derive(Clone, Copy, Default)]
pub(super) struct Order {
    /// The loop has opened the gate, and does not know that it was closed.
    is_open: bool,
    /// So many packets of the queue may be older than those in the ring.
    older: u32,
    /// All packets of the queue are newer than those in the ring up to here.
    newer_than: Option<Mark>,
    /// The gate is not opened before this time.
    rests_until: Time,
}

impl Order {
    /// Whether the gate may be opened now.
    pub(super) fn may_open(&self, now: Time) -> bool {
        !self.is_open && self.newer_than.is_none() && now >= self.rests_until
    }

    /// The gate is open from now on.
    pub(super) fn opened(&mut self) {
        (self.is_open, self.older) = (true, QUEUE);
    }

    /// Whether the loop believes that it is open.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Looks at the gate, which the program may have closed. `end` is the end of the ring now.
    pub(super) fn note(&mut self, now: Time, gate: Gate, end: Mark) {
        if !self.is_open || matches!(gate, Gate::Open | Gate::Opening) {
            return;
        }
        self.closed(end);
        if gate == Gate::Closed {
            self.rests_until = now + REST;
        }
    }

    /// The same, after packets of the queue were read that nobody has handled yet. Returns whether
    /// they must wait until the ring has been read up to its end: what came to the queue since the
    /// gate was closed may be among them.
    pub(super) fn must_wait(&mut self, now: Time, gate: Gate, end: Mark) -> bool {
        let was_open = self.is_open && self.older == 0;
        self.note(now, gate, end);
        was_open && !self.is_open
    }

    /// The gate is closed, and what has come by the ring ends at `end`.
    pub(super) fn closed(&mut self, end: Mark) {
        if std::mem::take(&mut self.is_open) {
            self.newer_than = Some(end);
        }
    }

    /// Whether older packets are in the queue than in the ring.
    pub(super) fn is_queue_older(&self) -> bool {
        self.older > 0
    }

    /// How many packets of the queue may be read now, at most `most`. `has_passed` tells whether
    /// the ring was read up to a place.
    pub(super) fn may_read(&mut self, most: usize, has_passed: impl FnOnce(Mark) -> bool) -> usize {
        if self.older > 0 {
            return most.min(self.older as usize);
        }
        if self.newer_than.is_some_and(has_passed) {
            self.newer_than = None;
        }
        match self.newer_than {
            Some(_) => 0,
            None => most,
        }
    }

    /// So many packets were read from the queue, which is empty now or not. Returns whether those
    /// that were older than the ring have all been read, if there were some.
    pub(super) fn read(&mut self, count: usize, is_empty: bool) -> bool {
        let before = self.older;
        self.older = match is_empty {
            true => 0,
            false => before.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX)),
        };
        before > 0 && self.older == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const BUDGET: usize = 64;

    /// The kernel's side (`enter` in `tun.bpf.c`), and the loop's (`read_all_packets`).
    struct Model {
        order: Order,
        gate: Gate,
        /// Numbered as they came.
        queue: VecDeque<u32>,
        ring: VecDeque<u32>,
        room: usize,
        /// Put into the ring, and taken out of it.
        ends: (usize, usize),
        next: u32,
        read: Vec<u32>,
        /// Read from the queue, and newer than what is in the ring.
        held: Vec<u32>,
    }

    impl Model {
        fn new(room: usize) -> Model {
            Model {
                order: Order::default(),
                gate: Gate::Closed,
                queue: VecDeque::new(),
                ring: VecDeque::new(),
                room,
                ends: (0, 0),
                next: 0,
                read: Vec::new(),
                held: Vec::new(),
            }
        }

        fn arrive(&mut self) {
            let number = self.next;
            self.next += 1;
            let is_open = matches!(self.gate, Gate::Open | Gate::Opening);
            if is_open && self.ring.len() < self.room {
                self.ring.push_back(number);
                self.ends.0 += 1;
                return;
            }
            match self.gate {
                Gate::Opening => return,
                Gate::Open => self.gate = Gate::Full,
                Gate::Closed | Gate::Full => {}
            }
            if self.queue.len() < QUEUE as usize {
                self.queue.push_back(number);
            }
        }

        fn turn(&mut self, now: Time, between: usize) {
            self.order.note(now, self.gate, Mark(self.ends.0));
            if !self.order.is_queue_older() {
                let taken = BUDGET.min(self.ring.len());
                self.read.extend(self.ring.drain(..taken));
                self.ends.1 += taken;
            }
            (0..between).for_each(|_| self.arrive());
            let passed = self.ends.1;
            let mut most = self.order.may_read(BUDGET, |end| passed >= end.0);
            if most > 0 {
                self.read.append(&mut self.held);
            }
            let mut is_empty = false;
            while most > 0 && !is_empty {
                let count = most.min(8).min(self.queue.len());
                is_empty = count < most.min(8);
                most -= count;
                let batch: Vec<u32> = self.queue.drain(..count).collect();
                (0..between % 5).for_each(|_| self.arrive());
                if self.order.must_wait(now, self.gate, Mark(self.ends.0)) {
                    self.held = batch;
                    break;
                }
                self.read.extend(batch);
                if self.order.read(count, is_empty) && self.gate == Gate::Opening {
                    self.gate = Gate::Open;
                }
            }
            if !is_empty && self.order.may_open(now) {
                self.gate = Gate::Opening;
                self.order.opened();
            }
            if self.ring.is_empty() && self.queue.is_empty() && self.order.is_open() {
                self.gate = Gate::Closed;
                self.order.closed(Mark(self.ends.0));
            }
        }
    }

    proptest! {
        #[test]
        fn datagrams_stay_in_order(
            room in 1..600_usize,
            steps in proptest::collection::vec((0..400_usize, 0..50_usize), 1..200),
        ) {
            let mut model = Model::new(room);
            for (turn, (arriving, between)) in steps.into_iter().enumerate() {
                (0..arriving).for_each(|_| model.arrive());
                model.turn(Time::from_nanos(turn as u64), between);
            }
            // All that is left comes out too.
            for turn in 0..1000 {
                model.turn(Time::from_nanos(turn), 0);
            }
            prop_assert!(model.queue.is_empty() && model.ring.is_empty() && model.held.is_empty());
            prop_assert!(model.read.is_sorted_by(|a, b| a < b), "{:?}", model.read);
        }
    }

    #[test]
    fn a_gate_rests_after_a_datagram_that_did_not_fit() {
        let mut order = Order::default();
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        assert!(order.may_open(at(0)));
        order.opened();
        assert!(order.read(3, true) && !order.read(3, true));
        order.note(at(1), Gate::Open, Mark(5));
        assert!(order.is_open());
        order.note(at(2), Gate::Closed, Mark(7));
        assert_eq!(order.may_read(8, |end| end == Mark(7)), 8);
        assert!(!order.may_open(at(900)) && order.may_open(at(1002)));
        // Not where there was only no room.
        order.opened();
        order.read(0, true);
        order.note(at(1003), Gate::Full, Mark(9));
        assert!(!order.may_open(at(1003)));
        assert_eq!(order.may_read(8, |_| false), 0);
        assert_eq!(order.may_read(8, |_| true), 8);
        assert!(order.may_open(at(1003)));
    }
}
