//! Chains of somebody else that may drop what the gateway forwards.

use std::fmt;

use crate::os::netlink::NetlinkError;
use crate::os::nftables::{Attributes, INET, Message, NETDEV, Nftables, attribute};

use super::{NF_INET_INGRESS, PREFIX, devices_of};

/// The families whose chains see what is forwarded, as nft(8) calls them.
const FAMILIES: [(u8, &str); 4] = [
    (INET, "inet"),
    (libc::NFPROTO_IPV4 as u8, "ip"),
    (libc::NFPROTO_IPV6 as u8, "ip6"),
    (NETDEV, "netdev"),
];

/// A rule that names the gateway's devices was made for it, whatever it says.
const DEVICES: &[u8] = b"tgw-";

/// `NF_DROP`: the verdict, and the policy.
const DROP: u32 = 0;
/// `NFT_JUMP` and `NFT_GOTO`.
const ELSEWHERE: [u32; 2] = [-3_i32 as u32, -4_i32 as u32];

/// Where a chain sees packets, in the order of their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// As they come in by an interface, where only filters of tc see them.
    Wire,
    /// The same, after these.
    Ingress,
    /// Before they are routed.
    Prerouting,
    /// As they are forwarded.
    Forward,
    /// After that.
    Postrouting,
    /// As they leave by an interface.
    Egress,
}

/// A chain that drops or rejects something, by its policy or by a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppingChain {
    family: &'static str,
    table: String,
    name: String,
    place: Place,
    /// The interfaces whose packets it sees; of all if there are none.
    devices: Vec<String>,
    may_drop: bool,
    leads_on: bool,
}

/// What is known of a table of somebody else.
#[derive(Default)]
struct Table {
    /// A chain that others lead to drops something.
    may_drop: bool,
    knows_us: bool,
}

impl DroppingChain {
    /// Whether it sees what passes this place at the interface of that name.
    pub fn is_at(&self, place: Place, device: &str) -> bool {
        let sees = self.devices.is_empty() || self.devices.iter().any(|it| it == device);
        self.place == place && sees
    }
}

impl fmt::Display for DroppingChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DroppingChain {
            family,
            table,
            name,
            ..
        } = self;
        let chain = format!("{family} {table} {name}");
        write!(
            f,
            "the nftables chain {name} of table {family} {table} drops what "
        )?;
        match self.place {
            Place::Forward | Place::Postrouting => write!(
                f,
                "the gateway forwards: nft 'insert rule {chain} iifname \"tgw-*\" accept' and nft 'insert rule {chain} \
                 oifname \"tgw-*\" accept', or the same in the firewall that made the chain"
            ),
            Place::Prerouting => write!(
                f,
                "comes for the gateway, or from it: nft list chain {chain} shows its rules; let it accept what the ports \
                 bring, and nft 'insert rule {chain} iifname \"tgw-*\" accept'"
            ),
            Place::Wire | Place::Ingress | Place::Egress => write!(
                f,
                "passes {}: nft list chain {chain} shows its rules; nft delete chain {chain} removes it",
                self.devices.join(", ")
            ),
        }
    }
}

/// The chains of somebody else that drop something, in tables without a rule that names our
/// devices.
///
/// # Errors
/// If the packet filter can't be read.
pub(super) fn find(nftables: &mut Nftables) -> Result<Vec<DroppingChain>, NetlinkError> {
    let mut found = Vec::new();
    for (number, family) in FAMILIES {
        let mut chains = Vec::new();
        let all = |_: &mut Message| {};
        nftables.list(libc::NFT_MSG_GETCHAIN, number, all, |object| {
            chains.extend(chain_of(family, object));
        })?;
        if !chains.is_empty() {
            let tables = read_rules(nftables, number, &mut chains)?;
            chains.retain(|chain| {
                let table = tables.iter().find(|(name, _)| *name == chain.table);
                let (may_drop, knows_us) =
                    table.map_or((false, false), |(_, it)| (it.may_drop, it.knows_us));
                (chain.may_drop || chain.leads_on && may_drop) && !knows_us
            });
            found.extend(chains);
        }
    }
    Ok(found)
}

/// Notes what the rules of the chains do, and of the tables that they are in.
fn read_rules(
    nftables: &mut Nftables,
    family: u8,
    chains: &mut [DroppingChain],
) -> Result<Vec<(String, Table)>, NetlinkError> {
    let mut tables: Vec<(String, Table)> = Vec::new();
    let all = |_: &mut Message| {};
    nftables.list(libc::NFT_MSG_GETRULE, family, all, |rule| {
        let Some(name) = rule.text(attribute::TABLE_NAME) else {
            return;
        };
        if tables.last().is_none_or(|(last, _)| last != name) {
            // Rules are listed table by table.
            tables.push((name.to_owned(), Table::default()));
        }
        let Some((_, table)) = tables.last_mut() else {
            return;
        };
        table.knows_us |= names_us(rule);
        let is_of = |chain: &&mut DroppingChain| {
            chain.table == name && rule.text(attribute::RULE_CHAIN) == Some(&chain.name)
        };
        match chains.iter_mut().find(is_of) {
            Some(chain) => {
                chain.may_drop |= has_step(rule, drops);
                chain.leads_on |= has_step(rule, leads_on);
            }
            None => table.may_drop |= has_step(rule, drops),
        }
    })?;
    Ok(tables)
}

/// A chain of somebody else at one of the places.
fn chain_of(family: &'static str, object: Attributes<'_>) -> Option<DroppingChain> {
    const INGRESS: u32 = 0;
    const EGRESS: u32 = 1;
    let table = object.text(attribute::TABLE_NAME)?;
    if table.starts_with(PREFIX) {
        return None;
    }
    let hook = object.nested(attribute::CHAIN_HOOK);
    let number = hook.u32(attribute::HOOK_NUMBER)?;
    let place = match (family, number) {
        ("netdev", INGRESS) | ("inet", NF_INET_INGRESS) => Place::Ingress,
        ("netdev", EGRESS) => Place::Egress,
        ("netdev", _) => return None,
        (_, number) if number == libc::NF_INET_PRE_ROUTING as u32 => Place::Prerouting,
        (_, number) if number == libc::NF_INET_FORWARD as u32 => Place::Forward,
        (_, number) if number == libc::NF_INET_POST_ROUTING as u32 => Place::Postrouting,
        _ => return None,
    };
    let mut devices = devices_of(object);
    devices.sort_unstable();
    devices.dedup();
    Some(DroppingChain {
        family,
        table: table.to_owned(),
        name: object.text(attribute::CHAIN_NAME)?.to_owned(),
        place,
        devices,
        may_drop: object.u32(attribute::CHAIN_POLICY) == Some(DROP),
        leads_on: false,
    })
}

fn has_step(rule: Attributes<'_>, is_it: fn(Attributes<'_>) -> bool) -> bool {
    let steps = rule.nested(attribute::RULE_EXPRESSIONS);
    steps.each(attribute::LIST_ELEMENT).any(is_it)
}

/// Whether a step drops or rejects; or may, as a map of verdicts.
fn drops(step: Attributes<'_>) -> bool {
    /// `NFTA_LOOKUP_DREG` and `NFTA_TARGET_NAME`.
    const LOOKUP_RESULT: u16 = 3;
    const TARGET_NAME: u16 = 1;
    let data = step.nested(attribute::EXPRESSION_DATA);
    match step.text(attribute::EXPRESSION_NAME) {
        Some("reject") => true,
        Some("lookup") => data.u32(LOOKUP_RESULT) == Some(libc::NFT_REG_VERDICT as u32),
        Some("target") => data.text(TARGET_NAME) == Some("REJECT"),
        Some("immediate") => verdict(step) == Some(DROP),
        _ => false,
    }
}

fn leads_on(step: Attributes<'_>) -> bool {
    verdict(step).is_some_and(|code| ELSEWHERE.contains(&code))
}

fn verdict(step: Attributes<'_>) -> Option<u32> {
    let data = step.nested(attribute::EXPRESSION_DATA);
    let verdict = data.nested(attribute::IMMEDIATE_DATA);
    let verdict = verdict.nested(attribute::DATA_VERDICT);
    let is_verdict = step.text(attribute::EXPRESSION_NAME) == Some("immediate");
    verdict.u32(attribute::VERDICT_CODE).filter(|_| is_verdict)
}

fn names_us(rule: Attributes<'_>) -> bool {
    let steps = rule.bytes(attribute::RULE_EXPRESSIONS).unwrap_or_default();
    steps.windows(DEVICES.len()).any(|part| part == DEVICES)
}
