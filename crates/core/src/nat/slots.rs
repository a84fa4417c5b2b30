//! The ports of the slots of a group that is cut: see `config/slots.rs`.

use super::{Nat, PoolId};
use crate::flow::{Addr, FlowKey};
use crate::session::AddressBook;

/// The ports of a pool that a session may get: all of them, or those of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The pool that a policy selects.
    pub pool: PoolId,
    /// The number of the slot that the session is in, where the pool's group is cut.
    pub slot: Option<u8>,
}

impl From<PoolId> for Slice {
    fn from(pool: PoolId) -> Slice {
        Slice { pool, slot: None }
    }
}

impl Nat {
    /// Whether a packet with `key` comes from the server of a forward, so that it may be an answer
    /// to a client of that.
    pub fn is_server(&self, key: &FlowKey) -> bool {
        let mut ends = self.forwards.ends_of(key).iter();
        ends.any(|end| end.external_port(key.src_port).is_some())
    }

    /// The slot whose sessions may have `port` of an external address; none if its group is not
    /// cut.
    pub fn slot_of(&self, book: &AddressBook, addr: Addr, port: u16) -> Option<u8> {
        self.pools.slot_of(book.find(addr)?, port)
    }
}
