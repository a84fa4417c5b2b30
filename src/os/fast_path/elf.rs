//! Reads the program out of its object file (ELF, 64 bit, little endian).

/// The code of a section, and where it names maps.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Instructions of 8 bytes.
    pub(super) code: Vec<u8>,
    /// Offsets of instructions that load a map, each with the map's name.
    pub(super) maps: Vec<(usize, String)>,
}

const SECTION_HEADER: usize = 64;
const SYMBOL: usize = 24;
const RELOCATION: usize = 16;
const SYMBOLS: u32 = 2;
const RELOCATIONS: u32 = 9;

struct Section<'a> {
    name: u32,
    kind: u32,
    bytes: &'a [u8],
    link: usize,
    info: usize,
}

/// The program in the section called `name`; none if the object is not as expected.
pub(super) fn program(object: &[u8], name: &str) -> Option<Program> {
    let (start, count) = (u64_at(object, 40)?, u16_at(object, 60)?);
    let headers = (0..usize::from(count)).map(|index| start + index * SECTION_HEADER);
    let sections: Option<Vec<Section<'_>>> = headers.map(|at| section(object, at)).collect();
    let sections = sections?;
    let names = sections.get(usize::from(u16_at(object, 62)?))?.bytes;
    let is_code = |section: &Section<'_>| text_at(names, section.name) == Some(name);
    let place = sections.iter().position(is_code)?;
    let is_ours = |s: &&Section<'_>| s.kind == RELOCATIONS && s.info == place;
    let mut maps = Vec::new();
    for relocations in sections.iter().filter(is_ours) {
        let symbols = sections
            .get(relocations.link)
            .filter(|s| s.kind == SYMBOLS)?;
        let names = sections.get(symbols.link)?.bytes;
        for relocation in relocations.bytes.chunks_exact(RELOCATION) {
            let symbol = u32_at(relocation, 12)? as usize * SYMBOL;
            let name = text_at(names, u32_at(symbols.bytes, symbol)?)?;
            maps.push((u64_at(relocation, 0)?, name.to_owned()));
        }
    }
    let code = sections.get(place)?.bytes.to_vec();
    Some(Program { code, maps })
}

fn section(object: &[u8], at: usize) -> Option<Section<'_>> {
    let (from, length) = (u64_at(object, at + 24)?, u64_at(object, at + 32)?);
    Some(Section {
        name: u32_at(object, at)?,
        kind: u32_at(object, at + 4)?,
        bytes: object.get(from..from.checked_add(length)?)?,
        link: u32_at(object, at + 40)? as usize,
        info: u32_at(object, at + 44)? as usize,
    })
}

fn text_at(names: &[u8], at: u32) -> Option<&str> {
    let rest = names.get(at as usize..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    let number = bytes_at(bytes, at).map(u64::from_le_bytes)?;
    usize::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_name_their_maps() {
        use super::super::{ENTRANCE_SECTION, EXIT_SECTION, OBJECT, SECTION, TUN_OBJECT};
        let at_ports = ["buckets", "counts", "groups", "secret", "sessions", "taken"];
        let all = [
            (OBJECT, SECTION, &at_ports[..]),
            (TUN_OBJECT, EXIT_SECTION, &["counts", "exits", "taken"]),
            (
                TUN_OBJECT,
                ENTRANCE_SECTION,
                &["arrivals", "counts", "entrances", "taken"],
            ),
        ];
        for (object, section, expected) in all {
            let program = program(object, section).unwrap();
            assert!(program.code.len() > 800 && program.code.len().is_multiple_of(8));
            let mut names: Vec<&str> = program.maps.iter().map(|(_, name)| name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names, expected);
            for (at, _) in &program.maps {
                // BPF_LD | BPF_DW | BPF_IMM
                assert_eq!(program.code[*at], 0x18);
            }
        }
    }

    #[test]
    fn a_damaged_object_is_refused() {
        let object = super::super::OBJECT;
        for length in 0..object.len() {
            let _ = program(&object[..length], super::super::SECTION);
        }
        for at in 0..object.len() {
            let mut damaged = object.to_vec();
            damaged[at] ^= 0xff;
            let _ = program(&damaged, super::super::SECTION);
        }
        assert_eq!(program(object, "other"), None);
    }
}
