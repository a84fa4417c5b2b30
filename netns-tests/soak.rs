//! Random changes of the machines of a pair under traffic: `scripts/soak MINUTES`.
//!
//! Each round does one to three things to one of the two machines, undoes what an administrator
//! would have to undo, and asks three oracles:
//!
//! - *nothing leaked*: no packet came untranslated out on either side, in either family, and no
//!   kernel told hosts by itself what became of theirs;
//! - *recovered*: both families pass within 2 s after the last change;
//! - *sessions live*: a TCP connection of each family that was opened at the start still answers.
//!
//! `TANDEMGW_SEED` replays a run, `TANDEMGW_SOAK_SECONDS` says how long it takes.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tandemgw_core::random::SplitMix64;
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

use crate::capture::Capture;
use crate::interference::{LEAKED_IN, LEAKED_OUT, forward_everywhere, pings};
use crate::kernel_errors::SAID;
use crate::lab::{LAN1, SERVER, bracketed};
use crate::pair::Pair;

const RECOVERED_WITHIN: Duration = Duration::from_secs(2);

/// The layers of protection: of these two, at most one is hurt in a round, for each holds without
/// the other, and nothing holds without both.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Steering,
    Barrier,
    Neither,
}

/// Something that is done to a machine.
struct Change {
    part: Part,
    script: &'static str,
    /// The command with which an administrator undoes it.
    undo: &'static str,
}

const fn change(part: Part, script: &'static str, undo: &'static str) -> Change {
    Change { part, script, undo }
}

/// The shell scripts run in the namespace of the machine.
const CHANGES: &[Change] = &[
    // Routes.
    change(Part::Steering, "ip route flush table 7700", ""),
    change(Part::Steering, "ip -6 route flush table 7701", ""),
    change(
        Part::Steering,
        "ip route flush proto 77; ip -6 route flush proto 77",
        "",
    ),
    change(Part::Steering, "ip route flush dev tgw-lan", ""),
    change(
        Part::Steering,
        "ip route del blackhole default table 7700 metric 4294967295; ip -6 route del blackhole default table 7701 metric 4294967295",
        "",
    ),
    change(
        Part::Steering,
        "ip route add 10.77.2.0/24 dev eth1 table 7700",
        "",
    ),
    change(
        Part::Steering,
        "ip -6 route add fd77:1::/64 dev eth0 table 7701",
        "",
    ),
    change(
        Part::Steering,
        "ip route add default dev eth1 table 7700 proto 77",
        "",
    ),
    // Rules.
    change(Part::Steering, "ip rule flush", ""),
    change(Part::Steering, "ip -6 rule flush", ""),
    change(
        Part::Steering,
        "ip rule del priority 7700; ip -6 rule del priority 7701",
        "",
    ),
    change(
        Part::Steering,
        "ip rule add lookup main priority 5",
        "ip rule del priority 5",
    ),
    // The packet filter.
    change(Part::Barrier, "nft flush ruleset", ""),
    change(
        Part::Barrier,
        "for table in $(nft list tables inet | cut -d' ' -f3); do nft flush chain inet $table forward; done",
        "",
    ),
    change(
        Part::Barrier,
        "for n in 1 2 3 4 5; do nft flush ruleset; sleep 0.02; done",
        "",
    ),
    change(
        Part::Neither,
        "nft 'add table inet other; add chain inet other f { type filter hook forward priority 0; }; add rule inet other f accept'",
        "nft delete table inet other",
    ),
    change(
        Part::Neither,
        "nft 'add table ip6 other6; add chain ip6 other6 p { type filter hook prerouting priority -300; }; add rule ip6 other6 p iifname eth0 drop'",
        "nft delete table ip6 other6",
    ),
    change(
        Part::Neither,
        "nft 'add table inet closed; add chain inet closed f { type filter hook forward priority 0; policy drop; }'",
        "nft delete table inet closed",
    ),
    change(
        Part::Neither,
        "nft 'add table netdev other; add chain netdev other o { type filter hook egress device eth1 priority 0; policy drop; }'",
        "nft delete table netdev other",
    ),
    change(
        Part::Neither,
        "nft 'add table arp other; add chain arp other i { type filter hook input priority 0; policy drop; }'",
        "nft delete table arp other",
    ),
    // IPsec.
    change(
        Part::Neither,
        "ip xfrm policy add dir fwd src 10.77.0.0/16 dst 10.77.0.0/16 action block",
        "ip xfrm policy flush",
    ),
    change(
        Part::Neither,
        "ip xfrm policy add dir out src fd77::/16 dst fd77::/16 action block",
        "ip xfrm policy flush",
    ),
    // TUN devices.
    change(Part::Neither, "ip link set tgw-lan down", ""),
    change(
        Part::Neither,
        "ip link set tgw-wan down; ip link set tgw-wan up",
        "",
    ),
    change(Part::Neither, "ip link set tgw-lan name tgw-else", ""),
    change(Part::Neither, "ip link set tgw-wan mtu 576", ""),
    change(Part::Neither, "ip link del tgw-lan", ""),
    change(
        Part::Neither,
        "ip link del tgw-wan; ip link del tgw-lan",
        "",
    ),
    change(Part::Neither, "ip addr flush dev tgw-lan", ""),
    // Ports.
    change(
        Part::Steering,
        "ip link set eth0 name lan0",
        "ip link set lan0 name eth0",
    ),
    change(
        Part::Steering,
        "ip link set eth1 name wan0",
        "ip link set wan0 name eth1",
    ),
    change(
        Part::Steering,
        "ip link set eth0 name x; ip link set eth1 name eth0; ip link set x name eth1",
        "ip link set eth0 name x; ip link set eth1 name eth0; ip link set x name eth1",
    ),
    change(
        Part::Neither,
        "ip link set eth0 down",
        "ip link set eth0 up",
    ),
    change(
        Part::Neither,
        "ip link set eth1 down",
        "ip link set eth1 up",
    ),
    change(
        Part::Steering,
        "ip link add br9 type bridge; ip link set br9 up; ip link set eth0 master br9",
        "ip link del br9",
    ),
    change(
        Part::Steering,
        "ip link add br9 type bridge; ip link set br9 up; ip link set eth0 master br9; ip link set eth1 master br9",
        "ip link del br9",
    ),
    change(
        Part::Steering,
        "for n in 0 1; do ip link add br$n type bridge; ip link set br$n up; ip link set eth$n master br$n; done",
        "ip link del br0; ip link del br1",
    ),
    change(
        Part::Steering,
        "for n in 0 1; do ip link add link eth$n name mv$n type macvlan mode passthru; ip link set mv$n up; done",
        "ip link del mv0; ip link del mv1",
    ),
    change(Part::Neither, "ip link set tgw-wan txqueuelen 0", ""),
    // Addresses.
    change(
        Part::Neither,
        "ip addr flush dev eth0 scope global",
        "addresses",
    ),
    change(
        Part::Neither,
        "ip -4 addr flush dev eth1 scope global",
        "addresses",
    ),
    change(Part::Neither, "ip neigh flush all", ""),
    // Parameters.
    change(
        Part::Neither,
        "echo 1 > /proc/sys/net/ipv4/conf/eth0/proxy_arp",
        "",
    ),
    change(
        Part::Neither,
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    ),
    change(
        Part::Neither,
        "echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding",
        "",
    ),
    change(
        Part::Neither,
        "echo 0 > /proc/sys/net/ipv6/conf/tgw-wan/force_forwarding",
        "",
    ),
    change(
        Part::Neither,
        "echo 1 > /proc/sys/net/ipv6/conf/tgw-lan/disable_ipv6",
        "",
    ),
    change(
        Part::Neither,
        "echo 1 > /proc/sys/net/ipv4/conf/tgw-lan/rp_filter",
        "",
    ),
    change(
        Part::Neither,
        "echo 0 > /proc/sys/net/ipv4/conf/tgw-wan/accept_local",
        "",
    ),
    change(
        Part::Neither,
        "echo 2 > /proc/sys/net/ipv4/conf/all/rp_filter",
        "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter",
    ),
    // Routes and addresses that lead the packets of hosts elsewhere, or nowhere.
    change(
        Part::Neither,
        "ip route del 10.77.2.0/24; ip -6 route del fd77:1::/64",
        "",
    ),
    change(Part::Neither, "ip addr add 10.77.1.50/24 dev tgw-lan", ""),
    change(
        Part::Neither,
        "echo 1 > /proc/sys/net/ipv4/conf/tgw-wan/route_localnet",
        "",
    ),
    // Rules that stop packets.
    change(
        Part::Neither,
        "tc qdisc replace dev eth1 root pfifo limit 0",
        "tc qdisc del dev eth1 root",
    ),
    change(
        Part::Neither,
        "tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress bpf da bytecode '1,6 0 0 2'",
        "tc qdisc del dev eth0 clsact",
    ),
    // Rules that lead packets elsewhere.
    change(
        Part::Neither,
        "ip route add local 10.77.2.1 dev lo table local",
        "ip route del local 10.77.2.1 dev lo table local",
    ),
    change(
        Part::Steering,
        "ip rule add priority 100 iif eth0 lookup main",
        "ip rule del priority 100",
    ),
    change(
        Part::Neither,
        "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter",
        "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter",
    ),
    change(
        Part::Neither,
        "ip link set eth1 arp off",
        "ip link set eth1 arp on",
    ),
    change(
        Part::Neither,
        "ip addr flush dev eth1; ip neigh flush all",
        "addresses",
    ),
    change(
        Part::Neither,
        "echo 0 > /proc/sys/net/ipv6/neigh/eth0/mcast_solicit",
        "",
    ),
    change(
        Part::Neither,
        "echo 1 > /proc/sys/net/ipv6/conf/eth1/disable_ipv6",
        "addresses",
    ),
    change(
        Part::Steering,
        "unshare --net sleep 9 & holder=$!; sleep 0.1; ip link set eth1 netns $holder; sleep 0.1
        nsenter -t $holder -n ip link set eth1 netns $$; kill $holder; ip link set eth1 up",
        "addresses",
    ),
    // The process. An end in good order is not among it: the machine then forwards as it did
    // before.
    change(Part::Neither, KILL, RESTART),
    change(Part::Neither, KILL, RESTART),
    change(Part::Neither, PAUSE, ""),
];

/// Says what a script waits for that does not end: it may be the tool, we, or a lock of the kernel.
const SLOW: &str = "(
    sleep 10 > /dev/null
    for pid in $(pgrep -x 'nft|ip|sh'); do
        echo slow: $(tr '\\0' ' ' < /proc/$pid/cmdline) state $(cut -d' ' -f3 /proc/$pid/stat) in \
            $(cat /proc/$pid/wchan) $(cat /proc/$pid/stack)
    done
) 2> /dev/null & slow=$!";

/// Not scripts, but signals.
const KILL: &str = "(kill)";
const PAUSE: &str = "(pause)";
const RESTART: &str = "(restart)";

#[test]
fn machines_that_change_at_random_leak_nothing_and_recover() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed: u64 = number("TANDEMGW_SEED").unwrap_or(1);
    let time = Duration::from_secs(number("TANDEMGW_SOAK_SECONDS").unwrap_or(15));
    println!("soak: seed {seed}, {} s", time.as_secs());
    let mut soak = Soak::begin();
    let (mut random, begin) = (SplitMix64(seed), Instant::now());
    let mut rounds = 0;
    while begin.elapsed() < time {
        rounds += 1;
        soak.round(rounds, &mut random);
    }
    println!("soak: {rounds} rounds, seed {seed}");
    soak.end();
}

struct Soak {
    pair: Pair,
    lines: Vec<Line>,
    leaks: [Capture; 4],
    _pings: Vec<Process>,
}

impl Soak {
    fn begin() -> Soak {
        let mut pair = Pair::new();
        for unit in [&pair.lab.unit, &pair.b] {
            forward_everywhere(&unit.ns);
        }
        pair.start();
        // Whichever of the two machines carries a leak.
        for (network, gateways) in [
            ("10.77.1.0/24", ["10.77.2.2", "10.77.2.3"]),
            ("fd77:1::/64", ["fd77:2::2", "fd77:2::3"]),
        ] {
            let [a, b] = gateways;
            let hops = format!("nexthop via {a} nexthop via {b}");
            pair.lab
                .server
                .run(&format!("ip route add {network} {hops}"));
        }
        // Where the barrier is gone for a moment, the kernel takes neighbour discovery for a
        // virtual address for a packet beyond its scope. No session hears of that.
        let said = format!("({SAID}) and not (icmp6 and ip6[40] == 1 and ip6[41] == 2)");
        let leaks = [
            Capture::start(&pair.lab.server, "eth0", LEAKED_OUT),
            Capture::start(&pair.lab.lan1, "eth0", LEAKED_IN),
            Capture::start(&pair.lab.server, "eth0", &said),
            Capture::start(&pair.lab.lan1, "eth0", &said),
        ];
        let outward = SERVER
            .iter()
            .flat_map(|server| pings(&pair.lab.lan1, server));
        let inward = LAN1.iter().flat_map(|host| pings(&pair.lab.server, host));
        let pings = outward.chain(inward).collect();
        let lines = SERVER
            .iter()
            .map(|server| Line::open(&pair.lab.server, &pair.lab.lan1, server))
            .collect();
        let mut soak = Soak {
            pair,
            lines,
            leaks,
            _pings: pings,
        };
        soak.ask("at first");
        soak
    }

    /// One to three changes of one machine, and what undoes them.
    fn round(&mut self, number: u32, random: &mut SplitMix64) {
        let on_a = random.below(3) > 0;
        let mut chosen: Vec<&Change> = Vec::new();
        for _ in 0..1 + random.below(3) {
            let change = &CHANGES[random.below(CHANGES.len())];
            if chosen.iter().all(|other| may_meet(other, change)) {
                chosen.push(change);
            }
        }
        let name = if on_a { "gw-a" } else { "gw-b" };
        let scripts: Vec<&str> = chosen.iter().map(|change| change.script).collect();
        let when = format!("round {number} on {name}: {}", scripts.join(" | "));
        println!("{when}");
        for change in &chosen {
            self.perform(on_a, change.script);
            thread::sleep(Duration::from_millis(random.below(120) as u64));
        }
        for change in chosen.iter().rev().filter(|change| !change.undo.is_empty()) {
            self.perform(on_a, change.undo);
        }
        self.ask(&when);
        // The next one needs a pair of which one is enough.
        wait_until(&format!("after {when} both units are well"), || {
            let units = [self.pair.a(), self.pair.b()];
            units.iter().filter(|unit| unit.is_primary()).count() == 1
                && units.iter().all(|unit| {
                    let (group, peer) = (unit.group(), unit.peer());
                    group["ready"] == true
                        && peer["in_sync"] == true
                        && peer["digest_equal"] == true
                })
        });
    }

    fn perform(&mut self, on_a: bool, script: &str) {
        let unit = match on_a {
            true => &mut self.pair.lab.unit,
            false => &mut self.pair.b,
        };
        match script {
            KILL => unit.kill(),
            RESTART => unit.start(),
            PAUSE => {
                unit.signal(libc::SIGSTOP);
                thread::sleep(Duration::from_millis(60));
                unit.signal(libc::SIGCONT);
            }
            "addresses" => {
                let host = if on_a { 2 } else { 3 };
                // IPv6 may be off until the gateway has noticed.
                for (n, interface) in [(1, "eth0"), (2, "eth1")] {
                    unit.ns.sh(&format!(
                        "ip addr replace 10.77.{n}.{host}/24 dev {interface}
                        timeout 2 sh -c 'until ip addr replace fd77:{n}::{host}/64 dev {interface} nodad
                        do sleep 0.01; done'"
                    ));
                }
            }
            // An interface that is gone already can't be removed.
            script => {
                let said = unit.ns.sh(&format!(
                    "{SLOW}\n{{ {script}; }} 2> /dev/null || true; kill $slow 2> /dev/null || true"
                ));
                print!("{said}");
            }
        }
    }

    /// The oracles.
    #[track_caller]
    fn ask(&mut self, when: &str) {
        let begin = Instant::now();
        for server in SERVER {
            while !self.reaches(server) {
                let took = begin.elapsed();
                if took > RECOVERED_WITHIN {
                    self.show_machines();
                    panic!("not recovered after {when}: {server}");
                }
            }
        }
        for line in &mut self.lines {
            line.ask(when);
        }
        for leaks in &self.leaks {
            let seen = leaks.seen();
            assert!(seen.is_empty(), "leaked in {when}:\n{seen}");
        }
    }

    /// All that may say why nothing passes.
    fn show_machines(&self) {
        for unit in [self.pair.a(), self.pair.b()] {
            println!(
                "--- {}\n{}{}",
                unit.ns.name(),
                unit.tandemgw("status").stdout,
                unit.ns.sh(
                    "ip addr; ip rule; ip -6 rule; ip route show table all | grep -v local
                    ip -6 route show table all | grep -v local; ip neigh; nft list ruleset"
                )
            );
        }
        for host in [&self.pair.lab.lan1, &self.pair.lab.server] {
            println!(
                "--- {}\n{}",
                host.name(),
                host.sh("ip neigh; ip route; ip -6 route")
            );
        }
    }

    fn reaches(&self, server: &str) -> bool {
        let ping = self
            .pair
            .lab
            .lan1
            .try_run(&format!("ping -c 1 -W 0.3 {server}"));
        ping.status.success()
    }

    fn end(self) {
        for leaks in self.leaks {
            leaks.assert_empty();
        }
    }
}

/// Whether two changes may be made in one round.
fn may_meet(a: &Change, b: &Change) -> bool {
    let both = [a.part, b.part];
    let is_signal = |change: &Change| change.script.starts_with('(');
    let leaves_much = |change: &Change| !change.undo.is_empty();
    let hurts_all = both.contains(&Part::Steering) && both.contains(&Part::Barrier);
    // Two that move the same interfaces would not find them.
    !(hurts_all || is_signal(a) && is_signal(b) || leaves_much(a) && leaves_much(b))
}

/// A TCP connection on which each line comes back.
struct Line {
    server: &'static str,
    stream: BufReader<TcpStream>,
    count: u32,
}

impl Line {
    fn open(there: &Namespace, here: &Namespace, server: &'static str) -> Line {
        let listen = format!("{}:4711", bracketed(server));
        let listener = there.inside(|| TcpListener::bind(&listen).expect("the port is free"));
        thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            let mut answers = stream.try_clone().expect("a duplicate");
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                if answers.write_all(format!("{line}\n").as_bytes()).is_err() {
                    return;
                }
            }
        });
        let stream = here.inside(|| TcpStream::connect(&listen).expect("the server accepts"));
        // The time that TCP needs to send again after a loss that backed off.
        let patience = Duration::from_secs(10);
        stream.set_read_timeout(Some(patience)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Line {
            server,
            stream: BufReader::new(stream),
            count: 0,
        }
    }

    #[track_caller]
    fn ask(&mut self, when: &str) {
        self.count += 1;
        let question = format!("{}\n", self.count);
        let mut answer = String::new();
        let asked = self.stream.get_mut().write_all(question.as_bytes());
        let heard = asked.and_then(|()| self.stream.read_line(&mut answer));
        assert_eq!(
            (heard.map_err(|error| error.to_string()), answer),
            (Ok(question.len()), question),
            "the session with {} died: {when}",
            self.server
        );
    }
}
