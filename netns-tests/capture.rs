//! Watches the packets of an interface, as text lines of tcpdump.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use testkit::system::namespace::Namespace;
use testkit::system::process::{PATIENCE, Process};

/// A running capture.
///
/// socat takes the frames off the interface, and tcpdump, which refuses to work in an ordinary
/// user's namespace, reads them from a pipe outside of it.
pub struct Capture {
    socat: Process,
    tcpdump: Process,
    end: EndMark,
}

impl Capture {
    /// Captures what matches `filter` (pcap-filter(7)); returns once it does.
    #[track_caller]
    pub fn start(ns: &Namespace, interface: &str, filter: &str) -> Capture {
        Capture::start_with(ns, interface, &[], filter)
    }

    /// The same, with more options of tcpdump.
    #[track_caller]
    pub fn start_with(ns: &Namespace, interface: &str, options: &[&str], filter: &str) -> Capture {
        let (frames, theirs) = UnixDatagram::pair().expect("a socket pair");
        let mut socat = ns.command("socat");
        socat.args([
            "-d",
            "-d",
            "-u",
            "-b",
            "131072",
            &format!("INTERFACE:{interface}"),
            "STDOUT",
        ]);
        let end = EndMark(theirs.try_clone().expect("a duplicate"));
        let socat = Process::spawn_with_stdout(socat, OwnedFd::from(theirs).into(), "socat");
        socat.expect_stderr("transfer", |line| line.contains("starting data transfer"));

        let mut tcpdump = Command::new("tcpdump");
        tcpdump
            .args(["-n", "-e", "-l"])
            .args(options)
            .args(["-r", "-", filter])
            .stdin(Stdio::piped());
        let mut tcpdump = Process::spawn(tcpdump, &format!("{}# tcpdump {filter}", ns.name()));
        let pipe = tcpdump.stdin();
        thread::spawn(move || write_pcap(&frames, pipe));
        Capture {
            socat,
            tcpdump,
            end,
        }
    }

    /// Waits for a line that contains all of `parts`, and returns it.
    #[track_caller]
    pub fn expect(&self, parts: &[&str]) -> String {
        let what = format!("line with {parts:?}");
        self.tcpdump
            .expect_stdout(&what, |line| parts.iter().all(|part| line.contains(part)))
    }

    /// The packets seen so far.
    pub fn seen(&self) -> String {
        self.tcpdump.stdout()
    }

    /// Ends it, after the packets still on their way, and returns what it saw.
    #[track_caller]
    pub fn stop(self) -> String {
        thread::sleep(Duration::from_millis(200));
        drop(self.socat);
        drop(self.end);
        self.tcpdump.finish(PATIENCE).ok().stdout
    }

    /// Ends it and fails if it saw anything.
    #[track_caller]
    pub fn assert_empty(self) {
        let seen = self.stop();
        assert!(seen.is_empty(), "packets that must not be there:\n{seen}");
    }
}

/// Ends the stream of frames with an empty datagram when dropped.
struct EndMark(UnixDatagram);

impl Drop for EndMark {
    fn drop(&mut self) {
        // Fails only if the reader is gone already.
        let _ = self.0.send(&[]);
    }
}

/// Copies frames into a pcap stream (draft-ietf-opsawg-pcap) up to the [`EndMark`].
fn write_pcap(frames: &UnixDatagram, mut pipe: ChildStdin) -> io::Result<()> {
    let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1];
    pipe.write_all(&header.map(u32::to_ne_bytes).concat())?;
    let mut frame = vec![0; 262_144];
    loop {
        let length = frames.recv(&mut frame)?;
        if length == 0 {
            return Ok(());
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let seconds = u32::try_from(now.as_secs()).unwrap_or(0);
        let length32 = u32::try_from(length).unwrap_or(0);
        let record = [seconds, now.subsec_micros(), length32, length32];
        pipe.write_all(&record.map(u32::to_ne_bytes).concat())?;
        pipe.write_all(&frame[..length])?;
        pipe.flush()?;
    }
}
