//! Commands without a gateway to ask, or with the wrong one: one line, and an exit code.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::thread;
use std::time::Instant;

use crate::lab::Lab;
use crate::pair::Pair;
use testkit::system::process::Finished;

/// Runs `status` with that socket; the exit code must be `code`, and stderr one line, which is
/// given.
#[track_caller]
fn refused(lab: &Lab, socket: &str, code: i32) -> String {
    let arguments = if socket.is_empty() {
        "status".to_owned()
    } else {
        format!("status --socket {socket}")
    };
    one_line(lab.unit.tandemgw(&arguments).code(code))
}

#[track_caller]
fn one_line(finished: Finished) -> String {
    let said = finished.stderr;
    assert_eq!(said.lines().count(), 1, "not one line: {said}");
    assert!(said.starts_with("tandemgw: "), "{said}");
    assert_eq!(finished.stdout, "");
    said
}

/// A program that is not a gateway, or an older one: answers each line with what `answer` returns
/// for it.
fn serve(path: &Path, answer: impl Fn(&str) -> String + Send + 'static) {
    let listener = UnixListener::bind(path).expect("binding");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepting");
            let reader = BufReader::new(stream.try_clone().expect("cloning"));
            for line in reader.lines() {
                let Ok(line) = line else { break };
                let answer = answer(&line);
                if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
}

#[test]
fn no_gateway_or_no_socket_is_told_in_one_line() {
    let lab = Lab::new();
    let path = |name: &str| lab.dir().join(name).display().to_string();
    assert!(refused(&lab, "", 3).contains("there is no socket in /run/tandemgw"));
    assert!(refused(&lab, &path("none.sock"), 3).contains("does not exist"));
    fs::write(lab.dir().join("file"), "x").expect("writing");
    assert!(refused(&lab, &path("file"), 3).contains("is a file, not a socket"));
    let folder = lab.dir().join("folder");
    fs::create_dir(&folder).expect("making a folder");
    assert!(refused(&lab, &path("folder"), 3).contains("a folder without sockets"));
    drop(UnixListener::bind(folder.join("gw-x.sock")).expect("binding"));
    let said = refused(&lab, &path("folder"), 3);
    assert!(
        said.contains("did you mean --socket") && said.contains("gw-x.sock"),
        "{said}"
    );
    assert!(refused(&lab, &path("folder/gw-x.sock"), 3).contains("no gateway listens"));
    let _datagrams = UnixDatagram::bind(lab.dir().join("datagrams")).expect("binding");
    assert!(refused(&lab, &path("datagrams"), 3).contains("of another program"));
}

#[test]
fn a_program_that_is_no_gateway_is_told_from_one() {
    let lab = Lab::new();
    let path = |name: &str| lab.dir().join(name);
    serve(&path("echo"), |line| {
        format!("{}\n", line.to_uppercase().replace('{', "["))
    });
    serve(&path("mute"), |_| String::new());
    serve(&path("breaks"), |_| "{\"node\": \"x\"}\n{\"half".to_owned());
    // One that takes long, and says so.
    serve(&path("slow"), |_| {
        "{\"working\":true}\n{\"cleared\":7,\"skipped\":[]}\n{\"done\":true}\n".to_owned()
    });
    let slow = path("slow").display().to_string();
    let said = lab
        .unit
        .tandemgw(&format!("sessions clear --all --json --socket {slow}"));
    assert_eq!(said.ok().stdout, "{\"cleared\":7,\"skipped\":[]}\n");
    let said = |name: &str, code| refused(&lab, &path(name).display().to_string(), code);
    assert!(said("echo", 3).contains("of another program, not of a gateway"));
    assert!(said("mute", 1).contains("closes the connection without an answer"));
}

#[test]
fn an_older_gateway_is_named_with_its_version() {
    let lab = Lab::new();
    let socket = lab.dir().join("old.sock");
    serve(&socket, |line| {
        if line.contains("status") {
            "{\"node\":\"gw-a\",\"version\":\"0.0.1\"}\n{\"done\":true}\n".to_owned()
        } else {
            "{\"error\":\"unknown request: unknown variant `failover`\"}\n".to_owned()
        }
    });
    let asked = lab
        .unit
        .tandemgw(&format!("failover --socket {}", socket.display()));
    let said = one_line(asked.code(1));
    assert!(
        said.contains("is tandemgw 0.0.1 and does not know"),
        "{said}"
    );
    assert!(said.contains("restart it"), "{said}");
}

#[test]
fn a_gateway_that_is_stopped_is_not_waited_for_for_ever() {
    let lab = Lab::started();
    lab.unit.signal(libc::SIGSTOP);
    let start = Instant::now();
    let said = one_line(lab.unit.tandemgw("status").code(1));
    let waited = start.elapsed();
    lab.unit.signal(libc::SIGCONT);
    assert!(said.contains("does not answer"), "{said}");
    assert!(waited.as_secs() < 30, "waited {waited:?}");
    lab.unit.status();
}

#[test]
fn the_only_gateway_that_lives_is_found_among_dead_ones() {
    let mut lab = Lab::started();
    lab.unit
        .ns
        .sh("ln /run/tandemgw/gw-a.sock /run/tandemgw/other.sock");
    let said = one_line(lab.unit.tandemgw("status").code(1));
    assert!(said.contains("several gateways run here"), "{said}");
    assert!(
        said.contains("gw-a.sock, /run/tandemgw/other.sock"),
        "{said}"
    );
    lab.unit
        .tandemgw("status --socket /run/tandemgw/other.sock")
        .ok();
    lab.unit.ns.sh("rm /run/tandemgw/other.sock");
    lab.unit.kill();
    // The socket of the dead one is still there.
    assert!(refused(&lab, "", 3).contains("no gateway listens at /run/tandemgw/gw-a.sock"));
    lab.unit
        .ns
        .sh("mv /run/tandemgw/gw-a.sock /run/tandemgw/dead.sock");
    lab.unit.start();
    assert_eq!(lab.unit.status()["node"], "gw-a");
}

#[test]
fn who_has_no_permission_is_told() {
    let lab = Lab::started();
    // Root without any rights is bound by the modes of files.
    let powerless = || {
        let line = format!(
            "setpriv --bounding-set=-all --inh-caps=-all {} status",
            env!("CARGO_BIN_EXE_tandemgw")
        );
        one_line(lab.unit.ns.try_run(&line).code(1))
    };
    lab.unit.ns.sh("chmod 0 /run/tandemgw/gw-a.sock");
    let said = powerless();
    assert!(
        said.contains("no permission to use /run/tandemgw/gw-a.sock"),
        "{said}"
    );
    lab.unit.ns.sh("chmod 0 /run/tandemgw");
    let said = powerless();
    assert!(
        said.contains("no permission to look into /run/tandemgw"),
        "{said}"
    );
}

#[test]
fn status_for_people_has_the_most_important_first_and_fits() {
    let pair = Pair::started();
    pair.a().ns.run("ping -c 1 -W 2 10.77.1.100");
    let status = pair.a().tandemgw("status").ok().stdout;
    let lines: Vec<&str> = status.lines().collect();
    assert!(lines[0].starts_with("gw-a  version"), "{status}");
    let place = |part: &str| {
        let found = status.find(part);
        found.unwrap_or_else(|| panic!("no `{part}` in\n{status}"))
    };
    let order = [
        "health  ",
        "GROUP",
        "default  primary  ready",
        "PEER",
        "gw-b  connected  in sync",
        "UNIT",
        "LINK TO",
        "PORT  INTERFACE",
        "sessions  0 of",
        "TIME (UTC)",
    ];
    assert!(order.map(place).is_sorted(), "{status}");
    assert!(
        lines.iter().all(|line| line.chars().count() <= 80),
        "{status}"
    );
    assert!(!status.contains('\x1b'), "colour without a terminal");
}
