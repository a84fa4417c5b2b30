//! Whether the kernel can forward established sessions, where the config allows it.

use super::{Check, MachineProblem, Network};
use crate::os::barrier::Post;
use crate::os::fast_path::FastPath;
use crate::os::netlink::{Netlink, has_forwarding_ipsec_policies};
use crate::os::skipped::{self, Filters, Own};
use crate::os::steering::has_foreign_rules;
use tandemgw_core::config::{Config, PortOffload};

/// None if no port wants it. Where the config asks for it, what is against it is a problem;
/// elsewhere, a finding.
pub(super) fn check(config: &Config, network: &Network) -> Option<Check> {
    let has = |offload| config.ports.iter().any(|port| port.offload == offload);
    let (is_asked_for, is_auto) = (has(PortOffload::Ebpf), has(PortOffload::Auto));
    if !is_asked_for && !is_auto {
        return None;
    }
    let mut against = obstacles(config);
    let filters = Filters::open(Own::default()).skipped(&posts(config, network));
    against.extend(filters.into_iter().map(|what| {
        let remedy = "write what they forbid as policies of the gateway; or offload = \"tun\"";
        let what = match is_asked_for {
            true => format!("packets of the fast path skip {what}"),
            false => format!("packets would skip {what}"),
        };
        MachineProblem::warning(what, remedy)
    }));
    if is_asked_for || against.is_empty() {
        let found = "the kernel can forward established sessions, and no chain misses them";
        return Some(Check::new("fast-path", found, against));
    }
    let reasons = against.into_iter().map(|problem| problem.what);
    let reasons: Vec<String> = reasons.collect();
    let found = format!("all packets go through the process: {}", reasons.join("; "));
    Some(Check::new("fast-path", found, []))
}

/// What keeps all packets off the fast path.
fn obstacles(config: &Config) -> Vec<MachineProblem> {
    let mut found = Vec::new();
    // As at a start, but for one session, and at no interface.
    if let Err(error) = FastPath::load(1, 1) {
        found.push(MachineProblem::warning(
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
    found.extend(skipped.map(|(_, why)| {
        MachineProblem::warning(
            format!("nothing takes the fast path: {why}"),
            "remove them, if they are of no use; or offload = \"tun\", which is what happens",
        )
    }));
    found
}

/// The ports that want the fast path.
fn posts(config: &Config, network: &Network) -> Vec<Post> {
    let index = |name: &str| network.link(name).map(|link| link.index);
    let ports = config.ports.iter();
    let ports = ports.filter(|port| port.offload.wants_fast_path());
    let post = |port: &tandemgw_core::config::Port| {
        let tun_name = format!("tgw-{}", port.name);
        Post {
            interface: port.interface.clone(),
            index: index(&port.interface),
            tun: index(&tun_name).unwrap_or(0),
            tun_name,
            addresses: Vec::new(),
        }
    };
    ports.map(post).collect()
}

fn are_rules_foreign(config: &Config) -> bool {
    let netlink = Netlink::open();
    netlink.is_ok_and(|mut netlink| has_foreign_rules(&mut netlink, config).unwrap_or(false))
}
