//! Multicast survives the unit: members and sessions go to the peers, beside the sessions of the
//! table.
//!
//! It is soft state: each record is told when it changes, all of them to a peer that connects, and
//! again in a while. A peer keeps what it was told for `multicast-ttl`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::config::Ha;
use crate::flow::{Addr, Family, GroupId, GroupSet, PeerId, PortId};
use crate::multicast::record::Record;
use crate::sync::{codec, message};
use crate::time::Time;

use super::Gateway;
use super::multicast::Multicast;

/// The longest time until everything is told again; sooner if `multicast-ttl` is short.
const REFRESH: Duration = Duration::from_secs(60);
/// Records written in one call.
const MOST_RECORDS: usize = 256;

/// News that wait for one peer. One that reads no more of them is told everything instead; what has
/// ended meanwhile runs out there.
const MOST_UNTOLD: usize = 16_384;

/// What a peer is not told yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Untold {
    /// What the hosts of a port want of a group.
    Members(PortId, Addr),
    /// A stream that came in by a port, by group and source.
    Session(PortId, Addr, Addr),
}

/// What each peer is not told yet, by place.
#[derive(Default)]
pub(super) struct Untolds {
    peers: Vec<Backlog>,
    next_refresh: Option<Time>,
}

#[derive(Clone, Default)]
struct Backlog {
    news: BTreeSet<Untold>,
    /// Everything is to be told, beside the news.
    all: bool,
    /// The groups that this unit tells the peer of.
    groups: GroupSet,
}

impl Backlog {
    fn tell_all(&mut self) {
        self.news.clear();
        self.all = true;
    }

    /// The groups that this unit tells the peer of are these: of one more, it was told nothing.
    fn follow(&mut self, groups: GroupSet) {
        self.all |= !groups.is_subset(self.groups);
        self.groups = groups;
    }
}

impl Untolds {
    /// Something has changed.
    pub(super) fn note(&mut self, what: Untold) {
        for peer in &mut self.peers {
            if peer.news.len() >= MOST_UNTOLD {
                peer.tell_all();
            }
            peer.news.insert(what);
        }
    }

    /// Everything is told to all peers, beside the news.
    fn tell_all_again(&mut self) {
        for peer in &mut self.peers {
            peer.all = true;
        }
    }

    /// Everything is told again now: how often that is due has changed.
    pub(super) fn refresh_at_once(&mut self, now: Time) {
        self.next_refresh = Some(now);
    }

    /// When everything is told again.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.next_refresh
    }
}

impl Multicast {
    /// Everything that there is to tell.
    fn all(&self) -> BTreeSet<Untold> {
        let members = self
            .members()
            .map(|(port, group, _)| Untold::Members(port, group));
        let sessions = self.sessions_by_port();
        let sessions = sessions.map(|(port, group, source)| Untold::Session(port, group, source));
        members.chain(sessions).collect()
    }
}

impl Gateway {
    /// A peer has connected: it is told everything.
    pub(super) fn tell_multicast_again(&mut self, peer: PeerId) {
        if !self.multicast.is_used() {
            return;
        }
        let peers = &mut self.multicast.untold.peers;
        if peers.len() <= peer.index() {
            peers.resize(peer.index() + 1, Backlog::default());
        }
        peers[peer.index()].tell_all();
    }

    /// Tells all peers everything again if that is due.
    pub(super) fn refresh_multicast(&mut self, now: Time) {
        let Some(ttl) = self.rules.ha().map(|ha| ha.multicast_ttl) else {
            return;
        };
        if self
            .multicast
            .untold
            .next_refresh
            .is_some_and(|at| now < at)
        {
            return;
        }
        self.multicast.untold.next_refresh = Some(now + (ttl / 3).min(REFRESH));
        self.multicast.untold.tell_all_again();
    }

    /// Writes what a peer is to be told of multicast to its stream; returns whether there is more.
    pub(super) fn poll_multicast(&mut self, now: Time, peer: PeerId, out: &mut Vec<u8>) -> bool {
        // What is new meanwhile is told when it is switched on.
        if !self.rules.ha().is_some_and(|ha: &Ha| ha.session_pickup) {
            return false;
        }
        if self.multicast.untold.peers.len() <= peer.index() {
            return false;
        }
        let groups = self.groups().filter(|group| self.tells(peer, *group));
        let groups: GroupSet = groups.collect();
        let untold = &mut self.multicast.untold.peers[peer.index()];
        untold.follow(groups);
        let is_all = std::mem::take(&mut untold.all);
        let mut news = std::mem::take(&mut untold.news);
        if is_all {
            news.extend(self.multicast.all());
        }
        if news.is_empty() {
            return false;
        }
        let mut records = Vec::new();
        while records.len() < MOST_RECORDS
            && let Some(what) = news.pop_first()
        {
            records.push(what);
        }
        let more = !news.is_empty();
        self.multicast.untold.peers[peer.index()].news = news;
        let mut body = Vec::new();
        for what in records {
            let (port, record) = self.multicast_record(now, what);
            let group = self.multicast_group(port, family_of(&record));
            if !self.tells(peer, group) {
                continue;
            }
            body.clear();
            record.write(&mut body);
            let message = message::Message::Multicast {
                group: group.0,
                port: port.0,
                record: &body,
            };
            codec::encode(out, &message);
        }
        more
    }

    /// Whether this unit is primary of `group`, and tells a peer of it.
    fn tells(&self, peer: PeerId, group: GroupId) -> bool {
        let sync = self.cluster().map(super::Cluster::sync);
        self.is_primary(group) && sync.is_some_and(|sync| sync.tells(peer, group))
    }

    fn multicast_record(&self, now: Time, what: Untold) -> (PortId, Record) {
        match what {
            Untold::Members(port, group) => {
                let wanted = self.multicast.wanted_on(port, &group);
                (port, Record::Members { group, wanted })
            }
            Untold::Session(port, group, source) => {
                let state = self.multicast.state_of(now, port, (group, source));
                let record = Record::Session {
                    group,
                    source,
                    state,
                };
                (port, record)
            }
        }
    }

    /// The primary of `group` tells something of multicast on `port`.
    pub(super) fn handle_multicast_record(
        &mut self,
        now: Time,
        group: GroupId,
        port: PortId,
        bytes: &[u8],
    ) {
        let ttl = self
            .rules
            .ha()
            .map_or(Duration::ZERO, |ha| ha.multicast_ttl);
        // A unit that was upgraded first may tell more than this one knows.
        let Some(record) = Record::read(bytes) else {
            return;
        };
        let own = self.multicast_group(port, family_of(&record));
        if own != group || self.is_primary(own) {
            return;
        }
        match record {
            Record::Members { group, wanted } => {
                self.multicast
                    .install(now, port, group, wanted.as_ref(), ttl);
                self.settle_multicast(now, Some(port));
            }
            Record::Session {
                group,
                source,
                state: None,
            } => self.end_multicast(now, (group, source), "ended by the primary"),
            Record::Session {
                group,
                source,
                state: Some(state),
            } => self.install_multicast(now, port, (group, source), state),
        }
    }
}

fn family_of(record: &Record) -> Family {
    match record {
        Record::Members { group, .. } | Record::Session { group, .. } => group.family(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts may want one group after the other, while no stream leads to a peer.
    #[test]
    fn what_a_peer_is_not_told_has_a_bound() {
        let mut untold = Untolds {
            peers: vec![Backlog::default()],
            next_refresh: None,
        };
        for number in 0..200_000_u32 {
            let [_, a, b, c] = number.to_be_bytes();
            let group = Addr::v4([239, a, b, c]);
            untold.note(Untold::Members(PortId(0), group));
        }
        let backlog = &untold.peers[0];
        assert!(backlog.news.len() <= MOST_UNTOLD, "{}", backlog.news.len());
        assert!(backlog.all, "what was left out is told again");
    }

    /// Whatever it is that makes this unit tell a peer of a group, a role or a connection.
    #[test]
    fn of_a_group_that_a_peer_was_told_nothing_of_it_is_told_everything() {
        let groups = |all: &[u8]| all.iter().map(|group| GroupId(*group)).collect();
        let mut backlog = Backlog::default();
        for (told, expected) in [
            (groups(&[]), false),
            (groups(&[0]), true),
            (groups(&[0]), false),
            (groups(&[0, 3]), true),
            (groups(&[3]), false),
            (groups(&[0, 3]), true),
        ] {
            backlog.follow(told);
            assert_eq!(std::mem::take(&mut backlog.all), expected);
        }
    }
}
