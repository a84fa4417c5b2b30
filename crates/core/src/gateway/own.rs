//! The kernel's addresses, and where it leads packets: one that is ours, or a detour, makes a port
//! useless.

use crate::flow::{Addr, PortId};
use crate::in_quotes::InQuotes;
use crate::time::Time;

use super::Gateway;
use super::links::PortFault;

impl Gateway {
    /// The kernel has gained or lost `addr` on the interface of `port`, or on another one.
    ///
    /// The kernel keeps packets to its addresses: if `addr` is one that the gateway answers for or
    /// translates to, they do not come here. The port counts as down for the election then.
    pub fn handle_kernel_address(
        &mut self,
        now: Time,
        addr: Addr,
        port: Option<PortId>,
        has_it: bool,
    ) {
        self.links.set_kernel_address(addr, port, has_it);
        if self.is_own_address(&addr) {
            self.find_faults(now);
        }
    }

    /// Whether packets to `addr` are the kernel's.
    pub(super) fn is_kernel_address(&self, addr: Addr) -> bool {
        self.links.kernel_has(addr)
    }

    /// All of the kernel's addresses are reported again, and then
    /// [`Gateway::check_kernel_addresses`] is called.
    pub fn forget_kernel_addresses(&mut self) {
        self.links.forget_kernel_addresses();
    }

    /// All of the kernel's addresses have been reported.
    pub fn check_kernel_addresses(&mut self, now: Time) {
        self.find_faults(now);
    }

    /// Why `port` does not work although its link is up.
    pub fn fault(&self, port: PortId) -> Option<PortFault> {
        self.links.fault(port)
    }

    /// The kernel does not route packets of `port` to the right place; the text says what it does.
    /// None if all is well again.
    pub fn handle_detour(&mut self, now: Time, port: PortId, detour: Option<String>) {
        let name = self.port_name(port);
        match &detour {
            Some(what) => log::error!("port does not work port={name} why={}", InQuotes(what)),
            None => log::info!("port works again port={name}"),
        }
        self.fast_path.stop_all();
        self.links.set_detour(port, detour);
        self.tell_ports(now);
        self.check_health(now);
    }

    /// Checks again which ports have an address that the kernel also has.
    pub(super) fn find_faults(&mut self, now: Time) {
        let mut changed = false;
        for port in self.links.ports() {
            let own = self.rules.addresses(port);
            let Some(fault) = self.links.check_fault(port, own) else {
                continue;
            };
            changed = true;
            self.fast_path.stop_all();
            let name = self.port_name(port);
            match fault {
                Some(addr) => log::error!(
                    "port does not work port={name} why=\"the virtual address {addr} was added to this machine\" \
                     effect=\"packets to it don't reach the gateway\" remedy=\"ip addr del {addr}, and take it \
                     from the configuration that adds it\""
                ),
                None => log::info!("port works again port={name}"),
            }
        }
        if changed {
            self.tell_ports(now);
        }
    }
}
