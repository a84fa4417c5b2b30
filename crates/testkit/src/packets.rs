//! Packets described by their meaning and built by etherparse, so that the gateway's result can be
//! compared, byte for byte, with the expected packet.

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder,
    TcpHeader, TcpOptionElement,
};
use tandemgw_core::flow::{Addr, FlowKey, Protocol, echo_port};
use tandemgw_core::packet::TcpFlags;

pub const SYN: TcpFlags = TcpFlags::SYN;
pub const ACK: TcpFlags = TcpFlags::ACK;
pub const FIN: TcpFlags = TcpFlags::FIN;
pub const RST: TcpFlags = TcpFlags::RST;
pub const SYN_ACK: TcpFlags = TcpFlags(SYN.0 | ACK.0);
pub const FIN_ACK: TcpFlags = TcpFlags(FIN.0 | ACK.0);

/// A packet of either family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pkt {
    pub src: Addr,
    pub dst: Addr,
    pub hop_limit: u8,
    pub dont_fragment: bool,
    pub traffic_class: u8,
    pub body: Body,
}

/// The content of a packet above IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Udp {
        ports: (u16, u16),
        payload: Vec<u8>,
    },
    Tcp {
        ports: (u16, u16),
        segment: Segment,
        payload: Vec<u8>,
    },
    /// An echo request or reply.
    Echo {
        reply: bool,
        id: u16,
        payload: Vec<u8>,
    },
    /// Any ICMP message: type, code, second word.
    Icmp {
        code: (u8, u8),
        word: u32,
        payload: Vec<u8>,
    },
    /// A protocol without ports.
    Other {
        protocol: u8,
        payload: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub seq: u32,
    pub ack: u32,
    pub flags: TcpFlags,
}

pub fn udp(src: (Addr, u16), dst: (Addr, u16)) -> Pkt {
    let body = Body::Udp {
        ports: (src.1, dst.1),
        payload: b"question".to_vec(),
    };
    Pkt::new(src.0, dst.0, body)
}

pub fn tcp(src: (Addr, u16), dst: (Addr, u16), flags: TcpFlags, seq: u32, ack: u32) -> Pkt {
    let segment = Segment { seq, ack, flags };
    let body = Body::Tcp {
        ports: (src.1, dst.1),
        segment,
        payload: Vec::new(),
    };
    Pkt::new(src.0, dst.0, body)
}

pub fn echo_request(src: (Addr, u16), dst: Addr) -> Pkt {
    let body = Body::Echo {
        reply: false,
        id: src.1,
        payload: b"ping".to_vec(),
    };
    Pkt::new(src.0, dst, body)
}

pub fn echo_reply(src: Addr, dst: (Addr, u16)) -> Pkt {
    let body = Body::Echo {
        reply: true,
        id: dst.1,
        payload: b"ping".to_vec(),
    };
    Pkt::new(src, dst.0, body)
}

pub fn other(protocol: u8, src: Addr, dst: Addr) -> Pkt {
    Pkt::new(
        src,
        dst,
        Body::Other {
            protocol,
            payload: b"tunnelled".to_vec(),
        },
    )
}

/// An ICMP error of `kind` from `from` to `to`, about `quoted`.
pub fn icmp_error(kind: ErrorCode, from: Addr, to: Addr, quoted: &[u8]) -> Pkt {
    let (v4, v6) = match kind {
        ErrorCode::PortUnreachable => ((3, 3, 0), (1, 4, 0)),
        ErrorCode::HostUnreachable => ((3, 1, 0), (1, 3, 0)),
        ErrorCode::NoRoute => ((3, 0, 0), (1, 0, 0)),
        ErrorCode::AdminProhibited => ((3, 13, 0), (1, 1, 0)),
        ErrorCode::TimeExceeded => ((11, 0, 0), (3, 0, 0)),
        ErrorCode::TooBig(mtu) => ((3, 4, mtu), (2, 0, mtu)),
    };
    let (kind, code, word) = if from.is_v4() { v4 } else { v6 };
    Pkt::new(
        from,
        to,
        Body::Icmp {
            code: (kind, code),
            word,
            payload: quoted.to_vec(),
        },
    )
}

#[derive(Clone, Copy, Debug)]
pub enum ErrorCode {
    PortUnreachable,
    HostUnreachable,
    NoRoute,
    AdminProhibited,
    TimeExceeded,
    TooBig(u32),
}

impl Pkt {
    pub fn new(src: Addr, dst: Addr, body: Body) -> Pkt {
        Pkt {
            src,
            dst,
            hop_limit: 60,
            dont_fragment: false,
            traffic_class: 0,
            body,
        }
    }

    /// As the gateway originates it.
    pub fn own(self) -> Pkt {
        Pkt {
            hop_limit: 64,
            dont_fragment: true,
            ..self
        }
    }

    /// An ICMP error as the gateway itself sends it (RFC 1812, section 4.3.2.5: precedence 6).
    pub fn own_error(self) -> Pkt {
        let traffic_class = if self.src.is_v4() { 0xc0 } else { 0 };
        Pkt {
            traffic_class,
            ..self.own()
        }
    }

    pub fn src(self, src: Addr) -> Pkt {
        Pkt { src, ..self }
    }

    pub fn dst(self, dst: Addr) -> Pkt {
        Pkt { dst, ..self }
    }

    pub fn dont_fragment(self) -> Pkt {
        Pkt {
            dont_fragment: true,
            ..self
        }
    }

    pub fn hops(self, hop_limit: u8) -> Pkt {
        Pkt { hop_limit, ..self }
    }

    /// With one hop more: the gateway gives one back.
    pub fn forwarded(self) -> Pkt {
        Pkt {
            hop_limit: self.hop_limit + 1,
            ..self
        }
    }

    pub fn payload(mut self, bytes: &[u8]) -> Pkt {
        *match &mut self.body {
            Body::Udp { payload, .. }
            | Body::Tcp { payload, .. }
            | Body::Echo { payload, .. }
            | Body::Icmp { payload, .. }
            | Body::Other { payload, .. } => payload,
        } = bytes.to_vec();
        self
    }

    /// With other ports; an echo takes the one that is its identifier.
    pub fn ports(mut self, new: (u16, u16)) -> Pkt {
        match &mut self.body {
            Body::Udp { ports, .. } | Body::Tcp { ports, .. } => *ports = new,
            Body::Echo {
                reply: false, id, ..
            } => *id = new.0,
            Body::Echo {
                reply: true, id, ..
            } => *id = new.1,
            Body::Icmp { .. } | Body::Other { .. } => {}
        }
        self
    }

    /// The same packet in the other direction: data for data, a reply for a request.
    pub fn answer(&self) -> Pkt {
        let mut answer = Pkt {
            src: self.dst,
            dst: self.src,
            ..self.clone()
        };
        match &mut answer.body {
            Body::Udp { ports, payload } => {
                *ports = (ports.1, ports.0);
                *payload = b"answer".to_vec();
            }
            Body::Tcp { ports, .. } => *ports = (ports.1, ports.0),
            Body::Echo { reply, .. } => *reply = !*reply,
            Body::Icmp { .. } | Body::Other { .. } => {}
        }
        answer
    }

    /// The segment of the same connection and direction with these numbers.
    pub fn segment(mut self, flags: TcpFlags, seq: u32, ack: u32) -> Pkt {
        if let Body::Tcp { segment, .. } = &mut self.body {
            *segment = Segment { seq, ack, flags };
        }
        self
    }

    pub fn key(&self) -> FlowKey {
        let (src_port, dst_port, protocol) = match &self.body {
            Body::Udp { ports, .. } => (ports.0, ports.1, Protocol::UDP),
            Body::Tcp { ports, .. } => (ports.0, ports.1, Protocol::TCP),
            Body::Echo {
                reply: false, id, ..
            } => (*id, echo_port(*id), Protocol::ICMP),
            Body::Echo {
                reply: true, id, ..
            } => (echo_port(*id), *id, Protocol::ICMP),
            Body::Icmp { .. } => (0, 0, Protocol::ICMP),
            Body::Other { protocol, .. } => (0, 0, Protocol(*protocol)),
        };
        FlowKey {
            src: self.src,
            dst: self.dst,
            src_port,
            dst_port,
            protocol,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let step = PacketBuilder::ip(self.ip_header());
        let mut bytes = Vec::new();
        let result = match &self.body {
            Body::Udp { ports, payload } => step.udp(ports.0, ports.1).write(&mut bytes, payload),
            Body::Tcp {
                ports,
                segment,
                payload,
            } => step
                .tcp_header(segment.header(*ports))
                .write(&mut bytes, payload),
            Body::Echo { reply, id, payload } => {
                let word = u32::from(*id) << 16 | 3;
                self.icmp(step, (self.echo_type(*reply), 0), word, payload, &mut bytes)
            }
            Body::Icmp {
                code,
                word,
                payload,
            } => self.icmp(step, *code, *word, payload, &mut bytes),
            Body::Other { protocol, payload } => {
                step.write(&mut bytes, IpNumber(*protocol), payload)
            }
        };
        result.unwrap();
        bytes
    }

    fn icmp(
        &self,
        step: etherparse::PacketBuilderStep<IpHeaders>,
        (kind, code): (u8, u8),
        word: u32,
        payload: &[u8],
        bytes: &mut Vec<u8>,
    ) -> Result<(), etherparse::err::packet::BuildWriteError> {
        let rest = word.to_be_bytes();
        match self.src.is_v4() {
            true => step.icmpv4_raw(kind, code, rest).write(bytes, payload),
            false => step.icmpv6_raw(kind, code, rest).write(bytes, payload),
        }
    }

    fn echo_type(&self, reply: bool) -> u8 {
        match (self.src.is_v4(), reply) {
            (true, false) => 8,
            (true, true) => 0,
            (false, false) => 128,
            (false, true) => 129,
        }
    }

    fn ip_header(&self) -> IpHeaders {
        if self.src.is_v4() {
            let (src, dst) = (self.src.last4(), self.dst.last4());
            let mut header = Ipv4Header::new(0, self.hop_limit, IpNumber::UDP, src, dst).unwrap();
            header.dont_fragment = self.dont_fragment;
            header.dscp = (self.traffic_class >> 2).try_into().unwrap();
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        } else {
            let header = Ipv6Header {
                traffic_class: self.traffic_class,
                hop_limit: self.hop_limit,
                source: *self.src.octets(),
                destination: *self.dst.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, Ipv6Extensions::default())
        }
    }
}

impl Segment {
    fn header(self, ports: (u16, u16)) -> TcpHeader {
        let mut header = TcpHeader::new(ports.0, ports.1, self.seq, 60_000);
        header.acknowledgment_number = self.ack;
        header.syn = self.flags.syn();
        header.ack = self.flags.ack();
        header.fin = self.flags.fin();
        header.rst = self.flags.rst();
        if header.syn {
            header
                .set_options(&[TcpOptionElement::WindowScale(7)])
                .unwrap();
        }
        // The gateway's resets offer no window.
        if header.rst {
            header.window_size = 0;
        }
        header
    }
}

/// The fragments of a packet: the pieces of its IP payload from one cut to the next, all multiples
/// of 8. IPv6 gets a fragment header.
pub fn fragments(packet: &[u8], id: u32, cuts: &[usize]) -> Vec<Vec<u8>> {
    let header_len = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let (header, data) = packet.split_at(header_len);
    let mut starts = vec![0];
    starts.extend_from_slice(cuts);
    let pieces = starts.iter().enumerate();
    pieces
        .map(|(index, &start)| {
            let end = starts.get(index + 1).copied().unwrap_or(data.len());
            fragment(header, id, start, &data[start..end], end < data.len())
        })
        .collect()
}

/// One fragment of the packet that begins with `header`: `data` belongs at `offset`.
pub fn fragment(header: &[u8], id: u32, offset: usize, data: &[u8], more: bool) -> Vec<u8> {
    let mut packet = header.to_vec();
    if header[0] >> 4 == 4 {
        let len = (20 + data.len()) as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
        let flags = (offset / 8) as u16 | u16::from(more) << 13;
        packet[6..8].copy_from_slice(&flags.to_be_bytes());
        let (header, _) = Ipv4Header::from_slice(&packet).unwrap();
        packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    } else {
        let len = (8 + data.len()) as u16;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        let next = std::mem::replace(&mut packet[6], 44);
        let place = offset as u16 | u16::from(more);
        packet.extend_from_slice(&[next, 0]);
        packet.extend_from_slice(&place.to_be_bytes());
        packet.extend_from_slice(&id.to_be_bytes());
    }
    packet.extend_from_slice(data);
    packet
}
