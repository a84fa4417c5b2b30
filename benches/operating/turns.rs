//! How long one turn of the loop is busy with an administrator: the same code as in the gateway,
//! without the packets. CPU time, so that a machine under load gives nearly the figures of an idle
//! one.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use mio::{Events, Poll, Token};
use tandemgw::os::clock;
use tandemgw::os::control_socket::ControlSocket;
use tandemgw::os::monitor::{Monitor, Notice};
use tandemgw_core::config;
use tandemgw_core::control::{FastPathState, PortIo, ShellView};
use tandemgw_core::event::{LinkState, Offload, RouteChange, Verdict};
use tandemgw_core::flow::{Addr, FlowKey, PortId, Protocol};
use tandemgw_core::gateway::{Gateway, Seed};
use tandemgw_core::metrics::{Exposition, Process, View};
use tandemgw_core::packet::build::opening_packet;

use crate::show;
use testkit::lab::{route, to_port};
use testkit::system::cpu_clock::thread_time;
use testkit::system::namespace::Namespace;
use testkit::system::worker::Result;

const CONFIG: &str = r#"
[node]
name = "gw"

[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.0.0.1/8"]

[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["192.0.2.1/24"]

[[policy]]
name = "out"
action = "accept"
nat = true

[limits]
half-open-per-source = 0
"#;

/// A full table of the default size.
const SESSIONS: u32 = 1 << 20;

/// Ports, groups and policies of the largest config.
const PORTS: usize = 512;
const GROUPS: usize = 64;
const POLICIES: usize = 50_000;

/// Routes of a big network, or of a part of the internet.
const ROUTES: u32 = 100_000;

/// Shows the longest turns of a listing and of the end of all sessions, and of what a large config
/// makes long.
pub fn measure(folder: &Path) -> Result<()> {
    let path = folder.join("turns.sock");
    let mut large = large_gateway()?;
    let explain = r#"{"command":"explain","protocol":"tcp","source":"10.0.0.9:1","destination":"10.0.1.9:2","in_port":"p0"}"#;
    for (what, request, lines) in [
        ("status", r#"{"command":"status"}"#, Some(2)),
        (
            "policies",
            r#"{"command":"policies"}"#,
            Some(POLICIES as u32 + 2),
        ),
        ("explain", explain, Some(2)),
        ("config show", r#"{"command":"config-show"}"#, None),
        (
            "config show --full",
            r#"{"command":"config-show","full":true}"#,
            None,
        ),
        ("count", r#"{"command":"count"}"#, None),
        ("events", r#"{"command":"events"}"#, None),
        ("push status", r#"{"command":"push-status"}"#, None),
    ] {
        let (longest, turns) = serve(&mut large, &path, request, lines)?;
        let title = format!(
            "{what}, {PORTS} ports, {POLICIES} policies, longest of {turns} turns (CPU time)"
        );
        show(&title, longest.as_secs_f64() * 1e3, "ms", Some(1.0));
    }
    scrape(&large);
    drop(large);
    routes_again(folder)?;
    let mut gateway = full_gateway()?;
    for (what, request, lines) in [
        ("listing", r#"{"command":"sessions"}"#, Some(SESSIONS + 1)),
        (
            "listing of few",
            r#"{"command":"sessions","filter":["src=192.0.2.9"]}"#,
            None,
        ),
        ("count", r#"{"command":"count"}"#, None),
        ("hosts", r#"{"command":"hosts"}"#, None),
        (
            "sessions clear",
            r#"{"command":"clear","all":true}"#,
            Some(2),
        ),
    ] {
        let (longest, turns) = serve(&mut gateway, &path, request, lines)?;
        let title = format!("{what}, longest of {turns} turns (CPU time)");
        show(&title, longest.as_secs_f64() * 1e3, "ms", Some(1.0));
    }
    let left = gateway.session_counts();
    assert_eq!(left.tcp, 0, "all sessions are ended");
    Ok(())
}

/// Shows the longest piece of the metrics.
fn scrape(gateway: &Gateway) {
    let (shell, process) = (view(), Process::default());
    let view = View {
        gateway,
        shell: &shell,
        process: &process,
        now: clock::now(),
    };
    let (mut page, mut out) = (Exposition::default(), String::new());
    let (mut longest, mut more) = (Duration::ZERO, true);
    while more {
        let start = thread_time();
        more = page.go_on(&view, &mut out);
        longest = longest.max(thread_time() - start);
    }
    let title = format!("metrics, {PORTS} ports, {POLICIES} policies, longest piece (CPU time)");
    show(&title, longest.as_secs_f64() * 1e3, "ms", Some(1.0));
}

/// Shows the longest piece in which routes are read again, as after the loss of an address.
fn routes_again(folder: &Path) -> Result<()> {
    let network = Namespace::first("routes");
    network.sh("for n in 0 1; do ip link add eth$n type veth peer name peer$n; ip link set eth$n up; ip link set peer$n up
        ip addr add 10.$n.0.2/24 dev eth$n; done");
    let add = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        format!("route add 20.{a}.{b}.{c}/32 via 10.0.0.9\n")
    };
    let batch = folder.join("routes");
    std::fs::write(&batch, (0..ROUTES).map(add).collect::<String>())?;
    network.run(&format!("ip -batch {}", batch.display()));
    let (config, _) = config::parse(Path::new("bench.toml"), CONFIG).map_err(|_| "config")?;
    let (longest, told) = network.inside(|| -> std::io::Result<(Duration, usize)> {
        let (mut monitor, notices) = Monitor::start(&config)?;
        let mut gateway = Gateway::new(config, Seed([7; 32]), clock::now());
        let mut told = 0;
        let mut tell = |notices: Vec<Notice>| {
            for notice in notices {
                if let Notice::Route(change) = notice {
                    told += 1;
                    gateway.handle_route(change);
                }
            }
        };
        tell(notices);
        for change in ["add", "del"] {
            let change = ["addr", change, "10.0.9.9/24", "dev", "eth1"];
            std::process::Command::new("ip").args(change).status()?;
        }
        let (mut longest, mut more) = (Duration::ZERO, true);
        while more || monitor.is_dumping() {
            let (mut notices, start) = (Vec::new(), thread_time());
            more = monitor.read(&mut notices)?;
            tell(notices);
            longest = longest.max(thread_time() - start);
        }
        Ok((longest, told))
    })?;
    if told < 2 * ROUTES as usize {
        return Err(format!("only {told} routes").into());
    }
    let title = format!("{ROUTES} routes read again, longest piece (CPU time)");
    show(&title, longest.as_secs_f64() * 1e3, "ms", Some(1.0));
    Ok(())
}

fn large_gateway() -> Result<Gateway> {
    let mut text = String::from("[node]\nname = \"gw\"\nmax-sessions = 4096\n");
    for group in 0..GROUPS {
        let ports: Vec<String> = (group..PORTS)
            .step_by(GROUPS)
            .map(|port| format!("\"p{port}\""))
            .collect();
        let ports = ports.join(", ");
        text.push_str(&format!(
            "[[group]]\nname = \"g{group}\"\nports = [{ports}]\n"
        ));
    }
    for port in 0..PORTS {
        let (a, b) = (port / 256, port % 256);
        text.push_str(&format!(
            "[[port]]\nname = \"p{port}\"\ninterface = \"eth{port}\"\n\
             virtual-addresses = [\"10.{a}.{b}.1/24\", \"fd00:{a}:{b}::1/64\"]\n"
        ));
    }
    for policy in 0..POLICIES {
        text.push_str(&format!(
            "[[policy]]\nname = \"policy-{policy}\"\nsource = [\"192.168.{}.0/24\"]\naction = \"accept\"\n",
            policy % 256
        ));
    }
    let (config, _) = config::parse(Path::new("bench.toml"), &text)
        .map_err(|problems| format!("{:?}", problems.first()))?;
    let now = clock::now();
    let mut gateway = Gateway::new(config, Seed([7; 32]), now);
    for index in 0..PORTS {
        let (port, mac) = (PortId(index as u16), [2, 0, 0, 0, 0, 1]);
        let link = LinkState {
            up: true,
            mtu: 1500,
            mac,
        };
        gateway.handle_link(now, port, link);
        gateway.handle_route(RouteChange::Add(route(
            &format!("10.{}.{}.0/24", index / 256, index % 256),
            to_port(port),
        )));
    }
    gateway.start(now);
    while gateway.poll_output().is_some() {}
    Ok(gateway)
}

fn view() -> ShellView {
    ShellView {
        ports: vec![
            PortIo {
                offload: "tso",
                fast_path: FastPathState::Off
            };
            PORTS
        ],
        ..ShellView::default()
    }
}

/// Lets a client send a request; returns the longest turn and the number of turns until it has its
/// answer, of so many lines if that is known.
fn serve(
    gateway: &mut Gateway,
    path: &Path,
    request: &'static str,
    lines: Option<u32>,
) -> Result<(Duration, u32)> {
    let mut poll = Poll::new()?;
    let mut socket = ControlSocket::open(path, poll.registry(), Token(0))?;
    let at = path.to_owned();
    let client = thread::spawn(move || -> std::io::Result<u32> {
        let mut stream = UnixStream::connect(at)?;
        writeln!(stream, "{request}")?;
        let (mut reader, mut line, mut count) = (BufReader::new(stream), Vec::new(), 0);
        while line != b"{\"done\":true}\n" {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.starts_with(b"{\"error\"") {
                return Err(std::io::Error::other(String::from_utf8_lossy(&line)));
            }
            count += 1;
        }
        Ok(count)
    });
    let mut view = view();
    let (mut longest, mut turns) = (Duration::ZERO, 0);
    let mut events = Events::with_capacity(8);
    while !client.is_finished() {
        let wait = if socket.timeout().is_some() { 0 } else { 10 };
        poll.poll(&mut events, Some(Duration::from_millis(wait)))?;
        events.iter().for_each(|event| socket.mark(event.token()));
        let now = clock::now();
        let start = thread_time();
        socket.serve(poll.registry(), gateway, &mut view, now);
        longest = longest.max(thread_time() - start);
        turns += 1;
    }
    let heard = client.join().map_err(|_| "panic")??;
    match lines.is_none_or(|lines| heard == lines) && heard > 0 {
        true => Ok((longest, turns)),
        false => Err(format!("{heard} lines instead of {lines:?} to {request}").into()),
    }
}

fn full_gateway() -> Result<Gateway> {
    let (config, _) = config::parse(Path::new("bench.toml"), CONFIG).map_err(|_| "config")?;
    let now = clock::now();
    let mut gateway = Gateway::new(config, Seed([7; 32]), now);
    tandemgw::os::memory::prefer_huge_pages(gateway.reserved_memory());
    for (port, destination) in [(PortId(0), "10.0.0.0/8"), (PortId(1), "0.0.0.0/0")] {
        let link = LinkState {
            up: true,
            mtu: 1500,
            mac: [2; 6],
        };
        gateway.handle_link(now, port, link);
        gateway.handle_route(RouteChange::Add(route(destination, to_port(port))));
    }
    gateway.start(now);
    for number in 0..SESSIONS {
        let [_, a, b, c] = number.to_be_bytes();
        let key = FlowKey {
            src: Addr::v4([10, 1, a, b]),
            dst: Addr::v4([198, 51, a, c]),
            src_port: 20_000 + (number % 40_000) as u16,
            dst_port: 443,
            protocol: Protocol::TCP,
        };
        let mut syn = opening_packet(&key).ok_or("no packet")?;
        let verdict = gateway.handle_packet(now, PortId(0), &mut syn, Offload::default());
        if verdict != Verdict::Forward {
            return Err(format!("session {number}: {verdict:?}").into());
        }
    }
    while gateway.poll_output().is_some() {}
    Ok(gateway)
}
