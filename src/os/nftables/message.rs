//! Messages of nf_tables as bytes: header, `struct nfgenmsg`, attributes. Numbers in them are
//! big-endian.

use netlink_packet_core::{NLA_F_NESTED, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_REQUEST, NlasIterator};

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// `struct nfgenmsg`: family, version, a number.
const FAMILY_HEADER: usize = 4;

/// Attributes by what they are in: `NFTA_TABLE_*`, `NFTA_CHAIN_*` and so on.
pub(in crate::os) mod attribute {
    pub(crate) const TABLE_NAME: u16 = 1;
    pub(crate) const TABLE_FLAGS: u16 = 2;
    pub(crate) const CHAIN_NAME: u16 = 3;
    pub(crate) const CHAIN_HOOK: u16 = 4;
    pub(crate) const CHAIN_POLICY: u16 = 5;
    pub(crate) const CHAIN_TYPE: u16 = 7;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    pub(crate) const HOOK_DEVICE: u16 = 3;
    pub(crate) const HOOK_DEVICES: u16 = 4;
    pub(crate) const DEVICE_NAME: u16 = 1;
    pub(crate) const RULE_CHAIN: u16 = 2;
    pub(crate) const RULE_EXPRESSIONS: u16 = 4;
    pub(crate) const RULE_USER_DATA: u16 = 7;
    pub(crate) const SET_NAME: u16 = 2;
    pub(crate) const SET_FLAGS: u16 = 3;
    pub(crate) const SET_KEY_TYPE: u16 = 4;
    pub(crate) const SET_KEY_LENGTH: u16 = 5;
    pub(crate) const SET_DESCRIPTION: u16 = 9;
    pub(crate) const SET_ID: u16 = 10;
    pub(crate) const SET_USER_DATA: u16 = 13;
    pub(crate) const SET_SIZE: u16 = 1;
    pub(crate) const ELEMENTS_SET: u16 = 2;
    pub(crate) const ELEMENTS: u16 = 3;
    pub(crate) const LIST_ELEMENT: u16 = 1;
    pub(crate) const ELEMENT_KEY: u16 = 1;
    pub(crate) const DATA_VALUE: u16 = 1;
    pub(crate) const DATA_VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;
    pub(crate) const IMMEDIATE_DATA: u16 = 2;
    pub(crate) const EXPRESSION_NAME: u16 = 1;
    pub(crate) const EXPRESSION_DATA: u16 = 2;
    pub(crate) const COUNTER_PACKETS: u16 = 2;
}

/// The data that nft(8) stores with a set whose keys are in host byte order.
pub(super) const HOST_BYTE_ORDER: [u8; 6] = [0, 4, 1, 0, 0, 0];

/// One step of a rule.
pub(in crate::os) enum Expression<'a> {
    /// Loads a fact about the packet (`NFT_META_*`) into a register.
    Load {
        /// The fact.
        key: libc::c_int,
        /// The register: [`Expression::FIRST`], or [`Expression::SECOND`] for the rest of a longer
        /// key.
        register: u32,
    },
    /// Continues if the first register is in a set.
    IsIn(&'a str),
    /// Continues if the first register is not in a set.
    IsNotIn(&'a str),
    /// Loads two bytes of the Ethernet header with its tags, at this offset.
    LoadLink(u32),
    /// Of the first register, keeps some bits and flips others.
    Change {
        /// The bits that stay; the others become 0.
        keep: &'a [u8],
        /// The bits that are flipped then.
        flip: &'a [u8],
    },
    /// Sets the packet's mark to the first register.
    SetMark,
    /// Loads a byte of the IP header, at this offset.
    LoadByte(u32),
    /// Loads two bytes of it.
    LoadHalf(u32),
    /// Loads bytes of a header into the first register.
    LoadPayload {
        /// Which header: `NFT_PAYLOAD_*`.
        base: libc::c_int,
        /// Where in it.
        offset: u32,
        /// How many bytes, at most 16.
        length: u32,
    },
    /// Loads the type of the destination address for this machine (`RTN_*`).
    LoadDestinationType,
    /// The same of the source address.
    LoadSourceType,
    /// Continues if the first register equals these bytes.
    Is(&'a [u8]),
    /// Continues if the first register differs from these bytes.
    IsNot(&'a [u8]),
    /// Continues if the first register is greater than or equal to these bytes.
    IsAtLeast(&'a [u8]),
    /// Continues if the first register is less than or equal to these bytes.
    IsAtMost(&'a [u8]),
    /// Counts the packet.
    Count,
    /// Ends the chain for this packet.
    Accept,
    /// Drops the packet, whatever other chains say.
    Drop,
}

impl Expression<'_> {
    /// The register that sets are looked up with.
    pub(crate) const FIRST: u32 = libc::NFT_REG_1 as u32;
    /// The four bytes after the first four of it.
    pub(crate) const SECOND: u32 = libc::NFT_REG32_01 as u32;
}

/// A request that is being built.
pub(in crate::os) struct Message(Vec<u8>);

impl Message {
    pub(super) fn request(kind: libc::c_int, family: u8, flags: u16, sequence: u32) -> Message {
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8) | kind;
        Message(header(kind, flags, sequence, family, 0))
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.nest_as(kind, |message| message.0.extend(value));
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string with its zero.
    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.nest_as(kind, |message| {
            message.0.extend(text.bytes());
            message.0.push(0);
        });
    }

    /// An attribute that `fill` fills with others.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        self.nest_as(kind | NLA_F_NESTED, fill);
    }

    pub(super) fn expression(&mut self, expression: &Expression<'_>) {
        use attribute::{EXPRESSION_DATA, EXPRESSION_NAME, LIST_ELEMENT};
        let name = match expression {
            Expression::Load { .. } | Expression::SetMark => "meta",
            Expression::IsIn(_) | Expression::IsNotIn(_) => "lookup",
            Expression::LoadByte(_)
            | Expression::LoadHalf(_)
            | Expression::LoadLink(_)
            | Expression::LoadPayload { .. } => "payload",
            Expression::LoadDestinationType | Expression::LoadSourceType => "fib",
            Expression::Change { .. } => "bitwise",
            Expression::Is(_)
            | Expression::IsNot(_)
            | Expression::IsAtLeast(_)
            | Expression::IsAtMost(_) => "cmp",
            Expression::Count => "counter",
            Expression::Accept | Expression::Drop => "immediate",
        };
        self.nest(LIST_ELEMENT, |message| {
            message.text(EXPRESSION_NAME, name);
            message.nest(EXPRESSION_DATA, |message| match expression {
                // NFTA_META_KEY, NFTA_META_DREG
                Expression::Load { key, register } => {
                    message.u32(2, *key as u32);
                    message.u32(1, *register);
                }
                // NFTA_META_KEY, NFTA_META_SREG
                Expression::SetMark => {
                    message.u32(2, libc::NFT_META_MARK as u32);
                    message.u32(3, Expression::FIRST);
                }
                Expression::IsIn(set) => message.look_up(set, 0),
                Expression::IsNotIn(set) => message.look_up(set, libc::NFT_LOOKUP_F_INV as u32),
                Expression::LoadByte(offset) => {
                    message.load_payload(libc::NFT_PAYLOAD_NETWORK_HEADER, *offset, 1);
                }
                Expression::LoadHalf(offset) => {
                    message.load_payload(libc::NFT_PAYLOAD_NETWORK_HEADER, *offset, 2);
                }
                Expression::LoadPayload {
                    base,
                    offset,
                    length,
                } => message.load_payload(*base, *offset, *length),
                Expression::LoadLink(offset) => {
                    message.load_payload(libc::NFT_PAYLOAD_LL_HEADER, *offset, 2);
                }
                // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK and _XOR with a value in each
                Expression::Change { keep, flip } => {
                    message.u32(1, Expression::FIRST);
                    message.u32(2, Expression::FIRST);
                    message.u32(3, keep.len() as u32);
                    message.nest(4, |message| message.bytes(1, keep));
                    message.nest(5, |message| message.bytes(1, flip));
                }
                // NFTA_FIB_F_DADDR, NFTA_FIB_F_SADDR
                Expression::LoadDestinationType => message.load_address_type(2),
                Expression::LoadSourceType => message.load_address_type(1),
                Expression::Is(bytes) => message.compare(libc::NFT_CMP_EQ, bytes),
                Expression::IsNot(bytes) => message.compare(libc::NFT_CMP_NEQ, bytes),
                Expression::IsAtLeast(bytes) => message.compare(libc::NFT_CMP_GTE, bytes),
                Expression::IsAtMost(bytes) => message.compare(libc::NFT_CMP_LTE, bytes),
                Expression::Count => {}
                Expression::Accept => message.verdict(libc::NF_ACCEPT),
                Expression::Drop => message.verdict(libc::NF_DROP),
            });
        });
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0
    }

    /// NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_LOOKUP_FLAGS
    fn look_up(&mut self, set: &str, flags: u32) {
        self.text(1, set);
        self.u32(2, Expression::FIRST);
        if flags != 0 {
            self.u32(5, flags);
        }
    }

    /// NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
    fn load_payload(&mut self, base: libc::c_int, offset: u32, length: u32) {
        self.u32(1, Expression::FIRST);
        self.u32(2, base as u32);
        self.u32(3, offset);
        self.u32(4, length);
    }

    /// NFTA_FIB_DREG, _RESULT (NFT_FIB_RESULT_ADDRTYPE), _FLAGS
    fn load_address_type(&mut self, of: u32) {
        self.u32(1, Expression::FIRST);
        self.u32(2, 3);
        self.u32(3, of);
    }

    /// NFTA_CMP_SREG, NFTA_CMP_OP, and NFTA_CMP_DATA with a value in it.
    fn compare(&mut self, operation: libc::c_int, value: &[u8]) {
        self.u32(1, Expression::FIRST);
        self.u32(2, operation as u32);
        self.nest(3, |message| message.bytes(1, value));
    }

    /// NFTA_IMMEDIATE_DREG, and NFTA_IMMEDIATE_DATA with a verdict in it.
    fn verdict(&mut self, code: libc::c_int) {
        self.u32(1, libc::NFT_REG_VERDICT as u32);
        self.nest(2, |message| {
            message.nest(2, |message| message.u32(1, code as u32));
        });
    }

    fn nest_as(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// The first or the last message of a batch.
pub(super) fn batch_mark(kind: libc::c_int, sequence: u32) -> Vec<u8> {
    let subsystem = libc::NFNL_SUBSYS_NFTABLES as u16;
    Message(header(kind, NLM_F_REQUEST, sequence, 0, subsystem)).finish()
}

/// A rule's comment as nft(8) stores it: type, length, text with its zero.
pub(in crate::os) fn comment(text: &str) -> Vec<u8> {
    let length = text.len() as u8 + 1;
    [0, length]
        .into_iter()
        .chain(text.bytes())
        .chain([0])
        .collect()
}

/// Makes the kernel answer the message at the start of `bytes` even on success.
pub(super) fn ask_for_answer(bytes: &mut [u8]) {
    let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | NLM_F_ACK;
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
}

fn header(kind: libc::c_int, flags: u16, sequence: u32, family: u8, number: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend([0; 4]);
    bytes.extend((kind as u16).to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(number.to_be_bytes());
    debug_assert_eq!(bytes.len(), HEADER + FAMILY_HEADER);
    bytes
}

/// Attributes of an object that the kernel lists.
#[derive(Clone, Copy)]
pub(in crate::os) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those that follow a `struct nfgenmsg`.
    pub(crate) fn after_header(body: &'a [u8]) -> Attributes<'a> {
        Attributes(body.get(FAMILY_HEADER..).unwrap_or_default())
    }

    /// The value of the first one of that type.
    pub(crate) fn bytes(self, kind: u16) -> Option<&'a [u8]> {
        self.all(kind).next()
    }

    /// The values of all of that type.
    pub(crate) fn all(self, kind: u16) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        NlasIterator::new(self.0)
            .map_while(Result::ok)
            .filter(move |attribute| attribute.kind() == kind)
            .map(|attribute| {
                let length = attribute.length().into();
                &attribute.into_inner()[NLA_HEADER_SIZE..length]
            })
    }

    pub(crate) fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.bytes(kind).unwrap_or_default())
    }

    /// The attributes in each one of that type.
    pub(crate) fn each(self, kind: u16) -> impl Iterator<Item = Attributes<'a>> + use<'a> {
        self.all(kind).map(Attributes)
    }

    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.bytes(kind)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }

    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(kind)?.try_into().ok()?))
    }

    pub(crate) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes(kind)?.try_into().ok()?))
    }
}
