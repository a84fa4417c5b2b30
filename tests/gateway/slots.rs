//! Groups that are cut into slots (`distribute`), and that units cut otherwise for a while.

use std::time::Duration;

use tandemgw_core::event::{DropReason, Output, Verdict};
use tandemgw_core::gateway::Role;

use testkit::lab::{LAN, Net, WAN, ip};
use testkit::packets::{SYN, SYN_ACK, tcp, udp};
use testkit::pair::Pair;

const A: usize = 0;
const B: usize = 1;
const ALL: &str = "[[group]]\nname = \"all\"\nports = [\"lan\", \"wan\", \"dmz\"]\n";

/// The groups that a unit is primary of.
fn own(pair: &Pair, unit: usize) -> Vec<String> {
    let unit = &pair.units[unit];
    let own = unit
        .groups()
        .filter(|it| unit.role_of(*it) == Role::Primary);
    own.map(|group| unit.group_name(group).to_owned()).collect()
}

/// A unit has read that its group is no longer cut, and still is primary of slots: what a peer
/// passes on to it, which has not read that, begins sessions there.
#[test]
fn a_unit_serves_the_slots_that_it_is_about_to_leave() {
    let mut pair = Pair::with(&format!("{ALL}distribute = 4\n"));
    pair.pass(Duration::from_secs(3));
    pair.reload(B, ALL);
    // Each hears how the other one cuts the group; no handover ends meanwhile.
    pair.exchange_once();
    let slots = own(&pair, B);
    assert!(
        !slots.is_empty() && slots.iter().all(|it| it != "all"),
        "{slots:?}"
    );
    let opened = pair.units[B].counters().opened;
    let mut passed_on = 0;
    for host in 10..30 {
        let (host, server) = (ip(&format!("10.77.1.{host}")), ip("198.51.100.7"));
        let syn = tcp((host, 40_000), (server, 443), SYN, 100, 0);
        if pair.send(A, LAN, &syn) != Verdict::Consumed {
            continue;
        }
        passed_on += 1;
        pair.carry_out();
    }
    let counters = pair.units[B].counters();
    assert_eq!(counters.dropped[DropReason::PassedOnTwice as usize], 0);
    assert!(passed_on > 0);
    assert_eq!(counters.opened - opened, passed_on);
}

/// A group of two slots, with so many sessions of hosts that have the slot of gw-a.
fn with_sessions(count: usize) -> Pair {
    let mut pair = Pair::with(&format!("{ALL}distribute = 2\n"));
    pair.pass(Duration::from_secs(3));
    open(&mut pair, A, count);
    pair.exchange();
    pair
}

/// Opens so many sessions at a unit, for hosts that have its slots.
fn open(pair: &mut Pair, unit: usize, count: usize) {
    let server = ip("198.51.100.7");
    let hosts = (1..=250).map(|host| ip(&format!("10.77.1.{host}")));
    let packets = (0..100).flat_map(|port| {
        let query = move |host| udp((host, 20_000 + port), (server, 53));
        hosts.clone().map(query)
    });
    let mut opened = 0;
    for packet in packets {
        match pair.send(unit, LAN, &packet) {
            Verdict::Forward => opened += 1,
            // What is for the other unit is lost.
            _ => while pair.units[unit].poll_output().is_some() {},
        }
        if opened % 500 == 0 {
            pair.exchange();
        }
        if opened == count {
            return;
        }
    }
    panic!("only {opened} were opened");
}

/// How many sessions are in a group, and how many in its slots.
fn places(pair: &Pair, unit: usize) -> (usize, usize) {
    let unit = &pair.units[unit];
    let (views, _) = unit.page(0, u32::MAX, pair.now);
    let groups = views.map(|view| unit.group_name(view.group).contains('/'));
    let groups: Vec<bool> = groups.collect();
    let in_slots = groups.iter().filter(|is_slot| **is_slot).count();
    (groups.len() - in_slots, in_slots)
}

/// New sessions must not wait behind those that move.
#[test]
fn sessions_leave_a_slot_as_fast_as_the_peer_follows() {
    let mut pair = with_sessions(7000);
    assert_eq!(places(&pair, A), (0, 7000));
    pair.reload(A, ALL);
    pair.exchange_once();
    pair.exchange_once();
    for _ in 0..200 {
        pair.now = pair.now + Duration::from_millis(1);
        pair.units[A].handle_timeout(pair.now);
    }
    let (moved, left) = places(&pair, A);
    assert!((4000..5000).contains(&moved), "{moved} moved, {left} left");
    pair.pass(Duration::from_secs(5));
    assert_eq!(places(&pair, A), (7000, 0));
    assert_eq!(places(&pair, B), (7000, 0));
}

/// The unit that it took over from may still be primary, and would move them elsewhere.
#[test]
fn sessions_leave_no_slot_that_may_be_disputed() {
    let mut pair = with_sessions(100);
    pair.connect(false);
    pair.pass(Duration::from_millis(1500));
    assert!(own(&pair, B).len() == 3, "{:?}", own(&pair, B));
    pair.reload(B, ALL);
    pair.pass(Duration::from_millis(300));
    assert_eq!(places(&pair, B), (0, 100));
    pair.pass(Duration::from_secs(6));
    assert_eq!(places(&pair, B), (100, 0));
}

/// Another unit may have opened the session that it answers a moment ago, in a slot that this unit
/// knows by another number or has just been given.
#[test]
fn what_may_answer_a_session_of_a_slot_is_not_refused() {
    let cut = &format!("{ALL}distribute = 4\n");
    for (before, after, is_refused) in [(ALL, ALL, true), (cut, cut, false), (cut, ALL, false)] {
        for net in Net::both() {
            let mut pair = Pair::with(before);
            pair.take_over();
            pair.reload(B, after);
            for port in [40000, 80] {
                let answer = tcp((net.server, 443), (net.wan_vip, port), SYN_ACK, 500, 101);
                let datagram = udp((net.server, 53), (net.wan_vip, port));
                for packet in [answer, datagram] {
                    let verdict = pair.send(B, WAN, &packet);
                    assert_eq!(verdict, Verdict::Drop(DropReason::NoListener));
                    let sent = std::iter::from_fn(|| pair.units[B].poll_output());
                    let sent = sent.filter(|output| matches!(output, Output::Packet { .. }));
                    assert_eq!(sent.count() > 0, is_refused, "{before} {after}");
                }
            }
        }
    }
}
