//! Writes the parts of pcapng (draft-ietf-opsawg-pcapng) that a capture needs.

use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// Packets begin with their IP header, of either version.
const LINKTYPE_RAW: u16 = 101;

/// Options that any block may have: `opt_comment`.
const COMMENT: u16 = 1;

/// Writes blocks to `out`, each whole.
pub struct Writer<W> {
    out: W,
    block: Vec<u8>,
    interfaces: u32,
}

/// A packet to write.
pub struct Packet<'a> {
    /// The number that [`Writer::interface`] returned.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Whether it left by that interface; otherwise it came in.
    pub outbound: bool,
    /// The same for all copies of one packet.
    pub id: u64,
    /// Its full length; `bytes` may be only the beginning.
    pub length: u32,
    /// From the IP header on.
    pub bytes: &'a [u8],
    pub comment: &'a str,
}

/// Packet counts of an interface.
pub struct Statistics {
    /// The number that [`Writer::interface`] returned.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// The same, of the end.
    pub end: u64,
    /// Packets that matched the filter.
    pub matched: u64,
    /// Those of them that are missing.
    pub lost: u64,
}

impl<W: Write> Writer<W> {
    /// Starts a file; its header names the program that wrote it.
    ///
    /// # Errors
    /// Those of `out`, here and in the other functions.
    pub fn new(out: W, program: &str, comment: &str) -> io::Result<Writer<W>> {
        let mut writer = Writer {
            out,
            block: Vec::new(),
            interfaces: 0,
        };
        let block = writer.begin(SECTION_HEADER);
        put(block, &0x1a2b_3c4d_u32.to_le_bytes());
        // Version 1.0, and a section of unknown length.
        put(block, &[1, 0, 0, 0]);
        put(block, &(-1_i64).to_le_bytes());
        option(block, COMMENT, comment.as_bytes());
        // shb_userappl
        option(block, 4, program.as_bytes());
        writer.end()?;
        Ok(writer)
    }

    /// Writes the description of an interface; returns its number.
    pub fn interface(&mut self, name: &str, description: &str, snapshot: u32) -> io::Result<u32> {
        let block = self.begin(INTERFACE_DESCRIPTION);
        put(block, &LINKTYPE_RAW.to_le_bytes());
        put(block, &[0, 0]);
        put(block, &snapshot.to_le_bytes());
        // if_name, if_description, if_tsresol: 10^-9 s
        option(block, 2, name.as_bytes());
        option(block, 3, description.as_bytes());
        option(block, 9, &[9]);
        self.end()?;
        self.interfaces += 1;
        Ok(self.interfaces - 1)
    }

    pub fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let block = self.begin(ENHANCED_PACKET);
        put(block, &packet.interface.to_le_bytes());
        put_time(block, packet.time);
        put(block, &(packet.bytes.len() as u32).to_le_bytes());
        put(block, &packet.length.to_le_bytes());
        put(block, packet.bytes);
        pad(block);
        option(block, COMMENT, packet.comment.as_bytes());
        // epb_flags: bits 0 and 1 are the direction; epb_packetid
        let direction: u32 = if packet.outbound { 2 } else { 1 };
        option(block, 2, &direction.to_le_bytes());
        option(block, 5, &packet.id.to_le_bytes());
        self.end()
    }

    pub fn statistics(&mut self, statistics: &Statistics) -> io::Result<()> {
        let block = self.begin(INTERFACE_STATISTICS);
        put(block, &statistics.interface.to_le_bytes());
        put_time(block, statistics.end);
        // isb_starttime, isb_endtime
        for (code, time) in [(2, statistics.start), (3, statistics.end)] {
            let mut value = Vec::with_capacity(8);
            put_time(&mut value, time);
            option(block, code, &value);
        }
        // isb_ifrecv, isb_ifdrop, isb_usrdeliv
        let delivered = statistics.matched - statistics.lost.min(statistics.matched);
        let counts = [
            (4, statistics.matched),
            (5, statistics.lost),
            (8, delivered),
        ];
        for (code, count) in counts {
            option(block, code, &count.to_le_bytes());
        }
        self.end()
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn begin(&mut self, block_type: u32) -> &mut Vec<u8> {
        self.block.clear();
        put(&mut self.block, &block_type.to_le_bytes());
        // The length, once it is known.
        put(&mut self.block, &[0; 4]);
        &mut self.block
    }

    fn end(&mut self) -> io::Result<()> {
        // opt_endofopt
        put(&mut self.block, &[0; 4]);
        let length = (self.block.len() as u32 + 4).to_le_bytes();
        self.block[4..8].copy_from_slice(&length);
        put(&mut self.block, &length);
        self.out.write_all(&self.block)
    }
}

fn put(block: &mut Vec<u8>, bytes: &[u8]) {
    block.extend_from_slice(bytes);
}

fn pad(block: &mut Vec<u8>) {
    block.resize(block.len().next_multiple_of(4), 0);
}

fn put_time(block: &mut Vec<u8>, time: u64) {
    put(block, &((time >> 32) as u32).to_le_bytes());
    put(block, &(time as u32).to_le_bytes());
}

fn option(block: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    put(block, &code.to_le_bytes());
    put(block, &(value.len() as u16).to_le_bytes());
    put(block, value);
    pad(block);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Blocks as type and body, from a file that must be whole.
    fn blocks(file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut found) = (0, Vec::new());
        while at < file.len() {
            let length = u32_at(at + 4) as usize;
            assert_eq!(length % 4, 0, "blocks end at 32 bits");
            assert_eq!(u32_at(at + length - 4) as usize, length, "said twice");
            found.push((u32_at(at), file[at + 8..at + length - 4].to_vec()));
            at += length;
        }
        found
    }

    /// Options as code and value.
    fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
            let (code, length) = (u16_at(0), usize::from(u16_at(2)));
            if code == 0 {
                assert_eq!(bytes.len(), 4, "nothing follows the end of the options");
                return found;
            }
            found.push((code, bytes[4..4 + length].to_vec()));
            bytes = &bytes[4 + length.next_multiple_of(4)..];
        }
    }

    proptest! {
        #[test]
        fn packets_and_comments_of_any_length_can_be_read_back(
            packets in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..70), "[ -~]{0,40}", any::<u64>()), 0..5)
        ) {
            let mut file = Vec::new();
            let mut writer = Writer::new(&mut file, "program", "node").unwrap();
            let interface = writer.interface("lan", "eth0", 64).unwrap();
            for (bytes, comment, number) in &packets {
                writer.packet(&Packet {
                    interface, time: *number, outbound: number % 2 == 0, id: *number,
                    length: bytes.len() as u32 + 7, bytes, comment,
                }).unwrap();
            }
            let blocks = blocks(&file);
            prop_assert_eq!(blocks[0].0, SECTION_HEADER);
            prop_assert_eq!(
                options(&blocks[0].1[16..]), [(1, b"node".to_vec()), (4, b"program".to_vec())]
            );
            prop_assert_eq!(blocks[1].0, INTERFACE_DESCRIPTION);
            for ((bytes, comment, number), (kind, body)) in packets.iter().zip(&blocks[2..]) {
                prop_assert_eq!(*kind, ENHANCED_PACKET);
                prop_assert_eq!(&body[20..20 + bytes.len()], &bytes[..]);
                let read = options(&body[20 + bytes.len().next_multiple_of(4)..]);
                let flags = if number % 2 == 0 { 2_u32 } else { 1 };
                prop_assert_eq!(&read[0], &(1, comment.as_bytes().to_vec()));
                prop_assert_eq!(&read[1], &(2, flags.to_le_bytes().to_vec()));
                prop_assert_eq!(&read[2], &(5, number.to_le_bytes().to_vec()));
            }
            prop_assert_eq!(blocks.len(), 2 + packets.len());
        }
    }

    #[test]
    fn statistics_tell_what_is_missing() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "program", "node").unwrap();
        writer
            .statistics(&Statistics {
                interface: 0,
                start: 1,
                end: 2 << 32,
                matched: 10,
                lost: 3,
            })
            .unwrap();
        let blocks = blocks(&file);
        let read = options(&blocks[1].1[12..]);
        let count = |number: u64| number.to_le_bytes().to_vec();
        assert_eq!(read[1], (3, vec![2, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(read[2..], [(4, count(10)), (5, count(3)), (8, count(7))]);
    }
}
