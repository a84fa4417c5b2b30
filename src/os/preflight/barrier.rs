//! The barrier that keeps packets from bypassing the gateway.

use super::{Check, MachineProblem, Network};
use crate::os::barrier::{self, Condition, Post};
use tandemgw_core::config::Config;

/// Whether the barrier is in place, or can be set by a start.
pub(super) fn check(config: &Config, network: &Network, is_running: bool) -> Check {
    let found = match (
        barrier::examine(&config.node.name, &posts(config, network)),
        is_running,
    ) {
        (Ok(Condition::Whole { detour: false, .. }), true) => return no_detour(),
        (Ok(Condition::Whole { hops: false, .. }), true) => return no_hops(),
        (Ok(Condition::Whole { stopped: 0, .. }), _) => {
            "in place, and has stopped nothing".to_owned()
        }
        (Ok(Condition::Whole { stopped, .. }), _) => {
            format!(
                "in place; it has stopped {stopped} packets that would have bypassed the gateway"
            )
        }
        (Ok(Condition::Broken(_)), false) => "the gateway sets it when it starts".to_owned(),
        (Ok(Condition::Broken(what)), true) => return broken(config, &what),
        (Err(error), _) if error.is(libc::EPERM) => "can't tell without CAP_NET_ADMIN".to_owned(),
        (Err(error), _) => return missing(&error.to_string()),
    };
    Check::new("barrier", found, [])
}

fn broken(config: &Config, what: &str) -> Check {
    let table = barrier::table_name(&config.node.name);
    let problem = MachineProblem::warning(
        format!(
            "{what} (nftables table {table}): only routes and rules keep packets from bypassing the gateway"
        ),
        "find out who removes it (nft monitor); the gateway sets it again at once",
    );
    Check::new("barrier", "", [problem])
}

fn no_detour() -> Check {
    let problem = MachineProblem::warning(
        "packets are not marked as they come in by the ports: if ports are put into bridges, bonds or macvlans, what \
         these forward bypasses the gateway",
        "use a kernel with CONFIG_NETFILTER_INGRESS and CONFIG_NFT_FIB_INET (Linux 5.10), and restart the gateway",
    );
    Check::new("barrier", "in place, but for marks", [problem])
}

fn no_hops() -> Check {
    let problem = MachineProblem::warning(
        "the kernel answers packets whose hop limit ends here: traceroute shows an address of this unit",
        "modprobe nft_fib_inet (CONFIG_NFT_FIB_INET), and restart the gateway; or find out who removes the chain `hops`",
    );
    Check::new("barrier", "in place, but for hop limits", [problem])
}

fn missing(error: &str) -> Check {
    let problem = MachineProblem::warning(
        format!(
            "this kernel has no packet filter that the gateway can use ({error}): only routes and rules keep \
             packets from going past it"
        ),
        "modprobe nf_tables, or use a kernel with CONFIG_NF_TABLES_INET",
    );
    Check::new("barrier", "", [problem])
}

fn posts(config: &Config, network: &Network) -> Vec<Post> {
    let index = |name: &str| Some(network.link(name)?.index);
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
    config.ports.iter().map(post).collect()
}
