//! Connections that the fast path follows for a while: what it has to know of them, and what the
//! tracker learns from it afterwards.

use super::tcp::{FIN, INCOMPLETE, TcpState, Tracker, is_before, later};
use super::tcp_doubt::HOLE;
use crate::flow::Direction;

/// The numbers of a connection; arrays are by the side that they are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The sequence number after the last byte sent.
    pub end: [u32; 2],
    /// The highest acknowledgment by the other side.
    pub acked: [u32; 2],
    /// The largest window advertised, in bytes.
    pub window: [u32; 2],
    /// Whether something may be missing between the two.
    pub hole: [bool; 2],
}

impl Tracker {
    /// The numbers, if all that a segment without SYN, FIN and RST can do is to move them; none
    /// while more depends on it.
    pub fn numbers(&self) -> Option<Numbers> {
        let has_fin = Direction::ALL.iter().any(|side| self.has(*side, FIN));
        let is_plain = self.state == TcpState::Established
            && !has_fin
            && !self.is_unsure()
            && !self.is_one_sided()
            && !self.has_fresh_syn()
            && !self.is_doubted();
        is_plain.then(|| Numbers {
            end: self.end,
            acked: self.acked,
            window: self.max_window,
            hole: Direction::ALL.map(|side| self.fresh & HOLE << side as u8 != 0),
        })
    }

    /// Follows what the fast path has seen, which began with [`Tracker::numbers`]. Numbers only go
    /// forward, so segments that were handled here meanwhile count too.
    pub fn catch_up(&mut self, seen: &Numbers) {
        for (s, side) in Direction::ALL.into_iter().enumerate() {
            let known = self.end[s];
            self.note_sent(side, seen.end[s]);
            self.acked[s] = later(self.acked[s], seen.acked[s]);
            self.max_window[s] = self.max_window[s].max(seen.window[s]);
            if self.has_fresh_syn() {
                continue;
            }
            // The program notes holes like this tracker does, in what it has seen.
            let hole = HOLE << side as u8;
            if is_before(known, seen.end[s]) {
                self.fresh &= !hole;
            }
            if seen.hole[s] && !is_before(seen.end[s], known) {
                self.fresh |= hole;
            }
        }
    }

    /// The shift of the windows that `sender` advertises.
    pub fn shift_of(&self, sender: Direction) -> u8 {
        self.shift(sender)
    }

    /// Whether part of the history is missing, so that windows are wider.
    pub fn is_incomplete(&self) -> bool {
        self.has(Direction::Original, INCOMPLETE)
    }
}
