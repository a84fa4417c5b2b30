//! Two gateways between a LAN and a WAN switch, with a sync link between them.
//!
//! Client 10.77.1.100 (and .101), server 10.77.2.100, virtual addresses 10.77.1.1 and 10.77.2.1.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::keepalived;
use testkit::system::namespace::Namespace;
use testkit::system::traffic::{FIRST_SOURCE, SOURCES};
use testkit::system::worker::{Result, Worker};

/// The address of the server.
pub const SERVER: &str = "10.77.2.100";
/// The addresses of the client.
pub const CLIENTS: &str = "10.77.1.100,10.77.1.101";

/// The software that the gateways run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Tandemgw,
    /// keepalived for the addresses, conntrackd for the sessions, nftables for the translation.
    Keepalived,
}

/// How the gateways are set up.
#[derive(Clone)]
pub struct Settings {
    pub kind: Kind,
    /// Without it the first unit is alone and has no `[ha]`.
    pub ha: bool,
    pub heartbeat_interval: &'static str,
    pub heartbeat_lost_threshold: u32,
    pub pickup_guarantee: &'static str,
    pub max_sessions: u32,
    /// Whether the second unit starts with the first.
    pub both: bool,
    /// `offload` of both ports.
    pub offload: &'static str,
    /// More of the config.
    pub more: &'static str,
}

impl Settings {
    /// The usual timers.
    pub fn new(kind: Kind) -> Settings {
        Settings {
            kind,
            ha: true,
            heartbeat_interval: "20ms",
            heartbeat_lost_threshold: 5,
            pickup_guarantee: "off",
            max_sessions: 1 << 20,
            both: true,
            offload: "auto",
            more: "",
        }
    }

    /// The quick heartbeats that the targets of the gaps are for.
    pub fn quick(kind: Kind) -> Settings {
        Settings {
            heartbeat_interval: "2ms",
            heartbeat_lost_threshold: 3,
            ..Settings::new(kind)
        }
    }
}

/// The lab; the first unit is primary.
pub struct Pair {
    pub client: Namespace,
    pub server: Namespace,
    pub units: [Unit; 2],
    settings: Settings,
    folder: PathBuf,
    switch: Namespace,
}

/// A machine.
pub struct Unit {
    pub namespace: Namespace,
    pub processes: Vec<Worker>,
    /// An `ip` that waits for its commands: a power cut takes no time to start.
    switch: Worker,
}

/// How the primary ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Event {
    /// All of its links go down, and its processes stop.
    Power,
    /// Its processes stop, its links and its kernel stay.
    Freeze,
    /// Its processes are killed, its links and its kernel stay.
    Kill,
    /// It hands over.
    Handover,
}

const NAMES: [&str; 2] = ["a", "b"];
/// How long the units may take to become a pair.
const PATIENCE: Duration = Duration::from_secs(30);

impl Pair {
    /// Builds a new one, and waits until the pair is ready.
    pub fn new(settings: Settings, folder: &Path) -> Result<Pair> {
        let switch = Namespace::first("switch");
        let (client, server) = (Namespace::first("client"), Namespace::first("server"));
        let units = [Unit::new()?, Unit::new()?];
        connect(&switch, &client, &server, &units)?;
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir(folder)?;
        let mut pair = Pair {
            client,
            server,
            units,
            settings,
            folder: folder.to_owned(),
            switch,
        };
        pair.configure()?;
        pair.start(0)?;
        // Of two that start together, the one that is ready first is primary, and that may be the
        // second.
        pair.wait_for_primary()?;
        if pair.settings.both {
            pair.start(1)?;
            pair.wait_for_pair()?;
        } else {
            // It comes up before it has read all routes.
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(pair)
    }

    /// One more host on the LAN.
    pub fn host(&self, number: usize) -> Result<Namespace> {
        let host = Namespace::first("host");
        self.switch.ip_batch(&format!(
            "link add lan-{number} type veth peer name eth0 netns {}
             link set lan-{number} master lan
             link set lan-{number} up",
            host.path()
        ))?;
        host.ip_batch(&format!(
            "link set lo up
             link set eth0 up
             addr add 10.77.1.{}/24 dev eth0",
            110 + number
        ))?;
        Ok(host)
    }

    /// Whether a unit has a multicast session.
    pub fn has_stream(&self, unit: usize) -> Result<bool> {
        let mut command = Command::new(crate::tandemgw());
        let socket = self.folder.join(format!("{}.sock", NAMES[unit]));
        command.arg("--socket").arg(socket);
        let output = command
            .args(["sessions", "state=multicast", "--json"])
            .output()?;
        Ok(String::from_utf8(output.stdout)?.contains("239.1.1.1"))
    }

    /// Starts what runs on a unit.
    pub fn start(&mut self, unit: usize) -> Result<()> {
        let name = NAMES[unit];
        let namespace = &self.units[unit].namespace;
        let processes = match self.settings.kind {
            Kind::Keepalived => keepalived::start(namespace, name, &self.folder)?,
            Kind::Tandemgw => {
                let log = std::fs::File::create(self.folder.join(format!("{name}.log")))?;
                let mut command = Command::new(crate::tandemgw());
                command.arg("run").arg("--config");
                command.arg(self.folder.join(format!("{name}.toml")));
                let level = std::env::var("RUST_LOG").unwrap_or("info".into());
                command.env("RUST_LOG", level).stdout(Stdio::null());
                command.stderr(log);
                vec![namespace.start(&mut command, None)?]
            }
        };
        self.units[unit].processes = processes;
        Ok(())
    }

    /// Lets the first unit die, or hand over.
    pub fn fire(&mut self, event: Event) -> Result<()> {
        // Beside the logs, which have the time of day too.
        let since = std::time::UNIX_EPOCH.elapsed()?;
        std::fs::write(
            self.folder.join("event"),
            format!("{event:?} at {:.6}\n", since.as_secs_f64()),
        )?;
        let unit = &mut self.units[0];
        match event {
            Event::Power => {
                unit.signal(libc::SIGSTOP)?;
                // At once, to the other unit: the kernel takes down one link after the other, and
                // tells of none before it has done all that it was asked for. First what counts:
                // the cable between the units, or the links that a kernel goes on forwarding on.
                let (first, then) = match self.settings.kind {
                    Kind::Tandemgw => (&["sync0"][..], &["eth0", "eth1"][..]),
                    Kind::Keepalived => (&["eth0", "eth1"][..], &["sync0"][..]),
                };
                unit.cut(first)?;
                std::thread::sleep(Duration::from_millis(20));
                unit.cut(then)
            }
            Event::Freeze => unit.signal(libc::SIGSTOP),
            Event::Kill => unit.signal(libc::SIGKILL),
            Event::Handover if self.settings.kind == Kind::Keepalived => {
                // Its way to hand over: it stops, and says so.
                let keepalived = &unit.processes[1];
                send_signal(keepalived.id(), libc::SIGTERM)
            }
            Event::Handover => {
                let answer = self.ask(0, r#"{"command": "failover"}"#)?;
                match &answer["refused"] {
                    Value::Null => Ok(()),
                    reason => Err(format!("handover refused: {reason}").into()),
                }
            }
        }
    }

    /// The status of a unit of tandemgw.
    pub fn status(&self, unit: usize) -> Result<Value> {
        self.ask(unit, r#"{"command": "status"}"#)
    }

    /// The CPU time that the processes of a unit have used.
    pub fn cpu_time(&self, unit: usize) -> Result<Duration> {
        self.units[unit]
            .processes
            .iter()
            .map(Worker::cpu_time)
            .sum()
    }

    /// The sessions of the other unit that it has by now.
    pub fn replicated(&self) -> Result<u64> {
        match self.settings.kind {
            Kind::Tandemgw => {
                let status = self.status(1)?;
                Ok(status["sessions"]["total"].as_u64().ok_or("no total")?)
            }
            Kind::Keepalived => {
                keepalived::external(&self.units[1].namespace, NAMES[1], &self.folder)
            }
        }
    }

    /// The sessions that the first unit has.
    pub fn opened(&self) -> Result<u64> {
        match self.settings.kind {
            Kind::Tandemgw => {
                let status = self.status(0)?;
                Ok(status["sessions"]["total"].as_u64().ok_or("no total")?)
            }
            Kind::Keepalived => keepalived::tracked(&self.units[0].namespace),
        }
    }

    /// Waits until `condition` holds.
    pub fn wait(&self, what: &str, condition: impl Fn(&Pair) -> Result<bool>) -> Result<Duration> {
        let start = Instant::now();
        // A unit that starts refuses connections: not an answer yet.
        while !condition(self).unwrap_or(false) {
            if start.elapsed() > PATIENCE {
                return Err(format!(
                    "waited for {what} for {} s; see the logs in {}",
                    PATIENCE.as_secs(),
                    self.folder.display()
                )
                .into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(start.elapsed())
    }

    fn wait_for_primary(&self) -> Result<Duration> {
        self.wait("the first unit to be primary", |pair| {
            match pair.settings.kind {
                Kind::Tandemgw => Ok(pair.status(0)?["groups"][0]["role"] == "primary"),
                Kind::Keepalived => keepalived::is_master(&pair.units[0].namespace),
            }
        })
    }

    /// Waits until both units are up, and equal.
    pub fn wait_for_pair(&self) -> Result<()> {
        match self.settings.kind {
            Kind::Tandemgw => self.wait("the pair to be in sync", |pair| {
                let (a, b) = (pair.status(0)?, pair.status(1)?);
                Ok(a["groups"][0]["role"] == "primary"
                    && a["peers"][0]["digest_equal"] == true
                    && b["groups"][0]["ready"] == true)
            })?,
            Kind::Keepalived => self.wait("keepalived to be master", |pair| {
                keepalived::is_master(&pair.units[0].namespace)
            })?,
        };
        // The scripts of keepalived, and the routes of tandemgw.
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    fn ask(&self, unit: usize, request: &str) -> Result<Value> {
        let path = self.folder.join(format!("{}.sock", NAMES[unit]));
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        match &answer["error"] {
            Value::Null => Ok(answer),
            error => Err(error.to_string().into()),
        }
    }

    fn configure(&self) -> Result<()> {
        if self.settings.kind == Kind::Keepalived {
            for (unit, name) in self.units.iter().zip(NAMES) {
                keepalived::configure(&unit.namespace, name, &self.folder)?;
            }
            return Ok(());
        }
        for name in NAMES {
            let key = self.folder.join(format!("{name}.key"));
            let mut command = Command::new(crate::tandemgw());
            let output = command.arg("keygen").arg("--out").arg(key).output()?;
            let public = String::from_utf8(output.stdout)?;
            std::fs::write(self.folder.join(format!("{name}.pub")), public.trim())?;
        }
        for (name, peer) in [("a", "b"), ("b", "a")] {
            let public = std::fs::read_to_string(self.folder.join(format!("{peer}.pub")))?;
            let text = configuration(&self.settings, &self.folder, name, peer, &public);
            std::fs::write(self.folder.join(format!("{name}.toml")), text)?;
        }
        Ok(())
    }
}

impl Drop for Pair {
    /// Before the namespaces go: a stopped process does not end by itself.
    fn drop(&mut self) {
        for unit in &mut self.units {
            let _ = unit.signal(libc::SIGKILL);
        }
    }
}

impl Unit {
    /// A machine without links.
    pub fn new() -> Result<Unit> {
        let namespace = Namespace::first("unit");
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped());
        let switch = namespace.start(&mut command, None)?;
        Ok(Unit {
            switch,
            namespace,
            processes: vec![],
        })
    }

    fn cut(&mut self, interfaces: &[&str]) -> Result<()> {
        let lines: Vec<String> = interfaces
            .iter()
            .map(|interface| format!("link set {interface} down"))
            .collect();
        self.switch.tell(&lines.join("\n"))
    }

    /// Sends a signal to its processes.
    pub fn signal(&self, signal: i32) -> Result<()> {
        for process in &self.processes {
            for id in keepalived::family(process.id()) {
                send_signal(id, signal)?;
            }
        }
        Ok(())
    }
}

/// Sends a signal to a process.
pub fn send_signal(process: u32, signal: i32) -> Result<()> {
    // SAFETY: plain system call without pointers.
    match unsafe { libc::kill(process as i32, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

fn connect(
    switch: &Namespace,
    client: &Namespace,
    server: &Namespace,
    units: &[Unit; 2],
) -> Result<()> {
    for bridge in ["lan", "wan"] {
        switch.ip_batch(&format!(
            "link add {bridge} type bridge mcast_snooping 0
             link set {bridge} up"
        ))?;
    }
    let [a, b] = [&units[0].namespace, &units[1].namespace];
    let cables = [
        (a, "eth0", "lan", "lan-a"),
        (b, "eth0", "lan", "lan-b"),
        (client, "eth0", "lan", "lan-c"),
        (a, "eth1", "wan", "wan-a"),
        (b, "eth1", "wan", "wan-b"),
        (server, "eth0", "wan", "wan-s"),
    ];
    for (host, interface, bridge, port) in cables {
        switch.ip_batch(&format!(
            "link add {port} type veth peer name {interface} netns {}
             link set {port} master {bridge}
             link set {port} up",
            host.path()
        ))?;
        host.ip_batch(&format!("link set lo up\nlink set {interface} up"))?;
    }
    // The kernel tells at once that a cable is out, unless it told of any other link of the machine
    // within the last second (linkwatch); other namespaces are not part of this machine. If both
    // ends of a veth have different numbers it always tells at once.
    a.ip_batch(&format!(
        "link add sync0 index 40 type veth peer name sync0 netns {}",
        b.path()
    ))?;
    for (unit, host) in [(a, 2), (b, 3)] {
        unit.ip_batch(&format!(
            "link set sync0 up mtu 9000
             addr add 10.77.9.{sync}/24 dev sync0
             addr add 10.77.1.{host}/24 dev eth0
             addr add 10.77.2.{host}/24 dev eth1",
            sync = host - 1,
        ))?;
    }
    client.ip_batch(
        "addr add 10.77.1.100/24 dev eth0
         addr add 10.77.1.101/24 dev eth0
         route add default via 10.77.1.1",
    )?;
    server.ip_batch("addr add 10.77.2.100/24 dev eth0")?;
    let mac = client.mac_text("eth0");
    // Those that the raw frames come from.
    let sources = (0..SOURCES).map(|n| std::net::Ipv4Addr::from(u32::from(FIRST_SOURCE) + n));
    let neighbours: String = sources
        .map(|ip| format!("neigh add {ip} lladdr {mac} dev eth0\n"))
        .collect();
    units
        .iter()
        .try_for_each(|unit| unit.namespace.ip_batch(&neighbours))?;
    // The forwarder of a packet to the server also pays for its reception, so that must be cheap.
    let (first, last) = (
        testkit::system::traffic::FIRST_PORT,
        testkit::system::traffic::FIRST_PORT + testkit::system::traffic::PORTS - 1,
    );
    server.nft(&format!(
        "table netdev sink {{
           chain early {{
             type filter hook ingress device eth0 priority 0
             udp dport {first}-{last} drop
           }}
         }}"
    ))
}

fn configuration(
    settings: &Settings,
    folder: &Path,
    name: &str,
    peer: &str,
    public: &str,
) -> String {
    let folder = folder.display();
    let (max_sessions, offload) = (settings.max_sessions, settings.offload);
    let gateway = format!(
        r#"
[node]
name = "{name}"
key = "{name}.key"
control-socket = "{folder}/{name}.sock"
max-sessions = {max_sessions}

[[port]]
name = "lan"
interface = "eth0"
offload = "{offload}"
virtual-addresses = ["10.77.1.1/24"]

[[port]]
name = "wan"
interface = "eth1"
offload = "{offload}"
virtual-addresses = ["10.77.2.1/24"]

# One address has too few ports for a million sessions.
[[nat-pool]]
name = "pool"
addresses = ["10.77.2.10-10.77.2.17"]

[[policy]]
name = "many"
from = ["lan"]
to = ["wan"]
service = ["udp/6000-6063"]
action = "accept"
nat-pool = "pool"

[[policy]]
name = "out"
from = ["lan"]
to = ["wan"]
action = "accept"
nat = true

[timeouts]
udp-unreplied = "600s"

[limits]
half-open-per-source = 0
"#
    );
    let gateway = gateway + settings.more;
    match settings.ha {
        true => gateway + &ha_configuration(settings, name, peer, public),
        false => gateway,
    }
}

fn ha_configuration(settings: &Settings, name: &str, peer: &str, public: &str) -> String {
    let (own, other, priority) = match name {
        "a" => (1, 2, 200),
        _ => (2, 1, 100),
    };
    let (interval, threshold) = (
        settings.heartbeat_interval,
        settings.heartbeat_lost_threshold,
    );
    let guarantee = settings.pickup_guarantee;
    format!(
        r#"
[ha]
group-id = 7
priority = {priority}
heartbeat-interval = "{interval}"
heartbeat-lost-threshold = {threshold}
monitor = ["lan", "wan"]
pickup-guarantee = "{guarantee}"

[[ha.link]]
interface = "sync0"
listen = "10.77.9.{own}:7030"

[[ha.peer]]
name = "{peer}"
addresses = ["10.77.9.{other}:7030"]
public-key = "{public}"
"#
    )
}
