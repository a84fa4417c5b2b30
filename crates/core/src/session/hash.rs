//! The keyed hash of all tables that network input can reach.

use std::cell::Cell;

use siphasher::sip::SipHasher13;

use crate::flow::{Addr, FlowKey, Protocol};

/// SipHash-1-3 under a secret key: without the key, nobody can choose packets that collide.
#[derive(Clone, Copy, Debug)]
pub struct KeyedHash {
    sip: SipHasher13,
}

impl KeyedHash {
    /// The hash under `key`, which must be random and stay secret.
    pub fn new(key: &[u8; 16]) -> KeyedHash {
        KeyedHash {
            sip: SipHasher13::new_with_key(key),
        }
    }

    /// The hash of a flow.
    #[inline]
    pub fn flow(&self, key: &FlowKey) -> u32 {
        // The two lengths keep the families apart.
        if key.src.is_v4() && key.dst.is_v4() {
            let mut buf = [0; 13];
            buf[..4].copy_from_slice(&key.src.last4());
            buf[4..8].copy_from_slice(&key.dst.last4());
            ports_and_protocol(key, &mut buf[8..]);
            self.bytes(&buf)
        } else {
            let mut buf = [0; 37];
            buf[..16].copy_from_slice(key.src.octets());
            buf[16..32].copy_from_slice(key.dst.octets());
            ports_and_protocol(key, &mut buf[32..]);
            self.bytes(&buf)
        }
    }

    /// The hash of the holder of `addr`: a host, or for IPv6 the /64 that it can pick addresses
    /// from.
    #[inline]
    pub fn source(&self, addr: &Addr) -> u32 {
        if addr.is_v4() {
            self.bytes(&addr.last4())
        } else {
            self.bytes(&addr.octets()[..8])
        }
    }

    /// The hash of an end of flows.
    #[inline]
    pub fn endpoint(&self, addr: &Addr, port: u16, protocol: Protocol) -> u32 {
        let (mut buf, wire) = ([0; 19], addr.wire());
        buf[..wire.len()].copy_from_slice(wire);
        let [high, low] = port.to_be_bytes();
        buf[wire.len()..][..3].copy_from_slice(&[high, low, protocol.0]);
        self.bytes(&buf[..wire.len() + 3])
    }

    /// The hash of any bytes.
    #[inline]
    pub fn bytes(&self, bytes: &[u8]) -> u32 {
        // Any 32 of its 64 bits are as good as the others.
        self.sip.hash(bytes) as u32
    }
}

/// What was worked out last, and for what: a packet without a session asks for the same several times.
#[derive(Debug)]
pub(crate) struct Last<K: Copy, V: Copy>(Cell<Option<(K, V)>>);

impl<K: Copy + PartialEq, V: Copy> Last<K, V> {
    pub(crate) fn new() -> Last<K, V> {
        Last(Cell::new(None))
    }

    /// What belongs to `key`, which `work_out` says if it was not asked for last.
    #[inline]
    pub(crate) fn get(&self, key: K, work_out: impl FnOnce() -> V) -> V {
        match self.0.get() {
            Some((last, value)) if last == key => value,
            _ => {
                let value = work_out();
                self.0.set(Some((key, value)));
                value
            }
        }
    }

    pub(crate) fn clear(&self) {
        self.0.set(None);
    }
}

#[inline]
fn ports_and_protocol(key: &FlowKey, buf: &mut [u8]) {
    buf[..2].copy_from_slice(&key.src_port.to_be_bytes());
    buf[2..4].copy_from_slice(&key.dst_port.to_be_bytes());
    buf[4] = key.protocol.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_and_the_key_count() {
        let hash = KeyedHash::new(&[7; 16]);
        let v4 = FlowKey {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([10, 0, 0, 2]),
            src_port: 1,
            dst_port: 2,
            protocol: Protocol::TCP,
        };
        let v6 = FlowKey {
            src: Addr::v6([1; 16]),
            dst: Addr::v6([2; 16]),
            ..v4
        };
        for key in [v4, v6] {
            let variants = [
                FlowKey { src_port: 9, ..key },
                FlowKey { dst_port: 9, ..key },
                FlowKey {
                    src: key.dst,
                    ..key
                },
                FlowKey {
                    dst: key.src,
                    ..key
                },
                FlowKey {
                    protocol: Protocol::UDP,
                    ..key
                },
            ];
            for other in variants {
                assert_ne!(hash.flow(&key), hash.flow(&other), "{other}");
            }
            assert_ne!(hash.flow(&key), KeyedHash::new(&[8; 16]).flow(&key));
        }
    }

    #[test]
    fn a_slash_64_is_one_source() {
        let hash = KeyedHash::new(&[7; 16]);
        let addr = |net: u8, host: u8| {
            let mut octets = [0x20; 16];
            (octets[7], octets[15]) = (net, host);
            Addr::v6(octets)
        };
        assert_eq!(hash.source(&addr(1, 1)), hash.source(&addr(1, 2)));
        assert_ne!(hash.source(&addr(1, 1)), hash.source(&addr(2, 1)));
        assert_ne!(
            hash.source(&Addr::v4([1, 2, 3, 4])),
            hash.source(&Addr::v4([1, 2, 3, 5]))
        );
    }
}
