//! The keyed hash of all tables that network input can reach.

use std::cell::Cell;

use siphasher::sip::SipHasher13;

use crate::flow::{Addr, FlowKey, Protocol};

/// SipHash-1-3 under a secret key: without the key, nobody can choose packets that collide.
#[derive(Clone, Copy, Debug)]
pub struct KeyedHash {
    sip: SipHasher13,
    /// Its state before the first word, for [`KeyedHash::flow`].
    start: [u64; 4],
}

impl KeyedHash {
    /// The hash under `key`, which must be random and stay secret.
    pub fn new(key: &[u8; 16]) -> KeyedHash {
        let [k0, k1] = halves(key);
        KeyedHash {
            sip: SipHasher13::new_with_key(key),
            start: [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ],
        }
    }

    /// The hash of a flow.
    #[inline]
    pub fn flow(&self, key: &FlowKey) -> u32 {
        let ports = u64::from(key.src_port) | u64::from(key.dst_port) << 16;
        // The last word ends with the length, which keeps the families apart.
        let last = |length: u64| ports | u64::from(key.protocol.0) << 32 | length << 56;
        if key.src.is_v4() && key.dst.is_v4() {
            let [src, dst] = [key.src, key.dst].map(|it| u64::from(u32::from_le_bytes(it.last4())));
            self.words([src | dst << 32, last(13)])
        } else {
            let ([s0, s1], [d0, d1]) = (halves(key.src.octets()), halves(key.dst.octets()));
            self.words([s0, s1, d0, d1, last(37)])
        }
    }

    /// The hash of a message of this many words, the last of which ends with its length. Every
    /// packet needs it, and with the length known in advance it takes half the instructions.
    #[inline]
    fn words<const N: usize>(&self, words: [u64; N]) -> u32 {
        let mut state = self.start;
        for word in words {
            state[3] ^= word;
            round(&mut state);
            state[0] ^= word;
        }
        state[2] ^= 0xff;
        for _ in 0..3 {
            round(&mut state);
        }
        (state[0] ^ state[1] ^ state[2] ^ state[3]) as u32
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

/// The last result, and its key: a packet without a session asks for the same one several times.
#[derive(Debug)]
pub(crate) struct Last<K: Copy, V: Copy>(Cell<Option<(K, V)>>);

impl<K: Copy + PartialEq, V: Copy> Last<K, V> {
    pub(crate) fn new() -> Last<K, V> {
        Last(Cell::new(None))
    }

    /// The value for `key`: the last result, or that of `work_out`.
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

/// The two words of 16 bytes.
#[inline]
fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let both = u128::from_le_bytes(*bytes);
    [both as u64, (both >> 64) as u64]
}

/// One SipRound (Aumasson and Bernstein, "SipHash: a fast short-input PRF", section 2).
#[inline]
fn round([v0, v1, v2, v3]: &mut [u64; 4]) {
    *v0 = v0.wrapping_add(*v1);
    *v2 = v2.wrapping_add(*v3);
    *v1 = v1.rotate_left(13) ^ *v0;
    *v3 = v3.rotate_left(16) ^ *v2;
    *v0 = v0.rotate_left(32).wrapping_add(*v3);
    *v2 = v2.wrapping_add(*v1);
    *v1 = v1.rotate_left(17) ^ *v2;
    *v3 = v3.rotate_left(21) ^ *v0;
    *v2 = v2.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn every_field_of_an_endpoint_counts() {
        let hash = KeyedHash::new(&[7; 16]);
        let endpoint = |addr: Addr, port, protocol| hash.endpoint(&addr, port, protocol);
        for addr in [Addr::v4([10, 0, 0, 1]), Addr::v6([1; 16])] {
            let one = endpoint(addr, 1, Protocol::TCP);
            let high_byte = endpoint(addr, 257, Protocol::TCP);
            let others = [
                endpoint(Addr::v4([10, 0, 0, 2]), 1, Protocol::TCP),
                endpoint(addr, 2, Protocol::TCP),
                high_byte,
                endpoint(addr, 1, Protocol::UDP),
            ];
            assert!(others.iter().all(|other| *other != one), "{addr}");
        }
        let bytes = [10, 0, 0, 1, 0, 1, Protocol::TCP.0];
        let addr = Addr::v4([10, 0, 0, 1]);
        assert_eq!(endpoint(addr, 1, Protocol::TCP), hash.bytes(&bytes));
    }

    #[test]
    fn the_last_result_is_for_its_key_until_it_is_cleared() {
        let last = Last::new();
        let times = Cell::new(0);
        let get = |key: u8| {
            last.get(key, || {
                times.set(times.get() + 1);
                u32::from(key) * 10
            })
        };
        assert_eq!(
            [get(1), get(1), get(2), get(2), get(1)],
            [10, 10, 20, 20, 10]
        );
        assert_eq!(times.get(), 3);
        last.clear();
        assert_eq!((get(1), times.get()), (10, 4));
    }

    proptest! {
        #[test]
        fn a_flow_is_hashed_as_its_bytes(
            key: [u8; 16], src: [u8; 16], dst: [u8; 16], v4: bool, ports: (u16, u16), protocol: u8,
        ) {
            let addr = |octets: [u8; 16]| match (v4, octets) {
                (true, [a, b, c, d, ..]) => Addr::v4([a, b, c, d]),
                (false, _) => Addr::v6(octets),
            };
            let flow = FlowKey {
                src: addr(src),
                dst: addr(dst),
                src_port: ports.0,
                dst_port: ports.1,
                protocol: Protocol(protocol),
            };
            let mut bytes = [flow.src.wire(), flow.dst.wire()].concat();
            bytes.extend(ports.0.to_le_bytes());
            bytes.extend(ports.1.to_le_bytes());
            bytes.push(protocol);
            let hash = KeyedHash::new(&key);
            prop_assert_eq!(hash.flow(&flow), hash.bytes(&bytes));
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
