//! `[[policy]]`: which sessions are allowed.

use ipnet::IpNet;

use super::aliases::Aliases;
use super::diagnostic::Report;
use super::names::{Names, check_name};
use super::network::Network;
use super::reader::{At, Span, Table};
use super::shadow::Earlier;
use super::translation::Pools;
use super::value::{Prefix, ServiceOrAny, family};
use super::{Action, Nat, PickupGuarantee, Policy, Service};
use crate::flow::{Family, PortId};

/// Reads the policies, each with the place of its name.
pub(super) fn read(
    root: &mut Table<'_>,
    network: &Network,
    pools: &Pools,
    aliases: &Aliases,
) -> Vec<At<Policy>> {
    let report = root.report;
    let mut names = Names::new("policy");
    let mut policies: Vec<At<Policy>> = Vec::new();
    let mut earlier = Earlier::default();
    let before = report.errors();
    for table in root.tables("policy") {
        let of = (network, pools, aliases);
        let policy = read_policy(table, of, &mut names, policies.len());
        // An earlier policy that can't be read would seem to match anything.
        if report.errors() == before {
            earlier.warn_if_shadowed(report, &policies, &policy);
        }
        earlier.add(policies.len(), &policy.value);
        policies.push(policy);
    }
    policies
}

/// Warns of guarantees in a config without `[ha]`.
pub(super) fn warn_of_guarantees(report: &Report, policies: &[At<Policy>]) {
    for At { value, span } in policies {
        if value.pickup_guarantee.is_some() {
            let message = format!(
                "`pickup-guarantee` of policy `{}` has no effect without `[ha]`",
                value.name
            );
            report.warn(span, message, "");
        }
    }
}

fn read_policy(
    mut table: Table<'_>,
    (network, pools, aliases): (&Network, &Pools, &Aliases),
    names: &mut Names,
    index: usize,
) -> At<Policy> {
    let report = table.report;
    let name = table.require::<String>("name");
    check_name(report, name.as_ref());
    names.declare(report, name.as_ref(), index);
    let from = table.any_or_list::<String>("from");
    let to = table.any_or_list::<String>("to");
    let source = prefixes(report, &aliases.any_or_list(&mut table, "source"));
    let destination = prefixes(report, &aliases.any_or_list(&mut table, "destination"));
    let service = services(&aliases.any_or_list(&mut table, "service"));
    let forwarded = table.take("forwarded").map(|at| at.value);
    let action = action(&mut table);
    let nat = read_nat(&mut table, pools);
    let log = table.flag("log");
    let pickup_guarantee = table.choice("pickup-guarantee");
    let mss_clamp = table.take("mss-clamp").map(|at| at.value);
    let header = table.header.clone();
    table.finish();
    let span = name.as_ref().map_or(header, |name| name.span.clone());
    let policy = Policy {
        name: name.map_or_else(String::new, |name| name.value),
        from: network.resolve(report, &from),
        to: network.resolve(report, &to),
        source,
        destination,
        service,
        forwarded,
        action,
        nat: nat.value,
        log,
        pickup_guarantee: pickup_guarantee.and_then(|word| PickupGuarantee::of_word(word.value)),
        mss_clamp,
    };
    if !Family::ALL.into_iter().any(|f| can_match(&policy, f)) {
        let hint = "`source` and `destination` share no address family";
        report.warn(
            &span,
            format!("policy `{}` can't match anything", policy.name),
            hint,
        );
    } else if policy.action != Action::Accept && policy.nat != Nat::Off {
        let hint = format!("only {:?} policies translate", "accept");
        report.warn(&nat.span, "translation has no effect here", hint);
    } else if network.complete && pools.complete {
        check_nat(report, &policy, &nat.span, network, pools);
    }
    At {
        value: policy,
        span,
    }
}

fn action(table: &mut Table<'_>) -> Action {
    match table.choice("action").map(|word| word.value) {
        Some("accept") => Action::Accept,
        Some("reject") => Action::Reject,
        _ => Action::Drop,
    }
}

fn read_nat(table: &mut Table<'_>, pools: &Pools) -> At<Nat> {
    let report = table.report;
    let nat = table.take::<bool>("nat");
    let pool = table.take::<String>("nat-pool");
    if let (Some(At { value: false, span }), Some(_)) = (&nat, &pool) {
        let hint = "remove one of them";
        report.error(span, "`nat` is false, but there is a `nat-pool`", hint);
    }
    if let Some(pool) = pool {
        let index = pools.names.resolve(report, &pool);
        return At {
            value: index.map_or(Nat::Off, Nat::Pool),
            span: pool.span,
        };
    }
    match nat {
        Some(At { value: true, span }) => At {
            value: Nat::Egress,
            span,
        },
        _ => At {
            value: Nat::Off,
            span: table.header.clone(),
        },
    }
}

pub(super) fn prefixes(report: &Report, listed: &[At<Prefix>]) -> Vec<IpNet> {
    let mut nets = Vec::new();
    for At { value, span } in listed {
        let net = value.0.trunc();
        if net != value.0 {
            let message = format!("`{}` has bits set beyond its prefix length", value.0);
            report.warn(span, message, format!("it matches \"{net}\": write that"));
        }
        nets.push(net);
    }
    nets
}

/// Empty if `any` is among them.
pub(super) fn services(listed: &[At<ServiceOrAny>]) -> Vec<Service> {
    let all: Option<Vec<Service>> = listed.iter().map(|at| at.value.0).collect();
    all.unwrap_or_default()
}

/// Whether the prefixes of a policy let it match packets of `family`.
fn can_match(policy: &Policy, wanted: Family) -> bool {
    let allows =
        |nets: &[IpNet]| nets.is_empty() || nets.iter().any(|net| family(net.addr()) == wanted);
    allows(&policy.source) && allows(&policy.destination)
}

/// Whether packets of `family` are to be expected: the prefixes include it, or a port that the
/// policy's sessions come in by has such addresses.
fn expects(policy: &Policy, network: &Network, wanted: Family) -> bool {
    let named = |nets: &[IpNet]| nets.iter().any(|net| family(net.addr()) == wanted);
    let ingress = ports_or_all(&policy.from, network);
    can_match(policy, wanted)
        && (named(&policy.source)
            || named(&policy.destination)
            || ingress.iter().any(|port| network.has_family(*port, wanted)))
}

/// Checks that there is an address to translate to: an error if there never is one, a warning if
/// sometimes.
fn check_nat(report: &Report, policy: &Policy, span: &Span, network: &Network, pools: &Pools) {
    match policy.nat {
        Nat::Off => {}
        Nat::Pool(pool) => {
            let name = &pools.pools[pool].name;
            let place = format!("pool `{name}`");
            let has = |family| pools.has_family(pool, family);
            check_families(report, policy, span, network, &place, has);
        }
        Nat::Egress if policy.to.is_empty() => {
            let ports = network.all();
            let has = |family| ports.iter().any(|port| network.has_family(*port, family));
            check_families(report, policy, span, network, "any port", has);
        }
        Nat::Egress => {
            for port in &policy.to {
                let place = format!("port `{}`", network.ports[port.index()].name);
                let has = |family| network.has_family(*port, family);
                check_families(report, policy, span, network, &place, has);
            }
        }
    }
}

/// Checks that `place`, which offers addresses of the families for which `has` holds, suits the
/// policy.
fn check_families(
    report: &Report,
    policy: &Policy,
    span: &Span,
    network: &Network,
    place: &str,
    has: impl Fn(Family) -> bool,
) {
    let serves = |family: Family| can_match(policy, family) && has(family);
    if !Family::ALL.into_iter().any(serves) {
        let message = format!("{place} has no address that sessions of the policy could get");
        report.error(
            span,
            message,
            "add an address of the family that the policy matches",
        );
        return;
    }
    for [family, other] in [[Family::V4, Family::V6], [Family::V6, Family::V4]] {
        if expects(policy, network, family) && !has(family) {
            let (text, other) = (family.name(), other.name());
            let message = format!("{place} has no {text} address: {text} sessions are dropped");
            let hint = format!("add one, or limit `source` to {other} prefixes");
            report.warn(span, message, hint);
        }
    }
}

fn ports_or_all(ports: &[PortId], network: &Network) -> Vec<PortId> {
    match ports.is_empty() {
        true => network.all(),
        false => ports.to_vec(),
    }
}
