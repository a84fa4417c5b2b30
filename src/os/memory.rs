//! Memory for the big tables: huge pages where the kernel has them.
//!
//! A lookup among a million sessions touches memory all over. With pages of 4 KiB nearly every
//! access misses the TLB as well as the cache; with 2 MiB it does not.

use std::ptr;

use tandemgw_core::memory::Reserved;

/// Smaller tables would waste a good part of a huge page of 2 MiB, and do not need it.
const LARGE: usize = 16 << 20;

/// Linux 5.14. An older kernel refuses, and provides the memory when it is touched.
const MADV_POPULATE_WRITE: libc::c_int = 23;

/// Asks the kernel for huge pages for these tables, those that are large. To be called when they
/// are made, before they fill: memory that was touched keeps its small pages.
///
/// Memory is still only taken when it is touched, but for that of hash indices: a few dozen entries
/// touch each of its huge pages anyway, and each would stall the packet that comes upon it.
pub fn prefer_huge_pages(tables: impl IntoIterator<Item = Reserved>) {
    for table in tables {
        let Reserved {
            addresses,
            is_scattered,
        } = table;
        if addresses.len() < LARGE {
            continue;
        }
        // Whole pages. Where their ends hold something else, nothing changes for it but the size of
        // its page.
        let page = page_size();
        let start = addresses.start / page * page;
        let length = addresses.end.next_multiple_of(page) - start;
        // A kernel without huge pages refuses; then they are small.
        advise(start, length, libc::MADV_HUGEPAGE);
        if is_scattered {
            advise(start, length, MADV_POPULATE_WRITE);
        }
    }
}

/// Whether this process can have so many bytes more; nothing is kept.
pub fn can_map(bytes: u64) -> bool {
    let Ok(size) = usize::try_from(bytes) else {
        return false;
    };
    let mut probe: Vec<u8> = Vec::new();
    probe.try_reserve_exact(size).is_ok()
}

/// Gives one of the two pieces of advice above.
fn advise(start: usize, length: usize, advice: libc::c_int) {
    let start = ptr::without_provenance_mut(start);
    // SAFETY: neither MADV_HUGEPAGE nor MADV_POPULATE_WRITE changes what memory holds or who may
    // access it (madvise(2)); addresses that are not mapped are an error.
    unsafe { libc::madvise(start, length, advice) };
}

fn page_size() -> usize {
    // SAFETY: it only returns a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096).max(1)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tandemgw_core::config;
    use tandemgw_core::gateway::{Gateway, Seed};
    use tandemgw_core::time::Time;

    use super::*;

    /// Of the mapping with this address: whether huge pages are asked for, and KiB that have them.
    fn huge_pages(address: usize) -> (bool, u64) {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut is_it, mut kib) = (false, 0);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap();
            let number = |text| usize::from_str_radix(text, 16).ok();
            let ends = first.split_once('-');
            if let Some((start, end)) = ends.and_then(|(a, b)| number(a).zip(number(b))) {
                is_it = (start..end).contains(&address);
            } else if is_it && first == "AnonHugePages:" {
                kib = words.next().unwrap().parse().unwrap();
            } else if is_it && first == "VmFlags:" {
                return (words.any(|flag| flag == "hg"), kib);
            }
        }
        panic!("{address:x} is not mapped");
    }

    #[test]
    fn large_tables_have_huge_pages() {
        let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        let enabled = enabled.is_ok_and(|text| !text.contains("[never]"));
        let text = "[node]\nname = \"a\"\nmax-sessions = 1048576\n\
                    [[port]]\nname = \"lan\"\ninterface = \"eth0\"\n";
        let (config, _) = config::parse(Path::new("a.toml"), text).unwrap();
        let gateway = Gateway::new(config, Seed([7; 32]), Time::ZERO);
        prefer_huge_pages(gateway.reserved_memory());
        let mut large = gateway.reserved_memory();
        large.retain(|table| table.addresses.len() >= LARGE);
        assert!(large.iter().any(|table| table.is_scattered), "{large:?}");
        assert!(large.iter().any(|table| !table.is_scattered), "{large:?}");
        for table in large {
            let size = table.addresses.len();
            let (is_asked_for, kib) = huge_pages(table.addresses.start + size / 2);
            assert!(is_asked_for || !enabled, "{table:?}");
            // Its ends may be on small pages.
            let is_huge = kib << 10 > size as u64 * 3 / 4;
            assert!(is_huge || !enabled || !table.is_scattered, "{kib} KiB");
        }
    }
}
