//! Other fields of headers that the gateway edits.

use super::checksum::Change;
use super::translate::{V4_CHECKSUM, put, update_checksum};
use super::transport::Fields;
use super::{PacketKind, Parsed, array_at, u16_at, u32_at};
use crate::event::Offload;
use crate::flow::Family;

/// The identification, which tells the fragments of different datagrams apart: 16 bits of the IPv4
/// header, 32 bits of the IPv6 fragment header. None for an IPv6 packet without such a header.
pub fn identification(bytes: &[u8], parsed: &Parsed) -> Option<u32> {
    let at = place_of_identification(bytes, parsed)?;
    match parsed.family {
        Family::V4 => u16_at(bytes, at).map(u32::from),
        Family::V6 => u32_at(bytes, at),
    }
}

/// Sets the packet's [`identification`], of which IPv4 takes the lower half.
pub fn set_identification(bytes: &mut [u8], parsed: &Parsed, id: u32) {
    let Some(at) = place_of_identification(bytes, parsed) else {
        return;
    };
    let mut change = Change::default();
    match parsed.family {
        Family::V4 => {
            put(bytes, at, (id as u16).to_be_bytes(), &mut change);
            update_checksum(bytes, V4_CHECKSUM, |checksum| change.apply(checksum));
        }
        Family::V6 => put(bytes, at, id.to_be_bytes(), &mut change),
    }
}

fn place_of_identification(bytes: &[u8], parsed: &Parsed) -> Option<usize> {
    const V4: usize = 4;
    const V6_HEADER: usize = 40;
    const FRAGMENT: u8 = 44;
    const IN_FRAGMENT_HEADER: usize = 4;
    if parsed.family == Family::V4 {
        return Some(V4);
    }
    let (mut next, mut at) = (*bytes.get(6)?, V6_HEADER);
    // The headers before it have been parsed, so they are extension headers with a length.
    while at < usize::from(parsed.header_len) {
        if next == FRAGMENT {
            return Some(at + IN_FRAGMENT_HEADER);
        }
        let [following, length] = array_at(bytes, at)?;
        next = following;
        at += (usize::from(length) + 1) * 8;
    }
    None
}

/// Lowers the maximum segment size that a SYN offers to `most` (RFC 9293, section 3.7.1). A SYN
/// without the option offers 536 or 1220 bytes, and stays as it is.
pub fn clamp_mss(bytes: &mut [u8], parsed: &Parsed, offload: Offload, most: u16) {
    let PacketKind::Tcp(_) = parsed.kind else {
        return;
    };
    let header = usize::from(parsed.header_len);
    let Some(at) = place_of_mss(bytes, header) else {
        return;
    };
    let Some(offered) = u16_at(bytes, at).filter(|offered| *offered > most) else {
        return;
    };
    debug_assert!(offered > most);
    let mut change = Change::default();
    let [high, low] = most.to_be_bytes();
    if (at - header).is_multiple_of(2) {
        put(bytes, at, [high, low], &mut change);
    } else if let Some([before, _, _, after]) = array_at(bytes, at - 1) {
        // The words of the sum begin at even places.
        put(bytes, at - 1, [before, high, low, after], &mut change);
    }
    let Some(fields) = Fields::of(parsed.kind, parsed.family) else {
        return;
    };
    let field = header + fields.checksum;
    // Finishing the checksum sums up the options too.
    if !offload.is_partial_at(field) {
        update_checksum(bytes, field, |checksum| change.apply(checksum));
    }
}

/// The place of the option's value.
fn place_of_mss(bytes: &[u8], header: usize) -> Option<usize> {
    const OPTIONS: usize = 20;
    const END: u8 = 0;
    const NOP: u8 = 1;
    const MSS: u8 = 2;
    let header_len = usize::from(*bytes.get(header + 12)? >> 4) * 4;
    let options = bytes.get(header..header + header_len)?;
    let mut at = OPTIONS;
    loop {
        at += match *options.get(at..)? {
            [] | [END, ..] => return None,
            [NOP, ..] => 1,
            [MSS, 4, _, _, ..] => return Some(header + at + 2),
            [_, len, ..] if len >= 2 => usize::from(len),
            _ => return None,
        };
    }
}
