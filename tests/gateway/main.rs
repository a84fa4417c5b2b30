//! The core as a whole, through its public interface only, under virtual time.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod announce;
mod asymmetric;
mod capture;
mod corners;
mod explain;
mod fast_path;
mod forwarded;
mod fragments;
mod icmp_errors;
mod multicast;
mod multicast_reload;
mod must_pass;
mod neighbors;
mod odd_packets;
mod pump;
mod random;
mod refusals;
mod reload;
mod routes;
mod session_log;
mod sessions;
mod slots;
mod takeover;
