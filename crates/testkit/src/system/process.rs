//! Child processes whose output is available while they run, and which never outlive their test.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine, except a hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running child process; killed when dropped.
pub struct Process {
    command: String,
    child: Child,
    stdout: Stream,
    stderr: Stream,
}

/// How a process ended and what it wrote.
#[derive(Debug)]
pub struct Finished {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    /// Starts `command`, named `name` in messages. Its stdin is left as the caller set it.
    #[track_caller]
    pub fn spawn(command: Command, name: &str) -> Process {
        Process::spawn_with_stdout(command, Stdio::piped(), name)
    }

    /// The same, with another stdout.
    #[track_caller]
    pub fn spawn_with_stdout(mut command: Command, stdout: Stdio, name: &str) -> Process {
        let mut child = command
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| {
                panic!("can't run `{name}`: {e}; scripts/test installs what is needed")
            });
        // The command holds our copies of descriptors that now belong to the child.
        drop(command);
        let stdout = child
            .stdout
            .take()
            .map_or_else(Stream::default, Stream::read);
        let stderr = Stream::read(child.stderr.take().expect("stderr is piped"));
        Process {
            command: name.to_owned(),
            child,
            stdout,
            stderr,
        }
    }

    /// Its stdin, if it is a pipe; the caller closes it.
    #[track_caller]
    pub fn stdin(&mut self) -> ChildStdin {
        self.child
            .stdin
            .take()
            .expect("stdin is a pipe, and not taken yet")
    }

    /// Its stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Its stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for a line on stdout that `wanted` accepts, and returns it.
    #[track_caller]
    pub fn expect_stdout(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.stdout
            .find(PATIENCE, wanted)
            .unwrap_or_else(|| self.missing(what))
    }

    /// Waits for a line on stderr that `wanted` accepts, and returns it.
    #[track_caller]
    pub fn expect_stderr(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.stderr
            .find(PATIENCE, wanted)
            .unwrap_or_else(|| self.missing(what))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("waiting for a child")
            .is_none()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill takes no pointers; the child is not reaped yet, so the id is still its own.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    /// Waits for its end; kills it and fails after `timeout`.
    #[track_caller]
    pub fn finish(mut self, timeout: Duration) -> Finished {
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a child") {
                break status;
            }
            if Instant::now() > deadline {
                self.signal(libc::SIGKILL);
                panic!(
                    "`{}` did not end within {timeout:?}\n{}",
                    self.command,
                    self.output()
                );
            }
            thread::sleep(Duration::from_millis(2));
        };
        self.stdout.wait_closed();
        self.stderr.wait_closed();
        Finished {
            command: self.command.clone(),
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    /// Ends it with SIGTERM, which must work, and returns all of its output.
    #[track_caller]
    pub fn stop(self) -> Finished {
        self.signal(libc::SIGTERM);
        self.finish(PATIENCE)
    }

    fn output(&self) -> String {
        format!("--- stdout\n{}--- stderr\n{}", self.stdout(), self.stderr())
    }

    #[track_caller]
    fn missing(&self, what: &str) -> ! {
        panic!(
            "`{}`: no {what} within {PATIENCE:?}\n{}",
            self.command,
            self.output()
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Fails with the full output unless the process succeeded.
    #[track_caller]
    pub fn ok(self) -> Finished {
        assert!(self.status.success(), "{}", self.describe());
        self
    }

    /// Fails with the full output unless the process ended with `code`.
    #[track_caller]
    pub fn code(self, code: i32) -> Finished {
        assert_eq!(self.status.code(), Some(code), "{}", self.describe());
        self
    }

    fn describe(&self) -> String {
        let end = match self.status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("exit code {}", self.status.code().unwrap_or(-1)),
        };
        format!(
            "`{}` ended with {end}\n--- stdout\n{}--- stderr\n{}",
            self.command, self.stdout, self.stderr
        )
    }
}

/// Polls `condition` until it holds; fails after [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain: {what}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// The output of a child, collected by a thread.
#[derive(Default)]
struct Stream(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<Collected>,
    changed: Condvar,
}

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    closed: bool,
}

impl Stream {
    fn read(mut from: impl Read + Send + 'static) -> Stream {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let n = from.read(&mut buffer).unwrap_or(0);
                let mut state = writer.state.lock().expect("no panic under this lock");
                state.bytes.extend_from_slice(&buffer[..n]);
                state.closed = n == 0;
                writer.changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Stream(shared)
    }

    fn text(&self) -> String {
        let state = self.0.state.lock().expect("no panic under this lock");
        String::from_utf8_lossy(&state.bytes).into_owned()
    }

    fn find(&self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state.lock().expect("no panic under this lock");
        loop {
            let text = String::from_utf8_lossy(&state.bytes);
            if let Some(line) = text.lines().find(|line| wanted(line)) {
                return Some(line.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return None;
            }
            state = self
                .0
                .changed
                .wait_timeout(state, left)
                .expect("no panic under this lock")
                .0;
        }
    }

    /// A grandchild may keep the pipe open, so this does not wait forever.
    fn wait_closed(&self) {
        let state = self.0.state.lock().expect("no panic under this lock");
        let second = Duration::from_secs(1);
        drop(
            self.0
                .changed
                .wait_timeout_while(state, second, |state| !state.closed),
        );
    }
}
