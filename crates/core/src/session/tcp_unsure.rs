//! TCP connections whose numbers are not known: picked up in the middle, or taken over from another
//! unit that has seen more of them.
//!
//! What is known may be old, and a segment may be forged. So each segment passes, for the ends to
//! judge, and is kept as what its side *claims*: the end of its own data ([`Tracker::end`]) and
//! what it acknowledges of the other's ([`Tracker::acked`]). The fields are by the side that they
//! are *about*; who claims them is what matters here, and a claim of one side never overwrites one
//! of the other. Once a segment agrees with what the other side has claimed, in both numbers, the
//! two see the same connection, and from then on segments are judged strictly.
//!
//! Somebody who can forge the segments of one side only can't make the other side agree. Who forges
//! both sides makes them agree about numbers of his own. So a segment must also be near what was
//! known before: farther than what peers may not have been told yet, it passes and is not kept.
//! While the numbers are not known nothing but an exact reset ends the connection, and its timeout
//! stays.

use super::tcp::{
    Change, FIN, INCOMPLETE, MAX_SCALE, MAX_WINDOW, MIN_ACK_RANGE, ONE_SIDED, SYN_ACKED, Segment,
    TcpFlags, TcpState, Tracker, UNSEEN, is_within, later,
};
use super::tcp_doubt::NOTHING_KNOWN;
use crate::event::DropReason;
use crate::flow::Direction;

/// Bytes in one direction after which peers are told the numbers of a connection again.
pub(crate) const TOLD_EACH: u64 = 1 << 20;

/// The data of one direction that a unit which takes a connection over may not know of: that
/// between two [reports](TOLD_EACH), and as much for each of some that were under way.
pub(super) const UNTOLD: u32 = 4 * TOLD_EACH as u32;

impl Tracker {
    /// A segment, neither SYN nor RST, while the numbers are unknown.
    #[cold]
    pub(super) fn handle_unsure(&mut self, sender: Direction, segment: &Segment) -> Change {
        let other = sender.flip();
        if !self.is_one_sided() && !self.is_near(sender, segment) {
            // Forged, or peers were told nothing for long: then the connection must go on, and
            // can't be followed.
            return Change::Same;
        }
        let agrees = self.agrees(sender, segment);
        if !agrees || self.has(sender, UNSEEN) {
            self.claim(sender, segment);
        }
        self.unmark(sender, UNSEEN);
        if !agrees {
            // One of them is forged, or the known state of the other is old.
            self.mark(other, UNSEEN);
            return match self.is_one_sided() {
                true => Change::Same,
                false => Change::Ignored,
            };
        }
        if !self.is_unsure() {
            self.unmark(Direction::Reply, ONE_SIDED);
        }
        self.reconcile(sender);
        self.reconcile(other);
        self.follow(sender, segment)
    }

    /// A reset while the numbers are unknown: it must prove that its sender sees both sides.
    pub(super) fn handle_reset_unsure(
        &mut self,
        sender: Direction,
        segment: &Segment,
        exact: bool,
    ) -> Change {
        let sees_both =
            segment.has(TcpFlags::ACK) && segment.ack == self.end[sender.flip() as usize];
        match exact && sees_both {
            true => self.advance(TcpState::Closed),
            false => Change::Ignored,
        }
    }

    /// Acknowledgments by the other side count for `sender` as far as the two agree: no more than
    /// was sent, and no less than a window before.
    fn reconcile(&mut self, sender: Direction) {
        let (s, r) = (sender as usize, sender.flip() as usize);
        let least = self.end[s].wrapping_sub(self.max_window[r]);
        self.acked[s] = later(self.agreed(sender.flip(), self.acked[s]), least);
    }

    /// Whether both numbers of a segment are as near to what is known as the reports to peers
    /// allow. Each is compared with what the other side claims, which nobody moves who forges this
    /// side only.
    fn is_near(&self, sender: Direction, segment: &Segment) -> bool {
        let (s, r) = (sender as usize, sender.flip() as usize);
        let is_near = |number, known, window: u32| {
            let margin = window.min(MAX_WINDOW) + UNTOLD;
            is_within(number, known, margin, margin)
        };
        is_near(segment.seq, self.acked[s], self.max_window[r])
            && is_near(segment.ack, self.end[r], self.max_window[s])
    }

    /// Whether a segment of `sender` agrees with the other side's claims about both.
    fn agrees(&self, sender: Direction, segment: &Segment) -> bool {
        let (s, r) = (sender as usize, sender.flip() as usize);
        let window = self.max_window[r].max(1);
        let last = segment.seq.wrapping_add(segment.payload_len);
        let ahead = window + u32::from(segment.payload_len == 0);
        let own_window = self.max_window[s].max(self.window_of(sender, segment));
        is_within(last, self.acked[s], window + 2, ahead)
            && is_within(
                segment.ack,
                self.end[r],
                own_window.max(MIN_ACK_RANGE),
                own_window,
            )
    }

    /// Records a segment as the current claim of `sender`.
    fn claim(&mut self, sender: Direction, segment: &Segment) {
        let (s, r) = (sender as usize, sender.flip() as usize);
        self.end[s] = segment.end();
        self.acked[r] = segment.ack;
        self.max_window[s] = self.max_window[s].max(self.window_of(sender, segment));
        self.unmark(sender, FIN);
        if segment.has(TcpFlags::FIN) {
            self.mark(sender, FIN);
        }
    }

    /// Follows on from a handshake whose answer this unit has not seen.
    pub(super) fn take_up(
        &mut self,
        sender: Direction,
        segment: &Segment,
    ) -> Result<Change, DropReason> {
        let known = Direction::Original as usize;
        let claimed = if sender == Direction::Original {
            segment.seq
        } else {
            segment.ack
        };
        if !is_within(claimed, self.acked[known], 0, MIN_ACK_RANGE) {
            return Err(DropReason::TcpWindow);
        }
        *self = Tracker::assume(sender, segment);
        Ok(Change::State)
    }

    /// An established connection, known only from one segment.
    pub(super) fn assume(sender: Direction, segment: &Segment) -> Tracker {
        let (s, r) = (sender as usize, sender.flip() as usize);
        let mut tracker = Tracker {
            end: [segment.ack; 2],
            acked: [segment.ack; 2],
            max_window: [0; 2],
            fresh_start: 0,
            fresh: NOTHING_KNOWN,
            scales: MAX_SCALE << 4 | MAX_SCALE,
            marks: 0,
            state: TcpState::Established,
        };
        tracker.end[s] = segment.end();
        tracker.acked[s] = segment.seq;
        tracker.max_window[s] = u32::from(segment.window) << MAX_SCALE;
        tracker.max_window[r] = segment.payload_len;
        tracker.mark(Direction::Original, SYN_ACKED | INCOMPLETE);
        tracker.mark(Direction::Reply, SYN_ACKED | ONE_SIDED);
        tracker.mark(sender.flip(), UNSEEN);
        if segment.has(TcpFlags::FIN) {
            tracker.mark(sender, FIN);
        }
        tracker
    }
}
