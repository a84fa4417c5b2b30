//! `[[address]]` and `[[service]]`: names that stand for lists of addresses or services.
//!
//! A policy, pool or forward may write such a name in place of an address or a service. Names are
//! resolved while the file is read: a [`Config`](super::Config) has the members only.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use toml::de::DeValue;

use super::diagnostic::Report;
use super::names::{Names, check_name};
use super::reader::{At, Table};
use super::value::{AddressRange, Endpoints, FromToml, Prefix, ServiceOrAny};

/// What all names together may stand for, counted where they are used: a list of 10 000 addresses
/// in 50 000 policies would fill the memory.
const MOST_RESOLVED: usize = 1_000_000;

/// The names of a file.
pub(super) struct Aliases {
    addresses: Lists<AddressRange>,
    services: Lists<ServiceOrAny>,
    /// What is left of [`MOST_RESOLVED`].
    left: Cell<usize>,
}

/// Lists of one kind.
struct Lists<T> {
    names: Names,
    lists: Vec<Vec<T>>,
}

/// A value that a name can stand for in a list.
pub(super) trait Listed: FromToml {
    /// What the name stands for, if it is known.
    fn of_name(aliases: &Aliases, name: &str) -> Option<Vec<Self>>;

    /// The names that could have been meant.
    fn names(aliases: &Aliases) -> &Names;
}

impl Listed for Prefix {
    fn of_name(aliases: &Aliases, name: &str) -> Option<Vec<Prefix>> {
        let ranges = aliases.addresses.get(name)?;
        Some(ranges.iter().flat_map(prefixes_of).map(Prefix).collect())
    }

    fn names(aliases: &Aliases) -> &Names {
        &aliases.addresses.names
    }
}

impl Listed for AddressRange {
    fn of_name(aliases: &Aliases, name: &str) -> Option<Vec<AddressRange>> {
        aliases.addresses.get(name).map(<[_]>::to_vec)
    }

    fn names(aliases: &Aliases) -> &Names {
        &aliases.addresses.names
    }
}

impl Listed for ServiceOrAny {
    fn of_name(aliases: &Aliases, name: &str) -> Option<Vec<ServiceOrAny>> {
        aliases.services.get(name).map(<[_]>::to_vec)
    }

    fn names(aliases: &Aliases) -> &Names {
        &aliases.services.names
    }
}

impl Aliases {
    /// Reads both kinds. A member may be the name of a list above it.
    pub(super) fn read(root: &mut Table<'_>) -> Aliases {
        let mut aliases = Aliases {
            addresses: Lists::new("address"),
            services: Lists::new("service"),
            left: Cell::new(MOST_RESOLVED),
        };
        for table in root.tables("address") {
            let read = |value: &DeValue<'_>| MemberAddress::from_toml(value).map(|it| it.0);
            let same = |range: &AddressRange| (range.first, range.last);
            aliases.addresses.read(table, read, same);
        }
        for table in root.tables("service") {
            aliases.services.read(table, ServiceOrAny::from_toml, |it| {
                it.0.map(|service| (service.protocol.0, service.ports))
            });
        }
        aliases
    }

    /// The elements of the list `key`, and of the lists that it names.
    pub(super) fn list<T: Listed>(&self, table: &mut Table<'_>, key: &'static str) -> Vec<At<T>> {
        let mut found = Vec::new();
        for value in table.elements(key) {
            let (text, span) = (value.get_ref().as_str(), value.span());
            let Some(members) = text.and_then(|name| T::of_name(self, name)) else {
                let hint = text.and_then(|text| T::names(self).similar(text));
                found.extend(table.decode_with_hint(value, hint));
                continue;
            };
            let Some(left) = self.left.get().checked_sub(members.len()) else {
                let message =
                    format!("the names in this file stand for more than {MOST_RESOLVED} entries");
                let hint = "write prefixes that cover several of them";
                table.report.error(&span, message, hint);
                return found;
            };
            self.left.set(left);
            found.extend(members.into_iter().map(|value| At {
                value,
                span: span.clone(),
            }));
        }
        found
    }

    /// As [`Aliases::list`], for a list of which the absence means "any".
    pub(super) fn any_or_list<T: Listed>(
        &self,
        table: &mut Table<'_>,
        key: &'static str,
    ) -> Vec<At<T>> {
        table.refuse_empty(key);
        self.list(table, key)
    }

    /// An address with its ports, where a name may stand for the address.
    pub(super) fn endpoints(
        &self,
        table: &mut Table<'_>,
        key: &'static str,
    ) -> Option<At<Endpoints>> {
        let At { value: text, span } = table.require::<String>(key)?;
        let text = match text.split_once(':') {
            Some((name, ports)) => match self.addresses.get(name) {
                Some([one]) if one.first == one.last => match one.first {
                    IpAddr::V4(v4) => format!("{v4}:{ports}"),
                    IpAddr::V6(v6) => format!("[{v6}]:{ports}"),
                },
                Some(_) => {
                    let message = format!("the address `{name}` is more than one");
                    table
                        .report
                        .error(&span, message, "a forward needs a single address");
                    return None;
                }
                None => text,
            },
            None => text,
        };
        match Endpoints::from_toml(&DeValue::String(text.as_str().into())) {
            Ok(value) => Some(At { value, span }),
            Err(problem) => {
                let name = text.split(':').next().unwrap_or_default();
                let hint = self.addresses.names.similar(name).unwrap_or(problem.hint);
                table.report.error(&span, problem.message, hint);
                None
            }
        }
    }
}

impl<T: Clone + FromToml> Lists<T> {
    fn new(kind: &'static str) -> Lists<T> {
        Lists {
            names: Names::new(kind),
            lists: Vec::new(),
        }
    }

    fn get(&self, name: &str) -> Option<&[T]> {
        self.lists.get(self.names.find(name)?).map(Vec::as_slice)
    }

    /// Reads a table. Members that are listed twice, as those of two names can be, count once: by
    /// doubling them, a few lines could stand for any number.
    fn read<K: Ord>(
        &mut self,
        mut table: Table<'_>,
        read: impl Fn(&DeValue<'_>) -> Result<T, super::value::ValueProblem>,
        key: impl Fn(&T) -> K,
    ) {
        let report = table.report;
        let name = table.require::<String>("name");
        check_name(report, name.as_ref());
        self.refuse_literal(report, name.as_ref());
        let before = report.errors();
        let listed = table.list::<String>("member");
        if listed.is_empty() && report.errors() == before {
            report.error(&table.header, "`member` is empty", "list at least one");
        }
        let mut known = BTreeSet::new();
        let mut members = Vec::new();
        for At { value, span } in listed {
            let found = match self.get(&value) {
                Some(list) => list.to_vec(),
                None => match read(&DeValue::String(value.as_str().into())) {
                    Ok(member) => vec![member],
                    Err(problem) => {
                        let hint = self.names.similar(&value).unwrap_or(problem.hint);
                        report.error(&span, problem.message, hint);
                        continue;
                    }
                },
            };
            members.extend(found.into_iter().filter(|member| known.insert(key(member))));
        }
        // Declared last: a list can't name itself.
        self.names.declare(report, name.as_ref(), self.lists.len());
        self.lists.push(members);
        table.finish();
    }

    /// A name that reads as a value would hide it.
    fn refuse_literal(&self, report: &Report, name: Option<&At<String>>) {
        let Some(At { value, span }) = name else {
            return;
        };
        if T::from_toml(&DeValue::String(value.as_str().into())).is_ok() {
            let message = format!("the name `{value}` already means something");
            report.error(span, message, "choose another name");
        }
    }
}

/// A member of an `[[address]]`: a prefix, an address, or a range.
struct MemberAddress(AddressRange);

impl FromToml for MemberAddress {
    fn from_toml(value: &DeValue<'_>) -> Result<MemberAddress, super::value::ValueProblem> {
        if value.as_str().is_some_and(|text| text.contains('-')) {
            return AddressRange::from_toml(value).map(MemberAddress);
        }
        let net = Prefix::from_toml(value)?.0;
        Ok(MemberAddress(AddressRange {
            first: net.network(),
            last: net.broadcast(),
        }))
    }
}

/// The fewest prefixes that are these addresses.
fn prefixes_of(range: &AddressRange) -> Vec<IpNet> {
    match (range.first, range.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
        }
        // The parser refuses ranges that end in the other family.
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{Config, Diagnostic};

    const HEAD: &str = r#"
        [node]
        name = "a"
        [[port]]
        name = "lan"
        interface = "eth0"
        virtual-addresses = ["10.0.1.1/24", "fd00:1::1/64"]
    "#;

    fn parse(text: &str) -> Result<Config, Vec<String>> {
        let text = format!("{HEAD}{text}");
        let line = |found: &Diagnostic| {
            let hint = found.hint.clone().unwrap_or_default();
            format!("{}; {hint}", found.message)
        };
        match crate::config::parse(Path::new("a.toml"), &text) {
            Ok((config, _)) => Ok(config),
            Err(found) => Err(found.iter().map(line).collect()),
        }
    }

    /// Both spellings give the same config.
    #[test]
    fn a_name_stands_for_its_members() {
        let named = parse(
            r#"
            [[address]]
            name = "office"
            member = ["10.8.0.0/16", "fd00:8::/32", "10.9.0.4-10.9.0.6"]
            [[address]]
            name = "all-sites"
            member = ["office", "10.10.0.0/16", "office"]
            [[address]]
            name = "outside"
            member = ["10.0.1.8-10.0.1.9"]
            [[address]]
            name = "server"
            member = ["fd00:1::5"]
            [[service]]
            name = "web"
            member = ["tcp/80", "tcp/443"]
            [[service]]
            name = "public"
            member = ["web", "udp/53", "tcp/80"]
            [[nat-pool]]
            name = "n"
            addresses = ["outside"]
            [[policy]]
            name = "p"
            source = ["all-sites", "10.11.0.1"]
            service = ["public"]
            action = "accept"
            nat-pool = "n"
            [[forward]]
            name = "f"
            port = "lan"
            protocol = "tcp"
            external = "[fd00:1::1]:80"
            internal = "server:8080"
            "#,
        );
        let spelled = parse(
            r#"
            [[nat-pool]]
            name = "n"
            addresses = ["10.0.1.8-10.0.1.9"]
            [[policy]]
            name = "p"
            source = ["10.8.0.0/16", "fd00:8::/32", "10.9.0.4/31", "10.9.0.6/32", "10.10.0.0/16", "10.11.0.1"]
            service = ["tcp/80", "tcp/443", "udp/53"]
            action = "accept"
            nat-pool = "n"
            [[forward]]
            name = "f"
            port = "lan"
            protocol = "tcp"
            external = "[fd00:1::1]:80"
            internal = "[fd00:1::5]:8080"
            "#,
        );
        assert_eq!(named.unwrap(), spelled.unwrap());
    }

    #[test]
    fn what_a_name_may_not_be_is_told() {
        let policy = |key: &str, name: &str| {
            format!("[[policy]]\nname = \"p\"\naction = \"drop\"\n{key} = [\"{name}\"]\n")
        };
        let address = |name: &str, member: &str| {
            format!("[[address]]\nname = \"{name}\"\nmember = [{member}]\n")
        };
        let servers = address("servers", "\"10.8.0.1\", \"10.8.0.2\"");
        let forward = "[[forward]]\nname = \"f\"\nport = \"lan\"\nprotocol = \"tcp\"\n\
                       external = \"10.0.1.1:80\"\ninternal = \"servers:80\"\n";
        for (text, expected) in [
            (
                servers.clone() + &policy("source", "server"),
                "`server` can't be read as an address; did you mean `servers`?",
            ),
            (
                // One kind is not the other.
                servers.clone() + &policy("service", "servers"),
                "unknown service `servers`",
            ),
            (
                address("a", "\"b\"") + &address("b", "\"10.8.0.1\""),
                "`b` can't be read as an address",
            ),
            (address("a", "\"a\""), "`a` can't be read as an address"),
            (
                address("10.0.0.1", "\"10.8.0.1\""),
                "already means something",
            ),
            (
                "[[service]]\nname = \"tcp\"\nmember = [\"udp\"]\n".to_owned(),
                "already means",
            ),
            (address("a", ""), "`member` is empty"),
            (
                servers.clone() + &servers,
                "a second address named `servers`",
            ),
            (servers.clone() + forward, "`servers` is more than one"),
        ] {
            let found = parse(&text).unwrap_err().join("\n");
            assert!(found.contains(expected), "{found}\nwithout {expected}");
        }
    }

    /// Each line doubles what the one before stands for.
    #[test]
    fn names_of_names_do_not_fill_the_memory() {
        let mut text = "[[address]]\nname = \"n0\"\nmember = [\"10.8.0.1\"]\n".to_owned();
        for n in 1..100 {
            let (one, before) = (format!("n{n}"), format!("\"n{}\"", n - 1));
            text += &format!(
                "[[address]]\nname = \"{one}\"\nmember = [{before}, {before}, \"10.9.0.{n}\"]\n"
            );
        }
        text += "[[policy]]\nname = \"p\"\naction = \"drop\"\nsource = [\"n99\"]\n";
        assert_eq!(parse(&text).unwrap().policies[0].source.len(), 100);

        let members: Vec<String> = (0..20_000)
            .map(|n| format!("\"10.{}.{}.1\"", n / 200, n % 200))
            .collect();
        let mut text = format!(
            "[[address]]\nname = \"many\"\nmember = [{}]\n",
            members.join(", ")
        );
        for n in 0..60 {
            text +=
                &format!("[[policy]]\nname = \"p{n}\"\naction = \"drop\"\nsource = [\"many\"]\n");
        }
        let found = parse(&text).unwrap_err().join("\n");
        assert!(found.contains("more than 1000000 entries"), "{found}");
    }
}
