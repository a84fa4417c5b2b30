//! Which slot of a group a packet belongs to, where `distribute` cuts the group.
//!
//! A session is in the slot of its client's address: any unit can work it out. A packet does not
//! say which of its ends is the client. In a packet that may open a session it is the source; in an
//! answer it is the destination, or where the client was translated, its port tells: each slot has
//! a slice of the ports of each pool. Where this is a guess that is wrong, as for the first answer
//! of an untranslated UDP session, the session is not found at the unit that is thought to own it.
//! This can only happen before the session is known on all units.

use crate::config::Action;
use crate::event::Output;
use crate::flow::{Addr, GroupId, PeerId, PortId};
use crate::nat::{PoolId, Slice};
use crate::packet::PacketKind;
use crate::packet::neighbor::{self, Mac, Solicit};
use crate::session::KeyedHash;
use crate::time::Time;

use super::rules::Rules;
use super::{Gateway, Packet, Plan, open};

/// Hosts are spread over the slots under this key, which is not secret: all units must come to the
/// same result. Whoever knows it can only choose addresses of hosts that share a slot.
const KEY: [u8; 16] = *b"tandemgw slots..";
/// Addresses that a host is told of.
const MOST_ADDRESSES: usize = 4;

impl Rules {
    /// The group of the sessions that `client` opens by addresses of `group`: one of its slots if
    /// it is cut.
    #[inline]
    pub(super) fn slot_of(&self, group: GroupId, client: &Addr) -> GroupId {
        let slots = &self.group(group).slots;
        if slots.is_empty() {
            return group;
        }
        let hash = KeyedHash::new(&KEY).bytes(client.octets());
        let slot = slots[hash as usize % slots.len()];
        match self.other_cuts().lacked.contains(slot) {
            false => slot,
            true => self.slot_of_all(group, hash),
        }
    }

    /// The slot for a hash among those that all peers have; the group itself if there is none. A
    /// config with more slots reaches one unit after the other.
    #[cold]
    fn slot_of_all(&self, group: GroupId, hash: u32) -> GroupId {
        let slots = self.group(group).slots.iter().copied();
        let lacked = self.other_cuts().lacked;
        let had: Vec<GroupId> = slots.filter(|slot| !lacked.contains(*slot)).collect();
        match had.len() {
            0 => group,
            count => had[hash as usize % count],
        }
    }

    /// The group that was cut, for a slot; any other group itself.
    #[inline]
    pub(super) fn whole(&self, group: GroupId) -> GroupId {
        self.group(group).part_of.unwrap_or(group)
    }

    /// Whether a group is cut into slots.
    pub(super) fn is_cut(&self, group: GroupId) -> bool {
        self.group(group).is_cut()
    }

    /// The ports that a session of `group` may get of a pool.
    pub(super) fn slice(&self, pool: PoolId, group: GroupId) -> Slice {
        let mut slots = self.group(self.whole(group)).slots.iter();
        let slot = slots.position(|slot| *slot == group);
        let slot = slot.and_then(|slot| u8::try_from(slot).ok());
        Slice { pool, slot }
    }

    /// The slots of a group, if it is cut, in order.
    pub(super) fn slots(&self, group: GroupId) -> impl Iterator<Item = GroupId> {
        self.group(group).slots.iter().copied()
    }
}

impl Gateway {
    /// Whether hosts may use this unit for addresses of a group: it is primary of it, or of one of
    /// its slots.
    pub(super) fn serves(&self, group: GroupId) -> bool {
        self.is_primary(group) || self.rules.slots(group).any(|slot| self.is_primary(slot))
    }

    /// The group of the session that a packet would open with `plan`, by addresses of `group`.
    pub(super) fn slot_for(&self, group: GroupId, packet: &Packet<'_>, plan: &Plan) -> GroupId {
        if !self.rules.is_cut(group) {
            return self.slot_here(group);
        }
        // Without ports, only the destination tells translated sessions apart: one unit must see
        // all that have the same one. The server of a forward has the same external port in all
        // sessions, also in those of its clients.
        let is_told_by_other_end = plan.source.is_some()
            && (!plan.key.protocol.has_ports() || self.sessions.nat().is_server(&plan.key));
        let client = match is_told_by_other_end {
            true => &plan.key.dst,
            false => &packet.parsed.key.src,
        };
        self.slot_here(self.rules.slot_of(group, client))
    }

    /// The slot that a packet belongs to, where `slot` is the one of its host. A peer that cuts the
    /// group otherwise takes this unit for its owner, and no packet is passed on twice: one of this
    /// unit's slots takes it; a former one if it has no other.
    fn slot_here(&self, slot: GroupId) -> GroupId {
        let is_settled = !self.rules.other_cuts().differ || self.is_primary(slot);
        if is_settled || !self.is_passed_on() {
            return slot;
        }
        let former = || self.own_former_slot(slot);
        self.own_part(slot).or_else(former).unwrap_or(slot)
    }

    /// The slot of `group` that a packet without a session belongs to, as far as its addresses and
    /// ports tell.
    pub(super) fn slot_by_packet(&self, group: GroupId, packet: &Packet<'_>) -> GroupId {
        if !self.rules.is_cut(group) {
            return self.slot_here(group);
        }
        let key = &packet.parsed.key;
        if !self.is_for_gateway(packet) {
            let is_inwards = self.is_own_address(&key.dst);
            let is_outwards = is_answer(&packet.parsed.kind) || self.sessions.nat().is_server(key);
            let client = match !is_inwards && is_outwards {
                true => &key.dst,
                false => &key.src,
            };
            return self.slot_here(self.rules.slot_of(group, client));
        }
        let may_be_answer = match packet.parsed.kind {
            PacketKind::Tcp(segment) => !segment.flags.syn() || segment.flags.ack(),
            PacketKind::Udp | PacketKind::IcmpReply => true,
            PacketKind::Other => return self.rules.slot_of(group, &key.src),
            _ => false,
        };
        let book = self.sessions.book();
        let slot = may_be_answer
            .then(|| self.sessions.nat().slot_of(book, key.dst, key.dst_port))
            .flatten();
        let slot = slot.and_then(|slot| self.rules.slots(group).nth(usize::from(slot)));
        match slot {
            Some(slot) => slot,
            // Any unit that hosts use answers a ping.
            None if self.serves(group) => self
                .rules
                .slots(group)
                .find(|it| self.is_primary(*it))
                .unwrap_or(group),
            None => group,
        }
    }
}

impl Gateway {
    /// The slot of a packet that may not open a session, if it may answer one of a host that it is
    /// for: one that is not known here yet.
    pub(super) fn slot_if_answer(&self, packet: &Packet<'_>) -> Option<GroupId> {
        let key = &packet.parsed.key;
        let addresses = &self.rules.port(packet.port).virtual_addresses;
        let mut groups = addresses.iter().map(|it| it.group);
        let group = groups.find(|group| self.rules.is_cut(*group))?;
        let may_open = match packet.parsed.kind {
            PacketKind::Tcp(segment) => segment.flags.syn() && !segment.flags.ack(),
            PacketKind::IcmpRequest => true,
            _ => false,
        };
        if may_open || self.is_own_address(&key.dst) {
            return None;
        }
        let egress = open::egress(self.route_for(key)).ok()?;
        let policy = self.policy(self.policy_for(egress, &key.reply())?)?;
        (policy.action == Action::Accept).then(|| self.rules.slot_of(group, &key.dst))
    }

    /// Whether a packet that may not open a session here may be an answer that another unit knows.
    #[cold]
    pub(super) fn is_answer_for_another(&self, packet: &Packet<'_>) -> bool {
        if !self.rules.passes_on() || self.is_passed_on() {
            return false;
        }
        let slot = self.slot_if_answer(packet);
        slot.is_some_and(|slot| !self.carries(packet.now, slot))
    }

    /// The hardware address at which `host`, on the link of `port`, finds the addresses of `group`:
    /// that of the unit which owns the host's slot, or else this unit's.
    pub(super) fn place_for(&self, now: Time, port: PortId, group: GroupId, host: &Addr) -> Mac {
        let slot = self.rules.slot_of(group, host);
        let elsewhere = || {
            let ha = &self.cluster()?.ha;
            ha.mac_of(now, ha.owner(slot)?, port)
        };
        let own = self.links.link(port).mac;
        match slot == group || self.is_primary(slot) {
            true => own,
            false => elsewhere().unwrap_or(own),
        }
    }

    /// Where a host finds the address that it asks for; none if another unit tells it. One that
    /// checks whether its entry still holds asks this unit alone.
    pub(super) fn answer_to(
        &self,
        now: Time,
        port: PortId,
        solicit: &Solicit,
        is_unicast: bool,
    ) -> Option<Mac> {
        let mut addresses = self.addresses_on(port);
        let (_, group) = addresses.find(|(own, _)| *own == solicit.target)?;
        let is_asked = self.is_primary(group) || is_unicast && self.serves(group);
        is_asked.then(|| self.place_for(now, port, group, &solicit.sender))
    }

    /// A peer has passed on a packet of a host on the link of `port`: tells the host that its
    /// packets are for this unit.
    pub(super) fn tell_host(&mut self, now: Time, port: PortId, host: Addr) {
        let Some(mac) = self.hosts.neighbors.mac_of((port, host)) else {
            return;
        };
        let link = *self.links.link(port);
        let own = self.rules.port(port).virtual_addresses.iter();
        let is_ours = |group: GroupId| {
            let slot = self.rules.slot_of(group, &host);
            slot != group && self.is_primary(slot)
        };
        let own = own.filter(|own| own.addr.family() == host.family() && is_ours(own.group));
        let own: Vec<Addr> = own.map(|own| own.addr).take(MOST_ADDRESSES).collect();
        if own.is_empty() || !link.up || !self.hosts.strays.is_due(now, (port, host)) {
            return;
        }
        for addr in own {
            let bytes = neighbor::correct(addr, link.mac, host, mac);
            self.push_output(Output::Frame { port, bytes });
        }
    }

    /// When a unit dies, its hosts must not wait until they look for it: the primary of a group
    /// that is cut announces itself to all of them, and then spreads them again.
    pub(super) fn gather_hosts(&mut self, now: Time) {
        let Some(cluster) = self.cluster().filter(|_| self.rules.passes_on()) else {
            return;
        };
        let alive = |peer: &PeerId| cluster.ha.is_alive(*peer);
        let alive: Vec<PeerId> = self.peers().filter(alive).collect();
        let before = std::mem::replace(&mut self.hosts.units, alive);
        if before.iter().all(|peer| self.hosts.units.contains(peer)) {
            return;
        }
        let cut = |group: &GroupId| self.rules.is_cut(*group) && self.is_primary(*group);
        let cut: Vec<GroupId> = self.groups().filter(cut).collect();
        for group in cut {
            self.announce_group(now, group);
        }
    }
}

/// Whether a packet can't open a session, because it answers another one.
fn is_answer(kind: &PacketKind) -> bool {
    match kind {
        PacketKind::Tcp(segment) => segment.flags.syn() && segment.flags.ack(),
        PacketKind::IcmpReply => true,
        _ => false,
    }
}
