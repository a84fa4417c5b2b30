//! The bytes of [`super::message`].

use super::hello::write_hello;
use super::message::{MAX_FRAME, Message, Operation, Record, Refusal};
use super::push_frame;
use crate::evidence::Holding;
use crate::flow::Direction;
use crate::flow::{Addr, FlowKey, Protocol};
use crate::session::tcp::{self, TcpState};
use crate::session::{AddressBook, Session, SessionFlags, Tracker, TranslatedAddr};
use crate::store::digest::{Buckets, SUMS};
use crate::time::Tick;

/// Bytes that are not a frame of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

pub(super) type Result<T> = std::result::Result<T, Malformed>;

/// Bytes of a frame before its body.
pub(crate) const HEADER: usize = 5;

const V6: u8 = 1;
const NAT_SRC: u8 = 2;
const NAT_DST: u8 = 4;
const TCP: u8 = 8;
const FLAGS: [(u8, SessionFlags); 4] = [
    (16, SessionFlags::REPLIED),
    (32, SessionFlags::PICKED_UP),
    (64, SessionFlags::LOG),
    // A release that does not know this mark ignores it.
    (128, SessionFlags::SPREAD),
];

/// The largest window that there is (RFC 7323, section 2.3).
const MAX_WINDOW: u32 = 65_535 << 14;

/// Received bytes until they make a frame: at most one frame and as much again.
#[derive(Debug, Default)]
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl FrameBuffer {
    const CAPACITY: usize = 2 * (MAX_FRAME + HEADER);

    /// How many bytes there is room for.
    pub(crate) fn room(&self) -> usize {
        Self::CAPACITY - (self.bytes.len() - self.start)
    }

    /// Takes as many of `bytes` as there is room for; returns how many.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = &bytes[..bytes.len().min(self.room())];
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.bytes.len() + taken.len() > Self::CAPACITY {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(taken);
        taken.len()
    }

    /// The type and body of the frame that is next; none until it is complete.
    pub(crate) fn frame(&self) -> Result<Option<(u8, &[u8])>> {
        let bytes = &self.bytes[self.start..];
        let Some((length, rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > MAX_FRAME {
            return Err(Malformed);
        }
        Ok(rest
            .get(..length)
            .and_then(<[u8]>::split_first)
            .map(|(kind, body)| (*kind, body)))
    }

    /// Continues with the frame after the one that [`FrameBuffer::frame`] returns.
    pub(crate) fn next(&mut self) {
        if let Ok(Some((_, body))) = self.frame() {
            self.start += HEADER + body.len();
        }
    }
}

/// Reads the body of a frame.
pub(crate) fn decode(kind: u8, body: &[u8]) -> Result<Message<'_>> {
    let mut from = Reader(body);
    Ok(match kind {
        1 => Message::Hello(Box::new(from.hello()?)),
        2 => Message::Batch {
            seq: from.u64()?,
            operations: from.0,
        },
        3 => Message::Ack {
            epoch: from.u64()?,
            seq: from.u64()?,
        },
        4 => Message::Begin,
        5 => {
            let count = from.u8()?;
            let parts = (0..count).map(|_| Ok((from.u8()?, from.buckets()?)));
            Message::End(parts.collect::<Result<_>>()?)
        }
        6 => Message::Mark {
            seq: from.u64()?,
            group: from.u8()?,
            sums: from.take(SUMS * 8)?,
        },
        7 => Message::Verdict {
            seq: from.u64()?,
            group: from.u8()?,
            differing: from.buckets()?,
        },
        8 => Message::Claim {
            group: from.u8()?,
            term: from.u64()?,
            basis: Holding {
                term: from.u64()?,
                epoch: from.u64()?,
                position: from.u64()?,
            },
        },
        9 => Message::Release { group: from.u8()? },
        10 => Message::Handover {
            group: from.u8()?,
            term: from.u64()?,
        },
        11 => Message::Offer {
            group: from.u8()?,
            operations: from.0,
        },
        12 => Message::OfferEnd { group: from.u8()? },
        13 => Message::OfferTaken { group: from.u8()? },
        14 => {
            let (group, reason, named) = (from.u8()?, from.u8()?, from.u8()? != 0);
            let mut all = Refusal::ALL.into_iter();
            let reason = all.find(|known| *known as u8 == reason).ok_or(Malformed)?;
            let key = match named {
                true => {
                    let v6 = from.u8()? & V6 != 0;
                    Some(from.key(v6)?)
                }
                false => None,
            };
            Message::Refuse { group, reason, key }
        }
        15 => Message::Drain,
        16 => Message::Multicast {
            group: from.u8()?,
            port: from.u16()?,
            record: from.0,
        },
        17 => Message::Push(push_frame::read(from.0)?),
        18 => Message::Relieve { group: from.u8()? },
        _ => Message::Unknown,
    })
}

/// Writes a frame behind `out`. Operations and sums are written as they are.
pub fn encode(out: &mut Vec<u8>, message: &Message<'_>) {
    let start = out.len();
    match message {
        Message::Hello(hello) => {
            begin_frame(out, 1);
            write_hello(out, hello, start);
        }
        Message::Batch { seq, operations } => {
            begin_batch(out, *seq);
            out.extend_from_slice(operations);
        }
        Message::Ack { epoch, seq } => {
            begin_frame(out, 3);
            out.extend_from_slice(&epoch.to_be_bytes());
            out.extend_from_slice(&seq.to_be_bytes());
        }
        Message::Begin => begin_frame(out, 4),
        Message::End(parts) => {
            begin_frame(out, 5);
            let parts = &parts[..parts.len().min(255)];
            out.push(parts.len() as u8);
            for (group, buckets) in parts {
                out.push(*group);
                out.extend_from_slice(&buckets.to_bytes());
            }
        }
        Message::Mark { seq, group, sums } => {
            begin_frame(out, 6);
            out.extend_from_slice(&seq.to_be_bytes());
            out.push(*group);
            out.extend_from_slice(sums);
        }
        Message::Verdict {
            seq,
            group,
            differing,
        } => {
            begin_frame(out, 7);
            out.extend_from_slice(&seq.to_be_bytes());
            out.push(*group);
            out.extend_from_slice(&differing.to_bytes());
        }
        Message::Claim { group, term, basis } => {
            write_term(out, 8, *group, *term);
            for number in [basis.term, basis.epoch, basis.position] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        }
        Message::Release { group } => write_group(out, 9, *group),
        Message::Handover { group, term } => write_term(out, 10, *group, *term),
        Message::Offer { group, operations } => {
            write_group(out, 11, *group);
            out.extend_from_slice(operations);
        }
        Message::OfferEnd { group } => write_group(out, 12, *group),
        Message::OfferTaken { group } => write_group(out, 13, *group),
        Message::Drain => begin_frame(out, 15),
        Message::Multicast { .. } => write_multicast(out, message),
        Message::Push(message) => push_frame::write(out, message),
        Message::Relieve { group } => write_group(out, 18, *group),
        Message::Refuse { group, reason, key } => write_refusal(out, *group, *reason, key.as_ref()),
        Message::Unknown => begin_frame(out, u8::MAX),
    }
    end_frame(out, start);
}

fn write_refusal(out: &mut Vec<u8>, group: u8, reason: Refusal, key: Option<&FlowKey>) {
    write_group(out, 14, group);
    out.extend_from_slice(&[reason as u8, u8::from(key.is_some())]);
    let Some(key) = key else { return };
    let v6 = !key.src.is_v4();
    out.push(u8::from(v6));
    write_key(out, key, v6);
}

fn write_multicast(out: &mut Vec<u8>, message: &Message<'_>) {
    if let Message::Multicast {
        group,
        port,
        record,
    } = message
    {
        write_group(out, 16, *group);
        out.extend_from_slice(&port.to_be_bytes());
        out.extend_from_slice(record);
    }
}

/// Begins a batch at the end of `out`: operations and [`end_batch`] are to follow.
pub(crate) fn begin_batch(out: &mut Vec<u8>, seq: u64) {
    begin_frame(out, 2);
    out.extend_from_slice(&seq.to_be_bytes());
}

/// Begins an offer at the end of `out`: operations and [`end_offer`] are to follow.
pub(crate) fn begin_offer(out: &mut Vec<u8>, group: u8) {
    write_group(out, 11, group);
}

/// Ends the offer that begins at `start`.
pub(crate) fn end_offer(out: &mut [u8], start: usize) {
    end_frame(out, start);
}

/// Ends the batch that begins at `start`, and sets the change that it brings the receiver to.
pub(crate) fn end_batch(out: &mut [u8], start: usize, seq: u64) {
    if let Some(place) = out.get_mut(start + HEADER..start + HEADER + 8) {
        place.copy_from_slice(&seq.to_be_bytes());
    }
    end_frame(out, start);
}

/// Writes [`Operation::Put`] for a session.
pub(crate) fn write_session(out: &mut Vec<u8>, session: &Session, book: &AddressBook, now: Tick) {
    let start = begin_operation(out, 1);
    let outgoing = session.translated(Direction::Original, book);
    let translated = |index, before: u16, after| index != TranslatedAddr::SAME || before != after;
    let nat_src = translated(session.nat_src, session.src_port, session.nat_src_port);
    let nat_dst = translated(session.nat_dst, session.dst_port, session.nat_dst_port);
    let v6 = !session.src.is_v4();
    let tracks_tcp = matches!(session.tracker, Tracker::Tcp(_));
    let mut marks = 0;
    for (is, mark) in [
        (v6, V6),
        (nat_src, NAT_SRC),
        (nat_dst, NAT_DST),
        (tracks_tcp, TCP),
    ] {
        marks |= u8::from(is) * mark;
    }
    for (mark, flag) in FLAGS {
        marks |= u8::from(session.flags.contains(flag)) * mark;
    }
    out.extend_from_slice(&[marks, session.group.0]);
    write_varint(out, u64::from(session.in_port.0));
    write_varint(out, u64::from(session.out_port.0));
    write_varint(out, u64::from(session.policy.0));
    write_key(out, &session.key(Direction::Original, book), v6);
    if nat_src {
        write_addr(out, &outgoing.src, v6);
        out.extend_from_slice(&outgoing.src_port.to_be_bytes());
    }
    if nat_dst {
        write_addr(out, &outgoing.dst, v6);
        out.extend_from_slice(&outgoing.dst_port.to_be_bytes());
    }
    write_varint(out, u64::from(now.0.saturating_sub(session.last_seen.0)));
    write_varint(out, u64::from(now.0.saturating_sub(session.created.0)));
    session
        .packets
        .iter()
        .chain(&session.bytes)
        .for_each(|&n| write_varint(out, n));
    if let Tracker::Tcp(tcp) = &session.tracker {
        write_tcp(out, tcp);
    }
    end_operation(out, start);
}

/// Writes [`Operation::Remove`].
pub(crate) fn write_removal(out: &mut Vec<u8>, key: &FlowKey, group: u8) {
    let start = begin_operation(out, 2);
    let v6 = !key.src.is_v4();
    out.extend_from_slice(&[u8::from(v6), group]);
    write_key(out, key, v6);
    end_operation(out, start);
}

/// Reads the first operation of a batch: what it is, or none if it is of a newer version, and the
/// bytes it takes. Call it with the rest until that is empty.
pub(crate) fn next_operation(operations: &[u8]) -> Result<(Option<Operation>, usize)> {
    let mut from = Reader(operations);
    let (kind, length) = (from.u8()?, usize::from(from.u8()?));
    let mut body = Reader(from.take(length)?);
    let operation = match kind {
        1 => Some(Operation::Put(body.record()?)),
        2 => {
            let (marks, group) = (body.u8()?, body.u8()?);
            let key = body.key(marks & V6 != 0)?;
            Some(Operation::Remove { key, group })
        }
        _ => None,
    };
    Ok((operation, 2 + length))
}

pub(super) fn begin_frame(out: &mut Vec<u8>, kind: u8) {
    out.extend_from_slice(&[0, 0, 0, 0, kind]);
}

fn end_frame(out: &mut [u8], start: usize) {
    let length = out.len().saturating_sub(start + 4) as u32;
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

fn begin_operation(out: &mut Vec<u8>, kind: u8) -> usize {
    out.extend_from_slice(&[kind, 0]);
    out.len()
}

fn end_operation(out: &mut [u8], start: usize) {
    let length = out.len() - start;
    debug_assert!(length <= 255, "the longest record has 163 bytes");
    out[start - 1] = length as u8;
}

fn write_group(out: &mut Vec<u8>, kind: u8, group: u8) {
    begin_frame(out, kind);
    out.push(group);
}

fn write_term(out: &mut Vec<u8>, kind: u8, group: u8, term: u64) {
    write_group(out, kind, group);
    out.extend_from_slice(&term.to_be_bytes());
}

fn write_key(out: &mut Vec<u8>, key: &FlowKey, v6: bool) {
    out.push(key.protocol.0);
    write_addr(out, &key.src, v6);
    write_addr(out, &key.dst, v6);
    out.extend_from_slice(&key.src_port.to_be_bytes());
    out.extend_from_slice(&key.dst_port.to_be_bytes());
}

fn write_addr(out: &mut Vec<u8>, addr: &Addr, v6: bool) {
    if v6 {
        out.extend_from_slice(addr.octets());
    } else {
        out.extend_from_slice(&addr.last4());
    }
}

fn write_tcp(out: &mut Vec<u8>, tcp: &tcp::Tracker) {
    out.extend_from_slice(&[tcp.state as u8, tcp.scales, tcp.marks]);
    for side in 0..2 {
        out.extend_from_slice(&tcp.acked[side].to_be_bytes());
        write_varint(out, u64::from(tcp.end[side].wrapping_sub(tcp.acked[side])));
        write_varint(out, u64::from(tcp.max_window[side]));
    }
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The bytes left to read.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn varint16(&mut self) -> Result<u16> {
        u16::try_from(self.varint()?).map_err(|_| Malformed)
    }

    fn varint32(&mut self) -> Result<u32> {
        u32::try_from(self.varint()?).map_err(|_| Malformed)
    }

    fn buckets(&mut self) -> Result<Buckets> {
        self.array().map(Buckets::from_bytes)
    }

    fn addr(&mut self, v6: bool) -> Result<Addr> {
        if !v6 {
            return self.array().map(Addr::v4);
        }
        // One that is IPv4 in disguise would mix the families within a session.
        self.array()
            .map(Addr::v6)
            .and_then(|a| if a.is_v4() { Err(Malformed) } else { Ok(a) })
    }

    fn key(&mut self, v6: bool) -> Result<FlowKey> {
        Ok(FlowKey {
            protocol: Protocol(self.u8()?),
            src: self.addr(v6)?,
            dst: self.addr(v6)?,
            src_port: self.u16()?,
            dst_port: self.u16()?,
        })
    }

    fn record(&mut self) -> Result<Record> {
        let marks = self.u8()?;
        let v6 = marks & V6 != 0;
        let group = self.u8()?;
        let [in_port, out_port] = [self.varint16()?, self.varint16()?];
        let policy = self.varint16()?;
        let key = self.key(v6)?;
        let mut outgoing = key;
        if marks & NAT_SRC != 0 {
            (outgoing.src, outgoing.src_port) = (self.addr(v6)?, self.u16()?);
        }
        if marks & NAT_DST != 0 {
            (outgoing.dst, outgoing.dst_port) = (self.addr(v6)?, self.u16()?);
        }
        let mut flags = SessionFlags::default();
        for (mark, flag) in FLAGS {
            if marks & mark != 0 {
                flags.set(flag);
            }
        }
        Ok(Record {
            group,
            in_port,
            out_port,
            policy,
            key,
            outgoing,
            flags,
            idle: self.varint32()?,
            age: self.varint32()?,
            packets: [self.varint()?, self.varint()?],
            bytes: [self.varint()?, self.varint()?],
            tcp: match (marks & TCP != 0, key.protocol) {
                (false, _) => None,
                (true, Protocol::TCP) => Some(self.tcp()?),
                (true, _) => return Err(Malformed),
            },
        })
    }

    fn tcp(&mut self) -> Result<tcp::Tracker> {
        let [state, scales, marks] = self.array()?;
        let state = *TcpState::ALL.get(usize::from(state)).ok_or(Malformed)?;
        let (mut acked, mut end, mut max_window) = ([0; 2], [0; 2], [0; 2]);
        for side in 0..2 {
            acked[side] = self.u32()?;
            end[side] = u32::wrapping_add(acked[side], self.varint32()?);
            max_window[side] = self.varint32()?.min(MAX_WINDOW);
        }
        Ok(tcp::Tracker::restore(
            state, scales, marks, acked, end, max_window,
        ))
    }

    pub(super) fn name(&mut self) -> Result<String> {
        let length = self.u8()?;
        let bytes = self.take(usize::from(length))?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| Malformed)
    }

    pub(super) fn names(&mut self) -> Result<Vec<String>> {
        (0..self.u16()?).map(|_| self.name()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::flow::{GroupId, PolicyId, PortId};
    use crate::sync::message::Hello;
    use crate::sync::settings::Settings;

    fn addr(v6: bool) -> BoxedStrategy<Addr> {
        if v6 {
            any::<[u8; 16]>()
                .prop_map(Addr::v6)
                .prop_filter("no IPv4 in disguise", |addr| !addr.is_v4())
                .boxed()
        } else {
            any::<[u8; 4]>().prop_map(Addr::v4).boxed()
        }
    }

    fn tracker() -> impl Strategy<Value = tcp::Tracker> {
        let window = prop_oneof![0..=65_535_u32, Just(MAX_WINDOW)];
        let state = prop::sample::select(TcpState::ALL.to_vec());
        (
            state,
            any::<(u8, u8, [u32; 2], [u32; 2])>(),
            [window.clone(), window],
        )
            .prop_map(|(state, (scales, marks, acked, end), windows)| {
                tcp::Tracker::restore(state, scales, marks, acked, end, windows)
            })
    }

    prop_compose! {
        fn session()(v6 in any::<bool>())(
            [src, dst, nat_src, nat_dst] in [addr(v6), addr(v6), addr(v6), addr(v6)],
            (tracker, translated) in (proptest::option::of(tracker()), any::<(bool, bool)>()),
            (src_port, dst_port, nat_src_port, nat_dst_port) in any::<(u16, u16, u16, u16)>(),
            (group, in_port, out_port, policy) in any::<(u8, u16, u16, u16)>(),
            (packets, bytes, flags) in any::<([u64; 2], [u64; 2], u16)>(),
            (last_seen, created) in (0..=1000_u32, 0..=1000_u32),
        ) -> (Session, FlowKey, AddressBook) {
            let mut book = AddressBook::new();
            let protocol = if tracker.is_some() { Protocol::TCP } else { Protocol::UDP };
            let key = FlowKey { src, dst, src_port, dst_port, protocol };
            let mut session = Session::new(&key, Tick(created));
            session.last_seen = Tick(last_seen);
            session.tracker = tracker.map_or(Tracker::None, Tracker::Tcp);
            (session.group, session.policy) = (GroupId(group), PolicyId(policy));
            (session.in_port, session.out_port) = (PortId(in_port), PortId(out_port));
            (session.packets, session.bytes) = (packets, bytes);
            session.flags = SessionFlags(flags & 0b10_0000_1101);
            if translated.0 {
                session.nat_src = book.intern(nat_src).unwrap();
                session.nat_src_port = nat_src_port;
            }
            if translated.1 {
                session.nat_dst = book.intern(nat_dst).unwrap();
                session.nat_dst_port = nat_dst_port;
            }
            (session, key, book)
        }
    }

    fn buckets() -> impl Strategy<Value = Buckets> {
        any::<[u8; 32]>().prop_map(Buckets::from_bytes)
    }

    proptest! {
        #[test]
        fn a_session_comes_through((session, key, book) in session(), tail in vec(any::<u8>(), 0..9)) {
            let mut bytes = Vec::new();
            write_session(&mut bytes, &session, &book, Tick(1000));
            let length = bytes.len();
            bytes.extend(tail);
            let (operation, taken) = next_operation(&bytes).unwrap();
            prop_assert_eq!(taken, length);
            let Some(Operation::Put(record)) = operation else { panic!("{operation:?}") };
            prop_assert_eq!(record.key, key);
            prop_assert_eq!(record.outgoing, session.translated(Direction::Original, &book));
            let expected = match session.tracker {
                Tracker::Tcp(tcp) => Some(tcp),
                _ => None,
            };
            prop_assert_eq!(record.tcp, expected);
            prop_assert_eq!(record.flags, session.flags);
            prop_assert_eq!(record.idle, 1000 - session.last_seen.0);
            prop_assert_eq!(record.age, 1000 - session.created.0);
            prop_assert_eq!((record.packets, record.bytes), (session.packets, session.bytes));
            let names = (record.group, record.in_port, record.out_port, record.policy);
            let PolicyId(policy) = session.policy;
            prop_assert_eq!(names, (session.group.0, session.in_port.0, session.out_port.0, policy));
        }

        /// A newer version may say more in a known operation, and have operations of its own.
        #[test]
        fn newer_operations_are_passed_over(
            (session, _, book) in session(),
            more in vec(any::<u8>(), 1..20),
            kind in 3..=255_u8,
        ) {
            let mut bytes = Vec::new();
            write_session(&mut bytes, &session, &book, Tick(1000));
            let plain = next_operation(&bytes).unwrap().0;
            bytes.extend(&more);
            bytes[1] += more.len() as u8;
            prop_assert_eq!(next_operation(&bytes), Ok((plain, bytes.len())));
            bytes[0] = kind;
            prop_assert_eq!(next_operation(&bytes), Ok((None, bytes.len())));
        }

        #[test]
        fn frames_come_through_in_any_pieces(
            (a, b, c) in any::<(u64, u64, u8)>(),
            set in buckets(),
            (operations, cut) in (vec(any::<u8>(), 0..500), 1..700_usize),
            names in vec("[a-z0-9-]{1,20}", 0..5),
        ) {
            let sums = [c; SUMS * 8];
            let hello = Hello {
                version: 1,
                epoch: a,
                group_id: c,
                resume: set.contains(0).then_some((a, b)),
                ruleset: [c; 16],
                max_sessions: 7,
                node: "gw-a".into(),
                ports: names.clone(),
                groups: names.clone(),
                policies: names.clone(),
                units: names.iter().take(2).cloned().collect(),
                takes_configs: true,
                weights: names.iter().take(3).cloned().collect(),
                copies: Some(c),
                cuts: Some(names.iter().take(4).cloned().collect()),
                settings: Settings {
                    is_complete: set.contains(2),
                    items: names.into_iter().map(|name| (name, a as u32)).collect(),
                },
                program: set.contains(1).then(|| "0.2.0".to_owned()),
            };
            let messages = [
                Message::Hello(Box::new(hello)),
                Message::Batch { seq: a, operations: &operations },
                Message::Ack { epoch: a, seq: b },
                Message::Begin,
                Message::Unknown,
                Message::End(vec![(c, set), (1, set)]),
                Message::Mark { seq: a, group: c, sums: &sums },
                Message::Verdict { seq: a, group: c, differing: set },
                Message::Claim { group: c, term: a, basis: Holding { term: b, epoch: a, position: b } },
                Message::Release { group: c },
                Message::Relieve { group: c },
                Message::Handover { group: c, term: a },
                Message::Offer { group: c, operations: &operations },
                Message::OfferEnd { group: c },
                Message::OfferTaken { group: c },
                Message::Drain,
                Message::Multicast { group: c, port: a as u16, record: &operations },
                Message::Refuse { group: c, reason: Refusal::Conflict, key: None },
            ];
            let mut bytes = Vec::new();
            messages.iter().for_each(|message| encode(&mut bytes, message));
            let mut buffer = FrameBuffer::default();
            let mut expected = messages.iter();
            for piece in bytes.chunks(cut) {
                prop_assert_eq!(buffer.push(piece), piece.len());
                while let Some((kind, body)) = buffer.frame().unwrap() {
                    prop_assert_eq!(&decode(kind, body).unwrap(), expected.next().unwrap());
                    buffer.next();
                }
            }
            prop_assert!(expected.next().is_none());
        }

        #[test]
        fn nothing_panics(kind in 0..17_u8, body in vec(any::<u8>(), 0..300)) {
            if let Ok(Message::Batch { operations, .. }) = decode(kind, &body) {
                let mut rest = operations;
                while let Ok((_, length)) = next_operation(rest) {
                    prop_assert!(length >= 2);
                    rest = &rest[length..];
                }
            }
        }

        /// A cut or changed operation is refused or read as something else, within its bounds.
        #[test]
        fn damaged_operations_stay_in_bounds(
            (session, _, book) in session(),
            (at, to, cut) in any::<(prop::sample::Index, u8, prop::sample::Index)>(),
        ) {
            let mut bytes = Vec::new();
            write_session(&mut bytes, &session, &book, Tick(1000));
            let at = at.index(bytes.len());
            bytes[at] = to;
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok((_, length)) = next_operation(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }

    #[test]
    fn hostile_lengths_are_refused() {
        for length in [0, MAX_FRAME as u32 + 1, u32::MAX] {
            let mut buffer = FrameBuffer::default();
            buffer.push(&length.to_be_bytes());
            assert_eq!(buffer.frame(), Err(Malformed));
        }
        // The longest allowed one fits, and no more than it and another is held.
        let mut buffer = FrameBuffer::default();
        buffer.push(&(MAX_FRAME as u32).to_be_bytes());
        let taken = buffer.push(&vec![9; 10 * MAX_FRAME]);
        assert_eq!((taken + 4, buffer.room()), (2 * (MAX_FRAME + HEADER), 0));
        assert_eq!(buffer.frame().unwrap().unwrap().1.len(), MAX_FRAME - 1);
        buffer.next();
        assert!(buffer.room() > MAX_FRAME);
    }

    #[test]
    fn a_hello_with_too_many_policies_is_cut() {
        let policies = (0..4096).map(|i| format!("{i:063}")).collect();
        let hello = Hello {
            policies,
            node: "a".into(),
            ..Hello::default()
        };
        let mut bytes = Vec::new();
        encode(&mut bytes, &Message::Hello(Box::new(hello)));
        assert!(bytes.len() <= MAX_FRAME + 4);
        let Ok(Message::Hello(hello)) = decode(1, &bytes[HEADER..]) else {
            panic!()
        };
        assert!(hello.policies.len() > 1000 && hello.policies.len() < 4096);
    }

    #[test]
    fn the_largest_and_the_usual_record_have_these_sizes() {
        let key = FlowKey {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([198, 51, 100, 1]),
            src_port: 40_000,
            dst_port: 443,
            protocol: Protocol::TCP,
        };
        let mut book = AddressBook::new();
        let mut session = Session::new(&key, Tick(900));
        session.nat_src = book.intern(Addr::v4([192, 0, 2, 1])).unwrap();
        (session.packets, session.bytes) = ([12, 14], [1800, 90_000]);
        let (windows, end) = ([64_240, 131_072], [1001, 3000]);
        session.tracker = Tracker::Tcp(tcp::Tracker::restore(
            TcpState::Established,
            0x77,
            0x22,
            [1000, 2000],
            end,
            windows,
        ));
        let mut bytes = Vec::new();
        write_session(&mut bytes, &session, &book, Tick(1000));
        assert_eq!(bytes.len(), 55);
        let wide = |n| Addr::v6([n; 16]);
        (session.src, session.dst) = (wide(1), wide(2));
        session.nat_src = book.intern(wide(3)).unwrap();
        session.nat_dst = book.intern(wide(4)).unwrap();
        session.policy = PolicyId(u16::MAX);
        (session.packets, session.bytes) = ([u64::MAX; 2], [u64::MAX; 2]);
        session.tracker = Tracker::Tcp(tcp::Tracker::restore(
            TcpState::Established,
            0,
            0,
            [1; 2],
            [0; 2],
            [u32::MAX; 2],
        ));
        (session.last_seen, session.created) = (Tick(0), Tick(0));
        bytes.clear();
        write_session(&mut bytes, &session, &book, Tick(u32::MAX));
        assert_eq!(bytes.len(), 163);
    }
}
