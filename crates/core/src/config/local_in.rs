//! `[[local-in]]`: what may reach the machine itself.

use super::aliases::Aliases;
use super::names::{Names, check_name};
use super::network::Network;
use super::policy::{prefixes, services};
use super::reader::Table;
use super::{Config, LocalIn};
use crate::flow::PortId;

/// Reads them, in order.
pub(super) fn read(root: &mut Table<'_>, network: &Network, aliases: &Aliases) -> Vec<LocalIn> {
    let mut names = Names::new("local-in policy");
    let mut policies = Vec::new();
    for mut table in root.tables("local-in") {
        let report = table.report;
        let name = table.require::<String>("name");
        check_name(report, name.as_ref());
        names.declare(report, name.as_ref(), policies.len());
        let from = table.any_or_list::<String>("from");
        let source = prefixes(report, &aliases.any_or_list(&mut table, "source"));
        let service = services(&aliases.any_or_list(&mut table, "service"));
        let action = table.choice("action");
        policies.push(LocalIn {
            name: name.map_or_else(String::new, |name| name.value),
            from: network.resolve(report, &from),
            source,
            service,
            accepts: action.is_some_and(|word| word.value == "accept"),
        });
        table.finish();
    }
    policies
}

impl LocalIn {
    /// Whether it is for packets that come in by `port`.
    pub(crate) fn is_for(&self, port: PortId) -> bool {
        self.from.is_empty() || self.from.contains(&port)
    }
}

impl Config {
    /// The policies for packets to the machine itself that come in by `port`. If there are any, all
    /// other packets are dropped; if there are none, all pass.
    pub fn local_in_of(&self, port: PortId) -> impl Iterator<Item = &LocalIn> {
        let all = self.local_in.iter();
        all.filter(move |policy| policy.is_for(port))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_policy_is_for_its_ports_or_for_all() {
        let text = r#"
            [node]
            name = "a"
            [[port]]
            name = "lan"
            interface = "eth0"
            [[port]]
            name = "wan"
            interface = "eth1"
            [[local-in]]
            name = "ssh"
            from = ["lan"]
            service = ["tcp/22"]
            action = "accept"
            [[local-in]]
            name = "ping"
            service = ["icmp"]
            action = "accept"
        "#;
        let (config, _) = crate::config::parse(Path::new("a.toml"), text).unwrap();
        let names = |port| {
            let policies = config.local_in_of(PortId(port));
            policies.map(|it| it.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(names(0), ["ssh", "ping"]);
        assert_eq!(names(1), ["ping"]);
    }
}
