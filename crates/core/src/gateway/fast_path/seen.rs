//! What the program has seen is taken over; and how long its entries may be in force.

use crate::flow::{Direction, PortId};
use crate::session::{Session, SessionFlags, SessionId};
use crate::time::{Tick, Time};

use super::{HOT_EACH, HOT_FROM, HOT_UNTIL, IDLE, LEASE, LOOKED_AT, LOOKS_EACH, MOST_HOT};
use crate::gateway::{Gateway, Role};

impl Gateway {
    /// Brings a session up to what the program has seen of it; returns bytes.
    pub(in crate::gateway) fn absorb_session(&mut self, id: SessionId) -> u64 {
        let fast_path = &mut self.fast_path;
        let absorbed = self.sessions.edit(id, |session, _| {
            match session.flags.contains(SessionFlags::OFFLOADED) {
                true => fast_path.absorb(id, session),
                false => 0,
            }
        });
        absorbed.unwrap_or(0)
    }

    /// Takes over what the program has seen, some sessions at a time, and ends entries that may no
    /// longer be.
    pub(in crate::gateway) fn look_at_fast_path(&mut self, now: Time) {
        if self.fast_path.memory.is_none() {
            return;
        }
        if now >= self.fast_path.next_lease {
            self.renew_lease(now);
        }
        self.look_at_hot(now);
        if now >= self.fast_path.next_look {
            self.fast_path.next_look = now + Tick::DURATION;
            let places = self.fast_path.places.len() as u32;
            let share = places.div_ceil(LOOKS_EACH);
            self.fast_path.due = (self.fast_path.due + share).min(places);
            self.settle_places(now);
            self.fast_path.forget_lost(now);
        }
        let count = self.fast_path.due.min(LOOKED_AT);
        self.fast_path.due -= count;
        let is_full = !self.fast_path.has_room();
        for _ in 0..count {
            let number = self.fast_path.cursor;
            self.fast_path.cursor = (number + 1) % self.fast_path.places.len().max(1) as u32;
            self.look_at(now, number, is_full);
        }
        self.count_tally();
    }

    fn look_at(&mut self, now: Time, number: u32, is_full: bool) {
        let Some(Some(place)) = self.fast_path.places.get(number as usize) else {
            return;
        };
        let id = place.id;
        let Some(cell) = self.fast_path.cell(number) else {
            return;
        };
        if self.fast_path.place_of(id) != Some(number) {
            return;
        }
        let session = self.sessions.get(id).filter(|session| {
            session.flags.contains(SessionFlags::OFFLOADED)
                && cell.is_of(&session.key(Direction::Original, self.sessions.book()))
        });
        if session.is_none() {
            // A peer has removed it.
            self.fast_path.stop(number);
            self.fast_path.part(now, id, number);
            return;
        }
        let bytes = self.absorb_session(id);
        self.check_place(id);
        let is_idle = |session: &Session| session.last_seen.after(IDLE) < now.tick();
        if is_full && self.sessions.get(id).is_some_and(is_idle) {
            self.fast_path.stop(number);
        }
        if !cell.is_in_force() {
            self.free_place(now, number);
        } else if bytes >= HOT_FROM && self.cluster().is_some() {
            let hot = &mut self.fast_path.hot;
            if hot.len() < MOST_HOT && !hot.contains(&number) {
                hot.push(number);
            }
        }
    }

    fn look_at_hot(&mut self, now: Time) {
        if now < self.fast_path.next_hot || self.fast_path.hot.is_empty() {
            return;
        }
        self.fast_path.next_hot = now + HOT_EACH;
        let mut hot = std::mem::take(&mut self.fast_path.hot);
        hot.retain(|number| {
            let place = self.fast_path.places[*number as usize].as_ref();
            let id = place.map(|place| place.id);
            id.is_some_and(|id| self.absorb_session(id) >= HOT_UNTIL)
        });
        self.fast_path.hot = hot;
    }

    /// Counts what was forwarded where packets that come here are counted at once.
    pub(super) fn count_tally(&mut self) {
        let tally = self.fast_path.tally.iter_mut().enumerate();
        for (port, tally) in tally {
            let tally = std::mem::take(tally);
            if tally.packets_in + tally.packets_out > 0 {
                let port = PortId::from_index(port);
                self.links
                    .count_in(port, tally.packets_in as usize, tally.bytes_in as usize);
                self.links
                    .count_out(port, tally.packets_out, tally.bytes_out);
                self.counters.forwarded += tally.packets_out;
            }
        }
        for (group, carried) in self.fast_path.carried.iter_mut().enumerate() {
            for (seen, at) in self.groups.traffic[group].seen.iter_mut().zip(carried) {
                *seen = (*seen).max(at.take());
            }
        }
    }

    /// When [`Gateway::look_at_fast_path`] has something to do.
    pub(in crate::gateway) fn poll_fast_timeout(&self, now: Time) -> Option<Time> {
        let fast_path = &self.fast_path;
        if fast_path.by_session.is_empty() && fast_path.settling.is_empty() {
            return None;
        }
        let hot = (!fast_path.hot.is_empty()).then_some(fast_path.next_hot);
        let look = match fast_path.due {
            0 => fast_path.next_look,
            _ => now,
        };
        let lease = (!fast_path.by_session.is_empty()).then_some(fast_path.next_lease);
        [hot, lease].into_iter().flatten().chain([look]).min()
    }

    /// The entries may be in force for a while from this turn of the loop on: a process that hangs
    /// forwards nothing when another unit takes over.
    pub(super) fn renew_lease(&mut self, now: Time) {
        let cluster = self.cluster();
        let lease = cluster.map_or(LEASE, |cluster| cluster.ha().undisputed_for());
        self.fast_path.next_lease = now + lease / 2;
        self.lease(now + lease);
    }

    fn lease(&self, until: Time) {
        for group in self.groups() {
            if self.role(group) == Role::Primary
                && let Some(cell) = self.fast_path.group_cell(group)
            {
                cell.lease(until);
            }
        }
    }
}
