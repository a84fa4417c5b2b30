//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use crate::flow::{Addr, Protocol};

/// A one's complement sum over 16-bit words.
///
/// It is kept in host byte order, which does not affect the sum (RFC 1071, section 2(B)), and
/// swapped once at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even offset of the summed data; the last byte may be odd.
    ///
    /// The total added to one sum must be less than 8 GiB.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            self.0 += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        self.0 += u64::from(u32::from_ne_bytes(last));
    }

    /// Adds the pseudo-header of a transport packet of `len` bytes (RFC 9293, section 3.1; RFC
    /// 8200, section 8.1). `protocol` is the number on the wire.
    pub fn add_pseudo_header(&mut self, src: Addr, dst: Addr, protocol: Protocol, len: usize) {
        self.add(src.wire());
        self.add(dst.wire());
        self.add(&[0, protocol.0]);
        // For a length beyond 65535 the upper half counts too; IPv4 has no such length.
        self.add(&(len as u32).to_be_bytes());
    }

    /// The sum in 16 bits, not complemented.
    #[inline]
    pub fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        (sum as u16).to_be()
    }

    /// The checksum: the complement of the sum.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The change that an edit makes to a one's complement sum: the terms `~m + m'` of RFC 1624,
/// section 3.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change(Sum);

impl Change {
    /// Notes that `old` is replaced by `new`, of the same length, at an even offset.
    #[inline(always)]
    pub fn replace<const N: usize>(&mut self, old: [u8; N], new: [u8; N]) {
        if old != new {
            self.0.add(&old.map(|byte| !byte));
            self.0.add(&new);
        }
    }

    /// Adds the change of another edit.
    #[inline]
    pub fn and(mut self, other: Change) -> Change {
        self.0.0 += other.0.0;
        self
    }

    /// The change as one term, in the order of the wire; 0 if no edit was noted.
    pub fn sum(self) -> u16 {
        self.0.fold()
    }

    /// Whether no edit was noted.
    #[inline]
    pub fn is_none(self) -> bool {
        self.0.0 == 0
    }

    /// The checksum after the edit, from the one before (RFC 1624, equation 3).
    #[inline]
    pub fn apply(self, checksum: u16) -> u16 {
        if self.is_none() {
            checksum
        } else {
            !self.apply_to_sum(!checksum)
        }
    }

    /// The same for a sum that is not complemented, as in a partial checksum.
    #[inline]
    pub fn apply_to_sum(mut self, sum: u16) -> u16 {
        self.0.add(&sum.to_be_bytes());
        self.0.fold()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The carry of a carry of a carry.
    #[test]
    fn a_sum_is_folded_until_nothing_is_left_to_carry() {
        for (sum, folded) in [
            (0, 0),
            (0xffff, 0xffff),
            (0x1_0000, 1),
            (0x0001_0000_ffff_ffff, 1),
            (u64::MAX, 0xffff),
        ] {
            assert_eq!(Sum(sum).fold().to_be(), folded, "{sum:x}");
        }
    }
    use proptest::prelude::*;

    /// RFC 1071, section 4.1, word by word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn example_of_rfc_1071() {
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    #[test]
    fn example_of_rfc_1624() {
        // Section 4: equations 1 and 2 differ here; equation 3 gives 0, not 0xffff.
        let mut change = Change::default();
        change.replace([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(change.apply(0xdd2f), 0x0000);
        // ~0x5555 + 0x3285
        assert_eq!(change.sum(), 0xdd2f);
    }

    #[test]
    fn nothing_changes_nothing() {
        let mut change = Change::default();
        change.replace([1, 2], [1, 2]);
        assert!(change.is_none());
        assert_eq!(change.apply(0xffff), 0xffff);
    }

    #[test]
    fn no_carry_is_lost_in_a_super_packet() {
        let bytes = vec![0xff; 1 << 17];
        let mut sum = Sum::default();
        sum.add(&bytes);
        assert_eq!(sum.fold(), 0xffff);
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut sum = Sum::default();
            sum.add(&bytes);
            prop_assert_eq!(sum.fold(), naive(&bytes));
        }

        #[test]
        fn change_equals_recomputation(mut bytes: [u8; 32], new: [u8; 4], at in 0usize..14) {
            let at = at * 2;
            let before = !naive(&bytes);
            let mut change = Change::default();
            change.replace(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap(), new);
            bytes[at..at + 4].copy_from_slice(&new);
            // Any edit of a nonzero sum gives exactly the bits of the recomputation.
            prop_assume!(naive(&bytes) != 0);
            prop_assert_eq!(change.apply(before), !naive(&bytes));
        }
    }
}
