//! One gateway: its namespace, its config, its process.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use testkit::system::namespace::Namespace;
use testkit::system::old_kernel;
use testkit::system::process::{Finished, PATIENCE, Process, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_tandemgw");

/// The config that a unit has if a test does not change it: LAN hosts may reach everything behind
/// the WAN, translated.
const CONFIG: &str = r#"[node]
name = "NAME"

[[port]]
name = "lan"
interface = "eth0"
virtual-addresses = ["10.77.1.1/24", "fd77:1::1/64"]

[[port]]
name = "wan"
interface = "eth1"
virtual-addresses = ["10.77.2.1/24", "fd77:2::1/64"]

[[policy]]
name = "lan-out"
from = ["lan"]
to = ["wan"]
action = "accept"
nat = true
"#;

/// A gateway and the machine that it runs on.
pub struct Unit {
    pub ns: Namespace,
    /// Written to the config file at each start and by [`Unit::write_config`].
    pub config: String,
    /// Words before the command line of the gateway, which must end by executing it.
    pub launcher: Vec<String>,
    /// It finds a kernel before Linux 6.6.
    pub without_tcx: bool,
    path: PathBuf,
    process: Option<Process>,
}

impl Unit {
    /// A unit that does not run yet; its config file goes into `dir`.
    pub fn new(ns: Namespace, dir: &Path) -> Unit {
        let config = CONFIG.replace("NAME", ns.name());
        let path = dir.join(format!("{}.toml", ns.name()));
        Unit {
            ns,
            config,
            launcher: Vec::new(),
            without_tcx: false,
            path,
            process: None,
        }
    }

    /// Replaces a part of the config.
    #[track_caller]
    pub fn edit(&mut self, from: &str, to: &str) {
        assert!(self.config.contains(from), "the config has no `{from}`");
        self.config = self.config.replacen(from, to, 1);
    }

    /// Puts a policy before all others.
    pub fn prepend_policy(&mut self, body: &str) {
        self.edit("[[policy]]", &format!("[[policy]]\n{body}\n\n[[policy]]"));
    }

    /// The config file's path.
    pub fn config_path(&self) -> &Path {
        &self.path
    }

    /// Writes the config to its file.
    pub fn write_config(&self) {
        let mut config = self.config.clone();
        // The whole suite can be run in another mode of the ports.
        if let Ok(offload) = std::env::var("TANDEMGW_TEST_OFFLOAD")
            && !config.contains("offload")
        {
            config = config.replace("[[port]]", &format!("[[port]]\noffload = \"{offload}\""));
        }
        fs::write(&self.path, config).expect("writing the config");
    }

    /// Writes the config to its file and reloads the gateway; returns its output.
    #[track_caller]
    pub fn reload(&self) -> Value {
        self.write_config();
        let output = self.tandemgw("reload --json").ok().stdout;
        serde_json::from_str(&output).unwrap_or_else(|e| panic!("not JSON: {e}\n{output}"))
    }

    /// Starts the gateway and waits until it forwards.
    #[track_caller]
    pub fn start(&mut self) {
        let process = self.launch();
        process.expect_stderr("line that says `ready`", |line| {
            line.contains("INFO")
                && line
                    .split(|c: char| !c.is_alphanumeric())
                    .any(|w| w == "ready")
        });
        self.process = Some(process);
    }

    /// Starts the gateway with another log target or format, and waits until it answers.
    #[track_caller]
    pub fn start_unheard(&mut self) {
        self.process = Some(self.launch());
        wait_until("the gateway answers", || {
            self.tandemgw("status --json").status.success()
        });
    }

    /// Launches the gateway with a shell script in which `"$@"` is its command line.
    pub fn launch_by(&mut self, script: &str) {
        self.launcher = ["sh", "-ec", script, "sh"].map(str::to_owned).to_vec();
    }

    /// The process id of the gateway.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the gateway runs").id()
    }

    /// Starts the gateway, expects it to give up at once, and returns what it said.
    #[track_caller]
    pub fn start_in_vain(&mut self) -> Finished {
        self.launch().finish(PATIENCE)
    }

    /// Asks the gateway to end, which it must do in order.
    #[track_caller]
    pub fn stop(&mut self) {
        let process = self.process.take().expect("the gateway runs");
        process.stop().ok();
    }

    /// Sends the gateway a signal.
    #[track_caller]
    pub fn signal(&self, signal: libc::c_int) {
        self.process
            .as_ref()
            .expect("the gateway runs")
            .signal(signal);
    }

    /// Sends what Ctrl-C sends, after which the gateway must end in order.
    #[track_caller]
    pub fn interrupt(&mut self) {
        let process = self.process.take().expect("the gateway runs");
        process.signal(libc::SIGINT);
        process.finish(PATIENCE).ok();
    }

    /// Kills the gateway: no chance to clean up.
    #[track_caller]
    pub fn kill(&mut self) {
        let process = self.process.take().expect("the gateway runs");
        process.signal(libc::SIGKILL);
        assert_eq!(
            process.finish(PATIENCE).status.code(),
            None,
            "it ended before it was killed"
        );
    }

    /// Forgets a gateway that was killed by a signal.
    #[track_caller]
    pub fn kill_remains(&mut self) {
        let process = self.process.take().expect("the gateway was started");
        assert_eq!(
            process.finish(PATIENCE).status.code(),
            None,
            "it was killed"
        );
    }

    /// The log of the gateway since its start.
    pub fn log(&self) -> String {
        self.process.as_ref().expect("the gateway runs").stderr()
    }

    /// The memory that the gateway has in use, in bytes.
    #[track_caller]
    pub fn memory(&self) -> u64 {
        let process = self.process.as_ref().expect("the gateway runs");
        let status = fs::read_to_string(format!("/proc/{}/status", process.id()))
            .expect("the kernel shows its memory");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kilobytes.expect("a number of kilobytes") * 1024
    }

    /// Starts `tandemgw` with these arguments, beside the gateway.
    #[track_caller]
    pub fn spawn_tandemgw(&self, arguments: &str) -> Process {
        self.ns.spawn(&format!("{BINARY} {arguments}"))
    }

    /// Fails unless the gateway runs.
    #[track_caller]
    pub fn assert_running(&mut self) {
        let process = self.process.as_mut().expect("the gateway was started");
        assert!(
            process.is_running(),
            "the gateway has ended:\n{}",
            process.stderr()
        );
    }

    /// Runs `tandemgw` with these arguments.
    #[track_caller]
    pub fn tandemgw(&self, arguments: &str) -> Finished {
        self.ns.try_run(&format!("{BINARY} {arguments}"))
    }

    /// `tandemgw status --json`
    #[track_caller]
    pub fn status(&self) -> Value {
        let output = self.tandemgw("status --json").ok().stdout;
        serde_json::from_str(&output).unwrap_or_else(|e| panic!("not JSON: {e}\n{output}"))
    }

    /// How many packets were dropped for `reason`.
    #[track_caller]
    pub fn dropped(&self, reason: &str) -> u64 {
        self.status()["counters"]["dropped"][reason]
            .as_u64()
            .unwrap_or(0)
    }

    /// `tandemgw sessions --json` with this filter.
    #[track_caller]
    pub fn sessions(&self, filter: &str) -> Vec<Value> {
        let output = self.tandemgw(&format!("sessions --json {filter}"));
        let parse = |line| serde_json::from_str(line).expect("one JSON object a line");
        output.ok().stdout.lines().map(parse).collect()
    }

    /// All that the gateway may change in the kernel: rules, routes, links, addresses, settings.
    #[track_caller]
    pub fn kernel_state(&self) -> String {
        self.ns.sh(
            "ip rule; ip -6 rule
            ip route show table all; ip -6 route show table all | sort
            ip -o addr; nft list ruleset
            ip -o link | sed -n 's/^[0-9]*: \\([^:]*\\):.* \\(group [^ ]*\\).*/\\1 \\2/p'
            cd /proc/sys/net
            for file in $(find ipv4/conf ipv6/conf -type f ! -name stable_secret | sort) ipv4/ip_forward
            do echo $file $(cat $file); done",
        )
    }

    fn launch(&self) -> Process {
        self.write_config();
        if !self.config.contains("state-directory") {
            assert_nothing_remembered();
        }
        let mut words = self.launcher.iter().map(String::as_str).chain([BINARY]);
        let mut command = self.ns.command(words.next().expect("there is the binary"));
        command
            .args(words)
            .arg("run")
            .arg("--config")
            .arg(&self.path);
        command.env("RUST_BACKTRACE", "1");
        if self.without_tcx {
            old_kernel::without_tcx(&mut command);
        }
        Process::spawn(command, &format!("{}# tandemgw run", self.ns.name()))
    }
}

/// Units of tests have the names of others that ran on this machine: what those remember would
/// count for them.
fn assert_nothing_remembered() {
    let states = fs::read_dir("/var/lib/tandemgw").into_iter().flatten();
    for state in states.flatten() {
        let name = state.file_name();
        assert!(
            Path::new(&name).extension().is_none_or(|it| it != "state"),
            "/var/lib/tandemgw/{} is of a unit that ran here: remove it",
            name.display()
        );
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let Some(process) = &self.process else { return };
        if thread::panicking() {
            // The last words may still be on their way.
            thread::sleep(Duration::from_millis(50));
            eprintln!("--- log of {}\n{}", self.ns.name(), process.stderr());
        }
    }
}
