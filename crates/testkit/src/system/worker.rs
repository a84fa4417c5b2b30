//! Processes of a benchmark in a namespace: bound to a CPU, with priority over other work, and
//! ending with this process.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::namespace::Namespace;

/// The result of a benchmark's step.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A process that is killed when this is dropped, or when this process dies.
pub struct Worker(pub Child);

impl Namespace {
    /// Starts a worker: this binary with these arguments.
    pub fn worker(&self, arguments: &[&str], cpu: Option<usize>) -> Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        self.start(&mut command, cpu)
    }

    /// Runs `ip` with one command a line.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        self.input("ip", &["-batch", "-"], lines)
    }

    /// Loads a ruleset of nftables.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.input("nft", &["-f", "-"], ruleset)
    }

    /// Runs a program that reads `input` and must succeed.
    pub fn input(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        match child.wait()? {
            status if status.success() => Ok(()),
            status => Err(format!("{command:?}: {status}; its input was\n{input}").into()),
        }
    }

    /// Starts a process inside; see [`Namespace::enter_on`].
    pub fn start(&self, command: &mut Command, cpu: Option<usize>) -> Result<Worker> {
        Ok(Worker(self.enter_on(command, cpu).spawn()?))
    }

    /// Makes `command` run inside, with priority over other work, and bound to `cpu`.
    pub fn enter_on<'a>(&self, command: &'a mut Command, cpu: Option<usize>) -> &'a mut Command {
        self.enter(command);
        let prepare = move || {
            // SAFETY: plain system calls, whose only pointer is to a set on the stack; they are
            // safe between fork and exec.
            let failed = unsafe {
                prefer_this_process();
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                cpu.is_some_and(|cpu| {
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
}

/// Gives this process priority over the other work of a busy machine, if allowed. It gets its own
/// session, because sessions share the machine equally, whatever the niceness of their processes
/// (autogroup, sched(7)).
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
