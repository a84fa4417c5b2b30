//! A group that a reload cuts into another number of slots (`distribute`).
//!
//! Which slot a session is in is a mark of that session: it need not be the one that its host has
//! now. So when slots are added, the sessions stay where they are, and only new ones go by the new
//! number. When slots are removed, their groups stay, take no new sessions, and hand those that
//! they have to another slot of the same unit; then they go.
//!
//! The config reaches one unit after the other. New slots wait until all peers have them and one is
//! primary, and a packet that a peer passes on by another number of slots is served where it
//! arrives.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, Group};
use crate::flow::{Direction, GroupId, GroupSet};
use crate::session::{SessionFlags, SessionId};
use crate::store::Seq;
use crate::time::Time;

use super::Gateway;
use super::revalidate::Scope;

/// Changes that a peer may not have confirmed yet when sessions are moved: some ms of its time.
const MOST_AHEAD: u64 = 4096;
/// How often former slots are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How connected peers cut groups otherwise than this unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OtherCuts {
    /// Slots that take no new sessions: a peer lacks them that has their group, so that these would
    /// have no copy there, or nobody is primary of them yet.
    pub lacked: GroupSet,
    /// A peer may see other owners of hosts.
    pub differ: bool,
}

/// Slots that their groups are no longer cut into.
#[derive(Default)]
pub(super) struct FormerSlots {
    /// When to look at them next.
    look_at: Time,
    /// Those that had no sessions at the last look, and the last change then.
    empty: GroupSet,
    last: Seq,
}

impl Gateway {
    /// Slots that a reload has added wait until the peers have them as well. What was seen of
    /// former slots was of others.
    pub(super) fn add_slots(&mut self, changed: &[GroupId]) {
        self.former_slots = FormerSlots::default();
        let mut cuts = self.rules.other_cuts();
        let slots = self.groups().flat_map(|whole| self.rules.slots(whole));
        let added = slots.filter(|slot| changed.contains(slot));
        added.for_each(|slot| cuts.lacked.insert(slot));
        self.rules.set_other_cuts(cuts);
    }

    /// Compares how the peers cut groups.
    pub(super) fn compare_cuts(&mut self, now: Time) {
        let before = self.rules.other_cuts();
        let mut cuts = OtherCuts::default();
        let Some(cluster) = self.cluster() else {
            return;
        };
        let has = |peer, group| cluster.sync.has_group(peer, group);
        // A peer whose stream is opened again has not said anything yet: it is as it was.
        let is_silent = || {
            let mut alive = self.peers().filter(|peer| cluster.ha.is_alive(*peer));
            alive.any(|peer| has(peer, GroupId(0)).is_none())
        };
        let is_owned = |group| self.is_primary(group) || cluster.ha.owner(group).is_some();
        for whole in self.groups() {
            let sharers = self.peers().filter(|peer| has(*peer, whole) == Some(true));
            let sharers: Vec<_> = sharers.collect();
            for slot in self.rules.slots(whole) {
                let is_lacked = sharers.iter().any(|peer| has(*peer, slot) == Some(false));
                let waits = before.lacked.contains(slot) && (is_silent() || !is_owned(slot));
                if is_lacked || waits {
                    cuts.lacked.insert(slot);
                }
            }
        }
        let differs = |peer| cluster.sync.has_other_cuts(peer);
        cuts.differ = self.peers().any(differs) || before.differ && is_silent();
        self.set_other_cuts(now, cuts);
    }

    /// Whether a peer has yet to read many changes, as far as this unit knows.
    fn peers_lag(&self) -> bool {
        let Some(cluster) = self.cluster() else {
            return false;
        };
        let last = self.sessions.journal().log().last();
        let lags = |peer| match cluster.sync.acknowledged(peer) {
            Some(read) => last - read > MOST_AHEAD,
            // Its stream is about to begin, unless no link leads there.
            None => cluster.ha.is_linked(peer),
        };
        let mut alive = self.peers().filter(|peer| cluster.ha.is_alive(*peer));
        alive.any(lags)
    }

    fn set_other_cuts(&mut self, now: Time, cuts: OtherCuts) {
        if cuts == self.rules.other_cuts() {
            return;
        }
        let passed_on = self.rules.passes_on();
        self.rules.set_other_cuts(cuts);
        if self.rules.passes_on() != passed_on {
            self.fast_path.stop_all();
        }
        self.spread_hosts(now);
    }

    /// Hosts have other slots than before: those units that answer for a group tell them.
    pub(super) fn spread_hosts(&mut self, now: Time) {
        let own: Vec<GroupId> = self.groups().filter(|it| self.is_primary(*it)).collect();
        let wholes = own.into_iter().filter(|it| self.rules.whole(*it) == *it);
        let wholes: Vec<GroupId> = wholes.collect();
        for group in wholes {
            self.announce_group(now, group);
        }
    }

    /// Follows the peers while groups are cut into other numbers of slots.
    pub(super) fn follow_cuts(&mut self, now: Time) {
        if self.rules.other_cuts() != OtherCuts::default() {
            self.compare_cuts(now);
        }
        let former = self.rules.former_slots();
        let is_due = now >= self.former_slots.look_at;
        if !former.is_empty() && is_due && !self.is_reloading() && !self.is_lent() {
            self.former_slots.look_at = now + LOOK;
            self.look_at_former_slots(now, former);
        }
    }

    fn look_at_former_slots(&mut self, now: Time, former: GroupSet) {
        let is_empty = |slot: &GroupId| self.sessions.count(*slot) == 0;
        let may_move = |slot: &GroupId| self.is_primary(*slot) && self.own_part(*slot).is_some();
        let mut full = former.iter().filter(|slot| !is_empty(slot));
        if full.any(|slot| may_move(&slot)) {
            self.revalidation.restart(Scope::default());
        }
        let empty: GroupSet = former.iter().filter(is_empty).collect();
        let last = self.sessions.journal().log().last();
        let before = std::mem::replace(&mut self.former_slots.empty, empty);
        let since = std::mem::replace(&mut self.former_slots.last, last);
        let done: Vec<GroupId> = empty
            .iter()
            .filter(|slot| before.contains(*slot) && self.is_done_with(*slot, since))
            .collect();
        if !done.is_empty() {
            self.drop_former_slots(now, &done);
        }
    }

    /// Whether nobody needs a former slot that has no sessions here. As long as a peer has other
    /// slots, it may open sessions in this one. Then the peers must know where its sessions are,
    /// which they do at the change `since`, and this unit must know that its primary has none, or
    /// as primary, that no peer has any: a peer would take the slot over otherwise, with all of
    /// them.
    fn is_done_with(&self, slot: GroupId, since: Seq) -> bool {
        let Some(cluster) = self.cluster() else {
            return true;
        };
        let knows = |peer| cluster.sync.acknowledged(peer) >= Some(since);
        let mut alive = self.peers().filter(|peer| cluster.ha.is_alive(*peer));
        let has_copies = |peer| {
            let has = cluster.sync.has_group(peer, slot) == Some(true);
            has && cluster.sync.is_holder(peer, slot) && !cluster.sync.digest_equal(peer, slot)
        };
        let has_none = match self.is_primary(slot) {
            true => !self.peers().any(has_copies),
            false => cluster.sync.is_ready(slot),
        };
        has_none && !self.rules.other_cuts().differ && alive.all(knows)
    }

    /// Takes slots out of the config in force that no longer have sessions.
    fn drop_former_slots(&mut self, now: Time, done: &[GroupId]) {
        let basis = self.basis();
        let mut config = Config::clone(&basis.config);
        for slot in done {
            config.groups[usize::from(slot.0)] = Group::default();
        }
        self.leave_groups(now, done);
        self.rules.set_config(Arc::new(config));
        self.follow_groups(now, done, &basis.ruleset);
        self.settle_cluster(now);
    }

    /// Moves a session out of a former slot, to another part of its group that this unit is primary
    /// of: the peers learn its new place with its next state.
    pub(super) fn leave_former_slot(&mut self, now: Time, id: SessionId) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let from = session.group;
        if !self.rules.former_slots().contains(from) || !self.is_primary(from) {
            return;
        }
        // A session whose first packet waits for copies moves later, and so do all while peers lag.
        if session.flags.contains(SessionFlags::WAITING) || self.peers_lag() {
            return;
        }
        let client = session.key(Direction::Original, self.sessions.book()).src;
        let home = self.rules.slot_of(self.rules.whole(from), &client);
        let home = Some(home).filter(|home| self.is_primary(*home));
        let to = home.or_else(|| self.own_part(from));
        // While another unit may still be primary of either, it may move it elsewhere.
        let is_undisputed = |group| now >= self.groups.undisputed(group);
        let to = to.filter(|to| is_undisputed(from) && is_undisputed(*to));
        if let Some(to) = to {
            self.leave_fast_path(now, id);
            self.sessions.move_to_group(id, to, now.tick());
        }
    }

    /// A former slot of the group of a slot that this unit is primary of.
    pub(super) fn own_former_slot(&self, slot: GroupId) -> Option<GroupId> {
        let whole = self.rules.whole(slot);
        let mut former = self.rules.former_slots().iter();
        former.find(|it| self.rules.whole(*it) == whole && self.is_primary(*it))
    }

    /// A part of the group of a slot that this unit is primary of, and that stays; if there is one,
    /// one that all peers have.
    pub(super) fn own_part(&self, slot: GroupId) -> Option<GroupId> {
        let whole = self.rules.whole(slot);
        let parts = self.rules.slots(whole).chain([whole]);
        let own = parts.filter(|part| self.is_primary(*part));
        let lacked = self.rules.other_cuts().lacked;
        own.min_by_key(|part| lacked.contains(*part))
    }
}
