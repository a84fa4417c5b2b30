//! Clients, files and signals at their worst: nobody is kept out, no packet is lost, nothing is
//! left behind.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fast_path::wait_until_attached;
use crate::lab::Lab;
use crate::pair::Pair;
use crate::service::open_sessions;
use crate::unit::Unit;
use testkit::system::process::{Process, wait_until};

/// The control socket, as it is reached from outside of the unit's namespace.
fn socket_of(unit: &Unit) -> PathBuf {
    let (holder, node) = (unit.ns.id(), unit.ns.name());
    PathBuf::from(format!("/proc/{holder}/root/run/tandemgw/{node}.sock"))
}

#[track_caller]
fn connect(unit: &Unit) -> UnixStream {
    let stream = UnixStream::connect(socket_of(unit)).expect("it accepts");
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).expect("a timeout");
    stream.set_write_timeout(patience).expect("a timeout");
    stream
}

/// The first line of the answer to these bytes.
#[track_caller]
fn answer(unit: &Unit, bytes: &[u8]) -> String {
    let mut stream = connect(unit);
    // It may hang up before it has heard all.
    let _ = stream.write_all(bytes);
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line);
    line
}

fn descriptors(unit: &Unit) -> usize {
    let folder = fs::read_dir(format!("/proc/{}/fd", unit.pid()));
    folder.expect("the process runs").count()
}

/// Seconds of CPU that the gateway has used.
fn cpu(unit: &Unit) -> f64 {
    let text = fs::read_to_string(format!("/proc/{}/stat", unit.pid())).expect("it runs");
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|w| w.parse().ok())
        .collect();
    // utime and stime in hundredths, after the process id and ten numbers (proc_pid_stat(5)).
    (numbers[11] + numbers[12]) / 100.0
}

/// A stream of packets for the time of a test.
struct Pings(Process);

impl Pings {
    fn start(lab: &Lab) -> Pings {
        Pings(lab.lan1.spawn("ping -i 0.005 -W 2 10.77.2.100"))
    }

    #[track_caller]
    fn none_is_lost(self) {
        self.0.signal(libc::SIGINT);
        let said = self.0.finish(Duration::from_secs(20)).stdout;
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
}

const STATUS: &str = "{\"command\":\"status\"}\n";

#[test]
fn clients_of_the_control_socket_keep_nobody_out_and_cost_no_packet() {
    let lab = Lab::started();
    let unit = &lab.unit;
    wait_until_attached(unit);
    let before = (unit.memory(), descriptors(unit));
    let pings = Pings::start(&lab);
    // Garbage of all kinds is answered, if at all, with one line.
    let zeros = vec![0; 100_000];
    let deep = "[".repeat(60_000) + "\n";
    let deep_field = format!("{{\"command\":\"status\",\"x\":{deep}");
    let long_word = format!(
        "{{\"command\":\"sessions\",\"filter\":[\"policy={}\"]}}\n",
        "a".repeat(60_000)
    );
    let many_words = format!(
        "{{\"command\":\"sessions\",\"filter\":[{}\"proto=udp\"]}}\n",
        "\"proto=tcp\",".repeat(5000)
    );
    for (bytes, said) in [
        (&zeros[..], "longer than 65536 bytes"),
        (deep.as_bytes(), "unknown request"),
        (deep_field.as_bytes(), "recursion limit"),
        (long_word.as_bytes(), "unknown policy"),
        (many_words.as_bytes(), "at most 32 words"),
        (b"\xff\xfe\x00\n", "unknown request"),
        (b"\n", "unknown request"),
    ] {
        let line = answer(unit, bytes);
        assert!(
            line.starts_with("{\"error\":") && line.contains(said),
            "{line}"
        );
    }
    // Many that say nothing, or half of something.
    let idle: Vec<UnixStream> = (0..1000)
        .map(|number| {
            let mut stream = connect(unit);
            let _ = stream.write_all(&STATUS.as_bytes()[..number % 18]);
            stream
        })
        .collect();
    unit.status();
    drop(idle);
    // Some that ask a lot and read nothing, in all places: they give way after some seconds.
    let deaf: Vec<UnixStream> = (0..16)
        .map(|_| {
            let mut stream = connect(unit);
            let _ = stream.write_all(STATUS.repeat(3000).as_bytes());
            stream
        })
        .collect();
    unit.status();
    drop(deaf);
    for _ in 0..10_000 {
        drop(connect(unit));
    }
    unit.status();
    pings.none_is_lost();
    wait_until("descriptors are given back", || {
        descriptors(unit) <= before.1
    });
    let more = unit.memory().saturating_sub(before.0);
    assert!(more < 32 << 20, "{more} bytes of memory more");
}

#[test]
fn a_capture_that_nobody_reads_ends_with_its_client() {
    let lab = Lab::started();
    let mut deaf = connect(&lab.unit);
    deaf.write_all(b"{\"command\":\"capture\"}\n")
        .expect("it listens");
    let capture = || answer(&lab.unit, b"{\"command\":\"capture\"}\n");
    wait_until("it captures", || capture().contains("another capture"));
    let before = lab.unit.memory();
    lab.lan1.run("ping -q -f -c 20000 -s 1400 -W 5 10.77.2.100");
    let more = lab.unit.memory().saturating_sub(before);
    assert!(more < 32 << 20, "{more} bytes of memory more");
    drop(deaf);
    wait_until("its place is free", || capture().contains("\"begin\""));
}

#[test]
fn two_clients_that_end_all_sessions_end_each_once() {
    let mut lab = Lab::new();
    lab.unit.config += "[limits]\nhalf-open-per-source = 60000\n";
    lab.unit.start();
    open_sessions(&lab, 5000);
    let total = || lab.unit.status()["sessions"]["total"].as_u64();
    wait_until("the sessions are there", || total() >= Some(4000));
    let before = total().expect("a number");
    let clear = |_| lab.unit.spawn_tandemgw("sessions clear --all --json");
    let both: Vec<Process> = (0..2).map(clear).collect();
    let cleared = both.into_iter().map(|client| {
        let said = client.finish(Duration::from_secs(30)).ok().stdout;
        let value: Value = serde_json::from_str(&said).expect("JSON");
        value["cleared"].as_u64().expect("a number")
    });
    assert_eq!(cleared.sum::<u64>(), before);
    assert_eq!(total(), Some(0));
}

#[test]
fn descriptors_that_run_out_neither_spin_nor_last() {
    let mut lab = Lab::new();
    lab.unit.config.push_str("\n[metrics]\n");
    lab.unit.launch_by("ulimit -n 40; exec \"$@\"");
    lab.unit.start();
    let page = "curl -sS -m 20 -f -o /dev/null http://127.0.0.1:10747/metrics";
    lab.unit.ns.run(page);
    let mut hold = lab.unit.ns.command("bash");
    hold.args([
        "-c",
        "for n in $(seq 50); do exec {fd}<>/dev/tcp/127.0.0.1/10747; done; echo held; sleep 60",
    ]);
    let hold = Process::spawn(hold, "50 connections");
    hold.expect_stdout("50 connections", |line| line == "held");
    let held: Vec<UnixStream> = (0..50).map(|_| connect(&lab.unit)).collect();
    let before = cpu(&lab.unit);
    lab.lan1.run("ping -c 10 -i 0.1 -W 2 10.77.2.100");
    let used = cpu(&lab.unit) - before;
    assert!(used < 0.5, "{used} s of CPU in a second");
    drop((hold, held));
    lab.unit.ns.run(page);
    lab.unit.status();
}

#[test]
fn what_is_no_config_file_is_refused_at_a_reload() {
    let lab = Lab::started();
    let path = lab.unit.config_path().to_owned();
    let pings = Pings::start(&lab);
    let shown = path.display();
    for (make, said) in [
        (format!("rm {shown}"), "No such file"),
        (format!("mkfifo {shown}"), "not a regular file"),
        (format!("rm {shown}; mkdir {shown}"), "not a regular file"),
        (
            format!("rmdir {shown}; truncate -s 100M {shown}"),
            "longer than 67108864 bytes",
        ),
    ] {
        lab.unit.ns.sh(&make);
        let refused = lab.unit.tandemgw("reload").code(2).stderr;
        assert!(refused.contains(said), "{make}: {refused}");
        assert!(refused.contains("nothing has changed"), "{refused}");
    }
    lab.unit.ns.sh(&format!("rm {shown}"));
    fs::write(&path, "a = 1\n[x]\n".repeat(100_000)).expect("writing");
    lab.unit.tandemgw("reload").code(2);
    let unknown: String = (0..60_000).map(|n| format!("a{n} = 1\n")).collect();
    fs::write(&path, unknown).expect("writing");
    let refused = lab.unit.tandemgw("reload").code(2).stderr;
    assert!(
        refused.contains("more; `tandemgw check` shows all"),
        "{refused}"
    );
    assert!(refused.lines().count() < 200, "{refused}");
    lab.unit.write_config();
    lab.unit.tandemgw("reload").ok();
    pings.none_is_lost();
}

#[test]
fn stderr_and_service_manager_may_be_gone() {
    let mut lab = Lab::new();
    let short = std::env::temp_dir().join(format!("tgw-full-{}", std::process::id()));
    let manager = UnixDatagram::bind(&short).expect("a socket");
    for script in [
        "exec \"$@\" 2>&-".to_owned(),
        // A reader that is gone.
        "mkfifo /run/gone; true </run/gone & exec 2>/run/gone; wait; exec \"$@\"".to_owned(),
        "NOTIFY_SOCKET=/run/nothing WATCHDOG_USEC=100000 exec \"$@\" 2>/dev/null".to_owned(),
        format!(
            "NOTIFY_SOCKET={} WATCHDOG_USEC=2000 exec \"$@\" 2>/dev/full",
            short.display()
        ),
    ] {
        lab.unit.launch_by(&script);
        lab.unit.start_unheard();
        // Some hundred signs of life, which nobody takes.
        lab.lan1.run("ping -c 100 -i 0.01 -W 2 10.77.2.100");
        lab.unit.stop();
    }
    drop(manager);
    let _ = fs::remove_file(short);
}

#[test]
fn a_storm_of_reloads_and_switches_during_a_handover_costs_no_packet() {
    let pair = Pair::started();
    let pings = Pings::start(&pair.lab);
    let storm = |unit: &Unit| {
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            unit.signal(libc::SIGHUP);
            thread::sleep(Duration::from_millis(1));
        }
    };
    thread::scope(|scope| {
        let (a, b) = (pair.a(), pair.b());
        scope.spawn(|| storm(a));
        scope.spawn(|| storm(b));
        scope.spawn(|| {
            for value in [true, false].repeat(5) {
                a.tandemgw(&format!("ha set session-pickup-connectionless {value}"))
                    .ok();
            }
        });
        let lister = a.spawn_tandemgw("capture --write /run/all.pcapng");
        for unit in [a, b] {
            wait_until("it is primary and the other one ready", || {
                unit.is_primary() && unit.peer()["digest_equal"] == true
            });
            let (handover, set) = (
                unit.spawn_tandemgw("failover"),
                unit.spawn_tandemgw("ha set session-pickup-delay 1s"),
            );
            handover.finish(Duration::from_secs(20)).ok();
            set.finish(Duration::from_secs(20)).ok();
            unit.tandemgw("reload").ok();
        }
        lister.signal(libc::SIGINT);
        lister.finish(Duration::from_secs(20)).ok();
    });
    wait_until("gw-b is ready", || pair.b().group()["ready"] == true);
    assert!(pair.a().is_primary() && !pair.b().is_primary());
    pings.none_is_lost();
    for unit in [pair.a(), pair.b()] {
        assert!(!unit.log().contains("ERROR"), "{}", unit.log());
    }
}

#[test]
fn signals_to_end_that_come_twice_or_during_a_reload_end_it_in_order() {
    let mut lab = Lab::new();
    let before = lab.unit.ns.sh("ip rule; ip -6 rule; ip route; ip -6 route");
    for signals in [
        &[libc::SIGTERM, libc::SIGTERM][..],
        &[libc::SIGHUP, libc::SIGTERM, libc::SIGHUP],
        &[libc::SIGTERM, libc::SIGINT, libc::SIGTERM],
    ] {
        lab.unit.start();
        for signal in signals {
            lab.unit.signal(*signal);
        }
        lab.unit.stop();
        let after = lab.unit.ns.sh("ip rule; ip -6 rule; ip route; ip -6 route");
        assert_eq!(after, before, "{signals:?}");
        lab.unit.ns.sh("test ! -e /run/tandemgw/gw-a.sock");
    }
}

#[test]
fn a_save_that_is_killed_or_has_no_room_leaves_a_whole_file() {
    let pair = Pair::started();
    let unit = pair.a();
    let file = unit.config_path().to_owned();
    for number in 0..40 {
        let save = unit.spawn_tandemgw(&format!("ha set priority {} --save", 100 + number));
        thread::sleep(Duration::from_micros(250 * number));
        save.signal(libc::SIGKILL);
        drop(save);
        unit.tandemgw(&format!("check --config {}", file.display()))
            .ok();
    }
    // Their leftovers are in nobody's way, nor are several at once.
    let save = |key: &str| unit.spawn_tandemgw(&format!("ha set {key} --save"));
    let both = [save("priority 210"), save("override true")];
    for one in both {
        let finished = one.finish(Duration::from_secs(20));
        let busy = finished.stderr.contains("another save is under way");
        assert!(finished.status.success() || busy, "{}", finished.stderr);
    }
    unit.tandemgw("ha set priority 211 --save").ok();
    let text = fs::read_to_string(&file).expect("the config");
    assert!(text.contains("priority = 211"), "{text}");
    // A folder that is full, and one that is read-only.
    let folder = file.parent().expect("a folder").display();
    let name = file.file_name().expect("a name").to_string_lossy();
    unit.ns.sh(&format!(
        "cp {folder}/{name} /run/{name}; mount -t tmpfs -o size=8k tmpfs {folder}
         cp /run/{name} {folder}; head -c 100000 /dev/zero > {folder}/rest || true"
    ));
    let whole = || {
        unit.ns
            .sh(&format!("cmp /run/{name} {folder}/{name}; ls -A {folder}"))
    };
    let left = whole();
    for (said, mode) in [("No space left", "ro"), ("Read-only file system", "rw")] {
        let refused = unit.tandemgw("ha set priority 212 --save").code(1).stderr;
        assert!(
            refused.contains("not saved") && refused.contains(said),
            "{refused}"
        );
        assert_eq!(whole(), left);
        unit.ns.run(&format!("mount -o remount,{mode} {folder}"));
    }
}

#[test]
fn a_file_in_the_place_of_the_control_socket_is_not_removed() {
    let mut lab = Lab::new();
    lab.unit
        .ns
        .sh("mkdir -p /run/tandemgw; echo precious > /run/tandemgw/gw-a.sock");
    let said = lab.unit.start_in_vain().code(2).stderr;
    assert!(
        said.contains("there is a file that is not a socket"),
        "{said}"
    );
    assert_eq!(lab.unit.ns.run("cat /run/tandemgw/gw-a.sock"), "precious\n");
}

#[test]
fn other_metrics_wait_for_a_restart() {
    let mut lab = Lab::new();
    lab.unit.config.push_str("\n[metrics]\n");
    lab.unit.start();
    lab.unit
        .edit("[metrics]", "[metrics]\nlisten = \"127.0.0.1:10748\"");
    let answer = lab.unit.reload();
    assert_eq!(answer["restart"][0]["key"], "metrics.listen", "{answer}");
    lab.unit
        .ns
        .run("curl -sS -m 10 -f -o /dev/null http://127.0.0.1:10747/metrics");
}
