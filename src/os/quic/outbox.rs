//! Events for the caller.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use tandemgw_core::flow::{LinkId, PeerId};
use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::pump::PeerEvent;
use tandemgw_core::random::SplitMix64;

use super::Counters;
use super::gate::Bucket;
use super::tuning::Role;

/// Events of one role that wait for the caller; above it, received data stays in QUIC, where other
/// limits hold.
const MAX_EVENTS: usize = 4096;
/// Stream bytes in events that wait for the caller.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Refusals are logged once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub(super) struct Outbox {
    /// These come first: a heartbeat must not wait for stream data.
    heartbeat: VecDeque<PeerEvent>,
    sync: VecDeque<PeerEvent>,
    /// These come last.
    passed_on: VecDeque<PeerEvent>,
    /// Stream bytes in `sync`.
    bytes: usize,
    /// By peer and link: how many [`PeerEvent::SyncUp`] are in `sync`.
    unheard: BTreeMap<(PeerId, LinkId), usize>,
    pub(super) counters: Counters,
    /// For handshakes by unknown senders, over all links.
    pub(super) strangers: Bucket,
    random: SplitMix64,
    last_log: Option<Instant>,
    /// After the goodbye nobody is dialled or accepted.
    pub(super) leaving: bool,
}

impl Outbox {
    pub(super) fn new(seed: u64) -> Outbox {
        Outbox {
            random: SplitMix64(seed),
            ..Outbox::default()
        }
    }

    pub(super) fn push(&mut self, event: PeerEvent) {
        match &event {
            PeerEvent::HeartbeatUp { .. }
            | PeerEvent::HeartbeatDown { .. }
            | PeerEvent::Datagram { .. }
            | PeerEvent::Incompatible { .. }
            | PeerEvent::Refused { .. } => return self.heartbeat.push_back(event),
            PeerEvent::PassedOn { .. } => {
                if self.passed_on.len() < MAX_EVENTS {
                    self.passed_on.push_back(event);
                }
                return;
            }
            PeerEvent::SyncData { bytes, .. } => self.bytes += bytes.len(),
            PeerEvent::SyncUp { peer, link } => {
                *self.unheard.entry((*peer, *link)).or_default() += 1;
            }
            PeerEvent::SyncDown { .. } | PeerEvent::SyncWritable { .. } => {}
        }
        self.sync.push_back(event);
    }

    pub(super) fn pop(&mut self) -> Option<PeerEvent> {
        let event = self
            .heartbeat
            .pop_front()
            .or_else(|| self.sync.pop_front())
            .or_else(|| self.passed_on.pop_front())?;
        match &event {
            PeerEvent::SyncData { bytes, .. } => self.bytes -= bytes.len(),
            PeerEvent::SyncUp { peer, link } => self.note_heard((*peer, *link)),
            _ => {}
        }
        Some(event)
    }

    fn note_heard(&mut self, stream: (PeerId, LinkId)) {
        match self.unheard.get_mut(&stream) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.unheard.remove(&stream)),
        }
    }

    /// Whether the caller has not yet polled that the streams to `peer` over `link` were opened.
    pub(super) fn is_unheard(&self, peer: PeerId, link: LinkId) -> bool {
        self.unheard.contains_key(&(peer, link))
    }

    /// Takes back the rest of a piece of a stream, as the next event after heartbeats.
    pub(super) fn put_back(&mut self, event: PeerEvent) {
        if let PeerEvent::SyncData { bytes, .. } = &event {
            self.bytes += bytes.len();
        }
        self.sync.push_front(event);
    }

    /// Whether received data may be added.
    pub(super) fn has_room(&self, role: Role) -> bool {
        match role {
            Role::Heartbeat => self.heartbeat.len() < MAX_EVENTS,
            Role::Sync => self.sync.len() < MAX_EVENTS && self.room() > 0,
        }
    }

    /// How many stream bytes may be added.
    pub(super) fn room(&self) -> usize {
        MAX_EVENT_BYTES.saturating_sub(self.bytes)
    }

    /// Between half of `full` and all of it so that units do not act in step.
    pub(super) fn jitter(&mut self, full: Duration) -> Duration {
        let share = self.random.below(1024) as u32;
        full / 2 + full / 2 * share / 1024
    }

    /// Counts a handshake that failed, and logs it unless one was logged lately.
    pub(super) fn refused(&mut self, now: Instant, text: fmt::Arguments<'_>) {
        self.counters.handshakes_refused += 1;
        if self.last_log.is_none_or(|last| now >= last + LOG_INTERVAL) {
            self.last_log = Some(now);
            log::warn!(
                "peer refused why={} limit=\"one such line a minute\"",
                InQuotes(&text)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandemgw_core::pump::DownReason;

    #[test]
    fn jitter_stays_in_its_half() {
        let mut out = Outbox::new(1);
        let full = Duration::from_millis(100);
        let pauses: Vec<_> = (0..1000).map(|_| out.jitter(full)).collect();
        assert!(pauses.iter().all(|pause| (full / 2..=full).contains(pause)));
        let early = pauses.iter().filter(|pause| **pause < full * 3 / 4).count();
        assert!((400..600).contains(&early), "{early}");
    }

    #[test]
    fn heartbeats_overtake_and_stream_bytes_are_counted() {
        let (peer, link) = (PeerId(0), LinkId(0));
        let mut out = Outbox::new(1);
        let bytes = bytes::Bytes::from(vec![0; MAX_EVENT_BYTES]);
        let data = PeerEvent::SyncData { peer, link, bytes };
        out.push(data.clone());
        assert!(!out.has_room(Role::Sync) && out.has_room(Role::Heartbeat));
        out.push(PeerEvent::Refused { peer, link });
        assert_eq!(out.pop(), Some(PeerEvent::Refused { peer, link }));
        assert_eq!(out.pop(), Some(data));
        assert_eq!(out.pop(), None);
        assert_eq!(out.room(), MAX_EVENT_BYTES);
    }

    #[test]
    fn a_stream_is_unheard_until_all_that_was_said_of_it_is_polled() {
        let (peer, link) = (PeerId(1), LinkId(0));
        let reason = DownReason::Replaced;
        let mut out = Outbox::new(1);
        out.push(PeerEvent::SyncUp { peer, link });
        out.push(PeerEvent::SyncDown { peer, link, reason });
        out.push(PeerEvent::SyncUp { peer, link });
        let heard: Vec<bool> = (0..3)
            .map(|_| out.pop().is_some() && !out.is_unheard(peer, link))
            .collect();
        assert_eq!(heard, [false, false, true]);
        assert!(!out.is_unheard(peer, LinkId(1)));
    }
}
