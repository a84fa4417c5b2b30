//! Two things that go wrong one after the other, and what many groups and many units cost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, Setup, last};
use crate::pair::{Kind, SERVER};
use crate::takeover::{Echo, PORT, open_sessions};
use crate::{Figure, Options, Target};
use testkit::system::worker::{Result, Worker};

/// TCP sessions of two clients with the same source ports, and how many are opened a second.
const SESSIONS: usize = 2000;
const RATE: usize = 500;

/// Clients whose sessions go through a cluster.
struct Clients {
    client: Worker,
    _server: Worker,
}

impl Clients {
    fn start(cluster: &Cluster) -> Result<Clients> {
        let (client, server) = open_sessions(&cluster.client, &cluster.server, SESSIONS, RATE)?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(Clients {
            client,
            _server: server,
        })
    }

    /// Waits until all are open.
    fn opened(&mut self) -> Result<()> {
        self.client.line().map(|_| ())
    }

    /// Tries each of them: how many were lost.
    fn lost(&mut self) -> Result<f64> {
        self.client.tell("go")?;
        let result: Value = self.client.json()?;
        eprintln!("{result}");
        if result["opened"].as_u64() < Some(SESSIONS as u64 / 4) {
            return Err(format!("too few sessions were opened: {result}").into());
        }
        result["lost"].as_f64().ok_or("no result".into())
    }
}

fn strict(priorities: &'static [u8]) -> Setup {
    Setup {
        guarantee: "strict",
        ..Setup::new(priorities)
    }
}

/// Sessions that are lost in compound faults, under `strict`.
pub fn faults(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    type Fault = fn(&Path) -> Result<f64>;
    let faults: [(&str, Fault); 4] = [
        ("isolated standby of a pair returns", |folder| {
            isolated(&[200, 100], folder)
        }),
        ("isolated standby of three returns", |folder| {
            isolated(&[200, 150, 100], folder)
        }),
        ("stale standby of higher priority, primary dies", stale),
        ("flood against a smaller table, primary dies", smaller_table),
    ];
    let mut figures = Vec::new();
    for (what, fault) in faults {
        let what = format!("{what}: of {SESSIONS} sessions lost");
        let mut lost = Figure::new(what, "", Target::AtMost(0.0));
        for _ in 0..options.runs {
            lost.add(Kind::Tandemgw, fault(folder)?);
        }
        figures.push(lost);
    }
    Ok(figures)
}

fn isolated(priorities: &'static [u8], folder: &Path) -> Result<f64> {
    let cluster = Cluster::new(strict(priorities), folder)?;
    let mut clients = Clients::start(&cluster)?;
    cluster.isolate(1, true)?;
    cluster.wait("the isolated unit to promote itself", |it| it.is_primary(1))?;
    clients.opened()?;
    cluster.isolate(1, false)?;
    let all: Vec<usize> = (0..priorities.len()).collect();
    let primary = cluster.wait_for_one_primary(&all)?;
    cluster.wait_until_equal(primary, &[])?;
    clients.lost()
}

fn stale(folder: &Path) -> Result<f64> {
    let cluster = Cluster::new(strict(&[100, 110, 200]), folder)?;
    let mut clients = Clients::start(&cluster)?;
    cluster.cut(0, 2)?;
    clients.opened()?;
    cluster.wait_until_equal(0, &[2])?;
    cluster.power_off(0)?;
    cluster.wait_for_one_primary(&[1, 2])?;
    clients.lost()
}

fn smaller_table(folder: &Path) -> Result<f64> {
    let mut setup = strict(&[200, 100]);
    setup.max_sessions[1] = 4096;
    let cluster = Cluster::new(setup, folder)?;
    let mut clients = Clients::start(&cluster)?;
    let mac = cluster.units[0].namespace.mac_text("eth0");
    let flood = [
        "udp-blast",
        "eth0",
        &mac,
        SERVER,
        "--flows",
        "20000",
        "--packets",
        "20000",
        "--rate",
        "10000",
    ];
    cluster.client.worker(&flood, None)?.line()?;
    clients.opened()?;
    std::thread::sleep(Duration::from_secs(1));
    cluster.power_off(0)?;
    cluster.wait_for_one_primary(&[1])?;
    clients.lost()
}

/// The two standbys of three do not hear each other over the link when their primary dies: how long
/// both are primary.
pub fn dual(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let mut longest = Figure::new(
        format!(
            "two standbys without a link, {} runs: longest time of two primaries",
            options.dual_runs
        ),
        "ms",
        Target::AtMost(0.0),
    );
    let mut worst = 0.0f64;
    for _ in 0..options.dual_runs {
        let cluster = Cluster::new(Setup::new(&[200, 150, 100]), folder)?;
        cluster.cut(1, 2)?;
        cluster.wait("the standbys to miss each other", |it| {
            Ok(it.status(1)?["peers"][1]["connected"] == false)
        })?;
        cluster.power_off(0)?;
        let time = longest_dual(&cluster)?;
        worst = worst.max(time);
        eprintln!("two primaries for {time} ms");
    }
    longest.add(Kind::Tandemgw, worst);
    Ok(vec![longest])
}

/// In ms, over two seconds in which one becomes primary.
fn longest_dual(cluster: &Cluster) -> Result<f64> {
    let began = Instant::now();
    let (mut since, mut longest) = (None, Duration::ZERO);
    while began.elapsed() < Duration::from_secs(2) {
        let both = cluster.is_primary(1)? && cluster.is_primary(2)?;
        since = both.then(|| since.unwrap_or_else(Instant::now));
        longest = longest.max(since.map_or(Duration::ZERO, |since| since.elapsed()));
    }
    cluster.wait_for_one_primary(&[1, 2])?;
    Ok(longest.as_secs_f64() * 1e3)
}

/// Groups that move at once, and hosts that were heard.
const GROUPS: usize = 64;
const HOSTS: &str = "1000";

/// All groups move at once: when the last of them is announced, after the end of the primary was
/// noticed.
pub fn groups(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let what = format!("{GROUPS} groups, {HOSTS} hosts heard, primary killed: ");
    let mut first = Figure::new(format!("{what}first group announced"), "ms", Target::None);
    let mut dark = Figure::new(
        format!("{what}last group announced"),
        "ms",
        Target::AtMost(20.0),
    );
    for _ in 0..options.runs {
        let setup = Setup {
            groups: GROUPS,
            ..Setup::new(&[200, 150, 100])
        };
        let cluster = Cluster::new(setup, folder)?;
        cluster
            .client
            .worker(&["hosts", "eth0", HOSTS], None)?
            .line()?;
        std::thread::sleep(Duration::from_secs(1));
        let mut watch = cluster
            .client
            .worker(&["announcements", "eth0", "3"], None)?;
        watch.line()?;
        let killed = crate::workers::monotonic();
        cluster.units[0].signal(libc::SIGKILL)?;
        let seen: BTreeMap<String, f64> = serde_json::from_value(watch.json()?)?;
        let times: Vec<f64> = (0..GROUPS)
            .map(|group| {
                let at = seen.get(&format!("10.77.1.{}", last(group)));
                at.map(|at| (at - killed) * 1e3)
                    .ok_or_else(|| format!("group {group} is not announced"))
            })
            .collect::<std::result::Result<_, _>>()?;
        first.add(
            Kind::Tandemgw,
            times.iter().copied().fold(f64::MAX, f64::min),
        );
        dark.add(Kind::Tandemgw, times.iter().copied().fold(0.0, f64::max));
    }
    Ok(vec![first, dark])
}

/// Four units are restarted one after the other, while packets pass.
pub fn rolling(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let mut lost = Figure::new(
        "rolling restart of four units: packets lost",
        "",
        Target::AtMost(0.0),
    );
    let mut gap = Figure::new(
        "rolling restart of four units: longest gap",
        "ms",
        Target::None,
    );
    for _ in 0..options.runs {
        let mut cluster = Cluster::new(Setup::new(&[200, 150, 100, 50]), folder)?;
        let at = format!("{SERVER}:{PORT}");
        let mut server = cluster.server.worker(&["echo-server", &at], None)?;
        server.line()?;
        let mut client = cluster.client.worker(&["echo", &at, "30"], None)?;
        client.line()?;
        let began = Instant::now();
        for unit in 0..4 {
            cluster.stop(unit)?;
            let others: Vec<usize> = (0..4).filter(|other| *other != unit).collect();
            let primary = cluster.wait_for_one_primary(&others)?;
            cluster.start(unit)?;
            cluster.wait_until_equal(primary, &[])?;
        }
        eprintln!("four restarts took {:.1} s", began.elapsed().as_secs_f64());
        if began.elapsed() > Duration::from_secs(29) {
            return Err("the restarts took longer than the traffic".into());
        }
        let echo = Echo::parse(&client.json()?)?;
        lost.add(Kind::Tandemgw, echo.lost() as f64);
        gap.add(Kind::Tandemgw, echo.longest_gap(0.0, f64::MAX));
    }
    Ok(vec![lost, gap])
}

/// Sessions of one measurement of what a copy costs.
const COPIED: u64 = 100_000;

/// The cost of a new session for its owner, for each peer beyond the first; and for a third one if
/// two hold it.
pub fn copies(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let figure = |what: &str| {
        let what = format!("CPU of the owner for the {what} peer");
        Figure::new(what, "µs a session", Target::AtMost(0.5))
    };
    let (mut second, mut third) = (figure("second"), figure("third"));
    let mut left_out = figure("third, with `copies = 2`,");
    for _ in 0..options.runs {
        let all: [&'static [u8]; 3] = [&[200, 100], &[200, 150, 100], &[200, 150, 100, 50]];
        let costs = all.map(|priorities| owner_cost(priorities, 0, folder));
        let [one, two, three] = costs;
        let limited = owner_cost(all[2], 2, folder)?;
        let (one, two, three) = (one?, two?, three?);
        second.add(Kind::Tandemgw, two - one);
        third.add(Kind::Tandemgw, three - two);
        left_out.add(Kind::Tandemgw, limited - two);
    }
    Ok(vec![second, third, left_out])
}

/// In µs a new session.
fn owner_cost(priorities: &'static [u8], copies: u8, folder: &Path) -> Result<f64> {
    let setup = Setup {
        copies,
        // On a machine with few processors no unit may be missed.
        threshold: 50,
        ..Setup::new(priorities)
    };
    let cluster = Cluster::new(setup, folder)?;
    // The last one has the lowest priority.
    let peers = priorities.len() - 1;
    let left_out: &[usize] = if copies > 0 { &[3] } else { &[] };
    for peer in left_out {
        cluster.wait_until_relieved(*peer)?;
    }
    let mac = cluster.units[0].namespace.mac_text("eth0");
    let (before, start) = (cluster.cpu_time(0)?, Instant::now());
    std::thread::sleep(Duration::from_secs(1));
    let idle = (cluster.cpu_time(0)? - before).div_f64(start.elapsed().as_secs_f64());
    let count = COPIED.to_string();
    // Slow enough that a batch is what arrives in a turn, with one peer as with three.
    let blast = [
        "udp-blast",
        "eth0",
        &mac,
        SERVER,
        "--flows",
        &count,
        "--packets",
        &count,
        "--rate",
        "40000",
    ];
    let (before, start) = (cluster.cpu_time(0)?, Instant::now());
    cluster.client.worker(&blast, None)?.line()?;
    cluster.wait_until_equal(0, left_out)?;
    let used = cluster.cpu_time(0)? - before;
    let used = used.saturating_sub(idle.mul_f64(start.elapsed().as_secs_f64()));
    let total = cluster.status(0)?["sessions"]["total"].as_f64();
    let opened = total.ok_or("no total")?;
    if opened < COPIED as f64 / 2.0 {
        return Err(format!("only {opened} sessions were opened").into());
    }
    let cost = used.as_secs_f64() * 1e6 / opened;
    eprintln!("{peers} peers, copies {copies}: {cost:.2} µs a session of {opened}",);
    Ok(cost)
}
