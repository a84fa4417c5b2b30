//! Finds the member with the highest count, without a search.

const NOBODY: u32 = u32::MAX;
/// Counts below 16 have a level each; above, eight levels share a power of two.
const LEVELS: usize = 256;

/// Counters of a fixed number of members, in the order of their counts to an eighth.
///
/// Each member is in the list of the level of its count, so a change costs a few writes, and mostly
/// one.
#[derive(Debug)]
pub(super) struct Ranking {
    members: Vec<Member>,
    first: [u32; LEVELS],
    occupied: [u64; LEVELS / 64],
}

#[derive(Clone, Copy, Debug)]
struct Member {
    count: u32,
    prev: u32,
    next: u32,
}

impl Ranking {
    /// `members` members with nothing.
    pub(super) fn new(members: usize) -> Ranking {
        let none = Member {
            count: 0,
            prev: NOBODY,
            next: NOBODY,
        };
        Ranking {
            members: vec![none; members],
            first: [NOBODY; LEVELS],
            occupied: [0; LEVELS / 64],
        }
    }

    /// The count of a member.
    pub(super) fn count(&self, member: u32) -> u32 {
        self.members[member as usize].count
    }

    /// Counts one more of a member.
    pub(super) fn add(&mut self, member: u32) {
        let count = self.count(member);
        self.set(member, count.saturating_add(1));
    }

    /// Counts one less of a member.
    pub(super) fn remove(&mut self, member: u32) {
        let count = self.count(member);
        debug_assert!(count > 0, "one less than nothing");
        self.set(member, count.saturating_sub(1));
    }

    /// A member with the highest count, or at least seven eighths of that; none if all are zero.
    pub(super) fn largest(&self) -> Option<u32> {
        let word = self.occupied.iter().rposition(|word| *word != 0)?;
        let level = word * 64 + 63 - self.occupied[word].leading_zeros() as usize;
        Some(self.first[level])
    }

    /// The members with a nonzero count, the highest first, accurate to an eighth.
    pub(super) fn largest_first(&self) -> impl Iterator<Item = u32> {
        let levels = (1..LEVELS).rev();
        levels.flat_map(move |level| {
            let some = |member: u32| (member != NOBODY).then_some(member);
            let next = move |member: &u32| some(self.members[*member as usize].next);
            std::iter::successors(some(self.first[level]), next)
        })
    }

    /// The sum of all.
    pub(super) fn total(&self) -> u64 {
        self.members.iter().map(|it| u64::from(it.count)).sum()
    }

    fn set(&mut self, member: u32, count: u32) {
        let before = level(self.count(member));
        self.members[member as usize].count = count;
        let after = level(count);
        if before == after {
            return;
        }
        if before != 0 {
            self.unlink(member, before);
        }
        if after != 0 {
            self.link(member, after);
        }
    }

    fn link(&mut self, member: u32, level: usize) {
        let next = std::mem::replace(&mut self.first[level], member);
        let it = &mut self.members[member as usize];
        (it.prev, it.next) = (NOBODY, next);
        if next == NOBODY {
            self.occupied[level / 64] |= 1 << (level % 64);
        } else {
            self.members[next as usize].prev = member;
        }
    }

    fn unlink(&mut self, member: u32, level: usize) {
        let Member { prev, next, .. } = self.members[member as usize];
        match prev {
            NOBODY => self.first[level] = next,
            _ => self.members[prev as usize].next = next,
        }
        if next != NOBODY {
            self.members[next as usize].prev = prev;
        }
        if self.first[level] == NOBODY {
            self.occupied[level / 64] &= !(1 << (level % 64));
        }
    }
}

/// The level of a count; 0 for none.
fn level(count: u32) -> usize {
    if count < 16 {
        return count as usize;
    }
    let power = count.ilog2();
    let eighth = (count >> (power - 3)) & 7;
    16 + ((power - 4) * 8 + eighth) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn levels_rise_with_counts() {
        let all: Vec<usize> = (0..100_000).map(level).collect();
        assert!(all.is_sorted());
        assert!(level(u32::MAX) < LEVELS);
    }

    proptest! {
        #[test]
        fn the_largest_has_at_least_seven_eighths_of_the_most(
            steps in prop::collection::vec((0..8u32, any::<bool>(), 1..300u32), 0..60),
        ) {
            let mut ranking = Ranking::new(8);
            let mut counts = [0u32; 8];
            for (member, more, by) in steps {
                for _ in 0..by {
                    let count = &mut counts[member as usize];
                    if more {
                        ranking.add(member);
                        *count += 1;
                    } else if *count > 0 {
                        ranking.remove(member);
                        *count -= 1;
                    }
                }
                let most = counts.iter().copied().max().unwrap_or(0);
                match ranking.largest() {
                    None => prop_assert_eq!(most, 0),
                    Some(largest) => prop_assert!(counts[largest as usize] * 8 >= most * 7),
                }
                let with_any = counts.iter().filter(|count| **count > 0).count();
                prop_assert_eq!(ranking.largest_first().count(), with_any);
                prop_assert_eq!(ranking.total(), counts.iter().map(|c| u64::from(*c)).sum::<u64>());
            }
        }
    }
}
