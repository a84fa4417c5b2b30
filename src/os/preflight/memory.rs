//! Whether there is enough memory for the session table.

use std::fs;

use super::{Check, MachineProblem};
use crate::os::memory;
use tandemgw_core::config::Config;
use tandemgw_core::fast_path::MOST_SESSIONS;

/// Bytes of a session that is translated and has a mapping, and what replication adds: see the
/// chapter about sizing.
const SESSION: u64 = 162;
const REPLICATED: u64 = 16;

/// Bytes of a session on the fast path: its cell and places in the index, which the kernel has, and
/// what the process has of it.
const FAST: u64 = 320;

/// The size of a full table, compared with the available memory.
pub(super) fn check(config: &Config, is_running: bool) -> Check {
    let (table, fast_path) = (table(config), fast_path(config));
    let needed = table + fast_path;
    let said = format!(
        "max-sessions = {} takes {} when the table is full{}",
        config.node.max_sessions,
        show(needed),
        match fast_path {
            0 => "",
            _ => ", with the fast path",
        }
    );
    let available = available();
    let problem = match available {
        _ if is_running => None,
        _ if !memory::can_map(table) => Some(MachineProblem::fatal(
            format!("{said}: this process can't use as much"),
            "lower `max-sessions` in `[node]`, or raise the limit (ulimit -v, LimitAS=)",
        )),
        Some(available) if available < needed => Some(MachineProblem::warning(
            format!("{said}, and {} are available", show(available)),
            "lower `max-sessions` in `[node]`, or give the machine more memory: without it the \
             process is killed when it needs it",
        )),
        _ => None,
    };
    Check::new("memory", said.clone(), problem)
}

fn table(config: &Config) -> u64 {
    let replicated = if config.ha.is_some() { REPLICATED } else { 0 };
    u64::from(config.node.max_sessions) * (SESSION + replicated)
}

/// What the fast path may take, where a port may have it.
fn fast_path(config: &Config) -> u64 {
    let mut ports = config.ports.iter();
    match ports.any(|port| port.offload.wants_fast_path()) {
        true => u64::from(config.node.max_sessions.min(MOST_SESSIONS)) * FAST,
        false => 0,
    }
}

/// The memory still available to this process: of the machine, or of its control group if that has
/// a limit.
fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    });
    machine.into_iter().chain(control_group()).min()
}

/// The rest of `memory.max` (cgroups(7), version 2).
fn control_group() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let value = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{path}/{file}")).ok()?;
        text.trim().parse().ok()
    };
    Some(value("memory.max")?.saturating_sub(value("memory.current")?))
}

fn show(bytes: u64) -> String {
    match bytes {
        0..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}
