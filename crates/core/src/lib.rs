//! The pure core of tandemgw: everything the gateway decides.
//!
//! It makes no system calls, reads no clock and draws no random numbers. Time, randomness and the
//! kernel's reports come in as arguments; packets, frames and other effects go out as data (only
//! log lines go straight to [`log`]). The shell, in the crate `tandemgw`, carries the effects out.
//! So the simulator, the tests and the benches run the same core as the gateway does.
//! ARCHITECTURE.md says how it works and why.
//!
//! In reading order:
//!
//! - [`flow`]: addresses, flow keys, directions, small ids: the vocabulary.
//! - [`time`]: the clock that the core is given.
//! - [`event`]: inputs and outputs, on one page; each reason to drop a packet.
//! - [`config`]: TOML → a validated configuration, all mistakes at once.
//! - [`packet`]: parse once, translate in place; the packets and frames that the gateway makes.
//! - [`session`]: the table, the TCP tracker, expiry.
//! - [`policy`], [`route`], [`nat`], [`fragment`]: decisions about packets without a session.
//! - [`multicast`]: IGMP and MLD, and who wants which group.
//! - [`ha`]: election, heartbeats, planned handover.
//! - [`store`]: the life of sessions: table, ports, change log and digests in step.
//! - [`sync`]: replication: wire format, sending to peers, applying their records.
//! - [`fast_path`]: what the gateway shares with the program in the kernel that forwards for it.
//! - [`gateway`]: composes them into one state machine.
//! - [`pump`]: between the streams to the peers and the gateway.
//! - [`capture`]: copies of packets for an administrator.
//! - [`control`]: an administrator's requests, and the answers.
//! - [`metrics`]: the page that a Prometheus server scrapes.
//! - [`shell_view`], [`histogram`]: the shell's report about itself, for those two.
//! - [`filter_words`]: the words of a filter, shared by listings and captures.
//! - [`identity`]: the public key of a node.
//! - [`random`]: reproducible numbers.
//! - [`log_limit`]: how many log lines an event may write.
//! - [`in_quotes`]: values of log lines.
//! - [`memory`]: where the big tables keep their entries.

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub)]

pub mod capture;
pub mod config;
pub mod control;
pub mod event;
pub mod evidence;
pub mod fast_path;
pub mod filter_words;
pub mod flow;
pub mod fragment;
pub mod gateway;
pub mod ha;
pub mod histogram;
pub mod identity;
pub mod in_quotes;
pub mod link_monitor;
pub mod log_limit;
pub mod memory;
pub mod metrics;
pub mod multicast;
pub mod nat;
pub mod packet;
pub mod policy;
pub mod pump;
pub mod push;
pub mod random;
pub mod route;
pub mod session;
pub mod shell_view;
pub mod store;
pub mod sync;
pub mod time;
