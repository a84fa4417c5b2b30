//! IPFIX messages (RFC 7011) about sessions: NAT events (RFC 8158), and flows of both directions
//! (RFC 5103). The numbers are those of IANA's registry of IPFIX information elements.

use std::net::IpAddr;

/// The longest message: it passes networks that carry IPv6 whole.
const MOST: usize = 1232;

/// Bytes of the header of a message.
const HEADER: usize = 16;

const VERSION: u16 = 10;

/// The sets of templates (RFC 7011, section 3.3.2).
const TEMPLATE_SET: u16 = 2;
const OPTIONS_TEMPLATE_SET: u16 = 3;

/// The enterprise of the reverse direction (RFC 5103, section 6.1).
const REVERSE: u32 = 29305;

/// An information element in a template.
#[derive(Clone, Copy)]
struct Field {
    id: u16,
    length: u16,
    is_reverse: bool,
}

const fn field(id: u16, length: u16) -> Field {
    Field {
        id,
        length,
        is_reverse: false,
    }
}

const fn reverse(id: u16, length: u16) -> Field {
    Field {
        id,
        length,
        is_reverse: true,
    }
}

/// A layout of records.
struct Template {
    id: u16,
    fields: &'static [Field],
}

/// A session that is translated, IPv4: the session events of RFC 8158, section 5.6.
const NAT44: Template = Template {
    id: 256,
    fields: &[
        field(323, 8), // observationTimeMilliseconds
        field(230, 1), // natEvent
        field(152, 8), // flowStartMilliseconds
        field(153, 8), // flowEndMilliseconds
        field(136, 1), // flowEndReason
        field(4, 1),   // protocolIdentifier
        field(8, 4),   // sourceIPv4Address
        field(12, 4),  // destinationIPv4Address
        field(7, 2),   // sourceTransportPort
        field(11, 2),  // destinationTransportPort
        field(225, 4), // postNATSourceIPv4Address
        field(226, 4), // postNATDestinationIPv4Address
        field(227, 2), // postNAPTSourceTransportPort
        field(228, 2), // postNAPTDestinationTransportPort
        field(2, 8),   // packetDeltaCount
        field(1, 8),   // octetDeltaCount
        reverse(2, 8),
        reverse(1, 8),
    ],
};

/// A session that is not, IPv4.
const IPV4: Template = Template {
    id: 257,
    fields: &[
        field(323, 8),
        field(233, 1), // firewallEvent
        field(152, 8),
        field(153, 8),
        field(136, 1),
        field(4, 1),
        field(8, 4),
        field(12, 4),
        field(7, 2),
        field(11, 2),
        field(2, 8),
        field(1, 8),
        reverse(2, 8),
        reverse(1, 8),
    ],
};

/// A session of IPv6, translated or not: RFC 8158 has no event for it.
const IPV6: Template = Template {
    id: 258,
    fields: &[
        field(323, 8),
        field(233, 1),
        field(152, 8),
        field(153, 8),
        field(136, 1),
        field(4, 1),
        field(27, 16), // sourceIPv6Address
        field(28, 16), // destinationIPv6Address
        field(7, 2),
        field(11, 2),
        field(281, 16), // postNATSourceIPv6Address
        field(282, 16), // postNATDestinationIPv6Address
        field(227, 2),
        field(228, 2),
        field(2, 8),
        field(1, 8),
        reverse(2, 8),
        reverse(1, 8),
    ],
};

/// How reliable this process is (RFC 7011, section 4.3): its scope is the observation domain.
const RELIABILITY: Template = Template {
    id: 259,
    fields: &[
        field(149, 4), // observationDomainId
        field(42, 8),  // exportedFlowRecordTotalCount
        field(166, 8), // notSentFlowTotalCount
    ],
};

/// An address and a port; 0 where the protocol has none.
pub type End = (IpAddr, u16);

/// A session that has begun or ended.
pub struct Record {
    /// When, in milliseconds since 1970; and when the session began.
    pub at: u64,
    pub begun: u64,
    /// Why it has ended, as a `flowEndReason`; none if it has begun.
    pub end: Option<u8>,
    pub protocol: u8,
    /// Source and destination as its first packet came in.
    pub original: (End, End),
    /// The same as it left.
    pub translated: (End, End),
    /// In the direction of the first packet, and back.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
}

impl Record {
    fn template(&self) -> &'static Template {
        match self.original.0.0 {
            IpAddr::V6(_) => &IPV6,
            IpAddr::V4(_) if self.translated != self.original => &NAT44,
            IpAddr::V4(_) => &IPV4,
        }
    }

    /// The value of an element of the templates.
    fn value(&self, field: Field) -> u128 {
        let number = |(addr, _): End| match addr {
            IpAddr::V4(addr) => u128::from(addr.to_bits()),
            IpAddr::V6(addr) => addr.to_bits(),
        };
        let port = |(_, port): End| u128::from(port);
        let way = usize::from(field.is_reverse);
        let is_end = self.end.is_some();
        match field.id {
            323 => self.at.into(),
            152 => self.begun.into(),
            153 => self.at.into(),
            // Created, or deleted.
            230 => {
                if is_end {
                    5
                } else {
                    4
                }
            }
            233 => {
                if is_end {
                    2
                } else {
                    1
                }
            }
            136 => self.end.unwrap_or(0).into(),
            4 => self.protocol.into(),
            8 | 27 => number(self.original.0),
            12 | 28 => number(self.original.1),
            7 => port(self.original.0),
            11 => port(self.original.1),
            225 | 281 => number(self.translated.0),
            226 | 282 => number(self.translated.1),
            227 => port(self.translated.0),
            228 => port(self.translated.1),
            2 => self.packets[way].into(),
            1 => self.bytes[way].into(),
            _ => 0,
        }
    }
}

/// A message, and how many records it has.
pub type Message = (Vec<u8>, u32);

/// Makes messages of records.
pub struct Encoder {
    domain: u32,
    /// Records in all messages before.
    sequence: u32,
    body: Vec<u8>,
    records: u32,
    /// Where the last set begins, and its template.
    set: Option<(usize, u16)>,
}

impl Encoder {
    /// An encoder for an observation domain.
    pub fn new(domain: u32) -> Encoder {
        Encoder {
            domain,
            sequence: 0,
            body: Vec::new(),
            records: 0,
            set: None,
        }
    }

    /// Adds a record; returns the message before it, if there is no room in it.
    pub fn add(&mut self, record: &Record, now_s: u32) -> Option<Message> {
        let template = record.template();
        let length: u16 = template.fields.iter().map(|field| field.length).sum();
        let fits = HEADER + self.body.len() + 4 + usize::from(length) <= MOST;
        let full = if fits { None } else { self.take(now_s) };
        self.begin_set(template.id);
        for field in template.fields {
            self.put(record.value(*field), field.length);
        }
        self.end_set();
        self.records += 1;
        full
    }

    /// The message of the records since the last one; none if there are none.
    pub fn take(&mut self, now_s: u32) -> Option<Message> {
        (self.records > 0).then(|| self.finish(now_s))
    }

    /// A message of the templates, and of how many records were sent and lost: a collector that
    /// has just begun to listen needs it.
    pub fn templates(&mut self, (sent, lost): (u64, u64), now_s: u32) -> Message {
        self.begin_set(TEMPLATE_SET);
        for template in [&NAT44, &IPV4, &IPV6] {
            self.put_template(template, None);
        }
        self.end_set();
        self.begin_set(OPTIONS_TEMPLATE_SET);
        self.put_template(&RELIABILITY, Some(1));
        self.end_set();
        self.begin_set(RELIABILITY.id);
        self.put(self.domain.into(), 4);
        self.put(sent.into(), 8);
        self.put(lost.into(), 8);
        self.end_set();
        self.records += 1;
        self.finish(now_s)
    }

    fn put_template(&mut self, template: &Template, scopes: Option<u16>) {
        self.put(template.id.into(), 2);
        self.put(template.fields.len() as u128, 2);
        if let Some(scopes) = scopes {
            self.put(scopes.into(), 2);
        }
        for field in template.fields {
            let enterprise = u16::from(field.is_reverse) << 15;
            self.put((enterprise | field.id).into(), 2);
            self.put(field.length.into(), 2);
            if field.is_reverse {
                self.put(REVERSE.into(), 4);
            }
        }
    }

    /// Continues the last set, if it is of the same template.
    fn begin_set(&mut self, id: u16) {
        if self.set.is_none_or(|(_, last)| last != id) {
            self.set = Some((self.body.len(), id));
            self.put(id.into(), 2);
            self.put(0, 2);
        }
    }

    fn end_set(&mut self) {
        if let Some((begin, _)) = self.set {
            let length = (self.body.len() - begin) as u16;
            self.body[begin + 2..begin + 4].copy_from_slice(&length.to_be_bytes());
        }
    }

    fn finish(&mut self, now_s: u32) -> Message {
        let (records, body) = (self.records, std::mem::take(&mut self.body));
        let length = HEADER + body.len();
        self.put(VERSION.into(), 2);
        self.put(length as u128, 2);
        self.put(now_s.into(), 4);
        self.put(self.sequence.into(), 4);
        self.put(self.domain.into(), 4);
        let mut message = std::mem::take(&mut self.body);
        message.extend_from_slice(&body);
        self.sequence = self.sequence.wrapping_add(records);
        (self.records, self.set) = (0, None);
        (message, records)
    }

    /// The last bytes of a number, in the order of the network.
    fn put(&mut self, value: u128, length: u16) {
        let bytes = value.to_be_bytes();
        self.body
            .extend_from_slice(&bytes[bytes.len() - usize::from(length)..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(source: &str, is_translated: bool) -> Record {
        let end = |text: &str| -> End { (text.parse().unwrap(), 4000) };
        let outside = if source.contains(':') {
            "2001:db8::9"
        } else {
            "192.0.2.9"
        };
        let original = (end(source), end(outside));
        let mut translated = original;
        translated.0.1 = if is_translated { 5000 } else { 4000 };
        Record {
            at: 2_000_000_000_123,
            begun: 1_999_999_999_000,
            end: None,
            protocol: 17,
            original,
            translated,
            packets: [3, 2],
            bytes: [300, 200],
        }
    }

    fn u16_at(bytes: &[u8], at: usize) -> usize {
        usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
    }

    /// The sets of a message: id and content.
    fn sets(message: &[u8]) -> Vec<(usize, Vec<u8>)> {
        assert_eq!(u16_at(message, 0), 10);
        assert_eq!(u16_at(message, 2), message.len());
        let (mut at, mut sets) = (HEADER, Vec::new());
        while at < message.len() {
            let length = u16_at(message, at + 2);
            sets.push((u16_at(message, at), message[at + 4..at + length].to_vec()));
            at += length;
        }
        assert_eq!(at, message.len());
        sets
    }

    #[test]
    fn each_record_is_as_its_template_says() {
        let mut encoder = Encoder::new(7);
        for (record, id) in [
            (record("10.0.0.1", true), 256),
            (record("10.0.0.1", false), 257),
            (record("2001:db8::1", true), 258),
        ] {
            assert!(encoder.add(&record, 1).is_none());
            let (message, count) = encoder.take(1).unwrap();
            let sets = sets(&message);
            let length: u16 = record.template().fields.iter().map(|it| it.length).sum();
            assert_eq!((sets.len(), count), (1, 1));
            assert_eq!((sets[0].0, sets[0].1.len()), (id, usize::from(length)));
            assert_eq!(sets[0].1[..8], 2_000_000_000_123_u64.to_be_bytes());
            assert_eq!(sets[0].1[sets[0].1.len() - 8..], 200_u64.to_be_bytes());
        }
        let begun = record("10.0.0.1", true);
        let ended = Record {
            end: Some(1),
            ..record("10.0.0.1", true)
        };
        assert_eq!(
            (begun.value(field(230, 1)), ended.value(field(230, 1))),
            (4, 5)
        );
        assert!(encoder.take(1).is_none());
    }

    #[test]
    fn messages_are_short_and_count_their_records() {
        let mut encoder = Encoder::new(7);
        let mut messages = vec![encoder.templates((0, 0), 1)];
        for number in 0..1000 {
            let source = if number % 3 == 0 {
                "2001:db8::1"
            } else {
                "10.0.0.1"
            };
            messages.extend(encoder.add(&record(source, number % 2 == 0), 1));
        }
        messages.extend(encoder.take(1));
        let mut sequence = 0;
        for (message, records) in &messages {
            assert!(message.len() <= MOST, "{}", message.len());
            sets(message);
            assert_eq!(message[8..12], u32::to_be_bytes(sequence));
            assert_eq!(message[12..16], u32::to_be_bytes(7));
            sequence += records;
        }
        assert_eq!(sequence, 1001, "with the one about reliability");
    }
}
