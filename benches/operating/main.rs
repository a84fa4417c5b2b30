//! The cost of an administrator's commands for the packets: status, a listing, the page and the end
//! of a million sessions, asked of the real binary between a client and a server.
//!
//! `cargo bench --bench operating`; root, or in `unshare -rn`.

mod page;
mod turns;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use testkit::system::datapath::{Forwarder, Lab, SERVER};
use testkit::system::traffic::{FIRST_PORT, HELLO};
use testkit::system::worker::Result;

// The memory that a full table touches depends on it.
/// Sessions in the table: nearly all that it holds, so that the probe has room.
const SESSIONS: u64 = 1_040_000;
/// Of these as many must have been opened, since a sender that is too fast loses some.
const ENOUGH: u64 = 1_000_000;
/// Runs with and without, alternating: other work on the machine only adds to a delay, so the best
/// run of each kind tells most.
const ROUNDS: usize = 5;
/// The filter for all sessions but the one of the probe.
const OTHERS: &str = "src=10.77.1.128/25";

fn tandemgw() -> PathBuf {
    env!("CARGO_BIN_EXE_tandemgw").into()
}

fn main() -> ExitCode {
    testkit::system::worker::prefer_this_process();
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
    let folder = std::env::temp_dir().join(format!("tandemgw-operating-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = measure(&folder);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn measure(folder: &Path) -> Result<()> {
    println!("{:<52} {:>10} {:>10}  met", "what", "result", "wanted");
    turns::measure(folder)?;
    let lab = Lab::new(Forwarder::Tandemgw, false, folder, &tandemgw())?;
    let bench = Bench {
        pid: lab.pid().ok_or("no process")?,
        socket: folder.join("control.sock"),
        lab,
    };
    let server = SERVER.to_string();
    let mut echo = bench.lab.server.worker(&["udp-echo", &server], None)?;
    echo.line()?;
    make_real_time(echo.id());
    bench.fill()?;
    bench.status()?;
    bench.listing()?;
    page::measure(&bench, folder)?;
    bench.silent_client()?;
    bench.clear()
}

/// A gateway whose table is to be asked about.
struct Bench {
    lab: Lab,
    pid: u32,
    socket: PathBuf,
}

/// The probe packets' delays.
#[derive(Clone, Copy)]
struct Delays {
    worst: Duration,
    /// One in a thousand was worse.
    usual: Duration,
    lost: usize,
}

/// The best runs without and with what is measured.
#[derive(Default)]
struct Best(Option<[Delays; 2]>);

impl Best {
    fn add(&mut self, quiet: Delays, busy: Delays) {
        let all = self.0.get_or_insert([quiet, busy]);
        for (best, run) in all.iter_mut().zip([quiet, busy]) {
            if run.worst < best.worst {
                *best = run;
            }
        }
    }

    fn show(&self, what: &str) {
        let Some([quiet, busy]) = self.0 else { return };
        let added = busy.worst.saturating_sub(quiet.worst);
        let title = format!("{what}, worst delay added to a packet");
        show(&title, millis(added), "ms", Some(1.0));
        for (name, delays) in [("without", quiet), ("with", busy)] {
            let (worst, usual) = (millis(delays.worst), millis(delays.usual));
            println!(
                "  round trip {name:<8} worst {worst:.3} ms, 99.9 % within {usual:.3} ms, lost {}",
                delays.lost
            );
        }
    }
}

impl Bench {
    fn fill(&self) -> Result<()> {
        let mac = self.lab.gateway.mac_text("lan");
        let (sessions, server) = (SESSIONS.to_string(), SERVER.to_string());
        for _ in 0..20 {
            let arguments = [
                "udp-blast",
                "eth0",
                &mac,
                &server,
                "--flows",
                &sessions,
                "--packets",
                &sessions,
                "--rate",
                "150000",
            ];
            self.lab.client.worker(&arguments, None)?.line()?;
            if self.sessions()? >= ENOUGH {
                show("sessions in the table", self.sessions()? as f64, "", None);
                return Ok(());
            }
        }
        Err(format!("only {} sessions were opened", self.sessions()?).into())
    }

    fn status(&self) -> Result<()> {
        let raw = times(20, || self.ask("{\"command\":\"status\"}").map(|_| ()))?;
        show_times("status, raw socket", &raw);
        let whole = times(20, || self.run(&["status", "--json"]))?;
        show_times("status, whole command", &whole);
        Ok(())
    }

    fn listing(&self) -> Result<()> {
        let (mut took, mut best) = (Duration::MAX, Best::default());
        let before = self.memory()?;
        let mut most = before;
        for _ in 0..ROUNDS {
            let quiet = self.probe_for(Duration::from_secs(2))?;
            let start = Instant::now();
            let busy = self.probe_during(|| {
                self.run(&["sessions", "--json"])?;
                most = most.max(self.memory()?);
                Ok(())
            })?;
            took = took.min(start.elapsed());
            best.add(quiet, busy);
        }
        let lines = self.ask("{\"command\":\"sessions\"}")?;
        if lines < ENOUGH {
            return Err(format!("only {lines} sessions were listed").into());
        }
        show(
            "listing as JSON, whole command",
            took.as_secs_f64(),
            "s",
            None,
        );
        best.show("listing");
        show(
            "listing, growth of the process",
            mebibytes(most - before),
            "MiB",
            Some(16.0),
        );
        Ok(())
    }

    /// A client that asks for all and reads nothing.
    fn silent_client(&self) -> Result<()> {
        let before = self.memory()?;
        let mut streams = Vec::new();
        for _ in 0..8 {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.write_all(b"{\"command\":\"sessions\"}\n")?;
            streams.push(stream);
        }
        let delays = self.probe_for(Duration::from_secs(3))?;
        let growth = self.memory()?.saturating_sub(before);
        show(
            "8 clients that never read: growth",
            mebibytes(growth),
            "MiB",
            Some(16.0),
        );
        show(
            "8 clients that never read: worst round trip",
            millis(delays.worst),
            "ms",
            None,
        );
        let status = times(5, || self.ask("{\"command\":\"status\"}").map(|_| ()))?;
        show_times("8 clients that never read: status", &status);
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        let (mut took, mut best) = (Duration::MAX, Best::default());
        for _ in 0..3 {
            if self.sessions()? < ENOUGH {
                self.fill()?;
            }
            let quiet = self.probe_for(Duration::from_secs(2))?;
            let start = Instant::now();
            let busy = self.probe_during(|| {
                self.run(&["sessions", "clear", OTHERS])?;
                Ok(())
            })?;
            took = took.min(start.elapsed());
            if self.sessions()? > 100 {
                return Err(format!("{} sessions are left", self.sessions()?).into());
            }
            best.add(quiet, busy);
        }
        show("sessions clear, all", took.as_secs_f64(), "s", None);
        best.show("sessions clear");
        Ok(())
    }

    fn sessions(&self) -> Result<u64> {
        Ok(self.lab.sessions()?.ok_or("no sessions")?)
    }

    /// Asks the gateway, and returns the number of lines in the answer.
    fn ask(&self, request: &str) -> Result<u64> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut reader = BufReader::with_capacity(1 << 16, stream);
        let (mut lines, mut line) = (0, Vec::new());
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Err("the gateway closed the connection".into());
            }
            if line == b"{\"done\":true}\n" {
                return Ok(lines);
            }
            lines += 1;
        }
    }

    /// Runs a command as an administrator would, without the priority that the bench has.
    fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(tandemgw());
        // SAFETY: plain system calls, which allocate nothing and take no lock.
        unsafe { command.pre_exec(ordinary_priority) };
        command.arg("--socket").arg(&self.socket).args(arguments);
        let status = command.stdout(Stdio::null()).status()?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("tandemgw {arguments:?}: {status}").into()),
        }
    }

    /// Peak resident memory of the gateway's process in bytes.
    fn memory(&self) -> Result<u64> {
        let mut text = String::new();
        std::fs::File::open(format!("/proc/{}/status", self.pid))?.read_to_string(&mut text)?;
        let line = text.lines().find(|line| line.starts_with("VmHWM:"));
        let words = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(words.ok_or("no VmHWM")?.parse::<u64>()? * 1024)
    }

    fn probe_for(&self, time: Duration) -> Result<Delays> {
        self.probe_during(|| {
            thread::sleep(time);
            Ok(())
        })
    }

    /// The delays of packets that pass while `work` is done.
    fn probe_during(&self, work: impl FnOnce() -> Result<()>) -> Result<Delays> {
        let socket = self
            .lab
            .client
            .inside(|| UdpSocket::bind("10.77.1.100:0"))?;
        socket.connect((SERVER, FIRST_PORT))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let probe = thread::spawn(move || probe(&socket, &stopped));
        // The first packets wait for ARP, and are not counted.
        thread::sleep(WARM_UP);
        let result = work();
        stop.store(true, Ordering::Relaxed);
        let delays = probe.join().map_err(|_| "panic")??;
        result.map(|()| delays)
    }
}

const WARM_UP: Duration = Duration::from_millis(300);

/// One packet after the other to the server and back: some 10 kHz. A packet that takes longer than
/// the others was held up.
fn probe(socket: &UdpSocket, stop: &AtomicBool) -> std::io::Result<Delays> {
    make_real_time(0);
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let (mut seen, mut lost, mut number) = (Vec::new(), 0, 0u32);
    let start = Instant::now();
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let mut packet = [HELLO; 18];
        packet[1..5].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        socket.send(&packet)?;
        loop {
            match socket.recv(&mut buffer) {
                Ok(_) if buffer[1..5] == packet[1..5] => break seen.push(sent.elapsed()),
                // The answer to one that was given up.
                Ok(_) => {}
                Err(_) => break lost += usize::from(start.elapsed() > WARM_UP),
            }
        }
        if start.elapsed() < WARM_UP {
            seen.clear();
        }
        // So that whatever else has this processor gets on.
        thread::sleep(Duration::from_micros(20));
    }
    seen.sort_unstable();
    let at = |part: usize| seen.get(part).copied().unwrap_or_default();
    Ok(Delays {
        worst: at(seen.len().saturating_sub(1)),
        usual: at(seen.len() - seen.len() / 1000 - 1),
        lost,
    })
}

/// The measuring process must not wait for the measured one. For a process, or 0 for this thread.
fn make_real_time(pid: u32) {
    let parameters = libc::sched_param { sched_priority: 10 };
    // SAFETY: the kernel reads `parameters` only. A refusal shows in the figures.
    unsafe { libc::sched_setscheduler(pid as libc::pid_t, libc::SCHED_FIFO, &parameters) };
}

/// Undoes [`testkit::system::worker::prefer_this_process`] between fork and exec.
fn ordinary_priority() -> std::io::Result<()> {
    // SAFETY: plain system calls with constant strings, the lengths of which are right; a bad
    // descriptor is only refused.
    unsafe {
        libc::setsid();
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        let fd = libc::open(c"/proc/self/autogroup".as_ptr(), libc::O_WRONLY);
        libc::write(fd, c"0".as_ptr().cast(), 1);
        libc::close(fd);
    }
    Ok(())
}

/// The times of `count` runs, the shortest first.
fn times(count: usize, mut run: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
    let mut all = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        run()?;
        all.push(start.elapsed());
    }
    all.sort_unstable();
    Ok(all)
}

fn show_times(what: &str, times: &[Duration]) {
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    show(&format!("{what}, median"), millis(median), "ms", Some(20.0));
    show(&format!("{what}, worst"), millis(worst), "ms", None);
}

fn show(what: &str, value: f64, unit: &str, at_most: Option<f64>) {
    let value_text = match unit {
        "" => format!("{value:.0}"),
        _ => format!("{value:.2} {unit}"),
    };
    match at_most {
        Some(limit) => {
            let met = if value <= limit { "yes" } else { "NO" };
            println!(
                "{what:<52} {value_text:>10} {:>10}  {met}",
                format!("<= {limit}")
            );
        }
        None => println!("{what:<52} {value_text:>10}"),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
