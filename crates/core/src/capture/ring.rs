//! The copies that wait for the client: a queue limited in packets and in bytes.

use std::collections::VecDeque;

use super::Record;

/// How many copies may wait.
const MAX_RECORDS: usize = 16_384;
/// Their memory in bytes.
const MAX_BYTES: usize = 8 << 20;

#[derive(Default)]
pub(super) struct Ring {
    records: VecDeque<Record>,
    bytes: usize,
}

impl Ring {
    /// Whether this many more copies fit, with this many bytes in total.
    pub(super) fn has_room(&self, records: usize, bytes: usize) -> bool {
        self.records.len() + records <= MAX_RECORDS
            && self.bytes + bytes + records * size_of::<Record>() <= MAX_BYTES
    }

    /// Puts a copy at `place`, near the end. The caller has checked that there is room.
    pub(super) fn insert(&mut self, place: usize, record: Record) {
        self.bytes += memory(&record);
        self.records.insert(place.min(self.records.len()), record);
    }

    pub(super) fn pop(&mut self) -> Option<Record> {
        let record = self.records.pop_front()?;
        self.bytes -= memory(&record);
        Some(record)
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

fn memory(record: &Record) -> usize {
    size_of::<Record>() + record.bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{CapturedFate, Facts};
    use super::*;
    use crate::flow::PortId;
    use crate::time::Time;

    fn record(packet: u64, bytes: usize) -> Record {
        Record {
            facts: Facts {
                at: Time::ZERO,
                in_port: None,
                out_port: None,
                fate: CapturedFate::Consumed,
                session: None,
                policy: None,
                before: None,
                after: None,
                translated: false,
                released: false,
                segment_size: 0,
            },
            packet,
            port: PortId(0),
            outbound: false,
            length: bytes as u32,
            bytes: vec![0; bytes].into(),
        }
    }

    fn fill(bytes: usize) -> Ring {
        let mut ring = Ring::default();
        while ring.has_room(1, bytes) {
            ring.insert(ring.len(), record(ring.len() as u64, bytes));
            assert!(ring.len() <= MAX_RECORDS && ring.bytes <= MAX_BYTES);
        }
        ring
    }

    #[test]
    fn small_packets_meet_the_limit_of_packets_and_large_ones_that_of_bytes() {
        assert_eq!(fill(0).len(), MAX_RECORDS);
        let large = fill(65_535);
        assert!(large.bytes + memory(&record(0, 65_535)) > MAX_BYTES);
    }

    #[test]
    fn what_was_fetched_makes_room() {
        let mut ring = fill(65_535);
        assert!(!ring.has_room(1, 65_535));
        ring.pop();
        assert!(ring.has_room(1, 65_535));
        while ring.pop().is_some() {}
        assert_eq!(ring.bytes, 0);
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_places(places in proptest::collection::vec(0usize..40, 0..40)) {
            let (mut ring, mut model) = (Ring::default(), Vec::new());
            for (packet, place) in places.into_iter().enumerate() {
                ring.insert(place, record(packet as u64, place));
                model.insert(place.min(model.len()), packet as u64);
            }
            let order: Vec<u64> = std::iter::from_fn(|| ring.pop()).map(|r| r.packet).collect();
            prop_assert_eq!(order, model);
            prop_assert_eq!(ring.bytes, 0);
        }
    }
}
