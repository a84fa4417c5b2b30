//! The search for an external port: it costs no more than an ordinary packet, however many ports
//! are taken.

use super::crowded::Progress;
use super::mappings::Endpoint;
use super::pool::External;
use super::range::Range;
use super::{Nat, is_mapped};
use crate::flow::FlowKey;
use crate::random::SplitMix64;
use crate::session::{AddressBook, SessionId, Table};

/// Ports drawn at random for a TCP session before a scan (RFC 6056, section 3.3.2): enough for all
/// but one session in 1000 where two thirds of the ports towards a destination are in use.
const RANDOM_ATTEMPTS: u32 = 16;

/// Ports tried for one session, over all addresses. Each is a lookup of some 100 ns. If a session
/// finds none although some exist, the next try continues from there: hosts repeat a SYN.
const MAX_ATTEMPTS: u32 = 64;

/// Ports of which a TCP endpoint has one for all its connections, if one of them is no other
/// endpoint's: its own and some that follow from it. Where half of all ports are somebody's, all
/// are in one of 100 000 cases.
const CANDIDATES: usize = 17;

/// A session that wants a port of an external address.
pub(super) struct Request<'a> {
    pub(super) nat: &'a Nat,
    pub(super) table: &'a Table,
    pub(super) book: &'a AddressBook,
    pub(super) key: &'a FlowKey,
    pub(super) external: &'a External,
}

/// Who has a port, as far as TCP goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ownership {
    Own,
    Other,
    Nobody,
}

impl Request<'_> {
    /// Whether answers to `port` could be told from packets of all other sessions.
    pub(super) fn tells_apart(&self, port: u16) -> bool {
        let outgoing = FlowKey {
            src: self.external.addr,
            ..self.key.with_source_port(port)
        };
        !self.table.contains_key(&outgoing.reply(), self.book)
    }

    /// The session that has `port` towards the destination.
    fn holder(&self, port: u16) -> Option<SessionId> {
        let outgoing = FlowKey {
            src: self.external.addr,
            ..self.key.with_source_port(port)
        };
        let found = self.table.lookup(&outgoing.reply(), self.book);
        found.map(|(id, _)| id)
    }

    /// Whose a port is: that of the source of the session, another endpoint's, or nobody's.
    fn ownership(&self, port: u16) -> Ownership {
        let endpoint = Endpoint {
            src: self.key.src,
            src_port: self.key.src_port,
            protocol: self.key.protocol,
            external: self.external.translated,
        };
        match self.nat.connected.owner(endpoint.external, port) {
            None => Ownership::Nobody,
            Some(owner) if owner == self.nat.mappings.endpoint_hash(&endpoint) => Ownership::Own,
            Some(_) => Ownership::Other,
        }
    }

    fn is_taken(&self, port: u16) -> bool {
        self.external.is_taken(self.key.protocol, port)
    }
}

/// The search for a port, over the addresses of a pool.
pub(super) struct Search {
    random: SplitMix64,
    /// Lookups that are left.
    attempts: u32,
}

impl Search {
    pub(super) fn new(random: u64) -> Search {
        Search {
            random: SplitMix64(random),
            attempts: MAX_ATTEMPTS,
        }
    }

    /// How many ports were looked up.
    pub(super) fn lookups(&self) -> u32 {
        MAX_ATTEMPTS - self.attempts
    }

    /// The session that has a port of an address, drawn at random out of `all`.
    pub(super) fn holder(&mut self, request: &Request<'_>, all: Range) -> Option<SessionId> {
        let range = all.last_candidate(request.key.src_port);
        request.holder(random_port(&mut self.random, range))
    }

    /// A port of one address out of `all`, or the progress of the search. `before` is its progress
    /// so far.
    pub(super) fn port(
        &mut self,
        request: &Request<'_>,
        all: Range,
        before: Option<Progress>,
    ) -> Result<u16, Progress> {
        let wanted = request.key.src_port;
        let nothing = before.unwrap_or_default();
        if !request.key.protocol.has_ports() {
            return self.try_port(request, wanted).ok_or(nothing);
        }
        if !is_mapped(request.key.protocol)
            && let Some(port) = self.port_of_endpoint(request, all)
        {
            return Ok(port);
        }
        if all.contains(wanted)
            && let Some(port) = self.try_port(request, wanted)
        {
            return Ok(port);
        }
        if let Some(range) = all.first_candidate(wanted)
            && let Ok(port) = self.port_in(request, range, None, self.attempts / 2)
        {
            return Ok(port);
        }
        let range = all.last_candidate(wanted);
        self.port_in(request, range, before, 0)
    }

    /// A port that other connections of the endpoint have (RFC 5382, REQ-1), or else one that no
    /// other endpoint has. No list says which port an endpoint has: it is one of a few that follow
    /// from the endpoint, on all units the same.
    fn port_of_endpoint(&mut self, request: &Request<'_>, all: Range) -> Option<u16> {
        let wanted = request.key.src_port;
        let range = all.candidates(wanted).next().unwrap_or(all);
        let mut random = SplitMix64(request.nat.pools.preference(request.key));
        let mut ports = [wanted; CANDIDATES];
        for port in &mut ports[1..] {
            *port = random_port(&mut random, range);
        }
        let ports = &ports[usize::from(!all.contains(wanted))..];
        [Ownership::Own, Ownership::Nobody]
            .iter()
            .find_map(|ownership| {
                let of = |port: &&u16| request.ownership(**port) == *ownership;
                let mut ports = ports.iter().filter(of);
                ports.find_map(|port| self.try_port(request, *port))
            })
    }

    /// A port of a range; leaves `spare` of the attempts.
    fn port_in(
        &mut self,
        request: &Request<'_>,
        range: Range,
        before: Option<Progress>,
        spare: u32,
    ) -> Result<u16, Progress> {
        self.attempts -= spare;
        let found = if is_mapped(request.key.protocol) {
            self.unowned_port(request, range)
        } else {
            self.distinct_port(request, range, before)
        };
        self.attempts += spare;
        found
    }

    /// A port that belongs to no mapping: the first one from a random place on.
    fn unowned_port(&mut self, request: &Request<'_>, range: Range) -> Result<u16, Progress> {
        let Range { first, last } = range;
        let start = random_port(&mut self.random, range);
        let mut is_any_free = false;
        for (mut from, to) in [(start, last), (first, start.saturating_sub(1))] {
            while let Some(port) = request.external.next_free(request.key.protocol, from, to) {
                is_any_free = true;
                if self.try_port(request, port).is_some() {
                    return Ok(port);
                }
                // Rare: a session without a mapping has the same destination.
                let Some(next) = port.checked_add(1).filter(|_| self.attempts > 0) else {
                    break;
                };
                from = next;
            }
        }
        Err(Progress {
            next: start,
            seen: if is_any_free { 0 } else { range.size() },
        })
    }

    /// A port that distinguishes the session from others with the same destination: first some at
    /// random, then one after the other, from where the last search ended or a port became free.
    fn distinct_port(
        &mut self,
        request: &Request<'_>,
        range: Range,
        before: Option<Progress>,
    ) -> Result<u16, Progress> {
        let Range { first, last } = range;
        let knows_free = before.is_some_and(|before| before.seen == 0);
        for _ in 0..if knows_free { 0 } else { RANDOM_ATTEMPTS } {
            let port = random_port(&mut self.random, range);
            if let Some(port) = self.try_port(request, port) {
                return Ok(port);
            }
        }
        let mut progress = before.unwrap_or(Progress {
            next: random_port(&mut self.random, range),
            seen: 0,
        });
        while progress.seen < range.size() && self.attempts > 0 {
            let port = progress.next.clamp(first, last);
            if let Some(port) = self.try_port(request, port) {
                return Ok(port);
            }
            progress.next = if port == last { first } else { port + 1 };
            progress.seen += 1;
        }
        Err(progress)
    }

    fn try_port(&mut self, request: &Request<'_>, port: u16) -> Option<u16> {
        self.attempts = self.attempts.checked_sub(1)?;
        (!request.is_taken(port) && request.tells_apart(port)).then_some(port)
    }
}

/// A port of a range.
fn random_port(random: &mut SplitMix64, range: Range) -> u16 {
    range.first + random.below(range.size() as usize) as u16
}
