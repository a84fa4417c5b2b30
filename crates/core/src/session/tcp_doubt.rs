//! Resets that may or may not have ended a connection.
//!
//! A reset right after data that nobody has acknowledged yet is exact for the receiver if it has
//! the data, and not if the data was forged. Its receiver shows which: it sends no more, or it
//! continues.

use super::tcp::{Change, NO_SYN, Segment, Tracker, is_before};
use crate::flow::Direction;

/// (A doubt, shifted by the direction.) Between what is acknowledged and the end, something may be
/// missing.
pub(super) const HOLE: u8 = 1;
/// (A doubt, shifted by the direction.) A reset came right after the end, and nothing since.
const RESET: u8 = 4;
/// No SYN, and nothing is known of holes.
pub(super) const NOTHING_KNOWN: u8 = NO_SYN | HOLE | HOLE << 1;

impl Tracker {
    /// Whether one side may have reset the connection, and no segment since shows the contrary.
    pub fn is_doubted(&self) -> bool {
        self.fresh & (NO_SYN | RESET | RESET << 1) > NO_SYN
    }

    /// Notes a reset that is not exact, but may be so for the receiver: it comes right after data
    /// without a hole.
    #[cold]
    pub(super) fn doubt(&mut self, sender: Direction, seq: u32) -> Change {
        let [hole, reset] = [HOLE, RESET].map(|doubt| doubt << sender as u8);
        let is_next = seq == self.end[sender as usize];
        if !is_next || self.has_fresh_syn() || self.fresh & (hole | reset) != 0 {
            return Change::Ignored;
        }
        self.fresh |= reset;
        Change::Doubted
    }

    /// Notes whether new data, which begins at `seq`, leaves a hole.
    #[inline]
    pub(super) fn note_holes(&mut self, sender: Direction, seq: u32) {
        let (s, hole) = (sender as usize, HOLE << sender as u8);
        if self.has_fresh_syn() {
            return;
        }
        if self.acked[s] == self.end[s] {
            self.fresh &= !hole;
        }
        if is_before(self.end[s], seq) {
            self.fresh |= hole;
        }
    }

    /// A segment shows that a reset has not ended the connection: its receiver continues, or its
    /// supposed sender has more to send.
    #[cold]
    pub(super) fn note_life(&mut self, sender: Direction, segment: &Segment) {
        self.fresh &= !(RESET << sender.flip() as u8);
        if is_before(self.end[sender as usize], segment.end()) {
            self.fresh &= !(RESET << sender as u8);
        }
    }
}
