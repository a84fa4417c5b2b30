//! The messages of IGMP (RFC 2236, RFC 9776) and MLD (RFC 2710, RFC 3810): one form for both.
//!
//! A message of an older version is read as what it means in the newest one (RFC 9776, section
//! 7.3.2; RFC 3810, section 8.3.2): joining a group is a record that excludes no source, leaving it
//! one that includes none.

use std::time::Duration;

use super::ethernet;
use crate::event::DropReason;
use crate::flow::{Addr, Family, Protocol};
use crate::packet::checksum::Sum;
use crate::packet::neighbor::Mac;

/// A message, with who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The source address of its packet.
    pub from: Addr,
    /// The destination address of its packet.
    pub to: Addr,
    /// Of which version it is.
    pub version: Version,
    /// A question or a report.
    pub message: Message,
}

/// The versions by what hosts can say in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// IGMPv1: a host can't say that it leaves.
    JoinOnly = 1,
    /// IGMPv2 and MLDv1: groups only.
    Groups = 2,
    /// IGMPv3 and MLDv2: groups and sources.
    Sources = 3,
}

/// What routers and hosts tell each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A router asks who wants what.
    Query(Query),
    /// A host says what it wants.
    Report(Vec<Record>),
}

/// A question of a router (RFC 9776, section 4.1; RFC 3810, section 5.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The group that it is about; none for all.
    pub group: Option<Addr>,
    /// The sources that it is about; none for all.
    pub sources: Vec<Addr>,
    /// Hosts answer within this time.
    pub max_response: Duration,
    /// Other routers must not shorten their timers: somebody has answered already.
    pub suppress: bool,
    /// How many packets in a row may get lost, plus one; 0 if the sender does not say.
    pub robustness: u8,
    /// How often the sender asks; zero if it does not say.
    pub interval: Duration,
}

/// What a host wants of a group (RFC 9776, section 4.2.12; RFC 3810, section 5.2.12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the sources are.
    pub kind: RecordKind,
    /// A multicast address.
    pub group: Addr,
    /// Hosts that send to it, wanted or not: see `kind`.
    pub sources: Vec<Addr>,
}

/// The meaning of the sources of a [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The host wants these sources only, as before.
    IsInclude = 1,
    /// The host wants all sources but these, as before.
    IsExclude = 2,
    /// From now on, the host wants these sources only.
    ToInclude = 3,
    /// From now on, the host wants all sources but these.
    ToExclude = 4,
    /// The host wants these sources too.
    Allow = 5,
    /// The host no longer wants these sources.
    Block = 6,
}

impl RecordKind {
    const ALL: [RecordKind; 6] = [
        RecordKind::IsInclude,
        RecordKind::IsExclude,
        RecordKind::ToInclude,
        RecordKind::ToExclude,
        RecordKind::Allow,
        RecordKind::Block,
    ];
}

const ETHERNET: usize = 14;
const IGMP: u8 = 2;
const HOP_BY_HOP: u8 = 0;
const ROUTER_ALERT_V4: [u8; 4] = [148, 4, 0, 0];
/// Next header ICMPv6, 8 bytes, router alert for MLD (RFC 2711), two bytes of padding.
const ROUTER_ALERT_V6: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];
/// Internetwork control (RFC 9776, section 4).
const TOS: u8 = 0xc0;

const QUERY_V4: u8 = 0x11;
const REPORT_1: u8 = 0x12;
const REPORT_2: u8 = 0x16;
const LEAVE: u8 = 0x17;
const REPORT_3: u8 = 0x22;
const QUERY_V6: u8 = 130;
const MLD_REPORT_1: u8 = 131;
const DONE: u8 = 132;
const MLD_REPORT_2: u8 = 143;

/// Where reports of the newest version go: 224.0.0.22, ff02::16.
pub const fn report_destination(family: Family) -> Addr {
    match family {
        Family::V4 => Addr::v4([224, 0, 0, 22]),
        Family::V6 => Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16]),
    }
}

/// All hosts of the link: 224.0.0.1, ff02::1.
pub const fn all_hosts(family: Family) -> Addr {
    match family {
        Family::V4 => Addr::v4([224, 0, 0, 1]),
        Family::V6 => Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    }
}

/// All routers of the link: 224.0.0.2, ff02::2.
pub const fn all_routers(family: Family) -> Addr {
    match family {
        Family::V4 => Addr::v4([224, 0, 0, 2]),
        Family::V6 => Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
    }
}

/// Whether an IP packet, from its IP header on, is one of IGMP or MLD.
pub fn is_membership(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(9) == Some(&IGMP),
        Some(6) => {
            packet.get(6) == Some(&HOP_BY_HOP)
                && packet.get(40) == Some(&Protocol::ICMPV6.0)
                && packet.get(48).is_some_and(|kind| {
                    matches!(*kind, QUERY_V6 | MLD_REPORT_1 | DONE | MLD_REPORT_2)
                })
        }
        _ => false,
    }
}

/// Reads a packet of IGMP or MLD, from its IP header on.
///
/// # Errors
///
/// [`DropReason::MembershipMalformed`] if it is no such packet, or not from this link: a TTL or hop
/// limit other than 1, a source that is not of the link (RFC 3810, section 5), no router alert
/// where the sender must set it, a wrong checksum.
pub fn parse(packet: &[u8]) -> Result<Received, DropReason> {
    let received = match packet.first().map(|first| first >> 4) {
        Some(4) => parse_v4(packet),
        Some(6) => parse_v6(packet),
        _ => None,
    };
    received.ok_or(DropReason::MembershipMalformed)
}

fn parse_v4(packet: &[u8]) -> Option<Received> {
    let (header, _) = packet.split_first_chunk::<20>()?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let is_whole = u16::from_be_bytes([header[6], header[7]]) & 0x3fff == 0;
    let options = packet.get(20..header_len)?;
    let body = packet.get(header_len..total)?;
    let mut sum = Sum::default();
    sum.add(&packet[..header_len]);
    let mut payload = Sum::default();
    payload.add(body);
    if header[8] != 1 || header[9] != IGMP || !is_whole || sum.checksum() != 0 {
        return None;
    }
    if payload.checksum() != 0 {
        return None;
    }
    let from = Addr::v4(*header[12..].first_chunk()?);
    let to = Addr::v4(*header[16..].first_chunk()?);
    // Some hosts of the older versions leave it out.
    let has_alert = options
        .windows(2)
        .any(|option| option == &ROUTER_ALERT_V4[..2]);
    if !has_alert && !matches!(body.first()?, &(REPORT_1 | REPORT_2 | QUERY_V4)) {
        return None;
    }
    let (version, message) = igmp(body)?;
    // A query that comes from nowhere is that of a snooping switch; it elects no querier.
    (to.is_group() && !from.is_group()).then_some(Received {
        from,
        to,
        version,
        message,
    })
}

fn igmp(body: &[u8]) -> Option<(Version, Message)> {
    let (head, rest) = body.split_first_chunk::<8>()?;
    let group = Addr::v4([head[4], head[5], head[6], head[7]]);
    let old = |kind| one_record(kind, group);
    Some(match head[0] {
        QUERY_V4 if rest.is_empty() => {
            let version = match head[1] {
                0 => Version::JoinOnly,
                _ => Version::Groups,
            };
            let tenths = if head[1] == 0 {
                100
            } else {
                u64::from(head[1])
            };
            let max_response = Duration::from_millis(tenths * 100);
            (version, old_query(group, max_response)?)
        }
        QUERY_V4 => {
            let max_response = Duration::from_millis(u64::from(read_float8(head[1])) * 100);
            (Version::Sources, new_query(group, max_response, rest)?)
        }
        REPORT_1 => (Version::JoinOnly, old(RecordKind::IsExclude)?),
        REPORT_2 => (Version::Groups, old(RecordKind::IsExclude)?),
        LEAVE => (Version::Groups, old(RecordKind::ToInclude)?),
        REPORT_3 => {
            let count = u16::from_be_bytes([head[6], head[7]]);
            (Version::Sources, records(count, rest, Family::V4)?)
        }
        _ => return None,
    })
}

fn parse_v6(packet: &[u8]) -> Option<Received> {
    let (header, rest) = packet.split_first_chunk::<40>()?;
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let rest = rest.get(..payload_len)?;
    let from = Addr::v6(*header[8..].first_chunk()?);
    let to = Addr::v6(*header[24..].first_chunk()?);
    if header[6] != HOP_BY_HOP || header[7] != 1 || !from.is_link_local() || !to.is_group() {
        return None;
    }
    let [next, length, ..] = rest else {
        return None;
    };
    let (options, body) = rest.split_at_checked((usize::from(*length) + 1) * 8)?;
    if *next != Protocol::ICMPV6.0 || !has_router_alert(options.get(2..)?) {
        return None;
    }
    let mut sum = Sum::default();
    sum.add_pseudo_header(from, to, Protocol::ICMPV6, body.len());
    sum.add(body);
    if sum.checksum() != 0 {
        return None;
    }
    let (version, message) = mld(body)?;
    Some(Received {
        from,
        to,
        version,
        message,
    })
}

/// Whether the options of a hop-by-hop header contain a router alert for MLD (RFC 2711).
fn has_router_alert(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            [5, 2, 0, 0, ..] => return true,
            [0, rest @ ..] => rest,
            [_, length, rest @ ..] if rest.len() >= usize::from(*length) => {
                &rest[usize::from(*length)..]
            }
            _ => return false,
        };
    }
}

fn mld(body: &[u8]) -> Option<(Version, Message)> {
    let (head, after) = body.split_first_chunk::<8>()?;
    if head[0] == MLD_REPORT_2 {
        let count = u16::from_be_bytes([head[6], head[7]]);
        return Some((Version::Sources, records(count, after, Family::V6)?));
    }
    let (group, rest) = after.split_first_chunk::<16>()?;
    let group = Addr::v6(*group);
    let code = u16::from_be_bytes([head[4], head[5]]);
    Some(match head[0] {
        QUERY_V6 if rest.is_empty() => {
            let max_response = Duration::from_millis(u64::from(code));
            (Version::Groups, old_query(group, max_response)?)
        }
        QUERY_V6 => {
            let max_response = Duration::from_millis(u64::from(read_float16(code)));
            (Version::Sources, new_query(group, max_response, rest)?)
        }
        MLD_REPORT_1 => (Version::Groups, one_record(RecordKind::IsExclude, group)?),
        DONE => (Version::Groups, one_record(RecordKind::ToInclude, group)?),
        _ => return None,
    })
}

fn one_record(kind: RecordKind, group: Addr) -> Option<Message> {
    let record = Record {
        kind,
        group,
        sources: Vec::new(),
    };
    group.is_group().then(|| Message::Report(vec![record]))
}

/// The group of a query; `Err` if it is neither a group nor unspecified.
fn asked(group: Addr) -> Result<Option<Addr>, ()> {
    match group {
        none if none == Addr::unspecified(none.family()) => Ok(None),
        group if group.is_group() => Ok(Some(group)),
        _ => Err(()),
    }
}

fn old_query(group: Addr, max_response: Duration) -> Option<Message> {
    Some(Message::Query(Query {
        group: asked(group).ok()?,
        sources: Vec::new(),
        max_response,
        suppress: false,
        robustness: 0,
        interval: Duration::ZERO,
    }))
}

fn new_query(group: Addr, max_response: Duration, rest: &[u8]) -> Option<Message> {
    let ([flags, interval, high, low], sources) = rest.split_first_chunk()?;
    let count = u16::from_be_bytes([*high, *low]);
    let (sources, _) = addresses(count, sources, group.family())?;
    Some(Message::Query(Query {
        group: asked(group).ok()?,
        sources,
        max_response,
        suppress: flags & 8 != 0,
        robustness: flags & 7,
        interval: Duration::from_secs(u64::from(read_float8(*interval))),
    }))
}

fn records(count: u16, mut rest: &[u8], family: Family) -> Option<Message> {
    // A record takes at least eight bytes, so the packet bounds their number.
    let mut records = Vec::new();
    for _ in 0..count {
        let ([kind, extra, high, low], after) = rest.split_first_chunk()?;
        let (group, after) = address(after, family)?;
        let (sources, after) = addresses(u16::from_be_bytes([*high, *low]), after, family)?;
        rest = after.get(usize::from(*extra) * 4..)?;
        // Of unknown kinds, and of what is no group, nothing is known (RFC 9776, section 4.2.12).
        let known = RecordKind::ALL
            .into_iter()
            .find(|known| *known as u8 == *kind);
        if let Some(kind) = known.filter(|_| group.is_group()) {
            records.push(Record {
                kind,
                group,
                sources,
            });
        }
    }
    Some(Message::Report(records))
}

fn address(bytes: &[u8], family: Family) -> Option<(Addr, &[u8])> {
    match family {
        Family::V4 => bytes
            .split_first_chunk()
            .map(|(a, rest)| (Addr::v4(*a), rest)),
        Family::V6 => bytes
            .split_first_chunk()
            .map(|(a, rest)| (Addr::v6(*a), rest)),
    }
}

fn addresses(count: u16, mut bytes: &[u8], family: Family) -> Option<(Vec<Addr>, &[u8])> {
    let mut all = Vec::new();
    for _ in 0..count {
        let (addr, rest) = address(bytes, family)?;
        bytes = rest;
        all.push(addr);
    }
    Some((all, bytes))
}

/// A number in eight bits: itself below 128, else a mantissa of four bits and an exponent of three
/// (RFC 9776, section 4.1.1).
fn read_float8(code: u8) -> u32 {
    match code {
        0..128 => u32::from(code),
        _ => (u32::from(code & 0xf) | 0x10) << (u32::from(code >> 4 & 7) + 3),
    }
}

/// As [`read_float8`], in sixteen bits (RFC 3810, section 5.1.3).
fn read_float16(code: u16) -> u32 {
    match code {
        0..0x8000 => u32::from(code),
        _ => (u32::from(code & 0xfff) | 0x1000) << (u32::from(code >> 12 & 7) + 3),
    }
}

/// The largest code whose number is at most `value`, of all codes up to `last`.
fn write_float(value: u128, last: u16, read: impl Fn(u16) -> u32) -> u16 {
    let (mut low, mut high) = (0, last);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match u128::from(read(middle)) <= value {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    low
}

/// The sender of a packet: what [`query_frame`] and [`report_frame`] put into its headers.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// The hardware address.
    pub mac: Mac,
    /// The IP address; of MLD a link-local one.
    pub addr: Addr,
}

/// An Ethernet frame with a query of the newest version, which hosts of older ones understand too.
pub fn query_frame(query: &Query, sender: Sender) -> Vec<u8> {
    let family = sender.addr.family();
    let to = query.group.unwrap_or(all_hosts(family));
    let group = query.group.unwrap_or(Addr::unspecified(family));
    let seconds = u128::from(query.interval.as_secs());
    let tail = [
        u8::from(query.suppress) << 3 | query.robustness.min(7),
        write_float(seconds, 255, |code| read_float8(code as u8)) as u8,
    ];
    let millis = query.max_response.as_millis();
    let mut body = match family {
        Family::V4 => {
            let code = write_float(millis / 100, 255, |code| read_float8(code as u8));
            vec![QUERY_V4, code as u8, 0, 0]
        }
        Family::V6 => {
            let code = write_float(millis, u16::MAX, read_float16).to_be_bytes();
            vec![QUERY_V6, 0, 0, 0, code[0], code[1], 0, 0]
        }
    };
    body.extend_from_slice(group.wire());
    body.extend_from_slice(&tail);
    write_addresses(&mut body, &query.sources);
    frame(sender, to, body)
}

/// An Ethernet frame with a report of the newest version. Of more records than a packet has room
/// for take some at a time: [`RECORD_BYTES`].
pub fn report_frame(records: &[Record], sender: Sender) -> Vec<u8> {
    let family = sender.addr.family();
    let kind = match family {
        Family::V4 => REPORT_3,
        Family::V6 => MLD_REPORT_2,
    };
    let count = (records.len() as u16).to_be_bytes();
    let mut body = vec![kind, 0, 0, 0, 0, 0, count[0], count[1]];
    for record in records {
        body.extend_from_slice(&[record.kind as u8, 0]);
        body.extend_from_slice(&(record.sources.len() as u16).to_be_bytes());
        body.extend_from_slice(record.group.wire());
        record
            .sources
            .iter()
            .for_each(|source| body.extend_from_slice(source.wire()));
    }
    frame(sender, report_destination(family), body)
}

/// Records that a packet of the least MTU of IPv6 has room for, in bytes.
pub const RECORD_BYTES: usize = 1200;

impl Record {
    /// Bytes that it takes in a report.
    pub fn len(&self) -> usize {
        4 + self.group.wire().len() * (1 + self.sources.len())
    }

    /// Whether it names no sources.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }
}

/// An Ethernet frame with a report of a group, or with a farewell to it, in the older version: for
/// links whose querier knows no other.
pub fn old_frame(group: Addr, joins: bool, sender: Sender) -> Vec<u8> {
    let family = group.family();
    let to = if joins { group } else { all_routers(family) };
    let mut body = match (family, joins) {
        (Family::V4, true) => vec![REPORT_2, 0, 0, 0],
        (Family::V4, false) => vec![LEAVE, 0, 0, 0],
        (Family::V6, true) => vec![MLD_REPORT_1, 0, 0, 0, 0, 0, 0, 0],
        (Family::V6, false) => vec![DONE, 0, 0, 0, 0, 0, 0, 0],
    };
    body.extend_from_slice(group.wire());
    frame(sender, to, body)
}

fn write_addresses(body: &mut Vec<u8>, all: &[Addr]) {
    body.extend_from_slice(&(all.len() as u16).to_be_bytes());
    all.iter()
        .for_each(|addr| body.extend_from_slice(addr.wire()));
}

/// Puts IP and Ethernet headers before `body`, whose checksum is at its third byte.
///
/// # Panics
///
/// If `body` has fewer than four bytes.
pub fn frame(sender: Sender, to: Addr, mut body: Vec<u8>) -> Vec<u8> {
    let mut sum = Sum::default();
    let (ethertype, header) = match to.family() {
        Family::V4 => {
            sum.add(&body);
            let total = (20 + ROUTER_ALERT_V4.len() + body.len()) as u16;
            let [high, low] = total.to_be_bytes();
            let mut header = vec![0x46, TOS, high, low, 0, 0, 0x40, 0, 1, IGMP, 0, 0];
            for part in [sender.addr.wire(), to.wire(), &ROUTER_ALERT_V4] {
                header.extend_from_slice(part);
            }
            let mut own = Sum::default();
            own.add(&header);
            header[10..12].copy_from_slice(&own.checksum().to_be_bytes());
            ([8, 0], header)
        }
        Family::V6 => {
            sum.add_pseudo_header(sender.addr, to, Protocol::ICMPV6, body.len());
            sum.add(&body);
            let [high, low] = ((ROUTER_ALERT_V6.len() + body.len()) as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, HOP_BY_HOP, 1];
            for part in [sender.addr.wire(), to.wire(), &ROUTER_ALERT_V6] {
                header.extend_from_slice(part);
            }
            ([0x86, 0xdd], header)
        }
    };
    body[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    let mut frame = Vec::with_capacity(ETHERNET + header.len() + body.len());
    for part in [&ethernet(&to)[..], &sender.mac, &ethertype, &header, &body] {
        frame.extend_from_slice(part);
    }
    frame
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn sender(family: Family) -> Sender {
        let text = match family {
            Family::V4 => "192.0.2.1",
            Family::V6 => "fe80::1",
        };
        Sender {
            mac: [2, 0, 0, 0, 0, 1],
            addr: addr(text),
        }
    }

    fn group(family: Family, number: u8) -> Addr {
        match family {
            Family::V4 => Addr::v4([239, 1, 2, number]),
            Family::V6 => addr(&format!("ff05::{number:x}")),
        }
    }

    fn source(family: Family, number: u8) -> Addr {
        match family {
            Family::V4 => Addr::v4([198, 51, 100, number]),
            Family::V6 => addr(&format!("2001:db8::{number:x}")),
        }
    }

    fn families() -> impl Strategy<Value = Family> {
        any::<bool>().prop_map(|v4| if v4 { Family::V4 } else { Family::V6 })
    }

    #[test]
    fn reads_what_linux_sends() {
        // An IGMPv3 report of Linux: 239.1.1.1, change to exclude nothing.
        let report = [
            0x46, 0xc0, 0, 0x28, 0, 0, 0x40, 0, 1, 2, 0x44, 0x02, 10, 0, 0, 2, 224, 0, 0, 22, 0x94,
            4, 0, 0, 0x22, 0, 0xeb, 0xfb, 0, 0, 0, 1, 4, 0, 0, 0, 239, 1, 1, 1,
        ];
        let mut fixed = report;
        let mut sum = Sum::default();
        fixed[10..12].fill(0);
        sum.add(&fixed[..24]);
        fixed[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
        let mut sum = Sum::default();
        fixed[26..28].fill(0);
        sum.add(&fixed[24..]);
        fixed[26..28].copy_from_slice(&sum.checksum().to_be_bytes());
        let received = parse(&fixed).unwrap();
        assert_eq!(
            (received.from, received.version),
            (addr("10.0.0.2"), Version::Sources)
        );
        let record = Record {
            kind: RecordKind::ToExclude,
            group: addr("239.1.1.1"),
            sources: vec![],
        };
        assert_eq!(received.message, Message::Report(vec![record]));
    }

    #[test]
    fn older_reports_and_farewells_are_records() {
        for family in Family::ALL {
            let group = group(family, 3);
            for (joins, kind) in [
                (true, RecordKind::IsExclude),
                (false, RecordKind::ToInclude),
            ] {
                let frame = old_frame(group, joins, sender(family));
                let received = parse(&frame[ETHERNET..]).unwrap();
                assert_eq!(received.version, Version::Groups);
                let record = Record {
                    kind,
                    group,
                    sources: vec![],
                };
                assert_eq!(received.message, Message::Report(vec![record]));
            }
        }
    }

    #[test]
    fn packets_that_are_not_of_this_link_are_refused() {
        for family in Family::ALL {
            let good = old_frame(group(family, 3), false, sender(family))[ETHERNET..].to_vec();
            assert!(parse(&good).is_ok() && is_membership(&good));
            let (hops, alert) = match family {
                Family::V4 => (8, 20),
                Family::V6 => (7, 42),
            };
            for (place, value) in [(hops, 2), (alert, 1), (good.len() - 1, 0x77)] {
                let mut bad = good.clone();
                bad[place] = value;
                if family == Family::V4 {
                    bad[10..12].fill(0);
                    let mut sum = Sum::default();
                    sum.add(&bad[..24]);
                    bad[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
                }
                assert_eq!(parse(&bad), Err(DropReason::MembershipMalformed), "{place}");
            }
        }
        let mut far = sender(Family::V6);
        far.addr = addr("2001:db8::1");
        let frame = old_frame(group(Family::V6, 3), true, far);
        assert!(parse(&frame[ETHERNET..]).is_err(), "MLD is link-local");
    }

    #[test]
    fn floats_as_in_the_rfcs() {
        assert_eq!([0x7f, 0x80, 0xff].map(read_float8), [127, 128, 31 << 10]);
        assert_eq!([0x7fff, 0x8000].map(read_float16), [32767, 32768]);
        assert_eq!(write_float(125, 255, |code| read_float8(code as u8)), 125);
        assert_eq!(
            write_float(1 << 40, 255, |code| read_float8(code as u8)),
            255
        );
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            v6: bool,
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = if v6 { 0x60 } else { 0x46 };
            }
            let _ = parse(&bytes);
            let _ = (igmp(&bytes), mld(&bytes), is_membership(&bytes));
        }

        #[test]
        fn queries_arrive_as_they_were_sent(
            family in families(),
            about in proptest::option::of(any::<u8>()),
            sources in proptest::collection::vec(any::<u8>(), 0..20),
            tenths in 1u64..127,
            suppress: bool,
            robustness in 0u8..8,
            seconds in 0u64..128,
        ) {
            let query = Query {
                group: about.map(|number| group(family, number)),
                sources: sources.into_iter().map(|number| source(family, number)).collect(),
                max_response: Duration::from_millis(tenths * 100),
                suppress,
                robustness,
                interval: Duration::from_secs(seconds),
            };
            let frame = query_frame(&query, sender(family));
            prop_assert!(is_membership(&frame[ETHERNET..]));
            let received = parse(&frame[ETHERNET..]).unwrap();
            prop_assert_eq!(received.version, Version::Sources);
            prop_assert_eq!(received.from, sender(family).addr);
            prop_assert_eq!(received.message, Message::Query(query));
        }

        #[test]
        fn reports_arrive_as_they_were_sent(
            family in families(),
            records in proptest::collection::vec(
                (0usize..6, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..5)),
                0..10,
            ),
        ) {
            let records: Vec<Record> = records
                .into_iter()
                .map(|(kind, number, sources)| Record {
                    kind: RecordKind::ALL[kind],
                    group: group(family, number),
                    sources: sources.into_iter().map(|number| source(family, number)).collect(),
                })
                .collect();
            let frame = report_frame(&records, sender(family));
            let received = parse(&frame[ETHERNET..]).unwrap();
            prop_assert_eq!(received.to, report_destination(family));
            prop_assert_eq!(received.message, Message::Report(records));
        }
    }
}
