//! Which sessions the gateway gives to the fast path, what ends their entries, and what the gateway
//! learns from it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tandemgw_core::capture::{Filter, MAX_SNAPSHOT, Options};
use tandemgw_core::event::{KernelLookup, Route, RouteChange, Verdict};
use tandemgw_core::fast_path::{Memory, SessionCell};
use tandemgw_core::flow::{Direction, GroupId, PortId};
use tandemgw_core::gateway::Role;

use testkit::lab::{CONFIG, LAN, Lab, Net, WAN, link, route, to_port};
use testkit::packets::{ACK, FIN_ACK, Pkt, SYN, SYN_ACK, tcp, udp};
use testkit::pair::Pair;

const ROOM: usize = 4;

/// A gateway whose ports are all in the fast path.
struct Fast {
    lab: Lab,
    memory: Memory,
}

impl Fast {
    fn new() -> Fast {
        let mut lab = Lab::of(CONFIG);
        let memory = Memory::unshared(1, ROOM);
        lab.gateway.use_fast_path(memory, true);
        for (number, port) in [(2, LAN), (3, WAN)] {
            lab.gateway.set_fast_interface(port, Some(number));
        }
        Fast { lab, memory }
    }

    fn poll(&mut self) {
        self.lab.gateway.poll_fast_path(self.lab.now, true);
    }

    /// How many flows have had an entry so far.
    fn entered(&self) -> u64 {
        2 * self.lab.gateway.fast_counters().entered
    }

    /// How many flows have an entry in force: as `program.bpf.c` decides it.
    fn in_force(&self) -> usize {
        let is_in_force = |(cell, direction): &(&SessionCell, Direction)| {
            let found = self.memory.find(&cell.flow(*direction));
            let place = found.filter(|(_, found)| found == direction);
            let is_found = place.is_some_and(|(place, _)| {
                std::ptr::eq(*cell, &raw const self.memory.sessions[place as usize])
            });
            let group = &self.memory.groups[usize::from(cell.group().0)];
            is_found
                && cell.is_in_force()
                && group.epoch() == cell.epoch()
                && group.lease.load(Ordering::Relaxed) >= self.lab.now.as_nanos()
        };
        let cells = self.memory.sessions.iter();
        let flows = cells.flat_map(|cell| Direction::ALL.map(|direction| (cell, direction)));
        flows.filter(is_in_force).count()
    }

    #[track_caller]
    fn send(&mut self, port: PortId, packet: &Pkt) {
        assert_eq!(self.lab.send(port, packet).verdict, Verdict::Forward);
        self.poll();
    }

    /// Sends queries and answers until the session has entries.
    fn converse(&mut self, net: &Net, port: u16) -> Pkt {
        let query = udp((net.host, port), (net.server, 53));
        let answer = query.clone().src(net.wan_vip).answer();
        for _ in 0..16 {
            self.send(LAN, &query);
            self.send(WAN, &answer);
        }
        query
    }

    fn pass(&mut self, duration: Duration) {
        self.lab.pass(duration);
        self.poll();
    }
}

#[test]
fn a_session_earns_its_entries_by_packets_both_ways() {
    for net in Net::both() {
        let mut fast = Fast::new();
        let query = udp((net.host, 4000), (net.server, 53));
        for _ in 0..100 {
            fast.send(LAN, &query);
        }
        assert_eq!(fast.entered(), 0, "nobody has answered");
        fast.send(WAN, &query.clone().src(net.wan_vip).answer());
        for _ in 0..16 {
            fast.send(LAN, &query);
        }
        assert_eq!((fast.entered(), fast.in_force()), (2, 2));
        fast.converse(&net, 5000);
        assert_eq!((fast.entered(), fast.in_force()), (4, 4));
        assert_eq!(fast.lab.gateway.fast_sessions(), 2);
    }
}

/// Those that wait would be overtaken; but they may never end.
#[test]
fn entries_wait_until_the_process_has_no_packets() {
    let net = Net::both()[0];
    let mut fast = Fast::new();
    let query = udp((net.host, 4000), (net.server, 53));
    let answer = query.clone().src(net.wan_vip).answer();
    for _ in 0..16 {
        fast.lab.send(LAN, &query);
        fast.lab.send(WAN, &answer);
    }
    let mut entered = |after: u64, is_drained| {
        let now = fast.lab.now + Duration::from_millis(after);
        let before = fast.lab.gateway.fast_counters().entered;
        fast.lab.gateway.poll_fast_path(now, is_drained);
        fast.lab.gateway.fast_counters().entered - before
    };
    assert_eq!([entered(0, false), entered(9, false)], [0, 0]);
    assert_eq!([entered(10, false), entered(10, true)], [1, 0]);
}

#[test]
fn what_concerns_a_session_ends_its_entries_at_once() {
    type End = fn(&mut Fast);
    let ends: [(&str, End); 8] = [
        ("bar", |fast| {
            let barred = vec![Some("of a test".to_owned()), None];
            fast.lab.gateway.bar_fast_path(barred);
        }),
        ("role", |fast| {
            let lab = &mut fast.lab;
            lab.gateway.set_role(lab.now, GroupId(0), Role::Standby);
        }),
        ("capture", |fast| {
            let options = Options {
                filter: Filter::parse(&[], fast.lab.gateway.config()).unwrap(),
                snapshot: MAX_SNAPSHOT,
                count: u64::MAX,
            };
            fast.lab.gateway.start_capture(fast.lab.now, options);
        }),
        ("clear", |fast| {
            assert!(fast.lab.gateway.clear_session(fast.lab.now, 0));
        }),
        ("link", |fast| {
            let down = tandemgw_core::event::LinkState {
                up: false,
                ..link(WAN)
            };
            fast.lab.gateway.handle_link(fast.lab.now, WAN, down);
        }),
        ("detour", |fast| {
            let what = Some("elsewhere".to_owned());
            fast.lab.gateway.handle_detour(fast.lab.now, LAN, what);
        }),
        ("interface", |fast| {
            fast.lab.gateway.set_fast_interface(LAN, None)
        }),
        ("reload", |fast| {
            let mut config = fast.lab.gateway.config().clone();
            config.policies.retain(|policy| policy.name != "dmz");
            fast.lab.gateway.reload(fast.lab.now, &config).unwrap();
        }),
    ];
    for net in Net::both() {
        for (what, end) in ends {
            let mut fast = Fast::new();
            fast.converse(&net, 4000);
            assert_eq!(fast.in_force(), 2, "before {what}");
            end(&mut fast);
            assert_eq!(fast.in_force(), 0, "after {what}");
            fast.lab.gateway.check_invariants();
        }
    }
}

/// It chooses among several next hops, or encapsulates.
#[test]
fn routes_by_which_the_kernel_does_more_have_no_fast_path() {
    for net in Net::both() {
        let mut fast = Fast::new();
        fast.converse(&net, 4000);
        assert_eq!(fast.in_force(), 2);
        let length = if net.server.is_v4() { 24 } else { 48 };
        let route = Route {
            is_special: true,
            ..route(&format!("{}/{length}", net.server), to_port(WAN))
        };
        let old = RouteChange::Remove(Route {
            is_special: false,
            ..route.clone()
        });
        fast.lab.gateway.handle_route(old);
        fast.lab.gateway.handle_route(RouteChange::Add(route));
        fast.lab.settle();
        fast.pass(Duration::from_millis(1100));
        assert_eq!(fast.in_force(), 0);
        fast.converse(&net, 5000);
        assert_eq!(fast.in_force(), 0);
    }
}

/// The process hears from the kernel that a host is gone, and its sender is told.
#[test]
fn a_next_hop_that_does_not_answer_takes_its_sessions_out() {
    for net in Net::both() {
        let mut fast = Fast::new();
        let query = fast.converse(&net, 4000);
        let tell = |fast: &mut Fast, lookup| {
            let lab = &mut fast.lab;
            lab.gateway
                .handle_kernel_lookup(lab.now, WAN, net.server, lookup);
        };
        tell(&mut fast, KernelLookup::Missed);
        fast.pass(Duration::from_millis(1100));
        assert_eq!(fast.in_force(), 0);
        for _ in 0..32 {
            fast.send(LAN, &query);
        }
        assert_eq!(fast.in_force(), 0);
        tell(&mut fast, KernelLookup::Found);
        fast.converse(&net, 4000);
        assert_eq!(fast.in_force(), 2);
    }
}

/// A lease is renewed by a gateway that runs, and by no other.
#[test]
fn entries_do_not_outlive_a_gateway_that_hangs() {
    let net = Net::both()[0];
    let mut fast = Fast::new();
    let query = fast.converse(&net, 4000);
    for _ in 0..50 {
        fast.pass(Duration::from_millis(200));
        assert_eq!(fast.in_force(), 2);
    }
    fast.lab.now = fast.lab.now + Duration::from_millis(1101);
    assert_eq!(fast.in_force(), 0);
    fast.send(LAN, &query);
}

/// What the program has counted is the session's, at once in a listing, and keeps it alive.
#[test]
fn what_the_fast_path_forwards_counts() {
    for net in Net::both() {
        let mut fast = Fast::new();
        fast.converse(&net, 4000);
        let views = |fast: &Fast| {
            let (page, _) = fast.lab.gateway.page(0, u32::MAX, fast.lab.now);
            page.collect::<Vec<_>>()
        };
        let before = views(&fast)[0].packets;
        let forwarded = fast.lab.gateway.counters().forwarded;
        let mut total = 0;
        for _ in 0..600 {
            let cell = &fast
                .memory
                .sessions
                .iter()
                .find(|cell| cell.serial.load(Ordering::Relaxed) != 0);
            let cell = cell.unwrap();
            cell.last.store(fast.lab.now.as_nanos(), Ordering::Relaxed);
            cell.sides[0].packets.fetch_add(3, Ordering::Relaxed);
            cell.sides[0].bytes.fetch_add(300, Ordering::Relaxed);
            total += 3;
            let [view] = &views(&fast)[..] else { panic!() };
            assert_eq!(view.packets, [before[0] + total, before[1]]);
            assert!(view.offloaded);
            fast.pass(Duration::from_secs(1));
        }
        assert_eq!(fast.lab.gateway.counters().forwarded, forwarded + total);
        assert_eq!(fast.lab.gateway.fast_counters().packets, total);
        fast.pass(Duration::from_secs(400));
        assert_eq!(fast.lab.sessions(), 0, "and then it expires");
        assert_eq!(fast.in_force(), 0);
    }
}

/// A packet that the program forwards in the last moment counts, however long ago the gateway has
/// looked.
#[test]
fn a_session_in_use_does_not_expire_between_two_looks() {
    let net = Net::both()[0];
    let mut expired = 0;
    for moment in 0..20 {
        let mut fast = Fast::new();
        fast.converse(&net, 4000);
        fast.pass(Duration::from_millis(299_000 + moment * 100));
        if fast.lab.sessions() == 0 {
            expired += 1;
            continue;
        }
        let mut cells = fast.memory.sessions.iter();
        let cell = cells.find(|cell| cell.serial.load(Ordering::Relaxed) != 0);
        let cell = cell.expect("it has entries");
        cell.last.store(fast.lab.now.as_nanos(), Ordering::Relaxed);
        cell.sides[0].packets.fetch_add(1, Ordering::Relaxed);
        cell.sides[0].bytes.fetch_add(100, Ordering::Relaxed);
        fast.lab.now = fast.lab.now + Duration::from_millis(2000);
        fast.lab.gateway.handle_timeout(fast.lab.now);
        assert_eq!(fast.lab.sessions(), 1, "in use, {moment}");
    }
    assert!(expired > 0, "the moments are around the end of its time");
}

/// A stream moves the windows far beyond what the gateway has seen; its end is still believed, and
/// a forged end is not.
#[test]
fn a_connection_ends_after_the_fast_path_has_moved_its_numbers() {
    for net in Net::both() {
        let mut fast = Fast::new();
        let out = tcp((net.host, 4000), (net.server, 443), SYN, 100, 0);
        let back = out.clone().src(net.wan_vip).answer();
        fast.send(LAN, &out);
        fast.send(WAN, &back.clone().segment(SYN_ACK, 900, 101));
        for _ in 0..40 {
            fast.send(LAN, &out.clone().segment(ACK, 101, 901));
        }
        assert_eq!(fast.in_force(), 2);
        let cell = fast
            .memory
            .sessions
            .iter()
            .find(|cell| cell.serial.load(Ordering::Relaxed) != 0);
        let cell = cell.unwrap();
        let end = 901_u32.wrapping_add(3_000_000_000);
        for step in 1..=6_u32 {
            let seen = 901_u32.wrapping_add(step.wrapping_mul(500_000_000));
            cell.sides[1].end.store(seen, Ordering::Relaxed);
            cell.sides[1].acked.store(seen, Ordering::Relaxed);
            cell.sides[1]
                .bytes
                .fetch_add(500_000_000, Ordering::Relaxed);
            cell.sides[1].packets.fetch_add(10_000, Ordering::Relaxed);
            cell.last.store(fast.lab.now.as_nanos(), Ordering::Relaxed);
            // The end comes before the gateway has looked at the last numbers by itself.
            if step < 6 {
                fast.pass(Duration::from_millis(1200));
            }
        }
        let forged = back.clone().segment(FIN_ACK, 901, 101);
        fast.lab.send(WAN, &forged);
        assert_eq!(fast.lab.state(), "established");
        fast.send(LAN, &out.clone().segment(FIN_ACK, 101, end));
        assert_eq!(fast.in_force(), 0, "its end is the gateway's");
        fast.send(WAN, &back.clone().segment(FIN_ACK, end, 102));
        fast.send(LAN, &out.clone().segment(ACK, 102, end.wrapping_add(1)));
        assert_eq!(fast.lab.state(), "time-wait");
        fast.lab.gateway.check_invariants();
    }
}

/// Places are bounded; sessions that are quiet leave first.
#[test]
fn quiet_sessions_make_room() {
    let net = Net::both()[0];
    let mut fast = Fast::new();
    for port in 0..6 {
        fast.converse(&net, 4000 + port);
    }
    assert_eq!(fast.lab.gateway.fast_sessions(), ROOM);
    assert!(fast.lab.gateway.fast_counters().no_room > 0);
    fast.pass(Duration::from_secs(4));
    fast.pass(Duration::from_secs(1));
    let left = fast.lab.gateway.fast_sessions();
    assert!(left < ROOM, "{left}");
    assert_eq!(fast.in_force(), 2 * left);
    fast.converse(&net, 5000);
    assert_eq!(fast.in_force(), 2 * (left + 1));
}

/// With a guarantee, a session that the kernel forwards is one that a peer holds.
#[test]
fn a_session_is_not_entered_before_a_peer_holds_it() {
    let name = "name = \"lan-out\"\n";
    let guaranteed = format!("{name}pickup-guarantee = \"bounded\"\n");
    let config = CONFIG.replacen(name, &guaranteed, 1);
    for net in Net::both() {
        let mut pair = Pair::of_config(&config);
        pair.units[0].use_fast_path(Memory::unshared(1, ROOM), true);
        for (number, port) in [(2, LAN), (3, WAN)] {
            pair.units[0].set_fast_interface(port, Some(number));
        }
        let query = udp((net.host, 4000), (net.server, 53));
        let answer = query.clone().src(net.wan_vip).answer();
        assert_eq!(pair.send(0, LAN, &query), Verdict::Consumed, "it waits");
        // The wait ends, and the peer has been told nothing: the stream stands still.
        pair.now = pair.now + Duration::from_millis(20);
        pair.units[0].handle_timeout(pair.now);
        let converse = |pair: &mut Pair| {
            for _ in 0..16 {
                assert_eq!(pair.send(0, LAN, &query), Verdict::Forward);
                assert_eq!(pair.send(0, WAN, &answer), Verdict::Forward);
            }
            pair.units[0].poll_fast_path(pair.now, true);
            pair.units[0].fast_counters().entered
        };
        assert_eq!(converse(&mut pair), 0);
        pair.exchange();
        assert_eq!(converse(&mut pair), 1);
    }
}
