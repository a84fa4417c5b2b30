//! The gateway itself: composes packet, session, policy, NAT and routing into one state machine.
//!
//! It makes no system call. The shell calls, in any order and as often as it likes:
//!
//! - `handle_*` for an event: a packet, a frame, a link or route change. Each may queue outputs.
//! - [`Gateway::poll_output`] until it returns `None`, after each batch of the above.
//! - [`Gateway::poll_timeout`] for the time to call [`Gateway::handle_timeout`].
//!
//! A packet's way: [`Gateway::handle_packet`] → session found → tracked, translated, forwarded
//! (`forward.rs`); no session → `open.rs`; for the gateway itself → `local.rs`; an ICMP error →
//! `icmp.rs`; a fragment → `fragment.rs`. While packets are captured it begins in `capture.rs`.

mod ahead;
mod announce;
mod capture;
mod cluster;
mod conflict;
mod counters;
mod cuts;
mod decisions;
mod effects;
mod event_log;
mod expired;
mod explain;
mod fast_path;
mod forward;
mod fragment;
mod group_places;
mod guarantee;
mod hairpin;
mod health;
mod hosts;
mod icmp;
mod identification;
mod limiter;
mod links;
mod local;
mod lookups;
mod mss;
mod multicast;
mod multicast_members;
mod multicast_pickup;
mod multicast_reload;
mod multicast_view;
mod neighbors;
mod open;
mod outbox;
mod own;
mod pass_on;
mod passed;
mod paths;
mod policy_usage;
mod port_frames;
mod prepare;
mod pushing;
mod random;
mod reload;
mod revalidate;
mod roles;
mod routes;
mod rules;
mod session_log;
mod slots;
mod stand_in;
mod strays;
mod targets;
mod trouble;
mod unresolved;
mod view;
mod witness;

use crate::capture::Capture;
use crate::config::Config;
use crate::event::{DropReason, LinkState, Offload, Output, RouteChange, Verdict};
use crate::flow::{Addr, Family, GroupId, PortId};
use crate::fragment::Fragments;
use crate::log_limit::SESSION_TARGET;
use crate::memory::Reserved;
use crate::packet::{self, PacketKind, Parsed};
use crate::policy::Ruleset;
use crate::push::Push;
use crate::session::{Holdings, SessionFlags, SessionId};
use crate::store::{Keys, SessionStore};
use crate::time::{Tick, Time};

use hosts::Hosts;
use identification::Identifications;
use limiter::Budgets;
use links::Links;
use open::Plan;
use outbox::Outbox;
use pass_on::PassingOn;
use random::Random;
use roles::Groups;
use routes::Routes;
use rules::Rules;

pub use crate::ha::Role;
pub use ahead::READ_AHEAD;
pub use cluster::{Cluster, HandoverEnd};
pub use conflict::Conflict;
pub use counters::{Counters, PortCounters};
pub use event_log::{EventLog, LoggedEvent, Stage, Subject};
pub use explain::{Explanation, Matched, PacketFate, Pickup, Scope, SourceTranslation, Survives};
pub use fast_path::FastCounters;
pub use health::{Health, Severity, Standing, Trouble};
pub use icmp::{HOP_LIMIT_OF_ERRORS, PORT_OF_ERRORS};
pub use links::PortFault;
pub use multicast_view::{MembersView, MulticastPort};
pub use paths::Channel;
pub use policy_usage::PolicyUsage;
pub use prepare::{Prepared, ReloadError, Reloaded, Retired};
pub use rules::Basis;
pub use session_log::{SessionChange, SessionLog};
pub use view::{PeerGroupState, PeerState, SessionView};

/// The randomness that the gateway is given once, at creation.
#[derive(Clone, Copy)]
pub struct Seed(pub [u8; 32]);

/// The current packet: its bytes, and facts about it.
struct Packet<'a> {
    now: Time,
    port: PortId,
    bytes: &'a mut [u8],
    offload: Offload,
    parsed: Parsed,
    /// The identification that the datagram has on its way out, if its first fragment was given
    /// one.
    identification: Option<u32>,
    /// The group of a later fragment, by its first one.
    group: Option<GroupId>,
}

impl Packet<'_> {
    /// The length of the packet on the wire; of its largest segment if it is a super-packet.
    fn wire_len(&self) -> u32 {
        match (self.offload.segment_size, self.parsed.kind) {
            (0, _) => self.parsed.total_len,
            (size, PacketKind::Tcp(segment)) => {
                self.parsed.total_len - segment.payload_len + u32::from(size)
            }
            (size, _) => u32::from(self.parsed.header_len) + UDP_HEADER + u32::from(size),
        }
    }
}

/// Bytes of a UDP header (RFC 768).
const UDP_HEADER: u32 = 8;

/// The state machine of one unit: its parts, each of which owns its state.
pub struct Gateway {
    /// Everything that the configuration decides.
    rules: Rules,
    /// The ports' interfaces.
    links: Links,
    /// The exits of packets.
    routes: Routes,
    /// This unit's role in each group.
    groups: Groups,
    sessions: SessionStore,
    fragments: Fragments<fragment::Onward>,
    identifications: Identifications,
    /// The machines on the links.
    hosts: Hosts,
    /// The targets of `[[link-monitor]]`.
    targets: targets::Targets,
    budgets: Budgets,
    random: Random,
    counters: Counters,
    revalidation: revalidate::Revalidation,
    /// None on a standalone gateway.
    cluster: Option<Box<Cluster>>,
    health: Health,
    /// Past events, for people and programs to follow.
    events: EventLog,
    drop_alarm: event_log::DropAlarm,
    /// Sessions that begin and end, while somebody wants to know.
    session_log: Option<Box<SessionLog>>,
    /// What somebody watches.
    capture: Option<Box<Capture>>,
    outbox: Outbox,
    /// The sessions that the kernel forwards.
    fast_path: fast_path::FastPath,
    /// Packets that go from unit to unit.
    passing_on: PassingOn,
    /// What goes to many.
    multicast: multicast::Multicast,
    /// One config for all units.
    push: Push,
    /// Slots that their groups are no longer cut into.
    former_slots: cuts::FormerSlots,
    started: Time,
}

impl Gateway {
    /// A gateway that starts at `now`: without routes, all of its links down, and standby for every
    /// group.
    pub fn new(config: Config, seed: Seed, now: Time) -> Gateway {
        let mut random = Random::new(seed);
        let ruleset = Ruleset::new(&config);
        let keys = Keys {
            nat: random.key(),
            table: random.key(),
        };
        let sessions = SessionStore::new(&config, &keys);
        let mut gateway = Gateway {
            links: Links::new(config.ports.len()),
            routes: Routes::new(),
            groups: Groups::new(),
            cluster: Cluster::new(&config, &mut random, now, &ruleset).map(Box::new),
            fragments: Fragments::new(&random.key()),
            identifications: Identifications::default(),
            hosts: Hosts::new(&config),
            targets: targets::Targets::new(&config, now),
            budgets: Budgets::new(config.limits.icmp_errors_per_second),
            events: EventLog::new(random.next()),
            random,
            counters: Counters::default(),
            revalidation: revalidate::Revalidation::default(),
            capture: None,
            health: Health::new(now),
            drop_alarm: event_log::DropAlarm::default(),
            session_log: None,
            outbox: Outbox::default(),
            fast_path: fast_path::FastPath::default(),
            passing_on: PassingOn::default(),
            multicast: multicast::Multicast::new(&config),
            push: Push::default(),
            former_slots: cuts::FormerSlots::default(),
            started: now,
            rules: Rules::new(config, ruleset),
            sessions,
        };
        gateway.set_pushers();
        gateway
    }

    /// Counts packets that have come in by `port`, with their bytes: once a batch, since only
    /// people read it. Call [`Gateway::handle_packet`] for each packet as well.
    pub fn handle_batch(&mut self, port: PortId, packets: usize, bytes: usize) {
        self.links.count_in(port, packets, bytes);
    }

    /// Handles an IP packet that the TUN of `port` delivered; edits it in place if it is forwarded.
    ///
    /// Costs no allocation when the packet belongs to a session.
    pub fn handle_packet(
        &mut self,
        now: Time,
        port: PortId,
        bytes: &mut [u8],
        offload: Offload,
    ) -> Verdict {
        let parsed = match packet::parse(bytes, offload) {
            Ok(parsed) => parsed,
            Err(reason) => {
                self.count_drop(reason);
                return Verdict::Drop(reason);
            }
        };
        let mut packet = Packet {
            now,
            port,
            bytes,
            offload,
            parsed,
            identification: None,
            group: None,
        };
        let verdict = self.handle_parsed(&mut packet);
        match verdict {
            Verdict::Forward => self.counters.forwarded += 1,
            Verdict::Drop(DropReason::NotPrimary) => return self.handle_for_another(&packet),
            Verdict::Drop(reason) => self.count_drop(reason),
            Verdict::Consumed => {}
        }
        verdict
    }

    fn handle_parsed(&mut self, packet: &mut Packet<'_>) -> Verdict {
        match packet.parsed.fragment {
            None => self.handle_whole(packet),
            Some(fragment) => self.handle_fragment(packet, fragment),
        }
    }

    /// A packet whose transport header is known.
    #[inline(always)]
    fn handle_whole(&mut self, packet: &mut Packet<'_>) -> Verdict {
        if packet.parsed.kind == PacketKind::IcmpError {
            return self.handle_icmp_error(packet);
        }
        match self.sessions.lookup(&packet.parsed.key) {
            Some((id, direction)) => self.forward_in_session(packet, id, direction),
            None => self.open_session(packet),
        }
    }

    /// Counts a packet that was to be forwarded and that the kernel did not accept.
    pub fn handle_write_failure(&mut self) {
        self.counters.forwarded = self.counters.forwarded.saturating_sub(1);
        self.count_drop(DropReason::WriteFailed);
    }

    /// Counts an [`Output`] that the kernel did not accept.
    pub fn handle_output_failure(&mut self) {
        self.counters.outputs_lost += 1;
    }

    /// Notes the state of a port's interface.
    pub fn handle_link(&mut self, now: Time, port: PortId, link: LinkState) {
        let before = self.links.set(port, link);
        if before != link {
            self.fast_path.stop_all();
        }
        if link.up && (!before.up || before.mac != link.mac) {
            self.announce_port(now, port);
        }
        if link.up != before.up && self.routes.has_choice() {
            self.revalidate_routes();
        }
        self.follow_multicast_link(now, port, link.up && !before.up);
        self.tell_ports(now);
        self.check_health(now);
    }

    /// Notes a change of the kernel's routes.
    pub fn handle_route(&mut self, change: RouteChange) {
        if self.routes.apply(change) {
            self.multicast.doubt_sessions();
            self.fast_path.look_again();
            self.revalidate_routes();
        }
    }

    /// Does the work due at `now`: expires sessions and fragments, repeats announcements.
    pub fn handle_timeout(&mut self, now: Time) {
        self.expire_sessions(now);
        let orphans = u64::from(self.fragments.expire(now));
        self.counters.dropped[DropReason::FragmentOrphan as usize] += orphans;
        self.send_due_announcements(now);
        self.sweep_routes();
        self.revalidate_some(now);
        self.probe_targets(now);
        self.multicast_timeout(now);
        self.continue_lookups(now);
        self.cluster_timeout(now);
        self.gather_hosts(now);
        self.follow_cuts(now);
        self.push.handle_timeout(now);
        self.look_at_fast_path(now);
        self.check_health_if_due(now);
    }

    /// The time of the next [`Gateway::handle_timeout`]; `None` if nothing is pending.
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        if self.multicast.is_comparing() || self.routes.is_sweeping() {
            return Some(now);
        }
        let sweep = Some(self.sessions.table().next_sweep(now.tick()))
            .filter(|tick| *tick != Tick::NEVER)
            .map(|tick| tick.time().max(now));
        [
            sweep,
            self.revalidation.poll_timeout(now),
            self.fragments.poll_timeout(),
            self.hosts.announcer.poll_timeout(),
            self.hosts.lookups.poll_timeout(),
            self.targets.monitors.poll_timeout(),
            self.multicast.poll_timeout(),
            self.poll_cluster_timeout(now),
            self.push.poll_timeout(),
            self.poll_fast_timeout(now),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next effect to carry out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outbox.pop()
    }

    fn expire_sessions(&mut self, now: Time) {
        let mut expired = Vec::new();
        self.sessions.sweep(now.tick(), &mut expired);
        for id in expired {
            // Sessions of another primary expire there.
            if self
                .sessions
                .get(id)
                .is_some_and(|session| self.is_primary(session.group))
                && !self.lives_on(now, id)
            {
                self.end_session(now, id, "expired");
            }
        }
    }

    /// Ends a session for the administrator, on the peers too. Returns false, and does nothing, if
    /// another unit is primary of its group.
    pub fn clear_session(&mut self, now: Time, id: u32) -> bool {
        let id = SessionId(id);
        let group = self.sessions.get(id).map(|session| session.group);
        let is_ours = group.is_some_and(|group| self.is_primary(group));
        if is_ours {
            self.counters.cleared += 1;
            self.end_session(now, id, "cleared");
        }
        is_ours
    }

    /// Whether the fast path has seen packets of a session, without which it would have expired.
    fn lives_on(&mut self, now: Time, id: SessionId) -> bool {
        self.absorb_session(id) > 0 && self.sessions.table().deadline(id) > Some(now.tick())
    }

    /// Removes a session with all its resources.
    fn end_session(&mut self, now: Time, id: SessionId, why: &'static str) {
        self.leave_fast_path(now, id);
        if self.session_log.is_some() {
            self.log_end(now, id, why);
        }
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        if session.flags.contains(SessionFlags::LOG) {
            let line = self.describe(id, session, now);
            log::info!(target: SESSION_TARGET, "session end {line} why={why}");
        }
        if let Some(session) = self.sessions.end(id) {
            self.rules.note_end(&session);
        }
    }

    /// A source address of each host that has sessions, and its holdings: hosts with the most
    /// sessions first, accurate to an eighth. Hosts whose addresses share an entry of the keyed
    /// hash are counted together.
    pub fn holders(&self) -> impl Iterator<Item = (Addr, Holdings)> {
        self.sessions.table().holders()
    }

    fn count_drop(&mut self, reason: DropReason) {
        self.counters.dropped[reason as usize] += 1;
    }

    fn role(&self, group: GroupId) -> Role {
        self.groups.role(group)
    }

    /// The first virtual address of `family` on `port` whose group qualifies.
    fn own_address(
        &self,
        port: PortId,
        family: Family,
        wanted: impl Fn(GroupId) -> bool,
    ) -> Option<Addr> {
        let addresses = &self.rules.port(port).virtual_addresses;
        addresses
            .iter()
            .map(|v| v.addr)
            .filter(|addr| addr.family() == family)
            .find(|addr| self.sessions.nat().group(addr).is_some_and(&wanted))
    }

    /// The memory that the tables have reserved for `max-sessions`.
    pub fn reserved_memory(&self) -> Vec<Reserved> {
        self.sessions.reserved().collect()
    }

    /// How many sessions there ever were at once: the lists of [`Gateway::reserved_memory`] are
    /// that long.
    pub fn most_sessions(&self) -> usize {
        self.sessions.table().most_sessions()
    }

    /// Checks the invariants between two calls; for tests and simulations.
    ///
    /// # Panics
    /// If it does not hold.
    pub fn check_invariants(&self) {
        self.sessions.check_invariants();
        if let Some(cluster) = self.cluster() {
            cluster.check_invariants(self.sessions.journal());
        }
        self.rules.check_invariants(self.sessions.nat());
        self.outbox.check_invariants();
        self.multicast.check_invariants();
        self.check_options();
    }
}

impl Gateway {
    /// Queues an output that strangers must not be able to delay or displace.
    fn push_urgent(&mut self, output: Output) {
        let has_room = self.outbox.push_urgent(output);
        self.counters.outputs_lost += u64::from(!has_room);
    }

    /// Queues a packet or frame made by the gateway; drops it if the shell has fallen far behind.
    fn push_output(&mut self, output: Output) {
        let has_room = self.outbox.push(output);
        self.counters.outputs_lost += u64::from(!has_room);
    }
}
