//! Checks that answers come to the unit that has the session: a session let in by a port of one
//! group must leave by an address of the same group, since groups may be primary on different
//! units.

use super::diagnostic::Report;
use super::network::Network;
use super::reader::At;
use super::translation::Pools;
use super::{Action, Forward, Group, Nat, Policy};
use crate::flow::{Family, GroupId, PortId};

/// Warns of policies whose answers may come to another unit. Checks only ports that a policy names
/// and whose hosts all use the same group.
pub(super) fn warn_of_ways(
    report: &Report,
    policies: &[At<Policy>],
    groups: &[Group],
    network: &Network,
    pools: &Pools,
) {
    if groups.len() < 2 || !network.complete || !pools.complete {
        return;
    }
    for At {
        value: policy,
        span,
    } in policies
    {
        let accepts = policy.action == Action::Accept;
        let pairs = policy
            .from
            .iter()
            .flat_map(|from| policy.to.iter().map(move |to| (*from, *to)));
        for (from, to) in pairs.filter(|(from, to)| accepts && from != to) {
            if let Some(group) = network.only_group(from)
                && let Some(problem) = problem_of(policy, group, (from, to), network, pools)
            {
                let [from, to] = [from, to].map(|port| &network.ports[port.index()].name);
                let group = &groups[usize::from(group.0)].name;
                let message = format!(
                    "sessions of policy `{}` from port `{from}` belong to group `{group}`, but {problem}: \
                     if another unit has that, their answers go there and are lost",
                    policy.name
                );
                let hint = match policy.nat {
                    Nat::Pool(_) => {
                        format!("give group `{group}` a pool of its own, or say `nat = true`")
                    }
                    _ => format!("give port `{to}` an address of group `{group}`"),
                };
                report.warn(span, message, hint);
            }
        }
    }
}

/// Warns of policies for hosts that may use addresses of several groups as default gateway. A unit
/// that has two of these groups can't tell which one a host uses, and takes its sessions for the
/// first; when the other group moves, the host's packets come to a unit that is not primary for
/// them. What comes in by a forward has the group of that.
pub(super) fn warn_of_shared_ports(
    report: &Report,
    policies: &[At<Policy>],
    network: &Network,
    forwards: &[Forward],
) {
    if !network.complete {
        return;
    }
    for At {
        value: policy,
        span,
    } in policies
    {
        let shared = |from: &&PortId| {
            network.has_several_groups(**from) && !forwards.iter().any(|it| it.port == **from)
        };
        let shared = policy.from.iter().find(shared);
        let Some(from) = shared.filter(|_| policy.action == Action::Accept) else {
            continue;
        };
        let from = &network.ports[from.index()].name;
        let message = format!(
            "sessions of policy `{}` may be lost when a group moves: port `{from}` has addresses of several \
             groups, and a unit that has two of them can't tell which one a host uses",
            policy.name
        );
        let hint = "say `asymmetric-flows = true` in `[ha]`, or give the hosts of each group a port of their own";
        report.warn(span, message, hint);
    }
}

/// Why answers to sessions of a group that leave by a port may go elsewhere.
fn problem_of(
    policy: &Policy,
    group: GroupId,
    (from, to): (PortId, PortId),
    network: &Network,
    pools: &Pools,
) -> Option<String> {
    let has = |family| network.has_in_group(to, group, family);
    let port = &network.ports[to.index()].name;
    match policy.nat {
        Nat::Pool(pool) => {
            let pool = pools.pools.get(pool)?;
            let first = *pool.addresses.first()?;
            let is_other = network.group_of(first) != group;
            is_other.then(|| format!("pool `{}` to another one", pool.name))
        }
        Nat::Egress => {
            let families = Family::ALL.into_iter();
            let lacks = |family| {
                let used = [from, to].iter().all(|it| network.has_family(*it, family));
                used && !has(family)
            };
            let missing = families.filter(|family| lacks(*family));
            let missing: Vec<&str> = missing.map(Family::name).collect();
            let all = missing.join(" or ");
            (!missing.is_empty()).then(|| format!("port `{port}` has no {all} address of it"))
        }
        Nat::Off => {
            let has_any = has(Family::V4) || has(Family::V6);
            (!has_any).then(|| {
                format!("port `{port}` has no address of it that answers could be sent to")
            })
        }
    }
}

impl Network {
    /// The group of all virtual addresses of a port; none if there are several, or no address.
    fn only_group(&self, port: PortId) -> Option<GroupId> {
        let addresses = &self.ports.get(port.index())?.virtual_addresses;
        let first = addresses.first()?.group;
        addresses
            .iter()
            .all(|it| it.group == first)
            .then_some(first)
    }

    fn has_several_groups(&self, port: PortId) -> bool {
        let port = self.ports.get(port.index());
        let addresses = port.map_or(&[][..], |port| &port.virtual_addresses[..]);
        let mut groups = addresses.iter().map(|it| it.group);
        let first = groups.next();
        groups.any(|group| Some(group) != first)
    }

    fn has_in_group(&self, port: PortId, group: GroupId, family: Family) -> bool {
        let port = self.ports.get(port.index());
        port.is_some_and(|port| {
            let mut addresses = port.virtual_addresses.iter();
            addresses.any(|it| it.group == group && it.addr.family() == family)
        })
    }
}
