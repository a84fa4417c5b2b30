//! Whether the kernel can forward established sessions, where the config asks for it.

use super::{Check, MachineProblem, firewall};
use crate::os::fast_path::FastPath;
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
    } else if !FastPath::can_attach() {
        problems.push(MachineProblem::warning(
            "this kernel can't have the program of the fast path at an interface (tcx)",
            "use Linux 6.6 or newer; or offload = \"tun\", which is what it falls back to",
        ));
    }
    problems.extend(firewall::chains_at_forward(config).map(|chain| {
        MachineProblem::warning(
            format!("packets of the fast path skip the nftables chain {chain}"),
            "write what it forbids as policies of the gateway; or offload = \"tun\"",
        )
    }));
    let found = "the kernel can forward established sessions, and no chain at forward misses them";
    Some(Check::new("fast-path", found, problems))
}
