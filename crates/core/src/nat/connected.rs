//! External ports that TCP sessions have: a port may serve many endpoints, so they are counted.
//! While there are enough, each belongs to the endpoint that had it first.

use crate::flow::Protocol;
use crate::session::{Session, Table, TranslatedAddr};

/// Counters; several ports share one.
const PLACES: usize = 65_536;

/// How many TCP sessions have each external port, or one with the same hash. It never reports a
/// used port as unused.
pub(super) struct Connected(Vec<Place>);

#[derive(Clone, Copy, Default)]
struct Place {
    sessions: u32,
    /// The hash of the internal endpoint that had it first since it was unused.
    owner: u32,
}

impl Default for Connected {
    fn default() -> Connected {
        Connected(vec![Place::default(); PLACES])
    }
}

impl Connected {
    /// Counts a session that was inserted. `endpoint` is the hash of its source, under a secret
    /// key.
    pub(super) fn add(&mut self, session: &Session, endpoint: u32) {
        let Some(place) = place_of(session).map(|place| &mut self.0[place]) else {
            return;
        };
        if place.sessions == 0 {
            place.owner = endpoint;
        }
        place.sessions += 1;
    }

    /// Stops counting a session that is about to be removed.
    pub(super) fn remove(&mut self, session: &Session) {
        if let Some(place) = place_of(session) {
            let sessions = &mut self.0[place].sessions;
            *sessions = sessions.saturating_sub(1);
        }
    }

    pub(super) fn has(&self, addr: TranslatedAddr, port: u16) -> bool {
        self.owner(addr, port).is_some()
    }

    /// The hash of the endpoint whose port it is; none if it is unused.
    pub(super) fn owner(&self, addr: TranslatedAddr, port: u16) -> Option<u32> {
        let place = self.0[place(addr, port)];
        (place.sessions > 0).then_some(place.owner)
    }

    /// Panics if the counts are not those of the table: for tests and simulations.
    pub(super) fn check_invariants(&self, table: &Table) {
        let mut counts = Connected::default();
        for (_, session) in table.iter() {
            counts.add(session, 0);
        }
        let same = |(a, b): (&Place, &Place)| a.sessions == b.sessions;
        let all = self.0.iter().zip(&counts.0).all(same);
        assert!(all, "TCP sessions that are counted wrong");
    }
}

fn place_of(session: &Session) -> Option<usize> {
    let is_counted = session.protocol == Protocol::TCP && session.nat_src != TranslatedAddr::SAME;
    is_counted.then(|| place(session.nat_src, session.nat_src_port))
}

fn place(addr: TranslatedAddr, port: u16) -> usize {
    // An odd factor spreads the ports of each address over all places.
    usize::from(port ^ addr.0.wrapping_mul(0x9e37))
}
