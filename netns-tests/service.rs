//! As a service: notifications to systemd, the remaining rights, the sandbox of the unit file, the
//! log.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::fast_path::{self, want_ebpf};
use crate::frame::{Ends, FrameSocket};
use crate::lab::{Lab, SERVER};
use crate::pair::Pair;
use testkit::system::namespace::is_root_of_the_machine;
use testkit::system::process::{PATIENCE, wait_until};

const UNIT_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/tandemgw@.service");

/// The values that the unit file gives to a key, in their order.
fn unit_values(key: &str) -> Vec<String> {
    let text = fs::read_to_string(UNIT_FILE).expect("reading the unit file");
    let key = format!("{key}=");
    let values = text.lines().filter_map(|line| line.strip_prefix(&key));
    values.map(str::to_owned).collect()
}

fn unit_value(key: &str) -> String {
    let values = unit_values(key);
    assert_eq!(values.len(), 1, "{key} in {UNIT_FILE}: {values:?}");
    values[0].clone()
}

/// Passes for systemd's end of the notification socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Manager {
        // In a folder whose name is short: the path of a socket has at most 107 bytes.
        let path = std::env::temp_dir().join(format!("tgw-{name}-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("a socket");
        Manager { socket, path }
    }

    /// The next message within `patience`.
    fn next(&self, patience: Duration) -> Option<String> {
        let patience = patience.max(Duration::from_millis(1));
        self.socket
            .set_read_timeout(Some(patience))
            .expect("a timeout");
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// The next message other than a sign of life.
    #[track_caller]
    fn next_but_watchdog(&self) -> String {
        loop {
            let text = self.next(PATIENCE).expect("a message");
            if text != "WATCHDOG=1" {
                return text;
            }
        }
    }

    /// Waits for a message that has this line; returns those before.
    #[track_caller]
    fn expect(&self, line: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut before = Vec::new();
        while let Some(text) = self.next(deadline.saturating_duration_since(Instant::now())) {
            if text.lines().any(|found| found == line) {
                return before;
            }
            before.push(text);
        }
        panic!("the service manager was not told {line}: {before:?}");
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn service_manager_is_told_ready_alive_and_stopping() {
    let manager = Manager::new("notify");
    let mut lab = Lab::new();
    lab.unit.launch_by(&format!(
        "NOTIFY_SOCKET={} WATCHDOG_USEC=300000 exec \"$@\"",
        manager.path.display()
    ));
    lab.unit.start();
    assert!(
        manager.expect("READY=1").is_empty(),
        "something came before"
    );
    // Nothing to do but this: the timer alone wakes the loop.
    manager.expect("STATUS=primary of default");
    for _ in 0..5 {
        let before = manager.expect("WATCHDOG=1");
        assert!(before.is_empty(), "{before:?}");
    }
    lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    // A reload, and its end, even of a file that is refused.
    for config in ["no = config", &lab.unit.config] {
        fs::write(lab.unit.config_path(), config).expect("writing the config");
        lab.unit.signal(libc::SIGHUP);
        let begun = manager.next_but_watchdog();
        assert!(begun.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{begun}");
        assert_eq!(manager.next_but_watchdog(), "READY=1");
    }
    // A process that does not run says nothing.
    lab.unit.signal(libc::SIGSTOP);
    while manager.next(Duration::from_millis(300)).is_some() {}
    assert_eq!(manager.next(Duration::from_secs(1)), None);
    lab.unit.signal(libc::SIGCONT);
    manager.expect("WATCHDOG=1");
    lab.unit.stop();
    manager.expect("STOPPING=1");
}

#[test]
fn signs_of_life_come_under_full_load_and_from_a_standby_that_is_cut_off() {
    let managers = ["load-a", "load-b"].map(Manager::new);
    let mut pair = Pair::new();
    for (unit, manager) in [&mut pair.lab.unit, &mut pair.b].into_iter().zip(&managers) {
        unit.config += "[limits]\nhalf-open-per-source = 60000\n";
        unit.launch_by(&format!(
            "NOTIFY_SOCKET={} WATCHDOG_USEC=2000000 exec \"$@\"",
            manager.path.display()
        ));
    }
    pair.start();
    let flood = "ping -q -f -s 1400 10.77.2.100";
    let floods = [&pair.lab.lan1, &pair.lab.lan2].map(|host| host.spawn(flood));
    open_sessions(&pair.lab, 10_000);
    // It hears nothing but the answers of the primary on the ports.
    pair.cut(0);
    pair.b().wait_for_event("answers on the data ports only");
    let clear = pair.a().spawn_tandemgw("sessions clear --all");
    for manager in &managers {
        // Earlier messages do not count.
        while manager.next(Duration::from_millis(1)).is_some() {}
        for _ in 0..3 {
            let told = manager.next(Duration::from_secs(2));
            assert!(
                told.is_some(),
                "no sign of life in the time that systemd waits"
            );
        }
    }
    clear.finish(PATIENCE).ok();
    drop(floods);
}

#[test]
fn ready_is_said_when_it_forwards() {
    let manager = Manager::new("forwards");
    let mut lab = Lab::new();
    let path = manager.path.display();
    lab.unit
        .launch_by(&format!("NOTIFY_SOCKET={path} exec \"$@\" 2>/dev/null"));
    thread::scope(|scope| {
        let hosts = (&lab.lan1, &manager);
        let first = scope.spawn(move || {
            hosts.1.expect("READY=1");
            hosts.0.try_run("ping -c 1 -W 2 10.77.2.100")
        });
        lab.unit.start_unheard();
        first.join().expect("no panic").ok();
    });
}

/// A line of `/proc/PID/status`.
fn process_status(pid: u32, key: &str) -> String {
    status_in(Path::new(&format!("/proc/{pid}/status")), key)
}

/// The same of each thread: rights are of threads.
fn thread_statuses(pid: u32, key: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let threads = threads.map(|thread| thread.expect("the process runs").path());
    threads
        .map(|thread| status_in(&thread.join("status"), key))
        .collect()
}

fn status_in(file: &Path, key: &str) -> String {
    let text = fs::read_to_string(file).expect("the process runs");
    let key = format!("{key}:\t");
    let value = text.lines().find_map(|line| line.strip_prefix(&key));
    value.expect("the kernel tells that").to_owned()
}

const NET_ADMIN_AND_RAW: &str = "0000000000003000";
const NO_CAPABILITY: &str = "0000000000000000";

#[test]
fn rights_are_dropped_but_for_those_that_repair_needs() {
    let mut lab = Lab::new();
    let before = lab.unit.ns.run("ip rule");
    lab.unit.start();
    // A thread that ends puts the program of the fast path at the ports.
    fast_path::wait_until_attached(&lab.unit);
    for (key, value) in [
        ("CapEff", NET_ADMIN_AND_RAW),
        ("CapPrm", NET_ADMIN_AND_RAW),
        ("CapInh", NO_CAPABILITY),
        ("CapBnd", NO_CAPABILITY),
        ("CapAmb", NO_CAPABILITY),
        ("NoNewPrivs", "1"),
    ] {
        // The loop, and the thread that keeps rules and routes.
        let threads = thread_statuses(lab.unit.pid(), key);
        assert_eq!(threads, [value; 2], "{key}");
    }
    // They are enough for repairs, and for the end.
    lab.unit.ns.run("ip rule del pref 7700");
    lab.unit.ns.run("ip link set eth1 down");
    lab.unit.ns.run("ip link set eth1 up");
    wait_until("it forwards again", || {
        let ping = lab.lan1.try_run("ping -c 1 -W 1 10.77.2.100");
        ping.status.success()
    });
    lab.unit.stop();
    assert_eq!(lab.unit.ns.run("ip rule"), before);
}

/// The priority of a session, where the kernel groups tasks by session; "" where it does not.
fn priority_of_session(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/autogroup")).unwrap_or_default();
    let (_, nice) = text.trim().split_once(" nice ").unwrap_or_default();
    nice.to_owned()
}

/// Whether a new session gets a group of its own (sched(7), the autogroup feature).
fn sessions_are_grouped() -> bool {
    let enabled = fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled");
    enabled.is_ok_and(|text| text.trim() == "1")
}

#[test]
fn only_a_session_of_its_own_is_raised_over_others() {
    // This process itself may be in no group, as one that a container's first process started.
    let ours = priority_of_session(std::process::id());
    let raised = if sessions_are_grouped() { "-20" } else { "" };
    for (starts, expected) in [
        ("exec \"$@\"", ours.as_str()),
        ("exec setsid \"$@\"", raised),
    ] {
        let mut lab = Lab::new();
        lab.unit.launch_by(starts);
        lab.unit.start();
        assert_eq!(priority_of_session(lab.unit.pid()), expected, "{starts}");
        assert_eq!(nice_of(lab.unit.pid()), -20, "{starts}");
    }
}

/// The niceness of the first thread (proc_pid_stat(5)).
fn nice_of(pid: u32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let nice = fields.split(' ').nth(16).expect("more fields");
    nice.parse().expect("a number")
}

/// No core dump, and no debugger of the same user (proc(5): files of such a process are root's).
#[track_caller]
fn assert_memory_is_private(pid: u32) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<&str> = core.expect("a limit").split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{limits}");
    let memory = fs::metadata(format!("/proc/{pid}/mem")).expect("it runs");
    assert_eq!(
        memory.uid(),
        0,
        "it belongs to root, not to the user of the process"
    );
}

/// Starts the gateway as the unit file has it: with its capabilities and limits only, and, where
/// the tests run as root, as an ordinary user.
pub fn sandbox() -> String {
    let capabilities = unit_value("AmbientCapabilities");
    assert_eq!(capabilities, unit_value("CapabilityBoundingSet"));
    let names = capabilities.split_whitespace();
    let set: String = names
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let (user, change) = match is_root_of_the_machine() {
        true => (65534, "--reuid=65534 --regid=65534 --clear-groups"),
        // Another user does not exist in the namespace.
        false => (0, ""),
    };
    let nice = 20 - unit_value("LimitNICE").parse::<i32>().expect("a number");
    format!(
        "binary=$1; config=$4; folder=/run/tandemgw-test
        mkdir -p $folder /run/tandemgw /var/lib/tandemgw
        cp \"${{config%/*}}\"/*.toml $folder; chmod 644 $folder/*.toml
        for key in \"${{config%/*}}\"/*.key; do [ ! -e \"$key\" ] || cp \"$key\" $folder; done
        chown -R {user} /run/tandemgw /var/lib/tandemgw $folder
        [ -e /run/tandemgw-binary ] || {{ touch /run/tandemgw-binary; mount --bind \"$binary\" /run/tandemgw-binary; }}
        # With the mode that udev gives it, whatever the mode is here.
        [ {user} = 0 ] || {{ mknod -m 0666 /run/tun c 10 200; mount --bind /run/tun /dev/net/tun; }}
        limits='prlimit --rtprio={rtprio} --nice={nice}' set=-all{set}
        # Where limits can't be raised, as in some containers, a right stands in for them.
        $limits true || {{ limits='' set=$set,+sys_nice; }}
        exec $limits setpriv {change} --no-new-privs \
            --inh-caps=$set --ambient-caps=$set --bounding-set=$set \
            /run/tandemgw-binary run --config $folder/\"${{config##*/}}\"",
        rtprio = unit_value("LimitRTPRIO"),
    )
}

#[test]
fn rights_of_the_unit_file_are_enough() {
    let mut pair = Pair::new();
    want_ebpf(pair.a_mut());
    want_ebpf(&mut pair.b);
    pair.a_mut().launch_by(&sandbox());
    pair.b.launch_by(&sandbox());
    let before = pair.a().ns.sh("ip rule; ip -6 rule");
    pair.start();
    let pid = pair.a().pid();
    assert_eq!(process_status(pid, "CapEff"), NET_ADMIN_AND_RAW);
    let user = if is_root_of_the_machine() {
        "65534"
    } else {
        "0"
    };
    assert_eq!(process_status(pid, "Uid").split('\t').next(), Some(user));
    assert_memory_is_private(pid);
    // In a user namespace nothing grants that right.
    if is_root_of_the_machine() {
        let priority = pair.a().ns.run(&format!("chrt -p {pid}"));
        assert!(priority.contains("SCHED_RR"), "{priority}");
        assert!(!pair.a().log().contains("WARN"), "{}", pair.a().log());
    }
    let lab = &pair.lab;
    for server in SERVER {
        lab.lan1.run(&format!("ping -c 1 -W 2 {server}"));
    }
    pair.a().ns.run("ip link set eth1 down");
    pair.wait_for_takeover_by_b(1);
    pair.a().ns.run("ip link set eth1 up");
    pair.a().wait_until_ready();
    pair.a().ns.run("ip link del eth1");
    pair.lab.attach_wan();
    if is_root_of_the_machine() {
        wait_until("the fast path is at the new eth1", || {
            fast_path::is_at_all_ports(pair.a())
        });
    }
    wait_until("the kernel has the address of the new eth1", || {
        let routes = pair.a().ns.run("ip -6 route show table local");
        routes.contains("fd77:2::2 ")
    });
    pair.a().wait_until_ready();
    pair.a().tandemgw("ha set session-pickup-delay 1s").ok();
    assert_eq!(pair.b().tandemgw("failover").ok().stderr, "");
    for server in SERVER {
        pair.lab.lan1.run(&format!("ping -c 1 -W 2 {server}"));
    }
    use_a_pool(&mut pair);
    let rules = pair.a().ns.sh("ip rule; ip -6 rule");
    pair.a().ns.run("ip rule del pref 7701");
    pair.a().ns.run("ip -6 rule del pref 7700");
    wait_until("the rules are back", || {
        pair.a().ns.sh("ip rule; ip -6 rule") == rules
    });
    assert!(!pair.a().log().contains("ERROR"), "{}", pair.a().log());
    pair.a_mut().stop();
    assert_eq!(pair.a().ns.sh("ip rule; ip -6 rule"), before);
    let forwarding = pair
        .a()
        .ns
        .sh("cat /proc/sys/net/ipv4/conf/eth?/forwarding /proc/sys/net/ipv4/conf/all/forwarding");
    assert_eq!(forwarding, "0\n0\n0\n");
    let socket = "test ! -e /run/tandemgw/gw-a.sock";
    pair.a().ns.sh(socket);
}

/// Has gw-a, the primary, read a config with new addresses while it runs; both families then use
/// them.
fn use_a_pool(pair: &mut Pair) {
    let pool =
        "[[nat-pool]]\nname = \"pool\"\naddresses = [\"10.77.2.10-10.77.2.11\", \"fd77:2::10\"]\n";
    for unit in [&mut pair.lab.unit, &mut pair.b] {
        unit.edit("nat = true", "nat-pool = \"pool\"");
        unit.edit("[[policy]]", &format!("{pool}\n[[policy]]"));
        unit.write_config();
        let file = unit.config_path().display().to_string();
        unit.ns.sh(&format!(
            "cat {file} > /run/tandemgw-test/\"$(basename {file})\""
        ));
        let reloaded = unit.tandemgw("reload").ok().stdout;
        assert!(reloaded.contains("nat-pool"), "{reloaded}");
        assert!(!reloaded.contains("warning"), "{reloaded}");
    }
    let a = pair.a();
    wait_until("it has the routes of the pool", || {
        let routes = a.ns.sh("ip route; ip -6 route");
        routes.contains("10.77.2.11") && routes.contains("fd77:2::10")
    });
    for server in SERVER {
        pair.lab.lan1.run(&format!("ping -c 1 -W 2 {server}"));
    }
}

/// The groups of system calls that systemd knows, each with its members.
fn call_groups() -> BTreeMap<String, BTreeSet<String>> {
    let output = std::process::Command::new("systemd-analyze")
        .args(["syscall-filter", "--no-pager"])
        .output()
        .expect("systemd-analyze is installed");
    let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut name = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let word = line.trim();
        if line.starts_with('@') {
            name = word.to_owned();
        } else if !word.is_empty() && !word.starts_with('#') {
            groups
                .entry(name.clone())
                .or_default()
                .insert(word.to_owned());
        }
    }
    assert!(groups.contains_key("@system-service"), "{groups:?}");
    groups
}

fn members(groups: &BTreeMap<String, BTreeSet<String>>, name: &str) -> BTreeSet<String> {
    if !name.starts_with('@') {
        return [name.to_owned()].into();
    }
    let parts = groups.get(name).expect("a group that systemd knows");
    parts
        .iter()
        .flat_map(|part| members(groups, part))
        .collect()
}

/// The system calls that the unit file allows.
fn allowed_calls() -> BTreeSet<String> {
    let groups = call_groups();
    let mut allowed = members(&groups, "@default");
    for value in unit_values("SystemCallFilter") {
        let (removes, names) = match value.strip_prefix('~') {
            Some(names) => (true, names),
            None => (false, value.as_str()),
        };
        for call in names
            .split_whitespace()
            .flat_map(|name| members(&groups, name))
        {
            match removes {
                true => allowed.remove(&call),
                false => allowed.insert(call),
            };
        }
    }
    allowed
}

#[test]
fn system_calls_are_those_of_the_unit_file() {
    let allowed = allowed_calls();
    assert!(!allowed.contains("ptrace") && !allowed.contains("mount"));
    let mut pair = Pair::new();
    let trace = pair.lab.dir().join("trace");
    pair.a_mut().config.push_str("\n[metrics]\n");
    want_ebpf(pair.a_mut());
    want_ebpf(&mut pair.b);
    // -D: the process stays our child, and strace is its descendant.
    pair.a_mut().launch_by(&format!(
        "exec strace -D -f -qq -o {} \"$@\"",
        trace.display()
    ));
    pair.start();
    pair.lab.lan1.run("ping -c 2 -W 2 10.77.2.100");
    pair.a().ns.run("ip link set eth1 down");
    pair.wait_for_takeover_by_b(1);
    pair.a().ns.run("ip link set eth1 up");
    pair.a().wait_until_ready();
    pair.a()
        .tandemgw("ha set session-pickup-delay 1s --save")
        .ok();
    pair.a().tandemgw("reload").ok();
    pair.a().signal(libc::SIGHUP);
    pair.a()
        .tandemgw("explain udp 10.77.1.100:1 10.77.2.100:2 --in lan")
        .ok();
    pair.a()
        .ns
        .run("curl -sS -m 10 -f -o /dev/null http://127.0.0.1:10747/metrics");
    let capture = pair
        .a()
        .spawn_tandemgw("capture --count 1 --write /run/x.pcapng");
    capture.expect_stderr("a capture", |line| line.contains("capturing"));
    pair.b().tandemgw("failover").ok();
    pair.lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    capture.finish(PATIENCE).ok();
    assert_eq!(pair.a().sessions("proto=icmp").len(), 2);
    pair.a().tandemgw("sessions clear --all").ok();
    pair.a_mut().stop();
    let calls = || -> BTreeSet<String> {
        let text = fs::read_to_string(&trace).expect("strace has written");
        let call = |line: &str| {
            let text = line.split_once(' ')?.1.trim_start();
            let name = text.split_once('(')?.0;
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            is_name.then(|| name.to_owned())
        };
        text.lines().filter_map(call).collect()
    };
    wait_until("strace has written all", || calls().contains("exit_group"));
    let mut forbidden = calls();
    for expected in ["capset", "epoll_wait", "prlimit64"] {
        assert!(forbidden.contains(expected), "{expected} is not called");
    }
    forbidden.retain(|call| !allowed.contains(call));
    // systemd itself calls it to start the process.
    forbidden.remove("execve");
    assert!(
        forbidden.is_empty(),
        "SystemCallFilter= forbids {forbidden:?}"
    );
}

fn log_policy(lab: &mut Lab) {
    lab.unit.edit("nat = true", "nat = true\nlog = true");
}

/// Opens `count` sessions, with some pauses.
pub fn open_sessions(lab: &Lab, count: u16) {
    let socket = FrameSocket::open(&lab.lan2, "eth0");
    let mac = (lab.lan2.mac("eth0"), lab.unit.ns.mac("eth0"));
    for number in 0..count {
        let ends = Ends {
            mac,
            ip: ([10, 77, 1, 101], [10, 77, 2, 200]),
            port: (1024 + number, 53),
        };
        socket.send(&ends.udp(b"x"));
        if number % 64 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    socket.finish();
}

/// The length of a value in quotes, of which `text` follows the first: the one that ends it has no
/// backslash before it.
fn quoted_length(text: &str) -> usize {
    let plain = text.replace("\\\\", "..").replace("\\\"", "..");
    plain.find('"').map_or(0, |at| at + 2)
}

/// Whether `line` is `words key=value key="value with blanks"`.
fn is_event(line: &str) -> bool {
    let mut rest = line;
    let mut fields = 0;
    let mut words = 0;
    while !rest.is_empty() {
        let end = rest.find([' ', '=']).unwrap_or(rest.len());
        let name = &rest[..end];
        let is_name = !name.is_empty()
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !is_name {
            return false;
        }
        rest = &rest[end..];
        if let Some(value) = rest.strip_prefix('=') {
            fields += 1;
            let length = match value.strip_prefix('"') {
                Some(text) => quoted_length(text),
                None => value.find(' ').unwrap_or(value.len()),
            };
            if !value[length..].is_empty() && !value[length..].starts_with(' ') {
                return false;
            }
            rest = &value[length..];
        } else if fields > 0 {
            return false;
        } else {
            words += 1;
        }
        rest = rest.strip_prefix(' ').unwrap_or(rest);
    }
    words > 0
}

/// The level and the text of a line with a timestamp.
#[track_caller]
fn parts(line: &str) -> (String, String) {
    let (head, text) = line.split_once("] ").expect("[TIME LEVEL TARGET] TEXT");
    let level = head.split_whitespace().nth(1).expect("a level");
    (level.to_owned(), text.to_owned())
}

#[test]
fn lines_are_events_with_fields_and_say_why() {
    let mut pair = Pair::new();
    for unit in [&mut pair.lab.unit, &mut pair.b] {
        unit.edit("nat = true", "nat = true\nlog = true");
        unit.launch_by("RUST_LOG=debug exec \"$@\"");
    }
    pair.start();
    pair.lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    pair.a().tandemgw("sessions clear --all");
    pair.a().ns.run("ip link set eth1 down");
    pair.wait_for_takeover_by_b(1);
    pair.a().ns.run("ip link set eth1 up");
    pair.a().wait_until_ready();
    for unit in [pair.a(), pair.b()] {
        // Both speak for the addresses at the moment of a handover.
        assert!(!unit.log().contains("address conflict"), "{}", unit.log());
        for line in unit.log().lines().filter(|line| line.starts_with('[')) {
            let (level, text) = parts(line);
            // At DEBUG libraries speak too, in their own words.
            assert!(
                level == "DEBUG" && !line.contains(" tandemgw") || is_event(&text),
                "{line}"
            );
        }
    }
    let has = |unit: &crate::unit::Unit, level: &str, part: &[&str]| {
        let log = unit.log();
        let mut lines = log.lines().filter(|line| line.starts_with('[')).map(parts);
        let found =
            lines.any(|(found, text)| found == level && part.iter().all(|p| text.contains(p)));
        assert!(found, "no {level} line with {part:?}:\n{log}");
    };
    let version = concat!(
        "start version=",
        env!("CARGO_PKG_VERSION"),
        " node=gw-a config="
    );
    has(pair.a(), "INFO", &[version, "gw-a.toml"]);
    has(
        pair.a(),
        "INFO",
        &["role group=default role=primary term=1 why=\""],
    );
    has(
        pair.a(),
        "INFO",
        &["role group=default role=standby term=", "why=\""],
    );
    has(
        pair.b(),
        "INFO",
        &["role group=default role=primary term=2 why=\""],
    );
    has(
        pair.b(),
        "INFO",
        &["group ready group=default primary=gw-a"],
    );
    has(pair.a(), "WARN", &["link port=wan up=false"]);
    has(
        pair.a(),
        "INFO",
        &["session start policy=lan-out in=lan out=wan flow=\""],
    );
}

#[test]
fn journal_gets_priorities_instead_of_times() {
    let mut lab = Lab::new();
    log_policy(&mut lab);
    // As systemd does: the number of the very file that stderr is.
    lab.unit
        .launch_by("JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$@\"");
    lab.unit.start_unheard();
    lab.lan1.run("ping -c 1 -W 2 10.77.2.100");
    let log = lab.unit.log();
    for event in ["ready", "session start policy=lan-out"] {
        let line = format!("<6>{event}");
        assert!(log.lines().any(|l| l.starts_with(&line)), "{event}: {log}");
    }
    assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
    lab.unit.stop();
    // A variable that was inherited, and means another file, changes nothing.
    lab.unit.launch_by("JOURNAL_STREAM=1:1 exec \"$@\"");
    lab.unit.start();
}

#[test]
fn flood_of_session_lines_is_bounded_and_counted() {
    const SESSIONS: u16 = 5000;
    let mut lab = Lab::new();
    log_policy(&mut lab);
    lab.unit.config += "[limits]\nhalf-open-per-source = 60000\n";
    lab.unit.start();
    let start = Instant::now();
    open_sessions(&lab, SESSIONS);
    wait_until("the flood is over", || {
        lab.unit.status()["sessions"]["udp"].as_u64() >= Some(1000)
    });
    let suppressed = || -> u64 {
        let log = lab.unit.log();
        let lines = log
            .lines()
            .filter_map(|line| line.split("log lines suppressed=").nth(1));
        let count = |text: &str| text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
        lines.filter_map(count).sum()
    };
    let opened = || lab.unit.status()["sessions"]["udp"].as_u64().unwrap_or(0);
    let written = || {
        let log = lab.unit.log();
        log.lines()
            .filter(|line| line.contains("session start "))
            .count() as u64
    };
    wait_until("each session is written or counted", || {
        written() + suppressed() == opened()
    });
    let most = 500 + 150 * (start.elapsed().as_secs() + 1);
    assert!(written() <= most, "{} lines, more than {most}", written());
    assert!(lab.unit.log().contains("event=\"session start\""));
}

#[test]
fn log_that_nobody_reads_delays_no_packet() {
    let mut lab = Lab::new();
    log_policy(&mut lab);
    lab.unit.config += "[limits]\nhalf-open-per-source = 60000\n";
    // Both ends of it are its own: nobody reads, and nobody hangs up.
    lab.unit
        .launch_by("mkfifo /run/log; RUST_LOG=trace exec \"$@\" 2<>/run/log");
    lab.unit.start_unheard();
    open_sessions(&lab, 4000);
    // The pipe is full: what is in it does not become more.
    let waiting = lab.lan1.run("ping -c 100 -i 0.01 -W 2 10.77.2.100");
    assert!(waiting.contains(" 0% packet loss"), "{waiting}");
    let mut slowest = waiting.rsplit("/");
    let slowest: f64 = slowest
        .nth(1)
        .and_then(|ms| ms.parse().ok())
        .expect("min/avg/max/mdev");
    assert!(slowest < 500.0, "{waiting}");
    lab.unit.assert_running();
    // Who reads in the end gets whole lines, the first ones first.
    let read = lab.unit.ns.sh("timeout 3 cat /run/log || true");
    assert!(
        read.len() > 60_000,
        "the pipe was not full: {} bytes",
        read.len()
    );
    let lines: Vec<&str> = read.lines().collect();
    assert!(lines[0].contains("start version="), "{}", lines[0]);
    for line in &lines[..lines.len() - 1] {
        assert!(line.starts_with('['), "{line}");
    }
    lab.unit.stop();
}

/// The unit file names the binary and the folder where the package puts them.
#[test]
fn unit_file_and_package_agree() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    assert!(manifest.expect("the manifest").contains("\"usr/bin/\""));
    assert!(
        unit_value("ExecStart").starts_with("/usr/bin/tandemgw run --config /etc/tandemgw/%i.toml")
    );
    assert_eq!(unit_value("RuntimeDirectory"), "tandemgw");
    assert_eq!(unit_value("ReadWritePaths"), "-/etc/tandemgw");
}
