//! This unit's knowledge of another one.

use std::time::Duration;

use super::frame::PortKeys;
use super::heartbeat::{self, GroupState, Header};
use super::ports::PortPath;
use super::{LinkCounters, LinkView};
use crate::evidence::{Heard, Holding, SyncState};
use crate::flow::{GroupId, LinkId};
use crate::time::Time;

/// A longer round trip than this is not a valid measurement.
const LONGEST_RTT: Duration = Duration::from_secs(60);
/// The longest interval that the config allows, and so that a peer is believed to have.
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);

/// A unit that has not caught up for this long is behind.
const BEHIND: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct ElectionPeer {
    /// Empty if nobody has this place among the peers.
    pub name: String,
    pub hash: u32,
    pub links: Vec<PeerLink>,
    /// Heard within the hold time, no goodbye, and no hint that it died.
    pub alive: bool,
    /// When it counts as dead if no more heartbeats come.
    pub alive_until: Time,
    /// The same by links alone.
    pub linked: bool,
    pub linked_until: Time,
    /// The last heartbeat by a link that was newer than those before.
    pub link_heard: Option<Time>,
    /// By data port.
    pub ports: Vec<PortPath>,
    /// The port at which the next questions begin.
    pub next_port: usize,
    /// It has been heard on a data port.
    pub spoke: bool,
    /// For the data ports.
    pub keys: Option<PortKeys>,
    /// The last heartbeat that brought news.
    pub heard: Option<Time>,
    /// There was a hint that it died. Heartbeats until then may have been on their way before.
    pub deaf_until: Option<Time>,
    /// When that hint came. An answer on a data port to a later question proves that it lives.
    pub deaf_since: Option<Time>,
    /// The connection that its process held has ended; forgotten at the next heartbeat.
    pub ended: bool,
    /// Only a refusal, which can be forged, suggests that it died; forgotten at the next heartbeat.
    pub refused: bool,
    /// Why it is not alive, as far as it is known.
    pub gone_why: Option<&'static str>,
    pub goodbye: bool,
    /// It should stay standby.
    pub maintenance: bool,
    pub groups: Vec<GroupState>,
    /// By group: the last heartbeat that named it.
    named: Vec<u64>,
    /// By group: when it last reported that it is not the primary.
    pub not_primary: Vec<Time>,
    /// By group: the last time that it held everything that this unit held the time before, and
    /// this unit's evidence then.
    abreast: Vec<(Time, Holding)>,
    /// By group: the priority that it shares with this unit, as last logged.
    equal_priority: Vec<Option<u8>>,
    pub ports_up: u8,
    pub interval: Duration,
    pub sync: SyncState,
    boot_id: Option<u64>,
    /// The state of [`ElectionPeer::hearing`] that replication was last told.
    pub told_heard: Heard,
    previous_boot_id: Option<u64>,
    sequence: u64,
    /// The process and sequence of the newest heartbeat by a link.
    link_sequence: (u64, u64),
    uptime: Duration,
    /// It is one of those that this unit last agreed with on who is there: all, at first.
    pub is_agreed: bool,
    /// Since when it is not heard.
    pub silent_since: Option<Time>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeerLink {
    pub up: bool,
    pub rtt: Option<Duration>,
    pub counters: LinkCounters,
    /// The process that sent the last heartbeat on this link, and its sequence.
    sequence: Option<(u64, u64)>,
    /// When a heartbeat came by this link, and the peer's clock in it.
    last: Option<(Time, u64)>,
}

/// The changes in a heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// The peer's report on itself or a group differs from before.
    pub changed: bool,
    /// The process is another one than before.
    pub restarted: bool,
}

impl ElectionPeer {
    /// A peer that was not heard yet, with this many links, ports and groups; an empty place if the
    /// name is empty.
    pub(super) fn new(name: &str, (links, ports, groups): (usize, usize, usize)) -> ElectionPeer {
        ElectionPeer {
            name: name.to_owned(),
            hash: heartbeat::hash(name),
            links: vec![PeerLink::default(); links],
            alive: false,
            alive_until: Time::ZERO,
            linked: false,
            linked_until: Time::ZERO,
            link_heard: None,
            ports: vec![PortPath::default(); ports],
            next_port: 0,
            spoke: false,
            keys: None,
            heard: None,
            deaf_until: None,
            deaf_since: None,
            ended: false,
            refused: false,
            gone_why: None,
            goodbye: false,
            maintenance: false,
            groups: vec![GroupState::default(); groups],
            named: vec![0; groups],
            not_primary: vec![Time::ZERO; groups],
            equal_priority: vec![None; groups],
            abreast: vec![(Time::ZERO, Holding::default()); groups],
            ports_up: 0,
            interval: Duration::ZERO,
            sync: SyncState::default(),
            boot_id: None,
            told_heard: Heard::default(),
            previous_boot_id: None,
            sequence: 0,
            link_sequence: (0, 0),
            uptime: Duration::ZERO,
            is_agreed: true,
            silent_since: None,
        }
    }

    /// Another group has the place `at` of `groups` from now on, or none.
    pub(super) fn reset_group(&mut self, groups: usize, at: usize) {
        self.groups.resize(groups, GroupState::default());
        self.named.resize(groups, 0);
        self.not_primary.resize(groups, Time::ZERO);
        self.equal_priority.resize(groups, None);
        self.abreast
            .resize(groups, (Time::ZERO, Holding::default()));
        self.groups[at] = GroupState::default();
        self.named[at] = 0;
        self.not_primary[at] = Time::ZERO;
        self.equal_priority[at] = None;
        self.abreast[at] = (Time::ZERO, Holding::default());
    }

    /// Whether a unit has this place among the peers.
    pub(super) fn is_somebody(&self) -> bool {
        !self.name.is_empty()
    }

    /// Takes note of a heartbeat's clock, whether or not it brings news; `link` exists.
    pub(super) fn measure(&mut self, now: Time, link: LinkId, header: &Header<'_>) {
        let Some(link) = self.links.get_mut(link.index()) else {
            return;
        };
        link.last = Some((now, header.clock));
        link.count(header);
        let trip = clock(now)
            .checked_sub(header.echo)
            .map(Duration::from_micros);
        if header.echo != 0
            && let Some(rtt) = trip.and_then(|trip| trip.checked_sub(header.echo_age))
            && rtt < LONGEST_RTT
        {
            link.rtt = Some(rtt);
        }
    }

    /// The echo to send on `link`: the peer's clock, and how long ago it came.
    pub(super) fn echo(&self, now: Time, link: LinkId) -> (u64, Duration) {
        match self.links.get(link.index()).and_then(|link| link.last) {
            Some((at, clock)) => (clock, now.since(at)),
            None => (0, Duration::ZERO),
        }
    }

    /// Whether the heartbeat is newer than all before; copies by other links are not.
    pub(super) fn is_news(&self, header: &Header<'_>) -> bool {
        let boot_id = Some(header.boot_id);
        match boot_id == self.boot_id {
            true => header.sequence > self.sequence,
            false => boot_id != self.previous_boot_id,
        }
    }

    /// The same among those that came by links. A datagram sent with it may have come by a data
    /// port first.
    pub(super) fn is_news_by_link(&self, header: &Header<'_>) -> bool {
        let (boot_id, sequence) = self.link_sequence;
        if Some(header.boot_id) != self.boot_id {
            return self.is_news(header);
        }
        match header.boot_id == boot_id {
            true => header.sequence > sequence,
            false => header.sequence >= self.sequence,
        }
    }

    /// A recent heartbeat has come: the peer is alive, or says goodbye.
    pub(super) fn live_on(
        &mut self,
        now: Time,
        header: &Header<'_>,
        hold: Duration,
        by_link: bool,
    ) {
        if header.goodbye {
            (self.alive, self.linked) = (false, false);
            self.gone_why = Some("it said goodbye");
            return;
        }
        self.alive = true;
        self.alive_until = now + hold;
        (self.deaf_until, self.deaf_since) = (None, None);
        (self.ended, self.refused) = (false, false);
        if by_link {
            self.linked = true;
            self.linked_until = now + hold;
            self.link_heard = Some(now);
            self.link_sequence = (header.boot_id, header.sequence);
            self.gone_why = None;
        }
    }

    /// Applies a heartbeat; `groups` are those of this unit that it names.
    pub(super) fn update(
        &mut self,
        now: Time,
        header: &Header<'_>,
        groups: impl Iterator<Item = (GroupId, GroupState)>,
    ) -> News {
        let restarted = self
            .boot_id
            .is_some_and(|boot_id| boot_id != header.boot_id);
        if self.boot_id != Some(header.boot_id) {
            self.previous_boot_id = self.boot_id.replace(header.boot_id);
        }
        let mut changed = restarted
            || self.heard.is_none()
            || self.ports_up != header.ports_up
            || self.goodbye != header.goodbye
            || self.maintenance != header.maintenance;
        self.sequence = header.sequence;
        self.heard = Some(now);
        self.goodbye = header.goodbye;
        self.maintenance = header.maintenance;
        self.ports_up = header.ports_up;
        self.uptime = header.uptime;
        self.interval = header.interval.min(LONGEST_INTERVAL);
        for (group, state) in groups {
            changed |= self.name_group(now, header, group, state);
        }
        // The others may have been lost; groups that it does not name no longer exist there.
        let lately = match header.parts {
            0 | 1 => header.sequence,
            parts => header.sequence.saturating_sub(u64::from(parts) * 4),
        };
        for (named, state) in self.named.iter_mut().zip(&mut self.groups) {
            if state.known && (*named < lately || restarted && *named != header.sequence) {
                *state = GroupState::default();
                changed = true;
            }
            *named = (*named).min(header.sequence);
        }
        News { changed, restarted }
    }

    /// Applies a part of the last heartbeat that was overtaken by another part of it; returns
    /// whether anything changed. No other stale heartbeat counts.
    pub(super) fn update_overtaken(
        &mut self,
        now: Time,
        header: &Header<'_>,
        groups: impl Iterator<Item = (GroupId, GroupState)>,
    ) -> bool {
        let behind = self.sequence.checked_sub(header.sequence);
        let is_part = behind.is_some_and(|behind| behind < u64::from(header.parts));
        if Some(header.boot_id) != self.boot_id || !is_part {
            return false;
        }
        let mut changed = false;
        for (group, state) in groups {
            if self.named[usize::from(group.0)] < header.sequence {
                changed |= self.name_group(now, header, group, state);
            }
        }
        changed
    }

    fn name_group(
        &mut self,
        now: Time,
        header: &Header<'_>,
        group: GroupId,
        state: GroupState,
    ) -> bool {
        let index = usize::from(group.0);
        self.named[index] = header.sequence;
        if !state.primary {
            self.not_primary[index] = now;
        }
        let before = std::mem::replace(&mut self.groups[index], state);
        before.essence() != state.essence()
    }

    /// Whether the peer has the priority `own` for a group, and did not have it before.
    pub(super) fn is_newly_equal(&mut self, group: usize, own: u8) -> bool {
        let (Some(state), Some(told)) =
            (self.groups.get(group), self.equal_priority.get_mut(group))
        else {
            return false;
        };
        let equal = (state.known && state.priority == own).then_some(own);
        std::mem::replace(told, equal) != equal && equal.is_some()
    }

    /// A heartbeat has come: compares its evidence for a group with this unit's.
    pub(super) fn compare_holdings(&mut self, now: Time, group: usize, ours: Holding) {
        let (Some(theirs), Some(abreast)) = (self.groups.get(group), self.abreast.get_mut(group))
        else {
            return;
        };
        // This unit's evidence when the previous heartbeat came: the last changes may be under way
        // to it.
        if theirs.held.covers(&abreast.1) || theirs.held.covers(&ours) {
            *abreast = (now, ours);
        }
    }

    /// Whether it holds this unit's sessions of a group, except for the last changes.
    pub(super) fn keeps_up(&self, now: Time, group: usize) -> bool {
        let abreast = self.abreast.get(group);
        abreast.is_some_and(|(at, _)| now.since(*at) < BEHIND)
    }

    /// How long it has been running, by its own account.
    pub(super) fn uptime(&self, now: Time) -> Duration {
        let since = self.heard.map_or(Duration::ZERO, |heard| now.since(heard));
        self.uptime.saturating_add(since)
    }

    /// The boot identifier of its process; none before it was heard.
    pub(super) fn boot_id(&self) -> Option<u64> {
        self.boot_id
    }

    /// The process of it that is heard.
    pub(super) fn hearing(&self) -> Heard {
        Heard {
            by_link: self.boot_id.filter(|_| self.linked),
            at_all: self.boot_id.filter(|_| self.alive),
        }
    }

    /// The state of `link` for the operator.
    pub(super) fn link(&self, now: Time, link: usize, hold: Duration) -> LinkView {
        let link = self.links.get(link).copied().unwrap_or_default();
        LinkView {
            connected: link.up,
            alive: link.last.is_some_and(|(at, _)| now.since(at) < hold),
            rtt: link.rtt,
            heartbeats: link.counters,
        }
    }
}

impl PeerLink {
    /// The next heartbeat has no predecessor: the link was down meanwhile.
    pub(super) fn forget_sequence(&mut self) {
        self.sequence = None;
    }

    /// Counts a heartbeat, and those missing before it. One that was overtaken has been counted as
    /// lost.
    fn count(&mut self, header: &Header<'_>) {
        self.counters.received += 1;
        let last = self
            .sequence
            .filter(|(boot_id, _)| *boot_id == header.boot_id)
            .map_or(header.sequence.saturating_sub(1), |(_, last)| last);
        let missing = header.sequence.saturating_sub(last).saturating_sub(1);
        self.counters.lost = self.counters.lost.saturating_add(missing);
        self.sequence = Some((header.boot_id, header.sequence.max(last)));
    }
}

/// This unit's clock on the wire, in µs; never 0.
pub(super) fn clock(now: Time) -> u64 {
    (now.as_nanos() / 1000).max(1)
}
