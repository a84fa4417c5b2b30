//! Filters and translation of others that packets of the fast path would skip.

use std::io;
use std::time::Duration;

use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::time::Time;

use crate::os::barrier::{ForeignChain, Post, acting_chains};
use crate::os::clock;
use crate::os::fast_path::foreign_programs;
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

/// What is known of them.
pub(in crate::os) struct Filters {
    /// The gateway's own program, by its number in the kernel; none where this can't be told, and
    /// so neither which programs are of others.
    own_program: Option<u32>,
    nftables: Option<Nftables>,
    netlink: Option<Netlink>,
    /// None if the kernel does not tell.
    chains: Option<Vec<ForeignChain>>,
    /// Interfaces with filters of tc.
    filtered: Vec<String>,
    /// The interfaces that were looked at.
    links: Vec<[Option<u32>; 2]>,
    /// Something has changed since the last listing.
    is_stale: bool,
    next_listing: Time,
}

impl Filters {
    /// Nothing is known yet. Opens its sockets in the network namespace of the calling thread.
    pub(in crate::os) fn open(own_program: Option<u32>) -> Filters {
        Filters {
            own_program,
            nftables: opened(Nftables::open()),
            netlink: opened(Netlink::open()),
            chains: None,
            filtered: Vec::new(),
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
        self.filtered = posts
            .iter()
            .flat_map(|post| self.filtered_at(post))
            .collect();
        let end = clock::now();
        self.next_listing = end + REST.max(end.since(now) * REST_FOR_EACH);
    }

    /// The interfaces of a port with filters of tc that see what does not take the fast path.
    fn filtered_at(&mut self, post: &Post) -> Vec<String> {
        let Some(netlink) = &mut self.netlink else {
            return Vec::new();
        };
        let mut has = |link, is_tun| netlink.has_foreign_filters(link, is_tun).unwrap_or(false);
        let interface = post.index.filter(|link| has(*link, false));
        let interface = interface.map(|_| post.interface.clone());
        let tun = has(post.tun, true).then(|| post.tun_name.clone());
        interface.into_iter().chain(tun).collect()
    }

    fn skipped_by(&self, post: &Post) -> impl Iterator<Item = String> {
        let chains = self.chains.iter().flatten();
        let chains = chains.filter(|chain| chain.is_skipped_at(&post.interface, &post.tun_name));
        let names = [&post.interface, &post.tun_name];
        let filtered = self
            .filtered
            .iter()
            .filter(move |link| names.contains(link));
        let is_foreign = |link| {
            self.own_program
                .is_some_and(|own| foreign_programs(link, own))
        };
        let programs = post.index.filter(|link| is_foreign(*link));
        let chains = chains.map(ForeignChain::name);
        chains
            .chain(filtered.map(|link| format!("filters of tc at {link}")))
            .chain(programs.map(|_| format!("a program of others at {} (tcx)", post.interface)))
    }
}
