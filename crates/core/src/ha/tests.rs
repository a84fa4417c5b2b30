//! Each rule alone, in virtual time: one unit under test, its peers played by hand.

use std::time::Duration;

use proptest::prelude::*;

use super::heartbeat::{self, GroupState, Header, Worth};
use super::*;
use crate::config::{Ha as HaConfig, HaLink, HaPeer, PickupGuarantee};
use crate::flow::GroupSet;

pub(super) const INTERVAL: Duration = ms(20);
pub(super) const HOLD: Duration = ms(100);
pub(super) const PROBE_WAIT: Duration = ms(20);
const G: GroupId = GroupId(0);
const B: PeerId = PeerId(0);
const C: PeerId = PeerId(1);
const L: LinkId = LinkId(0);
const READY: SyncState = SyncState {
    ready: GroupSet::ALL,
    equal: GroupSet::ALL,
    applied: 0,
};

pub(super) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A unit `name` whose peers are `peers`, with one link, one group, and two monitored ports.
pub(super) fn config(name: &str, peers: &[&str], groups: usize) -> Config {
    let mut config = crate::config::parse(
        std::path::Path::new("test.toml"),
        "[node]\nname = \"x\"\n\
         [[port]]\nname = \"lan\"\ninterface = \"eth0\"\nvirtual-addresses = [\"10.77.1.1/24\"]\n\
         [[port]]\nname = \"wan\"\ninterface = \"eth1\"\nvirtual-addresses = [\"10.77.2.1/24\"]\n",
    )
    .unwrap()
    .0;
    config.node.name = name.to_owned();
    config.groups = (0..groups)
        .map(|i| config::Group {
            name: format!("g{i}"),
            ..config::Group::default()
        })
        .collect();
    let address = |i: usize| ([10, 77, 9, i as u8], 7030).into();
    config.ha = Some(HaConfig {
        asymmetric_flows: false,
        accept_push: Vec::new(),
        group_id: 7,
        priority: 128,
        override_: false,
        override_wait: Duration::ZERO,
        heartbeat_interval: INTERVAL,
        heartbeat_lost_threshold: 5,
        failover_threshold: 0,
        monitor: vec![PortId(0), PortId(1)],
        session_pickup: true,
        session_pickup_connectionless: true,
        session_pickup_delay: Duration::ZERO,
        multicast_ttl: Duration::from_secs(600),
        pickup_guarantee: PickupGuarantee::Off,
        pickup_guarantee_wait: ms(10),
        pickup_guarantee_copies: 1,
        copies: 0,
        witness: None,
        gratuitous_arps: 5,
        gratuitous_arp_interval: ms(1000),
        links: vec![HaLink {
            interface: "sync0".to_owned(),
            listen: address(1),
        }],
        peers: peers
            .iter()
            .enumerate()
            .map(|(i, name)| HaPeer {
                name: (*name).to_owned(),
                addresses: vec![address(i + 2)],
                public_key: [i as u8; 32],
            })
            .collect(),
    });
    config
}

/// The next heartbeat of a peer.
#[derive(Clone)]
struct Voice {
    id: PeerId,
    name: &'static str,
    boot_id: u64,
    sequence: u64,
    goodbye: bool,
    maintenance: bool,
    ports_up: u8,
    uptime: Duration,
    group: GroupState,
}

/// The unit `a` under test, with the time.
struct Bench {
    ha: Ha,
    now: Time,
    outputs: Vec<Output>,
}

impl Bench {
    fn new(peers: &[&str]) -> Bench {
        Self::with(&config("a", peers, 1))
    }

    fn with(config: &Config) -> Bench {
        let now = Time::from_nanos(1_000_000_000);
        let mut ha = Ha::new(config, 1, now).unwrap();
        ha.handle_ports(now, &[true, true]);
        for peer in 0..ha.peers.len() {
            ha.handle_link(now, PeerId(peer as u8), L, true);
        }
        let mut bench = Bench {
            ha,
            now,
            outputs: Vec::new(),
        };
        bench.drain();
        bench
    }

    /// Primary since 2 s, with its peers `voices` following.
    fn primary(voices: &mut [Voice]) -> Bench {
        let names: Vec<&str> = voices.iter().map(|voice| voice.name).collect();
        let mut bench = Bench::new(&names);
        bench.run(ms(2000), voices);
        assert_eq!(bench.role(), Role::Primary);
        assert_eq!(bench.takeovers(), [Takeover::Start]);
        bench.outputs.clear();
        bench
    }

    /// Standby and ready since 2 s, with `voices` of which the first is primary.
    fn standby(voices: &mut [Voice]) -> Bench {
        voices[0].group.primary = true;
        voices[0].group.term = 5;
        let names: Vec<&str> = voices.iter().map(|voice| voice.name).collect();
        let mut bench = Bench::new(&names);
        bench.run(ms(40), voices);
        bench.ha.handle_sync(bench.now, B, READY);
        bench.run(ms(2000), voices);
        assert_eq!(bench.role(), Role::Standby);
        assert!(bench.view().ready);
        bench.outputs.clear();
        bench
    }

    /// Lets time pass by turns of 1 ms; each of `voices` is heard each interval.
    fn run(&mut self, duration: Duration, voices: &mut [Voice]) {
        let end = self.now + duration;
        while self.now < end {
            self.now = self.now + ms(1);
            self.ha.handle_wake(self.now);
            if self
                .now
                .as_nanos()
                .is_multiple_of(INTERVAL.as_nanos() as u64)
            {
                voices.iter_mut().for_each(|voice| self.hear(voice));
            }
            self.tick();
        }
    }

    fn tick(&mut self) {
        self.ha.handle_timeout(self.now);
        assert!(
            self.ha
                .poll_timeout(self.now)
                .is_none_or(|at| at > self.now),
            "no busy loop"
        );
        self.drain();
    }

    fn hear(&mut self, voice: &mut Voice) {
        voice.sequence += 1;
        let bytes = voice.bytes();
        self.ha
            .handle_heartbeat(self.now, voice.id, L, &bytes)
            .unwrap();
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.ha.poll_output() {
            self.outputs.push(output);
        }
    }

    /// Lets time pass without any voice until the unit is primary; how long it took.
    fn time_to_primary(&mut self, most: Duration, voices: &mut [Voice]) -> Duration {
        let start = self.now;
        while self.role() != Role::Primary {
            self.run(ms(1), voices);
            assert!(self.now.since(start) <= most, "not primary after {most:?}");
        }
        self.now.since(start)
    }

    fn role(&self) -> Role {
        self.ha.role(G)
    }

    fn view(&self) -> GroupView<'_> {
        self.ha.group(self.now, G).unwrap()
    }

    /// The reasons for which it became primary.
    fn takeovers(&self) -> Vec<Takeover> {
        let counts = Takeover::ALL.iter().zip(self.view().takeovers);
        let some = counts.filter(|(_, count)| *count > 0);
        some.map(|(reason, _)| *reason).collect()
    }

    fn count(&self, wanted: impl Fn(&Output) -> bool) -> usize {
        self.outputs.iter().filter(|output| wanted(output)).count()
    }

    fn has_event(&self, text: &str) -> bool {
        self.ha
            .events()
            .any(|event| format!("{}: {}", event.what, event.why).contains(text))
    }

    /// The last heartbeat sent.
    fn last_heartbeat(&self) -> &[u8] {
        let last = self.outputs.iter().rev().find_map(|output| match output {
            Output::SendHeartbeat { bytes, .. } => Some(bytes),
            _ => None,
        });
        last.unwrap()
    }
}

impl Voice {
    /// A peer as old as the unit under test, standby, of the same priority.
    fn new(id: PeerId, name: &'static str) -> Voice {
        let group = GroupState {
            known: true,
            priority: 128,
            ..GroupState::default()
        };
        Voice {
            id,
            name,
            boot_id: 2,
            sequence: 0,
            goodbye: false,
            maintenance: false,
            ports_up: 2,
            uptime: Duration::ZERO,
            group,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_about(&[("g0", &self.group)])
    }

    fn bytes_about(&self, groups: &[(&str, &GroupState)]) -> Vec<u8> {
        let header = Header {
            group_id: 7,
            goodbye: self.goodbye,
            maintenance: self.maintenance,
            ports_up: self.ports_up,
            boot_id: self.boot_id,
            sequence: self.sequence,
            uptime: self.uptime,
            interval: INTERVAL,
            clock: 1,
            echo: 0,
            echo_age: Duration::ZERO,
            applied: 0,
            name: self.name,
            parts: 1,
        };
        let groups = groups
            .iter()
            .map(|(name, state)| (heartbeat::hash(name), *state));
        heartbeat::encode(&header, groups)
    }

    /// Becomes ready, with the same sessions.
    fn ready(mut self) -> Voice {
        self.group.ready = true;
        self
    }

    /// Is primary, and hears the unit under test.
    fn primary(&mut self, term: u64) {
        self.group = GroupState {
            primary: true,
            ready: true,
            term,
            worth: Some(Worth::default()),
            ..self.group
        };
    }
}

fn b() -> Voice {
    Voice::new(B, "b")
}

fn c() -> Voice {
    Voice::new(C, "c")
}

fn is_probe(output: &Output) -> bool {
    matches!(output, Output::Probe { .. })
}

fn is_set_role(output: &Output) -> bool {
    matches!(output, Output::SetRole { .. })
}

#[test]
fn alone_it_waits_for_its_peers_checks_and_takes_over() {
    let mut bench = Bench::new(&["b"]);
    let took = bench.time_to_primary(ms(600), &mut []);
    assert!(took >= ms(500), "waited for the peer only {took:?}");
    assert_eq!(bench.count(is_probe), 3);
    assert_eq!(bench.view().term, 1);
    assert_eq!(bench.view().primary, Some("a"));
}

#[test]
fn with_all_peers_heard_the_best_takes_over_without_the_wait() {
    let mut bench = Bench::new(&["b"]);
    let took = bench.time_to_primary(ms(100), &mut [b()]);
    assert!(took <= INTERVAL + PROBE_WAIT + ms(5), "{took:?}");
}

#[test]
fn who_is_not_the_best_waits_longer() {
    let mut better = b();
    better.group.priority = 200;
    let mut bench = Bench::new(&["b"]);
    let took = bench.time_to_primary(ms(300), &mut [better]);
    assert!(took >= HOLD, "{took:?}");
}

#[test]
fn it_follows_a_primary_and_is_ready_when_replication_says_so() {
    let mut voice = b();
    voice.primary(5);
    let mut bench = Bench::new(&["b"]);
    bench.run(ms(1000), &mut [voice.clone()]);
    assert_eq!(bench.role(), Role::Standby);
    assert_eq!(
        (bench.view().ready, bench.view().term, bench.view().primary),
        (false, 5, Some("b"))
    );
    bench.ha.handle_sync(bench.now, B, READY);
    assert!(bench.view().ready);
    bench.drain();
    let (_, mut groups) = heartbeat::decode(bench.last_heartbeat()).unwrap();
    assert!(
        groups.next().unwrap().1.ready,
        "the peers hear of it at once"
    );
}

#[test]
fn silence_of_the_primary_costs_hold_and_check() {
    let mut voices = [b()];
    let mut bench = Bench::standby(&mut voices);
    let took = bench.time_to_primary(ms(1000), &mut []);
    assert!(
        took >= HOLD - INTERVAL && took <= HOLD + PROBE_WAIT + INTERVAL,
        "{took:?}"
    );
    // In a pair the odd terms are those of the first name.
    assert_eq!(bench.view().term, 7);
    assert_eq!(bench.count(is_probe), 3);
    assert_eq!(bench.takeovers(), [Takeover::Silent]);
}

#[test]
fn a_hint_costs_the_check_alone() {
    let ended = Hint::Ended { peer: B };
    for hint in [ended, Hint::CarrierLost] {
        let mut voices = [b()];
        let mut bench = Bench::standby(&mut voices);
        bench.ha.handle_hint(bench.now, hint);
        // Heartbeats that the dead process sent before are still in the socket.
        bench.hear(&mut voices[0]);
        let took = bench.time_to_primary(ms(100), &mut []);
        let check = if hint == ended {
            PROBE_WAIT / 4
        } else {
            PROBE_WAIT
        };
        assert!(took <= check + ms(1), "{took:?}");
        assert_eq!(bench.count(is_probe), 3);
        let reason = match hint == ended {
            true => Takeover::Ended,
            false => Takeover::Silent,
        };
        assert_eq!(bench.takeovers(), [reason]);
    }
}

#[test]
fn a_refusal_decides_nothing_before_the_hold_time_is_over() {
    for killed in [false, true] {
        let mut voices = [b()];
        let mut bench = Bench::standby(&mut voices);
        bench.ha.handle_hint(bench.now, Hint::Refused { peer: B });
        bench.run(HOLD - INTERVAL - ms(1), &mut []);
        assert_eq!(bench.role(), Role::Standby, "checks alone move no role");
        assert!(bench.count(is_probe) > 3);
        if killed {
            bench.ha.handle_hint(bench.now, Hint::Ended { peer: B });
        }
        let took = bench.time_to_primary(ms(1000), &mut []);
        assert!(took <= INTERVAL + PROBE_WAIT + ms(1), "{took:?}");
    }
}

#[test]
fn a_false_hint_is_forgotten_at_the_next_heartbeat() {
    let mut voices = [b()];
    let mut bench = Bench::standby(&mut voices);
    bench.ha.handle_hint(bench.now, Hint::Refused { peer: B });
    bench.run(ms(6), &mut []);
    bench.hear(&mut voices[0]);
    bench.run(ms(1000), &mut voices);
    assert_eq!(bench.count(is_set_role), 0);
    assert!(bench.ha.peer(bench.now, B).unwrap().alive);
}

#[test]
fn a_goodbye_needs_no_check() {
    let mut voices = [b()];
    let mut bench = Bench::standby(&mut voices);
    voices[0].group.primary = false;
    voices[0].goodbye = true;
    bench.hear(&mut voices[0]);
    assert_eq!(bench.role(), Role::Primary, "at once");
    assert_eq!(bench.count(is_probe), 0);
    assert_eq!(bench.takeovers(), [Takeover::Goodbye]);
}

#[test]
fn an_answer_that_nobody_signed_holds_the_takeover_up_for_a_while() {
    let mut voices = [b()];
    let mut bench = Bench::standby(&mut voices);
    let mut took = ms(0);
    let mut asked: Option<Time> = None;
    while bench.role() == Role::Standby {
        bench.outputs.clear();
        bench.run(ms(1), &mut []);
        took += ms(1);
        if bench.count(is_probe) > 0 {
            bench.ha.handle_probe_answer(bench.now, G);
            let pause = asked.map_or(HOLD, |before| bench.now.since(before));
            // It asks each port once more in the last check, which is not answered in time.
            assert!(
                pause >= HOLD || took > ms(3000),
                "asks again after {pause:?}"
            );
            asked = Some(bench.now);
        }
        assert!(took < ms(4000));
    }
    assert!(took >= ms(3000), "{took:?}");
    assert!(bench.has_event("somebody answers for the addresses"));

    let mut bench = Bench::standby(&mut voices);
    while bench.count(is_probe) == 0 {
        bench.run(ms(1), &mut []);
    }
    bench.ha.handle_probe_answer(bench.now, G);
    assert!(bench.view().degraded);
    bench.run(ms(300), &mut voices);
    assert!(!bench.view().degraded, "heartbeats are back");
    assert_eq!(bench.count(is_set_role), 0);
}

/// The links to the primary are dead, somebody answers for its addresses, and a third unit hears
/// it: it lives, also while nobody answers.
#[test]
fn a_primary_that_a_third_unit_hears_is_alive() {
    let mut voices = [b(), c().ready()];
    let mut bench = Bench::standby(&mut voices);
    voices[1].group.sees = heartbeat::hash("b");
    let [_, third] = &mut voices;
    let third = std::slice::from_mut(third);
    while bench.count(is_probe) == 0 {
        bench.run(ms(1), third);
    }
    bench.ha.handle_probe_answer(bench.now, G);
    assert!(bench.view().degraded);
    bench.run(ms(3000), third);
    assert_eq!((bench.role(), bench.count(is_set_role)), (Role::Standby, 0));

    // As soon as that one no longer hears it, it is gone.
    third[0].group.sees = 0;
    bench.time_to_primary(HOLD * 2, third);
}

/// What a unit hears itself counts for more than what a third one still says of it.
#[test]
fn a_unit_that_is_heard_to_be_standby_is_not_named_as_primary() {
    let mut voices = [b().ready(), c().ready()];
    let mut bench = Bench::standby(&mut voices);
    assert_eq!(bench.view().primary, Some("b"));
    // It handed the group to a unit that neither this one nor c hears.
    voices[0].group.primary = false;
    voices[1].group.sees = heartbeat::hash("b");
    bench.run(INTERVAL, &mut voices);
    assert_ne!(bench.view().primary, Some("b"));
}

#[test]
fn without_a_monitored_port_it_does_not_take_over() {
    let mut voices = [b()];
    let mut bench = Bench::standby(&mut voices);
    bench.ha.handle_ports(bench.now, &[false, false]);
    bench.run(ms(3000), &mut []);
    assert_eq!((bench.role(), bench.count(is_probe)), (Role::Standby, 0));
    bench.ha.handle_ports(bench.now, &[false, true]);
    assert!(bench.time_to_primary(ms(100), &mut []) <= PROBE_WAIT + ms(1));
}

#[test]
fn of_two_primaries_the_higher_term_wins() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    voices[0].primary(2);
    bench.hear(&mut voices[0]);
    assert_eq!(bench.role(), Role::Standby);
    assert!(!bench.view().ready, "its sessions are stale");
    assert_eq!(
        bench.count(|o| *o == Output::Resync { group: G, from: B }),
        1
    );
    assert_eq!(bench.view().term, 2);

    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    bench.ha.groups[0].term = 3;
    voices[0].primary(2);
    bench.hear(&mut voices[0]);
    bench.run(ms(60), &mut voices);
    assert_eq!(bench.role(), Role::Primary);
    assert_eq!(bench.count(|o| matches!(o, Output::Announce { .. })), 1);
    voices[0].group.primary = false;
    bench.run(ms(60), &mut voices);
    assert_eq!(
        bench.count(|o| matches!(o, Output::Announce { .. })),
        2,
        "again when it yields"
    );
}

/// A unit that was cut off from all comes back with a higher term and has carried nothing.
#[test]
fn who_carried_sessions_stays_primary_with_a_higher_term_than_the_other() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    bench.run(HOLD * 4, &mut []);
    bench.ha.handle_traffic(G, Some(bench.now));
    voices[0].primary(7);
    bench.hear(&mut voices[0]);
    bench.run(ms(60), &mut voices);
    assert_eq!(bench.role(), Role::Primary);
    let term = bench.view().term;
    assert!(term > 7, "{term}: others compare terms");
    let reasserted = Output::Reassert { group: G, term };
    assert_eq!(bench.count(|output| *output == reasserted), 1);
}

/// Both had the group one after the other before they lost each other: what this unit carried in
/// an earlier reign, or while it heard the other one, proves nothing about the time since.
#[test]
fn sessions_carried_before_the_reign_do_not_count_in_a_contest() {
    let mut voices = [b()];
    let mut bench = Bench::standby(&mut voices);
    let before = bench.now;
    bench.time_to_primary(HOLD * 4, &mut []);
    bench.ha.handle_traffic(G, Some(before));
    bench.run(HOLD * 4, &mut []);
    voices[0].primary(1);
    voices[0].group.worth = Some(Worth {
        carried: true,
        followed: false,
    });
    assert!(bench.view().term > 1, "the term would decide for this unit");
    bench.hear(&mut voices[0]);
    bench.run(ms(60), &mut voices);
    assert_eq!(
        (bench.role(), bench.view().primary),
        (Role::Standby, Some("b"))
    );
}

/// The other one may have been primary, and may have stepped down before it was heard.
#[test]
fn a_primary_announces_again_when_a_peer_is_heard_again() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    bench.run(HOLD * 2, &mut []);
    let is_announce = |output: &Output| matches!(output, Output::Announce { .. });
    let before = bench.count(is_announce);
    bench.run(ms(60), &mut voices);
    assert_eq!(bench.count(is_announce), before + 1);
}

#[test]
fn of_two_primaries_of_one_term_the_better_wins() {
    for (uptime, role) in [(ms(400_000), Role::Standby), (ms(100_000), Role::Primary)] {
        let mut voices = [b()];
        let mut bench = Bench::primary(&mut voices);
        voices[0].primary(1);
        voices[0].uptime = uptime;
        bench.run(ms(1000), &mut voices);
        assert_eq!(bench.role(), role, "peer up for {uptime:?}");
    }
}

#[test]
fn two_primaries_that_both_think_they_are_better_go_by_name() {
    let mut bench = Bench::with(&config("b", &["a"], 1));
    let mut voices = [Voice { name: "a", ..b() }];
    bench.run(ms(1000), &mut voices);
    // Units of this release have no terms in common; one of another release may have.
    voices[0].primary(bench.view().term);
    voices[0].ports_up = 1;
    bench.run(HOLD, &mut voices);
    assert_eq!(bench.role(), Role::Primary, "it has more ports up");
    bench.run(HOLD * 2, &mut voices);
    assert_eq!(
        bench.role(),
        Role::Standby,
        "but the other one does not see it"
    );
}

#[test]
fn a_pause_costs_the_role_before_the_next_packet() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    bench.now = bench.now + HOLD + ms(1);
    assert!(bench.ha.handle_wake(bench.now));
    assert_eq!(bench.role(), Role::Standby);
    assert!(bench.has_event("paused for 101 ms"));
    let took = bench.time_to_primary(HOLD + PROBE_WAIT + INTERVAL, &mut voices);
    assert!(took >= PROBE_WAIT, "only after a check");
    assert_eq!(bench.view().term, 3);
}

#[test]
fn after_a_pause_it_follows_who_took_over() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    bench.now = bench.now + ms(5000);
    bench.ha.handle_wake(bench.now);
    bench.tick();
    voices[0].primary(2);
    bench.run(ms(1000), &mut voices);
    assert_eq!((bench.role(), bench.view().ready), (Role::Standby, false));
    assert_eq!(
        bench.count(|o| *o == Output::Resync { group: G, from: B }),
        1
    );
}

#[test]
fn a_pause_ends_the_draining_after_a_handover() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    voices[0].group.ready = true;
    bench.hear(&mut voices[0]);
    bench.ha.handle_sync(bench.now, B, READY);
    bench.ha.request_failover(bench.now, G, None).unwrap();
    bench.drain();
    bench.run(ms(10), &mut voices);
    voices[0].primary(2);
    bench.hear(&mut voices[0]);
    assert!(bench.view().draining);
    bench.now = bench.now + HOLD + ms(1);
    bench.ha.handle_wake(bench.now);
    assert!(!bench.view().draining);
}

#[test]
fn a_paused_standby_gives_the_primary_time_to_be_heard() {
    let mut voices = [b()];
    let mut bench = Bench::standby(&mut voices);
    bench.now = bench.now + ms(5000);
    bench.ha.handle_wake(bench.now);
    bench.tick();
    bench.run(ms(1000), &mut voices);
    assert_eq!((bench.count(is_set_role), bench.count(is_probe)), (0, 0));
}

#[test]
fn a_short_delay_is_no_pause() {
    let mut bench = Bench::primary(&mut [b()]);
    bench.now = bench.now + HOLD;
    assert!(!bench.ha.handle_wake(bench.now));
    assert_eq!(bench.role(), Role::Primary);
}

#[test]
fn a_planned_handover_goes_to_a_peer_that_holds_all() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    let refused = |bench: &mut Bench| {
        bench
            .ha
            .request_failover(bench.now, G, None)
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&mut bench).contains("b is not ready"));
    voices[0].group.ready = true;
    bench.hear(&mut voices[0]);
    assert!(refused(&mut bench).contains("same sessions"));
    bench.ha.handle_sync(bench.now, B, READY);
    bench.ha.request_failover(bench.now, G, None).unwrap();
    assert!(refused(&mut bench).contains("under way"));
    bench.drain();
    assert_eq!(
        bench.count(|o| *o
            == Output::Handover {
                group: G,
                to: B,
                term: 2
            }),
        1
    );
    bench.run(ms(37), &mut voices);
    assert_eq!(bench.role(), Role::Primary, "until the peer is");
    voices[0].primary(2);
    bench.hear(&mut voices[0]);
    let view = bench.view();
    assert_eq!(
        (view.role, view.ready, view.draining, view.term),
        (Role::Standby, true, true, 2)
    );
    let done = Output::HandoverDone {
        group: G,
        to: B,
        took: ms(37),
        result: Ok(()),
    };
    assert_eq!(bench.count(|o| *o == done), 1);
    bench.run(ms(1990), &mut voices);
    assert!(bench.view().draining);
    bench.run(ms(20), &mut voices);
    assert!(!bench.view().draining);
    assert!(
        bench
            .ha
            .request_failover(bench.now, G, None)
            .unwrap_err()
            .to_string()
            .contains("not primary")
    );
}

#[test]
fn a_peer_that_would_give_a_group_back_gets_it_by_force_only() {
    let mut voices = [b().ready()];
    voices[0].ports_up = 1;
    let mut bench = Bench::primary(&mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    let refused = bench
        .ha
        .request_failover(bench.now, G, None)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("b has fewer monitored ports up (1)"),
        "{refused}"
    );
    bench.ha.force_failover(bench.now, G, Some(B)).unwrap();
    bench.drain();
    let handed = |o: &Output| matches!(o, Output::Handover { to: B, .. });
    assert_eq!(bench.count(handed), 1);
}

#[test]
fn a_peer_that_lacks_sessions_gets_a_group_by_force_only() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    assert!(bench.ha.request_failover(bench.now, G, Some(B)).is_err());
    bench.ha.force_failover(bench.now, G, Some(B)).unwrap();
    let mut bench = Bench::primary(&mut [b()]);
    bench.run(HOLD + INTERVAL, &mut []);
    let refused = bench
        .ha
        .force_failover(bench.now, G, Some(B))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("b is not alive"), "{refused}");
}

#[test]
fn why_a_peer_is_gone_is_told() {
    let mut bench = Bench::primary(&mut [b()]);
    let why = |bench: &Bench| bench.ha.peer(bench.now, B).unwrap().gone_why;
    assert_eq!(why(&bench), None);
    bench.run(HOLD + INTERVAL, &mut []);
    assert_eq!(why(&bench), Some("no heartbeat came"));
    let mut bench = Bench::primary(&mut [b()]);
    bench.ha.handle_hint(bench.now, Hint::Ended { peer: B });
    assert_eq!(why(&bench), Some("its process ended"));
}

#[test]
fn a_handover_goes_beyond_the_highest_term_that_is_known() {
    let mut voices = [b().ready()];
    let mut bench = Bench::primary(&mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    voices[0].group.term = 7;
    bench.hear(&mut voices[0]);
    bench.ha.request_failover(bench.now, G, None).unwrap();
    bench.drain();
    let beyond = |o: &Output| matches!(o, Output::Handover { term: 8.., .. });
    assert_eq!(bench.count(beyond), 1);
}

#[test]
fn a_handover_that_gets_no_answer_fails() {
    let mut voices = [b().ready()];
    let mut bench = Bench::primary(&mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    bench.ha.request_failover(bench.now, G, Some(B)).unwrap();
    bench.run(ms(1001), &mut voices);
    assert_eq!(bench.role(), Role::Primary);
    let failed = |o: &Output| matches!(o, Output::HandoverDone { result: Err(why), .. } if why.to_string().contains("in time"));
    assert_eq!(bench.count(failed), 1);
    bench.ha.request_failover(bench.now, G, Some(B)).unwrap();
    bench.run(HOLD + INTERVAL, &mut []);
    let lost = |o: &Output| matches!(o, Output::HandoverDone { result: Err(why), .. } if why.to_string().contains("lost"));
    assert_eq!(bench.count(lost), 1);
}

/// The best of the others would be there first, and be primary beside the one that is meant.
#[test]
fn a_group_that_is_left_to_another_unit_is_not_taken() {
    let mut voices = [b(), c()];
    let mut bench = Bench::standby(&mut voices);
    let left = &mut voices[0].group;
    (left.primary, left.gives, left.sees) = (false, true, heartbeat::hash("c"));
    bench.run(HOLD * 4, &mut voices);
    assert_eq!(bench.role(), Role::Standby);
    // It did not come.
    (voices[0].group.gives, voices[0].group.sees) = (false, 0);
    bench.time_to_primary(HOLD * 8, &mut voices);
    // Who leaves it dies.
    let mut voices = [b(), c()];
    let mut bench = Bench::standby(&mut voices);
    let left = &mut voices[0].group;
    (left.primary, left.gives, left.sees) = (false, true, heartbeat::hash("c"));
    bench.run(HOLD, &mut voices);
    bench.time_to_primary(HOLD * 8, &mut voices[1..]);
}

/// A reload of either unit closes the stream that carries the request.
#[test]
fn a_handover_that_was_lost_with_its_stream_is_asked_for_again() {
    let mut voices = [b().ready()];
    let mut bench = Bench::primary(&mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    bench.ha.request_failover(bench.now, G, Some(B)).unwrap();
    bench.run(ms(20), &mut voices);
    let asked = |o: &Output| matches!(o, Output::Handover { to: B, .. });
    assert_eq!(bench.count(asked), 1);
    bench.ha.handle_sync(bench.now, B, SyncState::default());
    bench.run(ms(20), &mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    bench.drain();
    assert_eq!(bench.count(asked), 2);
    let terms = bench.outputs.iter().filter_map(|output| match output {
        Output::Handover { term, .. } => Some(*term),
        _ => None,
    });
    let terms: Vec<u64> = terms.collect();
    assert_eq!(terms[0], terms[1], "it is the same handover");
    // Who has taken over is asked in vain, and does not complain.
    let mut bench = Bench::standby(&mut [b()]);
    bench.ha.handle_handover(bench.now, G, B, terms[0] + 6);
    bench.ha.handle_handover(bench.now, G, B, terms[0] + 6);
    assert_eq!(bench.role(), Role::Primary);
    assert!(!bench.has_event("refused"));
}

#[test]
fn who_is_handed_a_group_takes_it_at_once() {
    let mut voices = [b()];
    let mut bench = Bench::standby(&mut voices);
    bench.ha.handle_handover(bench.now, G, B, 5);
    assert_eq!(
        bench.role(),
        Role::Standby,
        "5 is the term of the primary: out of date"
    );
    bench.ha.handle_handover(bench.now, G, B, 6);
    assert_eq!((bench.role(), bench.view().term), (Role::Primary, 6));
    bench.drain();
    bench.outputs.clear();
    // The old primary has not heard of it yet.
    bench.hear(&mut voices[0]);
    assert!(!bench.has_event("is primary of g0 too"));
    voices[0].group.primary = false;
    bench.run(ms(1500), &mut voices);
    assert_eq!(bench.count(is_set_role), 0);
}

#[test]
fn a_group_can_be_handed_back_at_once() {
    let mut voices = [b().ready()];
    let mut bench = Bench::standby(&mut voices);
    bench.ha.handle_handover(bench.now, G, B, 6);
    voices[0].group.primary = false;
    bench.hear(&mut voices[0]);
    bench.ha.request_failover(bench.now, G, None).unwrap();
    bench.run(ms(20), &mut voices);
    voices[0].primary(7);
    bench.hear(&mut voices[0]);
    assert_eq!((bench.role(), bench.view().term), (Role::Standby, 7));
}

#[test]
fn a_port_that_goes_down_moves_the_group_to_who_has_more() {
    let mut voices = [b().ready()];
    let mut bench = Bench::primary(&mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    bench.drain();
    let handovers = |bench: &Bench| bench.count(|o| matches!(o, Output::Handover { .. }));
    assert_eq!(handovers(&bench), 0);
    bench.ha.handle_ports(bench.now, &[true, false]);
    bench.drain();
    assert_eq!(handovers(&bench), 1);
}

#[test]
fn a_higher_priority_gets_the_group_if_it_asks() {
    let mut voices = [b().ready()];
    voices[0].group.priority = 200;
    let mut bench = Bench::new(&["b"]);
    bench.run(ms(3000), &mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    bench.run(ms(1000), &mut voices);
    let handovers = |bench: &Bench| bench.count(|o| matches!(o, Output::Handover { .. }));
    assert_eq!((bench.role(), handovers(&bench)), (Role::Primary, 0));
    voices[0].group.asks = true;
    bench.run(ms(100), &mut voices);
    assert_eq!(handovers(&bench), 1);
}

#[test]
fn a_group_that_the_operator_moved_is_not_asked_back() {
    let mut voices = [b().ready()];
    let mut bench = Bench::primary(&mut voices);
    bench.ha.set_override(bench.now, true, ms(0));
    for port in [PortId(0), PortId(1)] {
        bench.ha.handle_host(port);
    }
    bench.ha.set_priority(bench.now, None, 200);
    bench.ha.handle_sync(bench.now, B, READY);
    bench.ha.request_failover(bench.now, G, None).unwrap();
    voices[0].primary(2);
    bench.hear(&mut voices[0]);
    assert_eq!(bench.role(), Role::Standby);
    let asks = |bench: &Bench| bench.ha.group_state(bench.now, 0).asks;
    assert!(!asks(&bench));
    bench.ha.set_priority(bench.now, Some(G), 201);
    assert!(asks(&bench), "a new setting counts");
}

#[test]
fn it_asks_for_a_group_when_its_ports_have_carried_for_the_wait_time() {
    let mut voices = [b().ready()];
    voices[0].primary(5);
    let mut config = config("a", &["b"], 1);
    if let Some(ha) = &mut config.ha {
        (ha.override_, ha.override_wait, ha.priority) = (true, ms(1000), 200);
    }
    let mut bench = Bench::with(&config);
    let asks = |bench: &Bench| bench.ha.group_state(bench.now, 0).asks;
    bench.run(ms(100), &mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    bench.ha.handle_host(PortId(0));
    bench.run(ms(3000), &mut voices);
    assert!(!asks(&bench), "the second port has carried nothing");
    bench.ha.handle_host(PortId(1));
    bench.run(ms(900), &mut voices);
    assert!(!asks(&bench), "not for long enough");
    bench.run(ms(200), &mut voices);
    assert!(asks(&bench));
    bench.ha.handle_ports(bench.now, &[true, false]);
    bench.ha.handle_ports(bench.now, &[true, true]);
    bench.run(ms(20_000), &mut voices);
    assert!(!asks(&bench), "it may be blocked again");
    bench.run(ms(42_000), &mut voices);
    assert!(asks(&bench), "no switch blocks for so long");
}

#[test]
fn a_unit_that_flaps_takes_its_group_back_later_each_time() {
    let mut config = config("a", &["b"], 1);
    if let Some(ha) = &mut config.ha {
        (ha.override_, ha.priority) = (true, 200);
    }
    let mut bench = Bench::with(&config);
    let mut voices = [b().ready()];
    bench.run(ms(2000), &mut voices);
    let mut waits = Vec::new();
    for _ in 0..4 {
        assert_eq!(bench.role(), Role::Primary);
        bench.ha.handle_sync(bench.now, B, READY);
        bench.run(ms(1200), &mut voices);
        bench.outputs.clear();
        bench.ha.handle_ports(bench.now, &[true, false]);
        bench.run(ms(50), &mut voices);
        let term = bench.outputs.iter().find_map(|output| match output {
            Output::Handover { term, .. } => Some(*term),
            _ => None,
        });
        voices[0].primary(term.expect("it hands over"));
        bench.run(ms(100), &mut voices);
        assert_eq!(bench.role(), Role::Standby);
        bench.ha.handle_ports(bench.now, &[true, true]);
        bench.ha.handle_host(PortId(0));
        bench.ha.handle_host(PortId(1));
        bench.ha.handle_sync(bench.now, B, READY);
        let begun = bench.now;
        while !bench.ha.group_state(bench.now, 0).asks {
            bench.run(ms(20), &mut voices);
            assert!(bench.now.since(begun) < ms(100_000), "it never asks");
        }
        waits.push(bench.now.since(begun).as_secs());
        let term = bench.view().term;
        bench.ha.handle_handover(bench.now, G, B, term + 1);
        voices[0].group.primary = false;
        bench.run(ms(100), &mut voices);
    }
    assert_eq!(waits, [0, 10, 20, 40]);
}

#[test]
fn it_says_goodbye_after_handing_over() {
    let mut voices = [b().ready()];
    let mut bench = Bench::primary(&mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    bench.ha.shut_down(bench.now);
    let said = |bench: &Bench| heartbeat::decode(bench.last_heartbeat()).unwrap().0.goodbye;
    bench.run(ms(50), &mut voices);
    assert_eq!((bench.role(), said(&bench)), (Role::Primary, false));
    voices[0].primary(2);
    bench.run(ms(100), &mut voices);
    assert_eq!((bench.role(), said(&bench)), (Role::Standby, true));
    assert!(bench.view().draining);
    bench.run(ms(600), &mut voices);
    assert_eq!(bench.count(|o| *o == Output::Gone), 1);
    bench.outputs.clear();
    bench.run(ms(600), &mut []);
    // Replication may still hear a peer that this unit no longer hears.
    let said = bench.count(|output| !matches!(output, Output::Heard { .. }));
    assert_eq!(said, 0, "silent, and no takeover");
}

#[test]
fn a_unit_in_maintenance_hands_over_and_stays_standby() {
    let mut voices = [b().ready()];
    let mut bench = Bench::primary(&mut voices);
    let work = Maintenance {
        since: bench.now,
        until: Some(bench.now + ms(60_000)),
    };
    // No other unit has the sessions: it continues.
    bench.ha.set_maintenance(bench.now, Some(work));
    bench.run(ms(100), &mut voices);
    assert_eq!(bench.role(), Role::Primary);
    assert!(bench.ha.serves_in_maintenance());
    let says = |bench: &Bench| {
        heartbeat::decode(bench.last_heartbeat())
            .unwrap()
            .0
            .maintenance
    };
    assert!(says(&bench));
    bench.ha.handle_sync(bench.now, B, READY);
    bench.run(ms(50), &mut voices);
    assert_eq!(bench.count(|o| matches!(o, Output::Handover { .. })), 1);
    voices[0].primary(2);
    bench.run(ms(100), &mut voices);
    assert_eq!(bench.role(), Role::Standby);
    // Ports don't call it back.
    voices[0].ports_up = 1;
    bench.run(ms(3000), &mut voices);
    assert_eq!(bench.role(), Role::Standby);
    // It is the last one.
    bench.time_to_primary(ms(500), &mut []);
    // The other one has come back, and has all sessions.
    voices[0].group.primary = false;
    voices[0].ports_up = 2;
    bench.outputs.clear();
    bench.run(ms(2000), &mut voices);
    assert_eq!(bench.count(|o| matches!(o, Output::Handover { .. })), 1);
    bench.run(ms(60_000), &mut voices);
    assert_eq!(bench.ha.maintenance(), None, "its time is over");
    assert!(!says(&bench));
}

#[test]
fn nothing_is_handed_to_a_unit_in_maintenance_but_by_force() {
    let mut voices = [b().ready()];
    voices[0].maintenance = true;
    let mut bench = Bench::primary(&mut voices);
    bench.ha.handle_sync(bench.now, B, READY);
    let refused = bench.ha.request_failover(bench.now, G, Some(B));
    assert_eq!(refused, Err(HandoverError::InMaintenance("b".to_owned())));
    // It has more ports up, and this unit still serves.
    bench.ha.handle_ports(bench.now, &[true, false]);
    bench.run(ms(3000), &mut voices);
    assert_eq!(bench.role(), Role::Primary);
    assert_eq!(bench.count(|o| matches!(o, Output::Handover { .. })), 0);
    assert_eq!(bench.ha.force_failover(bench.now, G, Some(B)), Ok(()));
}

#[test]
fn without_a_successor_it_goes_at_once() {
    let mut bench = Bench::primary(&mut [b()]);
    bench.ha.shut_down(bench.now);
    assert_eq!(bench.role(), Role::Standby);
    bench.run(ms(60), &mut []);
    assert_eq!(bench.count(|o| *o == Output::Gone), 1);
}

#[test]
fn bad_heartbeats_are_counted_and_change_nothing() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    voices[0].primary(9);
    voices[0].sequence += 1;
    let good = voices[0].bytes();
    let mut foreign = good.clone();
    foreign[1] = 8;
    let stranger = Voice {
        name: "x",
        ..voices[0].clone()
    }
    .bytes();
    let cases = [
        (B, L, &good[..good.len() - 1], HeartbeatError::Truncated),
        (B, L, &foreign, HeartbeatError::ForeignCluster),
        (B, L, &stranger, HeartbeatError::WrongName),
        (C, L, &good, HeartbeatError::UnknownPeer),
        (B, LinkId(1), &good, HeartbeatError::UnknownPeer),
    ];
    for (peer, link, bytes, error) in cases {
        let before = bench.ha.rejected(error);
        assert_eq!(
            bench.ha.handle_heartbeat(bench.now, peer, link, bytes),
            Err(error)
        );
        assert_eq!(bench.ha.rejected(error), before + 1, "{}", error.name());
    }
    assert_eq!(bench.role(), Role::Primary);
}

#[test]
fn copies_and_late_heartbeats_of_a_former_process_are_no_news() {
    let mut voices = [b()];
    let mut bench = Bench::primary(&mut voices);
    let mut old = voices[0].clone();
    old.sequence += 1;
    old.primary(9);
    voices[0].boot_id = 3;
    voices[0].sequence = 0;
    bench.hear(&mut voices[0]);
    assert!(bench.has_event("b has restarted"));
    bench
        .ha
        .handle_heartbeat(bench.now, B, L, &old.bytes())
        .unwrap();
    assert_eq!(bench.role(), Role::Primary);
}

/// Datagrams overtake each other, also one by a data port those by a link: only the newest tells
/// what its sender is.
#[test]
fn an_overtaken_heartbeat_changes_nothing() {
    for by_link in [true, false] {
        let mut voices = [b()];
        let mut bench = Bench::primary(&mut voices);
        let mut overtaken = voices[0].clone();
        overtaken.sequence += 1;
        overtaken.primary(9);
        voices[0].sequence += 2;
        let newest = voices[0].bytes();
        let (header, records) = heartbeat::decode(&newest).unwrap();
        let now = bench.now;
        bench.ha.take_heartbeat(now, B, &header, records, by_link);
        bench
            .ha
            .handle_heartbeat(now, B, L, &overtaken.bytes())
            .unwrap();
        bench.run(ms(60), &mut voices);
        assert_eq!(bench.role(), Role::Primary);
        assert_eq!(bench.count(is_set_role), 0);
    }
}

#[test]
fn terms_at_their_end_do_not_wedge_the_cluster() {
    let mut voices = [b()];
    voices[0].primary(MAX_TERM);
    let mut bench = Bench::new(&["b"]);
    bench.run(ms(100), &mut voices);
    bench.ha.handle_handover(bench.now, G, B, MAX_TERM);
    assert_eq!((bench.role(), bench.view().term), (Role::Primary, MAX_TERM));
    voices[0].group.primary = false;
    voices[0].group.ready = true;
    bench.ha.handle_sync(bench.now, B, READY);
    bench.run(ms(1500), &mut voices);
    bench.ha.request_failover(bench.now, G, None).unwrap();
    assert_eq!(bench.role(), Role::Primary);
    voices[0].primary(MAX_TERM);
    bench.hear(&mut voices[0]);
    assert_eq!((bench.role(), bench.view().draining), (Role::Standby, true));
    assert!(bench.time_to_primary(ms(200), &mut []) > ms(0));
    assert_eq!(bench.view().term, MAX_TERM);
}

#[test]
fn round_trips_are_measured_without_the_time_spent_at_the_peer() {
    let mut bench = Bench::new(&["b"]);
    let sent = peer::clock(bench.now);
    bench.now = bench.now + ms(15);
    let header = Header {
        group_id: 7,
        goodbye: false,
        maintenance: false,
        ports_up: 2,
        boot_id: 2,
        sequence: 1,
        uptime: ms(0),
        interval: INTERVAL,
        clock: 77,
        echo: sent,
        echo_age: ms(12),
        applied: 0,
        name: "b",
        parts: 1,
    };
    let bytes = heartbeat::encode(&header, [].into_iter());
    bench.ha.handle_heartbeat(bench.now, B, L, &bytes).unwrap();
    let link = bench.ha.peer(bench.now, B).unwrap().links[0];
    assert!(link.connected && link.alive);
    assert_eq!(link.rtt, Some(ms(3)));
    let lie = Header {
        echo: u64::MAX,
        sequence: 2,
        ..header
    };
    let bytes = heartbeat::encode(&lie, [].into_iter());
    bench.ha.handle_heartbeat(bench.now, B, L, &bytes).unwrap();
    assert_eq!(bench.ha.peer(bench.now, B).unwrap().links[0].rtt, link.rtt);
}

#[test]
fn heartbeats_that_are_missing_are_counted_while_the_link_is_up() {
    let mut bench = Bench::standby(&mut [b()]);
    let before = bench.ha.peer(bench.now, B).unwrap().links[0].heartbeats;
    let mut voice = b();
    voice.sequence = 1000;
    let mut hear = |bench: &mut Bench, skipped: u64| {
        voice.sequence += skipped;
        bench.hear(&mut voice);
        bench.ha.peer(bench.now, B).unwrap().links[0].heartbeats
    };
    bench.ha.handle_link(bench.now, B, L, false);
    bench.ha.handle_link(bench.now, B, L, true);
    assert_eq!(hear(&mut bench, 0).lost, before.lost, "the link was down");
    assert_eq!(hear(&mut bench, 3).lost, before.lost + 3);
    let after = hear(&mut bench, 0);
    assert_eq!(after.lost, before.lost + 3);
    assert_eq!(after.received, before.received + 3);
    assert!(after.sent > 0);
}

#[test]
fn a_third_unit_leaves_the_takeover_to_the_better_one() {
    let mut voices = [b(), c().ready()];
    voices[1].group.priority = 200;
    let mut bench = Bench::standby(&mut voices);
    let [_, third] = &mut voices;
    bench.run(HOLD + PROBE_WAIT * 2, std::slice::from_mut(third));
    assert_eq!(bench.role(), Role::Standby);
    third.primary(6);
    bench.run(ms(1000), std::slice::from_mut(third));
    assert_eq!(
        (bench.count(is_set_role), bench.view().primary),
        (0, Some("c"))
    );
}

impl Bench {
    /// A turn that may end with a question to the witness.
    fn step(&mut self) {
        self.now = self.now + ms(1);
        self.ha.handle_wake(self.now);
        self.ha.handle_timeout(self.now);
        self.drain();
    }
}

/// A primary that hears nobody, and the question about its group that it has just asked.
fn asking() -> (Bench, u64) {
    let mut bench = Bench::primary(&mut [b()]);
    let witness = crate::config::Witness {
        endpoints: vec!["http://10.0.0.1:2379".to_owned()],
        ca: None,
        cert: None,
        key: None,
        user: None,
        password_file: None,
        prefix: "tandemgw".to_owned(),
        lease: ms(4000),
        timeout: ms(1000),
    };
    bench.ha.set_witness(bench.now, Some(&witness));
    bench.ha.open_witness();
    let mut number = None;
    for _ in 0..1000 {
        bench.step();
        let Some(ask) = bench.ha.witness_ask(0) else {
            continue;
        };
        if matches!(ask.wishes[..], [(G, LeaseWish::Hold(_))]) {
            number = Some(ask.number);
            break;
        }
        (bench.ha).handle_witness(bench.now, ask.number, Ok(&[]), ms(4000));
    }
    (bench, number.expect("it asks when it hears nobody"))
}

/// A lease lasts from the question on, and a quarter less than the witness says: its clock and that
/// of this unit go at different speeds, and the answer takes its time.
#[test]
fn a_lease_is_over_here_before_it_is_over_at_the_witness() {
    let (mut bench, number) = asking();
    (0..500).for_each(|_| bench.step());
    let holder = [(G, Some("a".to_owned()))];
    (bench.ha).handle_witness(bench.now, number, Ok(&holder), ms(4000));
    (0..2490).for_each(|_| bench.step());
    assert_eq!(bench.ha.lease_holder(bench.now, G), Some("a"));
    (0..20).for_each(|_| bench.step());
    assert_eq!(bench.ha.lease_holder(bench.now, G), None);
}

#[test]
fn a_primary_leaves_the_group_to_who_has_its_lease() {
    let (mut bench, number) = asking();
    assert_eq!(bench.role(), Role::Primary);
    let holder = [(G, Some("b".to_owned()))];
    (bench.ha).handle_witness(bench.now, number, Ok(&holder), ms(4000));
    assert_eq!(bench.role(), Role::Standby);
}

/// Who had a hint may be the only one that had it: the better unit notices the death a hold time
/// later, and then has to check. It may be dead as well.
#[test]
fn after_a_hint_the_better_unit_has_time_to_notice_the_death() {
    let mut voices = [b(), c().ready()];
    voices[1].group.priority = 200;
    let mut bench = Bench::standby(&mut voices);
    let [_, third] = &mut voices;
    bench.ha.handle_hint(bench.now, Hint::Ended { peer: B });
    bench.run(HOLD * 2, std::slice::from_mut(third));
    assert_eq!((bench.role(), bench.count(is_set_role)), (Role::Standby, 0));
    bench.time_to_primary(HOLD + PROBE_WAIT, std::slice::from_mut(third));
}

#[test]
fn outputs_are_bounded_though_nobody_drains_them() {
    let mut bench = Bench::new(&["b"]);
    for _ in 0..10_000 {
        bench.now = bench.now + INTERVAL;
        bench.ha.handle_wake(bench.now);
        bench.ha.handle_timeout(bench.now);
    }
    assert!(bench.ha.outputs.len() <= MAX_OUTPUTS + 1);
    let roles = bench
        .ha
        .outputs
        .iter()
        .filter(|output| is_set_role(output))
        .count();
    assert_eq!(roles, 1, "a role is never dropped");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a peer says: no panic, no busy loop, and in the end a primary that can be heard.
    #[test]
    fn a_hostile_peer_neither_wedges_nor_bloats(
        says in proptest::collection::vec(
            (any::<[bool; 6]>(), any::<[u8; 2]>(), any::<u32>(), any::<u64>(), 0..3_u64), 1..60)
    ) {
        let mut bench = Bench::new(&["b"]);
        for (flags, [priority, ports_up], term, uptime, boot_id) in says {
            let [primary, ready, override_, asks, goodbye, sync] = flags;
            let group = GroupState {
                known: true, primary, ready, override_, asks, priority,
                term: u64::from(term), sees: term, ..GroupState::default()
            };
            let uptime = Duration::from_millis(uptime);
            let sequence = bench.now.as_nanos();
            let mut voice = Voice { goodbye, ports_up, uptime, boot_id, group, sequence, ..b() };
            bench.hear(&mut voice);
            bench.ha.handle_sync(bench.now, B, if sync { READY } else { SyncState::default() });
            bench.ha.handle_handover(bench.now, G, B, uptime.as_nanos() as u64);
            bench.run(ms(7), &mut []);
            bench.outputs.clear();
        }
        bench.run(ms(2000), &mut []);
        prop_assert_eq!(bench.role(), Role::Primary, "alone in the end");
    }
}

/// Who is primary of a group that is cut gets the slots to which no link leads: it holds them,
/// although another unit would come first.
#[test]
fn the_primary_of_a_group_that_is_cut_holds_its_slots() {
    let mut config = config("a", &["b", "c", "d"], 2);
    config.groups[1].part_of = Some(G);
    config.groups[0].slots = vec![GroupId(1)];
    config.ha.as_mut().unwrap().copies = 1;
    let slot = GroupId(1);
    let mut bench = Bench::with(&config);
    let mut voices = [b(), c(), Voice::new(PeerId(2), "d")];
    for _ in 0..100 {
        bench.now = bench.now + INTERVAL;
        bench.ha.handle_wake(bench.now);
        for voice in &mut voices {
            voice.sequence += 1;
            let is_primary = voice.id == B;
            let of_slot = GroupState {
                primary: is_primary,
                ready: is_primary,
                term: u64::from(is_primary),
                priority: 200,
                ..voice.group
            };
            let bytes = voice.bytes_about(&[("g0", &voice.group), ("g1", &of_slot)]);
            let heard = bench.ha.handle_heartbeat(bench.now, voice.id, L, &bytes);
            heard.unwrap();
        }
        bench.tick();
    }
    assert_eq!(bench.role(), Role::Primary);
    assert_eq!(bench.ha.role(slot), Role::Standby);
    let units = [None, Some(B), Some(C), Some(PeerId(2))];
    let held = units.map(|unit| bench.ha.is_holder(bench.now, slot, unit));
    assert_eq!(held, [true, true, false, false]);
}

/// A slot that its group is no longer cut into goes to who is primary of the group, and stays there
/// whoever has a higher priority. It stays with a unit that is primary of another part of the group
/// and so can move the sessions there itself. One that its group is cut into goes by priority.
#[test]
fn a_former_slot_goes_to_the_primary_of_its_group() {
    // Whether it is a former slot, and whether this unit has another one; the unit that is primary
    // of the whole; who gets the slot.
    for (is_former, has_other, whole, wanted) in [
        (true, false, Some(B), Some(B)),
        (true, false, None, None),
        (true, true, Some(B), None),
        (false, false, Some(B), Some(C)),
    ] {
        let mut config = config("a", &["b", "c"], if has_other { 3 } else { 2 });
        for group in &mut config.groups[1..] {
            group.part_of = Some(G);
        }
        config.groups[0].slots = match (is_former, has_other) {
            (true, false) => vec![],
            (true, true) => vec![GroupId(2)],
            (false, _) => vec![GroupId(1)],
        };
        let to = slot_goes_to(&config, whole);
        assert_eq!(
            to, wanted,
            "former {is_former}, another {has_other}, whole {whole:?}"
        );
    }
}

/// Who gets the slot `g1` that this unit has become primary of, with all others of its group but
/// the whole.
fn slot_goes_to(config: &Config, whole: Option<PeerId>) -> Option<PeerId> {
    let mut bench = Bench::with(config);
    for peer in [B, C] {
        bench.ha.handle_sync(bench.now, peer, READY);
    }
    let mut voices = [b(), c()];
    for round in 0..200 {
        bench.now = bench.now + INTERVAL;
        bench.ha.handle_wake(bench.now);
        for voice in &mut voices {
            voice.sequence += 1;
            let primary = whole == Some(voice.id);
            let of_whole = GroupState {
                primary,
                term: u64::from(primary),
                ready: true,
                ..voice.group
            };
            let of_slot = GroupState {
                asks: round > 150 && voice.id == C,
                priority: 200,
                ready: true,
                ..voice.group
            };
            let of_other = GroupState {
                asks: false,
                ..of_slot
            };
            let groups = [("g0", &of_whole), ("g1", &of_slot), ("g2", &of_other)];
            let bytes = voice.bytes_about(&groups[..config.groups.len()]);
            let heard = bench.ha.handle_heartbeat(bench.now, voice.id, L, &bytes);
            heard.unwrap();
        }
        bench.tick();
        if round == 50 {
            for peer in [B, C] {
                bench.ha.handle_sync(bench.now, peer, READY);
            }
        }
    }
    bench.outputs.iter().find_map(|output| match output {
        Output::Handover { group, to, .. } if *group == GroupId(1) => Some(*to),
        _ => None,
    })
}
