//! `[[multicast-policy]]` and `[[multicast-join]]`: what is sent on to many.

use std::net::IpAddr;

use ipnet::IpNet;

use super::aliases::Aliases;
use super::diagnostic::Report;
use super::names::{Names, check_name};
use super::network::{Network, port_id};
use super::policy::prefixes;
use super::reader::{At, Span, Table};
use super::value::{BareAddress, Prefix, family};
use super::{Config, MulticastJoin, MulticastPolicy};
use crate::flow::{Addr, Family, PortId};

/// Reads the policies, in order.
pub(super) fn read_policies(
    root: &mut Table<'_>,
    network: &Network,
    aliases: &Aliases,
) -> Vec<MulticastPolicy> {
    let mut names = Names::new("multicast policy");
    let mut policies = Vec::new();
    for mut table in root.tables("multicast-policy") {
        let report = table.report;
        let name = table.require::<String>("name");
        check_name(report, name.as_ref());
        names.declare(report, name.as_ref(), policies.len());
        let from = table.list::<String>("from");
        let to = table.list::<String>("to");
        let source = prefixes(report, &aliases.any_or_list(&mut table, "source"));
        let group: Vec<At<Prefix>> = aliases.list(&mut table, "group");
        check_groups(report, &group);
        let action = table.choice("action");
        let log = table.flag("log");
        let snat = table.take::<bool>("snat");
        let policy = MulticastPolicy {
            name: name.map_or_else(String::new, |name| name.value),
            from: network.resolve(report, &from),
            to: network.resolve(report, &to),
            source,
            group: prefixes(report, &group),
            accepts: action.is_some_and(|word| word.value == "accept"),
            log,
            snat: snat.as_ref().is_some_and(|snat| snat.value),
        };
        if let Some(At { value: true, span }) = snat
            && network.complete
        {
            check_snat(report, &policy, &span, network);
        }
        policies.push(policy);
        table.finish();
    }
    policies
}

/// Reads the static members.
pub(super) fn read_joins(
    root: &mut Table<'_>,
    network: &Network,
    policies: &[MulticastPolicy],
) -> Vec<MulticastJoin> {
    let mut joins = Vec::new();
    for mut table in root.tables("multicast-join") {
        let report = table.report;
        let port = table.require::<String>("port");
        let span = port.as_ref().map(|port| port.span.clone());
        let port = port.and_then(|port| network.port_names.resolve(report, &port));
        let group = table.require::<BareAddress>("group");
        let source = table.take::<BareAddress>("source");
        if let Some(group) = &group {
            check_group(report, &IpNet::from(group.value.0), &group.span);
        }
        if let (Some(group), Some(source)) = (&group, &source)
            && (family(group.value.0) != family(source.value.0)
                || Addr::from(source.value.0).is_group())
        {
            let message = format!("`{}` can't send to the group", source.value.0);
            report.error(
                &source.span,
                message,
                "give the address of a host, of its family",
            );
        }
        if let (Some(port), Some(span)) = (port, &span)
            && !policies
                .iter()
                .any(|policy| policy.to.contains(&port_id(port)))
        {
            let hint = "name the port in `to` of a `[[multicast-policy]]`";
            report.warn(span, "no policy sends anything to this port", hint);
        }
        table.finish();
        joins.push(MulticastJoin {
            port: port.map_or(PortId(0), port_id),
            group: group.map_or(Addr::unspecified(Family::V4), |group| group.value.0.into()),
            source: source.map(|source| source.value.0.into()),
        });
    }
    joins
}

fn check_groups(report: &Report, groups: &[At<Prefix>]) {
    for At { value, span } in groups {
        check_group(report, &value.0, span);
    }
}

/// Whether a prefix has groups that leave their link.
fn check_group(report: &Report, net: &IpNet, span: &Span) {
    let (first, last) = (Addr::from(net.network()), Addr::from(net.broadcast()));
    if !first.is_group() || !last.is_group() {
        let hint = "groups are 224.0.0.0/4 and ff00::/8";
        report.error(span, format!("`{net}` is not multicast"), hint);
    } else if !first.leaves_link() && !last.leaves_link() {
        let hint = "such groups never leave their link (RFC 5771, RFC 7346)";
        report.error(span, format!("`{net}` is not forwarded"), hint);
    }
}

/// Each port that the streams leave by has an address of each family of the groups.
fn check_snat(report: &Report, policy: &MulticastPolicy, span: &Span, network: &Network) {
    let of = |wanted: Family| policy.group.iter().any(|net| family(net.addr()) == wanted);
    for wanted in Family::ALL.into_iter().filter(|family| of(*family)) {
        for port in policy
            .to
            .iter()
            .filter(|port| !network.has_family(**port, wanted))
        {
            let name = network
                .ports
                .get(port.index())
                .map_or("", |port| &port.name);
            let message = format!(
                "port `{name}` has no {} address to send from",
                wanted.name()
            );
            report.error(span, message, "give it a virtual address");
        }
    }
}

impl MulticastPolicy {
    /// Whether it decides about what `source` sends to `group`, of all that comes in by `from` and
    /// leaves by `to`.
    pub fn matches(&self, from: PortId, to: PortId, source: &Addr, group: &Addr) -> bool {
        self.from.contains(&from)
            && self.to.contains(&to)
            && (self.source.is_empty() || holds(&self.source, source))
            && holds(&self.group, group)
    }

    /// Whether it is about `group`.
    pub fn is_about(&self, group: &Addr) -> bool {
        holds(&self.group, group)
    }
}

fn holds(nets: &[IpNet], addr: &Addr) -> bool {
    let ip = IpAddr::from(*addr);
    nets.iter().any(|net| net.contains(&ip))
}

impl Config {
    /// Whether a multicast policy names `port`: only then are groups asked for there.
    pub fn has_multicast(&self, port: PortId) -> bool {
        let mut policies = self.multicast_policies.iter();
        policies.any(|policy| policy.from.contains(&port) || policy.to.contains(&port))
    }

    /// The groups that a policy accepts from `port`.
    pub fn groups_from(&self, port: PortId) -> impl Iterator<Item = &IpNet> {
        let policies = self.multicast_policies.iter();
        let from = policies.filter(move |it| it.accepts && it.from.contains(&port));
        from.flat_map(|policy| &policy.group)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(rest: &str) -> Result<Config, String> {
        let text = format!(
            r#"
            [node]
            name = "a"
            [[port]]
            name = "lan"
            interface = "eth0"
            virtual-addresses = ["10.0.1.1/24"]
            [[port]]
            name = "wan"
            interface = "eth1"
            {rest}
        "#
        );
        let parsed = crate::config::parse(Path::new("a.toml"), &text);
        parsed
            .map(|(config, _)| config)
            .map_err(|all| format!("{all:?}"))
    }

    fn policy(group: &str, more: &str) -> String {
        format!(
            "[[multicast-policy]]\nname = \"tv\"\nfrom = [\"wan\"]\nto = [\"lan\"]\n\
             source = [\"198.51.100.0/24\"]\ngroup = [\"{group}\"]\naction = \"accept\"\n{more}"
        )
    }

    #[test]
    fn a_policy_decides_by_ports_source_and_group() {
        let config = parse(&policy("239.1.0.0/16", "")).unwrap();
        let tv = &config.multicast_policies[0];
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let (lan, wan) = (PortId(0), PortId(1));
        let (source, group) = (addr("198.51.100.7"), addr("239.1.2.3"));
        assert!(tv.accepts && tv.matches(wan, lan, &source, &group));
        assert!(!tv.matches(lan, wan, &source, &group));
        assert!(!tv.matches(wan, lan, &addr("203.0.113.7"), &group));
        assert!(!tv.matches(wan, lan, &source, &addr("239.2.2.3")));
        assert!(config.has_multicast(lan) && config.has_multicast(wan));
        assert_eq!(config.groups_from(lan).count(), 0);
        assert_eq!(config.groups_from(wan).count(), 1);
    }

    #[test]
    fn wrong_groups_and_addresses_are_named() {
        let error = |text: &str| parse(text).unwrap_err();
        assert!(error(&policy("10.0.0.0/8", "")).contains("is not multicast"));
        assert!(error(&policy("224.0.0.0/24", "")).contains("is not forwarded"));
        assert!(error(&policy("ff02::/16", "")).contains("is not forwarded"));
        assert!(error(&policy("ff05::/16", "snat = true")).contains("has no IPv6 address"));
        assert!(
            parse(&policy("239.0.0.0/8", "snat = true"))
                .unwrap()
                .multicast_policies[0]
                .snat
        );
        let join = |group: &str, source: &str| {
            format!(
                "[[multicast-join]]\nport = \"lan\"\ngroup = \"{group}\"\nsource = \"{source}\""
            )
        };
        assert!(error(&join("10.0.0.1", "10.0.0.2")).contains("is not multicast"));
        assert!(error(&join("239.1.1.1", "ff05::1")).contains("can't send"));
        assert!(error(&join("239.1.1.1", "2001:db8::1")).contains("can't send"));
        assert!(parse(&join("239.1.1.1", "10.0.0.2")).is_ok());
    }
}
