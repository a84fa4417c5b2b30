//! The identity of a unit: an Ed25519 public key (RFC 8032). Peers know each other by public key
//! alone, as in WireGuard: there are no certificates and no authority. The secret half stays in the
//! shell.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// An Ed25519 public key: the identity of a unit.
///
/// As text it is the base64 of its 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        decode(text).map(PublicKey)
    }
}

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The first line is not that of a key file.
    Header,
    /// Not the base64 of 32 bytes.
    Encoding,
    /// There is something after the key.
    TrailingLines,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyError::Header => "not a tandemgw key file: the first line is another one",
            KeyError::Encoding => "a key is 32 bytes in base64: 44 characters that end in `=`",
            KeyError::TrailingLines => "there are more lines after the key",
        })
    }
}

impl std::error::Error for KeyError {}

/// The 32 bytes of a key in base64.
///
/// # Errors
/// [`KeyError::Encoding`] if the text is anything else.
pub fn decode(text: &str) -> Result<[u8; 32], KeyError> {
    STANDARD
        .decode(text.trim())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(KeyError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_in_base64() {
        let key = PublicKey([7; 32]);
        assert_eq!(key.to_string().len(), 44);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!("AAAA".parse::<PublicKey>(), Err(KeyError::Encoding));
    }
}
