//! The parts of the gateway that a change of options concerns.

use crate::config::Live;

/// The changes that parts of the gateway must follow, because they keep an option or a value
/// derived from one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Policies, pools and forwards, and what peers are told of multicast: there is a new ruleset,
    /// and sessions are compared with it.
    pub rules: bool,
    /// The addresses that the gateway answers for, or translates to: the shell follows.
    pub addresses: bool,
    /// There are other groups: election and replication follow.
    pub groups: bool,
    /// A port that now checks sources may have sessions that fail the check.
    pub sources: bool,
    pub timeouts: bool,
    pub source_limits: bool,
    pub icmp_errors: bool,
    pub announcements: bool,
    pub priorities: bool,
    pub override_: bool,
    pub monitor: bool,
    pub targets: bool,
    /// There may be other peers, or they have other addresses or keys: the shell follows.
    pub peers: bool,
    pub pickup: bool,
    /// Other units may configure this one.
    pub pushers: bool,
    /// What the peers are told of weights. The priorities that follow from them change apart.
    pub weights: bool,
    /// Other numbers of peers may have to hold a group.
    pub copies: bool,
    pub witness: bool,
    /// Policies and static members of multicast: the shell follows.
    pub multicast: bool,
    /// How long a standby keeps what it was told of multicast.
    pub multicast_ttl: bool,
}

impl Effects {
    /// The effects of these changed options.
    pub(super) fn of(options: impl IntoIterator<Item = Live>) -> Effects {
        let mut effects = Effects::default();
        for option in options {
            effects.add(option);
        }
        effects
    }

    fn add(&mut self, option: Live) {
        match option {
            Live::Policies => self.rules = true,
            Live::NatPools | Live::Forwards | Live::VirtualAddresses => {
                (self.rules, self.addresses) = (true, true);
            }
            Live::Groups => (self.rules, self.addresses, self.groups) = (true, true, true),
            Live::SourceCheck => self.sources = true,
            Live::Timeouts => self.timeouts = true,
            Live::SessionsPerSource | Live::HalfOpenPerSource => self.source_limits = true,
            Live::IcmpErrorsPerSecond => self.icmp_errors = true,
            Live::GratuitousArps | Live::GratuitousArpInterval => self.announcements = true,
            Live::GroupPriority | Live::Priority => self.priorities = true,
            Live::Weights => self.weights = true,
            Live::Copies | Live::AsymmetricFlows => self.copies = true,
            Live::Override | Live::OverrideWaitTime => self.override_ = true,
            Live::Monitor => self.monitor = true,
            Live::Peers => (self.peers, self.pushers) = (true, true),
            Live::Witness => self.witness = true,
            Live::Multicast => (self.rules, self.multicast) = (true, true),
            Live::MulticastTtl => self.multicast_ttl = true,
            Live::AcceptPush => self.pushers = true,
            Live::LinkMonitors | Live::FailoverThreshold => self.targets = true,
            Live::SessionPickup | Live::SessionPickupConnectionless | Live::SessionPickupDelay => {
                self.pickup = true;
            }
            // Read from the config where they are used.
            Live::UnsolicitedSyn
            | Live::RoutingHeaders
            | Live::ReservedAddresses
            | Live::MssClamp
            | Live::PortQuotas
            | Live::PortsPerSource
            | Live::TcpPickup
            | Live::PickupGuarantee
            | Live::PickupGuaranteeWait
            | Live::PickupGuaranteeCopies => {}
        }
    }
}
