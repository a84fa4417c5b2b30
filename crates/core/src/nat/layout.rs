//! The pools and forwards of a configuration, prepared beside the translator that will use them.

use std::collections::BTreeMap;

use super::forwards::Forwards;
use super::pool::{Pools, groups};
use crate::config::Config;
use crate::flow::{Addr, GroupId};
use crate::session::{AddressBook, TranslatedAddr};

/// The pools and forwards of a configuration, for [`Nat::reconfigure`](super::Nat::reconfigure).
///
/// Call [`Layout::number_some`] before, until all addresses are in the book of the sessions.
pub struct Layout {
    pub(super) forwards: Forwards,
    pub(super) pools: Pools,
    pub(super) groups: BTreeMap<Addr, GroupId>,
    /// All addresses. Pools and forwards use these numbers for now.
    addrs: AddressBook,
    /// The numbers of the first ones in the book of the sessions; none if they are not in it yet.
    numbers: Vec<Option<TranslatedAddr>>,
    /// How many of the first numbers are known to be in it.
    numbered: usize,
}

/// No number is left for another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BookFull;

impl Layout {
    /// The layout of `config`. Takes time for addresses and forwarded ports.
    pub fn new(config: &Config) -> Layout {
        let mut addrs = AddressBook::new();
        let forwards = Forwards::new(config, &mut addrs);
        let mut pools = Pools::new(config, &mut addrs);
        pools.reserve(&forwards);
        Layout {
            forwards,
            pools,
            groups: groups(config),
            numbers: Vec::with_capacity(addrs.len()),
            numbered: 0,
            addrs,
        }
    }

    /// The group that each external address moves with.
    pub fn groups(&self) -> &BTreeMap<Addr, GroupId> {
        &self.groups
    }

    /// Adds some more of the addresses, up to `most`, to the `book`; returns whether all are in it.
    ///
    /// # Errors
    /// If there is no room for all; then none was added.
    pub fn number_some(&mut self, book: &mut AddressBook, most: usize) -> Result<bool, BookFull> {
        let known = self.numbers.len();
        let more = (known..self.addrs.len()).take(most);
        for number in more {
            let addr = self.addrs.get(TranslatedAddr(number as u16));
            self.numbers.push(addr.and_then(|addr| book.find(addr)));
        }
        if known < self.addrs.len() {
            let missing = || self.numbers.iter().filter(|number| number.is_none());
            let is_known = self.numbers.len() == self.addrs.len();
            return match is_known && missing().count() > book.room() {
                true => Err(BookFull),
                false => Ok(false),
            };
        }
        let more = (self.numbered..self.addrs.len()).take(most);
        for number in more {
            if self.numbers[number].is_none()
                && let Some(addr) = self.addrs.get(TranslatedAddr(number as u16))
            {
                self.numbers[number] = Some(book.intern(addr).ok_or(BookFull)?);
            }
            self.numbered = number + 1;
        }
        Ok(self.numbered == self.addrs.len())
    }

    /// Puts the numbers of the book into pools and forwards. All must have one.
    pub(super) fn renumber(&mut self) {
        let numbers: Vec<TranslatedAddr> = self.numbers.iter().flatten().copied().collect();
        debug_assert_eq!(numbers.len(), self.addrs.len(), "all are numbered");
        self.forwards.renumber(&numbers);
        self.pools.renumber(&numbers);
    }
}
