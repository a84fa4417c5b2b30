//! External ports that TCP sessions have: a port serves many, so they are counted and not owned.

use crate::flow::Protocol;
use crate::session::{Session, Table, TranslatedAddr};

/// Places that are counted in; several ports share one.
const PLACES: usize = 65_536;

/// How many TCP sessions have each external port, or one with the same hash. It never says that a
/// port is unused which is used.
pub(super) struct Connected(Vec<u32>);

impl Default for Connected {
    fn default() -> Connected {
        Connected(vec![0; PLACES])
    }
}

impl Connected {
    /// Counts a session that was inserted.
    pub(super) fn add(&mut self, session: &Session) {
        if let Some(place) = place_of(session) {
            self.0[place] += 1;
        }
    }

    /// Counts a session no longer that is about to be removed.
    pub(super) fn remove(&mut self, session: &Session) {
        if let Some(place) = place_of(session) {
            self.0[place] = self.0[place].saturating_sub(1);
        }
    }

    pub(super) fn has(&self, addr: TranslatedAddr, port: u16) -> bool {
        self.0[place(addr, port)] > 0
    }

    /// Panics if the counts are not those of the table: for tests and simulations.
    pub(super) fn check_invariants(&self, table: &Table) {
        let mut counts = Connected::default();
        for (_, session) in table.iter() {
            counts.add(session);
        }
        assert!(self.0 == counts.0, "TCP sessions that are counted wrong");
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
