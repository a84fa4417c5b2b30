//! The form in which a packet goes from one unit to another: cut into pieces that fit a datagram of
//! any link, and put together again.
//!
//! A packet is `port: u16 | segment size: u16 | checks: u8 | start: u16 | field: u16 | the packet`.
//! The port is its place in the sender's Hello; what follows is the packet's [`Offload`]. A piece
//! is `version: u8 | number: u32 | length of the whole: u32 | offset: u32 | bytes`.

use crate::event::{Offload, PartialChecksum};
use crate::flow::PortId;

const VERSION: u8 = 1;
/// Bytes of a piece before its part of the packet.
const PIECE_HEADER: usize = 13;
/// Bytes before the packet.
const HEADER: usize = 9;
/// Bytes of a piece: what fits each datagram of QUIC (RFC 9000, section 14).
const MOST_PIECE: usize = 1100;
/// The longest packet with its header: an IPv6 header and the longest payload without jumbograms.
const LONGEST: usize = HEADER + 40 + 65_535;

const PARTIAL: u8 = 1;
const VERIFIED: u8 = 2;

/// A packet on its way to another unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// The port that it came in by, in the terms of the sender.
    pub port: u16,
    pub offload: Offload,
    pub bytes: Vec<u8>,
}

/// The pieces of a packet that came in by `port`. `number` tells them from those of other packets.
pub(super) fn pieces(
    port: PortId,
    offload: Offload,
    bytes: &[u8],
    number: u32,
) -> impl Iterator<Item = Vec<u8>> {
    let mut whole = Vec::with_capacity(HEADER + bytes.len());
    let partial = offload.partial_checksum;
    let PartialChecksum { start, field } =
        partial.unwrap_or(PartialChecksum { start: 0, field: 0 });
    let checks = match (partial.is_some(), offload.checksum_verified) {
        (true, _) => PARTIAL,
        (false, verified) => u8::from(verified) * VERIFIED,
    };
    whole.extend_from_slice(&port.0.to_be_bytes());
    whole.extend_from_slice(&offload.segment_size.to_be_bytes());
    whole.push(checks);
    whole.extend_from_slice(&start.to_be_bytes());
    whole.extend_from_slice(&field.to_be_bytes());
    whole.extend_from_slice(bytes);
    let room = MOST_PIECE - PIECE_HEADER;
    let count = whole.len().div_ceil(room);
    (0..count).map(move |at| {
        let offset = at * room;
        let part = &whole[offset..whole.len().min(offset + room)];
        let mut piece = Vec::with_capacity(PIECE_HEADER + part.len());
        piece.push(VERSION);
        piece.extend_from_slice(&number.to_be_bytes());
        piece.extend_from_slice(&(whole.len() as u32).to_be_bytes());
        piece.extend_from_slice(&(offset as u32).to_be_bytes());
        piece.extend_from_slice(part);
        piece
    })
}

/// The pieces of one packet of a peer so far. They come in order, or the packet is lost: it holds
/// one packet at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Assembly {
    number: u32,
    whole: Vec<u8>,
}

impl Assembly {
    /// Adds a piece; returns the packet that it completes.
    pub(super) fn add(&mut self, piece: &[u8]) -> Option<Passed> {
        let (header, part) = piece.split_at_checked(PIECE_HEADER)?;
        let word = |at: usize| Some(u32::from_be_bytes(*header.get(at..)?.first_chunk()?));
        let (number, length, offset) = (word(1)?, word(5)? as usize, word(9)? as usize);
        if header[0] != VERSION || length > LONGEST {
            return None;
        }
        if offset == 0 {
            self.whole.clear();
            self.number = number;
        }
        let follows = self.number == number && offset == self.whole.len();
        if !follows || offset + part.len() > length {
            self.whole.clear();
            return None;
        }
        self.whole.extend_from_slice(part);
        match self.whole.len() == length {
            true => decode(std::mem::take(&mut self.whole)),
            false => None,
        }
    }
}

fn decode(mut whole: Vec<u8>) -> Option<Passed> {
    let word = |at: usize| Some(u16::from_be_bytes(*whole.get(at..)?.first_chunk()?));
    let (port, segment_size, checks) = (word(0)?, word(2)?, *whole.get(4)?);
    let (start, field) = (word(5)?, word(7)?);
    let partial = PartialChecksum { start, field };
    let offload = Offload {
        partial_checksum: (checks & PARTIAL != 0).then_some(partial),
        checksum_verified: checks & VERIFIED != 0,
        segment_size,
    };
    let bytes = whole.split_off(HEADER);
    // The kernel accepts no others of its own, so the core has never seen any.
    let fits = usize::from(field) + 2 <= bytes.len() && start < field;
    (offload.partial_checksum.is_none() || fits).then_some(Passed {
        port,
        offload,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet() -> impl Strategy<Value = (u16, Offload, Vec<u8>)> {
        let bytes = proptest::collection::vec(any::<u8>(), 40..9000);
        let partial = proptest::option::of((20..30u16, 1..8u16));
        (any::<(u16, u16, bool)>(), partial, bytes).prop_map(
            |((port, segment_size, verified), partial, bytes)| {
                let partial_checksum = partial.map(|(start, more)| PartialChecksum {
                    start,
                    field: start + more,
                });
                let offload = Offload {
                    checksum_verified: verified && partial_checksum.is_none(),
                    partial_checksum,
                    segment_size,
                };
                (port, offload, bytes)
            },
        )
    }

    proptest! {
        #[test]
        fn a_packet_comes_through((port, offload, bytes) in packet(), number: u32, lost: u8) {
            let all: Vec<_> = pieces(PortId(port), offload, &bytes, number).collect();
            prop_assert!(all.iter().all(|piece| piece.len() <= MOST_PIECE));
            let mut assembly = Assembly::default();
            // A packet of which a piece is lost is lost, and the next one is whole.
            let lost = usize::from(lost) % all.len();
            let mut rest = all.iter().enumerate().filter(|(at, _)| *at != lost);
            prop_assert!(rest.all(|(_, piece)| assembly.add(piece).is_none()));
            let mut whole = all.iter().filter_map(|piece| assembly.add(piece));
            let expected = Passed { port, offload, bytes };
            prop_assert_eq!(whole.next(), Some(expected));
            prop_assert_eq!(whole.next(), None);
        }

        #[test]
        fn no_piece_grows_what_is_kept(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..64), 0..64,
        )) {
            let mut assembly = Assembly::default();
            for mut piece in pieces {
                if let Some(version) = piece.first_mut() {
                    *version = VERSION;
                }
                assembly.add(&piece);
                prop_assert!(assembly.whole.len() <= LONGEST);
            }
        }
    }

    #[test]
    fn a_checksum_outside_of_its_packet_is_refused() {
        for (start, field) in [(20, 39), (30, 30), (40, 20)] {
            let partial_checksum = Some(PartialChecksum { start, field });
            let offload = Offload {
                partial_checksum,
                ..Offload::default()
            };
            let mut pieces = pieces(PortId(0), offload, &[0; 40], 1);
            let piece = pieces.next().expect("one piece");
            assert_eq!(Assembly::default().add(&piece), None, "{start} {field}");
        }
    }
}
