//! The kernel parameters and the address that a TUN and a port need, at the start and whenever somebody
//! has changed one of them.

use std::net::{IpAddr, Ipv4Addr};

use super::{Link, Netlink, PortPlan, SetupError, Steering, Survey, SysctlError, forward, sysctl};
use crate::os::netlink::NetlinkError;
use tandemgw_core::flow::Family;

/// The IPv4 address of each TUN device.
///
/// A reverse path filter drops all that comes in by an interface without an address, even the loose
/// one (`rp_filter=2`), unless the source is routed to just that interface. The address serves for
/// nothing else: all of 127.0.0.0/8 leads to the loopback anyway, no neighbour can ask for it, and its
/// scope keeps the kernel from sending from it.
pub const TUN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 77, 0, 1));

impl Steering {
    /// Puts back the parameters of the interface or TUN device called `name`, and gives their names:
    /// call it when one of them was set. It does nothing to a device that is not ours.
    ///
    /// # Errors
    /// What can't be read or written.
    pub fn keep_parameters(&mut self, name: &str) -> Result<Vec<&'static str>, SetupError> {
        let Steering { netlink, plan } = self;
        let mut changed = Vec::new();
        if plan.ports.iter().any(|port| port.interface == name) {
            for family in &plan.families {
                changed.extend(forward(*family, name)?);
            }
        } else if let Some(link) = netlink.link(name)?
            && plan.ports.iter().any(|port| port.tun == link.index)
        {
            changed = set_tun_parameters(name, &plan.families)?;
        }
        Ok(changed)
    }
}

/// Parameters first: a device that is set up before it is told not to gives itself an address.
pub(super) fn prepare_tun(
    netlink: &mut Netlink,
    port: &PortPlan,
    survey: &Survey,
    families: &[Family],
) -> Result<(), SetupError> {
    let Some(tun) = survey.links.values().find(|link| link.index == port.tun) else {
        return Err(SetupError::NoInterface(format!("#{} (a TUN)", port.tun)));
    };
    set_tun_parameters(&tun.name, families)?;
    if !survey.has_address(tun.index, TUN_ADDRESS) {
        give_address(netlink, tun)?;
    }
    if !tun.admin_up {
        netlink.set_queue_length(tun.index, super::TUN_QUEUE)?;
        netlink.set_mtu(tun.index, super::TUN_MTU)?;
        netlink.set_link_up(tun.index)?;
    }
    Ok(())
}

fn give_address(netlink: &mut Netlink, tun: &Link) -> Result<(), NetlinkError> {
    netlink.add_host_address(tun.index, TUN_ADDRESS)
}

/// Gives the names of those that were otherwise.
fn set_tun_parameters(name: &str, families: &[Family]) -> Result<Vec<&'static str>, SysctlError> {
    const ADDR_GEN_MODE_NONE: u32 = 1;
    let v4 = [
        // What the gateway writes has sources that the kernel would expect on the port's interface.
        ("rp_filter", 0),
        // With it off the kernel looks each source up once more where there are rules, to refuse its
        // own addresses. The interface that the packet came in by has refused them already.
        ("accept_local", 1),
    ];
    let v6 = [
        ("addr_gen_mode", ADDR_GEN_MODE_NONE),
        ("accept_ra", 0),
        ("disable_ipv6", 0),
    ];
    let mut changed = Vec::new();
    for family in families {
        let parameters = match family {
            Family::V4 => &v4[..],
            Family::V6 => &v6[..],
        };
        for (key, value) in parameters {
            if sysctl::set(*family, name, key, *value)? {
                changed.push(*key);
            }
        }
        changed.extend(forward(*family, name)?);
    }
    Ok(changed)
}
