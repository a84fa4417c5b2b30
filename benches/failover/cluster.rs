//! Two to four gateways between a LAN and a WAN, with a switch between them.
//!
//! Client 10.77.1.100 (and .101), server 10.77.2.100, virtual addresses 10.77.1.1 and 10.77.2.1;
//! unit `n` is 10.77.1.(n + 2), 10.77.2.(n + 2) and, between the units, 10.77.9.(n + 1).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::pair::{Unit, send_signal};
use testkit::system::namespace::Namespace;
use testkit::system::traffic::{FIRST_SOURCE, SOURCES};
use testkit::system::worker::{Result, Worker};

/// Names of the units.
pub const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// How long the units may take for anything.
const PATIENCE: Duration = Duration::from_secs(40);

/// How the units are set up.
#[derive(Clone)]
pub struct Setup {
    /// One for each unit.
    pub priorities: &'static [u8],
    pub guarantee: &'static str,
    /// Peers that hold each group; 0 if all do.
    pub copies: u8,
    /// Heartbeats that may be missed.
    pub threshold: u32,
    /// Each has an address on either port.
    pub groups: usize,
    /// By unit.
    pub max_sessions: [u32; 4],
}

impl Setup {
    /// Units with the usual timers and one group.
    pub fn new(priorities: &'static [u8]) -> Setup {
        Setup {
            priorities,
            guarantee: "off",
            copies: 0,
            threshold: 5,
            groups: 1,
            max_sessions: [1 << 20; 4],
        }
    }
}

/// The lab.
pub struct Cluster {
    pub client: Namespace,
    pub server: Namespace,
    pub units: Vec<Unit>,
    switch: Namespace,
    setup: Setup,
    folder: PathBuf,
}

/// The last number of the addresses of a group.
pub fn last(group: usize) -> usize {
    match group {
        0 => 1,
        _ => 10 + group,
    }
}

impl Cluster {
    /// Builds a new one, and waits until its first unit is primary and all others hold what it
    /// holds.
    pub fn new(setup: Setup, folder: &Path) -> Result<Cluster> {
        let switch = Namespace::first("switch");
        let (client, server) = (Namespace::first("client"), Namespace::first("server"));
        let count = setup.priorities.len();
        let units = (0..count).map(|_| Unit::new()).collect::<Result<_>>()?;
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir(folder)?;
        let mut cluster = Cluster {
            client,
            server,
            units,
            switch,
            setup,
            folder: folder.to_owned(),
        };
        cluster.connect()?;
        cluster.configure()?;
        cluster.start(0)?;
        cluster.wait("the first unit to be primary", |it| it.is_primary(0))?;
        (1..count).try_for_each(|unit| cluster.start(unit))?;
        cluster.wait_until_equal(0, &[])?;
        // They come up before they have read all routes.
        std::thread::sleep(Duration::from_millis(300));
        Ok(cluster)
    }

    fn connect(&self) -> Result<()> {
        for bridge in ["lan", "wan", "sync"] {
            self.switch.ip_batch(&format!(
                "link add {bridge} type bridge mcast_snooping 0\nlink set {bridge} up"
            ))?;
        }
        let mut cables = vec![
            (&self.client, "eth0", "lan", "client"),
            (&self.server, "eth0", "wan", "server"),
        ];
        for (unit, name) in self.units.iter().zip(NAMES) {
            let ports = [("eth0", "lan"), ("eth1", "wan"), ("sync0", "sync")];
            cables.extend(ports.map(|(port, bridge)| (&unit.namespace, port, bridge, name)));
        }
        for (host, interface, bridge, name) in cables {
            self.switch.ip_batch(&format!(
                "link add {bridge}-{name} type veth peer name {interface} netns {}
                 link set {bridge}-{name} master {bridge}
                 link set {bridge}-{name} up",
                host.path()
            ))?;
            host.ip_batch(&format!("link set lo up\nlink set {interface} up"))?;
            if bridge == "sync" {
                host.ip_batch(&format!("link set {interface} mtu 9000"))?;
                let port = format!("link set {bridge}-{name} mtu 9000");
                self.switch.ip_batch(&port)?;
            }
        }
        let mac = self.client.mac_text("eth0");
        let sources = (0..SOURCES).map(|n| std::net::Ipv4Addr::from(u32::from(FIRST_SOURCE) + n));
        let neighbours: String = sources
            .map(|ip| format!("neigh add {ip} lladdr {mac} dev eth0\n"))
            .collect();
        for (n, unit) in self.units.iter().enumerate() {
            unit.namespace.ip_batch(&format!(
                "addr add 10.77.9.{}/24 dev sync0
                 addr add 10.77.1.{host}/24 dev eth0
                 addr add 10.77.2.{host}/24 dev eth1
                 {neighbours}",
                n + 1,
                host = n + 2,
            ))?;
        }
        self.client.ip_batch(
            "addr add 10.77.1.100/24 dev eth0
             addr add 10.77.1.101/24 dev eth0
             route add default via 10.77.1.1",
        )?;
        self.server.ip_batch("addr add 10.77.2.100/24 dev eth0")?;
        // Flows that are only opened should cost the server little.
        self.server.nft(
            "table netdev sink {
               chain early {
                 type filter hook ingress device eth0 priority 0
                 udp dport 6000-6063 drop
               }
             }",
        )
    }

    fn configure(&self) -> Result<()> {
        let names = &NAMES[..self.units.len()];
        let mut keys = Vec::new();
        for name in names {
            let key = self.folder.join(format!("{name}.key"));
            let mut command = Command::new(crate::tandemgw());
            let output = command.arg("keygen").arg("--out").arg(key).output()?;
            keys.push(String::from_utf8(output.stdout)?.trim().to_owned());
        }
        for (unit, name) in names.iter().enumerate() {
            let text = self.configuration(unit, &keys);
            std::fs::write(self.folder.join(format!("{name}.toml")), text)?;
        }
        Ok(())
    }

    fn configuration(&self, unit: usize, keys: &[String]) -> String {
        let Setup {
            priorities,
            guarantee,
            copies,
            threshold,
            groups,
            max_sessions,
        } = &self.setup;
        let (folder, name, max) = (self.folder.display(), NAMES[unit], max_sessions[unit]);
        let mut text = format!(
            "[node]\nname = \"{name}\"\nkey = \"{name}.key\"\ncontrol-socket = \"{folder}/{name}.sock\"\n\
             max-sessions = {max}\n"
        );
        for (net, port, interface) in [(1, "lan", "eth0"), (2, "wan", "eth1")] {
            let all = (0..*groups).map(|group| {
                let n = last(group);
                format!("\"10.77.{net}.{n}/24\", \"fd77:{net}::{n}/64\"")
            });
            let all: Vec<String> = all.collect();
            text += &format!(
                "[[port]]\nname = \"{port}\"\ninterface = \"{interface}\"\nvirtual-addresses = [{}]\n",
                all.join(", ")
            );
        }
        for group in (0..*groups).filter(|_| *groups > 1) {
            let n = last(group);
            text += &format!(
                "[[group]]\nname = \"g{group}\"\nvirtual-addresses = [\"10.77.1.{n}\", \"10.77.2.{n}\", \
                 \"fd77:1::{n}\", \"fd77:2::{n}\"]\n"
            );
        }
        if *groups == 1 {
            text += "[[nat-pool]]\nname = \"pool\"\naddresses = [\"10.77.2.10-10.77.2.17\"]\n\
                 [[policy]]\nname = \"many\"\nfrom = [\"lan\"]\nto = [\"wan\"]\nservice = [\"udp/6000-6063\"]\n\
                 action = \"accept\"\nnat-pool = \"pool\"\n";
        }
        text += &format!(
            "[[policy]]\nname = \"out\"\nfrom = [\"lan\"]\nto = [\"wan\"]\naction = \"accept\"\nnat = true\n\
             [timeouts]\nudp-unreplied = \"600s\"\n[limits]\nhalf-open-per-source = 0\ntcp-pickup = false\n\
             [ha]\ngroup-id = 7\npriority = {}\nheartbeat-interval = \"20ms\"\n\
             heartbeat-lost-threshold = {threshold}\nmonitor = [\"lan\", \"wan\"]\n\
             pickup-guarantee = \"{guarantee}\"\npickup-guarantee-wait = \"1s\"\ncopies = {copies}\n\
             [[ha.link]]\ninterface = \"sync0\"\nlisten = \"10.77.9.{}:7030\"\n",
            priorities[unit],
            unit + 1
        );
        for peer in (0..self.units.len()).filter(|peer| *peer != unit) {
            let (name, key) = (NAMES[peer], &keys[peer]);
            text += &format!(
                "[[ha.peer]]\nname = \"{name}\"\naddresses = [\"10.77.9.{}:7030\"]\npublic-key = \"{key}\"\n",
                peer + 1
            );
        }
        text
    }

    /// Starts the process of a unit.
    pub fn start(&mut self, unit: usize) -> Result<()> {
        let name = NAMES[unit];
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{name}.log")))?;
        let mut command = Command::new(crate::tandemgw());
        command.arg("run").arg("--config");
        command.arg(self.folder.join(format!("{name}.toml")));
        let level = std::env::var("RUST_LOG").unwrap_or("info".into());
        command.env("RUST_LOG", level).stdout(Stdio::null());
        command.stderr(log);
        let process = self.units[unit].namespace.start(&mut command, None)?;
        self.units[unit].processes = vec![process];
        Ok(())
    }

    /// Asks a unit to end, and waits for it.
    pub fn stop(&mut self, unit: usize) -> Result<()> {
        let mut processes = std::mem::take(&mut self.units[unit].processes);
        for process in &processes {
            send_signal(process.id(), libc::SIGTERM)?;
        }
        let start = Instant::now();
        while processes[0].runs()? {
            if start.elapsed() > PATIENCE {
                return Err(format!("unit {} does not end", NAMES[unit]).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A unit loses power: no carrier is lost, for a switch is between the units.
    pub fn power_off(&self, unit: usize) -> Result<()> {
        self.units[unit].signal(libc::SIGKILL)?;
        self.isolate(unit, true)
    }

    /// Takes a unit off all networks, or joins it again.
    pub fn isolate(&self, unit: usize, cut: bool) -> Result<()> {
        let name = NAMES[unit];
        let lines = ["lan", "wan", "sync"].map(|bridge| match cut {
            true => format!("link set {bridge}-{name} nomaster"),
            false => format!("link set {bridge}-{name} master {bridge}"),
        });
        self.switch.ip_batch(&lines.join("\n"))
    }

    /// Nothing passes between two units over the link any more.
    pub fn cut(&self, one: usize, other: usize) -> Result<()> {
        let [one, other] = [one, other].map(|unit| format!("\"sync-{}\"", NAMES[unit]));
        self.switch.nft(&format!(
            "table bridge cuts {{
               chain forward {{
                 type filter hook forward priority 0
                 iifname {one} oifname {other} drop
                 iifname {other} oifname {one} drop
               }}
             }}"
        ))
    }

    /// The status of a unit.
    pub fn status(&self, unit: usize) -> Result<Value> {
        let path = self.folder.join(format!("{}.sock", NAMES[unit]));
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        writeln!(stream, r#"{{"command": "status"}}"#)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Whether a unit is primary of all groups.
    pub fn is_primary(&self, unit: usize) -> Result<bool> {
        let status = self.status(unit)?;
        let mut groups = status["groups"].as_array().ok_or("no groups")?.iter();
        Ok(groups.all(|group| group["role"] == "primary"))
    }

    /// Waits until `condition` holds.
    pub fn wait(&self, what: &str, condition: impl Fn(&Cluster) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        // A unit that starts refuses connections: not an answer yet.
        while !condition(self).unwrap_or(false) {
            if start.elapsed() > PATIENCE {
                let logs = self.folder.display();
                return Err(
                    format!("waited for {what} for too long; see the logs in {logs}").into(),
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits until `primary` knows that all others hold what it holds, but for those that are
    /// `away`.
    pub fn wait_until_equal(&self, primary: usize, away: &[usize]) -> Result<()> {
        let away: Vec<&str> = away.iter().map(|unit| NAMES[*unit]).collect();
        self.wait("the units to hold the same", |it| {
            let status = it.status(primary)?;
            let peers = status["peers"].as_array().ok_or("no peers")?.iter();
            let is_away = |peer: &&Value| away.contains(&peer["name"].as_str().unwrap_or(""));
            let mut present = peers.filter(|peer| !is_away(peer));
            Ok(present.all(|peer| {
                let keys = ["connected", "in_sync", "digest_equal"];
                keys.iter().all(|key| peer[key] == true) && peer["lag"]["sequence_gap"] == 0
            }))
        })
    }

    /// Waits until a peer of the first unit is no longer one of those that hold its sessions.
    pub fn wait_until_relieved(&self, peer: usize) -> Result<()> {
        self.wait("a peer to hold nothing", |it| {
            let status = it.status(0)?;
            let mut peers = status["peers"].as_array().ok_or("no peers")?.iter();
            let is_relieved = |peer: &Value| peer["groups"][0]["holder"] == false;
            Ok(peers.any(|it| it["name"] == NAMES[peer] && is_relieved(it)))
        })
    }

    /// Waits until one of these units alone is primary; returns it.
    pub fn wait_for_one_primary(&self, units: &[usize]) -> Result<usize> {
        let primaries = |it: &Cluster| -> Result<Vec<usize>> {
            let mut primaries = Vec::new();
            for unit in units {
                if it.is_primary(*unit)? {
                    primaries.push(*unit);
                }
            }
            Ok(primaries)
        };
        self.wait("one primary", |it| Ok(primaries(it)?.len() == 1))?;
        Ok(primaries(self)?[0])
    }

    /// The processor time that a unit has used.
    pub fn cpu_time(&self, unit: usize) -> Result<Duration> {
        let processes = self.units[unit].processes.iter();
        processes.map(Worker::cpu_time).sum()
    }
}

impl Drop for Cluster {
    /// Before the namespaces go: a stopped process does not end by itself.
    fn drop(&mut self) {
        for unit in &self.units {
            let _ = unit.signal(libc::SIGKILL);
        }
    }
}
