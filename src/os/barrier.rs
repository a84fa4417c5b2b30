//! The barrier: rules in the kernel's packet filter that let packets pass between the ports only
//! through the gateway, whatever happens to routes and policy rules.
//!
//! [`super::steering`] routes packets to the gateway. Anybody with ip(8) can undo that, and
//! renaming an interface detaches it; then the kernel would forward past the gateway. As a second
//! protection there is an nf_tables table, `tandemgw-NODE`, with a chain at the forward hook:
//!
//! ```text
//! a port's interface → its own TUN device     passes
//! a TUN device       → a port's interface     passes
//! all else in from, or out to, one of these   is dropped, and counted
//! ```
//!
//! Interfaces are matched by number, which a rename does not change, *and* by name, which a
//! recreated interface keeps. A drop is final: no chain of somebody else can overrule it. No
//! connection is tracked for it. What the gateway forwards costs two or three lookups of four to
//! eight bytes on each of its two passes; see ARCHITECTURE.md.
//!
//! A second chain, at the prerouting hook, drops packets from the ports whose hop limit ends here, so that
//! the kernel does not answer them with an address of its own: the gateway has seen them by then
//! ([`super::packet_socket`]) and answers with the virtual one. What is for the machine itself stays.
//!
//! A second table, of the family `bridge`, drops what a bridge would forward from one port to another,
//! if both are put into it.
//!
//! The tables outlive the process, are replaced as a whole by the next start, and go with a clean end.

mod watch;

use std::collections::BTreeSet;

use super::netlink::NetlinkError;
use super::nftables::{Attributes, BRIDGE, Expression, Hook, INET, Nftables, Set, attribute};
use tandemgw_core::in_quotes::InQuotes;

pub use watch::BarrierWatch;

/// Before what other programs do there: the sooner a packet is dropped, the less it costs.
const PRIORITY: i32 = -350;

const CHAIN: &str = "forward";

/// The chain for packets whose hop limit ends here.
const HOPS: &str = "hops";

/// What the names of all our tables begin with.
const PREFIX: &str = "tandemgw-";

/// `IFNAMSIZ`: how the kernel compares names.
const NAME_LENGTH: usize = libc::IFNAMSIZ;

/// Data types of nft(8), for those who list the table.
const TYPE_INTERFACE: u32 = 20;
const TYPE_NAME: u32 = 41;
const TYPE_PAIR: u32 = (TYPE_INTERFACE << 6) | TYPE_INTERFACE;

/// A port as the barrier knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// The name of its interface.
    pub interface: String,
    /// The number of its interface, if there is one.
    pub index: Option<u32>,
    /// The name of its TUN device.
    pub tun_name: String,
    /// The number of its TUN device.
    pub tun: u32,
}

/// What is found of the barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// All of it is in place; how many packets it has stopped since it was set.
    Whole {
        /// Packets that would have bypassed the gateway.
        stopped: u64,
        /// Whether the kernel is kept from answering packets whose hop limit ends here.
        hops: bool,
    },
    /// It is missing, or changed: what is wrong with it.
    Broken(String),
}

/// The barrier of one gateway.
///
/// Legal calls: [`new`](Self::new), then [`set`](Self::set) whenever a number of an interface changes,
/// then [`remove`](Self::remove). Dropping it leaves the tables in place.
pub struct Barrier {
    /// None until it is needed: the kernel may have none.
    nftables: Option<Nftables>,
    table: String,
    posts: Vec<Post>,
    /// Whether the kernel has taken the chain for hop limits.
    has_hops: bool,
}

impl Barrier {
    /// A barrier that is not set yet, for the node of that name.
    pub fn new(node: &str) -> Barrier {
        Barrier {
            nftables: None,
            table: table_name(node),
            posts: Vec::new(),
            has_hops: false,
        }
    }

    /// Sets the barrier for these ports, in place of what was there, in one step.
    ///
    /// # Errors
    /// What the kernel refuses, such as all of it if it has no nf_tables. Nothing is changed then.
    pub fn set(&mut self, posts: Vec<Post>) -> Result<(), NetlinkError> {
        self.posts = posts;
        self.remove_stale()?;
        self.restore()
    }

    /// The ports that it was set for.
    pub fn posts(&self) -> &[Post] {
        &self.posts
    }

    /// Sets it once more as it was, after somebody has removed or changed it.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn restore(&mut self) -> Result<(), NetlinkError> {
        self.replace_table(INET, rules())?;
        let hops = self.add_hops();
        self.has_hops = hops.is_ok();
        if let Err(error) = hops {
            log::warn!(
                "hop limits left to the kernel error={} \
                 effect=\"traceroute shows an address of this unit beside the virtual one\"",
                InQuotes(&error)
            );
        }
        if let Err(error) = self.replace_table(BRIDGE, bridge_rules()) {
            log::debug!(
                "barrier of bridges not set error={} effect=\"two ports in one bridge are joined\"",
                InQuotes(&error)
            );
        }
        Ok(())
    }

    /// Whether all of it is in place.
    ///
    /// # Errors
    /// If the packet filter can't be read.
    pub fn examine(&mut self) -> Result<Condition, NetlinkError> {
        let table = self.table.clone();
        let found = Found::read(self.nftables()?, &table)?;
        Ok(match found.judge(&Sets::of(&self.posts)) {
            Condition::Whole { hops: false, .. } if self.has_hops => {
                Condition::Broken("the chain for hop limits is missing, or changed".to_owned())
            }
            condition => condition,
        })
    }

    /// Removes it. Call it when forwarding is off, or as it was before the gateway.
    ///
    /// # Errors
    /// If the kernel refuses; it is not an error if it is gone already.
    pub fn remove(&mut self) -> Result<(), NetlinkError> {
        let inet = self.remove_table(INET, &self.table.clone());
        // A kernel without bridges has no such family.
        let _ = self.remove_table(BRIDGE, &self.table.clone());
        inet
    }

    /// Removes the tables that an earlier process with another node name has left for our ports.
    fn remove_stale(&mut self) -> Result<(), NetlinkError> {
        let mut others = Vec::new();
        let nftables = self.nftables()?;
        nftables.list(
            libc::NFT_MSG_GETTABLE,
            INET,
            |_| {},
            |table| others.extend(table.text(attribute::TABLE_NAME).map(str::to_owned)),
        )?;
        others.retain(|name| name.starts_with(PREFIX) && *name != self.table);
        let ours: BTreeSet<Vec<u8>> = names(&self.posts).into_iter().collect();
        for table in others {
            let keys = keys(self.nftables()?, &table, NAMES)?;
            if !ours.is_disjoint(&keys) {
                log::info!("barrier removed table={table} why=\"an earlier process left it\"");
                self.remove_table(INET, &table)?;
                let _ = self.remove_table(BRIDGE, &table);
            }
        }
        Ok(())
    }

    fn remove_table(&mut self, family: u8, table: &str) -> Result<(), NetlinkError> {
        let nftables = self.nftables()?;
        let mut batch = nftables.batch(family, table);
        batch.remove_table();
        match nftables.commit(batch) {
            Err(error) if error.is(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    fn replace_table(&mut self, family: u8, rules: Vec<Rule>) -> Result<(), NetlinkError> {
        let (table, sets) = (self.table.clone(), Sets::of(&self.posts));
        let nftables = self.nftables()?;
        let mut batch = nftables.batch(family, &table);
        // It must exist to be removed without an error.
        batch.add_table();
        batch.remove_table();
        batch.add_table();
        let hook = Hook {
            number: libc::NF_INET_FORWARD as u32,
            priority: PRIORITY,
        };
        batch.add_chain(CHAIN, &hook);
        for (set, _) in &sets.each() {
            batch.add_set(set);
        }
        for (steps, comment) in rules {
            batch.add_rule(CHAIN, &steps, comment);
        }
        nftables.commit(batch)
    }

    /// Adds the chain for packets whose hop limit ends here. Apart from the others: a kernel may lack what
    /// its rules need.
    fn add_hops(&mut self) -> Result<(), NetlinkError> {
        let table = self.table.clone();
        let nftables = self.nftables()?;
        let mut batch = nftables.batch(INET, &table);
        let hook = Hook {
            number: libc::NF_INET_PRE_ROUTING as u32,
            priority: PRIORITY,
        };
        batch.add_chain(HOPS, &hook);
        for (steps, comment) in hop_rules() {
            batch.add_rule(HOPS, &steps, comment);
        }
        nftables.commit(batch)
    }

    fn nftables(&mut self) -> Result<&mut Nftables, NetlinkError> {
        match &mut self.nftables {
            Some(nftables) => Ok(nftables),
            none => Ok(none.insert(Nftables::open().map_err(NetlinkError::on_open)?)),
        }
    }
}

/// The condition of the barrier of a node, as somebody else finds it; none if it has none.
///
/// # Errors
/// If the packet filter can't be read.
pub fn examine(node: &str, posts: &[Post]) -> Result<Condition, NetlinkError> {
    let mut barrier = Barrier::new(node);
    barrier.posts = posts.to_vec();
    barrier.examine()
}

/// The name of the tables of a node.
pub fn table_name(node: &str) -> String {
    format!("{PREFIX}{node}")
}

const PAIRS: &str = "port-and-its-tun";
const PORTS: &str = "ports";
const TUNS: &str = "tuns";
const NAMES: &str = "names";

/// The keys of the sets.
struct Sets {
    /// Number of a port's interface, number of its TUN device.
    pairs: Vec<Vec<u8>>,
    ports: Vec<Vec<u8>>,
    tuns: Vec<Vec<u8>>,
    names: Vec<Vec<u8>>,
}

impl Sets {
    fn of(posts: &[Post]) -> Sets {
        let number = |number: u32| number.to_ne_bytes().to_vec();
        let present = posts
            .iter()
            .filter_map(|post| Some((post.index?, post.tun)));
        let pair = |(port, tun): (u32, u32)| [number(port), number(tun)].concat();
        let sorted = |keys: BTreeSet<Vec<u8>>| keys.into_iter().collect();
        Sets {
            pairs: sorted(present.clone().map(pair).collect()),
            ports: sorted(present.map(|(port, _)| number(port)).collect()),
            tuns: sorted(posts.iter().map(|post| number(post.tun)).collect()),
            names: names(posts),
        }
    }

    fn each(&self) -> [(Set<'_>, &[Vec<u8>]); 4] {
        let set = |name, data_type, key_length, keys| {
            let set = Set {
                name,
                data_type,
                key_length,
                keys,
            };
            (set, keys)
        };
        [
            set(PAIRS, TYPE_PAIR, 8, &self.pairs[..]),
            set(PORTS, TYPE_INTERFACE, 4, &self.ports),
            set(TUNS, TYPE_INTERFACE, 4, &self.tuns),
            set(NAMES, TYPE_NAME, NAME_LENGTH, &self.names),
        ]
    }
}

/// The names of all interfaces and TUN devices, as the kernel compares them.
fn names(posts: &[Post]) -> Vec<Vec<u8>> {
    let all = posts
        .iter()
        .flat_map(|post| [&post.interface, &post.tun_name]);
    let padded = |name: &String| {
        let mut bytes = name.clone().into_bytes();
        bytes.resize(NAME_LENGTH, 0);
        bytes
    };
    let keys: BTreeSet<Vec<u8>> = all.map(padded).collect();
    keys.into_iter().collect()
}

type Rule = (Vec<Expression<'static>>, &'static str);

/// The first two are for what the gateway forwards, the rest for what must not pass.
fn rules() -> Vec<Rule> {
    use Expression::{Accept, Count, Drop, IsIn};
    let drop_if = |key, set| vec![load(key), IsIn(set), Count, Drop];
    let second = Expression::Load {
        key: libc::NFT_META_OIF,
        register: Expression::SECOND,
    };
    let (iif, oif) = (libc::NFT_META_IIF, libc::NFT_META_OIF);
    vec![
        (
            vec![load(iif), second, IsIn(PAIRS), Accept],
            "to the gateway",
        ),
        (
            vec![load(iif), IsIn(TUNS), load(oif), IsIn(PORTS), Accept],
            "from the gateway",
        ),
        (drop_if(iif, PORTS), "from a port past the gateway"),
        (drop_if(oif, PORTS), "to a port past the gateway"),
        (drop_if(iif, TUNS), "from the gateway to no port"),
        (drop_if(oif, TUNS), "to the gateway from no port of it"),
        (
            drop_if(libc::NFT_META_IIFNAME, NAMES),
            "from an interface that has just been made",
        ),
        (
            drop_if(libc::NFT_META_OIFNAME, NAMES),
            "to an interface that has just been made",
        ),
    ]
}

/// What comes in by a port, is not for this machine, and has no hop left.
fn hop_rules() -> Vec<Rule> {
    use Expression::{Drop, Is, IsAtMost, IsIn, LoadByte, LoadDestinationType};
    const UNICAST: [u8; 4] = (libc::RTN_UNICAST as u32).to_ne_bytes();
    let rule = |family: &'static [u8], hop_limit| {
        vec![
            load(libc::NFT_META_NFPROTO),
            Is(family),
            LoadByte(hop_limit),
            IsAtMost(&[1]),
            load(libc::NFT_META_IIF),
            IsIn(PORTS),
            LoadDestinationType,
            Is(const { &UNICAST }),
            Drop,
        ]
    };
    vec![
        (
            rule(&[libc::NFPROTO_IPV4 as u8], 8),
            "the gateway answers IPv4",
        ),
        (
            rule(&[libc::NFPROTO_IPV6 as u8], 7),
            "the gateway answers IPv6",
        ),
    ]
}

/// What goes from one port to another within a bridge.
fn bridge_rules() -> Vec<Rule> {
    use Expression::{Count, Drop, IsIn};
    let between = |iif, oif, set| vec![load(iif), IsIn(set), load(oif), IsIn(set), Count, Drop];
    vec![
        (
            between(libc::NFT_META_IIF, libc::NFT_META_OIF, PORTS),
            "from port to port past the gateway",
        ),
        (
            between(libc::NFT_META_IIFNAME, libc::NFT_META_OIFNAME, NAMES),
            "from port to port past the gateway, just made",
        ),
    ]
}

fn load(key: libc::c_int) -> Expression<'static> {
    Expression::Load {
        key,
        register: Expression::FIRST,
    }
}

/// What is in the table, as far as it matters.
struct Found {
    table_flags: Option<u32>,
    /// Hook and priority of the chain.
    hook: Option<(Option<u32>, Option<u32>)>,
    /// The comments of the rules, in order.
    comments: Vec<String>,
    /// The same of the chain for packets whose hop limit ends here.
    hops: Vec<String>,
    stopped: u64,
    keys: [BTreeSet<Vec<u8>>; 4],
}

impl Found {
    fn read(nftables: &mut Nftables, table: &str) -> Result<Found, NetlinkError> {
        let is_ours = |object: &Attributes<'_>| object.text(attribute::TABLE_NAME) == Some(table);
        let mut found = Found {
            table_flags: None,
            hook: None,
            comments: Vec::new(),
            hops: Vec::new(),
            stopped: 0,
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
        nftables.list(
            libc::NFT_MSG_GETCHAIN,
            INET,
            |_| {},
            |object| {
                if is_ours(&object) && object.text(attribute::CHAIN_NAME) == Some(CHAIN) {
                    let hook = object.nested(attribute::CHAIN_HOOK);
                    let number = hook.u32(attribute::HOOK_NUMBER);
                    found.hook = Some((number, hook.u32(attribute::HOOK_PRIORITY)));
                }
            },
        )?;
        let of_table = |message: &mut super::nftables::Message| {
            message.text(attribute::TABLE_NAME, table);
        };
        nftables.list(libc::NFT_MSG_GETRULE, INET, of_table, |object| match object
            .text(attribute::RULE_CHAIN)
        {
            Some(CHAIN) if is_ours(&object) => {
                found.comments.push(comment(object));
                found.stopped += counted(object);
            }
            Some(HOPS) if is_ours(&object) => found.hops.push(comment(object)),
            _ => {}
        })?;
        for (keys, set) in found.keys.iter_mut().zip([PAIRS, PORTS, TUNS, NAMES]) {
            *keys = self::keys(nftables, table, set)?;
        }
        Ok(found)
    }

    fn judge(self, sets: &Sets) -> Condition {
        let hook = (Some(libc::NF_INET_FORWARD as u32), Some(PRIORITY as u32));
        let wanted: Vec<&str> = rules().iter().map(|(_, comment)| *comment).collect();
        let broken = |what: &str| Condition::Broken(what.to_owned());
        match self.table_flags {
            None => return broken("the table is missing"),
            Some(0) => {}
            Some(_) => return broken("the table is dormant"),
        }
        if self.hook != Some(hook) {
            return broken("the chain is missing, or at another hook");
        }
        if self.comments != wanted {
            return broken("rules are missing, or others are among them");
        }
        let mut sets = sets.each().into_iter().zip(&self.keys);
        if !sets.all(|((_, keys), found)| keys.iter().eq(found)) {
            return broken("it is for other interfaces");
        }
        let hops: Vec<&str> = hop_rules().iter().map(|(_, comment)| *comment).collect();
        Condition::Whole {
            stopped: self.stopped,
            hops: self.hops == hops,
        }
    }
}

fn keys(
    nftables: &mut Nftables,
    table: &str,
    set: &str,
) -> Result<BTreeSet<Vec<u8>>, NetlinkError> {
    let mut keys = BTreeSet::new();
    let of_set = |message: &mut super::nftables::Message| {
        message.text(attribute::TABLE_NAME, table);
        message.text(attribute::ELEMENTS_SET, set);
    };
    nftables.list(libc::NFT_MSG_GETSETELEM, INET, of_set, |object| {
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

/// The comment of a rule: type, length, text with its zero.
fn comment(rule: Attributes<'_>) -> String {
    let stored = rule.bytes(attribute::RULE_USER_DATA).unwrap_or_default();
    let text = stored.get(2..).unwrap_or_default();
    String::from_utf8_lossy(text)
        .trim_end_matches('\0')
        .to_owned()
}

/// The packets that a rule has counted.
fn counted(rule: Attributes<'_>) -> u64 {
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

#[cfg(test)]
mod tests;
