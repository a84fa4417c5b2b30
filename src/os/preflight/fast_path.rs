//! Whether the kernel can forward established sessions, where the config asks for it.

use super::{Check, MachineProblem, firewall};
use crate::os::fast_path::FastPath;
use crate::os::netlink::{Netlink, has_forwarding_ipsec_policies};
use crate::os::skipped;
use crate::os::steering::has_foreign_rules;
use tandemgw_core::config::{Config, PortOffload};

/// None if no port wants it.
pub(super) fn check(config: &Config) -> Option<Check> {
    let wants = |offload| offload == PortOffload::Ebpf;
    if !config.ports.iter().any(|port| wants(port.offload)) {
        return None;
    }
    let mut problems = Vec::new();
    // As at a start, but for one session, and at no interface.
    if let Err(error) = FastPath::load(1, 1) {
        problems.push(MachineProblem::warning(
            format!("the program of the fast path can't be loaded: {error}"),
            "run it as root, or with CAP_BPF in its systemd unit; or offload = \"tun\", which is \
             what it falls back to",
        ));
    }
    let skipped = [
        (
            has_forwarding_ipsec_policies().unwrap_or(false),
            skipped::IPSEC,
        ),
        (are_rules_foreign(config), skipped::RULES),
    ];
    let skipped = skipped.into_iter().filter(|(is_there, _)| *is_there);
    problems.extend(skipped.map(|(_, why)| {
        MachineProblem::warning(
            format!("nothing takes the fast path: {why}"),
            "remove them, if they are of no use; or offload = \"tun\", which is what happens",
        )
    }));
    problems.extend(firewall::skipped_chains(config).map(|chain| {
        MachineProblem::warning(
            format!("packets of the fast path skip the nftables chain {chain}"),
            "write what it forbids as policies of the gateway; or offload = \"tun\"",
        )
    }));
    let found = "the kernel can forward established sessions, and no chain misses them";
    Some(Check::new("fast-path", found, problems))
}

fn are_rules_foreign(config: &Config) -> bool {
    let netlink = Netlink::open();
    netlink.is_ok_and(|mut netlink| has_foreign_rules(&mut netlink, config).unwrap_or(false))
}
