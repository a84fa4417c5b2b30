//! The barrier: rules in the kernel's packet filter that let packets pass between the ports only
//! through the gateway, whatever happens to routes and policy rules.
//!
//! [`super::steering`] routes packets to the gateway. Anybody with ip(8) can undo that, and
//! renaming an interface detaches it; then the kernel would forward past the gateway. As a second
//! protection there is an nf_tables table, `tandemgw-NODE`, with a chain at the forward hook:
//!
//! ```text
//! a port's interface → its own TUN device     passes
//! a TUN device       → its own port's         passes
//! all else in from, or out to, one of these   is dropped, and counted
//! ```
//!
//! The second line makes the kernel agree with the gateway: a packet is written to the TUN device
//! of the port that its policy and translation are for, and can leave by that port or not at all,
//! whatever route the kernel finds for it.
//!
//! Interfaces are matched by number, which a rename does not change, *and* by name, which a
//! recreated interface keeps. A drop is final: no chain of somebody else can overrule it. No
//! connection is tracked for it. Packets for the machine itself still reach it.
//!
//! A second chain, at the prerouting hook, drops packets from the ports whose hop limit ends here,
//! so that the kernel does not answer them with an address of its own: the gateway has seen them by
//! then ([`super::packet_socket`]) and answers with the virtual one. What is for the machine itself
//! stays.
//!
//! A third chain, at the output hook, drops what the kernel would say to hosts by itself about
//! packets that are the gateway's: that it has no route, that a redirect is better, that no
//! connection exists at a virtual address that somebody has given it ([`rules::replies`]). What
//! hosts need to know, the MTU of a route for instance, goes to the gateway ([`errors`]).
//!
//! A device above a port (a bridge, a bond, a macvlan) takes its packets, which then come in by
//! that device: nothing tells any more that they are of a port. So a chain at the ingress hook of
//! each port marks what comes in, and one at the prerouting hook drops what has that mark and comes
//! by another device, except what is for the machine itself, and takes the mark off everything
//! else: nobody else sees it.
//!
//! A chain at the input hook has the policies of `[[local-in]]`, if there are any (`local_in.rs`).
//!
//! A second table, of the family `bridge`, drops what a bridge would forward from one port to
//! another, if both are put into it.
//!
//! The tables outlive the process, are replaced as a whole by the next start, and go with a clean
//! end.

mod errors;
mod found;
mod local_in;
mod measure;
mod others;
mod rules;
mod watch;
mod wire;

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::netlink::{NetlinkError, interface_name};
use super::nftables::{Attributes, BRIDGE, Batch, Hook, INET, Nftables, attribute};
use errors::{ASTRAY, ERRORS, LATE};
use found::Found;
use local_in::{LOCAL_IN, LocalPort};
use rules::{CHAIN, DETOUR, HOPS, NAMES, REPLIES, Rule, Sets, arrivals};
use tandemgw_core::config::Config;
use tandemgw_core::in_quotes::InQuotes;

pub use errors::{error_mark, first_table_of, is_error_mark};
pub use measure::{Measurement, Passed};
pub(super) use others::acting as acting_chains;
pub use others::{ForeignChain, Place};
pub use watch::BarrierWatch;

/// Before what other programs do there: the sooner a packet is dropped, the less it costs.
const PRIORITY: i32 = -350;

/// `NF_INET_INGRESS` (linux/netfilter.h).
const NF_INET_INGRESS: u32 = 5;

/// Devices of one chain; the kernel takes less than 256 (`NFT_NETDEVICE_MAX`).
const DEVICES_PER_CHAIN: usize = 128;

/// Prefix of the names of all our tables.
const PREFIX: &str = "tandemgw-";

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
    /// The addresses that the gateway translates to, or answers for, at this port.
    pub addresses: Vec<IpAddr>,
}

/// The condition of the barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// All of it is in place; how many packets it has stopped since it was set.
    Whole {
        /// Packets that would have bypassed the gateway.
        stopped: u64,
        /// Packets that it has let pass to the gateway.
        let_pass: u64,
        /// Errors of the kernel that it has led there.
        led: u64,
        /// Whether the kernel is kept from answering packets whose hop limit ends here.
        hops: bool,
        /// Whether packets that a device above a port takes are stopped too.
        detour: bool,
    },
    /// It is missing, or changed: what is wrong with it.
    Broken(String),
}

/// The barrier of one gateway.
///
/// Legal calls: [`new`](Self::new), then [`set`](Self::set) whenever a number of an interface
/// changes, then [`remove`](Self::remove). Dropping it leaves the tables in place.
pub struct Barrier {
    /// None until it is needed: the kernel may have none.
    nftables: Option<Nftables>,
    table: String,
    posts: Vec<Post>,
    /// The addresses of this machine: errors about packets to them are its own matter.
    own: BTreeSet<IpAddr>,
    /// What errors of the kernel are marked with.
    error_mark: u32,
    /// The policies for packets to the machine itself, by port.
    local: Vec<LocalPort>,
    /// Whether the kernel has taken the chain for hop limits.
    has_hops: bool,
    /// Whether it has taken the chains for packets that a device above a port takes.
    has_detour: bool,
    /// Whether it has taken the table for bridges.
    has_bridge: bool,
}

impl Barrier {
    /// A barrier that is not set yet, for the node of that name.
    pub fn new(node: &str) -> Barrier {
        Barrier {
            nftables: None,
            table: table_name(node),
            posts: Vec::new(),
            own: BTreeSet::new(),
            error_mark: error_mark(0),
            local: Vec::new(),
            has_hops: false,
            has_detour: false,
            has_bridge: false,
        }
    }

    /// From the next call of [`Barrier::set`] on, only what the config allows may reach the machine
    /// itself, and errors of the kernel are marked for its tables.
    pub fn follow(&mut self, config: &Config) {
        self.error_mark = error_mark(config.node.routing_table);
        self.local = local_in::ports(config);
    }

    /// Sets the barrier for these ports, on a machine with these addresses, in place of what was
    /// there, in one step.
    ///
    /// # Errors
    /// What the kernel refuses, such as all of it if it has no nf_tables. Nothing is changed then.
    pub fn set(&mut self, posts: Vec<Post>, own: BTreeSet<IpAddr>) -> Result<(), NetlinkError> {
        self.posts = posts;
        self.own = own;
        self.remove_stale()?;
        self.restore()
    }

    /// The ports that it was set for.
    pub fn posts(&self) -> &[Post] {
        &self.posts
    }

    /// The addresses of this machine that it was set for.
    pub fn own(&self) -> &BTreeSet<IpAddr> {
        &self.own
    }

    /// Sets it once more as it was, after somebody has removed or changed it.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn restore(&mut self) -> Result<(), NetlinkError> {
        // In one step, so that nothing passes while parts are missing.
        let is_whole = self.replace_table(INET, rules::forward(), true).is_ok();
        (self.has_detour, self.has_hops) = (is_whole, is_whole);
        if !is_whole {
            self.restore_in_parts()?;
        }
        let bridge = self.replace_table(BRIDGE, rules::bridge(), false);
        self.has_bridge = bridge.is_ok();
        if let Err(error) = bridge {
            log::debug!(
                "barrier of bridges not set error={} effect=\"two ports in one bridge are joined\"",
                InQuotes(&error)
            );
        }
        Ok(())
    }

    /// Sets what this kernel takes. It may lack what some chains need, or an interface has just
    /// gone.
    fn restore_in_parts(&mut self) -> Result<(), NetlinkError> {
        self.replace_table(INET, rules::forward(), false)?;
        let detour = self.add_detour();
        self.has_detour = detour.is_ok();
        if let Err(error) = detour {
            log::warn!(
                "ports not marked error={} effect=\"if ports are put into bridges, bonds or macvlans, what these \
                 forward bypasses the gateway\" remedy=\"modprobe nft_fib_inet (CONFIG_NETFILTER_INGRESS, \
                 CONFIG_NFT_FIB_INET; Linux 5.10)\"",
                InQuotes(&error)
            );
        }
        let hops = self.add_hops();
        self.has_hops = hops.is_ok();
        if let Err(error) = hops {
            log::warn!(
                "hop limits left to the kernel error={} \
                 effect=\"traceroute shows an address of this unit beside the virtual one\"",
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
        let sets = Sets::of(&self.posts, &self.own);
        let is_bridged =
            !self.has_bridge || found::is_bridge_whole(self.nftables()?, &table, &sets)?;
        let broken = |what: &str| Ok(Condition::Broken(what.to_owned()));
        let is_marked = |device: &String| found.devices.contains(device);
        let are_marked = !self.has_detour || self.devices().iter().all(is_marked);
        let local = local_in::rules(&self.local, &self.posts);
        let is_local =
            self.local.is_empty() || local.iter().map(|rule| &rule.comment).eq(&found.local);
        match found.judge(&sets) {
            Condition::Whole { hops: false, .. } if self.has_hops => {
                broken("the chain for hop limits is missing, or changed")
            }
            Condition::Whole { detour: false, .. } if self.has_detour => {
                broken("the chain for marked packets is missing, or changed")
            }
            Condition::Whole { .. } if !is_bridged => {
                broken("the table for bridges is missing, or changed")
            }
            Condition::Whole { .. } if !are_marked => broken("packets of ports are not marked"),
            Condition::Whole { .. } if !is_local => {
                broken("rules of [[local-in]] are missing, or others are among them")
            }
            condition => Ok(condition),
        }
    }

    /// The chains of somebody else that drop something; none if the packet filter can't be read.
    pub fn dropping_chains(&mut self) -> Vec<ForeignChain> {
        let found = self.nftables().and_then(others::dropping);
        found.unwrap_or_default()
    }

    /// Begins to measure how far the packets of a port come.
    ///
    /// # Errors
    /// What the kernel refuses, such as all of it before Linux 5.12.
    pub fn measure(&self, post: &Post) -> Result<Measurement, NetlinkError> {
        Measurement::begin(&self.table, post)
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
        let ours: BTreeSet<Vec<u8>> = rules::names(&self.posts).into_iter().collect();
        for table in others {
            let keys = found::keys(self.nftables()?, INET, &table, NAMES)?;
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

    /// `is_whole`: with the chains that a kernel may lack the means for.
    fn replace_table(
        &mut self,
        family: u8,
        rules: Vec<Rule<'_>>,
        is_whole: bool,
    ) -> Result<(), NetlinkError> {
        let devices = self.devices();
        let (table, sets) = (self.table.clone(), Sets::of(&self.posts, &self.own));
        let error_mark = self.error_mark;
        let local = local_in::rules(&self.local, &self.posts);
        let nftables = self.nftables()?;
        let mut batch = nftables.batch(family, &table);
        // It must exist to be removed without an error.
        batch.add_table();
        batch.remove_table();
        batch.add_table();
        let hook = Hook {
            number: libc::NF_INET_FORWARD as u32,
            priority: PRIORITY,
            devices: Vec::new(),
        };
        batch.add_chain(CHAIN, &hook);
        for (set, _) in &sets.each() {
            batch.add_set(set);
        }
        for (steps, comment) in rules {
            batch.add_rule(CHAIN, &steps, comment);
        }
        if family == INET {
            let hook = Hook {
                number: libc::NF_INET_LOCAL_OUT as u32,
                devices: Vec::new(),
                ..hook
            };
            add_chain(&mut batch, REPLIES, &hook, rules::replies());
            add_errors(&mut batch, error_mark.to_ne_bytes());
        }
        if family == INET && !local.is_empty() {
            let hook = Hook {
                number: libc::NF_INET_LOCAL_IN as u32,
                ..hook
            };
            batch.add_chain(LOCAL_IN, &hook);
            for rule in &local {
                batch.add_rule(LOCAL_IN, &rule.expressions(), &rule.comment);
            }
        }
        if is_whole {
            add_detour_to(&mut batch, &devices);
            add_chain(&mut batch, HOPS, &prerouting(), rules::hops());
        }
        nftables.commit(batch)
    }

    /// Adds the chain for packets whose hop limit ends here.
    fn add_hops(&mut self) -> Result<(), NetlinkError> {
        let table = self.table.clone();
        let nftables = self.nftables()?;
        let mut batch = nftables.batch(INET, &table);
        add_chain(&mut batch, HOPS, &prerouting(), rules::hops());
        nftables.commit(batch)
    }

    /// Adds the chains that mark what comes in by the ports, and that drop what is marked and comes
    /// by another device.
    fn add_detour(&mut self) -> Result<(), NetlinkError> {
        let (table, devices) = (self.table.clone(), self.devices());
        let nftables = self.nftables()?;
        let mut batch = nftables.batch(INET, &table);
        add_detour_to(&mut batch, &devices);
        nftables.commit(batch)
    }

    /// The interfaces of the ports that are there, by the names that they have now.
    fn devices(&self) -> Vec<String> {
        let there = self.posts.iter().filter_map(|post| post.index);
        there.filter_map(interface_name).collect()
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

/// Adds the chains for what a device above a port takes.
fn add_detour_to(batch: &mut Batch, devices: &[String]) {
    add_chain(batch, DETOUR, &prerouting(), rules::detour());
    for (number, devices) in devices.chunks(DEVICES_PER_CHAIN).enumerate() {
        let hook = Hook {
            number: NF_INET_INGRESS,
            priority: PRIORITY,
            devices: devices.to_vec(),
        };
        add_chain(batch, &arrivals(number), &hook, rules::arrivals_of_a_port());
    }
}

/// Adds the chains that lead errors of the kernel to the gateway.
fn add_errors(batch: &mut Batch, mark: [u8; 4]) {
    let hook = |number: i32, priority| Hook {
        number: number as u32,
        priority,
        devices: Vec::new(),
    };
    let output = hook(libc::NF_INET_LOCAL_OUT, LATE);
    batch.add_rerouting_chain(ERRORS, &output);
    for (steps, comment) in errors::errors(&mark) {
        batch.add_rule(ERRORS, &steps, comment);
    }
    let postrouting = hook(libc::NF_INET_POST_ROUTING, PRIORITY);
    add_chain(batch, ASTRAY, &postrouting, errors::astray(&mark));
}

/// Where packets are that come in, before they are routed.
fn prerouting() -> Hook {
    Hook {
        number: libc::NF_INET_PRE_ROUTING as u32,
        priority: PRIORITY,
        devices: Vec::new(),
    }
}

/// The devices that a chain is hooked to.
fn devices_of(chain: Attributes<'_>) -> Vec<String> {
    let hook = chain.nested(attribute::CHAIN_HOOK);
    let listed = hook.nested(attribute::HOOK_DEVICES);
    let several = listed.all(attribute::DEVICE_NAME);
    // A kernel may list a single device the old way, or both ways.
    let single = hook.all(attribute::HOOK_DEVICE);
    let names = several.chain(single).map(|name| {
        let name = name.strip_suffix(&[0]).unwrap_or(name);
        String::from_utf8_lossy(name).into_owned()
    });
    names.collect()
}

/// Adds a chain with its rules.
fn add_chain(batch: &mut Batch, chain: &str, hook: &Hook, rules: Vec<Rule<'_>>) {
    batch.add_chain(chain, hook);
    for (steps, comment) in rules {
        batch.add_rule(chain, &steps, comment);
    }
}

#[cfg(test)]
mod tests;
