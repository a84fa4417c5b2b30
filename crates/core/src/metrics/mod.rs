//! The page that a Prometheus server scrapes: the names ([`catalog`]), the text, and the HTTP
//! around it; no socket. The state is read only at a scrape, so it costs nothing before, and in
//! pieces, so that no packet waits.

pub mod catalog;
pub mod http;

mod cluster;
mod page;
mod traffic;

use std::time::Duration;

use crate::gateway::Gateway;
use crate::shell_view::ShellView;
use crate::time::Time;

pub use crate::histogram::Histogram;
pub use page::{Metric, MetricKind};

use page::Page;

/// A piece of the page ends when it is longer than this, in bytes: some 20 µs.
const PIECE: usize = 16 * 1024;

/// The sources of the metrics.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The core, from which nearly all samples come.
    pub gateway: &'a Gateway,
    /// The facts that only the shell knows.
    pub shell: &'a ShellView,
    /// The kernel's statistics about the process.
    pub process: &'a Process,
    /// The moment of the scrape: ages are relative to it.
    pub now: Time,
}

/// The kernel's statistics about the process; unknown values are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// Its start, since the epoch.
    pub started: Option<Duration>,
    /// User and system time.
    pub cpu: Option<Duration>,
    /// Bytes in RAM.
    pub resident: Option<u64>,
    /// Bytes mapped.
    pub mapped: Option<u64>,
    /// Descriptors that are open.
    pub open_fds: Option<u64>,
    /// Descriptors that may be open.
    pub max_fds: Option<u64>,
}

/// A page in progress: call [`Exposition::go_on`] until it is complete.
#[derive(Debug, Default)]
pub struct Exposition {
    /// Of [`PARTS`], how many are written.
    written: usize,
}

/// A part of the page: some metrics, all samples of each.
type Part = fn(&View<'_>, &mut Page<'_>);

/// The page. The order of the metrics is that of the catalog.
const PARTS: &[Part] = &[
    traffic::build,
    traffic::packets,
    traffic::ports,
    traffic::targets,
    traffic::sessions,
    traffic::fast_path,
    traffic::pools,
    cluster::groups,
    cluster::witness,
    cluster::peers,
    cluster::replication,
    cluster::links,
    traffic::turns,
    process,
];

impl Exposition {
    /// Appends the next piece to `out`; returns whether there is more.
    pub fn go_on(&mut self, view: &View<'_>, out: &mut String) -> bool {
        let end = out.len().saturating_add(PIECE);
        while let Some(part) = PARTS.get(self.written).filter(|_| out.len() < end) {
            part(view, &mut Page { out });
            self.written += 1;
        }
        self.written < PARTS.len()
    }
}

fn process(view: &View<'_>, page: &mut Page<'_>) {
    let Process {
        started,
        cpu,
        resident,
        mapped,
        open_fds,
        max_fds,
    } = view.process;
    let seconds = |time: &Duration| time.as_secs_f64();
    if let Some(cpu) = cpu.as_ref().map(seconds) {
        page.one(&catalog::CPU, cpu);
    }
    let sizes = [
        (&catalog::RESIDENT, resident),
        (&catalog::VIRTUAL, mapped),
        (&catalog::OPEN_FDS, open_fds),
        (&catalog::MAX_FDS, max_fds),
    ];
    for (metric, value) in sizes {
        if let Some(value) = value {
            page.one(metric, value);
        }
    }
    if let Some(started) = started.as_ref().map(seconds) {
        page.one(&catalog::STARTED, started);
    }
}
