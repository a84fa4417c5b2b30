//! Packets of IGMP and MLD from hosts and routers of a link, to the router side of a port and the
//! host side of another: what is read is kept within bounds, and ends.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use tandemgw_core::flow::{Addr, Family};
use tandemgw_core::multicast::host::Host;
use tandemgw_core::multicast::membership::{MEMBERSHIP, Membership};
use tandemgw_core::multicast::message::{self, Message, Sender};
use tandemgw_core::multicast::record::Record;
use tandemgw_core::time::Time;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const LONGEST: usize = 64;

fn address(family: Family, number: u8) -> Addr {
    match family {
        Family::V4 => Addr::v4([10, 0, 0, number]),
        Family::V6 => Addr::v6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]),
    }
}

/// Steps of `host | wait | length | body`, in one family.
fn run(family: Family, mut rest: &[u8]) {
    let (mut members, mut host) = (Membership::new(family), Host::default());
    let mut now = Time::from_nanos(1_000_000_000);
    let own = Sender {
        mac: MAC,
        addr: address(family, 128),
    };
    members.start(now);
    host.set_speaking(now, true);
    while let Some(([from, wait, length], after)) = rest.split_first_chunk() {
        let (body, after) = after.split_at(after.len().min(usize::from(*length) % LONGEST));
        rest = after;
        let sender = Sender {
            mac: MAC,
            addr: address(family, *from),
        };
        if body.len() >= 4 {
            let frame = message::frame(sender, message::report_destination(family), body.to_vec());
            if let Ok(received) = message::parse(&frame[14..]) {
                let _ = members.handle(now, own.addr, &received);
                if let Message::Query(query) = &received.message {
                    host.handle_query(now, received.version, query);
                }
            }
        }
        members.check_invariants();
        while let Some(group) = members.poll_changed() {
            let wanted = members.wanted(&group);
            let mut bytes = Vec::new();
            let record = Record::Members {
                group,
                wanted: wanted.clone(),
            };
            record.write(&mut bytes);
            assert_eq!(Record::read(&bytes), Some(record));
            host.set(now, group, wanted);
        }
        for frame in host.poll_frames(now, own) {
            assert!(message::parse(&frame[14..]).is_ok());
        }
        now = now + Duration::from_millis(u64::from(*wait) * 20);
        members.handle_timeout(now);
        while let Some(query) = members.poll_query() {
            assert!(message::parse(&message::query_frame(&query, own)[14..]).is_ok());
        }
    }
    for _ in 0..3 {
        now = now + 2 * MEMBERSHIP;
        members.handle_timeout(now);
    }
    assert_eq!(members.count(), (0, 0), "without answers all of it ends");
}

fuzz_target!(|data: &[u8]| {
    let _ = message::parse(data);
    let _ = Record::read(data);
    if let Some((first, rest)) = data.split_first() {
        run(Family::ALL[usize::from(first & 1)], rest);
    }
});
