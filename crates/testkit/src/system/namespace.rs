//! A network namespace, held by a process that ends with the test.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::process::{Finished, Process};

/// The holder's script: `/run` and `/var/lib` become private, IPv6 addresses are usable at once,
/// and settings that new namespaces copy from the machine get the kernel's defaults. Then it waits
/// for the end of its stdin, which is the end of the test.
const HOLDER: &str = "set -e
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=0755 tmpfs /var/lib
cd /proc/sys/net
for scope in all default; do
    echo 0 > ipv4/conf/$scope/rp_filter
    echo 0 > ipv4/conf/$scope/forwarding
    echo 0 > ipv6/conf/$scope/accept_dad
    echo 0 > ipv6/conf/$scope/dad_transmits
    echo 0 > ipv6/conf/$scope/router_solicitations
    echo 1 > ipv6/conf/$scope/keep_addr_on_down
done
ip link set lo up
echo made
read -r end";

const REMEDY: &str = "the tests need network namespaces: run them as root, or allow unprivileged \
user namespaces (sysctl user.max_user_namespaces > 0; on Ubuntu \
kernel.apparmor_restrict_unprivileged_userns=0; in Docker --privileged)";

/// A network namespace with its own mount namespace, removed when dropped.
pub struct Namespace {
    name: String,
    holder: Child,
    pidfd: OwnedFd,
}

impl Namespace {
    /// Makes the first namespace of a lab; for an ordinary user, in a new user namespace.
    pub fn first(name: &str) -> Namespace {
        let mut command = Command::new("unshare");
        if !is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        Namespace::hold(name, command)
    }

    /// Makes another namespace, in the same user namespace, so that links can join the two.
    pub fn sibling(&self, name: &str) -> Namespace {
        let mut command = Command::new("unshare");
        if !is_root() {
            enter(&mut command, self.pidfd.as_raw_fd(), libc::CLONE_NEWUSER);
        }
        Namespace::hold(name, command)
    }

    /// A path by which `ip` can find it.
    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Runs `function` in a thread that is in the namespace.
    ///
    /// # Panics
    /// If the thread can't enter it, or `function` panics.
    pub fn inside<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        let fd = self.pidfd.as_raw_fd();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: plain system call without pointers; it affects this thread only.
                let entered = unsafe { libc::setns(fd, libc::CLONE_NEWNET) };
                assert_eq!(entered, 0, "setns: {}", std::io::Error::last_os_error());
                function()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Packets that `interface` has received; `None` if there is no such interface.
    pub fn received(&self, interface: &str) -> Option<u64> {
        let table = self.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        let table = table.expect("/proc is readable");
        let mut lines = table.lines().filter_map(|line| line.split_once(':'));
        let (_, counters) = lines.find(|(name, _)| name.trim() == interface)?;
        counters.split_whitespace().nth(1)?.parse().ok()
    }

    /// Its name, for messages and for the names of switch ports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the process that holds it: `ip link … netns ID`.
    pub fn id(&self) -> u32 {
        self.holder.id()
    }

    /// A command inside; the working directory is `/`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.enter(&mut command).stdin(Stdio::null());
        command
    }

    /// Makes `command` run inside, and end with the calling thread.
    pub fn enter<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let user = if is_root() { 0 } else { libc::CLONE_NEWUSER };
        let namespaces = user | libc::CLONE_NEWNET | libc::CLONE_NEWNS;
        enter(command, self.pidfd.as_raw_fd(), namespaces);
        command
    }

    /// Starts a command line, split at blanks.
    #[track_caller]
    pub fn spawn(&self, line: &str) -> Process {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a command line is not empty"));
        command.args(words);
        Process::spawn(command, &self.label(line))
    }

    /// Runs a command line, split at blanks, to its end.
    #[track_caller]
    pub fn try_run(&self, line: &str) -> Finished {
        self.spawn(line).finish(Duration::from_secs(60))
    }

    /// Runs a command line that must succeed, and returns its stdout.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        self.try_run(line).ok().stdout
    }

    /// Runs a shell script that must succeed, and returns its stdout.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let mut command = self.command("sh");
        command.args(["-ec", script]);
        Process::spawn(command, &self.label(script))
            .finish(Duration::from_secs(60))
            .ok()
            .stdout
    }

    /// Sets a value under /proc/sys/net, as in `ipv4/ip_forward`.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        self.sh(&format!("echo {value} > /proc/sys/net/{key}"));
    }

    /// The hardware address of an interface.
    #[track_caller]
    pub fn mac(&self, interface: &str) -> [u8; 6] {
        let link = self.run(&format!("ip -o link show dev {interface}"));
        let text = link
            .split("link/ether ")
            .nth(1)
            .expect("an Ethernet interface");
        let bytes = text[..17]
            .split(':')
            .map(|b| u8::from_str_radix(b, 16).expect("hexadecimal"));
        bytes.collect::<Vec<_>>().try_into().expect("six bytes")
    }

    /// The hardware address of an interface, as text.
    #[track_caller]
    pub fn mac_text(&self, interface: &str) -> String {
        self.mac(interface)
            .map(|byte| format!("{byte:02x}"))
            .join(":")
    }

    fn hold(name: &str, mut command: Command) -> Namespace {
        command.args(["--net", "--mount", "sh", "-c", HOLDER]);
        command.env("PATH", search_path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command
            .spawn()
            .expect("unshare (of util-linux) is installed");
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("stdout is piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("reading from the holder");
        assert_eq!(line, "made\n", "{REMEDY}");
        let pidfd = open_pidfd(holder.id());
        Namespace {
            name: name.to_owned(),
            holder,
            pidfd,
        }
    }

    fn label(&self, line: &str) -> String {
        format!("{}# {line}", self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Lets `command` start in the namespaces of the process behind `pidfd`, and end with our thread.
fn enter(command: &mut Command, pidfd: RawFd, namespaces: libc::c_int) {
    command.env("PATH", search_path());
    // SAFETY: between fork and exec only system calls are made, on a descriptor that the parent
    // keeps open until then; nothing allocates or takes a lock.
    unsafe {
        command.pre_exec(move || {
            if libc::setns(pidfd, namespaces) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // After setns, since a change of credentials clears it.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

fn open_pidfd(pid: u32) -> OwnedFd {
    // SAFETY: the call takes no pointers, and the child is not reaped, so the id is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).expect("a descriptor is an int");
    assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether the tests run as the machine's root, not as root of a user namespace without other
/// users.
pub fn is_root_of_the_machine() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("the kernel tells that");
    is_root() && map.split_whitespace().last() == Some("4294967295")
}

fn is_root() -> bool {
    // SAFETY: geteuid can't fail and takes nothing.
    unsafe { libc::geteuid() == 0 }
}

/// An ordinary user's path often lacks the directories where ip and tcpdump are.
fn search_path() -> String {
    format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    )
}
