//! The frame by which two units recognise each other on the data ports: a question, and its answer.
//! A third kind names a host to the primary.
//!
//! It follows the Ethernet header, whose type is [`ETHERTYPE`]. All numbers are big-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 1 |
//! | 1 | kind: 1 = question, 2 = answer, 3 = stray |
//! | 2 | bytes of the body |
//! | 4 | hash of the sender's node name, its first byte combined (XOR) with the `group-id` |
//! | 4 | the same of the receiver |
//! | 4 | hash of the name of the port that it was sent from |
//! | 8 | the sender's boot id; answer: that of the question |
//! | 8 | the sender's clock in µs; answer: that of the question |
//! | … | the body: none of a question, a heartbeat of an answer, 16 bytes of a stray: the host's address, mapped if IPv4 |
//! | 16 | tag: SipHash-2-4 with 128 bits of all that precedes, under the key of the pair and direction |
//!
//! An answer proves that its sender is alive now: it names a boot and a moment of the receiver, so
//! a recorded answer is worthless later. A question proves nothing; it costs its receiver one
//! answer.

use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher24};

use super::peer::clock;
use crate::time::Time;

/// The Ethernet type of these frames: IEEE 802, local experimental 1 (IEEE 802-2014, section
/// 9.2.4).
pub const ETHERTYPE: u16 = 0x88b5;

const VERSION: u8 = 1;
const HEADER: usize = 32;
const TAG: usize = 16;

/// The keys that this unit shares with one peer for the frames on the data ports.
#[derive(Clone)]
pub struct PortKeys {
    /// The key for frames from this unit.
    pub send: [u8; 16],
    /// The key for frames from the peer.
    pub receive: [u8; 16],
}

impl std::fmt::Debug for PortKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PortKeys(secret)")
    }
}

/// Why a frame on a data port was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than its fields say, or of a version that this unit does not speak.
    Malformed,
    /// From or to a unit that is not configured, or for another one. Broadcast frames reach all.
    NotForUs,
    /// The peer has not signed it.
    NotSigned,
    /// It was sent from a port of another name: the networks of two ports are joined.
    OtherPort,
    /// It answers no recent question: it was recorded, or delayed.
    Old,
    /// The heartbeat in it was refused.
    Heartbeat(super::HeartbeatError),
}

/// The three kinds of frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    Question,
    Answer,
    /// A host on the link of the port sends to a standby.
    Stray,
}

/// The fields of a frame except its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub kind: FrameKind,
    pub from: u32,
    pub to: u32,
    pub port: u32,
    pub asked: Asked,
}

/// The moment of a unit's question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The boot of the unit that asks.
    pub boot_id: u64,
    /// Its clock, in nanoseconds; comparable with readings of the same boot only.
    pub clock: u64,
}

impl Asked {
    /// Whether that was in this boot, within `span` before `now`, and after `since`.
    pub(super) fn is_fresh(
        &self,
        boot_id: u64,
        now: Time,
        span: Duration,
        since: Option<Time>,
    ) -> bool {
        let span = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let age = clock(now).checked_sub(self.clock);
        self.boot_id == boot_id
            && age.is_some_and(|age| age <= span)
            && since.is_none_or(|since| self.clock > clock(since))
    }
}

/// The frame, signed.
pub(super) fn seal(envelope: &Envelope, body: &[u8], key: &[u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len() + TAG);
    let kind = match envelope.kind {
        FrameKind::Question => 1,
        FrameKind::Answer => 2,
        FrameKind::Stray => 3,
    };
    out.extend([VERSION, kind]);
    out.extend((body.len() as u16).to_be_bytes());
    for number in [envelope.from, envelope.to, envelope.port] {
        out.extend(number.to_be_bytes());
    }
    out.extend(envelope.asked.boot_id.to_be_bytes());
    out.extend(envelope.asked.clock.to_be_bytes());
    out.extend(body);
    let tag = tag(&out, key);
    out.extend(tag);
    out
}

/// The envelope of a frame, which may have padding at its end; nothing in it is verified.
pub(super) fn peek(frame: &[u8]) -> Result<Envelope, FrameError> {
    let header: &[u8; HEADER] = frame.first_chunk().ok_or(FrameError::Malformed)?;
    let number = |at: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        u32::from_be_bytes(bytes)
    };
    let long = |at| u64::from(number(at)) << 32 | u64::from(number(at + 4));
    let kind = match header[..2] {
        [VERSION, 1] => FrameKind::Question,
        [VERSION, 2] => FrameKind::Answer,
        [VERSION, 3] => FrameKind::Stray,
        _ => return Err(FrameError::Malformed),
    };
    Ok(Envelope {
        kind,
        from: number(4),
        to: number(8),
        port: number(12),
        asked: Asked {
            boot_id: long(16),
            clock: long(24),
        },
    })
}

/// The body of a frame that was signed with `key`.
pub(super) fn open<'a>(frame: &'a [u8], key: &[u8; 16]) -> Result<&'a [u8], FrameError> {
    let &[_, _, high, low, ..] = frame else {
        return Err(FrameError::Malformed);
    };
    let signed = HEADER + usize::from(u16::from_be_bytes([high, low]));
    let (signed, rest) = frame
        .split_at_checked(signed)
        .ok_or(FrameError::Malformed)?;
    let given: &[u8; TAG] = rest.first_chunk().ok_or(FrameError::Malformed)?;
    // Without a branch for each byte, so that the time reveals nothing about the right one.
    let differs = tag(signed, key)
        .iter()
        .zip(given)
        .fold(0, |differs, (a, b)| differs | (a ^ b));
    match differs {
        0 => Ok(&signed[HEADER..]),
        _ => Err(FrameError::NotSigned),
    }
}

fn tag(bytes: &[u8], key: &[u8; 16]) -> [u8; TAG] {
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write(bytes);
    hasher.finish128().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: [u8; 16] = [7; 16];

    fn envelope(numbers: [u32; 3], times: [u64; 2], asks: bool) -> Envelope {
        let [from, to, port] = numbers;
        let [boot_id, clock] = times;
        let kind = if asks {
            FrameKind::Question
        } else {
            FrameKind::Answer
        };
        Envelope {
            kind,
            from,
            to,
            port,
            asked: Asked { boot_id, clock },
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(
            numbers: [u32; 3],
            times: [u64; 2],
            asks: bool,
            body in proptest::collection::vec(any::<u8>(), 0..200),
            padding in 0_usize..60,
        ) {
            let envelope = envelope(numbers, times, asks);
            let mut frame = seal(&envelope, &body, &KEY);
            frame.resize(frame.len() + padding, 0);
            prop_assert_eq!(peek(&frame), Ok(envelope));
            prop_assert_eq!(open(&frame, &KEY), Ok(&body[..]));
            prop_assert_eq!(open(&frame, &[8; 16]), Err(FrameError::NotSigned));
        }

        #[test]
        fn a_changed_bit_is_noticed(
            numbers: [u32; 3],
            times: [u64; 2],
            body in proptest::collection::vec(any::<u8>(), 0..40),
            at: prop::sample::Index,
            bit in 0..8,
        ) {
            let mut frame = seal(&envelope(numbers, times, false), &body, &KEY);
            let at = at.index(frame.len());
            frame[at] ^= 1_u8 << bit;
            prop_assert!(open(&frame, &KEY).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (peek(&bytes), open(&bytes, &KEY));
        }
    }

    #[test]
    fn only_this_boot_and_moment_count() {
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        let asked = Asked {
            boot_id: 1,
            clock: clock(at(1000)),
        };
        let span = Duration::from_millis(100);
        let fresh = |boot_id, now, since| asked.is_fresh(boot_id, at(now), span, since);
        assert!(fresh(1, 1000, None) && fresh(1, 1100, None));
        assert!(!fresh(2, 1000, None), "of another boot");
        assert!(!fresh(1, 1101, None), "too long ago");
        assert!(!fresh(1, 999, None), "of the future");
        assert!(fresh(1, 1050, Some(at(999))));
        assert!(!fresh(1, 1050, Some(at(1000))), "asked before that");
    }
}
