//! Follows a TCP connection from between its ends: how long must its session live, and which
//! segments can't be its own?
//!
//! The window checks are those of Guido van Rooij, "Real Stateful TCP Packet Filtering in IP
//! Filter" (2000), which pf and conntrack use too. Where ends and middle may disagree: a segment
//! that could end or shift the connection here must prove that its sender sees the connection; all
//! others are left to the ends and change nothing here ([`Change::Ignored`]).
//!
//! - A reset ends the session only if its sequence number is exactly the next that the receiver has
//!   acknowledged (RFC 5961, section 3). Elsewhere in the window it passes: the receiver answers
//!   with a challenge ACK, and the answer to that is exact. With data in flight, a reset right
//!   after that data is exact for a receiver that has the data, unless the data was forged. So it
//!   only shortens the life of the session until a segment shows that both ends are still there
//!   ([`Change::Doubted`]).
//! - A FIN counts once it is acknowledged: until then the receiver may ignore it as a forgery.
//! - The numbers of a side come from its own segments. Reports of the other side count as far as
//!   the two agree, so nobody who can forge the segments of one side can move the other.
//! - A SYN from the client in a live connection passes (RFC 5961, section 4). A server that still
//!   has the connection sends a challenge ACK, and the client a reset that is exact. A server that
//!   has lost it answers with a SYN-ACK that acknowledges this SYN, and the session starts again,
//!   or with a reset that does (RFC 9293, section 3.10.7), which passes. A SYN may carry data, of
//!   which the answer acknowledges as much as the server took (Fast Open, RFC 7413).
//! - An acknowledgment must lie between the oldest and the newest possible (RFC 5961, section 5).

use crate::event::DropReason;
use crate::flow::Direction;

use super::tcp_doubt::NOTHING_KNOWN;
pub use super::tcp_state::TcpState;
use super::tcp_unsure::UNTOLD;
pub use crate::packet::{TcpFlags, TcpSegment as Segment};

impl Segment {
    #[inline]
    pub(super) fn has(&self, flags: TcpFlags) -> bool {
        self.flags.contains(flags)
    }

    /// The sequence number after this segment.
    #[inline]
    pub(super) fn end(&self) -> u32 {
        let controls = u32::from(self.has(TcpFlags::SYN)) + u32::from(self.has(TcpFlags::FIN));
        self.seq
            .wrapping_add(self.payload_len)
            .wrapping_add(controls)
    }
}

/// The effect of an accepted segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It belongs to the connection; the state has not changed.
    Same,
    /// It belongs to the connection and moved it to another state, perhaps of a shorter timeout.
    State,
    /// It begins a new connection in place of the old: the state has gone back.
    Reopened,
    /// It may pass, but it proves nothing: it must not keep the session alive, nor count as a
    /// reply.
    Ignored,
    /// The same, but its receiver may have taken it for a reset: unless more segments come, the
    /// session ends early.
    Doubted,
}

/// The state of one connection. Arrays are by [`Direction`] of the sender that they are about.
///
/// The fields are visible to replication, which copies them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracker {
    /// The sequence number after the highest byte sent.
    pub(crate) end: [u32; 2],
    /// The highest acknowledgment by the other side; until the first, the number after the SYN.
    pub(crate) acked: [u32; 2],
    /// The largest window advertised, in bytes.
    pub(crate) max_window: [u32; 2],
    /// The number after the last SYN of [`Direction::Original`] that was let through in a live
    /// connection, without its data; valid if `fresh` is not [`NO_SYN`].
    pub(crate) fresh_start: u32,
    /// Of that SYN: in the lower half the window scale (a shift or [`NO_SCALE`]), in the upper half
    /// how many bits the length of its data has. Or [`NO_SYN`], with doubts in the lower half.
    pub(crate) fresh: u8,
    /// The shifts of both directions, four bits each; [`NO_SCALE`] where none was offered.
    pub(crate) scales: u8,
    /// The marks below, for [`Direction::Reply`] shifted by four.
    pub(crate) marks: u8,
    /// The progress of the connection.
    pub(crate) state: TcpState,
}

/// The highest number that was seen of it is a FIN. Only a FIN that is also acknowledged counts.
pub(super) const FIN: u8 = 1;
/// Its SYN was acknowledged.
pub(super) const SYN_ACKED: u8 = 2;
/// Since the session was picked up or taken over, no segment of this direction has agreed with the
/// other direction.
pub(super) const UNSEEN: u8 = 4;
/// (For both, in the original's half.) Part of the history is missing.
pub(super) const INCOMPLETE: u8 = 8;
/// (For both, in the reply's half.) Picked up in its middle, and only one direction was seen since.
pub(super) const ONE_SIDED: u8 = 8;

/// The largest shift (RFC 7323, section 2.3).
pub(super) const MAX_SCALE: u8 = 14;
pub(super) const NO_SCALE: u8 = 15;
pub(super) const NO_SYN: u8 = 0xf0;
/// The largest window (RFC 7323, section 2.3), except the half of it that the margin takes.
pub(super) const MAX_WINDOW: u32 = 1 << 29;

/// Acknowledgments may be this much older than the newest even if windows are small: a super-packet
/// that was overtaken. It is what conntrack allows.
pub(super) const MIN_ACK_RANGE: u32 = 66_000;

impl Tracker {
    /// The tracker of a connection that begins with `syn`, which has SYN and no ACK.
    ///
    /// # Errors
    ///
    /// The reason to drop the segment, if it is not such a SYN.
    pub fn open(syn: &Segment) -> Result<Tracker, DropReason> {
        check_flags(syn)?;
        if !syn.has(TcpFlags::SYN) || syn.has(TcpFlags::ACK) {
            return Err(DropReason::TcpNoSession);
        }
        let mut tracker = Tracker {
            end: [0; 2],
            acked: [0; 2],
            max_window: [0; 2],
            fresh_start: 0,
            fresh: NO_SYN,
            scales: NO_SCALE << 4 | NO_SCALE,
            marks: 0,
            state: TcpState::SynSent,
        };
        tracker.start(Direction::Original, syn);
        Ok(tracker)
    }

    /// The tracker of a connection whose beginning was not seen, from a segment of the original
    /// direction. It is liberal until the other direction is seen too, and assumes the largest
    /// window scale.
    ///
    /// # Errors
    ///
    /// The reason to drop the segment, if it is none from the middle of a connection.
    pub fn pick_up(segment: &Segment) -> Result<Tracker, DropReason> {
        check_flags(segment)?;
        if segment.has(TcpFlags::RST) || segment.has(TcpFlags::SYN) {
            return Err(DropReason::TcpNoSession);
        }
        Ok(Tracker::assume(Direction::Original, segment))
    }

    /// The tracker of a connection that another unit has reported, with no fresh SYN.
    pub(crate) fn restore(
        state: TcpState,
        scales: u8,
        marks: u8,
        acked: [u32; 2],
        end: [u32; 2],
        max_window: [u32; 2],
    ) -> Tracker {
        Tracker {
            end,
            acked,
            max_window,
            fresh_start: 0,
            fresh: NOTHING_KNOWN,
            scales,
            marks,
            state,
        }
    }

    /// Call it when another unit has seen packets that this one has not, as after a takeover:
    /// liberal until segments of both directions agree with each other.
    pub fn resume(&mut self) {
        self.mark(Direction::Original, UNSEEN | INCOMPLETE);
        self.mark(Direction::Reply, UNSEEN);
        self.fresh = NOTHING_KNOWN;
    }

    /// The progress of the connection.
    #[inline]
    pub fn state(&self) -> TcpState {
        self.state
    }

    /// Whether both ends are connected: after the handshake, before the last FIN or a reset.
    pub fn is_alive(&self) -> bool {
        (TcpState::Established..TcpState::TimeWait).contains(&self.state)
    }

    /// Whether it was picked up in the middle, and no segment of the other direction has agreed
    /// since.
    pub fn is_one_sided(&self) -> bool {
        self.has(Direction::Reply, ONE_SIDED)
    }

    /// Whether the numbers are unknown: the two directions have not agreed since the session was
    /// picked up or taken over.
    #[inline]
    pub(crate) fn is_unsure(&self) -> bool {
        self.marks & (UNSEEN | UNSEEN << 4) != 0
    }

    /// Whether `sender` can have sent a segment with `seq` that nobody has acknowledged: what an
    /// ICMP error may quote (RFC 5927, section 4.1). `is_taken_up`: another unit has seen packets
    /// that this one has not, and [`Tracker::resume`] was not called yet.
    pub fn is_in_flight(&self, sender: Direction, seq: u32, is_taken_up: bool) -> bool {
        let s = sender as usize;
        let (mut sent, mut margin) = (self.in_flight(s), self.margin(sender));
        if is_taken_up || self.is_unsure() {
            let window = self.max_window[sender.flip() as usize].min(MAX_WINDOW);
            sent = sent.min(window);
            margin = 2 * window + UNTOLD;
        }
        // A keep-alive is one number before, and so is a SYN.
        is_within(seq, self.acked[s], 1 + margin, sent + margin)
    }

    /// `sender` has sent data up to `end`, of which the segment that was handled showed only the
    /// beginning, because it came in fragments.
    pub fn note_sent(&mut self, sender: Direction, end: u32) {
        let s = sender as usize;
        if is_before(self.end[s], end) {
            self.end[s] = end;
            self.unmark(sender, FIN);
        }
    }

    /// Judges a segment that `sender` sent, and follows it.
    ///
    /// # Errors
    ///
    /// The reason to drop the segment; the tracker is as before.
    #[inline]
    pub fn handle(&mut self, sender: Direction, segment: &Segment) -> Result<Change, DropReason> {
        check_flags(segment)?;
        if self.state == TcpState::SynSent {
            return self.handle_in_syn_sent(sender, segment);
        }
        if segment.has(TcpFlags::SYN) {
            return self.handle_syn(sender, segment);
        }
        if segment.has(TcpFlags::RST) {
            return self.handle_reset(sender, segment);
        }
        if self.is_unsure() {
            return Ok(self.handle_unsure(sender, segment));
        }
        if !self.is_in_window(sender, segment) {
            return Err(DropReason::TcpWindow);
        }
        Ok(self.follow(sender, segment))
    }

    /// A segment while only SYNs of the original direction were seen.
    fn handle_in_syn_sent(
        &mut self,
        sender: Direction,
        segment: &Segment,
    ) -> Result<Change, DropReason> {
        let syn = segment.has(TcpFlags::SYN);
        let acks_syn = segment.has(TcpFlags::ACK) && self.acks_exactly(sender, segment);
        match (sender, syn) {
            (Direction::Original, true) if segment.has(TcpFlags::ACK) => Err(DropReason::TcpFlags),
            // Sent again, or another one: the last counts, so that a forged one can't block it.
            (Direction::Original, true) => {
                let sent = self.end[sender as usize];
                let is_again = segment.seq.wrapping_add(1) == self.acked[sender as usize];
                self.start(sender, segment);
                // Fast Open sends it again without its data, which the answer may acknowledge all
                // the same (RFC 7413, section 4.1.3).
                if is_again {
                    self.note_sent(sender, sent);
                }
                Ok(Change::Same)
            }
            // The answer to a challenge ACK (RFC 9293, section 3.5.1, figure 9: half-open).
            (Direction::Original, false) if segment.has(TcpFlags::RST) => Ok(Change::Ignored),
            (Direction::Reply, true) if acks_syn || !segment.has(TcpFlags::ACK) => {
                self.answer(sender, segment);
                Ok(Change::State)
            }
            (Direction::Reply, false) if segment.has(TcpFlags::RST) => {
                if !acks_syn {
                    return Err(DropReason::TcpWindow);
                }
                Ok(self.advance(TcpState::Closed))
            }
            // The handshake went on through another unit.
            (_, false) if self.has(Direction::Original, INCOMPLETE) => {
                self.take_up(sender, segment)
            }
            // The server still has an old connection and challenges the SYN.
            (Direction::Reply, false) if segment.end() == segment.seq => Ok(Change::Ignored),
            _ => Err(DropReason::TcpWindow),
        }
    }

    /// A SYN, with or without ACK, in a connection of which both SYNs were seen.
    fn handle_syn(&mut self, sender: Direction, segment: &Segment) -> Result<Change, DropReason> {
        let over = self.state >= TcpState::TimeWait;
        match (segment.has(TcpFlags::ACK), sender) {
            (false, Direction::Original) if over => {
                *self = Tracker::open(segment)?;
                Ok(Change::Reopened)
            }
            (false, Direction::Original) => {
                self.note_fresh_syn(segment);
                Ok(Change::Ignored)
            }
            // A session does not admit a connection in the other direction.
            (false, Direction::Reply) => self.repeated_syn(sender, segment),
            (true, _)
                if self.state == TcpState::SynReceived && self.acks_exactly(sender, segment) =>
            {
                self.mark(sender.flip(), SYN_ACKED);
                self.start(sender, segment);
                Ok(self.advance(self.reached()))
            }
            (true, _) => {
                let verdict = self.repeated_syn(sender, segment);
                if verdict.is_ok() || !self.answers_fresh_syn(sender, segment) {
                    return verdict;
                }
                self.restart(segment);
                Ok(Change::Reopened)
            }
        }
    }

    /// A SYN or SYN-ACK that may only be a repetition: it must be one of this connection.
    fn repeated_syn(&self, sender: Direction, segment: &Segment) -> Result<Change, DropReason> {
        let acceptable = !segment.has(TcpFlags::ACK) || self.is_ack_acceptable(sender, segment.ack);
        if self.state < TcpState::TimeWait
            && acceptable
            && self.is_seq_acceptable(sender, segment)
            && is_before(segment.seq, self.acked[sender as usize])
        {
            return Ok(Change::Ignored);
        }
        Err(DropReason::TcpUnexpectedSyn)
    }

    fn handle_reset(&mut self, sender: Direction, segment: &Segment) -> Result<Change, DropReason> {
        let exact = segment.seq == self.acked[sender as usize];
        if self.is_unsure() {
            return Ok(self.handle_reset_unsure(sender, segment, exact));
        }
        if exact {
            return Ok(self.advance(TcpState::Closed));
        }
        // The server has lost the connection and does not listen. That proves nothing more, and the
        // client's next SYN starts the session again.
        let refuses_fresh_syn = segment.has(TcpFlags::ACK)
            && segment.seq == 0
            && self.answers_fresh_syn(sender, segment);
        // The same window as for data: what the receiver may take for a valid reset may pass.
        if refuses_fresh_syn || self.is_seq_acceptable(sender, segment) {
            return Ok(self.doubt(sender, segment.seq));
        }
        Err(DropReason::TcpWindow)
    }

    /// Applies a segment inside the window.
    #[inline(always)]
    pub(super) fn follow(&mut self, sender: Direction, segment: &Segment) -> Change {
        let r = sender.flip() as usize;
        if self.state == TcpState::SynReceived && !is_before(segment.ack, self.acked[r]) {
            self.mark(sender.flip(), SYN_ACKED);
        }
        if self.is_doubted() {
            self.note_life(sender, segment);
        }
        self.note_end(sender, segment);
        self.acked[r] = later(self.acked[r], self.agreed(sender, segment.ack));
        let s = sender as usize;
        self.max_window[s] = self.max_window[s].max(self.window_of(sender, segment));
        self.advance(self.reached())
    }

    /// Notes how far a segment goes. A FIN is the last that its side sends, and has a number of its
    /// own: if data was seen before and after it, one of them is forged.
    #[inline]
    fn note_end(&mut self, sender: Direction, segment: &Segment) {
        let (s, end) = (sender as usize, segment.end());
        let is_new = is_before(self.end[s], end);
        if is_new {
            self.note_holes(sender, segment.seq);
        }
        self.note_sent(sender, end);
        if segment.has(TcpFlags::FIN) {
            if is_new {
                self.mark(sender, FIN);
            }
        } else if end == self.end[s] && segment.payload_len > 0 {
            self.unmark(sender, FIN);
        }
    }

    /// The window that a segment without SYN advertises, in bytes.
    #[inline]
    pub(super) fn window_of(&self, sender: Direction, segment: &Segment) -> u32 {
        u32::from(segment.window) << self.shift(sender)
    }

    /// Of what `sender` acknowledges, that which the other side was seen to send. Where part of the
    /// history is missing, more than that may have been sent, but not more than a FIN.
    #[inline]
    pub(super) fn agreed(&self, sender: Direction, ack: u32) -> u32 {
        let end = self.end[sender.flip() as usize];
        match is_before(end, ack) {
            true => end.wrapping_sub(u32::from(self.has(sender.flip(), FIN))),
            false => ack,
        }
    }

    /// The state that the marks and acknowledgments prove.
    fn reached(&self) -> TcpState {
        let sides = [Direction::Original, Direction::Reply];
        let [fin_a, fin_b] = sides.map(|side| self.has(side, FIN));
        let [over_a, over_b] = sides.map(|side| {
            self.has(side, FIN) && self.acked[side as usize] == self.end[side as usize]
        });
        if over_a && over_b {
            TcpState::TimeWait
        } else if over_a && fin_b || fin_a && over_b {
            TcpState::LastAck
        } else if over_a || over_b {
            TcpState::FinWait
        } else if sides.iter().all(|side| self.has(*side, SYN_ACKED)) {
            TcpState::Established
        } else {
            self.state
        }
    }

    /// Goes to `state` unless it is earlier.
    pub(super) fn advance(&mut self, state: TcpState) -> Change {
        if state <= self.state {
            return Change::Same;
        }
        self.state = state;
        // Any SYN until now belonged to this connection.
        if self.has_fresh_syn() {
            self.fresh = NOTHING_KNOWN;
        }
        Change::State
    }

    fn is_in_window(&self, sender: Direction, segment: &Segment) -> bool {
        self.is_seq_acceptable(sender, segment) && self.is_ack_acceptable(sender, segment.ack)
    }

    /// Whether the payload lies where the receiver could want it, or no more than a window before:
    /// sent again, a keep-alive (RFC 9293, section 3.8.4), or overtaken.
    #[inline]
    fn is_seq_acceptable(&self, sender: Direction, segment: &Segment) -> bool {
        let expected = self.acked[sender as usize];
        // At least one byte, for the zero-window probe (RFC 9293, section 3.8.6.1).
        let window = self.max_window[sender.flip() as usize].max(1);
        // A FIN takes a number but no room; the segment after it may be one number ahead.
        let ahead = window + u32::from(segment.payload_len == 0);
        let last = segment.seq.wrapping_add(segment.payload_len);
        // A keep-alive is one number before what the sender knows to be acknowledged, and the other
        // side may have acknowledged a window and a FIN since.
        let margin = self.margin(sender);
        is_within(last, expected, window + 2 + margin, ahead + margin)
    }

    /// How far off the acknowledged number of `sender` may be: where part of the history is
    /// missing, two windows, since data may be under way that was sent through another unit, and
    /// what is known of it is only what both sides agree on.
    #[inline]
    fn margin(&self, sender: Direction) -> u32 {
        match self.has(Direction::Original, INCOMPLETE) {
            true => self.max_window[sender.flip() as usize].min(MAX_WINDOW) * 2,
            false => 0,
        }
    }

    /// The data that a side has sent and the other one has not acknowledged, below 2^31. While the
    /// numbers are not known they may contradict each other, which counts as nothing.
    #[inline]
    fn in_flight(&self, side: usize) -> u32 {
        let sent = self.end[side].wrapping_sub(self.acked[side]) as i32;
        sent.max(0) as u32
    }

    /// Whether an acknowledgment by `sender` is of data that was sent, and no older than a window
    /// (RFC 5961, section 5.2).
    #[inline]
    fn is_ack_acceptable(&self, sender: Direction, ack: u32) -> bool {
        let r = sender.flip() as usize;
        let window = self.max_window[sender as usize].max(MIN_ACK_RANGE);
        let sent = self.in_flight(r);
        let margin = self.margin(sender.flip());
        is_within(ack, self.acked[r], window + margin, sent + margin)
    }

    /// Whether `segment` acknowledges the other side's SYN and nothing that was not sent with it.
    fn acks_exactly(&self, sender: Direction, segment: &Segment) -> bool {
        let r = sender.flip() as usize;
        is_within(segment.ack, self.acked[r], 0, self.in_flight(r))
    }

    /// Takes the numbers of `sender` from its SYN.
    fn start(&mut self, sender: Direction, syn: &Segment) {
        let s = sender as usize;
        self.end[s] = syn.end();
        self.acked[s] = syn.seq.wrapping_add(1);
        // The window of a SYN is never scaled (RFC 7323, section 2.2).
        self.max_window[s] = u32::from(syn.window);
        self.set_scale(
            sender,
            syn.window_scale.map_or(NO_SCALE, |s| s.min(MAX_SCALE)),
        );
        self.unmark(sender, UNSEEN);
    }

    /// The first SYN of the reply direction, with ACK or, if both open at once, without.
    pub(super) fn answer(&mut self, sender: Direction, segment: &Segment) {
        self.start(sender, segment);
        if segment.has(TcpFlags::ACK) {
            self.acked[sender.flip() as usize] = segment.ack;
            self.mark(sender.flip(), SYN_ACKED);
        }
        self.state = TcpState::SynReceived;
    }

    /// The shift of the windows that `sender` advertises: none unless both offered one.
    #[inline]
    pub(super) fn shift(&self, sender: Direction) -> u8 {
        match (self.scale(sender), self.scale(sender.flip())) {
            (NO_SCALE, _) | (_, NO_SCALE) => 0,
            (shift, _) => shift,
        }
    }

    fn scale(&self, of: Direction) -> u8 {
        self.scales >> nibble(of) & 15
    }

    pub(super) fn set_scale(&mut self, of: Direction, scale: u8) {
        self.scales = self.scales & !(15 << nibble(of)) | scale << nibble(of);
    }

    #[inline]
    pub(super) fn has(&self, of: Direction, mark: u8) -> bool {
        self.marks >> nibble(of) & mark != 0
    }

    pub(super) fn mark(&mut self, of: Direction, marks: u8) {
        self.marks |= marks << nibble(of);
    }

    pub(super) fn unmark(&mut self, of: Direction, marks: u8) {
        self.marks &= !(marks << nibble(of));
    }
}

#[inline]
fn nibble(of: Direction) -> u8 {
    of as u8 * 4
}

/// Refuses combinations of flags that no TCP sends (RFC 9293, section 3.10.7).
#[inline]
fn check_flags(segment: &Segment) -> Result<(), DropReason> {
    let [syn, rst, fin, ack] =
        [TcpFlags::SYN, TcpFlags::RST, TcpFlags::FIN, TcpFlags::ACK].map(|f| segment.has(f));
    if syn && (rst || fin) || rst && fin || !(syn || rst || ack) {
        return Err(DropReason::TcpFlags);
    }
    Ok(())
}

/// Whether `a` comes before `b` (RFC 9293, section 3.4: numbers wrap).
#[inline]
pub(crate) fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[inline]
pub(super) fn later(a: u32, b: u32) -> u32 {
    if is_before(a, b) { b } else { a }
}

/// Whether `number` is at most `behind` before `base` and at most `ahead` after it.
#[inline]
pub(super) fn is_within(number: u32, base: u32, behind: u32, ahead: u32) -> bool {
    let offset = i64::from(number.wrapping_sub(base) as i32);
    -i64::from(behind) <= offset && offset <= i64::from(ahead)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Change::{Doubted, Ignored, Reopened, Same, State};
    use Direction::{Original, Reply};
    use DropReason::{TcpFlags as BadFlags, TcpNoSession, TcpUnexpectedSyn, TcpWindow};

    const FIN: TcpFlags = TcpFlags(0x11);
    const SYN: TcpFlags = TcpFlags::SYN;
    const SYN_ACK: TcpFlags = TcpFlags(0x12);
    const RST: TcpFlags = TcpFlags::RST;
    const RST_ACK: TcpFlags = TcpFlags(0x14);
    const ACK: TcpFlags = TcpFlags::ACK;

    /// The numbers of the SYNs: the first wraps early.
    const C: u32 = u32::MAX - 50;
    const S: u32 = 7_000_000;

    fn seg(flags: TcpFlags, seq: u32, ack: u32, payload_len: u32) -> Segment {
        Segment {
            seq,
            ack,
            payload_len,
            window: 1000,
            flags,
            window_scale: None,
        }
    }

    /// A segment `seq` bytes after the client's SYN, acknowledging `ack` bytes after the server's.
    fn c(flags: TcpFlags, seq: u32, ack: u32, payload_len: u32) -> Segment {
        seg(flags, C.wrapping_add(seq), S.wrapping_add(ack), payload_len)
    }

    /// The same from the server.
    fn s(flags: TcpFlags, seq: u32, ack: u32, payload_len: u32) -> Segment {
        seg(flags, S.wrapping_add(seq), C.wrapping_add(ack), payload_len)
    }

    fn scaled(segment: Segment, window: u16, shift: u8) -> Segment {
        Segment {
            window,
            window_scale: Some(shift),
            ..segment
        }
    }

    fn opened() -> Tracker {
        Tracker::open(&c(SYN, 0, 0, 0)).unwrap()
    }

    fn established() -> Tracker {
        let mut t = opened();
        assert_eq!(t.handle(Reply, &s(SYN_ACK, 0, 1, 0)), Ok(State));
        assert_eq!(t.state(), TcpState::SynReceived);
        assert_eq!(t.handle(Original, &c(ACK, 1, 1, 0)), Ok(State));
        assert_eq!(t.state(), TcpState::Established);
        t
    }

    /// Feeds a script, and checks each verdict and the state at the end.
    fn run(t: &mut Tracker, script: &[(Direction, Segment, Result<Change, DropReason>)]) {
        for (step, (from, segment, verdict)) in script.iter().enumerate() {
            let before = t.clone();
            assert_eq!(t.handle(*from, segment), *verdict, "step {step}");
            if verdict.is_err() {
                assert_eq!(
                    *t, before,
                    "step {step}: a dropped segment changed the tracker"
                );
            }
        }
    }

    #[test]
    fn states_are_in_the_order_of_their_progress() {
        for (number, state) in TcpState::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(state.progress()), number);
        }
        assert_eq!(size_of::<Tracker>(), 32);
    }

    #[test]
    fn opens_with_a_syn_only() {
        for flags in [ACK, SYN_ACK, RST, FIN] {
            assert_eq!(Tracker::open(&c(flags, 0, 0, 0)), Err(TcpNoSession));
        }
        assert_eq!(Tracker::open(&c(TcpFlags(0), 0, 0, 0)), Err(BadFlags));
        assert_eq!(Tracker::open(&c(TcpFlags(0x03), 0, 0, 0)), Err(BadFlags));
        assert_eq!(Tracker::open(&c(TcpFlags(0x06), 0, 0, 0)), Err(BadFlags));
    }

    /// As a peer may tell it, or as forged segments leave it after a takeover.
    #[test]
    fn numbers_that_contradict_each_other_are_no_matter() {
        let sizes = [0, 1, u32::MAX >> 1, 1 << 31, u32::MAX];
        for (end, acked) in sizes
            .iter()
            .flat_map(|end| sizes.map(|acked| (*end, acked)))
        {
            for window in sizes {
                let marks = INCOMPLETE | SYN_ACKED | SYN_ACKED << 4;
                let (ends, ackeds) = ([end; 2], [acked; 2]);
                let window = window.min(MAX_WINDOW);
                let state = TcpState::Established;
                let mut t = Tracker::restore(state, 0, marks, ackeds, ends, [window; 2]);
                let _ = t.is_in_flight(Original, 5, marks & 1 == 0);
                let _ = t.handle(Original, &c(ACK, 1, 1, 0));
                let _ = t.handle(Reply, &s(FIN, 1, 1, 500));
            }
        }
    }

    #[test]
    fn each_state_has_a_name() {
        let names = TcpState::ALL.map(TcpState::name);
        let different: std::collections::BTreeSet<_> = names.into_iter().collect();
        assert_eq!(different.len(), TcpState::ALL.len());
        assert_eq!(TcpState::FinWait.name(), "fin-wait");
        let alive = TcpState::ALL.map(|state| Tracker { state, ..opened() }.is_alive());
        assert_eq!(alive, [false, false, true, true, true, false, false]);
    }

    #[test]
    fn what_is_known_after_one_segment() {
        let t = Tracker::open(&scaled(c(SYN, 0, 0, 0), 1000, 7)).unwrap();
        assert_eq!((t.scale(Original), t.scale(Reply)), (7, NO_SCALE));
        // All of it was seen, so nothing is missing.
        assert_eq!(established().fresh, NO_SYN);

        let t = Tracker::pick_up(&c(ACK, 1, 1, 500)).unwrap();
        assert_eq!((t.scale(Original), t.scale(Reply)), (MAX_SCALE, MAX_SCALE));
        assert_eq!(t.max_window, [1000 << MAX_SCALE, 500]);
        assert!(t.has(Original, SYN_ACKED) && t.has(Reply, SYN_ACKED));
        assert!(t.has(Original, INCOMPLETE) && t.has(Reply, ONE_SIDED));
        assert!(t.has(Reply, UNSEEN) && !t.has(Original, UNSEEN));
    }

    /// What an ICMP error may quote: 500 bytes are under way.
    #[test]
    fn in_flight_is_what_nobody_has_acknowledged() {
        let mut t = established();
        run(&mut t, &[(Original, c(ACK, 1, 1, 500), Ok(Same))]);
        let first = C.wrapping_add(1);
        let is = |t: &Tracker, seq, is_taken_up| t.is_in_flight(Original, seq, is_taken_up);
        let bounds = |t: &Tracker, is_taken_up, before: u32, after: u32| {
            let (least, most) = (first.wrapping_sub(before), first.wrapping_add(after));
            assert!(is(t, least, is_taken_up) && is(t, most, is_taken_up));
            assert!(!is(t, least.wrapping_sub(1), is_taken_up));
            assert!(!is(t, most.wrapping_add(1), is_taken_up));
        };
        bounds(&t, false, 1, 500);
        // Two windows, and what peers may not have been told.
        let margin = 2 * 1000 + 4 * (1 << 20);
        bounds(&t, true, 1 + margin, 500 + margin);
        t.resume();
        bounds(&t, false, 1 + margin, 500 + margin);
        assert_eq!(UNTOLD, 4 << 20);
    }

    #[test]
    fn a_syn_is_a_repetition_if_its_numbers_are_those_of_the_connection() {
        let far = |segment: Segment| Segment {
            ack: 0x4000_0000,
            ..segment
        };
        run(
            &mut opened(),
            &[(Original, c(SYN_ACK, 0, 1, 0), Err(BadFlags))],
        );
        let mut t = established();
        run(
            &mut t,
            &[
                // Without ACK, the number has no meaning.
                (Reply, far(s(SYN, 0, 0, 0)), Ok(Ignored)),
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(Ignored)),
                (Reply, far(s(SYN_ACK, 0, 1, 0)), Err(TcpUnexpectedSyn)),
                (
                    Reply,
                    s(SYN_ACK, 0u32.wrapping_sub(5000), 1, 0),
                    Err(TcpUnexpectedSyn),
                ),
                (Reply, s(SYN_ACK, 1, 1, 0), Err(TcpUnexpectedSyn)),
                (Reply, s(FIN, 1, 1, 0), Ok(Same)),
                (Original, c(FIN, 1, 2, 0), Ok(State)),
                (Reply, s(ACK, 2, 2, 0), Ok(State)),
            ],
        );
        assert_eq!(t.state(), TcpState::TimeWait);
        run(
            &mut t,
            &[(Reply, s(SYN_ACK, 0, 1, 0), Err(TcpUnexpectedSyn))],
        );
    }

    #[test]
    fn an_acknowledgment_from_before_the_syn_completes_no_handshake() {
        let mut t = opened();
        run(
            &mut t,
            &[
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(State)),
                (Original, c(ACK, 1, 0, 0), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::SynReceived);
    }

    /// The server has lost the connection, and answers the client's next SYN.
    #[test]
    fn a_connection_that_begins_again_has_the_scale_of_its_syn() {
        let mut t = established();
        let syn = scaled(c(SYN, 5000, 0, 0), 1000, 7);
        let answer = scaled(s(SYN_ACK, 90_000, 5001, 0), 2000, 3);
        run(
            &mut t,
            &[(Original, syn, Ok(Ignored)), (Reply, answer, Ok(Reopened))],
        );
        assert_eq!((t.scale(Original), t.scale(Reply)), (7, 3));
        assert_eq!(t.fresh, NO_SYN);
    }

    /// A connection of which another unit has seen all, with 500 bytes of the client acknowledged.
    fn taken_over() -> Tracker {
        let mut t = established();
        run(
            &mut t,
            &[
                (Original, c(ACK, 1, 1, 500), Ok(Same)),
                (Reply, s(ACK, 1, 501, 0), Ok(Same)),
            ],
        );
        t.resume();
        t
    }

    /// Who claims numbers that are far from those known is forged or can't be followed.
    #[test]
    fn far_claims_pass_and_are_not_kept() {
        // A window, and what peers may not have been told.
        let most = 1000 + 4 * (1 << 20);
        for (near, far) in [
            (c(ACK, 501 + most, 1, 0), c(ACK, 502 + most, 1, 0)),
            (c(ACK, 501, 1 + most, 0), c(ACK, 501, 2 + most, 0)),
        ] {
            let before = taken_over();
            let mut t = before.clone();
            run(&mut t, &[(Original, far, Ok(Same))]);
            assert_eq!(t, before);
            run(&mut t, &[(Original, near, Ok(Ignored))]);
            assert_eq!(t.end[0], near.seq);
            assert_eq!(t.acked[1], near.ack);
        }
        // Of one that was picked up nothing is known.
        let mut t = Tracker::pick_up(&c(ACK, 1, 1, 0)).unwrap();
        run(&mut t, &[(Original, c(ACK, 50_000_000, 1, 0), Ok(Same))]);
        assert_eq!(t.end[0], C.wrapping_add(50_000_000));
    }

    /// A window before and after what the other side claims, and one number for a FIN.
    #[test]
    fn claims_agree_within_a_window() {
        for (segment, agrees) in [
            (c(ACK, 1502, 1, 0), true),
            (c(ACK, 1503, 1, 0), false),
            (c(ACK, 1401, 1, 100), true),
            (c(ACK, 1402, 1, 100), false),
            (c(ACK, 501u32.wrapping_sub(1002), 1, 0), true),
            (c(ACK, 501u32.wrapping_sub(1003), 1, 0), false),
            (c(ACK, 501, 1001, 0), true),
            (c(ACK, 501, 1002, 0), false),
            (c(ACK, 501, 1u32.wrapping_sub(66_000), 0), true),
            (c(ACK, 501, 1u32.wrapping_sub(66_001), 0), false),
        ] {
            let mut t = taken_over();
            let verdict = if agrees { Same } else { Ignored };
            run(&mut t, &[(Original, segment, Ok(verdict))]);
        }
    }

    #[test]
    fn a_claim_is_kept_until_the_sides_agree() {
        let mut t = taken_over();
        run(&mut t, &[(Original, c(ACK, 501, 1, 0), Ok(Same))]);
        // Sent again: it agrees too, and takes nothing back.
        run(&mut t, &[(Original, c(ACK, 1, 1, 100), Ok(Same))]);
        assert_eq!(t.end[0], C.wrapping_add(501));
        // It does not agree, and is the newest claim.
        run(&mut t, &[(Original, c(ACK, 100_001, 1, 0), Ok(Ignored))]);
        assert_eq!(t.end[0], C.wrapping_add(100_001));

        // The server acknowledges more than the client then has sent.
        let mut t = taken_over();
        run(
            &mut t,
            &[
                (Reply, s(ACK, 1, 5001, 0), Ok(Ignored)),
                (Original, c(ACK, 4001, 1, 0), Ok(Same)),
            ],
        );
        assert_eq!(t.acked[0], C.wrapping_add(4001));
    }

    #[test]
    fn while_numbers_are_unknown_a_reset_must_prove_both() {
        for (reset, verdict) in [
            (s(RST, 1, 501, 0), Ignored),
            (s(RST_ACK, 1, 500, 0), Ignored),
            (s(RST_ACK, 2, 501, 0), Ignored),
            (s(RST_ACK, 1, 501, 0), State),
        ] {
            run(&mut taken_over(), &[(Reply, reset, Ok(verdict))]);
        }
    }

    /// Data that went through another unit may be under way: two windows more.
    #[test]
    fn a_gap_in_the_history_widens_the_window() {
        for (seq, verdict) in [(2500, Ok(Same)), (2501, Err(TcpWindow))] {
            let mut t = established();
            t.resume();
            run(
                &mut t,
                &[
                    (Original, c(ACK, 1, 1, 0), Ok(Same)),
                    (Reply, s(ACK, 1, 1, 0), Ok(Same)),
                    (Original, c(ACK, seq, 1, 501), verdict),
                ],
            );
        }
    }

    #[test]
    fn data_of_the_server_before_a_reset_counts_as_that_of_the_client() {
        let reset = |number| s(RST_ACK, number, 1, 0);
        let data = |seq, len| (Reply, s(ACK, seq, 1, len), Ok(Same));
        let acked = |number| (Original, c(ACK, 1, number, 0), Ok(Same));
        let doubted = |number| (Reply, reset(number), Ok(Doubted));
        let ignored = |number| (Reply, reset(number), Ok(Ignored));
        // Each ends with a segment that shows life, or with none.
        let scripts: [&[_]; 5] = [
            &[data(1, 500), doubted(501), ignored(501), acked(501)],
            &[data(101, 1), ignored(102)],
            // The hole is filled, and the next data leaves none.
            &[
                data(101, 100),
                data(1, 100),
                acked(201),
                data(201, 100),
                doubted(301),
                acked(301),
            ],
            // Its sender goes on, and resets again.
            &[
                data(1, 500),
                doubted(501),
                data(501, 100),
                doubted(601),
                acked(601),
            ],
            // What its sender has sent before shows nothing.
            &[data(1, 500), doubted(501), data(1, 200)],
        ];
        for (at, script) in scripts.iter().enumerate() {
            let mut t = established();
            run(&mut t, script);
            assert_eq!(t.is_doubted(), at == 4, "script {at}");
        }
        // Data sent through another unit is not known here.
        let mut t = established();
        run(&mut t, &[data(1, 500)]);
        t.resume();
        run(
            &mut t,
            &[
                data(501, 100),
                (Original, c(ACK, 1, 1, 0), Ok(Same)),
                ignored(601),
                acked(601),
                data(601, 100),
                doubted(701),
            ],
        );
    }

    #[test]
    fn a_hole_of_the_client_is_filled() {
        let mut t = established();
        run(
            &mut t,
            &[
                (Original, c(ACK, 101, 1, 100), Ok(Same)),
                (Original, c(ACK, 1, 1, 100), Ok(Same)),
                (Reply, s(ACK, 1, 201, 0), Ok(Same)),
                (Original, c(ACK, 201, 1, 100), Ok(Same)),
                (Original, c(RST_ACK, 301, 1, 0), Ok(Doubted)),
                (Original, c(ACK, 301, 1, 100), Ok(Same)),
                (Original, c(RST_ACK, 401, 1, 0), Ok(Doubted)),
            ],
        );
    }

    #[test]
    fn data_both_ways_then_client_closes_first() {
        let mut t = established();
        run(
            &mut t,
            &[
                (Original, c(ACK, 1, 1, 500), Ok(Same)),
                (Reply, s(ACK, 1, 501, 300), Ok(Same)),
                (Original, c(ACK, 1, 1, 500), Ok(Same)), // sent again
                (Original, c(FIN, 501, 301, 10), Ok(Same)), // data with FIN
                (Reply, s(ACK, 301, 511, 100), Ok(Same)), // of which the FIN was lost
                (Original, c(FIN, 501, 301, 10), Ok(Same)),
                (Reply, s(ACK, 401, 512, 0), Ok(State)), // half closed
                (Original, c(ACK, 512, 401, 0), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::FinWait);
        run(
            &mut t,
            &[
                (Reply, s(FIN, 401, 512, 0), Ok(State)),
                (Reply, s(FIN, 401, 512, 0), Ok(Same)), // sent again
            ],
        );
        assert_eq!(t.state(), TcpState::LastAck);
        run(
            &mut t,
            &[
                (Original, c(ACK, 512, 402, 0), Ok(State)),
                (Original, c(ACK, 512, 402, 0), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::TimeWait);
    }

    #[test]
    fn server_closes_first_and_both_at_once() {
        let mut t = established();
        run(
            &mut t,
            &[
                (Reply, s(FIN, 1, 1, 0), Ok(Same)),
                (Original, c(FIN, 1, 2, 0), Ok(State)),
                (Reply, s(ACK, 2, 2, 0), Ok(State)),
            ],
        );
        assert_eq!(t.state(), TcpState::TimeWait);
        let mut t = established();
        run(
            &mut t,
            &[
                (Reply, s(FIN, 1, 1, 0), Ok(Same)),
                (Original, c(FIN, 1, 1, 0), Ok(Same)),
                (Reply, s(ACK, 2, 2, 0), Ok(State)),
                (Original, c(ACK, 2, 2, 0), Ok(State)),
            ],
        );
        assert_eq!(t.state(), TcpState::TimeWait);
    }

    #[test]
    fn handshake_sent_again_refused_and_fast_open() {
        let mut t = opened();
        run(
            &mut t,
            &[
                (Original, c(SYN, 0, 0, 0), Ok(Same)),
                (Reply, s(SYN_ACK, 0, 2, 0), Err(TcpWindow)),
                (Reply, s(ACK, 99, 99, 0), Ok(Ignored)), // challenge of an old connection
                (Original, c(RST, 99, 0, 0), Ok(Ignored)), // and its answer
                (Reply, s(RST_ACK, 0, 77, 0), Err(TcpWindow)),
                (Reply, s(RST, 0, 1, 0), Err(TcpWindow)),
                (Reply, s(ACK, 0, 1, 5), Err(TcpWindow)),
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(State)),
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(Same)),
                (Original, c(SYN, 0, 0, 0), Ok(Ignored)),
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(Same)),
                (Original, c(ACK, 1, 1, 0), Ok(State)),
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(Ignored)), // a late copy
                (Original, c(ACK, 1, 1, 0), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::Established);

        let mut t = opened();
        run(&mut t, &[(Reply, s(RST_ACK, 0, 1, 0), Ok(State))]);
        assert_eq!(t.state(), TcpState::Closed);

        for acked in [1, 101] {
            let mut t = Tracker::open(&c(SYN, 0, 0, 100)).unwrap();
            run(
                &mut t,
                &[
                    (Reply, s(SYN_ACK, 0, 102, 0), Err(TcpWindow)),
                    (Reply, s(SYN_ACK, 0, acked, 0), Ok(State)),
                    (Reply, s(ACK, 1, acked, 50), Ok(Same)),
                    (Original, c(ACK, acked, 51, 0), Ok(State)),
                ],
            );
            assert_eq!(t.state(), TcpState::Established);
        }
    }

    #[test]
    fn simultaneous_open() {
        let mut t = opened();
        run(
            &mut t,
            &[
                (Reply, s(SYN, 0, 0, 0), Ok(State)),
                (Original, c(SYN_ACK, 0, 1, 0), Ok(Same)),
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(State)),
                (Original, c(ACK, 1, 1, 10), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::Established);
    }

    #[test]
    fn a_forged_syn_of_the_server_does_not_spoil_the_handshake() {
        let mut t = opened();
        run(
            &mut t,
            &[
                (Reply, s(SYN, 12345, 0, 0), Ok(State)),
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(Same)),
                (Original, c(ACK, 1, 1, 10), Ok(State)),
                (Reply, s(ACK, 1, 11, 10), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::Established);
    }

    #[test]
    fn resets_close_only_if_exact() {
        for (from, reset) in [(Original, c(RST, 501, 0, 0)), (Reply, s(RST, 1, 0, 0))] {
            let mut t = established();
            run(
                &mut t,
                &[
                    (Original, c(ACK, 1, 1, 500), Ok(Same)),
                    (Reply, s(ACK, 1, 501, 0), Ok(Same)),
                    (
                        from,
                        Segment {
                            seq: reset.seq.wrapping_add(1),
                            ..reset
                        },
                        Ok(Ignored),
                    ),
                    (
                        from,
                        Segment {
                            seq: reset.seq.wrapping_add(999),
                            ..reset
                        },
                        Ok(Ignored),
                    ),
                    (
                        from,
                        Segment {
                            seq: reset.seq.wrapping_add(1002),
                            ..reset
                        },
                        Err(TcpWindow),
                    ),
                    (
                        from,
                        Segment {
                            seq: reset.seq.wrapping_sub(1003),
                            ..reset
                        },
                        Err(TcpWindow),
                    ),
                ],
            );
            assert_eq!(t.state(), TcpState::Established);
            run(&mut t, &[(from, reset, Ok(State))]);
            assert_eq!(t.state(), TcpState::Closed);
        }
        // With data under way, only what was acknowledged counts: the data may be forged too.
        let mut t = established();
        run(
            &mut t,
            &[
                (Original, c(ACK, 1, 1, 500), Ok(Same)),
                (Original, c(RST, 501, 0, 0), Ok(Doubted)),
                (Original, c(RST, 1, 0, 0), Ok(State)),
                (Reply, s(ACK, 1, 501, 0), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::Closed);
    }

    /// An end that aborts sends no more, and the other, which has all of its data, sends nothing at
    /// all.
    #[test]
    fn a_reset_after_data_that_is_not_acknowledged_is_believed_until_more_comes() {
        let reset = |number| c(RST_ACK, number, 1, 0);
        let data = |seq, len| (Original, c(ACK, seq, 1, len), Ok(Same));
        let cases: [(&[_], u32, bool); 6] = [
            (&[data(1, 500)], 501, true),
            (&[data(1, 500), data(501, 400)], 901, true),
            (&[(Original, c(FIN, 1, 1, 500), Ok(Same))], 502, true),
            (&[data(1, 500), data(1, 500)], 501, true), // sent again
            (&[data(101, 1)], 102, false),              // in the window, and perhaps forged
            (&[data(1, 500), data(601, 1)], 602, false),
        ];
        for (script, number, is_believed) in cases {
            let mut t = established();
            run(&mut t, script);
            let verdict = if is_believed { Doubted } else { Ignored };
            run(
                &mut t,
                &[
                    (Original, reset(number), Ok(verdict)),
                    (Original, reset(number), Ok(Ignored)), // again
                    (Original, reset(number + 1), Ok(Ignored)),
                ],
            );
            assert_eq!(
                (t.state(), t.is_doubted()),
                (TcpState::Established, is_believed)
            );
        }
        // The receiver challenges it, acknowledges the data, or continues; or its supposed sender
        // does.
        for life in [
            (Reply, s(ACK, 1, 1, 0), Ok(Same)),
            (Reply, s(ACK, 1, 501, 0), Ok(Same)),
            (Reply, s(ACK, 1, 1, 100), Ok(Same)),
            (Original, c(ACK, 501, 1, 100), Ok(Same)),
        ] {
            let mut t = established();
            run(
                &mut t,
                &[data(1, 500), (Original, reset(501), Ok(Doubted)), life],
            );
            assert!(!t.is_doubted(), "{life:?}");
        }
        // A segment of before is late.
        let mut t = established();
        run(
            &mut t,
            &[
                data(1, 500),
                (Original, reset(501), Ok(Doubted)),
                data(1, 200),
            ],
        );
        assert!(t.is_doubted());
        // Data sent through another unit is not known here.
        let mut t = established();
        run(&mut t, &[data(1, 500)]);
        t.resume();
        run(
            &mut t,
            &[
                (Original, c(ACK, 501, 1, 100), Ok(Same)),
                (Reply, s(ACK, 1, 1, 0), Ok(Same)),
                (Original, reset(601), Ok(Ignored)),
                (Reply, s(ACK, 1, 601, 0), Ok(Same)),
                data(601, 100),
                (Original, reset(701), Ok(Doubted)),
            ],
        );
    }

    #[test]
    fn a_fin_counts_once_it_is_acknowledged() {
        let mut t = established();
        run(
            &mut t,
            &[
                (Original, c(ACK, 1, 1, 500), Ok(Same)),
                (Reply, s(ACK, 1, 501, 0), Ok(Same)),
                (Original, c(FIN, 700, 1, 0), Ok(Same)), // forged
                (Reply, s(ACK, 1, 501, 0), Ok(Same)),    // says the server
                (Original, c(ACK, 501, 1, 200), Ok(Same)),
                (Reply, s(ACK, 1, 701, 0), Ok(Same)), // acknowledges data
                (Original, c(ACK, 701, 1, 100), Ok(Same)),
                (Original, c(FIN, 801, 1, 0), Ok(Same)),
                (Reply, s(ACK, 1, 801, 0), Ok(Same)),
                (Reply, s(ACK, 1, 802, 0), Ok(State)),
            ],
        );
        assert_eq!(t.state(), TcpState::FinWait);
    }

    #[test]
    fn windows_bound_both_numbers() {
        let mut t = established();
        run(
            &mut t,
            &[
                (Original, c(ACK, 1, 1, 1000), Ok(Same)),
                (Original, c(ACK, 1001, 1, 1), Err(TcpWindow)),
                (Original, c(FIN, 1001, 1, 0), Ok(Same)), // a FIN needs no room
                (Reply, s(ACK, 1, 1003, 0), Err(TcpWindow)), // never sent
                (Reply, s(ACK, 1, 1002, 0), Ok(State)),
                (Reply, s(ACK, 1, 1001, 0), Ok(Same)), // overtaken
                (
                    Reply,
                    s(ACK, 1, 1002u32.wrapping_sub(MIN_ACK_RANGE + 1), 0),
                    Err(TcpWindow),
                ),
                (Reply, s(ACK, 0, 1002, 1), Ok(Same)), // keep-alive
                (Reply, s(ACK, 0, 1002, 0), Ok(Same)),
                (Reply, s(TcpFlags(0x08), 1, 0, 5), Err(BadFlags)), // no ACK
            ],
        );
    }

    #[test]
    fn zero_window_is_probed() {
        let mut t = opened();
        let zero = |segment| Segment {
            window: 0,
            ..segment
        };
        run(
            &mut t,
            &[
                (Reply, zero(s(SYN_ACK, 0, 1, 0)), Ok(State)),
                (Original, c(ACK, 1, 1, 0), Ok(State)),
                (Original, c(ACK, 1, 1, 2), Err(TcpWindow)),
                (Original, c(ACK, 1, 1, 1), Ok(Same)),
                (Reply, zero(s(ACK, 1, 1, 0)), Ok(Same)),
                (Original, c(ACK, 0, 1, 0), Ok(Same)),
                (Reply, s(ACK, 1, 1, 0), Ok(Same)), // opens
                (Original, c(ACK, 1, 1, 1000), Ok(Same)),
            ],
        );
    }

    #[test]
    fn windows_scale_if_both_offered() {
        let mut t = Tracker::open(&scaled(c(SYN, 0, 0, 0), 65_000, 7)).unwrap();
        run(
            &mut t,
            &[
                (Reply, scaled(s(SYN_ACK, 0, 1, 0), 1000, 200), Ok(State)), // means 14
                (Original, c(ACK, 1, 1, 0), Ok(State)),                     // 1000 << 7
                (Original, c(ACK, 1, 1, 1001), Err(TcpWindow)), // a SYN's window is not scaled
                (Reply, s(ACK, 1, 1, 65_536), Ok(Same)),        // a super-packet
                (Reply, s(ACK, 65_537, 1, 62_464), Ok(Same)),
                (Reply, s(ACK, 128_001, 1, 1), Err(TcpWindow)),
                (Original, c(ACK, 1, 1, 65_536), Ok(Same)), // 1000 << 14
            ],
        );
        let mut t = Tracker::open(&scaled(c(SYN, 0, 0, 0), 65_000, 7)).unwrap();
        run(
            &mut t,
            &[
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(State)), // does not scale
                (Original, c(ACK, 1, 1, 0), Ok(State)),
                (Reply, s(ACK, 1, 1, 65_000), Ok(Same)),
                (Reply, s(ACK, 65_001, 1, 1), Err(TcpWindow)),
            ],
        );
    }

    #[test]
    fn a_finished_connection_gives_way_to_a_new_one() {
        let mut t = established();
        run(
            &mut t,
            &[
                (Original, c(RST, 1, 0, 0), Ok(State)),
                (Reply, s(SYN, 5000, 0, 0), Err(TcpUnexpectedSyn)),
                (Original, c(SYN, 9_000_000, 0, 0), Ok(Reopened)),
                (Reply, s(SYN_ACK, 9_000_000, 9_000_001, 0), Ok(State)),
                (Original, c(ACK, 9_000_001, 9_000_001, 0), Ok(State)),
            ],
        );
        assert_eq!(t.state(), TcpState::Established);
    }

    #[test]
    fn a_client_that_rebooted_gets_through() {
        // The server still has the old connection: challenge, reset, and the SYN again.
        let mut t = established();
        run(
            &mut t,
            &[
                (Reply, s(ACK, 1, 1, 100), Ok(Same)),
                (Original, c(SYN, 9_000_000, 0, 0), Ok(Ignored)),
                (Reply, s(ACK, 101, 1, 0), Ok(Same)),
                (Original, c(RST, 1, 0, 0), Ok(State)),
                (Original, c(SYN, 9_000_000, 0, 0), Ok(Reopened)),
            ],
        );
        // The server has lost it.
        let mut t = established();
        run(
            &mut t,
            &[
                (
                    Original,
                    scaled(c(SYN, 9_000_000, 0, 0), 500, 3),
                    Ok(Ignored),
                ),
                (
                    Reply,
                    s(SYN_ACK, 77_000_000, 9_000_002, 0),
                    Err(TcpUnexpectedSyn),
                ),
                (
                    Reply,
                    scaled(s(SYN_ACK, 77_000_000, 9_000_001, 0), 500, 3),
                    Ok(Reopened),
                ),
                (Original, c(ACK, 9_000_001, 77_000_001, 0), Ok(State)),
                (Reply, s(ACK, 77_000_001, 9_000_001, 8000), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::Established);
    }

    #[test]
    fn a_server_that_has_lost_the_connection_may_refuse_a_new_one() {
        let refusal = |ack| seg(RST_ACK, 0, C.wrapping_add(ack), 0);
        let in_each_state: [&[(Direction, Segment)]; 5] = [
            &[],
            &[(Original, c(ACK, 1, 1, 500))],
            &[(Original, c(FIN, 1, 1, 0))],
            &[(Reply, s(FIN, 1, 1, 0))],
            &[(Reply, s(FIN, 1, 1, 0)), (Original, c(FIN, 1, 2, 0))],
        ];
        for script in in_each_state {
            let mut t = established();
            for (from, segment) in script {
                t.handle(*from, segment).unwrap();
            }
            let state = t.state();
            run(
                &mut t,
                &[
                    (Reply, refusal(9_000_001), Err(TcpWindow)), // nothing was asked
                    (Original, c(SYN, 9_000_000, 0, 0), Ok(Ignored)),
                    (Reply, refusal(9_000_000), Err(TcpWindow)),
                    (Reply, refusal(9_000_002), Err(TcpWindow)),
                    (Reply, refusal(9_000_001), Ok(Ignored)),
                    (Original, c(SYN, 9_500_000, 0, 1000), Ok(Ignored)), // with Fast Open
                    (Reply, refusal(9_501_001), Ok(Ignored)),
                ],
            );
            assert_eq!(t.state(), state, "neither side has closed");
        }
        // Before the handshake was complete.
        let mut t = opened();
        run(
            &mut t,
            &[
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(State)),
                (Original, c(SYN, 9_000_000, 0, 0), Ok(Ignored)),
                (Reply, refusal(9_000_001), Ok(Ignored)),
            ],
        );
        let mut t = opened();
        run(
            &mut t,
            &[
                (Original, c(SYN, 9_000_000, 0, 0), Ok(Same)),
                (Reply, refusal(9_000_001), Ok(State)),
            ],
        );
        assert_eq!(t.state(), TcpState::Closed);
    }

    #[test]
    fn fast_open_in_each_order_that_is_legal() {
        let syn = |data| (Original, c(SYN, 0, 0, data));
        let syn_ack = |acked: u32| (Reply, s(SYN_ACK, 0, 1 + acked, 0));
        let ack = |at: u32, data| (Original, c(ACK, 1 + at, 1, data));
        let early = |acked: u32| (Reply, s(ACK, 1, 1 + acked, 700));
        let scripts: [&[(Direction, Segment)]; 10] = [
            &[syn(1000), syn_ack(1000), ack(1000, 0)],
            &[syn(1000), syn_ack(0), ack(0, 1000)], // the cookie was not taken
            &[syn(1000), syn_ack(400), ack(400, 600)],
            &[syn(1000), syn(0), syn_ack(1000), ack(1000, 0)],
            &[syn(1000), syn(0), syn_ack(0), ack(0, 1000)],
            &[syn(1000), syn(0), syn(1000), syn_ack(1000), ack(1000, 0)],
            &[syn(0), syn(1000), syn_ack(1000), ack(1000, 0)], // overtaken
            &[
                syn(1000),
                syn_ack(1000),
                syn(0),
                syn_ack(1000),
                ack(1000, 0),
            ],
            &[syn(1000), syn_ack(1000), early(1000), ack(1000, 0), syn(0)],
            &[syn(1000), syn(0), syn_ack(1000), early(1000), ack(1000, 0)],
        ];
        for (number, script) in scripts.iter().enumerate() {
            let mut t = Tracker::open(&script[0].1).unwrap();
            for (step, (from, segment)) in script[1..].iter().enumerate() {
                let verdict = t.handle(*from, segment);
                assert!(verdict.is_ok(), "script {number}, step {step}: {verdict:?}");
            }
            assert_eq!(t.state(), TcpState::Established, "script {number}");
            run(
                &mut t,
                &[
                    (Reply, s(ACK, 1, 1002, 0), Err(TcpWindow)), // never sent
                    (Reply, s(ACK, 1, 1001, 0), Ok(Same)),
                ],
            );
        }
        // Data that an earlier SYN of another number carried does not count.
        let mut t = opened();
        run(
            &mut t,
            &[
                (Original, c(SYN, 5000, 0, 1000), Ok(Same)),
                (Original, c(SYN, 9000, 0, 0), Ok(Same)),
                (Reply, s(SYN_ACK, 0, 10_001, 0), Err(TcpWindow)),
                (Reply, s(SYN_ACK, 0, 9001, 0), Ok(State)),
            ],
        );
    }

    #[test]
    fn fast_open_in_place_of_a_connection_that_the_server_has_lost() {
        for acked in [0, 400, 1000] {
            let mut t = established();
            run(
                &mut t,
                &[
                    (Original, c(SYN, 9_000_000, 0, 1000), Ok(Ignored)),
                    (Original, c(SYN, 9_000_000, 0, 0), Ok(Ignored)), // again, without data
                    (
                        Reply,
                        s(SYN_ACK, 77_000_000, 9_002_000, 0),
                        Err(TcpUnexpectedSyn),
                    ),
                    (
                        Reply,
                        s(SYN_ACK, 77_000_000, 9_000_001 + acked, 0),
                        Ok(Reopened),
                    ),
                    (
                        Original,
                        c(ACK, 9_000_001 + acked, 77_000_001, 1000 - acked),
                        Ok(State),
                    ),
                    (Reply, s(ACK, 77_000_001, 9_001_001, 500), Ok(Same)),
                ],
            );
        }
    }

    #[test]
    fn a_second_fresh_syn_has_none_of_the_data_of_the_first() {
        let mut t = established();
        t.note_fresh_syn(&c(SYN, 5000, 0, 100));
        assert!(t.answers_fresh_syn(Reply, &s(SYN_ACK, 0, 5051, 0)));
        t.note_fresh_syn(&c(SYN, 9000, 0, 0));
        assert!(t.answers_fresh_syn(Reply, &s(SYN_ACK, 0, 9001, 0)));
        assert!(!t.answers_fresh_syn(Reply, &s(SYN_ACK, 0, 9051, 0)));
    }

    #[test]
    fn late_copies_of_the_handshake_restart_nothing() {
        let mut t = established();
        run(
            &mut t,
            &[
                (Original, c(ACK, 1, 1, 500), Ok(Same)),
                (Reply, s(ACK, 1, 501, 500), Ok(Same)),
                (Original, c(ACK, 501, 501, 0), Ok(Same)),
                (Original, c(SYN, 0, 0, 0), Ok(Ignored)),
                (Reply, s(SYN_ACK, 0, 1, 0), Ok(Ignored)),
                (Reply, s(ACK, 501, 501, 500), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::Established);
    }

    #[test]
    fn picked_up_in_the_middle() {
        assert_eq!(Tracker::pick_up(&c(RST_ACK, 5, 5, 0)), Err(TcpNoSession));
        let mut t = Tracker::pick_up(&c(ACK, 5_000, 900, 100)).unwrap();
        assert!(t.is_one_sided());
        run(
            &mut t,
            &[
                (Original, c(ACK, 90_000, 900, 100), Ok(Same)), // until the other is seen
                (Reply, s(ACK, 50_000, 5_100, 100), Ok(Same)),
                (Original, c(ACK, 90_100, 50_100, 100), Ok(Same)),
                (Reply, s(ACK, 50_100, 90_200, 100), Ok(Same)),
                (Original, c(ACK, 90_200, 50_200, 0), Ok(Same)),
            ],
        );
        assert!(!t.is_one_sided());
        let far = 1 << 30;
        run(
            &mut t,
            &[
                (Original, c(ACK, 90_200 + far, 50_200, 100), Err(TcpWindow)),
                (Reply, s(RST, 50_300, 0, 0), Ok(Ignored)),
                (Reply, s(RST, 50_200, 0, 0), Ok(State)),
            ],
        );
        assert_eq!(t.state(), TcpState::Closed);
    }

    #[test]
    fn goes_on_after_a_takeover() {
        let mut t = established();
        t.resume();
        // A megabyte each way went through another unit.
        run(
            &mut t,
            &[
                (Original, c(ACK, 1_000_000, 1_000_000, 0), Ok(Ignored)), // until the other agrees
                (Reply, s(ACK, 1_000_000, 1_000_500, 100), Ok(Same)), // 500 that we have not seen
                (Original, c(ACK, 1_000_500, 1_000_100, 100), Ok(Same)),
                (Reply, s(ACK, 1_000_100, 1_000_600, 100), Ok(Same)),
                (Original, c(ACK, 1_005_000, 1_000_200, 100), Err(TcpWindow)), // strict again
            ],
        );
        // In the middle of the handshake.
        let mut t = opened();
        t.resume();
        run(
            &mut t,
            &[
                (Original, c(ACK, 200_000, 1, 0), Err(TcpWindow)),
                (Original, c(ACK, 1, 1, 10), Ok(State)),
                (Reply, s(ACK, 1, 11, 10), Ok(Same)),
            ],
        );
        assert_eq!(t.state(), TcpState::Established);
    }

    /// One end of an honest connection, with a window of 4000 << 2 bytes and 2^30-ish numbers.
    #[derive(Clone, Copy)]
    struct End {
        una: u32,
        next: u32,
        received: u32,
        fin: bool,
    }

    const WINDOW: u32 = 4000 << 2;

    impl End {
        fn segment(&self, flags: TcpFlags, seq: u32, payload_len: u32) -> Segment {
            Segment {
                seq,
                ack: self.received,
                payload_len,
                window: 4000,
                flags,
                window_scale: None,
            }
        }

        fn receive(&mut self, segment: &Segment) {
            if segment.seq == self.received {
                self.received = segment.end();
            }
            self.una = later(self.una, segment.ack);
        }
    }

    /// The next step: who acts, how, and how much it sends.
    fn step() -> impl Strategy<Value = (bool, u8, u32, [u32; 3])> {
        (any::<bool>(), 0..12u8, 1..70_000u32, any::<[u32; 3]>())
    }

    proptest! {
        /// Segments are lost and sent again, a blind attacker joins in; whatever the ends send
        /// passes, and the attacker can neither kill nor shift the connection.
        #[test]
        fn honest_ends_are_never_hindered(
            isns in any::<[u32; 2]>(),
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let syn = |flags, seq: u32, ack: u32| scaled(seg(flags, seq, ack, 0), 16_000, 2);
            let [a, b] = isns.map(|isn| isn.wrapping_add(1));
            let mut t = Tracker::open(&syn(SYN, isns[0], 0)).unwrap();
            t.handle(Reply, &syn(SYN_ACK, isns[1], a)).unwrap();
            let mut ends = [
                End { una: a, next: a, received: b, fin: false },
                End { una: b, next: b, received: a, fin: false },
            ];
            t.handle(Original, &ends[0].segment(ACK, a, 0)).unwrap();
            for (reply, what, len, random) in steps {
                let (from, me) = if reply { (Reply, 1) } else { (Original, 0) };
                let end = ends[me];
                let room = WINDOW - end.next.wrapping_sub(end.una).min(WINDOW);
                let unacked = end.next.wrapping_sub(end.una) - u32::from(end.fin && end.next != end.una);
                let segment = match what {
                    0..=4 if !end.fin => end.segment(ACK, end.next, len.min(room)),
                    5 | 6 => end.segment(ACK, end.una, len.min(unacked)),
                    7 => end.segment(ACK, end.next, 0),
                    8 => end.segment(ACK, end.una.wrapping_sub(1), 0),
                    9 if !end.fin && len < 3000 => end.segment(FIN, end.next, 0),
                    _ => {
                        let flags = [ACK, RST, SYN, SYN_ACK, FIN, RST_ACK][what as usize % 6];
                        let forged = seg(flags, random[0], random[1], random[2] % 1460);
                        // Blind: a hit by chance is what RFC 5961 leaves. When both have closed,
                        // nothing is left to protect, and a SYN may start over.
                        let near = |x: u32, y: u32| is_within(x, y, 200_000, 200_000);
                        if t.state() < TcpState::TimeWait && !near(forged.seq, end.next) && !near(forged.ack, ends[1 - me].next) {
                            let _ = t.handle(from, &forged);
                        }
                        continue;
                    }
                };
                let state = t.state();
                let verdict = t.handle(from, &segment);
                prop_assert!(verdict.is_ok(), "{:?} {:?}", verdict, segment);
                prop_assert!(state <= t.state() && t.state() != TcpState::Closed);
                ends[me].next = later(end.next, segment.end());
                ends[me].fin |= segment.has(TcpFlags::FIN);
                if random[0] % 3 > 0 {
                    ends[1 - me].receive(&segment);
                }
            }
        }

        /// Somebody who knows the windows forges segments of one side, before and after the
        /// connection is taken over. Whatever the ends send passes, and nothing ends or shortens
        /// the connection.
        #[test]
        fn forged_segments_of_one_side_neither_end_nor_move_the_other(
            isns in any::<[u32; 2]>(),
            forger in any::<bool>(),
            takeover in any::<u8>(),
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let syn = |flags, seq: u32, ack: u32| scaled(seg(flags, seq, ack, 0), 16_000, 2);
            let [a, b] = isns.map(|isn| isn.wrapping_add(1));
            let mut t = Tracker::open(&syn(SYN, isns[0], 0)).unwrap();
            t.handle(Reply, &syn(SYN_ACK, isns[1], a)).unwrap();
            let mut ends = [
                End { una: a, next: a, received: b, fin: false },
                End { una: b, next: b, received: a, fin: false },
            ];
            t.handle(Original, &ends[0].segment(ACK, a, 0)).unwrap();
            for (at, (reply, what, len, random)) in steps.into_iter().enumerate() {
                // Another unit sees all between these two.
                let (away, back) = (usize::from(takeover % 64), usize::from(takeover % 64) + 20);
                if at == back {
                    t.resume();
                }
                let is_here = !(away..back).contains(&at);
                let (from, me) = if reply { (Reply, 1) } else { (Original, 0) };
                let end = ends[me];
                let room = WINDOW - end.next.wrapping_sub(end.una).min(WINDOW);
                let segment = match what {
                    0..=4 => end.segment(ACK, end.next, len.min(room)),
                    5 => end.segment(ACK, end.una, len.min(end.next.wrapping_sub(end.una))),
                    6 => end.segment(ACK, end.next, 0),
                    _ if is_here => {
                        let (from, me) = if forger { (Reply, 1) } else { (Original, 0) };
                        let flags = [ACK, RST, FIN, RST_ACK, ACK][what as usize % 5];
                        // At most two windows from the truth, or anywhere.
                        let near = |truth: u32, random: u32| match random % 4 {
                            0 => random,
                            _ => truth.wrapping_add(random % (4 * WINDOW)).wrapping_sub(2 * WINDOW),
                        };
                        let seq = near(ends[me].next, random[0]);
                        let ack = near(ends[1 - me].next, random[1]);
                        let len = if flags == RST { 0 } else { random[2] % 1460 };
                        // An attacker who sees none of its segments does not know the
                        // acknowledgments of the other end, and can only guess the number that
                        // follows the data.
                        if seq != ends[1 - me].received && seq != t.acked[me] && seq != t.end[me] {
                            let _ = t.handle(from, &seg(flags, seq, ack, len));
                            prop_assert_eq!(t.state(), TcpState::Established);
                            prop_assert!(!t.is_one_sided() && !t.is_doubted());
                        }
                        continue;
                    }
                    _ => continue,
                };
                if is_here {
                    let verdict = t.handle(from, &segment);
                    prop_assert!(verdict.is_ok(), "{:?} {:?}", verdict, segment);
                    prop_assert_eq!(t.state(), TcpState::Established);
                }
                ends[me].next = later(end.next, segment.end());
                if random[0] % 3 > 0 {
                    ends[1 - me].receive(&segment);
                }
            }
            // It can still be reset by its ends, once both were heard.
            t.resume();
            for me in [0, 1, 0, 1] {
                let end = ends[me];
                let segment = end.segment(ACK, end.next, 0);
                t.handle(if me == 0 { Original } else { Reply }, &segment).unwrap();
                ends[1 - me].receive(&segment);
            }
            prop_assert!(!t.is_unsure());
            let next = t.acked[0];
            prop_assert_eq!(t.handle(Original, &seg(RST, next, 0, 0)), Ok(State));
        }

        #[test]
        fn nothing_panics_and_only_a_new_connection_goes_back(
            pick_up in any::<bool>(),
            steps in proptest::collection::vec((any::<bool>(), 0..64u8, any::<[u16; 3]>()), 1..100),
        ) {
            let mut t = if pick_up { Tracker::pick_up(&c(ACK, 1, 1, 1)).unwrap() } else { opened() };
            for (reply, flags, [seq, ack, len]) in steps {
                let (seq, ack) = (u32::from(seq % 8), u32::from(ack % 8));
                let segment = seg(TcpFlags(flags), seq, ack, u32::from(len));
                let before = t.clone();
                let verdict = t.handle(if reply { Reply } else { Original }, &segment);
                match verdict {
                    Err(_) => prop_assert_eq!(&t, &before),
                    Ok(Reopened) => prop_assert!(t.state() <= TcpState::SynReceived),
                    Ok(State) => prop_assert!(t.state() > before.state()),
                    Ok(Same | Ignored | Doubted) => prop_assert_eq!(t.state(), before.state()),
                }
            }
        }
    }
}
