//! Where the big tables keep their entries: the shell asks the kernel for large pages there.

use std::ops::Range;

/// Memory that a table reserves when it is made, and keeps until it ends: it never grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The addresses, used or not yet.
    pub addresses: Range<usize>,
    /// Even a few entries are spread over all of it, as in a hash index. Otherwise it fills from
    /// its beginning.
    pub is_scattered: bool,
    /// Bytes in use, from its beginning. All of a hash index are.
    pub used: usize,
    /// Bytes of an entry.
    pub entry: usize,
}

impl Reserved {
    /// The memory of a list that fills from its beginning.
    pub(crate) fn of_list<T>(entries: &Vec<T>) -> Reserved {
        let start = entries.as_ptr().addr();
        Reserved {
            addresses: start..start + entries.capacity() * size_of::<T>(),
            is_scattered: false,
            used: size_of_val(&entries[..]),
            entry: size_of::<T>(),
        }
    }

    /// The memory of a hash index.
    pub(crate) fn of_index<T>(entries: &Vec<T>) -> Reserved {
        Reserved {
            is_scattered: true,
            ..Reserved::of_list(entries)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_told_whether_used_or_not() {
        let mut list: Vec<u64> = Vec::with_capacity(1000);
        list.push(7);
        let reserved = Reserved::of_list(&list);
        assert!(reserved.addresses.len() >= 8000 && !reserved.is_scattered);
        assert_eq!((reserved.used, reserved.entry), (8, 8));
        assert!(reserved.addresses.contains(&(&raw const list[0]).addr()));
        assert!(Reserved::of_index(&list).is_scattered);
    }
}
