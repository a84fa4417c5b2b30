//! A capture: the filter that an administrator set, and copies of matching packets until a client
//! has fetched them.
//!
//! It never delays a packet: if the client is too slow, copies that do not fit are lost, and
//! counted. The gateway records (`gateway/capture.rs`); `control/capture.rs` fetches.

mod filter;
mod ring;

use crate::config::Config;
use crate::event::{DropReason, Verdict};
use crate::flow::{FlowKey, PolicyId, PortId};
use crate::policy::Ruleset;
use crate::session::SessionId;
use crate::time::Time;

use ring::Ring;

pub use filter::{Filter, KEYS as FILTER_KEYS};

/// Bytes captured of each packet by default: all.
pub const MAX_SNAPSHOT: u32 = 262_144;
/// The smallest snapshot length: room for the headers.
pub(crate) const MIN_SNAPSHOT: u32 = 64;

/// What to capture.
#[derive(Clone, Debug)]
pub struct Options {
    /// A packet is captured if it matches as it came in or as it leaves.
    pub filter: Filter,
    /// Bytes of each packet, from [`MIN_SNAPSHOT`] to [`MAX_SNAPSHOT`].
    pub snapshot: u32,
    /// Packets to capture; a forwarded packet counts twice, as it came in and as it left.
    pub count: u64,
}

/// The outcome for a captured packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapturedFate {
    /// It was forwarded.
    Forward,
    /// It was discarded.
    Drop(DropReason),
    /// The gateway kept it: it answered, or the packet waits.
    Consumed,
    /// The gateway made it, to answer another one.
    Answer,
}

impl CapturedFate {
    /// The names of the fates in filters and comments.
    pub const NAMES: [&str; 4] = ["forward", "drop", "consumed", "answer"];

    /// One of [`CapturedFate::NAMES`].
    pub fn name(self) -> &'static str {
        match self {
            CapturedFate::Forward => CapturedFate::NAMES[0],
            CapturedFate::Drop(_) => CapturedFate::NAMES[1],
            CapturedFate::Consumed => CapturedFate::NAMES[2],
            CapturedFate::Answer => CapturedFate::NAMES[3],
        }
    }

    /// Why it was dropped, if it was.
    pub fn reason(self) -> Option<DropReason> {
        match self {
            CapturedFate::Drop(reason) => Some(reason),
            _ => None,
        }
    }
}

impl From<Verdict> for CapturedFate {
    fn from(verdict: Verdict) -> CapturedFate {
        match verdict {
            Verdict::Forward => CapturedFate::Forward,
            Verdict::Drop(reason) => CapturedFate::Drop(reason),
            Verdict::Consumed => CapturedFate::Consumed,
        }
    }
}

/// Facts about a packet, known once it was handled.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// When the gateway received or created it.
    pub at: Time,
    /// The port that it came in by; none if the gateway made it.
    pub in_port: Option<PortId>,
    /// The port that it left by.
    pub out_port: Option<PortId>,
    /// Its outcome, as far as known when the copy is made.
    pub fate: CapturedFate,
    /// Its session, or the one that it opened; none if it has ended by then.
    pub session: Option<SessionId>,
    /// The policy that accepted its session, or that refused it.
    pub policy: Option<PolicyId>,
    /// Its flow as it came in; none if it could not be parsed.
    pub before: Option<FlowKey>,
    /// Its flow as it left.
    pub after: Option<FlowKey>,
    /// Whether its session translates it.
    pub translated: bool,
    /// Whether it had waited, and left later than it came in.
    pub released: bool,
    /// Transport payload bytes of each segment of a super-packet; 0 for an ordinary packet.
    pub segment_size: u16,
}

/// A copy of a packet at one of the ports.
#[derive(Clone, Debug)]
pub struct Record {
    /// Facts about the packet.
    pub facts: Facts,
    /// The same in both copies of a packet: as it came in, and as it left.
    pub packet: u64,
    /// The port whose interface it passes.
    pub port: PortId,
    /// As it left, rather than as it came in.
    pub outbound: bool,
    /// Full length of the packet; `bytes` may be only the beginning.
    pub length: u32,
    /// The packet from its IP header on.
    pub bytes: Box<[u8]>,
}

/// Numbers of copies at a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Copies that matched the filter.
    pub matched: u64,
    /// Those of them that were lost for lack of room.
    pub lost: u64,
}

/// A packet to be recorded, as it passes one of the ports.
pub struct Sight<'a> {
    /// The port whose interface it passes.
    pub port: PortId,
    /// As it left, rather than as it came in.
    pub outbound: bool,
    /// The packet; bytes beyond the snapshot length may be missing.
    pub bytes: &'a [u8],
    /// The length of the whole packet.
    pub length: usize,
}

/// A running capture.
pub struct Capture {
    options: Options,
    started: Time,
    ring: Ring,
    recording: bool,
    left: u64,
    next_packet: u64,
    statistics: Vec<Statistics>,
    /// The packet that is being handled, as it came in.
    copy: Vec<u8>,
}

impl Capture {
    /// A capture that starts at `now`, for a gateway with this many ports.
    pub fn new(options: Options, ports: usize, now: Time) -> Capture {
        Capture {
            started: now,
            ring: Ring::default(),
            recording: options.count > 0,
            left: options.count,
            next_packet: 0,
            statistics: vec![Statistics::default(); ports],
            copy: Vec::new(),
            options,
        }
    }

    /// Whether it still takes packets; some may still have to be fetched.
    pub(crate) fn is_recording(&self) -> bool {
        self.recording
    }

    /// Stops taking packets.
    pub fn finish(&mut self) {
        self.recording = false;
    }

    /// When it started.
    pub fn started(&self) -> Time {
        self.started
    }

    /// The next copy in the order of time.
    pub fn fetch(&mut self) -> Option<Record> {
        self.ring.pop()
    }

    /// Whether all captured packets have been fetched.
    pub(crate) fn is_fetched(&self) -> bool {
        self.ring.is_empty()
    }

    /// Numbers of copies, by port.
    pub fn statistics(&self) -> &[Statistics] {
        &self.statistics
    }

    /// The same for all ports together.
    pub fn total(&self) -> Statistics {
        let add = |sum: Statistics, port: &Statistics| Statistics {
            matched: sum.matched + port.matched,
            lost: sum.lost + port.lost,
        };
        self.statistics.iter().fold(Statistics::default(), add)
    }

    /// The place of the copies of the next packet.
    pub(crate) fn place(&self) -> usize {
        self.ring.len()
    }

    /// A copy of `bytes` up to the snapshot length, in a buffer to return to
    /// [`Capture::take_back`].
    pub(crate) fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut copy = std::mem::take(&mut self.copy);
        copy.clear();
        copy.extend_from_slice(&bytes[..bytes.len().min(self.options.snapshot as usize)]);
        copy
    }

    pub(crate) fn take_back(&mut self, copy: Vec<u8>) {
        self.copy = copy;
    }

    /// Whether the filter matches a packet.
    pub(crate) fn wants(&self, facts: &Facts, config: &Config, ruleset: &Ruleset) -> bool {
        self.recording && self.options.filter.matches(facts, config, ruleset)
    }

    /// Records a packet at the ports where it was seen, at `place` in the order of records: all
    /// copies of it or, if there is no room, none.
    pub(crate) fn record(&mut self, facts: Facts, place: usize, sights: &[Sight<'_>]) {
        let sights = &sights[..sights
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX))];
        let snapshot = self.options.snapshot as usize;
        let kept = |sight: &Sight<'_>| sight.bytes.len().min(snapshot);
        let has_room = self
            .ring
            .has_room(sights.len(), sights.iter().map(kept).sum());
        for (index, sight) in sights.iter().enumerate() {
            let statistics = &mut self.statistics[sight.port.index()];
            statistics.matched += 1;
            if !has_room {
                statistics.lost += 1;
                continue;
            }
            self.left -= 1;
            let record = Record {
                facts,
                packet: self.next_packet,
                port: sight.port,
                outbound: sight.outbound,
                length: sight.length as u32,
                bytes: sight.bytes[..kept(sight)].into(),
            };
            self.ring.insert(place + index, record);
        }
        self.next_packet += 1;
        self.recording &= self.left > 0;
    }
}
