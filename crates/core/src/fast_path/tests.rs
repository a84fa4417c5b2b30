//! The index holds what was entered, and nothing else.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::flow::{Addr, FlowKey, GroupId, Protocol};

const ROOM: usize = 64;

fn key(host: u8, port: u16) -> FlowKey {
    FlowKey {
        src: Addr::v4([10, 0, 0, host]),
        dst: Addr::v4([192, 0, 2, 1]),
        src_port: port,
        dst_port: 443,
        protocol: Protocol::TCP,
    }
}

/// A session of `host` that leaves with the address of the gateway, from the same port.
fn entry(host: u8, port: u16) -> Entry {
    let out = FlowKey {
        src: Addr::v4([203, 0, 113, host]),
        ..key(host, port)
    };
    let way = |key: FlowKey, interface, next_hop| Way {
        flow: Flow { key, interface },
        next_hop,
        mtu: 1500,
    };
    Entry {
        ways: [
            way(key(host, port), 2, out.dst),
            way(out.reply(), 3, Addr::v4([10, 0, 0, host])),
        ],
        group: GroupId(0),
        epoch: 0,
        shifts: [7, 8],
        is_incomplete: false,
    }
}

fn enter(memory: &Memory, place: u32, entry: &Entry) -> bool {
    memory.enter(place, (Time::ZERO, 1), &Numbers::default(), entry)
}

fn found(memory: &Memory, entry: &Entry) -> [Option<(u32, Direction)>; 2] {
    [0, 1].map(|at: usize| memory.find(&entry.ways[at].flow.words()))
}

fn both(place: u32) -> [Option<(u32, Direction)>; 2] {
    Direction::ALL.map(|direction| Some((place, direction)))
}

fn both_if(is_in: bool, place: u32) -> [Option<(u32, Direction)>; 2] {
    match is_in {
        true => both(place),
        false => [None; 2],
    }
}

fn with_buckets(count: usize) -> Memory {
    let mut memory = Memory::unshared(1, 256);
    memory.index.buckets = &memory.index.buckets[..count];
    memory
}

proptest! {
    /// Sessions come, of hosts that may have one in another place, and go.
    #[test]
    fn what_was_entered_last_is_found(
        steps in proptest::collection::vec((0..ROOM as u32, 0..24_u8, any::<bool>()), 1..200),
    ) {
        let memory = Memory::unshared(1, ROOM);
        let mut places: BTreeMap<u32, u8> = BTreeMap::new();
        let mut hosts: BTreeMap<u8, u32> = BTreeMap::new();
        for (place, host, comes) in steps {
            // A place is left before it is used again.
            memory.leave(place);
            if let Some(old) = places.remove(&place) && hosts.get(&old) == Some(&place) {
                hosts.remove(&old);
            }
            if comes {
                prop_assert!(enter(&memory, place, &entry(host, 1000)));
                places.insert(place, host);
                hosts.insert(host, place);
            }
            for host in 0..24 {
                let expected = hosts.get(&host).map_or([None; 2], |place| both(*place));
                prop_assert_eq!(found(&memory, &entry(host, 1000)), expected);
            }
        }
    }
}

#[test]
fn a_session_without_room_in_the_index_gets_none() {
    let one = with_buckets(1);
    // One bucket has places for 8 sessions.
    let entries: Vec<Entry> = (0..10).map(|host| entry(host, 1000)).collect();
    let are_found = |places: &[u32]| {
        for (place, entry) in (0..).zip(&entries) {
            let expected = both_if(places.contains(&place), place);
            assert_eq!(found(&one, entry), expected, "{place}");
        }
    };
    for place in 0..8 {
        assert!(enter(&one, place, &entries[place as usize]));
    }
    assert!(!enter(&one, 8, &entries[8]), "all places are taken");
    assert!(!one.sessions[8].is_in_force());
    are_found(&[0, 1, 2, 3, 4, 5, 6, 7]);
    one.leave(3);
    assert!(!one.sessions[3].is_in_force());
    assert!(enter(&one, 9, &entries[9]));
    are_found(&[0, 1, 2, 4, 5, 6, 7, 9]);
}

#[test]
fn both_flows_of_a_session_come_in_or_neither() {
    let two = with_buckets(2);
    for seed in 0..16 {
        two.index.secret.set(keys(seed), 2);
        let came = (0..64).filter(|place| enter(&two, *place, &entry(*place as u8, 1000)));
        let came: Vec<u32> = came.collect();
        assert!(came.len() >= 12, "{came:?}");
        for place in 0..64 {
            let found = found(&two, &entry(place as u8, 1000));
            assert_eq!(found, both_if(came.contains(&place), place));
        }
        (0..64).for_each(|place| two.leave(place));
    }
}

/// Their flows have the same hash: the program looks at two of them only.
#[test]
fn a_session_that_the_program_would_not_find_gets_no_place() {
    let memory = Memory::unshared(1, ROOM);
    memory
        .index
        .secret
        .set([0; KEYS], memory.index.buckets.len());
    assert!(enter(&memory, 1, &entry(1, 1000)));
    assert!(!enter(&memory, 2, &entry(2, 1000)));
    assert_eq!(found(&memory, &entry(1, 1000)), both(1));
    memory.leave(1);
    assert!(enter(&memory, 2, &entry(2, 1000)));
}

/// Two sessions may have packets that look alike at one end: the last one has them.
#[test]
fn a_session_leaves_when_another_one_has_one_of_its_flows() {
    let memory = Memory::unshared(1, ROOM);
    let (first, mut second) = (entry(1, 1000), entry(2, 1000));
    second.ways[1] = first.ways[1];
    assert!(enter(&memory, 1, &first) && enter(&memory, 2, &second));
    assert!(!memory.sessions[1].is_in_force() && memory.sessions[2].is_in_force());
    assert_eq!(found(&memory, &second), both(2));
    assert_eq!(found(&memory, &first), [None, Some((2, Direction::Reply))]);
    memory.leave(2);
    assert_eq!(found(&memory, &first), [None; 2]);
}

#[test]
fn any_part_of_a_flow_counts() {
    let memory = Memory::unshared(1, ROOM);
    // All flows have the same hash.
    memory
        .index
        .secret
        .set([0; KEYS], memory.index.buckets.len());
    let known = entry(1, 1000);
    assert!(enter(&memory, 5, &known));
    let flow = known.ways[0].flow;
    let other = |key: FlowKey| Flow { key, ..flow };
    let key = flow.key;
    let others = [
        other(FlowKey {
            src: key.dst,
            ..key
        }),
        other(FlowKey {
            dst: key.src,
            ..key
        }),
        other(FlowKey {
            src_port: 1001,
            ..key
        }),
        other(FlowKey {
            dst_port: 444,
            ..key
        }),
        other(FlowKey {
            protocol: Protocol::UDP,
            ..key
        }),
        Flow {
            interface: 3,
            ..flow
        },
    ];
    assert_eq!(memory.find(&flow.words()), Some((5, Direction::Original)));
    for other in others {
        assert_eq!(memory.find(&other.words()), None, "{other:?}");
    }
}

/// One in 100 000 finds its bucket full, also of sessions that differ by one number.
#[test]
fn a_full_table_finds_room_in_the_index() {
    let memory = Memory::unshared(1, MOST_SESSIONS as usize);
    let buckets = memory.index.buckets.len();
    for seed in 0..3 {
        memory.index.secret.set(keys(seed), buckets);
        let session = |place: u32| entry((place >> 15) as u8, (place & 0x7fff) as u16);
        let refused = (0..MOST_SESSIONS).filter(|place| !enter(&memory, *place, &session(*place)));
        let refused: Vec<u32> = refused.collect();
        assert!(refused.len() <= 8, "{} with seed {seed}", refused.len());
        for place in (0..MOST_SESSIONS).filter(|place| !refused.contains(place)) {
            assert_eq!(found(&memory, &session(place)), both(place));
        }
        (0..MOST_SESSIONS).for_each(|place| memory.leave(place));
    }
}

#[test]
fn a_session_leads_elsewhere_if_anything_of_its_way_differs() {
    let memory = Memory::unshared(1, ROOM);
    let known = entry(1, 1000);
    assert!(enter(&memory, 5, &known));
    let cell = &memory.sessions[5];
    assert!(cell.leads_like(&known) && cell.is_of(&key(1, 1000)));
    assert!(!cell.is_of(&key(1, 1001)));
    assert_eq!(
        [
            cell.shift(Direction::Original),
            cell.shift(Direction::Reply)
        ],
        [7, 8]
    );
    assert_eq!(
        [
            cell.leaves_by(Direction::Original),
            cell.leaves_by(Direction::Reply)
        ],
        [3, 2]
    );
    let with = |change: fn(&mut Entry)| {
        let mut entry = known.clone();
        change(&mut entry);
        cell.leads_like(&entry)
    };
    assert!(
        with(|entry| entry.is_incomplete = true),
        "that is how it is judged"
    );
    assert!(!with(|entry| entry.epoch = 1));
    assert!(!with(|entry| entry.group = GroupId(1)));
    assert!(!with(|entry| entry.ways[0].mtu = 1400));
    assert!(!with(
        |entry| entry.ways[1].next_hop = Addr::v4([10, 0, 0, 9])
    ));
    assert!(!with(|entry| entry.ways[1].flow.interface = 9));
    assert!(!with(|entry| entry.ways[0].flow.key.dst_port = 80));
}
