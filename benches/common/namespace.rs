//! Network namespaces and the processes in them, which vanish with this process.

#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A network namespace that lives as long as this, and what runs in it.
pub struct Namespace(File);

/// A process that is killed when this is dropped, or when this process dies.
pub struct Worker(pub Child);

impl Namespace {
    pub fn new() -> Result<Namespace> {
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
        command.arg("worker").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        self.spawn(&mut command, cpu)
    }

    pub fn spawn(&self, command: &mut Command, cpu: Option<usize>) -> Result<Worker> {
        Ok(Worker(self.enter(command, cpu).spawn()?))
    }

    /// Runs `ip` with one command a line.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.input(Command::new("ip").args(["-batch", "-"]), lines)
    }

    /// Loads a ruleset.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.input(Command::new("nft").args(["-f", "-"]), ruleset)
    }

    pub fn input(&self, command: &mut Command, input: &str) -> Result<()> {
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

    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
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
    pub fn inside<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
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
    pub fn enter<'a>(&self, command: &'a mut Command, cpu: Option<usize>) -> &'a mut Command {
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
    pub fn path(&self) -> String {
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

    /// Writes lines to its standard input.
    pub fn tell(&mut self, lines: &str) -> Result<()> {
        let stdin = self.0.stdin.as_mut().ok_or("no stdin")?;
        Ok(stdin.write_all(format!("{lines}\n").as_bytes())?)
    }

    /// The JSON that it prints next.
    pub fn json(&mut self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// A number of the JSON that it prints at its end.
    pub fn result(&mut self, name: &str) -> Result<f64> {
        Ok(self.json()?[name].as_f64().ok_or("no such number")?)
    }

    /// The CPU time that the process has used.
    pub fn cpu_time(&self) -> Result<Duration> {
        // All of its threads; nanoseconds, where /proc/PID/stat has hundredths of a second.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id()))?;
        let mut nanos = 0;
        for task in tasks {
            let line = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let first = line.split(' ').next().ok_or("no time in schedstat")?;
            nanos += first.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.0.id()
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
