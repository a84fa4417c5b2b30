//! Other machines that claim a virtual address of ours.
//!
//! The gateway continues to serve: it tells hosts again where the address is, at most once in 10 s,
//! and probes the claimant again, so that the operator sees a conflict for as long as it lasts.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::Output;
use crate::flow::{Addr, PortId};
use crate::packet::neighbor::{self, Mac};
use crate::time::Time;

use super::{Gateway, Role};

/// The time between two probes of the machine that claims an address.
const ASK: Duration = Duration::from_secs(5);
/// A conflict is over if nobody has claimed the address for this time.
const OVER: Duration = Duration::from_secs(15);
/// Probes in one go.
const MOST_ASKED: usize = 8;

/// The claims of others; no more of them than addresses of ours.
#[derive(Default)]
pub(super) struct Conflicts(BTreeMap<(PortId, Addr), Claim>);

#[derive(Clone, Copy)]
struct Claim {
    mac: Mac,
    last: Time,
    asked: Time,
    /// It was claimed while this unit answered for it.
    is_certain: bool,
}

/// A virtual address that another machine claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The port on whose link it was claimed.
    pub port: PortId,
    /// The virtual address, which this unit answers for.
    pub addr: Addr,
    /// Who claims it.
    pub mac: Mac,
}

impl Conflict {
    /// The hardware address of the claimant, in readable form.
    pub fn mac_text(&self) -> String {
        text(self.mac)
    }
}

impl Gateway {
    /// Another machine claims `addr`, an address of ours on `port`.
    pub(super) fn note_conflict(&mut self, now: Time, port: PortId, addr: Addr, mac: Mac) {
        let is_certain = self.defends(port, &addr);
        let claim = self.hosts.conflicts.0.entry((port, addr)).or_insert(Claim {
            mac,
            last: now,
            asked: now,
            is_certain,
        });
        (claim.mac, claim.last) = (mac, now);
        claim.is_certain |= is_certain;
    }

    /// Another machine claims `addr`; this was seen before the start.
    pub fn handle_conflict(&mut self, now: Time, port: PortId, addr: Addr, mac: Mac) {
        self.note_conflict(now, port, addr, mac);
        self.warn_of_conflict(port, addr, mac);
    }

    pub(super) fn warn_of_conflict(&self, port: PortId, addr: Addr, mac: Mac) {
        log::warn!(
            "address conflict port={} addr={addr} claimed_by={} effect=\"hosts may send to that machine\" \
             remedy=\"another machine uses this virtual address: remove it there\"",
            self.port_name(port),
            text(mac)
        );
    }

    /// Lasting conflicts about addresses that this unit answers for.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        let certain = self
            .hosts
            .conflicts
            .0
            .iter()
            .filter(|(_, claim)| claim.is_certain);
        let all = certain.map(|(&(port, addr), claim)| Conflict {
            port,
            addr,
            mac: claim.mac,
        });
        all.filter(|it| self.defends(it.port, &it.addr))
    }

    /// Forgets conflicts that are over, and probes the claimants of the others.
    pub(super) fn review_conflicts(&mut self, now: Time) {
        self.hosts
            .conflicts
            .0
            .retain(|_, claim| now.since(claim.last) < OVER);
        let due = self.hosts.conflicts.0.iter();
        let due = due.filter(|((port, addr), claim)| {
            now.since(claim.asked) >= ASK && self.defends(*port, addr)
        });
        let due: Vec<_> = due.map(|(place, _)| *place).take(MOST_ASKED).collect();
        for (port, addr) in due {
            if let Some(claim) = self.hosts.conflicts.0.get_mut(&(port, addr)) {
                claim.asked = now;
            }
            let link = *self.links.link(port);
            if link.up {
                let bytes = neighbor::probe(addr, link.mac);
                self.push_output(Output::Frame { port, bytes });
            }
        }
    }

    /// Whether `mac` is that of a peer, according to frames that it has signed.
    pub(super) fn is_peer(&self, port: PortId, mac: Mac) -> bool {
        self.cluster()
            .is_some_and(|cluster| cluster.ha.is_peer(port, mac))
    }

    /// Whether this unit serves the addresses of any group.
    pub(super) fn forwards(&self) -> bool {
        self.groups().any(|group| self.role(group) == Role::Primary)
    }
}

/// A hardware address in readable form.
fn text(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
