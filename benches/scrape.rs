//! The cost of metrics: a scrape with a million sessions, and the work of the event loop for them
//! each turn whether or not anybody scrapes: `cargo bench --bench scrape`.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tandemgw::os::{clock, process};
use tandemgw_core::control::{FastPathState, PortIo, ShellView};
use tandemgw_core::event::{Offload, Verdict};
use tandemgw_core::flow::Family;
use tandemgw_core::metrics::{Exposition, Histogram, View};
use testkit::lab::{CONFIG, LAN, Lab, Net};
use testkit::packets::udp;

const SESSIONS: u32 = 1_000_000;
const SCRAPES: u32 = 1000;
const TURNS: u32 = 1_000_000;
/// Packets that the event loop reads from a port in a turn at most.
const PACKETS_A_TURN: f64 = 64.0;

fn main() {
    let config = CONFIG.replace("max-sessions = 1024", "max-sessions = 1048576");
    let mut lab = Lab::of(&format!("{config}\n[limits]\nhalf-open-per-source = 0\n"));
    println!(" sessions      median        99 %  piece 99 %   bytes");
    scrape(&lab);
    fill(&mut lab);
    scrape(&lab);
    println!("piece: how long a scrape holds up packets at a time");
    turn();
}

/// Opens the sessions.
fn fill(lab: &mut Lab) {
    let net = Net::of(Family::V4);
    for index in 0..SESSIONS {
        let (port, service) = (
            1024 + (index % 60_000) as u16,
            100 + (index / 60_000) as u16,
        );
        let mut packet = udp((net.host, port), (net.dmz_host, service)).bytes();
        let now = lab.now;
        let verdict = lab
            .gateway
            .handle_packet(now, LAN, &mut packet, Offload::default());
        assert_eq!(verdict, Verdict::Forward, "session {index}");
    }
    assert_eq!(lab.sessions(), SESSIONS);
}

/// Measures a whole scrape except the socket.
fn scrape(lab: &Lab) {
    let ports = lab.gateway.config().ports.iter();
    let shell = ShellView {
        config_file: PathBuf::new(),
        ports: ports
            .map(|_| PortIo {
                offload: "tso",
                fast_path: FastPathState::Off,
            })
            .collect(),
        ..ShellView::default()
    };
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    let mut page = String::new();
    for _ in 0..SCRAPES {
        page = String::new();
        let mut exposition = Exposition::default();
        let start = Instant::now();
        let process = process::usage(process::since_epoch());
        pieces.push(start.elapsed());
        let view = View {
            gateway: &lab.gateway,
            shell: &shell,
            process: &process,
            now: lab.now,
        };
        let mut more = true;
        while more {
            let before = Instant::now();
            more = exposition.go_on(&view, &mut page);
            pieces.push(before.elapsed());
        }
        whole.push(start.elapsed());
    }
    let (sessions, bytes) = (lab.sessions(), page.len());
    let [half, most] = [50, 99].map(|percent| percentile(&mut whole, percent));
    let piece = percentile(&mut pieces, 99);
    println!("{sessions:>9}  {half:>10.1?}  {most:>10.1?}  {piece:>10.1?}  {bytes:>6}");
}

/// Not the very worst, which on a machine with other work is the scheduler's.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[times.len() * percent / 100]
}

/// Measures what a turn pays for the histogram: an observation, and a reading of the clock if it
/// does not read it anyway, which it does before each wait.
fn turn() {
    let mut turns = Histogram::default();
    let began = clock::now();
    let observing = time(|| turns.observe(black_box(Duration::from_micros(30))));
    let reading = time(|| {
        black_box(clock::now());
    });
    assert!(turns.count() > 0 && clock::now() > began);
    println!("observation {observing:.1} ns, reading of the clock {reading:.1} ns");
    println!(
        "a packet: {observing:.1} ns in a turn with one, {:.2} ns in a full turn",
        (observing + reading) / PACKETS_A_TURN
    );
}

/// Nanoseconds for one call.
fn time(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..TURNS {
        work();
    }
    start.elapsed().as_nanos() as f64 / f64::from(TURNS)
}
