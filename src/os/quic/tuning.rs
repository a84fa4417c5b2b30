//! The QUIC parameters of the two roles that a connection can have.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, ConnectionId, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use ring::{hkdf, hmac};

use super::gate::{Mark, OwnIds};
use super::tls::Credentials;
use crate::node_key::NodeKey;
use tandemgw_core::config::Ha;
use tandemgw_core::identity::PublicKey;

/// Received stream bytes that wait for the application, and the most that a peer may have in
/// flight.
const SYNC_RECEIVE_WINDOW: u32 = 8 << 20;
/// Written stream bytes that are kept until acknowledged. Small, because what is written here can
/// no longer be replaced by a newer state of the same session.
const SYNC_SEND_WINDOW: u64 = 2 << 20;
/// A LAN takes this much in the first round trip.
const SYNC_INITIAL_WINDOW: u64 = 256 << 10;
/// Unread heartbeats, in bytes; the oldest is dropped.
const DATAGRAM_RECEIVE_BUFFER: usize = 64 << 10;
/// Unsent heartbeats, in bytes; the oldest is dropped, since only the newest says something.
const DATAGRAM_SEND_BUFFER: usize = 8 << 10;
/// Packets that peers have passed on and that were not read yet, in bytes; the oldest is dropped.
const PASSED_RECEIVE_BUFFER: usize = 1 << 20;
/// Packets to be passed on that were not sent yet, in bytes; further ones are dropped.
const PASSED_SEND_BUFFER: usize = 1 << 20;
/// Before anything was measured. The links are local networks; a longer one costs a few repeats.
const INITIAL_RTT: Duration = Duration::from_millis(20);
/// Bytes of heartbeats in flight, whatever is lost (see [`FixedWindow`]).
const HEARTBEAT_WINDOW: u64 = 1 << 20;

/// The largest UDP payload that is sent or taken, on interfaces with jumbo frames (an MTU of 9000).
const LARGEST_PAYLOAD: u16 = 9000 - 28;
/// Packets of the stream for which a peer need not send an acknowledgement of QUIC at once. What
/// counts as a copy is acknowledged on the stream.
const UNACKNOWLEDGED: VarInt = VarInt::from_u32(8);

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Datagrams that must not wait behind anything.
    Heartbeat = 0,
    /// One ordered stream in each direction, and datagrams for packets that are passed on.
    Sync = 1,
}

impl Role {
    pub(super) const ALL: [Role; 2] = [Role::Heartbeat, Role::Sync];

    /// The application protocol (RFC 7301). That of the sync connection carries the version of the
    /// replication protocol.
    pub(super) fn alpn(self) -> &'static [u8] {
        match self {
            Role::Heartbeat => b"tandemgw-hb/3",
            Role::Sync => b"tandemgw/3",
        }
    }

    /// A client says its role in the first byte of the connection ID that it makes up for the
    /// server (RFC 9000, section 7.2), so that the server can choose its parameters before it
    /// answers. It is a hint only: with a wrong one the application protocols do not match.
    pub(super) fn of_initial_id(id: &ConnectionId) -> Role {
        match id.first() {
            Some(byte) if byte & 1 == Role::Sync as u8 => Role::Sync,
            _ => Role::Heartbeat,
        }
    }
}

/// Idle timeouts of the roles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts([Duration; 2]);

impl Timeouts {
    /// Longer than the election waits, so that it is the one to judge; short, so that a link that
    /// has healed gets a fresh connection instead of the rest of an old one's backoff.
    pub(super) fn new(ha: &Ha) -> Timeouts {
        let hold = ha.heartbeat_interval * ha.heartbeat_lost_threshold;
        let heartbeat = (hold * 10).clamp(Duration::from_millis(500), Duration::from_secs(600));
        Timeouts([heartbeat, heartbeat * 2])
    }

    fn of(self, role: Role) -> Duration {
        self.0[role as usize]
    }
}

/// The label under which the secret of [`OwnIds`] is derived.
pub(super) const OWN_IDS: &str = "quic connection ids";

/// The configuration of an endpoint whose resets a peer believes after a restart too.
pub(super) fn endpoint(key: &NodeKey) -> EndpointConfig {
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &key.derive("quic stateless reset")[..]);
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    let secret = key.derive(OWN_IDS);
    config.cid_generator(move || Box::new(OwnIds::new(&secret)));
    config.min_reset_interval(Duration::from_millis(5));
    let set = config.max_udp_payload_size(LARGEST_PAYLOAD);
    set.expect("a size that QUIC allows");
    config
}

/// The largest UDP payload to try on an interface with this MTU; discovery finds what gets through
/// (RFC 9000, section 14.3).
pub(super) fn payload(mtu: u32, is_ipv6: bool) -> u16 {
    let headers = if is_ipv6 { 48 } else { 28 };
    let room = mtu.saturating_sub(headers).min(LARGEST_PAYLOAD.into());
    u16::try_from(room).unwrap_or(LARGEST_PAYLOAD)
}

/// What dials; with [`transport`], which depends on the link.
pub(super) fn client(
    credentials: &Credentials,
    peer: PublicKey,
    mark: Mark,
    role: Role,
) -> Result<ClientConfig, rustls::Error> {
    let crypto = credentials.client(peer, role.alpn())?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.initial_dst_cid_provider(Arc::new(move || mark.initial_id(role)));
    Ok(config)
}

/// What accepts; with [`transport`], which depends on the link.
pub(super) fn server(
    credentials: &Credentials,
    peers: Vec<PublicKey>,
    key: &NodeKey,
    role: Role,
) -> Result<ServerConfig, rustls::Error> {
    let crypto = credentials.server(peers, role.alpn())?;
    let token_key = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&key.derive("quic token")[..]);
    let mut config = ServerConfig::new(Arc::new(crypto), Arc::new(token_key));
    config.migration(false);
    config.max_incoming(64);
    config.incoming_buffer_size(64 << 10);
    config.incoming_buffer_size_total(1 << 20);
    Ok(config)
}

/// The parameters of a connection over a link that carries payloads of `largest` bytes.
pub(super) fn transport(role: Role, timeouts: Timeouts, largest: u16) -> TransportConfig {
    let idle = timeouts.of(role);
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(largest);
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(UNACKNOWLEDGED);
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(IdleTimeout::try_from(idle).ok())
        .keep_alive_interval(Some(idle / 4))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .send_fairness(false)
        .allow_spin(false)
        .crypto_buffer_size(8 << 10);
    match role {
        Role::Heartbeat => config
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .receive_window(VarInt::from_u32(0))
            .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
            .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
            .congestion_controller_factory(Arc::new(FixedWindow)),
        Role::Sync => {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(SYNC_INITIAL_WINDOW);
            config
                .max_concurrent_uni_streams(VarInt::from_u32(1))
                .stream_receive_window(VarInt::from_u32(SYNC_RECEIVE_WINDOW))
                .receive_window(VarInt::from_u32(SYNC_RECEIVE_WINDOW))
                .send_window(SYNC_SEND_WINDOW)
                .datagram_receive_buffer_size(Some(PASSED_RECEIVE_BUFFER))
                .datagram_send_buffer_size(PASSED_SEND_BUFFER)
                .mtu_discovery_config(Some(discovery))
                .ack_frequency_config(Some(acknowledgements))
                .congestion_controller_factory(Arc::new(cubic))
        }
    };
    config
}

/// A congestion window that never changes.
///
/// Heartbeats are a low and constant load (RFC 8085, section 3.1.3), and they are what tells a
/// lossy link from a dead one: they must go on when others are lost.
#[derive(Clone)]
struct FixedWindow;

impl Controller for FixedWindow {
    fn on_congestion_event(
        &mut self,
        _now: Instant,
        _sent: Instant,
        _persistent: bool,
        _lost: u64,
    ) {
    }

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        HEARTBEAT_WINDOW
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        HEARTBEAT_WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for FixedWindow {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(FixedWindow)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use quinn_proto::{Connection, DatagramEvent, Dir, Endpoint};

    use super::*;

    /// The dialled end of a connection in memory, after the handshake.
    fn connect(role: Role) -> Connection {
        let keys = [1, 2].map(|seed| NodeKey::from_seed([seed; 32]));
        let [ours, theirs] = keys.each_ref().map(|key| Credentials::new(key).unwrap());
        let timeouts = Timeouts([Duration::from_secs(1); 2]);
        let transport = Arc::new(transport(role, timeouts, 1452));
        let mut server = server(&theirs, vec![keys[0].public()], &keys[1], role).unwrap();
        server.transport_config(transport.clone());
        let mark = Mark::new(keys[0].public(), keys[1].public());
        let mut client = client(&ours, keys[1].public(), mark, role).unwrap();
        client.transport_config(transport);
        let mut near = Endpoint::new(Arc::new(endpoint(&keys[0])), None, false, None);
        let server = Some(Arc::new(server));
        let mut far = Endpoint::new(Arc::new(endpoint(&keys[1])), server, false, None);
        let now = Instant::now();
        let address = "192.0.2.1:7030".parse().unwrap();
        let (_, mut dialled) = near.connect(now, client, address, "tandemgw").unwrap();
        let mut accepted: Option<Connection> = None;
        for _ in 0..10 {
            let (mut bytes, mut response) = (Vec::new(), Vec::new());
            while dialled.poll_transmit(now, 1, &mut bytes).is_some() {
                let data = BytesMut::from(&bytes[..]);
                match far.handle(now, address, None, None, data, &mut response) {
                    Some(DatagramEvent::NewConnection(incoming)) => {
                        let accept = far.accept(incoming, now, &mut response, None);
                        accepted = Some(accept.map_err(|error| error.cause).unwrap().1);
                    }
                    Some(DatagramEvent::ConnectionEvent(_, event)) => {
                        accepted.as_mut().unwrap().handle_event(event);
                    }
                    _ => {}
                }
                bytes.clear();
            }
            let far = accepted.as_mut().unwrap();
            while far.poll_transmit(now, 1, &mut bytes).is_some() {
                let data = BytesMut::from(&bytes[..]);
                let event = near.handle(now, address, None, None, data, &mut response);
                if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                    dialled.handle_event(event);
                }
                bytes.clear();
            }
        }
        assert!(!dialled.is_handshaking() && !dialled.is_closed());
        dialled
    }

    #[test]
    fn a_role_allows_what_it_needs_and_no_more() {
        let mut heartbeat = connect(Role::Heartbeat);
        assert_eq!(heartbeat.streams().open(Dir::Uni), None);
        assert_eq!(heartbeat.streams().open(Dir::Bi), None);
        assert!(heartbeat.datagrams().max_size() >= Some(1100));

        let mut sync = connect(Role::Sync);
        let stream = sync.streams().open(Dir::Uni).unwrap();
        assert_eq!(sync.streams().open(Dir::Uni), None);
        assert_eq!(sync.streams().open(Dir::Bi), None);
        assert!(sync.datagrams().max_size() >= Some(1100));
        let written = sync.send_stream(stream).write(&vec![0; 64 << 20]).unwrap();
        assert_eq!(written as u64, SYNC_SEND_WINDOW);
    }
}
