//! Chains of somebody else that may drop what the gateway forwards.

use std::fmt;

use crate::os::netlink::NetlinkError;
use crate::os::nftables::{Attributes, INET, Message, Nftables, attribute};

use super::PREFIX;

/// The families whose chains see what is forwarded, as nft(8) calls them.
const FAMILIES: [(u8, &str); 3] = [
    (INET, "inet"),
    (libc::NFPROTO_IPV4 as u8, "ip"),
    (libc::NFPROTO_IPV6 as u8, "ip6"),
];

/// A rule that names the gateway's devices was made for it, whatever it says.
const DEVICES: &[u8] = b"tgw-";

/// `NF_DROP`: the verdict, and the policy.
const DROP: u32 = 0;

/// A chain at the forward hook that drops or rejects something, by its policy or by a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppingChain {
    family: &'static str,
    table: String,
    name: String,
    by_policy: bool,
    by_rule: bool,
    knows_us: bool,
}

impl fmt::Display for DroppingChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DroppingChain {
            family,
            table,
            name,
            ..
        } = self;
        write!(
            f,
            "the nftables chain {name} of table {family} {table} drops what the gateway forwards: nft 'insert rule \
             {family} {table} {name} iifname \"tgw-*\" accept' and nft 'insert rule {family} {table} {name} oifname \
             \"tgw-*\" accept', or the same in the firewall that made the chain"
        )
    }
}

/// The first chain of somebody else that drops what is forwarded, and has no rule that names our
/// devices.
///
/// # Errors
/// If the packet filter can't be read.
pub(super) fn find(nftables: &mut Nftables) -> Result<Option<DroppingChain>, NetlinkError> {
    let mut found = Vec::new();
    for (number, family) in FAMILIES {
        let first = found.len();
        let all = |_: &mut Message| {};
        nftables.list(libc::NFT_MSG_GETCHAIN, number, all, |object| {
            found.extend(chain_of(family, object));
        })?;
        if found.len() > first {
            nftables.list(libc::NFT_MSG_GETRULE, number, all, |rule| {
                let is_of = |chain: &&mut DroppingChain| {
                    rule.text(attribute::TABLE_NAME) == Some(&chain.table)
                        && rule.text(attribute::RULE_CHAIN) == Some(&chain.name)
                };
                if let Some(chain) = found[first..].iter_mut().find(is_of) {
                    chain.by_rule |= drops(rule);
                    chain.knows_us |= names_us(rule);
                }
            })?;
        }
    }
    Ok(found
        .into_iter()
        .find(|chain| (chain.by_policy || chain.by_rule) && !chain.knows_us))
}

/// A chain of somebody else at the forward hook.
fn chain_of(family: &'static str, object: Attributes<'_>) -> Option<DroppingChain> {
    let hook = object.nested(attribute::CHAIN_HOOK);
    let table = object.text(attribute::TABLE_NAME)?;
    let is_there = hook.u32(attribute::HOOK_NUMBER) == Some(libc::NF_INET_FORWARD as u32);
    (is_there && !table.starts_with(PREFIX)).then_some(DroppingChain {
        family,
        table: table.to_owned(),
        name: object.text(attribute::CHAIN_NAME)?.to_owned(),
        by_policy: object.u32(attribute::CHAIN_POLICY) == Some(DROP),
        by_rule: false,
        knows_us: false,
    })
}

/// Whether a rule has a step that drops or rejects.
fn drops(rule: Attributes<'_>) -> bool {
    let steps = rule.nested(attribute::RULE_EXPRESSIONS);
    let mut steps = steps.each(attribute::LIST_ELEMENT);
    steps.any(|step| match step.text(attribute::EXPRESSION_NAME) {
        Some("reject") => true,
        Some("immediate") => {
            let data = step.nested(attribute::EXPRESSION_DATA);
            let verdict = data.nested(attribute::IMMEDIATE_DATA);
            let verdict = verdict.nested(attribute::DATA_VERDICT);
            verdict.u32(attribute::VERDICT_CODE) == Some(DROP)
        }
        _ => false,
    })
}

fn names_us(rule: Attributes<'_>) -> bool {
    let steps = rule.bytes(attribute::RULE_EXPRESSIONS).unwrap_or_default();
    steps.windows(DEVICES.len()).any(|part| part == DEVICES)
}
