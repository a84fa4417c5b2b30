//! Multicast policies that change while streams run, in a pair.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::lab::{Lab, SERVER};
use crate::multicast::{GROUPS, POLICY, Stream, listen, member, next};
use crate::pair::Pair;
use crate::unit::Unit;
use testkit::system::process::wait_until;

const MILLISECOND: Duration = Duration::from_millis(1);

/// A policy for one more group, and the same policy as before under another name.
fn more(radio: &str) -> String {
    let radio = format!(
        "[[multicast-policy]]\nname = \"radio\"\nfrom = [\"wan\"]\nto = [\"lan\"]\nlog = true\n\
         group = [\"{radio}\"]\naction = \"accept\"\n"
    );
    radio + &POLICY.replace("\"tv\"", "\"television\"")
}

fn policies_of(lab: &Lab, group: &str) -> Vec<String> {
    let rows = lab.unit.sessions("state=multicast");
    let of = rows.iter().filter(|row| row["dst"] == *group);
    of.map(|row| row["policy"].as_str().expect("a name").to_owned())
        .collect()
}

/// Reloads both units of a pair with other policies; returns how many sessions gw-a has ended.
fn reload(pair: &mut Pair, from: &str, to: &str) -> u64 {
    pair.edit(from, to);
    let answers = [pair.a(), pair.b()].map(|unit| {
        let answer = unit.reload();
        let waits = answer["restart"].as_array().map(Vec::len);
        assert_eq!(waits, Some(0), "{answer}");
        answer["sessions_ended"].as_u64().expect("a number")
    });
    answers[0]
}

/// A pair without multicast; MLD needs a link-local address, which the units share.
fn pair() -> Pair {
    let mut pair = Pair::new();
    for (own, link_local) in [
        ("fd77:1::1/64", "fe80::77:1/64"),
        ("fd77:2::1/64", "fe80::77:2/64"),
    ] {
        let both = format!("\"{own}\", \"{link_local}\"]");
        pair.edit(&format!("\"{own}\"]"), &both);
    }
    for unit in [&mut pair.lab.unit, &mut pair.b] {
        unit.config += NOTHING;
    }
    pair.start();
    pair
}

/// Where the policies are to stand.
const NOTHING: &str = "\n# multicast\n";

/// Whether the interface receives frames to all groups.
fn receives_all(unit: &Unit) -> bool {
    unit.ns.run("ip -d link show eth1").contains("allmulti 1")
}

/// Waits until gw-b knows of so many sessions.
#[track_caller]
fn wait_for_sessions(pair: &Pair, count: usize) {
    wait_until(&format!("gw-b knows of {count} streams"), || {
        pair.b().sessions("state=multicast").len() == count
    });
}

/// What a member got is all that was sent meanwhile, each datagram once.
fn check_nothing_lost(got: &BTreeMap<u64, u32>) {
    let (first, last) = (got.first_key_value(), got.last_key_value());
    let (first, last) = (first.expect("some").0, last.expect("some").0);
    let lost = (*first..=*last).filter(|number| !got.contains_key(number));
    assert_eq!(lost.collect::<Vec<u64>>(), [0u64; 0], "from {first} on");
    assert!(got.values().all(|times| *times == 1), "nothing comes twice");
}

#[test]
fn streams_that_stay_allowed_lose_nothing_by_a_reload_and_others_end() {
    const RADIO: &str = "239.3.1.1";
    let mut pair = pair();
    reload(&mut pair, NOTHING, POLICY);
    let _streams = [(0, GROUPS[0]), (1, GROUPS[1]), (0, RADIO)]
        .map(|(at, group)| Stream::start(&pair.lab.server, SERVER[at], group, MILLISECOND));
    let ends = Arc::new(AtomicBool::new(false));
    let members = GROUPS.map(|group| {
        let member = member(&pair.lab.lan1, group, None);
        wait_until("the stream arrives", || next(&member).is_some());
        listen(member, Arc::clone(&ends))
    });
    let hears = member(&pair.lab.lan2, RADIO, None);
    assert!(next(&hears).is_none(), "no policy lets it pass");
    wait_for_sessions(&pair, 2);

    // Another group is let through; the others by a policy of another name.
    reload(&mut pair, POLICY, &more(RADIO));
    wait_until("the new stream arrives", || next(&hears).is_some());
    for group in GROUPS {
        assert_eq!(policies_of(&pair.lab, group), ["television"]);
    }
    wait_for_sessions(&pair, 3);

    // It is forbidden again: its session ends at once, on both units.
    let ended = reload(&mut pair, &more(RADIO), &more("239.9.1.1"));
    assert_eq!(ended, 1);
    assert!(policies_of(&pair.lab, RADIO).is_empty());
    let log = pair.a().log();
    let mut ends_of = log
        .lines()
        .filter(|it| it.contains("multicast session end"));
    let told = ends_of.any(|line| line.contains(RADIO) && line.contains("why=no-policy"));
    assert!(told, "{log}");
    while next(&hears).is_some() {}
    wait_for_sessions(&pair, 2);
    wait_until("both units agree", || pair.b().group()["ready"] == true);
    ends.store(true, Ordering::Relaxed);
    for member in members {
        let (got, _) = member.join().expect("it listens");
        check_nothing_lost(&got);
    }
}

/// A standby that follows a reload sends on after a takeover; without policies nothing is left.
#[test]
fn the_other_unit_follows_a_reload() {
    let mut pair = pair();
    assert!(!receives_all(pair.a()) && !receives_all(pair.b()));
    reload(&mut pair, NOTHING, POLICY);
    let _streams =
        [0, 1].map(|at| Stream::start(&pair.lab.server, SERVER[at], GROUPS[at], MILLISECOND));
    let members = GROUPS.map(|group| {
        let member = member(&pair.lab.lan1, group, None);
        wait_until("the stream arrives", || next(&member).is_some());
        member
    });
    wait_for_sessions(&pair, 2);
    pair.a_mut().kill();
    pair.wait_for_takeover_by_b(1);
    for member in &members {
        // What gw-a has sent on is read first.
        let (last, _) = std::iter::from_fn(|| next(member))
            .take(5000)
            .last()
            .expect("some");
        wait_until("gw-b sends it on", || {
            next(member).is_some_and(|(number, _)| number > last)
        });
    }
    assert!(receives_all(pair.b()));
    pair.b.edit(POLICY, NOTHING);
    let answer = pair.b().reload();
    assert_eq!(answer["sessions_ended"], 2, "{answer}");
    assert!(pair.b().sessions("state=multicast").is_empty());
    for member in &members {
        while next(member).is_some() {}
    }
    wait_until("the interface takes no more groups", || {
        !receives_all(pair.b())
    });
}
