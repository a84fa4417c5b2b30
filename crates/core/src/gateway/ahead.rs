//! Reading ahead: the memory that the next few packets need is fetched for all of them together.
//!
//! With a million sessions nearly every read of a table misses the cache: index, session, mapping.
//! One after the other, these waits take more than half of the gateway's own time for a packet.

use crate::event::Offload;
use crate::packet;

use super::Gateway;

/// The most packets read ahead.
pub const READ_AHEAD: usize = 8;

/// Fewer sessions than this stay in the cache anyway.
const MANY_SESSIONS: u32 = 10_000;

impl Gateway {
    /// How many packets the shell should read before it passes them on: 1 to [`READ_AHEAD`].
    pub fn read_ahead(&self) -> usize {
        if self.sessions.table().len() < MANY_SESSIONS {
            1
        } else {
            READ_AHEAD
        }
    }

    /// Prefetches the memory that [`Gateway::handle_packet`] will need for `packets`; those beyond
    /// [`READ_AHEAD`] are ignored. Only saves time.
    pub fn announce_packets<'a>(&self, packets: impl Iterator<Item = (&'a [u8], Offload)>) {
        let mut flows = [None; READ_AHEAD];
        for (flow, (bytes, offload)) in flows.iter_mut().zip(packets) {
            let key = packet::parse(bytes, offload).ok().map(|parsed| parsed.key);
            *flow = key.map(|key| (self.sessions.table().hash(&key), key));
        }
        // Each of these loops is short, so that all its reads are in flight together.
        for (hash, _) in flows.iter().flatten() {
            self.sessions.table().touch_index(*hash);
        }
        for (hash, key) in flows.iter().flatten() {
            if !self.sessions.table().touch_session(*hash) {
                self.sessions.nat().touch_source(key);
            }
        }
    }
}
