//! The steering against a real kernel, in network namespaces of its own.
//!
//! Each test runs this binary again under `unshare`, so that it needs no privileges beyond user
//! namespaces and cannot touch the machine's own routing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tandemgw::os::netlink::Netlink;
use tandemgw::os::steering::{Disturbance, Restored, SetupError, Steering};
use tandemgw_core::config::Config;
use tandemgw_core::flow::PortId;
use tun_tap::{Iface, Mode};

use testkit::system::kernel::{config, in_namespace, ip, write_sysctl};

#[test]
fn adds_what_it_says_and_removes_it_even_after_a_crash() {
    in_namespace(
        "adds_what_it_says_and_removes_it_even_after_a_crash",
        || {
            let _hosts = lab();
            let before = state();
            let tuns = tuns();
            let config = config();
            let first = set_up(&config, &tuns).unwrap();
            assert_in_place();
            drop(first);
            drop(tuns);

            let left = ip("rule");
            assert!(
                left.contains("7700:\tfrom all iif lan lookup 7700"),
                "{left}"
            );
            assert_eq!(
                ip("route show table 7700").trim(),
                "blackhole default proto 77 metric 4294967295"
            );

            let tuns = self::tuns();
            let second = set_up(&config, &tuns).unwrap();
            assert_in_place();
            second.remove().unwrap();
            drop(tuns);
            assert_same(&state(), &before, "as before");
        },
    );
}

#[test]
fn forwarding_that_was_on_stays_on() {
    in_namespace("forwarding_that_was_on_stays_on", || {
        let _hosts = lab();
        write_sysctl("ipv4/conf/lan/forwarding", "1");
        write_sysctl("ipv6/conf/wan/force_forwarding", "1");
        let before = state();
        let tuns = tuns();
        set_up(&config(), &tuns).unwrap().remove().unwrap();
        drop(tuns);
        assert_same(&state(), &before, "as before");
    });
}

#[test]
fn leftovers_of_other_ports_go() {
    in_namespace("leftovers_of_other_ports_go", || {
        let _hosts = lab();
        let before = rules();
        let mut config = config();
        let tuns = tuns();
        drop(set_up(&config, &tuns).unwrap());
        config.ports.truncate(1);
        config.forwards.clear();
        config.node.routing_table = 7710;
        let tuns = [tuns.into_iter().next().unwrap()];
        let steering = set_up(&config, &tuns).unwrap();
        let listed = ip("rule") + &ip("-6 rule");
        assert!(
            listed.contains("7710:\tfrom all iif lan lookup 7710"),
            "{listed}"
        );
        assert!(!listed.contains("7700"), "{listed}");
        // The port that is no longer in the config was at another number range: its rule stays
        // closed, and is removed by a start with that range.
        assert!(
            listed.contains("7701:\tfrom all iif wan lookup 7701"),
            "{listed}"
        );
        drop((steering, tuns));
        let mut config = self::config();
        config.ports.truncate(1);
        config.forwards.clear();
        let tuns = [tun("tgw-lan")];
        set_up(&config, &tuns).unwrap().remove().unwrap();
        drop(tuns);
        assert_same(&rules(), &before, "the rules");
        for what in ["ipv4/conf/wan/forwarding", "ipv6/conf/wan/force_forwarding"] {
            assert_eq!(sysctl(what), "0", "{what}");
        }
    });
}

#[test]
fn foreign_rules_and_routes_are_not_touched() {
    in_namespace("foreign_rules_and_routes_are_not_touched", || {
        let _hosts = lab();
        let tuns = tuns();
        for foreign in [
            "rule add from 192.0.2.1 lookup main priority 7701",
            "rule add from 192.0.2.1 lookup 7700 priority 99",
            "-6 rule add iif lan lookup main priority 7700",
            "route add 192.0.2.0/24 dev lan table 7701",
        ] {
            ip(foreign);
            let before = state();
            match set_up(&config(), &tuns) {
                Err(error @ SetupError::Taken(_)) => {
                    assert!(error.to_string().contains("routing-table"), "{error}");
                }
                Err(error) => panic!("{foreign}: {error}"),
                Ok(_) => panic!("{foreign}: no error"),
            }
            assert_same(&state(), &before, "as before");
            ip(&foreign.replace(" add ", " del "));
        }
        set_up(&config(), &tuns).unwrap();
    });
}

#[test]
fn packets_go_through_the_tuns_or_not_at_all() {
    in_namespace("packets_go_through_the_tuns_or_not_at_all", || {
        let [lan, wan] = lab();
        let reached = || {
            (
                passes(&lan, &wan, "10.77.2.9"),
                passes(&lan, &wan, "fd77:2::9"),
            )
        };

        // Without protection the kernel would forward the packets tested below.
        write_sysctl("ipv4/conf/lan/forwarding", "1");
        write_sysctl("ipv6/conf/lan/force_forwarding", "1");
        assert_eq!(reached(), (true, true), "the lab itself");
        write_sysctl("ipv4/conf/lan/forwarding", "0");
        write_sysctl("ipv6/conf/lan/force_forwarding", "0");
        assert_eq!(reached(), (false, false), "without forwarding");

        let tuns = tuns().map(Arc::new);
        let steering = set_up(&config(), &tuns).unwrap();
        assert_eq!(reached(), (false, false), "while the process does nothing");
        let copier = Copier::start(&tuns);
        assert_eq!(reached(), (true, true), "while the process copies");
        assert_eq!(sysctl("ipv6/conf/all/forwarding"), "0");

        // The barrier drops what has no hop left on the way in, and what this kernel says of it on
        // the way out: the gateway answers that, which does not run here.
        for target in ["10.77.2.9", "fd77:2::9"] {
            for hops in [1, 2] {
                let out = lan.run(&format!("ping -n -c 1 -W 1 -t {hops} {target}"));
                assert!(!out.contains("xceeded"), "{target} {hops}: {out}");
                assert!(out.contains("0 received"), "{target} {hops}: {out}");
            }
            let out = lan.run(&format!("ping -n -c 1 -W 2 -t 3 {target}"));
            assert!(out.contains("1 received"), "{target}: {out}");
        }
        // Nor does the kernel itself tell of its MTU.
        ip("link set wan mtu 1400");
        for target in ["10.77.2.9", "fd77:2::9"] {
            let out = lan.run(&format!("ping -n -c 1 -W 1 -M do -s 1390 {target}"));
            assert!(!out.contains("too big") && !out.contains("needed"), "{out}");
            assert!(out.contains("0 received"), "{out}");
        }
        ip("link set wan mtu 1500");

        copier.stop();
        drop((steering, tuns));
        assert_eq!(reached(), (false, false), "after a crash");

        let tuns = self::tuns();
        let steering = set_up(&config(), &tuns).unwrap();
        assert_eq!(reached(), (false, false), "after the next start");
        steering.remove().unwrap();
        assert_eq!(reached(), (false, false), "after the end");
    });
}

#[test]
fn repairs_what_the_kernel_drops() {
    in_namespace("repairs_what_the_kernel_drops", || {
        let _hosts = lab();
        ip("-4 addr flush dev lan");
        ip("-6 addr flush dev lan scope global");
        let before = rules();
        let tuns = tuns();
        let mut steering = set_up(&config(), &tuns).unwrap();
        let good = state();
        assert!(ip("route").contains("10.77.1.0/24 dev lan proto 77 scope link"));
        for breakage in [
            &["link set tgw-lan down", "link set tgw-lan up"][..],
            &["link set lan down", "link set lan up"],
            &["rule del priority 7700", "-6 rule del priority 7700"],
            &["route flush table 7700", "-6 route flush table 7700"],
            &["rule flush", "-6 rule flush"],
            &[
                "route del 10.77.1.1 dev tgw-lan",
                "-6 route del fd77:1::1 dev tgw-lan",
            ],
            &["route flush dev tgw-lan"],
            &["link set tgw-lan name other-name"],
            &["link set tgw-lan mtu 1500"],
        ] {
            for command in breakage {
                ip(command);
            }
            wait_for_carrier();
            assert_ne!(repair(&mut steering).unwrap(), [""; 0], "{breakage:?}");
            assert_same(&state(), &good, &format!("{breakage:?}"));
            assert_eq!(
                repair(&mut steering).unwrap(),
                [""; 0],
                "{breakage:?}, again"
            );
            assert_same(&state(), &good, &format!("{breakage:?}, again"));
        }

        ip("link del lan");
        assert_eq!(
            repair(&mut steering).unwrap(),
            [""; 0],
            "there is nothing to repair"
        );
        ip("link add lan type veth peer name other");
        ip("link set lan up");
        repair(&mut steering).unwrap();
        assert_eq!(sysctl("ipv4/conf/lan/forwarding"), "1");
        assert!(ip("route").contains("10.77.1.0/24 dev lan proto 77"));

        steering.remove().unwrap();
        drop(tuns);
        assert_eq!(sysctl("ipv4/conf/lan/forwarding"), "0");
        assert_same(&rules(), &before, "the rules");
        assert!(!state().iter().any(|line| line.contains("proto 77")));
    });
}

/// The kernel drops routes of an interface by itself. That is no excuse for what somebody does at
/// the same time.
#[test]
fn what_somebody_changed_is_told_from_what_the_kernel_dropped() {
    in_namespace(
        "what_somebody_changed_is_told_from_what_the_kernel_dropped",
        || {
            let _hosts = lab();
            let config = config();
            let tuns = tuns();
            let mut steering = set_up(&config, &tuns).unwrap();
            repair(&mut steering).unwrap();
            ip("link set tgw-lan name elsewhere");
            ip("rule del priority 7700");
            ip("addr del 10.77.1.2/24 dev lan");
            steering.disturb(Disturbance::Port(PortId(0)));
            steering.disturb(Disturbance::Expected(PortId(0)));
            let (restored, result) = steering.repair_some();
            result.unwrap();
            let what = restored.what.join(", ");
            assert!(what.contains("the name of tgw-lan"), "{restored:?}");
            assert!(what.contains("rule 7700: iif lan"), "{restored:?}");
            let by_kernel = restored.by_kernel.join(", ");
            assert!(by_kernel.contains("10.77.1.0/24"), "{restored:?}");
            steering.remove().unwrap();
        },
    );
}

/// Repairs everything that may be broken; returns what was.
fn repair(steering: &mut Steering) -> Result<Vec<String>, SetupError> {
    steering.disturb(Disturbance::All);
    for port in [PortId(0), PortId(1)] {
        steering.disturb(Disturbance::Addresses(port));
    }
    steering.disturb(Disturbance::KernelRules);
    let mut restored = Vec::new();
    while steering.is_disturbed() {
        let (Restored { what, .. }, result) = steering.repair_some();
        restored.extend(what);
        result?;
    }
    Ok(restored)
}

fn assert_in_place() {
    for family in ["-4", "-6"] {
        let rules = ip(&format!("{family} rule"));
        for (port, table) in [("lan", 7700), ("wan", 7701)] {
            let rule = format!("{table}:\tfrom all iif {port} lookup {table} proto 78");
            assert!(rules.contains(&rule), "{rules}");
            let routes = ip(&format!("{family} route show table {table}"));
            assert!(
                routes.contains(&format!("default dev tgw-{port} proto 77")),
                "{routes}"
            );
            assert!(routes.contains("blackhole default"), "{routes}");
        }
    }
    let main = ip("route") + &ip("-6 route");
    for route in [
        "10.77.1.1 dev tgw-lan",
        "10.77.2.1 dev tgw-wan",
        "10.77.2.10 dev tgw-wan",
        "192.0.2.7 dev tgw-wan",
        "192.0.2.8 dev tgw-lan",
        "fd77:1::1 dev tgw-lan",
        "fd77:2::1 dev tgw-wan",
    ] {
        assert!(main.contains(route), "{route}: {main}");
    }
    // The kernel has addresses of its own there, and so routes.
    assert!(!main.contains("dev lan proto 77"), "{main}");
    for (parameter, value) in [
        ("ipv4/conf/lan/forwarding", "1"),
        ("ipv6/conf/lan/force_forwarding", "1"),
        ("ipv4/conf/tgw-lan/forwarding", "1"),
        ("ipv4/conf/tgw-lan/rp_filter", "0"),
        ("ipv6/conf/tgw-lan/force_forwarding", "1"),
        ("ipv6/conf/tgw-lan/accept_ra", "0"),
    ] {
        assert_eq!(sysctl(parameter), value, "{parameter}");
    }
    let own = ip("-o addr show dev tgw-lan");
    assert!(
        own.lines().count() == 1 && own.contains("inet 127.77.0.1/32 scope host"),
        "the TUN has no address that anybody could reach: {own}"
    );
}

/// The gateway's namespace is this one; it is linked to two hosts, each in its own.
fn lab() -> [Host; 2] {
    ip("link set lo up");
    let hosts = [("lan", 1), ("wan", 2)].map(|(name, n)| {
        let host = Host::new();
        let pid = host.0.id();
        ip(&format!(
            "link add {name} type veth peer name eth0 netns {pid}"
        ));
        ip(&format!("addr add 10.77.{n}.2/24 dev {name}"));
        ip(&format!("addr add fd77:{n}::2/64 dev {name} nodad"));
        ip(&format!("link set {name} up"));
        host.run(&format!("ip addr add 10.77.{n}.9/24 dev eth0"));
        host.run(&format!("ip addr add fd77:{n}::9/64 dev eth0 nodad"));
        host.run("ip link set eth0 up");
        host.run(&format!("ip route add default via 10.77.{n}.2"));
        host.run(&format!("ip -6 route add default via fd77:{n}::2"));
        host
    });
    wait_for_carrier();
    hosts
}

/// Link-local addresses and their routes come late, and would look like a difference.
fn wait_for_carrier() {
    for _ in 0..100 {
        let addresses = ip("-6 addr show tentative");
        let ready = |name| ip(&format!("-6 addr show dev {name} scope link")).contains("fe80");
        if addresses.trim().is_empty() && ready("lan") && ready("wan") {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no carrier: {}", ip("addr"));
}

fn tuns() -> [Iface; 2] {
    ["tgw-lan", "tgw-wan"].map(tun)
}

fn tun(name: &str) -> Iface {
    Iface::without_packet_info(name, Mode::Tun).unwrap()
}

fn set_up<T: Borrow<Iface>>(config: &Config, tuns: &[T]) -> Result<Steering, SetupError> {
    let mut netlink = Netlink::open().unwrap();
    let index = |tun: &T| netlink.link(tun.borrow().name()).unwrap().unwrap().index;
    let indices: Vec<u32> = tuns.iter().map(index).collect();
    Steering::set_up(netlink, config, &indices)
}

/// All that steering may change, as lines of text.
type State = BTreeSet<String>;

fn state() -> State {
    let mut state = rules();
    for command in ["route show table all", "-6 route show table all"] {
        // The kernel is late with these, and they are none of ours.
        let listed = ip(command);
        let lines = listed.lines().filter(|line| !line.contains("fe80:"));
        state.extend(lines.map(|line| format!("{command}: {line}")));
    }
    for family in ["ipv4", "ipv6"] {
        for interface in ["all", "default", "lo", "lan", "wan"] {
            let folder = PathBuf::from(format!("/proc/sys/net/{family}/conf/{interface}"));
            for file in std::fs::read_dir(folder).unwrap().flatten() {
                let value = std::fs::read_to_string(file.path()).unwrap_or_default();
                state.insert(format!("{} = {value}", file.path().display()));
            }
        }
    }
    state
}

fn rules() -> State {
    let of = |command: &str| -> State {
        let lines = ip(command);
        lines
            .lines()
            .map(|line| format!("{command}: {line}"))
            .collect()
    };
    of("rule").union(&of("-6 rule")).cloned().collect()
}

/// Shows only the differences.
#[track_caller]
fn assert_same(now: &State, before: &State, context: &str) {
    let difference: Vec<_> = now.symmetric_difference(before).collect();
    assert!(difference.is_empty(), "{context}: {difference:#?}");
}

/// Whether a datagram of `from` reaches `target`, an address of `to`.
fn passes(from: &Host, to: &Host, target: &str) -> bool {
    let target: IpAddr = target.parse().unwrap();
    let receiver = to.socket(target);
    let any = if target.is_ipv4() { "0.0.0.0" } else { "::" };
    let sender = from.socket(any.parse().unwrap());
    receiver
        .set_read_timeout(Some(Duration::from_millis(150)))
        .unwrap();
    let port = receiver.local_addr().unwrap().port();
    (0..4).any(|_| {
        let sent = sender.send_to(b"x", (target, port));
        sent.is_ok() && receiver.recv(&mut [0; 8]).is_ok()
    })
}

/// Stands for the gateway: writes back what it reads.
struct Copier(Vec<std::thread::JoinHandle<()>>, Vec<Arc<Iface>>);

impl Copier {
    fn start(tuns: &[Arc<Iface>]) -> Copier {
        // Packets from one of the two leave by the other.
        let thread = |(tun, other): (&Arc<Iface>, &Arc<Iface>)| {
            let (tun, other) = (Arc::clone(tun), Arc::clone(other));
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok(length) = tun.recv(&mut buffer) {
                    if buffer[..length].ends_with(b"stop copying") {
                        return;
                    }
                    let _ = other.send(&buffer[..length]);
                }
            })
        };
        let pairs = tuns.iter().zip(tuns.iter().rev());
        Copier(pairs.map(thread).collect(), tuns.to_vec())
    }

    /// The virtual addresses lead to the TUN devices: a datagram to each ends its thread.
    fn stop(self) {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for addr in ["10.77.1.1:9", "10.77.2.1:9"] {
            socket.send_to(b"stop copying", addr).unwrap();
        }
        for thread in self.0 {
            thread.join().unwrap();
        }
        drop(self.1);
    }
}

/// A host: a network namespace, held by a process that waits for its input to end.
struct Host(Child);

impl Host {
    fn new() -> Host {
        let mut child = Command::new("unshare")
            .args(["-n", "sh", "-c", "ip link set lo up; echo; read x"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        Host(child)
    }

    fn run(&self, command: &str) -> String {
        let pid = self.0.id().to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &pid, "-n"]).args(command.split(' '));
        let output = nsenter.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    /// A socket of this host, made by a thread that goes there.
    fn socket(&self, addr: IpAddr) -> UdpSocket {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::spawn(move || {
            use std::os::fd::AsRawFd;
            // SAFETY: setns(2) takes a descriptor, which `file` keeps open, and no memory.
            let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            UdpSocket::bind((addr, 0)).unwrap()
        })
        .join()
        .unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
        let _ = self.0.wait();
    }
}

fn sysctl(path: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap();
    text.trim().to_owned()
}
