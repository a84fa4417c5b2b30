//! `tandemgw capture`, judged by tshark.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::lab::{LAN_GATEWAY, LAN1, Lab, SERVER, WAN_GATEWAY, bracketed};
use crate::pair::Pair;
use crate::services::{self, Http, family_number, whoami};
use crate::unit::Unit;
use testkit::system::process::{Finished, PATIENCE, Process, wait_until};

/// A capture that runs, into a file.
struct Running {
    process: Process,
    file: PathBuf,
}

/// A packet of a file, as tshark shows it.
#[derive(Debug)]
struct Seen {
    port: String,
    outbound: bool,
    id: String,
    comment: String,
    src: String,
    dst: String,
    /// ICMP type, fragment offset, captured and whole length, where there is one.
    icmp_type: String,
    fragment_offset: String,
    captured: usize,
    length: usize,
    time: f64,
}

impl Running {
    #[track_caller]
    fn start(unit: &Unit, dir: &Path, arguments: &str) -> Running {
        let file = dir.join(format!("{}.pcapng", unit.ns.name()));
        // One of an earlier start is not overwritten.
        let _ = fs::remove_file(&file);
        let line = format!("capture --write {} {arguments}", file.display());
        let process = unit.spawn_tandemgw(&line);
        process.expect_stderr("beginning", |line| line.contains("capturing to"));
        Running { process, file }
    }

    /// Ends it with Ctrl-C; gives how many packets it says were written and lost, and the packets.
    #[track_caller]
    fn end(self) -> ([u64; 2], Vec<Seen>) {
        self.process.signal(libc::SIGINT);
        let counts = summary(&self.process.finish(PATIENCE).ok());
        (counts, read(&self.file))
    }
}

/// The last line for people: `N packets, M lost`.
#[track_caller]
fn summary(finished: &Finished) -> [u64; 2] {
    let line = finished.stderr.lines().find(|line| line.ends_with(" lost"));
    let words: Vec<&str> = line.expect("a summary").split_whitespace().collect();
    assert_eq!((words[2], words[4]), ("packets,", "lost"), "{words:?}");
    [words[1], words[3]].map(|number| number.parse().expect("a number"))
}

#[track_caller]
fn tshark(file: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).arg("-n").args(arguments);
    for protocol in ["ip", "tcp", "udp"] {
        command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    let process = Process::spawn(command, "tshark");
    process.finish(PATIENCE * 4).ok().stdout
}

/// The packets of a file, in which nothing may be malformed, nor have a wrong checksum.
#[track_caller]
fn read(file: &Path) -> Vec<Seen> {
    // The packet that an ICMP error quotes may lack the checksum that the hardware was to complete.
    let bad = "_ws.malformed || ip.checksum.status == Bad || icmp.checksum.status == Bad \
               || icmpv6.checksum.status == Bad || (!icmp && !icmpv6 \
               && (tcp.checksum.status == Bad || udp.checksum.status == Bad))";
    assert_eq!(tshark(file, &["-Y", bad, "-V"]), "", "malformed or wrong");
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.packet_id",
        "frame.comment",
        "ip.src",
        "ip.dst",
        "ipv6.src",
        "ipv6.dst",
        "icmp.type",
        "icmpv6.type",
        "ip.frag_offset",
        "ipv6.fraghdr.offset",
        "frame.cap_len",
        "frame.len",
        "frame.time_epoch",
    ];
    let mut arguments = vec!["-T", "fields", "-E", "occurrence=f"];
    // A packet is shown as it is, not with those that it completes.
    arguments.extend(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]);
    arguments.extend(fields.iter().flat_map(|field| ["-e", field]));
    tshark(file, &arguments).lines().map(seen).collect()
}

#[track_caller]
fn seen(line: &str) -> Seen {
    let field: Vec<&str> = line.split('\t').collect();
    assert_eq!(field.len(), 15, "{line}");
    let number = |at: usize| field[at].parse().expect("a length");
    Seen {
        port: field[0].to_owned(),
        outbound: match field[1] {
            "0x00000001" | "1" => false,
            "0x00000002" | "2" => true,
            other => panic!("direction {other}: {line}"),
        },
        id: field[2].to_owned(),
        comment: field[3].to_owned(),
        src: format!("{}{}", field[4], field[6]),
        dst: format!("{}{}", field[5], field[7]),
        icmp_type: format!("{}{}", field[8], field[9]),
        fragment_offset: format!("{}{}", field[10], field[11]),
        captured: number(12),
        length: number(13),
        time: field[14].parse().expect("a time"),
    }
}

/// The packets whose comment has all of these words.
fn with<'a>(packets: &'a [Seen], words: &str) -> Vec<&'a Seen> {
    let has = |packet: &&Seen| {
        let comment: Vec<&str> = packet.comment.split(' ').collect();
        words.split(' ').all(|word| comment.contains(&word))
    };
    packets.iter().filter(has).collect()
}

/// The packet as it came in, and the same as it left.
#[track_caller]
fn both(packets: &[Seen], wanted: impl Fn(&Seen) -> bool) -> (&Seen, &Seen) {
    let before = packets
        .iter()
        .find(|packet| !packet.outbound && wanted(packet));
    let before = before.unwrap_or_else(|| panic!("no such packet: {packets:#?}"));
    let after = packets
        .iter()
        .find(|packet| packet.outbound && packet.id == before.id);
    let after = after.unwrap_or_else(|| panic!("{before:?} has not left"));
    assert_eq!(before.comment, after.comment);
    (before, after)
}

#[test]
fn translated_packets_are_seen_on_both_sides() {
    let lab = Lab::started();
    let _http = Http::start(&lab, &lab.server, 1);
    let capture = Running::start(&lab.unit, lab.dir(), "proto=tcp");
    for server in SERVER {
        whoami(&lab.lan1, &bracketed(server));
    }
    let ([written, lost], packets) = capture.end();
    assert_eq!((written, lost), (packets.len() as u64, 0));
    for index in [0, 1] {
        let (before, after) = both(&packets, |packet| packet.src == LAN1[index]);
        let words = "in=lan out=wan verdict=forward policy=lan-out translated";
        assert_eq!(
            with(std::slice::from_ref(before), words).len(),
            1,
            "{before:?}"
        );
        assert_eq!((&*before.port, &*after.port), ("lan", "wan"));
        assert_eq!(before.dst, SERVER[index]);
        assert_eq!(
            (&*after.src, &*after.dst),
            (WAN_GATEWAY[index], SERVER[index])
        );
        let (answer, passed) = both(&packets, |packet| packet.src == SERVER[index]);
        assert_eq!((&*answer.port, &*answer.dst), ("wan", WAN_GATEWAY[index]));
        assert_eq!((&*passed.port, &*passed.dst), ("lan", LAN1[index]));
        let session = before
            .comment
            .split(' ')
            .find(|word| word.starts_with("session="));
        assert!(
            answer.comment.contains(session.expect("a session")),
            "{answer:?}"
        );
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let age = now.expect("a year after 1970").as_secs_f64() - packets[0].time;
    assert!(
        (0.0..300.0).contains(&age),
        "the time is that of the day: {age} s ago"
    );
}

#[test]
fn drops_answers_and_errors_say_why() {
    let mut lab = Lab::new();
    lab.unit
        .prepend_policy("name = \"no\"\nservice = [\"tcp/81\"]\naction = \"reject\"");
    lab.unit.start();
    lab.server.run("ip route add 10.77.1.0/24 via 10.77.2.1");
    lab.server.run("ip route add fd77:1::/64 via fd77:2::1");
    let capture = Running::start(&lab.unit, lab.dir(), "");
    for index in [0, 1] {
        let (server, family) = (SERVER[index], family_number(SERVER[index]));
        lab.lan1
            .run(&format!("ping -c 1 -W 5 {}", LAN_GATEWAY[index]));
        lab.server
            .try_run(&format!("ping -c 1 -W 1 {}", LAN1[index]))
            .code(1);
        lab.lan1
            .try_run(&format!("curl -s -m 5 http://{}:81/", bracketed(server)))
            .code(7);
        // Nobody listens there: the server's kernel says so.
        lab.lan1.sh(&format!(
            "echo x | socat -t 1 - UDP{family}:{}:9 || true",
            bracketed(server)
        ));
    }
    let (_, packets) = capture.end();
    let count = |words: &str| with(&packets, words).len();
    assert_eq!(count("in=lan verdict=consumed"), 2, "pings: {packets:#?}");
    assert_eq!(
        count("in=wan verdict=drop reason=no-policy"),
        2,
        "{packets:#?}"
    );
    assert_eq!(
        count("in=lan verdict=drop reason=policy-reject policy=no"),
        2
    );
    // Echo replies, and resets that follow what they answer.
    let answers = with(&packets, "out=lan verdict=answer");
    assert!(answers.len() == 4 && answers.iter().all(|packet| packet.outbound));
    let at = |words: &str| {
        packets
            .iter()
            .position(|p| !with(std::slice::from_ref(p), words).is_empty())
    };
    assert!(at("verdict=consumed") < at("verdict=answer"));
    for (icmp_type, index) in [("3", 0), ("1", 1)] {
        let is_error = |packet: &Seen| packet.icmp_type == icmp_type;
        let (before, after) = both(&packets, is_error);
        assert_eq!(
            (&*before.dst, &*after.dst),
            (WAN_GATEWAY[index], LAN1[index])
        );
        assert_eq!(
            with(std::slice::from_ref(before), "policy=lan-out translated").len(),
            1
        );
    }
}

#[test]
fn super_packets_and_fragments_have_right_checksums() {
    let lab = Lab::started();
    let capture = Running::start(&lab.unit, lab.dir(), "host=10.77.1.0/24");
    services::assert_upload(&lab, &lab.lan1, &lab.server, SERVER[0]);
    let _echo = services::udp_echo(&lab.server, SERVER[0]);
    assert!(services::udp_echoes(&lab, &lab.lan1, SERVER[0], 8192));
    let ([written, _], packets) = capture.end();
    assert_eq!(written, packets.len() as u64);
    let is_super = |packet: &Seen| packet.length > 1500 && packet.comment.contains("gso segment=");
    let (before, after) = both(&packets, is_super);
    assert!(before.captured == before.length && after.captured == after.length);
    let is_later = |packet: &Seen| !matches!(&*packet.fragment_offset, "" | "0");
    let (before, after) = both(&packets, |packet| is_later(packet) && packet.src == LAN1[0]);
    assert_eq!(
        (&*after.port, &*after.src),
        ("wan", WAN_GATEWAY[0]),
        "{before:?}"
    );
    let (_, answer) = both(&packets, |packet| {
        is_later(packet) && packet.src == SERVER[0]
    });
    assert_eq!((&*answer.port, &*answer.dst), ("lan", LAN1[0]));
}

#[test]
fn ends_after_a_count_and_cuts_packets_off() {
    let lab = Lab::started();
    let capture = Running::start(&lab.unit, lab.dir(), "--count 3 -s 64 proto=icmp");
    lab.lan1
        .run(&format!("ping -c 3 -i 0.1 -W 5 {}", SERVER[0]));
    let finished = capture.process.finish(PATIENCE).ok();
    assert_eq!(summary(&finished), [3, 0]);
    let packets = read(&capture.file);
    assert_eq!(packets.len(), 3);
    assert!(
        packets
            .iter()
            .all(|packet| (packet.captured, packet.length) == (64, 84))
    );
    assert_eq!(lab.unit.status()["capture"], serde_json::Value::Null);
}

#[test]
fn wrong_words_are_answered_in_one_line_and_write_nothing() {
    let lab = Lab::started();
    let file = lab.dir().join("kept");
    fs::write(&file, "precious").expect("writing a file");
    let path = file.display();
    for (arguments, said) in [
        ("reason=no-polcy", "did you mean `no-policy`?"),
        ("in=lna", "did you mean `lan`?"),
        ("verdict=accept", "known: forward, drop, consumed, answer"),
        ("prto=tcp", "did you mean `proto`?"),
        ("-s 10", "not from 64 to"),
    ] {
        let refused = lab
            .unit
            .tandemgw(&format!("capture --write {path} {arguments}"))
            .code(2);
        assert!(
            refused.stderr.contains(said),
            "{arguments}: {}",
            refused.stderr
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    }
    let first = Running::start(&lab.unit, lab.dir(), "");
    let second = lab
        .unit
        .tandemgw(&format!("capture --write {path}"))
        .code(1);
    assert!(
        second.stderr.contains("another capture"),
        "{}",
        second.stderr
    );
    first.end();
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "precious");
    let binary = env!("CARGO_BIN_EXE_tandemgw");
    let script = format!("! {binary} capture --write - 2>&1 >/dev/full");
    let said = lab.unit.ns.sh(&script);
    assert!(said.contains("-: No space left"), "{said}");
}

#[test]
fn a_capture_is_private_and_writes_to_nothing_that_is_there() {
    let lab = Lab::started();
    let unit = &lab.unit;
    unit.ns
        .sh("cd /run; echo precious >x; ln -s x link; ln -s nothing dangling; mkfifo pipe");
    for name in ["x", "link", "dangling", "pipe"] {
        let refused = unit.tandemgw(&format!("capture --write /run/{name}"));
        let said = refused.code(1).stderr;
        let expected = format!("/run/{name}: it exists and is not overwritten");
        assert!(said.contains(&expected), "{said}");
    }
    assert_eq!(
        unit.ns
            .sh("cat /run/x; ls /run/nothing 2>/dev/null || true"),
        "precious\n"
    );
    let capture = unit.spawn_tandemgw("capture --write /run/y");
    capture.expect_stderr("a capture", |line| line.contains("capturing"));
    assert_eq!(unit.ns.run("stat -c %a /run/y"), "600\n");
    capture.signal(libc::SIGINT);
    capture.finish(PATIENCE).ok();
}

#[test]
fn works_live_through_a_pipe() {
    let lab = Lab::started();
    let binary = env!("CARGO_BIN_EXE_tandemgw");
    let mut command = lab.unit.ns.command("sh");
    let script = format!(
        "{binary} capture --write - proto=icmp | tshark -l -r - -c 2 -T fields -e frame.comment"
    );
    command.args(["-ec", &script]);
    let pipe = Process::spawn(command, "a pipe to tshark");
    pipe.expect_stderr("beginning", |line| line.contains("capturing to"));
    lab.lan1.run(&format!("ping -c 1 -W 5 {}", SERVER[0]));
    pipe.expect_stdout("packet at once", |line| line.contains("verdict=forward"));
    wait_until("tshark has seen enough, and the capture ends", || {
        lab.lan1.run(&format!("ping -c 1 -W 5 {}", SERVER[0]));
        lab.unit.status()["capture"].is_null()
    });
    pipe.finish(PATIENCE).ok();
}

#[test]
fn a_client_that_does_not_read_slows_nothing() {
    let lab = Lab::started();
    let http = Http::start(&lab, &lab.server, 32);
    http.assert_download(&lab.lan1, SERVER[0]);
    let memory = lab.unit.memory();
    let capture = Running::start(&lab.unit, lab.dir(), "");
    capture.process.signal(libc::SIGSTOP);
    http.assert_download(&lab.lan1, SERVER[0]);
    let pings = lab
        .lan1
        .run(&format!("ping -c 20 -i 0.05 -W 5 {}", SERVER[0]));
    assert!(pings.contains(" 0% packet loss"), "{pings}");
    let lost = lab.unit.status()["capture"]["lost"].as_u64();
    assert!(lost > Some(0), "the ring is not bounded: {lost:?}");
    let grown = lab.unit.memory().saturating_sub(memory);
    assert!(grown < 24 << 20, "grown by {grown} bytes");

    capture.process.signal(libc::SIGCONT);
    let file = capture.file.clone();
    let ([written, lost], packets) = capture.end();
    assert!(written == packets.len() as u64 && lost > 0);
    // The Interface Statistics Blocks tell it to Wireshark.
    let block = fs::read(&file).expect("the capture");
    let needle = [5, 0, 8, 0];
    assert!(
        block.windows(4).any(|bytes| bytes == needle),
        "no isb_ifdrop"
    );
}

#[test]
fn a_capture_ends_with_its_client() {
    let lab = Lab::started();
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let capture = Running::start(&lab.unit, lab.dir(), "");
        assert!(lab.unit.status()["capture"].is_object());
        capture.process.signal(signal);
        wait_until("the capture has ended", || {
            lab.unit.status()["capture"].is_null()
        });
        // A write to a file is whole or missing: what is there can be read.
        let _ = capture.process.finish(Duration::from_secs(10));
        read(&capture.file);
    }
    let capture = Running::start(&lab.unit, lab.dir(), "");
    let mut lab = lab;
    lab.unit.stop();
    let ended = capture.process.finish(PATIENCE).code(1);
    assert!(
        ended.stderr.contains("the gateway has ended"),
        "{}",
        ended.stderr
    );
    read(&capture.file);
}

#[test]
fn a_packet_that_waits_for_the_peer_is_seen_to_leave() {
    let mut pair = Pair::new();
    let guarantee = "group-id = 7\npickup-guarantee = \"bounded\"\npickup-guarantee-wait = \"1s\"";
    pair.edit("group-id = 7", guarantee);
    pair.start();
    let capture = Running::start(pair.a(), pair.lab.dir(), "proto=icmp");
    pair.lab.lan1.run(&format!("ping -c 1 -W 5 {}", SERVER[0]));
    let (_, packets) = capture.end();
    let waits = with(&packets, "in=lan verdict=consumed policy=lan-out");
    let left = with(
        &packets,
        "out=wan verdict=forward policy=lan-out translated released",
    );
    assert!(waits.len() == 1 && left.len() == 1, "{packets:#?}");
    assert_eq!((&*left[0].port, &*left[0].src), ("wan", WAN_GATEWAY[0]));
}
