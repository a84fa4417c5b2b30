//! The faults of a run, and how often they happen.

use std::time::Duration;

/// The faults that a run may have. Chances are per mille: of a datagram or packet, or of each
/// moment at which something is changed.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub heartbeat_loss: u64,
    pub heartbeat_copies: u64,
    pub packet_loss: u64,
    /// Delays up to this; what is sent later may arrive earlier, but for bytes of a stream.
    pub most_delay: Duration,
    /// Bytes that a stream takes before the receiver has read them.
    pub stream_window: usize,
    /// A link between two units, both ways.
    pub link_cuts: u64,
    /// One way only.
    pub one_way_cuts: u64,
    /// All links between two units.
    pub isolations: u64,
    /// The data network falls into two parts.
    pub splits: u64,
    pub port_downs: u64,
    /// A port that carries one way only.
    pub half_ports: u64,
    /// A stream ends while its link works.
    pub stream_breaks: u64,
    /// A stream that is slower than what is written, from its beginning to its end.
    pub slow_streams: u64,
    /// A unit that reads no streams for a while.
    pub slow_readers: u64,
    /// All links of a unit lose carrier.
    pub carrier_losses: u64,
    /// A hint that a peer has died, which has not.
    pub false_hints: u64,
    /// Forged packets of a host, by the tick.
    pub attacks: u64,
    /// A unit that is not scheduled for a while.
    pub pauses: u64,
    /// A process that is killed (its kernel says so) or a machine that loses power (nobody does).
    pub crashes: u64,
    /// A process that is asked to end.
    pub stops: u64,
    pub starts: u64,
    pub handovers: u64,
    /// A config file that is edited and read.
    pub reloads: u64,
    /// A switch of `[ha]` that is set.
    pub switches: u64,
}

impl Faults {
    /// Everything.
    pub const ALL: Faults = Faults {
        heartbeat_loss: 30,
        heartbeat_copies: 30,
        packet_loss: 20,
        most_delay: Duration::from_micros(1500),
        stream_window: 8 * 1024,
        link_cuts: 200,
        one_way_cuts: 60,
        isolations: 60,
        splits: 80,
        port_downs: 80,
        half_ports: 50,
        stream_breaks: 100,
        slow_streams: 200,
        slow_readers: 150,
        carrier_losses: 60,
        false_hints: 100,
        attacks: 200,
        pauses: 120,
        crashes: 100,
        stops: 60,
        starts: 500,
        handovers: 250,
        reloads: 150,
        switches: 150,
    };

    /// Only what a good network does.
    pub const NONE: Faults = Faults {
        heartbeat_loss: 0,
        heartbeat_copies: 0,
        packet_loss: 0,
        most_delay: Duration::from_micros(300),
        stream_window: 64 * 1024,
        link_cuts: 0,
        one_way_cuts: 0,
        isolations: 0,
        splits: 0,
        port_downs: 0,
        half_ports: 0,
        stream_breaks: 0,
        slow_streams: 0,
        slow_readers: 0,
        carrier_losses: 0,
        false_hints: 0,
        attacks: 0,
        pauses: 0,
        crashes: 0,
        stops: 0,
        starts: 0,
        handovers: 0,
        reloads: 0,
        switches: 0,
    };
}
