//! The secret half of a unit's identity: an Ed25519 key pair (RFC 8032).

use std::fmt;

use curve25519_dalek::edwards::CompressedEdwardsY;
use ring::digest;
use zeroize::{Zeroize, Zeroizing};

use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair};
use tandemgw_core::ha::PortKeys;
use tandemgw_core::identity::{KeyError, PublicKey, decode};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The first line of a key file.
const HEADER: &str = "tandemgw node key v1: keep secret";

/// The secret key of this unit. Its `Debug` shows the public key only, and its memory is
/// overwritten when it is dropped.
#[derive(Clone)]
pub struct NodeKey {
    seed: Zeroizing<[u8; 32]>,
    public: PublicKey,
}

impl NodeKey {
    /// The key pair of a seed of 32 random bytes (RFC 8032, section 5.1.5).
    pub fn from_seed(mut seed: [u8; 32]) -> NodeKey {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed has 32 bytes");
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        let key = NodeKey {
            seed: Zeroizing::new(seed),
            public: PublicKey(public),
        };
        seed.zeroize();
        key
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The text of a key file: a header line, and the seed in base64.
    pub fn to_file_text(&self) -> Zeroizing<String> {
        let seed = Zeroizing::new(STANDARD.encode(&self.seed[..]));
        Zeroizing::new(format!("{HEADER}\n{}\n", *seed))
    }

    /// The key in the text of a key file.
    pub fn from_file_text(text: &str) -> Result<NodeKey, KeyError> {
        let mut lines = text.lines();
        if lines.next().map(str::trim_end) != Some(HEADER) {
            return Err(KeyError::Header);
        }
        let seed = decode(lines.next().unwrap_or_default())?;
        if lines.any(|line| !line.trim().is_empty()) {
            return Err(KeyError::TrailingLines);
        }
        Ok(NodeKey::from_seed(seed))
    }

    /// The key pair in PKCS #8 (RFC 8410, section 7), as TLS libraries take it.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        const PREFIX: [u8; 16] = [
            0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22,
            0x04, 0x20,
        ];
        Zeroizing::new([&PREFIX[..], &self.seed[..]].concat())
    }

    /// The keys that this unit and `peer` share for the frames on the data ports, and nobody else
    /// knows: X25519 (RFC 7748) of the two identities, in their form as points of Curve25519, and
    /// HMAC-SHA-256 for each direction. None if `peer` is not a point of the curve, or one that
    /// gives the secret away.
    ///
    /// Static, so that two units know each other at a start when no link between them works.
    pub fn port_keys(&self, peer: PublicKey) -> Option<PortKeys> {
        const LABEL: &[u8] = b"tandemgw data port v1";
        // RFC 8032, section 5.1.5: the secret scalar is the first half of the hash.
        let hash = digest::digest(&digest::SHA512, &self.seed[..]);
        let scalar: Zeroizing<[u8; 32]> = Zeroizing::new(*hash.as_ref().first_chunk()?);
        let point = CompressedEdwardsY(peer.0).decompress()?.to_montgomery();
        let shared = Zeroizing::new(point.mul_clamped(*scalar).to_bytes());
        // RFC 7748, section 6.1: a point of small order.
        if *shared == [0; 32] {
            return None;
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, &shared[..]);
        let derive = |from: PublicKey, to: PublicKey| {
            let tag = hmac::sign(&key, &[LABEL, &from.0, &to.0].concat());
            tag.as_ref().first_chunk().copied()
        };
        Some(PortKeys {
            send: derive(self.public, peer)?,
            receive: derive(peer, self.public)?,
        })
    }

    /// A secret for another purpose: the same at each start, and nothing that reveals the key.
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.seed[..]);
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(hmac::sign(&key, purpose.as_bytes()).as_ref());
        secret
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey(public {})", self.public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 1.
    const SEED: [u8; 32] = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c,
        0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae,
        0x7f, 0x60,
    ];
    const PUBLIC: [u8; 32] = [
        0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07,
        0x3a, 0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07,
        0x51, 0x1a,
    ];

    #[test]
    fn public_key_is_that_of_the_rfc() {
        let key = NodeKey::from_seed(SEED);
        assert_eq!(key.public(), PublicKey(PUBLIC));
        assert_eq!(key.public().to_string().len(), 44);
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
    }

    #[test]
    fn file_text_round_trips() {
        let key = NodeKey::from_seed(SEED);
        let again = NodeKey::from_file_text(&key.to_file_text()).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(again.to_pkcs8(), key.to_pkcs8());
    }

    #[test]
    fn two_units_share_keys_that_differ_by_direction_and_pair() {
        let [a, b, c] = [1, 2, 3].map(|seed| NodeKey::from_seed([seed; 32]));
        let (ours, theirs) = (a.port_keys(b.public()), b.port_keys(a.public()));
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        assert_eq!((ours.send, ours.receive), (theirs.receive, theirs.send));
        assert_ne!(ours.send, ours.receive);
        assert_ne!(a.port_keys(c.public()).unwrap().send, ours.send);
        // The neutral element; a coordinate beyond the field has no point.
        let mut small = [0; 32];
        small[0] = 1;
        assert!(a.port_keys(PublicKey(small)).is_none());
    }

    #[test]
    fn other_texts_are_refused() {
        let text = NodeKey::from_seed(SEED).to_file_text();
        let error = |text: &str| NodeKey::from_file_text(text).unwrap_err();
        assert_eq!(error(""), KeyError::Header);
        assert_eq!(error("-----BEGIN PRIVATE KEY-----"), KeyError::Header);
        assert_eq!(error(HEADER), KeyError::Encoding);
        assert_eq!(error(&text[..text.len() - 3]), KeyError::Encoding);
        assert_eq!(error(&format!("{}more", *text)), KeyError::TrailingLines);
        assert_eq!("AAAA".parse::<PublicKey>(), Err(KeyError::Encoding));
    }

    #[test]
    fn the_seed_is_not_shown_and_purposes_differ() {
        let key = NodeKey::from_seed(SEED);
        assert_eq!(
            format!("{key:?}"),
            format!("NodeKey(public {})", PublicKey(PUBLIC))
        );
        assert_eq!(key.derive("a"), NodeKey::from_seed(SEED).derive("a"));
        assert_ne!(key.derive("a"), key.derive("b"));
    }
}
