//! `tandemgw sessions`: the list, its filters, and the end of some.

use crate::conversation::Conversations;
use crate::lab::{Lab, SERVER};
use crate::pair::Pair;
use crate::services::{udp_echo, udp_echoes};
use crate::unit::Unit;
use testkit::system::process::wait_until;

fn count(unit: &Unit, filter: &str) -> usize {
    unit.sessions(filter).len()
}

/// A pair with a TCP, a UDP and an ICMP session of each family.
fn busy_pair() -> (Pair, Conversations) {
    let pair = Pair::started();
    let conversations = Conversations::start(&pair.lab);
    for server in SERVER {
        let _echo = udp_echo(&pair.lab.server, server);
        assert!(
            udp_echoes(&pair.lab, &pair.lab.lan1, server, 100),
            "UDP to {server}"
        );
        pair.lab.lan1.run(&format!("ping -c 1 -W 5 {server}"));
    }
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
    (pair, conversations)
}

#[test]
fn what_is_ended_is_ended_on_both_units() {
    let (pair, mut conversations) = busy_pair();
    assert!(count(pair.a(), "proto=udp") >= 2);
    let ended = pair.a().tandemgw("sessions clear proto=udp port=7000").ok();
    assert_eq!(ended.stdout, "ended 2 sessions\n");
    wait_until("gw-b has ended them too", || {
        count(pair.b(), "proto=udp port=7000") == 0
    });
    assert_eq!(count(pair.a(), "proto=udp port=7000"), 0);
    conversations.go_on();
    let ended = pair
        .a()
        .tandemgw("sessions clear --json proto=icmp in=lan")
        .ok();
    assert!(
        ended.stdout.starts_with("{\"cleared\":2,"),
        "{}",
        ended.stdout
    );
    assert_eq!(count(pair.a(), "proto=tcp"), 2, "the others stay");
    // The log and the counters match the request.
    let logged = "sessions cleared filter=\"proto=udp port=7000\" count=2 skipped=0";
    wait_until("it is logged", || pair.a().log().contains(logged));
    assert_eq!(pair.a().status()["counters"]["cleared"], 4);
    pair.a().wait_for_ready_peer();
    pair.wait_for_same_sessions();
    // A connection is taken up again by its next segment, if the policies allow it.
    pair.a().tandemgw("sessions clear --all").ok();
    conversations.go_on();
    pair.a().wait_for_ready_peer();
    assert_eq!(
        pair.wait_for_same_sessions()
            .iter()
            .filter(|s| s.starts_with("tcp"))
            .count(),
        2
    );
    conversations.finish();
}

#[test]
fn a_standby_ends_nothing_and_says_who_does() {
    let (pair, conversations) = busy_pair();
    for arguments in ["--all", "proto=tcp", "proto=tcp group=default"] {
        let refused = pair
            .b()
            .tandemgw(&format!("sessions clear {arguments}"))
            .code(1);
        assert_eq!(
            refused.stderr,
            "tandemgw: this unit is standby of group default: ask gw-a, the primary\n"
        );
    }
    assert_eq!(count(pair.b(), "proto=tcp"), 2);
    conversations.finish();
}

#[test]
fn without_a_pair_an_ended_connection_is_over() {
    let lab = Lab::started();
    let _conversations = Conversations::start(&lab);
    let ended = lab.unit.tandemgw("sessions clear proto=tcp").ok();
    assert_eq!(ended.stdout, "ended 2 sessions\n");
    assert_eq!(count(&lab.unit, "proto=tcp"), 0);
    let ended = lab.unit.tandemgw("sessions clear proto=tcp").ok();
    assert_eq!(ended.stdout, "ended 0 sessions\n");
}

#[test]
fn a_wrong_word_is_answered_with_the_nearest_valid_one_and_nothing_is_lost() {
    let lab = Lab::started();
    let _conversations = Conversations::start(&lab);
    for (arguments, code, said) in [
        (
            "sessions prot=tcp",
            2,
            "unknown key `prot`; did you mean `proto`?",
        ),
        (
            "sessions state=establishd",
            2,
            "did you mean `established`?",
        ),
        (
            "sessions --json policy=lan-uot",
            2,
            "did you mean `lan-out`?",
        ),
        ("sessions in=lna", 2, "did you mean `lan`?"),
        ("sessions out=wam", 2, "did you mean `wan`?"),
        ("sessions clear prot=tcp", 2, "did you mean `proto`?"),
        (
            "sessions clear proto=tcp state=establishd",
            2,
            "did you mean `established`?",
        ),
        ("sessions clear", 2, "missing: "),
        ("sessions claer --all", 2, "--all"),
        ("sessions claer", 2, "did you mean `sessions clear`?"),
        ("stauts", 2, "did you mean `status`?"),
        ("status --jsno", 2, "did you mean `--json`?"),
    ] {
        let finished = lab.unit.tandemgw(arguments).code(code);
        assert!(
            finished.stderr.contains(said),
            "{arguments}: {}",
            finished.stderr
        );
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        assert_eq!(finished.stdout, "", "{arguments}");
    }
    assert_eq!(count(&lab.unit, "proto=tcp"), 2);
}

#[test]
fn the_list_fits_a_terminal_and_is_whole_elsewhere() {
    let lab = Lab::started();
    let _conversations = Conversations::start(&lab);
    let whole = lab.unit.tandemgw("sessions proto=tcp").ok().stdout;
    assert!(whole.starts_with("PROTO  SOURCE"), "{whole}");
    assert!(
        whole.contains("from [fd77:2::1]:") && !whole.contains('…'),
        "{whole}"
    );
    let binary = env!("CARGO_BIN_EXE_tandemgw");
    let narrow = lab.unit.ns.sh(&format!(
        "script -qec 'stty cols 90; {binary} sessions proto=tcp' /dev/null"
    ));
    let lines: Vec<&str> = narrow.lines().map(str::trim_end).collect();
    assert_eq!(lines.len(), 3, "{narrow}");
    assert!(
        lines.iter().all(|line| line.chars().count() <= 90),
        "{narrow}"
    );
    // Columns are left out; no address is cut.
    assert!(
        !narrow.contains('…') && !narrow.contains("PACKETS"),
        "{narrow}"
    );
    assert!(narrow.contains("[fd77:2::100]:"), "{narrow}");
    assert!(!narrow.contains('\u{1b}'), "no colour: {narrow}");
}

#[test]
fn the_list_stops_at_its_limit() {
    let lab = Lab::started();
    let _conversations = Conversations::start(&lab);
    assert_eq!(count(&lab.unit, "--limit 1"), 1);
    assert_eq!(count(&lab.unit, "--limit 0"), 0);
}
