//! The shell's report about itself, for status and metrics.

use std::path::PathBuf;
use std::time::Duration;

use crate::histogram::Histogram;

/// Facts that the shell knows and the core does not.
#[derive(Clone, Debug, Default)]
pub struct ShellView {
    /// The config file, absolute.
    pub config_file: PathBuf,
    /// Indexed by [`PortId`](crate::flow::PortId).
    pub ports: Vec<PortIo>,
    /// The time of boot, since 1970: what [`Time`](crate::time::Time) counts from.
    pub boot: Duration,
    /// How long the turns of the event loop took.
    pub turns: Histogram,
    /// The rules in the kernel's packet filter that keep packets from bypassing the gateway.
    pub barrier: BarrierView,
    /// Why the state that the unit remembers over restarts is not in its file; none if it is.
    pub state_not_saved: Option<String>,
    /// The configs that are kept, the last one first.
    pub history: Vec<KeptConfig>,
    /// Packets that the fast path has left to the process, by reason.
    pub fast_path: Vec<(&'static str, u64)>,
    /// Refusals on the links to the peers; none without `[ha]`.
    pub refused: Option<LinkRefusals>,
}

/// A config that was in force, and is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptConfig {
    /// Its number, which no other one gets.
    pub version: u64,
    /// When it came in force, in seconds since 1970.
    pub at: f64,
    /// The user who asked for it, or `file` if nobody known did.
    pub who: String,
    /// How it came in force: `start`, `reload`, `SIGHUP`, `rollback to 3`.
    pub how: String,
    /// The length of its texts, in bytes.
    pub bytes: u64,
    /// How many files it has.
    pub files: u64,
    /// Where it is kept.
    pub kept_in: PathBuf,
}

/// Connection attempts refused on the links to the peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkRefusals {
    /// Datagrams that may begin a handshake, came from the address of a peer, and exceeded the
    /// limit.
    pub handshakes_limited: u64,
    /// Handshakes that failed, mostly because of a key that is not in the config.
    pub handshakes_failed: u64,
    /// Datagrams from addresses that no peer has.
    pub foreign_datagrams: u64,
}

/// The state of the barrier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BarrierView {
    /// Why there is none; none if there is one.
    pub why_not: Option<String>,
    /// Packets that it has stopped.
    pub stopped: u64,
}

/// The state of a port in the shell.
#[derive(Clone, Debug)]
pub struct PortIo {
    /// Offloads in use: `tso+uso`, `tso` or `none`.
    pub offload: &'static str,
    /// Whether a program in the kernel forwards packets that come in by it.
    pub fast_path: FastPathState,
}

/// Whether a port is in the fast path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FastPathState {
    /// The config does not want it.
    #[default]
    Off,
    /// It is.
    On,
    /// Why it is not, although the config wants it.
    Unavailable(String),
}
