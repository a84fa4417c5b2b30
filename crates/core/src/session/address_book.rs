//! The few addresses that sessions are translated to, held once.

use std::collections::BTreeMap;

use crate::flow::Addr;

/// An address of an [`AddressBook`], in two bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TranslatedAddr(pub u16);

impl TranslatedAddr {
    /// The address is not translated.
    pub const SAME: TranslatedAddr = TranslatedAddr(u16::MAX);
}

/// Addresses of translated packets: virtual addresses, pools, internal servers.
///
/// An address in the book stays in it, so that an index stays valid.
#[derive(Clone, Debug, Default)]
pub struct AddressBook {
    addrs: Vec<Addr>,
    index: BTreeMap<Addr, u16>,
}

impl AddressBook {
    /// The number of addresses that a book can hold.
    pub const CAPACITY: usize = 65_534;

    /// An empty book.
    pub fn new() -> AddressBook {
        AddressBook::default()
    }

    /// The index of `addr`, which is added if necessary; none if the book is full.
    pub fn intern(&mut self, addr: Addr) -> Option<TranslatedAddr> {
        if let Some(&known) = self.index.get(&addr) {
            return Some(TranslatedAddr(known));
        }
        if self.addrs.len() == Self::CAPACITY {
            return None;
        }
        let new = u16::try_from(self.addrs.len()).ok()?;
        self.addrs.push(addr);
        self.index.insert(addr, new);
        Some(TranslatedAddr(new))
    }

    /// The index of `addr`, if it is in the book.
    pub fn find(&self, addr: Addr) -> Option<TranslatedAddr> {
        self.index.get(&addr).copied().map(TranslatedAddr)
    }

    /// How many addresses it holds.
    pub fn len(&self) -> usize {
        self.addrs.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.addrs.is_empty()
    }

    /// How many more addresses there is room for.
    pub fn room(&self) -> usize {
        Self::CAPACITY - self.addrs.len()
    }

    /// The address at `index`; none for [`TranslatedAddr::SAME`] and for indices that were never
    /// interned.
    #[inline]
    pub fn get(&self, index: TranslatedAddr) -> Option<Addr> {
        self.addrs.get(usize::from(index.0)).copied()
    }

    /// The address at `index`, or `original` if it is not translated.
    #[inline]
    pub fn resolve(&self, index: TranslatedAddr, original: Addr) -> Addr {
        *self.addrs.get(usize::from(index.0)).unwrap_or(&original)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interns_once_up_to_the_capacity() {
        let mut book = AddressBook::new();
        let addr = |i: u32| Addr::v4(i.to_be_bytes());
        for i in 0..AddressBook::CAPACITY as u32 {
            assert_eq!(book.intern(addr(i)), Some(TranslatedAddr(i as u16)));
        }
        assert_eq!(book.intern(addr(7)), Some(TranslatedAddr(7)));
        assert_eq!(book.intern(addr(70_000)), None);
        assert_eq!(book.get(TranslatedAddr(7)), Some(addr(7)));
        assert_eq!(book.get(TranslatedAddr::SAME), None);
        assert_eq!(book.resolve(TranslatedAddr::SAME, addr(9)), addr(9));
        assert_eq!(book.resolve(TranslatedAddr(3), addr(9)), addr(3));
    }
}
