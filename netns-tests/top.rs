//! `tandemgw top` in a terminal: a pseudo-terminal of its own, whose other end the test reads.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::lab::Lab;
use crate::pair::Pair;
use crate::unit::Unit;
use testkit::system::process::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_tandemgw");

/// The sequence that leaves the alternate screen, on which the view is.
const LEAVE: &str = "\x1b[?1049l";

/// A program in a terminal; killed when dropped.
struct Terminal {
    child: Child,
    host: File,
    guest: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Runs `tandemgw` with these arguments in a terminal of 80 columns and 24 lines.
    fn start(unit: &Unit, arguments: &str) -> Terminal {
        Terminal::start_command(unit.ns.command(BINARY), arguments)
    }

    fn start_command(mut command: Command, arguments: &str) -> Terminal {
        let (host, guest) = open();
        command
            .args(arguments.split_whitespace())
            .env("TERM", "xterm");
        command.stdin(Stdio::from(
            guest.try_clone().expect("a descriptor is free"),
        ));
        command.stdout(Stdio::from(
            guest.try_clone().expect("a descriptor is free"),
        ));
        command.stderr(Stdio::from(
            guest.try_clone().expect("a descriptor is free"),
        ));
        // SAFETY: between fork and exec only system calls are made, on the stdin that was just set.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().expect("the binary is there");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (written, mut reader) = (
            screen.clone(),
            host.try_clone().expect("a descriptor is free"),
        );
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut piece) {
                written
                    .lock()
                    .expect("no panic under this lock")
                    .extend(&piece[..length]);
            }
        });
        let terminal = Terminal {
            child,
            host,
            guest,
            screen,
        };
        terminal.resize(80, 24);
        terminal
    }

    fn resize(&self, columns: u16, lines: u16) {
        let size = libc::winsize {
            ws_row: lines,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the descriptor is open, and `size` is what this request reads.
        let result =
            unsafe { libc::ioctl(self.host.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(result, 0);
    }

    fn press(&mut self, keys: &str) {
        self.host.write_all(keys.as_bytes()).expect("typing");
    }

    /// The output since the start, or since the last [`Terminal::forget`].
    fn written(&self) -> String {
        let bytes = self
            .screen
            .lock()
            .expect("no panic under this lock")
            .clone();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Forgets what was written.
    fn forget(&self) {
        self.screen
            .lock()
            .expect("no panic under this lock")
            .clear();
    }

    #[track_caller]
    fn expect(&self, part: &str) {
        wait_until(&format!("`{part}` on the screen"), || {
            let written = self.written();
            written.contains(part) || visible(&written).contains(part)
        });
    }

    /// Waits until what the whole screen shows is `wanted`. Only what changes is written, but for a
    /// new size, after which all is, the help last.
    #[track_caller]
    fn expect_next(&self, wanted: impl Fn(&str) -> bool) {
        let mut columns = 80;
        wait_until("the screen is as wanted", || {
            columns = 180 - columns;
            self.forget();
            self.resize(columns, 24);
            self.expect("q quit");
            wanted(&visible(&self.written()))
        });
    }

    /// Whether lines are edited and echoed, as a shell wants it.
    fn is_cooked(&self) -> bool {
        // SAFETY: all bytes of a termios may be zero: it is numbers.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and `settings` is a valid termios to write to.
        let result = unsafe { libc::tcgetattr(self.guest.as_raw_fd(), &raw mut settings) };
        assert_eq!(result, 0);
        settings.c_lflag & (libc::ICANON | libc::ECHO) == libc::ICANON | libc::ECHO
    }

    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("top has ended", || {
            status = self.child.try_wait().expect("waiting for a child");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text between the control sequences; where the cursor jumps, which it does over blanks, is
/// one.
fn visible(written: &str) -> String {
    let mut pieces = written.split("\x1b[");
    let mut text = pieces.next().unwrap_or("").to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| c.is_ascii_alphabetic());
        let (sequence, rest) = piece.split_at(end.map_or(piece.len(), |end| end + 1));
        if sequence.ends_with('H') {
            text.push(' ');
        }
        text.push_str(rest);
    }
    text
}

/// The two ends of a new pseudo-terminal.
fn open() -> (File, OwnedFd) {
    let (mut host, mut guest) = (-1, -1);
    let (name, settings, size) = (
        std::ptr::null_mut(),
        std::ptr::null_mut(),
        std::ptr::null_mut(),
    );
    // SAFETY: both numbers are writable; a null pointer means that nothing is wanted there.
    let result = unsafe { libc::openpty(&raw mut host, &raw mut guest, name, settings, size) };
    assert_eq!(
        result,
        0,
        "a pseudo-terminal: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: the kernel just gave us these descriptors, and nobody else knows them.
    unsafe { (File::from_raw_fd(host), OwnedFd::from_raw_fd(guest)) }
}

#[test]
fn shows_roles_and_sessions_follows_the_size_and_restores_the_terminal() {
    let pair = Pair::started();
    pair.lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    let mut top = Terminal::start(pair.a(), "top");
    for part in [
        "tandemgw top",
        "gw-a",
        "primary",
        "gw-b",
        "in sync",
        "icmp 1",
        "PACKETS/S",
        "DROPS/S",
    ] {
        top.expect(part);
    }
    top.expect("\x1b[24;1H");
    assert!(!top.is_cooked(), "keys come one by one");
    assert!(
        !top.written().contains("\x1b[40;1H"),
        "nothing outside of the screen"
    );
    top.resize(120, 40);
    top.expect("\x1b[40;1H");
    top.press("p");
    top.expect("PAUSED");
    top.press("p+");
    top.expect_next(|seen| seen.contains("every 2s") && !seen.contains("PAUSED"));
    assert!(!top.written().contains(LEAVE));
    top.press("q");
    assert!(top.end().success());
    top.expect(LEAVE);
    assert!(top.is_cooked(), "the terminal is as it was");
}

#[test]
fn waits_for_a_gateway_that_restarts() {
    let mut lab = Lab::started();
    let mut top = Terminal::start(&lab.unit, "top");
    top.expect("primary");
    lab.unit.kill();
    top.expect("not running, waiting");
    lab.unit.start();
    top.expect_next(|seen| seen.contains("primary") && !seen.contains("waiting"));
    top.press("\x03");
    assert!(top.end().success());
    assert!(top.is_cooked());
}

#[test]
fn a_signal_restores_the_terminal_too() {
    let lab = Lab::started();
    let mut top = Terminal::start(&lab.unit, "top");
    top.expect("primary");
    // SAFETY: kill takes no pointers; the child is not reaped yet, so the id is still its own.
    unsafe { libc::kill(top.child.id().cast_signed(), libc::SIGTERM) };
    assert!(top.end().success());
    top.expect(LEAVE);
    assert!(top.is_cooked());
}

#[test]
fn needs_a_terminal_and_a_gateway() {
    let lab = Lab::new();
    let said = lab.unit.tandemgw("top").code(1).stderr;
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("top needs a terminal") && said.contains("status --json"),
        "{said}"
    );
    let mut top = Terminal::start(&lab.unit, "top");
    assert_eq!(top.end().code(), Some(3));
    top.expect("no running gateway");
    assert!(top.is_cooked());
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let lab = Lab::started();
    let mut status = Terminal::start(&lab.unit, "status");
    assert!(status.end().success());
    status.expect("forwarded");
    status.expect("\x1b[");
    let mut command = lab.unit.ns.command(BINARY);
    command.env("NO_COLOR", "1");
    let mut status = Terminal::start_command(command, "status");
    assert!(status.end().success());
    status.expect("forwarded");
    assert!(!status.written().contains('\x1b'), "{}", status.written());
}
