//! The requirements on the machine, each with its remedy: for the start, for `tandemgw check
//! --system` and for `tandemgw doctor`.

mod barrier;
mod fast_path;
mod files;
mod firewall;
mod interface;
mod link;
mod machine;
mod memory;
mod neighbors;
mod others;
mod peer;
mod port;
mod services;

use super::netlink::{Address, KernelLink, Netlink, Rule};
use super::{steering, sysctl};
use tandemgw_core::config::Config;
use tandemgw_core::flow::Family;

/// A problem with the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineProblem {
    /// The problem, as a sentence without its full stop.
    pub what: String,
    /// The remedy, likewise.
    pub remedy: String,
    /// The gateway can't work with it. Otherwise it can, but perhaps not as expected.
    pub fatal: bool,
}

impl MachineProblem {
    /// A problem with which the gateway can't work.
    pub fn fatal(what: impl Into<String>, remedy: impl Into<String>) -> MachineProblem {
        MachineProblem {
            what: what.into(),
            remedy: remedy.into(),
            fatal: true,
        }
    }

    /// A problem that the administrator should know of.
    pub fn warning(what: impl Into<String>, remedy: impl Into<String>) -> MachineProblem {
        MachineProblem {
            fatal: false,
            ..MachineProblem::fatal(what, remedy)
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name, such as `rp-filter` or `port lan`.
    pub name: String,
    /// The finding, for when there is no problem.
    pub found: String,
    /// The problems found.
    pub problems: Vec<MachineProblem>,
}

impl Check {
    /// A check with its result.
    pub fn new(
        name: impl Into<String>,
        found: impl Into<String>,
        problems: impl IntoIterator<Item = MachineProblem>,
    ) -> Check {
        Check {
            name: name.into(),
            found: found.into(),
            problems: problems.into_iter().collect(),
        }
    }
}

/// All problems that keep a gateway from starting or from working well, the machine's before those
/// of the ports: the quick checks.
///
/// It changes nothing and needs no privileges, though it sees less without them. TUN devices in use
/// are a problem unless this gateway `is_running`.
pub fn check(config: &Config, is_running: bool) -> Vec<MachineProblem> {
    let network = Network::read(config);
    let checks = essentials(config, &network, is_running);
    checks
        .into_iter()
        .flat_map(|check| check.problems)
        .collect()
}

/// All checks of the machine. It takes up to a second for each neighbour that does not answer, and
/// changes nothing but the kernel's knowledge of neighbours.
///
/// The peers are checked unless this gateway `is_running`: then it knows better.
pub fn examine(config: &Config, is_running: bool) -> Vec<Check> {
    let network = Network::read(config);
    let mut checks = vec![machine::kernel(config)];
    checks.extend(essentials(config, &network, is_running));
    checks.push(firewall::connection_tracking());
    if let Ok(network) = &network {
        checks.push(barrier::check(config, network, is_running));
        checks.push(others::check(config, network));
        checks.push(services::check(config, |port| {
            let link = network.link(&port.interface);
            let own = link.iter().flat_map(|link| network.addresses_of(link));
            own.map(|own| own.addr).collect()
        }));
        checks.push(machine::forwarding(config, network, is_running));
        checks.push(port::mtus(config, network));
        checks.push(port::receive_offload(config));
        checks.extend(fast_path::check(config, network));
    }
    checks.push(neighbors::neighbors(config));
    checks.push(machine::clock());
    checks.push(files::control_socket(config, is_running));
    checks.extend(files::key(config));
    if let (Some(ha), Ok(network)) = (&config.ha, &network) {
        let links = ha.links.iter();
        checks.extend(links.map(|link| link::check(config, link, network, is_running)));
        if !is_running {
            checks.extend(peer::check_all(ha, network));
        }
    }
    checks
}

/// The checks before each start.
fn essentials(
    config: &Config,
    network: &Result<Network, NetworkError>,
    is_running: bool,
) -> Vec<Check> {
    let mut checks = vec![
        machine::privileges(),
        machine::tun_driver(),
        memory::check(config, is_running),
        machine::rp_filter(config, network.as_ref().ok()),
        firewall::check(config),
    ];
    match network {
        Ok(network) => {
            checks.push(machine::routing(config, network));
            checks.push(port::virtual_addresses(config, network));
            let ports = config.ports.iter();
            checks.extend(ports.map(|port| port::check(config, port, network, is_running)));
        }
        Err(error) => {
            let remedy =
                "check that the kernel has rtnetlink and that no seccomp filter forbids it";
            let what = format!("the kernel's network configuration can't be read: {error}");
            checks.push(Check::new(
                "network",
                "",
                [MachineProblem::fatal(what, remedy)],
            ));
        }
    }
    checks
}

type NetworkError = Box<dyn std::error::Error>;

/// The kernel's network configuration.
struct Network {
    links: Vec<KernelLink>,
    addresses: Vec<Address>,
    rules: Vec<Rule>,
    /// Tables and rule priorities of the gateway that something else uses.
    taken: Vec<String>,
}

impl Network {
    fn read(config: &Config) -> Result<Network, NetworkError> {
        let mut netlink = Netlink::open()?;
        let mut rules = netlink.rules(Family::V4)?;
        if sysctl::has_family(Family::V6) {
            rules.extend(netlink.rules(Family::V6)?);
        }
        Ok(Network {
            links: netlink.links()?,
            addresses: netlink.addresses()?,
            rules,
            taken: steering::taken(&mut netlink, config)?,
        })
    }

    fn link(&self, name: &str) -> Option<&KernelLink> {
        self.links.iter().find(|link| link.name == name)
    }

    fn name_of(&self, index: u32) -> &str {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or("?", |link| &link.name)
    }

    fn addresses_of(&self, link: &KernelLink) -> impl Iterator<Item = &Address> {
        let index = link.index;
        self.addresses
            .iter()
            .filter(move |address| address.link == index)
    }
}
