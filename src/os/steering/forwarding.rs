//! Whether the kernel forwards packets from an interface.

use super::{Family, PROTOCOL_FORWARDING_WAS_OFF, Rule, SysctlError, sysctl};

/// The parameter that makes the kernel forward packets from `interface`: its interface and key.
///
/// IPv6 looks at `all.forwarding` and at the interface's `force_forwarding` only, which came with
/// Linux 6.17; the interface's `forwarding` says whether it acts as a router there.
pub(in crate::os) fn forwarding_key(
    family: Family,
    interface: &str,
) -> Result<(&str, &'static str), SysctlError> {
    const FORCE: &str = "force_forwarding";
    Ok(match family {
        Family::V4 => (interface, "forwarding"),
        Family::V6 if sysctl::get(family, "all", FORCE)?.is_some() => (interface, FORCE),
        Family::V6 => ("all", "forwarding"),
    })
}

pub(super) fn is_forwarding(family: Family, interface: &str) -> Result<bool, SysctlError> {
    let (interface, key) = forwarding_key(family, interface)?;
    Ok(sysctl::get(family, interface, key)? == Some(1))
}

/// Turns it on; returns whether it was off.
pub(super) fn forward(family: Family, interface: &str) -> Result<bool, SysctlError> {
    let (scope, key) = forwarding_key(family, interface)?;
    if scope == "all" && !is_forwarding(family, interface)? {
        log::warn!(
            "ipv6 forwarding interface=all why=\"this kernel (before 6.17) forwards IPv6 on all or on \
             none\" remedy=\"set accept_ra=2 where addresses come by router advertisements\""
        );
    }
    sysctl::set(family, scope, key, 1)
}

/// Turns forwarding off for the interface of `rule` if it was off before.
pub(super) fn restore_forwarding(rule: &Rule) -> Result<(), SysctlError> {
    let Some(interface) = &rule.interface else {
        return Ok(());
    };
    if rule.protocol != PROTOCOL_FORWARDING_WAS_OFF {
        return Ok(());
    }
    let (scope, key) = forwarding_key(rule.family, interface)?;
    match sysctl::get(rule.family, scope, key)? {
        Some(_) => sysctl::set(rule.family, scope, key, 0).map(drop),
        None => Ok(()), // The interface is gone.
    }
}
