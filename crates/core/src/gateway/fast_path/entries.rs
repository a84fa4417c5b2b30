//! Which sessions get entries, what stands in them, and how they end.

use crate::config::PickupGuarantee;
use crate::event::RouteTarget;
use crate::fast_path::{Entry, Flow, Way};
use crate::flow::{Direction, Family, PortId, Protocol};
use crate::session::{Numbers, Session, SessionFlags, SessionId, Tracker};
use crate::sync::Copies;
use crate::time::Time;

use super::{MOST_CANDIDATES, MOST_HOT, Place};
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

    /// Ends the entries of a session that may no longer have them, or that lead elsewhere now.
    pub(super) fn check_place(&mut self, id: SessionId) {
        let Some(number) = self.fast_path.place_of(id) else {
            return;
        };
        let Some(cell) = self.fast_path.cell(number) else {
            return;
        };
        let entry = self.entry_of(id).ok();
        if !entry.is_some_and(|entry| cell.leads_like(&entry)) {
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

    /// What becomes of the packets of a session if the program may forward them; otherwise why not.
    fn entry_of(&self, id: SessionId) -> Result<Entry, &str> {
        let session = self.sessions.get(id).ok_or("it has ended")?;
        if let Some(why) = self.why_slow(id, session) {
            return Err(why);
        }
        let [out, back] = Direction::ALL.map(|direction| self.fast_way(session, direction));
        let cell = self.fast_path.group_cell(session.group);
        let (shifts, is_incomplete) = match &session.tracker {
            Tracker::Tcp(tracker) => (
                Direction::ALL.map(|direction| tracker.shift_of(direction)),
                tracker.is_incomplete(),
            ),
            _ => ([0; 2], false),
        };
        Ok(Entry {
            ways: [out?, back?],
            group: session.group,
            epoch: cell.ok_or("there is no fast path")?.epoch(),
            shifts,
            is_incomplete,
        })
    }

    /// Why the kernel does not forward the packets of a session; none where there is no fast path.
    pub fn why_not_offloaded(&self, id: SessionId) -> Option<&str> {
        self.fast_path.memory?;
        let entry = self.entry_of(id);
        Some(
            entry
                .err()
                .unwrap_or("it has had few packets, or found no room"),
        )
    }

    /// Why a session stays with the process, whatever its ways are.
    fn why_slow(&self, id: SessionId, session: &Session) -> Option<&str> {
        let (ingress, egress) = session.ports(Direction::Original);
        let barred = |port: PortId| self.fast_path.barred.get(port.index())?.as_deref();
        if let Some(why) = barred(ingress).or_else(|| barred(egress)) {
            return Some(why);
        }
        let is_held = || match self.guarantee_of(session.policy) {
            PickupGuarantee::Off => true,
            _ => self
                .copies_of(id)
                .is_some_and(|(_, _, copies)| copies == Copies::Held),
        };
        let is_simple = match (&session.tracker, session.protocol) {
            (Tracker::Tcp(tracker), _) => tracker.numbers().is_some(),
            (_, protocol) => protocol == Protocol::UDP,
        };
        let has = |flag| session.flags.contains(flag);
        let reasons = [
            (self.fast_path.memory.is_none(), "there is no fast path"),
            (
                self.role(session.group) != Role::Primary,
                "this unit is not primary",
            ),
            (self.rules.passes_on(), "its packets may come to any unit"),
            (self.is_capturing(), "a capture sees all packets"),
            (
                has(SessionFlags::TURNS_BACK),
                "it turns back at the port that it comes by",
            ),
            (has(SessionFlags::SPREAD), "its way is chosen among several"),
            (!has(SessionFlags::REPLIED), "nobody has answered yet"),
            (
                has(SessionFlags::REMOTE) || self.sessions.table().is_stale(session),
                "it came from a peer, and had no packet here since",
            ),
            (!is_simple, "not TCP in full flow, nor UDP"),
            (
                has(SessionFlags::WAITING) || !is_held(),
                "the peers do not hold it yet",
            ),
        ];
        let first = reasons.into_iter().find(|(holds, _)| *holds);
        first.map(|(_, why)| why)
    }

    fn fast_way(&self, session: &Session, direction: Direction) -> Result<Way, &str> {
        let book = self.sessions.book();
        let (ingress, egress) = session.ports(direction);
        let interface = |port: PortId| {
            let interfaces = &self.fast_path.interfaces;
            let number = interfaces.get(port.index()).copied().flatten();
            // The program reads a header of Ethernet.
            if !self.is_ethernet(port) {
                return Err("a port is not Ethernet");
            }
            number.ok_or("a port is not in the fast path")
        };
        let works = |port| self.links.works(port);
        if !works(ingress) || !works(egress) {
            return Err("a port does not work");
        }
        let comes_by = interface(ingress)?;
        interface(egress)?;
        let checks = |port| self.rules.port(port).source_check;
        if !checks(ingress) || !checks(egress) {
            return Err("a port has source-check = false");
        }
        let to = session.translated(direction, book);
        if self.links.kernel_has(to.dst) || self.is_own_address(&to.dst) {
            return Err("it ends at this machine");
        }
        const NO_ROUTE: &str = "there is no route by its port";
        let route = self.routes.by_port(egress, &to.dst).ok_or(NO_ROUTE)?;
        let RouteTarget::Port { gateway, .. } = route else {
            return Err(NO_ROUTE);
        };
        let next_hop = gateway.unwrap_or(to.dst);
        let is_translated = to != session.key(direction, book);
        if next_hop.family() == Family::V6 && is_translated && !self.fast_path.knows_ipv6 {
            return Err("translated IPv6 needs Linux 6.16");
        }
        if next_hop.family() != to.dst.family() {
            return Err("its next hop is of the other family");
        }
        if self.fast_path.lost.contains_key(&(egress, next_hop)) {
            return Err("its next hop does not answer");
        }
        let hop = self.routes.lookup(&to.dst).ok_or(NO_ROUTE)?;
        if hop.is_special {
            return Err("the kernel chooses among next hops, or encapsulates");
        }
        Ok(Way {
            flow: Flow {
                key: session.key(direction, book),
                interface: comes_by,
            },
            next_hop,
            mtu: hop.mtu.unwrap_or(u32::MAX).min(self.links.link(egress).mtu),
        })
    }

    /// Gives a session entries, if it may have them and there is room.
    pub(super) fn enter(&mut self, now: Time, id: SessionId) {
        if self.fast_path.place_of(id).is_some() {
            return;
        }
        let Ok(entry) = self.entry_of(id) else {
            return;
        };
        self.settle_places(now);
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let numbers = match &session.tracker {
            Tracker::Tcp(tracker) => tracker.numbers().unwrap_or_default(),
            _ => Numbers::default(),
        };
        let ports = session.ports(Direction::Original);
        let fast_path = &mut self.fast_path;
        fast_path.serial = fast_path.serial.wrapping_add(1).max(1);
        let begin = (now, fast_path.serial);
        let enters = |place: &mut u32| {
            let memory = fast_path.memory;
            memory.is_some_and(|memory| memory.enter(*place, begin, &numbers, &entry))
        };
        let Some(number) = fast_path.free.pop_if(enters) else {
            fast_path.counters.no_room += 1;
            return;
        };
        fast_path.places[number as usize] = Some(Place { id, ports });
        fast_path.by_session.insert(id.0, number);
        fast_path.counters.entered += 1;
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
        self.fast_path.part(now, id, number);
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

    fn count_late(&mut self, place: &Place, number: u32) {
        let Some(memory) = self.fast_path.memory else {
            return;
        };
        let cell = &memory.sessions[number as usize];
        let (last, group) = (cell.last().tick(), cell.group());
        for direction in Direction::ALL {
            let (packets, bytes) = cell.take(direction);
            if packets == 0 {
                continue;
            }
            let ports = match direction {
                Direction::Original => place.ports,
                Direction::Reply => (place.ports.1, place.ports.0),
            };
            let counted = (direction, packets, bytes);
            self.fast_path.count(ports, group, counted, last);
            self.sessions.edit(place.id, |session, around| {
                if cell.is_of(&session.key(Direction::Original, around.book)) {
                    session.packets[direction as usize] += packets;
                    session.bytes[direction as usize] += bytes;
                }
            });
        }
    }
}
