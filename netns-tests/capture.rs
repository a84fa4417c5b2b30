//! What passes an interface, as text lines of tcpdump.

use std::time::Duration;

use crate::namespace::Namespace;
use crate::process::Process;

/// A running capture.
pub struct Capture(Process);

impl Capture {
    /// Captures what matches `filter` (pcap-filter(7)); returns once it does.
    #[track_caller]
    pub fn start(ns: &Namespace, interface: &str, filter: &str) -> Capture {
        let options = "-Z root -n -e -l --immediate-mode";
        let process = ns.spawn(&format!("tcpdump {options} -i {interface} {filter}"));
        process.expect_stderr("start of the capture", |line| line.contains("listening on"));
        Capture(process)
    }

    /// Waits for a line that contains all of `parts`, and returns it.
    #[track_caller]
    pub fn expect(&self, parts: &[&str]) -> String {
        let what = format!("line with {parts:?}");
        self.0
            .expect_stdout(&what, |line| parts.iter().all(|part| line.contains(part)))
    }

    /// Ends it, after the packets still on their way, and returns what it saw.
    #[track_caller]
    pub fn stop(self) -> String {
        std::thread::sleep(Duration::from_millis(200));
        self.0.stop().stdout
    }

    /// Ends it and fails if it saw anything.
    #[track_caller]
    pub fn assert_empty(self) {
        let seen = self.stop();
        assert!(seen.is_empty(), "packets that must not be there:\n{seen}");
    }
}
