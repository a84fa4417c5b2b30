//! Handshakes that were refused: what the log and the status say of them.

use std::net::SocketAddr;

use quinn_proto::{ConnectionError, TransportErrorCode};
use tandemgw_core::flow::PeerId;
use tandemgw_core::gateway::Channel;
use tandemgw_core::pump::PeerEvent;

use super::shared::Context;
use super::tuning::Role;

/// A connection ended before it was up. `peers` are the one that it leads to, if it was dialled or
/// its key is known, and the one whose address that is.
pub(super) fn of_connection(
    error: &ConnectionError,
    peers: (Option<PeerId>, Option<PeerId>),
    remote: SocketAddr,
    role: Role,
    cx: &mut Context<'_>,
) {
    if has_no_common_protocol(error) {
        return incompatible(peers.0.or(peers.1), remote, role, cx);
    }
    let peer = peers.0.and_then(|peer| cx.shared.peers.get(peer.index()));
    match peer {
        Some(peer) => cx.out.refused(
            cx.now,
            format_args!(
                "no {role:?} connection to {} at {remote}: {error}; do the public keys in both configs match?",
                peer.name
            ),
        ),
        None => cx.out.refused(
            cx.now,
            format_args!(
                "no {role:?} connection from {remote}: {error}; is its public key that of a peer?"
            ),
        ),
    }
}

/// The first datagram of a connection was refused; it came from the address of `peer`.
pub(super) fn of_handshake(
    error: &ConnectionError,
    peer: Option<PeerId>,
    remote: SocketAddr,
    role: Role,
    cx: &mut Context<'_>,
) {
    match has_no_common_protocol(error) {
        true => incompatible(peer, remote, role, cx),
        false => cx.out.refused(
            cx.now,
            format_args!("handshake of {remote} refused: {error}"),
        ),
    }
}

/// Whether a handshake ended because the two speak no protocol in common (RFC 7301, section 3.2).
fn has_no_common_protocol(error: &ConnectionError) -> bool {
    const NO_APPLICATION_PROTOCOL: u8 = 120;
    let wanted = TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL);
    match error {
        ConnectionError::TransportError(error) => error.code == wanted,
        ConnectionError::ConnectionClosed(close) => close.error_code == wanted,
        _ => false,
    }
}

/// Tells that a unit at a peer's address speaks other versions. Nothing proves that it is the peer.
fn incompatible(peer: Option<PeerId>, remote: SocketAddr, role: Role, cx: &mut Context<'_>) {
    let ours = String::from_utf8_lossy(role.alpn());
    let (channel, what) = match role {
        Role::Heartbeat => (Channel::Heartbeats, "heartbeat"),
        Role::Sync => (Channel::Stream, "replication"),
    };
    let why = format!(
        "it speaks another version of the {what} protocol than {ours}, that of this unit: update the older one"
    );
    let name = peer.and_then(|peer| cx.shared.peers.get(peer.index()));
    let name = name.map_or("a unit", |peer| &*peer.name);
    cx.out
        .refused(cx.now, format_args!("{name} at {remote}: {why}"));
    if let Some(peer) = peer.filter(|_| cx.out.has_room(Role::Heartbeat)) {
        cx.out.push(PeerEvent::Incompatible { peer, channel, why });
    }
}
