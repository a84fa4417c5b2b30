//! The heartbeat datagram: a unit's report to its peers about itself.
//!
//! All numbers are big-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version, 3 |
//! | 1 | group-id of the cluster |
//! | 1 | flags: 1 = goodbye, 2 = in maintenance |
//! | 1 | monitored ports that are up |
//! | 8 | boot id |
//! | 8 | sequence |
//! | 8 | uptime in ms |
//! | 4 | heartbeat interval in µs |
//! | 8 | the sender's clock in µs |
//! | 8 | the receiver's clock as last heard on this link, in µs; 0 = never |
//! | 4 | how long ago that was heard, in µs |
//! | 8 | replication: the last sequence of the receiver that the sender applied |
//! | 1 + n | length and bytes of the node name |
//! | 1 | datagrams that name all groups |
//! | 1 | number of groups in this one |
//! | 1 | bytes of each group's record, at least 30 |
//! | … | the groups: name hash (4), flags (1), priority (1), term (4), hash of the primary's name (4), what is held: term (4), epoch (4), position (8) |
//!
//! Names of groups are hashed to 32 bits, and a heartbeat names [`MOST_GROUPS`] of them, so that it
//! fits into a datagram that any path carries; the other groups come with the next datagrams. Bytes
//! that a newer version adds to a record, or after the last one, are ignored.

use std::fmt;
use std::time::Duration;

use crate::evidence::Holding;

const VERSION: u8 = 3;
const GOODBYE: u8 = 1;
const MAINTENANCE: u8 = 1 << 1;
const RECORD: usize = 30;
/// Groups that one datagram names.
pub(super) const MOST_GROUPS: usize = 28;

const PRIMARY: u8 = 1;
const READY: u8 = 1 << 1;
const OVERRIDE: u8 = 1 << 2;
const ASKS: u8 = 1 << 3;
const GIVES: u8 = 1 << 4;
const CONTESTS: u8 = 1 << 5;
const CARRIED: u8 = 1 << 6;
const FOLLOWED: u8 = 1 << 7;

/// The highest term that the wire carries. A unit whose term has reached it stays there: then the
/// order of the units decides alone.
pub(crate) const MAX_TERM: u64 = u32::MAX as u64;

/// Why a heartbeat was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatError {
    /// Shorter than its fields say.
    Truncated,
    /// Of a version that this unit does not speak.
    Version,
    /// A field has a value that no sender may use.
    Malformed,
    /// Of a cluster with another `group-id`.
    ForeignCluster,
    /// The node name is not that of the peer whose connection it came by.
    WrongName,
    /// The config has no such peer or link.
    UnknownPeer,
}

impl HeartbeatError {
    /// All of them, in the order of their numbers.
    pub const ALL: [HeartbeatError; 6] = [
        HeartbeatError::Truncated,
        HeartbeatError::Version,
        HeartbeatError::Malformed,
        HeartbeatError::ForeignCluster,
        HeartbeatError::WrongName,
        HeartbeatError::UnknownPeer,
    ];

    /// The name of its counter.
    pub fn name(self) -> &'static str {
        match self {
            HeartbeatError::Truncated => "truncated",
            HeartbeatError::Version => "version",
            HeartbeatError::Malformed => "malformed",
            HeartbeatError::ForeignCluster => "foreign-cluster",
            HeartbeatError::WrongName => "wrong-name",
            HeartbeatError::UnknownPeer => "unknown-peer",
        }
    }
}

impl fmt::Display for HeartbeatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeartbeatError::Truncated | HeartbeatError::Malformed => "its heartbeats make no sense",
            HeartbeatError::Version => {
                "its heartbeats have another version than those of this unit: update the older one"
            }
            HeartbeatError::ForeignCluster => "its `group-id` is not ours: give both the same",
            HeartbeatError::WrongName => {
                "its node has another name: set `name` in [[ha.peer]] to its own"
            }
            HeartbeatError::UnknownPeer => "the config has no such peer or link",
        })
    }
}

/// The fields of a heartbeat except its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header<'a> {
    pub group_id: u8,
    pub goodbye: bool,
    /// The unit should stay standby.
    pub maintenance: bool,
    pub ports_up: u8,
    pub boot_id: u64,
    pub sequence: u64,
    pub uptime: Duration,
    pub interval: Duration,
    /// The sender's clock in µs.
    pub clock: u64,
    /// The receiver's clock in µs as last heard, or 0.
    pub echo: u64,
    pub echo_age: Duration,
    pub applied: u64,
    pub name: &'a str,
    /// How many datagrams are needed to name all groups.
    pub parts: u8,
}

/// A unit's state in one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupState {
    /// The unit has the group; false in [`Default`] only.
    pub known: bool,
    pub primary: bool,
    pub ready: bool,
    pub override_: bool,
    /// The unit would take the group over from one of lower priority.
    pub asks: bool,
    /// The unit was primary, and leaves the group to the primary that it sees.
    pub gives: bool,
    pub priority: u8,
    /// Its own term as primary, otherwise the highest that it knows.
    pub term: u64,
    /// Hash of the name of the primary that it sees, or 0.
    pub sees: u32,
    /// Its evidence; as primary, that from when its term began. Epochs have 32 bits here.
    pub held: Holding,
    /// As primary that hears another one: the worth of its reign until it heard that one.
    pub worth: Option<Worth>,
}

/// The worth of a primary's reign while it did not hear another primary. The greater one stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Worth {
    /// Sessions went through the unit in both directions.
    pub carried: bool,
    /// Another unit followed it.
    pub followed: bool,
}

impl GroupState {
    /// The part that peers must act on at once when it changes.
    pub(super) fn essence(&self) -> GroupState {
        GroupState {
            held: Holding::default(),
            ..*self
        }
    }
}

/// A name on the wire: FNV-1a, never 0.
pub(super) fn hash(name: &str) -> u32 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash.max(1)
}

/// The datagram; `groups` has for each the hash of its name.
pub(super) fn encode<'a>(
    header: &Header<'_>,
    groups: impl ExactSizeIterator<Item = (u32, &'a GroupState)>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + header.name.len() + groups.len() * RECORD);
    out.extend([
        VERSION,
        header.group_id,
        u8::from(header.goodbye) * GOODBYE + u8::from(header.maintenance) * MAINTENANCE,
        header.ports_up,
    ]);
    out.extend(header.boot_id.to_be_bytes());
    out.extend(header.sequence.to_be_bytes());
    out.extend(
        u64::try_from(header.uptime.as_millis())
            .unwrap_or(u64::MAX)
            .to_be_bytes(),
    );
    out.extend(micros(header.interval).to_be_bytes());
    out.extend(header.clock.to_be_bytes());
    out.extend(header.echo.to_be_bytes());
    out.extend(micros(header.echo_age).to_be_bytes());
    out.extend(header.applied.to_be_bytes());
    let name = header.name.as_bytes();
    let name = &name[..name.len().min(usize::from(u8::MAX))];
    out.push(name.len() as u8);
    out.extend(name);
    let count = groups.len().min(MOST_GROUPS);
    out.extend([header.parts, count as u8, RECORD as u8]);
    for (name, group) in groups.take(count) {
        out.extend(name.to_be_bytes());
        let flags = [
            (group.primary, PRIMARY),
            (group.ready, READY),
            (group.override_, OVERRIDE),
            (group.asks, ASKS),
            (group.gives, GIVES),
            (group.worth.is_some(), CONTESTS),
            (group.worth.is_some_and(|worth| worth.carried), CARRIED),
            (group.worth.is_some_and(|worth| worth.followed), FOLLOWED),
        ];
        out.push(
            flags
                .iter()
                .filter(|(set, _)| *set)
                .map(|(_, bit)| bit)
                .sum(),
        );
        out.push(group.priority);
        out.extend((group.term.min(MAX_TERM) as u32).to_be_bytes());
        out.extend(group.sees.to_be_bytes());
        let held = &group.held;
        out.extend((held.term.min(MAX_TERM) as u32).to_be_bytes());
        out.extend((held.epoch as u32).to_be_bytes());
        out.extend(held.position.to_be_bytes());
    }
    out
}

/// Reads a datagram: the header, and each group with the hash of its name.
pub(super) fn decode(
    bytes: &[u8],
) -> Result<(Header<'_>, impl Iterator<Item = (u32, GroupState)>), HeartbeatError> {
    let mut reader = Reader(bytes);
    let [version, group_id, flags, ports_up] = reader.array()?;
    if version != VERSION {
        return Err(HeartbeatError::Version);
    }
    let boot_id = reader.u64()?;
    let sequence = reader.u64()?;
    let uptime = Duration::from_millis(reader.u64()?);
    let interval = Duration::from_micros(u64::from(reader.u32()?));
    let clock = reader.u64()?;
    let echo = reader.u64()?;
    let echo_age = Duration::from_micros(u64::from(reader.u32()?));
    let applied = reader.u64()?;
    let [length] = reader.array()?;
    let name = reader.take(usize::from(length))?;
    let name = std::str::from_utf8(name).map_err(|_| HeartbeatError::Malformed)?;
    let [parts, count, record] = reader.array()?;
    if usize::from(record) < RECORD {
        return Err(HeartbeatError::Malformed);
    }
    let records = reader.take(usize::from(count) * usize::from(record))?;
    let goodbye = flags & GOODBYE != 0;
    let maintenance = flags & MAINTENANCE != 0;
    let header = Header {
        group_id,
        goodbye,
        maintenance,
        ports_up,
        boot_id,
        sequence,
        uptime,
        interval,
        clock,
        echo,
        echo_age,
        applied,
        name,
        parts,
    };
    Ok((
        header,
        records
            .chunks_exact(usize::from(record))
            .filter_map(read_group),
    ))
}

fn read_group(record: &[u8]) -> Option<(u32, GroupState)> {
    let mut reader = Reader(record);
    let name = reader.u32().ok()?;
    let [flags, priority] = reader.array().ok()?;
    let group = GroupState {
        known: true,
        primary: flags & PRIMARY != 0,
        ready: flags & READY != 0,
        override_: flags & OVERRIDE != 0,
        asks: flags & ASKS != 0,
        gives: flags & GIVES != 0,
        priority,
        term: u64::from(reader.u32().ok()?),
        sees: reader.u32().ok()?,
        held: Holding {
            term: u64::from(reader.u32().ok()?),
            epoch: u64::from(reader.u32().ok()?),
            position: reader.u64().ok()?,
        },
        worth: (flags & CONTESTS != 0).then_some(Worth {
            carried: flags & CARRIED != 0,
            followed: flags & FOLLOWED != 0,
        }),
    };
    Some((name, group))
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// The part of a datagram that is not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], HeartbeatError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(HeartbeatError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeartbeatError> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(HeartbeatError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, HeartbeatError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, HeartbeatError> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn groups() -> impl Strategy<Value = Vec<(u32, GroupState)>> {
        let held = (any::<u32>(), any::<u32>(), any::<u64>());
        let state = (
            any::<[bool; 5]>(),
            any::<u8>(),
            any::<[u32; 2]>(),
            held,
            any::<Option<[bool; 2]>>(),
        );
        let state = state.prop_map(
            |([primary, ready, override_, asks, gives], priority, [term, sees], held, worth)| {
                GroupState {
                    known: true,
                    primary,
                    ready,
                    override_,
                    asks,
                    gives,
                    priority,
                    term: u64::from(term),
                    sees,
                    held: Holding {
                        term: u64::from(held.0),
                        epoch: u64::from(held.1),
                        position: held.2,
                    },
                    worth: worth.map(|[carried, followed]| Worth { carried, followed }),
                }
            },
        );
        proptest::collection::vec((any::<u32>(), state), 0..=MOST_GROUPS)
    }

    fn header(numbers: [u32; 9], name: &str) -> Header<'_> {
        let [
            flags,
            boot,
            sequence,
            uptime,
            interval,
            clock,
            echo,
            age,
            applied,
        ] = numbers;
        Header {
            group_id: flags as u8,
            goodbye: flags & 0x100 != 0,
            maintenance: flags & 0x200 != 0,
            ports_up: (flags >> 16) as u8,
            boot_id: u64::from(boot) << 32,
            sequence: u64::from(sequence) << 16,
            uptime: Duration::from_millis(u64::from(uptime) << 20),
            interval: Duration::from_micros(u64::from(interval)),
            clock: u64::from(clock) << 30,
            echo: u64::from(echo) << 30,
            echo_age: Duration::from_micros(u64::from(age)),
            applied: u64::from(applied) << 31,
            name,
            parts: 1,
        }
    }

    fn bytes(header: &Header<'_>, groups: &[(u32, GroupState)]) -> Vec<u8> {
        encode(header, groups.iter().map(|(name, group)| (*name, group)))
    }

    /// Other versions and peers use the same ones.
    #[test]
    fn names_have_the_hash_of_fnv_1a() {
        assert_eq!(hash("a"), 0xe40c_292c);
        assert_eq!(hash("foobar"), 0xbf9c_f968);
    }

    #[test]
    fn each_error_has_a_counter_of_its_own() {
        let names = HeartbeatError::ALL.map(HeartbeatError::name);
        let different: std::collections::BTreeSet<_> = names.into_iter().collect();
        assert_eq!(different.len(), HeartbeatError::ALL.len());
        assert_eq!(HeartbeatError::WrongName.name(), "wrong-name");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            numbers: [u32; 9],
            name in "[a-z0-9-]{1,63}",
            groups in groups(),
            more in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let header = header(numbers, &name);
            let mut bytes = bytes(&header, &groups);
            prop_assert!(bytes.len() <= 1100, "fits into any datagram");
            bytes.extend(more);
            let (decoded, records) = decode(&bytes).unwrap();
            prop_assert_eq!(decoded, header);
            prop_assert_eq!(records.collect::<Vec<_>>(), groups);
        }

        #[test]
        fn any_prefix_is_truncated(
            numbers: [u32; 9],
            groups in groups(),
            cut: prop::sample::Index,
        ) {
            let bytes = bytes(&header(numbers, "gw-a"), &groups);
            let prefix = &bytes[..cut.index(bytes.len())];
            prop_assert_eq!(decode(prefix).err(), Some(HeartbeatError::Truncated));
        }

        #[test]
        fn no_bytes_panic_or_bloat(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for version in [0, VERSION] {
                if let Some(first) = bytes.first_mut() {
                    *first = version;
                }
                if let Ok((_, records)) = decode(&bytes) {
                    prop_assert!(records.count() <= bytes.len() / RECORD);
                }
            }
        }
    }

    #[test]
    fn longer_records_of_a_newer_version_are_understood() {
        let group = GroupState {
            known: true,
            ready: true,
            term: 7,
            ..GroupState::default()
        };
        let mut bytes = bytes(&header([1; 9], "gw-a"), &[(5, group), (6, group)]);
        let at = bytes.len() - 2 * RECORD;
        bytes[at - 1] += 1;
        bytes.insert(at + RECORD, 0xee);
        bytes.push(0xee);
        let (_, records) = decode(&bytes).unwrap();
        assert_eq!(records.collect::<Vec<_>>(), [(5, group), (6, group)]);
    }

    #[test]
    fn wrong_values_are_named() {
        let good = bytes(&header([1; 9], "gw-a"), &[(5, GroupState::default())]);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            decode(&bytes).err()
        };
        assert_eq!(with(0, 1), Some(HeartbeatError::Version));
        assert_eq!(
            with(good.len() - RECORD - 1, RECORD as u8 - 1),
            Some(HeartbeatError::Malformed)
        );
        assert_eq!(
            with(61, 0xff),
            Some(HeartbeatError::Malformed),
            "a name that is not UTF-8"
        );
    }

    #[test]
    fn a_term_beyond_the_highest_stays_there() {
        let group = GroupState {
            known: true,
            term: u64::MAX,
            ..GroupState::default()
        };
        let bytes = bytes(&header([1; 9], "gw-a"), &[(5, group)]);
        let (_, mut records) = decode(&bytes).unwrap();
        assert_eq!(records.next().map(|(_, group)| group.term), Some(MAX_TERM));
    }

    #[test]
    fn what_a_peer_holds_is_no_news_by_itself() {
        let before = GroupState::default();
        let held = Holding {
            term: 1,
            epoch: 2,
            position: 3,
        };
        let after = GroupState { held, ..before };
        assert_eq!(after.essence(), before.essence());
        let ready = GroupState {
            ready: true,
            ..before
        };
        assert_ne!(ready.essence(), before.essence());
    }
}
