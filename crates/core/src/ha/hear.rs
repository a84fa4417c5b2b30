//! Handles received heartbeats, and silence.

use super::election::{Group, State};
use super::heartbeat::{self, GroupState, Header, HeartbeatError};
use super::peer::News;
use super::{Ha, Output};
use crate::flow::{GroupId, LinkId, PeerId};
use crate::time::Time;

impl Ha {
    pub(super) fn accept_heartbeat(
        &mut self,
        now: Time,
        id: PeerId,
        link: LinkId,
        bytes: &[u8],
    ) -> Result<(), HeartbeatError> {
        let (header, records) = heartbeat::decode(bytes)?;
        let peer = self
            .peers
            .get_mut(id.index())
            .ok_or(HeartbeatError::UnknownPeer)?;
        if link.0 >= self.links {
            return Err(HeartbeatError::UnknownPeer);
        }
        peer.measure(now, link, &header);
        self.admit(&header, id)?;
        let peer = &mut self.peers[id.index()];
        if peer.deaf_until.is_some_and(|until| now <= until) {
            return Ok(());
        }
        if peer.is_news_by_link(&header) {
            self.take_heartbeat(now, id, &header, records, true);
        } else if peer.update_overtaken(now, &header, of_ours(&self.groups, records)) {
            self.evaluate_all(now);
        }
        Ok(())
    }

    /// Whether a heartbeat is one of this peer in this cluster.
    pub(super) fn admit(&self, header: &Header<'_>, id: PeerId) -> Result<(), HeartbeatError> {
        if header.group_id != self.group_id {
            return Err(HeartbeatError::ForeignCluster);
        }
        match header.name == self.peers[id.index()].name {
            true => Ok(()),
            false => Err(HeartbeatError::WrongName),
        }
    }

    /// Applies the part of a heartbeat that proves that the peer is alive: by a link, or by a data
    /// port.
    pub(super) fn take_heartbeat(
        &mut self,
        now: Time,
        id: PeerId,
        header: &Header<'_>,
        records: impl Iterator<Item = (u32, GroupState)>,
        by_link: bool,
    ) {
        let own = of_ours(&self.groups, records);
        let peer = &mut self.peers[id.index()];
        // Another path may have delivered it before.
        let news = match peer.is_news(header) {
            true => peer.update(now, header, own),
            false => News {
                changed: peer.update_overtaken(now, header, own),
                restarted: false,
            },
        };
        for (index, group) in self.groups.iter().enumerate() {
            peer.compare_holdings(now, index, group.held);
            if news.changed && peer.is_newly_equal(index, group.priority) {
                let (name, priority) = (&peer.name, group.priority);
                let what = format!(
                    "{name} has the same priority for {}: {priority}",
                    group.name
                );
                let why = "of two equal units the older one is preferred, then the smaller name";
                self.events.info(now, what, why);
            }
        }
        let was = (peer.alive, peer.linked);
        peer.live_on(
            now,
            header,
            self.interval.max(peer.interval) * self.threshold,
            by_link,
        );
        let is = (peer.alive, peer.linked);
        if news.restarted {
            self.events
                .info(now, format!("{} has restarted", peer.name), "");
        } else if is.0 && !was.0 {
            self.events.info(now, format!("{} is alive", peer.name), "");
        } else if header.goodbye && was.0 {
            self.events
                .info(now, format!("{} says goodbye", peer.name), "");
        }
        if header.goodbye {
            self.trust_goodbye(now, id);
        }
        if news.changed || is != was {
            self.evaluate_all(now);
        }
        if is.0 && !was.0 {
            self.announce_again();
        }
    }

    /// A peer that was not heard may have been primary meanwhile, and have stepped down as soon as
    /// it heard this unit: hosts still look for the addresses there.
    fn announce_again(&mut self) {
        for group in 0..self.groups.len() {
            if self.groups[group].state == State::Primary {
                let group = GroupId(group as u8);
                self.push_output(Output::Announce { group });
            }
        }
    }

    /// Finds the peers that were silent for too long.
    pub(super) fn expire_peers(&mut self, now: Time) {
        for peer in &mut self.peers {
            let is_dead = peer.alive && now >= peer.alive_until;
            if peer.linked && now >= peer.linked_until {
                peer.linked = false;
                peer.gone_why = Some("no heartbeat came");
                if !is_dead && peer.alive {
                    let what = format!("{} is heard on the data ports only", peer.name);
                    self.events.warn(now, what, "the links to it are dead");
                }
            }
            if is_dead {
                peer.alive = false;
                peer.gone_why = Some("no heartbeat came");
                self.events
                    .warn(now, format!("{} is lost", peer.name), "no heartbeat");
            }
        }
    }
}

/// The groups named by a heartbeat that this unit has too.
fn of_ours(
    groups: &[Group],
    records: impl Iterator<Item = (u32, GroupState)>,
) -> impl Iterator<Item = (GroupId, GroupState)> {
    records.enumerate().filter_map(|(index, (name, state))| {
        let is_it = |group: &Group| group.exists() && group.hash == name;
        let hint = groups
            .get(index)
            .filter(|group| is_it(group))
            .map(|_| index);
        let found = hint.or_else(|| groups.iter().position(is_it))?;
        Some((GroupId(found as u8), state))
    })
}
