//! A record is encoded once: the bytes that one peer was sent go to all others that wait for the
//! same changes.

use super::peer::SyncPeer;
use crate::flow::{GroupId, GroupSet};
use crate::store::{Journal, Seq};
use crate::time::Tick;

/// More than that is encoded again for each peer: it would be kept for too long.
const MOST: usize = 64 * 1024;

/// The last changes that were encoded, from one position in the log to its end.
#[derive(Debug, Default)]
pub(super) struct Fanned {
    from: Seq,
    /// The end of the log by then.
    to: Seq,
    /// The end of the last batch.
    sent: Seq,
    /// Times in records are durations until then.
    at: Tick,
    /// The groups whose changes are among them.
    told: GroupSet,
    /// Sessions, and their ends as well.
    counts: (u64, u64),
    bytes: Vec<u8>,
}

impl Fanned {
    /// Keeps what was written for a peer that was at `from`, and is at the end of the log now:
    /// `counts` sessions, and changes in all.
    pub(super) fn keep(
        &mut self,
        (from, to, at): (Seq, Seq, Tick),
        peer: &SyncPeer,
        (bytes, counts): (&[u8], (u64, u64)),
    ) {
        self.bytes.clear();
        if bytes.len() > MOST {
            return;
        }
        self.bytes.extend_from_slice(bytes);
        (self.from, self.to, self.at) = (from, to, at);
        (self.told, self.sent, self.counts) = (told(peer), peer.sender.sent, counts);
    }

    /// Writes that for the peer with index `at`, if it is to get the same and it fits below
    /// `limit`. Returns how many sessions these are.
    pub(super) fn repeat(
        &self,
        at: usize,
        peer: &mut SyncPeer,
        out: &mut Vec<u8>,
        limit: usize,
        (journal, now): (&mut Journal, Tick),
    ) -> Option<u64> {
        let log = journal.log();
        let is_same = !self.bytes.is_empty()
            && (self.from, self.to, self.at) == (log.read_up_to(at), log.last(), now)
            && self.told == told(peer)
            && out.len() + self.bytes.len() <= limit
            && journal.refused(at).is_some_and(|it| it.is_clear());
        if !is_same {
            return None;
        }
        out.extend_from_slice(&self.bytes);
        journal.log_mut().skip_to_end(at);
        peer.sender.sent = self.sent;
        peer.traffic.changes_sent += self.counts.1;
        Some(self.counts.0)
    }
}

/// The groups of which a peer is told.
fn told(peer: &SyncPeer) -> GroupSet {
    let told = (0..).map(GroupId).zip(&peer.sender.told);
    let told = told.filter(|(_, term)| term.is_some());
    told.map(|(group, _)| group).collect()
}
