//! Filters the datagrams of a link before QUIC.
//!
//! A forged handshake costs its sender nothing and us a signature, some 170 µs. So a packet that
//! may start one must pass a token bucket first. One hash tells two things about a long header (RFC
//! 8999, section 5.1): whether its destination is a connection ID that this unit issued, and
//! whether it was made by a peer that knows both public keys. The second key never crosses the link
//! in the clear, so a blind attacker can't make such an ID, and a flood of forged packets keeps no
//! peer out.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid, RandomConnectionIdGenerator};
use ring::hmac;

use super::shared::QuicPeer;
use super::tuning::Role;
use tandemgw_core::identity::PublicKey;

/// Handshakes by an unknown sender, from the address of a connected peer.
const CONNECTED: Rate = Rate::per_second(4);
/// The same while the peer is not connected: it may have a version that sends no mark.
const UNCONNECTED: Rate = Rate::per_second(40);
/// Handshakes by unknown senders, over all links.
const ALL: Rate = Rate::per_second(60);
/// Handshake packets that are marked as a peer's, or that answer ours. Those can be recorded and
/// sent again. Two units that find each other need a dozen at once, for each role of a connection.
const MARKED: Rate = Rate::per_second(60).at_once(16);

/// Bytes of a connection ID that this unit gives out, and of the tag in it.
const OWN_ID: usize = 8;
const OWN_TAG: usize = 4;
/// Bytes of an ID that a client makes up for the server, and of the random part of it.
const INITIAL_ID: usize = 20;
const INITIAL_NONCE: usize = 8;

/// How often something may happen.
#[derive(Clone, Copy)]
struct Rate {
    interval: Duration,
    burst: u32,
}

impl Rate {
    /// Four at once: with the cost above less than a millisecond.
    const fn per_second(count: u32) -> Rate {
        Rate {
            interval: Duration::from_nanos(1_000_000_000 / count as u64),
            burst: 4,
        }
    }

    const fn at_once(self, burst: u32) -> Rate {
        Rate { burst, ..self }
    }
}

/// A token bucket: a burst at once, then as often as the rate says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    /// When it is full again.
    full: Option<Instant>,
}

impl Bucket {
    fn has(&self, rate: Rate, now: Instant) -> bool {
        let missing = self.full.map(|full| full.saturating_duration_since(now));
        missing.unwrap_or_default() <= rate.interval * (rate.burst - 1)
    }

    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let has = self.has(rate, now);
        if has {
            self.full = Some(self.full.map_or(now, |full| full.max(now)) + rate.interval);
        }
        has
    }
}

/// Makes connection IDs that this unit recognises, also after a restart.
pub(super) struct OwnIds(hmac::Key);

impl OwnIds {
    /// `secret` is this unit's and stays the same.
    pub(super) fn new(secret: &[u8; 32]) -> OwnIds {
        OwnIds(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    fn is_own(&self, id: &[u8]) -> bool {
        let Some((nonce, tag)) = id.split_at_checked(OWN_ID - OWN_TAG) else {
            return false;
        };
        tag.len() == OWN_TAG && hmac::sign(&self.0, nonce).as_ref().starts_with(tag)
    }
}

impl ConnectionIdGenerator for OwnIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let nonce = RandomConnectionIdGenerator::new(OWN_ID - OWN_TAG).generate_cid();
        let tag = hmac::sign(&self.0, &nonce);
        let mut id = [0; OWN_ID];
        id[..OWN_ID - OWN_TAG].copy_from_slice(&nonce);
        id[OWN_ID - OWN_TAG..].copy_from_slice(&tag.as_ref()[..OWN_TAG]);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        self.is_own(id).then_some(()).ok_or(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        OWN_ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A secret shared by two units that have each other's public key in their config.
#[derive(Clone)]
pub(super) struct Mark(hmac::Key);

impl Mark {
    pub(super) fn new(dialler: PublicKey, listener: PublicKey) -> Mark {
        let mut secret = [0; 64];
        secret[..32].copy_from_slice(&dialler.0);
        secret[32..].copy_from_slice(&listener.0);
        Mark(hmac::Key::new(hmac::HMAC_SHA256, &secret))
    }

    /// An ID for the first packet of a connection (RFC 9000, section 7.2). It tells the role in its
    /// first byte, so that the server can choose its parameters before it answers.
    pub(super) fn initial_id(&self, role: Role) -> ConnectionId {
        let mut id = [0; INITIAL_ID];
        let nonce = RandomConnectionIdGenerator::new(INITIAL_NONCE).generate_cid();
        id[..INITIAL_NONCE].copy_from_slice(&nonce);
        id[0] = id[0] & !1 | role as u8;
        let tag = hmac::sign(&self.0, &id[..INITIAL_NONCE]);
        id[INITIAL_NONCE..].copy_from_slice(&tag.as_ref()[..INITIAL_ID - INITIAL_NONCE]);
        ConnectionId::new(&id)
    }

    fn is_on(&self, id: &[u8]) -> bool {
        let Some((nonce, tag)) = id.split_at_checked(INITIAL_NONCE) else {
            return false;
        };
        tag.len() == INITIAL_ID - INITIAL_NONCE
            && hmac::sign(&self.0, nonce).as_ref().starts_with(tag)
    }
}

/// The peers at an address, each with its number and the mark on what it dials.
pub(super) fn peers_at<'a>(
    ip: IpAddr,
    remotes: &[Option<SocketAddr>],
    peers: &'a [QuicPeer],
) -> Vec<(usize, &'a Mark)> {
    let remotes = remotes.iter().zip(peers).enumerate();
    let there = remotes.filter(|(_, (remote, _))| remote.is_some_and(|addr| addr.ip() == ip));
    there
        .map(|(index, (_, peer))| (index, &peer.mark))
        .collect()
}

/// The buckets of one link.
pub(super) struct Gate {
    own: OwnIds,
    /// By peer.
    buckets: Vec<Buckets>,
}

#[derive(Clone, Copy, Default)]
struct Buckets {
    marked: Bucket,
    strangers: Bucket,
}

/// The peers at an address that a datagram came from.
pub(super) struct Sender<'a> {
    /// Each one's number, and the mark on what it dials.
    pub(super) peers: &'a [(usize, &'a Mark)],
    /// Whether one of them is connected over this link.
    pub(super) connected: bool,
}

impl Gate {
    pub(super) fn new(secret: &[u8; 32], peers: usize) -> Gate {
        Gate {
            own: OwnIds::new(secret),
            buckets: vec![Buckets::default(); peers],
        }
    }

    /// Sets the number of places for peers.
    pub(super) fn set_peers(&mut self, peers: usize) {
        self.buckets.resize(peers, Buckets::default());
    }

    /// Whether a datagram from an address of `sender` may pass; `all` is the bucket of all links.
    pub(super) fn admits(
        &mut self,
        datagram: &[u8],
        sender: &Sender<'_>,
        all: &mut Bucket,
        now: Instant,
    ) -> bool {
        let Some(header) = LongHeader::parse(datagram) else {
            // A short header of a connection that does not exist costs one lookup.
            return datagram.first().is_some_and(|first| first & 0x80 == 0);
        };
        let Some(&(first, _)) = sender.peers.first() else {
            return false;
        };
        if self.own.is_own(header.destination) {
            let bucket = &mut self.buckets[first].marked;
            return !header.is_initial || bucket.take(MARKED, now);
        }
        let mut peers = sender.peers.iter();
        if let Some(&(peer, _)) = peers.find(|(_, mark)| mark.is_on(header.destination)) {
            return self.buckets[peer].marked.take(MARKED, now);
        }
        let rate = if sender.connected {
            CONNECTED
        } else {
            UNCONNECTED
        };
        all.has(ALL, now) && self.buckets[first].strangers.take(rate, now) && all.take(ALL, now)
    }
}

/// The fields of a long header that all versions of QUIC share (RFC 8999, section 5.1).
struct LongHeader<'a> {
    destination: &'a [u8],
    /// In version 1 (RFC 9000, section 17.2).
    is_initial: bool,
}

impl LongHeader<'_> {
    fn parse(datagram: &[u8]) -> Option<LongHeader<'_>> {
        let (&first, rest) = datagram.split_first()?;
        let (&length, rest) = rest.get(4..)?.split_first()?;
        let destination = rest.get(..usize::from(length))?;
        (first & 0x80 != 0).then_some(LongHeader {
            destination,
            is_initial: first & 0x30 == 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn keys() -> [PublicKey; 2] {
        [PublicKey([1; 32]), PublicKey([2; 32])]
    }

    fn initial(destination: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc0, 0, 0, 0, 1, destination.len() as u8];
        bytes.extend_from_slice(destination);
        bytes.resize(1200, 0);
        bytes
    }

    /// How many of 5000 in a second pass, one each 200 µs.
    fn passed(mark: &Mark, connected: bool, make: impl Fn() -> Vec<u8>) -> usize {
        let (start, mut all) = (Instant::now(), Bucket::default());
        let mut gate = Gate::new(&SECRET, 1);
        let peers = [(0, mark)];
        let sender = Sender {
            peers: &peers,
            connected,
        };
        let sent = (0..5000u32).map(|number| start + Duration::from_micros(200) * number);
        sent.filter(|at| gate.admits(&make(), &sender, &mut all, *at))
            .count()
    }

    #[test]
    fn a_flood_leaves_a_few_a_second_and_none_of_the_peers_places() {
        let [dialler, listener] = keys();
        let mark = Mark::new(dialler, listener);
        let forged = || initial(&RandomConnectionIdGenerator::new(20).generate_cid());
        let few = passed(&mark, true, forged);
        assert!((4..=8).contains(&few), "{few}");
        let more = passed(&mark, false, forged);
        assert!((40..=44).contains(&more), "{more}");
        // The other way round the keys make another mark.
        let reversed = Mark::new(listener, dialler);
        let few = passed(&mark, true, || initial(&reversed.initial_id(Role::Sync)));
        assert!(few <= 8, "{few}");
        let marked = passed(&mark, true, || initial(&mark.initial_id(Role::Sync)));
        assert!((60..=76).contains(&marked), "{marked}");
    }

    #[test]
    fn packets_of_connections_that_exist_pass() {
        let mark = Mark::new(keys()[0], keys()[1]);
        let id = OwnIds::new(&SECRET).generate_cid();
        assert!(OwnIds::new(&SECRET).validate(&id).is_ok());
        assert!(OwnIds::new(&[8; 32]).validate(&id).is_err());
        let mut handshake = initial(&id);
        handshake[0] = 0xe0;
        assert_eq!(passed(&mark, true, || handshake.clone()), 5000);
        assert_eq!(passed(&mark, true, || vec![0x40; 50]), 5000);
        for junk in [vec![], vec![0xc0], vec![0xff; 6], vec![0xc0; 20]] {
            assert_eq!(passed(&mark, true, || junk.clone()), 0);
        }
    }

    #[test]
    fn an_initial_id_tells_its_role() {
        let mark = Mark::new(keys()[0], keys()[1]);
        for _ in 0..100 {
            for role in Role::ALL {
                assert_eq!(Role::of_initial_id(&mark.initial_id(role)), role);
            }
        }
        assert_eq!(
            Role::of_initial_id(&ConnectionId::new(&[])),
            Role::Heartbeat
        );
    }
}
