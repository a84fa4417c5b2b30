//! The cost of metrics, watchdog and control socket for a packet: instructions of the whole
//! process, counted by valgrind, with all of them off and with all of them on.
//!
//! `cargo bench --bench overhead`; root, or in `unshare -rn`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;

use testkit::system::datapath::{Forwarder, Lab, Launch, SERVER};
use testkit::system::worker::Result;

/// Traffic: packets that come together, packets a second (slow enough for valgrind, so that those
/// that come together are one turn of the loop), packets of a short and of a long run, whose
/// difference is without start and end.
const LOADS: [(u64, u64, [u64; 2]); 2] = [(1, 3000, [3000, 23_000]), (64, 12_800, [6400, 134_400])];
/// The best of this many runs; they differ in how the packets fall into turns.
const ROUNDS: usize = 4;
/// Scrapes and status requests of a run that asks.
const QUESTIONS: u64 = 20;

const METRICS: &str = "[metrics]\nlisten = \"127.0.0.1:10747\"\n";

fn tandemgw() -> PathBuf {
    env!("CARGO_BIN_EXE_tandemgw").into()
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let result = match arguments.next().as_deref() {
        Some("worker") => testkit::system::traffic::Worker::parse_from(arguments).run(),
        _ => drive(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn drive() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("tandemgw-overhead-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = measure(&folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn measure(folder: &Path) -> Result<()> {
    let mut off = 0.0;
    for load @ (batch, ..) in LOADS {
        let mut best = [f64::MAX; 2];
        for _ in 0..ROUNDS {
            for (best, on) in best.iter_mut().zip([false, true]) {
                *best = best.min(instructions_a_packet(folder, on, load)?);
            }
        }
        let on = best[1];
        off = best[0];
        println!(
            "instructions a packet of the process, {batch:>2} a turn: off {off:.0}, on {on:.0}, \
             ratio {:.3} (wanted <= 1.02)",
            on / off
        );
    }
    let (batch, rate, [packets, _]) = LOADS[1];
    let quiet = run(folder, true, (batch, rate, packets), 0)?;
    let asked = run(folder, true, (batch, rate, packets), QUESTIONS)?;
    let more = asked.instructions.saturating_sub(quiet.instructions) / QUESTIONS;
    println!(
        "a scrape and a status together: {more} instructions, as many as {:.0} packets",
        more as f64 / off
    );
    Ok(())
}

fn instructions_a_packet(
    folder: &Path,
    on: bool,
    (batch, rate, [short, long]): (u64, u64, [u64; 2]),
) -> Result<f64> {
    let short = run(folder, on, (batch, rate, short), 0)?;
    let long = run(folder, on, (batch, rate, long), 0)?;
    let packets = (long.packets - short.packets) as f64;
    Ok((long.instructions - short.instructions) as f64 / packets)
}

struct Count {
    instructions: u64,
    packets: u64,
}

/// Starts a gateway, sends it packets, ends it; what valgrind counted.
fn run(
    folder: &Path,
    on: bool,
    (batch, rate, packets): (u64, u64, u64),
    questions: u64,
) -> Result<Count> {
    let (out, notify) = (folder.join("callgrind"), folder.join("notify"));
    let _ = std::fs::remove_file(&notify);
    let manager = UnixDatagram::bind(&notify)?;
    manager.set_nonblocking(true)?;
    let mut launch = Launch {
        launcher: vec![
            "valgrind".to_owned(),
            "--quiet".to_owned(),
            "--tool=callgrind".to_owned(),
            format!("--callgrind-out-file={}", out.display()),
        ],
        ..Launch::of(&tandemgw())
    };
    if on {
        launch.config = METRICS;
        launch.environment = vec![
            ("NOTIFY_SOCKET", notify.display().to_string()),
            ("WATCHDOG_USEC", "1000000".to_owned()),
        ];
    }
    let lab = Lab::launched(Forwarder::Tandemgw, false, folder, &launch)?;
    let mac = lab.gateway.mac_text("lan");
    let [count, batch, rate] = [packets, batch, rate].map(|number| number.to_string());
    let server = SERVER.to_string();
    let arguments = [
        "udp-blast",
        "eth0",
        &mac,
        &server,
        "--flows",
        "1000",
        "--packets",
        &count,
        "--batch",
        &batch,
        "--rate",
        &rate,
    ];
    lab.client.worker(&arguments, None)?.line()?;
    for _ in 0..questions {
        lab.gateway.inside(scrape)?;
        ask(&folder.join("control.sock"))?;
    }
    let pid = lab.pid().ok_or("no process")?;
    let forwarded = forwarded(&folder.join("control.sock"))?;
    if forwarded * 100 < packets * 95 {
        return Err(format!("only {forwarded} of {packets} packets came through").into());
    }
    end(pid)?;
    Ok(Count {
        instructions: totals(&out)?,
        packets: forwarded,
    })
}

fn scrape() -> std::io::Result<()> {
    let mut stream = TcpStream::connect("127.0.0.1:10747")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: gw\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    match page.contains("tandemgw_packets_forwarded_total") {
        true => Ok(()),
        false => Err(std::io::Error::other(format!("no metrics: {page}"))),
    }
}

fn ask(socket: &Path) -> Result<serde_json::Value> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"{\"command\":\"status\"}\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(serde_json::from_str(
        answer.lines().next().unwrap_or_default(),
    )?)
}

fn forwarded(socket: &Path) -> Result<u64> {
    let status = ask(socket)?;
    Ok(status["counters"]["forwarded"]
        .as_u64()
        .ok_or("no such counter")?)
}

/// Ends the gateway, and waits until it is gone: only then valgrind has written what it counted.
fn end(pid: u32) -> Result<()> {
    Command::new("kill").arg(pid.to_string()).status()?;
    let start = Instant::now();
    while is_alive(pid) {
        if start.elapsed() > Duration::from_secs(20) {
            return Err("the gateway does not end".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether a child still runs; one that has ended waits for its parent as a zombie.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.starts_with('Z') && !rest.is_empty())
}

fn totals(out: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(out)?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(line.ok_or("valgrind counted nothing")?.trim().parse()?)
}
