//! Expiry: one pass a second over the deadlines, a slice at a time.

use super::table::Slot;
use super::{SessionId, Table, Timeouts};
use crate::time::Tick;

/// The most sessions that one call of [`Table::sweep`] reports.
pub const EXPIRED_PER_SWEEP: usize = 256;
/// The most slots that one call of [`Table::sweep`] passes.
pub const SLOTS_PER_SWEEP: usize = 65_536;

/// The most sessions that one call reads to find out their deadline; each may be a cache miss.
const LOOKS_PER_SWEEP: usize = 1024;
const TICKS_PER_PASS: usize = 10;

/// How far the sweep has come.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The next slot.
    cursor: usize,
    /// Slots to be passed before the sweep is up to date.
    owed: usize,
    /// Slots to be looked at whatever their deadline says.
    recheck: usize,
    /// The time that `owed` is of.
    at: Tick,
}

impl Sweep {
    pub(super) fn is_rechecking(&self) -> bool {
        self.recheck > 0
    }

    /// A slot was added: a pass that looks at each has one more to go.
    pub(super) fn grown(&mut self) {
        self.recheck += usize::from(self.recheck > 0);
    }
}

impl Table {
    /// Appends sessions whose time is over to `expired`; the caller removes them.
    ///
    /// Returns true if it stopped at one of its bounds: then call it again, at once or after other
    /// work. Called until it returns false at each [`Table::next_sweep`], it reports no session
    /// early, and each about a second after its deadline at the latest. A session that is not removed
    /// is reported again by the next pass.
    pub fn sweep(&mut self, now: Tick, expired: &mut Vec<SessionId>) -> bool {
        self.owe(now);
        let (mut found, mut looks) = (0, 0);
        for _ in 0..self.sweep.owed.min(SLOTS_PER_SWEEP) {
            if found == EXPIRED_PER_SWEEP || looks == LOOKS_PER_SWEEP {
                break;
            }
            let at = if self.sweep.cursor < self.slots.len() {
                self.sweep.cursor
            } else {
                0
            };
            self.sweep.cursor = at + 1;
            self.sweep.owed -= 1;
            let recheck = self.sweep.recheck > 0;
            self.sweep.recheck -= usize::from(recheck);
            if self.check_at[at] > now && !recheck {
                continue;
            }
            let Slot::Used(session) = &self.slots[at] else {
                continue;
            };
            looks += 1;
            let deadline = self.timeouts.deadline(session);
            self.check_at[at] = deadline;
            if deadline <= now {
                found += 1;
                expired.push(SessionId(at as u32));
            }
        }
        self.sweep.owed > 0
    }

    /// When [`Table::sweep`] is to be called next; [`Tick::NEVER`] if there is nothing to expire.
    pub fn next_sweep(&self, now: Tick) -> Tick {
        match (self.is_empty(), self.sweep.owed) {
            (true, _) => Tick::NEVER,
            (false, 0) => self.sweep.at.after(1).max(now),
            (false, _) => now,
        }
    }

    /// When the session expires if nothing more comes.
    pub fn deadline(&self, id: SessionId) -> Option<Tick> {
        self.get(id).map(|session| self.timeouts.deadline(session))
    }

    /// To be called when a session has changed to a state whose timeout may be shorter.
    #[inline]
    pub fn reschedule(&mut self, id: SessionId) {
        let Some(deadline) = self.deadline(id) else {
            return;
        };
        if let Some(check_at) = self.check_at.get_mut(id.0 as usize) {
            *check_at = deadline.min(*check_at);
        }
    }

    /// The timeouts that apply.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Changes the timeouts, for the sessions that exist too: the next pass looks at each.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts;
        self.sweep.recheck = self.slots.len();
    }

    /// Adds the slots that are due since the last call: a tenth of all a tick, one pass at most.
    fn owe(&mut self, now: Tick) {
        let ticks = now.0.saturating_sub(self.sweep.at.0) as usize;
        if ticks == 0 {
            return;
        }
        let slots = self.slots.len();
        let share = slots.div_ceil(TICKS_PER_PASS);
        let due = share.saturating_mul(ticks.min(TICKS_PER_PASS));
        self.sweep.owed = (self.sweep.owed + due).min(slots);
        self.sweep.at = now;
    }
}
