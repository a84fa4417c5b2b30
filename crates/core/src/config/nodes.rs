//! One config for several units: `[node.NAME]` tables hold what is each unit's own.
//!
//! They have the same layout as the document: keys of `[node]` stand in `[node.NAME]`, those of a
//! port in `[node.NAME.port.PORT]`, those of `[ha]` in `[node.NAME.ha]`. Which keys are a unit's
//! own, the list of options says. [`select`] puts those of one unit where they would stand in a
//! config of its own, so the decoder knows nothing of units.

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::diagnostic::Report;
use super::names::did_you_mean;
use super::options;
use super::reader::Span;

/// Which unit of a config for several this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ThisUnit {
    /// The one of this name.
    Named(String),
    /// The one that has the name of this host, with or without its domain.
    Host(String),
}

/// The tables that hold a unit's own keys under the names of others.
const NAMED: [&str; 2] = ["port", "group"];

/// The tables of which there is one.
const SINGLE: [&str; 2] = ["ha", "metrics"];

/// A key of a unit, and where it would stand in a config of its own.
struct Own<'a> {
    place: Place,
    key: Spanned<DeString<'a>>,
    value: Spanned<DeValue<'a>>,
}

enum Place {
    /// The table of that name.
    Single(&'static str),
    /// The table of that array whose name that is.
    Named(&'static str, String),
    /// The link at that place.
    Link(usize),
}

/// The names of the units that a config is for; none if it is for one, which `[node]` names.
pub fn unit_names(text: &str) -> Vec<String> {
    let (document, _) = DeTable::parse_recoverable(text);
    let node = document.get_ref().get("node").map(Spanned::get_ref);
    let Some(DeValue::Table(node)) = node else {
        return Vec::new();
    };
    let units = node.iter().filter(|(_, value)| is_table(value));
    units.map(|(name, _)| name.get_ref().to_string()).collect()
}

/// Puts the keys of this unit where they would stand in a config of its own, and removes those of
/// all units. Reports what is wrong in the table of any.
pub(super) fn select<'a>(document: &mut DeTable<'a>, this: Option<&ThisUnit>, report: &Report) {
    let Some(DeValue::Table(node)) = document.get_mut("node").map(Spanned::get_mut) else {
        return;
    };
    let mut units: Vec<(Spanned<DeString<'a>>, DeTable<'a>, Span)> = Vec::new();
    for (name, value) in node.iter() {
        if let DeValue::Table(own) = value.get_ref() {
            units.push((name.clone(), own.clone(), value.span()));
        }
    }
    if units.is_empty() {
        return;
    }
    for (name, ..) in &units {
        node.remove(name.get_ref().as_ref());
    }
    if let Some((key, _)) = node.get_key_value("name") {
        let hint = "the name of a unit is that of its table: leave `name` out";
        report.error(&key.span(), "`name` beside tables of units", hint);
        return;
    }
    let names: Vec<&str> = units
        .iter()
        .map(|(name, ..)| name.get_ref().as_ref())
        .collect();
    let found = this.and_then(|this| names.iter().position(|name| this.is(name)));
    check_peers(document, &units, report);
    let owns: Vec<Vec<Own<'a>>> = units
        .iter()
        .map(|(_, own, _)| collect(own, report))
        .collect();
    let Some(found) = found else {
        report.error(
            &units[0].0.span(),
            which(this, &names),
            "name this unit with --node",
        );
        return;
    };
    let (name, _, header) = &units[found];
    let value = Spanned::new(name.span(), DeValue::String(name.get_ref().clone()));
    let key = Spanned::new(header.clone(), DeString::from("name"));
    if let Some(DeValue::Table(node)) = document.get_mut("node").map(Spanned::get_mut) {
        node.insert(key, value);
    }
    remove_peer(document, name.get_ref());
    for own in owns.into_iter().nth(found).unwrap_or_default() {
        put(document, own, report);
    }
}

impl ThisUnit {
    fn is(&self, name: &str) -> bool {
        match self {
            ThisUnit::Named(this) => this == name,
            ThisUnit::Host(host) => host == name || host.split('.').next() == Some(name),
        }
    }
}

fn is_table(value: &Spanned<DeValue<'_>>) -> bool {
    matches!(value.get_ref(), DeValue::Table(_))
}

/// Why it is not known which unit this is.
fn which(this: Option<&ThisUnit>, names: &[&str]) -> String {
    let all: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let all = all.join(", ");
    match this {
        Some(ThisUnit::Named(name)) => format!("there is no unit `{name}` here, but {all}"),
        Some(ThisUnit::Host(host)) => {
            format!("this host is `{host}`, and the config is for {all}")
        }
        None => format!("the config is for {all}"),
    }
}

/// Each unit must be a peer of the others, of which each leaves itself out.
fn check_peers(
    document: &DeTable<'_>,
    units: &[(Spanned<DeString<'_>>, DeTable<'_>, Span)],
    report: &Report,
) {
    let Some(DeValue::Table(ha)) = document.get("ha").map(Spanned::get_ref) else {
        return;
    };
    let peers: Vec<&str> = match ha.get("peer").map(Spanned::get_ref) {
        Some(DeValue::Array(peers)) => peers.iter().filter_map(name_of).collect(),
        _ => Vec::new(),
    };
    for (name, ..) in units {
        if !peers.contains(&name.get_ref().as_ref()) {
            let message = format!("`{}` has no `[[ha.peer]]`", name.get_ref());
            let hint = "a config for several units lists all of them; each leaves itself out";
            report.error(&name.span(), message, hint);
        }
    }
}

fn name_of<'t>(table: &'t Spanned<DeValue<'_>>) -> Option<&'t str> {
    match table.get_ref() {
        DeValue::Table(table) => table.get("name")?.get_ref().as_str(),
        _ => None,
    }
}

/// This unit is no peer of itself.
fn remove_peer(document: &mut DeTable<'_>, name: &str) {
    let Some(DeValue::Table(ha)) = document.get_mut("ha").map(Spanned::get_mut) else {
        return;
    };
    if let Some(DeValue::Array(peers)) = ha.get_mut("peer").map(Spanned::get_mut) {
        let all = std::mem::replace(peers, DeArray::new());
        let others = all.into_iter().filter(|peer| name_of(peer) != Some(name));
        *peers = others.collect();
    }
}

/// The keys of a unit. Those that are not its own are reported.
fn collect<'a>(unit: &DeTable<'a>, report: &Report) -> Vec<Own<'a>> {
    let mut all = Vec::new();
    for (key, value) in unit {
        let name = key.get_ref().as_ref();
        let named = NAMED.into_iter().find(|known| *known == name);
        let single = SINGLE.into_iter().find(|known| *known == name);
        match (value.get_ref(), named, single) {
            (DeValue::Table(tables), Some(array), _) => {
                for (name, table) in tables {
                    let place = || Place::Named(array, name.get_ref().to_string());
                    collect_table(&mut all, (array, &place), table, report);
                }
            }
            (_, None, Some(name)) => {
                collect_table(&mut all, (name, &|| Place::Single(name)), value, report);
            }
            _ => take(
                &mut all,
                ("node", Place::Single("node")),
                (key, value),
                report,
            ),
        }
    }
    all
}

fn collect_table<'a>(
    all: &mut Vec<Own<'a>>,
    (name, place): (&'static str, &dyn Fn() -> Place),
    table: &Spanned<DeValue<'a>>,
    report: &Report,
) {
    let DeValue::Table(keys) = table.get_ref() else {
        report.error(&table.span(), format!("`{name}` is no table here"), "");
        return;
    };
    for (key, value) in keys {
        match (name, key.get_ref().as_ref(), value.get_ref()) {
            ("ha", "link", DeValue::Array(links)) => {
                for (at, link) in links.iter().enumerate() {
                    collect_table(all, ("ha.link", &|| Place::Link(at)), link, report);
                }
            }
            _ => take(all, (name, place()), (key, value), report),
        }
    }
}

/// Takes a key of a unit, if it is one that is a unit's own.
fn take<'a>(
    all: &mut Vec<Own<'a>>,
    (table, place): (&'static str, Place),
    (key, value): (&Spanned<DeString<'a>>, &Spanned<DeValue<'a>>),
    report: &Report,
) {
    let name = key.get_ref().as_ref();
    match options::find(table, name) {
        Some(option) if option.is_own => all.push(Own {
            place,
            key: key.clone(),
            value: value.clone(),
        }),
        Some(_) => {
            let message = format!("`{name}` is the same on all units");
            report.error(&key.span(), message, format!("write it in `[{table}]`"));
        }
        None => {
            let own = || options::own_keys(table);
            let hint = did_you_mean(name, own()).unwrap_or_else(|| {
                let keys: Vec<&str> = own().collect();
                format!("the keys of a unit here are {}", keys.join(", "))
            });
            report.error(&key.span(), format!("unknown key `{name}` of a unit"), hint);
        }
    }
}

/// Puts a key where it would stand in a config of this unit.
fn put<'a>(document: &mut DeTable<'a>, own: Own<'a>, report: &Report) {
    let Own { place, key, value } = own;
    let span = key.span();
    match table_at(document, &place, &span) {
        Some(table) => {
            table.insert(key, value);
        }
        None => {
            let message = match &place {
                Place::Single(name) => format!("there is no `[{name}]`"),
                Place::Named(array, name) => format!("there is no `[[{array}]]` named `{name}`"),
                Place::Link(_) => "there is no `[ha]`".to_owned(),
            };
            report.error(&span, message, "");
        }
    }
}

fn table_at<'d, 'a>(
    document: &'d mut DeTable<'a>,
    place: &Place,
    span: &Span,
) -> Option<&'d mut DeTable<'a>> {
    let table = match place {
        Place::Single(name) => document.get_mut(*name)?,
        Place::Named(array, name) => {
            let DeValue::Array(tables) = document.get_mut(*array)?.get_mut() else {
                return None;
            };
            let mut tables = tables.iter_mut();
            tables.find(|table| name_of(table) == Some(name))?
        }
        Place::Link(at) => {
            let DeValue::Table(ha) = document.get_mut("ha")?.get_mut() else {
                return None;
            };
            let key = Spanned::new(span.clone(), DeString::from("link"));
            let none = || Spanned::new(span.clone(), DeValue::Array(DeArray::new()));
            let links = ha.entry(key).or_insert_with(none);
            let DeValue::Array(links) = links.get_mut() else {
                return None;
            };
            if links.len() == *at {
                let table = DeValue::Table(DeTable::new());
                links.push(Spanned::new(span.clone(), table));
            }
            links.get_mut(*at)?
        }
    };
    match table.get_mut() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{self, Config, Sources};

    const BOTH: &str = r#"
[node]
max-sessions = 4096

[node.gw-a]
key = "a.key"
port.lan.interface = "eth0"
[node.gw-a.ha]
priority = 200
[[node.gw-a.ha.link]]
interface = "sync0"
listen = "192.0.2.1:7700"

[node.gw-b]
key = "b.key"
port.lan.interface = "enp1s0"
[[node.gw-b.ha.link]]
interface = "sync0"
listen = "192.0.2.2:7700"

[[port]]
name = "lan"
virtual-addresses = ["10.0.0.1/24"]

[ha]
group-id = 7
priority = 100

[[ha.peer]]
name = "gw-a"
addresses = ["192.0.2.1:7700"]
public-key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

[[ha.peer]]
name = "gw-b"
addresses = ["192.0.2.2:7700"]
public-key = "ICECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
"#;

    fn read(text: &str, this: Option<ThisUnit>) -> Result<Config, Vec<String>> {
        let sources = Sources::new(Path::new("/etc/gw.toml"), text).of_unit(this);
        match config::parse_all(&sources) {
            Ok((config, _)) => Ok(config),
            Err(found) => Err(found.iter().map(|it| it.line(&sources)).collect()),
        }
    }

    fn named(name: &str) -> Option<ThisUnit> {
        Some(ThisUnit::Named(name.to_owned()))
    }

    #[test]
    fn each_unit_reads_its_own_keys_and_the_shared_ones() {
        for (name, interface, priority, listen, peer) in [
            ("gw-a", "eth0", 200, "192.0.2.1:7700", "gw-b"),
            ("gw-b", "enp1s0", 100, "192.0.2.2:7700", "gw-a"),
        ] {
            let config = read(BOTH, named(name)).unwrap();
            let ha = config.ha.unwrap();
            assert_eq!(config.node.name, name);
            assert_eq!(config.node.max_sessions, 4096);
            assert_eq!(config.ports[0].interface, interface);
            assert_eq!(ha.priority, priority);
            assert_eq!(ha.links[0].listen.to_string(), listen);
            let peers: Vec<_> = ha.peers.iter().map(|peer| &*peer.name).collect();
            assert_eq!(peers, [peer]);
            let key = config.node.key.unwrap();
            assert_eq!(key, Path::new("/etc").join(format!("{}.key", &name[3..])));
        }
        assert_eq!(unit_names(BOTH), ["gw-a", "gw-b"]);
    }

    #[test]
    fn the_name_of_the_host_is_enough() {
        for host in ["gw-b", "gw-b.example.com"] {
            let this = ThisUnit::Host(host.to_owned());
            assert_eq!(read(BOTH, Some(this)).unwrap().node.name, "gw-b");
        }
    }

    /// Reads the config with a change, which must be refused.
    fn refuses(this: Option<ThisUnit>, (from, to): (&str, &str), wanted: &str) {
        let text = match from {
            "" => BOTH.to_owned(),
            from => BOTH.replacen(from, to, 1),
        };
        let found = read(&text, this).unwrap_err().join("\n");
        assert!(found.contains(wanted), "{wanted}: {found}");
    }

    #[test]
    fn a_unit_that_is_not_there_is_told_those_that_are() {
        let host = Some(ThisUnit::Host("srv1".to_owned()));
        refuses(
            host,
            ("", ""),
            "5:7: this host is `srv1`, and the config is for `gw-a`, `gw-b`",
        );
        refuses(
            named("gw-c"),
            ("", ""),
            "5:7: there is no unit `gw-c` here, but `gw-a`, `gw-b`",
        );
        refuses(None, ("", ""), "5:7: the config is for `gw-a`, `gw-b`");
    }

    #[test]
    fn mistakes_are_told_where_they_stand() {
        for (from, to, wanted) in [
            // In the table of the other unit, too.
            (
                "key = \"b",
                "group-id = 7\nkey = \"b",
                "unknown key `group-id` of a",
            ),
            (
                "key = \"b",
                "routing-table = 1\nkey = \"b",
                "is the same on all units",
            ),
            (
                "gw-a.ha]",
                "gw-a.ha]\noverride = true",
                "is the same on all units",
            ),
            (
                "gw-a]",
                "gw-a]\nport.wan.interface = \"x\"",
                "no `[[port]]` named `wan`",
            ),
            (
                "gw-a]",
                "gw-a]\nport.lan.name = \"x\"",
                "is the same on all units",
            ),
            (
                "[node]",
                "[node]\nname = \"gw-a\"",
                "`name` beside tables of units",
            ),
            (
                "name = \"gw-b\"",
                "name = \"gw-c\"",
                "`gw-b` has no `[[ha.peer]]`",
            ),
            (
                "gw-a.ha]",
                "gw-a.metrics]\nlisten = \"127.0.0.1:1\"\n[node.gw-a.ha]",
                "there is no `[metrics]`",
            ),
            ("priority = 200", "priority = 300", "`priority` is 300"),
        ] {
            refuses(named("gw-a"), (from, to), wanted);
        }
    }
}
