//! A config as the text of a file, table by table: reading it gives the same config.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnet::IpNet;

use super::field::Value;
use super::options::{self, DefaultValue, OptionDoc};
use super::{
    Action, Config, Forward, LocalIn, MssClamp, MulticastPolicy, Nat, NatPool, Policy, Service,
    VirtualAddress,
};
use crate::flow::{Addr, GroupId, PortId, Protocol};

/// Writes a config table by table, so that a large one delays nobody.
#[derive(Clone, Debug, Default)]
pub struct ConfigText {
    /// The next table of [`options::tables`], and the index among those with that name.
    table: usize,
    index: usize,
}

impl ConfigText {
    /// The text of the next table of `config`, which must be the same in each call. Leaves out
    /// default values, unless `full`. `None` at the end.
    pub fn next(&mut self, config: &Config, full: bool) -> Option<String> {
        loop {
            let table = options::tables().get(self.table)?;
            if self.index >= count(config, table.name) {
                (self.table, self.index) = (self.table + 1, 0);
                continue;
            }
            self.index += 1;
            let place = place(config, table.name, self.index - 1);
            let text = text(config, table.name, place, full);
            if !text.is_empty() {
                return Some(text);
            }
        }
    }
}

/// How many tables of that name the file for `config` has.
fn count(config: &Config, table: &str) -> usize {
    let ha = config.ha.as_ref();
    match table {
        "port" => config.ports.len(),
        // The only group of a config without groups.
        "group" if is_ungrouped(config) => 0,
        // Slots follow from their group.
        "group" => config.declared_groups().count(),
        "policy" => config.policies.len(),
        // Included files are part of the config, and what uses a name has its members.
        "" | "address" | "service" => 0,
        "nat-pool" => config.nat_pools.len(),
        "forward" => config.forwards.len(),
        "link-monitor" => config.link_monitors.len(),
        "local-in" => config.local_in.len(),
        "multicast-policy" => config.multicast_policies.len(),
        "multicast-join" => config.multicast_joins.len(),
        "metrics" => usize::from(config.metrics.is_some()),
        "ha" => usize::from(ha.is_some()),
        "ha.link" => ha.map_or(0, |ha| ha.links.len()),
        "ha.peer" => ha.map_or(0, |ha| ha.peers.len()),
        "ha.witness" => usize::from(ha.is_some_and(|ha| ha.witness.is_some())),
        _ => 1,
    }
}

/// Where the config keeps the table of that name with this index in the file.
fn place(config: &Config, table: &str, index: usize) -> usize {
    match table {
        "group" => {
            let place = config.declared_groups().nth(index);
            place.map_or(index, |(place, _)| usize::from(place.0))
        }
        _ => index,
    }
}

fn is_ungrouped(config: &Config) -> bool {
    let mut groups = config.known_groups().map(|(_, group)| group);
    match (groups.next(), groups.next()) {
        (Some(only), None) => only.name == "default" && only.priority.is_none(),
        _ => false,
    }
}

/// A table of the file; empty if it is not repeated and all its values are defaults.
fn text(config: &Config, table: &'static str, index: usize, full: bool) -> String {
    let doc = options::tables().iter().find(|doc| doc.name == table);
    let repeated = doc.is_some_and(|doc| doc.repeated);
    let mut out = match repeated {
        true => format!("[[{table}]]\n"),
        false => format!("[{table}]\n"),
    };
    let header = out.len();
    write_whole(&mut out, config, table, index);
    for option in options::options().iter().filter(|it| it.table == table) {
        let Some(value) = option.value_in(config, index) else {
            continue;
        };
        if full || !is_default(option, &value) {
            write_value(&mut out, config, option.key, &value);
        }
    }
    let can_be_left_out = !repeated && !matches!(table, "ha" | "metrics");
    match out.len() == header && can_be_left_out {
        true => String::new(),
        false => out,
    }
}

/// The keys that have no field of their own.
fn write_whole(out: &mut String, config: &Config, table: &str, index: usize) {
    match table {
        "port" => write_text(out, "name", &config.ports[index].name),
        "group" => {
            write_text(out, "name", &config.groups[index].name);
            let id = GroupId(u8::try_from(index).unwrap_or(u8::MAX));
            let ports = config.ports.iter();
            let all = ports.flat_map(|port| port.virtual_addresses.iter().chain(&port.link_local));
            let own = all.filter(|own| own.group == id);
            write_list(out, "virtual-addresses", own.map(|own| own.addr));
        }
        "policy" => write_policy(out, config, &config.policies[index]),
        "nat-pool" => write_pool(out, &config.nat_pools[index]),
        "forward" => write_forward(out, config, &config.forwards[index]),
        "link-monitor" => {
            let monitor = &config.link_monitors[index];
            write_text(out, "port", &config.ports[monitor.port.index()].name);
            write_text(out, "server", &monitor.server_text());
            write_text(out, "protocol", monitor.protocol.word());
        }
        "local-in" => write_local_in(out, config, &config.local_in[index]),
        "multicast-policy" => write_multicast(out, config, &config.multicast_policies[index]),
        "multicast-join" => {
            let join = &config.multicast_joins[index];
            write_text(out, "port", &config.ports[join.port.index()].name);
            write_text(out, "group", &join.group.to_string());
            if let Some(source) = join.source {
                write_text(out, "source", &source.to_string());
            }
        }
        "ha.link" => {
            if let Some(link) = config.ha.as_ref().and_then(|ha| ha.links.get(index)) {
                write_text(out, "interface", &link.interface);
                write_text(out, "listen", &link.listen.to_string());
            }
        }
        "ha.peer" => {
            if let Some(peer) = config.ha.as_ref().and_then(|ha| ha.peers.get(index)) {
                write_text(out, "name", &peer.name);
                write_list(out, "addresses", &peer.addresses);
                write_text(out, "public-key", &BASE64.encode(peer.public_key));
            }
        }
        _ => {}
    }
}

fn write_policy(out: &mut String, config: &Config, policy: &Policy) {
    write_text(out, "name", &policy.name);
    let any_or = |out: &mut String, key, ports: &[PortId]| {
        if !ports.is_empty() {
            write_list(out, key, names(config, ports));
        }
    };
    any_or(out, "from", &policy.from);
    any_or(out, "to", &policy.to);
    for (key, nets) in [
        ("source", &policy.source),
        ("destination", &policy.destination),
    ] {
        if !nets.is_empty() {
            write_list(out, key, nets.iter().map(IpNet::to_string));
        }
    }
    if !policy.service.is_empty() {
        write_list(out, "service", policy.service.iter().map(service));
    }
    if let Some(forwarded) = policy.forwarded {
        let _ = writeln!(out, "forwarded = {forwarded}");
    }
    let action = match policy.action {
        Action::Accept => "accept",
        Action::Drop => "drop",
        Action::Reject => "reject",
    };
    write_text(out, "action", action);
    match policy.nat {
        Nat::Off => {}
        Nat::Egress => out.push_str("nat = true\n"),
        Nat::Pool(index) => write_text(out, "nat-pool", &config.nat_pools[index].name),
    }
    if policy.log {
        out.push_str("log = true\n");
    }
    if let Some(guarantee) = policy.pickup_guarantee {
        write_text(out, "pickup-guarantee", guarantee.word());
    }
    if let Some(size) = policy.mss_clamp {
        write_value(out, config, "mss-clamp", &Value::MssClamp(size));
    }
}

fn write_local_in(out: &mut String, config: &Config, policy: &LocalIn) {
    write_text(out, "name", &policy.name);
    if !policy.from.is_empty() {
        write_list(out, "from", names(config, &policy.from));
    }
    if !policy.source.is_empty() {
        write_list(out, "source", policy.source.iter().map(IpNet::to_string));
    }
    if !policy.service.is_empty() {
        write_list(out, "service", policy.service.iter().map(service));
    }
    let action = if policy.accepts { "accept" } else { "drop" };
    write_text(out, "action", action);
}

fn write_multicast(out: &mut String, config: &Config, policy: &MulticastPolicy) {
    write_text(out, "name", &policy.name);
    write_list(out, "from", names(config, &policy.from));
    write_list(out, "to", names(config, &policy.to));
    if !policy.source.is_empty() {
        write_list(out, "source", policy.source.iter().map(IpNet::to_string));
    }
    write_list(out, "group", policy.group.iter().map(IpNet::to_string));
    let action = if policy.accepts { "accept" } else { "drop" };
    write_text(out, "action", action);
    for (key, value) in [("log", policy.log), ("snat", policy.snat)] {
        if value {
            write_value(out, config, key, &Value::Bool(value));
        }
    }
}

fn write_pool(out: &mut String, pool: &NatPool) {
    write_text(out, "name", &pool.name);
    write_list(out, "addresses", ranges(&pool.addresses));
    let (first, last) = pool.ports;
    write_text(out, "ports", &format!("{first}-{last}"));
}

fn write_forward(out: &mut String, config: &Config, forward: &Forward) {
    write_text(out, "name", &forward.name);
    write_text(out, "port", &config.ports[forward.port.index()].name);
    write_text(out, "protocol", &forward.protocol.to_string());
    let end = |(addr, port): (Addr, u16)| SocketAddr::new(IpAddr::from(addr), port).to_string();
    let (first, last) = (forward.external.1, forward.last_external_port);
    let external = match first == last {
        true => end(forward.external),
        false => format!("{}-{last}", end(forward.external)),
    };
    write_text(out, "external", &external);
    write_text(out, "internal", &end(forward.internal));
}

/// Consecutive addresses as one range.
fn ranges(addresses: &[Addr]) -> Vec<String> {
    let number = |addr: Addr| u128::from_be_bytes(*addr.octets());
    let follows = |a: &Addr, b: &Addr| {
        a.family() == b.family() && number(*a).checked_add(1) == Some(number(*b))
    };
    let runs = addresses.chunk_by(follows);
    runs.map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        [first] => first.to_string(),
        [] => String::new(),
    })
    .collect()
}

fn service(service: &Service) -> String {
    let name = match service.protocol {
        protocol @ (Protocol::TCP | Protocol::UDP | Protocol::ICMP) => protocol.to_string(),
        Protocol(number) => return format!("proto/{number}"),
    };
    match service.ports {
        None => name,
        Some((first, last)) if first == last => format!("{name}/{first}"),
        Some((first, last)) => format!("{name}/{first}-{last}"),
    }
}

fn names<'a>(config: &'a Config, ports: &'a [PortId]) -> impl Iterator<Item = &'a str> {
    let name = |port: &PortId| config.ports[port.index()].name.as_str();
    ports.iter().map(name)
}

fn is_default(option: &OptionDoc, value: &Value) -> bool {
    match (option.default, value) {
        (_, Value::Absent) => true,
        (DefaultValue::Bool(default), Value::Bool(value)) => default == *value,
        (DefaultValue::Integer(default), Value::Integer(value)) => default == *value,
        (DefaultValue::Duration(default), Value::Duration(value)) => default == *value,
        (DefaultValue::Text(default), Value::Word(value)) => default == *value,
        (DefaultValue::Text(default), Value::Text(value)) => default == value,
        (_, Value::Ports(ports)) => ports.is_empty(),
        (_, Value::Names(names)) => names.is_empty(),
        (_, Value::Addresses(addresses)) => addresses.is_empty(),
        _ => false,
    }
}

fn write_value(out: &mut String, config: &Config, key: &str, value: &Value) {
    let link = |own: &VirtualAddress| format!("{}/{}", own.addr, own.network.prefix_len());
    match value {
        // Its meaning depends on other options.
        Value::Absent => {}
        Value::Bool(_) | Value::Integer(_) | Value::MssClamp(MssClamp::To(_)) => {
            let _ = writeln!(out, "{key} = {}", value.show());
        }
        Value::Duration(_) | Value::Word(_) | Value::Text(_) | Value::MssClamp(MssClamp::Auto) => {
            write_text(out, key, &value.show());
        }
        Value::Ports(ports) => write_list(out, key, names(config, ports)),
        Value::Names(names) => write_list(out, key, names),
        Value::Addresses(addresses) => write_list(out, key, addresses.iter().map(link)),
    }
}

fn write_text(out: &mut String, key: &str, text: &str) {
    let _ = writeln!(out, "{key} = {}", quoted(text));
}

fn write_list<T: ToString>(out: &mut String, key: &str, items: impl IntoIterator<Item = T>) {
    let items = items.into_iter().map(|item| quoted(&item.to_string()));
    let _ = writeln!(out, "{key} = [{}]", items.collect::<Vec<_>>().join(", "));
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::options::tests::EVERYTHING;

    fn read(text: &str) -> Config {
        let read = crate::config::parse(Path::new("a.toml"), text);
        read.unwrap_or_else(|problems| panic!("{problems:?}\n{text}"))
            .0
    }

    /// All of `config` as a file, without default values.
    fn text_of(config: &Config) -> String {
        let mut parts = ConfigText::default();
        let parts = std::iter::from_fn(|| parts.next(config, false));
        parts.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_is_shown_is_read_as_the_same_config() {
        let ranges = EVERYTHING
            .replace(
                "addresses = [\"10.0.1.9\"]",
                "addresses = [\"10.0.1.9-10.0.1.12\", \"10.0.1.20\"]",
            )
            .replace(
                "external = \"10.0.1.1:53\"",
                "external = \"10.0.1.1:53-60\"",
            )
            .replace("\"tcp/80\"", "\"tcp/80-90\", \"icmp\", \"gre\", \"udp\"")
            .replace("a.key", "a \\\" \\\\ key");
        let alone = "[node]\nname = \"a\"\n[[port]]\nname = \"lan\"\ninterface = \"eth0\"\n\
            virtual-addresses = [\"fd00::1/64\", \"fe80::1/64\"]\n";
        for text in [EVERYTHING, &ranges, alone] {
            let config = read(text);
            let shown = text_of(&config);
            assert_eq!(read(&shown), config, "{shown}");
            let mut parts = ConfigText::default();
            let full = std::iter::from_fn(|| parts.next(&config, true));
            let full: String = full.collect();
            assert_eq!(read(&full), config, "{full}");
            assert!(full.len() > shown.len());
        }
    }

    #[test]
    fn a_default_is_left_out() {
        let config = read(
            "[node]\nname = \"a\"\n[[port]]\nname = \"lan\"\ninterface = \"eth0\"\nvirtual-addresses = [\"10.0.1.1/24\"]\n",
        );
        assert_eq!(
            text_of(&config),
            "[node]\nname = \"a\"\ncontrol-socket = \"/run/tandemgw/a.sock\"\n\n[[port]]\nname = \"lan\"\n\
             interface = \"eth0\"\nvirtual-addresses = [\"10.0.1.1/24\"]\n"
        );
    }
}
