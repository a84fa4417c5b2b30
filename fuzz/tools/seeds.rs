//! Makes seeds of the target `packet` out of captures of real programs.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --bin seeds -- lan FILE.pcap …` writes a file for
//! each capture into `fuzz/seeds/packet`. Captures are those of tcpdump, of an Ethernet interface
//! in the network of the tests or of `scripts/lab`; `lan` or `wan` says which.

use std::fs;
use std::path::Path;

/// Bytes of a seed: more than that says nothing new, and slows each input made of it.
const MOST: usize = 6000;
/// Magic number, of a file in the byte order of the machine (pcap-savefile(5)).
const MAGIC: [u8; 4] = [0xd4, 0xc3, 0xb2, 0xa1];

fn main() {
    let mut words = std::env::args().skip(1);
    let port = match words.next().as_deref() {
        Some("lan") => 0,
        Some("wan") => 1,
        _ => panic!("usage: seeds lan|wan FILE.pcap …"),
    };
    for file in words {
        let file = Path::new(&file);
        let bytes = fs::read(file).expect("the capture can be read");
        let seed = seed(&bytes, port);
        let name = file.file_stem().expect("a name").to_string_lossy();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/packet");
        fs::create_dir_all(&path).expect("the folder can be made");
        fs::write(path.join(&*name), seed).expect("the seed can be written");
    }
}

/// Steps that hand each packet of a capture to the first unit: IP by the TUN, ARP and ND by the
/// wire.
fn seed(bytes: &[u8], port: u8) -> Vec<u8> {
    assert_eq!(bytes[..4], MAGIC, "a capture of tcpdump");
    let (mut rest, mut seed) = (&bytes[24..], Vec::new());
    while let Some((header, more)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some((frame, after)) = more.split_at_checked(length) else {
            break;
        };
        rest = after;
        let is_arp = frame.get(12..14) == Some(&[8, 6]);
        let is_nd = frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(20) == Some(&58);
        if is_arp || is_nd {
            push(&mut seed, port << 1, frame);
        }
        if !is_arp {
            push(
                &mut seed,
                port << 1 | 2 << 3,
                frame.get(14..).unwrap_or_default(),
            );
        }
        if seed.len() > MOST {
            break;
        }
    }
    seed
}

fn push(seed: &mut Vec<u8>, what: u8, bytes: &[u8]) {
    // Super-packets of the capturing machine are cut: the rest of them is payload.
    let bytes = &bytes[..bytes.len().min(1500)];
    seed.push(what);
    seed.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    seed.extend_from_slice(bytes);
}
