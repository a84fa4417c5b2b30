//! Three network namespaces, client, gateway and server in a row, that vanish with this process.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::namespace::Namespace;
use super::traffic::{FIRST_SOURCE, HELLO, SOURCES};
use super::worker::{Result, Worker};

/// The forwarder between client and server.
///
/// The kernel forwards on the CPU of the sender, and pays for sending too; the other CPU is idle
/// then. Moved to the other one (receive packet steering) it was slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Forwarder {
    /// A loop that copies packets through TUNs: the limit of what a gateway in a process can do.
    Bare,
    /// The kernel, routing only.
    Kernel,
    /// The kernel with nftables masquerade and conntrack.
    Masquerade,
    /// `tandemgw run` with source NAT, all packets through the process.
    Tandemgw,
    /// The same, with `offload = "ebpf"` on both ports.
    FastPath,
    /// A redirect by tc, without routing, NAT or a hop: the limit of what a program there can do.
    Redirect,
}

impl Forwarder {
    /// Whether it is a process of tandemgw.
    fn is_tandemgw(self) -> bool {
        matches!(self, Forwarder::Tandemgw | Forwarder::FastPath)
    }
}

/// A client at 10.77.1.100, a gateway, and a server at 10.77.2.100.
pub struct Lab {
    pub client: Namespace,
    pub gateway: Namespace,
    pub server: Namespace,
    process: Option<Worker>,
    kind: Forwarder,
    control_socket: PathBuf,
    binary: PathBuf,
}

/// The address of the server.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 100);

/// The CPU that the gateway's process is bound to, if the measurement needs that.
pub const GATEWAY_CPU: usize = 1;
/// The CPU that the sender is bound to.
pub const SENDER_CPU: usize = 0;

/// How `tandemgw run` is started.
pub struct Launch {
    /// The binary of tandemgw.
    pub binary: PathBuf,
    /// Words before its command line.
    pub launcher: Vec<String>,
    /// More environment.
    pub environment: Vec<(&'static str, String)>,
    /// More of the config.
    pub config: &'static str,
}

impl Launch {
    /// The usual way.
    pub fn of(binary: &Path) -> Launch {
        Launch {
            binary: binary.to_owned(),
            launcher: Vec::new(),
            environment: Vec::new(),
            config: "",
        }
    }
}

impl Lab {
    /// Builds it, with a gateway of `kind`; `pinned` binds its process to [`GATEWAY_CPU`].
    pub fn new(kind: Forwarder, pinned: bool, folder: &Path, binary: &Path) -> Result<Lab> {
        Lab::launched(kind, pinned, folder, &Launch::of(binary))
    }

    /// Like [`Lab::new`], with a gateway that is started in a special way.
    pub fn launched(kind: Forwarder, pinned: bool, folder: &Path, launch: &Launch) -> Result<Lab> {
        let mut lab = Lab {
            client: Namespace::first("client"),
            gateway: Namespace::first("gateway"),
            server: Namespace::first("server"),
            process: None,
            kind,
            control_socket: folder.join("control.sock"),
            binary: launch.binary.clone(),
        };
        // The kernel does not have tandemgw's virtual addresses.
        let host = if kind.is_tandemgw() { 2 } else { 1 };
        lab.gateway.ip_batch(&format!(
            "link set lo up
             link add lan type veth peer name eth0 netns {client}
             link add wan type veth peer name eth0 netns {server}
             link set lan up
             link set wan up
             addr add 10.77.1.{host}/24 dev lan
             addr add 10.77.2.{host}/24 dev wan",
            client = lab.client.path(),
            server = lab.server.path(),
        ))?;
        for (namespace, network) in [(&lab.client, 1), (&lab.server, 2)] {
            namespace.ip_batch(&format!(
                "link set lo up
                 link set eth0 up
                 addr add 10.77.{network}.100/24 dev eth0
                 route add default via 10.77.{network}.1"
            ))?;
        }
        if kind == Forwarder::Redirect {
            // Frames arrive as they are sent, so each host has the address of the port beyond.
            for (host, port) in [(&lab.client, "wan"), (&lab.server, "lan")] {
                let mac = lab.gateway.mac_text(port);
                host.ip_batch(&format!("link set eth0 address {mac}"))?;
            }
        }
        let mac = lab.client.mac_text("eth0");
        let sources = (0..SOURCES).map(|n| Ipv4Addr::from(u32::from(FIRST_SOURCE) + n));
        let neighbours = sources.map(|ip| format!("neigh add {ip} lladdr {mac} dev lan\n"));
        lab.gateway.ip_batch(&neighbours.collect::<String>())?;
        // The forwarder of a packet to the server also pays for its reception, so that must be
        // cheap.
        lab.server.nft(&format!(
            "table netdev sink {{
               chain early {{
                 type filter hook ingress device eth0 priority 0
                 meta l4proto udp @th,64,8 != {HELLO} drop
               }}
             }}"
        ))?;
        lab.start(kind, pinned.then_some(GATEWAY_CPU), folder, launch)?;
        Ok(lab)
    }

    /// The CPU time that the gateway's process has used; `None` if the kernel forwards.
    pub fn cpu_time(&self) -> Result<Option<Duration>> {
        let Some(worker) = &self.process else {
            return Ok(None);
        };
        Ok(Some(worker.cpu_time()?))
    }

    /// The number of the gateway's process; `None` if the kernel forwards.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Worker::id)
    }

    /// The sessions in the gateway's table; `None` if it has none.
    pub fn sessions(&self) -> Result<Option<u64>> {
        match self.kind {
            Forwarder::Bare | Forwarder::Kernel | Forwarder::Redirect => Ok(None),
            Forwarder::Masquerade => {
                let count = "/proc/sys/net/netfilter/nf_conntrack_count";
                let text = self.gateway.inside(|| std::fs::read_to_string(count))?;
                Ok(Some(text.trim().parse()?))
            }
            Forwarder::Tandemgw | Forwarder::FastPath => {
                Ok(self.status()?["sessions"]["total"].as_u64())
            }
        }
    }

    /// The sessions whose packets the kernel forwards.
    pub fn fast_sessions(&self) -> Result<u64> {
        let status = self.status()?;
        Ok(status["fast_path"]["sessions"].as_u64().unwrap_or(0))
    }

    fn status(&self) -> Result<serde_json::Value> {
        let mut command = Command::new(&self.binary);
        command.arg("--socket").arg(&self.control_socket);
        let output = command.args(["status", "--json"]).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn start(
        &mut self,
        kind: Forwarder,
        cpu: Option<usize>,
        folder: &Path,
        launch: &Launch,
    ) -> Result<()> {
        let gateway = &self.gateway;
        if !kind.is_tandemgw() {
            gateway.sysctl("ipv4/ip_forward", "1");
            gateway.sysctl("ipv4/conf/all/rp_filter", "0");
        }
        match kind {
            Forwarder::Kernel => {}
            Forwarder::Redirect => {
                for (from, to) in [("lan", "wan"), ("wan", "lan")] {
                    let redirect = format!(
                        "tc qdisc add dev {from} clsact; tc filter add dev {from} ingress \
                         protocol ip u32 match u32 0 0 action mirred egress redirect dev {to}"
                    );
                    gateway.input("sh", &["-e"], &redirect)?;
                }
            }
            Forwarder::Masquerade => gateway.nft(
                "table ip nat {
                   chain post {
                     type nat hook postrouting priority srcnat
                     oifname wan masquerade
                   }
                 }",
            )?,
            Forwarder::Bare => {
                let worker = gateway.worker(&["bare-loop", "tgw-lan", "tgw-wan"], cpu)?;
                self.process = Some(worker);
                self.wait_for_tuns()?;
                self.gateway.ip_batch(
                    "link set tgw-lan up
                     link set tgw-wan up
                     route add default dev tgw-lan table 101
                     route add default dev tgw-wan table 102
                     rule add iif lan lookup 101
                     rule add iif wan lookup 102",
                )?;
                for tun in ["tgw-lan", "tgw-wan"] {
                    for (key, value) in [("rp_filter", "0"), ("accept_local", "1")] {
                        let name = format!("ipv4/conf/{tun}/{key}");
                        self.gateway.sysctl(&name, value);
                    }
                }
            }
            Forwarder::Tandemgw | Forwarder::FastPath => {
                let config = folder.join("gw.toml");
                std::fs::write(&config, configuration(folder, kind) + launch.config)?;
                let mut words = launch.launcher.iter().map(PathBuf::from);
                let first = words.next().unwrap_or_else(|| launch.binary.clone());
                let mut command = Command::new(&first);
                if first != launch.binary {
                    command.args(words).arg(&launch.binary);
                }
                command.arg("run").arg("--config").arg(config);
                command.envs(launch.environment.iter().map(|(name, value)| (name, value)));
                command.env("RUST_LOG", "warn").stdout(Stdio::null());
                self.process = Some(gateway.start(&mut command, cpu)?);
                self.wait_for_tuns()?;
                // It comes up before it has read all routes.
                std::thread::sleep(Duration::from_millis(500));
                if kind == Forwarder::FastPath {
                    self.wait_for_fast_path()?;
                }
            }
        }
        Ok(())
    }

    /// The programs are put at the ports one after the other.
    fn wait_for_fast_path(&mut self) -> Result<()> {
        self.wait_for("the fast path at all ports", |lab| {
            let status = lab.status()?;
            let ports = status["ports"].as_array().ok_or("no ports in the status")?;
            Ok(ports.iter().all(|port| port["offload"] == "ebpf"))
        })
    }

    fn wait_for_tuns(&mut self) -> Result<()> {
        let is_there = |lab: &Lab| Ok(lab.gateway.received("tgw-wan").is_some());
        self.wait_for("the TUN of the gateway", is_there)
    }

    /// Waits until the gateway's process has made something.
    fn wait_for(&mut self, what: &str, is_there: impl Fn(&Lab) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !is_there(self)? {
            let worker = self.process.as_mut().ok_or("no process")?;
            if let Some(status) = worker.0.try_wait()? {
                return Err(format!("the gateway's process ended at its start: {status}").into());
            }
            if start.elapsed() > Duration::from_secs(10) {
                return Err(format!("the gateway has not made {what} within 10 s").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn configuration(folder: &Path, kind: Forwarder) -> String {
    let offload = match kind {
        Forwarder::FastPath => "ebpf",
        _ => "tun",
    };
    format!(
        r#"
[node]
name = "bench"
control-socket = "{folder}/control.sock"

[[port]]
name = "lan"
interface = "lan"
offload = "{offload}"
virtual-addresses = ["10.77.1.1/24"]

[[port]]
name = "wan"
interface = "wan"
offload = "{offload}"
virtual-addresses = ["10.77.2.1/24"]

[[nat-pool]]
name = "pool"
addresses = ["10.77.2.10-10.77.2.17"]

[[policy]]
name = "out"
from = ["lan"]
to = ["wan"]
action = "accept"
nat-pool = "pool"

[limits]
half-open-per-source = 0

[timeouts]
udp-unreplied = "3600s"
"#,
        folder = folder.display()
    )
}
