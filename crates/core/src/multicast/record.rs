//! What the primary tells the other units of multicast: bodies of a message of replication.
//!
//! `kind: u8`, then for members (1): `marks: u8 | group | count: u16 | sources`, where the marks
//! are 1 IPv6, 2 all sources but these, 4 nobody wants it. For a session (2): `marks: u8 | group |
//! source | age: u64 | packets: u64 | bytes: u64`, where the marks are 1 IPv6, 4 it has ended, and
//! the age is in ms. Other kinds, and bytes after these, come from a newer version.

use std::time::Duration;

use super::membership::{MOST_SOURCES_OF_GROUP, Wanted};
use crate::flow::{Addr, Family};

/// News about multicast on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// What its hosts want of a group; none if nothing.
    Members {
        /// The group.
        group: Addr,
        /// Which sources.
        wanted: Option<Wanted>,
    },
    /// A stream that comes in by it.
    Session {
        /// Where to.
        group: Addr,
        /// From where.
        source: Addr,
        /// Its age, packets and bytes; none if it has ended.
        state: Option<(Duration, u64, u64)>,
    },
}

const V6: u8 = 1;
const EXCLUDES: u8 = 2;
const GONE: u8 = 4;

impl Record {
    /// Writes it behind `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let v6 = |group: &Addr| if group.is_v4() { 0 } else { V6 };
        match self {
            Record::Members { group, wanted } => {
                let marks = match wanted {
                    None => GONE,
                    Some(wanted) if wanted.excludes => EXCLUDES,
                    Some(_) => 0,
                };
                out.extend_from_slice(&[1, marks | v6(group)]);
                out.extend_from_slice(group.wire());
                let sources = wanted.as_ref().map_or(&[][..], |wanted| &wanted.sources);
                out.extend_from_slice(&(sources.len() as u16).to_be_bytes());
                sources
                    .iter()
                    .for_each(|source| out.extend_from_slice(source.wire()));
            }
            Record::Session {
                group,
                source,
                state,
            } => {
                let marks = if state.is_none() { GONE } else { 0 };
                out.extend_from_slice(&[2, marks | v6(group)]);
                out.extend_from_slice(group.wire());
                out.extend_from_slice(source.wire());
                let (age, packets, bytes) = state.unwrap_or_default();
                for number in [age.as_millis() as u64, packets, bytes] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
        }
    }

    /// Reads one; none if it is damaged, or of a newer version.
    pub fn read(bytes: &[u8]) -> Option<Record> {
        let ([kind, marks], rest) = bytes.split_first_chunk()?;
        let family = if marks & V6 == 0 {
            Family::V4
        } else {
            Family::V6
        };
        let (group, rest) = address(rest, family)?;
        if !group.is_group() {
            return None;
        }
        match kind {
            1 => {
                let (count, mut rest) = rest.split_first_chunk()?;
                let count = usize::from(u16::from_be_bytes(*count));
                let mut sources = Vec::new();
                for _ in 0..count.min(MOST_SOURCES_OF_GROUP) {
                    let (source, after) = address(rest, family)?;
                    sources.push(source);
                    rest = after;
                }
                let wanted = (marks & GONE == 0).then_some(Wanted {
                    excludes: marks & EXCLUDES != 0,
                    sources,
                });
                Some(Record::Members { group, wanted })
            }
            2 => {
                let (source, rest) = address(rest, family)?;
                let (age, rest) = rest.split_first_chunk()?;
                let (packets, rest) = rest.split_first_chunk()?;
                let bytes = rest.first_chunk()?;
                let state = (
                    Duration::from_millis(u64::from_be_bytes(*age)),
                    u64::from_be_bytes(*packets),
                    u64::from_be_bytes(*bytes),
                );
                Some(Record::Session {
                    group,
                    source,
                    state: (marks & GONE == 0).then_some(state),
                })
            }
            _ => None,
        }
    }
}

fn address(bytes: &[u8], family: Family) -> Option<(Addr, &[u8])> {
    match family {
        Family::V4 => bytes
            .split_first_chunk()
            .map(|(a, rest)| (Addr::v4(*a), rest)),
        Family::V6 => bytes
            .split_first_chunk()
            .map(|(a, rest)| (Addr::v6(*a), rest)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addr(v6: bool, group: bool, number: u8) -> Addr {
        match (v6, group) {
            (false, true) => Addr::v4([239, 1, 1, number]),
            (false, false) => Addr::v4([10, 0, 0, number]),
            (true, true) => Addr::v6([0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]),
            (true, false) => Addr::v6([0xfd, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]),
        }
    }

    proptest! {
        #[test]
        fn records_arrive_as_they_were_sent(
            v6: bool,
            number: u8,
            wanted in proptest::option::of((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..9))),
            state in proptest::option::of((0u64..1 << 40, any::<u64>(), any::<u64>())),
        ) {
            let group = addr(v6, true, number);
            let members = Record::Members {
                group,
                wanted: wanted.map(|(excludes, sources)| Wanted {
                    excludes,
                    sources: sources.into_iter().map(|n| addr(v6, false, n)).collect(),
                }),
            };
            let session = Record::Session {
                group,
                source: addr(v6, false, number),
                state: state.map(|(age, packets, bytes)| {
                    (Duration::from_millis(age), packets, bytes)
                }),
            };
            for record in [members, session] {
                let mut bytes = Vec::new();
                record.write(&mut bytes);
                prop_assert_eq!(Record::read(&bytes), Some(record));
                for cut in 0..bytes.len() {
                    prop_assert_eq!(Record::read(&bytes[..cut]), None);
                }
            }
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Record::read(&bytes);
        }
    }
}
