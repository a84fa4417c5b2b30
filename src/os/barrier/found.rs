//! Compares the barrier in the kernel with the one that was set.

use std::collections::{BTreeMap, BTreeSet};

use super::errors::{self, ASTRAY, ERRORS, LATE};
use super::local_in::LOCAL_IN;
use super::rules::{
    self, ARRIVALS, CHAIN, COUNT, DETOUR, HOPS, NAMES, PORTS, REPLIES, Rule, SETS, Sets,
    TO_THE_GATEWAY,
};
use super::{Condition, PRIORITY, devices_of};
use crate::os::netlink::NetlinkError;
use crate::os::nftables::{Attributes, BRIDGE, INET, Message, Nftables, attribute};

/// The content of the table, as far as it matters.
pub(super) struct Found {
    table_flags: Option<u32>,
    /// Hook and priority of the chain.
    hook: Option<(Option<u32>, Option<u32>)>,
    /// The same of the chain for what this machine sends, and of those for errors.
    replies_hook: Option<(Option<u32>, Option<u32>)>,
    errors_hook: Option<(Option<u32>, Option<u32>)>,
    astray_hook: Option<(Option<u32>, Option<u32>)>,
    /// The comments of the rules, in order.
    comments: Vec<String>,
    /// The same of the chain for packets whose hop limit ends here.
    hops: Vec<String>,
    /// The same of the chain for what this machine sends.
    replies: Vec<String>,
    /// The same of the chains for errors.
    errors: Vec<String>,
    astray: Vec<String>,
    /// The same of the chain for marked packets.
    detour: Vec<String>,
    /// The same of the chain for what reaches the machine itself.
    pub(super) local: Vec<String>,
    /// The devices of whose packets chains take note, if those are as they should be.
    pub(super) devices: BTreeSet<String>,
    /// The rules of the chains that mark.
    arrivals: BTreeMap<String, Vec<String>>,
    /// Somebody has put a chain of their own among ours.
    has_foreign_chain: bool,
    stopped: u64,
    let_pass: u64,
    led: u64,
    keys: [BTreeSet<Vec<u8>>; COUNT],
}

impl Found {
    pub(super) fn read(nftables: &mut Nftables, table: &str) -> Result<Found, NetlinkError> {
        let is_ours = |object: &Attributes<'_>| object.text(attribute::TABLE_NAME) == Some(table);
        let mut found = Found {
            table_flags: None,
            hook: None,
            replies_hook: None,
            errors_hook: None,
            astray_hook: None,
            replies: Vec::new(),
            errors: Vec::new(),
            astray: Vec::new(),
            comments: Vec::new(),
            hops: Vec::new(),
            detour: Vec::new(),
            local: Vec::new(),
            devices: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            has_foreign_chain: false,
            stopped: 0,
            let_pass: 0,
            led: 0,
            keys: Default::default(),
        };
        nftables.list(
            libc::NFT_MSG_GETTABLE,
            INET,
            |_| {},
            |object| {
                if is_ours(&object) {
                    found.table_flags = Some(object.u32(attribute::TABLE_FLAGS).unwrap_or(0));
                }
            },
        )?;
        if found.table_flags.is_none() {
            return Ok(found);
        }
        let mut marking = BTreeMap::new();
        nftables.list(
            libc::NFT_MSG_GETCHAIN,
            INET,
            |_| {},
            |object| match object.text(attribute::CHAIN_NAME) {
                Some(CHAIN) if is_ours(&object) => found.hook = Some(hook_of(object)),
                Some(REPLIES) if is_ours(&object) => found.replies_hook = Some(hook_of(object)),
                Some(ERRORS) if is_ours(&object) => found.errors_hook = Some(hook_of(object)),
                Some(ASTRAY) if is_ours(&object) => found.astray_hook = Some(hook_of(object)),
                Some(name) if is_ours(&object) && name.starts_with(ARRIVALS) => {
                    marking.insert(name.to_owned(), devices_of(object));
                }
                Some(HOPS | DETOUR | LOCAL_IN) => {}
                Some(_) if is_ours(&object) => found.has_foreign_chain = true,
                _ => {}
            },
        )?;
        found.read_rules(nftables, table, marking)?;
        for (keys, set) in found.keys.iter_mut().zip(SETS) {
            *keys = self::keys(nftables, INET, table, set)?;
        }
        Ok(found)
    }

    fn read_rules(
        &mut self,
        nftables: &mut Nftables,
        table: &str,
        marking: BTreeMap<String, Vec<String>>,
    ) -> Result<(), NetlinkError> {
        let is_ours = |object: &Attributes<'_>| object.text(attribute::TABLE_NAME) == Some(table);
        let of_table = |message: &mut Message| {
            message.text(attribute::TABLE_NAME, table);
        };
        nftables.list(libc::NFT_MSG_GETRULE, INET, of_table, |object| match object
            .text(attribute::RULE_CHAIN)
        {
            Some(CHAIN) if is_ours(&object) => {
                let comment = comment(object);
                match comment == TO_THE_GATEWAY {
                    true => self.let_pass += counted(object),
                    false => self.stopped += counted(object),
                }
                self.comments.push(comment);
            }
            Some(LOCAL_IN) if is_ours(&object) => self.local.push(comment(object)),
            Some(REPLIES) if is_ours(&object) => self.replies.push(comment(object)),
            Some(ERRORS) if is_ours(&object) => {
                self.errors.push(comment(object));
                self.led += counted(object);
            }
            Some(ASTRAY) if is_ours(&object) => self.astray.push(comment(object)),
            Some(HOPS) if is_ours(&object) => self.hops.push(comment(object)),
            Some(DETOUR) if is_ours(&object) => {
                self.detour.push(comment(object));
                self.stopped += counted(object);
            }
            Some(chain) if is_ours(&object) && chain.starts_with(ARRIVALS) => {
                let rules = self.arrivals.entry(chain.to_owned()).or_default();
                rules.push(comment(object));
            }
            _ => {}
        })?;
        let wanted = comments(&rules::arrivals_of_a_port());
        for (chain, devices) in marking {
            if self.arrivals.get(&chain) == Some(&wanted) {
                self.devices.extend(devices);
            }
        }
        Ok(())
    }

    pub(super) fn judge(self, sets: &Sets) -> Condition {
        let hook_at = |number, priority| Some((Some(number as u32), Some(priority as u32)));
        let hook = |number| hook_at(number, PRIORITY);
        let broken = |what: &str| Condition::Broken(what.to_owned());
        match self.table_flags {
            None => return broken("the table is missing"),
            Some(0) => {}
            Some(_) => return broken("the table is dormant"),
        }
        if self.has_foreign_chain {
            return broken("a chain of somebody else is in the table");
        }
        if self.hook != hook(libc::NF_INET_FORWARD) {
            return broken("the chain is missing, or at another hook");
        }
        if self.replies_hook != hook(libc::NF_INET_LOCAL_OUT)
            || self.replies != comments(&rules::replies())
        {
            return broken("the chain for what the kernel says is missing, or changed");
        }
        if self.errors_hook != hook_at(libc::NF_INET_LOCAL_OUT, LATE)
            || self.errors != comments(&errors::errors(&[0; 4]))
            || self.astray_hook != hook(libc::NF_INET_POST_ROUTING)
            || self.astray != comments(&errors::astray(&[0; 4]))
        {
            return broken("a chain for errors of the kernel is missing, or changed");
        }
        if self.comments != comments(&rules::forward()) {
            return broken("rules are missing, or others are among them");
        }
        let mut each = sets.each().into_iter().zip(&self.keys);
        if !each.all(|((set, keys), found)| !sets.knows(set.name) || keys.iter().eq(found)) {
            return broken("it is for other interfaces or addresses");
        }
        Condition::Whole {
            stopped: self.stopped,
            let_pass: self.let_pass,
            led: self.led,
            hops: self.hops == comments(&rules::hops()),
            detour: self.detour == comments(&rules::detour()),
        }
    }
}

/// Hook and priority of a chain.
fn hook_of(chain: Attributes<'_>) -> (Option<u32>, Option<u32>) {
    let hook = chain.nested(attribute::CHAIN_HOOK);
    (
        hook.u32(attribute::HOOK_NUMBER),
        hook.u32(attribute::HOOK_PRIORITY),
    )
}

/// Whether the table for bridges is as it was set.
pub(super) fn is_bridge_whole(
    nftables: &mut Nftables,
    table: &str,
    sets: &Sets,
) -> Result<bool, NetlinkError> {
    let is_ours = |object: &Attributes<'_>| object.text(attribute::TABLE_NAME) == Some(table);
    let of_table = |message: &mut Message| {
        message.text(attribute::TABLE_NAME, table);
    };
    let (mut flags, mut hooks, mut found) = (None, Vec::new(), Vec::new());
    nftables.list(
        libc::NFT_MSG_GETTABLE,
        BRIDGE,
        |_| {},
        |object| {
            if is_ours(&object) {
                flags = Some(object.u32(attribute::TABLE_FLAGS).unwrap_or(0));
            }
        },
    )?;
    nftables.list(
        libc::NFT_MSG_GETCHAIN,
        BRIDGE,
        |_| {},
        |object| {
            if is_ours(&object) {
                hooks.push(hook_of(object));
            }
        },
    )?;
    nftables.list(libc::NFT_MSG_GETRULE, BRIDGE, of_table, |object| {
        if is_ours(&object) {
            found.push(comment(object));
        }
    })?;
    let hook = (Some(libc::NF_INET_FORWARD as u32), Some(PRIORITY as u32));
    if flags != Some(0) || hooks != [hook] || found != comments(&rules::bridge()) {
        return Ok(false);
    }
    let of_ports = sets.each().into_iter();
    for (set, keys) in of_ports.filter(|(set, _)| matches!(set.name, PORTS | NAMES)) {
        if !keys
            .iter()
            .eq(&self::keys(nftables, BRIDGE, table, set.name)?)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn keys(
    nftables: &mut Nftables,
    family: u8,
    table: &str,
    set: &str,
) -> Result<BTreeSet<Vec<u8>>, NetlinkError> {
    let mut keys = BTreeSet::new();
    let of_set = |message: &mut Message| {
        message.text(attribute::TABLE_NAME, table);
        message.text(attribute::ELEMENTS_SET, set);
    };
    nftables.list(libc::NFT_MSG_GETSETELEM, family, of_set, |object| {
        let elements = object.nested(attribute::ELEMENTS);
        let elements = elements.each(attribute::LIST_ELEMENT);
        let key = |element: Attributes<'_>| {
            let key = element.nested(attribute::ELEMENT_KEY);
            Some(key.bytes(attribute::DATA_VALUE)?.to_vec())
        };
        keys.extend(elements.filter_map(key));
    })?;
    Ok(keys)
}

fn comments(rules: &[Rule<'_>]) -> Vec<String> {
    let comments = rules.iter().map(|(_, comment)| (*comment).to_owned());
    comments.collect()
}

/// The comment of a rule: type, length, text with its zero.
pub(super) fn comment(rule: Attributes<'_>) -> String {
    let stored = rule.bytes(attribute::RULE_USER_DATA).unwrap_or_default();
    let text = stored.get(2..).unwrap_or_default();
    String::from_utf8_lossy(text)
        .trim_end_matches('\0')
        .to_owned()
}

/// The packets that a rule has counted.
pub(super) fn counted(rule: Attributes<'_>) -> u64 {
    let expressions = rule.nested(attribute::RULE_EXPRESSIONS);
    let counters = expressions
        .each(attribute::LIST_ELEMENT)
        .filter(|expression| expression.text(attribute::EXPRESSION_NAME) == Some("counter"));
    counters
        .filter_map(|counter| {
            let data = counter.nested(attribute::EXPRESSION_DATA);
            data.u64(attribute::COUNTER_PACKETS)
        })
        .sum()
}
