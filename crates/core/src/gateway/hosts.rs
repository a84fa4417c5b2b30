//! Facts about the machines on the links, and limits on how often each is notified.

use crate::config::Config;
use crate::flow::PeerId;

use super::announce::Announcer;
use super::conflict::Conflicts;
use super::lookups::Lookups;
use super::neighbors::Neighbors;
use super::port_frames::PortFrames;
use super::strays::Strays;
use super::unresolved::Unresolved;

/// The machines on the links. Each part limits the memory that strangers can make it use.
pub(super) struct Hosts {
    /// Tells them where the virtual addresses are.
    pub announcer: Announcer,
    /// Hosts that were heard, and next hops that are kept resolved.
    pub neighbors: Neighbors,
    /// Hosts that the kernel is looking for because of packets of the gateway.
    pub unresolved: Unresolved,
    /// Hosts that it looks for in vain.
    pub lookups: Lookups,
    /// Peers, by their frames on the data ports.
    pub port_frames: PortFrames,
    /// Machines that claim a virtual address.
    pub conflicts: Conflicts,
    /// Hosts that send to a unit which is not primary.
    pub strays: Strays,
    /// The peers that were alive when they were last looked at.
    pub units: Vec<PeerId>,
}

impl Hosts {
    pub(super) fn new(config: &Config) -> Hosts {
        Hosts {
            announcer: Announcer::new(config),
            neighbors: Neighbors::default(),
            unresolved: Unresolved::default(),
            lookups: Lookups::default(),
            port_frames: PortFrames::new(config.ports.len()),
            conflicts: Conflicts::default(),
            strays: Strays::default(),
            units: Vec::new(),
        }
    }
}
