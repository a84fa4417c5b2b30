//! Helpers shared by tests, benches and the simulator.
//!
//! - [`fast_path`]: the program in the kernel, as a model.
//! - [`lab`]: a gateway's core with its network; each step names every counter that moves.
//! - [`packets`]: packets described by their meaning, built by etherparse.
//! - [`pair`]: two units that follow each other in memory.
//! - `system` (feature `system`): network namespaces, and processes in them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![warn(unreachable_pub)]

pub mod fast_path;
pub mod lab;
pub mod packets;
pub mod pair;
#[cfg(feature = "system")]
pub mod system;
