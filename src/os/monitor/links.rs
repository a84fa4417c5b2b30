//! What changes of links and of their addresses say.

use super::{Address, Link, Monitor, Notice, OwnAddress, Stage};
use crate::os::steering::Disturbance;

impl Monitor {
    pub(super) fn own(&self, address: &Address) -> OwnAddress {
        let link = self.links.get(&address.link);
        OwnAddress {
            index: address.link,
            addr: address.addr,
            port: link.and_then(|link| self.port_of(link)),
        }
    }

    /// The result is true if IPv4 routes have vanished silently, or lead elsewhere now.
    pub(super) fn take_link(&mut self, link: Link, out: &mut Vec<Notice>) -> bool {
        if self.dump.stage == Some(Stage::Links) {
            self.dump.seen.insert(link.index);
        }
        let before = self.links.insert(link.index, link.clone());
        let renamed = before.as_ref().filter(|before| before.name != link.name);
        if let Some(before) = renamed.filter(|before| self.ports.contains_key(&before.name)) {
            self.gone(before.clone(), Some(link.name.clone()), out);
        }
        self.note_tun(&link, out);
        let port = self.ports.get(&link.name).copied();
        let mut state = link.state();
        // Its packets come in by that device, past the rule.
        state.up &= port.is_none() || link.master.is_none();
        out.push(Notice::Link {
            index: link.index,
            port,
            state,
            master: link.master.map(|master| self.name_of(master)),
            name: link.name.clone(),
        });
        before.is_some_and(|before| (before.admin_up && !link.admin_up) || before.name != link.name)
    }

    pub(super) fn gone(&mut self, link: Link, renamed: Option<String>, out: &mut Vec<Notice>) {
        if renamed.is_none()
            && let Some(port) = self.tun_links.remove(&link.index)
        {
            out.push(Notice::Disturbed(Disturbance::Port(port)));
        }
        out.push(Notice::LinkGone {
            index: link.index,
            port: self.ports.get(&link.name).copied(),
            name: link.name,
            renamed,
        });
    }
}
