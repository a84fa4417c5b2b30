//! After a change of routes or policies: does each session still go where a new one would?
//!
//! Sessions do not look at routes a packet; instead the whole table is passed once after a change, a
//! bounded piece at a time.

use crate::config::{Action, Nat};
use crate::event::RouteTarget;
use crate::flow::{Addr, Direction, PolicyId, PortId};
use crate::policy::Decision;
use crate::session::SessionId;
use crate::sync::Phase;
use crate::time::Time;

use super::Gateway;

/// Slots looked at in one go: some 50 µs.
const PIECE: u32 = 256;

/// Where the pass over the table stands.
#[derive(Default)]
pub struct Revalidation {
    cursor: Option<u32>,
    again: bool,
    /// Sessions of other units' groups were passed over.
    left_out: bool,
}

impl Revalidation {
    /// Begins a pass; if one is under way, another follows it.
    pub fn restart(&mut self) {
        match self.cursor {
            None => self.cursor = Some(0),
            Some(_) => self.again = true,
        }
    }

    /// Begins a pass if one is owed to sessions that this unit has just become primary for.
    pub fn catch_up(&mut self) {
        if std::mem::take(&mut self.left_out) {
            self.restart();
        }
    }

    pub fn is_running(&self) -> bool {
        self.cursor.is_some()
    }
}

enum Finding {
    Fine,
    Moved {
        in_port: PortId,
        out_port: PortId,
        policy: PolicyId,
    },
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
        // What another unit is primary for ends there; here it is only to be what it is there.
        let group = self.table.get(id).map(|session| session.group);
        if group.is_some_and(|group| !self.is_primary(group)) {
            self.revalidation.left_out = true;
            return;
        }
        match self.inspect(id) {
            Finding::Fine => {}
            Finding::Moved {
                in_port,
                out_port,
                policy,
            } => {
                if let Some(session) = self.table.get_mut(id) {
                    (session.in_port, session.out_port) = (in_port, out_port);
                    session.policy = policy;
                    let phase = Phase::of(session);
                    self.note_changed(id, phase);
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
        let in_port = if self.config.ports[session.in_port.index()].source_check {
            self.port_towards(&key.src, session.in_port)
        } else {
            Some(session.in_port)
        };
        let out_port = self.port_towards(&key.dst, session.out_port);
        let (Some(in_port), Some(out_port)) = (in_port, out_port) else {
            return Finding::Gone("route-changed");
        };
        if (in_port, out_port) == (session.in_port, session.out_port) {
            return Finding::Fine;
        }
        let translated = session.has_source_nat();
        if translated && out_port != session.out_port {
            return Finding::Gone("route-changed");
        }
        match self.ruleset.decide(in_port, out_port, &key) {
            Some(Decision {
                policy,
                action: Action::Accept,
                nat,
            }) if translated == (nat != Nat::Off) => Finding::Moved {
                in_port,
                out_port,
                policy,
            },
            _ => Finding::Gone("route-changed"),
        }
    }

    /// The port that leads to `addr` now, which was `before`; none if it is beyond all ports.
    fn port_towards(&self, addr: &Addr, before: PortId) -> Option<PortId> {
        match self.fib.lookup(addr).map(|hop| hop.target) {
            Some(RouteTarget::Port { port, .. }) => Some(port),
            // The route may come back: the link went down for a moment. Nothing can leak meanwhile,
            // since the kernel has no route either.
            Some(RouteTarget::Unreachable) | None => Some(before),
            Some(RouteTarget::Elsewhere) => None,
        }
    }
}
