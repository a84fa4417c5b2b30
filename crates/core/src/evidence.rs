//! What a unit knows of a group's sessions. Units are ranked by this evidence before anything that
//! an administrator has set.

/// What a unit holds of a group: every change up to `position` of the process `epoch`, which was
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
    /// The last change that is applied.
    pub position: u64,
}

impl Holding {
    /// Whether the holder of `self` has seen everything that the holder of `other` has.
    pub(crate) fn covers(&self, other: &Holding) -> bool {
        (self.term, self.epoch) == (other.term, other.epoch) && self.position >= other.position
    }
}
