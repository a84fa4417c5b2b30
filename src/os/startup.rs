//! From a valid config to a running loop: opens everything in an order that fails closed.

use std::fmt;
use std::time::Duration;

use tandemgw_core::config::{Config, Port as PortConfig, Sources};
use tandemgw_core::control::KeptConfig;
use tandemgw_core::flow::{Addr, PortId};
use tandemgw_core::gateway::{Conflict, Gateway, Seed};
use tandemgw_core::ha::PortKeys;
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::packet::neighbor::{self, Neighbor};
use tandemgw_core::push::Text;

use super::capabilities;
use super::clock;
use super::config_terms::{offloads, solicited_groups, with_absolute_paths};
use super::event_loop::{FastPorts, Port, Shell, recall};
use super::history::{self, Origin};
use super::key_file;
use super::memory;
use super::memory_holder;
use super::monitor::{Monitor, Notice};
use super::multicast::Groups;
use super::netlink::Netlink;
use super::packet_socket::PacketSocket;
use super::priority;
use super::process;
use super::signal::Signals;
use super::state_file::StateFile;
use super::steering::Steering;
use super::tun::Tun;

/// How long a machine that has one of our addresses may take to say so. RFC 5227 waits for seconds,
/// since hosts come up together after a power cut; a gateway must forward again sooner than that,
/// and goes on watching for conflicts.
const PROBE_TIME: Duration = Duration::from_millis(200);
/// Frames of a port that are looked at then.
const MOST_FRAMES: usize = 4096;

/// Why a gateway could not start or go on, and what was being done.
#[derive(Debug)]
pub struct StartError {
    what: String,
    source: Box<dyn std::error::Error + Send + Sync>,
    /// Whether the config or the machine is to blame (exit code 2), not the moment (1).
    pub unfit: bool,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for StartError {}

/// Names what was being done when an error came.
fn doing<E>(what: impl Into<String>) -> impl FnOnce(E) -> StartError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| StartError {
        what: what.into(),
        source: error.into(),
        unfit: false,
    }
}

fn unfit(error: StartError) -> StartError {
    StartError {
        unfit: true,
        ..error
    }
}

fn share_memory() {
    if let Err(error) = memory_holder::start() {
        log::warn!(
            "memory not shared error={} effect=\"a killed process is noticed some milliseconds later\"",
            InQuotes(&error)
        );
    }
}

/// Runs a gateway until a signal ends it; those that came before it runs are obeyed then.
///
/// # Errors
/// What failed; everything added to the kernel until then is removed again.
pub fn run(config: Config, sources: Sources, signals: Signals) -> Result<(), StartError> {
    if let Err(error) = priority::raise(config.ha.is_some()) {
        log::warn!(
            "priority not raised error={} effect=\"heartbeats may be late on a busy machine\"",
            InQuotes(&error)
        );
    }
    if let Err(error) = process::make_room_for_files() {
        log::debug!("limit of open files not raised error={}", InQuotes(&error));
    }
    // After the priority, for which files of this process are written that are root's from here on.
    if let Err(error) = process::keep_private() {
        log::warn!(
            "memory not private error={} effect=\"a debugger or a core dump may show the key and the sessions\"",
            InQuotes(&error)
        );
    }
    let file = std::path::absolute(sources.main());
    let file = file.map_err(doing("finding the working directory"))?;
    let config = with_absolute_paths(config).map_err(doing("finding the working directory"))?;
    let ports = open_ports(&config)?;
    let groups = join_groups(&config).map_err(unfit)?;
    let claims = probe_addresses(&config, &ports)?;
    let (mut gateway, monitor) = prepare(&config)?;
    for claim in claims {
        gateway.handle_conflict(clock::now(), claim.port, claim.addr, claim.mac);
    }
    if let Some((generation, sum)) = recall(&config) {
        gateway.push_mut().recall(generation, sum);
    }
    gateway.push_mut().set_config(Text::of(&sources));
    let (state, maintenance) = StateFile::open(&config);
    gateway.begin_in_maintenance(clock::now(), maintenance);
    let tuns = tun_indices(&ports)?;
    let fast = FastPorts::open(&config);
    let mut shell = Shell::new(&config, file, gateway, ports, monitor, signals, state)
        .map_err(doing("opening links and sockets"))
        .map_err(unfit)?;
    shell.set_history(keep(&config, &sources));
    drop(sources);
    shell.use_fast_path(fast);
    let netlink = Netlink::open().map_err(doing("opening netlink"))?;
    let steering = Steering::set_up(netlink, &config, &tuns)
        .map_err(doing("steering packets"))
        .map_err(unfit)?;
    if let Err(error) = capabilities::drop_all_but_needed() {
        log::warn!(
            "capabilities not dropped error={} effect=\"the process has more rights than it needs\"",
            InQuotes(&error)
        );
    }
    if config.ha.is_some() {
        share_memory();
    }
    let (result, steering) = shell.run(steering, groups);
    let result = result.map_err(doing("running"));
    // Steering goes before the TUN devices would, so that nothing slips past on the way out.
    let removed = match steering {
        Some(steering) => steering
            .remove()
            .map_err(doing("removing rules and routes")),
        // As after a crash: they stay, and nothing passes.
        None => Ok(()),
    };
    result.and(removed)
}

/// Adds the config to those that are kept; returns these.
fn keep(config: &Config, sources: &Sources) -> Vec<KeptConfig> {
    let origin = Origin {
        user: None,
        name: None,
        how: "start".to_owned(),
    };
    let kept = history::try_record(&history::folder(config), sources, &origin);
    // It is logged, and stops nobody.
    kept.unwrap_or_default()
}

fn open_ports(config: &Config) -> Result<Vec<Port>, StartError> {
    config.ports.iter().map(open_port).collect()
}

/// Joins the multicast groups of all ports.
fn join_groups(config: &Config) -> Result<Vec<Groups>, StartError> {
    let join = |(index, port): (usize, &PortConfig)| {
        let mut groups = Groups::new(&port.interface);
        groups.set(solicited_groups(config, port));
        groups.receive_all(config.has_multicast(PortId::from_index(index)));
        while groups.change_some(usize::MAX)? {}
        Ok(groups)
    };
    let joined: Result<Vec<Groups>, std::io::Error> =
        config.ports.iter().enumerate().map(join).collect();
    joined.map_err(doing("joining the multicast groups of the addresses"))
}

fn open_port(port: &PortConfig) -> Result<Port, StartError> {
    let name = format!("tgw-{}", port.name);
    let tun = Tun::open(&name, offloads(port))
        .map_err(doing(format!("opening the TUN device {name}")))
        .map_err(unfit)?;
    let socket = PacketSocket::open(&port.interface)
        .map_err(doing(format!(
            "listening for ARP and ND on {}",
            port.interface
        )))
        .map_err(unfit)?;
    Ok(Port { tun, socket })
}

/// Asks each link whether another machine has one of our addresses (RFC 5227, section 2.1.1). Who
/// has is not ours to stop; the gateway serves, and says so.
///
/// With `[ha]` that machine may be our peer, and the election asks.
fn probe_addresses(config: &Config, ports: &[Port]) -> Result<Vec<Conflict>, StartError> {
    if config.ha.is_some() {
        return Ok(Vec::new());
    }
    let mut netlink = Netlink::open().map_err(doing("opening netlink"))?;
    for (settings, port) in config.ports.iter().zip(ports) {
        let link = netlink
            .link(&settings.interface)
            .map_err(doing("reading interfaces"))?;
        let Some(mac) = link
            .filter(|link| link.state().up)
            .map(|link| link.state().mac)
        else {
            continue;
        };
        for addr in config.addresses_on(settings) {
            let _ = port.socket.send(&neighbor::probe(addr, mac));
        }
    }
    std::thread::sleep(PROBE_TIME);
    let all = config.ports.iter().zip(ports).enumerate();
    let claims = all.filter_map(|(index, (settings, port))| {
        let (addr, mac) = claim(&config.addresses_on(settings), port)?;
        let port = PortId::from_index(index);
        Some(Conflict { port, addr, mac })
    });
    Ok(claims.collect())
}

/// A claim of one of our addresses among the frames that have come in.
fn claim(own: &[Addr], port: &Port) -> Option<(Addr, [u8; 6])> {
    let mut frame = [0; 2048];
    // As many as the socket holds; a flood goes on for ever.
    for _ in 0..MOST_FRAMES {
        let Ok(Some(length)) = port.socket.recv(&mut frame) else {
            return None;
        };
        let claimed = match neighbor::parse_frame(&frame[..length]) {
            Ok(Neighbor::Advertise(claim)) => (claim.addr, claim.mac),
            Ok(Neighbor::Solicit(solicit)) => (solicit.sender, solicit.sender_mac),
            _ => continue,
        };
        if own.contains(&claimed.0) {
            return Some(claimed);
        }
    }
    None
}

/// The interface numbers of the TUN devices, in the order of the ports.
fn tun_indices(ports: &[Port]) -> Result<Vec<u32>, StartError> {
    let mut netlink = Netlink::open().map_err(doing("opening netlink"))?;
    let mut index = |port: &Port| {
        let what = format!("finding {}", port.tun.name());
        let link = netlink.link(port.tun.name()).map_err(doing(what.clone()))?;
        Ok(link.ok_or("it is gone").map_err(doing(what))?.index)
    };
    ports.iter().map(&mut index).collect()
}

/// The keys for the data ports, by peer.
fn port_keys(config: &Config) -> Result<Vec<Option<PortKeys>>, StartError> {
    let Some((ha, path)) = config.ha.as_ref().zip(config.node.key.as_deref()) else {
        return Ok(Vec::new());
    };
    let key = key_file::load(path)
        .map_err(doing("reading the key of this unit"))
        .map_err(unfit)?;
    let keys = ha.peers.iter().map(|peer| key_file::port_keys(&key, peer));
    Ok(keys.collect())
}

fn prepare(config: &Config) -> Result<(Gateway, Monitor), StartError> {
    let seed = clock::random_bytes()
        .map(Seed)
        .map_err(doing("reading random bytes"))?;
    let mut gateway = Gateway::new(config.clone(), seed, clock::now());
    gateway.set_port_keys(port_keys(config)?);
    memory::prefer_huge_pages(gateway.reserved_memory());
    let (monitor, notices) = Monitor::start(config).map_err(doing("reading routes and links"))?;
    let now = clock::now();
    for notice in notices {
        match notice {
            Notice::Route(change) => gateway.handle_route(change),
            Notice::Link {
                port: Some(port),
                state,
                ..
            } => gateway.handle_link(now, port, state),
            Notice::Address(own) => {
                gateway.handle_kernel_address(now, own.addr.into(), own.port, true);
            }
            _ => {}
        }
    }
    Ok((gateway, monitor))
}
