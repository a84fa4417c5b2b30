//! Three network namespaces, client, gateway and server in a row, that vanish with this process.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::traffic::{FIRST_SOURCE, HELLO, SOURCES};

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What forwards between client and server.
///
/// The kernel forwards on the CPU of the sender, and pays for sending too; the other CPU is idle
/// then. Moved to the other one (receive packet steering) it was slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A loop that copies packets through TUNs: the limit of what a gateway in a process can do.
    Bare,
    /// The kernel, nothing but routing.
    Kernel,
    /// The kernel with nftables masquerade and conntrack.
    Masquerade,
    /// `tandemgw run` with source NAT.
    Tandemgw,
}

/// A client at 10.77.1.100, a gateway, and a server at 10.77.2.100.
pub struct Lab {
    pub client: Namespace,
    pub gateway: Namespace,
    pub server: Namespace,
    process: Option<Worker>,
    kind: Kind,
    control_socket: PathBuf,
}

/// The address of the server.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 100);

/// A network namespace that lives as long as this, and what runs in it.
pub struct Namespace(File);

/// A process that is killed when this is dropped, or when this process dies.
pub struct Worker(Child);

/// The CPU that the gateway's process is bound to, if the measurement asks for that.
pub const GATEWAY_CPU: usize = 1;
/// The CPU that the sender is bound to.
pub const SENDER_CPU: usize = 0;

impl Lab {
    /// Builds it anew, with a gateway of `kind`; `pinned` binds its process to [`GATEWAY_CPU`].
    pub fn new(kind: Kind, pinned: bool, folder: &Path) -> Result<Lab> {
        let mut lab = Lab {
            client: Namespace::new()?,
            gateway: Namespace::new()?,
            server: Namespace::new()?,
            process: None,
            kind,
            control_socket: folder.join("control.sock"),
        };
        // The virtual addresses of tandemgw are none of the kernel.
        let host = if kind == Kind::Tandemgw { 2 } else { 1 };
        lab.gateway.ip(&format!(
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
            namespace.ip(&format!(
                "link set lo up
                 link set eth0 up
                 addr add 10.77.{network}.100/24 dev eth0
                 route add default via 10.77.{network}.1"
            ))?;
        }
        let mac = lab.client.mac("eth0")?;
        let sources = (0..SOURCES).map(|n| Ipv4Addr::from(u32::from(FIRST_SOURCE) + n));
        let neighbours = sources.map(|ip| format!("neigh add {ip} lladdr {mac} dev lan\n"));
        lab.gateway.ip(&neighbours.collect::<String>())?;
        // Whoever forwards a packet to the server pays for its reception as well: it must be cheap.
        lab.server.nft(&format!(
            "table netdev sink {{
               chain early {{
                 type filter hook ingress device eth0 priority 0
                 meta l4proto udp @th,64,8 != {HELLO} drop
               }}
             }}"
        ))?;
        lab.start(kind, pinned.then_some(GATEWAY_CPU), folder)?;
        Ok(lab)
    }

    /// The CPU time that the gateway's process has used; `None` if the kernel forwards.
    pub fn cpu_time(&self) -> Result<Option<Duration>> {
        let Some(worker) = &self.process else {
            return Ok(None);
        };
        // Of its one thread, in nanoseconds.
        let path = format!("/proc/{}/schedstat", worker.0.id());
        let stat = std::fs::read_to_string(path)?;
        let on_cpu = stat.split_whitespace().next().ok_or("empty schedstat")?;
        Ok(Some(Duration::from_nanos(on_cpu.parse()?)))
    }

    /// The sessions in the gateway's table; `None` if it has none.
    pub fn sessions(&self) -> Result<Option<u64>> {
        match self.kind {
            Kind::Bare | Kind::Kernel => Ok(None),
            Kind::Masquerade => {
                let count = "/proc/sys/net/netfilter/nf_conntrack_count";
                let text = self.gateway.inside(|| std::fs::read_to_string(count))??;
                Ok(Some(text.trim().parse()?))
            }
            Kind::Tandemgw => {
                let mut command = Command::new(crate::tandemgw());
                command.arg("--socket").arg(&self.control_socket);
                let output = command.args(["status", "--json"]).output()?;
                let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
                Ok(status["sessions"]["total"].as_u64())
            }
        }
    }

    fn start(&mut self, kind: Kind, cpu: Option<usize>, folder: &Path) -> Result<()> {
        let gateway = &self.gateway;
        if kind != Kind::Tandemgw {
            gateway.sysctl("ipv4/ip_forward", "1")?;
            gateway.sysctl("ipv4/conf/all/rp_filter", "0")?;
        }
        match kind {
            Kind::Kernel => {}
            Kind::Masquerade => gateway.nft(
                "table ip nat {
                   chain post {
                     type nat hook postrouting priority srcnat
                     oifname wan masquerade
                   }
                 }",
            )?,
            Kind::Bare => {
                let worker = gateway.worker(&["bare-loop", "tgw-lan", "tgw-wan"], cpu)?;
                self.process = Some(worker);
                self.wait_for_tuns()?;
                self.gateway.ip("link set tgw-lan up
                     link set tgw-wan up
                     route add default dev tgw-lan table 101
                     route add default dev tgw-wan table 102
                     rule add iif lan lookup 101
                     rule add iif wan lookup 102")?;
                for tun in ["tgw-lan", "tgw-wan"] {
                    for (key, value) in [("rp_filter", "0"), ("accept_local", "1")] {
                        let name = format!("ipv4/conf/{tun}/{key}");
                        self.gateway.sysctl(&name, value)?;
                    }
                }
            }
            Kind::Tandemgw => {
                let config = folder.join("gw.toml");
                std::fs::write(&config, configuration(folder))?;
                let mut command = Command::new(crate::tandemgw());
                command.arg("run").arg("--config").arg(config);
                command.env("RUST_LOG", "warn").stdout(Stdio::null());
                self.process = Some(gateway.spawn(&mut command, cpu)?);
                self.wait_for_tuns()?;
                // It comes up before it has read all routes.
                std::thread::sleep(Duration::from_millis(500));
            }
        }
        Ok(())
    }

    fn wait_for_tuns(&mut self) -> Result<()> {
        let start = Instant::now();
        while self.gateway.counter("tgw-wan").is_err() {
            let worker = self.process.as_mut().ok_or("no process")?;
            if let Some(status) = worker.0.try_wait()? {
                return Err(format!("the gateway's process ended at its start: {status}").into());
            }
            if start.elapsed() > Duration::from_secs(10) {
                return Err("the gateway has made no TUN within 10 s".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn configuration(folder: &Path) -> String {
    format!(
        r#"
[node]
name = "bench"
control-socket = "{folder}/control.sock"

[[port]]
name = "lan"
interface = "lan"
virtual-addresses = ["10.77.1.1/24"]

[[port]]
name = "wan"
interface = "wan"
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
"#,
        folder = folder.display()
    )
}

impl Namespace {
    fn new() -> Result<Namespace> {
        let thread = std::thread::spawn(|| {
            // SAFETY: plain system call without pointers; it affects this thread only.
            match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
                0 => File::open("/proc/thread-self/ns/net"),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
        let file = thread.join().map_err(|_| "panic")?;
        let file = file.map_err(|e| format!("no namespace: {e}; be root, or in `unshare -rn`"))?;
        Ok(Namespace(file))
    }

    /// Packets that `interface` has received.
    pub fn received(&self, interface: &str) -> Result<u64> {
        self.counter(interface)
    }

    /// The hardware address of `interface`.
    pub fn mac(&self, interface: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-o", "link", "show", interface]);
        let output = self.enter(&mut command, None).output()?;
        let text = String::from_utf8(output.stdout)?;
        let mut words = text.split_whitespace();
        words.find(|word| *word == "link/ether");
        Ok(words.next().ok_or("no hardware address")?.to_owned())
    }

    /// Starts a worker: this binary with these arguments.
    pub fn worker(&self, arguments: &[&str], cpu: Option<usize>) -> Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").args(arguments).stdout(Stdio::piped());
        self.spawn(&mut command, cpu)
    }

    fn spawn(&self, command: &mut Command, cpu: Option<usize>) -> Result<Worker> {
        Ok(Worker(self.enter(command, cpu).spawn()?))
    }

    /// Runs `ip` with one command a line.
    fn ip(&self, lines: &str) -> Result<()> {
        self.input(Command::new("ip").args(["-batch", "-"]), lines)
    }

    /// Loads a ruleset.
    fn nft(&self, ruleset: &str) -> Result<()> {
        self.input(Command::new("nft").args(["-f", "-"]), ruleset)
    }

    fn input(&self, command: &mut Command, input: &str) -> Result<()> {
        let mut child = self
            .enter(command, None)
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{command:?}: {e}"))?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        match child.wait()? {
            status if status.success() => Ok(()),
            status => Err(format!("{command:?}: {status}; its input was\n{input}").into()),
        }
    }

    fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.inside(move || std::fs::write(path, value))?
            .map_err(|e| format!("{name}: {e}").into())
    }

    fn counter(&self, interface: &str) -> Result<u64> {
        let table = self.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        let mut lines = table.lines().filter_map(|line| line.split_once(':'));
        let (_, counters) = lines
            .find(|(name, _)| name.trim() == interface)
            .ok_or_else(|| format!("no interface {interface}"))?;
        let packets = counters.split_whitespace().nth(1).ok_or("no counter")?;
        Ok(packets.parse()?)
    }

    /// Runs `function` in a thread that is in the namespace.
    fn inside<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        let fd = self.0.as_raw_fd();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: plain system call without pointers; it affects this thread only.
                match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
                    0 => Ok(function()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
            Ok(thread.join().map_err(|_| "panic")??)
        })
    }

    /// Has `command` run in the namespace, bound to a CPU, and die with this process.
    fn enter<'a>(&self, command: &'a mut Command, cpu: Option<usize>) -> &'a mut Command {
        let fd = self.0.as_raw_fd();
        let prepare = move || {
            // SAFETY: plain system calls, whose only pointer is to a set on the stack; they are
            // safe between fork and exec.
            let failed = unsafe {
                prefer_this_process();
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::setns(fd, libc::CLONE_NEWNET) != 0
                    || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                    || cpu.is_some_and(|cpu| {
                        libc::CPU_SET(cpu, &mut set);
                        libc::sched_setaffinity(0, size_of_val(&set), &set) != 0
                    })
            };
            match failed {
                true => Err(std::io::Error::last_os_error()),
                false => Ok(()),
            }
        };
        // SAFETY: `prepare` allocates nothing and takes no lock.
        unsafe { command.pre_exec(prepare) }
    }

    /// A name of the namespace for `ip`.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Puts this process before the other work of a busy machine, if that is allowed. In a session of its
/// own, since sessions share the machine equally, whatever their processes' niceness (autogroup,
/// sched(7)).
///
/// It may be called between fork and exec.
pub fn prefer_this_process() {
    // SAFETY: plain system calls with constant strings, the lengths of which are right; a bad
    // descriptor is only refused.
    unsafe {
        libc::setsid();
        libc::setpriority(libc::PRIO_PROCESS, 0, -15);
        let fd = libc::open(c"/proc/self/autogroup".as_ptr(), libc::O_WRONLY);
        libc::write(fd, c"-15".as_ptr().cast(), 3);
        libc::close(fd);
    }
}

impl Worker {
    /// The next line that it prints.
    pub fn line(&mut self) -> Result<String> {
        let stdout = self.0.stdout.as_mut().ok_or("no stdout")?;
        let mut line = String::new();
        // The workers print no second line before they are asked for the first: nothing is lost.
        BufReader::with_capacity(1, stdout).read_line(&mut line)?;
        match line.is_empty() {
            true => Err("a worker ended without a result".into()),
            false => Ok(line),
        }
    }

    /// A number of the JSON that it prints at its end.
    pub fn result(&mut self, name: &str) -> Result<f64> {
        let line: serde_json::Value = serde_json::from_str(&self.line()?)?;
        Ok(line[name].as_f64().ok_or("no such number")?)
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
