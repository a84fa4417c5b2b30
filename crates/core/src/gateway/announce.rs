//! Gratuitous ARP and unsolicited neighbor advertisements: when, how often, and how fast.
//!
//! Pending announcements are a position in a list, not a queue of frames: with any number of
//! addresses and hosts, nothing is lost and nothing else waits behind it. The frames are made in
//! batches: the virtual addresses of all groups first, then the hosts that are informed by unicast,
//! then the pools.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::config::Config;
use crate::event::Output;
use crate::flow::{Addr, GroupId, MAX_GROUPS, PortId};
use crate::packet::neighbor;
use crate::time::Time;

use super::Gateway;

/// The least time between two defences of an address (RFC 5227, section 2.4(c): DEFEND_INTERVAL).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// Addresses of a port that are announced to each host by unicast; a pool's many addresses are only
/// broadcast.
const MAX_UNICAST: usize = 2;

/// Pending announcements, and a schedule of repeats for each group.
pub(super) struct Announcer {
    repeats: u32,
    interval: Duration,
    pending: Vec<Option<Pending>>,
    /// Announcements in progress, by [`Part`].
    rounds: [VecDeque<Round>; 3],
    /// Frames that may be sent now, and the time of that count.
    allowance: (u32, Time),
    defended: BTreeMap<Addr, Time>,
}

/// Frames per batch: some 100 µs of system calls.
const PIECE: u32 = 64;
/// Between two pieces.
const PACE: Duration = Duration::from_micros(500);
/// Addresses that are checked for one batch.
const MOST_LOOKED_AT: u32 = 8192;

/// A part of a group's announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Its virtual addresses.
    Own,
    /// The same, to each host that was heard.
    Hosts,
    /// The addresses of pools.
    Pools,
}

/// The progress of the announcement of a part of a group.
#[derive(Clone, Copy, Debug)]
struct Round {
    group: GroupId,
    part: Part,
    port: usize,
    at: usize,
    host: Option<(PortId, Addr)>,
}

#[derive(Clone, Copy)]
struct Pending {
    left: u32,
    at: Time,
}

impl Announcer {
    pub(super) fn new(config: &Config) -> Announcer {
        let mut announcer = Announcer {
            repeats: 5,
            interval: Duration::from_secs(1),
            pending: vec![None; MAX_GROUPS],
            rounds: Default::default(),
            allowance: (PIECE, Time::ZERO),
            defended: BTreeMap::new(),
        };
        announcer.reconfigure(config);
        announcer
    }

    /// Sets how often to announce; announcements in progress continue at the new interval.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        if let Some(ha) = &config.ha {
            (self.repeats, self.interval) = (ha.gratuitous_arps, ha.gratuitous_arp_interval);
        }
    }

    /// Whether it announces as often as `config` says.
    pub(super) fn follows(&self, config: &Config) -> bool {
        let settings = |ha: &crate::config::Ha| (ha.gratuitous_arps, ha.gratuitous_arp_interval);
        let wanted = config.ha.as_ref().map(settings);
        wanted.is_none_or(|wanted| wanted == (self.repeats, self.interval))
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let repeats = self.pending.iter().flatten().map(|pending| pending.at);
        let busy = self.rounds.iter().any(|rounds| !rounds.is_empty());
        let piece = busy.then_some(self.allowance.1 + PACE);
        repeats.chain(piece).min()
    }

    /// Starts to announce a part of a group.
    fn begin(&mut self, group: GroupId, part: Part) {
        let rounds = &mut self.rounds[part as usize];
        rounds.retain(|round| round.group != group);
        rounds.push_back(Round {
            group,
            part,
            port: 0,
            at: 0,
            host: None,
        });
    }

    /// How many frames may be sent at `now`.
    fn allowed(&mut self, now: Time) -> u32 {
        let (left, since) = self.allowance;
        if now.since(since) >= PACE {
            self.allowance = (PIECE, now);
            return PIECE;
        }
        left
    }

    fn next_round(&mut self) -> Option<Round> {
        self.rounds.iter_mut().find_map(VecDeque::pop_front)
    }

    /// Plans the repeats of an announcement made now.
    fn start(&mut self, now: Time, group: GroupId) {
        let left = self.repeats.saturating_sub(1);
        self.pending[usize::from(group.0)] = (left > 0).then_some(Pending {
            left,
            at: now + self.interval,
        });
    }

    /// Whether a repeat for `group` is due.
    fn take_due(&mut self, now: Time, group: GroupId) -> bool {
        let slot = &mut self.pending[usize::from(group.0)];
        let Some(pending) = slot.filter(|pending| pending.at <= now) else {
            return false;
        };
        let left = pending.left - 1;
        *slot = (left > 0).then_some(Pending {
            left,
            at: now + self.interval,
        });
        true
    }

    /// Forgets the repeats of a group that this unit no longer answers for.
    pub(super) fn cancel(&mut self, group: GroupId) {
        self.pending[usize::from(group.0)] = None;
        for rounds in &mut self.rounds {
            rounds.retain(|round| round.group != group);
        }
    }

    /// Whether one of our addresses may be defended now; at most once in [`DEFEND_INTERVAL`].
    pub(super) fn may_defend(&mut self, now: Time, addr: Addr) -> bool {
        let last = self.defended.get(&addr);
        let allowed = last.is_none_or(|last| now.since(*last) >= DEFEND_INTERVAL);
        if allowed {
            self.defended.insert(addr, now);
        }
        allowed
    }
}

impl Gateway {
    /// Announces all addresses of a group that this unit has just become primary for.
    pub(super) fn announce_group(&mut self, now: Time, group: GroupId) {
        self.begin_announcement(group);
        self.hosts.announcer.start(now, group);
        self.announce_some(now);
    }

    /// Announces the addresses of a port whose link came up or whose hardware address changed.
    pub(super) fn announce_port(&mut self, now: Time, port: PortId) {
        let groups: Vec<GroupId> = self.addresses_on(port).map(|(_, group)| group).collect();
        for group in self.groups().filter(|group| groups.contains(group)) {
            if self.is_primary(group) {
                self.announce_group(now, group);
            }
        }
    }

    pub(super) fn send_due_announcements(&mut self, now: Time) {
        for group in self.groups() {
            if self.hosts.announcer.take_due(now, group) {
                self.begin_announcement(group);
            }
        }
        self.announce_some(now);
    }

    fn begin_announcement(&mut self, group: GroupId) {
        self.hosts.announcer.begin(group, Part::Own);
        self.hosts.announcer.begin(group, Part::Pools);
        if self.rules.is_cut(group) {
            // What has just been broadcast is right for some of the hosts only.
            self.hosts.announcer.begin(group, Part::Hosts);
        }
    }

    /// Tells all hosts that were heard where the addresses of `group` are now.
    pub(super) fn announce_to_neighbors(&mut self, now: Time, group: GroupId) {
        self.hosts.announcer.begin(group, Part::Hosts);
        self.announce_some(now);
    }

    /// Makes as many of the due frames as may be sent now.
    fn announce_some(&mut self, now: Time) {
        // The shell is behind: it gets no more before it has taken these.
        if self.outbox.announcements() >= PIECE as usize {
            return;
        }
        let mut left = self.hosts.announcer.allowed(now);
        let mut looks = MOST_LOOKED_AT;
        while left > 0 && looks > 0 {
            let Some(mut round) = self.hosts.announcer.next_round() else {
                break;
            };
            let done = match round.part {
                Part::Hosts => self.tell_hosts(now, &mut round, &mut left, &mut looks),
                Part::Own | Part::Pools => self.tell_all(&mut round, &mut left, &mut looks),
            };
            if !done {
                self.hosts.announcer.rounds[round.part as usize].push_front(round);
            }
        }
        self.hosts.announcer.allowance.0 = left;
    }

    /// Continues a round of broadcasts; returns whether it is complete.
    fn tell_all(&mut self, round: &mut Round, left: &mut u32, looks: &mut u32) -> bool {
        while round.port < self.rules.config().ports.len() {
            let port = PortId::from_index(round.port);
            let link = *self.links.link(port);
            let addresses = self.rules.addresses(port);
            let settings = self.rules.port(port);
            let own = settings.virtual_addresses.len() + settings.link_local.len();
            let own = own.min(addresses.len());
            let (first, end) = match round.part {
                Part::Own => (0, own),
                _ => (own, addresses.len()),
            };
            round.at = round.at.max(first);
            while link.up && round.at < end {
                if *left == 0 || *looks == 0 {
                    return false;
                }
                *looks -= 1;
                let (addr, group) = addresses[round.at];
                round.at += 1;
                if group != round.group {
                    continue;
                }
                for bytes in neighbor::announce(addr, link.mac) {
                    *left = left.saturating_sub(1);
                    self.outbox.push_announcement(Output::Frame { port, bytes });
                }
            }
            (round.port, round.at) = (round.port + 1, 0);
        }
        true
    }

    /// Continues a round of unicasts; returns whether it is complete.
    fn tell_hosts(
        &mut self,
        now: Time,
        round: &mut Round,
        left: &mut u32,
        looks: &mut u32,
    ) -> bool {
        let whole = self.rules.whole(round.group);
        loop {
            if *left == 0 || *looks == 0 {
                return false;
            }
            let Some(((port, host), mac)) = self.hosts.neighbors.heard_after(round.host) else {
                return true;
            };
            *looks -= 1;
            round.host = Some((port, host));
            let link = *self.links.link(port);
            // The round of a slot is for its own hosts, that of the whole group for all.
            if whole != round.group && self.rules.slot_of(whole, &host) != round.group {
                continue;
            }
            let at = self.place_for(now, port, whole, &host);
            let own = self.rules.addresses(port).iter();
            let own = own.filter(|(addr, g)| *g == whole && addr.family() == host.family());
            for (addr, _) in own.filter(|_| link.up).take(MAX_UNICAST) {
                let bytes = match self.rules.is_cut(whole) {
                    true => neighbor::correct(*addr, at, host, mac),
                    false => neighbor::announce_to(*addr, at, host, mac),
                };
                let bytes = neighbor::sent_by(link.mac, bytes);
                *left = left.saturating_sub(1);
                self.outbox.push_announcement(Output::Frame { port, bytes });
            }
        }
    }

    pub(super) fn announce_address(&mut self, port: PortId, addr: Addr) {
        let link = *self.links.link(port);
        if !link.up {
            return;
        }
        for bytes in neighbor::announce(addr, link.mac) {
            self.push_output(Output::Frame { port, bytes });
        }
    }
}
