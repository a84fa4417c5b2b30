//! After a change of routes or of the configuration: may each session still take its path, as a new
//! one would?
//!
//! Sessions don't check routes or policies for each packet; instead the whole table is checked once
//! after a change, some slots at a time.

use crate::config::{Action, Nat};
use crate::event::RouteTarget;
use crate::flow::{Addr, Direction, FlowKey, PolicyId, PortId};
use crate::policy::Decision;
use crate::session::{Session, SessionFlags, SessionId, TranslatedAddr};
use crate::time::Time;

use super::Gateway;

/// Slots checked in one go: some 50 µs.
const PIECE: u32 = 256;

/// Policies that are compared with sessions in one go: some 100 µs.
const MATCHES: usize = 16_384;

/// Policies that a session is compared with at most, as a rule of thumb: see `policy/index.rs`.
const MOST_COMPARED: usize = 128;

/// The position of the pass over the table.
#[derive(Default)]
pub(super) struct Revalidation {
    cursor: Option<u32>,
    scope: Scope,
    /// Sessions ended by the pass in progress.
    ended: u64,
    /// Another pass must follow.
    next: Option<Scope>,
    /// For when this unit is primary: sessions of other units' groups were skipped, or come from a
    /// unit with other rules.
    scheduled: Option<Scope>,
    /// When a pass for that begins, at the latest.
    due: Option<Time>,
}

/// The changes that a session may be affected by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    /// The main table, addresses or links: sessions may have to leave by another port.
    pub routes: bool,
    /// Policies, pools or forwards.
    pub rules: bool,
    /// Which sessions are replicated: there may be more now.
    pub pickup: bool,
    /// This unit is no longer primary of a group: sessions that its peers don't know have to end
    /// here, because no other unit can end them, and a standby lets none expire.
    pub stepped_down: bool,
}

impl Scope {
    fn and(self, other: Option<Scope>) -> Scope {
        let other = other.unwrap_or_default();
        Scope {
            routes: self.routes || other.routes,
            rules: self.rules || other.rules,
            pickup: self.pickup || other.pickup,
            stepped_down: self.stepped_down || other.stepped_down,
        }
    }
}

impl Revalidation {
    /// Begins a pass; if one is in progress, another follows it.
    pub(super) fn restart(&mut self, scope: Scope) {
        match self.cursor {
            None => self.begin(scope),
            Some(_) => self.next = Some(scope.and(self.next)),
        }
    }

    /// A peer has other rules: once this unit is primary, sessions that the peer opened must be
    /// checked against its own rules.
    pub(super) fn schedule_rules(&mut self) {
        self.schedule(Scope {
            rules: true,
            ..Scope::default()
        });
    }

    fn schedule(&mut self, scope: Scope) {
        let later = Scope {
            stepped_down: false,
            ..scope
        };
        self.scheduled = Some(later.and(self.scheduled));
    }

    /// Starts a pass over sessions that this unit has just become primary for: its routes may
    /// differ from those of the unit that opened them.
    pub(super) fn catch_up(&mut self) {
        let routes = Scope {
            routes: true,
            ..Scope::default()
        };
        let scope = routes.and(self.scheduled.take());
        self.restart(scope);
    }

    /// A session that is not allowed may not end before `undisputed`: another pass comes then.
    fn put_off(&mut self, undisputed: Time) {
        self.schedule(self.scope);
        self.due = Some(self.due.map_or(undisputed, |due| due.min(undisputed)));
    }

    /// Begins the pass that is due.
    fn begin_if_due(&mut self, now: Time) {
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            if let Some(scope) = self.scheduled.take() {
                self.restart(scope);
            }
        }
    }

    fn is_running(&self) -> bool {
        self.cursor.is_some()
    }

    /// When a pass begins or goes on.
    pub(super) fn poll_timeout(&self, now: Time) -> Option<Time> {
        match self.is_running() {
            true => Some(now),
            false => self.due.map(|due| due.max(now)),
        }
    }

    /// Whether sessions are still to be compared with the rules.
    pub(super) fn concerns_rules(&self) -> bool {
        self.is_running() && self.scope.and(self.next).rules
    }

    fn begin(&mut self, scope: Scope) {
        (self.cursor, self.scope, self.ended) = (Some(0), scope, 0);
    }
}

enum Finding {
    Fine,
    Changed {
        in_port: PortId,
        out_port: PortId,
        policy: PolicyId,
    },
    /// A route leads to another port.
    Astray,
    /// The configuration forbids it, for this reason.
    Forbidden(&'static str),
}

impl Finding {
    fn ends_session(&self) -> bool {
        matches!(self, Finding::Astray | Finding::Forbidden(_))
    }
}

impl Gateway {
    pub(super) fn revalidate_some(&mut self, now: Time) {
        self.revalidation.begin_if_due(now);
        let Some(cursor) = self.revalidation.cursor else {
            return;
        };
        let most = match self.revalidation.scope.rules {
            // If there are many, an index leaves few to compare.
            true => {
                let compared = self.rules.config().policies.len().min(MOST_COMPARED);
                (MATCHES / (compared + 1)).clamp(8, PIECE as usize) as u32
            }
            false => PIECE,
        };
        let (sessions, next) = self.sessions.table().page(cursor, most);
        let piece: Vec<SessionId> = sessions.map(|(id, _)| id).collect();
        for id in piece {
            self.revalidate(now, id);
        }
        self.revalidation.cursor = next;
        if next.is_some() {
            return;
        }
        let Revalidation { scope, ended, .. } = self.revalidation;
        if scope.rules {
            log::info!("sessions revalidated ended={ended}");
        }
        if let Some(scope) = self.revalidation.next.take() {
            self.revalidation.begin(scope);
        }
    }

    fn revalidate(&mut self, now: Time, id: SessionId) {
        let scope = self.revalidation.scope;
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        // The primary ends its sessions; here they only follow its state.
        let group = session.group;
        if !self.rules.group(group).exists() {
            // Peers that have the group still have the session, too.
            return self.end_session(now, id, "group-removed");
        }
        if !self.is_primary(group) {
            return self.revalidate_foreign(now, id);
        }
        self.leave_former_slot(now, id);
        let finding = self.inspect(id);
        let undisputed = self.groups.undisputed(group);
        if finding.ends_session() && now < undisputed {
            self.revalidation.put_off(undisputed);
            return self.rename_policy(id);
        }
        let why = match finding {
            Finding::Fine => None,
            Finding::Changed {
                in_port,
                out_port,
                policy,
            } => {
                self.change_session(now, id, (in_port, out_port), policy);
                None
            }
            Finding::Astray => Some("route-changed"),
            Finding::Forbidden(why) => {
                self.counters.forbidden += 1;
                Some(why)
            }
        };
        if let Some(why) = why {
            self.counters.cleared += 1;
            self.revalidation.ended += 1;
            self.end_session(now, id, why);
        } else if scope.pickup {
            self.sessions.replicate(id, now);
        }
    }

    fn revalidate_foreign(&mut self, now: Time, id: SessionId) {
        let scope = self.revalidation.scope;
        if scope.stepped_down && self.sessions.journal().seq_of(id).is_none() {
            return self.end_session(now, id, "not-replicated");
        }
        if scope.routes || scope.rules || scope.pickup {
            self.revalidation.schedule(scope);
        }
        if scope.rules {
            self.rename_policy(id);
        }
    }

    /// Finds the policy of a session of another unit, if it has none that is known here: its id
    /// would be given to another policy. If that unit must still reload, it will report the policy
    /// then.
    fn rename_policy(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        if self.rules.ruleset().place(session.policy).is_some() {
            return;
        }
        let original = session.key(Direction::Original, self.sessions.book());
        let leaving = session.translated(Direction::Original, self.sessions.book());
        let key = judged(&original, &leaving);
        let forwarded = session.nat_dst != TranslatedAddr::SAME;
        let ports = (session.in_port, session.out_port);
        let decision = self
            .rules
            .ruleset()
            .decide(ports.0, ports.1, &key, forwarded);
        let accepted = decision.filter(|decision| decision.action == Action::Accept);
        let policy = accepted.map_or(PolicyId::NONE, |decision| decision.policy);
        self.sessions.rename_policy(id, policy);
    }

    fn change_session(
        &mut self,
        now: Time,
        id: SessionId,
        ports: (PortId, PortId),
        policy: PolicyId,
    ) {
        self.leave_fast_path(now, id);
        let log = self.is_logged(policy);
        self.sessions.edit(id, |session, _| {
            (session.in_port, session.out_port) = ports;
            session.policy = policy;
            match log {
                true => session.flags.set(SessionFlags::LOG),
                false => session.flags.clear(SessionFlags::LOG),
            }
        });
    }

    fn inspect(&self, id: SessionId) -> Finding {
        let Some(session) = self.sessions.get(id) else {
            return Finding::Fine;
        };
        let leaving = session.translated(Direction::Original, self.sessions.book());
        let original = session.key(Direction::Original, self.sessions.book());
        let key = judged(&original, &leaving);
        let in_port = if self.rules.port(session.in_port).source_check {
            self.port_towards(&key.dst, &key.src, session.in_port)
        } else {
            Some(session.in_port)
        };
        let turns_back = session.flags.contains(SessionFlags::TURNS_BACK);
        let out_port = match turns_back {
            true => self.rules.port_with(&key.dst).or(Some(session.out_port)),
            false => self.port_towards(&key.src, &key.dst, session.out_port),
        };
        let (Some(in_port), Some(out_port)) = (in_port, out_port) else {
            return Finding::Astray;
        };
        let moves = (in_port, out_port) != (session.in_port, session.out_port);
        let rules = self.revalidation.scope.rules;
        if !moves && !rules {
            return Finding::Fine;
        }
        let translated = session.has_source_nat();
        if translated && out_port != session.out_port {
            return Finding::Astray;
        }
        if rules && let Some(why) = self.translation_gone(session, &original, &leaving) {
            return Finding::Forbidden(why);
        }
        let forwarded = session.nat_dst != TranslatedAddr::SAME;
        match self
            .rules
            .ruleset()
            .decide(in_port, out_port, &key, forwarded)
        {
            Some(Decision {
                policy,
                action: Action::Accept,
                nat,
            }) => {
                let log = self.is_logged(policy);
                if moves && translated != (nat != Nat::Off) {
                    Finding::Astray
                } else if moves
                    || session.policy != policy
                    || session.flags.contains(SessionFlags::LOG) != log
                {
                    Finding::Changed {
                        in_port,
                        out_port,
                        policy,
                    }
                } else {
                    Finding::Fine
                }
            }
            _ if moves => Finding::Astray,
            _ => Finding::Forbidden("policy-changed"),
        }
    }

    /// Why a session can't keep its translation: its forward was removed or leads elsewhere, or an
    /// address no longer belongs to the unit, or has come to belong to it. Another pool is no
    /// reason: the session keeps its address, as in conntrack.
    fn translation_gone(
        &self,
        session: &Session,
        original: &FlowKey,
        leaving: &FlowKey,
    ) -> Option<&'static str> {
        let forward = self
            .sessions
            .nat()
            .destination(Some(session.in_port), original);
        let target = forward.map(|forward| (forward.addr, forward.port));
        let is_forwarded = (original.dst, original.dst_port) != (leaving.dst, leaving.dst_port);
        let current = is_forwarded.then_some((leaving.dst, leaving.dst_port));
        let turns_back = session.flags.contains(SessionFlags::TURNS_BACK);
        let is_ours = !is_forwarded && self.is_own_address(&original.dst);
        if target != current || is_ours != turns_back {
            return Some("forward-changed");
        }
        let has_address =
            session.nat_src == TranslatedAddr::SAME || self.is_own_address(&leaving.src);
        (!has_address).then_some("address-gone")
    }

    /// The port that now leads from `from` to `to`, before `before`; none if it is beyond all
    /// ports.
    pub(super) fn port_towards(&self, from: &Addr, to: &Addr, before: PortId) -> Option<PortId> {
        match self.way_on(from, to, before) {
            Some(RouteTarget::Port { port, .. }) => Some(port),
            // The route may come back: the link went down for a moment. Nothing can leak meanwhile,
            // since the kernel has no route either.
            Some(RouteTarget::Unreachable) | None => Some(before),
            Some(RouteTarget::Elsewhere) => None,
        }
    }
}

/// The flow that the policies judge: the destination after the forward, and the original source.
fn judged(original: &FlowKey, leaving: &FlowKey) -> FlowKey {
    FlowKey {
        dst: leaving.dst,
        dst_port: leaving.dst_port,
        ..*original
    }
}
