//! Translation in place: addresses, ports and identifiers, with incremental checksums.

use super::checksum::{Change, Sum};
use super::transport::Fields;
use super::{Parsed, array_at, u16_at};
use crate::event::Offload;
use crate::flow::{Family, FlowKey};

/// Gives the packet the addresses and ports (or ICMP identifier) of `to`, of the same family.
///
/// Checksums are updated incrementally (RFC 1624), so one that was wrong stays wrong and the
/// receiver still notices. Later fragments and protocols without ports get the addresses only.
/// `parsed` must come from the same bytes. For ICMP errors see
/// [`super::icmp_error::translate_error`].
#[inline]
pub fn translate(bytes: &mut [u8], parsed: &Parsed, offload: Offload, to: &FlowKey) {
    Place::of(parsed).translate(bytes, offload, to, Edited::default());
}

/// Makes the edits of [`translate`] and [`add_hop_limit`], with one update of the IPv4 header's
/// checksum.
#[inline]
pub fn translate_with_hop(bytes: &mut [u8], parsed: &Parsed, offload: Offload, to: &FlowKey) {
    let edited = Edited {
        header: put_hop_limit(bytes, parsed.family, |hops| hops.saturating_add(1)),
        ..Edited::default()
    };
    Place::of(parsed).translate(bytes, offload, to, edited);
}

/// Gives the packet one hop more, at most 255.
///
/// The kernel takes one hop on the way into the gateway and one on the way out; a router takes only
/// one.
#[inline]
pub fn add_hop_limit(bytes: &mut [u8], family: Family) {
    edit_hop_limit(bytes, family, |hops| hops.saturating_add(1));
}

/// Takes a hop from the packet; the hop limit must be checked before (it stays at 0).
#[inline]
pub fn take_hop_limit(bytes: &mut [u8], family: Family) {
    edit_hop_limit(bytes, family, |hops| hops.saturating_sub(1));
}

#[inline]
fn edit_hop_limit(bytes: &mut [u8], family: Family, edit: impl Fn(u8) -> u8) {
    let change = put_hop_limit(bytes, family, edit);
    if family == Family::V4 {
        update_checksum(bytes, V4_CHECKSUM, |checksum| change.apply(checksum));
    }
}

/// Edits the hop limit, but not the checksum.
#[inline]
fn put_hop_limit(bytes: &mut [u8], family: Family, edit: impl Fn(u8) -> u8) -> Change {
    // The 16-bit word that holds the hop limit, and where in it.
    let (word, index) = match family {
        Family::V4 => (8, 0),
        Family::V6 => (6, 1),
    };
    let mut change = Change::default();
    if let Some(old) = array_at::<2>(bytes, word) {
        let mut new = old;
        new[index] = edit(old[index]);
        put(bytes, word, new, &mut change);
    }
    change
}

/// Reverts what this machine added to the IPv4 options of a packet on its way in, because it adds
/// it again on the way out: a slot of record route (RFC 791, section 3.1), a slot or a count of the
/// timestamp option. A router adds one.
///
/// If that slot was the last one, the machine takes none on the way out, and it stays.
#[inline]
pub fn give_back_options(bytes: &mut [u8], parsed: &Parsed) {
    const SHORTEST_HEADER: u8 = 5;
    if parsed.family == Family::V4
        && bytes
            .first()
            .is_some_and(|first| first & 15 > SHORTEST_HEADER)
    {
        edit_options(bytes);
    }
}

#[cold]
fn edit_options(bytes: &mut [u8]) {
    const OPTIONS: usize = 20;
    let header_len = bytes.first().map_or(0, |first| usize::from(first & 15) * 4);
    let Some(header) = bytes.get_mut(..header_len) else {
        return;
    };
    let mut at = OPTIONS;
    loop {
        at += match header.get(at..) {
            None | Some([] | [END_OF_OPTIONS, ..]) => break,
            Some([NO_OPERATION, ..]) => 1,
            Some(&[kind, len, ..]) if len >= 2 => {
                let len = usize::from(len);
                match header.get_mut(at..at + len) {
                    Some(option) if kind == RECORD_ROUTE => give_back_route(option),
                    Some(option) if kind == TIMESTAMP => give_back_timestamp(option),
                    _ => {}
                }
                len
            }
            Some(_) => break,
        };
    }
    // Since the kernel computed it on the way in, only these edits have changed it.
    header[V4_CHECKSUM..V4_CHECKSUM + 2].fill(0);
    let mut sum = Sum::default();
    sum.add(header);
    header[V4_CHECKSUM..V4_CHECKSUM + 2].copy_from_slice(&sum.checksum().to_be_bytes());
}

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const RECORD_ROUTE: u8 = 7;
const TIMESTAMP: u8 = 68;

/// The byte of an option that holds the place, counted from 1, of its first free byte.
const POINTER: usize = 2;

fn give_back_route(option: &mut [u8]) {
    const FIRST: u8 = 4;
    let Some(&pointer) = option.get(POINTER) else {
        return;
    };
    // Without room the machine takes no other slot, and the one that it took must stay.
    if usize::from(pointer) + 3 <= option.len() && pointer >= FIRST + 4 {
        free_slot(option, pointer - 4, 4);
    }
}

/// Of the three forms, the one with prespecified addresses is left as it is: a machine that finds
/// itself in it once does not do so again.
fn give_back_timestamp(option: &mut [u8]) {
    const FIRST: u8 = 5;
    const FLAGS: usize = 3;
    let (Some(&pointer), Some(&flags)) = (option.get(POINTER), option.get(FLAGS)) else {
        return;
    };
    let slot = match flags & 15 {
        0 => 4,
        1 => 8,
        _ => return,
    };
    let overflow = flags >> 4;
    if usize::from(pointer) > option.len() && overflow > 0 {
        option[FLAGS] = flags - (1 << 4);
    } else if pointer >= FIRST + slot {
        free_slot(option, pointer - slot, slot);
    }
}

fn free_slot(option: &mut [u8], pointer: u8, len: u8) {
    option[POINTER] = pointer;
    let start = usize::from(pointer) - 1;
    if let Some(slot) = option.get_mut(start..start + usize::from(len)) {
        slot.fill(0);
    }
}

pub(super) const V4_CHECKSUM: usize = 10;

/// The place of a packet's headers in a buffer: it may be quoted in another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Offset of the IP header.
    pub ip: usize,
    /// Offset of the transport header.
    pub transport: usize,
    pub family: Family,
    /// The fields to edit above IP, if any.
    pub fields: Option<Fields>,
}

/// The edits already made in a packet that is to be translated.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Edited {
    /// In the IP header.
    pub header: Change,
    /// In the payload above the transport header.
    pub payload: Change,
}

impl Place {
    /// The place of a packet at the start of its buffer.
    #[inline]
    pub(super) fn of(parsed: &Parsed) -> Place {
        Place {
            ip: 0,
            transport: usize::from(parsed.header_len),
            family: parsed.family,
            fields: Fields::to_translate(parsed),
        }
    }

    /// Rewrites the packet, and updates its checksums by this and by the earlier edits, `edited`.
    /// Returns the change of all bytes from the IP header on, without those edits.
    ///
    /// Fields beyond the end of the buffer are left out: a quoted packet may be cut off.
    #[inline(always)]
    pub(super) fn translate(
        self,
        bytes: &mut [u8],
        offload: Offload,
        to: &FlowKey,
        edited: Edited,
    ) -> Change {
        if to.src.family() != self.family || to.dst.family() != self.family {
            debug_assert!(false, "translation to another family: {to}");
            return Change::default();
        }
        let mut change = Change::default();
        let addresses = self.put_addresses(bytes, to);
        if self.family == Family::V4 {
            let at = self.ip + V4_CHECKSUM;
            let header = addresses.and(edited.header);
            change = update_checksum(bytes, at, |checksum| header.apply(checksum));
        }
        if let Some(fields) = self.fields {
            let ports = self.put_ports(bytes, fields, to);
            let pseudo = if fields.pseudo_header {
                addresses
            } else {
                Change::default()
            };
            let covered = pseudo.and(ports).and(edited.payload);
            let at = self.transport + fields.checksum;
            let checksum = update_checksum(bytes, at, |checksum| match checksum {
                _ if offload.is_partial_at(at) => pseudo.apply_to_sum(checksum),
                0 if fields.zero_is_none => 0,
                checksum => match covered.apply(checksum) {
                    0 if fields.zero_is_none => 0xffff,
                    checksum => checksum,
                },
            });
            change = change.and(ports).and(checksum);
        }
        change.and(addresses)
    }

    #[inline]
    fn put_ports(self, bytes: &mut [u8], fields: Fields, to: &FlowKey) -> Change {
        let mut change = Change::default();
        for (field, port) in [
            (fields.src_port, to.src_port),
            (fields.dst_port, to.dst_port),
        ] {
            if let Some(at) = field {
                put(bytes, self.transport + at, port.to_be_bytes(), &mut change);
            }
        }
        change
    }

    // Left to itself, the compiler calls it now and then: 14 instructions a packet.
    #[inline(always)]
    fn put_addresses(self, bytes: &mut [u8], to: &FlowKey) -> Change {
        let mut change = Change::default();
        match self.family {
            Family::V4 => {
                put(bytes, self.ip + 12, to.src.last4(), &mut change);
                put(bytes, self.ip + 16, to.dst.last4(), &mut change);
            }
            Family::V6 => {
                put(bytes, self.ip + 8, *to.src.octets(), &mut change);
                put(bytes, self.ip + 24, *to.dst.octets(), &mut change);
            }
        }
        change
    }
}

/// Overwrites the bytes at `at` and notes the change; nothing if they are beyond the end.
#[inline]
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, new: [u8; N], change: &mut Change) {
    if let Some(field) = bytes
        .get_mut(at..)
        .and_then(|rest| rest.first_chunk_mut::<N>())
        && *field != new
    {
        change.replace(*field, new);
        *field = new;
    }
}

/// Replaces the checksum at `at`; returns the change.
#[inline]
pub(super) fn update_checksum(bytes: &mut [u8], at: usize, update: impl Fn(u16) -> u16) -> Change {
    let mut change = Change::default();
    if let Some(checksum) = u16_at(bytes, at) {
        put(bytes, at, update(checksum).to_be_bytes(), &mut change);
    }
    change
}
