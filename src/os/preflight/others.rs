//! Programs, filters, queues and policies of others that see what the ports bring and send.

use std::process::Command;

use super::{Check, MachineProblem, Network};
use crate::os::netlink::{Netlink, Queue, blocking_ipsec_policies};
use tandemgw_core::config::Config;

pub(super) fn check(config: &Config, network: &Network) -> Check {
    let mut problems = Vec::new();
    if let Ok(mut netlink) = Netlink::open()
        && let (Ok(traffic), Ok(queues)) = (netlink.traffic(), netlink.queues())
    {
        let ports = config.ports.iter();
        let names = ports.flat_map(|port| [port.interface.clone(), format!("tgw-{}", port.name)]);
        for link in names.filter_map(|name| network.link(&name)) {
            if traffic.get(&link.index).is_some_and(|it| it.has_xdp) {
                problems.push(MachineProblem::warning(
                    format!(
                        "an XDP program is at {}: it sees what comes in before the gateway, and may drop it",
                        link.name
                    ),
                    format!("ip link set {} xdp off, if it is not wanted", link.name),
                ));
            }
            let own = queues.iter().filter(|queue| queue.link == link.index);
            problems.extend(own.filter_map(|queue| of_queue(&link.name, queue)));
        }
    }
    if blocking_ipsec_policies().unwrap_or(0) > 0 {
        problems.push(MachineProblem::warning(
            "a policy of IPsec blocks packets that are forwarded",
            "ip xfrm policy shows it; ip xfrm policy delete removes it",
        ));
    }
    Check::new(
        "filters",
        "no program, tc filter, queue or IPsec policy drops what the ports bring or send",
        problems,
    )
}

fn of_queue(name: &str, queue: &Queue) -> Option<MachineProblem> {
    let kind = &queue.kind;
    if queue.is_filter {
        let sides = ["ingress", "egress"].map(|side| filters(name, side));
        // Without tc(8) there may be some.
        let has_filters = sides.iter().any(|filters| filters.as_deref() != Some(""));
        return has_filters.then(|| {
            MachineProblem::warning(
                format!("filters of tc see the packets of {name}, and may take or drop them"),
                format!(
                    "tc filter show dev {name} ingress, and egress; tc qdisc del dev {name} {kind} \
                     removes them"
                ),
            )
        });
    }
    (queue.passed == 0 && queue.dropped > 0).then(|| {
        MachineProblem::warning(
            format!("the queue of {name} ({kind}) has dropped all that was sent"),
            format!("tc -s qdisc show dev {name} tells; tc qdisc del dev {name} root removes it"),
        )
    })
}

fn filters(name: &str, side: &str) -> Option<String> {
    let arguments = ["filter", "show", "dev", name, side];
    let output = Command::new("tc").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned())
}
