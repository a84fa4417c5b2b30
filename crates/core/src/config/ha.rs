//! `[ha]` with its links and peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::diagnostic::Report;
use super::names::{Names, check_interface, check_name};
use super::network::Network;
use super::reader::{At, Span, Table};
use super::value::{PublicKey, unusable};
use super::{Ha, HaLink, HaPeer, witness};
use crate::flow::Addr;

/// How long the first packet of a session waits for the peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PickupGuarantee {
    /// Not at all.
    #[default]
    Off,
    /// Until the peers have it or the wait is over; then it goes, and is counted.
    Bounded,
    /// Until the peers have it; dropped when the wait is over.
    Strict,
}

impl PickupGuarantee {
    /// As in the file.
    pub(crate) fn word(self) -> &'static str {
        match self {
            PickupGuarantee::Off => "off",
            PickupGuarantee::Bounded => "bounded",
            PickupGuarantee::Strict => "strict",
        }
    }

    /// The meaning of a word in the file.
    pub(super) fn of_word(word: &str) -> Option<PickupGuarantee> {
        match word {
            "off" => Some(PickupGuarantee::Off),
            "bounded" => Some(PickupGuarantee::Bounded),
            "strict" => Some(PickupGuarantee::Strict),
            _ => None,
        }
    }
}

/// Reads `[ha]`; `node` is this unit's name, if it could be read.
pub(super) fn read(mut table: Table<'_>, node: Option<&At<String>>, network: &Network) -> Ha {
    let report = table.report;
    let links = read_links(&mut table, network);
    let peers = read_peers(&mut table, node, &links);
    let monitor = table.list::<String>("monitor");
    let accept_push = read_accepted(&mut table, node, &peers);
    let guarantee = table.span_of("pickup-guarantee");
    let copies = table.span_of("pickup-guarantee-copies");
    let witness = table.optional_table("ha.witness").and_then(witness::read);
    let mut ha = Ha {
        monitor: network.resolve(report, &monitor),
        accept_push,
        links: links.into_iter().map(|link| link.value).collect(),
        peers,
        witness,
        ..Ha::default()
    };
    table.fill(&mut ha);
    if let Some(span) = guarantee
        && ha.pickup_guarantee != PickupGuarantee::Off
    {
        warn_of_contradiction(report, &ha, &span);
    }
    if let Some(span) = copies.filter(|_| ha.pickup_guarantee_copies as usize > ha.peers.len()) {
        let message = format!(
            "more copies than peers: only {} can hold a session",
            ha.peers.len()
        );
        report.warn(&span, message, "name more peers, or ask for fewer copies");
    }
    table.finish();
    ha
}

/// The names in `accept-push`, of peers or of this unit: the list may be the same on all.
fn read_accepted(
    table: &mut Table<'_>,
    node: Option<&At<String>>,
    peers: &[HaPeer],
) -> Vec<String> {
    let names = table.list::<String>("accept-push");
    let own = node.map(|node| node.value.as_str());
    for At { value, span } in &names {
        let mut known = peers.iter().map(|peer| peer.name.as_str()).chain(own);
        if !known.any(|name| name == value) {
            let hint = "name units of `[[ha.peer]]`";
            table
                .report
                .error(span, format!("unknown peer `{value}`"), hint);
        }
    }
    names.into_iter().map(|name| name.value).collect()
}

fn warn_of_contradiction(report: &Report, ha: &Ha, span: &Span) {
    if !ha.session_pickup {
        let message = "`pickup-guarantee` has no effect without `session-pickup`";
        report.warn(span, message, "");
    } else if !ha.session_pickup_delay.is_zero() {
        let message =
            "`pickup-guarantee` waits for sessions that `session-pickup-delay` holds back";
        report.warn(span, message, "remove one of them");
    }
}

/// Each link, with the place of its address.
fn read_links(table: &mut Table<'_>, network: &Network) -> Vec<At<HaLink>> {
    let report = table.report;
    let before = report.errors();
    let mut known = BTreeMap::new();
    let mut links = Vec::new();
    for mut link in table.tables("ha.link") {
        let interface = link.require::<String>("interface");
        check_interface(report, interface.as_ref());
        let listen = link.require::<SocketAddr>("listen");
        link.finish();
        if let Some(listen) = &listen {
            check_endpoint(report, listen, &mut known);
            let addr = Addr::from(listen.value.ip());
            if network.port_of(addr).is_some() {
                let hint = "give an address that this unit alone has";
                report.error(&listen.span, format!("`{addr}` is a virtual address"), hint);
            }
        }
        let (listen, span) = match listen {
            Some(At { value, span }) => (value, span),
            None => (SocketAddr::from(([0; 4], 0)), table.header.clone()),
        };
        links.push(At {
            value: HaLink {
                interface: interface.map_or_else(String::new, |name| name.value),
                listen,
            },
            span,
        });
    }
    if links.is_empty() && report.errors() == before {
        let hint = "add an `[[ha.link]]` with `interface` and `listen`";
        report.error(&table.header, "there is no link to the peers", hint);
    }
    links
}

fn read_peers(
    table: &mut Table<'_>,
    node: Option<&At<String>>,
    links: &[At<HaLink>],
) -> Vec<HaPeer> {
    let report = table.report;
    let before = report.errors();
    let mut names = Names::new("peer");
    let mut known = links.iter().map(|link| (link.value.listen, ())).collect();
    let mut keys = BTreeMap::new();
    let mut peers = Vec::new();
    for mut peer in table.tables("ha.peer") {
        let name = peer.require::<String>("name");
        check_name(report, name.as_ref());
        names.declare(report, name.as_ref(), peers.len());
        if let (Some(name), Some(node)) = (&name, node)
            && name.value == node.value
        {
            let message = format!("the peer is named `{}`, as this unit is", name.value);
            report.error(&name.span, message, "give each unit a name of its own");
        }
        let errors = report.errors();
        let addresses = peer.list::<SocketAddr>("addresses");
        if report.errors() == errors {
            check_addresses(report, &peer.header, &addresses, links, &mut known);
        }
        let public_key = peer.require::<PublicKey>("public-key");
        if let Some(At { value, span }) = &public_key
            && keys.insert(value.0, ()).is_some()
        {
            let hint = "copy what `tandemgw pubkey` prints on this peer";
            report.error(span, "another peer has the same public key", hint);
        }
        peer.finish();
        peers.push(HaPeer {
            name: name.map_or_else(String::new, |name| name.value),
            addresses: addresses.into_iter().map(|at| at.value).collect(),
            public_key: public_key.map_or([0; 32], |key| key.value.0),
        });
    }
    if peers.is_empty() && report.errors() == before {
        let hint = "add an `[[ha.peer]]` with `name`, `addresses` and `public-key`";
        report.error(&table.header, "there is no peer", hint);
    }
    peers
}

/// One address for each link, in its family.
fn check_addresses(
    report: &Report,
    header: &Span,
    addresses: &[At<SocketAddr>],
    links: &[At<HaLink>],
    known: &mut BTreeMap<SocketAddr, ()>,
) {
    let (given, wanted) = (addresses.len(), links.len());
    if given != wanted && wanted > 0 {
        let span = addresses.last().map_or(header, |last| &last.span);
        let message = format!("the peer's addresses: {given}, this unit's links: {wanted}");
        report.error(
            span,
            message,
            "give one address a link, in the order of the links",
        );
    }
    for address in addresses {
        check_endpoint(report, address, known);
    }
    for (address, link) in addresses.iter().zip(links) {
        let listen = link.value.listen;
        if listen.port() != 0 && listen.is_ipv4() != address.value.is_ipv4() {
            let message = format!("`{}` can't be reached from {listen}", address.value);
            report.error(
                &address.span,
                message,
                "give both in the same address family",
            );
        }
    }
}

/// An address that a unit can have, and that nothing else in the file uses yet.
fn check_endpoint(
    report: &Report,
    endpoint: &At<SocketAddr>,
    known: &mut BTreeMap<SocketAddr, ()>,
) {
    let At { value, span } = endpoint;
    if let Some(why) = unusable(value.ip()) {
        let hint = "give an address that the unit alone has on this link";
        report.error(span, format!("`{}` is {why}", value.ip()), hint);
    } else if known.insert(*value, ()).is_some() {
        report.error(span, format!("`{value}` is used twice"), "");
    }
}
