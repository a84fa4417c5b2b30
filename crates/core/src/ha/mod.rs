//! Which unit is primary of which group: heartbeats, election, takeover and planned handover.
//!
//! It makes no system call, and knows neither sockets nor packets. All roles are per group. See
//! [`Ha`] for how to drive it; `election.rs` has the rules by which a group gets and changes its
//! primary, `check.rs` the check before a takeover, `contest.rs` the rules for two primaries,
//! `handover.rs` planned changes, `order.rs` the ranking of units, `heartbeat.rs` the datagram,
//! `ports.rs` how units recognise each other on the data ports, and `witness.rs` who decides where
//! they can't.

mod check;
mod contest;
mod election;
mod events;
mod fitness;
mod flush;
mod frame;
mod group_places;
mod handover;
mod hear;
mod heartbeat;
mod holders;
mod maintenance;
mod order;
mod others;
mod peer;
mod ports;
mod role;
mod settings;
#[cfg(test)]
mod simulation;
mod takeover;
#[cfg(test)]
mod tests;
mod view;
mod witness;

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::{self, Config};
use crate::evidence::{Heard, Holders, Holding, SyncState};
use crate::flow::{Addr, GroupId, GroupSet, LinkId, PeerId, PortId};
use crate::time::Time;

use election::Group;
use events::Events;
use group_places::new_group;
use peer::ElectionPeer;
use ports::OwnPort;
use witness::Witness;

pub use events::ElectionEvent;
pub use frame::{ETHERTYPE, FrameError, PortKeys};
pub use handover::HandoverError;
pub use heartbeat::HeartbeatError;
pub(crate) use heartbeat::MAX_TERM;
pub use maintenance::Maintenance;
pub use role::Role;
pub use takeover::{Takeover, Takeovers};
pub use view::{GroupView, LinkCounters, LinkView, PeerGroup, PeerView};
pub use witness::{LeaseWish, WitnessAsk, WitnessResults, WitnessState, WitnessView};

/// An effect that the caller carries out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// This unit is now primary or standby of `group`: `Gateway::change_role`, at once.
    SetRole {
        /// Its place among `[[group]]`.
        group: GroupId,
        /// The new role; always a change.
        role: Role,
        /// The term of the primary known now: this unit's own, if it is the primary.
        term: u64,
        /// For the log; it is among the events as well.
        why: String,
    },
    /// The process of a peer that is heard has changed: replication does not count on a process
    /// that is not heard.
    Heard {
        /// Its place among `[[ha.peer]]`.
        peer: PeerId,
        /// The process, and how it is heard.
        heard: Heard,
    },
    /// Send a datagram to `peer` over the heartbeat connection of `link`; drop it if there is none.
    SendHeartbeat {
        /// Its place among `[[ha.peer]]`.
        peer: PeerId,
        /// Its place among `[[ha.link]]`.
        link: LinkId,
        /// The datagram, at most 1100 bytes.
        bytes: Vec<u8>,
    },
    /// Send a frame of type [`ETHERTYPE`] out of `port`.
    SendOnPort {
        /// Its place among `[[port]]`.
        port: PortId,
        /// The hardware address to send it to; to all if none.
        to: Option<[u8; 6]>,
        /// The payload after the Ethernet header, at most 1200 bytes.
        bytes: Vec<u8>,
    },
    /// `host`, on the link of `port`, sends this unit's packets to a standby: tell it where the
    /// virtual addresses are.
    Stray {
        /// Its place among `[[port]]`.
        port: PortId,
        /// The source of the packet that came astray.
        host: Addr,
    },
    /// Ask by ARP and Neighbor Discovery, on all ports that are up, for the owner of the addresses
    /// of `group`.
    ///
    /// An answer from any hardware address but our own goes to [`Ha::handle_probe_answer`].
    Probe {
        /// Its place among `[[group]]`.
        group: GroupId,
    },
    /// Announce the addresses of `group` again: another unit did so meanwhile.
    Announce {
        /// Its place among `[[group]]`.
        group: GroupId,
    },
    /// This unit stays primary of `group`, with a higher term than before: another one had that.
    Reassert {
        /// Its place among `[[group]]`.
        group: GroupId,
        /// Its new term.
        term: u64,
    },
    /// Send all that is pending for `to`, then the message that it becomes primary of `group`.
    ///
    /// The peer applies all of it, and then calls [`Ha::handle_handover`] with `term`.
    Handover {
        /// Its place among `[[group]]`.
        group: GroupId,
        /// The next primary.
        to: PeerId,
        /// To become primary with; higher than that of this unit.
        term: u64,
    },
    /// A planned handover has ended: the answer to its request.
    HandoverDone {
        /// Its place among `[[group]]`.
        group: GroupId,
        /// The peer that should have taken over.
        to: PeerId,
        /// The time from the request to the end.
        took: Duration,
        /// Why it failed, if so; this unit has then stayed primary unless a `SetRole` came before.
        result: Result<(), HandoverError>,
    },
    /// Other peers than before are to hold the sessions of `group`, of which this unit is primary.
    Holders {
        /// Its place among `[[group]]`.
        group: GroupId,
        /// Who is to hold them.
        holders: Holders,
    },
    /// This unit's copy of `group` may be stale: compare it with that of `from`, and say `ready`
    /// only after that.
    Resync {
        /// Its place among `[[group]]`.
        group: GroupId,
        /// Who is primary now, and sends its sessions.
        from: PeerId,
    },
    /// [`Ha::shut_down`] is complete: the process may end.
    Gone,
}

/// A sign that a peer has probably died, but no proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// The kernel of the peer's machine reports that nothing listens there any more. Anybody on the
    /// link can forge this, so unanswered checks decide only once the hold time is over.
    Refused {
        /// Its place among `[[ha.peer]]`.
        peer: PeerId,
    },
    /// The connection that the peer's process held for this purpose has ended without a word: the
    /// kernel closes it when the process ends. Stronger than a refusal, so the check is shorter.
    Ended {
        /// Its place among `[[ha.peer]]`.
        peer: PeerId,
    },
    /// No interface of an `[[ha.link]]` has carrier.
    CarrierLost,
}

/// The high-availability state machine of one unit.
///
/// Each turn of the caller's loop, with one reading of the clock:
///
/// 1. [`Ha::handle_wake`], before any packet is read: a unit that was stopped for too long must not
///    forward. Drain the outputs if it says so.
/// 2. `handle_*` for events, [`Ha::request_failover`], `set_*`, in any order; hints before
///    heartbeats, since what the dead peer sent before may still wait in the socket.
/// 3. [`Ha::handle_timeout`]; harmless if nothing is due.
/// 4. [`Ha::poll_output`] until it returns `None`.
/// 5. Sleep until [`Ha::poll_timeout`] at the latest.
///
/// The unit starts as standby of all groups. Before the first turn tell it the states of the ports
/// ([`Ha::handle_ports`]); until then all of them count as down.
///
/// To end: [`Ha::shut_down`], then go on as before until [`Output::Gone`].
#[derive(Debug)]
pub struct Ha {
    name: String,
    group_id: u8,
    boot_id: u64,
    started: Time,
    interval: Duration,
    threshold: u32,
    monitor: Vec<PortId>,
    ports_up: u8,
    ports: Vec<OwnPort>,
    override_: bool,
    override_wait: Duration,
    /// How many peers hold each group beside its primary; 0 means all.
    copies: u8,
    /// Slots that their groups are no longer cut into.
    former_slots: GroupSet,
    groups: Vec<Group>,
    peers: Vec<ElectionPeer>,
    links: u8,
    sequence: u64,
    next_heartbeat: Time,
    /// The own state has changed: the peers must hear of it at once.
    urgent: bool,
    last_wake: Time,
    /// When this unit last went on after it had been stopped for longer than the hold time.
    resumed: Time,
    leaving: Option<Leaving>,
    maintenance: Option<Maintenance>,
    witness: Witness,
    rejected: [u64; HeartbeatError::ALL.len()],
    outputs: VecDeque<Output>,
    events: Events,
}

/// The progress of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// Groups are being handed over.
    HandingOver,
    /// All peers are told; stragglers are forwarded until then.
    Goodbye(Time),
    /// [`Output::Gone`] was given.
    Gone,
}

/// Outputs that may wait; beyond it heartbeats, probes and announcements are dropped.
const MAX_OUTPUTS: usize = 1024;

impl Ha {
    /// A unit that has just started; `None` if the config has no `[ha]`.
    ///
    /// `boot_id` is random, and another one each time that the process starts.
    pub fn new(config: &Config, boot_id: u64, now: Time) -> Option<Ha> {
        let ha = config.ha.as_ref()?;
        let links = u8::try_from(ha.links.len()).unwrap_or(u8::MAX);
        let peers = ha
            .peers
            .iter()
            .map(|peer| {
                let counts = (usize::from(links), config.ports.len(), config.groups.len());
                ElectionPeer::new(&peer.name, counts)
            })
            .collect();
        let mut unit = Ha {
            name: config.node.name.clone(),
            group_id: ha.group_id,
            boot_id,
            started: now,
            interval: ha.heartbeat_interval,
            threshold: ha.heartbeat_lost_threshold,
            monitor: ha.monitor.clone(),
            ports_up: 0,
            ports: config
                .ports
                .iter()
                .map(|port| own_port(port, now))
                .collect(),
            override_: ha.override_,
            override_wait: ha.override_wait,
            copies: config.copies(),
            former_slots: config.former_slots(),
            groups: Vec::new(),
            peers,
            links,
            sequence: 0,
            next_heartbeat: now,
            urgent: false,
            last_wake: now,
            resumed: now,
            leaving: None,
            maintenance: None,
            witness: Witness::default(),
            rejected: [0; HeartbeatError::ALL.len()],
            outputs: VecDeque::new(),
            events: Events::default(),
        };
        let until = unit.init_until(now);
        unit.groups = config
            .groups
            .iter()
            .map(|group| new_group(ha, group, now, until))
            .collect();
        if ha.witness.is_some() {
            unit.set_witness(now, ha.witness.as_ref());
        }
        Some(unit)
    }

    /// Notices whether this unit was stopped for longer than the hold time. If so it gives up its
    /// roles: carry out the outputs before any packet is handled.
    ///
    /// Returns whether it was.
    pub fn handle_wake(&mut self, now: Time) -> bool {
        self.witness.fresh = false;
        let pause = now.since(self.last_wake);
        self.last_wake = now;
        let paused = pause > self.hold();
        if paused {
            self.resumed = now;
            self.resume_after_pause(now, pause);
            self.flush(now);
        }
        paused
    }

    /// Handles a datagram that came over the authenticated heartbeat connection of `peer`.
    ///
    /// # Errors
    /// If it was ignored; that is counted as well.
    pub fn handle_heartbeat(
        &mut self,
        now: Time,
        peer: PeerId,
        link: LinkId,
        bytes: &[u8],
    ) -> Result<(), HeartbeatError> {
        let result = self.accept_heartbeat(now, peer, link, bytes);
        match result {
            Ok(()) => self.flush(now),
            Err(error) => self.rejected[error as usize] += 1,
        }
        result
    }

    /// The heartbeat connection to `peer` over `link` came up or went down.
    pub fn handle_link(&mut self, now: Time, peer: PeerId, link: LinkId, up: bool) {
        let Some(peer) = self.peers.get_mut(peer.index()) else {
            return;
        };
        let Some(known) = peer.links.get_mut(link.index()) else {
            return;
        };
        if known.up == up {
            return;
        }
        known.up = up;
        known.forget_sequence();
        let what = format!(
            "link {} to {} is {}",
            link.0,
            peer.name,
            if up { "up" } else { "down" }
        );
        match up {
            true => self.events.info(now, what, ""),
            false => self.events.warn(now, what, ""),
        }
        self.urgent |= up;
        self.flush(now);
    }

    /// Starts a check at once if the peer was primary.
    pub(crate) fn handle_hint(&mut self, now: Time, hint: Hint) {
        let why = match hint {
            Hint::Refused { .. } | Hint::Ended { .. } => "its process ended",
            Hint::CarrierLost => "no link has carrier",
        };
        let deaf_until = now + self.probe_wait() / 4;
        for (index, peer) in self.peers.iter_mut().enumerate() {
            let meant = match hint {
                Hint::Refused { peer } | Hint::Ended { peer } => peer.index() == index,
                Hint::CarrierLost => true,
            };
            let ended = matches!(hint, Hint::Ended { .. });
            if meant && !peer.alive && ended {
                // A refusal came first, and is no longer the only sign.
                (peer.ended, peer.refused) = (true, false);
            }
            if meant && peer.alive {
                (peer.alive, peer.linked) = (false, false);
                peer.refused = matches!(hint, Hint::Refused { .. });
                peer.deaf_until = Some(deaf_until);
                peer.deaf_since = Some(now);
                peer.ended = ended;
                peer.gone_why = Some(why);
                self.events
                    .warn(now, format!("{} may be dead", peer.name), why);
            }
        }
        self.evaluate_all(now);
        self.flush(now);
    }

    /// The states of the ports, parallel to `config.ports`.
    pub(crate) fn handle_ports(&mut self, now: Time, up: &[bool]) {
        self.note_ports(now, up);
        let is_up = |port: &&PortId| up.get(port.index()).copied().unwrap_or(false);
        let (count, all) = (
            self.monitor.iter().filter(is_up).count(),
            self.monitor.len(),
        );
        let rank = order::rank(count, all);
        let before = std::mem::replace(&mut self.ports_up, rank);
        if before != rank {
            self.events.ports(now, count, all, rank < before);
            self.urgent = true;
            self.evaluate_all(now);
        }
        self.flush(now);
    }

    /// Another unit, or another host, answered for an address of `group`. Nothing proves which.
    pub(crate) fn handle_probe_answer(&mut self, now: Time, group: GroupId) {
        if usize::from(group.0) < self.groups.len() {
            self.note_probe_answer(now, usize::from(group.0));
        }
    }

    /// The progress of replication with `peer`, whenever it changes.
    pub(crate) fn handle_sync(&mut self, now: Time, peer: PeerId, state: SyncState) {
        let Some(known) = self.peers.get_mut(peer.index()) else {
            return;
        };
        let before = std::mem::replace(&mut known.sync, state);
        self.repeat_handovers(peer, before);
        if (before.ready, before.equal) != (state.ready, state.equal) {
            self.learn_ready(now, peer);
            self.evaluate_all(now);
            self.flush(now);
        }
    }

    /// This unit's evidence for `group`, whenever it changes.
    pub(crate) fn handle_holding(&mut self, group: GroupId, held: Holding) {
        if let Some(state) = self.groups.get_mut(usize::from(group.0)) {
            state.held = as_sent(held);
        }
    }

    /// The last time that packets of the sessions of `group` went through this unit in both
    /// directions; call it as often as you like.
    pub(crate) fn handle_traffic(&mut self, group: GroupId, carried: Option<Time>) {
        if let Some(state) = self.groups.get_mut(usize::from(group.0)) {
            state.carried = carried;
        }
    }

    /// Does the work due at `now`.
    pub fn handle_timeout(&mut self, now: Time) {
        self.expire_peers(now);
        self.expire_maintenance(now);
        self.evaluate_all(now);
        self.continue_leaving(now);
        self.follow_witness(now);
        if now >= self.next_heartbeat {
            self.urgent = true;
        }
        self.flush(now);
    }

    /// The time of the next [`Ha::handle_timeout`]; `None` after [`Output::Gone`].
    pub fn poll_timeout(&self, now: Time) -> Option<Time> {
        if self.is_gone() {
            return None;
        }
        let peers = self.peers.iter().flat_map(|peer| {
            let linked = peer.linked.then_some(peer.linked_until);
            let alive = peer.alive.then_some(peer.alive_until);
            linked.into_iter().chain(alive)
        });
        let groups = (0..self.groups.len()).filter_map(|group| self.group_timeout(now, group));
        let leaving = match self.leaving {
            Some(Leaving::Goodbye(until)) => Some(until),
            _ => None,
        };
        let next = peers
            .chain(groups)
            .chain(leaving)
            .chain(self.maintenance_until())
            .chain(self.witness_due())
            .chain(self.witness.fresh.then_some(now))
            .fold(self.next_heartbeat, Time::min);
        Some(next.max(now))
    }

    /// The next effect to carry out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The time after which a peer that sends as often as this unit counts as dead.
    pub fn hold(&self) -> Duration {
        self.interval * self.threshold
    }

    /// How long it surely takes from the last turn of this unit's loop until a peer has taken over:
    /// half of the shortest check, which a running loop answers. Peers may have other intervals.
    pub(crate) fn undisputed_for(&self) -> Duration {
        let intervals = self.known_peers().map(|peer| peer.interval);
        let least = intervals.filter(|it| !it.is_zero()).min();
        Self::last_check_of(least.map_or(self.interval, |least| least.min(self.interval))) / 2
    }

    /// The time after which `peer`, which may send more rarely, counts as dead.
    fn hold_of(&self, peer: &ElectionPeer) -> Duration {
        self.interval.max(peer.interval) * self.threshold
    }

    /// Queues an effect; those that are repeated anyway are dropped if the caller has fallen
    /// behind.
    fn push_output(&mut self, output: Output) {
        let repeated = matches!(
            output,
            Output::SendHeartbeat { .. }
                | Output::SendOnPort { .. }
                | Output::Stray { .. }
                | Output::Probe { .. }
                | Output::Announce { .. }
        );
        if !repeated || self.outputs.len() < MAX_OUTPUTS {
            self.outputs.push_back(output);
        }
    }
}

/// In the form of the wire, so that it can be compared with the holdings of others.
fn as_sent(held: Holding) -> Holding {
    let epoch = u64::from(held.epoch as u32);
    Holding { epoch, ..held }
}

fn own_port(port: &config::Port, now: Time) -> OwnPort {
    OwnPort {
        hash: heartbeat::hash(&port.name),
        up: false,
        up_since: now,
        carried: false,
    }
}
