//! How many hosts that may not exist the kernel is made to look for (RFC 6583).
//!
//! A packet to a host on a link that the kernel does not know takes an entry in its neighbour table
//! while the kernel looks for the host, and there are about a thousand entries for everybody. One
//! sender that scans the addresses of a network would fill them all. So only a limited number of
//! hosts that have never answered may be waited for, per source and in total; those that have
//! answered are reached whatever others do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::event::RouteTarget;
use crate::flow::{Addr, Direction, Family, PortId};
use crate::route::Hop;
use crate::session::{Session, SessionFlags, SessionId, Tracker};
use crate::time::Time;

use super::Gateway;

/// Unknown hosts that one source may be waiting for. A scan of a network slows down to some 10 a
/// second.
const MOST_BY_SOURCE: u32 = 32;
/// The same for all sources of one IPv6 /64, in which a host may use any address it likes.
const MOST_BY_NETWORK: u32 = 128;
/// In total: well below `gc_thresh3` of the kernel, 1024.
const MOST: usize = 384;
/// The kernel gives up after three attempts, a second apart (arp(7), `mcast_solicit`).
const ATTEMPT: Duration = Duration::from_secs(3);
/// No link has a network of a shorter prefix, IPv4 and IPv6. A default route without a next hop, or
/// its halves, belongs to a point-to-point link, where no host is looked for.
const LEAST_PREFIX: [u8; 2] = [8, 32];
/// Remembered hosts that have answered; the oldest are forgotten first.
const MOST_KNOWN: usize = 8192;

/// A host on the link of a port.
pub(super) type Host = (PortId, Addr);

/// Hosts on links that the kernel may have to look for.
#[derive(Default)]
pub(super) struct Unresolved {
    waiting: BTreeMap<Host, Attempt>,
    /// Sorted by the end of the attempt; includes those of hosts that have answered meanwhile.
    ends: VecDeque<(Time, Host)>,
    by_source: BTreeMap<Addr, u32>,
    known: BTreeSet<Host>,
    /// In the order in which they became known.
    oldest: VecDeque<Host>,
}

struct Attempt {
    until: Time,
    source: Addr,
}

impl Unresolved {
    /// Whether `host` has answered, or is waited for already.
    fn has(&self, now: Time, host: &Host) -> bool {
        self.known.contains(host) || self.waiting.get(host).is_some_and(|it| now < it.until)
    }

    /// Whether a packet from `source` may make the kernel look for one more host.
    pub(super) fn allows(&self, now: Time, source: &Addr) -> bool {
        let over = self.over(now);
        let taken = |counted: Addr, most: u32| {
            let over = over
                .iter()
                .filter(|it| counts_under(it).contains(&Some(counted)));
            let count = self.by_source.get(&counted).copied().unwrap_or(0);
            count.saturating_sub(over.count() as u32) >= most
        };
        let [own, network] = counts_under(source);
        self.waiting.len() - over.len() < MOST
            && !own.is_some_and(|addr| taken(addr, MOST_BY_SOURCE))
            && !network.is_some_and(|addr| taken(addr, MOST_BY_NETWORK))
    }

    /// The sources of attempts that are over, and still to be removed.
    fn over(&self, now: Time) -> Vec<Addr> {
        let over = self.ends.iter().take_while(|(until, _)| *until <= now);
        let waiting = over.filter_map(|(until, host)| {
            let attempt = self.waiting.get(host)?;
            (attempt.until == *until).then_some(attempt.source)
        });
        waiting.collect()
    }

    /// Notes that the kernel may look for `host` from now on.
    pub(super) fn begin(&mut self, now: Time, host: Host, source: Addr) {
        self.expire(now);
        if self.has(now, &host) {
            return;
        }
        let until = now + ATTEMPT;
        self.waiting.insert(host, Attempt { until, source });
        self.ends.push_back((until, host));
        for counted in counts_under(&source).into_iter().flatten() {
            *self.by_source.entry(counted).or_default() += 1;
        }
    }

    fn expire(&mut self, now: Time) {
        while let Some(&(until, host)) = self.ends.front()
            && until <= now
        {
            self.ends.pop_front();
            if self.waiting.get(&host).is_some_and(|it| it.until == until) {
                self.end(&host);
            }
        }
    }

    fn end(&mut self, host: &Host) {
        let Some(attempt) = self.waiting.remove(host) else {
            return;
        };
        for counted in counts_under(&attempt.source).into_iter().flatten() {
            match self.by_source.get_mut(&counted) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.by_source.remove(&counted)),
            }
        }
    }

    /// Notes that `host` has answered, if it was waited for.
    pub(super) fn answered(&mut self, host: Host) {
        if !self.waiting.contains_key(&host) {
            return;
        }
        self.end(&host);
        if self.known.insert(host) {
            self.oldest.push_back(host);
        }
        if self.known.len() > MOST_KNOWN
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.known.remove(&oldest);
        }
        // An answer leaves its entry behind; there must not be more of those than answers in that
        // time.
        if self.ends.len() > 2 * MOST {
            let waiting = &self.waiting;
            self.ends
                .retain(|(until, host)| waiting.get(host).is_some_and(|it| it.until == *until));
        }
    }
}

/// The address itself, and the network of an IPv6 address.
fn counts_under(source: &Addr) -> [Option<Addr>; 2] {
    let network = (source.family() == Family::V6).then(|| {
        let mut octets = *source.octets();
        // Not the address of a host, so it can't be mistaken for the count of one.
        octets[8..].fill(0xff);
        Addr::v6(octets)
    });
    [Some(*source), network]
}

impl Gateway {
    /// The host that a packet to `to` on the link of `port` would make the kernel look for. None if
    /// a host there has answered, if the kernel is looking already, or if it is not on the link.
    pub(super) fn unresolved(&self, now: Time, port: PortId, to: Addr) -> Option<Host> {
        let host = self.not_known(now, port, to)?;
        let hop = self.routes.lookup(&to)?;
        is_direct(&hop, &host).then_some(host)
    }

    /// The same for a packet whose route is known.
    pub(super) fn unresolved_by(
        &self,
        now: Time,
        port: PortId,
        to: Addr,
        hop: &Hop,
    ) -> Option<Host> {
        let is_direct = is_direct(hop, &(port, to));
        is_direct.then(|| self.not_known(now, port, to))?
    }

    fn not_known(&self, now: Time, port: PortId, to: Addr) -> Option<Host> {
        let host = (port, to);
        let (neighbors, unresolved) = (&self.hosts.neighbors, &self.hosts.unresolved);
        (!neighbors.has_heard(&host) && !unresolved.has(now, &host)).then_some(host)
    }

    /// Whether a packet from `source` may go to `to` on the link of `port`, for which the kernel
    /// may have to look.
    pub(super) fn may_look_for(&self, now: Time, source: &Addr, port: PortId, to: Addr) -> bool {
        self.unresolved(now, port, to).is_none() || self.hosts.unresolved.allows(now, source)
    }

    /// The same, and notes that such a packet goes there if it may.
    // Rare for packets of a session, whose path must stay short.
    #[inline(never)]
    pub(super) fn looks_for(&mut self, now: Time, source: &Addr, port: PortId, to: Addr) -> bool {
        let Some(host) = self.unresolved(now, port, to) else {
            return true;
        };
        let allowed = self.hosts.unresolved.allows(now, source);
        if allowed {
            self.hosts.unresolved.begin(now, host, *source);
        }
        allowed
    }

    /// Notes which ends of a session have answered.
    pub(super) fn note_neighbors_of(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else {
            return;
        };
        let to = session
            .translated(Direction::Original, self.sessions.book())
            .dst;
        let (server, client) = ((session.out_port, to), (session.in_port, session.src));
        // With TCP the client has answered too, or it would not be established.
        let settled = matches!(session.tracker, Tracker::Tcp(_)) && session.is_settled();
        if session.flags.contains(SessionFlags::REPLIED) {
            self.hosts.unresolved.answered(server);
        }
        if settled {
            self.hosts.unresolved.answered(client);
        }
    }
}

/// Whether a route leads to the host itself, on the link of its port.
fn is_direct(hop: &Hop, (port, addr): &Host) -> bool {
    let least = match addr.family() {
        Family::V4 => LEAST_PREFIX[0],
        Family::V6 => LEAST_PREFIX[1],
    };
    hop.prefix_len >= least
        && matches!(hop.target, RouteTarget::Port { port: by, gateway: None } if by == *port)
}

/// Whether a packet of this session goes to a host that has not answered in it. The packet that
/// opened it may have had a forged source.
#[inline]
pub(super) fn is_unanswered(session: &Session, direction: Direction) -> bool {
    let replied = session.flags.contains(SessionFlags::REPLIED);
    session.flags.contains(SessionFlags::HALF_OPEN)
        && !(direction == Direction::Original && replied)
}

/// Who makes the kernel look for the destination of a packet: its sender, or the opener of the
/// session if it is a reply.
pub(super) fn asks_for(source: &Addr, to: &Addr, direction: Direction) -> Addr {
    match direction {
        Direction::Original => *source,
        Direction::Reply => *to,
    }
}
