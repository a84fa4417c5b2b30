//! Everything that the configuration decides: a reload replaces it as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{Config, Group, Ha, Policy, Port};
use crate::flow::{Addr, GroupId, GroupSet, PolicyId, PortId};
use crate::nat::{self, Nat};
use crate::policy::Ruleset;
use crate::session::Session;
use crate::time::Time;

use super::cuts::OtherCuts;
use super::policy_usage::{PolicyUsage, PolicyUsages};

/// The rules in force, as the basis of a reload: a few reference counts.
#[derive(Clone)]
pub struct Basis {
    pub(super) config: Arc<Config>,
    pub(super) ruleset: Arc<Ruleset>,
}

/// The config in force, with everything that follows from it alone.
pub(super) struct Rules {
    config: Arc<Config>,
    /// The policies of the config, compiled.
    ruleset: Arc<Ruleset>,
    /// The addresses that the gateway answers for, by port.
    addresses: Vec<Vec<(Addr, GroupId)>>,
    /// The broadcast addresses of the ports' networks.
    broadcasts: Vec<Addr>,
    /// Packets may come to any unit.
    passes_on: bool,
    /// How peers cut groups otherwise.
    other_cuts: OtherCuts,
    former_slots: GroupSet,
    /// One for each policy of the ruleset.
    usages: PolicyUsages,
}

impl Rules {
    /// The rules of `config`.
    pub(super) fn new(config: Config, ruleset: Ruleset) -> Rules {
        Rules {
            addresses: addresses(&config, &nat::groups(&config)),
            broadcasts: broadcasts(&config),
            passes_on: config.passes_on(),
            other_cuts: OtherCuts::default(),
            former_slots: config.former_slots(),
            usages: PolicyUsages::new(&ruleset),
            ruleset: Arc::new(ruleset),
            config: Arc::new(config),
        }
    }

    #[inline]
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The settings of a port.
    #[inline]
    pub(super) fn port(&self, port: PortId) -> &Port {
        &self.config.ports[port.index()]
    }

    /// Whether packets may come to any unit.
    #[inline]
    pub(super) fn passes_on(&self) -> bool {
        self.passes_on
    }

    /// How connected peers cut groups otherwise than this unit.
    pub(super) fn other_cuts(&self) -> OtherCuts {
        self.other_cuts
    }

    /// See [`Config::former_slots`].
    pub(super) fn former_slots(&self) -> GroupSet {
        self.former_slots
    }

    pub(super) fn set_other_cuts(&mut self, cuts: OtherCuts) {
        self.other_cuts = cuts;
        self.follow_cuts();
    }

    /// Packets come to any unit, too, while there are slots that their groups are no longer cut
    /// into, here or at a peer.
    fn follow_cuts(&mut self) {
        self.passes_on = self.is_cut_otherwise() || self.config.passes_on();
    }

    /// Whether a group is being cut into another number of slots, as far as this unit knows.
    pub(super) fn is_cut_otherwise(&self) -> bool {
        self.other_cuts.differ || !self.former_slots.is_empty()
    }

    /// The settings of a group.
    #[inline]
    pub(super) fn group(&self, group: GroupId) -> &Group {
        &self.config.groups[usize::from(group.0)]
    }

    /// The settings of the cluster; none without `[ha]`.
    pub(super) fn ha(&self) -> Option<&Ha> {
        self.config.ha.as_ref()
    }

    #[inline]
    pub(super) fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// The rules in force, for callers that keep them.
    pub(super) fn basis(&self) -> Basis {
        Basis {
            config: Arc::clone(&self.config),
            ruleset: Arc::clone(&self.ruleset),
        }
    }

    /// Whether a caller keeps the config, so that no switch can be set.
    pub(super) fn is_lent(&self) -> bool {
        Arc::strong_count(&self.config) > 1
    }

    /// Whether `basis` is in force.
    pub(super) fn is_current(&self, basis: &Basis) -> bool {
        Arc::ptr_eq(&self.config, &basis.config)
    }

    /// Replaces the settings of the cluster; returns false, and does nothing, if a caller keeps the
    /// config.
    pub(super) fn set_ha(&mut self, ha: Ha) -> bool {
        let config = Arc::get_mut(&mut self.config);
        let set = config.map(|config| config.ha = Some(ha)).is_some();
        self.follow_cuts();
        set
    }

    /// Puts a config in force whose policies, pools and forwards have not changed, or whose ruleset
    /// and addresses follow by [`Rules::set_ruleset`] and [`Rules::set_addresses`].
    pub(super) fn set_config(&mut self, config: Arc<Config>) {
        self.broadcasts = broadcasts(&config);
        self.former_slots = config.former_slots();
        self.config = config;
        self.follow_cuts();
    }

    /// Puts the ruleset of the config in force, with its [`Ruleset::newcomers`].
    pub(super) fn set_ruleset(&mut self, ruleset: Arc<Ruleset>, newcomers: &[PolicyId]) {
        self.usages.adopt(ruleset.ids(), newcomers);
        self.ruleset = ruleset;
    }

    /// Puts the [`addresses`] of the config in force. Returns the previous ones.
    pub(super) fn set_addresses(
        &mut self,
        addresses: Vec<Vec<(Addr, GroupId)>>,
    ) -> Vec<Vec<(Addr, GroupId)>> {
        std::mem::replace(&mut self.addresses, addresses)
    }

    /// The configuration of `policy`; none if it was removed, or belongs to a peer.
    pub(super) fn policy(&self, policy: PolicyId) -> Option<&Policy> {
        self.config.policies.get(self.ruleset.place(policy)?)
    }

    /// The addresses that hosts on `port` find at this gateway, with their groups.
    pub(super) fn addresses(&self, port: PortId) -> &[(Addr, GroupId)] {
        &self.addresses[port.index()]
    }

    /// Whether `addr` is the broadcast address of the network of a port (RFC 2644: not forwarded).
    pub(super) fn is_directed_broadcast(&self, addr: &Addr) -> bool {
        addr.is_v4() && self.broadcasts.contains(addr)
    }

    /// The port at which the gateway answers for `addr`.
    pub(super) fn port_with(&self, addr: &Addr) -> Option<PortId> {
        let has = |list: &Vec<(Addr, _)>| list.iter().any(|(own, _)| own == addr);
        self.addresses.iter().position(has).map(PortId::from_index)
    }

    /// A policy has decided about a packet that would have opened a session.
    #[inline]
    pub(super) fn note_hit(&mut self, policy: PolicyId, now: Time) {
        self.usages.hit(policy, now);
    }

    /// A session of a policy has ended here.
    #[inline]
    pub(super) fn note_end(&mut self, session: &Session) {
        self.usages.note_end(session);
    }

    /// The policy at a place in the config, with its usage.
    pub(super) fn usage(&self, place: usize) -> Option<(PolicyId, PolicyUsage)> {
        let id = self.ruleset.at(place)?;
        Some((id, self.usages.get(id)?))
    }

    /// Panics if the parts don't belong to one config.
    pub(super) fn check_invariants(&self, nat: &Nat) {
        let groups = nat::groups(&self.config);
        let follows = |(addr, group): (&Addr, &GroupId)| nat.group(addr) == Some(*group);
        assert!(groups.iter().all(follows), "the groups follow the config");
        let wanted = addresses(&self.config, &groups);
        assert_eq!(self.addresses, wanted, "the addresses follow the config");
        assert_eq!(self.broadcasts, broadcasts(&self.config));
        assert_eq!(
            self.usages.len(),
            self.ruleset.ids(),
            "each policy is counted"
        );
    }
}

/// The broadcast addresses of the IPv4 networks of all ports that have one.
fn broadcasts(config: &Config) -> Vec<Addr> {
    let own = config.ports.iter().flat_map(|port| &port.virtual_addresses);
    let broadcasts = own.filter_map(|own| match own.network {
        IpNet::V4(network) if network.prefix_len() < 31 => {
            Some(Addr::v4(network.broadcast().octets()))
        }
        _ => None,
    });
    broadcasts.collect()
}

/// The addresses that the gateway answers for on each port, with their groups. `groups` are those
/// of the config.
pub(super) fn addresses(
    config: &Config,
    groups: &BTreeMap<Addr, GroupId>,
) -> Vec<Vec<(Addr, GroupId)>> {
    let of_port = |port: &Port| {
        let group = |addr: &Addr| {
            let own = port.link_local.iter().find(|own| own.addr == *addr);
            own.map(|own| own.group)
                .or_else(|| groups.get(addr).copied())
        };
        let all = config.addresses_on(port).into_iter();
        all.filter_map(|addr| Some((addr, group(&addr)?))).collect()
    };
    config.ports.iter().map(of_port).collect()
}
