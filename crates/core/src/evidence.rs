//! Evidence of how complete a unit's copy of a group's sessions is. Units are ranked by this before
//! any setting of an administrator.

use crate::flow::{GroupSet, PeerSet};

/// A unit's copy of a group: every change up to `position` of the process `epoch`, which was
/// primary with `term`. All zero: nothing.
///
/// Holdings with the same term and epoch are ordered by position; those of different epochs in one
/// term can't be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holding {
    /// The term of the primary that it came from.
    pub term: u64,
    /// The random number of the primary's process, from its Hello.
    pub epoch: u64,
    /// The last applied change.
    pub position: u64,
}

impl Holding {
    /// Whether the holder of `self` has seen everything that the holder of `other` has.
    pub(crate) fn covers(&self, other: &Holding) -> bool {
        (self.term, self.epoch) == (other.term, other.epoch) && self.position >= other.position
    }
}

/// How far this unit and one peer are with the sessions of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncState {
    /// The groups of which this unit has received from the peer all that the peer has.
    ///
    /// A broken stream does not take that back, because the received copies may soon be all that is
    /// left. A new stream of another process of the peer does, and so does `ha::Output::Resync`.
    pub ready: GroupSet,
    /// The groups of which this unit is primary and whose sessions the peer all held at the last
    /// comparison; the stream to it is up.
    pub equal: GroupSet,
    /// The last sequence of the peer that this unit has applied.
    pub applied: u64,
}

/// The process of a peer that is heard, by its boot identifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The process whose heartbeats come by a link.
    pub by_link: Option<u64>,
    /// The process that is alive, by heartbeats from anywhere, the data ports included.
    pub at_all: Option<u64>,
}

/// The peers that are to hold the sessions of a group, beside its primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holders {
    /// All of them.
    #[default]
    All,
    /// These, chosen by the primary.
    Of {
        /// Who they are.
        peers: PeerSet,
        /// How many there should be. There are fewer while not enough peers are there, and more
        /// while the group is about to move to one that holds nothing yet.
        copies: u32,
    },
}
