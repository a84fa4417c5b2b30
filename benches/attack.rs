//! The cost of attacks for a host that does nothing wrong: its loss and its delays, beside those
//! without the attack.
//!
//! `cargo bench --bench attack [-- ROUNDS]`; root, or in `unshare -rn`. In each round all attacks
//! take turns with a quiet time, so that a busy machine is as busy for all of them; the median of
//! the rounds is printed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use tandemgw::node_key::NodeKey;
use tandemgw::os::packet_socket::PacketSocket;
use tandemgw::os::quic::Transport;
use tandemgw_core::multicast::ethernet;
use tandemgw_core::multicast::message::{Record, RecordKind, Sender, report_frame};
use testkit::system::namespace::Namespace;
use testkit::system::transport::{free_address, ha, peer};
use testkit::system::worker::{Result, Worker};

/// An attack and its packets a second.
const ATTACKS: &[(&str, u64, &str)] = &[
    ("nothing", 0, "lan"),
    ("SYNs into an exhausted destination", 40_000, "lan"),
    ("junk to the virtual address", 40_000, "lan"),
    ("datagrams to random addresses of a link", 400, "lan"),
    ("half-open sessions in the victim's name", 4_000, "lan"),
    ("half-open sessions of a whole IPv6 /64", 4_000, "lan"),
    ("packets without a hop left", 20_000, "lan"),
    ("hosts that join groups", 20_000, "lan"),
    ("a stream that nobody wants", 40_000, "lan"),
    ("streams of many groups that a host wants", 40_000, "lan"),
    ("handshakes forged from the peer's address", 5_000, "sync"),
];

/// How long each is measured.
const TIME: Duration = Duration::from_secs(3);
/// Datagrams of the victim a second; every tenth begins a session.
const VICTIM_RATE: u64 = 500;
const ROUNDS: usize = 3;
/// Frames that a flood goes through.
const FRAMES: u32 = 8192;
/// After this time an answer counts as lost.
const PATIENCE: Duration = Duration::from_millis(500);

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 100);
const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 100);
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 101);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const PORT: u16 = 7000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["worker", "echo"] => echo(),
        ["worker", "flood", attack, interface, gateway] => flood(attack, interface, gateway),
        [] => measure(ROUNDS),
        [rounds] => rounds.parse().map_err(Into::into).and_then(measure),
        _ => Err("usage: attack [ROUNDS]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The victim's packets.
#[derive(Clone, Copy, Debug)]
struct Seen {
    loss: f64,
    p99: Duration,
    /// Packets that the gateway dropped meanwhile.
    dropped: u64,
}

fn measure(rounds: usize) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("tandemgw-attack-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = measure_in(&folder, rounds);
    std::fs::remove_dir_all(&folder)?;
    let seen = result?;
    let quiet = median(&seen["nothing"]);
    println!("| attack | packets a second | dropped | loss | p99 | p99 beside quiet |");
    println!("|---|---|---|---|---|---|");
    for (attack, rate, _) in ATTACKS {
        let Seen { loss, p99, dropped } = median(&seen[attack]);
        let more = p99.as_secs_f64() - quiet.p99.as_secs_f64();
        println!(
            "| {attack} | {rate} | {dropped} | {:.2} % | {} µs | {:+.0} µs |",
            loss * 100.0,
            p99.as_micros(),
            more * 1e6
        );
    }
    Ok(())
}

fn median(seen: &[Seen]) -> Seen {
    let mut losses: Vec<f64> = seen.iter().map(|it| it.loss).collect();
    let mut delays: Vec<Duration> = seen.iter().map(|it| it.p99).collect();
    losses.sort_by(f64::total_cmp);
    delays.sort();
    let mut dropped: Vec<u64> = seen.iter().map(|it| it.dropped).collect();
    dropped.sort_unstable();
    Seen {
        loss: losses[losses.len() / 2],
        p99: delays[delays.len() / 2],
        dropped: dropped[dropped.len() / 2],
    }
}

fn measure_in(folder: &Path, rounds: usize) -> Result<BTreeMap<&'static str, Vec<Seen>>> {
    let mut seen: BTreeMap<&str, Vec<Seen>> = BTreeMap::new();
    for _ in 0..rounds {
        for (attack, rate, from) in ATTACKS {
            // A separate gateway: an attack must not see what another one left behind.
            let lab = Lab::new(folder)?;
            let flood = match rate {
                0 => None,
                _ => Some(lab.flood(attack, from)?),
            };
            let mut victim = lab.victim()?;
            drop(flood);
            victim.dropped = dropped(folder)?;
            seen.entry(attack).or_default().push(victim);
        }
    }
    Ok(seen)
}

/// Victim and attacker on one link, the gateway, a server, and the link to a peer that is not
/// there.
struct Lab {
    victim: Namespace,
    attacker: Namespace,
    gateway: Namespace,
    sync: Namespace,
    _others: [Namespace; 2],
    _processes: [Worker; 2],
}

impl Lab {
    fn new(folder: &Path) -> Result<Lab> {
        let switch = Namespace::first("switch");
        let [victim, attacker, gateway, server, sync] =
            ["victim", "attacker", "gateway", "server", "sync"].map(|name| switch.sibling(name));
        gateway.ip_batch(&format!(
            "link set lo up
             link add lan type veth peer name gw netns {switch}
             link add wan type veth peer name eth0 netns {server}
             link add sync0 type veth peer name eth0 netns {sync}
             link set lan up
             link set wan up
             link set sync0 up
             addr add 10.77.1.2/24 dev lan
             addr add 10.77.2.2/24 dev wan
             addr add 10.77.9.1/24 dev sync0
             addr add fd77:1::2/64 dev lan nodad
             addr add fd77:2::2/64 dev wan nodad",
            switch = switch.path(),
            server = server.path(),
            sync = sync.path(),
        ))?;
        for (host, name, number) in [(&victim, "v", 100), (&attacker, "a", 101)] {
            host.ip_batch(&format!(
                "link set lo up
                 link add eth0 type veth peer name {name} netns {}
                 link set eth0 up
                 addr add 10.77.1.{number}/24 dev eth0
                 route add default via 10.77.1.1",
                switch.path()
            ))?;
        }
        switch.ip_batch(
            "link add br0 type bridge
             link set br0 up
             link set dev gw master br0
             link set dev gw up
             link set dev v master br0
             link set dev v up
             link set dev a master br0
             link set dev a up",
        )?;
        server.ip_batch(
            "link set lo up
             link set eth0 up
             addr add 10.77.2.100/24 dev eth0
             addr add fd77:2::100/64 dev eth0 nodad",
        )?;
        // Attempts stay without an answer, and their ports taken.
        server.nft(
            "table inet quiet {
               chain early {
                 type filter hook input priority 0
                 tcp flags syn drop
               }
             }",
        )?;
        sync.ip_batch("link set lo up\nlink set eth0 up\naddr add 10.77.9.2/24 dev eth0")?;
        let gateway_process = start(&gateway, folder)?;
        let echo = server.worker(&["echo"], None)?;
        std::thread::sleep(Duration::from_millis(500));
        Ok(Lab {
            victim,
            attacker,
            gateway,
            sync,
            _others: [switch, server],
            _processes: [gateway_process, echo],
        })
    }

    fn flood(&self, attack: &str, from: &str) -> Result<Worker> {
        let (namespace, interface) = match from {
            "sync" => (&self.sync, "sync0"),
            _ => (&self.attacker, "lan"),
        };
        let mac = self.gateway.mac_text(interface);
        let worker = namespace.worker(&["flood", attack, "eth0", &mac], None)?;
        // It makes its frames first.
        std::thread::sleep(Duration::from_secs(1));
        Ok(worker)
    }

    /// Asks the server again and again; a tenth of them from ports without a session yet.
    fn victim(&self) -> Result<Seen> {
        let seen = self
            .victim
            .inside(|| ask().map_err(|error| error.to_string()));
        Ok(seen?)
    }
}

fn start(gateway: &Namespace, folder: &Path) -> Result<Worker> {
    let binary: PathBuf = env!("CARGO_BIN_EXE_tandemgw").into();
    let key = folder.join("gw.key");
    let _ = std::fs::remove_file(&key);
    let made = Command::new(&binary)
        .arg("keygen")
        .arg("--out")
        .arg(&key)
        .output()?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).into());
    }
    let config = folder.join("gw.toml");
    std::fs::write(&config, configuration(folder))?;
    let mut command = Command::new(&binary);
    command.arg("run").arg("--config").arg(config);
    command.env("RUST_LOG", "error").stdout(Stdio::null());
    gateway.start(&mut command, None)
}

fn configuration(folder: &Path) -> String {
    let other = NodeKey::from_seed([1; 32]).public();
    let join = |n: u8| format!("[[multicast-join]]\nport = \"wan\"\ngroup = \"239.3.0.{n}\"\n");
    let joins: String = (0..=255).map(join).collect();
    format!(
        r#"
[node]
name = "gw-b"
key = "gw.key"
control-socket = "{folder}/control.sock"

[[port]]
name = "lan"
interface = "lan"
virtual-addresses = ["10.77.1.1/24", "fd77:1::1/64"]

[[port]]
name = "wan"
interface = "wan"
virtual-addresses = ["10.77.2.1/24", "fd77:2::1/64"]

[[nat-pool]]
name = "few"
addresses = ["10.77.2.9", "fd77:2::9"]
ports = "20000-20099"

[[policy]]
name = "exhausted"
service = ["tcp/443"]
action = "accept"
nat-pool = "few"

[[policy]]
name = "out"
from = ["lan"]
to = ["wan"]
action = "accept"
nat = true

[[multicast-policy]]
name = "streams"
from = ["lan"]
to = ["wan"]
group = ["239.0.0.0/8"]
action = "accept"

[[multicast-policy]]
name = "back"
from = ["wan"]
to = ["lan"]
group = ["239.0.0.0/8"]
action = "accept"

{joins}
[ha]
group-id = 7
heartbeat-interval = "20ms"

[[ha.link]]
interface = "sync0"
listen = "10.77.9.1:7030"

[[ha.peer]]
name = "gw-a"
addresses = ["10.77.9.2:7030"]
public-key = "{other}"
"#,
        folder = folder.display(),
        joins = joins
    )
}

/// Packets that the gateway has dropped, for whatever reason: whether the attack was one.
fn dropped(folder: &Path) -> Result<u64> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandemgw"));
    command.arg("--socket").arg(folder.join("control.sock"));
    let output = command.args(["status", "--json"]).output()?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let reasons = status["counters"]["dropped"]
        .as_object()
        .ok_or("no counters")?;
    Ok(reasons.values().filter_map(serde_json::Value::as_u64).sum())
}

fn echo() -> Result<()> {
    let socket = UdpSocket::bind((SERVER, PORT))?;
    let mut bytes = [0; 64];
    loop {
        let (length, from) = socket.recv_from(&mut bytes)?;
        let _ = socket.send_to(&bytes[..length], from);
    }
}

fn ask() -> Result<Seen> {
    let settled = UdpSocket::bind((VICTIM, 0))?;
    settled.connect((SERVER, PORT))?;
    // The gateway is primary once it has waited for its peer.
    settled.set_read_timeout(Some(Duration::from_millis(100)))?;
    let start = Instant::now();
    while settled.send(&[0; 8]).is_err() || settled.recv(&mut [0; 8]).is_err() {
        if start.elapsed() > Duration::from_secs(20) {
            return Err("the server can't be reached".into());
        }
    }
    settled.set_read_timeout(Some(PATIENCE))?;
    let (start, mut delays, mut lost, mut sent) = (Instant::now(), Vec::new(), 0u64, 0u64);
    while start.elapsed() < TIME {
        let due = Duration::from_nanos(1_000_000_000 / VICTIM_RATE * sent);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        sent += 1;
        let fresh = (sent % 10 == 0)
            .then(|| UdpSocket::bind((VICTIM, 0)))
            .transpose()?;
        if let Some(fresh) = &fresh {
            fresh.connect((SERVER, PORT))?;
            fresh.set_read_timeout(Some(PATIENCE))?;
        }
        let socket = fresh.as_ref().unwrap_or(&settled);
        let asked = Instant::now();
        socket.send(&sent.to_be_bytes())?;
        match answer(socket, sent) {
            true => delays.push(asked.elapsed()),
            false => lost += 1,
        }
    }
    delays.sort();
    let p99 = delays.get(delays.len() * 99 / 100).copied();
    Ok(Seen {
        loss: lost as f64 / sent as f64,
        p99: p99.unwrap_or(PATIENCE),
        dropped: 0,
    })
}

/// Whether the answer to the question of that number comes in time.
fn answer(socket: &UdpSocket, number: u64) -> bool {
    let mut bytes = [0; 8];
    loop {
        match socket.recv(&mut bytes) {
            Ok(_) if bytes == number.to_be_bytes() => return true,
            // One that was given up.
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// Sends the frames of an attack, at its rate, until it is killed.
fn flood(attack: &str, interface: &str, gateway: &str) -> Result<()> {
    let (_, rate, _) = ATTACKS
        .iter()
        .find(|(name, ..)| *name == attack)
        .ok_or("no such attack")?;
    let mut mac = [0; 6];
    for (byte, hex) in mac.iter_mut().zip(gateway.split(':')) {
        *byte = u8::from_str_radix(hex, 16)?;
    }
    let frames = frames(attack, mac)?;
    let socket = PacketSocket::open(interface)?;
    let (start, mut sent) = (Instant::now(), 0u64);
    loop {
        let due = (start.elapsed().as_secs_f64() * *rate as f64) as u64;
        while sent < due {
            // A full queue loses some; the attacker does not care.
            let _ = socket.send(&frames[sent as usize % frames.len()]);
            sent += 1;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn frames(attack: &str, mac: [u8; 6]) -> Result<Vec<Vec<u8>>> {
    let numbers = 0..FRAMES;
    let made = match attack {
        "SYNs into an exhausted destination" => numbers
            .map(|n| syn(mac, ATTACKER, 1024 + n as u16, 443))
            .collect(),
        "junk to the virtual address" => numbers
            .map(|n| udp(mac, ATTACKER, GATEWAY, 64, 1024 + n as u16))
            .collect(),
        "datagrams to random addresses of a link" => numbers
            .map(|n| {
                udp6(
                    mac,
                    [0xfd77, 1, 0, 0, 0, 0, 0, 0x101],
                    [0xfd77, 2, 0, 0, 5, 0, 0, n as u16],
                )
            })
            .collect(),
        "half-open sessions in the victim's name" => numbers
            .map(|n| syn(mac, VICTIM, 1024 + n as u16, 80 + (n % 7) as u16))
            .collect(),
        "half-open sessions of a whole IPv6 /64" => numbers
            .map(|n| {
                udp6(
                    mac,
                    [0xfd77, 1, 0, 0, 9, 9, 9, n as u16],
                    [0xfd77, 2, 0, 0, 0, 0, 0, 0x100],
                )
            })
            .collect(),
        "packets without a hop left" => numbers
            .map(|n| udp(mac, ATTACKER, SERVER, 1, 1024 + n as u16))
            .collect(),
        "hosts that join groups" => numbers
            .map(|n| {
                let [_, _, high, low] = n.to_be_bytes();
                let host = Ipv4Addr::new(10, 77, 1, 16 + (n % 200) as u8);
                join(host, Ipv4Addr::new(239, 1, high, low))
            })
            .collect(),
        "a stream that nobody wants" => numbers
            .map(|n| to_many(Ipv4Addr::new(239, 2, 0, 0), n))
            .collect(),
        "streams of many groups that a host wants" => numbers
            .map(|n| to_many(Ipv4Addr::new(239, 3, 0, n as u8), n))
            .collect(),
        _ => initials(mac)?,
    };
    Ok(made)
}

/// A report of IGMPv3.
fn join(host: Ipv4Addr, group: Ipv4Addr) -> Vec<u8> {
    let record = Record {
        kind: RecordKind::ToExclude,
        group: IpAddr::V4(group).into(),
        sources: Vec::new(),
    };
    let sender = Sender {
        mac: OTHER,
        addr: IpAddr::V4(host).into(),
    };
    report_frame(&[record], sender)
}

fn to_many(group: Ipv4Addr, number: u32) -> Vec<u8> {
    let mac = ethernet(&IpAddr::V4(group).into());
    udp(mac, ATTACKER, group, 64, 1024 + number as u16)
}

const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x66];

fn syn(mac: [u8; 6], from: Ipv4Addr, port: u16, to: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(OTHER, mac)
        .ipv4(from.octets(), SERVER.octets(), 64)
        .tcp(port, to, 1, 65535)
        .syn();
    let mut frame = Vec::new();
    builder.write(&mut frame, &[]).expect("memory");
    frame
}

fn udp(mac: [u8; 6], from: Ipv4Addr, to: Ipv4Addr, hops: u8, port: u16) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(OTHER, mac)
        .ipv4(from.octets(), to.octets(), hops)
        .udp(port, 9);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"junk").expect("memory");
    frame
}

fn udp6(mac: [u8; 6], from: [u16; 8], to: [u16; 8]) -> Vec<u8> {
    let octets = |words| Ipv6Addr::from(words).octets();
    let builder = PacketBuilder::ethernet2(OTHER, mac)
        .ipv6(octets(from), octets(to), 64)
        .udp(4000, 9);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"junk").expect("memory");
    frame
}

/// Initials as sent by a unit with an unknown key, from the peer's address.
fn initials(mac: [u8; 6]) -> Result<Vec<Vec<u8>>> {
    let target = UdpSocket::bind("127.0.0.1:0")?;
    target.set_read_timeout(Some(Duration::from_secs(5)))?;
    let key = NodeKey::from_seed([99; 32]);
    let stranger = NodeKey::from_seed([98; 32]).public();
    let ha = ha(
        free_address(),
        vec![peer("gw-b", target.local_addr()?, stranger)],
    );
    let mut frames = Vec::new();
    for seed in 0..512 {
        let mut unit = Transport::new(&ha, "gw-a", &key, seed)?;
        unit.poll(Instant::now());
        let mut bytes = [0; 2048];
        let length = target.recv(&mut bytes)?;
        let builder = PacketBuilder::ethernet2(OTHER, mac)
            .ipv4([10, 77, 9, 2], [10, 77, 9, 1], 64)
            .udp(7030, 7030);
        let mut frame = Vec::new();
        builder.write(&mut frame, &bytes[..length])?;
        frames.push(frame);
    }
    Ok(frames)
}
