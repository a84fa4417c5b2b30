//! The cost of replication for a healthy pair.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::pair::{Kind, Pair, SERVER, Settings};
use crate::takeover::echo_while;
use crate::workers::monotonic;
use crate::{Figure, Options, Target};
use testkit::system::worker::Result;

/// Sessions of one measurement of the rate: the kernel's table holds not many more.
const SESSIONS: u64 = 200_000;

/// How often a unit is asked what it has.
const ASK_INTERVAL: Duration = Duration::from_millis(10);

/// New UDP sessions, until the other unit has acknowledged all of them.
pub fn replication(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let mut rate = Figure::new(
        "new UDP sessions replicated",
        "sessions/s",
        Target::AtLeast(200_000.0),
    );
    let mut missing = Figure::new("of those not replicated", "%", Target::AtMost(0.0));
    let mut sender = Figure::new(
        "CPU of the sender beyond forwarding",
        "µs a session",
        Target::AtMost(1.0),
    );
    let mut receiver = Figure::new("CPU of the receiver", "µs a session", Target::AtMost(1.2));
    for _ in 0..options.runs {
        for kind in &options.kinds {
            let run = replicate(*kind, true, folder)?;
            rate.add(*kind, run.replicated as f64 / run.seconds);
            let lost = run.opened.saturating_sub(run.replicated) as f64;
            missing.add(*kind, lost * 100.0 / run.opened as f64);
            let cost = |cpu: Duration| cpu.as_secs_f64() * 1e6 / run.opened as f64;
            receiver.add(*kind, cost(run.cpu[1]));
            let alone = match kind {
                Kind::Tandemgw => {
                    let run = replicate(*kind, false, folder)?;
                    run.cpu[0].as_secs_f64() * 1e6 / run.opened as f64
                }
                // Its kernel forwards.
                Kind::Keepalived => 0.0,
            };
            sender.add(*kind, cost(run.cpu[0]) - alone);
        }
    }
    Ok(vec![rate, missing, sender, receiver])
}

struct Run {
    opened: u64,
    replicated: u64,
    seconds: f64,
    cpu: [Duration; 2],
}

/// Heartbeats that may be missed where a rate is measured: on a machine with too few processors for
/// the pair and its load, a takeover in between would spoil the figure.
const PATIENT: u32 = 50;

/// Without `ha` it is the first unit alone, and nothing is replicated.
fn replicate(kind: Kind, ha: bool, folder: &Path) -> Result<Run> {
    let pair = Pair::new(
        Settings {
            ha,
            both: ha,
            heartbeat_lost_threshold: PATIENT,
            ..Settings::new(kind)
        },
        folder,
    )?;
    let mac = pair.units[0].namespace.mac_text("eth0");
    let sessions = SESSIONS.to_string();
    let blast = [
        "udp-blast",
        "eth0",
        &mac,
        SERVER,
        "--flows",
        &sessions,
        "--packets",
        &sessions,
    ];
    let cpu = |unit| match ha || unit == 0 {
        true => pair.cpu_time(unit),
        false => Ok(Duration::ZERO),
    };
    let idle = idle(&pair, ha, &cpu)?;
    let before = [cpu(0)?, cpu(1)?];
    let start = Instant::now();
    let mut client = pair.client.worker(&blast, None)?;
    client.line()?;
    let (replicated, seconds) = if ha { settled(&pair, start)? } else { (0, 0.0) };
    if !ha {
        std::thread::sleep(Duration::from_millis(500));
    }
    let passed = start.elapsed().as_secs_f64();
    let used = |unit: usize| -> Result<Duration> {
        let used = cpu(unit)? - before[unit];
        Ok(used.saturating_sub(idle[unit].mul_f64(passed)))
    };
    let cpu = [used(0)?, used(1)?];
    Ok(Run {
        opened: pair.opened()?,
        replicated,
        seconds,
        cpu,
    })
}

/// The CPU time a second of both units without packets, but with this process's questions.
fn idle(pair: &Pair, ha: bool, cpu: &impl Fn(usize) -> Result<Duration>) -> Result<[Duration; 2]> {
    let (before, start) = ([cpu(0)?, cpu(1)?], Instant::now());
    while start.elapsed() < Duration::from_secs(1) {
        if ha {
            pair.replicated()?;
        }
        std::thread::sleep(ASK_INTERVAL);
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate =
        |unit: usize| -> Result<Duration> { Ok((cpu(unit)? - before[unit]).div_f64(seconds)) };
    Ok([rate(0)?, rate(1)?])
}

/// The sessions that the other unit has once it gets no more, and the seconds until then.
fn settled(pair: &Pair, start: Instant) -> Result<(u64, f64)> {
    const QUIET: Duration = Duration::from_secs(1);
    let (mut count, mut seconds) = (0, 0.0);
    loop {
        let now = start.elapsed();
        let replicated = pair.replicated()?;
        if replicated > count {
            (count, seconds) = (replicated, now.as_secs_f64());
        }
        if count > 0 && now.as_secs_f64() > seconds + QUIET.as_secs_f64() {
            return Ok((count, seconds));
        }
        if now > Duration::from_secs(30) {
            return Err("no session is replicated".into());
        }
        std::thread::sleep(ASK_INTERVAL);
    }
}

/// A unit joins one that has many sessions.
pub fn snapshot(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let count = options.snapshot_sessions;
    let mut time = Figure::new(
        format!("snapshot of {count} sessions"),
        "s",
        Target::AtMost(1.0),
    );
    let mut latency = Figure::new(
        "p99 of forwarding meanwhile / idle",
        "",
        Target::AtMost(2.0),
    );
    for _ in 0..options.runs {
        let mut pair = Pair::new(
            Settings {
                both: false,
                max_sessions: u32::try_from(count + count / 4)?,
                ..Settings::new(Kind::Tandemgw)
            },
            folder,
        )?;
        fill(&pair, count)?;
        let (echo, (start, end)) = echo_while(&mut pair, 4.0, |pair| {
            pair.start(1)?;
            pair.wait("a connection", |pair| {
                let status = pair.status(0)?;
                Ok(status["peers"][0]["lag"]["sequence_gap"].as_u64() > Some(0)
                    && status["peers"][0]["connected"] == true)
            })?;
            let start = monotonic();
            pair.wait("equal digests", |pair| {
                Ok(pair.status(0)?["peers"][0]["digest_equal"] == true)
            })?;
            Ok((start, monotonic()))
        })?;
        let replicated = pair.replicated()?;
        if replicated < count {
            return Err(format!("{replicated} of {count} sessions were replicated").into());
        }
        time.add(Kind::Tandemgw, end - start);
        let p99 = |times: &[f64]| times.get(times.len() * 99 / 100).copied();
        let idle = p99(&echo.round_trips(0.0, echo.sent[0] + 0.9));
        let busy = p99(&echo.round_trips(start, end));
        eprintln!("p99 in ms: idle {idle:?}, meanwhile {busy:?}");
        if let (Some(idle), Some(busy)) = (idle, busy) {
            latency.add(Kind::Tandemgw, busy / idle);
        }
    }
    Ok(vec![time, latency])
}

/// Has the first unit hold `count` sessions.
fn fill(pair: &Pair, count: u64) -> Result<()> {
    let mac = pair.units[0].namespace.mac_text("eth0");
    let count_text = count.to_string();
    // On a busy machine packets are lost.
    for _ in 0..10 {
        let blast = [
            "udp-blast",
            "eth0",
            &mac,
            SERVER,
            "--flows",
            &count_text,
            "--packets",
            &count_text,
            "--rate",
            "150000",
            "--seconds",
            "120",
        ];
        pair.client.worker(&blast, None)?.line()?;
        std::thread::sleep(Duration::from_millis(300));
        if pair.opened()? >= count {
            return Ok(());
        }
    }
    Err(format!(
        "only {} of {count} sessions could be opened",
        pair.opened()?
    )
    .into())
}

/// One TCP stream, with replication and without.
pub fn throughput(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let mut best = [0.0f64; 2];
    for _ in 0..options.runs {
        for (ha, best) in [true, false].into_iter().zip(&mut best) {
            let settings = Settings {
                ha,
                both: ha,
                heartbeat_lost_threshold: PATIENT,
                ..Settings::new(Kind::Tandemgw)
            };
            let pair = Pair::new(settings, folder)?;
            let at = format!("{SERVER}:5001");
            let mut sink = pair.server.worker(&["tcp-sink", &at], None)?;
            sink.line()?;
            let mut client = pair.client.worker(&["stream", &at, "2"], None)?;
            client.line()?;
            client.line()?;
            let rate = sink.result("gbit_s")?;
            eprintln!("one TCP stream, [ha] {ha}: {rate:.2} Gbit/s");
            *best = best.max(rate);
        }
    }
    let what = "one TCP stream, with sync / without (best of all runs)";
    let mut ratio = Figure::new(what, "", Target::AtLeast(0.97));
    ratio.add(Kind::Tandemgw, best[0] / best[1]);
    Ok(vec![ratio])
}

/// A pair with the usual timers on a machine without an idle processor.
pub fn calm(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let what = format!("takeovers in {} s with all processors loaded", options.calm);
    let mut takeovers = Figure::new(what, "", Target::AtMost(0.0));
    let pair = Pair::new(Settings::new(Kind::Tandemgw), folder)?;
    let processors = std::thread::available_parallelism()?.get();
    let burners = (0..processors).map(|_| pair.server.worker(&["burn"], None));
    let _burners = burners.collect::<Result<Vec<_>>>()?;
    let at = format!("{SERVER}:5001");
    let mut sink = pair.server.worker(&["tcp-sink", &at], None)?;
    sink.line()?;
    let term = |unit| -> Result<f64> {
        let status = pair.status(unit)?;
        Ok(status["groups"][0]["term"].as_f64().ok_or("no term")?)
    };
    let before = term(0)?.max(term(1)?);
    let seconds = options.calm.to_string();
    let mut client = pair.client.worker(&["stream", &at, &seconds], None)?;
    client.line()?;
    client.line()?;
    takeovers.add(Kind::Tandemgw, term(0)?.max(term(1)?) - before);
    Ok(vec![takeovers])
}
