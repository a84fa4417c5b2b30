//! A stateful gateway for Linux whose sessions survive the death of the machine that carries them.
//!
//! This crate is the shell around [`tandemgw_core`], which decides everything and touches nothing:
//!
//! - [`os`]: TUN, netlink, sockets, signals, and the one event loop. Only it makes system calls.
//! - [`node_key`]: the secret key of a node.
//!
//! The commands are in the binary (`src/cli`). ARCHITECTURE.md says how it works and why.

#![warn(missing_docs, unreachable_pub)]

pub mod node_key;
pub mod os;
