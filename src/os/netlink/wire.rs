//! Messages as bytes (netlink(7)), for requests and notifications alike.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::Socket;

/// Bytes of one read. The kernel fills dumps up to 32 KiB (`NLMSG_GOODSIZE` aside), and one
/// notification is smaller than that.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The bytes of a request.
pub(in crate::os) fn encode(request: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Reads one datagram of the kernel into `buffer`.
pub(in crate::os) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        buffer.reserve(RECEIVE_BUFFER);
        let (length, sender) = socket.recv_from(buffer, libc::MSG_TRUNC)?;
        if sender.port_number() != 0 {
            continue; // Not from the kernel.
        }
        if length > buffer.len() {
            return Err(io::Error::other("a netlink message longer than the buffer"));
        }
        return Ok(());
    }
}

/// The messages of one datagram.
pub(in crate::os) struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    pub(in crate::os) fn new(datagram: &'a [u8]) -> Self {
        Messages(datagram)
    }

    /// How many bytes are left.
    pub(in crate::os) fn left(&self) -> usize {
        self.0.len()
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = RawMessage<'a>;

    fn next(&mut self) -> Option<RawMessage<'a>> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?);
        let length = usize::try_from(length).ok()?;
        if length < RawMessage::HEADER {
            return None;
        }
        let message = self.0.get(..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(RawMessage(message))
    }
}

/// A message with a complete header (`struct nlmsghdr`), not yet decoded.
#[derive(Clone, Copy)]
pub(in crate::os) struct RawMessage<'a>(&'a [u8]);

/// A part of an answer.
pub(in crate::os) enum Answer<'a> {
    /// An object: what follows the header of its message.
    Data(&'a [u8]),
    /// The end of a list, or confirmation of a change.
    Done,
    /// A refusal: its number, and the attributes that explain it.
    Error(i32, Option<&'a [u8]>),
}

impl<'a> RawMessage<'a> {
    const HEADER: usize = 16;

    pub(in crate::os) fn flags(self) -> u16 {
        u16::from_ne_bytes([self.0[6], self.0[7]])
    }

    pub(in crate::os) fn sequence(self) -> u32 {
        u32::from_ne_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    pub(in crate::os) fn port(self) -> u32 {
        u32::from_ne_bytes([self.0[12], self.0[13], self.0[14], self.0[15]])
    }

    /// Its type (`RTM_NEWLINK` and so on).
    pub(in crate::os) fn kind(self) -> u16 {
        u16::from_ne_bytes([self.0[4], self.0[5]])
    }

    /// The payload after the header.
    pub(in crate::os) fn body(self) -> &'a [u8] {
        &self.0[RawMessage::HEADER..]
    }

    /// Its kind as part of an answer.
    pub(in crate::os) fn answer(self) -> Answer<'a> {
        let code = self
            .body()
            .first_chunk()
            .map_or(0, |code| i32::from_ne_bytes(*code));
        match libc::c_int::from(self.kind()) {
            libc::NLMSG_DONE | libc::NLMSG_ERROR if code == 0 => Answer::Done,
            libc::NLMSG_ERROR => {
                let has_words = self.flags() & NLM_F_ACK_TLVS != 0;
                let words = self.body().get(4 + RawMessage::HEADER..);
                Answer::Error(code.saturating_abs(), words.filter(|_| has_words))
            }
            libc::NLMSG_DONE => Answer::Error(code.saturating_abs(), None),
            _ => Answer::Data(self.body()),
        }
    }

    pub(in crate::os) fn decode(self) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
        NetlinkMessage::deserialize(self.0).map_err(io::Error::other)
    }
}

/// The kernel's error text in an `NLMSG_ERROR`: it follows the header of the request
/// (`NETLINK_CAP_ACK`).
pub(super) fn error_detail(flags: u16, quoted: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    extended_ack(quoted.get(RawMessage::HEADER..)?)
}

pub(in crate::os) fn extended_ack(attributes: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let message = NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(message.value());
    Some(text.trim_end_matches('\0').to_owned())
}
