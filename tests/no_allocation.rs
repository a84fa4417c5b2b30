//! A packet of a session costs no allocation: neither time nor memory depends on the allocator's
//! mood.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use tandemgw_core::event::{Offload, Verdict};
use tandemgw_core::flow::PortId;

use testkit::lab::{LAN, Lab, Net, WAN};
use testkit::packets::{ACK, SYN, SYN_ACK, tcp, udp};

struct Counting;

thread_local! {
    /// Of this thread alone: those of the test harness are not counted.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Fails only while the thread ends.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: each call is passed on unchanged to the system's allocator, which keeps the contract; the
// counter is a plain cell that does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about `layout` is the one that is asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System.alloc` with this `layout`, as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Both directions of an established session of each kind, with NAT.
fn traffic(lab: &mut Lab) -> Vec<(PortId, Vec<u8>)> {
    let mut all = Vec::new();
    for net in Net::both() {
        let query = udp((net.host, 40000), (net.server, 53));
        let answer = query.clone().src(net.wan_vip).answer();
        let out = tcp((net.host, 40000), (net.server, 443), SYN, 100, 0);
        let back = out.clone().src(net.wan_vip).answer();
        let ack = out.clone().segment(ACK, 101, 501);
        lab.flood(
            [
                (LAN, query.clone()),
                (WAN, answer.clone()),
                (LAN, out.clone()),
                (WAN, back.clone().segment(SYN_ACK, 500, 101)),
                (LAN, ack.clone()),
            ]
            .into_iter(),
        );
        let data = back.segment(ACK, 501, 101).payload(&[1; 1000]);
        for (port, packet) in [(LAN, query), (WAN, answer), (LAN, ack), (WAN, data)] {
            all.push((port, packet.bytes()));
        }
    }
    all
}

#[test]
fn packets_of_sessions_cost_no_allocation() {
    let mut lab = Lab::new();
    let mut packets = traffic(&mut lab);
    let mut buffer = [0; 2048];
    let before = ALLOCATIONS.get();
    for _ in 0..1000 {
        for (port, bytes) in &mut packets {
            let packet = &mut buffer[..bytes.len()];
            packet.copy_from_slice(bytes);
            let verdict = lab
                .gateway
                .handle_packet(lab.now, *port, packet, Offload::default());
            assert_eq!(verdict, Verdict::Forward);
        }
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    // It does count.
    drop(std::hint::black_box(vec![1u8; 10]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
