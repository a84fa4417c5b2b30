//! What the shell reports about itself, for status and metrics.

use std::path::PathBuf;
use std::time::Duration;

use crate::histogram::Histogram;

/// What the shell knows and the core does not.
#[derive(Clone, Debug, Default)]
pub struct ShellView {
    /// The config file, absolute.
    pub config_file: PathBuf,
    /// By port.
    pub ports: Vec<PortIo>,
    /// The time of boot, since 1970: what [`Time`](crate::time::Time) counts from.
    pub boot: Duration,
    /// How long the turns of the event loop took.
    pub turns: Histogram,
    /// The rules in the kernel's packet filter that keep packets from bypassing the gateway.
    pub barrier: BarrierView,
    /// Why what the unit remembers over restarts is not in its file; none if it is.
    pub state_not_saved: Option<String>,
}

/// What the shell knows of the barrier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BarrierView {
    /// Why there is none; none if there is one.
    pub why_not: Option<String>,
    /// Packets that it has stopped.
    pub stopped: u64,
}

/// What the shell knows of a port.
#[derive(Clone, Debug)]
pub struct PortIo {
    /// Offloads in use: `tso+uso`, `tso` or `none`.
    pub offload: &'static str,
}
