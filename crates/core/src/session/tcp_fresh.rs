//! A SYN of the client in a live connection: the facts kept until the server has answered.

use super::tcp::{MAX_SCALE, NO_SCALE, NO_SYN, Segment, Tracker, is_within};
use crate::flow::Direction;

/// The most bits of the length of a SYN's data: 16 KiB, more than any link carries in a packet.
const MAX_DATA_BITS: u32 = 14;

impl Tracker {
    #[inline]
    pub(super) fn has_fresh_syn(&self) -> bool {
        self.fresh < NO_SYN
    }

    /// Keeps a SYN that was let through.
    pub(super) fn note_fresh_syn(&mut self, syn: &Segment) {
        let start = syn.seq.wrapping_add(1);
        let mut bits = (u32::BITS - syn.payload_len.leading_zeros()).min(MAX_DATA_BITS);
        if self.has_fresh_syn() && start == self.fresh_start {
            // Sent again, perhaps without its data.
            bits = bits.max(u32::from(self.fresh >> 4));
        }
        self.fresh_start = start;
        self.fresh = (bits as u8) << 4 | syn.window_scale.map_or(NO_SCALE, |s| s.min(MAX_SCALE));
    }

    /// Whether a segment acknowledges the fresh SYN and nothing that can't have been sent with it.
    pub(super) fn answers_fresh_syn(&self, sender: Direction, answer: &Segment) -> bool {
        let data = (1u32 << (self.fresh >> 4)) - 1;
        sender == Direction::Reply
            && self.has_fresh_syn()
            && is_within(answer.ack, self.fresh_start, 0, data)
    }

    /// Begins again with the fresh SYN and `syn_ack`, the answer to it.
    pub(super) fn restart(&mut self, syn_ack: &Segment) {
        let (original, reply) = (Direction::Original, Direction::Reply);
        self.marks = 0;
        self.end[original as usize] = syn_ack.ack;
        self.acked[original as usize] = syn_ack.ack;
        // The window of the SYN was not kept; it can't have been larger.
        self.max_window[original as usize] = u32::from(u16::MAX);
        self.set_scale(original, self.fresh & 15);
        self.fresh = NO_SYN;
        self.answer(reply, syn_ack);
    }
}
