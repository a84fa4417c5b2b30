//! Tests of the whole module: everything is compared with packets made by etherparse's builders.

mod cases;
mod properties;

use etherparse::PacketBuilder;

use super::*;

const PLAIN: Offload = Offload {
    partial_checksum: None,
    checksum_verified: false,
    segment_size: 0,
};

/// The kernel's description of a packet without extension headers whose transport checksum is not
/// finished.
fn partial(bytes: &[u8], sort: Sort) -> Offload {
    partial_at(header_len(bytes), checksum_at(bytes, sort))
}

fn partial_at(start: usize, field: usize) -> Offload {
    let partial = PartialChecksum {
        start: start as u16,
        field: field as u16,
    };
    Offload {
        partial_checksum: Some(partial),
        ..PLAIN
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Tcp,
    Udp,
    UdpWithoutChecksum,
    EchoRequest,
    EchoReply,
}

impl Sort {
    fn protocol(self) -> Protocol {
        match self {
            Sort::Tcp => Protocol::TCP,
            Sort::Udp | Sort::UdpWithoutChecksum => Protocol::UDP,
            Sort::EchoRequest | Sort::EchoReply => Protocol::ICMP,
        }
    }
}

fn key(sort: Sort, src: Addr, dst: Addr, src_port: u16, dst_port: u16) -> FlowKey {
    let (src_port, dst_port) = match sort {
        Sort::EchoRequest => (src_port, crate::flow::echo_port(src_port)),
        Sort::EchoReply => (crate::flow::echo_port(dst_port), dst_port),
        _ => (src_port, dst_port),
    };
    FlowKey {
        src,
        dst,
        src_port,
        dst_port,
        protocol: sort.protocol(),
    }
}

fn ip_step(src: Addr, dst: Addr) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    match src.family() {
        Family::V4 => PacketBuilder::ipv4(src.last4(), dst.last4(), 60),
        Family::V6 => PacketBuilder::ipv6(*src.octets(), *dst.octets(), 60),
    }
}

/// A packet of flow `key`, complete with checksums, as etherparse builds it.
fn sample(sort: Sort, key: &FlowKey, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ip = ip_step(key.src, key.dst);
    let v4 = key.src.is_v4();
    match sort {
        Sort::Tcp => {
            let tcp = ip.tcp(key.src_port, key.dst_port, 1000, 5000).ack(77).psh();
            tcp.write(&mut bytes, payload).unwrap();
        }
        Sort::Udp | Sort::UdpWithoutChecksum => {
            ip.udp(key.src_port, key.dst_port)
                .write(&mut bytes, payload)
                .unwrap();
        }
        Sort::EchoRequest if v4 => {
            ip.icmpv4_echo_request(key.src_port, 3)
                .write(&mut bytes, payload)
                .unwrap();
        }
        Sort::EchoReply if v4 => {
            ip.icmpv4_echo_reply(key.dst_port, 3)
                .write(&mut bytes, payload)
                .unwrap();
        }
        Sort::EchoRequest => {
            ip.icmpv6_echo_request(key.src_port, 3)
                .write(&mut bytes, payload)
                .unwrap();
        }
        Sort::EchoReply => {
            ip.icmpv6_echo_reply(key.dst_port, 3)
                .write(&mut bytes, payload)
                .unwrap();
        }
    }
    if sort == Sort::UdpWithoutChecksum {
        let at = header_len(&bytes) + 6;
        bytes[at..at + 2].fill(0);
    }
    bytes
}

fn header_len(bytes: &[u8]) -> usize {
    if bytes[0] >> 4 == 4 {
        usize::from(bytes[0] & 15) * 4
    } else {
        40
    }
}

fn checksum_at(bytes: &[u8], sort: Sort) -> usize {
    let field = match sort.protocol() {
        Protocol::TCP => 16,
        Protocol::UDP => 6,
        _ => 2,
    };
    header_len(bytes) + field
}

/// An ICMP error from `src` to `dst` that quotes `quote`, as etherparse builds it.
fn error_sample(src: Addr, dst: Addr, quote: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ip = ip_step(src, dst);
    match src.family() {
        Family::V4 => {
            ip.icmpv4_raw(3, 4, [0, 0, 0x05, 0x14])
                .write(&mut bytes, quote)
                .unwrap();
        }
        Family::V6 => {
            ip.icmpv6_raw(2, 0, [0, 0, 0x05, 0x14])
                .write(&mut bytes, quote)
                .unwrap();
        }
    }
    bytes
}

/// The sum of RFC 1071, word by word; independent of the code under test.
fn naive_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

fn naive_pseudo_header(bytes: &[u8]) -> Vec<u8> {
    let (addresses, protocol) = match bytes[0] >> 4 {
        4 => (&bytes[12..20], bytes[9]),
        _ => (&bytes[8..40], bytes[6]),
    };
    let len = (bytes.len() - header_len(bytes)) as u32;
    [addresses, &len.to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

/// Whether both checksums of a packet without extension headers are right.
fn checksums_right(bytes: &[u8]) -> bool {
    let header = &bytes[..header_len(bytes)];
    let v4 = bytes[0] >> 4 == 4;
    let pseudo = if v4 && bytes[9] == 1 {
        Vec::new()
    } else {
        naive_pseudo_header(bytes)
    };
    (!v4 || naive_sum(&[header]) == 0xffff)
        && naive_sum(&[&pseudo, &bytes[header.len()..]]) == 0xffff
}

/// Leaves the checksum of a packet to the hardware, as the kernel does.
fn make_partial(bytes: &mut [u8], sort: Sort) {
    let sum = naive_sum(&[&naive_pseudo_header(bytes)]);
    let at = checksum_at(bytes, sort);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
