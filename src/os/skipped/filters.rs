//! Filters and translation of others that packets of the fast path would skip.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use crate::os::barrier::{ForeignChain, Post, acting_chains};
use crate::os::clock;
use crate::os::fast_path::{programs_at, programs_at_egress};
use crate::os::netlink::Netlink;
use crate::os::nftables::Nftables;

use super::{UNKNOWN, legacy};

/// Chains and filters are listed again this long after the last time at the earliest; and after so
/// many times of what that took, where there are very many rules.
const REST: Duration = Duration::from_millis(100);
const REST_FOR_EACH: u32 = 10;

fn opened<T>(socket: io::Result<T>) -> Option<T> {
    let log = |error: &io::Error| {
        log::debug!("filters of others not seen error={}", InQuotes(error));
    };
    socket.inspect_err(log).ok()
}

/// The gateway's own programs, by their numbers in the kernel.
#[derive(Clone, Copy, Default)]
pub(in crate::os) struct Own {
    /// At ports; none where this can't be told, and so neither which programs are of others.
    pub(in crate::os) port: Option<u32>,
    /// At the ingress of TUN devices.
    pub(in crate::os) exit: Option<u32>,
    /// At the egress of TUN devices.
    pub(in crate::os) entrance: Option<u32>,
}

/// What is known of them.
pub(in crate::os) struct Filters {
    own: Own,
    nftables: Option<Nftables>,
    netlink: Option<Netlink>,
    /// None if the kernel does not tell.
    chains: Option<Vec<ForeignChain>>,
    /// Interfaces with filters of tc.
    filtered: Vec<String>,
    /// The numbers of those that have the gateway's program as such a filter.
    ours: Vec<u32>,
    /// The interfaces that were looked at.
    links: Vec<[Option<u32>; 2]>,
    /// Something has changed since the last listing.
    is_stale: bool,
    next_listing: Time,
}

impl Filters {
    /// Nothing is known yet. Opens its sockets in the network namespace of the calling thread.
    pub(in crate::os) fn open(own: Own) -> Filters {
        Filters {
            own,
            nftables: opened(Nftables::open()),
            netlink: opened(Netlink::open()),
            chains: None,
            filtered: Vec::new(),
            ours: Vec::new(),
            links: Vec::new(),
            is_stale: true,
            next_listing: Time::ZERO,
        }
    }

    /// Chains or filters of others have changed, or may have.
    pub(in crate::os) fn note_changed(&mut self) {
        self.is_stale = true;
    }

    /// Whether there is something new to look at.
    pub(in crate::os) fn is_due(&self, now: Time) -> bool {
        self.is_stale && now >= self.next_listing
    }

    /// Whether all is known: nothing has changed since the last listing, and it can be told which
    /// programs are of others.
    pub(in crate::os) fn is_certain(&self) -> bool {
        !self.is_stale && self.own.port.is_some() && self.own.exit.is_some()
    }

    /// By port: why its packets may not take the fast path; none if they would skip nothing.
    pub(in crate::os) fn bars(&mut self, posts: &[Post]) -> Vec<Option<String>> {
        self.look(posts);
        if self.chains.is_none() {
            return vec![Some(UNKNOWN.to_owned()); posts.len()];
        }
        let legacy = legacy::find();
        let bar = |post| {
            let mut skipped = self.skipped_by(post);
            let first = skipped.next().or_else(|| legacy.clone());
            first.map(|what| format!("its packets would skip {what}"))
        };
        posts.iter().map(bar).collect()
    }

    /// The interfaces of ports where the gateway's program is.
    pub(in crate::os) fn attached(&mut self, posts: &[Post]) -> BTreeSet<u32> {
        self.look(posts);
        let is_at = |link: &u32| {
            let own = self.own.port;
            self.ours.contains(link) || own.is_some_and(|own| programs_at(*link).contains(&own))
        };
        let links = posts.iter().filter_map(|post| post.index);
        links.filter(is_at).collect()
    }

    /// All that packets of these ports skip on the fast path, in words.
    pub(in crate::os) fn skipped(&mut self, posts: &[Post]) -> Vec<String> {
        self.look(posts);
        let of_ports = posts.iter().flat_map(|post| self.skipped_by(post));
        let mut all: Vec<String> = of_ports.chain(legacy::find()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Lists what may have changed.
    fn look(&mut self, posts: &[Post]) {
        let links = posts.iter().map(|post| [post.index, Some(post.tun)]);
        let links: Vec<[Option<u32>; 2]> = links.collect();
        let now = clock::now();
        if links == self.links && !self.is_due(now) {
            return;
        }
        self.links = links;
        self.chains = match &mut self.nftables {
            // A kernel without a packet filter.
            None => Some(Vec::new()),
            Some(nftables) => match acting_chains(nftables) {
                Ok(chains) => Some(chains),
                // The same: nobody answers.
                Err(error) if error.is(libc::EINVAL) => Some(Vec::new()),
                Err(error) => {
                    log::debug!("chains of others not seen error={}", InQuotes(&error));
                    None
                }
            },
        };
        self.is_stale = self.chains.is_none();
        (self.filtered, self.ours) = (Vec::new(), Vec::new());
        posts.iter().for_each(|post| self.list_filters(post));
        let end = clock::now();
        self.next_listing = end + REST.max(end.since(now) * REST_FOR_EACH);
    }

    /// Notes the filters of tc at the interfaces of a port.
    fn list_filters(&mut self, post: &Post) {
        let Some(netlink) = &mut self.netlink else {
            return;
        };
        let mut of = |link, is_tun| netlink.has_filters_of(link, is_tun).unwrap_or_default();
        if let Some(link) = post.index {
            let (is_ours, is_foreign) = of(link, false);
            self.ours.extend(is_ours.then_some(link));
            self.filtered
                .extend(is_foreign.then(|| post.interface.clone()));
        }
        if of(post.tun, true).1 {
            self.filtered.push(post.tun_name.clone());
        }
    }

    fn skipped_by(&self, post: &Post) -> impl Iterator<Item = String> {
        let chains = self.chains.iter().flatten();
        let chains = chains.filter(|chain| chain.is_skipped_at(&post.interface, &post.tun_name));
        let names = [&post.interface, &post.tun_name];
        let filtered = self
            .filtered
            .iter()
            .filter(move |link| names.contains(link));
        let own = [self.own.port, self.own.exit, self.own.entrance];
        let is_foreign = move |it: &u32| !own.contains(&Some(*it));
        let at_port = move || post.index.map(programs_at).unwrap_or_default();
        let at_tun = move || [programs_at(post.tun), programs_at_egress(post.tun)].concat();
        // Where it is not known which one is our own, nothing can be told.
        let has_foreign = move |is_tun: &bool| {
            let programs = || if *is_tun { at_tun() } else { at_port() };
            self.own.port.is_some() && programs().iter().any(is_foreign)
        };
        let programs = [false, true].into_iter().filter(has_foreign);
        let chains = chains.map(ForeignChain::name);
        chains
            .chain(filtered.map(|link| format!("filters of tc at {link}")))
            .chain(programs.map(move |is_tun| {
                let name = names[usize::from(is_tun)];
                format!("a program of others at {name} (tcx)")
            }))
    }
}
