//! Chains of somebody else that see what the gateway forwards, and may drop it or change it.

use std::collections::{BTreeMap, BTreeSet};
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
/// `NF_QUEUE`: the lower half of such a verdict.
const QUEUE: u32 = 3;
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

/// A chain that drops, changes or counts something, by its policy, by a rule, or by a chain that it
/// leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignChain {
    family: &'static str,
    table: String,
    name: String,
    place: Place,
    /// The interfaces whose packets it sees; of all if there are none.
    devices: Vec<String>,
    may_drop: bool,
    acts: bool,
    knows_us: bool,
}

/// What the rules of a chain do.
#[derive(Default)]
struct Deeds {
    drops: bool,
    /// They do more than to let packets pass: a packet that skips them gets something else.
    acts: bool,
    knows_us: bool,
    leads_to: BTreeSet<String>,
}

/// By table and chain.
type Chains = BTreeMap<(String, String), Deeds>;

impl ForeignChain {
    /// Whether it sees what passes this place at the interface of that name.
    pub fn is_at(&self, place: Place, device: &str) -> bool {
        let sees = self.devices.is_empty() || self.devices.iter().any(|it| it == device);
        self.place == place && sees
    }

    /// Whether it sees packets of a port that take the way through the gateway, and does not see
    /// them on the fast path: that passes no TUN device, and no chain at the interface. Not even
    /// one at egress: netfilter leaves out what a program at ingress has redirected
    /// (`nf_skip_egress`).
    pub fn is_skipped_at(&self, interface: &str, tun: &str) -> bool {
        match self.place {
            Place::Wire | Place::Ingress | Place::Egress => {
                self.is_at(self.place, interface) || self.is_at(self.place, tun)
            }
            Place::Prerouting | Place::Forward | Place::Postrouting => true,
        }
    }

    /// The name of it for an operator.
    pub fn name(&self) -> String {
        let ForeignChain {
            family,
            table,
            name,
            ..
        } = self;
        format!("the nftables chain {name} of table {family} {table}")
    }

    /// Whether a rule of it names the gateway's devices: it was made with the gateway in mind, and
    /// lets pass what it should, or is meant to drop.
    pub fn knows_us(&self) -> bool {
        self.knows_us
    }
}

impl fmt::Display for ForeignChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ForeignChain {
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

/// The chains of somebody else that drop something.
///
/// # Errors
/// If the packet filter can't be read.
pub(super) fn dropping(nftables: &mut Nftables) -> Result<Vec<ForeignChain>, NetlinkError> {
    let mut chains = find(nftables)?;
    chains.retain(|chain| chain.may_drop);
    Ok(chains)
}

/// The chains of somebody else that do more than to let packets pass.
///
/// # Errors
/// If the packet filter can't be read.
pub(in crate::os) fn acting(nftables: &mut Nftables) -> Result<Vec<ForeignChain>, NetlinkError> {
    let mut chains = find(nftables)?;
    chains.retain(|chain| chain.acts);
    Ok(chains)
}

fn find(nftables: &mut Nftables) -> Result<Vec<ForeignChain>, NetlinkError> {
    let mut found = Vec::new();
    for (number, family) in FAMILIES {
        let mut chains = Vec::new();
        let all = |_: &mut Message| {};
        nftables.list(libc::NFT_MSG_GETCHAIN, number, all, |object| {
            chains.extend(chain_of(family, object));
        })?;
        if !chains.is_empty() {
            let all = read_rules(nftables, number)?;
            for chain in &mut chains {
                let total = total(&all, &chain.table, &chain.name);
                chain.acts = chain.may_drop || total.acts;
                chain.may_drop |= total.drops;
                chain.knows_us = total.knows_us;
            }
            found.extend(chains);
        }
    }
    Ok(found)
}

/// What the rules of a chain do, and of those that it leads to.
fn total(all: &Chains, table: &str, chain: &str) -> Deeds {
    let mut total = Deeds::default();
    let mut seen = BTreeSet::new();
    let mut next = vec![chain.to_owned()];
    while let Some(name) = next.pop() {
        let deeds = all.get(&(table.to_owned(), name.clone()));
        if let Some(deeds) = deeds.filter(|_| seen.insert(name)) {
            total.drops |= deeds.drops;
            total.acts |= deeds.acts;
            total.knows_us |= deeds.knows_us;
            next.extend(deeds.leads_to.iter().cloned());
        }
    }
    total
}

/// What the rules of a family do.
fn read_rules(nftables: &mut Nftables, family: u8) -> Result<Chains, NetlinkError> {
    let mut chains = Chains::new();
    let all = |_: &mut Message| {};
    nftables.list(libc::NFT_MSG_GETRULE, family, all, |rule| {
        let table = rule.text(attribute::TABLE_NAME);
        let (Some(table), Some(chain)) = (table, rule.text(attribute::RULE_CHAIN)) else {
            return;
        };
        let key = (table.to_owned(), chain.to_owned());
        let deeds = chains.entry(key).or_default();
        let steps = rule.nested(attribute::RULE_EXPRESSIONS);
        for step in steps.each(attribute::LIST_ELEMENT) {
            deeds.drops |= drops(step);
            deeds.leads_to.extend(leads_to(step).map(str::to_owned));
        }
        deeds.acts |= acts(steps.each(attribute::LIST_ELEMENT));
        deeds.knows_us |= names_us(rule);
    })?;
    Ok(chains)
}

/// A chain of somebody else at one of the places.
fn chain_of(family: &'static str, object: Attributes<'_>) -> Option<ForeignChain> {
    const INGRESS: u32 = 0;
    const EGRESS: u32 = 1;
    let table = object.text(attribute::TABLE_NAME)?;
    // None of ours is of another family.
    if table.starts_with(PREFIX) && matches!(family, "inet" | "netdev") {
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
    Some(ForeignChain {
        family,
        table: table.to_owned(),
        name: object.text(attribute::CHAIN_NAME)?.to_owned(),
        place,
        devices,
        may_drop: object.u32(attribute::CHAIN_POLICY) == Some(DROP),
        acts: false,
        knows_us: false,
    })
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
        Some("immediate") => {
            verdict(step).and_then(|it| it.u32(attribute::VERDICT_CODE)) == Some(DROP)
        }
        _ => false,
    }
}

/// Whether a rule of these steps does more than to let packets pass: what is not known to be
/// harmless does. One that only counts does, since a packet that skips it is missing there.
fn acts<'a>(steps: impl Iterator<Item = Attributes<'a>>) -> bool {
    const COMPARE: [&str; 6] = ["cmp", "range", "bitwise", "byteorder", "match", "lookup"];
    /// They write instead where they have no destination (`NFTA_*_DREG`).
    const LOAD: [&str; 8] = [
        "meta", "ct", "payload", "exthdr", "fib", "rt", "socket", "numgen",
    ];
    const DESTINATION: u16 = 1;
    const TARGET_NAME: u16 = 1;
    const XTABLES_HARMLESS: [&str; 3] = ["ACCEPT", "RETURN", "NOTRACK"];
    let (mut counts, mut decides) = (false, false);
    for step in steps {
        let data = step.nested(attribute::EXPRESSION_DATA);
        let is_harmless = match step.text(attribute::EXPRESSION_NAME) {
            _ if drops(step) => false,
            Some(name) if COMPARE.contains(&name) => true,
            Some(name) if LOAD.contains(&name) => data.bytes(DESTINATION).is_some(),
            Some("counter") => {
                counts = true;
                true
            }
            Some("notrack") => {
                decides = true;
                true
            }
            Some("immediate") => {
                let code = verdict(step).and_then(|it| it.u32(attribute::VERDICT_CODE));
                decides |= code.is_some();
                code.is_none_or(|code| code & 0xff != QUEUE || code > i32::MAX as u32)
            }
            Some("target") => {
                decides = true;
                let target = data.text(TARGET_NAME);
                target.is_some_and(|target| XTABLES_HARMLESS.contains(&target))
            }
            _ => false,
        };
        if !is_harmless {
            return true;
        }
    }
    counts && !decides
}

/// The chain that a step jumps or goes to.
fn leads_to(step: Attributes<'_>) -> Option<&str> {
    let verdict = verdict(step)?;
    let code = verdict.u32(attribute::VERDICT_CODE)?;
    let chain = verdict.text(attribute::VERDICT_CHAIN);
    chain.filter(|_| ELSEWHERE.contains(&code))
}

fn verdict(step: Attributes<'_>) -> Option<Attributes<'_>> {
    let data = step.nested(attribute::EXPRESSION_DATA);
    let verdict = data.nested(attribute::IMMEDIATE_DATA);
    let is_verdict = step.text(attribute::EXPRESSION_NAME) == Some("immediate");
    is_verdict.then(|| verdict.nested(attribute::DATA_VERDICT))
}

fn names_us(rule: Attributes<'_>) -> bool {
    let steps = rule.bytes(attribute::RULE_EXPRESSIONS).unwrap_or_default();
    steps.windows(DEVICES.len()).any(|part| part == DEVICES)
}
