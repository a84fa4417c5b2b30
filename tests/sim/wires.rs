//! The connections of a unit, as the core's pump sees them.

use std::collections::VecDeque;

use bytes::Bytes;
use tandemgw_core::flow::{LinkId, PeerId};
use tandemgw_core::pump::{DownReason, PeerEvent, Streams};

use crate::setup::{NAMES, peer_id, unit_of};
use crate::transport::Kind;
use crate::world::{News, World};

/// News that a unit has read, and not handled yet.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    heartbeats: VecDeque<News>,
    streams: VecDeque<News>,
    passed_on: VecDeque<News>,
    /// The rest of a piece.
    rest: Option<PeerEvent>,
    ended: Vec<PeerId>,
}

impl Heard {
    /// Whether a unit that reads no stream has something to read.
    pub fn has_streams(&self) -> bool {
        self.rest.is_some() || !self.streams.is_empty()
    }
}

/// The connections of `unit`.
pub struct Wires<'a> {
    world: &'a mut World,
    unit: usize,
    /// A stream that works may be closed.
    leaving: bool,
}

impl Wires<'_> {
    pub fn of(world: &mut World, unit: usize) -> Wires<'_> {
        let leaving = false;
        Wires {
            world,
            unit,
            leaving,
        }
    }

    pub fn leaving(world: &mut World, unit: usize) -> Wires<'_> {
        let leaving = true;
        Wires {
            world,
            unit,
            leaving,
        }
    }

    fn read(&mut self) {
        let (now, conns) = (self.world.now, &self.world.conns);
        let machine = &mut self.world.units[self.unit];
        let heard = &mut machine.heard;
        while let Some(entry) = machine.news.first_entry().filter(|e| e.key().0 <= now) {
            let news = entry.remove();
            match &news {
                News::Ended(peer) => heard.ended.push(*peer),
                News::Datagram { .. } | News::Refused(_) => heard.heartbeats.push_back(news),
                News::PassedOn { .. } => heard.passed_on.push_back(news),
                News::Bytes { .. } => heard.streams.push_back(news),
                News::Up(conn, _) | News::Down(conn) | News::Writable(conn, _) => {
                    match conns[*conn].kind {
                        Kind::Heartbeat => heard.heartbeats.push_back(news),
                        Kind::Sync => heard.streams.push_back(news),
                    }
                }
            }
        }
    }

    /// The unit's event for it; `None` if it is out of date.
    fn event(&mut self, news: News) -> Option<PeerEvent> {
        let conn = match news {
            News::Up(conn, _) | News::Down(conn) | News::Writable(conn, _) => conn,
            News::Bytes { conn, .. } => conn,
            News::Datagram { peer, link, bytes } => {
                let bytes = bytes.into();
                return Some(PeerEvent::Datagram { peer, link, bytes });
            }
            News::PassedOn { peer, bytes } => {
                let bytes = bytes.into();
                return Some(PeerEvent::PassedOn { peer, bytes });
            }
            News::Refused(peer) => {
                let link = LinkId(0);
                return Some(PeerEvent::Refused { peer, link });
            }
            News::Ended(_) => return None,
        };
        let Wires { world, unit, .. } = self;
        let (kind, peer, link) = world.end_of(conn, *unit);
        Some(match news {
            News::Up(_, serial) => {
                world.note_known(conn, *unit, Some(serial));
                match kind {
                    Kind::Heartbeat => PeerEvent::HeartbeatUp { peer, link },
                    Kind::Sync => PeerEvent::SyncUp { peer, link },
                }
            }
            News::Down(_) => {
                world.note_known(conn, *unit, None);
                let reason = DownReason::TimedOut;
                match kind {
                    Kind::Heartbeat => PeerEvent::HeartbeatDown { peer, link, reason },
                    Kind::Sync => PeerEvent::SyncDown { peer, link, reason },
                }
            }
            News::Writable(_, serial) => {
                if world.conns[conn].serial != serial {
                    return None;
                }
                PeerEvent::SyncWritable { peer, link }
            }
            News::Bytes { serial, bytes, .. } => {
                world.note_read(conn, *unit, bytes.len(), serial);
                let bytes = bytes.into();
                PeerEvent::SyncData { peer, link, bytes }
            }
            News::Datagram { .. } | News::PassedOn { .. } | News::Refused(_) | News::Ended(_) => {
                return None;
            }
        })
    }
}

impl Streams for Wires<'_> {
    fn ended(&mut self) -> Vec<PeerId> {
        self.read();
        std::mem::take(&mut self.world.units[self.unit].heard.ended)
    }

    fn receive(&mut self) {
        self.read();
    }

    fn poll_event(&mut self) -> Option<PeerEvent> {
        loop {
            let now = self.world.now;
            let machine = &mut self.world.units[self.unit];
            let heard = &mut machine.heard;
            let reads = now >= machine.reads_from;
            if heard.heartbeats.is_empty() && reads && heard.rest.is_some() {
                return heard.rest.take();
            }
            let news = match heard.heartbeats.pop_front() {
                None if reads && !heard.streams.is_empty() => heard.streams.pop_front(),
                None => heard.passed_on.pop_front(),
                news => news,
            }?;
            if let Some(event) = self.event(news) {
                return Some(event);
            }
        }
    }

    fn put_back(&mut self, peer: PeerId, link: LinkId, bytes: Bytes) {
        let rest = &mut self.world.units[self.unit].heard.rest;
        let former = rest.replace(PeerEvent::SyncData { peer, link, bytes });
        assert_eq!(former, None, "the pump polls what it put back");
    }

    fn write_sync(&mut self, peer: PeerId, link: LinkId, bytes: &[u8]) -> usize {
        self.world.write_sync(self.unit, peer, link, bytes)
    }

    fn close_sync(&mut self, peer: PeerId, link: LinkId) {
        let other = NAMES[unit_of(self.unit, peer)];
        let unit = NAMES[self.unit];
        assert!(
            self.leaving,
            "{unit} finds fault with the stream of {other}"
        );
        self.world.close_sync(self.unit, peer, link);
    }

    fn flush(&mut self) {}
}

impl World {
    /// The kind of a connection, and what it is to `unit`.
    fn end_of(&self, conn: usize, unit: usize) -> (Kind, PeerId, LinkId) {
        let conn = &self.conns[conn];
        let other = conn.units[usize::from(conn.units[0] == unit)];
        (conn.kind, peer_id(unit, other), LinkId(conn.link as u8))
    }
}
