//! The connections between units, as `os::quic` provides them: heartbeats in datagrams, and a
//! reliable stream for replication, on every link between every two units.
//!
//! A connection whose link is cut stalls, and ends after an idle timeout; its end is told to both
//! units, at different times. Bytes that were written and not received are lost then. The unit of
//! the smaller name dials again.

use std::collections::VecDeque;
use std::time::Duration;

use tandemgw_core::flow::{LinkId, PeerId};
use tandemgw_core::time::Time;

use crate::liar::emptied;
use crate::setup::{NAMES, peer_id, unit_of};
use crate::world::{Death, News, World};

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Heartbeat,
    Sync,
}

/// A connection between two units over one link.
#[derive(Clone, Debug)]
pub struct Conn {
    pub kind: Kind,
    pub units: [usize; 2],
    pub link: usize,
    pub up: bool,
    /// Counts the connections that there were.
    pub serial: u64,
    /// Bytes of the stream per millisecond, if that is limited.
    pub rate: Option<usize>,
    stalled_since: Option<Time>,
    retry: Time,
    ends: [End; 2],
}

/// One unit's end: what it has heard of the connection, and what it sends.
#[derive(Clone, Debug, Default)]
struct End {
    /// The unit knows of this connection.
    known: Option<u64>,
    /// Events for the unit are in order.
    last: Time,
    /// Written, and held back since the link is cut.
    stalled: VecDeque<Vec<u8>>,
    in_flight: usize,
    blocked: bool,
}

const IDLE_TIMEOUT: Duration = Duration::from_millis(250);

/// Bytes per millisecond of streams that are not as fast as they are written.
const RATES: [usize; 3] = [50, 200, 2000];

fn transfer_time(bytes: usize, rate: Option<usize>) -> Duration {
    rate.map_or(Duration::ZERO, |rate| {
        Duration::from_micros((bytes * 1000 / rate) as u64)
    })
}

impl Conn {
    fn new(kind: Kind, units: [usize; 2], link: usize) -> Conn {
        Conn {
            kind,
            units,
            link,
            up: false,
            serial: 0,
            rate: None,
            stalled_since: None,
            retry: Time::ZERO,
            ends: Default::default(),
        }
    }

    fn end_of(&self, unit: usize) -> usize {
        usize::from(self.units[1] == unit)
    }
}

/// All connections between `units` units over `links` links.
pub fn connections(units: usize, links: usize) -> Vec<Conn> {
    let mut all = Vec::new();
    for one in 0..units {
        for other in one + 1..units {
            for link in 0..links {
                all.push(Conn::new(Kind::Heartbeat, [one, other], link));
                all.push(Conn::new(Kind::Sync, [one, other], link));
            }
        }
    }
    all
}

impl World {
    fn find(&self, kind: Kind, unit: usize, peer: PeerId, link: LinkId) -> usize {
        let other = unit_of(unit, peer);
        let units = [unit.min(other), unit.max(other)];
        let found =
            |conn: &Conn| conn.kind == kind && conn.units == units && conn.link == link.index();
        self.conns.iter().position(found).expect("a connection")
    }

    /// Whether packets get from `from` to `to` over `link`.
    pub fn passes(&self, link: usize, from: usize, to: usize) -> bool {
        let has_carrier = |unit: usize| self.units[unit].carrier[link];
        !self.cuts[link][from][to]
            && !self.cut_off[from][to]
            && has_carrier(from)
            && has_carrier(to)
    }

    fn works(&self, conn: &Conn) -> bool {
        let [one, other] = conn.units;
        self.is_alive(one)
            && self.is_alive(other)
            && self.lists(one, other)
            && self.lists(other, one)
            && self.passes(conn.link, one, other)
            && self.passes(conn.link, other, one)
    }

    /// Whether the file of a unit names another one.
    fn lists(&self, unit: usize, other: usize) -> bool {
        let peers = self.shape.peers_of(unit, &self.units[unit].rules);
        peers.contains(&other)
    }

    /// After a reload: connections to those that are no longer peers end at once.
    pub fn close_to_strangers(&mut self, unit: usize) {
        for at in 0..self.conns.len() {
            let Conn { units, up, .. } = self.conns[at];
            let other = units[usize::from(units[0] == unit)];
            if up && units.contains(&unit) && !self.lists(unit, other) {
                self.end(at, Duration::from_millis(2));
            }
        }
    }

    /// Whether heartbeats go both ways between two units.
    pub fn hear_each_other(&self, one: usize, other: usize) -> bool {
        let connects = |conn: &Conn| {
            conn.kind == Kind::Heartbeat
                && conn.units == [one.min(other), one.max(other)]
                && conn.up
                && conn.stalled_since.is_none()
                && self.works(conn)
        };
        self.conns.iter().any(connects)
    }

    /// Dials, and lets connections end that carry nothing.
    pub fn tend_connections(&mut self) {
        for at in 0..self.conns.len() {
            let works = self.works(&self.conns[at]);
            let jitter = self.random.up_to(Duration::from_millis(150));
            let is_slow = self.random.chance(self.faults.slow_streams);
            let rate = is_slow.then(|| RATES[self.random.below(RATES.len())]);
            let now = self.now;
            let conn = &mut self.conns[at];
            if conn.up && works {
                conn.stalled_since = None;
                self.release_stalled(at);
            } else if conn.up {
                let since = *conn.stalled_since.get_or_insert(now);
                if now.since(since) > IDLE_TIMEOUT + jitter {
                    self.end(at, Duration::from_millis(20));
                }
            } else if works && now >= conn.retry {
                conn.up = true;
                conn.serial += 1;
                conn.stalled_since = None;
                conn.rate = rate;
                for end in 0..2 {
                    self.tell_end(at, end, News::Up, Duration::from_millis(2));
                }
            }
        }
    }

    /// Ends a connection; each unit hears of it within `most`.
    fn end(&mut self, at: usize, most: Duration) {
        let retry =
            self.now + Duration::from_millis(30) + self.random.up_to(Duration::from_millis(100));
        let conn = &mut self.conns[at];
        conn.up = false;
        conn.stalled_since = None;
        conn.retry = retry.max(self.now + most);
        for end in &mut conn.ends {
            end.stalled.clear();
            end.in_flight = 0;
            end.blocked = false;
        }
        if self.random.chance(500) {
            self.lose_in_flight(at);
        }
        for end in 0..2 {
            self.tell_end(at, end, |conn, _| News::Down(conn), most);
        }
    }

    fn lose_in_flight(&mut self, at: usize) {
        for unit in self.conns[at].units {
            self.units[unit]
                .news
                .retain(|_, news| !matches!(news, News::Bytes { conn, .. } if *conn == at));
        }
    }

    /// The process of `unit` is gone.
    pub fn break_connections_of(&mut self, unit: usize, death: Death) {
        let tells = death != Death::PowerLoss;
        for at in 0..self.conns.len() {
            let conn = &self.conns[at];
            if !conn.units.contains(&unit) {
                continue;
            }
            let other = conn.units[usize::from(conn.units[0] == unit)];
            let (link, kind, was_up) = (conn.link, conn.kind, conn.up);
            if was_up {
                let soon = match tells {
                    true => Duration::from_millis(1),
                    false => IDLE_TIMEOUT,
                };
                self.end(at, soon);
            }
            let conn = &mut self.conns[at];
            let end = conn.end_of(unit);
            conn.ends[end] = End::default();
            if tells && kind == Kind::Heartbeat && self.passes(link, unit, other) {
                let peer = peer_id(other, unit);
                // The process was watched since it was heard.
                if was_up && death == Death::Killed {
                    self.tell_soon(other, News::Ended(peer));
                }
                self.tell_soon(other, News::Refused(peer));
            }
        }
    }

    /// Tells one end, after what it was told before.
    fn tell_end(&mut self, at: usize, end: usize, news: fn(usize, u64) -> News, most: Duration) {
        let delay = self.random.up_to(most);
        let conn = &mut self.conns[at];
        let when = (self.now + delay).max(conn.ends[end].last);
        conn.ends[end].last = when;
        let (unit, news) = (conn.units[end], news(at, conn.serial));
        self.tell(unit, when, news);
    }

    /// Sends a heartbeat; it is lost if there is no connection.
    pub fn send_datagram(&mut self, unit: usize, peer: PeerId, link: LinkId, bytes: &[u8]) {
        let at = self.find(Kind::Heartbeat, unit, peer, link);
        let to = unit_of(unit, peer);
        if !self.conns[at].up || !self.passes(link.index(), unit, to) {
            return;
        }
        let copies = 1 + u32::from(self.random.chance(self.faults.heartbeat_copies));
        for _ in 0..copies {
            if self.random.chance(self.faults.heartbeat_loss) {
                continue;
            }
            let news = News::Datagram {
                peer: peer_id(to, unit),
                link,
                bytes: bytes.to_vec(),
            };
            self.tell_soon(to, news);
        }
    }

    /// Passes a packet on, or a piece of one. It is lost if there is no connection, and none goes
    /// through more than two units.
    pub fn pass_on(&mut self, unit: usize, peer: PeerId, link: LinkId, bytes: Vec<u8>) {
        const HEADER: usize = 13;
        let lately = self.passed[unit].get(&bytes[HEADER..]);
        assert!(
            lately.is_none_or(|at| self.now.since(*at) > Duration::from_millis(50)),
            "{} passes on what it was passed",
            NAMES[unit]
        );
        let at = self.find(Kind::Sync, unit, peer, link);
        let to = unit_of(unit, peer);
        if !self.conns[at].up || !self.passes(link.index(), unit, to) {
            return;
        }
        self.passed[to].insert(bytes[HEADER..].to_vec(), self.now);
        let peer = peer_id(to, unit);
        self.tell_soon(to, News::PassedOn { peer, bytes });
    }

    /// Appends to the stream; returns how many bytes it took.
    pub fn write_sync(&mut self, unit: usize, peer: PeerId, link: LinkId, bytes: &[u8]) -> usize {
        let at = self.find(Kind::Sync, unit, peer, link);
        let window = self.faults.stream_window;
        let conn = &mut self.conns[at];
        let index = conn.end_of(unit);
        if !conn.up || conn.ends[index].known != Some(conn.serial) {
            return 0;
        }
        let end = &mut conn.ends[index];
        let taken = bytes.len().min(window.saturating_sub(end.in_flight));
        end.in_flight += taken;
        end.blocked = taken < bytes.len();
        let emptied = (self.liar == Some(unit_of(unit, peer))).then(|| emptied(&bytes[..taken]));
        let mut rest = emptied.as_deref().unwrap_or(&bytes[..taken]);
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(1 + self.random.below(rest.len()));
            rest = others;
            self.conns[at].ends[index].stalled.push_back(piece.to_vec());
        }
        if self.works(&self.conns[at]) {
            self.release_stalled(at);
        }
        taken
    }

    fn release_stalled(&mut self, at: usize) {
        for index in 0..2 {
            while let Some(bytes) = self.conns[at].ends[index].stalled.pop_front() {
                let delay = self.random.up_to(self.faults.most_delay);
                let conn = &mut self.conns[at];
                let sent = (self.now + delay).max(conn.ends[1 - index].last);
                let when = sent + transfer_time(bytes.len(), conn.rate);
                conn.ends[1 - index].last = when;
                let (unit, serial) = (conn.units[1 - index], conn.serial);
                self.tell(
                    unit,
                    when,
                    News::Bytes {
                        conn: at,
                        serial,
                        bytes,
                    },
                );
            }
        }
    }

    /// `unit` has read bytes of a stream.
    pub fn note_read(&mut self, at: usize, unit: usize, length: usize, serial: u64) {
        let conn = &mut self.conns[at];
        if conn.serial != serial || !conn.up {
            return;
        }
        let writer = 1 - conn.end_of(unit);
        let end = &mut conn.ends[writer];
        end.in_flight = end.in_flight.saturating_sub(length);
        if std::mem::take(&mut end.blocked) {
            self.tell_end(at, writer, News::Writable, Duration::from_millis(1));
        }
    }

    /// `unit` hears that a connection is up or down.
    pub fn note_known(&mut self, at: usize, unit: usize, serial: Option<u64>) {
        let conn = &mut self.conns[at];
        let end = conn.end_of(unit);
        conn.ends[end].known = serial;
    }

    /// `unit` closes a stream; the other unit hears of it later.
    pub fn close_sync(&mut self, unit: usize, peer: PeerId, link: LinkId) {
        let at = self.find(Kind::Sync, unit, peer, link);
        let conn = &self.conns[at];
        let known = conn.ends[conn.end_of(unit)].known;
        if conn.up && known == Some(conn.serial) {
            self.end(at, Duration::from_millis(2));
        }
    }

    /// A stream that ends for no reason.
    pub fn break_some_stream(&mut self) {
        let at = self.random.below(self.conns.len());
        if self.conns[at].up {
            self.end(at, Duration::from_millis(5));
        }
    }

    /// Limits the speed of the streams between two units, in bytes per millisecond, while they
    /// last.
    pub fn slow_down(&mut self, one: usize, other: usize, rate: usize) {
        for at in self.streams_between(one, other) {
            self.conns[at].rate = Some(rate);
        }
    }

    /// The streams between two units end, and are opened again.
    pub fn break_stream(&mut self, one: usize, other: usize) {
        for at in self.streams_between(one, other) {
            if self.conns[at].up {
                self.end(at, Duration::from_millis(5));
            }
        }
    }

    fn streams_between(&self, one: usize, other: usize) -> Vec<usize> {
        let units = [one.min(other), one.max(other)];
        let is_it = |conn: &Conn| conn.kind == Kind::Sync && conn.units == units;
        (0..self.conns.len())
            .filter(|at| is_it(&self.conns[*at]))
            .collect()
    }

    /// Two units are on different parts of all networks, or on the same again.
    pub fn cut_off_fully(&mut self, one: usize, other: usize, cut: bool) {
        self.cut_off[one][other] = cut;
        self.cut_off[other][one] = cut;
        for port in &mut self.units[other].ports {
            port.part = usize::from(cut);
        }
    }
}
