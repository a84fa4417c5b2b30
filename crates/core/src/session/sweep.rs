//! Expiry: one pass a second over the deadlines, a slice at a time.

use super::table::Slot;
use super::{Session, SessionFlags, SessionId, Table, Timeouts};
use crate::flow::GroupId;
use crate::flow::MAX_GROUPS;
use crate::time::Tick;

/// The most sessions that one call of [`Table::sweep`] reports.
pub const EXPIRED_PER_SWEEP: usize = 256;
/// The most slots that one call of [`Table::sweep`] passes.
pub const SLOTS_PER_SWEEP: usize = 65_536;

/// The most sessions that one call reads to find out their deadline; each may be a cache miss.
const LOOKS_PER_SWEEP: usize = 1024;
const TICKS_PER_PASS: usize = 10;

/// A connection without a packet for this long counts as quiet: 2 s.
const QUIET_AFTER: u32 = 20;

/// The progress of the sweep.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The next slot.
    cursor: usize,
    /// Slots still to be passed before the sweep is up to date.
    due: usize,
    /// Slots to be checked whatever their deadline.
    recheck: usize,
    /// When `due` was last updated.
    at: Tick,
}

impl Sweep {
    pub(super) fn is_rechecking(&self) -> bool {
        self.recheck > 0
    }

    /// A slot was added: a pass over all slots is one longer.
    pub(super) fn grown(&mut self) {
        self.recheck += usize::from(self.recheck > 0);
    }
}

impl Table {
    /// Appends sessions whose time is over to `expired`; the caller removes them.
    ///
    /// Returns true if it stopped at one of its bounds: then call it again, at once or after other
    /// work. If it is called until it returns false at each [`Table::next_sweep`], it reports no
    /// session early, and each at most about a second after its deadline. A session that is not
    /// removed is reported again by the next pass.
    pub fn sweep(&mut self, now: Tick, expired: &mut Vec<SessionId>) -> bool {
        self.add_due(now);
        let (mut found, mut looks) = (0, 0);
        for _ in 0..self.sweep.due.min(SLOTS_PER_SWEEP) {
            if found == EXPIRED_PER_SWEEP || looks == LOOKS_PER_SWEEP {
                break;
            }
            let at = if self.sweep.cursor < self.slots.len() {
                self.sweep.cursor
            } else {
                0
            };
            self.sweep.cursor = at + 1;
            self.sweep.due -= 1;
            let recheck = self.sweep.recheck > 0;
            self.sweep.recheck -= usize::from(recheck);
            if self.check_at[at] > now && !recheck {
                continue;
            }
            let Slot::Used(session) = &self.slots[at] else {
                continue;
            };
            looks += 1;
            let deadline = self.deadline_of(session);
            self.check_at[at] = deadline;
            if deadline <= now {
                found += 1;
                expired.push(SessionId(at as u32));
            } else if self.quiet.is_some() && session.carries_data() {
                self.look_again(SessionId(at as u32), now);
            }
        }
        self.sweep.due > 0
    }

    /// A connection that has had data: is it quiet now? If not, it is checked again.
    fn look_again(&mut self, id: SessionId, now: Tick) {
        let at = id.0 as usize;
        let Slot::Used(session) = &mut self.slots[at] else {
            return;
        };
        let quiet_at = session.last_seen.after(QUIET_AFTER);
        if quiet_at > now {
            self.check_at[at] = quiet_at.min(self.check_at[at]);
            return;
        }
        session.flags.set(SessionFlags::QUIET);
        if let Some(quiet) = &mut self.quiet {
            quiet.push(id);
        }
    }

    /// From now on [`Table::pop_quiet`] reports connections that become quiet.
    pub(crate) fn report_quiet(&mut self) {
        self.quiet = Some(Vec::new());
    }

    /// Call it when a quiet connection has data again: it is checked again when it may be quiet.
    pub(crate) fn watch(&mut self, id: SessionId) {
        let at = id.0 as usize;
        if let Some(Slot::Used(session)) = self.slots.get_mut(at) {
            session.flags.clear(SessionFlags::QUIET);
            self.check_at[at] = session.last_seen.after(QUIET_AFTER).min(self.check_at[at]);
        }
    }

    /// A connection that [`Table::sweep`] has found quiet since the last such call.
    pub(crate) fn pop_quiet(&mut self) -> Option<SessionId> {
        self.quiet.as_mut()?.pop()
    }

    /// The time of the next [`Table::sweep`]; [`Tick::NEVER`] if nothing can expire.
    pub fn next_sweep(&self, now: Tick) -> Tick {
        match (self.is_empty(), self.sweep.due) {
            (true, _) => Tick::NEVER,
            (false, 0) => self.sweep.at.after(1).max(now),
            (false, _) => now,
        }
    }

    /// When the session expires if no more packets come.
    pub fn deadline(&self, id: SessionId) -> Option<Tick> {
        self.get(id).map(|session| self.deadline_of(session))
    }

    /// Call it when a session has changed to a state whose timeout may be shorter.
    #[inline]
    pub(crate) fn reschedule(&mut self, id: SessionId) {
        let Some(deadline) = self.deadline(id) else {
            return;
        };
        if let Some(check_at) = self.check_at.get_mut(id.0 as usize) {
            *check_at = deadline.min(*check_at);
        }
    }

    /// Gives every session of `group` a fresh lease, as if a packet of each had arrived at `now`:
    /// packets that another unit has seen are not known here.
    ///
    /// A tick is long: another unit may have followed a session that was seen here in this very
    /// one. So only what is seen in a later one is not stale.
    pub fn renew(&mut self, group: GroupId, now: Tick) {
        self.renewed[usize::from(group.0) % MAX_GROUPS] = now.after(1);
    }

    /// The session with this id, to be changed, and whether it is stale: not seen here since its
    /// group's sessions were renewed.
    #[inline]
    pub(crate) fn get_mut_with_staleness(&mut self, id: SessionId) -> Option<(&mut Session, bool)> {
        let Slot::Used(session) = self.slots.get_mut(id.0 as usize)? else {
            return None;
        };
        let stale = is_stale(session, &self.renewed);
        Some((session, stale))
    }

    /// Whether a session was not seen here since its group's sessions were renewed.
    pub fn is_stale(&self, session: &Session) -> bool {
        is_stale(session, &self.renewed)
    }

    pub(super) fn deadline_of(&self, session: &Session) -> Tick {
        let renewed = self.renewed[usize::from(session.group.0) % MAX_GROUPS];
        self.timeouts.deadline(session, renewed)
    }

    /// The timeouts that apply.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Changes the timeouts, also for existing sessions: the next pass checks each.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts;
        self.sweep.recheck = self.slots.len();
    }

    /// Adds the slots that have become due since the last call: a tenth of all a tick, one pass at
    /// most.
    fn add_due(&mut self, now: Tick) {
        let ticks = now.0.saturating_sub(self.sweep.at.0) as usize;
        if ticks == 0 {
            return;
        }
        let slots = self.slots.len();
        let share = slots.div_ceil(TICKS_PER_PASS);
        let added = share.saturating_mul(ticks.min(TICKS_PER_PASS));
        self.sweep.due = (self.sweep.due + added).min(slots);
        self.sweep.at = now;
    }
}

#[inline]
fn is_stale(session: &Session, renewed: &[Tick; MAX_GROUPS]) -> bool {
    session.last_seen < renewed[usize::from(session.group.0) % MAX_GROUPS]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config;
    use crate::flow::{Addr, FlowKey, Protocol};
    use crate::session::{AddressBook, Session, SessionState};

    /// Seconds for replied and unreplied UDP.
    fn timeouts(udp: u64, unreplied: u64) -> Timeouts {
        let [udp, udp_unreplied, other] = [udp, unreplied, 999].map(Duration::from_secs);
        Timeouts::from(&config::Timeouts {
            tcp_established: other,
            tcp_transitory: other,
            tcp_syn: other,
            tcp_time_wait: other,
            tcp_reset: other,
            udp,
            udp_unreplied,
            icmp: other,
            other,
        })
    }

    fn table(capacity: u32, udp: u64, unreplied: u64) -> Table {
        Table::new(capacity, &[5; 16], timeouts(udp, unreplied), 0)
    }

    fn add(table: &mut Table, number: u32, now: Tick) -> SessionId {
        let key = FlowKey {
            src: Addr::v4(number.to_be_bytes()),
            dst: Addr::v4([9, 9, 9, 9]),
            src_port: 5,
            dst_port: 53,
            protocol: Protocol::UDP,
        };
        table
            .insert(Session::new(&key, now), &AddressBook::new())
            .unwrap()
    }

    /// Another unit may have had the group for a part of the tick.
    #[test]
    fn what_was_seen_in_the_tick_of_a_renewal_is_stale() {
        let mut table = table(1, 30, 30);
        let id = add(&mut table, 1, Tick(7));
        let is_stale = |table: &Table| table.is_stale(table.get(id).unwrap());
        assert!(!is_stale(&table));
        table.renew(GroupId(0), Tick(7));
        assert!(is_stale(&table));
        let (session, _) = table.get_mut_with_staleness(id).unwrap();
        session.last_seen = Tick(8);
        assert!(!is_stale(&table));
    }

    /// Sweeps as the event loop does, and removes what has expired.
    fn sweep_all(table: &mut Table, now: Tick) -> Vec<SessionId> {
        let mut all = Vec::new();
        loop {
            let mut expired = Vec::new();
            let more = table.sweep(now, &mut expired);
            assert!(expired.len() <= EXPIRED_PER_SWEEP);
            for id in &expired {
                table.remove(*id, &AddressBook::new());
            }
            all.extend(expired);
            if !more {
                return all;
            }
        }
    }

    proptest! {
        /// Packets, answers and new sessions at random times: none goes early, each within a second
        /// and what a pass is prolonged by while the table grows.
        #[test]
        fn sessions_expire_on_time(
            events in proptest::collection::vec((0..15u32, 0..4u8, 0..40u32), 1..200),
        ) {
            let mut table = table(300, 5, 3);
            for number in 0..40 {
                add(&mut table, number, Tick(0));
            }
            let mut next_number = 1000;
            // When a deadline was last made earlier: it may have been over by then.
            let mut shortened = BTreeMap::new();
            let mut now = Tick(0);
            for (pause, what, id) in events {
                for _ in 0..pause {
                    now = now.after(1);
                    let deadlines: Vec<_> = table.iter().map(|(id, _)| (id, table.deadline(id).unwrap())).collect();
                    let expired = sweep_all(&mut table, now);
                    for (id, deadline) in deadlines {
                        let since = shortened.get(&id).copied().unwrap_or_default();
                        prop_assert!(!expired.contains(&id) || deadline <= now, "early");
                        prop_assert!(expired.contains(&id) || now < deadline.max(since).after(13), "late");
                    }
                }
                let id = SessionId(id);
                match what {
                    0 => {
                        next_number += 1;
                        add(&mut table, next_number, now);
                    }
                    1 => if let Some(session) = table.get_mut(id) {
                        session.record(crate::flow::Direction::Original, 100, now);
                    }
                    // To a longer timeout, or to a shorter one.
                    _ => if let Some(session) = table.get_mut(id) {
                        let before = SessionState::of(session);
                        if what == 2 {
                            session.flags.set(SessionFlags::REPLIED);
                        } else {
                            session.flags.clear(SessionFlags::REPLIED);
                            shortened.insert(id, now);
                        }
                        table.moved(id, before);
                    }
                }
            }
            table.check_invariants(&AddressBook::new());
        }
    }

    #[test]
    fn a_mass_expiry_is_done_in_bounded_pieces() {
        let mut table = table(100_000, 5, 3);
        for number in 0..100_000 {
            add(&mut table, number, Tick(0));
        }
        let mut calls = 0;
        let mut gone = 0;
        let mut now = Tick(29);
        assert!(sweep_all(&mut table, now).is_empty());
        while !table.is_empty() {
            now = now.after(1);
            assert_eq!(table.next_sweep(now), now);
            let mut more = true;
            while more {
                let mut expired = Vec::new();
                more = table.sweep(now, &mut expired);
                assert!(expired.len() <= EXPIRED_PER_SWEEP);
                for id in &expired {
                    assert!(table.remove(*id, &AddressBook::new()).is_some());
                }
                gone += expired.len();
                calls += 1;
            }
        }
        assert_eq!(gone, 100_000);
        assert!(now <= Tick(40), "{now:?}");
        assert!(calls >= 100_000 / EXPIRED_PER_SWEEP);
        assert_eq!(table.next_sweep(now), Tick::NEVER);
    }

    #[test]
    fn new_timeouts_hold_for_old_sessions() {
        let mut table = table(5000, 500, 300);
        for number in 0..5000 {
            add(&mut table, number, Tick(0));
        }
        let mut now = Tick(30);
        assert!(sweep_all(&mut table, now).is_empty());
        table.set_timeouts(timeouts(5, 3));
        table.check_invariants(&AddressBook::new());
        for _ in 0..11 {
            now = now.after(1);
            sweep_all(&mut table, now);
        }
        assert!(table.is_empty());
    }

    #[test]
    fn a_late_call_catches_up_with_one_pass() {
        let mut table = table(100_000, 5, 3);
        for number in 0..50 {
            add(&mut table, number, Tick(0));
        }
        assert_eq!(sweep_all(&mut table, Tick(100_000)).len(), 50);
    }
}
