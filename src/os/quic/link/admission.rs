//! Who is dialled, and who is let in.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn_proto::{ConnectionHandle, Incoming, ServerConfig, TransportConfig};

use super::super::connection::Conn;
use super::super::shared::{Context, code};
use super::super::tuning::{self, Role};
use super::super::{refusal, tls};
use super::{MAX_BACKOFF, QuicLink};
use tandemgw_core::flow::PeerId;
use tandemgw_core::pump::DownReason;

/// Accepted connections that have not proved a key, those refused a moment ago included: above the
/// first number a sender must show that it receives at its address, above the second it is ignored.
/// That bounds the time spent on handshakes too.
const HANDSHAKES_BEFORE_RETRY: usize = 4;
const MAX_HANDSHAKES: usize = 32;

impl QuicLink {
    pub(super) fn accept(&mut self, incoming: Incoming, cx: &mut Context<'_>) {
        let strangers = self
            .conns
            .iter()
            .flatten()
            .filter(|conn| conn.peer.is_none());
        let strangers = strangers.count();
        let validated = incoming.remote_address_validated();
        let remote = incoming.remote_address();
        // A peer dials from the address that it listens on: others can't take its place.
        let limit = match self.remotes.contains(&Some(remote)) {
            true => 2 * MAX_HANDSHAKES,
            false => MAX_HANDSHAKES,
        };
        if cx.out.leaving || strangers >= limit {
            cx.out.counters.handshakes_ignored += 1;
            return self.endpoint.ignore(incoming);
        }
        self.response.clear();
        if strangers >= HANDSHAKES_BEFORE_RETRY && !validated {
            match self.endpoint.retry(incoming, &mut self.response) {
                Ok(transmit) => self.socket.send(transmit, &self.response),
                Err(error) => self.endpoint.ignore(error.into_incoming()),
            }
            return;
        }
        let role = Role::of_initial_id(incoming.orig_dst_cid());
        let mut server = ServerConfig::clone(&cx.shared.servers[role as usize]);
        server.transport_config(self.transport(role, cx));
        let server = Arc::new(server);
        match self
            .endpoint
            .accept(incoming, cx.now, &mut self.response, Some(server))
        {
            Ok((handle, quic)) => self.insert(handle, Conn::new(quic, role, None)),
            Err(error) => {
                let peer = self.peer_at(remote.ip());
                refusal::of_handshake(&error.cause, peer, remote, role, cx);
                if let Some(transmit) = error.response {
                    self.socket.send(transmit, &self.response);
                }
            }
        }
    }

    /// The address to dial, if this unit dials that peer.
    pub(super) fn dialled(&self, index: usize, cx: &Context<'_>) -> Option<SocketAddr> {
        let peer = cx.shared.peers.get(index)?;
        let remote = self.remotes.get(index).copied().flatten()?;
        let can_dial = self.socket.is_bound() && !cx.out.leaving;
        (peer.dialled && !peer.removed && can_dial).then_some(remote)
    }

    pub(super) fn dial(&mut self, cx: &mut Context<'_>) {
        for (index, id) in (0..cx.shared.peers.len()).zip(0..) {
            let Some(remote) = self.dialled(index, cx) else {
                continue;
            };
            for role in Role::ALL {
                let slot = self.slots[index][role as usize];
                if slot.current.is_some() || slot.retry.is_some_and(|at| at > cx.now) {
                    continue;
                }
                let mut config = cx.shared.peers[index].clients[role as usize].clone();
                config.transport_config(self.transport(role, cx));
                let slot = &mut self.slots[index][role as usize];
                // The name is not sent; the key says who the other side is.
                match self.endpoint.connect(cx.now, config, remote, "tandemgw") {
                    Ok((handle, quic)) => {
                        slot.current = Some(handle);
                        self.insert(handle, Conn::new(quic, role, Some(PeerId(id))));
                    }
                    Err(error) => {
                        slot.retry = Some(cx.now + MAX_BACKOFF);
                        cx.out
                            .refused(cx.now, format_args!("can't dial {remote}: {error}"));
                    }
                }
            }
        }
    }

    /// The parameters of a new connection: the interface may have another MTU than before.
    fn transport(&self, role: Role, cx: &Context<'_>) -> Arc<TransportConfig> {
        let (timeouts, largest) = (cx.shared.timeouts, self.socket.payload());
        Arc::new(tuning::transport(role, timeouts, largest))
    }

    /// An accepted connection whose other side has proved its key. Since it was our part to verify
    /// last, it is confirmed.
    pub(super) fn admit(
        &mut self,
        handle: ConnectionHandle,
        conn: &mut Conn,
        cx: &mut Context<'_>,
    ) {
        let remote = conn.quic.remote_address();
        let key = tls::peer_key(&conn.quic);
        let index = cx
            .shared
            .peers
            .iter()
            .position(|peer| Some(peer.key) == key && !peer.removed);
        let expected = index.filter(|&index| {
            let address = self.remotes.get(index).copied().flatten();
            !cx.shared.peers[index].dialled && address.is_some_and(|a| a.ip() == remote.ip())
        });
        let Some(peer) = expected
            .and_then(|index| u8::try_from(index).ok())
            .map(PeerId)
        else {
            cx.out.refused(
                cx.now,
                format_args!(
                    "{remote} has the key of a peer that is not expected to dial from there"
                ),
            );
            return self.shut(handle, conn, code::UNEXPECTED, DownReason::Closed, cx);
        };
        let slot = &mut self.slots[peer.index()][conn.role as usize];
        if let Some(old) = slot.current.replace(handle)
            && let Some(mut former) = self.conns.get_mut(old.0).and_then(Option::take)
        {
            self.shut(old, &mut former, code::REPLACED, DownReason::Replaced, cx);
            self.conns[old.0] = Some(former);
        }
        conn.peer = Some(peer);
        self.bring_up(conn, cx);
    }
}
