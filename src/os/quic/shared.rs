//! The parts that all links share.

use std::sync::Arc;
use std::time::Instant;

use quinn_proto::{ClientConfig, ServerConfig};

use super::gate::Mark;
use super::outbox::Outbox;
use super::tuning::Timeouts;
use tandemgw_core::identity::PublicKey;

/// Application error codes (RFC 9000, section 20.2).
pub(super) mod code {
    pub(in super::super) const CLOSED: u32 = 0;
    pub(in super::super) const GOODBYE: u32 = 1;
    pub(in super::super) const REPLACED: u32 = 2;
    pub(in super::super) const VIOLATION: u32 = 3;
    pub(in super::super) const UNEXPECTED: u32 = 4;
}

/// A peer, as all links see it.
pub(super) struct QuicPeer {
    pub(super) name: String,
    pub(super) key: PublicKey,
    /// A reload has taken it out of the config: it is neither dialled nor let in.
    pub(super) removed: bool,
    /// Whether we dial, or it does.
    pub(super) dialled: bool,
    /// On the first packets of what it dials.
    pub(super) mark: Mark,
    /// By role.
    pub(super) clients: [ClientConfig; 2],
}

/// The parts that all links share; no link changes them.
pub(super) struct Shared {
    pub(super) peers: Vec<QuicPeer>,
    pub(super) timeouts: Timeouts,
    /// By role.
    pub(super) servers: [Arc<ServerConfig>; 2],
}

/// The surroundings of a call.
pub(super) struct Context<'a> {
    pub(super) shared: &'a Shared,
    pub(super) out: &'a mut Outbox,
    pub(super) now: Instant,
}
