//! Which sessions get entries, what stands in them, and how they end.

use crate::config::PickupGuarantee;
use crate::event::RouteTarget;
use crate::fast_path::{Change, Entry, Flow};
use crate::flow::{Direction, PortId, Protocol};
use crate::session::{Numbers, Session, SessionFlags, SessionId, Tracker};
use crate::sync::Copies;
use crate::time::Time;

use super::{DIRECTIONS, MOST_CANDIDATES, MOST_HOT, Place, SETTLES_AFTER, Way};
use crate::gateway::{Gateway, Role};

impl Gateway {
    /// A packet of a session has passed which makes the session worth another look: it is one of
    /// many, or the session has entries and the packet came here all the same.
    #[cold]
    pub(in crate::gateway) fn note_fast(&mut self, id: SessionId) {
        if self.fast_path.memory.is_none() {
            return;
        }
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        if session.flags.contains(SessionFlags::OFFLOADED) {
            self.check_place(id);
            self.tell_numbers(id);
            self.count_tally();
        } else if self.fast_path.candidates.len() < MOST_CANDIDATES {
            self.fast_path.candidates.push(id);
        }
    }

    /// Ends the entries of a session that may no longer have them.
    pub(super) fn check_place(&mut self, id: SessionId) {
        let Some(number) = self.fast_path.place_of(id) else {
            return;
        };
        let ways = self.fast_ways(id);
        let Some(Some(place)) = self.fast_path.places.get(number as usize) else {
            return;
        };
        let epoch = self
            .fast_path
            .group_cell(place.group)
            .map(|cell| cell.epoch());
        if ways != Some(place.ways) || epoch != Some(place.epoch) {
            self.fast_path.stop(number);
        }
    }

    /// The program learns what the gateway has seen of a session itself.
    fn tell_numbers(&self, id: SessionId) {
        let (Some(number), Some(memory)) = (self.fast_path.place_of(id), self.fast_path.memory)
        else {
            return;
        };
        if let Some(Tracker::Tcp(tracker)) = self.sessions.get(id).map(|session| &session.tracker)
            && let Some(numbers) = tracker.numbers()
        {
            memory.sessions[number as usize].advance(&numbers);
        }
    }

    /// The ways of a session's packets, by direction, if the program may forward them.
    pub(in crate::gateway) fn fast_ways(&self, id: SessionId) -> Option<[Way; 2]> {
        let session = self.sessions.get(id)?;
        let is_held = match self.guarantee_of(session.policy) {
            PickupGuarantee::Off => true,
            _ => self
                .copies_of(id)
                .is_some_and(|(_, _, copies)| copies == Copies::Held),
        };
        let barred = SessionFlags(
            SessionFlags::WAITING.0
                | SessionFlags::TURNS_BACK.0
                | SessionFlags::SPREAD.0
                | SessionFlags::REMOTE.0,
        );
        let is_simple = match (&session.tracker, session.protocol) {
            (Tracker::Tcp(tracker), _) => tracker.numbers().is_some(),
            (_, protocol) => protocol == Protocol::UDP,
        };
        let may = is_held
            && is_simple
            && session.flags.contains(SessionFlags::REPLIED)
            && !session.flags.intersects(barred)
            && self.role(session.group) == Role::Primary
            && !self.sessions.table().is_stale(session)
            && !self.is_capturing()
            && !self.rules.passes_on();
        if !may {
            return None;
        }
        let [out, back] = DIRECTIONS.map(|direction| self.fast_way(session, direction));
        Some([out?, back?])
    }

    fn fast_way(&self, session: &Session, direction: Direction) -> Option<Way> {
        let book = self.sessions.book();
        let (ingress, egress) = session.ports(direction);
        let interface = |port: PortId| *self.fast_path.interfaces.get(port.index())?;
        let works = |port| self.rules.port(port).source_check && self.links.works(port);
        if !works(ingress) || !works(egress) {
            return None;
        }
        let to = session.translated(direction, book);
        // What this machine itself receives does not leave by a port.
        if self.links.kernel_has(to.dst) || self.is_own_address(&to.dst) {
            return None;
        }
        let RouteTarget::Port { gateway, .. } = self.routes.by_port(egress, &to.dst)? else {
            return None;
        };
        let next_hop = gateway.unwrap_or(to.dst);
        let mtu = self.routes.lookup(&to.dst)?.mtu.unwrap_or(u32::MAX);
        let flow = Flow {
            key: session.key(direction, book),
            interface: interface(ingress)?,
        };
        (next_hop.family() == to.dst.family()).then_some(Way {
            flow,
            next_hop,
            interface: interface(egress)?,
            mtu: mtu.min(self.links.link(egress).mtu),
        })
    }

    /// Gives a session entries, if it may have them and there is room.
    pub(super) fn enter(&mut self, now: Time, id: SessionId) {
        if self.fast_path.place_of(id).is_some() {
            return;
        }
        let Some(ways) = self.fast_ways(id) else {
            return;
        };
        self.settle_places(now);
        let (Some(memory), Some(number)) = (self.fast_path.memory, self.fast_path.free.pop())
        else {
            self.fast_path.counters.no_room += 1;
            return;
        };
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let Some(cell) = self.fast_path.group_cell(session.group) else {
            return;
        };
        self.fast_path.serial = self.fast_path.serial.wrapping_add(1).max(1);
        let (serial, epoch, group) = (self.fast_path.serial, cell.epoch(), session.group);
        let numbers = match &session.tracker {
            Tracker::Tcp(tracker) => tracker.numbers().unwrap_or_default(),
            _ => Numbers::default(),
        };
        memory.sessions[number as usize].begin(now, serial, &numbers);
        for (direction, way) in DIRECTIONS.into_iter().zip(ways) {
            let (shift, is_incomplete) = match &session.tracker {
                Tracker::Tcp(tracker) => (tracker.shift_of(direction), tracker.is_incomplete()),
                _ => (0, false),
            };
            let entry = Entry {
                to: session.translated(direction, self.sessions.book()),
                next_hop: way.next_hop,
                interface: way.interface,
                mtu: way.mtu,
                group,
                epoch,
                session: number,
                serial,
                direction,
                shift,
                is_incomplete,
            };
            self.fast_path.changes.push(Change::Insert {
                flow: way.flow.encode(),
                entry: entry.encode(&way.flow.key),
            });
        }
        self.fast_path.places[number as usize] = Some(Place {
            id,
            group,
            epoch,
            ways,
            is_stopped: false,
        });
        self.fast_path.by_session.insert(id.0, number);
        self.fast_path.counters.entered += 1;
        if self.cluster().is_some() && self.fast_path.hot.len() < MOST_HOT {
            self.fast_path.hot.push(number);
        }
        self.sessions.edit(id, |session, _| {
            session.flags.set(SessionFlags::OFFLOADED);
        });
        self.renew_lease(now);
    }

    /// A session ends, or changes in a way that its entries do not show: they end first.
    pub(in crate::gateway) fn leave_fast_path(&mut self, now: Time, id: SessionId) {
        let is_offloaded = |session: &Session| session.flags.contains(SessionFlags::OFFLOADED);
        if !self.sessions.get(id).is_some_and(is_offloaded) {
            return;
        }
        if let Some(number) = self.fast_path.place_of(id) {
            self.fast_path.stop(number);
            self.free_place(now, number);
            self.count_tally();
        }
    }

    /// The session takes over what was seen of it, and no longer has a place.
    pub(super) fn free_place(&mut self, now: Time, number: u32) {
        let Some(Some(place)) = self.fast_path.places.get(number as usize) else {
            return;
        };
        let id = place.id;
        if self.fast_path.place_of(id) != Some(number) {
            return;
        }
        self.absorb_session(id);
        self.sessions.edit(id, |session, _| {
            session.flags.clear(SessionFlags::OFFLOADED);
        });
        self.fast_path.by_session.remove(&id.0);
        self.fast_path
            .settling
            .push_back((now + SETTLES_AFTER, number));
    }

    /// Places whose sessions have left some time ago can be used again. What was counted since
    /// belongs to those sessions, unless they have ended.
    pub(super) fn settle_places(&mut self, now: Time) {
        while let Some((at, number)) = self.fast_path.settling.front().copied()
            && at <= now
        {
            self.fast_path.settling.pop_front();
            let Some(place) = self.fast_path.places[number as usize].take() else {
                continue;
            };
            self.fast_path.free.push(number);
            self.count_late(&place, number);
        }
    }

    pub(super) fn count_late(&mut self, place: &Place, number: u32) {
        let Some(memory) = self.fast_path.memory else {
            return;
        };
        let cell = &memory.sessions[number as usize];
        let taken = DIRECTIONS.map(|direction| cell.take(direction));
        let (last, original) = (cell.last().tick(), place.ways[0].flow.key);
        if taken == [(0, 0); 2] {
            return;
        }
        let fast_path = &mut self.fast_path;
        self.sessions.edit(place.id, |session, around| {
            if session.key(Direction::Original, around.book) != original {
                return;
            }
            for (direction, (packets, bytes)) in DIRECTIONS.into_iter().zip(taken) {
                session.packets[direction as usize] += packets;
                session.bytes[direction as usize] += bytes;
                fast_path.count(session, direction, packets, bytes, last);
            }
        });
    }
}
