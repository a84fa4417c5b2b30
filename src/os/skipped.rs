//! What the kernel does with forwarded packets that the program of the fast path would skip.
//!
//! Policies of IPsec, and rules of policy routing that are not ours, decide where packets go: while
//! there are any, none takes the fast path. Filters and translation of others (`filters.rs`) bar
//! ports with `offload = "auto"`: there nobody has said that packets may skip them.

mod filters;
mod legacy;

use std::collections::BTreeSet;

use mio::{Registry, Token};
use tandemgw_core::config::{Config, PortOffload};
use tandemgw_core::flow::Family;
use tandemgw_core::time::Time;

use super::barrier::Post;
use super::netlink::{NetlinkError, Watch, has_forwarding_ipsec_policies, watched};
use super::sysctl;

pub(super) use filters::{Filters, Own};

/// Why the fast path is not used.
pub(super) const IPSEC: &str = "policies of IPsec may concern forwarded packets (ip xfrm policy)";
/// The same.
pub(super) const RULES: &str = "rules of others may lead packets elsewhere (ip rule)";
/// The same, at the start or if the kernel does not tell.
pub(super) const UNKNOWN: &str = "it is not known yet what the kernel does with forwarded packets";

/// Looks for it, and remembers what it has found.
pub(super) struct Skipped {
    /// None on a kernel without IPsec, until it has some.
    policies: Option<Watch>,
    /// There may be policies of IPsec.
    is_ipsec: bool,
    filters: Filters,
    filters_watch: Option<Watch>,
    /// By port: it takes the fast path only if it skips no filters of others.
    is_auto: Vec<bool>,
    /// By port: why it may not take the fast path.
    found: Vec<Option<String>>,
    /// By port: whether its packets would skip nothing at all; and whether that is new.
    skip_nothing: Vec<bool>,
    is_new: bool,
    /// The interfaces of ports where the gateway's program was.
    attached: BTreeSet<u32>,
}

impl Skipped {
    /// Nothing is known yet.
    pub(super) fn new(config: &Config, own: Own) -> Skipped {
        let ports = config.ports.iter();
        let is_auto: Vec<bool> = ports.map(|it| it.offload == PortOffload::Auto).collect();
        Skipped {
            policies: None,
            is_ipsec: false,
            filters: Filters::open(own),
            filters_watch: None,
            found: unknown(config),
            skip_nothing: Vec::new(),
            is_new: false,
            attached: BTreeSet::new(),
            is_auto,
        }
    }

    /// Watches policies of IPsec and filters of tc from now on, if the kernel has any.
    pub(super) fn watch(&mut self, registry: &Registry, policies: Token, filters: Token) {
        if self.policies.is_none() {
            let what = (policies, "policies of IPsec");
            self.policies = watched(registry, what, Watch::policies());
            self.ask_for_policies();
        }
        if self.filters_watch.is_none() {
            self.filters_watch = watched(registry, (filters, "filters of tc"), Watch::filters());
            self.filters.note_changed();
        }
    }

    /// Asks for policies of IPsec. Unless they are watched, the kernel has none: asking it would
    /// try to load a module each time.
    fn ask_for_policies(&mut self) {
        self.is_ipsec = self.policies.is_some() && has_forwarding_ipsec_policies().unwrap_or(true);
    }

    /// The watch of policies has something to tell.
    pub(super) fn hear_of_policies(&mut self) {
        self.policies.iter_mut().for_each(Watch::clear);
        self.ask_for_policies();
    }

    /// The watch of filters has something to tell.
    pub(super) fn hear_of_filters(&mut self) {
        self.filters_watch.iter_mut().for_each(Watch::clear);
        self.note_filters_changed();
    }

    /// Chains or filters of others have changed, or may have.
    pub(super) fn note_filters_changed(&mut self) {
        self.filters.note_changed();
        // Until it is known what has changed: a new chain sees the next packet already.
        self.set_skip_nothing(vec![false; self.skip_nothing.len()]);
    }

    fn set_skip_nothing(&mut self, skip_nothing: Vec<bool>) {
        self.is_new |= skip_nothing != self.skip_nothing;
        self.skip_nothing = skip_nothing;
    }

    /// Whether there is something new to look at.
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.filters.is_due(now)
    }

    /// Looks again. The result is, by port, why it may not take the fast path, if that has changed.
    /// `has_rules` says whether rules of others come before the main table.
    pub(super) fn look(
        &mut self,
        has_rules: Result<bool, NetlinkError>,
        posts: &[Post],
    ) -> Option<Vec<Option<String>>> {
        let barred = match has_rules {
            _ if self.is_ipsec => Some(IPSEC),
            Ok(true) => Some(RULES),
            Ok(false) => None,
            Err(_) => Some(UNKNOWN),
        };
        let bars = match barred {
            Some(why) => vec![Some(why.to_owned()); posts.len()],
            None => self.filters.bars(posts),
        };
        let may_leave = self.filters.is_certain() && !has_strict_filter();
        let skip_nothing = bars.iter().map(|bar| may_leave && bar.is_none());
        self.set_skip_nothing(skip_nothing.collect());
        let bars = bars.into_iter().zip(&self.is_auto);
        let found = bars.map(|(bar, is_auto)| bar.filter(|_| barred.is_some() || *is_auto));
        let found: Vec<Option<String>> = found.collect();
        (found != self.found).then(|| {
            self.found.clone_from(&found);
            found
        })
    }
}

impl Skipped {
    /// By port: whether its packets would skip nothing at all, if that has changed since the last
    /// call.
    pub(super) fn skip_nothing_if_new(&mut self) -> Option<Vec<bool>> {
        std::mem::take(&mut self.is_new).then(|| self.skip_nothing.clone())
    }

    /// Looks where the gateway's program is. The result are interfaces that had it and have it no
    /// longer: somebody has taken it off.
    pub(super) fn look_for_program(&mut self, posts: &[Post]) -> Vec<u32> {
        let attached = self.filters.attached(posts);
        let before = std::mem::replace(&mut self.attached, attached);
        let is_there = |link: &&u32| posts.iter().any(|post| post.index == Some(**link));
        let gone = before.difference(&self.attached).filter(is_there);
        gone.copied().collect()
    }
}

/// Whether the stack drops what comes from a TUN device by its source, whatever the device's own
/// parameter says.
fn has_strict_filter() -> bool {
    const STRICT: u32 = 1;
    sysctl::get(Family::V4, "all", "rp_filter").is_ok_and(|value| value == Some(STRICT))
}

/// By port: what is said until it has been looked at.
pub(super) fn unknown(config: &Config) -> Vec<Option<String>> {
    vec![Some(UNKNOWN.to_owned()); config.ports.len()]
}
