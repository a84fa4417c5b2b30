//! Memory for the big tables: huge pages where the kernel has them, and always some in advance.
//!
//! A lookup among a million sessions touches memory all over. With pages of 4 KiB nearly every
//! access misses the TLB as well as the cache; with 2 MiB it does not.
//!
//! But the kernel clears a page when it is first touched. That takes some 0.1 ms for a huge one,
//! and up to 8 ms on a virtual machine whose host has to provide the memory in turn: longer than
//! the loop may stand still. So a thread has the kernel do it before the sessions come.

use std::ops::Range;
use std::ptr;
use std::thread;

use tandemgw_core::in_quotes::InQuotes;
use tandemgw_core::memory::Reserved;

use super::priority;

/// Smaller tables would waste a good part of a huge page of 2 MiB, and do not need it.
const LARGE: usize = 4 << 20;

/// Sessions that there is memory for beyond those that there are: those that a unit can open in
/// some 200 ms. A peer that joins may send twice as many.
const AHEAD: usize = 65_536;
/// How many more there are before a thread provides for more.
const STEP: usize = 4096;

/// Linux 5.14. An older kernel refuses, and provides the memory when it is touched.
const MADV_POPULATE_WRITE: libc::c_int = 23;

/// Asks the kernel for huge pages for these tables, those that are large. To be called when they
/// are made, before they fill: memory that was touched keeps its small pages.
///
/// Memory of lists is still only taken when it is touched. Not that of hash indices: a few
/// thousand entries touch each of its pages anyway, and each would stall the packet that comes upon
/// it.
pub fn prefer_huge_pages(tables: impl IntoIterator<Item = Reserved>) {
    for table in tables {
        if table.addresses.len() >= LARGE {
            // A kernel without huge pages refuses; then they are small.
            advise(&table.addresses, libc::MADV_HUGEPAGE);
        }
        if table.is_scattered {
            advise(&table.addresses, MADV_POPULATE_WRITE);
        }
    }
}

/// Has memory ready for the next sessions.
pub struct Reserve {
    /// By table: the end of what it has or will have.
    ready: Vec<usize>,
    next: usize,
}

impl Reserve {
    /// Provides memory for the first sessions in these tables, after [`prefer_huge_pages`].
    pub fn begin(tables: Vec<Reserved>) -> Reserve {
        let mut reserve = Reserve {
            ready: tables.iter().map(provided).collect(),
            next: STEP,
        };
        let first = reserve.missing(tables);
        first.iter().for_each(provide);
        reserve
    }

    /// Whether to call [`Reserve::follow`], where there ever were so many sessions at once.
    #[inline]
    pub fn is_due(&self, most_sessions: usize) -> bool {
        most_sessions >= self.next
    }

    /// Has a thread provide more memory for the same tables, which have grown to so many sessions.
    /// The thread ends after that: a killed process closes the connections by which peers notice
    /// its death only when the last of its threads has run.
    pub fn follow(&mut self, most_sessions: usize, tables: Vec<Reserved>) {
        self.next = most_sessions + STEP;
        let ranges = self.missing(tables);
        if !ranges.is_empty() {
            let builder = thread::Builder::new().name("memory".to_owned());
            // Without the thread, memory is taken when it is touched.
            let _ = builder.spawn(move || provide_all(&ranges));
        }
    }

    /// What there should be of each, and was not asked for yet.
    fn missing(&mut self, tables: Vec<Reserved>) -> Vec<Range<usize>> {
        let lists = tables.into_iter().zip(&mut self.ready);
        let ranges = lists.map(|(table, ready)| {
            let end = table.addresses.start + table.used + AHEAD * table.entry;
            let from = *ready;
            *ready = end.min(table.addresses.end).max(from);
            from..*ready
        });
        ranges.filter(|range| !range.is_empty()).collect()
    }
}

/// The end of what a table has from the start.
fn provided(table: &Reserved) -> usize {
    match table.is_scattered {
        true => table.addresses.end,
        false => table.addresses.start,
    }
}

fn provide_all(ranges: &[Range<usize>]) {
    if let Err(error) = priority::be_ordinary() {
        log::debug!("priority for memory not lowered error={}", InQuotes(&error));
    }
    ranges.iter().for_each(provide);
}

fn provide(range: &Range<usize>) {
    advise(range, MADV_POPULATE_WRITE);
}

/// Whether this process can have so many bytes more; nothing is kept.
pub fn can_map(bytes: u64) -> bool {
    let Ok(size) = usize::try_from(bytes) else {
        return false;
    };
    let mut probe: Vec<u8> = Vec::new();
    probe.try_reserve_exact(size).is_ok()
}

/// Gives one of the two pieces of advice above, for whole pages. Where their ends hold something
/// else, nothing changes for it but the size of its page.
fn advise(addresses: &Range<usize>, advice: libc::c_int) {
    let page = page_size();
    let start = addresses.start / page * page;
    let length = addresses.end.next_multiple_of(page) - start;
    let start = ptr::without_provenance_mut(start);
    // SAFETY: neither MADV_HUGEPAGE nor MADV_POPULATE_WRITE changes what memory holds or who may
    // access it (madvise(2)); addresses that are not mapped are an error.
    unsafe { libc::madvise(start, length, advice) };
}

/// The size of a page of memory, in bytes.
pub(super) fn page_size() -> usize {
    // SAFETY: it only returns a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096).max(1)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tandemgw_core::config;
    use tandemgw_core::event::{LinkState, Offload, RouteChange, Verdict};
    use tandemgw_core::flow::{Addr, FlowKey, PortId, Protocol};
    use tandemgw_core::gateway::{Gateway, Seed};
    use tandemgw_core::packet::build::opening_packet;
    use tandemgw_core::time::Time;
    use testkit::lab::{route, to_port};
    use testkit::system::process::wait_until;

    use super::*;

    /// Of the mapping with this address: whether huge pages are asked for, and KiB that have them.
    /// Neighbors of one kind are one mapping: these may be those of another test, too.
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

    /// How many bytes of these there is memory for.
    fn present(addresses: &Range<usize>) -> usize {
        let page = page_size();
        let start = addresses.start / page * page;
        let mut pages = vec![0; (addresses.end - start).div_ceil(page)];
        let first = ptr::without_provenance_mut(start);
        // SAFETY: `pages` has a byte for each page to be written to (mincore(2)).
        let result = unsafe { libc::mincore(first, addresses.end - start, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages.iter().filter(|&page| page & 1 == 1).count() * page
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
            let is_huge = kib << 10 > size.saturating_sub(4 << 20) as u64;
            assert!(is_huge || !enabled || !table.is_scattered, "{kib} KiB");
        }
    }

    const OPEN: &str = r#"
        limits = { half-open-per-source = 0 }
        [node]
        name = "a"
        max-sessions = 65536
        [[port]]
        name = "lan"
        interface = "eth0"
        virtual-addresses = ["10.0.0.1/8"]
        [[port]]
        name = "wan"
        interface = "eth1"
        virtual-addresses = ["192.0.2.1/24"]
        [[policy]]
        name = "out"
        action = "accept"
        nat = true
    "#;

    /// How often this thread had to wait for memory.
    fn faults() -> i64 {
        // SAFETY: all bytes of an rusage may be zero: it is numbers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `usage` is a valid rusage for the kernel to write to.
        let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
        assert_eq!(result, 0);
        usage.ru_minflt + usage.ru_majflt
    }

    #[test]
    fn sessions_find_their_memory_ready() {
        let (config, _) = config::parse(Path::new("a.toml"), OPEN).unwrap();
        let mut gateway = Gateway::new(config, Seed([7; 32]), Time::ZERO);
        prefer_huge_pages(gateway.reserved_memory());
        for (port, destination) in [(PortId(0), "10.0.0.0/8"), (PortId(1), "0.0.0.0/0")] {
            let link = LinkState {
                up: true,
                mtu: 1500,
                mac: [2; 6],
            };
            gateway.handle_link(Time::ZERO, port, link);
            gateway.handle_route(RouteChange::Add(route(destination, to_port(port))));
        }
        gateway.start(Time::ZERO);
        let reserve = Reserve::begin(gateway.reserved_memory());
        let open = |gateway: &mut Gateway, number: u16| {
            let key = FlowKey {
                src: Addr::v4([10, 1, 1, 1]),
                dst: Addr::v4([198, 51, 100, 1]),
                src_port: number,
                dst_port: 53,
                protocol: Protocol::UDP,
            };
            let mut packet = opening_packet(&key).unwrap();
            gateway.handle_packet(Time::ZERO, PortId(0), &mut packet, Offload::default())
        };
        // What is there once takes its memory now.
        assert_eq!(open(&mut gateway, 1), Verdict::Forward);
        let before = faults();
        for number in 2..40_000 {
            assert_eq!(open(&mut gateway, number), Verdict::Forward);
        }
        let waited = faults() - before;
        assert!(waited < 100, "{waited} pages");
        assert!(reserve.is_due(gateway.most_sessions()));
    }

    #[test]
    fn memory_is_provided_as_a_table_grows() {
        const ENTRY: usize = 256;
        const MIB: usize = 1 << 20;
        let list: Vec<u8> = Vec::with_capacity(3 * AHEAD * ENTRY);
        let start = list.as_ptr().addr();
        let addresses = start..start + list.capacity();
        let table = |entries: usize| Reserved {
            addresses: addresses.clone(),
            is_scattered: false,
            used: entries * ENTRY,
            entry: ENTRY,
        };
        let provided = || present(&addresses);
        let mut reserve = Reserve::begin(vec![table(0)]);
        assert!((16 * MIB..17 * MIB).contains(&provided()), "{}", provided());
        assert!(!reserve.is_due(STEP - 1) && reserve.is_due(STEP));
        reserve.follow(STEP, vec![table(STEP)]);
        assert!(!reserve.is_due(STEP));
        wait_until("a step more is there", || {
            (17 * MIB..18 * MIB).contains(&provided())
        });
        // No further than the table.
        reserve.follow(3 * AHEAD, vec![table(3 * AHEAD)]);
        wait_until("all is there", || provided() >= 48 * MIB);
        assert!(provided() < 49 * MIB);
    }
}
