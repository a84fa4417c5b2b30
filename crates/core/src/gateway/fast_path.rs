//! Which sessions the program in the kernel forwards ([`crate::fast_path`]), and what it has seen
//! of them.
//!
//! A session earns its entries by its packets (`note_fast`). They are made between packets
//! ([`Gateway::poll_fast_path`]), and hold as long as [`Gateway::entry_of`] says so: that is asked
//! again after each of its packets that comes here, and each second (`look_at_fast_path`). What
//! concerns many sessions, such as a change of role, ends all entries of a group first, by a new
//! epoch, and is done afterwards; the places of those sessions are found to be out of force later.
//!
//! Before a session is judged, shown or ended, it takes over what the program has seen (`absorb`).

mod entries;
mod seen;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::fast_path::{GroupCell, Memory, SessionCell};
use crate::flow::{Addr, Direction, GroupId, PortId};
use crate::session::{Numbers, Session, SessionId, Tracker};
use crate::time::{Tick, Time};

use super::Gateway;

/// How many packets of a direction lie between two times that a session asks for entries. The first
/// packets of a connection, and short ones, stay here.
pub(super) const EARNS_EACH: u64 = 16;

/// Sessions that wait for entries, and those that get them in one go: some 100 µs.
const MOST_CANDIDATES: usize = 1024;
const ENTERED_AT_A_TIME: usize = 64;
const ENTERS_AFTER: Duration = Duration::from_millis(10);
/// Places that are looked at in one go: some 100 µs, or 400 µs where all leave the kernel, as after
/// a change of role.
const LOOKED_AT: u32 = 256;
/// A place is looked at this often; a tenth of all each tick.
const LOOKS_EACH: u32 = 10;
/// How long entries stay in force while a gateway without peers does nothing.
const LEASE: Duration = Duration::from_secs(1);
/// A packet that was in the program when its entry ended has been counted by then.
const SETTLES_AFTER: Duration = Duration::from_millis(200);
/// A session that had no packet for this many ticks makes room for another.
const IDLE: u32 = 20;
/// With peers, busy connections are looked at this often: peers must not be told too late where
/// their numbers are (see [`crate::session::tcp`]).
const HOT_EACH: Duration = Duration::from_millis(1);
/// Bytes since the last look that make a connection busy, and below which it is no longer.
const HOT_FROM: u64 = 1 << 20;
const HOT_UNTIL: u64 = 4096;
const MOST_HOT: usize = 256;
/// Next hops that do not answer, and are remembered. Packets to others are lost in the kernel.
const MOST_LOST: usize = 1024;
const LOST_FOR: Duration = Duration::from_secs(60);

/// The sessions in the fast path.
#[derive(Default)]
pub(super) struct FastPath {
    /// None where there is no program.
    memory: Option<Memory>,
    /// The program can translate IPv6.
    knows_ipv6: bool,
    /// By port: why no session of it may have entries, whatever it is.
    barred: Vec<Option<String>>,
    /// By port: the interface whose packets the program sees.
    interfaces: Vec<Option<u32>>,
    /// By place in the memory.
    places: Vec<Option<Place>>,
    free: Vec<u32>,
    /// Places whose entries were ended, and when: packets may be in the program still.
    settling: VecDeque<(Time, u32)>,
    by_session: BTreeMap<u32, u32>,
    candidates: Vec<SessionId>,
    /// How long candidates have waited for the process to have no packets.
    waiting_since: Option<Time>,
    serial: u32,
    cursor: u32,
    /// Places still to be looked at.
    due: u32,
    next_look: Time,
    next_lease: Time,
    hot: Vec<u32>,
    next_hot: Time,
    /// Next hops that the kernel has looked for in vain, and when. It says so again as long as
    /// there are packets for them.
    lost: BTreeMap<(PortId, Addr), Time>,
    tally: Vec<Tally>,
    /// By group: when packets of its sessions were last forwarded, by direction.
    carried: Vec<[Option<Tick>; 2]>,
    counters: FastCounters,
}

/// What the fast path has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastCounters {
    /// Packets that it has forwarded.
    pub packets: u64,
    /// Their bytes of IP.
    pub bytes: u64,
    /// Sessions that have got entries.
    pub entered: u64,
    /// Sessions that found no room.
    pub no_room: u64,
}

/// Packets that were forwarded from a port to another, still to be counted there.
#[derive(Clone, Copy, Default)]
struct Tally {
    packets_in: u64,
    bytes_in: u64,
    packets_out: u64,
    bytes_out: u64,
}

struct Place {
    id: SessionId,
    /// Where packets of the original direction come in, and go out.
    ports: (PortId, PortId),
}

impl FastPath {
    /// From this instant no entry of `group` is in force.
    pub(super) fn stop_group(&mut self, group: GroupId) {
        if let Some(cell) = self.group_cell(group) {
            cell.next_epoch();
        }
        self.look_again();
    }

    /// The same for all groups.
    pub(super) fn stop_all(&mut self) {
        let groups = self.memory.map_or(0, |memory| memory.groups.len());
        for group in 0..groups {
            self.stop_group(GroupId(group as u8));
        }
    }

    /// Soon looks at all sessions: something may have changed for some of them.
    pub(super) fn look_again(&mut self) {
        self.due = self.places.len() as u32;
    }

    fn group_cell(&self, group: GroupId) -> Option<&'static GroupCell> {
        self.memory?.groups.get(usize::from(group.0))
    }

    fn place_of(&self, id: SessionId) -> Option<u32> {
        self.by_session.get(&id.0).copied()
    }

    /// What the program and the gateway share of the session in a place that is in use.
    fn cell(&self, number: u32) -> Option<&'static SessionCell> {
        self.places.get(number as usize)?.as_ref()?;
        self.memory?.sessions.get(number as usize)
    }

    /// Ends the entries of a session at once.
    fn stop(&self, number: u32) {
        if let Some(memory) = self.memory {
            memory.leave(number);
        }
    }

    /// Brings a session up to what the program has seen of it. Returns the bytes that it forwarded.
    pub(super) fn absorb(&mut self, id: SessionId, session: &mut Session) -> u64 {
        let Some(number) = self.place_of(id) else {
            return 0;
        };
        let Some(memory) = self.memory else { return 0 };
        let cell = &memory.sessions[number as usize];
        let (last, numbers) = (cell.last().tick(), cell.numbers());
        let taken = Direction::ALL.map(|direction| cell.take(direction));
        catch_up(session, last, &numbers, taken);
        for (direction, (packets, bytes)) in Direction::ALL.into_iter().zip(taken) {
            if packets > 0 {
                let (ports, group) = (session.ports(direction), session.group);
                self.count(ports, group, (direction, packets, bytes), last);
            }
        }
        taken.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Counts packets of a session: where they came in and went out, and how many.
    fn count(
        &mut self,
        (ingress, egress): (PortId, PortId),
        group: GroupId,
        (direction, packets, bytes): (Direction, u64, u64),
        at: Tick,
    ) {
        if let Some(tally) = self.tally.get_mut(ingress.index()) {
            tally.packets_in += packets;
            tally.bytes_in += bytes;
        }
        if let Some(tally) = self.tally.get_mut(egress.index()) {
            tally.packets_out += packets;
            tally.bytes_out += bytes;
        }
        if let Some(carried) = self.carried.get_mut(usize::from(group.0)) {
            carried[direction as usize] = Some(at);
        }
        self.counters.packets += packets;
        self.counters.bytes += bytes;
    }

    /// What [`FastPath::absorb`] would find, without taking it.
    pub(super) fn peek(&self, id: SessionId, session: &mut Session) {
        let (Some(number), Some(memory)) = (self.place_of(id), self.memory) else {
            return;
        };
        let cell = &memory.sessions[number as usize];
        let seen = Direction::ALL.map(|direction| cell.peek(direction));
        catch_up(session, cell.last().tick(), &cell.numbers(), seen);
    }

    /// A session no longer has its place, which is used again when no packet can be in the program
    /// for it.
    fn part(&mut self, now: Time, id: SessionId, number: u32) {
        self.by_session.remove(&id.0);
        self.settling.push_back((now + SETTLES_AFTER, number));
    }

    /// The kernel has looked for a next hop in vain. Its sessions go back to the process within a
    /// second, where their senders are told.
    pub(super) fn lose_next_hop(&mut self, now: Time, port: PortId, addr: Addr) {
        if self.memory.is_some() && self.lost.len() < MOST_LOST {
            self.lost.insert((port, addr), now);
        }
    }

    /// Those of which nothing was heard for long: nobody sends to them any more, or they have an
    /// entry of somebody else by now.
    fn forget_lost(&mut self, now: Time) {
        self.lost.retain(|_, at| now.since(*at) < LOST_FOR);
    }

    /// A next hop answers, or is looked for again from the start.
    pub(super) fn find_next_hop(&mut self, port: PortId, addr: Addr) {
        self.lost.remove(&(port, addr));
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty()
    }
}

fn catch_up(session: &mut Session, last: Tick, numbers: &Numbers, seen: [(u64, u64); 2]) {
    /// Segments without data are no longer than this, as a rule.
    const BARE: u64 = 80;
    session.last_seen = session.last_seen.max(last);
    for (direction, (packets, bytes)) in Direction::ALL.into_iter().zip(seen) {
        session.packets[direction as usize] += packets;
        session.bytes[direction as usize] += bytes;
        if session.is_connection() && bytes > packets * BARE {
            session.note_data(direction, u32::try_from(bytes).unwrap_or(u32::MAX));
        }
    }
    if let Tracker::Tcp(tracker) = &mut session.tracker {
        tracker.catch_up(numbers);
    }
}

impl Gateway {
    /// From now on there is a program in the kernel that shares this memory, with a place for as
    /// many sessions as that has. It may not be able to translate IPv6.
    pub fn use_fast_path(&mut self, memory: Memory, knows_ipv6: bool) {
        let sessions = memory.sessions.len();
        let ports = self.rules.config().ports.len();
        self.fast_path = FastPath {
            memory: Some(memory),
            knows_ipv6,
            interfaces: vec![None; ports],
            places: (0..sessions).map(|_| None).collect(),
            free: (0..sessions as u32).rev().collect(),
            tally: vec![Tally::default(); ports],
            carried: vec![[None; 2]; memory.groups.len()],
            ..FastPath::default()
        };
    }

    /// The program sees the packets that come in by this interface of `port`, or no longer sees
    /// those of the port.
    pub fn set_fast_interface(&mut self, port: PortId, interface: Option<u32>) {
        self.fast_path.stop_all();
        if let Some(place) = self.fast_path.interfaces.get_mut(port.index()) {
            *place = interface;
        }
    }

    /// Whether the interface of a port has an Ethernet address.
    pub fn is_ethernet(&self, port: PortId) -> bool {
        self.links.link(port).mac != [0; 6]
    }

    /// The shortest MTU that a route of IPv4 has set since the start, in bytes; `u32::MAX` if none
    /// has.
    pub fn shortest_route_mtu(&self) -> u32 {
        self.routes.shortest_mtu().unwrap_or(u32::MAX)
    }

    /// By port: the kernel does something with forwarded packets that the program would skip, so
    /// that none of the port may take it; or nothing any longer.
    pub fn bar_fast_path(&mut self, barred: Vec<Option<String>>) {
        if self.fast_path.barred != barred {
            self.fast_path.stop_all();
            self.fast_path.barred = barred;
        }
    }

    /// How many sessions have entries.
    pub fn fast_sessions(&self) -> usize {
        self.fast_path.by_session.len()
    }

    /// What the fast path has done, as far as it was looked at.
    pub fn fast_counters(&self) -> FastCounters {
        self.fast_path.counters
    }

    /// Gives sessions that have earned it entries. Call it after packets and after
    /// [`Gateway::handle_timeout`].
    ///
    /// Packets of a session that wait for the process when its entries are made are overtaken by
    /// those that come next, which a TCP sender takes for losses. So sessions get their entries
    /// when no packets wait (`is_drained`), or at last after 10 ms.
    pub fn poll_fast_path(&mut self, now: Time, is_drained: bool) {
        let fast_path = &mut self.fast_path;
        if !is_drained && !fast_path.candidates.is_empty() {
            let since = *fast_path.waiting_since.get_or_insert(now);
            if now.since(since) < ENTERS_AFTER {
                return;
            }
        }
        fast_path.waiting_since = None;
        let count = fast_path.candidates.len();
        let from = count.saturating_sub(ENTERED_AT_A_TIME);
        for id in fast_path.candidates.split_off(from) {
            self.enter(now, id);
        }
    }

    /// Whether [`Gateway::poll_fast_path`] has something to do.
    #[inline]
    pub fn has_fast_candidates(&self) -> bool {
        !self.fast_path.candidates.is_empty()
    }
}
