//! Translates a config into terms of the machine, for the start and for a reload.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use tandemgw_core::config::{Config, Port as PortConfig, PortOffload};

use super::multicast::solicited_node;
use super::tun::Offloads;

/// The config with absolute paths.
///
/// # Errors
/// If there is no working directory.
pub fn with_absolute_paths(mut config: Config) -> io::Result<Config> {
    let node = &mut config.node;
    node.control_socket = std::path::absolute(&node.control_socket)?;
    node.state_directory = std::path::absolute(&node.state_directory)?;
    node.key = node.key.as_ref().map(std::path::absolute).transpose()?;
    Ok(config)
}

/// The offloads that the config wants for a port.
pub fn offloads(port: &PortConfig) -> Offloads {
    match port.offload {
        PortOffload::Auto | PortOffload::Tun | PortOffload::Ebpf => Offloads::Auto,
        PortOffload::Plain => Offloads::Off,
    }
}

/// The multicast groups to which Neighbor Solicitations for the addresses on `port` are sent.
pub fn solicited_groups(config: &Config, port: &PortConfig) -> Vec<Ipv6Addr> {
    let solicited = |addr| match IpAddr::from(addr) {
        IpAddr::V6(ip) => Some(solicited_node(ip)),
        IpAddr::V4(_) => None,
    };
    let addresses = config.addresses_on(port).into_iter();
    addresses.filter_map(solicited).collect()
}
