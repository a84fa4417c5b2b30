//! Evaluates changes of links and their addresses.

use super::{Address, KernelLink, Monitor, Notice, OwnAddress, PortId, Stage};
use crate::os::steering::Disturbance;

/// Why a port can't use the interface that has its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detached {
    /// It belongs to the bridge, bond or VRF with that name, so its packets come in through that.
    Master(String),
    /// The macvlan with that name, in mode passthru, takes its packets.
    Taken(String),
    /// It is the interface of another port: somebody exchanged the names. Following the names would
    /// mistake one network for the other.
    OtherPort(PortId),
    /// ARP and neighbour discovery are off: it reaches no host.
    WithoutArp,
}

impl Monitor {
    /// The port whose interface a link is: by its name, unless it had that of another port before.
    pub(super) fn port_of_interface(&self, link: &KernelLink) -> Option<PortId> {
        let named = *self.ports.get(&link.name)?;
        let owner = self.owners.get(&link.index);
        owner.is_none_or(|owner| *owner == named).then_some(named)
    }

    pub(super) fn own(&self, address: &Address) -> OwnAddress {
        let link = self.links.get(&address.link);
        OwnAddress {
            index: address.link,
            addr: address.addr,
            port: link.and_then(|link| self.port_of(link)),
        }
    }

    /// The result is true if IPv4 routes have vanished silently or now lead elsewhere.
    pub(super) fn take_link(&mut self, link: KernelLink, out: &mut Vec<Notice>) -> bool {
        if self.dump.stage == Some(Stage::Links) {
            self.dump.seen.insert(link.index);
        }
        let before = self.links.insert(link.index, link.clone());
        let taken_before = before.as_ref().and_then(|before| before.takes);
        if link.takes != taken_before {
            self.look_again(link.takes, out);
            self.look_again(taken_before, out);
        }
        let renamed = before.as_ref().filter(|before| before.name != link.name);
        if let Some(before) = renamed.filter(|before| self.ports.contains_key(&before.name)) {
            self.gone(before.clone(), Some(link.name.clone()), out);
        }
        self.note_tun(&link, out);
        let named = self.ports.get(&link.name).copied();
        let regrouped = before.as_ref().is_some_and(|it| it.group != link.group);
        out.extend(
            named
                .filter(|_| regrouped)
                .map(|port| Notice::Disturbed(Disturbance::Port(port))),
        );
        let owner = named.map(|port| *self.owners.entry(link.index).or_insert(port));
        let detached = match (named, owner, link.master) {
            (Some(named), Some(owner), _) if owner != named => Some(Detached::OtherPort(owner)),
            (Some(_), _, Some(master)) => Some(Detached::Master(self.name_of(master))),
            (Some(_), _, None) => {
                let mut all = self.links.values();
                let taker = all.find(|other| other.takes == Some(link.index));
                let taker = taker.map(|taker| Detached::Taken(taker.name.clone()));
                taker.or(link.no_arp.then_some(Detached::WithoutArp))
            }
            _ => None,
        };
        let mut state = link.state();
        state.up &= detached.is_none();
        out.push(Notice::Link {
            index: link.index,
            port: named,
            state,
            detached,
            name: link.name.clone(),
        });
        before.is_some_and(|before| (before.admin_up && !link.admin_up) || before.name != link.name)
    }

    /// The entry for a link may mean something else now.
    fn look_again(&mut self, index: Option<u32>, out: &mut Vec<Notice>) {
        if let Some(link) = index.and_then(|index| self.links.get(&index)).cloned() {
            self.take_link(link, out);
        }
    }

    pub(super) fn gone(
        &mut self,
        link: KernelLink,
        renamed: Option<String>,
        out: &mut Vec<Notice>,
    ) {
        if renamed.is_none()
            && let Some(port) = self.tun_links.remove(&link.index)
        {
            out.push(Notice::Disturbed(Disturbance::Port(port)));
        }
        if renamed.is_none() {
            self.owners.remove(&link.index);
            self.look_again(link.takes, out);
        }
        out.push(Notice::LinkGone {
            index: link.index,
            port: self.ports.get(&link.name).copied(),
            name: link.name,
            renamed,
        });
    }
}
