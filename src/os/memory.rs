//! Memory for the big tables: huge pages where the kernel has them.
//!
//! A lookup among a million sessions touches memory all over. With pages of 4 KiB nearly each touch
//! misses the TLB as well as the cache; with 2 MiB it does not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// An allocator that asks for huge pages (`madvise(MADV_HUGEPAGE)`) for large allocations, and leaves
/// the rest to the system's. Memory is still only taken when it is touched.
pub struct Allocator;

/// A huge page of x86-64 and of AArch64 with 4 KiB base pages.
const HUGE_PAGE: usize = 2 << 20;

/// Smaller ones would waste a good part of their last page.
const LARGE: usize = 8 * HUGE_PAGE;

// SAFETY: small allocations go to `System` with their layout unchanged. Large ones are mappings of
// their own, aligned to a huge page (more than any layout asks for, which is checked), at least as long
// as asked for, and unmapped with the length that they were mapped with, which follows from the layout.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            let start = map(layout.size());
            populate(start, layout.size());
            return start;
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: `ptr` came from `map` with this size, since the layout is the same.
            unsafe { libc::munmap(ptr.cast(), mapped_len(layout.size())) };
            return;
        }
        // SAFETY: the caller's promise is passed on; `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Whether this process can have so many bytes more of addresses; nothing is kept.
pub fn can_map(bytes: u64) -> bool {
    let Ok(size) = usize::try_from(bytes) else {
        return false;
    };
    let mut probe: Vec<u8> = Vec::new();
    probe.try_reserve_exact(size).is_ok()
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= HUGE_PAGE
}

fn mapped_len(size: usize) -> usize {
    size.next_multiple_of(HUGE_PAGE)
}

/// Maps zeroed memory at a multiple of [`HUGE_PAGE`]; null if there is none.
fn map(size: usize) -> *mut u8 {
    let length = mapped_len(size);
    let with_slack = length + HUGE_PAGE;
    // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            with_slack,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    let start = start.cast::<u8>();
    let lead = start.align_offset(HUGE_PAGE);
    // SAFETY: all three ranges lie within the mapping made above: `lead` is less than HUGE_PAGE, so
    // `lead + length` is at most its length. Nothing refers to the parts that are unmapped.
    unsafe {
        let aligned = start.add(lead);
        if lead > 0 {
            libc::munmap(start.cast(), lead);
        }
        if lead < HUGE_PAGE {
            libc::munmap(aligned.add(length).cast(), HUGE_PAGE - lead);
        }
        // A kernel without huge pages refuses; then they are small.
        libc::madvise(aligned.cast(), length, libc::MADV_HUGEPAGE);
        aligned
    }
}

/// Has the kernel provide the memory now. What is asked for as zeroes is a hash index, in which a few
/// dozen entries touch every huge page anyway; each would stall the packet that comes upon it.
fn populate(start: *mut u8, size: usize) {
    /// Linux 5.14. An older kernel refuses, and provides the memory later.
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    if !start.is_null() {
        // SAFETY: the range was mapped by `map` just now, and is only filled with the zeroes that it
        // reads as anyway.
        unsafe { libc::madvise(start.cast(), mapped_len(size), MADV_POPULATE_WRITE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_allocations_are_zeroed_aligned_and_returned() {
        for size in [LARGE, LARGE + 1, 3 * LARGE + 12_345] {
            let layout = Layout::from_size_align(size, 64).unwrap();
            // SAFETY: the layout has a size; the memory is used within it and freed with it.
            unsafe {
                let memory = Allocator.alloc_zeroed(layout);
                assert!(!memory.is_null());
                assert_eq!(memory.align_offset(HUGE_PAGE), 0);
                assert_eq!((*memory, *memory.add(size - 1)), (0, 0));
                *memory.add(size - 1) = 7;
                Allocator.dealloc(memory, layout);
            }
        }
    }
}
