//! After a change of routes or policies: does each session still go where a new one would?
//!
//! Sessions do not look at routes a packet; instead the whole table is passed once after a change, a
//! bounded piece at a time.

use crate::config::{Action, Nat};
use crate::event::RouteTarget;
use crate::flow::{Direction, PortId};
use crate::policy::Decision;
use crate::session::SessionId;
use crate::time::Time;

use super::Gateway;

/// Slots looked at in one go: some 50 µs.
const PIECE: u32 = 256;

/// Where the pass over the table stands.
#[derive(Default)]
pub struct Revalidation {
    cursor: Option<u32>,
    again: bool,
}

impl Revalidation {
    /// Begins a pass; if one is under way, another follows it.
    pub fn restart(&mut self) {
        match self.cursor {
            None => self.cursor = Some(0),
            Some(_) => self.again = true,
        }
    }

    pub fn is_running(&self) -> bool {
        self.cursor.is_some()
    }
}

enum Finding {
    Fine,
    Moved(PortId),
    Gone(&'static str),
}

impl Gateway {
    pub(super) fn revalidate_some(&mut self, now: Time) {
        let Some(cursor) = self.revalidation.cursor else {
            return;
        };
        let (sessions, next) = self.table.page(cursor, PIECE);
        let piece: Vec<SessionId> = sessions.map(|(id, _)| id).collect();
        for id in piece {
            self.revalidate(now, id);
        }
        self.revalidation.cursor = match next {
            None if std::mem::take(&mut self.revalidation.again) => Some(0),
            next => next,
        };
    }

    fn revalidate(&mut self, now: Time, id: SessionId) {
        match self.inspect(id) {
            Finding::Fine => {}
            Finding::Moved(port) => {
                if let Some(session) = self.table.get_mut(id) {
                    session.out_port = port;
                }
            }
            Finding::Gone(why) => {
                self.counters.cleared += 1;
                self.end_session(now, id, why);
            }
        }
    }

    fn inspect(&self, id: SessionId) -> Finding {
        let Some(session) = self.table.get(id) else {
            return Finding::Fine;
        };
        let leaving = session.translated(Direction::Original, &self.book);
        let mut key = session.key(Direction::Original, &self.book);
        (key.dst, key.dst_port) = (leaving.dst, leaving.dst_port);
        let egress = match self.fib.lookup(&key.dst).map(|hop| hop.target) {
            Some(RouteTarget::Port { port, .. }) => port,
            // The route may come back: the link went down for a moment. Nothing can leak meanwhile,
            // since the kernel has no route either.
            Some(RouteTarget::Unreachable) | None => return Finding::Fine,
            Some(RouteTarget::Elsewhere) => return Finding::Gone("route-changed"),
        };
        if egress == session.out_port {
            return Finding::Fine;
        }
        if session.has_source_nat() {
            return Finding::Gone("route-changed");
        }
        match self.ruleset.decide(session.in_port, egress, &key) {
            Some(Decision {
                action: Action::Accept,
                nat: Nat::Off,
                ..
            }) => Finding::Moved(egress),
            _ => Finding::Gone("route-changed"),
        }
    }
}
