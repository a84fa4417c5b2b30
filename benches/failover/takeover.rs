//! The end of a primary, as clients notice it.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::pair::{CLIENTS, Event, Kind, Pair, SERVER, Settings};
use crate::workers::monotonic;
use crate::{Figure, Options, Target};
use testkit::system::namespace::Namespace;
use testkit::system::traffic::{FIRST_PORT, FIRST_SOURCE, PORTS, SOURCES};
use testkit::system::worker::{Result, Worker};

/// The port of the echo servers.
pub const PORT: u16 = 7;
/// Sessions of the row of that name, and how many are opened a second.
const SESSIONS: usize = 7000;
const SESSION_RATE: usize = 1000;
/// Sessions that the kernel forwards in the row of that name.
const OFFLOADED: u64 = 50_000;

/// Facts from a steady echo, on the monotonic clock in seconds.
pub struct Echo {
    pub sent: Vec<f64>,
    /// Number and time.
    pub received: Vec<(usize, f64)>,
}

impl Echo {
    /// Of the JSON of the worker of that name.
    pub fn parse(value: &Value) -> Result<Echo> {
        let numbers = value["sent"].as_array().ok_or("nothing sent")?;
        let pairs = value["received"].as_array().ok_or("nothing received")?;
        let pair = |pair: &Value| Some((pair[0].as_u64()? as usize, pair[1].as_f64()?));
        Ok(Echo {
            sent: numbers.iter().filter_map(Value::as_f64).collect(),
            received: pairs.iter().filter_map(pair).collect(),
        })
    }

    /// The longest time without an answer in ms, of those that end within the given times.
    pub fn longest_gap(&self, from: f64, to: f64) -> f64 {
        let times = self.received.windows(2);
        times
            .filter(|pair| (from..to).contains(&pair[1].1))
            .map(|pair| (pair[1].1 - pair[0].1) * 1e3)
            .fold(0.0, f64::max)
    }

    /// The round trip times in ms of those sent within the given times, ascending.
    pub fn round_trips(&self, from: f64, to: f64) -> Vec<f64> {
        let sent = |number: usize| self.sent.get(number).copied();
        let mut times: Vec<f64> = self
            .received
            .iter()
            .filter_map(|(number, at)| Some((sent(*number)?, *at)))
            .filter(|(sent, _)| (from..to).contains(sent))
            .map(|(sent, at)| (at - sent) * 1e3)
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// How many packets got no answer.
    pub fn lost(&self) -> usize {
        self.unanswered().count()
    }

    /// When packets were sent that got no answer.
    fn unanswered(&self) -> impl Iterator<Item = f64> {
        let answered: HashSet<usize> = self.received.iter().map(|(number, _)| *number).collect();
        let sent = self.sent.iter().enumerate();
        sent.filter_map(move |(number, at)| (!answered.contains(&number)).then_some(*at))
    }

    /// Tells when, in ms since some time, packets were sent that got no answer.
    fn tell_unanswered(&self, since: f64) {
        let at: Vec<String> = self
            .unanswered()
            .map(|at| format!("{:.2}", (at - since) * 1e3))
            .collect();
        if !at.is_empty() {
            eprintln!("no answer to packets sent at (ms): {}", at.join(" "));
        }
    }
}

/// Runs an echo through the pair while `during` happens a second after its start.
pub fn echo_while<T>(
    pair: &mut Pair,
    seconds: f64,
    during: impl FnOnce(&mut Pair) -> Result<T>,
) -> Result<(Echo, T)> {
    let at = format!("{SERVER}:{PORT}");
    let mut server = pair.server.worker(&["echo-server", &at], None)?;
    server.line()?;
    let mut client = pair
        .client
        .worker(&["echo", &at, &seconds.to_string()], None)?;
    client.line()?;
    std::thread::sleep(Duration::from_secs(1));
    let result = during(pair)?;
    Ok((Echo::parse(&client.json()?)?, result))
}

/// The longest time without an answer when the primary ends.
pub fn gap(
    options: &Options,
    folder: &Path,
    event: Event,
    what: &str,
    target: f64,
) -> Result<Vec<Figure>> {
    let mut gap = Figure::new(format!("{what}: longest gap"), "ms", Target::AtMost(target));
    let mut before = Figure::new(format!("{what}: longest gap before"), "ms", Target::None);
    for _ in 0..options.runs {
        for kind in &options.kinds {
            let mut pair = Pair::new(Settings::quick(*kind), folder)?;
            let (echo, at) = echo_while(&mut pair, 3.0, |pair| {
                let at = monotonic();
                pair.fire(event)?;
                Ok(at)
            })?;
            before.add(*kind, echo.longest_gap(0.0, at));
            // An end that is never noticed is not a gap of zero.
            let last = echo.received.last().map_or(0.0, |(_, at)| *at);
            let end = echo.sent.last().copied().unwrap_or_default();
            let silence = (end - last).max(0.0) * 1e3;
            gap.add(*kind, echo.longest_gap(at, end + 1.0).max(silence));
        }
    }
    Ok(vec![gap, before])
}

/// The longest time without an answer when a primary ends whose kernel forwards its sessions, and
/// the same when all of them go through its process; the targets are those without.
pub fn offloaded(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let events = [
        (Event::Power, "primary loses power", 5.0),
        (Event::Freeze, "primary is frozen", 10.0),
        (Event::Kill, "primary is killed", 3.0),
        (Event::Handover, "planned handover", 3.0),
    ];
    let mut figures = Vec::new();
    let is_wanted = |event: &Event| options.events.is_empty() || options.events.contains(event);
    let events = events.into_iter().filter(|(event, ..)| is_wanted(event));
    for (event, what, target) in events {
        for offload in ["ebpf", "tun"] {
            let what = format!("{what}, {OFFLOADED} sessions, `{offload}`");
            let target = Target::AtMost(target);
            let mut gap = Figure::new(format!("{what}: longest gap"), "ms", target);
            let none_lost = match event {
                Event::Handover => Target::AtMost(0.0),
                _ => Target::None,
            };
            let mut lost = Figure::new(format!("{what}: packets lost"), "", none_lost);
            for _ in 0..options.runs {
                let settings = Settings {
                    offload,
                    // The peer comes when the sessions are there: it might take over meanwhile.
                    both: false,
                    ..Settings::quick(Kind::Tandemgw)
                };
                let mut pair = Pair::new(settings, folder)?;
                let _answers = establish(&pair, offload)?;
                pair.start(1)?;
                pair.wait_for_pair()?;
                let (fast, held) = (in_the_kernel(&pair)?, pair.replicated()?);
                eprintln!("{fast} sessions are in the kernel, the peer holds {held}");
                let (echo, at) = echo_while(&mut pair, 3.0, |pair| {
                    let at = monotonic();
                    pair.fire(event)?;
                    Ok(at)
                })?;
                let last = echo.received.last().map_or(0.0, |(_, at)| *at);
                let end = echo.sent.last().copied().unwrap_or_default();
                let silence = (end - last).max(0.0) * 1e3;
                echo.tell_unanswered(at);
                gap.add(Kind::Tandemgw, echo.longest_gap(at, end + 1.0).max(silence));
                lost.add(Kind::Tandemgw, echo.lost() as f64);
            }
            figures.extend([gap, lost]);
        }
    }
    Ok(figures)
}

/// How many sessions the kernel of the first unit forwards.
fn in_the_kernel(pair: &Pair) -> Result<u64> {
    let status = pair.status(0)?;
    Ok(status["fast_path"]["sessions"].as_u64().unwrap_or(0))
}

/// Has the first unit hold answered sessions, in its kernel if that is wanted; returns who answers.
fn establish(pair: &Pair, offload: &str) -> Result<Worker> {
    // Answers must come back, to hosts that are there, but not cost them anything.
    pair.server.nft("delete table netdev sink")?;
    let hosts = (0..SOURCES).map(|n| Ipv4Addr::from(u32::from(FIRST_SOURCE) + n));
    let hosts: String = hosts
        .map(|ip| format!("addr add {ip}/24 dev eth0\n"))
        .collect();
    pair.client.ip_batch(&hosts)?;
    pair.client.nft(&format!(
        "table netdev sink {{
           chain early {{
             type filter hook ingress device eth0 priority 0
             udp sport {FIRST_PORT}-{} drop
           }}
         }}",
        FIRST_PORT + PORTS - 1
    ))?;
    let mut server = pair.server.worker(&["udp-echo", SERVER], None)?;
    server.line()?;
    let mac = pair.units[0].namespace.mac_text("eth0");
    let flows = OFFLOADED.to_string();
    // A session asks for its place each 16 packets, and some may be lost on a busy machine, so that
    // a few never get one.
    let packets = (OFFLOADED * 17).to_string();
    for _ in 0..10 {
        let blast = [
            "udp-blast",
            "eth0",
            &mac,
            SERVER,
            "--flows",
            &flows,
            "--packets",
            &packets,
            "--rate",
            "60000",
        ];
        pair.client.worker(&blast, None)?.line()?;
        std::thread::sleep(Duration::from_millis(300));
        let fast = in_the_kernel(pair)?;
        if pair.opened()? >= OFFLOADED && (offload != "ebpf" || fast >= OFFLOADED / 100 * 99) {
            return Ok(server);
        }
        eprintln!("{fast} of {OFFLOADED} sessions are in the kernel");
    }
    Err("the sessions did not get into the kernel".into())
}

/// The cost of a planned handover.
pub fn handover(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let mut lost = Figure::new("planned handover: packets lost", "", Target::AtMost(0.0));
    let mut gap = Figure::new("planned handover: longest gap", "ms", Target::None);
    let mut again = Figure::new(
        "planned handover: TCP segments sent again beyond those without one",
        "",
        Target::AtMost(0.0),
    );
    for _ in 0..options.runs {
        for kind in &options.kinds {
            let mut pair = Pair::new(Settings::new(*kind), folder)?;
            let (echo, at) = echo_while(&mut pair, 3.0, |pair| {
                let at = monotonic();
                pair.fire(Event::Handover)?;
                Ok(at)
            })?;
            lost.add(*kind, echo.lost() as f64);
            gap.add(*kind, echo.longest_gap(at, f64::MAX));
            drop(pair);
            let with = retransmits(*kind, folder, true)?;
            let without = retransmits(*kind, folder, false)?;
            eprintln!("retransmits of a stream {kind:?}: {with}, without a handover {without}");
            again.add(*kind, (with - without).max(0.0));
        }
    }
    Ok(vec![lost, gap, again])
}

fn retransmits(kind: Kind, folder: &Path, event: bool) -> Result<f64> {
    let mut pair = Pair::new(Settings::new(kind), folder)?;
    let at = format!("{SERVER}:5001");
    let mut sink = pair.server.worker(&["tcp-sink", &at], None)?;
    sink.line()?;
    let stream = ["stream", &at, "2.5", "--mbit", "300"];
    let mut client = pair.client.worker(&stream, None)?;
    client.line()?;
    std::thread::sleep(Duration::from_secs(1));
    if event {
        pair.fire(Event::Handover)?;
    }
    client.result("retransmits")
}

/// Sessions that do not go on when the primary loses power; with `while_opening` it does so while
/// they are being opened, and the first packet of each has waited for the peer.
pub fn sessions(options: &Options, folder: &Path, while_opening: bool) -> Result<Vec<Figure>> {
    let (what, count) = match while_opening {
        false => (format!("{SESSIONS} TCP sessions open"), SESSIONS),
        true => (
            format!("{SESSION_RATE} TCP sessions/s being opened, `strict`"),
            3 * SESSION_RATE,
        ),
    };
    let what = format!("power lost, {what}: sessions lost");
    let mut lost = Figure::new(what, "", Target::AtMost(0.0));
    for _ in 0..options.runs {
        for kind in &options.kinds {
            let settings = Settings {
                pickup_guarantee: if while_opening { "strict" } else { "off" },
                ..Settings::new(*kind)
            };
            let mut pair = Pair::new(settings, folder)?;
            let result = lost_sessions(&mut pair, count, while_opening)?;
            eprintln!("{kind:?}: {result}");
            let opened = result["opened"].as_u64().unwrap_or_default() as usize;
            if opened < count * 9 / 10 {
                return Err(format!("only {opened} of {count} sessions were opened").into());
            }
            lost.add(*kind, result["lost"].as_f64().ok_or("no result")?);
        }
    }
    Ok(vec![lost])
}

fn lost_sessions(pair: &mut Pair, count: usize, while_opening: bool) -> Result<Value> {
    let rate = SESSION_RATE;
    let (mut client, _server) = open_sessions(&pair.client, &pair.server, count, rate)?;
    if while_opening {
        std::thread::sleep(Duration::from_millis(1500));
        pair.fire(Event::Power)?;
        client.line()?;
    } else {
        client.line()?;
        pair.fire(Event::Power)?;
    }
    // As at once as a machine can notice it: those that are idle have nothing to fear.
    client.tell("go")?;
    client.json()
}

/// Begins to open TCP sessions of two clients with the same source ports, `rate` a second; the
/// processes of the clients and of the server.
pub fn open_sessions(
    client: &Namespace,
    server: &Namespace,
    count: usize,
    rate: usize,
) -> Result<(Worker, Worker)> {
    let at = format!("{SERVER}:{PORT}");
    let mut server = server.worker(&["tcp-echo-server", &at], None)?;
    server.line()?;
    let (count, rate) = (count.to_string(), rate.to_string());
    let arguments = [
        "sessions",
        &at,
        "--sources",
        CLIENTS,
        "--count",
        &count,
        "--rate",
        &rate,
    ];
    let mut client = client.worker(&arguments, None)?;
    client.line()?;
    Ok((client, server))
}
