//! Sessions to an IPFIX collector: nfcapd of Debian's nfdump.

use std::fs;
use std::path::PathBuf;

use crate::lab::{LAN1, Lab, SERVER, WAN_GATEWAY};
use crate::services::{udp_echo, udp_echoes};
use testkit::system::namespace::Namespace;
use testkit::system::process::{Process, wait_until};

/// Where the collector listens, on the loopback of the gateway's machine.
const PORT: u16 = 4739;

/// The collector, and the folder of its files.
struct Collector {
    dir: PathBuf,
    _process: Process,
}

impl Collector {
    fn start(lab: &Lab, ns: &Namespace) -> Collector {
        let dir = lab.dir().join("flows");
        fs::create_dir_all(&dir).expect("making a directory");
        // A new file each 2 s.
        let line = format!("nfcapd -b 127.0.0.1 -p {PORT} -w {} -t 2", dir.display());
        let process = ns.spawn(&line);
        wait_until("nfcapd is bound", || {
            let sockets = ns.run(&format!("ss -Hlun sport = :{PORT}"));
            sockets.contains(&PORT.to_string())
        });
        Collector {
            dir,
            _process: process,
        }
    }

    /// Its records until now, each as lines `name = value` of `nfdump`.
    fn records(&self, ns: &Namespace) -> Vec<String> {
        let dir = self.dir.display();
        let said = ns.sh(&format!("nfdump -R {dir} -q -o raw 2>&1 | tr -s ' '"));
        let records = said.split("Flow Record:").skip(1);
        records.map(str::to_owned).collect()
    }

    /// Waits for a record that has all of these lines.
    #[track_caller]
    fn expect(&self, ns: &Namespace, lines: &[String]) {
        wait_until(&format!("a record with {lines:?}"), || {
            let records = self.records(ns);
            let has_all = |record: &String| lines.iter().all(|line| record.contains(line));
            records.iter().any(has_all)
        });
    }
}

/// What nfdump says of the ends of a session.
fn ends(source: &str, destination: &str) -> Vec<String> {
    vec![
        format!("src addr = {source}\n"),
        format!("dst addr = {destination}\n"),
    ]
}

fn with(mut lines: Vec<String>, more: &[&str]) -> Vec<String> {
    lines.extend(more.iter().map(|line| (*line).to_owned()));
    lines
}

#[test]
fn a_collector_hears_of_each_session_and_its_translation() {
    let mut lab = Lab::started();
    let collector = Collector::start(&lab, &lab.unit.ns);
    let exporter = lab
        .unit
        .spawn_tandemgw(&format!("ipfix --collector 127.0.0.1:{PORT}"));
    wait_until("the exporter follows", || {
        lab.lan1.run(&format!("ping -c 1 -W 2 {}", SERVER[0]));
        lab.unit.tandemgw("sessions clear --all").ok();
        !collector.records(&lab.unit.ns).is_empty()
    });
    let _echo = udp_echo(&lab.server, SERVER[0]);
    assert!(udp_echoes(&lab, &lab.lan1, SERVER[0], 100));
    for address in SERVER {
        lab.lan1.run(&format!("ping -c 3 -i 0.01 -W 2 {address}"));
    }
    lab.unit.tandemgw("sessions clear --all").ok();

    // NAT events of RFC 8158: 4 is the begin of a session, 5 its end.
    let ns = &lab.unit.ns;
    let udp = with(
        ends(LAN1[0], SERVER[0]),
        &["proto = 17 UDP", "dst port = 7000\n"],
    );
    let outside = format!("src xlt ip = {}\n", WAN_GATEWAY[0]);
    let begun = with(
        udp.clone(),
        &[&outside, "dst xlt port = 7000\n", "nat event = 4:"],
    );
    collector.expect(ns, &begun);
    let ended = [
        "nat event = 5:",
        "end reason = 0x04",
        "in packets = 1\n",
        "out packets = 1\n",
    ];
    collector.expect(ns, &with(udp, &ended));
    let ping = with(
        ends(LAN1[1], SERVER[1]),
        &["proto = 58 ICMP6", "end reason = 0x04"],
    );
    collector.expect(
        ns,
        &with(
            ping,
            &["in packets = 3\n", "out packets = 3\n", "in bytes = 312\n"],
        ),
    );

    // Over a restart of the gateway.
    let before = collector.records(ns).len();
    lab.unit.kill();
    lab.unit.start();
    wait_until("it goes on", || {
        lab.lan1.run(&format!("ping -c 1 -W 2 {}", SERVER[0]));
        lab.unit.tandemgw("sessions clear --all").ok();
        collector.records(&lab.unit.ns).len() > before
    });
    assert_eq!(exporter.stderr(), "", "nothing was lost");
}

#[test]
fn what_no_collector_takes_is_counted_and_holds_nobody() {
    let lab = Lab::started();
    let line = format!("ipfix --collector 127.0.0.1:{PORT}");
    let exporter = lab.unit.spawn_tandemgw(&line);
    wait_until("the loss is said", || {
        lab.lan1.run(&format!("ping -c 1 -W 2 {}", SERVER[0]));
        lab.unit.tandemgw("sessions clear --all").ok();
        exporter.stderr().contains("records are lost")
    });
    // One that has stopped takes nothing; the gateway keeps no more than it has room for.
    exporter.signal(libc::SIGSTOP);
    let flood = "for i in $(seq 60000); do echo x >/dev/udp/10.77.2.100/$((1024 + i)); done";
    lab.lan1
        .sh(&format!("bash -c '{flood}' 2>/dev/null || true"));
    lab.lan1.run(&format!("ping -c 1 -W 2 {}", SERVER[0]));
    let status = lab.unit.status();
    assert!(
        status["sessions"]["total"].as_u64() > Some(20_000),
        "{status:#}"
    );
    exporter.signal(libc::SIGCONT);
    let refused = lab
        .unit
        .tandemgw("ipfix --collector nowhere.invalid:1")
        .code(2);
    assert!(
        refused.stderr.contains("--collector nowhere.invalid:1"),
        "{}",
        refused.stderr
    );
}
