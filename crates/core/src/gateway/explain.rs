//! Explains the fate of a packet: the decisions of the packet path, without their effects.

use std::time::Duration;

use crate::config::{self, PickupGuarantee};
use crate::event::{DropReason, Offload};
use crate::flow::{Addr, Direction, FlowKey, GroupId, PolicyId, PortId, Protocol};
use crate::packet::{self, PacketKind};
use crate::policy::{Decision, Trace};
use crate::route::Hop;
use crate::session::{InsertError, Session, SessionId, Tracker};
use crate::time::Time;

use super::hairpin::turns_back;
use super::open::{Plan, Refused, no_room, refusal};
use super::{Gateway, Packet, Role, SessionView, forward};

/// How literally to take a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// As it stands.
    Packet,
    /// As an example of its flow: in a TCP session, as a segment that the session expects.
    Flow,
}

/// Policies that are explained: a person reads no more, and each costs the loop some 100 ns, and
/// more to send.
const MOST_TRACED: usize = 1000;

/// The fate of a packet, with reasons.
///
/// It follows the packet until it is dropped or leaves: later steps are `None`. A unit that is not
/// primary of the packet's group explains what the primary does, as far as it knows.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The flow of the packet as it came in.
    pub key: FlowKey,
    /// The session, address or flow that it belongs to.
    pub matched: Matched,
    /// The forward that applies: an index into [`config::Config::forwards`].
    pub forward: Option<u16>,
    /// The destination that was looked up in the routes, if it came to that, and the route.
    pub route: Option<(Addr, Option<Hop>)>,
    /// The port that it leaves by.
    pub egress: Option<PortId>,
    /// Why the policies before the one that decides did not match, in their order: the last 1000 of
    /// them.
    pub passed_over: Trace,
    /// The decision of the matching policy.
    pub decision: Option<Decision>,
    /// The translation of its source; `None` if there is none.
    pub source: Option<SourceTranslation>,
    /// An unanswered session would have to end, because the table is full.
    pub makes_room: bool,
    /// The flow as it goes out.
    pub leaves_as: Option<FlowKey>,
    /// The group that it, or its session, moves with.
    pub group: Option<GroupId>,
    /// The outcome at the primary of that group.
    pub fate: PacketFate,
    /// The outcome at this unit.
    pub fate_here: PacketFate,
    /// Whether its session would survive a takeover; `None` if there is no session.
    pub pickup: Option<Pickup>,
}

/// The session, address or flow that a packet belongs to.
#[derive(Clone, Debug)]
pub enum Matched {
    /// A session, in this direction.
    Session(Box<SessionView>, Direction),
    /// An address of the gateway itself.
    Gateway,
    /// An address of the machine's kernel, which takes the packet before the gateway can.
    Machine,
    /// Nothing: it would open a session.
    Nothing,
}

/// The source translation of a new session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceTranslation {
    /// The pool or port that it belongs to.
    pub nat: config::Nat,
    /// A forward to a server behind the same port requires it, whatever the policy says.
    pub hairpin: bool,
    /// The address and the port or identifier; `None` if there is none left.
    pub to: Option<(Addr, u16)>,
}

/// The outcome for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketFate {
    /// It leaves by [`Explanation::egress`].
    Forward,
    /// It leaves once the peers have its session; if they have it too late, the guarantee decides.
    Wait(PickupGuarantee),
    /// The gateway answers it.
    Answer,
    /// The kernel handles it instead of the gateway, and no policy applies.
    Kernel,
    /// It ends here, and a counter moves.
    Drop {
        /// The counter that it moves.
        reason: DropReason,
        /// Whether its sender is notified.
        told: bool,
    },
}

/// Where a session stands on its way to the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pickup {
    /// There is no `[ha]`.
    Standalone,
    /// `session-pickup` is off.
    Off,
    /// `session-pickup-connectionless` is off.
    ConnectionlessOff,
    /// No peer is in sync.
    NoPeer,
    /// It is younger than `session-pickup-delay`, which is this.
    TooYoung(Duration),
    /// Its last change is on its way.
    OnItsWay,
    /// All peers in sync have it as it is.
    Replicated,
    /// This unit is standby, and has all sessions of the group.
    HeldHere,
    /// This unit is standby, and does not have all sessions of the group yet.
    NotReady,
    /// It will be sent to the peers as soon as it is opened.
    AtOnce,
    /// Its first packet waits until the peers have it, at most this long.
    Guaranteed(PickupGuarantee, Duration),
}

/// Whether a session would survive a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    /// At least one unit that may take over holds it as it is now.
    Yes,
    /// No, and waiting does not help.
    No,
    /// Not now, but later.
    NotYet,
}

impl Pickup {
    /// Whether the session would survive a takeover.
    pub fn survives(self) -> Survives {
        match self {
            Pickup::Replicated | Pickup::HeldHere | Pickup::AtOnce | Pickup::Guaranteed(..) => {
                Survives::Yes
            }
            Pickup::Standalone | Pickup::Off | Pickup::ConnectionlessOff => Survives::No,
            Pickup::NoPeer | Pickup::TooYoung(_) | Pickup::OnItsWay | Pickup::NotReady => {
                Survives::NotYet
            }
        }
    }
}

impl PacketFate {
    fn is_not_primary(self) -> bool {
        matches!(self, PacketFate::Drop { reason, .. } if reason == DropReason::NotPrimary)
    }
}

impl From<DropReason> for PacketFate {
    fn from(reason: DropReason) -> PacketFate {
        let told = matches!(reason, DropReason::TooBig | DropReason::NoListener);
        PacketFate::Drop { reason, told }
    }
}

impl From<Refused> for PacketFate {
    fn from(refused: Refused) -> PacketFate {
        PacketFate::Drop {
            reason: refused.reason,
            told: refused.answer.is_some(),
        }
    }
}

impl Gateway {
    /// The fate of a packet, if the TUN of `port` delivered it now. Has no effect.
    ///
    /// # Errors
    /// A packet that is malformed is dropped for that reason. A fragment or an ICMP error belongs
    /// to no flow and is not explained: the reason is missing then.
    pub fn explain(
        &self,
        now: Time,
        port: PortId,
        bytes: &[u8],
        scope: Scope,
    ) -> Result<Explanation, Option<DropReason>> {
        let offload = Offload::default();
        let parsed = packet::parse(bytes, offload).map_err(Some)?;
        if parsed.fragment.is_some() || parsed.kind == PacketKind::IcmpError {
            return Err(None);
        }
        let mut bytes = bytes.to_vec();
        let packet = Packet {
            now,
            port,
            bytes: &mut bytes,
            offload,
            parsed,
            identification: None,
            group: None,
        };
        let here = self.follow_through(&packet, scope, |group| self.is_primary(group));
        let mut explanation = match here.fate.is_not_primary() {
            true => self.follow_through(&packet, scope, |_| true),
            false => here.clone(),
        };
        explanation.fate_here = here.fate;
        explanation.pickup = self.pickup(&explanation);
        Ok(explanation)
    }

    /// The path of a packet, if this unit were primary of the groups for which `is_primary` holds.
    fn follow_through(
        &self,
        packet: &Packet<'_>,
        scope: Scope,
        is_primary: impl Fn(GroupId) -> bool,
    ) -> Explanation {
        let key = packet.parsed.key;
        let mut explanation = Explanation {
            key,
            matched: Matched::Nothing,
            forward: None,
            route: None,
            egress: None,
            passed_over: Trace::default(),
            decision: None,
            source: None,
            makes_room: false,
            leaves_as: None,
            group: None,
            fate: PacketFate::Forward,
            fate_here: PacketFate::Forward,
            pickup: None,
        };
        let known = self.sessions.lookup(&key);
        // The connection of that session is over: it gives way, if the packet may open another.
        let gives_way = |(id, direction)| {
            let session = self.sessions.get(id);
            session.is_some_and(|session| forward::opens_after(session, direction, packet))
                && !self.is_for_gateway(packet)
                && self
                    .decide(packet, &mut Plan::new(packet), &is_primary)
                    .is_ok()
        };
        explanation.fate = if self.links.kernel_has(key.dst) && !packet::martian(&key) {
            explanation.matched = Matched::Machine;
            PacketFate::Kernel
        } else if let Some((id, direction)) = known.filter(|it| !gives_way(*it)) {
            let carries = |group| is_primary(group) || self.carries(packet.now, group);
            self.explain_session(packet, scope, (id, direction), carries, &mut explanation)
        } else if key.dst.is_group() && self.multicast.is_used() {
            self.explain_multicast(packet, is_primary, &mut explanation)
        } else if self.is_for_gateway(packet) {
            explanation.matched = Matched::Gateway;
            explanation.group = self.sessions.nat().group(&key.dst);
            match self.judge_local(packet, is_primary) {
                Ok(_) => PacketFate::Answer,
                Err(reason @ DropReason::NoListener) => PacketFate::Drop {
                    reason,
                    told: self.tells_of_no_listener(packet),
                },
                Err(reason) => reason.into(),
            }
        } else {
            let replaces = known.map(|(id, _)| id);
            let fate = self.explain_opening(packet, is_primary, replaces, &mut explanation);
            fate.unwrap_or_else(|refused| refused)
        };
        explanation
    }

    /// A packet to many: the first port that it leaves by, if any.
    fn explain_multicast(
        &self,
        packet: &Packet<'_>,
        is_primary: impl Fn(GroupId) -> bool,
        explanation: &mut Explanation,
    ) -> PacketFate {
        let key = packet.parsed.key;
        let group = self.multicast_group(packet.port, key.dst.family());
        explanation.group = Some(group);
        if let Err(reason) = self.check_stream(&key) {
            return reason.into();
        }
        if !is_primary(group) {
            return DropReason::NotPrimary.into();
        }
        match self.exits_of(packet.port, (key.dst, key.src)) {
            Err(reason) => reason.into(),
            Ok((exits, _)) => {
                explanation.egress = exits.first().map(|exit| exit.port);
                let src = exits.first().and_then(|exit| exit.source);
                explanation.leaves_as = Some(FlowKey {
                    src: src.unwrap_or(key.src),
                    ..key
                });
                PacketFate::Forward
            }
        }
    }

    fn explain_session(
        &self,
        packet: &Packet<'_>,
        scope: Scope,
        (id, direction): (SessionId, Direction),
        carries: impl Fn(GroupId) -> bool,
        explanation: &mut Explanation,
    ) -> PacketFate {
        let Some(session) = self.sessions.get(id) else {
            return DropReason::SessionGone.into();
        };
        let view = Box::new(self.view(id, session, packet.now));
        explanation.matched = Matched::Session(view, direction);
        explanation.group = Some(session.group);
        explanation.egress = Some(session.ports(direction).1);
        explanation.leaves_as = Some(session.translated(direction, self.sessions.book()));
        let any_segment = scope == Scope::Flow;
        let result = self.try_in_session(
            packet,
            packet.port,
            session,
            direction,
            &carries,
            any_segment,
        );
        match result {
            Ok(_) if turns_back(session, direction) => {
                let to = session.translated(direction, self.sessions.book());
                self.explain_return(packet, &to, session.out_port, explanation)
            }
            Ok(_) => PacketFate::Forward,
            Err(reason) => reason.into(),
        }
    }

    fn explain_opening(
        &self,
        packet: &Packet<'_>,
        is_primary: impl Fn(GroupId) -> bool,
        replaces: Option<SessionId>,
        explanation: &mut Explanation,
    ) -> Result<PacketFate, PacketFate> {
        let mut plan = Plan::new(packet);
        let decided = self.decide(packet, &mut plan, is_primary);
        self.note_plan(packet, &plan, explanation);
        let tracker = decided?;
        let source = packet.parsed.key.src;
        let is_own = |it: &Session| self.is_primary(it.group);
        let gives_way = self
            .sessions
            .table()
            .room(&source, self.limits_by(packet.port), is_own)
            .map_err(|why| Refused::shortage(no_room(why)))?;
        let port_gives_way = self.ports_yield(&plan, &source);
        let port_gives_way = port_gives_way.map_err(Refused::shortage)?;
        explanation.makes_room = gives_way.or(port_gives_way).is_some();
        // The random numbers that the packet would draw.
        let mut random = self.random.clone();
        let session = match self.draft(packet, &plan, tracker.clone(), random.next()) {
            Ok(session) => session,
            Err(exhausted) => {
                let giver = self.port_giver(&plan, &source, random.next());
                if giver.is_none() || !exhausted.is_certain() {
                    return Err(Refused::exhausted(&exhausted).into());
                }
                return self.explain_given_port(packet, plan, tracker, explanation);
            }
        };
        if let Some(source) = &mut explanation.source {
            let addr = self.sessions.book().resolve(session.nat_src, session.src);
            source.to = Some((addr, session.nat_src_port));
        }
        match self
            .sessions
            .table()
            .check_insert(&session, self.sessions.book())
        {
            Err(InsertError::Conflict(other)) if replaces == Some(other) => {}
            taken => taken.map_err(refusal)?,
        }
        let to = session.translated(Direction::Original, self.sessions.book());
        explanation.leaves_as = Some(to);
        if turns_back(&session, Direction::Original) {
            let fate = self.explain_return(packet, &to, session.out_port, explanation);
            return match fate {
                PacketFate::Forward => Ok(self.wait_of(&session)),
                fate => Err(fate),
            };
        }
        self.check_exit(packet, session.out_port)?;
        Ok(self.wait_of(&session))
    }

    /// Another session that has to give up its external port for this one. Which one is known only
    /// when it has ended.
    fn explain_given_port(
        &self,
        packet: &Packet<'_>,
        mut plan: Plan,
        tracker: Tracker,
        explanation: &mut Explanation,
    ) -> Result<PacketFate, PacketFate> {
        explanation.makes_room = true;
        plan.source = None;
        let session = self
            .draft(packet, &plan, tracker, 0)
            .map_err(|_| DropReason::NatExhausted)?;
        self.check_exit(packet, session.out_port)?;
        Ok(self.wait_of(&session))
    }

    /// The outcome for a packet that has left as `to` for an address of the gateway, and comes back
    /// by `port`.
    fn explain_return(
        &self,
        packet: &Packet<'_>,
        to: &FlowKey,
        port: PortId,
        explanation: &mut Explanation,
    ) -> PacketFate {
        let nobody = PacketFate::Drop {
            reason: DropReason::NoListener,
            told: false,
        };
        let Some((id, Direction::Reply)) = self.sessions.lookup(to) else {
            return nobody;
        };
        let Some(session) = self.sessions.get(id) else {
            return nobody;
        };
        explanation.leaves_as = Some(session.translated(Direction::Reply, self.sessions.book()));
        let carries = |group| self.carries(packet.now, group);
        match self.try_in_session(packet, port, session, Direction::Reply, carries, true) {
            Ok(_) => PacketFate::Forward,
            Err(reason) => reason.into(),
        }
    }

    /// Whether the first packet of a session would wait for the peers.
    fn wait_of(&self, session: &Session) -> PacketFate {
        let guarantee = self.guarantee_of(session.policy);
        let waits = self.cluster().is_some_and(|cluster| {
            self.sessions.journal().pickup_delay(session.protocol) == Some(Duration::ZERO)
                && cluster.sync.has_copy(session.group)
        });
        match guarantee {
            PickupGuarantee::Off => PacketFate::Forward,
            guarantee if waits => PacketFate::Wait(guarantee),
            _ => PacketFate::Forward,
        }
    }

    fn note_plan(&self, packet: &Packet<'_>, plan: &Plan, explanation: &mut Explanation) {
        explanation.forward = plan.destination.map(|destination| destination.forward);
        // A packet with a forbidden address is never routed.
        let is_routed = plan.hop.is_some() || self.check_addresses(packet).is_ok();
        explanation.route = is_routed.then_some((plan.key.dst, plan.hop));
        let Some(egress) = plan.egress else { return };
        explanation.egress = Some(egress);
        let (key, is_forwarded) = (&plan.key, plan.destination.is_some());
        let ruleset = self.rules.ruleset();
        explanation.passed_over =
            ruleset.trace(packet.port, egress, key, is_forwarded, MOST_TRACED);
        explanation.decision = plan.decision;
        let is_accepted = plan
            .decision
            .is_some_and(|it| it.action == config::Action::Accept);
        if is_accepted {
            explanation.group = Some(plan.group);
            explanation.source = plan.source.map(|_| SourceTranslation {
                nat: plan.nat,
                hairpin: plan.is_hairpin(),
                to: None,
            });
        }
    }

    /// Whether the session of a packet would survive a takeover.
    fn pickup(&self, explanation: &Explanation) -> Option<Pickup> {
        let group = explanation.group?;
        match (&explanation.matched, explanation.fate) {
            (Matched::Session(view, _), _) => {
                Some(self.pickup_of(group, view.original.protocol, Some(view)))
            }
            (Matched::Nothing, PacketFate::Forward | PacketFate::Wait(_)) => {
                let pickup = self.pickup_of(group, explanation.key.protocol, None);
                let policy = explanation.decision.map(|it| it.policy);
                let guarantee = self.guarantee_of(policy.unwrap_or(PolicyId::NONE));
                Some(match (pickup, guarantee) {
                    (Pickup::AtOnce, PickupGuarantee::Bounded | PickupGuarantee::Strict) => {
                        Pickup::Guaranteed(guarantee, self.guarantee_wait())
                    }
                    _ => pickup,
                })
            }
            _ => None,
        }
    }

    fn pickup_of(
        &self,
        group: GroupId,
        protocol: Protocol,
        session: Option<&SessionView>,
    ) -> Pickup {
        let Some(sync) = self.cluster().map(super::Cluster::sync) else {
            return Pickup::Standalone;
        };
        let journal = self.sessions.journal();
        let seq = session.and_then(|view| journal.seq_of(SessionId(view.id)));
        let delay = match (journal.pickup_delay(protocol), seq) {
            (None, None) if protocol != Protocol::TCP && self.replicates_connections() => {
                return Pickup::ConnectionlessOff;
            }
            (None, None) => return Pickup::Off,
            (delay, _) => delay.unwrap_or_default(),
        };
        if self.role(group) == Role::Standby {
            return match (sync.is_ready(group), session) {
                (false, _) => Pickup::NotReady,
                (true, Some(_)) => Pickup::HeldHere,
                (true, None) if delay.is_zero() => Pickup::AtOnce,
                (true, None) => Pickup::TooYoung(delay),
            };
        }
        if !sync.has_copy(group) {
            return Pickup::NoPeer;
        }
        match session {
            Some(view) if view.synced => Pickup::Replicated,
            Some(_) if seq.is_some() || delay.is_zero() => Pickup::OnItsWay,
            None if delay.is_zero() => Pickup::AtOnce,
            _ => Pickup::TooYoung(delay),
        }
    }

    fn replicates_connections(&self) -> bool {
        let journal = self.sessions.journal();
        journal.pickup_delay(Protocol::TCP).is_some()
    }

    pub(super) fn guarantee_wait(&self) -> Duration {
        let ha = self.rules.ha();
        ha.map_or(Duration::ZERO, |ha| ha.pickup_guarantee_wait)
    }
}
